"""The output layer that is a tree of decisions."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._ops.topk import TopK
from ..hierarchical.head import HierarchicalSoftmax
from ..hierarchical.loss import (
    compute_log_proba,
    compute_log_proba_of,
    plan_step,
    search,
    take_step,
)
from ..hierarchical.state import check_layer
from ..hierarchical.tree import Tree
from ..store import Arrays, need
from .counts import smooth
from .heads import Step, as_dense
from .inputs import as_features
from .layer_head import LayerHead

if TYPE_CHECKING:
    from .optimizers import Optimizers

DENSE_ROWS = 1024  # of predictions at a time


class HierarchicalHead(LayerHead):
    """A `csoftmax.heads.HierarchicalSoftmax`, the attribute `layer`."""

    def __init__(self, layer: HierarchicalSoftmax) -> None:
        """Take the layer, which training changes in place."""
        self.layer = layer

    @classmethod
    def begin(cls, estimator: Any, features: int, dtype: Any, rows: Any) -> HierarchicalHead:
        """A new head; rows: (X, y, sample_weight) of all data, or of the first minibatch."""
        layer = HierarchicalSoftmax(features, _make_tree(estimator, features, rows), dtype=dtype)
        if estimator.init_bias == "log_prior":
            layer.set_log_prior(estimator.class_count_)
        return cls(layer)

    @classmethod
    def take(cls, layer: HierarchicalSoftmax, estimator: Any) -> HierarchicalHead:
        """The head of a layer of its own, whose parameters training goes on from."""
        return cls(layer)

    @classmethod
    def begin_again(cls, head: Any) -> HierarchicalHead:
        """The head of a training that starts from the parameters of another one."""
        if not isinstance(head, HierarchicalHead):
            raise ValueError('head is "hierarchical", but the model whose training goes on has another head')
        return cls(head.layer)

    @classmethod
    def read(cls, arrays: Arrays, header: dict[str, Any], classes: int) -> HierarchicalHead:
        """The head in a file, after every check."""
        of_tree = {"counts": arrays["tree_counts"]} if "tree_counts" in arrays else {}
        if "children" in arrays:
            of_tree["children"] = arrays["children"]
        tree = Tree._from_contents(of_tree, header)
        theta, bias, _ = check_layer(tree, {name: a for name, a in arrays.items() if name in ("theta", "bias")})
        has_bias = header.get("bias", True)  # that of a layer that was given may be missing
        need((bias is not None) == has_bias, f"bias is {'missing' if has_bias else 'there'}")
        need(tree.n_classes == classes, f"there are {classes} classes, but the tree has {tree.n_classes}")
        return cls(HierarchicalSoftmax._from_arrays(tree, theta, bias))

    def write(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and entries of the header for a file."""
        arrays, header = self.layer.tree._contents()
        if "counts" in arrays:
            arrays["tree_counts"] = arrays.pop("counts")
        if "bias" not in self.parameters:
            header["bias"] = False
        return arrays | self.parameters, header

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Classes whose nodes stay unchanged, where no other class is below them."""
        return self.layer.frozen

    @frozen.setter
    def frozen(self, value: NDArray[np.bool_] | None) -> None:
        self.layer._parts = self.layer._parts.with_frozen(value)

    # Training

    def check(self, estimator: Any) -> None:
        """Refuse parameters of the estimator that do not fit the head: none, as `begin` alone reads the tree."""

    def own(self) -> None:
        """Replace parameters that are read-only, such as memory maps of a file, by copies."""
        self.layer._own()

    def start(self, estimator: Any, rng: np.random.Generator, *, grows: bool) -> None:
        """Nothing is needed of the estimator before the first step."""

    def step(
        self, x: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None, optimizers: Optimizers
    ) -> Step:
        """Train on one minibatch."""
        parts = self.layer._parts
        plan = plan_step(parts, as_dense(x), y, sample_weight, optimizers.num_threads)
        loss, grad_x = take_step(parts, plan, optimizers.weights, optimizers.biases)
        return Step(float(loss), grad_x)

    def decay(self, optimizers: Optimizers) -> None:
        """Apply the weight decay that is due."""
        frozen = self.layer._parts.frozen_nodes
        rows = None if frozen is None else np.flatnonzero(frozen == 0)
        optimizers.weights.apply_decay("theta", self.layer.theta, rows)

    def add_classes(
        self, n: int, places: NDArray[np.intp], added: NDArray[np.float64] | None, counts: NDArray[np.float64] | None
    ) -> None:
        """Make room for n classes in all; places: of the classes so far; counts: of these now, where they are known.

        In a tree with counts, those of now take the place of those that it was made of. A tree without counts does not
        use them.
        """
        layer = copy.copy(self.layer)
        is_new = np.ones(n, bool)
        is_new[places] = False
        tree = layer.tree
        if tree.counts is not None and counts is not None:
            tree = tree._with_counts(counts)
        layer._grow(n - layer.n_classes, None if tree.counts is None else added, tree)
        layer._relabel(np.concatenate([places, np.flatnonzero(is_new)]))
        self.layer = layer

    def for_raw_features(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> HierarchicalHead:
        """The head with the same logits for features x where this one has those for (x - mean) / std."""
        theta = self.layer.theta / std
        bias = self.parameters.get("bias", 0) - theta @ mean  # a layer without a bias gets one for the mean
        dtype, layer = self.dtype, self.layer
        return HierarchicalHead(
            HierarchicalSoftmax._from_arrays(layer.tree, theta.astype(dtype), bias.astype(dtype), layer.frozen)
        )

    # Predictions

    def _each_part(self, x: Any, function: Any) -> None:
        """Call function(features, rows) for some rows at a time, in the dtype of the layer."""
        for begin in range(0, x.shape[0], DENSE_ROWS):
            part = slice(begin, min(begin + DENSE_ROWS, x.shape[0]))
            with np.errstate(over="ignore", under="ignore"):
                features = np.ascontiguousarray(as_dense(x[part]), self.dtype)
            function(features, part)

    def proba(self, x: Any, num_threads: int | None = None) -> NDArray[Any]:
        """Probabilities of all classes, (n, K) in float64."""
        result = self.log_proba(x, None, num_threads)
        return np.exp(result, out=result)

    def log_proba(self, x: Any, y: NDArray[np.intp] | None = None, num_threads: int | None = None) -> NDArray[Any]:
        """Log-probabilities in float64: of all classes, (n, K), or of a given one for each row, (n,)."""
        parts = self.layer._parts
        result = np.empty((x.shape[0], parts.n_classes) if y is None else x.shape[0])

        def compute(features: Any, rows: slice) -> None:
            if y is None:
                result[rows] = compute_log_proba(parts, features, num_threads)
            else:
                result[rows] = compute_log_proba_of(parts, features, y[rows].astype(np.int64), num_threads)

        self._each_part(x, compute)
        return result

    def predict(self, x: Any) -> NDArray[np.intp]:
        """Indices of the most probable classes; of equal ones the first."""
        return self.topk(x, 1).indices[:, 0].astype(np.intp, copy=False)  # type: ignore[no-any-return]

    def topk(self, x: Any, k: int, num_threads: int | None = None) -> TopK:
        """The k largest log-probabilities, in float64, and the indices of their classes."""
        parts = self.layer._parts
        values, indices = np.empty((x.shape[0], k)), np.empty((x.shape[0], k), np.int64)

        def compute(features: Any, rows: slice) -> None:
            values[rows], indices[rows], _ = search(parts, features, k, num_threads)

        self._each_part(x, compute)
        return TopK(values, indices)


def _make_tree(estimator: Any, features: int, rows: Any) -> Tree:
    """The tree that the parameter `tree` names or is."""
    given, k = estimator.tree, len(estimator.classes_)
    if isinstance(given, Tree):
        if given.n_classes != k:
            raise ValueError(f"tree has {given.n_classes} classes, but the model has {k}")
        return given
    if given == "balanced":
        return Tree.balanced(k)
    counts = estimator.class_count_
    if given == "huffman":
        return Tree.huffman(counts)
    X, y, sample_weight = rows
    sums = np.zeros((k, features))
    embedding = getattr(estimator, "embedding_", None)
    for begin in range(0, len(y), DENSE_ROWS):
        part = slice(begin, begin + DENSE_ROWS)
        x = as_dense(as_features(X[part], embedding)).astype(np.float64)
        np.add.at(sums, y[part], x if sample_weight is None else x * sample_weight[part, None])
    means = sums / np.where(counts > 0, counts, 1)[:, None]
    return Tree.two_means(means, counts + smooth(counts), rng=0)
