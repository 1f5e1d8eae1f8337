"""The whole sampler: filters in every order by enumeration, no replacement, log-probabilities, given numbers."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

import csoftmax
from csoftmax._spec.formats import dtype_of, ulp_errors, wide
from csoftmax._spec.sample import ORDER, distribution
from csoftmax._spec.samples import FixedUniform, logits
from csoftmax._spec.softmax import exact_forward

FILTERS = {"top_n_sigma": 1.1, "top_k": 4, "typical_p": 0.8, "top_p": 0.85, "min_p": 0.1}
ENDS = np.array([0.0, 2.0**-1074, 1e-17, 0.1, 0.35, 0.5, 0.75, 0.9, 1 - 2.0**-53])


def assert_inverse(draws, u, p, tolerance, what=""):
    """Every draw is the class in whose interval its number lies."""
    sums = np.cumsum(p)
    assert np.all(p[draws] > 0), what
    assert np.all(sums[draws] >= u - tolerance), what
    assert np.all(sums[draws] - p[draws] <= u + tolerance), what


def is_settled(x, order, temperature, given):
    """Whether no boundary is so near to a class that its rounding decides."""
    kept = []
    for shift in (1 - 1e-11, 1, 1 + 1e-11):
        near = {name: v if name == "top_k" else min(v * shift, 1) if name != "top_n_sigma" else v * shift
                for name, v in given.items()}  # fmt: skip
        kept.append(distribution(x, temperature, order, **near) > 0)
    return np.array_equal(kept[0], kept[1]) and np.array_equal(kept[1], kept[2])


def random_rows(seed, count):
    """Yield short rows: normal ones, with ties, with -inf."""
    rng = np.random.default_rng(seed)
    for i in range(count):
        k = int(rng.integers(1, 9))
        x = rng.standard_normal(k) * rng.choice([0.3, 1, 3])
        if i % 3 == 1:
            x = rng.integers(-2, 3, k) * 0.75
        if i % 3 == 2:
            x[rng.random(k) < 0.3] = -np.inf
        if np.isfinite(x).any():
            yield x, rng


def test_all_orders_by_enumeration(isa):
    """Each subset of the filters in every order, at the ends of the uniform numbers."""
    tried = 0
    for chosen in itertools.chain.from_iterable(itertools.combinations(FILTERS, r) for r in range(4)):
        for order in itertools.permutations(("temperature", *chosen)):
            for x, rng in random_rows(tried, 3):
                given = {
                    name: FILTERS[name] if name == "top_k" else FILTERS[name] * rng.uniform(0.5, 1) for name in chosen
                }
                t = float(rng.choice([0.4, 1.0, 2.0]))
                if not is_settled(x, order, t, given):
                    continue
                p = distribution(x, t, order, **given)
                draws = csoftmax.sample(
                    x, temperature=t, order=order, size=9, uniforms=ENDS, return_log_prob=True, **given
                )
                what = x, order, t, given
                assert_inverse(draws.indices, ENDS, p, 1e-12, what)
                even = csoftmax.sample(x, temperature=t, order=order, size=500, uniforms=np.arange(500) / 500, **given)
                assert set(np.flatnonzero(p > 0.003)) <= set(even) <= set(np.flatnonzero(p)), what
                assert np.allclose(draws.log_prob, np.log(p[draws.indices]).astype(float), rtol=1e-13, atol=1e-15), what
                tried += 1
    assert tried > 600


@pytest.mark.slow
def test_all_six_in_every_order(isa):
    for order in itertools.permutations(ORDER):
        for x, rng in random_rows(hash(order) % 1000, 3):
            given = {name: v if name == "top_k" else v * rng.uniform(0.5, 1) for name, v in FILTERS.items()}
            for t in (0.0, 0.5, 3.0):
                if not is_settled(x, order, t, given):
                    continue
                p = distribution(x, t, order, **given)
                draws = csoftmax.sample(x, temperature=t, order=order, size=9, uniforms=ENDS, **given)
                assert_inverse(draws, ENDS, p, 1e-12, (x, order, t, given))


def test_boundaries_and_ties():
    """Equal logits: those with the lowest index are kept; a mass that is reached exactly is enough."""
    flat = np.zeros(8)
    u = (np.arange(80) + 0.5) / 80

    def kept(x, **options):
        return sorted(set(csoftmax.sample(x, size=80, uniforms=u, **options).tolist()))

    for order in (None, ("min_p", "typical_p", "top_p", "top_k", "top_n_sigma")):
        assert kept(flat, top_p=0.5, order=order) == [0, 1, 2, 3]
        assert kept(flat, typical_p=0.5, order=order) == [0, 1, 2, 3]
        assert kept(flat, typical_p=0.5 + 1e-9, order=order) == [0, 1, 2, 3, 4]
        assert kept(flat, top_n_sigma=0.0, order=order) == list(range(8))
        assert kept(flat, min_p=1.0, order=order) == list(range(8))
        assert kept(flat, top_k=3, typical_p=0.5, order=order) == ([0, 1] if order is None else [0, 1, 2])
    x = np.array([0.0, 1.0, 0.0, 1.0])  # sigma = 1/2
    assert kept(x, top_n_sigma=2.0) == [0, 1, 2, 3]
    assert kept(x, top_n_sigma=np.nextafter(2, 0)) == [1, 3]
    assert kept(x, top_n_sigma=2, order=("top_n_sigma",)) == [0, 1, 2, 3]
    # sigma is that of the finite logits that are left; the mask and top_k take some away
    assert kept(np.array([0.0, -4.0, -np.inf, 1.0]), top_k=2, top_n_sigma=1.0, order=("top_k", "top_n_sigma")) == [3]
    where = np.array([True, False, True, True])
    assert kept(np.array([0.0, -90.0, 1.0, 0.5]), top_n_sigma=2.5, where=where) == [0, 2, 3]
    # the most probable class is not typical
    x = np.log(np.array([0.5] + [0.5 / 64] * 64))
    assert 0 not in kept(x, typical_p=0.3)
    assert kept(x, typical_p=0.3, temperature=0.0, order=("typical_p", "temperature")) == [1]
    assert kept(x, typical_p=0.3, temperature=0.0) == [0]
    assert kept(x, typical_p=0.3, top_k=1) == [0]
    # parameters that change nothing
    plain = csoftmax.sample(x, size=80, uniforms=u)
    nothing = {"typical_p": 1, "top_n_sigma": np.inf, "top_p": 1, "min_p": 0, "top_k": 0}
    assert np.array_equal(csoftmax.sample(x, size=80, uniforms=u, **nothing), plain)
    assert np.array_equal(csoftmax.sample(x, size=80, uniforms=u, order=ORDER), plain)


LONG = [
    {"typical_p": 0.9},
    {"top_n_sigma": 1.5},
    {"top_p": 0.97},
    {"top_k": 7000},
    {"top_k": 9000, "top_p": 0.9, "min_p": 0.01},
    {"typical_p": 0.95, "top_p": 0.9, "order": ("top_p", "temperature", "typical_p"), "temperature": 1.5},
    {"top_n_sigma": 2.0, "top_k": 5000, "typical_p": 0.5, "top_p": 0.9, "min_p": 0.05, "temperature": 0.7},
    {"min_p": 0.02, "top_k": 300, "order": ("min_p", "top_k", "temperature"), "temperature": 3.0},
]


@pytest.mark.parametrize("options", [*LONG[:2], *(pytest.param(o, marks=pytest.mark.slow) for o in LONG[2:])], ids=str)
def test_long_rows(options, dtype, isa, seven_threads):
    """Rows of several blocks: against long double, and the same draws alone, in a batch, on any number of threads."""
    u = np.append(np.random.default_rng(2).random(60), [0, 1 - 2.0**-53])
    for n, sigma in ((12_345, 1.0), (40_000, 3.0)):
        x = logits((4, n), dtype, seed=n, sigma=sigma)
        got = csoftmax.sample(x, size=62, uniforms=np.tile(u, (4, 1)), num_threads=1, **options)
        p = distribution(x[1].astype(np.float64), **options)
        # float masses may keep one class more or less at a boundary
        tolerance = 1e-11 if dtype == "float64" else 3e-6
        inside = got[1][p[got[1]] > 0]
        assert len(inside) >= 61
        assert_inverse(inside, u[p[got[1]] > 0], p, tolerance)
        for threads in (1, 7):
            alone = csoftmax.sample(x[1], size=62, uniforms=u, num_threads=threads, **options)
            assert np.array_equal(alone, got[1]), threads
            spaced = np.asfortranarray(x)
            again = csoftmax.sample(spaced, size=62, uniforms=np.tile(u, (4, 1)), num_threads=threads, **options)
            assert np.array_equal(again, got)


def test_a_long_row_of_seven_threads(seven_threads):
    """Rows that threads share: more than 2^20 classes."""
    x = logits((1_100_000,), "float32", sigma=2)
    u = np.random.default_rng(0).random(30)
    for options in LONG[:6]:
        one, many = (csoftmax.sample(x, size=30, uniforms=u, num_threads=threads, **options) for threads in (1, 7))
        assert np.array_equal(one, many), options


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_of_both_signs(dtype, isa):
    """They are ties, whichever the largest is taken to be: the distance of one from the other is -0."""
    n, u = 9001, np.array([0.0, 0.25, 1 - 2.0**-53])
    for first in (0.0, -0.0):
        x = np.where(np.arange(n) % 3 == 0, first, -first).astype(dtype)
        for filters in ({"top_p": 0.9}, {"top_p": 0.9, "typical_p": 1.0}, {"top_k": 8101}):
            draws = csoftmax.sample(x, uniforms=u, size=3, **filters)
            assert draws.tolist() == [0, 2025, 8100]


def test_parameters_of_each_row_in_one_batch():
    """A request has the same draws in any batch, whatever the others ask for."""
    x = logits((7, 5000), "float32", sigma=2)
    parameters = {
        "temperature": [1, 0.5, 0, 2, 1, 0.7, 1],
        "top_k": [0, 50, -1, 3000, 0, 40, 1],
        "typical_p": [1, 1, 0.5, 0.9, 0.3, 1, 1],
        "top_n_sigma": [np.inf, 1, np.inf, np.inf, 2, 0.5, np.inf],
        "top_p": [1, 0.9, 1, 0.99, 1, 0.5, 0.3],
        "min_p": [0.1, 0, 0, 0.01, 0, 0, 0],
    }
    seeds = [3, 1, 4, 1, 5, 9, 2]
    for order in (None, ("min_p", "top_p", "typical_p", "temperature", "top_k", "top_n_sigma")):
        for more in ({"size": 20}, {"return_log_prob": True, "size": 5}):
            together = csoftmax.sample(x, rng=seeds, order=order, **parameters, **more)
            for row in range(7):
                own = {name: values[row] for name, values in parameters.items()}
                alone = csoftmax.sample(x[row], rng=seeds[row], order=order, **own, **more)
                parts = (together, alone) if isinstance(together, tuple) else ((together,), (alone,))
                for whole, part in zip(*parts, strict=True):
                    assert np.array_equal(whole[row], part), (row, order)


def test_chi_square_of_many_classes():
    for options in ({"typical_p": 0.9}, {"top_n_sigma": 1.0}, {"temperature": 2.0, "top_p": 0.9, "order": ORDER[::-1]}):
        x = logits((2000,), "float32", sigma=1)
        p = distribution(x.astype(np.float64), **options).astype(np.float64)
        counts = np.bincount(csoftmax.sample(x, size=400_000, rng=5, **options), minlength=2000)
        assert not counts[p == 0].any()
        seen, expected = counts[p > 0], p[p > 0] * 400_000
        assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-3, options


def test_without_replacement(dtype, isa, seven_threads):
    """Each draw is that of the row without the ones before it; the numbers of a row are read in order."""
    for n in (1, 5, 300, 9000):
        size = min(n, 12)
        x = logits((3, n), dtype, seed=n, sigma=3)
        u = np.random.default_rng(n).random((3, size))
        got = csoftmax.sample(x, size=size, uniforms=u, replace=False, return_log_prob=True)
        where = np.ones(x.shape, bool)
        for t in range(size):
            each = csoftmax.sample(x, uniforms=u[:, t], where=where, return_log_prob=True)
            assert np.array_equal(got.indices[:, t], each.indices)
            assert np.array_equal(got.log_prob[:, t], each.log_prob)
            np.put_along_axis(where, each.indices[:, None], False, axis=-1)
        assert np.array_equal(got.indices, csoftmax.sample(x, size=size, uniforms=u, replace=False, num_threads=7))
        assert all(len(set(row)) == size for row in got.indices.tolist())
    x = np.append(np.full(4999, -np.inf), [0.0, -2.0]).astype(dtype_of(dtype))
    assert csoftmax.sample(x, size=2, replace=False, uniforms=[0.5, 0.5]).tolist() == [4999, 5000]


def test_without_replacement_of_small_masses():
    """The rest of a row is drawn from when its masses are too small beside the ones before."""
    for kind in (np.float32, np.float64):
        x = np.array([-3e4, 2e4, -np.inf, 100, -1e3], kind)
        got = csoftmax.sample(x, size=4, replace=False, rng=0, return_log_prob=True)
        assert got.indices.tolist() == [1, 3, 4, 0]
        assert np.all(got.log_prob == 0)
        x = np.zeros(20_000, kind)
        x[::2] = -1e9
        draws = csoftmax.sample(x, size=10_050, replace=False, rng=0)
        assert sorted(draws[:10_000]) == list(range(1, 20_000, 2))
        assert np.all(draws[10_000:] % 2 == 0)
    every = csoftmax.sample(logits((2, 700)), size=(70, 10), replace=False, rng=1, temperature=0.1)
    assert every.shape == (2, 70, 10)
    assert np.array_equal(np.sort(every.reshape(2, 700)), np.tile(np.arange(700), (2, 1)))


def test_distribution_without_replacement():
    """Ordered pairs of 4 classes, by chi-square."""
    p = np.array([0.4, 0.3, 0.2, 0.1])
    pairs = csoftmax.sample(np.log(np.tile(p, (100_000, 1))), size=2, replace=False, rng=8)
    seen, expected = [], []
    for i, j in itertools.permutations(range(4), 2):
        seen.append(np.sum((pairs[:, 0] == i) & (pairs[:, 1] == j)))
        expected.append(1e5 * p[i] * p[j] / (1 - p[i]))
    assert stats.chisquare(seen, expected).pvalue > 1e-3


def test_too_few_classes():
    x = logits((2, 3, 6), "float32")
    x[1, 1, 2:] = -np.inf
    for options, row in (
        ({}, "1, 1"),
        ({"top_k": [[6, 6, 6], [6, 6, 2]]}, "1, 1"),
        ({"top_k": [[6, 6, 2], [6, 6, 2]]}, "0, 2"),
        ({"min_p": 1.0}, "0, 0"),
        ({"typical_p": 1e-9}, "0, 0"),
    ):
        with pytest.raises(ValueError, match=rf"size must be at most .*, got 3: row \({row}\) has fewer"):
            csoftmax.sample(x, size=3, replace=False, **options)
    x[0, 0] = np.nan
    with pytest.raises(ValueError, match=r"no mass to draw from in row \(0, 0\): it holds NaN"):
        csoftmax.sample(x, size=3, replace=False)
    assert csoftmax.sample(x[1, 1], size=0, replace=False).shape == (0,)
    assert csoftmax.sample(x[1, 1], replace=False, temperature=0) == x[1, 1].argmax()


def test_log_probabilities(dtype, isa):
    """The bits of log_softmax where nothing is filtered, and its error where something is."""
    kind = np.float64 if dtype == "float64" else np.float32
    u = np.random.default_rng(0).random((3, 40))
    for n in (1, 7, 300, 9000, 40_000):
        x = logits((3, n), dtype, seed=n, sigma=4)
        narrow = x.astype(kind)
        for options in ({}, {"temperature": 0.5}, {"temperature": 1e-30}, {"temperature": np.inf}):
            got = csoftmax.sample(x, size=40, uniforms=u, return_log_prob=True, **options)
            assert got.log_prob.dtype == got.raw_log_prob.dtype == kind
            assert np.array_equal(got.indices, csoftmax.sample(x, size=40, uniforms=u, **options))
            raw = np.take_along_axis(csoftmax.log_softmax(narrow), got.indices, -1)
            own = np.take_along_axis(csoftmax.log_softmax(narrow, **options), got.indices, -1)
            assert np.array_equal(got.raw_log_prob, raw)
            assert np.array_equal(got.log_prob, own), (n, options)
        for options in ({"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.01}, {"typical_p": 0.8}, {"top_n_sigma": 1.5}):
            got = csoftmax.sample(x, size=400, rng=1, return_log_prob=True, temperature=0.75, **options)
            seen = csoftmax.sample(x, size=4000, rng=1, temperature=0.75, **options)
            for row in range(3):
                p = distribution(narrow[row].astype(np.float64), 0.75, **options)
                if set(seen[row]) - set(np.flatnonzero(p)):
                    continue  # float masses keep one class more
                exact = exact_forward(np.where(p > 0, wide(narrow[row]), -np.inf), 0.75)[1]
                value = exact[got.indices[row]]
                assert ulp_errors(got.log_prob[row], value, slack=np.finfo(kind).tiny).max() < 4, (n, options)
    x = np.array([[1e300, -1e300, 0.0]])
    got = csoftmax.sample(x, rng=0, return_log_prob=True)
    assert got.log_prob == got.raw_log_prob == 0
    masked = csoftmax.sample(np.zeros(8), where=np.arange(8) < 4, rng=0, return_log_prob=True)
    assert masked.raw_log_prob == csoftmax.log_softmax(np.zeros(4))[0]


def test_shapes_of_results():
    x = logits((2, 3, 10), "float32")
    out = np.empty((2, 3, 4), np.int64)
    draws = csoftmax.sample(x, size=4, rng=0, return_log_prob=True, out=out)
    assert draws.indices is out
    assert draws.log_prob.shape == draws.raw_log_prob.shape == (2, 3, 4)
    one = csoftmax.sample(x[0, 0], rng=0, return_log_prob=True)
    assert all(np.ndim(part) == 0 for part in one)
    assert isinstance(one.log_prob, np.float32)
    empty = csoftmax.sample(x[:0], rng=0, size=(2, 2), return_log_prob=True, replace=False)
    assert all(part.shape == (0, 3, 2, 2) for part in empty)
    assert csoftmax.sample([1, 5, 2], rng=0, return_log_prob=True).log_prob.dtype == np.float64
    by_axis = csoftmax.sample(x, axis=1, rng=0, return_log_prob=True, top_p=0.9)
    moved = csoftmax.sample(np.moveaxis(x, 1, -1), rng=0, return_log_prob=True, top_p=0.9)
    assert all(map(np.array_equal, by_axis, moved))


def test_given_uniform_numbers():
    x = logits((2, 3, 50), "float64", sigma=2)
    u = np.random.default_rng(7).random((2, 3, 4, 5))
    expected = csoftmax.sample(x, size=(4, 5), rng=7)
    assert np.array_equal(csoftmax.sample(x, size=(4, 5), uniforms=u), expected)
    assert np.array_equal(csoftmax.sample(x, size=(4, 5), uniforms=np.asfortranarray(u)), expected)
    assert np.array_equal(csoftmax.sample(x, size=(4, 5), uniforms=u.tolist()), expected)
    assert csoftmax.sample(x, uniforms=np.zeros((2, 3))).shape == (2, 3)
    assert csoftmax.sample(x[0, 0], uniforms=0.5) == csoftmax.sample(x[0, 0], rng=FixedUniform([0.5]))
    assert csoftmax.sample(x[:0], uniforms=np.zeros((0, 3))).shape == (0, 3)
    single = csoftmax.sample(x, uniforms=u[..., 0, 0].astype(np.float32))
    assert np.array_equal(single, csoftmax.sample(x, uniforms=u[..., 0, 0].astype(np.float32).astype(np.float64)))
    u.setflags(write=False)
    assert np.array_equal(csoftmax.sample(x, size=(4, 5), uniforms=u), expected)


def test_odd_orders():
    x = logits((3, 40), "float32", sigma=2)
    expected = csoftmax.sample(x, rng=0, size=9, top_k=5)
    for order in (["top_k"], ("top_k", "temperature"), ("min_p", "top_k", "typical_p")):
        assert np.array_equal(csoftmax.sample(x, rng=0, size=9, top_k=5, order=order), expected)
    assert np.array_equal(csoftmax.sample(x, rng=0, order=()), csoftmax.sample(x, rng=0))
    assert np.array_equal(
        csoftmax.sample(x, rng=0, temperature=np.ones(3), order=[]), csoftmax.sample(x, rng=0, temperature=1)
    )
    with pytest.raises(TypeError, match="order must be a sequence"):
        csoftmax.sample(x, order=3)
    with pytest.raises(ValueError, match=r"order must hold names among .*, got 3"):
        csoftmax.sample(x, order=[3])


LOWEST = np.finfo(np.float64).min


def kept_by_sigma(x, n):
    """Classes within n sigma of the largest logit, in rational numbers."""
    finite = [i for i in range(len(x)) if np.isfinite(x[i])]
    values = {i: Fraction(float(x[i])) for i in finite}
    mean = sum(values.values()) / len(finite)
    variance = sum((v - mean) ** 2 for v in values.values()) / len(finite)
    return {i for i in finite if (max(values.values()) - values[i]) ** 2 <= Fraction(n) ** 2 * variance}


@pytest.mark.parametrize(
    "x",
    [
        [1.0, 2.0, LOWEST],
        [0.0, -1e308],
        [1e308, -1e308],
        [-LOWEST, LOWEST],
        [-LOWEST, LOWEST, 3.0, -np.inf],
        [-LOWEST, -LOWEST / 2, 0.0, LOWEST / 2],
        [5e-324, 0.0],
        [5e-324, 0.0, -1.5e-323, 1e-323],
        [5e-324, 1e-323, LOWEST],
        [2.0**-1022, 2.0**-1023, -(2.0**-1030)],
        [1e300, np.nextafter(1e300, 0), np.nextafter(1e300, 1e301)],
    ],
    ids=str,
)
def test_sigma_of_all_ranges(x, isa):
    for n in (0, 0.125, 0.4, 0.55, 1.1, 1.9, 2.3, 1e300):
        # at an infinite temperature all that are left are equally probable, in the order of the indices
        u = (np.arange(len(x)) + 0.5) / len(x)
        got = csoftmax.sample(x, temperature=np.inf, top_n_sigma=n, size=len(x), uniforms=u)
        assert set(got) == kept_by_sigma(x, n), n
    assert csoftmax.sample(x, top_n_sigma=0.0, uniforms=0.999) in kept_by_sigma(x, 0)


def extreme_rows(seed, count):
    """Rows of doubles of any size, some with a mask of finite logits, and a temperature; two filters in any order."""
    rng, largest = np.random.default_rng(seed), -LOWEST
    for _ in range(count):
        k, size = int(rng.integers(2, 60)), int(rng.choice([-1000, -540, 0, 300, 500, 520, 700, 1015, 1023]))
        x = np.ldexp(rng.uniform(-1, 1, k) * rng.choice([1, 0.1]), size)
        if rng.random() < 0.4:
            x[rng.random(k) < 0.3] = rng.choice([LOWEST, -1e300, -np.inf, -1e200])
        x[0] = largest if rng.random() < 0.2 else x[0]
        x[1] = 5e-324 if rng.random() < 0.2 else x[1]
        if not np.isfinite(x).any():
            continue
        t = min(float(np.ldexp(1.0, size - 4)) * float(rng.choice([1.6, 8, 15.9])), largest)
        chosen = rng.choice(list(FILTERS), rng.integers(1, 3), replace=False)
        given = {name: 4 if name == "top_k" else FILTERS[name] * rng.uniform(0.3, 1) for name in chosen}
        yield x, t, tuple(rng.permutation(["temperature", *chosen]).tolist()), given


@pytest.mark.parametrize("count", [120, pytest.param(5000, marks=pytest.mark.slow)])
def test_filters_of_extreme_logits(isa, count):
    u = np.arange(500) / 500
    for x, t, order, given in extreme_rows(count, count):
        if not is_settled(x, order, t, given):
            continue
        p = distribution(x, t, order, **given)
        got = set(csoftmax.sample(x, temperature=t, order=order, size=500, uniforms=u, **given))
        assert set(np.flatnonzero(p > 0.0021)) <= got <= set(np.flatnonzero(p)), (x, t, order, given)


def test_typical_classes_of_extreme_logits():
    assert csoftmax.sample([1.0, 2.0, -1e200], temperature=1e200, typical_p=0.5, rng=0) in (0, 1)
    assert csoftmax.sample([1e308, -1e308], typical_p=0.9) == 0
    assert csoftmax.sample([[1e308, -1e308, 5e-324]], typical_p=0.9, top_p=0.9, rng=0) == [0]
    # distances beyond the numbers: the nearer one of the two comes first
    x = [-LOWEST, LOWEST, 0.9 * LOWEST]
    u = (np.arange(300) + 0.5) / 300
    p = csoftmax.softmax(np.array(x) / 1e308)
    some = {"temperature": 1e308, "typical_p": float(p[0] + p[2] / 2)}
    assert set(csoftmax.sample(x, size=300, uniforms=u, **some)) == {0, 2}
    # rows of several blocks have the draws of smaller numbers
    rng = np.random.default_rng(7)
    x, u = rng.standard_normal(20000) * 3, rng.random(200)
    for filters in ({"typical_p": 0.6}, {"top_n_sigma": 1.5}, {"typical_p": 0.7, "top_p": 0.9, "min_p": 0.01}):
        expected = csoftmax.sample(x, temperature=1.0, size=200, uniforms=u, **filters)
        for size in (-900, 600, 1019):
            got = csoftmax.sample(np.ldexp(x, size), temperature=2.0**size, size=200, uniforms=u, **filters)
            assert np.array_equal(got, expected), (size, filters)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigma_after_typical_p_of_transformed_rows(dtype, isa):
    """The largest logit that typical_p has left counts, also where the masses depend on the one before."""
    t = 2.0**-20
    x = (1 + t * np.array([4.0, *[0.0] * 64])).astype(dtype_of(dtype))
    order = "temperature", "typical_p", "top_n_sigma"
    got = csoftmax.sample(x, temperature=t, typical_p=0.3, top_n_sigma=1.0, order=order, size=50, rng=0)
    assert 0 not in got
    assert got.max() <= 36  # e^4 / (e^4 + 64) = 0.46 is not typical, 0.3 is 35.6 times e^-4 of it
