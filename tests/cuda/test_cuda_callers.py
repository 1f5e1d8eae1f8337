"""Code that computes on CUDA: golden bits, benchmarks, training."""

import importlib
import json
import sys
import warnings

import numpy as np
import pytest
from cuda_checks import costly_dtypes
from helpers import ROOT
from tools import make_golden

import csoftmax
from csoftmax._spec.operations import CUDA_FAMILY


@costly_dtypes
def test_golden_bits(gpu, dtype):
    """The committed bits of all cases but the long rows, which other tests compare with the CPU's."""
    golden = json.loads(make_golden.FILE.read_text())
    for case, (rows, k, *_) in make_golden.CASES.items():
        if rows * k > 600:
            continue
        place = gpu.cupy.asarray
        found = {op.name: make_golden.digest(op, dtype, case, place) for op in CUDA_FAMILY}
        for kind in make_golden.LOSSES:
            found[f"cross_entropy, {kind}"] = make_golden.loss_digest(dtype, case, kind, place)
        for alpha in make_golden.SPARSE:
            found[f"sparse, alpha={alpha}"] = make_golden.sparse_digest(dtype, case, alpha, place)
        assert found == {name: golden[f"{name}/{dtype}/{case}"] for name in found}, case


@pytest.mark.parametrize(
    "op",
    ["softmax"]
    + [
        pytest.param(op, marks=pytest.mark.slow)
        for op in ("log_softmax", "cross_entropy", "topk", "sparsemax", "entmax")
    ],
)
def test_bench(gpu, op, capsys):
    from csoftmax.__main__ import main

    command = ["bench", "--device", "cuda", "--op", op, "--shapes", "4x30,2x700", "--rounds", "2"]
    assert main([*command, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [line["shape"] for line in report["cases"]] == [[4, 30], [2, 700]]
    assert all(line["gb_per_s"]["csoftmax"] > 0 and line["faster_than"]["copy"] > 0 for line in report["cases"])
    assert main(command) == 0
    assert "geometric mean" in capsys.readouterr().out


def test_bench_without_a_device(monkeypatch, capsys):
    from csoftmax.__main__ import main

    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["bench", "--device", "cuda"]) == 2
    assert "CuPy cannot be imported" in capsys.readouterr().err
    assert main(["bench", "--device", "cuda", "--op", "linear_cross_entropy"]) == 2
    assert "not linear_cross_entropy" in capsys.readouterr().err


def test_asv(gpu, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    cuda = importlib.import_module("benchmarks.cuda")
    benchmark = cuda.Cuda()
    for name in benchmark.params[0]:
        benchmark.setup(name, (4, 30))
        assert benchmark.track_bandwidth(name, (4, 30)) > 0


def test_asv_without_a_device(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.syspath_prepend(str(ROOT / "asv_bench"))
    with pytest.raises(NotImplementedError, match="CuPy"):  # asv then skips the benchmark
        importlib.import_module("benchmarks.cuda").Cuda().setup("softmax", (4, 30))


ADAMW = [{"solver": "adamw"}, {"solver": "adamw", "batch_norm": True}]


@pytest.mark.parametrize("options", [{}, *(pytest.param(o, marks=pytest.mark.slow) for o in ADAMW)], ids=str)
def test_training(gpu, options):
    """The same code on CuPy arrays gives the CPU's result within the rounding of the products."""
    from csoftmax.linear_model import SoftmaxRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)).astype(np.float32)
    y = (x @ rng.normal(size=(5, 3))).argmax(axis=1)
    w = rng.integers(0, 3, 60).astype(float)
    given = {"max_epochs": 6, "tol": 1e-9, "random_state": 0, "class_weight": "balanced", **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # six iterations are not enough
        here, there = (SoftmaxRegression(device=device, **given).fit(x, y, w) for device in (None, "cuda"))
        if gpu.model or gpu.cupy.cuda.runtime.getDeviceCount() > 1:
            other = SoftmaxRegression(device="cuda:1", **given).fit(x, y, w)  # not the current device
            assert np.allclose(other.coef_, there.coef_, rtol=1e-4, atol=1e-5)
    assert type(there.coef_) is np.ndarray
    assert np.allclose(there.coef_, here.coef_, rtol=1e-4, atol=1e-5)
    assert np.allclose(there.history_["loss"], here.history_["loss"], rtol=1e-5)
    stopped = SoftmaxRegression(device="cuda", early_stopping=True, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(stopped.fit(x, y, w).history_["validation_loss"]) == 6


def test_training_on_a_device_takes_no_sparse_data(gpu):
    import scipy.sparse as sp

    from csoftmax.linear_model import SoftmaxRegression

    with pytest.raises(TypeError, match="X is sparse"):
        SoftmaxRegression(device="cuda").fit(sp.eye_array(4).tocsr(), [0, 1, 0, 1])


@pytest.mark.parametrize("k", [2, 3])
def test_predictions_where_x_is(gpu, k):
    """Arrays of a device give arrays of that device, of the numbers that NumPy's give."""
    from csoftmax.linear_model import SoftmaxRegression

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 5)).astype(np.float32)
    y = (x @ rng.normal(size=(5, k))).argmax(axis=1)
    model = SoftmaxRegression(penalty_l2=1e-2).fit(x, y)
    there = gpu.cupy.asarray(x)
    for method in ("decision_function", "predict_proba", "predict_log_proba", "predict"):
        result, expected = getattr(model, method)(there), getattr(model, method)(x)
        assert isinstance(result, gpu.cupy.ndarray)
        assert result.dtype == expected.dtype
        assert np.allclose(result.get(), expected, rtol=1e-4, atol=1e-5)
    names = SoftmaxRegression(penalty_l2=1e-2).fit(x, np.array(["a", "b", "c"])[y])
    assert np.array_equal(names.predict(there), names.predict(x))
    with pytest.raises(ValueError, match="features"):
        model.predict(there[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        model.predict(there * np.float32(np.nan))
    with pytest.raises(csoftmax.DeviceError, match=r"X is on a CUDA device.*X\.get\(\)"):
        model.fit(there, y)
