"""Devices: the keyword, arguments on several of them, compilers and caches, and a host that never waits."""

from unittest import mock

import numpy as np
import pytest
from cuda_model import stand_in
from helpers import assert_same_bits, run_python

import csoftmax
from csoftmax._cuda import Unavailable, compiler, state
from csoftmax._cuda.device import choose_architecture, find_architecture
from csoftmax._spec.samples import logits


def test_device_keyword(gpu):
    x = logits((4, 30))
    expected = csoftmax.softmax(x)
    for device in ("cuda", "cuda:0"):
        got = csoftmax.softmax(x, device=device)
        assert isinstance(got, gpu.cupy.ndarray)
        assert_same_bits(got.get(), expected)
    back = csoftmax.softmax(gpu.cupy.asarray(x), device="cpu")
    assert type(back) is np.ndarray
    assert_same_bits(back, expected)
    mask = np.arange(30) % 2 == 0
    with pytest.raises(csoftmax.DeviceError, match="where is on the CPU"):
        csoftmax.softmax(gpu.cupy.asarray(x), where=mask)
    got = csoftmax.softmax(gpu.cupy.asarray(x), where=mask, device="cuda")
    assert_same_bits(got.get(), csoftmax.softmax(x, where=mask))
    with pytest.raises(csoftmax.DeviceError, match="where is a CuPy array"):
        csoftmax.softmax(x, where=gpu.cupy.asarray(mask))
    with pytest.raises(TypeError, match=r"out must be a cupy.ndarray"):
        csoftmax.softmax(gpu.cupy.asarray(x), out=np.empty_like(x))
    with pytest.raises(TypeError, match=r"out must be a numpy.ndarray"):
        csoftmax.softmax(x, out=gpu.cupy.asarray(x))
    with pytest.raises(csoftmax.DeviceError, match="no device 97"):
        csoftmax.softmax(x, device="cuda:97")
    for wrong in ("gpu", "cuda:", "cuda:x", 0):
        with pytest.raises(ValueError, match="device must be"):
            csoftmax.softmax(x, device=wrong)


def test_another_device_than_the_current_one(gpu):
    """Arrays are allocated and computed on the device of the first argument."""
    if not gpu.model and gpu.cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one device")
    x, target = logits((4, 30)), np.arange(4)
    with gpu.cupy.cuda.Device(1):
        there, labels, turned = gpu.cupy.asarray(x), gpu.cupy.asarray(target), gpu.cupy.asarray(x.T).T
        of_three = gpu.cupy.asarray(target % 3)
    for given in (there, turned):
        results = [
            csoftmax.softmax(given),
            csoftmax.logsumexp(given, keepdims=True),
            csoftmax.softmax_vjp(given, there),
            *csoftmax.topk_softmax(given, 3, normalize="full"),
            csoftmax.entmax(given),
            csoftmax.entmax_vjp(given, there),
            *csoftmax.entmax_loss_with_grad(given, labels),
            *csoftmax.entmax_loss_with_grad(given, labels, 1.0),
            *csoftmax.cross_entropy_with_grad(given, labels, upstream=2.0, weight=ones_on_second_device(gpu, 30)),
            *csoftmax.linear_cross_entropy_with_grad(given, there[:3], of_three, bias=ones_on_second_device(gpu, 3)),
        ]
        assert {result.device.id for result in results} == {1}
        assert_same_bits(results[0].get(), csoftmax.softmax(x))
    moved = csoftmax.softmax(x, device="cuda:1")
    assert moved.device.id == 1
    with pytest.raises(csoftmax.DeviceError, match="y is on CUDA device 0"):
        csoftmax.softmax_vjp(there, gpu.cupy.asarray(x))
    assert csoftmax.softmax_vjp(there, gpu.cupy.asarray(x), device="cuda:1").device.id == 1
    with pytest.raises(csoftmax.DeviceError, match="out is on CUDA device 0"):
        csoftmax.softmax(there, out=gpu.cupy.asarray(x))


def ones_on_second_device(gpu, n):
    with gpu.cupy.cuda.Device(1):
        return gpu.cupy.asarray(np.ones(n, np.float32))


def test_architectures():
    """Devices that NVRTC does not know yet run the code of their generation, or PTX."""
    supported = [75, 80, 90, 100, 120]
    assert choose_architecture("90", supported) == "sm_90"
    assert choose_architecture("86", supported) == "sm_80"
    assert choose_architecture("103", supported) == "sm_100"
    assert choose_architecture("130", supported) == "compute_120"
    assert choose_architecture("110", supported) == "compute_100"
    with pytest.raises(Unavailable, match=r"7\.5 and later, but the device has 7\.0"):
        choose_architecture("70", supported)


def test_devices_and_compilers_that_cannot_be_used(model, monkeypatch):
    for supported, message in (
        (lambda: [100, 120], r"cannot be used: NVRTC compiles for compute capability 10\.0 and later, .* has 9\.0"),
        (mock.Mock(side_effect=RuntimeError("no library")), r"NVRTC, the compiler \(no library\); .*csoftmax\[cuda13x"),
    ):
        find_architecture.cache_clear()
        monkeypatch.setattr(model.cupy.cuda.nvrtc, "getSupportedArchs", supported)
        for call in (
            lambda: csoftmax.softmax([1.0, 2.0], device="cuda"),
            lambda: csoftmax.softmax(model.cupy.empty(3)),
        ):
            with pytest.raises(csoftmax.DeviceError, match=message):
                call()
        assert not state()["available"]
    find_architecture.cache_clear()


def test_an_operation_without_kernels(model, monkeypatch):
    monkeypatch.delitem(compiler.SOURCES, "softmax")
    for x in (model.cupy.asarray(np.ones(3)), [1.0, 2.0]):
        with pytest.raises(csoftmax.DeviceError, match="softmax has no kernels for CUDA"):
            csoftmax.softmax(x, device="cuda")


def test_no_visible_device_is_not_a_missing_driver(gpu, monkeypatch):
    def count():
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(gpu.cupy.cuda.runtime, "getDeviceCount", count)
    with pytest.raises(csoftmax.DeviceError, match="CUDA_VISIBLE_DEVICES"):
        csoftmax.softmax(np.ones(2), device="cuda")


def test_nothing_waits(model):
    """All functions but `sample` only enqueue work."""
    gpu = model
    x, rng = gpu.cupy.asarray(logits((6, 40))), np.random.default_rng(0)
    y, t = gpu.cupy.asarray(csoftmax.softmax(x.get())), gpu.cupy.asarray(np.array([1, 2, -100, 3, 4, 5]))
    q, w = gpu.cupy.asarray(rng.random((6, 40), np.float32)), gpu.cupy.asarray(rng.random(40))
    mask, out, s = gpu.cupy.asarray(rng.random((6, 40)) > 0.3), gpu.cupy.empty_like(x), gpu.cupy.asarray(rng.random(6))
    wide = gpu.cupy.asarray(rng.random((50, 40), np.float32))
    long = gpu.cupy.asarray(logits((2, 3000)))
    hard = gpu.cupy.asarray(np.array([1, 2, 0, 3, 4, 5]))
    with stand_in.nothing_waits():
        for function in (csoftmax.softmax, csoftmax.log_softmax):
            function(x)
            function(x, out=out, temperature=0.5, where=mask)
            function(x, axis=0)
        csoftmax.logsumexp(x, where=mask)
        csoftmax.softmax_vjp(x, y, where=mask)
        csoftmax.log_softmax_vjp(x, y)
        for target in (t, q):
            csoftmax.cross_entropy(x, target)
            csoftmax.cross_entropy(x, target, weight=w, sample_weight=s, label_smoothing=0.1, z_loss=0.1)
            csoftmax.cross_entropy_with_grad(x, target, reduction="none", upstream=s, clip_norm=0.1, out=out)
            csoftmax.linear_cross_entropy(
                x, wide, target if target is t else gpu.cupy.asarray(soft_labels(6, 50)), bias=None
            )
            csoftmax.linear_cross_entropy_with_grad(
                x,
                wide,
                target if target is t else gpu.cupy.asarray(soft_labels(6, 50)),
                sample_weight=s,
                chunk_bytes=1000,
            )
        edges = csoftmax.Segments(segment_ids=[0, 2, 0, 1, -1, 0])
        for target in (gpu.cupy.asarray(np.zeros((3, 40), int)), q, mask):
            csoftmax.segment_cross_entropy_with_grad(x, target, segments=edges, z_loss=0.1, temperature=[1.0, 0.5, 1.0])
        csoftmax.segment_cross_entropy_with_grad(x, mask, segments=edges, positives="any", sample_weight=x[:3])
        csoftmax.segment_softmax(x, segments=edges, temperature=[1.0, 0.5, 1.0], where=mask)
        for alpha in (1.0, 1.5, 2.0, 1.2):
            csoftmax.entmax(x, alpha, where=mask)
            csoftmax.entmax_vjp(x, y, alpha)
            csoftmax.entmax_loss(x, hard, alpha)
            csoftmax.entmax_loss_with_grad(x, q, alpha, reduction="none")
        csoftmax.sparsemax(long)
        csoftmax.topk(long, 5)
        csoftmax.topk(long, 1024, largest=False)
        csoftmax.topk_softmax(x, 5, normalize="full")
        csoftmax.topk(long, 2000)
        with pytest.raises(AssertionError, match="copied to the host"):  # rows without mass raise
            csoftmax.sample(x, rng=0)


def soft_labels(rows, n):
    return np.random.default_rng(1).random((rows, n), np.float32)


def test_home_that_cannot_be_written(model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "folder"))
    x = logits((4, 30))
    assert_same_bits(csoftmax.softmax(model.cupy.asarray(x)).get(), csoftmax.softmax(x))
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_dtypes_that_are_not_taken(gpu):
    for x in (np.array([None, 1]), np.ones(3, np.longdouble), np.ones(3, complex)):
        with pytest.raises(TypeError, match="x has dtype"):
            csoftmax.softmax(x, device="cuda")


def test_errors_come_before_launches(gpu):
    x = gpu.cupy.asarray(logits((4, 30)))
    for options in ({"axis": 2}, {"temperature": -1.0}, {"out": gpu.cupy.empty((4, 29), np.float32)}):
        with pytest.raises((ValueError, IndexError)):
            csoftmax.softmax(x, **options)
    with pytest.raises(TypeError, match="where must be boolean"):
        csoftmax.softmax(x, where=x)
    assert not gpu.launches


def forget_modules():
    compiler.load_module.cache_clear()
    compiler.load_kernel.cache_clear()


def test_machine_code_is_kept(model, tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "new"))
    x = model.cupy.asarray(logits((4, 30)))
    csoftmax.softmax(x)
    (file,) = (tmp_path / "new").iterdir()
    before = file.stat().st_mtime_ns
    forget_modules()
    csoftmax.softmax(x)
    assert [f.stat().st_mtime_ns for f in (tmp_path / "new").iterdir()] == [before]
    options = compiler.options
    monkeypatch.setattr(compiler, "options", lambda *a: (*options(*a), "-DOTHER"))
    forget_modules()
    csoftmax.softmax(x)
    assert len(list((tmp_path / "new").iterdir())) == 2  # other options give other code
    forget_modules()


def test_launches_are_imported_when_they_are_used():
    """They cost more than the rest of `import csoftmax` would allow, and most processes never need them."""
    code = """
import sys, csoftmax
loaded = {name for name in sys.modules if name.startswith("csoftmax._cuda.")}
assert loaded == {"csoftmax._cuda.device"}, loaded
assert callable(csoftmax._cuda.launch_softmax) and "csoftmax._cuda.softmax" in sys.modules
assert not hasattr(csoftmax._cuda, "launch_nothing")
"""
    run_python(code)


def test_state(gpu):
    found = csoftmax.show_config("dicts")["cuda"]
    assert found["available"]
    assert found["reason"].startswith("CuPy ")


def test_foreign_byte_order_on_the_device(model):
    """CuPy reads the bytes of such an array in its own order, whatever its dtype says."""
    x = model.cupy.asarray(np.ones(3, np.dtype(np.float32).newbyteorder()))
    with pytest.raises(TypeError, match="x is a CuPy array in foreign byte order"):
        csoftmax.softmax(x)
