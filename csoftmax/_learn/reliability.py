"""Calibration errors, Brier score, reliability curve and diagram; public as `csoftmax.metrics`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .labels import check_indices, indices_of

STRATEGIES = ("uniform", "quantile")
Strategy = Literal["uniform", "quantile"]


class ReliabilityCurve(NamedTuple):
    """Result of `reliability_curve`: one element for each bin, NaN in empty bins except for counts and edges.

    Attributes
    ----------
    accuracy : ndarray of shape (n_bins,)
        Share of correct predictions.
    confidence : ndarray of shape (n_bins,)
        Mean confidence.
    counts : ndarray of int, shape (n_bins,)
        Number of rows.
    lower, upper : ndarray of shape (n_bins,)
        Ends of the confidence interval of the accuracy.
    edges : ndarray of shape (n_bins + 1,)
        Edges of the bins.
    """

    accuracy: NDArray[np.float64]
    confidence: NDArray[np.float64]
    counts: NDArray[np.int64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    edges: NDArray[np.float64]


class _Bins(NamedTuple):
    """Sums over the rows of each bin; bin i holds the confidences in (edges[i], edges[i + 1]]."""

    weight: NDArray[Any]
    hits: NDArray[Any]  # weight of the correctly predicted rows
    confidence: NDArray[Any]  # weighted
    counts: NDArray[Any]
    edges: NDArray[Any]

    def gaps(self) -> NDArray[np.float64]:
        """Distance between accuracy and mean confidence, times the weight of the bin."""
        return np.abs(self.hits - self.confidence)


def _check_probabilities(y_prob: ArrayLike, rows: int) -> NDArray[np.float64]:
    """Probabilities of shape (N, K) in float64."""
    p = np.asarray(as_native(y_prob, "y_prob"))
    if p.dtype.kind not in "fiub" and p.dtype.name != "bfloat16":
        raise TypeError(f"y_prob must hold probabilities, got dtype {p.dtype}")
    p = p.astype(np.float64)
    if p.ndim == 1:  # the probabilities of the second of two classes
        p = np.column_stack([1 - p, p])
    if p.ndim != 2 or len(p) != rows:
        raise ValueError(f"y_prob must have shape ({rows}, K), got {p.shape}")
    if rows == 0 or p.shape[1] == 0:
        raise ValueError(f"y_prob is empty: shape {p.shape}")
    wrong = np.argwhere(~((p >= 0) & (p <= 1)))
    if len(wrong):
        raise ValueError(f"y_prob[{wrong[0][0]}, {wrong[0][1]}] is {p[tuple(wrong[0])]}; probabilities are in [0, 1]")
    return p


def _check_true_labels(y: NDArray[Any], labels: ArrayLike | None, k: int) -> NDArray[Any]:
    """Column of y_prob that each label belongs to."""
    if labels is not None:
        labels = np.asarray(as_native(labels, "labels"))
        if labels.shape != (k,) or len(np.unique(labels)) != k:
            raise ValueError(f"labels must be {k} different labels, one for each column of y_prob, got {labels!r}")
        indices, bad = indices_of(y, labels)
        if len(bad):
            raise ValueError(f"y_true[{bad[0]}] is {y[bad[0]]!r}, which is not in labels")
        return indices
    if y.dtype.kind == "b":
        if k != 2:
            raise ValueError(f"y_true holds bools, the labels of two classes, but y_prob has {k} columns")
        y = y.astype(np.int64)
    return check_indices("y_true", y, k, ", or labels must be given")


def _check(
    y_true: ArrayLike, y_prob: ArrayLike, labels: ArrayLike | None, sample_weight: ArrayLike | None
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Columns of the labels, probabilities (N, K), weights."""
    y = np.asarray(as_native(y_true, "y_true"))
    if y.ndim != 1:
        shapes = f"y_true has shape {y.shape}, y_prob {np.shape(y_prob)}"
        if np.ndim(y_prob) == 1 and y.ndim == 2:
            raise ValueError(f"{shapes}: the labels come first, then the probabilities")
        raise ValueError(f"y_true must have one axis, got shape {y.shape}")
    p = _check_probabilities(y_prob, len(y))
    indices = _check_true_labels(y, labels, p.shape[1])
    if sample_weight is None:
        return indices, p, np.ones(len(y))
    w = np.asarray(as_native(sample_weight, "sample_weight"), np.float64)
    if w.shape != y.shape or not (np.isfinite(w).all() and (w >= 0).all()) or not w.any():
        raise ValueError("sample_weight must have one number for each row, finite, at least 0 and not all of them 0")
    return indices, p, w


def _choose_edges(confidence: NDArray[np.float64], n_bins: int, strategy: Strategy) -> NDArray[np.float64]:
    """Edges of the bins, from 0 to 1."""
    if not isinstance(n_bins, int | np.integer) or isinstance(n_bins, bool) or n_bins < 1:
        raise ValueError(f"n_bins must be an int of at least 1, got {n_bins!r}")
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {strategy!r}")
    if strategy == "uniform":
        return np.linspace(0, 1, n_bins + 1)
    edges = np.quantile(confidence, np.linspace(0, 1, n_bins + 1))
    edges[0], edges[-1] = 0, 1
    return edges


def _fill_bins(
    confidence: NDArray[np.float64],
    hits: NDArray[np.bool_],
    weight: NDArray[np.float64],
    n_bins: int,
    strategy: Strategy,
) -> _Bins:
    """Sort the rows into bins of confidence."""
    edges = _choose_edges(confidence, n_bins, strategy)
    at = np.searchsorted(edges[1:-1], confidence, side="left")
    return _Bins(
        np.bincount(at, weight, n_bins),
        np.bincount(at, weight * hits, n_bins),
        np.bincount(at, weight * confidence, n_bins),
        np.bincount(at, minlength=n_bins),
        edges,
    )


def _bin_predictions(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    n_bins: int,
    strategy: Strategy,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> _Bins:
    """Bins of the largest probability of each row."""
    y, p, w = _check(y_true, y_prob, labels, sample_weight)
    predicted = p.argmax(axis=1)
    return _fill_bins(p[np.arange(len(p)), predicted], predicted == y, w, n_bins, strategy)


def expected_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Expected calibration error: mean distance between confidence and accuracy over bins of confidence.

    Parameters
    ----------
    y_true : array_like of shape (N,)
        True classes: column indices of `y_prob`, or elements of `labels`.
    y_prob : array_like of shape (N, K), or (N,)
        Probabilities; with one axis, those of the second of two classes. The confidence of a row is its largest
        probability, its prediction the first column that holds it.
    n_bins : int, default 15
        Number of bins.
    strategy : {"uniform", "quantile"}
        Bins of equal width, or of equal numbers of rows (quantiles; equal confidences share a bin). A bin includes its
        upper edge, and the first bin also includes 0.
    labels : array_like of shape (K,), optional
        Labels of the columns, such as `classes_` of an estimator.
    sample_weight : array_like of shape (N,), optional
        Weights of the rows.

    Returns
    -------
    float
        The error, in [0, 1]: the sum over the bins of (weight of the bin / total weight) * abs(accuracy - mean
        confidence), with weight 0 for empty bins (Naeini et al. 2015; Guo et al. 2017).

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> from csoftmax.metrics import expected_calibration_error
    >>> round(expected_calibration_error([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), 4)
    0.3333
    """
    bins = _bin_predictions(y_true, y_prob, n_bins, strategy, labels, sample_weight)
    return float(bins.gaps().sum() / bins.weight.sum())


def maximum_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Maximum calibration error: largest distance between confidence and accuracy over the bins that are not empty.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight
        As in `expected_calibration_error`.

    Returns
    -------
    float
        The error, in [0, 1] (Naeini et al. 2015).

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> from csoftmax.metrics import maximum_calibration_error
    >>> round(maximum_calibration_error([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), 4)
    0.4
    """
    bins = _bin_predictions(y_true, y_prob, n_bins, strategy, labels, sample_weight)
    filled = bins.weight > 0
    return float((bins.gaps()[filled] / bins.weight[filled]).max())


def classwise_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Class-wise calibration error: that of each class's probability, averaged over the classes.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight
        As in `expected_calibration_error`; the bins are those of the class's probability.

    Returns
    -------
    float
        The mean over all K classes, including classes that do not occur (Kull et al. 2019).

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> from csoftmax.metrics import classwise_calibration_error
    >>> round(classwise_calibration_error([0, 1], [[0.9, 0.1], [0.2, 0.8]]), 4)
    0.15
    """
    y, p, w = _check(y_true, y_prob, labels, sample_weight)
    errors = []
    for k in range(p.shape[1]):
        bins = _fill_bins(p[:, k], y == k, w, n_bins, strategy)
        errors.append(bins.gaps().sum() / bins.weight.sum())
    return float(np.mean(errors))


def brier_score(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    scale_by_half: bool | Literal["auto"] = "auto",
) -> float:
    """Brier score: mean squared distance between the probabilities and the one-hot labels.

    Parameters
    ----------
    y_true, y_prob, labels, sample_weight
        As in `expected_calibration_error`.
    scale_by_half : {"auto", True, False}
        Whether to halve the sum over the classes; "auto" halves it for two classes, as scikit-learn does.

    Returns
    -------
    float
        The score, in [0, 2], or in [0, 1] if halved (Brier 1950).

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

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
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> ReliabilityCurve:
    """Accuracy and mean confidence of each bin of confidence, with confidence intervals.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight
        As in `expected_calibration_error`.
    confidence_level : float in (0, 1), default 0.95
        Level of the intervals.

    Returns
    -------
    ReliabilityCurve
        accuracy, confidence, counts, lower and upper of shape (n_bins,), NaN in empty bins; edges of shape
        (n_bins + 1,). lower and upper are the ends of the exact binomial interval (Clopper & Pearson 1934) for the
        number of rows in the bin; weights change the accuracy but not that number.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

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
    bins = _bin_predictions(y_true, y_prob, n_bins, strategy, labels, sample_weight)
    counts = bins.counts
    with np.errstate(invalid="ignore"):
        accuracy, mean = np.clip(bins.hits / bins.weight, 0, 1), bins.confidence / bins.weight
    hits = accuracy * counts
    tail = (1 - confidence_level) / 2
    with np.errstate(invalid="ignore"):
        lower = np.where(hits > 0, betaincinv(np.maximum(hits, 1e-300), counts - hits + 1, tail), 0.0)
        upper = np.where(hits < counts, betaincinv(hits + 1, np.maximum(counts - hits, 1e-300), 1 - tail), 1.0)
    empty = np.isnan(accuracy)
    lower[empty] = upper[empty] = np.nan
    return ReliabilityCurve(accuracy, mean, counts, lower, upper, bins.edges)


def plot_reliability(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    ax: Any = None,
    name: str | None = None,
    n_bins: int = 15,
    strategy: Strategy = "uniform",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    confidence_level: float = 0.95,
) -> Any:
    """Draw a reliability diagram: accuracy over confidence with intervals, and the share of rows in each bin.

    Parameters
    ----------
    y_true, y_prob, n_bins, strategy, labels, sample_weight, confidence_level
        As in `reliability_curve`.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; default: those of a new figure.
    name : str, optional
        Name of the model in the legend.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Examples
    --------
    >>> from matplotlib.figure import Figure
    >>> from csoftmax.metrics import plot_reliability
    >>> ax = plot_reliability([0, 1, 1], [0.2, 0.7, 0.9], ax=Figure().add_subplot(), name="model")
    >>> ax.get_xlabel()
    'confidence (largest probability)'
    """
    given: dict[str, Any] = {"n_bins": n_bins, "strategy": strategy, "labels": labels, "sample_weight": sample_weight}
    curve = reliability_curve(y_true, y_prob, confidence_level=confidence_level, **given)
    ece = expected_calibration_error(y_true, y_prob, **given)
    if ax is None:
        import matplotlib.pyplot as plt

        ax = plt.figure(figsize=(4.8, 4.8), layout="constrained").add_subplot()
    filled = curve.counts > 0
    x, y = curve.confidence[filled], curve.accuracy[filled]
    if not any(line.get_gid() == "diagonal" for line in ax.lines):
        ax.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="perfectly calibrated", gid="diagonal")
    errors = np.abs([y - curve.lower[filled], curve.upper[filled] - y])
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
