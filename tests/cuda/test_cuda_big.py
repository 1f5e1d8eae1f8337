"""Arrays beyond 2^31 elements, of which the model computes only the last rows, and rows of ten million.

Their memory exists only where it is written.
"""

import math
import mmap
import sys

import numpy as np
import pytest
from cuda_checks import model_options
from cuda_model import stand_in
from helpers import assert_same_bits

import csoftmax
from csoftmax._cpu import binding
from csoftmax._cuda import entmax, sizes
from csoftmax._cuda.device import read_shared_limit
from csoftmax._cuda.softmax import plan_softmax_launch
from csoftmax._cuda.topk import MAX_SORTED_BY_KERNEL
from csoftmax._spec.operations import CUDA_FAMILY
from csoftmax._spec.samples import FixedUniform, logits

pytestmark = pytest.mark.slow


def zeros(shape, dtype):
    """An array on the device in memory that does not exist until it is written."""
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    memory = mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize), flags=flags)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape).view(stand_in.ndarray)


def many_rows(n, count, dtype="float16"):
    """`count` arrays of n columns and more than 2^31 elements, all 0."""
    return [zeros((2**31 // n + 300, n), dtype) for _ in range(count)]


def check_last_row(y, expected, what=""):
    """The last row has these bits, and nothing was written to the first."""
    host = y.view(np.ndarray)
    assert_same_bits(np.asarray(host[-1:]), expected, what)
    assert not host[0].any()


@pytest.mark.parametrize("n", [500, 3000, 60_000])
def test_offsets_of_rows_are_64_bits(model, n):
    """The last rows of the arrays, by each kernel."""
    host = [logits((1, n), "float16", seed) for seed in (0, 1)]
    for op in (op for op in CUDA_FAMILY if op.keeps_axis):
        *given, y = many_rows(n, op.inputs + 1)
        for array, last in zip(given, host):
            array[-1] = last
        plan = plan_softmax_launch(op.name, binding.DTYPES["float16"], n, read_shared_limit(0))
        with model_options(last=plan.blocks if plan.kernel == "blocks" else 1):
            op.function()(*given, out=y)
        check_last_row(y, op.function()(*host[: op.inputs]), op.name)
    x, y = many_rows(n, 2)
    x[-1] = host[0]
    labels = model.cupy.full(len(x), n - 1, np.int64)
    with model_options(last=1):
        csoftmax.cross_entropy_with_grad(x, labels, reduction="sum", out=y)
    expected = csoftmax.cross_entropy_with_grad(host[0], np.array([n - 1]), reduction="sum")
    check_last_row(y, expected.grad)
    x, dy, y = many_rows(n, 3)
    x[-1], dy[-1] = host
    with model_options(last=-(-n // 8192)):
        got = csoftmax.topk(x, 3)
    assert np.array_equal(got.indices.get()[-1:], csoftmax.topk(host[0], 3).indices)
    with model_options(last=1):
        csoftmax.entmax_vjp(dy, x, 2.0, out=y)
        check_last_row(y, csoftmax.entmax_vjp(host[1], host[0], 2.0))
        if n <= sizes.SHARED_SURVIVORS:  # else a limited number of blocks of threads takes all rows
            csoftmax.entmax(x, out=y)
            check_last_row(y, csoftmax.entmax(host[0]))


def test_offsets_of_soft_labels_and_draws_are_64_bits(model, monkeypatch):
    n = 60_000
    (x, y), (q,) = many_rows(n, 2), many_rows(n, 1, "float32")
    row, labels = logits((1, n), "float16"), np.random.default_rng(0).random((1, n), np.float32)
    x[-1], q[-1] = row[0], labels[0]
    with model_options(last=1):
        csoftmax.cross_entropy_with_grad(x, q, label_smoothing=0.1, reduction="sum", out=y)
    check_last_row(y, csoftmax.cross_entropy_with_grad(row, labels, label_smoothing=0.1, reduction="sum").grad)

    # states that are not written must not say that a row has no mass
    monkeypatch.setattr(model.cupy, "empty", zeros)
    for options in ({}, {"min_p": 1e-6}, {"top_k": 9}):
        with model_options(last=-(-n // 4096)):
            got = csoftmax.sample(x, rng=FixedUniform(np.full(len(x), 0.7)), **options)
        assert got.get()[-1] == csoftmax.sample(row, rng=FixedUniform(np.array([0.7])), **options)[0], options


@pytest.mark.parametrize("n", [600, 60_000])
def test_offsets_of_survivors_are_64_bits(model, monkeypatch, n):
    """Rows of entmax with more survivors than shared memory holds, which lie in global memory for each row."""
    (x, y), row = many_rows(n, 2), np.linspace(-1e-3, 1e-3, n, dtype=np.float16)[None]
    x[-1] = row[0]
    monkeypatch.setattr(model.cupy, "empty", zeros)
    monkeypatch.setattr(entmax, "MAX_SURVIVORS_BYTES", 2**50)
    with model_options(last=1):
        csoftmax.entmax(x, 2.0, out=y)
    expected = csoftmax.entmax(row, 2.0)
    assert np.count_nonzero(expected) > sizes.SHARED_SURVIVORS
    check_last_row(y, expected)


def test_offsets_of_keys_are_64_bits(model, monkeypatch):
    """A top-k of more than a kernel sorts."""
    n, k = 60_000, MAX_SORTED_BY_KERNEL + 1
    (x,), row = many_rows(n, 1), logits((1, n), "float16")
    x[-1] = row[0]

    def argsort(keys, axis):
        assert not keys.view(np.ndarray)[0].any()
        places = zeros(keys.shape, np.int64)
        places[-1] = np.argsort(keys.view(np.ndarray)[-1], kind="stable")
        return places

    monkeypatch.setattr(model.cupy, "empty", zeros)
    monkeypatch.setattr(model.cupy, "argsort", argsort)
    with model_options(last=-(-n // 128)):
        got = csoftmax.topk(x, k)
    expected = csoftmax.topk(row, k)
    assert_same_bits(np.asarray(got.values.view(np.ndarray)[-1:]), expected.values)
    assert np.array_equal(got.indices.view(np.ndarray)[-1:], expected.indices)


LONGEST = {
    "softmax": csoftmax.softmax,
    "cross_entropy": lambda x: csoftmax.cross_entropy_with_grad(x[None], label_for(x), reduction="sum").grad,
    "logsumexp": csoftmax.logsumexp,
    "topk": lambda x: csoftmax.topk(x, 7).indices,
    "sparsemax": csoftmax.sparsemax,
    "sample": lambda x: csoftmax.sample(x, rng=0, size=3),
}


def label_for(x):
    """A label in the last block of x, on the device of x."""
    label = np.array([x.shape[0] - 5])
    return label if type(x) is np.ndarray else sys.modules["cupy"].asarray(label)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["softmax", "cross_entropy", *(pytest.param(n, marks=pytest.mark.long) for n in [*LONGEST][2:])]
)
def test_a_row_of_more_than_ten_million(gpu, name):
    x = logits((10_000_019,), "float32")
    x[[0, 4_999_999, -1]] = 30, -np.inf, 31
    with model_options(races=False):
        got = LONGEST[name](gpu.cupy.asarray(x)).get()
    assert_same_bits(np.atleast_1d(got), np.atleast_1d(LONGEST[name](x)), name)
