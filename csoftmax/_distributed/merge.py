"""The merge of the records of all ranks of a group: by one all-gather, or by reductions of integers.

    gather   every rank gets all records and merges them; up to GATHERED_RANKS ranks
    reduce   MAX of the maxima; MAX of the highest bins and of powers; SUM of everything else, after each rank has
             brought its records to the same maxima and bins

Both give the same bits. Elements of blocks that are divided among ranks travel in one more all-gather, and so do rows
that ranks need whole.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .groups import Layout, Pending, check_status
from .shard import Partial, join_fragments
from .terms import BLOCK, Piece, Terms

GATHERED_RANKS = 64
_FLAGS = (1, 4, 8, 32, 64, 128)  # those that are summed, each in a field of its own
_FIELD_BITS = 10
_LIMBS = 5
_NOTHING = np.iinfo(np.int64).min


def pack(terms: Terms, part: Partial | None, error: Exception | None) -> NDArray[np.int64]:
    """The words of a rank's sums: a status, the sum of class weights, and the records unless rows travel whole."""
    words = np.zeros(1 + binding.SUM_WORDS, np.int64)
    words[0] = error is not None
    if part is not None and part.weight_words is not None:
        words[1:] = part.weight_words
    if terms.n_classes <= BLOCK:
        return words
    records = terms.clear_records() if part is None or part.records is None else part.records
    return np.concatenate([words, records.reshape(-1)])


def exchange(
    group: Any,
    layout: Layout,
    terms: Terms,
    piece: Piece,
    part: Partial | None,
    error: Exception | None,
    gathered: NDArray[np.int64] | None = None,
) -> Partial:
    """Merge the sums of all ranks.

    piece : this rank's shard
    error : it has failed, and all ranks raise
    gathered : what `pack` has made on all ranks, if it is there already
    """
    given_max = None if part is None else part.given_max
    first = 1 + binding.SUM_WORDS
    reduces = group.size > GATHERED_RANKS
    if gathered is None:
        own = pack(terms, part, error)
        gathered = group.all_gather(own[:first] if reduces else own)
    check_status(group, gathered[:, 0], error)
    merged = None
    if terms.n_classes > BLOCK and reduces:
        merged = own[first:].reshape(*terms.batch, terms.words)
        merged = reduce_records(group, merged) if merged.size else merged
    elif terms.n_classes > BLOCK:
        if group.size > 1:
            binding.merge_gathered(gathered, first, terms.words)
        merged = gathered[0, first:].reshape(*terms.batch, terms.words)
    sum_ = _merge_words(gathered) if terms.losses is not None and terms.losses.has_weight else None
    n = terms.n_classes
    result = Partial(merged, None, {}, None, ((0, n),) if n else (), given_max, sum_, terms)
    if n == 0:
        result.whole = piece
    if any(layout.cut_lengths):
        assert part is not None
        _exchange_fragments(group, layout, terms, _arrays_of(terms, piece), part, result)
    return result


def gather_rows(group: Any, own: Any, shape: tuple[int, int], dtype: Any, pending: Pending) -> NDArray[Any]:
    """Arrays of rows of all ranks, filled up with zeros to one shape, and a status; own: None after an error."""
    message = np.zeros(8 + math.prod(shape) * dtype.itemsize, np.uint8)
    message[0] = pending.error is not None
    if pending.error is None:
        message[8:].view(dtype).reshape(shape)[:, : own.shape[-1]] = own
    received = group.all_gather(message)
    check_status(group, received[:, 0], pending.error)
    return received[:, 8:].view(dtype).reshape(group.size, *shape)


def order_of(layout: Layout) -> list[int]:
    """The ranks in the order of their classes."""
    return sorted(range(len(layout.offsets)), key=lambda rank: (layout.offsets[rank], layout.lengths[rank]))


def join_rows(layout: Layout, received: Any, lengths: tuple[int, ...]) -> Any:
    """What ranks have sent, in the order of their classes."""
    return np.concatenate([received[r][:, : lengths[r]] for r in order_of(layout)], axis=-1)


def _merge_words(gathered: NDArray[np.int64]) -> NDArray[np.int64]:
    """The sum of the class weights of all ranks."""
    words = np.array(gathered[0][1 : 1 + binding.SUM_WORDS])
    for other in gathered[1:]:
        binding.merge_sums(words, np.array(other[1 : 1 + binding.SUM_WORDS]))
    return words


def ordered(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of doubles as integers of the same order, and back."""
    return np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)


def reduce_records(group: Any, records: NDArray[np.int64]) -> NDArray[np.int64]:
    """Merge records by reductions of int64; overwrites its argument."""
    words = records.shape[-1]
    own = ordered(records[..., 6])
    highest = ordered(group.all_reduce(np.ascontiguousarray(own), "max"))
    binding.fold_records(records, np.ascontiguousarray(highest).view(np.float64))
    records[..., 6] = highest
    begins = [0, 16, 22, 28][: binding.record_sums(words)]
    powers = np.where(records[..., 7:8] > 0, records[..., 8:11], _NOTHING)  # equal wherever the maximum is counted
    found = group.all_reduce(np.concatenate([records[..., begins], powers], axis=-1), "max")
    binding.raise_records(records, np.ascontiguousarray(found[..., :-3]))
    records[..., 8:11] = np.where(found[..., -3:] == _NOTHING, 0, found[..., -3:])
    columns = [first + 1 + i for first in begins for i in range(_LIMBS)] + [7]
    if words > binding.RECORD_WORDS:
        label = [12, 13, 14] + [words - 1] * (words in (binding.LABEL_WORDS + 1, binding.TERMS_WORDS + 1))
        for column in label:
            records[..., column] = np.where(records[..., 15] > 0, records[..., column], 0)
        columns += [*label, 15]
    flags = records[..., 11]
    fields = sum((flags & bit != 0).astype(np.int64) << _FIELD_BITS * i for i, bit in enumerate(_FLAGS))
    if group.size >= 1 << _FIELD_BITS:
        each = np.stack([(flags & bit != 0).astype(np.int64) for bit in _FLAGS], axis=-1)
        any_ = group.all_reduce(np.ascontiguousarray(each), "max")
        fields = sum(any_[..., i] << _FIELD_BITS * i for i in range(len(_FLAGS)))
    summed = np.concatenate([records[..., columns], np.asarray(fields)[..., None]], axis=-1)
    summed = group.all_reduce(np.ascontiguousarray(summed), "sum")
    fields = fields if group.size >= 1 << _FIELD_BITS else summed[..., -1]
    records[..., columns] = summed[..., :-1]
    kept = flags & ~np.int64(sum(_FLAGS))
    mask = (1 << _FIELD_BITS) - 1
    for i, bit in enumerate(_FLAGS):
        kept = kept | np.where(np.asarray(fields) >> _FIELD_BITS * i & mask, bit, 0)
    records[..., 11] = kept
    return records


def _arrays_of(terms: Terms, piece: Piece) -> list[tuple[str, Any, tuple[int, ...]]]:
    """The names, dtypes and leading shapes of a piece's arrays."""
    leading = dict.fromkeys(("x", "y", "where", "soft"), terms.batch) | {"weight": ()}
    return [
        (name, getattr(piece, name).dtype, leading[name])
        for name in Piece._fields[1:]
        if getattr(piece, name) is not None
    ]


def _exchange_fragments(
    group: Any, layout: Layout, terms: Terms, arrays: list[tuple[str, Any, tuple[int, ...]]], part: Partial, to: Partial
) -> None:
    """Gather the elements of divided blocks, and add these blocks to the merged sums."""
    per_class = sum(math.prod(shape) * dtype.itemsize for _, dtype, shape in arrays)
    own = np.zeros(per_class * max(layout.cut_lengths), np.uint8)
    pieces = sorted((p for found in part.fragments.values() for p in found), key=lambda p: p.first)
    pieces = pieces or ([part.whole] if part.whole is not None else [])
    data = [np.ascontiguousarray(getattr(p, name)).view(np.uint8).reshape(-1) for p in pieces for name, _, _ in arrays]
    if data:
        flat = np.concatenate(data)
        own[: len(flat)] = flat
    for rank, received in enumerate(group.all_gather(own)):
        at = 0
        for a, b in layout.cut_intervals(rank):
            found = {}
            for name, dtype, shape in arrays:
                size = math.prod(shape) * (b - a) * dtype.itemsize
                found[name] = received[at : at + size].copy().view(dtype).reshape(*shape, b - a)
                at += size
            to.fragments.setdefault(a // BLOCK, []).append(Piece(a, **found))
    join_fragments(to)
