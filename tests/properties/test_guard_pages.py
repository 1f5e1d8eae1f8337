"""No byte outside the arrays is read or written: they end and begin at pages that cannot be accessed.

A violation is a segmentation fault, so each test runs in a process of its own and reports how far it came.
"""

import sys

import pytest
from helpers import every_record, run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mmap and mprotect as on Linux")
PRELUDE = "import ml_dtypes\nfrom csoftmax._spec.formats import DTYPES\nfrom helpers.guard_pages import *\n"


def run_guarded(code):
    done = run_python(f"{PRELUDE}{code}\nprint('done')", timeout=300)
    assert done.stdout.split()[-1] == "done"


@every_record("guard_pages")
def test_arrays(record):
    """Rows around vector widths and the block length, one and three, along the last axis and the first, all options.

    Tiles of several widths, several threads; rows of special values, odd views.
    """
    run_guarded(
        "for dtype in ('float32', 'float16'):\n"
        f"    check_sizes({record.name!r}, dtype, (*range(1, 10), 15, 16, 17, 31, 32, 33, 63, 65, 131))\n"
        f"    check_sizes({record.name!r}, dtype, (1000, 4097), rows=(2,))\n"
        f"    check_wide({record.name!r}, dtype, (*range(8, 36, 9), 63, 65, 129, 513))\n"
        f"    check_odd_views({record.name!r}, dtype)"
    )


@pytest.mark.slow
@every_record("guard_pages")
def test_every_length(record, dtype):
    """Check K = 1 ... 131, lengths of several blocks, tiles of every width."""
    run_guarded(
        f"check_sizes({record.name!r}, {dtype!r}, (*range(1, 132), 4096, 8191, 12289, 40001))\n"
        f"check_wide({record.name!r}, {dtype!r}, (*range(8, 36), 63, 65, 129, 513))\n"
        f"check_odd_views({record.name!r}, {dtype!r})"
    )


def test_a_violation_is_noticed():
    """The guard works: a write one byte past the end ends the process."""
    code = "place = Guarded(64); a = place.array((8,), np.dtype(np.uint8), True); ctypes.memset(a.ctypes.data, 0, 9)"
    assert run_python(PRELUDE + code, check=False).returncode < 0
