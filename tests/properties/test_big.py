"""More than 2^31 elements: sizes, strides and counts are 64 bits everywhere, and memory stays bounded.

Inputs are broadcast views (stride 0), so only results need memory.
"""

import math

import numpy as np
import pytest
from helpers import assert_results_of_layouts, assert_same_results, every_record, run_python

import csoftmax
from csoftmax._spec.formats import bits, dtype_of, ulp_error
from csoftmax._spec.record import CLASSES, TOP, Sample

HUGE = 2**31 + 5


def in_bounded_memory(code, megabytes, timeout=1500):
    """Run the code in a process that never holds more than this beyond its start."""
    done = run_python(
        "import resource, numpy as np, csoftmax, ml_dtypes\n"
        "from csoftmax._spec.formats import dtype_of\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"{code}\n"
        "grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024\n"
        f"assert grown < {megabytes}, f'{{grown}} MiB'\n"
        "print('done')",
        timeout=timeout,
    )
    assert done.stdout.strip() == "done"


def test_a_row_of_a_hundred_million_takes_little_memory():
    """Scratch memory is proportional to K / 4096."""
    in_bounded_memory(
        "y = csoftmax.logsumexp(np.broadcast_to(np.float32(2), 10**8))\n"
        "assert abs(float(y) - 20.420680743952367) < 2e-6",
        60,
    )


def test_strides_beyond_32_bits():
    """Elements that lie more than 4 GiB apart, forwards and backwards (sparse anonymous memory)."""
    memory = np.zeros(2**33 + 64, np.uint8)  # pages are only allocated when touched
    for base, stride in ((0, 2**32 + 8), (2**32 + 16, -(2**32) - 8)):
        x = np.ndarray((2, 3), np.float32, memory, offset=base, strides=(stride, 4))
        x[...] = [[1, 2, 3], [3, 1, -1]]
        expected = csoftmax.softmax(np.array(x))
        assert np.array_equal(csoftmax.softmax(x), expected)
        assert np.array_equal(csoftmax.softmax(x.T, axis=0), expected.T)
        row = x[:, :1].T
        assert np.array_equal(csoftmax.softmax(row), csoftmax.softmax(np.array(row)))
        csoftmax.softmax(x, out=x)
        assert np.array_equal(x, expected)


def spread(a, stride):
    """Return a copy whose elements, rows or layers lie `stride` bytes apart along the first axis, in sparse memory."""
    memory = np.zeros(abs(stride) * (len(a) - 1) + a.nbytes, np.uint8)
    begin = 0 if stride > 0 else abs(stride) * (len(a) - 1)
    view = np.ndarray(a.shape, a.dtype, memory, begin, (stride, *a.strides[1:]))
    view[...] = a
    return view


@pytest.mark.parametrize("stride", [2**32 + 8, -(2**32) - 8])
@every_record("big")
def test_rows_beyond_32_bits(record, stride):
    """Rows that lie more than 4 GiB apart, of sparse anonymous memory: offsets are 64 bits."""
    for rows, k in ((2, 3), (2, 70)):
        sample = record.sample((rows, k), "float64")
        arrays = {name: spread(a, stride) if len(a) <= 3 else a for name, a in sample.arrays.items()}
        apart = Sample(arrays, sample.options)
        assert_results_of_layouts(record, record.compute(apart), record.compute(sample), f"K={k}")
        if record.accepts("axis"):
            turned = {name: a.T if record.role(name, sample) == CLASSES else a for name, a in arrays.items()}
            results = record.compute(Sample(turned, sample.options), 0)
            rows_first = [r.T if kind.role in (CLASSES, TOP) else r for kind, r in zip(record.results, results)]
            assert_same_results(rows_first, record.compute(sample), f"K={k}, axis 0")


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_row_of_more_than_two_to_the_31(dtype):
    in_bounded_memory(
        f"x = np.broadcast_to(np.array(1.5, dtype_of('{dtype}')), {HUGE})\n"
        "for threads in (1, 2):\n"
        "    y = csoftmax.logsumexp(x, num_threads=threads)\n"
        f"    assert y == np.array({1.5 + math.log(HUGE)!r}, x.dtype), y",
        200,
    )


@pytest.mark.long
def test_more_than_two_to_the_31_rows():
    """2^31 + 5 rows of one float16: the result alone is 4 GiB."""
    in_bounded_memory(
        f"x = np.broadcast_to(np.float16(1.5), ({HUGE}, 1))\n"
        "y = csoftmax.logsumexp(x)\n"
        f"assert y.shape == ({HUGE},) and y[0] == y[-1] == np.float16(1.5)\n"
        "for i in range(0, y.size, 1 << 28):\n"
        "    assert np.all(y[i : i + (1 << 28)] == np.float16(1.5))",
        5000,
    )


@pytest.mark.long
def test_more_than_two_to_the_31_elements_in_a_batch():
    """Rows of 1000 along the last axis and axis 0, masked, exceptional."""
    rows = HUGE // 1000 + 1
    in_bounded_memory(
        f"x = np.broadcast_to(np.arange(1000, dtype=np.float16) / 128, ({rows}, 1000))\n"
        "alone = csoftmax.logsumexp(x[0])\n"
        "assert np.all(csoftmax.logsumexp(x) == alone)\n"
        f"tall = np.broadcast_to((np.arange(1000, dtype=np.float16) / 128)[:, None], (1000, {rows}))\n"
        "assert np.all(csoftmax.logsumexp(tall, axis=0) == alone)\n"
        "mask = np.broadcast_to(np.arange(1000) < 999, x.shape)\n"
        "assert np.all(csoftmax.logsumexp(x, where=mask) == csoftmax.logsumexp(x[0, :999]))",
        500,
    )


@pytest.mark.long
def test_all_axes_of_more_than_two_to_the_31():
    in_bounded_memory(
        f"x = np.broadcast_to(np.float16(0), (3, {HUGE // 3 + 1}))\n"
        f"assert csoftmax.logsumexp(x, axis=None) == np.float16({math.log(3 * (HUGE // 3 + 1))!r})",
        4500,  # a copy: no stride leads from row to row
    )


def test_sizes_that_no_memory_holds_are_refused_or_empty():
    x = np.broadcast_to(np.float32(0), (2**40, 0))
    assert csoftmax.softmax(x).shape == (2**40, 0)
    with pytest.raises((ValueError, MemoryError)):
        csoftmax.softmax(np.broadcast_to(np.float64(0), (2**30, 2**29)))


def test_constant_row_of_a_million_is_exact(dtype):
    k = 1_000_003
    p = csoftmax.softmax(np.zeros((1, k), dtype_of(dtype)))
    assert ulp_error(p[0, :3], np.full(3, 1 / np.longdouble(k))) <= 0.51
    assert len(np.unique(bits(p))) == 1


@pytest.mark.long
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmax_vjp", "log_softmax_vjp"])
def test_results_of_more_than_two_to_the_31_elements(name):
    """Rows of 1000, then one row: the result alone is 4 GiB of float16."""
    rows = HUGE // 1000 + 1
    arguments = "x, y" if name.endswith("vjp") else "x"
    of_y = -21.5 if name.startswith("log") else 2.0**-24
    code = f"""
row = np.arange(1000, dtype=np.float16) / 128
of_row = csoftmax.{name.removesuffix("_vjp")}(row)
x, y = (np.broadcast_to(a, ({rows}, 1000)) for a in (row, of_row))
out = np.empty(x.shape, np.float16)
result = csoftmax.{name}({arguments}, out=out)
alone = csoftmax.{name}(*(a[:1] for a in ({arguments},)))
assert result is out
for i in range(0, len(out), 1 << 18):
    assert np.array_equal(out[i : i + (1 << 18)], np.broadcast_to(alone, out[i : i + (1 << 18)].shape))
flat = out.reshape(-1)
x, y = (np.broadcast_to(np.float16(a), flat.shape) for a in (1.5, {of_y}))
csoftmax.{name}({arguments}, out=flat)
assert abs(float(flat[0]) - {{"softmax": 0, "log_softmax": -21.484375}}.get("{name}", float(flat[0]))) < 1e-9
for i in range(0, len(out), 1 << 18):
    assert np.all(out[i : i + (1 << 18)] == flat[0])"""
    in_bounded_memory(code, 4500, 3000)
