"""The benchmarks of asv_bench: each runs once, on tiny inputs, for every operation."""

import importlib
import inspect
import json
import subprocess
import sys

import pytest
from helpers import ROOT
from ops import DTYPES, OPS

TINY = ("3x10 axis -1 float32", "2x5x4 axis 1 bfloat16", "17 axis 0 float64", "2x9 axis -1 float16")


def benchmark_modules():
    sys.path.insert(0, str(ROOT / "asv_bench"))
    try:
        return [importlib.import_module(f"benchmarks.{name}") for name in ("speed", "memory", "accuracy")]
    finally:
        sys.path.remove(str(ROOT / "asv_bench"))


CLASSES = [
    each
    for module in benchmark_modules()
    for name, each in inspect.getmembers(module, inspect.isclass)
    if each.__module__ == module.__name__
]


def test_every_kind_is_there():
    kinds = {name.partition("_")[0] for each in CLASSES for name in vars(each)}
    assert kinds >= {"time", "peakmem", "track"}


@pytest.mark.parametrize("benchmark", CLASSES)
@pytest.mark.parametrize("op", [op.name for op in OPS])
def test_each_runs(benchmark, op):
    assert op in benchmark.params[0]
    for second in DTYPES if benchmark.param_names[1] == "dtype" else TINY:
        self = benchmark()
        self.setup(op, second)
        for name, function in vars(benchmark).items():
            if name.startswith(("time_", "peakmem_", "track_")):
                result = function(self, op, second)
                assert result is None or result >= 0


def test_losses_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    loss = importlib.import_module("benchmarks.loss")
    from csoftmax._bench.cases import LOSS_KINDS, Case

    assert {case.op for case in loss.CASES.values()} == {"cross_entropy", "linear_cross_entropy"}
    cases = [Case("loss", "cross_entropy", (4, 7), -1, "float32", kind) for kind in LOSS_KINDS]
    cases.append(Case("loss", "linear_cross_entropy", (4, 3, 7), -1, "float32"))
    for case in cases:
        monkeypatch.setitem(loss.CASES, "tiny", case)
        benchmark = loss.Loss()
        benchmark.setup("tiny")
        assert benchmark.time_with_gradient("tiny").shape == case.shape[:2]
    for dtype in loss.LossAccuracy.params[0]:
        assert loss.LossAccuracy().track_tail(dtype) <= 4
    memory = loss.LinearMemory()
    memory.features = 8  # the time is in the products; the share does not depend on them
    memory.setup()
    assert 0 < memory.track_extra_of_all_logits() <= 1 / 8
    memory.peakmem_linear()


def test_sparse_runs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    sparse = importlib.import_module("benchmarks.sparse")
    from csoftmax._bench.cases import Case

    assert {case.op for case in sparse.CASES.values()} == {"topk", "topk_softmax", "sparsemax", "entmax"}
    for op, shape in (("topk", (4, 70, 3)), ("topk_softmax", (4, 70, 3)), ("sparsemax", (4, 7)), ("entmax", (4, 7))):
        for kind in ("plain", "ascending", "descending", "constant"):
            monkeypatch.setitem(sparse.CASES, "tiny", Case("sparse", op, shape, -1, "float32", kind))
            benchmark = sparse.Sparse()
            benchmark.setup("tiny")
            assert benchmark.time_sparse("tiny").shape == (4, shape[-1])
    for name in sparse.Sample.params[0]:
        benchmark = sparse.Sample()
        benchmark.setup(name)
        assert benchmark.time_sample(name).shape == (64,)


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
