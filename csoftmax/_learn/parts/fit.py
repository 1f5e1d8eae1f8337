"""The fit of `csoftmax.linear_model.SoftmaxRegression` over the parts of an engine, with L-BFGS."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..fit import (
    SMALL_ELEMENTS,
    TOLERANCE,
    choose_start,
    fit_adamw,
    fit_lbfgs,
    forget,
    minimize_objective,
    prepare,
    restore_on_error,
)
from ..lbfgs import COARSE_TOL, MAX_HESSIAN_PARAMETERS
from ..messages import show
from ..monitor import Monitor
from ..objective import Options
from ..parameters import Notes, check_parameters, choose_loss_options, make_random_state
from ..penalty import Choice, check_decay, compute_default_penalty
from . import rows
from .engine import Engine, total
from .lazy import check_table, is_lazy, open_parts
from .objective import Layout, PartsObjective


def check_fits_parts(estimator: Any, method: str) -> None:
    """Refuse other models, and parameters that need all of the data in one place."""
    if not hasattr(estimator, "decision_function") or not hasattr(estimator, "penalty_l2"):
        raise TypeError(f"model must be a csoftmax.linear_model.SoftmaxRegression, got {type(estimator).__name__}")
    check_parameters(estimator)
    if estimator.solver != "lbfgs":
        raise ValueError(
            f"solver={estimator.solver!r} takes minibatches one after the other, which {method} does not: use "
            "fit_batches, or solver='lbfgs'"
        )
    check_decay(estimator.penalty_l2, method)
    if estimator.adversarial is not None and estimator.adversarial_eps > 0:
        raise ValueError(f"adversarial={estimator.adversarial!r} needs all of the data at once, which {method} has not")
    if estimator.device not in (None, "cpu"):
        raise ValueError(f"device={estimator.device!r} is not for {method}, which computes on the CPUs of its workers")


def fit_rows(estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Notes:
    """Train on all rows, or on the parts of collections of Dask; a refused argument leaves an earlier fit as it was."""
    method = "fit of Dask collections"
    if is_lazy(X) or is_lazy(y) or is_lazy(sample_weight):
        check_fits_parts(estimator, method)
        check_table("X", X)
        with open_parts(("X", X), ("y", y), ("sample_weight", sample_weight)) as engine:
            return fit_parts(estimator, engine, method)
    with restore_on_error(estimator):
        X, indices, weights, options, validation = prepare(estimator, X, y, sample_weight)
    train = fit_lbfgs if estimator.solver == "lbfgs" else fit_adamw
    return train(estimator, X, indices, weights, options, validation)


def fit_parts(estimator: Any, engine: Engine, method: str) -> Notes:
    """Train on the parts, which are tuples (X, y) or (X, y, sample_weight); a failure leaves an earlier fit as it was.

    method: what messages call the caller.
    """
    check_fits_parts(estimator, method)
    with restore_on_error(estimator):
        engine.change(rows.load, None)
        return fit_loaded(estimator, engine)


def fit_loaded(estimator: Any, engine: Engine) -> Notes:
    """Train on parts that `rows.load` has checked."""
    continues = estimator.warm_start and hasattr(estimator, "coef_")
    estimator.__dict__.pop("_trainer", None)
    summaries = engine.gather(rows.summarize, None)
    engine.sizes = [(found.rows, found.nbytes) for found in summaries]
    rows.raise_problem(summaries)
    found = rows.agree(summaries)
    rows.record_features(estimator, found, reset=not continues)
    if not continues:
        forget(estimator)
        estimator.classes_ = found.classes
    _check_classes(estimator, engine, found)
    objective, held_out, dtype = _make_objectives(estimator, engine, found)
    tol = estimator.tol or TOLERANCE[objective.dtype]
    k = len(estimator.classes_)
    penalty = estimator.penalty_l2
    penalty = compute_default_penalty(objective.divisor, k) if penalty is None else float(penalty)
    start = choose_start(estimator, objective.features, np.float64, zeros=True)
    monitor = Monitor(estimator, estimator.max_epochs, held_out)
    return minimize_objective(estimator, objective, monitor, Choice(penalty, start, []), (tol, dtype))


def _check_classes(estimator: Any, engine: Engine, found: rows.Summary) -> None:
    """Refuse a single class, and labels that a model that continues does not know."""
    classes = estimator.classes_
    if len(classes) < 2:
        raise ValueError(
            f"{type(estimator).__name__} needs samples of at least 2 classes in the data, but the data contains only "
            f"one class: {show(classes[0])}"
        )
    if classes is found.classes:
        return
    start = 0
    for number, unknown in enumerate(engine.gather(rows.find_unknown_label, classes)):
        if unknown is not None:
            row, label = unknown
            raise ValueError(
                f"y[{start + row}], row {row} of part {number}, is {show(label)}, which is not among the classes: "
                f"{show(classes)} (add_classes adds to them)"
            )
        start += engine.sizes[number][0]


def _make_objectives(
    estimator: Any, engine: Engine, found: rows.Summary
) -> tuple[PartsObjective, PartsObjective | None, Any]:
    """The objectives of the rows for training and, if there are any, for early stopping; the dtype of coef_."""
    dtype, k = np.dtype(found.dtype), len(estimator.classes_)
    features = estimator.n_features_in_
    small = found.rows * features <= SMALL_ELEMENTS and k * (features + 1) <= MAX_HESSIAN_PARAMETERS
    is_exact = small and (estimator.tol is None or estimator.tol < COARSE_TOL)
    computed = np.dtype(np.float64) if is_exact else dtype
    starts = np.cumsum([0, *(size for size, _ in engine.sizes)])[:-1].tolist()
    seed = int(make_random_state(estimator).randint(2**31 - 1)) if estimator.early_stopping else None
    fraction = float(estimator.validation_fraction)
    engine.change(rows.settle, rows.Settings(estimator.classes_, computed, starts, seed, fraction))
    counts = engine.gather(rows.count, None)
    weights = total(engine, rows.weigh_labels, k).reshape(2, k)
    occurring = np.flatnonzero(weights.sum(axis=0) > 0)
    options = choose_loss_options(estimator, dtype, occurring, weights.sum(axis=0)[occurring])
    if options.weight is not None and is_exact:
        options = options._replace(weight=options.weight.astype(np.float64))
    trained = [part.rows for part in counts]
    first = next((part.first for part in counts if part.rows), None)
    largest = np.maximum.reduce([part.largest for part in counts if part.largest is not None] or [np.zeros(features)])
    firsts = np.cumsum([0, *trained])[:-1].tolist()
    layout = Layout(features, computed, sum(trained), firsts, first, largest)
    held_out = _make_held_out(engine, layout, weights[1], options) if estimator.early_stopping else None
    if not layout.rows:
        raise ValueError(f"early_stopping has left no row for training: validation_fraction={fraction}")
    return PartsObjective(engine, layout, weights[0], options), held_out, dtype


def _make_held_out(engine: Engine, layout: Layout, weights: Any, options: Options) -> PartsObjective:
    if not weights.any():
        raise ValueError("early_stopping has held out no row with weight: raise validation_fraction, or switch it off")
    return PartsObjective(engine, layout, weights, options._replace(label_smoothing=0.0), held_out=True)
