"""Certain intervals of an int8 output layer: its log partition, its probabilities, and exact draws from it.

The codes bound each score, ``z - E <= score <= z + E``, so that the sums of ``exp(z - E)`` and of ``exp(z + E)`` bound
the partition function.  Classes that widen the interval most are scored exactly until it is narrow enough.  Exact
scores have bounds as well, those of their rounding, so that the intervals hold in real arithmetic.

Only functions of csoftmax and exact or elementary operations of NumPy occur: NumPy's exp and log differ between CPUs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._ops.int8 import Layer, compute_bounds, compute_scores
from .._ops.sample import sample
from .._ops.softmax import logsumexp, softmax
from .._ops.topk import topk

FIRST_EXACT, GROWTH = 64, 4  # classes that are scored exactly before the interval is looked at again
DRAWING_WIDTH = 0.5  # of the log partition: draws are accepted with a probability of at least exp(-0.5)
OUTWARD = 2.0**-40  # relative: sums, exponentials and quotients err by less than 2^-48
LEAST = 5e-324  # the smallest positive float64
GREATEST = float(np.finfo(np.float64).max)
LN2 = 0.6931471805599453


class Interval(NamedTuple):
    """Bounds that are certain.

    Attributes
    ----------
    lower, upper : ndarray of float64
        The truth, in real arithmetic, is not below `lower` and not above `upper`; the shape is that of the quantity.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]


class TopKInterval(NamedTuple):
    """Certain bounds of the probabilities of the k most probable classes.

    Attributes
    ----------
    lower, upper : ndarray of float64 of shape (..., k)
        The truth, in real arithmetic, is not below `lower` and not above `upper`.
    indices : ndarray of int64 of shape (..., k)
        The classes: exactly the k most probable ones, best first, of equal ones the lowest index first.
    """

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    indices: NDArray[np.int64]


class _Bounds(NamedTuple):
    """Bounds of the scores of all classes for one query, and of the log partition, not yet rounded outward."""

    lower: NDArray[np.float64]
    upper: NDArray[np.float64]
    log_lower: float
    log_upper: float
    shift: float = 0.0  # what was subtracted from the scores before they were divided by the temperature
    temperature: float = 1.0

    def scale(self, scores: Any) -> Any:
        """Scores as the bounds have them."""
        with np.errstate(over="ignore", under="ignore"):
            return (scores - self.shift) / self.temperature


def _exp(x: Any) -> Any:
    """exp(x) for x <= 0, the same bits everywhere: the quotient of the two probabilities of the logits x and 0."""
    p = softmax(np.stack((x, np.zeros_like(x)), axis=-1))
    return p[..., 0] / p[..., 1]


def _importance(z: Any, bounds: Any) -> Any:
    """About the logarithm of exp(z) sinh(bound); only the order matters."""
    fraction, exponent = np.frexp(np.where(bounds > 0, bounds, 1.0))
    log_bound = LN2 * (exponent - 1 + 2 * (fraction - 0.5))
    large = np.where(bounds > 1, bounds - LN2, log_bound)
    return np.where(bounds > 0, z + large, -np.inf)


def spread_of(layer: Layer, x: Any, ids: Any, scores: Any, size: float) -> Any:
    """Bounds of the rounding errors of exact scores; ids: codes of the layer; size: the norm of the scaled query."""
    with np.errstate(invalid="ignore"):  # a row of zeros, and a query whose size is not known
        norm = layer.norm[ids].astype(np.float64) * size
    unknown = ~np.isfinite(norm)
    if unknown.any():
        w = layer.w[ids[unknown] if layer.order is None else layer.order[ids[unknown]]]
        if layer.w.dtype == np.uint16:  # bfloat16
            w = (w.astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # squares would leave the range earlier
            norm[unknown] = (np.abs(w.astype(np.float64)) * np.abs(x)).sum(axis=1)
    spread = layer.n_features * 2.0**-51 * norm + 2.0**-50 * np.abs(scores) + 1e-300
    return np.where(np.isfinite(scores), np.where(np.isnan(spread), np.inf, spread), 0.0)


def _tighten(
    layer: Layer,
    x: Any,
    rtol: float,
    max_exact: int,
    num_threads: Any,
    known: Any = None,
    temperature: float = 1.0,
) -> _Bounds:
    """Score classes exactly, at most `max_exact` besides the known ones, until the log partition is narrow enough.

    A temperature below 1 divides what the scores are above the largest finite upper bound, so that none overflows.
    """
    z, bounds, size = compute_bounds(layer, x, num_threads)
    shift = 0.0

    def scaled(a: Any, b: Any) -> tuple[Any, Any]:
        with np.errstate(over="ignore", under="ignore"):
            return (a - b - shift) / temperature, (a + b - shift) / temperature

    def score(ids: Any) -> None:
        exact = compute_scores(layer, x, ids, num_threads)
        lower[ids], upper[ids] = scaled(exact, spread_of(layer, x, ids, exact, size))

    if temperature < 1:
        with np.errstate(over="ignore"):
            highest = z + bounds
        shift = float(highest.max(initial=-np.inf, where=np.isfinite(highest)))
        shift = shift if np.isfinite(shift) else 0.0
    lower, upper = scaled(z, bounds)

    if known is not None and len(known):
        score(known)
        bounds[known] = 0.0
    limit, done, order = min(max_exact, layer.n_classes), 0, None
    while True:
        log_lower, log_upper = (float(logsumexp(a, num_threads=num_threads)) for a in (lower, upper))
        if log_upper == log_lower or log_upper - log_lower <= rtol or done == limit:
            return _Bounds(lower, upper, log_lower, log_upper, shift, temperature)
        if order is None:
            order = topk(_importance(z, bounds), limit, num_threads=num_threads).indices
        count = min(limit, max(FIRST_EXACT, GROWTH * done))
        score(order[done:count])
        done = count


def outward(log_lower: Any, log_upper: Any) -> tuple[Any, Any]:
    """Bounds of a logarithm, rounded outward."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (
            log_lower - OUTWARD * np.maximum(1.0, np.where(np.isfinite(log_lower), np.abs(log_lower), 1.0)),
            log_upper + OUTWARD * np.maximum(1.0, np.where(np.isfinite(log_upper), np.abs(log_upper), 1.0)),
        )


def bound_log_partition(
    layer: Layer, x: NDArray[np.float64], rtol: float, max_exact: int, num_threads: Any
) -> Interval:
    """Intervals of the log partition of each row of x."""
    logs = np.empty((2, len(x)))
    for i, row in enumerate(x):
        found = _tighten(layer, row, rtol, max_exact, num_threads)
        logs[:, i] = found.log_lower, found.log_upper
    return Interval(*outward(*logs))


def _bound_log_proba(found: _Bounds, ids: Any) -> tuple[Any, Any]:
    """Bounds of the log-probabilities of classes whose scores are known: a score over the other bound of the sum."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = outward(found.lower[ids] - found.log_upper, found.upper[ids] - found.log_lower)
    is_finite = np.isfinite(found.upper[ids]) & np.isfinite(found.log_lower)
    high = np.where(is_finite & np.isneginf(high), -GREATEST, high)  # an overflow: the truth is finite
    low = np.where(np.isneginf(found.lower[ids]), -np.inf, low)
    high = np.where(np.isneginf(found.upper[ids]), -np.inf, high)
    return low, np.minimum(high, 0.0)


def bound_log_proba(
    layer: Layer, x: NDArray[np.float64], target: NDArray[np.int64], rtol: float, max_exact: int, num_threads: Any
) -> Interval:
    """Intervals of the log-probability of one class for each row of x."""
    result = np.empty((2, len(x)))
    for i, row in enumerate(x):
        ids = target[i : i + 1]
        found = _tighten(layer, row, rtol, max_exact, num_threads, ids)
        result[:, i] = [bound[0] for bound in _bound_log_proba(found, ids)]
    return Interval(*result)


def bound_best(
    layer: Layer, x: NDArray[np.float64], best: NDArray[np.int64], rtol: float, max_exact: int, num_threads: Any
) -> TopKInterval:
    """Intervals of the probabilities of some classes for each row of x, the best ones."""
    lower, upper = np.empty(best.shape), np.empty(best.shape)
    for i, row in enumerate(x):
        ids = best[i]
        found = _tighten(layer, row, rtol, max_exact, num_threads, ids)
        low, high = _bound_log_proba(found, ids)
        lower[i] = np.maximum(_exp(low) * (1 - OUTWARD) - 4 * LEAST, 0.0)
        upper[i] = np.minimum(_exp(high) * (1 + OUTWARD) + 4 * LEAST, 1.0)
    return TopKInterval(lower, upper, best)


def draw(
    layer: Layer, x: NDArray[np.float64], count: int, temperature: float, generator: Any, num_threads: Any
) -> NDArray[np.int64]:
    """Draw `count` classes for each row of x from its softmax: (N, count).

    A class is proposed from the upper bounds, and accepted with the probability exp(score - upper bound) (rejection
    sampling, von Neumann 1951).  Its exact score is needed only if the uniform number falls between the bounds.
    """
    result = np.empty((len(x), count), np.int64)
    for i, row in enumerate(x):
        if count:
            draws = None if temperature == np.inf else _draw_row(layer, row, count, temperature, generator, num_threads)
            if draws is None:
                scores = compute_scores(layer, row, None, num_threads)
                check_mass(float(topk(scores, 1).values[0]), i)
                draws = sample(scores, size=count, temperature=temperature, rng=generator, num_threads=num_threads)
            result[i] = draws
    return result


def check_mass(top: float, number: int) -> None:
    """Refuse a row from whose scores nothing can be drawn; top: the largest one, NaN above all."""
    if not np.isfinite(top):
        problem = "NaN" if np.isnan(top) else "+inf" if top > 0 else "only -inf"
        raise ValueError(f"row {number} of x has {problem} among its scores, from which nothing can be drawn")


def _draw_row(
    layer: Layer, x: Any, count: int, temperature: float, generator: Any, num_threads: Any
) -> NDArray[np.int64] | None:
    """Draws for one query, or None where the bounds are infinite or NaN, so that only exact scores decide."""
    found = _tighten(layer, x, DRAWING_WIDTH, layer.n_classes, num_threads, None, temperature)
    lower, upper = found.lower, found.upper
    if not np.isfinite(upper.max()):
        return None
    drawn, waiting = np.empty(count, np.int64), np.arange(count)
    while len(waiting):  # ends: an open class has its exact score from then on
        ids = np.asarray(sample(upper, size=len(waiting), rng=generator, num_threads=num_threads))
        uniform = generator.random(len(waiting))
        is_taken = uniform < _exp(lower[ids] - upper[ids])
        open_ids = np.unique(ids[~is_taken])
        if len(open_ids):
            exact = found.scale(compute_scores(layer, x, open_ids, num_threads))
            proposed = upper[open_ids]
            at = np.searchsorted(open_ids, ids[~is_taken])
            is_taken[~is_taken] = uniform[~is_taken] < _exp(np.minimum(exact - proposed, 0.0))[at]
            lower[open_ids] = upper[open_ids] = np.minimum(exact, proposed)
        drawn[waiting[is_taken]] = ids[is_taken]
        waiting = waiting[~is_taken]
    return drawn
