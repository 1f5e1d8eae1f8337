"""ManyClassRegression(head="adaptive"): training, stages, files, the command line."""

import copy

import numpy as np
import pytest
import scipy.sparse
from sklearn.utils.estimator_checks import check_estimator

from csoftmax.linear_model import ManyClassRegression


def make_pairs(words=120, rows=6000, seed=0):
    """Ids, and the word that follows each of them in most cases; words by Zipf's law."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, words + 1)
    before = rng.choice(words, rows, p=shares / shares.sum())
    after = np.where(rng.random(rows) < 0.9, (before * 7 + 3) % words, rng.integers(0, words, rows))
    return before[:, None], after


def make_model(**options):
    given = {"embedding": (120, 32), "cutoffs": [20, 60], "batch_size": 100, "max_epochs": 15, "random_state": 0}
    return ManyClassRegression(head="adaptive", **(given | options))


def test_learns():
    X, y = make_pairs()
    model = make_model().fit(X, y)
    assert model.score(X, y) > 0.8  # of the rows, 0.9 follow a rule
    assert model.head_.layer.cutoffs == [20, 60]
    counts = np.bincount(y, minlength=120)
    assert np.array_equal(model.head_.layer.order, np.argsort(-counts, kind="stable"))
    p = model.predict_proba(X[:50])
    assert np.abs(p.sum(axis=1) - 1).max() < 1e-6
    assert np.array_equal(model.predict(X[:50]), model.classes_[p.argmax(axis=1)])
    best = model.topk(X[:50], 5)
    assert np.allclose(best.values, -np.sort(-np.log(p), axis=1)[:, :5], atol=1e-6)
    assert np.allclose(model.log_proba(X, y)[:50], np.log(p)[np.arange(50), y[:50]], atol=1e-6)
    again = make_model().fit(X, y)
    for name, a in again.head_.parameters.items():
        assert np.array_equal(a, model.head_.parameters[name])


def test_begins_at_the_log_prior():
    X, y = make_pairs()
    model = make_model(max_epochs=1, learning_rate=1e-12).fit(X, y)
    p = np.exp(model.predict_log_proba(X[:1])[0])
    counts, order = np.bincount(y, minlength=120), model.head_.layer.order
    assert np.allclose(p[order[:20]], counts[order[:20]] / len(y), rtol=1e-4)
    assert np.allclose(p[order[20:60]], counts[order[20:60]].sum() / len(y) / 40, rtol=1e-4)
    zero = make_model(max_epochs=1, init_bias="zero", learning_rate=1e-12).fit(X, y)
    assert np.allclose(np.exp(zero.predict_log_proba(X[:1])[0])[order[:20]], 1 / 22, rtol=1e-4)


@pytest.mark.slow
def test_estimator_checks():
    check_estimator(ManyClassRegression(head="adaptive"), on_skip=None)
    check_estimator(ManyClassRegression(head="adaptive", cutoffs=[1], learning_rate=0.1, max_epochs=50), on_skip=None)


def test_dense_and_sparse_features():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 30, 900)
    X = (rng.normal(size=(30, 12))[y] * 2 + rng.normal(size=(900, 12))).astype(np.float32)
    X[np.abs(X) < 0.5] = 0
    options = {"embedding": None, "cutoffs": [10]}
    models = [make_model(**options).fit(data, y) for data in (X, scipy.sparse.csr_array(X))]
    assert models[0].score(X, y) > 0.7
    assert np.array_equal(models[0].predict(X), models[1].predict(scipy.sparse.csr_array(X)))
    assert np.array_equal(models[0].predict_log_proba(X), models[1].predict_log_proba(scipy.sparse.csr_array(X)))


def test_stages(tmp_path):
    X, y = make_pairs()
    names = np.array([f"w{i:03d}" for i in range(0, 240, 2)])
    model = make_model(warm_start=True).fit(X, names[y])
    before = model.predict_log_proba(X[:20])
    model.add_classes(["w001", "w239"], counts=[4, 5])  # in the middle of the sorted classes, and at the end
    assert model.classes_.tolist() == sorted([*names, "w001", "w239"])
    places = np.searchsorted(model.classes_, names)
    after = model.predict_log_proba(X[:20])
    shown = np.flatnonzero(np.isin(np.arange(120), model.head_.layer.order))  # not those of the last cluster
    rank = model.head_.layer.classes.rank[places]
    shown = np.flatnonzero(rank < 60)
    assert np.abs(after[:, places[shown]] - before[:, shown]).max() < 1e-12
    assert model.head_.layer.counts.sum() == len(y) + 9
    model.freeze(["w000"]).set_params(max_epochs=1)
    at = model.head_.layer.classes.rank[0]
    old = copy.deepcopy(model.head_.parameters)
    model.fit(np.append(X, X[:5], axis=0), np.append(names[y], ["w001"] * 5))
    moved = {name: (a != old[name]).reshape(len(a), -1).any(axis=1) for name, a in model.head_.parameters.items()}
    name, row = ("head", at) if at < 20 else ("tail0", at - 20) if at < 60 else ("tail1", at - 60)
    assert not moved[name][row]
    assert moved[name].sum() > 10

    path = tmp_path / "model.safetensors"
    model.save(path)
    for options in ({}, {"mmap": True}):
        loaded = ManyClassRegression.load(path, **options)
        assert np.array_equal(loaded.predict_log_proba(X[:20]), model.predict_log_proba(X[:20]))
        assert np.array_equal(loaded.frozen_, model.frozen_)
        assert loaded.head_.layer.cutoffs == [20, 60]
        two = [copy.deepcopy(m).fit(X, names[y]) for m in (loaded, model)]
        for name, a in two[0].head_.parameters.items():
            assert np.array_equal(a, two[1].head_.parameters[name])


def test_batches_and_early_stopping():
    X, y = make_pairs()
    model = make_model()
    parts = [(X[i : i + 200], y[i : i + 200]) for i in range(0, len(y), 200)]
    model.fit_batches(parts, np.arange(120), epochs=8)
    assert model.score(X, y) > 0.8
    other = make_model().partial_fit(*parts[0], classes=np.arange(120)).partial_fit(*parts[1])
    assert other.history_["loss"][1] < np.log(120)
    stopped = make_model(early_stopping=True, max_epochs=30, patience=2).fit(X, y)
    assert len(stopped.history_["val_loss"]) < 30


def test_refused():
    X, y = make_pairs()
    model = make_model(max_epochs=1).fit(X, y)
    head = model.head_
    for error, match, options in (
        (ValueError, "cutoffs must be 'auto'|cutoffs must be \"auto\"", {"cutoffs": "car"}),
        (ValueError, "ascending ints from 1", {"cutoffs": [5, 5]}),
        (ValueError, "ascending ints from 1", {"cutoffs": [0, 5]}),
        (ValueError, "ascending ints from 1", {"cutoffs": 5}),
        (ValueError, "cutoffs must be less than 120", {"cutoffs": [5, 120]}),
        (ValueError, "a head of another kind, not a linear layer", {"head": "full", "warm_start": True}),
    ):
        with pytest.raises(error, match=match):
            copy.copy(model).set_params(**options).fit(X, y)
        assert model.head_ is head
    full = ManyClassRegression(head="full", max_epochs=1, warm_start=True, embedding=(120, 8)).fit(X, y)
    with pytest.raises(ValueError, match="the model whose training goes on has another head"):
        full.set_params(head="adaptive").fit(X, y)


def test_hostile_files(tmp_path):
    from csoftmax._learn import store

    X, y = make_pairs()
    path = tmp_path / "model.safetensors"
    make_model(max_epochs=1).fit(X, y).save(path)
    arrays, header = store.read(path, "ManyClassRegression")
    header = {name: value for name, value in header.items() if name not in ("format", "version", "class")}
    changes = [
        ({"head.order": arrays["head.order"][:-1]}, {}),
        ({"head.head": arrays["head.head"][:, :-1]}, {}),
        ({"head.mean": np.zeros(32)}, {}),
        ({"head.mean": np.zeros(3), "head.std": np.ones(3)}, {}),
        ({"embedding": arrays["embedding"][:, :-1]}, {}),
        ({}, {"head": None}),
        ({}, {"head": {"cutoffs": [20]}}),
        ({}, {"parameters": {**header["parameters"], "head": "full"}}),
        ({}, {"parameters": {**header["parameters"], "cutoffs": [0]}}),
    ]
    for changed, entries in changes:
        store.write(path, "ManyClassRegression", arrays | changed, header | entries)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            ManyClassRegression.load(path)
