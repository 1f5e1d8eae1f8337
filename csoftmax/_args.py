"""Arguments to a plan: the one place where they are checked and brought into normal form.

Which kinds of array are taken, which device computes, dtypes, axes, masks, outputs and their overlap are decided
here and nowhere else.  What comes out needs no further check.
"""

import contextlib
import math
import operator
import os
import sys
import types
from typing import NamedTuple

import numpy as np

from . import _cuda
from ._cpu import binding


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
    on_cuda: bool  # the arrays are CuPy's

    def run(self):
        """Compute, and return the result; 0-d results as scalars (on a CUDA device as arrays: a scalar would wait)."""
        arguments = self.op, self.dtype, self.a, self.b, self.y, self.where, self.temperature
        return self.compute(binding.run, _cuda.run, arguments)

    def entmax(self, alpha):
        """The same with alpha-entmax in place of softmax."""
        arguments = self.dtype, self.a, self.b, self.y, self.where, alpha
        return self.compute(binding.run_entmax, _cuda.run_entmax, arguments)

    def compute(self, on_cpu, on_cuda, arguments):
        if not self.on_cuda:
            on_cpu(*arguments, self.num_threads)
            return self.finish()
        with self.a.device:
            on_cuda(*arguments)
            return self.finish()

    def finish(self):
        if self.work is not self.final:
            self.final[...] = self.work
        return self.result if self.result.ndim or self.given or self.on_cuda else self.result[()]


class Place(NamedTuple):
    """Where a call computes, and how arrays get there: the one place where kinds of array are told apart."""

    xp: types.ModuleType = np  # NumPy, or CuPy
    number: int | None = None  # of the CUDA device; None: the CPU
    moves: bool = False  # the caller named the device: arrays from elsewhere are moved there

    def array(self, name, x):
        """A base-class ndarray of the argument at this place, whatever its dtype."""
        if self.number is None:
            if is_cupy(x) and self.moves:
                return x.get()
            return as_array(name, x)
        if is_cupy(x):
            if x.device.id != self.number:
                if not self.moves:
                    raise DeviceError(
                        f"{name} is on CUDA device {x.device.id}, the first argument on {self.number}; pass device="
                    )
                with self.context():
                    return self.xp.array(x)
            return x
        if not self.moves:
            raise DeviceError(
                f"{name} is on the CPU, the first argument on CUDA device {self.number}: pass cupy.asarray({name}), or "
                "name the device with device="
            )
        host = as_array(name, x)
        if (host.dtype.kind not in "biuf" or host.dtype.itemsize > 8) and not is_bfloat16(host.dtype):
            return host  # of a dtype that no function takes: the checks that follow say so
        with self.context():
            return self.xp.asarray(host)

    def result_like(self, x):
        """An array like x for a result."""
        return binding.empty_like(x) if self.number is None else self.xp.empty_like(x)

    def context(self):
        """In which arrays are made: on the device of this place, whichever is the current one."""
        return contextlib.nullcontext() if self.number is None else self.xp.cuda.Device(self.number)


CPU = Place()


def is_cupy(x):
    return type(x).__module__.partition(".")[0] == "cupy"


def place_of(device, x):
    """The place that `device` names, or where x is."""
    kind, index = "cpu", None
    if device is not None:
        kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
        if device != "cpu" and (kind != "cuda" or (":" in device and not (number.isascii() and number.isdigit()))):
            raise ValueError(f'device must be None, "cpu", "cuda" or "cuda:<index>", got {device!r}')
        index = int(number) if number else None
    elif is_cupy(x):
        kind, index = "cuda", x.device.id
    if kind == "cpu":
        return Place(moves=device is not None)
    try:
        xp = _cuda.require(index)
    except _cuda.Unavailable as error:
        what = "The device of a CuPy array" if device is None else f"device={device!r}"
        raise DeviceError(f'{what} cannot be used: {error}. device="cpu" computes on the CPU.') from None
    return Place(xp, xp.cuda.Device().id if index is None else index, device is not None)


def to_host(*arrays):
    return [x.get() if is_cupy(x) else x for x in arrays]


def as_array(name, x):
    """A base-class ndarray of the argument, whatever its dtype."""
    module = type(x).__module__.partition(".")[0]
    if module == "cupy":
        raise DeviceError(f'{name} is a CuPy array, and the call computes on the CPU: pass device="cpu" or "cuda"')
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array; pass {name}.data, and ~numpy.ma.getmaskarray({name}) as where; to a loss, "
            f"{name}.filled(-numpy.inf)"
        )
    try:
        return np.asarray(x)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} cannot be made an array of numbers: {error}") from None


def is_bfloat16(dtype):
    """Whether it is ml_dtypes' bfloat16; where that package has not been imported no such array exists."""
    module = sys.modules.get("ml_dtypes")
    return module is not None and dtype == module.bfloat16


def as_float(name, x, place=CPU):
    """The array in native byte order, integers as float64, and the code of its dtype."""
    x = place.array(name, x)
    dtype = x.dtype
    if dtype.kind in "iu":
        return x.astype(np.float64), binding.DTYPES["float64"]
    if dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        native = dtype.newbyteorder("=")
        if dtype != native and is_cupy(x):
            raise TypeError(f"{name} is a CuPy array in foreign byte order, which CuPy does not convert")
        return (x if dtype == native else x.astype(native)), binding.DTYPES[native.name]
    if is_bfloat16(dtype):
        return x, binding.DTYPES["bfloat16"]
    raise TypeError(
        f"{name} has dtype {dtype}; allowed are float16, bfloat16 (ml_dtypes), float32, float64 and the integers"
    )


def as_number(name, given):
    """A real number as a float."""
    dtype = getattr(given, "dtype", None)
    not_real = dtype is not None and getattr(dtype, "kind", "f") not in "iuf" and not is_bfloat16(dtype)
    if not_real or isinstance(given, (bool, str, bytes, bytearray)) or np.ndim(given) != 0:
        raise TypeError(f"{name} must be a real number, got {given!r}")
    try:
        return float(given)
    except TypeError:
        raise TypeError(f"{name} must be a real number, got {given!r}") from None
    except OverflowError:
        bits = given.bit_length()
        raise ValueError(f"{name} must be within the range of float64, got an integer of {bits} bits") from None


def check_temperature(temperature, gradient):
    """T as a float."""
    value = as_number("temperature", temperature)
    if not value >= 0 or (gradient and not 0 < value < math.inf):
        allowed = "positive and finite" if gradient else "at least 0"
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


def check_out(out, shape, dtype, place=CPU):
    wanted = isinstance(out, place.xp.ndarray) and is_cupy(out) == (place.number is not None)
    if not wanted or isinstance(out, np.ma.MaskedArray):
        raise TypeError(f"out must be a {place.xp.__name__}.ndarray or None, got {type(out).__name__}")
    if place.number is not None and out.device.id != place.number:
        raise DeviceError(f"out is on CUDA device {out.device.id}; the result is on device {place.number}")
    if out.shape != shape:
        raise ValueError(f"out has shape {out.shape}; the result has shape {shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise TypeError(f"out has dtype {out.dtype}; the result has dtype {dtype}")
    if place.number is None and not out.flags.writeable:
        raise ValueError("out is read-only; a writable array is needed")
    if overlaps_itself(out):
        raise ValueError("out overlaps itself: several of its elements lie at one place in memory")


def check_where(where, shape, place=CPU):
    mask = place.array("where", where)
    if mask.dtype != np.bool_:
        raise TypeError(f"where must be boolean, got dtype {mask.dtype}")
    try:
        return place.xp.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"where has shape {mask.shape}, which does not broadcast to the shape {shape} of x") from None


def address(x):
    return x.data.ptr if is_cupy(x) else x.ctypes.data


class _Layout:
    """Where an array of CuPy's lies, for NumPy's questions about memory, none of which is read."""

    def __init__(self, x):
        self.__array_interface__ = {
            "version": 3,
            "data": (address(x), True),
            "shape": x.shape,
            "strides": x.strides,
            "typestr": f"|V{x.itemsize}",
        }


def _laid_out(*arrays):
    return (np.asarray(_Layout(x)) if is_cupy(x) else x for x in arrays)


def may_share_memory(a, b):
    """NumPy's, of CuPy's arrays too, whoever has allocated them."""
    return np.may_share_memory(*_laid_out(a, b))


def masked(xp, mask, x):
    """The array with -inf where the mask is False; bfloat16, of which CuPy computes little, as its bits."""
    if is_bfloat16(x.dtype):
        return xp.where(mask, bits(x), np.uint16(0xFF80)).view(x.dtype)
    return xp.where(mask, x, x.dtype.type(-math.inf))


def same_place(a, b):
    """One array in the same layout: an elementwise pass may write where it has read."""
    return address(a) == address(b) and a.strides == b.strides and a.shape == b.shape and a.dtype == b.dtype


def axis_last(x, axes):
    """The array with the softmax axes joined into one, last; a view where the layout allows it."""
    if len(axes) == 1:
        return np.moveaxis(x, axes[0], -1) if axes[0] != x.ndim - 1 else x
    x = np.moveaxis(x, axes, tuple(range(x.ndim - len(axes), x.ndim)))
    batch = x.shape[: x.ndim - len(axes)]
    return x.reshape(*batch, math.prod(x.shape[len(batch) :]))


def bits(x):
    """Bfloat16 has no buffer format of its own."""
    return x.view(np.uint16) if is_bfloat16(x.dtype) else x


def result_rows(result, x, axes, reduces=False, xp=np):
    """The result with the axes last (`final`), what a backend writes (`work`), and that with the axes joined (`rows`).

    Where `final` cannot be written as rows of x's dtype, `work` is a temporary, to be copied to it in the end.
    reduces: the result lacks the axes, or has them with length 1.
    """
    final = result if reduces else np.moveaxis(result.reshape(x.shape), axes, tuple(range(x.ndim - len(axes), x.ndim)))
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    if not reduces:
        shape += (math.prod(x.shape[i] for i in axes),)
    work, rows = final, final.reshape(shape)
    if final.dtype != x.dtype or not may_share_memory(rows, final):
        work = xp.empty(final.shape, x.dtype)
        rows = work.reshape(shape)
    return final, work, rows


def plan(
    name,
    x,
    axis,
    *,
    y=None,
    temperature=1.0,
    where=None,
    out=None,
    device=None,
    num_threads=None,
    keepdims=None,
):
    """Check the arguments of operation `name` and lay them out.

    A gradient has `y` and calls its first argument dy; a log-sum-exp has `keepdims` (else None).
    """
    place = place_of(device, x)
    with place.context():
        return lay_out(place, name, x, axis, y, temperature, where, out, num_threads, keepdims)


def lay_out(place, name, x, axis, y, temperature, where, out, num_threads, keepdims):
    xp = place.xp
    gradient = name.endswith("_vjp")
    x_name = "dy" if gradient else "x"
    x, code = as_float(x_name, x, place)
    if gradient:
        y, y_code = as_float("y", y, place)
        if y_code != code or y.shape != x.shape:
            raise (TypeError if y_code != code else ValueError)(
                f"y has dtype {y.dtype} and shape {y.shape}; dy has dtype {x.dtype} and shape {x.shape}: "
                "they must be the same"
            )
    temperature = check_temperature(temperature, gradient)
    axes = normalize_axes(axis, x.ndim)
    reduces = keepdims is not None
    if reduces and not isinstance(keepdims, bool | np.bool_ | int):
        raise TypeError(f"keepdims must be a bool, got {keepdims!r}")
    shape = x.shape
    if reduces:
        drop = axes if x.ndim else ()
        shape = tuple(1 if i in drop else n for i, n in enumerate(x.shape) if keepdims or i not in drop)
    if where is not None:
        where = check_where(where, x.shape, place)
    if out is not None:
        check_out(out, shape, x.dtype, place)
        if where is not None and may_share_memory(out, where):
            where = where.copy()
        if may_share_memory(out, x) and not same_place(out, x):
            x = x.copy()
        if gradient and may_share_memory(out, y) and not same_place(out, y):
            y = y.copy()
        result = out
    elif reduces:
        result = xp.empty(shape, x.dtype)
    else:
        result = place.result_like(x)

    if x.ndim == 0:
        x = x.reshape(1)
        y = y.reshape(1) if gradient else None
        where = where.reshape(1) if where is not None else None
    final, work, rows = result_rows(result, x, axes, reduces, xp)
    a = bits(axis_last(x, axes))
    b = bits(axis_last(y, axes)) if gradient else None
    mask = axis_last(where, axes) if where is not None else None
    op, given, on_cuda = binding.OPS[name], out is not None, place.number is not None
    return Plan(op, code, a, b, bits(rows), mask, temperature, num_threads, result, work, final, given, on_cuda)


# Cross-entropy


class LossPlan(NamedTuple):
    """What `binding.run_loss` takes, in its order, and what becomes of the results."""

    dtype: int
    x: np.ndarray
    y: np.ndarray | None
    loss: np.ndarray
    labels: np.ndarray | None
    ignore: int | None
    soft: np.ndarray | None
    weight: np.ndarray | None
    sample_weight: np.ndarray | None
    upstream: np.ndarray | None
    temperature: float
    label_smoothing: float
    z_loss: float
    clip_norm: float
    clip_value: float
    reduction: int
    num_threads: int | None
    loss_dtype: np.dtype
    result: np.ndarray | None
    work: np.ndarray | None
    final: np.ndarray | None
    target: np.ndarray  # as given, the axis of soft labels last
    ignore_index: int
    given: bool  # the result is the caller's out
    on_cuda: bool  # the arrays are CuPy's, the loss has the compute dtype

    def run_on_cuda(self):
        """The same on a CUDA device: a bad label makes its row NaN, unless the host is told to wait and look."""
        if os.environ.get("CSOFTMAX_SYNC_CHECKS") == "1":
            raise_bad_label(self.target.get(), self.x.shape[-1], self.ignore_index)
        with self.x.device:
            if self.x.size:
                _cuda.run_loss(*self[:16])
            else:  # no row, or no class: there is nothing to compute, and the CPU knows the result
                host = np.empty(self.loss.shape, np.float64)
                x, y, _, *rest = to_host(*self[1:16])
                if binding.run_loss(self.dtype, x, y, host, *rest, None) is not None:
                    host[...] = math.nan
                self.loss.set(host.astype(self.loss.dtype))
            if self.work is not self.final:
                self.final[...] = self.work
        return self.loss, self.result

    def run(self):
        """Compute; returns the loss (a scalar unless it is one a row) and the gradient or None."""
        if self.on_cuda:
            return self.run_on_cuda()
        if binding.run_loss(*self[:17]) is not None:
            raise_bad_label(self.target, self.x.shape[-1], self.ignore_index)
            raise RuntimeError("target was changed by another thread during the call; nothing has been written")
        if self.work is not self.final:
            np.copyto(self.final, self.work)
        result = self.result
        if result is not None and result.ndim == 0 and not self.given:
            result = result[()]
        with np.errstate(over="ignore", under="ignore"):
            return self.loss.astype(self.loss_dtype, copy=False)[()], result


def raise_bad_label(target, n_classes, ignore_index):
    """Look for the first bad label, hard or soft, and raise."""
    if target.dtype.kind in "iu":
        bad = (target < 0) | (target >= n_classes)
        if ignore_index is not None and representable(ignore_index, target.dtype):
            bad &= target != target.dtype.type(ignore_index)
        if not bad.any():
            return
        at = np.unravel_index(int(bad.argmax()), target.shape)
        place = f"target[{', '.join(map(str, at))}]" if at else "target"
        classes = f"the classes are 0 to {n_classes - 1}" if n_classes else "there is no class"
        ignored = "" if ignore_index is None else f", and ignore_index is {ignore_index}"
        raise IndexError(f"{place} is {target[at]}: {classes}{ignored}")
    bad = ~(np.isfinite(target) & (target >= 0))
    if not bad.any():
        return
    at = np.unravel_index(int(bad.argmax()), target.shape)
    raise ValueError(
        f"soft labels must be at least 0 and finite; target, the class axis last, has {target[at]} at "
        f"({', '.join(map(str, at))})"
    )


def representable(value, dtype):
    """Whether an integer dtype has the value."""
    limits = np.iinfo(dtype)
    return limits.min <= value <= limits.max


def check_positive(name, value):
    """A clip as a float, 0 for none."""
    if value is None:
        return 0.0
    number = as_number(name, value)
    if not number > 0:
        raise ValueError(f"{name} must be positive or None, got {value!r}")
    return number


def check_non_negative(name, value, most=math.inf):
    number = as_number(name, value)
    if not 0 <= number <= most or number == math.inf:
        raise ValueError(
            f"{name} must be at least 0 and {'finite' if most == math.inf else f'at most {most}'}, got {value!r}"
        )
    return number


def check_weight(name, weight, shape, dtype, place=CPU):
    """Weights that broadcast to a shape, at least 0 and finite (unread if on a device), in a native float dtype."""
    on_cuda = place.number is not None
    there = on_cuda and is_cupy(weight)
    given = place.array(name, weight) if there or not on_cuda else as_array(name, weight)
    if given.dtype.kind not in "iuf" and not is_bfloat16(given.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {given.dtype}")
    values = kept_sign(given, dtype)
    values = values.copy() if values is given else values
    try:
        values = (place.xp if there else np).broadcast_to(values, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {given.shape}, which does not broadcast to {shape}") from None
    if there:
        return values
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), shape)
        value = np.broadcast_to(given, shape)[at]
        raise ValueError(
            f"{name} must be at least 0 and finite in {np.dtype(dtype)}, got {value} at ({', '.join(map(str, at))})"
        )
    return place.array(name, values) if on_cuda else values


def kept_sign(x, dtype):
    """The array in a float dtype; what is not 0 stays so, as the least number of its sign."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = x.astype(dtype, copy=False)
    if values is x or x.dtype.kind != "f" or x.dtype.itemsize <= values.dtype.itemsize:
        return values
    gone = (values == 0) & (x != 0)
    if is_cupy(x) or gone.any():  # to look at a device's would be to wait for it
        xp = sys.modules["cupy"] if is_cupy(x) else np
        least = np.finfo(dtype).smallest_subnormal
        values = xp.where(gone, xp.where(x < 0, -least, least), values)
    return values


def check_count(name, given, least=0, allowed="an int"):
    """A number of something."""
    if isinstance(given, (bool, np.bool_)):
        raise TypeError(f"{name} must be {allowed}, got {given!r}")
    try:
        value = operator.index(given)
    except TypeError:
        raise TypeError(f"{name} must be {allowed}, got {given!r}") from None
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {given}")
    return value


def check_num_threads(num_threads):
    """For those who may come to no kernel, which would check it."""
    if num_threads is not None:
        check_count("num_threads", num_threads, 1, "an int or None")
    return num_threads


def check_chunk_bytes(chunk_bytes):
    return None if chunk_bytes is None else check_count("chunk_bytes", chunk_bytes, 1, "an int or None")


def check_ignore_index(ignore_index):
    if isinstance(ignore_index, (bool, np.bool_)):
        raise TypeError(f"ignore_index must be an int, got {ignore_index!r}")
    try:
        return operator.index(ignore_index)
    except TypeError:
        raise TypeError(f"ignore_index must be an int, got {ignore_index!r}") from None


def check_target(target, shape, batch, wide, place=CPU):
    """Labels (native integers of shape `batch`), or None; soft labels (of `shape`, dtype `wide`), or None."""
    target = place.array("target", target)
    dtype = target.dtype
    kind = "f" if is_bfloat16(dtype) else dtype.kind
    if (kind == "f" and dtype.itemsize > 8) or kind not in "iuf":
        raise TypeError(f"target must hold integer labels or floating-point soft labels, got dtype {dtype}")
    if kind == "f" and target.size == 0 and target.shape == batch != shape:
        target, dtype, kind = target.astype(np.int64), np.dtype(np.int64), "i"  # an empty list
    if kind == "f":
        if target.shape != shape:
            raise ValueError(
                f"target has shape {target.shape}: soft labels have the shape of the logits, {shape}; "
                f"labels of shape {batch} are integers, and these are {dtype}"
            )
        return None, kept_sign(target, wide)  # what becomes infinite is refused as that
    if target.shape != batch:
        raise ValueError(f"target has shape {target.shape}: the logits have shape {shape}, their rows {batch}")
    return target.astype(dtype.newbyteorder("="), copy=False), None


def check_reduction(reduction):
    if not isinstance(reduction, str) or reduction not in binding.REDUCTIONS:
        raise ValueError(f'reduction must be "none", "sum" or "mean", got {reduction!r}')


def check_upstream(upstream, reduction, batch, place=CPU):
    """None where it is 1, else float64 for every row."""
    if place.number is not None and (is_cupy(upstream) or np.ndim(upstream)):
        values = place.array("upstream", upstream)
    else:
        values = as_array("upstream", upstream)
    if values.dtype.kind not in "iuf" and not is_bfloat16(values.dtype):
        raise TypeError(f"upstream must hold real numbers, got dtype {values.dtype}")
    if reduction != "none" and values.ndim:
        raise ValueError(f"upstream must be a number where reduction is {reduction!r}, got shape {values.shape}")
    if place.number is not None and not is_cupy(values):  # a number of the host
        return None if values == 1 else place.xp.full(batch, values, np.float64)
    try:
        with np.errstate(over="ignore", under="ignore"):
            values = place.xp.broadcast_to(values.astype(np.float64), batch)
    except ValueError:
        raise ValueError(f"upstream has shape {values.shape}, which does not broadcast to the rows, {batch}") from None
    return None if place.number is None and values.ndim == 0 and values == 1 else values


class LossOptions(NamedTuple):
    """Checked options of a loss, weights in the compute type."""

    weight: np.ndarray | None
    sample_weight: np.ndarray | None
    upstream: np.ndarray | None
    temperature: float
    label_smoothing: float
    z_loss: float
    clip_norm: float
    clip_value: float
    ignore_index: int

    @property
    def factors(self):
        """Temperature, label_smoothing, z_loss, clip_norm and clip_value, in the order of `binding.run_loss`."""
        return self[3:8]


def check_loss_options(
    n_classes,
    batch,
    wide,
    reduction,
    *,
    weight,
    sample_weight,
    label_smoothing,
    ignore_index,
    z_loss,
    temperature,
    upstream=None,
    clip_norm=None,
    clip_value=None,
    place=CPU,
):
    """What hard and soft labels, logits and linear layers have in common; upstream None: there is no gradient."""
    check_reduction(reduction)
    if weight is not None:
        weight = place.xp.ascontiguousarray(check_weight("weight", weight, (n_classes,), wide, place))
    if sample_weight is not None:
        sample_weight = check_weight("sample_weight", sample_weight, batch, np.float64, place)
    return LossOptions(
        weight,
        sample_weight,
        None if upstream is None else check_upstream(upstream, reduction, batch, place),
        check_temperature(temperature, True),
        check_non_negative("label_smoothing", label_smoothing, 1),
        check_non_negative("z_loss", z_loss),
        check_positive("clip_norm", clip_norm),
        check_positive("clip_value", clip_value),
        check_ignore_index(ignore_index),
    )


def wide_dtype(dtype):
    """The type that a dtype computes in."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def plan_loss(logits, target, axis, *, gradient, reduction, out=None, device=None, num_threads=None, **options):
    """Check the arguments of cross_entropy or, with `gradient`, of cross_entropy_with_grad, and lay them out."""
    place = place_of(device, logits)
    if place.number is None and device is not None:
        logits, target, *values = to_host(logits, target, *options.values())
        options = dict(zip(options, values, strict=True))
    with place.context():
        return lay_out_loss(place, logits, target, axis, gradient, reduction, out, num_threads, options)


def lay_out_loss(place, logits, target, axis, gradient, reduction, out, num_threads, options):
    xp = place.xp
    x, code = as_float("logits", logits, place)
    axes = normalize_axes(axis, x.ndim)
    wide = wide_dtype(x.dtype)
    batch = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    labels, soft = check_target(target, x.shape, batch, wide, place)
    n = math.prod(x.shape[i] for i in axes) if x.ndim else 1
    checked = check_loss_options(n, batch, wide, reduction, place=place, **options)
    result = final = work = rows = None
    if gradient and out is not None:
        check_out(out, x.shape, x.dtype, place)
        if may_share_memory(out, x) and not same_place(out, x):
            x = x.copy()
        if soft is not None and may_share_memory(out, soft):
            soft = soft.copy()
        result = out
    elif gradient:
        result = place.result_like(x)
    if x.ndim == 0:
        x = x.reshape(1)
        soft = None if soft is None else soft.reshape(1)
    if gradient:
        final, work, rows = result_rows(result, x, axes, xp=xp)
    if soft is not None:
        soft = axis_last(soft, axes)
    ignore = None
    if labels is not None and representable(checked.ignore_index, labels.dtype):
        ignore = checked.ignore_index % 2**64
    return LossPlan(
        code,
        bits(axis_last(x, axes)),
        None if rows is None else bits(rows),
        xp.empty(batch if reduction == "none" else (), np.float64 if place.number is None else wide),
        labels,
        ignore,
        soft,
        checked.weight,
        checked.sample_weight,
        checked.upstream,
        *checked.factors,
        binding.REDUCTIONS[reduction],
        num_threads,
        wide,
        result,
        work,
        final,
        soft if labels is None else labels,
        checked.ignore_index,
        out is not None,
        place.number is not None,
    )


class LinearPlan(NamedTuple):
    """What `linear_loss` runs: all rows that take part, two-dimensional."""

    dtype: int
    x: np.ndarray  # (N, D)
    w: np.ndarray  # (K, D)
    bias: np.ndarray | None  # in the compute type
    labels: np.ndarray | None
    soft: np.ndarray | None
    options: LossOptions  # sample_weight and upstream for the rows of x
    kept: np.ndarray | None  # which rows of the caller's these are; None: all
    divisor: float
    batch: tuple
    wide: np.dtype
    ignore: int | None = None  # on a CUDA device: of the labels, which the kernel checks; kept and divisor are its own
    on_cuda: bool = False


def plan_linear(x, w, target, bias, *, reduction, device=None, **options):
    """Check the arguments of linear_cross_entropy, and drop the rows that take no part."""
    place = place_of(device, x)
    if place.number is None and device is not None:
        x, w, target, bias, *values = to_host(x, w, target, bias, *options.values())
        options = dict(zip(options, values, strict=True))
    with place.context():
        return lay_out_linear(place, x, w, target, bias, reduction, options)


def lay_out_linear(place, x, w, target, bias, reduction, options):
    x, code = as_float("x", x, place)
    w, w_code = as_float("w", w, place)
    if x.ndim == 0 or w.ndim != 2 or w.shape[1] != x.shape[-1]:
        raise ValueError(f"x has shape {x.shape} and w {w.shape}; allowed are (..., D) and (K, D)")
    if w_code != code:
        raise TypeError(f"w has dtype {w.dtype}, x has dtype {x.dtype}: they must be the same")
    n, wide, batch = len(w), wide_dtype(x.dtype), x.shape[:-1]
    if bias is not None:
        given = place.array("bias", bias)
        if given.dtype.kind not in "iuf" and not is_bfloat16(given.dtype):
            raise TypeError(f"bias must hold real numbers, got dtype {given.dtype}")
        if given.shape != (n,):
            raise ValueError(f"bias has shape {given.shape}; w has {n} rows, so ({n},) is allowed")
        with np.errstate(over="ignore", under="ignore"):
            bias = given.astype(wide)
    labels, soft = check_target(target, (*batch, n), batch, wide, place)
    checked = check_loss_options(n, batch, wide, reduction, place=place, **options)
    rows = math.prod(batch)
    s, upstream = (
        None if v is None else place.xp.ascontiguousarray(v).reshape(rows)
        for v in (checked.sample_weight, checked.upstream)
    )
    if place.number is not None:
        checked = checked._replace(sample_weight=s, upstream=upstream)
        return plan_linear_on_cuda(place, code, x, w, bias, labels, soft, checked, batch, wide)
    keep = np.ones(rows, bool) if s is None else s != 0
    if labels is None:
        raise_bad_label(soft, n, 0)
        soft = soft.reshape(rows, n)
    else:
        labels = labels.copy()  # what is checked is what is used
        raise_bad_label(labels, n, checked.ignore_index)
        labels = labels.reshape(rows)
        if representable(checked.ignore_index, labels.dtype):
            keep &= labels != labels.dtype.type(checked.ignore_index)
        labels = labels.astype(np.int64, copy=False)
    kept = None if keep.all() else np.flatnonzero(keep)
    x = x.reshape(rows, x.shape[-1])
    if kept is not None:
        x, labels, soft, s, upstream = (None if v is None else v[kept] for v in (x, labels, soft, s, upstream))
    divisor = 1.0
    if reduction == "mean" and s is not None and s.size and not (checked.clip_norm or checked.clip_value):
        exponent = np.frexp(s.max())[1]
        if abs(exponent) > 60:  # their scale cancels, and row losses are rounded to float32
            with np.errstate(under="ignore"):
                s = np.ldexp(s, -exponent)
    if reduction == "mean":
        mass = np.ones(len(x)) if s is None else s
        if soft is not None and checked.weight is None:
            mass = mass * soft.sum(-1, dtype=np.float64)
        elif soft is not None:
            mass = mass * np.einsum("ij,j->i", soft, checked.weight, dtype=np.float64)
        elif checked.weight is not None:
            mass = mass * checked.weight[labels]
        divisor = float(np.sum(mass, dtype=np.float64))
    checked = checked._replace(sample_weight=s, upstream=upstream)
    return LinearPlan(code, x, w, bias, labels, soft, checked, kept, divisor, batch, wide)


def plan_linear_on_cuda(place, code, x, w, bias, labels, soft, checked, batch, wide):
    """The rest of plan_linear: nothing is read, so no row is dropped."""
    rows, n, ignore = math.prod(batch), len(w), None
    target = soft if labels is None else labels
    if os.environ.get("CSOFTMAX_SYNC_CHECKS") == "1":
        raise_bad_label(target.get(), n, checked.ignore_index)
    if labels is not None and representable(checked.ignore_index, labels.dtype):
        ignore = checked.ignore_index % 2**64
    flat = [
        None if a is None else place.xp.ascontiguousarray(a).reshape(rows, *more)
        for a, more in ((x, x.shape[-1:]), (labels, ()), (soft, (n,)))
    ]
    return LinearPlan(code, flat[0], w, bias, *flat[1:], checked, None, 1.0, batch, wide, ignore, True)


# Sparse softmax


class TopKPlan(NamedTuple):
    """What `binding.run_topk` takes, and what the caller gets."""

    dtype: int
    x: np.ndarray
    values: np.ndarray
    indices: np.ndarray
    smallest: bool
    unsorted: bool
    normalize: int
    temperature: float
    num_threads: int | None
    result: tuple  # of which values and indices are views
    out: tuple | None  # where the caller wants them
    empty: np.ndarray | None  # rows of which nothing takes part
    place: Place

    def run(self):
        """Compute, and return values and indices."""
        arguments = self.dtype, bits(self.x), bits(self.values), self.indices, *self[4:8]
        if self.place.number is not None:
            with self.x.device:
                _cuda.run_topk(*arguments)
                return self.finish()
        binding.run_topk(*arguments, self.num_threads)
        return self.finish()

    def finish(self):
        if self.empty is not None:  # not by a mask: a device's would have to be counted first
            values = bits(self.values)
            values[...] = self.place.xp.where(self.empty[..., None], values.dtype.type(0), values)
        if self.out is None:
            return self.result
        for to, a in zip(self.out, self.result, strict=True):
            to[...] = a
        return self.out


def plan_topk(
    x,
    k,
    axis,
    *,
    largest=True,
    sorted,
    normalize=None,
    temperature=1.0,
    where=None,
    out=None,
    device=None,
    num_threads=None,
):
    """Check the arguments of topk or, with `normalize`, of topk_softmax, and lay them out."""
    place = place_of(device, x)
    with place.context():
        return lay_out_topk(
            place, x, k, axis, largest, sorted, binding.NORMALIZE[normalize], temperature, where, out, num_threads
        )


def lay_out_topk(place, x, k, axis, largest, sorted, normalize, temperature, where, out, num_threads):
    xp = place.xp
    x, code = as_float("x", x, place)
    axes = normalize_axes(axis, x.ndim)
    temperature = check_temperature(temperature, False)
    mask = None if where is None else check_where(where, x.shape, place)
    if x.ndim == 0:
        x, mask = x.reshape(1), None if mask is None else mask.reshape(1)
    n = math.prod(x.shape[i] for i in axes)
    k = check_count("k", k)
    if k > n:
        raise ValueError(f"k must be at most the length of the axis, {n}, got {k}")
    rows = axis_last(x, axes)
    empty = None
    if mask is not None:
        mask = axis_last(mask, axes)
        rows = masked(xp, mask, rows)
        empty = ~mask.any(-1)
    at = axes[0] if len(axes) == 1 else rows.ndim - 1
    shape = (*rows.shape[:-1][:at], k, *rows.shape[:-1][at:])
    result = xp.empty(shape, x.dtype), xp.empty(shape, np.int64)
    if out is not None:
        if not isinstance(out, tuple) or len(out) != 2:
            raise TypeError(f"out must be a pair of arrays, for values and indices, got {type(out).__name__}")
        for to, a in zip(out, result, strict=True):
            check_out(to, shape, a.dtype, place)
        if np.shares_memory(*_laid_out(*out)):
            raise ValueError("out: values and indices lie at one place in memory")
    values, indices = (np.moveaxis(a, at, -1) for a in result)
    how = not largest, not sorted, normalize, temperature, num_threads
    return TopKPlan(code, rows, values, indices, *how, result, out, empty, place)


def check_alpha(alpha):
    value = as_number("alpha", alpha)
    if not 1 <= value < math.inf:
        raise ValueError(f"alpha must be at least 1 and finite, got {alpha!r}")
    return value


class EntmaxLossPlan(NamedTuple):
    """What a backend's run_entmax_loss takes; x and target have the axis of the classes last."""

    dtype: int
    x: np.ndarray
    target: np.ndarray
    alpha: float
    reduction: str
    num_threads: int | None
    wide: np.dtype
    result: np.ndarray | None  # the gradient as the caller gets it
    rows: np.ndarray | None  # what a backend writes of it
    work: np.ndarray | None
    final: np.ndarray | None
    given: bool  # the result is the caller's out
    place: Place

    @property
    def on_cuda(self):
        return self.place.number is not None

    def run(self):
        """Compute; returns the loss and the gradient or None."""
        soft = self.target if self.target.dtype.kind == "f" else None
        rows = None if self.rows is None else bits(self.rows)
        what = self.dtype, bits(self.x), self.target if soft is None else None, soft, rows
        how = self.alpha, binding.REDUCTIONS[self.reduction]
        shape = self.x.shape[:-1] if self.reduction == "none" else ()
        if not self.on_cuda:
            loss = np.empty(shape, np.float64)
            binding.run_entmax_loss(*what, loss, *how, self.num_threads)
            return self.finish(loss)
        with self.x.device:
            if self.x.size:
                loss = self.place.xp.empty(shape, self.wide)
                _cuda.run_entmax_loss(*what, loss, *how)
            else:  # the sum of no rows; rows without classes have no loss, and no rows no mean
                nothing = math.prod(self.x.shape[:-1]) == 0 and self.reduction == "sum"
                loss = self.place.xp.full(shape, 0 if nothing else math.nan, self.wide)
            return self.finish(loss)

    def reduced(self, loss, grad):
        """The same from a loss a row and the gradient of their sum."""
        count = loss.size if self.reduction == "mean" else 1
        if self.reduction != "none":
            with np.errstate(invalid="ignore"):  # the mean of no rows
                loss = loss.sum() / np.float64(count)
        if self.rows is not None:
            self.rows[...] = grad if count == 1 else (grad.astype(self.wide) / self.wide.type(count)).astype(grad.dtype)
        return self.finish(loss.astype(self.wide) if self.on_cuda else np.asarray(loss, np.float64))

    def finish(self, loss):
        if self.work is not self.final:
            self.final[...] = self.work
        result = self.result
        if self.on_cuda:
            return loss, result
        if result is not None and result.ndim == 0 and not self.given:
            result = result[()]
        with np.errstate(over="ignore", under="ignore"):
            return loss.astype(self.wide)[()], result


def plan_entmax_loss(
    x, target, alpha, *, gradient, axis, reduction, where=None, out=None, device=None, num_threads=None
):
    """Check the arguments of entmax_loss or, with `gradient`, of entmax_loss_with_grad, and lay them out."""
    place = place_of(device, x)
    with place.context():
        return lay_out_entmax_loss(place, x, target, alpha, gradient, axis, reduction, where, out, num_threads)


def lay_out_entmax_loss(place, x, target, alpha, gradient, axis, reduction, where, out, num_threads):
    xp = place.xp
    x, code = as_float("x", x, place)
    axes = normalize_axes(axis, x.ndim)
    wide = wide_dtype(x.dtype)
    batch = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    labels, soft = check_target(target, x.shape, batch, wide, place)
    check_reduction(reduction)
    mask = None if where is None else check_where(where, x.shape, place)
    result = final = work = rows = None
    if gradient:
        if out is not None:
            check_out(out, x.shape, x.dtype, place)
            if may_share_memory(out, x) and not same_place(out, x):
                x = x.copy()
            if soft is not None and may_share_memory(out, soft):
                soft = soft.copy()
        result = place.result_like(x) if out is None else out
    if mask is not None:
        x = masked(xp, mask, x)
    if x.ndim == 0:
        x, soft = x.reshape(1), None if soft is None else soft.reshape(1)
    if gradient:
        final, work, rows = result_rows(result, x, axes, xp=xp)
    x = axis_last(x, axes)
    target = labels if soft is None else axis_last(soft, axes)
    if place.number is None:
        target = target.copy() if soft is None else target  # what is checked is what is used
        raise_bad_label(target, x.shape[-1], None)
        target = target.astype(np.int64) if soft is None else target
    elif os.environ.get("CSOFTMAX_SYNC_CHECKS") == "1":
        raise_bad_label(target.get(), x.shape[-1], None)
    return EntmaxLossPlan(
        code, x, target, alpha, reduction, num_threads, wide, result, rows, work, final, out is not None, place
    )


def check_parameter(name, value, batch, kind, allowed, least):
    """One number a row, or None; `least` says which are allowed."""
    if value is None:
        return None
    if isinstance(value, int) and abs(value) >= 2**63:  # which NumPy has no integers for
        with contextlib.suppress(OverflowError):
            value = float(value) if kind is np.float64 else min(value, 2**63 - 1)
    given = as_array(name, value)
    if given.dtype.kind not in ("iu" if kind is np.int64 else "iuf") and not (
        kind is np.float64 and is_bfloat16(given.dtype)
    ):
        raise TypeError(f"{name} must hold {'integers' if kind is np.int64 else 'real numbers'}, got {given.dtype}")
    try:
        values = np.broadcast_to(given, batch)
    except ValueError:
        raise ValueError(f"{name} has shape {given.shape}, which does not broadcast to the rows, {batch}") from None
    bad = ~least(values)
    if np.any(bad):
        at = np.unravel_index(int(np.argmax(bad)), batch)
        where = f" for row ({', '.join(map(str, at))})" if given.ndim else ""
        raise ValueError(f"{name} must be {allowed}, got {values[at]}{where}")
    if given.dtype == np.uint64 and kind is np.int64:
        given = np.minimum(given, np.uint64(np.iinfo(np.int64).max))
    return np.broadcast_to(given.astype(kind), batch)


class SamplePlan(NamedTuple):
    """What a backend's run_sample takes, and what the caller gets."""

    dtype: int
    x: np.ndarray
    uniform: np.ndarray
    where: np.ndarray | None
    temperature: np.ndarray
    top_k: np.ndarray | None
    top_p: np.ndarray | None
    min_p: np.ndarray | None
    num_threads: int | None
    shape: tuple
    out: np.ndarray | None
    place: Place

    def run(self):
        if self.place.number is not None:
            with self.place.context():
                return self.finish(self.run_on_device())
        indices = np.empty(self.uniform.shape, np.int64)
        if not binding.run_sample(self.dtype, bits(self.x), self.uniform, indices, *self[3:9]):
            x = self.x.astype(np.float64)
            if self.where is not None:
                x = np.where(self.where, x, -np.inf)
            most = np.max(x, axis=-1, initial=-np.inf)
            self.raise_without_mass(int(np.argmax(~np.isfinite(most))), most)
        return self.finish(indices)

    def run_on_device(self):
        """The draws, or the error of a row without mass, for which the device is waited for."""
        xp, (*batch, n) = self.place.xp, self.x.shape
        rows, draws = math.prod(batch), self.uniform.shape[-1]
        if rows == 0 or draws == 0:
            return xp.empty((rows, draws), np.int64)
        if n == 0:
            self.raise_without_mass(0, np.full(batch, -np.inf))
        x = bits(self.x if self.where is None else masked(xp, self.where, self.x))
        x = xp.ascontiguousarray(x).reshape(rows, n)
        uniform = self.uniform.reshape(rows, draws)
        parameters = (None if p is None else p.reshape(rows) for p in self[4:8])
        indices, states = _cuda.run_sample(self.dtype, x, uniform, *parameters)
        if np.any(states):
            first = int(np.argmax(states != 0))
            most = np.zeros(batch)
            most.flat[first] = np.max(x[first].get().view(self.x.dtype).astype(np.float64))
            self.raise_without_mass(first, most)
        return indices

    def finish(self, indices):
        indices = indices.reshape(self.shape)
        if self.out is not None:
            self.out[...] = indices
            return self.out
        return indices if self.place.number is not None else indices[()]

    @staticmethod
    def raise_without_mass(row, most):
        """For the first row without mass; most: the largest logits of the rows."""
        at = np.unravel_index(row, most.shape)
        raise ValueError(
            f"logits have no mass to draw from in row ({', '.join(map(str, at))}): it holds "
            f"{'nothing but -inf' if most[at] == -np.inf else 'NaN' if most[at] != most[at] else '+inf'}"
        )


def plan_sample(
    logits,
    axis,
    *,
    temperature,
    top_k,
    top_p,
    min_p,
    size,
    rng,
    where=None,
    out=None,
    device=None,
    num_threads=None,
):
    """Check the arguments of sample, take its uniform numbers, and lay them out."""
    place = place_of(device, logits)
    with place.context():
        return lay_out_sample(
            place, logits, axis, (temperature, top_k, top_p, min_p), size, rng, where, out, num_threads
        )


def lay_out_sample(place, logits, axis, parameters, size, rng, where, out, num_threads):
    x, code = as_float("logits", logits, place)
    axes = normalize_axes(axis, x.ndim)
    mask = None if where is None else check_where(where, x.shape, place)
    if place.number is not None or place.moves:  # the parameters are checked, and few
        parameters = to_host(*parameters)
    temperature, top_k, top_p, min_p = parameters
    if x.ndim == 0:
        x, mask = x.reshape(1), None if mask is None else mask.reshape(1)
    x = axis_last(x, axes)
    mask = None if mask is None else axis_last(mask, axes)
    batch = x.shape[:-1]
    given = size if isinstance(size, tuple) else () if size is None else (size,)
    draws = tuple(check_count("size", n, 0, "an int, a tuple of ints or None") for n in given)
    parameters = (
        check_parameter("temperature", temperature, batch, np.float64, "at least 0", lambda v: v >= 0),
        check_parameter("top_k", top_k, batch, np.int64, "at least 1", lambda v: v >= 1),
        check_parameter(
            "top_p", top_p, batch, np.float64, "greater than 0 and at most 1", lambda v: (v > 0) & (v <= 1)
        ),
        check_parameter("min_p", min_p, batch, np.float64, "at least 0 and at most 1", lambda v: (v >= 0) & (v <= 1)),
    )
    if out is not None:
        check_out(out, batch + draws, np.dtype(np.int64), place)
    try:
        generator = np.random.default_rng(rng)
    except TypeError:
        raise TypeError(f"rng must be None, an int or a numpy.random.Generator, got {rng!r}") from None
    except ValueError:
        raise ValueError(f"rng must be at least 0 where it is an int, got {rng!r}") from None
    uniform = generator.random((*batch, math.prod(draws)))
    return SamplePlan(code, x, uniform, mask, *parameters, num_threads, batch + draws, out, place)
