"""Certificates of linear layers against linear programs, KKT conditions and exact rational arithmetic."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from csoftmax._cpu import binding
from csoftmax.adversarial import Certificate, certify, perturb, trades_loss_with_grad

INF = math.inf


def layer(seed, d, k):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, d)
    x[rng.random(d) < 0.3] = 0
    return rng, x, rng.normal(size=(k, d)), rng.normal(size=k)


def solve_lp(x, a, gap, low, high, norm):
    """The least norm of d with a . d >= gap and low <= x + d <= high, by HiGHS."""
    optimize = pytest.importorskip("scipy.optimize")
    d = len(x)
    if norm == 1:
        bounds = [(0, h) for h in high - x] + [(0, h) for h in x - low]
        result = optimize.linprog(np.ones(2 * d), [np.r_[-a, a]], [-gap], bounds=bounds, method="highs")
    else:
        unit, ones = np.eye(d), np.ones((d, 1))
        rows = np.vstack([np.r_[-a, 0], np.hstack([unit, -ones]), np.hstack([-unit, -ones])])
        bounds = [*zip(low - x, high - x), (0, None)]
        limits = np.r_[-gap, np.zeros(2 * d)]
        result = optimize.linprog(np.r_[np.zeros(d), 1], rows, limits, bounds=bounds, method="highs")
    return result.fun if result.status == 0 else INF


def exact_gaps(x, w, bias, y):
    """Differences of logits and of weights of class y and each other class, as fractions."""
    fx = [Fraction(v) for v in x]
    for j in range(len(w)):
        if j != y:
            a = [Fraction(w[y, i]) - Fraction(w[j, i]) for i in range(len(x))]
            gap = sum(p * q for p, q in zip(a, fx)) + Fraction(bias[y]) - Fraction(bias[j])
            yield j, a, gap


def root_above(value):
    """A fraction that is at least the square root."""
    scale = 10**80
    return Fraction(math.isqrt(int(value * scale * scale) + 1) + 1, scale)


def largest_gain(a, room, radius, norm):
    """An upper bound, exact for p = 1 and infinity, of a . d over d of a norm and with room on each side."""
    sizes = [abs(v) for v in a]
    if norm == INF:
        return sum(q * min(radius, r) for q, r in zip(sizes, room))
    if norm == 1:
        gain, left = Fraction(0), radius
        for q, r in sorted(zip(sizes, room), key=lambda pair: -pair[0]):
            gain += q * min(r, left)
            left -= min(r, left)
        return gain
    # for any level: sum (q - u) r + ||u|| radius with u = min(q, r / level)
    unit = max(sizes)
    sizes = [q / unit for q in sizes]
    low, high = 0.0, 1e12
    for _ in range(200):
        level = (low + high) / 2
        length = math.sqrt(sum(float(min(level * float(q), float(r))) ** 2 for q, r in zip(sizes, room)))
        low, high = (level, high) if length < radius else (low, level)
    u = [min(q, r / Fraction(high)) for q, r in zip(sizes, room)]
    gain = sum((q - v) * r for q, v, r in zip(sizes, u, room))
    return (gain + root_above(sum(v * v for v in u)) * radius) * unit


def test_radius_with_bounds_is_that_of_a_linear_program():
    for seed in range(40):
        rng, x, w, bias = layer(seed, *[int(v) for v in np.random.default_rng(seed).integers((1, 2), (24, 7))])
        low, high = np.zeros(len(x)), np.where(rng.random(len(x)) < 0.1, x, 1.0)
        z = w @ x + bias
        y = int(z.argmax())
        for norm in (1, INF):
            got = certify(x, w, bias=bias, norm=norm, bounds=(low, high))
            distance = {j: solve_lp(x, w[j] - w[y], z[y] - z[j], low, high, norm) for j in range(len(w)) if j != y}
            expected = min(distance.values())
            if expected == INF:
                assert got.radius == INF
                assert got.rival == -1
            else:
                np.testing.assert_allclose(got.radius, expected, rtol=1e-12)
                np.testing.assert_allclose(distance[int(got.rival)], expected, rtol=1e-12)


def test_radius_of_the_euclidean_norm_fulfils_the_kkt_conditions():
    for seed in range(60):
        rng, x, w, bias = layer(seed, int(np.random.default_rng(seed).integers(1, 40)), 4)
        high = np.where(rng.random(len(x)) < 0.2, INF, 1.0)
        z = w @ x + bias
        y = int(z.argmax())
        got = certify(x, w, bias=bias, norm=2, bounds=(0, high))
        for j in range(len(w)):
            a = w[j] - w[y]
            room = np.where(a > 0, high - x, x)
            one = certify(x, w[[y, j]], bias=bias[[y, j]], target=0, norm=2, bounds=(0, high))
            if j == y:
                continue
            with np.errstate(invalid="ignore"):
                total = np.nansum(np.abs(a) * np.where(a == 0, 0, room))
            if total < z[y] - z[j]:
                assert one.radius == INF
                continue
            # stationary points are min(level |a|, room); the level whose norm is the radius must close the gap
            low, high_level = 0.0, 1e9
            for _ in range(300):
                level = (low + high_level) / 2
                length = np.linalg.norm(np.minimum(level * np.abs(a), room))
                low, high_level = (level, high_level) if length < one.radius else (low, level)
            gain = np.abs(a) @ np.minimum(high_level * np.abs(a), room)
            np.testing.assert_allclose(gain, z[y] - z[j], rtol=1e-12, atol=1e-14)
            assert one.radius >= got.radius


def test_no_perturbation_within_the_radius_changes_the_class_in_exact_arithmetic():
    """The largest gain over the ball stays below the gap, so that every perturbation in it does."""
    for seed in range(24):
        scale = (1.0, 1e-8, 1e150, 1e-160)[seed % 4]
        dtype = (np.float64, np.float32)[seed % 2] if scale == 1 else np.float64
        _, x, w, bias = layer(seed, 1 + seed % 11, 3)
        x, w, bias = x.astype(dtype), (w * scale).astype(dtype), bias * scale
        for norm, bounds in itertools.product((1, 2, INF), (None, (0, 1))):
            got = certify(x, w, bias=bias, norm=norm, bounds=bounds)
            y = max(
                range(len(w)),
                key=lambda j: (sum(Fraction(w[j, i]) * Fraction(x[i]) for i in range(len(x))) + Fraction(bias[j]), -j),
            )
            radius = Fraction(float(got.radius)) if got.radius < INF else Fraction(10**6)
            grown = radius * (1 + Fraction(1, 10**13))
            overtakes = False
            for _, a, gap in exact_gaps(x, w, bias, y):
                room = [Fraction(10**9)] * len(x)
                if bounds:
                    room = [Fraction(v) if b > 0 else 1 - Fraction(v) for v, b in zip(x, a)]
                assert got.radius == 0 or largest_gain(a, room, radius, norm) < gap
                overtakes |= largest_gain(a, room, grown, norm) >= gap
            assert overtakes or got.radius == INF


def test_radii_of_subnormal_and_of_huge_weights_are_not_above_the_distance():
    u = 5e-324
    rng = np.random.default_rng(0)
    cases = [(np.array([[3 * u, 3 * u], [0, 0]]), np.array([1e10, 1e10]))]
    for scale in (1e-323, 1e-320, 1e-312, 1e-307, 1e-300, 1e300):
        for d in (1, 2, 9, 17):
            size = 10.0 ** rng.integers(5, 12) if scale < 1 else 1e-5
            cases.append((rng.normal(size=(3, d)) * scale, rng.normal(size=d) * size))
    for w, x in cases:
        fx = [Fraction(v) for v in x]
        y = max(range(len(w)), key=lambda j, w=w, fx=fx: sum(Fraction(p) * q for p, q in zip(w[j], fx)))
        for norm, bounds in itertools.product((1, 2, INF, 1.5, 3.0), (None, (-INF, INF))):
            if bounds and norm in (1.5, 3.0):
                continue
            radius = Fraction(float(certify(x, w, target=y, norm=norm, bounds=bounds).radius))
            for _, a, gap in exact_gaps(x, w, np.zeros(len(w)), y):
                if norm in (1.5, 3.0):  # the cube of the dual norm of 1.5; that of 3 is larger
                    assert sum(abs(v) ** 3 for v in a) * radius**3 <= gap**3
                else:
                    gain = {1: max(map(abs, a)) ** 2, 2: sum(v * v for v in a), INF: sum(map(abs, a)) ** 2}[norm]
                    assert gain * radius**2 <= gap**2
    # distances above the largest double are not infinite, and have their rival
    got = certify([1e300], [[1e-300], [0]], bias=[1e300, 0.0])
    assert got == (np.finfo(float).max, 1, 1e300)


def test_random_perturbations_of_the_radius_keep_the_class_in_exact_arithmetic():
    rng, x, w, bias = layer(3, 5, 4)
    for norm in (1, 2, INF):
        radius = Fraction(float(certify(x, w, bias=bias, norm=norm).radius))
        y = int((w @ x + bias).argmax())
        gaps = list(exact_gaps(x, w, bias, y))
        rival = w[gaps[0][0]]
        directions = np.vstack([rng.normal(size=(1000, 5)), [w[j] - w[y] for j, _, _ in gaps], [rival]])
        for direction in directions:
            d = [Fraction(v) for v in direction]
            length = {1: sum(map(abs, d)), 2: root_above(sum(v * v for v in d)), INF: max(map(abs, d))}[norm]
            for _, a, gap in gaps:
                assert gap + sum(p * q for p, q in zip(a, d)) * radius / length > 0


def test_norms_between_are_those_of_numpy():
    _, x, w, bias = layer(5, 12, 4)
    z = w @ x + bias
    y = int(z.argmax())
    for p in (1.0, 1.0625, 1.5, 2, 3.7, 50.0, INF):
        q = INF if p == 1 else 1 if p == INF else p / (p - 1)
        expected = min((z[y] - z[j]) / np.linalg.norm(w[j] - w[y], ord=q) for j in range(4) if j != y)
        got = certify(x, w, bias=bias, norm=p).radius
        np.testing.assert_allclose(got, expected, rtol=5e-12)
        assert got < expected * (1 + 1e-15)


def test_batches_threads_and_instruction_sets_have_the_same_bits():
    rng = np.random.default_rng(0)
    x, w, bias = rng.uniform(size=(70, 37)), rng.normal(size=(9, 37)), rng.normal(size=9)
    built = binding.isa()
    for norm, bounds in ((1, (0, 1)), (2, (0, 1)), (INF, (0, 1)), (INF, None), (3.0, None)):
        expected = certify(x, w, bias=bias, norm=norm, bounds=bounds)
        same = [certify(x, w, bias=bias, norm=norm, bounds=bounds, num_threads=n) for n in (1, 3)]
        rows = [certify(row, w, bias=bias, norm=norm, bounds=bounds) for row in x]
        same.append(Certificate(*map(np.array, zip(*rows))))
        try:
            for isa in binding.isa_available():
                binding.select_isa(isa)
                same.append(certify(x, w, bias=bias, norm=norm, bounds=bounds))
        finally:
            binding.select_isa(built)
        for other in same:
            for a, b in zip(expected, other):
                np.testing.assert_array_equal(a, b)


def test_special_rows():
    w = np.array([[1.0, 0.0], [0.0, 1.0]])
    x = np.array([[np.nan, 1.0], [np.inf, 0.0], [3.0, 1.0], [1.0, 1.0], [1.0, 3.0]])
    for bounds in (None, (-INF, INF), (None, None)):
        got = certify(x, w, target=[0] * 5, bounds=bounds)
        assert np.isnan(got.radius[:2]).all()
        assert np.isnan(got.margin[:2]).all()
        assert got.rival.tolist() == [-1, -1, 1, 1, 1]
        np.testing.assert_allclose(got.radius[2:], [1, 0, 0], rtol=1e-14)
        assert got.margin[2:].tolist() == [2, 0, -2]
        assert got.radius[2] < 1
    assert np.isnan(certify([1.0], [[1.0], [2.0]], bias=[-INF, 0.0]).radius)
    assert certify([0.0, 0.0], w, bias=[1.0, 1.0]) == (0, 1, 0)
    # of equal logits the first class is the default target, and the others are level with it
    assert certify([1.0, 1.0], w).rival == 1
    # one class, no features, equal weights
    assert certify([1.0], [[1.0]]) == (INF, -1, INF)
    assert np.isnan(certify([np.nan], [[1.0]]).radius)
    none = np.zeros((3, 0)), np.zeros((2, 0))
    got = certify(*none, bias=[1.0, 0.0], target=[0, 1, 0])
    assert got.radius.tolist() == [INF, 0, INF]
    assert got.rival.tolist() == [-1, 0, -1]
    assert certify([5.0], [[2.0], [2.0]], bias=[1.0, 0.0]).radius == INF
    assert certify(np.zeros((0, 2)), w).radius.shape == (0,)
    assert certify(np.ones((2, 3, 2)), w).radius.shape == (2, 3)
    # on the wall there is no room
    got = certify([0.0, 0.5], [[0.0, 0.0], [1.0, 0.0]], bias=[1.0, 0.0], bounds=(0, 0.5))
    assert got == (INF, -1, 1.0)
    assert certify([1.0, 0.0], [[1.0, 2.0], [3.0, 5.0]], target=1).radius.dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float16, "bfloat16"])
def test_a_feature_that_is_the_rounded_wall_lies_on_the_wall(dtype):
    """As numpy.clip makes it; the walls of such features are these, and no feature leaves them."""
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(3)
    low, high = np.array([-0.1, 0.1, -1e-3, -0.7, 0.0]), np.array([0.1, 0.3, 1e-3, 0.9, 1 / 3])
    x, w = rng.uniform(-0.5, 0.5, (40, 5)).astype(dtype), rng.normal(size=(4, 5)).astype(dtype)
    least, largest = low.astype(dtype), high.astype(dtype)
    x = np.minimum(np.maximum(x, least), largest)
    wide = x.astype(float)
    outside = (wide < low) | (wide > high)
    assert outside.any(axis=0).sum() >= 2
    assert not outside.all(axis=1).any()
    y = (wide @ w.astype(float).T).argmin(axis=1)
    for norm in (1, 2, INF):
        got = certify(x, w, norm=norm, bounds=(low, high))
        walls = np.minimum(low, wide), np.maximum(high, wide)
        for a, b in zip(got, certify(wide, w.astype(float), norm=norm, bounds=walls), strict=True):
            np.testing.assert_array_equal(a, b)
        for method in ("fgsm", "pgd", "exact"):
            moved = perturb(x, w, y, eps=0.2, norm=norm, method=method, bounds=(low, high))
            assert ((moved >= least) & (moved <= largest)).all()
            certify(moved, w, bounds=(low, high))
    trades_loss_with_grad(x, w, y, eps=0.1, bounds=(low, high), rng=0)
    trades_loss_with_grad(x, w, np.where(np.arange(40) % 3, y, -100), eps=0.1, bounds=(low, high), rng=0)
    beyond = x.copy()
    beyond[7, 3] = np.nextafter(largest[3], dtype(np.inf))
    with pytest.raises(ValueError, match=r"row 7, feature 3 is 0\.9\d+, outside of \(-0\.7, 0\.9\)"):
        certify(beyond, w, bounds=(low, high))
    with pytest.raises(ValueError, match=r"row 0, feature 1 is 0\.0, outside"):
        trades_loss_with_grad(np.array([[1, 0]]), np.eye(2), [0], eps=0.1, bounds=(0.5, 1.5))


def test_dtypes_and_layouts_give_the_same_distances():
    rng = np.random.default_rng(1)
    x, w = rng.integers(-8, 9, (6, 5)) / 4, rng.integers(-8, 9, (4, 5)) / 4
    expected = certify(x, w, norm=2, bounds=(-2, 2))
    wide = np.asfortranarray(np.repeat(x, 2, axis=1))[:, ::2]
    for given in (x.astype(np.float32), x.astype(np.float16), x.astype(">f8"), x.tolist(), wide):
        dtype = getattr(given, "dtype", np.dtype(float)).newbyteorder("=")
        got = certify(given, w.astype(dtype), norm=2, bounds=(np.full(5, -2), np.full((6, 5), 2.0)))
        for a, b in zip(expected, got):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "norm must be at least 1", {"norm": 0.5}),
        (ValueError, "norm must be at least 1", {"norm": np.nan}),
        (TypeError, "norm must be a real number", {"norm": "inf"}),
        (ValueError, "norm must be 1, 2 or numpy.inf", {"norm": 3, "bounds": (0, 1)}),
        (ValueError, "row 0, feature 1 is 2.0, outside", {"bounds": (0, 1)}),
        (ValueError, "low exceeds high in feature 0", {"bounds": (3, 2)}),
        (ValueError, "must not hold NaN", {"bounds": (np.nan, 2)}),
        (ValueError, "does not broadcast", {"bounds": (np.zeros(3), 2)}),
        (TypeError, "a pair", {"bounds": 3}),
        (TypeError, "a pair .* got a tuple of length 3", {"bounds": (0, 1, 2)}),
        (TypeError, "bounds: low has dtype <U1; allowed are float16", {"bounds": ("a", 2)}),
        (IndexError, "target.0. is 5", {"target": [5]}),
        (IndexError, "target.0. is -1", {"target": [-1]}),
        (TypeError, "integer labels", {"target": [[0.5, 0.5]]}),
        (ValueError, "target has shape", {"target": [0, 1]}),
        (ValueError, "bias has shape", {"bias": [0.0]}),
        (ValueError, "num_threads", {"num_threads": 0}),
        (ValueError, "w .1, 3.", {"w": np.zeros((1, 3))}),
        (TypeError, "w has dtype", {"w": np.zeros((2, 2), np.float32)}),
        (ValueError, "at least one row", {"w": np.zeros((0, 2))}),
    ],
)
def test_errors_name_the_argument(error, text, options):
    w = options.pop("w", np.array([[1.0, 0.0], [0.0, 1.0]]))
    with pytest.raises(error, match=text):
        certify(np.array([[0.5, 2.0]]), w, **options)
