"""plackett_luce_loss: definition in many digits, enumeration, exact tails, ties, special values, bits."""

import sys

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits, looped
from helpers.signals import seconds_to_stop
from oracles.rankings import ranking_loss

import csoftmax
from csoftmax import Segments, plackett_luce_loss, plackett_luce_loss_with_grad
from csoftmax._cpu import binding

TIES = ("breslow", "efron", "exact", "order")


def draw_list(seed, largest=9):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, largest))
    x = rng.normal(size=n) * 10 ** rng.uniform(-2, 2)
    relevance = rng.integers(0, rng.choice([2, 4, 100]), n).astype(float)
    relevance[rng.random(n) < 0.1] = np.nan
    observed = None if rng.random() < 0.5 else rng.random(n) < 0.7
    return x, relevance, observed, None if rng.random() < 0.6 else int(rng.integers(1, n + 1))


def check_list(x, relevance, observed, top, ties, enumerates=False, temperature=1.0):
    exact, plus, minus = ranking_loss(x, relevance, observed, ties, top, enumerates, temperature)
    options = {"observed": observed, "ties": ties, "top": top, "reduction": "sum", "temperature": temperature}
    loss, grad = plackett_luce_loss_with_grad(x, relevance, **options)
    assert loss == plackett_luce_loss(x, relevance, **options)
    what = (ties, x, relevance, observed, top, temperature)
    scale = abs(exact) if ties != "exact" else abs(exact) + 4 * np.abs(x / temperature).sum() * 2.0**-3
    assert abs(loss - exact) <= 4 * len(x) * 2.0**-53 * scale + mpmath.mpf("1e-40"), what
    for got, a, b in zip(grad, plus, minus, strict=True):
        assert abs(mpmath.mpf(got) * temperature - (a - b)) <= (len(x) + 8) * 2.0**-53 * max(a, b) + mpmath.mpf(
            "1e-40"
        ), what


@looped("ties", TIES)
def test_against_the_definition(ties):
    for seed in range(25):
        check_list(*draw_list(seed), ties)


@looped("seed", range(20))
def test_exact_ties_against_enumeration(seed):
    check_list(*draw_list(1000 + seed, 7), "exact", enumerates=True)


@looped("ties", TIES)
def test_scores_whose_distances_round(ties):
    """Scores near each other keep their distances where others are so large that x - max would lose them."""
    for seed in range(25):
        x, *rest = draw_list(3000 + seed)
        far = np.array([0, 0, 1e16, -1e16, 1e30, -1e25, 7e15])
        x = np.random.default_rng(seed).choice(far[: 3 + seed % 5], len(x)) + x
        check_list(x, *rest, ties)
        power = 2.0**700  # x / T are the same
        expected = plackett_luce_loss_with_grad(x, rest[0], observed=rest[1], ties=ties, reduction="sum")
        got = plackett_luce_loss_with_grad(
            x * power, rest[0], observed=rest[1], ties=ties, reduction="sum", temperature=power
        )
        assert got.loss == expected.loss
        assert_same_bits(got.grad * power, expected.grad)


@looped("ties", TIES)
def test_temperatures_do_not_round_the_scores(ties):
    """x / T is rounded for a T that is no power of two, which exp would multiply; the last lists are computed alone."""
    rng = np.random.default_rng(0)
    for seed in range(25):
        x, *rest = draw_list(4000 + seed)
        temperature = [0.1, 0.3, 0.7, 3.0, 1e-300, 1e5][seed % 6]
        for offset in (0, 1e6, 1e12, 1e18):  # of the list in temperatures
            y = (x * (1 + seed % 9) + offset) * temperature
            if ties != "exact":
                check_list(y, *rest, ties, temperature=temperature)
                continue
            exact, _, _ = ranking_loss(y, rest[0], rest[1], ties, rest[2], temperature=temperature)
            loss = plackett_luce_loss(
                y, rest[0], observed=rest[1], top=rest[2], ties=ties, temperature=temperature, reduction="sum"
            )
            distances = mpmath.fsum((mpmath.mpf(max(y)) - mpmath.mpf(v)) / temperature for v in y)
            assert abs(loss - exact) <= 2.0**-49 * (distances + abs(exact)) + 1e-300, (y, rest, temperature)
    x, observed = np.array([60.0, 70.0, 5.0, -np.inf]) * 1e-310, np.array([False, True, True, False])  # 1/T overflows
    check_list(x, np.array([2.0, 3.0, 1.0, 0.0]), observed, 1, ties, temperature=1e-310)
    for scale in (1.0, 1e2, 1e5):  # e^x in range; with exponents; clusters beside an element that is far away
        x = np.append(1e6 + scale * rng.normal(size=70), -1e17)
        if ties != "exact":
            check_list(x, rng.integers(0, 40, 71), None, None, ties, temperature=0.3)


@looped("ties", TIES)
def test_scores_that_overflow_when_divided_by_the_temperature(ties):
    for dtype, t in ((np.float64, 1e-300), (np.float32, 1e-280)):
        for sign in (1, -1):
            x = np.array([sign * 1e30] * 3 + [-np.inf], dtype)
            observed = np.array([True, True, True, False])
            loss = plackett_luce_loss(x, [3, 2, 1, 0], observed=observed, ties=ties, temperature=t)
            assert abs(loss - np.log(6)) < 1e-6
            if sign > 0:
                assert plackett_luce_loss(x[:3] * [1, 2, 4], [2, 2, 1], ties=ties, temperature=t) == np.inf
    assert np.isnan(plackett_luce_loss([np.inf, 0.0], [1, 0], ties=ties, temperature=1e-300))


@pytest.mark.slow
@looped("seed", range(100))
def test_against_the_definition_in_long_lists(seed):
    check_list(*draw_list(2000 + seed, 90), TIES[seed % 4])


def exact_tail(x):
    """The loss of a list in falling order from quotients, which cancel nothing."""
    with mpmath.workdps(40):
        x = [mpmath.mpf(float(v)) for v in x]
        return mpmath.fsum(
            mpmath.log1p(mpmath.fsum(mpmath.exp(later - v) for later in x[i + 1 :])) for i, v in enumerate(x)
        )


@looped("gap", [1e-3, 1.0, 2.1, 15.0, 100.0, 400.0, 3e3, 1e12])
def test_small_and_large_losses_have_all_their_digits(gap):
    """Certain and reversed lists of any distance, where PyTorch's formula gives 0, inf and NaN."""
    for n in (2, 3, 20, 64, 70):
        for sign in (1, -1):
            x = sign * gap * np.arange(n)[::-1]
            loss, grad = plackett_luce_loss_with_grad(x, -np.arange(n))
            exact = exact_tail(x)
            assert abs(loss - exact) <= 4 * n * 2.0**-53 * exact + mpmath.mpf("1e-300")
            assert abs(grad.sum()) <= n * n * 2.0**-52
            assert np.isfinite(grad).all()


@looped("ties", ("breslow", "efron"))
def test_figures_of_statsmodels(ties):
    """sm.PHReg(times, Z, status=events, ties=ties).loglike([0.3, -0.7]), statsmodels 0.15.0, with the data below."""
    rng = np.random.default_rng(0)
    times, events = rng.integers(1, 20, 60).astype(float), rng.random(60) < 0.7
    scores = rng.normal(size=(60, 2)) @ [0.3, -0.7]
    loglik = {"breslow": PHREG[0], "efron": PHREG[1]}[ties]
    loss = plackett_luce_loss(scores, -times, observed=events, ties=ties, reduction="sum")
    np.testing.assert_allclose(-loss, loglik, rtol=1e-14)


PHREG = (-136.08042774871336, -133.46295408933116)


def test_without_ties_all_kinds_are_one():
    rng = np.random.default_rng(1)
    x, relevance = rng.normal(size=30), rng.permutation(30)
    expected = plackett_luce_loss_with_grad(x, relevance)
    for ties in TIES:
        got = plackett_luce_loss_with_grad(x, relevance, ties=ties)
        assert_same_bits(got.loss, expected.loss, ties)
        assert_same_bits(got.grad, expected.grad, ties)
    all_observed = plackett_luce_loss_with_grad(x, relevance, observed=np.ones(30, bool))
    assert_same_bits(all_observed.grad, expected.grad)


def test_top_one_is_cross_entropy():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 12))
    relevance = rng.permuted(np.tile(np.arange(12), (50, 1)), axis=1)
    got = plackett_luce_loss_with_grad(x, relevance, top=1)
    expected = csoftmax.cross_entropy_with_grad(x, relevance.argmax(1))
    np.testing.assert_allclose(got.loss, expected.loss, rtol=1e-15)
    np.testing.assert_allclose(got.grad, expected.grad, rtol=1e-13, atol=1e-18)


@looped("ties", TIES)
def test_gradient_is_that_of_the_loss(ties):
    rng = np.random.default_rng(3)
    x, relevance, observed = rng.normal(size=(3, 8)), rng.integers(0, 4, (3, 8)), rng.random((3, 8)) < 0.8
    options = {"observed": observed, "ties": ties, "temperature": [0.5, 1.0, 3.0], "sample_weight": [1.0, 0.0, 2.0]}
    for reduction, upstream in (("mean", 1.5), ("sum", 1.0), ("none", np.array([1.0, 2.0, -3.0]))):
        grad = plackett_luce_loss_with_grad(x, relevance, reduction=reduction, upstream=upstream, **options).grad
        for at in np.ndindex(x.shape):
            step = np.zeros_like(x)
            step[at] = 1e-6
            ahead, behind = (
                np.sum(upstream * plackett_luce_loss(x + s * step, relevance, reduction=reduction, **options))
                for s in (1, -1)
            )
            assert abs((ahead - behind) / 2e-6 - grad[at]) < 2e-8, (ties, reduction, at)


def test_means_weigh_lists_with_a_factor():
    x, relevance = np.arange(6.0), [1, 2, np.nan, np.nan, 5, 4]
    observed = [True, True, True, True, False, False]
    each = plackett_luce_loss(x, relevance, observed=observed, indptr=[0, 2, 2, 4, 6], reduction="none")
    np.testing.assert_array_equal(each[1:], 0)
    options = {"observed": observed, "indptr": [0, 2, 2, 4, 6], "sample_weight": [2.0, 1.0, 3.0, 5.0]}
    loss, grad = plackett_luce_loss_with_grad(x, relevance, **options)
    assert loss == each[0]
    np.testing.assert_array_equal(grad[2:], 0)
    nothing = plackett_luce_loss_with_grad(x, np.full(6, np.nan))
    assert np.isnan(nothing.loss)
    np.testing.assert_array_equal(nothing.grad, 0)
    # an observed element behind the first `top` places contributes nothing
    assert plackett_luce_loss([1.0, 2.0], [2, 1], observed=[False, True], top=1, reduction="sum") == 0
    assert np.isnan(plackett_luce_loss([1.0, 2.0], [2, 1], observed=[False, True], top=1))
    assert plackett_luce_loss([1.0, 2.0], [2, 2], observed=[False, True], top=1) > 0


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 17, 64, 65, 66])
def test_special_values_at_every_index(n):
    rng = np.random.default_rng(n)
    x, relevance = rng.normal(size=n), rng.integers(0, max(1, n // 2), n)
    for i in range(n):
        for value in (np.nan, np.inf):
            bad = x.copy()
            bad[i] = value
            for observed in (None, np.arange(n) != i):
                loss, grad = plackett_luce_loss_with_grad(bad, relevance, observed=observed, reduction="sum")
                assert np.isnan(loss)
                assert np.isnan(grad).all()
            absent = np.where(np.arange(n) == i, np.nan, relevance)
            loss, grad = plackett_luce_loss_with_grad(bad, absent, reduction="sum")
            without = plackett_luce_loss_with_grad(np.delete(x, i), np.delete(relevance, i), reduction="sum")
            assert_same_bits(loss, without.loss)
            assert_same_bits(np.delete(grad, i), without.grad)
            assert grad[i] == 0
        bad = x.copy()
        bad[i] = -np.inf
        for ties in TIES:
            loss, grad = plackett_luce_loss_with_grad(bad, relevance, ties=ties, reduction="sum")
            assert loss == np.inf
            assert np.isfinite(grad).all()
            assert grad[i] == -1
            loss, grad = plackett_luce_loss_with_grad(
                bad, relevance, observed=np.arange(n) != i, ties=ties, reduction="sum"
            )
            assert np.isfinite(loss)
            assert grad[i] == 0


def test_dtypes():
    rng = np.random.default_rng(4)
    wide, relevance = rng.normal(size=(6, 10)), rng.integers(0, 5, (6, 10))
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        x = wide.astype(dtype)
        loss, grad = plackett_luce_loss_with_grad(x, relevance, reduction="none")
        exact = plackett_luce_loss_with_grad(x.astype(np.float64), relevance, reduction="none")
        assert loss.dtype == np.float32
        assert_same_bits(loss, exact.loss.astype(np.float32))
        assert_same_bits(grad, exact.grad.astype(np.float32).astype(dtype))
    assert plackett_luce_loss(np.arange(4), [1, 2, 3, 4]).dtype == np.float64
    large = np.array([2**62, 2**62 + 1, 2**62 - 1])  # the same in float64
    assert_same_bits(plackett_luce_loss(wide[0, :3], large), plackett_luce_loss(wide[0, :3], [1, 2, 0]))
    third = np.arange(10) / 3.0  # no floats hold these
    assert_same_bits(plackett_luce_loss(wide[0], third[::-1]), plackett_luce_loss(wide[0], np.arange(10)[::-1]))


def make_lists(rng, count=40):
    lengths = rng.poisson(12, count)
    lengths[[0, 5]] = 0, 150
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return rng.normal(size=offsets[-1]) * 3, rng.integers(0, 9, offsets[-1]).astype(float), offsets


def make_any_lists(rng):
    """Lists for every way to compute one: ordered or tied, of few members, far apart, infinite and NaN."""
    x, relevance, offsets = make_lists(rng)
    for i, begin in enumerate(offsets[:-1]):
        own = slice(begin, offsets[i + 1])
        n = offsets[i + 1] - begin
        if i % 2:
            relevance[own] = rng.permutation(n)
        if i % 3 == 0:
            relevance[own][rng.random(n) < 0.7] = np.nan
        if i % 5 == 0:
            x[own] *= 10 ** rng.uniform(0, 4)
        if i % 7 == 0 and n:
            x[begin + n // 2] = rng.choice([np.inf, -np.inf, np.nan, 1e30])
    return x, relevance, offsets


@looped("ties", TIES)
def test_bits_of_a_list_depend_on_nothing_else(ties, keep_isa):
    rng = np.random.default_rng(5)
    x, relevance, offsets = make_any_lists(rng)
    observed, temperature = rng.random(len(x)) < 0.7, rng.choice([0.3, 1.0, 7.0], len(offsets) - 1)
    for seen, top, temperatures in ((None, None, 1.0), (observed, None, temperature), (None, 3, 1.0)):
        options = {"ties": ties, "top": top, "reduction": "none"}
        every = options | {"indptr": offsets, "observed": seen, "temperature": temperatures}
        expected = plackett_luce_loss_with_grad(x, relevance, **every)
        assert_same_bits(plackett_luce_loss(x, relevance, **every), expected.loss)
        for i, begin in enumerate(offsets[:-1]):
            own = slice(begin, offsets[i + 1])
            options["observed"] = None if seen is None else seen[own]
            options["temperature"] = np.broadcast_to(temperatures, temperature.shape)[i]
            alone = plackett_luce_loss_with_grad(x[own], relevance[own], **options)
            assert_same_bits(alone.loss, expected.loss[i])
            assert_same_bits(alone.grad, expected.grad[own])
        for name in binding.isa_available():
            binding.select_isa(name)
            for threads in (1, 3):
                got = plackett_luce_loss_with_grad(x, relevance, num_threads=threads, **every)
                assert_same_bits(got.loss, expected.loss, name)
                assert_same_bits(got.grad, expected.grad, name)


def test_relevances_of_any_dtype_give_the_same_bits():
    rng = np.random.default_rng(8)
    x, relevance, offsets = make_lists(rng)
    expected = plackett_luce_loss_with_grad(x, relevance, indptr=offsets)
    for given in (relevance.astype(np.float32), relevance.astype(np.int8), relevance / 3, relevance.astype(np.int64)):
        got = plackett_luce_loss_with_grad(x, given, indptr=offsets)
        assert_same_bits(got.loss, expected.loss)
        assert_same_bits(got.grad, expected.grad)


def test_members_among_many_elements_without_a_relevance():
    """Lists that are padded to any length have the bits of those without padding."""
    rng = np.random.default_rng(9)
    for n in (1, 5, 64, 65):
        x, relevance = rng.normal(size=n), rng.integers(0, n, n).astype(float)
        expected = plackett_luce_loss_with_grad(x, relevance, reduction="sum", upstream=-1.0)
        for length in (n + 1, 100, 300):
            at = np.sort(rng.choice(length, n, replace=False))
            wide, ranks = np.full(length, np.nan, np.float64), np.full(length, np.nan)
            wide[at], ranks[at] = x, relevance
            loss, grad = plackett_luce_loss_with_grad(wide, ranks, reduction="sum", upstream=-1.0)
            assert_same_bits(loss, expected.loss)
            assert_same_bits(grad[at], expected.grad)
            assert_same_bits(np.delete(grad, at), np.zeros(length - n))


def test_segments_and_out():
    rng = np.random.default_rng(6)
    x, relevance, offsets = make_lists(rng)
    ids = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    expected = plackett_luce_loss_with_grad(x, relevance, indptr=offsets)
    take = np.concatenate([np.arange(len(x))[ids % 2 == 1], np.arange(len(x))[ids % 2 == 0]])
    got = plackett_luce_loss_with_grad(x[take], relevance[take], segment_ids=ids[take], num_segments=len(offsets) - 1)
    assert_same_bits(got.loss, expected.loss)
    assert_same_bits(got.grad, expected.grad[take])
    padded = plackett_luce_loss_with_grad(
        np.concatenate([[np.nan], x, [7.0]]), np.concatenate([[1], relevance, [2]]), indptr=offsets + 1
    )
    assert_same_bits(padded.loss, expected.loss)
    assert_same_bits(padded.grad, np.concatenate([[0], expected.grad, [0]]))
    segments = Segments(segment_ids=np.append(ids[take], -1), num_segments=len(offsets) - 1)
    beside = np.append(x[take], np.nan)
    for out in (None, np.empty_like(beside), beside, np.empty(2 * len(beside))[::2]):
        grad = plackett_luce_loss_with_grad(beside, np.append(relevance[take], 0), segments=segments, out=out).grad
        assert out is None or grad is out
        assert_same_bits(grad[:-1], expected.grad[take])
        assert grad[-1] == 0
        beside = np.append(x[take], np.nan)
    own = x.copy()
    assert_same_bits(plackett_luce_loss_with_grad(own, relevance, indptr=offsets, out=own).grad, expected.grad)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_long_calls_see_ctrl_c():
    rng = np.random.default_rng(7)
    many, wide = rng.normal(size=(200_000, 40)), rng.normal(size=2000)
    places = rng.random((200_000, 40))
    for threads in (1, 2):
        assert seconds_to_stop(lambda threads=threads: plackett_luce_loss(many, places, num_threads=threads)) < 1
    long = rng.normal(size=4_000_000)
    for options in ({}, {"temperature": 0.3}):
        assert (
            seconds_to_stop(lambda options=options: plackett_luce_loss(long, many.ravel()[: len(long)], **options))
            < 0.3
        )
    lists, tied = np.tile(wide, (900, 1)), np.tile(np.arange(2000) < 1000, (900, 1)).astype(int)
    assert seconds_to_stop(lambda: plackett_luce_loss(lists, tied, ties="exact")) < 1


def test_bad_arguments():
    x = np.arange(4.0)
    for arguments, options, error, match in (
        ((x, [1, 2]), {}, ValueError, r"relevance has shape \(2,\); x has shape \(4,\)"),
        ((x, ["a"] * 4), {}, TypeError, "relevance must hold integers or floats of at most 64 bits, got dtype <U1"),
        ((x, [True] * 4), {}, TypeError, "relevance must hold integers or floats of at most 64 bits, got dtype bool"),
        ((x, [1j] * 4), {}, TypeError, "relevance must hold integers or floats of at most 64 bits, got dtype complex"),
        ((x, x), {"observed": [1, 0, 1, 0]}, TypeError, "observed must be boolean"),
        ((x, x), {"observed": np.ones(3, bool)}, ValueError, r"observed has shape \(3,\)"),
        ((x, x), {"ties": "none"}, ValueError, 'ties must be "breslow", "efron", "exact" or "order"'),
        ((x, x), {"top": 0}, ValueError, "top must be at least 1, got 0"),
        ((x, x), {"top": 1.5}, TypeError, "top must be an int or None"),
        ((x, x), {"temperature": 0}, ValueError, "temperature must be positive and finite, got 0"),
        ((x, x), {"sample_weight": -1}, ValueError, "sample_weight"),
        ((x, x), {"reduction": "avg"}, ValueError, "reduction must be"),
        ((x, x), {"indptr": [0, 5]}, ValueError, "x has 4 elements along axis 0; indptr ends at 5"),
        ((x, x), {"segment_ids": [0, 1, 2, 3], "num_segments": 2}, IndexError, r"segment_ids\[2\] is 2"),
        ((np.ones((2, 2)), np.ones((2, 2))), {"indptr": [0, 2]}, ValueError, "one axis is allowed with segments"),
        ((1.0, 1.0), {}, ValueError, "x has no axis"),
    ):
        for function in (plackett_luce_loss, plackett_luce_loss_with_grad):
            with pytest.raises(error, match=match):
                function(*arguments, **options)
    with pytest.raises(ValueError, match="out has shape"):
        plackett_luce_loss_with_grad(x, x, out=np.empty(3))


def test_any_number_of_places():
    x, relevance = [1.0, 2.0], [1, 2]
    assert plackett_luce_loss(x, relevance, top=10**30) == plackett_luce_loss(x, relevance)


@pytest.mark.skipif(np.dtype(np.longdouble).itemsize == 8, reason="long double is double here")
def test_relevance_of_long_doubles_is_refused():
    """float64 would turn differences into ties."""
    with pytest.raises(TypeError, match="relevance must hold integers or floats of at most 64 bits, got dtype float"):
        csoftmax.plackett_luce_loss([0.0, 3.0], np.array([1, 2], np.longdouble))
