"""Cross-entropy of rows whose classes, and rows, are divided among the ranks of groups."""

from __future__ import annotations

import marshal
import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.labels import check_upstream
from .._arguments.layers import scale_products, scale_weights
from .._arguments.layouts import apart_from, axis_last, normalize_axes
from .._arguments.numbers import check_num_threads, check_positive, check_reduction
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .._ops.cross_entropy import CrossEntropyResult
from .agreement import as_name, describe
from .devices import as_native_on, check_device
from .finish import add_losses, add_squares, find_lost, round_losses, write_gradient
from .groups import LAYOUTS, UNKNOWN, Ahead, Collectives, Header, Layout, Pending, as_group, check_status, enter_ahead
from .merge import gather_rows, join_rows, pack
from .merged import Merged, has_bad_label, total_sums
from .row_sums import RowSums
from .rows import (
    check_result,
    chunks_of,
    give_elements,
    give_result,
    header_of,
    known,
    merge_over,
    place_in,
    place_result,
    powers_in,
    rows_of,
)
from .shard import Partial, sum_piece
from .terms import BLOCK, Piece, Terms, plan_partial

__all__ = ["cross_entropy", "cross_entropy_with_grad"]


class Loss(NamedTuple):
    """A checked call of this rank, before it knows the other shards."""

    terms: Terms
    piece: Piece
    axis: int
    out: Any | None
    given_out: Any | None  # as an array of the caller's library
    upstream: Any | None  # float64 of the shape of the rows
    reduction: str
    gradient: bool


class Chunk(NamedTuple):
    """Some rows of a call, and their sums."""

    rows: slice | None
    terms: Terms
    piece: Piece
    part: Partial
    merged: Merged


_PLAIN = frozenset({int, float, str, bool, type(None)})
_prepared: dict[Any, tuple[Header, Loss]] = {}  # the last calls, by their signatures


def _signature(function: str, logits: Any, target: Any, options: dict[str, Any]) -> Any:
    """All that the checks of a call depend on but for the values of its labels; None where that is more."""
    if type(logits) is not np.ndarray or type(target) is not np.ndarray or not logits.flags.carray:
        return None
    values = tuple(options.values())
    if not _PLAIN.issuperset(map(type, values)):
        return None
    arrays = logits.dtype, logits.shape, target.dtype, target.shape
    return function, arrays, tuple(options), marshal.dumps(values, 0)  # 0: depends on the values alone


def _prepare_again(known: tuple[Header, Loss], logits: Any, target: Any) -> tuple[Header, tuple[Header, Loss]]:
    """A call of the same signature with other logits and labels."""
    header, call = known
    assert call.terms.losses is not None
    assert isinstance(header.options, tuple)
    own: tuple[str, Any] = "target", describe(target)
    agreed = tuple(own if item[0] == "target" else item for item in header.options)
    header = header._replace(options=agreed)
    losses = call.terms.losses._replace(labels=target, target=target)
    terms = call.terms._replace(losses=losses, agreed=agreed[: len(call.terms.agreed)])
    return header, (header, call._replace(terms=terms, piece=Piece(0, logits)))


def prepare_loss(
    function: str, logits: Any, target: Any, num_threads: Any, **options: Any
) -> tuple[Header, tuple[Header, Loss]]:
    """Check a call on this rank; options: those of `_check_loss`. Those of a call like an earlier one are checked."""
    device = options.get("device")
    logits, target = as_native_on(device, "logits", logits), as_native_on(device, "target", target)
    key = _signature(function, logits, target, options | {"num_threads": num_threads})
    known = None if key is None else _prepared.get(key)
    if known is not None:
        return _prepare_again(known, logits, target)
    header, (_, call) = prepared = _check_loss(function, logits, target, num_threads, **options)
    losses = call.terms.losses
    if key is not None and losses is not None and call.piece.x is logits and losses.target is target:
        if len(_prepared) >= LAYOUTS:
            _prepared.clear()
        terms = call.terms._replace(losses=losses._replace(labels=None, target=None))
        _prepared[key] = header, call._replace(terms=terms, piece=Piece(0, None))
    return prepared


def _check_loss(
    function: str,
    logits: Any,
    target: Any,
    num_threads: Any,
    *,
    axis: Any,
    n_classes: Any,
    offset: Any,
    reduction: str,
    gradient: bool,
    upstream: Any = 1.0,
    clip_norm: Any = None,
    clip_value: Any = None,
    out: Any = None,
    device: Any = None,
    origin: tuple[int, tuple[int, ...]] | None = None,
    **losses: Any,
) -> tuple[Header, tuple[Header, Loss]]:
    """Check a call. origin: that of Terms."""
    check_num_threads(num_threads)
    check_device(device)
    n, first = known("n_classes", n_classes), known("offset", offset)
    check_reduction(reduction)
    given_out = out
    upstream, out = as_native_on(device, "upstream", upstream), as_native(out, "out")
    losses = {name: as_native_on(device, name, a) for name, a in losses.items()} | {"clip_value": clip_value}
    losses["first_class"] = None if first == UNKNOWN else first
    arguments = {"axis": axis, "target": target, "losses": losses, "name": "logits"}
    terms, piece = plan_partial(logits, offset=0, n_classes=None, kind="loss", **arguments)
    place = normalize_axes(axis, len(terms.batch) + 1)[0]
    check_result(terms, piece, place, out)
    checked = terms.losses
    assert checked is not None
    factors = *checked.factors[:3], check_positive("clip_norm", clip_norm), checked.factors[4]
    terms = terms._replace(losses=checked._replace(factors=factors), origin=origin)
    factor = check_upstream(upstream, reduction, terms.batch) if gradient else None
    if out is not None:
        x, soft = (
            None if a is None else apart_from(a, as_buffer(axis_last(out, (place,)))) for a in (piece.x, piece.soft)
        )
        piece = piece._replace(x=x, soft=soft)
    options = (
        ("reduction", as_name(reduction)),
        ("clip_norm", factors[3]),
        upstream_value(reduction, upstream if gradient else None, factor),
    )
    header = header_of(function, terms, piece, n, first, options)
    return header, (header, Loss(terms, piece, place, out, given_out, factor, reduction, gradient))


def upstream_value(reduction: str, upstream: Any, factor: Any) -> tuple[str, Any]:
    """`upstream`, None without a gradient, as a value that ranks must agree on; factor: that of each row, checked."""
    if reduction == "none":
        return "upstream of each row", describe(factor)
    return "upstream", None if upstream is None else float(upstream)


def scale_over(
    group: Collectives, weight: Any, s: Any, shape: tuple[int, ...], largest_s: float | None
) -> tuple[Any, Any]:
    """Class weights of this rank and sample weights of a mean as `scale_products` makes them from those of all ranks.

    largest_s : the largest sample weight of all rows, None if there are none
    """
    every = None  # the sample weights of the rows, and the largest one
    if largest_s is not None:
        every = np.append(np.ones(shape) if s is None else s, largest_s)
    if weight is None:
        every = every if every is None else scale_weights(every)
    else:
        own = np.array([weight.max(initial=0)], np.float64).view(np.int64)  # not negative: in order as integers
        largest = group.all_reduce(own, "max").view(np.float64).astype(weight.dtype)
        rows = math.prod(shape) + 1
        scaled, every = scale_products(np.concatenate([weight, largest]), every, (rows,))
        weight = np.ascontiguousarray(scaled[:-1])
    return weight, s if every is None else np.ascontiguousarray(every[:-1]).reshape(shape)


def _scaled(group: Collectives, sums: RowSums, terms: Terms, piece: Piece) -> tuple[Terms, Piece]:
    """Weights of a mean in a range in which their products and sums are."""
    losses = terms.losses
    assert losses is not None
    if not losses.has_weight or losses.factors[3] or losses.factors[4]:
        return terms, piece
    weight, s = scale_over(group, piece.weight, losses.sample_weight, terms.batch, sums.largest_weight)
    return terms._replace(losses=losses._replace(sample_weight=s)), piece._replace(weight=weight)


def masses_of(chunk: Chunk) -> NDArray[np.float64]:
    """The weight of each row, but for its sample weight: w of its label, or the mass of its soft labels."""
    terms, losses = chunk.terms, chunk.terms.losses
    assert losses is not None
    records = chunk.merged.records
    if losses.labels is not None:
        kept = (losses.labels >= 0).astype(np.float64)
        if not losses.has_weight:
            return kept
        if chunk.merged.whole is not None:
            labels = np.maximum(losses.labels, 0)
            return kept * chunk.merged.whole.weight[labels].astype(np.float64)
        return kept * np.ascontiguousarray(records[..., -1]).view(np.float64)
    if chunk.merged.whole is not None:
        unweighted = terms._replace(losses=losses._replace(sample_weight=None))  # rows of weight 0 are not summed up
        records, _, _ = unweighted.sums(chunk.merged.whole, None)
    words = np.zeros((*terms.batch, binding.SUM_WORDS), np.int64)
    words[..., :-1] = records[..., binding.TERMS_WORDS :]
    totals = total_sums(words)
    return np.where(records[..., 11] & 32, np.inf, totals)


def find_shares(chunk: Chunk) -> NDArray[np.float64]:
    """The part of each row in the divisor of a mean."""
    losses, masses = chunk.terms.losses, masses_of(chunk)
    assert losses is not None
    s = losses.sample_weight
    if s is None:
        return masses
    with np.errstate(over="ignore", invalid="ignore"):
        return np.where(masses == 0, 0.0, s * masses) if losses.labels is not None else s * masses


def find_divisor(chunks: list[Chunk], sums: RowSums) -> float:
    """The number by which a mean divides."""
    losses = chunks[0].terms.losses
    assert losses is not None
    is_plain = losses.labels is not None and not losses.has_weight and losses.sample_weight is None
    if is_plain and sums.group is None:  # the number of rows that are kept, which the sum of ones is exactly
        return float(sum(np.count_nonzero(c.terms.losses.labels >= 0) for c in chunks if c.terms.losses is not None))
    return sums.add(np.concatenate([find_shares(chunk).reshape(-1) for chunk in chunks]))


def _merge_squares(
    group: Collectives, layout: Layout, chunk: Chunk, upstream: Any, divisor: float, pending: Pending
) -> Any:
    """The sums of squares that clip_norm needs, over all ranks; None without it."""
    terms = chunk.terms
    losses = terms.losses
    assert losses is not None
    if not losses.factors[3] or losses.clips_capped or chunk.merged.whole is not None:
        return None
    own = np.zeros((*terms.batch, binding.SUM_WORDS), np.int64)
    with pending:
        own = add_squares(terms, chunk.merged, chunk.part.complete_blocks(), chunk.part.block_max, upstream, divisor)
        first = layout.offsets[group.rank]
        for block, piece in chunk.part.blocks.items():
            if first <= block * BLOCK < first + layout.lengths[group.rank]:
                arguments = piece, chunk.merged.joined[block], upstream, divisor
                binding.merge_sums(own, add_squares(terms, chunk.merged, *arguments))
    gathered = group.all_gather(np.concatenate([[pending.error is not None], own.reshape(-1)]))
    check_status(group, gathered[:, 0], pending.error)
    merged = gathered[0, 1:].copy()
    for other in gathered[1:]:
        binding.merge_sums(merged, other[1:])
    return merged.reshape(own.shape)


def _find_lost(chunk: Chunk, upstream: Any, divisor: float, pending: Pending) -> NDArray[np.int64] | None:
    """As `find_lost`. After an error, which is then pending, those of a shard without classes: whether they are None
    is the same on all ranks."""
    part, merged, piece = chunk.part, chunk.merged, chunk.piece
    with pending:
        return find_lost(part, merged, piece, upstream, divisor)
    return find_lost(part, merged, piece.part(piece.first, piece.first), upstream, divisor)


def _gather_lost(
    group: Collectives, layout: Layout, chunk: Chunk, upstream: Any, divisor: float, pending: Pending
) -> tuple[NDArray[np.bool_], Piece] | None:
    """The rows whose gradients underflow, or all if the shards lack the norm, and these rows whole; None: no row.

    The gradient may be written over the logits only after this.
    """
    terms, piece = chunk.terms, chunk.piece
    if chunk.merged.whole is not None:
        return None
    lost: NDArray[np.int64] | None = None
    if terms.losses is not None and terms.losses.clips_capped:
        lost = np.ones(terms.batch, np.int64)
    else:
        lost = _find_lost(chunk, upstream, divisor, pending)
    if lost is None:  # 2 on all ranks where any of them may have 1
        return None
    marks = group.all_gather(np.concatenate([[pending.error is not None], (lost == 1).reshape(-1)]).astype(np.int64))
    check_status(group, marks[:, 0], pending.error)
    is_lost = np.asarray(marks[:, 1:].any(axis=0)).reshape(lost.shape)
    if not is_lost.any():
        return None
    count, longest = int(is_lost.sum()), max(layout.lengths)
    whole: dict[str, Any] = {}
    for name in ("x", "soft", "weight"):
        a, own = getattr(piece, name), None
        if a is None:
            continue
        with pending:
            own = a[None] if name == "weight" else a[is_lost]
        received = gather_rows(group, own, (1 if name == "weight" else count, longest), a.dtype, pending)
        with pending:
            joined = np.ascontiguousarray(join_rows(layout, received, layout.lengths))
            whole[name] = joined[0] if name == "weight" else joined
    return None if pending.error is not None else (is_lost, Piece(0, **whole))


def _write_lost(
    chunk: Chunk, is_lost: NDArray[np.bool_], whole: Piece, to: Any, upstream: Any, divisor: float, num_threads: Any
) -> None:
    """Compute the gradients of these rows again, from whole rows."""
    terms, piece, losses = chunk.terms, chunk.piece, chunk.terms.losses
    assert losses is not None
    each = losses.labels, losses.sample_weight, upstream, terms.temperatures
    labels, s, factor, t = (
        None if a is None else np.ascontiguousarray(np.broadcast_to(a, terms.batch)[is_lost]) for a in each
    )
    losses = losses._replace(labels=labels, sample_weight=s)
    some = terms._replace(batch=(int(is_lost.sum()),), temperatures=t, losses=losses)
    gradient = np.empty((*some.batch, whole.x.shape[-1]), piece.x.dtype)
    arguments = some.loss_arguments(whole, None, factor, chunk.merged.weight_sum, divisor, num_threads)
    binding.finish_shard_loss(terms.dtype, False, None, None, None, gradient, None, *arguments)
    to[is_lost] = gradient[:, piece.first : piece.stop]


def _write_chunk(
    group: Collectives,
    layout: Layout,
    chunk: Chunk,
    to: Any,
    upstream: Any,
    divisor: float,
    num_threads: Any,
    pending: Pending,
) -> NDArray[np.float64]:
    """Write the gradient of some rows; returns their losses."""
    part, merged, piece = chunk.part, chunk.merged, chunk.piece
    if upstream is not None and chunk.rows is not None:
        upstream = upstream[chunk.rows]
    squares = _merge_squares(group, layout, chunk, upstream, divisor, pending)
    lost = _gather_lost(group, layout, chunk, upstream, divisor, pending)
    loss = np.zeros(chunk.terms.batch)
    options: dict[str, Any] = {"from_e": part.e is not None, "squares": squares, "num_threads": num_threads}
    with pending:
        if merged.whole is None and chunk.terms.losses is not None and chunk.terms.losses.clips_capped:
            loss = add_losses(part, merged)
        else:
            loss = write_gradient(part, merged, piece, to, upstream=upstream, divisor=divisor, **options)
        if lost is not None:
            _write_lost(chunk, *lost, to, upstream, divisor, num_threads)
    return loss


def run_loss(
    group: Any,
    rows_group: Any,
    function: str,
    logits: Any,
    target: Any,
    num_threads: Any,
    *,
    row_offsets: tuple[int, ...] = (),
    **options: Any,
) -> tuple[Any, Any]:
    """The loss, and the gradient or None. row_offsets: those of Terms, if the caller knows them."""
    comm = as_group(group)
    with RowSums(rows_group) as sums:
        return _run_loss(comm, sums, function, logits, target, num_threads, row_offsets, options)


class _Plan(NamedTuple):
    """How a call is computed, once the shards are known."""

    terms: Terms
    piece: Piece
    slices: list[slice | None]
    keep: Any  # that of Terms.sums

    @classmethod
    def of(cls, comm: Collectives, layout: Layout, call: Loss) -> _Plan:
        terms, piece = place_in(layout, comm, call.terms, call.piece)
        itemsize = piece.x.itemsize + (0 if piece.soft is None else piece.soft.itemsize)
        slices = chunks_of(comm, layout, terms, itemsize)
        is_cut = layout.cut_lengths[comm.rank] > 0
        keep = call.gradient and slices == [None] and not is_cut and terms.keeps_powers
        return cls(terms, piece, slices, keep)


def _sum_ahead(comm: Collectives, layout: Layout, call: Loss, num_threads: Any) -> Ahead | None:
    """The sums of a call whose shards will be these.

    None if weights are yet to be scaled, or if powers may go to the caller's array, which errors in headers must leave
    as it is.
    """
    plan = _Plan.of(comm, layout, call)
    terms, piece, keep = plan.terms, plan.piece, plan.keep
    is_weighted = call.reduction == "mean" and piece.weight is not None
    if plan.slices != [None] or is_weighted or call.out is not None:
        return None
    placed = place_result(terms, piece, call.axis, None) if call.gradient and not keep else None
    part = sum_piece(terms, piece, keep=keep, num_threads=num_threads)
    return Ahead(plan, part, placed, lambda: pack(terms, part, None))


def _run_loss(
    comm: Collectives,
    sums: RowSums,
    function: str,
    logits: Any,
    target: Any,
    num_threads: Any,
    row_offsets: tuple[int, ...],
    options: dict[str, Any],
) -> tuple[Any, Any]:
    layout, (header, call), ahead = enter_ahead(
        comm,
        lambda: prepare_loss(function, logits, target, num_threads, **options),
        lambda layout, prepared: _sum_ahead(comm, layout, prepared[1], num_threads),
    )
    sums.begin(header, layout.n_classes, None if call.terms.losses is None else call.terms.losses.sample_weight)
    terms, piece, slices, keep = _Plan.of(comm, layout, call) if ahead is None else ahead.plan
    if row_offsets or sums.first:
        terms = terms._replace(row_offsets=row_offsets or sums.offsets_of(terms.batch))
    if call.reduction == "mean":
        terms, piece = _scaled(comm, sums, terms, piece)
    chunks, pending = [], Pending()
    placed = None if ahead is None else ahead.placed
    if call.gradient and placed is None and not (keep and call.out is None):
        with pending:  # before the exchanges, so that a lack of memory is known to all ranks
            placed = place_result(terms, piece, call.axis, call.out)
        if keep:  # in out, which a bad label must leave as it is; it is raised on all ranks after the exchange
            may_write = piece.soft is None and not has_bad_label(terms)
            keep = may_write and powers_in(placed, piece.x)
    for rows in slices:
        some, part_piece = rows_of(terms, piece, rows)
        sums_of_rows = merge_over(comm, layout, some, part_piece, keep, num_threads, pending, ahead)
        chunks.append(Chunk(rows, some, part_piece, *sums_of_rows))
    divisor = find_divisor(chunks, sums) if call.reduction == "mean" else 1.0
    gradient, each = None, []
    if call.gradient:
        gradient, rows_to = placed or place_result(terms, piece, call.axis, None, chunks[0].part.e)
        for chunk in chunks:
            to = rows_to if chunk.rows is None else rows_to[chunk.rows]
            each.append(_write_chunk(comm, layout, chunk, to, call.upstream, divisor, num_threads, pending))
    else:
        each = [add_losses(c.part, c.merged) for c in chunks]
    pending.raise_error()
    losses = each[0] if len(each) == 1 else np.concatenate(each)
    gradient = None if gradient is None else give_elements(logits, call.given_out, gradient)
    if call.reduction == "none":
        sums.finish()
        return give_result(logits, None, round_losses(terms, losses.reshape(terms.batch))), gradient
    total = sums.add(losses)
    value = np.float64(math.nan if divisor == 0 or math.isinf(divisor) else total / divisor)
    with np.errstate(over="ignore"):
        return give_result(logits, None, value.astype(terms.compute)), gradient


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    group: Any,
    rows_group: Any = None,
    axis: SupportsIndex = -1,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    softcap: float | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    logits : array_like of shape (..., k)
        The classes of this rank along `axis`.
    target : array_like
        Labels as numbers from 0 to n_classes - 1, the same on all ranks; or soft labels of this rank's classes.
    group, axis, n_classes, offset, device, num_threads
        As in `softmax`.
    rows_group : as group, optional
        The ranks that have the same classes of other rows, as in a two-dimensional arrangement: a mean or sum is that
        over the rows of all of them, in the order of its ranks.
    weight : array_like of shape (k,), optional
        Class weights of this rank's classes.
    sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap, reduction
        As in `csoftmax.cross_entropy`, the same on all ranks.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        ``csoftmax.cross_entropy`` of the whole rows, equal in every bit on all ranks.

    Raises
    ------
    IndexError
        On all ranks, if a label is neither a class nor `ignore_index`; the message has its row among those of all
        ranks. With `rows_group`, DistributedError with that message, on all ranks of both groups, unless every slice
        of the rows has such a label.
    TypeError, ValueError, MemoryError, DistributedError
        As in `softmax`.

    Notes
    -----
    The sums of a row are 128 bytes; 224 with label smoothing, 272 with soft labels, and 8 more with class weights.
    Weights, temperatures and `upstream` are checked before the ranks know of each other's rows: messages about them
    name the row of the rank that has it.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, cross_entropy
    >>> cross_entropy([[0.0, 0.0], [40.0, 0.0]], [1, 0], group=SingleProcess(), reduction="none")
    array([6.93147181e-01, 4.24835426e-18])
    """
    loss, _ = run_loss(
        group, rows_group, "cross_entropy", logits, target, num_threads, axis=axis, n_classes=n_classes, offset=offset,
        weight=weight, sample_weight=sample_weight, label_smoothing=label_smoothing, ignore_index=ignore_index,
        z_loss=z_loss, temperature=temperature, softcap=softcap, reduction=reduction, gradient=False, device=device,
    )  # fmt: skip
    return loss


def cross_entropy_with_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    group: Any,
    rows_group: Any = None,
    axis: SupportsIndex = -1,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
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
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrossEntropyResult:
    """Cross-entropy, and its gradient with respect to this rank's logits, over the ranks of a group.

    Parameters
    ----------
    logits, target, group, rows_group, axis, n_classes, offset, weight, sample_weight, label_smoothing, ignore_index, \
z_loss, temperature, softcap, reduction, device, num_threads
        As in `cross_entropy`.
    upstream, clip_norm, clip_value
        As in `csoftmax.cross_entropy_with_grad`, the same on all ranks. `clip_norm` takes one more collective; with
        `softcap`, whose slopes the norm contains, it gathers whole rows.
    out : ndarray of the shape and dtype of the gradient, optional
        Array that receives the gradient. It may be `logits`. After an error that comes from another rank, or from a
        lack of memory, it holds any numbers.

    Returns
    -------
    CrossEntropyResult
        `loss`, as from `cross_entropy`, and `grad`, the shard of the gradient of the whole rows, equal in every bit.

    Raises
    ------
    IndexError, TypeError, ValueError, MemoryError, DistributedError
        As in `cross_entropy`.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, cross_entropy_with_grad
    >>> cross_entropy_with_grad([[0.0, 0.0]], [1], group=SingleProcess()).grad
    array([[ 0.5, -0.5]])
    """
    return CrossEntropyResult(*run_loss(
        group, rows_group, "cross_entropy_with_grad", logits, target, num_threads, axis=axis, n_classes=n_classes,
        offset=offset, weight=weight, sample_weight=sample_weight, label_smoothing=label_smoothing,
        ignore_index=ignore_index, z_loss=z_loss, temperature=temperature, softcap=softcap, reduction=reduction,
        gradient=True, upstream=upstream, clip_norm=clip_norm, clip_value=clip_value, out=out, device=device,
    ))  # fmt: skip
