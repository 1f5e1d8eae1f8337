"""The examples in the public docstrings run and show what they say."""

import doctest
import importlib
import sys

import pytest

MODULES = [
    *(f"_ops.{family}" for family in ("softmax", "cross_entropy", "linear_cross_entropy", "topk", "entmax", "sample")),
    *("linear_model", "calibration", "metrics", "class_weight", "_runtime.threads", "_runtime.config"),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    importlib.import_module(f"csoftmax.{name}")
    result = doctest.testmod(sys.modules[f"csoftmax.{name}"])
    assert result.attempted > 0
    assert result.failed == 0
