"""Sums over the rows of a call, which may be divided among the ranks of a second group.

Every exchange over that group is one message of the same length: a status, and up to NODES nodes of a sum. So a rank
whose call has failed, for any reason and at any point, can tell the others in whatever exchange they wait.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .agreement import hash_of, without_rows
from .groups import Header, as_group, check_status, fail_on_all, raise_disagreement
from .nodes import Nodes

NODES = 192  # nodes of consecutive rows: at most 14 single rows and two for each level
_NODE_WORDS = 3  # level, index, value


class RowSums:
    """Sums over all rows; as a context, it raises an error of this rank on all ranks that have other rows."""

    def __init__(self, rows_group: Any, rows: int = 0):
        self.group = None if rows_group is None else as_group(rows_group)
        self.first, self.rows = 0, rows
        self.largest_weight: float | None = None  # of all rows; None without sample weights
        self._is_over = False

    def __enter__(self) -> RowSums:
        return self

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        if self.group is not None and not self._is_over and isinstance(error, Exception):
            self._exchange(np.zeros(0, np.int64), error)

    def _exchange(self, words: NDArray[np.int64], error: Exception | None = None) -> NDArray[np.int64]:
        """The words of all ranks; raises on all of them if one has failed."""
        assert self.group is not None
        own = np.zeros(1 + NODES * _NODE_WORDS, np.int64)
        own[0] = error is not None
        own[1 : 1 + len(words)] = words
        self._is_over = True  # but for the end of this function, nothing that fails here fails on one rank alone
        gathered = self.group.all_gather(own)
        check_status(self.group, gathered[:, 0], error)
        self._is_over = False
        return gathered[:, 1:]

    def begin(self, header: Header, n_classes: int, sample_weight: Any) -> None:
        """Compare the call with those for other rows, count all rows, and find the largest of their weights."""
        self.rows = header.rows
        if sample_weight is not None:
            self.largest_weight = float(sample_weight.max(initial=0))
        if self.group is None:
            return
        common = ("n_classes", n_classes), *without_rows(header.agreed)
        own = np.array([header.rows, 0, 0])
        own[1] = np.frombuffer(hash_of(common), np.int64)[0]
        own[2:].view(np.float64)[:] = -1 if self.largest_weight is None else self.largest_weight
        gathered = self._exchange(own)
        counts, hashes, weights = gathered[:, 0], gathered[:, 1], gathered[:, 2].copy().view(np.float64)
        self.largest_weight = float(weights.max()) if weights.max() >= 0 else None
        if (hashes != hashes[0]).any():
            self._is_over = True
            raise_disagreement(self.group, common)
        self.first, self.rows = int(counts[: self.group.rank].sum()), int(counts.sum())

    def offsets_of(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """Of this rank's rows among all of them, along each axis; () where they do not begin at one of the first."""
        in_each = math.prod(batch[1:])
        if not batch or not in_each or self.first % in_each:
            return ()
        return self.first // in_each, *(0,) * (len(batch) - 1)

    def add(self, values: Any) -> float:
        """The sum of one number for each row, in the tree of the core."""
        if self.group is None:
            return binding.tree_sum(np.ascontiguousarray(values, np.float64))
        nodes = Nodes.nodes(values.reshape(-1), self.first)
        own = np.zeros((NODES, _NODE_WORDS), np.int64)
        own[:, 0] = -1
        for i, ((level, index), value) in enumerate(nodes.items()):
            own[i] = level, index, np.float64(value).view(np.int64)
        nodes = {}
        for theirs in self._exchange(own.reshape(-1)).reshape(-1, NODES, _NODE_WORDS):
            for level, index, bits in theirs[theirs[:, 0] >= 0]:
                nodes = Nodes.merge(nodes, {(int(level), int(index)): np.int64(bits).view(np.float64)})
        return float(Nodes.total(nodes, self.rows))

    def finish(self) -> None:
        """The last exchange of a call that has added nothing since it could fail."""
        if self.group is not None:
            self._exchange(np.zeros(0, np.int64))


def fail_on_both(group: Any, rows_group: Any, error: Exception) -> NoReturn:
    """Raise an error of this rank on all ranks of both groups, which begin a call."""
    with RowSums(rows_group):
        fail_on_all(as_group(group), error)
    raise AssertionError("an error in a header is raised on all ranks")
