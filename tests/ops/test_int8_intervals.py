"""Intervals and draws of Int8Head: they contain the truth in every case, and draws have the right distribution."""

import itertools
import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.int8 import constructed, order, score

from csoftmax.heads import Int8Head


def truth_of(x, w, bias):
    """Scores and the log partition in 60 digits."""
    with mpmath.workdps(60):
        w, x = np.asarray(w, np.float64), np.asarray(x, np.float64)
        rows = []
        for row in x:
            z = [mpmath.fdot(map(float, row), map(float, c)) + float(b) for c, b in zip(w, bias)]
            top = max(z)
            rows.append((z, top + mpmath.log(mpmath.fsum(mpmath.exp(v - top) for v in z))))
        return rows


def assert_contains(head, x, w, bias, **options):
    k = min(3, len(w))
    partition, best = head.log_partition(x, **options), head.topk_softmax(x, k, **options)
    target = np.arange(len(x)) % len(w)
    single = head.log_proba(x, target, **options)
    with mpmath.workdps(60):
        for i, (z, log_z) in enumerate(truth_of(x, w, bias)):
            assert partition.lower[i] <= log_z <= partition.upper[i]
            assert single.lower[i] <= z[target[i]] - log_z <= single.upper[i]
            for j in range(k):
                p = mpmath.exp(z[best.indices[i, j]] - log_z)
                assert best.lower[i, j] <= p <= best.upper[i, j], (best.lower[i, j], p, best.upper[i, j])
    return partition


def test_intervals_contain_the_truth():
    """On constructed layers, for every effort from none to all classes exactly, with one and two limbs of weights."""
    rng = np.random.default_rng(0)
    for k, d in ((1, 1), (17, 5), (40, 33)):
        bias = rng.standard_normal(k)
        for name, (w, x) in constructed(rng, k, d).items():
            if name.startswith("special"):
                continue
            for limbs, options in itertools.product(
                (1, 2), ({"max_exact": 0}, {"rtol": 1e-6}, {"rtol": 0, "max_exact": 10**9})
            ):
                try:
                    assert_contains(Int8Head(w, bias, limbs=limbs), x[:2], w, bias, **options)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {k} x {d}, {limbs} limbs, {options}: {error}") from None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_intervals_contain_the_truth_whatever_the_numbers(data):
    k, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32), st.floats(-1e6, 1e6, width=32))
    w = np.array(data.draw(st.lists(number, min_size=k * d, max_size=k * d)), np.float32).reshape(k, d)
    x = np.array(data.draw(st.lists(number, min_size=d, max_size=d)), np.float32)[None]
    bias = np.array(data.draw(st.lists(number, min_size=k, max_size=k)))
    effort = data.draw(st.sampled_from([0, 1, 4096]))
    assert_contains(Int8Head(w, bias, limbs=data.draw(st.sampled_from([1, 2]))), x, w, bias, max_exact=effort)


def test_a_row_of_zeros_and_a_query_that_cannot_be_coded():
    w, x = np.float32([[0], [1]]), np.float32([[6.5e-35]])
    assert_contains(Int8Head(w, np.zeros(2)), x, w, np.zeros(2), max_exact=0)
    assert_contains(Int8Head(w[:1], np.zeros(1)), x, w[:1], np.zeros(1), max_exact=4096)


def test_widths():
    """rtol holds unless max_exact is reached; a second limb of weights needs no exact score."""
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((3000, 64)).astype(np.float32), rng.standard_normal((4, 64)).astype(np.float32)
    w /= 4
    head, fine = Int8Head(w), Int8Head(w, limbs=2)
    widths = [np.ptp(head.log_partition(x, rtol=r), axis=0).max() for r in (1e-1, 1e-2, 1e-3)]
    assert all(width <= r * 1.001 for width, r in zip(widths, (1e-1, 1e-2, 1e-3)))
    rough = np.ptp(head.log_partition(x, max_exact=0), axis=0)
    single = np.ptp(fine.log_partition(x, max_exact=0), axis=0)
    assert (single < 1e-3).all()
    assert (single < rough / 50).all()
    assert (np.ptp(head.log_partition(x, rtol=0, max_exact=3000), axis=0) < 1e-9).all()


def test_special_scores():
    """Rows with NaN or infinity, and classes that are switched off."""
    w, x = np.eye(3, dtype=np.float32), np.array([[np.nan, 0, 0], [np.inf, 0, 0], [1, 2, 3]])
    head = Int8Head(w, [0, 0, -np.inf])
    bounds = head.log_partition(x)
    assert np.isnan(bounds.lower[0])
    assert np.isnan(bounds.upper[0])
    expected = np.logaddexp(1, 2)
    assert bounds.lower[2] <= expected <= bounds.upper[2]
    assert np.ptp(bounds, axis=0)[2] < 1e-5
    off = head.log_proba(x[2:], [2])
    assert off.lower[0] == off.upper[0] == -np.inf
    best = head.topk_softmax(x[2:], 3)
    assert best.lower[0, 2] == 0
    assert 0 < best.upper[0, 2] < 1e-320
    everything = Int8Head(w, np.full(3, -np.inf)).log_partition(x[2:])
    assert everything.lower[0] == everything.upper[0] == -np.inf
    tiny = Int8Head([[0.0], [-2000.0]]).topk_softmax([[1.0]], 2)
    assert tiny.lower[0, 1] == 0
    assert 0 < tiny.upper[0, 1] < 1e-320


def test_draws_have_the_distribution():
    """Chi-squared over classes, with bounds so wide that proposals are refused and refined, and temperatures."""
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    w, x = rng.standard_normal((40, 16)).astype(np.float32), rng.standard_normal((2, 16)).astype(np.float32)
    w[7] *= 30
    w[8] = np.float32(1e38) * np.eye(16, dtype=np.float32)[0]
    x[:, 0] = -np.abs(x[:, 0])
    head = Int8Head(w, limbs=1)
    for temperature in (1.0, 5.0):
        drawn = head.sample(x, 20000, temperature=temperature, rng=3)
        z = score(x, w) / temperature
        p = np.exp(z - z.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        for i in range(2):
            counts = np.bincount(drawn[i], minlength=40)
            common = p[i] * 20000 > 5
            observed = np.append(counts[common], counts[~common].sum())
            expected = np.append(p[i][common], p[i][~common].sum()) * 20000
            kept = expected > 0
            assert observed[~kept].sum() == 0
            assert stats.chisquare(observed[kept], expected[kept] * observed.sum() / expected.sum()).pvalue > 1e-4


def test_draws():
    rng = np.random.default_rng(4)
    w, x = rng.standard_normal((300, 8)).astype(np.float32), rng.standard_normal((3, 8)).astype(np.float32)
    head = Int8Head(w)
    assert head.sample(x, rng=0).shape == (3,)
    assert head.sample(x[0], rng=0).shape == ()
    assert head.sample(x, 5, rng=0).shape == (3, 5)
    assert head.sample(x, 0, rng=0).shape == (3, 0)
    assert head.sample(x, (2, 5), rng=0).reshape(3, 10).tolist() == head.sample(x, 10, rng=0).tolist()
    assert head.sample(x[0], (), rng=0) == head.sample(x[0], rng=0)
    assert head.sample(x, (2, 0), rng=0).shape == (3, 2, 0)
    assert head.sample(x, 5, rng=0).tolist() == head.sample(x, 5, rng=np.random.default_rng(0)).tolist()
    assert head.sample(x, 2, temperature=0).tolist() == [[b, b] for b in order(score(x, w), 1)[:, 0]]
    bad = x.copy()
    bad[1, 0] = np.nan
    generator = np.random.default_rng(5)
    with pytest.raises(ValueError, match="row 1 of x has NaN"):
        head.sample(bad, rng=generator)
    assert generator.random() == np.random.default_rng(5).random()
    with pytest.raises(ValueError, match=r"only -inf"):
        Int8Head(w, np.full(300, -np.inf)).sample(x)
    for error, message, call in (
        (ValueError, "temperature must be", lambda: head.sample(x, temperature=-1)),
        (TypeError, "size must be an int", lambda: head.sample(x, 1.5)),
        (ValueError, "rtol must be", lambda: head.log_partition(x, rtol=-1)),
        (ValueError, "max_exact must be at least 0", lambda: head.log_partition(x, max_exact=-1)),
        (ValueError, "target has shape", lambda: head.log_proba(x, [0])),
        (IndexError, r"target\[2\] is 300", lambda: head.log_proba(x, [0, 1, 300])),
    ):
        with pytest.raises(error, match=message):
            call()


def test_extreme_rows_biases_and_temperatures():
    """Bounds are infinite only where scores are, draws need no finite bounds, and NumPy does not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        head = Int8Head([[1e200], [2e200]])
        found = head.log_partition([[1e-200]])
        expected = np.logaddexp(1, 2)
        assert found.lower[0] <= expected <= found.upper[0]
        assert np.ptp(found) < 1e-9
        assert set(head.sample([[1e-200]], 99, rng=0)[0].tolist()) == {0, 1}
        # the sum of |w x| overflows, the score does not
        wide = Int8Head([[1.5e308, -1.5e308], [0.0, 0.0]])
        assert set(wide.sample([[1.0, 1.0]], 99, rng=0)[0].tolist()) == {0, 1}
        for max_exact in (0, 9):
            bounds = Int8Head([[1e300], [1.0]], [-np.inf, 0]).log_partition([[1.0]], max_exact=max_exact)
            assert bounds.lower[0] <= 1 <= bounds.upper[0]
        ends = Int8Head(np.zeros((2, 1)), [1e308, -1e308])
        for target, truth in ((0, 0.0), (1, -np.inf)):
            bounds = ends.log_proba([[1.0]], [target])
            assert bounds.lower[0] <= truth
            assert bounds.upper[0] >= max(truth, -np.finfo(float).max)
        rng = np.random.default_rng(6)
        w, x = rng.standard_normal((60, 8)).astype(np.float32), rng.standard_normal((3, 8)).astype(np.float32)
        best = [[b, b] for b in order(score(x, w), 1)[:, 0]]
        for temperature in (1e-310, 5e-324, 1e-30):
            assert Int8Head(w).sample(x, 2, temperature=temperature, rng=0).tolist() == best
        off = np.where(np.arange(60) < 50, -np.inf, 0.0)
        drawn = Int8Head(w, off).sample(x, 400, temperature=np.inf, rng=0)
        assert all(set(row.tolist()) == set(range(50, 60)) for row in drawn)


def test_no_temperature_draws_from_scores_without_mass():
    w = np.eye(3)
    for bias, x, problem in (
        (None, [1.0, np.nan, 0.0], "NaN"),
        (None, [np.inf, 1.0, 1.0], r"NaN"),
        ([np.inf, 0, 0], [1.0, 1.0, 1.0], r"\+inf"),
        ([-np.inf] * 3, [1.0, 1.0, 1.0], "only -inf"),
    ):
        for temperature in (0, 1e-310, 1, np.inf):
            with pytest.raises(ValueError, match=f"row 0 of x has {problem} among its scores"):
                Int8Head(w, bias).sample([x], 2, temperature=temperature, rng=0)
