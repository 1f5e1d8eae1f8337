"""The Kullback-Leibler divergence of two softmax distributions, and its gradient, from logits."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import check_upstream, check_weight
from .._arguments.layouts import (
    Result,
    apart_from,
    axis_last,
    batch_shape,
    check_out,
    check_where,
    lay_out_result,
    may_share_memory,
    normalize_axes,
)
from .._arguments.numbers import check_flag, check_reduction, check_temperatures
from .._arguments.places import as_float, check_kernels, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype

__all__ = ["KLResult", "kl_divergence", "kl_divergence_with_grad"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


class KLResult(NamedTuple):
    """The result of `kl_divergence_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The reduced divergence: float64 for float64 and integer logits, else float32.
    grad : ndarray of the shape of y
        The gradient with respect to `y`, in its dtype (float64 for integers); `out`, if it was given.
    """

    loss: Any
    grad: Any


class DivergencePlan(NamedTuple):
    """A checked call of kl_divergence or, with a gradient, of kl_divergence_with_grad."""

    dtype: int
    shape: tuple[int, ...]  # of x as it was given, with length 1 along the axis
    x: Any  # the class axis last; bfloat16 as its bits
    y: Any
    where: Any | None
    gradient: Result | None
    temperature: float | Any  # a number, or an array with one for each row
    sample_weight: Any | None
    upstream: Any | None
    reduction: str
    num_threads: Any
    storage: np.dtype[Any]

    def execute(self) -> tuple[Any, Any]:
        """Compute, and return the loss in float64 and the gradient or None."""
        batch = self.x.shape[:-1]
        loss = np.empty(batch if self.reduction == "none" else ())
        number: Any = self.temperature
        each = None
        if not isinstance(number, float):
            number, each = 1.0, number.reshape(batch)
        rows = None if self.gradient is None else self.gradient.rows
        arrays = self.x, self.y, rows, loss, self.where
        options = number, each, self.sample_weight, self.upstream, binding.REDUCTIONS[self.reduction]
        binding.run_divergence(self.dtype, *arrays, *options, self.num_threads)
        return loss, None if self.gradient is None else self.gradient.finish()


def plan_divergence(
    x: Any,
    y: Any,
    axis: Any,
    *,
    gradient: bool,
    temperature: Any,
    where: Any,
    reduction: str = "none",
    sample_weight: Any = None,
    upstream: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: Any = None,
) -> DivergencePlan:
    """Check a call of kl_divergence or, with `gradient`, of kl_divergence_with_grad; out is that of the gradient."""
    place = place_of(device, x)
    if place.on_cuda:
        check_kernels("kl_divergence")
    if device is not None:
        x, y, temperature, where, sample_weight, upstream = to_host(x, y, temperature, where, sample_weight, upstream)
    x, dtype = as_float("x", x, place)
    y, y_dtype = as_float("y", y, place)
    if y_dtype != dtype or y.shape != x.shape:
        raise (TypeError if y_dtype != dtype else ValueError)(
            f"y has dtype {y.dtype} and shape {y.shape}; x has dtype {x.dtype} and shape {x.shape}: "
            "they must be the same"
        )
    check_reduction(reduction)
    axes = normalize_axes(axis, x.ndim)
    batch = batch_shape(x, axes)
    row_shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    temperature = check_temperatures(temperature, row_shape, gradient)
    if sample_weight is not None:
        sample_weight = check_weight("sample_weight", sample_weight, batch, np.float64, place)
    if upstream is not None:
        upstream = check_upstream(upstream, reduction, batch, place)
    if where is not None:
        where = check_where(where, x.shape, place)
    array = None
    if gradient:
        if out is not None:
            check_out(out, x.shape, x.dtype, place)
            where = where.copy() if where is not None and may_share_memory(out, where) else where
            x, y = apart_from(x, out), apart_from(y, out)
        array = place.result_like(x) if out is None else out
    if x.ndim == 0:
        x, y, where = x.reshape(1), y.reshape(1), None if where is None else where.reshape(1)
    return DivergencePlan(
        dtype,
        row_shape,
        as_buffer(axis_last(x, axes)),
        as_buffer(axis_last(y, axes)),
        None if where is None else axis_last(where, axes),
        None if array is None else lay_out_result(array, x, axes, out is not None, place),
        temperature,
        sample_weight,
        upstream,
        reduction,
        num_threads,
        x.dtype,
    )


@accept_foreign  # no labels: with keepdims a sum of one column has the shape of x, but is no column
def _run_divergence(x: Any, y: Any, axis: Any, *, keepdims: bool, out: Any, **options: Any) -> Any:
    plan = plan_divergence(x, y, axis, gradient=False, **options)
    shape = plan.shape if keepdims else plan.x.shape[:-1]
    if out is not None:
        check_out(out, shape, plan.storage)
    loss, _ = plan.execute()
    result = np.empty(shape, plan.storage) if out is None else out
    with np.errstate(over="ignore", under="ignore"):
        result[...] = loss.reshape(shape)
    return result if result.ndim or out is not None else result[()]


@accept_foreign
@keep_labels(1)
def _run_with_grad(x: Any, y: Any, axis: Any, **options: Any) -> tuple[Any, Any]:
    plan = plan_divergence(x, y, axis, gradient=True, **options)
    loss, gradient = plan.execute()
    with np.errstate(over="ignore", under="ignore"):
        return loss.astype(compute_dtype(plan.storage), copy=False)[()], gradient


@binding.quick
@hand_over_recorded
def kl_divergence(
    x: ArrayLike,
    y: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    keepdims: bool = False,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Kullback-Leibler divergence ``KL(softmax(x / T) || softmax(y / T))`` in nats, from the logits of both.

    Parameters
    ----------
    x : array_like of shape (...)
        Logits of p, in distillation the teacher's, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of x
        Logits of q, the student's.
    axis : int, tuple of ints or None, default -1
        The axis or axes of the classes.
    temperature : float or array_like, default 1.0
        T of both, as in `softmax`.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out on both sides; if none is left, the result is 0.
    keepdims : bool, default False
        If True, the reduced axes stay in the result with length 1.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray or scalar
        ``sum(p * (log(p) - log(q)))``: `x` without `axis`, in the dtype of `x` (float64 for integers); `out` if given.
        At least 0; a class of p = 0 contributes 0, and q = 0 < p gives +inf.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`. There are no kernels for CUDA.

    Notes
    -----
    The terms that are added, ``p * (log(p) - log(q)) - p + q``, are never negative, so that a small divergence keeps
    its digits. With ``w = log(p) - log(q)``, the error is at most 4 ULP of ``sum(p * abs(w))`` and, where p is close to
    q, 4 eps of ``sum(p * abs(w) * (1 + abs(log(p)) + abs(log(q))))`` more; the divergence of equal logits is exactly 0.
    NaN or +inf on either side, or a row with only -inf, gives NaN. Kullback & Leibler, "On information and
    sufficiency", Annals of Mathematical Statistics 22 (1951).

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.kl_divergence([[2.0, 1.0], [0.0, 0.0]], [[1.0, 2.0], [1e-8, 0.0]])
    array([4.62117157e-01, 1.25000000e-17])
    """
    return _run_divergence(
        x,
        y,
        axis,
        temperature=temperature,
        where=where,
        keepdims=check_flag("keepdims", keepdims),
        out=out,
        device=device,
        num_threads=num_threads,
    )


@binding.quick_returning(KLResult)
@hand_over_recorded
def kl_divergence_with_grad(
    x: ArrayLike,
    y: ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    sample_weight: ArrayLike | None = None,
    upstream: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> KLResult:
    """`kl_divergence`, reduced over the rows, and its gradient with respect to y, the student.

    Parameters
    ----------
    x, y, axis
        As in `kl_divergence`.
    temperature : float or array_like, default 1.0
        T of both, positive and finite; as in `softmax`. The gradient has the factor 1 / T.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out on both sides, and their gradient is 0.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean is ``sum(s * loss) / sum(s)``, s the sample weights; it is NaN, with a gradient of 0, where they sum to
        0. PyTorch's ``batchmean`` agrees without weights.
    sample_weight : array_like, broadcastable to the rows, optional
        s, at least 0 and finite. A row of weight 0 is left out.
    upstream : float, or with reduction "none" array_like that broadcasts to the rows; default 1.0
        Factor of the gradient.
    out : ndarray of the shape and dtype of y, optional
        Array that receives the gradient. It may be `x` or `y`.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    KLResult
        `loss`, the reduced divergence (float64 for float64 and integer logits, else float32), and `grad`, the gradient
        of the reduced loss, ``(q - p) / T`` times the row's share, or, with reduction "none", of the sum of the losses,
        times `upstream`.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `kl_divergence`; nothing has been written.

    Notes
    -----
    The gradient's error is at most 4 ULP of the larger of p and q times the row's factor, where that larger one is a
    normal number: at least 2^-126, with float64 2^-1022. Smaller ones may lose digits or count as 0, which shows where
    `upstream` is huge. Hinton, Vinyals & Dean, "Distilling the knowledge in a neural network" (2015).

    Examples
    --------
    >>> import csoftmax
    >>> loss, grad = csoftmax.kl_divergence_with_grad([[2.0, 1.0]], [[1.0, 2.0]])
    >>> loss, grad.round(4)
    (np.float64(0.4621171572600097), array([[-0.4621,  0.4621]]))
    """
    return KLResult(
        *_run_with_grad(
            x,
            y,
            axis,
            temperature=temperature,
            where=where,
            reduction=reduction,
            sample_weight=sample_weight,
            upstream=upstream,
            out=out,
            device=device,
            num_threads=num_threads,
        )
    )
