"""Functions over groups on process groups of PyTorch with gloo: real processes, a rank that is killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
pytestmark = pytest.mark.slow  # a process takes some seconds to import PyTorch
LIMIT = 90  # seconds of a program
PROGRAM = Path(__file__).with_name("gloo_program.py")


def run(ranks, meeting, what):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), str(meeting), what],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        return [(p.communicate(timeout=LIMIT)[0], p.returncode) for p in processes]
    finally:
        for p in processes:
            p.kill()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_random_calls(ranks, tmp_path):
    for output, code in run(ranks, tmp_path / "meeting", "calls"):
        assert code == 0, output
        assert output.strip().endswith("ok"), output


def test_other_ranks_raise_if_one_is_killed(tmp_path):
    results = run(3, tmp_path / "meeting", "lose")
    assert results[1][1] == -9
    for output, code in (results[0], results[2]):
        assert code == 0, output
