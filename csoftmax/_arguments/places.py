"""Devices and kinds of array: where a call computes, and how its arguments get there."""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Any, NamedTuple

import numpy as np

from .. import _cuda
from .._cpu import binding
from .._cpu.dtypes import dtype_code, is_bfloat16
from .kinds import as_values, describe_objects, refuse_kind, refuse_missing_bools


class DeviceError(RuntimeError):
    """A requested device cannot be used; the message says what is missing and how to get it."""


_NO_CONTEXT = contextlib.nullcontext()


class Place(NamedTuple):
    """Where a call computes. This is the only place that distinguishes kinds of array."""

    xp: types.ModuleType = np  # NumPy, or CuPy
    number: int | None = None  # index of the CUDA device; None for the CPU
    moves: bool = False  # the caller named the device, so arrays from elsewhere are moved there

    @property
    def on_cuda(self) -> bool:
        return self.number is not None

    def array(self, name: str, x: Any) -> Any:
        """A base-class ndarray of the argument at this place, whatever its dtype."""
        if not self.on_cuda:
            if is_cupy(x) and self.moves:
                return x.get()
            return as_array(name, x)
        if is_cupy(x):
            if x.device.id == self.number:
                return x
            if not self.moves:
                raise DeviceError(
                    f"{name} is on CUDA device {x.device.id}, the first argument on {self.number}; pass device="
                )
            with self.context():
                return self.xp.array(x)
        if not self.moves:
            raise DeviceError(
                f"{name} is on the CPU, the first argument on CUDA device {self.number}: pass cupy.asarray({name}), or "
                "name the device with device="
            )
        host = as_array(name, x)
        if (host.dtype.kind not in "biuf" or host.dtype.itemsize > 8) and not is_bfloat16(host.dtype):
            return host  # a dtype that no function accepts: the checks that follow report it
        with self.context():
            return self.xp.asarray(host)

    def result_like(self, x: Any) -> Any:
        """A new array for a result with the shape and dtype of x."""
        return self.xp.empty_like(x) if self.on_cuda else binding.empty_like(x)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which new arrays are made on this place's device, whichever device is current."""
        return self.xp.cuda.Device(self.number) if self.number is not None else _NO_CONTEXT


CPU = Place()


def is_cupy(x: Any) -> bool:
    """Whether x is a CuPy array, without importing CuPy."""
    return type(x) is not np.ndarray and type(x).__module__.partition(".")[0] == "cupy"


def parse_device(device: Any) -> tuple[str, int | None]:
    """The kind and the index of a device, "cpu" or "cuda", by its name; whether it is there is not asked."""
    kind, _, number = device.partition(":") if isinstance(device, str) else ("", "", "")
    if device != "cpu" and (kind != "cuda" or (":" in device and not (number.isascii() and number.isdigit()))):
        raise ValueError(f'device must be None, "cpu", "cuda" or "cuda:<index>", got {device!r}')
    return kind, int(number) if number else None


def place_of(device: str | None, x: Any) -> Place:
    """The place that `device` names, or, if it is None, the one where x is."""
    if device is None and type(x) is np.ndarray:
        return CPU
    kind, index = "cpu", None
    if device is not None:
        kind, index = parse_device(device)
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


def check_kernels(name: str) -> None:
    """Refuse an operation that has no kernels for CUDA yet."""
    from .._cuda.compiler import SOURCES

    if name not in SOURCES:
        raise DeviceError(f'{name} has no kernels for CUDA. device="cpu" computes on the CPU.')


def to_host(*arrays: Any) -> list[Any]:
    """The arguments with CuPy arrays copied to the CPU."""
    return [x.get() if is_cupy(x) else x for x in arrays]


def bring_to_host(operation: str, device: str | None, *arrays: Any) -> list[Any]:
    """The arguments of an operation without kernels for CUDA, on the CPU, unless `device` or the first is elsewhere."""
    if place_of(device, arrays[0]).on_cuda:
        check_kernels(operation)
    return list(arrays) if device is None else to_host(*arrays)


def as_array(name: str, x: Any) -> Any:
    """A base-class ndarray of the argument on the CPU, whatever its dtype."""
    if is_cupy(x):
        raise DeviceError(f'{name} is a CuPy array, and the call computes on the CPU: pass device="cpu" or "cuda"')
    if type(x) is np.ndarray:
        return x
    refuse_kind(name, x)
    values = as_values(name, x)
    try:
        a = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} cannot be made an array of numbers: {error}") from None
    except (BufferError, RuntimeError, TypeError) as error:
        tensor = _first_tensor(x)
        what = f"{name} is a {type(x).__name__} that holds a tensor"
        if tensor is None:
            raise TypeError(f"{name} cannot be made an array of numbers: {error}") from error
        if tensor is x:
            if tensor.requires_grad:
                message = f"{name} requires grad, which is not recorded here: pass {name}.detach()"
                raise ValueError(message) from error
            raise TypeError(f"{name} is a tensor which NumPy cannot read: {error}") from error
        if tensor.requires_grad:
            raise ValueError(
                f"{what} which requires grad, which is not recorded: pass torch.stack({name}) to the function of this "
                f"name in csoftmax.torch, or torch.stack({name}).detach() here"
            ) from error
        raise TypeError(f"{what} which NumPy cannot read ({error}): pass torch.stack({name})") from error
    refuse_missing_bools(name, x, a)
    return a


def _first_tensor(x: Any) -> Any:
    """The first PyTorch tensor in nested lists and tuples that requires grad, else the first of all, or None."""
    torch = sys.modules.get("torch")
    if torch is None:
        return None
    found, waiting = None, [x]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list | tuple):
            waiting.extend(reversed(item))
        elif isinstance(item, torch.Tensor):
            if item.requires_grad:
                return item
            found = item if found is None else found
    return found


def as_float(name: str, x: Any, place: Place = CPU) -> tuple[Any, int]:
    """The argument as an array of one of the four dtypes in native byte order, and the code of its dtype.

    Integers become float64.
    """
    given, x = x, place.array(name, x)
    dtype = x.dtype
    if dtype.kind in "iu":
        return x.astype(np.float64), binding.DTYPES["float64"]
    if dtype.kind == "f" and dtype.itemsize in (2, 4, 8):
        native = dtype.newbyteorder("=")
        if dtype != native and is_cupy(x):
            raise TypeError(f"{name} is a CuPy array in foreign byte order, which CuPy does not convert")
        return (x if dtype == native else x.astype(native)), dtype_code(native)
    if is_bfloat16(dtype):
        return x, binding.DTYPES["bfloat16"]
    advice = f": {name}.astype(numpy.float64)" if dtype.kind == "f" else ""
    advice = describe_objects(name, given, x) if dtype.kind == "O" else advice
    raise TypeError(
        f"{name} has dtype {dtype}; allowed are float16, bfloat16 (ml_dtypes), float32, float64 and the integers"
        f"{advice}"
    )
