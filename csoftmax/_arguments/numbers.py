"""Numbers among the arguments: temperatures, counts, factors, reductions, and parameters with one value a row."""

from __future__ import annotations

import contextlib
import math
import operator
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from .._cpu import binding
from .._cpu.dtypes import is_bfloat16
from .kinds import is_dask, refuse_kind
from .places import as_array


def as_number(name: str, given: Any) -> float:
    """A real number as a float."""
    if type(given) is float:
        return given
    if is_dask(given) or isinstance(given, np.ma.MaskedArray):  # float would compute the one, and drop the other's mask
        refuse_kind(name, given)
    dtype = getattr(given, "dtype", None)
    not_real = dtype is not None and getattr(dtype, "kind", "f") not in "iuf" and not is_bfloat16(dtype)
    if not_real or isinstance(given, (bool, str, bytes, bytearray, list, tuple)) or np.ndim(given) != 0:
        raise TypeError(f"{name} must be a real number, got {given!r}")
    try:
        return float(given)
    except TypeError:
        raise TypeError(f"{name} must be a real number, got {given!r}") from None
    except OverflowError:
        bits = given.bit_length()
        raise ValueError(f"{name} must be within the range of float64, got an integer of {bits} bits") from None


def check_temperature(temperature: Any, gradient: bool) -> float:
    """T as a float; 0 and infinity are limits, which have no gradient."""
    value = as_number("temperature", temperature)
    if not value >= 0 or (gradient and not 0 < value < math.inf):
        allowed = "positive and finite" if gradient else "at least 0"
        raise ValueError(f"temperature must be {allowed}, got {temperature!r}")
    return value


def is_for_rows(value: Any) -> bool:
    """Whether a parameter is an array with a number for each row, or a list of one."""
    return type(value) is not float and (isinstance(value, (list, tuple)) or np.ndim(value) > 0)


_OF_ROWS = "the shape of the rows with length 1 along the axis"


def _check_rows(
    name: str,
    value: Any,
    row_shape: tuple[int, ...],
    allowed: str,
    is_allowed: Callable[[Any], Any],
    shape_name: str = _OF_ROWS,
) -> Any:
    """A float64 array for the rows: row_shape is the shape of x with length 1 along the axis."""
    given = as_array(name, value)
    if given.dtype.kind not in "iuf" and not is_bfloat16(given.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {given.dtype}")
    try:
        values = np.broadcast_to(given.astype(np.float64), row_shape)
    except ValueError:
        raise_rows_shape(name, given.shape, row_shape, shape_name)
    raise_bad_rows(name, values, allowed, is_allowed)
    return values


def raise_rows_shape(
    name: str, shape: tuple[int, ...], row_shape: tuple[int, ...], shape_name: str = _OF_ROWS
) -> NoReturn:
    """Refuse numbers of rows in a shape that does not broadcast to that of the rows."""
    shapes = f"a number and what broadcasts to {row_shape}, {shape_name}"
    raise ValueError(f"{name} has shape {shape}; allowed are {shapes}") from None


def raise_bad_rows(
    name: str,
    values: Any,
    allowed: str,
    is_allowed: Callable[[Any], Any],
    place_of: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple,
    part: str = "",
) -> None:
    """Find the first value of a row that is not allowed and raise; return if there is none.

    place_of, part : as in `raise_bad_label`
    """
    bad = ~is_allowed(values)
    if bad.any():
        at = tuple(map(int, np.unravel_index(int(bad.argmax()), bad.shape)))
        place = tuple(map(int, place_of(at)))
        raise ValueError(f"{name} must be {allowed}, got {values[at]} at {place}{part}")


def allowed_for_rows(name: str, gradient: bool) -> tuple[str, Callable[[Any], Any]]:
    """The values that a temperature or an alpha may have, in words and as a function of arrays."""
    if name == "alpha":
        return "at least 1 and finite", lambda a: (a >= 1) & (a < math.inf)
    if gradient:
        return "positive and finite", lambda t: (t > 0) & (t < math.inf)
    return "at least 0", lambda t: t >= 0


def check_temperatures(
    temperature: Any, row_shape: tuple[int, ...], gradient: bool, shape_name: str = _OF_ROWS
) -> float | Any:
    """T as a float, or as a float64 array for the rows: row_shape is the shape of x with length 1 along the axis.

    shape_name : what row_shape is, for messages.
    """
    if not is_for_rows(temperature):
        return check_temperature(temperature, gradient)
    return _check_rows("temperature", temperature, row_shape, *allowed_for_rows("temperature", gradient), shape_name)


def check_alpha(alpha: Any) -> float:
    """The alpha of entmax as a float."""
    value = as_number("alpha", alpha)
    if not 1 <= value < math.inf:
        raise ValueError(f"alpha must be at least 1 and finite, got {alpha!r}")
    return value


def check_alphas(alpha: Any, row_shape: tuple[int, ...]) -> float | Any:
    """The alpha of entmax as a float, or as a float64 array for the rows, whose shape has length 1 along the axis."""
    if not is_for_rows(alpha):
        return check_alpha(alpha)
    return _check_rows("alpha", alpha, row_shape, *allowed_for_rows("alpha", True))


def number_and_rows(value: float | Any, batch: tuple[int, ...], number: float) -> tuple[float, Any | None]:
    """A checked parameter as kernels take it: a number and None, or `number`, unused, and an array of the rows."""
    return (value, None) if isinstance(value, float) else (number, value.reshape(batch))


def check_positive(name: str, value: Any) -> float:
    """A bound for clipping as a float, 0 for None."""
    if value is None:
        return 0.0
    number = as_number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be positive or None, got {value!r}")
    return number


def check_non_negative(name: str, value: Any, maximum: float = math.inf) -> float:
    """A finite number from 0 to the maximum, as a float."""
    number = as_number(name, value)
    if not 0 <= number <= maximum or number == math.inf:
        allowed = "finite" if maximum == math.inf else f"at most {maximum}"
        raise ValueError(f"{name} must be at least 0 and {allowed}, got {value!r}")
    return number


def is_bool(given: Any) -> bool:
    """Whether an argument is a bool, or an array or tensor of one, which Python would take for an int."""
    return isinstance(given, (bool, np.bool_)) or str(getattr(given, "dtype", "")).rpartition(".")[2] == "bool"


def as_index(given: Any) -> int:
    """An integer of any type but bool, for which it raises a TypeError."""
    if type(given) is int:
        return given
    if is_bool(given):
        raise TypeError("a bool is no index")
    return operator.index(given)


def check_integer(name: str, given: Any, allowed: str = "an int") -> int:
    """An integer of any type but bool."""
    try:
        return as_index(given)
    except TypeError:
        raise TypeError(f"{name} must be {allowed}, got {given!r}") from None


def check_count(name: str, given: Any, minimum: int = 0, allowed: str = "an int") -> int:
    """An integer that is at least the minimum."""
    value = check_integer(name, given, allowed)
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {given}")
    return value


def check_draws(size: Any) -> tuple[int, ...]:
    """The shape of the draws of a row: none, one length, or several."""
    given = size if isinstance(size, tuple) else () if size is None else (size,)
    return tuple(check_count("size", n, 0, "an int, a tuple of ints or None") for n in given)


def check_flag(name: str, given: Any) -> bool:
    """A bool, of Python or NumPy; nothing else, because "no" and arrays have a truth value too."""
    if not isinstance(given, bool | np.bool_):
        raise TypeError(f"{name} must be a bool, got {given!r}")
    return bool(given)


def check_choice(name: str, given: Any, allowed: tuple[str, ...], or_also: str = "") -> None:
    """Refuse anything but some names; or_also: what else the caller accepts, in words."""
    if not isinstance(given, str) or given not in allowed:
        *first, last = ([or_also] if or_also else []) + [f'"{choice}"' for choice in allowed]
        raise ValueError(f"{name} must be {', '.join(first)} or {last}, got {given!r}")


def check_num_threads(num_threads: Any) -> Any:
    """num_threads, for calls that can return before they reach a kernel, which would check it."""
    if num_threads is not None:
        check_count("num_threads", num_threads, 1, "an int or None")
    return num_threads


def check_reduction(reduction: Any) -> None:
    """Refuse anything but the three names."""
    if not isinstance(reduction, str) or reduction not in binding.REDUCTIONS:
        raise ValueError(f'reduction must be "none", "sum" or "mean", got {reduction!r}')


def check_parameter(
    name: str, value: Any, batch: tuple[int, ...], kind: type, allowed: str, is_allowed: Callable[[Any], Any]
) -> Any:
    """One number of type `kind` a row, or None. `is_allowed` tests values, `allowed` puts that test into words."""
    if value is None:
        return None
    if isinstance(value, int) and abs(value) >= 2**63:  # beyond NumPy's integers
        with contextlib.suppress(OverflowError):
            value = float(value) if kind is np.float64 else max(-(2**63), min(value, 2**63 - 1))
    given = as_array(name, value)
    kinds = "iu" if kind is np.int64 else "iuf"
    if given.dtype.kind not in kinds and not (kind is np.float64 and is_bfloat16(given.dtype)):
        raise TypeError(f"{name} must hold {'integers' if kind is np.int64 else 'real numbers'}, got {given.dtype}")
    try:
        values = np.broadcast_to(given, batch)
    except ValueError:
        raise ValueError(f"{name} has shape {given.shape}, which does not broadcast to the rows, {batch}") from None
    bad = ~is_allowed(values)
    if np.any(bad):
        at = np.unravel_index(int(np.argmax(bad)), batch)
        where = f" for row ({', '.join(map(str, at))})" if given.ndim else ""
        raise ValueError(f"{name} must be {allowed}, got {values[at]}{where}")
    if given.dtype == np.uint64 and kind is np.int64:
        given = np.minimum(given, np.uint64(np.iinfo(np.int64).max))
    return np.broadcast_to(given.astype(kind), batch)
