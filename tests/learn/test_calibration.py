"""Calibrators on real logits: against scikit-learn and their definitions, limits, errors."""

import math

import mpmath
import numpy as np
import pytest
from scipy import optimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import csoftmax
from csoftmax import calibration, metrics
from csoftmax._learn.calibration import platt
from csoftmax._learn.calibration.affine import make_penalty
from csoftmax.linear_model import SoftmaxRegression

SCALINGS = (
    calibration.TemperatureScaling,
    calibration.VectorScaling,
    calibration.MatrixScaling,
    calibration.DirichletCalibration,
)


ALL = (*SCALINGS, calibration.IsotonicCalibration, calibration.PlattScaling)


class LogitsAsClassifier(ClassifierMixin, BaseEstimator):
    """A fitted classifier of scikit-learn whose features are logits."""

    def fit(self, z, y):
        self.classes_ = np.arange(z.shape[1])
        return self

    def predict(self, z):
        return z.argmax(axis=1)

    def decision_function(self, z):
        return z[:, 1] - z[:, 0] if z.shape[1] == 2 else z


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


def test_temperature_of_maximum_likelihood_is_the_minimum(digits):
    z, y, _, _ = digits
    scaling = calibration.TemperatureScaling(prior=0).fit(z, y)
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
    inner = LogitsAsClassifier().fit(z, y)
    try:
        theirs = CalibratedClassifierCV(FrozenEstimator(inner), method="temperature").fit(z, y)
    except ValueError:
        pytest.skip("scikit-learn 1.8 has it")
    beta = theirs.calibrated_classifiers_[0].calibrators[0].beta_
    assert calibration.TemperatureScaling(prior=0).fit(z, y).temperature_ == pytest.approx(1 / beta, rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*held-out rows:UserWarning")
def test_limits_of_the_temperature():
    right, wrong = [0, 1], [1, 0]
    z = np.array([[9.0, 0], [0, 9.0]])
    always_right = calibration.TemperatureScaling(prior=0).fit(z, right)
    assert always_right.temperature_ < 0.3
    assert always_right.converged_
    assert 0.3 < calibration.TemperatureScaling().fit(z, right).temperature_ < 1
    always_wrong = calibration.TemperatureScaling(prior=0).fit(z, wrong)
    assert always_wrong.temperature_ == pytest.approx(math.exp(10), rel=1e-6)
    assert 1 < calibration.TemperatureScaling().fit(z, wrong).temperature_ < 30
    for prior in (0, 1):
        uninformative = calibration.TemperatureScaling(prior=prior).fit(np.zeros((5, 3)), [0, 1, 2, 0, 1])
        assert uninformative.temperature_ == 1
        certain = np.array([[0, -np.inf], [0.0, 1.0], [1.0, 0.0], [1.0, 0]])
        scaling = calibration.TemperatureScaling(prior=prior).fit(certain, [0, 1, 1, 0])
        assert math.isfinite(scaling.temperature_)
        assert scaling.transform(certain)[0].tolist() == [1, 0]
        single = calibration.TemperatureScaling(prior=prior).fit(np.zeros((3, 1)), [0, 0, 0])
        assert single.transform(np.ones((2, 1))).tolist() == [[1], [1]]


def compute_objective(z, y, prior, b, weights=None):
    """Sum of s CE + prior/2 b**2 by its definition, at every b = log(1/T)."""
    gaps = z - z[np.arange(len(y)), y][:, None]
    scaled = np.exp(b)[:, None, None] * gaps
    top = scaled.max(axis=2)
    losses = top + np.log(np.exp(scaled - top[:, :, None]).sum(axis=2))
    return (losses * (1 if weights is None else weights)).sum(axis=1) + prior / 2 * b**2


@pytest.mark.filterwarnings("ignore:.*held-out rows:UserWarning")
def test_temperature_is_the_global_minimum_of_the_posterior():
    """Also where rows of several scales make several minima: against a grid over log(1/T)."""
    rng = np.random.default_rng(5)
    grid, several = np.linspace(-12, 25, 3701), 0
    for trial in range(30):
        n, k = int(rng.integers(1, 30)), int(rng.choice([2, 3, 5]))
        scales = 10 ** rng.uniform(-5, 1.5, size=3)
        z = rng.normal(size=(n, k)) * rng.choice(scales, size=n)[:, None]
        y = np.where(rng.random(n) < [1, 0.95, 0.7][trial % 3], z.argmax(axis=1), rng.integers(0, k, n))
        weights = 10 ** rng.uniform(0, 2, n)
        prior = 10 ** rng.uniform(-1.5, 0.7)
        values = compute_objective(z, y, prior, grid, weights)
        several += ((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])).sum() > 1
        scaling = calibration.TemperatureScaling(prior=prior).fit(z, y, sample_weight=weights)
        assert scaling.converged_
        (found,) = compute_objective(z, y, prior, np.array([-math.log(scaling.temperature_)]), weights)
        assert found <= values.min() * (1 + 1e-12)
        assert scaling.history_[-1]["loss"] * weights.sum() == pytest.approx(found, rel=1e-9)
    assert several >= 3


@pytest.mark.parametrize(("right", "prior"), [(1.0, 1.0), (0.9, 1.0), (0.6, 1.0), (0.9, 0.1), (0.9, 0), (0.3, 2.0)])
@pytest.mark.filterwarnings("ignore:.*held-out rows:UserWarning")
def test_temperature_against_mpmath(right, prior):
    """The derivative of the objective, in 40 digits, changes its sign within 1e-13 of log T."""
    rng = np.random.default_rng(3)
    z = rng.normal(size=(40, 3)) * 3
    y = np.where(rng.random(40) < right, z.argmax(axis=1), rng.integers(0, 3, 40))
    weights = rng.integers(1, 4, 40)
    t = calibration.TemperatureScaling(prior=prior).fit(z, y, sample_weight=weights).temperature_

    def differentiate(b):
        total = prior * b
        for row, label, weight in zip(z.tolist(), y.tolist(), weights.tolist()):
            gaps = [mpmath.exp(b) * (mpmath.mpf(v) - mpmath.mpf(row[label])) for v in row]
            e = [mpmath.exp(g) for g in gaps]
            total += weight * sum(p * g for p, g in zip(e, gaps)) / sum(e)
        return total

    with mpmath.workdps(40):
        b = -mpmath.log(mpmath.mpf(t))
        assert differentiate(b - mpmath.mpf(1e-13)) < 0 < differentiate(b + mpmath.mpf(1e-13))


def test_prior_decides_for_few_rows_only():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(4000, 3)) * 6
    p = csoftmax.softmax(z / 3)
    y = (p.cumsum(axis=1) < rng.random((4000, 1))).sum(axis=1)
    few, many = (
        [calibration.TemperatureScaling(prior=prior).fit(z[:n], y[:n]).temperature_ for prior in (0, 1)]
        for n in (20, 4000)
    )
    assert few[1] < 0.95 * few[0]  # pulled towards 1
    assert many[1] == pytest.approx(many[0], rel=2e-3)
    assert many[1] == pytest.approx(3, rel=0.1)
    strong = calibration.TemperatureScaling(prior=1e12).fit(z, y).temperature_
    assert strong == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("prior", [-1.0, math.inf, math.nan])
def test_prior_that_is_refused(prior):
    with pytest.raises(ValueError, match="prior must be at least 0 and finite"):
        calibration.TemperatureScaling(prior=prior).fit(np.eye(20), np.arange(20))


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
    penalty = make_penalty(np.eye(4), 3.0, 5.0, 2.0)
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


@pytest.mark.parametrize("prior", [0, 1.0])
@pytest.mark.parametrize("scale", [0.2, 5])
@pytest.mark.parametrize("max_iter", [1, 2, 3])
def test_temperature_warns_when_its_iterations_are_used_up(digits, prior, scale, max_iter):
    """On both sides of T = 1: Newton's method in a bracket, and the climb that precedes it."""
    z, y, _, _ = digits
    with pytest.warns(ConvergenceWarning, match=f"not converged in {max_iter} iterations.*raise max_iter") as caught:
        scaling = calibration.TemperatureScaling(prior=prior, max_iter=max_iter).fit(z * scale, y)
    assert caught[0].filename == __file__
    assert not scaling.converged_
    assert scaling.n_iter_ == len(scaling.history_) == max_iter
    assert scaling.temperature_ > 0


def test_platt_warns_when_its_steps_are_used_up(digits, monkeypatch):
    z, y, _, _ = digits
    steps = calibration.PlattScaling().fit(z, y).n_iter_
    monkeypatch.setattr(platt, "MAX_STEPS", steps)  # converging in the last step is converging
    assert calibration.PlattScaling().fit(z, y).converged_
    monkeypatch.setattr(platt, "MAX_STEPS", steps - 1)
    with pytest.warns(ConvergenceWarning, match=f"PlattScaling has not converged in {steps - 1} steps") as caught:
        scaling = calibration.PlattScaling().fit(z, y)
    assert caught[0].filename == __file__
    assert (scaling.converged_, scaling.n_iter_) == (False, steps - 1)


# Isotonic and Platt


def test_isotonic_is_fitted_on_correctness(digits):
    """scikit-learn's isotonic regression, but for blocks that are all right or all wrong."""
    z, y, z_new, y_new = digits
    model = calibration.IsotonicCalibration(prior=0).fit(z, y)
    before = csoftmax.softmax(z_new, temperature=model.temperature_)
    p = model.transform(z_new)
    top = before.argmax(axis=1)
    plain = csoftmax.softmax(z, temperature=model.temperature_)
    confidence, right = plain.max(axis=1), plain.argmax(axis=1) == y
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    expected.fit(confidence, right)
    theirs, ours = expected.predict(before.max(axis=1)), p[np.arange(len(p)), top]
    known = (before.max(axis=1) <= confidence[~right].max()) & (before.max(axis=1) >= confidence[right].min())
    inner = known & (theirs > 0) & (theirs < 1)
    # Between the outermost mixed block and the certain one the line ends lower.
    mixed = (expected.y_thresholds_ > 0) & (expected.y_thresholds_ < 1)
    inner &= before.max(axis=1) <= expected.X_thresholds_[mixed].max()
    inner &= before.max(axis=1) >= expected.X_thresholds_[mixed].min()
    assert inner.any()
    assert np.array_equal(ours[inner], theirs[inner])
    above = (confidence > confidence[~right].max()).sum()
    assert ours.max() == pytest.approx(max((above + 1) / (above + 2), expected.y_thresholds_[mixed].max()), rel=1e-15)
    assert (ours > 0).all()
    assert np.allclose(p.sum(axis=1), 1)
    uncalibrated = csoftmax.softmax(z_new)
    assert metrics.expected_calibration_error(y_new, p) < metrics.expected_calibration_error(y_new, uncalibrated)
    sure = model.transform(np.array([[900.0] + [-900.0] * 9]))  # all others are 0: they share the remainder
    assert sure.sum() == pytest.approx(1)
    assert np.isfinite(sure).all()


def test_ends_of_isotonic_calibration_follow_the_rule_of_succession():
    """Two wrong rows below every right one, three right ones above every wrong one, by hand."""
    confidence = np.array([0.51, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    z = np.log(confidence) - np.log1p(-confidence)
    right = np.array([0, 0, 1, 0, 1, 1, 0, 1, 1, 1], bool)
    model = calibration.IsotonicCalibration(prior=0).fit(z, right)
    p = model.transform(z)[:, 1]
    assert p[0] == pytest.approx(1 / 4, rel=1e-15)
    assert p[2:4] == pytest.approx(1 / 2, rel=1e-15)
    assert p[4:7] == pytest.approx(2 / 3, rel=1e-15)
    assert p[7:] == pytest.approx(4 / 5, rel=1e-15)
    assert (np.diff(model.transform(np.linspace(0.01, 9, 500))[:, 1]) >= 0).all()
    weighted = calibration.IsotonicCalibration(prior=0).fit(z, right, sample_weight=[1, 1, 1, 1, 1, 1, 1, 4, 5, 1])
    assert weighted.transform(z)[-1, 1] == pytest.approx(11 / 12, rel=1e-15)


def test_ends_of_isotonic_calibration_stay_monotone():
    """A single right row above a large block that is nearly always right does not fall below it."""
    z = np.concatenate([np.full(1000, 3.0), [4.0]])
    right = np.ones(1001, bool)
    right[:10] = False
    model = calibration.IsotonicCalibration(prior=0).fit(z, right)
    assert model.transform([3.0])[0, 1] == model.transform([4.0])[0, 1] == pytest.approx(0.99, rel=1e-12)


@pytest.mark.filterwarnings("ignore:.*held-out rows:UserWarning")
def test_isotonic_where_the_remainder_is_subnormal():
    """Logit gaps from 700 on, up to infinity: rows are probabilities, whatever has underflowed."""
    four = [[2, 0, 0], [2, 0, 0], [2, 0, 0], [0, 2, 0]], [0, 0, 1, 1]
    model = calibration.IsotonicCalibration(prior=0).fit(*four)
    assert model.transform([[715.0, 0, 0]])[0].tolist() == pytest.approx([0.75, 0.125, 0.125], rel=1e-15)
    gaps = np.concatenate([np.arange(690, 760, 0.25), [1e3, 1e6, 1e300]])
    for others in ([0, 0], [0, -1], [0, -40], [0, -800], [0, -np.inf]):
        z = np.column_stack([gaps, np.full_like(gaps, others[0]), np.full_like(gaps, others[1])])
        p = model.transform(z)
        assert ((p >= 0) & (p <= 1)).all()
        assert p.sum(axis=1) == pytest.approx(1, rel=1e-15)
        assert (p[:, 1] > 0).all()
        ratio = np.exp((others[1] - others[0]) / model.temperature_)
        assert p[:, 2] == pytest.approx(p[:, 1] * ratio, rel=1e-12, abs=0)
    impossible = model.transform([[0, -np.inf, -np.inf], [0, 0, -np.inf]])
    assert impossible[0].tolist() == [1, 0, 0]
    assert impossible[1, 2] == 0


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


def log_odds(z, temperature):
    """Log-odds of every class, from probabilities in long double."""
    p = np.exp((z - z.max(axis=1, keepdims=True)).astype(np.longdouble) / temperature)
    p /= p.sum(axis=1, keepdims=True)
    others = np.stack([np.delete(p, k, axis=1).sum(axis=1) for k in range(z.shape[1])], axis=1)
    return (np.log(p) - np.log(others)).astype(float)


@pytest.mark.parametrize("classes", [2, 10])
def test_platt_without_prior_equals_sklearn(digits, classes):
    """For more than two classes, scikit-learn gets the log-odds, not the logits."""
    z, y, z_new, _ = digits
    z, y, z_new = z[:, :classes], y % classes, z_new[:, :classes]
    scaling = calibration.PlattScaling(prior=0).fit(z, y)
    ours = scaling.transform(z_new)
    if classes > 2:
        z, z_new = log_odds(z, scaling.temperature_), log_odds(z_new, scaling.temperature_)
    everything = np.arange(len(z))
    inner = FrozenEstimator(LogitsAsClassifier().fit(z, y))
    theirs = CalibratedClassifierCV(inner, method="sigmoid", cv=[(everything, everything)]).fit(z, y)
    assert np.allclose(ours, theirs.predict_proba(z_new), atol=1e-5)


@pytest.mark.parametrize("prior", [0, 1e-3, 10, 1e6])
@pytest.mark.parametrize("scale", [1e-3, 1, 1e3])
def test_platt_against_mpmath(prior, scale):
    """The gradient of the cross-entropy with the prior, or with Platt's targets, vanishes, in 40 digits."""
    rng = np.random.default_rng(0)
    z = (rng.normal(size=50) * 4 + 1) * scale
    y = (z + rng.normal(size=50) * scale > 0).astype(int)
    weights = rng.integers(1, 5, 50)
    model = calibration.PlattScaling(prior=prior).fit(z, y, sample_weight=weights)
    slope, offset = float(model.coef_[0]), float(model.intercept_[0])
    above, below = int(weights[y == 1].sum()), int(weights[y == 0].sum())
    with mpmath.workdps(40):
        targets = {1: mpmath.mpf(above + 1) / (above + 2), 0: mpmath.mpf(1) / (below + 2)} if prior == 0 else [0, 1]
        gradient = [prior * (mpmath.mpf(slope) - 1), prior * mpmath.mpf(offset)]
        scores = [mpmath.mpf(value) / model.temperature_ for value in z.tolist()]
        for score, label, weight in zip(scores, y.tolist(), weights.tolist()):
            f = mpmath.mpf(slope) * score + offset
            error = weight * (1 / (1 + mpmath.exp(-f)) - targets[label])
            gradient = [gradient[0] + error * score, gradient[1] + error]
        largest = max(map(abs, scores))
        assert abs(gradient[0]) < 1e-12 * (weights.sum() + prior) * max(1, largest)
        assert abs(gradient[1]) < 1e-12 * (weights.sum() + prior)


@pytest.mark.parametrize("kind", [calibration.PlattScaling, calibration.IsotonicCalibration])
def test_prior_leads_from_the_temperature_to_the_rows(digits, kind):
    """A huge prior gives the probabilities of the temperature, a tiny one those that the rows alone ask for."""
    z, y, z_new, _ = digits
    temperature = calibration.TemperatureScaling().fit(z, y)
    strong = kind(prior=1e12).fit(z, y)
    assert strong.temperature_ == pytest.approx(temperature.temperature_, rel=1e-12)
    assert strong.transform(z_new) == pytest.approx(temperature.transform(z_new), abs=1e-8)
    data = kind(prior=1e-9).fit(z, y).transform(z_new)
    distances = [np.abs(kind(prior=prior).fit(z, y).transform(z_new) - data).mean() for prior in (1e4, 100, 1)]
    assert distances[0] > distances[1] > distances[2]


def test_platt_log_odds_of_sure_and_impossible_classes():
    """Gaps of 0 to 1e300 and -inf: probabilities sum to 1, and the impossible classes have none."""
    z = np.array([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [1, 2, 0]] * 10)
    model = calibration.PlattScaling().fit(z, [0, 1, 2, 0] * 10)
    gaps = np.concatenate([np.linspace(0, 800, 200), [1e6, 1e300]])
    p = model.transform(np.column_stack([gaps, np.zeros_like(gaps), np.full_like(gaps, -1)]))
    assert p.sum(axis=1) == pytest.approx(1, rel=1e-14)
    assert (np.diff(p[:, 0]) >= 0).all()
    assert np.isfinite(p).all()
    inf = np.inf
    p = model.transform([[0, -inf, -inf], [0, 0, -inf], [-inf, -1e300, 1e300]])
    assert p[0].tolist() == [1, 0, 0]
    assert p[1, 2] == 0
    assert p[2].tolist() == [0, 0, 1]


@pytest.mark.filterwarnings("ignore:.*held-out rows:UserWarning")
@pytest.mark.parametrize("kind", ALL)
def test_errors_of_calibrators(kind):
    z = np.arange(12.0).reshape(4, 3)
    for logits, y, match in (
        (z[0], [0], "shape"),
        (z, [0, 1, 2], "one label for each row"),
        (z, [0, 1, 2, 3], r"y\[3\] is 3"),
        (z, [0, -1, 2, 1], r"y\[1\] is -1"),
        (z, ["a"] * 4, r"y\[0\] is 'a'; there are 1 distinct labels for 3 columns"),
        (z, [0.5, 1, 2, 0], "continuous"),
        (z, None, "requires y"),
        (np.where(z == 4, np.nan, z), [0, 1, 2, 0], r"logits\[1, 1\] is nan"),
        (np.where(z == 4, np.inf, z), [0, 1, 2, 0], r"logits\[1, 1\] is inf"),
        (np.where(z == 4, -np.inf, z), [0, 1, 2, 0], "no calibration"),
        (np.where(z < 3, -np.inf, z), [0, 1, 2, 0], "in every column"),
        (z[:0], [], "at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            kind().fit(logits, y)
    with pytest.raises(TypeError, match="logits must hold numbers"):
        kind().fit(z.astype(str), [0, 1, 2, 0])
    if "max_iter" in kind().get_params():
        with pytest.raises(TypeError, match="max_iter must be an int, got True"):
            kind(max_iter=True).fit(z, [0, 1, 2, 0])
    fitted = kind().fit(z + np.eye(4, 3), [0, 1, 2, 0])
    with pytest.raises(ValueError, match="3 columns"):
        fitted.transform(z[:, :2])
