"""SoftmaxRegression: scikit-learn's own checks, its objective against LogisticRegression, options, files, kills."""

import copy
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.estimator_checks import parametrize_with_checks

import csoftmax
from csoftmax._learn import adamw, lbfgs
from csoftmax._learn.objective import Objective, Options
from csoftmax.linear_model import SoftmaxRegression


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For scikit-learn and BLAS: several thread pools on few CPUs wait for each other."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


@parametrize_with_checks([SoftmaxRegression(), SoftmaxRegression(solver="adamw", random_state=0)])
def test_sklearn(estimator, check):
    check(estimator)


def objective(X, y, coef, intercept, penalty, **options):
    wide = (np.asarray(a, np.float64) for a in (X, coef))
    loss = csoftmax.linear_cross_entropy(*wide, y, bias=np.asarray(intercept, np.float64), **options)
    return float(loss) + penalty / 2 * float(np.vdot(coef, coef))


DATA = {"digits": load_digits, "iris": load_iris, "wine": load_wine}


@pytest.fixture(params=DATA)
def data(request):
    X, y = DATA[request.param](return_X_y=True)
    return StandardScaler().fit_transform(X) if request.param == "wine" else X / X.max(), y


# Against scikit-learn


@pytest.mark.parametrize("penalty", [1e-3, 1e-2])
def test_coefficients_of_logistic_regression(data, penalty):
    X, y = data
    ours = SoftmaxRegression(penalty_l2=penalty, max_epochs=500).fit(X, y)
    theirs = LogisticRegression(C=1 / (penalty * len(y)), solver="newton-cholesky", tol=1e-12).fit(X, y)
    assert np.abs(ours.coef_ - theirs.coef_).max() <= 2e-8  # 1.01e-8 with SciPy 1.11
    shift = (ours.intercept_ - theirs.intercept_).mean()  # of no meaning
    assert np.abs(ours.intercept_ - theirs.intercept_ - shift).max() <= 1e-7
    assert objective(X, y, ours.coef_, ours.intercept_, penalty) <= objective(
        X, y, theirs.coef_, theirs.intercept_, penalty
    ) * (1 + 1e-14)
    assert np.abs(ours.predict_proba(X) - theirs.predict_proba(X)).max() <= 1e-8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-5])
def test_objective_is_never_worse_for_the_same_tolerance(data, dtype, tol):
    X, y = data
    X = X.astype(dtype)
    ours = SoftmaxRegression(penalty_l2=1 / len(y), tol=tol, max_epochs=5000).fit(X, y)
    theirs = LogisticRegression(C=1.0, tol=tol, max_iter=5000).fit(X, y)
    values = [objective(X, y, m.coef_, m.intercept_, 1 / len(y)) for m in (ours, theirs)]
    assert values[0] <= values[1] * (1 + 1e-6 * (dtype == "float32"))


def test_large_problem_takes_the_first_coordinates_only():
    """More parameters than a Hessian is computed for; sample weights and class weights included."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 60))
    y = (X @ rng.normal(size=(60, 40))).argmax(axis=1)
    X += 3
    w = rng.integers(0, 3, 900).astype(float)
    w[y == 7] = 0  # a class that takes no part
    assert len(np.unique(y)) * 61 > lbfgs.FEW_PARAMETERS
    ours = SoftmaxRegression(penalty_l2=1e-2, class_weight="balanced", max_epochs=500).fit(X, y, w)
    # scikit-learn: C times the sum of weighted losses
    weight = np.zeros(40)
    weight[np.unique(y[w > 0])] = compute_class_weight(
        "balanced", classes=np.unique(y[w > 0]), y=y[w > 0], sample_weight=w[w > 0]
    )
    total = np.sum(w * weight[y])
    theirs = LogisticRegression(C=1 / (1e-2 * total), class_weight=dict(enumerate(weight)), tol=1e-9, max_iter=5000)
    theirs.fit(X, y, w)
    assert np.abs(ours.coef_ - theirs.coef_).max() <= 1e-5


def test_no_intercept_and_sparse(data):
    X, y = data
    X = np.where(np.abs(X) > 0.3, X, 0)
    theirs = LogisticRegression(C=100 / len(y), fit_intercept=False, tol=1e-10, max_iter=20_000).fit(X, y)
    for given in (X, sp.csr_array(X), sp.csc_matrix(X), sp.csr_matrix(X)):
        ours = SoftmaxRegression(penalty_l2=1e-2, fit_intercept=False, max_epochs=500).fit(given, y)
        assert np.abs(ours.coef_ - theirs.coef_).max() <= 1e-5
        assert not ours.intercept_.any()
        assert np.array_equal(ours.predict(given), theirs.predict(X))
    with_intercept = (
        SoftmaxRegression(penalty_l2=1e-2).fit(X, y),
        SoftmaxRegression(penalty_l2=1e-2).fit(sp.csr_array(X), y),
    )
    assert np.abs(with_intercept[0].coef_ - with_intercept[1].coef_).max() <= 1e-8


def test_two_classes_are_two_rows():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = SoftmaxRegression(penalty_l2=2e-2).fit(X, y)
    assert model.coef_.shape == (2, X.shape[1])
    # a penalty on both rows is half of one on their difference
    theirs = LogisticRegression(C=1 / (1e-2 * len(y)), tol=1e-10, max_iter=5000).fit(X, y)
    assert np.abs(model.coef_[1] - model.coef_[0] - theirs.coef_[0]).max() <= 1e-5
    assert model.decision_function(X).shape == (len(y),)
    assert np.array_equal(model.decision_function(X) > 0, model.predict(X) == 1)


def test_derivatives():
    """Gradient and Hessian of the objective against differences, with every option."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(30, 4)), rng.integers(0, 3, 30)
    w = rng.random(30) * (rng.random(30) < 0.8)
    options = Options(rng.random(3), 0.1, 1.7)
    part = Objective(X, y, w, 3, options)
    coef, intercept = rng.normal(size=(3, 4)), rng.normal(size=3)
    at = part.evaluate(coef, intercept)
    given = {"weight": options.weight, "label_smoothing": 0.1, "temperature": 1.7}
    exact = csoftmax.linear_cross_entropy_with_grad(X, coef, y, bias=intercept, sample_weight=w, **given)
    assert at.loss == pytest.approx(float(exact.loss), rel=1e-14)
    assert np.allclose(at.grad_coef, exact.grad_w, rtol=1e-12, atol=1e-15)
    assert np.allclose(at.grad_intercept, exact.grad_bias, rtol=1e-12, atol=1e-15)
    hessian = part.hessian(coef, intercept, 10**9)
    flat = np.hstack([coef, intercept[:, None]])
    for i in range(flat.size):
        ends = []
        for sign in (1, -1):
            moved = flat.copy()
            moved.flat[i] += sign * 1e-6
            there = part.evaluate(moved[:, :4], moved[:, 4])
            ends.append(np.hstack([there.grad_coef, there.grad_intercept[:, None]]).ravel())
        assert np.allclose((ends[0] - ends[1]) / 2e-6, hessian[i], rtol=1e-6, atol=1e-8)
    mean, variance = part.moments()
    assert np.allclose(mean, np.average(X, axis=0, weights=w))
    assert np.allclose(variance, np.average((X - mean) ** 2, axis=0, weights=w))


def test_coordinates_are_a_change_of_variables():
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(50, 5)) * [1, 10, 100, 0, 1], rng.integers(0, 3, 50)
    part = Objective(X, y, None, 3, Options())
    coef, intercept = rng.normal(size=(3, 5)), rng.normal(size=3)
    step = lbfgs.Step(coef, intercept, 0, 0, 0, 0)
    for coordinates in (lbfgs.Centred(part, 1e-3, True), lbfgs.whitened(part, step, 1e-3, True)):
        u = coordinates.coordinates(coef, intercept)
        back = coordinates.parameters(u)
        assert np.allclose(back[0], coef)
        assert np.allclose(back[1], intercept)
        g, h = rng.normal(size=(3, 5)), rng.normal(size=3)  # df = <g, dcoef> + <h, dintercept> in both variables
        du = rng.normal(size=u.size)
        moved = coordinates.parameters(u + du)
        assert coordinates.gradient(g, h) @ du == pytest.approx(
            np.vdot(g, moved[0] - coef) + h @ (moved[1] - intercept)
        )


def test_threads_do_not_matter(monkeypatch):
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(6000, 50)), rng.integers(0, 5, 6000)
    results = []
    for threads in (1, 2, 3):
        with csoftmax.threads(threads):
            results.append(SoftmaxRegression(max_epochs=20, tol=1e-5).fit(X, y).coef_)
    assert all(np.array_equal(r, results[0]) for r in results)


# Options


def test_dtypes(data):
    X, y = data
    single = SoftmaxRegression().fit(X.astype(np.float32), y)
    assert single.coef_.dtype == single.intercept_.dtype == np.float32
    double = SoftmaxRegression().fit(X, y)
    assert double.coef_.dtype == np.float64
    assert np.abs(single.coef_ - double.coef_).max() < 0.05  # X was rounded
    assert single.predict_proba(X.astype(np.float32)).dtype == np.float64


def test_class_weight(data):
    X, y = data
    k = len(np.unique(y))
    from csoftmax.class_weight import effective_number

    given = {"class_weight": "effective_number"}
    a = SoftmaxRegression(**given).fit(X, y)
    b = SoftmaxRegression(class_weight=effective_number(y)).fit(X, y)
    c = SoftmaxRegression(class_weight=dict(enumerate(effective_number(y)))).fit(X, y)
    assert np.array_equal(a.coef_, b.coef_)
    assert np.allclose(a.coef_, c.coef_, atol=1e-7)
    rare = SoftmaxRegression(class_weight={0: 100.0}).fit(X, y)
    assert np.sum(rare.predict(X) == 0) >= np.sum(SoftmaxRegression().fit(X, y).predict(X) == 0)
    for wrong in ("heavy", np.ones(k + 1), {0: -1.0}, np.full(k, np.nan)):
        with pytest.raises(ValueError, match="class_weight"):
            SoftmaxRegression(class_weight=wrong).fit(X, y)


def test_temperature_and_smoothing(data):
    X, y = data
    hot = SoftmaxRegression(temperature=3.0, penalty_l2=1e-3 / 9, max_epochs=500).fit(X, y)
    cold = SoftmaxRegression(penalty_l2=1e-3, max_epochs=500).fit(X, y)
    assert np.allclose(hot.coef_ / 3, cold.coef_, atol=1e-6)
    assert np.allclose(hot.predict_proba(X), cold.predict_proba(X), atol=1e-7)
    smooth = SoftmaxRegression(label_smoothing=0.2).fit(X, y)
    assert smooth.predict_proba(X).max() < cold.predict_proba(X).max()
    assert np.array_equal(np.log(cold.predict_proba(X)).round(9), cold.predict_log_proba(X).round(9))


def test_log_probabilities_keep_their_tails():
    X, y = np.array([[0.0], [1.0]]), [0, 1]
    model = SoftmaxRegression().fit(X, y)
    model.coef_, model.intercept_ = np.array([[0.0], [40.0]]), np.zeros(2)
    assert model.predict_log_proba([[1.0]])[0, 1] == pytest.approx(-np.exp(-40.0), rel=1e-12)


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_early_stopping(solver):
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(
        solver=solver, penalty_l2=0, early_stopping=True, patience=3, max_epochs=300, random_state=0, learning_rate=0.05
    ).fit(X / 16, y)
    held = model.history_["validation_loss"]
    assert len(held) == model.n_iter_ < 300
    assert np.argmin(held) == len(held) - 4  # three epochs without improvement, then the best one is restored
    again = clone(model).fit(X / 16, y)
    assert np.array_equal(again.coef_, model.coef_)
    _, _, _, (X_held, y_held, _) = model._held_out(X / 16, y, None)
    assert objective(X_held, y_held, model.coef_, model.intercept_, 0) == pytest.approx(min(held), rel=1e-12)


def test_history(data):
    X, y = data
    for solver in ("lbfgs", "adamw"):
        model = SoftmaxRegression(solver=solver, max_epochs=30, tol=1e-3, random_state=0).fit(X, y)
        assert set(model.history_) == {"loss", "accuracy", "gradient_norm", "learning_rate"}
        assert {len(v) for v in model.history_.values()} == {model.n_iter_}
        assert model.history_["loss"][-1] < model.history_["loss"][0]
        assert model.score(X, y) == pytest.approx(model.history_["accuracy"][-1], abs=0.05)
    full = SoftmaxRegression(max_epochs=500, penalty_l2=1e-2).fit(X, y)
    assert full.history_["loss"][-1] == pytest.approx(objective(X, y, full.coef_, full.intercept_, 1e-2), rel=1e-12)
    assert full.history_["accuracy"][-1] == full.score(X, y)


def test_not_converged():
    X, y = load_digits(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="max_epochs=3"):
        SoftmaxRegression(max_epochs=3).fit(X, y)


# AdamW


def test_adamw_against_a_plain_definition():
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
    w, b = adamw.xavier(3, 5, np.float64, np.random.RandomState(1)), np.zeros(3)
    assert np.abs(w).max() <= np.sqrt(6 / 8)
    moments = [np.zeros_like(p) for p in (w, w, b, b)]
    for t in range(1, 8):
        p = np.exp(X @ w.T + b)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(40), y] -= 1
        g = [np.clip(p.T @ X / 40, -0.1, 0.1), np.clip(p.sum(axis=0) / 40, -0.1, 0.1)]
        norm = np.sqrt(sum(np.sum(one**2) for one in g))
        g = [one * min(1, 0.3 / norm) for one in g]
        w *= 1 - 0.05 * 0.1
        for i, (parameter, rate) in enumerate(((w, 0.05), (b, 0.01))):
            moments[2 * i] = 0.9 * moments[2 * i] + 0.1 * g[i]
            moments[2 * i + 1] = 0.999 * moments[2 * i + 1] + 0.001 * g[i] ** 2
            parameter -= rate * (moments[2 * i] / (1 - 0.9**t)) / (np.sqrt(moments[2 * i + 1] / (1 - 0.999**t)) + 1e-8)
    assert np.allclose(model.coef_, w, rtol=1e-9)
    assert np.allclose(model.intercept_, b, rtol=1e-9)


def test_batch_norm_gradient_and_folding():
    """One step's gradient against differences; the folded model gives the normalised logits."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 4)), rng.integers(0, 3, 50)
    from csoftmax._args import Place

    class Recorder(adamw.Trainer):
        def _update(self, gradients):
            self.gradients = gradients

    hyper = adamw.Hyper(0.1, 0.1, 0.0, None, None)
    start = rng.normal(size=(3, 4)), np.zeros(3)
    begin = np.zeros(3), np.ones(3)
    trainer = Recorder(start[0].copy(), start[1], Options(), hyper, Place(), batch_norm=begin)
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
    statistics = adamw.statistics(trainer.parameters["coef"], [X[:20], X[20:21], X[21:]])
    s = X @ trainer.parameters["coef"].T
    assert np.allclose(statistics, (s.mean(0), s.var(0)))
    coef, intercept = trainer.folded(statistics)
    assert float(csoftmax.cross_entropy(X @ coef.T + intercept, y)) == pytest.approx(loss(), rel=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"batch_norm": True}, {"fit_intercept": False}, {"batch_norm": True, "fit_intercept": False}]
)
def test_adamw_learns(options):
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(X / 16, y, random_state=0)
    for given in (X_train, sp.csr_array(X_train), X_train.astype(np.float32)):
        model = SoftmaxRegression(solver="adamw", max_epochs=40, random_state=0, **options).fit(given, y_train)
        assert model.score(X_test, y_test) > 0.94
    again = clone(model).fit(given, y_train)
    assert np.array_equal(again.coef_, model.coef_)
    other = clone(model).set_params(random_state=1).fit(given, y_train)
    assert not np.array_equal(other.coef_, model.coef_)


def test_batches_are_even():
    for rows, size in itertools.product((1, 2, 255, 256, 257, 1000, 1023), (1, 7, 256)):
        parts = adamw.batches(rows, size)
        lengths = [p.stop - p.start for p in parts]
        assert sum(lengths) == rows
        assert max(lengths) <= size
        assert max(lengths) - min(lengths) <= 1


# Data in parts, memory maps, stages


def test_fit_batches(tmp_path):
    X, y = load_digits(return_X_y=True)
    X = X / 16

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
    normal = SoftmaxRegression(solver="adamw", max_epochs=10, random_state=0, batch_norm=True)
    assert normal.fit_batches(batches, np.arange(10)).score(X, y) > 0.93
    once = SoftmaxRegression(solver="adamw", random_state=0).fit_batches(batches(), np.arange(10), epochs=1)
    assert once.n_iter_ == 1
    with pytest.raises(ValueError, match="used up"):
        SoftmaxRegression(solver="adamw", max_epochs=2).fit_batches(batches(), np.arange(10))


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_memory_map(tmp_path, solver):
    X, y = load_digits(return_X_y=True)
    np.save(tmp_path / "x.npy", (X / 16).astype(np.float32))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = SoftmaxRegression(solver=solver, max_epochs=15, tol=1e-2, random_state=0)
    assert np.array_equal(clone(model).fit(mapped, y).coef_, clone(model).fit(np.array(mapped), y).coef_)


def test_partial_fit():
    X, y = load_digits(return_X_y=True)
    X = X / 16
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


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_stages(solver):
    """Some classes first; then they stay as they are while others are learned."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
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
    with pytest.raises(ValueError, match="has not"):
        model.freeze([77])


def test_warm_start_goes_on(data):
    X, y = data
    cold = SoftmaxRegression(max_epochs=500).fit(X, y)
    model = SoftmaxRegression(max_epochs=500, warm_start=True).fit(X, y)
    assert model.n_iter_ == cold.n_iter_
    model.fit(X, y)
    assert model.n_iter_ <= 2
    assert np.allclose(model.coef_, cold.coef_, atol=1e-6)


def test_callbacks(data):
    X, y = data
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


def test_callbacks_of_sklearn(data):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has it")
    X, y = data

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


# Around the estimator


def test_inside_sklearn(data):
    X, y = data
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(penalty_l2=1e-3))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    grid = GridSearchCV(SoftmaxRegression(), {"penalty_l2": [1e-4, 1e-2, 10.0]}, cv=3, n_jobs=2).fit(X, y)
    assert grid.best_params_["penalty_l2"] < 10
    calibrated = CalibratedClassifierCV(SoftmaxRegression(penalty_l2=1e-2), cv=3, n_jobs=2).fit(X, y)
    assert calibrated.score(X, y) > 0.9


def test_pandas():
    pd = pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True, as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = SoftmaxRegression().fit(X, names)
    assert list(model.feature_names_in_) == list(X.columns)
    assert model.predict(X)[0] == "setosa"
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X[X.columns[::-1]])
    assert isinstance(X, pd.DataFrame)


def test_errors():
    X, y = np.arange(12.0).reshape(6, 2), [0, 1, 2, 0, 1, 2]
    wrong = {
        "solver": ("sgd", ValueError), "penalty_l2": (-1, ValueError), "label_smoothing": (1.5, ValueError),
        "temperature": (0, ValueError), "batch_size": (0, ValueError), "max_epochs": (2.5, TypeError),
        "learning_rate": (np.inf, ValueError), "validation_fraction": (1.0, ValueError), "patience": ("x", TypeError),
        "init": ("he", ValueError), "tol": (0, ValueError), "batch_norm": (True, ValueError),
        "clip_norm": (1.0, ValueError),
        "device": ("gpu", ValueError),
    }  # fmt: skip
    for name, (value, error) in wrong.items():
        with pytest.raises(error, match=name):
            SoftmaxRegression(**{name: value}).fit(X, y)
    with pytest.raises(ValueError, match="one class"):
        SoftmaxRegression().fit(X, [1] * 6)
    with pytest.raises(ValueError, match="NaN"):
        SoftmaxRegression().fit(X * np.nan, y)
    with pytest.raises(ValueError, match="infinity"):
        SoftmaxRegression().fit(X + np.inf, y)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        SoftmaxRegression().fit(X, y, [-1, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="inconsistent"):
        SoftmaxRegression().fit(X, y[:5])
    with pytest.raises(ValueError, match="features"):
        SoftmaxRegression().fit(X, y).predict(X[:, :1])
    with pytest.raises(NotFittedError):
        SoftmaxRegression().predict(X)
    with pytest.raises(ValueError, match="could not convert"):
        SoftmaxRegression().fit(np.array([["a", "b"]] * 6), y)


# Files


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "model"])
@pytest.mark.parametrize("labels", ["int", "str", "object", "bool", "float"])
def test_save_and_load(tmp_path, suffix, labels):
    X, y = load_iris(return_X_y=True)
    if labels == "bool":
        y = y == 1
    elif labels != "int":
        y = {
            "str": np.array(["a", "b", "ä"]),
            "object": np.array(["x", "y", "z"], object),
            "float": np.array([0.0, 1, 2]),
        }[labels][y]
    model = SoftmaxRegression(class_weight={y[0]: 2.0}, random_state=3, callbacks="progress").fit(
        X.astype(np.float32), y
    )
    path = tmp_path / f"m.{suffix}"
    model.save(path)
    back = SoftmaxRegression.load(path)
    assert np.array_equal(back.predict(X), model.predict(X))
    assert back.classes_.dtype == model.classes_.dtype
    assert np.array_equal(back.coef_, model.coef_)
    assert back.coef_.dtype == np.float32
    assert back.history_.keys() == model.history_.keys()
    assert back.get_params() == {**model.get_params(), "callbacks": None}
    assert os.listdir(tmp_path) == [path.name]
    assert clone(back).fit(X, y).n_iter_ > 0


def test_damaged_files(tmp_path):
    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression().fit(X, y)
    for suffix in ("safetensors", "npz"):
        path = tmp_path / f"m.{suffix}"
        model.save(path)
        whole = path.read_bytes()
        rng = np.random.default_rng(0)
        places = [*range(0, 200, 3), *rng.integers(0, len(whole), 150)]
        for cut in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match="cannot be read as a model"):
                SoftmaxRegression.load(path)
        for place in places:  # either refused, or another number
            damaged = bytearray(whole)
            damaged[place] ^= 0xFF
            path.write_bytes(damaged)
            try:
                back = SoftmaxRegression.load(path)
            except ValueError:
                continue
            assert back.coef_.shape == model.coef_.shape
    with pytest.raises(FileNotFoundError, match="no file"):
        SoftmaxRegression.load(tmp_path / "nothing")


def header_of(path):
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as f:
        return {name: f.get_tensor(name) for name in f.keys()}, json.loads(f.metadata()["csoftmax"])  # noqa: SIM118


def test_hostile_files(tmp_path):
    """Headers that lie, pickles, bombs: an error before anything large is allocated, nothing is run."""
    from safetensors.numpy import save_file

    X, y = load_iris(return_X_y=True)
    path = tmp_path / "m.safetensors"
    SoftmaxRegression().fit(X, y).save(path)
    arrays, header = header_of(path)
    changes = [
        {"version": 99}, {"format": "else"}, {"class": "Other"}, {"classes": ["a"]}, {"history": 3}, {"n_iter": "x"},
        {"parameters": {"__class__": "os.system"}}, {"parameters": {"solver": "sgd"}}, {"feature_names": ["a"]},
        {"frozen": [True]}, {"parameters": 5}, {"frozen": 5}, {"feature_names": 7},
        {"parameters": {"class_weight": {"__pairs__": 5}}}, {"parameters": {"class_weight": {"__pairs__": [[[], 1]]}}},
    ]  # fmt: skip
    for change in changes:
        save_file(arrays, path, metadata={"csoftmax": json.dumps({**header, **change})})
        with pytest.raises(ValueError, match="cannot be read as a model"):
            SoftmaxRegression.load(path)
    for name, value in (("coef", np.zeros(3)), ("intercept", np.zeros(7)), ("coef", np.zeros((3, 4), np.int64))):
        save_file({**arrays, name: value}, path, metadata={"csoftmax": json.dumps(header)})
        with pytest.raises(ValueError, match="cannot be read as a model"):
            SoftmaxRegression.load(path)
    save_file(arrays, path)
    with pytest.raises(ValueError, match="no header"):
        SoftmaxRegression.load(path)

    path = tmp_path / "m.npz"
    np.savez(path, coef=np.array([print], object), csoftmax=np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="dtype object"):
        SoftmaxRegression.load(path)
    np.savez_compressed(path, coef=np.zeros((1000, 1000)))
    with pytest.raises(ValueError, match="compressed"):
        SoftmaxRegression.load(path)
    with zipfile.ZipFile(path, "w") as archive:  # a header that promises a petabyte
        text = "{'descr': '<f8', 'fortran_order': False, 'shape': (100000000, 1000000), }".ljust(117) + "\n"
        archive.writestr("coef.npy", b"\x93NUMPY\x01\x00v\x00" + text.encode())
    with pytest.raises(ValueError, match="not those of shape"):
        SoftmaxRegression.load(path)


def test_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    X, y = load_iris(return_X_y=True)
    path = tmp_path / "m.safetensors"
    model = SoftmaxRegression().fit(X, y)
    model.save(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        model.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["m.safetensors"]


KILLED = """
import sys
from sklearn.datasets import load_digits
from csoftmax.linear_model import SoftmaxRegression
X, y = load_digits(return_X_y=True)
save = lambda model, record: (model.save(sys.argv[1]), print(record["epoch"], flush=True))[0]
SoftmaxRegression(solver="adamw", max_epochs=10**6, callbacks=save, random_state=0).fit(X / 16, y)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_training(tmp_path):
    """A model saved after each epoch is whole at any moment."""
    X, y = load_digits(return_X_y=True)
    for i, name in enumerate(("signal.SIGKILL", "signal.SIGTERM", "signal.SIGINT")):
        path = tmp_path / f"{i}.safetensors"
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        process.stdout.readline()
        time.sleep(0.05 * i)
        process.send_signal(getattr(signal, name.split(".")[1]))
        process.wait(60)
        process.stdout.close()
        assert process.returncode != 0
        assert SoftmaxRegression.load(path).predict(X / 16).shape == y.shape


# Found by review


def three_classes(rows=120, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 4))
    return X, (X @ rng.normal(size=(4, 3))).argmax(axis=1)


def test_fit_replaces_what_partial_fit_has_begun():
    X, y = three_classes()
    model = SoftmaxRegression(solver="adamw", warm_start=True, random_state=0, max_epochs=100, learning_rate=0.1)
    model.partial_fit(X, y, classes=[0, 1, 2]).fit(X, y)
    before = model.score(X, y)
    model.partial_fit(X[:5], y[:5])
    assert model.score(X, y) > before - 0.1
    model.set_params(learning_rate=1e-12)
    coef = model.coef_.copy()
    model.partial_fit(X, y)
    assert np.abs(model.coef_ - coef).max() < 1e-9


def test_pickle_and_copy_while_training():
    X, y = three_classes()
    for options in ({}, {"batch_norm": True}, {"class_weight": np.ones(3)}):
        model = SoftmaxRegression(solver="adamw", random_state=0, **options).partial_fit(X, y, classes=[0, 1, 2])
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
            assert np.array_equal(other.partial_fit(X, y).coef_, copy.deepcopy(model).partial_fit(X, y).coef_)


def test_batch_norm_goes_on_where_it_was():
    X, y = three_classes()
    model = SoftmaxRegression(solver="adamw", batch_norm=True, warm_start=True, max_epochs=40, random_state=0).fit(X, y)
    before = model.predict_proba(X)
    model.set_params(max_epochs=1, learning_rate=1e-12).fit(X, y)
    assert np.allclose(model.predict_proba(X), before, atol=1e-6)
    with pytest.raises(ValueError, match="frozen"):
        model.freeze().fit(X, y)


def test_rows_of_weight_zero_take_no_part():
    X, y = three_classes()
    w = np.arange(120.0) % 3
    for options in ({"class_weight": "effective_number"}, {"class_weight": "balanced"}, {"early_stopping": True}):
        given = {"random_state": 0, "penalty_l2": 1e-2, **options}
        a, b = SoftmaxRegression(**given).fit(X, y, w), SoftmaxRegression(**given).fit(X[w > 0], y[w > 0], w[w > 0])
        assert np.allclose(a.coef_, b.coef_, atol=1e-8)
    model = SoftmaxRegression(class_weight="balanced", early_stopping=True, random_state=1, max_epochs=500)
    assert model.fit(X[:4], [0, 0, 0, 1]).n_iter_ > 0
    model = SoftmaxRegression(solver="adamw", class_weight={0: 0.0}, batch_size=1, max_epochs=2, random_state=0)
    assert np.isfinite(model.fit(X, y).history_["loss"]).all()


def test_generators_and_epochs():
    X, y = three_classes()
    parts = [(X[i : i + 20], y[i : i + 20]) for i in range(0, 120, 20)]
    model = SoftmaxRegression(solver="adamw", batch_norm=True, random_state=0)
    model.fit_batches(iter(parts), [0, 1, 2], epochs=1)
    assert np.abs(model.coef_).max() < 10
    for epochs in (0, -1, 1.5):
        with pytest.raises(ValueError, match="epochs"):
            model.fit_batches(parts, [0, 1, 2], epochs=epochs)
    with pytest.raises(ValueError, match="first call"):
        model.set_params(warm_start=True).fit_batches(parts, [0, 1], epochs=1)


def test_limits_of_blas_are_taken_back():
    from threadpoolctl import threadpool_info

    X, y = three_classes()
    before = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    inside, out = threading.Event(), threading.Event()

    def first(model, record):
        inside.set()
        return out.wait(30)

    thread = threading.Thread(target=lambda: SoftmaxRegression(callbacks=first).fit(X, y))
    thread.start()
    inside.wait(30)

    def second(model, record):
        out.set()
        thread.join(30)

    SoftmaxRegression(callbacks=second, max_epochs=200).fit(X, y)
    assert [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"] == before


def test_hopeless_scales_are_reported():
    X, y = three_classes()
    with pytest.warns(ConvergenceWarning, match="scale the data"):
        SoftmaxRegression().fit(X * 1e100, y)
    flat = SoftmaxRegression().fit([[1.0], [-1.0], [1.0], [-1.0]], [0, 0, 1, 1])
    assert flat.n_iter_ == 0
    assert len(flat.history_["loss"]) == 1


def test_kinds_of_labels_are_not_mixed():
    X, y = three_classes()
    model = SoftmaxRegression().fit(X, y)
    with pytest.raises(ValueError, match="another kind"):
        model.add_classes(["a"])
    assert model.add_classes([]).classes_.dtype == np.int64


@pytest.mark.parametrize("given", [{"solver": "adamw", "batch_size": 1024}, {"solver": "lbfgs"}])
def test_bigrams_take_an_eighth_of_their_logits(given):
    """English bigrams, the second word as the class: memory beside the data against that of all logits."""
    pairs = sorted(bigrams().items(), key=lambda pair: -pair[1])[:40_000]
    firsts, first = np.unique([a for (a, _), _ in pairs], return_inverse=True)
    seconds, y = np.unique([b for (_, b), _ in pairs], return_inverse=True)
    X = np.random.default_rng(0).normal(size=(len(firsts), 16)).astype(np.float32)[first]
    logits = len(y) * len(seconds) * 4
    assert logits > 6e8
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


def bigrams():
    """Of the package wordsegment, with their counts."""
    wordsegment = pytest.importorskip("wordsegment", reason="the test extra has it")
    wordsegment.load()
    return {tuple(pair.split(" ")): n for pair, n in wordsegment.BIGRAMS.items() if pair.count(" ") == 1}


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_impossible_numbers_of_threads(solver):
    for wrong, error in ((0, ValueError), (-2, ValueError), ("x", TypeError)):
        with pytest.raises(error, match="num_threads must be"):
            SoftmaxRegression(solver=solver, num_threads=wrong).fit(np.eye(4), [0, 1, 0, 1])
