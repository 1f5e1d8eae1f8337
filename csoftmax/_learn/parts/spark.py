"""Parts as the partitions of a data frame of Spark, and sums over them by its tree of reductions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..._distributed.nodes import Nodes
from ..._distributed.parts import Kind, Sums, add_parts


class SparkEngine:
    """One part a partition, in an RDD of one element each; a lost one is computed again from the data frame."""

    def __init__(self, parts: Any, count: int):
        self.parts, self.count = parts, count
        self.sizes: list[tuple[int, int]] = []

    def change(self, kind: Kind, payload: Any) -> None:
        """Replace each part by a result of the function; kept by Spark, on disk if memory is short."""
        from pyspark import StorageLevel

        def apply(number: int, parts: Iterable[Any]) -> Iterator[Any]:
            return (kind(part, payload, number) for part in parts)

        before, self.parts = self.parts, self.parts.mapPartitionsWithIndex(apply, preservesPartitioning=True)
        self.parts.persist(StorageLevel.MEMORY_AND_DISK)
        self.parts.count()
        before.unpersist()

    def gather(self, kind: Kind, payload: Any) -> list[Any]:
        """The function's results."""

        def apply(number: int, parts: Iterable[Any]) -> Iterator[Any]:
            return ((number, kind(part, payload, number)) for part in parts)

        found = self.parts.mapPartitionsWithIndex(apply).collect()
        return [result for _, result in sorted(found, key=lambda item: int(item[0]))]

    def run(self, kind: Kind, payload: Any) -> Sums:
        """The nodes of the sum of the function's vectors over all parts; Spark merges them in any order."""

        def apply(number: int, parts: Iterable[Any]) -> Iterator[Sums]:
            return (add_parts(kind, payload, [part], [number]) for part in parts)

        nodes: Sums = self.parts.mapPartitionsWithIndex(apply).treeReduce(Nodes.merge)
        return nodes

    def close(self) -> None:
        """Let the parts go."""
        self.parts.unpersist()


def make_parts(rows: Iterable[Any], columns: int, features: int, is_vector: bool) -> tuple[Any, ...]:
    """X, y and sample weights of one partition; the label is in the given column, a weight after it."""
    values = list(rows)
    if is_vector:
        given = [row[0].toArray() if hasattr(row[0], "toArray") else row[0] for row in values]
    else:
        given = [row[:features] for row in values]
    X = np.array(given, np.float64).reshape(len(values), features)
    label = 1 if is_vector else features
    y = np.array([row[label] for row in values]) if values else np.zeros(0)
    if columns == label + 1:
        return X, y
    return X, y, np.array([row[label + 1] for row in values], np.float64)


def open_frame(df: Any, features: Sequence[str] | str, label: str, weight: str | None) -> SparkEngine:
    """The partitions of a data frame."""
    is_vector = isinstance(features, str)
    names = [features] if isinstance(features, str) else list(features)
    chosen = [*names, label, *([] if weight is None else [weight])]
    missing = [name for name in chosen if name not in df.columns]
    if missing:
        raise ValueError(f"df has no column {missing[0]!r}, but {df.columns}")
    frame = df.select(*chosen)
    count, columns = len(names), len(chosen)
    if is_vector:
        first = frame.first()
        if first is None:
            raise ValueError("df has no rows")
        count = len(first[0])
    rdd = frame.rdd

    def load(rows: Iterable[Any]) -> Iterator[Any]:
        yield make_parts(rows, columns, count, is_vector)

    return SparkEngine(rdd.mapPartitions(load), rdd.getNumPartitions())
