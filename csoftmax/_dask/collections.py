"""Dask collections as arguments: all as lazy arrays, their chunks beside those of the logits, and dataframes back."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.layers import ArrayBlockwiseDep

from .._arguments.foreign import is_lazy_array, is_lazy_frame
from .._arguments.kinds import refuse_kind
from .._arguments.places import as_array, is_cupy
from .._cpu import binding

Letters = tuple[int, ...]  # the axes of an array, numbered as those of the call


FIND_LENGTHS = "call compute_chunk_sizes() first, of a DataFrame or Series after to_dask_array()"


def as_lazy(name: str, x: Any) -> Any:
    """The argument as a dask.array.Array."""
    if is_lazy_array(x):
        return x
    if is_lazy_frame(x):
        return fix_partitions(x).map_partitions(
            functools.partial(as_array, name), meta=as_array(name, x._meta_nonempty)[:0]
        )
    if is_cupy(x):
        return da.from_array(x, chunks=-1, asarray=False)
    refuse_kind(name, x)
    return da.from_array(as_array(name, x), chunks=-1)


def fix_partitions(frame: Any) -> Any:
    """The DataFrame or Series in as many partitions as it says that it has, whatever is computed from it.

    Dask's optimizer reads several files of narrow columns as one partition, so that the features and the labels of one
    data set, or a DataFrame and its index, would end up in different ones.
    """
    if not hasattr(frame, "expr"):  # of Dask without an optimizer of expressions
        return frame
    with dask.config.set({"optimization.tune.active": False}):
        fixed = frame.optimize()
    if fixed.npartitions != frame.npartitions:  # filters have been moved into the files, which leaves some of them out
        fixed = frame
    keys = list(fixed.__dask_keys__())
    from_graph = importlib.import_module("dask.dataframe").from_graph
    return from_graph(fixed.__dask_graph__(), frame._meta, fixed.divisions, keys, "csoftmax-part")


def is_number(x: Any) -> bool:
    """Whether an argument is no array, or one without axes that is there."""
    return not (is_lazy_array(x) or is_lazy_frame(x)) and np.ndim(x) == 0


def is_unknown(length: Any) -> bool:
    """Whether the length of an axis, or of a chunk, is not known before something is computed."""
    return bool(np.isnan(length))


def give_frame(like: Any, a: Any) -> Any:
    """The rows of an array as a DataFrame or Series with the index, and where they have as many the columns, of one."""
    if not is_lazy_frame(like):
        return a
    frames = importlib.import_module("dask.dataframe")
    index = fix_partitions(like).index
    if a.ndim == 1:
        return frames.from_dask_array(a, index=index)
    columns = like.columns if hasattr(like, "columns") and a.shape[1] == len(like.columns) else None
    return frames.from_dask_array(a, columns=columns, index=index)


def rechunk(x: Any, chunks: dict[int, Any]) -> Any:
    """The array in other chunks of some axes, by plain tasks.

    With a cluster Dask may choose an exchange among all workers instead, through their disks, which starts again if one
    of them is lost; here chunks go to their neighbours.
    """
    if chunks and x.ndim and not any(x.shape):  # Dask's rechunk leaves such an array as it is
        lengths = (chunks.get(i, c) for i, c in enumerate(x.chunks))
        return da.empty_like(x, chunks=tuple((0,) if c == -1 else c for c in lengths))
    return x.rechunk(chunks, method="tasks") if chunks else x


def align_classes(x: Any, axis: int) -> Any:
    """The array with the chunks of its class axis ending at multiples of 4096, the nearest to where they ended."""
    check_known(x, axis)
    chunks = x.chunks[axis]
    n, block = sum(chunks), binding.BLOCK_ELEMENTS
    if len(chunks) == 1:
        return x
    ends = np.cumsum(chunks)[:-1]
    cuts = sorted({int(e) for e in (ends + block // 2) // block * block if 0 < e < n})
    bounds = [0, *cuts, n]
    aligned = tuple(b - a for a, b in itertools.pairwise(bounds))
    return x if aligned == chunks else rechunk(x, {axis: aligned})


def in_one_chunk(x: Any, axes: Sequence[int]) -> Any:
    """The array with some axes in one chunk."""
    for axis in axes:
        check_known(x, axis)
    return rechunk(x, {i: -1 for i in axes if len(x.chunks[i]) > 1})


def check_known(x: Any, axis: int) -> None:
    """Refuse an axis in chunks of unknown lengths, where they have to be put together."""
    if len(x.chunks[axis]) > 1 and any(map(is_unknown, x.chunks[axis])):
        raise ValueError(
            f"axis {axis} has {len(x.chunks[axis])} chunks of unknown lengths, where they must be known: "
            + FIND_LENGTHS
        )


class Begins(ArrayBlockwiseDep):  # type: ignore[misc]
    """The index at which each chunk of an axis begins, as an argument of tasks; -1 - i for chunk i of unknown place.

    Part of the tasks that need it: an array of such numbers would be a task for each chunk, without arguments, and the
    scheduler of a cluster sends few of those at a time.
    """

    def __init__(self, chunks: tuple[Any, ...]):
        super().__init__((chunks,))
        is_placed = not any(map(is_unknown, chunks))
        self.begins = [0, *itertools.accumulate(chunks[:-1])] if is_placed else [-1 - i for i in range(len(chunks))]

    def __getitem__(self, place: tuple[int, ...]) -> int:
        return int(self.begins[place[0]])

    def __dask_tokenize__(self) -> Any:
        return type(self).__name__, self.begins


def row_chunks(x: Any, axes: Sequence[int]) -> tuple[Letters, tuple[Any, ...]]:
    """The axes of the rows, those that are not the classes', and their chunks."""
    letters = tuple(i for i in range(x.ndim) if i not in axes)
    return letters, tuple(x.chunks[i] for i in letters)


def count_rows(chunks: Sequence[Any]) -> Any:
    """The number of rows; NaN: not known."""
    return math.prod(sum(c) for c in chunks)
