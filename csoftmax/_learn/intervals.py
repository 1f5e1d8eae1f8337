"""95 % confidence intervals of a report's figures."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .calibration_error import Bins, count_effective_rows
from .reliability import find_interval
from .smooth_error import draw_smooth_chance, find_smooth_influence

LEVEL = 0.95
DRAWS, MIN_DRAWS = 2000, 200  # bootstrap samples
MAX_DRAWN = 4_000_000  # numbers drawn for all samples of a figure, unless there are more cells than that allows

Array = NDArray[np.float64]


def find_prediction_intervals(
    labels: NDArray[np.intp], predicted: NDArray[np.intp], weight: Array, classes: int
) -> dict[str, list[float]]:
    """Intervals of figures of the predicted classes, by the names under which a report has them."""
    return {
        "accuracy_interval": find_accuracy_interval(labels == predicted, weight),
        "macro_f1_interval": find_macro_f1_interval(labels, predicted, weight, classes),
    }


def find_accuracy_interval(hits: NDArray[np.bool_], weight: Array) -> list[float]:
    """Exact binomial interval of the accuracy, for the number of rows that the weights stand for."""
    n, w = count_effective_rows(weight), weight / weight.max()
    low, high = find_interval(n * np.asarray((w * hits).sum() / w.sum()), np.asarray(n), LEVEL)
    return [float(low), float(high)]


def find_mean_interval(values: Array, weight: Array, at: float) -> list[float] | None:
    """Student's interval around `at`, not below 0, with the standard error of the weighted mean; None for one row."""
    from scipy.special import stdtrit

    n, w = count_effective_rows(weight), weight / weight.max()
    if n <= 1:
        return None
    mean = float(values @ w / w.sum())
    variance = float(np.square(values - mean) @ w / w.sum()) / (n - 1)
    reach = float(stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt(variance)
    return [max(0.0, at - reach), at + reach]


def find_ece_interval(bins: Bins, confidence: Array, hits: NDArray[np.bool_], weight: Array) -> list[float]:
    """Basic bootstrap interval (Davison & Hinkley 1997) of a binned error, whose rows keep their bins.

    The error is a sum of absolute values, which noise makes larger: draws around the measured gaps are on average as
    far above the error as that is above the true one, and the basic interval takes this off. The mean gap of a bin
    is drawn as normal with its estimated variance. Near 0 that is not enough: the interval begins at 0 if 1 in 20
    calibrated models has as large an error on such rows.
    """
    filled = bins.weight > 0
    sums, sizes = bins.weight[filled], bins.sizes[filled]
    at = np.searchsorted(bins.edges[1:-1], confidence, side="left")
    signed = (bins.hits - bins.confidence)[filled] / sums
    squares = np.bincount(at, weight * np.square(hits - confidence), len(filled))[filled] / sums
    p = bins.confidence[filled] / sums  # a bin of rows that all hit, or all miss, is not certain of it
    spread = np.maximum(squares - np.square(signed), p * (1 - p) / (sizes + 1)) / np.maximum(sizes - 1, 1)
    noise = np.random.default_rng(0).normal(size=(DRAWS, len(sums)))
    share = sums / sums.sum()
    error, draws = np.abs(signed) @ share, np.abs(signed + noise * np.sqrt(spread)) @ share
    low, high = 2 * error - np.quantile(draws, [(1 + LEVEL) / 2, (1 - LEVEL) / 2])
    calibrated = np.abs(noise * np.sqrt(p * (1 - p) / sizes)) @ share
    if np.mean(calibrated >= error) > 1 - LEVEL:
        low = 0.0
    return [max(0.0, float(low)), min(1.0, max(float(error), float(high)))]


def find_smooth_ece_interval(
    error: float, confidence: Array, hits: NDArray[np.bool_], weight: Array
) -> list[float] | None:
    """Interval of the smooth error by its derivative with respect to the rows' residuals (delta method).

    It begins at 0 if 1 in 20 calibrated models has as large an error on such rows.
    """
    influence = find_smooth_influence(confidence, hits, weight, error)
    ends = find_mean_interval(influence * (hits - confidence), weight, error)
    if ends is None:
        return None
    share = weight / weight.sum()
    variance = share * confidence * (1 - confidence) / count_effective_rows(weight)
    is_chance = draw_smooth_chance(confidence, variance, error, MIN_DRAWS) > 1 - LEVEL
    return [0.0 if is_chance else ends[0], min(1.0, ends[1])]


def find_macro_f1_interval(
    labels: NDArray[np.intp], predicted: NDArray[np.intp], weight: Array, classes: int
) -> list[float]:
    """Percentile bootstrap interval (Efron 1979) of the macro F1: rows are drawn from the cells of the confusions."""
    cells, cell = np.unique(labels * classes + predicted, return_inverse=True)
    true, guess = np.divmod(cells, classes)
    share = np.bincount(cell, weight / weight.sum())
    rows = max(1, round(count_effective_rows(weight)))
    rng, scores = np.random.default_rng(0), []
    for _ in range(max(MIN_DRAWS, min(DRAWS, MAX_DRAWN // len(cells)))):
        counts = rng.multinomial(rows, share / share.sum()).astype(np.float64)
        both = np.bincount(true, counts, classes) + np.bincount(guess, counts, classes)
        occurs = both > 0
        right = np.bincount(true, counts * (true == guess), classes)
        scores.append(float((2 * right[occurs] / both[occurs]).mean()))
    low, high = np.quantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]
