"""Cross-entropy of a linear layer whose classes are divided among the ranks of a group."""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.kinds import label_like
from .._arguments.labels import as_label_bits, check_loss_options, check_target, raise_bad_label
from .._arguments.layers import check_bias, check_layer, count_chunk_rows
from .._arguments.numbers import check_count, check_flag, check_non_negative, check_num_threads, check_reduction
from .._arguments.places import as_array, as_float
from .._cpu import binding
from .._cpu.apart import multiply
from .._cpu.dtypes import compute_dtype
from .._ops.linear_cross_entropy import LinearCrossEntropyResult
from .agreement import as_name, describe
from .devices import as_native_on, check_device
from .groups import UNKNOWN, Collectives, Header, Layout, Pending, as_group, check_status, enter, fail_on_all
from .losses import run_loss, scale_over, upstream_value
from .merge import order_of
from .row_sums import RowSums
from .rows import give_result, known
from .terms import BLOCK, shift

__all__ = ["linear_cross_entropy", "linear_cross_entropy_with_grad"]


class _Layer(NamedTuple):
    """A checked call of this rank."""

    x: Any  # (N, D)
    w: Any  # (k, D)
    bias: Any | None
    target: Any  # (N,) or (N, k)
    is_soft: bool
    batch: tuple[int, ...]
    sample_weight: Any | None  # (N,)
    upstream: Any | None  # (N,)
    weight: Any | None
    temperatures: Any | None  # (N, 1)
    compute: np.dtype[Any]

    def panels(self, first: int) -> list[slice]:
        """Classes from one multiple of 4096 to the next, so that products have the same shapes in every shard."""
        stop = first + len(self.w)
        bounds = [first, *range(-(-(first + 1) // BLOCK) * BLOCK, stop, BLOCK), stop]
        return [slice(a - first, b - first) for a, b in itertools.pairwise(bounds) if b > a]

    def logits(self, rows: slice, panels: list[slice]) -> Any:
        """The logits of some rows."""
        x = self.x[rows].astype(self.compute, copy=False)
        logits = binding.empty((len(x), len(self.w)), self.compute)
        for panel in panels:
            logits[:, panel] = multiply(x, self.w[panel].astype(self.compute, copy=False).T)
        if self.bias is not None:
            logits += self.bias
        return logits

    def significant(self, grad: Any, limit: Any, panels: list[slice]) -> list[Any]:
        """The classes of each panel whose gradient exceeds the limit of some row; NaN does."""
        kept = [panel.start + np.flatnonzero(~(np.abs(grad[:, panel]) <= limit).all(0)) for panel in panels]
        return [classes for classes in kept if len(classes)]


class _Call(NamedTuple):
    """The rest of a checked call, the same on all ranks."""

    reduction: str
    gradient: bool
    chunk_bytes: int | None
    filter_eps: float
    ignore_index: int
    num_threads: Any


def _prepare(
    x: Any,
    w: Any,
    target: Any,
    bias: Any,
    n_classes: Any,
    offset: Any,
    reduction: str,
    gradient: bool,
    chunk_bytes: Any,
    filter_eps: Any,
    deterministic: Any,
    device: Any,
    num_threads: Any,
    options: dict[str, Any],
) -> tuple[Header, tuple[Header, _Layer, _Call]]:
    check_reduction(reduction)
    check_flag("deterministic", deterministic)
    check_device(device)
    check_num_threads(num_threads)
    eps = check_non_negative("filter_eps", filter_eps)
    limit = None if chunk_bytes is None else check_count("chunk_bytes", chunk_bytes, 1, "an int or None")
    given = ("x", x), ("w", w), ("target", target), ("bias", bias)
    x, w, target, bias = (as_native_on(device, name, a) for name, a in given)
    options = {name: as_native_on(device, name, a) for name, a in options.items()}
    x, _ = as_float("x", x)
    w, _ = as_float("w", w)
    check_layer(x, w)
    batch, compute, rows = x.shape[:-1], compute_dtype(x.dtype), math.prod(x.shape[:-1])
    if bias is not None:
        bias = check_bias(as_array("bias", bias), len(w)).astype(compute)
    labels, soft = check_target(target, (*batch, len(w)), batch, compute)
    first = known("offset", offset)
    shard: dict[str, Any] = {"row_shape": (*batch, 1), "first_class": None if first == UNKNOWN else first}
    checked = check_loss_options(len(w), batch, compute, reduction, **shard, **options)
    each = None if checked.temperatures is None else np.ascontiguousarray(checked.temperatures).reshape(rows, 1)
    s, upstream = (
        None if a is None else np.ascontiguousarray(a).reshape(rows) for a in (checked.sample_weight, checked.upstream)
    )
    target = soft.reshape(rows, len(w)) if labels is None else labels.reshape(rows)
    layer = _Layer(
        x.reshape(rows, x.shape[-1]), w, bias, target, labels is None, batch, s, upstream, checked.weight, each, compute
    )
    agreed = (
        ("shape of the rows", batch),
        ("reduction", as_name(reduction)),
        ("features", x.shape[-1]),
        ("bias", bias is not None),
        ("chunk_bytes", limit),
        ("filter_eps", eps + 0.0),
        ("softcap", checked.softcap),
        ("temperature", describe(each) or checked.temperature + 0.0),
        *zip(("label_smoothing", "z_loss", "clip_norm", "clip_value"), checked.factors[1:], strict=True),
        ("ignore_index", checked.ignore_index),
        ("soft labels", labels is None),
        ("class weights", checked.weight is not None),
        ("target", describe(labels)),
        ("sample_weight", describe(s)),
        upstream_value(reduction, options["upstream"], upstream),
    )
    numbers = known("n_classes", n_classes), first, len(w)
    function = "linear_cross_entropy_with_grad" if gradient else "linear_cross_entropy"
    temperature = checked.temperature if each is None else float("nan")
    header = Header(function, x.dtype.name, 0, rows, *numbers, temperature, agreed)
    return header, (header, layer, _Call(reduction, gradient, limit, eps, checked.ignore_index, num_threads))


@np.errstate(all="ignore")  # overflow and NaN are results here, as in the kernels
def run_linear(
    group: Any,
    rows_group: Any,
    x: Any,
    w: Any,
    target: Any,
    *,
    bias: Any,
    n_classes: Any,
    offset: Any,
    reduction: str,
    gradient: bool,
    chunk_bytes: Any = None,
    num_threads: Any = None,
    upstream: Any = None,
    filter_eps: Any = 0.0,
    deterministic: Any = True,
    device: Any = None,
    row_offsets: tuple[int, ...] = (),
    **options: Any,
) -> LinearCrossEntropyResult:
    """The loss and, with `gradient`, the gradients."""
    comm = as_group(group)
    checks = options | {"upstream": upstream if gradient else None}
    of_layer = x, w, target, bias, n_classes, offset
    arguments = *of_layer, reduction, gradient, chunk_bytes, filter_eps, deterministic, device, num_threads, checks
    with RowSums(rows_group) as sums:
        layout, (header, layer, call) = enter(comm, lambda: _prepare(*arguments))
        sums.begin(header, layout.n_classes, layer.sample_weight)
        offsets = row_offsets or sums.offsets_of(layer.batch)
        if not layer.is_soft:
            labels = layer.target.reshape(layer.batch)
            raise_bad_label(labels, layout.n_classes, call.ignore_index, lambda at: shift(at, offsets))
        options |= {"row_offsets": offsets}
        return _finish(sums, x, layer, call, *_add_chunks(comm, sums, layout, layer, call, options))


def _add_chunks(
    comm: Collectives, sums: RowSums, layout: Layout, layer: _Layer, call: _Call, options: dict[str, Any]
) -> tuple[Any, float, Any]:
    """The losses of the rows, the divisor, and the gradients or None."""
    first, rows = layout.offsets[comm.rank], len(layer.x)
    step = count_chunk_rows(rows, layout.n_classes, layer.x.dtype, call.chunk_bytes)
    panels = layer.panels(first)
    losses, divisor = np.zeros(rows), 1.0
    if call.reduction == "mean":
        if options.get("clip_norm") is None and options.get("clip_value") is None:
            layer = _scaled(comm, sums, layer)
        divisor = _find_divisor(comm, layer, first, call.ignore_index, sums)
    factor = np.ones(rows) if layer.upstream is None else layer.upstream
    factor = factor / divisor if divisor else np.zeros(rows)
    function = "linear_cross_entropy_with_grad" if call.gradient else "linear_cross_entropy"
    pending = Pending()
    with pending:
        grad_x = np.zeros(layer.x.shape, layer.compute)
        grad_w, grad_bias = np.zeros(layer.w.shape, layer.compute), np.zeros(len(layer.w))
    for begin in range(0, rows, step):
        some = slice(begin, min(begin + step, rows))
        with pending:
            logits = layer.logits(some, panels)
        if pending.error is not None:
            fail_on_all(comm, pending.error)
        more = options | {
            "weight": layer.weight,
            "sample_weight": None if layer.sample_weight is None else layer.sample_weight[some],
            "origin": (begin, layer.batch),
            "gradient": call.gradient,
        }
        more |= {"axis": -1, "n_classes": layout.n_classes, "offset": first, "reduction": "none"}
        more |= {} if layer.temperatures is None else {"temperature": layer.temperatures[some]}
        more |= {"upstream": factor[some], "out": logits} if call.gradient else {}
        losses[some], grad = run_loss(comm, None, function, logits, layer.target[some], call.num_threads, **more)
        with pending:
            if call.gradient:
                part = layer.x[some].astype(layer.compute, copy=False)
                limit = call.filter_eps * np.abs(factor[some])[:, None]
                for panel in panels if call.filter_eps == 0 else layer.significant(grad, limit, panels):
                    grad_w[panel] += multiply(grad[:, panel].T, part)
                    grad_x[some] += multiply(grad[:, panel], layer.w[panel].astype(layer.compute, copy=False))
                grad_bias += grad.sum(0, dtype=np.float64)
    if not call.gradient:
        return losses, divisor, None
    own = np.zeros(layer.x.shape, layer.compute) if pending.error else grad_x
    return losses, divisor, (_add_over(comm, layout, own, pending), grad_w, grad_bias)


def _scaled(comm: Collectives, sums: RowSums, layer: _Layer) -> _Layer:
    """Weights of a mean in a range in which their products and sums are."""
    weight, s = scale_over(comm, layer.weight, layer.sample_weight, (len(layer.x),), sums.largest_weight)
    return layer._replace(weight=weight, sample_weight=s)


def _add_over(comm: Any, layout: Layout, own: Any, pending: Pending) -> Any:
    """The sum of the gradients of x of all ranks, in the order of their classes; with the status of the products."""
    status = np.array([pending.error is not None], np.int64)
    gathered = comm.all_gather(np.concatenate([status.view(np.uint8), own.reshape(-1).view(np.uint8)]))
    check_status(comm, gathered[:, 0].astype(np.int64), pending.error)
    sum_ = np.zeros(own.shape, own.dtype)
    for rank in order_of(layout):
        sum_ += gathered[rank, 8:].copy().view(own.dtype).reshape(own.shape)
    return sum_


def _find_divisor(comm: Any, layer: _Layer, first: int, ignore_index: int, sums: RowSums) -> float:
    """The sum of the weights of the rows; class weights and soft labels are added up over the ranks in their order."""
    target = layer.target
    mass = np.zeros(len(layer.x))
    if layer.is_soft:
        weight = 1.0 if layer.weight is None else layer.weight
        mass = (target.astype(np.float64) * weight).sum(-1)
    else:
        bits = as_label_bits(ignore_index, target)
        is_kept = np.ones(len(mass), bool) if bits is None else target != target.dtype.type(ignore_index)
        is_own = is_kept & (target >= first) & (target < first + len(layer.w))
        at = np.where(is_own, target, first).astype(np.int64) - first
        weight = np.ones(len(layer.w)) if layer.weight is None else layer.weight
        mass[is_own] = weight[at[is_own]]
    total = np.zeros(len(mass))
    for part in comm.all_gather(mass):
        total += part
    s = 1.0 if layer.sample_weight is None else layer.sample_weight
    return sums.add(total * s)


def _finish(
    sums: RowSums, like: Any, layer: _Layer, call: _Call, losses: Any, divisor: float, gradients: Any
) -> LinearCrossEntropyResult:
    """The results."""
    if call.reduction == "none":
        loss: Any = losses.reshape(layer.batch)
        sums.finish()
    else:
        total = sums.add(losses)
        loss = np.float64(total) / np.float64(divisor) if divisor else np.float64("nan")
    loss = give_result(like, None, np.asarray(loss).astype(layer.compute)[()])
    if gradients is None:
        return LinearCrossEntropyResult(loss, None, None, None)
    dtype = layer.x.dtype
    arrays = gradients[0].reshape(*layer.batch, layer.x.shape[-1]), gradients[1], gradients[2]
    if layer.bias is None:
        arrays = *arrays[:2], None
    results = (None if a is None else give_result(like, None, a.astype(dtype, copy=False)) for a in arrays)
    grad_x, *others = results
    return LinearCrossEntropyResult(loss, label_like(like, grad_x), *others)


def linear_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    group: Any,
    rows_group: Any = None,
    bias: ArrayLike | None = None,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
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
    """Cross-entropy of the logits ``x @ w.T + bias``, with the rows of w divided among the ranks of a group.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, the same on all ranks.
    w : array_like of shape (k, D) and the dtype of x
        The classes of this rank.
    target, weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap, reduction
        As in `cross_entropy`.
    bias : array_like of shape (k,), optional
        Added to the logits of this rank's classes.
    group, n_classes, offset, device, num_threads
        As in `softmax`.
    rows_group : as group, optional
        As in `cross_entropy`: the ranks that have the same classes of w, and other rows of x.
    chunk_bytes : int, optional
        As in `csoftmax.linear_cross_entropy`, for the logits of all ranks together.
    filter_eps : float, default 0.0
        As in `csoftmax.linear_cross_entropy`, where it has no effect.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        The loss, on all ranks.

    Raises
    ------
    IndexError, TypeError, ValueError, MemoryError, DistributedError
        As in `cross_entropy`.

    Notes
    -----
    Products are computed for 4096 classes at a time. On one kind of machine, with shards that begin at multiples of
    4096, the loss and the gradients of w and the bias have the same bits for any number of ranks as far as the BLAS
    has for products of the same shapes; the gradient of x is a sum over the ranks, which is rounded.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, linear_cross_entropy
    >>> linear_cross_entropy([[1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [1], group=SingleProcess())
    np.float64(0.6931471805599453)
    """
    result = run_linear(
        group, rows_group, x, w, target, bias=bias, n_classes=n_classes, offset=offset, chunk_bytes=chunk_bytes,
        weight=weight, sample_weight=sample_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        z_loss=z_loss, temperature=temperature, softcap=softcap, reduction=reduction, gradient=False,
        filter_eps=filter_eps, device=device, num_threads=num_threads,
    )  # fmt: skip
    return result.loss


def linear_cross_entropy_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    group: Any,
    rows_group: Any = None,
    bias: ArrayLike | None = None,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
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
    deterministic: bool = True,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> LinearCrossEntropyResult:
    """Cross-entropy of the logits ``x @ w.T + bias`` and its gradients, with w divided among the ranks of a group.

    Parameters
    ----------
    x, w, target, group, rows_group, bias, n_classes, offset, chunk_bytes, weight, sample_weight, label_smoothing, \
ignore_index, z_loss, temperature, softcap, reduction, device, num_threads
        As in `linear_cross_entropy`.
    upstream, clip_norm, clip_value, filter_eps
        As in `csoftmax.linear_cross_entropy_with_grad`, the same on all ranks. `clip_norm` takes one more collective
        for each chunk of rows.
    deterministic : bool, default True
        The gradients of x are gathered from all ranks and added in the order of the shards, so that their sum has the
        same bits for the same shards on any ranks. There is no other way: False is the same.

    Returns
    -------
    LinearCrossEntropyResult
        The loss and the gradient of x on all ranks, and those of this rank's w and bias.

    Raises
    ------
    IndexError, TypeError, ValueError, MemoryError, DistributedError
        As in `cross_entropy`.

    Notes
    -----
    The gradient of x takes one more collective of the size of x from each rank. With `rows_group`, the gradients of w
    and the bias are those of this rank's rows, which are yet to be added up over the ranks of that group.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, linear_cross_entropy_with_grad
    >>> linear_cross_entropy_with_grad([[1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [1], group=SingleProcess()).grad_w
    array([[ 0.5,  0. ],
           [-0.5,  0. ]])
    """
    return run_linear(
        group, rows_group, x, w, target, bias=bias, n_classes=n_classes, offset=offset, chunk_bytes=chunk_bytes,
        weight=weight, sample_weight=sample_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        z_loss=z_loss, temperature=temperature, softcap=softcap, reduction=reduction, gradient=True, upstream=upstream,
        clip_norm=clip_norm, clip_value=clip_value, filter_eps=filter_eps, deterministic=deterministic, device=device,
        num_threads=num_threads,
    )  # fmt: skip
