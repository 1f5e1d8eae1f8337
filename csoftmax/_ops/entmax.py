"""Sparsemax and alpha-entmax, the gradient of both, and their Fenchel-Young losses."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import check_on_device, check_target, raise_bad_label
from .._arguments.layouts import (
    Result,
    Rows,
    batch_shape,
    check_where,
    lay_out_gradient,
    lay_out_rows,
    normalize_axes,
)
from .._arguments.numbers import check_alpha, check_reduction
from .._arguments.places import Place, as_float, place_of
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype
from .cross_entropy import cross_entropy_with_grad
from .softmax import log_softmax, logsumexp, softmax, softmax_vjp

__all__ = [
    "EntmaxLossResult",
    "entmax",
    "entmax_loss",
    "entmax_loss_with_grad",
    "entmax_vjp",
    "sparsemax",
]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
_Reduction = Literal["none", "sum", "mean"]


class EntmaxLossResult(NamedTuple):
    """The result of `entmax_loss_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The loss, as from `entmax_loss`: float64 for float64 and integer x, else float32.
    grad : ndarray of the shape of x
        The gradient of x, in its dtype (float64 for integers).
    """

    loss: Any
    grad: Any


class EntmaxPlan(NamedTuple):
    """A checked call of entmax, or, with a second input, of entmax_vjp."""

    alpha: float
    rows: Rows
    num_threads: Any

    def execute(self) -> Any:
        """Compute, and return the result."""
        rows = self.rows
        arguments = rows.dtype, rows.first, rows.second, rows.result.rows, rows.where, self.alpha
        if not rows.result.place.on_cuda:
            binding.run_entmax(*arguments, self.num_threads)
            return rows.result.finish()
        with rows.first.device:
            _cuda.launch_entmax(*arguments)
            return rows.result.finish()


def plan_entmax(
    x: Any, y: Any, alpha: float, axis: Any, *, gradient: bool, where: Any, out: Any, device: Any, num_threads: Any
) -> EntmaxPlan:
    """Check a call of entmax, or of entmax_vjp, where x is dy."""
    place = place_of(device, x)
    with place.context():
        return EntmaxPlan(alpha, lay_out_rows(place, x, y, axis, where, out, gradient=gradient), num_threads)


class EntmaxLossPlan(NamedTuple):
    """A checked call of entmax_loss or entmax_loss_with_grad; x and target have the class axis last."""

    dtype: int
    x: Any
    target: Any
    alpha: float
    reduction: str
    num_threads: Any
    compute: np.dtype[Any]
    gradient: Result | None
    place: Place

    def execute(self) -> tuple[Any, Any]:
        """Compute, and return the loss and the gradient or None."""
        soft = self.target if self.target.dtype.kind == "f" else None
        rows = None if self.gradient is None else self.gradient.rows
        arrays = self.dtype, as_buffer(self.x), self.target if soft is None else None, soft, rows
        options = self.alpha, binding.REDUCTIONS[self.reduction]
        shape = self.x.shape[:-1] if self.reduction == "none" else ()
        if not self.place.on_cuda:
            loss = np.empty(shape, np.float64)
            binding.run_entmax_loss(*arrays, loss, *options, self.num_threads)
            return self._finish(loss)
        with self.x.device:
            if self.x.size:
                loss = self.place.xp.empty(shape, self.compute)
                _cuda.launch_entmax_loss(*arrays, loss, *options)
            else:  # the sum of no rows is 0; the loss of a row without classes and the mean of no rows are NaN
                is_zero = math.prod(self.x.shape[:-1]) == 0 and self.reduction == "sum"
                loss = self.place.xp.full(shape, 0 if is_zero else math.nan, self.compute)
            return self._finish(loss)

    def reduce(self, losses: Any, grad: Any) -> tuple[Any, Any]:
        """The loss and the gradient, from the losses of the rows and the gradient of their sum."""
        loss = losses
        count = loss.size if self.reduction == "mean" else 1
        if self.reduction != "none":
            with np.errstate(invalid="ignore"):  # the mean of no rows
                loss = loss.sum() / np.float64(count)
        if self.gradient is not None:
            if count != 1:
                grad = (grad.astype(self.compute) / self.compute.type(count)).astype(grad.dtype)
            self.gradient.rows[...] = as_buffer(grad)
        return self._finish(loss.astype(self.compute) if self.place.on_cuda else np.asarray(loss, np.float64))

    def _finish(self, loss: Any) -> tuple[Any, Any]:
        gradient = None if self.gradient is None else self.gradient.finish()
        if self.place.on_cuda:
            return loss, gradient
        with np.errstate(over="ignore", under="ignore"):
            return loss.astype(self.compute)[()], gradient


def plan_entmax_loss(
    x: Any,
    target: Any,
    alpha: float,
    *,
    gradient: bool,
    axis: Any,
    reduction: str,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: Any = None,
) -> EntmaxLossPlan:
    """Check a call of entmax_loss or, with `gradient`, of entmax_loss_with_grad."""
    place = place_of(device, x)
    with place.context():
        x, dtype = as_float("x", x, place)
        axes = normalize_axes(axis, x.ndim)
        compute = compute_dtype(x.dtype)
        labels, soft = check_target(target, x.shape, batch_shape(x, axes), compute, place)
        check_reduction(reduction)
        mask = None if where is None else check_where(where, x.shape, place)
        x, soft, result = lay_out_gradient(x, soft, axes, gradient, out, place, mask)
        target = _check_labels(labels, x.shape[-1], place) if soft is None else _check_labels(soft, x.shape[-1], place)
    return EntmaxLossPlan(dtype, x, target, alpha, reduction, num_threads, compute, result, place)


def _check_labels(target: Any, n_classes: int, place: Place) -> Any:
    """Checked labels; hard labels are copied, so that no other thread can change them after the check."""
    if place.on_cuda:
        check_on_device(target, n_classes, None)
        return target
    is_hard = target.dtype.kind != "f"
    target = target.copy() if is_hard else target
    raise_bad_label(target, n_classes, None)
    return target.astype(np.int64) if is_hard else target


@hand_over_recorded
def sparsemax(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Sparsemax, the Euclidean projection onto the simplex: ``max(x - tau, 0)``, which sums to 1.

    Parameters
    ----------
    x, axis, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of x
        Probabilities, most of which are exactly 0 where the logits are spread.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    `entmax` with ``alpha=2`` (Martins & Astudillo, "From softmax to sparsemax", ICML 2016). Every element is within
    0.5 ULP of the exact result, also in float64. Special values are those of `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.sparsemax(np.array([1.0, 0.5, -1.0]))
    array([0.75, 0.25, 0.  ])
    """
    return entmax(x, 2.0, axis, where=where, out=out, device=device, num_threads=num_threads)


@hand_over_recorded
def entmax(
    x: ArrayLike,
    alpha: float = 1.5,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """alpha-entmax, ``max((alpha - 1) x - tau, 0) ** (1 / (alpha - 1))``, which sums to 1.

    Parameters
    ----------
    x : array_like of shape (...)
        Logits, in one of the dtypes of `softmax`.
    alpha : float, default 1.5
        At least 1 and finite: 1 is `softmax`, 2 is `sparsemax`.
    axis, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of x
        Probabilities. For alpha > 1 they are exactly 0 where the logit is more than ``1 / (alpha - 1)`` below the
        largest.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Defined by Peters, Niculae & Martins, "Sparse sequence-to-sequence models", ACL 2019. A filter keeps the logits that
    can have probability, then Newton's method finds tau (for alpha > 2 the least probability); nothing is sorted.
    Every result is within 0.51 ULP of the exact one, whatever alpha, so that rows sum to 1 within the rounding of their
    elements. The exception is a number so close to the threshold that a change of tau by 2**-90 matters (for alpha > 2:
    a change of the least probability by 2**-90); alpha 1.5 and 2 allow 2**-100. A row with NaN or +inf, or with only
    -inf, is NaN; elements that `where` masks are 0 in every row.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.entmax(np.array([1.0, 0.5, -1.0, -2.0])).round(4)
    array([0.674, 0.326, 0.   , 0.   ])
    """
    alpha = check_alpha(alpha)
    options: dict[str, Any] = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return softmax(x, axis, **options) if alpha == 1 else _run_entmax(x, alpha, axis, **options)


@accept_foreign
@keep_labels()
def _run_entmax(x: Any, alpha: float, axis: Any, **options: Any) -> Any:
    return plan_entmax(x, None, alpha, axis, gradient=False, **options).execute()


@hand_over_recorded
def entmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    alpha: float = 1.5,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of a loss through `entmax`: dL/dx from dL/dy and ``y = entmax(x, alpha)``.

    Parameters
    ----------
    dy : array_like of shape (...)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of ``entmax(x, alpha, axis)``.
    alpha : float, default 1.5
        As in the call of `entmax`.
    axis, where, out, device, num_threads
        As in `softmax_vjp`.

    Returns
    -------
    ndarray of the shape of dy
        ``s * (dy - sum(s * dy) / sum(s))``, ``s = y ** (2 - alpha)`` where y > 0, else 0.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `entmax`.

    Notes
    -----
    Elements with y = 0 are left out, whatever `dy` holds there. With g the difference of `dy` from that of the element
    of the largest s, results are within 0.51 ULP (float64: 4 ULP) and ``2**-51 * s * (|g| + mean of |g| under s)``, the
    effect of rounding s, which only shows where ``g - mean of g`` nearly cancels; alpha 2 has no such term. Weights
    beyond the range of double are allowed (large alpha); a gradient beyond the range of the dtype is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> y = csoftmax.sparsemax(np.array([1.0, 0.5, -1.0]))
    >>> csoftmax.entmax_vjp(np.array([1.0, 0.0, 5.0]), y, alpha=2.0)
    array([ 0.5, -0.5,  0. ])
    """
    alpha = check_alpha(alpha)
    options: dict[str, Any] = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return softmax_vjp(dy, y, axis, **options) if alpha == 1 else _run_entmax_vjp(dy, y, alpha, axis, **options)


@accept_foreign
@keep_labels()
def _run_entmax_vjp(dy: Any, y: Any, alpha: float, axis: Any, **options: Any) -> Any:
    return plan_entmax(dy, y, alpha, axis, gradient=True, **options).execute()


@accept_foreign
@keep_labels(1)
def _run_loss(x: Any, target: Any, alpha: Any, **options: Any) -> tuple[Any, Any]:
    plan = plan_entmax_loss(x, target, check_alpha(alpha), **options)
    return plan.execute() if plan.alpha != 1 else _run_limit(plan)


def _run_limit(plan: EntmaxLossPlan) -> tuple[Any, Any]:
    """The loss at alpha = 1: cross-entropy, or, with soft labels, the Kullback-Leibler divergence."""
    with plan.place.context():
        no_label = 2**64  # no label can equal it, so that nothing is ignored
        loss, grad = cross_entropy_with_grad(
            plan.x, plan.target, reduction="none", ignore_index=no_label, num_threads=plan.num_threads
        )
        if plan.target.dtype.kind == "f":
            loss, grad = _kullback_leibler(plan, loss, grad)
        return plan.reduce(loss, grad)


def _kullback_leibler(plan: EntmaxLossPlan, cross_entropy: Any, grad: Any) -> tuple[Any, Any]:
    """Losses and gradients of rows, from those of cross-entropy, which assumes that the mass of each row is 1."""
    xp = plan.place.xp
    with np.errstate(all="ignore"):
        x, q = plan.x.astype(np.float64), plan.target.astype(np.float64)
        log_p = log_softmax(x, num_threads=plan.num_threads)
        log_q = np.log(xp.where(q > 0, q, 1.0))
        terms = xp.where(q > 0, q * (log_q - log_p) - q, 0.0) + np.exp(log_p)
        left = 1 - q.sum(-1)
        lse = logsumexp(x, num_threads=plan.num_threads)
        loss = np.maximum(terms, 0).sum(-1) + xp.where(left == 0, 0.0, left * (lse - 1))
        if plan.place.on_cuda:  # rows with bad labels are NaN
            loss = xp.where(cross_entropy == cross_entropy, loss, math.nan)
        if plan.place.on_cuda or np.any(left):  # always on a device: testing the masses would wait for it
            grad = (grad + left[..., None] * np.exp(log_p)).astype(grad.dtype)
    return loss, grad


@hand_over_recorded
def entmax_loss(
    x: ArrayLike,
    target: ArrayLike,
    alpha: float = 1.5,
    *,
    axis: _Axis = -1,
    reduction: _Reduction = "mean",
    where: ArrayLike | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Fenchel-Young loss of alpha-entmax: 0 exactly where ``entmax(x)`` is the target's distribution.

    Parameters
    ----------
    x : array_like of shape (..., K)
        Logits, in one of the dtypes of `softmax`; K is the length of `axis`.
    target : array_like
        Labels, integers in the shape of `x` without `axis`; or soft labels, floating-point numbers in the shape of `x`,
        at least 0 and finite.
    alpha : float, default 1.5
        As in `entmax`; 1 is cross-entropy (with soft labels the Kullback-Leibler divergence).
    axis : int, tuple of ints or None, default -1
        Axis or axes of the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the number of rows.
    where, device, num_threads
        As in `softmax`.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer logits, else float32.

    Raises
    ------
    IndexError
        If a label is not a class; the message names the first position and value. On a CUDA device the loss and the
        gradient of such a row are NaN instead, because the call does not wait for the device; with
        ``CSOFTMAX_SYNC_CHECKS=1`` it waits and raises.
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Blondel, Martins & Niculae, "Learning with Fenchel-Young losses", JMLR 2020: ``Omega*(x) + Omega(q) - sum(q * x)``,
    ``Omega(p) = sum(p**alpha - p) / (alpha * (alpha - 1))``. It is computed as the Bregman divergence of q and
    ``entmax(x)`` plus the share of the classes outside the support: all terms are at least 0, so that small losses keep
    their digits, which the difference of large terms in the formula rounds away. For alpha > 1 the loss of a label
    is within 0.51 ULP (float64: 1 ULP, and half an ULP more for each doubling of the rows whose losses a reduction
    adds up), flat rows and near-certain ones included. So is that of soft labels, next to
    ``entmax(x)`` too, but for float64 labels that equal its rounded elements: what the rounding of a power contributes
    remains there, some 1e-45 of losses of 1e-34 (measured). At alpha = 1 the divergence of soft labels is added up in
    float64, with an error of up to 6e-16 times the larger of 1 and the largest abs(x) where the labels sum to 1 (1e-14
    times where they do not): float32 losses above 1e-7 are within 1 ULP, a float64 loss of 1e-3 within some hundred. A
    row that `where` masks completely has loss NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x = np.array([[1.0, 0.5, -1.0], [3.0, 0.0, 0.0]])
    >>> csoftmax.entmax_loss(x, [0, 0], alpha=2.0, reduction="none")
    array([0.0625, 0.    ])
    """
    options = {"axis": axis, "reduction": reduction, "where": where, "device": device, "num_threads": num_threads}
    loss, _ = _run_loss(x, target, alpha, gradient=False, **options)
    return loss


@hand_over_recorded
def entmax_loss_with_grad(
    x: ArrayLike,
    target: ArrayLike,
    alpha: float = 1.5,
    *,
    axis: _Axis = -1,
    reduction: _Reduction = "mean",
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> EntmaxLossResult:
    """`entmax_loss` and its gradient with respect to the logits, ``entmax(x) - q``.

    Parameters
    ----------
    x, target, alpha, axis, reduction, where
        As in `entmax_loss`.
    out : ndarray of the shape and dtype of x, optional
        Array that receives the gradient. It may be `x` itself.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    EntmaxLossResult
        `loss`, as from `entmax_loss`, and `grad`, of the shape and dtype of `x`: the gradient of the reduced loss, or,
        with reduction "none", of the sum of the losses.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `entmax_loss`.

    Notes
    -----
    The gradient of the label is minus the sum of the other probabilities. For alpha > 1 every gradient of labels is
    within 0.51 ULP (with reduction "mean" 1.5, because of the division); with soft labels, of the larger of the two
    numbers whose difference it is (at alpha = 1 within 4 ULP of it).

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.entmax_loss_with_grad(np.array([[1.0, 0.5, -1.0]]), [0], alpha=2.0)
    EntmaxLossResult(loss=np.float64(0.0625), grad=array([[-0.25,  0.25,  0.  ]]))
    """
    options = {"axis": axis, "reduction": reduction, "where": where, "device": device, "num_threads": num_threads}
    return EntmaxLossResult(*_run_loss(x, target, alpha, gradient=True, out=out, **options))
