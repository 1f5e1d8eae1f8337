"""Functions over groups on communicators of mpi4py: real processes, mixed instruction sets, a rank that is killed."""

import os
import signal
import time
from pathlib import Path

import pytest
from helpers.mpi import launch

pytestmark = pytest.mark.mpi
LIMIT = 120  # seconds of a program, which is then killed with all of its ranks
PROGRAM = Path(__file__).parent / "mpi_program.py"


def run(ranks, *arguments):
    process = launch(ranks, *arguments)
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    assert output.strip().endswith("ok"), output


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_random_calls(ranks):
    run(ranks, PROGRAM, 40)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [16, 40])
def test_random_calls_on_more_ranks_than_processors(ranks):
    run(ranks, PROGRAM, 10)


def test_ranks_with_different_instruction_sets():
    from csoftmax._cpu import binding

    run(3, PROGRAM, 40, *binding.isa_available())


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
