"""HierarchicalSoftmax and Tree: what cannot be replaced, steps that are refused whole, extreme counts and weights."""

import math
import threading
import warnings

import numpy as np
import pytest

import csoftmax
from csoftmax._cpu import binding
from csoftmax._learn import store
from csoftmax._learn.hierarchical import loss as losses
from csoftmax._learn.hierarchical.state import Parts
from csoftmax.heads import AdaptiveSoftmax, HierarchicalSoftmax, RowOptimizer, Tree


def test_parts_cannot_be_replaced():
    """Kernels follow the tree's numbers into theta: nothing may put another tree beside it, and they look once more."""
    head = HierarchicalSoftmax(6, Tree.huffman([4, 3, 2, 1]))
    for name in ("tree", "n_features", "theta", "bias", "frozen"):
        with pytest.raises(AttributeError):
            setattr(head, name, Tree.balanced(1000))
    head.parameters["theta"] = np.zeros((1, 1))  # in a dict of the caller's
    assert head.parameters["theta"] is head.theta
    for name in ("children", "root", "n_classes", "depth", "counts"):
        with pytest.raises(AttributeError):
            setattr(head.tree, name, 3)
    for a in (head.tree.children, head.tree.counts):
        with pytest.raises(ValueError, match="WRITEABLE"):
            a.flags.writeable = True
    shape, x = Tree.balanced(4)._shape, np.zeros((2, 6), np.float32)
    theta, bias = np.zeros((3, 6), np.float32), np.zeros(3, np.float32)
    for wrong in ((theta[:2], bias, x), (theta, bias[:2], x), (theta, bias, x[:, :5])):
        with pytest.raises(ValueError, match="the tree has 3 nodes"):
            binding.TreeCall(binding.DTYPES["float32"], shape, *wrong, 1.0, 1)


def test_steps_beside_freeze(monkeypatch):
    """The nodes that stay are known before anything is published, and a call reads one state from begin to end."""
    head = HierarchicalSoftmax(2, Tree.balanced(8)).freeze(range(4))
    seen, compute = [], Tree._side_sums

    def look(self, weights):
        seen.append(head._parts.frozen_nodes.tolist())
        return compute(self, weights)

    monkeypatch.setattr(Tree, "_side_sums", look)
    head.freeze(range(2))
    assert sum(seen[0]) == 3
    assert head._parts.frozen_nodes.sum() == 1
    plan = losses.plan_step

    def replace(parts, *args):
        result = plan(parts, *args)
        thread = threading.Thread(target=head.add_classes, args=(8,))
        thread.start()
        thread.join()
        return result

    monkeypatch.setattr(losses, "plan_step", replace)
    old = head.theta
    head.step(np.ones((3, 2), np.float32), [0, 5, 7], RowOptimizer())
    assert head.n_classes == 16
    assert len(old) == 7
    assert old.any()  # what the step began with
    assert isinstance(head._parts, Parts)


def test_refused_steps_change_nothing(monkeypatch):
    """Also where the paths are too long for one part: the states of both parameters are checked first."""
    monkeypatch.setattr(losses, "MAX_ENTRIES", 4)
    head = HierarchicalSoftmax(2, Tree.huffman([4, 3, 2, 1]))
    optimizer = RowOptimizer()
    optimizer.update("bias", np.zeros(2, np.float32), np.ones(2))
    with pytest.raises(ValueError, match="'bias' began with"):
        head.step([[1.0, 2.0]] * 6, [0, 1, 2, 3, 1, 2], optimizer)
    assert not head.theta.any()
    assert "theta" not in optimizer._states


def test_weights_of_classes():
    """0 takes an infinite loss away but not NaN, as in cross_entropy; the scale of weights cancels in a mean."""
    head = HierarchicalSoftmax(1, Tree.balanced(2), dtype=np.float64)
    head.theta[...] = 1
    x, y = np.array([[np.inf], [0.5]]), [0, 0]
    for values, z in ((x, [[-np.inf, 0], [0, 0.5]]), (np.array([[np.nan], [0.5]]), [[np.nan, 0], [0, 0.5]])):
        of_rows = head.loss(values, y, weight=[0, 1], reduction="none")
        expected = csoftmax.cross_entropy(np.array(z), y, weight=[0, 1], reduction="none")
        assert np.array_equal(of_rows, expected, equal_nan=True), (of_rows, expected)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)), rng.integers(0, 6, 9)
    for layer in (
        HierarchicalSoftmax(5, Tree.balanced(6), dtype=np.float64),
        AdaptiveSoftmax(5, 6, cutoffs=[2], dtype=np.float64, rng=0),
    ):
        plain = layer.loss_with_grad(x, y)
        for scale in (1e-310, 1e308):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = layer.loss_with_grad(x, y, weight=np.full(6, scale))
                layer.loss_with_grad(x, y, weight=np.full(6, scale), reduction="sum")
                layer.loss_with_grad(x, y, weight=np.full(6, scale), sample_weight=np.full(9, scale))
            np.testing.assert_allclose(found.grad_x, plain.grad_x, rtol=1e-13, atol=1e-16)
            np.testing.assert_allclose(found.loss, plain.loss, rtol=1e-13)


@pytest.mark.filterwarnings("error")
def test_extreme_counts_and_vectors():
    """Sums of counts that overflow are those of counts over a power of two."""
    counts = np.array([1e308] * 3 + [1])
    tree = Tree.huffman(counts)
    assert tree == Tree.huffman(counts)
    assert sorted(tree.depths().tolist()) == [1, 2, 3, 3] or tree.depths().tolist() == [2, 2, 2, 2]
    assert tree.depths()[3] == tree.depths().max()
    assert 1 <= tree.mean_depth() <= 3
    assert tree.counts.tolist() == counts.tolist()
    head = HierarchicalSoftmax(2, tree, dtype=np.float64)
    head.set_log_prior()
    np.testing.assert_allclose(np.exp(head.log_proba([0.0, 0.0])), [1 / 3, 1 / 3, 1 / 3, 0], atol=1e-12)
    head.add_classes(1, [1e308])
    assert np.isfinite(head.bias).all()
    vectors = np.array([[0.0], [9.0], [0.1], [9.1]])
    small = Tree.two_means(vectors, rng=0)
    assert (Tree.two_means(np.ldexp(vectors, 1020), rng=0).children == small.children).all()
    Tree.two_means([[1e308], [-1e308], [1.0]], counts=[1e308, 1e308, 1], rng=0)


def test_large_numbers_are_refused_first():
    """Before memory is asked for; and a call that fails leaves the generator as it was."""
    head = HierarchicalSoftmax(2, Tree.balanced(5))
    with pytest.raises(ValueError, match="a tree has 1 to 2147483647 classes, got 2147483653"):
        head.add_classes(2**31)
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    for size in ((2**32, 2**32), 2**62, (2**40, 2**40)):
        with pytest.raises((ValueError, MemoryError)):
            head.sample(np.ones((2, 2)), size, rng)
    assert rng.bit_generator.state == before


def test_draws_in_parts(monkeypatch):
    """One part draws as ever; several draw as calls for them would, with bounded memory."""
    head = HierarchicalSoftmax(2, Tree.balanced(40))
    x = np.random.default_rng(1).normal(size=(6, 2))
    whole = head.sample(x, 5, np.random.default_rng(2))
    monkeypatch.setattr(losses, "DRAWS", 10)
    rng = np.random.default_rng(2)
    parts = head.sample(x, 5, np.random.default_rng(2))
    assert (parts == np.concatenate([head.sample(x[i : i + 2], 5, rng) for i in (0, 2, 4)])).all()
    assert (parts[:2] != whole[:2]).sum() < 10 or whole.shape == parts.shape
    assert math.prod(parts.shape) == 30
    assert head.sample(x[:0], 3).shape == (0, 3)
    assert 0 <= head.sample(x[0]) < 40


def test_both_layers_alike(tmp_path):
    """The same results of the same calls: self, k = 0, files, dtypes, repr."""
    for make in (
        lambda **options: HierarchicalSoftmax(3, Tree.balanced(9), **options),
        lambda **options: AdaptiveSoftmax(3, 9, cutoffs=[4], rng=0, **options),
    ):
        layer = make()
        assert layer.freeze([1]) is layer
        assert layer.add_classes(0) is layer
        assert layer.add_classes(2) is layer
        best = layer.topk(np.ones((4, 3)), 0)
        assert best.values.shape == best.indices.shape == (4, 0)
        with pytest.raises(ValueError, match="k must be at most 11, the number of classes, got 12"):
            layer.topk(np.ones((4, 3)), 12)
        for name in ("3 features", "11 classes", "float32"):
            assert name in repr(layer)
        for dtype, shown in (("foo", "'foo'"), (None, "None"), (np.int64, "int64")):
            with pytest.raises(TypeError, match=f"dtype must be float32 or float64, got .*{shown}"):
                make(dtype=dtype)
        layer.parameters["new"] = np.zeros(3)
        assert "new" not in layer.parameters
        path = tmp_path / "layer.safetensors"
        layer.save(path)
        arrays, header = store.read(path, type(layer).__name__)
        header = {name: value for name, value in header.items() if name not in ("format", "version", "class")}
        store.write(path, type(layer).__name__, arrays | {"more": np.zeros(3)}, header)
        with pytest.raises(ValueError, match="more"):
            type(layer).load(path)
