"""The memory of large results is used again (pages.c)."""

import gc
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, every_record, run_python

import csoftmax
from csoftmax._cpu import binding
from csoftmax._runtime import memory as _memory
from csoftmax._spec.record import CLASSES, ROWS, Sample

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere NumPy allocates")
MB = 1 << 20
LARGE = (33, 1 << 18)  # float32: 33 MB


@pytest.fixture(autouse=True)
def nothing_kept():
    binding.set_pages_limit(0)
    binding.set_pages_limit(256 * MB)
    yield
    binding.set_pages_limit(_memory.LIMIT)


def address(x):
    return x.__array_interface__["data"][0]


def logits(shape=LARGE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def large_call(record):
    """Return a call whose result with the classes has 33 MB: one row, 33 times."""
    sample = record.sample((1, LARGE[1]))

    def many(name, a):
        return np.repeat(a, LARGE[0], axis=0) if record.role(name, sample) in (CLASSES, ROWS) else a

    return Sample(*({name: many(name, a) for name, a in part.items()} for part in sample))


def check_reuse(call):
    """The memory of a dead result is that of the next but one; nothing is written while anybody has it."""
    first = call()
    expected, at = first.copy(), address(first)
    assert at % (2 * MB) == 0
    assert first.flags.writeable
    assert first.flags.c_contiguous
    assert type(first) is np.ndarray
    second = call()  # the first is still there
    assert address(second) != at
    assert_same_bits(first, expected)
    first[...] = 7
    del first
    assert binding.kept_pages() == 34 * MB
    third = call()
    assert address(third) == at
    assert binding.kept_pages() == 0
    assert_same_bits(third, expected)
    assert_same_bits(second, expected)


@every_record("memory")
def test_a_large_result_lies_where_the_last_one_was(record):
    sample = large_call(record)

    def call():
        result = record.call(sample)
        return result[-1] if isinstance(result, tuple) else result

    check_reuse(call)


def test_options_take_the_same_memory():
    x = logits()
    check_reuse(lambda: csoftmax.log_softmax(x, temperature=np.float64(2), where=True))
    t, weights = np.zeros(len(x), np.int64), np.ones(len(x))
    check_reuse(lambda: csoftmax.cross_entropy_with_grad(x, t, sample_weight=weights).grad)


def test_numpy_allocates_small_results():
    y = csoftmax.softmax(logits((31, 1 << 18)))
    assert y.flags.owndata
    del y
    assert binding.kept_pages() == 0


def test_layouts():
    """Results in C order take kept memory; NumPy allocates the others, in the order that it chooses."""
    x = np.repeat(logits(), 2, 1)
    for view in (x[:, ::2], x[:, ::-2], x[::-1, : 1 << 18], x[:, None, : 1 << 18]):
        y = csoftmax.softmax(view, num_threads=2)
        assert not y.flags.owndata
        assert y.flags.c_contiguous
        assert np.empty_like(view).flags.c_contiguous
    for view in (np.asfortranarray(x), x.T, np.broadcast_to(x[0], x.shape)):
        y = csoftmax.softmax(view, num_threads=2)
        assert y.strides == np.empty_like(view).strides
        assert y.flags.owndata


def test_no_reference_is_lost():
    x = logits()
    csoftmax.softmax(x)
    before = sys.getrefcount(None)
    for _ in range(30):
        csoftmax.softmax(x)
    assert abs(sys.getrefcount(None) - before) < 20


def test_numpy_allocates_what_is_too_large_to_keep():
    binding.set_pages_limit(33 * MB)
    assert csoftmax.softmax(logits((34, 1 << 18))).flags.owndata
    assert not csoftmax.softmax(logits()).flags.owndata


def test_views_hold_the_memory():
    x = logits()
    row = csoftmax.softmax(x)[5]
    expected = row.copy()
    gc.collect()
    assert binding.kept_pages() == 0
    others = [csoftmax.softmax(logits(seed=1)) for _ in range(3)]
    assert_same_bits(row, expected)
    assert not any(np.shares_memory(row, other) for other in others)


def test_tracemalloc_sees_what_is_held():
    x = logits()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        y = csoftmax.softmax(x)
        z = csoftmax.softmax(x)
        held = tracemalloc.get_traced_memory()[0] - before
        assert 0 <= held - y.nbytes - z.nbytes < 10_000
        domain = tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)
        sizes = [trace.size for trace in tracemalloc.take_snapshot().filter_traces([domain]).traces]
        assert sorted(sizes)[-2:] == [y.nbytes, z.nbytes]
        del y, z
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
        assert binding.kept_pages() == 2 * 34 * MB
    finally:
        tracemalloc.stop()


def test_no_more_is_kept_than_allowed():
    sizes = [(33, 1 << 18), (65, 1 << 18), (129, 1 << 18), (257, 1 << 18)]  # 33, 65, 129, 257 MB
    for rows, k in sizes:
        del_me = csoftmax.softmax(np.zeros((rows, k), np.float32))
        del del_me
        assert binding.kept_pages() <= 256 * MB
    assert binding.kept_pages() == (34 + 66 + 130) * MB  # the last one alone exceeds the limit: NumPy allocates it
    results = [csoftmax.softmax(logits()) for _ in range(6)]
    results.clear()
    assert binding.kept_pages() == 6 * 34 * MB
    binding.set_pages_limit(1000 * MB)
    results = [binding.empty((33 * MB,), np.dtype(np.uint8)) for _ in range(18)]
    results.clear()  # at most sixteen are kept, the latest
    assert binding.kept_pages() == 16 * 34 * MB
    binding.set_pages_limit(200 * MB)
    assert binding.kept_pages() == 5 * 34 * MB
    binding.set_pages_limit(100 * MB)
    assert binding.kept_pages() == 2 * 34 * MB
    binding.set_pages_limit(0)
    assert binding.kept_pages() == 0
    assert csoftmax.softmax(logits()).flags.owndata


def test_threads_of_python_share_it():
    from concurrent.futures import ThreadPoolExecutor

    x = [logits(seed=seed) for seed in range(3)]
    expected = [csoftmax.softmax(a) for a in x]

    def compute(i):
        for _ in range(6):
            assert_same_bits(csoftmax.softmax(x[i]), expected[i])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(compute, range(3)))


def test_the_system_may_take_it():
    """Kept memory is marked as free to take: after the system has taken it, results are right all the same."""
    import ctypes

    madvise = ctypes.CDLL(None, use_errno=True).madvise
    x = logits()
    y = csoftmax.softmax(x)
    expected, at = y.copy(), address(y)
    fields = {}
    del y

    def lazy():
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            head = line.split()[0]
            if "-" in head and not head.endswith(":"):
                begin, end = (int(part, 16) for part in head.split("-"))
                inside = begin <= at < end
            elif inside and head == "LazyFree:":
                fields[head] = int(line.split()[1])
        return fields["LazyFree:"]

    assert lazy() >= 33 * 1024
    madvise(ctypes.c_void_p(at), ctypes.c_size_t(34 * MB), 4)  # MADV_DONTNEED, as if it had been taken
    again = csoftmax.softmax(x)
    assert address(again) == at
    assert_same_bits(again, expected)


def test_the_limit_is_a_setting():
    code = "import csoftmax; print(csoftmax.show_config('dicts')['memory'])"
    assert run_python(code, CSOFTMAX_KEEP_BYTES="123456789").stdout.strip() == "{'kept': 0, 'limit': 123456789}"
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    default = min(512 * MB, physical // 16)
    assert run_python(code, CSOFTMAX_KEEP_BYTES=None).stdout.strip() == f"{{'kept': 0, 'limit': {default}}}"
    done = run_python(code, check=False, CSOFTMAX_KEEP_BYTES="-1")
    assert done.returncode == 1
    assert "CSOFTMAX_KEEP_BYTES must be a whole number of bytes (0: none is kept), got '-1'" in done.stderr


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_nothing_is_kept_where_memory_is_limited(kind):
    code = f"""
import resource
resource.setrlimit(resource.{kind}, (8 << 30, resource.RLIM_INFINITY))
import csoftmax
print(csoftmax.show_config('dicts')['memory']['limit'])
"""
    assert run_python(code, CSOFTMAX_KEEP_BYTES=None).stdout.strip() == "0"
    assert run_python(code, CSOFTMAX_KEEP_BYTES="5").stdout.strip() == "5"


LIMITED = """
import resource
import numpy as np
import csoftmax
from csoftmax._cpu import binding
wide = np.zeros((45, 1 << 18), np.float32)
y = csoftmax.softmax(np.zeros((33, 1 << 18), np.float32))
del y
assert binding.kept_pages() == 34 << 20
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
y = csoftmax.softmax(wide, num_threads=1)  # there is room once what is kept has been given back
assert y.nbytes == 45 << 20 and binding.kept_pages() == 0
try:
    csoftmax.softmax(wide, num_threads=1)
except MemoryError as error:
    assert str(error) == f"csoftmax: no memory for a result of {45 << 20} bytes"
    print("refused")
"""


def test_an_address_space_that_ends():
    assert run_python(LIMITED, OMP_NUM_THREADS="1").stdout.strip() == "refused"


FORKED = """
import os
import numpy as np
import csoftmax
x = np.random.default_rng(0).standard_normal((33, 1 << 18), dtype=np.float32)
kept, mine = csoftmax.softmax(x, num_threads=1), csoftmax.softmax(x, num_threads=1)
expected = mine.copy()
del kept
child = os.fork()
if child == 0:
    for _ in range(3):
        y = csoftmax.softmax(x, num_threads=1)
        assert (y == expected).all() and (mine == expected).all()
    mine[...] = 0
    os._exit(0)
for _ in range(3):
    assert (csoftmax.softmax(x, num_threads=1) == expected).all()
assert os.waitpid(child, 0)[1] == 0
assert (mine == expected).all()
print("both right")
"""


def test_fork():
    assert run_python(FORKED).stdout.strip() == "both right"
