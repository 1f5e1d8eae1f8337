"""Threads that compute at the same time get the bits of one alone, with the GIL and without it.

Only a free-threaded CPython runs all of the binding in several threads at once, but OpenMP, large calls (which release
the GIL) and the switches between threads make the hammer worth its second on every CPython.
`tests/tools/free_threaded.sh` builds a free-threaded one.
"""

import itertools
import os
import sysconfig
import threading
import time

import numpy as np
import pytest
from helpers import bits, run_python

import csoftmax
from csoftmax._cpu import binding
from csoftmax._runtime import memory

THREADS = 8
without_gil = pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this CPython has a GIL")


@without_gil
@pytest.mark.parametrize("module", ["csoftmax", "csoftmax.cpu", "csoftmax.torch", "csoftmax.jax"])
def test_import_leaves_the_gil_off(module):
    """Importing an extension that does not declare itself safe switches the GIL on, and warns."""
    code = f"""if True:
        import sys, numpy
        assert not sys._is_gil_enabled(), "numpy has switched it on"
        try:
            import {module}
        except ImportError:
            assert {module!r} in ("csoftmax.torch", "csoftmax.jax")
        assert "csoftmax" in sys.modules and not sys._is_gil_enabled()
    """
    run_python(code, PYTHON_GIL=None, PYTHONWARNINGS="error:The global interpreter lock")


def inputs():
    """Rows of calls that hold the GIL, and of calls that release it and use threads."""
    for shape, dtype in itertools.product([(3, 10), (64, 1000), (100, 3000)], ["float32", "float64"]):
        rng = np.random.default_rng(shape[0])
        x = rng.standard_normal(shape).astype(dtype)
        labels = rng.integers(0, shape[1], shape[0])
        yield x, labels


def calls():
    """Functions of an array for the result (None: a new one), each of which gives an array or several."""
    for x, labels in inputs():
        y = csoftmax.softmax(x)
        yield x, lambda out, x=x: csoftmax.softmax(x, out=out)
        yield x, lambda out, x=x: csoftmax.log_softmax(x, temperature=0.7, out=out)
        yield x, lambda out, x=x: csoftmax.logsumexp(x, axis=0)
        yield x, lambda out, x=x, y=y: csoftmax.softmax_vjp(x, y, out=out)
        yield x, lambda out, x=x, labels=labels: csoftmax.cross_entropy_with_grad(x, labels, out=out)
        yield x, lambda out, x=x, labels=labels: csoftmax.cross_entropy(x, labels, label_smoothing=0.1, num_threads=2)
        yield x, lambda out, x=x: csoftmax.topk(x, 3)
        yield x, lambda out, x=x: csoftmax.sample(x, rng=0)
        yield x, lambda out, x=x: csoftmax.entmax(x, alpha=1.5)
        yield x, lambda out, x=x, labels=labels: csoftmax.entmax_loss(x, labels, alpha=2.0)
    x = np.random.default_rng(0).standard_normal((1050, 4000))  # a result of more than 32 MB, whose pages are kept
    yield x, lambda out: csoftmax.softmax(x)


def digest(result):
    return [bits(np.asarray(part)) for part in (result if isinstance(result, tuple) else (result,))]


def hammer(seconds):
    """All threads make all calls, on shared inputs into own results, while two of them change settings."""
    cases = [(x, call, digest(call(None))) for x, call in calls()]
    begin, failures, done = threading.Barrier(THREADS + 2), [], [0] * THREADS
    stop = time.monotonic() + seconds
    limit = csoftmax.get_num_threads()

    def guarded(function, *arguments):
        begin.wait()
        try:
            function(*arguments)
        except BaseException as error:  # to the thread that reports it
            failures.append(error)

    def compute(number):
        outputs = {id(x): np.empty_like(x) for x, _, _ in cases[:-1]}
        copies = itertools.cycle([None, outputs])
        for i in itertools.count(number):
            x, call, expected = cases[i % len(cases)]
            place = next(copies)
            with csoftmax.threads(1 + i % 2):
                assert csoftmax.get_num_threads() == min(limit, 1 + i % 2)
                got = digest(call(None if place is None else place.get(id(x))))
            assert all(map(np.array_equal, got, expected)), f"call {i % len(cases)} of thread {number}"
            done[number] += 1
            if time.monotonic() > stop or failures:
                return

    def select_instruction_sets():
        for isa in itertools.cycle(binding.isa_available()):
            binding.select_isa(isa)
            time.sleep(1e-3)
            if time.monotonic() > stop or failures:
                return

    def set_limits():
        for size in itertools.cycle([0, 1 << 24, 1 << 28]):
            binding.set_pages_limit(size)
            csoftmax.set_num_threads(1 + size % 3)
            time.sleep(1e-3)
            if time.monotonic() > stop or failures:
                return

    workers = [threading.Thread(target=guarded, args=(compute, i)) for i in range(THREADS)]
    workers += [threading.Thread(target=guarded, args=(f,)) for f in (select_instruction_sets, set_limits)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    assert min(done) > 0
    return sum(done)


@pytest.fixture
def settings():
    """Restore the settings that the hammer changes."""
    isa, threads = binding.isa(), csoftmax.get_num_threads()
    binding.set_thread_limit(2)
    yield
    binding.set_thread_limit(threads)
    binding.select_isa(isa)
    binding.set_pages_limit(memory.LIMIT)


def test_hammer(settings):
    hammer(1)
    before = csoftmax.get_num_threads()
    with csoftmax.threads(1):  # no change of the number of contexts was lost: this one is seen
        assert csoftmax.get_num_threads() == 1
    assert csoftmax.get_num_threads() == before


def in_all_threads(function):
    """function(number) in THREADS threads at once; the first exception is raised here."""
    begin, failures = threading.Barrier(THREADS), []

    def guarded(number):
        begin.wait()
        try:
            function(number)
        except BaseException as error:  # to the thread that reports it
            failures.append(error)

    workers = [threading.Thread(target=guarded, args=(i,)) for i in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]


def test_contexts_are_counted(settings):
    """A lost count would let a context's bound go unseen: it is looked for only while there is one."""
    before = binding.get_threads()

    def enter(number):
        for _ in range(20_000):
            entered = binding.enter_threads(1)
            assert binding.get_threads() == 1
            binding.leave_threads(entered)

    in_all_threads(enter)
    assert binding.thread_bounds() == 0
    assert binding.get_threads() == before


def test_one_generator_closed_by_another_thread(settings):
    """Its bound ends in the context that entered it, while that context reads it all the time."""
    before = binding.get_threads()

    def bounded():
        with csoftmax.threads(1):
            yield

    def close(number):
        for _ in range(200):
            generator = bounded()
            next(generator)
            assert binding.get_threads() == 1
            other = threading.Thread(target=generator.close)
            other.start()
            while binding.get_threads() == 1:
                pass
            other.join()
            assert binding.get_threads() == before

    in_all_threads(close)


def test_kept_memory_has_one_owner(settings):
    """Results are made and dropped so quickly that all threads are at the list of kept pages at the same time."""
    size = 33 << 20
    if not memory.LIMIT:
        pytest.skip("no pages are kept here")

    def make_and_drop(number):
        for i in range(500):
            result = binding.empty((size,), np.dtype(np.uint8))
            result[0] = result[-1] = number
            if i % 8 == number:
                time.sleep(0)
            assert result[0] == result[-1] == number

    in_all_threads(make_and_drop)
    assert binding.kept_pages() <= memory.LIMIT


@pytest.mark.long
def test_hammer_for_long(settings):
    hammer(30)


FORKS = """
import os, signal, threading
import numpy as np, csoftmax
x = np.random.default_rng(0).standard_normal((1050, 4000))
expected = csoftmax.softmax(x).tobytes()
stop = threading.Event()
def compute():
    while not stop.is_set():
        assert csoftmax.softmax(x).tobytes() == expected
threads = [threading.Thread(target=compute, daemon=True) for _ in range(3)]
for thread in threads: thread.start()
try:
    for i in range(10):
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            os._exit(csoftmax.softmax(x).tobytes() != expected)
        assert os.waitpid(pid, 0)[1] == 0, i
finally:
    stop.set()
for thread in threads: thread.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_fork_while_threads_take_large_results():
    """A child does not inherit the lock of the kept pages locked."""
    assert run_python(FORKS, PYTHONWARNINGS="ignore").stdout.strip() == "done"
