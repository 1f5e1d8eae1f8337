"""Dask collections as parts: tuples of Delayed, one for each chunk or partition of the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed

from .._arguments.foreign import is_lazy_frame
from .._arguments.kinds import refuse_kind
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


class _Beside:
    """Brings labels and weights into the parts of X, whose lengths may be unknown before these have been read."""

    def __init__(self, first: str, x: Any, parts: list[Any], count_rows: Callable[[Any], Any] | None):
        self.first, self.x, self.parts, self.count_rows = first, x, parts, count_rows
        self.lengths: Any = None  # of the parts, computed or a Delayed
        self.is_known = isinstance(x, da.Array) and not any(np.isnan(n) for n in x.chunks[0])

    def split(self, name: str, a: Any) -> list[Any]:
        """A Delayed for each part."""
        if isinstance(a, da.Array) and self.is_known and not np.isnan(a.shape[0]):
            self._check_length(name, a)
            return _split(name, a.rechunk({0: self.x.chunks[0]}) if a.chunks[0] != self.x.chunks[0] else a)
        if dask.is_dask_collection(a) or (isinstance(a, list | tuple) and a and isinstance(a[0], Delayed)):
            parts = _split(name, a)
            if len(parts) != len(self.parts):
                raise ValueError(
                    f"{name} has {len(parts)} parts, but {self.first} has {len(self.parts)}; rows must be divided alike"
                )
            return parts
        refuse_kind(name, a)
        a = np.asarray(a)
        if a.ndim == 0:
            raise TypeError(f"{name} has no axis: beside Dask collections, allowed is an array in memory, or {ALLOWED}")
        if self.is_known:
            self._check_length(name, a)
            return _split(name, da.from_array(a, chunks=(self.x.chunks[0], *((-1,) * (a.ndim - 1)))))
        if self.lengths is None:
            lengths = dask.delayed(_list)(*map(dask.delayed(rows_in, pure=False), self.parts))
            self.lengths = lengths if self.count_rows is None else self.count_rows(lengths)
        whole = dask.delayed(a, pure=False, traverse=False)
        cut = dask.delayed(_cut, pure=False)
        return [cut(name, self.first, whole, self.lengths, number) for number in range(len(self.parts))]

    def _check_length(self, name: str, a: Any) -> None:
        if a.shape[0] != self.x.shape[0]:
            raise ValueError(f"{name} has {a.shape[0]} rows, but {self.first} has {self.x.shape[0]}")


def rows_in(x: Any) -> int:
    """The number of rows of a part: an array, a table or a list."""
    return int(x.shape[0]) if hasattr(x, "shape") else len(x)


def _list(*lengths: int) -> list[int]:
    return list(lengths)


def _cut(name: str, first: str, whole: Any, lengths: list[int], number: int) -> Any:
    """The rows of an array in memory that belong to a part."""
    if len(whole) != sum(lengths):
        raise ValueError(f"{name} has {len(whole)} rows, but {first} has {sum(lengths)}")
    begin = sum(lengths[:number])
    return whole[begin : begin + lengths[number]]


def split_parts(*named: tuple[str, Any], count_rows: Callable[[Any], Any] | None = None) -> list[tuple[Any, ...]]:
    """The parts of collections with the same rows, such as ("X", X), ("y", y); None: not there.

    count_rows : computes the lengths of the parts at once, where an array in memory is cut by them; else the parts of X
        have to stay until all lengths are there.
    """
    (first_name, x), *others = named
    for name, a in named:
        if a is None and name != "sample_weight":
            raise ValueError(f"{name} is None; allowed is {ALLOWED}")
    parts = _split(first_name, x)
    beside = _Beside(first_name, x, parts, count_rows)
    columns = [parts, *(beside.split(name, a) for name, a in others if a is not None)]
    return list(zip(*columns, strict=True))


def expect_sizes(x: Any) -> list[tuple[int, int]]:
    """Rows and bytes of the parts of X, or nothing if they are not known."""
    if not isinstance(x, da.Array) or any(np.isnan(n) for chunks in x.chunks for n in chunks):
        return []
    row = x.dtype.itemsize * int(np.prod(x.shape[1:]))
    return [(rows, rows * row) for rows in x.chunks[0]]
