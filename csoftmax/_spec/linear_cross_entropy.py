"""The linear layer with cross-entropy: records, and an oracle that holds all logits in long double."""

from __future__ import annotations

import math

import numpy as np

from .cross_entropy import (
    GRADIENT_ERRORS,
    LOSS_ERRORS,
    SOFTCAP_ERRORS,
    class_weights,
    exact_rows,
    make_target,
    reduce_exact,
    row_weights,
)
from .formats import EXACT, FORMATS, Exact, loss_dtype, wide
from .record import ROWS, WHOLE, Argument, BadCall, Operation, Result, Variant, constant, numbers_of_rows
from .samples import logits

FEATURES = 6
OF_THE_BLAS = "the order of additions is that of the BLAS and its threads"


def exact_linear(x, w, target, bias=None, reduction="mean", upstream=1.0, chunk_bytes=None, **options):
    """Return loss, grad_x, grad_w and grad_bias (without a bias: None) as Exact.

    The slack bounds the rounding, in the compute type, of products of D terms and of sums over N rows and K classes:
    an eighth of a unit for each addition.
    """
    dtype = loss_dtype(np.asarray(x).dtype.name)
    unit = EXACT(2) ** (1 - FORMATS[dtype][0])
    wide_x, wide_w = wide(x), wide(w)
    z = wide_x @ wide_w.T + (0 if bias is None else wide(bias))
    terms = np.abs(wide_x) @ np.abs(wide_w).T + (0 if bias is None else np.abs(wide(bias)))
    real = np.float64 if dtype == "float64" else np.float32
    if options.get("weight") is not None:
        options["weight"] = np.asarray(options["weight"]).astype(real)
    target = np.asarray(target) if np.asarray(target).dtype.kind in "iu" else np.asarray(target).astype(real)
    rows = exact_rows(z, target, **options)
    t = np.asarray(options.get("temperature", 1.0), EXACT)
    doubt = unit * (x.shape[-1] / 8 + 4) * terms / t  # of a logit
    mass = np.abs(rows.gradient) + 2 * np.abs(rows.scale)
    loss, factor = reduce_exact(rows, reduction)
    row_doubt = (mass * doubt * t).sum(-1) + 8 * unit * rows.loss_scale
    loss_slack = row_doubt if reduction == "none" else row_doubt.sum() * abs(factor)
    factor = np.broadcast_to(factor * np.asarray(upstream, EXACT), rows.loss.shape)[..., None]
    g = rows.gradient * factor
    g_doubt = (mass * (doubt.max(-1, keepdims=True, initial=0) + 8 * unit)) * np.abs(factor)
    g_doubt = g_doubt + EXACT(2) ** (FORMATS[dtype][1] - FORMATS[dtype][0] + 1)  # probabilities may be subnormal
    size = 8 + len(g) / 8
    results = [
        Exact(loss.value, loss.scale, loss_slack),
        Exact(g @ wide_w, None, g_doubt @ np.abs(wide_w) + unit * len(wide_w) / 8 * (np.abs(g) @ np.abs(wide_w))),
        Exact(g.T @ wide_x, None, g_doubt.T @ np.abs(wide_x) + unit * size * (np.abs(g).T @ np.abs(wide_x))),
    ]
    if bias is not None:
        results.append(Exact(g.sum(0), None, g_doubt.sum(0) + unit * size * np.abs(g).sum(0)))
    return tuple(results)


def exact_linear_loss(x, w, target, **options):
    return exact_linear(x, w, target, **options)[:1]


def make_layer(shape, dtype, seed, sigma, soft):
    """Return x (rows, D) and w (K, D) whose products have about the scale sigma or are of that kind, and a target."""
    if isinstance(sigma, str):  # each row of x selects a column of w
        features = np.arange(math.prod(shape[:-1])) % FEATURES
        w = logits((FEATURES, shape[-1]), dtype, seed, sigma).T
        return (
            np.eye(FEATURES, dtype=w.dtype)[features].reshape(*shape[:-1], -1),
            w,
            make_target(shape, dtype, seed, soft),
        )
    scale = (sigma / FEATURES**0.5) ** 0.5
    x, w = logits((*shape[:-1], FEATURES), dtype, seed, scale), logits((shape[-1], FEATURES), dtype, seed + 1, scale)
    return x, w, make_target(shape, dtype, seed, soft)


def with_bias(shape, dtype, seed):
    bias = logits((shape[-1],), loss_dtype(dtype), seed + 6, 1.0)
    return {"bias": bias, "label_smoothing": 0.125, "weight": class_weights(shape, dtype, seed), "reduction": "none"}


def in_chunks(shape, dtype, seed):
    return {"chunk_bytes": 16 * shape[-1], "sample_weight": row_weights(shape, seed), "reduction": "none"}


def clipped(shape, dtype, seed):
    return {"clip_norm": 0.5, "clip_value": 0.25, "upstream": 0.75, "reduction": "none"}


VARIANTS = {
    "plain": Variant(constant(reduction="none")),
    "bias, weights, smoothing": Variant(with_bias),
    "chunks": Variant(in_chunks),
    "soft, z-loss": Variant(constant(z_loss=0.0625, reduction="none"), soft=True),
    "T a row": Variant(numbers_of_rows("temperature", (1.0, 0.3, 7.0), reduction="none")),
    "softcap": Variant(constant(softcap=5.0, reduction="none"), is_accurate=False),
    "mean": Variant(constant(reduction="mean"), is_rowwise=False),
}
W = np.zeros((4, FEATURES), np.float32)
ERRORS = (
    *LOSS_ERRORS,
    *SOFTCAP_ERRORS,
    BadCall({"w": np.zeros((4, 3), np.float32)}, ValueError, r"and w \(4, 3\)"),
    BadCall({"w": np.zeros(2, np.float32)}, ValueError, "allowed are"),
    BadCall({"x": np.float32(1)}, ValueError, r"x has shape \(\)"),
    BadCall({"w": W.astype(np.float64)}, TypeError, "w has dtype float64, x has dtype float32"),
    BadCall({"bias": [0, 1]}, ValueError, r"bias has shape \(2,\); w has 4 rows"),
    BadCall({"bias": ["a"] * 4}, TypeError, "bias must hold real numbers"),
    BadCall({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1, got 0"),
    BadCall({"chunk_bytes": 1.5}, TypeError, "chunk_bytes must be an int or None"),
    BadCall({"filter_eps": -1}, ValueError, "filter_eps must be at least 0"),
    BadCall({"num_threads": "2", "target": [-100] * 3}, TypeError, "num_threads must be an int or None"),
)
NO_OUT = "it has no out"
EXEMPT = {
    "reproducibility": f"{OF_THE_BLAS}; tests/ops/test_linear_cross_entropy.py repeats a call",
    "golden": OF_THE_BLAS,
    "overlap": NO_OUT,
    "float_environment": "the BLAS computes in the caller's rounding mode",
    "quick": "its products of matrices cost far more than a call",
    "memory": "gradients of the weights are allocated by NumPy",
}
ARGUMENTS = (Argument("x", ROWS), Argument("w", WHOLE), Argument("target", ROWS))


def limits(dtype, options):
    """Return the limits beyond the slack of the products: one rounding in the dtype of each result."""
    return 4.0, 1.0, 1.0, 1.0


RECORDS = (
    Operation(
        "linear_cross_entropy",
        "linear_cross_entropy",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"),),
        make_layer,
        exact_linear_loss,
        limits,
        VARIANTS,
        {"NaN": (np.nan,)},
        ERRORS,
        exempt=EXEMPT,
    ),
    Operation(
        "linear_cross_entropy_with_grad",
        "linear_cross_entropy",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"), Result("grad_x", ROWS), Result("grad_w", WHOLE), Result("grad_bias", WHOLE)),
        make_layer,
        exact_linear,
        limits,
        VARIANTS | {"clipped": Variant(clipped, is_accurate=False)},
        {"NaN": (np.nan, np.nan)},
        ERRORS + GRADIENT_ERRORS,
        exempt=EXEMPT,
    ),
)
