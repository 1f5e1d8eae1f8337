"""The scripts of examples/ run, and say what their texts say."""

import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def run(name, tmp_path, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", str(ROOT / "examples" / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", **environment},
    )
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr
    return done.stdout


def test_all_are_listed():
    listed = re.findall(r"`(\w+\.py)` \|", (ROOT / "examples" / "README.md").read_text())
    assert sorted(listed) == EXAMPLES


def test_imbalance(tmp_path):
    rare = [float(x) for x in re.findall(r"of 7, 8, 9 ([\d.]+)", run("plot_imbalance.py", tmp_path))]
    assert rare[1] > rare[0]
    assert rare[2] > rare[0]


def test_smoothing_and_calibration(tmp_path):
    page = run("plot_smoothing_calibration.py", tmp_path)
    losses = {name: float(x) for name, x in re.findall(r"^(\w+) +log loss ([\d.]+)", page, re.M)}
    (plain,) = re.findall(r"smoothing  0.0: .*log loss ([\d.]+)", page)
    assert losses["TemperatureScaling"] < float(plain)


def test_ablations(tmp_path):
    run("plot_ablations.py", tmp_path)


def test_temperature(tmp_path):
    page = run("plot_temperature.py", tmp_path)
    assert "T = 0    [1. 0. 0. 0.]" in page
    assert "T = inf  [0.25 0.25 0.25 0.25]" in page


def test_thinc(tmp_path):
    pytest.importorskip("thinc", reason="the gate installs it")
    page = run("thinc_ops.py", tmp_path)
    errors = dict(re.findall(r"^(\w+): largest relative error (\S+)$", page, re.M))
    assert float(errors["csoftmax"]) < 3e-7 < float(errors["numpy"])
    assert float(re.search(r"accuracy on held-out digits: ([\d.]+)", page)[1]) > 0.95


def test_many_classes(tmp_path):
    pytest.importorskip("wordsegment", reason="the test extra has it")
    page = run("plot_many_classes.py", tmp_path, BIGRAMS="20000")
    losses = [float(x) for x in re.search(r"\[([\d. ]+)\]", page)[1].split()]
    (chance,) = re.findall(r"against ([\d.]+) at random", page)
    assert losses[1] < losses[0] < float(chance)
    assert len(re.findall(r"^\w+ +\w+ 0\.\d+, ", page, re.M)) >= 3
