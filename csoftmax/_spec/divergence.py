"""kl_divergence and its gradient: records, and their formulas in long double."""

from __future__ import annotations

import numpy as np

from .cross_entropy import row_weights
from .formats import EXACT, Exact, wide
from .record import CLASSES, ROWS, Argument, BadCall, Operation, Result, Variant, constant
from .samples import logits
from .softmax import FORWARD_ERRORS, LIMITS_OF_TEMPERATURE, VARIANTS, exact_forward, mask_of

EPS = {"float64": 2.0**-53}  # all others compute in float32


def make_pair(shape, dtype, seed, sigma, soft):
    """Return logits of both sides; every other row of the student is close to the teacher's."""
    x, other = logits(shape, dtype, seed, sigma), logits(shape, dtype, seed + 1, sigma)
    y = np.array(other)
    y[::2] = (np.asarray(x, np.float64) + 2.0**-8 * np.asarray(other, np.float64)).astype(x.dtype)[::2]
    return x, y


def distances(x, log_p, where):
    """Return x - max, and -log p of the maximum, of rows."""
    x = wide(x) if where is None else np.where(where, wide(x), -np.inf)
    return x - x.max(axis=-1, keepdims=True, initial=-np.inf), -log_p.max(axis=-1, keepdims=True, initial=-np.inf)


def exact_rows(x, y, temperature=1.0, where=None):
    """Return the divergences, the scales and slacks of their errors, and p and q.

    Terms p h(w) with w = log p - log q and h(w) = w - 1 + e^-w have one sign; h of a small w is a series.
    """
    p, log_p = exact_forward(x, temperature, where)[:2]
    q, log_q = exact_forward(y, temperature, where)[:2]
    eps = EPS.get(np.asarray(x).dtype.name, 2.0**-24)
    with np.errstate(invalid="ignore", over="ignore"):
        differences = log_p - log_q
        t = np.asarray(temperature, EXACT)
        is_usual = (t > 0) & (t < np.inf)
        if is_usual.any():  # distances to the maxima, which are exact, before they are divided
            (u, tail_x), (v, tail_y) = (distances(a, b, where) for a, b in ((x, log_p), (y, log_q)))
            usual = (u - v) / np.where(is_usual, t, 1) + (tail_y - tail_x)
            differences = np.where(is_usual, usual, differences)
        w = np.where(p > 0, differences, 0)
        series = np.ones_like(w)
        for k in range(24, 2, -1):
            series = 1 - w / EXACT(k) * series
        h = np.where(np.abs(w) < 0.5, w * w / 2 * series, w - 1 + np.exp(-w))
        terms = np.where(p == 0, q, np.where(q == 0, np.where(np.isfinite(log_q), p * w - p, np.inf), p * h))
        value = terms.sum(axis=-1)
        sizes = np.where(p > 0, p * np.abs(w), 0)
        logs = np.where(p > 0, 1 + np.abs(log_p) + np.abs(log_q), 0)
        slack = 4 * eps * np.where(sizes > 0, sizes * logs, 0).sum(axis=-1)
        nothing = ~np.isfinite(value)
    return value, np.where(nothing, value, sizes.sum(axis=-1)), np.where(nothing, 0, slack), p, q


def exact_kl_divergence(x, y, temperature=1.0, where=None):
    return (Exact(*exact_rows(x, y, temperature, where)[:3]),)


def exact_kl_divergence_with_grad(
    x, y, temperature=1.0, where=None, reduction="none", sample_weight=None, upstream=1.0
):
    """Return the row losses, or their reduction, and the gradient, whose scale is the larger of p and q."""
    value, scale, slack, p, q = exact_rows(x, y, temperature, where)
    s = np.ones_like(value) if sample_weight is None else wide(sample_weight)
    factor = EXACT(1)
    loss, scale, slack = (np.where(s == 0, 0, s * part) for part in (value, scale, slack))
    if reduction != "none":
        divisor = s.sum() if reduction == "mean" else EXACT(1)
        factor = 1 / divisor
        loss, scale, slack = (part.sum() / divisor for part in (loss, scale, slack))
    factor = (factor * s * wide(upstream) / EXACT(temperature))[..., None]
    return (Exact(loss, scale, slack), Exact((q - p) * factor, np.maximum(p, q) * np.abs(factor)))


def weighted(shape, dtype, seed):
    return {"sample_weight": row_weights(shape, seed), "upstream": 0.75, "temperature": 0.7, "reduction": "none"}


def limits(dtype, options):
    """Return the limits of loss and gradient in ULP of their scales."""
    return 4.0, 0.51 if dtype in ("float16", "bfloat16") else 6.0


ARGUMENTS = (Argument("x", CLASSES), Argument("y", CLASSES))
PAIR_ERRORS = (
    BadCall({"y": np.ones((3, 4))}, TypeError, "y has dtype float64"),
    BadCall({"y": np.ones((4, 3), np.float32)}, ValueError, r"y has dtype float32 and shape \(4, 3\)"),
    BadCall({"y": None}, TypeError, "y has dtype object"),
)
GRADIENT_ERRORS = (
    *(BadCall({"temperature": t}, ValueError, "temperature must be positive and finite") for t in (0.0, -1.0, np.inf)),
    BadCall({"reduction": "avg"}, ValueError, 'reduction must be "none", "sum" or "mean"'),
    BadCall({"sample_weight": [1, -1, 1]}, ValueError, "sample_weight must be at least 0 and finite"),
    BadCall({"sample_weight": [1, 2]}, ValueError, "sample_weight has shape"),
    BadCall({"upstream": [1.0, 2.0, 3.0], "reduction": "mean"}, ValueError, "upstream must be a number where"),
)
NONE = constant(reduction="none")
RECORDS = (
    Operation(
        "kl_divergence",
        "divergence",
        ARGUMENTS,
        (Result("kl", ROWS),),
        make_pair,
        exact_kl_divergence,
        lambda dtype, options: (0.51 if dtype in ("float16", "bfloat16") else 4.0,),
        VARIANTS | LIMITS_OF_TEMPERATURE,
        {"NaN": (np.nan,), "+inf": (np.nan,), "all -inf": (np.nan,)},
        PAIR_ERRORS + FORWARD_ERRORS,
        ("kl_divergence",),
        devices=("cpu",),
        exempt={
            "overlap": "its result lacks the class axis, and is written after both inputs have been read",
            "memory": "its results, one number for each row, are too small for the memory that is kept",
        },
    ),
    Operation(
        "kl_divergence_with_grad",
        "divergence",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"), Result("grad", CLASSES)),
        make_pair,
        exact_kl_divergence_with_grad,
        limits,
        {
            "plain": Variant(NONE),
            "T = 7": Variant(constant(temperature=7.0, reduction="none")),
            "mask": Variant(lambda shape, dtype, seed: mask_of(shape, dtype, seed) | {"reduction": "none"}),
            "weights, T": Variant(weighted),
            "mean": Variant(constant(reduction="mean"), is_rowwise=False),
            "sum": Variant(constant(reduction="sum"), is_rowwise=False),
        },
        {"NaN": (np.nan, np.nan), "+inf": (np.nan, np.nan), "all -inf": (np.nan, np.nan)},
        PAIR_ERRORS + GRADIENT_ERRORS,
        ("kl_divergence",),
        devices=("cpu",),
    ),
)
