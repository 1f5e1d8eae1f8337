"""Arguments to a plan: the one place where they are checked and brought into normal form.

Which kinds of array are taken, which device computes, dtypes, axes, masks, outputs and their overlap are decided
here and nowhere else.  What comes out needs no further check.
"""

import math
import operator
import sys
from typing import NamedTuple

import numpy as np

from . import _cpu


class DeviceError(RuntimeError):
    """A device that was asked for cannot be used; the message says what is missing and how to get it."""


class Plan(NamedTuple):
    """What a backend runs: arrays with the softmax axis last (y of a log-sum-exp has none)."""

    op: int
    dtype: int
    a: np.ndarray
    b: np.ndarray | None
    y: np.ndarray
    where: np.ndarray | None
    temperature: float
    num_threads: int | None
    result: np.ndarray  # what the caller gets
    work: np.ndarray  # what y is a view of ...
    final: np.ndarray  # ... and the view of the result that it must be copied to if they differ
    given: bool  # the result is the caller's out

    def run(self):
        """Compute, and return the result; 0-d results as scalars."""
        _cpu.run(self.op, self.dtype, self.a, self.b, self.y, self.where, self.temperature, self.num_threads)
        if self.work is not self.final:
            np.copyto(self.final, self.work)
        return self.result if self.result.ndim or self.given else self.result[()]


def check_device(device):
    """The CPU, or an exception."""
    if device is None or device == "cpu":
        return
    kind, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or (":" in device and not index.isdigit()):
        raise ValueError(f'device must be None, "cpu", "cuda" or "cuda:<index>", got {device!r}')
    raise DeviceError(
        f"device={device!r} cannot be used: this version of csoftmax computes on the CPU only, its CUDA backend is "
        'not released yet. Leave device out or pass device="cpu"; move CuPy arrays with cupy.asnumpy(x) first.'
    )


def as_array(name, x):
    """A base-class ndarray of the argument, whatever its dtype."""
    module = type(x).__module__.partition(".")[0]
    if module == "cupy":
        raise DeviceError(
            f"{name} is a CuPy array: this version of csoftmax computes on the CPU only, its CUDA backend is not "
            f"released yet. Pass cupy.asnumpy({name})."
        )
    if module == "torch":
        raise TypeError(f"{name} is a torch.Tensor, which this version does not take; pass {name}.numpy()")
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass {name}.data, and where=~numpy.ma.getmaskarray({name})")
    return np.asarray(x)


def is_bfloat16(dtype):
    """Whether it is ml_dtypes' bfloat16; where that package has not been imported no such array exists."""
    module = sys.modules.get("ml_dtypes")
    return module is not None and dtype == module.bfloat16


def as_float(name, x):
    """The array in native byte order, integers as float64, and the code of its dtype."""
    x = as_array(name, x)
    dtype = x.dtype
    if dtype.kind in "iu":
        return x.astype(np.float64), _cpu.DTYPES["float64"]
    if dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        native = dtype.newbyteorder("=")
        return (x if dtype == native else x.astype(native)), _cpu.DTYPES[native.name]
    if is_bfloat16(dtype):
        return x, _cpu.DTYPES["bfloat16"]
    raise TypeError(
        f"{name} has dtype {dtype}; allowed are float16, bfloat16 (ml_dtypes), float32, float64 and the integers"
    )


def check_temperature(temperature, gradient):
    """T as a float."""
    if isinstance(temperature, (bool, np.bool_, str, bytes, bytearray)) or np.ndim(temperature) != 0:
        raise TypeError(f"temperature must be a real number, got {temperature!r}")
    try:
        value = float(temperature)
    except TypeError:
        raise TypeError(f"temperature must be a real number, got {temperature!r}") from None
    except OverflowError:
        raise ValueError("temperature must be within the range of float64; got an integer beyond it") from None
    if not value >= 0 or (gradient and not 0 < value < math.inf):
        allowed = "positive and finite in a gradient" if gradient else "at least 0"
        raise ValueError(f"temperature must be {allowed}, got {temperature!r}")
    return value


def normalize_axes(axis, ndim):
    """The axes as a tuple of distinct non-negative ints; a 0-d array counts as one element on one axis."""
    ndim = max(ndim, 1)
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    try:
        axes = tuple(operator.index(i) for i in given)
    except TypeError:
        raise TypeError(f"axis must be an int, a tuple of ints or None, got {axis!r}") from None
    for i in axes:
        if not -ndim <= i < ndim:
            raise np.exceptions.AxisError(f"axis {i} is out of bounds for an array of dimension {ndim}")
    axes = tuple(i % ndim for i in axes)
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis names an axis twice: {axis!r}")
    return axes


def overlaps_itself(x):
    """Whether two elements of x lie at one place."""
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
    # Interleaved axes: rare enough to look at every place.
    places = np.zeros(x.shape, dtype=np.intp)
    for i, (stride, length) in enumerate(zip(x.strides, x.shape, strict=True)):
        shape = [1] * x.ndim
        shape[i] = length
        places += (np.arange(length, dtype=np.intp) * stride).reshape(shape)
    places = np.sort(places, axis=None)
    return bool(np.any(np.diff(places) < x.itemsize))


def check_out(out, shape, dtype):
    if not isinstance(out, np.ndarray) or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a numpy.ndarray or None, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; the result has shape {shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the result has dtype {dtype}")
    if not out.flags.writeable:
        raise ValueError("out is read-only; a writable array is needed")
    if overlaps_itself(out):
        raise ValueError("out overlaps itself: several of its elements lie at one place in memory")


def check_where(where, shape):
    mask = as_array("where", where)
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be boolean, got dtype {mask.dtype}")
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"where has shape {mask.shape}, which does not broadcast to the shape {shape} of x") from None


def same_place(a, b):
    """One array in the same layout: an elementwise pass may write where it has read."""
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides and a.shape == b.shape and a.dtype == b.dtype


def axis_last(x, axes):
    """The array with the softmax axes joined into one, last; a view where the layout allows it."""
    if len(axes) == 1:
        return np.moveaxis(x, axes[0], -1) if axes[0] != x.ndim - 1 else x
    x = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    batch = x.shape[: x.ndim - len(axes)]
    return x.reshape(*batch, math.prod(x.shape[len(batch) :]))


def bits(x):
    """Bfloat16 has no buffer format of its own."""
    return x.view(np.uint16) if is_bfloat16(x.dtype) else x


def plan(name, x, axis, *, y=None, temperature=1.0, where=None, out=None, device=None, num_threads=None, keepdims=None):
    """Check the arguments of operation `name` and lay them out.

    A gradient has `y` and calls its first argument dy; a log-sum-exp has `keepdims` (else None).
    """
    check_device(device)
    gradient = name.endswith("_vjp")
    x_name = "dy" if gradient else "x"
    x, code = as_float(x_name, x)
    if gradient:
        y, y_code = as_float("y", y)
        if y_code != code or y.shape != x.shape:
            raise (TypeError if y_code != code else ValueError)(
                f"y has dtype {y.dtype} and shape {y.shape}; dy has dtype {x.dtype} and shape {x.shape}: "
                "they must be the same"
            )
    temperature = check_temperature(temperature, gradient)
    axes = normalize_axes(axis, x.ndim)
    reduces = keepdims is not None
    shape = x.shape
    if reduces:
        drop = axes if x.ndim else ()
        shape = tuple(1 if i in drop else n for i, n in enumerate(x.shape) if keepdims or i not in drop)
    if where is not None:
        where = check_where(where, x.shape)
    if out is not None:
        check_out(out, shape, x.dtype)
        if where is not None and np.may_share_memory(out, where):
            where = where.copy()
        if np.may_share_memory(out, x) and not same_place(out, x):
            x = x.copy()
        if gradient and np.may_share_memory(out, y) and not same_place(out, y):
            y = y.copy()
        result = out
    else:
        result = np.empty(shape, x.dtype) if reduces else np.empty_like(x, subok=False)

    if x.ndim == 0:
        x = x.reshape(1)
        y = y.reshape(1) if gradient else None
        where = where.reshape(1) if where is not None else None
    # The result with the softmax axes last; where it cannot be written so, a temporary is, and copied in the end.
    final = result if reduces else np.moveaxis(result.reshape(x.shape), axes, range(x.ndim - len(axes), x.ndim))
    rows_shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if not reduces:
        rows_shape += (math.prod(x.shape[i] for i in axes),)
    work, rows = final, final.reshape(rows_shape)
    if final.dtype != x.dtype or not np.may_share_memory(rows, final):
        work = np.empty(final.shape, x.dtype)
        rows = work.reshape(rows_shape)
    a = bits(axis_last(x, axes))
    b = bits(axis_last(y, axes)) if gradient else None
    mask = axis_last(where, axes) if where is not None else None
    op, given = _cpu.OPS[name], out is not None
    return Plan(op, code, a, b, bits(rows), mask, temperature, num_threads, result, work, final, given)
