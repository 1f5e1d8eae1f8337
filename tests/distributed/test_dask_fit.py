"""Fits over Dask collections on clusters of processes that are killed, frozen, out of memory, joined and left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("distributed", reason="belongs to the extra dask")
pytest.importorskip("dask.dataframe", reason="belongs to the extra dask")
PROGRAM = Path(__file__).with_name("dask_fit_program.py")
LIMITS = {  # seconds
    "workers": 180,
    "errors": 90,
    "killed": 90,
    "frozen": 90,
    "joining": 90,
    "memory": 120,
    "scheduler": 60,
    "interrupt": 60,
}
LONG = {"frozen_long": 240, "worker_memory": 240}


@pytest.mark.slow  # a cluster takes some seconds to start
@pytest.mark.parametrize("what", list(LIMITS))
def test_clusters(what, tmp_path):
    check_program(what, LIMITS[what], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("what", list(LONG))
def test_clusters_for_long(what, tmp_path):
    check_program(what, LONG[what], tmp_path)


def check_program(what, limit, tmp_path):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(PROGRAM), what, str(tmp_path / "scheduler.json")],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    assert output.strip().endswith("ok"), output
