"""Fixtures: operations, dtypes, instruction sets, more threads than CPUs, compiled C helpers.

A test that compares instruction sets takes `isa`; all others run under the one that CSOFTMAX_ISA selects, and CI runs
the whole suite once for each.
"""

import os
import signal

import ml_dtypes  # noqa: F401  (bfloat16 arrays exist only once it is imported)
import pytest
from helpers import compile_library

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import DTYPES
from csoftmax._spec.operations import SOFTMAX_FAMILY

try:
    import mpmath
except ImportError:  # wheels are tested in environments with few packages
    mpmath = None
else:
    mpmath.mp.dps = 40  # of every test that asks for no other: mpmath's own 15 digits are no judge of float64


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the tests that take each instruction set in turn."""
    for item in items:
        if "isa" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.every_isa)


@pytest.fixture(params=[binding.isa()] if os.environ.get("CSOFTMAX_ISA") else binding.isa_available())
def isa(request):
    """Each instruction set of this machine in turn; if one is forced, that one: the others had their turn elsewhere."""
    before = binding.isa()
    binding.select_isa(request.param)
    yield request.param
    binding.select_isa(before)


@pytest.fixture
def keep_isa():
    """Select the instruction set of before again after a test that selects others itself."""
    before = binding.isa()
    yield before
    binding.select_isa(before)


@pytest.fixture(params=SOFTMAX_FAMILY, ids=lambda op: op.name)
def op(request):
    """Each operation of the softmax family; tests of every operation are parametrised with helpers.every_record."""
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def _called(*args, **options):
    raise AssertionError("the Python function was called")


@pytest.fixture
def quick(monkeypatch):
    """Calls a function that has a quick way, and fails if the Python function was called."""

    def call(function, *args, **options):
        with monkeypatch.context() as patch:
            patch.setattr("csoftmax._ops.softmax._run_softmax", _called)
            patch.setattr("csoftmax._ops.cross_entropy._run_loss", _called)
            return function(*args, **options)

    return call


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


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, here and in the processes that tests start, also where the tests are a shell's
    background job: that has SIGINT ignored, which Python takes over and every child inherits."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def digits():
    """No test leaves its precision to the next."""
    yield
    assert mpmath is None or mpmath.mp.dps == 40


@pytest.fixture(autouse=True)
def default_threads():
    """No test leaves its thread count to the next (asv's benchmarks set one when they are set up)."""
    yield
    csoftmax.set_num_threads(None)
