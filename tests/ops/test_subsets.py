"""subset_logsumexp and subset_marginals: mpmath, enumeration, special values, segments, bits."""

import itertools
import sys

import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits, looped
from helpers.signals import seconds_to_stop
from oracles.subsets import subset_sums

import csoftmax
from csoftmax import Segments, subset_logsumexp, subset_marginals
from csoftmax._cpu import binding

# elements, size of the subsets, scale
CASES = (
    (2, 1, 1),
    (3, 2, 1),
    (7, 3, 0),
    (10, 3, 50),
    (15, 14, 5),
    (31, 15, 20),
    (33, 2, 300),
    (5, 2, 1e4),
    (5, 3, 1e8),
    (40, 39, 3),
)


def check_row(x, k, bound=7e-15):
    exact, each = subset_sums(x, k)
    largest = max(abs(exact), np.abs(np.sort(x)[-k:]).sum())
    assert abs(subset_logsumexp(x, k) - exact) <= 2.0**-52 * largest, (x, k)
    for got, right in zip(subset_marginals(x, k), each, strict=True):
        assert abs(got - right) <= bound * right + mpmath.mpf("1e-300"), (x, k)


@looped("case", CASES)
def test_against_many_digits(case):
    n, k, scale = case
    check_row(np.random.default_rng(n * 100 + k).normal(size=n) * scale, k)


@pytest.mark.slow
@looped("seed", range(8))
def test_against_many_digits_at_random(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 101))
    x = rng.normal(size=n) * 10 ** rng.uniform(-3, 3) + rng.choice([0.0, 1e3])
    check_row(np.where(rng.random(n) < 0.2, x[0], x), int(rng.integers(1, n)))


def test_against_enumeration():
    x = np.random.default_rng(0).normal(size=6)
    for k in range(7):
        sets = list(itertools.combinations(range(6), k))
        weights = np.array([np.exp(x[list(chosen)].sum()) for chosen in sets])
        np.testing.assert_allclose(subset_logsumexp(x, k), np.log(weights.sum()), rtol=1e-14, atol=1e-15)
        each = [weights[[i in chosen for chosen in sets]].sum() / weights.sum() for i in range(6)]
        np.testing.assert_allclose(subset_marginals(x, k), each, rtol=1e-14)


def test_marginals_are_the_gradient():
    x, step = np.random.default_rng(1).normal(size=9), 1e-6
    for i, p in enumerate(subset_marginals(x, 4)):
        difference = subset_logsumexp(x + step * (np.arange(9) == i), 4) - subset_logsumexp(
            x - step * (np.arange(9) == i), 4
        )
        assert abs(difference / (2 * step) - p) < 1e-9


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_subsets_of_one_are_softmax(dtype):
    x = np.random.default_rng(2).normal(size=(5, 40)).astype(dtype)
    assert_same_bits(subset_logsumexp(x, 1), csoftmax.logsumexp(x))
    assert_same_bits(subset_marginals(x, 1), csoftmax.softmax(x))
    k = np.array([1, 3, 1, 0, 2])
    assert_same_bits(subset_marginals(x, k)[:1], csoftmax.softmax(x[:1]))
    lengths = [3, 0, 30, 3, 4]
    each = subset_logsumexp(x[0], [1, 1, 1, 2, 1], indptr=np.cumsum([0, *lengths]))
    assert_same_bits(each[2], csoftmax.logsumexp(x[0, 3:33]))
    assert each[1] == -np.inf


def test_special_values():
    inf, nan = np.inf, np.nan
    rows = np.array([[1, 2, 3], [-inf, 2, 3], [nan, 2, 3], [inf, 2, 3], [-inf, -inf, -inf], [inf, -inf, -inf]])
    for k, sums, each in (
        (0, [0, 0, nan, 0, 0, 0], [[0] * 3, [0] * 3, [nan] * 3, [0] * 3, [0] * 3, [0] * 3]),
        (3, [6, -inf, nan, inf, -inf, -inf], [[1] * 3, [nan] * 3, [nan] * 3, [nan] * 3, [nan] * 3, [nan] * 3]),
        (5, [-inf, -inf, nan, -inf, -inf, -inf], [[nan] * 3] * 6),
    ):
        np.testing.assert_array_equal(subset_logsumexp(rows, k), sums)
        np.testing.assert_array_equal(subset_marginals(rows, k), each)
    np.testing.assert_array_equal(subset_marginals(rows, 2)[1], [0, 1, 1])
    assert subset_logsumexp(rows, 2)[1] == 5
    assert np.isnan(subset_marginals(rows, 2)[2:]).all()
    for n in (8, 33):
        for i in range(n):
            x = np.zeros(n)
            x[i] = -inf
            p = subset_marginals(x, 2)
            assert p[i] == 0
            np.testing.assert_allclose(np.delete(p, i), 2 / (n - 1), rtol=1e-14)
            x[i] = nan
            assert np.isnan(subset_marginals(x, 2)).all()
    assert subset_logsumexp(np.zeros(0), 0) == 0
    assert subset_logsumexp(np.zeros((2, 0)), 1).tolist() == [-inf, -inf]
    assert subset_marginals(np.zeros((0, 3)), 1).shape == (0, 3)
    assert subset_marginals(3.0, 1) == 1


def test_segments_are_rows_of_their_own():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(11, 2))
    ids = np.array([2, 0, 2, -1, 0, 2, 3, 2, 0, 3, -1])
    k = np.array([[2, 1], [0, 0], [3, 2], [1, 2]])
    sums, each = subset_logsumexp(x, k, segment_ids=ids), subset_marginals(x, k, segment_ids=ids)
    assert sums.shape == (4, 2)
    assert not each[ids == -1].any()
    for s in range(4):
        for head in range(2):
            alone = x[ids == s, head]
            assert_same_bits(sums[s, head], subset_logsumexp(alone, k[s, head]))
            assert_same_bits(each[ids == s, head], subset_marginals(alone, k[s, head]))
    offsets = [1, 4, 4, 9]
    by_offset = subset_marginals(x.T, 2, indptr=offsets, axis=1)
    assert not by_offset[:, [0, 9, 10]].any()
    assert_same_bits(by_offset[:, 4:9], subset_marginals(x[4:9].T.copy(), 2))
    assert_same_bits(by_offset, subset_marginals(x.T, 2, segments=Segments(indptr=offsets), axis=1))


def test_bits_do_not_depend_on_threads_layouts_or_instruction_sets(keep_isa):
    rng = np.random.default_rng(4)
    x, k = rng.normal(size=(50, 37)) * 5, rng.integers(0, 39, 50)
    expected = subset_logsumexp(x, k), subset_marginals(x, k)
    for name in binding.isa_available():
        binding.select_isa(name)
        for threads in (1, 3):
            assert_same_bits(subset_logsumexp(x, k, num_threads=threads), expected[0], name)
            assert_same_bits(subset_marginals(x, k, num_threads=threads), expected[1], name)
    moved = np.asfortranarray(x.T)[:, ::-1]
    assert_same_bits(subset_marginals(moved, k[::-1], axis=0), expected[1].T[:, ::-1])
    assert_same_bits(subset_marginals(x.reshape(5, 10, 37), k.reshape(5, 10)), expected[1].reshape(5, 10, 37))
    assert_same_bits(subset_marginals(x[3].reshape(1, 37, 1), k[3], axis=(0, 1, 2)), expected[1][3].reshape(1, 37, 1))


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_long_calls_see_ctrl_c():
    x = np.random.default_rng(5).normal(size=(40, 20_000))
    for threads in (1, 2):
        assert seconds_to_stop(lambda threads=threads: subset_logsumexp(x, 8000, num_threads=threads)) < 1


def test_bad_arguments():
    for arguments, options, error, match in (
        (([1.0, 2.0], -1), {}, ValueError, "k must be at least 0, got -1"),
        (([1.0, 2.0], 1.5), {}, TypeError, "k must hold integers"),
        (([[1.0, 2.0]], [1, 2]), {}, ValueError, r"k has shape \(2,\)"),
        (([1.0, 2.0], 1), {"indptr": [0, 3]}, ValueError, "x has 2 elements along axis 0; indptr ends at 3"),
        (([1.0, 2.0], 1), {"indptr": [0, 1], "segment_ids": [0, 1]}, TypeError, "exactly one of indptr"),
        (([1.0, 2.0], 1), {"num_segments": 1}, TypeError, "exactly one of indptr"),
        ((np.ones((2, 2)), 1), {"indptr": [0, 2], "axis": (0, 1)}, ValueError, "axis must be an int with segments"),
        (([True, False], 1), {}, TypeError, "x has dtype bool"),
    ):
        for function in (subset_logsumexp, subset_marginals):
            with pytest.raises(error, match=match):
                function(*arguments, **options)


def test_sums_beyond_the_range_of_float64():
    most, inf = 1.7e308, np.inf
    for x, k, total, each in (
        ([most, most], 2, inf, [1, 1]),
        ([-most, -most], 2, -inf, [1, 1]),
        ([most] * 3, 2, inf, [2 / 3] * 3),
        ([-most] * 3, 2, -inf, [2 / 3] * 3),
        ([most, most, -most, -most], 4, 0, [1] * 4),
        ([most] * 5 + [-most] * 6, 10, 0, [1] * 5 + [5 / 6] * 6),
        ([1e308, 0, 1], 2, 1e308, [1, 1 / (1 + np.e), np.e / (1 + np.e)]),
        ([-1e308, 0, 1, 2], 2, np.log(np.e + np.exp(2) + np.exp(3)), None),
        ([1e308, 1.5e308, 1.2e308], 2, inf, [0, 1, 1]),
        ([most, -most, 1], 2, most, [1, 0, 1]),
    ):
        np.testing.assert_allclose(subset_logsumexp(x, k), total, rtol=1e-15, atol=1e293 * (total == 0))
        if each is not None:
            np.testing.assert_allclose(subset_marginals(x, k), each, rtol=1e-14)
    assert subset_logsumexp(np.array([-1e308, 0, 1, 2]), 2) == subset_logsumexp(np.array([-1e200, 0, 1, 2]), 2)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_tables_are_cleared_while_ctrl_c_is_seen():
    x = np.random.default_rng(6).normal(size=20_000)
    assert seconds_to_stop(lambda: subset_marginals(x, 10_000), after=0.05) < 0.1


def test_k_is_needed():
    for function in (subset_logsumexp, subset_marginals):
        with pytest.raises(TypeError, match="k must hold integers, got None"):
            function([1.0, 2.0], None)


def test_a_single_number_gives_a_scalar():
    for x in (3.0, np.float32(3), np.array(3.0)):
        for k, log_sum, taken in ((0, 0.0, 0.0), (1, 3.0, 1.0), (2, -np.inf, np.nan)):
            for result, expected in ((subset_logsumexp(x, k), log_sum), (subset_marginals(x, k), taken)):
                assert type(result) is type(csoftmax.softmax(x))
                np.testing.assert_array_equal(result, expected)
