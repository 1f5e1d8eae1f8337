"""Reliability curve: accuracy and confidence of bins, with confidence intervals; public as `csoftmax.metrics`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.numbers import as_number
from .calibration_error import Bins, Strategy, bin_predictions

FEW_ROWS = 10  # bins with fewer rows are drawn pale: their intervals are long and say little
TINY = 1e-300  # in place of a parameter of 0, at which the incomplete beta function has no inverse


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
        (n_bins + 1,). counts are numbers of rows, without those of weight 0. lower and upper are the ends of the exact
        binomial interval (Clopper & Pearson 1934) for the number of rows that the weights in the bin stand for: their
        sum if all weights are whole numbers, else the effective number ``sum(w)**2 / sum(w**2)`` (Kish 1965).

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
    check_confidence_level(confidence_level)
    return make_curve(bin_predictions(y_true, y_prob, n_bins, strategy, labels, sample_weight), confidence_level)


def check_confidence_level(level: float) -> None:
    """Refuse a level that is not a number between 0 and 1."""
    if not 0 < as_number("confidence_level", level) < 1:
        raise ValueError(f"confidence_level must be in (0, 1), got {level!r}")


def make_curve(bins: Bins, confidence_level: float) -> ReliabilityCurve:
    """Divide the sums of the bins, and add the intervals."""
    with np.errstate(invalid="ignore"):
        accuracy, mean = np.clip(bins.hits / bins.weight, 0, 1), bins.confidence / bins.weight
    lower, upper = find_interval(accuracy * bins.sizes, bins.sizes, confidence_level)
    empty = np.isnan(accuracy)
    lower[empty] = upper[empty] = np.nan
    return ReliabilityCurve(accuracy, mean, bins.counts, lower, upper, bins.edges)


def find_interval(
    hits: NDArray[np.float64], n: NDArray[np.float64], level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the exact binomial interval (Clopper & Pearson 1934) of hits among n rows, which need not be whole."""
    from scipy.special import betaincinv

    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):
        lower = np.where(hits > 0, betaincinv(np.maximum(hits, TINY), n - hits + 1, tail), 0.0)
        upper = np.where(hits < n, betaincinv(hits + 1, np.maximum(n - hits, TINY), 1 - tail), 1.0)
    return lower, upper
