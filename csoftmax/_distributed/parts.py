"""Sums over the parts of a data set: a function's vector for each part, added in the tree of `Nodes` over the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from .groups import DistributedError, DistributedMemoryError
from .nodes import LEAF_LEVEL, Nodes

Kind: TypeAlias = Callable[[Any, Any, int], Any]
"""Called with a part, what all parts are told, and the number of the part; for sums, returns a float64 vector."""

Sums: TypeAlias = "dict[tuple[int, int], Any]"
"""The nodes of a sum."""


class PartError(DistributedError):
    """A failure that is not of the data; rank is the number of the first part of the task that failed, or -1."""

    def __str__(self) -> str:
        return str(self.message)


class PartMemoryError(PartError, DistributedMemoryError):
    """A lack of memory for some parts, or perhaps one: a worker that is killed says nothing."""


def sum_of_part(number: int, vector: Any) -> Sums:
    """The sum over one part: a leaf of its own, so that two parts are added as soon as they are there.

    The leaves of rows are longer, and would keep the vectors of their parts until the last one; those of a Hessian are
    large.
    """
    return {(LEAF_LEVEL, number): vector}


def total_parts(nodes: Sums, count: int) -> Any:
    """The sum over all parts."""
    return Nodes.total(nodes, count << LEAF_LEVEL)


def add_parts(kind: Kind, payload: Any, parts: Sequence[Any], numbers: Sequence[int]) -> Sums:
    """The nodes of the sum over some parts; one after the other, so that few vectors are in memory."""
    nodes: Sums = {}
    for part, number in zip(parts, numbers, strict=True):
        nodes = Nodes.merge(nodes, sum_of_part(number, kind(part, payload, number)))
    return nodes


def merge_all(found: Iterable[Sums]) -> Sums:
    """The nodes of all parts of some sums."""
    nodes: Sums = {}
    for sums in found:
        nodes = Nodes.merge(nodes, sums)
    return nodes
