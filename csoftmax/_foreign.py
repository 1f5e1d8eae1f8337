"""Arrays of other libraries: taken as the memory that they are, without copies, and results given back as theirs.

PyTorch's tensors, and whatever has DLPack (JAX and others): an array whose library follows the array API standard gets
results from that library's `from_dlpack`.  No such library is ever imported here.  Memory on the CPU is seen through
NumPy, on CUDA through CuPy, which orders the two libraries' streams.
"""

import functools
import inspect
import sys

import numpy as np

from . import _cuda
from ._args import DeviceError, is_cupy, to_host

# Of arguments that are nobody else's array: looked up before anything else is.
_OWN = {np.ndarray, type(None), bool, int, float, str, list, tuple}
_DL_CPU, _DL_CUDA, _DL_CUDA_HOST = 1, 2, 3


def is_tensor(x):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def is_foreign(x):
    """Whether it is an array of another library than NumPy and CuPy."""
    kind = type(x)
    if kind in _OWN or isinstance(x, np.ndarray | np.generic):
        return False
    return is_tensor(x) or (hasattr(kind, "__dlpack__") and not is_cupy(x))


def native(x, name):
    """An array of NumPy's or CuPy's on the memory of another library's; anything else as it is."""
    if not is_foreign(x):
        return x
    return _of_tensor(x, name) if is_tensor(x) else _of_dlpack(x, name)


def _cupy(name):
    try:
        return _cuda.require(None)
    except _cuda.Unavailable as error:
        raise DeviceError(f"{name} is on a CUDA device, which cannot be used: {error}") from None


def _of_dlpack(x, name):
    what = f"{name} is a {type(x).__module__}.{type(x).__name__}"
    try:
        kind = int(x.__dlpack_device__()[0])
    except Exception as error:  # whatever the library raises where there is no memory to see, as while JAX traces
        hint = "; inside jax.jit use csoftmax.jax" if "jax" in sys.modules else ""
        raise TypeError(f"{what} without memory that can be seen: {error}{hint}") from error
    if kind == _DL_CUDA:
        return _cupy(name).from_dlpack(x)
    if kind not in (_DL_CPU, _DL_CUDA_HOST):
        raise TypeError(f"{name} is on a device of DLPack's kind {kind}; arrays on the CPU (1) and CUDA (2) are taken")
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError) as error:  # bfloat16: not every NumPy takes it this way
        a = np.asarray(x)
        if name == "out" or a.dtype == object:  # perhaps a copy
            raise TypeError(f"{what} that NumPy cannot take by DLPack: {error}") from error
        return a


def _of_tensor(x, name):
    torch = sys.modules["torch"]
    if x.requires_grad:
        raise ValueError(f"{name} requires grad, and this records none: csoftmax.torch does, or pass {name}.detach()")
    if x.layout != torch.strided or x.is_quantized or x.is_neg():
        raise TypeError(f"{name} must be an ordinary strided tensor, got layout {x.layout}, dtype {x.dtype}")
    half = x.dtype == torch.bfloat16
    if half:  # NumPy and DLPack do not know it: its bits
        x = x.view(torch.int16)
    if x.device.type == "cpu":
        a = x.numpy()
    elif x.device.type == "cuda":
        a = _cupy(name).from_dlpack(x)
    else:
        raise TypeError(f"{name} is on the device {x.device}; tensors on cpu and cuda are taken")
    if half:
        import ml_dtypes

        a = a.view(ml_dtypes.bfloat16)
    return a


def _back(a, like):
    """A result as an array of the library of `like`; a scalar becomes one with no axes."""
    if is_tensor(like):
        return _tensor(a)
    if not hasattr(like, "__array_namespace__"):
        return a
    library = like.__array_namespace__()
    if isinstance(a, np.generic) or a.dtype.name == "bfloat16":
        return library.asarray(np.asarray(*to_host(a)))
    try:
        return library.from_dlpack(a)
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return library.asarray(a)


def _tensor(a):
    torch = sys.modules["torch"]
    half = a.dtype.name == "bfloat16"
    if half:
        a = np.asarray(a) if isinstance(a, np.generic) else a
        a = a.view(np.int16)
    t = torch.from_dlpack(a) if is_cupy(a) else torch.from_numpy(np.asarray(a))
    return t.view(torch.bfloat16) if half else t


def _written(out):
    """The caller's own array, whose library did not see that something is still being written to it."""
    if is_tensor(out) and out.device.type == "cuda":
        cupy = sys.modules["cupy"]
        with cupy.cuda.Device(out.device.index):
            theirs = sys.modules["torch"].cuda.current_stream(out.device).cuda_stream
            cupy.cuda.ExternalStream(theirs).wait_event(cupy.cuda.get_current_stream().record())
    return out


def takes_foreign(function):
    """`function` with other libraries' arrays among its arguments; results are of the library of its first array."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def with_foreign(*arguments, **options):
        if all(type(a) in _OWN for a in arguments) and all(type(a) in _OWN for a in options.values()):
            return function(*arguments, **options)
        given = {}  # the others' arrays, by the arrays that they have become

        def converted(name, x):
            if name == "out" and isinstance(x, tuple):
                return tuple(converted(name, a) for a in x)
            a = native(x, name)
            if a is not x:
                given[id(a)] = x, a
            return a

        first = next((a for a in arguments if not isinstance(a, str)), None)
        arguments = [converted(name, a) for name, a in zip(names, arguments)]
        options = {name: converted(name, x) for name, x in options.items()}
        result = function(*arguments, **options)
        if not is_foreign(first) and "out" not in options:
            return result
        own = {id(x) for x in (*arguments, *options.values())}

        def back(a):
            if id(a) in given:  # the caller's out
                return _written(given[id(a)][0])
            return a if a is None or id(a) in own or not is_foreign(first) else _back(a, first)

        return tuple(map(back, result)) if isinstance(result, tuple) else back(result)

    return with_foreign


def running(make_plan):
    """make_plan(...).run(), other libraries' arrays taken."""

    @functools.wraps(make_plan)
    def run(*arguments, **options):
        return make_plan(*arguments, **options).run()

    return takes_foreign(run)
