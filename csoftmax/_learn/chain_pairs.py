"""Weights of (attribute, label) pairs, packed by attribute: emissions from them, and the gradient of the loss by them.

Weights exist for the pairs of the training data only, unless all are wanted: on the words, neighbours and affixes of
HKCanCor 5 % of all pairs occur, so that the vectors of L-BFGS are a twentieth as long (docs/decisions/sequence.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding
from .chain_features import Tokens, rows_of
from .chain_labels import UNKNOWN, Tags

ROW_SHARE = 4  # an attribute with at least a fourth of all labels is added as a row, in vectors
BLOCKS = 256  # of attributes, of about equal work, which the threads share
MAX_LABELS = 2**16  # labels are uint16


class Pairs:
    """Which pairs of attribute and label have a weight."""

    def __init__(self, offsets: NDArray[np.int64], labels: NDArray[np.uint16], n_labels: int):
        """Pairs of attribute a: those with labels[offsets[a]:offsets[a + 1]], rising."""
        self.offsets, self.labels, self.n_labels = offsets, labels, n_labels
        counts = np.diff(offsets)
        has_row = counts * ROW_SHARE >= max(n_labels, ROW_SHARE)
        self.row = np.where(has_row, np.cumsum(has_row) - 1, -1).astype(np.int32)
        self.width = -(-n_labels // binding.FEATURE_LANES) * binding.FEATURE_LANES
        self.rows = np.zeros(int(has_row.sum()) * self.width)

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_keys(cls, keys: NDArray[np.int64], n_columns: int, n_labels: int) -> Pairs:
        """Pairs from sorted numbers attribute * n_labels + label."""
        counts = np.bincount(keys // n_labels, minlength=n_columns)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(offsets, (keys % n_labels).astype(np.uint16), n_labels)

    def keys(self) -> NDArray[np.int64]:
        """Numbers attribute * n_labels + label of the pairs, rising."""
        attributes = np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int64), np.diff(self.offsets))
        return attributes * self.n_labels + self.labels

    def of(self, attributes: NDArray[Any]) -> tuple[Pairs, NDArray[np.int64]]:
        """The pairs of some attributes, numbered anew, and their positions among all pairs."""
        positions = rows_of(self.offsets, attributes)
        lengths = np.diff(self.offsets)[attributes]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Pairs(offsets, self.labels[positions], self.n_labels), positions


def find_keys(tokens: Tokens, tags: Tags, n_labels: int, *, every: bool) -> NDArray[np.int64]:
    """Sorted keys of the pairs that occur; every: of all pairs of the attributes that occur.

    A set counts with each of its labels, an unknown label with none.
    """
    if every:
        used = np.flatnonzero(np.bincount(tokens.columns, minlength=tokens.n_columns))
        return (used[:, None] * n_labels + np.arange(n_labels)).ravel().astype(np.int64)
    of_entry = np.repeat(tags.hard, np.diff(tokens.indptr))
    known = of_entry != UNKNOWN
    keys = np.unique(tokens.columns[known].astype(np.int64) * n_labels + of_entry[known])
    if tags.sets is None:
        return keys
    wide = np.flatnonzero((tags.hard == UNKNOWN) & ~tags.sets.all(axis=1))  # sets, but not unknown labels
    entries = rows_of(tokens.indptr, wide)
    rows = np.repeat(wide, np.diff(tokens.indptr)[wide])
    at, label = np.nonzero(tags.sets[rows])
    return np.union1d(keys, tokens.columns[entries][at].astype(np.int64) * n_labels + label)


class Scores:
    """Emissions of tokens from the weights of pairs, and the gradient of the weights."""

    def __init__(self, tokens: Tokens, pairs: Pairs, num_threads: int | None, *, gradient: bool):
        """Prepare the entries by attribute, if there will be a gradient, and memory for the emissions."""
        self.tokens, self.pairs, self.num_threads = tokens, pairs, num_threads
        size = tokens.total * pairs.n_labels
        self.memory = np.zeros(size + binding.FEATURE_LANES)  # the gradient reads whole vectors at its end
        self.emissions = self.memory[:size].reshape(tokens.total, pairs.n_labels)
        if gradient:
            self._transpose()

    def _transpose(self) -> None:
        from scipy import sparse

        tokens, pairs = self.tokens, self.pairs
        data = np.ones(len(tokens.columns), np.int8) if tokens.values is None else tokens.values
        shape = tokens.total, len(pairs.offsets) - 1
        by_column = sparse.csr_array((data, tokens.columns, tokens.indptr), shape).tocsc()
        self.indptr, self.rows = np.asarray(by_column.indptr, np.int64), np.asarray(by_column.indices, np.int32)
        self.values = None if tokens.values is None else np.asarray(by_column.data, np.float32)
        lengths = np.diff(self.indptr)
        columns = np.where(pairs.row >= 0, pairs.width // 4, np.diff(pairs.offsets))
        work = np.cumsum(lengths * columns + 1)
        total = int(work[-1]) if len(work) else 0
        edges = np.searchsorted(work, np.arange(1, BLOCKS) * (total / BLOCKS))
        self.blocks = np.unique(np.concatenate([[0], edges, [len(work)]])).astype(np.int64)

    def compute(self, weights: NDArray[np.float64], *, fills: bool = True) -> NDArray[np.float64]:
        """Emissions (tokens, labels), in memory that the next call reuses.

        fills: False if `weights` are those of the call before of these pairs.
        """
        pairs, tokens = self.pairs, self.tokens
        binding.run_emissions(
            tokens.indptr,
            tokens.columns,
            tokens.values,
            pairs.offsets,
            pairs.labels,
            weights,
            pairs.row,
            pairs.rows,
            self.memory,
            pairs.n_labels,
            fills,
            self.num_threads,
        )
        return self.emissions

    def differentiate(self, result: NDArray[np.float64]) -> None:
        """Write the gradient of the weights to `result`; that of the emissions has replaced them in their memory."""
        pairs = self.pairs
        binding.run_feature_gradient(
            self.blocks,
            self.indptr,
            self.rows,
            self.values,
            self.memory,
            pairs.offsets,
            pairs.labels,
            pairs.row,
            result,
            pairs.n_labels,
            self.num_threads,
        )


def as_csr(pairs: Pairs, weights: NDArray[np.float64]) -> Any:
    """The weights as a sparse array (attributes, labels)."""
    from scipy import sparse

    wide = np.int32 if len(pairs) < 2**31 else np.int64
    arrays = weights, pairs.labels.astype(wide), pairs.offsets.astype(wide)
    return sparse.csr_array(arrays, shape=(len(pairs.offsets) - 1, pairs.n_labels))
