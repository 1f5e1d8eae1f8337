"""Heads with a layer in ManyClassRegression: counts of now, copies, a head that is set, serving."""

import copy
import warnings

import numpy as np
import pytest
from sklearn.base import clone

from csoftmax.heads import AdaptiveSoftmax, BloomSoftmax, HashedSoftmax, HierarchicalSoftmax, RowOptimizer, Tree
from csoftmax.linear_model import ManyClassRegression

HEADS = ("sampled", "full", "hierarchical", "adaptive", "hashed")


def make_rows(classes=20, n=60, dtype=np.float64):
    rng = np.random.default_rng(0)
    y = np.arange(n) % classes
    return rng.normal(size=(n, 5)).astype(dtype), y


def make(head, **options):
    return ManyClassRegression(head=head, max_epochs=1, random_state=0, **options)


def test_added_classes_go_by_the_counts_of_now():
    """Not by those of the first minibatch, which the head was made of."""
    X, y = make_rows()
    for head in ("hierarchical", "adaptive"):
        model = make(head, cutoffs=[]).partial_fit(X, y, classes=np.arange(20))
        often = np.full(100, 7)
        model.partial_fit(X[np.arange(100) % 60], often)  # 7 is the most frequent now
        for k in range(20):
            if k not in (7, 3):
                model.partial_fit(X[:5], np.full(5, k))
        now = model.class_count_.copy()
        before = model.predict_proba(X[:3])
        model.add_classes([30], counts=[50])
        layer = model.head_.layer
        assert layer.tree.counts[:20].tolist() == now.tolist() if head == "hierarchical" else True
        assert model.class_count_[:20].tolist() == now.tolist()
        if head == "hierarchical":
            after = model.predict_proba(X[:3])
            assert np.flatnonzero((np.abs(after[:, :20] - before) > 1e-9).any(axis=0)).tolist() == [3]
            np.testing.assert_allclose(after[:, 20] / before[:, 3], 50.5 / (50.5 + 3.5))
        else:
            assert layer.counts[:20].tolist() == now.tolist()
            np.testing.assert_allclose(layer.parameters["head_bias"][-1], np.log(50 / (now.sum() + 50)))
    balanced = make("hierarchical", tree="balanced").fit(X, y).add_classes([30], counts=[50])
    assert balanced.head_.layer.tree.counts is None
    assert balanced.class_count_[-1] == 50


def test_a_tree_is_compared_where_the_head_begins():
    X, y = make_rows()
    model = make("hierarchical", tree=Tree.balanced(20), warm_start=True).fit(X, y).add_classes([30])
    model.fit(X, y).partial_fit(X, y)
    assert len(model.classes_) == 21
    with pytest.raises(ValueError, match="tree has 20 classes, but the model has 19"):
        make("hierarchical", tree=Tree.balanced(20)).partial_fit(X[:19], y[:19], classes=np.arange(19))


def test_a_copy_that_grows_leaves_the_model():
    X, y = make_rows()
    for head in HEADS:
        model = make(head).fit(X, y)
        before = model.predict_proba(X)
        twin = copy.copy(model).add_classes([-99])
        assert twin.predict_proba(X).shape == (60, 21)
        assert (model.predict_proba(X) == before).all()
        model.partial_fit(X, y)


def test_a_head_that_is_set_later(tmp_path):
    """Steps refuse another kind of head, as fit does with warm_start; a file has the head that is there."""
    X, y = make_rows()
    path = tmp_path / "model.safetensors"
    for head, other in (
        ("full", "adaptive"),
        ("hierarchical", "sampled"),
        ("adaptive", "hierarchical"),
        ("hashed", "full"),
        ("sampled", "hashed"),
    ):
        model = make(head, warm_start=True).partial_fit(X, y, classes=np.arange(20)).set_params(head=other)
        before = model.predict_proba(X)
        for call in (lambda: model.partial_fit(X, y), lambda: model.fit_batches([(X, y)], np.arange(20))):  # noqa: B023
            with pytest.raises(ValueError, match="whose training goes on has"):
                call()
        assert (model.predict_proba(X) == before).all()
        model.save(path)
        loaded = ManyClassRegression.load(path)
        assert loaded.head == head
        assert (loaded.predict_proba(X) == before).all()
    linear = make("full").partial_fit(X, y, classes=np.arange(20)).set_params(head="sampled").partial_fit(X, y)
    assert type(linear.head_).__name__ == "SampledHead"
    with pytest.raises(ValueError, match="head must be one of"):
        linear.set_params(head="other").partial_fit(X, y)


def test_serving_and_large_features():
    X, y = make_rows(dtype=np.float32)
    for head in ("hierarchical", "adaptive", "hashed"):
        model = make(head).fit(X, y)
        with pytest.raises(ValueError, match=f'head is "{head}".*"sampled" and "full"'):
            model.serving()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict_proba(np.full((2, 5), 1e200))
            model.topk(np.full((2, 5), 1e200), 2)


def test_an_adaptive_layer_is_changed_whole_or_not_at_all():
    """A refused step leaves all parameters; nothing replaces one of them; messages name the caller's keys."""
    layer = AdaptiveSoftmax(4, 12, cutoffs=[3, 6], rng=0)
    x, y = np.ones((12, 4), np.float32), np.arange(12)
    optimizer = RowOptimizer()
    layer.step(x, y, optimizer)
    layer.add_classes(2)
    before = {name: a.copy() for name, a in layer.parameters.items()}
    with pytest.raises(ValueError, match="'tail1' began with"):
        layer.step(x, y, optimizer)
    assert all((layer.parameters[name] == a).all() for name, a in before.items())
    for name in ("parameters", "classes", "frozen", "n_classes"):
        with pytest.raises(AttributeError):
            setattr(layer, name, None)
    layer.parameters["tail0"] = np.zeros((1, 1))
    assert layer.parameters["tail0"].shape == (3, 1)
    with pytest.raises(ValueError, match="read-only"):
        layer.classes.rank[0] = 99
    state = {"head.weight": (5, 8), "head.bias": (5,), "tail.0.0.weight": (2, 8), "tail.0.1.weight": (6, 2)}
    for name, shape, match in (
        ("head.bias", (4,), r"'head.bias' has shape \(4,\), dtype float64, not \(5,\), float64"),
        ("tail.0.1.weight", (6, 3), r"'tail.0.1.weight' has shape \(6, 3\)"),
        ("tail.0.0.weight", (8,), r"'tail.0.0.weight'\] has shape \(8,\); two axes"),
    ):
        with pytest.raises(ValueError, match=match):
            AdaptiveSoftmax.from_torch({key: np.ones(s) for key, s in (state | {name: shape}).items()})


LAYERS = {
    "hierarchical": lambda: HierarchicalSoftmax(5, Tree.huffman(np.arange(1, 21)), dtype=np.float64),
    "adaptive": lambda: AdaptiveSoftmax(5, 20, cutoffs=[8], rng=0),
    "hashed": lambda: HashedSoftmax(5, 20, n_buckets=8, n_hashes=6, rng=0),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_may_be_the_head(name, tmp_path):
    X, y = make_rows()
    layer = LAYERS[name]()
    layer.parameters[next(iter(layer.parameters))][...] += 0.01
    before = copy.deepcopy(layer.parameters)
    model = ManyClassRegression(head=layer, max_epochs=30, random_state=0).fit(X, y)
    for key, parameter in layer.parameters.items():
        assert np.array_equal(parameter, before[key])
    assert type(model.head_.layer) is type(layer)
    assert model.head_.layer is not layer
    assert model.history_["loss"][-1] < 0.9 * model.history_["loss"][0]
    assert model.score(X, y) > 0.15  # 0.05 by chance
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, 1e-5)
    copied = clone(model)
    assert copied.head is not layer
    assert np.array_equal(copied.fit(X, y).predict_proba(X), model.predict_proba(X))
    path = tmp_path / "model.safetensors"
    model.save(path)
    loaded = ManyClassRegression.load(path)
    assert loaded.head == name
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
    loaded.partial_fit(X, y)
    for train in (model.partial_fit, model.set_params(warm_start=True).fit):
        train(X, y)
    assert len(model.history_["loss"]) == 30
    assert type(model.head_.layer) is type(layer)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: HierarchicalSoftmax(5, Tree.balanced(20), bias=False, dtype=np.float64),
        lambda: AdaptiveSoftmax(5, 20, cutoffs=[8], bias=False, rng=0),
        lambda: HashedSoftmax(5, 20, n_buckets=8, n_hashes=6, bias=False, rng=0),
    ],
)
def test_a_layer_without_a_bias_may_be_the_head(layer, tmp_path):
    X, y = make_rows()
    path = tmp_path / "model.safetensors"
    model = make(layer()).fit(X, y)
    model.save(path)
    loaded = ManyClassRegression.load(path)
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
    for m in (model, loaded):
        m.partial_fit(X, y).add_classes([30]).freeze([3]).partial_fit(X, y)
    assert loaded.head_.parameters.keys() == layer().parameters.keys()
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
    head = model.head_.for_raw_features(np.full(5, 3.0), np.full(5, 2.0))
    np.testing.assert_allclose(head.log_proba(X * 2 + 3), model.head_.log_proba(X), rtol=1e-6)


def test_the_first_step_starts_at_the_layer_that_is_the_head():
    X, y = make_rows()
    layer = LAYERS["hierarchical"]()
    layer.parameters["theta"][...] = np.random.default_rng(1).normal(size=(19, 5))
    model = ManyClassRegression(head=layer).partial_fit(X, y, classes=np.arange(20))
    assert model.history_["loss"][0] == pytest.approx(layer.loss(X, y), rel=1e-14)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            lambda: HierarchicalSoftmax(4, Tree.balanced(20)),
            "head .* has 4 features and 20 classes, but",
        ),
        (lambda: AdaptiveSoftmax(5, 21, rng=0), "head .* has 5 features and 21 classes, but the data have 5 and 20"),
        (lambda: HashedSoftmax(5, n_buckets=8, rng=0), "head .* has 5 features and None classes"),
        (lambda: LAYERS["adaptive"]().freeze([3]), "head has frozen classes"),
        (lambda: BloomSoftmax(5, 20, n_buckets=8, rng=0), "head must be one of .* or a layer of csoftmax.heads"),
        (lambda: HashedSoftmax, "head must be one of"),
    ],
)
def test_layers_that_do_not_fit(layer, message):
    X, y = make_rows()
    model = ManyClassRegression(random_state=0).fit(X, y)
    expected, model.head = model.predict_proba(X), layer()
    for train in (lambda: model.fit(X, y), lambda: ManyClassRegression(head=model.head).partial_fit(X, y, range(20))):
        with pytest.raises(ValueError, match=message):
            train()
    assert np.array_equal(model.predict_proba(X), expected)
