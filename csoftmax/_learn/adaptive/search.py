"""The most probable classes of an adaptive softmax, by branch and bound.

With M the largest logit of the head, log p(y) + log S is z_y - M for a class of the shortlist and (z_c - M) + t_y for
one of cluster c, where t <= 0 is its log-probability within the cluster, and S, the sum of the head's exponentials, is
the same for all. So z_c - M bounds all of cluster c. Each row visits its clusters in falling order while that bound is
at least the k-th best so far (at equality too, where the lower class wins). Only rows that visit a cluster are gathered
for it, and its logits exist for `PANEL_ELEMENTS` at a time: the best of a panel and its log-sum-exp are joined with
those of the panels before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._cpu import binding
from ..._cpu.apart import multiply
from ..._cpu.dtypes import dtype_code
from ..._cpu.linear import CHUNK_BYTES, kernel_threads
from ..._ops.topk import topk

if TYPE_CHECKING:
    from .state import LayerState

PANEL_ELEMENTS = 1 << 21  # of a cluster's logits at a time
HEAD_ELEMENTS, HEAD_ROWS = 1 << 20, 64  # of the head's logits at a time; more for so many rows, up to `CHUNK_BYTES`
NOBODY = np.iinfo(np.int64).max  # where fewer than k classes have been seen; comes after every class


def select(z: Any, ids: NDArray[np.int32], k: int, num_threads: int | None) -> tuple[Any, NDArray[np.int64], Any]:
    """The k largest of each row, the numbers of their columns, and the place of the first; ties to the lowest number.

    One more than k is looked for: only where it equals the k-th does the choice among equals need their numbers.
    """
    wider = min(k + 1, z.shape[1])
    values, at = topk(z, wider, num_threads=num_threads)
    first = at[:, 0]
    found = ids[at[:, :k]].astype(np.int64)
    has_equal = (values[:, 1:] == values[:, :-1]).any(axis=1)
    if not has_equal.any() or (ids[1:] > ids[:-1]).all():  # topk itself takes the lowest column
        return values[:, :k], found, first
    tied = np.flatnonzero(values[:, k - 1] == values[:, k]) if wider > k else np.zeros(0, np.intp)
    if k == 1:
        for begin in range(0, len(tied), 64):
            rows = tied[begin : begin + 64]
            found[rows, 0] = np.where(z[rows] == values[rows, :1], ids, np.iinfo(ids.dtype).max).min(axis=1)
        return values[:, :1], found, first
    for row in tied:
        boundary = values[row, k - 1]
        above = int((values[row, :k] > boundary).sum())
        found[row, above:] = np.sort(ids[np.flatnonzero(z[row] == boundary)])[: k - above]
    values = values[:, :k]
    for row in np.flatnonzero(has_equal):
        found[row] = found[row, np.lexsort((found[row], -values[row]))]
    return values, found, first


def compute_excess(z: Any, first: NDArray[np.int64], num_threads: int | None) -> NDArray[np.float64]:
    """Log-sum-exp of each row less its largest logit, which is at `first`: exact where it is nearly 0."""
    excess = np.zeros(len(z))
    binding.run_cross_entropy(
        dtype_code(z.dtype),
        z,
        None,
        excess,
        first,
        *(None, None, None, None, None),
        *(1.0, 0.0, 0.0, 0.0, 0.0),
        binding.REDUCTIONS["none"],
        kernel_threads(z.size, num_threads),
    )
    return excess


def _join_excess(top: Any, excess: Any, new_top: Any, new_excess: Any) -> Any:
    """The excess of two sets of logits together over the larger of their largest; no difference cancels."""
    is_new = new_top > top
    high, low = np.where(is_new, new_excess, excess), np.where(is_new, excess, new_excess)
    distance = -np.abs(new_top - top)
    return np.where(distance == -np.inf, high, high + np.log1p(np.exp(distance + low - high)))


def _merge(values: Any, ids: Any, more: Any, more_ids: Any) -> tuple[Any, Any]:
    """The k best of two lists for each row, largest value first, of equal values the lowest number."""
    k = values.shape[1]
    values, ids = np.concatenate([values, more], axis=1), np.concatenate([ids, more_ids], axis=1)
    order = np.lexsort((ids, -values), axis=1)[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(ids, order, 1)


class Search:
    """The search for the k best classes of some rows."""

    def __init__(self, layer: LayerState, x: Any, k: int, needs_values: bool, num_threads: int | None) -> None:
        """Compute the head, some rows at a time, and take the best of the shortlist."""
        self.layer, self.x, self.k, self.num_threads = layer, x, k, num_threads
        n, clusters = len(x), len(layer.classes.cutoffs)
        self.values = np.full((n, k), -np.inf)
        self.ids = np.full((n, k), NOBODY)
        self.largest, self.excess = np.empty(n), np.empty(n)
        self.bounds = np.empty((n, clusters))
        head = layer.parameters["head"]
        fitting = CHUNK_BYTES // (len(head) * head.itemsize)
        size = max(1, min(n, max(HEAD_ELEMENTS // len(head), min(HEAD_ROWS, fitting))))
        buffer = binding.empty((size, len(head)), head.dtype)  # pages that are kept from call to call
        for begin in range(0, n, size):
            rows = slice(begin, min(begin + size, n))
            self._read_head(rows, buffer[: rows.stop - begin], needs_values)
        self.has_softmax = np.isfinite(self.largest)
        self.ids[~self.has_softmax] = np.arange(k)

    def _read_head(self, rows: slice, logits: Any, needs_values: bool) -> None:
        classes, parameters = self.layer.classes, self.layer.parameters
        multiply(self.x[rows], parameters["head"].T, logits)
        if self.layer.has_bias:
            logits += parameters["head_bias"]
        shortlist = classes.shortlist
        few = min(self.k, shortlist)
        best, ids, first = select(logits[:, :shortlist], classes.order[:shortlist], few, self.num_threads)
        of_clusters = logits[:, shortlist:].astype(np.float64)
        largest = np.maximum(best[:, 0].astype(np.float64), of_clusters.max(axis=1, initial=-np.inf))
        # subtracted in float64, where the difference of two float32 hardly rounds
        self.values[rows, :few], self.ids[rows, :few] = best.astype(np.float64) - largest[:, None], ids
        self.bounds[rows], self.largest[rows] = of_clusters - largest[:, None], largest
        if needs_values:
            if of_clusters.shape[1]:
                in_cluster = of_clusters.max(axis=1) > best[:, 0]
                first = np.where(in_cluster, shortlist + of_clusters.argmax(axis=1), first)
            self.excess[rows] = compute_excess(logits, first, self.num_threads)

    def visit_clusters(self) -> None:
        """Visit the clusters of each row in falling order."""
        bounds = self.bounds
        order = np.argsort(-bounds, axis=1, kind="stable")
        for turn in range(bounds.shape[1]):
            cluster = order[:, turn]
            bound = np.take_along_axis(bounds, cluster[:, None], 1)[:, 0]
            needed = ~(bound < self.values[:, -1]) | (self.ids[:, -1] == NOBODY)
            needed &= self.has_softmax
            if not needed.any():
                return
            for c in range(bounds.shape[1]):
                rows = np.flatnonzero(needed & (cluster == c))
                if len(rows):
                    self._visit(c, rows)

    def _visit(self, c: int, rows: NDArray[np.intp]) -> None:
        hidden = multiply(self.x[rows], self.layer.parameters[f"projection{c}"].T)
        w, ranks = self.layer.parameters[f"tail{c}"], self.layer.classes.clusters[c]
        ids = self.layer.classes.order[ranks]
        width = max(64, PANEL_ELEMENTS // len(rows))
        buffer = binding.empty((len(rows), min(width, len(w))), w.dtype)
        best: Any = None
        for begin in range(0, len(w), width):
            panel = slice(begin, min(begin + width, len(w)))
            z = buffer[:, : panel.stop - begin]
            multiply(hidden, w[panel].T, z)
            values, found, first = select(z, ids[panel], min(self.k, z.shape[1]), self.num_threads)
            excess, values = compute_excess(z, first, self.num_threads), values.astype(np.float64)
            if best is None:
                best, best_ids, sums = values, found, excess
                continue
            sums = _join_excess(best[:, 0], sums, values[:, 0], excess)
            if best.shape[1] < self.k:
                missing = min(self.k - best.shape[1], values.shape[1])
                best = np.pad(best, ((0, 0), (0, missing)), constant_values=-np.inf)
                best_ids = np.pad(best_ids, ((0, 0), (0, missing)), constant_values=NOBODY)
            improves = np.flatnonzero(~(values[:, 0] < best[:, -1]))
            if len(improves):
                best[improves], best_ids[improves] = _merge(
                    best[improves], best_ids[improves], values[improves], found[improves]
                )
        values = self.bounds[rows, c][:, None] + ((best - best[:, :1]) - sums[:, None])
        is_nan = np.isnan(values).any(axis=1)
        values[is_nan] = np.inf  # NaN is greater than every number, as in topk
        best_ids[is_nan] = np.sort(ids)[: best_ids.shape[1]]
        self.values[rows], self.ids[rows] = _merge(self.values[rows], self.ids[rows], values, best_ids)

    def finish(self) -> NDArray[np.float64]:
        """Log-probabilities in float64, best first."""
        values = np.where(self.values == np.inf, np.nan, self.values) - self.excess[:, None]
        values[~self.has_softmax] = np.nan
        return values
