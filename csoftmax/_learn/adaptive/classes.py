"""The order of classes in an adaptive softmax: the caller's numbers, ranks, and the cluster of each rank."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._arguments.foreign import as_native
from ..._arguments.numbers import as_number, check_count, check_integer
from ..._arguments.places import as_array
from ..messages import show
from .cutoffs import divide


class Classes(NamedTuple):
    """The classes by rank, most frequent first, and where shortlist and clusters begin and end."""

    order: NDArray[np.int32]  # of each rank the class
    rank: NDArray[np.int32]  # of each class the rank
    cutoffs: tuple[int, ...]  # the rank at which each cluster begins

    @property
    def n(self) -> int:
        """The number of classes."""
        return len(self.order)

    @property
    def shortlist(self) -> int:
        """The number of classes of the shortlist."""
        return self.cutoffs[0] if self.cutoffs else self.n

    @property
    def clusters(self) -> list[slice]:
        """The ranks of each cluster."""
        return [slice(begin, end) for begin, end in pairwise((*self.cutoffs, self.n))]

    def find_clusters(self, ranks: NDArray[np.int64]) -> NDArray[np.int64]:
        """The cluster of each rank, -1 for the shortlist."""
        return np.searchsorted(np.array(self.cutoffs, np.int64), ranks, "right") - 1


def make_classes(order: NDArray[Any], cutoffs: tuple[int, ...]) -> Classes:
    """The classes of an order that has been checked."""
    order = order.astype(np.int32, copy=False).view()  # views can be read-only without a change of the caller's array
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=np.int32)
    order.flags.writeable = rank.flags.writeable = False
    return Classes(order, rank, cutoffs)


def check_counts(counts: Any, n: int | None) -> NDArray[np.float64]:
    """Counts of n classes (None: of any number but 0) in float64, at least 0 and finite."""
    given = as_array("counts", as_native(counts, "counts"))
    if given.dtype.kind not in "iuf":
        raise TypeError(f"counts must hold real numbers, got dtype {given.dtype}")
    if given.ndim != 1 or (n is not None and len(given) != n) or len(given) == 0:
        allowed = "one axis with at least one class" if n is None else f"({n},), one for each class,"
        raise ValueError(f"counts has shape {given.shape}; {allowed} is allowed")
    values = given.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(values) & (values >= 0)))
    if len(bad):
        raise ValueError(f"counts must be at least 0 and finite, got {given[bad[0]]} at ({bad[0]},)")
    return values


def check_order(order: Any, n: int) -> NDArray[np.int64]:
    """A permutation of n classes."""
    given = as_array("order", as_native(order, "order"))
    if given.dtype.kind not in "iu":
        raise TypeError(f"order must hold integers, got dtype {given.dtype}")
    if given.shape != (n,):
        raise ValueError(f"order has shape {given.shape}; ({n},), each class once, is allowed")
    if (given < 0).any() or (given >= n).any() or (np.bincount(given.astype(np.int64), minlength=n) != 1).any():
        raise ValueError(f"order must hold each class from 0 to {n - 1} once, got {show(given)}")
    return given.astype(np.int64)


def check_cutoffs(cutoffs: Any, n: int) -> tuple[int, ...]:
    """Ranks at which clusters begin: ascending, from 1 to n - 1."""
    if isinstance(cutoffs, str):
        raise ValueError(f'cutoffs must be "auto" or ascending ints from 1 to {n - 1}, got {cutoffs!r}')
    given = as_array("cutoffs", as_native(cutoffs, "cutoffs"))
    if given.ndim != 1:
        raise ValueError(f"cutoffs has shape {given.shape}; a sequence of ints is allowed")
    values = tuple(check_integer("each of cutoffs", value) for value in given.tolist())
    if any(not 0 < value < n for value in values) or any(a >= b for a, b in pairwise(values)):
        raise ValueError(f"cutoffs must be ascending ints from 1 to {n - 1}, got {show(list(values))}")
    return values


def check_division(n_features: Any, batch_size: Any, div_value: Any, max_clusters: Any) -> tuple[int, int, float, int]:
    """Check the arguments of `suggest_cutoffs` besides the counts."""
    return (
        check_count("n_features", n_features, 1),
        check_count("batch_size", batch_size, 1),
        check_div_value(div_value),
        check_count("max_clusters", max_clusters),
    )


def check_div_value(given: Any) -> float:
    """A finite number that is at least 1."""
    value = as_number("div_value", given)
    if not 1 <= value < np.inf:
        raise ValueError(f"div_value must be at least 1 and finite, got {given!r}")
    return value


def choose_cutoffs(
    counts: NDArray[np.float64], n_features: int, batch_size: int, div_value: float, max_clusters: int
) -> list[int]:
    """Cutoffs for these counts in any order; equal shares if all are 0."""
    falling = -np.sort(-counts)
    largest = falling[0]
    falling = falling / largest if largest > 0 else np.ones(len(falling))  # no sum overflows
    return divide(falling / falling.sum(), n_features, batch_size, div_value, max_clusters)
