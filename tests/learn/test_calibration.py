"""Calibrators on real logits: against scikit-learn and their definitions, limits, errors."""

import math

import numpy as np
import pytest
from scipy import optimize
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import csoftmax
from csoftmax import calibration, metrics
from csoftmax.linear_model import SoftmaxRegression

SCALINGS = (
    calibration.TemperatureScaling,
    calibration.VectorScaling,
    calibration.MatrixScaling,
    calibration.DirichletCalibration,
)


ALL = (*SCALINGS, calibration.IsotonicCalibration, calibration.PlattScaling)


def compute_logits_of_digits(seed):
    """Logits and labels of an overconfident model on two held-out parts."""
    X, y = load_digits(return_X_y=True)
    a, rest, y_a, y_rest = train_test_split(X / 16, y, test_size=0.6, random_state=seed)
    b, c, y_b, y_c = train_test_split(rest, y_rest, test_size=0.5, random_state=seed)
    model = SoftmaxRegression(penalty_l2=1e-7, max_epochs=500, tol=1e-6).fit(a, y_a)
    return model.decision_function(b), y_b, model.decision_function(c), y_c


@pytest.fixture(scope="module", params=[0, 1, 2])
def digits(request):
    return compute_logits_of_digits(request.param)


def compute_nll(p, y):
    return float(-np.log(p[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize("kind", SCALINGS)
def test_calibration_improves_held_out_rows(digits, kind):
    z, y, z_new, y_new = digits
    scaling = kind().fit(z, y)
    p = scaling.transform(z_new)
    before = csoftmax.softmax(z_new)
    assert np.allclose(p.sum(axis=1), 1)
    assert scaling.converged_
    assert compute_nll(p, y_new) < compute_nll(before, y_new)
    assert metrics.expected_calibration_error(y_new, p) < metrics.expected_calibration_error(y_new, before)
    losses = [entry["loss"] for entry in scaling.history_]
    assert losses[-1] <= losses[0]
    assert len(losses) >= scaling.n_iter_ > 0
    assert compute_nll(scaling.transform(z), y) <= compute_nll(csoftmax.softmax(z), y)
    assert np.array_equal(kind().fit_transform(z, y), scaling.transform(z))


# Temperature


def test_temperature_is_the_minimum(digits):
    z, y, _, _ = digits
    scaling = calibration.TemperatureScaling().fit(z, y)
    loss = lambda log_beta: float(csoftmax.cross_entropy(z, y, temperature=math.exp(-log_beta)))  # noqa: E731
    best = optimize.minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-12})
    assert scaling.temperature_ == pytest.approx(math.exp(-best.x), rel=1e-6)
    assert loss(-math.log(scaling.temperature_)) <= best.fun * (1 + 1e-13)
    assert scaling.n_iter_ <= 15
    assert scaling.history_[-1]["gradient_norm"] < 1e-12
    assert np.array_equal(scaling.transform(z), csoftmax.softmax(z, temperature=scaling.temperature_))


@pytest.mark.parametrize("seed", range(20))
def test_temperature_stops_at_the_rounding_error(seed):
    """Scales, sizes and offsets at which the derivative never becomes 0."""
    rng = np.random.default_rng(seed)
    rows, classes = int(rng.integers(20, 800)), int(rng.choice([2, 3, 10, 100]))
    z = rng.normal(size=(rows, classes)) * 10 ** rng.uniform(-1, 2) + rng.choice([0, 1e4])
    y = np.where(rng.random(rows) < 0.7, z.argmax(axis=1), rng.integers(0, classes, rows))
    scaling = calibration.TemperatureScaling().fit(z, y)
    assert scaling.converged_
    assert scaling.n_iter_ <= 15


def test_temperature_equals_that_of_sklearn(digits):
    z, y, _, _ = digits
    inner = calibration._LogitsAsClassifier().fit(z, y)
    try:
        theirs = CalibratedClassifierCV(FrozenEstimator(inner), method="temperature").fit(z, y)
    except ValueError:
        pytest.skip("scikit-learn 1.8 has it")
    beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    assert calibration.TemperatureScaling().fit(z, y).temperature_ == pytest.approx(1 / beta, rel=1e-6)


def test_limits_of_the_temperature():
    always_right = calibration.TemperatureScaling().fit(np.array([[9.0, 0], [0, 9.0]]), [0, 1])
    assert always_right.temperature_ < 0.3
    assert always_right.converged_
    always_wrong = calibration.TemperatureScaling().fit(np.array([[9.0, 0], [0, 9.0]]), [1, 0])
    assert always_wrong.temperature_ == pytest.approx(math.exp(10), rel=1e-6)
    uninformative = calibration.TemperatureScaling().fit(np.zeros((5, 3)), [0, 1, 2, 0, 1])
    assert uninformative.temperature_ == 1
    certain = np.array([[0, -np.inf], [0.0, 1.0], [1.0, 0.0], [1.0, 0]])
    scaling = calibration.TemperatureScaling().fit(certain, [0, 1, 1, 0])
    assert math.isfinite(scaling.temperature_)
    assert scaling.transform(certain)[0].tolist() == [1, 0]
    single = calibration.TemperatureScaling().fit(np.zeros((3, 1)), [0, 0, 0])
    assert single.transform(np.ones((2, 1))).tolist() == [[1], [1]]


@pytest.mark.parametrize("kind", ALL)
def test_offset_of_the_logits_does_not_matter(digits, kind):
    z, y, _, _ = digits
    p = kind().fit(z - 5e4, y).transform(z - 5e4)
    assert compute_nll(p, y) < compute_nll(csoftmax.softmax(z), y) + 0.1


def test_decision_functions_of_two_classes():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    y = (X[:, 0] + rng.normal(size=200) > 0).astype(int)
    model = SoftmaxRegression().fit(X[:100], y[:100])
    z = model.decision_function(X[100:])
    scaling = calibration.TemperatureScaling().fit(z, y[100:])
    assert np.allclose(scaling.transform(z)[:, 1], 1 / (1 + np.exp(-z / scaling.temperature_)))
    for kind in ALL:
        assert kind().fit(z, y[100:]).transform(z).shape == (100, 2)
    assert metrics.evaluate(model, X[100:], y[100:], calibrator=scaling).to_dict()["rows"] == 100


# Vector, matrix, Dirichlet


def test_matrix_scaling_without_penalties_is_a_regression(digits):
    """It has the minimum of scikit-learn on the same features."""
    z, y, _, _ = digits
    x = z[:, :4]
    labels = y % 4
    ours = calibration.MatrixScaling(penalty_off_diagonal=0, penalty_diagonal=0, penalty_intercept=0).fit(x, labels)
    theirs = LogisticRegression(C=1e9, solver="newton-cholesky", tol=1e-10).fit(x / ours.temperature_, labels)
    assert np.allclose(ours.transform(x), theirs.predict_proba(x / ours.temperature_), atol=1e-4)


def test_gradients_of_the_penalties():
    rng = np.random.default_rng(0)
    coef, b = rng.normal(size=(4, 4)), rng.normal(size=4)
    penalty = calibration._make_penalty(4, 3.0, 5.0, 2.0)
    _, grad_coef, grad_b = penalty(coef, b)
    for i in range(4):
        for parameter, gradient in ((coef, grad_coef), (b, grad_b)):
            ends = []
            for sign in (1, -1):
                parameter.flat[i] += sign * 1e-6
                ends.append(penalty(coef, b)[0])
                parameter.flat[i] -= sign * 1e-6
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(gradient.flat[i], rel=1e-6)


def test_strong_penalties_leave_temperature_scaling(digits):
    z, y, _, _ = digits
    plain = calibration.TemperatureScaling().fit(z, y).transform(z)
    strong = {"penalty_diagonal": 1e9, "penalty_intercept": 1e9}
    for scaling in (
        calibration.VectorScaling(**strong),
        calibration.MatrixScaling(penalty_off_diagonal=1e9, **strong),
        calibration.DirichletCalibration(penalty_off_diagonal=1e9, **strong),
    ):
        assert np.allclose(scaling.fit(z, y).transform(z), plain, atol=1e-6)


def test_warning_without_convergence(digits):
    z, y, _, _ = digits
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        scaling = calibration.MatrixScaling(max_iter=2).fit(z, y)
    assert not scaling.converged_
    assert [entry["iteration"] for entry in scaling.history_] == [0, 1, 2]


# Isotonic and Platt


def test_isotonic_is_fitted_on_correctness(digits):
    z, y, z_new, y_new = digits
    model = calibration.IsotonicCalibration().fit(z, y)
    before = csoftmax.softmax(z_new)
    p = model.transform(z_new)
    top = before.argmax(axis=1)
    plain = csoftmax.softmax(z)
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    expected.fit(plain.max(axis=1), plain.argmax(axis=1) == y)
    assert np.array_equal(p[np.arange(len(p)), top], expected.predict(before.max(axis=1)))
    assert np.allclose(p.sum(axis=1), 1)
    assert metrics.expected_calibration_error(y_new, p) < metrics.expected_calibration_error(y_new, before)
    sure = model.transform(np.array([[900.0] + [-900.0] * 9]))  # all others are 0: they share the remainder
    assert sure.sum() == pytest.approx(1)
    assert np.isfinite(sure).all()


def test_isotonic_rows_sum_to_one():
    z = np.array([[60.0, 0, 0, 0]] * 10 + [[0.0, 0, 0, 0]] * 4)
    model = calibration.IsotonicCalibration().fit(z, [0] * 6 + [1] * 4 + [0, 1, 2, 3])
    sure = model.transform([[0, -36.5, -36.5, -36.5], [0, -37.2, -37.5, -38.0], [0, -800, -800, -900.0]])
    assert np.allclose(sure.sum(axis=1), 1, rtol=1e-12)


def test_platt(digits):
    z, y, z_new, _ = digits
    p = calibration.PlattScaling().fit(z, y).transform(z_new)
    assert np.allclose(p.sum(axis=1), 1)
    with pytest.raises(ValueError, match="every class"):
        calibration.PlattScaling().fit(z, y // 2)
    two = calibration.PlattScaling().fit(z[:, :2], y % 2)
    assert two.transform(z[:, :2]).shape == (len(z), 2)


@pytest.mark.parametrize("kind", ALL)
def test_errors_of_calibrators(kind):
    z = np.arange(12.0).reshape(4, 3)
    for logits, y, match in (
        (z[0], [0], "shape"),
        (z, [0, 1, 2], "one label for each row"),
        (z, [0, 1, 2, 3], r"y\[3\] is 3"),
        (z, [0, -1, 2, 1], r"y\[1\] is -1"),
        (np.where(z == 4, np.nan, z), [0, 1, 2, 0], r"logits\[1, 1\] is nan"),
        (np.where(z == 4, np.inf, z), [0, 1, 2, 0], r"logits\[1, 1\] is inf"),
        (np.where(z == 4, -np.inf, z), [0, 1, 2, 0], "no calibration"),
        (np.where(z < 3, -np.inf, z), [0, 1, 2, 0], "in every column"),
        (z[:0], [], "at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            kind().fit(logits, y)
    for logits, y in ((z.astype(str), [0, 1, 2, 0]), (z, ["a"] * 4), (z, [0.0, 1, 2, 0])):
        with pytest.raises(TypeError):
            kind().fit(logits, y)
    if "max_iter" in kind().get_params():
        with pytest.raises(TypeError, match="max_iter must be an int, got True"):
            kind(max_iter=True).fit(z, [0, 1, 2, 0])
    fitted = kind().fit(z + np.eye(4, 3), [0, 1, 2, 0])
    with pytest.raises(ValueError, match="3 columns"):
        fitted.transform(z[:, :2])
