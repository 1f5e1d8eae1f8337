"""Methods of layers: results become arrays of the library of the features, as those of functions do."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from .foreign import as_native, give_like, is_foreign, is_recorded
from .kinds import label_like, tuple_like
from .recorded import describe_recorded

_Method = TypeVar("_Method", bound=Callable[..., Any])


def accept_foreign_features(method: _Method) -> _Method:
    """Let a method accept features of any library, its first argument; results become arrays of that library.

    A result in the field `grad_x`, or behind the loss in a plain tuple, keeps the labels of the features. Parameters
    and their gradients, in a dict, are NumPy arrays, whatever the features are. Results without axes are scalars.
    """
    names = list(inspect.signature(method).parameters)[2:]

    @functools.wraps(method)
    def with_foreign(self: Any, x: Any, *arguments: Any, **options: Any) -> Any:
        if type(x) is np.ndarray or type(x) is list:
            return _as_scalars(method(self, x, *arguments, **options))
        if not is_foreign(x):
            return _map_results(method(self, x, *arguments, **options), x, _as_scalars)
        where = f"{type(self).__name__}.{method.__name__}"
        native = [_read(name, a, where) for name, a in zip(names, arguments)]
        converted = {name: _read(name, a, where) for name, a in options.items()}
        return _map_results(method(self, _read("x", x, where), *native, **converted), x, lambda a: give_like(x, a))

    return cast(_Method, with_foreign)


def _as_scalars(result: Any) -> Any:
    """The result with NumPy scalars in the place of arrays without axes."""
    if isinstance(result, tuple):
        if any(type(a) is np.ndarray and not a.ndim for a in result):
            return tuple_like(result, map(_as_scalars, result))
        return result
    return result[()] if type(result) is np.ndarray and not result.ndim else result


def _read(name: str, x: Any, where: str) -> Any:
    """An argument as an array of NumPy or CuPy; a record of a gradient or trace is refused."""
    if library := is_recorded(x):
        what, remedy = describe_recorded(name, x, library)
        raise ValueError(f"{what}, which {where} does not record: {remedy}")
    return as_native(x, name)


def _map_results(result: Any, x: Any, give: Callable[[Any], Any]) -> Any:
    """The results as arrays of a library."""
    if not isinstance(result, tuple):
        return give(result) if isinstance(result, np.ndarray | np.generic) else result
    fields = getattr(result, "_fields", ("loss", "grad_x"))
    given = [give(a) if isinstance(a, np.ndarray | np.generic) else a for a in result]
    labelled = [label_like(x, a) if name == "grad_x" else a for name, a in zip(fields, given, strict=True)]
    return tuple_like(result, labelled)
