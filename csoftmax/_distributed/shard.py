"""Shards of the classes of rows: their sums as records, and the merge of these in any order and grouping."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.labels import as_label_bits, check_loss_options, check_target, raise_bad_label
from .._arguments.layouts import axis_last, batch_shape, check_where, normalize_axes
from .._arguments.numbers import check_count, check_flag, check_temperatures
from .._arguments.places import CPU, as_float
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype

__all__ = ["Partial", "merge", "partial", "split"]

BLOCK = binding.BLOCK_ELEMENTS
KINDS = {"softmax": "softmax", "log": "log_softmax", "loss": "loss"} | {
    name: name for name in ("softmax_vjp", "log_softmax_vjp")
}
NO_LABEL = np.iinfo(np.int64).max  # of a row whose label is no class: no shard owns it
_NAMES = {code: name for name, code in binding.DTYPES.items()}
_IGNORED = 2**64 - 1  # the bits of -1, which stands for every ignored label

_Kind = Literal["softmax", "log", "loss", "softmax_vjp", "log_softmax_vjp"]


class Piece(NamedTuple):
    """The elements of consecutive classes, the class axis last; bfloat16 as its bits."""

    first: int
    x: Any
    y: Any = None  # None: not given, like all below
    where: Any = None
    soft: Any = None
    weight: Any = None

    @property
    def stop(self) -> int:
        """The class after the last."""
        return self.first + int(self.x.shape[-1])

    def part(self, first: int, stop: int) -> Piece:
        """The classes from first to stop - 1, as a view."""
        begin, end = first - self.first, stop - self.first
        x, y, where, soft = (None if a is None else a[..., begin:end] for a in self[1:5])
        return Piece(first, x, y, where, soft, None if self.weight is None else self.weight[begin:end])

    def copy(self) -> Piece:
        """The same in memory of its own."""
        return Piece(self.first, *(None if a is None else np.ascontiguousarray(a).copy() for a in self[1:]))


class Losses(NamedTuple):
    """What losses need in addition, the same in every shard."""

    labels: Any  # int64, or None with soft labels; -1: ignored, NO_LABEL: no class
    target: Any  # the labels as given
    ignore_index: int
    sample_weight: Any | None
    factors: tuple[float, float, float, float, float]  # of LossOptions
    has_weight: bool
    words: int


class Terms(NamedTuple):
    """What the shards of a call have in common."""

    kind: str
    dtype: int
    name: str  # of the dtype
    n_classes: int
    batch: tuple[int, ...]
    temperature: float
    temperatures: Any | None  # float64 of the shape of the rows, instead of the temperature
    losses: Losses | None

    @property
    def words(self) -> int:
        """Words of a record."""
        return binding.RECORD_WORDS if self.losses is None else self.losses.words

    @property
    def code(self) -> int:
        """The kind as the core names it."""
        return int(binding.SHARD_KINDS[KINDS[self.kind]])

    @property
    def storage(self) -> np.dtype[Any]:
        """The dtype of the arrays."""
        return np.dtype(sys.modules["ml_dtypes"].bfloat16 if self.name == "bfloat16" else self.name)

    @property
    def bits(self) -> np.dtype[Any]:
        """The dtype in which the core gets them."""
        return np.dtype(np.uint16 if self.name == "bfloat16" else self.name)

    def with_classes(self, n_classes: int) -> Terms:
        """The same for another number of classes."""
        losses = self.losses
        if losses is not None and losses.labels is not None:
            losses = losses._replace(labels=_check_labels(losses.target, n_classes, losses.ignore_index))
        return self._replace(n_classes=n_classes, losses=losses)

    @property
    def compute(self) -> np.dtype[Any]:
        """The compute type."""
        return np.dtype(np.float64 if self.name == "float64" else np.float32)

    def clear_records(self) -> NDArray[np.int64]:
        """Records of no element."""
        records = np.empty((*self.batch, self.words), np.int64)
        binding.clear_records(records)
        return records

    def loss_arguments(
        self, piece: Piece, row_max: Any, upstream: Any, weight_sum: float, divisor: float, num_threads: Any = None
    ) -> tuple[Any, ...]:
        """The arguments that the stages of a loss share."""
        losses = self.losses
        assert losses is not None
        arrays = piece.x, losses.labels, _IGNORED, piece.soft, piece.weight, losses.sample_weight, upstream
        numbers = losses.factors, losses.words, self.n_classes, piece.first, weight_sum, divisor, row_max, num_threads
        return *arrays, *numbers

    def sums(self, piece: Piece, row_max: Any, keep: bool = False, num_threads: Any = None) -> tuple[Any, Any, Any]:
        """The records of a piece that consists of whole blocks, the maxima of these, and the powers or None."""
        records = np.empty((*self.batch, self.words), np.int64)
        block_max = np.empty((*self.batch, -(-piece.x.shape[-1] // BLOCK)))
        e = binding.empty(piece.x.shape, piece.x.dtype) if keep and piece.x.dtype == self.compute else None
        if self.losses is not None:
            arguments = self.loss_arguments(piece, row_max, None, float(self.n_classes), 1.0, num_threads)
            if not binding.run_shard_loss(self.dtype, e, records, block_max, *arguments):
                raise_bad_label(piece.soft, self.n_classes, None)
            return records, block_max, e
        arrays = piece.x, piece.y, e, piece.where, records, block_max
        numbers = self.n_classes, piece.first, self.temperature, self.temperatures, row_max, num_threads
        binding.run_shard(self.code, self.dtype, *arrays, *numbers)
        return records, block_max, e

    def weight_words(self, weight: Any) -> NDArray[np.int64]:
        """The sum of class weights of whole blocks."""
        return np.array(binding.shard_weights(self.dtype, weight))


@dataclasses.dataclass
class Partial:
    """The sums of a shard, or of several that have been merged.

    Attributes
    ----------
    records : ndarray of int64 of shape (rows..., words), or None
        The sums of each row over the complete blocks of 4096 classes. None where a row has at most 4096 classes, which
        travel whole.
    block_max : ndarray of float64 of shape (rows..., blocks), or None
        The maximum of each complete block of the shard, which finishing needs; None after a merge.
    fragments : dict of int to list
        The elements of blocks that are divided among shards, by the number of the block.
    e : ndarray or None
        The powers of the complete blocks that ``keep=True`` keeps for `finish_softmax`, which overwrites them.
    intervals : tuple of pairs of int
        The classes that are summed: begin and end of each run.
    row_max : ndarray of float64 of the shape of the rows, or None
        Of a second round: the maxima of the rows that needed it, NaN for all others.
    weight_words : ndarray of int64, or None
        The sum of the class weights.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import merge, partial
    >>> parts = [partial(np.full((2, 4096), 1e300), offset=i, n_classes=8192) for i in (0, 4096)]
    >>> merge(parts).intervals
    ((0, 8192),)
    >>> merge(parts).second_round
    array([1.e+300, 1.e+300])
    """

    records: Any
    block_max: Any
    fragments: dict[int, list[Piece]]
    e: Any | None
    intervals: tuple[tuple[int, int], ...]
    row_max: Any
    weight_words: Any
    terms: Terms = dataclasses.field(repr=False)
    local: Piece | None = dataclasses.field(repr=False, default=None)  # the complete blocks of the shard
    joined: dict[int, Any] = dataclasses.field(repr=False, default_factory=dict)  # blocks of fragments: their maxima
    blocks: dict[int, Piece] = dataclasses.field(repr=False, default_factory=dict)  # their elements, for clip_norm
    whole: Piece | None = dataclasses.field(repr=False, default=None)  # rows of at most 4096 classes
    version: str = dataclasses.field(repr=False, default=binding.VERSION)
    byte_order: str = dataclasses.field(repr=False, default=sys.byteorder)

    @property
    def second_round(self) -> NDArray[np.float64] | None:
        """`row_max` for a second round of `partial`, or None if no row of this merged result needs one."""
        if self.records is None or self.row_max is not None:
            return None
        terms = self.terms
        row_max = np.empty(terms.batch)
        arguments = terms.temperature, terms.temperatures, row_max
        if self.records.size and binding.find_second_round(terms.code, terms.dtype, self.records, *arguments):
            return row_max
        return None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what only the shard itself needs."""
        return self.__dict__ | {"e": None, "local": None}


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


def whole_blocks(first: int, stop: int, n_classes: int) -> tuple[int, int]:
    """The classes of the complete blocks of a shard, which has the classes from first to before stop."""
    begin = min(-(-first // BLOCK) * BLOCK, stop)
    return begin, stop if stop == n_classes else max(begin, stop // BLOCK * BLOCK)


def _check_labels(target: Any, n_classes: int, ignore_index: int) -> Any:
    """The labels as int64, where -1 is an ignored one and NO_LABEL one that is no class."""
    bad = (target < 0) | (target >= n_classes)
    labels = target.astype(np.int64)
    if bad.any() or 0 <= ignore_index < n_classes:
        labels[bad] = NO_LABEL
        if as_label_bits(ignore_index, target) is not None:
            labels[target == target.dtype.type(ignore_index)] = -1
    return labels


def _words_of(is_soft: bool, has_weight: bool, label_smoothing: float) -> int:
    if is_soft:
        return int(binding.SOFT_WORDS)
    return int(binding.LABEL_WORDS if label_smoothing == 0 else binding.TERMS_WORDS) + has_weight


def plan_losses(
    x: Any, batch: tuple[int, ...], target: Any, n_classes: int | None, options: dict[str, Any]
) -> tuple[Losses, Any, Any]:
    """Checked options of losses, with the class weights and the soft labels of the shard.

    n_classes None: not yet known, and labels remain unchecked until `Terms.with_classes`.
    """
    compute = compute_dtype(x.dtype)
    labels, soft = check_target(target, (*batch, x.shape[-1]), batch, compute)
    checked = check_loss_options(x.shape[-1], batch, compute, "none", **options)
    numbers = labels
    if labels is not None and n_classes is not None:
        numbers = _check_labels(labels, n_classes, checked.ignore_index)
    words = _words_of(labels is None, checked.weight is not None, checked.label_smoothing)
    losses = Losses(
        numbers, labels, checked.ignore_index, checked.sample_weight, checked.factors, checked.weight is not None, words
    )
    return losses, soft, checked.weight


def _check_shard(offset: Any, n_classes: Any, length: int) -> tuple[int, int]:
    offset = check_count("offset", offset)
    n = offset + length if n_classes is None else check_count("n_classes", n_classes)
    if offset + length > n:
        raise ValueError(
            f"the shard has {length} classes from offset {offset} on; n_classes is {n}, so offset must be at most "
            f"{n - length}"
        )
    return offset, n


def plan_partial(
    x: Any,
    *,
    offset: Any,
    n_classes: Any,
    kind: str,
    axis: Any,
    temperature: Any = 1.0,
    where: Any = None,
    y: Any = None,
    target: Any = None,
    losses: dict[str, Any] | None = None,
) -> tuple[Terms, Piece]:
    """Check a call of `partial`: what it has in common with other shards, and its elements.

    n_classes None: not yet known.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    gradient, loss = kind.endswith("_vjp"), kind == "loss"
    if gradient != (y is not None) or loss != (target is not None):
        required = "y" if gradient else "target" if loss else "neither y nor target"
        raise ValueError(f"kind {kind!r} takes {required}")
    if where is not None and loss:
        raise ValueError("where is not allowed with kind 'loss': make logits -inf instead")
    x, dtype = as_float("dy" if gradient else "x", x, CPU)
    if x.ndim == 0:
        raise ValueError("x is 0-dimensional; a shard has an axis of classes")
    if gradient:
        y, y_dtype = as_float("y", y, CPU)
        if y_dtype != dtype or y.shape != x.shape:
            raise ValueError(f"y has dtype {y.dtype} and shape {y.shape}; dy has {x.dtype} and {x.shape}")
    axes = normalize_axes(axis, x.ndim)
    if len(axes) != 1:
        raise ValueError(f"axis must be one axis for a shard, got {axis!r}")
    if where is not None:
        where = axis_last(check_where(where, x.shape), axes)
    batch = batch_shape(x, axes)
    offset, n = _check_shard(offset, n_classes, x.shape[axes[0]])
    row_shape = tuple(1 if i in axes else length for i, length in enumerate(x.shape))
    given: Any = 1.0 if loss else check_temperatures(temperature, row_shape, gradient)
    each = None if isinstance(given, float) else np.ascontiguousarray(given).reshape(batch)
    rows = axis_last(x, axes)
    checked, soft, weight = None, None, None
    if loss:
        known = None if n_classes is None else n
        checked, soft, weight = plan_losses(rows, batch, _target_last(target, rows, axes), known, losses or {})
        given = checked.factors[0]
    terms = Terms(kind, dtype, _NAMES[dtype], n, batch, given if each is None else 1.0, each, checked)
    second = None if y is None else as_buffer(axis_last(y, axes))
    return terms, Piece(offset, as_buffer(rows), second, where, soft, weight)


def _target_last(target: Any, rows: Any, axes: tuple[int, ...]) -> Any:
    """Soft labels with the class axis last, as the rows have it; labels as they are."""
    given = CPU.array("target", target)
    return axis_last(given, axes) if given.ndim == rows.ndim else given


def partial(
    x: ArrayLike,
    *,
    offset: SupportsIndex,
    n_classes: SupportsIndex,
    kind: _Kind = "softmax",
    axis: SupportsIndex = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    keep: bool = False,
    y: ArrayLike | None = None,
    target: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
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
        As in `csoftmax.softmax`; `where` and temperatures of rows are not for losses.
    keep : bool, default False
        Keep the powers of the elements for `finish_softmax`, which then need not compute them again (float32 and
        float64). `finish_softmax` returns their memory.
    y : array_like of the shape of x, optional
        Of a gradient: the shard of the result of the forward function.
    target : array_like, optional
        Of a loss: labels as numbers from 0 to n_classes - 1, one for each row; or soft labels of the shard.
    weight : array_like of shape (k,), optional
        Class weights of the shard.
    sample_weight, label_smoothing, ignore_index, z_loss
        As in `csoftmax.cross_entropy`, the same in every shard.
    row_max : array_like of the shape of the rows, optional
        The second round: `Partial.second_round` of the merged first one.

    Returns
    -------
    Partial
        For `merge` with those of the other shards.

    Raises
    ------
    TypeError, ValueError, MemoryError
        As in `csoftmax.softmax` and `csoftmax.cross_entropy`. A label that is no class is reported when the merged
        result is finished.

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
    losses = {
        "weight": weight,
        "sample_weight": sample_weight,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "z_loss": z_loss,
        "temperature": temperature,
    }
    shard: dict[str, Any] = {"offset": offset, "n_classes": n_classes, "kind": kind, "axis": axis}
    terms, piece = plan_partial(
        as_native(x, "dy" if y is not None else "x"),
        **shard,
        temperature=temperature,
        where=as_native(where, "where"),
        y=as_native(y, "y"),
        target=as_native(target, "target"),
        losses={name: as_native(a, name) for name, a in losses.items()},
    )
    maxima = None
    if row_max is not None:
        maxima = np.ascontiguousarray(np.asarray(row_max, np.float64))
        if maxima.shape != terms.batch:
            raise ValueError(f"row_max has shape {maxima.shape}; the rows have shape {terms.batch}")
    return sum_piece(terms, piece, maxima, keep=check_flag("keep", keep), num_threads=num_threads)


def sum_piece(
    terms: Terms, piece: Piece, row_max: Any = None, *, keep: bool = False, num_threads: Any = None
) -> Partial:
    """The sums of a shard: records of its complete blocks, copies of the others."""
    n, first, stop = terms.n_classes, piece.first, piece.stop
    intervals = ((first, stop),) if stop > first else ()
    if n <= BLOCK:
        fragments = {0: [piece.copy()]} if intervals else {}
        result = Partial(None, None, fragments, None, intervals, None, None, terms)
        join_fragments(result)
        return result
    begin, end = whole_blocks(first, stop, n)
    fragments = {}
    for a, b in ((first, begin), (end, stop)):
        if b > a:
            fragments.setdefault(a // BLOCK, []).append(piece.part(a, b).copy())
    local = piece.part(begin, end)
    if local.x.shape[-1] == 0:
        local = Piece(min(begin // BLOCK * BLOCK, n), *local[1:])
    records, block_max, e = terms.sums(local, row_max, keep, num_threads)
    words = None if piece.weight is None else terms.weight_words(local.weight)
    result = Partial(records, block_max, fragments, e, intervals, row_max, words, terms, local)
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
        records, block_max, _ = terms.sums(piece, to.row_max)
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
        Shards, or results of merges. One whose classes are all there already, as after a repeated delivery, changes
        nothing. Arrays of records of one shape are merged as well, without these checks; one array alone is an
        iterable along its first axis.

    Returns
    -------
    Partial, or ndarray of int64
        The same for every order and grouping. The arguments are left as they are.

    Raises
    ------
    ValueError
        If shards overlap without being the same, or differ in version, byte order, dtype, kind, rows or round.

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
        parts = list(parts[0])
    if not parts:
        raise ValueError("merge needs at least one partial result")
    if not isinstance(parts[0], Partial):
        return _merge_arrays(parts)
    result = _copy(parts[0])
    for part in parts[1:]:
        _merge_into(result, part)
    return result


def _merge_arrays(parts: list[Any]) -> NDArray[np.int64]:
    arrays = [np.asarray(a) for a in parts]
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


def _check_alike(a: Partial, b: Partial) -> None:
    for name in ("version", "byte_order"):
        if getattr(a, name) != getattr(b, name):
            raise ValueError(f"partial results differ in {name}: {getattr(a, name)} and {getattr(b, name)}")
    s, t = a.terms, b.terms
    for name in ("kind", "name", "n_classes", "batch", "temperature", "words"):
        if getattr(s, name) != getattr(t, name):
            shown = {"name": "dtype", "batch": "rows"}.get(name, name)
            raise ValueError(f"partial results differ in {shown}: {getattr(s, name)} and {getattr(t, name)}")
    rounds = [None if p.row_max is None else p.row_max.tobytes() for p in (a, b)]
    if rounds[0] != rounds[1]:
        raise ValueError("partial results of the first and of the second round, or of different ones, cannot be merged")


def _merge_into(a: Partial, b: Partial) -> None:
    if not isinstance(b, Partial):
        raise TypeError(f"merge takes Partials or arrays of records, got {type(b).__name__} beside a Partial")
    _check_alike(a, b)
    if all(any(first <= f and s <= stop for first, stop in a.intervals) for f, s in b.intervals):
        return  # delivered before, or without classes
    for f, s in b.intervals:
        for first, stop in a.intervals:
            if max(f, first) < min(s, stop):
                raise ValueError(f"shards overlap: classes {f} to {s - 1} and {first} to {stop - 1}")
    if a.records is not None and a.records.size:
        binding.merge_records(a.records, b.records)
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
