"""Launches of entmax.cu: alpha-entmax, its gradient and its loss."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from .._cpu import binding
from .cross_entropy import launch_cross_entropy_kernel, launch_target
from .device import read_shared_limit
from .launch import as_rows, as_size, contiguous_or_new, launch_kernel, make_contiguous
from .sizes import RECORD_BYTES, SHARED_ROW_BYTES, SHARED_SURVIVORS, SURVIVOR_BYTES, align, item_bytes, room

_PARTS_ELEMENTS = 4096, 2048, 1024  # of a row in shared memory; a gradient keeps the whole row there if it fits
MAX_SURVIVORS_BYTES = 2**28  # of global memory, for survivors that shared memory does not hold


class EntmaxLaunch(NamedTuple):
    """How rows of entmax of one storage type and length are launched."""

    part: int  # elements of a row in shared memory at a time
    warps: int
    shared_bytes: int
    survivors: int  # capacity of each block of threads in global memory; 0: shared memory holds all of them


@functools.lru_cache(1024)
def plan_entmax_launch(dtype: int, n: int, gradient: bool, shared_limit: int) -> EntmaxLaunch:
    """The launch of rows of n elements: the largest part of a row that shared memory holds."""
    itemsize, wide = item_bytes(dtype)
    padded = align(n, 8)
    whole = [n] if gradient or n <= _PARTS_ELEMENTS[0] else []
    for part in (*whole, *(elements for elements in _PARTS_ELEMENTS if elements < n)):
        arrays = (2 if gradient else 1) * room(part, itemsize) * wide
        survivors = 16 * part if gradient else SURVIVOR_BYTES * min(padded, SHARED_SURVIVORS)
        shared_bytes = SHARED_ROW_BYTES + arrays + survivors
        if shared_bytes <= shared_limit:
            break
    warps = max(1, min(8, -(-part // 512)))
    return EntmaxLaunch(part, warps, shared_bytes, 0 if gradient or n <= SHARED_SURVIVORS else padded)


def launch_entmax(dtype: int, first: Any, second: Any, result: Any, where: Any, alpha: float) -> None:
    """alpha-entmax of CuPy arrays along the last axis, or its gradient, with the arguments of the CPU's run_entmax."""
    import cupy

    n, rows = first.shape[-1], math.prod(first.shape[:-1])
    if result.size == 0:
        return
    device = first.device.id
    with cupy.cuda.Device(device):
        inputs, mask = make_contiguous(first, second, where)
        to = contiguous_or_new(result)
        constants = binding.entmax(dtype, alpha)
        if second is None:
            _launch_support("forward", dtype, device, rows, n, inputs[0], mask, to, last=(constants,))
        else:
            part, warps, shared_bytes, _ = plan_entmax_launch(dtype, n, True, read_shared_limit(device))
            arguments = *inputs, mask, to, *as_size(rows, n), np.int32(part), constants
            launch_kernel("entmax", dtype, device, "backward", rows, 32 * warps, shared_bytes, *arguments)
        if to is not result:
            result[...] = to


def _launch_support(
    kernel: str, dtype: int, device: int, rows: int, n: int, *arrays: Any, last: tuple[Any, ...]
) -> None:
    """Launch a kernel that finds the support of rows; `last` follows the arguments that these kernels share."""
    import cupy

    part, warps, shared_bytes, survivors = plan_entmax_launch(dtype, n, False, read_shared_limit(device))
    grid, in_global = rows, None
    if survivors:
        grid = max(1, min(rows, MAX_SURVIVORS_BYTES // (SURVIVOR_BYTES * survivors)))
        in_global = cupy.empty(grid * survivors * SURVIVOR_BYTES // 8, np.float64)
    arguments = *arrays, in_global, np.int64(survivors), *as_size(rows, n), np.int32(part), *last
    launch_kernel("entmax", dtype, device, kernel, grid, 32 * warps, shared_bytes, *arguments)


def launch_entmax_loss(
    dtype: int, x: Any, labels: Any, soft: Any, y: Any, loss: Any, alpha: float, reduction: int
) -> None:
    """The loss of entmax of CuPy arrays, with the arguments of the CPU's run_entmax_loss; `loss` has the compute dtype.

    A row with a bad label gets NaN.
    """
    import cupy

    n, rows, device = x.shape[-1], math.prod(x.shape[:-1]), x.device.id
    mean = reduction == binding.REDUCTIONS["mean"]
    with cupy.cuda.Device(device):
        x, soft, labels = as_rows(x, rows, n), as_rows(soft, rows, n), as_rows(labels, rows)
        to = contiguous_or_new(y)
        target = launch_target(dtype, n, labels, None, soft)
        losses = cupy.empty(rows, np.float64)
        row_losses = cupy.empty(rows, loss.dtype) if reduction == binding.REDUCTIONS["none"] else None
        arrays = x, soft, to, target.labels, target.masses, losses, row_losses
        last = np.float64(1 / rows if mean else 1.0), binding.entmax(dtype, alpha)
        _launch_support("rows", dtype, device, rows, n, *arrays, last=last)
        if row_losses is not None:
            loss[...] = row_losses.reshape(loss.shape)
        else:
            _launch_reduction(dtype, device, n, losses, loss, mean)
        if to is not y:
            y[...] = to


def _launch_reduction(dtype: int, device: int, n: int, losses: Any, loss: Any, mean: bool) -> None:
    """The sum or the mean of row losses, by the kernels of cross-entropy."""
    import cupy

    count, prepared = np.int64(len(losses)), cupy.empty(RECORD_BYTES["cross_entropy.cu"], np.uint8)
    ones, call = cupy.full(len(losses), 1.0, np.float64), binding.loss_call(n, 1.0, 0.0, 0.0, 0.0, 0.0, False, False)
    launch_cross_entropy_kernel(dtype, device, "divide", 1, 1024, 0, ones, None, prepared, count, np.int32(mean), call)
    launch_cross_entropy_kernel(dtype, device, "reduce", 1, 1024, 0, losses, loss, prepared, count)
