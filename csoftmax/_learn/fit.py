"""The fits of `csoftmax.linear_model.SoftmaxRegression`: L-BFGS, AdamW on all of the data, AdamW on one minibatch.

Each function gets the estimator with checked parameters and data, trains, and leaves the result in its attributes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from .._arguments.numbers import check_num_threads
from .._arguments.places import Place
from . import adamw, lbfgs
from .monitor import Monitor, keep_parameters
from .objective import Objective, Options, choose_block_rows, to_host
from .parameters import Rows, check_data, check_known_labels, check_sample_weight, choose_loss_options, choose_place
from .penalty import Problem, settle, settle_decay

TOLERANCE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 1e-5}  # largest element of the gradient
ROUNDING = 100  # times tol: a gradient that rounding keeps from tol by less than this deserves no warning
RECORDED = ("loss", "accuracy", "gradient_norm")  # figures of each iteration of L-BFGS
SMALL_ELEMENTS = 2**22  # X of at most this size is computed in float64 whatever its dtype, if there are few parameters


def forget(estimator: Any) -> None:
    """Remove the state of earlier training."""
    for name in ("coef_", "intercept_", "classes_", "penalty_l2_", "frozen_", "_trainer"):
        estimator.__dict__.pop(name, None)
    estimator.history_, estimator.n_iter_ = {}, 0


def choose_start(estimator: Any, features: int, dtype: Any, *, zeros: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Initial coefficients and intercept: those of earlier training, or new ones (zeros: 0 whatever `init` says)."""
    k = len(estimator.classes_)
    if hasattr(estimator, "coef_"):
        return estimator.coef_.astype(dtype), estimator.intercept_.astype(dtype) if estimator.fit_intercept else None
    if zeros or estimator.init == "zeros":
        coef = np.zeros((k, features), dtype)
    else:
        coef = adamw.draw_xavier(k, features, dtype, check_random_state(estimator.random_state))
    return coef, np.zeros(k, dtype) if estimator.fit_intercept else None


def _start_monitor(estimator: Any, options: Options, validation: Rows | None, place: Place) -> Monitor:
    """The monitor of a fit; the loss of the held-out rows has no label smoothing."""
    held_out = None
    if validation is not None:
        options = options._replace(label_smoothing=0.0)
        held_out = Objective(*validation, len(estimator.classes_), options, estimator.num_threads, place)
    return Monitor(estimator, estimator.max_epochs, held_out)


# L-BFGS


def fit_lbfgs(
    estimator: Any,
    X: Any,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64] | None,
    options: Options,
    validation: Rows | None,
) -> None:
    """Train on all of the data with L-BFGS."""
    dtype, k = X.dtype, len(estimator.classes_)
    small = X.size <= SMALL_ELEMENTS and k * (X.shape[1] + 1) <= lbfgs.MAX_HESSIAN_PARAMETERS
    if small and (estimator.tol is None or estimator.tol < lbfgs.COARSE_TOL):
        X = X.astype(np.float64, copy=False)
        options = options._replace(weight=None if options.weight is None else options.weight.astype(np.float64))
    tol = estimator.tol or TOLERANCE[X.dtype]
    place = choose_place(estimator, X)
    objective = Objective(X, y, sample_weight, k, options, check_num_threads(estimator.num_threads), place)
    monitor = _start_monitor(estimator, options, validation, place)

    def record(step: lbfgs.Step) -> dict[str, float]:
        return {**{name: getattr(step, name) for name in RECORDED}, "learning_rate": math.nan}

    def after_iteration(step: lbfgs.Step) -> bool:
        monitor.take_parameters(step.coef, step.intercept, dtype)
        return monitor.epoch_ends(record(step))

    start, frozen = choose_start(estimator, X.shape[1], np.float64, zeros=True), getattr(estimator, "frozen_", None)
    problem = Problem(k, options, start, frozen, objective.num_threads, place, objective.map_parts)
    with objective.use_threads():
        choice = settle(estimator.penalty_l2, X, y, sample_weight, problem, objective.divisor)
    estimator.penalty_l2_ = choice.penalty
    with monitor, objective.use_threads():
        end = lbfgs.minimize(
            objective,
            *(choice.start if validation is None else start),  # early stopping needs the way from the start
            penalty=choice.penalty,
            tol=tol,
            max_iterations=estimator.max_epochs,
            frozen=frozen,
            after_iteration=after_iteration,
        )
    step = end.step
    coef, intercept = monitor.best or (step.coef, step.intercept)
    keep_parameters(estimator, coef, intercept, dtype)
    estimator.n_iter_ = end.iterations
    if end.iterations == 0:  # the start is the minimum
        estimator.history_ = {name: [value] for name, value in record(step).items()}
    if not end.converged and not monitor.stopped:
        _warn_of_gradient(estimator, end, tol)


def _warn_of_gradient(estimator: Any, end: lbfgs.End, tol: float) -> None:
    """Warn that the fit ended away from the minimum, with the remedy for the reason."""
    state = f"largest element of the gradient {end.step.scaled_max:.3g} for features of unit variance, tol {tol:.3g}"
    count = end.iterations
    if count >= estimator.max_epochs:
        text = (
            f"lbfgs has not converged in {count} iterations, max_epochs={estimator.max_epochs} ({state}); raise "
            "max_epochs or penalty_l2, or scale the data"
        )
    elif end.step.scaled_max > ROUNDING * tol:
        text = (
            f"lbfgs stopped after {count} iterations, because rounding prevents further progress ({state}); scale "
            "the data or raise penalty_l2"
        )
    else:
        return
    warnings.warn(text, ConvergenceWarning, stacklevel=5)


# AdamW


def fit_adamw(
    estimator: Any,
    X: Any,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64] | None,
    options: Options,
    validation: Rows | None,
) -> None:
    """Train on all of the data with AdamW, in shuffled minibatches."""
    dtype, place = X.dtype, choose_place(estimator, X)
    block_rows = choose_block_rows(X.shape[1], len(estimator.classes_), dtype.itemsize)
    trainer = _new_trainer(estimator, X, options, place, block_rows)
    monitor = _start_monitor(estimator, options, validation, place)
    rng = check_random_state(estimator.random_state)
    if estimator.init == "xavier":  # this seed has drawn the initial coefficients, so shuffle with another one
        rng = check_random_state(rng.randint(2**31 - 1))
    count = 0

    def fold() -> tuple[NDArray[Any], NDArray[Any] | None]:
        if not estimator.batch_norm:
            return trainer.fold()
        return trainer.fold(adamw.compute_statistics(to_host(trainer.parameters["coef"]), _blocks(X, block_rows)))

    with monitor:
        for _ in range(estimator.max_epochs):
            order = rng.permutation(X.shape[0])
            sums = adamw.Sums()
            for part in adamw.split_batches(X.shape[0], estimator.batch_size):
                rows = np.sort(order[part])  # a memory map is read forwards
                sums.add(trainer.step(X[rows], y[rows], None if sample_weight is None else sample_weight[rows]))
            count += 1
            coef, intercept = fold()
            monitor.take_parameters(coef, intercept, dtype)
            if monitor.epoch_ends(record_of_epoch(estimator, sums)):
                break
        coef, intercept = monitor.best or fold()
        keep_parameters(estimator, coef, intercept, dtype)
    estimator.n_iter_ = count


def step_minibatch(estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> adamw.Progress:
    """Take one step of the trainer, which stays in the estimator from call to call."""
    first = not hasattr(estimator, "_trainer")
    X, y = check_data(estimator, X, y, reset=first and not hasattr(estimator, "coef_"))
    weights = check_sample_weight(sample_weight, X)
    indices = check_known_labels(y, estimator.classes_)
    if first:
        if isinstance(estimator.class_weight, str):
            raise ValueError(
                f"class_weight={estimator.class_weight!r} needs all labels at once; pass a dict or an array"
            )
        options = choose_loss_options(estimator, X.dtype, np.arange(len(estimator.classes_)), None)
        place = choose_place(estimator, X)
        estimator._trainer = _new_trainer(estimator, X, options, place, max(1, X.shape[0]))
    trainer = estimator._trainer
    trainer.hyper = _hyperparameters(estimator)
    return trainer.step(X.astype(trainer.parameters["coef"].dtype, copy=False), indices, weights)


def keep_folded(estimator: Any, blocks: Iterable[Any] | None = None) -> None:
    """Set coef_ and intercept_ from the trainer in the estimator; blocks: X, for the statistics of batch norm."""
    trainer = estimator._trainer
    statistics = None
    if blocks is not None:
        statistics = adamw.compute_statistics(to_host(trainer.parameters["coef"]), blocks)
    coef, intercept = trainer.fold(statistics)
    keep_parameters(estimator, np.array(coef), None if intercept is None else np.array(intercept), trainer.dtype)


def record_of_epoch(estimator: Any, sums: adamw.Sums) -> dict[str, float]:
    """Entries of `history_` for one epoch."""
    return {**sums.means(), "learning_rate": float(estimator.learning_rate)}


def _hyperparameters(estimator: Any) -> adamw.Hyper:
    estimator.penalty_l2_ = settle_decay(estimator.penalty_l2)
    return adamw.Hyper(
        float(estimator.learning_rate),
        float(estimator.output_learning_rate or estimator.learning_rate),
        estimator.penalty_l2_,
        estimator.clip_norm,
        estimator.clip_value,
    )


def _blocks(X: Any, rows: int) -> Iterable[Any]:
    return (X[begin : begin + rows] for begin in range(0, X.shape[0], rows))


def _new_trainer(estimator: Any, X: Any, options: Options, place: Place, block_rows: int) -> adamw.Trainer:
    """A trainer that starts where earlier training ended, or anew; block_rows: rows of X at a time."""
    known = hasattr(estimator, "coef_")
    frozen = getattr(estimator, "frozen_", None)
    coef, intercept = choose_start(estimator, X.shape[1], X.dtype, zeros=False)
    batch_norm = None
    if estimator.batch_norm:
        if frozen is not None and frozen.any():
            raise ValueError("batch_norm changes all classes: it cannot be used with frozen ones")
        batch_norm = np.zeros(len(coef)), np.ones(len(coef))
        if known:  # statistics with which the normalised logits are those of the model so far
            batch_norm = adamw.compute_statistics(coef, _blocks(X, block_rows))
    return adamw.Trainer(
        coef,
        intercept,
        options,
        _hyperparameters(estimator),
        place,
        batch_norm=batch_norm,
        frozen=frozen,
        num_threads=estimator.num_threads,
    )
