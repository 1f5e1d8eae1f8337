"""No byte outside the arrays is read or written: they end and begin at pages that cannot be accessed.

A violation is a segmentation fault, so each test runs in a process of its own and reports how far it came.
"""

import sys

import pytest
from helpers import every_record, run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mmap and mprotect as on Linux")
PRELUDE = "import ml_dtypes\nfrom helpers.guard_pages import *\n"


def run_guarded(code):
    done = run_python(f"{PRELUDE}{code}\nprint('done')", timeout=300)
    assert done.stdout.split()[-1] == "done"


@every_record("guard_pages")
def test_every_length(record, dtype):
    """K = 1 ... 131 in one row and three, along the last axis and the first, with every set of options."""
    run_guarded(f"check_sizes({record.name!r}, {dtype!r}, range(1, 132))")


@every_record("guard_pages")
def test_long_wide_and_special_arrays(record, dtype):
    """Around the block length and beyond, tiles of every width, several threads; rows of special values, odd views."""
    run_guarded(
        f"check_sizes({record.name!r}, {dtype!r}, (1000, 4095, 4096, 4097, 12289), rows=(1, 2))\n"
        f"check_wide({record.name!r}, {dtype!r}, (*range(8, 36), 63, 65, 127, 129, 511, 513))\n"
        f"check_odd_views({record.name!r}, {dtype!r})"
    )


def test_a_violation_is_noticed():
    """The guard works: a write one byte past the end ends the process."""
    code = "place = Guarded(64); a = place.array((8,), np.dtype(np.uint8), True); ctypes.memset(a.ctypes.data, 0, 9)"
    assert run_python(PRELUDE + code, check=False).returncode < 0
