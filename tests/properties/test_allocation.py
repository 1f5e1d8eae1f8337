"""Every failed allocation of the core is a MemoryError that leaks nothing; the next call is right."""

import sys

import pytest
from helpers import every_record, run_python
from helpers.failing_allocations import SHIM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")

CODE = """
import ml_dtypes, numpy as np
from helpers.failing_allocations import fail_every_allocation
from csoftmax._cpu import binding
from csoftmax._spec.layouts import arrange
from csoftmax._spec.operations import BY_NAME

binding.set_thread_limit(7)
record = BY_NAME["{name}"]
largest = refused = 0
for dtype in {dtypes}:
    for shape, layout, every in (
        ((60, 300), "axis 0", False),
        ((50, 40), "3-d middle", False),
        ((64, 1000), "last axis", True),
        ((3, 9000), "strided", True),
        ((3, 9000), "axis 0", False),
        ((1, 200_000), "last axis", False),
        ((2, 50_000), "last axis", False),
    ):
        for variant in record.variants if every else ["plain"]:
            sample, axis = arrange(record, record.sample(shape, dtype, variant=variant), layout)
            # each thread that takes part has scratch of its own, but on a busy machine there may be fewer: try again
            for threads in (1, *[7] * (1 if largest >= 3 else 10)):
                what = record.name, dtype, shape, layout, variant, threads
                n = fail_every_allocation(lambda: record.compute(sample, axis, num_threads=threads), what)
                refused += n
                largest = max(largest, n)
# Calls may have been too short for a second thread if other processes were busy: longer ones, until one is not.
for attempt in range(200):
    if largest >= 3 or record.family == "linear_cross_entropy":
        break
    shape, layout = (((600, 300), "axis 0"), ((600, 90), "3-d middle"), ((30, 9000), "strided"))[attempt % 3]
    sample, axis = arrange(record, record.sample(shape, "float16", variant="plain"), layout)
    n = fail_every_allocation(lambda: record.compute(sample, axis, num_threads=7), (record.name, shape, layout))
    largest = max(largest, n)
print("refused", refused, "largest", largest)
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    from helpers import compile_library

    return compile_library(tmp_path_factory.mktemp("shim"), SHIM, "shim")


@pytest.mark.parametrize(
    "dtypes", [("float16",), pytest.param(("float32", "float64", "bfloat16"), marks=pytest.mark.slow)], ids=" ".join
)
@every_record("allocation")
def test_every_failing_allocation(record, dtypes, shim):
    done = run_python(CODE.format(name=record.name, dtypes=dtypes), LD_PRELOAD=str(shim), timeout=300)
    refused, largest = int(done.stdout.split()[1]), int(done.stdout.split()[3])
    assert refused > 10, "the shim does not work"
    assert largest >= (1 if record.family == "linear_cross_entropy" else 3), (
        "several allocations in one call fail in turn"
    )
