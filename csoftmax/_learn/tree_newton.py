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
            starts = np.flatnonzero(np.append(True, of_block[1:] != of_block[:-1]))
            at = of_block[starts]
            value[at] += np.add.reduceat((weights * (np.maximum(u, 0) + np.log1p(e))).sum(axis=1), starts)
            slope = weights * np.where(u >= 0, share, e * share)
            gradient[at] += np.add.reduceat(np.matmul(slope[:, None], z)[:, 0], starts)
            curvature = (weights * e * share * share)[:, :, None]
            hessian[at] += np.add.reduceat(np.matmul(z.transpose(0, 2, 1), z * curvature), starts)
        return value, gradient, hessian


class _Classes:
    """The classes of a batch of nodes, sorted by node, and which of them are on side 1."""

    def __init__(self, sums: Floats, sizes: Integers):
        self.sums, self.sizes = sums, sizes
        self.starts = np.cumsum(sizes) - sizes
        self.nodes = np.repeat(np.arange(len(sizes)), sizes)
        self.places = np.arange(len(sums)) - self.starts[self.nodes]
        self.is_one = np.zeros(len(sums), bool)

    def order(self, scores: Floats) -> Integers:
        """Classes by node and score; of equal scores, in the order in which they are."""
        return np.lexsort((scores, self.nodes))

    def assign(self, scores: Floats, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Put the upper halves of chosen nodes on side 1; whether a node's classes have changed."""
        is_one = np.empty_like(self.is_one)
        is_one[self.order(scores)] = self.places >= (self.sizes[self.nodes] + 1) // 2
        is_one = np.where(chosen[self.nodes], is_one, self.is_one)
        changed = np.logical_or.reduceat(is_one != self.is_one, self.starts)
        self.is_one = is_one
        return np.asarray(changed)

    def scores(self, v: Floats) -> Floats:
        """S_c . v of each class."""
        return np.asarray(np.einsum("cp,cp->c", self.sums, v[self.nodes]))

    def sums_of_one(self) -> Floats:
        """The sum of S over side 1 of each node."""
        return np.asarray(np.add.reduceat(self.sums * self.is_one[:, None], self.starts))

    def first_direction(self) -> Floats:
        """Scores of the classes along their main direction around the mean of their node, by the power method."""
        total = np.add.reduceat(self.sums, self.starts)
        count = np.where(total[:, -1:] > 0, total[:, -1:], 1)
        around = self.sums[:, :-1] - self.sums[:, -1:] * (total[:, :-1] / count)[self.nodes]
        around /= np.abs(around).max() or 1.0  # the squares of sums with very large weights would overflow
        norms = np.einsum("cp,cp->c", around, around)
        direction = around[self.order(norms)[self.starts + self.sizes - 1]]  # the class that is farthest
        for _ in range(DIRECTIONS):
            length = np.sqrt(np.einsum("np,np->n", direction, direction))
            direction = direction / np.where(length > 0, length, 1)[:, None]
            along = np.einsum("cp,cp->c", around, direction[self.nodes])
            direction = np.add.reduceat(around * along[:, None], self.starts)
        return np.asarray(np.einsum("cp,cp->c", around, direction[self.nodes]))


def _fit_batch(rows: Rows, classes: Integers, sizes: Integers, penalty: float) -> tuple[Integers, Floats]:
    """The classes of each node with those of side 0 first, and v of each node."""
    parts = _Classes(rows.sums[classes], sizes)
    counts = rows.begin[classes + 1] - rows.begin[classes]
    chosen = rows.order[concatenate_ranges(rows.begin[classes], counts)]
    blocks = _Blocks(rows.z[chosen], rows.weights[chosen], np.add.reduceat(counts, parts.starts))
    parts.assign(parts.first_direction(), np.ones(len(sizes), bool))
    v = _descend(blocks, parts, penalty)
    places = np.lexsort((classes, parts.is_one, parts.nodes))  # by number within a side
    return classes[places], v


def _descend(blocks: _Blocks, parts: _Classes, penalty: float) -> Floats:
    """Newton's method at each node, steps halved where the objective rises; sets the sides of the classes."""
    nodes, p = len(parts.sizes), parts.sums.shape[1]
    v, trial = np.zeros((nodes, p)), np.zeros((nodes, p))
    best, direction = np.full(nodes, np.inf), np.zeros((nodes, p))
    limit, active, is_left = np.zeros(nodes), np.arange(nodes), np.ones(nodes, bool)
    for step in range(MAX_STEPS):
        value, gradient, hessian = blocks.evaluate(trial[active])
        f = _objective(value, parts.sums_of_one()[active], trial[active], penalty)
        fell = f <= best[active]
        if step == 0:
            limit = TOLERANCE * value  # log 2 times the weight
        else:
            fell |= f - best[active] <= ROUNDING * value
        good = active[fell]
        v[good] = trial[good]
        changed = np.zeros(nodes, bool)
        if step > 0:  # at v = 0 all scores are equal
            changed = parts.assign(parts.scores(v), np.isin(np.arange(nodes), good))
        ones = parts.sums_of_one()[good]
        best[good] = _objective(value[fell], ones, v[good], penalty)
        downhill = gradient[fell] - ones + penalty * v[good]
        direction[active[~fell]] /= 2
        direction[good] = _solve(hessian[fell], downhill, penalty)
        trial[active] = v[active] - direction[active]
        done = np.einsum("np,np->n", downhill, direction[good]) <= limit[good]
        is_left[good[done & ~changed[good]]] = False
        if not is_left[active].all():
            blocks.keep(is_left[active])
            active = active[is_left[active]]
        if not len(active):
            break
    return v


def _objective(value: Floats, ones: Floats, v: Floats, penalty: float) -> Floats:
    return np.asarray(value - np.einsum("np,np->n", ones, v) + penalty / 2 * np.einsum("np,np->n", v, v))


def _solve(hessian: Floats, gradient: Floats, penalty: float) -> Floats:
    """Newton's directions; the diagonal keeps matrices of very large weights regular."""
    floor = np.maximum(penalty, 1e-12 * np.trace(hessian, axis1=1, axis2=2))
    hessian = hessian + floor[:, None, None] * np.eye(hessian.shape[1])
    return np.asarray(np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0])
