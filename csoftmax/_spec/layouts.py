"""Layouts in memory: the same rows with other strides, and the results of a call on them brought back to rows."""

from __future__ import annotations

import numpy as np

from .record import CLASSES, ROWS, TOP, WHOLE, Operation, Sample


def misaligned(x) -> np.ndarray:
    """Return a C-contiguous copy that begins at an odd address."""
    memory = np.zeros(x.nbytes + 65, np.uint8)
    begin = 1 - memory.ctypes.data % 2 + 2
    y = memory[begin : begin + x.nbytes].view(x.dtype).reshape(x.shape)
    y[...] = x
    assert x.size == 0 or y.ctypes.data % 2 == 1
    return y


def strided(x) -> np.ndarray:
    """Return a copy with gaps: its rows are 2 rows apart, its elements 3 elements."""
    y = np.zeros((2 * x.shape[0] + 1, 3 * x.shape[1] + 2), x.dtype)[1::2, 2::3][: x.shape[0], : x.shape[1]]
    y[...] = x
    return y


# Each function maps an array (rows, K) to the same values in another layout, and to the axis of K there.
LAYOUTS = {
    "last axis": lambda x: (np.ascontiguousarray(x), -1),
    "axis 0": lambda x: (np.ascontiguousarray(x.T), 0),
    "strided": lambda x: (strided(x), 1),
    "strided axis 0": lambda x: (strided(np.ascontiguousarray(x.T)), 0),
    "reversed": lambda x: (np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1], -1),
    "padded rows": lambda x: (np.concatenate([x, x], axis=1)[:, : x.shape[1]], -1),
    "misaligned": lambda x: (misaligned(x), -1),
    "misaligned axis 0": lambda x: (misaligned(np.ascontiguousarray(x.T)), 0),
    "3-d middle": lambda x: (np.ascontiguousarray(x[None].transpose(0, 2, 1)), 1),
}


def arrange(op: Operation, sample: Sample, layout: str) -> tuple[Sample, int]:
    """Return a call on (rows, K) arrays in another layout, and the axis of the classes in it."""
    axis = LAYOUTS[layout](np.zeros((1, 1)))[1]

    def bring(name, value):
        role = op.role(name, sample)
        if role == CLASSES and op.accepts("axis"):
            return LAYOUTS[layout](value)[0]
        return value[None] if layout == "3-d middle" and role in (CLASSES, ROWS) and np.ndim(value) else value

    return Sample(*({name: bring(name, value) for name, value in part.items()} for part in sample)), axis


def restore(op: Operation, results, layout: str) -> tuple[np.ndarray, ...]:
    """Return the results of a call in a layout with the rows first and the classes last again."""
    restored = []
    for kind, result in zip(op.results, results):
        if kind.role != WHOLE and result.ndim and op.accepts("axis"):
            result = result[0] if layout == "3-d middle" else result
            if kind.role in (CLASSES, TOP) and ("axis 0" in layout or layout == "3-d middle"):
                result = result.T
        elif kind.role == ROWS and result.ndim and layout == "3-d middle":
            result = result[0]
        restored.append(result)
    return tuple(restored)


def compute_in(op: Operation, sample: Sample, layout: str, **options) -> tuple[np.ndarray, ...]:
    """Call an operation on (rows, K) arrays brought into a layout; the results have the rows first."""
    arranged, axis = arrange(op, sample, layout)
    return restore(op, op.compute(arranged, axis, **options), layout)
