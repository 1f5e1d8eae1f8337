"""The Fenchel-Young losses of entmax, of labels and of soft labels, with weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import (
    as_label_bits,
    check_ignore_index,
    check_on_device,
    check_target,
    check_weight,
    is_representable,
    raise_bad_label,
)
from .._arguments.layers import scale_products, scale_weights
from .._arguments.layouts import (
    Result,
    batch_shape,
    check_where,
    copy_to,
    lay_out_gradient,
    lay_out_result,
    normalize_axes,
    pieces,
)
from .._arguments.numbers import check_alphas, check_reduction, number_and_rows
from .._arguments.places import DeviceError, Place, as_float, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype
from .cross_entropy import cross_entropy_with_grad
from .softmax import log_softmax, logsumexp

__all__ = ["EntmaxLossResult", "entmax_loss", "entmax_loss_with_grad"]

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


class EntmaxLossPlan(NamedTuple):
    """A checked call of entmax_loss or entmax_loss_with_grad; x and target have the class axis last."""

    dtype: int
    x: Any
    target: Any  # soft labels, or on the CPU int64 labels, -1 for rows that take no part
    alpha: float | Any  # a number, or an array with one for each row
    reduction: str
    num_threads: Any
    compute: np.dtype[Any]
    gradient: Result | None
    place: Place
    weight: Any | None
    sample_weight: Any | None
    ignore_index: int

    @property
    def is_soft(self) -> bool:
        """Whether the labels are distributions."""
        return bool(self.target.dtype.kind == "f")

    def execute(self) -> tuple[Any, Any]:
        """Compute, and return the loss and the gradient or None."""
        labels, soft = (None, self.target) if self.is_soft else (self.target, None)
        rows = None if self.gradient is None else self.gradient.rows
        arrays = self.dtype, as_buffer(self.x), labels, soft, rows
        number, each = number_and_rows(self.alpha, self.x.shape[:-1], 2.0)
        options = number, binding.REDUCTIONS[self.reduction]
        shape = self.x.shape[:-1] if self.reduction == "none" else ()
        if not self.place.on_cuda:
            loss = np.empty(shape, np.float64)
            weights = self.weight, self.sample_weight
            binding.run_entmax_loss(*arrays, loss, *options, self.num_threads, each, *weights)
            return self.finish(loss)
        with self.x.device:
            if self.x.size:
                loss = self.place.xp.empty(shape, self.compute)
                ignore = as_label_bits(self.ignore_index, labels)
                _cuda.launch_entmax_loss(*arrays, loss, *options, each, self.weight, self.sample_weight, ignore)
            else:  # the sum of no rows is 0; the loss of a row without classes and the mean of no rows are NaN
                is_zero = math.prod(self.x.shape[:-1]) == 0 and self.reduction == "sum"
                loss = self.place.xp.full(shape, 0 if is_zero else math.nan, self.compute)
            return self.finish(loss)

    def parts(self) -> Iterator[tuple[Any, Any, Any]]:
        """Indices of parts of x, of their rows and of their classes; Python sees signals between them.

        On a device there is one part, which is all of x.
        """
        last = self.x.ndim - 1
        places = iter([(...,)]) if self.place.on_cuda else pieces(self.x.shape)
        return ((at, at[:last], at[last:]) for at in places)

    def row_factors(self) -> Any:
        """What multiplies the losses of rows, None for 1; 0 also for rows that take no part."""
        xp, factors = self.place.xp, self.sample_weight
        if self.is_soft:
            masses = xp.zeros(self.target.shape[:-1], np.float64)
            for at, rows, classes in self.parts():
                w = 1.0 if self.weight is None else self.weight[classes]
                masses[rows] += (self.target[at].astype(np.float64) * w).sum(-1)
            factors = masses if factors is None else xp.where(factors == 0, 0.0, factors * masses)
        elif self.weight is not None:
            is_class = (self.target >= 0) & (self.target < self.x.shape[-1])
            of_label = self.weight.astype(np.float64)[xp.where(is_class, self.target, 0)]
            factors = of_label if factors is None else factors * of_label
        if not self.is_soft:
            ignored = self.is_ignored()
            if self.place.on_cuda or ignored.any():
                factors = xp.where(ignored, 0.0, 1.0 if factors is None else factors)
        return factors

    def is_ignored(self) -> Any:
        """Which rows have the label that is ignored."""
        if not self.place.on_cuda:
            return self.target < 0
        if not is_representable(self.ignore_index, self.target.dtype):
            return self.place.xp.full(self.target.shape, False, np.bool_)
        return self.target == self.target.dtype.type(self.ignore_index)

    def reduce(self, losses: Any, grad: Any) -> tuple[Any, Any]:
        """The loss and the gradient, from the losses of the rows and the gradient of their sum."""
        xp, factors = self.place.xp, self.row_factors()
        loss: Any = losses.astype(np.float64)
        divisor: Any = loss.size if factors is None else factors.sum()
        scale = xp.full(loss.shape, 1.0, np.float64) if factors is None else factors
        with np.errstate(all="ignore"):
            if factors is not None:
                absent = self._takes_no_part()
                loss = xp.where(absent | ((factors == 0) & (loss == loss)), 0.0, loss * factors)
            if self.reduction == "mean":
                loss, scale = loss.sum() / divisor, scale / divisor
            elif self.reduction == "sum":
                loss = loss.sum()
            if self.gradient is not None:
                if factors is not None:
                    is_zero = absent | (divisor == 0) if self.reduction == "mean" else absent
                    is_zero = xp.broadcast_to(is_zero, factors.shape)
                for at, rows, _ in self.parts():
                    scaled = grad[at].astype(np.float64) * scale[rows][..., None]
                    if factors is not None:
                        scaled = xp.where(is_zero[rows][..., None], 0.0, scaled)
                    self.gradient.rows[at] = as_buffer(scaled.astype(grad.dtype))
        return self.finish(loss.astype(self.compute) if self.place.on_cuda else np.asarray(loss, np.float64))

    def _takes_no_part(self) -> Any:
        """Which rows contribute 0 whatever they hold."""
        absent = self.place.xp.full(self.x.shape[:-1], False, np.bool_) if self.is_soft else self.is_ignored()
        return absent if self.sample_weight is None else absent | (self.sample_weight == 0)

    def finish(self, loss: Any) -> tuple[Any, Any]:
        """The loss in its final form, and the complete gradient or None."""
        gradient = None if self.gradient is None else self.gradient.finish()
        if self.place.on_cuda:
            return loss, gradient
        if self.compute == loss.dtype:
            return loss[()], gradient
        with np.errstate(over="ignore", under="ignore"):
            return loss.astype(self.compute)[()], gradient


def plan_entmax_loss(
    x: Any,
    target: Any,
    alpha: Any,
    *,
    gradient: bool,
    axis: Any,
    reduction: str,
    ignore_index: Any,
    weight: Any,
    sample_weight: Any,
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
        batch = batch_shape(x, axes)
        labels, soft = check_target(target, x.shape, batch, compute, place)
        check_reduction(reduction)
        row_shape = () if type(alpha) is float else tuple(1 if i in axes else n for i, n in enumerate(x.shape))
        alpha = check_alphas(to_host(alpha)[0], row_shape)
        if place.on_cuda and not isinstance(alpha, float) and np.any(alpha == 1):
            what = "losses have no kernel for CUDA where alpha is 1 in some rows only"
            raise DeviceError(f'{what}. device="cpu" computes on the CPU.')
        ignore_index = check_ignore_index(ignore_index)
        mask = None if where is None else check_where(where, x.shape, place)
        x, soft, result = lay_out_gradient(x, soft, axes, gradient, out, place, mask)
        n_classes = x.shape[-1]
        if weight is not None:
            weight = place.xp.ascontiguousarray(check_weight("weight", weight, (n_classes,), compute, place))
        if sample_weight is not None:
            sample_weight = check_weight("sample_weight", sample_weight, batch, np.float64, place)
        if reduction == "mean" and not place.on_cuda:
            weight, sample_weight = _scale(weight, sample_weight, batch)
        target = _check_labels(labels if soft is None else soft, n_classes, ignore_index, place)
    weights = weight, sample_weight, ignore_index
    return EntmaxLossPlan(dtype, x, target, alpha, reduction, num_threads, compute, result, place, *weights)


def _scale(weight: Any, s: Any, batch: tuple[int, ...]) -> tuple[Any, Any]:
    """The weights of a mean, whose scale cancels, in the middle of the range."""
    if weight is not None:
        return scale_products(weight, s, batch)
    return None, s if s is None or not s.size else scale_weights(s)


def _check_labels(target: Any, n_classes: int, ignore_index: int, place: Place) -> Any:
    """Checked labels; hard labels are copied, so that no other thread can change them after the check."""
    if place.on_cuda:
        check_on_device(target, n_classes, ignore_index)
        return target
    if target.dtype.kind == "f":
        raise_bad_label(target, n_classes, None)
        return target
    if target.dtype == np.int64:
        target = labels = target.copy()
    else:
        target = target.copy()
        labels = target.astype(np.int64)
    if 0 <= ignore_index < n_classes or (target.size and not (target.min() >= 0 and target.max() < n_classes)):
        raise_bad_label(target, n_classes, ignore_index)
        if is_representable(ignore_index, target.dtype):
            labels[target == target.dtype.type(ignore_index)] = -1
    return labels


@accept_foreign
@keep_labels(1)
def _run_loss(x: Any, target: Any, alpha: Any, **options: Any) -> tuple[Any, Any]:
    plan = plan_entmax_loss(x, target, alpha, **options)
    if isinstance(plan.alpha, float):
        if plan.alpha != 1:
            return plan.execute()
        with plan.place.context():
            return plan.reduce(*_run_limit(plan))
    is_limit = (plan.alpha == 1).reshape(plan.x.shape[:-1])
    return _run_both_kinds(plan, is_limit) if is_limit.any() else plan.execute()


def _run_limit(plan: EntmaxLossPlan) -> tuple[Any, Any]:
    """Losses and gradients at alpha = 1: cross-entropy, or, with soft labels, the Kullback-Leibler divergence."""
    ignore = plan.ignore_index if plan.place.on_cuda else -1
    loss, grad = cross_entropy_with_grad(
        plan.x, plan.target, reduction="none", ignore_index=ignore, num_threads=plan.num_threads
    )
    return _kullback_leibler(plan, loss, grad) if plan.is_soft else (loss, grad)


def _run_both_kinds(plan: EntmaxLossPlan, is_limit: Any) -> tuple[Any, Any]:
    """The loss and the gradient of rows with alphas of their own, some of which are 1: each kind is a call."""
    factors, shape, alphas = plan.row_factors(), is_limit.shape, np.reshape(plan.alpha, is_limit.shape)
    divisor = 1.0 if plan.reduction != "mean" else is_limit.size if factors is None else factors.sum()
    losses, grad = np.empty(shape, plan.compute), np.empty_like(plan.x)
    if divisor == 0:
        return plan.reduce(np.zeros_like(losses), grad)
    s = np.ones(shape) if plan.sample_weight is None else plan.sample_weight
    for kind in (is_limit, ~is_limit):
        x, alpha = plan.x[kind], alphas[kind]
        result = lay_out_result(np.empty_like(x), x, (x.ndim - 1,), False, plan.place)
        part = plan._replace(x=x, target=plan.target[kind], alpha=alpha, sample_weight=s[kind] / divisor)
        part = part._replace(reduction="none", gradient=result)
        losses[kind], grad[kind] = part.reduce(*_run_limit(part)) if kind is is_limit else part.execute()
    if plan.gradient is not None:
        plan.gradient.rows[...] = as_buffer(grad)
    loss: Any = losses.astype(np.float64)
    return plan.finish(loss if plan.reduction == "none" else np.asarray(loss.sum()))


def _kullback_leibler(plan: EntmaxLossPlan, cross_entropy: Any, grad: Any) -> tuple[Any, Any]:
    """Losses and gradients of rows, from those of cross-entropy, which assumes that the mass of each row is 1."""
    xp = plan.place.xp
    with np.errstate(all="ignore"):
        x = xp.empty(plan.x.shape, np.float64)
        loss, mass = (xp.zeros(x.shape[:-1], np.float64) for _ in range(2))
        copy_to(x, plan.x)
        log_p = log_softmax(x, num_threads=plan.num_threads)
        for at, rows, _ in plan.parts():
            q, of_q = plan.target[at].astype(np.float64), log_p[at]
            log_q = np.log(xp.where(q > 0, q, 1.0))
            terms = xp.where(q > 0, q * (log_q - of_q) - q, 0.0) + np.exp(of_q)
            loss[rows] += np.maximum(terms, 0).sum(-1)
            mass[rows] += q.sum(-1)
        left = 1 - mass
        lse = logsumexp(x, num_threads=plan.num_threads)
        loss = loss + xp.where(left == 0, 0.0, left * (lse - 1))
        if plan.place.on_cuda:  # rows with bad labels are NaN
            loss = xp.where(cross_entropy == cross_entropy, loss, math.nan)
        if plan.place.on_cuda or np.any(left):  # always on a device: testing the masses would wait for it
            for at, rows, _ in plan.parts():
                grad[at] = (grad[at] + left[rows][..., None] * np.exp(log_p[at])).astype(grad.dtype)
    return loss, grad


@hand_over_recorded
def entmax_loss(
    x: ArrayLike,
    target: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: _Axis = -1,
    reduction: _Reduction = "mean",
    ignore_index: SupportsIndex = -100,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
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
    alpha : float or array_like, default 1.5
        As in `entmax`; 1 is cross-entropy (with soft labels the Kullback-Leibler divergence).
    axis : int, tuple of ints or None, default -1
        Axis or axes of the classes.
    reduction : {"mean", "sum", "none"}, default "mean"
        The mean divides by the sum of the factors of the rows, which without weights is the number of rows that are not
        ignored. Where that sum is 0, the mean is NaN and the gradient 0.
    ignore_index : int, default -100
        Rows with this label are left out: their logits are not read, and their loss is 0. It does not apply to soft
        labels.
    weight : array_like of shape (K,), optional
        Class weights w, at least 0 and finite, else 1. The loss of a row, and its gradient, have the factor w[target],
        with soft labels q ``sum(w * q)``.
    sample_weight : array_like, broadcastable to the rows, optional
        Weights of rows, at least 0 and finite, another factor. A row of weight 0 is left out.
    where, device, num_threads
        As in `softmax`.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer logits, else float32.

    Raises
    ------
    IndexError
        If a label is neither a class nor `ignore_index`; the message names the first position and value. On a CUDA
        device the loss and the gradient of such a row are NaN instead, because the call does not wait for the device;
        with ``CSOFTMAX_SYNC_CHECKS=1`` it waits and raises.
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Blondel, Martins & Niculae, "Learning with Fenchel-Young losses", JMLR 2020: ``Omega*(x) + Omega(q) - sum(q * x)``,
    ``Omega(p) = sum(p**alpha - p) / (alpha * (alpha - 1))``. It is computed as the Bregman divergence of q and
    ``entmax(x)`` plus the share of the classes outside the support: all terms are at least 0, so that small losses keep
    their digits, which the difference of large terms in the formula rounds away. For alpha > 1 the loss of a label
    is within 0.51 ULP (float64: 1 ULP, and half an ULP more for each doubling of the rows whose losses a reduction
    adds up), flat rows and near-certain ones included. So is that of soft labels (float64: 1.5 more, because of the
    factor), next to
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
    options |= {"ignore_index": ignore_index, "weight": weight, "sample_weight": sample_weight}
    loss, _ = _run_loss(x, target, alpha, gradient=False, **options)
    return loss


@hand_over_recorded
def entmax_loss_with_grad(
    x: ArrayLike,
    target: ArrayLike,
    alpha: ArrayLike = 1.5,
    *,
    axis: _Axis = -1,
    reduction: _Reduction = "mean",
    ignore_index: SupportsIndex = -100,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> EntmaxLossResult:
    """`entmax_loss` and its gradient with respect to the logits, ``entmax(x) - q``.

    Parameters
    ----------
    x, target, alpha, axis, reduction, ignore_index, weight, sample_weight, where
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
    numbers whose difference it is (at alpha = 1 within 4 ULP of it; in float64 1.5 more where the labels do not sum to
    exactly 1, because of their factor).

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.entmax_loss_with_grad(np.array([[1.0, 0.5, -1.0]]), [0], alpha=2.0)
    EntmaxLossResult(loss=np.float64(0.0625), grad=array([[-0.25,  0.25,  0.  ]]))
    """
    options = {"axis": axis, "reduction": reduction, "where": where, "device": device, "num_threads": num_threads}
    options |= {"ignore_index": ignore_index, "weight": weight, "sample_weight": sample_weight}
    return EntmaxLossResult(*_run_loss(x, target, alpha, gradient=True, out=out, **options))
