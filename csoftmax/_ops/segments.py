"""The softmax family over segments: groups of elements along an axis, given by offsets or by ids in any order."""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsIndex

from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.places import place_of
from .._arguments.recorded import hand_over_recorded
from .._arguments.segment_layouts import SegmentRows, check_segment_temperatures, lay_out_segments
from .._arguments.segments import Segments, as_segments, order_or_places, place_segments
from .._cpu import binding

__all__ = [
    "segment_log_softmax",
    "segment_log_softmax_vjp",
    "segment_logsumexp",
    "segment_softmax",
    "segment_softmax_vjp",
]

_Axis = SupportsIndex | tuple[SupportsIndex, ...]


class SegmentsPlan(NamedTuple):
    """A checked call of an operation of the family."""

    operation: int
    temperature: float | Any  # a number, or an array with the segments last
    rows: SegmentRows
    num_threads: int | None

    def execute(self) -> Any:
        """Compute, and return the result."""
        rows, t = self.rows, self.temperature
        segments, place = rows.axis.segments, rows.result.place
        number, each = (t, None) if isinstance(t, float) else (1.0, t)
        arguments = self.operation, rows.dtype, rows.first, rows.second, rows.result.rows, rows.where, number, each
        if place.on_cuda:
            with place.context():
                _cuda.launch_segments(*arguments, segments, *place_segments(segments, place))
                return rows.result.finish()
        binding.run_segments(*arguments, segments.indptr, *order_or_places(segments), self.num_threads)
        return rows.result.finish()


def plan_segments(
    name: str,
    x: Any,
    axis: Any,
    segments: Segments,
    *,
    y: Any = None,
    temperature: Any = 1.0,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: int | None = None,
) -> SegmentsPlan:
    """Check a call of the operation `name` over segments; x is dy in a gradient."""
    gradient = name.endswith("_vjp")
    place = place_of(device, x)
    with place.context():
        rows = lay_out_segments(place, x, y, axis, segments, where, out, gradient=gradient, reduces=name == "logsumexp")
        temperature = check_segment_temperatures(temperature, rows.axis, gradient)
    return SegmentsPlan(binding.OPS[name], temperature, rows, num_threads)


@accept_foreign
@keep_labels()
def _run_segments(x: Any, axis: Any, segments: Any, name: str, **options: Any) -> Any:
    return plan_segments(name, x, axis, segments, **options).execute()


@accept_foreign  # no labels: a result that happens to have the shape of x has segments, not elements
def _run_logsumexp(x: Any, axis: Any, segments: Any, **options: Any) -> Any:
    return plan_segments("logsumexp", x, axis, segments, **options).execute()


@hand_over_recorded
def segment_softmax(
    x: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: _Axis = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Softmax of each segment: of groups of elements along an axis, such as the edges into each node of a graph.

    Parameters
    ----------
    x : array_like of shape (..., E, ...)
        Logits, in one of the dtypes of `softmax`.
    indptr : array_like of integers of shape (S + 1,), optional
        Offsets that rise from at least 0 to at most E: segment s has the elements ``indptr[s]`` to
        ``indptr[s + 1] - 1``. Other elements take no part.
    segment_ids : array_like of integers of shape (E,), optional
        The segment of each element, in any order; an element with -1 takes no part.
    num_segments : int, optional
        S, with `segment_ids`; by default the largest id plus 1.
    segments : Segments, optional
        The segments, checked and sorted before. Exactly one of `indptr`, `segment_ids` and `segments` is given.
    axis : int or tuple of ints, default 0
        The axis of the elements; the other axes, such as attention heads, are independent. Of a tuple the first is the
        axis of the elements, the others are reduced with it: blocks of shape (E, rows, columns) with ``axis=(0, 2)``
        are block-sparse rows.
    temperature : float or array_like, default 1.0
        As in `softmax`; an array of shape (S,) has one for each segment, any other broadcasts to the shape of x with S
        in place of E.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out; their result is 0.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result. It may be `x` itself, or overlap it in any way.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of x
        For each segment the bits that `softmax` gives for its elements in the order of their positions; 0 for elements
        of no segment. `out` if given.

    Raises
    ------
    IndexError
        If an id is neither -1 nor a segment.
    TypeError, ValueError, DeviceError
        As in `softmax`; nothing has been written.
    MemoryError
        As in `softmax`; `out` may be partly written.

    Notes
    -----
    There is no padding and no epsilon in the denominator: probabilities of a segment sum to 1, one of nothing but -inf
    is NaN, and NaN in one segment does not reach another. Ids in any order are sorted by counting; what is used again
    is worth a `Segments`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.segment_softmax(np.array([0.0, 0.0, 5.0, 1.0, 1.0]), indptr=[0, 2, 3, 5])
    array([0.5, 0.5, 1. , 0.5, 0.5])
    >>> csoftmax.segment_softmax(np.zeros(4), segment_ids=[1, 0, 1, 1]).round(4)
    array([0.3333, 1.    , 0.3333, 0.3333])
    """
    found = as_segments(indptr, segment_ids, num_segments, segments)
    options = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return _run_segments(x, axis, found, "softmax", temperature=temperature, **options)


@hand_over_recorded
def segment_log_softmax(
    x: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: _Axis = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Logarithm of the softmax of each segment.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, axis, temperature, out, device, num_threads
        As in `segment_softmax`.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out; their result is -inf.

    Returns
    -------
    ndarray of the shape of x
        For each segment the bits that `log_softmax` gives for its elements; -inf for elements of no segment.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `segment_softmax`.

    Notes
    -----
    Errors and special values are those of `log_softmax` for each segment.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.segment_log_softmax(np.float32([16.9, 0.0, 3.0]), indptr=[0, 2, 3])
    array([-4.5753403e-08, -1.6900000e+01,  0.0000000e+00], dtype=float32)
    """
    found = as_segments(indptr, segment_ids, num_segments, segments)
    options = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return _run_segments(x, axis, found, "log_softmax", temperature=temperature, **options)


@hand_over_recorded
def segment_logsumexp(
    x: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: _Axis = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Logarithm of the sum of exponentials of each segment.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, axis, temperature, device, num_threads
        As in `segment_softmax`.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result.

    Returns
    -------
    ndarray of the shape of x with S in place of E
        For each segment the bits that `logsumexp` gives for its elements; -inf for a segment without elements. With a
        tuple `axis` the segments stand where its first axis stood, and the others are gone.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `segment_softmax`.

    Notes
    -----
    Errors and special values are those of `logsumexp` for each segment: -inf alone gives -inf, and NaN stays NaN.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.segment_logsumexp(np.array([1000.0, 1000.0, 2.0]), indptr=[0, 2, 2, 3])
    array([1000.69314718,          -inf,    2.        ])
    """
    found = as_segments(indptr, segment_ids, num_segments, segments)
    options = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return _run_logsumexp(x, axis, found, temperature=temperature, **options)


@hand_over_recorded
def segment_softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: _Axis = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of a loss through `segment_softmax`: dL/dx from dL/dy and the result y.

    Parameters
    ----------
    dy : array_like of shape (..., E, ...)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of `segment_softmax` with the same segments, axis, temperature and mask.
    indptr, segment_ids, num_segments, segments, axis, device, num_threads
        As in the call of `segment_softmax`.
    temperature : float or array_like, default 1.0
        As in the call of `segment_softmax`; positive and finite.
    where : array_like of bool, broadcastable to dy, optional
        Mask. Elements where it is False are left out; their gradient is 0.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result. It may be `dy` or `y`.

    Returns
    -------
    ndarray of the shape of dy
        For each segment the bits that `softmax_vjp` gives for its elements; 0 for elements of no segment.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `segment_softmax`.

    Notes
    -----
    Errors are those of `softmax_vjp`. Elements with y = 0, and those of no segment, are left out: their dy is not read.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> y = csoftmax.segment_softmax(np.zeros(3), indptr=[0, 2, 3])
    >>> csoftmax.segment_softmax_vjp(np.array([1.0, 0.0, 5.0]), y, indptr=[0, 2, 3])
    array([ 0.25, -0.25,  0.  ])
    """
    found = as_segments(indptr, segment_ids, num_segments, segments)
    options = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return _run_segments(dy, axis, found, "softmax_vjp", y=y, temperature=temperature, **options)


@hand_over_recorded
def segment_log_softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: _Axis = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of a loss through `segment_log_softmax`: dL/dx from dL/dy and the result y.

    Parameters
    ----------
    dy : array_like of shape (..., E, ...)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of `segment_log_softmax` with the same segments, axis, temperature and mask.
    indptr, segment_ids, num_segments, segments, axis, temperature, where, out, device, num_threads
        As in `segment_softmax_vjp`.

    Returns
    -------
    ndarray of the shape of dy
        For each segment the bits that `log_softmax_vjp` gives for its elements; 0 for elements of no segment.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `segment_softmax`.

    Notes
    -----
    Errors are those of `log_softmax_vjp`. Elements with y = -inf, and those of no segment, are left out.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> y = csoftmax.segment_log_softmax(np.zeros(3), indptr=[0, 2, 3])
    >>> csoftmax.segment_log_softmax_vjp(np.array([1.0, 0.0, 5.0]), y, indptr=[0, 2, 3])
    array([ 0.5, -0.5,  0. ])
    """
    found = as_segments(indptr, segment_ids, num_segments, segments)
    options = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return _run_segments(dy, axis, found, "log_softmax_vjp", y=y, temperature=temperature, **options)
