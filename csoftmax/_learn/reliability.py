"""How well probabilities are calibrated: ECE and its relatives, Brier score, reliability curve and plot, a whole
report.

What scikit-learn has (confusion matrix, F1, ROC-AUC) is scikit-learn's; `evaluate` puts all of it together.
"""

from typing import NamedTuple

import numpy as np

from ._learn.labels import indices_of

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

STRATEGIES = ("uniform", "quantile")


class ReliabilityCurve(NamedTuple):
    """What `reliability_curve` returns; one entry a bin, NaN where a bin is empty (counts and edges excepted)."""

    accuracy: np.ndarray
    confidence: np.ndarray
    counts: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    edges: np.ndarray


def _check(y_true, y_prob, labels, sample_weight):
    """Indices of the labels, probabilities (N, K) in float64, weights."""
    y, p = np.asarray(y_true), np.asarray(y_prob)
    if p.ndim == 1 and y.ndim == 2:
        raise ValueError(f"y_true has shape {y.shape}, y_prob {p.shape}: the labels come first, then the probabilities")
    if y.ndim != 1:
        raise ValueError(f"y_true must have one axis, got shape {y.shape}")
    if p.dtype.kind not in "fiub" and p.dtype.name != "bfloat16":
        raise TypeError(f"y_prob must hold probabilities, got dtype {p.dtype}")
    p = p.astype(np.float64)
    if p.ndim == 1:  # of the second of two classes
        p = np.column_stack([1 - p, p])
    if p.ndim != 2 or len(p) != len(y):
        raise ValueError(f"y_prob must have shape ({len(y)}, K), got {p.shape}")
    if len(y) == 0 or p.shape[1] == 0:
        raise ValueError(f"y_prob is empty: shape {p.shape}")
    wrong = np.argwhere(~((p >= 0) & (p <= 1)))
    if len(wrong):
        raise ValueError(f"y_prob[{wrong[0][0]}, {wrong[0][1]}] is {p[tuple(wrong[0])]}; probabilities are in [0, 1]")
    k = p.shape[1]
    if labels is not None:
        labels = np.asarray(labels)
        if labels.shape != (k,) or len(np.unique(labels)) != k:
            raise ValueError(f"labels must be {k} different labels, one for each column of y_prob, got {labels!r}")
        at, bad = indices_of(y, labels)
        if len(bad):
            raise ValueError(f"y_true[{bad[0]}] is {y[bad[0]]!r}, which is not in labels")
        y = at
    else:
        if y.dtype.kind not in "iub":
            raise TypeError(f"y_true must hold integers, or labels must be given; got dtype {y.dtype}")
        bad = np.flatnonzero((y < 0) | (y >= k)) if y.dtype.kind != "b" else np.array([], int)
        if len(bad) or (y.dtype.kind == "b" and k != 2):
            value = y[bad[0]] if len(bad) else "bool"
            raise ValueError(f"y_true has {value!r}; classes are 0 to {k - 1}, one for each column of y_prob")
        y = y.astype(np.int64)
    if sample_weight is None:
        return y, p, np.ones(len(y))
    w = np.asarray(sample_weight, np.float64)
    if w.shape != y.shape or not (np.isfinite(w).all() and (w >= 0).all()) or not w.any():
        raise ValueError("sample_weight must have one number for each row, finite, at least 0 and not all of them 0")
    return y, p, w


def _edges(confidence, n_bins, strategy):
    if not isinstance(n_bins, int | np.integer) or isinstance(n_bins, bool) or n_bins < 1:
        raise ValueError(f"n_bins must be an int of at least 1, got {n_bins!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {strategy!r}")
    if strategy == "uniform":
        return np.linspace(0, 1, n_bins + 1)
    edges = np.quantile(confidence, np.linspace(0, 1, n_bins + 1))
    edges[0], edges[-1] = 0, 1
    return edges


def _bins(confidence, hits, weight, n_bins, strategy):
    """(weight, sum of hits, sum of confidence, number) of each bin, and the edges.  Bin i: (edges[i], edges[i + 1]]."""
    edges = _edges(confidence, n_bins, strategy)
    at = np.searchsorted(edges[1:-1], confidence, side="left")
    sums = [np.bincount(at, w, n_bins) for w in (weight, weight * hits, weight * confidence)]
    return *sums, np.bincount(at, minlength=n_bins), edges


def _top(y_true, y_prob, labels, sample_weight):
    y, p, w = _check(y_true, y_prob, labels, sample_weight)
    best = p.argmax(axis=1)
    return p[np.arange(len(p)), best], best == y, w


def expected_calibration_error(y_true, y_prob, *, n_bins=15, strategy="uniform", labels=None, sample_weight=None):
    """Mean distance between confidence and accuracy, over bins of confidence.

    Parameters
    ----------
    y_true : array_like of shape (N,)
        Numbers of the columns of `y_prob`, or elements of `labels`.
    y_prob : array_like of shape (N, K), or (N,)
        Probabilities; with one axis, those of the second of two classes. The confidence of a row is its largest, its
        prediction the first column that has it.
    n_bins : int, default 15
        Number of bins.
    strategy : {"uniform", "quantile"}
        Bins of equal width, or of equal numbers of rows (quantiles; equal confidences are in one bin). A bin includes
        its upper edge, the first bin 0 as well.
    labels : array_like of shape (K,), optional
        Labels of the columns, such as `classes_` of an estimator.
    sample_weight : array_like of shape (N,), optional
        Weights of the rows.

    Returns
    -------
    float
        In [0, 1]: the sum over bins of (weight of the bin / weight of all) * |accuracy - mean confidence|; empty bins
        have weight 0 (Naeini et al. 2015; Guo et al. 2017).

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was received and what is allowed.

    Examples
    --------
    >>> from csoftmax.metrics import expected_calibration_error
    >>> round(expected_calibration_error([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), 4)
    0.3333
    """
    confidence, hits, w = _top(y_true, y_prob, labels, sample_weight)
    total, right, sure, _, _ = _bins(confidence, hits, w, n_bins, strategy)
    return float(np.abs(right - sure).sum() / total.sum())


def maximum_calibration_error(y_true, y_prob, *, n_bins=15, strategy="uniform", labels=None, sample_weight=None):
    """Largest distance between confidence and accuracy over the bins that are not empty.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight
        As in `expected_calibration_error`.

    Returns
    -------
    float
        In [0, 1] (Naeini et al. 2015).

    Examples
    --------
    >>> from csoftmax.metrics import maximum_calibration_error
    >>> round(maximum_calibration_error([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), 4)
    0.4
    """
    confidence, hits, w = _top(y_true, y_prob, labels, sample_weight)
    total, right, sure, _, _ = _bins(confidence, hits, w, n_bins, strategy)
    there = total > 0
    return float((np.abs(right - sure)[there] / total[there]).max())


def classwise_calibration_error(y_true, y_prob, *, n_bins=15, strategy="uniform", labels=None, sample_weight=None):
    """Calibration error of each class's probability, averaged over the classes.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight
        As in `expected_calibration_error`; the bins are those of the class's probability.

    Returns
    -------
    float
        The mean over all K classes, those that do not occur included (Kull et al. 2019).

    Examples
    --------
    >>> from csoftmax.metrics import classwise_calibration_error
    >>> round(classwise_calibration_error([0, 1], [[0.9, 0.1], [0.2, 0.8]]), 4)
    0.15
    """
    y, p, w = _check(y_true, y_prob, labels, sample_weight)
    errors = []
    for k in range(p.shape[1]):
        total, right, sure, _, _ = _bins(p[:, k], y == k, w, n_bins, strategy)
        errors.append(np.abs(right - sure).sum() / total.sum())
    return float(np.mean(errors))


def brier_score(y_true, y_prob, *, labels=None, sample_weight=None, scale_by_half="auto"):
    """Mean squared distance between the probabilities and the one-hot labels.

    Parameters
    ----------
    y_true, y_prob, labels, sample_weight
        As in `expected_calibration_error`.
    scale_by_half : {"auto", True, False}
        Whether to halve the sum over the classes; "auto": for two classes, as scikit-learn has it.

    Returns
    -------
    float
        In [0, 2], or [0, 1] halved (Brier 1950).

    Examples
    --------
    >>> from csoftmax.metrics import brier_score
    >>> round(brier_score([0, 2], [[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]), 4)
    0.15
    """
    if scale_by_half not in ("auto", True, False):
        raise ValueError(f'scale_by_half must be "auto", True or False, got {scale_by_half!r}')
    y, p, w = _check(y_true, y_prob, labels, sample_weight)
    at_label = p[np.arange(len(p)), y]
    squares = np.square(p).sum(axis=1) - np.square(at_label) + np.square(1 - at_label)
    half = p.shape[1] == 2 if scale_by_half == "auto" else scale_by_half
    return float((0.5 if half else 1.0) * (squares @ w) / w.sum())


def reliability_curve(
    y_true, y_prob, *, n_bins=15, strategy="uniform", labels=None, sample_weight=None, confidence_level=0.95
):
    """Accuracy and mean confidence of bins of confidence, with intervals.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight
        As in `expected_calibration_error`.
    confidence_level : float in (0, 1), default 0.95
        Of the intervals.

    Returns
    -------
    ReliabilityCurve
        accuracy, confidence, counts, lower, upper (ends of the interval of Clopper & Pearson 1934 for the accuracy of
        so many rows, weights aside), each of shape (n_bins,), NaN in empty bins; edges of shape (n_bins + 1,).

    Examples
    --------
    >>> from csoftmax.metrics import reliability_curve
    >>> curve = reliability_curve([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]], n_bins=2)
    >>> curve.accuracy, curve.counts
    (array([       nan, 0.66666667]), array([0, 3]))
    """
    from scipy.special import betaincinv

    if not 0 < confidence_level < 1:
        raise ValueError(f"confidence_level must be in (0, 1), got {confidence_level!r}")
    confidence, hits, w = _top(y_true, y_prob, labels, sample_weight)
    total, right, sure, counts, edges = _bins(confidence, hits, w, n_bins, strategy)
    with np.errstate(invalid="ignore"):
        accuracy, mean = np.clip(right / total, 0, 1), sure / total
    hit = accuracy * counts
    tail = (1 - confidence_level) / 2
    with np.errstate(invalid="ignore"):
        lower = np.where(hit > 0, betaincinv(np.maximum(hit, 1e-300), counts - hit + 1, tail), 0.0)
        upper = np.where(hit < counts, betaincinv(hit + 1, np.maximum(counts - hit, 1e-300), 1 - tail), 1.0)
    empty = np.isnan(accuracy)
    lower[empty] = upper[empty] = np.nan
    return ReliabilityCurve(accuracy, mean, counts, lower, upper, edges)


def plot_reliability(
    y_true,
    y_prob,
    *,
    ax=None,
    name=None,
    n_bins=15,
    strategy="uniform",
    labels=None,
    sample_weight=None,
    confidence_level=0.95,
):
    """Draw the reliability diagram: accuracy over confidence with intervals, and how the rows are spread.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight, confidence_level
        As in `reliability_curve`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; default: new axes of a new figure.
    name : str, optional
        For the legend.

    Returns
    -------
    matplotlib.axes.Axes
        What has been drawn on.
    """
    given = {"n_bins": n_bins, "strategy": strategy, "labels": labels, "sample_weight": sample_weight}
    curve = reliability_curve(y_true, y_prob, confidence_level=confidence_level, **given)
    ece = expected_calibration_error(y_true, y_prob, **given)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(figsize=(4.8, 4.8), layout="constrained").add_subplot()
    there = curve.counts > 0
    x, y = curve.confidence[there], curve.accuracy[there]
    if not any(line.get_gid() == "diagonal" for line in ax.lines):
        ax.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfectly calibrated", gid="diagonal")
    errors = np.abs([y - curve.lower[there], curve.upper[there] - y])
    label = f"{name + ': ' if name else ''}ECE {ece:.3f}"
    (line, *_) = ax.errorbar(x, y, errors, fmt="o-", markersize=4, linewidth=1, capsize=2, label=label)
    share = curve.counts / curve.counts.sum()
    widths = np.diff(curve.edges)
    ax.bar(curve.edges[:-1], share, widths, align="edge", color=line.get_color(), alpha=0.15, label="share of the rows")
    ax.set(xlabel="confidence (largest probability)", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    ax.legend(loc="upper left", fontsize="small")
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    return ax


def evaluate(model, X, y, *, calibrator=None, n_bins=15):
    """Everything about a classifier's predictions on labelled data, in one report.

    Parameters
    ----------
    model : fitted classifier
        With `predict_proba` and `classes_`. A calibrator gets the `decision_function` of
        `csoftmax.linear_model.SoftmaxRegression`, of other classifiers the logarithms of the probabilities.
    X : array-like of shape (N, D)
        Data that the model has not seen.
    y : array-like of shape (N,)
        Their labels.
    calibrator : fitted calibrator of `csoftmax.calibration`, optional
        For the figures after calibration. Default: a `TemperatureScaling` fitted on one half of the rows and
        measured on the other, and the reverse.
    n_bins : int, default 15
        Of the calibration errors.

    Returns
    -------
    Report
        ``str(report)`` is text, ``report.to_dict()`` a dict of numbers and lists, ``report.to_html(path)`` writes one
        page with plots.

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
    from ._learn.report import make_report

    return make_report(model, X, y, calibrator, n_bins)
