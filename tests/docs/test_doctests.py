"""The examples in the public docstrings run and show what they say."""

import doctest
import importlib
import sys

import pytest

from csoftmax._spec.operations import OPERATIONS

# Of the modules whose classes and functions say that they belong to them.
MODULES = ("linear_model", "calibration", "metrics", "class_weight", "_runtime.threads", "_runtime.config")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    importlib.import_module(f"csoftmax.{name}")
    result = doctest.testmod(sys.modules[f"csoftmax.{name}"])
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("record", OPERATIONS, ids=lambda op: op.name)
def test_examples_of_operations(record):
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(record.function(), record.name, module=False, globs={}):
        runner.run(test)
    result = runner.summarize()
    assert result.attempted > 0
    assert result.failed == 0
