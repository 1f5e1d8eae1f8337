"""Fixtures: operations, dtypes, instruction sets, more threads than CPUs, compiled C helpers.

A test that compares instruction sets takes `isa`; all others run under the one that CSOFTMAX_ISA selects, and CI runs
the whole suite once for each.
"""

import os

import ml_dtypes  # noqa: F401  (bfloat16 arrays exist only once it is imported)
import pytest
from helpers import compile_library

import csoftmax
from csoftmax import _cpu
from csoftmax._spec.formats import DTYPES
from csoftmax._spec.operations import SOFTMAX_FAMILY


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that take each instruction set in turn."""
    for item in items:
        if "isa" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.every_isa)


@pytest.fixture(params=[_cpu.isa()] if os.environ.get("CSOFTMAX_ISA") else _cpu.isa_available())
def isa(request):
    """Each instruction set of this machine in turn; if one is forced, that one: the others had their turn elsewhere."""
    before = _cpu.isa()
    _cpu.select_isa(request.param)
    yield request.param
    _cpu.select_isa(before)


@pytest.fixture
def keep_isa():
    """Select the instruction set of before again after a test that selects others itself."""
    before = _cpu.isa()
    yield before
    _cpu.select_isa(before)


@pytest.fixture(params=SOFTMAX_FAMILY, ids=lambda op: op.name)
def op(request):
    """Each operation of the softmax family; tests of every operation are parametrised with helpers.every_record."""
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


@pytest.fixture
def seven_threads():
    """Allow seven threads, whatever the machine has."""
    before = csoftmax.get_num_threads()
    _cpu.set_thread_limit(7)
    yield 7
    _cpu.set_thread_limit(before)


@pytest.fixture
def c_library(tmp_path):
    """Compile C source to a shared library and return its path."""
    return lambda source, name="helper": compile_library(tmp_path, source, name)


@pytest.fixture(autouse=True)
def default_threads():
    """No test leaves its thread count to the next (asv's benchmarks set one when they are set up)."""
    yield
    csoftmax.set_num_threads(None)
