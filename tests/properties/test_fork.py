"""A child that is forked after a parallel call computes, and correctly; so do multiprocessing's workers.

libgomp hangs when a process forks after a parallel region and the child enters one.
"""

import multiprocessing
import os
import sys

import pytest
from helpers import assert_same_bits, every_record, run_python

import csoftmax
from csoftmax._spec.samples import logits

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")

CODE = """
import os, signal, sys, time
import numpy as np, csoftmax
from csoftmax._cpu import binding
binding.set_thread_limit(3)
x = np.random.default_rng(0).standard_normal((200, 1000)).astype(np.float32)
expected = csoftmax.softmax(x, num_threads=3).tobytes()
long_row = x.reshape(1, -1)
expected_row = csoftmax.softmax(long_row, num_threads=3).tobytes()
for i in range({forks}):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        good = csoftmax.softmax(x, num_threads=3).tobytes() == expected
        good &= csoftmax.softmax(long_row, num_threads=3).tobytes() == expected_row
        if i % 5 == 0:  # and its own child
            inner = os.fork()
            if inner == 0:
                signal.alarm(20)
                os._exit(0 if csoftmax.softmax(x, num_threads=3).tobytes() == expected else 1)
            good &= os.waitpid(inner, 0)[1] == 0
        os._exit(0 if good else 1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"fork {{i}} ended with status {{status}}" + (": it hung" if status == signal.SIGALRM else "")
    assert csoftmax.softmax(x, num_threads=3).tobytes() == expected, "the parent"
print("done")
"""


def test_twenty_forks():
    assert run_python(CODE.format(forks=20), timeout=300).stdout.strip() == "done"


ONE_OPERATION = """
import os, signal
import ml_dtypes
from csoftmax._cpu import binding
from csoftmax._spec.operations import BY_NAME
binding.set_thread_limit(3)
record = BY_NAME["{name}"]
options = {{"num_threads": 3}} if record.accepts("num_threads") else {{}}
sample = record.sample((200, 1000))
expected = [a.tobytes() for a in record.compute(sample, **options)]  # parallel, before the fork
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        os._exit(0 if [a.tobytes() for a in record.compute(sample, **options)] == expected else 1)
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"ended with status {{status}}" + (": it hung" if status == signal.SIGALRM else "")
print("done")
"""


@every_record("fork")
def test_every_operation(record):
    code = ONE_OPERATION.format(name=record.name)
    assert run_python(code, OPENBLAS_NUM_THREADS="1").stdout.strip() == "done"


@pytest.mark.long
def test_a_thousand_forks():
    assert run_python(CODE.format(forks=1000), timeout=3000).stdout.strip() == "done"


POOL = """
import multiprocessing, numpy as np, csoftmax
from csoftmax._cpu import binding

def work(seed):
    binding.set_thread_limit(2)
    x = np.random.default_rng(seed).standard_normal((100, 1000))
    return csoftmax.softmax(x, num_threads=2).tobytes()

if __name__ == "__main__":
    expected = [work(i) for i in range(6)]  # parallel, before the fork
    with multiprocessing.get_context("{method}").Pool(2) as pool:
        assert pool.map_async(work, range(6)).get(timeout=60) == expected
    print("done")
"""


# joblib adds "loky" where it has been imported
@pytest.mark.parametrize("method", sorted({"fork", "forkserver", "spawn"} & {*multiprocessing.get_all_start_methods()}))
def test_multiprocessing(method, tmp_path):
    done = run_python(POOL.format(method=method), script=tmp_path / "pool.py")
    assert done.stdout.strip() == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_child_is_serial_but_right_without_a_parallel_call_before():
    x = logits((100, 1000))
    expected = csoftmax.softmax(x, num_threads=1)
    done = run_python("""
import os, numpy as np, csoftmax
x = np.zeros((300, 1000), np.float32)
pid = os.fork()
if pid == 0:
    os._exit(0 if np.all(csoftmax.softmax(x, num_threads=2) == np.float32(1) / 1000) else 1)
assert os.waitpid(pid, 0)[1] == 0
print("done")
""")
    assert done.stdout.strip() == "done"
    assert_same_bits(csoftmax.softmax(x), expected)
