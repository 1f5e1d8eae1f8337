"""The C tests (tests/c): the exp core; the native part, if there is no CMake; with ``-m long`` all parts.

With CMake, test_c_library.py runs the same native program.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import HAS_CMAKE

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "tests" / "c" / "run.sh"
pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="GNU ld's --wrap, Linux emulators"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc"),
    pytest.mark.skipif("CSOFTMAX_ISA" in os.environ, reason="compares all instruction sets, whatever CSOFTMAX_ISA is"),
]


def run(*parts, **environment):
    done = subprocess.run(
        [RUN, *parts],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " 0 failed" in done.stdout
    return done.stdout


@pytest.mark.skipif(HAS_CMAKE, reason="test_c_library.py builds and runs it with CMake")
def test_native():
    run("native", CSM_EVERY="25")


def test_exp_core():
    run("exp")


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "tool"),
    [
        ("clang", "clang"),
        ("simde", "/usr/include/simde/x86/avx512.h"),
        ("neon", "qemu-aarch64"),
        ("asan", "gcc"),
        ("valgrind", "valgrind"),
    ],
)
def test_part(part, tool):
    if not (os.path.exists(tool) or shutil.which(tool)):
        pytest.skip(f"needs {tool}")
    run(part)


@pytest.mark.long
def test_everything():
    """Every case, and the exp core on every float; writes tests/records/exp_exhaustive.json."""
    run("long")
