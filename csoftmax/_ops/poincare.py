"""Logits of points in hyperbolic space and hyperplanes, and their cross-entropy with all gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.layers import check_bias
from .._arguments.numbers import as_number, check_choice, check_num_threads
from .._arguments.places import as_float, bring_to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import hyperbolic
from .._cpu.apart import multiply, run_apart, split_rows
from .._cpu.dtypes import compute_dtype, in_dtype
from .cross_entropy import cross_entropy_with_grad

__all__ = ["HyperbolicLossResult", "poincare_cross_entropy_with_grad", "poincare_logits"]

COORDINATES = ("tangent", "ball", "hyperboloid")
CHUNK_ELEMENTS = 1 << 18  # logits of a chunk, of which some 20 arrays exist at a time: 40 MB

_Coordinates = Literal["tangent", "ball", "hyperboloid"]


class HyperbolicLossResult(NamedTuple):
    """The result of `poincare_cross_entropy_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The loss: float64 for float64 and integer x, else float32.
    grad_x : ndarray of the shape of x
        The gradient of x, in its coordinates and dtype (float64 for integers).
    grad_w : ndarray of shape (K, D)
        The gradient of w, in the same dtype.
    grad_bias : ndarray of shape (K,), or None
        The gradient of the bias, in the same dtype; None without one.
    grad_c : scalar
        The gradient of c, float64.
    """

    loss: Any
    grad_x: Any
    grad_w: Any
    grad_bias: Any
    grad_c: Any


class HyperbolicPlan(NamedTuple):
    """A checked call: points by row, and the hyperplanes in float64."""

    x: Any  # (N, D), D + 1 on the hyperboloid
    shape: tuple[int, ...]  # of the caller's x
    dtype: np.dtype[Any]
    planes: hyperbolic.Planes
    has_bias: bool
    c: float
    coordinates: str

    def chunks(self) -> Iterator[slice]:
        """Slices of rows."""
        return split_rows(len(self.x), max(len(self.planes.w), self.x.shape[1]), CHUNK_ELEMENTS)

    def points(self, rows: Any) -> hyperbolic.Points:
        """Some points, in float64."""
        x = self.x[rows].astype(np.float64)
        if self.coordinates == "ball":
            return hyperbolic.from_ball(x, self.c)
        return (hyperbolic.from_tangent if self.coordinates == "tangent" else hyperbolic.from_hyperboloid)(x, self.c)

    def logits(self, rows: Any, gradient: bool = False) -> tuple[hyperbolic.Points, Any, hyperbolic.Logits]:
        """Points, products <v, w> and logits of some rows."""
        points = self.points(rows)
        products = multiply(points.v, self.planes.w.T)
        return points, products, hyperbolic.forward(points, products, self.planes, gradient)


def _refuse_row(bad: Any, batch: tuple[int, ...], what: str) -> None:
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), batch)
        raise ValueError(f"x[{', '.join(map(str, at))}]" * bool(batch) + "x" * (not batch) + what)


def _check_points(x: Any, batch: tuple[int, ...], c: float, coordinates: str) -> None:
    """Refuse rows that are not in their space; NaN passes, and makes its logits NaN."""
    if coordinates == "hyperboloid":
        if c == 0:
            raise ValueError('c must be positive with coordinates="hyperboloid", got 0')
        _refuse_row(~((x[:, 0] > 0) | np.isnan(x[:, 0])), batch, " must have a positive first coordinate")
    elif coordinates == "ball":
        u = np.empty(len(x))
        for rows in split_rows(*x.shape):
            u[rows] = math.sqrt(c) * hyperbolic.row_lengths(x[rows].astype(np.float64))
        _refuse_row(
            u >= 1,
            batch,
            f' is not within the ball c * |x|**2 < 1 of c = {c!r}: points close to its rim need coordinates="tangent"',
        )


def plan_poincare(x: Any, w: Any, bias: Any, c: Any, coordinates: Any) -> HyperbolicPlan:
    """Check the arguments that logits and loss share."""
    curvature = as_number("c", c)
    if not 0 <= curvature < math.inf:
        raise ValueError(f"c must be at least 0 and finite, got {c!r}")
    check_choice("coordinates", coordinates, COORDINATES)
    x, _ = as_float("x", x)
    w, _ = as_float("w", w)
    extra = coordinates == "hyperboloid"
    if x.ndim == 0 or w.ndim != 2 or x.shape[-1] != w.shape[1] + extra:
        allowed = "(..., D + 1) and (K, D)" if extra else "(..., D) and (K, D)"
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; allowed are {allowed}")
    if w.dtype != x.dtype:
        raise TypeError(f"w has dtype {w.dtype}, x has dtype {x.dtype}: they must be the same")
    offset = np.zeros(len(w)) if bias is None else check_bias(as_float("bias", bias)[0], len(w)).astype(np.float64)
    rows = run_apart(x.nbytes, x.reshape, math.prod(x.shape[:-1]), x.shape[-1])
    _check_points(rows, x.shape[:-1], curvature, coordinates)
    planes = hyperbolic.Planes.of(w.astype(np.float64), offset, curvature)
    return HyperbolicPlan(rows, x.shape, x.dtype, planes, bias is not None, curvature, coordinates)


@accept_foreign
@np.errstate(all="ignore")
def _run_logits(x: Any, w: Any, bias: Any, *, c: Any, coordinates: Any) -> Any:
    plan = plan_poincare(x, w, bias, c, coordinates)
    result = np.empty((len(plan.x), len(plan.planes.w)), plan.dtype)
    for rows in plan.chunks():
        result[rows] = in_dtype(plan.logits(rows)[2].value, plan.dtype)
    return result.reshape(*plan.shape[:-1], result.shape[1])


@hand_over_recorded
def poincare_logits(
    x: ArrayLike,
    w: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    c: float = 1.0,
    coordinates: _Coordinates = "tangent",
) -> Any:
    """Logits of points in hyperbolic space: signed distances to hyperplanes, times the length of their normals.

    ``2 * |w| / sqrt(c) * asinh(sinh(a) * cosh(b) * t - cosh(a) * sinh(b))`` with ``a = 2 * sqrt(c) * |x|``,
    ``b = 2 * sqrt(c) * bias`` and t the cosine of the angle between x and w.

    Parameters
    ----------
    x : array_like of shape (..., D), or (..., D + 1) on the hyperboloid
        Points, in one of the dtypes of `softmax`.
    w : array_like of shape (K, D) and the dtype of x
        Normals of the hyperplanes at the origin, one for each class.
    bias : array_like of shape (K,), optional
        Distances of the hyperplanes from the origin along their normals, 0 by default.
    c : float, default 1.0
        Curvature, at least 0: the space has curvature -c. 0 is the limit ``4 * (x @ w.T - |w| * bias)``.
    coordinates : {"tangent", "ball", "hyperboloid"}, default "tangent"
        Meaning of `x`: vectors in the tangent space at the origin, which reach any distance; points of the Poincaré
        ball ``c * |x|**2 < 1``; or of the hyperboloid, ``(x0, x)`` with ``c * (x0**2 - |x|**2) == 1``, for c > 0.

    Returns
    -------
    ndarray of shape (..., K)
        Logits in the dtype of `x` (float64 for integers), computed in float64 and rounded once.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers, or dtypes differ.
    ValueError
        If shapes do not fit, c is negative or not finite, a point is outside the ball, or its x0 is not positive.

    Notes
    -----
    Ganea, Bécigneul & Hofmann, "Hyperbolic neural networks", NeurIPS 2018, with the parameters of Shimizu, Mukuta &
    Harada, "Hyperbolic neural networks++", ICLR 2021. A ball's float32 coordinates resolve no distance beyond some 10
    from the origin, float64 beyond 20; tangent coordinates do. A class with w = 0 has logit 0.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import poincare_logits
    >>> w = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> poincare_logits(np.array([[0.5, 0.1], [300.0, 0.1]]), w, [0.0, 0.5]).round(4)
    array([[    2.0095,    -2.363 ],
           [ 1200.0001, -1200.3221]])
    """
    return _run_logits(x, w, bias, c=c, coordinates=coordinates)


def _add_gradients(plan: HyperbolicPlan, rows: Any, g: Any, sums: list[Any]) -> Any:
    """The gradient of some points from that of their logits; the sums of w, the bias and c grow."""
    points, products, logits = plan.logits(rows, True)
    found = hyperbolic.backward(g, points, products, plan.planes, logits)
    of_v = multiply(found.by_w, plan.planes.w)
    if found.along_v is not None:
        of_v += found.along_v * points.v
    sums[0] += multiply(found.by_w.T, points.v) + found.along_w[:, None] * plan.planes.w
    sums[1] += found.offset
    sums[2] += found.curvature
    if found.first is not None:
        return np.concatenate([found.first, of_v], axis=1)
    if points.ball is None:
        return of_v
    x, over, slope, length = points.ball
    along = np.add.reduce(of_v * x, axis=1, keepdims=True)
    sums[2] += np.add.reduce(along * slope * length**2 / 2, axis=None)
    return over * of_v + plan.c * slope * along * x


@accept_foreign
@keep_labels(1)
@np.errstate(all="ignore")
def _run_loss(
    x: Any, w: Any, target: Any, *, bias: Any, c: Any, coordinates: Any, device: Any, num_threads: Any, **options: Any
) -> tuple[Any, ...]:
    given = x, w, target, bias, *options.values()
    x, w, target, bias, *values = bring_to_host("poincare_cross_entropy_with_grad", device, *given)
    options = dict(zip(options, values, strict=True))
    num_threads = check_num_threads(num_threads)
    plan = plan_poincare(x, w, bias, c, coordinates)
    count, classes = len(plan.x), len(plan.planes.w)
    logits = np.empty((count, classes))
    for rows in plan.chunks():
        logits[rows] = plan.logits(rows)[2].value
    by_row = logits.reshape(*plan.shape[:-1], classes)
    loss, g = cross_entropy_with_grad(by_row, target, num_threads=num_threads, **options)
    g = g.reshape(count, classes)
    grad_x = np.zeros(plan.x.shape, plan.dtype)
    sums: list[Any] = [np.zeros(plan.planes.w.shape), np.zeros(classes), 0.0]
    for rows in plan.chunks():
        at = np.arange(count)[rows][(g[rows] != 0).any(axis=1)]  # rows that take no part may hold anything
        if len(at):
            grad_x[at] = in_dtype(_add_gradients(plan, at, g[at], sums), plan.dtype)
    grad_w, grad_bias = (in_dtype(total, plan.dtype) for total in sums[:2])
    grad_x, grad_c = grad_x.reshape(plan.shape), in_dtype(sums[2], np.float64)
    loss = np.asarray(loss).astype(compute_dtype(plan.dtype))[()]
    return loss, grad_x, grad_w, grad_bias if plan.has_bias else None, grad_c[()]


@hand_over_recorded
def poincare_cross_entropy_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    c: float = 1.0,
    coordinates: _Coordinates = "tangent",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> HyperbolicLossResult:
    """Cross-entropy of the logits of `poincare_logits`, and all gradients.

    Parameters
    ----------
    x, w
        As in `poincare_logits`.
    target : array_like of shape (...) or (..., K)
        As in `cross_entropy`.
    bias, c, coordinates
        As in `poincare_logits`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `cross_entropy`.
    upstream, clip_norm, clip_value
        As in `cross_entropy_with_grad`; clipping applies to the gradient of a row's logits.
    device, num_threads
        As in `linear_cross_entropy`; there are no kernels for CUDA.

    Returns
    -------
    HyperbolicLossResult
        loss, grad_x, grad_w, grad_bias, grad_c.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy` and `poincare_logits`.

    Notes
    -----
    Gradients are those of the coordinates, not Riemannian ones, and finite wherever float64 and the dtype can hold
    them: at x = 0, at c = 0 and on a hyperplane too. A class with w = 0 has gradient 0. All is computed in float64; the
    logits of all rows exist, 8 bytes each.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import poincare_cross_entropy_with_grad
    >>> x, w = np.array([[0.5, 0.1], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> result = poincare_cross_entropy_with_grad(x, w, [0, 1], bias=[0.0, 0.5])
    >>> result.loss.round(4), result.grad_x.round(4)
    (np.float64(1.0697), array([[-0.0428,  0.0208],
           [ 1.7616, -1.7616]]))
    """
    result = _run_loss(
        x,
        w,
        target,
        bias=bias,
        c=c,
        coordinates=coordinates,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        upstream=upstream,
        clip_norm=clip_norm,
        clip_value=clip_value,
        device=device,
        num_threads=num_threads,
    )
    return HyperbolicLossResult(*result)
