"""The operations of the softmax family, the shapes, and calls on arrays whose pages have been touched."""

import numpy as np

from csoftmax._bench.cases import GROUPS, ROW_OPS, Case
from csoftmax._bench.compare import make_problem

NAMES = list(ROW_OPS)
# The shapes of `python -m csoftmax bench` but the two largest, by the label that asv shows.
LABELS = [
    f"{'x'.join(map(str, shape))} axis {axis} {dtype}"
    for lines in GROUPS.values()
    for shape, axis, dtype in lines
    if np.prod(shape) <= 10_000_000
]


def parse_label(label):
    """Shape, axis and dtype of a label."""
    shape, _, axis, dtype = label.split()
    return tuple(map(int, shape.split("x"))), int(axis), dtype


def prepare_call(case):
    """A function without arguments that calls csoftmax into given memory, and the bytes that it reads and writes."""
    problem = make_problem(case, fresh=False)
    contender = problem.prepare_csoftmax()
    return eval(f"lambda: {contender.statement}", contender.names), problem.nbytes


def prepare_rows(name, label):
    """The same for an operation of the softmax family."""
    return prepare_call(Case("given", name, *parse_label(label)))
