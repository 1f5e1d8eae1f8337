"""The softmax family over segments on CUDA: the CPU's bits for every class of lengths, order and layout."""

import numpy as np
from cuda_checks import costly_dtypes, options_on_device
from helpers import assert_same_bits

import csoftmax
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits

FUNCTIONS = ("segment_softmax", "segment_log_softmax", "segment_logsumexp")


def both(gpu, name, arrays, segments, **options):
    """Call a function on the device and on the CPU, compare, and return the CPU's result."""
    function = getattr(csoftmax, name)
    expected = function(*arrays, segments=segments, **options)
    on_device = [gpu.cupy.asarray(a) for a in arrays]
    moved = options_on_device(gpu, options)
    assert_same_bits(function(*on_device, segments=segments, **moved).get(), expected)
    return expected


def check(gpu, x, segments, **options):
    for name in FUNCTIONS:
        y = both(gpu, name, (x,), segments, **options)
        if name != "segment_logsumexp" and np.all(options.get("temperature", 1.0) > 0):
            dy = logits(x.shape, x.dtype.name, 7, 1.0)
            both(gpu, f"{name}_vjp", (dy, y), segments, **options)


def lengths_of_every_class():
    return [0, 1, 2, 15, 16, 17, 0, 100, 128, 129, 700, 4096, 3, 4097, 0]


@costly_dtypes
def test_lengths(gpu, dtype):
    indptr = np.cumsum([2, *lengths_of_every_class()])
    check(gpu, logits((int(indptr[-1]) + 3,), dtype, 1, 5.0), csoftmax.Segments(indptr=indptr))


@costly_dtypes
def test_order_heads_masks_and_temperature(gpu, dtype):
    rng = np.random.default_rng(2)
    ids = rng.integers(-1, 9, 240)
    segments = csoftmax.Segments(segment_ids=ids, num_segments=11)
    x = logits((240, 3), dtype, 3, 4.0)
    x[5, 0], x[6, 1], x[ids == 4] = np.nan, np.inf, -np.inf
    check(gpu, x, segments)
    check(gpu, np.ascontiguousarray(x.T), segments, axis=1, temperature=0.3)
    check(gpu, x, segments, where=rng.random((240, 1)) < 0.7)
    check(gpu, (x.astype(np.float32) * np.float32(100)).astype(dtype_of(dtype)), segments, temperature=1e-30)


@costly_dtypes
def test_temperatures_of_segments(gpu, dtype):
    """In any order, with heads before and behind the elements, on both sides of every change of the kernels."""
    rng = np.random.default_rng(5)
    numbers = np.array([1.0, 0.3, 7.0, 1e-30, 1e30])
    ids = rng.integers(-1, 9, 240)
    segments = csoftmax.Segments(segment_ids=ids, num_segments=11)
    x = logits((240, 3), dtype, 6, 4.0)
    x[5, 0], x[6, 1], x[ids == 4] = np.nan, np.inf, -np.inf
    check(gpu, x, segments, temperature=rng.choice(numbers, 11))
    each = rng.choice(numbers, (11, 3))
    check(gpu, np.ascontiguousarray(x.T), segments, axis=1, temperature=each.T, where=rng.random((3, 240)) < 0.7)
    indptr = np.cumsum([2, *lengths_of_every_class()])
    x = logits((2, int(indptr[-1]) + 3), dtype, 7, 5.0)
    check(gpu, x, csoftmax.Segments(indptr=indptr), axis=1, temperature=rng.choice([*numbers, 0.0, np.inf], (2, 15)))


def test_blocks(gpu):
    """A tuple of axes: block-sparse rows."""
    x = logits((6, 2, 5), "float32", 4, 3.0)
    segments = csoftmax.Segments(segment_ids=[2, 0, 2, 1, 0, 0])
    for name, shape in zip(FUNCTIONS, (x.shape, x.shape, (3, 2)), strict=True):
        y = both(gpu, name, (x,), segments, axis=(0, 2))
        assert y.shape == shape
        if name == "segment_softmax":  # the bits of the joined elements of each segment, which sum to 1
            alone = csoftmax.softmax(x[[0, 2]], axis=(0, 2))
            assert_same_bits(y[[0, 2]], alone)
