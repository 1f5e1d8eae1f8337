"""The CUDA backend: the bits of the CPU, one read and one write, errors.

Runs on the model of tests/cuda_model by default, through a stand-in for CuPy; with -m gpu on a real device.
"""

import contextlib
import importlib
import itertools
import json
import math
import mmap
import shutil
import sys
import warnings
from types import SimpleNamespace
from unittest import mock

import make_golden
import numpy as np
import pytest
from cuda_model import stand_in
from helpers import ROOT, FixedUniform, assert_same_bits
from ops import BACKWARD, FORWARD, OPS, dtype_of, logits

import csoftmax
import csoftmax._cuda as backend

ROW_OPS = [op.name for op in OPS]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the model needs g++")


def real_cupy():
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        backend.require(None)
    except backend.Unavailable as error:
        pytest.skip(str(error))
    return cupy


@pytest.fixture(params=[pytest.param("model", marks=needs_compiler), pytest.param("device", marks=pytest.mark.gpu)])
def gpu(request, tmp_path_factory):
    """cupy, and `launches`, what has been launched (of the model)."""
    if request.param == "device":
        yield SimpleNamespace(cupy=real_cupy(), model=False, launches=[])
        return
    with stand_in.installed(tmp_path_factory.getbasetemp() / "machine code") as cupy:
        stand_in.RawKernel.launches.clear()
        yield SimpleNamespace(cupy=cupy, model=True, launches=stand_in.RawKernel.launches)


@contextlib.contextmanager
def model_options(**options):
    before = dict(stand_in.RawKernel.options)
    stand_in.RawKernel.options.update(options)
    try:
        yield
    finally:
        stand_in.RawKernel.options.update(before)


@contextlib.contextmanager
def shared_memory(gpu, size):
    """A device with so little shared memory that long rows do not fit."""
    if not gpu.model:
        yield
        return
    before = dict(stand_in.ATTRIBUTES)
    stand_in.ATTRIBUTES["MaxSharedMemoryPerBlockOptin"] = size
    backend._shared_limit.cache_clear()
    backend._kernel.cache_clear()
    try:
        yield
    finally:
        stand_in.ATTRIBUTES.update(before)
        backend._shared_limit.cache_clear()
        backend._kernel.cache_clear()


def on_device(gpu, *arrays):
    return [gpu.cupy.asarray(a) for a in arrays]


def check(gpu, op, arrays, **options):
    """The result has the CPU's bits, whichever thread goes first."""
    expected = np.asarray(op.function()(*arrays, **options))
    given = {k: gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    for backward in (False, True) if gpu.model else (False,):
        with model_options(backward=backward):
            got = op.function()(*on_device(gpu, *arrays), **given)
        assert isinstance(got, gpu.cupy.ndarray)
        assert_same_bits(got.get(), expected, f"{op.name} {arrays[0].shape} {arrays[0].dtype} {options}")


@pytest.fixture(params=OPS, ids=lambda op: op.name)
def op(request):
    return request.param


# around the teams of threads, the vectors, the chunks of 512, the blocks of 4096
LENGTHS = (1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 100, 255, 256, 257, 511, 512, 513, 1000, 4095, 4096, 4097, 9000, 12288)


@pytest.mark.parametrize("n", LENGTHS)
def test_bits_of_the_cpu(gpu, op, dtype, n):
    rows = 67 if n < 20 else 5 if n < 1000 else 2
    check(gpu, op, op.make((rows, n), dtype, seed=n, sigma=5))


def test_rows_beyond_shared_memory(gpu, op, dtype):
    """Blocks, combine, apply; by shared memory that is small, and by a row that no device holds."""
    with shared_memory(gpu, 48 * 1024 if op.inputs == 1 else 66 * 1024):
        check(gpu, op, op.make((3, 20_001), dtype, sigma=9))
    if gpu.model:
        assert {"blocks", "combine"} <= {launch[0] for launch in gpu.launches}
    check(gpu, op, op.make((2, 120_000), dtype, sigma=2))


@pytest.mark.parametrize("temperature", [0.37, 3.0, 1e-3, 1e25, 1e-30, 1e200, 5e-324])
def test_temperature(gpu, op, dtype, temperature):
    for n in (10, 700, 5000):
        check(gpu, op, op.make((3, n), dtype, sigma=4), temperature=temperature)


@pytest.mark.parametrize("temperature", [0.0, float("inf")])
def test_limits_of_the_temperature(gpu, dtype, temperature):
    for op, n in itertools.product(FORWARD, (10, 700, 5000)):
        x = np.round(logits((4, n), dtype))
        x[1] -= x[1].max()
        check(gpu, op, (x,), temperature=temperature)


def special_rows(n, dtype):
    """One special value in each row, at the ends and in between, among ordinary numbers and among others."""
    rows = []
    least, most = (float(f(dtype_of(dtype))) for f in (_least, _most))
    for special in (np.nan, np.inf, -np.inf, most, -most, least, -0.0, 6e4):
        for place in {0, n // 2, n - 1}:
            row = logits(n, "float64", seed=place)
            row[place] = special
            rows.append(row)
        rows.append(np.full(n, special))
    for first, second in ((np.inf, np.nan), (-np.inf, np.nan), (np.inf, -np.inf), (most, -np.inf)):
        rows.append(np.where(np.arange(n) % 2, first, second))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(rows).astype(dtype_of(dtype))


def _most(dtype):
    return np.finfo(dtype).max if dtype.kind == "f" else 3e38


def _least(dtype):
    return np.finfo(dtype).smallest_subnormal if dtype.kind == "f" else 1e-40


@pytest.mark.parametrize("n", [1, 2, 19, 600, 4100])
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


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf], ids=str)
def test_special_values_at_every_index(gpu, dtype, special):
    """Row i has it at index i; then it is the only one, or one other is finite, in a row of -inf."""
    for n in (1, 2, 17, 35):
        x = logits((n, n), dtype, seed=n)
        np.fill_diagonal(x, special)
        lonely = np.full((n, n), -np.inf, x.dtype)
        np.fill_diagonal(lonely, 3 if special == -np.inf else special)
        labels = np.arange(n)[::-1].copy()
        for rows in (x, lonely):
            for op in FORWARD:
                check(gpu, op, (rows,))
            check_loss(gpu, rows, labels, reduction="none")
            check_entmax(gpu, rows, 1.5)
        dy = logits((n, n), dtype, seed=n + 1)
        for op in BACKWARD:
            check(gpu, op, (x, dy))
            check(gpu, op, (dy, x))


def test_golden_bits(gpu, dtype):
    """Those that are committed: of every case but the long rows, which other tests compare with the CPU's."""
    golden = json.loads(make_golden.FILE.read_text())
    for case, (rows, k, *_) in make_golden.CASES.items():
        if rows * k > 600:
            continue
        place = gpu.cupy.asarray
        found = {op.name: make_golden.digest(op, dtype, case, place) for op in OPS}
        for kind in make_golden.LOSSES:
            found[f"cross_entropy, {kind}"] = make_golden.loss_digest(dtype, case, kind, place)
        for alpha in make_golden.SPARSE:
            found[f"sparse, alpha={alpha}"] = make_golden.sparse_digest(dtype, case, alpha, place)
        assert found == {name: golden[f"{name}/{dtype}/{case}"] for name in found}, case


def test_special_values_beyond_shared_memory(gpu, dtype):
    x = special_rows(9000, dtype)
    with shared_memory(gpu, 48 * 1024 if dtype != "float64" else 66 * 1024):
        for op in FORWARD:
            check(gpu, op, (x,))
        check(gpu, FORWARD[0], (x,), temperature=1e-30)
    assert not gpu.model or "whole" not in {launch[0] for launch in gpu.launches}


@pytest.mark.parametrize("n", [9, 600, 4200, 20_001])
def test_where(gpu, op, dtype, n):
    arrays = op.make((5, n), dtype)
    mask = np.random.default_rng(n).random((5, n)) < 0.5
    mask[1], mask[2], mask[3, n // 2 :] = False, True, False
    arrays[0][~mask] = np.nan  # what takes no part may hold anything
    check(gpu, op, arrays, where=mask)
    check(gpu, op, op.make((5, n), dtype), where=mask[4])


def test_axes_and_strides(gpu, op):
    x = op.make((4, 5, 6), "float32")
    for axis in (0, 1, 2, -1, (0, 2), None):
        check(gpu, op, x, axis=axis)
    turned = [np.asfortranarray(a) for a in x]
    check(gpu, op, turned, axis=1)
    expected = op.function()(*(a[::2, :, ::-1] for a in x))
    got = op.function()(*(a[::2, :, ::-1] for a in on_device(gpu, *x)))
    assert_same_bits(got.get(), np.asarray(expected))


@pytest.mark.parametrize("n", [11, 701, 5001])
def test_alignment(gpu, op, dtype, n):
    """Rows that begin anywhere: in a larger array, from every element of the first 16 bytes on."""
    arrays = op.make((3, n), dtype)
    expected = np.asarray(op.function()(*arrays))
    for offset in range(1, 9):
        memory = [gpu.cupy.empty(a.size + 16, a.dtype) for a in arrays]
        views = [m[offset + i : offset + i + a.size].reshape(a.shape) for i, (m, a) in enumerate(zip(memory, arrays))]
        for view, a in zip(views, arrays, strict=True):
            view[...] = gpu.cupy.asarray(a)
        assert_same_bits(op.function()(*views).get(), expected, f"offset {offset}")


def test_out(gpu, dtype):
    for op, n in itertools.product([op for op in OPS if op.has_out], (12, 800, 5000)):
        arrays = op.make((3, n), dtype)
        expected = op.function()(*arrays)
        for i in range(op.inputs):  # over each input
            given = on_device(gpu, *arrays)
            if gpu.model:
                given = [stand_in.on_device(a) for a in arrays]
            assert op.function()(*given, out=given[i]) is given[i]
            assert_same_bits(given[i].get(), expected, f"{op.name} over input {i}")
        out = gpu.cupy.empty((n, 3), dtype_of(dtype)).T
        assert op.function()(*on_device(gpu, *arrays), out=out) is out
        assert_same_bits(out.get(), expected)
        shifted = gpu.cupy.empty((3 * n + 5,), dtype_of(dtype))
        shifted[: 3 * n] = gpu.cupy.asarray(arrays[0]).reshape(-1)
        out = shifted[5:].reshape(3, n)  # overlaps
        op.function()(shifted[: 3 * n].reshape(3, n), *on_device(gpu, *arrays[1:]), out=out)
        assert_same_bits(out.get(), expected)


def test_batch_does_not_matter(gpu, op, dtype):
    for n in (10, 300, 700, 5000):
        arrays = op.make((40, n), dtype)
        all_rows = op.function()(*on_device(gpu, *arrays)).get()
        for i in (0, 17, 39):
            one = op.function()(*on_device(gpu, *(a[i : i + 1] for a in arrays))).get()
            assert_same_bits(one, all_rows[i : i + 1])


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


def test_traffic(gpu, op, dtype):
    """Each element is read and written once where shared memory holds a row, else read twice; whole sectors."""
    if not gpu.model:
        pytest.skip("only the model counts")
    itemsize = dtype_of(dtype).itemsize
    most = {"float32": 57344, "float16": 57344, "bfloat16": 57344, "float64": 28672}[dtype]
    most //= op.inputs
    most = most // 4096 * 4096
    for n, reads in ((16, 1), (128, 1), (512, 1), (1024, 1), (4096, 1), (most, 1), (131072, 2)):
        rows = max(2, 1024 // n)
        arrays = op.make((rows, n), dtype)
        gpu.launches.clear()
        with model_options(count=True, races=False):
            op.function()(*on_device(gpu, *arrays))
        counts = [launch[4] for launch in gpu.launches]
        elements = rows * n * itemsize
        loads, stores = (32 * sum(c[f"{kind}_sectors"] for c in counts) / elements for kind in ("load", "store"))
        # sectors that are not full; what is written and read again of blocks (72 bytes of 4096 elements) and rows
        noise = 0.01 if reads == 1 else 12 * 96 / (4096 * itemsize)
        expected = op.inputs * (reads if op.keeps_axis else 1)
        assert expected <= loads <= expected + noise, (n, loads)
        noise += 0 if op.keeps_axis else 2 * 32 / (n * itemsize)
        assert op.keeps_axis <= stores <= op.keeps_axis + noise, (n, stores)


def zeros(shape, dtype):
    """On the device, in memory that is not there until it is written."""
    shape, dtype = (shape,) if isinstance(shape, int) else shape, np.dtype(dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    memory = mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize), flags=flags)
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape).view(stand_in.ndarray)


def many_rows(n, count, dtype="float16"):
    """`count` arrays of n columns and more than 2^31 elements, all 0."""
    return [zeros((2**31 // n + 300, n), dtype) for _ in range(count)]


@pytest.mark.parametrize("n", [500, 3000, 60_000])
def test_offsets_of_rows_are_64_bits(gpu, n):
    """The last rows of arrays with more than 2^31 elements, by each kernel: the others are not computed."""
    if not gpu.model:
        pytest.skip("only the model leaves rows out")
    host = [logits((1, n), "float16", seed) for seed in (0, 1)]
    for op in (op for op in OPS if op.has_out):
        *given, y = many_rows(n, op.inputs + 1)
        for array, last in zip(given, host):
            array[-1] = last
        kernel = backend._launch(op.name, csoftmax._cpu.binding.DTYPES["float16"], n, backend._shared_limit(0))
        with model_options(last=kernel.blocks if kernel.kernel == "blocks" else 1):
            op.function()(*given, out=y)
        assert_same_bits(np.asarray(y.view(np.ndarray)[-1:]), op.function()(*host[: op.inputs]), op.name)
        assert not y.view(np.ndarray)[0].any()
    x, y = many_rows(n, 2)
    x[-1] = host[0]
    labels = gpu.cupy.full(len(x), n - 1, np.int64)
    with model_options(last=1):
        csoftmax.cross_entropy_with_grad(x, labels, reduction="sum", out=y)
    expected = csoftmax.cross_entropy_with_grad(host[0], np.array([n - 1]), reduction="sum")
    assert_same_bits(np.asarray(y.view(np.ndarray)[-1:]), expected.grad)
    assert not y.view(np.ndarray)[0].any()
    x, dy, y = many_rows(n, 3)
    x[-1], dy[-1] = host
    with model_options(last=-(-n // 8192)):
        got = csoftmax.topk(x, 3)
    assert np.array_equal(got.indices.get()[-1:], csoftmax.topk(host[0], 3).indices)
    with model_options(last=1):
        csoftmax.entmax_vjp(dy, x, 2.0, out=y)
        assert_same_bits(np.asarray(y.view(np.ndarray)[-1:]), csoftmax.entmax_vjp(host[1], host[0], 2.0))
        if n <= backend._ENTMAX_FEW:  # else few blocks go over all rows
            csoftmax.entmax(x, out=y)
            assert_same_bits(np.asarray(y.view(np.ndarray)[-1:]), csoftmax.entmax(host[0]))
    assert not y.view(np.ndarray)[0].any()


def test_offsets_of_soft_labels_and_draws_are_64_bits(gpu, monkeypatch):
    if not gpu.model:
        pytest.skip("only the model leaves rows out")
    n = 60_000
    (x, y), (q,) = many_rows(n, 2), many_rows(n, 1, "float32")
    row, labels = logits((1, n), "float16"), np.random.default_rng(0).random((1, n), np.float32)
    x[-1], q[-1] = row[0], labels[0]
    with model_options(last=1):
        csoftmax.cross_entropy_with_grad(x, q, label_smoothing=0.1, reduction="sum", out=y)
    expected = csoftmax.cross_entropy_with_grad(row, labels, label_smoothing=0.1, reduction="sum")
    assert_same_bits(np.asarray(y.view(np.ndarray)[-1:]), expected.grad)
    assert not y.view(np.ndarray)[0].any()

    # rows that are left out are not without mass
    monkeypatch.setattr(gpu.cupy, "empty", zeros)
    for options in ({}, {"min_p": 1e-6}, {"top_k": 9}):
        with model_options(last=-(-n // 4096)):
            got = csoftmax.sample(x, rng=FixedUniform(np.full(len(x), 0.7)), **options)
        assert got.get()[-1] == csoftmax.sample(row, rng=FixedUniform(np.array([0.7])), **options)[0], options


@pytest.mark.parametrize("n", [600, 60_000])
def test_offsets_of_survivors_are_64_bits(gpu, monkeypatch, n):
    """Rows of entmax with more survivors than shared memory holds, each with places of its own elsewhere."""
    if not gpu.model:
        pytest.skip("only the model leaves rows out")
    (x, y), row = many_rows(n, 2), np.linspace(-1e-3, 1e-3, n, dtype=np.float16)[None]
    x[-1] = row[0]
    monkeypatch.setattr(gpu.cupy, "empty", zeros)
    monkeypatch.setattr(backend, "_ELSEWHERE", 2**50)
    with model_options(last=1):
        csoftmax.entmax(x, 2.0, out=y)
    expected = csoftmax.entmax(row, 2.0)
    assert np.count_nonzero(expected) > backend._ENTMAX_FEW
    assert_same_bits(np.asarray(y.view(np.ndarray)[-1:]), expected)
    assert not y.view(np.ndarray)[0].any()


def test_offsets_of_keys_are_64_bits(gpu, monkeypatch):
    """A top-k of more than a kernel sorts."""
    if not gpu.model:
        pytest.skip("only the model leaves rows out")
    n, k = 60_000, backend._SORTED_BY_KERNEL + 1
    (x,), row = many_rows(n, 1), logits((1, n), "float16")
    x[-1] = row[0]

    def argsort(keys, axis):
        assert not keys.view(np.ndarray)[0].any()
        places = zeros(keys.shape, np.int64)
        places[-1] = np.argsort(keys.view(np.ndarray)[-1], kind="stable")
        return places

    monkeypatch.setattr(gpu.cupy, "empty", zeros)
    monkeypatch.setattr(gpu.cupy, "argsort", argsort)
    with model_options(last=-(-n // 128)):
        got = csoftmax.topk(x, k)
    expected = csoftmax.topk(row, k)
    assert_same_bits(np.asarray(got.values.view(np.ndarray)[-1:]), expected.values)
    assert np.array_equal(got.indices.view(np.ndarray)[-1:], expected.indices)


LONGEST = {
    "softmax": csoftmax.softmax,
    "cross_entropy": lambda x: csoftmax.cross_entropy_with_grad(x[None], labels_like(x), reduction="sum").grad,
    "logsumexp": csoftmax.logsumexp,
    "topk": lambda x: csoftmax.topk(x, 7).indices,
    "sparsemax": csoftmax.sparsemax,
    "sample": lambda x: csoftmax.sample(x, rng=0, size=3),
}


def labels_like(x):
    """A label in the last block, where x is."""
    label = np.array([x.shape[0] - 5])
    return label if type(x) is np.ndarray else sys.modules["cupy"].asarray(label)


@pytest.mark.parametrize(
    "name", ["softmax", "cross_entropy", *(pytest.param(n, marks=pytest.mark.long) for n in [*LONGEST][2:])]
)
def test_a_row_of_more_than_ten_million(gpu, name):
    x = logits((10_000_019,), "float32")
    x[[0, 4_999_999, -1]] = 30, -np.inf, 31
    with model_options(races=False):
        got = LONGEST[name](gpu.cupy.asarray(x)).get()
    assert_same_bits(np.atleast_1d(got), np.atleast_1d(LONGEST[name](x)), name)


def test_blocks_of_a_row_that_shared_memory_does_not_hold(gpu):
    """A row of the long kernels has a record for each of its blocks; where they are too many they are read in place."""
    n = 400_000
    with shared_memory(gpu, 17 * 1024):
        if gpu.model:
            records = 17 * 1024 // backend.BLOCK_BYTES
            n = (records + 1) * backend.BLOCK
            assert backend._launch("logsumexp", csoftmax._cpu.binding.DTYPES["float32"], n, 17 * 1024).staged == 0
        x = logits((n,), "float32")
        with model_options(races=False):
            assert_same_bits(csoftmax.logsumexp(gpu.cupy.asarray(x)).get(), np.asarray(csoftmax.logsumexp(x)))


@pytest.mark.long
@pytest.mark.parametrize("limit", [64 * 1024, 99 * 1024])  # of compute capability 7.5; of 8.6 and 12.0
def test_longest_rows_of_each_kernel(gpu, op, dtype, limit):
    """On devices with less shared memory than the model's: the last length of a kernel and the first of the next."""
    if not gpu.model:
        pytest.skip("a real device has its own limit")
    storage = csoftmax._cpu.binding.DTYPES[dtype]
    kernels = [backend.Launch(op.name, storage, n, limit).kernel for n in range(1, 60_000)]
    last = [n for n in range(1, len(kernels)) if kernels[n - 1] != kernels[n]]
    assert len(last) == 2
    with shared_memory(gpu, limit):
        for n in last:
            check(gpu, op, op.make((2, n), dtype))
            check(gpu, op, op.make((2, n + 1), dtype))


# Cross-entropy


def check_loss(gpu, x, target, name="cross_entropy", **options):
    """Loss and gradient have the CPU's bits; the gradient over the logits as well, and the loss alone."""
    loss, with_grad = getattr(csoftmax, name), getattr(csoftmax, f"{name}_with_grad")
    with np.errstate(all="ignore"):
        expected = with_grad(x, target, **options)
    given = {k: gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    what = f"{name} {x.shape} {x.dtype} {target.dtype} {options}"
    for backward in (False, True) if gpu.model else (False,):
        with model_options(backward=backward):
            there, labels = stand_in.on_device(x) if gpu.model else gpu.cupy.array(x), gpu.cupy.asarray(target)
            got = with_grad(there, labels, **given)
            assert isinstance(got.loss, gpu.cupy.ndarray)
            assert_same_bits(got.loss.get(), np.asarray(expected.loss), what)
            assert_same_bits(got.grad.get(), expected.grad, what)
            alone = {k: v for k, v in given.items() if k not in ("upstream", "clip_norm", "clip_value")}
            assert_same_bits(loss(there, labels, **alone).get(), np.asarray(expected.loss), what)
            with_grad(there, labels, out=there, **given)
            assert_same_bits(there.get(), expected.grad, what)


def targets(shape, dtype, seed=0):
    """Labels of every kind, and soft labels."""
    rng = np.random.default_rng(seed)
    rows, n = shape
    hard = rng.integers(0, n, rows)
    hard[rows // 2] = -100
    soft = rng.dirichlet(np.full(n, 0.3), rows).astype(np.float64 if dtype == "float64" else np.float32)
    return hard, soft * (soft > 1e-3)


@pytest.mark.parametrize("n", [1, 2, 7, 16, 17, 33, 64, 100, 513, 1000, 4096, 4097, 9000])
def test_cross_entropy(gpu, dtype, n):
    shape = (9 if n < 1000 else 3, n)
    x = logits(shape, dtype, seed=n, sigma=4)
    hard, soft = targets(shape, dtype, n)
    for reduction in ("mean", "sum", "none"):
        check_loss(gpu, x, hard, reduction=reduction)
    check_loss(gpu, x, soft)
    check_loss(gpu, x, hard, label_smoothing=0.1)


@pytest.mark.parametrize("n", [5, 70, 4500])
def test_cross_entropy_options(gpu, dtype, n):
    shape = (6, n)
    rng = np.random.default_rng(n)
    wide = np.float64 if dtype == "float64" else np.float32
    x = logits(shape, dtype, sigma=4)
    hard, soft = targets(shape, dtype)
    weight = (rng.random(n) * (rng.random(n) < 0.8)).astype(wide)
    sample = rng.random(6) * 3
    sample[4] = 0
    every = [
        {"weight": weight},
        {"sample_weight": sample, "reduction": "sum"},
        {"z_loss": 0.3},
        {"temperature": 0.3},
        {"temperature": 1e30, "z_loss": 1e-3},
        {"clip_norm": 0.05},
        {"clip_value": 1e-3, "reduction": "none", "upstream": sample},
        {"upstream": 1e-30, "reduction": "sum"},
        {"upstream": 1e30},
        {"weight": weight, "sample_weight": sample, "label_smoothing": 0.2, "z_loss": 0.1, "temperature": 2.5,
         "clip_norm": 0.1, "clip_value": 0.01, "upstream": 0.7},
    ]  # fmt: skip
    for options in every:
        check_loss(gpu, x, hard, **options)
        check_loss(gpu, x, soft, **options)
        check_loss(gpu, x, hard, label_smoothing=0.05, **{k: v for k, v in options.items() if k != "label_smoothing"})


def test_cross_entropy_beyond_shared_memory(gpu, dtype):
    shape = (3, 30_001)
    x = logits(shape, dtype, sigma=4)
    hard, soft = targets(shape, dtype)
    hard[0] = 25_000
    with shared_memory(gpu, 64 * 1024):
        for options in ({}, {"clip_norm": 0.01, "label_smoothing": 0.1}, {"temperature": 1e-30}):
            check_loss(gpu, x, hard, **options)
            check_loss(gpu, x, soft, **options)
    check_loss(gpu, logits((2, 700_000), dtype), np.array([3, 600_000]))  # what is known of blocks lies elsewhere


def test_alignment_of_soft_labels(gpu, dtype):
    """Labels, logits and class weights that begin anywhere, each for itself."""
    for n in (37, 5000):
        x, (_, soft) = logits((3, n), dtype), targets((3, n), dtype)
        weight = np.random.default_rng(n).random(n).astype(soft.dtype)
        for options in ({}, {"weight": weight}):
            expected = csoftmax.cross_entropy_with_grad(x, soft, **options)
            for offsets in ((0, 1, 2), (1, 0, 3), (3, 2, 0)):
                views = []
                for a, offset in zip((x, soft, weight), offsets):
                    view = gpu.cupy.empty(a.size + 4, a.dtype)[offset : offset + a.size].reshape(a.shape)
                    view[...] = gpu.cupy.asarray(a)
                    views.append(view)
                got = csoftmax.cross_entropy_with_grad(*views[:2], weight=views[2] if options else None)
                assert_same_bits(got.grad.get(), expected.grad, f"{n} {options} {offsets}")
                assert_same_bits(got.loss.get(), np.asarray(expected.loss))


def test_cross_entropy_special_values(gpu, dtype):
    for n in (3, 40, 4100):
        x = special_rows(n, dtype)
        hard, soft = targets(x.shape, dtype)
        for reduction in ("none", "mean"):
            check_loss(gpu, x, hard, reduction=reduction)
            check_loss(gpu, x, soft, reduction=reduction, label_smoothing=0.1)
        x[:, 0] = np.inf  # rows that take no part may hold anything
        check_loss(gpu, x, np.full(len(x), -100), reduction="sum")


def test_soft_labels_that_overflow(gpu):
    """Found by a fuzzer: four labels whose sum is beyond float32."""
    for n in (49, 64, 5000):
        soft = np.zeros((1, n), np.float32)
        soft[0, 0:64:16] = 1e38
        check_loss(gpu, np.zeros((1, n), np.float32), soft)
        check_loss(gpu, np.zeros((1, n), np.float32), soft, label_smoothing=0.1)
    soft, weight = np.array([[3e38, 0.5, 0.5]], np.float32), np.array([0, 1, 1], np.float32)
    options = {"weight": weight, "sample_weight": np.array([1e3]), "reduction": "sum"}
    check_loss(gpu, np.zeros((1, 3), np.float32), soft, **options)
    got = csoftmax.cross_entropy_with_grad(np.zeros((1, 3), np.float32), soft, **options)
    assert np.isfinite(got.grad).all()
    assert np.isfinite(csoftmax.cross_entropy(np.zeros((1, 64), np.float32), np.ones((1, 64), np.float32) * 1e38 * 0.5))


@pytest.mark.parametrize("value", [-1e-3, np.nan, np.inf])
def test_bad_soft_labels_at_every_index(gpu, value):
    """Each in a row of its own; the last row has none."""
    n = 77
    q = np.random.default_rng(0).random((n + 1, n), np.float32)
    q[np.arange(n), np.arange(n)] = value
    x = logits((n + 1, n))
    for weight in (None, gpu.cupy.asarray(np.ones(n))):
        got = csoftmax.cross_entropy(*on_device(gpu, x, q), weight=weight, reduction="none").get()
        assert np.isnan(got[:n]).all()
        assert_same_bits(got[n:], csoftmax.cross_entropy(x[n:], q[n:], reduction="none"))


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_label_types(gpu, kind):
    x = logits((5, 90))
    for ignore in (-100, 3, 2**63, -1):
        target = np.array([0, 3, 89, 7, 3]).astype(kind)
        check_loss(gpu, x, target, ignore_index=ignore)


def test_labels_along_other_axes(gpu):
    x = logits((4, 11, 5))
    target = np.random.default_rng(0).integers(0, 11, (4, 5))
    expected = csoftmax.cross_entropy_with_grad(x, target, axis=1)
    got = csoftmax.cross_entropy_with_grad(gpu.cupy.asarray(x), gpu.cupy.asarray(target), axis=1)
    assert_same_bits(got.loss.get(), np.asarray(expected.loss))
    assert_same_bits(got.grad.get(), expected.grad)


def bad_targets():
    """Labels and soft labels whose middle rows are bad, and what raises then."""
    soft = np.full((5, 30), 1 / 30, np.float32)
    soft[1, 4], soft[2, 29], soft[3, 0] = -1, np.nan, np.inf
    return (np.array([1, 30, -1, 2**40, 29]), IndexError), (soft, ValueError)


@pytest.mark.parametrize("name", ["cross_entropy", "entmax_loss"])
def test_bad_labels(gpu, monkeypatch, name):
    """NaN in their rows, of loss and gradient; an exception where the host is to wait."""
    loss, with_grad = getattr(csoftmax, name), getattr(csoftmax, f"{name}_with_grad")
    x = logits((5, 30))
    there, bad = gpu.cupy.asarray(x), [False, True, True, True, False]
    for wrong, error in bad_targets():
        labels = gpu.cupy.asarray(wrong)
        got = with_grad(there, labels, reduction="none")
        assert np.array_equal(np.isnan(got.loss.get()), bad)
        assert np.array_equal(np.isnan(got.grad.get()).all(-1), bad)
        assert_same_bits(got.grad.get()[::4], with_grad(x[::4], wrong[::4], reduction="none").grad)
        assert np.isnan(loss(there, labels).get())
        with monkeypatch.context() as m:
            m.setenv("CSOFTMAX_SYNC_CHECKS", "1")
            with pytest.raises(error):
                loss(there, labels)
        if name == "cross_entropy":  # the divisor of its mean counts the good rows
            expected = csoftmax.cross_entropy_with_grad(x[::4], wrong[::4])
            assert_same_bits(with_grad(there, labels).grad.get()[::4], expected.grad)
        else:
            assert np.array_equal(np.isnan(loss(there, labels, 1.0, reduction="none").get()), bad)
    with pytest.raises(IndexError, match=r"target\[1\] is 30"):
        csoftmax.check_labels(gpu.cupy.asarray(bad_targets()[0][0]), 30)
    with pytest.raises(csoftmax.DeviceError, match="target is on the CPU"):
        loss(there, np.arange(5))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_no_rows_or_no_classes(gpu, shape):
    x, target = np.zeros(shape, np.float32), np.full(shape[0], -100)
    for reduction in ("mean", "sum", "none"):
        with np.errstate(all="ignore"):
            expected = csoftmax.cross_entropy_with_grad(x, target, reduction=reduction)
        got = csoftmax.cross_entropy_with_grad(gpu.cupy.asarray(x), gpu.cupy.asarray(target), reduction=reduction)
        assert_same_bits(got.loss.get(), np.asarray(expected.loss))
        assert got.grad.shape == shape
        w = np.zeros((shape[1], 4), np.float32)
        arrays = np.zeros((shape[0], 4), np.float32), w, target
        with np.errstate(all="ignore"):
            expected = csoftmax.linear_cross_entropy_with_grad(*arrays, reduction=reduction)
        got = csoftmax.linear_cross_entropy_with_grad(*on_device(gpu, *arrays), reduction=reduction)
        for one, other in zip(got[:3], expected[:3], strict=True):
            assert_same_bits(one.get(), np.asarray(other))


def test_many_row_losses(gpu):
    """The tree over rows, whatever their number."""
    for rows in (1, 7, 8, 9, 63, 64, 65, 1000):
        x = logits((rows, 3), seed=rows)
        target = np.arange(rows) % 3
        for reduction in ("mean", "sum"):
            got = csoftmax.cross_entropy(gpu.cupy.asarray(x), gpu.cupy.asarray(target), reduction=reduction)
            assert_same_bits(got.get(), np.asarray(csoftmax.cross_entropy(x, target, reduction=reduction)))


def test_loss_arguments_on_the_host(gpu):
    x, target, weight = logits((4, 6)), np.arange(4), np.ones(6, np.float32)
    there = gpu.cupy.asarray(x)
    with pytest.raises(csoftmax.DeviceError, match="target is on the CPU"):
        csoftmax.cross_entropy(there, target)
    with pytest.raises(csoftmax.DeviceError, match="weight is on the CPU"):
        csoftmax.cross_entropy(there, gpu.cupy.asarray(target), weight=weight)
    with pytest.raises(ValueError, match="weight must be at least 0"):
        csoftmax.cross_entropy(x, target, weight=-weight, device="cuda")
    got = csoftmax.cross_entropy(x, target, weight=weight, sample_weight=[1, 2, 0, 1], device="cuda")
    assert_same_bits(
        got.get(), np.asarray(csoftmax.cross_entropy(x, target, weight=weight, sample_weight=[1, 2, 0, 1]))
    )
    back = csoftmax.cross_entropy(there, gpu.cupy.asarray(target), device="cpu")
    assert back == csoftmax.cross_entropy(x, target)


def test_traffic_of_cross_entropy(gpu, dtype):
    """Each logit is read and written once where shared memory holds the row, else read twice: beside them labels,
    constants and row losses, a few sectors a row.  Of soft labels the mean's divisor takes one read, the row two, the
    last of which asks twice for each sector of half types, once for each half."""
    if not gpu.model:
        pytest.skip("only the model counts")
    itemsize = dtype_of(dtype).itemsize
    wide = np.dtype(np.float64 if dtype == "float64" else np.float32)
    most = 28672 if dtype == "float64" else 57344
    for n, reads in ((64, 1), (256, 1), (1024, 1), (2048, 1), (4096, 1), (most, 1), (131072, 2)):
        x = gpu.cupy.asarray(logits((2, n), dtype))
        for soft in (False, True):
            q = np.random.default_rng(n).random((2, n)).astype(wide) if soft else np.array([1, n - 1])
            gpu.launches.clear()
            with model_options(count=True, races=False):
                csoftmax.cross_entropy_with_grad(x, gpu.cupy.asarray(q))
            before, counts = (
                next(launch[4] for launch in gpu.launches if launch[0] == name)
                for name in ("masses" if soft else "labels", "rows")
            )
            sectors, of_labels = n * itemsize // 32, n * wide.itemsize // 32 if soft else 0
            loads, stores = (counts[f"{kind}_sectors"] / 2 for kind in ("load", "store"))
            more = of_labels * (3 if itemsize == 2 else 2)
            assert 0 <= loads - reads * sectors <= 8 + more, (n, soft, loads)
            assert 0 <= stores - sectors <= 2, (n, soft, stores)
            assert 0 <= before["load_sectors"] / 2 - of_labels <= 1, (n, soft, before)


# Top-k and entmax


def check_topk(gpu, x, k, **options):
    """Values, indices and probabilities of the CPU, whichever thread goes first."""
    mask = options.pop("where", None)
    for backward in (False, True) if gpu.model else (False,):
        with model_options(backward=backward):
            there = gpu.cupy.asarray(x)
            results = (
                [] if mask is not None else [(csoftmax.topk, {"largest": True}), (csoftmax.topk, {"largest": False})]
            )
            results += [(csoftmax.topk_softmax, {"normalize": n, "temperature": 0.7}) for n in ("topk", "full")]
            for function, own in results:
                masks = (
                    {} if mask is None else {"where": mask},
                    {} if mask is None else {"where": gpu.cupy.asarray(mask)},
                )
                expected, got = (
                    function(x, k, **own, **options, **masks[0]),
                    function(there, k, **own, **options, **masks[1]),
                )
                what = f"{function.__name__} {x.shape} {x.dtype} {k} {own} {options}"
                assert isinstance(got.values, gpu.cupy.ndarray)
                assert_same_bits(got.values.get(), expected.values, what)
                assert np.array_equal(got.indices.get(), expected.indices), what


@pytest.mark.parametrize("n", [1, 2, 5, 31, 32, 33, 500, 513, 1100, 4100])
def test_topk(gpu, dtype, n):
    x = logits((3, n), dtype, seed=n)
    ties = np.round(logits((4, n), dtype, seed=n) * 2)  # -0 and 0 among them
    ties[3] = 1
    for k in sorted({1, 2, n // 3, n - 1, n} & set(range(1, n + 1))):
        if k <= 1024:
            check_topk(gpu, x, k)
            check_topk(gpu, ties, k)


@pytest.mark.parametrize("n", [1, 2, 19, 600])
def test_topk_of_special_values(gpu, dtype, n):
    x = special_rows(n, dtype)
    for k in {1, n // 2 or 1, n}:
        check_topk(gpu, x, k)


def test_topk_in_pieces(gpu, dtype):
    """Rows of several pieces, cut again; equal elements on both sides of a cut."""
    x = np.round(logits((2, 40_000), dtype), 1)
    x[1, 5:] = 0
    for k in (1, 33, 1000):
        check_topk(gpu, x, k)
    with shared_memory(gpu, 48 * 1024):
        gpu.launches.clear()
        expected = csoftmax.topk(np.tile(x[:1], 4), 1000)
        got = csoftmax.topk(gpu.cupy.asarray(np.tile(x[:1], 4)), 1000)
        assert np.array_equal(got.indices.get(), expected.indices)
    cuts = [launch[1] for launch in gpu.launches if launch[0] == "choose"]
    assert not gpu.model or len(set(cuts)) >= 3


def test_topk_of_many(gpu, dtype):
    """More than a kernel sorts."""
    x = np.round(logits((2, 3000), dtype) * 8) / 8
    x[1, 7], x[1, 2000] = np.nan, -np.inf
    for k in (1025, 3000):
        check_topk(gpu, x, k)


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
    with pytest.raises(ValueError, match="values and indices lie at one place"):
        csoftmax.topk_softmax(x, 2, out=(out[1].view(np.float32)[:, :2], out[1]))
    assert not gpu.launches
    both = gpu.cupy.empty((4, 4), np.int64)  # side by side in one array
    csoftmax.topk_softmax(x, 2, out=(both.view(np.float32)[:, :2], both[:, 2:]))
    assert np.array_equal(both[:, 2:].get(), csoftmax.topk(x, 2).indices.get())


@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.05, 1.3, 3.0, 30.0])
@pytest.mark.parametrize("n", [1, 2, 9, 33, 257, 700, 5000])
def test_entmax(gpu, dtype, n, alpha):
    for sigma in (0.02, 2):  # nearly everything survives; few do
        x = logits((3, n), dtype, seed=n, sigma=sigma)
        check_entmax(gpu, x, alpha)


def check_entmax(gpu, x, alpha, **options):
    expected = csoftmax.entmax(x, alpha, **options)
    dy = logits(x.shape, x.dtype.name, seed=99)
    with np.errstate(all="ignore"):
        gradient = csoftmax.entmax_vjp(dy, expected, alpha, **options)
    given = {k: gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    what = f"{x.shape} {x.dtype} {alpha} {options}"
    for backward in (False, True) if gpu.model else (False,):
        with model_options(backward=backward):
            there = stand_in.on_device(x) if gpu.model else gpu.cupy.array(x)
            y = csoftmax.entmax(there, alpha, **given)
            assert isinstance(y, gpu.cupy.ndarray)
            assert_same_bits(y.get(), expected, what)
            assert_same_bits(csoftmax.entmax_vjp(gpu.cupy.asarray(dy), y, alpha, **given).get(), gradient, what)
            assert csoftmax.entmax(there, alpha, out=there, **given) is there
            assert_same_bits(there.get(), expected, what)
            csoftmax.entmax_vjp(gpu.cupy.asarray(dy), there, alpha, out=there, **given)
            assert_same_bits(there.get(), gradient, what)


@pytest.mark.parametrize("n", [1, 2, 19, 600])
def test_entmax_of_special_values(gpu, dtype, n):
    x = special_rows(n, dtype)
    for alpha in (1.5, 2.0, 1.2, 4.0):
        check_entmax(gpu, x, alpha)


def test_entmax_beyond_shared_memory(gpu, dtype):
    """Parts of a row; few survivors and many, some that later ones leave behind; more rows than places for those."""
    sigmas = 3, 0.001, 1, 0, 0, 0, 1, 1, 0, 0, 0
    x = np.stack([logits(20_000, dtype, seed, sigma) for seed, sigma in enumerate(sigmas)])
    x[4], x[5] = np.linspace(-40, 40, 20_000), np.linspace(40, -40, 20_000)
    x[6, 4:19_000], x[7, :5] = -np.inf, -np.inf
    x[8, -1] = 9  # leaves all others behind, which are more than FEW
    x[9, 19_999], x[10, 12_000] = np.nan, np.inf
    with shared_memory(gpu, 64 * 1024):
        for alpha in (1.5, 2.0):
            check_entmax(gpu, x, alpha)
    if gpu.model:
        with mock.patch.object(backend, "_ELSEWHERE", 2 * 40 * 20_000):
            check_entmax(gpu, x, 2.0)


def test_entmax_with_as_many_survivors_as_places(gpu, dtype):
    few = backend._ENTMAX_FEW
    for n in (600, 5000):
        x = np.full((4, n), -50, dtype_of(dtype))
        for row, count in zip(x, (few - 1, few, few + 1, few + 8), strict=True):
            row[np.linspace(0, n - 1, count).astype(int)] = 0
        check_entmax(gpu, x, 2.0)


def test_entmax_layouts(gpu, dtype):
    x = logits((3, 40, 5), dtype)
    for axis in (0, 1, -1, (0, 2), None):
        check_entmax(gpu, x, 1.5, axis=axis)
    mask = np.random.default_rng(0).random((3, 40, 5)) < 0.5
    mask[1] = False
    check_entmax(gpu, x, 2.0, where=mask)
    for n in (600, 2000, 5000):  # several warps mask what others have loaded
        mask = np.random.default_rng(n).random((3, n)) < 0.5
        check_entmax(gpu, logits((3, n), dtype), 1.5, where=mask)
    for n in (11, 701):
        rows = logits((3, n), dtype)
        expected = csoftmax.sparsemax(rows)
        for offset in range(1, 9):  # rows that begin anywhere
            memory = gpu.cupy.empty(3 * n + 16, rows.dtype)
            view = memory[offset : offset + 3 * n].reshape(3, n)
            view[...] = gpu.cupy.asarray(rows)
            assert_same_bits(csoftmax.sparsemax(view).get(), expected, f"offset {offset}")
    for shape in ((0,), (0, 5), (5, 0), (1,)):
        check_entmax(gpu, np.zeros(shape, dtype_of(dtype)), 2.0)
    assert_same_bits(csoftmax.entmax(gpu.cupy.asarray(x), 1.0).get(), csoftmax.softmax(x))


def check_entmax_loss(gpu, x, target, alpha, **options):
    check_loss(gpu, x, target, "entmax_loss", alpha=alpha, **options)


LOSSES = [("mean", 2), ("sum", 0.05), ("none", 5)]  # reduction, sigma


@pytest.mark.parametrize(
    ("n", "losses"),
    [
        *((n, LOSSES) for n in (1, 2, 9, 40)),
        *((n, LOSSES[1:2]) for n in (700, 5000)),  # nearly everything survives
        *(pytest.param(n, LOSSES[::2], marks=pytest.mark.long) for n in (700, 5000)),
    ],
)
@pytest.mark.parametrize("alpha", [1.5, 2.0, 1.1, 3.0])
def test_entmax_loss(gpu, dtype, n, alpha, losses):
    for reduction, sigma in losses:
        x = logits((5, n), dtype, seed=n, sigma=sigma)
        hard, soft = targets(x.shape, dtype, n)
        hard[2] = n - 1
        hard[3] = x[3].argmax()  # in the support
        soft[1] *= 1.5  # not a distribution
        check_entmax_loss(gpu, x, hard, alpha, reduction=reduction)
        check_entmax_loss(gpu, x, soft, alpha, reduction=reduction)


def test_entmax_loss_of_special_values_and_layouts(gpu, dtype):
    for n in (3, 40, 700):
        x = special_rows(n, dtype)
        hard, soft = targets(x.shape, dtype)
        for alpha in (1.5, 2.0, 1.3):
            check_entmax_loss(gpu, x, np.abs(hard) % n, alpha, reduction="none")
            check_entmax_loss(gpu, x, soft, alpha, reduction="none")
    x = logits((4, 11, 5), dtype)
    target = np.random.default_rng(0).integers(0, 11, (4, 5))
    mask = np.random.default_rng(1).random((4, 11, 5)) < 0.7
    check_entmax_loss(gpu, x, target, 2.0, axis=1)
    check_entmax_loss(gpu, x, target.astype(np.uint8), 1.5, axis=1, where=mask)
    with shared_memory(gpu, 48 * 1024):
        x = np.stack([logits(20_000, dtype, seed, sigma) for seed, sigma in enumerate((3, 0.001))])
        hard, soft = targets(x.shape, dtype)
        check_entmax_loss(gpu, x, np.array([19_999, 5]), 1.5)
        check_entmax_loss(gpu, x, soft, 2.0)
    for shape in ((0, 5), (0, 0), (3, 0)):
        soft = np.zeros(shape, np.float64 if dtype == "float64" else np.float32)
        for reduction in ("mean", "sum", "none"):
            check_entmax_loss(gpu, np.zeros(shape, dtype_of(dtype)), soft, 1.5, reduction=reduction)
    for alpha in (1.0, 1.5):  # no label is a class
        got = csoftmax.entmax_loss(*on_device(gpu, x[:2, :0], np.zeros(2, np.int32)), alpha, reduction="none")
        assert np.isnan(got.get()).all()


def test_entmax_loss_with_alpha_1(gpu, dtype):
    """Cross-entropy, and with soft labels what CuPy computes of it: not the CPU's bits."""
    x = logits((6, 30), dtype)
    hard, soft = targets(x.shape, dtype)
    hard[hard < 0] = 1
    soft[2] *= 2
    for target, reduction in itertools.product((hard, soft), ("mean", "none")):
        expected = csoftmax.entmax_loss_with_grad(x, target, 1.0, reduction=reduction)
        got = csoftmax.entmax_loss_with_grad(*on_device(gpu, x, target), 1.0, reduction=reduction)
        for one, other in zip(got, expected, strict=True):
            assert isinstance(one, gpu.cupy.ndarray)
            assert one.dtype == np.asarray(other).dtype
            one, other = one.get().astype(np.float64), np.asarray(other).astype(np.float64)
            assert np.allclose(one, other, rtol=1e-2 if other.ndim == 2 and x.itemsize == 2 else 1e-5, atol=1e-6)


def test_traffic_of_topk_and_entmax(gpu, dtype):
    """Read once and written once where shared memory holds the row; a top-k reads a row once, however long it is."""
    if not gpu.model:
        pytest.skip("only the model counts")
    itemsize = dtype_of(dtype).itemsize

    def sectors(call, n):
        gpu.launches.clear()
        with model_options(count=True, races=False):
            call()
        counts = [launch[4] for launch in gpu.launches]
        return [32 * sum(c[f"{k}_sectors"] for c in counts) / (2 * n * itemsize) for k in ("load", "store")]

    for n in (1024, 4096, 20_000, 131_072):
        x = gpu.cupy.asarray(logits((2, n), dtype, sigma=4))
        y = csoftmax.sparsemax(x)
        support = 2 * 32 * 64 / (n * itemsize)  # a sector for each of what has probability
        loads, stores = sectors(lambda x=x: csoftmax.sparsemax(x), n)
        assert 1 <= loads <= 1.02, (n, loads)
        assert 1 <= stores <= 1 + 0.02 + support, (n, stores)
        loads, stores = sectors(lambda x=x, y=y: csoftmax.entmax_vjp(x, y, 2.0), n)
        reads = 1 if n < 9000 else 2
        assert 2 * reads <= loads <= 2 * reads + 0.02, (n, loads)
        assert 1 <= stores <= 1.02, (n, stores)
        loads, stores = sectors(lambda x=x: csoftmax.topk(x, 5), n)
        extra = 5 * (32 + 16) * (1 + -(-n // 8192)) / (n * itemsize)
        assert 1 <= loads <= 1.02 + extra, (n, loads)
    labels = gpu.cupy.asarray(np.zeros(2, np.int32))
    loads, stores = sectors(lambda: csoftmax.entmax_loss_with_grad(x, labels, 2.0), n)
    assert 1 <= loads <= 1.02, loads
    assert 1 <= stores <= 1.02 + support, stores
    if itemsize > 2:  # places run out often, and are found again
        rising = gpu.cupy.asarray(np.tile(np.linspace(-109, 109, n).astype(x.dtype), (2, 1)))
        loads, stores = sectors(lambda: csoftmax.entmax(rising, 3.0), n)
        assert 1 <= loads <= 1.02, loads
        assert 1 <= stores <= 1.02 + support, stores


def test_launch_rules_of_topk_and_entmax():
    for dtype, limit in itertools.product(backend.SUFFIX, (48 * 1024, 99 * 1024, 227 * 1024)):
        for n in (*range(1, 100), 1000, 8191, 8192, 8193, 20_000, 65_535, 65_536, 10**7):
            for k in {1, min(n, 50), min(n, 1024)}:
                piece, warps, shared = backend.launch_topk(dtype, n, k, limit)
                assert shared <= limit
                assert 1 <= warps <= 16
                assert 1 <= piece <= min(n, 65535)
                assert piece == n or piece >= 2 * k  # candidates get fewer
            for gradient in (False, True):
                part, warps, shared, elsewhere = backend.launch_entmax(dtype, n, gradient, limit)
                assert shared <= limit
                assert 1 <= warps <= 8
                assert 1 <= part <= n
                assert elsewhere in (0, -(-n // 8) * 8)


# Draws


def check_sample(gpu, x, **options):
    """The CPU's draws, whichever thread goes first."""
    options = {"rng": 5, **options}
    expected = csoftmax.sample(x, **options)
    given = {k: gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    for backward in (False, True) if gpu.model else (False,):
        with model_options(backward=backward):
            got = csoftmax.sample(gpu.cupy.asarray(x), **given)
        assert isinstance(got, gpu.cupy.ndarray)
        assert got.dtype == np.int64
        assert np.array_equal(got.get(), expected), f"{x.shape} {x.dtype} {options}"


FILTERS = [
    {},
    {"temperature": 0.4},
    {"temperature": 0.0},
    {"min_p": 0.2},
    {"top_k": 5},
    {"top_p": 0.8},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.7, "min_p": 0.1},
    {"temperature": 1e-30, "top_p": 0.5},
    {"temperature": np.inf, "min_p": 0.5},
]


@pytest.mark.parametrize("options", FILTERS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 33, 500, 4097])
def test_sample(gpu, dtype, n, options):
    x = logits((3, n), dtype, seed=n, sigma=2)
    check_sample(gpu, x, **options)
    check_sample(gpu, x, size=70, **options)


def test_sample_of_long_rows(gpu, dtype):
    """Masses that are too small for their type, blocks without any, the ends of the uniform numbers."""
    x = logits((3, 13_000), dtype, sigma=4)
    x[0, :4096], x[0, 9000] = -np.inf, 60
    x[1, 5000:], x[1, 100] = -200, 12
    for options in ({}, {"min_p": 1e-3}, {"temperature": 0.01}, {"top_k": 900, "top_p": 0.99}):
        check_sample(gpu, x, size=40, **options)
    u = np.tile([0.0, 1 - 2.0**-53, 1.0], (3, 1))  # 1: as if all sums had been rounded down
    for options in ({}, {"min_p": 1e-3}, {"top_k": 900}):
        check_sample(gpu, x, size=3, rng=FixedUniform(u), **options)


def test_sample_from_more_than_a_kernel_sorts(gpu):
    """The nucleus of flat rows, and large top_k: the 1024 largest are not enough."""
    x = logits((4, 6000), "float32", sigma=0.3)
    x[1] *= 30
    for options in ({"top_p": 0.5}, {"top_p": 1 - 1e-12}, {"top_k": 5000}, {"top_k": 5000, "top_p": 0.97}):
        gpu.launches.clear()
        check_sample(gpu, x, size=9, **options)
        assert not gpu.model or {"keys", "chosen"} <= {launch[0] for launch in gpu.launches}


def test_sample_parameters_of_each_row(gpu, dtype):
    x = logits((6, 1500), dtype, sigma=2)
    parameters = {
        "temperature": np.array([0, 0.5, 1, 2, np.inf, 1]),
        "top_k": np.array([50, 5, 1500, 1200, 3, 2**62]),
        "top_p": np.array([1, 0.5, 1, 1, 1, 0.3]),
        "min_p": np.array([0, 0, 0.01, 0.1, 0, 1]),
    }
    check_sample(gpu, x, size=9, **parameters)
    check_sample(gpu, x.reshape(2, 3, 1500), size=(2, 2), **{k: v.reshape(2, 3) for k, v in parameters.items()})
    for name, values in parameters.items():
        check_sample(gpu, x, **{name: values})


def test_sample_layouts(gpu, dtype):
    x = logits((3, 40, 5), dtype)
    for axis in (0, 1, -1, (0, 2), None):
        check_sample(gpu, x, axis=axis, size=2)
    check_sample(gpu, np.asfortranarray(x), axis=1, top_k=3)
    mask = np.random.default_rng(0).random((3, 40, 5)) < 0.5
    mask[..., 0] = True
    check_sample(gpu, np.where(mask, x, np.nan).astype(x.dtype), where=mask, size=9)
    check_sample(gpu, x, where=mask[:, :1], top_p=0.5)
    for shape, size in (((0, 5), 2), ((2, 0, 5), None), ((4, 6), 0)):
        check_sample(gpu, np.zeros(shape, dtype_of(dtype)), size=size)
    there = gpu.cupy.asarray(x)
    out = gpu.cupy.empty((5, 3), np.int64).T
    assert csoftmax.sample(there, axis=1, rng=0, out=out) is out
    assert np.array_equal(out.get(), csoftmax.sample(x, axis=1, rng=0))
    assert np.array_equal(csoftmax.sample(x, rng=0, device="cuda").get(), csoftmax.sample(x, rng=0))
    assert np.array_equal(csoftmax.sample(there, rng=0, device="cpu"), csoftmax.sample(x, rng=0))


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.0}, {"min_p": 0.2}], ids=str)
def test_sample_without_mass(gpu, dtype, options):
    """Also among rows that have it, which are drawn from."""
    for value, text in ((np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "nothing but -inf")):
        x = logits((4, 50), dtype)
        x[2, 25 if value != -np.inf else slice(None)] = value
        with pytest.raises(ValueError, match=rf"no mass to draw from in row \(2\): it holds {text}"):
            csoftmax.sample(gpu.cupy.asarray(x), rng=0, **options)
        factor = 1e3 if dtype == "float16" else 1e9  # the latter is beyond what exp takes as it is
        x = (x.reshape(2, 2, 50).astype(np.float64) * factor).astype(x.dtype)
        with pytest.raises(ValueError, match=rf"no mass to draw from in row \(1, 0\): it holds {text}"):
            csoftmax.sample(gpu.cupy.asarray(x), rng=0, **options)
    with pytest.raises(ValueError, match=r"in row \(0\): it holds nothing but -inf"):
        csoftmax.sample(gpu.cupy.empty((3, 0), np.float32))


def test_first_row_without_mass(gpu):
    """Rows that are drawn from in different ways, some of which want more logits than were chosen at first."""
    x = logits((6, 3000), "float32", sigma=0.1)
    top_k, top_p = np.array([5, 3000, 2000, 3000, 5, 3000]), np.array([1, 1, 1, 0.9, 1, 1])
    for bad in ((1, 4), (4, 5), (0, 1), (3, 5), (2, 3)):
        y = x.copy()
        y[list(bad)] = -np.inf
        with pytest.raises(ValueError, match=rf"in row \({bad[0]}\)"):
            csoftmax.sample(gpu.cupy.asarray(y), top_k=top_k, top_p=top_p, rng=0)


def test_sample_parameters_from_elsewhere(gpu):
    x = logits((3, 40), "float32")
    there, k = gpu.cupy.asarray(x), np.array([1, 5, 9])
    expected = csoftmax.sample(x, top_k=k, temperature=None, rng=0)
    for given in (k, gpu.cupy.asarray(k)):
        assert np.array_equal(csoftmax.sample(there, top_k=given, temperature=None, rng=0).get(), expected)
        assert np.array_equal(csoftmax.sample(x, top_k=given, rng=0, device="cuda").get(), expected)
        assert np.array_equal(csoftmax.sample(x, top_k=given, rng=0, device="cpu"), expected)
        assert np.array_equal(csoftmax.sample(there, top_k=given, rng=0, device="cpu"), expected)


def test_sample_errors(gpu):
    x = gpu.cupy.asarray(logits((4, 30)))
    for options in ({"temperature": -1}, {"top_k": 0}, {"top_p": [0.5, 2, 1, 1]}, {"min_p": [1, 2]}, {"size": -1}):
        with pytest.raises(ValueError, match=next(iter(options))):
            csoftmax.sample(x, **options)
    with pytest.raises(TypeError, match=r"out must be a cupy.ndarray"):
        csoftmax.sample(x, out=np.empty(4, np.int64))
    with pytest.raises(csoftmax.DeviceError, match="where is on the CPU"):
        csoftmax.sample(x, where=np.ones(30, bool))
    assert not gpu.launches


def test_traffic_of_sample(gpu, dtype):
    """Read once, and the block of 4096 in which a draw lands again."""
    if not gpu.model:
        pytest.skip("only the model counts")
    blocks = 32
    x = gpu.cupy.asarray(logits((2, 4096 * blocks), dtype))
    gpu.launches.clear()
    with model_options(count=True, races=False):
        csoftmax.sample(x, rng=0)
    first, again, draw = (16 * launch[4]["load_sectors"] for launch in gpu.launches)  # bytes of a row
    part = 40 if dtype == "float64" else 24
    known = blocks * (5 * blocks * part + 1024)  # five fields of all blocks, the temperature: in caches
    assert known < 0.75 * blocks * 4096 * x.itemsize
    assert 0 <= first - blocks * 4096 * x.itemsize <= blocks * 1024
    assert again <= known
    assert 0 <= draw - 4096 * x.itemsize <= known


# The linear layer


def check_linear(gpu, dtype, soft=False, chunk_bytes=None, **options):
    rng = np.random.default_rng(5)
    rows, features, classes = 23, 17, 301
    x, w = logits((rows, features), dtype, 1), logits((classes, features), dtype, 2, 0.4)
    bias = logits(classes, dtype, 3)
    wide = np.float64 if dtype == "float64" else np.float32
    target = rng.dirichlet(np.ones(classes), rows).astype(wide) if soft else rng.integers(0, classes, rows)
    if not soft:
        target[4] = -100
        x[4] = np.nan  # takes no part
    if "sample_weight" in options:
        x[7] = np.inf
    expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias, **options)
    there = {k: gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    given = on_device(gpu, x, w, target)
    got = csoftmax.linear_cross_entropy_with_grad(*given, bias=gpu.cupy.asarray(bias), chunk_bytes=chunk_bytes, **there)
    # the products are rounded otherwise; half types round their results
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


# device=


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
    """Everything is allocated and computed where the first argument is."""
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
            *csoftmax.cross_entropy_with_grad(given, labels, upstream=2.0, weight=gpu_ones(gpu, 30)),
            *csoftmax.linear_cross_entropy_with_grad(given, there[:3], of_three, bias=gpu_ones(gpu, 3)),
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


def gpu_ones(gpu, n):
    with gpu.cupy.cuda.Device(1):
        return gpu.cupy.asarray(np.ones(n, np.float32))


def test_targets():
    """Devices that NVRTC does not know yet run the code of their generation, or PTX."""
    supported = [75, 80, 90, 100, 120]
    assert backend.target("90", supported) == "sm_90"
    assert backend.target("86", supported) == "sm_80"
    assert backend.target("103", supported) == "sm_100"
    assert backend.target("130", supported) == "compute_120"
    assert backend.target("110", supported) == "compute_100"
    with pytest.raises(backend.Unavailable, match=r"7\.5 and later, and the device has 7\.0"):
        backend.target("70", supported)


def test_devices_and_compilers_that_cannot_be_used(gpu, monkeypatch):
    if not gpu.model:
        pytest.skip("a real device can")
    for supported, message in (
        (lambda: [100, 120], r"cannot be used: NVRTC compiles for compute capability 10\.0 and later, .* has 9\.0"),
        (mock.Mock(side_effect=RuntimeError("no library")), r"NVRTC, the compiler \(no library\); .*csoftmax\[cuda13x"),
    ):
        backend._architecture.cache_clear()
        monkeypatch.setattr(gpu.cupy.cuda.nvrtc, "getSupportedArchs", supported)
        for call in (lambda: csoftmax.softmax([1.0, 2.0], device="cuda"), lambda: csoftmax.softmax(gpu.cupy.empty(3))):
            with pytest.raises(csoftmax.DeviceError, match=message):
                call()
        assert not backend.state()["available"]
    backend._architecture.cache_clear()


def test_nothing_waits(gpu, monkeypatch):
    """Every function but `sample` only enqueues work."""
    if not gpu.model:
        pytest.skip("only the model knows who waits")
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
            csoftmax.linear_cross_entropy(x, wide, target if target is t else gpu.cupy.asarray(q_of(6, 50)), bias=None)
            csoftmax.linear_cross_entropy_with_grad(
                x, wide, target if target is t else gpu.cupy.asarray(q_of(6, 50)), sample_weight=s, chunk_bytes=1000
            )
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


def q_of(rows, n):
    return np.random.default_rng(1).random((rows, n), np.float32)


def test_linear_cross_entropy_keeps_to_its_budget(gpu):
    """chunk_bytes bounds the logits that exist at a time: as many launches as there are chunks of them."""
    if not gpu.model:
        pytest.skip("only the model knows what was launched")
    x, w, t = (np.float32(a) for a in (np.ones((40, 3)), np.ones((50, 3)), np.zeros(40)))
    given = on_device(gpu, x, w, t.astype(np.int64))
    for rows, launches in ((40, 1), (20, 2), (13, 4), (1, 40)):
        gpu.launches.clear()
        csoftmax.linear_cross_entropy_with_grad(*given, chunk_bytes=4 * 50 * rows)
        assert sum(launch[0] == "rows" for launch in gpu.launches) == launches


def test_home_that_cannot_be_written(gpu, tmp_path, monkeypatch):
    if not gpu.model:
        pytest.skip("a real device keeps its own")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "folder"))
    x = logits((4, 30))
    assert_same_bits(csoftmax.softmax(gpu.cupy.asarray(x)).get(), csoftmax.softmax(x))
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


def test_launch_rules_fit():
    """Every length has a kernel whose threads and shared memory the device allows."""
    for op, suffix, limit in itertools.product(ROW_OPS, backend.SUFFIX, (64 * 1024, 99 * 1024, 227 * 1024)):
        for n in (*range(1, 700), *range(700, 60_000, 501), 57344, 57345, 28672, 28673, 10**7):
            rule = backend.Launch(op, suffix, n, limit)
            assert 32 <= 32 * rule.warps <= 1024
            assert rule.shared <= limit, (op, suffix, n, limit)
            if rule.kernel == "teams":
                assert rule.each * n < 2**31
            assert rule.grid(2**40)[0] < 2**31


def test_machine_code_is_kept(gpu, tmp_path, monkeypatch):
    if not gpu.model:
        pytest.skip("a real device keeps its own")
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "new"))
    x = gpu.cupy.asarray(logits((4, 30)))
    csoftmax.softmax(x)
    (file,) = (tmp_path / "new").iterdir()
    before = file.stat().st_mtime_ns
    backend._module.cache_clear()
    backend._kernel.cache_clear()
    csoftmax.softmax(x)
    assert [f.stat().st_mtime_ns for f in (tmp_path / "new").iterdir()] == [before]
    given = backend.options
    monkeypatch.setattr(backend, "options", lambda *a: (*given(*a), "-DOTHER"))
    backend._module.cache_clear()
    backend._kernel.cache_clear()
    csoftmax.softmax(x)
    assert len(list((tmp_path / "new").iterdir())) == 2  # compiled with other options: not the same code
    backend._module.cache_clear()
    backend._kernel.cache_clear()


# Commands and benchmarks


@pytest.mark.parametrize("op", ["softmax", "log_softmax", "cross_entropy", "topk", "sparsemax", "entmax"])
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
    with pytest.raises(NotImplementedError, match="CuPy"):  # asv then leaves the benchmark out
        importlib.import_module("benchmarks.cuda").Cuda().setup("softmax", (4, 30))


def test_state(gpu):
    state = csoftmax.show_config("dicts")["cuda"]
    assert state["available"]
    assert state["reason"].startswith("CuPy ")


def test_alpha_one_ignores_no_label(gpu):
    """The default ignore_index of cross_entropy is a bad label here, as for every other alpha."""
    x, labels = gpu.cupy.asarray(np.zeros((2, 4))), gpu.cupy.asarray(np.array([0, -100]))
    for alpha in (1.0, 1.5):
        assert np.isnan(csoftmax.entmax_loss(x, labels, alpha).get())
        loss, grad = csoftmax.entmax_loss_with_grad(x, labels, alpha, reduction="none")
        assert np.array_equal(np.isnan(loss.get()), [False, True])
        assert np.array_equal(np.isnan(grad.get()), [[False] * 4, [True] * 4])


def test_linear_gradients_have_the_dtype_of_x(gpu):
    for name in dtypes_of_the_linear_layer():
        x, w = (gpu.cupy.asarray(np.ones(shape).astype(name)) for shape in ((3, 4), (5, 4)))
        labels = gpu.cupy.asarray(np.array([0, -100, 1]))
        result = csoftmax.linear_cross_entropy_with_grad(x, w, labels)
        assert result.grad_x.dtype == result.grad_w.dtype == x.dtype


def dtypes_of_the_linear_layer():
    import ml_dtypes

    return np.float16, ml_dtypes.bfloat16, np.float32, np.float64


def test_foreign_byte_order_on_the_device(gpu):
    """CuPy reads the bytes of such an array in its own order, whatever its dtype says."""
    if not gpu.model:
        pytest.skip("CuPy may refuse to make one")
    x = gpu.cupy.asarray(np.ones(3, np.dtype(np.float32).newbyteorder()))
    with pytest.raises(TypeError, match="x is a CuPy array in foreign byte order"):
        csoftmax.softmax(x)


def test_to_csr_says_what_to_do(gpu):
    best = csoftmax.topk(gpu.cupy.asarray(np.eye(3)), 2)
    with pytest.raises(csoftmax.DeviceError, match=r"values\.get\(\)"):
        csoftmax.to_csr(best, 3)


def test_no_visible_device_is_not_a_missing_driver(gpu, monkeypatch):
    def count():
        raise RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")

    monkeypatch.setattr(gpu.cupy.cuda.runtime, "getDeviceCount", count)
    with pytest.raises(csoftmax.DeviceError, match="CUDA_VISIBLE_DEVICES"):
        csoftmax.softmax(np.ones(2), device="cuda")


# Learning


@pytest.mark.parametrize("options", [{}, {"solver": "adamw"}, {"solver": "adamw", "batch_norm": True}])
def test_training(gpu, options):
    """The same code on CuPy: the data are moved once, the result is the CPU's but for the products."""
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
