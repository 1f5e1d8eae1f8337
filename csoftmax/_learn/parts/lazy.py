"""Collections of Dask as data of models: recognised without importing Dask, and opened as the parts of an engine."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import Any

from ..._arguments.foreign import is_lazy_frame
from .engine import Engine, LocalEngine


def is_lazy(x: Any) -> bool:
    """Whether x is a collection of Dask, or a list of Delayed."""
    base = sys.modules.get("dask.base")
    if base is None or x is None:
        return False
    if isinstance(x, list | tuple):
        return bool(x) and type(x[0]).__module__ == "dask.delayed"
    return bool(base.is_dask_collection(x))


def check_table(name: str, x: Any) -> None:
    """Refuse a lazy array or dataframe that is no table of real numbers; nothing is known of a list of Delayed."""
    if not is_lazy(x) or isinstance(x, list | tuple):
        return
    if x.ndim != 2:
        kind = "a Series" if is_lazy_frame(x) else f"shape {x.shape}"
        raise ValueError(f"{name} must have two axes, rows and features, got {kind}")
    if getattr(getattr(x, "dtype", None), "kind", "") == "c":
        raise ValueError(f"Complex data not supported: {name} has dtype {x.dtype}; allowed are real numbers")


def _compute(client: Any, task: Any) -> Any:
    return task.compute() if client is None else client.compute(task).result()


@contextlib.contextmanager
def open_parts(*named: tuple[str, Any]) -> Iterator[Engine]:
    """The parts of collections with the same rows, on the workers of the current client or else in this process."""
    from ..._dask.engine import DaskEngine, ReadingEngine
    from ..._dask.options import current, find_client
    from ..._dask.parts import expect_sizes, split_parts

    options = current()
    client = find_client(options)
    parts = split_parts(*named, count_rows=None if options.keep else functools.partial(_compute, client))
    engine: Engine
    if not options.keep:
        engine = ReadingEngine(parts, client, options)
    elif client is not None:
        engine = DaskEngine(parts, client, options, expect_sizes(named[0][1]))
    else:
        import dask

        engine = LocalEngine(dask.compute(*parts))
    try:
        yield engine
    finally:
        engine.close()
