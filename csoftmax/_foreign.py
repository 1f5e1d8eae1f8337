"""Arrays of other libraries: taken as the memory that they are, without copies, and results given back as theirs.

PyTorch's tensors, and whatever has DLPack (JAX and others): an array whose library follows the array API standard gets
results from that library's `from_dlpack`.  No such library is ever imported here.  Memory on the CPU is seen through
NumPy, on CUDA through CuPy, which orders the two libraries' streams.
"""

import functools
import inspect
import sys

import numpy as np

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
    return is_tensor(x) or (hasattr(kind, "__dlpack__") and kind.__module__.partition(".")[0] != "cupy")


def native(x, name="an array"):
    """An array of NumPy's or CuPy's on the memory of another library's; anything else as it is."""
    if not is_foreign(x):
        return x
    return _of_tensor(x, name) if is_tensor(x) else _of_dlpack(x, name)


def _of_dlpack(x, name):
    kind = int(x.__dlpack_device__()[0])
    if kind == _DL_CUDA:
        import cupy

        return cupy.from_dlpack(x)
    if kind not in (_DL_CPU, _DL_CUDA_HOST):
        raise TypeError(f"{name} is on a device of DLPack's kind {kind}; arrays on the CPU (1) and CUDA (2) are taken")
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError, TypeError):  # bfloat16, or a bool: not every NumPy takes them this way
        return np.asarray(x)


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
        import cupy

        a = cupy.from_dlpack(x)
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
        return library.asarray(np.asarray(a))
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
    t = torch.from_numpy(np.asarray(a)) if isinstance(a, np.ndarray | np.generic) else torch.from_dlpack(a)
    return t.view(torch.bfloat16) if half else t


def takes_foreign(function):
    """`function` with other libraries' arrays among its arguments; results are of the library of its first array."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def with_foreign(*arguments, **options):
        if all(type(a) in _OWN for a in arguments) and all(type(a) in _OWN for a in options.values()):
            return function(*arguments, **options)
        given = {}  # the others' arrays, by the arrays that they have become

        def converted(name, x):
            a = native(x, name)
            if a is not x:
                given[id(a)] = x, a
            return a

        first = next((a for a in arguments if not isinstance(a, str)), None)
        arguments = [converted(name, a) for name, a in zip(names, arguments)]
        options = {name: converted(name, x) for name, x in options.items()}
        result = function(*arguments, **options)
        if not is_foreign(first):
            return result

        def back(a):
            if a is None:
                return None
            return given[id(a)][0] if id(a) in given else _back(a, first)  # the caller's out is that very array

        return tuple(map(back, result)) if isinstance(result, tuple) else back(result)

    return with_foreign


def running(make_plan):
    """make_plan(...).run(), other libraries' arrays taken."""

    @functools.wraps(make_plan)
    def run(*arguments, **options):
        return make_plan(*arguments, **options).run()

    return takes_foreign(run)
