"""Functions over groups on communicators of mpi4py: real processes, mixed instruction sets, a rank that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT

pytestmark = pytest.mark.mpi
LIMIT = 120  # seconds of a program, which is then killed with all of its ranks
PROGRAM = Path(__file__).parent / "mpi_program.py"


def launch(ranks, *arguments):
    """mpiexec of this Python, in a process group of its own."""
    beside = Path(sys.executable).with_name("mpiexec")  # that of a wheel of MPICH or Open MPI
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert mpiexec is not None, "tests of this marker need mpiexec, mpi4py and its library"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [mpiexec, "-n", str(ranks), sys.executable, "-W", "ignore", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def run(ranks, *arguments):
    """Return the last line that the ranks print, after they have ended without an error."""
    process = launch(ranks, *arguments)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output.strip().rpartition("\n")[2]


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_random_calls(ranks):
    assert run(ranks, PROGRAM, 40) == "ok"


@pytest.mark.long
@pytest.mark.parametrize("ranks", [16, 40])
def test_random_calls_on_more_ranks_than_processors(ranks):
    assert run(ranks, PROGRAM, 10) == "ok"


def test_ranks_with_different_instruction_sets():
    from csoftmax._cpu import binding

    assert run(3, PROGRAM, 40, *binding.isa_available()) == "ok"


def test_a_killed_rank_ends_the_job():
    program = (
        "import time, numpy as np; from mpi4py import MPI; from csoftmax import distributed\n"
        "import os, signal; comm = MPI.COMM_WORLD; x = np.zeros((4, 4096), np.float32)\n"
        "for i in range(10000):\n"
        "    distributed.softmax(x, group=comm)\n"
        "    if comm.rank == 1 and i == 20: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    start = time.monotonic()
    process = launch(3, "-c", program)
    try:
        process.communicate(timeout=10)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert time.monotonic() - start < 10
