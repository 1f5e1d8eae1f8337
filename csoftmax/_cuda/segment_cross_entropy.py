"""Launches of cross_entropy.cu over segments: rows of different lengths, each a block of threads.

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
from .cross_entropy import RowLayout, launch_divide, launch_reduce, launch_rows, launch_target
from .launch import as_rows, contiguous_or_new
from .segments import plan_launches


def launch_segment_cross_entropy(
    dtype: int,
    x: Any,
    y: Any,
    loss: Any,
    labels: Any,
    ignore: int | None,
    soft: Any,
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
        logits, soft, to = in_order(x), in_order(soft), contiguous_or_new(y)
        if to is not None:
            to = (to if order is None else cupy.empty(y.shape, y.dtype)).reshape(stretches, length)
        target = launch_target(dtype, layout, labels, ignore, soft, None, weights)
        mean = reduction == binding.REDUCTIONS["mean"]
        options = *factors[1:], soft is not None, y is not None

        def divide(temperature: float) -> Any:
            terms = as_stored(target.terms).copy()  # they are overwritten
            call = binding.loss_call(1, temperature, *options)
            return launch_divide(dtype, device, terms, None, mean, call, op=layout.op)

        losses = cupy.empty(layout.rows, np.float64)
        row_losses = cupy.empty(layout.rows, loss.dtype) if reduction == binding.REDUCTIONS["none"] else None
        arrays = logits, soft, to, target.labels, target.masses, None, weights, upstream, losses, row_losses
        prepared, divided = divide(factors[0]), factors[0]
        if to is not None:  # elements of no segment, the logits of which may be here
            to[:, : int(segments.indptr[0])] = 0
            to[:, int(segments.indptr[-1]) :] = 0
        most = int(segments.lengths.max(initial=0))
        for launch in plan_launches(segments.lengths, stretches, factors[0], temperatures, 0, most):
            if launch.temperature != divided:
                prepared, divided = divide(launch.temperature), launch.temperature
            which = cupy.asarray(launch.which)
            launch_rows(
                dtype, device, layout, launch.longest, arrays, prepared, launch.temperature, which, launch.stretches
            )
        if row_losses is not None:
            loss[...] = row_losses.reshape(loss.shape)
        else:
            launch_reduce(dtype, device, as_stored(losses), loss, prepared, op=layout.op)
        if to is not None and order is not None:
            y[..., order] = to.reshape(y.shape)
        elif to is not None and not y.flags.c_contiguous:
            y[...] = to.reshape(y.shape)
