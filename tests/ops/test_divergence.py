"""Entropy and the Kullback-Leibler divergence: exact values, limits, rows of temperature, infinite results."""

import mpmath
import numpy as np
import pytest
from helpers import looped
from oracles.divergence import exact
from oracles.softmax import exact as exact_row
from oracles.softmax import exact_ulps

import csoftmax

EPS = {np.float32: 2.0**-24, np.float64: 2.0**-53}
SIZES = (1, 2, 3, 17, 33)
LONG = (16, 129, 1000, 4100)


def rows_of(dtype, n, seed):
    """Rows of every kind: spread, flat, one class ahead at several gaps, ties."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=n) * scale for scale in (0.01, 1, 10, 40)]
    for gap in (0.5, 15, 40, 90):
        row = np.full(n, 10.608082788347685)
        row[n // 2] += gap
        rows.append(row)
    rows += [np.arange(n) * -0.7, np.repeat(3.25, n)]
    return np.array(rows).astype(dtype)


def check_entropy(dtype, n, temperatures):
    x = rows_of(dtype, n, n)
    for temperature in temperatures:
        for row, got in zip(x, csoftmax.entropy(x, temperature=temperature), strict=True):
            truth = exact_row("entropy", row, temperature=temperature)
            assert exact_ulps(got, truth, np.dtype(dtype).name) <= 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@looped("n", SIZES)
def test_entropy_is_exact(dtype, n):
    check_entropy(dtype, n, (1.0, 0.3))


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@looped("n", LONG)
def test_entropy_of_long_rows_is_exact(dtype, n):
    check_entropy(dtype, n, (1.0, 7.0) if n < 4096 else (1.0,))


def check_divergence(dtype, n, every):
    x = rows_of(dtype, n, n)
    far = rows_of(dtype, n, n + 1)[::-1]
    for temperature, y in ((1.0, far), (0.3, far), (1.0, (x + far * 2.0**-7).astype(dtype)), (7.0, np.roll(x, 1, -1))):
        loss, grad = csoftmax.kl_divergence_with_grad(x, y, temperature=temperature, reduction="none")
        np.testing.assert_array_equal(loss, csoftmax.kl_divergence(x, y, temperature=temperature))
        for i in range(0, len(x), every):
            truth, size, close, gradient = exact(x[i], y[i], temperature)
            with mpmath.workprec(300):
                allowed = 4 * mpmath.mpf(float(np.spacing(dtype(float(size))))) + 4 * EPS[dtype] * close
                assert abs(mpmath.mpf(float(loss[i])) - truth) <= allowed
                p, q = (csoftmax.softmax(v[i].astype(np.float64), temperature=temperature) for v in (x, y))
                scale = np.spacing((np.maximum(p, q) / temperature).astype(dtype))
                errors = [abs(mpmath.mpf(float(g)) - t) / float(s) for g, t, s in zip(grad[i], gradient, scale)]
                assert max(errors) <= 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@looped("n", SIZES)
def test_divergence_is_exact(dtype, n):
    check_divergence(dtype, n, 3 if n > 10 else 1)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@looped("n", LONG)
def test_divergence_of_long_rows_is_exact(dtype, n):
    check_divergence(dtype, n, 4)


def test_blocks_far_below_the_maximum_of_their_row():
    for gap, dtype, upstream in ((89, np.float32, 1e30), (720, np.float64, 1e306), (800, np.float64, 1e308)):
        x, y = np.zeros((2, 4099), dtype)
        x[4096:], y[4096:] = -gap, -gap - 1
        y[:2048] -= 0.01  # a loss that is not small
        for student in (y, np.where(y < -1, y, 0)):
            grad = csoftmax.kl_divergence_with_grad(x, student, upstream=upstream).grad
            with mpmath.workprec(300):
                near = student[:4096].astype(np.float64)
                q, p = mpmath.exp(-gap - 1) / mpmath.fsum(map(mpmath.exp, near.tolist())), mpmath.exp(-gap) / 4096
                np.testing.assert_allclose(grad[-1], float((q - p) * upstream), rtol=8 * np.finfo(dtype).eps)
    x, y = np.full((2, 4097), -90, np.float32)
    y -= 1
    x[-1] = y[-1] = 0
    np.testing.assert_allclose(csoftmax.kl_divergence(x, y), 4096 * np.exp(-91), rtol=1e-6)
    x, y = np.full((2, 4097), -709.0)
    y -= 1
    x[-1] = y[-1] = 0
    np.testing.assert_allclose(csoftmax.kl_divergence(x, y), 4096 / np.exp(355) / np.exp(355), rtol=1e-12)


def test_equal_and_shifted_logits_have_no_divergence():
    x = np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32)
    coarse = np.round(x * 64) / 64
    for y in (x, x.copy()):
        loss, grad = csoftmax.kl_divergence_with_grad(x, y, reduction="none")
        assert np.all(loss == 0)
        assert np.all(grad == 0)
    assert np.all(csoftmax.kl_divergence(coarse, coarse + 3) == 0)


def test_limits_of_temperature():
    x, y = [[1.0, 1.0, 0.0]], [[2.0, 2.0, 2.0]]
    np.testing.assert_allclose(csoftmax.entropy(x, temperature=0), [np.log(2)], rtol=1e-15)
    np.testing.assert_allclose(csoftmax.kl_divergence(x, y, temperature=0), [np.log(1.5)], rtol=1e-15)
    assert csoftmax.kl_divergence(y, x, temperature=0) == np.inf
    assert csoftmax.kl_divergence(x, y, temperature=np.inf) == 0
    np.testing.assert_allclose(csoftmax.entropy(x, temperature=np.inf), [np.log(3)], rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_classes_without_mass(dtype):
    inf = np.inf
    for n in (4, 20, 5000):
        x, y = np.zeros((2, n), dtype), np.zeros((2, n), dtype)
        x[0, 1] = y[0, 1] = -inf  # in neither
        y[1, 2] = -inf  # q = 0 < p
        loss, grad = csoftmax.kl_divergence_with_grad(x, y, reduction="none")
        assert loss[0] == 0
        assert np.all(grad[0] == 0)
        assert loss[1] == inf
        np.testing.assert_allclose(grad[1, 2], -1 / n, rtol=1e-6)
        x[1, 2] = -1e5  # p underflows, and is not 0
        assert csoftmax.kl_divergence(x, y)[1] == inf
        x[1, 2] = -inf
        assert csoftmax.kl_divergence(x, y)[1] == 0


def test_huge_distances_do_not_overflow():
    x = np.array([[0.0, 0.0, 0.0]], np.float32)
    y = np.array([[0.0, -3e37, 0.0]], np.float32)
    np.testing.assert_allclose(csoftmax.kl_divergence(x, y), [1e37], rtol=1e-6)


@looped("n", (3, 40, 5000))
def test_rows_of_temperature_and_weights(n):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=(2, 6, n))
    t = np.array([0.5, 0.5, 1.0, 1e-250, 3.0, 2e200])[:, None]
    s = np.array([1.0, 0.0, 2.0, 1.0, 0.5, 1.0])
    entropy = csoftmax.entropy(x, temperature=t)
    loss, grad = csoftmax.kl_divergence_with_grad(x, y, temperature=t, sample_weight=s, reduction="none")
    for i in range(6):
        one = csoftmax.kl_divergence_with_grad(x[i], y[i], temperature=t[i, 0], reduction="none")
        assert entropy[i] == csoftmax.entropy(x[i], temperature=t[i, 0])
        assert loss[i] == s[i] * one.loss
        np.testing.assert_allclose(grad[i], s[i] * one.grad, rtol=1e-15, atol=0)
    mean = csoftmax.kl_divergence_with_grad(x, y, temperature=t, sample_weight=s, upstream=2.0)
    np.testing.assert_allclose(mean.loss, loss.sum() / s.sum(), rtol=1e-14)
    np.testing.assert_allclose(mean.grad, grad * (2 / s.sum()), rtol=1e-13, atol=1e-300)
    empty = csoftmax.kl_divergence_with_grad(x, y, sample_weight=np.zeros(6))
    assert np.isnan(empty.loss)
    assert np.all(empty.grad == 0)


def test_masks_and_rows_without_classes():
    x, y = np.full((2, 4), np.nan), np.ones((2, 4))
    mask = np.array([[True] * 4, [False] * 4])
    assert np.isnan(csoftmax.entropy(x, where=mask)[0])
    assert csoftmax.entropy(x, where=mask)[1] == 0
    loss, grad = csoftmax.kl_divergence_with_grad(x, y, where=mask, reduction="none")
    assert np.isnan(loss[0])
    assert loss[1] == 0
    assert np.all(grad[1] == 0)
    assert np.all(csoftmax.entropy(np.zeros((3, 0))) == 0)
    assert np.all(csoftmax.kl_divergence(np.zeros((3, 0)), np.zeros((3, 0))) == 0)
    mean = csoftmax.kl_divergence_with_grad(np.zeros((2, 4)), y, where=mask)
    assert mean.loss == 0


def test_out_and_keepdims():
    x, y = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    expected = csoftmax.kl_divergence_with_grad(x, y, axis=(0, 2))
    for i in range(2):
        a, b = x.copy(), y.copy()
        got = csoftmax.kl_divergence_with_grad(a, b, axis=(0, 2), out=(a, b)[i])
        assert got.grad is (a, b)[i]
        assert got.loss == expected.loss
        np.testing.assert_array_equal(got.grad, expected.grad)
    for function, arrays in ((csoftmax.entropy, (x,)), (csoftmax.kl_divergence, (x, y))):
        out = np.empty((1, 4, 1))
        assert function(*arrays, axis=(0, 2), keepdims=True, out=out) is out
        np.testing.assert_array_equal(out[0, :, 0], function(*arrays, axis=(0, 2)))
        with pytest.raises(ValueError, match="out has shape"):
            function(*arrays, out=np.empty(3))


def test_no_kernels_for_cuda_are_named():
    with pytest.raises(csoftmax.DeviceError):
        csoftmax.entropy(np.zeros(3), device="cuda")
    with pytest.raises(csoftmax.DeviceError):
        csoftmax.kl_divergence(np.zeros(3), np.zeros(3), device="cuda")
