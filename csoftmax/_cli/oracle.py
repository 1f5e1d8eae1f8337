"""The softmax family in long double, and errors in ULP: what selftest, demo and the benchmarks measure against.

Long double has 64 bits of mantissa and 15 of exponent on x86 (more elsewhere), so x - max is harmless here: its
error stays below 0.03 ULP of float64, and nothing underflows.
"""

import numpy as np

EXACT = np.longdouble
# Where long double is double (MSVC, Apple), float64 results cannot be judged.
JUDGES_FLOAT64 = np.finfo(EXACT).nmant >= 63

# Bits of the significand, and exponent of the smallest normal number.
FORMATS = {"float16": (11, -14), "bfloat16": (8, -126), "float32": (24, -126), "float64": (53, -1022)}


def wide(x):
    """The same values as long double."""
    return (x.astype(np.float32) if x.dtype.name == "bfloat16" else x).astype(EXACT)


def forward(x, temperature=1.0, where=None):
    """softmax, log_softmax and logsumexp of finite logits along the last axis.

    A fourth result is the magnitude that the promise for logsumexp refers to, max(|m|, |logsumexp|).
    """
    z = wide(x) / EXACT(temperature)
    if where is not None:
        z = np.where(where, z, -np.inf)
    m = z.max(axis=-1, keepdims=True)
    e = np.exp(z - m)
    top = z == m
    # the sum without one maximum: the tail keeps its digits where that class is near-certain
    tail = np.sum(e, axis=-1, keepdims=True, where=~top) + (np.sum(top, axis=-1, keepdims=True) - 1)
    lse = m + np.log1p(tail)
    scale = np.maximum(np.abs(m), np.abs(lse))
    return e / (1 + tail), (z - m) - np.log1p(tail), lse[..., 0], scale[..., 0]


def softmax_vjp(dy, y, temperature=1.0):
    """The gradient, and the magnitude of the terms that cancel in it."""
    dy, y = wide(dy), wide(y)
    dot = np.sum(dy * y, axis=-1, keepdims=True)
    return y * (dy - dot) / EXACT(temperature), y * np.maximum(np.abs(dy), np.abs(dot)) / EXACT(temperature)


def log_softmax_vjp(dy, y, temperature=1.0):
    """The gradient, and the magnitude of the terms that cancel in it."""
    dy, y = wide(dy), wide(y)
    total = np.exp(y) * np.sum(dy, axis=-1, keepdims=True)
    return (dy - total) / EXACT(temperature), np.maximum(np.abs(dy), np.abs(total)) / EXACT(temperature)


def ulp_error(got, exact, scale=None):
    """Largest |got - exact| in units in the last place of `scale` (of `exact`), in the format of `got`."""
    digits, lowest = FORMATS[got.dtype.name]
    exponent = np.frexp(np.abs(exact if scale is None else scale))[1] - 1
    ulp = np.ldexp(EXACT(1), np.maximum(exponent, lowest) - (digits - 1))
    error = np.abs(wide(got) - exact) / ulp
    return float(np.max(error, initial=0.0)) if not np.isnan(error).any() else float("nan")
