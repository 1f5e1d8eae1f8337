"""Launches over segments: the kernel `segments` of softmax.cu and vjp.cu, and the dense kernels for long segments.

The host knows the lengths of the segments, so that launches for short segments reserve little shared memory: there is
one for each class of lengths, and for each temperature.  Elements that are not in order are gathered before and
scattered after.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .launch import MAX_GRID, groups_of, launch_kernel, make_scales
from .sizes import BLOCK_ELEMENTS, LOG_SEGMENT_ELEMENTS, item_bytes, room
from .softmax import GRADIENTS, OP_NAMES, launch_softmax

_CLASSES = (16, 128, 1024, BLOCK_ELEMENTS)  # the longest segments of a launch


def warps_for(longest: int) -> int:
    """Warps of a block of threads in which each computes a segment of at most `longest` elements."""
    return 4 if longest <= 1024 else 1


class SegmentsLaunch(NamedTuple):
    """Segments that are computed together."""

    temperature: float
    longest: int
    which: NDArray[np.int64]  # their numbers
    stretches: int  # of elements, in each of which they are computed


def plan_launches(
    lengths: Any, stretches: int, temperature: float, temperatures: NDArray[Any] | None, least: int, most: int
) -> Iterator[SegmentsLaunch]:
    """A launch for each class of lengths from `least` to `most`, and for each temperature.

    temperatures : those of the segments of all stretches, on the CPU, which count instead of temperature.
    """
    if temperatures is None:
        for longest, which in _split_by_length(lengths, least, most):
            yield SegmentsLaunch(temperature, min(longest, most), which, stretches)
        return
    for number, places in groups_of(temperatures.ravel()):
        for longest, which in _split_by_length(lengths[places % len(lengths)], least, most):
            yield SegmentsLaunch(float(number), min(longest, most), places[which], 1)


def _split_by_length(lengths: Any, least: int, most: int) -> list[tuple[int, Any]]:
    """For each class of lengths from `least` to `most` that occurs its longest length and its segments' numbers."""
    classes, bounds = [], list(_CLASSES)
    while bounds[-1] < most:
        bounds.append(2 * bounds[-1])
    for longest in bounds:
        found = np.flatnonzero((lengths >= least) & (lengths <= longest))
        if len(found):
            classes.append((longest, found))
        least = longest + 1
    return classes


def _absent(name: str, dtype: Any) -> Any:
    """The result of an element of no segment, or of a segment without elements; bfloat16 comes as its bits."""
    if name in ("softmax", *GRADIENTS):
        return dtype.type(0)
    return dtype.type(0xFF80 if dtype == np.uint16 else -math.inf)


def launch_segments(
    op: int,
    dtype: int,
    first: Any,
    second: Any,
    result: Any,
    where: Any,
    temperature: float,
    temperatures: NDArray[Any] | None,
    segments: Any,
    indptr: Any,
    order: Any,
) -> None:
    """Run an operation over segments of the last axis, which are the last axis of a reduction's result.

    temperatures : those of the segments, on the CPU and the segments last, which count instead of temperature.
    indptr and order are those of the segments, on the device; the segments themselves are on the host.
    """
    import cupy

    name, length, count = OP_NAMES[op], first.shape[-1], segments.num_segments
    is_gradient, reduces = name in GRADIENTS, name == "logsumexp"
    rows = math.prod(first.shape[:-1])
    result[...] = _absent(name, result.dtype)
    if result.size == 0 or length == 0:
        return

    def in_order(x: Any) -> Any:
        if x is None:
            return None
        return cupy.ascontiguousarray(x if order is None else x[..., order]).reshape(rows, length)

    inputs = [in_order(x) for x in ((first, second) if is_gradient else (first,))]
    mask = in_order(where)
    to = cupy.full((rows, count if reduces else length), _absent(name, result.dtype), result.dtype)
    lengths, device = segments.lengths, first.device.id
    itemsize, wide = item_bytes(dtype)
    extra = LOG_SEGMENT_ELEMENTS if wide == 8 and name in ("log_softmax", "logsumexp") else 0
    for launch in plan_launches(lengths, rows, temperature, temperatures, 1, BLOCK_ELEMENTS):
        capacity, warps = room(launch.longest, itemsize), warps_for(launch.longest)
        shared = warps * (capacity * len(inputs) + extra) * wide
        listed, scales = len(launch.which), make_scales(dtype, launch.temperature)
        grid = min(-(-launch.stretches * listed // warps), MAX_GRID)
        where_they_lie = np.int64(launch.stretches), np.int64(length), indptr, np.int64(count)
        last = cupy.asarray(launch.which), np.int64(listed), np.int32(capacity), scales
        arguments = *inputs, mask, to, *where_they_lie, *last
        launch_kernel(name, dtype, device, "segments", grid, 32 * warps, shared, *arguments)
    for s in np.flatnonzero(lengths > BLOCK_ELEMENTS):
        begin, end = (int(at) for at in segments.indptr[s : s + 2])
        given = inputs[0], inputs[1] if is_gradient else None, mask
        a, b, kept = (None if x is None else x[:, begin:end] for x in given)
        each = None if temperatures is None else temperatures.reshape(rows, count)[:, s]
        launch_softmax(op, dtype, a, b, to[:, s] if reduces else to[:, begin:end], kept, temperature, each)
    shaped = to.reshape(result.shape)
    if order is None or reduces:
        result[...] = shaped
    else:
        result[..., order] = shaped
