"""Axes, outputs, masks and overlap: how the arrays of a call lie in memory, and the rows that a backend gets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .._cpu.dtypes import as_buffer, is_bfloat16
from .numbers import as_index, is_bool
from .places import CPU, DeviceError, Place, as_float, is_cupy

_PIECE = 1 << 20  # elements that NumPy is given at a time: a few milliseconds


def pieces(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Indices of pieces of an array, in C order; Python sees signals between them, and not within a call of NumPy."""
    axis, inner = len(shape), 1  # `inner` elements follow an index of the axis that is divided
    while axis > 0 and inner * shape[axis - 1] <= _PIECE:
        axis -= 1
        inner *= shape[axis]
    if axis == 0:
        yield (...,)
        return
    step = _PIECE // max(1, inner)
    for before in np.ndindex(*shape[: axis - 1]):
        for begin in range(0, shape[axis - 1], step):
            yield (*before, slice(begin, begin + step))


def copy_to(to: Any, values: Any) -> None:
    """Copy what broadcasts to an array into it, in pieces if it is NumPy's; bfloat16 as its bits."""
    if is_cupy(to) or to.size <= _PIECE:
        to[...] = values
        return
    values = np.broadcast_to(values, to.shape)
    for at in pieces(to.shape):
        to[at] = values[at]


def normalize_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """The axes as a tuple of distinct non-negative ints; a 0-d array counts as one element on one axis."""
    ndim = max(ndim, 1)
    if type(axis) is int and -ndim <= axis < ndim:
        return (axis % ndim,)
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    try:
        axes = tuple(map(as_index, given))
    except TypeError:
        no_bool = ", not a bool" * any(map(is_bool, given))  # often a keepdims given by position
        raise TypeError(f"axis must be an int, a tuple of ints or None{no_bool}, got {axis!r}") from None
    for i in axes:
        if not -ndim <= i < ndim:
            raise np.exceptions.AxisError(f"axis {i} is out of bounds for an array of dimension {ndim}")
    axes = tuple(i % ndim for i in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis names an axis twice: {axis!r}")
    return axes


def batch_shape(x: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of x without the given axes: one entry a row."""
    if axes == (x.ndim - 1,):
        return x.shape[:-1]  # type: ignore[no-any-return]
    return tuple(n for i, n in enumerate(x.shape) if i not in axes)


def overlaps_itself(x: Any) -> bool:
    """Whether two elements of x share memory."""
    if x.size <= 1:
        return False
    reach = 0
    for stride, length in sorted((abs(s), n) for s, n in zip(x.strides, x.shape, strict=True) if n > 1):
        if stride < reach + x.itemsize:
            break
        reach += stride * (length - 1)
    else:
        return False
    if any(s == 0 and n > 1 for s, n in zip(x.strides, x.shape, strict=True)):
        return True
    # Interleaved axes are rare enough to compare the offsets of all elements.
    offsets = np.zeros(x.shape, dtype=np.intp)
    for i, (stride, length) in enumerate(zip(x.strides, x.shape, strict=True)):
        shape = [1] * x.ndim
        shape[i] = length
        offsets += (np.arange(length, dtype=np.intp) * stride).reshape(shape)
    offsets = np.sort(offsets, axis=None)
    return bool(np.any(np.diff(offsets) < x.itemsize))


def check_out(out: Any, shape: tuple[int, ...], dtype: Any, place: Place = CPU) -> None:
    """Refuse an `out` that cannot hold a result of this shape and dtype at this place."""
    is_ndarray = isinstance(out, place.xp.ndarray) and is_cupy(out) == place.on_cuda
    if not is_ndarray or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a {place.xp.__name__}.ndarray or None, got {type(out).__name__}")
    if place.on_cuda and out.device.id != place.number:
        raise DeviceError(f"out is on CUDA device {out.device.id}; the result is on device {place.number}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; the result has shape {shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the result has dtype {dtype}")
    if not place.on_cuda and not out.flags.writeable:
        raise ValueError("out is read-only; a writable array is needed")
    if overlaps_itself(out):
        raise ValueError("out overlaps itself: several of its elements share memory")


def check_where(where: Any, shape: tuple[int, ...], place: Place = CPU, of: str = "x") -> Any:
    """The mask as a boolean view of the given shape, that of the argument `of`."""
    mask = place.array("where", where)
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be boolean, got dtype {mask.dtype}")
    try:
        return place.xp.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"where has shape {mask.shape}, which does not broadcast to the shape {shape} of {of}"
        ) from None


def address(x: Any) -> int:
    """Address of the first element."""
    return int(x.data.ptr if is_cupy(x) else x.ctypes.data)


class _Layout:
    """Address, shape and strides of a CuPy array in NumPy's terms, for questions that read no element."""

    def __init__(self, x: Any):
        self.__array_interface__ = {
            "version": 3,
            "data": (address(x), True),
            "shape": x.shape,
            "strides": x.strides,
            "typestr": f"|V{x.itemsize}",
        }


def _layouts(*arrays: Any) -> Iterator[Any]:
    return (np.asarray(_Layout(x)) if is_cupy(x) else x for x in arrays)


def may_share_memory(a: Any, b: Any) -> bool:
    """np.may_share_memory, for CuPy arrays as well."""
    return np.may_share_memory(*_layouts(a, b))


def shares_memory(a: Any, b: Any) -> bool:
    """np.shares_memory, for CuPy arrays as well."""
    return np.shares_memory(*_layouts(a, b))


def is_same_view(a: Any, b: Any) -> bool:
    """Whether two arrays are one view of memory, so that an elementwise pass may write where it has read."""
    return address(a) == address(b) and a.strides == b.strides and a.shape == b.shape and a.dtype == b.dtype


def apart_from(x: Any, out: Any) -> Any:
    """The input x, copied if writing to `out` could change elements that are still to be read."""
    return x.copy() if may_share_memory(out, x) and not is_same_view(out, x) else x


def masked(xp: Any, mask: Any, x: Any) -> Any:
    """The array with -inf where the mask is False. bfloat16, which CuPy barely supports, is handled as its bits."""
    if is_bfloat16(x.dtype):
        return xp.where(mask, as_buffer(x), np.uint16(0xFF80)).view(x.dtype)
    return xp.where(mask, x, x.dtype.type(-math.inf))


def axis_last(x: Any, axes: tuple[int, ...]) -> Any:
    """The array with the softmax axes joined into one, the last; a view where the layout allows it."""
    if len(axes) == 1:
        return np.moveaxis(x, axes[0], -1) if axes[0] != x.ndim - 1 else x
    x = np.moveaxis(x, axes, tuple(range(x.ndim - len(axes), x.ndim)))
    batch = x.shape[: x.ndim - len(axes)]
    return x.reshape(*batch, math.prod(x.shape[len(batch) :]))


class Result(NamedTuple):
    """Where the result of a call goes."""

    array: Any  # what the caller gets
    rows: Any  # what a backend writes: rows, the softmax axis last
    written: Any  # the array that `rows` is a view of
    final: Any  # the view of `array` that `written` is copied to if they differ
    given: bool  # the array is the caller's out
    place: Place

    def finish(self) -> Any:
        """The caller's array, complete; 0-d results as scalars (on CUDA as arrays: a scalar would wait)."""
        if self.written is not self.final:
            self.final[...] = self.written
        return self.array if self.array.ndim or self.given or self.place.on_cuda else self.array[()]


def lay_out_result(
    array: Any, x: Any, axes: tuple[int, ...], given: bool, place: Place, reduces: bool = False
) -> Result:
    """The rows of a result array for an input x.

    Where the array cannot be written as rows of x's dtype, the rows are those of a temporary that is copied at the
    end. With `reduces` the result lacks the axes, or has them with length 1.
    """
    if not reduces and axes == (x.ndim - 1,) and array.shape == x.shape and array.dtype == x.dtype:
        return Result(array, as_buffer(array), array, array, given, place)
    final = array if reduces else np.moveaxis(array.reshape(x.shape), axes, tuple(range(x.ndim - len(axes), x.ndim)))
    shape = batch_shape(x, axes)
    if not reduces:
        shape += (math.prod(x.shape[i] for i in axes),)
    written, rows = final, final.reshape(shape)
    if final.dtype != x.dtype or not may_share_memory(rows, final):
        written = place.xp.empty(final.shape, x.dtype)
        rows = written.reshape(shape)
    return Result(array, as_buffer(rows), written, final, given, place)


class Rows(NamedTuple):
    """Arrays of a call with one or two inputs, the softmax axis last."""

    dtype: int
    first: Any  # x, or dy of a gradient
    second: Any | None  # y of a gradient
    where: Any | None
    result: Result
    row_shape: tuple[int, ...]  # of the argument, with length 1 along the softmax axes


def lay_out_rows(
    place: Place, x: Any, y: Any, axis: Any, where: Any, out: Any, *, gradient: bool, keepdims: Any = None
) -> Rows:
    """Check and lay out the arrays of a call.

    A gradient has two inputs, dy (here x) and y. A reduction has `keepdims`, all other calls None.
    """
    reduces = keepdims is not None
    x, dtype = as_float("dy" if gradient else "x", x, place)
    if gradient:
        y, y_dtype = as_float("y", y, place)
        if y_dtype != dtype or y.shape != x.shape:
            raise (TypeError if y_dtype != dtype else ValueError)(
                f"y has dtype {y.dtype} and shape {y.shape}; dy has dtype {x.dtype} and shape {x.shape}: "
                "they must be the same"
            )
    axes = normalize_axes(axis, x.ndim)
    shape = x.shape
    row_shape = (*shape[:-1], 1) if axes == (x.ndim - 1,) else tuple(1 if i in axes else n for i, n in enumerate(shape))
    if reduces:
        dropped = axes if x.ndim else ()
        shape = tuple(1 if i in dropped else n for i, n in enumerate(x.shape) if keepdims or i not in dropped)
    if where is not None:
        where = check_where(where, x.shape, place)
    if out is not None:
        check_out(out, shape, x.dtype, place)
        if where is not None and may_share_memory(out, where):
            where = where.copy()
        x = apart_from(x, out)
        y = apart_from(y, out) if gradient else None
        array = out
    elif reduces:
        array = place.xp.empty(shape, x.dtype)
    else:
        array = place.result_like(x)
    if x.ndim == 0:
        x = x.reshape(1)
        y = y.reshape(1) if gradient else None
        where = where.reshape(1) if where is not None else None
    result = lay_out_result(array, x, axes, out is not None, place, reduces)
    first = as_buffer(axis_last(x, axes))
    second = as_buffer(axis_last(y, axes)) if gradient else None
    return Rows(dtype, first, second, axis_last(where, axes) if where is not None else None, result, row_shape)


def lay_out_gradient(
    x: Any, soft: Any, axes: tuple[int, ...], gradient: bool, out: Any, place: Place, mask: Any = None
) -> tuple[Any, Any, Result | None]:
    """Logits and soft labels with the class axis last, as they are read while `out` is written; and the gradient.

    Where the mask is False, logits become -inf. Without `gradient` there is no result.
    """
    array = None
    if gradient:
        if out is not None:
            check_out(out, x.shape, x.dtype, place)
            x = apart_from(x, out)
            if soft is not None and may_share_memory(out, soft):
                soft = soft.copy()
        array = place.result_like(x) if out is None else out
    if mask is not None:
        x = masked(place.xp, mask, x)
    if x.ndim == 0:
        x, soft = x.reshape(1), None if soft is None else soft.reshape(1)
    result = None if array is None else lay_out_result(array, x, axes, out is not None, place)
    return axis_last(x, axes), None if soft is None else axis_last(soft, axes), result
