"""Ctrl-C ends a long call with KeyboardInterrupt, whatever its shape, threads and instruction set.

The aim is 100 ms; tested is less than a second, for busy machines.  Each call would run for many seconds: the
inputs are broadcast views, so they need no memory.
"""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT, run_python

from csoftmax._cpu import binding

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

CODE = """
import sys, time
import numpy as np, csoftmax
one = np.float32(1.5)
call = {{
    "many small rows": lambda: csoftmax.logsumexp(np.broadcast_to(one, (1 << 29, 100)), num_threads={threads}),
    "many rows": lambda: csoftmax.logsumexp(np.broadcast_to(one, (1 << 24, 4000)), num_threads={threads}),
    "long rows": lambda: csoftmax.logsumexp(np.broadcast_to(one, (1 << 20, 50_000)), num_threads={threads}),
    "huge rows": lambda: csoftmax.logsumexp(
        np.broadcast_to(np.ones(1 << 20, "f4"), (1 << 16, 1 << 20)), num_threads={threads}),
    "one row": lambda: csoftmax.logsumexp(np.broadcast_to(one, (1 << 36,)), num_threads={threads}),
    "axis 0": lambda: csoftmax.logsumexp(np.broadcast_to(one, (4000, 1 << 24)), axis=0, num_threads={threads}),
    "masked": lambda: csoftmax.logsumexp(
        np.broadcast_to(one, (1 << 24, 4000)), where=np.broadcast_to(True, 4000), num_threads={threads}),
    "exceptional rows": lambda: csoftmax.logsumexp(
        np.broadcast_to(np.float32(np.inf), (1 << 24, 4000)), num_threads={threads}),
    "top-k": lambda: csoftmax.topk(
        np.broadcast_to(np.arange(50_000, dtype="f4"), (1 << 22, 50_000)), 1, num_threads={threads}),
    "entmax loss": lambda: csoftmax.entmax_loss(
        np.broadcast_to(one, (1 << 22, 4000)), np.zeros(1 << 22, int), num_threads={threads}),
    "draws": lambda: csoftmax.sample(np.broadcast_to(one, (1 << 22, 4000)), rng=0, num_threads={threads}),
    "temperature 0": lambda: csoftmax.logsumexp(
        np.broadcast_to(one, (1 << 24, 4000)), temperature=0.0, num_threads={threads}),
}}[{name!r}]
print("ready", flush=True)
try:
    call()
except KeyboardInterrupt:
    print("interrupted", time.time(), flush=True)
    y = csoftmax.softmax(np.zeros((300, 400), "f4"), num_threads={threads})
    assert np.all(y == np.float32(1) / 400)
    print("and right again")
"""
NAMES = ["many small rows", "many rows", "long rows", "huge rows", "one row", "axis 0", "masked", "exceptional rows",
         "temperature 0", "top-k", "entmax loss", "draws"]  # fmt: skip


def interrupt(name, threads, isa):
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "CSOFTMAX_ISA": isa, "PYTHONPATH": path}
    code = CODE.format(name=name, threads=threads)
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout.readline().strip() == "ready", child.stderr.read()
            time.sleep(0.4)
            sent = time.time()
            child.send_signal(signal.SIGINT)
            output, errors = child.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{name}, {threads} threads, {isa}: not interrupted within 10 s") from None
        finally:
            child.kill()
    lines = output.splitlines()
    assert lines, f"no output: {errors}"
    assert lines[0].startswith("interrupted"), output + errors
    assert lines[1:] == ["and right again"], output + errors
    return float(lines[0].split()[1]) - sent


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_long_calls(name, threads):
    seconds = interrupt(name, threads, binding.isa())
    assert seconds < 1, f"{seconds:.2f} s from the signal to the exception"


@pytest.mark.parametrize("name", ["many rows", "huge rows", "one row", "axis 0", "temperature 0"])
def test_long_calls_of_the_slowest_unit(name):
    assert interrupt(name, 1, "scalar") < 1


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
