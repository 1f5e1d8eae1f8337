"""Gradients of rows whose probabilities underflow, on CUDA: the bits of the CPU (tests/ops/test_underflow.py)."""

import numpy as np
import pytest
from cuda_checks import check, check_loss

import csoftmax
from csoftmax._spec.formats import dtype_of, wide
from csoftmax._spec.operations import SOFTMAX_FAMILY

VJPS = {op.name: op for op in SOFTMAX_FAMILY if op.inputs == 2}


def rows(dtype, n):
    """Rows with and without lost gradients in turn."""
    rng, far = np.random.default_rng(n), 150.0 if dtype != "float64" else 1100.0
    x, dy = rng.standard_normal((2, 5, n))
    x[::2, 1:] -= far
    dy[::2] *= 1e30 / n if dtype != "float64" else 1e300 / n
    return x.astype(dtype_of(dtype)), dy.astype(dtype_of(dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [3, 70, pytest.param(5000, marks=pytest.mark.slow)])
def test_losses(gpu, dtype, n):
    x, _ = rows(dtype, n)
    upstream = 1e30 if dtype != "float64" else 1e300
    hard = np.zeros(5, int)
    soft = np.random.default_rng(1).dirichlet(np.ones(n), 5).astype(np.float64 if dtype == "float64" else np.float32)
    for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 1e-3, "clip_norm": 1e-9}, {"clip_value": 1e-5}):
        check_loss(gpu, x, hard, upstream=upstream, **options)
        check_loss(gpu, x, soft, upstream=upstream, sample_weight=np.array([1, 0, 2, 1e-9, 1e9]), **options)


@pytest.mark.parametrize("dtype", ["float32", "float64", pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("n", [3, 70, pytest.param(5000, marks=pytest.mark.slow)])
def test_gradients(gpu, dtype, n):
    x, dy = rows(dtype, n)
    for temperature in (1.0, 0.3, 1e-3, 3.0):
        check(gpu, VJPS["log_softmax_vjp"], (dy, csoftmax.log_softmax(x)), temperature=temperature)
        y = csoftmax.softmax(x)
        tiny = np.where(wide(y) > 0.5, 0, wide(dy)).astype(dy.dtype)
        check(gpu, VJPS["softmax_vjp"], (tiny, y), temperature=temperature)
