"""Shards of the classes of rows: their sums as records, and the merge of these in any order and grouping."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.numbers import check_count, check_flag
from .._arguments.places import CPU, as_array, as_float
from .._arguments.sinks import check_sink
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .agreement import find_difference
from .terms import BLOCK, KINDS, Piece, Terms, plan_partial, whole_blocks

__all__ = ["Partial", "merge", "partial", "split"]

_Kind = Literal["softmax", "log", "loss", "softmax_vjp", "log_softmax_vjp"]


@dataclasses.dataclass
class Partial:
    """The sums of a shard, or of several that have been merged.

    A pickled one can be merged, and finished unless its shard has `where`, soft labels or class weights, which stay
    with the process that has the shard.

    Attributes
    ----------
    records : ndarray of int64 of shape (rows..., words), or None
        The sums of each row over the complete blocks of 4096 classes. None where a row has at most 4096 classes, which
        travel whole.
    block_max : ndarray of float64 of shape (rows..., blocks), or None
        The maximum of each complete block of the shard, which finishing needs; None after a merge, and where a row has
        at most 4096 classes.
    fragments : dict of int to list
        The elements of blocks that are divided among shards, by the number of the block.
    e : ndarray or None
        The powers of the complete blocks that ``keep=True`` keeps for `finish_softmax`, which overwrites them.
    intervals : tuple of pairs of int
        The classes that are summed: begin and end of each run.
    given_max : ndarray of float64 of the shape of the rows, or None
        The `row_max` that a second round was given.
    weight_words : ndarray of int64, or None
        The sum of the class weights.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import merge, partial
    >>> parts = [partial(np.full((2, 4096), 1e300), offset=i, n_classes=8192) for i in (0, 4096)]
    >>> merge(parts).intervals
    ((0, 8192),)
    >>> merge(parts).row_max
    array([1.e+300, 1.e+300])
    """

    records: Any
    block_max: Any
    fragments: dict[int, list[Piece]]
    e: Any | None
    intervals: tuple[tuple[int, int], ...]
    given_max: Any
    weight_words: Any
    terms: Terms = dataclasses.field(repr=False)
    local: Piece | None = dataclasses.field(repr=False, default=None)  # the shard; None once merged or pickled
    joined: dict[int, Any] = dataclasses.field(repr=False, default_factory=dict)  # blocks of fragments: their maxima
    blocks: dict[int, Piece] = dataclasses.field(repr=False, default_factory=dict)  # their elements, for clip_norm
    whole: Piece | None = dataclasses.field(repr=False, default=None)  # rows of at most 4096 classes
    version: str = dataclasses.field(repr=False, default=binding.VERSION)
    byte_order: str = dataclasses.field(repr=False, default=sys.byteorder)

    @property
    def row_max(self) -> NDArray[np.float64] | None:
        """The maxima of the rows that need a second round, NaN for all others; None if no row needs one.

        ``partial(..., row_max=merged.row_max)`` begins the second round, whose results have the same maxima here.
        """
        return self.second_round if self.given_max is None else self.given_max

    @property
    def second_round(self) -> NDArray[np.float64] | None:
        """The same for the results of a first round; None for those of a second round."""
        if self.records is None or self.given_max is not None:
            return None
        terms = self.terms
        row_max = np.empty(terms.batch)
        arguments = terms.temperature, terms.temperatures, row_max
        if self.records.size and binding.find_second_round(terms.code, terms.dtype, self.records, *arguments):
            return row_max
        return None

    def with_sink(self, sink: ArrayLike) -> Partial:
        """Add the sink of each row to this merged result of all shards, as functions that finish do.

        Needed for its `row_max` alone: where sinks are far out of range, functions that finish ask for that.

        Parameters
        ----------
        sink : float or array_like
            As in `csoftmax.softmax`.

        Returns
        -------
        Partial
            The sums of rows with one more class, which cannot be finished without `sink`.

        Raises
        ------
        TypeError, ValueError
            As `finish_softmax` with that sink.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.distributed import merge, partial
        >>> part = partial(np.zeros((1, 8192)), offset=0, n_classes=8192)
        >>> merge([part]).with_sink(1e300).row_max
        array([1.e+300])
        """
        return join_sink(self, sink)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out arrays of the size of the shard."""
        return self.__dict__ | {"e": None, "local": None}

    def shard(self) -> Piece:
        """The shard, for its mask, soft labels and class weights."""
        if self.local is None:
            raise ValueError(
                "partial has come from another process or was copied by pickle, which leaves out where, soft labels "
                "and class weights: finish where `partial` was called, or call it again there"
            )
        return self.local

    def complete_blocks(self) -> Piece:
        """The complete blocks of the shard."""
        piece = self.shard()
        return piece.part(*whole_blocks(piece.first, piece.stop, self.terms.n_classes))


def split(n_classes: SupportsIndex, parts: SupportsIndex) -> list[int]:
    """Boundaries of shards of nearly equal size: multiples of 4096 but for the last.

    Parameters
    ----------
    n_classes : int
        Number of classes.
    parts : int
        Number of shards, at least 1.

    Returns
    -------
    list of int
        parts + 1 numbers from 0 to n_classes; shard i has the classes from the i-th to before the next. Their sizes
        differ by 4096 at most, and the last is shorter where n_classes is no multiple of 4096.

    Raises
    ------
    TypeError, ValueError
        If an argument is no integer, or out of range.

    Examples
    --------
    >>> from csoftmax.distributed import split
    >>> split(50257, 3)
    [0, 16384, 32768, 50257]
    """
    n, count = check_count("n_classes", n_classes), check_count("parts", parts, 1)
    blocks = -(-n // BLOCK)
    return [min(n, (i * blocks // count) * BLOCK) for i in range(count)] + [n]


def partial(
    x: ArrayLike,
    *,
    offset: SupportsIndex,
    n_classes: SupportsIndex,
    kind: _Kind = "softmax",
    axis: SupportsIndex = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    has_sink: bool = False,
    keep: bool = False,
    y: ArrayLike | None = None,
    target: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    softcap: float | None = None,
    clip_norm: None = None,
    clip_value: float | None = None,
    row_max: ArrayLike | None = None,
    num_threads: SupportsIndex | None = None,
) -> Partial:
    """Sums of rows over a shard of their classes.

    Parameters
    ----------
    x : array_like of shape (..., k)
        The shard: consecutive classes along `axis`, in one of the dtypes of `csoftmax.softmax`. Of a gradient, dy.
    offset : int
        Number of the shard's first class. Boundaries at multiples of 4096 (`split`) are best; at any other, the
        elements of the block that is cut become part of the result, up to 4095 a row and boundary.
    n_classes : int
        Number of classes of the whole row. Rows of at most 4096 travel whole.
    kind : {"softmax", "log", "loss", "softmax_vjp", "log_softmax_vjp"}, default "softmax"
        Which sums: "log" is for log_softmax and logsumexp, "loss" for cross-entropy and its gradient.
    axis : int, default -1
        Axis of the classes.
    temperature, where, num_threads
        As in `csoftmax.softmax`; `where` is not for losses.
    has_sink : bool, default False
        Rows get a sink when they are finished ("softmax", "log"). Needed unless n_classes is below 4096 or a larger
        multiple of 4096: the elements of the last block, which the sink joins, then become part of the result.
    keep : bool, default False
        Keep the powers of the elements for `finish_softmax`, which then need not compute them again (float32 and
        float64). `finish_softmax` returns their memory.
    y : array_like of the shape of x, optional
        For gradients, this shard of the result of the forward function.
    target : array_like, optional
        For losses, one label from 0 to n_classes - 1 for each row, or the soft labels of this shard.
    weight : array_like of shape (k,), optional
        Class weights of the shard.
    sample_weight, label_smoothing, ignore_index, z_loss, softcap
        As in `csoftmax.cross_entropy`, the same in every shard.
    clip_value : float, optional
        As in `csoftmax.cross_entropy_with_grad`, for `finish_gradient`; the same in every shard.
    clip_norm
        Not allowed: the norm of a row's gradient is a sum over all shards that only the merged sums make possible, one
        more exchange. `csoftmax.distributed.cross_entropy_with_grad` has it.
    row_max : array_like of the shape of the rows, optional
        The second round: `Partial.row_max` of the merged first one.

    Returns
    -------
    Partial
        For `merge` with those of the other shards.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As in `csoftmax.softmax` and `csoftmax.cross_entropy`. A label that is no class is reported when the merged
        result is finished.
    NotImplementedError
        If `clip_norm` is given.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> from csoftmax.distributed import finish_softmax, merge, partial
    >>> x = np.random.default_rng(0).normal(size=(2, 10000))
    >>> shards = [(0, x[:, :8192]), (8192, x[:, 8192:])]
    >>> parts = [partial(part, offset=first, n_classes=10000) for first, part in shards]
    >>> merged = merge(parts)
    >>> y = [finish_softmax(part, p, merged) for (_, part), p in zip(shards, parts)]
    >>> bool((np.concatenate(y, axis=1) == csoftmax.softmax(x)).all())
    True
    """
    losses: dict[str, Any] = {
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "softcap": softcap,
        "clip_value": clip_value,
        "temperature": temperature,
    }
    losses = {name: as_native(a, name) for name, a in losses.items()}
    if clip_norm is not None:
        raise NotImplementedError(
            "partial has no clip_norm: the norm of a gradient is a sum over all shards, which takes one more exchange. "
            "Call csoftmax.distributed.cross_entropy_with_grad with a group, or scale the rows of finish_gradient"
        )
    if kind != "loss" and kind in KINDS:
        _refuse_options(kind, losses)
    shard: dict[str, Any] = {"offset": offset, "n_classes": n_classes, "kind": kind, "axis": axis}
    terms, piece = plan_partial(
        as_native(x, "dy" if y is not None else "x"),
        **shard,
        temperature=losses["temperature"],
        where=as_native(where, "where"),
        y=as_native(y, "y"),
        target=as_native(target, "target"),
        losses=losses,
        has_sink=check_flag("has_sink", has_sink),
    )
    if terms.has_sink and kind not in ("softmax", "log"):
        raise ValueError(f"kind {kind!r} takes no has_sink: only 'softmax' and 'log' do")
    maxima = None
    if row_max is not None:
        maxima = as_float("row_max", as_native(row_max, "row_max"))[0].astype(np.float64, order="C")
        if maxima.shape != terms.batch:
            raise ValueError(f"row_max has shape {maxima.shape}; the rows have shape {terms.batch}")
    return sum_piece(terms, piece, maxima, keep=check_flag("keep", keep), num_threads=num_threads)


def _refuse_options(kind: str, losses: dict[str, Any]) -> None:
    """Refuse options that only losses have."""
    unused: dict[str, Any] = {"label_smoothing": 0.0, "ignore_index": -100, "z_loss": 0.0}
    unused |= dict.fromkeys(("weight", "sample_weight", "softcap", "clip_value"))
    for name, default in unused.items():
        given = losses[name]
        if given is not default and (default is None or np.ndim(given) or given != default):
            raise ValueError(f"kind {kind!r} takes no {name}: only 'loss' does")


def sum_piece(
    terms: Terms, piece: Piece, row_max: Any = None, *, keep: Any = False, num_threads: Any = None
) -> Partial:
    """The sums of a shard: records of its complete blocks, copies of the others. keep: that of `Terms.sums`."""
    n, first, stop = terms.n_classes, piece.first, piece.stop
    intervals = ((first, stop),) if stop > first else ()
    if n <= BLOCK:
        fragments = {0: [piece.copy()]} if intervals or not n else {}
        result = Partial(None, None, fragments, None, intervals, None, None, terms)
        join_fragments(result)
        return result
    begin, end = whole_blocks(first, stop, n)
    fragments = {}
    for a, b in ((first, begin), (end, stop)):
        if b > a:
            fragments.setdefault(a // BLOCK, []).append(piece.part(a, b).copy())
    blocks = piece.part(begin, end)
    if blocks.x.shape[-1] == 0:
        blocks = Piece(min(begin // BLOCK * BLOCK, n), *blocks[1:])
    records, block_max, e = terms.sums(blocks, row_max, keep, num_threads)
    words = None if piece.weight is None else terms.weight_words(blocks.weight)
    result = Partial(records, block_max, fragments, e, intervals, row_max, words, terms, piece)
    join_fragments(result)
    return result


def join_fragments(to: Partial) -> None:
    """Add the blocks whose fragments are complete."""
    terms = to.terms
    for block in [b for b, pieces in to.fragments.items() if _is_complete(b, pieces, terms.n_classes)]:
        pieces = sorted(to.fragments.pop(block), key=lambda p: p.first)
        arrays = [
            None if getattr(pieces[0], name) is None else np.concatenate([getattr(p, name) for p in pieces], axis=-1)
            for name in Piece._fields[1:]
        ]
        piece = Piece(pieces[0].first, *arrays)
        if terms.n_classes <= BLOCK:
            to.whole = piece
            continue
        records, block_max, _ = terms.sums(piece, to.given_max)
        binding.merge_records(to.records, records)
        to.joined[block] = block_max
        if terms.losses is not None and terms.losses.factors[3]:
            to.blocks[block] = piece
        if to.weight_words is not None:
            binding.merge_sums(to.weight_words, terms.weight_words(piece.weight))


def _is_complete(block: int, pieces: list[Piece], n_classes: int) -> bool:
    return sum(p.stop - p.first for p in pieces) == min(BLOCK, n_classes - block * BLOCK)


def merge(*partials: Any) -> Any:
    """Merge the sums of shards, in any order and any grouping.

    Parameters
    ----------
    *partials : Partial, or one iterable of them
        Shards, or results of merges. One whose classes are all there, in any other argument, changes nothing, so that
        parts may be delivered twice, and before or after a merge of them. Arrays of records of one shape are merged as
        well, without these checks; one array alone is an iterable along its first axis.

    Returns
    -------
    Partial, or ndarray of int64
        The same for every order and grouping. The arguments are left as they are.

    Raises
    ------
    ValueError
        If some but not all classes of one are in another, or if they differ in version, byte order, dtype, kind, rows
        or round.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import merge, partial
    >>> x = np.zeros((1, 8192))
    >>> a, b = (partial(x[:, i : i + 4096], offset=i, n_classes=8192) for i in (0, 4096))
    >>> bool((merge(a, b).records == merge(b, a).records).all())
    True
    """
    parts = list(partials)
    if len(parts) == 1 and not isinstance(parts[0], Partial):
        if not isinstance(parts[0], Iterable):
            raise TypeError(f"merge takes Partials or arrays of records, or one iterable of them, got {parts[0]!r}")
        parts = list(parts[0])
    if not parts:
        raise ValueError("merge needs at least one partial result")
    if not isinstance(parts[0], Partial):
        return _merge_arrays(parts)
    check_origin(parts[0])
    for part in parts[1:]:
        _check_same_call(parts[0], part)
    return _merge_all(parts)


def make_room(a: Partial) -> Partial:
    """A partial result as one of rows with a sink, where that is a block of its own, or the rows are there whole."""
    terms = a.terms
    n = terms.n_classes
    if terms.has_sink:
        return a
    if n == BLOCK or (n % BLOCK and n > BLOCK):
        raise ValueError(
            "sink needs partial results of partial(..., has_sink=True), unless n_classes is below 4096 or a larger "
            f"multiple of 4096; it is {n}"
        )
    agreed = tuple((name, True if name == "has_sink" else value) for name, value in terms.agreed)
    more = terms._replace(n_classes=n + 1, has_sink=True, agreed=agreed)
    fragments = a.fragments if a.whole is None else {0: [a.whole]}
    return dataclasses.replace(a, terms=more, whole=None, fragments=fragments)


def join_sink(merged: Partial, sink: Any) -> Partial:
    """Merged sums of all shards with the sinks of the rows."""
    check_origin(merged)
    terms = merged.terms
    if terms.has_sink and any(stop == terms.n_classes for _, stop in merged.intervals):
        raise ValueError("merged has a sink already: the result of with_sink is for its row_max alone")
    if terms.kind not in ("softmax", "log"):
        raise ValueError(f"sums of kind {terms.kind!r} take no sink: only 'softmax' and 'log' do")
    row_shape = list(terms.batch)
    row_shape.insert(terms.axis, 1)
    rows = check_sink(as_native(sink, "sink"), tuple(row_shape), terms.storage, CPU).reshape(*terms.batch, 1)
    result = _copy(make_room(merged))
    terms = result.terms
    where = np.ones(rows.shape, np.bool_) if terms.has_where else None
    last = Piece(terms.n_classes - 1, as_buffer(np.ascontiguousarray(rows)), None, where)
    _merge_into(result, sum_piece(terms, last, merged.given_max))
    return result


def _merge_arrays(parts: list[Any]) -> NDArray[np.int64]:
    arrays = [as_array("records", as_native(a, "records")) for a in parts]
    shape = arrays[0].shape
    for a in arrays:
        if a.dtype != np.int64 or a.shape != shape or a.ndim == 0:
            raise ValueError(f"records must be int64 arrays of one shape, got {a.dtype} {a.shape} beside {shape}")
    lengths = [getattr(binding, f"{name}_WORDS") for name in ("RECORD", "LABEL", "TERMS", "SOFT")]
    if shape[-1] in (lengths[1] + 1, lengths[2] + 1):
        raise ValueError("records with class weights are merged as Partials, which hold the sum of the weights")
    if shape[-1] not in lengths:
        raise ValueError(f"records have {', '.join(map(str, lengths))} words, got {shape[-1]}")
    result = np.array(arrays[0], order="C")
    if result.size:
        binding.check_records(result)
    for a in arrays[1:]:
        if result.size:
            binding.merge_records(result, np.ascontiguousarray(a))
    return result


def _copy(a: Partial) -> Partial:
    return dataclasses.replace(
        a,
        records=None if a.records is None else a.records.copy(),
        weight_words=None if a.weight_words is None else a.weight_words.copy(),
        block_max=None,
        e=None,
        local=None,
        fragments={block: list(pieces) for block, pieces in a.fragments.items()},
        joined=dict(a.joined),
    )


def check_origin(a: Partial) -> None:
    """Refuse sums of another version or byte order, and damaged ones."""
    for name, own in (("version", binding.VERSION), ("byte_order", sys.byteorder)):
        if getattr(a, name) != own:
            raise ValueError(f"partial results differ in {name}: {own} in this process and {getattr(a, name)}")
    if a.records is not None and a.records.size:
        binding.check_records(a.records)


def check_terms(a: Partial, b: Partial, message: str) -> None:
    """Refuse sums of different calls; message: how the error begins."""
    pairs = ((("n_classes", p.terms.n_classes), *p.terms.agreed) for p in (a, b))
    found = find_difference(*pairs)
    if found is not None:
        name, first, second = found
        raise ValueError(f"{message} {name}: {first} and {second}")


def check_rounds(a: Partial, b: Partial) -> None:
    """Refuse sums of different rounds."""
    rounds = [None if p.given_max is None else p.given_max.tobytes() for p in (a, b)]
    if rounds[0] != rounds[1]:
        raise ValueError(
            "partial results of the first and of the second round, or of different ones, do not belong together"
        )


def _check_same_call(a: Partial, b: Any) -> None:
    """Refuse what cannot be merged with a checked partial result."""
    if not isinstance(b, Partial):
        raise TypeError(f"merge takes Partials or arrays of records, got {type(b).__name__} beside a Partial")
    check_terms(a, b, "partial results differ in")
    check_rounds(a, b)
    check_origin(b)


def _merge_all(parts: list[Partial]) -> Partial:
    """Merge sums of one call, of which some may have classes of others.

    The longest come first, so that all that any order has to leave out is there when it is looked at; those that still
    overlap wait for what may complete the rest of their classes.
    """
    first, *later = sorted(parts, key=lambda p: (sum(a - b for a, b in p.intervals), p.intervals))
    result = _copy(first)
    while later:
        waiting = []
        for part in later:
            if not _is_covered(part, result):
                if _describe_overlap(result, part):
                    waiting.append(part)
                else:
                    _merge_into(result, part)
        if waiting and len(waiting) == len(later):
            raise ValueError(f"shards overlap: classes {_describe_overlap(result, waiting[0])}")
        later = waiting
    return result


def _is_covered(b: Partial, a: Partial) -> bool:
    """Whether a has all classes of b: b was delivered before, or has none."""
    return all(any(first <= f and s <= stop for first, stop in a.intervals) for f, s in b.intervals)


def _describe_overlap(a: Partial, b: Partial) -> str:
    """The first runs of classes of b and a that overlap; empty if none do."""
    for f, s in b.intervals:
        for first, stop in a.intervals:
            if max(f, first) < min(s, stop):
                return f"{f} to {s - 1} and {first} to {stop - 1}"
    return ""


def _merge_into(a: Partial, b: Partial) -> None:
    """Add the sums of other classes."""
    if a.records is not None and a.records.size:
        binding.merge_records(a.records, np.asarray(b.records, order="C"))
    if a.weight_words is not None:
        binding.merge_sums(a.weight_words, b.weight_words)
    for block, pieces in b.fragments.items():
        a.fragments.setdefault(block, []).extend(pieces)
    a.joined |= b.joined
    a.whole = a.whole if b.whole is None else b.whole
    a.intervals = _united(a.intervals + b.intervals)
    join_fragments(a)


def _united(intervals: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    united: list[tuple[int, int]] = []
    for first, stop in sorted(intervals):
        if united and united[-1][1] == first:
            united[-1] = (united[-1][0], stop)
        else:
            united.append((first, stop))
    return tuple(united)
