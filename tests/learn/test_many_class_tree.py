"""ManyClassRegression with a hierarchical head: steps by their definition, trees, stages, files, the command line."""

import copy
import json

import numpy as np
import pytest
import scipy.sparse

import csoftmax
from csoftmax.heads import HierarchicalSoftmax, RowOptimizer, Tree
from csoftmax.linear_model import ManyClassRegression


@pytest.fixture(scope="module")
def pairs():
    """3,000 pairs of an id and one of 200 labels."""
    rng = np.random.default_rng(5)
    p = 1 / np.arange(1, 101)
    ids = rng.choice(100, 3000, p=p / p.sum())
    y = (ids * 7 + rng.geometric(0.5, 3000) * 13) % 200
    y[:200] = np.arange(200)
    return ids[:, None], y


def make(**options):
    return ManyClassRegression(**{"head": "hierarchical", "random_state": 0} | options)


def test_a_step_by_its_definition():
    """One minibatch is a step of the layer from the log prior of the weighted counts."""
    rng = np.random.default_rng(0)
    X, y, s = rng.normal(size=(300, 4)), rng.integers(0, 40, 300), rng.integers(1, 4, 300) * 1.0
    y[:40] = np.arange(40)
    model = make(max_epochs=1, penalty_l2=0.1).fit(X, y, sample_weight=s)
    layer = HierarchicalSoftmax(4, Tree.huffman(np.bincount(y, s)), dtype=np.float64)
    layer.set_log_prior()
    prior = np.exp(layer.log_proba(np.zeros(4)))
    assert np.abs(prior - np.bincount(y, s) / s.sum()).max() < 0.01
    loss, _ = layer.step(X, y, RowOptimizer(penalty_l2=0.1), sample_weight=s)
    assert model.history_["loss"] == [loss]
    assert model.head_.layer.tree == layer.tree
    assert (model.head_.parameters["bias"] == layer.bias).all()
    touched = layer.loss_with_grad(X, y).gradients["theta"].rows
    assert (model.head_.parameters["theta"][touched] == layer.theta[touched]).all()
    X, y = X[::2], y[::2]
    repeated = make(max_epochs=3).fit(np.repeat(X, 2, axis=0), np.repeat(y, 2))
    weighted = make(max_epochs=3).fit(X, y, sample_weight=np.full(len(y), 2.0))
    np.testing.assert_allclose(weighted.head_.parameters["theta"], repeated.head_.parameters["theta"], rtol=1e-9)


def test_trees_learn(pairs):
    """Every tree and optimiser learns the pairs; predictions agree with one another and with exact probabilities."""
    ids, y = pairs
    unigram = make(embedding=8, max_epochs=1, learning_rate=1e-9).fit(ids, y)
    before = -unigram.log_proba(ids, y).mean()
    own = Tree.balanced(200, np.random.default_rng(0).permutation(200))
    for options in ({}, {"tree": "balanced"}, {"tree": "two_means"}, {"tree": own}, {"optimizer": "adam"}):
        rate = 0.02 if options.get("optimizer") else 0.3
        model = make(embedding=8, max_epochs=5, batch_size=64, learning_rate=rate, **options).fit(ids, y)
        loss = -model.log_proba(ids, y).mean()
        assert loss < before - 1.5, (options, loss, before)
        log_proba = model.predict_log_proba(ids[:50])
        np.testing.assert_allclose(np.exp(log_proba).sum(axis=1), 1, atol=1e-6)
        assert (log_proba[range(50), y[:50]] == model.log_proba(ids[:50], y[:50])).all()
        best = csoftmax.topk(log_proba, 7)
        got = model.topk(ids[:50], 7)
        assert (best.indices == got.indices).all()
        assert (best.values == got.values).all()
        assert (model.predict(ids[:50]) == model.classes_[got.indices[:, 0]]).all()
        assert (model.predict_proba(ids[:50]) == np.exp(log_proba)).all()
    assert model.head_.nbytes > 0
    assert model.head_.n_classes == 200


def test_sparse_is_dense_and_threads_do_not_matter():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(700, 6)) * (rng.random((700, 6)) < 0.3), rng.integers(0, 50, 700)
    dense, sparse = make(num_threads=1).fit(X, y), make(num_threads=2).fit(scipy.sparse.csr_matrix(X), y)
    for name, a in dense.head_.parameters.items():
        assert (a == sparse.head_.parameters[name]).all()
    assert (dense.predict_log_proba(X) == sparse.predict_log_proba(scipy.sparse.csr_array(X))).all()
    assert (dense.topk(X, 3).indices == sparse.topk(scipy.sparse.csr_array(X), 3).indices).all()
    assert dense.head_.dtype == np.float64
    assert make().fit(X.astype(np.float32), y).head_.dtype == np.float32


def test_stages(pairs, tmp_path):
    """Batches, added and frozen classes, warm starts, files with memory maps and further training."""
    ids, y = pairs
    parts = [(ids[i : i + 300], y[i : i + 300]) for i in range(0, 3000, 300)]
    model = make(embedding=(100, 8), warm_start=True).fit_batches(parts, np.arange(200), epochs=2)
    once = make(embedding=(100, 8))
    for X, labels in parts:
        once.partial_fit(X, labels, classes=np.arange(200))
    assert np.isfinite(once.history_["loss"]).all()
    before = model.predict_proba(ids[:9])
    counted = model.class_count_.copy()
    model.add_classes([-5, 300, 500], counts=[3, 1, 2])
    after = model.predict_proba(ids[:9])
    places = np.flatnonzero(np.isin(model.classes_, np.arange(200)))
    assert model.classes_[:2].tolist() == [-5, 0]
    assert (model.class_count_[places] == counted).all()
    changed = np.abs(after[:, places] - before).max(axis=0) > 1e-9
    assert changed.sum() <= 3  # the classes that were split
    np.testing.assert_allclose(after.sum(axis=1), 1, atol=1e-6)
    model.freeze(np.arange(100))
    assert model.head_.frozen is None or model.head_.frozen.any()
    held = copy.deepcopy(model).fit(ids, y)
    frozen = held.head_.layer._parts.frozen_nodes
    assert 0 < frozen.sum() < len(frozen)
    for name in ("theta", "bias"):
        same = model.head_.parameters[name] == held.head_.parameters[name]
        assert same[frozen == 1].all()
    path = tmp_path / "model.safetensors"
    held.save(path)
    for options in ({}, {"mmap": True}):
        loaded = ManyClassRegression.load(path, **options)
        assert (loaded.predict_log_proba(ids[:20]) == held.predict_log_proba(ids[:20])).all()
        assert loaded.head_.layer.tree == held.head_.layer.tree
        assert loaded.get_params()["tree"] == "huffman"
        loaded.set_params(warm_start=True).fit(ids, y)
        loaded.partial_fit(ids[:50], y[:50])
    given = make(tree=Tree.balanced(200), embedding=8).fit(ids, y)
    given.save(path)
    assert ManyClassRegression.load(path).head_.layer.tree == Tree.balanced(200)


def test_early_stopping_and_divergence(pairs):
    ids, y = pairs
    model = make(embedding=8, early_stopping=True, patience=1, max_epochs=40, batch_size=32).fit(ids, y)
    losses = model.history_["val_loss"]
    assert len(losses) < 40
    assert min(losses) == losses[-2]
    with pytest.warns(match="training has diverged"), np.errstate(all="ignore"):
        make(optimizer="sgd", learning_rate=1e300, batch_size=10).fit(np.eye(90) * 1e200, np.arange(90) % 30)


def test_refused(pairs, tmp_path):
    ids, y = pairs
    for options, match in (
        ({"tree": "random"}, "tree must be one of 'huffman', 'balanced', 'two_means' or a csoftmax.heads.Tree"),
        ({"tree": Tree.balanced(7)}, "tree has 7 classes, but the model has 200"),
        ({"tree": None}, "tree must be"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            make(embedding=8, **options).fit(ids, y)
    linear = make(head="sampled", embedding=8, warm_start=True, max_epochs=1).fit(ids, y)
    with pytest.raises(ValueError, match="the model whose training goes on has another head"):
        linear.set_params(head="hierarchical").fit(ids, y)
    tree = make(embedding=8, warm_start=True, max_epochs=1).fit(ids, y)
    with pytest.raises(ValueError, match="head of another kind"):
        tree.set_params(head="sampled").fit(ids, y)
    assert tree.predict(ids[:3]).shape == (3,)
    from csoftmax._learn import store

    path = tmp_path / "model.safetensors"
    tree.set_params(head="hierarchical").save(path)
    arrays, header = store.read(path, "ManyClassRegression")
    header = {name: value for name, value in header.items() if name not in ("format", "version", "class")}
    circle = arrays["children"].copy()
    circle[0] = 0
    for changes, match in (
        ({"children": circle}, "node 0 is a side of"),
        ({"theta": arrays["theta"][:-1]}, "theta has shape"),
        ({"bias": None}, "bias is missing"),
        ({"children": None}, "children is missing"),
        ({"tree_counts": np.ones(3)}, "counts has shape"),
    ):
        changed = {name: a for name, a in (arrays | changes).items() if a is not None}
        store.write(path, "ManyClassRegression", changed, header)
        with pytest.raises(ValueError, match=match):
            ManyClassRegression.load(path)
    small = Tree.balanced(199)
    fewer = arrays | {"children": small.children, "theta": arrays["theta"][:198], "bias": arrays["bias"][:198]}
    fewer.pop("tree_counts")
    store.write(path, "ManyClassRegression", fewer, header)
    with pytest.raises(ValueError, match="there are 200 classes, but the tree has 199"):
        ManyClassRegression.load(path)


def test_command(tmp_path, capsys):
    pytest.importorskip("pyarrow", reason="the cli extra has it")
    from csoftmax.__main__ import main

    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    lines = [f"{a:.4f},{b:.4f},{c:.4f},{'p' if a > 0 else 'q' if b > 0 else 'r' if c > 0 else 's'}" for a, b, c in X]
    table = tmp_path / "data.csv"
    table.write_text("a,b,c,label\n" + "\n".join(lines) + "\n")
    model = str(tmp_path / "model.safetensors")
    fit = ["fit", str(table), "--target", "label", "-o", model]
    for tree in ([], ["--tree", "balanced"], ["--tree", "two_means"]):
        assert main([*fit, "--head", "hierarchical", "--max-epochs", "200", "--json", "--quiet", *tree]) == 0
        assert json.loads(capsys.readouterr().out)["accuracy"] > 0.8
        assert main(["evaluate", model, str(table), "--json", "--quiet"]) == 0
        assert json.loads(capsys.readouterr().out)
    assert main([*fit, "--tree", "balanced"]) != 0
    assert "--tree belongs to --head hierarchical" in capsys.readouterr().err
