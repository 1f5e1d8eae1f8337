"""The smooth calibration error against its definition: mpmath, sums over all rows, and properties."""

import itertools
import math

import mpmath
import numpy as np
import pytest

from csoftmax import metrics
from csoftmax._learn import smooth_error

IMAGES = range(-9, 10)  # of the reflected kernel; enough for bandwidths up to 1


def smooth_by_definition(t, f, r, s):
    """g(t) = sum r_i K(t, f_i) with the images of f_i beyond 0 and 1, in float64."""
    points = np.array([image for k in IMAGES for image in (2 * k + f, 2 * k - f)])
    kernel = np.exp(-0.5 * ((t[:, None, None] - points) / s) ** 2) / (s * math.sqrt(2 * math.pi))
    return (kernel.sum(axis=1) * r).sum(axis=1)


def measure_exactly(f, r, s):
    """The integral of abs(g) by mpmath: g is a sum of densities, its antiderivative a sum of distributions."""
    s, centres = mpmath.mpf(s), []
    for x, residual in zip(map(mpmath.mpf, f), map(mpmath.mpf, r)):
        images = [sign * x + 2 * k for k in IMAGES for sign in (1, -1)]
        centres += [(c, residual) for c in images if -14 * s < c < 1 + 14 * s]

    def g(t):
        return mpmath.fsum(residual * mpmath.npdf(t, c, s) for c, residual in centres)

    def antiderivative(t):
        return mpmath.fsum(residual * mpmath.ncdf(t, c, s) for c, residual in centres)

    grid = np.linspace(0, 1, max(400, round(20 / float(s))))
    values = smooth_by_definition(grid, np.asarray(f), np.asarray(r), float(s))
    cuts, far = [mpmath.mpf(0)], np.abs(values).max() * 1e-40
    seen = np.flatnonzero(values)
    for i, j in itertools.pairwise(seen):
        if values[i] > 0 > values[j] or values[i] < 0 < values[j]:
            middle = mpmath.mpf((grid[i] + grid[j]) / 2)  # good enough where g vanishes between distant points
            is_far = min(abs(values[i]), abs(values[j])) < far
            cuts.append(middle if is_far else mpmath.findroot(g, (grid[i], grid[j]), solver="anderson", tol=1e-40))
    at = [antiderivative(t) for t in [*cuts, mpmath.mpf(1)]]
    return mpmath.fsum(abs(b - a) for a, b in itertools.pairwise(at))


def draw(n, seed, kind="uniform"):
    rng = np.random.default_rng(seed)
    f = rng.random(n) if kind == "uniform" else 1 - rng.random(n) ** 4 * 0.05
    return f, rng.random(n) < np.clip(f + 0.2 * np.sin(9 * f), 0, 1)


def call(f, hits):
    """The error of top labels with these confidences: the other class has the rest, or shares it."""
    k = 4
    p = np.column_stack([f, *[(1 - f) / (k - 1)] * (k - 1)])
    return metrics.smooth_calibration_error(np.where(hits, 0, 1), p)


@pytest.mark.parametrize("n", [2, 7, 31])
@pytest.mark.parametrize("s", [0.003, 0.11, 1.0])
def test_integral_against_mpmath(n, s):
    f, hits = draw(n, n)
    r = (hits - f) / n
    with mpmath.workdps(30):
        exact = measure_exactly(f, r, s)
        error = abs(smooth_error._Smoother(f, r).measure(s) / exact - 1)
    assert error < 1e-8


@pytest.mark.parametrize("kind", ["uniform", "certain"])
@pytest.mark.parametrize("n", [2, 5, 15, 33])
def test_fixed_point_against_mpmath(n, kind):
    """The result is the bandwidth at which the exact integral is the bandwidth."""
    f, hits = draw(n, n + 1, kind)
    f = np.maximum(f, 0.26)  # the top of four labels
    s = call(f, hits)
    with mpmath.workdps(30):
        exact = measure_exactly(f, (hits - f) / n, s)
    assert abs(exact / s - 1) < 1e-8


def test_many_rows_against_sums_over_all_rows():
    f, hits = draw(500, 0)
    r = (hits - f) / 500
    t = (np.arange(1000) + 0.5) / 1000
    for s in (0.02, 0.2):
        expected = np.abs(smooth_by_definition(t, f, r, s)).mean()  # midpoint rule
        assert smooth_error._Smoother(f, r).measure(s) == pytest.approx(expected, rel=1e-5)


def test_coefficients_are_those_of_the_rows():
    f, hits = draw(500, 3)
    f[:4] = 0, 1, 0.5, np.nextafter(1, 0)
    r = (hits - f) / 500
    for modes in (1, 10, 1000):
        expected = np.cos(np.pi * np.arange(modes + 1)[:, None] * f) @ r
        damping = np.exp(-smooth_error.MAX_DECAY * (np.arange(modes + 1) / modes) ** 2)
        error = np.abs(smooth_error._transform(f, r, modes) - expected) * damping
        assert error.max() < 1e-13 * np.abs(r).sum()


def test_smooth_error_of_simple_cases():
    error = metrics.smooth_calibration_error
    assert error([0, 1], [0.0, 1.0]) == 0
    assert error([1, 0], [0.0, 1.0]) == 1
    # all rows err in the same direction: the distance of the means, for every bandwidth
    assert error([1] * 5, [0.9] * 5) == pytest.approx(0.1, rel=1e-12)
    tiny = [1 - 1e-9, 1 - 1e-7, 1 - 3e-8]
    assert error([1, 1, 1], tiny) == pytest.approx(np.mean(1 - np.array(tiny)), rel=1e-12)
    assert error([0], [[1.0]]) == 0  # one class
    # nearly perfect, and errors in both directions within less than the smallest bandwidth
    f, hits = 1 - np.arange(1, 10**5 + 1) * 1e-11, np.ones(10**5, bool)
    hits[77] = False
    assert 0 <= call(f, hits) <= smooth_error.MIN_BANDWIDTH * 1.5


def test_smooth_error_is_continuous_where_the_binned_error_jumps():
    y = [1, 1, 1, 0] * 10
    below, above = 0.6 - 1e-9, 0.6 + 1e-9
    p, q = np.tile([below, above, 0.9, 0.75], 10), np.tile([above, below, 0.9, 0.75], 10)
    r = np.tile([below, below, 0.9, 0.6 - 1e-9], 10)
    t = np.tile([below, below, 0.9, 0.6 + 1e-9], 10)
    smooth, binned = metrics.smooth_calibration_error, metrics.expected_calibration_error
    assert smooth(y, p) == pytest.approx(smooth(y, q), abs=1e-8)
    assert smooth(y, r) == pytest.approx(smooth(y, t), abs=1e-8)
    assert abs(binned(y, r) - binned(y, t)) > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_smooth_error_is_between_its_bounds(seed):
    """At least the distance of the means, at most the mean distance; and the order of rows does not matter."""
    f, hits = draw(300, seed)
    f = np.maximum(f, 0.26)
    error = call(f, hits)
    assert abs(np.mean(hits - f)) - 1e-12 <= error <= np.mean(np.abs(hits - f)) + 1e-12
    order = np.random.default_rng(seed).permutation(300)
    assert call(f[order], hits[order]) == pytest.approx(error, rel=1e-10)
    assert call(f, hits) == error


def test_smooth_error_of_calibrated_probabilities_falls_with_the_rows():
    rng = np.random.default_rng(0)
    errors = []
    for n in (300, 3000, 30_000):
        f = 0.26 + 0.74 * rng.random(n)
        errors.append(call(f, rng.random(n) < f))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_smooth_curve_is_the_kernel_regression():
    f, hits = draw(200, 5)
    w = np.random.default_rng(0).random(200)
    curve = smooth_error.find_smooth_curve(f, hits, w, 0.05)
    density = smooth_by_definition(curve.confidence, f, w, 0.05)
    expected = smooth_by_definition(curve.confidence, f, w * hits, 0.05) / density
    assert np.allclose(curve.accuracy, np.clip(expected, 0, 1), atol=1e-9)
