"""What holds the parts of a data set, and applies functions to them; results are added in the order of the parts.

A part is what an engine was given, until `change` replaces it by a result of a function.  All functions are those of
modules, so that every engine can send their names.  Sums over parts are nodes of the tree of `Nodes`, whose leaves are
the parts: they have the same bits for any placement of the parts, any number of workers, and parts computed twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..._distributed.parts import Kind, Sums, merge_all, sum_of_part, total_parts
from ..._runtime.threads import get_num_threads


class Engine(Protocol):
    """The parts of one data set.

    count: number of parts.  sizes: rows and bytes of each part once they are known, for messages.
    """

    count: int
    sizes: list[tuple[int, int]]

    def change(self, kind: Kind, payload: Any) -> None:
        """Replace each part by a result of the function."""

    def gather(self, kind: Kind, payload: Any) -> list[Any]:
        """The function's results, which are small, in the order of the parts."""

    def run(self, kind: Kind, payload: Any) -> Sums:
        """The nodes of the sum of the function's vectors over all parts."""

    def close(self) -> None:
        """Let the parts go."""


def total(engine: Engine, kind: Kind, payload: Any) -> NDArray[np.float64]:
    """The sum of the function's vectors over all parts."""
    return np.asarray(total_parts(engine.run(kind, payload), engine.count))


class LocalEngine:
    """Parts in the memory of this process, on its threads."""

    def __init__(self, parts: Sequence[Any], num_threads: int | None = None):
        self.parts, self.count = list(parts), len(parts)
        self.sizes: list[tuple[int, int]] = []
        self.pool = ThreadPoolExecutor(max(1, min(self.count, num_threads or get_num_threads())))

    def change(self, kind: Kind, payload: Any) -> None:
        """Replace each part by a result of the function."""
        self.parts = self.gather(kind, payload)

    def gather(self, kind: Kind, payload: Any) -> list[Any]:
        """The function's results."""
        return list(self.pool.map(lambda number: kind(self.parts[number], payload, number), range(self.count)))

    def run(self, kind: Kind, payload: Any) -> Sums:
        """The nodes of the sum of the function's vectors over all parts."""
        return merge_all(sum_of_part(number, vector) for number, vector in enumerate(self.gather(kind, payload)))

    def close(self) -> None:
        """Let the parts go."""
        self.pool.shutdown()
        self.parts = []
