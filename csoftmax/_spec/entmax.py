"""sparsemax, alpha-entmax, gradient and Fenchel-Young loss: records, and Newton's method in long double."""

from __future__ import annotations

import numpy as np

from .cross_entropy import class_weights, make_logits_and_target, one_hot, row_weights, target_errors
from .formats import EXACT, Exact, dtype_of, smallest_normal, wide
from .record import CLASSES, ROWS, Argument, BadCall, Operation, Result, Variant, constant, numbers_of_rows
from .samples import logits
from .softmax import exact_forward, make_logits, mask_of
from .topk import NO_QUICK_PATH, SPARSE


def solve(z, power, c):
    """Return the root c of sum((z + c)_+^power) = 1 in (0, 1]: Newton's method within bounds, from a first guess."""
    low, high = np.zeros_like(c), np.ones_like(c)
    for _ in range(200):
        u = np.maximum(z + c, 0)
        p = u**power
        rest = p.sum(axis=-1, keepdims=True) - 1
        slope = power * np.divide(p, u, out=np.zeros_like(u), where=u > 0).sum(axis=-1, keepdims=True)
        low, high = np.where(rest < 0, c, low), np.where(rest >= 0, c, high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = c - rest / slope
        following = np.where((step > low) & (step <= high), step, (low + high) / 2)
        if np.all(np.abs(following - c) <= 4 * np.finfo(c.dtype).eps * c):
            break
        c = following
    return following


def solve_least(x, scale):
    """Return entmax for alpha >= 2 from the least probability q: sum((scale (x_i - x_k) + q^scale)^(1/scale)) = 1.

    c of `solve` cannot express it: q^scale may be far below the last digit of c.  x_k is found by bisection.
    """
    power, ordered = 1 / scale, -np.sort(-x, axis=-1)
    low, high = np.zeros(x.shape[:-1], int)[..., None], np.full((*x.shape[:-1], 1), x.shape[-1])
    while np.any(high - low > 1):
        middle = (low + high) // 2
        base = np.take_along_axis(ordered, middle, -1)
        is_below = (np.maximum(x - base, 0) * scale) ** power
        is_inside = (is_below.sum(axis=-1, keepdims=True) < 1) & np.isfinite(base)
        low, high = np.where(is_inside, middle, low), np.where(is_inside, high, middle)
    base = np.take_along_axis(ordered, low, -1)
    d = np.where(x > base, np.where(x > base, x - base, 0) * scale, 0)
    ties = (x == base).sum(axis=-1, keepdims=True)
    q = 1 / (x >= base).sum(axis=-1, keepdims=True).astype(x.dtype)
    for _ in range(200):
        u = d + q**scale
        y = np.where(d > 0, u**power, 0)
        slope = ties + np.where(d > 0, np.divide(q, y, out=np.zeros_like(y), where=y > 0) ** (scale - 1), 0).sum(
            axis=-1, keepdims=True
        )
        step = (ties * q + y.sum(axis=-1, keepdims=True) - 1) / slope
        q = q - step
        if np.all(np.abs(step) <= 4 * np.finfo(q.dtype).eps * q):
            break
    return np.where(d > 0, (d + q**scale) ** power, np.where(x == base, q, 0))


def exact_probabilities(x, alpha, where=None):
    """Return entmax of finite logits: (z + c)_+^(1/(alpha - 1)), z = (alpha - 1)(x - max), with a sum of 1.

    The root is sought in float64 first, where powers are cheap.
    """
    x = wide(x)
    if where is not None:
        x = np.where(where, x, -np.inf)
    if alpha == 1:
        return exact_forward(x)[0]
    if alpha > 2:
        return solve_least(x, EXACT(alpha) - 1)
    power = 1 / (EXACT(alpha) - 1)
    z = (x - x.max(axis=-1, keepdims=True)) / power
    guess = solve(z.astype(np.float64), np.float64(power), np.ones(z[..., :1].shape))
    return np.maximum(z + solve(z, power, guess.astype(EXACT)), 0) ** power


def slack_of_probabilities(p, alpha):
    """Return the change of p if the root of the oracle is wrong in its last digits.

    dp = p^(2 - alpha) dtau / (alpha - 1), and (q / p)^(alpha - 2) dq, q the least probability, for alpha > 2.
    """
    positive = np.where(p > 0, p, 1)
    if alpha > 2:
        least = np.where(p > 0, p, 1).min(axis=-1, keepdims=True)
        sensitivity = np.where(p > 0, p + (least / positive) ** (EXACT(alpha) - 2), least)
    else:
        change = positive ** (2 - EXACT(alpha)) / max(EXACT(alpha) - 1, EXACT(2.0**-52))
        sensitivity = np.where(p > 0, p + change, 1)
    slack = 16 * np.finfo(EXACT).eps * sensitivity
    # a probability that is too small for the type may also be 0
    return np.where(p < smallest_normal("float32"), np.maximum(slack, p), slack)


def for_alphas(oracle):
    """Let an oracle take alphas of shape (rows, 1): each row is a call with its own number."""

    def by_row(*arrays, alpha=1.5, **options):
        if np.ndim(alpha) == 0:
            return oracle(*arrays, alpha=alpha, **options)
        by_class = {name: value for name, value in options.items() if name not in ("where", "sample_weight")}
        cut = {name: value for name, value in options.items() if name not in by_class and value is not None}
        calls = []
        for i, number in enumerate(np.ravel(alpha)):
            row = slice(i, i + 1)
            of_row = {name: value[row] for name, value in cut.items()}
            calls.append(oracle(*(a[row] for a in map(np.asarray, arrays)), alpha=float(number), **by_class, **of_row))
        return tuple(
            Exact(np.concatenate([r.value for r in results]), None, np.concatenate([r.slack for r in results]))
            for results in zip(*calls)
        )

    return by_row


@for_alphas
def exact_entmax(x, alpha=1.5, where=None):
    p = exact_probabilities(x, alpha, where)
    return (Exact(p, None, slack_of_probabilities(p, alpha)),)


def exact_sparsemax(x, where=None):
    return exact_entmax(x, alpha=2.0, where=where)


def exact_entmax_vjp(dy, y, alpha=1.5, where=None):
    """Return s (dy - mean of dy under s), s = y^(2 - alpha) where y > 0; the slack is the rounding of the terms."""
    name = np.asarray(y).dtype.name
    dy, y = wide(dy), wide(y)
    if where is not None:
        y = np.where(where, y, 0)
    s = np.where(y > 0, np.where(y > 0, y, 1) ** (2 - np.asarray(alpha, EXACT)), 0)
    dy = np.where(y > 0, dy, 0)
    total = np.maximum(s.sum(axis=-1, keepdims=True), np.finfo(EXACT).tiny)
    mean = (s * dy).sum(axis=-1, keepdims=True) / total
    spread = (s * np.abs(dy)).sum(axis=-1, keepdims=True) / total
    slack = 2.0**-51 * s * (np.abs(dy) + spread) + (3e-8 if name == "float16" else 1e-40)
    return (Exact(s * (dy - mean), None, slack),)


def conjugate_terms(p, alpha):
    """Return Omega(p) of each row: sum(p^alpha - p) / (alpha (alpha - 1)), or minus Shannon's entropy for alpha = 1."""
    if alpha == 1:
        return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)
    a = EXACT(alpha)
    return np.sum(np.where(p > 0, np.where(p > 0, p, 1) ** a, 0) - p, axis=-1) / (a * (a - 1))


def row_factors(q, kept, weight, sample_weight, real):
    """Return what multiplies the loss of each row: s sum(w q), and 0 where it is ignored."""
    w = 1 if weight is None else np.asarray(weight).astype(real).astype(EXACT)
    factor = (w * q).sum(-1)
    if sample_weight is not None:
        factor = factor * np.asarray(sample_weight, EXACT)
    return np.where(kept, factor, 0)


@for_alphas
def exact_entmax_loss_with_grad(
    x, target, alpha=1.5, reduction="mean", where=None, weight=None, sample_weight=None, ignore_index=-100
):
    """Return Omega*(x) + Omega(q) - <x, q> and its gradient; the slack is what long double rounds away."""
    real = np.float64 if np.asarray(x).dtype.name == "float64" else np.float32
    target = np.asarray(target)
    is_hard = target.dtype.kind in "iu"
    kept = target != ignore_index if is_hard else np.ones(target.shape[:-1], bool)
    q = one_hot(np.where(kept, target, 0), x.shape[-1]) if is_hard else target.astype(real).astype(EXACT)
    p = exact_probabilities(x, alpha, where)
    x = wide(x)
    x = np.where(p + q > 0, x, 0)
    top = np.abs(x).max(axis=-1)
    each = ((p - q) * x).sum(axis=-1) - conjugate_terms(p, alpha) + conjugate_terms(q, alpha)
    slack = 64 * np.finfo(EXACT).eps * (top + 1) / min(EXACT(alpha) - 1, EXACT(1)) if alpha != 1 else top * 0
    of_row = row_factors(q, kept, weight, sample_weight, real)
    each, slack = np.where(of_row == 0, 0, each * of_row), slack * of_row
    divisor = of_row.sum() if reduction == "mean" and of_row.size else EXACT(1)
    loss = Exact(each, None, slack)
    if reduction != "none":
        loss = Exact(each.sum() / divisor, None, slack.sum() / divisor)
    factor = (of_row / divisor)[..., None]
    slack = slack_of_probabilities(p, alpha)
    # a label's p - q is formed from the other classes, in which the oracle's errors add up
    doubt = slack + np.where(q > 0, slack.sum(axis=-1, keepdims=True) + 16 * np.finfo(EXACT).eps, 0)
    return loss, Exact((p - q) * factor, None, doubt * factor)


def exact_entmax_loss(x, target, alpha=1.5, **options):
    return exact_entmax_loss_with_grad(x, target, alpha=alpha, **options)[:1]


def make_gradient(shape, dtype, seed, sigma, soft):
    """Return dy and a y that is 1.5-entmax of logits, in float64 and rounded."""
    z = logits(shape, "float64", seed, sigma) / 2
    z = z - z.max(axis=-1, keepdims=True, initial=-np.inf)
    y = np.maximum(z + solve(z, 2.0, np.ones((*shape[:-1], 1))), 0) ** 2
    return logits(shape, dtype, seed + 1, 1.0), y.astype(dtype_of(dtype))


NAN_ROWS = {"NaN": (np.nan,), "+inf": (np.nan,), "all -inf": (np.nan,)}
NAN_LOSS = dict.fromkeys(NAN_ROWS, (np.nan, np.nan))
ALPHA_ERRORS = (
    BadCall({"alpha": 0.9}, ValueError, "alpha must be at least 1 and finite, got 0.9"),
    BadCall({"alpha": np.inf}, ValueError, "alpha must be at least 1"),
    BadCall({"alpha": np.nan}, ValueError, "alpha must be at least 1"),
    BadCall({"alpha": "2"}, TypeError, "alpha must be a real number"),
)
ALPHAS = (1.0, 1.2, 1.5, 2.0, 3.0, 30.0)


def weighted(shape, dtype, seed):
    return {
        "weight": class_weights(shape, dtype, seed),
        "sample_weight": row_weights(shape, seed),
        "ignore_index": 0,
        "reduction": "none",
    }


ENTMAX_VARIANTS = {
    "plain": Variant(),
    "mask": Variant(mask_of),
    **{f"alpha = {alpha:g}": Variant(constant(alpha=alpha)) for alpha in ALPHAS},
    "alpha a row": Variant(numbers_of_rows("alpha", ALPHAS[1:])),
}
VJP_VARIANTS = {
    "plain": Variant(),
    "mask": Variant(mask_of),
    **{f"alpha = {alpha:g}": Variant(constant(alpha=alpha)) for alpha in ALPHAS[1:-1]},
    "alpha a row": Variant(numbers_of_rows("alpha", ALPHAS[1:-1])),
}
LOSS_VARIANTS = {
    "plain": Variant(constant(reduction="none")),
    "soft": Variant(constant(reduction="none", weight=None), soft=True),  # the name makes loss_limits add the factor
    "mean": Variant(constant(reduction="mean"), is_rowwise=False),
    "sum": Variant(constant(reduction="sum"), is_rowwise=False),
    **{f"alpha = {alpha:g}": Variant(constant(reduction="none", alpha=alpha)) for alpha in ALPHAS[1:]},
    "alpha a row": Variant(numbers_of_rows("alpha", ALPHAS[1:], reduction="none")),
    "weights": Variant(weighted),
    "soft, weights": Variant(weighted, soft=True),
}


def entmax_limits(dtype, options):
    """Return 0.51 ULP; alpha = 1 is softmax."""
    if np.all(options.get("alpha") == 1) and dtype in ("float32", "float64"):
        return (3.0 if dtype == "float32" else 4.0,)
    return (0.51,)


def vjp_limits(dtype, options):
    return (1.01,)


def loss_limits(dtype, options):
    """Return the limits of loss and gradient.

    Losses are added up in float64 in a tree: half an ULP for each of its levels, of which the samples have two. A mean
    divides once more. The factor of a row is rounded up to three times, its product once.
    """
    reduction = options.get("reduction")
    added = {"sum": 1.0, "mean": 1.5}.get(reduction, 0.0) if dtype == "float64" else 0.0
    weights = 1.5 if dtype == "float64" and "weight" in options else 0.0
    return 1.1 + added + weights, (1.6 if reduction == "mean" else 1.1) + weights


LOSS_ERRORS = target_errors() + ALPHA_ERRORS
ARGUMENTS = (Argument("x", CLASSES), Argument("target", ROWS))
RECORDS = (
    Operation(
        "sparsemax",
        "entmax",
        (Argument("x", CLASSES),),
        (Result("y", CLASSES),),
        make_logits,
        exact_sparsemax,
        lambda dtype, options: (0.51,),
        {"plain": Variant(), "mask": Variant(mask_of)},
        NAN_ROWS,
        (),
        ("sparse, alpha=2.0",),
        exempt={"quick": NO_QUICK_PATH},
    ),
    Operation(
        "entmax",
        "entmax",
        (Argument("x", CLASSES),),
        (Result("y", CLASSES),),
        make_logits,
        exact_entmax,
        entmax_limits,
        ENTMAX_VARIANTS,
        NAN_ROWS,
        ALPHA_ERRORS,
        SPARSE,
        exempt={"quick": NO_QUICK_PATH},
    ),
    Operation(
        "entmax_vjp",
        "entmax",
        (Argument("dy", CLASSES), Argument("y", CLASSES)),
        (Result("dx", CLASSES),),
        make_gradient,
        exact_entmax_vjp,
        vjp_limits,
        VJP_VARIANTS,
        {},
        (
            *ALPHA_ERRORS,
            BadCall({"y": np.ones((4, 3), np.float32)}, ValueError, r"y has dtype float32 and shape \(4, 3\)"),
        ),
        SPARSE,
        exempt={"quick": NO_QUICK_PATH},
    ),
    Operation(
        "entmax_loss",
        "entmax",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"),),
        make_logits_and_target,
        exact_entmax_loss,
        loss_limits,
        LOSS_VARIANTS,
        NAN_ROWS,
        LOSS_ERRORS,
        SPARSE,
        exempt={
            "overlap": "it has no out, and its result lacks the class axis",
            "quick": NO_QUICK_PATH,
            "memory": "its results, one number for each row, are too small for the memory that is kept",
        },
    ),
    Operation(
        "entmax_loss_with_grad",
        "entmax",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"), Result("grad", CLASSES)),
        make_logits_and_target,
        exact_entmax_loss_with_grad,
        loss_limits,
        LOSS_VARIANTS,
        NAN_LOSS,
        LOSS_ERRORS,
        SPARSE,
        exempt={"quick": NO_QUICK_PATH},
    ),
)
