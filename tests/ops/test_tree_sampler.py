"""TreeSampler: probabilities in mpmath, draws by their definition, fits against SciPy and all splits, bits, faults."""

import copy
import itertools
import pickle

import mpmath
import numpy as np
import pytest
from helpers import run_python
from oracles.tree import loss_of_path, paths
from scipy import optimize, sparse, stats

import csoftmax
from csoftmax._learn import principal, tree_newton
from csoftmax._learn.tree_sampler import _project
from csoftmax.adversarial import TreeSampler


def make_data(k, n, d=5, seed=0, noise=0.5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    return rng.normal(size=(k, d))[y] + noise * rng.normal(size=(n, d)), y


def logits_of(sampler, x):
    """Components and the logits of all nodes."""
    state = sampler._state()
    z = _project(state, "x", x)
    return z, z @ state.parts.theta.T + state.parts.bias


@pytest.mark.parametrize("k", [1, 2, 3, 5, 16, 17, 33])
def test_probabilities_are_products_down_the_tree(k):
    """Against mpmath, for the sampler's own logits; they sum to 1 wherever x is."""
    x, y = make_data(k, 20 * k, d=3 if k == 5 else 20)
    sampler = TreeSampler(k, n_components=7).fit(x, y)
    tree = sampler._state().parts.tree
    assert sampler.n_classes == k
    assert tree.depth == int(np.ceil(np.log2(k)))
    assert set(tree.depths()) <= {tree.depth, max(0, tree.depth - 1)}
    rows = np.concatenate([x[:4], 1e3 * x[:2], 1e12 * x[:1]])
    log_p = sampler.log_prob_all(rows)
    _, logits = logits_of(sampler, rows)
    for i, j in np.ndindex(log_p.shape):
        exact = -loss_of_path(paths(tree)[j], logits[i])
        assert abs(log_p[i, j] - exact) <= 1e-13 * max(1, np.abs(logits[i]).max(initial=0)), (i, j)
    with mpmath.workdps(40):
        for row in log_p:
            assert abs(mpmath.fsum(mpmath.exp(mpmath.mpf(float(v))) for v in row) - 1) <= 1e-15 * max(1, tree.depth)
    every = np.tile(np.arange(k), (len(rows), 1))
    assert np.array_equal(sampler.log_q(rows, every, 3), log_p + np.log(3.0))
    for j in range(k):
        assert np.array_equal(sampler.log_prob(rows, np.full(len(rows), j)), log_p[:, j])


def test_draws_are_walks_by_uniform_numbers_in_order(monkeypatch):
    x, y = make_data(21, 600)
    sampler = TreeSampler(21).fit(x, y)
    tree, rows = sampler._state().parts.tree, x[:6]
    _, logits = logits_of(sampler, rows)
    uniforms = np.random.default_rng(5).random((6, 9, tree.depth))
    expected = np.empty((6, 9), np.int64)
    for i, j in np.ndindex(6, 9):
        node = tree.root
        for u in uniforms[i, j]:
            if node >= 0:
                node = int(tree.children[node, int(u < 1 / (1 + np.exp(-logits[i, node])))])
        expected[i, j] = ~node
    negatives = sampler.sample(rows, 9, target=[3, -100, 20, 0, 1, 2], rng=5)
    assert np.array_equal(negatives.ids, expected)
    assert negatives.count is None
    assert negatives.scheme == "iid"
    assert np.array_equal(negatives.log_q, sampler.log_q(rows, expected, 9))
    kept = [0, 2, 3, 4, 5]
    of_target = sampler.log_prob(rows[kept], [3, 20, 0, 1, 2]) + np.log(9.0)
    assert np.isnan(negatives.target_log_q[1])
    assert np.array_equal(negatives.target_log_q[kept], of_target)
    monkeypatch.setattr("csoftmax._learn.tree_sampler.PIECE_NODES", 11)  # several pieces, within rows
    again = sampler.sample(rows, 9, rng=np.random.default_rng(5))
    assert np.array_equal(again.ids, expected)
    assert np.array_equal(again.log_q, negatives.log_q)


def test_draws_have_the_reported_probabilities():
    x, y = make_data(13, 400, noise=1.5)
    sampler = TreeSampler(13).fit(x, y)
    ids = sampler.sample(x[:3], 30_000, rng=1).ids
    for row, p in zip(ids, np.exp(sampler.log_prob_all(x[:3])), strict=True):
        order = np.argsort(-p)
        bins = np.minimum(np.cumsum(p[order] * 30_000 > 20), np.sum(p * 30_000 > 20)) - 1  # rare classes share the last
        seen, wanted = (np.bincount(bins, v[order]) for v in (np.bincount(row, minlength=13), 30_000 * p))
        assert len(seen) > 3
        assert stats.chisquare(seen, wanted).pvalue > 1e-4


def node_problems(sampler, x, y, weights):
    """For each node: its classes by side, and the rows of these."""
    tree = sampler._state().parts.tree
    z, _ = logits_of(sampler, x)
    z = np.column_stack([z, np.ones(len(z))])
    sides = {}
    for j, path in enumerate(paths(tree)):
        for node, side in path:
            sides.setdefault(node, ([], []))[side].append(j)
    for node, (zeros, ones) in sorted(sides.items()):
        at = np.isin(y, zeros + ones)
        yield node, zeros, ones, z[at], y[at], weights[at]


def objective(v, z, is_one, weights, penalty):
    u = z @ v
    value = weights @ (np.logaddexp(0, u) - is_one * u) + penalty / 2 * v @ v
    return value, z.T @ (weights * (1 / (1 + np.exp(-u)) - is_one)) + penalty * v


@pytest.mark.parametrize("penalty", [0.1, 1e-3, 10.0])
def test_every_node_is_at_its_minimum(penalty):
    """SciPy finds no lower objective, and no exchange of two classes between the sides of a node lowers it."""
    x, y = make_data(19, 300, noise=1.0)
    weights = np.random.default_rng(1).uniform(0, 2, len(x))
    sampler = TreeSampler(19, penalty=penalty).fit(x, y, sample_weight=weights)
    parts = sampler._state().parts
    for node, zeros, ones, z, labels, w in node_problems(sampler, x, y, weights):
        v = np.append(parts.theta[node], parts.bias[node])
        assert len(zeros) - len(ones) in (0, 1)
        found, gradient = objective(v, z, np.isin(labels, ones), w, penalty)
        assert np.abs(gradient).max() <= 1e-4 * w.sum(), node
        best = optimize.minimize(
            objective, v, (z, np.isin(labels, ones), w, penalty), jac=True, options={"gtol": 1e-9, "maxiter": 500}
        )
        assert found <= best.fun + 1e-8 * w.sum(), node
        scores = {j: w[labels == j] @ z[labels == j] @ v for j in zeros + ones}
        assert max(scores[j] for j in zeros) <= min(scores[j] for j in ones) + 1e-9 * w.sum(), node


def test_the_best_split_of_separate_groups_is_found():
    """Of all 35 splits of 8 classes at the root, the fit takes the one with the lowest objective."""
    rng = np.random.default_rng(3)
    centers = np.repeat([[-2.0, 0, 0], [2.0, 0, 0]], 4, axis=0)[[0, 4, 1, 5, 6, 2, 7, 3]]
    y = rng.integers(0, 8, 400)
    x = centers[y] + rng.normal(size=(400, 3))
    sampler = TreeSampler(8).fit(x, y)
    _, zeros, ones, z, labels, w = next(iter(node_problems(sampler, x, y, np.ones(400))))
    values = {}
    for half in itertools.combinations(range(1, 8), 3):
        is_one = ~np.isin(labels, (0, *half))
        values[half] = optimize.minimize(objective, np.zeros(z.shape[1]), (z, is_one, w, 0.1), jac=True).fun
    best = {0, *min(values, key=values.get)}
    assert best in (set(zeros), set(ones))
    assert {frozenset(np.flatnonzero(centers[:, 0] < 0))} <= {frozenset(zeros), frozenset(ones)}


def test_components_are_those_of_the_covariance(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 30)) * np.geomspace(10, 0.1, 30) + 5
    weights = rng.uniform(0, 1, 200)
    covariance = np.cov(x.T, aweights=weights, ddof=0)
    values, vectors = np.linalg.eigh(covariance)
    found = principal.find_components(x, weights, 6, None)
    z = found.project(x)
    expected = (x - np.average(x, axis=0, weights=weights)) @ vectors[:, ::-1][:, :6] / np.sqrt(values[-1])
    assert np.allclose(np.abs(z), np.abs(expected), rtol=1e-9, atol=1e-12)
    assert np.average(z[:, 0] ** 2, weights=weights) == pytest.approx(1)
    monkeypatch.setattr(principal, "MAX_EXACT", 10)
    about = principal.find_components(x, weights, 6, lambda: np.random.default_rng(0))
    assert np.allclose(np.abs(about.project(x)), np.abs(expected), atol=2e-3)


def test_units_and_offsets_of_features_change_nothing():
    """Components do not depend on units, nor on an offset that the features can bear, up to rounding."""
    x, y = make_data(9, 200)
    base = TreeSampler(9).fit(x, y).log_prob_all(x)
    for scale, offset in ((1e-300, 0), (1e300, 0), (2.0**20, 0), (1, 1e6)):
        moved = x * scale + offset
        assert np.allclose(TreeSampler(9).fit(moved, y).log_prob_all(moved), base, rtol=1e-6, atol=1e-6), scale


def test_weights_are_repetitions():
    x, y = make_data(7, 90)
    weights = np.arange(90) % 3
    weighted = TreeSampler(7).fit(x, y, sample_weight=weights)
    repeated = TreeSampler(7).fit(np.repeat(x, weights, axis=0), np.repeat(y, weights))
    assert np.allclose(weighted.log_prob_all(x), repeated.log_prob_all(x), rtol=1e-7, atol=1e-7)


def test_odd_data():
    """One class, no columns, constant features, classes without rows, tiny and huge weights, other kinds of array."""
    alone = TreeSampler(1).fit([[2.0], [3.0]], [0, 0])
    assert not alone.sample([[1.0]], 4, rng=0).ids.any()
    assert alone.log_prob_all([[9.0]]).tolist() == [[0.0]]
    for x in (np.zeros((6, 0)), np.full((6, 3), 7.0), np.full((6, 1), 1e308)):
        log_p = TreeSampler(3).fit(x, [0, 0, 0, 0, 1, 2]).log_prob_all(x[:1])
        assert np.isfinite(log_p).all()
        assert log_p[0].argmax() == 0
    x, y = make_data(40, 500)
    few = TreeSampler(1000).fit(x, y)
    assert np.exp(few.log_prob_all(x))[:, :40].sum(axis=1).min() > 0.5
    for weight in (1e-300, 1e290):
        weighted = TreeSampler(40).fit(x, y, sample_weight=np.full(500, weight))
        assert np.isfinite(weighted.log_prob_all(x)).all()
    plain = TreeSampler(40).fit(x, y).log_prob_all(x)
    wide = np.zeros((500, 10))
    wide[:, ::2] = x
    for other in (np.asfortranarray(x), wide[:, ::2], x.tolist()):
        assert np.array_equal(TreeSampler(40).fit(other, y.astype(np.uint8)).log_prob_all(other), plain)
    for dtype in (np.float32, np.float16):
        sampler = TreeSampler(40).fit(x.astype(dtype), y.tolist())
        assert sampler.sample(x.astype(dtype), 2, rng=0).log_q.dtype == np.float64
    assert few.sample(x[:0], 3, target=y[:0]).ids.shape == (0, 3)
    empty = few.sample(x[:2], 0, target=y[:2])
    assert empty.ids.shape == (2, 0)
    assert np.all(empty.target_log_q == -np.inf)
    with np.errstate(all="raise"):
        assert np.array_equal(TreeSampler(40).fit(x, y).log_prob_all(x), plain)


def test_bits_do_not_depend_on_threads_or_batches():
    x, y = make_data(300, 4000, d=40)
    sampler = TreeSampler(300).fit(x, y)
    log_p, negatives = sampler.log_prob_all(x), sampler.sample(x, 5, rng=0)
    assert np.array_equal(np.concatenate([sampler.log_prob_all(row[None]) for row in x[:50]]), log_p[:50])
    for threads in (1, 2, 3):
        with csoftmax.threads(threads):
            again = TreeSampler(300).fit(x, y)
            assert np.array_equal(again.log_prob_all(x), log_p)
            drawn = again.sample(x, 5, rng=0)
            assert np.array_equal(drawn.ids, negatives.ids)
            assert np.array_equal(drawn.log_q, negatives.log_q)


def test_batches_of_nodes_change_little(monkeypatch):
    """Nodes are fitted alike whatever shares their batch and their blocks."""
    x, y = make_data(100, 3000)
    log_p = TreeSampler(100).fit(x, y).log_prob_all(x)
    monkeypatch.setattr(tree_newton, "BATCH_ROWS", 60)
    monkeypatch.setattr(tree_newton, "BATCH_NODES", 3)
    monkeypatch.setattr(tree_newton, "PRODUCT_ELEMENTS", 500)
    monkeypatch.setattr(principal, "BLOCK_NUMBERS", 100)
    assert np.allclose(TreeSampler(100).fit(x, y).log_prob_all(x), log_p, rtol=1e-5, atol=1e-5)


def test_copies_and_interruptions(monkeypatch):
    x, y = make_data(6, 60)
    sampler = TreeSampler(6).fit(x, y)
    log_p = sampler.log_prob_all(x)
    for other in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert np.array_equal(other.log_prob_all(x), log_p)
        assert other.nbytes == sampler.nbytes
    assert repr(sampler) == "<TreeSampler: 6 classes, fitted>"
    calls = itertools.count()
    solve = tree_newton._solve

    def interrupted(*arguments):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return solve(*arguments)

    monkeypatch.setattr(tree_newton, "_solve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sampler.fit(x[::-1], y)
    assert np.array_equal(sampler.log_prob_all(x), log_p)


def test_wrong_arguments():
    x, y = make_data(5, 50)
    sampler, rng = TreeSampler(5).fit(x, y), np.random.default_rng(0)
    before = rng.bit_generator.state
    for call, error, message in (
        (lambda: TreeSampler(0), ValueError, "n_classes must be at least 1, got 0"),
        (lambda: TreeSampler(2**31), ValueError, "a tree has 1 to 2147483647 classes"),
        (lambda: TreeSampler(2.0), TypeError, "n_classes must be an int, got 2.0"),
        (lambda: TreeSampler(5, n_components=0), ValueError, "n_components must be at least 1, got 0"),
        (lambda: TreeSampler(5, penalty=0), ValueError, "penalty must be positive and finite, got 0"),
        (lambda: TreeSampler(5, penalty=np.nan), ValueError, "penalty must be positive and finite, got nan"),
        (lambda: TreeSampler(5, penalty="x"), TypeError, "penalty must be a real number"),
        (lambda: TreeSampler(5, random_state=1.5), TypeError, "random_state must be an int"),
        (lambda: TreeSampler(5, random_state=-1), ValueError, "random_state must be at least 0"),
        (lambda: TreeSampler(5).sample(x, 1), ValueError, "this TreeSampler is not fitted: call fit"),
        (lambda: TreeSampler(5).log_prob_all(x), ValueError, "this TreeSampler is not fitted: call fit"),
        (lambda: sampler.fit(x, y - 1), IndexError, r"y\[\d+\] is -1: the classes are 0 to 4"),
        (lambda: sampler.fit(x, y + 1), IndexError, r"y\[\d+\] is 5: the classes are 0 to 4"),
        (lambda: sampler.fit(x, y * 1.0), TypeError, "y must hold integers, got dtype float64"),
        (lambda: sampler.fit(x, y[1:]), ValueError, r"y has shape \(49,\); \(50,\) is needed"),
        (lambda: sampler.fit(x[0], y), ValueError, r"X has shape \(5,\); \(N, D\) is needed"),
        (lambda: sampler.fit(sparse.csr_array(x), y), TypeError, r"X is a sparse matrix; pass X.toarray\(\)"),
        (lambda: sampler.fit(x[:0], y[:0]), ValueError, "X has no rows"),
        (lambda: sampler.fit(np.where(x == x[3, 1], np.nan, x), y), ValueError, r"got nan at X\[3, 1\]"),
        (lambda: sampler.fit(x, y, sample_weight=-y), ValueError, r"sample_weight\[\d+\] is -"),
        (lambda: sampler.fit(x, y, sample_weight=0 * y), ValueError, "sample_weight has the sum 0.0"),
        (lambda: sampler.fit(x, y, sample_weight=[1]), ValueError, r"sample_weight has shape \(1,\)"),
        (lambda: sampler.sample(x[:, 1:], 2, rng=rng), ValueError, r"x has shape \(50, 4\); \(N, 5\) is needed"),
        (lambda: sampler.sample(x, -1, rng=rng), ValueError, "size must be at least 0, got -1"),
        (lambda: sampler.sample(x, 2, target=y + 1, rng=rng), IndexError, r"target\[\d+\] is 5"),
        (lambda: sampler.sample(x, 2, target=y[1:], rng=rng), ValueError, r"target has shape \(49,\)"),
        (lambda: sampler.sample(x / 0, 2, rng=rng), ValueError, r"x must be finite, got -?inf at x\[0, 0\]"),
        (lambda: sampler.sample(x, 2, rng="0"), TypeError, "rng must be"),
        (lambda: sampler.sample(x, 2, rng=np.random.RandomState(0)), TypeError, "Generator, or None, got a RandomS"),
        (lambda: sampler.sample(x * 0 + 1.7e308, 2, rng=rng), ValueError, r"x\[0\] is too large: its largest element"),
        (lambda: sampler.log_prob_all(x * 0 - 1.7e308), ValueError, r"X\[0\] is too large"),
        (lambda: sampler.log_q(x, y, 2), ValueError, r"ids has shape \(50,\); \(50, m\) is needed"),
        (lambda: sampler.log_q(x, y[:, None] + 1, 2), IndexError, r"ids\[\d+, 0\] is 5"),
        (lambda: sampler.log_prob(x, y[1:]), ValueError, r"y has shape \(49,\)"),
    ):
        with pytest.raises(error, match=message), np.errstate(divide="ignore"):
            call()
    assert rng.bit_generator.state == before


WITHOUT = """
import sys
for name in ("sklearn", "scipy", "threadpoolctl"):
    sys.modules[name] = None
import numpy as np
from csoftmax.adversarial import TreeSampler
x = np.random.default_rng(0).normal(size=(60, 3))
sampler = TreeSampler(6).fit(x, np.arange(60) % 6)
assert sampler.sample(x, 2, rng=0).ids.shape == (60, 2)
"""


def test_numpy_is_enough():
    run_python(WITHOUT)


@pytest.mark.slow
def test_a_hundred_thousand_classes():
    """The likelihood of data that the tree can learn, with more classes than rows of a batch."""
    x, y = make_data(100_000, 150_000, d=12, noise=0.1)
    sampler = TreeSampler(100_000, n_components=12).fit(x, y)
    assert sampler.log_prob(x[:2000], y[:2000]).mean() > -6  # log K is 11.5
    assert abs(np.exp(sampler.log_prob_all(x[:3])).sum(axis=1) - 1).max() <= 17e-15
