"""ManyClassRegression(head="hashed"): training, counts, stages, files."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
from sklearn.utils.estimator_checks import check_estimator

from csoftmax.heads import HashedSoftmax
from csoftmax.linear_model import ManyClassRegression


def make_pairs(words=120, rows=6000, seed=0):
    """Ids, and the word that follows each of them in most cases; words by Zipf's law."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, words + 1)
    before = rng.choice(words, rows, p=shares / shares.sum())
    after = np.where(rng.random(rows) < 0.9, (before * 7 + 3) % words, rng.integers(0, words, rows))
    return before[:, None], after


def make_model(**options):
    given = {"embedding": (120, 32), "batch_size": 100, "max_epochs": 15, "random_state": 0}
    return ManyClassRegression(head="hashed", **(given | options))


def check_predictions(model, X, y):
    p = model.predict_proba(X)
    assert np.abs(p.sum(axis=1) - 1).max() < 1e-12
    assert np.array_equal(model.predict(X), model.classes_[p.argmax(axis=1)])
    best = model.topk(X, 5)
    assert np.array_equal(best.indices, np.argsort(-p, axis=1, kind="stable")[:, :5])
    assert np.allclose(best.values, np.log(np.take_along_axis(p, best.indices, 1)), atol=1e-12)
    at = np.searchsorted(model.classes_, y)
    assert np.allclose(model.log_proba(X, y), np.log(p)[np.arange(len(y)), at], atol=1e-12)
    return p


def test_learns():
    X, y = make_pairs()
    model = make_model().fit(X, y)
    assert model.score(X, y) > 0.8  # of the rows, 0.9 follow a rule
    layer = model.head_.layer
    assert (layer.n_buckets, layer.n_hashes, layer.aggregate) == (22, 16, "prior")
    assert np.array_equal(layer.counts, np.bincount(y, minlength=120))
    check_predictions(model, X[:50], y[:50])
    again = make_model().fit(X, y)
    for name, a in again.head_.parameters.items():
        assert np.array_equal(a, model.head_.parameters[name])
    small = make_model(n_buckets=32, n_hashes=5).fit(X, y)
    assert small.head_.parameters["w"].shape == (160, 32)
    with pytest.warns(UserWarning, match="n_hashes is 1"):
        make_model(n_hashes=1).fit(X, y)


def test_begins_at_the_log_prior():
    X, y = make_pairs()
    model = make_model(max_epochs=1, learning_rate=1e-12).fit(X, y)
    p = np.exp(model.predict_log_proba(X[:1])[0])
    assert np.allclose(p, np.bincount(y, minlength=120) / len(y), rtol=1e-4)
    zero = make_model(max_epochs=1, init_bias="zero", learning_rate=1e-12).fit(X, y)
    assert np.abs(zero.head_.parameters["bias"]).max() < 1e-9


@pytest.mark.slow
def test_estimator_checks():
    check_estimator(ManyClassRegression(head="hashed"), on_skip=None)
    check_estimator(ManyClassRegression(head="hashed", n_buckets=64, n_hashes=3, learning_rate=0.1), on_skip=None)


def test_the_prior_is_that_of_all_rows_so_far():
    X, y = make_pairs()
    model = make_model()
    for begin in range(0, 1000, 100):
        model.partial_fit(X[begin : begin + 100], y[begin : begin + 100], classes=np.arange(120))
    counts = np.bincount(y[:1000], minlength=120).astype(float)
    least = counts[counts > 0].min() if (counts == 0).any() else 0
    before = model.predict_proba(X[:20])
    assert np.array_equal(model.class_count_, counts)
    assert np.array_equal(model.head_.layer.counts, counts + least)
    once = copy.deepcopy(model)
    once.partial_fit(X[:100], y[:100]).predict(X[:1])
    once.partial_fit(X[:100], y[:100]).predict(X[:1])
    assert (once.head_.layer.counts >= counts + 2 * np.bincount(y[:100], minlength=120)).all()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(twin.predict_proba(X[:20]), before)
        twin.partial_fit(X[:100], y[:100])
        twin.predict(X[:1])
        assert twin.head_.layer.counts.sum() > counts.sum() + 99
    assert np.array_equal(model.predict_proba(X[:20]), before)
    fitted = make_model(max_epochs=1, warm_start=True).fit(X, y).fit(X[:3000], y[:3000])
    fitted.predict(X[:1])
    assert fitted.head_.layer.counts.max() <= 3000


@pytest.mark.parametrize("early_stopping", [False, True])
def test_a_warm_fit_that_fails_leaves_the_head_its_counts(monkeypatch, early_stopping):
    X, y = make_pairs()
    model = make_model(warm_start=True, early_stopping=False).partial_fit(X, y, classes=np.arange(120))
    before = model.predict_proba(X[:20])
    method = "log_proba" if early_stopping else "step"  # log_proba: of held-out rows, which reads the counts
    find = getattr(type(model.head_), method)

    def fail(*arguments):
        if early_stopping:
            find(*arguments)
        raise KeyboardInterrupt

    # at this rate the steps before the failure change no parameter by more than its rounding
    model.set_params(early_stopping=early_stopping, learning_rate=1e-30)
    with monkeypatch.context() as patch:
        patch.setattr(type(model.head_), method, fail)
        with pytest.raises(KeyboardInterrupt):
            model.fit(X[:200], y[:200])
    model.set_params(early_stopping=False)
    assert np.array_equal(model.predict_proba(X[:20]), before)
    for _ in range(3):
        model.partial_fit(X[:100], y[:100])
    model.predict(X[:1])
    expected = np.bincount(y, minlength=120) + 3.0 * np.bincount(y[:100], minlength=120)
    assert np.array_equal(model.class_count_, expected)
    assert np.array_equal(model.head_.layer.counts, expected)


def test_added_classes_keep_their_buckets():
    X, y = make_pairs()
    model = make_model(max_epochs=3).fit(X, y * 2)
    scores = model.head_.layer._with("geometric").scores(model.embedding_[:5])
    model.add_classes([-1, 7, 300], counts=[5, 6, 7])
    layer, numbers = model.head_.layer, model.head_.numbers
    assert layer.n_classes == 123
    assert numbers[[0, 5, 122]].tolist() == [120, 121, 122]
    assert np.array_equal(layer.counts[numbers], model.class_count_)
    assert np.array_equal(np.delete(numbers, [0, 5, 122]), np.arange(120))
    assert np.array_equal(layer._with("geometric").scores(model.embedding_[:5], np.arange(120)), scores)
    check_predictions(model, X[:50], y[:50] * 2)
    before = model.log_proba(X[:1], [7])
    for _ in range(20):
        model.partial_fit(np.repeat(X[:1], 100, axis=0), np.full(100, 7))
    assert model.predict(X[:1])[0] == 7
    assert model.log_proba(X[:1], [7]) > max(before, np.log(0.9))
    assert np.array_equal(model.head_.layer.counts[numbers], model.class_count_)
    check_predictions(model, X[:50], y[:50] * 2)
    without = make_model(max_epochs=1).fit(X, y).add_classes([120, 121])
    assert without.head_.numbers is None
    assert without.head_.layer.counts[120] == np.bincount(y).min()


def test_frozen_classes():
    X, y = make_pairs()
    model = make_model(max_epochs=1, n_buckets=200).fit(X, y).freeze([3, 5])
    before = model.head_.parameters["w"].copy()
    model.partial_fit(X, y)
    rows = np.unique(model.head_.layer._find_rows(np.array([3, 5])))
    is_same = (model.head_.parameters["w"] == before).all(axis=1)
    assert is_same[rows].all()
    assert not is_same.all()
    model.freeze()
    before = model.head_.parameters["w"].copy()
    model.partial_fit(X, y)
    assert np.array_equal(model.head_.parameters["w"], before)
    model.freeze([]).partial_fit(X, y)
    assert not np.array_equal(model.head_.parameters["w"], before)


def test_files(tmp_path):
    path = tmp_path / "model.safetensors"
    X, y = make_pairs()
    for model in (
        make_model(max_epochs=1).fit(X, y),
        make_model(max_epochs=1).fit(X, y * 2).add_classes([7]).freeze([7]),
        make_model().partial_fit(X[:500], y[:500], classes=np.arange(120)),
    ):
        model.save(path)
        for mmap in (False, True):
            loaded = ManyClassRegression.load(path, mmap=mmap)
            assert np.array_equal(loaded.predict_proba(X[:30]), model.predict_proba(X[:30]))
            reference = ManyClassRegression.load(path)
            for each in (loaded, reference):
                each.partial_fit(X[:100], model.classes_[y[:100]])
            for name, a in loaded.head_.parameters.items():
                assert np.array_equal(a, reference.head_.parameters[name])


def test_sparse_features_and_refusals():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 12)) * (rng.random((300, 12)) < 0.3), rng.integers(0, 5, 300)
    options = {"head": "hashed", "max_epochs": 2, "random_state": 0}
    dense = ManyClassRegression(**options).fit(X, y)
    sparse = ManyClassRegression(**options).fit(scipy.sparse.csr_matrix(X), y)
    assert np.allclose(dense.predict_proba(X), sparse.predict_proba(scipy.sparse.csr_matrix(X)), rtol=1e-6)
    assert isinstance(dense.head_.layer, HashedSoftmax)
    for parameters, match in (
        ({"n_buckets": 1}, r"n_buckets must be None or an int from 2 to 2\*\*31 - 1, got 1"),
        ({"n_buckets": 2.5}, "n_buckets must be None or an int"),
        ({"n_buckets": True}, "n_buckets must be None or an int"),
        ({"n_hashes": 0}, "n_hashes must be"),
        ({"n_hashes": None}, "n_hashes must be"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            ManyClassRegression(**options, **parameters).fit(X, y)


def test_training_goes_on_with_the_buckets_that_there_are():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), rng.integers(0, 5, 60)
    model = ManyClassRegression(head="hashed", max_epochs=1, random_state=0, warm_start=True).fit(X, y).fit(X, y)
    for parameters in ({"n_buckets": 64}, {"n_hashes": 4}):
        before = model.get_params()
        with pytest.raises(ValueError, match="but the model that training would continue has 16"):
            model.set_params(**parameters).fit(X, y)
        model.set_params(**before).fit(X, y)
    model.set_params(n_buckets=16).fit(X, y)
    with pytest.warns(UserWarning, match="n_hashes is 1") as found:
        ManyClassRegression(head="hashed", max_epochs=1, n_hashes=1).fit(X, y)
    assert any(w.filename == __file__ for w in found)
