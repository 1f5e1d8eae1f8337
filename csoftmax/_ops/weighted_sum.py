"""logsumexp with factors of the exponentials, of any sign: the plan of logsumexp(b=...)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import _cuda
from .._arguments.layouts import axis_last, check_out, check_where, copy_to, normalize_axes
from .._arguments.numbers import check_temperatures
from .._arguments.places import Place, as_array, as_float, place_of, to_host
from .._arguments.sinks import append_sink
from .._cpu import binding
from .._cpu.dtypes import as_buffer, is_bfloat16


class WeightedSumPlan(NamedTuple):
    """A checked call; the class axis is the last."""

    dtype: int
    x: Any  # bfloat16 as its bits
    b: Any  # float64
    where: Any | None
    shape: tuple[int, ...]  # of x as it was given, with length 1 along the axis
    storage: np.dtype[Any]
    temperature: float | Any
    num_threads: Any
    place: Place

    def finish(self, keepdims: bool, out: Any, with_sign: bool) -> tuple[Any, Any]:
        """Compute, and return the values and the signs; a negative sum is NaN unless its sign is returned."""
        with self.place.context():
            return self._finish(keepdims, out, with_sign)

    def _finish(self, keepdims: bool, out: Any, with_sign: bool) -> tuple[Any, Any]:
        xp, batch = self.place.xp, self.x.shape[:-1]
        shape = self.shape if keepdims else batch
        if out is not None:
            check_out(out, shape, self.storage, self.place)
        value, sign = xp.empty(batch, np.float64), xp.empty(batch, np.float64)
        number: Any = self.temperature
        each = None
        if not isinstance(number, float):
            number, each = 1.0, number.reshape(batch)
        arrays = self.x, self.b, value, sign, self.where
        if self.place.on_cuda:
            _cuda.launch_weighted_sum(self.dtype, *arrays, number, each)
        else:
            binding.run_weighted_sum(self.dtype, *arrays, number, each, self.num_threads)
        if not with_sign:
            value = xp.where(sign < 0, np.nan, value)
        results = [xp.empty(shape, self.storage) if out is None else out, xp.empty(shape, self.storage)]
        with np.errstate(over="ignore", under="ignore"):
            for result, numbers in zip(results, (value, sign), strict=True):
                result[...] = numbers.reshape(shape)
        first, second = (r if r.ndim or r is out or self.place.on_cuda else r[()] for r in results)
        return first, second


def plan_weighted_sum(
    x: Any,
    axis: Any,
    b: Any,
    sink: Any,
    *,
    temperature: Any,
    where: Any,
    device: str | None,
    num_threads: Any,
) -> WeightedSumPlan:
    """Check a call of logsumexp with b or return_sign; b broadcasts against x."""
    place = place_of(device, x)
    if device is not None and not place.on_cuda:
        x, b, sink, temperature, where = to_host(x, b, sink, temperature, where)
    with place.context():
        return _lay_out(place, x, axis, b, sink, to_host(temperature)[0], where, num_threads)


def _lay_out(
    place: Place, x: Any, axis: Any, b: Any, sink: Any, temperature: Any, where: Any, num_threads: Any
) -> WeightedSumPlan:
    xp = place.xp
    given = as_array("b", b) if np.isscalar(b) else place.array("b", b)
    if given.dtype.kind not in "biuf" and not is_bfloat16(given.dtype):
        raise TypeError(f"b must hold real numbers, got dtype {given.dtype}")
    x, dtype = as_float("x", x, place)
    try:
        shape = np.broadcast_shapes(given.shape, x.shape)
    except ValueError:
        raise ValueError(f"b has shape {given.shape}, which does not broadcast against {x.shape}, that of x") from None
    wide = xp.empty(given.shape, np.float64)
    copy_to(wide, xp.asarray(given))
    weights, x = xp.broadcast_to(wide, shape), xp.broadcast_to(x, shape)
    axes = normalize_axes(axis, x.ndim)
    row_shape = tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    temperature = check_temperatures(temperature, row_shape, True)
    where = None if where is None else check_where(where, x.shape, place)
    storage = x.dtype
    if x.ndim == 0:
        x, weights, where = x.reshape(1), weights.reshape(1), None if where is None else where.reshape(1)
        axes = (0,)
    weights = axis_last(weights, axes)
    if sink is not None:  # one more element, of weight 1
        x, where, *_ = append_sink(place, x, sink, axes, where)
        wide = xp.empty(x.shape, np.float64)
        copy_to(wide[..., :-1], weights)
        wide[..., -1] = 1
        weights = wide
    else:
        x, where = axis_last(x, axes), None if where is None else axis_last(where, axes)
    return WeightedSumPlan(dtype, as_buffer(x), weights, where, row_shape, storage, temperature, num_threads, place)
