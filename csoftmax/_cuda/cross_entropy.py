"""Launches of cross_entropy.cu: losses of labels or soft labels, and their gradients."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .device import read_shared_limit
from .launch import as_rows, contiguous_or_new, groups_of, launch_kernel, make_scales
from .sizes import (
    BLOCK_BYTES,
    BLOCK_ELEMENTS,
    MAX_SEGMENT_WARPS,
    MAX_WARPS,
    RECORD_BYTES,
    SHARED_ROW_BYTES,
    align,
    item_bytes,
    room,
)

_SHARED_RECORDS_BYTES = 8192  # beyond this much, the records of a row's blocks lie in global memory
GRID_WITH_RECORDS = 1024  # number of blocks of threads with records in global memory


class CrossEntropyLaunch(NamedTuple):
    """How rows of cross-entropy of one storage type and length are launched."""

    warps: int
    shared_bytes: int
    record_bytes: int  # of global memory for each block of threads; 0: the records are in shared memory


@functools.lru_cache(1024)
def plan_cross_entropy_launch(
    dtype: int, n: int, shared_limit: int, *, is_segmented: bool = False
) -> CrossEntropyLaunch:
    """The launch of rows of n classes: as many warps as there are blocks in a row, if shared memory holds them."""
    itemsize, wide = item_bytes(dtype)
    most = min(MAX_WARPS[wide], MAX_SEGMENT_WARPS) if is_segmented else MAX_WARPS[wide]
    blocks = -(-n // BLOCK_ELEMENTS)
    records = blocks * BLOCK_BYTES
    in_global = records > _SHARED_RECORDS_BYTES
    for warps in range(max(1, min(blocks, most)), 0, -1):
        head = SHARED_ROW_BYTES + 16 * warps + (0 if in_global else records)
        shared_bytes = align(head, 16) + warps * room(min(n, BLOCK_ELEMENTS), itemsize) * wide
        if shared_bytes <= shared_limit:
            break
    return CrossEntropyLaunch(warps, shared_bytes, records if in_global else 0)


def wide_dtype(dtype: int) -> np.dtype[Any]:
    """The compute type of a dtype."""
    return np.dtype(np.float64 if item_bytes(dtype)[1] == 8 else np.float32)


@functools.lru_cache(1024)
def make_softcap(dtype: int, cap: float) -> NDArray[Any]:
    """The constants of a soft cap, a csm_softcap."""
    return binding.softcap(dtype, cap)


class Target(NamedTuple):
    """Checked labels or the masses of soft labels, as the kernels need them: one entry for each row."""

    labels: Any  # int64: a class, IGNORED (-1) or BAD (-2); None with soft labels
    masses: Any  # of soft labels, NaN where one is bad; None with labels
    terms: Any  # what each row adds to the divisor of a mean


class RowLayout(NamedTuple):
    """Where rows lie, the `layout` of cross_entropy.cu: rows of `length`, or segments of stretches of `length`."""

    length: int
    rows: int  # or segments, of all stretches together
    indptr: Any = None  # of the segments of a stretch, on the device
    segments: int = 1  # of a stretch

    @property
    def op(self) -> str:
        """The operation whose module has the kernels for these rows."""
        return "cross_entropy" if self.indptr is None else "segment_cross_entropy"

    @property
    def stretches(self) -> int:
        """How many stretches there are."""
        return self.rows // self.segments if self.segments else 0

    @property
    def arguments(self) -> tuple[Any, ...]:
        return np.int64(self.length), self.indptr, np.int64(self.segments)


def launch_cross_entropy_kernel(
    dtype: int,
    device: int,
    kernel: str,
    grid: int,
    threads: int,
    shared_bytes: int,
    *arguments: Any,
    op: str = "cross_entropy",
) -> None:
    """Launch a kernel of cross_entropy.cu."""
    launch_kernel(op, dtype, device, kernel, grid, threads, shared_bytes, *arguments)


def launch_target(
    dtype: int,
    layout: RowLayout,
    labels: Any,
    ignore: int | None,
    soft: Any,
    weight: Any = None,
    sample_weight: Any = None,
) -> Target:
    """Check labels, or soft labels, on the device."""
    import cupy

    count, device = layout.rows, (labels if soft is None else soft).device.id
    terms, size = cupy.empty(count, np.float64), (*layout.arguments, np.int64(count))
    if labels is not None:
        checked = cupy.empty(count, np.int64)
        kind = np.int32(binding.LABELS[labels.dtype.name])
        ignored = np.array(ignore or 0, np.uint64).astype(np.int64)[()]
        arguments = labels, checked, terms, weight, sample_weight, *size, kind, np.int32(ignore is not None), ignored
        launch_cross_entropy_kernel(dtype, device, "labels", -(-count // 128), 128, 0, *arguments, op=layout.op)
        return Target(checked, None, terms)
    masses = cupy.empty(count, np.float64)
    arguments = soft, masses, terms, weight, sample_weight, *size
    launch_cross_entropy_kernel(dtype, device, "masses", -(-count // 4), 128, 0, *arguments, op=layout.op)
    return Target(None, masses, terms)


def launch_divide(
    dtype: int, device: int, terms: Any, weight: Any, mean: bool, call: Any, op: str = "cross_entropy"
) -> Any:
    """The divisor of the losses, and the constants that depend on it, on the device; the terms are overwritten."""
    import cupy

    prepared = cupy.empty(RECORD_BYTES["cross_entropy.cu"], np.uint8)
    arguments = terms, weight, prepared, np.int64(terms.size), np.int32(mean), call
    launch_cross_entropy_kernel(dtype, device, "divide", 1, 1024, 0, *arguments, op=op)
    return prepared


def launch_reduce(dtype: int, device: int, losses: Any, loss: Any, prepared: Any, op: str = "cross_entropy") -> None:
    """Write the sum or the mean of the row losses to `loss`; the row losses are overwritten."""
    arguments = losses, loss, prepared, np.int64(losses.size)
    launch_cross_entropy_kernel(dtype, device, "reduce", 1, 1024, 0, *arguments, op=op)


def launch_rows(
    dtype: int,
    device: int,
    layout: RowLayout,
    longest: int,
    arrays: tuple[Any, ...],
    prepared: Any,
    temperature: float,
    which: Any = None,
    stretches: int = 1,
) -> None:
    """Compute rows of at most `longest` classes.

    arrays : logits, soft labels, gradient, labels, masses, class weights, weights, upstream gradients, losses, and
        losses in the compute type; each may be None but the logits and the first losses.
    which : the numbers of the segments to compute, on the device, in each of so many stretches.
    """
    import cupy

    is_segmented, listed = which is not None, 0 if which is None else len(which)
    plan = plan_cross_entropy_launch(dtype, longest, read_shared_limit(device), is_segmented=is_segmented)
    rows = stretches if is_segmented else layout.rows
    count = rows * listed if is_segmented else rows
    grid = min(count, GRID_WITH_RECORDS) if plan.record_bytes else count
    records = cupy.empty(grid * plan.record_bytes, np.uint8) if plan.record_bytes else None
    last = np.int64(rows), which, np.int64(listed), np.int64(longest), make_scales(dtype, temperature)
    arguments = *arrays, records, prepared, *layout.arguments, *last
    size = grid, 32 * plan.warps, plan.shared_bytes
    launch_cross_entropy_kernel(dtype, device, "rows", *size, *arguments, op=layout.op)


class CrossEntropyInSteps:
    """Cross-entropy of CuPy arrays in steps: target and divisor, rows (all, or a chunk at a time), their sum.

    Arrays are C-contiguous with their rows in one axis; soft, sample_weight, upstream and labels have one entry for
    each row.
    factors : temperature, label_smoothing, z_loss, clip_norm, clip_value.
    temperatures : those of the rows, on the CPU, which count instead of the one of factors; rows of the same one are a
        launch.
    softcap : 0 for none. Capped logits and slopes are in arrays of the compute type, as many as are computed at a time.
    """

    def __init__(
        self,
        dtype: int,
        n: int,
        labels: Any,
        ignore: int | None,
        soft: Any,
        weight: Any,
        sample_weight: Any,
        upstream: Any,
        factors: tuple[float, float, float, float, float],
        *,
        reduction: int,
        gradient: bool,
        temperatures: NDArray[Any] | None = None,
        softcap: float = 0.0,
    ) -> None:
        import cupy

        given = labels if soft is None else soft
        self.stored, self.softcap, self.clips = dtype, softcap, factors[3:]
        if softcap:  # what is computed are capped logits of the compute type, whose gradient is clipped later
            dtype, factors = binding.DTYPES[wide_dtype(dtype).name], (*factors[:3], 0.0, 0.0)
        self.dtype, self.n, self.count, self.device = dtype, n, len(given), given.device.id
        self.soft, self.weight, self.sample_weight, self.upstream = soft, weight, sample_weight, upstream
        self.temperature, self.temperatures = factors[0], temperatures
        self.losses = cupy.empty(self.count, np.float64)
        self.target = launch_target(dtype, RowLayout(n, self.count), labels, ignore, soft, weight, sample_weight)
        self.mean = reduction == binding.REDUCTIONS["mean"]
        self._options = *factors[1:], soft is not None, gradient
        self.prepared = self._divide(factors[0])

    def _divide(self, temperature: float) -> Any:
        """The divisor and the constants of the rows of a temperature."""
        call = binding.loss_call(self.n, temperature, *self._options)
        terms = self.target.terms if self.temperatures is None else self.target.terms.copy()  # they are overwritten
        return launch_divide(self.dtype, self.device, terms, self.weight, self.mean, call)

    @property
    def divisor(self) -> Any:
        """The number that divides the sum of the losses, as an array of one element on the device."""
        return self.prepared[:8].view(np.float64)

    def run_rows(self, x: Any, y: Any, first: int = 0, row_losses: Any = None) -> None:
        """Compute the losses of the rows x, which begin at row `first`, and their gradients to y (None: no gradient).

        row_losses : the losses of all rows in the compute type, or None.
        """
        if not len(x):
            return
        if self.softcap:
            self._run_capped_rows(x, y, first, row_losses)
        else:
            self._run_rows(x, y, first, row_losses)

    def _run_capped_rows(self, x: Any, y: Any, first: int, row_losses: Any) -> None:
        import cupy

        capped = cupy.empty(x.shape, wide_dtype(self.stored))
        slope = None if y is None else cupy.empty(x.shape, capped.dtype)
        threads, record = 256, make_softcap(self.stored, self.softcap)
        on = self.stored, self.device
        grid = -(-x.size // threads)
        launch_cross_entropy_kernel(*on, "cap", grid, threads, 0, x, capped, slope, np.int64(x.size), record)
        self._run_rows(capped, None if y is None else capped, first, row_losses)
        if y is None:
            return
        if not any(self.clips):
            launch_cross_entropy_kernel(*on, "uncap", grid, threads, 0, capped, slope, y, np.int64(x.size))
            return
        upstream = None if self.upstream is None else self.upstream[first : first + len(x)]
        arrays = capped, slope, y, upstream, self.prepared
        clips = tuple(np.float64(number) for number in self.clips)
        launch_cross_entropy_kernel(*on, "clip", len(x), threads, 0, *arrays, *map(np.int64, x.shape), *clips)

    def _run_rows(self, x: Any, y: Any, first: int, row_losses: Any) -> None:
        import cupy

        count = len(x)
        part = slice(first, first + count)
        by_row = self.soft, *self.target[:2], self.sample_weight, self.upstream, self.losses, row_losses
        *given, losses, row_losses = (None if a is None else a[part] for a in by_row)
        inputs, outputs = (x, *given), (y, losses, row_losses)
        if self.temperatures is None:
            self._run(inputs, outputs, self.prepared, self.temperature)
            return
        for number, places in groups_of(self.temperatures[part]):
            there, t = cupy.asarray(places), float(number)
            parts = tuple(None if a is None else cupy.empty((len(places), *a.shape[1:]), a.dtype) for a in outputs)
            self._run(tuple(None if a is None else a[there] for a in inputs), parts, self._divide(t), t)
            for to, a in zip(outputs, parts, strict=True):
                if to is not None:
                    to[there] = a

    def _run(self, inputs: tuple[Any, ...], outputs: tuple[Any, ...], prepared: Any, temperature: float) -> None:
        """Launch rows of one temperature."""
        x, soft, labels, masses, weights, upstream = inputs
        y, losses, row_losses = outputs
        arrays = x, soft, y, labels, masses, self.weight, weights, upstream, losses, row_losses
        launch_rows(self.dtype, self.device, RowLayout(self.n, len(x)), self.n, arrays, prepared, temperature)

    def reduce(self, loss: Any) -> None:
        """Write the sum or the mean of the row losses to `loss`; the row losses are overwritten."""
        launch_reduce(self.dtype, self.device, self.losses, loss, self.prepared)


def launch_cross_entropy(
    dtype: int,
    x: Any,
    y: Any,
    loss: Any,
    labels: Any,
    ignore: int | None,
    soft: Any,
    weight: Any,
    sample_weight: Any,
    upstream: Any,
    temperature: float,
    label_smoothing: float,
    z_loss: float,
    clip_norm: float,
    clip_value: float,
    reduction: int,
    temperatures: NDArray[Any] | None = None,
    softcap: float = 0.0,
) -> None:
    """Cross-entropy of CuPy arrays, with the arguments of the CPU's run_cross_entropy; `loss` has the compute dtype.

    A row with a bad label gets NaN.
    """
    import cupy

    factors = temperature, label_smoothing, z_loss, clip_norm, clip_value
    n, rows = x.shape[-1], math.prod(x.shape[:-1])
    with cupy.cuda.Device(x.device.id):
        to = contiguous_or_new(y)
        by_row = weight, as_rows(sample_weight, rows), as_rows(upstream, rows)
        target = as_rows(labels, rows), ignore, as_rows(soft, rows, n)
        each = None if temperatures is None else temperatures.ravel()
        rest: dict[str, Any] = {
            "reduction": reduction,
            "gradient": y is not None,
            "temperatures": each,
            "softcap": softcap,
        }
        steps = CrossEntropyInSteps(dtype, n, *target, *by_row, factors, **rest)
        row_losses = as_rows(loss, rows) if reduction == binding.REDUCTIONS["none"] else None
        steps.run_rows(as_rows(x, rows, n), as_rows(to, rows, n), 0, row_losses)
        if row_losses is None:
            steps.reduce(loss)
        if to is not y:
            y[...] = to
