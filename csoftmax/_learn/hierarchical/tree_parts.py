"""How trees are made: halves, two means, parents, paths. Nodes are numbered from the root, parents first.

Children are an array of (K - 1, 2): the number of a node, or ~class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._arguments.places import as_array
from ..._cpu import binding

ROUNDS = 6  # of two means
LARGE_EXPONENT = 900  # 2**31 counts below 2**900, times their depths, have a finite sum
MAX_EXPONENT = 40  # of vectors: float32 holds the products of two, summed over the classes
Integers = NDArray[np.int64]


def check_counts(name: str, given: Any) -> NDArray[np.float64]:
    """Counts of classes: a copy in float64."""
    counts = as_array(name, given)
    if counts.ndim != 1 or (counts.size and counts.dtype.kind not in "iuf"):
        raise TypeError(f"{name} must be real numbers with one axis, got dtype {counts.dtype} and shape {counts.shape}")
    if not counts.size:
        raise ValueError(f"{name} is empty; a tree has at least one class")
    counts = np.array(counts, np.float64)
    bad = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
    if len(bad):
        raise ValueError(f"{name} must be at least 0 and finite, got {counts[bad[0]]} for class {bad[0]}")
    return counts


def shrink_counts(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts whose sum is finite: those that are very large, all divided by the same power of two."""
    exponent = int(np.frexp(counts.max(initial=0))[1])
    if exponent <= LARGE_EXPONENT:
        return counts
    with np.errstate(under="ignore"):
        shrunk: NDArray[np.float64] = np.ldexp(counts, LARGE_EXPONENT - exponent)
    return shrunk


def check_integers(name: str, given: Any) -> Integers:
    """Integers with one axis: a copy in int64."""
    values = as_array(name, given)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise TypeError(f"{name} must be integers with one axis, got dtype {values.dtype} and shape {values.shape}")
    if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name}[{values.argmax()}] is {values.max()}, which is too large")
    return np.array(values, np.int64)


def split_halves(leaves: Integers) -> NDArray[np.int32]:
    """Children of the tree that halves sequences of leaves, level by level; the first half is the larger one."""
    n = len(leaves)
    children = np.empty((n - 1, 2), np.int32)
    begin, end = np.zeros(1, np.int64), np.full(1, n)
    node = 0
    while len(begin) and n > 1:
        middle = (begin + end + 1) // 2
        begin, end = _put_level(children, node, leaves, begin, middle, end)
        node += len(middle)
    return children


def _put_level(
    children: NDArray[np.int32], node: int, leaves: Integers, begin: Integers, middle: Integers, end: Integers
) -> tuple[Integers, Integers]:
    """Write the nodes from `node` on, whose leaves are split at the middle; the parts that are split next."""
    at = slice(node, node + len(begin))
    lows = np.stack([begin, middle], axis=1).ravel()
    highs = np.stack([middle, end], axis=1).ravel()
    is_node = highs - lows > 1
    below = np.empty(len(lows), np.int64)
    below[is_node] = node + len(begin) + np.arange(is_node.sum())
    below[~is_node] = ~leaves[lows[~is_node]]
    children[at] = below.reshape(-1, 2)
    return lows[is_node], highs[is_node]


def split_two_means(
    points: NDArray[Any], counts: NDArray[np.float64] | None, rng: np.random.Generator
) -> NDArray[np.int32]:
    """Children of the tree that splits sets at half their weight along the direction of two means."""
    n = len(points)
    children = np.empty((n - 1, 2), np.int32)
    leaves = np.arange(n)
    weights = np.ones(n) if counts is None else counts / (counts.max() or 1.0)
    exponent = int(np.frexp(np.abs(points).max(initial=0))[1])
    if abs(exponent) > MAX_EXPONENT:  # only the order of projections matters, which a power of two does not change
        with np.errstate(under="ignore"):
            points = np.ldexp(points, -exponent)
    begin, end, node = np.zeros(1, np.int64), np.full(1, n), 0
    while len(begin) and n > 1:
        sizes = end - begin
        at = np.arange(sizes.sum()) + np.repeat(begin - np.cumsum(sizes) + sizes, sizes)  # places of all sets' leaves
        chosen, middle = _split_sets(points, weights, leaves[at], sizes, rng)
        leaves[at] = chosen
        begin, end = _put_level(children, node, leaves, begin, begin + middle, end)
        node += len(middle)
    return children


def _split_sets(
    points: NDArray[Any], weights: NDArray[np.float64], leaves: Integers, sizes: Integers, rng: np.random.Generator
) -> tuple[Integers, Integers]:
    """Sort the leaves of each set, one after the other, along the direction of its means; the size of the first part.

    The sets are those of one level.
    """
    starts, sets = np.cumsum(sizes) - sizes, np.repeat(np.arange(len(sizes)), sizes)
    direction = rng.standard_normal((len(sizes), points.shape[1])).astype(points.dtype)
    middle = np.zeros(len(sizes), np.int64)
    for _ in range(ROUNDS):
        projections = np.einsum("nd,nd->n", points[leaves], direction[sets])
        leaves = leaves[np.lexsort((leaves, projections, sets))]
        middle = _find_halves(weights[leaves], sizes, starts)
        parts = np.stack([starts, starts + middle], axis=1).ravel()
        mass = weights[leaves] + np.finfo(np.float64).tiny  # sets without weight have means, too
        totals = np.add.reduceat(mass, parts)
        means = np.add.reduceat(points[leaves] * mass[:, None], parts, axis=0) / totals[:, None]
        new = (means[1::2] - means[::2]).astype(points.dtype)
        same = ~(new != 0).any(axis=1)  # equal points: the order of the classes stays
        direction = np.where(same[:, None], direction, new)
    return leaves, middle


def _find_halves(weights: NDArray[np.float64], sizes: Integers, starts: Integers) -> Integers:
    """The size of the first part of each set, at least 1, whose weight is nearest to half of the set's."""
    totals = np.add.reduceat(weights, starts)
    is_even = totals == 0
    weights = weights + np.repeat(is_even, sizes)
    totals = np.where(is_even, sizes, totals)
    sums = np.cumsum(weights / np.repeat(totals, sizes))  # each set adds 1
    before = np.arange(len(sizes))
    upper = np.searchsorted(sums, before + 0.5) - starts  # leaves before the one that reaches the half
    upper = np.clip(upper, 0, sizes - 1)
    below, above = np.where(upper > 0, sums[starts + upper - 1] - before, 0), sums[starts + upper] - before
    middle = np.where(above - 0.5 < 0.5 - below, upper + 1, upper)
    return np.clip(middle, 1, sizes - 1)


def expand_parents(parent: Integers) -> tuple[NDArray[np.int32], int]:
    """Children of the binary tree of a tree that is given by parents, and the number of its leaves."""
    m = len(parent)
    if not m:
        raise ValueError("parent is empty; a tree has at least one node")
    bad = np.flatnonzero((parent < -1) | (parent >= m))
    if len(bad):
        raise ValueError(f"parent[{bad[0]}] is {parent[bad[0]]}; nodes are 0 to {m - 1}, and the root has -1")
    roots = np.flatnonzero(parent == -1)
    if len(roots) != 1:
        which = f": {roots[0]}, {roots[1]}" if len(roots) else ""
        raise ValueError(f"parent has {len(roots)} roots (elements of -1){which}; exactly one is allowed")
    root = int(roots[0])
    arity = np.bincount(parent[parent >= 0], minlength=m)
    leaves = np.flatnonzero(arity == 0)
    n = len(leaves)
    wrong = np.flatnonzero(leaves != np.arange(n))
    if len(wrong):
        raise ValueError(f"node {leaves[wrong[0]]} is a leaf, node {wrong[0]} is not: leaves must be the first nodes")
    order, below = _peel(parent, arity, n)
    if len(order) < m:
        raise ValueError(
            f"{m - len(order)} of {m} nodes cannot be reached from the root, node {root}: they form a circle"
        )
    # children of each node, ascending
    by_parent = np.argsort(parent, kind="stable")[1:].tolist()
    starts = np.append(0, np.cumsum(arity)).tolist()
    arities, weights, tops = arity.tolist(), below.tolist(), [0] * m
    children = np.empty((n - 1, 2), np.int32)
    made = n - 1  # nodes are numbered from the end, because subtrees come first here
    for node in order:
        if node < n:
            tops[node] = ~node
            continue
        given = by_parent[starts[node] : starts[node] + arities[node]]
        places = [tops[child] for child in given]
        if len(places) > 1:
            shape = _merge([weights[child] for child in given])
            made -= len(shape)
            children[made : made + len(shape)] = [
                [made + side if side >= 0 else places[~side] for side in sides] for sides in shape
            ]
            tops[node] = made
        else:
            tops[node] = places[0]
    return children, n


def _peel(parent: Integers, arity: Integers, leaves: int) -> tuple[list[int], NDArray[np.float64]]:
    """Nodes, children first, and the leaves below each; nodes of circles are missing."""
    above, left, below = parent.tolist(), arity.tolist(), [1.0] * leaves + [0.0] * (len(parent) - leaves)
    order = list(range(leaves))
    for node in order:  # which grows
        up = above[node]
        if up < 0:
            continue
        below[up] += below[node]
        left[up] -= 1
        if left[up] == 0:
            order.append(up)
    return order, np.array(below)


def _merge(weights: list[float]) -> list[list[int]]:
    """Huffman's tree of a few weights: children of its nodes, ~position for a weight."""
    if len(weights) == 2:
        return [[~0, ~1] if weights[0] <= weights[1] else [~1, ~0]]
    numbers = np.array(weights)
    order = np.argsort(numbers, kind="stable")
    shape: list[list[int]] = binding.huffman(numbers[order], order).tolist()
    return shape


def join_paths(nodes: Integers, codes: Integers, offsets: Integers) -> tuple[Integers, int]:
    """Children and root of the tree that has these paths; what is missing in it is refused later."""
    n = len(offsets) - 1
    if n < 1:
        raise ValueError(f"offsets has {len(offsets)} elements; one more than the classes is needed, at least 2")
    if offsets[0] != 0 or offsets[-1] != len(nodes) or len(codes) != len(nodes):
        raise ValueError(
            f"offsets begin at {offsets[0]} and end at {offsets[-1]}; they must begin at 0 and end at the number of "
            f"elements, {len(nodes)} of nodes and {len(codes)} of codes, which must be the same"
        )
    lengths = np.diff(offsets)
    bad = np.flatnonzero(lengths < (n > 1))
    if len(bad):
        what = "descend" if lengths[bad[0]] < 0 else "leave the path empty"
        raise ValueError(f"offsets {what} at class {bad[0]}: {offsets[bad[0]]} and {offsets[bad[0] + 1]}")
    for name, values, limit in (("nodes", nodes, n - 1), ("codes", codes, 2)):
        bad = np.flatnonzero((values < 0) | (values >= limit))
        if len(bad):
            allowed = "0 and 1" if limit == 2 else f"0 to {limit - 1}" if limit else "none"
            raise ValueError(f"{name}[{bad[0]}] is {values[bad[0]]}; allowed are {allowed} for {n} classes")
    if n == 1:
        return np.empty((0, 2), np.int64), -1
    first, last = offsets[:-1], offsets[1:] - 1
    root = int(nodes[0])
    bad = np.flatnonzero(nodes[first] != root)
    if len(bad):
        raise ValueError(f"the path of class {bad[0]} begins at node {nodes[first[bad[0]]]}, that of class 0 at {root}")
    below = np.empty(len(nodes), np.int64)
    below[:-1] = nodes[1:]
    below[last] = ~np.arange(n)
    children = np.full(2 * (n - 1), n)  # where it stays, it is refused as out of range
    children[2 * nodes + codes] = below  # of several entries the last one stays
    bad = np.flatnonzero(children[2 * nodes + codes] != below)
    if len(bad):
        at = bad[0]
        owner = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(
            f"the paths differ in what side {codes[at]} of node {nodes[at]} is; one is that of class {owner}"
        )
    return children.reshape(-1, 2), root
