"""sparsemax, alpha-entmax, gradient and Fenchel-Young loss: records, and Newton's method in long double."""

from __future__ import annotations

import numpy as np

from .cross_entropy import make_logits_and_target, one_hot, target_errors
from .formats import EXACT, FORMATS, Exact, dtype_of, smallest_normal, wide
from .record import CLASSES, ROWS, Argument, BadCall, Operation, Result, Variant, constant
from .samples import logits
from .softmax import exact_forward, make_logits, mask_of
from .topk import NO_QUICK_PATH, SPARSE

EPSILON = {name: 2.0**-precision for name, (precision, _) in FORMATS.items()}
# Allowed error of the threshold, in units in the last place of float64, unless alpha is 1.5 or 2.
UNITS_OF_THRESHOLD = 4


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


def exact_probabilities(x, alpha, where=None):
    """Return entmax of finite logits: (z + c)_+^(1/(alpha - 1)), z = (alpha - 1)(x - max), with a sum of 1.

    The root is sought in float64 first, where powers are cheap.
    """
    x = wide(x)
    if where is not None:
        x = np.where(where, x, -np.inf)
    if alpha == 1:
        return exact_forward(x)[0]
    power = 1 / (EXACT(alpha) - 1)
    z = (x - x.max(axis=-1, keepdims=True)) / power
    guess = solve(z.astype(np.float64), np.float64(power), np.ones(z[..., :1].shape))
    return np.maximum(z + solve(z, power, guess.astype(EXACT)), 0) ** power


def slack_of_probabilities(p, alpha, dtype):
    """Return the change of p, p^(2 - alpha) dtau / (alpha - 1), if the threshold is wrong in its last digit."""
    with np.errstate(divide="ignore"):
        sensitivity = np.where(p > 0, p + p ** (2 - EXACT(alpha)) / max(EXACT(alpha) - 1, EXACT(2.0**-52)), 1)
    threshold = 16 * np.finfo(EXACT).eps
    if dtype == "float64" and alpha not in (1, 1.5, 2):
        threshold = UNITS_OF_THRESHOLD * EPSILON["float64"]
    slack = threshold * sensitivity
    # a probability that is too small for the type may also be 0
    return np.where(p < smallest_normal("float32"), np.maximum(slack, p), slack)


def exact_entmax(x, alpha=1.5, where=None):
    p = exact_probabilities(x, alpha, where)
    return (Exact(p, None, slack_of_probabilities(p, alpha, np.asarray(x).dtype.name)),)


def exact_sparsemax(x, where=None):
    return exact_entmax(x, 2.0, where)


def exact_entmax_vjp(dy, y, alpha=1.5, where=None):
    """Return s (dy - mean of dy under s), s = y^(2 - alpha) where y > 0; the slack is the rounding of the terms."""
    name = np.asarray(y).dtype.name
    dy, y = wide(dy), wide(y)
    if where is not None:
        y = np.where(where, y, 0)
    s = np.where(y > 0, np.where(y > 0, y, 1) ** (2 - EXACT(alpha)), 0)
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


def exact_entmax_loss_with_grad(x, target, alpha=1.5, reduction="mean", where=None):
    """Return Omega*(x) + Omega(q) - <x, q> and its gradient; the slack is what float64 and long double round away."""
    name = np.asarray(x).dtype.name
    real = np.float64 if name == "float64" else np.float32
    target = np.asarray(target)
    q = one_hot(target, x.shape[-1]) if target.dtype.kind in "iu" else target.astype(real).astype(EXACT)
    p = exact_probabilities(x, alpha, where)
    x = wide(x)
    x = np.where(p + q > 0, x, 0)
    top = np.abs(x).max(axis=-1)
    each = ((p - q) * x).sum(axis=-1) - conjugate_terms(p, alpha) + conjugate_terms(q, alpha)
    chain = 1 + x.shape[-1] / 64  # roundings of sums whose lanes are float64, like the results
    missing = np.abs(q.sum(axis=-1) - 1) * (top + 1)
    slack = 64 * np.finfo(EXACT).eps * (top + 1) + missing * 2.0**-50
    doubt_of_sum = EXACT(0)
    if name == "float64":  # the threshold may be wrong in its last digit, which changes every p and their sum
        support = np.where(p > 0, np.where(p > 0, p, 1) ** (2 - EXACT(alpha)), 0).sum(axis=-1)
        doubt_of_sum = 2 * EPSILON["float64"] * support / max(alpha - 1, 2.0**-52) if alpha != 1 else support * 0
        terms = chain * np.abs((p - q) * x).sum(axis=-1) + 4 / max(alpha * (alpha - 1), 0.25)
        slack = slack + EPSILON["float64"] * (8 * np.abs(each) + terms) + 2 * doubt_of_sum
    factor = {"none": EXACT(1), "sum": EXACT(1), "mean": 1 / EXACT(max(each.size, 1))}[reduction]
    loss = Exact(each, None, slack) if reduction == "none" else Exact(each.sum() * factor, None, slack.sum() * factor)
    slack = slack_of_probabilities(p, alpha, name)
    scale = np.maximum(np.maximum(p, q), np.abs(p - q)) * factor
    # a label's p - q is formed from the other classes
    others = slack.sum(axis=-1, keepdims=True) + (chain * EPSILON["float64"] if name == "float64" else 0)
    others = others + np.asarray(doubt_of_sum)[..., None]
    doubt = slack + np.where(q > 0, others, 0)
    return loss, Exact((p - q) * factor, scale, doubt * factor)


def exact_entmax_loss(x, target, alpha=1.5, reduction="mean", where=None):
    return exact_entmax_loss_with_grad(x, target, alpha, reduction, where)[:1]


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
ALPHAS = (1.0, 1.2, 1.5, 2.0, 3.0)
ENTMAX_VARIANTS = {
    "plain": Variant(),
    "mask": Variant(mask_of),
    **{f"alpha = {alpha:g}": Variant(constant(alpha=alpha)) for alpha in ALPHAS},
}
VJP_VARIANTS = {
    "plain": Variant(),
    "mask": Variant(mask_of),
    **{f"alpha = {alpha:g}": Variant(constant(alpha=alpha)) for alpha in ALPHAS[1:]},
}
LOSS_VARIANTS = {
    "plain": Variant(constant(reduction="none")),
    "soft": Variant(constant(reduction="none"), soft=True),
    "mean": Variant(constant(reduction="mean"), is_rowwise=False),
    "sum": Variant(constant(reduction="sum"), is_rowwise=False),
    **{f"alpha = {alpha:g}": Variant(constant(reduction="none", alpha=alpha)) for alpha in ALPHAS[1:]},
}


def entmax_limits(dtype, options):
    """Return 0.51 ULP; alpha = 1 is softmax."""
    if options.get("alpha") == 1 and dtype in ("float32", "float64"):
        return (3.0 if dtype == "float32" else 4.0,)
    return (0.51,)


def vjp_limits(dtype, options):
    return (1.01,)


def loss_limits(dtype, options):
    """Return the limits of loss and gradient; a mean divides once more."""
    return 1.1, 1.6 if options.get("reduction") == "mean" else 1.1


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
