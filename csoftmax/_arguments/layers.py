"""What losses of a linear layer share: its bias, its rows that take part, and the rows of a chunk of logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._cpu.dtypes import compute_dtype, is_bfloat16
from .._cpu.linear import CHUNK_BYTES, HALF_CHUNK_BYTES, MAX_CHUNK_ROWS


def check_layer(x: Any, w: Any) -> None:
    """Refuse features and weights that do not fit each other."""
    if x.ndim == 0 or w.ndim != 2 or w.shape[1] != x.shape[-1]:
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; allowed are (..., D) and (K, D)")
    if w.dtype != x.dtype:
        raise TypeError(f"w has dtype {w.dtype}, x has dtype {x.dtype}: they must be the same")


def check_bias(bias: Any, n: int, name: str = "bias", of: str = "w") -> Any:
    """The bias of n classes, as it was given: a caller that needs few of its elements converts these."""
    if bias.dtype.kind not in "iuf" and not is_bfloat16(bias.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {bias.dtype}")
    if bias.shape != (n,):
        raise ValueError(f"{name} has shape {bias.shape}; {of} has {n} rows, so ({n},) is allowed")
    return bias


def count_chunk_rows(rows: int, classes: int, dtype: Any, chunk_bytes: int | None) -> int:
    """Rows of a chunk: as many as fit chunk_bytes in the compute type, evenly over the chunks, at least 1."""
    compute = compute_dtype(dtype)
    chunk_bytes = chunk_bytes or (CHUNK_BYTES if dtype == compute else HALF_CHUNK_BYTES)
    limit = max(1, min(MAX_CHUNK_ROWS, chunk_bytes // max(1, classes * compute.itemsize)))
    return math.ceil(rows / math.ceil(rows / limit)) if rows else 1


def scale_weights(s: Any) -> Any:
    """Sample weights of a mean, multiplied by a power of two if they are very large or small.

    Their scale cancels in the mean, but row losses are rounded to float32 before that.
    """
    exponent = np.frexp(s.max())[1]
    if abs(exponent) <= 60:
        return s
    with np.errstate(under="ignore"):
        return np.ldexp(s, -exponent)


def scale_products(weight: Any, s: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    """Class weights and sample weights of a mean (None: 1) whose products, and sums of these, stay in range.

    They are multiplied by powers of two, which cancel in the mean. They are scaled down no more than sums of products
    with losses need, because the largest class weight may be of a class without a row.
    """
    if weight is None or not weight.size:
        return weight, s
    exponent = int(np.frexp(weight.max())[1])
    if not -60 <= exponent <= 900:
        allowed = max(0, min(exponent, 900))
        with np.errstate(under="ignore"):
            weight, exponent = np.ldexp(weight, allowed - exponent), allowed
    exponent += int(np.frexp(s.max())[1]) if s is not None and s.size else 0
    if not -60 <= exponent <= 900:
        allowed = max(0, min(exponent, 900))
        with np.errstate(under="ignore"):
            s = np.ldexp(np.ones(shape) if s is None else s, allowed - exponent)
    return weight, s


def check_float_dtype(given: Any) -> np.dtype[Any]:
    """The dtype of the parameters of a layer: float32 or float64, in native byte order."""
    try:
        dtype = None if given is None else np.dtype(given)  # of None NumPy makes float64
    except TypeError:
        dtype = None
    if dtype is None or dtype not in (np.float32, np.float64):
        raise TypeError(f"dtype must be float32 or float64, got {repr(given) if dtype is None else dtype}")
    return dtype.newbyteorder("=")


def weigh(s: Any, weight: Any, *, is_scaled: bool) -> Any:
    """Sample weights (None: 1) times the class weights of the rows; is_scaled: of a mean, as in `scale_weights`."""
    if is_scaled and weight.size:
        weight = scale_weights(weight)
    if s is None:
        return weight
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return s * weight


def add_up(values: Any) -> float:
    """The sum in float64, without a warning where it is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return float(np.add.reduce(values, dtype=np.float64))
