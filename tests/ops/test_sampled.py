"""Losses over sampled classes: formulas, exact expectations by enumeration, special values, bits."""

import itertools
import math
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_results, looped
from oracles.sampled import batch_loss, row_loss

import csoftmax
from csoftmax import RowGradient
from csoftmax._cpu import binding
from csoftmax.samplers import LogUniformSampler, Negatives, UniformSampler, UnigramSampler

KINDS = ("softmax", "negative sampling", "nce")
FUNCTIONS = {
    "softmax": (csoftmax.sampled_softmax_loss, csoftmax.sampled_softmax_loss_with_grad),
    "negative sampling": (csoftmax.negative_sampling_loss, csoftmax.negative_sampling_loss_with_grad),
    "nce": (csoftmax.nce_loss, csoftmax.nce_loss_with_grad),
}
DTYPES = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
TOLERANCES = {np.float64: 1e-12, np.float32: 2e-5, np.float16: 3e-3, ml_dtypes.bfloat16: 3e-2}


def options_of(kind, options):
    """The options that a function of this kind has."""
    without = {"softmax": ("log_z",), "negative sampling": ("correction", "log_z"), "nce": ("correction",)}[kind]
    return {name: value for name, value in options.items() if name not in without}


def random_call(seed):
    """Arguments of every kind: dtypes, layouts, samplers, schemes, weights, ignored rows, hits, chunks."""
    rng = np.random.default_rng(seed)
    n, k, d = int(rng.integers(1, 30)), int(rng.integers(1, 60)), int(rng.integers(1, 70))
    dtype = DTYPES[seed % 4]
    x, w = rng.normal(size=(n, d)).astype(dtype), (0.3 * rng.normal(size=(k, d))).astype(dtype)
    w = np.asfortranarray(w) if seed % 3 == 0 else w
    x = np.repeat(x, 2, 1)[:, ::2] if seed % 7 == 0 else x
    real = np.float64 if dtype == np.float64 else np.float32
    target = rng.integers(0, k, n)
    target[rng.random(n) < 0.1] = -100
    makers = (
        lambda: UnigramSampler(rng.integers(0, 9, k) + 1),
        lambda: UniformSampler(k),
        lambda: LogUniformSampler(k, order=rng.permutation(k)),
    )
    sampler, size = makers[seed % 3](), int(rng.integers(1, 12))
    scheme = ("iid", "poisson")[int(rng.integers(2))]
    by_row = scheme == "iid" and rng.random() < 0.5
    negatives = sampler.sample((n, size) if by_row else size, target=target, rng=seed, scheme=scheme)
    if not by_row and rng.random() < 0.3:  # not ascending
        order = rng.permutation(len(negatives.ids))
        parts = (None if v is None else v[order] for v in negatives[:3])
        negatives = Negatives(*parts, negatives.target_log_q, "given")
    options = {
        "bias": None if rng.random() < 0.4 else rng.normal(size=k).astype(real),
        "correction": ("ranking", "partition", "none")[int(rng.integers(3))],
        "accidental_hits": ("mask", "keep")[int(rng.integers(2))],
        "log_z": rng.normal(size=n) if rng.random() < 0.5 else 0.3,
        "weight": None if rng.random() < 0.6 else (rng.random(k) + 0.1).astype(real),
        "sample_weight": None if rng.random() < 0.6 else rng.integers(0, 3, n) * 0.5,
        "temperature": float(rng.choice([1.0, 0.7])),
        "reduction": ("none", "sum", "mean")[seed % 3],
        "chunk_bytes": None if rng.random() < 0.5 else 300,
    }
    return x, w, target, negatives, options


@pytest.mark.parametrize("kind", KINDS)
@looped("seed", range(60))
def test_losses_and_gradients(kind, seed):
    x, w, target, negatives, options = random_call(seed)
    loss_only, with_grad = FUNCTIONS[kind]
    given = options_of(kind, options)
    chunk_free = {name: value for name, value in options.items() if name != "chunk_bytes"}
    with np.errstate(all="ignore"):
        loss, grad_x, grad_w, grad_bias, grad_log_z = batch_loss(kind, x, w, target, negatives, **chunk_free)
    got = with_grad(x, w, target, negatives, **given)
    assert_same_results([got.loss], [loss_only(x, w, target, negatives, **given)])
    if options["reduction"] == "mean" and not np.isfinite(loss):  # no row takes part
        assert np.isnan(got.loss)
        assert not np.any(got.grad_x)
        return
    dtype, tolerance = x.dtype, TOLERANCES[x.dtype.type]
    exact = 1e-12 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(got.loss, loss, exact, exact)
    assert got.grad_x.dtype == got.grad_w.values.dtype == dtype
    assert np.all(np.diff(got.grad_w.rows) > 0)
    np.testing.assert_allclose(got.grad_x.astype(float), grad_x, tolerance, tolerance)
    k = len(w)
    np.testing.assert_allclose(got.grad_w.to_dense(k).astype(float), grad_w, tolerance, 3 * tolerance)
    if options["bias"] is not None:
        assert np.array_equal(got.grad_bias.rows, got.grad_w.rows)
        np.testing.assert_allclose(got.grad_bias.to_dense(k).astype(float), grad_bias, tolerance, 3 * tolerance)
    if kind == "nce":
        expected = grad_log_z if np.ndim(options["log_z"]) else grad_log_z.sum()
        np.testing.assert_allclose(got.grad_log_z, expected, 5 * exact, 5 * exact)


@pytest.mark.parametrize("kind", KINDS)
@looped("seed", range(8))
def test_upstream_and_clipping(kind, seed):
    rng = np.random.default_rng(seed)
    x, w, target = rng.normal(size=(6, 4)), rng.normal(size=(9, 4)), rng.integers(0, 9, 6)
    negatives = UniformSampler(9).sample(4, target=target, rng=seed)
    options = {"upstream": rng.normal(size=6), "reduction": "none", "temperature": 0.5, "accidental_hits": "mask"}
    options |= ({}, {"clip_norm": 0.3}, {"clip_value": 0.1}, {"clip_norm": 0.4, "clip_value": 0.2})[seed % 4]
    expected = batch_loss(kind, x, w, target, negatives, **options)
    got = FUNCTIONS[kind][1](x, w, target, negatives, **options)
    np.testing.assert_allclose(got.loss, expected[0], 1e-12)
    np.testing.assert_allclose(got.grad_x, expected[1], 1e-11, 1e-13)
    np.testing.assert_allclose(got.grad_w.to_dense(9), expected[2], 1e-11, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("correction", ["ranking", "partition", "none"])
def test_one_row_against_mpmath(kind, correction):
    mpmath = pytest.importorskip("mpmath")
    rng = np.random.default_rng(1)
    x, w, bias = rng.normal(size=(1, 3)), rng.normal(size=(7, 3)), rng.normal(size=7)
    negatives = UnigramSampler(np.arange(1, 8)).sample(4, target=[2], rng=3, scheme="iid")
    with mpmath.workdps(40):
        exact = [[mpmath.mpf(float(v)) for v in row] for row in (*x, *w, bias)]
        z = [sum(a * b for a, b in zip(exact[0], row, strict=True)) + b for row, b in zip(exact[1:8], exact[8])]
        log_q = [mpmath.mpf(v) for v in negatives.log_q.tolist()]
        own = mpmath.mpf(float(negatives.target_log_q[0]))
        loss, gradient = row_loss(
            mpmath, kind, z, 2, negatives.ids.tolist(), log_q, negatives.count.tolist(), own, correction, "keep"
        )
        expected_x = [sum(g * row[i] for g, row in zip(gradient, exact[1:8], strict=True)) for i in range(3)]
    options = options_of(kind, {"correction": correction, "accidental_hits": "keep", "bias": bias})
    got = FUNCTIONS[kind][1](x, w, [2], negatives, **options)
    np.testing.assert_allclose(got.loss, float(loss), 1e-14)
    np.testing.assert_allclose(got.grad_x[0], [float(v) for v in expected_x], 1e-13)
    np.testing.assert_allclose(got.grad_bias.to_dense(7), [float(v) for v in gradient], 1e-13, 1e-16)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hits", ["mask", "keep"])
def test_finite_differences(kind, hits):
    rng = np.random.default_rng(0)
    x, w, bias = rng.normal(size=(5, 3)), rng.normal(size=(8, 3)), rng.normal(size=8)
    target = rng.integers(0, 8, 5)
    negatives = UnigramSampler(rng.integers(1, 9, 8)).sample(5, target=target, rng=0, scheme="iid")
    loss, with_grad = FUNCTIONS[kind]

    def at(x, w, bias):
        return float(loss(x, w, target, negatives, bias=bias, accidental_hits=hits, temperature=0.8))

    got = with_grad(x, w, target, negatives, bias=bias, accidental_hits=hits, temperature=0.8)
    gradients = got.grad_x, got.grad_w.to_dense(8), got.grad_bias.to_dense(8)
    step = 1e-5
    for number, gradient in enumerate(gradients):
        for index in np.ndindex(gradient.shape):
            ahead, behind = [x.copy(), w.copy(), bias.copy()], [x.copy(), w.copy(), bias.copy()]
            ahead[number][index] += step
            behind[number][index] -= step
            slope = (at(*ahead) - at(*behind)) / (2 * step)
            assert gradient[index] == pytest.approx(slope, abs=2e-9)


# What the corrections promise, by enumeration of all samples


def poisson_samples(q):
    """Every set of classes with its probability, for independent inclusions."""
    k = len(q)
    for bits in itertools.product((0, 1), repeat=k):
        members = np.flatnonzero(bits)
        yield members, float(np.prod(np.where(bits, q, 1 - q)))


def iid_samples(p, m):
    """Every sequence of m draws with its probability."""
    for draws in itertools.product(range(len(p)), repeat=m):
        yield np.array(draws), float(np.prod(p[list(draws)]))


def model(k, seed):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=k)
    return np.eye(k), z, np.exp(z) / np.exp(z).sum(), rng.integers(1, 9, k)


def exact_q(sampler, size):
    return np.exp(sampler.log_q(np.arange(sampler.n_classes), size))


@pytest.mark.parametrize("k", [2, 3, 6, 8])
@pytest.mark.parametrize("m", [1, 2])
def test_partition_is_unbiased(k, m):
    """sum over S of P(S) exp(lse(u)) = Z, for each label: exp(loss + z_y) is the estimate."""
    w, z, _, counts = model(k, m)
    sampler = UnigramSampler(counts)
    q = exact_q(sampler, m)
    for label in range(k):
        total = 0.0
        for members, probability in poisson_samples(q):
            negatives = Negatives(members, np.log(q[members]), None, np.log(q[[label]]))
            loss = csoftmax.sampled_softmax_loss(
                w[label : label + 1] * 0 + z, w, [label], negatives, correction="partition", accidental_hits="mask"
            )
            total += probability * math.exp(float(loss) + z[label])
        assert total == pytest.approx(np.exp(z).sum(), rel=1e-12)


@pytest.mark.parametrize("k", [2, 3, 6, 8])
@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("scheme", ["poisson, mask", "iid, keep"])
def test_ranking_has_no_gradient_at_the_true_model(k, m, scheme):
    """sum over y of p(y) sum over S of P(S) dloss/dz = 0, and it is not 0 without the correction."""
    w, z, p, counts = model(k, 7 * m)
    sampler = UnigramSampler(counts)
    if scheme == "poisson, mask":
        q, hits = exact_q(sampler, m), "mask"
        samples = list(poisson_samples(q))
    else:
        q, hits = np.exp(sampler.log_q(np.arange(k), m, scheme="iid")), "keep"
        samples = list(iid_samples(sampler.probability(), m))
    for correction in ("ranking", "none"):
        total = np.zeros(k)
        for members, probability in samples:
            ids, count = np.unique(members, return_counts=True)
            count = None if hits == "mask" else count
            log_q = np.log(q[ids])
            negatives = Negatives(ids, log_q, count, np.log(q))
            got = csoftmax.sampled_softmax_loss_with_grad(
                np.broadcast_to(z, (k, k)), w, np.arange(k), negatives, bias=np.zeros(k), correction=correction,
                accidental_hits=hits, reduction="none", upstream=p,
            )  # fmt: skip
            total += probability * got.grad_bias.to_dense(k)
        if correction == "ranking":
            assert np.max(np.abs(total)) < 1e-12
        elif m < k or hits == "keep":  # else every class is drawn for certain
            assert np.max(np.abs(total)) > 1e-3


@pytest.mark.parametrize("k", [2, 3, 6])
def test_nce_has_no_gradient_at_the_true_normalised_model(k):
    w, z, p, counts = model(k, 1)
    z = np.log(p)
    sampler, m = UnigramSampler(counts), 2
    log_q = sampler.log_q(np.arange(k), m, scheme="iid")
    total = np.zeros(k)
    for draws, probability in iid_samples(sampler.probability(), m):
        ids, count = np.unique(draws, return_counts=True)
        negatives = Negatives(ids, log_q[ids], count, log_q)
        got = csoftmax.nce_loss_with_grad(
            np.broadcast_to(z, (k, k)), w, np.arange(k), negatives, bias=np.zeros(k), reduction="none", upstream=p
        )
        total += probability * got.grad_bias.to_dense(k)
    assert np.max(np.abs(total)) < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_classes_are_the_full_cross_entropy(dtype):
    """With products and sums that are exact, within 4 ULP of the layer of all classes."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (20, 8)).astype(dtype) / 4, rng.integers(-3, 4, (30, 8)).astype(dtype) / 4
    target = rng.integers(0, 30, 20)
    every = Negatives(np.arange(30), np.zeros(30), None, np.zeros(20))
    got = csoftmax.sampled_softmax_loss(x, w, target, every, reduction="none")
    full = csoftmax.linear_cross_entropy(x, w, target, reduction="none")
    assert np.all(np.abs(got - full) <= 4 * np.spacing(full))
    result = csoftmax.sampled_softmax_loss_with_grad(x, w, target, every)
    other = csoftmax.linear_cross_entropy_with_grad(x, w, target)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(result.grad_x, other.grad_x, 0, 8 * eps)
    np.testing.assert_allclose(result.grad_w.to_dense(30), other.grad_w, 0, 8 * eps)


# Special values and limits


def test_nothing_is_left_to_compare_with():
    x, w = np.ones((2, 3)), np.full((4, 3), 2.0)
    for negatives in (Negatives([], [], None, np.zeros(2)), Negatives([1], [0.0], None, np.zeros(2))):
        got = csoftmax.sampled_softmax_loss_with_grad(x, w, [1, 1], negatives, bias=np.zeros(4), reduction="none")
        assert not np.any(got.loss)
        assert not np.any(got.grad_x)
        assert not np.any(got.grad_w.values)
        assert not np.any(got.grad_bias.values)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows(kind):
    negatives = UniformSampler(5).sample(3, target=np.zeros(0, int), rng=0)
    got = FUNCTIONS[kind][1](np.zeros((0, 3)), np.ones((5, 3)), [], negatives, bias=np.ones(5), reduction="sum")
    assert got.loss == 0
    assert got.grad_x.shape == (0, 3)
    assert len(got.grad_w.rows) == 0
    assert got.grad_w.values.shape == (0, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_shared", [True, False])
def test_a_mean_that_divides_by_zero(kind, is_shared):
    """The loss is NaN and every gradient exactly 0, whatever the rows hold; without rows of w if no row counts."""
    loss_of, gradients_of = FUNCTIONS[kind]
    x, w, labels, bias = np.full((3, 2), np.nan), np.ones((5, 2)), np.array([0, 1, 2]), np.zeros(5)
    ids = np.array([3, 4]) if is_shared else np.array([[3, 4]] * 3)
    negatives = Negatives(ids, np.zeros(ids.shape), None, np.zeros(3))
    for target, options in (
        (np.full(3, -100), {}),
        (labels, {"sample_weight": np.zeros(3)}),
        (labels, {"weight": np.array([0.0, 0, 0, 1, 1])}),
    ):
        got = gradients_of(x, w, target, negatives, bias=bias, **options)
        assert np.isnan(got.loss)
        assert np.isnan(loss_of(x, w, target, negatives, bias=bias, **options))
        assert (got.grad_x == 0).all()
        assert all((part.values == 0).all() for part in (got.grad_w, got.grad_bias))
        assert "weight" in options or got.grad_w.rows.size == 0


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_rows_are_not_read(kind):
    x, w = np.ones((3, 2)), np.arange(10.0).reshape(5, 2) / 10
    x[1] = np.nan
    negatives = UniformSampler(5).sample(3, target=[0, -100, 1], rng=0)
    got = FUNCTIONS[kind][1](x, w, [0, -100, 1], negatives)
    only = negatives._replace(target_log_q=negatives.target_log_q[[0, 2]])
    kept = FUNCTIONS[kind][1](x[[0, 2]], w, [0, 1], only)
    assert got.loss == kept.loss
    assert np.array_equal(got.grad_x[[0, 2]], kept.grad_x)
    assert not np.any(got.grad_x[1])
    assert np.array_equal(got.grad_w.values, kept.grad_w.values)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_reaches_what_depends_on_it(kind):
    x, w = np.ones((2, 3)), np.ones((4, 3))
    x[1, 0] = np.nan
    negatives = Negatives(np.array([[1, 2], [0, 3]]), np.zeros((2, 2)), None, np.zeros(2))
    got = FUNCTIONS[kind][1](x, w, [0, 1], negatives, reduction="none")
    assert np.isfinite(got.loss[0])
    assert np.isnan(got.loss[1])
    assert np.all(np.isfinite(got.grad_x[0]))
    assert np.isnan(got.grad_x[1]).all()


def test_infinite_logits_of_negatives():
    w = np.array([[0.0], [-np.inf], [1.0]])
    got = csoftmax.sampled_softmax_loss([[1.0]], w, [0], [1, 2], correction="none")
    assert got == pytest.approx(math.log1p(math.e), rel=1e-15)
    assert csoftmax.negative_sampling_loss([[1.0]], w, [0], [1]) == pytest.approx(math.log(2), rel=1e-15)


def test_classes_that_are_given_twice():
    """The caller's own negatives may hold a class twice: both are hits, and both have a gradient."""
    rng = np.random.default_rng(0)
    x, w, target = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), np.array([1, 0, 1, 4])
    for ids in ([1, 1, 2, 3, 3], [3, 1, 2, 3, 1]):
        for hits in ("mask", "keep"):
            options = {"correction": "none", "accidental_hits": hits}
            expected = batch_loss("softmax", x, w, target, Negatives(np.array(ids)), **options)
            got = csoftmax.sampled_softmax_loss_with_grad(x, w, target, ids, **options)
            assert got.loss == pytest.approx(expected[0], rel=1e-13)
            np.testing.assert_allclose(got.grad_w.to_dense(5), expected[2], 1e-12, 1e-14)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_shared", [True, False])
def test_of_weights_in_any_layout_and_byte_order_few_rows_are_copied(kind, is_shared):
    k, d, target = 100_000, 8, [1, 2, 99_999]
    wide = np.zeros((k, d + 1), np.float32)
    wide[:, :d] = np.random.default_rng(0).normal(size=(k, d))
    w, x = wide[:, :d], wide[:3, 1:]
    negatives = UniformSampler(k).sample(5 if is_shared else (3, 5), target=target, rng=0, scheme="iid")
    right = FUNCTIONS[kind][1](x, np.ascontiguousarray(w), target, negatives)
    every_second = np.repeat(w, 2, axis=1)[:, ::2]
    for given in (w, w[::-1].copy()[::-1], np.asfortranarray(w), every_second, w.astype(">f4")):
        tracemalloc.start()
        got = FUNCTIONS[kind][1](x, given, target, negatives)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < w.nbytes / 8
        assert_same_results((got.loss, got.grad_x, *got.grad_w), (right.loss, right.grad_x, *right.grad_w))
    if kind == "softmax":
        endless = np.broadcast_to(np.ones(d, np.float32), (10**9, d))
        loss = csoftmax.sampled_softmax_loss(x, endless, target, [5, 6], correction="none")
        assert loss == pytest.approx(math.log(3))


def test_integer_weights_are_those_of_float64():
    rng = np.random.default_rng(0)
    x, w = rng.integers(-3, 4, (2, 4)), rng.integers(-3, 4, (9, 4))
    negatives = UniformSampler(9).sample(4, target=[1, 2], rng=0)
    expected = csoftmax.sampled_softmax_loss(x.astype(float), w.astype(float), [1, 2], negatives)
    assert csoftmax.sampled_softmax_loss(x, w, [1, 2], negatives) == expected


def test_batch_axes():
    rng = np.random.default_rng(0)
    x, w, target = rng.normal(size=(2, 3, 4)), rng.normal(size=(6, 4)), rng.integers(0, 6, (2, 3))
    ids = rng.integers(0, 6, (2, 3, 5))
    got = csoftmax.negative_sampling_loss_with_grad(x, w, target, ids, reduction="none")
    flat = csoftmax.negative_sampling_loss_with_grad(
        x.reshape(6, 4), w, target.ravel(), ids.reshape(6, 5), reduction="none"
    )
    assert got.loss.shape == (2, 3)
    assert got.grad_x.shape == x.shape
    assert_same_results([got.loss.ravel(), got.grad_w.values], [flat.loss, flat.grad_w.values])


# Bits


def bits_of(result):
    return b"".join(np.ascontiguousarray(part).tobytes() for part in (result.loss, result.grad_x, *result.grad_w))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 16, 33, 130])
def test_classes_of_each_row_give_the_same_bits_everywhere(kind, dtype, d, keep_isa, seven_threads):
    """No BLAS is involved: every instruction set and number of threads has the same bits."""
    rng = np.random.default_rng(d)
    x, w = rng.normal(size=(40, d)).astype(dtype), rng.normal(size=(300, d)).astype(dtype)
    target = rng.integers(0, 300, 40)
    negatives = UnigramSampler(rng.integers(1, 9, 300)).sample((40, 9), target=target, rng=0, scheme="iid")
    found = set()
    for isa in binding.isa_available():
        binding.select_isa(isa)
        for threads in (1, 2, 7):
            found.add(bits_of(FUNCTIONS[kind][1](x, w, target, negatives, reduction="none", num_threads=threads)))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_dots_are_those_of_the_definition(dtype, isa):
    """16 lanes of fma in the compute type, added in a tree."""
    rng = np.random.default_rng(0)
    real = np.float64 if dtype == np.float64 else np.float32
    for d in (0, 1, 2, 15, 16, 17, 31, 32, 33, 100):
        x, w = rng.normal(size=(3, d)).astype(dtype), rng.normal(size=(9, d)).astype(dtype)
        ids = rng.integers(0, 9, (3, 4))
        out = np.empty((3, 4), real)
        code = binding.DTYPES[np.dtype(dtype).name]
        as_bits = (lambda a: a.view(np.uint16)) if dtype == ml_dtypes.bfloat16 else (lambda a: a)
        binding.run_row_dots(code, as_bits(x), as_bits(w), ids, out, 1)
        exact = np.einsum("id,ijd->ij", x.astype(np.longdouble), w.astype(np.longdouble)[ids])
        size = np.einsum("id,ijd->ij", np.abs(x).astype(np.longdouble), np.abs(w).astype(np.longdouble)[ids])
        unit = np.finfo(real).eps / 2
        assert np.all(np.abs(out - exact) <= unit * ((d / 16 + 5) * size + np.abs(exact)))


def test_counting_sort():
    rng = np.random.default_rng(0)
    for count, bins in ((0, 1), (1, 1), (1000, 7), (1000, 5000)):
        keys = rng.integers(0, bins, count)
        offsets, order = binding.sort_rows(keys, bins)
        assert np.array_equal(order, np.argsort(keys, kind="stable"))
        assert np.array_equal(offsets, np.searchsorted(np.sort(keys), np.arange(bins + 1)))


def test_grouped_keys():
    """The radix sort of classes, and what it says about the terms of each."""
    rng = np.random.default_rng(0)
    for n, m, classes in ((0, 3, 5), (1, 0, 5), (1, 1, 1), (40, 3, 7), (300, 5, 70_000), (50, 2, 2**62)):
        ids, labels = rng.integers(0, classes, (n, m)), rng.integers(0, classes, n)
        keys = np.concatenate((ids.ravel(), labels))
        rows, offsets, order, source = binding.group_rows(keys, m, False)
        assert source is None
        assert np.array_equal(rows, np.unique(keys))
        assert np.array_equal(order, np.argsort(keys, kind="stable"))
        assert np.array_equal(offsets, np.searchsorted(np.sort(keys), np.append(rows, np.iinfo(np.int64).max)))
        _, _, places, source = binding.group_rows(keys, m, True)
        grid = np.arange(n * (m + 1)).reshape(n, m + 1)
        assert np.array_equal(places, np.append(grid[:, :m], grid[:, m])[order])
        assert np.array_equal(source, places // (m + 1))
        count = len(ids.ravel())
        first, label_offsets, label_order, id_offsets, id_order, group = binding.split_terms(offsets, order, count)
        assert np.array_equal(rows[group], keys)
        assert np.array_equal(id_order, order[order < count])
        assert np.array_equal(label_order, order[order >= count] - count)
        assert np.array_equal(id_offsets + label_offsets, offsets)
        assert np.array_equal(np.diff(id_offsets), np.bincount(group[:count], minlength=len(rows)))
        assert np.array_equal(first >= 0, np.diff(id_offsets) > 0)
        assert np.array_equal(first[first >= 0], id_order[id_offsets[:-1][first >= 0]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_sums_start_where_they_are_told(dtype, isa):
    """From the result itself, from 0, or from rows of another matrix; one chain of fma, in the order of the terms."""
    rng = np.random.default_rng(0)
    real = np.float64 if dtype == np.float64 else np.float32
    code = binding.DTYPES[np.dtype(dtype).name]
    as_bits = (lambda a: a.view(np.uint16)) if dtype == ml_dtypes.bfloat16 else (lambda a: a)
    offsets = np.array([0, 0, 1, 4, 9])
    for d in (0, 1, 5, 16, 37, 100, 131):
        w, g = rng.integers(-8, 9, (6, d)).astype(dtype), rng.integers(-8, 9, 9).astype(real)
        ids, start = rng.integers(0, 6, 9), rng.integers(-8, 9, (3, d)).astype(real)
        exact = np.stack([g[b:e] @ w.astype(real)[ids[b:e]] for b, e in itertools.pairwise(offsets)])
        begin = np.array([2, -1, 0, 1])
        for given, numbers, expected in (
            ("out", None, exact + 7),
            (None, None, exact),
            (start, begin, exact + np.where(begin[:, None] < 0, 0, start[begin])),
        ):
            out = np.full((4, d), 7, real)
            at = out if isinstance(given, str) else given
            binding.run_row_sums(code, offsets, g, as_bits(w), ids, at, numbers, out, 1)
            assert np.array_equal(out, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_of_rows_do_not_matter(kind, keep_isa):
    """Rows and classes of more than one tile, gathered and shared, against the formulas; every instruction set."""
    rng = np.random.default_rng(0)
    for n, m, d, by_row in ((70, 3, 5, True), (5, 300, 9, True), (2, 4200, 2, True), (130, 600, 3, False)):
        k = 4300
        x, w = rng.normal(size=(n, d)), 0.3 * rng.normal(size=(k, d))
        target = rng.integers(0, k, n)
        ids = rng.integers(0, k, (n, m) if by_row else m)
        (ids[::3, 0] if by_row else ids)[: n // 3] = target[: 3 * (n // 3) : 3]  # hits
        log_q = -rng.random(ids.shape)
        negatives = Negatives(ids, log_q, None, -rng.random(n))
        options = {"accidental_hits": "mask", "reduction": "none"}
        expected = batch_loss(kind, x, w, target, negatives, **options)
        found = set()
        for isa in binding.isa_available():
            binding.select_isa(isa)
            got = FUNCTIONS[kind][1](x, w, target, negatives, **options, num_threads=2)
            np.testing.assert_allclose(got.loss, expected[0], 1e-12)
            np.testing.assert_allclose(got.grad_x, expected[1], 1e-10, 1e-12)
            np.testing.assert_allclose(got.grad_w.to_dense(k), expected[2], 1e-10, 1e-12)
            found.add(bits_of(got) if by_row else b"")
        assert len(found) == 1


# Rows


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["C", "F", "strided", "vector"])
def test_add_rows_is_the_assignment(dtype, layout, isa):
    rng = np.random.default_rng(0)
    for d in (1, 3, 16, 37):
        w = rng.normal(size=(20, d)).astype(dtype)
        w = {"C": w, "F": np.asfortranarray(w), "strided": np.repeat(w, 2, 1)[:, ::2], "vector": w[:, 0].copy()}[layout]
        rows = np.array([0, 3, 4, 11, 19])
        values = rng.normal(size=(5, *w.shape[1:])).astype(dtype)
        real = np.float64 if dtype == np.float64 else np.float32
        expected = w.copy()
        expected[rows] = (w[rows].astype(real) + real(-0.3) * values.astype(real)).astype(dtype)
        assert csoftmax.add_rows(w, RowGradient(rows, values), -0.3) is w
        assert_same_results([w], [expected])


@pytest.mark.parametrize("shape", [(10, 2), (10,)])
def test_add_rows_reads_values_in_w_before_it_changes_them(shape):
    w = np.arange(np.prod(shape), dtype=float).reshape(shape)
    expected = w.copy()
    expected[[1, 2]] += 2.0 * expected[:2]
    csoftmax.add_rows(w, RowGradient(np.array([1, 2]), w[:2]), 2.0)
    assert np.array_equal(w, expected)


def test_row_gradient():
    gradient = RowGradient(np.array([1, 4]), np.array([[1.0, 2.0], [0.0, 3.0]], np.float32))
    dense = gradient.to_dense(6)
    assert dense.dtype == np.float32
    assert dense[[1, 4]].tolist() == [[1, 2], [0, 3]]
    assert np.array_equal(gradient.to_csr(6).toarray(), dense)
    bias = RowGradient(np.array([0, 2]), np.array([1.0, 2.0]))
    assert bias.to_dense(3).tolist() == [1, 0, 2]
    assert bias.to_csr(3).toarray().ravel().tolist() == [1, 0, 2]
    lists = RowGradient([0, 2], [1.0, 2.0])
    assert lists.to_dense(3).tolist() == [1, 0, 2]
    assert lists.to_csr(3).toarray().ravel().tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="n must be greater than the last row, 4, got 4"):
        gradient.to_dense(4)


def test_wrong_arguments_of_add_rows():
    w, good = np.zeros((3, 2)), RowGradient(np.array([0]), np.zeros((1, 2)))
    read_only = np.zeros((3, 2))
    read_only.flags.writeable = False
    for matrix, gradient, error, message in (
        (w, RowGradient(np.array([3]), np.zeros((1, 2))), IndexError, "g has row 3: w has rows 0 to 2"),
        (w, RowGradient(np.array([-1]), np.zeros((1, 2))), IndexError, "g has row -1"),
        (w, RowGradient(np.array([1, 1]), np.zeros((2, 2))), ValueError, "ascending, each once"),
        (w, RowGradient(np.array([1]), np.zeros((1, 3))), ValueError, "values of shape"),
        (w, RowGradient(np.array([1]), np.zeros((1, 2), np.float32)), TypeError, "they must be the same"),
        (w.astype(int), good, TypeError, "w must be a NumPy array of"),
        ([[0.0]], good, TypeError, "got list"),
        (read_only, good, ValueError, "w is read-only"),
    ):
        with pytest.raises(error, match=message):
            csoftmax.add_rows(matrix, gradient)


# Errors


def test_wrong_arguments():
    x, w, target = np.zeros((2, 3)), np.zeros((4, 3)), [0, 1]
    negatives = UniformSampler(4).sample(2, target=target, rng=0)
    without_mass = UnigramSampler([0, 1, 1, 1]).sample(2, target=target, rng=0)
    for changes, error, message in (
        ({"target": np.zeros((2, 4))}, ValueError, "soft labels need all classes"),
        ({"target": [0, 4]}, IndexError, r"target\[1\] is 4"),
        ({"negatives": [1, 2]}, ValueError, "negatives are plain classes"),
        ({"negatives": Negatives([4], [0.0])}, IndexError, r"negatives.ids\[0\] is 4"),
        ({"negatives": Negatives([0.5], [0.0])}, TypeError, "negatives.ids must hold integers"),
        ({"negatives": Negatives([[1], [1], [1]], np.zeros((3, 1)))}, ValueError, r"negatives.ids has shape \(3, 1\)"),
        ({"negatives": Negatives([1], [0.0, 1.0])}, ValueError, "negatives.log_q has shape"),
        ({"negatives": Negatives([1], [-math.inf])}, ValueError, "negatives.log_q is -inf for the class 1"),
        ({"negatives": Negatives([1], [0.0], [0])}, ValueError, "negatives.count must be positive"),
        ({"negatives": negatives._replace(target_log_q=None)}, ValueError, "target_log_q is missing"),
        ({"negatives": without_mass}, ValueError, "a label, has negatives.target_log_q -inf: .* add smoothing"),
        ({"negatives": negatives._replace(target_log_q=[0, math.nan])}, ValueError, "nan: it must be finite"),
        (
            {"negatives": Negatives([1], [math.inf])},
            ValueError,
            "negatives.log_q is inf for the class 1: it must be fin",
        ),
        ({"negatives": Negatives([[1, 2], [1, 3]], [[0, 0], [0, math.nan]])}, ValueError, "is nan for the class 3"),
        ({"negatives": Negatives([1, 2], [0.0, 0.0], [1, 0])}, ValueError, "got 0.0 for the class 2"),
        ({"negatives": None}, TypeError, "negatives must be a Negatives, or an array of class numbers, got None"),
        ({"negatives": tuple(negatives)}, TypeError, "negatives must be a Negatives, or an array of class numbers"),
        ({"correction": "full"}, ValueError, 'correction must be "ranking", "partition" or "none", got \'full\''),
        ({"accidental_hits": "drop"}, ValueError, 'accidental_hits must be "mask" or "keep", got \'drop\''),
        ({"w": w.astype(np.float32)}, TypeError, "they must be the same"),
        ({"bias": [0.0]}, ValueError, "bias has shape"),
        ({"temperature": 0}, ValueError, "temperature must be positive"),
        ({"temperature": [1.0, 2.0]}, TypeError, "temperature must be a real number"),
        ({"label_smoothing": 0.1}, ValueError, "label_smoothing needs all classes: it must be 0"),
        ({"w": w.astype(complex)}, TypeError, "w has dtype complex128"),
        ({"w": w.astype(object)}, TypeError, "w has dtype object; allowed are .*: numpy.asarray"),
        ({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1"),
        ({"num_threads": 0}, ValueError, "num_threads must be at least 1"),
        ({"device": "gpu"}, ValueError, "device must be None"),
    ):
        arguments = {"x": x, "w": w, "target": target, "negatives": negatives} | changes
        with pytest.raises(error, match=message):
            csoftmax.sampled_softmax_loss(**arguments)
    for kind in KINDS:
        for function in FUNCTIONS[kind]:
            with pytest.raises(ValueError, match="label_smoothing needs all classes"):
                function(x, w, target, negatives, label_smoothing=0.1)
    for log_z, message in (
        ([0.0], "log_z has shape"),
        (math.nan, "log_z must be finite, got nan"),
        ([0.0, math.inf], "log_z must be finite, got inf for row 1"),
    ):
        with pytest.raises(ValueError, match=message):
            csoftmax.nce_loss(x, w, target, negatives, log_z=log_z)
    with pytest.raises(TypeError, match="log_z must hold real numbers"):
        csoftmax.nce_loss(x, w, target, negatives, log_z="a")


# TensorFlow

# Recorded with tensorflow-cpu 2.21.0, by
#     tf.random.set_seed(1)
#     triple = tf.random.log_uniform_candidate_sampler(y, 1, 5, True, 10, seed=2)
#     tf.nn.sampled_softmax_loss(w, b, y, x, 5, 10, sampled_values=triple, remove_accidental_hits=masked)
#     tf.nn.nce_loss(w, b, y, x, 5, 10, sampled_values=triple, remove_accidental_hits=masked)
TENSORFLOW_IDS = [0, 1, 8, 6, 2]
TENSORFLOW_COUNTS = [0.9082068800926208, 0.726554811000824, 0.2698702812194824, 0.33040523529052734, 0.5912358164787292]
TENSORFLOW_OWN_COUNTS = [0.726554811000824, 0.29711854457855225, 0.9082068800926208]
TENSORFLOW_LOSSES = {
    ("softmax", "mask"): [1.6407114267349243, 0.33487942814826965, 3.044663906097412],
    ("softmax", "keep"): [1.8178881406784058, 0.33487942814826965, 3.091177463531494],
    ("nce", "mask"): [5.6361236572265625, 7.3920464515686035, 9.837071418762207],
    ("nce", "keep"): [7.023978233337402, 7.3920464515686035, 11.106850624084473],
}


@pytest.mark.parametrize(("kind", "hits"), TENSORFLOW_LOSSES)
def test_tensorflows_values(kind, hits):
    """On TensorFlow's own classes and expected counts, given as Negatives in its order."""
    rng = np.random.default_rng(0)
    x, w, b = ((rng.integers(-8, 9, shape) / 8).astype(np.float32) for shape in ((3, 4), (10, 4), 10))
    negatives = Negatives(TENSORFLOW_IDS, np.log(TENSORFLOW_COUNTS), None, np.log(TENSORFLOW_OWN_COUNTS), "given")
    loss = FUNCTIONS[kind][0](x, w, [1, 7, 0], negatives, bias=b, accidental_hits=hits, reduction="none")
    np.testing.assert_allclose(loss, TENSORFLOW_LOSSES[kind, hits], 1e-6)


@pytest.mark.parametrize(
    ("g", "message"),
    [
        (np.ones((2, 1)), "g must be a RowGradient, got ndarray"),
        (RowGradient(np.array([1.7]), np.ones((1, 1))), "g.rows must hold integers, got dtype float64"),
        (RowGradient(np.array([True]), np.ones((1, 1))), "g.rows must hold integers, got dtype bool"),
    ],
)
def test_what_is_no_gradient_of_rows(g, message):
    w = np.zeros((3, 1))
    with pytest.raises(TypeError, match=message):
        csoftmax.add_rows(w, g)
    assert not w.any()
