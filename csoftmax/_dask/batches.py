"""Parts of Dask collections, one after the other, for estimators that train on batches."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex

import dask

from .._arguments.foreign import is_lazy_frame
from .._arguments.numbers import check_count
from .beside import lay_beside
from .collections import as_lazy, fix_partitions, in_one_chunk
from .options import current, find_client

__all__ = ["batches"]


class Batches:
    """The result of `batches`: iterating over it reads all parts once, in order, and gives those that have rows."""

    def __init__(self, parts: list[tuple[Any, ...]], prefetch: int):
        self._parts, self._prefetch = parts, prefetch

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return (batch for batch in self._read() if any(a.shape[0] for a in batch))

    def _read(self) -> Iterator[tuple[Any, ...]]:
        client = find_client(current())
        reader = _Cluster(client) if client is not None else _Local()
        waiting: collections.deque[Any] = collections.deque()
        try:
            for part in self._parts:
                waiting.append(reader.start(part))
                if len(waiting) > self._prefetch:
                    yield reader.finish(waiting.popleft())
            while waiting:
                yield reader.finish(waiting.popleft())
        finally:
            reader.close(waiting)


class _Cluster:
    """Reads parts on the workers of a cluster."""

    def __init__(self, client: Any):
        self.client, self.retries = client, current().retries

    def start(self, part: tuple[Any, ...]) -> Any:
        return self.client.compute(list(part), retries=self.retries)

    def finish(self, futures: Any) -> tuple[Any, ...]:
        return tuple(self.client.gather(futures))

    def close(self, waiting: Any) -> None:
        for futures in waiting:
            self.client.cancel(futures)


class _Local:
    """Reads parts with the scheduler of Dask, in a thread beside the caller's."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, "csoftmax-batches")

    def start(self, part: tuple[Any, ...]) -> Any:
        return self.pool.submit(dask.compute, *part)

    def finish(self, future: Any) -> tuple[Any, ...]:
        return tuple(future.result())

    def close(self, waiting: Any) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


def batches(X: Any, y: Any, sample_weight: Any = None, *, prefetch: SupportsIndex = 2) -> Batches:
    """The rows of Dask collections in parts, for ``fit_batches`` of estimators.

    Parameters
    ----------
    X : dask.array.Array of shape (N, D), or dask.dataframe.DataFrame
        Features; each chunk of rows, or partition, is a batch. The axis of the features is brought into one chunk.
    y : dask.array.Array, dask.dataframe.Series, or array_like of shape (N,)
        Labels, of any kind that the estimator takes.
    sample_weight : as y, optional
        Weights of the rows.
    prefetch : int, default 2
        How many parts are read ahead, at least 0: in the caller's memory, or on the workers of a cluster, there are at
        most ``prefetch + 1`` at a time.

    Returns
    -------
    iterable of tuples (X, y) or (X, y, sample_weight)
        In the order of the rows, without parts that have none, such as those that a filter leaves; it may be iterated
        over again. Its length, as bars of progress need it, is the number of all parts.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed, or the chunks do not fit each other.

    Notes
    -----
    Parts are read by the client of `options`, or the current one of distributed, if there is one; else by Dask's
    scheduler, in a thread of their own. A part whose worker is lost is read again.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from csoftmax import dask as cd
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> X, y = da.from_array(np.arange(8.0)[:, None], chunks=3), da.from_array(np.arange(8) // 4, chunks=3)
    >>> model = SoftmaxRegression(solver="adamw", learning_rate=0.1, random_state=0)
    >>> model.fit_batches(cd.batches(X, y), [0, 1], epochs=100).predict([[0.0], [7.0]])
    array([0, 1])
    """
    count = check_count("prefetch", prefetch)
    if is_lazy_frame(X):
        X = fix_partitions(X)
        features, chunks = X.to_delayed(), as_lazy("X", X).chunks[:1]
    else:
        X = as_lazy("X", X)
        if X.ndim != 2:
            raise ValueError(f"X has shape {X.shape}; batches have two axes, rows and features")
        X = in_one_chunk(X, [1])
        features, chunks = X.to_delayed()[:, 0], X.chunks[:1]
    columns = [features]
    for name, a in (("y", y), ("sample_weight", sample_weight)):
        if a is not None:
            beside, _ = lay_beside(name, a, (0,), chunks, broadcasts=False)
            columns.append((fix_partitions(a) if is_lazy_frame(a) else beside).to_delayed())
    return Batches(list(zip(*columns, strict=True)), count)
