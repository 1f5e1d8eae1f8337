"""Generated files are up to date."""

import shutil
import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_interface():
    """The Cython header, the capsule's header, the export list and the ABI agree with csoftmax.h."""
    script = ROOT / "src_c" / "make_interface.py"
    if not script.is_file():
        pytest.skip("no checkout")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
