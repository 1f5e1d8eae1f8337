"""Segments: which elements of an axis belong together, from offsets or from ids in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .foreign import as_native
from .numbers import check_count
from .places import CPU, Place, place_of, to_host
from .sequences import check_integers, describe_values


class Segments:
    """Groups of elements along an axis, checked and sorted once, for any number of calls.

    Parameters
    ----------
    indptr : array_like of integers of shape (S + 1,), optional
        Offsets that rise from at least 0: segment s has the elements ``indptr[s]`` to ``indptr[s + 1] - 1``. Elements
        before the first offset and from the last one on take no part.
    segment_ids : array_like of integers of shape (E,), optional
        The segment of each element, in any order; an element with -1 takes no part. Either `indptr` or `segment_ids`
        is given.
    num_segments : int, optional
        S, with `segment_ids`; by default the largest id plus 1.
    device : {None, "cpu", "cuda", "cuda:<index>"}, optional
        A device that the arrays are copied to at once. Without it they are copied when a call on a device first needs
        them.

    Attributes
    ----------
    indptr : ndarray of int64 of shape (S + 1,)
        Offsets of the segments among the elements in the order of `order`; read-only.
    order : ndarray of int32 or int64 of shape (E,), or None
        The elements sorted by segment, those of one segment in the order of their positions; the elements that take no
        part come before the first offset. None if the elements are in this order already. Read-only.
    num_segments : int
        S.
    num_elements : int or None
        E, the length of the axis. None with `indptr`, which any axis fits that is not shorter than the last offset.

    Raises
    ------
    IndexError
        If an id is neither -1 nor a segment; the message names the first position and value.
    TypeError, ValueError
        If another argument is not allowed.
    DeviceError
        If `device` cannot be used.

    Notes
    -----
    Ids are sorted by counting, in two passes over them. A graph, or a batch of lists, that is used again and again is
    worth a `Segments`: a call that gets ids sorted them anew.

    Examples
    --------
    >>> import csoftmax
    >>> segments = csoftmax.Segments(segment_ids=[2, 0, 2, -1])
    >>> segments
    Segments(num_segments=3, num_elements=4)
    >>> segments.indptr, segments.order
    (array([1, 2, 2, 4]), array([3, 1, 0, 2], dtype=int32))
    >>> segments.lengths
    array([1, 0, 2])
    >>> csoftmax.segment_softmax([0.0, 5.0, 0.0, 7.0], segments=segments)
    array([0.5, 1. , 0.5, 0. ])
    """

    __slots__ = ("_on_devices", "indptr", "num_elements", "num_segments", "order")

    indptr: NDArray[np.int64]
    order: NDArray[np.integer[Any]] | None
    num_segments: int
    num_elements: int | None

    def __init__(
        self,
        *,
        indptr: ArrayLike | None = None,
        segment_ids: ArrayLike | None = None,
        num_segments: Any = None,
        device: str | None = None,
    ) -> None:
        if (indptr is None) == (segment_ids is None):
            count = "neither" if indptr is None else "both"
            raise TypeError(f"indptr or segment_ids is needed, got {count}")
        self._on_devices: dict[int, tuple[Any, Any]] = {}
        if segment_ids is None:
            self.indptr, self.order, self.num_elements = _check_offsets(indptr), None, None
            if num_segments is not None and check_count("num_segments", num_segments) != len(self.indptr) - 1:
                raise ValueError(f"num_segments is {num_segments}, and indptr has {len(self.indptr) - 1} segments")
        else:
            ids = _check_ids(segment_ids)
            self.indptr, self.order = _sort_ids(ids, _count_segments(ids, num_segments))
            self.num_elements = len(ids)
        self.num_segments = len(self.indptr) - 1
        for values in (self.indptr, self.order):
            if values is not None:
                values.flags.writeable = False
        if device is not None:
            place = place_of(device, self.indptr)
            if place.on_cuda:
                self.on(place)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of elements of each segment, int64 of shape (S,)."""
        return np.diff(self.indptr)

    def __len__(self) -> int:
        return self.num_segments

    def __repr__(self) -> str:
        return f"Segments(num_segments={self.num_segments}, num_elements={self.num_elements})"

    def __reduce__(self) -> Any:
        return restore_segments, (self.indptr, self.order, self.num_elements)

    def on(self, place: Place) -> tuple[Any, Any]:
        """Indptr and order at a place; those on a device are copied once."""
        if place.number is None:
            return self.indptr, self.order
        if place.number not in self._on_devices:
            with place.context():
                order = None if self.order is None else place.xp.asarray(self.order)
                self._on_devices[place.number] = place.xp.asarray(self.indptr), order
        return self._on_devices[place.number]

    def check_length(self, name: str, length: int, axis: int) -> None:
        """Refuse an array whose axis these segments do not fit."""
        if self.num_elements is not None and length != self.num_elements:
            raise ValueError(f"{name} has {length} elements along axis {axis}; segment_ids has {self.num_elements}")
        if length < self.indptr[-1]:
            raise ValueError(f"{name} has {length} elements along axis {axis}; indptr ends at {self.indptr[-1]}")

    def repeated(self, count: int) -> Segments:
        """The segments of an axis each of whose elements has become `count` neighbouring ones."""
        order = self.order
        if order is not None:
            dtype: Any = np.int32 if order.size * count < 2**31 else np.int64
            order = (order.astype(dtype)[:, None] * count + np.arange(count, dtype=dtype)).reshape(-1)
        elements = None if self.num_elements is None else self.num_elements * count
        return restore_segments(self.indptr * count, order, elements)


def restore_segments(indptr: Any, order: Any, num_elements: int | None) -> Segments:
    """Segments of arrays that have been checked."""
    segments = Segments.__new__(Segments)
    segments.indptr, segments.order, segments.num_elements = indptr, order, num_elements
    segments.num_segments = len(indptr) - 1
    segments._on_devices = {}
    for values in (indptr, order):
        if values is not None:
            values.flags.writeable = False
    return segments


def as_segments(
    indptr: Any = None, segment_ids: Any = None, num_segments: Any = None, segments: Any = None
) -> Segments:
    """The segments of a call, which has exactly one of indptr, segment_ids and segments."""
    given = {"indptr": indptr, "segment_ids": segment_ids, "segments": segments}
    names = [name for name, x in given.items() if x is not None]
    if len(names) != 1:
        count = " and ".join(names) if names else "none"
        raise TypeError(f"exactly one of indptr, segment_ids and segments is needed, got {count}")
    if segments is None:
        return Segments(indptr=indptr, segment_ids=segment_ids, num_segments=num_segments)
    if not isinstance(segments, Segments):
        raise TypeError(f"segments must be a csoftmax.Segments, got {type(segments).__name__}")
    if num_segments is not None and check_count("num_segments", num_segments) != segments.num_segments:
        raise ValueError(f"num_segments is {num_segments}, and segments has {segments.num_segments}")
    return segments


def _on_host(name: str, given: Any) -> Any:
    (values,) = to_host(as_native(given, name))
    values = check_integers(name, values, CPU)
    if values.ndim != 1:
        raise ValueError(f"{name} has shape {values.shape}; one axis is allowed")
    return values


def _check_offsets(indptr: Any) -> Any:
    values = _on_host("indptr", indptr)
    if len(values) == 0:
        raise ValueError("indptr is empty; it has one element more than there are segments")
    if values[0] < 0 or np.any(values[1:] < values[:-1]) or values[-1] > np.iinfo(np.int64).max:
        raise ValueError(f"indptr must rise from at least 0, got {describe_values(values)}")
    return np.array(values, np.int64)


def _check_ids(segment_ids: Any) -> Any:
    """Ids as a private int64 array; what no int64 holds becomes -2, which is no id either."""
    values = _on_host("segment_ids", segment_ids)
    ids = values.astype(np.int64)
    if values.dtype == np.uint64:
        ids[values > np.uint64(np.iinfo(np.int64).max)] = -2
    return ids


def _count_segments(ids: Any, num_segments: Any) -> int:
    largest = int(ids.max()) if len(ids) else -1
    smallest = int(ids.min()) if len(ids) else -1
    count = max(largest + 1, 0) if num_segments is None else check_count("num_segments", num_segments)
    if smallest < -1 or largest >= count:
        at = int(np.argmax((ids < -1) | (ids >= count)))
        allowed = f"-1 to {count - 1}" if count else "only -1"
        raise IndexError(f"segment_ids[{at}] is {ids[at]}; allowed are {allowed}, and -1 leaves an element out")
    return count


def _sort_ids(ids: Any, count: int) -> tuple[Any, Any]:
    """Offsets of the segments, and the elements in their order, or None if they are sorted."""
    indptr = np.cumsum(np.bincount(ids + 1, minlength=count + 1), dtype=np.int64)
    if np.all(ids[1:] >= ids[:-1]):
        return indptr, None
    order = np.argsort(ids, kind="stable")
    return indptr, order.astype(np.int32) if len(ids) < 2**31 else order
