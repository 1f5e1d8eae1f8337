"""sample: against a brute-force distribution and inverse, chi-square at fixed seeds, reproducibility, errors."""

import ml_dtypes
import numpy as np
import pytest
from helpers import run_python
from scipy import stats

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.layouts import LAYOUTS
from csoftmax._spec.sample import distribution
from csoftmax._spec.samples import FixedUniform, logits

COMBINATIONS = [
    {},
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 5},
    {"top_k": 1},
    {"top_p": 0.8},
    {"min_p": 0.2},
    {"top_k": 12, "top_p": 0.9},
    {"top_p": 0.95, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.7, "min_p": 0.1},
    {"top_k": 1000, "top_p": 1.0, "min_p": 0.0},
    {"top_k": -1, "top_p": 0.9},
]


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_inverse_of_the_distribution(options, dtype):
    """Every draw is the class at which the sum of the probabilities passes the uniform number."""
    for n in (1, 2, 20, 40, 300, 5000):
        x = logits((4, n), dtype, seed=n, sigma=2)
        got = csoftmax.sample(x, size=50, rng=7, **options)
        assert got.shape == (4, 50)
        assert got.dtype == np.int64
        u = np.random.default_rng(7).random((4, 50))
        for row in range(4):
            p = distribution(x[row], **{k: v if k != "top_k" else min(v, n) for k, v in options.items()})
            sums = np.cumsum(p)
            for draw, at in zip(got[row], u[row], strict=True):
                assert p[draw] > 0
                tolerance = 1e-6 if dtype != "float64" else 1e-12
                assert sums[draw] >= at - tolerance
                assert sums[draw] - p[draw] <= at + tolerance


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_chi_square(options):
    """100,000 draws at a fixed seed; what is filtered out never comes."""
    x = logits((40,), "float32", sigma=1.5)
    draws = csoftmax.sample(x, size=100_000, rng=11, **options)
    p = distribution(x, **options).astype(np.float64)
    counts = np.bincount(draws, minlength=40)
    assert not counts[p == 0].any()
    p, counts = p[p > 0], counts[p > 0]
    many = p * 1e5 >= 5
    expected = np.append(p[many], p[~many].sum()) * 1e5
    seen = np.append(counts[many], counts[~many].sum())
    keep = expected > 0
    if keep.sum() > 1:
        assert stats.chisquare(seen[keep], expected[keep] * seen.sum() / expected[keep].sum()).pvalue > 1e-3


def test_same_draws_for_every_instruction_set(dtype, isa):
    x = logits((23, 5000), dtype, sigma=3)
    calls = [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 1e-30, "top_p": 0.5}]
    got = [csoftmax.sample(x, rng=3, size=9, **options) for options in calls]
    binding.select_isa("scalar")
    assert np.array_equal(got, [csoftmax.sample(x, rng=3, size=9, **options) for options in calls])


def test_few_draws_as_many(isa):
    """Few draws of a row add masses up, many bisect the sums: the same classes where masses are too small to count."""
    x = np.array([[0.0, -40.0, -1.0, -60.0, -45.0], [-60.0, 0.0, -60.0, -50.0, -60.0]])
    for u in (0.0, 0.3, 0.75, 1.0):  # 1: as if all sums had been rounded down
        many = csoftmax.sample(x, rng=FixedUniform(np.full((2, 9), u)), size=9)
        single = csoftmax.sample(x, rng=FixedUniform(np.full((2, 1), u)), size=1)
        assert np.array_equal(many, np.repeat(single, 9, axis=1)), u


def test_same_draws_everywhere(dtype, seven_threads):
    """Threads, layouts, one draw or many at a time; from a generator, its seed, its state."""
    x = logits((23, 5000), dtype, sigma=3)
    for options in ({}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 1e-30, "top_p": 0.5}):
        expected = csoftmax.sample(x, rng=3, size=9, **options)
        for threads in (1, 2, 7):
            assert np.array_equal(csoftmax.sample(x, rng=3, size=9, num_threads=threads, **options), expected)
        got = csoftmax.sample(x, rng=np.random.default_rng(3), size=(3, 3), **options)
        assert np.array_equal(got.reshape(23, 9), expected)
        for name, layout in LAYOUTS.items():
            view, axis = layout(x)
            got = csoftmax.sample(view, axis=axis, rng=3, size=9, **options)
            assert np.array_equal(got[0] if name == "3-d middle" else got, expected), name
        # the order of the uniform numbers is that of the rows
        rng = np.random.default_rng(3)
        each = [csoftmax.sample(row, rng=rng, size=9, **options) for row in x]
        assert np.array_equal(each, expected)
        # few draws search, many bisect: the same class
        u = np.random.default_rng(3).random((23, 9))
        single = csoftmax.sample(x, rng=FixedUniform(u[:, :2]), size=2, **options)
        assert np.array_equal(single, expected[:, :2])


def test_ends_of_the_uniform_numbers(dtype):
    """0 is the first class with mass, 1 - 2^-53 the last; whatever the rounding of the sums."""
    for n in (3, 100, 5000, 20_000):
        x = logits((2, n), dtype, sigma=1)
        x[:, 0] = x[:, -1] = -np.inf
        for options, first, last in (({}, 1, n - 2), ({"top_k": 1}, None, None)):
            for size in (1, 20):
                low = csoftmax.sample(x, rng=FixedUniform(np.zeros((2, size))), size=size, **options)
                high = csoftmax.sample(x, rng=FixedUniform(np.full((2, size), 1 - 2.0**-53)), size=size, **options)
                if first is None:
                    best = csoftmax.topk(x, 1).indices
                    assert np.all(low == best)
                    assert np.all(high == best)
                else:
                    assert np.all(low == first)
                    assert np.all(np.take_along_axis(csoftmax.softmax(x.astype(np.float64)), high, -1) > 0)
                    assert np.all(high >= n - 30)
                    assert np.all(high <= last)


def test_ties_go_to_the_lowest_index():
    x = np.zeros((1, 300), np.float32)
    for options, kept in (
        ({"top_k": 7}, 7),
        ({"top_p": 0.1}, 30),
        ({"top_k": 100, "top_p": 0.25}, 25),
        ({"temperature": 0}, 1),
    ):
        draws = csoftmax.sample(x, size=5000, rng=0, **options)
        assert set(draws[0]) == set(range(kept)), options


def test_parameters_for_each_row():
    x = logits((6, 50), "float64", sigma=2)
    parameters = {
        "temperature": np.array([0, 0.5, 1, 2, np.inf, 1]),
        "top_k": np.array([50, 5, 50, 7, 3, 2**62]),
        "top_p": np.array([1, 0.5, 0.9, 1, 1, 0.3]),
        "min_p": np.array([0, 0, 0.5, 0.1, 0, 1]),
    }
    got = csoftmax.sample(x, size=40, rng=5, **parameters)
    u = np.random.default_rng(5).random((6, 40))
    for row in range(6):
        alone = csoftmax.sample(x[row], size=40, rng=FixedUniform(u[row]), **{k: v[row] for k, v in parameters.items()})
        assert np.array_equal(got[row], alone)
    assert np.all(got[0] == x[0].argmax())
    assert set(got[4]) <= set(np.argsort(-x[4])[:3])  # any temperature: the largest logits
    assert np.all(got[5] == x[5].argmax())
    column = csoftmax.sample(x.reshape(2, 3, 50), temperature=[[0.0], [1.0]], rng=1)
    assert np.array_equal(column[0], x[:3].argmax(-1))


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64"])
def test_integer_types_of_top_k(kind):
    x = logits((2, 9), "float32")
    got = csoftmax.sample(x, top_k=np.array([2, 3], kind), rng=0, size=20)
    assert np.array_equal(got, csoftmax.sample(x, top_k=[2, 3], rng=0, size=20))


def test_classes_whose_mass_underflows_are_never_drawn():
    """u = 0 with blocks of which nothing is left."""
    x = np.full(10_000, -150.0, np.float32)
    x[0], x[9000] = -np.inf, 0
    for size in (1, 20):
        assert np.all(csoftmax.sample(x, rng=FixedUniform(np.zeros(size)), size=size) == 9000)


def test_shapes_and_types():
    x = logits((3, 4, 10), "float32")
    assert csoftmax.sample(x, rng=0).shape == (3, 4)
    assert csoftmax.sample(x, axis=0, rng=0, size=2).shape == (4, 10, 2)
    assert csoftmax.sample(x, axis=None, rng=0, size=(2, 3)).shape == (2, 3)
    assert csoftmax.sample(x, axis=(0, 2), rng=0, size=0).shape == (4, 0)
    assert np.ndim(csoftmax.sample(x[0, 0], rng=0)) == 0
    assert csoftmax.sample(np.float32(3)) == 0
    assert csoftmax.sample(np.zeros((0, 5)), rng=0).shape == (0,)
    assert csoftmax.sample(np.zeros((2, 0, 5)), rng=0, size=3).shape == (2, 0, 3)
    out = np.empty((3, 4), np.int64)
    assert csoftmax.sample(x, rng=0, out=out) is out
    assert np.array_equal(out, csoftmax.sample(x, rng=0))
    assert csoftmax.sample(np.array([1, 50, 3]), rng=0) == 1
    assert csoftmax.sample(x, rng=None).shape == (3, 4)


def test_special_values(dtype):
    x = logits((5, 60), dtype)
    where = np.ones(x.shape, bool)
    where[:, ::2] = False
    x[:, ::2] = np.nan
    draws = csoftmax.sample(x, size=200, rng=0, where=where)
    assert np.all(draws % 2 == 1)
    x[:, ::2] = -np.inf
    assert np.array_equal(csoftmax.sample(x, size=200, rng=0), draws)
    # one class with mass; logits beyond the ordinary range; temperatures of any size
    x = np.full((3, 9), -np.inf).astype(dtype_of(dtype))
    x[0, 3], x[1, 8], x[2, 0] = 1, -7, 3
    largest = float((ml_dtypes.finfo if dtype == "bfloat16" else np.finfo)(dtype_of(dtype)).max)
    for scale in (1.0, largest / 8):
        y = (x.astype(np.float64) * scale).astype(x.dtype)
        for temperature in (1.0, 0.0, np.inf, 1e-300, 1e300):
            for more in ({}, {"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.5}):
                got = csoftmax.sample(y, temperature=temperature, rng=0, **more)
                assert got.tolist() == [3, 8, 0]


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}, {"min_p": 0.2}], ids=str)
@pytest.mark.parametrize(("value", "text"), [(np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "only -inf")], ids=str)
def test_rows_without_mass(value, text, options, dtype):
    for n in (1, 40, 5000):
        x = logits((4, n), dtype)
        if value == -np.inf:
            x[2] = value
        else:
            x[2, n // 2] = value
        with pytest.raises(ValueError, match=rf"logits have no mass to draw from in row \(2\): it holds {text}"):
            csoftmax.sample(x, rng=0, **options)


def test_top_p_of_flat_rows():
    """The nucleus is most of the classes: more than one selection is needed."""
    x = logits((2, 30_000), "float32", sigma=0.5)
    for top_p in (0.5, 0.99, 1 - 1e-12):
        draws = csoftmax.sample(x, size=300, rng=0, top_p=top_p)
        for row in range(2):
            p = distribution(x[row], top_p=top_p)
            assert np.all(p[draws[row]] > 0)
    assert len(set(draws[0])) > 250


def test_parameters_beyond_numpys_integers():
    x = np.log(np.array([0.1, 0.2, 0.7]))
    for size in (2**63, 2**64, 2**70):
        assert csoftmax.sample(x, top_k=size, size=9, rng=1).tolist() == csoftmax.sample(x, size=9, rng=1).tolist()
        flat = csoftmax.sample(x, temperature=size, size=9, rng=1)
        assert flat.tolist() == csoftmax.sample(x, temperature=float(size), size=9, rng=1).tolist()


def test_no_limit():
    """top_k of 0 or -1 is no limit, as a number and within an array."""
    x = logits((4, 300), "float32", sigma=2)
    expected = csoftmax.sample(x, size=60, rng=3)
    for top_k in (0, -1, [0, -1, 300, 2**62], np.array([-1, 0, 0, -1], np.int8)):
        assert np.array_equal(csoftmax.sample(x, size=60, rng=3, top_k=top_k), expected), top_k
    limited = csoftmax.sample(x, size=60, rng=3, top_k=[2, -1, 0, 1], top_p=[1, 1, 0.5, 1])
    alone = [csoftmax.sample(x, size=60, rng=3, top_k=k, top_p=p) for k, p in ((2, 1), (None, 1), (None, 0.5), (1, 1))]
    for row in range(4):
        assert np.array_equal(limited[row], alone[row][row])


def test_a_source_for_each_row():
    """A row's draws are those of its own source alone, whatever its batch; no source is read twice or too early."""
    x = logits((5, 200), "float32", sigma=2)
    seeds = [7, np.int64(0), 2**100, 7, 3]
    for size in (None, 0, 4, (2, 3)):
        shape = () if size is None else np.ones(size).shape
        expected = np.array([csoftmax.sample(row, rng=seed, size=size) for row, seed in zip(x, seeds, strict=True)])
        u = [np.random.default_rng(seed).random(shape) for seed in seeds]
        assert np.array_equal(csoftmax.sample(x, rng=FixedUniform(u), size=size), expected)
        as_generators = [np.random.default_rng(seed) for seed in seeds]
        for rng in (seeds, tuple(seeds), as_generators, np.array(seeds, object)):
            got = csoftmax.sample(x, rng=rng, size=size)
            assert got.shape == (5, *shape)
            assert np.array_equal(got, expected)
        assert csoftmax.sample(x[:2], rng=seeds[:2], size=size).tolist() == expected[:2].tolist()
    generators = [np.random.default_rng(1), np.random.default_rng(2)]
    csoftmax.sample(x[:2], rng=generators, size=3)
    assert generators[0].random() == np.random.default_rng(1).random(4)[3]
    untouched = np.random.default_rng(1)
    with pytest.raises(TypeError, match=r"rng\[1\] must be an int"):
        csoftmax.sample(x[:2], rng=[untouched, "x"])
    assert untouched.random() == np.random.default_rng(1).random()
    shared = np.random.default_rng(4)  # one generator in two places: in order of the rows
    assert np.array_equal(csoftmax.sample(x[:2], rng=[shared, shared], size=3), csoftmax.sample(x[:2], rng=4, size=3))


def test_numbers_that_are_read_in_pieces_are_the_same(monkeypatch):
    monkeypatch.setattr(csoftmax._arguments.generators, "PIECE", 7)
    x = np.random.default_rng(3).standard_normal((3, 20))
    read = []

    class Own(np.random.Generator):
        def random(self, *shape, **options):
            read.append(shape)
            return super().random(*shape, **options)

    for make in (np.random.default_rng, np.random.RandomState, lambda seed: Own(np.random.PCG64(seed))):
        uniforms = np.random.default_rng(5).random((3, 4, 5)) if make is not np.random.RandomState else None
        if uniforms is None:
            uniforms = np.random.RandomState(5).random_sample((3, 4, 5))
        expected = csoftmax.sample(x, size=(4, 5), rng=FixedUniform(uniforms.reshape(3, 20)))
        assert np.array_equal(csoftmax.sample(x, size=(4, 5), rng=make(5)), expected)
        each = [csoftmax.sample(x[i], size=(4, 5), rng=make(i)) for i in range(3)]
        assert np.array_equal(csoftmax.sample(x, size=(4, 5), rng=[make(i) for i in range(3)]), each)
    assert read[:2] == [((3, 20),), ((20,),)]  # a function of the user's is called once
    assert read[-1] == ((4, 5),)


def test_sources_in_the_shape_of_the_rows():
    x = logits((2, 3, 50), "float64", sigma=2)
    seeds = np.arange(6)
    expected = np.array(
        [csoftmax.sample(row, rng=int(s), size=4) for row, s in zip(x.reshape(6, 50), seeds, strict=True)]
    )
    expected = expected.reshape(2, 3, 4)
    for rng in (seeds, range(6), seeds.reshape(2, 3), seeds.reshape(2, 3).tolist(), [range(3), seeds[3:]]):
        assert np.array_equal(csoftmax.sample(x, rng=rng, size=4), expected)
    moved = np.moveaxis(x, -1, 0)
    assert np.array_equal(csoftmax.sample(moved, axis=0, rng=seeds, size=4), expected)
    flat = csoftmax.sample(x, axis=None, rng=[9], size=4)
    assert np.array_equal(flat, csoftmax.sample(x, axis=None, rng=9, size=4))
    assert csoftmax.sample(np.zeros((0, 5)), rng=[]).shape == (0,)
    for bad, text in (
        ([1, 2], "rng has length 2"),
        ([[1, 2, 3], [4, 5]], r"rng\[1\] has length 2"),
        ([[1, 2, 3], 4], r"rng\[1\] is 4"),
        ([[0, 1, 2], [3, 4, -5]], r"rng\[1\]\[2\] must be at least 0 where it is an int, got -5"),
    ):
        with pytest.raises(ValueError, match=text):
            csoftmax.sample(x, rng=bad)


def test_sources_of_numpy():
    """SeedSequence and bit generators are those of default_rng, and RandomState gives its random_sample."""
    x = logits((3, 50), "float32", sigma=2)
    expected = csoftmax.sample(x, rng=3, size=4)
    for rng in (np.random.SeedSequence(3), np.random.PCG64(3), np.array(3)):
        assert np.array_equal(csoftmax.sample(x, rng=rng, size=4), expected)
    u = np.random.RandomState(3).random_sample((3, 4))
    expected = csoftmax.sample(x, rng=FixedUniform(u), size=4)
    assert np.array_equal(csoftmax.sample(x, rng=np.random.RandomState(3), size=4), expected)
    mixed = [np.random.RandomState(3), np.random.SeedSequence(5), None]
    got = csoftmax.sample(x, rng=mixed, size=4)
    assert np.array_equal(got[0], expected[0])
    assert np.array_equal(got[1], csoftmax.sample(x[1], rng=5, size=4))


def test_rows_that_nothing_is_left_of():
    x = logits((2, 3, 5), "float32")
    with pytest.raises(ValueError, match=r"row \(\): its axis has no classes"):
        csoftmax.sample([])
    with pytest.raises(ValueError, match=r"row \(0, 0\): its axis has no classes"):
        csoftmax.sample(x[..., :0])
    with pytest.raises(ValueError, match=r"does not broadcast to the shape \(2, 3, 5\) of logits"):
        csoftmax.sample(x, where=[True] * 2)
    where = np.ones(x.shape, bool)
    where[1, 2] = False
    with pytest.raises(ValueError, match=r"row \(1, 2\): where leaves none of its classes"):
        csoftmax.sample(x, where=where)
    where[1, 2, 1] = True
    x[1, 2, 1] = -np.inf
    with pytest.raises(ValueError, match=r"row \(1, 2\): it holds only -inf"):
        csoftmax.sample(x, where=where)
    x[0, 1, 1], where[0, 1, 1] = np.nan, False  # a masked NaN is not in the way
    with pytest.raises(ValueError, match=r"row \(1, 2\): it holds only -inf"):
        csoftmax.sample(x, where=where)


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_rows_that_threads_share(options, dtype, seven_threads):
    """Threads share the blocks and draws of few or long rows; the draws are those of the same rows among many."""
    x = logits((9, 150_000), dtype, seed=4, sigma=2)
    u = np.random.default_rng(3).random((9, 300))
    for size in (1, 2, 300):
        expected = csoftmax.sample(x, rng=FixedUniform(u[:, :size]), size=size, num_threads=1, **options)
        for threads in (2, 7):
            few = csoftmax.sample(x[:2], rng=FixedUniform(u[:2, :size]), size=size, num_threads=threads, **options)
            assert np.array_equal(few, expected[:2]), (size, threads)


def test_layouts_of_rows_that_threads_share(dtype, seven_threads):
    x = logits((2, 150_000), dtype, seed=4, sigma=2)
    where = np.random.default_rng(0).random(x.shape) < 0.7
    masked = np.where(where, x, x.dtype.type(-np.inf))
    spaced = np.zeros((2, 300_001), x.dtype)[:, 1::2]
    spaced[...] = x
    u = np.random.default_rng(3).random((2, 20))
    for options in ({}, {"min_p": 0.01}, {"top_p": 0.9}, {"temperature": 1e-30}, {"temperature": np.inf}):
        for size in (2, 20):
            rng = FixedUniform(u[:, :size])
            expected = csoftmax.sample(x, rng=rng, size=size, num_threads=1, **options)
            for threads in (1, 7):
                for y in (spaced, np.asfortranarray(x), x.astype(x.dtype.newbyteorder()) if dtype != "bfloat16" else x):
                    got = csoftmax.sample(y, rng=rng, size=size, num_threads=threads, **options)
                    assert np.array_equal(got, expected), (options, size, threads)
                got = csoftmax.sample(x, rng=rng, size=size, where=where, num_threads=threads, **options)
                assert np.array_equal(got, csoftmax.sample(masked, rng=rng, size=size, **options)), (options, size)
    for value, text in ((np.nan, "NaN"), (np.inf, r"\+inf")):
        for temperature in (1.0, 1e-30, np.inf):
            bad = x.copy()
            bad[1, 77_777] = value
            with pytest.raises(ValueError, match=rf"row \(1\): it holds {text}"):
                csoftmax.sample(bad, temperature=temperature, num_threads=7)


def test_many_draws_of_one_row(seven_threads):
    """More draws than classes, shared by the threads."""
    x = logits((100,), "float32", sigma=2)
    expected = csoftmax.sample(x, rng=0, size=1_200_000, num_threads=1)
    assert np.array_equal(csoftmax.sample(x, rng=0, size=1_200_000, num_threads=7), expected)
    pieces = csoftmax.sample(np.tile(x, (1000, 1)), rng=0, size=1200, num_threads=7)  # each row draws by itself
    assert np.array_equal(pieces.ravel(), expected)


def test_long_rows_need_little_memory():
    """Neither e' nor prefix sums of a long row are stored for few draws."""
    done = run_python("""
import resource
import numpy as np
import csoftmax
x = np.random.default_rng(0).standard_normal(1 << 23, np.float32)
csoftmax.sample(x[:100_000], rng=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
csoftmax.sample(x, size=5, rng=0)
csoftmax.sample(x, size=5, rng=0, min_p=1e-4)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
""")
    assert int(done.stdout) < 8 << 10  # KiB; the row has 32 MiB


def test_masses_of_blocks_are_added_without_rounding():
    """64 blocks of 2^-54 behind one of 1: one addition after the other would lose all of them, and draw class 0."""
    x = np.full(65 * 4096, -np.inf)
    x[0], x[4096::4096] = 0, -54 * np.log(2)
    last = float(np.nextafter(1, 0))
    draws = csoftmax.sample(x, size=2, rng=FixedUniform([[0.5, last]]))
    assert draws[0] == 0
    assert draws[1] > 0
    assert draws[1] % 4096 == 0


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 40, "top_p": 0.9, "min_p": 0.01},
        {"temperature": 0.0},
        *(pytest.param(options, marks=pytest.mark.slow) for options in ({"top_k": 9}, {"top_p": 0.7})),
    ],
    ids=str,
)
def test_intervals_are_in_the_order_of_the_indices(options, dtype, isa):
    """The draws of rising numbers rise, whatever is filtered."""
    for n in (3, 64, 65, 1000, 9000):
        x = logits((3, n), dtype, seed=n, sigma=2)
        given = {**options, "top_k": min(options["top_k"], n)} if "top_k" in options else options
        u = np.broadcast_to((np.arange(64) + 0.5) / 64, (3, 64))
        draws = csoftmax.sample(x, size=64, rng=FixedUniform(u), **given)
        assert np.all(np.diff(draws) >= 0)
        for row in range(3):
            assert set(draws[row]) <= set(np.flatnonzero(distribution(x[row], **given)))


def test_a_call_that_fails_draws_nothing():
    """Errors found before, while and after the numbers are drawn; a source may be given twice."""
    good, bad = np.zeros((3, 5)), np.full((3, 5), -np.inf)
    makers = (
        np.random.default_rng,
        np.random.RandomState,
        np.random.PCG64,
        lambda seed: np.random.Generator(np.random.MT19937(seed)),
        lambda seed: np.random.Generator(np.random.SFC64(seed)),
    )
    failures = ({}, {"num_threads": 0}, {"top_p": 2.0}, {"out": np.empty(3)}, {"size": -1}, {"axis": 7})
    for make in makers:
        for use in (lambda rng: rng, lambda rng: [1, rng, rng], lambda rng: (rng, 5, rng)):
            source = make(3)
            if isinstance(source, np.random.Generator):
                source.integers(0, 9, dtype=np.uint32)  # half a number is kept back
            expected = make(3)
            if isinstance(expected, np.random.Generator):
                expected.integers(0, 9, dtype=np.uint32)
            for options in failures:
                x = good if options else bad
                with pytest.raises((TypeError, ValueError)):
                    csoftmax.sample(x, rng=use(source), **options)
            assert np.array_equal(csoftmax.sample(good, rng=use(source)), csoftmax.sample(good, rng=use(expected)))
