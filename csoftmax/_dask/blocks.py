"""Graphs: a function of corresponding chunks, trees over the chunks of an axis, and canonical sums over rows."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.array.utils import meta_from_array

from .._arguments.numbers import check_count
from .._distributed.nodes import Nodes
from .collections import Letters, begins_of, in_one_chunk, is_unknown
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
    return function(*map(_only, blocks))


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


def merge_chunks(function: Callable[[list[Any]], Any], a: Any, axis: int | tuple[int, ...], split_every: int) -> Any:
    """The results of all chunks of some axes merged in a tree; the axes are left out.

    function : of a list of results, none of which is a list, in any grouping.
    """
    combine = functools.partial(_combine, function)
    return da.reduction(
        a,
        chunk=_keep,
        combine=combine,
        aggregate=combine,
        axis=axis,
        keepdims=False,
        concatenate=False,
        dtype=object,
        meta=np.empty((0,) * (a.ndim - np.size(axis)), object),
        split_every=split_every,
    )


def _keep(result: Any, axis: Any, keepdims: Any) -> Any:
    return result


def _combine(function: Callable[[list[Any]], Any], results: Any, axis: Any, keepdims: Any) -> Any:
    return function(list(_flatten(results)))


def _flatten(results: Any) -> Iterator[Any]:
    if not isinstance(results, list):
        yield results
        return
    for item in results:
        yield from _flatten(item)


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
        lengths = map_chunks(_length, (0,), found[:1], dtype=np.int64, chunks=one)
        begins, rows = lengths.cumsum(axis=0) - lengths, lengths.sum()
    else:
        begins, rows = begins_of(first.chunks[0]), da.from_array(np.array(sum(first.chunks[0]), np.int64))
    nodes = map_chunks(_nodes, (0,), [(begins, (0,)), *found], dtype=object, chunks=one)
    merged = merge_chunks(_merge_nodes, nodes, 0, split_every)
    width = int(np.prod(first.shape[1:], dtype=np.int64))
    totals = map_chunks(functools.partial(_totals, width), (), [(merged, ()), (rows, ())], dtype=object)
    return [pick((totals, ()), i, (), dtype=np.float64) for i in range(len(values))]


def _add_row(value: Any) -> Any:
    return Nodes.total(Nodes.nodes(np.reshape(value, 1)), 1)


def _length(a: Any) -> Any:
    return np.array([len(a)], np.int64)


def _nodes(begin: Any, *values: Any) -> tuple[Any, ...]:
    width = int(np.prod(values[0].shape[1:], dtype=np.int64))
    return tuple(Nodes.nodes(np.reshape(a, -1), int(begin[0]) * width) for a in values)


def _merge_nodes(parts: list[Any]) -> tuple[Any, ...]:
    return tuple(functools.reduce(Nodes.merge, each) for each in zip(*parts, strict=True))


def _totals(width: int, nodes: tuple[Any, ...], rows: Any) -> tuple[Any, ...]:
    return tuple(np.float64(Nodes.total(each, int(rows) * width)) for each in nodes)
