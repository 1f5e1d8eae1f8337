"""Top-k on CUDA: the CPU's values, indices and probabilities."""

import itertools

import numpy as np
import pytest
from cuda_checks import (
    check_topk,
    costly_dtypes,
    model_options,
    sectors_of_rows,
    shared_memory,
    slow_from,
    special_rows,
)
from helpers import assert_same_bits

import csoftmax
from csoftmax._cuda.sizes import SUFFIXES
from csoftmax._cuda.topk import plan_topk_launch
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits


@costly_dtypes
@pytest.mark.parametrize("n", slow_from(600, [1, 2, 5, 31, 32, 33, 500, 513, 1100, 4100]))
def test_topk(gpu, dtype, n):
    x = logits((3, n), dtype, seed=n)
    ties = np.round(logits((4, n), dtype, seed=n) * 2)  # -0 and 0 among them
    ties[3] = 1
    for k in sorted({1, 2, n // 3, n - 1, n} & set(range(1, n + 1))):
        if k <= 1024:
            check_topk(gpu, x, k)
            check_topk(gpu, ties, k)


def test_temperatures_of_rows(gpu, dtype):
    x, t = logits((4, 700), dtype), np.array([[0.5], [2.0], [0.5], [0.0]])
    for normalize in ("topk", "full"):
        expected = csoftmax.topk_softmax(x, 9, temperature=t, normalize=normalize)
        got = csoftmax.topk_softmax(gpu.cupy.asarray(x), 9, temperature=gpu.cupy.asarray(t), normalize=normalize)
        assert_same_bits(got.values.get(), expected.values)
        assert np.array_equal(got.indices.get(), expected.indices)


@costly_dtypes
@pytest.mark.parametrize("n", slow_from(19, [1, 2, 19, 600]))
def test_topk_of_special_values(gpu, dtype, n):
    x = special_rows(n, dtype)
    for k in {1, n // 2 or 1, n}:
        check_topk(gpu, x, k)


@costly_dtypes
@pytest.mark.parametrize("k", slow_from(33, [1, 33, 1000]))
def test_topk_in_pieces(gpu, dtype, k):
    """Rows of several pieces, whose candidates are cut again; equal elements on both sides of a cut."""
    x = np.round(logits((2, 40_000), dtype), 1)
    x[1, 5:] = 0
    check_topk(gpu, x, k)


@costly_dtypes
def test_topk_in_small_pieces(gpu, dtype):
    """A device with little shared memory, whose candidates need a third launch."""
    x = np.round(logits((1, 40_000), dtype), 1)
    with shared_memory(gpu, 48 * 1024):
        gpu.launches.clear()
        expected = csoftmax.topk(np.tile(x, 4), 1000)
        got = csoftmax.topk(gpu.cupy.asarray(np.tile(x, 4)), 1000)
        assert np.array_equal(got.indices.get(), expected.indices)
    cuts = [launch[1] for launch in gpu.launches if launch[0] == "choose"]
    assert not gpu.model or len(set(cuts)) >= 3


@costly_dtypes
def test_topk_of_many(gpu, dtype):
    """k above the number of elements that a kernel sorts."""
    x = np.round(logits((2, 3000), dtype) * 8) / 8
    x[1, 7], x[1, 2000] = np.nan, -np.inf
    for k in (1025, 3000):
        check_topk(gpu, x, k)


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (40, 7), (600, 600), (20_000, 33), (3000, 1500)])
def test_topk_of_integers(gpu, dtype, n, k):
    """Compared exactly, in one piece, in several, and sorted by a library."""
    rng, low, high = np.random.default_rng(n), np.iinfo(dtype).min, np.iinfo(dtype).max
    spread = rng.integers(low, high, (1, n), dtype, endpoint=True)
    near = high - rng.integers(0, 50, (1, n), dtype)
    ends = rng.choice(np.array([low, low + 1, high - 1, high], dtype), (1, n))
    x = np.concatenate([spread, near, ends])
    for largest in (True, False):
        expected = csoftmax.topk(x, k, largest=largest)
        got = csoftmax.topk(gpu.cupy.asarray(x), k, largest=largest)
        assert got.values.dtype == dtype
        assert np.array_equal(got.values.get(), expected.values)
        assert np.array_equal(got.indices.get(), expected.indices)
    turned = csoftmax.topk(gpu.cupy.asarray(x.T.copy()), k, axis=0)
    assert np.array_equal(turned.indices.get().T, csoftmax.topk(x, k).indices)


@costly_dtypes
def test_topk_layouts(gpu, dtype):
    x = logits((3, 40, 5), dtype)
    for axis in (0, 1, -1, (0, 2), None):
        check_topk(gpu, x, 2, axis=axis)
    check_topk(gpu, np.asfortranarray(x), 3, axis=1)
    mask = np.random.default_rng(0).random((3, 40, 5)) < 0.5
    mask[1] = False
    check_topk(gpu, x, 4, where=mask)
    check_topk(gpu, x[0, :, 0], 7)
    for shape, k in (((0, 5), 2), ((5, 0), 0), ((4, 6), 0)):
        check_topk(gpu, np.zeros(shape, dtype_of(dtype)), k)
    values = gpu.cupy.empty((4, 40, 3), dtype_of(dtype)).transpose(2, 0, 1)[:, :2]
    out = values.transpose(0, 2, 1), gpu.cupy.empty((3, 40, 2), np.int64)
    expected = csoftmax.topk_softmax(x, 2)
    got = csoftmax.topk_softmax(gpu.cupy.asarray(x), 2, out=out)
    assert got.values is out[0]
    assert_same_bits(out[0].get(), expected.values)
    assert np.array_equal(out[1].get(), expected.indices)
    unsorted = csoftmax.topk(gpu.cupy.asarray(x), 2, sorted=False)
    assert np.array_equal(np.sort(unsorted.indices.get()), np.sort(expected.indices))


def test_topk_errors(gpu):
    x = gpu.cupy.asarray(logits((4, 30)))
    out = gpu.cupy.empty((4, 2), np.float32), gpu.cupy.empty((4, 2), np.int64)
    with pytest.raises(ValueError, match="k must be at most the length of the axis, 30"):
        csoftmax.topk(x, 31)
    with pytest.raises(TypeError, match="out must be a pair of arrays"):
        csoftmax.topk_softmax(x, 2, out=out[0])
    with pytest.raises(TypeError, match=r"out must be a cupy.ndarray"):
        csoftmax.topk_softmax(x, 2, out=(np.empty((4, 2), np.float32), out[1]))
    with pytest.raises(ValueError, match="values and indices share memory"):
        csoftmax.topk_softmax(x, 2, out=(out[1].view(np.float32)[:, :2], out[1]))
    assert not gpu.launches
    both = gpu.cupy.empty((4, 4), np.int64)  # side by side in one array
    csoftmax.topk_softmax(x, 2, out=(both.view(np.float32)[:, :2], both[:, 2:]))
    assert np.array_equal(both[:, 2:].get(), csoftmax.topk(x, 2).indices.get())


def test_to_csr_says_what_to_do(gpu):
    best = csoftmax.topk(gpu.cupy.asarray(np.eye(3)), 2)
    with pytest.raises(csoftmax.DeviceError, match=r"values\.get\(\)"):
        csoftmax.to_csr(best, 3)


def test_traffic_of_topk(model, dtype):
    """A row is read once, however long it is."""
    itemsize = dtype_of(dtype).itemsize
    for n in (1024, 4096, 20_000, 131_072):
        x = model.cupy.asarray(logits((2, n), dtype, sigma=4))
        model.launches.clear()
        with model_options(count=True, races=False):
            csoftmax.topk(x, 5)
        loads, _ = sectors_of_rows(model.launches, 2 * n * itemsize)
        extra = 5 * (32 + 16) * (1 + -(-n // 8192)) / (n * itemsize)
        assert 1 <= loads <= 1.02 + extra, (n, loads)


def test_launch_plans_of_topk_fit():
    for dtype, limit in itertools.product(SUFFIXES, (48 * 1024, 99 * 1024, 227 * 1024)):
        for n in (*range(1, 100), 1000, 8191, 8192, 8193, 20_000, 65_535, 65_536, 10**7):
            for k in {1, min(n, 50), min(n, 1024)}:
                plan = plan_topk_launch(dtype, n, k, limit)
                assert plan.shared_bytes <= limit
                assert 1 <= plan.warps <= 16
                assert 1 <= plan.piece <= min(n, 65535)
                assert plan.piece == n or plan.piece >= 2 * k  # each launch leaves fewer candidates
