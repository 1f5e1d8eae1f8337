"""Parts that all launches share: grids, contiguous arguments, constants of a temperature.

A launch plan (`plan_*_launch`) chooses kernel, threads and shared memory from the length of a row and the device
alone, so that a row's bits do not depend on the number of rows.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from . import compiler
from .sizes import SUFFIXES

MAX_GRID = 2**31 - 1


def launch_kernel(
    op: str, dtype: int, device: int, kernel: str, grid: int, threads: int, shared_bytes: int, *arguments: Any
) -> None:
    """Launch a kernel of an operation's module with `grid` blocks of threads, at least one."""
    launch = compiler.load_kernel(op, SUFFIXES[dtype], device, kernel)
    launch((max(1, min(grid, MAX_GRID)),), (threads,), arguments, shared_mem=shared_bytes)


@functools.lru_cache(1024)
def make_scales(dtype: int, temperature: float) -> NDArray[Any]:
    """The constants of a temperature, a csm_scales, kept because launches repeat them."""
    return binding.scales(dtype, temperature)


def contiguous_or_new(y: Any) -> Any:
    """The array that a kernel writes: y itself if it is contiguous, else a new one to be copied to y."""
    import cupy

    return y if y is None or y.flags.c_contiguous else cupy.empty(y.shape, y.dtype)


def make_contiguous(a: Any, b: Any, where: Any) -> tuple[list[Any], Any]:
    """Inputs (one if b is None) and mask in the form that the kernels need."""
    import cupy

    inputs = [cupy.ascontiguousarray(x) for x in ((a,) if b is None else (a, b))]
    return inputs, None if where is None else cupy.ascontiguousarray(where)


def as_rows(a: Any, *shape: int) -> Any:
    """A contiguous array with its rows in one axis, or None."""
    import cupy

    return None if a is None else cupy.ascontiguousarray(a).reshape(*shape)


def as_size(rows: int, n: int) -> tuple[np.int64, np.int64]:
    """Number of rows and their length in the types of the kernels' arguments."""
    return np.int64(rows), np.int64(n)
