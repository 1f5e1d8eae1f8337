"""Launches of softmax.cu and vjp.cu: the softmax family and its gradients."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .device import read_shared_limit
from .launch import MAX_GRID, as_size, contiguous_or_new, launch_groups, launch_kernel, make_contiguous, make_scales
from .sizes import (
    BLOCK_BYTES,
    BLOCK_ELEMENTS,
    GRADIENT_SEGMENT_ELEMENTS,
    LOG_SEGMENT_ELEMENTS,
    MAX_WARPS,
    RECORD_BYTES,
    align,
    item_bytes,
    room,
)

OP_NAMES = {number: name for name, number in binding.OPS.items()}
GRADIENTS = ("softmax_vjp", "log_softmax_vjp")
_TEAM_ELEMENTS = {4: 512, 8: 256}  # the longest row that a team computes, by the compute type's bytes
_TEAM_BLOCK_WARPS = 4


class SoftmaxLaunch(NamedTuple):
    """How the rows of one operation, storage type and length are launched.

    kernel : "teams" (several short rows per warp), "whole" (a block of threads per row) or "blocks" (rows that do not
        fit shared memory, by the kernels blocks, combine and apply).
    """

    kernel: str
    blocks: int  # of BLOCK_ELEMENTS, in a row
    warps: int  # of a block of threads
    shared_bytes: int
    rows_per_warp: int = 1
    staged_bytes: int = 0  # of shared memory in which `combine` holds the blocks of a row; 0: it reads them in place

    def grid(self, rows: int) -> int:
        """Number of blocks of threads for a number of rows."""
        if self.kernel == "teams":
            return min(-(-rows // (_TEAM_BLOCK_WARPS * self.rows_per_warp)), MAX_GRID)
        return min(rows * self.blocks if self.kernel == "blocks" else rows, MAX_GRID)


@functools.lru_cache(1024)
def plan_softmax_launch(op: str, dtype: int, n: int, shared_limit: int) -> SoftmaxLaunch:
    """The launch of rows of n elements on a device whose blocks of threads have `shared_limit` bytes."""
    inputs = 2 if op in GRADIENTS else 1
    itemsize, wide = item_bytes(dtype)
    blocks = -(-n // BLOCK_ELEMENTS)
    if n <= _TEAM_ELEMENTS[wide]:
        lines = 4 if wide == 8 and inputs == 1 else 2  # teams of a warp
        rows_per_warp = max(lines, min(32, (8192 // wide) // (n * inputs) // lines * lines))
        shared_bytes = _TEAM_BLOCK_WARPS * room(rows_per_warp * n, itemsize) * wide * inputs
        return SoftmaxLaunch("teams", blocks, _TEAM_BLOCK_WARPS, shared_bytes, rows_per_warp)
    segment = LOG_SEGMENT_ELEMENTS if wide == 8 and op in ("log_softmax", "logsumexp") else 0
    block_bytes = (room(min(n, BLOCK_ELEMENTS), itemsize) * inputs + segment) * wide
    record_bytes = BLOCK_BYTES + (12 if inputs == 1 else 0)  # forward: a maximum and a flag beside the record
    whole_bytes = align(blocks * record_bytes, 16) + blocks * block_bytes
    if blocks <= MAX_WARPS[wide] and whole_bytes <= shared_limit:
        return SoftmaxLaunch("whole", blocks, blocks, whole_bytes)
    if inputs == 2:
        block_bytes = room(GRADIENT_SEGMENT_ELEMENTS, itemsize) * wide * inputs
    staged_bytes = blocks * BLOCK_BYTES
    return SoftmaxLaunch(
        "blocks", blocks, 1, block_bytes, staged_bytes=staged_bytes if staged_bytes <= shared_limit else 0
    )


def launch_softmax(
    op: int,
    dtype: int,
    first: Any,
    second: Any,
    result: Any,
    where: Any,
    temperature: float,
    temperatures: NDArray[Any] | None = None,
) -> None:
    """Run an operation on CuPy arrays whose last axis is the softmax axis (the result of a reduction lacks it).

    The kernels need contiguous rows: any other layout is copied, and so is a mask that is broadcast. temperatures, one
    for each row on the CPU, count instead of temperature: rows of the same one are a launch.
    """
    import cupy

    name, n = OP_NAMES[op], first.shape[-1]
    rows = math.prod(first.shape[:-1])
    if result.size == 0:
        return
    if n == 0:  # the log-sum-exp of an empty row
        result[...] = 0xFF80 if result.dtype == np.uint16 else -math.inf  # bfloat16 comes as its bits
        return
    if temperatures is not None:

        def launch(number: Any, arrays: list[Any], part: Any) -> None:
            a, b, mask = arrays
            launch_softmax(op, dtype, a, b, part, mask, float(number))

        with cupy.cuda.Device(first.device.id):
            launch_groups(temperatures, (first, second, where), result, launch)
        return
    device = first.device.id
    with cupy.cuda.Device(device):
        inputs, mask = make_contiguous(first, second, where)
        to = contiguous_or_new(result)
        plan = plan_softmax_launch(name, dtype, n, read_shared_limit(device))
        grid, scales = plan.grid(rows), make_scales(dtype, temperature)
        arguments: tuple[Any, ...] = *inputs, mask, to, np.int64(rows), np.int32(n)
        if plan.kernel == "blocks":
            _launch_in_blocks(name, dtype, device, plan, inputs, mask, to, rows, n, scales)
        elif plan.kernel == "teams":
            arguments = *arguments, np.int32(plan.rows_per_warp), scales
            launch_kernel(name, dtype, device, "teams", grid, 32 * plan.warps, plan.shared_bytes, *arguments)
        else:
            launch_kernel(name, dtype, device, "whole", grid, 32 * plan.warps, plan.shared_bytes, *arguments, scales)
        if to is not result:
            result[...] = to


def _launch_in_blocks(
    name: str,
    dtype: int,
    device: int,
    plan: SoftmaxLaunch,
    inputs: list[Any],
    mask: Any,
    to: Any,
    rows: int,
    n: int,
    scales: Any,
) -> None:
    """Launch the kernels of rows that do not fit shared memory: blocks, combine, apply."""
    import cupy

    backward = name in GRADIENTS
    record_bytes = RECORD_BYTES["vjp.cu" if backward else "softmax.cu"]
    blocks = cupy.empty(rows * plan.blocks * BLOCK_BYTES, np.uint8)
    known = cupy.empty(rows * record_bytes, np.uint8)
    size, grid = as_size(rows, n), plan.grid(rows)

    def launch(kernel: str, grid: int, threads: int, shared_bytes: int, *arguments: Any) -> None:
        launch_kernel(name, dtype, device, kernel, grid, threads, shared_bytes, *arguments)

    if backward:
        launch("blocks", grid, 32, plan.shared_bytes, *inputs, mask, blocks, *size, scales)
        launch("combine", -(-rows // 128), 128, 0, blocks, known, *size, scales)
        launch("apply", grid, 32, plan.shared_bytes, *inputs, mask, to, known, *size, scales)
        return
    staged = np.int32(plan.staged_bytes > 0)
    for again in (np.int32(0), np.int32(1)):  # the second time for rows outside the range of exp's reduction
        launch("blocks", grid, 32, plan.shared_bytes, *inputs, mask, blocks, known, *size, again, scales)
        launch("combine", rows, 128, plan.staged_bytes, blocks, known, to, *size, again, staged, scales)
    if name != "logsumexp":
        launch("apply", grid, 32, plan.shared_bytes, *inputs, mask, to, blocks, known, *size, scales)
