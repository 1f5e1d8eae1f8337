"""The number formats of the four dtypes, long double, and errors in units in the last place (ULP).

Long double has 64 bits of mantissa and 15 of exponent on x86 (more elsewhere), so x - max is harmless there: its
error stays below 0.03 ULP of float64, and nothing underflows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EXACT = np.longdouble
# Where long double is double (MSVC, Apple), float64 results cannot be judged.
JUDGES_FLOAT64 = np.finfo(EXACT).nmant >= 63

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Bits of the significand, and exponent of the smallest normal number.
FORMATS = {"float32": (24, -126), "float64": (53, -1022), "float16": (11, -14), "bfloat16": (8, -126)}
UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}
# The only NaN that csoftmax writes.
NAN_BITS = {"float32": 0x7FC00000, "float64": 0x7FF8000000000000, "float16": 0x7E00, "bfloat16": 0x7FC0}


def dtype_of(name: str) -> np.dtype:
    """Return the NumPy dtype of a name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def available_dtypes() -> dict[str, np.dtype]:
    """Return the dtypes that this environment has: bfloat16 arrays exist only with ml_dtypes."""
    found = {}
    for name in DTYPES:
        try:
            found[name] = dtype_of(name)
        except ImportError:
            continue
    return found


def loss_dtype(dtype: str) -> str:
    """Return the dtype of the losses of logits: float32 for half types."""
    return "float64" if dtype == "float64" else "float32"


def smallest_normal(dtype: str) -> float:
    """Return the smallest normal number of a dtype."""
    return 2.0 ** FORMATS[dtype][1]


def wide(x) -> np.ndarray:
    """Convert to long double, which changes no value (bfloat16 by way of float32)."""
    x = np.asarray(x)
    return (x.astype(np.float32) if x.dtype.name == "bfloat16" else x).astype(EXACT)


def bits(x) -> np.ndarray:
    """Return the bit patterns of an array, in C order and native byte order."""
    x = np.asarray(x)
    x = np.array(x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("=")), order="C")
    return x.view(UNSIGNED[x.dtype.itemsize])


def count_different_bits(a, b) -> int:
    """Count the elements that differ in their bits; all of them where the shapes differ."""
    a, b = np.asarray(a), np.asarray(b)
    return max(a.size, 1) if a.shape != b.shape else int(np.count_nonzero(bits(a) != bits(b)))


def spacing(reference, dtype: str) -> np.ndarray:
    """Return one ULP of the dtype at the reference, subnormal range included."""
    precision, lowest = FORMATS[dtype]
    exponent = np.frexp(np.abs(reference))[1]
    exponent = np.where(reference == 0, lowest, np.maximum(exponent - 1, lowest))
    return np.ldexp(EXACT(1), exponent - (precision - 1))


class Exact(NamedTuple):
    """A result in long double."""

    value: np.ndarray
    scale: np.ndarray | None = None  # the magnitude whose ULP measures the error; None: the value itself
    slack: np.ndarray | float = 0.0  # an absolute error that is always allowed


class Bounds(NamedTuple):
    """The smallest and the largest value that a result may have; equal if it must be exact."""

    low: np.ndarray
    high: np.ndarray


def ulp_errors(got, value, dtype: str | None = None, scale=None, slack=0.0) -> np.ndarray:
    """Return the error of each element in ULP of the dtype (of `got`) at the value (at `scale`).

    NaN and infinities must agree; otherwise the error is infinite.
    """
    dtype = np.asarray(got).dtype.name if dtype is None else dtype
    got = wide(got)
    value = np.asarray(value, EXACT)
    precision, lowest = FORMATS[dtype]
    overflow = np.ldexp(2 - EXACT(2) ** -precision, 1 - lowest)  # a value of at least this magnitude rounds to infinity
    value = np.where(np.abs(value) >= overflow, np.copysign(EXACT(np.inf), value), value)
    special = ~np.isfinite(value)
    is_wrong = special & ~((got == value) | (np.isnan(got) & np.isnan(value)))
    value = np.where(special, 0, value)
    unit = spacing(value if scale is None else np.where(special, 0, scale), dtype)
    with np.errstate(invalid="ignore"):
        error = np.maximum(np.abs(np.where(special, 0, got) - value) - slack, 0) / unit
    return np.where(is_wrong | ~np.isfinite(error), np.inf, error).astype(np.float64)


def ulp_error(got, value, dtype: str | None = None, scale=None, slack=0.0) -> float:
    """Return the largest of `ulp_errors`."""
    return float(ulp_errors(got, value, dtype, scale, slack).max(initial=0.0))


def measure_error(got, expected: Exact | Bounds, dtype: str) -> float:
    """Return the error of one result: in ULP against an Exact, 0 or infinite against Bounds."""
    if isinstance(expected, Exact):
        return ulp_error(got, expected.value, dtype, expected.scale, expected.slack)
    if got.dtype.kind in "iu":
        inside = (got >= expected.low) & (got <= expected.high)
    else:
        got, low, high = wide(got), wide(expected.low), wide(expected.high)
        inside = ((got >= low) & (got <= high)) | (np.isnan(got) & np.isnan(low))
    return 0.0 if np.all(inside) else float("inf")
