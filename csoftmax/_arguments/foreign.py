"""Arrays of other libraries: read and written in place, without copies; results become arrays of their library.

PyTorch tensors are recognised by name; every other library is reached through DLPack, and its results are made with
the `from_dlpack` of its array API namespace. No such library is ever imported here. Memory on the CPU is viewed through
NumPy, memory on CUDA through CuPy, which orders the streams of the two libraries.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from .. import _cuda
from .kinds import is_tracer, refuse_tracer, tuple_like
from .places import DeviceError, is_cupy, to_host

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Types that never need conversion. Tested first because the test is cheap.
_NATIVE_TYPES = {np.ndarray, type(None), bool, int, float, str, list, tuple}
_DL_CPU, _DL_CUDA, _DL_CUDA_HOST = 1, 2, 3  # device types of DLPack


def is_tensor(x: Any) -> bool:
    """Whether x is a PyTorch tensor, without importing PyTorch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_lazy_array(x: Any) -> bool:
    """Whether x is an array of Dask, without importing Dask."""
    arrays = sys.modules.get("dask.array")
    return arrays is not None and hasattr(arrays, "Array") and isinstance(x, arrays.Array)


def is_lazy_frame(x: Any) -> bool:
    """Whether x is a DataFrame or Series of Dask."""
    return hasattr(type(x), "__dask_graph__") and all(
        hasattr(type(x), name) for name in ("to_dask_array", "map_partitions")
    )


def is_foreign(x: Any) -> bool:
    """Whether x is an array of a library other than NumPy and CuPy."""
    kind = type(x)
    if kind in _NATIVE_TYPES or isinstance(x, np.ndarray | np.generic):
        return False
    if (
        kind.__module__.partition(".")[0] == "pyarrow"
    ):  # its DLPack refuses columns with nulls, which NumPy reads as NaN
        return False
    return is_tensor(x) or (hasattr(kind, "__dlpack__") and not is_cupy(x))


def is_recorded(x: Any) -> str | None:
    """The library that records what happens to x: "torch" for a tensor's gradient, "jax" for a tracer; else None."""
    if type(x) in _NATIVE_TYPES:
        return None
    if is_tensor(x):
        return "torch" if _is_recorded_tensor(x) else None
    return "jax" if is_tracer(x) else None


def _is_recorded_tensor(x: Any) -> bool:
    torch = sys.modules["torch"]
    return (x.requires_grad and torch.is_grad_enabled()) or is_of_torch_func(x) or has_tangent(x)


def is_of_torch_func(x: Any) -> bool:
    """Whether a tensor stands for the elements of another one inside torch.func, such as in torch.func.vmap."""
    torch = sys.modules["torch"]
    if torch.compiler.is_compiling():
        return False
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(x))


def has_tangent(x: Any) -> bool:
    """Whether a tensor is a dual number of forward mode."""
    torch = sys.modules["torch"]
    forward_ad = torch.autograd.forward_ad
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(x).tangent is not None


def as_native(x: Any, name: str) -> Any:
    """A NumPy or CuPy array on the memory of another library's array; anything else unchanged."""
    if not is_foreign(x):
        return x
    refuse_tracer(name, x)
    return _from_tensor(x, name) if is_tensor(x) else _from_dlpack(x, name)


def _require_cupy(name: str) -> Any:
    try:
        return _cuda.require(None)
    except _cuda.Unavailable as error:
        raise DeviceError(f"{name} is on a CUDA device, which cannot be used: {error}") from None


def _describe_without_memory(x: Any, error: Exception) -> str:
    """Describe an array whose memory cannot be accessed, and the remedy; error: the one that its library raised."""
    kind = f"{type(x).__module__}.{type(x).__name__}"
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(x, jax.Array):
        return f"a {kind} whose memory cannot be accessed: {error}"
    if x.is_deleted():
        return (
            "a jax.Array that has been deleted: by its delete(), or because a compiled function took it as a donation"
        )
    devices = len(x.devices())
    if devices > 1:
        spread = "replicated on" if x.is_fully_replicated else "sharded over"
        return (
            f"a jax.Array {spread} {devices} devices, and must lie on one: gather it with jax.device_put, or compute "
            "each shard with csoftmax.jax in jax.shard_map"
        )
    return f"a jax.Array whose memory cannot be accessed: {error}"


def _from_dlpack(x: Any, name: str) -> Any:
    what = f"{name} is a {type(x).__module__}.{type(x).__name__}"
    try:
        kind = int(x.__dlpack_device__()[0])
    except Exception as error:  # arrays without memory: each library raises its own errors
        raise TypeError(f"{name} is {_describe_without_memory(x, error)}") from error
    if kind == _DL_CUDA:
        return _require_cupy(name).from_dlpack(x)
    if kind not in (_DL_CPU, _DL_CUDA_HOST):
        raise TypeError(f"{name} is on a device of DLPack kind {kind}; accepted are the CPU (1) and CUDA (2)")
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError) as error:  # not every NumPy accepts bfloat16 through DLPack
        try:
            a = np.asarray(x)
        except (BufferError, RuntimeError, TypeError):
            raise TypeError(f"{what} that NumPy cannot import through DLPack: {error}") from error
        if name == "out" or a.dtype == object:  # asarray may have made a copy
            raise TypeError(f"{what} that NumPy cannot import through DLPack: {error}") from error
        return a


def _bfloat16(name: str) -> Any:
    """NumPy's bfloat16, which PyTorch does not need, so that it may be missing."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError(
            f"{name} is a bfloat16 tensor, and NumPy's bfloat16 is that of ml_dtypes, which cannot be imported "
            f"({error}); install it with: pip install ml_dtypes"
        ) from error
    return ml_dtypes.bfloat16


def _as_ordinary(x: Any, name: str) -> Any:
    """A tensor whose memory holds its elements; a copy where it holds their negatives, conjugates, or nothing."""
    torch = sys.modules["torch"]
    if x.layout != torch.strided or x.is_quantized or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"layout {x.layout}, dtype {x.dtype}"
        raise TypeError(f"{name} must be an ordinary strided tensor, got {kind}")
    if not (x.is_neg() or x.is_conj() or x._is_zerotensor()):
        return x
    if name == "out":
        bit = "negative" if x.is_neg() else "conjugate" if x.is_conj() else "zero"
        raise TypeError(
            f"out is a tensor with the {bit} bit, whose memory does not hold its elements: pass an ordinary one, such "
            "as out.resolve_neg().resolve_conj().clone()"
        )
    return x.clone() if x._is_zerotensor() else x.resolve_conj().resolve_neg()


def _from_tensor(x: Any, name: str) -> Any:
    torch = sys.modules["torch"]
    if x.requires_grad:
        if torch.is_grad_enabled():
            raise ValueError(f"{name} requires grad, which is not recorded here: pass {name}.detach()")
        x = x.detach()
    if has_tangent(x):
        raise ValueError(f"{name} has a tangent of forward mode, which is not passed on here: pass {name}.detach()")
    x = _as_ordinary(x, name)
    bfloat16 = _bfloat16(name) if x.dtype == torch.bfloat16 else None
    if bfloat16 is not None:  # neither NumPy nor every DLPack supports it, so its bits are passed
        x = x.view(torch.int16)
    device = x.device.type
    if device == "cuda":
        a = _require_cupy(name).from_dlpack(x)
    elif device != "cpu":
        raise TypeError(f"{name} is on the device {x.device}; tensors on cpu and cuda are accepted")
    else:
        try:
            a = x.numpy()
        except TypeError as error:
            raise TypeError(f"{name} has dtype {x.dtype}, which NumPy lacks: {error}") from error
        except RuntimeError as error:  # no memory: inside torch.func and torch.compile
            raise TypeError(
                f"{name} is a tensor whose memory cannot be accessed: {error}; inside torch.func.vmap and "
                "torch.compile the functions of csoftmax.torch work, with gradients by autograd, not in forward mode"
            ) from error
    return a if bfloat16 is None else a.view(bfloat16)


def _device_of(x: Any) -> Any:
    """The device of an array as its library names it, or None."""
    if not hasattr(x, "devices"):
        return getattr(x, "device", None)
    (device,) = x.devices()  # of JAX, whose x.device may be a mesh of one device
    return device


def _is_committed(x: Any) -> bool:
    """Whether its library ties an array to its device. Some of JAX's arrays go where the others of a call are."""
    return bool(getattr(x, "committed", True))


def _check_same_device(name: str, x: Any, first: Any) -> None:
    """Refuse an array of the library of `first` that is tied to another of its devices."""
    if x is first or type(x) is not type(first) or is_tensor(x) or not _is_committed(x):
        return
    here, there = _device_of(first), _device_of(x)
    if here != there:
        raise DeviceError(
            f'{name} is on the device {there}, the first argument on {here}: move it there, or pass device="cpu"'
        )


def _to_library_of(like: Any, a: Any) -> Any:
    """A result as an array of the library of `like`, on its device; a scalar becomes an array without axes."""
    if is_tensor(like):
        return _to_tensor(a)
    if not hasattr(like, "__array_namespace__"):
        return a
    library = like.__array_namespace__()
    on_cuda = hasattr(like, "__dlpack_device__") and int(like.__dlpack_device__()[0]) == _DL_CUDA
    without_dlpack = isinstance(a, np.generic) or a.dtype.name == "bfloat16"
    # A result that device= has moved to another kind of device stays where it is, and CuPy's are where they should be.
    device = _device_of(like) if on_cuda == is_cupy(a) and (without_dlpack or not on_cuda) else None
    a = np.asarray(*to_host(a)) if without_dlpack else a
    if device is not None and hasattr(like, "committed"):
        jax = sys.modules["jax"]
        if jax.device_count(device.platform) == 1:
            device = None  # whether an array is tied to its device has no effect
        elif not like.committed:
            with jax.default_device(device):
                return jax.device_put(a)
    options = {} if device is None else {"device": device}
    errors = AttributeError, BufferError, RuntimeError, TypeError, ValueError
    if not without_dlpack:
        with contextlib.suppress(*errors):
            return library.from_dlpack(a, **options)
    try:
        return library.asarray(a, **options)
    except errors:  # of a device without numbers of 8 bytes; JAX has 4 by itself unless 8 are switched on
        if a.dtype.kind not in "if" or a.dtype.itemsize != 8:
            raise
    return library.asarray(a.astype(f"{a.dtype.kind}4"), **options)


def _to_tensor(a: Any) -> Any:
    torch = sys.modules["torch"]
    is_bfloat16 = a.dtype.name == "bfloat16"
    if is_bfloat16:
        a = np.asarray(a) if isinstance(a, np.generic) else a
        a = a.view(np.int16)
    t = torch.from_dlpack(a) if is_cupy(a) else torch.from_numpy(np.asarray(a))
    return t.view(torch.bfloat16) if is_bfloat16 else t


def tell_written(x: Any) -> None:
    """Tell autograd that a tensor has been changed: it refuses gradients that need the elements it had before."""
    if is_tensor(x) and not x.is_inference():
        sys.modules["torch"].autograd.graph.increment_version(x)


def _after_writing(out: Any) -> Any:
    """The caller's `out`; on CUDA, PyTorch's stream is made to wait for ours, which PyTorch does not know."""
    tell_written(out)
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
        # the elements of tuples, among them Negatives, are read by the functions that take them
        if all(type(a) in _NATIVE_TYPES or isinstance(a, tuple) for a in (*arguments, *options.values())):
            return function(*arguments, **options)
        given = {}  # foreign arrays, by the identity of the arrays they became

        def convert(name: str, x: Any) -> Any:
            if name == "out" and isinstance(x, tuple):
                return tuple(convert(name, a) for a in x)
            a = as_native(x, name)
            if a is not x:
                given[id(a)] = x, a
                if options.get("device") is None:
                    _check_same_device(name, x, first)
            return a

        first = arguments[0]
        native = [convert(name, a) for name, a in zip(names, arguments)]
        converted = {name: convert(name, x) for name, x in options.items()}
        result = function(*native, **converted)
        if not is_foreign(first) and "out" not in converted:
            return result
        unchanged = {id(x) for x in (*native, *converted.values())}

        def give_back(a: Any) -> Any:
            if id(a) in given:  # the caller's out
                return _after_writing(given[id(a)][0])
            return a if a is None or id(a) in unchanged or not is_foreign(first) else _to_library_of(first, a)

        return tuple_like(result, map(give_back, result)) if isinstance(result, tuple) else give_back(result)

    return cast(_Function, with_foreign)


def give_like(like: Any, a: Any) -> Any:
    """An array of the library of `like`, for a function of the caller's."""
    return _to_library_of(like, a)


def narrows_results(like: Any) -> bool:
    """Whether float64 results become float32 in the library of `like`, as in JAX unless 8 bytes are switched on."""
    return is_foreign(like) and as_native(_to_library_of(like, np.zeros(1)), "x").dtype == np.float32
