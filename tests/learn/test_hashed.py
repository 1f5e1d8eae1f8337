"""Class hashing: the hash by Python's integers and by enumeration, scores and top-k by brute force, losses, bits."""

import copy
import itertools
import pickle
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from helpers import run_python
from oracles import hashed as oracle

import csoftmax
from csoftmax._cpu import binding
from csoftmax._ops.hashed import Rule, compute_buckets, compute_scores, find_best
from csoftmax.heads import BloomSoftmax, HashedSoftmax, RowOptimizer, hash_buckets

AGGREGATES = ("geometric", "mean", "min", "prior")
K = 2_500  # more than two blocks of the kernel


def make_layers(dtype=np.float32, classes=K, features=5):
    """A layer of each kind with random parameters; some counts are 0."""
    rng = np.random.default_rng(0)
    counts = rng.random(classes) * (np.arange(classes) % 9 > 0)
    for aggregate in AGGREGATES:
        yield HashedSoftmax(
            features, classes, n_buckets=37, n_hashes=5, counts=counts, aggregate=aggregate, dtype=dtype, rng=1
        )
    yield HashedSoftmax(features, classes, n_buckets=3000, n_hashes=3, bias=False, dtype=dtype, rng=2)
    yield BloomSoftmax(features, classes, n_buckets=40, n_hashes=3, dtype=dtype, rng=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield HashedSoftmax(features, classes, n_buckets=64, n_hashes=1, dtype=dtype, rng=4)


def fill(layer, seed=0):
    rng = np.random.default_rng(seed)
    for a in layer.parameters.values():
        a[...] = rng.normal(size=a.shape)
    return layer


def order(scores, k):
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


# The hash


def test_buckets_are_those_of_integers(isa):
    rng = np.random.default_rng(0)
    random = rng.integers(0, 2**64, 1003, np.uint64)
    edges = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    for n_buckets, hashes in itertools.product((1, 2, 3, 17, 512, 10**6 + 3, 2**31, 2**32 - 1, 2**32), (1, 3)):
        family = np.random.default_rng(7).integers(0, 2**64, (3, hashes), np.uint64)
        for ids in (np.arange(2100), random, random.view(np.int64), edges, random[::-3], np.arange(-9, 9)):
            found = hash_buckets(ids, n_buckets, hashes, 7)
            assert found.dtype == np.int64
            assert np.array_equal(found, oracle.find_buckets(family, n_buckets, ids)), (isa, n_buckets, hashes)
    small = np.array([[-1, 2], [127, -128]], np.int8)
    assert np.array_equal(hash_buckets(small, 99, 2, 0), hash_buckets(small.astype(np.int64), 99, 2, 0))
    assert hash_buckets(small, 99, 2, 0).shape == (2, 2, 2)
    assert np.array_equal(hash_buckets(-1, 99, 2, 0), hash_buckets(2**64 - 1, 99, 2, 0))
    assert hash_buckets([], 99, 2, 0).shape == (0, 2)
    generator = np.random.default_rng(5)
    first = hash_buckets([1, 2], 99, 2, generator)
    assert np.array_equal(first, hash_buckets([1, 2], 99, 2, 5))
    assert not np.array_equal(first, hash_buckets([1, 2], 99, 2, generator))


def test_collisions_of_short_words_by_enumeration():
    """The construction with words of 2 w bits in place of 64, for all of its numbers: h of two ids are independent."""
    for w in (1, 2):
        word, half = 2 ** (2 * w), 2**w
        numbers = np.arange(word)
        a1, a2, c = (g.reshape(-1) for g in np.meshgrid(numbers, numbers, numbers))
        h = np.array([((a1 * (i % half) + a2 * (i >> w) + c) % word) >> w for i in range(word)])
        for i, j in itertools.combinations(range(word), 2):
            assert (np.bincount(h[i] * half + h[j], minlength=half**2) * half**2 == len(a1)).all()
        for n_buckets in range(1, half + 1):
            bucket = (h * n_buckets) >> w
            sizes = np.bincount((np.arange(half) * n_buckets) >> w)
            expected = (sizes**2).sum() / half**2  # 1 / n_buckets where that divides 2^w
            for i, j in itertools.combinations(range(word), 2):
                assert (bucket[i] == bucket[j]).mean() == expected


@pytest.mark.slow
def test_collisions_and_evenness_of_the_hash():
    """1,000 families: no more collisions than 1 / B within 4 sigma; consecutive ids are spread more evenly."""
    for ids in (np.arange(100), np.random.default_rng(0).integers(0, 2**64, 100, np.uint64), np.arange(100) << 32):
        buckets = hash_buckets(ids, 50, 1_000, 3)
        pairs = list(itertools.combinations(range(0, 100, 9), 2))
        rate = np.mean([(buckets[i] == buckets[j]).mean() for i, j in pairs])
        assert rate < 1 / 50 + 4 * np.sqrt(1 / 50 / (1_000 * len(pairs)))
        for i, j in pairs:  # of each pair alone the hashes are independent
            assert abs((buckets[i] == buckets[j]).mean() - 1 / 50) < 4.5 * np.sqrt(1 / 50 / 1_000)
    of_hashes = [np.bincount(column, minlength=100).std() for column in hash_buckets(np.arange(10**5), 100, 200, 3).T]
    assert np.median(of_hashes) < np.sqrt(1_000) / 10


@pytest.mark.slow
def test_unbiased_over_families():
    """Where the P_r are sums of probabilities of classes: the mean over 2,000 families within 4 sigma of these."""
    classes, n_buckets, hashes = 50, 10, 2
    p = np.random.default_rng(0).dirichlet(np.full(classes, 0.3))
    estimates = np.empty((2_000, classes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in range(2_000):
            layer = HashedSoftmax(1, classes, n_buckets=n_buckets, n_hashes=hashes, dtype=np.float64, rng=seed)
            sums = [np.bincount(b, p, n_buckets) for b in layer.buckets(np.arange(classes)).T]
            with np.errstate(divide="ignore"):
                layer.parameters["bias"][:] = np.log(np.concatenate(sums))
            estimates[seed] = layer.unbiased(np.zeros(1))
    sigma = estimates.std(axis=0, ddof=1) / np.sqrt(2_000)
    assert (np.abs(estimates.mean(axis=0) - p) < 4 * sigma).all()
    assert (estimates < 0).any()


def test_unbiased_is_its_formula():
    layer = fill(HashedSoftmax(4, 300, n_buckets=19, n_hashes=6, rng=0))
    x = np.random.default_rng(1).normal(size=(3, 4))
    layer.aggregate = "mean"
    mean = layer.scores(x).astype(np.float64)
    assert np.allclose(layer.unbiased(x), 19 / 18 * (mean - 1 / 19), rtol=1e-12, atol=1e-15)
    assert layer.unbiased(x, [[1], [2], [3]]).shape == (3, 1)
    assert layer.aggregate == "mean"


# Scores


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_and_topk_equal_brute_force(dtype):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(4, 5))
    for layer in map(fill, make_layers(dtype)):
        expected = oracle.compute_scores(layer, x, np.arange(K))
        scores = layer.scores(x)
        assert scores.dtype == np.float32
        assert np.array_equal(scores, expected), repr(layer)
        for k in (0, 1, 7, 300, K):
            best = layer.topk(x, k)
            assert np.array_equal(best.indices, order(expected, k))
            assert np.array_equal(best.values, np.take_along_axis(expected, best.indices, 1))
        assert np.array_equal(layer.predict(x), expected.argmax(axis=1))
        some, each = rng.permutation(K)[:1500], rng.integers(0, K, (4, 9))
        assert np.array_equal(layer.scores(x, some), expected[:, some])
        assert np.array_equal(layer.topk(x, 9, some).indices, some[order(expected[:, some], 9)])
        of_rows = np.take_along_axis(expected, each, 1)
        assert np.array_equal(layer.scores(x, each), of_rows)
        assert np.array_equal(layer.topk(x, 9, each).indices, np.take_along_axis(each, order(of_rows, 9), 1))
        assert layer.scores(x.reshape(2, 2, 5), each.reshape(2, 2, 9)).shape == (2, 2, 9)
        assert layer.predict(x[0]) == expected[0].argmax()


def test_probabilities():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 5))
    for layer in [*make_layers()][:4]:
        fill(layer)
        log_p, before = layer.log_proba(x), layer.aggregate
        assert log_p.dtype == np.float64
        assert layer.aggregate == before
        layer.aggregate = "prior"
        scores = oracle.compute_scores(layer, x, np.arange(K)).astype(np.float64)
        assert np.allclose(log_p, csoftmax.log_softmax(scores), rtol=1e-13, atol=1e-13)
        assert np.isneginf(log_p[:, layer.counts == 0]).all()
        some = np.array([5, 9, 1700])
        assert np.array_equal(layer.log_proba(x, some), log_p[:, some])
        assert np.allclose(layer.log_proba(x[0]), log_p[0], atol=1e-4)  # another product of the BLAS
    # more classes than are normalised at a time
    large = fill(HashedSoftmax(5, 300_000, n_buckets=50, n_hashes=17, counts=rng.random(300_000), rng=0))
    p = np.exp(large.log_proba(x[:2]))
    assert np.abs(p.sum(axis=1) - 1).max() < 1e-12
    # true bucket sums and the counts as probabilities: the prior is exact
    large.parameters["w"][:] = 0
    large.parameters["bias"][:] = large._find_prior().of_buckets.reshape(-1)
    assert np.allclose(np.exp(large.log_proba(x[:1]))[0] * large.counts.sum(), large.counts, rtol=1e-5)


def test_special_values():
    """NaN in a row reaches that row alone; a bucket that is off switches its classes off."""
    rng = np.random.default_rng(0)
    for layer in map(fill, make_layers()):
        x = rng.normal(size=(5, 5)).astype(np.float32)
        clean = layer.scores(x)
        x[1, 2], x[3, 0] = np.nan, np.inf
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores, best = layer.scores(x), layer.topk(x, 3)
        assert np.isnan(scores[[1, 3]]).all()
        assert not np.signbit(scores[[1, 3]]).any()
        assert np.array_equal(scores[[0, 2, 4]], clean[[0, 2, 4]])
        assert best.indices[1].tolist() == [0, 1, 2]
        assert np.isnan(best.values[[1, 3]]).all()
        assert layer.predict(x)[1] == 0
    layer = fill(HashedSoftmax(5, K, n_buckets=37, n_hashes=5, counts=np.ones(K), rng=1))
    layer.parameters["bias"][37 * 2 + 4] = np.inf  # one softmax of five is NaN
    for aggregate in AGGREGATES:
        layer.aggregate = aggregate
        assert np.isnan(layer.scores(np.ones((9, 5)))).all()
    layer.parameters["bias"][37 * 2 + 4] = -np.inf
    is_off = layer.buckets(np.arange(K))[:, 2] == 4
    for aggregate in ("geometric", "prior"):
        layer.aggregate = aggregate
        assert np.array_equal(np.isneginf(layer.scores(x[0])), is_off)
    assert np.array_equal(np.isneginf(layer.log_proba(x[0])), is_off)


def test_ties_go_to_the_first_class():
    layer = HashedSoftmax(3, 200_000, n_buckets=64, rng=0)  # all scores are equal
    for threads in (1, 2, 8):
        best = layer.topk(np.ones((2, 3)), 5, num_threads=threads)
        assert best.indices.tolist() == [[0, 1, 2, 3, 4]] * 2
        assert layer.topk(np.ones(3), 3, [9, 4, 9, 1], num_threads=threads).indices.tolist() == [9, 4, 9]
    fill(layer)
    same = np.tile(np.arange(1000), 200)  # each score 200 times
    best = layer.topk(np.ones((1, 3)), 450, same)
    expected = order(layer.scores(np.ones((1, 3)), same), 450)
    assert np.array_equal(best.indices, same[expected])


def test_bits_of_threads_and_instruction_sets(keep_isa):
    """The kernels from the same tables: scores, the k best and buckets have the same bits."""
    rng = np.random.default_rng(0)
    family = rng.integers(0, 2**64, (3, 7), np.uint64)
    count = 150_001
    tables = np.log(rng.random((11, 7, 300))).astype(np.float32)  # a whole group of rows, and three
    prior = rng.random(count).astype(np.float32)
    ids = rng.permutation(count)
    for is_least, given in itertools.product((False, True), (None, ids)):
        rule = Rule(is_least, 1.0 if is_least else 7.0, prior)
        expected = None
        for isa in binding.isa_available():
            binding.select_isa(isa)
            for threads in (1, 2, 5):
                scores = np.empty((11, count), np.float32)
                values, places = np.empty((11, 33), np.float32), np.empty((11, 33), np.int64)
                compute_scores(family, tables, given, rule, scores, threads)
                find_best(family, tables, count, given, rule, values, places, threads)
                got = scores, values, places, compute_buckets(family, 300, ids, threads)
                if expected is None:
                    expected = got
                    assert np.array_equal(places, order(scores, 33))
                    alone = np.empty((1, count), np.float32)
                    for row in range(11):
                        compute_scores(family, tables[row : row + 1], given, rule, alone, threads)
                        assert np.array_equal(alone[0], scores[row])
                for a, b in zip(got, expected, strict=True):
                    assert np.array_equal(a, b), (isa, threads)


# Training


def test_losses_by_the_definition():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 5)), rng.integers(0, K, 6)
    for layer in map(fill, make_layers(np.float64)):
        z = (x @ layer.parameters["w"].T + layer.parameters.get("bias", 0)).reshape(6, -1, layer.n_buckets)
        buckets = layer.buckets(y)
        for t in (1.0, 2.5):
            log_p = z / t - np.log(np.exp(z / t).sum(axis=2, keepdims=True))
            log_p = np.broadcast_to(log_p, (6, layer.n_hashes, layer.n_buckets))
            losses = -np.take_along_axis(log_p, buckets[..., None], 2)[..., 0].mean(axis=1)
            assert np.allclose(layer.loss(x, y, reduction="none", temperature=t), losses, rtol=1e-13)
        s, weight = rng.random(6), rng.random(K)
        losses = layer.loss(x, y, reduction="none")
        s[2] = 0
        total = losses * s * weight[y]
        options = {"sample_weight": s, "weight": weight}
        assert np.isclose(layer.loss(x, y, reduction="sum", **options), total.sum(), rtol=1e-13)
        assert np.isclose(layer.loss(x, y, **options), total.sum() / (s * weight[y]).sum(), rtol=1e-13)
        ignored = np.where(np.arange(6) == 3, -100, y)
        assert np.isclose(layer.loss(x, ignored), np.delete(losses, 3).mean(), rtol=1e-13)
        assert layer.loss(x, ignored, reduction="none")[3] == 0
        assert layer.loss(x.reshape(2, 3, 5), y.reshape(2, 3), reduction="none").shape == (2, 3)
        assert np.isnan(layer.loss(x[:0], y[:0]))


def test_gradients_by_differences():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 5)), rng.integers(0, K, 4)
    options = {"sample_weight": [1, 0, 2, 0.5], "temperature": 1.3, "reduction": "none"}
    up = np.array([1.0, 2.0, -1.0, 0.5])
    for layer in map(fill, make_layers(np.float64)):
        result = layer.loss_with_grad(x, y, upstream=up, **options)
        assert np.array_equal(result.loss, layer.loss(x, y, **options))
        arrays = {**layer.parameters, "x": x}
        for name, a in arrays.items():
            gradient = result.grad_x if name == "x" else result.gradients[name]
            rows = np.unique(layer._find_rows(y[:1]))[:2] if name != "x" else np.arange(4)
            for at in [(r, *[1] * (a.ndim - 1)) for r in (*rows, 0)]:
                old, step = a[at], 1e-6
                a[at] = old + step
                above = up @ layer.loss(x, y, **options)
                a[at] = old - step
                below = up @ layer.loss(x, y, **options)
                a[at] = old
                assert np.isclose(gradient[at], (above - below) / (2 * step), atol=1e-8), (layer, name, at)
        assert not result.grad_x[1].any()


@pytest.mark.parametrize(
    "clips",
    [{"clip_norm": 0.2}, {"clip_value": 0.05}, {"clip_norm": 0.2, "clip_value": 0.1}, {"clip_norm": 1e9}],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_clips_are_of_the_logits_of_all_buckets(clips, reduction):
    rng = np.random.default_rng(0)
    x, y, s, t = rng.normal(size=(9, 5)), rng.integers(0, K, 9), np.linspace(0.1, 2, 9), 0.7
    y[4], s[7] = -100, 0
    kept = np.flatnonzero((y >= 0) & (s > 0))
    for layer in make_layers(np.float64):
        fill(layer)
        options = {"sample_weight": s, "temperature": t, "reduction": reduction}
        got = layer.loss_with_grad(x, y, upstream=1.5, **options, **clips)
        assert np.array_equal(got.loss, layer.loss(x, y, **options))
        w, n = layer.parameters["w"], layer.n_buckets
        tables = len(w) // n
        buckets = oracle.find_buckets(layer._family, n, y[kept])
        g = csoftmax.softmax((x[kept] @ w.T + layer.parameters.get("bias", 0)).reshape(len(kept), tables, n) / t)
        for i, of_row in enumerate(buckets):
            for r, bucket in enumerate(of_row):
                g[i, r if tables > 1 else 0, bucket] -= 1 if tables > 1 else 1 / len(of_row)
        g = (g / tables / t).reshape(len(kept), -1) * s[kept, None]
        norm, limit = np.linalg.norm(g, axis=1, keepdims=True), clips.get("clip_value", np.inf)
        g = (g * np.minimum(1, clips.get("clip_norm", np.inf) / norm)).clip(-limit, limit) * 1.5
        g /= s[kept].sum() if reduction == "mean" else 1
        grad_x = np.zeros(x.shape)
        grad_x[kept] = g @ w
        np.testing.assert_allclose(got.grad_x, grad_x, atol=1e-13)
        np.testing.assert_allclose(got.gradients["w"], g.T @ x[kept], atol=1e-13)
        if "bias" in got.gradients:
            np.testing.assert_allclose(got.gradients["bias"], g.sum(axis=0), atol=1e-13)
        with pytest.raises(ValueError, match="clip_norm must be positive"):
            layer.loss_with_grad(x, y, clip_norm=0)


def test_no_bias_exceeds_the_clip_and_large_weights_are_clipped():
    x = np.random.default_rng(0).normal(size=(2, 5))
    for dtype in (np.float32, np.float64):
        for tables in (3, 7, 10, 11, 33):
            layer = HashedSoftmax(5, 6, n_buckets=8, n_hashes=tables, dtype=dtype, rng=0)
            for clip in (0.013, 0.0137, 1e-5, 0.3 / tables, 1e-310):
                found = np.abs(layer.loss_with_grad(x[:1], [1], clip_value=clip).gradients["bias"])
                assert found.max() <= dtype(clip)
                np.testing.assert_allclose(found.max(), dtype(clip), rtol=2 * np.finfo(dtype).eps)
        for layer in make_layers(dtype):
            options = {"reduction": "sum"}
            expected = layer.loss_with_grad(x, [1, 2], clip_norm=0.01, **options).gradients["w"]
            for weight in (1e-30, 1e-200, 1e30, 1e39, 1e155, 1e160, 1e300):
                norm, factor = (0.01 * weight, weight) if weight < 1 else (0.01, 1)
                if norm < np.finfo(dtype).tiny:
                    continue
                got = layer.loss_with_grad(x, [1, 2], sample_weight=[weight] * 2, clip_norm=norm, **options)
                np.testing.assert_allclose(got.gradients["w"].astype(float) / factor, expected, rtol=1e-5, atol=1e-9)


def test_steps_and_frozen_buckets():
    rng = np.random.default_rng(0)
    x, y = np.eye(6, dtype=np.float32), rng.integers(0, 10**9, 6)
    for make in (HashedSoftmax, BloomSoftmax):
        layer, optimizer = make(6, 10**9, n_buckets=512, n_hashes=8, rng=0), RowOptimizer()
        losses = [float(layer.step(x, y, optimizer)[0]) for _ in range(80)]
        assert losses[-1] < losses[0] / 2
        assert (layer.topk(x, 1, y).indices[:, 0] == y).all()
        before = {name: a.copy() for name, a in layer.parameters.items()}
        rows = np.unique(layer._find_rows(y[:2]))
        layer.freeze(y[:2]).step(x, y, optimizer)
        assert np.flatnonzero(layer.frozen).tolist() == rows.tolist()
        first = np.arange(8) * 512 if make is HashedSoftmax else 0  # of each hash
        assert np.unique(layer.buckets(y[:2]) + first).tolist() == rows.tolist()
        for name, a in layer.parameters.items():
            is_same = (a == before[name]).reshape(len(a), -1).all(axis=1)
            assert is_same[rows].all()
            assert not is_same.all()
        assert layer.freeze([]).frozen is None
        assert layer.freeze().frozen.all()
        for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert np.array_equal(twin.scores(x, y), layer.scores(x, y))
        layer.freeze([])
        other = RowOptimizer()
        other.update("bias", np.zeros(3, np.float32), np.ones(3))
        with pytest.raises(ValueError, match="'bias' began with"):
            layer.step(x, y, other)
        now = layer.parameters["w"].copy()
        layer.step(x[:0], y[:0], optimizer)
        assert np.array_equal(layer.parameters["w"], now)
    with pytest.raises(AttributeError):
        layer.parameters = {}


def test_any_integer_is_a_class():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)), np.array([0, -5, 2**62, 7, -100])
    for make in (HashedSoftmax, BloomSoftmax):
        layer = fill(make(3, n_buckets=64, n_hashes=3, rng=0))
        assert layer.n_classes is None
        losses = layer.loss(x, y, reduction="none")
        assert losses[4] == 0  # ignore_index
        assert layer.loss(x, y, reduction="none", ignore_index=-1)[4] > 0
        assert np.array_equal(layer.loss(x[:4], y[:4].view(np.uint64), reduction="none"), losses[:4])
        ids = np.array([2**63 + 5, 2**64 - 1, 4], np.uint64)
        best = layer.topk(x, 3, ids)
        assert best.indices.dtype == np.uint64
        assert set(best.indices[0].tolist()) == set(ids.tolist())
        assert layer.predict(x, ids).dtype == np.uint64
        for call in (layer.scores, layer.predict, lambda x: layer.topk(x, 1)):  # noqa: B023
            with pytest.raises(ValueError, match="classes must be given"):
                call(x)
        with pytest.raises(ValueError, match="weight needs a number of classes"):
            layer.loss(x, y, weight=np.ones(3))
        with pytest.raises(ValueError, match=r"target has shape \(5, 1\)"):
            layer.loss(x, y[:, None])
        with pytest.raises(TypeError, match="integer labels, got dtype float64"):
            layer.loss(x, y + 0.5)


def test_added_classes():
    counts = np.arange(1.0, 101)
    layer = fill(HashedSoftmax(3, 100, n_buckets=32, counts=counts, rng=0))
    x = np.ones((1, 3))
    before = layer.scores(x)
    layer.add_classes(2).add_classes(1, [500])
    assert layer.counts[100:].tolist() == [1, 1, 500]
    assert np.array_equal(layer.scores(x)[:, :100], before)
    assert np.abs(np.exp(layer.log_proba(x)).sum() - 1) < 1e-12
    wide = fill(HashedSoftmax(3, 103, n_buckets=32, counts=[*counts, 1, 1, 500], rng=0))
    assert np.array_equal(layer.log_proba(x), wide.log_proba(x))
    assert HashedSoftmax(3, n_buckets=32, rng=0).add_classes(5).n_classes is None
    with pytest.raises(ValueError, match="counts need those of the other classes"):
        HashedSoftmax(3, 9, n_buckets=32, rng=0).add_classes(1, [3])
    with pytest.raises(ValueError, match="counts has shape"):
        layer.add_classes(2, [3])
    assert BloomSoftmax(3, 9, n_buckets=32, rng=0).add_classes(2, counts=None).n_classes == 11
    with pytest.raises(ValueError, match="counts need those of the other classes"):
        BloomSoftmax(3, 9, n_buckets=32, rng=0).add_classes(1, [3])


# Arguments


@pytest.mark.parametrize("make", [HashedSoftmax, BloomSoftmax])
def test_refused_arguments(make):
    for error, match, arguments, options in (
        (ValueError, "n_features must be", (0,), {}),
        (ValueError, "n_classes must be", (3, 0), {}),
        (ValueError, r"at most 2\*\*63", (3, 2**63 + 1), {}),
        (ValueError, "n_buckets must be at least 2, got 1", (3, 9), {"n_buckets": 1}),
        (ValueError, r"n_buckets must be at most 2\*\*31 - 1", (3, 9), {"n_buckets": 2**31}),
        (TypeError, "n_buckets", (3, 9), {"n_buckets": 2.5}),
        (ValueError, "n_hashes must be", (3, 9), {"n_hashes": 0}),
        (TypeError, "dtype must be float32 or float64", (3, 9), {"dtype": np.float16}),
        (TypeError, "bias must be", (3, 9), {"bias": "yes"}),
        (ValueError, "rng must be at least 0", (3, 9), {"rng": -1}),
        (csoftmax.DeviceError, "device=?", (3, 9), {"device": "cuda"}),
    ):
        with pytest.raises(error, match=match):
            make(*arguments, **({"n_buckets": 64} | options))
    layer = make(3, 9, n_buckets=64, rng=0)
    x = np.ones((2, 3))
    for error, match, call in (
        (ValueError, "the layer has 3 features", lambda: layer.scores(np.ones((2, 4)))),
        (TypeError, "classes must hold integers", lambda: layer.scores(x, [0.5])),
        (TypeError, "classes must hold integers", lambda: layer.scores(x, [True])),
        (ValueError, r"classes has shape \(\)", lambda: layer.scores(x, 3)),
        (ValueError, r"classes has shape \(3, 1\); allowed .* \(2, m\)", lambda: layer.scores(x, [[1]] * 3)),
        (IndexError, r"classes\[1\] is 9: the classes are 0 to 8", lambda: layer.scores(x, [0, 9])),
        (IndexError, r"classes\[0, 0\] is -1", lambda: layer.topk(x, 1, [[-1], [0]])),
        (ValueError, "k must be at most 9", lambda: layer.topk(x, 10)),
        (ValueError, "k must be at most 2", lambda: layer.topk(x, 3, [0, 1])),
        (ValueError, "classes is empty", lambda: layer.predict(x, [])),
        (IndexError, r"target\[1\] is 9", lambda: layer.loss(x, [0, 9])),
        (ValueError, "soft labels need all classes", lambda: layer.loss(x, np.ones((2, 9)))),
        (ValueError, "label_smoothing needs all classes", lambda: layer.loss(x, [0, 1], label_smoothing=0.1)),
        (TypeError, "optimizer must be a RowOptimizer", lambda: layer.step(x, [0, 1], None)),
        (IndexError, r"classes\[0\] is 9", lambda: layer.freeze([9])),
        (TypeError, "classes must hold integers", lambda: layer.freeze([0.5])),
    ):
        with pytest.raises(error, match=match):
            call()
    assert layer.scores(x[:0]).shape == (0, 9)
    assert layer.scores(x, []).shape == (2, 0)
    assert layer.topk(x[:0], 2).indices.shape == (0, 2)
    assert np.array_equal(layer.scores(np.asfortranarray(x)), layer.scores(x.tolist()))
    assert make(3, 1, n_buckets=2, n_hashes=3, rng=0).predict(x).tolist() == [0, 0]


def test_refused_counts_and_aggregates():
    for error, match, options in (
        (ValueError, "n_classes must be given", {"n_classes": None, "counts": [1, 2]}),
        (ValueError, "counts has shape", {"counts": [1, 2]}),
        (ValueError, "counts must be at least 0", {"counts": [1, -1, 1]}),
        (ValueError, "counts are all 0", {"counts": [0, 0, 0]}),
        (ValueError, 'aggregate must be "geometric", "mean", "min" or "prior"', {"aggregate": "sum"}),
        (ValueError, 'aggregate is "prior", which needs counts', {"aggregate": "prior"}),
    ):
        with pytest.raises(error, match=match):
            HashedSoftmax(2, **({"n_classes": 3, "n_buckets": 64} | options))
    with pytest.raises(ValueError, match="probabilities need counts"):
        HashedSoftmax(2, 3, n_buckets=64).log_proba([[1, 2]])
    for call in (lambda: hash_buckets([1.5], 3, 1, 0), lambda: hash_buckets(["a"], 3, 1, 0)):
        with pytest.raises(TypeError, match="ids must hold integers"):
            call()
    with pytest.raises(ValueError, match=r"n_buckets must be at most 2\*\*32"):
        hash_buckets([1], 2**32 + 1, 1, 0)
    with pytest.raises(
        TypeError, match=r"seed must be an int, a numpy\.random\.SeedSequence or Generator, or None, got"
    ):
        hash_buckets([1], 3, 1, np.random.RandomState(0))
    huge = HashedSoftmax(2, 3, n_buckets=64, counts=[1e308, 1e308, 1e308], rng=0)
    assert np.allclose(np.exp(huge.log_proba([[0.0, 0.0]])), 1 / 3)


def test_too_few_hashes_are_warned_of():
    with pytest.warns(UserWarning, match="n_hashes is 4, but with 256 buckets it takes 8 to tell all 100000000"):
        HashedSoftmax(2, 10**8, n_buckets=256, n_hashes=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HashedSoftmax(2, 10**8, n_buckets=256, n_hashes=8)
        HashedSoftmax(2, n_buckets=256, n_hashes=1)
        HashedSoftmax(2, 1, n_buckets=2, n_hashes=4)


def test_memory_has_no_number_for_each_class():
    layer = fill(HashedSoftmax(8, 4_000_000, n_buckets=2**16, n_hashes=3, rng=0))
    tracemalloc.start()
    layer.topk(np.ones((1, 8)), 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.slow
def test_interrupts():
    """Ctrl-C during scores and top-k of many classes ends the call, and leaves the layer as it was."""
    code = """
import signal, threading, time
import numpy as np
from csoftmax._cpu import binding
from csoftmax.heads import HashedSoftmax

binding.select_isa("scalar")
layer = HashedSoftmax(8, 10**11, n_buckets=512, rng=0)
for call in (lambda: layer.topk(np.ones(8), 5), lambda: layer.topk(np.ones((40, 8)), 5, num_threads=2)):
    threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
    begin = time.monotonic()
    try:
        call()
    except KeyboardInterrupt:
        assert time.monotonic() - begin < 5
        print("interrupted")
"""
    assert run_python(code).stdout.split() == ["interrupted"] * 2


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux only")
def test_a_hundred_million_classes():
    """K = 10^8 in less than 1 GB of resident memory: a step, the ten best of two rows, and given classes."""
    code = """
import re, time
import numpy as np
from csoftmax.heads import HashedSoftmax, RowOptimizer

begin = time.monotonic()
layer, optimizer = HashedSoftmax(64, 10**8, n_buckets=4096, n_hashes=16, rng=0), RowOptimizer()
rng = np.random.default_rng(0)
x, y = rng.normal(size=(64, 64)).astype(np.float32), rng.integers(0, 10**8, 64)
for _ in range(30):
    loss = layer.step(x, y, optimizer)[0]
trained = time.monotonic()
best = layer.topk(x[:2], 10)
assert best.indices[:, 0].tolist() == y[:2].tolist()
peak = int(re.search("VmHWM: *([0-9]+)", open("/proc/self/status").read().replace("\\t", " "))[1])
print(trained - begin, time.monotonic() - trained, peak / 2**20)
"""
    seconds, searching, gigabytes = map(float, run_python(code).stdout.split())
    print(f"30 steps {seconds:.1f} s, the ten best of two rows {searching:.1f} s, {gigabytes:.2f} GB")
    assert gigabytes < 1


@pytest.mark.parametrize("make", [HashedSoftmax, BloomSoftmax])
def test_arguments_that_newcomers_try(make):
    """Messages name the argument, internals are read-only, -100 is a class where each integer is one."""
    x = np.ones((2, 4), np.float32)
    layer = make(4, 100, n_buckets=32, rng=0)
    for error, match, call in (
        (
            csoftmax.DeviceError,
            'on the CPU only: device must be None or "cpu"',
            lambda: make(4, n_buckets=9, device="cuda"),
        ),
        (ValueError, "n_features is 1000000000000", lambda: make(10**12, 9, n_buckets=2**31 - 1)),
        (ValueError, "classes must be given", lambda: make(4, 2**63, n_buckets=64, n_hashes=30).scores(x)),
        (TypeError, "path must be", lambda: layer.save(None)),
        (TypeError, "mmap must be a bool", lambda: make.load("x", mmap=1)),
        (TypeError, "integer labels, got dtype float64", lambda: layer.loss(x, [0.5, 1.0])),
        (
            ValueError,
            r"soft labels need all classes: target has shape \(2, 100\)",
            lambda: layer.loss(x, np.ones((2, 100), int)),
        ),
    ):
        with pytest.raises(error, match=match):
            call()
    assert layer.add_classes(5).add_classes(0).n_classes == 105
    with pytest.raises(ValueError, match=r"at most 2\*\*63"):
        layer.add_classes(2**63)
    assert not layer.freeze([3]).frozen.flags.writeable
    for labels in ([-100, -100], np.array([-100, -100]).view(np.uint64)):
        every = make(4, n_buckets=32, rng=0)
        assert every.step(x, labels, RowOptimizer())[0] > 0
        assert np.abs(every.parameters["w"]).max() > 0
        assert every.loss(x, labels, ignore_index=None) > 0
    assert layer.loss(x, [1, -100], reduction="none")[1] == 0
    with pytest.raises(IndexError, match=r"target\[1\] is -100"):
        layer.loss(x, [1, -100], ignore_index=None)
    assert np.ndim(layer.predict(x[0])) == 0


def test_counts_are_read_only_and_warnings_name_the_call():
    counted = HashedSoftmax(4, 100, n_buckets=32, rng=0, counts=np.ones(100))
    with pytest.raises(ValueError, match="read-only"):
        counted.counts[0] = 5
    with pytest.raises(ValueError, match="counts has shape"):
        counted.add_classes(0, [1])
    assert counted.add_classes(0, []).add_classes(1, [0]).counts[-1] == 0
    with pytest.warns(UserWarning, match="n_hashes is 1") as found:
        HashedSoftmax(2, 10**4, n_buckets=256, n_hashes=1)
    assert found[0].filename == __file__
