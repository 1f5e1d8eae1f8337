"""Calibration errors, Brier score and curves against their definitions and scikit-learn; plots; reports."""

import itertools
import json
import pickle
import re
import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from csoftmax import calibration, metrics
from csoftmax.linear_model import SoftmaxRegression


def compute_errors(y, p, edges):
    """Expected and maximum calibration error by definition, in a loop over the bins."""
    confidence, hits = p.max(axis=1), p.argmax(axis=1) == y
    expected, largest = 0.0, 0.0
    for i, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (confidence > low) & (confidence <= high) | ((i == 0) & (confidence == low))
        if inside.any():
            gap = abs(hits[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
            largest = max(largest, gap)
    return expected, largest


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
@pytest.mark.parametrize("n_bins", [1, 2, 7, 15, 100])
def test_calibration_errors_against_their_definition(strategy, n_bins):
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
        ece, mce = compute_errors(y, p, edges)
        given = {"n_bins": n_bins, "strategy": strategy}
        assert metrics.expected_calibration_error(y, p, **given) == pytest.approx(ece, abs=1e-14)
        assert metrics.maximum_calibration_error(y, p, **given) == pytest.approx(mce, abs=1e-14)
        curve = metrics.reliability_curve(y, p, **given)
        assert curve.counts.sum() == len(p)
        assert np.array_equal(np.isnan(curve.accuracy), curve.counts == 0)
        assert len(curve.edges) == n_bins + 1


def test_confidence_zero_and_one():
    """The limits belong to bins; probabilities of shape (N,) are those of the second of two classes."""
    assert metrics.expected_calibration_error([0, 1], [0.0, 1.0]) == 0
    assert metrics.expected_calibration_error([1, 0], [0.0, 1.0]) == 1
    assert metrics.maximum_calibration_error([1, 1], [1.0, 1.0]) == 0
    # equal probabilities predict the first class
    assert metrics.expected_calibration_error([0, 0], np.zeros((2, 3))) == 1


def test_classwise_error_against_sklearn():
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(3), 500), rng.integers(0, 3, 500)
    total = 0
    for k in range(3):
        share, mean = calibration_curve(y == k, p[:, k], n_bins=10)
        counts = np.bincount(np.searchsorted(np.linspace(0, 1, 11)[1:-1], p[:, k]), minlength=10)
        total += (counts[counts > 0] / 500 * np.abs(share - mean)).sum() / 3
    assert metrics.classwise_calibration_error(y, p, n_bins=10) == pytest.approx(total, rel=1e-12)
    absent = np.column_stack([p, np.zeros(500)])  # a class that neither occurs nor is predicted
    assert metrics.classwise_calibration_error(y, absent, n_bins=10) == pytest.approx(total * 3 / 4, rel=1e-12)


def test_brier_score_against_sklearn():
    rng = np.random.default_rng(0)
    p, y, w = rng.dirichlet(np.ones(3), 80), rng.integers(0, 3, 80), rng.random(80)
    onehot = np.eye(3)[y]
    expected = float(np.sum((p - onehot) ** 2, axis=1) @ w / w.sum())
    assert metrics.brier_score(y, p, sample_weight=w) == pytest.approx(expected, rel=1e-14)
    assert metrics.brier_score(y % 2, p[:, 0]) == pytest.approx(sk.brier_score_loss(y % 2, p[:, 0]), rel=1e-14)
    assert metrics.brier_score(y, p, scale_by_half=True) == metrics.brier_score(y, p) / 2


def test_confidence_intervals():
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


def test_bools_are_the_labels_of_two_classes():
    assert metrics.expected_calibration_error([False, True], [0.0, 1.0]) == 0
    with pytest.raises(ValueError, match="y_true holds bools"):
        metrics.expected_calibration_error([False, True], np.full((2, 3), 1 / 3))


@pytest.mark.parametrize("name", list(metrics.__all__))
def test_public_address(name):
    """Functions and results are known under `csoftmax.metrics`, in which they can be pickled."""
    value = getattr(metrics, name)
    assert value.__module__ == "csoftmax.metrics"
    assert pickle.loads(pickle.dumps(value)) is value


def test_reliability_diagram(tmp_path):
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    assert metrics.plot_reliability([0, 1, 1], [0.2, 0.7, 0.9], ax=axes, name="model") is axes
    metrics.plot_reliability([0, 1, 1], [0.1, 0.6, 0.9], ax=axes, name="other")
    legend = [t.get_text() for t in axes.get_legend().get_texts()]
    assert legend.count("perfectly calibrated") == 1
    assert any(t.startswith("model: ECE ") for t in legend)
    axes.figure.savefig(tmp_path / "plot.png")


# Reports


def test_report(tmp_path):
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
    assert not re.search(r"<\d>", page)  # the names of the classes are escaped
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
    with pytest.raises(ValueError, match="not among the model's classes"):
        metrics.evaluate(model, X[:3], [0, 1, 17])


def test_report_of_other_classifiers():
    X, y = load_digits(return_X_y=True)
    model = LogisticRegression(C=0.1, max_iter=300).fit(X[::2] / 16, y[::2])
    figures = metrics.evaluate(model, X[1::2] / 16, y[1::2]).to_dict()
    assert figures["accuracy"] == model.score(X[1::2] / 16, y[1::2])


def test_report_of_a_tree():
    X, y = load_digits(return_X_y=True)
    model = DecisionTreeClassifier(max_depth=6, random_state=0).fit(X[:900], y[:900])
    assert np.isfinite(metrics.evaluate(model, X[900:], y[900:]).to_dict()["after"]["log_loss"])


def test_report_passes_logits_to_the_calibrator():
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(temperature=3.0, tol=1e-5, max_epochs=300).fit(X[:600] / 16, y[:600])
    for kind in (calibration.VectorScaling, calibration.TemperatureScaling):
        scaling = kind().fit(model.decision_function(X[600:1200] / 16), y[600:1200])
        expected = sk.log_loss(y[1200:], scaling.transform(model.decision_function(X[1200:] / 16)))
        report = metrics.evaluate(model, X[1200:] / 16, y[1200:], calibrator=scaling).to_dict()
        assert report["after"]["log_loss"] == pytest.approx(expected, rel=1e-9)
