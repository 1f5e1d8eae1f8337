"""Binary trees over classes, which `csoftmax.heads` exports as Tree."""

from __future__ import annotations

import heapq
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._arguments.generators import as_generator
from ..._arguments.numbers import check_count
from ..._arguments.places import as_array
from ..._cpu import binding
from .. import store
from .tree_parts import (
    check_counts,
    check_integers,
    expand_parents,
    join_paths,
    shrink_counts,
    split_halves,
    split_two_means,
)

if TYPE_CHECKING:
    from typing import Self

MAX_CLASSES = 2**31 - 1


class Tree:
    """A binary tree whose leaves are classes; `csoftmax.heads.HierarchicalSoftmax` learns a decision at each node.

    A tree of K classes has K - 1 inner nodes, each with a side 0 and a side 1. It is made by one of the class methods
    and does not change afterwards. All of them, and all that is done with trees, run in loops over arrays: a chain of a
    million nodes is a tree, too.

    Attributes
    ----------
    n_classes : int
        K, the number of leaves.
    depth : int
        The largest number of nodes above a leaf.
    root : int
        Number of the root; 0 but for trees of `from_paths`, and -1 where there is one class.
    children : ndarray of int32, shape (K - 1, 2), read-only
        Both sides of each node: the number of a node, or ``~class``, which is negative.
    counts : ndarray of float64, shape (K,), or None
        What `huffman` and `two_means` were given.

    Examples
    --------
    >>> from csoftmax.heads import Tree
    >>> tree = Tree.huffman([5, 1, 1, 2])
    >>> tree.depths()
    array([1, 3, 3, 2])
    >>> tree.mean_depth([5, 1, 1, 2]).__round__(3)
    1.667
    """

    def __init__(self) -> None:
        raise TypeError(
            "trees are made by Tree.huffman, balanced, two_means, from_parents, from_paths and load, not by Tree()"
        )

    @classmethod
    def _make(cls, children: Any, root: int, counts: Any = None, *, n_classes: int) -> Self:
        """A tree of children whose elements are in range and distinct, after a look for circles."""
        tree = cls.__new__(cls)
        owner = np.array(children, np.int32, order="C")
        owner.flags.writeable = False
        children = owner.reshape(-1, 2)  # a view, of which nobody can set the flag back
        tree._shape = binding.TreeShape(n_classes, root, children)
        reached = tree._shape.trace()
        if reached < n_classes - 1:
            raise ValueError(
                f"{n_classes - 1 - reached} of {n_classes - 1} nodes cannot be reached from the root, node {root}: "
                "they form a circle"
            )
        tree._children, tree._root, tree._n_classes = children, root, n_classes
        tree._depth = int(tree._shape.depth.max())
        if counts is not None:
            counts.flags.writeable = False
            counts = counts.view()
        tree._counts = counts
        return tree

    _shape: Any
    _children: NDArray[np.int32]
    _root: int
    _n_classes: int
    _depth: int
    _counts: NDArray[np.float64] | None

    @property
    def n_classes(self) -> int:
        """K, the number of leaves."""
        return self._n_classes

    @property
    def depth(self) -> int:
        """The largest number of nodes above a leaf."""
        return self._depth

    @property
    def root(self) -> int:
        """Number of the root, -1 where there is one class."""
        return self._root

    @property
    def children(self) -> NDArray[np.int32]:
        """Both sides of each node, (K - 1, 2): the number of a node, or ``~class``; read-only."""
        return self._children

    @property
    def counts(self) -> NDArray[np.float64] | None:
        """What `huffman` and `two_means` were given, (K,), or None; read-only."""
        return self._counts

    @classmethod
    def _from_children(cls, children: Any, root: int, counts: Any = None) -> Self:
        """A tree from the contents of a file, or from paths: every fault is refused with its place."""
        n = len(children) + 1
        if n == 1:
            return cls._make(np.empty((0, 2)), -1, counts, n_classes=1)
        if not 0 <= root < n - 1:
            raise ValueError(f"the root is node {root}; the nodes are 0 to {n - 2}")
        flat = np.asarray(children, np.int64).ravel()
        bad = np.flatnonzero((flat >= n - 1) | (flat < -n))
        if len(bad):
            what = f"node {flat[bad[0]]}" if flat[bad[0]] >= 0 else f"class {~flat[bad[0]]}"
            raise ValueError(
                f"side {bad[0] % 2} of node {bad[0] // 2} is {what}; nodes are 0 to {n - 2}, classes 0 to {n - 1}"
            )
        times = np.bincount(np.where(flat >= 0, flat, n - 1 + ~flat), minlength=2 * n - 1)
        expected = np.ones(2 * n - 1, np.intp)
        expected[root] = 0
        bad = np.flatnonzero(times != expected)
        if len(bad):
            at = int(bad[0])
            what = f"node {at}" if at < n - 1 else f"class {at - (n - 1)}"
            allowed = "the root, which is a side of no node" if at == root else "allowed is exactly one"
            raise ValueError(f"{what} is a side of {times[at]} nodes; {allowed}")
        return cls._make(children, root, counts, n_classes=n)

    # Constructors

    @classmethod
    def huffman(cls, counts: ArrayLike) -> Self:
        """Huffman's tree (Huffman 1952), whose mean depth, weighted by the counts, is the least of all trees.

        Parameters
        ----------
        counts : array_like of shape (K,)
            How frequent each class is: at least 0 and finite. All may be 0.

        Returns
        -------
        Tree
            Frequent classes are near the root. Equal weights are merged leaves first, the lowest class first. Nodes are
            numbered by falling weight, from the root, 0.

        Raises
        ------
        TypeError, ValueError
            If counts are not one real number for each class.

        Examples
        --------
        >>> from csoftmax.heads import Tree
        >>> Tree.huffman([8, 4, 2, 1]).depths()
        array([1, 2, 3, 3])
        """
        weights = check_counts("counts", counts)
        check_classes(len(weights))
        order = np.argsort(weights, kind="stable")
        children = binding.huffman(shrink_counts(weights[order]), order) if len(weights) > 1 else np.empty((0, 2))
        return cls._make(children, 0 if len(weights) > 1 else -1, weights, n_classes=len(weights))

    @classmethod
    def balanced(cls, n_classes: int, order: ArrayLike | None = None) -> Self:
        """A tree whose leaves all have depth floor(log2 K) or ceil(log2 K).

        Parameters
        ----------
        n_classes : int
            K, at least 1.
        order : array_like of int of shape (K,), optional
            All classes in the order of the leaves: neighbours share most of their paths. Default: 0 to K - 1.

        Returns
        -------
        Tree

        Raises
        ------
        TypeError, ValueError
            If the order does not have each class once.

        Examples
        --------
        >>> from csoftmax.heads import Tree
        >>> Tree.balanced(5).depths()
        array([3, 3, 2, 2, 2])
        """
        n = check_classes(check_count("n_classes", n_classes, 1))
        leaves = np.arange(n) if order is None else check_integers("order", order)
        if order is not None:
            if leaves.shape != (n,):
                raise ValueError(f"order has shape {leaves.shape}; one element for each of the {n} classes is needed")
            bad = np.flatnonzero((leaves < 0) | (leaves >= n))
            if len(bad):
                raise ValueError(f"order[{bad[0]}] is {leaves[bad[0]]}; the classes are 0 to {n - 1}")
            if (times := np.bincount(leaves, minlength=n)).max() > 1:
                raise ValueError(f"order has the class {times.argmax()} {times.max()} times; once is allowed")
        return cls._make(split_halves(leaves), 0 if n > 1 else -1, n_classes=n)

    @classmethod
    def two_means(cls, vectors: ArrayLike, counts: ArrayLike | None = None, rng: Any = None) -> Self:
        """A tree of neighbours: each set of classes is split at half its weight along the direction of two means.

        Parameters
        ----------
        vectors : array_like of shape (K, D)
            A vector for each class, such as the weights of a linear layer; similar ones share most of their path (Mnih
            & Hinton 2009).
        counts : array_like of shape (K,), optional
            Weights, as in `huffman`: frequent classes get short paths. Default: all are equal.
        rng : None, int, SeedSequence or numpy.random.Generator, optional
            Source of the first two means of each set, which are the classes on both sides of a random hyperplane.

        Returns
        -------
        Tree

        Raises
        ------
        TypeError, ValueError
            If vectors are not finite, or counts do not fit them.

        Notes
        -----
        Six times, a set is sorted by its projections on the difference of its two means and split where half of its
        weight is reached; the means of the parts are the next ones. All sets of a level are split at once, in
        O(K (D + log K)) each time.

        Examples
        --------
        >>> from csoftmax.heads import Tree
        >>> tree = Tree.two_means([[0.0], [9.0], [0.1], [9.1]], rng=0)
        >>> sorted(sorted(pair) for pair in tree.children[1:].tolist())  # ~2 and ~0 are together
        [[-4, -2], [-3, -1]]
        """
        given = as_array("vectors", vectors)
        if given.dtype.kind not in "iuf" or given.ndim != 2:
            raise TypeError(
                f"vectors must be real numbers of shape (K, D), got dtype {given.dtype} and shape {given.shape}"
            )
        check_classes(len(given))
        points = given.astype(np.float64 if given.dtype.kind in "iu" or given.dtype == np.float64 else np.float32)
        if not np.isfinite(points).all():
            raise ValueError(f"vectors[{np.argwhere(~np.isfinite(points))[0][0]}] is not finite")
        weights = None if counts is None else check_counts("counts", counts)
        if weights is not None and len(weights) != len(points):
            raise ValueError(f"counts has {len(weights)} elements, vectors has {len(points)} rows")
        children = split_two_means(points, weights, as_generator(rng))
        return cls._make(children, 0 if len(points) > 1 else -1, weights, n_classes=len(points))

    @classmethod
    def from_parents(cls, parent: ArrayLike) -> Self:
        """The binary tree of a tree of any arity, such as a taxonomy.

        Parameters
        ----------
        parent : array_like of int of shape (M,)
            The parent of each node, -1 for the root. The K leaves, which no node has as its parent, are the nodes 0 to
            K - 1, the classes.

        Returns
        -------
        Tree
            A node of several children becomes Huffman's tree of them, weighted by the leaves below each; a node of one
            child vanishes.

        Raises
        ------
        TypeError, ValueError
            If there is not exactly one root, a parent is out of range, nodes form a circle, or the leaves are not the
            first nodes.

        Examples
        --------
        >>> from csoftmax.heads import Tree
        >>> Tree.from_parents([3, 3, 4, 4, -1]).children  # 0 and 1 below 3; 3 and 2 below 4
        array([[-3,  1],
               [-1, -2]], dtype=int32)
        """
        children, n_classes = expand_parents(check_integers("parent", parent))
        check_classes(n_classes)
        return cls._make(children, 0 if n_classes > 1 else -1, n_classes=n_classes)

    @classmethod
    def from_paths(cls, nodes: ArrayLike, codes: ArrayLike, offsets: ArrayLike) -> Self:
        """A tree from the paths to its leaves, such as that of a model of fastText, word2vec or Paddle.

        Parameters
        ----------
        nodes : array_like of int of shape (E,)
            Numbers of the nodes on the path to each class, from the root down, one class after the other. They are 0 to
            K - 2, and stay the numbers of the rows of theta.
        codes : array_like of 0 and 1 of shape (E,)
            The side that the path goes to from each node; 1 is that of probability sigma(u).
        offsets : array_like of int of shape (K + 1,)
            The path to class k has the elements offsets[k] to offsets[k + 1] - 1.

        Returns
        -------
        Tree

        Raises
        ------
        TypeError, ValueError
            If the paths are not those of one tree: offsets that do not ascend, numbers out of range, two classes in one
            place, sides without a class, circles.

        Examples
        --------
        >>> from csoftmax.heads import Tree
        >>> tree = Tree.from_paths([1, 1, 0, 1, 0], [0, 1, 0, 1, 1], [0, 1, 3, 5])
        >>> tree.root, tree.depths()
        (1, array([1, 2, 2]))
        """
        parts = (check_integers(name, a) for name, a in (("nodes", nodes), ("codes", codes), ("offsets", offsets)))
        children, root = join_paths(*parts)
        return cls._from_children(children, root)

    # Properties

    def depths(self) -> NDArray[np.int64]:
        """The number of nodes above each leaf.

        Returns
        -------
        ndarray of int64, shape (K,)
        """
        depths: NDArray[np.int64] = self._shape.depth.astype(np.int64)
        return depths

    def mean_depth(self, counts: ArrayLike | None = None) -> float:
        """The mean number of nodes on a path: the cost of a training example.

        Parameters
        ----------
        counts : array_like of shape (K,), optional
            Weights of the classes; default: those of the tree, or equal ones.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If counts do not fit the tree, or are all 0.

        Examples
        --------
        >>> from csoftmax.heads import Tree
        >>> Tree.balanced(4).mean_depth()
        2.0
        """
        weights = self.counts if counts is None else check_counts("counts", counts)
        if weights is None:
            return float(self._shape.depth.mean())
        if len(weights) != self.n_classes:
            raise ValueError(f"counts has {len(weights)} elements; the tree has {self.n_classes} classes")
        if not weights.any():
            raise ValueError("counts are all 0, so that there is no mean")
        return float(np.average(self._shape.depth, weights=shrink_counts(weights)))

    def _side_sums(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of weights of the classes on both sides of each node, (K - 1, 2)."""
        sums: NDArray[np.float64] = self._shape.sums(np.ascontiguousarray(weights, np.float64))
        return sums

    def _grown(self, n: int, counts: NDArray[np.float64] | None) -> tuple[Self, NDArray[np.int64]]:
        """The tree with n more classes, and the class that each of them has split off from.

        The leaf with the lowest count, or without counts the shallowest one, becomes a node of itself, side 0, and the
        new class, side 1. Of equal ones the shallowest is taken, then the lowest class.
        """
        known, k = self.counts, self.n_classes
        check_classes(k + n)  # before anything of that size is made
        if known is not None:
            added = np.zeros(n) if counts is None else counts
            known = np.concatenate([known, added])
        depths = self.depths().tolist() + [0] * n
        keys = [0.0] * (k + n) if known is None else known.tolist()
        waiting = [(keys[leaf], depths[leaf], leaf) for leaf in range(k)]
        heapq.heapify(waiting)
        parents, children = self._shape.leaf_parent.tolist() + [0] * n, np.empty((k + n - 1, 2), np.int32)
        children[: k - 1] = self.children
        split = np.empty(n, np.int64)
        for new in range(k, k + n):
            _, depth, old = heapq.heappop(waiting)
            node = new - 1
            if node:
                children[parents[old] & (MAX_CLASSES), parents[old] >> 31] = node
            children[node] = ~old, ~new
            parents[old], parents[new] = node, node | 1 << 31
            split[new - k] = old
            for leaf in (old, new):
                heapq.heappush(waiting, (keys[leaf], depth + 1, leaf))
        return self._make(children, self.root if k > 1 else 0, known, n_classes=k + n), split

    def _with_counts(self, counts: NDArray[np.float64]) -> Self:
        """The same tree with other counts, which are copied."""
        return self._make(self.children, self.root, counts.astype(np.float64), n_classes=self.n_classes)

    def _relabelled(self, places: NDArray[Any]) -> Self:
        """The tree whose leaf `places[k]` is this one's leaf k."""
        children = self.children.copy()
        is_leaf = children < 0
        children[is_leaf] = ~places[~children[is_leaf]].astype(np.int32)
        counts = None
        if self.counts is not None:
            counts = np.empty(self.n_classes)
            counts[places] = self.counts
        return self._make(children, self.root, counts, n_classes=self.n_classes)

    # Files

    def save(self, path: str | PathLike[str]) -> None:
        """Write the tree, and its counts, to a safetensors file, which is replaced as a whole or not at all.

        Parameters
        ----------
        path : str or path-like
            File name.

        Raises
        ------
        ValueError
            If the name ends in .npz.
        ImportError
            If safetensors is missing.
        """
        arrays, header = self._contents()
        store.write(path, "Tree", arrays, header)

    def _contents(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and header for a file."""
        arrays: dict[str, NDArray[Any]] = {"children": self.children}
        if self.counts is not None:
            arrays["counts"] = self.counts
        return arrays, {"root": self.root}

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a tree from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.

        Returns
        -------
        Tree

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, or what it holds is no tree.
        """
        arrays, header = store.read(path, "Tree")
        with store.reading(path):
            return cls._from_contents(arrays, header)

    @classmethod
    def _from_contents(cls, arrays: dict[str, NDArray[Any]], header: dict[str, Any]) -> Self:
        """The tree in a file, after every check."""
        children, root, counts = arrays.get("children"), header.get("root"), arrays.get("counts")
        store.need(children is not None, "the array children is missing")
        assert children is not None
        store.need(
            children.ndim == 2 and children.shape[1] == 2 and children.dtype == np.int32,
            f"children has shape {children.shape}, dtype {children.dtype}; (K - 1, 2) and int32 are needed",
        )
        store.need(type(root) is int, "the root is not an integer")
        if counts is not None:
            store.need(
                counts.shape == (len(children) + 1,) and counts.dtype == np.float64,
                f"counts has shape {counts.shape}, dtype {counts.dtype}; the tree has {len(children) + 1} classes",
            )
            counts = check_counts("counts", counts)
        return cls._from_children(children, root, counts)  # type: ignore[arg-type]

    def __eq__(self, other: object) -> bool:
        """Whether two trees have the same children, root and counts."""
        if not isinstance(other, Tree):
            return NotImplemented
        same_counts = (
            self.counts is None
            if other.counts is None
            else self.counts is not None and np.array_equal(self.counts, other.counts)
        )
        return self.root == other.root and np.array_equal(self.children, other.children) and same_counts

    def __hash__(self) -> int:
        return hash((self.root, self.children.tobytes()))

    def __repr__(self) -> str:
        return f"<Tree: {self.n_classes} classes, depth {self.depth}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self  # it does not change

    def __reduce__(self) -> Any:
        return _restore, (type(self), np.array(self.children), self.root, self.counts)


def shape_of(tree: Tree) -> Any:
    """The tree as kernels take it, a binding.TreeShape."""
    return tree._shape


def _restore(cls: type[Tree], children: Any, root: int, counts: Any) -> Tree:
    """A tree that pickle has read."""
    return cls._from_children(children, root, counts)


def check_classes(n: int) -> int:
    """Refuse a number of classes that no tree can have."""
    if not 1 <= n <= MAX_CLASSES:
        raise ValueError(f"a tree has 1 to {MAX_CLASSES} classes, got {n}")
    return n
