"""The output layer with clusters of rare classes, around `csoftmax.heads.AdaptiveSoftmax`."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._ops.topk import TopK
from ..adaptive import files
from ..adaptive.head import AdaptiveSoftmax
from ..messages import show
from ..store import Arrays, need
from .counts import smooth
from .heads import Step, as_dense
from .layer_head import LayerHead
from .parameters import make_generator

if TYPE_CHECKING:
    from .optimizers import Optimizers

PROJECTED_ROWS = 1024  # of sparse features that are made dense at a time in predictions


class AdaptiveHead(LayerHead):
    """A layer, and the scale of the features that it was trained on, where that is not 1."""

    def __init__(self, layer: AdaptiveSoftmax) -> None:
        """Take the layer, which training changes in place."""
        self.layer = layer
        self.mean: NDArray[np.float64] | None = None
        self.std: NDArray[np.float64] | None = None

    @classmethod
    def begin(cls, estimator: Any, features: int, dtype: Any, rows: Any) -> AdaptiveHead:
        """A new head for the counts of the classes, whose logarithms may be the bias of the head."""
        counts: NDArray[np.float64] = estimator.class_count_ + smooth(estimator.class_count_)
        k, cutoffs = len(counts), estimator.cutoffs
        if not isinstance(cutoffs, str) and len(cutoffs) and max(cutoffs) >= k:
            raise ValueError(f"cutoffs must be less than {k}, the number of classes, got {show(list(cutoffs))}")
        # seeded by the training's own numbers, which embeddings and minibatches take their numbers from
        rng = np.random.default_rng(make_generator(estimator).integers(0, 2**32, 4, np.uint64))
        layer = AdaptiveSoftmax(features, k, counts=counts, cutoffs=cutoffs, dtype=dtype, init="zero", rng=rng)
        if estimator.init_bias == "log_prior":
            shares = counts[layer.classes.order] / counts.sum()
            of_clusters = [shares[ranks].sum() for ranks in layer.classes.clusters]
            layer.parameters["head_bias"][:] = np.log([*shares[: layer.classes.shortlist], *of_clusters])
        return cls(layer)

    @classmethod
    def take(cls, layer: AdaptiveSoftmax, estimator: Any) -> AdaptiveHead:
        """The head of a layer of its own, whose parameters training goes on from."""
        return cls(layer)

    @classmethod
    def begin_again(cls, head: Any) -> AdaptiveHead:
        """The head of a training that starts from the parameters of another one."""
        if not isinstance(head, AdaptiveHead):
            raise ValueError('head is "adaptive", but the model whose training goes on has another head')
        return head

    @classmethod
    def read(cls, arrays: Arrays, header: dict[str, Any], classes: int) -> AdaptiveHead:
        """The head in a file, after every check."""
        own = {name.removeprefix("head."): a for name, a in arrays.items() if name.startswith("head.")}
        mean, std = own.pop("mean", None), own.pop("std", None)
        entries: Any = header.get("head")
        need(isinstance(entries, dict), "the entries of the head are missing")
        head = cls(files.restore(AdaptiveSoftmax, own, entries))
        need((mean is None) == (std is None), "mean or std is missing")
        if mean is not None and std is not None:
            for a in (mean, std):
                need(a.shape == (head.n_features,) and a.dtype == np.float64, f"mean or std has shape {a.shape}")
            head.mean, head.std = mean, std
        need(head.n_classes == classes, f"there are {classes} classes, but the head has {head.n_classes}")
        return head

    def write(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and entries of the header for a file."""
        arrays, entries = files.describe(self.layer)
        if self.mean is not None and self.std is not None:
            arrays |= {"mean": self.mean, "std": self.std}
        return {f"head.{name}": a for name, a in arrays.items()}, {"head": entries}

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Which classes are frozen, or None."""
        return self.layer.frozen

    @frozen.setter
    def frozen(self, value: NDArray[np.bool_] | None) -> None:
        self.layer._frozen = value

    # Training

    def check(self, estimator: Any) -> None:
        """Refuse parameters of the estimator that do not fit the head: none."""

    def own(self) -> None:
        """Replace parameters that are read-only, such as memory maps of a file, by copies."""
        self.layer._own()

    def start(self, estimator: Any, rng: np.random.Generator, *, grows: bool) -> None:
        """Read what steps need of the estimator before the first one."""
        self.layer.num_threads = None

    def step(
        self, x: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None, optimizers: Optimizers
    ) -> Step:
        """Train on one minibatch."""
        layer = self.layer
        result = layer._compute_step(self._scale(as_dense(x)), y, sample_weight, optimizers.num_threads)
        layer._update(result.gradients, optimizers.weights, optimizers.biases)
        grad_x = result.grad_x if self.std is None else result.grad_x / self.std.astype(result.grad_x.dtype)
        return Step(float(result.loss), grad_x)

    def decay(self, optimizers: Optimizers) -> None:
        """Apply the weight decay that is due."""
        self.layer._decay(optimizers.weights)

    def add_classes(
        self, n: int, places: NDArray[np.intp], added: NDArray[np.float64] | None, counts: NDArray[np.float64] | None
    ) -> None:
        """Make room for n classes in all; places: of the classes so far; counts: of these now, where they are known.

        They take the place of those at the start.
        """
        layer = copy.copy(self.layer)
        if counts is not None:
            layer._counts = counts.copy()
        layer._insert(n, places, added)
        self.layer = layer

    def for_raw_features(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> AdaptiveHead:
        """The head with the same logits for features x where this one has those for (x - mean) / std.

        The projections of the clusters have no bias that could take the mean in.
        """
        head = copy.copy(self)
        head.mean, head.std = mean, std
        return head

    def _scale(self, x: Any) -> Any:
        if self.mean is None or self.std is None:
            return x
        return ((x - self.mean) / self.std).astype(x.dtype, copy=False)

    # Predictions

    def _dense_blocks(self, x: Any) -> Any:
        for begin in range(0, x.shape[0], PROJECTED_ROWS):
            rows = slice(begin, min(begin + PROJECTED_ROWS, x.shape[0]))
            yield rows, self._scale(as_dense(x[rows]))

    def proba(self, x: Any, num_threads: int | None = None) -> NDArray[Any]:
        """Probabilities of all classes, (n, K) in float64."""
        result = self.log_proba(x, None, num_threads)
        return np.exp(result, out=result)

    def log_proba(self, x: Any, y: NDArray[np.intp] | None = None, num_threads: int | None = None) -> NDArray[Any]:
        """Log-probabilities in float64: of all classes, (n, K), or of a given one for each row, (n,)."""
        result = np.empty((x.shape[0], self.n_classes) if y is None else x.shape[0])
        for rows, features in self._dense_blocks(x):
            labels = None if y is None else y[rows]
            result[rows] = self.layer.log_proba(features, labels, num_threads=num_threads)
        return result

    def predict(self, x: Any) -> NDArray[np.intp]:
        """Indices of the most probable classes; of equal ones the first."""
        result = np.empty(x.shape[0], np.intp)
        for rows, features in self._dense_blocks(x):
            result[rows] = self.layer.predict(features)
        return result

    def topk(self, x: Any, k: int, num_threads: int | None = None) -> TopK:
        """The k largest log-probabilities, in float64, and the indices of their classes."""
        values, indices = np.empty((x.shape[0], k)), np.empty((x.shape[0], k), np.int64)
        for rows, features in self._dense_blocks(x):
            values[rows], indices[rows] = self.layer.topk(features, k, num_threads=num_threads)
        return TopK(values, indices)
