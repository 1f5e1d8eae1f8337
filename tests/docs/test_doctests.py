"""The examples in the public docstrings run and show what they say."""

import doctest
import importlib
import inspect

import pytest
from helpers import NUMPY

import csoftmax


@pytest.mark.skipif(NUMPY < (2, 0), reason="NumPy 2 writes scalars with their type")
@pytest.mark.parametrize(
    "name", ["", ".samplers", ".heads", ".linear_model", ".calibration", ".metrics", ".class_weight", ".sequence"]
)
def test_examples(name):
    result = doctest.testmod(importlib.import_module(f"csoftmax{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_function_has_an_example():
    with_examples = {test.name for test in doctest.DocTestFinder().find(csoftmax) if test.examples}
    for name in csoftmax.__all__:
        if inspect.isroutine(getattr(csoftmax, name)):
            assert f"csoftmax.{name}" in with_examples
