"""g-softmax: the softmax of logits and a cost between classes, with its log-sum-exp, gradient and loss."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import LossOptions, check_loss_options, check_target, is_representable, raise_bad_label
from .._arguments.layouts import axis_last, batch_shape, normalize_axes
from .._arguments.numbers import check_flag, check_num_threads
from .._arguments.places import as_float, bring_to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu.dtypes import compute_dtype
from .cross_entropy import CrossEntropyResult
from .geometric_cost import Cost, as_cost, run_task
from .geometric_rows import WARNED_FRAMES, GeometricRows, lay_out_geometric, put, warn_of_gaps

__all__ = ["g_cross_entropy_with_grad", "g_logsumexp", "g_softmax", "g_softmax_vjp"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


@accept_foreign
@keep_labels()
@np.errstate(all="ignore")
def _run_g_softmax(
    x: Any,
    cost: Any,
    axis: Any,
    *,
    temperature: Any,
    where: Any,
    out: Any,
    return_gap: Any,
    device: Any,
    num_threads: Any,
) -> Any:
    x, cost, temperature, where = bring_to_host("g_softmax", device, x, cost, temperature, where)
    return_gap, num_threads = check_flag("return_gap", return_gap), check_num_threads(num_threads)
    rows = lay_out_geometric(x, None, as_cost(cost), axis, temperature, where, out)
    gaps = np.zeros(len(rows.x))
    for chunk in rows.chunks():
        p, _, gaps[chunk], _ = rows.solve(chunk, num_threads)
        put(rows.written[chunk], p)
    warn_of_gaps(gaps)
    result = rows.finish()
    return (result, gaps.reshape(rows.batch)[()]) if return_gap else result


@hand_over_recorded
def g_softmax(
    x: ArrayLike,
    cost: Cost | ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    return_gap: bool = False,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Softmax of logits and a cost between classes: close classes share their probability, far ones compete.

    The minimiser over distributions p of ``sum(p[i] * p[j] * exp(-(x[i] + x[j] + C[i, j]) / 2))``, which is unique.

    Parameters
    ----------
    x : array_like of shape (..., K)
        Logits, in one of the dtypes of `softmax`; K is the length of `axis`.
    cost : Cost or array_like of shape (K, K)
        Cost of confusing each two classes; a matrix is checked and prepared in each call, a `Cost` once.
    axis : int, tuple of ints or None, default -1
        Axis or axes of the classes.
    temperature : float or array_like, default 1.0
        At least 0; the function is that of ``x / temperature``. An array broadcasts to the rows, with length 1 along
        `axis`. 0 and infinity are the limits.
    where : array_like of bool, optional
        Broadcasts against `x`; elements where it is False take no part: their probability is 0.
    out : ndarray of the shape and dtype of x, optional
        Array that receives the probabilities. It may be `x` itself.
    return_gap : bool, default False
        Whether to return the certificate too.
    device : {None, "cpu"}, optional
        "cpu" also accepts CuPy arrays, and the result is on the CPU; there are no kernels for CUDA.
    num_threads : int, optional
        Upper bound on the number of threads, which changes no bit.

    Returns
    -------
    ndarray of the shape of x
        Probabilities, many of which are exactly 0.
    gap : float64, scalar or ndarray of the shape of the rows
        Only with `return_gap`: the relative duality gap of each row, before rounding to the dtype; at most 1e-13.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`; ValueError also if `cost` is not one, or is of another number of classes.

    Warns
    -----
    RuntimeWarning
        If the gap of a row exceeds 1e-13; the message names rows.

    Notes
    -----
    Mensch, Blondel & Peyré, "Geometric losses for distributional learning", ICML 2019. With infinite costs it is
    `softmax`, with costs of 0 the argmax, which ties share evenly. It is computed in float64 by an active set method:
    with ``K = exp(-C / 2)`` and ``u = exp(x / 2)``, w minimises ``w @ K @ w / 2 - u @ w`` over w >= 0, and p is
    ``u * w / (u @ w)``. Special values are those of `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import Cost, g_softmax
    >>> ages = Cost(points=[20, 30, 40, 50], sigma=10)
    >>> g_softmax(np.array([1.0, 1.5, 1.0, 0.0]), ages).round(3)
    array([0.243, 0.529, 0.12 , 0.108])
    """
    return _run_g_softmax(
        x,
        cost,
        axis,
        temperature=temperature,
        where=where,
        out=out,
        return_gap=return_gap,
        device=device,
        num_threads=num_threads,
    )


@accept_foreign
@np.errstate(all="ignore")
def _run_g_logsumexp(
    x: Any,
    cost: Any,
    axis: Any,
    *,
    keepdims: Any,
    temperature: Any,
    where: Any,
    out: Any,
    return_gap: Any,
    device: Any,
    num_threads: Any,
) -> Any:
    x, cost, temperature, where = bring_to_host("g_logsumexp", device, x, cost, temperature, where)
    return_gap, num_threads = check_flag("return_gap", return_gap), check_num_threads(num_threads)
    keepdims = check_flag("keepdims", keepdims)
    rows = lay_out_geometric(x, None, as_cost(cost), axis, temperature, where, out, keepdims=keepdims)
    gaps = np.zeros(len(rows.x))
    for chunk in rows.chunks():
        _, excess, gaps[chunk], top = rows.solve(chunk, num_threads, probabilities=False)
        put(rows.written[chunk], np.where(np.isfinite(top), top + excess, top))
    warn_of_gaps(gaps, WARNED_FRAMES - 1)  # nothing keeps labels here
    result = rows.finish()
    return (result, gaps.reshape(rows.batch)[()]) if return_gap else result


@hand_over_recorded
def g_logsumexp(
    x: ArrayLike,
    cost: Cost | ArrayLike,
    axis: _Axis = -1,
    *,
    keepdims: bool = False,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    return_gap: bool = False,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Log-sum-exp of logits and a cost between classes, whose gradient is `g_softmax`.

    ``-log(min(sum(p[i] * p[j] * exp(-(x[i] + x[j] + C[i, j]) / 2))))`` over distributions p.

    Parameters
    ----------
    x, cost, axis
        As in `g_softmax`.
    keepdims : bool, default False
        Whether the axes of the classes stay, with length 1.
    temperature, where
        As in `g_softmax`.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result.
    return_gap, device, num_threads
        As in `g_softmax`.

    Returns
    -------
    scalar, or ndarray of the shape of the rows
        In the dtype of `x` (float64 for integers): between the largest logit and `logsumexp`.
    gap : float64, scalar or ndarray of the shape of the rows
        Only with `return_gap`: the relative duality gap; the exact result is at most ``-log(1 - gap)`` away.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `g_softmax`.

    Warns
    -----
    RuntimeWarning
        As in `g_softmax`.

    Notes
    -----
    The sum of the largest logit and a term that is at least 0, which is exact relative to itself where the class of
    the largest logit has a probability. A row with nothing left is -inf.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import Cost, g_logsumexp
    >>> ages = Cost(points=[20, 30, 40, 50], sigma=10)
    >>> g_logsumexp(np.array([1.0, 1.5, 1.0, 0.0]), ages).round(4)
    np.float64(1.6715)
    """
    return _run_g_logsumexp(
        x,
        cost,
        axis,
        keepdims=keepdims,
        temperature=temperature,
        where=where,
        out=out,
        return_gap=return_gap,
        device=device,
        num_threads=num_threads,
    )


@accept_foreign
@keep_labels()
@np.errstate(all="ignore")
def _run_g_softmax_vjp(
    dy: Any, y: Any, cost: Any, axis: Any, *, temperature: Any, out: Any, device: Any, num_threads: Any
) -> Any:
    dy, y, cost, temperature = bring_to_host("g_softmax_vjp", device, dy, y, cost, temperature)
    num_threads = check_num_threads(num_threads)
    rows = lay_out_geometric(dy, y, as_cost(cost), axis, temperature, None, out, gradient=True)
    assert rows.y is not None
    for chunk in rows.chunks():
        dx = np.array(rows.x[chunk], np.float64, order="C")
        p = np.array(rows.y[chunk], np.float64, order="C")
        run_task("differentiate", rows.cost, p, num_threads, dy=dx, y=dx)
        put(rows.written[chunk], dx / rows.temperature_of(chunk))
    return rows.finish()


@hand_over_recorded
def g_softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    cost: Cost | ArrayLike,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of a loss through `g_softmax`: dL/dx from dL/dy and ``y = g_softmax(x, cost)``.

    Parameters
    ----------
    dy : array_like of shape (..., K)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of `g_softmax`.
    cost, axis
        As in the call of `g_softmax`.
    temperature : float or array_like, default 1.0
        As in the call of `g_softmax`, positive and finite.
    out : ndarray of the shape and dtype of dy, optional
        Array that receives the gradient. It may be `dy` or `y`.
    device, num_threads
        As in `g_softmax`.

    Returns
    -------
    ndarray of the shape of dy
        dL/dx; 0 where y is 0, where `dy` is not read.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `g_softmax`.

    Notes
    -----
    With M the coupling of y with itself, ``M[i, j] = w[i] * K[i, j] * w[j]`` with row sums y on its support, the
    Jacobian is ``(diag(y) + diag(y) @ inv(M) @ diag(y)) / 2 - outer(y, y)``. w is found by scaling (Knight, Ruiz &
    Uçar 2014), then one system of the size of the support is solved. Classes of cost 0 to each other count as one,
    whose gradient is shared as their probability is; that is one of several subgradients where their logits are equal.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import Cost, g_softmax, g_softmax_vjp
    >>> ages = Cost(points=[20, 30, 40, 50], sigma=10)
    >>> y = g_softmax(np.array([1.0, 1.5, 1.0, 0.0]), ages)
    >>> g_softmax_vjp(np.array([0.0, 1.0, 0.0, 0.0]), y, ages).round(3)
    array([-0.704,  1.43 , -0.88 ,  0.155])
    """
    return _run_g_softmax_vjp(
        dy, y, cost, axis, temperature=temperature, out=out, device=device, num_threads=num_threads
    )


class _Loss(NamedTuple):
    """A checked call of the loss; labels or soft labels by row."""

    rows: GeometricRows
    labels: Any | None
    soft: Any | None
    is_kept: Any  # rows that take part
    options: LossOptions
    divisor: float
    compute: np.dtype[Any]


def _plan_loss(
    x: Any, target: Any, cost: Any, *, axis: Any, temperature: Any, reduction: Any, out: Any, **options: Any
) -> _Loss:
    x, _ = as_float("x", x)
    cost = as_cost(cost)
    axes = normalize_axes(axis, x.ndim)
    batch, compute = batch_shape(x, axes) if x.ndim else (), compute_dtype(x.dtype)
    labels, soft = check_target(target, x.shape, batch, np.float64)
    n, rows = len(cost), math.prod(batch)
    checked = check_loss_options(n, batch, np.float64, reduction, z_loss=0.0, temperature=1.0, **options)
    by_row = checked.sample_weight, checked.upstream
    s, upstream = (np.ones(rows) if v is None else np.array(v, np.float64).reshape(rows) for v in by_row)
    is_kept = s != 0
    if labels is not None:
        labels = labels.copy()  # so that no other thread can change labels that have been checked
        raise_bad_label(labels, n, checked.ignore_index)
        labels = labels.reshape(rows)
        if is_representable(checked.ignore_index, labels.dtype):
            is_kept &= labels != labels.dtype.type(checked.ignore_index)
        labels = np.where(is_kept, labels, 0).astype(np.int64)
    else:
        raise_bad_label(soft, n, 0)
        soft = axis_last(soft.reshape(1) if soft.ndim == 0 else soft, axes)
        soft = np.array(soft, np.float64).reshape(rows, n)
    laid_out = lay_out_geometric(x, None, cost, axis, temperature, None, out, gradient=True)
    weight = checked.weight
    mass = _mass(labels, soft, weight)
    divisor = float(np.add.reduce((s * mass)[is_kept])) if reduction == "mean" else 1.0
    return _Loss(
        laid_out, labels, soft, is_kept, checked._replace(sample_weight=s, upstream=upstream), divisor, compute
    )


def _mass(labels: Any, soft: Any, weight: Any) -> Any:
    """The sum over classes of w * q of each row."""
    if labels is not None:
        return np.ones(len(labels)) if weight is None else weight[labels] if len(weight) else np.zeros(len(labels))
    return np.add.reduce(soft if weight is None else soft * weight, axis=1)


def _soft_labels(plan: _Loss, rows: slice) -> Any:
    """Labels as distributions, smoothed and weighted: w * q."""
    n, smoothing, weight = len(plan.rows.cost), plan.options.label_smoothing, plan.options.weight
    if plan.soft is not None:
        q = plan.soft[rows].copy()
    else:
        assert plan.labels is not None
        q = np.zeros((len(plan.labels[rows]), n))
        q[np.arange(len(q)), plan.labels[rows]] = 1
    if smoothing:
        q = (1 - smoothing) * q + smoothing / n
    return q if weight is None else q * weight


def _only_class(plan: _Loss, rows: slice) -> tuple[Any, Any, Any]:
    """The class that has all of the mass of each row, or -1; that mass; and the distributions of the others."""
    if plan.labels is not None and not plan.options.label_smoothing:
        labels = plan.labels[rows]
        return labels, _mass(labels, None, plan.options.weight), None
    q = _soft_labels(plan, rows)
    mass = np.add.reduce(q, axis=1)
    is_only = np.count_nonzero(q, axis=1) <= 1
    return np.where(is_only, q.argmax(axis=1) if q.shape[1] else 0, -1), mass, q


def _loss_of_chunk(plan: _Loss, rows: slice, num_threads: Any) -> tuple[Any, Any, Any]:
    """Losses and gradients of some rows, without sample weights and upstream; and gaps."""
    x, top = plan.rows.logits(rows)
    label, mass, q = _only_class(plan, rows)
    count = len(x)
    every = np.arange(count)
    # below the largest logit, after the division by T; logits without maximum are not used: they are NaN or infinite
    below = x.max(axis=1, keepdims=True, initial=-math.inf) - x
    p, excess, gap = x, np.full(count, math.nan), np.full(count, math.nan)
    run_task("solve", plan.rows.cost, x, num_threads, y=p, excess=excess, gap=gap)
    hard = np.maximum(label, 0)
    is_finite = np.isfinite(top)
    with_label = excess + below[every, hard] if x.shape[1] else np.full(count, math.nan)
    losses = np.where(is_finite, np.where(mass == 0, 0, mass * with_label), math.nan)
    others = p.copy()
    if x.shape[1]:
        others[every, hard] = 0
        others[every, hard] = -np.add.reduce(others, axis=1)
    gradients = mass[:, None] * others
    if q is not None and (label < 0).any():
        spread = np.flatnonzero(label < 0)
        distribution = q[spread] / mass[spread, None]
        omega = np.empty(len(spread))
        run_task("measure", plan.rows.cost, distribution, num_threads, excess=omega)
        terms = np.where(q[spread] > 0, distribution * below[spread], 0)
        value = np.maximum(np.add.reduce(terms, axis=1) + excess[spread] + omega, 0)
        losses[spread] = np.where(is_finite[spread], mass[spread] * value, math.nan)
        gradients[spread] = mass[spread, None] * p[spread] - q[spread]
    return losses, gradients, gap


@accept_foreign
@keep_labels(1)
@np.errstate(all="ignore")
def _run_g_loss(
    x: Any, target: Any, cost: Any, *, reduction: Any, device: Any, num_threads: Any, **options: Any
) -> Any:
    given = x, target, cost, *options.values()
    x, target, cost, *values = bring_to_host("g_cross_entropy_with_grad", device, *given)
    options = dict(zip(options, values, strict=True))
    num_threads = check_num_threads(num_threads)
    plan = _plan_loss(x, target, cost, reduction=reduction, **options)
    s: Any = plan.options.sample_weight
    upstream: Any = plan.options.upstream
    count = len(plan.rows.x)
    losses, gaps = np.zeros(count), np.zeros(count)
    for chunk in plan.rows.chunks():
        kept = plan.is_kept[chunk]
        values, gradients, gaps[chunk] = _loss_of_chunk(plan, chunk, num_threads)
        losses[chunk] = np.where(kept, s[chunk] * values, 0)
        factor = (s[chunk] * upstream[chunk] / plan.divisor)[:, None] / plan.rows.temperature_of(chunk)
        gradients *= factor
        gradients[~kept] = 0
        if plan.divisor == 0:
            gradients[...] = 0
        put(plan.rows.written[chunk], gradients)
    warn_of_gaps(np.where(plan.is_kept, gaps, 0))
    if reduction == "none":
        loss: Any = losses.reshape(plan.rows.batch)
    else:
        loss = np.add.reduce(losses) / np.float64(plan.divisor)
        loss = loss if loss == loss else math.nan  # on x86 the NaN of 0 / 0 is negative
    return np.asarray(loss).astype(plan.compute)[()], plan.rows.finish()


@hand_over_recorded
def g_cross_entropy_with_grad(
    x: ArrayLike,
    target: ArrayLike,
    cost: Cost | ArrayLike,
    *,
    axis: _Axis = -1,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    temperature: ArrayLike = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrossEntropyResult:
    """Loss of g-softmax and labels, and its gradient: 0 exactly where `g_softmax` is the label's distribution.

    Parameters
    ----------
    x, cost
        As in `g_softmax`.
    target : array_like
        Labels, integers in the shape of `x` without `axis`; or soft labels, floating-point numbers in the shape of `x`,
        at least 0 and finite.
    axis
        As in `g_softmax`.
    weight, sample_weight, label_smoothing, ignore_index
        As in `cross_entropy`.
    temperature : float or array_like, default 1.0
        As in `g_softmax`, positive and finite.
    reduction : {"mean", "sum", "none"}, default "mean"
        As in `cross_entropy`.
    upstream : array_like, default 1.0
        As in `cross_entropy_with_grad`.
    out : ndarray of the shape and dtype of x, optional
        Array that receives the gradient. It may be `x` itself.
    device, num_threads
        As in `g_softmax`.

    Returns
    -------
    CrossEntropyResult
        loss, and grad of the shape and dtype of `x`.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy`; ValueError also if `cost` is not one, or is of another number of classes.

    Warns
    -----
    RuntimeWarning
        As in `g_softmax`.

    Notes
    -----
    The Fenchel-Young loss of the same paper as `g_softmax`: with a row's ``q``, smoothed, then times the class
    weights, ``Q = sum(q)`` and ``z = x / temperature``, the loss is
    ``Q * (g_logsumexp(z) + omega(q / Q)) - sum(q * z)`` and its gradient ``Q * g_softmax(z) - q``. ``omega`` is 0 for
    one class alone, else ``2 * sum(q * log(K @ w))`` with ``w * (K @ w) = q``, minus an entropy that knows the cost: a
    label of two close classes is less uncertain than one of two far ones. A label's loss is the sum of two terms that
    are at least 0, its gradient minus the sum of the others: both keep their digits where they are small.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import Cost, g_cross_entropy_with_grad
    >>> ages = Cost(points=[20, 30, 40, 50], sigma=10)
    >>> loss, grad = g_cross_entropy_with_grad(np.array([[1.0, 1.5, 1.0, 0.0]]), [1], ages)
    >>> loss.round(4), grad.round(3)
    (np.float64(0.1715), array([[ 0.243, -0.471,  0.12 ,  0.108]]))
    """
    result = _run_g_loss(
        x,
        target,
        cost,
        axis=axis,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        temperature=temperature,
        reduction=reduction,
        upstream=upstream,
        out=out,
        device=device,
        num_threads=num_threads,
    )
    return CrossEntropyResult(*result)
