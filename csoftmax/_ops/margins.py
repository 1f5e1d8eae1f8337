"""Cross-entropy of cosines with a margin for the target, and its gradients, without the matrix of all logits."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import check_loss_options, check_target
from .._arguments.layers import count_chunk_rows
from .._arguments.numbers import as_number, check_count, check_non_negative, check_num_threads
from .._arguments.places import as_array, as_float, check_kernels, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.apart import run_apart
from .._cpu.dtypes import compute_dtype, dtype_code
from .._cpu.linear import Layer, kernel_threads
from .._cpu.margins import (
    Centers,
    Margin,
    add_rows,
    choose_centers,
    measure_angles,
    measure_lengths,
    project_rows,
    set_canonical,
    unit_rows,
)
from .linear_cross_entropy import LinearCrossEntropyResult, LinearPlan, keep_rows, reduce_losses

CHUNK_BYTES = 32 << 20, 64 << 20  # default size of a chunk's logits: that of w within these
PAST_PI = ("mirror", "linear", "easy", "none")

__all__ = ["margin_cross_entropy", "margin_cross_entropy_with_grad"]


class MarginPlan(NamedTuple):
    """A checked call; w of the linear plan is (K, C, D), of all classes."""

    linear: LinearPlan
    margin: Margin  # of the rows that take part
    scale: float
    centers: int
    w_shape: tuple[int, ...]  # of the caller's array
    classes: Any | None  # sorted, the classes that take part; labels count among these


def _check_margin(name: str, given: Any, n: int, batch: tuple[int, ...]) -> Any:
    """A finite number; or float64, one for each class or row: an array of the length of both is one for each class."""
    values = as_float(name, given)[0].astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got {values[~np.isfinite(values)][0]}")
    rows = math.prod(batch)
    if values.ndim == 0:
        return float(values)
    if values.shape not in ((n,), batch, (rows,)):
        raise ValueError(
            f"{name} has shape {values.shape}; a number, one for each class ({n},) or one for each row {batch} is "
            "allowed"
        )
    return values


def _margin_of_rows(values: Any, n: int, labels: Any, kept: Any) -> Any:
    """A checked margin as a number, or as one for each row that takes part; labels are those of these rows."""
    if isinstance(values, float):
        return values
    if values.shape == (n,):
        return values[labels]
    values = values.reshape(-1)
    return values.copy() if kept is None else values[kept]


def _check_classes(given: Any, n: int) -> Any:
    classes = as_array("classes", given)
    if classes.size == 0 and classes.ndim == 1:
        classes = classes.astype(np.int64)
    if classes.dtype.kind not in "iu" or classes.ndim != 1:
        raise TypeError(f"classes must be one list of integers, got shape {classes.shape} and dtype {classes.dtype}")
    bad = (classes < 0) | (classes >= n)
    if bad.any():
        raise IndexError(f"classes[{bad.argmax()}] is {classes[bad][0]}: the classes are 0 to {n - 1}")
    classes = classes.astype(np.int64)
    falls = classes[1:] <= classes[:-1]
    if falls.any():
        at = int(falls.argmax())
        raise ValueError(
            f"classes must be sorted and differ from each other, got {classes[at]} before {classes[at + 1]}: pass "
            "numpy.unique(classes)"
        )
    return classes


def _place_labels(labels: Any, classes: Any, kept: Any) -> Any:
    """The places of labels among the classes that take part."""
    at = np.minimum(np.searchsorted(classes, labels), max(0, len(classes) - 1))
    missing = classes[at] != labels if len(classes) else np.ones(len(labels), bool)
    if missing.any():
        first = int(missing.argmax())
        row = first if kept is None else int(kept[first])
        raise ValueError(f"classes must contain every target; row {row} has {labels[first]}, which is not among them")
    return at


def _check_layer(x: Any, w: Any, sub_centers: int) -> Any:
    """W as (K, C, D)."""
    shape = (w.shape[0], 1, w.shape[-1]) if w.ndim == 2 else w.shape
    if x.ndim == 0 or w.ndim not in (2, 3) or shape[1] != sub_centers or w.shape[-1] != x.shape[-1]:
        allowed = "(K, D)" if sub_centers == 1 else f"(K, {sub_centers}, D)"
        raise ValueError(
            f"x has shape {x.shape} and w {w.shape}; with sub_centers={sub_centers}, allowed are (..., D) and {allowed}"
        )
    if w.dtype != x.dtype:
        raise TypeError(f"w has dtype {w.dtype}, x has dtype {x.dtype}: they must be the same")
    return w.reshape(shape)


def _check_shape_of_margin(scale: Any, multiple: Any, past_pi: Any) -> tuple[float, float]:
    numbers = []
    for name, given in (("scale", scale), ("multiple", multiple)):
        value = as_number(name, given)
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {given!r}")
        numbers.append(value)
    if not isinstance(past_pi, str) or past_pi not in PAST_PI:
        raise ValueError(f"past_pi must be one of {', '.join(PAST_PI)}, got {past_pi!r}")
    if past_pi in ("linear", "easy") and numbers[1] > 1:
        raise ValueError(f'past_pi={past_pi!r} is defined for multiple of at most 1, got {multiple!r}: use "mirror"')
    return numbers[0], numbers[1]


def plan_margins(
    x: Any,
    w: Any,
    target: Any,
    *,
    scale: Any,
    arc: Any,
    cosine: Any,
    multiple: Any,
    past_pi: Any,
    sub_centers: Any,
    classes: Any,
    reduction: str,
    chunk_bytes: Any,
    device: str | None,
    **options: Any,
) -> MarginPlan:
    """Check the arguments of margin_cross_entropy, and drop the rows that take no part."""
    place = place_of(device, x)
    if place.on_cuda:
        check_kernels("margin_cross_entropy")
    if device is not None:
        x, w, target, arc, cosine, classes, *values = to_host(x, w, target, arc, cosine, classes, *options.values())
        options = dict(zip(options, values, strict=True))
    chunk_bytes = None if chunk_bytes is None else check_count("chunk_bytes", chunk_bytes, 1, "an int or None")
    scale, multiple = _check_shape_of_margin(scale, multiple, past_pi)
    centers = check_count("sub_centers", sub_centers, 1)
    x, dtype = as_float("x", x)
    w, _ = as_float("w", w)
    w_shape, w = w.shape, _check_layer(x, w, centers)
    n, compute, batch = len(w), compute_dtype(x.dtype), x.shape[:-1]
    labels, soft = check_target(target, (*batch, n), batch, compute)
    if soft is not None:
        raise TypeError(f"target must hold integer labels: a margin belongs to one class; got dtype {soft.dtype}")
    checked = check_loss_options(n, batch, compute, reduction, z_loss=0.0, temperature=1.0, **options)
    arc, cosine = (_check_margin(name, v, n, batch) for name, v in (("arc", arc), ("cosine", cosine)))
    classes = None if classes is None else _check_classes(classes, n)
    by_row = checked.sample_weight, checked.upstream
    s, upstream = (None if v is None else np.ascontiguousarray(v).reshape(math.prod(batch)) for v in by_row)
    checked = checked._replace(sample_weight=s, upstream=upstream)
    plan = LinearPlan(dtype, x, w, None, labels, None, checked, None, 1.0, batch, compute, None, place, 1)
    plan = keep_rows(plan, reduction)
    arc, cosine = (_margin_of_rows(v, n, plan.labels, plan.kept) for v in (arc, cosine))
    if classes is not None:
        weight = plan.options.weight
        taking_part = plan.options._replace(weight=None if weight is None else weight[classes])
        plan = plan._replace(labels=_place_labels(plan.labels, classes, plan.kept), options=taking_part)
    columns = (n if classes is None else len(classes)) * (centers + (centers > 1))
    # each chunk passes once over the gradient of w, so that larger ones save time where w is large
    chunk_bytes = chunk_bytes or min(max(w.size * compute.itemsize, CHUNK_BYTES[0]), CHUNK_BYTES[1])
    rows = count_chunk_rows(len(plan.x), columns, compute, chunk_bytes)
    plan = plan._replace(chunk_rows=rows)
    return MarginPlan(plan, Margin(arc, cosine, multiple, past_pi), scale, centers, w_shape, classes)


class Sphere:
    """The cosines of a call, chunk by chunk, with the margins of the targets, and their gradients."""

    def __init__(self, plan: MarginPlan, gradient: bool):
        linear = plan.linear
        self.plan, self.compute = plan, linear.compute
        w = linear.w if plan.classes is None else run_apart(linear.w.nbytes, linear.w.__getitem__, plan.classes)
        classes, features = len(w), w.shape[-1]
        self.x = measure_lengths(linear.x, self.compute)
        self.w = measure_lengths(run_apart(w.nbytes, w.reshape, classes * plan.centers, features), self.compute)
        self.layer = Layer(unit_rows(self.x, self.compute), self.w.rows, None, self.compute, gradient)
        self.factors = (plan.scale * self.w.inverse).astype(self.compute)
        several = plan.centers > 1
        self.centers = Centers(linear.chunk_rows, classes, plan.centers, self.compute) if several else None
        self.buffer = binding.empty((linear.chunk_rows, len(self.factors)), self.compute)

    def forward(self, rows: slice) -> Any:
        """The logits of a chunk of rows, with those of the targets; what backward needs of these is kept."""
        cosines = self.buffer[: rows.stop - rows.start]
        self.layer.forward(rows, cosines)
        cosines *= self.factors
        logits = cosines if self.centers is None else self.centers.reduce(cosines)
        of_all: Any = self.plan.linear.labels
        labels = of_all[rows]
        self.unit_x = self.x.unit(rows)
        self.chosen = choose_centers(self.unit_x, self.w, labels, self.plan.centers)
        is_zero = (self.x.length[rows] == 0) | (self.w.length[self.chosen] == 0)
        self.angles = measure_angles(self.unit_x, self.w.unit(self.chosen), is_zero)
        value, self.slope = self.plan.margin.of_rows(rows).evaluate(self.angles.theta)
        self.targets = np.arange(len(labels)), labels
        logits[self.targets] = self.plan.scale * value
        return logits

    def backward(self, rows: slice, grad: Any, limit: Any | None) -> None:
        """Add the part of a chunk to the gradients, from the gradient of its logits."""
        of_angle = grad[self.targets] * self.plan.scale * self.slope  # in float64
        grad[self.targets] = 0
        if self.centers is not None:
            every = self.buffer[: len(grad)]
            self.centers.expand(grad, every)
            grad = every
        pieces = None if limit is None else self.layer.significant_classes(grad, limit)
        grad *= self.factors
        self.layer.backward(rows, grad, pieces)
        of_row = self.layer.grad_x[rows].astype(np.float64)
        of_row -= np.einsum("ij,ij->i", of_row, self.unit_x)[:, None] * self.unit_x
        of_row -= of_angle[:, None] * self.angles.tangent
        of_row *= self.x.inverse[rows][:, None]
        set_canonical(of_row, np.isnan(of_row).any(axis=1))
        self.layer.grad_x[rows] = of_row
        at_w = self.angles.tangent_at_w(self.unit_x)
        at_w *= -(of_angle * self.w.inverse[self.chosen])[:, None]
        add_rows(self.layer.grad_w, self.chosen, at_w)

    def gradients(self) -> tuple[Any, Any]:
        """The gradients of x and w in the dtype and shape of the caller's arrays."""
        linear = self.plan.linear
        grad_x, grad_w, _ = self.layer.gradients()
        project_rows(grad_w, self.w)
        dtype = linear.w.dtype
        grad_x = self.x.scale_gradient(grad_x).astype(dtype, copy=False)
        grad_w = self.w.scale_gradient(grad_w)
        if grad_w.dtype != dtype:
            grad_w = run_apart(grad_w.nbytes, grad_w.astype, dtype)
        if linear.kept is not None:
            every_row = np.zeros((math.prod(linear.batch), grad_x.shape[1]), dtype)
            every_row[linear.kept] = grad_x
            grad_x = every_row
        if self.plan.classes is not None:
            every_class = np.zeros(linear.w.shape, dtype)
            every_class[self.plan.classes] = grad_w.reshape(-1, *linear.w.shape[1:])
            grad_w = every_class
        return grad_x.reshape(*linear.batch, linear.x.shape[1]), grad_w.reshape(self.plan.w_shape)


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@np.errstate(all="ignore")
def _run_margins_on_cpu(
    plan: MarginPlan, gradient: bool, reduction: str, filter_eps: float, num_threads: int | None
) -> tuple[Any, Any, Any]:
    linear, options = plan.linear, plan.linear.options
    rows = len(linear.x)
    coefficient: Any = np.ones(rows) if options.upstream is None else options.upstream
    coefficient = coefficient / linear.divisor
    losses, labels = np.zeros(rows), linear.labels
    assert labels is not None
    sphere = Sphere(plan, gradient)
    num_threads = kernel_threads(sphere.buffer.size, num_threads)
    # a mean that divides by 0 has a gradient of 0 whatever its rows hold, and 0 times infinity would not be 0
    divides = linear.divisor != 0
    for begin in range(0, rows if divides else 0, linear.chunk_rows):
        chunk = slice(begin, min(begin + linear.chunk_rows, rows))
        logits = sphere.forward(chunk)
        upstream = coefficient[chunk]
        binding.run_cross_entropy(
            dtype_code(linear.compute),
            logits,
            logits if gradient else None,
            losses[chunk],
            labels[chunk],
            None,
            None,
            options.weight,
            None if options.sample_weight is None else options.sample_weight[chunk],
            upstream,
            *options.factors,
            binding.REDUCTIONS["none"],
            num_threads,
        )
        if gradient:
            sphere.backward(chunk, logits, filter_eps * np.abs(upstream)[:, None] if filter_eps else None)
    if gradient and not divides:
        sphere.layer.clear()
    loss = reduce_losses(linear, losses, reduction)
    return (loss, *sphere.gradients()) if gradient else (loss, None, None)


@accept_foreign
@keep_labels(1)
def _run_margins(
    x: Any, w: Any, target: Any, *, gradient: bool, filter_eps: Any, num_threads: Any, **options: Any
) -> tuple[Any, Any, Any]:
    filter_eps = check_non_negative("filter_eps", filter_eps)
    num_threads = check_num_threads(num_threads)
    plan = plan_margins(x, w, target, **options)
    return _run_margins_on_cpu(plan, gradient, options["reduction"], filter_eps, num_threads)


@hand_over_recorded
def margin_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    scale: float = 64.0,
    arc: ArrayLike = 0.5,
    cosine: ArrayLike = 0.0,
    multiple: float = 1,
    past_pi: Literal["mirror", "linear", "easy", "none"] = "mirror",
    sub_centers: SupportsIndex = 1,
    classes: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    reduction: Literal["none", "sum", "mean"] = "mean",
    chunk_bytes: SupportsIndex | None = None,
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of scaled cosines, the target's with a margin: ArcFace, CosFace, SphereFace.

    With θ_j the angle between the row of x and the class j, the logits are ``scale * cos(θ_j)``, that of the target is
    ``scale * (cos(multiple * θ + arc) - cosine)``. The matrix of all logits is never materialised.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `softmax`; their lengths do not matter.
    w : array_like of shape (K, D), or (K, C, D) with ``sub_centers=C``, and the dtype of x
        One vector for each class, or several; their lengths do not matter.
    target : array_like of int, of shape (...)
        Labels.
    scale : float > 0, default 64.0
        Factor of the cosines.
    arc, cosine : float or array_like of shape (K,) or (...), default 0.5 and 0.0
        Margins, in radians and as a cosine: numbers, or one for each class, or one for each row; an array of K numbers
        is one for each class. ArcFace has arc 0.5, CosFace arc 0 and cosine 0.35; with all 0, and multiple 1, the loss
        is the softmax of cosines.
    multiple : float > 0, default 1
        Factor of the angle, 4 in SphereFace.
    past_pi : {"mirror", "linear", "easy", "none"}, default "mirror"
        Form of the target's logit where ``φ = multiple * θ + arc`` exceeds π and the cosine would rise again. "mirror":
        with k half turns, ``(-1)**k * cos(φ) - 2 * k - cosine``, which is smooth and falls everywhere. "linear":
        ``cos(θ) - arc * sin(arc)``, which jumps. "easy": no margin where θ is π / 2 or more. "none": the cosine as it
        is.
    sub_centers : int, default 1
        Vectors of each class; the cosine of a class is that of the nearest, the first of equal ones.
    classes : array_like of int, of shape (M,), optional
        Sorted, the classes that take part, all targets among them: the sum goes over these.
    weight, sample_weight, label_smoothing, ignore_index, reduction
        As in `cross_entropy`; smoothing spreads over the classes that take part.
    chunk_bytes : int, optional
        Upper bound on the bytes of the logits that exist at a time, by default those of `w` but 32 to 64 MiB; see
        `linear_cross_entropy`.
    filter_eps : float, default 0.0
        Affects gradients only; see `margin_cross_entropy_with_grad`.
    device, num_threads
        As in `linear_cross_entropy`; there are no kernels for CUDA.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer input, else float32.

    Raises
    ------
    ValueError
        If shapes do not fit, a number is outside its range, a target is not among `classes`, or `past_pi` is "linear"
        or "easy" with multiple above 1.
    IndexError, TypeError, DeviceError, MemoryError
        As in `cross_entropy`; TypeError also for soft labels.

    Notes
    -----
    The angle to the target is computed in float64 from the residual of the projection, so that it is exact also where
    it is small. A zero vector has cosine 0 to everything. Results repeat with the same BLAS, number of BLAS threads and
    `chunk_bytes`.

    Sources: SphereFace (Liu et al. 2017), CosFace (Wang et al. 2018), ArcFace (Deng et al. 2019), sub-centres (Deng et
    al. 2020), sampled classes (An et al. 2021).

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x, w = np.array([[3.0, 1.0]]), np.eye(2)
    >>> csoftmax.margin_cross_entropy(x, w, [0], scale=8, arc=0).round(4)
    np.float64(0.0063)
    >>> csoftmax.margin_cross_entropy(x, w, [0], scale=8).round(4)
    np.float64(0.0526)
    """
    return _run_margins(
        x,
        w,
        target,
        gradient=False,
        scale=scale,
        arc=arc,
        cosine=cosine,
        multiple=multiple,
        past_pi=past_pi,
        sub_centers=sub_centers,
        classes=classes,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        chunk_bytes=chunk_bytes,
        filter_eps=filter_eps,
        device=device,
        num_threads=num_threads,
    )[0]


@hand_over_recorded
def margin_cross_entropy_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    scale: float = 64.0,
    arc: ArrayLike = 0.5,
    cosine: ArrayLike = 0.0,
    multiple: float = 1,
    past_pi: Literal["mirror", "linear", "easy", "none"] = "mirror",
    sub_centers: SupportsIndex = 1,
    classes: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    chunk_bytes: SupportsIndex | None = None,
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> LinearCrossEntropyResult:
    """The loss of `margin_cross_entropy` and its gradients, without the matrix of all logits.

    Parameters
    ----------
    x, w, target, scale, arc, cosine, multiple, past_pi, sub_centers, classes
        As in `margin_cross_entropy`.
    weight, sample_weight, label_smoothing, ignore_index, reduction, chunk_bytes
        As in `margin_cross_entropy`.
    upstream : array_like, default 1.0
        As in `cross_entropy_with_grad`.
    filter_eps : float, default 0.0
        A class is left out of a chunk's products if the gradient of the row losses with respect to its logit does not
        exceed this limit in any row of the chunk. Targets are never left out.
    device, num_threads
        As in `margin_cross_entropy`.

    Returns
    -------
    LinearCrossEntropyResult
        loss, grad_x of the shape of `x`, grad_w of the shape of `w`, None; in the dtype of `x` (float64 for integers).

    Raises
    ------
    ValueError, IndexError, TypeError, DeviceError, MemoryError
        As in `margin_cross_entropy`.

    Notes
    -----
    Gradients are orthogonal to the vectors that they belong to, and finite if the dtype can hold them. Where the
    angle to the target is 0 or π its direction is undefined, and the part of the margin is 0; so is the gradient of
    zero vectors. With several centres the gradient goes to the nearest; in float32 that of other classes than the
    target is the nearest by cosines in float32.

    Besides the results a call needs `chunk_bytes`, a panel of 4 MiB, unit vectors of the rows of `x`, and some arrays
    of a chunk's rows in float64; with `classes` also a copy of their rows of `w` and of `grad_w`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x, w = np.array([[3.0, 1.0]]), np.eye(2)
    >>> result = csoftmax.margin_cross_entropy_with_grad(x, w, [0], scale=8)
    >>> (result.grad_x @ x.T).round(12), result.grad_w.round(4)
    (array([[0.]]), array([[ 0.    , -0.3005],
           [ 0.3892,  0.    ]]))
    """
    result = _run_margins(
        x,
        w,
        target,
        gradient=True,
        scale=scale,
        arc=arc,
        cosine=cosine,
        multiple=multiple,
        past_pi=past_pi,
        sub_centers=sub_centers,
        classes=classes,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        reduction=reduction,
        upstream=upstream,
        chunk_bytes=chunk_bytes,
        filter_eps=filter_eps,
        device=device,
        num_threads=num_threads,
    )
    return LinearCrossEntropyResult(*result, None)
