"""The floating-point environment is the caller's: unchanged by import and calls, and without influence on the bits."""

import ctypes
import platform

import numpy as np
import pytest
from helpers import assert_same_bits, assert_same_results, every_record, run_python

import csoftmax
from csoftmax._spec.layouts import arrange, compute_in, restore
from csoftmax._spec.operations import FORWARD
from csoftmax._spec.record import Sample
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


def samples(record):
    """Yield small, long, split, transposed and exceptional calls, and every set of options."""
    threads = {"num_threads": 2} if record.accepts("num_threads") else {}
    for dtype, sigma in (("float32", 40), ("float64", 300)):
        for shape, layout, options in (
            ((3, 10), "last axis", {}),
            ((300, 300), "last axis", threads),
            ((30, 40), "axis 0", {}),
            ((2, 9000), "last axis", {}),
            ((1, 200_000), "last axis", threads),
        ):
            yield record.sample(shape, dtype, sigma=sigma), layout, options
        for variant in record.variants:
            yield record.sample((5, 70), dtype, sigma=sigma, variant=variant), "last axis", {}
        if record in FORWARD:
            for x in (
                logits((5, 70), dtype, sigma=1e-40),
                logits((5, 70), dtype, offset=3e7),
                np.full((5, 70), np.inf),
            ):
                yield Sample({"x": x.astype(dtype)}, {}), "last axis", {}
            yield record.sample((5, 70), dtype, sigma=sigma), "last axis", {"temperature": 1e-200}


@every_record("float_environment")
def test_the_register_of_the_caller(record, mxcsr):
    """Its control bits and sticky flags are the same after a call, and no bit of the results depends on it."""
    for sample, layout, options in samples(record):
        expected = compute_in(record, sample, layout, **options)
        arranged, axis = arrange(record, sample, layout)  # NumPy would convert in the caller's mode
        for word in (DEFAULT, FTZ_DAZ, *ROUNDINGS.values()):
            mxcsr.set_mxcsr(word)
            results = record.call(arranged, axis, **options)
            after = mxcsr.get_mxcsr()
            mxcsr.set_mxcsr(DEFAULT)
            what = f"{next(iter(sample.arrays.values())).shape} {list(sample.options)} {options}, {word:#x}"
            assert after & ~0x3F == word, f"{what}: {after:#x} afterwards"
            assert_same_results(restore(record, record.unpack(results), layout), expected, what)


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


def test_subnormal_numbers_still_exist_after_a_call():
    """A library built with -ffast-math would flush them to zero in the whole process."""
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
