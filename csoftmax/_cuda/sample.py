"""Launches of sample.cu: draws from rows of logits."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .launch import as_size, launch_kernel, make_scales
from .sizes import BLOCK_ELEMENTS, RECORD_BYTES, TRAIL_BYTES, align, item_bytes, room
from .topk import MAX_SORTED_BY_KERNEL, launch_topk

_MORE_WANTED = 2  # state of a row that needs more logits than were chosen: MORE_WANTED of sample.cu


@functools.lru_cache(1024)
def plan_sample_launch(dtype: int, n: int) -> int:
    """Bytes of shared memory of a warp that draws: a trail, and a block of the row."""
    itemsize, wide = item_bytes(dtype)
    return align(TRAIL_BYTES, 16) + room(min(n, BLOCK_ELEMENTS), itemsize) * wide


class _Batch(NamedTuple):
    """Arrays of rows that are drawn from in the same way, on the device."""

    x: Any
    size: tuple[np.int64, np.int64]
    temperatures: tuple[Any, Any]  # constants of each distinct temperature, and the index of each row's temperature
    min_p: Any
    uniform: Any
    to: Any  # the classes that are drawn
    states: Any

    @property
    def n(self) -> int:
        return int(self.size[1])

    @property
    def blocks(self) -> int:
        """Blocks of the specification in all rows."""
        return len(self.x) * -(-self.n // BLOCK_ELEMENTS)


class _Rows:
    """Rows to be drawn from on a device, and the parameters of each."""

    def __init__(
        self,
        dtype: int,
        x: Any,
        uniform: NDArray[Any],
        temperature: NDArray[Any] | None,
        top_k: NDArray[Any] | None,
        top_p: NDArray[Any] | None,
        min_p: NDArray[Any] | None,
    ) -> None:
        import cupy

        rows, n = x.shape
        self.dtype, self.x, self.uniform, self.min_p = dtype, x, uniform, min_p
        self.temperature = np.ones(rows) if temperature is None else temperature
        limits = np.full(rows, n, np.int64) if top_k is None else np.where(top_k < 1, n, np.minimum(top_k, n))
        self.top_k = np.where(self.temperature == 0, np.int64(1), limits)
        self.top_p = np.ones(rows) if top_p is None else top_p
        self.states = np.empty(rows, np.int32)
        self.indices = cupy.empty((rows, uniform.shape[1]), np.int64)

    def launch(self, kernel: str, grid: int, n: int, *arguments: Any) -> None:
        """Launch a kernel of sample.cu whose warps hold up to n elements each."""
        shared_bytes = plan_sample_launch(self.dtype, n)
        launch_kernel("sample", self.dtype, self.x.device.id, kernel, grid, 32, shared_bytes, *arguments)

    def draw(self, which: NDArray[Any], k: int) -> None:
        """Draw from the rows with the indices `which`: from all their logits, or (k > 0) from the k largest of each."""
        import cupy

        everything = len(which) == len(self.x)
        x = self.x if everything else self.x[cupy.asarray(which)]
        values, numbers = np.unique(self.temperature[which], return_inverse=True)
        scales = np.frombuffer(b"".join(make_scales(self.dtype, float(t)).tobytes() for t in values), np.uint8)
        batch = _Batch(
            x,
            as_size(*x.shape),
            (cupy.asarray(scales), cupy.asarray(numbers.astype(np.int32))),
            None if self.min_p is None or not np.any(self.min_p[which]) else cupy.asarray(self.min_p[which]),
            cupy.asarray(self.uniform[which]),
            cupy.empty((len(x), self.uniform.shape[1]), np.int64),
            cupy.empty(len(x), np.int32),
        )
        if k:
            self._draw_chosen(batch, which, k)
        else:
            self._draw_from_all(batch)
        if everything:
            self.indices[...] = batch.to
        else:
            self.indices[cupy.asarray(which)] = batch.to
        self.states[which] = batch.states.get()

    def _sum_blocks(self, batch: _Batch) -> tuple[Any, Any]:
        """Records of the blocks of rows, and scratch of the same size."""
        import cupy

        first, parts = (cupy.empty(batch.blocks * RECORD_BYTES["sample.cu"], np.uint8) for _ in range(2))
        self.launch("sums", batch.blocks, batch.n, batch.x, None, first, *batch.size, *batch.temperatures)
        self.launch("sums", batch.blocks, batch.n, batch.x, first, parts, *batch.size, *batch.temperatures)
        return parts, first

    def _draw_from_all(self, batch: _Batch) -> None:
        parts, scratch = self._sum_blocks(batch)
        grid, n, (x, size, temperatures, min_p, uniform, to, states) = batch.blocks, batch.n, batch
        if min_p is not None:
            self.launch("min_sums", grid, n, x, parts, scratch, min_p, *size, *temperatures)
            parts = scratch
        draws = np.int64(uniform.shape[1])
        self.launch("draw", grid, n, x, parts, min_p, uniform, to, states, *size, draws, *temperatures)

    def _draw_chosen(self, batch: _Batch, which: NDArray[Any], k: int) -> None:
        import cupy

        x, size, temperatures, min_p, uniform, to, states = batch
        # rows without top_k need the mass of all their logits, of which top_p takes a share
        parts = self._sum_blocks(batch)[0] if np.any(self.top_k[which] == batch.n) else None
        chosen, places = cupy.empty((len(x), k), x.dtype), cupy.empty((len(x), k), np.int64)
        launch_topk(self.dtype, x, chosen, places, False, False, binding.NORMALIZE[None], 1.0)
        marks = cupy.zeros(x.shape, np.uint8)
        filters = cupy.asarray(self.top_k[which]), cupy.asarray(self.top_p[which]), min_p
        sums = cupy.empty((len(x), -(-k // BLOCK_ELEMENTS)), np.float64)
        sizes = *size, np.int64(k), np.int64(uniform.shape[1]), *temperatures
        self.launch("chosen", len(x), k, chosen, places, x, marks, parts, *filters, uniform, sums, to, states, *sizes)


def launch_sample(
    dtype: int,
    x: Any,
    uniform: NDArray[Any],
    temperature: NDArray[Any] | None,
    top_k: NDArray[Any] | None,
    top_p: NDArray[Any] | None,
    min_p: NDArray[Any] | None,
) -> tuple[Any, NDArray[np.int32]]:
    """Draws from contiguous rows of a CuPy array, one for each uniform number, and the states of the rows.

    The uniform numbers and the parameters (one for each row, or None) come from the CPU, and the states return there,
    so the call waits for the device.  A state is 0 for a row that was drawn from, 1 for a row without mass.
    """
    import cupy

    n = x.shape[1]
    with cupy.cuda.Device(x.device.id):
        rows = _Rows(dtype, x, uniform, temperature, top_k, top_p, min_p)
        selects = (rows.top_k < n) | (rows.top_p < 1)
        if not selects.all():
            rows.draw(np.flatnonzero(~selects), 0)
        which, k = np.flatnonzero(selects), MAX_SORTED_BY_KERNEL
        while len(which):
            rows.draw(which, min(int(np.max(rows.top_k[which])), k))
            which, k = which[rows.states[which] == _MORE_WANTED], n
    return rows.indices, rows.states
