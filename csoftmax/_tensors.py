"""Tensors of PyTorch: taken as the arrays that they are, without copies, and results given back as tensors.

PyTorch is never imported here: where nobody has, there are no tensors.  On the CPU a tensor's memory is seen through
NumPy, on CUDA through CuPy and DLPack, which orders the two libraries' streams.
"""

import functools
import inspect
import sys

import numpy as np


def is_tensor(x):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def array_of(x, name="a tensor"):
    """The array of NumPy's or CuPy's that shares the tensor's memory."""
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


def tensor_of(a):
    """The tensor that shares the memory of a result; a scalar becomes one with no axes."""
    torch = sys.modules["torch"]
    half = a.dtype.name == "bfloat16"
    if half:
        a = np.asarray(a) if isinstance(a, np.generic) else a
        a = a.view(np.int16)
    t = torch.from_numpy(np.asarray(a)) if isinstance(a, np.ndarray | np.generic) else torch.from_dlpack(a)
    return t.view(torch.bfloat16) if half else t


def takes_tensors(function):
    """`function` with tensors wherever they stand among its arguments; tensors come back if its first array is one."""
    names = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def with_tensors(*arguments, **options):
        if "torch" not in sys.modules:
            return function(*arguments, **options)
        given = {}  # the tensors, by the arrays that they have become

        def converted(name, x):
            if not is_tensor(x):
                return x
            a = array_of(x, name)
            given[id(a)] = x, a
            return a

        first = next((a for a in arguments if not isinstance(a, str)), None)
        arguments = [converted(name, a) for name, a in zip(names, arguments)]
        options = {name: converted(name, x) for name, x in options.items()}
        result = function(*arguments, **options)
        if not is_tensor(first):
            return result

        def back(a):
            if a is None:
                return None
            return given[id(a)][0] if id(a) in given else tensor_of(a)  # the caller's out is that very tensor

        return tuple(map(back, result)) if isinstance(result, tuple) else back(result)

    return with_tensors


def running(make_plan):
    """make_plan(...).run(), tensors taken."""

    @functools.wraps(make_plan)
    def run(*arguments, **options):
        return make_plan(*arguments, **options).run()

    return takes_tensors(run)
