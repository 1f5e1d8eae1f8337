"""Calls that PyTorch or JAX records: the function of the same name in csoftmax.torch or csoftmax.jax takes them.

These modules stand above this layer and import their libraries, so that they are found by name, and only when an
argument is a tensor that requires grad while PyTorch records, or a tracer of JAX.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from .foreign import is_recorded

_Function = TypeVar("_Function", bound=Callable[..., Any])


def hand_over_recorded(function: _Function) -> _Function:
    """Let csoftmax.torch or csoftmax.jax compute a call of a public function if its gradient or trace is recorded."""

    @functools.wraps(function)
    def with_recorded(*arguments: Any, **options: Any) -> Any:
        if "torch" in sys.modules or "jax" in sys.modules:
            for x in (*arguments, *options.values()):
                if library := is_recorded(x):
                    return _hand_over(function, library, arguments, options)
        return function(*arguments, **options)

    return cast(_Function, with_recorded)


def _hand_over(function: Any, library: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
    signature = inspect.signature(function)
    bound = signature.bind(*arguments, **options).arguments
    name, module = function.__name__, f"csoftmax.{library}"
    first = next(key for key, x in bound.items() if is_recorded(x))
    what, remedy = {
        "torch": (f"{first} requires grad", f"pass {first}.detach()"),
        "jax": (f"{first} is a tracer of JAX", "call it outside of jax.jit, jax.grad and jax.vmap"),
    }[library]
    functions = importlib.import_module(module)
    if name not in functions.__all__:
        raise ValueError(f"{what}, and {module} has no {name}: {remedy}")
    allowed = inspect.signature(getattr(functions, name)).parameters
    required, keywords = [], {}
    for key, x in bound.items():
        default = signature.parameters[key].default
        to = "dim" if key == "axis" and library == "torch" else key
        if default is inspect.Parameter.empty:  # whatever its name is there
            required.append(x)
        elif to in allowed:
            if key == "axis" and (x is None or isinstance(x, tuple)):
                raise ValueError(f"{what}, and {module}.{name} takes one axis, not {x}: {remedy}")
            keywords[to] = operator.index(x) if key == "axis" else x
        elif not (x is default or (isinstance(x, bool | int | float | str) and x == default)):
            raise ValueError(f"{what}, and {module}.{name} has no option {key}: call it without, or {remedy}")
    return getattr(functions, name)(*required, **keywords)
