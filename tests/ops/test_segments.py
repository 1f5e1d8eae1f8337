"""Segments: each has the bits of the dense call on its elements, whatever the lengths, order, layout and threads."""

import ctypes
import pickle
import sys

import hypothesis.strategies as st
import ml_dtypes  # noqa: F401
import numpy as np
import pytest
from helpers import assert_same_bits, looped, run_python
from helpers.c_arrays import CSegments, LossOptions, PlacedSegments, Shape, view_of
from hypothesis import given, settings

import csoftmax
from csoftmax._arguments.segments import hold_segments
from csoftmax._spec.formats import DTYPES
from csoftmax._spec.samples import logits

FORWARD = ("softmax", "log_softmax", "logsumexp")
few = settings(max_examples=60, deadline=None, derandomize=True)


def dense(name, arrays, segments, axis, where=None, temperature=1.0, **options):
    """Call a dense function for the elements of each segment, and put the results together."""
    function = getattr(csoftmax, name)
    last = [np.moveaxis(a, axis, -1) for a in arrays]
    mask = None if where is None else np.moveaxis(np.broadcast_to(where, arrays[0].shape), axis, -1)
    order = np.arange(last[0].shape[-1]) if segments.order is None else segments.order
    reduces = name == "logsumexp"
    absent = -np.inf if name == "log_softmax" else 0
    count = segments.num_segments if reduces else len(order)
    result = np.full((*last[0].shape[:-1], count), absent, arrays[0].dtype)
    for s in range(segments.num_segments):
        at = order[segments.indptr[s] : segments.indptr[s + 1]]
        t = temperature if np.ndim(temperature) == 0 else float(temperature[s])
        given_mask = None if mask is None else mask[..., at]
        if not reduces and not len(at):
            continue
        parts = [np.ascontiguousarray(a[..., at]) for a in last]
        y = function(*parts, where=given_mask, temperature=t, **options)
        result[..., s if reduces else at] = y
    return np.moveaxis(result, -1, axis)


def check(x, segments, axis=0, seed=0, **options):
    """Compare all functions of the family with the dense ones."""
    where, temperature = options.get("where"), options.get("temperature", 1.0)
    for name in FORWARD:
        y = getattr(csoftmax, f"segment_{name}")(x, segments=segments, axis=axis, **options)
        assert_same_bits(y, dense(name, (x,), segments, axis, where, temperature), f"{name} {x.shape}")
        if name == "logsumexp" or not np.all((np.asarray(temperature) > 0) & (np.asarray(temperature) < np.inf)):
            continue
        dy = np.random.default_rng(seed).standard_normal(x.shape).astype(x.dtype)
        dx = getattr(csoftmax, f"segment_{name}_vjp")(dy, y, segments=segments, axis=axis, **options)
        assert_same_bits(dx, dense(f"{name}_vjp", (dy, y), segments, axis, where, temperature), f"{name}_vjp")


def shuffled(lengths, seed, left_out=0.0):
    """Return segments of these lengths whose elements lie in random order, some of none."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(len(lengths)), np.array(lengths, int))
    rng.shuffle(ids)
    return csoftmax.Segments(segment_ids=np.where(rng.random(len(ids)) < left_out, -1, ids), num_segments=len(lengths))


def in_order(lengths):
    return csoftmax.Segments(indptr=np.concatenate([[0], np.cumsum(lengths, dtype=int)]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths(dtype):
    """Lengths around vectors and blocks, in one call and one behind the other, with empty ones between."""
    lengths = [n for k in range(1, 35) for n in (k, 0, 35 - k)] + [63, 64, 65, 512, 513, 4095, 4096, 4097, 5000]
    x = logits((sum(lengths),), dtype, 1, 4.0)
    check(x, in_order(lengths))
    check(x, shuffled(lengths, 2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_short_segments_behind_a_long_one(dtype):
    """A long segment needs more scratch than what the kernel of short ones has, of which there are several groups."""
    lengths = [20] * 300 + [5000] + [20] * 600 + [9000] + [3] * 300
    x = logits((sum(lengths),), dtype, 4, 4.0)
    for _ in range(3):
        check(x, in_order(lengths), num_threads=1)
        check(x, shuffled(lengths, 5), num_threads=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_lengths(dtype):
    """Segments of one length that leave nothing out are a dense call, as are others that are nearly so."""
    for n, count in ((1, 7), (5, 12), (33, 3), (5000, 2)):
        equal = in_order([n] * count)
        x = logits((2, n * count), dtype, n, 4.0)
        where = np.random.default_rng(n).random(x.shape) < 0.7
        each = np.linspace(0.5, 3.0, count)
        check(x[0], equal)
        check(x, equal, axis=-1, temperature=each)
        check(x, equal, axis=-1, where=where, temperature=0.5)
        check(x[:, ::-1], equal, axis=1, temperature=each, where=where)
        check(x.T, equal)
        check(x, csoftmax.Segments(indptr=np.arange(0, n * (count - 1) + 1, n)), axis=1)
        check(x, in_order([n + 1, n - 1] + [n] * (count - 2)), axis=1)


@pytest.mark.parametrize("heads", [8, 16])
def test_whole_vectors_of_heads(heads):
    """Heads that fill half a vector, one or two: lengths around those kept in registers, special values, in place."""
    rng = np.random.default_rng(heads)
    lengths = rng.permutation([*range(40), *rng.integers(0, 18, 60), 511, 513, 4096, 4097])
    segments = in_order(lengths)
    for scale in (1.0, 40.0):
        x = (rng.standard_normal((segments.indptr[-1], heads)) * scale).astype(np.float32)
        for value in (np.nan, np.inf, -np.inf, 1e30):
            x[rng.integers(0, len(x), 5), rng.integers(0, heads, 5)] = value
        x[: segments.indptr[5]] = -np.inf
        expected = dense("softmax", (x,), segments, 0)
        assert_same_bits(csoftmax.segment_softmax(x, segments=segments), expected)
        assert_same_bits(csoftmax.segment_softmax(x, segments=segments, out=x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_length(dtype):
    for begin in range(1, 5001, 250):
        lengths = range(begin, begin + 250)
        check(logits((sum(lengths),), dtype, begin, 4.0), in_order(lengths))


@few
@given(
    st.lists(st.one_of(st.integers(0, 20), st.integers(0, 300)), max_size=40),
    st.sampled_from([(), (1,), (2,), (3,), (4,), (8,), (9,), (17,), (130,)]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2, 3]),
    st.integers(0, 2**16),
)
def test_random_partitions(lengths, heads, dtype, is_ordered, heads_first, threads, seed):
    segments = in_order(lengths) if is_ordered else shuffled(lengths, seed, left_out=0.1)
    x = logits((sum(lengths), *heads), dtype, seed, 4.0)
    axis = 0
    if heads_first and heads:
        x, axis = np.ascontiguousarray(np.moveaxis(x, 0, -1)), -1
    rng = np.random.default_rng(seed)
    options = (
        *({}, {"where": rng.random(x.shape) < 0.7}),
        *({"temperature": 0.6}, {"temperature": rng.random(len(lengths))}),
    )
    check(x, segments, axis, seed, num_threads=threads, **options[seed % 4])


@looped("value", [np.nan, np.inf, -np.inf, 3e4, -3e4])
def test_special_values_at_every_index(value):
    """A special value changes its own segment alone."""
    lengths = [3, 17, 1, 40]
    for segments in (in_order(lengths), shuffled(lengths, 5)):
        for at in range(sum(lengths)):
            x = logits((sum(lengths),), "float32", 3, 2.0)
            x[at] = value
            check(x, segments)


def test_all_infinite():
    """No epsilon: -inf alone gives -inf, and NaN is not hidden (pytorch_scatter 407, 369)."""
    x = np.array([-np.inf, -np.inf, np.nan, 1.0, 2.0])
    got = csoftmax.segment_logsumexp(x, indptr=[0, 2, 3, 3, 5])
    np.testing.assert_array_equal(got, [-np.inf, np.nan, -np.inf, csoftmax.logsumexp([1.0, 2.0])])
    assert np.isnan(csoftmax.segment_softmax(x, indptr=[0, 2, 3, 3, 5])[:3]).all()
    mask = x > -np.inf
    np.testing.assert_array_equal(csoftmax.segment_softmax(x, indptr=[0, 2, 3, 3, 5], where=mask)[:2], 0)


@looped("temperature", [0.0, np.inf, 1e-30, 1e30, 0.3])
def test_limits_of_temperature(temperature):
    lengths = [5, 0, 16, 33, 4100]
    x = logits((sum(lengths),), "float32", 4, 3.0)
    check(x, in_order(lengths), temperature=temperature)
    check(np.repeat(x[:, None], 9, 1), in_order(lengths), temperature=temperature)


def test_huge_segments_are_split():
    """Segments that are split over threads, in order and not, masked too."""
    n = (1 << 20) + 5000
    x = logits((n + 30,), "float32", 8, 5.0)
    ids = np.zeros(n + 30, np.int64)
    ids[::40000] = 1
    for segments in (csoftmax.Segments(indptr=[3, n + 10, n + 30]), csoftmax.Segments(segment_ids=ids)):
        for options in ({}, {"where": x > 0}):
            expected = csoftmax.segment_softmax(x, segments=segments, num_threads=1, **options)
            assert_same_bits(csoftmax.segment_softmax(x, segments=segments, num_threads=3, **options), expected)
            assert_same_bits(expected, dense("softmax", (x,), segments, 0, **options))


def test_in_place_and_overlap():
    lengths = [3, 0, 20, 5, 4200, 7]
    for segments in (in_order(lengths), shuffled(lengths, 6)):
        for shape in ((sum(lengths),), (sum(lengths), 9), (sum(lengths), 3)):
            x = logits(shape, "float32", 6, 3.0)
            expected = csoftmax.segment_softmax(x, segments=segments)
            memory = np.concatenate([x, x[:2]])
            memory[: len(x)] = x
            got = csoftmax.segment_softmax(memory[: len(x)], segments=segments, out=memory[2:])
            assert_same_bits(got, expected)
            assert csoftmax.segment_softmax(x, segments=segments, out=x) is x
            assert_same_bits(x, expected)


def test_blocks_of_a_sparse_matrix():
    """axis=(0, 2): the elements of a segment are its blocks in order, each with its columns."""
    x = logits((6, 2, 5), "float32", 7, 3.0)
    ids = np.array([2, 0, 2, 1, 0, 0])
    y = csoftmax.segment_softmax(x, segment_ids=ids, axis=(0, 2))
    sums = csoftmax.segment_logsumexp(x, segment_ids=ids, axis=(0, 2))
    assert sums.shape == (3, 2)
    for s in range(3):
        rows = np.moveaxis(x[ids == s], 1, 0).reshape(2, -1)
        expected = np.moveaxis(csoftmax.softmax(rows).reshape(2, -1, 5), 0, 1)
        assert_same_bits(np.ascontiguousarray(y[ids == s]), np.ascontiguousarray(expected))
        assert_same_bits(sums[s], csoftmax.logsumexp(rows))


def test_temperatures_of_segments_and_heads():
    x = logits((12, 3), "float64", 9, 3.0)
    segments = in_order([4, 3, 5])
    each = np.random.default_rng(1).random((3, 3)) + 0.2
    y = csoftmax.segment_softmax(x, segments=segments, temperature=each)
    for s, (begin, end) in enumerate(((0, 4), (4, 7), (7, 12))):
        for h in range(3):
            alone = csoftmax.softmax(x[begin:end, h].copy(), temperature=each[s, h])
            assert_same_bits(y[begin:end, h].copy(), alone)
    one = csoftmax.segment_softmax(x, segments=segments, temperature=[0.5, 1.0, 2.0])
    assert_same_bits(one, csoftmax.segment_softmax(x, segments=segments, temperature=[[0.5], [1.0], [2.0]]))


def by_order(segments):
    """Return the same segments without the places of their elements, as they come from PyTorch and JAX."""
    return hold_segments(segments.indptr, segments.order, segments.num_elements)


@looped("layout", [(61,), (61, 2), (61, 8), (61, 9), (3, 61), (2, 61, 8), (8, 61, 1), (61, 4, 3)])
@looped("dtype", DTYPES)
def test_order_and_places(layout, dtype):
    """Elements are copied by their places or by their order, rows side by side or one behind the other."""
    segments = shuffled([5, 0, 20, 1, 30], 3, left_out=0.1)
    axis, count = layout.index(61), segments.num_elements
    shape = tuple(count if n == 61 else n for n in layout)
    x = logits(shape, dtype, 4, 3.0)
    for array in (x, np.ascontiguousarray(x[::-1])[::-1], np.asfortranarray(x)):
        check(array, segments, axis=axis)
        check(array, by_order(segments), axis=axis)
    where = np.random.default_rng(2).random(shape) < 0.7
    check(x, by_order(segments), axis=axis, where=where, temperature=np.array([0.5, 1.0, 2.0, 1.5, 1.0]))


@pytest.mark.parametrize("given", [lambda segments: segments, by_order])
def test_rows_that_are_copied_in_groups(given):
    """Rows of 2.8 MB, of which two fit the 8 MB that are copied at a time."""
    segments = shuffled([7] * 100_000, 5)
    x, count = logits((5, 700_000), "float32", 6, 3.0), 100_000
    t = np.random.default_rng(7).random((5, count)) + 0.5
    some = given(segments)
    y = csoftmax.segment_softmax(x, segments=some, axis=1)
    tempered = csoftmax.segment_logsumexp(x[:, ::-1], segments=some, axis=1, temperature=t, where=x[:, ::-1] < 5)
    for r in range(5):
        assert_same_bits(y[r], csoftmax.segment_softmax(x[r], segments=segments))
        row = np.ascontiguousarray(x[r, ::-1])
        assert_same_bits(
            tempered[r], csoftmax.segment_logsumexp(row, segments=segments, temperature=t[r], where=row < 5)
        )


@pytest.mark.slow
def test_heads_that_are_copied_in_groups():
    """Nine heads of 7.6 MB, of which eight fit the 64 MB that are copied at a time."""
    segments = shuffled([10] * 190_000, 8)
    x = logits((1_900_000, 9), "float32", 9, 3.0)
    y = csoftmax.segment_softmax(x, segments=segments, num_threads=2)
    for at in (slice(0, 8), slice(8, 9)):
        assert_same_bits(y[:, at], csoftmax.segment_softmax(np.ascontiguousarray(x[:, at]), segments=segments))


@few
@given(st.lists(st.integers(-1, 12), max_size=200))
def test_sort(ids):
    segments = csoftmax.Segments(segment_ids=np.array(ids, np.int32), num_segments=13)
    order = np.argsort(ids, kind="stable")
    assert segments.indptr.tolist() == np.searchsorted(np.sort(ids), np.arange(14)).tolist()
    assert np.array_equal(np.arange(len(ids)) if segments.order is None else segments.order, order)
    assert (segments.order is None) == (sorted(ids) == ids)


def test_segments_object():
    segments = csoftmax.Segments(segment_ids=[2, 0, 2, -1])
    again = pickle.loads(pickle.dumps(segments))
    assert repr(again) == "Segments(num_segments=3, num_elements=4)"
    assert len(again) == 3
    assert again.lengths.tolist() == [1, 0, 2]
    with pytest.raises(ValueError, match="read-only"):
        segments.indptr[0] = 5
    ids = np.array([1, 0])
    kept = csoftmax.Segments(segment_ids=ids)
    ids[:] = 0
    assert kept.lengths.tolist() == [1, 1]
    assert csoftmax.Segments(segment_ids=[]).num_segments == 0
    assert csoftmax.segment_softmax(np.zeros(0), segment_ids=[]).shape == (0,)
    assert csoftmax.segment_logsumexp(np.zeros((0, 2)), segment_ids=[], num_segments=3).tolist() == [[-np.inf] * 2] * 3
    with pytest.raises(IndexError, match=r"segment_ids\[1\] is -2; allowed are -1 to 2"):
        csoftmax.Segments(segment_ids=[0, -2], num_segments=3)
    with pytest.raises(IndexError, match=r"segment_ids\[1\] is"):
        csoftmax.Segments(segment_ids=np.array([0, 2**64 - 1], np.uint64))
    with pytest.raises(TypeError, match="indptr or segment_ids is needed, got both"):
        csoftmax.Segments(indptr=[0], segment_ids=[])
    with pytest.raises(ValueError, match=r"num_segments must be at least 0"):
        csoftmax.Segments(segment_ids=[], num_segments=-1)
    with pytest.raises(ValueError, match="num_segments is 5, and segments has 3"):
        csoftmax.segment_softmax(np.zeros(4), segments=segments, num_segments=5)
    with pytest.raises(ValueError, match=r"indptr must rise, but indptr\[2\] is 3 and indptr\[3\] is 2"):
        csoftmax.segment_softmax(np.zeros(4), indptr=[0, 1, 3, 2, 4])
    with pytest.raises(ValueError, match=r"indptr must rise from at least 0 to the number of elements, got \[-1"):
        csoftmax.segment_softmax(np.zeros(4), indptr=[-1, 3])
    with pytest.raises(ValueError, match=r"broadcasts to \(3,\), the shape of x with the segments in place"):
        csoftmax.segment_softmax(np.zeros(4), segments=segments, temperature=[1.0, 2.0])
    with pytest.raises(ValueError, match="x has no axis"):
        csoftmax.segment_softmax(1.0, indptr=[0, 1])
    with pytest.raises(TypeError, match="axis must be an int or a tuple of ints, got None"):
        csoftmax.segment_softmax(np.zeros(4), segments=segments, axis=None)


def test_segments_cannot_be_changed():
    """Kernels trust the order: neither an attribute nor an array of it can be written, and a pickle is checked."""
    segments = csoftmax.Segments(segment_ids=[0, 1, 0, 1, 0, 1])
    for name in ("order", "indptr", "num_segments", "num_elements"):
        with pytest.raises(AttributeError):
            setattr(segments, name, np.array([0, 2, 4, 1, 3, 50_000_000], np.int32))
    for values in (segments.order, segments.indptr):
        with pytest.raises(ValueError, match="WRITEABLE"):
            values.flags.writeable = True
    restore, (indptr, order, count) = segments.__reduce__()
    for bad, error, message in (
        ([0, 2, 4, 1, 3, 50_000_000], IndexError, r"order\[5\] is 50000000; allowed are 0 to 5"),
        ([0, 2, 4, 1, 3, -1], IndexError, r"order\[5\] is -1"),
        ([0], ValueError, "order has 1 elements; num_elements is 6"),
        ([0, 2, 4, 1, 3, 3], ValueError, "order must hold each element once"),
    ):
        with pytest.raises(error, match=message):
            restore(indptr, np.array(bad, np.int32), count)
    with pytest.raises(ValueError, match="indptr ends at 7; num_elements is 6"):
        restore(np.array([0, 7]), None, 6)
    with pytest.raises(ValueError, match="indptr must rise"):
        restore(np.array([3, 0]), order, count)
    given = np.array([1, 0, 3, 2, 5, 4])
    again = restore(np.array([0, 3, 6]), given, 6)
    given[:] = 50_000_000
    assert again.order.tolist() == [1, 0, 3, 2, 5, 4]


@looped(
    "case",
    [
        ({"segment_ids": np.array([0, 2**63], np.uint64)}, IndexError, r"is 9223372036854775808; allowed are -1 to"),
        ({"segment_ids": [0, 2**62]}, IndexError, r"segment_ids\[1\] is 4611686018427387904; allowed are -1 to"),
        ({"segment_ids": [0, 2**47]}, MemoryError, r"segment_ids\[1\] is 140737488355328: 140737488355329 segments"),
        ({"segment_ids": [0], "num_segments": 2**70}, ValueError, "num_segments must be at most 281474976710656, got"),
        ({"segment_ids": [0], "num_segments": 2**47}, MemoryError, "num_segments is 140737488355328: "),
    ],
)
def test_numbers_of_segments_beyond_memory(case):
    options, error, message = case
    with pytest.raises(error, match=message):
        csoftmax.Segments(**options)


@pytest.mark.skipif(sys.platform == "win32", reason="it has no setitimer")
@looped("name", ["sort", "any"])
def test_interrupts(name):
    """A sort of ids, and the loss of one long segment, end soon after Ctrl-C."""
    result = run_python(f"""
import signal, time
import numpy as np
import csoftmax

n = 32_000_000  # 0.2 s; a call asks every 0.03 s
ids = np.random.default_rng(0).integers(0, 4_000_000, n)
x, one = np.zeros(n, np.float32), csoftmax.Segments(indptr=[0, n])
calls = {{
    "sort": lambda: csoftmax.Segments(segment_ids=ids, num_segments=4_000_000),
    "any": lambda: csoftmax.segment_cross_entropy_with_grad(x, ids < 1000, segments=one, positives="any"),
}}
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGPROF, stop)
call = calls["{name}"]
call()
begin = time.process_time()
call()
took, begin = time.process_time() - begin, time.process_time()
signal.setitimer(signal.ITIMER_PROF, 0.2 * took)
try:
    call()
    print("finished")
except KeyboardInterrupt:
    share = (time.process_time() - begin) / took
    print("stopped" if share < 0.65 else f"late, after {{share}} of {{took}} s")
""")
    assert result.stdout.strip() == "stopped"


def test_no_access_outside():
    """Segments of all lengths at the edges of pages that cannot be accessed: in order, not in order, side by side."""
    done = run_python(
        "from helpers.guard_pages import *\n"
        "import csoftmax\n"
        "places, calls = Places(1 << 18), 0\n"
        "for dtype in ('float32', 'float16', 'float64'):\n"
        "    for n in (*range(1, 18), 31, 33, 64, 4097):\n"
        "        lengths = [n, 0, 3, max(n - 1, 0), n]\n"
        "        ids = np.repeat(np.arange(5), lengths)\n"
        "        for heads in ((), (3,), (8,), (9,)):\n"
        "            x = (np.arange(len(ids) * int(np.prod(heads))).reshape(len(ids), *heads) % 7).astype(dtype)\n"
        "            for i in (ids, np.random.default_rng(n).permutation(ids)):\n"
        "                for name in ('softmax', 'log_softmax', 'logsumexp'):\n"
        "                    f = getattr(csoftmax, 'segment_' + name)\n"
        "                    expected = f(x, segment_ids=i)\n"
        "                    for at_end in (True, False):\n"
        "                        places.taken = 0\n"
        "                        out = places.copy(np.zeros_like(expected), at_end)\n"
        "                        got = f(places.copy(x, at_end), segment_ids=i, out=out)\n"
        "                        assert got.tobytes() == expected.tobytes()\n"
        "                        calls += 1\n"
        "print(calls)\n"
    )
    assert int(done.stdout) == 3 * 21 * 4 * 2 * 3 * 2  # all have returned, with the bits of plain calls


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_failing_allocation(dtype, tmp_path):
    """Ids are sorted, elements gathered, huge segments copied and split: every allocation may fail."""
    from helpers import compile_library
    from helpers.failing_allocations import SHIM

    shim = compile_library(tmp_path, SHIM, "shim")
    done = run_python(
        "import numpy as np, csoftmax\n"
        "from helpers.failing_allocations import fail_every_allocation\n"
        "rng = np.random.default_rng(0)\n"
        "ids = rng.integers(0, 50, 30000)\n"
        "segments = csoftmax.Segments(segment_ids=ids)\n"
        f"x = rng.standard_normal((30000, 3)).astype('{dtype}')\n"
        "target = np.zeros((50, 3), int)\n"
        "large = np.zeros(1 << 21, bool)\n"
        "large[::2] = True\n"
        "both = csoftmax.Segments(segment_ids=large.astype(int))\n"
        f"y = rng.standard_normal(1 << 21).astype('{dtype}')\n"
        "positives = rng.random((30000, 3)) < 0.1\n"
        "calls = {\n"
        "    'sort': lambda: csoftmax.Segments(segment_ids=ids).indptr,\n"
        "    'gather': lambda: csoftmax.segment_softmax(x, segments=segments, num_threads=3),\n"
        "    'split': lambda: csoftmax.segment_softmax(y, segments=both, num_threads=3),\n"
        "    'loss': lambda: csoftmax.segment_cross_entropy(x, target, segments=segments, num_threads=3),\n"
        "    'any': lambda: csoftmax.segment_cross_entropy(x, positives, segments=segments, positives='any'),\n"
        "}\n"
        "print(sum(fail_every_allocation(call, name) for name, call in calls.items()))\n",
        LD_PRELOAD=str(shim),
        timeout=300,
    )
    assert int(done.stdout.split()[-1]) > 10


@pytest.mark.slow
@looped("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """The same digest of a mixed call on each instruction set of the machine."""
    code = (
        "import hashlib, numpy as np, csoftmax\n"
        "rng = np.random.default_rng(3)\n"
        "h = hashlib.sha256()\n"
        "for shape in ((20000,), (20000, 8)):\n"
        "    ids = rng.integers(0, 1500, 20000)\n"
        "    x = rng.standard_normal(shape).astype(np.float32)\n"
        "    for i in (ids, np.sort(ids)):\n"
        "        for name in ('softmax', 'log_softmax', 'logsumexp'):\n"
        "            h.update(getattr(csoftmax, 'segment_' + name)(x, segment_ids=i).tobytes())\n"
        "print(h.hexdigest())"
    )
    from csoftmax._cpu import binding

    if isa in binding.isa_available():
        assert run_python(code, CSOFTMAX_ISA=isa).stdout == run_python(code, CSOFTMAX_ISA="scalar").stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the shared library of a build on Linux")
def test_c_functions():
    """As a C program calls them: the sort, softmax, and the loss, whose sum follows the losses."""
    c = ctypes.CDLL(csoftmax.get_library())
    ids = np.array([2, 0, 2, -1, 0, 2])
    indptr, order, position = np.empty(4, np.int64), np.empty(6, np.int32), ctypes.c_size_t()
    arrays = ids.ctypes.data, ctypes.c_size_t(3), indptr.ctypes.data, order.ctypes.data
    call = [ctypes.c_size_t(6), *map(ctypes.c_void_p, arrays[:1]), arrays[1], *map(ctypes.c_void_p, arrays[2:])]
    is_sorted = ctypes.c_int()
    assert c.csm_segment_sort(*call, 4, ctypes.byref(is_sorted), ctypes.byref(position)) == 0
    expected = csoftmax.Segments(segment_ids=ids)
    assert not is_sorted.value
    assert indptr.tolist() == expected.indptr.tolist()
    assert order.tolist() == expected.order.tolist()
    x = logits((2, 6), "float32", 1, 3.0)
    y, shape = np.empty_like(x), Shape(6, 1, (ctypes.c_size_t * 64)(2))
    segments = CSegments(ctypes.sizeof(CSegments), 3, indptr.ctypes.data, order.ctypes.data, 4)
    views = [ctypes.byref(view_of(a)) for a in (x, y)]
    assert c.csm_segment_softmax_f32(ctypes.byref(shape), ctypes.byref(segments), *views, None) == 0
    assert_same_bits(y, csoftmax.segment_softmax(x, segments=expected, axis=1))
    places = np.argsort(order).astype(np.int32)
    placed = PlacedSegments(
        CSegments(ctypes.sizeof(PlacedSegments), 3, indptr.ctypes.data, None, 4), places.ctypes.data
    )
    assert c.csm_segment_softmax_f32(ctypes.byref(shape), ctypes.byref(placed), *views, None) == 0
    assert_same_bits(y, csoftmax.segment_softmax(x, segments=expected, axis=1))
    labels, losses = np.array([[1, -100, 2], [0, -100, 0]]), np.empty(7)
    given = view_of(labels)
    options = LossOptions(
        size=ctypes.sizeof(LossOptions), labels=ctypes.addressof(given), label_type=3, has_ignore=1,
        ignore=2**64 - 100, temperature=1.0, reduction=1, threads=1,
    )  # fmt: skip
    loss = ctypes.c_void_p(losses.ctypes.data)
    arguments = ctypes.byref(shape), ctypes.byref(segments), ctypes.byref(view_of(x)), None, loss
    assert c.csm_segment_cross_entropy_f32(*arguments, ctypes.byref(options)) == 0
    right = csoftmax.segment_cross_entropy(x, labels, segments=expected, axis=1, reduction="none")
    assert_same_bits(losses[:6].reshape(2, 3).astype(np.float32), right)
    total = csoftmax.segment_cross_entropy(x, labels, segments=expected, axis=1, reduction="sum")
    assert np.float32(losses[6]) == total
    without_order = arguments[0], ctypes.byref(placed), *arguments[2:]
    assert c.csm_segment_cross_entropy_f32(*without_order, ctypes.byref(options)) == 7
    ids[4] = 3
    assert c.csm_segment_sort(*call, 4, ctypes.byref(is_sorted), ctypes.byref(position)) == 6
    assert position.value == 4
    segments.order_bytes = 3
    assert c.csm_segment_softmax_f32(ctypes.byref(shape), ctypes.byref(segments), *views, None) == 7
