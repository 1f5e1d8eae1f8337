"""Softmax over the candidates of a batch, for two-tower models."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import check_upstream, check_weight, refuse_smoothing
from .._arguments.layers import count_chunk_rows, scale_weights
from .._arguments.negatives import as_ids, check_correction, check_log_q
from .._arguments.numbers import (
    check_count,
    check_flag,
    check_num_threads,
    check_reduction,
    check_temperatures,
    number_and_rows,
)
from .._arguments.places import as_array, as_float, check_kernels, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.apart import multiply
from .._cpu.dtypes import compute_dtype, dtype_code
from .._cpu.linear import kernel_threads

CHUNK_BYTES = 8 << 20  # default size of a chunk's logits: each chunk adds once to the gradient of y

__all__ = ["InBatchLossResult", "in_batch_softmax_loss", "in_batch_softmax_loss_with_grad"]


class InBatchLossResult(NamedTuple):
    """The result of `in_batch_softmax_loss_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The loss: float64 for float64 and integer x, else float32.
    grad_x : ndarray of shape (..., D)
        The gradient of x, in the dtype of x (float64 for integers).
    grad_y : ndarray of shape (M, D)
        The gradient of y, in the same dtype.
    """

    loss: Any
    grad_x: Any
    grad_y: Any


class InBatchPlan(NamedTuple):
    """A checked call; `kept` are the rows whose sample weight is not 0."""

    x: Any  # (N, D)
    y: Any  # (M, D)
    target: Any  # int64 (N,)
    ids: Any | None
    mask: Any | None  # bool (N, M)
    log_q: Any | None  # of each candidate, subtracted from its logits after the division by the temperature
    corrects_target: bool
    scale: Any | None
    upstream: Any | None
    temperature: float
    temperatures: Any | None  # (N,), which replace temperature
    kept: Any
    divisor: float
    batch: tuple[int, ...]
    compute: np.dtype[Any]
    chunk_rows: int


def plan_in_batch(
    x: Any,
    y: Any,
    *,
    target: Any,
    ids: Any,
    log_q: Any,
    mask: Any,
    correction: Any,
    symmetric: Any,
    sample_weight: Any,
    temperature: Any,
    label_smoothing: Any,
    reduction: Any,
    upstream: Any,
    chunk_bytes: Any,
    device: str | None,
) -> InBatchPlan:
    """Check the arguments of in_batch_softmax_loss."""
    place = place_of(device, x)
    if place.on_cuda:
        check_kernels("in_batch_softmax_loss")
    if device is not None:
        x, y, target, ids, log_q, mask, sample_weight, upstream, temperature = to_host(
            x, y, target, ids, log_q, mask, sample_weight, upstream, temperature
        )
    x, _ = as_float("x", x)
    y, _ = as_float("y", y)
    if x.ndim == 0 or y.ndim != 2 or x.shape[-1] != y.shape[1]:
        raise ValueError(f"x has shape {x.shape} and y {y.shape}; allowed are (..., D) and (M, D)")
    if x.dtype != y.dtype:
        raise TypeError(f"y has dtype {y.dtype}, x has dtype {x.dtype}: they must be the same")
    batch, m, compute = x.shape[:-1], len(y), compute_dtype(x.dtype)
    n = math.prod(batch)
    x = x.reshape(n, x.shape[-1])
    if check_flag("symmetric", symmetric) and (target is not None or n != m):
        raise ValueError(f"symmetric needs as many candidates as rows and no target, got {n} rows and {m} candidates")
    check_correction(correction)
    check_reduction(reduction)
    chunk_bytes = None if chunk_bytes is None else check_count("chunk_bytes", chunk_bytes, 1, "an int or None")
    refuse_smoothing(label_smoothing)
    t, each = number_and_rows(check_temperatures(temperature, (*batch, 1), True), batch, 1.0)
    if each is not None and symmetric:
        if (each != each[:1]).any():
            raise ValueError("symmetric needs one temperature for all rows: candidates, which become rows, have none")
        t, each = (float(each.flat[0]) if each.size else 1.0), None
    labels = _check_target(target, batch, m)
    s = None if sample_weight is None else check_weight("sample_weight", sample_weight, batch, float)
    factor = None if upstream is None else check_upstream(upstream, reduction, batch)
    s, factor = (None if v is None else np.ascontiguousarray(v).reshape(n) for v in (s, factor))
    kept = np.arange(n) if s is None else np.flatnonzero(s)
    if reduction == "mean" and s is not None and s.size:
        s = scale_weights(s)
    divisor = (float(n) if s is None else float(np.sum(s))) if reduction == "mean" else 1.0
    shift = None
    if log_q is not None and correction != "none":
        needed = f"one value for each of {m} candidates"
        shift = check_log_q("log_q", log_q, (m,), lambda at: f"candidate {at[0]}", needed)
    return InBatchPlan(
        x,
        y,
        labels,
        None if ids is None else _check_ids(ids, m),
        None if mask is None else _check_mask(mask, batch, m),
        shift,
        correction == "ranking",
        s,
        factor,
        t,
        None if each is None else each.reshape(n),
        kept,
        divisor,
        batch,
        compute,
        count_chunk_rows(n, m, x.dtype, chunk_bytes or CHUNK_BYTES),
    )


def _check_target(target: Any, batch: tuple[int, ...], m: int) -> Any:
    n = math.prod(batch)
    if target is None:
        if m < n:
            raise ValueError(f"y has {m} rows, x {n}: without target, row i of x belongs to row i of y")
        return np.arange(n)
    labels = as_ids("target", target)
    if labels.shape not in (batch, (n,)):
        raise ValueError(f"target has shape {labels.shape}; {batch}, one candidate for each row, is needed")
    bad = (labels < 0) | (labels >= m)
    if bad.any():
        at = ", ".join(map(str, np.unravel_index(int(bad.argmax()), labels.shape)))
        raise IndexError(f"target[{at}] is {labels[bad][0]}: the candidates are 0 to {m - 1}")
    return labels.reshape(n)


def _check_ids(ids: Any, m: int) -> Any:
    given = as_array("ids", ids)
    if given.dtype.kind not in "iuUS" or given.shape != (m,):
        raise ValueError(
            f"ids has shape {given.shape} and dtype {given.dtype}; one id for each of {m} candidates, an integer or a "
            "string, is needed"
        )
    return np.unique(given, return_inverse=True)[1].reshape(m)  # small integers, which are fast to compare


def _check_mask(mask: Any, batch: tuple[int, ...], m: int) -> Any:
    given, n = as_array("mask", mask), math.prod(batch)
    if given.dtype != np.bool_:
        raise TypeError(f"mask must be boolean, got dtype {given.dtype}")
    if given.shape not in ((*batch, m), (n, m)):
        raise ValueError(f"mask has shape {given.shape}; {(*batch, m)} is needed")
    return given.reshape(n, m)


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@np.errstate(all="ignore")
def _run_direction(plan: InBatchPlan, gradient: bool, num_threads: int | None) -> tuple[Any, Any, Any]:
    """Row losses, and the gradients of x and y in the compute type, of the softmax of each row over the candidates."""
    compute, (n, d), m = plan.compute, plan.x.shape, len(plan.y)
    y = plan.y.astype(compute, copy=False)
    is_finite = np.isfinite(y).all(axis=1)
    others = None if is_finite.all() else np.flatnonzero(~is_finite)
    losses = np.zeros(n)
    grad_x = np.zeros((n, d), compute) if gradient else None
    grad_y = np.zeros((m, d), compute) if gradient else None
    coefficient = (np.ones(n) if plan.upstream is None else plan.upstream) / plan.divisor
    buffer = binding.empty((min(plan.chunk_rows, n), m), compute)
    of_chunk = np.empty((m, d), compute) if gradient and plan.chunk_rows < n else None
    for begin in range(0, len(plan.kept) if plan.divisor != 0 else 0, plan.chunk_rows):
        rows = plan.kept[begin : begin + plan.chunk_rows]
        logits, target = buffer[: len(rows)], plan.target[rows]
        x = plan.x[rows].astype(compute, copy=False)
        multiply(x, y.T, logits)
        t: Any = plan.temperature if plan.temperatures is None else plan.temperatures[rows, None]
        at = np.arange(len(rows)), target
        _correct(plan, logits, rows, at, None if plan.log_q is None else (plan.log_q * t).astype(compute))
        row_losses = np.empty(len(rows))
        binding.run_cross_entropy(
            dtype_code(compute),
            logits,
            logits if gradient else None,
            row_losses,
            target,
            *(None, None, None),
            None if plan.scale is None else plan.scale[rows],
            coefficient[rows],
            *(plan.temperature, 0.0, 0.0, 0.0, 0.0),
            binding.REDUCTIONS["none"],
            kernel_threads(logits.size, num_threads),
            None if plan.temperatures is None else plan.temperatures[rows],
        )
        losses[rows] = row_losses
        if grad_x is not None and grad_y is not None:
            grad_x[rows] = multiply(logits, y) if others is None else _multiply_parts(logits, y, others)
            if begin == 0:
                multiply(logits.T, x, grad_y)
            else:
                grad_y += multiply(logits.T, x, of_chunk)
    return losses, grad_x, grad_y


def _multiply_parts(factors: Any, y: Any, others: Any) -> Any:
    """The product of factors and candidates, of which `others` are not finite: where their factor is 0 they add 0.

    Where an infinity or NaN has another factor, a product of ones and zeros finds it.
    """
    finite = y.copy()
    finite[others] = np.where(np.isfinite(y[others]), y[others], 0)
    product = multiply(factors, finite)
    factors, rest = np.take(factors, others, axis=1), y[others]
    for sign in (1, -1):
        for is_chosen, value in ((rest == np.inf, sign * np.inf), (rest == -np.inf, -sign * np.inf)):
            if is_chosen.any():
                product[_has_pair(sign * factors > 0, is_chosen, y.dtype)] += value
    is_nan = np.isnan(rest)
    if is_nan.any():
        product[_has_pair(factors != 0, is_nan, y.dtype)] = np.nan
    return product


def _has_pair(rows: Any, columns: Any, dtype: Any) -> Any:
    """For bool (n, k) and (k, d): whether any k is true in both."""
    return multiply(rows.astype(dtype), columns.astype(dtype)) > 0


def _correct(plan: InBatchPlan, logits: Any, rows: Any, at: Any, shift: Any) -> None:
    """Subtract the shifts of the candidates, and set those that are no negatives of their row to -inf."""
    own = logits[at]
    if shift is not None:
        logits -= shift
        if plan.corrects_target:
            own = logits[at]
    if plan.ids is not None:
        logits[plan.ids[plan.target[rows], None] == plan.ids] = -np.inf
    if plan.mask is not None:
        logits[plan.mask[rows]] = -np.inf
    logits[at] = own


def _mirror(plan: InBatchPlan) -> InBatchPlan:
    """The plan of each candidate's own row among the rows; those of weight 0 are no candidates either."""
    kept = plan.kept
    mask = None if plan.mask is None else plan.mask[np.ix_(kept, kept)].T
    ids, scale, upstream = (None if v is None else v[kept] for v in (plan.ids, plan.scale, plan.upstream))
    each = np.arange(len(kept))
    return plan._replace(
        x=plan.y[kept], y=plan.x[kept], target=each, ids=ids, mask=mask, log_q=None, scale=scale, upstream=upstream,
        kept=each,
    )  # fmt: skip


@accept_foreign
@keep_labels(1)
def _run_in_batch(x: Any, y: Any, *, gradient: bool, num_threads: Any, **options: Any) -> tuple[Any, Any, Any]:
    plan = plan_in_batch(x, y, **options)
    num_threads = check_num_threads(num_threads)
    losses, grad_x, grad_y = _run_direction(plan, gradient, num_threads)
    if options["symmetric"]:
        others, other_y, other_x = _run_direction(_mirror(plan), gradient, num_threads)
        losses[plan.kept] += others
        losses /= 2
        if gradient:
            grad_x[plan.kept] += other_x
            grad_y[plan.kept] += other_y
            grad_x, grad_y = grad_x / 2, grad_y / 2
    loss: Any = losses.reshape(plan.batch)
    if options["reduction"] != "none":
        loss = math.nan if plan.divisor == 0 else np.sum(losses) / plan.divisor
        loss = loss if loss == loss else math.nan
    loss = np.asarray(loss).astype(plan.compute)[()]
    if not gradient:
        return loss, None, None
    grad_x = grad_x.reshape(*plan.batch, plan.x.shape[1])
    return loss, grad_x.astype(plan.x.dtype, copy=False), grad_y.astype(plan.x.dtype, copy=False)


@hand_over_recorded
def in_batch_softmax_loss(
    x: ArrayLike,
    y: ArrayLike,
    *,
    target: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    log_q: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    correction: Literal["ranking", "partition", "none"] = "ranking",
    symmetric: bool = False,
    sample_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    label_smoothing: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    chunk_bytes: SupportsIndex | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of each row's own candidate among the candidates of the batch.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features of N rows, such as users, in one of the dtypes of `softmax`.
    y : array_like of shape (M, D) and the dtype of x
        Candidates, such as items: first those of the rows, then any further ones.
    target : array_like of int of shape (...), optional
        The candidate of each row; the default is candidate i for row i.
    ids : array_like of int or str of shape (M,), optional
        Identities of the candidates. Candidates that are the same as the row's own one are no negatives of the row.
    log_q : array_like of shape (M,), optional
        Logarithm of the expected count of each candidate in a batch. For "ranking" any constant cancels, so that the
        logarithms of the candidates' frequencies suffice; for "partition" it must be ``log((N - 1) p)``. None: no
        correction.
    mask : array_like of bool of shape (..., M), optional
        True where a candidate is another positive of the row, and so no negative. Own candidates always take part.
    correction : {"ranking", "partition", "none"}, default "ranking"
        As in `sampled_softmax_loss`.
    symmetric : bool, default False
        The mean of this loss and of that of each candidate's own row among the rows (Radford et al. 2021), which log_q,
        a property of the candidates, does not correct. Needs M = N and no target.
    sample_weight, reduction, device, num_threads
        As in `cross_entropy`. With symmetric, a row of weight 0 is no candidate either. There are no kernels for CUDA:
        CuPy arrays need device="cpu".
    temperature : float, or array_like that broadcasts to (..., 1), default 1.0
        As in `cross_entropy`, also a number for each row; with symmetric these must be equal.
    label_smoothing : float, default 0.0
        Must be 0: smoothing needs the logits of all classes, of which a batch has few.
    chunk_bytes : int, optional
        Upper bound on the bytes of the logits that exist at a time, which are those of 1 to 1024 rows; the default is
        8 MiB.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer input, else float32.

    Raises
    ------
    IndexError
        If a target is no candidate.
    DeviceError
        If the call would compute on a CUDA device.
    TypeError, ValueError, MemoryError
        As in `linear_cross_entropy`.

    Notes
    -----
    The logits are ``x @ y.T / temperature``, less log_q (Yi et al. 2019). Candidates that take no part have the logit
    -inf, so that they have no influence however small the others are.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> users, items = np.eye(3), np.eye(3)[[0, 1, 1]]
    >>> csoftmax.in_batch_softmax_loss(users, items, ids=[7, 8, 8], reduction="none").round(4)
    array([0.5514, 0.3133, 0.6931])
    """
    return _run_in_batch(
        x,
        y,
        gradient=False,
        target=target,
        ids=ids,
        log_q=log_q,
        mask=mask,
        correction=correction,
        symmetric=symmetric,
        sample_weight=sample_weight,
        temperature=temperature,
        label_smoothing=label_smoothing,
        reduction=reduction,
        upstream=None,
        chunk_bytes=chunk_bytes,
        device=device,
        num_threads=num_threads,
    )[0]


@hand_over_recorded
def in_batch_softmax_loss_with_grad(
    x: ArrayLike,
    y: ArrayLike,
    *,
    target: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    log_q: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    correction: Literal["ranking", "partition", "none"] = "ranking",
    symmetric: bool = False,
    sample_weight: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    label_smoothing: float = 0.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    chunk_bytes: SupportsIndex | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> InBatchLossResult:
    """The loss of `in_batch_softmax_loss` and its gradients.

    Parameters
    ----------
    x, y, target, ids, log_q, mask, correction, symmetric, chunk_bytes
        As in `in_batch_softmax_loss`.
    sample_weight, temperature, label_smoothing, reduction, device, num_threads
        As in `in_batch_softmax_loss`.
    upstream : float or array_like, default 1.0
        As in `cross_entropy_with_grad`.

    Returns
    -------
    InBatchLossResult
        loss, grad_x of the shape of x, grad_y (M, D), in the dtype of x (float64 for integers).

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `in_batch_softmax_loss`.

    Notes
    -----
    Sums are computed in the compute type (float32 for half types), chunk by chunk in order.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> result = csoftmax.in_batch_softmax_loss_with_grad(np.eye(2), np.eye(2))
    >>> result.grad_y.round(4)
    array([[-0.1345,  0.1345],
           [ 0.1345, -0.1345]])
    """
    results = _run_in_batch(
        x,
        y,
        gradient=True,
        target=target,
        ids=ids,
        log_q=log_q,
        mask=mask,
        correction=correction,
        symmetric=symmetric,
        sample_weight=sample_weight,
        temperature=temperature,
        label_smoothing=label_smoothing,
        reduction=reduction,
        upstream=upstream,
        chunk_bytes=chunk_bytes,
        device=device,
        num_threads=num_threads,
    )
    return InBatchLossResult(*results)
