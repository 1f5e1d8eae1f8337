"""The benchmarks of asv_bench: each runs once, on tiny inputs, for every operation."""

import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

from csoftmax._bench.cases import LOSS_KINDS, LOSSES, SPARSE, Case
from csoftmax._spec.formats import DTYPES
from csoftmax._spec.operations import SOFTMAX_FAMILY

TINY = ("3x10 axis -1 float32", "2x5x4 axis 1 bfloat16", "17 axis 0 float64", "2x9 axis -1 float16")


def import_benchmarks(*names):
    sys.path.insert(0, str(ROOT / "asv_bench"))
    try:
        return [importlib.import_module(f"benchmarks.{name}") for name in names]
    finally:
        sys.path.remove(str(ROOT / "asv_bench"))


speed, memory, accuracy, loss, sparse, many_classes = import_benchmarks(
    "speed", "memory", "accuracy", "loss", "sparse", "many_classes"
)
CLASSES = (speed.Speed, memory.Memory, accuracy.Accuracy)


def test_every_kind_is_there():
    prefixes = {name.partition("_")[0] for kind in CLASSES for name in vars(kind)}
    assert prefixes >= {"time", "peakmem", "track"}


@pytest.mark.parametrize(
    ("kind", "op"),
    [
        *((kind, record.name) for kind in (speed.Speed, memory.Memory) for record in SOFTMAX_FAMILY),
        *((accuracy.Accuracy, name) for name in accuracy.NAMES),
    ],
)
def test_each_runs(kind, op, monkeypatch):
    assert op in kind.params[0]
    monkeypatch.setattr(accuracy.Accuracy, "sizes", (1, 17, 100))
    for second in DTYPES if kind.param_names[1] == "dtype" else TINY:
        benchmark = kind()
        benchmark.setup(op, second)
        for name, function in vars(kind).items():
            if name.startswith(("time_", "peakmem_", "track_")):
                result = function(benchmark, op, second)
                assert result is None or 0 <= result < np.inf


def test_losses_run(monkeypatch):
    assert {case.op for case in loss.CASES.values()} == set(LOSSES)
    cases = [Case("loss", "cross_entropy", (4, 7), -1, "float32", kind) for kind in LOSS_KINDS]
    cases.append(Case("loss", "linear_cross_entropy", (4, 3, 7), -1, "float32"))
    for case in cases:
        monkeypatch.setitem(loss.CASES, "tiny", case)
        benchmark = loss.Loss()
        benchmark.setup("tiny")
        assert benchmark.time_with_gradient("tiny").shape == case.shape[:2]
    for dtype in loss.LossAccuracy.params[0]:
        assert loss.LossAccuracy().track_tail(dtype) <= 4
    linear = loss.LinearMemory()
    linear.features = 8  # the time is in the products; the share does not depend on them
    linear.setup()
    assert 0 < linear.track_extra_of_all_logits() <= 1 / 8
    linear.x, linear.w, linear.labels = linear.x[:5], linear.w[:7], linear.labels[:5]
    linear.peakmem_linear()


def test_sparse_runs(monkeypatch):
    assert {case.op for case in sparse.CASES.values()} == set(SPARSE)
    for op, shape in (("topk", (4, 70, 3)), ("topk_softmax", (4, 70, 3)), ("sparsemax", (4, 7)), ("entmax", (4, 7))):
        for kind in ("plain", "ascending", "descending", "constant"):
            monkeypatch.setitem(sparse.CASES, "tiny", Case("sparse", op, shape, -1, "float32", kind))
            benchmark = sparse.Sparse()
            benchmark.setup("tiny")
            assert benchmark.time_sparse("tiny").shape == (4, shape[-1])
    for name in sparse.Sample.params[0]:
        benchmark = sparse.Sample()
        benchmark.setup(name)
        drawn = benchmark.time_sample(name)
        drawn = getattr(drawn, "indices", drawn)  # with log-probabilities
        assert drawn.shape == ((64, 5) if drawn.ndim == 2 else (64,))


def test_many_classes_run():
    training = many_classes.Training()
    training.setup(600)
    training.time_step(600)
    training.peakmem_training(600)
    assert len(training.model.history_["loss"]) == 1
    for kind in many_classes.Update.params[0]:
        update = many_classes.Update()
        update.setup(kind)
        update.time_update(kind)
        assert update.w.any()


def test_serving_runs(monkeypatch):
    """Both layers, on a tenth of the classes and fewer."""
    monkeypatch.setattr(many_classes, "CLASSES", 2000)
    benchmark = many_classes.Clustered()
    layers = benchmark.setup_cache()
    for search in benchmark.params[0]:
        benchmark.time_topk(layers, search)
    clustered, int8, x = layers
    np.testing.assert_array_equal(clustered.topk(x, 10, exact=True).indices, int8.topk(x, 10).indices)
    mapped = many_classes.MappedLayer()
    path = mapped.setup_cache()
    for is_mapped in mapped.params[0]:
        mapped.peakmem_topk(path, is_mapped)
    shutil.rmtree(os.path.dirname(path))


def test_check_results(tmp_path):
    def check():
        script = ROOT / "asv_bench" / "check_results.py"
        return subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True)

    assert check().returncode == 1
    (tmp_path / "benchmarks.json").write_text(json.dumps({"a.time_b": {}, "a.track_c": {}, "version": 2}))
    assert "measured nothing" in check().stderr
    (tmp_path / "machine").mkdir()
    results = tmp_path / "machine" / "commit.json"
    content = {"result_columns": ["result", "params"], "results": {"a.time_b": [[1.0, 2.0], []]}}
    results.write_text(json.dumps(content))
    assert "a.track_c: no results" in check().stderr
    content["results"]["a.track_c"] = [[None, 1.0], []]
    results.write_text(json.dumps(content))
    assert "a.track_c: 1 of 2 parameters failed" in check().stderr
    content["results"]["a.track_c"] = [[2.0, 1.0], []]
    results.write_text(json.dumps(content))
    done = check()
    assert done.returncode == 0
    assert "2 benchmarks, 4 results" in done.stdout


def load_publish():
    spec = importlib.util.spec_from_file_location("publish", ROOT / "asv_bench" / "publish.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "remote",
    [
        *(
            "https://example.org/owner/name",
            "https://example.org/owner/name.git\n",
            "https://user@example.org/owner/name/",
        ),
        *("git@example.org:owner/name.git", "ssh://git@example.org:22/owner/name.git", "example.org:owner/name"),
    ],
)
def test_address_of_a_remote(remote):
    assert load_publish().find_address(remote) == "https://example.org/owner/name"


@pytest.mark.parametrize("remote", ["", "/srv/csoftmax.git", "../csoftmax", "file:///srv/csoftmax", "C:/csoftmax"])
def test_folders_are_no_addresses(remote):
    assert load_publish().find_address(remote) is None


def test_published_configuration():
    """The links are added, and everything else stays; asv itself reads both."""
    publish = load_publish()
    text = (ROOT / "asv_bench" / "asv.conf.json").read_text()
    assert publish.make_config(text, None) == text
    plain, linked = (
        json.loads(re.sub(r"^\s*//.*$", "", publish.make_config(text, address), flags=re.M))
        for address in (None, "https://example.org/owner/name")
    )
    assert linked == plain | {
        "project_url": "https://example.org/owner/name",
        "show_commit_url": "https://example.org/owner/name/commit/",
    }


def test_make_asv_names_the_machine_once(tmp_path):
    """On a fresh machine `make asv` begins with `asv machine --yes`; afterwards it leaves the file alone."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    calls = tmp_path / "calls"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "asv", f"PYTHON={python}"]
    environment = {**os.environ, "HOME": str(tmp_path)}
    environment.pop("ASV_MACHINE", None)
    for words in (["machine", "run"], ["run"]):
        calls.unlink(missing_ok=True)
        subprocess.run(command, env=environment, check=True, capture_output=True)
        made = calls.read_text()
        assert re.findall(r"-m asv (\w+)", made) == words
        assert "asv_bench/check_results.py" in made
        assert made.rstrip().endswith("asv_bench/publish.py")
        (tmp_path / ".asv-machine.json").write_text("{}")
