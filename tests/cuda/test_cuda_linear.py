"""Cross-entropy of a linear layer on CUDA: the CPU's results within the rounding of the products."""

import ml_dtypes
import numpy as np
import pytest
from cuda_checks import on_device
from helpers import assert_same_bits

import csoftmax
from csoftmax._spec.samples import logits


def check_linear(gpu, dtype, soft=False, chunk_bytes=None, **options):
    rng = np.random.default_rng(5)
    rows, features, classes = 23, 17, 301
    x, w = logits((rows, features), dtype, 1), logits((classes, features), dtype, 2, 0.4)
    bias = logits(classes, dtype, 3)
    wide = np.float64 if dtype == "float64" else np.float32
    target = rng.dirichlet(np.ones(classes), rows).astype(wide) if soft else rng.integers(0, classes, rows)
    if not soft:
        target[4] = -100
        x[4] = np.nan  # an ignored row may hold anything
    if "sample_weight" in options:
        x[7] = np.inf
    expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias, **options)
    there = {k: gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    given = on_device(gpu, x, w, target)
    got = csoftmax.linear_cross_entropy_with_grad(*given, bias=gpu.cupy.asarray(bias), chunk_bytes=chunk_bytes, **there)
    # the products round differently; half types round their results
    tolerance = {"float64": 1e-12, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    for a, b in zip(got, expected, strict=True):
        assert isinstance(a, gpu.cupy.ndarray)
        a, b = a.get().astype(np.float64), np.asarray(b).astype(np.float64)
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * max(np.abs(b).max(), 1e-3), options
    alone = {k: v for k, v in there.items() if k not in ("upstream", "clip_norm", "clip_value")}
    loss = csoftmax.linear_cross_entropy(*given, bias=gpu.cupy.asarray(bias), chunk_bytes=chunk_bytes, **alone)
    assert_same_bits(loss.get(), got.loss.get())


def test_linear_cross_entropy(gpu, dtype):
    rng = np.random.default_rng(0)
    wide = np.float64 if dtype == "float64" else np.float32
    for chunk_bytes in (None, 10_000):
        check_linear(gpu, dtype, chunk_bytes=chunk_bytes)
        check_linear(gpu, dtype, soft=True, chunk_bytes=chunk_bytes, label_smoothing=0.1)
    weights = rng.random(23)
    weights[7] = 0
    check_linear(gpu, dtype, sample_weight=weights, weight=rng.random(301).astype(wide), reduction="sum")
    check_linear(gpu, dtype, reduction="none", upstream=rng.random(23), clip_norm=0.1, z_loss=0.01, temperature=2.0)
    check_linear(gpu, dtype, chunk_bytes=10_000, temperature=rng.choice([0.5, 1.0, 2.0], (23, 1)))


def test_linear_cross_entropy_of_nothing(gpu):
    x, w, target = np.zeros((0, 3), np.float32), np.ones((4, 3), np.float32), np.zeros(0, np.int64)
    got = csoftmax.linear_cross_entropy_with_grad(*on_device(gpu, x, w, target), reduction="sum")
    assert got.loss.get() == 0
    assert not got.grad_w.get().any()
    assert got.grad_x.shape == (0, 3)


def test_linear_cross_entropy_batches_and_errors(gpu, monkeypatch):
    x, w, target = logits((2, 3, 5)), logits((7, 5)), np.array([[0, 1, 2], [3, 4, 7]])
    there = on_device(gpu, x, w, target)
    got = csoftmax.linear_cross_entropy_with_grad(*there, reduction="none")
    assert got.grad_x.shape == (2, 3, 5)
    assert np.isnan(got.loss.get()).sum() == np.isnan(got.loss.get()[1, 2]) == 1
    monkeypatch.setenv("CSOFTMAX_SYNC_CHECKS", "1")
    with pytest.raises(IndexError, match=r"target\[1, 2\] is 7"):
        csoftmax.linear_cross_entropy(*there)
    with pytest.raises(csoftmax.DeviceError, match="w is on the CPU"):
        csoftmax.linear_cross_entropy(there[0], w, there[2])
    target[1, 2] = 6
    back = csoftmax.linear_cross_entropy(*there[:2], target, device="cpu")
    assert back == csoftmax.linear_cross_entropy(x, w, target)


def test_linear_cross_entropy_keeps_to_its_budget(model):
    """chunk_bytes bounds the logits that exist at a time: there is a launch for each chunk of them."""
    x, w, t = (np.float32(a) for a in (np.ones((40, 3)), np.ones((50, 3)), np.zeros(40)))
    given = on_device(model, x, w, t.astype(np.int64))
    for rows, launches in ((40, 1), (20, 2), (13, 4), (1, 40)):
        model.launches.clear()
        csoftmax.linear_cross_entropy_with_grad(*given, chunk_bytes=4 * 50 * rows)
        assert sum(launch[0] == "rows" for launch in model.launches) == launches


def test_linear_gradients_have_the_dtype_of_x(gpu):
    for name in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64):
        x, w = (gpu.cupy.asarray(np.ones(shape).astype(name)) for shape in ((3, 4), (5, 4)))
        labels = gpu.cupy.asarray(np.array([0, -100, 1]))
        result = csoftmax.linear_cross_entropy_with_grad(x, w, labels)
        assert result.grad_x.dtype == result.grad_w.dtype == x.dtype


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the model's products are NumPy's
def test_a_mean_that_divides_by_zero(gpu):
    """Loss NaN, gradients exactly 0, whatever x, w and bias hold; ignored rows have a gradient of 0 in any batch."""
    x, w, bias = logits((6, 3)), logits((5, 3), seed=1), np.zeros(5, np.float32)
    x[1], x[2, 0], w[0, 1], bias[3] = np.nan, np.inf, np.inf, -np.inf
    zeros = np.zeros(5, np.float32)
    no_labels, no_mass, labels = np.full(6, -100), np.zeros((6, 5), np.float32), np.arange(6) % 5
    for target, options in ((no_labels, {}), (no_mass, {}), (labels, {"weight": zeros})):
        there = on_device(gpu, x, w, target, bias)
        given = {name: gpu.cupy.asarray(value) for name, value in options.items()}
        got = csoftmax.linear_cross_entropy_with_grad(*there[:3], bias=there[3], label_smoothing=0.1, **given)
        assert np.isnan(got.loss.get())
        assert not any(np.any(grad.get() != 0) for grad in got[1:])
    target = np.array([-100, 1, 2, 3, 4, 0])
    got = csoftmax.linear_cross_entropy_with_grad(*on_device(gpu, x, w, target))
    assert not got.grad_x.get()[0].any()
