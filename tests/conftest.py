"""Fixtures: instruction sets, more threads than CPUs, compiled C helpers.

A test that compares instruction sets takes `isa`; all others run under the one that CSOFTMAX_ISA selects, and CI runs
the whole suite once for each.
"""

import os

import ml_dtypes  # noqa: F401  (bfloat16 arrays exist only once it is imported)
import pytest
from helpers import compile_library
from ops import DTYPES, OPS

import csoftmax
from csoftmax._cpu import binding

# Of test_cuda.py, seconds each on the model.
SLOW = {
    *("topk_in_pieces", "topk_layouts", "topk_of_special_values", "rows_beyond_shared_memory"),
    *("topk", "topk_of_many", "sample", "sample_of_long_rows", "sample_parameters_of_each_row"),
    *("entmax", "entmax_loss", "entmax_beyond_shared_memory", "entmax_loss_of_special_values_and_layouts"),
    *("entmax_of_special_values", "entmax_with_as_many_survivors_as_places"),
    *("cross_entropy_options", "cross_entropy_special_values", "cross_entropy_beyond_shared_memory"),
    *("special_values", "special_values_at_every_index", "special_values_beyond_shared_memory"),
    *("temperature", "where", "golden_bits"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks: `every_isa`; `long` for SLOW in float16, which is bfloat16's code but for loads and stores."""
    for item in items:
        if "isa" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.every_isa)
        if item.path.name == "test_cuda.py" and item.originalname.removeprefix("test_") in SLOW:
            parameters = item.callspec.params
            if (parameters["gpu"], parameters["dtype"]) == ("model", "float16"):
                item.add_marker(pytest.mark.long)


@pytest.fixture(params=[binding.isa()] if os.environ.get("CSOFTMAX_ISA") else binding.isa_available())
def isa(request):
    """Each instruction set of this machine in turn; if one is forced, that one: the others had their turn elsewhere."""
    before = binding.isa()
    binding.select_isa(request.param)
    yield request.param
    binding.select_isa(before)


@pytest.fixture(params=OPS, ids=lambda op: op.name)
def op(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def seven_threads():
    """Allow seven threads, whatever the machine has."""
    before = csoftmax.get_num_threads()
    binding.set_thread_limit(7)
    yield 7
    binding.set_thread_limit(before)


@pytest.fixture
def c_library(tmp_path):
    """Compile C source to a shared library and return its path."""
    return lambda source, name="helper": compile_library(tmp_path, source, name)


@pytest.fixture(autouse=True)
def default_threads():
    """No test leaves its thread count to the next (asv's benchmarks set one when they are set up)."""
    yield
    csoftmax.set_num_threads(None)
