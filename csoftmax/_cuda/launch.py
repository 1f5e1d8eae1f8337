"""Parts that all launches share: grids, contiguous arguments, constants of a temperature.

A launch plan (`plan_*_launch`) chooses kernel, threads and shared memory from the length of a row and the device
alone, so that a row's bits do not depend on the number of rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
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


def constants_of_rows(make: Callable[[int, float], NDArray[Any]], dtype: int, numbers: NDArray[Any] | None) -> Any:
    """The constants of a number for each row, on the device, from those of one number; None where there are none."""
    import cupy

    if numbers is None:
        return None
    values, which = np.unique(numbers, return_inverse=True)
    table = np.concatenate([make(dtype, float(value)) for value in values])
    return cupy.asarray(table[which.ravel()].view(np.uint8))


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


def groups_of(numbers: NDArray[Any]) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Each number that occurs, and the places where it does, on the CPU."""
    order = np.argsort(numbers, kind="stable")
    ascending = numbers[order]
    for places in np.split(order, np.flatnonzero(ascending[1:] != ascending[:-1]) + 1):  # infinities have no difference
        if len(places):
            yield numbers[places[0]], places


def launch_groups(
    numbers: NDArray[Any], arrays: tuple[Any, ...], result: Any, launch: Callable[[Any, list[Any], Any], None]
) -> None:
    """Launch rows of the same number together, as a call on copies of these rows.

    numbers : one for each row, on the CPU. launch : called with a number, the arrays of its rows and the array of their
    results.
    """
    import cupy

    rows, batch = numbers.size, arrays[0].ndim - 1
    flat = [as_rows(a, rows, a.shape[-1]) if a is not None else None for a in arrays]
    to = cupy.empty((rows, *result.shape[batch:]), result.dtype)
    for number, places in groups_of(numbers.ravel()):
        there = cupy.asarray(places)
        part = cupy.empty((len(places), *to.shape[1:]), to.dtype)
        launch(number, [None if a is None else a[there] for a in flat], part)
        to[there] = part
    result[...] = to.reshape(result.shape)


def as_size(rows: int, n: int) -> tuple[np.int64, np.int64]:
    """Number of rows and their length in the types of the kernels' arguments."""
    return np.int64(rows), np.int64(n)
