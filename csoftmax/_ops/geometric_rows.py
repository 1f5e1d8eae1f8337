"""Rows of g-softmax: logits in float64, divided by temperatures, chunk by chunk; results rounded once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .._arguments.layouts import (
    apart_from,
    axis_last,
    batch_shape,
    check_out,
    check_where,
    lay_out_result,
    may_share_memory,
    normalize_axes,
)
from .._arguments.places import CPU, as_float
from .._cpu import binding
from .geometric_cost import Cost, run_task

CHUNK_BYTES = 4 << 20  # of a chunk's logits in float64
MIN_CHUNK_ROWS = 64
MAX_GAP = 1e-13  # that is promised
NAMED_ROWS = 5  # of those in a warning
WARNED_FRAMES = 8  # from a warning to the line of the caller, decorators of a public function included


class GeometricRows(NamedTuple):
    """Checked arrays of a call, by row, and where its result goes."""

    cost: Cost
    x: Any  # (N, K), in the dtype of the call; of a gradient dy
    y: Any | None  # (N, K), of a gradient
    where: Any | None  # (N, K)
    temperature: Any  # (N, 1), or a number
    batch: tuple[int, ...]
    written: Any  # (N, K) or (N,), in the dtype of the call
    finish: Any  # brings what is written to the caller's array, and returns that

    def chunks(self) -> Iterator[slice]:
        """Slices of rows."""
        step = max(MIN_CHUNK_ROWS, CHUNK_BYTES // (8 * max(1, self.x.shape[1])))
        return (slice(begin, begin + step) for begin in range(0, len(self.x), step))

    def temperature_of(self, rows: slice) -> Any:
        """The temperature of some rows, a number or a column."""
        return self.temperature if np.ndim(self.temperature) == 0 else self.temperature[rows]

    def logits(self, rows: slice) -> tuple[Any, Any]:
        """Logits divided by T, -inf where masked, up to a constant of the row; and the largest of each row, over T."""
        x = np.array(self.x[rows], np.float64, order="C")
        if self.where is not None:
            x[~self.where[rows]] = -math.inf
        top = x.max(axis=1, keepdims=True, initial=-math.inf)
        t = self.temperature_of(rows)
        if np.ndim(t) == 0 and t == 1:
            return x, top[:, 0]
        given = x
        x = x - np.where(np.isfinite(top), top, 0)  # so that no quotient overflows
        at_infinity = np.where(np.isfinite(x), 0, x)
        at_zero = np.where(x == 0, x, np.where(x < 0, -math.inf, x))
        x = np.where(t == 0, at_zero, np.where(np.isinf(t), at_infinity, np.where(t == 1, given, x / t)))
        return x, np.where((t == 0) & (top == 0), 0, np.where(np.isfinite(top), top / t, top))[:, 0]

    def solve(self, rows: slice, num_threads: Any, *, probabilities: bool = True) -> tuple[Any, Any, Any, Any]:
        """Probabilities or None, log-sum-exp less the largest logit, the gap, and the largest logit over T, by row."""
        x, top = self.logits(rows)
        excess, gap = np.full(len(x), math.nan), np.full(len(x), math.nan)
        y = x if probabilities else None
        run_task("solve", self.cost, x, num_threads, y=y, excess=excess, gap=gap)
        if self.where is not None:
            mask = self.where[rows]
            is_empty = ~mask.any(axis=1)
            gap[is_empty] = 0
            if probabilities:
                x[~mask] = 0
        return (x if probabilities else None), excess, gap, top


def check_temperatures(temperature: Any, shape: tuple[int, ...], axes: tuple[int, ...], gradient: bool) -> Any:
    """T as a float, or as a column with one for each row."""
    values = as_float("temperature", temperature)[0].astype(np.float64)
    bad = ~((values > 0) & (values < math.inf)) if gradient else ~(values >= 0)
    if bad.any():
        allowed = "positive and finite" if gradient else "at least 0"
        raise ValueError(f"temperature must be {allowed}, got {values[bad][0]}")
    if values.ndim == 0:
        return float(values)
    by_row = tuple(1 if i in axes else n for i, n in enumerate(shape))
    try:
        values = np.broadcast_to(values, by_row)
    except ValueError:
        raise ValueError(
            f"temperature has shape {values.shape}; a number, or one for each row, {by_row}, is allowed"
        ) from None
    return values.reshape(-1, 1)


def lay_out_geometric(
    x: Any,
    y: Any,
    cost: Cost,
    axis: Any,
    temperature: Any,
    where: Any,
    out: Any,
    *,
    gradient: bool = False,
    keepdims: bool | None = None,
) -> GeometricRows:
    """Check the arrays of a call; keepdims: of a reduction, None for all others. y: of a gradient, where x is dy."""
    x, _ = as_float("dy" if y is not None else "x", x)
    if y is not None:
        y, _ = as_float("y", y)
        if y.dtype != x.dtype or y.shape != x.shape:
            raise (TypeError if y.dtype != x.dtype else ValueError)(
                f"y has dtype {y.dtype} and shape {y.shape}; dy has dtype {x.dtype} and shape {x.shape}: "
                "they must be the same"
            )
    axes = normalize_axes(axis, x.ndim)
    classes = math.prod(x.shape[i] for i in axes) if x.ndim else 1
    if classes != len(cost):
        name = "x" if y is None else "dy"
        raise ValueError(f"cost is of {len(cost)} classes, and {name} has {classes} along axis {axis!r}")
    temperature = check_temperatures(temperature, x.shape, axes, gradient)
    mask = None if where is None else check_where(where, x.shape)
    reduces = keepdims is not None
    shape = x.shape
    if reduces:
        dropped = axes if x.ndim else ()
        shape = tuple(1 if i in dropped else n for i, n in enumerate(shape) if keepdims or i not in dropped)
    if out is not None:
        check_out(out, shape, x.dtype)
        x = apart_from(x, out)
        y = None if y is None else apart_from(y, out)
        mask = mask.copy() if mask is not None and may_share_memory(out, mask) else mask
    array = out if out is not None else binding.empty(shape, x.dtype)
    batch = batch_shape(x, axes) if x.ndim else ()
    if x.ndim == 0:
        x, y, mask = (None if a is None else a.reshape(1) for a in (x, y, mask))
    result = lay_out_result(array, x, axes, out is not None, CPU, reduces)
    rows = math.prod(batch)
    x, y, mask = (None if a is None else axis_last(a, axes).reshape(rows, classes) for a in (x, y, mask))
    given = result.rows.reshape((rows,) if reduces else (rows, classes))
    written = given.view(x.dtype)

    def finish() -> Any:
        if not may_share_memory(given, result.rows):  # no view has these rows one after the other
            result.rows[...] = given.reshape(result.rows.shape)
        return result.finish()

    return GeometricRows(cost, x, y, mask, temperature, batch, written, finish)


def warn_of_gaps(gap: Any, frames: int = WARNED_FRAMES) -> None:
    """Warn the caller, so many frames above, if the certificate of a row is not the promised one."""
    bad = np.flatnonzero(gap > MAX_GAP)
    if len(bad):
        named = ", ".join(map(str, bad[:NAMED_ROWS])) + (", ..." if len(bad) > NAMED_ROWS else "")
        warnings.warn(
            f"the relative duality gap exceeds {MAX_GAP:g} in {len(bad)} rows, the largest is {gap[bad].max():.1e}: "
            f"rows {named}, in C order",
            RuntimeWarning,
            stacklevel=frames,
        )


def put(to: Any, values: Any) -> None:
    """Write float64 numbers to an array of the dtype of a call, rounding once."""
    with np.errstate(over="ignore", under="ignore"):
        to[...] = values
    is_nan = np.isnan(values)
    if is_nan.any():
        to[is_nan] = math.nan  # the one that csoftmax writes: x86 makes negative ones
