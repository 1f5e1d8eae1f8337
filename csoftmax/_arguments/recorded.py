"""Calls that another module takes: csoftmax.torch or csoftmax.jax if they are recorded, csoftmax.dask if they are lazy.

These modules stand above this layer and import their libraries, so that they are found by name, and only when an
argument is a tensor that requires grad while PyTorch records, a tensor inside of torch.func, a tracer of JAX, or a
collection of Dask.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from .foreign import has_tangent, is_lazy_array, is_lazy_frame, is_recorded, is_tensor
from .kinds import OUTSIDE_OF_TRACES, is_dask, refuse_kind
from .negatives import Negatives
from .numbers import check_integer
from .places import as_array

_Function = TypeVar("_Function", bound=Callable[..., Any])


def hand_over_recorded(function: _Function) -> _Function:
    """Let csoftmax.torch or csoftmax.jax compute a call of a public function if its gradient or trace is recorded.

    Let csoftmax.dask compute it if an argument is a collection of Dask.
    """

    @functools.wraps(function)
    def with_recorded(*arguments: Any, **options: Any) -> Any:
        if "torch" in sys.modules or "jax" in sys.modules:
            for x in (*arguments, *options.values()):
                if library := is_recorded(x):
                    return _hand_over(function, library, arguments, options)
        if "dask" in sys.modules and any(map(is_dask, (*arguments, *options.values()))):
            return _hand_over_lazy(function, arguments, options)
        return function(*arguments, **options)

    return cast(_Function, with_recorded)


def _bind(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name."""
    try:
        return inspect.signature(function).bind(*arguments, **options).arguments
    except TypeError as error:
        raise TypeError(f"{function.__name__}(): {error}") from None


def _hand_over_lazy(function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    name = function.__name__
    bound = _bind(function, arguments, options)
    lazy = {key: x for key, x in bound.items() if is_dask(x)}
    kinds = {key: x for key, x in lazy.items() if not (is_lazy_array(x) or is_lazy_frame(x))}
    functions = importlib.import_module("csoftmax.dask") if not kinds else None
    if functions is None or name not in functions.__all__:
        try:
            refuse_kind(*next(iter((kinds or lazy).items())))
        except TypeError as error:
            raise TypeError(f"{name}() takes no such collection of Dask: {error}") from None
    if bound.pop("out", None) is not None:
        raise TypeError(f"out is not allowed in {name}() of a collection of Dask: its result is a new one")
    return getattr(functions, name)(**bound)


def describe_recorded(name: str, x: Any, library: str) -> tuple[str, str]:
    """Say which argument is recorded, and how to call the function without a record."""
    if library == "jax":
        return f"{name} is a tracer of JAX", OUTSIDE_OF_TRACES
    if x.requires_grad:
        return f"{name} requires grad", f"pass {name}.detach()"
    if has_tangent(x):
        return f"{name} has a tangent of forward mode", f"pass {name}.detach()"
    return f"{name} is a tensor inside of torch.func", "call it outside"


def _hand_over(function: Any, library: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    signature = inspect.signature(function)
    name, module = function.__name__, f"csoftmax.{library}"
    bound = _bind(function, arguments, options)
    first = next(key for key, x in bound.items() if is_recorded(x))
    what, remedy = describe_recorded(first, bound[first], library)
    functions = importlib.import_module(module)
    if name not in functions.__all__:
        raise ValueError(f"{what}, and {module} has no {name}: {remedy}")
    allowed = inspect.signature(getattr(functions, name)).parameters
    others = next((p for p in allowed.values() if p.kind is inspect.Parameter.VAR_KEYWORD), None)  # its **options
    by_place = iter(allowed.values())
    required, keywords = [], {}
    for key, x in bound.items():
        default = signature.parameters[key].default
        to = "dim" if key == "axis" and library == "torch" else key
        place = allowed.get(to, others)
        if default is inspect.Parameter.empty:  # whatever its name is there
            required.append(_convert(key, x, next(by_place), bound[first], library))
        elif place is not None:
            x = x[0] if key == "axis" and isinstance(x, tuple) and len(x) == 1 else x
            if key == "axis" and (x is None or isinstance(x, tuple)):
                raise ValueError(f"{what}, and {module}.{name} takes one axis, not {x}: {remedy}")
            keywords[to] = check_integer(key, x) if key == "axis" else x
            keywords[to] = _convert(key, keywords[to], place, bound[first], library)
        elif not (x is default or (isinstance(x, bool | int | float | str) and x == default)):
            raise ValueError(f"{what}, and {module}.{name} has no option {key}: call it without, or {remedy}")
    return getattr(functions, name)(*required, **keywords)


def _ndim(x: Any) -> int:
    return x.ndim if hasattr(x, "ndim") else np.ndim(x)


def _convert(name: str, x: Any, parameter: inspect.Parameter, recorded: Any, library: str) -> Any:
    """What csoftmax takes as any array and csoftmax.torch as a tensor, as one on the device of the recorded tensor."""
    kind = str(parameter.annotation)
    if library != "torch" or x is None or is_tensor(x) or isinstance(x, Negatives) or "Tensor" not in kind:
        return x
    if "float" in kind and not _ndim(x):
        return x
    torch = sys.modules["torch"]
    a = as_array(name, x)
    return torch.from_numpy(np.array(a, a.dtype.newbyteorder("="), order="C")).to(recorded.device)
