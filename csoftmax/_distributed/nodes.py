"""Sums over rows in the tree of the core, from parts that begin and end anywhere."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import as_native
from .._arguments.numbers import check_count
from .._arguments.places import as_array

__all__ = ["Nodes"]

LEAF_LEVEL = 3  # the rows of a leaf, 2**3, are added in order

_Sums = dict[tuple[int, int], Any]


class Nodes:
    """Canonical sums over rows, which have the bits of one process however the rows are divided.

    The rows 0 to n - 1 are the leaves of the tree in which csoftmax adds the losses of rows: groups of 8 rows in order,
    then pairs of groups, pairs of pairs, and so on. A part of the rows is a dictionary of the largest subtrees that it
    contains: node (l, j) is the sum over the rows from ``j * 2**l`` to before ``(j + 1) * 2**l``.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import Nodes
    >>> x = np.random.default_rng(0).normal(size=1000)
    >>> parts = [Nodes.nodes(x[a:b], a) for a, b in ((123, 1000), (0, 77), (77, 123))]
    >>> total = Nodes.total(Nodes.merge(Nodes.merge(parts[0], parts[1]), parts[2]), 1000)
    >>> bool(total == Nodes.total(Nodes.nodes(x, 0), 1000))
    True
    """

    @staticmethod
    def nodes(values: ArrayLike, first: SupportsIndex = 0) -> _Sums:
        """The nodes of consecutive rows.

        Parameters
        ----------
        values : array_like of float64 of shape (m, ...)
            A number, or an array, for each row.
        first : int, default 0
            Number of the first of these rows among all.

        Returns
        -------
        dict
            The sums by node.
        """
        rows = np.asarray(as_array("values", as_native(values, "values")), np.float64)
        start = check_count("first", first)
        if rows.ndim == 0:
            raise ValueError("values is 0-dimensional; it has one entry a row")
        size, stop = 1 << LEAF_LEVEL, start + len(rows)
        begin = min(-(-start // size) * size, stop)
        end = max(begin, stop // size * size)
        single = [*range(start, begin), *range(end, stop)]
        sums: _Sums = {(0, i): rows[i - start].copy() for i in single}
        level, index = LEAF_LEVEL, begin // size
        groups = rows[begin - start : end - start].reshape(-1, size, *rows.shape[1:])
        sum_ = np.zeros((len(groups), *rows.shape[1:]))
        with np.errstate(over="ignore", invalid="ignore"):
            for i in range(size):
                sum_ += groups[:, i]
            while len(sum_):
                if index % 2:
                    sums[level, index] = sum_[0]
                    sum_, index = sum_[1:], index + 1
                if len(sum_) % 2:
                    sums[level, index + len(sum_) - 1] = sum_[-1]
                    sum_ = sum_[:-1]
                sum_ = sum_[::2] + sum_[1::2]
                level, index = level + 1, index // 2
        return sums

    @staticmethod
    def merge(a: _Sums, b: _Sums) -> _Sums:
        """The nodes of the rows of both.

        A node that is there already, or within one that is there, changes nothing, so that parts may arrive twice.

        Parameters
        ----------
        a, b : dict
            Results of `nodes` or `merge`; they are left as they are.

        Returns
        -------
        dict
            The sums by node.
        """
        sums = dict(a)
        for key, value in sorted(b.items(), key=lambda item: -item[0][0]):
            if not _is_covered(sums, key):
                sums[key] = value
                _settle(sums, key)
        return sums

    @staticmethod
    def total(nodes: _Sums, n: SupportsIndex) -> Any:
        """The sum over all rows.

        Parameters
        ----------
        nodes : dict
            The nodes of the rows 0 to n - 1.
        n : int
            Number of rows.

        Returns
        -------
        float64, or ndarray
            The sum.

        Raises
        ------
        ValueError
            If rows are missing, or nodes have rows beyond these.
        """
        count = check_count("n", n)
        if any((index + 1) << level > count for level, index in nodes):
            raise ValueError(f"nodes hold rows beyond the {count} of the sum")
        if count == 0:
            return np.float64(0)
        level = LEAF_LEVEL
        while 1 << level < count:
            level += 1
        with np.errstate(over="ignore", invalid="ignore"):
            return _total(nodes, level, 0, count)


def _is_covered(sums: _Sums, key: tuple[int, int]) -> bool:
    level, index = key
    while True:
        if (level, index) in sums:
            return True
        if level > 64 or not sums:
            return False
        level, index = (LEAF_LEVEL, index >> LEAF_LEVEL) if level == 0 else (level + 1, index // 2)


def _settle(sums: _Sums, key: tuple[int, int]) -> None:
    """Replace complete nodes by the one above them."""
    level, index = key
    with np.errstate(over="ignore", invalid="ignore"):
        if level == 0:
            size = 1 << LEAF_LEVEL
            rows = [(0, i) for i in range(index // size * size, (index // size + 1) * size)]
            if not all(row in sums for row in rows):
                return
            sum_ = np.float64(0)
            for row in rows:
                sum_ = sum_ + sums.pop(row)
            level, index = LEAF_LEVEL, index // size
            sums[level, index] = sum_
        while (level, index ^ 1) in sums:
            left, right = sums.pop((level, index & ~1)), sums.pop((level, index | 1))
            level, index = level + 1, index // 2
            sums[level, index] = left + right


def _total(nodes: _Sums, level: int, index: int, n: int) -> Any:
    """The sum over a node's rows below n."""
    if (level, index) in nodes:
        return nodes[level, index]
    if level > LEAF_LEVEL:
        left = _total(nodes, level - 1, 2 * index, n)
        return left if (2 * index + 1) << (level - 1) >= n else left + _total(nodes, level - 1, 2 * index + 1, n)
    sum_ = np.float64(0)
    for row in range(index << level, min(n, (index + 1) << level)):
        if (0, row) not in nodes:
            raise ValueError(f"row {row} of {n} is missing")
        sum_ = sum_ + nodes[0, row]
    return sum_
