"""Launches over segments: the kernel `segments` of softmax.cu and vjp.cu, and the dense kernels for long segments.

The host knows the lengths of the segments, so that launches for short segments reserve little shared memory: there is
one for each class of lengths.  Elements that are not in order are gathered before and scattered after.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .launch import MAX_GRID, launch_kernel, make_scales
from .sizes import BLOCK_ELEMENTS, LOG_SEGMENT_ELEMENTS, item_bytes, room
from .softmax import GRADIENTS, OP_NAMES, launch_softmax

_CLASSES = (16, 128, 1024, BLOCK_ELEMENTS)  # the longest segments of a launch
_WARPS = {16: 4, 128: 4, 1024: 4, BLOCK_ELEMENTS: 1}  # of a block of threads


def split_by_length(lengths: Any, least: int, most: int) -> list[tuple[int, Any]]:
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
    segments: Any,
    indptr: Any,
    order: Any,
) -> None:
    """Run an operation over segments of the last axis, which are the last axis of a reduction's result.

    indptr and order are those of the segments, on the device; the segments themselves are on the host.
    """
    import cupy

    name, length = OP_NAMES[op], first.shape[-1]
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
    to = cupy.full((rows, segments.num_segments if reduces else length), _absent(name, result.dtype), result.dtype)
    lengths, scales, device = segments.lengths, make_scales(dtype, temperature), first.device.id
    itemsize, wide = item_bytes(dtype)
    extra = LOG_SEGMENT_ELEMENTS if wide == 8 and name in ("log_softmax", "logsumexp") else 0
    for longest, which in split_by_length(lengths, 1, BLOCK_ELEMENTS):
        capacity, warps = room(longest, itemsize), _WARPS[longest]
        shared = warps * (capacity * len(inputs) + extra) * wide
        grid = min(-(-rows * len(which) // warps), MAX_GRID)
        size = np.int64(rows), np.int64(length), *(() if is_gradient else (np.int64(to.shape[-1]),))
        last = indptr, cupy.asarray(which.astype(np.int32)), np.int32(len(which)), np.int32(capacity), scales
        launch_kernel(name, dtype, device, "segments", grid, 32 * warps, shared, *inputs, mask, to, *size, *last)
    for s in np.flatnonzero(lengths > BLOCK_ELEMENTS):
        begin, end = (int(at) for at in segments.indptr[s : s + 2])
        given = inputs[0], inputs[1] if is_gradient else None, mask
        a, b, kept = (None if x is None else x[:, begin:end] for x in given)
        launch_softmax(op, dtype, a, b, to[:, s] if reduces else to[:, begin:end], kept, temperature)
    shaped = to.reshape(result.shape)
    if order is None or reduces:
        result[...] = shaped
    else:
        result[..., order] = shaped
