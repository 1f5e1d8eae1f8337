"""Dask collections as parts: tuples of Delayed, one for each chunk or partition of the rows."""

from __future__ import annotations

from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from .._arguments.foreign import is_lazy_frame
from .collections import fix_partitions

ALLOWED = "a dask.array.Array, a dask.dataframe DataFrame or Series, or a list of Delayed"


def check_rows(name: str, x: Any) -> None:
    """Refuse an array whose rows are in several chunks."""
    if isinstance(x, da.Array) and x.ndim == 2 and x.numblocks[1] > 1:
        raise ValueError(
            f"{name} has {x.numblocks[1]} chunks of columns, and whole rows are needed: pass {name}.rechunk((n, -1)), "
            "or make it with chunks=(n, -1)"
        )


def _split(name: str, x: Any) -> list[Any]:
    """A Delayed for each part of the rows."""
    if isinstance(x, list | tuple):
        for i, part in enumerate(x):
            if not isinstance(part, Delayed):
                raise TypeError(f"{name}[{i}] is a {type(part).__module__}.{type(part).__name__}, not a Delayed")
        return list(x)
    if is_lazy_frame(x):
        return list(fix_partitions(x).to_delayed(optimize_graph=False))
    if isinstance(x, da.Array):
        check_rows(name, x)
        if not 1 <= x.ndim <= 2:
            raise ValueError(f"{name} must have one axis or two, got shape {x.shape}")
        return list(x.to_delayed().ravel())
    raise TypeError(
        f"{name} is a {type(x).__module__}.{type(x).__name__}; beside Dask collections, allowed is {ALLOWED}"
    )


def _beside(x: Any, name: str, a: Any) -> Any:
    """Labels or weights in the chunks of the rows of X, where these are known."""
    is_known = isinstance(x, da.Array) and not any(np.isnan(n) for n in x.chunks[0])
    if isinstance(a, list | tuple) and a and isinstance(a[0], Delayed):
        return a
    if isinstance(a, da.Array):
        if is_known and a.shape[0] == x.shape[0] and a.chunks[0] != x.chunks[0]:
            return a.rechunk({0: x.chunks[0]})
        return a
    if dask.is_dask_collection(a):
        return a
    if not is_known:
        raise TypeError(f"{name} is a {type(a).__module__}.{type(a).__name__} beside a Dask collection: pass {ALLOWED}")
    a = np.asarray(a)
    if a.shape[:1] != x.shape[:1]:
        raise ValueError(f"{name} has shape {a.shape}, but X has {x.shape[0]} rows")
    return da.from_array(a, chunks=(x.chunks[0], *((-1,) * (a.ndim - 1))))


def split_parts(*named: tuple[str, Any]) -> list[tuple[Any, ...]]:
    """The parts of collections with the same rows, such as ("X", X), ("y", y); None: not there."""
    (first_name, x), *others = named
    columns = [(first_name, _split(first_name, x))]
    columns += [(name, _split(name, _beside(x, name, a))) for name, a in others if a is not None]
    count = len(columns[0][1])
    for (name, a), (_, parts) in zip([item for item in others if item[1] is not None], columns[1:], strict=True):
        if len(parts) != count:
            raise ValueError(f"{name} has {len(parts)} parts, but {first_name} has {count}; rows must be divided alike")
        if isinstance(a, da.Array) and isinstance(x, da.Array) and a.shape[0] != x.shape[0]:
            known = not (np.isnan(a.shape[0]) or np.isnan(x.shape[0]))
            if known:
                raise ValueError(f"{name} has {a.shape[0]} rows, but {first_name} has {x.shape[0]}")
    return [tuple(parts) for parts in zip(*(parts for _, parts in columns), strict=True)]


def expect_sizes(x: Any) -> list[tuple[int, int]]:
    """Rows and bytes of the parts of X, or nothing if they are not known."""
    if not isinstance(x, da.Array) or any(np.isnan(n) for chunks in x.chunks for n in chunks):
        return []
    row = x.dtype.itemsize * int(np.prod(x.shape[1:]))
    return [(rows, rows * row) for rows in x.chunks[0]]
