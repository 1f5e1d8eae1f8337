"""Samplers: masses and tables as integers, inclusion probabilities by enumeration, draws against chi-squared."""

import itertools
import math
import signal
import sys
import time

import numpy as np
import pytest
from helpers import looped, run_python
from scipy import stats

import csoftmax
from csoftmax._cpu import binding
from csoftmax.heads import ClusteredHead
from csoftmax.samplers import ClusterSampler, LogUniformSampler, Negatives, UniformSampler, UnigramSampler

COLUMN = 1 << 32


def weights_of(kind, k):
    rng = np.random.default_rng(k)
    if kind == "zipf":
        return 1 / np.arange(1.0, k + 1)
    if kind == "one":
        return np.eye(1, k, k // 2)[0]
    if kind == "zeros":
        w = rng.integers(0, 1000, k) * (rng.random(k) < 0.5)
        w[0] += w.sum() == 0
        return w.astype(float)
    if kind == "far apart":
        return np.exp(rng.uniform(-600, 600, k))
    return rng.integers(1, 100, k).astype(float)


KINDS = ("zipf", "one", "zeros", "far apart", "counts")


def table_masses(sampler):
    """The masses that a table realises, in units of 1 / (K 2**32), added up column by column."""
    cut, alias = sampler._cells[:, 0].astype(np.uint64), sampler._cells[:, 1].astype(np.int64)
    masses = cut.copy()
    np.add.at(masses, alias, np.uint64(COLUMN) - cut)
    return masses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 3, 7, 1000, 2**20])
def test_the_table_realises_the_masses_exactly(k, kind):
    sampler = UnigramSampler(weights_of(kind, k))
    masses = table_masses(sampler)
    assert sum(masses.tolist()) == k * COLUMN
    assert np.array_equal(masses, sampler._masses)
    assert np.all(sampler._cells[:, 1] < k)


@looped("power", [0.0, 0.5, 0.75, 1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 3, 7, 150, pytest.param(1000, marks=pytest.mark.slow)])
def test_masses_are_the_probabilities_rounded_once(k, kind, power):
    mpmath = pytest.importorskip("mpmath")
    weights = weights_of(kind, k)
    masses = UnigramSampler(weights, power=power)._masses.tolist()
    with mpmath.workdps(60):
        powers = [mpmath.mpf(w) ** mpmath.mpf(power) if w else mpmath.mpf(0) for w in weights.tolist()]
        quotas = [p * k * COLUMN / sum(powers) for p in powers]
        raised = sum(1 for q in quotas if 0 < q < 1)
        for mass, quota in zip(masses, quotas, strict=True):
            assert (mass > 0) == (quota > 0)
            # a unit, the last bits of a double, and the units that classes below one unit were raised to
            assert abs(mass - quota) <= 1 + quota * (2.0**-46 + 2 * raised / (k * COLUMN))


def test_the_largest_remainders_get_the_last_units():
    weights = np.random.default_rng(3).random(1000)
    masses = UnigramSampler(weights, power=1)._masses
    exact = [int(w * 2**60) for w in weights]  # weights are multiples of 2**-53
    total = sum(exact)
    floors = [e * 1000 * COLUMN // total for e in exact]
    remainders = [e * 1000 * COLUMN % total / total for e in exact]
    is_raised = [int(m) - f for m, f in zip(masses, floors, strict=True)]
    assert set(is_raised) <= {0, 1}
    least = min(r for r, up in zip(remainders, is_raised, strict=True) if up)
    most = max(r for r, up in zip(remainders, is_raised, strict=True) if not up)
    assert least > most - 1e-4  # quotas have 53 bits, of which 20 are behind the point


def test_rounding_moves_probabilities_little():
    k = 100_000
    counts = np.ceil(1e7 / np.arange(1, k + 1))
    p = counts**0.75 / np.sum(counts**0.75)
    assert np.max(np.abs(UnigramSampler(counts).probability() / p - 1)) < 3e-8


def test_log_uniform_probabilities():
    k = 1000
    rank = np.arange(k)
    expected = np.log((rank + 2) / (rank + 1)) / np.log(k + 1)
    assert np.allclose(LogUniformSampler(k).probability(), expected, rtol=2e-8, atol=0)
    order = np.random.default_rng(0).permutation(k)
    assert np.allclose(LogUniformSampler(k, order=order).probability(order), expected, rtol=2e-8, atol=0)


def test_smoothing_is_added_before_the_power():
    p = UnigramSampler([0, 3, 8], smoothing=1, power=0.5).probability()
    assert np.allclose(p, np.array([1, 2, 3]) / 6, rtol=1e-9)


# Draws


def draws_of(sampler, random):
    """The definition of a draw, in Python integers."""
    if sampler._cells is None:
        return [r * sampler.n_classes >> 64 for r in random]
    found = []
    for r in random:
        product = r * sampler.n_classes
        column, fraction = product >> 64, product >> 32 & 0xFFFFFFFF
        cut, alias = sampler._cells[column].tolist()
        found.append(column if fraction < cut else alias)
    return found


@pytest.mark.parametrize("k", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 5000])
def test_draws_are_those_of_the_definition(k, count):
    for sampler in (UnigramSampler(weights_of("zeros", k)), UniformSampler(k), LogUniformSampler(k)):
        random = np.random.default_rng(5).integers(0, 2**64, count, np.uint64)
        assert sampler.draw(count, rng=5).tolist() == draws_of(sampler, random.tolist())


def test_the_ends_of_the_random_numbers():
    sampler, ends = UnigramSampler([1, 2, 3]), np.array([0, 2**64 - 1, 2**63, 2**64 // 3, 2**64 // 3 + 1], np.uint64)
    classes = np.empty(5, np.int64)
    binding.run_alias_draw(3, sampler._cells, ends, classes, None)
    assert classes.tolist() == draws_of(sampler, ends.tolist())


def test_draws_are_the_same_on_every_instruction_set_and_thread_count(keep_isa, seven_threads):
    found = set()
    for isa in binding.isa_available():
        binding.select_isa(isa)
        for threads in range(1, 9):
            with csoftmax.threads(threads):
                sampler = UnigramSampler(weights_of("counts", 100_000))
                negatives = sampler.sample(1000, target=np.arange(50), rng=1)
                drawn = sampler.draw(200_000, rng=2)
            parts = sampler._masses, sampler._cells, *negatives[:2], negatives.target_log_q, drawn
            found.add(b"".join(part.tobytes() for part in parts))
    assert len(found) == 1


@pytest.mark.parametrize("make", [lambda: UnigramSampler(weights_of("zipf", 300)), lambda: UniformSampler(77)])
def test_draws_fit_the_distribution(make):
    sampler, n = make(), 200_000
    counts = np.bincount(sampler.draw(n, rng=0), minlength=sampler.n_classes)
    assert stats.chisquare(counts, n * sampler.probability()).pvalue > 1e-4


@pytest.mark.long
@pytest.mark.parametrize("k", [1000, 100_000])
@pytest.mark.parametrize("kind", ["zipf", "zeros", "counts"])
def test_ten_million_draws_fit_the_distribution(k, kind):
    sampler, n = UnigramSampler(weights_of(kind, k)), 10**7
    counts, p = np.bincount(sampler.draw(n, rng=k), minlength=k), sampler.probability()
    assert not counts[p == 0].any()
    counts, p = counts[p > 0], p[p > 0]
    assert stats.chisquare(counts, n * p).pvalue > 1e-4


@pytest.mark.long
def test_a_hundred_million_classes():
    k = 10**8
    sampler = UnigramSampler(np.ones(k, np.float32))
    assert sampler.nbytes == 16 * k
    drawn = sampler.draw(10**6, rng=0)
    assert drawn.min() >= 0
    assert drawn.max() < k
    halves = np.bincount(drawn // (k // 10), minlength=10)
    assert stats.chisquare(halves).pvalue > 1e-4
    assert len(sampler.sample(1000, rng=0).ids) == pytest.approx(1000, abs=150)


# Samples


SMALL = {
    "zipf": lambda: UnigramSampler([6, 3, 2, 1.5, 1.2, 1], power=1),
    "zeros": lambda: UnigramSampler([5, 0, 1, 0, 2, 2]),
    "uniform": lambda: UniformSampler(5),
    "log-uniform": lambda: LogUniformSampler(6),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("exclude", [None, [0], [2, 4]])
def test_poisson_inclusions_by_enumeration(name, size, exclude):
    """Sums over the number of draws and the draws themselves, with p in rational numbers of the masses."""
    sampler = SMALL[name]()
    k, excluded = sampler.n_classes, np.array(exclude or [], int)
    p = sampler.probability()
    negatives = sampler.sample(size, target=np.arange(k), rng=0, exclude=exclude)
    q = np.exp(negatives.target_log_q)
    assert np.all(q[excluded] == 0)
    kept = np.setdiff1d(np.arange(k), excluded)
    wished = min(size, np.count_nonzero(p[kept]))
    assert q[kept].sum() == pytest.approx(wished, abs=1e-11)  # the wished expected number
    rate = sampler._rate(size, np.unique(excluded))
    if rate == np.inf:
        assert np.array_equal(q[kept], p[kept] > 0)
        return
    # P(n draws contain j) summed over the Poisson weights of n
    n = np.arange(400)
    log_weights = n * math.log(rate) - rate - np.array([math.lgamma(v + 1) for v in n])
    inclusion = np.array([np.sum(np.exp(log_weights) * (1 - (1 - v) ** n)) for v in p])
    assert np.allclose(q[kept], inclusion[kept], rtol=1e-12, atol=1e-14)
    # inclusions are independent: P(i and j) by inclusion and exclusion over n draws
    for i, j in itertools.combinations(kept, 2):
        neither = np.sum(np.exp(log_weights) * (1 - p[i] - p[j]) ** n)
        both = q[i] + q[j] - (1 - neither)
        assert both == pytest.approx(q[i] * q[j], abs=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_samples_have_the_probabilities_that_they_report(name):
    sampler, n = SMALL[name](), 20_000
    q = np.exp(sampler.log_q(np.arange(sampler.n_classes), 3))
    rng = np.random.default_rng(0)
    found = np.zeros(sampler.n_classes)
    for _ in range(n):
        found[sampler.sample(3, rng=rng).ids] += 1
    assert np.all(np.abs(found / n - q) <= 4.5 * np.sqrt(q * (1 - q) / n) + 1e-12)


def test_iid_samples_merge_equal_draws():
    sampler = UnigramSampler([5, 3, 0, 1])
    negatives = sampler.sample(100, target=[0, 3, -100], rng=4, scheme="iid")
    drawn = sampler.draw(100, rng=4)
    assert np.array_equal(np.repeat(negatives.ids, negatives.count), np.sort(drawn))
    assert np.array_equal(negatives.log_q, sampler.log_q(negatives.ids, 100, scheme="iid"))
    assert np.allclose(negatives.log_q, np.log(100 * sampler.probability(negatives.ids)), rtol=1e-15)
    assert np.isnan(negatives.target_log_q[2])
    assert negatives.scheme == "iid"


def test_draws_of_each_row_are_not_merged():
    sampler = UnigramSampler(np.arange(1, 9))
    negatives = sampler.sample((3, 5), rng=4, scheme="iid")
    assert negatives.ids.shape == negatives.log_q.shape == (3, 5)
    assert np.array_equal(negatives.ids.ravel(), sampler.draw(15, rng=4))
    assert negatives.count is None
    assert np.allclose(negatives.log_q, np.log(5 * sampler.probability(negatives.ids)), rtol=1e-15)


@pytest.mark.parametrize("size", [3, 4, 10**6])
def test_all_classes_with_mass(size):
    negatives = UnigramSampler([5, 0, 1, 2]).sample(size, target=[1, 2], rng=0)
    assert negatives.ids.tolist() == [0, 2, 3]
    assert negatives.log_q.tolist() == [0, 0, 0]
    assert negatives.target_log_q.tolist() == [-math.inf, 0]


def test_nearly_all_classes_are_included_one_by_one():
    sampler = UnigramSampler(np.r_[np.ones(9) * 1e6, 1], power=1)
    size = 9.0
    rate = sampler._rate(9, np.empty(0, np.int64))
    assert sampler.sample(9, rng=0).ids.tolist()[:9] == list(range(9))
    assert rate > 0
    assert np.exp(sampler.log_q(np.arange(10), 9)).sum() == pytest.approx(size, rel=1e-9)
    steep = UnigramSampler([1e9, 1, 1], power=1)
    assert steep._rate(2, np.empty(0, np.int64)) > 64 * 3
    found = [len(steep.sample(2, rng=i).ids) for i in range(2000)]
    assert np.mean(found) == pytest.approx(2, abs=0.08)


def test_sizes_of_0():
    for scheme in ("poisson", "iid"):
        negatives = UnigramSampler([1, 2]).sample(0, rng=0, scheme=scheme)
        assert negatives.ids.shape == negatives.log_q.shape == (0,)


@pytest.mark.parametrize("scheme", ["poisson", "iid"])
@pytest.mark.parametrize("exclude", [[0], [0, 1, 2], [1, 1, 3]])
@pytest.mark.parametrize("make", [lambda: UnigramSampler([1e4, 5, 3, 2, 1, 1], power=1), lambda: UniformSampler(6)])
def test_excluded_classes_are_never_drawn(make, exclude, scheme):
    sampler, n = make(), 3000
    kept = np.setdiff1d(np.arange(6), exclude)
    p = sampler.probability()[kept] / sampler.probability()[kept].sum()
    rng, found = np.random.default_rng(1), np.zeros(6)
    for _ in range(n):
        negatives = sampler.sample(2, rng=rng, scheme=scheme, exclude=exclude)
        found[negatives.ids] += 1 if negatives.count is None else negatives.count
    assert not found[exclude].any()
    if scheme == "iid":
        assert stats.chisquare(found[kept], 2 * n * p).pvalue > 1e-4
        assert np.allclose(negatives.log_q, np.log(2 * p[np.searchsorted(kept, negatives.ids)]), rtol=1e-9)
    else:
        q = np.exp(sampler.sample(2, target=kept, exclude=exclude).target_log_q)
        assert np.all(np.abs(found[kept] / n - q) <= 4.5 * np.sqrt(q * (1 - q) / n) + 1e-12)


def test_the_generator_is_as_before_after_an_error():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    with pytest.raises(ValueError, match="exclude leaves no class"):
        UniformSampler(2).sample(1, rng=rng, scheme="iid", exclude=[0, 1])
    assert rng.bit_generator.state == before


def test_wrong_arguments():
    for counts, error, message in (
        ([], ValueError, r"counts has shape \(0,\)"),
        ([[1.0]], ValueError, r"counts has shape \(1, 1\)"),
        ([0, 0], ValueError, "counts are all 0: add smoothing"),
        ([1, -1], ValueError, "got -1 for class 1"),
        ([1, math.nan], ValueError, "got nan for class 1"),
        ([1, math.inf], ValueError, "got inf for class 1"),
        (["a"], TypeError, "counts must hold real numbers"),
    ):
        with pytest.raises(error, match=message):
            UnigramSampler(counts)
    sampler = UnigramSampler([1, 2, 3])
    for call, error, message in (
        (lambda: UnigramSampler([1], power=-1), ValueError, "power must be at least 0"),
        (lambda: UnigramSampler([1], smoothing=math.inf), ValueError, "smoothing must be at least 0"),
        (lambda: UniformSampler(0), ValueError, "n_classes must be at least 1"),
        (lambda: UniformSampler(2**63), ValueError, "n_classes must be at most"),
        (lambda: LogUniformSampler(2**31 + 1), ValueError, "n_classes must be at most 2147483648"),
        (lambda: LogUniformSampler(2, order=[0, 0]), ValueError, "1 is missing"),
        (lambda: LogUniformSampler(2, order=[0]), ValueError, "order has shape"),
        (lambda: sampler.sample(-1), ValueError, "size must be at least 0"),
        (lambda: sampler.sample(1.5), TypeError, "size must be an int"),
        (lambda: sampler.sample([2, 2]), TypeError, r"size must be an int, or a pair \(N, m\) with .*, got \[2, 2\]"),
        (lambda: sampler.sample(1, scheme="both"), ValueError, 'scheme must be "poisson" or "iid"'),
        (lambda: sampler.sample((2, 2)), ValueError, r"or a pair .*, got \(2, 2\) with scheme='poisson'"),
        (lambda: UniformSampler(2**62).probability(), ValueError, "ids must be given"),
        (lambda: UniformSampler(2**62).sample(2**61), ValueError, "size is .*: a sample of .* does not fit in memory"),
        (lambda: UniformSampler(2**62).sample(2**63), ValueError, "a sample of 4611686018427387904 classes does not"),
        (lambda: sampler.sample(2**61, scheme="iid"), ValueError, "size is .* does not fit in memory"),
        (lambda: sampler.sample((2**30, 2**30), scheme="iid"), ValueError, "size is .* does not fit in memory"),
        (lambda: sampler.draw(2**61), ValueError, "size is .* does not fit in memory"),
        (lambda: sampler.sample(1, target=[3]), IndexError, r"target\[0\] is 3: the classes are 0 to 2"),
        (lambda: sampler.sample(1, exclude=[-1]), IndexError, r"exclude\[0\] is -1"),
        (lambda: sampler.sample(1, rng="a"), TypeError, "rng must be"),
        (lambda: sampler.sample(1, rng=np.random.RandomState(0)), TypeError, "rng must be"),
        (lambda: sampler.log_q([3], 1), IndexError, r"ids\[0\] is 3"),
        (lambda: sampler.probability([0.5]), TypeError, "ids must hold integers"),
    ):
        with pytest.raises(error, match=message):
            call()


def test_all_of_few_classes_are_a_sample_of_any_size():
    assert UnigramSampler([1, 2, 3]).sample(2**61).ids.tolist() == [0, 1, 2]


def test_negatives_of_another_source():
    assert Negatives([1, 2]) == ([1, 2], None, None, None, "given")


# Clusters


def test_cluster_sampler_draws_what_it_reports():
    rng = np.random.default_rng(0)
    w, bias, x = rng.standard_normal((40, 3)), rng.standard_normal(40), rng.standard_normal((2, 3))
    sampler = ClusterSampler(w, bias, rng=0)
    every = np.broadcast_to(np.arange(40), (2, 40))
    q = np.exp(sampler.log_q(x, every, 1))
    assert np.allclose(q.sum(1), 1, rtol=1e-14)
    negatives = sampler.sample(x, 40_000, target=[7, -100], rng=1)
    assert negatives.ids.shape == negatives.log_q.shape == (2, 40_000)
    for row, p in zip(negatives.ids, q, strict=True):
        assert stats.chisquare(np.bincount(row, minlength=40), 40_000 * p).pvalue > 1e-4
    assert np.array_equal(negatives.log_q, sampler.log_q(x, negatives.ids, 40_000))
    assert negatives.target_log_q[0] == sampler.log_q(x, [[7], [7]], 40_000)[0, 0]
    assert np.isnan(negatives.target_log_q[1])


def test_cluster_sampler_prefers_likely_classes():
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((10, 8)) * 3
    w = np.repeat(centers, 30, axis=0) + 0.1 * rng.standard_normal((300, 8))
    sampler = ClusterSampler(w, rng=0)
    x = centers[:4] / 2
    p = csoftmax.softmax(x @ w.T)
    q = np.exp(sampler.log_q(x, np.broadcast_to(np.arange(300), (4, 300)), 1))
    divergence = np.sum(p * (np.log(p) - np.log(q)), axis=1)
    assert np.all(divergence < 0.1 * np.sum(p * np.log(p * 300), axis=1))
    assert sampler.n_classes == 300
    sampler.refresh(w[::-1], rng=0)
    assert np.exp(sampler.log_q(x, np.broadcast_to(np.arange(300), (4, 300)), 1)).sum(1) == pytest.approx(1)


def test_a_cluster_sampler_of_the_lists_of_a_head(monkeypatch):
    rng = np.random.default_rng(0)
    w, bias, x = rng.normal(size=(60, 4)), rng.normal(size=60), rng.normal(size=(2, 4))
    head = ClusteredHead(w, bias, n_clusters=7, rng=0)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)  # is not needed
    sampler = ClusterSampler(w, bias, clusters=head.assignment)
    assert len(np.unique(head.assignment)) == head.n_clusters
    means = np.array([w[head.assignment == c].mean(axis=0) for c in range(head.n_clusters)])
    biases = np.array([bias[head.assignment == c].mean() for c in range(head.n_clusters)])
    sizes = np.bincount(head.assignment)
    logits = x @ means.T + biases + np.log(sizes)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)) - np.log(sizes)
    every = np.broadcast_to(np.arange(60), (2, 60))
    np.testing.assert_allclose(sampler.log_q(x, every, 1), log_p[:, head.assignment], 1e-12)
    for options, message in (
        ({"clusters": [0, 1]}, "clusters has shape"),
        ({"clusters": head.assignment, "n_clusters": 7}, "n_clusters is 7: .* None are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            ClusterSampler(w, bias, **options)
    with pytest.raises(TypeError, match="clusters must hold integers"):
        ClusterSampler(w, bias, clusters=np.zeros(60))


def test_wrong_arguments_of_cluster_sampler():
    sampler = ClusterSampler(np.eye(4), rng=0)
    for call, error, message in (
        (lambda: ClusterSampler(np.zeros(3)), ValueError, r"w has shape \(3,\)"),
        (lambda: ClusterSampler(np.eye(3), [1.0]), ValueError, r"bias has shape \(1,\)"),
        (lambda: ClusterSampler(np.full((2, 2), np.nan)), ValueError, r"w must be finite, got nan at w\[0, 0\]"),
        (lambda: ClusterSampler(np.eye(2), [0, np.inf]), ValueError, r"bias must be finite, got inf at bias\[1\]"),
        (lambda: sampler.sample([[0, 0, 0, np.nan]], 2), ValueError, r"x must be finite, got nan at x\[0, 3\]"),
        (lambda: sampler.log_q([[0, 0, 0, np.inf]], [[1]], 2), ValueError, "x must be finite, got inf"),
        (lambda: ClusterSampler(np.eye(3), n_clusters=0), ValueError, "n_clusters must be at least 1"),
        (lambda: sampler.sample(np.zeros(4), 2), ValueError, r"x has shape \(4,\)"),
        (lambda: sampler.sample(np.zeros((2, 4)), 2, target=[1]), ValueError, "target has shape"),
        (lambda: sampler.log_q(np.zeros((2, 4)), [[1]], 2), ValueError, "ids has shape"),
    ):
        with pytest.raises(error, match=message):
            call()


GUARDED = """
import numpy as np
from csoftmax._cpu import binding
from csoftmax.samplers import UnigramSampler
from helpers.guard_pages import Guarded

for k in (1, 2, 7, 100):
    sampler = UnigramSampler(np.arange(1.0, k + 1))
    for count in (*range(35), 1000):
        random = np.random.default_rng(count).integers(0, 2**64, count, np.uint64)
        expected = np.empty(count, np.int64)
        binding.run_alias_draw(k, sampler._cells, random, expected, None)
        for at_end in (True, False):
            places = [Guarded(max(a.nbytes, 1)) for a in (sampler._cells, random, expected)]
            cells, numbers = (place.copy(a, at_end) for place, a in zip(places, (sampler._cells, random)))
            classes = places[2].array((count,), np.dtype(np.int64), at_end)
            binding.run_alias_draw(k, cells, numbers, classes, None)
            assert np.array_equal(classes, expected)
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mmap and mprotect as on Linux")
def test_draws_read_and_write_nothing_outside_their_arrays():
    assert run_python(GUARDED).stdout.strip() == "done"


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("call", [lambda s: s.draw(10**9), lambda s: s.sample(10**8, scheme="iid")])
def test_ctrl_c_ends_long_draws(call):
    """Within a second, with the generator as it was before."""
    sampler = UniformSampler(1000)

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    begin = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            call(sampler)
        assert time.perf_counter() - begin < 2
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("power", [300.0, 990.0, 1000.0, 1e5, 1e300])
def test_large_powers(power):
    """All the mass goes to the largest classes; the others keep a unit each."""
    masses = UnigramSampler([1, 2, 2, 0], power=power)._masses.tolist()
    assert masses[0] == 1
    assert masses[3] == 0
    assert abs(masses[1] - masses[2]) <= 1
    assert UnigramSampler(np.ones(4), power=power)._masses.tolist() == [COLUMN] * 4


def test_one_class_has_one_log_q():
    sampler = UnigramSampler([100, 50, 10, 5, 1])
    for scheme in ("poisson", "iid"):
        assert sampler.log_q(3, 2, scheme=scheme).shape == ()
        assert sampler.log_q(3, 2, scheme=scheme) == sampler.log_q([3], 2, scheme=scheme)[0]
    assert UniformSampler(3).log_q([[1]], 5).shape == (1, 1)


def test_numbers_beyond_int64_are_no_classes():
    big = np.array([2**63], np.uint64)
    for call in (lambda: UniformSampler(3).sample(2, target=big), lambda: UniformSampler(3).sample(2, exclude=big)):
        with pytest.raises(IndexError, match=str(2**63)):
            call()


@pytest.mark.parametrize("scheme", ["poisson", "iid"])
def test_all_classes_excluded(scheme):
    with pytest.raises(ValueError, match="exclude leaves no class"):
        UnigramSampler([5, 0, 3, 1]).sample(3, exclude=[0, 2, 3], scheme=scheme)


def test_the_rate_without_excluded_classes_is_kept():
    sampler = UnigramSampler(np.arange(1, 1001))
    first = sampler.sample(50, exclude=[7], rng=0)
    assert len(sampler._rates) == 1
    again = sampler.sample(50, exclude=[7], rng=0)
    assert np.array_equal(first.ids, again.ids)
    other = sampler.sample(50, exclude=[999], rng=0)
    assert len(sampler._rates) == 2
    assert 999 not in other.ids
