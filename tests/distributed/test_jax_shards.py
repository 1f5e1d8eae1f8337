"""csoftmax.jax within jax.shard_map: the bits of whole rows, on devices that XLA makes of the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

pytest.importorskip("jax", reason="the gate installs it")
pytestmark = pytest.mark.slow  # XLA compiles a program for each shape
LIMIT = 300  # seconds
PROGRAM = Path(__file__).with_name("jax_program.py")


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_shards_of_the_classes(devices):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"PYTHONPATH": paths, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(devices)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("ok")
