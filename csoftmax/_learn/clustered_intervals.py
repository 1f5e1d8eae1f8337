"""Bounds and estimates of the log partition of an output layer in lists.

Classes of the lists that are looked at are scored exactly.  With n classes in another list, whose scores have the mean
m, are at most m + r, and have at most the variance v,

    n exp(m)  <=  sum of exp(scores)  <=  n exp(m) (r^2 exp(-v / r) + v exp(r)) / (r^2 + v)

by the inequality of Jensen and by the extreme distribution of Bennett (1962).  Both hold; the second is wide.  The
estimate is a difference estimate (Cochran 1977): n exp(m) of each of these lists, which is known, and the differences
exp(score) - exp(m) of some classes, which take part independently, with known probabilities, and count as many times as
one over theirs (Horvitz & Thompson 1952).  Its variance is below that of exp(score) alone by at least what exp(m) has
itself.  Its interval is that of a normal logarithm of the part outside of the lists that were looked at: a sample that
misses a large term has a small variance as well, and an interval that is symmetric in the sum is too low then.  For the
same reason the variance is at least that of normal scores in each list, which depends on no sample.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._ops.clusters import UP, Lists
from .._ops.int8 import compute_scores
from .._ops.softmax import logsumexp
from .._ops.topk import topk
from .int8_intervals import outward, spread_of

SINGLE_DRAWS = 0.25  # inclusion probability from which each class has a random number of its own
LEAST_VARIANCE = 0.25  # of a score in a list, relative to its bound: what is likely may be far too little
LEAST_LOG_SHARE = -60.0  # of the inclusion probability, relative to the largest one: none is 0


class ClusteredInterval(NamedTuple):
    """Bounds of the log partition that are certain, and an estimate with a statistical interval.

    Attributes
    ----------
    lower, upper : ndarray of float64
        The truth, in real arithmetic, is not below `lower` and not above `upper`; the shape is that of the batch.
    estimate : ndarray of float64
        Logarithm of an unbiased estimate of the partition function, which may lie outside of all bounds; -inf where
        that is not positive. NaN without a sample, unless all lists were used.
    estimate_lower, estimate_upper : ndarray of float64
        Bounds of the truth that hold with about the confidence that was asked for, if the logarithm of the sampled
        part is normal, within the certain ones: these themselves where none of it would be left. NaN where the
        estimate is.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    estimate: NDArray[np.float64]
    estimate_lower: NDArray[np.float64]
    estimate_upper: NDArray[np.float64]


class _Query(NamedTuple):
    """The exact scores and the bounds that a query has collected."""

    lists: Lists
    x: NDArray[np.float64]
    scaled_norm: float  # of the features as the codes have them
    num_threads: Any

    def score(self, codes: Any) -> tuple[Any, Any]:
        """Exact scores of codes, and bounds of their rounding."""
        layer = self.lists.layer
        scores = compute_scores(layer.plain, self.x, layer.order[codes], self.num_threads)  # type: ignore[index]
        return scores, spread_of(layer, self.x, codes, scores, self.scaled_norm)

    def log_sum(self, values: Any) -> float:
        return float(logsumexp(values, num_threads=self.num_threads))


class _Outside(NamedTuple):
    """Bounds of the logarithm of the sum over each list with a mean, and what is likely of one of its classes."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    mean: NDArray[np.float64]  # of the scores
    log_share: NDArray[np.float64]  # root of the mean of (exp(score) - exp(mean))^2


def bound_log_partition(
    lists: Lists, x: NDArray[np.float64], n_probe: int, n_sample: int, confidence: float, rng: Any, num_threads: Any
) -> ClusteredInterval:
    """Intervals of each row of x; rng: a Generator."""
    result = np.empty((5, len(x)))
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = np.ldexp(1.0, lists.layer.exponent.astype(np.int64))
    for i, row in enumerate(x):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            scaled_norm = float(np.sqrt(np.square(row * scale).sum()) * UP + 2.0**-500)
            result[:, i] = _bound_row(_Query(lists, row, scaled_norm, num_threads), n_probe, n_sample, quantile, rng)
    return ClusteredInterval(*result)


def _bound_row(q: _Query, n_probe: int, n_sample: int, quantile: float, rng: Any) -> tuple[float, ...]:
    lists, n = q.lists, q.lists.n_lists
    outside = _bound_lists(q)
    is_used = np.zeros(len(lists.radius), np.bool_)
    is_used[n] = True
    if np.isfinite(outside.upper[lists.begin[1 : n + 1] > lists.begin[:n]]).all():
        is_used[topk(outside.upper, min(n_probe, n), num_threads=q.num_threads).indices] = True
    else:  # such as features that are not finite, for which -inf as a bias does not decide
        is_used[:] = True
    codes = lists.members(np.flatnonzero(is_used))
    scores, spread = q.score(codes)
    rest = np.flatnonzero(~is_used[:n] & (lists.begin[1 : n + 1] > lists.begin[:n]))
    lower, upper = (
        q.log_sum(np.concatenate((a, b)))
        for a, b in ((scores - spread, outside.lower[rest]), (scores + spread, outside.upper[rest]))
    )
    lower, upper = (float(a) for a in outward(lower, upper))
    if not len(rest):
        return lower, upper, q.log_sum(scores), lower, upper
    if not n_sample:
        return lower, upper, np.nan, np.nan, np.nan
    return lower, upper, *_estimate(q, scores, rest, outside, n_sample, quantile, rng, lower, upper)


def _bound_lists(q: _Query) -> _Outside:
    """Bounds of the logarithms of the sums of the lists with a mean."""
    lists, n = q.lists, q.lists.n_lists
    sizes = np.diff(lists.begin)[:n].astype(np.float64)
    largest, typical, least = lists.largest[:n], lists.typical[:n], lists.least[:n]
    norm = float(np.sqrt(np.square(q.x).sum()) * UP + 2.0**-500)
    center = compute_scores(lists.centers, q.x, None, q.num_threads)
    mean = center + typical
    of_bias = (sizes + 4) * 2.0**-52 * np.maximum(np.abs(largest), np.abs(least))
    error = norm * lists.mean_error[:n] + 2.0**-50 * (np.abs(center) + np.abs(typical)) + of_bias + 1e-300
    distance = norm * (lists.radius[:n] + lists.mean_error[:n]) + of_bias + 1e-300
    above = (distance + (largest - typical)) * UP
    around = (distance + np.maximum(largest - typical, typical - least)) * UP
    deviation = norm * np.sqrt(lists.variance[:n]) + np.sqrt(lists.bias_variance[:n])
    variance = np.minimum(np.square(deviation), np.square(around)) * UP
    log_size = np.log(np.maximum(sizes, 1))
    upper = log_size + mean + error + np.minimum(_bound_mean(above, variance), above)
    likely = norm * norm * lists.spread[:n] + np.square(center) * lists.along[:n]
    likely = np.where(sizes > 1, likely / np.maximum(2 * log_size, 1), 0) + lists.bias_variance[:n]
    log_share = mean + _log_deviation(np.maximum(likely, LEAST_VARIANCE * variance))
    return _Outside(log_size + mean - error, np.where(np.isnan(upper), np.inf, upper), mean, log_share)


def _log_deviation(v: Any) -> Any:
    """The logarithm of the root of the mean of (exp(y) - 1)^2, for normal y with mean 0 and variance v."""
    return v + 0.5 * np.log(np.maximum(np.expm1(-2 * v) - 2 * np.expm1(-1.5 * v), 2.0**-200))


def _bound_mean(r: Any, v: Any) -> Any:
    """The logarithm of the largest mean of exp(y), for y <= r with mean 0 and a variance of at most v."""
    share = v / (r * r + v)
    with np.errstate(divide="ignore"):
        return np.where(v > 0, np.logaddexp(np.log1p(-share) - v / r, np.log(share) + r), 0) * (1 + 2.0**-40) + 2.0**-40


def _estimate(
    q: _Query, scores: Any, rest: Any, outside: Any, n_sample: int, quantile: float, rng: Any, lower: Any, upper: Any
) -> tuple[float, ...]:
    """The logarithm of the estimate, and its bounds."""
    lists = q.lists
    sizes = lists.begin[rest + 1] - lists.begin[rest]
    inclusion = _choose_inclusion(outside.log_share[rest], sizes, n_sample)
    at, codes = _draw(lists.begin[rest], sizes, inclusion, rng)
    drawn = q.score(codes)[0]
    mean = outside.mean[rest]
    shift = max(scores.max(initial=-np.inf), drawn.max(initial=-np.inf), mean.max(initial=-np.inf))
    if not np.isfinite(shift):
        return (lower, lower, upper) if shift == -np.inf else (np.nan, np.nan, np.nan)
    p, means = inclusion[at], np.exp(mean - shift)
    terms = (np.exp(drawn - shift) - means[at]) / p
    known, missing = float(np.exp(scores - shift).sum()), float((sizes * means).sum() + terms.sum())
    with np.errstate(divide="ignore", over="ignore"):
        estimate = float(shift + np.log(max(known + missing, 0.0)))
        if not len(at) or missing <= 0:
            return estimate, lower, upper
        likely = (sizes * (1 - inclusion) / inclusion * np.exp(2 * (outside.log_share[rest] - shift))).sum()
        variance = max(float(((1 - p) * np.square(terms)).sum()), float(likely))
        factor = np.exp(quantile * np.sqrt(variance) / missing)
        low, high = (float(a) for a in shift + np.log([known + missing / factor, known + missing * factor]))
    if low > upper or high < lower:
        return estimate, lower, upper
    return estimate, max(low, lower), min(high, upper)


def _choose_inclusion(log_share: Any, sizes: Any, n_sample: int) -> Any:
    """Inclusion probabilities min(1, t share) of the classes of each list, whose sum over all classes is n_sample."""
    if n_sample >= sizes.sum():
        return np.ones(len(sizes))
    share = np.exp(np.maximum(log_share - log_share.max(), LEAST_LOG_SHARE))
    order = np.argsort(-share, kind="stable")
    sorted_share, sorted_sizes = share[order], sizes[order]
    before = np.concatenate(([0], np.cumsum(sorted_sizes)[:-1]))
    mass = np.cumsum((sorted_share * sorted_sizes)[::-1])[::-1]
    factors = (n_sample - before) / mass
    first = int(np.argmax(factors * sorted_share <= 1))  # lists before this one have the probability 1
    return np.minimum(share * factors[first], 1.0)


def _draw(begin: Any, sizes: Any, inclusion: Any, rng: Any) -> tuple[Any, Any]:
    """Codes that take part, each independently, and the positions of their lists.

    A list whose classes are rare has a Poisson number of draws with replacement: whether a class is among them is
    independent of the others.
    """
    single = np.flatnonzero(inclusion >= SINGLE_DRAWS)
    of_single = np.repeat(single, sizes[single])
    offset = np.arange(len(of_single)) - np.repeat(np.cumsum(sizes[single]) - sizes[single], sizes[single])
    is_taken = rng.random(len(of_single)) < inclusion[of_single]
    rare = np.flatnonzero(inclusion < SINGLE_DRAWS)
    counts = rng.poisson(-np.log1p(-inclusion[rare]) * sizes[rare])
    of_rare = np.repeat(rare, counts)
    codes = begin[of_rare] + (rng.random(len(of_rare)) * sizes[of_rare]).astype(np.int64)
    codes, first = np.unique(codes, return_index=True)
    return (
        np.concatenate((of_single[is_taken], of_rare[first])),
        np.concatenate((begin[of_single[is_taken]] + offset[is_taken], codes)),
    )
