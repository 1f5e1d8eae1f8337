"""Calibration errors and reliability diagrams of predicted probabilities, and a report on a whole classifier.

Precision, recall, F1 and ROC-AUC are computed by scikit-learn; `evaluate` collects all figures.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    import sklearn.base  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"csoftmax.metrics needs scikit-learn >= 1.6 ({error}); install it with: pip install 'csoftmax[learn]'"
    ) from error

from ._arguments.numbers import check_count
from ._learn.calibration_error import (
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    fill_bins,
    maximum_calibration_error,
)
from ._learn.display import ReliabilityDisplay, plot_reliability, predict_probabilities
from ._learn.intervals import (
    find_ece_interval,
    find_mean_interval,
    find_prediction_intervals,
    find_smooth_ece_interval,
)
from ._learn.messages import show
from ._learn.mistakes import find_mistakes
from ._learn.probabilities import (
    check_probabilities,
    check_weights,
    find_labels,
    predict_logarithms,
    read_array,
    take_top_labels,
)
from ._learn.reliability import ReliabilityCurve, reliability_curve
from ._learn.report import Report
from ._learn.report_scores import measure_classification
from ._learn.smooth_error import smooth_calibration_error
from ._ops.cross_entropy import cross_entropy
from ._ops.softmax import softmax

__all__ = [
    "ReliabilityCurve",
    "ReliabilityDisplay",
    "Report",
    "brier_score",
    "classwise_calibration_error",
    "evaluate",
    "expected_calibration_error",
    "maximum_calibration_error",
    "plot_reliability",
    "reliability_curve",
    "smooth_calibration_error",
]


def evaluate(
    model: Any,
    X: Any,
    y: ArrayLike,
    *,
    calibrator: Any | Literal["recalibrate"] = None,
    n_bins: int = 15,
    sample_weight: ArrayLike | None = None,
) -> Report:
    """Report everything about a classifier's predictions on labelled data.

    Parameters
    ----------
    model : fitted classifier
        Any with `predict_proba` and `classes_`, such as a Pipeline, a search or a
        `sklearn.calibration.CalibratedClassifierCV`.
    X : array-like of shape (N, D)
        Data that was not used to train the model, as its `predict_proba` takes it.
    y : array-like of shape (N,)
        True labels, elements of the model's `classes_`.
    calibrator : fitted calibrator of `csoftmax.calibration`, or "recalibrate", optional
        Calibrator whose probabilities, and the labels that they make the most probable, are reported, with the
        uncalibrated figures beside them. It receives the `decision_function` of a
        `csoftmax.linear_model.SoftmaxRegression` (also as the last step of a Pipeline), and the logarithms of the
        probabilities of any other classifier, 1e-12 in place of probabilities of 0, as in
        `csoftmax.calibration.CalibratedModel`. "recalibrate" asks for a cross-fitted calibration: a
        `TemperatureScaling` that is fitted on every other row of X and measured on the rest, and vice versa.
    n_bins : int, default 15
        Number of bins of the calibration errors.
    sample_weight : array-like of shape (N,), optional
        Weights of the rows, in every figure but the numbers of rows.

    Returns
    -------
    Report
        ``str(report)`` is text, ``report.to_dict()`` a dict of numbers and lists, and ``report.to_html(path)`` writes a
        page with plots.

    Raises
    ------
    TypeError, ValueError
        If y has a label that is not among the model's classes, or arguments do not fit; the message names the argument,
        its value and what is allowed.
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    Notes
    -----
    The figures of calibration have one column, "as predicted". With a calibrator there is a second one, which has the
    name of its class. Without one, a `SoftmaxRegression` whose temperature is not 1 has two columns, "T = 1" and
    "as saved (T = ...)": what its calibration has changed. Accuracy, F1 and the confusion matrix are those of the
    model's `predict`, ROC-AUC that of its probabilities.

    Every calibrator but a temperature can change which label is the most probable. With a fitted calibrator, accuracy,
    F1, ROC-AUC, the confusion matrix, the figures by class and the mistakes are therefore those of the calibrated
    probabilities, the predicted label being the most probable one, as in `csoftmax.calibration.CalibratedModel`;
    "uncalibrated" in `to_dict` has those of the model without it. "recalibrate" leaves these figures as they are: its
    two halves are calibrated by two calibrators, and so by no model that there is.

    Precision, recall and F1 are scikit-learn's with ``zero_division=0``, and macro averages are over the classes in y
    and in the predictions; text and page show a dash where a class has a figure that is 0 / 0, such as the recall of a
    class that does not occur. The log loss is that of scikit-learn, but that of a `SoftmaxRegression` comes from its
    logits: probabilities below 2e-16 count as they are.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> from csoftmax.metrics import evaluate
    >>> X, y = load_iris(return_X_y=True)
    >>> report = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
    >>> round(report.to_dict()["accuracy"], 2)
    0.96
    """
    n_bins = check_count("n_bins", n_bins, 1)
    classes, p = predict_probabilities(model, X)
    labels, given = _index_labels("y", y, classes)
    if len(p) != len(given):
        raise ValueError(f"model.predict_proba(X) has {len(p)} rows, but y has {len(given)} labels")
    p = check_probabilities(p, len(given), "model.predict_proba(X)")
    if p.shape[1] != len(classes):
        raise ValueError(f"model.predict_proba(X) must have {len(classes)} columns, one for each class, got {p.shape}")
    weight = check_weights(sample_weight, len(given))
    inner = _find_softmax_regression(model)
    logits = None if inner is None else _as_columns(model.decision_function(X))
    inputs = predict_logarithms(model, X) if logits is None and calibrator is not None else logits
    columns, how = _make_columns(inner, logits, inputs, p, labels, weight, calibrator, classes)
    predicted = p.argmax(axis=1)
    if inner is None and hasattr(model, "predict"):  # the model may decide in another way
        predicted, _ = _index_labels("model.predict(X)", model.predict(X), classes)
    given_weight, uncalibrated = None if sample_weight is None else weight, None
    if calibrator is not None and not isinstance(calibrator, str):
        before = measure_classification(labels, predicted, p, classes, given_weight)
        uncalibrated = {key: value for key, value in before.items() if key not in ("per_class", "confusion_matrix")}
        uncalibrated |= find_prediction_intervals(labels, predicted, weight, len(classes))
        p = columns[-1].p
        predicted = p.argmax(axis=1)
    figures: dict[str, Any] = {
        "model": repr(model),
        "rows": len(given),
        "weight": float(weight.sum()),
        "n_bins": n_bins,
        "classes": [str(c) for c in classes.tolist()],
        **find_prediction_intervals(labels, predicted, weight, len(classes)),
        **measure_classification(labels, predicted, p, classes, given_weight),
        "uncalibrated": uncalibrated,
    }
    figures["mistakes"] = find_mistakes(labels, predicted, p, weight, figures["classes"])
    errors = [_measure_calibration(labels, c, weight, n_bins) for c in columns]
    displays = [_make_display(labels, c, weight, n_bins, e["smooth_ece"]) for c, e in zip(columns, errors)]
    measured = [{"name": c.name, **e} for c, e in zip(columns, errors)]
    figures["columns"] = measured
    figures["before"] = measured[0]
    figures["after"] = measured[1] if len(measured) > 1 else None
    figures["calibration"] = how
    history = getattr(inner, "history_", {})
    losses = {key: values for key, values in history.items() if key.endswith("loss") and values and min(values) > 0}
    return Report(figures, displays, losses)


class _Column(NamedTuple):
    """Probabilities of all rows, and their log loss if it is known more precisely than from them."""

    name: str
    p: NDArray[np.float64]
    log_loss: float | None = None


def _index_labels(name: str, y: ArrayLike, classes: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Indices of labels among the classes, and the labels as an array."""
    given = read_array(name, y)
    if given.ndim == 2 and given.shape[1] == 1:
        given = given[:, 0]
    if given.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {given.shape}")
    if len(given) == 0:
        raise ValueError(f"{name} is empty")
    labels, unknown = find_labels(given, classes)
    if len(unknown):
        bad = unknown[0]
        raise ValueError(f"{name}[{bad}] is {show(given[bad])}, which is not among the model's classes")
    return labels, given


def _find_softmax_regression(model: Any) -> Any:
    """The `SoftmaxRegression` whose predictions are the model's, behind pipelines and searches, or None."""
    from .linear_model import SoftmaxRegression

    while not isinstance(model, SoftmaxRegression):
        if hasattr(model, "steps"):  # Pipeline
            model = model.steps[-1][1]
        elif hasattr(model, "best_estimator_"):  # GridSearchCV and its like
            model = model.best_estimator_
        elif type(model).__name__ == "FrozenEstimator":
            model = model.estimator
        else:
            return None
    return model


def _as_columns(logits: ArrayLike) -> NDArray[np.float64]:
    """Logits with one column for each class; a decision function of two classes has the second alone."""
    z = read_array("logits", logits).astype(np.float64)
    return np.column_stack([np.zeros(len(z)), z]) if z.ndim == 1 else z


def _make_columns(
    inner: Any,
    logits: NDArray[np.float64] | None,
    inputs: Any,
    p: NDArray[np.float64],
    labels: NDArray[np.intp],
    weight: NDArray[np.float64],
    calibrator: Any,
    classes: NDArray[Any],
) -> tuple[list[_Column], str]:
    """The columns of the calibration table, and a sentence about them; inputs: of the calibrator, if there is one."""
    temperature = 1.0 if inner is None else float(inner.temperature)
    own = _Column(
        "as predicted" if temperature == 1 else f"as saved (T = {temperature:.3g})",
        p,
        None if logits is None else float(cross_entropy(logits, labels, sample_weight=weight, temperature=temperature)),
    )
    if isinstance(calibrator, str):
        if calibrator != "recalibrate":
            raise ValueError(f'calibrator must be a fitted calibrator, "recalibrate" or None, got {calibrator!r}')
        return _cross_fit(own, inputs, labels, weight)
    if calibrator is not None:
        name = type(calibrator).__name__
        found = f" (T = {calibrator.temperature_:.3g})" if hasattr(calibrator, "temperature_") else ""
        return [own, _Column(name, _apply(calibrator, inputs, classes))], f"{name}{found}, fitted beforehand"
    if temperature == 1 or logits is None:
        return [own], ""
    raw = _Column("T = 1", softmax(logits), float(cross_entropy(logits, labels, sample_weight=weight)))
    return [raw, own], (
        f"the model divides its logits by its temperature, {temperature:.3g}; the column T = 1 shows the same model "
        "without that"
    )


def _apply(calibrator: Any, logits: NDArray[np.float64], classes: NDArray[Any]) -> NDArray[np.float64]:
    """Calibrated probabilities, in the order of the model's classes."""
    if isinstance(calibrator, type) or not hasattr(calibrator, "transform"):
        raise TypeError(f'calibrator must be a fitted calibrator, "recalibrate" or None, got {calibrator!r}')
    columns = _find_columns_of(calibrator, classes)
    p = check_probabilities(calibrator.transform(logits[:, columns]), len(logits), "calibrator.transform(logits)")
    if p.shape[1] != len(classes):
        raise ValueError(f"calibrator must be fitted on the model's {len(classes)} columns, got {p.shape[1]}")
    return p[:, np.argsort(columns)]


def _find_columns_of(calibrator: Any, classes: NDArray[Any]) -> NDArray[np.intp]:
    """Columns of the model's logits in the order of the classes to which a calibrator was fitted."""
    in_order = np.arange(len(classes))
    given = getattr(calibrator, "classes_", None)
    if given is None or len(given) != len(classes):  # the number of columns is refused elsewhere
        return in_order
    own, names = np.asarray(given).tolist(), classes.tolist()
    if set(own) == set(names):
        numbers = {label: i for i, label in enumerate(names)}
        return np.array([numbers[label] for label in own], np.intp)
    if own == in_order.tolist():  # numbers of columns
        return in_order
    raise ValueError(
        f"calibrator was fitted to the classes {show(own)}, but those of the model are {show(names)}; one that is "
        f"fitted to the integers from 0 to {len(names) - 1} calibrates the columns in the model's order"
    )


def _cross_fit(
    own: _Column, logits: NDArray[np.float64], labels: NDArray[np.intp], weight: NDArray[np.float64]
) -> tuple[list[_Column], str]:
    """Temperature scaling of each half of the rows, fitted on the other half."""
    from ._learn.calibration.base import learn
    from .calibration import TemperatureScaling

    halves = [np.flatnonzero((np.arange(len(labels)) % 2 == i) & (weight > 0)) for i in (0, 1)]
    if not all(map(len, halves)):
        return [own], "no cross-fitted calibration: one of the halves of the rows is empty"
    p, temperatures = np.empty((len(logits), logits.shape[1])), []
    for i in (0, 1):
        scaling, rows = TemperatureScaling(), halves[i]
        # Its notes, about few rows and halves that are all classified correctly, do not concern the report.
        learn(scaling, logits[rows], labels[rows], weight[rows])
        p[1 - i :: 2] = scaling.transform(logits[1 - i :: 2])
        temperatures.append(scaling.temperature_)
    found = " and ".join(f"{t:.3g}" for t in temperatures)
    return [own, _Column("cross-fitted calibration", p)], (
        f"the cross-fitted calibration is temperature scaling, fitted on every other row and measured on the rest "
        f"(T = {found}); it says what recalibration could win, not what the model does"
    )


def _measure_calibration(
    labels: NDArray[np.intp], column: _Column, weight: NDArray[np.float64], n_bins: int
) -> dict[str, Any]:
    """Figures of one set of probabilities; their log loss, unless it is known, is that of scikit-learn."""
    p, loss = column.p, column.log_loss
    given: dict[str, Any] = {"sample_weight": weight}
    eps = np.finfo(np.float64).eps
    lowest = eps if loss is None else np.finfo(np.float64).tiny
    losses = -np.log(np.clip(p[np.arange(len(p)), labels], lowest, 1 - eps))
    if loss is None:
        loss = float(losses @ weight / weight.sum())
    figures = {
        "log_loss": loss,
        "brier": brier_score(labels, p, **given),
        "ece": expected_calibration_error(labels, p, n_bins=n_bins, **given),
        "debiased_ece": expected_calibration_error(labels, p, n_bins=n_bins, norm=2, debiased=True, **given),
        "smooth_ece": smooth_calibration_error(labels, p, **given),
        "mce": maximum_calibration_error(labels, p, n_bins=n_bins, **given),
        "classwise_ece": classwise_calibration_error(labels, p, n_bins=n_bins, **given),
    }
    rows = take_top_labels(labels, p, None, weight)
    return figures | {
        "log_loss_interval": find_mean_interval(losses, weight, loss),
        "ece_interval": find_ece_interval(fill_bins(*rows, n_bins, "uniform"), *rows),
        "smooth_ece_interval": find_smooth_ece_interval(figures["smooth_ece"], *rows),
    }


def _make_display(
    labels: NDArray[np.intp], column: _Column, weight: NDArray[np.float64], n_bins: int, smooth_error: float
) -> ReliabilityDisplay:
    """The reliability diagram of a column, not drawn yet."""
    given: dict[str, Any] = {"n_bins": n_bins, "sample_weight": weight}
    return ReliabilityDisplay(
        reliability_curve(labels, column.p, **given),
        error=expected_calibration_error(labels, column.p, **given),
        name=column.name,
        n_bins=n_bins,
        smooth_error=smooth_error,
    )


# Pickles, messages and help() show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
