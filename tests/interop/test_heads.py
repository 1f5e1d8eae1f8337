"""Layers of csoftmax.heads with arrays of PyTorch, JAX, pandas and xarray: results are arrays of the same library."""

import itertools

import numpy as np
import pytest

import csoftmax
from csoftmax.heads import (
    AdaptiveSoftmax,
    BloomSoftmax,
    ClusteredHead,
    HashedSoftmax,
    HierarchicalSoftmax,
    Int8Head,
    RowOptimizer,
    Tree,
    hash_buckets,
)

N, K, D = 3, 40, 4


def make(name):
    """A layer with parameters that are not 0."""
    rng = np.random.default_rng(0)
    w, bias = rng.normal(size=(K, D)), rng.normal(size=K)
    if name in ("Int8Head", "ClusteredHead"):
        return Int8Head(w, bias) if name == "Int8Head" else ClusteredHead(w, bias, n_clusters=5, rng=0)
    counts = rng.integers(1, 9, K)
    layer = {
        "AdaptiveSoftmax": lambda: AdaptiveSoftmax(D, K, cutoffs=[10], dtype=np.float64, rng=0),
        "BloomSoftmax": lambda: BloomSoftmax(D, K, n_buckets=32, dtype=np.float64, rng=0),
        "HashedSoftmax": lambda: HashedSoftmax(D, K, n_buckets=32, counts=counts, dtype=np.float64, rng=0),
        "HierarchicalSoftmax": lambda: HierarchicalSoftmax(D, Tree.balanced(K), dtype=np.float64),
    }[name]()
    for parameter in layer.parameters.values():
        parameter += rng.normal(size=parameter.shape)
    return layer


def of_int8(layer, x, y):
    return {
        **{"topk": layer.topk(x, 5), "predict": layer.predict(x), "one": layer.predict(x[0])},
        **{"logits": layer.logits(x, y), "log_partition": layer.log_partition(x), "softmax": layer.topk_softmax(x, 3)},
        **{"log_proba": layer.log_proba(x, target=y), "sample": layer.sample(x, 7, rng=0)},
    }


def of_clusters(layer, x, y):
    return {
        **{"topk": layer.topk(x, 5, n_probe=2), "predict": layer.predict(x=x), "logits": layer.logits(x, y)},
        "log_partition": layer.log_partition(x, n_probe=2, n_sample=3, rng=0),
    }


def of_loss(layer, x, y):
    found = {"topk": layer.topk(x, k=5), "predict": layer.predict(x), "one": layer.predict(x[0])}
    found |= {"loss": layer.loss(x, y), "losses": layer.loss(x, y, reduction="none", sample_weight=[1.0, 2.0, 0.0])}
    found |= {"step": layer.step(x, y, RowOptimizer("sgd", 0.1))}
    found |= {"gradients": layer.loss_with_grad(x, target=y)[:2]}
    if hasattr(layer, "log_proba"):
        found |= {"log_proba": layer.log_proba(x)}
    if hasattr(layer, "scores"):
        found |= {"scores": layer.scores(x, y)}
    if hasattr(layer, "sample"):
        found |= {"sample": layer.sample(x, 7, rng=0)}
    if hasattr(layer, "unbiased"):
        found |= {"unbiased": layer.unbiased(x, y)}
    return found


CALLS = {
    **{"Int8Head": of_int8, "ClusteredHead": of_clusters},
    **dict.fromkeys(("AdaptiveSoftmax", "BloomSoftmax", "HashedSoftmax", "HierarchicalSoftmax"), of_loss),
}


def leaves(found):
    """All results of calls by name, those of tuples by number as well."""
    for name, result in found.items():
        parts = result if isinstance(result, tuple) else (result,)
        yield from ((f"{name} {number}", part) for number, part in enumerate(parts))


def arrays():
    x = np.random.default_rng(1).normal(size=(N, D))
    return x, np.array([3, 0, 39])


@pytest.mark.parametrize("name", CALLS)
def test_tensors(name):
    torch = pytest.importorskip("torch")
    x, y = arrays()
    expected = dict(leaves(CALLS[name](make(name), x, y)))
    layer = make(name)
    t = torch.tensor(x)
    found = CALLS[name](layer, t, torch.tensor(y))
    for key, result in leaves(found):
        assert isinstance(result, torch.Tensor), key
        assert result.numpy().tobytes() == expected[key].tobytes(), key
    for key, result in found.items():  # the class of a result stays
        assert type(result).__name__ in ("Tensor", "tuple", "TopK", "Interval", "TopKInterval", "ClusteredTopK",
                                         "ClusteredInterval"), key  # fmt: skip
    with torch.no_grad():
        assert isinstance(layer.predict(t.clone().requires_grad_()), torch.Tensor)
    with pytest.raises(ValueError, match=rf"x requires grad, which {name}.topk does not record: pass x.detach"):
        layer.topk(t.clone().requires_grad_(), 2)
    if hasattr(layer, "loss"):
        weight = torch.ones(N, requires_grad=True)
        with pytest.raises(ValueError, match=r"sample_weight requires grad"):
            layer.loss(t, y, sample_weight=weight)
        with pytest.raises(ValueError, match=r"sample_weight requires grad"):
            layer.loss(x, y, sample_weight=weight)
        gradients = layer.loss_with_grad(t, y).gradients  # of the parameters, which are NumPy arrays
        assert type(gradients) is dict
        assert all(type(getattr(g, "values", g)) is np.ndarray for g in gradients.values())


@pytest.mark.parametrize("name", CALLS)
def test_arrays_of_jax(name):
    jax = pytest.importorskip("jax")
    x, y = arrays()
    x = x.astype(np.float32)
    layer = make(name)
    for key, result in leaves(CALLS[name](layer, jax.numpy.asarray(x), jax.numpy.asarray(y))):
        assert isinstance(result, jax.Array), key
    with pytest.raises(ValueError, match=rf"x is a tracer of JAX, which {name}.predict does not record"):
        jax.jit(layer.predict)(x)


@pytest.mark.parametrize("name", list(itertools.islice(CALLS, 2, None)))
def test_gradients_of_tables_keep_their_labels(name):
    pandas = pytest.importorskip("pandas")
    x, y = arrays()
    frame = pandas.DataFrame(x, index=["a", "b", "c"], columns=list("pqrs"))
    layer = make(name)
    for found in (layer.loss_with_grad(frame, y), layer.step(frame, y, RowOptimizer("sgd", 1e-30))):
        assert isinstance(found[1], pandas.DataFrame)
        assert found[1].index.equals(frame.index)
        assert found[1].columns.equals(frame.columns)
    assert type(layer.topk(frame, D).values) is np.ndarray


@pytest.mark.parametrize("kind", ["torch", "jax"])
def test_functions(kind):
    library = pytest.importorskip("jax.numpy" if kind == "jax" else kind)
    x, _ = arrays()
    w = np.random.default_rng(2).normal(size=(K, D))
    x, w = x.astype(np.float32), w.astype(np.float32)
    found, expected = csoftmax.int8_topk(library.asarray(x), library.asarray(w), 4), csoftmax.int8_topk(x, w, 4)
    assert type(found) is type(expected)
    for a, b in zip(found, expected, strict=True):
        assert type(a) is type(library.asarray(x))
        assert np.array_equal(np.asarray(a), b)
    assert csoftmax.heads.int8_topk is csoftmax.int8_topk
    buckets = hash_buckets(library.asarray([1, 2]), 100, 3, seed=0)
    assert type(buckets) is type(library.asarray(x))
    assert np.array_equal(np.asarray(buckets), hash_buckets([1, 2], 100, 3, seed=0))
    if kind == "torch":
        with pytest.raises(ValueError, match=r"w requires grad, and csoftmax.torch has no int8_topk: pass w.detach"):
            csoftmax.int8_topk(x, library.ones((K, D), requires_grad=True), 1)


@pytest.mark.parametrize(
    "name", ["AdaptiveSoftmax", "BloomSoftmax", "HashedSoftmax", "HierarchicalSoftmax", "Int8Head"]
)
def test_results_of_one_row_are_scalars(name):
    layer, x = make(name), np.ones(D)
    results = [layer.predict(x)]
    if name == "Int8Head":
        results += [*layer.log_proba(x, 3), *layer.log_partition(x)]
    assert all(isinstance(a, np.generic) for a in results)
