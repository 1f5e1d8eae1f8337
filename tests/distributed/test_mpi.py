"""Functions over groups on communicators of mpi4py: real processes, mixed instruction sets, a rank that is killed."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.mpi import launch, output_of

pytestmark = pytest.mark.mpi
LIMIT = 120  # seconds of a program, which is then killed with all of its ranks
PROGRAM = Path(__file__).parent / "mpi_program.py"


def run(ranks, *arguments):
    """Return the last line that the ranks print, after they have ended without an error."""
    return output_of(LIMIT, ranks, *arguments).strip().rpartition("\n")[2]


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


def test_the_example(tmp_path):
    """csoftmax's losses and gradients are those of one process; some of the usual sums are not."""
    show = (
        "import runpy, sys, matplotlib.pyplot as plt; plt.show = lambda: plt.savefig(sys.argv[1]); "
        "runpy.run_path(sys.argv[2], run_name='__main__')"
    )
    process = launch(4, "-c", show, tmp_path / "picture.svg", ROOT / "examples" / "mpi_softmax.py")
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    differing = r"rows whose loss differs: csoftmax 0, sums in float32 (\d+)"
    found = re.findall(rf"^(\d) processes: {differing}; gradients of csoftmax equal: True$", output, re.M)
    assert [int(count) for count, _ in found] == [1, 2, 3, 4], output
    assert int(found[0][1]) == 0 < max(int(rows) for _, rows in found)
    assert (tmp_path / "picture.svg").stat().st_size > 1000
