"""Calls of csoftmax's functions on chunks of whole rows, and what they have in common with calls over shards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .._arguments.layouts import normalize_axes
from .._arguments.places import is_cupy
from .beside import OF_ROWS, kept_chunks, lay_beside, lay_rows_beside
from .blocks import Argument, map_chunks, pick
from .collections import Letters, align_classes, as_lazy, in_one_chunk, is_number, row_chunks


class Call(NamedTuple):
    """A call of a function of rows with lazy arrays."""

    function: Callable[..., Any]  # of csoftmax
    x: Any
    first: str  # the name of x
    axes: tuple[int, ...]
    names: tuple[str, ...]  # of the other arrays
    others: tuple[Argument, ...]
    options: dict[str, Any]  # all other arguments; the device as None

    @property
    def letters(self) -> Letters:
        """The axes of x."""
        return tuple(range(self.x.ndim))

    @property
    def is_divided(self) -> bool:
        """Whether the classes of a row are in several chunks."""
        return any(len(self.x.chunks[i]) > 1 for i in self.axes if self.x.ndim)


def plan_call(
    function: Callable[..., Any],
    first: str,
    x: Any,
    axis: Any,
    arrays: dict[str, Any],
    options: dict[str, Any],
    *,
    divides: bool = False,
    of_rows: Sequence[str] = (),
) -> Call:
    """Arrange a call.

    arrays : arguments that may be arrays; they broadcast to x, but for "y", which has its shape.
    divides : whether the function is known for classes in several chunks; else they are brought into one.
    of_rows : names of those that broadcast to the rows, without the class axis.
    """
    x = as_lazy(first, x)
    axes = normalize_axes(axis, x.ndim)
    classes = axes if x.ndim else ()
    if divides and len(classes) == 1 and not is_on_gpu(x, options.get("device")):
        x = align_classes(x, classes[0])
    else:
        x = in_one_chunk(x, classes)
    letters = tuple(range(x.ndim))
    rows, chunks = row_chunks(x, classes)
    names, others, numbers = [], [], {}
    for name, a in arrays.items():
        if a is None or is_number(a):
            numbers[name] = a
            continue
        names.append(name)
        if name in OF_ROWS:
            to = (rows, chunks) if name in of_rows else (letters, kept_chunks(x, classes))
            others.append(lay_rows_beside(name, a, *to, x, gradient=function.__name__.endswith("_vjp")))
            continue
        to = (rows, chunks) if name in of_rows else (letters, x.chunks)
        others.append(lay_beside(name, a, *to, broadcasts=name != "y", like=x))
    return Call(function, x, first, axes, tuple(names), tuple(others), {**options, **numbers, "axis": axis})


def is_on_gpu(x: Any, device: str | None) -> bool:
    """Whether a GPU computes the chunks."""
    return is_cupy(x._meta) if device is None else device != "cpu"


def try_out(call: Call, **more: Any) -> Any:
    """The result for arrays of length 1: its dtype is that of the call, and errors of arguments are raised early."""
    arrays = {name: np.ones((1,) * a.ndim, a.dtype) for name, (a, _) in zip(call.names, call.others, strict=True)}
    options = call.options | {"device": None} if "device" in call.options else call.options
    return call.function(np.ones((1,) * call.x.ndim, call.x.dtype), **arrays, **options, **more)


def call_chunk(call: Call, **more: Any) -> Callable[..., Any]:
    """The function for the chunks of x and of the other arrays; a task has one thread by default."""
    options = call.options | more
    if options.get("num_threads", 1) is None:
        options["num_threads"] = 1
    return functools.partial(_call, call.function, call.names, options)


def call_chunks(call: Call, dtype: Any, *, keepdims: bool | None = None, counts: int | None = None) -> Any:
    """The function of each chunk of whole rows.

    keepdims : whether the class axes stay with length 1; None: the result has the shape of x.
    counts : how many results there are, where the function returns a tuple.
    """
    function = call_chunk(call, **({} if keepdims is None else {"keepdims": keepdims}))
    classes = call.axes if call.x.ndim else ()
    letters = tuple(i for i in call.letters if keepdims is not False or i not in classes)
    ones = None if keepdims is not True else dict.fromkeys(classes, 1)
    arguments = [(call.x, call.letters), *call.others]
    if counts is None:
        return map_chunks(function, letters, arguments, dtype=dtype, like=call.x, chunks=ones)
    results = map_chunks(function, letters, arguments, dtype=object, chunks=ones)
    return tuple(pick((results, letters), i, letters, dtype=dtype, like=call.x) for i in range(counts))


def _call(
    function: Callable[..., Any], names: tuple[str, ...], options: dict[str, Any], x: Any, *others: Any, **more: Any
) -> Any:
    return function(x, **dict(zip(names, others, strict=True)), **options, **more)
