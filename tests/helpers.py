"""What several test files share: bits, layouts, calls in a fresh process, small C libraries."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
HAS_CMAKE = all(shutil.which(tool) is not None for tool in ("cmake", "nm", "cc"))  # what test_c_library.py needs
NAN_BITS = {"float32": 0x7FC00000, "float64": 0x7FF8000000000000, "float16": 0x7E00, "bfloat16": 0x7FC0}
NUMPY = tuple(int(part) for part in np.__version__.split(".")[:2])  # what tests know about versions hangs on it
UINT = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(x):
    """The bit patterns of an array, in C order and native byte order."""
    x = np.asarray(x)
    x = np.array(x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("=")), order="C")
    return x.view(UINT[x.dtype.itemsize])


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


def misaligned(x):
    """A C-contiguous copy that begins at an odd address."""
    memory = np.zeros(x.nbytes + 65, np.uint8)
    begin = 1 - memory.ctypes.data % 2 + 2
    y = memory[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    y[...] = x
    assert x.size == 0 or y.ctypes.data % 2 == 1
    return y


def _strided(x):
    y = np.zeros((2 * x.shape[0] + 1, 3 * x.shape[1] + 2), x.dtype)[1::2, 2::3][: x.shape[0], : x.shape[1]]
    y[...] = x
    return y


# Each takes (rows, K) and gives the same values in another layout, and the axis of K.
LAYOUTS = {
    "last axis": lambda x: (np.ascontiguousarray(x), -1),
    "axis 0": lambda x: (np.ascontiguousarray(x.T), 0),
    "strided": lambda x: (_strided(x), 1),
    "strided axis 0": lambda x: (_strided(np.ascontiguousarray(x.T)), 0),
    "reversed": lambda x: (np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1], -1),
    "padded rows": lambda x: (np.concatenate([x, x], axis=1)[:, : x.shape[1]], -1),
    "misaligned": lambda x: (misaligned(x), -1),
    "misaligned axis 0": lambda x: (misaligned(np.ascontiguousarray(x.T)), 0),
    "3-d middle": lambda x: (np.ascontiguousarray(x[None].transpose(0, 2, 1)), 1),
}


def call(op, arrays, layout="last axis", **options):
    """Call an operation on (rows, K) arrays brought into a layout; the result is (rows, K) or (rows,) again."""
    views = [LAYOUTS[layout](a) for a in arrays]
    axis = views[0][1]
    result = op.function()(*(v for v, _ in views), axis=axis, **options)
    if layout == "3-d middle":
        result = result[0]
        axis = 0
    if op.keeps_axis and axis == 0:
        result = result.T
    return result


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


class FixedUniform(np.random.Generator):
    """A generator whose uniform numbers are given."""

    def __init__(self, u):
        super().__init__(np.random.PCG64(0))
        self.u = u

    def random(self, shape):
        return self.u.reshape(shape)
