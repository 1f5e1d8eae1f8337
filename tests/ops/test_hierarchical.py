"""HierarchicalSoftmax: values in mpmath, finite differences, exact top-k, steps, bits, added classes, files."""

import copy
import pickle
import sys

import mpmath
import numpy as np
import pytest
from helpers import run_python
from helpers.signals import seconds_to_stop
from oracles.tree import logits_of, loss_of_path, paths

import csoftmax
from csoftmax._cpu import binding
from csoftmax._learn import store
from csoftmax._learn.hierarchical import loss as losses
from csoftmax.heads import HierarchicalSoftmax, RowOptimizer, Tree

WIDTHS = [1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 97]


def make_head(k=50, d=9, seed=0, *, tree=None, scale=1.0, **options):
    rng = np.random.default_rng(seed)
    head = HierarchicalSoftmax(d, tree or Tree.huffman(rng.zipf(1.2, k)), **options)
    head.theta[...] = scale * rng.normal(size=head.theta.shape)
    if head.bias is not None:
        head.bias[...] = rng.normal(size=head.bias.shape)
    return head


def make_rows(head, n=13, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, head.n_features)).astype(head.dtype), rng.integers(0, head.n_classes, n)


def assert_same(first, second, what=""):
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True), what


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_against_mpmath(dtype):
    """Log-probabilities within 4 ULP of the exact sum for the logits, for all classes and for one; losses follow."""
    for d in WIDTHS:
        head = make_head(40, d, d, dtype=dtype, scale=3 if d % 2 else 30)
        x, _ = make_rows(head, 5)
        exact, logits, found = np.empty((5, 40), object), logits_of(head, x), paths(head.tree)
        for i in range(5):
            for k in range(40):
                exact[i, k] = -loss_of_path(found[k], logits[i])
        got = head.log_proba(x)
        for i, k in np.ndindex(5, 40):
            error = abs(mpmath.mpf(float(got[i, k])) - exact[i, k]) / float(np.spacing(abs(got[i, k])))
            assert error <= 4, (d, i, k, error)
            assert got[i, k] == head.log_proba(x[i], k)
        loss = head.loss(x, np.arange(5), reduction="none")
        expected = np.array([float(-exact[i, i]) for i in range(5)]).astype(dtype)
        assert loss.dtype == dtype
        np.testing.assert_array_max_ulp(loss, expected, 1 if dtype == np.float32 else 4)


def test_long_paths_against_mpmath():
    """Sums of a thousand decisions lose nothing: within 1 ULP, where plain sums are off by up to 500."""
    head = make_head(3, 5, tree=Tree.huffman(2.0 ** np.arange(1000)), dtype=np.float64, scale=0.3)
    x = make_rows(head, 4)[0]
    logits, found = logits_of(head, x), paths(head.tree)
    for i in range(4):
        for k in range(0, 1000, 53):
            got, exact = head.log_proba(x[i], k), -loss_of_path(found[k], logits[i])
            assert abs(mpmath.mpf(float(got)) - exact) <= float(np.spacing(abs(got))), (i, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_probabilities_sum_to_one(dtype):
    for k in (1, 2, 3, 1000, 22_000):
        head = make_head(k, 16, k, dtype=dtype, scale=0.5)
        total = np.array([np.sum(np.exp(row.astype(np.longdouble))) for row in head.log_proba(make_rows(head)[0])])
        assert np.abs(total - 1).max() < (1e-6 if dtype == np.float32 else 1e-14)


def numeric(function, array, step=1e-6):
    gradient = np.empty(array.shape)
    for at in np.ndindex(array.shape):
        kept = array[at]
        array[at] = kept + step
        up = function()
        array[at] = kept - step
        gradient[at] = (up - function()) / (2 * step)
        array[at] = kept
    return gradient


OPTIONS = [
    {},
    {"temperature": 0.7, "reduction": "sum"},
    {"ignore_index": 3, "weight": True},
    {"sample_weight": True, "weight": True, "upstream": 2.5, "temperature": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_finite_differences(options):
    head = make_head(12, 3, dtype=np.float64)
    x, y = make_rows(head, 9)
    options = dict(options)
    if "weight" in options:
        options["weight"] = np.random.default_rng(2).uniform(0.5, 2, 12)
    if "sample_weight" in options:
        options["sample_weight"] = np.array([0.0, 1, 2, 3, 1, 1, 0.5, 1, 1])
    result = head.loss_with_grad(x, y, **options)
    upstream = options.pop("upstream", 1.0)
    assert result.loss == head.loss(x, y, **options)

    def value():
        return upstream * head.loss(x, y, **options)

    np.testing.assert_allclose(result.grad_x, numeric(value, x), atol=1e-8)
    for name, array in head.parameters.items():
        np.testing.assert_allclose(result.gradients[name].to_dense(11), numeric(value, array), atol=1e-8)
    touched = {node for k, p in enumerate(paths(head.tree)) for node, _ in p if k in y}
    assert set(result.gradients["theta"].rows.tolist()) <= touched


def test_options_by_their_definition():
    """Row losses s w[y] loss(y); ignored rows are not read; the mean divides by the weights; clips are of the path."""
    head = make_head(20, 5, dtype=np.float64)
    x, y = make_rows(head, 8)
    s, w = np.arange(8.0), np.linspace(0.5, 2, 20)
    plain = head.loss(x, y, reduction="none")
    np.testing.assert_allclose(plain, -head.log_proba(x, y), rtol=1e-15)
    got = head.loss(x, y, weight=w, sample_weight=s, reduction="none")
    np.testing.assert_allclose(got, s * w[y] * plain, rtol=1e-14)
    np.testing.assert_allclose(head.loss(x, y, weight=w, sample_weight=s), got.sum() / (s * w[y]).sum(), rtol=1e-14)
    np.testing.assert_allclose(head.loss(x, y, weight=w, sample_weight=s, reduction="sum"), got.sum(), rtol=1e-14)
    holes, ignored = x.copy(), y.copy()
    holes[[2, 5]], ignored[[2, 5]] = np.nan, -100
    kept = [0, 1, 3, 4, 6, 7]
    for reduction in ("mean", "sum"):
        result = head.loss_with_grad(holes, ignored, reduction=reduction)
        other = head.loss_with_grad(x[kept], y[kept], reduction=reduction)
        assert result.loss == other.loss
        assert (result.grad_x[kept] == other.grad_x).all()
        assert (result.grad_x[[2, 5]] == 0).all()
        assert_same(result.gradients["theta"], other.gradients["theta"])
    nothing = head.loss_with_grad(x, np.full(8, -100))
    assert np.isnan(nothing.loss)
    assert (nothing.grad_x == 0).all()
    assert len(nothing.gradients["bias"].rows) == 0
    assert head.loss(x[:0], y[:0], reduction="sum") == 0
    assert np.isnan(head.loss(x[:0], y[:0]))
    free = head.loss_with_grad(x, y, reduction="sum", sample_weight=s)
    found = paths(head.tree)
    for name, limit in (("clip_norm", 0.8), ("clip_value", 0.3)):
        result = head.loss_with_grad(x, y, reduction="sum", sample_weight=s, upstream=2.0, **{name: limit})
        assert result.loss == free.loss
        dense = np.zeros((8, 19))
        logits = x @ head.theta.T + head.bias
        for i in range(8):
            for node, side in found[y[i]]:
                sign = 1 if side else -1
                dense[i, node] = -sign * s[i] / (1 + np.exp(sign * logits[i, node]))
        if name == "clip_norm":
            dense *= np.minimum(1, limit / np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-300))
        else:
            dense = dense.clip(-limit, limit)
        np.testing.assert_allclose(result.gradients["theta"].to_dense(19), 2 * dense.T @ x, atol=1e-13)
        np.testing.assert_allclose(result.gradients["bias"].to_dense(19), 2 * dense.sum(axis=0), atol=1e-13)
        np.testing.assert_allclose(result.grad_x, 2 * dense @ head.theta, atol=1e-13)
    batched = head.loss_with_grad(x.reshape(2, 4, 5), y.reshape(2, 4), reduction="none", upstream=np.ones((2, 4)))
    assert batched.loss.shape == (2, 4)
    assert batched.grad_x.shape == (2, 4, 5)
    assert (batched.loss.ravel() == plain).all()


def test_steps_are_updates():
    """step is loss_with_grad and RowOptimizer.update, bit for bit; the bias does not decay; sums of weights count."""
    for dtype in (np.float32, np.float64):
        for kind in ("rowwise_adagrad", "adagrad", "adam", "sgd"):
            for options in ({}, {"bias": False}):
                head = make_head(60, 17, dtype=dtype, **options)
                head.freeze(np.arange(0, 60, 2) if kind == "adam" else [])
                other = copy.deepcopy(head)
                fused, single = RowOptimizer(kind, 0.3, penalty_l2=0.01), RowOptimizer(kind, 0.3, penalty_l2=0.01)
                of_bias = RowOptimizer(kind, 0.3)
                for seed in range(3):
                    x, y = make_rows(head, 30, seed)
                    s = None if seed else np.random.default_rng(9).uniform(0, 2, 30)
                    loss, grad_x = head.step(x, y, fused, sample_weight=s)
                    result = other.loss_with_grad(x, y, sample_weight=s)
                    single.update("theta", other.theta, result.gradients["theta"])
                    if other.bias is not None:
                        of_bias.update("bias", other.bias, result.gradients["bias"])
                    assert loss == result.loss
                    assert (grad_x == result.grad_x).all()
                    assert (head.theta == other.theta).all(), kind
                    assert other.bias is None or (head.bias == other.bias).all()
    with pytest.raises(TypeError, match="optimizer must be a RowOptimizer, got str"):
        head.step(x, y, "sgd")


def test_long_paths_in_parts(monkeypatch):
    """Rows whose paths together are too long are computed in parts, with the same results up to the order of sums."""
    head = make_head(300, 4, tree=Tree.huffman(2.0 ** np.arange(300)), dtype=np.float64)
    x, y = make_rows(head, 12)
    expected, other = head.loss_with_grad(x, y), copy.deepcopy(head)
    one, two = RowOptimizer(), RowOptimizer()
    head.step(x, y, one)
    log_proba = other.log_proba(x, y)
    monkeypatch.setattr(losses, "MAX_ENTRIES", 400)
    got = other.loss_with_grad(x, y)
    assert got.loss == expected.loss
    assert (got.grad_x == expected.grad_x).all()
    assert (got.gradients["theta"].rows == expected.gradients["theta"].rows).all()
    np.testing.assert_allclose(got.gradients["theta"].values, expected.gradients["theta"].values, atol=1e-15)
    assert (other.log_proba(x, y) == log_proba).all()
    other.step(x, y, two)
    np.testing.assert_allclose(other.theta, head.theta, rtol=1e-12)


def brute(head, x, k):
    """The k best of all log-probabilities, NaN last."""
    values = head.log_proba(x)
    order = np.argsort(-np.where(np.isnan(values), -np.inf, values), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, axis=1), order


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_topk_against_enumeration(dtype):
    for k in (1, 2, 3, 17, 500):
        for scale in (0.0, 0.1, 2.0, 200.0):
            head = make_head(k, 7, k, dtype=dtype, scale=scale)
            x = make_rows(head, 20)[0]
            for count in {1, min(k, 2), min(k, 10), k}:
                got = head.topk(x, count)
                assert_same(got, brute(head, x, count), (k, scale, count))
            assert (head.predict(x) == got.indices[:, 0]).all()
            assert head.stats["nodes_mean"] <= k - 1


def test_topk_ties():
    """Equal log-probabilities go to the lowest class, also where all classes are equal or far apart in the tree."""
    rng = np.random.default_rng(0)
    for order in (None, rng.permutation(64)):
        head = HierarchicalSoftmax(3, Tree.balanced(64, order))  # all are equal
        assert head.topk(np.ones(3), 64).indices.tolist() == list(range(64))
        assert head.topk(np.ones(3), 5).indices.tolist() == [0, 1, 2, 3, 4]
        assert head.predict(np.ones(3)) == 0
        for values in ([0.0, 1.0], [0.0, 0.0, 0.0, -1.0]):  # many ties at several levels
            head.bias[...] = rng.choice(values, 63)
            for k in (1, 7, 64):
                assert_same(head.topk(np.ones((1, 3)), k), brute(head, np.ones((1, 3)), k))
    head = HierarchicalSoftmax(1, Tree.balanced(8))
    head.bias[...] = [np.inf, 0, 0, 0, 0, 0, 0]
    got = head.topk([1.0], 8)  # half of the classes have the probability 0
    assert got.indices.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]
    assert np.isneginf(got.values[4:]).all()
    for bad in (np.nan, np.inf, -np.inf):
        head = make_head(30, 4)
        x = make_rows(head, 3)[0]
        x[1, 2] = bad
        assert_same(head.topk(x, 30), brute(head, x, 30), bad)
        assert (head.log_proba(x, [3, 4, 5]) == head.log_proba(x)[range(3), [3, 4, 5]])[[0, 2]].all()


def test_draws():
    """A chi-square test, the same draws from the same seed, and a caller's generator that a failure leaves alone."""
    head = make_head(12, 4, scale=0.4)
    x = make_rows(head, 3)[0]
    drawn = head.sample(x, 40_000, rng=5)
    assert drawn.shape == (3, 40_000)
    assert drawn.dtype == np.int64
    for row, p in zip(drawn, np.exp(head.log_proba(x))):
        expected = p * 40_000
        assert ((np.bincount(row, minlength=12) - expected) ** 2 / expected).sum() < 40
    assert (drawn == head.sample(x, 40_000, np.random.default_rng(5))).all()
    assert head.sample(x, rng=1).shape == (3,)
    assert head.sample(x[0], (2, 3), rng=1).shape == (2, 3)
    assert head.sample(x[:0], 4, rng=1).shape == (0, 4)
    assert head.sample(x, 0, rng=1).shape == (3, 0)
    rng = np.random.default_rng(3)
    state = rng.bit_generator.state
    with pytest.raises(ValueError, match="logits hold NaN"):
        head.sample(np.full((2, 4), np.nan), rng=rng)
    assert rng.bit_generator.state == state
    deep = make_head(3, 2, tree=Tree.huffman(2.0 ** np.arange(60)))
    deep.bias[...] = np.where(deep.tree.children[:, 0] >= 0, -30.0, 30.0)  # to the end of the chain
    assert set(deep.sample(np.zeros((50, 2)), rng=0).tolist()) <= {0, 1}
    assert HierarchicalSoftmax(2, Tree.balanced(1)).sample(np.zeros((4, 2))).tolist() == [0] * 4


def everything(head, x, y, optimizer):
    result = head.loss_with_grad(x, y)
    step = head.step(x, y, optimizer)
    return (
        *(
            result.loss,
            result.grad_x,
            *result.gradients["theta"],
            *result.gradients["bias"],
            *step,
            head.theta,
            head.bias,
        ),
        *(head.log_proba(x[:40]), head.log_proba(x, y), *head.topk(x[:200], 5), head.sample(x, rng=0)),
    )


def test_bits_of_threads_and_instruction_sets(keep_isa):
    """The same bits for 1 to 8 threads, every instruction set, and rows one by one."""
    for dtype in (np.float32, np.float64):
        head = make_head(2000, 37, dtype=dtype, scale=0.3)
        x, y = make_rows(head, 3000)
        expected = None
        for isa in binding.isa_available():
            binding.select_isa(isa)
            for threads in (1, 2, 3, 8) if isa == binding.isa_available()[-1] else (1, 2):
                other = copy.deepcopy(head)
                other.num_threads = threads
                got = everything(other, x, y, RowOptimizer(num_threads=threads))
                if expected is None:
                    expected = got
                assert_same(got, expected, (isa, threads))
        rows = [head.log_proba(row, label) for row, label in zip(x[:20], y[:20])]
        assert rows == head.log_proba(x[:20], y[:20]).tolist() == head.log_proba(x[:20])[range(20), y[:20]].tolist()


def test_a_chain_of_a_million():
    """Training, log-probabilities, search and draws on a chain, in bounded memory."""
    from ops.test_tree import chain

    n = 10**6
    head = HierarchicalSoftmax(3, Tree._from_children(chain(n), 0))
    head.bias[...] = np.log(np.arange(n - 1, 0, -1.0))  # uniform: side 0 has one of the classes that are left
    x, y = np.zeros((6, 3)), np.array([0, 1, n - 1, n - 2, n // 2, 1000])
    np.testing.assert_allclose(head.log_proba(x, y), -np.log(n), rtol=1e-6)
    assert head.loss(x, y) == pytest.approx(np.log(n), rel=1e-6)
    np.testing.assert_allclose(np.exp(head.log_proba(x[:1])).sum(), 1, atol=1e-6)
    assert len(set(head.sample(x, 2, rng=0).ravel().tolist())) > 5
    optimizer = RowOptimizer("sgd", 0.1)
    head.step(np.ones((6, 3)), y, optimizer)
    assert np.isfinite(head.theta).all()
    assert (head.theta[n - 3] != 0).all()
    best = head.topk(x[:1], 1)
    assert best.values[0, 0] == head.log_proba(x[0]).max()


def test_add_classes():
    """The others' probabilities stay; the split class shares its own; the counts decide, else the depth."""
    head = make_head(4, 3, tree=Tree.huffman([5, 2, 1, 9]))
    x = make_rows(head, 6)[0]
    before = np.exp(head.log_proba(x))
    head.freeze([0, 1, 2, 3])
    head.add_classes(2, [4, 3])
    after = np.exp(head.log_proba(x))
    assert head.tree.counts.tolist() == [5, 2, 1, 9, 4, 3]
    # 2, of count 1, is split for 4; then it is the lightest again, and is split for 5
    np.testing.assert_allclose(after[:, [0, 1, 3]], before[:, [0, 1, 3]], rtol=1e-6)
    np.testing.assert_allclose(after[:, [2, 4, 5]].sum(axis=1), before[:, 2], rtol=1e-6)
    np.testing.assert_allclose(after[:, 4] / before[:, 2], 4.5 / (4.5 + 1.5), rtol=1e-6)
    assert head.frozen.tolist() == [True] * 4 + [False] * 2
    assert (head.theta[3:] == 0).all()
    assert head.theta.shape == (5, 3)
    other = make_head(5, 3, tree=Tree.balanced(5))  # depths 3 3 2 2 2
    other.add_classes(4)
    assert other.tree.depths().tolist() == [3, 3, 3, 3, 3, 3, 3, 3, 4] or other.tree.depths().tolist()[5:] == [
        3,
        3,
        3,
        4,
    ]
    np.testing.assert_allclose(np.exp(other.log_proba(x)).sum(axis=1), 1, atol=1e-6)
    single = HierarchicalSoftmax(3, Tree.balanced(1))
    single.add_classes(3)
    assert single.n_classes == 4
    assert np.isfinite(single.loss(x, [0, 1, 2, 3, 0, 1]))
    head.add_classes(0)
    for call, match in (
        (lambda: head.add_classes(2, [1]), "counts has 1 elements, n is 2"),
        (lambda: head.add_classes(1, [-1]), "counts must be at least 0"),
        (lambda: other.add_classes(1, [1]), "counts need those of the other classes"),
        (lambda: head.add_classes(-1), "n must be at least 0"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    optimizer = RowOptimizer()
    head.step(x, [0, 1, 2, 3, 4, 5], optimizer)
    head.add_classes(1)
    with pytest.raises(ValueError, match="began with"):
        head.step(x, [0, 1, 2, 3, 4, 6], optimizer)
    optimizer.forget()
    head.step(x, [0, 1, 2, 3, 4, 6], optimizer)


def test_freeze():
    """Nodes above frozen classes alone stay; all others move; gradients leave them out."""
    head = make_head(8, 3, tree=Tree.balanced(8))
    x, y = make_rows(head, 40)
    found = paths(head.tree)
    head.freeze([0, 1, 2, 3, 6])
    still = {node for node in range(7) if all(k in (0, 1, 2, 3, 6) for k in range(8) if node in dict(found[k]))}
    assert len(still) == 3
    before = {name: a.copy() for name, a in head.parameters.items()}
    result = head.loss_with_grad(x, y)
    assert set(range(7)) - set(result.gradients["theta"].rows.tolist()) == still
    optimizer = RowOptimizer("adam", 0.1, penalty_l2=0.1)
    head.step(x, y, optimizer)
    for name, a in head.parameters.items():
        same = a == before[name]
        assert {n for n in range(7) if same[n].all()} == still
    head.freeze([])
    assert head.frozen is None
    assert len(head.loss_with_grad(x, y).gradients["theta"].rows) == 7
    head.freeze()
    assert len(head.loss_with_grad(x, y).gradients["theta"].rows) == 0
    with pytest.raises(IndexError, match=r"classes\[1\] is 8"):
        head.freeze([1, 8])


def test_log_prior():
    counts = np.array([5.0, 0, 7, 100, 3])
    head = HierarchicalSoftmax(2, Tree.huffman(counts), dtype=np.float64)
    head.set_log_prior()
    p = np.exp(head.log_proba([0.0, 0.0]))
    assert np.abs(p - (counts + 0.5) / (counts + 0.5).sum()).max() < 0.02
    assert p.argmax() == 3
    other = HierarchicalSoftmax(2, Tree.balanced(5))
    other.set_log_prior([1e6] * 5)
    np.testing.assert_allclose(np.exp(other.log_proba([1.0, 1.0])), 0.2, rtol=1e-5)
    for call, match in (
        (lambda: HierarchicalSoftmax(2, Tree.balanced(5)).set_log_prior(), "counts are missing"),
        (lambda: HierarchicalSoftmax(2, Tree.balanced(5), bias=False).set_log_prior([1] * 5), "no bias"),
        (lambda: other.set_log_prior([1, 2]), "counts has 2 elements"),
    ):
        with pytest.raises(ValueError, match=match):
            call()


def test_files(tmp_path):
    path = tmp_path / "head.safetensors"
    for options in ({}, {"bias": False, "dtype": np.float64}, {"tree": Tree.balanced(1)}):
        head = make_head(20, 3, **options)
        head.freeze([0] if head.n_classes > 1 else [])
        head.save(path)
        x, y = make_rows(head, 5)
        for given in ({"num_threads": 2}, {"mmap": True}, {"verify": False}):
            loaded = HierarchicalSoftmax.load(path, **given)
            assert loaded.num_threads == given.get("num_threads")
            assert loaded.tree == head.tree
            assert loaded.parameters.keys() == head.parameters.keys()
            assert (loaded.log_proba(x) == head.log_proba(x)).all()
            assert (loaded.frozen is None) == (head.frozen is None)
            if "bias" in loaded.parameters:
                loaded.set_log_prior(np.ones(loaded.n_classes))
                head.set_log_prior(np.ones(head.n_classes))
            twin = copy.deepcopy(head)
            assert loaded.step(x, y, RowOptimizer())[0] == twin.step(x, y, RowOptimizer())[0]
            assert (loaded.log_proba(x) == twin.log_proba(x)).all()
            head.save(path)
        for twin in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
            assert (twin.log_proba(x) == head.log_proba(x)).all()
            assert twin.theta is not head.theta
    good = {
        "children": Tree.balanced(4).children,
        "theta": np.zeros((3, 2), np.float32),
        "bias": np.zeros(3, np.float32),
    }
    for changes, match in (
        ({"theta": None}, "theta is missing"),
        ({"theta": np.zeros((2, 2), np.float32)}, r"theta has shape \(2, 2\)"),
        ({"theta": np.zeros((3, 0), np.float32)}, r"theta has shape \(3, 0\)"),
        ({"theta": np.zeros((3, 2), np.float16)}, "dtype float16"),
        ({"bias": np.zeros(2, np.float32)}, r"bias has shape \(2,\)"),
        ({"bias": np.zeros(3)}, "dtype float64"),
        ({"frozen": np.zeros(3, np.uint8)}, "frozen has shape"),
        ({"children": np.zeros((3, 2), np.int32)}, "node 0 is a side of 6 nodes"),
    ):
        arrays = {name: a for name, a in (good | changes).items() if a is not None}
        store.write(path, "HierarchicalSoftmax", arrays, {"root": 0})
        with pytest.raises(ValueError, match=match):
            HierarchicalSoftmax.load(path)
    Tree.balanced(4).save(path)
    with pytest.raises(ValueError, match="it is a 'Tree', not a HierarchicalSoftmax"):
        HierarchicalSoftmax.load(path)


def test_refused():
    head = make_head(6, 3)
    x, y = make_rows(head, 4)
    before = head.theta.copy()
    for error, match, call in (
        (TypeError, "tree must be a Tree, such as", lambda: HierarchicalSoftmax(3, [1, 2])),
        (TypeError, "dtype must be float32 or float64, got float16", lambda: make_head(dtype=np.float16)),
        (ValueError, "n_features must be at least 1", lambda: HierarchicalSoftmax(0, Tree.balanced(2))),
        (TypeError, "bias must be a bool", lambda: HierarchicalSoftmax(2, Tree.balanced(2), bias=1)),
        (csoftmax.DeviceError, "cuda", lambda: HierarchicalSoftmax(2, Tree.balanced(2), device="cuda")),
        (ValueError, "num_threads must be at least 1", lambda: HierarchicalSoftmax(2, Tree.balanced(2), num_threads=0)),
        (ValueError, r"x has shape \(4, 2\); the layer has 3 features", lambda: head.loss(x[:, :2], y)),
        (ValueError, r"target has shape \(3,\)", lambda: head.loss(x, y[:3])),
        (IndexError, r"target\[1\] is 6: the classes are 0 to 5", lambda: head.loss(x, [0, 6, 1, 1])),
        (IndexError, r"target\[0\] is -1", lambda: head.step(x, [-1, 0, 1, 1], RowOptimizer())),
        (ValueError, "soft labels need all classes", lambda: head.loss(x, np.full((4, 6), 1 / 6))),
        (ValueError, "label_smoothing needs all classes", lambda: head.loss(x, y, label_smoothing=0.1)),
        (ValueError, "reduction must be", lambda: head.loss(x, y, reduction="max")),
        (ValueError, "temperature must be positive", lambda: head.loss(x, y, temperature=0)),
        (
            ValueError,
            "sample_weight must be at least 0",
            lambda: head.step(x, y, RowOptimizer(), sample_weight=[-1] * 4),
        ),
        (ValueError, "clip_norm must be positive", lambda: head.loss_with_grad(x, y, clip_norm=0)),
        (ValueError, "k must be at most 6, the number of classes, got 7", lambda: head.topk(x, 7)),
        (ValueError, "k must be at least 0", lambda: head.topk(x, -1)),
        (TypeError, "k must be an int", lambda: head.topk(x, 1.5)),
        (IndexError, r"target\[2\] is -100: the classes are 0 to 5", lambda: head.log_proba(x, [0, 0, -100, 1])),
        (TypeError, "x has dtype complex64", lambda: head.predict(x + 0j)),
        (TypeError, "rng must be", lambda: head.sample(x, rng="a")),
        (ValueError, "size must be at least 0", lambda: head.sample(x, -1)),
    ):
        with pytest.raises(error, match=match):
            call()
    assert (head.theta == before).all()
    # other kinds and layouts of the same numbers
    wide = np.zeros((4, 6), np.float32)
    wide[:, ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    for same in (x.tolist(), np.asfortranarray(x), wide[:, ::2], frozen, x.astype(np.float64), x.astype(">f4")):
        assert head.loss(same, y) == head.loss(x, y)
        assert head.loss_with_grad(same, y.astype(np.uint8)).grad_x.shape == (4, 3)
    assert head.loss(np.round(x).astype(int), y) == head.loss(np.round(x), y)
    given = head.theta
    given.flags.writeable = False
    before = given.copy()
    head.step(x, y, RowOptimizer())  # changes a copy, as of a memory map
    assert (given == before).all()
    assert (head.theta != before).any()


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupts(keep_isa):
    """Ctrl-C ends long calls, and a step leaves everything as it was."""
    binding.select_isa("scalar")
    head = make_head(200_000, 32, tree=Tree.huffman(np.random.default_rng(0).zipf(1.2, 200_000)))
    x = np.broadcast_to(np.ones(32, np.float32), (1 << 11, 32))
    y = np.random.default_rng(1).integers(0, 200_000, 1 << 11)
    before = head.theta.copy()
    assert seconds_to_stop(lambda: head.log_proba(x[:300])) < 1
    assert seconds_to_stop(lambda: head.topk(x, 20_000)) < 1
    optimizer = RowOptimizer()
    many = np.tile(y, 300)
    assert seconds_to_stop(lambda: head.step(np.broadcast_to(x[:1], (len(many), 32)), many, optimizer), 0.4) < 3
    assert (head.theta == before).all()
    assert not optimizer._states


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD")
def test_failing_allocations(tmp_path):
    """Each allocation of the core that fails is a MemoryError, and a step has changed nothing then."""
    from helpers import compile_library
    from helpers.failing_allocations import SHIM

    done = run_python(
        """
import copy
import numpy as np
from helpers.failing_allocations import fail_every_allocation
from csoftmax.heads import HierarchicalSoftmax, RowOptimizer, Tree
rng = np.random.default_rng(0)
head = HierarchicalSoftmax(40, Tree.huffman(rng.zipf(1.2, 3000)))
head.theta[...] = rng.normal(size=head.theta.shape) * 0.1
x, y = rng.normal(size=(4000, 40)), rng.integers(0, 3000, 4000)
def step():
    other, optimizer = copy.deepcopy(head), RowOptimizer(num_threads=2)
    try:
        other.step(x, y, optimizer)
    except MemoryError:
        assert (other.theta == head.theta).all() and not optimizer._states
        raise
    return other.theta, other.bias
calls = {"log_proba": lambda: head.log_proba(x[:40], num_threads=2), "topk": lambda: head.topk(x[:30], 700),
         "loss": lambda: head.loss_with_grad(x, y).grad_x, "step": step}
print({name: fail_every_allocation(call, name) for name, call in calls.items()})
""",
        LD_PRELOAD=str(compile_library(tmp_path, SHIM, "shim")),
    )
    counts = eval(done.stdout)
    assert counts["topk"] >= 4, counts
    assert counts["log_proba"] >= 1, counts
