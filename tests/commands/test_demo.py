"""``python -m csoftmax demo``: what it prints is measured here again, and its rows are kept apart."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

import csoftmax
from csoftmax.__main__ import main
from csoftmax._cli import demo
from csoftmax.metrics import expected_calibration_error


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def page(folder):
    """The output of the demo in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "csoftmax", "demo"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # no warning, and no progress without a terminal
    return done.stdout


@pytest.fixture(scope="module")
def lines(page):
    return {line[:28].strip(): line[29:] for line in page.splitlines()}


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits()


@pytest.fixture(scope="module")
def model(digits):
    return demo.make_model("balanced").fit(digits.x, digits.labels)


def test_rows_are_kept_apart(digits):
    """No image is in two of the parts; the images of the data set are all different."""
    parts = [{image.tobytes() for image in x} for x in (digits.x, digits.x_calibration, digits.x_test)]
    assert sum(map(len, parts)) == len(set.union(*parts))
    rare = digits.labels >= demo.FIRST_RARE_CLASS
    assert 0 < rare.sum() < len(rare) / 10


def test_each_part_is_used_for_its_purpose(digits, model, monkeypatch, capsys):
    """The temperature is fitted on the calibration rows alone, and probabilities never go into a calibrator."""
    from csoftmax.calibration import TemperatureScaling

    given = {}
    fit, transform = TemperatureScaling.fit, TemperatureScaling.transform
    monkeypatch.setattr(TemperatureScaling, "fit", lambda self, z, y: given.update(fit=(z, y)) or fit(self, z, y))
    monkeypatch.setattr(TemperatureScaling, "transform", lambda self, z: given.update(use=z) or transform(self, z))
    demo.show_calibration(digits, model)
    assert np.array_equal(given["fit"][0], model.decision_function(digits.x_calibration))
    assert np.array_equal(given["fit"][1], digits.labels_calibration)
    assert np.array_equal(given["use"], model.decision_function(digits.x_test))
    assert capsys.readouterr().out.startswith("calibrated ")


def test_divisions_are_repeated(monkeypatch, capsys):
    """The means are those of as many divisions, each with its own three parts."""
    seen, load_digits = [], demo.load_digits
    monkeypatch.setattr(demo, "DIVISIONS", 2)
    monkeypatch.setattr(demo, "load_digits", lambda seed: seen.append(seed) or load_digits(seed))
    demo.repeat_calibration()
    assert seen == [0, 1]
    expected = []
    for seed in (0, 1):
        digits = load_digits(seed)
        model = demo.make_model("balanced").fit(digits.x, digits.labels)
        _, before, after = demo.calibrate(digits, model)
        expected.append([log_loss(digits.labels_test, p) for p in (before, after)])
    (pair,) = re.findall(r"log loss (0\.\d+) -> (0\.\d+)", capsys.readouterr().out)
    assert np.allclose(np.array(pair, float), np.mean(expected, axis=0), atol=1e-4)


def test_figures(lines, digits, model):
    """Accuracy, losses and errors are those that scikit-learn's functions find."""
    accuracy, loss = map(float, re.findall(r"accuracy (0\.\d+), log loss (0\.\d+)", lines["csoftmax, balanced"])[0])
    p = model.predict_proba(digits.x_test)
    assert accuracy == pytest.approx(np.mean(p.argmax(axis=1) == digits.labels_test), abs=1e-4)
    assert loss == pytest.approx(log_loss(digits.labels_test, p), abs=1e-4)
    before, after = map(float, re.findall(r"0\.\d+", lines["log loss"])[:2])
    assert before == loss
    assert after < before
    before, after = map(float, re.findall(r"0\.\d+", lines["ECE"])[:2])
    assert before == pytest.approx(expected_calibration_error(digits.labels_test, p), abs=1e-4)
    before, after = zip(
        *(map(float, pair) for pair in re.findall(r"(0\.\d+) -> (0\.\d+)", lines["mean of 10 divisions"]))
    )
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]
    recalls = [float(lines[f"class weights {w}"].split()[-1]) for w in ("none", "balanced")]
    assert recalls[0] < recalls[1]
    assert "(the limit)" not in lines["class weights none"] + lines["class weights balanced"]
    errors = list(map(float, re.findall(r"([\d.]+) ULP", lines["error of softmax, float32"])))
    assert errors[0] <= 3 < errors[1]
    assert re.search(
        r"µs for 450 rows of 10; SciPy [\d.]+ µs, [\d.]+ times as long$", lines["speed of softmax, float32"]
    )


def test_scikit_learn_solves_the_same_problem(lines, digits):
    """Its objective is ours: it reaches ours within its tolerance, and not a lower one; so is that found by hand."""
    ours, theirs = (
        float(re.search(r"objective (0\.\d+)", lines[name])[1])
        for name in ("csoftmax, balanced", "scikit-learn, the same")
    )
    assert ours <= theirs < ours * 1.01
    model, by_hand = map(float, re.findall(r"0\.\d{8}", lines["the same by hand"]))
    assert model == pytest.approx(by_hand, rel=1e-5)
    # the gradient of scikit-learn's objective, C times the sum of losses and half the squares, vanishes at our model
    balanced = demo.make_model("balanced").fit(digits.x, digits.labels)
    each = compute_sample_weight("balanced", digits.labels)
    excess = balanced.predict_proba(digits.x) - np.eye(10)[digits.labels]
    gradient = (each[:, None] * excess).T @ digits.x / (demo.PENALTY_L2 * len(digits.x)) + balanced.coef_
    assert np.abs(gradient * demo.PENALTY_L2).max() < 3 * demo.TOLERANCE


def test_range_of_the_ece_of_a_calibrated_model():
    """Labels drawn by NumPy from the same probabilities give the same range, and it shrinks with more rows."""
    rng = np.random.default_rng(1)
    p = rng.dirichlet([0.5] * 5, 300)
    p[0] = [1, 0, 0, 0, 0]
    p /= p.sum(axis=1, keepdims=True)
    errors = [
        expected_calibration_error((rng.random((300, 1)) > np.cumsum(p, axis=1)[:, :-1]).sum(axis=1), p)
        for _ in range(400)
    ]
    low, high = demo.imagine_errors(p)
    assert low == pytest.approx(np.quantile(errors, 0.05), abs=0.006)
    assert high == pytest.approx(np.quantile(errors, 0.95), abs=0.006)
    assert demo.imagine_errors(np.tile(p, (20, 1)))[1] < high / 3


def test_settings_do_not_depend_on_defaults():
    given = demo.make_model("balanced").get_params()
    assert given["penalty_l2"] == demo.PENALTY_L2
    assert given["tol"] == demo.TOLERANCE
    assert given["class_weight"] == "balanced"


def test_page(page, folder):
    html = (folder / "csoftmax-demo.html").read_text(encoding="utf-8")
    assert "Handwritten digits: 450 test images" in html
    assert "<svg" in html
    for name in ("reliability diagram", "confusion", "calibration"):
        assert name in html.lower()
    assert page.splitlines()[-1].split() == ["page", "csoftmax-demo.html"]


def test_without_a_page(tmp_path, monkeypatch, capsys):
    """No plot needs no matplotlib, and no bar needs no tqdm."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "FIT_ROUNDS", 1)
    before = csoftmax.get_num_threads()
    assert main(["demo", "--no-plot"]) == 0
    assert "class weights balanced" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
    assert csoftmax.get_num_threads() == before


@pytest.mark.parametrize(
    ("module", "package"),
    [("scipy.special", "scipy"), ("sklearn.datasets", "scikit-learn"), ("matplotlib", "matplotlib")],
)
def test_missing_packages_are_named(module, package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert f"this needs {package}," in message
    assert "pip install 'csoftmax[demo]'" in message
