"""cross_entropy, its gradient and check_labels: records, and the formula of the documentation in long double."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .formats import EXACT, Exact, dtype_of, loss_dtype, wide
from .record import CLASSES, ROWS, Argument, BadCall, Operation, Result, Variant, constant, numbers_of_rows
from .samples import logits


class ExactRows(NamedTuple):
    """Row losses, the gradient of each row loss (before reduction and clipping), and the scales of their errors.

    Each scale is the larger of the two terms that are subtracted; that of a loss with z-loss also accounts for lse,
    whose error is relative to its own magnitude.  `divisor` is the row's term of the mean's divisor.
    """

    loss: np.ndarray
    gradient: np.ndarray
    loss_scale: np.ndarray
    scale: np.ndarray
    divisor: np.ndarray
    kept: np.ndarray


def one_hot(labels, n, dtype=EXACT):
    """Return the row of the identity matrix for each label; negative labels count as 0."""
    q = np.zeros((*labels.shape, n), dtype)
    np.put_along_axis(q, np.where(labels < 0, 0, labels)[..., None].astype(np.int64), 1, -1)
    return q


def exact_rows(
    x, target, weight=None, sample_weight=None, label_smoothing=0.0, ignore_index=-100, z_loss=0.0, temperature=1.0
) -> ExactRows:
    """Return the rows' losses and gradients; soft labels and weights are first rounded to the compute type."""
    real = np.float64 if np.asarray(x).dtype in (np.float64, EXACT) else np.float32
    x, target, t = wide(x), np.asarray(target), np.asarray(temperature, EXACT)
    eps, z_loss = EXACT(label_smoothing), EXACT(z_loss)
    n = x.shape[-1]
    hard = np.issubdtype(target.dtype, np.integer)
    kept = target != ignore_index if hard else np.ones(x.shape[:-1], bool)
    s = np.ones(kept.shape, EXACT)
    if sample_weight is not None:
        s = np.broadcast_to(np.asarray(sample_weight, EXACT), kept.shape)
    kept = kept & (s != 0)
    x = np.where(kept[..., None], x, 0)
    q = one_hot(np.where(kept, target, 0), n) if hard else target.astype(real).astype(EXACT)
    w = np.ones(n, EXACT) if weight is None else np.asarray(weight).astype(real).astype(EXACT)
    divisor = np.where(kept, s * (w * q).sum(-1), 0)
    a = w * ((1 - eps) * q + (eps / n if eps else 0))
    m = x.max(-1, keepdims=True)
    z = (x - m) / t
    is_max = z == 0
    e = np.exp(z)
    count = is_max.sum(-1, keepdims=True)
    others = np.where(is_max, 0, e).sum(-1, keepdims=True)
    tail = np.log1p(others + (count - 1))
    total = others + count
    lse = m / t + tail
    mass = a.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        far = np.where(a == 0, 0, a * -z).sum(-1, keepdims=True)
    loss = mass * tail + far + z_loss * lse * lse
    loss_scale = loss + z_loss * 2 * np.abs(lse) * np.maximum(np.abs(lse), np.abs(m / t))
    g = mass + 2 * z_loss * lse
    p = e / total
    gradient = p * g - a
    scale = np.maximum(p * (mass + 2 * z_loss * np.maximum(np.abs(lse), np.abs(m / t))), a)
    if hard:  # p (g - a) - a (1 - p), with 1 - p as the sum of the others
        label = np.where(kept, target, 0).astype(np.int64)[..., None]
        rest = np.where(np.arange(n) == label, 0, e)
        rest = np.where(is_max, 0, rest).sum(-1, keepdims=True) + (count - np.take_along_axis(is_max, label, -1))
        a_label, p_label = np.take_along_axis(a, label, -1), np.take_along_axis(p, label, -1)
        np.put_along_axis(gradient, label, p_label * (g - a_label) - a_label * (rest / total), -1)
        if not eps and not z_loss:
            scale = np.abs(gradient)
    s = np.where(kept, s, 0)[..., None]
    return ExactRows(
        np.where(kept, (s * loss)[..., 0], 0),
        np.where(kept[..., None], s * gradient / t, 0),
        np.where(kept, (s * loss_scale)[..., 0], 0),
        np.where(kept[..., None], s * scale / t, 0),
        divisor,
        kept,
    )


def reduce_exact(rows: ExactRows, reduction) -> tuple[Exact, Any]:
    """Return the reduced loss, and the factor by which the reduction multiplies the gradients of the row losses."""
    if reduction == "none":
        return Exact(rows.loss, rows.loss_scale), EXACT(1)
    divisor = rows.divisor.sum() if reduction == "mean" else EXACT(1)
    if divisor == 0:  # a mean of nothing is NaN, and its gradient 0
        return Exact(np.full((), np.nan, EXACT), np.zeros((), EXACT)), EXACT(0)
    return Exact(rows.loss.sum() / divisor, rows.loss_scale.sum() / divisor), 1 / divisor


def exact_cross_entropy(logits, target, reduction="mean", **options):
    return (reduce_exact(exact_rows(logits, target, **options), reduction)[0],)


def exact_cross_entropy_with_grad(logits, target, reduction="mean", upstream=1.0, **options):
    rows = exact_rows(logits, target, **options)
    loss, factor = reduce_exact(rows, reduction)
    factor = factor * np.asarray(upstream, EXACT)
    factor = factor[..., None] if factor.ndim else factor
    half = np.asarray(logits).dtype.name in ("float16", "bfloat16")
    scale = np.maximum(rows.scale, np.abs(rows.gradient)) if half or options.get("z_loss") else rows.scale
    return loss, Exact(rows.gradient * factor, scale * np.abs(factor))


def make_labels(shape, seed):
    return np.random.default_rng(seed + 2).integers(0, max(shape[-1], 1), shape[:-1])


def make_soft_labels(shape, dtype, seed):
    """Return rows of probabilities, many of them 0."""
    rng = np.random.default_rng(seed + 3)
    q = rng.random(shape) * (rng.random(shape) < 0.6) + 1e-3
    return (q / q.sum(-1, keepdims=True)).astype(dtype_of(loss_dtype(dtype)))


def make_target(shape, dtype, seed, soft):
    return make_soft_labels(shape, dtype, seed) if soft else make_labels(shape, seed)


def make_logits_and_target(shape, dtype, seed, sigma, soft):
    x, target = logits(shape, dtype, seed, sigma), make_target(shape, dtype, seed, soft)
    if isinstance(sigma, str) and not soft:  # the loss of the class that is ahead is as small as the others' sum
        target[..., ::2] = x[..., ::2, :].astype(np.float64).argmax(axis=-1)
    return x, target


def class_weights(shape, dtype, seed):
    return np.random.default_rng(seed + 4).random(shape[-1]).astype(dtype_of(loss_dtype(dtype))) + 0.125


def row_weights(shape, seed):
    rng = np.random.default_rng(seed + 5)
    return rng.random(shape[:-1]) * (rng.random(shape[:-1]) < 0.8)


def weighted(shape, dtype, seed):
    return {"weight": class_weights(shape, dtype, seed), "label_smoothing": 0.125, "reduction": "none"}


def every_weight(shape, dtype, seed):
    return {
        "weight": class_weights(shape, dtype, seed),
        "sample_weight": row_weights(shape, seed),
        "temperature": 0.7,
        "reduction": "none",
    }


def capped(shape, dtype, seed):
    options = numbers_of_rows("temperature", (1.0, 0.3, 7.0), softcap=2.0, reduction="none")(shape, dtype, seed)
    return options | {"weight": class_weights(shape, dtype, seed), "label_smoothing": 0.125}


def clipped(shape, dtype, seed):
    options = {"clip_norm": 0.5, "clip_value": 0.25, "label_smoothing": 0.125, "reduction": "none"}
    return options | {"sample_weight": row_weights(shape, seed), "upstream": 0.75}


LOSS_VARIANTS = {
    "plain": Variant(constant(reduction="none")),
    "weights, smoothing": Variant(weighted),
    "every weight, T": Variant(every_weight),
    "soft, z-loss": Variant(constant(z_loss=0.0625, reduction="none"), soft=True),
    "soft, weights": Variant(weighted, soft=True),
    "softcap": Variant(constant(softcap=5.0, reduction="none"), is_accurate=False),
    "softcap, soft": Variant(capped, soft=True, is_accurate=False),
    "T a row": Variant(numbers_of_rows("temperature", (1.0, 0.3, 7.0), reduction="none")),
    "mean": Variant(constant(reduction="mean"), is_rowwise=False),
    "sum": Variant(constant(reduction="sum"), is_rowwise=False),
}
GRADIENT_VARIANTS = LOSS_VARIANTS | {
    "clipped": Variant(clipped, is_accurate=False),
    "softcap, clipped": Variant(
        lambda shape, dtype, seed: clipped(shape, dtype, seed) | {"softcap": 3.0}, is_accurate=False
    ),
}


def target_errors():
    """Return the targets that every loss of logits of shape (3, 4) refuses."""
    return (
        BadCall({"target": np.array([0, 4, 2])}, IndexError, r"target\[1\] is 4: the classes are 0 to 3"),
        BadCall({"target": np.array([0, -1, 7])}, IndexError, r"target\[1\] is -1"),
        BadCall({"target": np.array([0, 1])}, ValueError, "target has shape"),
        BadCall({"target": np.zeros((3, 5))}, ValueError, r"target has shape \(3, 5\)"),
        BadCall({"target": np.zeros(3)}, ValueError, r"labels of shape \(3,\) are integers"),
        BadCall({"target": np.zeros(3, complex)}, TypeError, "got dtype complex128"),
        BadCall({"target": np.zeros(3, bool)}, TypeError, "target must hold integer labels"),
        BadCall({"target": -np.ones((3, 4))}, ValueError, "soft labels must be at least 0 and finite"),
        BadCall({"target": np.full((3, 4), np.inf)}, ValueError, r"has inf at \(0, 0\)"),
        BadCall({"target": np.full((3, 4), np.nan)}, ValueError, r"has nan at \(0, 0\)"),
        BadCall({"reduction": "avg"}, ValueError, 'reduction must be "none", "sum" or "mean"'),
        BadCall({"reduction": None}, ValueError, 'reduction must be "none", "sum" or "mean"'),
    )


LOSS_ERRORS = (
    *target_errors(),
    BadCall({"weight": [1, 2, 3]}, ValueError, r"weight has shape \(3,\), which does not broadcast to \(4,\)"),
    BadCall({"weight": [1, 2, -3, 0]}, ValueError, r"weight must be at least 0 and finite in float32, got -3 at \(2\)"),
    BadCall({"weight": [1, 2, np.inf, 0]}, ValueError, "weight must be at least 0 and finite in float32, got inf"),
    # a value that would become -0 in the compute type is refused as well
    BadCall({"weight": np.array([1, 1, -1e-60, 1])}, ValueError, r"weight must be at least 0 .* got -1e-60 at \(2\)"),
    BadCall({"target": np.full((3, 4), -1e-60)}, ValueError, "soft labels must be at least 0"),
    BadCall({"sample_weight": np.array([1, EXACT("-1e-4000"), 1])}, ValueError, "sample_weight must be at least 0"),
    BadCall({"temperature": np.complex128(1)}, TypeError, "temperature must be a real number"),
    BadCall({"weight": ["a"] * 4}, TypeError, "weight must hold real numbers"),
    BadCall({"sample_weight": [1, np.nan, 1]}, ValueError, "sample_weight must be at least 0 and finite in float64"),
    BadCall({"sample_weight": [1, 2]}, ValueError, "sample_weight has shape"),
    BadCall({"label_smoothing": 1.5}, ValueError, "label_smoothing must be at least 0 and at most 1, got 1.5"),
    BadCall({"label_smoothing": "a"}, TypeError, "label_smoothing must be a real number"),
    BadCall({"z_loss": -1.0}, ValueError, "z_loss must be at least 0 and finite, got -1.0"),
    BadCall({"temperature": 0.0}, ValueError, "temperature must be positive and finite"),
    BadCall({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got 1.5"),
    BadCall({"ignore_index": True}, TypeError, "ignore_index must be an int, got True"),
)
SOFTCAP_ERRORS = (
    BadCall({"softcap": 0.0}, ValueError, "softcap must be None or a number > 0 and finite, got 0.0"),
    BadCall({"softcap": np.inf}, ValueError, "softcap must be None or a number > 0 and finite, got inf"),
    BadCall({"softcap": [1.0]}, TypeError, "softcap must be a real number"),
)
GRADIENT_ERRORS = (
    BadCall({"upstream": [1.0, 2.0, 3.0], "reduction": "mean"}, ValueError, "upstream must be a number where"),
    BadCall({"upstream": [1.0, 2.0], "reduction": "none"}, ValueError, r"upstream has shape \(2,\)"),
    BadCall({"upstream": "a"}, TypeError, "upstream must hold real numbers"),
    BadCall({"clip_norm": 0.0}, ValueError, "clip_norm must be positive or None, got 0.0"),
    BadCall({"clip_value": -1}, ValueError, "clip_value must be positive or None, got -1"),
)


def loss_limits(dtype, options):
    """Return the limits of loss and gradient: 4 ULP; gradients of half types are rounded once, from float32.

    float64 gradients with T and z-loss: 4.09 in 35 million elements.
    """
    return 4.0, 0.51 if dtype in ("float16", "bfloat16") else 4.1


GOLDEN = ("cross_entropy, labels", "cross_entropy, weights, smoothing, clipped", "cross_entropy, soft, z-loss")
ARGUMENTS = (Argument("logits", CLASSES), Argument("target", ROWS))
NO_KERNEL = "it computes nothing in floating point: it only compares integers"
RECORDS = (
    Operation(
        "cross_entropy",
        "cross_entropy",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"),),
        make_logits_and_target,
        exact_cross_entropy,
        loss_limits,
        LOSS_VARIANTS,
        {"NaN": (np.nan,), "+inf": (np.nan,), "all -inf": (np.nan,)},
        LOSS_ERRORS + SOFTCAP_ERRORS,
        GOLDEN,
        exempt={
            "overlap": "it has no out, and its result lacks the class axis",
            "memory": "its results, one number for each row, are too small for the memory that is kept",
        },
    ),
    Operation(
        "cross_entropy_with_grad",
        "cross_entropy",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"), Result("grad", CLASSES)),
        make_logits_and_target,
        exact_cross_entropy_with_grad,
        loss_limits,
        GRADIENT_VARIANTS,
        {"NaN": (np.nan, np.nan), "+inf": (np.nan, np.nan), "all -inf": (np.nan, np.nan)},
        LOSS_ERRORS + SOFTCAP_ERRORS + GRADIENT_ERRORS,
        GOLDEN,
    ),
    Operation(
        "check_labels",
        "cross_entropy",
        (Argument("target", ROWS),),
        (),
        lambda shape, dtype, seed, sigma, soft: (make_labels(shape, seed),),
        lambda target, n_classes, ignore_index=-100: (),
        lambda dtype, options: (),
        {"plain": Variant(lambda shape, dtype, seed: {"n_classes": shape[-1]})},
        {},
        (
            BadCall({"target": [[0, 4], [5, 0]]}, IndexError, r"target\[0, 1\] is 4"),
            BadCall({"target": [0.5]}, TypeError, "integer labels"),
            BadCall({"n_classes": -1}, ValueError, "n_classes must be at least 0, got -1"),
            BadCall({"n_classes": 2.5}, TypeError, "n_classes must be an int, got 2.5"),
            BadCall({"ignore_index": 1.5}, TypeError, "ignore_index must be an int, got 1.5"),
        ),
        unpack=lambda result: (),
        exempt={
            "accuracy": NO_KERNEL,
            "special_values": "its labels are integers, which have no special values",
            "golden": "it returns nothing",
            "overlap": "it writes nothing",
            "interrupt": "it is NumPy's comparison of the labels, a few passes over integers",
            "allocation": "it calls nothing of the C core",
            "float_environment": NO_KERNEL,
            "quick": "it has no quick path: it is called beside a computation, not in its place",
            "memory": "it returns nothing",
        },
        devices=("cpu", "cuda"),
    ),
)
