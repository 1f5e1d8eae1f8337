"""Training of SoftmaxRegression: derivatives, coordinates, AdamW, stages, callbacks, threads, memory."""

import copy
import itertools
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_info

import csoftmax
from csoftmax._arguments.places import Place
from csoftmax._learn import adamw, lbfgs
from csoftmax._learn.objective import Objective, Options
from csoftmax.linear_model import SoftmaxRegression

# Objective and L-BFGS


def test_derivatives():
    """Gradient and Hessian of the objective against finite differences, with every option."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    w = rng.random(30) * (rng.random(30) < 0.8)
    options = Options(rng.random(3), 0.1, 1.7)
    objective = Objective(X, y, w, 3, options)
    coef, intercept = rng.normal(size=(3, 4)), rng.normal(size=3)
    at = objective.evaluate(coef, intercept)
    given = {"weight": options.weight, "label_smoothing": 0.1, "temperature": 1.7}
    exact = csoftmax.linear_cross_entropy_with_grad(X, coef, y, bias=intercept, sample_weight=w, **given)
    assert at.loss == pytest.approx(float(exact.loss), rel=1e-14)
    assert np.allclose(at.grad_coef, exact.grad_w, rtol=1e-12, atol=1e-15)
    assert np.allclose(at.grad_intercept, exact.grad_bias, rtol=1e-12, atol=1e-15)
    hessian = objective.hessian(coef, intercept, 10**9)
    flat = np.hstack([coef, intercept[:, None]])
    for i in range(flat.size):
        ends = []
        for sign in (1, -1):
            moved = flat.copy()
            moved.flat[i] += sign * 1e-6
            at = objective.evaluate(moved[:, :4], moved[:, 4])
            ends.append(np.hstack([at.grad_coef, at.grad_intercept[:, None]]).ravel())
        assert np.allclose((ends[0] - ends[1]) / 2e-6, hessian[i], rtol=1e-6, atol=1e-8)
    mean, std = objective.moments()
    assert np.allclose(mean, np.average(X, axis=0, weights=w))
    assert np.allclose(std**2, np.average((X - mean) ** 2, axis=0, weights=w))


def test_coordinates_are_a_change_of_variables():
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(50, 5)) * [1, 10, 100, 0, 1], rng.integers(0, 3, 50)
    objective = Objective(X, y, None, 3, Options())
    coef, intercept = rng.normal(size=(3, 5)), rng.normal(size=3)
    step = lbfgs.Step(coef, intercept, 0, 0, 0, 0, (coef, intercept))
    centred = lbfgs.Centred(objective, 1e-3, True)
    for coordinates in (centred, lbfgs.whiten(objective, step, 1e-3, centred)):
        u = coordinates.coordinates(coef, intercept)
        back = coordinates.parameters(u)
        assert np.allclose(back[0], coef)
        assert np.allclose(back[1], intercept)
        g, h = rng.normal(size=(3, 5)), rng.normal(size=3)  # df = <g, dcoef> + <h, dintercept>, whatever the variables
        du = rng.normal(size=u.size)
        moved = coordinates.parameters(u + du)
        assert coordinates.gradient(g, h) @ du == pytest.approx(
            np.vdot(g, moved[0] - coef) + h @ (moved[1] - intercept)
        )


def test_number_of_threads_does_not_change_the_bits():
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(6000, 50)), rng.integers(0, 5, 6000)
    results = []
    for threads in (1, 2, 3):
        with csoftmax.threads(threads):
            results.append(SoftmaxRegression(max_epochs=20, tol=1e-5).fit(X, y).coef_)
    assert all(np.array_equal(r, results[0]) for r in results)


def test_limit_of_blas_is_lifted_after_overlapping_trainings(three_classes):
    X, y = three_classes
    before = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    first_runs, second_runs = threading.Event(), threading.Event()

    def first(model, record):
        first_runs.set()
        return second_runs.wait(30)

    thread = threading.Thread(target=lambda: SoftmaxRegression(callbacks=first).fit(X, y))
    thread.start()
    first_runs.wait(30)

    def second(model, record):
        second_runs.set()
        thread.join(30)

    SoftmaxRegression(callbacks=second, max_epochs=200).fit(X, y)
    assert [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"] == before


# AdamW


def test_adamw_against_its_definition():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5)), rng.integers(0, 3, 40)
    given = {
        "penalty_l2": 0.1,
        "learning_rate": 0.05,
        "clip_norm": 0.3,
        "clip_value": 0.1,
        "output_learning_rate": 0.01,
    }
    model = SoftmaxRegression(solver="adamw", batch_size=64, max_epochs=7, random_state=1, **given).fit(X, y)
    w, b = adamw.draw_xavier(3, 5, np.float64, np.random.RandomState(1)), np.zeros(3)
    assert np.abs(w).max() <= np.sqrt(6 / 8)
    moments = [np.zeros_like(p) for p in (w, w, b, b)]
    for t in range(1, 8):
        p = np.exp(X @ w.T + b)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(40), y] -= 1
        g = [np.clip(p.T @ X / 40, -0.1, 0.1), np.clip(p.sum(axis=0) / 40, -0.1, 0.1)]
        norm = np.sqrt(sum(np.sum(part**2) for part in g))
        g = [part * min(1, 0.3 / norm) for part in g]
        w *= 1 - 0.05 * 0.1
        for i, (parameter, rate) in enumerate(((w, 0.05), (b, 0.01))):
            moments[2 * i] = 0.9 * moments[2 * i] + 0.1 * g[i]
            moments[2 * i + 1] = 0.999 * moments[2 * i + 1] + 0.001 * g[i] ** 2
            parameter -= rate * (moments[2 * i] / (1 - 0.9**t)) / (np.sqrt(moments[2 * i + 1] / (1 - 0.999**t)) + 1e-8)
    assert np.allclose(model.coef_, w, rtol=1e-9)
    assert np.allclose(model.intercept_, b, rtol=1e-9)


def test_batch_norm_gradient_and_folding():
    """The gradient of a step against finite differences; the folded model gives the normalised logits."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 4)), rng.integers(0, 3, 50)

    class Recorder(adamw.Trainer):
        def _update(self, gradients):
            self.gradients = gradients

    hyper = adamw.Hyper(0.1, 0.1, 0.0, None, None)
    start = np.zeros(3), np.ones(3)
    trainer = Recorder(rng.normal(size=(3, 4)), np.zeros(3), Options(), hyper, Place(), batch_norm=start)
    trainer.parameters["gain"][:] = [0.5, 1.0, 2.0]
    trainer.parameters["shift"][:] = [0.1, -0.2, 0.0]
    trainer.step(X, y, None)

    def loss():
        s = X @ trainer.parameters["coef"].T
        z = trainer.parameters["gain"] * (s - s.mean(0)) / np.sqrt(s.var(0) + adamw.VARIANCE_FLOOR)
        return float(csoftmax.cross_entropy(z + trainer.parameters["shift"], y))

    for name, gradient in trainer.gradients.items():
        for i in range(gradient.size):
            ends = []
            for sign in (1, -1):
                trainer.parameters[name].flat[i] += sign * 1e-6
                ends.append(loss())
                trainer.parameters[name].flat[i] -= sign * 1e-6
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient.flat[i], rel=1e-5, abs=1e-9)
    parts = [slice(20), slice(20, 21), slice(21, None)]
    statistics = adamw.compute_statistics(trainer.parameters["coef"], [(X[part], None) for part in parts])
    s = X @ trainer.parameters["coef"].T
    assert np.allclose(statistics, (s.mean(0), s.var(0)))
    w = rng.integers(0, 3, 50).astype(float)
    w[20] = 0  # a block without weight
    weighted = adamw.compute_statistics(trainer.parameters["coef"], [(X[part], w[part]) for part in parts])
    mean = np.average(s, axis=0, weights=w)
    assert np.allclose(weighted, (mean, np.average((s - mean) ** 2, axis=0, weights=w)))
    coef, intercept = trainer.fold(statistics)
    assert float(csoftmax.cross_entropy(X @ coef.T + intercept, y)) == pytest.approx(loss(), rel=1e-12)


def test_warm_start_with_batch_norm_continues(three_classes):
    X, y = three_classes
    model = SoftmaxRegression(solver="adamw", batch_norm=True, warm_start=True, max_epochs=40, random_state=0).fit(X, y)
    before = model.predict_proba(X)
    model.set_params(max_epochs=1, learning_rate=1e-12).fit(X, y)
    assert np.allclose(model.predict_proba(X), before, atol=1e-6)
    with pytest.raises(ValueError, match="frozen"):
        model.freeze().fit(X, y)


@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": True}, {"fit_intercept": False}, {"batch_norm": True, "fit_intercept": False}]
)
def test_adamw_learns(digits, options):
    X_train, X_test, y_train, y_test = train_test_split(*digits, random_state=0)
    for given in (X_train, sp.csr_array(X_train), X_train.astype(np.float32)):
        model = SoftmaxRegression(solver="adamw", max_epochs=40, random_state=0, **options).fit(given, y_train)
        assert model.score(X_test, y_test) > 0.94
    again = clone(model).fit(given, y_train)
    assert np.array_equal(again.coef_, model.coef_)
    other = clone(model).set_params(random_state=1).fit(given, y_train)
    assert not np.array_equal(other.coef_, model.coef_)


def test_minibatches_are_of_nearly_equal_length():
    for rows, size in itertools.product((1, 2, 255, 256, 257, 1000, 1023), (1, 7, 256)):
        parts = adamw.split_batches(rows, size)
        lengths = [p.stop - p.start for p in parts]
        assert sum(lengths) == rows
        assert max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1


def repeat_rows(X, y, w):
    return np.repeat(X, w, axis=0), np.repeat(y, w)


@pytest.mark.parametrize("options", [{}, {"class_weight": "balanced"}, {"class_weight": "effective_number"}], ids=str)
@pytest.mark.parametrize("batch_norm", [False, True])
def test_weights_are_repetitions(three_classes, batch_norm, options):
    """A weight of 2 is the row twice, where all rows are one minibatch: steps, running statistics and folding."""
    X, y = three_classes
    w = np.arange(120) % 4
    given = {"solver": "adamw", "batch_size": 1000, "max_epochs": 15, "batch_norm": batch_norm, "random_state": 0}
    weighted = SoftmaxRegression(**given, **options).fit(X, y, w)
    repeated = SoftmaxRegression(**given, **options).fit(*repeat_rows(X, y, w))
    assert np.allclose(weighted.coef_, repeated.coef_, rtol=1e-9, atol=1e-12)
    assert np.allclose(weighted.intercept_, repeated.intercept_, rtol=1e-9, atol=1e-12)
    assert np.allclose(weighted.history_["accuracy"], repeated.history_["accuracy"])
    plain = SoftmaxRegression(**given, **options).fit(X, y)
    assert not np.allclose(weighted.coef_, plain.coef_, rtol=1e-3)
    if options:
        return
    models = [SoftmaxRegression(solver="adamw", batch_norm=batch_norm, random_state=0) for _ in range(4)]
    models[0].fit_batches([(X[:50], y[:50], w[:50]), (X[50:], y[50:], w[50:])], [0, 1, 2], epochs=4)
    parts = [repeat_rows(X[:50], y[:50], w[:50]), repeat_rows(X[50:], y[50:], w[50:])]
    models[1].fit_batches(parts, [0, 1, 2], epochs=4)
    for part in (slice(50), slice(50, None)):
        models[2].partial_fit(X[part], y[part], classes=[0, 1, 2], sample_weight=w[part])
        models[3].partial_fit(*repeat_rows(X[part], y[part], w[part]), classes=[0, 1, 2])
    for a, b in (models[:2], models[2:]):
        assert np.allclose(a.coef_, b.coef_, rtol=1e-9, atol=1e-12)
        assert np.allclose(a.intercept_, b.intercept_, rtol=1e-9, atol=1e-12)
    before = models[2].coef_.copy()
    models[2].partial_fit(X[:9], y[:9], sample_weight=np.zeros(9))
    assert np.array_equal(models[2].coef_, before)


def test_weighted_batch_norm_gradient():
    """The gradient of a weighted step against finite differences of the definition."""
    rng = np.random.default_rng(0)
    X, y, w = rng.normal(size=(30, 4)), rng.integers(0, 3, 30), rng.random(30) * (rng.random(30) < 0.8)

    class Recorder(adamw.Trainer):
        def _update(self, gradients):
            self.gradients = gradients

    hyper = adamw.Hyper(0.1, 0.1, 0.0, None, None)
    weight = rng.random(3)
    trainer = Recorder(
        rng.normal(size=(3, 4)), np.zeros(3), Options(weight), hyper, Place(), batch_norm=(np.zeros(3), np.ones(3))
    )
    trainer.parameters["gain"][:] = [0.5, 1.0, 2.0]
    trainer.step(X, y, w)

    def loss():
        s = X @ trainer.parameters["coef"].T
        mean = np.average(s, axis=0, weights=w)
        variance = np.average((s - mean) ** 2, axis=0, weights=w)
        z = trainer.parameters["gain"] * (s - mean) / np.sqrt(variance + adamw.VARIANCE_FLOOR)
        return float(csoftmax.cross_entropy(z + trainer.parameters["shift"], y, weight=weight, sample_weight=w))

    for name, gradient in trainer.gradients.items():
        for i in range(gradient.size):
            ends = []
            for sign in (1, -1):
                trainer.parameters[name].flat[i] += sign * 1e-6
                ends.append(loss())
                trainer.parameters[name].flat[i] -= sign * 1e-6
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient.flat[i], rel=1e-5, abs=1e-9)


# Divergence


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rate", [1e4, 1e5, 1e30, 1e200])
@pytest.mark.parametrize("options", [{}, {"batch_norm": True}, {"early_stopping": True}, {"batch_size": 7}], ids=str)
def test_divergence_is_reported_and_the_best_parameters_are_kept(three_classes, rate, options, dtype):
    X, y = three_classes
    model = SoftmaxRegression(solver="adamw", learning_rate=rate, random_state=0, **options)
    with pytest.warns(ConvergenceWarning, match="adamw has diverged: the loss is .* learning_rate=1") as caught:
        model.fit(X.astype(dtype), y)
    assert len(caught) == 1
    assert np.isfinite(model.coef_).all()
    assert np.isfinite(model.intercept_).all()
    loss = csoftmax.cross_entropy(model.decision_function(X), y)
    assert min([loss, *model.history_.get("validation_loss", [])]) < 2  # of the initial coefficients 1.5
    assert len(model.history_["loss"]) == model.n_iter_


def test_divergence_keeps_the_best_of_the_epochs(three_classes, monkeypatch):
    """A learning rate that a callback raises to 1e6 after some epochs: the model is the one before that."""
    X, y = three_classes
    seen = []

    def explode(model, record):
        seen.append(model.coef_)
        if record["epoch"] == 30:
            trainers[0].hyper = trainers[0].hyper._replace(learning_rate=1e6, output_learning_rate=1e6)

    trainers = []
    original = adamw.Trainer.__init__

    def keep_trainer(self, *given, **options):
        original(self, *given, **options)
        trainers.append(self)

    model = SoftmaxRegression(solver="adamw", learning_rate=0.05, random_state=0, max_epochs=60, callbacks=explode)
    monkeypatch.setattr(adamw.Trainer, "__init__", keep_trainer)
    with pytest.warns(ConvergenceWarning, match="those of epoch 30 "):
        model.fit(X, y)
    assert np.array_equal(model.coef_, seen[29])
    assert model.n_iter_ == len(seen) == 60


def test_divergence_in_the_only_step(three_classes):
    X, y = three_classes
    with pytest.warns(ConvergenceWarning, match="diverged.*those of the start"):
        model = SoftmaxRegression(solver="adamw", learning_rate=1e9, max_epochs=1, init="zeros").fit(X, y)
    assert not model.coef_.any()
    good = SoftmaxRegression(solver="adamw", warm_start=True, max_epochs=100, learning_rate=0.1).fit(X, y)
    before = good.coef_.copy()
    with pytest.warns(ConvergenceWarning, match="diverged.*those of the start"):
        good.set_params(learning_rate=1e9, max_epochs=3).fit(X, y)
    assert np.array_equal(good.coef_, before)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("rate", [1e5, 1e30, 1e200])
def test_divergence_in_parts(three_classes, rate, batch_norm):
    X, y = three_classes
    parts = [(X[i : i + 40], y[i : i + 40]) for i in range(0, 120, 40)]
    given = {"solver": "adamw", "learning_rate": rate, "batch_norm": batch_norm, "random_state": 0}
    model = SoftmaxRegression(**given)
    with pytest.warns(ConvergenceWarning, match="diverged.*learning_rate="):
        model.fit_batches(parts, [0, 1, 2], epochs=5)
    assert np.isfinite(model.coef_).all()
    assert csoftmax.cross_entropy(model.decision_function(X), y) < 3
    model = SoftmaxRegression(**given)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for X_part, y_part in parts * 4:
            model.partial_fit(X_part, y_part, classes=[0, 1, 2])
            assert np.isfinite(model.coef_).all()
            assert np.isfinite(model.intercept_).all()
    assert caught
    for warning in caught:
        assert warning.category is ConvergenceWarning
        assert "diverged" in str(warning.message)
        assert "learning_rate=" in str(warning.message)
    assert model.n_iter_ == len(model.history_["loss"]) == 12
    model.set_params(learning_rate=0.05)
    for _ in range(60):
        model.partial_fit(X, y)
    assert model.score(X, y) > 0.9


def test_training_that_only_goes_badly_is_not_called_diverged(three_classes):
    """One wrong label, minibatches of one row, data that are not scaled, and random labels bring no warning."""
    X, y = three_classes
    model = SoftmaxRegression(solver="adamw", learning_rate=0.1, random_state=0).partial_fit(X, y, classes=[0, 1, 2])
    for _ in range(200):
        model.partial_fit(X, y)
    model.partial_fit(X[:1] * 100, (y[:1] + 1) % 3)
    noise = np.random.default_rng(0).integers(0, 3, 120)
    for given in ((X, noise), (X * 1000, y), (X, y)):
        for options in ({}, {"batch_size": 1, "learning_rate": 0.1}, {"batch_norm": True}, {"max_epochs": 1}):
            SoftmaxRegression(**{"solver": "adamw", "max_epochs": 10, "random_state": 0, **options}).fit(*given)


# Stages and callbacks


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_stages(digits, solver):
    """Classes of the first stage are frozen while those of the second are learned, then all of them train."""
    X, y = digits
    early = y < 6
    model = SoftmaxRegression(solver=solver, warm_start=True, max_epochs=60, tol=1e-4, random_state=0)
    model.fit(X[early], y[early])
    first = model.coef_.copy()
    with pytest.raises(ValueError, match="add_classes"):
        model.fit(X, y)
    model.add_classes(range(6, 10)).freeze(range(6)).fit(X, y)
    assert np.array_equal(model.classes_, np.arange(10))
    assert np.array_equal(model.coef_[:6], first)
    assert model.score(X, y) > 0.85
    model.freeze([]).fit(X, y)
    assert not np.array_equal(model.coef_[:6], first)
    assert model.score(X, y) > 0.95
    for wrong in ([3], [99, 3]):
        with pytest.raises(ValueError, match="already"):
            model.add_classes(wrong)
    with pytest.raises(ValueError, match="does not have"):
        model.freeze([77])


def test_kinds_of_labels_are_not_mixed(three_classes):
    X, y = three_classes
    model = SoftmaxRegression(penalty_l2=1e-2, warm_start=True).fit(X, y)
    with pytest.raises(ValueError, match="another kind"):
        model.add_classes(["a"])
    with pytest.raises(ValueError, match="another kind"):
        model.fit(X, np.array(["a", "b", "c"])[y])
    with pytest.raises(ValueError, match="does not have"):
        model.freeze(["a"])
    for wrong in ([3.5], [np.nan], [2**63], [None], [3, "a"]):
        with pytest.raises(ValueError, match=r"integers|another kind"):
            model.add_classes(wrong)
    for wrong in ([None, "e"], np.array(["e", np.nan], object)):
        with pytest.raises(ValueError, match="another kind"):
            SoftmaxRegression(penalty_l2=1e-2).fit(X, np.array(["a", "b", "c"])[y]).add_classes(wrong)
    with pytest.raises(ValueError, match="one axis"):
        model.add_classes([[3, 4]])
    narrow = SoftmaxRegression(penalty_l2=1e-2).fit(X, y.astype(np.uint8)).add_classes([-1, 300])
    assert narrow.classes_.tolist() == [-1, 0, 1, 2, 300]
    assert narrow.classes_.dtype.kind == "i"
    assert model.add_classes([]).classes_.dtype == np.int64
    assert model.add_classes([3.0]).classes_.dtype == np.int64


@pytest.mark.parametrize("labels", [[2, 5, 7, -1, 4, 9], ["cc", "m", "t", "a", "longer than these", "z"]])
@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_added_classes_take_their_sorted_places(solver, labels):
    """Rows of coef_, intercept_ and frozen_ move with their classes; every way of training goes on from there."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(240, 4))
    places = (X @ rng.normal(size=(4, 6))).argmax(axis=1)
    y = np.array(labels)[places]
    early = np.isin(y, labels[:3])
    model = SoftmaxRegression(
        solver=solver, penalty_l2=1e-2, warm_start=True, max_epochs=60, random_state=0, learning_rate=0.1
    )
    model.fit(X[early], y[early]).freeze(labels[1])
    rows = {label: (c.copy(), i) for label, c, i in zip(model.classes_.tolist(), model.coef_, model.intercept_)}
    probabilities = model.predict_proba(X)
    model.add_classes(labels[3:])
    assert model.classes_.tolist() == sorted(labels)
    lowest = min(intercept for _, intercept in rows.values())
    for label, c, i, frozen in zip(model.classes_.tolist(), model.coef_, model.intercept_, model.frozen_):
        expected = rows.get(label, (np.zeros(4), lowest))
        assert np.array_equal(c, expected[0])
        assert i == expected[1]
        assert frozen == (label == labels[1])
    known = np.isin(model.classes_, labels[:3])
    shares = model.predict_proba(X)[:, known]
    assert np.allclose(shares / shares.sum(axis=1, keepdims=True), probabilities)
    model.fit(X, y)
    frozen = model.coef_[model.classes_ == labels[1]][0]
    assert np.array_equal(frozen, rows[labels[1]][0])
    other = copy.deepcopy(model)
    model.partial_fit(X, y)
    assert np.array_equal(model.coef_[model.classes_ == labels[1]][0], frozen)
    other.fit_batches([(X, y)], labels, epochs=3)
    assert np.array_equal(other.coef_[other.classes_ == labels[1]][0], frozen)
    assert model.score(X, y) > 0.7
    assert model.freeze([]).fit(X, y).score(X, y) > 0.85


def test_partial_fit_goes_on_after_add_classes(three_classes):
    X, y = three_classes
    for options in ({}, {"batch_norm": True}):
        model = SoftmaxRegression(solver="adamw", random_state=0, learning_rate=0.05, **options)
        for _ in range(40):
            model.partial_fit(X[y > 0], y[y > 0], classes=[1, 2])
        model.add_classes([0])
        for _ in range(100):
            model.partial_fit(X, y)
        assert model.score(X, y) > 0.9


def test_warm_start_continues():
    X, y = load_iris(return_X_y=True)
    X = X / X.max()
    cold = SoftmaxRegression(max_epochs=500).fit(X, y)
    model = SoftmaxRegression(max_epochs=500, warm_start=True).fit(X, y)
    assert model.n_iter_ == cold.n_iter_
    model.fit(X, y)
    assert model.n_iter_ <= 2
    assert np.allclose(model.coef_, cold.coef_, atol=1e-6)


def test_callbacks(digits):
    X, y = digits
    seen = []

    def callback(model, record):
        seen.append((record, model.score(X, y)))
        return len(seen) == 3

    for solver in ("lbfgs", "adamw"):
        seen.clear()
        model = SoftmaxRegression(solver=solver, callbacks=callback, random_state=0).fit(X, y)
        assert model.n_iter_ == len(seen) == 3
        assert [r["epoch"] for r, _ in seen] == [1, 2, 3]
        assert seen[-1][1] == model.score(X, y)
    SoftmaxRegression(callbacks=["progress", callback]).fit(X, y)
    with pytest.raises(TypeError, match="callbacks"):
        SoftmaxRegression(callbacks=["loud"]).fit(X, y)


def test_callbacks_of_sklearn(digits):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has it")
    X, y = digits

    class Count:
        def __init__(self):
            self.events, self.scores = [], []

        def setup(self, estimator, context):
            self.events.append("setup")

        def teardown(self, estimator, context):
            self.events.append("teardown")

        def on_fit_task_begin(self, estimator, context):
            self.events.append(("begin", context.task_name))

        def on_fit_task_end(self, estimator, context, *, fitted_estimator):
            self.events.append(("end", context.task_name))
            if fitted_estimator is not None:
                self.scores.append(fitted_estimator.score(X, y))
            return len(self.scores) == 4

    for solver in ("lbfgs", "adamw"):
        count = Count()
        model = SoftmaxRegression(solver=solver, max_epochs=50, random_state=0).set_callbacks(count).fit(X, y)
        assert model.n_iter_ == 4
        assert count.events[:2] == ["setup", ("begin", "fit")]
        assert count.events[-2:] == [("end", "fit"), "teardown"]
        assert count.events.count(("end", "epoch")) == count.events.count(("begin", "epoch")) == 4


# Memory


def load_bigrams():
    """English bigrams of the package wordsegment, with their counts."""
    wordsegment = pytest.importorskip("wordsegment", reason="the test extra has it")
    wordsegment.load()
    return {tuple(pair.split(" ")): n for pair, n in wordsegment.BIGRAMS.items() if pair.count(" ") == 1}


@pytest.mark.parametrize("given", [{"solver": "adamw", "batch_size": 1024}, {"solver": "lbfgs"}])
def test_many_classes_take_an_eighth_of_the_memory_of_their_logits(given):
    """English bigrams, with the second word as the class: memory beside the data, against that of all logits."""
    pairs = sorted(load_bigrams().items(), key=lambda pair: -pair[1])[:25_000]
    firsts, first = np.unique([a for (a, _), _ in pairs], return_inverse=True)
    seconds, y = np.unique([b for (_, b), _ in pairs], return_inverse=True)
    X = np.random.default_rng(0).normal(size=(len(firsts), 16)).astype(np.float32)[first]
    logits = len(y) * len(seconds) * 4
    assert logits > 3e8
    model = SoftmaxRegression(max_epochs=1, penalty_l2=1e-6, random_state=0, **given)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # one iteration
            model.fit(X, y)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < logits / 8
    assert model.history_["loss"][-1] < np.log(len(seconds))
