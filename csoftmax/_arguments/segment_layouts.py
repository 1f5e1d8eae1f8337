"""Arrays over segments: the ragged axis last, results with one element a segment, temperatures and masks."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._cpu.dtypes import as_buffer
from .layouts import (
    Result,
    apart_from,
    axis_last,
    check_out,
    check_where,
    lay_out_result,
    may_share_memory,
    normalize_axes,
)
from .numbers import check_temperatures
from .places import Place, as_float, to_host
from .segments import Segments, repeat_segments


class SegmentAxis(NamedTuple):
    """Where the segments of a call lie in its arrays."""

    segments: Segments  # of the elements along the joined axes
    axes: tuple[int, ...]  # the ragged one first
    batch: tuple[int, ...]  # the other axes
    reduced: tuple[int, ...]  # the shape of x with the ragged axis replaced by the number of segments

    def last(self, values: Any) -> Any:
        """An array of the shape `reduced` with the segments last."""
        return np.moveaxis(values, self.place, -1)

    @property
    def place(self) -> int:
        """The axis of the segments in results with one element a segment."""
        return self.axes[0] - sum(axis < self.axes[0] for axis in self.axes[1:])


def lay_out_axis(name: str, shape: tuple[int, ...], axis: Any, segments: Segments) -> SegmentAxis:
    """Check the axes of an array that segments group."""
    if not shape:
        raise ValueError(f"{name} has no axis: segments group the elements along one")
    if axis is None:
        raise TypeError("axis must be an int or a tuple of ints, got None: the first one is that of the segments")
    axes = normalize_axes(axis, len(shape))
    if not axes:
        raise ValueError("axis must name at least one axis, got ()")
    segments.check_length(name, shape[axes[0]], axes[0])
    if len(axes) > 1:
        segments = repeat_segments(segments, math.prod(shape[i] for i in axes[1:]))
    batch = tuple(n for i, n in enumerate(shape) if i not in axes)
    place = axes[0] - sum(i < axes[0] for i in axes[1:])
    reduced = (*batch[:place], segments.num_segments, *batch[place:])
    return SegmentAxis(segments, axes, batch, reduced)


def check_segment_temperatures(temperature: Any, where: SegmentAxis, gradient: bool) -> float | Any:
    """T as a float, or as a float64 array with the segments last."""
    (temperature,) = to_host(temperature)
    count = where.segments.num_segments
    if np.ndim(temperature) == 1 and len(temperature) == count:  # one a segment, on whichever axis these are
        shape = tuple(count if i == where.place else 1 for i in range(len(where.reduced)))
        temperature = np.reshape(temperature, shape)
    shape_name = "the shape of x with the segments in place of the elements"
    checked = check_temperatures(temperature, where.reduced, gradient, shape_name)
    return checked if isinstance(checked, float) else where.last(checked)


class SegmentRows(NamedTuple):
    """Arrays of a call with one or two inputs, the elements last, or, in a reduction's result, the segments."""

    dtype: int
    first: Any  # x, or dy of a gradient
    second: Any | None  # y of a gradient
    where: Any | None
    result: Result
    axis: SegmentAxis


def _reduced_result(array: Any, axis: SegmentAxis, given: bool, place: Place) -> Result:
    return Result(array, as_buffer(axis.last(array)), array, array, given, place)


def lay_out_segments(
    place: Place, x: Any, y: Any, axis: Any, segments: Segments, where: Any, out: Any, *, gradient: bool, reduces: bool
) -> SegmentRows:
    """Check and lay out the arrays of a call; a gradient has two inputs, dy (here x) and y."""
    name = "dy" if gradient else "x"
    x, dtype = as_float(name, x, place)
    if gradient:
        y, y_dtype = as_float("y", y, place)
        if y_dtype != dtype or y.shape != x.shape:
            raise (TypeError if y_dtype != dtype else ValueError)(
                f"y has dtype {y.dtype} and shape {y.shape}; dy has dtype {x.dtype} and shape {x.shape}: "
                "they must be the same"
            )
    at = lay_out_axis(name, x.shape, axis, segments)
    if where is not None:
        where = check_where(where, x.shape, place)
    shape = at.reduced if reduces else x.shape
    if out is not None:
        check_out(out, shape, x.dtype, place)
        if where is not None and may_share_memory(out, where):
            where = where.copy()
        x = apart_from(x, out)
        y = apart_from(y, out) if gradient else None
    if reduces:
        array = place.xp.empty(shape, x.dtype) if out is None else out
        result = _reduced_result(array, at, out is not None, place)
    else:
        array = place.result_like(x) if out is None else out
        result = lay_out_result(array, x, at.axes, out is not None, place)
    first, second = (None if a is None else as_buffer(axis_last(a, at.axes)) for a in (x, y))
    return SegmentRows(dtype, first, second, None if where is None else axis_last(where, at.axes), result, at)
