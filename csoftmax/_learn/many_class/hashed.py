"""The output layer over buckets of classes, around `csoftmax.heads.HashedSoftmax`."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._ops.topk import TopK
from ..hashed import files
from ..hashed.decode import normalise, read_query, search
from ..hashed.head import HashedSoftmax
from ..hashed.loss import compute_step
from ..store import Arrays, need
from .counts import smooth
from .heads import Step, as_dense
from .layer_head import LayerHead
from .parameters import make_generator

if TYPE_CHECKING:
    from .optimizers import Optimizers

DENSE_ROWS = 1024  # of sparse features that are made dense at a time in predictions


class HashedHead(LayerHead):
    """A layer, and the numbers that its hashes have for the classes, where these are not their positions.

    Classes that are added take sorted positions, but the others keep the numbers that they were trained with.
    """

    def __init__(self, layer: HashedSoftmax, numbers: NDArray[np.int64] | None = None) -> None:
        """Take the layer, which training changes in place."""
        self.layer, self.numbers = layer, numbers
        self._counts: NDArray[np.float64] | None = None  # of the estimator, which training adds to
        self._is_stale = False  # whether they have changed since the layer has got them

    @classmethod
    def begin(cls, estimator: Any, features: int, dtype: Any, rows: Any) -> HashedHead:
        """A new head; the logarithms of the shares of the buckets may be its bias."""
        counts: NDArray[np.float64] = estimator.class_count_ + smooth(estimator.class_count_)
        buckets, k = estimator.n_buckets, len(counts)
        buckets = max(16, 2 * math.ceil(math.sqrt(k))) if buckets is None else int(buckets)
        # seeded by the training's own numbers, which embeddings and minibatches take their numbers from
        rng = np.random.default_rng(make_generator(estimator).integers(0, 2**32, 4, np.uint64))
        layer = HashedSoftmax(
            features, k, n_buckets=buckets, n_hashes=estimator.n_hashes, counts=counts, aggregate="prior", dtype=dtype,
            rng=rng,
        )  # fmt: skip
        if estimator.init_bias == "log_prior":
            of_buckets = layer._find_prior().of_buckets
            # a bucket without classes gets the least share: no label ever raises it
            least = of_buckets[of_buckets < 0].min(initial=0.0)
            layer.parameters["bias"][:] = np.where(of_buckets < 0, of_buckets, least).reshape(-1)
        return cls(layer)

    @classmethod
    def take(cls, layer: HashedSoftmax, estimator: Any) -> HashedHead:
        """The head of a layer of its own, whose parameters training goes on from, with the counts of the estimator."""
        layer._set_counts(estimator.class_count_ + smooth(estimator.class_count_))
        layer.aggregate = "prior"
        return cls(layer)

    @classmethod
    def begin_again(cls, head: Any) -> HashedHead:
        """The head of a training that starts from the parameters of another one, which keeps its own counts."""
        if not isinstance(head, HashedHead):
            raise ValueError('head is "hashed", but the model whose training goes on has another head')
        return cls(copy.copy(head.layer), head.numbers)

    @classmethod
    def read(cls, arrays: Arrays, header: dict[str, Any], classes: int) -> HashedHead:
        """The head in a file, after every check."""
        own = {name.removeprefix("head."): a for name, a in arrays.items() if name.startswith("head.")}
        numbers, entries = own.pop("numbers", None), header.get("head")
        need(isinstance(entries, dict), "the entries of the head are missing")
        assert isinstance(entries, dict)
        layer = files.restore(HashedSoftmax, own, entries)
        need(layer.n_classes == classes, f"there are {classes} classes, but the head has {layer.n_classes}")
        need(layer.counts is not None and layer.aggregate == "prior", "the head has no counts")
        if numbers is not None:
            need(numbers.shape == (classes,) and numbers.dtype == np.int64, "numbers are not one for each class")
            need((np.sort(numbers) == np.arange(classes)).all(), "numbers are no permutation")
        return cls(layer, numbers)

    def write(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and entries of the header for a file."""
        arrays, entries = files.describe(self._refresh())
        if self.numbers is not None:
            arrays["numbers"] = self.numbers
        return {f"head.{name}": a for name, a in arrays.items()}, {"head": entries}

    @property
    def frozen(self) -> NDArray[np.bool_] | None:
        """Which rows of the layer are frozen, or None; to be set by a bool for each class."""
        return self.layer.frozen

    @frozen.setter
    def frozen(self, value: NDArray[np.bool_] | None) -> None:
        all_of_them = value is not None and bool(value.all())
        chosen = np.zeros(0, np.int64) if value is None else np.flatnonzero(value)
        self.layer.freeze(None if all_of_them else self._number(chosen))

    def _number(self, positions: NDArray[Any]) -> NDArray[np.int64]:
        """The numbers that the hashes have for classes at positions."""
        return positions.astype(np.int64) if self.numbers is None else self.numbers[positions]

    # Training

    def check(self, estimator: Any) -> None:
        """Refuse other buckets and hashes than those that there are: training goes on with these."""
        if not isinstance(estimator.head, str):
            return
        for name, value in (("n_buckets", estimator.n_buckets), ("n_hashes", estimator.n_hashes)):
            there = getattr(self.layer, name)
            if value is not None and value != there:
                raise ValueError(
                    f"{name} is {value}, but the model that training would continue has {there}: set it back, or fit "
                    "anew with warm_start=False"
                )

    def own(self) -> None:
        """Replace parameters that are read-only, such as memory maps of a file, by copies."""
        self.layer._own()

    def start(self, estimator: Any, rng: np.random.Generator, *, grows: bool) -> None:
        """Read what steps need of the estimator before the first one."""
        self.layer.num_threads = None
        self._counts, self._is_stale = getattr(estimator, "class_count_", None), True

    def step(
        self, x: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None, optimizers: Optimizers
    ) -> Step:
        """Train on one minibatch."""
        layer = self.layer
        result = compute_step(layer, as_dense(x), self._number(y), sample_weight, optimizers.num_threads)
        layer._update(result.gradients, optimizers.weights, optimizers.biases)
        self._is_stale = True
        return Step(float(result.loss), result.grad_x)

    def decay(self, optimizers: Optimizers) -> None:
        """Apply the weight decay that is due."""
        self.layer._decay(optimizers.weights)

    def add_classes(
        self, n: int, places: NDArray[np.intp], added: NDArray[np.float64] | None, counts: NDArray[np.float64] | None
    ) -> None:
        """Make room for n classes in all; places: of the classes so far; counts: of these now, where they are known."""
        layer, known = copy.copy(self._refresh()), len(places)
        numbers = np.empty(n, np.int64)
        is_new = np.ones(n, bool)
        is_new[places] = False
        numbers[places] = self._number(np.arange(known))
        numbers[is_new] = np.arange(known, n)
        layer.add_classes(n - known, added)
        self.layer = layer
        self.numbers = None if (numbers == np.arange(n)).all() else numbers
        self._counts, self._is_stale = None, False

    def for_raw_features(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> HashedHead:
        """The head with the same logits for features x where this one has those for (x - mean) / std."""
        head, layer = copy.copy(self), copy.copy(self._refresh())
        w, bias = layer.parameters["w"], layer.parameters.get("bias", 0)  # without a bias it gets one, for the mean
        scaled = w / std
        layer._parameters = {"w": scaled.astype(w.dtype), "bias": (bias - scaled @ mean).astype(w.dtype)}
        head.layer = layer
        return head

    # Predictions

    def _refresh(self) -> HashedSoftmax:
        """The layer with the counts so far: making the shares of all buckets anew at each step would be slow."""
        if self._is_stale:
            counts = self._counts
            if counts is not None and len(counts) == self.n_classes:
                by_number = np.empty(len(counts))
                by_number[self._number(np.arange(len(counts)))] = counts + smooth(counts)
                if not np.array_equal(by_number, self.layer.counts):  # type: ignore[arg-type]
                    self.layer._set_counts(by_number)
            self._is_stale = False
        return self.layer

    def _each_part(self, x: Any) -> Any:
        for begin in range(0, x.shape[0], DENSE_ROWS):
            rows = slice(begin, min(begin + DENSE_ROWS, x.shape[0]))
            yield rows, as_dense(x[rows])

    def proba(self, x: Any, num_threads: int | None = None) -> NDArray[Any]:
        """Probabilities of all classes, (n, K) in float64."""
        result = self.log_proba(x, None, num_threads)
        return np.exp(result, out=result)

    def log_proba(self, x: Any, y: NDArray[np.intp] | None = None, num_threads: int | None = None) -> NDArray[Any]:
        """Log-probabilities in float64: of all classes, (n, K), or of a given one for each row, (n,)."""
        layer = self._refresh()
        result = np.empty((x.shape[0], self.n_classes) if y is None else x.shape[0])
        for rows, features in self._each_part(x):
            if y is None:
                result[rows] = layer.log_proba(features, self.numbers, num_threads=num_threads)
            else:
                labels = self._number(y[rows])[:, None]
                result[rows] = layer.log_proba(features, labels, num_threads=num_threads)[:, 0]
        return result

    def predict(self, x: Any) -> NDArray[np.intp]:
        """Indices of the most probable classes; of equal ones the first."""
        layer = self._refresh()
        result = np.empty(x.shape[0], np.intp)
        for rows, features in self._each_part(x):
            result[rows] = search(layer, read_query(layer, features, self.numbers, None), 1)[1][:, 0]
        return result

    def topk(self, x: Any, k: int, num_threads: int | None = None) -> TopK:
        """The k largest log-probabilities, in float64, and the indices of their classes."""
        layer = self._refresh()
        values, indices = np.empty((x.shape[0], k)), np.empty((x.shape[0], k), np.int64)
        for rows, features in self._each_part(x):
            query = read_query(layer, features, self.numbers, num_threads)
            scores, indices[rows] = search(layer, query, k)
            with np.errstate(invalid="ignore"):
                values[rows] = scores - normalise(layer, query)[:, None]
        return TopK(values, indices)
