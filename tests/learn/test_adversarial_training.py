"""Training against perturbations: the objective that is minimised, steps, parameters, files, certified scores."""

import math
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning

import csoftmax
from csoftmax import adversarial
from csoftmax._learn.adamw import Hyper, Trainer
from csoftmax._learn.adversary import Adversary
from csoftmax._learn.objective import Objective, Options
from csoftmax.linear_model import SoftmaxRegression

INF = math.inf
KINDS = ("certified", "fgsm", "pgd", "trades", "vat")


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X[:300] / 16, y[:300]


def problem(seed=0, n=40, d=6, k=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.integers(0, k, n), rng.normal(size=(k, d)), rng.normal(size=k)


def test_certified_objective_is_the_robust_loss_with_weights_temperature_and_smoothing():
    from csoftmax._learn.adversary import Bound

    X, y, coef, intercept = problem(n=700)
    s, weight = np.linspace(0.5, 2, len(y)), np.array([1.0, 2.0, 0.5, 1.5])
    for norm in (1, 2, INF):
        options = Options(weight, 0.1, 2.0)
        objective = Objective(X, y, s, 4, options, bound=Bound(0.3, norm))
        given = {"bias": intercept, "weight": weight, "sample_weight": s, "temperature": 2.0, "label_smoothing": 0.1}
        for data in (objective, Objective(scipy.sparse.csr_array(X), y, s, 4, options, bound=Bound(0.3, norm))):
            found = data.evaluate(coef, intercept)
            expected = adversarial.robust_cross_entropy_with_grad(X, coef, y, eps=0.3, norm=norm, **given)
            assert found.loss == pytest.approx(expected.loss, rel=1e-12)
            np.testing.assert_allclose(found.grad_coef, expected.grad_w, atol=1e-13)
            np.testing.assert_allclose(found.grad_intercept, expected.grad_bias, atol=1e-13)
            assert data.evaluate(coef, intercept, gradient=False).loss == found.loss
        one, two = (Objective(X, y, s, 4, options, n, bound=Bound(0.3, norm)) for n in (1, 2))
        with one.use_threads():
            a = one.evaluate(coef, intercept)
        with two.use_threads():
            b = two.evaluate(coef, intercept)
        np.testing.assert_array_equal(a.grad_coef, b.grad_coef)


class Recorder(Trainer):
    """A trainer that keeps the gradients of a step instead of moving."""

    def _update(self, gradients):
        self.seen = {name: g.copy() for name, g in gradients.items()}


def expected_step(kind, X, y, coef, intercept, s, norm):
    """Loss and gradients of a minibatch from the public functions, at temperature 2."""
    w, bias = coef / 2, intercept / 2
    common = {"bias": bias, "sample_weight": s}
    if kind == "certified":
        found = adversarial.robust_cross_entropy_with_grad(X, w, y, eps=0.3, norm=norm, **common)
    elif kind in ("fgsm", "pgd"):
        moved = adversarial.perturb(X, w, y, bias=bias, eps=0.3, norm=norm, method=kind, steps=10)
        found = csoftmax.linear_cross_entropy_with_grad(moved, w, y, **common)
    elif kind == "trades":
        rng = np.random.RandomState(9)
        found = adversarial.trades_loss_with_grad(X, w, y, eps=0.3, norm=norm, beta=2.5, rng=rng, **common)
    else:
        plain = csoftmax.linear_cross_entropy_with_grad(X, w, y, **common)
        vat = adversarial.vat_loss_with_grad(X, w, eps=0.3, **common)
        return plain.loss + 2.5 * vat.loss, plain.grad_w + 2.5 * vat.grad_w, plain.grad_bias + 2.5 * vat.grad_bias
    return found.loss, found.grad_w, found.grad_bias


@pytest.mark.parametrize("kind", KINDS)
def test_steps_have_the_gradients_of_the_public_functions(kind):
    X, y, coef, intercept = problem(1)
    for s in (None, np.linspace(0.5, 2, len(y))):
        for norm in (2, INF):
            for given in (X, scipy.sparse.csr_array(X)):
                adversary = Adversary(kind, 0.3, norm, 2.5, np.random.RandomState(9), None)
                hyper, place = Hyper(0.1, 0.1, 0.0, None, None), csoftmax._arguments.places.CPU
                trainer = Recorder(
                    coef.copy(), intercept.copy(), Options(None, 0.0, 2.0), hyper, place, adversary=adversary
                )
                progress = trainer.step(given, y, s)
                loss, grad_coef, grad_intercept = expected_step(kind, X, y, coef, intercept, s, norm)
                assert progress.loss == pytest.approx(loss, rel=1e-11)
                np.testing.assert_allclose(trainer.seen["coef"] * 2, grad_coef, atol=1e-12)
                np.testing.assert_allclose(trainer.seen["intercept"] * 2, grad_intercept, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_training_certifies_more(digits, kind, tmp_path):
    X, y = digits
    eps = 0.05
    options = {"solver": "adamw", "max_epochs": 60, "random_state": 0, "adversarial_beta": 1.0}
    plain = SoftmaxRegression(**options).fit(X, y)
    model = SoftmaxRegression(adversarial=kind, adversarial_eps=0.3 if kind == "vat" else eps, **options).fit(X, y)
    assert model.score_certified(X, y, eps) > plain.score_certified(X, y, eps) + 0.02
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(model.coef_, again.coef_)
    copied = pickle.loads(pickle.dumps(model))
    assert copied.get_params() == model.get_params()
    pytest.importorskip("safetensors")
    model.save(tmp_path / "model")
    back = SoftmaxRegression.load(tmp_path / "model")
    assert back.get_params() == model.get_params()
    assert back.score_certified(X, y, eps) == model.score_certified(X, y, eps)
    steps = SoftmaxRegression(adversarial=kind, adversarial_eps=eps, **options)
    for begin in range(0, 300, 100):
        steps.partial_fit(X[begin : begin + 100], y[begin : begin + 100], classes=np.arange(10))
    pickle.loads(pickle.dumps(steps)).partial_fit(X[:50], y[:50])
    few = SoftmaxRegression(adversarial=kind, adversarial_eps=eps, **{**options, "max_epochs": 3})
    weight = np.linspace(0, 2, 300)
    few.set_params(class_weight="balanced", label_smoothing=0.1, fit_intercept=False, early_stopping=True)
    assert np.isfinite(few.fit(X.astype(np.float32), y, weight).coef_).all()
    assert few.coef_.dtype == np.float32


def test_lbfgs_minimises_the_bound(digits):
    X, y = digits
    for norm, eps in ((INF, 0.05), (2, 0.2), (1, 0.3)):
        options = {"adversarial": "certified", "adversarial_eps": eps, "adversarial_norm": norm}
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = SoftmaxRegression(max_epochs=1000, **options).fit(X, y)

        def objective(coef, intercept, eps=eps, norm=norm, penalty=model.penalty_l2_):
            loss = adversarial.robust_cross_entropy(X, coef, y, bias=intercept, eps=eps, norm=norm)
            return loss + penalty / 2 * np.sum(coef**2)

        best = objective(model.coef_, model.intercept_)
        assert model.history_["loss"][-1] == pytest.approx(best, rel=1e-9)
        plain = SoftmaxRegression().fit(X, y)
        assert best < objective(plain.coef_, plain.intercept_)
        rng = np.random.default_rng(0)
        for size in (1e-1, 1e-2):
            for _ in range(20):  # convex: a minimum along every line is the minimum
                d = rng.normal(size=model.coef_.shape) * size * np.abs(model.coef_).mean()
                assert objective(model.coef_ + d, model.intercept_) > best * (1 - 2e-3)
    # without perturbations the model is the plain one
    for kind in ("certified", None):
        model = SoftmaxRegression(adversarial=kind, adversarial_eps=0.0).fit(X, y)
        np.testing.assert_array_equal(model.coef_, plain.coef_)


def test_lbfgs_leaves_the_corner_of_equal_classes(digits):
    X, y = digits
    found = {}
    for eps, tol in ((0.2, None), (0.3, None), (0.2, 1e-10)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = SoftmaxRegression(adversarial="certified", adversarial_eps=eps, tol=tol, max_epochs=3000).fit(X, y)
        found[eps, tol] = model.history_["loss"][-1]
        assert np.abs(model.coef_).max() > 0.5
    assert found[0.2, None] < 1.79
    assert found[0.3, None] < 2.285  # where all classes are equal: 2.3026
    assert found[0.2, 1e-10] < found[0.2, None]
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    model = SoftmaxRegression(adversarial="certified", adversarial_eps=0.05, penalty_l2=1e-7, max_epochs=1000).fit(X, y)
    assert model.history_["loss"][-1] < 0.0876  # the minimum is 0.0875
    with pytest.warns(ConvergenceWarning, match="adversarial_eps=30.0 lbfgs found no coefficients"):
        SoftmaxRegression(adversarial="certified", adversarial_eps=30.0, max_epochs=1000).fit(*digits)
    few = SoftmaxRegression(adversarial="certified", adversarial_eps=0.1, max_epochs=3)
    with pytest.warns(ConvergenceWarning, match="has not converged in 3 iterations"):
        few.fit(*digits)
    assert few.n_iter_ == 3


def test_smoothed_norms_and_their_gradients():
    from csoftmax._ops.adversarial_shift import find_dual_norms, find_smooth_norms, find_subgradients

    w = np.random.default_rng(0).normal(size=(4, 5))
    w[3] = w[0]
    classes, h = np.arange(4), 1e-6
    for norm, share in ((INF, 5), (2, 1), (1, 1), (3, 1)):
        smooth = find_smooth_norms(w, classes, norm, 0.1)
        exact = find_dual_norms(w, classes, norm)
        assert (smooth <= exact + 1e-15).all()
        assert (smooth >= exact - 0.1 * share).all()
        slope = find_subgradients(w, 1, norm, 0.1)
        for j in (0, 2):
            for i in range(5):
                up, down = w.copy(), w.copy()
                up[j, i] += h
                down[j, i] -= h
                values = [find_smooth_norms(v, [1], norm, 0.1)[0, j] for v in (up, down)]
                assert slope[j, i] == pytest.approx((values[0] - values[1]) / (2 * h), abs=1e-7)


def test_certified_score_counts_the_rows_of_certify(digits):
    X, y = digits
    names = np.array([f"digit {i}" for i in range(10)])[y]
    model = SoftmaxRegression(adversarial_norm=2.0).fit(X, names)
    found = adversarial.certify(X, model.coef_, bias=model.intercept_, target=y, norm=2)
    for eps in (0, 0.1, 0.3):
        expected = np.mean(found.radius > eps)
        assert model.score_certified(X, names, eps) == expected
        assert model.score_certified(scipy.sparse.csr_matrix(X), list(names), eps) == expected
    assert model.score_certified(X, names, 0) == model.score(X, names)
    assert model.score_certified(X, np.full(300, "none"), 0) == 0 == model.score_certified(X, y, 0)
    single = SoftmaxRegression().fit(X.astype(np.float32), y)
    assert single.score_certified(X.astype(np.float32), y, 0.01) > 0.5
    with pytest.raises(ValueError, match="adversarial_norm must be at least 1"):
        SoftmaxRegression().fit(X, y).set_params(adversarial_norm=0.5).score_certified(X, y, 0)
    for error, text, given in (
        (ValueError, "eps must be at least 0", (X, names, -1)),
        (ValueError, "y must have shape", (X, names[:5], 0)),
        (ValueError, "features", (X[:, :3], names, 0)),
    ):
        with pytest.raises(error, match=text):
            model.score_certified(*given)


@pytest.mark.parametrize(
    ("error", "text", "options"),
    [
        (ValueError, "adversarial must be one of 'certified'", {"adversarial": "deepfool"}),
        (ValueError, "adversarial must be one of", {"adversarial": True}),
        (ValueError, "adversarial_eps must be in", {"adversarial_eps": -1.0}),
        (TypeError, "adversarial_eps must be a number", {"adversarial_eps": None}),
        (ValueError, "adversarial_norm must be in", {"adversarial_norm": 0.5}),
        (ValueError, "adversarial_norm must be 1, 2 or", {"adversarial_norm": 3, "adversarial": "pgd"}),
        (ValueError, "adversarial_beta must be in", {"adversarial_beta": INF}),
        (ValueError, "needs solver='adamw'", {"solver": "lbfgs", "adversarial": "pgd"}),
        (ValueError, "needs batch_norm=False", {"batch_norm": True, "adversarial": "certified"}),
        (ValueError, "pass a number", {"solver": "lbfgs", "penalty_l2": "auto", "adversarial": "certified"}),
        (ValueError, "computes on the CPU", {"device": "cuda", "adversarial": "certified"}),
    ],
)
def test_parameters_without_meaning_are_refused(error, text, options, digits):
    with pytest.raises(error, match=text):
        SoftmaxRegression(**{"solver": "adamw", **options}).fit(*digits)
