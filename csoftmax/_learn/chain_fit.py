"""The fits of `csoftmax.sequence.CRFTagger`: SciPy's L-BFGS-B, OWL-QN with an L1 penalty, AdamW on minibatches.

L-BFGS and OWL-QN work in coordinates w / scale with scale = (curvature + penalty)^(-1/4), from the counts of the
attributes (`ChainObjective.curvature`): rare attributes have a small gradient, and would otherwise take most of the
iterations.  The minimum does not change (docs/decisions/sequence.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning

from . import owlqn
from .chain_adamw import ChainTrainer
from .chain_objective import ChainObjective, Data, Layout, measure
from .chain_pairs import as_csr
from .chain_parameters import Problem
from .messages import show
from .monitor import Monitor
from .objective import limit_blas_to_one_thread
from .parameters import Notes, make_random_state

Vector = NDArray[np.float64]

Ends = Callable[[Vector, float, Vector], bool]
"""Called after an iteration with weights, objective and gradient: whether it is the last one."""

TOLERANCE = 1e-5  # largest element of the gradient
CORRECTIONS = 6  # pairs of vectors that L-BFGS keeps: each costs 0.6 ms an iteration for 172,000 weights
MIN_CURVATURE = 1e-12


def keep_weights(tagger: Any, layout: Layout, w: Vector) -> None:
    """Set the fitted attributes, as copies."""
    chain = layout.chain(w)
    tagger.state_ = as_csr(layout.pairs, layout.split(w)[0].copy())
    tagger.transitions_, tagger.start_, tagger.end_ = chain
    tagger.n_features_in_ = tagger.state_.shape[0]


class ChainMonitor(Monitor):
    """The monitor of a tagger, whose parameters are one vector."""

    def __init__(self, tagger: Any, layout: Layout, validation: Data | None):
        """Begin a training."""
        super().__init__(tagger, tagger.max_epochs)
        self.layout, self.validation = layout, validation

    def is_watched(self) -> bool:
        """Whether something reads the parameters at the end of an epoch."""
        return super().is_watched() or self.validation is not None

    def take_weights(self, w: Vector) -> None:
        """Record the weights at the end of an epoch, and set copies in the estimator if callbacks will read them."""
        self.current = w
        if self.callbacks or self.tasks:
            keep_weights(self.estimator, self.layout, w)

    def epoch_ends(self, record: dict[str, float], *, is_last: bool = False) -> bool:
        """Append the record, with that of the held-out sequences, and call the callbacks; return whether to stop."""
        if self.validation is not None:
            record = {**record, **self._validate()}
            is_last = is_last or self.epochs_since_best >= self.estimator.patience
        return super().epoch_ends(record, is_last=is_last)

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        loss, accuracy = measure(self.validation, self.layout, self.current, self.estimator.num_threads)
        self.epochs_since_best += 1
        if loss < self.best_loss:
            self.best_loss, self.epochs_since_best = loss, 0
            self.best = self.current.copy()
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    def _attributes(self) -> dict[str, Any]:
        tagger = self.estimator
        names = ("classes_", "vocabulary_", "state_", "transitions_", "start_", "end_", "n_features_in_", "n_iter_")
        history = {name: list(values) for name, values in tagger.history_.items()}
        return {name: getattr(tagger, name) for name in names if hasattr(tagger, name)} | {"history_": history}


def fit(tagger: Any, problem: Problem) -> Notes:
    """Train with the solver of the estimator and leave the result in its attributes; return warnings."""
    monitor = ChainMonitor(tagger, problem.layout, problem.validation)
    if tagger.solver == "adamw":
        return _fit_adamw(tagger, problem, monitor)
    return _fit_lbfgs(tagger, problem, monitor)


class _Scaled:
    """The objective with its L2 penalty, in coordinates u = w / scale."""

    def __init__(self, objective: ChainObjective, penalty: float):
        curvature = np.maximum(objective.curvature() + penalty, MIN_CURVATURE)
        self.scale = curvature**-0.25
        self.objective, self.penalty = objective, penalty
        self.w = self.grad = np.zeros(0)  # of the last evaluation
        self.value = math.nan

    def evaluate(self, u: Vector) -> tuple[float, Vector]:
        """Value and gradient at u."""
        self.w = u * self.scale
        loss, self.grad = self.objective.evaluate(self.w)
        if self.penalty:
            loss += self.penalty / 2 * float(self.w @ self.w)
            self.grad += self.penalty * self.w
        self.value = loss
        return loss, self.grad * self.scale

    def pseudo_gradient(self, penalty_l1: float) -> Vector:
        """The gradient of the last evaluation, or the pseudo-gradient with an L1 penalty."""
        return owlqn.pseudo_gradient(self.w, self.grad, np.full(len(self.w), penalty_l1))


def _fit_lbfgs(tagger: Any, problem: Problem, monitor: ChainMonitor) -> Notes:
    tol = TOLERANCE if tagger.tol is None else float(tagger.tol)
    objective = ChainObjective(problem.data, problem.layout, tagger.num_threads)
    scaled = _Scaled(objective, float(tagger.penalty_l2))
    largest = math.inf

    def ends(w: Vector, loss: float, gradient: Vector) -> bool:
        """Whether the iteration that has led to w is the last one."""
        nonlocal largest
        largest = float(np.abs(gradient).max(initial=0))
        monitor.take_weights(w)
        record = {"loss": loss, "gradient_norm": float(np.linalg.norm(gradient)), "learning_rate": math.nan}
        return monitor.epoch_ends(record) or largest <= tol

    u = problem.start / scaled.scale
    with monitor, limit_blas_to_one_thread():
        run = _run_owlqn if tagger.penalty_l1 > 0 else _run_scipy
        w = run(tagger, scaled, u, ends)
        keep_weights(tagger, problem.layout, w if monitor.best is None else monitor.best)
        if not tagger.history_:  # the start is the minimum
            gradient = scaled.pseudo_gradient(float(tagger.penalty_l1))
            largest, norm = float(np.abs(gradient).max(initial=0)), float(np.linalg.norm(gradient))
            value = scaled.value + float(tagger.penalty_l1) * float(np.abs(scaled.w).sum())
            tagger.history_ = {"loss": [value], "gradient_norm": [norm], "learning_rate": [math.nan]}
            tagger.n_iter_ = 0
    if largest <= tol or (monitor.stopped and tagger.n_iter_ < tagger.max_epochs) or monitor.best is not None:
        return []
    count = tagger.n_iter_
    state = f"largest element of the gradient {largest:.3g}, tol {tol:.3g}"
    if count >= tagger.max_epochs:
        text = f"lbfgs has not converged in {count} iterations, max_epochs={tagger.max_epochs} ({state}); raise "
        return [(text + "max_epochs, tol or penalty_l2", ConvergenceWarning)]
    text = f"lbfgs stopped after {count} iterations, because rounding prevents further progress ({state}); raise tol"
    return [(text, ConvergenceWarning)]


def _run_scipy(tagger: Any, scaled: _Scaled, u: Vector, ends: Ends) -> Vector:
    """Minimise with SciPy's L-BFGS-B; return the weights."""
    best = u * scaled.scale

    def after_iteration(intermediate_result: Any) -> None:  # SciPy requires this name of the argument
        nonlocal best
        if scaled.value != intermediate_result.fun:  # the line search has returned to an earlier trial
            scaled.evaluate(intermediate_result.x)
        best = scaled.w
        if ends(best, scaled.value, scaled.grad):
            raise StopIteration

    options = {"maxiter": tagger.max_epochs, "maxfun": 100 * tagger.max_epochs, "maxls": 50, "maxcor": CORRECTIONS}
    optimize.minimize(
        scaled.evaluate,
        u,
        jac=True,
        method="L-BFGS-B",
        callback=after_iteration,
        options={**options, "gtol": 0, "ftol": 0},
    )
    return best


def _run_owlqn(tagger: Any, scaled: _Scaled, u: Vector, ends: Ends) -> Vector:
    """Minimise with OWL-QN; return the weights."""

    def after_iteration(step: owlqn.Step) -> bool:
        return ends(step.w * scaled.scale, step.value, step.pseudo / scaled.scale)

    end = owlqn.minimize(
        scaled.evaluate,
        u,
        penalty=float(tagger.penalty_l1) * scaled.scale,
        max_iterations=tagger.max_epochs,
        after_iteration=after_iteration,
    )
    return end.w * scaled.scale


def _fit_adamw(tagger: Any, problem: Problem, monitor: ChainMonitor) -> Notes:
    """Train on shuffled minibatches of sequences."""
    trainer = ChainTrainer(problem.layout, problem.start)
    rng = make_random_state(tagger)
    data = problem.data
    lengths = np.diff(data.tokens.starts)
    takes_part = lengths > 0 if data.sample_weight is None else (lengths > 0) & (data.sample_weight > 0)
    sequences = np.flatnonzero(takes_part)
    kept = problem.start
    with monitor:
        for _ in range(tagger.max_epochs):
            order = rng.permutation(sequences)
            sums = np.zeros(3)  # loss, weight, norm
            for begin in range(0, len(order), tagger.batch_size):
                batch = data.take(np.sort(order[begin : begin + tagger.batch_size]))
                loss, norm = trainer.step(batch, tagger)
                sums += (loss * batch.total(), batch.total(), norm)
            w = trainer.settle(tagger)
            steps = -(-len(order) // tagger.batch_size)
            record = {
                "loss": float(sums[0] / sums[1]),
                "gradient_norm": float(sums[2] / steps),
                "learning_rate": float(tagger.learning_rate),
            }
            is_finite = math.isfinite(record["loss"]) and bool(np.isfinite(w).all())
            kept = w.copy() if is_finite else kept
            monitor.take_weights(kept)
            if monitor.epoch_ends(record, is_last=not is_finite):
                break
        keep_weights(tagger, problem.layout, kept if monitor.best is None else monitor.best)
    return [] if is_finite else _describe_divergence(tagger, record["loss"])


def _describe_divergence(tagger: Any, loss: float) -> Notes:
    text = (
        f"adamw has diverged: the loss is {loss:.4g} after {tagger.n_iter_} epochs or steps, "
        f"learning_rate={show(tagger.learning_rate)}; the last finite weights are kept; lower learning_rate"
    )
    return [(text, ConvergenceWarning)]


def fit_minibatch(tagger: Any, problem: Problem) -> Notes:
    """Take the step of `partial_fit`; the moments of AdamW stay in the estimator."""
    trainer = getattr(tagger, "_trainer", None)
    if trainer is None or not trainer.is_part_of(problem.layout):  # parameters have changed what has weights
        trainer = ChainTrainer(problem.layout, problem.start)
    else:
        trainer.grow(problem.layout)
    loss, norm = trainer.step(problem.data, tagger)
    w = trainer.settle(tagger)
    is_finite = math.isfinite(loss) and bool(np.isfinite(w).all())
    record = {"loss": loss, "gradient_norm": norm, "learning_rate": float(tagger.learning_rate)}
    for key, value in record.items():
        tagger.history_.setdefault(key, []).append(value)
    tagger.n_iter_ += 1
    tagger._trainer = trainer if is_finite else None
    keep_weights(tagger, problem.layout, w if is_finite else problem.start)
    return [] if is_finite else _describe_divergence(tagger, loss)
