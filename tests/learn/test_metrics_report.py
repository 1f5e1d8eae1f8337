"""Reports: figures against scikit-learn, columns of calibration, models of all kinds, pages with any class names."""

import csv
import json
import pickle
import re
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

from csoftmax import calibration, metrics
from csoftmax.__main__ import main
from csoftmax._learn import report_scores
from csoftmax._learn.report_text import order_classes
from csoftmax.linear_model import SoftmaxRegression

HOSTILE = [
    "$",
    "$$",
    "$10_$20",
    "$0-$10",
    "日本語",
    "<b>&",
    "",
    " ",
    "a\nb",
    "x" * 300,
    "\\alpha",
    "_hidden",
    "😀",
    "#2",
]


class Fixed:
    """A classifier with given probabilities, not one of scikit-learn's."""

    def __init__(self, p, classes=None):
        self.p, self.classes_ = np.asarray(p), np.arange(np.shape(p)[1]) if classes is None else np.asarray(classes)

    def predict_proba(self, X):
        return self.p


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module")
def digits():
    return load_digits(return_X_y=True)


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
    assert page.count("<svg") == 2
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
    report = metrics.evaluate(model, X[900:], y[900:], calibrator="recalibrate").to_dict()
    assert np.isfinite(report["after"]["log_loss"])
    assert report["before"]["log_loss"] == pytest.approx(sk.log_loss(y[900:], model.predict_proba(X[900:])))


def test_report_passes_logits_to_the_calibrator():
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(temperature=3.0, tol=1e-5, max_epochs=300).fit(X[:600] / 16, y[:600])
    for kind in (calibration.VectorScaling, calibration.TemperatureScaling):
        scaling = kind().fit(model.decision_function(X[600:1200] / 16), y[600:1200])
        expected = sk.log_loss(y[1200:], scaling.transform(model.decision_function(X[1200:] / 16)))
        report = metrics.evaluate(model, X[1200:] / 16, y[1200:], calibrator=scaling).to_dict()
        assert report["after"]["log_loss"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_averages_are_those_of_sklearn(seed):
    """Also with classes that are absent, never predicted, predicted but absent, and with weights."""
    rng = np.random.default_rng(seed)
    k, n = rng.integers(2, 7), rng.integers(2, 40)
    p = rng.dirichlet(np.full(k, 0.5), n)
    names = rng.permutation(np.array([f"c{i}" for i in range(k)]))
    y = names[rng.integers(0, max(1, k - seed % 3), n)]
    w = None if seed % 2 else rng.random(n)
    predicted = names[p.argmax(axis=1)]
    figures = metrics.evaluate(Fixed(p, names), np.zeros((n, 1)), y, sample_weight=w).to_dict()
    given = {"zero_division": 0, "sample_weight": w}
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted, sample_weight=w))
    for average in ("macro", "micro", "weighted"):
        expected = sk.f1_score(y, predicted, average=average, **given)
        assert figures[f"{average}_f1"] == pytest.approx(expected, rel=1e-12)
    assert figures["macro_recall"] == pytest.approx(sk.recall_score(y, predicted, average="macro", **given))
    assert figures["macro_precision"] == pytest.approx(sk.precision_score(y, predicted, average="macro", **given))
    by_class = sk.precision_recall_fscore_support(y, predicted, labels=names, **given)
    for row, *expected in zip(figures["per_class"], *by_class):
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(expected[:3], rel=1e-12)
        assert row["weight"] == pytest.approx(expected[3])
        assert row["rows"] == np.sum(y == row["class"])
    matrix = sk.confusion_matrix(y, predicted, labels=names, sample_weight=w)
    assert np.allclose(figures["confusion_matrix"], matrix)
    occurring = np.unique(y)
    if len(occurring) == 1:
        assert figures["roc_auc"] is None
    else:
        areas = [sk.roc_auc_score(y == c, p[:, list(names).index(c)], sample_weight=w) for c in occurring]
        assert figures["roc_auc"] == pytest.approx(np.mean(areas))
    order = np.argsort(names)
    loss = sk.log_loss(y, p[:, order], labels=names[order], sample_weight=w)
    assert figures["before"]["log_loss"] == pytest.approx(loss, rel=1e-9)


def test_figures_that_are_not_defined_are_dashes():
    p = np.array([[0.8, 0.1, 0.05, 0.05], [0.1, 0.8, 0.05, 0.05], [0.2, 0.1, 0.6, 0.1]])
    report = metrics.evaluate(Fixed(p), np.zeros((3, 1)), [0, 0, 0])
    rows = {line.split()[0]: line.split()[1:] for line in str(report).splitlines() if line[:2] in ("0 ", "1 ", "3 ")}
    assert rows["0"] == ["1.0000", "0.3333", "0.5000", "3"]
    assert rows["1"] == ["0.0000", "–", "0.0000", "0"]  # predicted, but it does not occur
    assert rows["3"] == ["–", "–", "–", "0"]
    figures = report.to_dict()
    assert figures["per_class"][1]["recall"] == 0  # scikit-learn's with zero_division=0
    assert figures["macro_f1"] == pytest.approx(0.5 / 3)
    assert "ROC-AUC –" in str(report)


def test_weights_are_repetitions(iris):
    X, y = iris
    model = SoftmaxRegression(temperature=2.0).fit(X[::2], y[::2])
    X, y = X[1::2], y[1::2]
    w = np.random.default_rng(0).integers(0, 4, len(y))
    ours = metrics.evaluate(model, X, y, sample_weight=w).to_dict()
    repeated = metrics.evaluate(model, np.repeat(X, w, axis=0), np.repeat(y, w)).to_dict()
    for key in ("accuracy", "macro_f1", "weighted_f1", "micro_f1", "roc_auc", "confusion_matrix", "weight"):
        assert np.allclose(ours[key], repeated[key], rtol=1e-12), key
    for one, other in zip(ours["columns"], repeated["columns"]):
        assert one.pop("name") == other.pop("name")
        for key in one:
            assert one[key] == pytest.approx(other[key], rel=1e-9), key
    assert f"75 rows of total weight {w.sum()}, 3 classes" in str(metrics.evaluate(model, X, y, sample_weight=w))
    for sample_weight in ([1.0], -w, np.full(len(y), np.nan)):
        with pytest.raises(ValueError, match="sample_weight"):
            metrics.evaluate(model, X, y, sample_weight=sample_weight)


def imbalanced(k=3, n=400, seed=0, weights=(0.85, 0.1, 0.05)):
    """A model with balanced classes, and data whose are not: every calibrator but a temperature changes labels."""
    rng = np.random.default_rng(seed)
    y = rng.choice(k, n, p=weights)
    X = rng.normal(size=(n, 4)) + 0.6 * np.eye(k, 4)[y]
    return SoftmaxRegression(class_weight="balanced").fit(X[::2], y[::2]), X[1::2], y[1::2]


SCORES = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "micro_f1", "weighted_f1", "roc_auc")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "kind", ["VectorScaling", "MatrixScaling", "DirichletCalibration", "PlattScaling", "IsotonicCalibration"]
)
def test_the_calibrated_model_is_evaluated(kind, weighted, tmp_path):
    """All figures of the predictions are those of the calibrated probabilities, those without it stand beside them."""
    model, X, y = imbalanced()
    given = getattr(calibration, kind)().fit(model.decision_function(X), y)
    weight = np.random.default_rng(1).integers(1, 4, len(y)) if weighted else None
    options = {"sample_weight": weight}
    report = metrics.evaluate(model, X, y, calibrator=given, **options)
    plain, found = metrics.evaluate(model, X, y, **options).to_dict(), report.to_dict()
    p = given.transform(model.decision_function(X))
    predicted = p.argmax(axis=1)
    assert (predicted != model.predict(X)).mean() > 0.1
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, predicted, **options))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(y, predicted, average="macro", zero_division=0, **options))
    areas = [sk.roc_auc_score(y == c, p[:, c], **options) for c in range(3)]
    assert found["roc_auc"] == pytest.approx(np.mean(areas), rel=1e-12)
    assert np.array_equal(found["confusion_matrix"], sk.confusion_matrix(y, predicted, **options))
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high
    for mistake in found["mistakes"]:
        row = mistake["row"]
        assert mistake["predicted"] == str(predicted[row]) != mistake["true"]
        assert mistake["confidence"] == p[row].max()
    assert found["uncalibrated"] == {key: plain[key] for key in (*SCORES, "accuracy_interval", "macro_f1_interval")}
    assert plain["uncalibrated"] is None
    assert json.loads(report.to_json()) == found
    lines = str(report).splitlines()
    assert lines[1].startswith(f"accuracy {found['accuracy']:.4f}   macro F1 {found['macro_f1']:.4f}")
    assert lines[2].startswith(f"without the calibrator: accuracy {plain['accuracy']:.4f}")
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"from {plain['accuracy']:.4f} without the calibrator" in page
    for key in SCORES[:4]:
        assert f">{plain[key]:.4f}</td>" in page
        assert f">{found[key]:.4f}</td>" in page
    assert '<td><span class="cs-better">▲' in page.split('id="predictions"')[1]  # larger figures are better here


def test_a_calibrator_that_changes_no_prediction_adds_no_line(tmp_path):
    model, X, y = imbalanced(2, weights=(0.5, 0.5))
    given = calibration.TemperatureScaling().fit(model.decision_function(X), y)
    report = metrics.evaluate(model, X, y, calibrator=given)
    figures, plain = report.to_dict(), metrics.evaluate(model, X, y).to_dict()
    for key in SCORES:
        assert figures[key] == figures["uncalibrated"][key] == plain[key]
    assert "without the calibrator" not in str(report)
    report.to_html(tmp_path / "page.html")
    assert "without the calibrator" not in (tmp_path / "page.html").read_text()
    assert metrics.evaluate(model, X, y, calibrator="recalibrate").to_dict()["uncalibrated"] is None


@pytest.mark.parametrize("decimals", [1, 2, 17])  # with many ties, with few, without
@pytest.mark.parametrize("weighted", [False, True, "zeros"])
def test_areas_are_those_of_sklearn(decimals, weighted, monkeypatch):
    monkeypatch.setattr(report_scores, "BLOCK_BYTES", 3 * 8 * 500)  # of three columns
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(11, 0.3), 500).round(decimals)
    labels = rng.choice(11, 500, p=np.arange(11) / 55)  # of class 0 there is no row
    weight = {False: None, True: rng.exponential(size=500), "zeros": rng.integers(0, 2, 500) * 1.0}[weighted]
    classes = np.unique(labels)
    found = report_scores.find_areas(labels, p, classes, weight)
    expected = [sk.roc_auc_score(labels == c, p[:, c], sample_weight=weight) for c in classes]
    assert np.allclose(found, expected, rtol=1e-12, atol=0)


def test_areas_of_many_classes_need_no_second():
    """One sort for each class: a call of scikit-learn for each takes 10 times as long."""
    rng = np.random.default_rng(0)
    k, n = 400, 2000
    p, labels = rng.random((n, k)), rng.permutation(np.arange(n) % k)
    times = []
    for find in (
        lambda: report_scores.find_areas(labels, p, np.arange(k), None),
        lambda: [sk.roc_auc_score(labels == c, p[:, c]) for c in range(k)],
    ):
        begin = time.process_time()
        result = find()
        times.append((time.process_time() - begin, result))
    assert np.allclose(times[0][1], times[1][1], rtol=1e-12)
    assert times[0][0] < times[1][0] / 5


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["1", "10", "11", "2"], ["1", "2", "10", "11"]),
        (["class 1", "class 10", "class 2"], ["class 1", "class 2", "class 10"]),
        (["-1", "0", "1"], ["-1", "0", "1"]),
        (["0.25", "0.5", "10.5", "2.5"], ["0.25", "0.5", "2.5", "10.5"]),
        (["high", "low"], ["high", "low"]),
        (["low", "high"], ["low", "high"]),  # of a model with its own order
        (["a" + "9" * 5000, "b"], ["a" + "9" * 5000, "b"]),
        (["", "1", "a", "a01", "a1", "日2"], ["", "1", "a", "a01", "a1", "日2"]),
    ],
)
def test_classes_are_listed_by_the_numbers_in_their_names(names, listed, tmp_path):
    k = len(names)
    p = np.full((k, k), 0.1)
    p[np.arange(k), np.arange(k)] = 1 - 0.1 * (k - 1)
    p[0] = p[0][::-1]  # the first class is taken for the last one
    report = metrics.evaluate(Fixed(p, np.array(names, object)), np.zeros((k, 1)), np.array(names, object))
    assert report.to_dict()["classes"] == names
    found = [names[i] for i in order_classes(names)]
    assert found == listed
    lines = str(report).splitlines()
    table = lines[1 + next(i for i, line in enumerate(lines) if line.startswith("class ")) :]
    assert [line[:20].strip().strip('"') for line in table] == [name[:20].strip() for name in listed]
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    heads = re.findall(r'<tr class="cs-tr"><th title="([^"]*)">', page)
    assert [head.strip("&#34;")[:39] for head in heads] == [name[:39] for name in listed]
    first, last = (listed.index(names[i]) for i in (0, -1))
    row = page.split('<tr class="cs-tr"><th title=')[1 + first]
    cells = re.findall(r'<td class="(cs-\w+)', row)
    assert cells[last] == "cs-wrong"
    assert cells.count("cs-wrong") == 1


def test_one_row_of_one_class():
    report = metrics.evaluate(Fixed([[1.0]]), np.zeros((1, 1)), [0])
    assert str(report).startswith("1 row, 1 class\n")
    figures = metrics.evaluate(Fixed(np.full((41, 41), 1 / 41)), np.zeros((41, 1)), np.arange(41))
    assert str(figures).endswith("... and 1 more class")


def test_rows_are_named(iris, tmp_path):
    X, y = iris
    report = metrics.evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
    report.to_html(tmp_path / "page.html")
    row = report.to_dict()["mistakes"][0]["row"]
    page = (tmp_path / "page.html").read_text()
    assert f"<bdi>row {row}</bdi>" in page
    assert "Rows are counted from 0" in " ".join(page.split())
    report.name_rows(lambda row: f"flower <{row}>")
    assert report.to_dict()["mistakes"][0]["place"] == f"flower <{row}>"
    report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"<bdi>flower &lt;{row}&gt;</bdi>" in page
    assert "counted" not in page.split('id="mistakes"')[1].split("</section>")[0]


def test_one_class():
    X = np.zeros((5, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = metrics.evaluate(DummyClassifier().fit(X, X[:, 0]), X, X[:, 0])
        report.to_json()
    figures = report.to_dict()
    assert (figures["roc_auc"], figures["macro_f1"], figures["confusion_matrix"]) == (None, 1, [[5]])
    assert figures["before"]["log_loss"] < 1e-15


# The columns of the calibration table


def test_one_column_without_a_temperature(iris):
    X, y = iris
    report = metrics.evaluate(SoftmaxRegression().fit(X, y), X, y)
    assert [c["name"] for c in report.to_dict()["columns"]] == ["as predicted"]
    assert report.to_dict()["after"] is None
    assert "T =" not in str(report)
    assert "calibration:" not in str(report)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: make_pipeline(StandardScaler(), m)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_columns_of_a_saved_temperature(iris, wrap, n_classes):
    X, y = iris
    X, y = X[y < n_classes], y[y < n_classes]
    hot = wrap(SoftmaxRegression()).fit(X[::2], y[::2])
    plain = hot.predict_proba(X[1::2])
    getattr(hot, "steps", [("", hot)])[-1][1].set_params(temperature=1.6)
    report = metrics.evaluate(hot, X[1::2], y[1::2])
    first, second = report.to_dict()["columns"]
    assert (first["name"], second["name"]) == ("T = 1", "as saved (T = 1.6)")
    assert "T = 1   as saved (T = 1.6)" in str(report)
    assert first["log_loss"] == pytest.approx(sk.log_loss(y[1::2], plain))
    assert second["log_loss"] == pytest.approx(sk.log_loss(y[1::2], hot.predict_proba(X[1::2])))
    assert first["ece"] == pytest.approx(metrics.expected_calibration_error(y[1::2], plain))
    assert (report.to_dict()["before"], report.to_dict()["after"]) == (first, second)


def test_recalibration_is_asked_for_and_called_that(digits):
    X, y = digits
    model = SoftmaxRegression(penalty_l2=1e-6, max_epochs=300).fit(X[:600] / 16, y[:600])
    report = metrics.evaluate(model, X[600:] / 16, y[600:], calibrator="recalibrate")
    first, second = report.to_dict()["columns"]
    assert (first["name"], second["name"]) == ("as predicted", "cross-fitted calibration")
    assert second["log_loss"] < first["log_loss"]
    assert "fitted on every other row and measured on the rest" in str(report)
    assert "no cross-fitted calibration" in str(metrics.evaluate(model, X[:1] / 16, y[:1], calibrator="recalibrate"))
    for wrong in ("temperature", calibration.TemperatureScaling, 3):
        with pytest.raises((TypeError, ValueError), match="must be a fitted calibrator"):
            metrics.evaluate(model, X / 16, y, calibrator=wrong)
    with pytest.raises(NotFittedError):
        metrics.evaluate(model, X / 16, y, calibrator=calibration.TemperatureScaling())


def test_the_class_of_the_calibrator_is_named(digits):
    X, y = digits
    model = LogisticRegression(C=0.1, max_iter=300).fit(X[:600] / 16, y[:600])
    log_p = model.predict_log_proba(X[600:1200] / 16)
    for kind in (calibration.TemperatureScaling, calibration.VectorScaling, calibration.IsotonicCalibration):
        given = kind().fit(log_p, y[600:1200])
        report = metrics.evaluate(model, X[1200:] / 16, y[1200:], calibrator=given)
        after = report.to_dict()["after"]
        assert after["name"] == kind.__name__
        assert f"{kind.__name__}" in str(report).split("calibration: ")[1]
        p = given.transform(model.predict_log_proba(X[1200:] / 16))
        assert after["ece"] == pytest.approx(metrics.expected_calibration_error(y[1200:], p))
    fewer = calibration.TemperatureScaling().fit(log_p[:, :3], np.zeros(600, int))
    with pytest.raises(ValueError, match="columns"):
        metrics.evaluate(model, X[1200:] / 16, y[1200:], calibrator=fewer)


# Models and data of all kinds


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_pipeline(StandardScaler(), SoftmaxRegression()),
        lambda: make_pipeline(StandardScaler(), LogisticRegression()),
        lambda: CalibratedClassifierCV(LinearSVC(), cv=3),
        lambda: CalibratedClassifierCV(SoftmaxRegression(), cv=3),
        lambda: GridSearchCV(SoftmaxRegression(), {"penalty_l2": [1e-3, 1e-1]}, cv=3),
        lambda: RandomForestClassifier(20, random_state=0),
        lambda: DummyClassifier(),
    ],
)
@pytest.mark.parametrize("frame", [False, True])
def test_any_classifier(make, frame, iris):
    X, y = iris
    names = np.array(["a", "b", "c"], object)[y]
    if frame:
        pd = pytest.importorskip("pandas")
        X, names = pd.DataFrame(X, columns=list("pqrs")), pd.Series(names)
    model = make().fit(X[::2], names[::2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = metrics.evaluate(model, X[1::2], names[1::2])
    figures = report.to_dict()
    assert figures["accuracy"] == pytest.approx(model.score(X[1::2], names[1::2]))
    assert figures["before"]["log_loss"] == pytest.approx(sk.log_loss(names[1::2], model.predict_proba(X[1::2])))
    assert figures["classes"] == ["a", "b", "c"]
    assert report.to_json()


def test_decisions_are_those_of_predict(iris):
    X, y = iris
    X, y = X[y > 0], y[y > 0]
    model = FixedThresholdClassifier(LogisticRegression(max_iter=1000), threshold=0.99).fit(X, y)
    assert model.score(X, y) < 0.9
    assert metrics.evaluate(model, X, y).to_dict()["accuracy"] == model.score(X, y)


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        ([0, 1, 3], ValueError, r"y\[2\] is 3, which is not among"),
        (["0", "1", "2"], ValueError, r"y\[0\] is '0', which is not among"),
        ([0, 1, None], ValueError, r"y\[2\] is None"),
        ([0, 1, np.nan], ValueError, r"y\[2\] is nan"),
        ([0, 1], ValueError, "has 3 rows, but y has 2 labels"),
        ([[0, 1, 2], [0, 1, 2]], ValueError, "y must have one axis"),
        ([], ValueError, "y is empty"),
        (np.ma.masked_array([0, 1, 2]), TypeError, "y is a masked array"),
    ],
)
def test_labels_that_do_not_fit_are_refused(iris, y, error, match):
    X, t = iris
    model = SoftmaxRegression().fit(X, t)
    with pytest.raises(error, match=match):
        metrics.evaluate(model, X[:3], y)


def test_models_and_data_that_do_not_fit_are_refused(iris):
    X, y = iris
    model = SoftmaxRegression().fit(X, y)
    with pytest.raises(NotFittedError):
        metrics.evaluate(SoftmaxRegression(), X, y)
    with pytest.raises(TypeError, match="LinearSVC lacks predict_proba"):
        metrics.evaluate(LinearSVC().fit(X, y), X, y)
    with pytest.raises(ValueError, match="NaN"):
        metrics.evaluate(model, np.where(X > 7, np.nan, X), y)
    with pytest.raises(ValueError, match="features"):
        metrics.evaluate(model, X[:, :2], y)
    for n_bins, error in ((True, TypeError), (0, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="n_bins"):
            metrics.evaluate(model, X, y, n_bins=n_bins)
    with pytest.raises(ValueError, match="sums to 2"):
        metrics.evaluate(Fixed(np.ones((3, 2))), X[:3], [0, 1, 1])
    assert metrics.evaluate(model, X, y.reshape(-1, 1)).to_dict()["rows"] == 150
    assert metrics.evaluate(model, X, y.astype(float)).to_dict()["rows"] == 150


# Text, JSON and pages


def test_forms_of_a_report(iris, tmp_path):
    X, y = iris
    report = metrics.evaluate(SoftmaxRegression(temperature=1.5).fit(X[::2], y[::2]), X[1::2], y[1::2])
    assert isinstance(report, metrics.Report)
    assert report.title is None
    report.title = "flowers <1936>"
    assert str(report).startswith("flowers <1936>\n\n75 rows, 3 classes\n")
    assert repr(report).startswith("Report('flowers <1936>', rows=75, accuracy=0.9")
    assert json.loads(report.to_json()) == report.to_dict()
    assert report.to_json(tmp_path / "report.json") is None
    assert json.loads((tmp_path / "report.json").read_text()) == report.to_dict()
    report.to_html(str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "<h1><bdi>flowers &lt;1936&gt;</bdi></h1>" in page
    assert "<title>flowers &lt;1936&gt;</title>" in page
    body = report._repr_html_()
    assert body.startswith('<div class="csoftmax-report"')
    assert "<h1><bdi>flowers &lt;1936&gt;</bdi></h1>" in body
    twin = pickle.loads(pickle.dumps(report))
    assert (twin.to_dict(), twin.title, str(twin)) == (report.to_dict(), report.title, str(report))
    assert twin._repr_html_() == body


def test_a_notebook_needs_no_matplotlib(iris, monkeypatch):
    X, y = iris
    report = metrics.evaluate(SoftmaxRegression().fit(X, y), X, y)
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    assert "<svg" not in report._repr_html_()
    assert "accuracy" in report._repr_html_()


def test_losses_have_four_decimals(iris):
    X, y = iris
    report = metrics.evaluate(SoftmaxRegression().fit(X, y), X, y)
    table = str(report).split("\n\n")[1]
    assert re.fullmatch(r" +as predicted\n(.+ +\d+\.\d{4}\n?){7}", table)


@pytest.mark.parametrize("names", [HOSTILE, ["$", "$$", "$$$"], ["", " "], ["日本", "日本語"], ["a" * 40, "a" * 41]])
@pytest.mark.parametrize("usetex", [False, True])
def test_names_of_classes_do_no_harm(names, usetex, tmp_path):
    """No formula, no warning about glyphs, no markup; also where the user's matplotlib sets all text with LaTeX."""
    import matplotlib

    rng = np.random.default_rng(0)
    k = len(names)
    p, y = rng.dirichlet(np.ones(k), 60), rng.integers(0, k, 60)
    with matplotlib.rc_context({"text.usetex": usetex}), warnings.catch_warnings():
        warnings.simplefilter("error")
        report = metrics.evaluate(Fixed(p, np.array(names, object)), np.zeros((60, 1)), np.array(names, object)[y])
        report.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 1
    assert "<b>&" not in page
    table = str(report).split("\n\n")[-1].splitlines()
    assert len(table) == k + 1
    assert json.loads(report.to_json())["classes"] == names


# The command line


@pytest.fixture
def prices(tmp_path, monkeypatch):
    pytest.importorskip("safetensors", reason="the learn extra has it; no wheel for a free-threaded CPython")
    pytest.importorskip("pyarrow", reason="the cli extra has it; no wheel for CPython 3.15 yet")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        with open(f"{name}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["u", "v", "price"])
            for i in range(90):
                u, v = rng.normal(size=2) + 1.2 * (i % 3)
                rows.writerow([f"{u:.2f}", f"{v:.2f}", ["$10_$20", "$$", "日本"][i % 3]])
    assert main(["fit", "train.csv", "--target", "price"]) == 0


def test_command(prices, capsys):
    command = ["evaluate", "model.safetensors", "test.csv", "--target", "price"]
    capsys.readouterr()
    assert main([*command, "--html", "page.html"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("price: model.safetensors on test.csv\n")
    assert "as predicted" in text
    assert "calibrat" not in text
    page = Path("page.html").read_text()
    assert "<h1><bdi>price: model.safetensors on test.csv</bdi></h1>" in page
    assert "日本" in page
    assert main([*command, "--recalibrate", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["title"] == "price: model.safetensors on test.csv"
    assert figures["after"]["name"] == "cross-fitted calibration"


def test_command_after_calibrate(prices, capsys):
    model = SoftmaxRegression.load("model.safetensors")
    names = model.feature_names_in_
    model.set_params(temperature=1.7).feature_names_in_ = names
    model.save("hot.safetensors")
    assert main(["evaluate", "hot.safetensors", "test.csv", "--target", "price", "--html", "page.html"]) == 0
    text = capsys.readouterr().out
    assert "T = 1   as saved (T = 1.7)" in text
    assert "as saved (T = 1.7)" in Path("page.html").read_text()


def test_a_calibrator_gets_its_own_columns():
    """Logits go to a calibrator in the order of its classes, and classes that are not the model's are refused."""
    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression(penalty_l2=0.1).fit(X, y)
    z, order = model.decision_function(X), [2, 0, 1]
    expected = metrics.evaluate(model, X, y, calibrator=calibration.VectorScaling().fit(z, y)).to_dict()["after"]
    mixed = calibration.VectorScaling().fit(z[:, order], y, classes=order)
    found = metrics.evaluate(model, X, y, calibrator=mixed).to_dict()["after"]
    assert found["log_loss"] == pytest.approx(expected["log_loss"], rel=1e-6)
    names = np.array(["x", "y", "z"])
    foreign = calibration.VectorScaling().fit(z, names[y])
    with pytest.raises(ValueError, match=r"fitted to the classes \['x', 'y', 'z'\], but those of the model are \[0, 1"):
        metrics.evaluate(model, X, y, calibrator=foreign)
    named = SoftmaxRegression(penalty_l2=0.1).fit(X, names[y])
    for numbers in (y, y.astype(np.float64)):
        by_number = calibration.VectorScaling().fit(z, numbers)  # these stand for the columns
        found = metrics.evaluate(named, X, names[y], calibrator=by_number).to_dict()["after"]
        assert found["log_loss"] == pytest.approx(expected["log_loss"], rel=1e-6)


def test_numbers_of_rows_that_differ_are_those_of_x_and_y():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=r"predict_proba\(X\) has 150 rows, but y has 149 labels"):
        metrics.evaluate(SoftmaxRegression().fit(X, y), X, y[:-1])
