"""Functions over groups on process groups of PyTorch with gloo: real processes, a rank that is killed."""

from pathlib import Path

import pytest
from helpers.rank_processes import run_ranks

pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
pytestmark = pytest.mark.slow  # a process takes some seconds to import PyTorch
PROGRAM = Path(__file__).with_name("gloo_program.py")


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_random_calls(ranks, tmp_path):
    for output, code in run_ranks(PROGRAM, ranks, tmp_path / "meeting", "calls"):
        assert code == 0, output
        assert output.strip().endswith("ok"), output


def test_other_ranks_raise_if_one_is_killed(tmp_path):
    results = run_ranks(PROGRAM, 3, tmp_path / "meeting", "lose")
    assert results[1][1] == -9
    for output, code in (results[0], results[2]):
        assert code == 0, output
