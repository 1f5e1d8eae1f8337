"""A balanced tree of logistic models, fitted to the classes of rows from the root down (Bamler & Mandt 2020).

A node has classes c with sums ``S_c = sum of weight * (z, 1)`` over their rows and learns ``v = (w, b)``; the classes
of its side 1 form the set R.  Its objective is

    f(v, R) = sum of weight * softplus(u) - sum over c in R of S_c . v + penalty / 2 * |v|^2,   u = (z, 1) . v,

because softplus(-u) = softplus(u) - u.  R appears in the second term only: of all sets of its size, the classes with
the largest ``S_c . v`` are the best one, and gradient and Hessian of the first term are the same for each R.  So R is
chosen anew after each accepted step of Newton's method, at no cost, and f falls with both until neither changes.

All nodes of a level are fitted together, in batches.  Rows are laid out in blocks of equal length, padded with rows of
weight 0, one or more blocks a node, so that products run over stacks of small matrices: these are below the size from
which OpenBLAS starts threads, and the sums over blocks are in order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 100  # of Newton's method at a node, halved ones included; 10 to 20 are usual
TOLERANCE = 1e-9  # of the decrement, relative to the objective at 0
ROUNDING = 1e-13  # of the objective, relative to the sum of its first term
DIRECTIONS = 8  # rounds of the power method for the first direction
BATCH_ROWS, BATCH_NODES = 1 << 16, 4096
# OpenBLAS starts threads from m n k = 262,144 of a product of matrices, and m n = 9,216 of one with a vector
PRODUCT_ELEMENTS, BLOCK_ELEMENTS = 1 << 16, 1 << 12
STACK_BYTES = 1 << 24  # of second moments of blocks

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Rows(NamedTuple):
    """Rows sorted by class."""

    z: Floats  # (N, p), the last column 1
    weights: Floats  # (N,)
    order: Integers  # (N,), the rows of class 0, then those of class 1 ...
    begin: Integers  # (K + 1,), where those of each class begin in `order`
    sums: Floats  # (K, p): S


def fit_tree(rows: Rows, penalty: float) -> tuple[Integers, Floats]:
    """The classes in the order of the leaves, and v of each node (K - 1, p), nodes level by level."""
    classes, p = rows.sums.shape
    leaves = np.arange(classes)
    v = np.zeros((classes - 1, p))
    begin, end, node = np.zeros(1, np.int64), np.full(1, classes), 0
    begin, end = begin[end > 1], end[end > 1]
    while len(begin):
        sizes = end - begin
        for part in _split(np.append(0, np.cumsum(_count_rows(rows, leaves, begin, end)))):
            at = concatenate_ranges(begin[part], sizes[part])
            fit = _fit_batch(rows, leaves[at], sizes[part], penalty)
            leaves[at], v[node + part.start : node + part.stop] = fit
        middle = (begin + end + 1) // 2
        lows, highs = np.stack([begin, middle], 1).ravel(), np.stack([middle, end], 1).ravel()
        node += len(sizes)
        begin, end = lows[highs - lows > 1], highs[highs - lows > 1]
    return leaves, v


def concatenate_ranges(begin: Integers, sizes: Integers) -> Integers:
    """The numbers begin[0], begin[0] + 1, ... of sizes[0], then those of sizes[1] ..."""
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(begin - (ends - sizes), sizes)


def _count_rows(rows: Rows, leaves: Integers, begin: Integers, end: Integers) -> Integers:
    """Rows of each node of a level."""
    before = np.append(0, np.cumsum((rows.begin[1:] - rows.begin[:-1])[leaves]))
    return np.asarray(before[end] - before[begin])


def _split(ends: Integers) -> list[slice]:
    """Parts of the nodes of a level that have about BATCH_ROWS rows together, or one node."""
    parts, first = [], 0
    while first < len(ends) - 1:
        last = int(np.searchsorted(ends, ends[first] + BATCH_ROWS, side="right")) - 1
        last = min(max(last, first + 1), first + BATCH_NODES, len(ends) - 1)
        parts.append(slice(first, last))
        first = last
    return parts


class _Blocks:
    """The rows of a batch of nodes, in blocks."""

    def __init__(self, z: Floats, weights: Floats, counts: Integers):
        """counts: rows of each node, whose rows follow one another."""
        p = z.shape[1]
        mean = max(1, len(z) // max(1, len(counts)))
        longest = max(1, min(PRODUCT_ELEMENTS // p**2, BLOCK_ELEMENTS // p))
        length = min(1 << (mean - 1).bit_length(), 1 << longest.bit_length() - 1)
        blocks = np.maximum(1, -(-counts // length))
        first = np.cumsum(blocks) - blocks
        at = concatenate_ranges(first * length, counts)
        total = int(blocks.sum())
        self.z = np.zeros((total * length, p))
        self.z[at] = z
        self.z = self.z.reshape(total, length, p)
        self.weights = np.zeros(total * length)
        self.weights[at] = weights
        self.weights = self.weights.reshape(total, length)
        self.nodes = np.repeat(np.arange(len(counts)), blocks)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the blocks of the other nodes."""
        of_kept = kept[self.nodes]
        self.z, self.weights = self.z[of_kept], self.weights[of_kept]
        self.nodes = (np.cumsum(kept) - 1)[self.nodes[of_kept]]

    def evaluate(self, v: Floats) -> tuple[Floats, Floats, Floats]:
        """Of each node: the sum of weight * softplus(u), its gradient and its Hessian by v."""
        nodes, p = v.shape
        value, gradient, hessian = np.zeros(nodes), np.zeros((nodes, p)), np.zeros((nodes, p, p))
        length = self.z.shape[1]
        step = max(1, min(STACK_BYTES // (8 * p * p), BATCH_ROWS // length))
        for begin in range(0, len(self.z), step):
            z, weights, of_block = (a[begin : begin + step] for a in (self.z, self.weights, self.nodes))
            u = np.matmul(z, v[of_block][:, :, None])[:, :, 0]
            e = np.exp(-np.abs(u))
            share = 1 / (1 + e)
            slope = weights * np.where(u >= 0, share, e * share)
            curvature = (weights * e * share * share)[:, :, None]
            sums = (
                (weights * (np.maximum(u, 0) + np.log1p(e))).sum(axis=1),
                np.matmul(slope[:, None], z)[:, 0],
                np.matmul(z.transpose(0, 2, 1), z * curvature),
            )
            starts = np.flatnonzero(np.append(True, of_block[1:] != of_block[:-1]))
            for total, part in zip((value, gradient, hessian), sums):
                total[of_block[starts]] += part if len(starts) == len(part) else np.add.reduceat(part, starts)
        return value, gradient, hessian


class _Classes:
    """The classes of a batch of nodes, and which of them are on side 1.

    Arrays are (nodes, S): the sizes of nodes of one level differ by 1 at most, and smaller ones begin with a gap.
    """

    def __init__(self, sums: Floats, sizes: Integers):
        """sums: S of the classes of each node, one node after the other."""
        longest = int(sizes.max())
        self.is_there = np.arange(longest) >= (longest - sizes)[:, None]
        self.sums = np.zeros((*self.is_there.shape, sums.shape[1]))
        self.sums[self.is_there] = sums
        self.sizes = sizes
        self.is_one = np.zeros(self.is_there.shape, bool)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the other nodes."""
        self.sums, self.sizes = self.sums[kept], self.sizes[kept]
        self.is_there, self.is_one = self.is_there[kept], self.is_one[kept]

    def assign(self, scores: Floats, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Put the upper halves of chosen nodes on side 1; whether a node's classes have changed.

        Of equal scores, the later class is the larger.
        """
        order = np.argsort(np.where(self.is_there, scores, -np.inf)[chosen], axis=1, kind="stable")
        length = self.is_there.shape[1]
        is_upper = np.arange(length) >= length - (self.sizes[chosen] // 2)[:, None]
        is_one = np.zeros(order.shape, bool)
        np.put_along_axis(is_one, order, is_upper, axis=1)
        changed = np.zeros(len(self.sizes), bool)
        changed[chosen] = (is_one != self.is_one[chosen]).any(axis=1)
        self.is_one[chosen] = is_one
        return changed

    def scores(self, v: Floats) -> Floats:
        """S_c . v of each class."""
        return np.asarray(np.einsum("ncp,np->nc", self.sums, v))

    def sums_of_one(self) -> Floats:
        """The sum of S over side 1 of each node."""
        return np.asarray(np.einsum("nc,ncp->np", self.is_one.astype(np.float64), self.sums))

    def first_direction(self) -> Floats:
        """Scores of the classes along their main direction around the mean of their node, by the power method."""
        total = self.sums.sum(axis=1)
        mean = total[:, :-1] / np.where(total[:, -1:] > 0, total[:, -1:], 1)
        around = self.sums[:, :, :-1] - self.sums[:, :, -1:] * mean[:, None]
        around /= np.abs(around).max() or 1.0  # the squares of sums with very large weights would overflow
        norms = np.einsum("ncp,ncp->nc", around, around)
        direction = around[np.arange(len(norms)), norms.argmax(axis=1)]  # the class that is farthest
        for _ in range(DIRECTIONS):
            length = np.sqrt(np.einsum("np,np->n", direction, direction))
            direction = direction / np.where(length > 0, length, 1)[:, None]
            along = np.einsum("ncp,np->nc", around, direction)
            direction = np.einsum("ncp,nc->np", around, along)
        return np.asarray(np.einsum("ncp,np->nc", around, direction))


def _fit_batch(rows: Rows, classes: Integers, sizes: Integers, penalty: float) -> tuple[Integers, Floats]:
    """The classes of each node with those of side 0 first, and v of each node."""
    starts = np.cumsum(sizes) - sizes
    counts = rows.begin[classes + 1] - rows.begin[classes]
    chosen = rows.order[concatenate_ranges(rows.begin[classes], counts)]
    blocks = _Blocks(rows.z[chosen], rows.weights[chosen], np.add.reduceat(counts, starts))
    parts = _Classes(rows.sums[classes], sizes)
    parts.assign(parts.first_direction(), np.ones(len(sizes), bool))
    is_there = parts.is_there
    v, is_one = _descend(blocks, parts, penalty)
    # by number within a side
    places = np.lexsort((classes, is_one[is_there], np.repeat(np.arange(len(sizes)), sizes)))
    return classes[places], v


def _descend(blocks: _Blocks, parts: _Classes, penalty: float) -> tuple[Floats, NDArray[np.bool_]]:
    """Newton's method at each node, steps halved where the objective rises: v of each node, and its sides.

    Nodes leave the batch when they are done, so that arrays but the first two belong to those that are left.
    """
    nodes, p = len(parts.sizes), parts.sums.shape[2]
    found, sides = np.zeros((nodes, p)), parts.is_one.copy()
    active, best = np.arange(nodes), np.full(nodes, np.inf)
    v, trial, direction = (np.zeros((nodes, p)) for _ in range(3))
    limit = np.zeros(nodes)
    for step in range(MAX_STEPS):
        value, gradient, hessian = blocks.evaluate(trial)
        f = _objective(value, parts.sums_of_one(), trial, penalty)
        fell = f <= best
        if step == 0:
            limit = TOLERANCE * value  # log 2 times the weight
        else:
            fell |= f - best <= ROUNDING * value
        v[fell] = trial[fell]
        changed = np.zeros(len(active), bool)
        if step > 0:  # at v = 0 all scores are equal
            changed = parts.assign(parts.scores(v), fell)
        ones = parts.sums_of_one()[fell]
        best[fell] = _objective(value[fell], ones, v[fell], penalty)
        downhill = gradient[fell] - ones + penalty * v[fell]
        direction[~fell] /= 2
        direction[fell] = _solve(hessian[fell], downhill, penalty)
        trial = v - direction
        is_left = np.ones(len(active), bool)
        is_left[fell] = (np.einsum("np,np->n", downhill, direction[fell]) > limit[fell]) | changed[fell]
        if step == MAX_STEPS - 1:
            is_left[...] = False
        if not is_left.all():
            found[active[~is_left]], sides[active[~is_left]] = v[~is_left], parts.is_one[~is_left]
            blocks.keep(is_left)
            parts.keep(is_left)
            active, best, limit = active[is_left], best[is_left], limit[is_left]
            v, trial, direction = v[is_left], trial[is_left], direction[is_left]
        if not len(active):
            break
    return found, sides


def _objective(value: Floats, ones: Floats, v: Floats, penalty: float) -> Floats:
    return np.asarray(value - np.einsum("np,np->n", ones, v) + penalty / 2 * np.einsum("np,np->n", v, v))


def _solve(hessian: Floats, gradient: Floats, penalty: float) -> Floats:
    """Newton's directions; the diagonal keeps matrices of very large weights regular."""
    floor = np.maximum(penalty, 1e-12 * np.trace(hessian, axis1=1, axis2=2))
    hessian = hessian + floor[:, None, None] * np.eye(hessian.shape[1])
    return np.asarray(np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0])
