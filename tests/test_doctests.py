"""The examples in the public docstrings and in the README run; those in docstrings show what they say."""

import doctest
import importlib
import re
import shutil
import sys

import pytest
from cuda_model import stand_in
from helpers import NUMPY, ROOT

from csoftmax import _config, _threads, softmax  # noqa: F401

MODULES = [
    "softmax",
    "cross_entropy",
    "sparse",
    "linear_model",
    "calibration",
    "metrics",
    "class_weight",
    "_threads",
    "_config",
]


@pytest.mark.skipif(NUMPY < (2, 0), reason="NumPy 2 writes scalars with their type")
@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    importlib.import_module(f"csoftmax.{name}")
    result = doctest.testmod(sys.modules[f"csoftmax.{name}"])
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.skipif(shutil.which("g++") is None, reason="the model of a GPU needs g++")
def test_readme(tmp_path):
    """Its Python blocks, one after the other, as a reader would type them; CuPy's device is the model."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 2
    names = {}
    with stand_in.installed(tmp_path):
        for block in blocks:
            exec(block, names)
    assert isinstance(names["p"], stand_in.ndarray)
    assert names["grad"].shape == (32, 10)
    assert (names["columns"] == names["csoftmax"].softmax(names["np"].eye(4), axis=0)).all()
    assert names["result"].grad_w.shape == names["w"].shape
