"""Launches of weighted_sum.cu: logsumexp with weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .launch import as_rows, as_size, launch_kernel


def launch_weighted_sum(
    dtype: int, x: Any, b: Any, value: Any, sign: Any, where: Any, temperature: float, temperatures: Any
) -> None:
    """The weighted sums of rows of CuPy arrays, with the arguments of the CPU's run_weighted_sum.

    value, sign : contiguous, float64. temperatures: those of the rows, on the CPU, or None.
    """
    import cupy

    rows, n = math.prod(x.shape[:-1]), x.shape[-1]
    with cupy.cuda.Device(x.device.id):
        inputs = as_rows(x, rows, n), as_rows(b, rows, n), as_rows(where, rows, n)
        each = None if temperatures is None else cupy.asarray(temperatures.ravel())
        arguments = *inputs, each, np.float64(temperature), value, sign, *as_size(rows, n)
        launch_kernel("weighted_sum", dtype, x.device.id, "weighted", rows, 128, 0, *arguments)
