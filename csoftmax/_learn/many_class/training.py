"""Training of `csoftmax.linear_model.ManyClassRegression`: on all data, on minibatches that arrive, on one minibatch.

The three return their warnings, which the public methods issue.  Parameters are changed in place, so that training
needs memory for them, the state of the optimiser and a minibatch; copies exist only for early stopping.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning

from ..adamw import split_batches
from ..fit import check_batch, encode_labels, refuse_empty_epoch
from ..messages import show
from ..monitor import Monitor
from ..parameters import Notes, Rows, check_known_labels, check_sample_weight, hold_out
from .choice import HEADS, take_layer
from .counts import count_classes, counting_classes
from .inputs import (
    as_features,
    blocks_of_features,
    check_ids,
    check_rows,
    check_same_embedding,
    make_embedding,
    spread_gradient,
)
from .optimizers import Optimizers
from .parameters import check_parameters, keeps_counts, make_generator, name_head

VALIDATED_ROWS = 1024  # at a time
OF_SAMPLES = ("sampler", "n_sampled", "power", "correction")  # parameters that steps follow


class Sums:
    """Sums over the minibatches of an epoch."""

    def __init__(self) -> None:
        """Start at zero."""
        self.batches, self.loss, self.weight = 0, 0.0, 0.0

    def mean(self) -> float:
        """The mean loss of the rows."""
        return self.loss / (self.weight or 1.0)


class Trainer:
    """A head and its embeddings in training; the state that stays between calls of `partial_fit`."""

    def __init__(self, estimator: Any, rng: np.random.Generator, *, grows: bool) -> None:
        """Start with the head and the embeddings of the estimator; grows: whether more rows will be counted."""
        self.head: Any = estimator.head_
        self.head.own()
        embedding: NDArray[Any] | None = getattr(estimator, "embedding_", None)
        if embedding is not None and not embedding.flags.writeable:
            estimator.embedding_ = embedding = embedding.copy()
        self.embedding = embedding
        self.rng, self.grows = rng, grows
        self._start_head(estimator)
        self.steps = 0  # that have ended
        self.head.frozen = getattr(estimator, "frozen_", None)
        self.optimizers = Optimizers(estimator)

    def _start_head(self, estimator: Any) -> None:
        self.head.start(estimator, self.rng, grows=self.grows)
        self.of_samples: list[Any] | None = [getattr(estimator, name) for name in OF_SAMPLES]

    @contextlib.contextmanager
    def following(self, estimator: Any) -> Iterator[None]:
        """Let the step of the block sample as the parameters now say, if these have been set since."""
        seen = self.of_samples
        if seen is not None and all(_is_same(getattr(estimator, n), v) for n, v in zip(OF_SAMPLES, seen, strict=True)):
            yield
            return
        check_parameters(estimator)
        self.head.check(estimator)
        self.of_samples = None  # if the step fails, the head has counts of its rows, which are taken back
        self._start_head(estimator)
        seen, self.of_samples = self.of_samples, None
        yield
        self.of_samples = seen

    def step(self, rows: Rows, sums: Sums) -> None:
        """Train on one minibatch."""
        X, y, sample_weight = rows
        sums.batches += 1
        weight = float(len(y)) if sample_weight is None else float(sample_weight.sum())
        if weight == 0:
            return
        features = as_features(X, self.embedding)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is reported
            step = self.head.step(features, y, sample_weight, self.optimizers)
            if self.embedding is not None:
                self.optimizers.weights.update("embedding", self.embedding, spread_gradient(X, step.grad_x))
        sums.loss += step.loss * weight
        sums.weight += weight
        self.steps += 1

    def decay(self) -> None:
        """Apply the weight decay that is due, so that the parameters are those of the last step."""
        self.head.decay(self.optimizers)
        if self.embedding is not None:
            self.optimizers.weights.apply_decay("embedding", self.embedding)

    def parameters(self) -> list[NDArray[Any]]:
        """All arrays that training changes."""
        embedding = [] if self.embedding is None else [self.embedding]
        return [*self.head.parameters.values(), *embedding]


def _is_same(a: Any, b: Any) -> bool:
    """Whether a parameter is as it was: the same object, or an equal string or number."""
    return a is b or (isinstance(a, str | int | float) and isinstance(b, str | int | float) and a == b)


class HeadMonitor(Monitor):
    """The work at the end of an epoch, for parameters that are changed in place."""

    def __init__(self, estimator: Any, epochs: int, trainer: Trainer | None, held_out: Any, data: Any) -> None:
        """Read the callbacks; held_out: the rows for early stopping, or None."""
        super().__init__(estimator, epochs, held_out, data)
        self.trainer = trainer

    def _attributes(self) -> dict[str, Any]:
        names = ("classes_", "n_features_in_", "feature_names_in_", "n_iter_", "class_count_")
        known = {name: getattr(self.estimator, name) for name in names if hasattr(self.estimator, name)}
        learned = {
            n: copy.deepcopy(getattr(self.estimator, n))
            for n in ("head_", "embedding_", "history_")
            if hasattr(self.estimator, n)
        }
        return known | learned

    def _validate(self) -> dict[str, float]:
        """Loss over all classes of the held-out rows; keeps the parameters of the best epoch."""
        assert self.trainer is not None
        X, y, sample_weight = self.held_out  # type: ignore[misc]
        losses = np.empty(len(y))
        for part, features in blocks_of_features(X, self.trainer.embedding, VALIDATED_ROWS):
            losses[part] = -self.trainer.head.log_proba(features, y[part], self.trainer.optimizers.num_threads)
        loss = float(np.average(losses, weights=sample_weight))
        self.epochs_since_best += 1
        if loss < self.best_loss:
            self.best_loss, self.epochs_since_best = loss, 0
            self.best = [a.copy() for a in self.trainer.parameters()]
        return {"val_loss": loss}


# Beginnings


def begin(estimator: Any, features: int, dtype: Any, rows: Any) -> None:
    """Set a new head; rows: all that is known of the data."""
    if isinstance(estimator.head, str):
        estimator.head_ = HEADS[estimator.head].begin(estimator, features, dtype, rows)
    else:
        estimator.head_ = take_layer(estimator, features)


def prepare(
    estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Rows, Rows | None, np.random.Generator]:
    """Check the arguments of `fit`, and make the head; rows for training, rows for early stopping, random numbers."""
    check_parameters(estimator)
    continues = estimator.warm_start and hasattr(estimator, "head_")
    estimator.__dict__.pop("_trainer", None)
    if continues:
        check_same_embedding(estimator)
    X, y = check_rows(estimator, X, y, reset=not continues)
    X, indices, weights = encode_labels(estimator, X, y, sample_weight, continues)
    if continues and hasattr(estimator, "embedding_"):
        check_ids(X, len(estimator.embedding_))
    rng = make_generator(estimator)
    if not continues and estimator.embedding is not None:
        estimator.embedding_ = make_embedding(estimator, X, rng)
        check_ids(X, len(estimator.embedding_))
    validation = None
    if estimator.early_stopping:
        (X, indices, weights), validation = hold_out(estimator, X, indices, weights)
    if keeps_counts(estimator):
        estimator.__dict__.pop("class_count_", None)
        count_classes(estimator, indices, weights)
    if continues:
        estimator.head_ = HEADS[name_head(estimator.head)].begin_again(estimator.head_)
    else:
        begin(estimator, *_shape_of_features(estimator, X), (X, indices, weights))
    estimator.head_.check(estimator)
    return (X, indices, weights), validation, rng


def _shape_of_features(estimator: Any, X: Any) -> tuple[int, Any]:
    embedding = getattr(estimator, "embedding_", None)
    return (X.shape[1], X.dtype) if embedding is None else (embedding.shape[1], embedding.dtype)


def step_on_minibatch(
    estimator: Any, sums: Sums, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None
) -> Trainer:
    """Check one minibatch, and train on it; rows of weight 0 are dropped.

    The head and the trainer are made at the first one. If anything fails, its rows are not counted.
    """
    is_new, trainer = not hasattr(estimator, "head_"), getattr(estimator, "_trainer", None)
    if not is_new:
        check_same_embedding(estimator)
    X, y = check_rows(estimator, X, y, reset=is_new)
    weights = check_sample_weight(sample_weight, X)
    indices = check_known_labels(y, estimator.classes_, is_sorted=True)
    rng = make_generator(estimator) if trainer is None else trainer.rng
    if estimator.embedding is not None:
        embedding = getattr(estimator, "embedding_", None)
        embedding = make_embedding(estimator, None, rng) if embedding is None else embedding
        check_ids(X, len(embedding))
        estimator.embedding_ = embedding
    if weights is not None and not weights.all():
        kept = np.flatnonzero(weights)
        X, indices, weights = X[kept], indices[kept], weights[kept]
    with counting_classes(estimator, indices, weights) if keeps_counts(estimator) else contextlib.nullcontext():
        if is_new:
            begin(estimator, *_shape_of_features(estimator, X), (X, indices, weights))
        if trainer is None:
            estimator.head_.check(estimator)
            trainer = Trainer(estimator, rng, grows=True)
        if estimator.embedding is None:
            X = X.astype(estimator.head_.dtype, copy=False)
        trainer.optimizers.set_learning_rate(float(estimator.learning_rate))
        with trainer.following(estimator):
            trainer.step((X, indices, weights), sums)
    estimator._trainer = trainer
    return trainer


def count_steps(estimator: Any) -> tuple[Trainer, int] | None:
    """The trainer that stays in the estimator, and the number of steps that it has taken; None if there is none."""
    trainer = getattr(estimator, "_trainer", None)
    return None if trainer is None else (trainer, trainer.steps)


# Training


def train_on_rows(estimator: Any, rows: Rows, validation: Rows | None, rng: np.random.Generator) -> Notes:
    """Train on all of the data, in minibatches; shuffled if there is more than one."""
    X, y, sample_weight = rows
    if estimator.embedding is None:
        X = X.astype(estimator.head_.dtype, copy=False)
    trainer = Trainer(estimator, rng, grows=False)
    monitor = HeadMonitor(estimator, estimator.max_epochs, trainer, validation, rows)
    parts = split_batches(len(y), estimator.batch_size)
    order = np.arange(len(y))
    with monitor:
        for _ in range(estimator.max_epochs):
            sums = Sums()
            if len(parts) > 1:
                order = rng.permutation(len(y))
            trainer.optimizers.set_learning_rate(float(estimator.learning_rate))
            for part in parts:
                at = np.sort(order[part])  # a memory map is read forwards
                trainer.step((X[at], y[at], None if sample_weight is None else sample_weight[at]), sums)
            if _epoch_ends(trainer, monitor, sums):
                break
        if monitor.best is not None:
            for parameter, best in zip(trainer.parameters(), monitor.best, strict=True):
                parameter[...] = best
    return _describe(estimator, "epoch")


def train_on_batches(estimator: Any, parts: Callable[[], Iterable[Any]], epochs: int) -> Notes:
    """Train on minibatches that parts() yields once an epoch; the trainer stays in the estimator."""
    estimator.n_iter_ = 0
    monitor = HeadMonitor(estimator, epochs, None, None, (None, None, None))
    with monitor:
        for epoch in range(epochs):
            sums = Sums()
            for batch in parts():
                step_on_minibatch(estimator, sums, *check_batch(batch))
            if sums.batches == 0:
                refuse_empty_epoch(epoch)
            if _epoch_ends(estimator._trainer, monitor, sums):
                break
    return _describe(estimator, "epoch")


def train_on_minibatch(estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Notes:
    """Take the step of `partial_fit`; the trainer stays in the estimator."""
    sums = Sums()
    step_on_minibatch(estimator, sums, X, y, sample_weight).decay()
    estimator.history_.setdefault("loss", []).append(sums.mean())
    estimator.n_iter_ += 1
    return _describe(estimator, "step")


def _epoch_ends(trainer: Trainer, monitor: HeadMonitor, sums: Sums) -> bool:
    """Bring the parameters up to date, record the epoch and call the callbacks; return whether to stop."""
    trainer.decay()
    loss = sums.mean()
    return monitor.epoch_ends({"loss": loss}, is_last=not math.isfinite(loss))


def _describe(estimator: Any, unit: str) -> Notes:
    loss = estimator.history_["loss"][-1]
    if math.isfinite(loss):
        return []
    text = (
        f"training has diverged: the loss is {loss:.4g} in {unit} {estimator.n_iter_}, learning_rate="
        f"{show(estimator.learning_rate)}; lower learning_rate, or scale the data"
    )
    return [(text, ConvergenceWarning)]
