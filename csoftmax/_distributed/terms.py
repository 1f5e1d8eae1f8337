"""The checked arguments of a call on a shard, and the elements of the shard."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.labels import as_label_bits, check_loss_options, check_target, raise_bad_label
from .._arguments.layouts import axis_last, batch_shape, check_where, normalize_axes
from .._arguments.numbers import check_count, check_temperatures, number_and_rows
from .._arguments.places import CPU, as_float
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype
from .agreement import Agreed, describe

BLOCK = binding.BLOCK_ELEMENTS
KINDS = {"softmax": "softmax", "log": "log_softmax", "loss": "loss"} | {
    name: name for name in ("softmax_vjp", "log_softmax_vjp")
}
NO_LABEL = np.iinfo(np.int64).max  # of a row whose label is no class: no shard owns it
_NAMES = {code: name for name, code in binding.DTYPES.items()}
_IGNORED = 2**64 - 1  # the bits of -1, which stands for every ignored label


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
    softcap: float  # 0: none

    @property
    def clips_capped(self) -> bool:
        """Whether a norm is clipped after the slopes of a soft cap, which takes whole rows."""
        return self.softcap != 0 and self.factors[3] > 0


class Terms(NamedTuple):
    """Arguments that all shards of a call share."""

    kind: str
    dtype: int
    name: str  # of the dtype
    n_classes: int
    batch: tuple[int, ...]
    temperature: float
    temperatures: Any | None  # float64 of the shape of the rows, instead of the temperature
    losses: Losses | None
    agreed: Agreed = ()  # all that shards must have in common but for n_classes
    has_where: bool = False
    origin: tuple[int, tuple[int, ...]] | None = None  # of some rows: their first, and the shape of those of the call
    axis: int = -1  # of the classes, as the caller has them
    has_sink: bool = False  # the last class is the sink, which no shard has
    row_offsets: tuple[int, ...] = ()  # along each axis of the rows, of those of this rank among all; (): 0

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

    @property
    def keeps_powers(self) -> bool:
        """Whether there is room for powers where the result will be, and they do not belong to capped logits."""
        return self.storage == self.compute and (self.losses is None or self.losses.softcap == 0)

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
        return *arrays, *numbers, self.temperatures, losses.softcap

    def sums(self, piece: Piece, row_max: Any, keep: Any = False, num_threads: Any = None) -> tuple[Any, Any, Any]:
        """The records of a piece that consists of whole blocks, the maxima of these, and the powers or None.

        keep : whether powers are kept, or the array that receives them
        """
        records = np.empty((*self.batch, self.words), np.int64)
        block_max = np.empty((*self.batch, -(-piece.x.shape[-1] // BLOCK)))
        e = keep if isinstance(keep, np.ndarray) else None
        if keep is True and self.keeps_powers:
            e = binding.empty(piece.x.shape, piece.x.dtype)
        if self.losses is not None:
            arguments = self.loss_arguments(piece, row_max, None, float(self.n_classes), 1.0, num_threads)
            if not binding.run_shard_loss(self.dtype, e, records, block_max, *arguments):
                raise_bad_label(piece.soft, self.n_classes, None, lambda at: self.place_of(piece, at))
            return records, block_max, e
        arrays = piece.x, piece.y, e, piece.where, records, block_max
        numbers = self.n_classes, piece.first, self.temperature, self.temperatures, row_max, num_threads
        binding.run_shard(self.code, self.dtype, *arrays, *numbers)
        return records, block_max, e

    def place_of(self, piece: Piece, at: tuple[int, ...]) -> tuple[int, ...]:
        """The indices in the call of an element of a piece, the class axis last."""
        *row, j = at
        return *self.row_at(tuple(row)), piece.first + int(j)

    def row_at(self, row: tuple[Any, ...]) -> tuple[int, ...]:
        """The indices of a row in the call, among the rows of all ranks."""
        if self.origin is not None:
            first, shape = self.origin
            number = int(np.ravel_multi_index(row, self.batch)) if row else 0
            row = tuple(map(int, np.unravel_index(first + number, shape)))
        return shift(tuple(map(int, row)), self.row_offsets)

    def weight_words(self, weight: Any) -> NDArray[np.int64]:
        """The sum of class weights of whole blocks."""
        return np.array(binding.shard_weights(self.dtype, weight))


def shift(row: tuple[int, ...], offsets: tuple[int, ...]) -> tuple[int, ...]:
    """The indices of a row among those of all ranks; offsets: () for 0."""
    return tuple(i + first for i, first in zip(row, offsets, strict=True)) if offsets else row


def whole_blocks(first: int, stop: int, n_classes: int) -> tuple[int, int]:
    """The classes of the complete blocks of a shard, which has the classes from first to before stop."""
    begin = min(-(-first // BLOCK) * BLOCK, stop)
    return begin, stop if stop == n_classes else max(begin, stop // BLOCK * BLOCK)


def _check_labels(target: Any, n_classes: int, ignore_index: int) -> Any:
    """The labels as int64, where -1 is an ignored one and NO_LABEL one that is no class."""
    labels = target.astype(np.int64, order="C")
    if not binding.all_below(labels, n_classes) or 0 <= ignore_index < n_classes:
        labels[(target < 0) | (target >= n_classes)] = NO_LABEL
        if as_label_bits(ignore_index, target) is not None:
            labels[target == target.dtype.type(ignore_index)] = -1
    return labels


def _words_of(is_soft: bool, has_weight: bool, label_smoothing: float) -> int:
    if is_soft:
        return int(binding.SOFT_WORDS)
    return int(binding.LABEL_WORDS if label_smoothing == 0 else binding.TERMS_WORDS) + has_weight


def plan_losses(
    x: Any,
    batch: tuple[int, ...],
    row_shape: tuple[int, ...],
    target: Any,
    n_classes: int | None,
    options: dict[str, Any],
) -> tuple[Losses, Any, Any, Any]:
    """Checked options of losses, with the class weights, the soft labels of the shard and the rows' temperatures.

    n_classes None: not yet known, and labels remain unchecked until `Terms.with_classes`.
    """
    compute = compute_dtype(x.dtype)
    labels, soft = check_target(target, (*batch, x.shape[-1]), batch, compute)
    checked = check_loss_options(x.shape[-1], batch, compute, "none", row_shape=row_shape, **options)
    numbers = labels
    if labels is not None and n_classes is not None:
        numbers = _check_labels(labels, n_classes, checked.ignore_index)
    has_weight = checked.weight is not None
    words = _words_of(labels is None, has_weight, checked.label_smoothing)
    same = labels, checked.ignore_index, checked.sample_weight, checked.factors
    losses = Losses(numbers, *same, has_weight, words, checked.softcap)
    return losses, soft, checked.weight, checked.temperatures


def _check_shard(offset: Any, n_classes: Any, length: int) -> tuple[int, int]:
    offset = check_count("offset", offset)
    n = offset + length if n_classes is None else check_count("n_classes", n_classes)
    if length > n:
        raise ValueError(f"the shard has {length} classes, so n_classes must be at least {length}, got {n}")
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
    has_sink: bool = False,
    name: str = "x",
) -> tuple[Terms, Piece]:
    """Check a call of `partial`: what it has in common with other shards, and its elements.

    n_classes None: not yet known. has_sink: one more class, which no shard has. name: of x, for messages.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
    gradient, loss = kind.endswith("_vjp"), kind == "loss"
    if gradient != (y is not None) or loss != (target is not None):
        required = "y" if gradient else "target" if loss else "neither y nor target"
        raise ValueError(f"kind {kind!r} takes {required}")
    if where is not None and loss:
        raise ValueError("where is not allowed with kind 'loss': make logits -inf instead")
    x, dtype = as_float("dy" if gradient else name, x, CPU)
    if x.ndim == 0:
        raise ValueError(f"{name} is 0-dimensional; a shard has an axis of classes")
    if gradient:
        y, y_dtype = as_float("y", y, CPU)
        if y_dtype != dtype or y.shape != x.shape:
            raise ValueError(f"y has dtype {y.dtype} and shape {y.shape}; dy has {x.dtype} and {x.shape}")
    axes = normalize_axes(axis, x.ndim)
    if len(axes) != 1:
        raise ValueError(f"axis must be one axis for a shard, got {axis!r}")
    if where is not None:
        where = axis_last(check_where(where, x.shape), axes)
    batch, dtype_name = batch_shape(x, axes), _NAMES[dtype]
    offset, n = _check_shard(offset, n_classes, x.shape[axes[0]])
    row_shape = tuple(1 if i in axes else length for i, length in enumerate(x.shape))
    rows = axis_last(x, axes)
    checked, soft, weight = None, None, None
    if loss:
        known = None if n_classes is None else n
        given = _target_last(target, rows, axes)
        checked, soft, weight, each = plan_losses(
            rows, batch, row_shape, given, known, {"first_class": offset} | (losses or {})
        )
        temperature = checked.factors[0]
    else:
        temperature, each = number_and_rows(check_temperatures(temperature, row_shape, gradient), batch, 1.0)
    each = None if each is None else np.array(each, order="C")
    options = describe(each) or temperature + 0.0, where is not None, has_sink
    agreed = _agree(kind, dtype_name, batch, *options, checked, weight)
    numbers = n + has_sink, batch, temperature, each
    terms = Terms(kind, dtype, dtype_name, *numbers, checked, agreed, where is not None, None, axes[0], has_sink)
    second = None if y is None else as_buffer(axis_last(y, axes))
    return terms, Piece(offset, as_buffer(rows), second, where, soft, weight)


def _agree(
    kind: str,
    dtype: str,
    batch: tuple[int, ...],
    temperature: Any,
    has_where: bool,
    has_sink: bool,
    losses: Losses | None,
    weight: Any,
) -> Agreed:
    """What shards of a call must have in common."""
    common = (
        ("kind", kind),
        ("dtype", dtype),
        ("shape of the rows", batch),
        ("temperature", temperature),
        ("where", has_where),
        ("has_sink", has_sink),
    )
    if losses is None:
        return common
    return (
        *common,
        ("label_smoothing", losses.factors[1] + 0.0),
        ("z_loss", losses.factors[2] + 0.0),
        ("softcap", losses.softcap),
        ("clip_value", losses.factors[4]),
        ("ignore_index", losses.ignore_index),
        ("soft labels", losses.labels is None),
        ("class weights", weight is not None),
        ("target", describe(losses.target)),
        ("sample_weight", describe(losses.sample_weight)),
    )


def _target_last(target: Any, rows: Any, axes: tuple[int, ...]) -> Any:
    """Soft labels with the class axis last, as the rows have it; labels as they are."""
    given = CPU.array("target", target)
    return axis_last(given, axes) if given.ndim == rows.ndim else given
