"""The softmax family and its gradients on CUDA: the CPU's bits, one read and one write of each element."""

import itertools

import numpy as np
import pytest
from cuda_checks import (
    EXPONENTS,
    check,
    copy_on_device,
    costly_dtypes,
    make_inputs,
    model_options,
    on_device,
    rows_with_special_at,
    sectors_of_rows,
    shared_memory,
    slow_from,
    special_rows,
)
from helpers import assert_same_bits

import csoftmax
from csoftmax._cpu import binding
from csoftmax._cuda import sizes
from csoftmax._cuda.softmax import plan_softmax_launch
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.operations import CUDA_FAMILY
from csoftmax._spec.samples import ROW_KINDS, logits

FORWARD = [op for op in CUDA_FAMILY if op.inputs == 1]
BACKWARD = [op for op in CUDA_FAMILY if op.inputs == 2]
# around the teams of threads, the vectors, the chunks of 512, the blocks of 4096
LENGTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 100, 255, 256, 257, 511, 512, 513, 1000, 4095, 4096, 4097, 9000, 12288)


@pytest.mark.parametrize("n", LENGTHS)
def test_bits_of_the_cpu(gpu, op, dtype, n):
    rows = 67 if n < 20 else 5 if n < 1000 else 2
    check(gpu, op, make_inputs(op, (rows, n), dtype, seed=n, sigma=5))


@pytest.mark.parametrize("n", [1, 9, 600])
def test_temperatures_of_rows(gpu, op, dtype, n):
    """Rows of the same temperature are a launch."""
    t = np.array([1.0, 0.3, 7.0, 0.3, 1e-3])
    check(gpu, op, make_inputs(op, (5, n), dtype, seed=n), temperature=t[:, None])
    check(gpu, op, [a.T.copy() for a in make_inputs(op, (5, n), dtype, seed=n)], axis=0, temperature=t[None])
    launches = len(gpu.launches)
    x = make_inputs(op, (5, n), dtype)
    op.function()(*on_device(gpu, *x), temperature=t[:, None])
    if gpu.model:
        assert len(gpu.launches) - launches == 4


def test_infinite_temperatures_are_a_launch(gpu):
    t = np.array([[np.inf], [1.0], [np.inf]])
    x = gpu.cupy.asarray(logits((3, 9)))
    csoftmax.softmax(x, temperature=t)
    assert len(gpu.launches) == 2 or not gpu.model


@costly_dtypes
@pytest.mark.parametrize("n", [9, 40, 1000, 4500])
def test_kinds_of_rows(gpu, op, dtype, n):
    """Sums far below the maximum are added again, in every kernel."""
    for kind in ROW_KINDS:
        check(gpu, op, make_inputs(op, (5 if n < 1000 else 2, n), dtype, seed=n, sigma=kind))
    if n == 4500:
        with shared_memory(gpu, 48 * 1024 if op.inputs == 1 else 66 * 1024):
            check(gpu, op, make_inputs(op, (2, 9_000), dtype, sigma="ahead of two values"))


@costly_dtypes
def test_rows_beyond_shared_memory(gpu, op, dtype):
    """The kernels blocks, combine and apply: on a device with little shared memory, and for a row that none holds."""
    with shared_memory(gpu, 48 * 1024 if op.inputs == 1 else 66 * 1024):
        check(gpu, op, make_inputs(op, (3, 20_001), dtype, sigma=9))
    if gpu.model:
        assert {"blocks", "combine"} <= {launch[0] for launch in gpu.launches}
    check(gpu, op, make_inputs(op, (2, 120_000), dtype, sigma=2))


@costly_dtypes
@pytest.mark.parametrize("temperature", [0.37, 3.0, 1e-3, 1e25, 1e-30, 1e200, 5e-324])
def test_temperature(gpu, op, dtype, temperature):
    for n in (10, 700, 5000):
        check(gpu, op, make_inputs(op, (3, n), dtype, sigma=4), temperature=temperature)


@costly_dtypes
@pytest.mark.parametrize("n", slow_from(600, [9, 600, 5000]))
def test_extreme_temperature(gpu, op, dtype, n):
    """T beyond the range of the compute type, with inputs of its magnitude as far as the dtype has it."""
    for exponent in (-1074, -600, -180, 180, 600, 1023):
        temperature = float(np.ldexp(1.3, exponent))
        scale = np.clip(float(exponent), *EXPONENTS[dtype])
        x, *rest = make_inputs(op, (3, n), "float64")
        x = np.ldexp(x, int(scale)).astype(dtype_of(dtype))
        check(gpu, op, (x, *(a.astype(x.dtype) for a in rest)), temperature=temperature)


@costly_dtypes
@pytest.mark.parametrize("n", slow_from(600, [9, 600, 4200, 20_001]))
def test_where_in_rows_of_nan(gpu, dtype, n):
    """Masked elements are 0 (log: -inf) in rows that are NaN, too."""
    x = logits((4, n), dtype)
    x[0, 2], x[1, 3], x[2] = np.nan, np.inf, -np.inf
    mask = np.random.default_rng(n).random((4, n)) < 0.5
    mask[:, :4] = True
    for op in FORWARD:
        check(gpu, op, (x,), where=mask)
    with shared_memory(gpu, 48 * 1024 if dtype != "float64" else 66 * 1024):
        check(gpu, FORWARD[0], (x,), where=mask)


@pytest.mark.parametrize("temperature", [0.0, float("inf")])
def test_limits_of_the_temperature(gpu, dtype, temperature):
    for op, n in itertools.product(FORWARD, (10, 700, 5000)):
        x = np.round(logits((4, n), dtype))
        x[1] -= x[1].max()
        check(gpu, op, (x,), temperature=temperature)


@costly_dtypes
@pytest.mark.parametrize("n", slow_from(600, [1, 2, 19, 600, 4100]))
def test_special_values(gpu, dtype, n):
    x = special_rows(n, dtype)
    for op in FORWARD:
        for temperature in (1.0, 2.5, 0.0):
            check(gpu, op, (x,), temperature=temperature)
    for op in BACKWARD:
        y = (csoftmax.log_softmax if op.log else csoftmax.softmax)(logits(x.shape, dtype))
        with np.errstate(all="ignore"):
            check(gpu, op, (x, y))
            check(gpu, op, (y, x))


@costly_dtypes
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_special_values_at_every_index(gpu, dtype, special):
    for n in (1, 2, 17, 35):
        x, alone = rows_with_special_at(n, dtype, special)
        dy = logits((n, n), dtype, seed=n + 1)
        for op in FORWARD:
            check(gpu, op, (x,))
            check(gpu, op, (alone,))
        for op in BACKWARD:
            check(gpu, op, (x, dy))
            check(gpu, op, (dy, x))


@costly_dtypes
def test_special_values_beyond_shared_memory(gpu, dtype):
    x = special_rows(9000, dtype)
    with shared_memory(gpu, 48 * 1024 if dtype != "float64" else 66 * 1024):
        for op in FORWARD:
            check(gpu, op, (x,))
        check(gpu, FORWARD[0], (x,), temperature=1e-30)
    assert not gpu.model or "whole" not in {launch[0] for launch in gpu.launches}


@costly_dtypes
@pytest.mark.parametrize("n", [9, 600, 4200, 20_001])
def test_where(gpu, op, dtype, n):
    arrays = make_inputs(op, (5, n), dtype)
    mask = np.random.default_rng(n).random((5, n)) < 0.5
    mask[1], mask[2], mask[3, n // 2 :] = False, True, False
    arrays[0][~mask] = np.nan  # elements that take no part may hold anything
    check(gpu, op, arrays, where=mask)
    check(gpu, op, make_inputs(op, (5, n), dtype), where=mask[4])


def test_axes_and_strides(gpu, op):
    x = make_inputs(op, (4, 5, 6), "float32")
    for axis in (0, 1, 2, -1, (0, 2), None):
        check(gpu, op, x, axis=axis)
    turned = [np.asfortranarray(a) for a in x]
    check(gpu, op, turned, axis=1)
    expected = op.function()(*(a[::2, :, ::-1] for a in x))
    got = op.function()(*(a[::2, :, ::-1] for a in on_device(gpu, *x)))
    assert_same_bits(got.get(), np.asarray(expected))


@pytest.mark.parametrize("n", [11, 701, 5001])
def test_alignment(gpu, op, dtype, n):
    """Rows that begin at each element of 16 bytes, within a larger array."""
    arrays = make_inputs(op, (3, n), dtype)
    expected = np.asarray(op.function()(*arrays))
    for offset in range(1, 9):
        memory = [gpu.cupy.empty(a.size + 16, a.dtype) for a in arrays]
        views = [m[offset + i : offset + i + a.size].reshape(a.shape) for i, (m, a) in enumerate(zip(memory, arrays))]
        for view, a in zip(views, arrays, strict=True):
            view[...] = gpu.cupy.asarray(a)
        assert_same_bits(op.function()(*views).get(), expected, f"offset {offset}")


def test_out(gpu, dtype):
    """Results that overwrite an input, that have strides, and that overlap an input."""
    for op, n in itertools.product([op for op in CUDA_FAMILY if op.keeps_axis], (12, 800, 5000)):
        arrays = make_inputs(op, (3, n), dtype)
        expected = op.function()(*arrays)
        for i in range(op.inputs):
            given = [copy_on_device(gpu, a) for a in arrays]
            assert op.function()(*given, out=given[i]) is given[i]
            assert_same_bits(given[i].get(), expected, f"{op.name} over input {i}")
        out = gpu.cupy.empty((n, 3), dtype_of(dtype)).T
        assert op.function()(*on_device(gpu, *arrays), out=out) is out
        assert_same_bits(out.get(), expected)
        shifted = gpu.cupy.empty((3 * n + 5,), dtype_of(dtype))
        shifted[: 3 * n] = gpu.cupy.asarray(arrays[0]).reshape(-1)
        out = shifted[5:].reshape(3, n)
        op.function()(shifted[: 3 * n].reshape(3, n), *on_device(gpu, *arrays[1:]), out=out)
        assert_same_bits(out.get(), expected)


def test_batch_does_not_matter(gpu, op, dtype):
    """A row has the same bits alone and among others."""
    for n in (10, 300, 700, 5000):
        arrays = make_inputs(op, (40, n), dtype)
        all_rows = op.function()(*on_device(gpu, *arrays)).get()
        for i in (0, 17, 39):
            alone = op.function()(*on_device(gpu, *(a[i : i + 1] for a in arrays))).get()
            assert_same_bits(alone, all_rows[i : i + 1])


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 0, 4), (), (1,)])
def test_empty_and_small(gpu, op, dtype, shape):
    arrays = [np.full(shape, i - 1, dtype_of(dtype)) for i in range(op.inputs)]
    expected = np.asarray(op.function()(*arrays))
    got = op.function()(*on_device(gpu, *arrays))
    assert isinstance(got, gpu.cupy.ndarray)
    assert_same_bits(got.get(), expected)


def test_integers(gpu):
    x = np.arange(12).reshape(3, 4)
    assert_same_bits(csoftmax.softmax(gpu.cupy.asarray(x)).get(), csoftmax.softmax(x))


def test_traffic(model, op, dtype):
    """Each element is read and written once where shared memory holds a row, else read twice, in whole sectors."""
    itemsize = dtype_of(dtype).itemsize
    held = {"float32": 57344, "float16": 57344, "bfloat16": 57344, "float64": 28672}[dtype] // op.inputs
    longest = held // sizes.BLOCK_ELEMENTS * sizes.BLOCK_ELEMENTS
    for n, reads in ((16, 1), (128, 1), (512, 1), (1024, 1), (4096, 1), (longest, 1), (131072, 2)):
        rows = max(2, 1024 // n)
        arrays = make_inputs(op, (rows, n), dtype)
        model.launches.clear()
        with model_options(count=True, races=False):
            op.function()(*on_device(model, *arrays))
        loads, stores = sectors_of_rows(model.launches, rows * n * itemsize)
        # sectors that are not full; records of blocks (72 bytes of 4096 elements) and rows, written and read again
        noise = 0.01 if reads == 1 else 12 * 96 / (4096 * itemsize)
        expected = op.inputs * (reads if op.keeps_axis else 1)
        assert expected <= loads <= expected + noise, (n, loads)
        noise += 0 if op.keeps_axis else 2 * 32 / (n * itemsize)
        assert op.keeps_axis <= stores <= op.keeps_axis + noise, (n, stores)


def test_blocks_of_a_row_that_shared_memory_does_not_hold(gpu):
    """A row of the long kernels has a record for each of its blocks; too many of them are read in place."""
    n = 400_000
    with shared_memory(gpu, 17 * 1024):
        if gpu.model:
            records = 17 * 1024 // sizes.BLOCK_BYTES
            n = (records + 1) * sizes.BLOCK_ELEMENTS
            plan = plan_softmax_launch("logsumexp", binding.DTYPES["float32"], n, 17 * 1024)
            assert plan.staged_bytes == 0
        x = logits((n,), "float32")
        with model_options(races=False):
            assert_same_bits(csoftmax.logsumexp(gpu.cupy.asarray(x)).get(), np.asarray(csoftmax.logsumexp(x)))


@pytest.mark.long
@pytest.mark.parametrize("limit", [64 * 1024, 99 * 1024])  # of compute capability 7.5; of 8.6 and 12.0
def test_longest_rows_of_each_kernel(model, op, dtype, limit):
    """On devices with less shared memory than the model's: the last length of a kernel and the first of the next."""
    storage = binding.DTYPES[dtype]
    kernels = [plan_softmax_launch(op.name, storage, n, limit).kernel for n in range(1, 60_000)]
    last = [n for n in range(1, len(kernels)) if kernels[n - 1] != kernels[n]]
    assert len(last) == 2
    with shared_memory(model, limit):
        for n in last:
            check(model, op, make_inputs(op, (2, n), dtype))
            check(model, op, make_inputs(op, (2, n + 1), dtype))


def test_launch_plans_fit():
    """Every length has a kernel whose threads and shared memory the device allows."""
    names = [op.name for op in CUDA_FAMILY]
    for name, dtype, limit in itertools.product(names, sizes.SUFFIXES, (64 * 1024, 99 * 1024, 227 * 1024)):
        for n in (*range(1, 700), *range(700, 60_000, 501), 57344, 57345, 28672, 28673, 10**7):
            plan = plan_softmax_launch(name, dtype, n, limit)
            assert 32 <= 32 * plan.warps <= 1024
            assert plan.shared_bytes <= limit, (name, dtype, n, limit)
            if plan.kernel == "teams":
                assert plan.rows_per_warp * n < 2**31
            assert plan.grid(2**40) < 2**31


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16"])
def test_sink(gpu, name):
    """A sink is one more element of each row, on the device too."""
    x = logits((5, 40), name, 3, 4.0)
    mask = np.random.default_rng(0).random((5, 40)) < 0.7
    for sink in (0.5, np.linspace(-2, 2, 5)[:, None]):
        given = gpu.cupy.asarray(sink) if isinstance(sink, np.ndarray) else sink
        for function in (csoftmax.softmax, csoftmax.log_softmax, csoftmax.logsumexp):
            got = function(copy_on_device(gpu, x), sink=given, where=gpu.cupy.asarray(mask))
            assert isinstance(got, gpu.cupy.ndarray)
            assert_same_bits(got.get(), function(x, sink=sink, where=mask))
