"""Every failed allocation of the core is a MemoryError that leaks nothing; the next call is right."""

import sys

import pytest
from helpers import run_python
from helpers.failing_allocations import SHIM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")

CODE = r"""
import numpy as np
from failing_allocations import every_failure
from csoftmax._cpu import binding
from csoftmax._spec.operations import SOFTMAX_FAMILY
binding.set_thread_limit(7)
shapes = [((300, 60), 0), ((5, 3, 60), 1), ((64, 1000), 1), ((3, 9000), 1), ((9000, 3), 0)]
shapes += [((1, 200_000), 1), ((2, 50000), 1)]
most, refused = 0, 0
for op in SOFTMAX_FAMILY:
    for name in ("float32", "float16"):
        for shape, axis in shapes:
            arrays = op.make(shape, name)
            if op.inputs == 2:
                arrays = (arrays[0], np.abs(arrays[1]))
            variants = [{}, {"num_threads": 7}]
            if op.inputs == 1:
                variants += [{"temperature": 0.0, "num_threads": 7}, {"where": True, "num_threads": 2}]
            for options in variants:
                n = every_failure(
                    lambda: op.function()(*arrays, axis=axis, **options), (op.name, name, shape, options), 40
                )
                refused += n
                most = max(most, n)
print("refused", refused, "most", most)

print("done")
"""


def test_every_failing_allocation(c_library):
    done = run_python(CODE, LD_PRELOAD=str(c_library(SHIM, "shim")), timeout=300)
    assert done.stdout.split()[-1] == "done", done.stdout
    refused, most = int(done.stdout.split()[1]), int(done.stdout.split()[3])
    assert refused > 100, "the shim does not work"
    assert most >= 7, "several allocations in one call were to fail in turn"
