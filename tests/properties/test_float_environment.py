"""The floating-point environment is the caller's: unchanged by import and calls, and without influence on the bits."""

import ctypes
import platform

import numpy as np
import pytest
from helpers import assert_same_bits, run_python

import csoftmax
from csoftmax._spec.operations import SOFTMAX_FAMILY
from csoftmax._spec.samples import logits

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads MXCSR")

SOURCE = """
#include <xmmintrin.h>
unsigned get_mxcsr(void) { return _mm_getcsr(); }
void set_mxcsr(unsigned value) { _mm_setcsr(value); }
"""
DEFAULT = 0x1F80
FTZ_DAZ = DEFAULT | 0x8040
ROUNDINGS = {"down": DEFAULT | 0x2000, "up": DEFAULT | 0x4000, "to zero": DEFAULT | 0x6000}


@pytest.fixture
def mxcsr(c_library):
    library = ctypes.CDLL(str(c_library(SOURCE)))
    library.get_mxcsr.restype = ctypes.c_uint
    library.set_mxcsr.argtypes = [ctypes.c_uint]
    before = library.get_mxcsr()
    yield library
    library.set_mxcsr(before)


def calls(op):
    """Small, large, long, split, transposed and exceptional calls."""
    for shape, axis, options in (
        ((3, 10), 1, {}),
        ((300, 300), 1, {"num_threads": 2}),
        ((40, 30), 0, {}),
        ((2, 9000), 1, {}),
        ((1, 200_000), 1, {"num_threads": 2}),
        ((5, 70), 1, {"temperature": 0.3}),
        ((1, 200_000), 1, {"temperature": 7.1, "num_threads": 2}),
        ((5, 70), 1, {"where": True}),
        ((5, 70), 1, {"temperature": 1e-200 if op.inputs == 1 else 0.5}),
    ):
        yield op.make(shape, "float32", sigma=40), axis, options
        yield op.make(shape, "float64", sigma=300), axis, options
        if op.inputs == 1:
            yield (logits(shape, "float32", sigma=1e-40),), axis, options
            yield (logits(shape, "float32", offset=3e7),), axis, options
            yield (np.full(shape, np.inf, np.float32),), axis, options


def test_import_leaves_the_control_word_alone(c_library):
    path = c_library(SOURCE)
    run_python(f"""
import ctypes
c = ctypes.CDLL({str(path)!r})
c.get_mxcsr.restype = ctypes.c_uint
import numpy
for word in (0x1f80, 0x9fc0, 0x5f80):
    c.set_mxcsr(word)
    if word == 0x1f80:
        import csoftmax
    else:
        csoftmax.softmax(numpy.ones(100_000), num_threads=2)
    assert c.get_mxcsr() & ~0x3f == word, hex(c.get_mxcsr())
""")


@pytest.mark.parametrize("op", SOFTMAX_FAMILY, ids=lambda op: op.name)
def test_calls_leave_the_whole_register_alone(op, mxcsr):
    """Control bits and sticky exception flags."""
    for arrays, axis, options in calls(op):
        for word in (DEFAULT, FTZ_DAZ, *ROUNDINGS.values()):
            with np.errstate(all="ignore"):
                mxcsr.set_mxcsr(word)
                op.function()(*arrays, axis=axis, **options)
                after = mxcsr.get_mxcsr()
                mxcsr.set_mxcsr(DEFAULT)
            assert after & ~0x3F == word, f"{arrays[0].shape} {options}: {after:#x} instead of {word:#x}"


@pytest.mark.parametrize("op", SOFTMAX_FAMILY, ids=lambda op: op.name)
def test_flush_to_zero_of_the_caller_does_not_change_bits(op, mxcsr):
    for arrays, axis, options in calls(op):
        expected = op.function()(*arrays, axis=axis, **options)
        mxcsr.set_mxcsr(FTZ_DAZ)
        result = op.function()(*arrays, axis=axis, **options)
        mxcsr.set_mxcsr(DEFAULT)
        assert_same_bits(result, expected, f"{arrays[0].shape} {arrays[0].dtype} {options}")


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("op", SOFTMAX_FAMILY, ids=lambda op: op.name)
def test_rounding_mode_of_the_caller_does_not_change_bits(op, rounding, mxcsr):
    for arrays, axis, options in calls(op):
        expected = op.function()(*arrays, axis=axis, **options)
        mxcsr.set_mxcsr(ROUNDINGS[rounding])
        result = op.function()(*arrays, axis=axis, **options)
        mxcsr.set_mxcsr(DEFAULT)
        assert_same_bits(result, expected, f"{arrays[0].shape} {arrays[0].dtype} {options}")


def test_subnormal_numbers_still_exist_after_a_call():
    """What a library built with -ffast-math does to the whole process."""
    csoftmax.softmax(np.ones((300, 300), np.float32), num_threads=2)
    assert np.float32(1e-38) * np.float32(0.1) > 0
    assert np.float64(1e-300) * np.float64(1e-15) > 0


def test_subnormal_temperature_with_flush_to_zero(mxcsr):
    x = np.array([1e-309, 0.0])
    expected = csoftmax.softmax(x, temperature=1e-309)
    mxcsr.set_mxcsr(FTZ_DAZ)
    result = csoftmax.softmax(x, temperature=1e-309)
    mxcsr.set_mxcsr(DEFAULT)
    assert_same_bits(result, expected)


@pytest.mark.parametrize("word", [FTZ_DAZ, *ROUNDINGS.values()], ids=hex)
def test_cross_entropy(word, mxcsr):
    """Its bits do not depend on the register, which is the caller's again afterwards."""
    rng = np.random.default_rng(3)
    for k, dtype in ((10, "float32"), (300, "float64"), (9000, "float32")):
        x, labels = logits((5, k), dtype, sigma=30), rng.integers(0, k, 5)
        # of the right dtype: NumPy converts in the caller's mode
        soft, weight = rng.random((5, k)).astype(dtype), rng.random(k).astype(dtype)
        for target, options in (
            (labels, {}),
            (labels, {"temperature": 0.3, "clip_norm": 0.1, "z_loss": 0.01}),
            (soft, {"weight": weight, "label_smoothing": 0.1}),
            (labels, {"upstream": 1e-40}),
        ):
            expected = csoftmax.cross_entropy_with_grad(x, target, **options)
            mxcsr.set_mxcsr(word)
            got = csoftmax.cross_entropy_with_grad(x, target, **options)
            after = mxcsr.get_mxcsr()
            mxcsr.set_mxcsr(DEFAULT)
            assert_same_bits(got.loss, expected.loss)
            assert_same_bits(got.grad, expected.grad)
            assert after & ~0x3F == word


@pytest.mark.parametrize("word", [FTZ_DAZ, *ROUNDINGS.values()], ids=hex)
def test_sparse_functions(word, mxcsr):
    for dtype in ("float32", "float64"):
        x, dy = logits((4, 300), dtype, sigma=2), logits((4, 300), dtype, seed=1)
        x[3] *= 1e-38 if dtype == "float32" else 1e-307
        calls = (
            lambda x=x: csoftmax.topk(x, 9),
            lambda x=x: csoftmax.topk_softmax(x, 9, normalize="full"),
            lambda x=x: [csoftmax.entmax(x, alpha) for alpha in (1.3, 1.5, 2.0, 3.0)],
            lambda x=x, dy=dy: [csoftmax.entmax_vjp(dy, csoftmax.entmax(x))],
            lambda x=x: csoftmax.entmax_loss_with_grad(x, [0, 1, 2, 3], reduction="sum"),
            lambda x=x: [csoftmax.sample(x, rng=0, size=9, top_p=p) for p in (None, 0.8)],
        )
        for call in calls:
            expected = call()
            mxcsr.set_mxcsr(word)
            got = call()
            after = mxcsr.get_mxcsr()
            mxcsr.set_mxcsr(DEFAULT)
            assert after & ~0x3F == word
            for a, b in zip(got, expected, strict=True):
                assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
