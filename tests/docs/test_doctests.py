"""The examples in the public docstrings run and show what they say."""

import pytest
from helpers import NUMPY
from helpers.docstrings import MODULES, run_examples


@pytest.mark.skipif(NUMPY < (2, 0), reason="NumPy 2 writes scalars with their type")
@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    result = run_examples(module)
    assert result.attempted > 0
    assert result.failed == 0
