"""Margin softmax: records, and an oracle that holds all logits, angles and tangents in long double."""

from __future__ import annotations

import numpy as np

from .cross_entropy import LOSS_ERRORS, class_weights, exact_rows, reduce_exact, row_weights
from .formats import EXACT, FORMATS, Exact, loss_dtype, wide
from .linear_cross_entropy import FEATURES, NO_OUT, OF_THE_BLAS, W, make_layer
from .record import ROWS, WHOLE, Argument, BadCall, Operation, Result, Variant, constant

PI = 2 * np.arccos(EXACT(0))


def exact_margin(theta, arc, cosine, multiple, past_pi):
    """Return psi and its derivative."""
    phi = multiple * theta + arc
    if past_pi == "mirror":
        k = np.floor(phi / PI)
        sign = np.where(k % 2 == 0, 1, -1)
        return sign * np.cos(phi) - 2 * k - cosine, -sign * multiple * np.sin(phi)
    psi, slope = np.cos(phi) - cosine, -multiple * np.sin(phi)
    if past_pi == "none":
        return psi, slope
    past = phi > PI if past_pi == "linear" else theta >= PI / 2
    instead = np.cos(theta) - (arc * np.sin(arc) if past_pi == "linear" else 0)
    return np.where(past, instead, psi), np.where(past, -np.sin(theta), slope)


def unit(a):
    """Return the rows as unit vectors, zero vectors as they are, and their lengths."""
    length = np.sqrt((a * a).sum(-1, keepdims=True))
    return a / np.where(length == 0, 1, length), length[..., 0]


def exact_margins(
    x, w, target, scale=64.0, arc=0.5, cosine=0.0, multiple=1, past_pi="mirror", reduction="mean", upstream=1.0,
    chunk_bytes=None, **options,
):  # fmt: skip
    """Return loss, grad_x and grad_w as Exact, for w of shape (K, D).

    The slack bounds the rounding, in the compute type, of the unit vectors, of products of D terms and of sums over N
    rows and K classes: an eighth of a unit for each addition. It is one for all elements of a vector, because the
    projection mixes them.
    """
    dtype = loss_dtype(np.asarray(x).dtype.name)
    ulp = EXACT(2) ** (1 - FORMATS[dtype][0])
    real = np.float64 if dtype == "float64" else np.float32
    (x, x_length), (w, w_length) = unit(wide(x)), unit(wide(w))
    n, k, d = len(x), len(w), x.shape[-1]
    rows, s = np.arange(n), EXACT(scale)
    labels = np.asarray(target)
    kept = labels != options.get("ignore_index", -100)
    y = np.where(kept, labels, 0)
    arc, cosine = (
        np.broadcast_to(v[y] if np.ndim(v) and len(v) == k else v, n)
        for v in (np.asarray(arc, EXACT), np.asarray(cosine, EXACT))
    )
    cosines = x @ w.T
    residual = w[y] - cosines[rows, y][:, None] * x
    sine = np.sqrt((residual**2).sum(-1))
    is_zero = (x_length == 0) | (w_length[y] == 0)
    tangent = np.where(((sine == 0) | is_zero)[:, None], 0, residual / np.where(sine == 0, 1, sine)[:, None])
    theta = np.where(is_zero, PI / 2, np.arctan2(sine, cosines[rows, y]))
    psi, slope = exact_margin(theta, arc, cosine, EXACT(multiple), past_pi)
    z = s * cosines
    doubt = ulp * (EXACT(d) / 8 + 4) * s * (np.abs(x) @ np.abs(w).T)
    z[rows, y] = s * psi
    doubt[rows, y] = ulp * s * (np.abs(psi) + 4 * np.abs(slope))
    if options.get("weight") is not None:
        options["weight"] = np.asarray(options["weight"]).astype(real)
    exact = exact_rows(z, labels, **options)
    loss, factor = reduce_exact(exact, reduction)
    mass = np.abs(exact.gradient) + 2 * np.abs(exact.scale)
    row_doubt = (mass * doubt).sum(-1) + 8 * ulp * exact.loss_scale
    slack = row_doubt if reduction == "none" else row_doubt.sum() * abs(factor)
    factor = np.broadcast_to(factor * np.asarray(upstream, EXACT), n)[:, None]
    g = exact.gradient * factor
    g_doubt = mass * (doubt.max(-1, keepdims=True, initial=0) + 8 * ulp) * np.abs(factor)
    g_doubt = g_doubt + EXACT(2) ** (FORMATS[dtype][1] - FORMATS[dtype][0] + 1)
    to_target = g[rows, y] * s * slope
    others = g.copy()
    others[rows, y] = 0
    steepness = np.maximum(1, np.abs(slope))
    size, size_doubt = np.abs(g), g_doubt.copy()
    size[rows, y] *= steepness
    size_doubt[rows, y] *= steepness
    size_doubt[rows, y] += size[rows, y] * 8 * EXACT(2) ** -52 / np.maximum(sine, EXACT(2) ** -50)
    x_inverse, w_inverse = (np.where(a == 0, 0, 1 / np.where(a == 0, 1, a)) for a in (x_length, w_length))
    by_x = s * (others @ w)
    by_x = (by_x - (by_x * x).sum(-1, keepdims=True) * x - to_target[:, None] * tangent) * x_inverse[:, None]
    by_w = s * (others.T @ x)
    by_w -= (by_w * w).sum(-1, keepdims=True) * w
    at_w = np.where(is_zero[:, None], 0, sine[:, None] * x - cosines[rows, y][:, None] * tangent)
    np.add.at(by_w, y, -to_target[:, None] * at_w)
    by_w *= w_inverse[:, None]
    x_slack = s * x_inverse * 2 * (size_doubt + ulp * (8 + EXACT(k + d) / 8) * size).sum(-1)
    w_slack = s * w_inverse * 2 * (size_doubt + ulp * (8 + EXACT(n + d) / 8) * size).sum(0)
    by_x, by_w = Exact(by_x, None, x_slack[:, None]), Exact(by_w, None, w_slack[:, None])
    return Exact(loss.value, loss.scale, slack), by_x, by_w


def exact_margin_loss(x, w, target, **options):
    return exact_margins(x, w, target, **options)[:1]


def additive(shape, dtype, seed):
    return {
        "arc": 0.0,
        "cosine": 0.35,
        "weight": class_weights(shape, dtype, seed),
        "label_smoothing": 0.125,
        "reduction": "none",
    }


def by_class(shape, dtype, seed):
    rng = np.random.default_rng(seed + 7)
    return {
        "arc": rng.uniform(0, 0.5, shape[-1]),
        "cosine": rng.uniform(0, 0.5, shape[-1]),
        "scale": 16.0,
        "chunk_bytes": 16 * shape[-1],
        "sample_weight": row_weights(shape, seed),
        "reduction": "none",
    }


VARIANTS = {
    "plain": Variant(constant(reduction="none")),
    "cosine, weights, smoothing": Variant(additive),
    "by class, chunks": Variant(by_class),
    "multiple": Variant(constant(multiple=4, arc=0.0, scale=8.0, reduction="none")),
    "linear": Variant(constant(past_pi="linear", scale=30.0, reduction="none"), is_accurate=False),  # jumps
    "mean": Variant(constant(reduction="mean"), is_rowwise=False),
}
# Soft labels are refused, and so are the options that are not there.
_LEFT_OUT = ("z_loss", "temperature")
ERRORS = (
    *(bad for bad in LOSS_ERRORS if not set(bad.changes) & {*_LEFT_OUT, "target"}),
    BadCall({"target": np.array([0, 4, 2])}, IndexError, r"target\[1\] is 4: the classes are 0 to 3"),
    BadCall({"target": np.array([0, 1])}, ValueError, "target has shape"),
    BadCall({"target": np.full((3, 4), 0.25)}, TypeError, "target must hold integer labels: a margin belongs to"),
    BadCall({"target": np.zeros(3, bool)}, TypeError, "target must hold integer labels"),
    BadCall({"w": np.zeros((4, 3), np.float32)}, ValueError, r"and w \(4, 3\); with sub_centers=1, allowed are"),
    BadCall({"w": np.zeros((4, 2, FEATURES), np.float32)}, ValueError, r"allowed are \(..., D\) and \(K, D\)"),
    BadCall({"sub_centers": 2}, ValueError, r"with sub_centers=2, allowed are \(..., D\) and \(K, 2, D\)"),
    BadCall({"sub_centers": 0}, ValueError, "sub_centers must be at least 1, got 0"),
    BadCall({"sub_centers": True}, TypeError, "sub_centers must be an int"),
    BadCall({"x": np.float32(1)}, ValueError, r"x has shape \(\)"),
    BadCall({"w": W.astype(np.float64)}, TypeError, "w has dtype float64, x has dtype float32"),
    BadCall({"scale": 0.0}, ValueError, "scale must be positive and finite, got 0.0"),
    BadCall({"scale": np.inf}, ValueError, "scale must be positive and finite, got inf"),
    BadCall({"scale": "a"}, TypeError, "scale must be a real number"),
    BadCall({"multiple": -1}, ValueError, "multiple must be positive and finite, got -1"),
    BadCall({"arc": np.nan}, ValueError, "arc must be finite, got nan"),
    BadCall({"arc": [0.1, 0.2]}, ValueError, r"arc has shape \(2,\); a number, one for each class \(4,\) or one for"),
    BadCall({"cosine": ["a"] * 4}, TypeError, "cosine has dtype <U1; allowed are float16"),
    BadCall({"past_pi": "wrap"}, ValueError, "past_pi must be one of mirror, linear, easy, none, got 'wrap'"),
    BadCall({"past_pi": "easy", "multiple": 2}, ValueError, "past_pi='easy' is defined for multiple of at most 1"),
    BadCall({"past_pi": "linear", "multiple": 4}, ValueError, "past_pi='linear' is defined for multiple of at most 1"),
    BadCall({"classes": [0, 1], "target": np.array([0, 1, 3])}, ValueError, "row 2 has 3, which is not among them"),
    BadCall({"classes": [], "target": np.array([0, 1, 3])}, ValueError, "row 0 has 0, which is not among them"),
    BadCall({"classes": [1, 0, 2, 3]}, ValueError, "classes must be sorted and differ from each other, got 1 before 0"),
    BadCall({"classes": [0, 1, 1, 2, 3]}, ValueError, "got 1 before 1"),
    BadCall({"classes": [0, 1, 4]}, IndexError, r"classes\[2\] is 4: the classes are 0 to 3"),
    BadCall({"classes": [0.0, 1.0]}, TypeError, "classes must be one list of integers"),
    BadCall({"classes": [True] * 4}, TypeError, "classes must be one list of integers"),
    BadCall({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1, got 0"),
    BadCall({"filter_eps": -1}, ValueError, "filter_eps must be at least 0"),
    BadCall({"num_threads": "2", "target": [-100] * 3}, TypeError, "num_threads must be an int or None"),
)
GRADIENT_ERRORS = (
    BadCall({"upstream": [1.0, 2.0, 3.0], "reduction": "mean"}, ValueError, "upstream must be a number where"),
    BadCall({"upstream": [1.0, 2.0], "reduction": "none"}, ValueError, r"upstream has shape \(2,\)"),
)
EXEMPT = {
    "reproducibility": f"{OF_THE_BLAS}; tests/ops/test_margins.py repeats a call",
    "golden": OF_THE_BLAS,
    "overlap": NO_OUT,
    "float_environment": "the BLAS computes in the caller's rounding mode",
    "quick": "its products of matrices cost far more than a call",
    "memory": "gradients of the weights are allocated by NumPy",
    "allocation": "the core allocates nothing but what linear_cross_entropy does, which is tested there",
}
ARGUMENTS = (Argument("x", ROWS), Argument("w", WHOLE), Argument("target", ROWS))


def limits(dtype, options):
    """Return the limits beyond the slack of the products: one rounding in the dtype of each result."""
    return 4.0, 1.0, 1.0


RECORDS = (
    Operation(
        "margin_cross_entropy",
        "margins",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"),),
        make_layer,
        exact_margin_loss,
        limits,
        VARIANTS,
        {"NaN": (np.nan,), "+inf": (np.nan,), "all -inf": (np.nan,)},
        ERRORS,
        exempt=EXEMPT,
        devices=("cpu",),
    ),
    Operation(
        "margin_cross_entropy_with_grad",
        "margins",
        ARGUMENTS,
        (Result("loss", ROWS, "loss"), Result("grad_x", ROWS), Result("grad_w", WHOLE)),
        make_layer,
        exact_margins,
        limits,
        VARIANTS,
        {"NaN": (np.nan, np.nan), "+inf": (np.nan, np.nan), "all -inf": (np.nan, np.nan)},
        ERRORS + GRADIENT_ERRORS,
        exempt=EXEMPT,
        devices=("cpu",),
    ),
)
