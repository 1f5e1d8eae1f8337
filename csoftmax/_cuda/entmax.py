"""Launches of entmax.cu: alpha-entmax, its gradient and its loss."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .cross_entropy import RowLayout, launch_divide, launch_reduce, launch_target
from .device import read_shared_limit
from .launch import (
    as_rows,
    as_size,
    constants_of_rows,
    contiguous_or_new,
    launch_groups,
    launch_kernel,
    make_contiguous,
)
from .sizes import SHARED_ROW_BYTES, SHARED_SURVIVORS, SURVIVOR_BYTES, align, item_bytes, room
from .softmax import launch_softmax

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


def launch_entmax(
    dtype: int, first: Any, second: Any, result: Any, where: Any, alpha: float, alphas: NDArray[Any] | None
) -> None:
    """alpha-entmax of CuPy arrays along the last axis, or its gradient, with the arguments of the CPU's run_entmax.

    alphas : those of the rows, on the CPU, or None. Rows with alpha = 1 are calls of softmax, or of its gradient.
    """
    import cupy

    n, rows = first.shape[-1], math.prod(first.shape[:-1])
    if result.size == 0:
        return
    device = first.device.id
    if alphas is not None and np.any(alphas == 1):
        is_limit = alphas.ravel() == 1
        above = alphas.ravel()[~is_limit]

        def launch(limit: Any, arrays: list[Any], part: Any) -> None:
            a, b, kept = arrays
            if limit:
                op = binding.OPS["softmax" if second is None else "softmax_vjp"]
                launch_softmax(op, dtype, a, b, part, kept, 1.0)
            else:
                launch_entmax(dtype, a, b, part, kept, alpha, above)

        with cupy.cuda.Device(device):
            launch_groups(is_limit.astype(np.int8), (first, second, where), result, launch)
        return
    with cupy.cuda.Device(device):
        inputs, mask = make_contiguous(first, second, where)
        to = contiguous_or_new(result)
        constants = constants_of_rows(binding.entmax, dtype, alphas), binding.entmax(dtype, alpha)
        if second is None:
            _launch_support("forward", dtype, device, rows, n, inputs[0], mask, to, last=constants)
        else:
            part, warps, shared_bytes, _ = plan_entmax_launch(dtype, n, True, read_shared_limit(device))
            arguments = *inputs, mask, to, *as_size(rows, n), np.int32(part), *constants
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
    dtype: int,
    x: Any,
    labels: Any,
    soft: Any,
    y: Any,
    loss: Any,
    alpha: float,
    reduction: int,
    alphas: NDArray[Any] | None,
    weight: Any,
    sample_weight: Any,
    ignore: int | None,
) -> None:
    """The loss of entmax of CuPy arrays, with the arguments of the CPU's run_entmax_loss; `loss` has the compute dtype.

    ignore : the ignored label as 64 bits, or None. alphas: those of the rows, on the CPU and above 1, or None. A row
    with a bad label gets NaN.
    """
    import cupy

    n, rows, device = x.shape[-1], math.prod(x.shape[:-1]), x.device.id
    mean = reduction == binding.REDUCTIONS["mean"]
    with cupy.cuda.Device(device):
        x, soft, labels = as_rows(x, rows, n), as_rows(soft, rows, n), as_rows(labels, rows)
        to = contiguous_or_new(y)
        weights = as_rows(sample_weight, rows)
        if soft is not None and weight is None:  # with weights a mass is added in double, label by label, as on the CPU
            weight = cupy.full(n, 1, soft.dtype)
        target = launch_target(dtype, RowLayout(n, rows), labels, ignore, soft, weight, weights)
        prepared = _launch_divide(dtype, device, n, rows, target.terms, mean)
        losses = cupy.empty(rows, np.float64)
        row_losses = cupy.empty(rows, loss.dtype) if reduction == binding.REDUCTIONS["none"] else None
        factors = target.terms, weights, prepared[:8].view(np.float64)
        arrays = x, soft, to, target.labels, target.masses, *factors, losses, row_losses
        last = constants_of_rows(binding.entmax, dtype, alphas), binding.entmax(dtype, alpha)
        _launch_support("rows", dtype, device, rows, n, *arrays, last=last)
        if row_losses is not None:
            loss[...] = row_losses.reshape(loss.shape)
        else:
            launch_reduce(dtype, device, losses, loss, prepared)
        if to is not y:
            y[...] = to


def _launch_divide(dtype: int, device: int, n: int, rows: int, terms: Any, mean: bool) -> Any:
    """The divisor of a mean, from the factors of the rows (None: 1), in the record that `reduce` reads."""
    import cupy

    terms = cupy.full(rows, 1.0, np.float64) if terms is None else terms.copy()  # they are overwritten
    call = binding.loss_call(n, 1.0, 0.0, 0.0, 0.0, 0.0, False, False)
    return launch_divide(dtype, device, terms, None, mean, call)
