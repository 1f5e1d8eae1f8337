"""Sequences of positions: padded arrays with lengths or a mask, and packed ones; tags as integers or as sets."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .._cpu import binding
from .._cpu.apart import run_apart
from .._cpu.dtypes import as_buffer
from .labels import is_representable
from .layouts import check_out, is_same_view, may_share_memory
from .numbers import as_index
from .places import Place, as_float


class Sequences(NamedTuple):
    """Checked emissions, and which of their positions make up each sequence."""

    x: Any  # (rows, L), C-contiguous
    dtype: int
    given_shape: tuple[int, ...]  # of the emissions
    batch: tuple[int, ...]  # of results with one number a sequence
    length: int  # positions of each sequence, if all take part
    offsets: Any | None  # N + 1: positions of each sequence, or None if each has `length`
    rows: Any | None  # of each position its row of x, or None if position p is row p
    kept: Any | None  # (rows,): whether a row takes part; None if all do
    is_packed: bool

    @property
    def n(self) -> int:
        """The number of tags."""
        return self.given_shape[-1]

    @property
    def total(self) -> int:
        """The number of sequences."""
        return math.prod(self.batch)

    @property
    def positions(self) -> tuple[int, ...]:
        """The shape of results with one number a position."""
        return self.given_shape[:-1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Numbers of sequences, of positions of each, and of tags."""
        return self.total, self.length, self.n

    def lengths(self) -> Any:
        """The number of positions of each sequence that take part."""
        return np.full(self.total, self.length) if self.offsets is None else np.diff(self.offsets)


def _check_bools(name: str, given: Any, shape: tuple[int, ...], place: Place) -> Any:
    """A boolean array broadcast to a shape."""
    values = place.array(name, given)
    if values.dtype != np.bool_:
        raise TypeError(f"{name} must be boolean, got dtype {values.dtype}")
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {values.shape}, which does not broadcast to {shape}") from None


def check_integers(name: str, given: Any, place: Place) -> Any:
    """An array of integers, of any of their dtypes."""
    values = place.array(name, given)
    if values.size == 0 and values.dtype.kind == "f":  # NumPy makes an empty list float64
        return values.astype(np.int64)
    if values.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {values.dtype}")
    return values


def _check_indptr(indptr: Any, rows: int, place: Place) -> Any:
    """Offsets that rise from 0 to the number of rows."""
    values = check_integers("indptr", indptr, place)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"indptr has shape {values.shape}; one axis with at least one element is allowed")
    offsets = np.array(values, np.int64)
    if offsets[0] != 0 or offsets[-1] != rows or np.any(values[1:] < values[:-1]):
        raise ValueError(f"indptr must rise from 0 to the number of positions, {rows}, got {describe_values(values)}")
    return offsets


def describe_values(values: Any) -> str:
    """The first and last elements of an array, for a message."""
    return np.array2string(values, threshold=8, edgeitems=3, separator=", ")


def lay_out_sequences(
    emissions: Any, place: Place, lengths: Any = None, mask: Any = None, indptr: Any = None
) -> Sequences:
    """Check emissions and what says which of their positions take part."""
    x, dtype = as_float("emissions", emissions, place)
    given = x.shape
    if indptr is not None:
        if x.ndim != 2:
            raise ValueError(f"emissions has shape {given}; with indptr it is (positions, tags)")
        if lengths is not None:
            raise ValueError("lengths and indptr exclude each other: indptr already says how long each sequence is")
        offsets = _check_indptr(indptr, given[0], place)
        batch: tuple[int, ...] = (len(offsets) - 1,)
        length = 0
    else:
        if x.ndim < 2:
            raise ValueError(f"emissions has shape {given}; allowed are (..., positions, tags)")
        offsets, batch, length = None, given[:-2], given[-2]
    flat = run_apart(x.nbytes, np.ascontiguousarray, x).reshape(math.prod(given[:-1]), given[-1])
    sequences = Sequences(flat, dtype, given, batch, length, offsets, None, None, indptr is not None)
    if lengths is None and mask is None:
        return sequences
    kept = np.ones(given[:-1], bool)
    if lengths is not None:
        numbers = _check_lengths(lengths, batch, length, place)
        kept = np.arange(length) < numbers[..., None]
    if mask is not None:
        kept = kept & _check_bools("mask", mask, given[:-1], place)
    return _take_out(sequences, kept.reshape(-1))


def _check_lengths(lengths: Any, batch: tuple[int, ...], length: int, place: Place) -> Any:
    values = check_integers("lengths", lengths, place)
    if values.shape != batch:
        raise ValueError(f"lengths has shape {values.shape}; there is one for each sequence, {batch}")
    bad = (values < 0) | (values > length)
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), batch)
        where = f" at ({', '.join(map(str, at))})" if at else ""
        raise ValueError(f"lengths must be from 0 to {length}, the number of positions, got {values[at]}{where}")
    return values.astype(np.int64)


def _take_out(sequences: Sequences, kept: Any) -> Sequences:
    """The sequences without the rows at which `kept` is False."""
    before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    if sequences.offsets is not None:
        begins = sequences.offsets
    else:
        begins = np.arange(sequences.total + 1, dtype=np.int64) * sequences.length
    return sequences._replace(offsets=before[begins], rows=np.flatnonzero(kept).astype(np.int64), kept=kept)


class Parameters(NamedTuple):
    """Transitions, start and end in float64, and the dtypes of their gradients."""

    arrays: tuple[Any, Any, Any]
    dtypes: tuple[Any, Any, Any]


def check_parameters(transitions: Any, start: Any, end: Any, n: int, place: Place) -> Parameters:
    """Check the parameters of a chain over n tags."""
    arrays: list[Any] = []
    dtypes: list[Any] = []
    for name, given, shape in (("transitions", transitions, (n, n)), ("start", start, (n,)), ("end", end, (n,))):
        if given is None and name != "transitions":
            arrays.append(None)
            dtypes.append(None)
            continue
        values, _ = as_float(name, given, place)
        if values.shape != shape:
            raise ValueError(f"{name} has shape {values.shape}; the emissions have {n} tags, so {shape} is allowed")
        arrays.append(np.ascontiguousarray(values, np.float64))
        dtypes.append(values.dtype)
    return Parameters((arrays[0], arrays[1], arrays[2]), (dtypes[0], dtypes[1], dtypes[2]))


def check_allowed(allowed: Any, sequences: Sequences, place: Place) -> Any:
    """`allowed` as bytes for the core, or None."""
    if allowed is None:
        return None
    return np.ascontiguousarray(_check_bools("allowed", allowed, sequences.given_shape, place))


class Tags(NamedTuple):
    """Labels in a private copy, or sets of them."""

    labels: Any | None
    sets: Any | None
    ignore: int | None
    given: Any


def check_tags(tags: Any, sequences: Sequences, place: Place, ignore_index: int | None, sets: bool = True) -> Tags:
    """Check the shape and dtype of tags; the core checks the labels of the positions that take part."""
    given = place.array("tags", tags)
    shape = sequences.positions
    if given.dtype == np.bool_ and sets:
        if given.shape != sequences.given_shape:
            raise ValueError(
                f"tags has shape {given.shape}: sets of tags, which are boolean, have the shape of the emissions, "
                f"{sequences.given_shape}"
            )
        return Tags(None, given.copy(order="C"), None, given)
    if given.size == 0 and given.dtype.kind == "f":  # NumPy makes an empty list float64
        given = given.astype(np.int64)
    if given.dtype.kind not in "iu":
        allowed = "integers, or bool for sets of tags" if sets else "integers"
        raise TypeError(f"tags must hold {allowed}, got dtype {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"tags has shape {given.shape}; there is one for each position, {shape}")
    ignore = ignore_index if ignore_index is not None and is_representable(ignore_index, given.dtype) else None
    if ignore is not None and ignore >= 2**63:
        ignore -= 2**64  # as the bits of the labels
    return Tags(run_apart(given.nbytes, np.array, given, np.int64, order="C"), None, ignore, given)


def raise_bad_tag(row: int, tags: Tags, sequences: Sequences, ignore_index: int | None) -> NoReturn:
    """Raise for the label of a row that is no tag."""
    at = np.unravel_index(row, sequences.positions)
    ignored = "" if ignore_index is None else f", and ignore_index, for unknown ones, is {ignore_index}"
    tags_are = f"the tags are 0 to {sequences.n - 1}" if sequences.n else "there is no tag"
    raise IndexError(f"tags[{', '.join(map(str, at))}] is {tags.given[at]}: {tags_are}{ignored}")


def choose_result(out: Any, shape: tuple[int, ...], sequences: Sequences, read: tuple[Any, ...], dtype: Any) -> Any:
    """The array that the core writes one row of tags a position to: `out` where it can be written directly."""
    if out is None:
        return binding.empty(shape, dtype)
    check_out(out, shape, dtype)
    is_plain = out.flags.c_contiguous and out.dtype == dtype
    if not is_plain or any(a is not None and may_share_memory(out, a) for a in read):
        return binding.empty(shape, dtype)
    x = sequences.x
    if may_share_memory(out, x) and not is_same_view(out.reshape(x.shape), x):
        return binding.empty(shape, dtype)
    return out


def clear_absent(result: Any, sequences: Sequences) -> None:
    """Write 0 to the rows of a result that take no part."""
    if sequences.kept is not None:
        as_buffer(result).reshape(sequences.kept.size, sequences.n)[~sequences.kept] = 0


def check_size(name: str, size: Any, minimum: int) -> int | None:
    """A number of paths, or None."""
    if size is None:
        return None
    try:
        value = as_index(size)
    except TypeError:
        raise TypeError(f"{name} must be an int or None, got {size!r}") from None
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {size}")
    return value
