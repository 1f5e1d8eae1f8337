"""The k best classes of rows in any chunks: the best of each chunk, merged in a tree in the total order."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, SupportsIndex

import numpy as np

from .._arguments.layouts import check_where, masked
from .._arguments.numbers import check_choice, check_count
from .._arguments.places import as_float
from .._ops import softmax as softmaxes
from .._ops import topk as whole
from .._ops.topk import TopK
from .blocks import Argument, check_split_every, map_chunks, merge_chunks, pick
from .calls import Call, call_chunk, plan_call, try_out
from .collections import Begins
from .rows import run_rows

__all__ = ["topk", "topk_softmax"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None
_Best = tuple[Any, ...]  # values, their indices in the row, and further arrays with one element for each; or None


def _check_k(call: Call, k: Any) -> int:
    n = math.prod(call.x.shape[i] for i in call.axes) if call.x.ndim else 1
    count = check_count("k", k)
    if count > n:
        raise ValueError(f"k must be at most the length of the axis, {n}, got {count}")
    return count


def _give(call: Call, pairs: Argument, k: int, dtypes: tuple[Any, Any], new: bool) -> TopK:
    """Values and indices as two arrays; the axis of the k is that of the classes, or, of several axes, the last."""
    letters = _result_letters(call)
    at = letters[-1] if len(call.axes) > 1 else call.axes[0]
    layout: dict[str, Any] = {"new": {at: k}} if new else {"chunks": {at: (k,)}}
    return TopK(*(pick(pairs, i, letters, dtype=d, like=call.x, **layout) for i, d in enumerate(dtypes)))


def _result_letters(call: Call) -> tuple[int, ...]:
    if len(call.axes) == 1:
        return call.letters
    return (*(i for i in call.letters if i not in call.axes), call.axes[0])


def _run_whole(call: Call, k: int, dtypes: tuple[Any, Any]) -> TopK:
    letters = _result_letters(call)
    at = letters[-1] if len(call.axes) > 1 else call.axes[0]
    arguments = [(call.x, call.letters), *call.others]
    both = map_chunks(call_chunk(call, k=k), letters, arguments, dtype=object, chunks={at: (k,)})
    return _give(call, (both, letters), k, dtypes, False)


def _plan(function: Any, x: Any, k: Any, axis: Any, arrays: dict[str, Any], options: dict[str, Any]) -> Any:
    """The call, k, and the dtypes of the results."""
    call = plan_call(function, "x", x, axis, arrays, options, divides=True)
    if call.x.ndim == 0:
        call = plan_call(function, "x", call.x.reshape(1), 0, arrays, options)
    count = _check_k(call, k)
    tried = try_out(call, k=min(count, 1))
    return call, count, (tried.values.dtype, tried.indices.dtype)


def _merge(k: int, largest: bool, parts: list[_Best]) -> _Best:
    """The best k of the candidates of some chunks."""
    every: Any = [None if a[0] is None else np.concatenate(a, axis=-1) for a in zip(*parts, strict=True)]
    order = np.argsort(every[1], axis=-1)
    values = np.take_along_axis(every[0], order, -1)
    best = whole.topk(values, min(k, values.shape[-1]), largest=largest).indices
    chosen = np.take_along_axis(order, np.sort(best, axis=-1), -1)
    return tuple(None if a is None else np.take_along_axis(a, chosen, -1) for a in every)


def topk(
    x: Any,
    k: SupportsIndex,
    axis: _Axis = -1,
    *,
    largest: bool = True,
    sorted: bool = True,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> TopK:
    """The k largest (or smallest) elements of a Dask array or dataframe along an axis, lazily.

    Parameters
    ----------
    x : as x in `softmax`
        In a dtype of `csoftmax.topk`.
    k, largest, sorted
        As in `csoftmax.topk`.
    axis, device, num_threads, split_every
        As in `softmax`.

    Returns
    -------
    TopK
        ``csoftmax.topk`` of the whole: `values` and `indices` are Dask arrays. Compute them together, with
        ``dask.compute(*result)``.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`, and for a k that is negative or greater than the number of classes.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> cd.topk(da.arange(100000, chunks=10000), 2).indices.compute()
    array([99999, 99998])
    """
    arity = check_split_every(split_every)
    options = {"largest": largest, "sorted": sorted, "device": device, "num_threads": num_threads}
    call, count, dtypes = _plan(whole.topk, x, k, axis, {}, options)
    if not call.is_divided:
        return _run_whole(call, count, dtypes)
    (at,) = call.axes
    begins = Begins(call.x.chunks[at]), (at,)
    function = functools.partial(_choose, at, count, largest)
    best = map_chunks(function, call.letters, [(call.x, call.letters), begins], dtype=object, chunks={at: 1})
    merged = merge_chunks(functools.partial(_merge, count, largest), best, at, arity)
    rows = tuple(i for i in call.letters if i != at)
    pairs = map_chunks(functools.partial(_finish, at, count, largest), rows, [(merged, rows)], dtype=object)
    return _give(call, (pairs, rows), count, dtypes, True)


def _choose(axis: int, k: int, largest: bool, x: Any, first: Any) -> _Best:
    rows = np.moveaxis(x, axis, -1)
    values, indices = whole.topk(rows, min(k, rows.shape[-1]), largest=largest)
    return values, indices + first


def _finish(axis: int, k: int, largest: bool, best: _Best) -> tuple[Any, Any]:
    values, order = whole.topk(best[0], k, largest=largest)
    return np.moveaxis(values, -1, axis), np.moveaxis(np.take_along_axis(best[1], order, -1), -1, axis)


def topk_softmax(
    x: Any,
    k: SupportsIndex,
    axis: _Axis = -1,
    *,
    temperature: Any = 1.0,
    normalize: Literal["topk", "full"] = "topk",
    sorted: bool = True,
    where: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> TopK:
    """Softmax of the k largest elements of a Dask array or dataframe along an axis, lazily.

    Parameters
    ----------
    x, k, axis, sorted, device, num_threads, split_every
        As in `topk`.
    temperature, where
        As in `softmax`.
    normalize : {"topk", "full"}, default "topk"
        As in `csoftmax.topk_softmax`.

    Returns
    -------
    TopK
        ``csoftmax.topk_softmax`` of the whole, equal in every bit: `values` and `indices` are Dask arrays.

    Raises
    ------
    TypeError, ValueError
        As in `topk`.

    Notes
    -----
    With ``normalize="full"`` and the classes in several chunks, `softmax` is computed, and gathered from.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> x = da.zeros((1, 10000), chunks=(1, 5000))
    >>> cd.topk_softmax(x, 2, normalize="full").values.compute()
    array([[0.0001, 0.0001]])
    """
    arity = check_split_every(split_every)
    check_choice("normalize", normalize, ("topk", "full"))
    arrays = {"temperature": temperature, "where": where}
    options = {"normalize": normalize, "sorted": sorted, "device": device, "num_threads": num_threads}
    call, count, dtypes = _plan(whole.topk_softmax, x, k, axis, arrays, options)
    if not call.is_divided:
        return _run_whole(call, count, dtypes)
    (at,) = call.axes
    rows = tuple(i for i in call.letters if i != at)
    given = dict(zip(call.names, call.others, strict=True))
    names, arguments = ["x", "first"], [(call.x, call.letters), (Begins(call.x.chunks[at]), (at,))]
    if "where" in given:
        names.append("where")
        arguments.append(given["where"])
    if normalize == "full":
        more = {"device": None, "num_threads": num_threads}
        p = run_rows(softmaxes.softmax, call.x, at, arrays | {"sink": None}, more, arity)
        names.append("p")
        arguments.append((p, call.letters))
    function = functools.partial(_choose_masked, at, count, tuple(names))
    best = map_chunks(function, call.letters, arguments, dtype=object, chunks={at: 1})
    merged = merge_chunks(functools.partial(_merge_masked, count), best, at, arity)
    temperatures = [given["temperature"]] if "temperature" in given else []
    finish = functools.partial(_finish_softmax, at, count, call.options.get("temperature"))
    pairs = map_chunks(finish, rows, [(merged, rows), *temperatures], dtype=object)
    return _give(call, (pairs, rows), count, dtypes, True)


def _choose_masked(axis: int, k: int, names: tuple[str, ...], *blocks: Any) -> tuple[_Best, Any]:
    """The best of a chunk, with their probabilities if these are given, and whether rows have a class that counts."""
    given = dict(zip(names, blocks, strict=True))
    x, _ = as_float("x", given["x"])
    rows, is_kept = np.moveaxis(x, axis, -1), None
    if "where" in given:
        mask = np.moveaxis(check_where(given["where"], x.shape), axis, -1)
        rows, is_kept = masked(np, mask, rows), mask.any(-1)
    values, indices = whole.topk(rows, min(k, rows.shape[-1]))
    p = None
    if "p" in given:
        p = np.take_along_axis(np.moveaxis(given["p"], axis, -1), indices, -1)
    return (values, indices + given["first"], p), is_kept


def _merge_masked(k: int, parts: list[tuple[_Best, Any]]) -> tuple[_Best, Any]:
    kept = [is_kept for _, is_kept in parts]
    return _merge(k, True, [best for best, _ in parts]), None if kept[0] is None else functools.reduce(
        np.logical_or, kept
    )


def _finish_softmax(
    axis: int, k: int, temperature: Any, found: tuple[_Best, Any], temperatures: Any = None
) -> tuple[Any, Any]:
    (values, indices, p), is_kept = found
    if temperatures is not None:
        shape = (1,) * (values.ndim - temperatures.ndim) + temperatures.shape
        temperature = np.moveaxis(temperatures.reshape(shape), axis, -1)
    best = whole.topk_softmax(values, k, temperature=temperature)
    result = best.values if p is None else np.take_along_axis(p, best.indices, -1)
    if is_kept is not None:
        result = np.where(is_kept[..., None], result, result.dtype.type(0))
    chosen = np.take_along_axis(indices, best.indices, -1)
    return np.moveaxis(result, -1, axis), np.moveaxis(chosen, -1, axis)
