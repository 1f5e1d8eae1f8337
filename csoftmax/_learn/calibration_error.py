"""Calibration errors in bins of confidence, and the Brier score; public as `csoftmax.metrics`."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.numbers import check_count, check_integer
from .parts.bins import bin_parts, mean_square_parts
from .parts.lazy import is_lazy
from .probabilities import check, take_top_labels

MAX_WHOLE = 2.0**53
STRATEGIES = ("uniform", "quantile")
Strategy = Literal["uniform", "quantile"]


class Bins(NamedTuple):
    """Sums over the rows of each bin; bin i holds the confidences in (edges[i], edges[i + 1]]."""

    weight: NDArray[Any]
    hits: NDArray[Any]  # weight of the correctly predicted rows
    confidence: NDArray[Any]  # weighted
    counts: NDArray[Any]
    edges: NDArray[Any]
    sizes: NDArray[Any]  # number of rows that the weights stand for

    def gaps(self) -> NDArray[np.float64]:
        """Distance between accuracy and mean confidence, times the weight of the bin."""
        return np.abs(self.hits - self.confidence)


def count_effective_rows(weight: NDArray[np.float64]) -> float:
    """Number of rows that weights stand for.

    Their sum if all are whole numbers, because a weight of 2 counts as the row twice; else their effective number,
    (sum w)^2 / sum w^2 (Kish 1965), on which their unit has no influence.
    """
    return float(_count_in_groups(weight, np.zeros(len(weight), np.intp), 1)[0])


def _count_in_groups(weight: NDArray[np.float64], groups: NDArray[np.intp], n_groups: int) -> NDArray[np.float64]:
    """Number of rows that the weights of each group stand for; all weights together decide by which rule."""
    if _has_whole_numbers(weight):
        return np.asarray(np.bincount(groups, weight, n_groups), np.float64)
    weight = weight / weight.max()  # their squares neither overflow nor vanish
    squares = np.bincount(groups, np.square(weight), n_groups)
    total = np.bincount(groups, weight, n_groups)
    return np.divide(np.square(total), squares, out=np.zeros(n_groups), where=squares > 0)


def _has_whole_numbers(weight: NDArray[np.float64]) -> bool:
    """Whether weights can be numbers of rows; beyond 2^53 every float is whole, and none is meant so."""
    return bool((weight == np.round(weight)).all() and weight.max() <= MAX_WHOLE)


def _find_quantiles(
    confidence: NDArray[np.float64], weight: NDArray[np.float64], shares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """`numpy.quantile` of a sample in which each confidence occurs as many times as its weight says.

    Weights that are not all whole numbers are scaled to a mean of 1.
    """
    if not _has_whole_numbers(weight):
        weight = weight / weight.mean()
    if np.allclose(weight, 1, rtol=1e-12, atol=0):
        return np.quantile(confidence, shares)
    order = np.argsort(confidence, kind="stable")
    x, ends = confidence[order], np.cumsum(weight[order])
    position = shares * (ends[-1] - 1)
    below = np.floor(position)
    low, high = (x[np.minimum(np.searchsorted(ends, at, side="right"), len(x) - 1)] for at in (below, below + 1))
    t = position - below  # then NumPy's own rule, so that the result has its bits
    return np.where(t < 0.5, low + (high - low) * t, high - (high - low) * (1 - t))


def _choose_edges(
    confidence: NDArray[np.float64], weight: NDArray[np.float64], n_bins: int, strategy: Strategy
) -> NDArray[np.float64]:
    """Edges of the bins, from 0 to 1."""
    shares = np.linspace(0, 1, n_bins + 1)
    if strategy == "uniform":
        return shares
    edges = _find_quantiles(confidence, weight, shares)
    edges[0], edges[-1] = 0, 1
    return edges


def _check_strategy(strategy: Any) -> None:
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {strategy!r}")


def fill_bins(
    confidence: NDArray[np.float64],
    hits: NDArray[np.bool_],
    weight: NDArray[np.float64],
    n_bins: int,
    strategy: Strategy,
) -> Bins:
    """Sort the rows into bins of confidence."""
    n_bins = check_count("n_bins", n_bins, 1)
    _check_strategy(strategy)
    edges = _choose_edges(confidence, weight, n_bins, strategy)
    at = np.searchsorted(edges[1:-1], confidence, side="left")
    return Bins(
        np.bincount(at, weight, n_bins),
        np.bincount(at, weight * hits, n_bins),
        np.bincount(at, weight * confidence, n_bins),
        np.bincount(at, minlength=n_bins),
        edges,
        _count_in_groups(weight, at, n_bins),
    )


def bin_predictions(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    n_bins: int,
    strategy: Strategy,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> Bins:
    """Bins of the largest probability of each row."""
    if is_lazy(y_prob) or is_lazy(y_true):
        return _bin_lazily(y_true, y_prob, n_bins, strategy, labels, sample_weight)[0]
    return fill_bins(*take_top_labels(y_true, y_prob, labels, sample_weight), n_bins, strategy)


def _bin_lazily(
    y_true: Any,
    y_prob: Any,
    n_bins: int,
    strategy: Strategy,
    labels: ArrayLike | None,
    sample_weight: Any,
    *,
    by_class: bool = False,
) -> list[Bins]:
    """Bins of collections of Dask: sums of all parts, each rounded once."""
    n_bins = check_count("n_bins", n_bins, 1)
    _check_strategy(strategy)
    if strategy == "quantile":
        raise ValueError(
            "strategy='quantile' needs all rows in one order, which collections of Dask do not have: pass a sample of "
            "the rows in memory, such as y_true[::100].compute(), or strategy='uniform'"
        )
    edges = np.linspace(0, 1, n_bins + 1)
    found = bin_parts(y_true, y_prob, labels, sample_weight, edges, MAX_WHOLE, by_class=by_class)
    return [Bins(*bins[:4], edges, bins.sizes) for bins in found]


def _square_gaps(bins: Bins, debiased: bool) -> NDArray[np.float64]:
    """Squared distance between accuracy and mean confidence of each bin, or its debiased estimate."""
    filled = bins.weight > 0
    accuracy, gap = (
        np.divide(a, bins.weight, out=np.zeros(len(filled)), where=filled) for a in (bins.hits, bins.gaps())
    )
    if not debiased:
        return np.square(gap)
    enough = bins.sizes > 1
    spread = np.divide(accuracy * (1 - accuracy), bins.sizes - 1, out=np.zeros(len(filled)), where=enough)
    return np.where(enough, np.square(gap) - spread, 0)


def expected_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    n_bins: int = 15,
    norm: Literal[1, 2] = 1,
    strategy: Strategy = "uniform",
    debiased: bool = False,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Expected calibration error: mean distance between confidence and accuracy over bins of confidence.

    Parameters
    ----------
    y_true : array_like of shape (N,)
        True classes: column indices of `y_prob` (integers, or floats that are whole numbers), or elements of
        `labels`. Without `labels`, K different labels that are not such indices belong to the columns in sorted order,
        as in scikit-learn.
    y_prob : array_like of shape (N, K), or (N,)
        Probabilities; with one axis, those of the second of two classes. The confidence of a row is its largest
        probability, its prediction the first column that holds it. Rows must sum to 1 to within 1e-5 (float16 and
        bfloat16: 4 eps), and values outside [0, 1] by no more than that are clipped: rounding does not matter.
    n_bins : int, default 15
        Number of bins.
    norm : {1, 2}, default 1
        1: mean of the distances. 2: root of the mean of their squares.
    strategy : {"uniform", "quantile"}, default "uniform"
        Bins of equal width, or of equal numbers of rows (quantiles; equal confidences share a bin). A bin includes its
        upper edge, and the first bin also includes 0.
    debiased : bool, default False
        Whether to subtract, with ``norm=2``, what the chance in the labels adds to the squares.
    labels : array_like of shape (K,), optional
        Labels of the columns, such as `classes_` of an estimator.
    sample_weight : array_like of shape (N,), optional
        Weights of the rows; a weight of 2 counts as the row twice.

        All three may be collections of Dask, in the same parts of the rows: sums are then exact, and the result has the
        same bits for any parts. Quantiles need all rows in one order, and are refused.

    Returns
    -------
    float
        The error, in [0, 1]: with the share s of a bin in the total weight, its accuracy a and its mean confidence c,
        the sum over the bins of s abs(a - c) (Naeini et al. 2015; Guo et al. 2017), or the root of the sum of
        s (a - c)^2. Empty bins do not count.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed; ``debiased=True`` needs ``norm=2``.

    Notes
    -----
    Even a perfectly calibrated model has accuracies that differ from its confidences by chance, so that the error is
    too large by an amount that grows with the number of bins and falls with the number of rows. The debiased error is
    the root of the sum of s ((a - c)^2 - a (1 - a) / (n - 1)), where n is the number of rows of the bin (Bröcker 2012;
    Ferro & Fricker 2012; Kumar, Liang & Ma 2019): the subtracted term estimates the variance of a without bias. A sum
    below 0 means that no error can be seen, and gives 0. Bins of one row say nothing about their variance; they
    contribute 0. With weights that are all whole numbers, n is their sum; with others, the effective number
    ``sum(w)**2 / sum(w**2)`` (Kish 1965), and quantiles scale them to a mean of 1.

    Examples
    --------
    >>> from csoftmax.metrics import expected_calibration_error
    >>> round(expected_calibration_error([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), 4)
    0.3333
    >>> y, p = [1, 1, 0, 1], [0.9, 0.9, 0.9, 0.9]
    >>> round(expected_calibration_error(y, p, norm=2), 4), expected_calibration_error(y, p, norm=2, debiased=True)
    (0.15, 0.0)
    """
    if check_integer("norm", norm, "1 or 2") not in (1, 2):
        raise ValueError(f"norm must be 1 or 2, got {norm!r}")
    if not isinstance(debiased, bool | np.bool_):
        raise TypeError(f"debiased must be True or False, got {debiased!r}")
    if debiased and norm != 2:
        raise ValueError(f"debiased=True needs norm=2, got norm={norm!r}: only the squared error can be debiased so")
    bins = bin_predictions(y_true, y_prob, n_bins, strategy, labels, sample_weight)
    if norm == 1:
        return float(bins.gaps().sum() / bins.weight.sum())
    square = float(bins.weight @ _square_gaps(bins, bool(debiased)) / bins.weight.sum())
    return max(square, 0.0) ** 0.5


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
    bins = bin_predictions(y_true, y_prob, n_bins, strategy, labels, sample_weight)
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
    if is_lazy(y_prob) or is_lazy(y_true):
        every = _bin_lazily(y_true, y_prob, n_bins, strategy, labels, sample_weight, by_class=True)
        return float(np.mean([bins.gaps().sum() / bins.weight.sum() for bins in every]))
    y, p, w = check(y_true, y_prob, labels, sample_weight)
    errors = []
    for k in range(p.shape[1]):
        bins = fill_bins(p[:, k], y == k, w, n_bins, strategy)
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
    scale_by_half : {"auto", True, False}, default "auto"
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
    if is_lazy(y_prob) or is_lazy(y_true):
        mean, columns = mean_square_parts(y_true, y_prob, labels, sample_weight)
        return (0.5 if (columns == 2 if scale_by_half == "auto" else scale_by_half) else 1.0) * mean
    y, p, w = check(y_true, y_prob, labels, sample_weight)
    at_label = p[np.arange(len(p)), y]
    squares = np.square(p).sum(axis=1) - np.square(at_label) + np.square(1 - at_label)
    half = p.shape[1] == 2 if scale_by_half == "auto" else scale_by_half
    return float((0.5 if half else 1.0) * (squares @ w) / w.sum())
