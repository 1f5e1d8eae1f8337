"""Smooth calibration error and the smooth reliability curve (Błasiok & Nakkiran 2024); public as `csoftmax.metrics`.

Confidences f_i in [0, 1] with residuals r_i = w_i (y_i - f_i) / sum(w), and the Gaussian kernel K_s of bandwidth s,
reflected at 0 and 1 again and again:

    smECE_s = integral over [0, 1] of abs(g_s),  g_s(t) = sum over i of r_i K_s(t, f_i)

smECE_s falls with s; the smooth calibration error is the s at which smECE_s = s.

The reflected kernel is the heat kernel of an insulated rod, whose eigenfunctions are cosines (method of images):

    K_s(t, f) = 1 + 2 sum over m >= 1 of exp(-(pi m s)^2 / 2) cos(pi m t) cos(pi m f)

so g_s is a short cosine series with the coefficients c_m = sum r_i cos(pi m f_i), of which about 3 / s matter. All of
them come from one pass over the rows: moments of the residuals in cells of equal width, up to the seventh, and one
cosine or sine transform for each (Taylor's series of the cosine within a cell). Transforms give g_s and its
antiderivative on a grid; between two nodes the antiderivative is their cubic Hermite interpolant, whose extrema are the
zeros of g_s, so that the integral of abs(g_s) needs no quadrature. Time O(n + (1 / s) log(1 / s)), and no order of rows
or threads matters beyond rounding.

Errors relative to the result: moments and cut-off 3e-14, interpolation 1e-9 with 32 steps per bandwidth, 2e-7 with the
8 steps of bandwidths below 0.001 (4 steps: 6e-7), against mpmath. A result below `MIN_BANDWIDTH` is exact where the
sums of the residuals of equal confidences have one sign; else the true one is between it and `MIN_BANDWIDTH`.

Times for random confidences, one thread, without the checks of the arguments: 10^4 rows 1 ms, 10^6 rows 62 ms.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .probabilities import take_top_labels

MAX_DECAY = 39.0  # terms below exp(-39) = 1e-17 are left out
MOMENTS = 8  # with four cells per mode, Taylor's remainder is 3e-14
CELLS_PER_MODE = 4
STEPS_PER_BANDWIDTH, SMALL_BANDWIDTH, SMALL_STEPS_PER_BANDWIDTH = 32, 2.0**-10, 8
COARSE_BANDWIDTHS = (2.0**-6, 2.0**-9, 2.0**-12, 2.0**-15, 2.0**-17)  # each has its coefficients, made when needed
MIN_BANDWIDTH = COARSE_BANDWIDTHS[-1]
MIN_INTERVAL_BANDWIDTH = 2.0**-8  # confidence intervals look no closer: 200 draws take 0.1 s
TOLERANCE, RELATIVE_TOLERANCE = 1e-13, 1e-12  # of the bandwidth
SIGN_ROUNDING = 1e-15  # of the sum of masses, whose absolute values add up to 1 at most

Array = NDArray[np.float64]


class SmoothCurve(NamedTuple):
    """Accuracy as a smooth function of the confidence, where there are rows."""

    confidence: Array
    accuracy: Array
    bandwidth: float


def _count_modes(bandwidth: float) -> int:
    """The last term of the cosine series that matters."""
    return math.ceil(math.sqrt(2 * MAX_DECAY) / (math.pi * bandwidth))


def _transform(f: Array, r: Array, modes: int) -> Array:
    """Coefficients c_m = sum r_i cos(pi m f_i) for m = 0 to `modes`."""
    from scipy.fft import dct, dst, next_fast_len

    cells = next_fast_len(CELLS_PER_MODE * (modes + 1), real=True)
    cell = np.minimum((f * cells).astype(np.intp), cells - 1)
    offset = f - (cell + 0.5) / cells
    # In units of 1 / cells, so that powers neither grow nor vanish.
    offset *= cells
    frequency = np.pi * np.arange(modes + 1) / cells
    c, factor, power = np.zeros(modes + 1), np.ones(modes + 1), r.copy()
    for k in range(MOMENTS):
        moment = np.bincount(cell, power, cells)
        if k % 2 == 0:
            term = dct(moment, 2)[: modes + 1] / 2
        else:
            term = np.concatenate([[0.0], dst(moment, 2)[:modes] / 2])
        c += (-1) ** ((k + 1) // 2) * factor * term
        factor *= frequency / (k + 1)
        power *= offset
    return c


class _Smoother:
    """The smoothed sum of point masses r_i at f_i, for bandwidths from large to small."""

    def __init__(self, f: Array, r: Array) -> None:
        self._f, self._r = f, r
        self._coefficients: dict[float, Array] = {}

    def _damp(self, bandwidth: float) -> Array:
        """Coefficients of the cosine series of g_s."""
        level = next((s for s in COARSE_BANDWIDTHS if s <= bandwidth), MIN_BANDWIDTH)
        if level not in self._coefficients:
            self._coefficients[level] = _transform(self._f, self._r, _count_modes(level))
        c = self._coefficients[level]
        c = c[: min(len(c), _count_modes(bandwidth) + 1)]
        damped: Array = c * np.exp(-0.5 * np.square(np.pi * bandwidth * np.arange(len(c))))
        return damped

    def evaluate(self, bandwidth: float, steps: int) -> tuple[Array, Array]:
        """g_s and its antiderivative at j / steps, for j = 0 to `steps`."""
        from scipy.fft import dct, dst

        c = self._damp(bandwidth)
        padded = np.zeros(steps + 1)
        padded[: len(c)] = c
        g: Array = dct(padded, 1)
        integral = c[0] * np.arange(steps + 1) / steps
        padded[1 : len(c)] /= np.pi * np.arange(1, len(c))
        integral[1:-1] += dst(padded[1:-1], 1)
        return g, integral

    def measure(self, bandwidth: float) -> float:
        """The integral of abs(g_s)."""
        steps = _choose_steps(bandwidth)
        g, integral = self.evaluate(bandwidth, steps)
        return _integrate_absolute(g / steps, np.diff(integral))


def _choose_steps(bandwidth: float) -> int:
    """How many steps of a grid show g_s."""
    steps_per_bandwidth = STEPS_PER_BANDWIDTH if bandwidth >= SMALL_BANDWIDTH else SMALL_STEPS_PER_BANDWIDTH
    return 1 << max(6, math.ceil(math.log2(steps_per_bandwidth / bandwidth)))


def _integrate_absolute(g: Array, area: Array) -> float:
    """Integral of abs(g) of the parabola in each step that has the values of g at its ends and the given area.

    The unit of length is the step.
    """
    left, right = g[:-1], g[1:]
    linear = 6 * area - 4 * left - 2 * right
    square = 3 * (left + right) - 6 * area
    root = np.sqrt(np.maximum(np.square(linear) - 4 * square * left, 0))
    # Both zeros without cancellation; those outside [0, 1] are moved to its ends, where they change nothing.
    q = -0.5 * (linear + np.copysign(root, linear))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zeros = np.stack([q / square, left / q])
    zeros = np.sort(np.clip(np.nan_to_num(zeros, nan=0.0, posinf=1.0, neginf=0.0), 0, 1), axis=0)

    def integrate(t: Array) -> Array:
        return t * (left + t * (linear / 2 + t * (square / 3)))

    first, second = integrate(zeros[0]), integrate(zeros[1])
    return float((np.abs(first) + np.abs(second - first) + np.abs(area - second)).sum())


def _has_one_sign(r: Array) -> bool:
    """Whether masses have one sign, up to rounding: then smECE_s is the absolute value of their sum for every s."""
    return float(np.abs(r).sum() - abs(r.sum())) <= SIGN_ROUNDING


def _add_equal(f: Array, r: Array) -> Array:
    """The masses of the distinct points."""
    order = np.argsort(f, kind="stable")
    f = f[order]
    first = np.flatnonzero(np.concatenate([[True], f[1:] != f[:-1]]))
    return np.add.reduceat(r[order], first)


def find_smooth_error(f: Array, hits: NDArray[np.bool_], w: Array) -> float:
    """The bandwidth s at which smECE_s = s."""
    from scipy.optimize import brentq

    r = w * (hits - f) / w.sum()
    total = abs(float(r.sum()))
    if _has_one_sign(r):
        return total
    smoother = _Smoother(f, r)
    high = 1.0  # smECE_s <= 1 for every s
    low = high / 8
    while (value := smoother.measure(low)) < low:
        if low == MIN_BANDWIDTH:
            return max(value, total)
        if high == 1 / 64 and _has_one_sign(_add_equal(f, r)):  # a constant prediction, for example
            return total
        high, low = low, max(low / 8, MIN_BANDWIDTH)
    return float(brentq(lambda s: smoother.measure(s) - s, low, high, xtol=TOLERANCE, rtol=RELATIVE_TOLERANCE))


def find_smooth_influence(f: Array, hits: NDArray[np.bool_], w: Array, error: float) -> Array:
    """Derivative of the smooth error with respect to the mass r_i at each confidence f_i.

    smECE_s changes by the integral of sign(g_s) K_s(t, f_i), and the s at which smECE_s = s by that divided by
    1 - d smECE_s / ds.
    """
    r = w * (hits - f) / w.sum()
    if _has_one_sign(r):
        return np.full(len(f), np.sign(r.sum()))
    s = min(max(error, MIN_INTERVAL_BANDWIDTH), 1.0)
    smoother, steps = _Smoother(f, r), _choose_steps(s)
    sign = np.sign(smoother.evaluate(s, steps)[0]) / steps
    sign[[0, -1]] /= 2  # the ends of a trapezoidal sum
    grid = np.linspace(0, 1, steps + 1)
    change, _ = _Smoother(grid, sign).evaluate(s, steps)
    slope = (smoother.measure(1.01 * s) - smoother.measure(0.99 * s)) / (0.02 * s)
    return np.interp(f, grid, change) / (1 - min(slope, 0.0))


def draw_smooth_chance(f: Array, variance: Array, error: float, draws: int) -> float:
    """Share of calibrated models with the confidences f whose smooth error on such rows is at least `error`.

    variance: of each row's mass r_i. The masses of the rows in a cell are drawn as one normal number. smECE_s falls
    with s, so that an error is at least s if and only if smECE_s is; below the least bandwidth, a few are missed.
    """
    s = min(max(error, MIN_INTERVAL_BANDWIDTH), 1.0)
    steps = _choose_steps(s)
    cell = np.minimum((f * steps).astype(np.intp), steps - 1)
    spread, middle = np.sqrt(np.bincount(cell, variance, steps)), (np.arange(steps) + 0.5) / steps
    middle, spread = middle[spread > 0], spread[spread > 0]
    rng = np.random.default_rng(0)
    return float(np.mean([_Smoother(middle, rng.normal(0, spread)).measure(s) >= error for _ in range(draws)]))


def find_smooth_curve(
    f: Array, hits: NDArray[np.bool_], w: Array, bandwidth: float, min_bandwidth: float = 1 / 64, steps: int = 512
) -> SmoothCurve:
    """Kernel regression of the hits on the confidence, between the first and the last of the confidences."""
    s = max(bandwidth, min_bandwidth)
    share = w / w.sum()
    density, _ = _Smoother(f, share).evaluate(s, steps)
    correct, _ = _Smoother(f, share * hits).evaluate(s, steps)
    t = np.linspace(0, 1, steps + 1)
    # Where the density is a millionth of the uniform one, the quotient would show rows that are far away.
    shown = (t >= f.min() - 1 / steps) & (t <= f.max() + 1 / steps) & (density > 1e-6)
    accuracy = np.clip(np.divide(correct, density, out=np.full(steps + 1, np.nan), where=density > 1e-6), 0, 1)
    return SmoothCurve(t[shown], accuracy[shown], s)


def smooth_calibration_error(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Smooth calibration error of the top label: distance between confidence and accuracy under a kernel, without bins.

    Parameters
    ----------
    y_true, y_prob, labels, sample_weight
        As in `expected_calibration_error`. The confidence of a row is its largest probability.

    Returns
    -------
    float
        The error, in [0, 1] (Błasiok & Nakkiran, "Smooth ECE: Principled Reliability Diagrams via Kernel Smoothing",
        2024).

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    With the confidences f, the hits y (1 where the prediction is right) and the Gaussian kernel K of bandwidth s,
    reflected at 0 and 1, smECE(s) is the integral over t in [0, 1] of abs(mean((y - f) K(t, f))). It falls with s, and
    the error is the one s with smECE(s) = s: nothing has to be chosen, and small changes of the probabilities change
    the error little, while a binned error jumps when a row changes its bin. The time is O(n + (1 / s) log(1 / s)). The
    relative error is below 1e-8, for results below 0.001 below 1e-6; results below 8e-6 have an absolute error of
    8e-6, unless all confidences err in the same direction, where the result is exact.

    Examples
    --------
    >>> from csoftmax.metrics import smooth_calibration_error
    >>> round(smooth_calibration_error([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.9, 0.1]]), 4)
    0.2001
    """
    return find_smooth_error(*take_top_labels(y_true, y_prob, labels, sample_weight))
