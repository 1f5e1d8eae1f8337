"""Launches of cross_entropy.cu over segments, rows of different lengths, each a block of threads; and of
segment_any.cu for sets of positives, in which a warp computes a segment.

The host knows the lengths of the segments, so that launches for short segments reserve little shared memory: there is
one for each class of lengths, and for each temperature.  Elements that are not in order are gathered before and
scattered after.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .cross_entropy import (
    GRID_WITH_RECORDS,
    RowLayout,
    Target,
    launch_divide,
    launch_reduce,
    launch_rows,
    launch_target,
)
from .launch import MAX_GRID, as_rows, contiguous_or_new, launch_kernel, make_scales
from .segments import SegmentsLaunch, plan_launches, warps_for
from .sizes import BLOCK_BYTES, BLOCK_ELEMENTS


def _weigh(layout: RowLayout, weights: Any) -> Target:
    """What segments with positives add to the divisor of a mean: their weights, 0 for one without elements."""
    import cupy

    has_elements = cupy.broadcast_to(layout.indptr[1:] > layout.indptr[:-1], (layout.stretches, layout.segments))
    is_kept = cupy.ascontiguousarray(has_elements).ravel()
    return Target(None, None, is_kept.astype(np.float64) if weights is None else cupy.where(is_kept, weights, 0.0))


def _launch_any(
    dtype: int, device: int, layout: RowLayout, launch: SegmentsLaunch, arrays: tuple[Any, ...], prepared: Any
) -> None:
    """Compute segments with positives.

    arrays : logits, positives, gradient, weights, upstream gradients, losses, and losses in the compute type; each may
        be None but the first two and the first losses.
    """
    import cupy

    longest, listed, warps = launch.longest, len(launch.which), warps_for(launch.longest)
    grid = min(-(-launch.stretches * listed // warps), MAX_GRID)
    space, records, shared = None, None, warps * (longest * 8 + 2 * BLOCK_BYTES)
    if longest > BLOCK_ELEMENTS:
        grid, shared = min(grid, GRID_WITH_RECORDS), 0
        space = cupy.empty(layout.length * layout.stretches, np.float64)
        records = cupy.empty(grid * (-(-longest // BLOCK_ELEMENTS) + 1) * BLOCK_BYTES, np.uint8)
    where_they_lie = np.int64(launch.stretches), *layout.arguments
    last = cupy.asarray(launch.which), np.int64(listed), np.int64(longest)
    arguments = *arrays, space, records, prepared, *where_they_lie, *last
    scales = make_scales(binding.DTYPES["float64"], launch.temperature)
    launch_kernel("segment_any", dtype, device, "any", grid, 32 * warps, shared, *arguments, scales)


def launch_segment_cross_entropy(
    dtype: int,
    x: Any,
    y: Any,
    loss: Any,
    labels: Any,
    ignore: int | None,
    soft: Any,
    positives: Any,
    sample_weight: Any,
    upstream: Any,
    factors: tuple[float, float, float, float, float],
    reduction: int,
    temperatures: NDArray[Any] | None,
    segments: Any,
    indptr: Any,
    order: Any,
    place: int,
) -> None:
    """Cross-entropy of CuPy arrays with the elements, or the segments, in the last axis; `loss` has the compute dtype.

    A segment with a bad label gets NaN.
    labels, sample_weight, upstream : one for each segment of each stretch of elements; so is `loss` with reduction
        "none".
    factors : temperature, label_smoothing, z_loss, clip_norm, clip_value.
    temperatures : those of the segments, on the CPU, which count instead of the one of factors.
    segments : on the host; indptr and order are theirs, on the device.
    place : the axis of the segments in which the losses are added up, as the CPU stores them.
    """
    import cupy

    batch, length, count = x.shape[:-1], x.shape[-1], segments.num_segments
    stretches, device = math.prod(batch), x.device.id
    layout = RowLayout(length, stretches * count, indptr, count)

    def in_order(a: Any) -> Any:
        return as_rows(a if a is None or order is None else a[..., order], stretches, length)

    def as_stored(values: Any) -> Any:
        """Numbers of the segments, in the order in which their sum is specified."""
        return cupy.ascontiguousarray(np.moveaxis(values.reshape(*batch, count), -1, place)).ravel()

    with cupy.cuda.Device(device):
        labels, weights, upstream = (as_rows(a, layout.rows) for a in (labels, sample_weight, upstream))
        logits, soft, positives, to = in_order(x), in_order(soft), in_order(positives), contiguous_or_new(y)
        if to is not None:
            to = (to if order is None else cupy.empty(y.shape, y.dtype)).reshape(stretches, length)
        if positives is None:
            target = launch_target(dtype, layout, labels, ignore, soft, None, weights)
        else:
            target = _weigh(layout, weights)
        mean = reduction == binding.REDUCTIONS["mean"]
        options = *factors[1:], soft is not None, y is not None

        def divide(temperature: float) -> Any:
            terms = as_stored(target.terms).copy()  # they are overwritten
            call = binding.loss_call(1, temperature, *options)
            return launch_divide(dtype, device, terms, None, mean, call, op=layout.op)

        losses = cupy.empty(layout.rows, np.float64)
        row_losses = cupy.empty(layout.rows, loss.dtype) if reduction == binding.REDUCTIONS["none"] else None
        prepared, divided = divide(factors[0]), factors[0]
        if to is not None:  # elements of no segment, the logits of which may be here
            to[:, : int(segments.indptr[0])] = 0
            to[:, int(segments.indptr[-1]) :] = 0
        most = int(segments.lengths.max(initial=0))
        for launch in plan_launches(segments.lengths, stretches, factors[0], temperatures, 0, most):
            if launch.temperature != divided:
                prepared, divided = divide(launch.temperature), launch.temperature
            to_losses = weights, upstream, losses, row_losses
            if positives is not None:
                _launch_any(dtype, device, layout, launch, (logits, positives, to, *to_losses), prepared)
                continue
            arrays = logits, soft, to, target.labels, target.masses, None, *to_losses
            last = launch.temperature, cupy.asarray(launch.which), launch.stretches
            launch_rows(dtype, device, layout, launch.longest, arrays, prepared, *last)
        if row_losses is not None:
            loss[...] = row_losses.reshape(loss.shape)
        else:
            launch_reduce(dtype, device, as_stored(losses), loss, prepared, op=layout.op)
        if to is not None and order is not None:
            y[..., order] = to.reshape(y.shape)
        elif to is not None and not y.flags.c_contiguous:
            y[...] = to.reshape(y.shape)
