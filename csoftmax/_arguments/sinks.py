"""Sinks: a logit of each row that takes part in the denominator and has no output."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .._cpu.dtypes import as_buffer, is_bfloat16
from .layouts import axis_last, batch_shape, check_out, check_where, copy_to, normalize_axes
from .numbers import is_bool
from .places import Place, as_array, as_float, is_cupy


def check_sink(sink: Any, row_shape: tuple[int, ...], dtype: Any, place: Place) -> Any:
    """The sink of each row, of shape row_shape, in the dtype of the logits; row_shape has length 1 along the axis."""
    on_device = place.on_cuda and (is_cupy(sink) or np.ndim(sink) > 0)
    given = place.array("sink", sink) if on_device else as_array("sink", sink)
    if is_bool(sink) or (given.dtype.kind not in "iuf" and not is_bfloat16(given.dtype)):
        raise TypeError(f"sink must hold real numbers, got dtype {given.dtype}")
    with np.errstate(over="ignore", under="ignore"):
        values = given.astype(dtype)
    if not on_device:
        refuse_overflow(given, values)
    try:
        values = (place.xp if on_device else np).broadcast_to(values, row_shape)
    except ValueError:
        allowed = f"a number and what broadcasts to {row_shape}, the shape of the rows with length 1 along the axis"
        raise ValueError(f"sink has shape {given.shape}; allowed are {allowed}") from None
    if on_device or not place.on_cuda:
        return values
    return place.xp.asarray(np.ascontiguousarray(as_buffer(values))).view(dtype)  # a number, copied to the device


def raise_lost(sink: Any, dtype: str, largest: float) -> NoReturn:
    """Raise for a finite sink that is infinite in the dtype of the logits: +inf would make a row NaN."""
    raise ValueError(
        f"sink must be at most {largest:g} in size, the largest {dtype}, or infinite where the logits are {dtype}; got "
        f"{sink}: convert the logits to a wider dtype"
    )


def refuse_overflow(given: Any, values: Any) -> None:
    """Refuse sinks that are finite as given and infinite in the dtype of the logits, the one of `values`."""
    with np.errstate(invalid="ignore"):  # signalling NaNs
        is_lost = np.isinf(values) & ~np.isinf(given)
    if np.any(is_lost):
        largest = 3.3895313892515355e38 if is_bfloat16(values.dtype) else float(np.finfo(values.dtype).max)
        raise_lost(given.ravel()[int(np.argmax(is_lost))], values.dtype.name, largest)


class SinkRows(NamedTuple):
    """Rows of logits with the sink as their last element, and what their results need."""

    rows: Any  # (rows..., n + 1)
    where: Any | None  # the mask of these rows, which never leaves the sink out
    shape: tuple[int, ...]  # of x
    axes: tuple[int, ...]
    place: Place

    def temperature(self, given: Any) -> Any:
        """The temperature for these rows, whose axis is the last: an array has length 1 along it."""
        if np.ndim(given) == 0 or is_cupy(given):
            return given
        row_shape = tuple(1 if i in self.axes else n for i, n in enumerate(self.shape))
        try:
            values = np.broadcast_to(np.asarray(given), row_shape)
        except ValueError:
            return given  # refused, with its message, where temperatures are checked
        return values.reshape(*self.rows.shape[:-1], 1)

    def result_of_classes(self, y: Any, out: Any) -> Any:
        """The results of all elements but the sinks, in the layout of x."""
        y = as_buffer(y)[..., :-1]
        if not self.shape:
            return self._finish(y.reshape(()), out)
        lengths = tuple(self.shape[i] for i in self.axes)
        y = y.reshape(*self.rows.shape[:-1], *lengths)
        return self._finish(np.moveaxis(y, tuple(range(y.ndim - len(lengths), y.ndim)), self.axes), out)

    def result_of_rows(self, y: Any, keepdims: bool, out: Any) -> Any:
        """The results of rows, which have the reduced axes with length 1 if keepdims is True."""
        shape = tuple(1 if i in self.axes else n for i, n in enumerate(self.shape))
        y = as_buffer(self.place.xp.asarray(y))
        return self._finish(y.reshape(shape) if keepdims else y, out)

    def _finish(self, y: Any, out: Any) -> Any:
        dtype = self.rows.dtype
        if out is not None:
            check_out(out, y.shape, dtype, self.place)
        array = self.place.xp.empty(y.shape, dtype) if out is None else out
        copy_to(as_buffer(array), y)
        return array if array.ndim or out is not None or self.place.on_cuda else array[()]


def append_sink(place: Place, x: Any, sink: Any, axis: Any, where: Any) -> SinkRows:
    """Copy rows of logits and give them the sink as their last element."""
    x, _ = as_float("x", x, place)
    axes, shape = normalize_axes(axis, x.ndim), x.shape
    row_shape = tuple(1 if i in axes else n for i, n in enumerate(shape))
    values = check_sink(sink, row_shape, x.dtype, place)
    if where is not None:
        where = check_where(where, shape, place)
    if x.ndim == 0:
        x, where = x.reshape(1), None if where is None else where.reshape(1)
    batch, n = batch_shape(x, axes), math.prod(x.shape[i] for i in axes)
    rows, mask = place.xp.empty((*batch, n + 1), x.dtype), None
    copy_to(as_buffer(rows)[..., :n], as_buffer(axis_last(x, axes)))
    as_buffer(rows)[..., n] = as_buffer(values).reshape(batch)
    if where is not None:
        mask = place.xp.empty((*batch, n + 1), bool)
        copy_to(mask[..., :n], axis_last(where, axes))
        mask[..., n] = True
    return SinkRows(rows, mask, shape, axes, place)
