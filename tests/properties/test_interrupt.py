"""Ctrl-C ends a long call with KeyboardInterrupt, whatever its shape, threads and instruction set.

The aim is 100 ms; tested is less than a second, for busy machines.  Where the result is small, each call would run for
many seconds: the inputs are broadcast views, so they need no memory.
"""

import sys

import numpy as np
import pytest
from helpers import every_record, run_python
from helpers.signals import seconds_to_stop

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.record import CLASSES, ROWS, Sample

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
ONE = np.float32(1.5)
# Shapes of logsumexp calls that take other paths through the core.
CALLS = {
    "many small rows": lambda: (np.broadcast_to(ONE, (1 << 29, 100)), {}),
    "many rows": lambda: (np.broadcast_to(ONE, (1 << 24, 4000)), {}),
    "long rows": lambda: (np.broadcast_to(ONE, (1 << 20, 50_000)), {}),
    "huge rows": lambda: (np.broadcast_to(np.ones(1 << 20, "f4"), (1 << 16, 1 << 20)), {}),
    "one row": lambda: (np.broadcast_to(ONE, (1 << 36,)), {}),
    "axis 0": lambda: (np.broadcast_to(ONE, (4000, 1 << 24)), {"axis": 0}),
    "masked": lambda: (np.broadcast_to(ONE, (1 << 24, 4000)), {"where": np.broadcast_to(True, 4000)}),
    "exceptional rows": lambda: (np.broadcast_to(np.float32(np.inf), (1 << 24, 4000)), {}),
    "temperature 0": lambda: (np.broadcast_to(ONE, (1 << 24, 4000)), {"temperature": 0.0}),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", CALLS)
def test_long_calls(name, threads):
    x, options = CALLS[name]()
    seconds = seconds_to_stop(lambda: csoftmax.logsumexp(x, num_threads=threads, **options))
    assert seconds < 1, f"{seconds:.2f} s from the signal to the exception"
    y = csoftmax.softmax(np.zeros((300, 400), "f4"), num_threads=threads)
    assert np.all(y == np.float32(1) / 400)  # and right again


@pytest.mark.parametrize("name", ["many rows", "huge rows", "one row", "axis 0", "temperature 0"])
def test_long_calls_of_the_slowest_unit(name, keep_isa):
    binding.select_isa("scalar")
    x, options = CALLS[name]()
    assert seconds_to_stop(lambda: csoftmax.logsumexp(x, num_threads=1, **options)) < 1


def repeat_rows(record, rows):
    """Return a call on many rows of 4000 classes, views of one row; results of that size are written into its input."""
    sample = record.sample((1, 4000), "float32")
    wanted = {argument.name for argument in record.arguments}

    def many(name, a):
        role = record.role(name, sample)
        if not isinstance(a, np.ndarray) or role not in (CLASSES, ROWS):
            return a[np.zeros(rows, int)] if name == "rng" else a
        return np.broadcast_to(a, (rows, *a.shape[1:]))

    arrays = {name: many(name, a) for name, a in sample.arrays.items() if name in wanted}
    options = {name: many(name, a) for name, a in sample.options.items()}
    return Sample(arrays, options)


@every_record("interrupt")
def test_every_operation(record, keep_isa):
    """Results with the classes need memory, so these calls are kept short of it: the slowest unit, 128 MB at most."""
    binding.select_isa("scalar")
    has_classes = any(result.role == CLASSES for result in record.results)
    reads_few = record.family == "sampled"  # of the classes
    sample = repeat_rows(record, 1 << 13 if has_classes else 1 << 21 if reads_few else 1 << 18)
    after = 0.03 if has_classes else 0.1
    seconds = seconds_to_stop(lambda: record.call(sample, num_threads=1), after)
    assert seconds < 1, f"{seconds:.2f} s from the signal to the exception"


N = 3_000_000
WIDE = np.linspace(-3, 3, N, dtype="f4")
FLAT = np.zeros(N, "f4")
EVEN = np.full(N, 1 / N, "f4")
# Calls that spend seconds in one row with the scalar unit, or in the draws from one row.
WITHIN_A_ROW = {
    "topk": lambda: csoftmax.topk(np.tile(WIDE, 12), 6 * N),
    "topk, every class": lambda: csoftmax.topk(np.tile(WIDE[::-1], 4), 4 * N),
    "topk, strided": lambda: csoftmax.topk(np.repeat(np.tile(WIDE, 12), 2)[::2], 6 * N),
    "topk_softmax": lambda: csoftmax.topk_softmax(np.tile(WIDE, 4), 2 * N, normalize="full"),
    "entmax": lambda: csoftmax.entmax(FLAT, 1.3),
    "entmax, alpha near 1": lambda: csoftmax.entmax(WIDE, 1.0001),
    "entmax, large alpha": lambda: csoftmax.entmax(WIDE / 100, 3.0),
    "entmax, masked": lambda: csoftmax.entmax(FLAT, 1.3, where=EVEN > 0),
    "entmax_vjp": lambda: csoftmax.entmax_vjp(np.tile(EVEN, 4), np.tile(WIDE, 4), 1.3),
    "entmax_loss": lambda: csoftmax.entmax_loss(FLAT, 3, 1.3),
    "entmax_loss, soft": lambda: csoftmax.entmax_loss(FLAT, EVEN, 1.3),
    "sample, top_k": lambda: csoftmax.sample(np.tile(WIDE, 4), top_k=2 * N),
    "sample, top_p": lambda: csoftmax.sample(np.tile(WIDE, 4), top_p=0.999),
    "sample, many": lambda: csoftmax.sample(WIDE[:1000], size=20_000_000),
    "sample, many of many": lambda: csoftmax.sample(WIDE[:100_000], size=20_000_000),
    "sample, a generator a row": lambda: csoftmax.sample(WIDE[None, :1000], size=20_000_000, rng=[1]),
    "sample, many of short rows": lambda: csoftmax.sample(WIDE[:400].reshape(40, 10), size=2_000_000),
    "topk, short integers": lambda: csoftmax.topk(np.arange(8 * N).astype("i2"), 4 * N),
}


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("name", WITHIN_A_ROW)
def test_within_a_row(name, threads, keep_isa):
    """With one thread the call is stopped early and late, in other passes over its row, if it is not over by then."""
    binding.select_isa("scalar")
    with csoftmax.threads(threads):
        for after in (0.15, 0.4) if threads == 1 else (0.2,):
            try:
                seconds = seconds_to_stop(WITHIN_A_ROW[name], after)
            except pytest.fail.Exception:
                assert after > 0.2, "the call is too short to be tested"
                return
            assert seconds < 0.5, f"{seconds:.2f} s from the signal to the exception"
        y = csoftmax.softmax(np.zeros((300, 400), "f4"))
        assert np.all(y == np.float32(1) / 400)  # and right again


@pytest.mark.parametrize("gradient", [pytest.param(False, marks=pytest.mark.slow), True])
def test_within_a_product(gradient):
    """A product of seconds, which the BLAS finishes in its own thread."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((256, 4096), dtype="f4"), rng.standard_normal((65536, 4096), dtype="f4")
    call = csoftmax.linear_cross_entropy_with_grad if gradient else csoftmax.linear_cross_entropy
    for after in (0.1, 0.3):
        assert seconds_to_stop(lambda: call(x, w, np.zeros(256, int)), after) < 0.5
    few = x[:2, :8], w[:30, :8], [1, 2]
    assert np.isfinite(csoftmax.linear_cross_entropy(*few))  # and right again


def test_a_signal_of_the_system_ends_a_call():
    """The real thing: SIGINT from another process, during a call that would take minutes."""
    code = """
import os, signal, subprocess, sys, time
import numpy as np, csoftmax
me = os.getpid()
subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.3); os.kill({me}, {int(signal.SIGINT)})"])
try:
    csoftmax.logsumexp(np.broadcast_to(np.float32(1.5), (1 << 24, 4000)), num_threads=2)
except KeyboardInterrupt:
    print("interrupted")
"""
    assert run_python(code, timeout=30).stdout.strip() == "interrupted"


def test_a_handler_that_does_not_raise_lets_the_call_finish():
    done = run_python("""
import signal, numpy as np, csoftmax
seen = []
signal.signal(signal.SIGALRM, lambda *a: seen.append(1))
signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
x = np.broadcast_to(np.float32(1.5), (1 << 17, 4000))
y = csoftmax.logsumexp(x)
signal.setitimer(signal.ITIMER_REAL, 0)
assert np.all(y == csoftmax.logsumexp(x[:1])[0])
assert len(seen) >= 2, len(seen)
print("done")
""")
    assert done.stdout.strip() == "done"


def test_a_handler_that_raises_ends_the_call_with_its_exception():
    done = run_python("""
import signal, numpy as np, csoftmax
class Stop(Exception): pass
def handler(*a): raise Stop
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.2)
try:
    csoftmax.logsumexp(np.broadcast_to(np.float32(1.5), (1 << 24, 4000)))
except Stop:
    print("stopped")
""")
    assert done.stdout.strip() == "stopped"
