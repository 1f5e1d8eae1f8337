"""Calibration errors and reliability diagrams of predicted probabilities, and a report on a whole classifier.

Confusion matrix, F1 and ROC-AUC are computed by scikit-learn; `evaluate` collects all figures.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._learn.labels import indices_of
from ._learn.reliability import (
    ReliabilityCurve,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    plot_reliability,
    reliability_curve,
)
from ._ops.cross_entropy import cross_entropy

if TYPE_CHECKING:
    from ._learn.report import Report

__all__ = [
    "ReliabilityCurve",
    "brier_score",
    "classwise_calibration_error",
    "evaluate",
    "expected_calibration_error",
    "maximum_calibration_error",
    "plot_reliability",
    "reliability_curve",
]

for _public in (
    ReliabilityCurve,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    maximum_calibration_error,
    plot_reliability,
    reliability_curve,
):
    _public.__module__ = __name__  # the public address, for help() and pickle


def evaluate(model: Any, X: Any, y: ArrayLike, *, calibrator: Any = None, n_bins: int = 15) -> Report:
    """Report everything about a classifier's predictions on labelled data.

    Parameters
    ----------
    model : fitted classifier
        Has `predict_proba` and `classes_`. The calibrator receives the `decision_function` of a
        `csoftmax.linear_model.SoftmaxRegression`, and the logarithms of the probabilities of any other classifier.
    X : array-like of shape (N, D)
        Data that was not used to train the model.
    y : array-like of shape (N,)
        True labels.
    calibrator : fitted calibrator of `csoftmax.calibration`, optional
        Calibrator for the figures after calibration. Default: a `TemperatureScaling` that is fitted on every other row
        and measured on the rest, and vice versa.
    n_bins : int, default 15
        Number of bins of the calibration errors.

    Returns
    -------
    Report
        ``str(report)`` is text, ``report.to_dict()`` a dict of numbers and lists, and ``report.to_html(path)`` writes a
        page with plots.

    Raises
    ------
    ValueError
        If y has a label that is not among the model's classes.
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> from csoftmax.metrics import evaluate
    >>> X, y = load_iris(return_X_y=True)
    >>> report = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
    >>> round(report.to_dict()["accuracy"], 2)
    0.97
    """
    from sklearn.utils.validation import check_is_fitted

    from ._learn.report import Report
    from .linear_model import SoftmaxRegression

    check_is_fitted(model)
    y = np.asarray(y)
    classes = np.asarray(model.classes_)
    labels, unknown = indices_of(y, classes)
    if len(unknown):
        raise ValueError(f"y[{unknown[0]}] is {y[unknown[0]]!r}, which is not among the model's classes")
    ours = isinstance(model, SoftmaxRegression)
    before, log_before = _predict(model, X)
    logits = np.asarray(model.decision_function(X), np.float64) if ours else log_before
    after, how = _calibrate(logits, labels, calibrator)
    after = before if after is None else after
    loss_before = float(cross_entropy(log_before, labels))
    figures = {
        "model": repr(model),
        "rows": len(y),
        "classes": [str(c) for c in classes],
        **_measure_classification(labels, before, classes),
        "before": _measure_calibration(labels, before, loss_before, n_bins),
        "after": _measure_calibration(labels, after, loss_before if after is before else None, n_bins),
        "calibration": how,
    }
    history = model.history_ if ours and hasattr(model, "history_") else {}
    losses = {key: values for key, values in history.items() if key.endswith("loss") and values and min(values) > 0}
    return Report(figures, (labels, before, after, n_bins), losses)


def _predict(model: Any, X: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probabilities and their logarithms."""
    p = np.asarray(model.predict_proba(X), np.float64)
    if hasattr(model, "predict_log_proba") and hasattr(model, "coef_") and not (p == 0).any():
        return p, np.asarray(model.predict_log_proba(X), np.float64)
    # trees and nearest neighbours give probabilities of exactly 0, which no calibration could raise
    return p, np.log(np.maximum(p, np.finfo(np.float64).tiny))


def _calibrate(
    logits: NDArray[np.float64], labels: NDArray[np.intp], calibrator: Any
) -> tuple[NDArray[np.float64] | None, str]:
    """Calibrated probabilities of rows not used for calibration, and a sentence about the method."""
    from .calibration import TemperatureScaling

    if calibrator is not None:
        return calibrator.transform(logits), f"{type(calibrator).__name__}, fitted beforehand"
    if len(labels) < 2:
        return None, "none: there is one row"
    p, temperatures = np.empty((len(logits), max(2, logits[0].size))), []
    for fitted, measured in ((0, 1), (1, 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a half in which all rows are right has no finite optimum
            scaling = TemperatureScaling().fit(logits[fitted::2], labels[fitted::2])
        p[measured::2] = scaling.transform(logits[measured::2])
        temperatures.append(scaling.temperature_)
    found = " and ".join(f"{t:.3g}" for t in temperatures)
    return p, f"temperature scaling, fitted on every other row and measured on the rest (T = {found})"


def _measure_calibration(
    labels: NDArray[np.intp], p: NDArray[np.float64], log_loss: float | None, n_bins: int
) -> dict[str, float]:
    """Figures of one set of probabilities; their log loss, unless it is known, is that of the probabilities."""
    from sklearn import metrics as sk

    return {
        "log_loss": float(sk.log_loss(labels, p, labels=np.arange(p.shape[1]))) if log_loss is None else log_loss,
        "brier": brier_score(labels, p),
        "ece": expected_calibration_error(labels, p, n_bins=n_bins),
        "mce": maximum_calibration_error(labels, p, n_bins=n_bins),
        "classwise_ece": classwise_calibration_error(labels, p, n_bins=n_bins),
    }


def _measure_classification(labels: NDArray[np.intp], p: NDArray[np.float64], classes: NDArray[Any]) -> dict[str, Any]:
    """Figures of the predicted classes, by class and averaged over the classes that occur."""
    from sklearn import metrics as sk

    everything, occurring, predicted = np.arange(len(classes)), np.unique(labels), p.argmax(axis=1)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=everything, zero_division=0
    )
    roc_auc = None
    if len(occurring) > 1:  # each class against the rest
        roc_auc = float(np.mean([sk.roc_auc_score(labels == c, p[:, c]) for c in occurring]))
    return {
        "accuracy": float(np.mean(predicted == labels)),
        "macro_f1": float(f1[occurring].mean()),
        "micro_f1": float(sk.f1_score(labels, predicted, average="micro")),
        "weighted_f1": float(f1 @ support / support.sum()),
        "roc_auc": roc_auc,
        "per_class": [
            {"class": str(c), "precision": float(pr), "recall": float(r), "f1": float(f), "rows": int(s)}
            for c, pr, r, f, s in zip(classes, precision, recall, f1, support)
        ],
        "confusion_matrix": sk.confusion_matrix(labels, predicted, labels=everything).tolist(),
    }
