"""The four storage types: how arrays of them are recognised, and the type that each computes in."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import numpy as np

from . import binding


def is_bfloat16(dtype: Any) -> bool:
    """Whether a dtype is ml_dtypes' bfloat16. No such array exists before that package has been imported."""
    module = sys.modules.get("ml_dtypes")
    return module is not None and dtype == module.bfloat16


@functools.cache  # a dtype makes its name anew each time, in some microseconds
def dtype_code(dtype: np.dtype[Any]) -> int:
    """The number by which kernels know one of the four storage types, given in native byte order."""
    return binding.DTYPES[dtype.name]


def compute_dtype(dtype: Any) -> np.dtype[Any]:
    """The type that arrays of a dtype are computed in: float64 for float64, float32 for all others."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def as_buffer(x: Any) -> Any:
    """The array itself, or, for bfloat16, which has no buffer format, its bits as uint16."""
    return x.view(np.uint16) if is_bfloat16(x.dtype) else x


def in_dtype(values: Any, dtype: Any) -> Any:
    """Numbers rounded to a dtype, whose NaN is the one that csoftmax writes: x86 makes negative ones."""
    return np.where(np.isnan(values), math.nan, values).astype(dtype, copy=False)
