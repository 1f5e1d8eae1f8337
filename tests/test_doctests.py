"""The examples in the public docstrings run and show what they say."""

import doctest
import sys

import pytest

from csoftmax import _config, _threads, softmax  # noqa: F401


@pytest.mark.parametrize("name", ["csoftmax.softmax", "csoftmax._threads", "csoftmax._config"])
def test_examples(name):
    result = doctest.testmod(sys.modules[name])
    assert result.attempted > 0
    assert result.failed == 0
