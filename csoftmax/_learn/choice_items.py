"""Which rows of rankings are compared, and whether items have worths of greatest likelihood: a directed graph."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse.csgraph import connected_components


class Compared(NamedTuple):
    """Rows of the first choice of each ranking, which holds those of all later ones, in falling order of relevance."""

    rows: Any
    group: Any  # of each row
    begins: Any  # whether a tie begins at a row
    has_place: Any  # whether a row is observed


def find_compared(relevance: Any, observed: Any, offsets: Any, weight: Any, ties: str) -> Compared:
    """The rows whose log-worths are in the likelihood; a difference of any two of a ranking then changes it.

    Rows before the first observed one are in no denominator. An exact tie of all rows that are left has probability 1.
    """
    group = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    seen = ~np.isnan(relevance)
    if weight is not None:
        seen &= np.broadcast_to(weight, len(offsets) - 1)[group] > 0
    rows = np.flatnonzero(seen)
    rows = rows[np.lexsort((-relevance[rows], group[rows]))]  # stable
    of, value = group[rows], relevance[rows]
    begins = np.ones(len(rows), bool)
    if ties != "order":
        begins[1:] = (of[1:] != of[:-1]) | (value[1:] != value[:-1])
    has_place = np.ones(len(rows), bool) if observed is None else observed[rows]
    tie = np.cumsum(begins)
    placed = np.flatnonzero(has_place)
    lists, at = np.unique(of[placed], return_index=True)
    first = np.full(len(offsets) - 1, len(rows) + 1)
    first[lists] = tie[placed[at]]
    keep = tie >= first[of]
    if ties == "exact":
        in_first = np.bincount(of[has_place & (tie == first[of])], minlength=len(first))
        keep &= (in_first < np.bincount(of[keep], minlength=len(first)))[of]
    return Compared(rows[keep], of[keep], begins[keep], has_place[keep])


def find_components(ids: Any, compared: Compared, ties: str) -> tuple[Any, bool]:
    """The component of each item, and whether it is of items with comparisons, or only with comparisons both ways.

    An edge leads from an item to what it has been preferred to; all rows of a tie share a node. The worths have a
    maximum if every item can be reached from every other (Ford 1957); items that no comparison connects are worse.
    """
    count = int(ids.max(initial=-1)) + 1
    rows, of, begins, has_place = compared
    item, hub = ids[rows], count + np.cumsum(begins) - 1
    beaten = ~has_place if ties == "exact" else np.ones(len(rows), bool)  # by the others of the tie
    follows = np.flatnonzero(begins)[1:]
    follows = follows[of[follows] == of[follows - 1]]
    later = np.flatnonzero(np.isin(hub, hub[follows]))
    edges = np.concatenate(
        [
            [item[has_place], hub[has_place]],
            [hub[beaten], item[beaten]],
            [hub[later] - 1, item[later]],
            [hub[follows] - 1, hub[follows]],
        ],
        axis=1,
    )
    size = count + int(begins.sum())
    graph = scipy.sparse.csr_array((np.ones(edges.shape[1]), edges), shape=(size, size))
    undirected = connected_components(graph, directed=False)[1][:count]
    if len(np.unique(undirected)) > 1:
        return undirected, False
    return connected_components(graph, connection="strong")[1][:count], True
