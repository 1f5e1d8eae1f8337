"""Arrays of other libraries: read and written in place, without copies; results become arrays of their library.

PyTorch tensors are recognised by name; every other library is reached through DLPack, and its results are made with
the `from_dlpack` of its array API namespace. No such library is ever imported here. Memory on the CPU is viewed through
NumPy, memory on CUDA through CuPy, which orders the streams of the two libraries.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from .. import _cuda
from .places import DeviceError, is_cupy, to_host

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Types that never need conversion. Tested first because the test is cheap.
_NATIVE_TYPES = {np.ndarray, type(None), bool, int, float, str, list, tuple}
_DL_CPU, _DL_CUDA, _DL_CUDA_HOST = 1, 2, 3  # device types of DLPack


def is_tensor(x: Any) -> bool:
    """Whether x is a PyTorch tensor, without importing PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_foreign(x: Any) -> bool:
    """Whether x is an array of a library other than NumPy and CuPy."""
    kind = type(x)
    if kind in _NATIVE_TYPES or isinstance(x, np.ndarray | np.generic):
        return False
    return is_tensor(x) or (hasattr(kind, "__dlpack__") and not is_cupy(x))


def as_native(x: Any, name: str) -> Any:
    """A NumPy or CuPy array on the memory of another library's array; anything else unchanged."""
    if not is_foreign(x):
        return x
    return _from_tensor(x, name) if is_tensor(x) else _from_dlpack(x, name)


def _require_cupy(name: str) -> Any:
    try:
        return _cuda.require(None)
    except _cuda.Unavailable as error:
        raise DeviceError(f"{name} is on a CUDA device, which cannot be used: {error}") from None


def _from_dlpack(x: Any, name: str) -> Any:
    what = f"{name} is a {type(x).__module__}.{type(x).__name__}"
    try:
        kind = int(x.__dlpack_device__()[0])
    except Exception as error:  # arrays without memory, such as JAX's tracers: each library raises its own errors
        hint = "; inside jax.jit use csoftmax.jax" if "jax" in sys.modules else ""
        raise TypeError(f"{what} whose memory cannot be accessed: {error}{hint}") from error
    if kind == _DL_CUDA:
        return _require_cupy(name).from_dlpack(x)
    if kind not in (_DL_CPU, _DL_CUDA_HOST):
        raise TypeError(f"{name} is on a device of DLPack kind {kind}; accepted are the CPU (1) and CUDA (2)")
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError) as error:  # not every NumPy accepts bfloat16 through DLPack
        a = np.asarray(x)
        if name == "out" or a.dtype == object:  # asarray may have made a copy
            raise TypeError(f"{what} that NumPy cannot import through DLPack: {error}") from error
        return a


def _from_tensor(x: Any, name: str) -> Any:
    torch = sys.modules["torch"]
    if x.requires_grad:
        raise ValueError(f"{name} requires grad, which is not recorded: use csoftmax.torch, or pass {name}.detach()")
    if x.layout != torch.strided or x.is_quantized or x.is_neg():
        raise TypeError(f"{name} must be an ordinary strided tensor, got layout {x.layout}, dtype {x.dtype}")
    is_bfloat16 = x.dtype == torch.bfloat16
    if is_bfloat16:  # neither NumPy nor every DLPack supports it, so its bits are passed
        x = x.view(torch.int16)
    if x.device.type == "cpu":
        a = x.numpy()
    elif x.device.type == "cuda":
        a = _require_cupy(name).from_dlpack(x)
    else:
        raise TypeError(f"{name} is on the device {x.device}; tensors on cpu and cuda are accepted")
    if is_bfloat16:
        import ml_dtypes

        a = a.view(ml_dtypes.bfloat16)
    return a


def _to_library_of(like: Any, a: Any) -> Any:
    """A result as an array of the library of `like`; a scalar becomes an array without axes."""
    if is_tensor(like):
        return _to_tensor(a)
    if not hasattr(like, "__array_namespace__"):
        return a
    library = like.__array_namespace__()
    if isinstance(a, np.generic) or a.dtype.name == "bfloat16":
        return library.asarray(np.asarray(*to_host(a)))
    try:
        return library.from_dlpack(a)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return library.asarray(a)


def _to_tensor(a: Any) -> Any:
    torch = sys.modules["torch"]
    is_bfloat16 = a.dtype.name == "bfloat16"
    if is_bfloat16:
        a = np.asarray(a) if isinstance(a, np.generic) else a
        a = a.view(np.int16)
    t = torch.from_dlpack(a) if is_cupy(a) else torch.from_numpy(np.asarray(a))
    return t.view(torch.bfloat16) if is_bfloat16 else t


def _after_writing(out: Any) -> Any:
    """The caller's `out`; on CUDA, PyTorch's stream is made to wait for ours, which PyTorch does not know."""
    if is_tensor(out) and out.device.type == "cuda":
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(out.device.index):
            stream = sys.modules["torch"].cuda.current_stream(out.device).cuda_stream
            cupy.cuda.ExternalStream(stream).wait_event(cupy.cuda.get_current_stream().record())
    return out


def accept_foreign(function: _Function) -> _Function:
    """Let a function accept arrays of other libraries; results become arrays of the library of its first array."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def with_foreign(*arguments: Any, **options: Any) -> Any:
        if all(type(a) in _NATIVE_TYPES for a in arguments) and all(type(a) in _NATIVE_TYPES for a in options.values()):
            return function(*arguments, **options)
        given = {}  # foreign arrays, by the identity of the arrays they became

        def convert(name: str, x: Any) -> Any:
            if name == "out" and isinstance(x, tuple):
                return tuple(convert(name, a) for a in x)
            a = as_native(x, name)
            if a is not x:
                given[id(a)] = x, a
            return a

        first = arguments[0]
        native = [convert(name, a) for name, a in zip(names, arguments)]
        options = {name: convert(name, x) for name, x in options.items()}
        result = function(*native, **options)
        if not is_foreign(first) and "out" not in options:
            return result
        unchanged = {id(x) for x in (*native, *options.values())}

        def give_back(a: Any) -> Any:
            if id(a) in given:  # the caller's out
                return _after_writing(given[id(a)][0])
            return a if a is None or id(a) in unchanged or not is_foreign(first) else _to_library_of(first, a)

        return tuple(map(give_back, result)) if isinstance(result, tuple) else give_back(result)

    return cast(_Function, with_foreign)
