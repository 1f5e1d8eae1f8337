"""Training on data in parts: `fit_batches`, `partial_fit`, memory maps."""

import copy
import pickle

import numpy as np
import pytest
from sklearn.base import clone

from csoftmax.linear_model import SoftmaxRegression


def test_fit_batches(digits):
    X, y = digits

    def batches():
        for i in range(0, len(X), 200):
            yield X[i : i + 200], y[i : i + 200]

    model = SoftmaxRegression(solver="adamw", max_epochs=40, random_state=0).fit_batches(batches, np.arange(10))
    assert model.score(X, y) > 0.95
    assert model.n_iter_ == 40
    listed = SoftmaxRegression(solver="adamw", max_epochs=40, random_state=0).fit_batches(
        list(batches()), np.arange(10)
    )
    assert np.array_equal(listed.coef_, model.coef_)
    with_batch_norm = SoftmaxRegression(solver="adamw", max_epochs=10, random_state=0, batch_norm=True)
    assert with_batch_norm.fit_batches(batches, np.arange(10)).score(X, y) > 0.93
    once = SoftmaxRegression(solver="adamw", random_state=0).fit_batches(batches(), np.arange(10), epochs=1)
    assert once.n_iter_ == 1
    with pytest.raises(ValueError, match="exhausted"):
        SoftmaxRegression(solver="adamw", max_epochs=2).fit_batches(batches(), np.arange(10))


@pytest.mark.parametrize(
    ("batches", "error", "match"),
    [
        (5, TypeError, r"batches must be an iterable of \(X, y\).* or a callable that returns one, got 5$"),
        (None, TypeError, "got None$"),
        (lambda: 5, TypeError, "got <function .*, which returns 5$"),
        ([5], ValueError, r"batches must yield \(X, y\).*, got int"),
        ([], ValueError, "batches yielded nothing in epoch 1"),
    ],
)
def test_what_is_no_batches_is_refused(batches, error, match):
    model = SoftmaxRegression(solver="adamw")
    with pytest.raises(error, match=match):
        model.fit_batches(batches, [0, 1, 2], epochs=1)
    assert not hasattr(model, "classes_")


def test_generators_and_epochs_of_fit_batches(three_classes):
    X, y = three_classes
    parts = [(X[i : i + 20], y[i : i + 20]) for i in range(0, 120, 20)]
    model = SoftmaxRegression(solver="adamw", batch_norm=True, random_state=0)
    model.fit_batches(iter(parts), [0, 1, 2], epochs=1)
    assert np.abs(model.coef_).max() < 10
    for epochs, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="epochs must be"):
            model.fit_batches(parts, [0, 1, 2], epochs=epochs)
    with pytest.raises(ValueError, match="first call"):
        model.set_params(warm_start=True).fit_batches(parts, [0, 1], epochs=1)


def test_callable_of_fit_batches_is_called_once_an_epoch(three_classes):
    calls = []

    def batches():
        calls.append(1)
        return [three_classes]

    SoftmaxRegression(solver="adamw").fit_batches(batches, [0, 1, 2], epochs=3)
    assert len(calls) == 3


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_memory_map(digits, tmp_path, solver):
    X, y = digits
    np.save(tmp_path / "x.npy", X.astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = SoftmaxRegression(solver=solver, max_epochs=15, tol=1e-2, random_state=0)
    assert np.array_equal(clone(model).fit(mapped, y).coef_, clone(model).fit(np.array(mapped), y).coef_)


def test_partial_fit(digits):
    X, y = digits
    model = SoftmaxRegression(random_state=0)
    with pytest.raises(ValueError, match="first call"):
        model.partial_fit(X[:10], y[:10])
    for _ in range(30):
        for i in range(0, len(X), 300):
            model.partial_fit(X[i : i + 300], y[i : i + 300], classes=np.arange(10))
    assert model.score(X, y) > 0.95
    assert model.n_iter_ == len(model.history_["loss"]) == 30 * 6
    with pytest.raises(ValueError, match="among the classes"):
        model.partial_fit(X[:3], [0, 1, 10])
    with pytest.raises(ValueError, match="first call"):
        model.partial_fit(X[:3], [0, 1, 2], classes=[0, 1, 2])


def test_fit_replaces_the_state_of_partial_fit(three_classes):
    X, y = three_classes
    model = SoftmaxRegression(solver="adamw", warm_start=True, random_state=0, max_epochs=100, learning_rate=0.1)
    model.partial_fit(X, y, classes=[0, 1, 2]).fit(X, y)
    before = model.score(X, y)
    model.partial_fit(X[:5], y[:5])
    assert model.score(X, y) > before - 0.1
    model.set_params(learning_rate=1e-12)
    coef = model.coef_.copy()
    model.partial_fit(X, y)
    assert np.abs(model.coef_ - coef).max() < 1e-9


def test_pickle_and_copy_between_calls_of_partial_fit(three_classes):
    X, y = three_classes
    for options in ({}, {"batch_norm": True}, {"class_weight": np.ones(3)}):
        model = SoftmaxRegression(solver="adamw", random_state=0, **options).partial_fit(X, y, classes=[0, 1, 2])
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert np.array_equal(other.partial_fit(X, y).coef_, copy.deepcopy(model).partial_fit(X, y).coef_)
