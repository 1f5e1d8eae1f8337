"""Output layers of `csoftmax.linear_model.ManyClassRegression`: parameters, steps of training, predictions.

A head has `parameters` (arrays by name), `n_classes`, `frozen` (None, or a bool for each class), `step`, `decay`,
`log_proba`, `predict`, `topk` and `add_classes`.  Features are an array or a sparse matrix of SciPy, of shape (n, D).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._ops.cross_entropy import cross_entropy
from ..._ops.linear_cross_entropy import linear_cross_entropy_with_grad
from ..._ops.rows import RowGradient
from ..._ops.softmax import log_softmax, softmax
from ..._ops.topk import TopK, topk
from ..objective import compute_logits, is_sparse
from ..store import Arrays, need
from .counts import smooth

if TYPE_CHECKING:
    from typing import Self

    from .optimizers import Optimizers

CHUNK_BYTES = 64 << 20  # of the logits that exist at a time in predictions


class Step(NamedTuple):
    """The result of one step of training."""

    loss: float  # weighted mean over the rows
    grad_x: NDArray[Any]


def as_dense(x: Any) -> NDArray[Any]:
    """A minibatch of features as an array."""
    return x.toarray() if is_sparse(x) else x  # type: ignore[no-any-return]


class LinearHead:
    """A row of weights and a bias for each class: logits x w' + bias."""

    def __init__(self, w: NDArray[Any], bias: NDArray[Any]) -> None:
        """Take the parameters, which training changes in place."""
        self.w, self.bias = w, bias
        self.frozen: NDArray[np.bool_] | None = None

    @property
    def parameters(self) -> dict[str, NDArray[Any]]:
        """The arrays that training changes: "w" of shape (K, D) and "bias" of shape (K,)."""
        return {"w": self.w, "bias": self.bias}

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.w)

    @property
    def n_features(self) -> int:
        """The number of features."""
        return self.w.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the parameters."""
        return self.w.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters."""
        return int(self.w.nbytes + self.bias.nbytes)

    @classmethod
    def begin(cls, estimator: Any, features: int, dtype: Any, rows: Any) -> Self:
        """A new head: weights of 0, and a bias of 0 or of the logarithms of the classes' frequencies."""
        k = len(estimator.classes_)
        bias = np.zeros(k, dtype)
        if estimator.init_bias == "log_prior":
            counts = estimator.class_count_ + smooth(estimator.class_count_)
            bias[...] = np.log(counts / counts.sum())
        return cls(np.zeros((k, features), dtype), bias)

    @classmethod
    def begin_again(cls, head: Any) -> Self:
        """The head of a training that starts from the parameters of another one."""
        if not isinstance(head, LinearHead):
            raise ValueError("the model whose training goes on has a head of another kind, not a linear layer")
        return cls(head.w, head.bias)

    @classmethod
    def read(cls, arrays: Arrays, header: dict[str, Any], classes: int) -> Self:
        """The head in a file, after every check."""
        need("w" in arrays and "bias" in arrays, "w or bias is missing")
        w, bias = arrays["w"], arrays["bias"]
        need(w.ndim == 2 and w.dtype in (np.float32, np.float64), f"w has shape {w.shape}, dtype {w.dtype}")
        need(
            bias.shape == w.shape[:1] and bias.dtype == w.dtype,
            f"bias has shape {bias.shape}, dtype {bias.dtype}; w {w.shape}, {w.dtype}",
        )
        need(len(w) == classes, f"there are {classes} classes, but w has shape {w.shape}")
        return cls(w, bias)

    def write(self) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and entries of the header for a file."""
        return self.parameters, {}

    # Training

    def check(self, estimator: Any) -> None:
        """Refuse parameters of the estimator that do not fit the head."""

    def own(self) -> None:
        """Replace parameters that are read-only, such as memory maps of a file, by copies."""
        self.w, self.bias = (a if a.flags.writeable else a.copy() for a in (self.w, self.bias))

    def start(self, estimator: Any, rng: np.random.Generator, *, grows: bool) -> None:
        """Read what steps need of the estimator before the first one."""

    def step(
        self, x: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None, optimizers: Optimizers
    ) -> Step:
        """Train on one minibatch; the loss and the gradient of the features are those before the step."""
        raise NotImplementedError

    def update(self, optimizers: Optimizers, grad_w: Any, grad_bias: Any) -> None:
        """Let the optimisers move the parameters, except those of frozen classes."""
        if self.frozen is not None:
            grad_w, grad_bias = (_without(self.frozen, g) for g in (grad_w, grad_bias))
        optimizers.weights.update("w", self.w, grad_w)
        optimizers.biases.update("bias", self.bias, grad_bias)

    def decay(self, optimizers: Optimizers) -> None:
        """Apply the weight decay that is due."""
        rows = None if self.frozen is None else np.flatnonzero(~self.frozen)
        optimizers.weights.apply_decay("w", self.w, rows)

    def add_classes(
        self, n: int, places: NDArray[np.intp], added: NDArray[np.float64] | None, counts: NDArray[np.float64] | None
    ) -> None:
        """Make room for n classes in all; places: of the classes so far; counts: of these now, where they are known.

        New ones get weights of 0, and the logarithm of their share of the counts or the smallest bias.
        """
        bias: Any = self.bias.min()
        if added is not None and counts is not None:
            bias = np.log(added / float(counts.sum() + added.sum()))
        w = np.zeros((n, self.w.shape[1]), self.w.dtype)
        w[places] = self.w
        biases = np.empty(n, self.bias.dtype)
        biases[np.delete(np.arange(n), places)] = bias
        biases[places] = self.bias
        if self.frozen is not None:
            frozen = np.zeros(n, bool)
            frozen[places] = self.frozen
            self.frozen = frozen
        self.w, self.bias = w, biases

    def for_raw_features(self, mean: NDArray[np.float64], std: NDArray[np.float64]) -> LinearHead:
        """The head with the same logits for features x where this one has those for (x - mean) / std."""
        w = self.w / std
        head = copy.copy(self)
        head.w = w.astype(self.w.dtype)
        head.bias = (self.bias - w @ mean).astype(self.bias.dtype)
        return head

    # Predictions

    def _logits(self, x: Any) -> Iterator[tuple[slice, Any]]:
        """Logits of some rows at a time, as many as fit `CHUNK_BYTES` in float64."""
        rows = max(1, CHUNK_BYTES // (8 * self.n_classes))
        w, bias = (a.astype(x.dtype, copy=False) for a in (self.w, self.bias))
        for begin in range(0, x.shape[0], rows):
            part = slice(begin, min(begin + rows, x.shape[0]))
            yield part, compute_logits(x[part], w, bias)

    def proba(self, x: Any, num_threads: int | None = None) -> NDArray[Any]:
        """Probabilities of all classes, (n, K) in float64."""
        result = np.empty((x.shape[0], self.n_classes))
        for part, logits in self._logits(x):
            softmax(logits.astype(np.float64, copy=False), out=result[part], num_threads=num_threads)
        return result

    def log_proba(self, x: Any, y: NDArray[np.intp] | None = None, num_threads: int | None = None) -> NDArray[Any]:
        """Log-probabilities in float64: of all classes, (n, K), or of a given one for each row, (n,)."""
        if y is None:
            result = np.empty((x.shape[0], self.n_classes))
            for part, logits in self._logits(x):
                log_softmax(logits.astype(np.float64, copy=False), out=result[part], num_threads=num_threads)
            return result
        result = np.empty(x.shape[0])
        for part, logits in self._logits(x):
            wide = logits.astype(np.float64, copy=False)
            result[part] = -cross_entropy(wide, y[part], reduction="none", num_threads=num_threads)
        return result

    def predict(self, x: Any) -> NDArray[np.intp]:
        """Indices of the most probable classes; of equal ones the first."""
        result = np.empty(x.shape[0], np.intp)
        for part, logits in self._logits(x):
            result[part] = logits.argmax(axis=1)
        return result

    def topk(self, x: Any, k: int, num_threads: int | None = None) -> TopK:
        """The k largest log-probabilities, in float64, and the indices of their classes."""
        values, indices = np.empty((x.shape[0], k)), np.empty((x.shape[0], k), np.int64)
        for part, logits in self._logits(x):
            wide = logits.astype(np.float64, copy=False)
            best = topk(log_softmax(wide, out=wide, num_threads=num_threads), k, num_threads=num_threads)
            values[part], indices[part] = best
        return TopK(values, indices)


def _without(frozen: NDArray[np.bool_], g: Any) -> RowGradient:
    """A gradient without the rows of frozen classes."""
    if isinstance(g, RowGradient):
        kept = ~frozen[g.rows]
        return RowGradient(g.rows[kept], g.values[kept])
    rows = np.flatnonzero(~frozen)
    return RowGradient(rows, g[rows])


class FullHead(LinearHead):
    """Trained by softmax over all classes."""

    def step(
        self, x: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None, optimizers: Optimizers
    ) -> Step:
        """Train on one minibatch, with the cross-entropy over all classes."""
        result = linear_cross_entropy_with_grad(
            as_dense(x),
            self.w,
            y,
            bias=self.bias,
            sample_weight=sample_weight,
            num_threads=optimizers.num_threads,
        )
        self.update(optimizers, result.grad_w, result.grad_bias)
        return Step(float(result.loss), result.grad_x)
