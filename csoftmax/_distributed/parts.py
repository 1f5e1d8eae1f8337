"""Sums over the parts of a data set: a function's vector for each part, added in the tree of `Nodes` over the parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from .groups import DistributedError, DistributedMemoryError
from .nodes import Nodes

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


def add_parts(kind: Kind, payload: Any, parts: Sequence[Any], numbers: Sequence[int]) -> Sums:
    """The nodes of the sum over some parts; one after the other, so that few vectors are in memory."""
    nodes: Sums = {}
    for part, number in zip(parts, numbers, strict=True):
        nodes = Nodes.merge(nodes, {(0, number): kind(part, payload, number)})
    return nodes


def merge_all(found: Iterable[Sums]) -> Sums:
    """The nodes of all parts of some sums."""
    nodes: Sums = {}
    for sums in found:
        nodes = Nodes.merge(nodes, sums)
    return nodes
