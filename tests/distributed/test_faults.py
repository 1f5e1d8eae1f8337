"""What fails on one rank is raised on all, and the next call works: on ranks of MPI, and on gloo."""

from pathlib import Path

import pytest
from helpers.mpi import output_of
from helpers.rank_processes import run_ranks

PROGRAM = Path(__file__).with_name("faults_program.py")
LIMIT = 60  # seconds of the program with its imports; its calls have a limit of their own


@pytest.mark.mpi
def test_ranks_of_mpi():
    output = output_of(LIMIT, 3, PROGRAM, "mpi")
    assert "ok" in output.split(), output


@pytest.mark.slow  # a process takes some seconds to import PyTorch
def test_ranks_of_gloo(tmp_path):
    pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
    for output, code in run_ranks(PROGRAM, 3, tmp_path / "meeting"):
        assert code == 0, output
        assert output.strip().endswith("ok"), output
