"""softmax, log_softmax, logsumexp, their gradients and entropy: records, and their formulas in long double."""

from __future__ import annotations

import numpy as np

from .formats import EXACT, Exact, dtype_of, spacing, wide
from .record import CLASSES, ROWS, Argument, BadCall, Operation, Result, Variant, constant, numbers_of_rows
from .samples import logits


def exact_forward(x, temperature=1.0, where=None):
    """Return softmax, log_softmax, logsumexp of finite logits, and the scale of the last: max(|m|, |logsumexp|).

    m is the maximum of x / temperature, a number or an array of length 1 along the last axis.  The maximum itself is
    kept out of the sum, so that the tail keeps its digits where one class is near-certain.  Its limits, 0 and
    infinity, are those of the documentation.
    """
    x = wide(x)
    if where is not None:
        x = np.where(where, x, -np.inf)
    m = x.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        is_number = np.ndim(temperature) == 0
        if is_number and temperature == 0:
            z = np.where(x == m, EXACT(0), -np.inf)
            top = np.where(m == 0, EXACT(0), np.copysign(EXACT(np.inf), m))
        elif is_number and temperature == np.inf:
            z, top = np.where(x > -np.inf, EXACT(0), -np.inf), np.zeros_like(m)
        else:
            t = np.asarray(temperature, EXACT)
            z, top = (x - m) / t, m / t
        is_max = z == 0
        tail = np.sum(np.exp(z), axis=-1, keepdims=True, where=~is_max) + (np.sum(is_max, axis=-1, keepdims=True) - 1)
        lse = top + np.log1p(tail)
        scale = np.maximum(np.abs(top), np.abs(lse))
        return np.exp(z) / (1 + tail), z - np.log1p(tail), lse[..., 0], scale[..., 0]


def exact_softmax(x, temperature=1.0, where=None):
    return (Exact(exact_forward(x, temperature, where)[0]),)


def exact_log_softmax(x, temperature=1.0, where=None):
    return (Exact(exact_forward(x, temperature, where)[1]),)


def exact_logsumexp(x, temperature=1.0, where=None):
    return (Exact(*exact_forward(x, temperature, where)[2:]),)


def exact_entropy(x, temperature=1.0, where=None):
    """Return sum p (-log p); the maxima have -log p = log1p(S), so that nothing cancels."""
    probability, log_probability = exact_forward(x, temperature, where)[:2]
    with np.errstate(invalid="ignore"):
        terms = np.where(probability == 0, EXACT(0), -probability * log_probability)
    return (Exact(terms.sum(axis=-1)),)


def exact_softmax_vjp(dy, y, temperature=1.0, where=None):
    """Return y (dy - s) / T, s = sum dy y; the slack is the effect of the rounding of s, which is held as a pair.

    Products of two float64 do not fit long double, whose own rounding is the slack there; tests/ops has an exact
    oracle.
    """
    is_double = np.asarray(y).dtype == np.float64
    precision = 8 * np.finfo(EXACT).eps if is_double else 2.0**-46
    dy, y = wide(dy), wide(y)
    if where is not None:
        y = np.where(where, y, 0)
    dy = np.where(y == 0, 0, dy)
    products = dy * y
    t = np.asarray(temperature, EXACT)
    value = y * (dy - products.sum(axis=-1, keepdims=True)) / t
    terms = np.abs(products).sum(axis=-1, keepdims=True) + (np.abs(dy) if is_double else 0)
    slack = np.abs(y) * terms * precision / t
    return (Exact(value, None, slack),)


def exact_log_softmax_vjp(dy, y, temperature=1.0, where=None):
    """Return (dy - e^y s) / T, s = sum dy.

    The scale is the larger of the terms that are subtracted, |dy - s 2^n| and |s (e^y - 2^n)|, n = round(y log2 e), and
    of the result.  Results of half types are rounded from float32, whose error is the slack.
    """
    name = np.asarray(y).dtype.name
    dy, y = wide(dy), wide(y)
    if where is not None:
        y = np.where(where, y, -np.inf)
    is_kept = np.isfinite(y)
    dy, y = np.where(is_kept, dy, 0), np.where(is_kept, y, 0)
    s = dy.sum(axis=-1, keepdims=True)
    near = (dy - s) - s * np.expm1(np.maximum(y, -1))
    t = np.asarray(temperature, EXACT)
    value = np.where(is_kept, np.where(y > -0.7, near, dy - s * np.exp(y)), 0) / t
    n = np.rint(y / np.log(EXACT(2)))
    power = np.exp2(n)
    remainder = np.where(n == 0, np.expm1(np.minimum(y, 1)), np.exp(y) - power)
    scale = np.maximum(np.abs(dy - s * power), np.abs(s * remainder)) / t
    if name in ("float16", "bfloat16"):
        return (Exact(value, None, np.where(is_kept, 4 * spacing(scale, "float32"), 0)),)
    return (Exact(value, np.where(is_kept, np.maximum(scale, np.abs(value)), 0)),)


def make_logits(shape, dtype, seed, sigma, soft):
    return (logits(shape, dtype, seed, sigma),)


def make_gradient(log):
    def make(shape, dtype, seed, sigma, soft):
        x = np.asarray(logits(shape, dtype, seed, sigma), np.float64)
        z = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
        lse = np.log(np.exp(z).sum(axis=-1, keepdims=True))
        return logits(shape, dtype, seed + 1, 1.0), (z - lse if log else np.exp(z - lse)).astype(dtype_of(dtype))

    return make


def mask_of(shape, dtype, seed):
    """Return a mask that leaves out about a third of the classes, but never the first."""
    mask = np.random.default_rng(seed).random(shape) < 0.7
    mask[..., :1] = True
    return {"where": mask}


TEMPERATURES = (1.0, 0.3, 7.0)  # of rows
SOFTMAX_LIMITS = {"float32": (3.0,), "float64": (4.0,), "float16": (0.51,), "bfloat16": (0.51,)}
LOG_LIMITS = {"float32": (4.0,), "float64": (4.0,), "float16": (0.51,), "bfloat16": (0.51,)}
VJP_LIMITS = {"float32": (4.0,), "float64": (4.0,), "float16": (0.52,), "bfloat16": (0.52,)}
VARIANTS = {
    "plain": Variant(),
    "T = 0.3": Variant(constant(temperature=0.3)),
    "T = 7": Variant(constant(temperature=7.0)),
    "T a row": Variant(numbers_of_rows("temperature", TEMPERATURES)),
    "mask": Variant(mask_of),
}
LIMITS_OF_TEMPERATURE = {"T = 0": Variant(constant(temperature=0.0)), "T = inf": Variant(constant(temperature=np.inf))}
TOO_SMALL = "temperature must be at least 0"


def log_vjp_limits(dtype, options):
    """Return the limits of log_softmax_vjp: dividing by T rounds once more."""
    if dtype in ("float16", "bfloat16"):
        return (0.51,)
    return (4.5 if np.all(options.get("temperature", 1.0) == 1.0) else 5.5,)


FORWARD_ERRORS = tuple(BadCall({"temperature": t}, ValueError, TOO_SMALL) for t in (-1.0, -np.inf, np.nan))
BACKWARD_ERRORS = (
    *(BadCall({"temperature": t}, ValueError, "temperature must be positive and finite") for t in (0.0, -1.0, np.inf)),
    BadCall({"y": np.ones((3, 4))}, TypeError, "y has dtype float64"),
    BadCall({"y": np.ones((4, 3), np.float32)}, ValueError, r"y has dtype float32 and shape \(4, 3\)"),
    BadCall({"y": None}, TypeError, "y has dtype object"),
)


def forward(name, role, oracle, limits, special, **fields):
    return Operation(
        name,
        "softmax",
        (Argument("x", CLASSES),),
        (Result("y", role),),
        make_logits,
        oracle,
        lambda dtype, options: limits[dtype],
        VARIANTS | LIMITS_OF_TEMPERATURE,
        special,
        FORWARD_ERRORS,
        (name,),
        **fields,
    )


def backward(name, oracle, limits, log):
    return Operation(
        name,
        "softmax",
        (Argument("dy", CLASSES), Argument("y", CLASSES)),
        (Result("dx", CLASSES),),
        make_gradient(log),
        oracle,
        limits,
        VARIANTS,
        {"NaN": (np.nan,)},
        BACKWARD_ERRORS,
        (name,),
        log=log,
    )


NAN_ROWS = {"NaN": (np.nan,), "+inf": (np.nan,), "all -inf": (np.nan,)}
RECORDS = (
    forward("softmax", CLASSES, exact_softmax, SOFTMAX_LIMITS, NAN_ROWS),
    forward("log_softmax", CLASSES, exact_log_softmax, LOG_LIMITS, NAN_ROWS, log=True),
    forward(
        "logsumexp",
        ROWS,
        exact_logsumexp,
        LOG_LIMITS,
        {"NaN": (np.nan,), "+inf": (np.inf,), "all -inf": (-np.inf,)},
        log=True,
        exempt={
            "overlap": "it has no out, and its result lacks the class axis",
            "memory": "its results, one number for each row, are too small for the memory that is kept",
        },
    ),
    backward("softmax_vjp", exact_softmax_vjp, lambda dtype, options: VJP_LIMITS[dtype], False),
    backward("log_softmax_vjp", exact_log_softmax_vjp, log_vjp_limits, True),
    forward(
        "entropy",
        ROWS,
        exact_entropy,
        LOG_LIMITS,
        NAN_ROWS,
        devices=("cpu",),
        exempt={
            "overlap": "its result lacks the class axis, and an out that overlaps x is a copy's business",
            "memory": "its results, one number for each row, are too small for the memory that is kept",
        },
    ),
)
