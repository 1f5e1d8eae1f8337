"""softmax, log_softmax, logsumexp and gradients of rows in any chunks, and functions that need whole rows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from .._arguments.numbers import check_flag
from .._distributed.finish import as_scalar_or_rows, sum_up_rows, write_rows, write_vjp
from .._distributed.merged import Merged
from .._distributed.rows import place_result
from .._distributed.shard import Partial, Piece, Terms, plan_partial
from .blocks import check_split_every
from .calls import Call, call_chunks, plan_call, try_out
from .collections import give_frame
from .shards import Sums, sum_up, whole_sums

_KINDS = {"softmax": "softmax", "log_softmax": "log", "logsumexp": "log"}


def sums_of(call: Call, kind: str, split_every: int) -> Sums:
    """The sums of rows whose classes are in several chunks."""
    (axis,) = call.axes
    shared = {"kind": kind, "axis": axis, "n_classes": call.x.shape[axis]}
    shared |= {"temperature": call.options["temperature"]} if "temperature" in call.options else {}
    plan = functools.partial(_plan, call.names, shared)
    num_threads = call.options["num_threads"] or 1
    return sum_up(plan, call.x, axis, call.others, num_threads=num_threads, split_every=split_every)


def _plan(names: tuple[str, ...], shared: dict[str, Any], x: Any, first: int, *others: Any) -> tuple[Terms, Piece]:
    return plan_partial(x, offset=first, **shared, **dict(zip(names, others, strict=True)))


def run_rows(
    function: Callable[..., Any],
    x: Any,
    axis: Any,
    arrays: dict[str, Any],
    options: dict[str, Any],
    split_every: Any,
    first: str = "x",
) -> Any:
    """A function whose result has the shape of x."""
    arity, name = check_split_every(split_every), function.__name__
    call = plan_call(function, first, x, axis, arrays, options, divides=arrays.get("sink") is None)
    dtype = np.asarray(try_out(call)).dtype
    if not call.is_divided:
        return give_frame(x, call_chunks(call, dtype))
    call = call._replace(
        names=tuple(n for n in call.names if n != "sink"),
        options={k: v for k, v in call.options.items() if k != "sink"},
    )
    sums = sums_of(call, _KINDS.get(name, name), arity)
    write = functools.partial(_write, name, call.axes[0], options["num_threads"] or 1)
    return give_frame(x, sums.finish(write, dtype=dtype, like=call.x))


def _write(name: str, axis: int, num_threads: Any, terms: Terms, piece: Piece, part: Partial, merged: Merged) -> Any:
    result, rows = place_result(terms, piece, axis, None)
    if piece.y is not None:
        write_vjp(part, merged, piece.x, piece.y, rows, where=piece.where, num_threads=num_threads)
    else:
        write_rows(name, part, merged, piece.x, rows, where=piece.where, num_threads=num_threads)
    return result


def run_logsumexp(
    function: Callable[..., Any],
    x: Any,
    axis: Any,
    arrays: dict[str, Any],
    options: dict[str, Any],
    split_every: Any,
) -> Any:
    """logsumexp; arrays: b, sink, temperature and where; options: return_sign, keepdims and others."""
    arity = check_split_every(split_every)
    keepdims = check_flag("keepdims", options.pop("keepdims"))
    signs = check_flag("return_sign", options["return_sign"])
    is_plain = arrays["b"] is None and arrays["sink"] is None and not signs
    call = plan_call(function, "x", x, axis, arrays, options, divides=is_plain)
    tried = try_out(call)
    dtype = np.asarray(tried[0] if signs else tried).dtype
    if not call.is_divided:
        results = call_chunks(call, dtype, keepdims=keepdims, counts=2 if signs else None)
        return tuple(give_frame(x, a) for a in results) if signs else give_frame(x, results)
    sums = sums_of(call, "log", arity)
    result = sums.finish_rows(_finish_logsumexp, dtype=dtype)
    return np.expand_dims(result, call.axes[0]) if keepdims else give_frame(x, result)


def _finish_logsumexp(merged: Partial) -> Any:
    return as_scalar_or_rows(merged.terms, sum_up_rows(merged, whole_sums(merged)))


def run_whole(
    function: Callable[..., Any],
    x: Any,
    axis: Any,
    arrays: dict[str, Any],
    options: dict[str, Any],
    keepdims: Any = None,
) -> Any:
    """A function of whole rows, whose classes are brought into one chunk."""
    keepdims = None if keepdims is None else check_flag("keepdims", keepdims)
    call = plan_call(function, "x", x, axis, arrays, options)
    return give_frame(x, call_chunks(call, np.asarray(try_out(call)).dtype, keepdims=keepdims))
