"""The fits of `csoftmax.linear_model.SoftmaxRegression`: L-BFGS, AdamW on all of the data, AdamW on one minibatch.

Each function gets the estimator with checked parameters and data, trains, leaves the result in its attributes, and
returns its warnings.  The public methods issue them: only there is the depth of the caller known.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets

from .._arguments.numbers import check_num_threads
from .._arguments.places import Place
from .._ops.cross_entropy import cross_entropy
from . import adamw, lbfgs
from .adversary import CornerSearch, make_adversary, make_bound
from .divergence import BestEpoch, SoundSteps, are_finite
from .messages import show
from .monitor import Monitor, keep_parameters
from .objective import Objective, Options, choose_block_rows, compute_logits, to_host
from .parameters import (
    Notes,
    Rows,
    check_data,
    check_known_labels,
    check_parameters,
    check_sample_weight,
    choose_loss_options,
    choose_place,
    hold_out,
    make_random_state,
)
from .penalty import Choice, Problem, check_in_memory, settle, settle_decay

TOLERANCE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 1e-5}  # largest element of the gradient
ROUNDING = 100  # times tol: a gradient that rounding keeps from tol by less than this deserves no warning
ALL_EQUAL = 1e-3  # of logits, over standard deviations of the features: classes do not differ
RATED_ROWS = 256  # of the last minibatch, whose loss rates the last parameters of adamw
RECORDED = ("loss", "accuracy", "gradient_norm")  # figures of each iteration of L-BFGS
SMALL_ELEMENTS = 2**22  # X of at most this size is computed in float64 whatever its dtype, if there are few parameters


# Of all estimators; "head_" to "class_count_" are those of ManyClassRegression.
LEARNED = (
    *("coef_", "intercept_", "classes_", "penalty_l2_", "frozen_", "_trainer"),
    *("head_", "embedding_", "class_count_"),
)
STATE = (*LEARNED, "history_", "n_iter_", "n_features_in_", "feature_names_in_")


def forget(estimator: Any) -> None:
    """Remove the state of earlier training."""
    for name in LEARNED:
        estimator.__dict__.pop(name, None)
    estimator.history_, estimator.n_iter_ = {}, 0


@contextlib.contextmanager
def restore_on_error(estimator: Any, until: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Give the estimator its state back if arguments are refused; until(): whether training has begun since."""
    before = {name: estimator.__dict__[name] for name in STATE if name in estimator.__dict__}
    try:
        yield
    except BaseException:
        if not until():
            for name in STATE:
                estimator.__dict__.pop(name, None)
            estimator.__dict__.update(before)
        raise


def prepare(
    estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None
) -> tuple[Any, NDArray[np.intp], NDArray[np.float64] | None, Options, Rows | None]:
    """Check the arguments of `fit`; X, class indices, sample weights, options of the loss, rows for early stopping."""
    check_parameters(estimator)
    continues = estimator.warm_start and hasattr(estimator, "coef_")
    estimator.__dict__.pop("_trainer", None)
    check_in_memory(estimator.penalty_l2, X)
    X, y = check_data(estimator, X, y, reset=not continues)
    X, indices, weights = encode_labels(estimator, X, y, sample_weight, continues)
    options = choose_loss_options(estimator, X.dtype, indices, weights)
    choose_place(estimator, X)
    validation = None
    if estimator.early_stopping:
        (X, indices, weights), validation = hold_out(estimator, X, indices, weights)
    return X, indices, weights, options, validation


def encode_labels(
    estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None, continues: bool
) -> tuple[Any, NDArray[np.intp], NDArray[np.float64] | None]:
    """X, class indices and sample weights of the rows with weight; unless training continues, y has the classes."""
    check_classification_targets(y)
    weights = check_sample_weight(sample_weight, X)
    if weights is not None and not weights.any():
        raise ValueError("sample_weight is zero for every row: there is no class to learn")
    if not continues:
        forget(estimator)
        estimator.classes_ = LabelEncoder().fit(y).classes_
    indices = check_known_labels(y, estimator.classes_)
    if len(estimator.classes_) < 2:
        raise ValueError(
            f"{type(estimator).__name__} needs samples of at least 2 classes in the data, but the data contains only "
            f"one class: {show(estimator.classes_[0])}"
        )
    if weights is not None and not weights.all():
        kept = np.flatnonzero(weights)  # rows of weight 0 are not counted in class weights and validation either
        X, indices, weights = X[kept], indices[kept], weights[kept]
    return X, indices, weights


def choose_start(estimator: Any, features: int, dtype: Any, *, zeros: bool) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Initial coefficients and intercept: those of earlier training, or new ones (zeros: 0 whatever `init` says)."""
    k = len(estimator.classes_)
    if hasattr(estimator, "coef_"):
        return estimator.coef_.astype(dtype), estimator.intercept_.astype(dtype) if estimator.fit_intercept else None
    if zeros or estimator.init == "zeros":
        coef = np.zeros((k, features), dtype)
    else:
        coef = adamw.draw_xavier(k, features, dtype, make_random_state(estimator))
    return coef, np.zeros(k, dtype) if estimator.fit_intercept else None


def _start_monitor(estimator: Any, rows: Rows, options: Options, validation: Rows | None, place: Place) -> Monitor:
    """The monitor of a fit; the loss of the held-out rows has no label smoothing."""
    held_out = None
    if validation is not None:
        options = options._replace(label_smoothing=0.0)
        held_out = Objective(
            *validation, len(estimator.classes_), options, estimator.num_threads, place, make_bound(estimator)
        )
    return Monitor(estimator, estimator.max_epochs, held_out, rows)


# L-BFGS


def fit_lbfgs(
    estimator: Any,
    X: Any,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64] | None,
    options: Options,
    validation: Rows | None,
) -> Notes:
    """Train on all of the data with L-BFGS."""
    dtype, k, rows = X.dtype, len(estimator.classes_), (X, y, sample_weight)
    small = X.size <= SMALL_ELEMENTS and k * (X.shape[1] + 1) <= lbfgs.MAX_HESSIAN_PARAMETERS
    if small and (estimator.tol is None or estimator.tol < lbfgs.COARSE_TOL):
        X = X.astype(np.float64, copy=False)
        options = options._replace(weight=None if options.weight is None else options.weight.astype(np.float64))
    tol = estimator.tol or TOLERANCE[X.dtype]
    place = choose_place(estimator, X)
    num_threads = check_num_threads(estimator.num_threads)
    objective = Objective(X, y, sample_weight, k, options, num_threads, place, make_bound(estimator))
    monitor = _start_monitor(estimator, rows, options, validation, place)

    start, frozen = choose_start(estimator, X.shape[1], np.float64, zeros=True), getattr(estimator, "frozen_", None)
    problem = Problem(k, options, start, frozen, objective.num_threads, place, objective.map_parts)
    with objective.use_threads():
        choice = settle(estimator.penalty_l2, X, y, sample_weight, problem, objective.divisor)
    begin = choice.start if validation is None else start  # early stopping needs the way from the start
    return minimize_objective(estimator, objective, monitor, choice._replace(start=begin), (tol, dtype))


def minimize_objective(
    estimator: Any, objective: Any, monitor: Monitor, choice: Choice, precision: tuple[float, Any]
) -> Notes:
    """Minimise with L-BFGS from the start of the choice, and keep the result; precision: tol, and the dtype of coef_.

    objective: an `Objective`, or a `PartsObjective` over an engine.
    """
    tol, dtype = precision

    def record(step: lbfgs.Step) -> dict[str, float]:
        return {**{name: getattr(step, name) for name in RECORDED}, "learning_rate": math.nan}

    corner = CornerSearch(objective.bound, estimator.tol)

    def after_iteration(step: lbfgs.Step) -> bool:
        monitor.take_parameters(step.coef, step.intercept, dtype)
        return monitor.epoch_ends(record(step)) or corner.ends_round(step.loss)

    estimator.penalty_l2_ = choice.penalty
    with monitor, objective.use_threads():
        options_of_lbfgs: Any = {"penalty": choice.penalty, "tol": tol, "frozen": getattr(estimator, "frozen_", None)}
        solver = functools.partial(lbfgs.minimize, objective, **options_of_lbfgs)
        end = corner.minimize(
            solver, objective, choice.start, estimator.max_epochs, after_iteration, lambda: monitor.stopped
        )
        step = end.step
        coef, intercept = monitor.best or (step.coef, step.intercept)
        keep_parameters(estimator, coef, intercept, dtype)
        estimator.n_iter_ = end.iterations
        if end.iterations == 0:  # the start is the minimum
            estimator.history_ = {name: [value] for name, value in record(step).items()}
    if corner.is_found and (end.step.spread < ALL_EQUAL or end.step.loss > corner.equal_loss):
        return [*choice.notes, _describe_equal(estimator)]
    if end.converged or monitor.stopped or corner.is_found:
        return choice.notes
    return choice.notes + _describe_gradient(estimator, end, tol)


def _describe_equal(estimator: Any) -> tuple[str, type[Warning]]:
    """Say that training against perturbations has not told the classes apart."""
    text = (
        f"at adversarial_eps={estimator.adversarial_eps!r} lbfgs found no coefficients for which the bound is lower "
        "than where those of all classes are equal: lower adversarial_eps"
    )
    return text, ConvergenceWarning


def _describe_gradient(estimator: Any, end: lbfgs.End, tol: float) -> Notes:
    """Say that the fit ended away from the minimum, with the remedy for the reason."""
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
        return []
    return [(text, ConvergenceWarning)]


# AdamW


def fit_adamw(
    estimator: Any,
    X: Any,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64] | None,
    options: Options,
    validation: Rows | None,
) -> Notes:
    """Train on all of the data with AdamW, in shuffled minibatches."""
    dtype, place = X.dtype, choose_place(estimator, X)
    block_rows = choose_block_rows(X.shape[1], len(estimator.classes_), dtype.itemsize)
    trainer = _new_trainer(estimator, _blocks(X, sample_weight, block_rows), X, options, place)
    monitor = _start_monitor(estimator, (X, y, sample_weight), options, validation, place)
    best = BestEpoch(len(estimator.classes_), trainer.fold())
    rng = make_random_state(estimator)
    if estimator.init == "xavier":  # this seed has drawn the initial coefficients, so shuffle with another one
        rng = np.random.RandomState(rng.randint(2**31 - 1))

    def fold() -> tuple[NDArray[Any], NDArray[Any] | None]:
        if not estimator.batch_norm:
            return trainer.fold()
        coef = to_host(trainer.parameters["coef"])
        return trainer.fold(adamw.compute_statistics(coef, _blocks(X, sample_weight, block_rows)))

    def take(rows: NDArray[np.intp]) -> Rows:
        return X[rows], y[rows], None if sample_weight is None else sample_weight[rows]

    with monitor:
        rows = np.arange(0)
        for _ in range(estimator.max_epochs):
            order = rng.permutation(X.shape[0])
            sums = adamw.Sums()
            with np.errstate(over="ignore", invalid="ignore"):  # divergence is reported below
                for part in adamw.split_batches(X.shape[0], estimator.batch_size):
                    rows = np.sort(order[part])  # a memory map is read forwards
                    sums.add(trainer.step(*take(rows)))
                coef, intercept = fold()
            if _epoch_ends(estimator, monitor, best, sums, (coef, intercept), dtype):
                break
        return _end_training(estimator, monitor, best, lambda: take(rows[:RATED_ROWS]), options, dtype)


def iterate(batches: Iterable[Any] | Callable[[], Iterable[Any]]) -> Iterable[Any]:
    """An iterator over the minibatches of an epoch."""
    made = batches() if callable(batches) else batches
    try:
        return iter(made)
    except TypeError as error:
        raise TypeError(
            "batches must be an iterable of (X, y) or (X, y, sample_weight), or a callable that returns one, got "
            f"{show(batches)}" + (f", which returns {show(made)}" if callable(batches) else "")
        ) from error


def check_batch(batch: Any) -> Any:
    """Refuse what is not (X, y) or (X, y, sample_weight)."""
    if not isinstance(batch, tuple | list) or not 2 <= len(batch) <= 3:
        raise ValueError(f"batches must yield (X, y) or (X, y, sample_weight), got {type(batch).__name__}")
    return batch


def refuse_empty_epoch(epoch: int) -> NoReturn:
    """Say why an epoch has no minibatch."""
    raise ValueError(
        f"batches yielded nothing in epoch {epoch + 1}: an iterator is exhausted after one epoch; pass a callable that "
        "returns a new one"
    )


def train_on_batches(estimator: Any, parts: Callable[[], Iterable[Any]], epochs: int) -> Notes:
    """Train on minibatches that parts() yields once an epoch; the trainer stays in the estimator."""
    monitor = Monitor(estimator, epochs)
    best: Any = None  # a BestEpoch, once the first minibatch has made the trainer
    with monitor:
        for epoch in range(epochs):
            sums = adamw.Sums()
            for batch in parts():
                data = _check_minibatch(estimator, *check_batch(batch))
                best = best or BestEpoch(len(estimator.classes_), estimator._trainer.fold())
                sums.add(step_minibatch(estimator, data))
            if sums.batches == 0:
                refuse_empty_epoch(epoch)
            trainer = estimator._trainer
            coef, intercept = _fold_minibatches(estimator, parts if estimator.batch_norm else None)
            keep_parameters(
                estimator, np.array(coef), None if intercept is None else np.array(intercept), trainer.dtype
            )
            if _epoch_ends(estimator, monitor, best, sums, (coef, intercept), trainer.dtype):
                break
        options = trainer.options._replace(weight=to_host(trainer.options.weight))
        notes = _end_training(estimator, monitor, best, lambda: data, options, trainer.dtype)
        if notes:
            del estimator._trainer  # further training starts from the parameters that are kept
    return notes


def train_on_minibatch(estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Notes:
    """Take the step of `partial_fit`; the trainer stays in the estimator."""
    data = _check_minibatch(estimator, X, y, sample_weight)
    trainer = estimator._trainer
    if trainer.sound is None:
        trainer.sound = SoundSteps(len(estimator.classes_), trainer.fold())
    before = (estimator.coef_, estimator.intercept_) if hasattr(estimator, "coef_") else None
    sums = adamw.Sums()
    sums.add(step_minibatch(estimator, data))
    coef, intercept = trainer.fold()
    for key, value in record_of_epoch(estimator, sums).items():
        estimator.history_.setdefault(key, []).append(value)
    estimator.n_iter_ += 1
    notes: Notes = []
    loss = sums.first_loss
    if not trainer.sound.allows(trainer.sound.uniform if loss is None else loss, before, (coef, intercept)):
        coef, intercept = trainer.sound.parameters
        del estimator._trainer  # further training starts from the parameters that are kept
        loss = math.nan if loss is None else loss
        kept = "those of an earlier step are kept"
        notes = _describe_divergence(estimator, loss, f"step {estimator.n_iter_}", kept)
    keep_parameters(estimator, np.array(coef), None if intercept is None else np.array(intercept), trainer.dtype)
    return notes


def _epoch_ends(
    estimator: Any, monitor: Monitor, best: BestEpoch, sums: adamw.Sums, parameters: Any, dtype: Any
) -> bool:
    """Rate the parameters before the epoch, take those after it, and call the callbacks; return whether to stop."""
    best.rate(sums.first_loss)
    record = record_of_epoch(estimator, sums)
    is_finite = best.take(parameters, record["loss"], check=monitor.is_watched())
    coef, intercept = parameters if is_finite else best.parameters
    monitor.take_parameters(coef, intercept, dtype)
    return monitor.epoch_ends(record) if is_finite else monitor.epoch_ends(record, is_last=True)


def _end_training(
    estimator: Any, monitor: Monitor, best: BestEpoch, last: Callable[[], Rows], options: Options, dtype: Any
) -> Notes:
    """Set the parameters at the end of a training; return a warning if it has diverged.

    last(): the last minibatch, whose loss rates the last parameters.
    """
    parameters = best.last
    if not are_finite(parameters):
        best.last_loss = math.inf
    elif math.isfinite(best.last_loss):
        best.rate(_measure_loss(last(), best.last, options, estimator.num_threads))
    has_diverged = best.has_diverged()
    if monitor.best is not None and not (has_diverged and best.loss < monitor.best_loss):
        parameters = monitor.best
    elif has_diverged:
        parameters = best.parameters
    keep_parameters(estimator, *parameters, dtype)
    if not has_diverged:
        return []
    loss = estimator.history_["loss"][-1]
    loss = best.last_loss if math.isfinite(loss) else loss
    return _describe_divergence(estimator, loss, f"epoch {estimator.n_iter_}", best.describe())


def _measure_loss(rows: Rows, parameters: Any, options: Options, num_threads: int | None) -> float | None:
    """Mean loss of some rows, without penalty; None if all of them have weight 0."""
    x, y, sample_weight = rows
    weights = [w for w in (sample_weight, None if options.weight is None else options.weight[y]) if w is not None]
    if weights and not np.prod(weights, axis=0).any():
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        logits = compute_logits(x, *parameters)
        loss = cross_entropy(logits, y, sample_weight=sample_weight, num_threads=num_threads, **options._asdict())
    return float(loss)


def _describe_divergence(estimator: Any, loss: float, when: str, kept: str) -> Notes:
    text = (
        f"adamw has diverged: the loss is {loss:.4g} in {when}, learning_rate={show(estimator.learning_rate)}; of the "
        f"parameters, {kept}; lower learning_rate, or scale the data"
    )
    return [(text, ConvergenceWarning)]


def _check_minibatch(estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Rows:
    """Check one minibatch, and make the trainer at the first one."""
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
        estimator._trainer = _new_trainer(estimator, [(X, weights)], X, options, place)
    return X.astype(estimator._trainer.dtype, copy=False), indices, weights


def step_minibatch(estimator: Any, rows: Rows) -> adamw.Progress:
    """Take one step of the trainer in the estimator."""
    trainer = estimator._trainer
    trainer.hyper = _hyperparameters(estimator)
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is reported
        return trainer.step(*rows)


def _fold_minibatches(estimator: Any, parts: Callable[[], Iterable[Any]] | None) -> Any:
    """Parameters of the trainer in the estimator; parts(): all minibatches, for the statistics of batch norm."""
    trainer = estimator._trainer
    if parts is None:
        return trainer.fold()
    blocks = (
        (check_data(estimator, X), check_sample_weight(weights[0] if weights else None, X))
        for X, _, *weights in parts()
    )
    with np.errstate(over="ignore", invalid="ignore"):
        return trainer.fold(adamw.compute_statistics(to_host(trainer.parameters["coef"]), blocks))


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


def _blocks(X: Any, sample_weight: NDArray[np.float64] | None, rows: int) -> Iterable[Any]:
    """X and sample weights, some rows at a time."""
    parts = (slice(begin, begin + rows) for begin in range(0, X.shape[0], rows))
    return ((X[part], None if sample_weight is None else sample_weight[part]) for part in parts)


def _draw_seed(estimator: Any) -> int | None:
    """A seed for the starts of trades; nothing is drawn for others."""
    return int(make_random_state(estimator).randint(2**31 - 1)) if estimator.adversarial == "trades" else None


def _new_trainer(estimator: Any, blocks: Iterable[Any], X: Any, options: Options, place: Place) -> adamw.Trainer:
    """A trainer that starts where earlier training ended, or anew; blocks: (X, sample weights), some rows at a time."""
    known = hasattr(estimator, "coef_")
    frozen = getattr(estimator, "frozen_", None)
    coef, intercept = choose_start(estimator, X.shape[1], X.dtype, zeros=False)
    batch_norm = None
    if estimator.batch_norm:
        if frozen is not None and frozen.any():
            raise ValueError("batch_norm changes all classes: it cannot be used with frozen ones")
        batch_norm = np.zeros(len(coef)), np.ones(len(coef))
        if known:  # statistics with which the normalised logits are those of the model so far
            batch_norm = adamw.compute_statistics(coef, blocks) or batch_norm
    return adamw.Trainer(
        coef,
        intercept,
        options,
        _hyperparameters(estimator),
        place,
        batch_norm=batch_norm,
        frozen=frozen,
        num_threads=estimator.num_threads,
        adversary=make_adversary(estimator, _draw_seed(estimator)),
    )
