"""Cross-entropy of a linear layer and its gradients, without the matrix of all logits."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Protocol, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import (
    LossOptions,
    as_label_bits,
    check_loss_options,
    check_on_device,
    check_target,
    is_representable,
    raise_bad_label,
)
from .._arguments.layers import check_bias, check_layer, count_chunk_rows, scale_products, scale_weights
from .._arguments.numbers import check_count, check_non_negative, check_num_threads
from .._arguments.places import Place, as_float, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.apart import run_apart
from .._cpu.dtypes import compute_dtype, dtype_code
from .._cpu.linear import Layer, kernel_threads

__all__ = ["LinearCrossEntropyResult", "linear_cross_entropy", "linear_cross_entropy_with_grad"]


class LinearCrossEntropyResult(NamedTuple):
    """The result of `linear_cross_entropy_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The loss: float64 for float64 and integer x, else float32.
    grad_x : ndarray of shape (..., D)
        The gradient of x, in the dtype of x (float64 for integers).
    grad_w : ndarray of shape (K, D)
        The gradient of w, in the same dtype.
    grad_bias : ndarray of shape (K,), or None
        The gradient of the bias; None without one.
    """

    loss: Any
    grad_x: Any
    grad_w: Any
    grad_bias: Any


class LinearPlan(NamedTuple):
    """A checked call: all rows that take part, two-dimensional."""

    dtype: int
    x: Any  # (N, D)
    w: Any  # (K, D)
    bias: Any | None  # in the compute type
    labels: Any | None
    soft: Any | None
    options: LossOptions  # sample_weight, upstream and temperatures for the rows of x
    kept: Any | None  # indices of these rows among those of the caller; None if all take part
    divisor: float
    batch: tuple[int, ...]
    compute: np.dtype[Any]
    ignore: int | None  # on CUDA: the ignored label as 64 bits, since the kernel checks labels; kept, divisor unused
    place: Place
    chunk_rows: int  # rows whose logits exist at a time


def plan_linear(
    x: Any,
    w: Any,
    target: Any,
    bias: Any,
    *,
    reduction: str,
    chunk_bytes: Any,
    device: str | None = None,
    **options: Any,
) -> LinearPlan:
    """Check the arguments of linear_cross_entropy, and drop the rows that take no part."""
    place = place_of(device, x)
    chunk_bytes = None if chunk_bytes is None else check_count("chunk_bytes", chunk_bytes, 1, "an int or None")
    if not place.on_cuda and device is not None:
        x, w, target, bias, *values = to_host(x, w, target, bias, *options.values())
        options = dict(zip(options, values, strict=True))
    with place.context():
        return _lay_out_linear(place, x, w, target, bias, reduction, chunk_bytes, options)


def _lay_out_linear(
    place: Place, x: Any, w: Any, target: Any, bias: Any, reduction: str, chunk_bytes: int | None, options: Any
) -> LinearPlan:
    x, dtype = as_float("x", x, place)
    w, _ = as_float("w", w, place)
    check_layer(x, w)
    n, compute, batch = len(w), compute_dtype(x.dtype), x.shape[:-1]
    if bias is not None:
        with np.errstate(over="ignore", under="ignore"):
            bias = check_bias(place.array("bias", bias), n).astype(compute)
    labels, soft = check_target(target, (*batch, n), batch, compute, place)
    checked = check_loss_options(n, batch, compute, reduction, place=place, row_shape=(*batch, 1), **options)
    rows = math.prod(batch)
    by_row = checked.sample_weight, checked.upstream
    s, upstream = (None if v is None else place.xp.ascontiguousarray(v).reshape(rows) for v in by_row)
    t = None if checked.temperatures is None else checked.temperatures.reshape(rows)
    checked = checked._replace(sample_weight=s, upstream=upstream, temperatures=t)
    plan = LinearPlan(dtype, x, w, bias, labels, soft, checked, None, 1.0, batch, compute, None, place, 1)
    plan = _flat_on_cuda(plan) if place.on_cuda else keep_rows(plan, reduction)
    return plan._replace(chunk_rows=count_chunk_rows(len(plan.x), n, x.dtype, chunk_bytes))


def keep_rows(plan: LinearPlan, reduction: str) -> LinearPlan:
    """The plan with checked labels, reduced to the rows that take part, and with the divisor of the mean."""
    n, rows, options = len(plan.w), math.prod(plan.batch), plan.options
    s, upstream, t = options.sample_weight, options.upstream, options.temperatures
    labels: Any = plan.labels
    soft: Any = plan.soft
    is_kept = np.ones(rows, bool) if s is None else s != 0
    if labels is None:
        raise_bad_label(soft, n, 0)
        soft = soft.reshape(rows, n)
    else:
        labels = labels.copy()  # so that no other thread can change labels that have been checked
        raise_bad_label(labels, n, options.ignore_index)
        labels = labels.reshape(rows)
        if is_representable(options.ignore_index, labels.dtype):
            is_kept &= labels != labels.dtype.type(options.ignore_index)
        labels = labels.astype(np.int64, copy=False)
    kept = None if is_kept.all() else np.flatnonzero(is_kept)
    x = run_apart(plan.x.nbytes, plan.x.reshape, rows, plan.x.shape[-1])
    if kept is not None:
        x, labels, soft, s, upstream, t = (
            None if v is None else run_apart(v.nbytes, v.__getitem__, kept) for v in (x, labels, soft, s, upstream, t)
        )
    divisor = 1.0
    if reduction == "mean":
        if not (options.clip_norm or options.clip_value):
            if options.weight is not None:
                weight, s = scale_products(options.weight, s, (len(x),))
                options = options._replace(weight=weight)
            elif s is not None and s.size:
                s = scale_weights(s)
        divisor = _divisor(len(x), labels, soft, s, options.weight)
    options = options._replace(sample_weight=s, upstream=upstream, temperatures=t)
    return plan._replace(x=x, labels=labels, soft=soft, options=options, kept=kept, divisor=divisor)


def _divisor(rows: int, labels: Any, soft: Any, s: Any, weight: Any) -> float:
    """The sum over the rows of s * sum(w * q), which a mean divides by."""
    mass = np.ones(rows) if s is None else s
    if soft is not None and weight is None:
        mass = mass * soft.sum(-1, dtype=np.float64)
    elif soft is not None:
        mass = mass * np.einsum("ij,j->i", soft, weight, dtype=np.float64)
    elif weight is not None:
        mass = mass * weight[labels]
    return float(np.sum(mass, dtype=np.float64))


def _flat_on_cuda(plan: LinearPlan) -> LinearPlan:
    """The plan with contiguous rows. No row is dropped, because nothing on the device is read."""
    rows, n = math.prod(plan.batch), len(plan.w)
    labels, soft, ignore_index = plan.labels, plan.soft, plan.options.ignore_index
    check_on_device(soft if labels is None else labels, n, ignore_index)
    x, labels, soft = (
        None if a is None else plan.place.xp.ascontiguousarray(a).reshape(rows, *rest)
        for a, rest in ((plan.x, plan.x.shape[-1:]), (labels, ()), (soft, (n,)))
    )
    return plan._replace(x=x, labels=labels, soft=soft, ignore=as_label_bits(ignore_index, labels))


class LogitShift(Protocol):
    """A term that a loss adds to the logits of a linear layer, from its weights and the labels."""

    def add_to(self, logits: Any, rows: slice) -> None:
        """Add to the logits of a chunk of rows."""

    def take(self, grad: Any, rows: slice) -> None:
        """Collect what the gradient of the weights needs from that of a chunk's logits."""

    def finish(self, grad_w: Any) -> None:
        """Add the part of the shift to the gradient of the weights."""


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@np.errstate(all="ignore")
def run_linear_on_cpu(
    plan: LinearPlan,
    gradient: bool,
    reduction: str,
    filter_eps: float,
    num_threads: int | None,
    shift: LogitShift | None = None,
) -> tuple[Any, Any, Any, Any]:
    """Loss and gradients of a checked call; shift: added to its logits."""
    options, (rows, classes) = plan.options, (len(plan.x), len(plan.w))
    # the kernel reduces nothing, because the divisor of the mean is known
    coefficient: Any = np.ones(rows) if options.upstream is None else options.upstream
    coefficient = coefficient / plan.divisor
    layer = Layer(plan.x, plan.w, plan.bias, plan.compute, gradient)
    dtype = dtype_code(plan.compute)
    losses = np.zeros(rows)
    buffer = binding.empty((plan.chunk_rows, classes), plan.compute)
    num_threads = kernel_threads(buffer.size, num_threads)
    # a mean that divides by 0 has a gradient of 0 whatever its rows hold, and 0 times infinity would not be 0
    divides = plan.divisor != 0
    for begin in range(0, rows if divides else 0, plan.chunk_rows):
        chunk = slice(begin, min(begin + plan.chunk_rows, rows))
        logits = buffer[: chunk.stop - begin]
        layer.forward(chunk, logits)
        if shift is not None:
            shift.add_to(logits, chunk)
        labels, soft, sample_weight, temperatures = (
            None if v is None else v[chunk]
            for v in (plan.labels, plan.soft, options.sample_weight, options.temperatures)
        )
        upstream = coefficient[chunk]
        bad = binding.run_cross_entropy(
            dtype,
            logits,
            logits if gradient else None,
            losses[chunk],
            labels,
            None,
            soft,
            options.weight,
            sample_weight,
            upstream,
            *options.factors,
            binding.REDUCTIONS["none"],
            num_threads,
            temperatures,
            options.softcap,
        )
        if bad is not None:
            raise RuntimeError("target was changed by another thread during the call")
        if gradient:
            limit = filter_eps * np.abs(upstream)[:, None]
            layer.backward(chunk, logits, layer.significant_classes(logits, limit) if filter_eps else None)
            if shift is not None:
                shift.take(logits, chunk)
    if gradient and not divides:
        layer.clear()
    elif gradient and shift is not None and rows:
        shift.finish(layer.grad_w)
    loss = reduce_losses(plan, losses, reduction)
    return (loss, *spread_gradients(plan, layer)) if gradient else (loss, None, None, None)


def reduce_losses(plan: LinearPlan, losses: Any, reduction: str) -> Any:
    """The loss in the form of the result, from the losses of the rows that take part."""
    if reduction == "none":
        loss: Any = np.zeros(math.prod(plan.batch))
        loss[slice(None) if plan.kept is None else plan.kept] = losses
        loss = loss.reshape(plan.batch)
    else:
        loss = np.sum(losses) / np.float64(plan.divisor)
        loss = loss if loss == loss else np.nan  # on x86 the NaN of 0 / 0 is negative
    return np.asarray(loss).astype(plan.compute)[()]


def spread_gradients(plan: LinearPlan, layer: Layer) -> tuple[Any, Any, Any]:
    """The gradients in the dtypes and shapes of the caller's arrays."""
    grad_x, grad_w, grad_bias = layer.gradients()
    if plan.kept is not None:
        every_row = np.zeros((math.prod(plan.batch), plan.x.shape[1]), plan.x.dtype)
        every_row[plan.kept] = grad_x
        grad_x = every_row
    return grad_x.reshape(*plan.batch, plan.x.shape[1]), grad_w, grad_bias


@accept_foreign
@keep_labels(1)
def _run_linear(
    x: Any, w: Any, target: Any, *, bias: Any, gradient: bool, filter_eps: Any, num_threads: Any, **options: Any
) -> tuple[Any, Any, Any, Any]:
    plan = plan_linear(x, w, target, bias, **options)
    filter_eps = check_non_negative("filter_eps", filter_eps)
    num_threads = check_num_threads(num_threads)
    reduction = options["reduction"]
    if not plan.place.on_cuda:
        return run_linear_on_cpu(plan, gradient, reduction, filter_eps, num_threads)
    from .._cuda.linear import run_linear_loss

    return run_linear_loss(plan, gradient=gradient, reduction=reduction, chunk_rows=plan.chunk_rows)


@hand_over_recorded
def linear_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    chunk_bytes: SupportsIndex | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of the logits ``x @ w.T + bias``, which are never materialised as a whole.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class.
    target : array_like of shape (...) or (..., K)
        As in `cross_entropy`.
    bias : array_like of shape (K,), optional
        Added to the logits.
    chunk_bytes : int, optional
        Upper bound on the bytes of the logits that exist at a time, which are those of 1 to 1024 rows. The default is
        64 MiB (48 MiB for half types).
    filter_eps : float, default 0.0
        Affects gradients only; see `linear_cross_entropy_with_grad`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap, reduction, device,
    num_threads
        As in `cross_entropy`; num_threads does not bound the BLAS (threadpoolctl does).

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer input, else float32.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy`.

    Notes
    -----
    The logits are as exact as NumPy's BLAS makes them; the bounds of `cross_entropy` hold for the steps after it.
    Results repeat with the same BLAS, number of BLAS threads and `chunk_bytes`. Ignored rows are dropped before the
    product.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.linear_cross_entropy(np.array([[1.0, 0.0]]), np.array([[1.0, 5.0], [3.0, 5.0]]), [1]).round(4)
    np.float64(0.1269)
    """
    result = _run_linear(
        x,
        w,
        target,
        gradient=False,
        bias=bias,
        chunk_bytes=chunk_bytes,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        reduction=reduction,
        filter_eps=filter_eps,
        device=device,
        num_threads=num_threads,
    )
    return result[0]


@hand_over_recorded
def linear_cross_entropy_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    chunk_bytes: SupportsIndex | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    filter_eps: float = 0.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> LinearCrossEntropyResult:
    """Cross-entropy of the logits ``x @ w.T + bias`` and its gradients, without the matrix of all logits.

    Parameters
    ----------
    x, w, target, bias, chunk_bytes
        As in `linear_cross_entropy`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap, reduction
        As in `cross_entropy`.
    upstream, clip_norm, clip_value
        As in `cross_entropy_with_grad`; clipping applies to the gradient of a row's logits.
    filter_eps : float, default 0.0
        A class is left out of a chunk's products if its gradient of the row losses does not exceed this limit in any
        row of the chunk, which saves time if few classes matter. On a CUDA device no class is left out.
    device, num_threads
        As in `linear_cross_entropy`.

    Returns
    -------
    LinearCrossEntropyResult
        loss, grad_x of the shape of `x`, grad_w (K, D), grad_bias (K,) or None; in the dtype of `x` (float64 for
        integers). Sums are computed in the compute type (float32 for half types), chunk by chunk in order.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy`.

    Notes
    -----
    Besides the results a call needs `chunk_bytes` and a panel of 4 MiB, for half types also `grad_w`, a panel of `w`
    and a chunk's rows of `x` and `grad_x` in float32, and with `filter_eps` another panel. On a CUDA device it needs
    `chunk_bytes`, one more `x` and two more `grad_w`, and for half types `w` in float32.

    With c the factor of a row (upstream over the mean's divisor), `filter_eps` changes grad_x of the row by at most
    ``filter_eps * abs(c) * sum(abs(w), axis=0)``, grad_w of a class by at most ``filter_eps * sum(abs(c)[:, None] *
    abs(x), axis=0)``.

    Gradients in the forward pass, chunk by chunk, are an idea of Liger Kernel (Hsu et al. 2024); the filter is one of
    Cut Cross-Entropy (Wijmans et al. 2024).

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x, w = np.array([[1.0, 0.0]]), np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> csoftmax.linear_cross_entropy_with_grad(x, w, [1], bias=[0.0, 0.0]).grad_w.round(4)
    array([[ 0.1192,  0.    ],
           [-0.1192,  0.    ]])
    """
    result = _run_linear(
        x,
        w,
        target,
        gradient=True,
        bias=bias,
        chunk_bytes=chunk_bytes,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        softcap=softcap,
        reduction=reduction,
        upstream=upstream,
        clip_norm=clip_norm,
        clip_value=clip_value,
        filter_eps=filter_eps,
        device=device,
        num_threads=num_threads,
    )
    return LinearCrossEntropyResult(*result)
