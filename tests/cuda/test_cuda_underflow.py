"""Gradients of rows whose probabilities underflow, on CUDA: the bits of the CPU (tests/ops/test_underflow.py)."""

import numpy as np
import pytest
from cuda_checks import check

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
def test_gradients(gpu, dtype, n):
    x, dy = rows(dtype, n)
    for temperature in (1.0, 0.3, 1e-3, 3.0):
        check(gpu, VJPS["log_softmax_vjp"], (dy, csoftmax.log_softmax(x)), temperature=temperature)
        y = csoftmax.softmax(x)
        tiny = np.where(wide(y) > 0.5, 0, wide(dy)).astype(dy.dtype)
        check(gpu, VJPS["softmax_vjp"], (tiny, y), temperature=temperature)
