"""No byte outside the arrays is read or written: they end and begin at pages that cannot be accessed.

A violation is a segmentation fault, so each test runs in a process of its own and reports how far it came.
"""

import sys

import pytest
from helpers import run_python

from csoftmax._spec.formats import DTYPES
from csoftmax._spec.operations import SOFTMAX_FAMILY

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mmap and mprotect as on Linux")

PRELUDE = '''
import ctypes, mmap, sys
import numpy as np, ml_dtypes, csoftmax
from csoftmax._spec.operations import BY_NAME
from csoftmax._spec.formats import dtype_of
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE


class Guarded:
    """Memory between two pages that cannot be accessed."""

    def __init__(self, size):
        self.size = (size + PAGE - 1) // PAGE * PAGE
        self.base = libc.mmap(None, self.size + 2 * PAGE, 3, 0x22, -1, 0)
        for page in (self.base, self.base + PAGE + self.size):
            assert libc.mprotect(page, PAGE, 0) == 0

    def array(self, shape, dtype, at_end):
        size = int(np.prod(shape)) * dtype.itemsize
        begin = self.base + PAGE + (self.size - size if at_end else 0)
        memory = (ctypes.c_uint8 * size).from_address(begin)
        return np.frombuffer(memory, np.uint8).view(dtype).reshape(shape)


def run(op, dtype, shape, axis, places, **options):
    """The arrays, of a shape, each at the end or the beginning of guarded memory; compared with a plain call."""
    dtype = dtype_of(dtype)
    arrays = [np.abs(a) for a in op.make(shape, dtype.name)]
    if op.log and op.inputs == 2:
        arrays[1] = -arrays[1]
    expected = op.function()(*arrays, axis=axis, **options)
    for at_end in (True, False):
        views = [p.array(shape, dtype, at_end) for p in places]
        for view, array in zip(views, arrays):
            view[...] = array
        if op.has_out:
            result = op.function()(*views[:op.inputs], axis=axis, out=views[-1], **options)
        else:
            result = op.function()(*views[:op.inputs], axis=axis, **options)
        assert result.tobytes() == expected.tobytes(), (shape, axis, at_end)
        if op.has_out:
            op.function()(*views[:op.inputs], axis=axis, out=views[0], **options)
            assert views[0].tobytes() == expected.tobytes(), (shape, axis, at_end, "in place")
'''


def in_a_process(code):
    done = run_python(PRELUDE + code)
    assert done.stdout.split()[-1] == "done"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SOFTMAX_FAMILY, ids=lambda op: op.name)
def test_every_length(op, dtype):
    """K = 1 ... 131 in one and in three rows, along the last axis and axis 0, with temperature and mask."""
    in_a_process(f'''
op, places = BY_NAME["{op.name}"], [Guarded(1 << 20) for _ in range(3)]
for k in range(1, 132):
    run(op, "{dtype}", (1, k), 1, places)
    run(op, "{dtype}", (3, k), 1, places)
    run(op, "{dtype}", (3, k), 1, places, temperature=0.5)
    run(op, "{dtype}", (k, 3), 0, places)
    run(op, "{dtype}", (2, 5, k), 1, places)
    run(op, "{dtype}", (5, k), 0, places, temperature=2.0)
    run(op, "{dtype}", (7, k), 0, places)
    mask = places[-1].array((3, k), np.dtype(bool), True)
    mask[...] = np.arange(3 * k).reshape(3, k) % 3 > 0
    run(op, "{dtype}", (3, k), 1, [*places[:2], Guarded(1 << 14)], where=mask)
print("done")
''')


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SOFTMAX_FAMILY, ids=lambda op: op.name)
def test_long_and_wide_arrays(op, dtype):
    """Around the block length and beyond, tiles of every width, several threads."""
    in_a_process(f'''
op, places = BY_NAME["{op.name}"], [Guarded(1 << 21) for _ in range(3)]
for k in (1000, 4095, 4096, 4097, 8191, 12289, 40001):
    run(op, "{dtype}", (2, k), 1, places)
    run(op, "{dtype}", (k, 2), 0, places)
    run(op, "{dtype}", (1, k), 1, places, temperature=1e-30 if op.inputs == 1 else 0.5)
for width in (*range(8, 36), 63, 65, 127, 129, 511, 513):
    run(op, "{dtype}", (9, width), 0, places)
    run(op, "{dtype}", (3, 20, width), 1, places)
for threads in (2, 3):
    run(op, "{dtype}", (101, 1001), 1, places, num_threads=threads)
    run(op, "{dtype}", (101, 1001), 0, places, num_threads=threads)
print("done")
''')


@pytest.mark.parametrize("op", SOFTMAX_FAMILY, ids=lambda op: op.name)
def test_special_rows_and_odd_views(op):
    """The cold paths: NaN, infinities, limits of temperature, misaligned and strided views at the page's edge."""
    in_a_process(f'''
op, places = BY_NAME["{op.name}"], [Guarded(1 << 20) for _ in range(3)]
for name in ("float32", "float64", "float16", "bfloat16"):
    dtype = dtype_of(name)
    for k in (1, 7, 33, 130, 4099):
        views = [p.array((3, k), dtype, True) for p in places]
        for value in (np.nan, np.inf, -np.inf, 1e6, 60000.0):
            for v in views:
                v[...] = value
            op.function()(*views[:op.inputs])
            if op.inputs == 1:
                for t in (0.0, np.inf, 1e-200, 1e200):
                    op.function()(*views[:1], temperature=t)
        for step in (2, 3, -1, -2):
            views = [p.array((3, k * abs(step)), dtype, step > 0)[:, :: step] for p in places]
            # the last element of the last row lies at the edge of the page
            for v in views:
                v[...] = 1 / k
            op.function()(*views[:op.inputs], **(dict(out=views[-1]) if op.has_out else dict()))
        size = 3 * k * dtype.itemsize
        odd = [p.array((size + 1,), np.dtype(np.uint8), False)[1:].view(dtype).reshape(3, k) for p in places]
        op.function()(*odd[:op.inputs], **(dict(out=odd[-1]) if op.has_out else dict()))
print("done")
''')


def test_a_violation_is_noticed():
    """The guard works: a write one byte past the end ends the process."""
    done = run_python(
        PRELUDE
        + "place = Guarded(64); a = place.array((8,), np.dtype(np.uint8), True); ctypes.memset(a.ctypes.data, 0, 9)",
        check=False,
    )
    assert done.returncode < 0
