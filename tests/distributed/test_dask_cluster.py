"""csoftmax.dask on clusters of processes: any number of workers, workers that are lost, errors of tasks."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow  # a worker takes some seconds to start
LIMIT = 120  # seconds of a program
PROGRAM = Path(__file__).with_name("dask_program.py")


@pytest.mark.parametrize(
    ("what", "workers"),
    [("results", 1), ("results", 2), ("results", 3), ("killed", 2), ("bad_label", 2), ("batches", 2), ("mixed", 0)],
)
def test_cluster(what, workers):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), what, str(workers)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(process.pid, 9)
    assert process.returncode == 0, output
    assert output.strip().endswith("ok"), output
