"""Checks that several tests of CUDA share: each compares a call on the device with the same call on the CPU."""

import contextlib

import numpy as np
import pytest
from cuda_model import stand_in
from helpers import assert_same_bits

import csoftmax
from csoftmax._cuda import compiler, device
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits

# For tests that take seconds: float16 has bfloat16's code but for loads and stores.
costly_dtypes = pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param("float64", marks=pytest.mark.slow),
        pytest.param("float16", marks=pytest.mark.long),
        pytest.param("bfloat16", marks=pytest.mark.slow),
    ],
)

# Powers of two between which normal numbers of a dtype stay finite, and keep digits.
EXPONENTS = {"float64": (-1070, 1020), "float32": (-140, 124), "bfloat16": (-130, 124), "float16": (-20, 12)}


def slow_from(limit, values):
    """Parameters, of which those above the limit are slow."""
    return [pytest.param(value, marks=pytest.mark.slow) if value > limit else value for value in values]


@contextlib.contextmanager
def model_options(**options):
    """Launches with other options of the model."""
    before = dict(stand_in.RawKernel.options)
    stand_in.RawKernel.options.update(options)
    try:
        yield
    finally:
        stand_in.RawKernel.options.update(before)


@contextlib.contextmanager
def shared_memory(gpu, size):
    """A device with so little shared memory that long rows do not fit; a real device stays as it is."""
    if not gpu.model:
        yield
        return
    before = dict(stand_in.ATTRIBUTES)
    stand_in.ATTRIBUTES["MaxSharedMemoryPerBlockOptin"] = size
    _forget_limits()
    try:
        yield
    finally:
        stand_in.ATTRIBUTES.update(before)
        _forget_limits()


def _forget_limits():
    device.read_shared_limit.cache_clear()
    compiler.load_kernel.cache_clear()


def both_orders(gpu):
    """Run the body once for each order of threads that the model knows, forward and backward."""
    for backward in (False, True) if gpu.model else (False,):
        with model_options(backward=backward):
            yield


def on_device(gpu, *arrays):
    return [gpu.cupy.asarray(a) for a in arrays]


def options_on_device(gpu, options):
    return {k: gpu.cupy.asarray(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}


def copy_on_device(gpu, x):
    """An array of its own, to be overwritten."""
    return stand_in.on_device(x) if gpu.model else gpu.cupy.array(x)


def make_inputs(op, shape, dtype="float32", seed=0, sigma=3.0):
    """Inputs of an operation of the softmax family, with the softmax axis last."""
    return op.make(shape, dtype, seed, sigma)


def check(gpu, op, arrays, **options):
    """The result of an operation has the CPU's bits."""
    expected = np.asarray(op.function()(*arrays, **options))
    for _ in both_orders(gpu):
        got = op.function()(*on_device(gpu, *arrays), **options_on_device(gpu, options))
        assert isinstance(got, gpu.cupy.ndarray)
        assert_same_bits(got.get(), expected, f"{op.name} {arrays[0].shape} {arrays[0].dtype} {options}")


def check_loss(gpu, x, target, name="cross_entropy", **options):
    """Loss and gradient have the CPU's bits; so have the loss alone, and the gradient that overwrites the logits."""
    loss, with_grad = getattr(csoftmax, name), getattr(csoftmax, f"{name}_with_grad")
    with np.errstate(all="ignore"):
        expected = with_grad(x, target, **options)
    given = options_on_device(gpu, options)
    alone = {k: v for k, v in given.items() if k not in ("upstream", "clip_norm", "clip_value")}
    what = f"{name} {x.shape} {x.dtype} {target.dtype} {options}"
    for _ in both_orders(gpu):
        there, labels = copy_on_device(gpu, x), gpu.cupy.asarray(target)
        got = with_grad(there, labels, **given)
        assert isinstance(got.loss, gpu.cupy.ndarray)
        assert_same_bits(got.loss.get(), np.asarray(expected.loss), what)
        assert_same_bits(got.grad.get(), expected.grad, what)
        assert_same_bits(loss(there, labels, **alone).get(), np.asarray(expected.loss), what)
        with_grad(there, labels, out=there, **given)
        assert_same_bits(there.get(), expected.grad, what)


def check_topk(gpu, x, k, where=None, **options):
    """Values, indices and probabilities are the CPU's."""
    calls = [(csoftmax.topk_softmax, {"normalize": kind, "temperature": 0.7}) for kind in ("topk", "full")]
    if where is None:
        calls += [(csoftmax.topk, {"largest": largest}) for largest in (True, False)]
    else:
        options["where"] = where
    for _ in both_orders(gpu):
        there, given = gpu.cupy.asarray(x), options_on_device(gpu, options)
        for function, arguments in calls:
            expected, got = function(x, k, **arguments, **options), function(there, k, **arguments, **given)
            what = f"{function.__name__} {x.shape} {x.dtype} {k} {arguments} {options}"
            assert isinstance(got.values, gpu.cupy.ndarray)
            assert_same_bits(got.values.get(), expected.values, what)
            assert np.array_equal(got.indices.get(), expected.indices), what


def check_entmax(gpu, x, alpha, **options):
    """Probabilities and gradient have the CPU's bits, also where they overwrite their inputs."""
    expected = csoftmax.entmax(x, alpha, **options)
    dy = logits(x.shape, x.dtype.name, seed=99)
    with np.errstate(all="ignore"):
        gradient = csoftmax.entmax_vjp(dy, expected, alpha, **options)
    given = options_on_device(gpu, options)
    what = f"{x.shape} {x.dtype} {alpha} {options}"
    for _ in both_orders(gpu):
        there = copy_on_device(gpu, x)
        y = csoftmax.entmax(there, alpha, **given)
        assert isinstance(y, gpu.cupy.ndarray)
        assert_same_bits(y.get(), expected, what)
        assert_same_bits(csoftmax.entmax_vjp(gpu.cupy.asarray(dy), y, alpha, **given).get(), gradient, what)
        assert csoftmax.entmax(there, alpha, out=there, **given) is there
        assert_same_bits(there.get(), expected, what)
        csoftmax.entmax_vjp(gpu.cupy.asarray(dy), there, alpha, out=there, **given)
        assert_same_bits(there.get(), gradient, what)


def check_sample(gpu, x, **options):
    """The draws are the CPU's."""
    options = {"rng": 5, **options}
    expected = csoftmax.sample(x, **options)
    for _ in both_orders(gpu):
        got = csoftmax.sample(gpu.cupy.asarray(x), **options_on_device(gpu, options))
        assert isinstance(got, gpu.cupy.ndarray)
        assert got.dtype == np.int64
        assert np.array_equal(got.get(), expected), f"{x.shape} {x.dtype} {options}"


def make_targets(shape, dtype, seed=0):
    """Labels, one of them ignored, and soft labels with zeros."""
    rng = np.random.default_rng(seed)
    rows, n = shape
    hard = rng.integers(0, n, rows)
    hard[rows // 2] = -100
    soft = rng.dirichlet(np.full(n, 0.3), rows).astype(np.float64 if dtype == "float64" else np.float32)
    return hard, soft * (soft > 1e-3)


def special_rows(n, dtype):
    """Rows with one special value among ordinary numbers, at the ends and in the middle, and rows of special values."""
    kind, rows = dtype_of(dtype), []
    if kind.kind == "f":
        smallest, largest = float(np.finfo(kind).smallest_subnormal), float(np.finfo(kind).max)
    else:  # bfloat16
        smallest, largest = 1e-40, 3e38
    for special in (np.nan, np.inf, -np.inf, largest, -largest, smallest, -0.0, 6e4):
        for place in {0, n // 2, n - 1}:
            row = logits(n, "float64", seed=place)
            row[place] = special
            rows.append(row)
        rows.append(np.full(n, special))
    for first, second in ((np.inf, np.nan), (-np.inf, np.nan), (np.inf, -np.inf), (largest, -np.inf)):
        rows.append(np.where(np.arange(n) % 2, first, second))
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(rows).astype(kind)


def rows_with_special_at(n, dtype, special):
    """Row i has the special value at index i; and the same in rows of -inf, where it (for -inf: 3) is alone."""
    x = logits((n, n), dtype, seed=n)
    np.fill_diagonal(x, special)
    alone = np.full((n, n), -np.inf, x.dtype)
    np.fill_diagonal(alone, 3 if special == -np.inf else special)
    return x, alone


def sectors_of_rows(launches, rows_bytes):
    """32-byte sectors read and written since the launches were cleared, as multiples of the rows' bytes."""
    return [32 * sum(launch[4][f"{kind}_sectors"] for launch in launches) / rows_bytes for kind in ("load", "store")]
