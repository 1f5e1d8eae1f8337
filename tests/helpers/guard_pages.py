"""Memory between two pages that cannot be accessed, and calls whose arrays all lie at its end or its beginning.

A violation is a segmentation fault, so these calls run in a process of their own.
"""

import ctypes
import itertools
import mmap

import numpy as np

from csoftmax._spec.formats import dtype_of
from csoftmax._spec.operations import BY_NAME
from csoftmax._spec.record import CLASSES, Sample

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

    def copy(self, x, at_end):
        """Return a copy of an array that ends or begins at a page that cannot be accessed."""
        view = self.array(x.shape, x.dtype, at_end)
        view[...] = x
        return view


class Places:
    """Pieces of guarded memory for the arrays of a call, used again by the next call."""

    def __init__(self, size=1 << 21):
        self.size, self.places, self.taken = size, [], 0

    def copy(self, x, at_end):
        if x.nbytes > self.size:
            return Guarded(x.nbytes).copy(x, at_end)
        if self.taken == len(self.places):
            self.places.append(Guarded(self.size))
        self.taken += 1
        return self.places[self.taken - 1].copy(x, at_end)

    def sample(self, sample, at_end):
        """Return the call with all arrays in guarded memory."""

        def bring(value):
            return self.copy(value, at_end) if isinstance(value, np.ndarray) and value.ndim else value

        self.taken = 0
        return Sample(*({name: bring(value) for name, value in part.items()} for part in sample))


def transposed(op, sample):
    """Return the call with the classes along the first axis."""

    def turn(name, value):
        return np.ascontiguousarray(value.T) if op.role(name, sample) == CLASSES else value

    return Sample(*({name: turn(name, value) for name, value in part.items()} for part in sample))


def check(op, sample, places, axis=..., **options):
    """Compare a call on guarded arrays with a plain one; where there is an `out`, in guarded memory and in place."""
    expected = op.compute(sample, axis, **options)
    what = op.name, [np.shape(a) for a in sample.arrays.values()], axis, list(sample.options), options
    out_at = next((i for i, result in enumerate(op.results) if result.role == CLASSES), None)
    for at_end in (True, False):
        guarded = places.sample(sample, at_end)
        more = dict(options)
        if op.has_out and out_at is not None:
            more["out"] = places.copy(np.zeros_like(expected[out_at]), at_end)
        got = op.compute(guarded, axis, **more)
        assert [a.tobytes() for a in got] == [a.tobytes() for a in expected], (what, at_end)
        if "out" in more:
            more["out"] = next(iter(guarded.arrays.values()))
            got = op.compute(guarded, axis, **more)
            assert [a.tobytes() for a in got] == [a.tobytes() for a in expected], (what, at_end, "in place")


def check_sizes(name, dtype, sizes, rows=(1, 3)):
    """Check numbers of classes along the last axis and the first; each also with one set of options, in turn."""
    op, places = BY_NAME[name], Places()
    others = itertools.cycle(op.variants)
    for k in sizes:
        for n, variant in [*((n, "plain") for n in rows), (rows[-1], next(others))]:
            sample = op.sample((n, k), dtype, seed=k, variant=variant)
            check(op, sample, places)
            if op.accepts("axis"):
                check(op, transposed(op, sample), places, axis=0)


def check_wide(name, dtype, widths, rows=9):
    """Check many rows side by side, which kernels compute in tiles, and calls of several threads."""
    op, places = BY_NAME[name], Places()
    for width in widths:
        check(op, transposed(op, op.sample((width, rows), dtype, seed=width)), places, axis=0)
    if op.accepts("num_threads"):
        sample = op.sample((101, 1001), dtype)
        check(op, sample, places, num_threads=3)
        if op.accepts("axis"):
            check(op, transposed(op, sample), places, axis=0, num_threads=3)


def check_odd_views(name, dtype):
    """Check rows of special values, steps and odd addresses at the page's edge; refused calls read nothing either."""
    op, places, kind = BY_NAME[name], [Guarded(1 << 20) for _ in range(4)], dtype_of(dtype)
    for k in (1, 7, 33, 4099):
        sample = op.sample((3, k), dtype, seed=k)
        names = [n for n, a in sample.arrays.items() if op.role(n, sample) == CLASSES and a.dtype == kind]
        for value in (np.nan, np.inf, -np.inf, 1e6, 60000.0):
            arrays = dict(sample.arrays)
            for place, n in zip(places, names):
                arrays[n] = place.array((3, k), kind, True)
                arrays[n][...] = value
            for options in (
                {},
                *({"temperature": t} for t in (0.0, np.inf, 1e-200, 1e200) if op.accepts("temperature")),
            ):
                try:
                    op.call(Sample(arrays, sample.options), **options)
                except ValueError:  # no row has mass, or a limit of the temperature has no gradient
                    continue
        for step in (2, 3, -1, -2):
            arrays = dict(sample.arrays)
            for place, n in zip(places, names):
                arrays[n] = place.array((3, k * abs(step)), kind, step > 0)[:, ::step]
                arrays[n][...] = sample.arrays[n]
            got, expected = op.compute(Sample(arrays, sample.options)), op.compute(sample)
            assert [a.tobytes() for a in got] == [a.tobytes() for a in expected], (name, dtype, k, step)
        arrays = dict(sample.arrays)
        for place, n in zip(places, names):
            size = 3 * k * kind.itemsize
            arrays[n] = place.array((size + 1,), np.dtype(np.uint8), False)[1:].view(kind).reshape(3, k)
            arrays[n][...] = sample.arrays[n]
        got, expected = op.compute(Sample(arrays, sample.options)), op.compute(sample)
        assert [a.tobytes() for a in got] == [a.tobytes() for a in expected], (name, dtype, k, "odd address")
