"""ClusteredHead: exact where it says so, bounds of lists, intervals and estimates, one result everywhere."""

import copy
import itertools
import pickle

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import run_python
from helpers.signals import seconds_to_stop
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.int8 import constructed, order, score

import csoftmax
from csoftmax._cpu import binding
from csoftmax._ops import clusters, int8
from csoftmax.heads import ClusteredHead

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def biases(rng, k):
    """None, numbers, some classes switched off, NaN and infinity."""
    plain = rng.standard_normal(k)
    off, special = plain.copy(), plain.copy()
    off[::3] = -np.inf
    special[[0, k // 2]] = np.nan, np.inf
    return {"none": None, "plain": plain, "off": off, "special": special, "wide": plain * 1e20}


def assert_right(head, x, w, bias, k):
    """exact=True is brute force in float64, and so is what is certified with fewer lists."""
    z = score(x, w, bias)
    expected = order(z, k)
    with np.errstate(all="ignore"):
        values = int8.round_scores(np.take_along_axis(z, expected, 1), head._w.dtype).astype(np.float64)
    found = head.topk(x, k, exact=True)
    assert found.certified.all()
    assert found.indices.tolist() == expected.tolist()
    np.testing.assert_array_equal(found.values.astype(np.float64), values)
    for n_probe in (1, 5, 10**9):
        found = head.topk(x, k, n_probe=n_probe)
        rows = found.certified
        assert found.indices[rows].tolist() == expected[rows].tolist()
        np.testing.assert_array_equal(found.values[rows].astype(np.float64), values[rows])
        rows = np.arange(len(x))[:, None]
        np.testing.assert_array_equal(
            found.values.astype(np.float64),
            int8.round_scores(z[rows, found.indices], head._w.dtype).astype(np.float64),
        )


def assert_right_on_constructed(rng, sizes, clusters_of):
    for k, d in sizes:
        for name, (w, x) in constructed(rng, k, d).items():
            for kind, bias in biases(rng, k).items():
                for n_clusters in clusters_of(k):
                    head = ClusteredHead(w, bias, n_clusters=n_clusters, rng=0, iterations=2)
                    for n in sorted({0, 1, k // 4, k}):
                        try:
                            assert_right(head, x, w, bias, n)
                        except AssertionError as error:
                            raise AssertionError(f"{name}, {kind}, {k} x {d}, {n_clusters}, k={n}: {error}") from None


def test_constructed_layers(isa):
    """Ties, duplicates, outlier channels, zero rows, 1e30, subnormals, NaN; K = 1, D = 1; empty clusters."""
    assert_right_on_constructed(np.random.default_rng(0), ((1, 1), (17, 3)), lambda k: (6,))


@pytest.mark.long
def test_more_constructed_layers():
    sizes = (2, 1), (16, 2), (300, 127), (200, 129), (50, 2100)
    assert_right_on_constructed(np.random.default_rng(1), sizes, lambda k: (None, 1, k))


def assert_lists_are_bounded(head, x, w, bias):
    """No score, as it is computed, is above the bound of its list."""
    lists = head._lists
    z = score(x, w, bias)
    ids = lists.layer.order
    for row, scores in zip(np.asarray(x, np.float64), z):
        norm = np.linalg.norm(row)
        centers = score(row[None], lists.centers.w)[0]
        for i in range(lists.n_lists):
            members = ids[lists.begin[i] : lists.begin[i + 1]]
            bound = centers[i] + norm * lists.radius[i] * (1 + 1e-12) + lists.largest[i]
            slack = 1e-13 * (np.abs(centers[i]) + np.abs(lists.largest[i]))
            assert (scores[members] <= bound + slack).all()
            if len(members):
                spread = np.asarray(w[members], np.float64) - np.asarray(w[members], np.float64).mean(axis=0)
                assert np.linalg.norm(spread, 2) ** 2 / len(members) <= lists.variance[i]


def test_bounds_of_lists():
    """Hold for each class of each list, and its variance; a radius that is too small is noticed."""
    rng = np.random.default_rng(2)
    for name, (w, x) in constructed(rng, 200, 9).items():
        if not name.startswith("special") and name != "large":
            head = ClusteredHead(w, rng.standard_normal(200), rng=0)
            assert_lists_are_bounded(head, x, w, head._bias)
    w, x = rng.standard_normal((400, 2)), rng.standard_normal((50, 2))
    head = ClusteredHead(w, rng=0)
    assert head.topk(x, 3, n_probe=8).certified.mean() > 0.5, "bounds are of use here"
    head._lists = head._lists._replace(radius=0 * head._lists.radius)
    with pytest.raises(AssertionError):
        assert_right(head, x, w, None, 3)


def test_lists_that_are_given_back():
    """Where exact search would look at most codes, all are searched at once, with masks and exclusions of its own."""
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((3000, 24)).astype(np.float32), rng.standard_normal((9, 24)).astype(np.float32)
    x[4, 0], x[5, 0] = np.nan, 1e38
    z, head = score(x, w), ClusteredHead(w, rng=0)
    for share in (1.0, 0.5, 0.001, 0.0):
        for shape in ((3000,), (9, 3000)):
            where, excluded = rng.random(shape) < share, rng.random((9, 3000)) < 0.2
            ids = [np.flatnonzero(row) for row in excluded]
            exclude = np.concatenate(([0], np.cumsum([len(row) for row in ids]))), np.concatenate(ids)
            for is_exact in (True, False):
                found = head.topk(x, 7, exact=is_exact, n_probe=2, where=where, exclude=exclude)
                for i in range(9):
                    allowed = np.broadcast_to(where, (9, 3000))[i] & ~excluded[i]
                    inside, outside = np.flatnonzero(allowed), np.flatnonzero(~allowed)
                    best = inside[order(z[i : i + 1, inside], 7)[0]] if len(inside) else inside
                    count = min(7, len(inside))
                    assert allowed[found.indices[i, :count]].all()
                    assert found.indices[i, count:].tolist() == outside[: 7 - count].tolist()
                    assert np.isneginf(found.values[i, count:]).all()
                    if found.certified[i]:
                        assert found.indices[i, :count].tolist() == best.tolist()
                assert found.certified.all() or not is_exact
    assert head.topk(x, 7, exact=True).certified.all()
    assert head.stats["scanned_mean"] == 3000
    assert head.stats["exact_scans"] == 1


def test_one_result_for_every_thread_batch_and_instruction_set():
    rng = np.random.default_rng(4)
    w, x = rng.standard_normal((3000, 17)).astype(np.float32), rng.standard_normal((40, 17)).astype(np.float32)
    bias, seen, before = rng.standard_normal(3000), {}, binding.isa()
    try:
        for name, threads in itertools.product(binding.isa_available(), (1, 2, 5)):
            binding.select_isa(name)
            head = ClusteredHead(w, bias, rng=7, iterations=3, num_threads=threads)
            found = head.topk(x, 5, n_probe=3), head.topk(x, 5, exact=True)
            arrays = [head._lists.layer.codes, head._lists.layer.order, head._lists.begin, *found[0], *found[1]]
            seen[name, threads] = [a.tobytes() for a in arrays]
            interval = head.log_partition(x[:3], n_sample=20, rng=1)
            seen[name, threads] += [np.float32(a).tobytes() for a in interval]
    finally:
        binding.select_isa(before)
    first, *others = seen.values()
    assert all(other == first for other in others)
    single = [head.topk(row, 5, n_probe=3) for row in x]
    for field in range(3):
        assert np.stack([t[field] for t in single]).tobytes() == found[0][field].tobytes()


def test_dtypes_and_layouts():
    rng = np.random.default_rng(5)
    for dtype in DTYPES:
        w, x = (rng.standard_normal(s).astype(np.float32).astype(dtype) for s in ((90, 13), (4, 13)))
        head = ClusteredHead(w, rng=0)
        assert_right(head, x, w, None, 5)
        assert head.topk(x, 5).values.dtype == dtype
        expected = head.topk(x, 5)
        wide, read_only = np.zeros((180, 26), dtype), w.copy()
        wide[::2, ::2], read_only.flags.writeable = w, False
        for other in (np.asfortranarray(w), wide[::2, ::2], read_only):
            for is_copy in (False, True):
                found = ClusteredHead(other, rng=0, copy=is_copy).topk(np.asfortranarray(x), 5)
                assert [a.tobytes() for a in found] == [a.tobytes() for a in expected]
        for twin in (copy.copy(head), copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert [a.tobytes() for a in twin.topk(x, 5)] == [a.tobytes() for a in expected]
            assert not np.may_share_memory(twin._w, head._w)
    integers = ClusteredHead([[1, 2], [3, 4]], rng=0)
    assert integers.topk([1, 1], 2).values.tolist() == [7.0, 3.0]
    assert integers.topk([1, 1], 2).certified.shape == ()
    assert integers.topk(np.ones((2, 3, 2), np.int8), 1).certified.shape == (2, 3)
    assert integers.predict([1.0, 1.0]).shape == ()
    assert integers.predict(np.ones((0, 2))).shape == (0,)
    assert integers.topk(np.ones((0, 2)), 2, exact=True).values.shape == (0, 2)
    assert integers.topk(np.ones((3, 2)), 0).certified.all()
    assert integers.log_partition(np.ones((0, 2)), n_sample=3).estimate.shape == (0,)
    np.testing.assert_array_equal(integers.logits([[1, 1]], [1, 0, 0]), [[7, 3, 3]])


def test_memory_and_names():
    w = np.random.default_rng(6).standard_normal((4000, 32)).astype(np.float32)
    head = ClusteredHead(w, rng=0)
    assert (head.n_classes, head.n_features) == w.shape
    assert 0.9 * 4 * 4000**0.5 <= head.n_clusters <= 253
    assert 0.9 < head.nbytes / (4000 * (32 + 24) + head.n_clusters * (9 * 32 + 140)) < 1.1
    assert repr(head) == f"ClusteredHead(4000 classes, 32 features, {head.n_clusters} clusters)"
    assert ClusteredHead(w[:1], rng=0).n_clusters == ClusteredHead(w[:50] * np.nan).n_clusters == 1
    assert ClusteredHead(np.repeat(w[:3], 50, axis=0), n_clusters=100, rng=0).n_clusters <= 100
    same = [ClusteredHead(w, rng=seed)._lists.layer.order.tobytes() for seed in (3, 3, 4)]
    assert same[0] == same[1] != same[2]


def truth_of(x, w, bias):
    with mpmath.workdps(60):
        for row in np.asarray(x, np.float64):
            z = [mpmath.fdot(map(float, row), map(float, c)) + float(b) for c, b in zip(w, bias) if b > -np.inf]
            top = max(z)
            yield top + mpmath.log(mpmath.fsum(mpmath.exp(v - top) for v in z))


def assert_contains(head, x, w, bias, **options):
    found = head.log_partition(x, rng=0, **options)
    for i, log_z in enumerate(truth_of(x, w, bias)):
        assert found.lower[i] <= log_z <= found.upper[i], (options, found.lower[i], log_z, found.upper[i])
    if options.get("n_sample") or options["n_probe"] == 10**9:
        assert (found.lower <= found.estimate_lower).all()
        assert (found.estimate_lower <= found.estimate_upper).all()
        assert (found.estimate_upper <= found.upper).all()
    return found


def test_intervals_contain_the_truth():
    rng = np.random.default_rng(7)
    for k, d in ((1, 1), (17, 3), (60, 9)):
        for name, (w, x) in constructed(rng, k, d).items():
            if name.startswith("special"):
                continue
            bias = rng.standard_normal(k)
            bias[1:][::5] = -np.inf
            head = ClusteredHead(w, bias, n_clusters=max(1, k // 3), rng=0)
            for options in ({"n_probe": 1}, {"n_probe": 2, "n_sample": 4}, {"n_probe": 10**9}):
                try:
                    assert_contains(head, x[:2], w, bias, **options)
                except AssertionError as error:
                    raise AssertionError(f"{name}, {k} x {d}: {error}") from None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_intervals_contain_the_truth_whatever_the_numbers(data):
    k, d = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 4))
    number = st.one_of(st.integers(-3, 3).map(float), st.floats(-30, 30, width=32), st.floats(-1e6, 1e6, width=32))
    w = np.array(data.draw(st.lists(number, min_size=k * d, max_size=k * d)), np.float32).reshape(k, d)
    x = np.array(data.draw(st.lists(number, min_size=d, max_size=d)), np.float32)[None]
    bias = np.array(data.draw(st.lists(number, min_size=k, max_size=k)))
    head = ClusteredHead(w, bias, n_clusters=data.draw(st.integers(1, 4)), rng=0)
    assert_contains(head, x, w, bias, n_probe=data.draw(st.sampled_from([1, 2])), n_sample=data.draw(st.integers(0, 3)))


def test_extreme_distribution_of_a_list():
    """The upper bound is attained: k classes above the mean, the others below it, features along that direction."""
    for above in (1, 3):
        w = np.where(np.arange(20) < above, 20 - above, -above)[:, None] * np.float32([1.0, 0.0]) / 20
        head = ClusteredHead(w, n_clusters=1, rng=0)
        lists = head._lists
        x = np.array([[1.0, 0.0]])
        found = head.log_partition(x, n_probe=1)
        from csoftmax._learn import clustered_intervals

        q = clustered_intervals._Query(lists, x[0], 1.0, None)
        bounds = clustered_intervals._bound_lists(q)
        truth = np.log(np.exp(w[:, 0].astype(np.float64)).sum())
        assert found.lower <= truth <= found.upper
        assert bounds.lower[0] <= truth <= bounds.upper[0] <= truth + 0.01 * (truth - bounds.lower[0]) + 1e-3


def test_the_estimate_is_unbiased():
    """Each class takes part with the probability that is used for it, and the mean of many estimates is the truth."""
    from csoftmax._learn import clustered_intervals

    rng = np.random.default_rng(8)
    w, x = 0.7 * rng.standard_normal((500, 6)), rng.standard_normal((1, 6))
    head = ClusteredHead(w, rng=0)
    truth = np.exp(x @ w.T).sum()
    runs = 3000
    found = head.log_partition(np.repeat(x, runs, axis=0), n_probe=4, n_sample=40, rng=1)
    z = np.exp(found.estimate)
    assert abs(z.mean() - truth) < 4 * z.std() / runs**0.5
    covered = (found.estimate_lower <= np.log(truth)) & (np.log(truth) <= found.estimate_upper)
    assert covered.mean() > 0.94
    sizes, share = np.array([5, 30, 1000, 4]), np.array([0.0, -1.0, -3.0, -700.0])
    for count in (1, 20, 200, 1038):
        p = clustered_intervals._choose_inclusion(share, sizes, count)
        assert ((p > 0) & (p <= 1)).all()
        assert abs((p * sizes).sum() - count) < 1e-9 * count
    begin, seen, expected = np.array([0, 5, 35, 1035]), np.zeros(1039), np.repeat(p, sizes)
    p = clustered_intervals._choose_inclusion(share, sizes, 200)
    expected = np.repeat(p, sizes)
    generator = np.random.default_rng(9)
    for _ in range(2000):
        at, codes = clustered_intervals._draw(begin, sizes, p, generator)
        assert len(np.unique(codes)) == len(codes)
        assert ((begin[at] <= codes) & (codes < begin[at] + sizes[at])).all()
        seen[codes] += 1
    error = np.abs(seen - 2000 * expected) / np.sqrt(2000 * expected * (1 - expected) + 1)
    assert error.max() < 5


def test_estimates_of_special_queries():
    rng = np.random.default_rng(10)
    w = rng.standard_normal((50, 3))
    head = ClusteredHead(w, rng=0)
    nothing = head.log_partition(np.ones((1, 3)), n_probe=1)
    assert np.isnan([nothing.estimate, nothing.estimate_lower, nothing.estimate_upper]).all()
    everything = head.log_partition(np.ones((1, 3)), n_probe=50)
    assert everything.lower <= everything.estimate <= everything.upper
    assert everything.upper - everything.lower < 1e-10
    sampled = head.log_partition(np.ones((1, 3)), n_probe=1, n_sample=1000, rng=0)
    np.testing.assert_allclose(sampled.estimate, everything.estimate, rtol=1e-13)
    assert np.isnan(head.log_partition([[np.nan, 0, 0]], n_sample=1).lower).all()
    off = ClusteredHead(w, np.full(50, -np.inf))
    assert np.isneginf(off.log_partition([[1.0, 2, 3]]).lower).all()
    assert off.topk([[1.0, 2, 3]], 2).indices.tolist() == [[0, 1]]
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="confidence must be in"):
        head.log_partition(np.ones((1, 3)), n_sample=3, confidence=1.0, rng=generator)
    assert generator.random() == np.random.default_rng(0).random()


def test_estimates_and_their_bounds():
    """Where scores hardly differ the estimate is far better than one without means, and bounds are never empty."""
    rng = np.random.default_rng(0)
    w, x = 0.02 * rng.standard_normal((2000, 16)), rng.standard_normal((200, 16))
    found = ClusteredHead(w, rng=0).log_partition(x, n_probe=4, n_sample=100, rng=0)
    truth = np.log(np.exp(x @ w.T).sum(axis=1))
    assert np.sqrt(np.square(found.estimate - truth).mean()) < 0.01
    assert ((found.lower <= found.estimate_lower) & (found.estimate_upper <= found.upper)).all()
    assert (found.estimate_lower < found.estimate_upper).all()
    assert ((found.estimate_lower <= truth) & (truth <= found.estimate_upper)).mean() > 0.97
    w, x = 0.5 * rng.standard_normal((5000, 16)), rng.standard_normal((200, 16))
    found = ClusteredHead(w, rng=0).log_partition(x, n_probe=4, n_sample=100, rng=0)
    truth = np.log(np.exp(x @ w.T).sum(axis=1))
    assert ((found.estimate_lower <= truth) & (truth <= found.estimate_upper)).mean() > 0.95
    few = ClusteredHead(w, rng=0).log_partition(x, n_probe=1, n_sample=1, rng=0)
    assert (few.lower <= few.estimate_lower).all()
    assert (few.estimate_lower <= few.estimate_upper).all()


def test_odd_numbers():
    """n_probe beyond 64 bits, strict floating-point errors, squares that underflow, bytes of the bias, a bad rng."""
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((4000, 8)), rng.standard_normal((2, 8))
    head = ClusteredHead(w, rng=0)
    assert head.topk(x, 3, n_probe=2**70).certified.all()
    assert head.log_partition(x, n_probe=2**70, n_sample=2**70).estimate.shape == (2,)
    assert np.ndim(head.predict(x[0])) == 0
    with pytest.raises(TypeError, match="rng must be"):
        head.log_partition(x, rng="a")
    for bias, each in ((rng.standard_normal(4000).astype(np.float32), 12), (rng.standard_normal(4000), 20)):
        assert abs(ClusteredHead(w, bias * np.float32(2**-30), n_clusters=1, rng=0).nbytes
                   - ClusteredHead(w, n_clusters=1, rng=0).nbytes - each * 4000) < 200  # fmt: skip
    tiny = w[:40].copy()
    tiny[::4] *= 1e-200
    with np.errstate(all="raise"):
        for weights in (tiny, w[:40] * 1e-300):
            head = ClusteredHead(weights, rng=0)
            assert_right(head, x, weights, None, 5)
    lists = ClusteredHead(tiny, rng=0)._lists
    assert set(range(0, 40, 4)) <= set(lists.layer.order[lists.begin[-3] : lists.begin[-2]].tolist())


def test_refusals():
    x = np.ones((2, 3))
    head = ClusteredHead(np.ones((5, 3), np.float32))
    for error, message, call in (
        (ValueError, r"w has shape \(3,\)", lambda: ClusteredHead([1.0, 2.0, 3.0])),
        (ValueError, r"w has shape \(0, 3\)", lambda: ClusteredHead(np.ones((0, 3)))),
        (TypeError, "w has dtype object", lambda: ClusteredHead(np.ones((2, 2), object))),
        (ValueError, r"bias has shape \(4,\)", lambda: ClusteredHead(np.ones((5, 3)), np.ones(4))),
        (ValueError, "n_clusters must be at least 1, got 0", lambda: ClusteredHead(x, n_clusters=0)),
        (TypeError, "n_clusters must be an int or None", lambda: ClusteredHead(x, n_clusters=1.5)),
        (ValueError, "iterations must be at least 0, got -1", lambda: ClusteredHead(x, iterations=-1)),
        (TypeError, "rng must be", lambda: ClusteredHead(x, rng="a")),
        (TypeError, "copy must be a bool", lambda: ClusteredHead(x, copy=1)),
        (csoftmax.DeviceError, "no kernels for CUDA", lambda: ClusteredHead(x, device="cuda")),
        (ValueError, "num_threads must be at least 1", lambda: ClusteredHead(x, num_threads=0)),
        (ValueError, r"x has shape \(2, 4\); allowed is \(\.\.\., 3\)", lambda: head.topk(np.ones((2, 4)), 1)),
        (ValueError, "k must be at most the number of classes, 5, got 6", lambda: head.topk(x, 6)),
        (ValueError, "n_probe must be at least 1, got 0", lambda: head.topk(x, 1, n_probe=0)),
        (TypeError, "exact must be a bool", lambda: head.topk(x, 1, exact=1)),
        (TypeError, "where must be boolean", lambda: head.topk(x, 1, where=np.ones(5))),
        (IndexError, r"ids\[1\] of exclude is 5", lambda: head.topk(x, 1, exclude=([0, 2, 2], [0, 5]))),
        (IndexError, r"ids\[1\] is 5", lambda: head.logits(x, [0, 5])),
        (ValueError, "n_probe must be at least 1", lambda: head.log_partition(x, n_probe=0)),
        (ValueError, "n_sample must be at least 0", lambda: head.log_partition(x, n_sample=-1)),
        (ValueError, "confidence must be in", lambda: head.log_partition(x, confidence=0)),
    ):
        with pytest.raises(error, match=message):
            call()


def test_interrupts_and_warnings():
    """Ctrl-C ends clustering and search soon; extreme weights cause no warning."""
    w = np.random.default_rng(0).standard_normal((60000, 64)).astype(np.float32)
    assert seconds_to_stop(lambda: ClusteredHead(w, n_clusters=500)) < 0.5
    head = ClusteredHead(w[:6000], n_clusters=50, iterations=1)
    before = head.stats
    assert seconds_to_stop(lambda: head.topk(np.repeat(w, 5, axis=0), 10, n_probe=50)) < 0.5
    assert head.stats == before
    done = run_python(
        "import warnings, numpy as np\nwarnings.simplefilter('error')\nfrom csoftmax.heads import ClusteredHead\n"
        "for scale in (1e-320, 1e-160, 1.0, 1e160, 1e300):\n"
        "    w = np.random.default_rng(0).standard_normal((60, 4)) * scale\n"
        "    head = ClusteredHead(w, np.geomspace(1e-300, 1e300, 60), rng=0)\n"
        "    for x in (np.ones((1, 4)), np.full((1, 4), 1e200), np.full((1, 4), 1e-200)):\n"
        "        head.topk(x, 3), head.topk(x, 3, exact=True), head.log_partition(x, n_sample=3)\n"
        "print('done')"
    )
    assert done.stdout.strip() == "done", done.stderr


def test_clusters_are_those_of_lloyd():
    """Assignments are the nearest means in exact arithmetic; the sum of squares falls to that of scikit-learn's."""
    cluster = pytest.importorskip("sklearn.cluster")
    rng = np.random.default_rng(11)
    centers = 3 * rng.standard_normal((20, 8))
    w = centers[rng.integers(0, 20, 1500)] + rng.standard_normal((1500, 8))
    head = ClusteredHead(w, n_clusters=20, rng=0, iterations=30)
    lists = head._lists
    inertia = sum(
        np.square(w[ids] - w[ids].mean(axis=0)).sum()
        for ids in (lists.layer.order[a:b] for a, b in itertools.pairwise(lists.begin[: lists.n_lists + 1]))
    )
    other = cluster.KMeans(20, n_init=1, init="random", random_state=0).fit(w).inertia_
    assert inertia < 1.15 * other
    points = clusters._Points(w, None, np.arange(1500), 1.0)
    means = rng.standard_normal((30, 8)).astype(np.float32)
    labels = clusters._nearest(points, np.arange(1500), means, None)
    distances = np.square(w[:, None] - means).sum(axis=2)
    assert (distances[np.arange(1500), labels] <= distances.min(axis=1) * (1 + 1e-12)).all()
