"""Graphs: a function of corresponding chunks, trees over the chunks of an axis, and canonical sums over rows."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from .._arguments.numbers import check_count
from .._distributed.nodes import Nodes
from .._runtime.memory import live_within
from .collections import Begins, Letters, in_one_chunk, is_unknown
from .options import current

Argument = tuple[Any, Letters]  # a lazy array, and its axes


def map_chunks(
    function: Callable[..., Any],
    letters: Letters,
    arguments: Sequence[Argument],
    *,
    dtype: Any,
    like: Any = None,
    chunks: dict[int, Any] | None = None,
    new: dict[int, int] | None = None,
) -> Any:
    """A function of corresponding chunks; results of dtype object may be anything but lists.

    Axes that the result does not have must be in one chunk.

    like : the array whose kind of chunks the results have, NumPy's or CuPy's.
    chunks : lengths of chunks that differ from those of the arguments, by axis.
    new : lengths of axes that no argument has.
    """
    meta = meta_from_array(None if like is None else like._meta, ndim=len(letters), dtype=dtype)
    pairs = itertools.chain.from_iterable(arguments)
    layout = {"adjust_chunks": chunks, "new_axes": new, "align_arrays": False, "concatenate": None}
    return da.blockwise(functools.partial(_apply, function), letters, *pairs, dtype=dtype, meta=meta, **layout)


def _apply(function: Callable[..., Any], *blocks: Any) -> Any:
    """The function of blocks, which are in lists of one where an axis is not in the result."""
    _live_within_the_worker()
    return function(*map(_only, blocks))


@functools.cache
def _live_within_the_worker() -> None:
    """Once in a process: keep memory for later results by the limit of its worker, which may be killed beyond that."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return
    try:
        worker = distributed.get_worker()
    except ValueError:  # there is none
        return
    limit = worker.memory_manager.memory_limit if worker.nanny else None  # without one it is in a process of the user
    if limit:
        live_within(limit)


def _only(block: Any) -> Any:
    while isinstance(block, list):
        (block,) = block
    return block


def pick(results: Argument, number: int, letters: Letters, *, dtype: Any, like: Any = None, **options: Any) -> Any:
    """One of several results of each chunk."""
    return map_chunks(functools.partial(_item, number), letters, [results], dtype=dtype, like=like, **options)


def _item(number: int, results: Any) -> Any:
    return results[number]


def check_split_every(split_every: Any) -> int:
    """How many results a task merges."""
    return current().split_every if split_every is None else check_count("split_every", split_every, 2)


def merge_chunks(
    function: Callable[[list[Any]], Any],
    a: Any,
    axis: int | tuple[int, ...],
    split_every: int,
    *,
    settle: Callable[[Any, Any], Any] | None = None,
    beside: Any = None,
    dtype: Any = object,
) -> Any:
    """The results of all chunks of some axes merged in a tree; the axes are left out.

    Its tasks are those of the tree alone: dask.array.reduction has one more for each chunk that others use as well.

    function : of a list of results in any grouping.
    settle, beside : what is done at last with the merged result and the chunk of another array, without these axes.
    """
    axes = (axis,) if isinstance(axis, int) else axis
    rows = [i for i in range(a.ndim) if i not in axes]
    token = tokenize(function, a.name, axes, split_every, settle, None if beside is None else beside.name)
    name = f"csoftmax-merged-{token}"
    tasks: dict[Any, Any] = {}
    for at in itertools.product(*(range(a.numblocks[i]) for i in rows)):
        ranges = [range(n) if i in axes else (at[rows.index(i)],) for i, n in enumerate(a.numblocks)]
        parts: list[Any] = [(a.name, *index) for index in itertools.product(*ranges)]
        for level in itertools.count():
            if len(parts) <= split_every:
                break
            bounds = bound_groups(len(parts), split_every)
            groups = [parts[a:b] for a, b in itertools.pairwise(bounds)]
            keys = [(f"csoftmax-merge-{level}-{token}", *at, i) for i in range(len(groups))]
            tasks.update((key, (function, group)) for key, group in zip(keys, groups, strict=True))
            parts = keys + parts[bounds[-1] :]
        settled = (_merge_and_settle, function, settle, parts, None if beside is None else (beside.name, *at))
        tasks[(name, *at)] = (function, parts) if settle is None else settled
    dependencies = [a] if beside is None else [a, beside]
    graph = HighLevelGraph.from_collections(name, tasks, dependencies=dependencies)
    return da.Array(graph, name, tuple(a.chunks[i] for i in rows), dtype, meta=np.empty((0,) * len(rows), dtype))


def bound_groups(count: int, arity: int) -> list[int]:
    """Where the groups end that the next level of a tree merges, after a 0.

    No more than the last task needs to have at most `arity` arguments: the others go up as they are, so that it waits
    for one level less after the last of them.
    """
    excess = count - arity
    if excess > arity * (arity - 1):
        return [*range(0, count, arity), count]
    merges = -(-excess // (arity - 1))
    return [0, *(min(i * arity, excess + i) for i in range(1, merges + 1))]


def _merge_and_settle(
    function: Callable[[list[Any]], Any], settle: Callable[[Any, Any], Any], parts: list[Any], beside: Any
) -> Any:
    return settle(function(parts), beside)


def add_rows(values: Sequence[Any], split_every: int) -> list[Any]:
    """The sums over all rows of float64 arrays of one shape, with the bits of csoftmax's tree over the rows.

    Returns one array of float64 without axes for each, whatever the chunks are. Where their lengths are unknown, they
    are found as part of the computation.
    """
    first = values[0]
    n = first.ndim
    if n == 0:
        return [map_chunks(_add_row, (), [(a, ())], dtype=np.float64) for a in values]
    values = [in_one_chunk(a, range(1, n)) for a in values]
    letters = tuple(range(n))
    found, one = [(a, letters) for a in values], {0: 1}
    if any(map(is_unknown, first.chunks[0])):
        lengths = find_lengths(first, 0)
        begins, rows = lengths.cumsum(axis=0) - lengths, [(lengths.sum(), ())]
    else:
        begins, rows = Begins(first.chunks[0]), []
    nodes = map_chunks(_nodes, (0,), [(begins, (0,)), *found], dtype=object, chunks=one)
    merged = merge_chunks(_merge_nodes, nodes, 0, split_every)
    width = int(np.prod(first.shape[1:], dtype=np.int64))
    known = None if rows else sum(first.chunks[0])
    totals = map_chunks(functools.partial(_totals, width, known), (), [(merged, ()), *rows], dtype=object)
    return [pick((totals, ()), i, (), dtype=np.float64) for i in range(len(values))]


def _add_row(value: Any) -> Any:
    return Nodes.total(Nodes.nodes(np.reshape(value, 1)), 1)


def find_lengths(x: Any, axis: int) -> Any:
    """The length of each chunk along an axis, lazily."""
    first = tuple(slice(None) if i == axis else 0 for i in range(x.ndim))
    x = x if x.npartitions == x.numblocks[axis] else x.blocks[first]
    one: dict[int, Any] = {axis: 1}
    function = functools.partial(_length, axis)
    return map_chunks(function, (axis,), [(x, tuple(range(x.ndim)))], dtype=np.int64, chunks=one)


def _length(axis: int, a: Any) -> Any:
    return np.array([a.shape[axis]], np.int64)


def _nodes(begin: Any, *values: Any) -> tuple[Any, ...]:
    width = int(np.prod(values[0].shape[1:], dtype=np.int64))
    start = int(np.reshape(begin, ())) * width
    return tuple(Nodes.nodes(np.reshape(a, -1), start) for a in values)


def _merge_nodes(parts: list[Any]) -> tuple[Any, ...]:
    return tuple(functools.reduce(Nodes.merge, each) for each in zip(*parts, strict=True))


def _totals(width: int, known: int | None, nodes: tuple[Any, ...], found: Any = None) -> tuple[Any, ...]:
    rows = int(found) if known is None else known
    return tuple(np.float64(Nodes.total(each, rows * width)) for each in nodes)
