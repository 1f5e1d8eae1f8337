"""Calibration against scikit-learn and plain definitions, on real logits; metrics at their edges; reports."""

import itertools
import json
import math
import re
import warnings

import numpy as np
import pytest
from scipy import optimize, stats
from sklearn import metrics as sk
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

import csoftmax
from csoftmax import calibration, metrics
from csoftmax.class_weight import effective_number, inverse_frequency
from csoftmax.linear_model import SoftmaxRegression

SCALINGS = (
    calibration.TemperatureScaling,
    calibration.VectorScaling,
    calibration.MatrixScaling,
    calibration.DirichletCalibration,
)
ALL = (*SCALINGS, calibration.IsotonicCalibration, calibration.PlattScaling)


def logits_of_digits(seed):
    """An overconfident model's logits on two held-out parts."""
    X, y = load_digits(return_X_y=True)
    a, rest, y_a, y_rest = train_test_split(X / 16, y, test_size=0.6, random_state=seed)
    b, c, y_b, y_c = train_test_split(rest, y_rest, test_size=0.5, random_state=seed)
    model = SoftmaxRegression(penalty_l2=1e-7, max_epochs=500, tol=1e-6).fit(a, y_a)
    return model.decision_function(b), y_b, model.decision_function(c), y_c


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For scikit-learn and BLAS: several thread pools on few CPUs wait for each other."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module", params=[0, 1, 2])
def digits(request):
    return logits_of_digits(request.param)


def nll(p, y):
    return float(-np.log(p[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize("kind", SCALINGS)
def test_held_out_calibration_is_better(digits, kind):
    z, y, z_new, y_new = digits
    scaling = kind().fit(z, y)
    p = scaling.transform(z_new)
    before = csoftmax.softmax(z_new)
    assert np.allclose(p.sum(axis=1), 1)
    assert scaling.converged_
    assert nll(p, y_new) < nll(before, y_new)
    assert metrics.expected_calibration_error(y_new, p) < metrics.expected_calibration_error(y_new, before)
    losses = [note["loss"] for note in scaling.history_]
    assert losses[-1] <= losses[0]
    assert len(losses) >= scaling.n_iter_ > 0
    assert nll(scaling.transform(z), y) <= nll(csoftmax.softmax(z), y)
    assert np.array_equal(kind().fit_transform(z, y), scaling.transform(z))


def test_temperature_is_the_optimum(digits):
    z, y, _, _ = digits
    scaling = calibration.TemperatureScaling().fit(z, y)
    loss = lambda log_beta: float(csoftmax.cross_entropy(z, y, temperature=math.exp(-log_beta)))  # noqa: E731
    best = optimize.minimize_scalar(loss, bounds=(-10, 10), method="bounded", options={"xatol": 1e-12})
    assert scaling.temperature_ == pytest.approx(math.exp(-best.x), rel=1e-6)
    assert loss(-math.log(scaling.temperature_)) <= best.fun * (1 + 1e-13)
    assert scaling.n_iter_ <= 15
    assert scaling.history_[-1]["gradient_norm"] < 1e-12
    assert np.array_equal(scaling.transform(z), csoftmax.softmax(z, temperature=scaling.temperature_))


def test_temperature_ends_with_the_digits():
    """Once the derivative is a rounding error its sign means nothing: 8 of these 20 used to go on for 40 iterations."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        z = 3 * rng.standard_normal((60, 4))
        y = np.array([rng.choice(4, p=p) for p in csoftmax.softmax(z, temperature=2.0)])
        scaling = calibration.TemperatureScaling().fit(z, y)
        assert scaling.converged_
        assert scaling.n_iter_ <= 12, seed


def test_temperature_of_sklearn(digits):
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
    nothing = calibration.TemperatureScaling().fit(np.zeros((5, 3)), [0, 1, 2, 0, 1])
    assert nothing.temperature_ == 1
    certain = np.array([[0, -np.inf], [0.0, 1.0], [1.0, 0.0], [1.0, 0]])
    scaling = calibration.TemperatureScaling().fit(certain, [0, 1, 1, 0])
    assert math.isfinite(scaling.temperature_)
    assert scaling.transform(certain)[0].tolist() == [1, 0]
    one = calibration.TemperatureScaling().fit(np.zeros((3, 1)), [0, 0, 0])
    assert one.transform(np.ones((2, 1))).tolist() == [[1], [1]]


def test_matrix_scaling_is_a_penalised_regression(digits):
    """Without penalties on the diagonal and with tiny ones elsewhere, scikit-learn's optimum on the same features."""
    z, y, _, _ = digits
    x = z[:, :4]
    labels = y % 4
    ours = calibration.MatrixScaling(penalty_off_diagonal=0, penalty_diagonal=0, penalty_intercept=0).fit(x, labels)
    theirs = LogisticRegression(C=1e9, solver="newton-cholesky", tol=1e-10).fit(x / ours.temperature_, labels)
    assert np.allclose(ours.transform(x), theirs.predict_proba(x / ours.temperature_), atol=1e-4)


@pytest.mark.parametrize("kind", SCALINGS[1:])
def test_gradients_of_the_penalties(kind):
    rng = np.random.default_rng(0)
    coef, b = rng.normal(size=(4, 4)), rng.normal(size=4)
    penalty = calibration._odir(4, 3.0, 2.0, 5.0)
    _, of_coef, of_b = penalty(coef, b)
    for i in range(4):
        for parameter, gradient in ((coef, of_coef), (b, of_b)):
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
    sure = model.transform(np.array([[900.0] + [-900.0] * 9]))  # all others are 0: they share what is left
    assert sure.sum() == pytest.approx(1)
    assert np.isfinite(sure).all()


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
    fitted = kind().fit(z + np.eye(4, 3), [0, 1, 2, 0])
    with pytest.raises(ValueError, match="3 columns"):
        fitted.transform(z[:, :2])


def test_convergence_is_reported(digits):
    z, y, _, _ = digits
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        scaling = calibration.MatrixScaling(max_iter=2).fit(z, y)
    assert not scaling.converged_
    assert [note["iteration"] for note in scaling.history_] == [0, 1, 2]


# Metrics


def plain_ece(y, p, edges):
    """By definition, a loop over the bins."""
    confidence, hits = p.max(axis=1), p.argmax(axis=1) == y
    total, worst = 0.0, 0.0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence > low) & (confidence <= high) | ((i == 0) & (confidence == low))
        if inside.any():
            gap = abs(hits[inside].mean() - confidence[inside].mean())
            total += inside.mean() * gap
            worst = max(worst, gap)
    return total, worst


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("n_bins", [1, 2, 7, 15, 100])
def test_ece_is_its_definition(strategy, n_bins):
    rng = np.random.default_rng(n_bins)
    for p in (
        rng.dirichlet(np.ones(4), 200),
        rng.dirichlet(np.full(4, 0.05), 200),  # many certain rows
        np.eye(4)[rng.integers(0, 4, 50)],  # confidence 1
        np.full((30, 4), 0.25),
        np.round(rng.dirichlet(np.ones(4), 300) * 10) / 10,  # on the edges of the bins
        rng.dirichlet(np.ones(1), 20),  # one class
    ):
        y = rng.integers(0, p.shape[1], len(p))
        edges = np.linspace(0, 1, n_bins + 1)
        if strategy == "quantile":
            edges = np.quantile(p.max(axis=1), edges)
            edges[0], edges[-1] = 0, 1
        ece, mce = plain_ece(y, p, edges)
        given = {"n_bins": n_bins, "strategy": strategy}
        assert metrics.expected_calibration_error(y, p, **given) == pytest.approx(ece, abs=1e-14)
        assert metrics.maximum_calibration_error(y, p, **given) == pytest.approx(mce, abs=1e-14)
        curve = metrics.reliability_curve(y, p, **given)
        assert curve.counts.sum() == len(p)
        assert np.array_equal(np.isnan(curve.accuracy), curve.counts == 0)
        assert len(curve.edges) == n_bins + 1


def test_confidence_zero_and_one():
    """Inside the bins: (N,) probabilities of the second of two classes."""
    assert metrics.expected_calibration_error([0, 1], [0.0, 1.0]) == 0
    assert metrics.expected_calibration_error([1, 0], [0.0, 1.0]) == 1
    assert metrics.maximum_calibration_error([1, 1], [1.0, 1.0]) == 0
    assert (
        metrics.expected_calibration_error([0, 0], np.zeros((2, 3))) == 1
    )  # all of it 0: predicted the first, confidence 0


def test_classwise_and_curve_against_sklearn():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 500), rng.integers(0, 3, 500)
    total = 0
    for k in range(3):
        share, mean = calibration_curve(y == k, p[:, k], n_bins=10)
        counts = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], p[:, k]), minlength=10)
        total += (counts[counts > 0] / 500 * np.abs(share - mean)).sum() / 3
    assert metrics.classwise_calibration_error(y, p, n_bins=10) == pytest.approx(total, rel=1e-12)
    absent = np.column_stack([p, np.zeros(500)])  # a class that never occurs and never is predicted
    assert metrics.classwise_calibration_error(y, absent, n_bins=10) == pytest.approx(total * 3 / 4, rel=1e-12)


def test_brier_against_sklearn():
    rng = np.random.default_rng(0)
    p, y, w = rng.dirichlet(np.ones(3), 80), rng.integers(0, 3, 80), rng.random(80)
    onehot = np.eye(3)[y]
    expected = float(np.sum((p - onehot) ** 2, axis=1) @ w / w.sum())
    assert metrics.brier_score(y, p, sample_weight=w) == pytest.approx(expected, rel=1e-14)
    assert metrics.brier_score(y % 2, p[:, 0]) == pytest.approx(sk.brier_score_loss(y % 2, p[:, 0]), rel=1e-14)
    assert metrics.brier_score(y, p, scale_by_half=True) == metrics.brier_score(y, p) / 2


def test_intervals():
    y, p = [1, 1, 1, 0, 0], [0.9] * 5
    curve = metrics.reliability_curve(y, p, n_bins=5, confidence_level=0.9)
    exact = stats.binomtest(3, 5).proportion_ci(0.9)
    assert curve.lower[-1] == pytest.approx(exact.low)
    assert curve.upper[-1] == pytest.approx(exact.high)
    edge = metrics.reliability_curve([1, 1], [0.9, 0.9], n_bins=5)
    assert edge.upper[-1] == 1
    assert 0 < edge.lower[-1] < 1
    assert np.isnan(edge.lower[0])


def test_labels_and_weights():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 60), rng.integers(0, 3, 60)
    names = np.array(["b", "a", "c"])
    for f in (
        metrics.expected_calibration_error,
        metrics.maximum_calibration_error,
        metrics.classwise_calibration_error,
        metrics.brier_score,
    ):
        assert f(names[y], p, labels=names) == f(y, p)
        w = rng.integers(0, 3, 60)
        assert f(y, p, sample_weight=w) == pytest.approx(f(np.repeat(y, w), np.repeat(p, w, axis=0)), rel=1e-12)


@pytest.mark.parametrize(
    ("y", "p", "options", "match"),
    [
        ([[0, 1]], [0.5], {}, "labels come first"),
        ([0, 3], np.full((2, 3), 1 / 3), {}, "3"),
        ([0, -1], np.full((2, 3), 1 / 3), {}, "-1"),
        ([0, 1], [[1.5, -0.5], [0.5, 0.5]], {}, r"y_prob\[0, 0\]"),
        ([0, 1], [[np.nan, 1], [0.5, 0.5]], {}, "nan"),
        ([0, 1], np.full((3, 2), 0.5), {}, "shape"),
        ([], np.zeros((0, 2)), {}, "empty"),
        ([0, 1], np.full((2, 2), 0.5), {"n_bins": 0}, "n_bins"),
        ([0, 1], np.full((2, 2), 0.5), {"strategy": "x"}, "strategy"),
        ([0, 1], np.full((2, 2), 0.5), {"labels": [0]}, "labels"),
        ([0, 2], np.full((2, 2), 0.5), {"labels": [0, 1]}, "not in labels"),
        ([0, 1], np.full((2, 2), 0.5), {"sample_weight": [0, 0]}, "sample_weight"),
    ],
)
def test_errors_of_metrics(y, p, options, match):
    with pytest.raises(ValueError, match=match):
        metrics.expected_calibration_error(y, p, **options)
    with pytest.raises(TypeError, match="y_true"):
        metrics.expected_calibration_error(["a", "b"], [0.5, 0.5])


def test_plot(tmp_path):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert metrics.plot_reliability([0, 1, 1], [0.2, 0.7, 0.9], ax=axes, name="model") is axes
    metrics.plot_reliability([0, 1, 1], [0.1, 0.6, 0.9], ax=axes, name="other")
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend.count("perfectly calibrated") == 1
    assert any(t.startswith("model: ECE ") for t in legend)
    axes.figure.savefig(tmp_path / "plot.png")


# Reports


def test_report(tmp_path, digits):
    X, y = load_digits(return_X_y=True)
    names = np.array([f"<{d}>" for d in range(10)])
    model = SoftmaxRegression(max_epochs=30, tol=1e-2).fit(X[:900] / 16, names[y[:900]])
    X_new, y_new = X[900:] / 16, names[y[900:]]
    report = metrics.evaluate(model, X_new, y_new)
    figures = report.to_dict()
    assert json.loads(json.dumps(figures)) == figures
    predicted = model.predict(X_new)
    assert figures["accuracy"] == sk.accuracy_score(y_new, predicted)
    assert figures["macro_f1"] == pytest.approx(sk.f1_score(y_new, predicted, average="macro"))
    assert figures["weighted_f1"] == pytest.approx(sk.f1_score(y_new, predicted, average="weighted"))
    p = model.predict_proba(X_new)
    assert figures["roc_auc"] == pytest.approx(sk.roc_auc_score(y_new, p, multi_class="ovr"))
    assert figures["before"]["log_loss"] == pytest.approx(sk.log_loss(y_new, p))
    assert figures["before"]["ece"] == pytest.approx(
        metrics.expected_calibration_error(y_new, p, labels=model.classes_)
    )
    assert np.array_equal(figures["confusion_matrix"], sk.confusion_matrix(y_new, predicted))
    assert f"accuracy {figures['accuracy']:.4f}" in str(report)
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "&lt;3&gt;" in page
    assert not re.search(r"<\d>", page)  # names of classes are escaped
    given = calibration.TemperatureScaling().fit(model.decision_function(X_new), y[900:])
    assert (
        metrics.evaluate(model, X_new, y_new, calibrator=given).to_dict()["after"]["log_loss"]
        <= figures["before"]["log_loss"]
    )


def test_report_with_classes_that_do_not_occur():
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(max_epochs=30, tol=1e-2).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures = metrics.evaluate(model, X[y < 2], y[y < 2]).to_dict()
        assert len(figures["per_class"]) == 10
        assert 0 < figures["roc_auc"] <= 1
        assert metrics.evaluate(model, X[y == 1], y[y == 1]).to_dict()["roc_auc"] is None
        assert metrics.evaluate(model, X[:1], y[:1]).to_dict()["rows"] == 1
    with pytest.raises(ValueError, match="has not seen"):
        metrics.evaluate(model, X[:3], [0, 1, 17])


def test_report_of_other_classifiers():
    X, y = load_digits(return_X_y=True)
    model = LogisticRegression(C=0.1, max_iter=300).fit(X[::2] / 16, y[::2])
    figures = metrics.evaluate(model, X[1::2] / 16, y[1::2]).to_dict()
    assert figures["accuracy"] == model.score(X[1::2] / 16, y[1::2])


# Class weights


def test_inverse_frequency():
    y = [0, 0, 0, 2, 2, 3]
    assert np.allclose(inverse_frequency(y), [6 / 12, 0, 6 / 8, 6 / 4])
    assert np.allclose(inverse_frequency(y, 5, "n_over_n"), [2, 0, 3, 6, 0])
    assert np.allclose(inverse_frequency(y, normalize="max_over_n"), [1, 0, 1.5, 3])
    from sklearn.utils.class_weight import compute_class_weight

    full = np.array([0, 1, 1, 2, 2, 2])
    assert np.allclose(inverse_frequency(full), compute_class_weight("balanced", classes=np.arange(3), y=full))
    assert inverse_frequency([], n_classes=2).tolist() == [0, 0]


def test_effective_number():
    y = np.repeat([0, 1, 2], [1, 50, 100_000])
    for beta in (0, 0.5, 0.999, 0.9999999, 1):
        w = effective_number(y, beta, n_classes=4)
        assert w.sum() == pytest.approx(4)
        assert w[3] == 0
    from mpmath import mp, mpf

    with mp.workdps(50):
        beta = mpf(0.9999999)
        raw = [(1 - beta) / (1 - beta**n) for n in (1, 50, 100_000)]
        exact = [float(r / sum(raw) * 3) for r in raw]
    assert np.allclose(effective_number(y, 0.9999999), exact, rtol=1e-14)
    assert np.allclose(effective_number(y, 0), 1)
    assert np.allclose(effective_number(y, 1), inverse_frequency(y) / inverse_frequency(y).sum() * 3)


@pytest.mark.parametrize("f", [inverse_frequency, effective_number])
def test_errors_of_class_weights(f):
    for y, options, error in (
        ([0, -1], {}, ValueError),
        ([0, 3], {"n_classes": 3}, ValueError),
        ([0.5], {}, TypeError),
        (["a"], {}, TypeError),
        ([[0]], {}, ValueError),
        ([], {}, ValueError),
        ([0], {"n_classes": 0}, ValueError),
    ):
        with pytest.raises(error):
            f(y, **options)
    with pytest.raises(ValueError, match="normalize"):
        inverse_frequency([0], normalize="x")
    for beta in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="beta"):
            effective_number([0], beta)


def test_weights_are_those_of_cross_entropy():
    y = np.array([0, 0, 0, 1])
    x = np.random.default_rng(0).normal(size=(4, 3))
    for weight in (inverse_frequency(y, 3), effective_number(y, n_classes=3)):
        assert np.isfinite(csoftmax.cross_entropy(x, y, weight=weight))


# Found by review


def test_isotonic_rows_add_up():
    z = np.array([[60.0, 0, 0, 0]] * 10 + [[0.0, 0, 0, 0]] * 4)
    model = calibration.IsotonicCalibration().fit(z, [0] * 6 + [1] * 4 + [0, 1, 2, 3])
    sure = model.transform([[0, -36.5, -36.5, -36.5], [0, -37.2, -37.5, -38.0], [0, -800, -800, -900.0]])
    assert np.allclose(sure.sum(axis=1), 1, rtol=1e-12)


@pytest.mark.parametrize("kind", ALL)
def test_low_logits_are_logits(digits, kind):
    z, y, _, _ = digits
    there = kind().fit(z - 5e4, y).transform(z - 5e4)
    assert nll(there, y) < nll(csoftmax.softmax(z), y) + 0.1


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


def test_a_report_gives_the_calibrator_what_it_was_fitted_on(digits):
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(temperature=3.0, tol=1e-5, max_epochs=300).fit(X[:600] / 16, y[:600])
    for kind in (calibration.VectorScaling, calibration.TemperatureScaling):
        scaling = kind().fit(model.decision_function(X[600:1200] / 16), y[600:1200])
        expected = sk.log_loss(y[1200:], scaling.transform(model.decision_function(X[1200:] / 16)))
        report = metrics.evaluate(model, X[1200:] / 16, y[1200:], calibrator=scaling).to_dict()
        assert report["after"]["log_loss"] == pytest.approx(expected, rel=1e-9)


def test_report_of_a_tree():
    from sklearn.tree import DecisionTreeClassifier

    X, y = load_digits(return_X_y=True)
    model = DecisionTreeClassifier(max_depth=6, random_state=0).fit(X[:900], y[:900])
    assert np.isfinite(metrics.evaluate(model, X[900:], y[900:]).to_dict()["after"]["log_loss"])
