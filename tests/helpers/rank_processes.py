"""Programs of several ranks, each a process of its own that meets the others at a file."""

import os
import subprocess
import sys

from helpers import ROOT

LIMIT = 90  # seconds of a program


def run_ranks(program, ranks, *arguments):
    """What each rank has printed, and its exit code; all are killed after LIMIT."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(program)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(ranks), *map(str, arguments)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        return [(p.communicate(timeout=LIMIT)[0], p.returncode) for p in processes]
    finally:
        for p in processes:
            p.kill()
