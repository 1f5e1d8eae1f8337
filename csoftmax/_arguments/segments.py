"""Segments: which elements of an axis belong together, from offsets or from ids in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._cpu import binding
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
    worth a `Segments`: a call that gets ids sorts them anew.

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

    __slots__ = ("_indptr", "_num_elements", "_on_devices", "_order", "_places")

    _indptr: NDArray[np.int64]
    _order: NDArray[np.integer[Any]] | None  # found from the places when it is first needed
    _places: NDArray[np.integer[Any]] | None  # of each element in the order
    _num_elements: int | None
    _on_devices: dict[int | str, tuple[Any, Any]]

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
        if segment_ids is None:
            offsets = _check_offsets(indptr)
            if num_segments is not None and check_count("num_segments", num_segments) != len(offsets) - 1:
                raise ValueError(f"num_segments is {num_segments}, and indptr has {len(offsets) - 1} segments")
            _fill(self, offsets, None, None)
        else:
            ids = _check_ids(segment_ids)
            indptr, places = _sort_ids(ids, num_segments)
            _fill(self, indptr, None, len(ids), places)
        if device is not None:
            place = place_of(device, self.indptr)
            if place.on_cuda:
                place_segments(self, place)

    @property
    def indptr(self) -> NDArray[np.int64]:
        """Offsets of the segments, int64 of shape (S + 1,); read-only.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.Segments(segment_ids=[0, 0, 2]).indptr
        array([0, 2, 2, 3])
        """
        return self._indptr.view()

    @property
    def order(self) -> NDArray[np.integer[Any]] | None:
        """The elements sorted by segment, int32 or int64 of shape (E,), or None if they are in order; read-only.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.Segments(segment_ids=[1, 0, 1]).order
        array([1, 0, 2], dtype=int32)
        """
        if self._order is None and self._places is not None:
            count = len(self._places)
            order: Any = np.empty(count, np.int32 if count < 2**31 else np.int64)
            binding.invert_places(self._places, order)
            order.flags.writeable = False
            self._order = order
        return None if self._order is None else self._order.view()

    @property
    def num_segments(self) -> int:
        """S, the number of segments.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.Segments(indptr=[0, 2, 2, 5]).num_segments
        3
        """
        return len(self._indptr) - 1

    @property
    def num_elements(self) -> int | None:
        """E, the number of ids, or None with `indptr`.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.Segments(segment_ids=[1, 0, 1]).num_elements
        3
        """
        return self._num_elements

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of elements of each segment, int64 of shape (S,).

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.Segments(indptr=[0, 2, 2, 5]).lengths
        array([2, 0, 3])
        """
        return np.diff(self.indptr)

    def __len__(self) -> int:
        return self.num_segments

    def __repr__(self) -> str:
        return f"Segments(num_segments={self.num_segments}, num_elements={self.num_elements})"

    def __reduce__(self) -> Any:
        return restore_segments, (self.indptr, self.order, self.num_elements)

    def check_length(self, name: str, length: int, axis: int) -> None:
        """Refuse an array whose axis these segments do not fit.

        Parameters
        ----------
        name : str
            What messages call the array.
        length : int
            Its length along the axis.
        axis : int
            The axis, for messages.

        Raises
        ------
        ValueError
            If the length is not that of the ids, or less than the last offset.

        Examples
        --------
        >>> import csoftmax
        >>> csoftmax.Segments(indptr=[0, 2, 5]).check_length("x", 5, 0)
        """
        if self.num_elements is not None and length != self.num_elements:
            raise ValueError(f"{name} has {length} elements along axis {axis}; segment_ids has {self.num_elements}")
        if length < self.indptr[-1]:
            raise ValueError(f"{name} has {length} elements along axis {axis}; indptr ends at {self.indptr[-1]}")


def convert_segments(segments: Segments, key: int | str, convert: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Offsets and order as arrays of another kind, which are kept under the key."""
    kept = segments._on_devices
    if key not in kept:
        kept[key] = convert(segments.indptr), None if segments.order is None else convert(segments.order)
    return kept[key]


def place_segments(segments: Segments, place: Place) -> tuple[Any, Any]:
    """Offsets and order at a place; those on a device are copied once."""
    if place.number is None:
        return segments.indptr, segments.order
    with place.context():
        return convert_segments(segments, place.number, place.xp.asarray)


def order_or_places(segments: Segments) -> tuple[Any, Any]:
    """The places of the elements in the order, which kernels prefer, or their order; each is None without the other."""
    return (None if segments._places is not None else segments._order), segments._places


def repeat_segments(segments: Segments, count: int) -> Segments:
    """The segments of an axis each of whose elements has become `count` neighbouring ones."""
    elements = None if segments.num_elements is None else segments.num_elements * count
    repeated = (None if a is None else _repeat(a, count) for a in order_or_places(segments))
    return hold_segments(segments.indptr * count, next(repeated), elements, next(repeated))


def _repeat(places: Any, count: int) -> Any:
    dtype = np.int32 if places.size * count < 2**31 else np.int64
    return (places.astype(dtype)[:, None] * count + np.arange(count, dtype=dtype)).reshape(-1)


def hold_segments(indptr: Any, order: Any, num_elements: int | None, places: Any = None) -> Segments:
    """Segments of arrays that have been checked, and that nothing else writes to."""
    segments = Segments.__new__(Segments)
    _fill(segments, indptr, order, num_elements, places)
    return segments


def _fill(segments: Segments, indptr: Any, order: Any, num_elements: int | None, places: Any = None) -> None:
    segments._indptr, segments._order, segments._num_elements = indptr, order, num_elements
    segments._places, segments._on_devices = places, {}
    for values in (indptr, order, places):
        if values is not None:
            values.flags.writeable = False


def restore_segments(indptr: Any, order: Any, num_elements: Any) -> Segments:
    """Segments of copies of arrays from outside, such as a pickle: kernels trust the order, so it is checked here."""
    offsets = _check_offsets(indptr)
    count = None if num_elements is None and order is None else check_count("num_elements", num_elements)
    if count is not None and offsets[-1] > count:
        raise ValueError(f"indptr ends at {offsets[-1]}; num_elements is {count}")
    if order is None:
        return hold_segments(offsets, None, count)
    places = _on_host("order", order)
    if len(places) != count:
        raise ValueError(f"order has {len(places)} elements; num_elements is {count}")
    bad = (places < 0) | (places >= count)
    if bad.any():
        at = int(bad.argmax())
        raise IndexError(f"order[{at}] is {places[at]}; allowed are 0 to {count - 1}")
    if np.any(np.bincount(places.astype(np.int64), minlength=count) != 1):
        raise ValueError("order must hold each element once")
    kept = places.astype(np.int32 if count < 2**31 else np.int64)
    inverse = np.empty_like(kept)
    binding.invert_places(kept, inverse)
    return hold_segments(offsets, kept, count, inverse)


def check_one_given(indptr: Any, segment_ids: Any, segments: Any) -> None:
    """Refuse a call without exactly one of the three."""
    given = {"indptr": indptr, "segment_ids": segment_ids, "segments": segments}
    names = [name for name, x in given.items() if x is not None]
    if len(names) != 1:
        count = " and ".join(names) if names else "none"
        raise TypeError(f"exactly one of indptr, segment_ids and segments is needed, got {count}")


def check_num_segments(num_segments: Any) -> int:
    """A number of segments as an int."""
    count = check_count("num_segments", num_segments)
    if count > _MOST:
        raise ValueError(f"num_segments must be at most {_MOST}, got {count}")
    return count


def as_segments(
    indptr: Any = None, segment_ids: Any = None, num_segments: Any = None, segments: Any = None
) -> Segments:
    """The segments of a call, which has exactly one of indptr, segment_ids and segments."""
    check_one_given(indptr, segment_ids, segments)
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


# More segments than this have no offsets in any address space: 8 bytes each.
_MOST = 2**48


def _check_offsets(indptr: Any) -> Any:
    values = _on_host("indptr", indptr)
    if len(values) == 0:
        raise ValueError("indptr is empty; it has one element more than there are segments")
    falls = values[1:] < values[:-1]
    if falls.any():
        at = int(falls.argmax())
        raise ValueError(f"indptr must rise, but indptr[{at}] is {values[at]} and indptr[{at + 1}] is {values[at + 1]}")
    if values[0] < 0 or values[-1] > np.iinfo(np.int64).max:
        raise ValueError(f"indptr must rise from at least 0 to the number of elements, got {describe_values(values)}")
    return np.array(values, np.int64)


def _check_ids(segment_ids: Any) -> Any:
    """Ids as an int64 array, which may be the caller's: the sort reads each once."""
    values = _on_host("segment_ids", segment_ids)
    if values.dtype == np.uint64 and len(values) and values.max() > np.iinfo(np.int64).max:
        at = int((values > np.uint64(np.iinfo(np.int64).max)).argmax())
        raise IndexError(f"segment_ids[{at}] is {values[at]}; allowed are -1 to {_MOST - 1}")
    return np.require(values, np.int64, ("C", "A"))


def _sort_ids(ids: Any, num_segments: Any) -> tuple[Any, Any]:
    """Offsets of the segments, and the places of the elements in their order, or None if they are sorted."""
    if num_segments is None:
        count = max(int(ids.max()) + 1, 0) if len(ids) else 0
        if count > _MOST:
            raise IndexError(f"segment_ids[{int(ids.argmax())}] is {count - 1}; allowed are -1 to {_MOST - 1}")
    else:
        count = check_num_segments(num_segments)
    try:
        indptr = np.empty(count + 1, np.int64)
    except MemoryError:
        name, value = "num_segments", count
        if num_segments is None:
            name, value = f"segment_ids[{int(ids.argmax())}]", count - 1
        raise MemoryError(f"{name} is {value}: {count} segments have offsets of {8 * (count + 1)} bytes") from None
    places = np.empty(len(ids), np.int32 if max(len(ids), count + 1) < 2**31 else np.int64)
    found = binding.sort_segments(ids, count, indptr, places)
    if found is None or found is True:
        return indptr, places if found else None
    at = -found - 1
    allowed = f"-1 to {count - 1}" if count else "only -1"
    raise IndexError(f"segment_ids[{at}] is {ids[at]}; allowed are {allowed}, and -1 leaves an element out")
