"""Launches of topk.cu: the k best of each row."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .device import read_shared_limit
from .launch import as_rows, as_size, launch_kernel
from .sizes import SUFFIXES, align, item_bytes, room
from .softmax import launch_softmax

MAX_SORTED_BY_KERNEL = 1024  # elements of a row that topk.cu sorts; a library sorts more
_KINDS = {"f": 0, "i": 1, "u": 2}  # of elements, as topk.cu numbers them


class TopkLaunch(NamedTuple):
    """Launch parameters of a selection from rows of one storage type and length."""

    piece: int  # elements of a row that a block of threads selects from
    warps: int
    shared_bytes: int


@functools.lru_cache(1024)
def plan_topk_launch(dtype: int, n: int, k: int, shared_limit: int) -> TopkLaunch:
    """The launch of a selection of k of n; longer rows are cut into pieces, which leave k candidates each."""
    itemsize, wide = item_bytes(dtype)
    fixed_bytes = 16 * 40 + k * (wide + 4)  # the counts of 16 warps; keys and places of the best
    max_piece = min((shared_limit - fixed_bytes) // wide - 32 // itemsize, 65535) // 64 * 64
    usual_piece = max(8192, 16 * k)  # several blocks of threads per multiprocessor, and few candidates
    pieces = 1 if n <= min(max_piece, 2 * usual_piece) else -(-n // min(max_piece, usual_piece))
    piece = n if pieces == 1 else align(n, 64 * pieces) // pieces  # cuts at whole sectors of memory
    warps = max(1, min(16, -(-piece // 512)))
    return TopkLaunch(piece, warps, align(warps * 40, 16) + room(piece, itemsize) * wide + k * (wide + 4))


def launch_topk(
    dtype: int,
    x: Any,
    values: Any,
    indices: Any,
    smallest: bool,
    unsorted: bool,
    normalize: int,
    temperature: float,
    temperatures: NDArray[Any] | None = None,
) -> None:
    """The k best of CuPy arrays along the last axis, with the arguments of the CPU's run_topk, INTEGER included.

    values and indices may have strides.  The call waits for the device only if k is above MAX_SORTED_BY_KERNEL, and
    only with versions of CuPy whose argsort waits.
    """
    import cupy

    n, k, rows = x.shape[-1], values.shape[-1], math.prod(x.shape[:-1])
    if values.size == 0:
        return
    with cupy.cuda.Device(x.device.id):
        kind = 0
        if dtype == binding.INTEGER:
            dtype, kind, x = _as_bits(x)
        x = as_rows(x, rows, n)
        if k > MAX_SORTED_BY_KERNEL:
            best = _sort(dtype, kind, x, k, smallest)
            found = _gather(dtype, kind, x, best)
        else:
            found, best = _select(dtype, kind, x, k, smallest, unsorted)
        if kind:
            found = found.view(f"{' iu'[kind]}{found.dtype.itemsize}")
        if normalize == binding.NORMALIZE["full"]:
            probabilities = cupy.empty_like(x)
            launch_softmax(binding.OPS["softmax"], dtype, x, None, probabilities, None, temperature, temperatures)
            found = _gather(dtype, 0, probabilities, best)
        elif normalize == binding.NORMALIZE["topk"]:
            launch_softmax(binding.OPS["softmax"], dtype, found, None, found, None, temperature, temperatures)
        values[...] = found.reshape(values.shape)
        indices[...] = best.reshape(indices.shape)


def _as_bits(x: Any) -> tuple[int, int, Any]:
    """Integers as the bits of float32 or float64: the code of that dtype, the kind of topk.cu, and the array."""
    import cupy

    if x.dtype.itemsize < 4:
        x = x.astype(np.int32)
    name = "float32" if x.dtype.itemsize == 4 else "float64"
    return binding.DTYPES[name], _KINDS[x.dtype.kind], cupy.ascontiguousarray(x).view(name)


def _gather(dtype: int, kind: int, a: Any, indices: Any) -> Any:
    """The elements of each row of a at its indices."""
    import cupy

    (rows, n), k = a.shape, indices.shape[1]
    to = cupy.empty((rows, k), a.dtype)
    arguments = a, indices, to, *as_size(rows, n), np.int64(k), np.int32(kind)
    launch_kernel("topk", dtype, a.device.id, "gather", -(-rows * k // 128), 128, 0, *arguments)
    return to


def _sort(dtype: int, kind: int, x: Any, k: int, smallest: bool) -> Any:
    """The indices of the k best of each row, in order, by sorting the whole row with CuPy."""
    import cupy

    keys = cupy.empty(x.shape, np.int64 if SUFFIXES[dtype] == "f64" else np.int32)
    arguments = x, keys, np.int64(x.size), np.int32(smallest), np.int32(kind)
    launch_kernel("topk", dtype, x.device.id, "keys", -(-x.size // 128), 128, 0, *arguments)
    return cupy.ascontiguousarray(cupy.argsort(keys, axis=-1)[:, :k].astype(np.int64, copy=False))


def _select(dtype: int, kind: int, x: Any, k: int, smallest: bool, unsorted: bool) -> tuple[Any, Any]:
    """The k best of each row and their indices: from the pieces of the row, then from the pieces' candidates."""
    import cupy

    rows, length = x.shape
    device, found, best = x.device.id, x, None
    while length > k or best is None:
        piece, warps, shared_bytes = plan_topk_launch(dtype, length, k, read_shared_limit(device))
        pieces = -(-length // piece)
        left = (pieces - 1) * k + min(k, length - (pieces - 1) * piece)
        to = cupy.empty((rows, left), x.dtype), cupy.empty((rows, left), np.int64)
        sizes = *as_size(rows, length), np.int32(piece), np.int32(k)
        order = np.int32(smallest), np.int32(pieces == 1 and not unsorted), np.int32(kind)
        arguments = found, best, *to, *sizes, *order
        launch_kernel("topk", dtype, device, "choose", rows * pieces, 32 * warps, shared_bytes, *arguments)
        (found, best), length = to, left
    return found, best
