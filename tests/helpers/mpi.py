"""Programs on several ranks of MPI."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from . import ROOT


def launch(ranks, *arguments):
    """mpiexec of this Python, in a process group of its own."""
    beside = Path(sys.executable).with_name("mpiexec")  # that of a wheel of MPICH or Open MPI
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert mpiexec is not None, "tests of this marker need mpiexec, mpi4py and its library"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    return subprocess.Popen(
        [mpiexec, "-n", str(ranks), sys.executable, "-W", "ignore", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def run_to_end(limit, ranks, *arguments):
    """The exit code of the ranks and what they print; all are killed after `limit` seconds."""
    process = launch(ranks, *arguments)
    try:
        output, _ = process.communicate(timeout=limit)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def output_of(limit, ranks, *arguments):
    """The printed lines of all ranks, once they have ended; raises if one has failed."""
    code, output = run_to_end(limit, ranks, *arguments)
    assert code == 0, output
    return output
