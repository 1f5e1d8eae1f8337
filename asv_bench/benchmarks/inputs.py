"""What the benchmarks run on: the list of operations, the shapes, and arrays whose pages have been touched."""

import importlib.util
import sys
from pathlib import Path

import numpy as np

from csoftmax._bench.cases import GROUPS


def load_operations():
    """tests/ops.py by its path: the tests are no package."""
    name = "csoftmax_operations"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[2] / "tests" / "ops.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


operations = load_operations()
NAMES = [op.name for op in operations.OPS]
# The shapes of `python -m csoftmax bench`, less the two largest: a label is what asv shows.
LABELS = [
    f"{'x'.join(map(str, shape))} axis {axis} {dtype}"
    for lines in GROUPS.values()
    for shape, axis, dtype in lines
    if np.prod(shape) <= 10_000_000
]


def read(label):
    """Shape, axis and dtype of a label."""
    shape, _, axis, dtype = label.split()
    return tuple(map(int, shape.split("x"))), int(axis), dtype


class Arrays:
    """The call of an operation on new arrays: inputs of the op list, an output where the operation takes one."""

    def __init__(self, name, label):
        op = operations.BY_NAME[name]
        shape, axis, dtype = read(label)
        rows_last = list(shape)
        rows_last.append(rows_last.pop(axis))
        self.inputs = [np.ascontiguousarray(np.moveaxis(x, -1, axis)) for x in op.make(tuple(rows_last), dtype)]
        self.axis, self.function = axis, op.function()
        self.out = {"out": self.inputs[0].copy()} if op.has_out else {}
        self.nbytes = sum(x.nbytes for x in [*self.inputs, *self.out.values()])

    def call(self):
        return self.function(*self.inputs, self.axis, **self.out)
