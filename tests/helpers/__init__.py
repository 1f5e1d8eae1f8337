"""Helpers of several test files: comparing bits, calls in a fresh process, small C libraries.

Layouts of arrays and sample inputs belong to the records, csoftmax/_spec.
"""

import functools
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from csoftmax._spec.formats import bits
from csoftmax._spec.operations import OPERATIONS

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "tests" / "records"
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])  # for tests that depend on its version
HAS_CMAKE = all(shutil.which(tool) is not None for tool in ("cmake", "nm", "cc"))  # for the tests of the C library


def assert_same_bits(got, expected, what=""):
    __tracebackhide__ = True
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    assert got.dtype.newbyteorder("=") == expected.dtype.newbyteorder("="), f"{what}: {got.dtype}"
    different = np.argwhere(bits(got) != bits(expected))
    if len(different):
        at = tuple(different[0])
        raise AssertionError(
            f"{what}: {len(different)} of {got.size} elements differ, first at {at}: "
            f"{np.asarray(got)[at]!r} instead of {np.asarray(expected)[at]!r}"
        )


def assert_same_results(got, expected, what=""):
    """Compare the bits of several results."""
    __tracebackhide__ = True
    assert len(got) == len(expected), what
    for i, (result, right) in enumerate(zip(got, expected, strict=True)):
        assert_same_bits(np.asarray(result), np.asarray(right), f"{what}, result {i}")


def assert_results_of_layouts(record, got, expected, what=""):
    """Compare the bits of results; where the BLAS decides them, another layout may be another of its products."""
    __tracebackhide__ = True
    if "reproducibility" not in record.exempt:
        assert_same_results(got, expected, what)
        return
    for got_part, other in zip(got, expected, strict=True):
        eps = {2: 2.0**-8, 4: 2.0**-23, 8: 2.0**-52}[np.asarray(other).dtype.itemsize]
        tolerance = (
            (100 if eps < 2.0**-8 else 2) * eps * max(1, np.max(np.abs(np.asarray(other, np.float64)), initial=0))
        )
        np.testing.assert_allclose(
            np.asarray(got_part, np.float64), np.asarray(other, np.float64), 0, tolerance, err_msg=what
        )


def run_python(code, *, script=None, timeout=120, check=True, **environment):
    """Run code in a fresh interpreter; the environment variables are set in it.

    script: a path to write the code to first; multiprocessing's workers find functions of a file, but not of `-c`.
    """
    if script is not None:
        Path(script).write_text(code)
    path = [str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment}
    env = {k: v for k, v in env.items() if v is not None}
    command = [sys.executable, *(["-c", code] if script is None else [str(script)])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)
    if check:
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def compile_library(folder, source, name="helper"):
    """A shared library made of C source."""
    path = Path(folder) / f"{name}.c"
    library = Path(folder) / f"{name}.so"
    path.write_text(source)
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, path, "-ldl", "-lm"], check=True)
    return library


def every_record(promise):
    """Parametrise a test with `record`, every operation that makes a promise; the others say why not in the record."""
    records = [op for op in OPERATIONS if promise not in op.exempt and op.is_available]
    return pytest.mark.parametrize("record", records, ids=lambda op: op.name)


def looped(name, values):
    """Give a test each value of a parameter in turn, as one test; a failure notes the value.

    For cases that take less than a millisecond: pytest, its report and its collection cost about 10 ms a test, which
    was a fifth of the default run with 16,000 of them.  A case that is skipped leaves the others running.
    """

    def wrap(test):
        signature = inspect.signature(test)

        @functools.wraps(test)
        def loop(**fixtures):
            skipped = []
            for value in values:
                try:
                    test(**fixtures, **{name: value})
                except pytest.skip.Exception as skip:
                    skipped.append(skip)
                except Exception as error:
                    error.add_note(f"{name} = {value!r}")
                    raise
            if skipped and len(skipped) == len(values):
                raise skipped[0]

        loop.__signature__ = signature.replace(parameters=[p for n, p in signature.parameters.items() if n != name])
        return loop

    return wrap
