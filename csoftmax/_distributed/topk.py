"""The k best classes of rows whose classes are divided among the ranks of a group."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, NoReturn, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.layouts import check_where, masked, normalize_axes
from .._arguments.numbers import check_choice, check_count, check_flag, check_temperatures, number_and_rows
from .._arguments.places import CPU, as_float
from .._cpu.dtypes import as_buffer
from .._ops import topk as whole_topk
from .._ops.topk import TopK
from .agreement import Agreed, as_name, describe
from .devices import as_native_on, check_device
from .groups import Header, Layout, as_group, enter
from .rows import give_result, known, softmax

__all__ = ["entmax", "sparsemax", "topk", "topk_softmax"]


class _Local(NamedTuple):
    """The shard of this rank, the class axis last."""

    x: Any
    axis: int
    values: Any  # the best of the shard, first the best
    indices: Any
    is_kept: Any  # None without where: whether a row has a class in this shard that takes part
    temperature: Any  # a number, or an array of the rows with an axis of length 1 for the classes


def header_of_rows(function: str, x: Any, n_classes: int, offset: int, options: Agreed) -> Header:
    batch = x.shape[:-1]
    agreed = ("shape of the rows", batch), *options
    return Header(function, x.dtype.name, 0, math.prod(batch), n_classes, offset, x.shape[-1], 1.0, agreed)


def rows_of_shard(
    name: str, x: Any, axis: Any, where: Any, device: Any, keeps_integers: bool = False
) -> tuple[Any, int, Any]:
    """The shard with the class axis last, the axis, and whether rows have a class that takes part."""
    check_device(device)
    native = as_native_on(device, name, x)
    given = CPU.array(name, native)
    if not (keeps_integers and given.dtype.kind in "iu"):
        given, _ = as_float(name, native)
    if given.ndim == 0:
        raise ValueError(f"{name} is 0-dimensional; a shard has an axis of classes")
    axes = normalize_axes(axis, given.ndim)
    if len(axes) != 1:
        raise ValueError(f"axis must be one axis for a shard, got {axis!r}")
    rows, is_kept = np.moveaxis(given, axes[0], -1), None
    if where is not None:
        mask = np.moveaxis(check_where(as_native_on(device, "where", where), given.shape), axes[0], -1)
        rows, is_kept = masked(np, mask, rows), mask.any(-1)
    return rows, axes[0], is_kept


def _gather(group: Any, layout: Layout, a: Any, counts: tuple[int, ...]) -> list[Any]:
    """Arrays of all ranks in the order of their classes; the last axis may differ in length."""
    longest = max(counts)
    own = np.zeros((*a.shape[:-1], longest), as_buffer(a).dtype)
    own[..., : a.shape[-1]] = as_buffer(a)
    parts = group.all_gather(own)
    order = sorted(range(group.size), key=lambda rank: layout.offsets[rank])
    return [parts[rank][..., : counts[rank]].view(a.dtype) for rank in order]


def _run(
    function: str,
    group: Any,
    x: Any,
    k: Any,
    axis: Any,
    n_classes: Any,
    offset: Any,
    where: Any,
    device: Any,
    num_threads: Any,
    options: Callable[[Any, int, int], tuple[dict[str, Any], Any]],
) -> tuple[Any, Any, Any, _Local, Any]:
    """The candidates of all ranks in the order of their indices, these, and what this rank has prepared.

    options : checks the options, and returns them as values that are compared between ranks, and the temperature;
        called with the rows, the axis of the classes and k.
    """
    comm = as_group(group)

    def prepare() -> tuple[Header, _Local]:
        count = check_count("k", k)
        rows, place, is_kept = rows_of_shard("x", x, axis, where, device, function == "topk")
        checked, temperature = options(rows, place, count)
        numbers = {"largest": checked.get("largest", True), "num_threads": num_threads}
        best = whole_topk.topk(rows, min(count, rows.shape[-1]), **numbers)
        agreed = ("k", count), ("where", where is not None), *checked.items()
        header = header_of_rows(function, rows, known("n_classes", n_classes), known("offset", offset), agreed)
        return header, _Local(rows, place, *best, is_kept, temperature)

    layout, local = enter(comm, prepare)
    count = int(k)
    if count > layout.n_classes:
        raise ValueError(f"k must be at most the number of classes, {layout.n_classes}, got {count}")
    return comm, layout, _candidates(comm, layout, local.values, local.indices, count), local, count


def _candidates(comm: Any, layout: Layout, values: Any, indices: Any, count: int) -> tuple[Any, Any, Any, Any]:
    """The best of all shards in the order of their indices, that order, and how many each rank has.

    values, indices : the `count` best of this rank's shard, or all of it if that is less.
    """
    counts = tuple(min(count, length) for length in layout.lengths)
    values = np.concatenate(_gather(comm, layout, values, counts), axis=-1)
    own = indices + layout.offsets[comm.rank]
    indices = np.concatenate(_gather(comm, layout, own, counts), axis=-1)
    order = np.argsort(indices, axis=-1)
    return np.take_along_axis(values, order, -1), np.take_along_axis(indices, order, -1), order, counts


def _finish(like: Any, local: _Local, values: Any, indices: Any, out: Any = None) -> TopK:
    """The result; out: the caller's arrays for it."""
    found = []
    for given, a in zip(out or (None, None), (values, indices), strict=True):
        result = np.ascontiguousarray(np.moveaxis(a, -1, local.axis))
        if given is not None:
            as_buffer(as_native(given, "out"))[...] = as_buffer(result)
        found.append(give_result(like, given, result))
    return TopK(*found)


def topk(
    x: ArrayLike,
    k: SupportsIndex,
    axis: SupportsIndex = -1,
    *,
    group: Any,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    largest: bool = True,
    sorted: bool = True,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> TopK:
    """The k largest (or smallest) elements of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    x : array_like of shape (..., m)
        The classes of this rank along `axis`, in a dtype of `csoftmax.topk`.
    k : int
        Number of elements, at most the number of classes of the whole row.
    axis, group, n_classes, offset, device, num_threads
        As in `softmax`.
    largest, sorted
        As in `csoftmax.topk`.

    Returns
    -------
    TopK
        That of the whole rows, on all ranks: the indices are those of the whole row. The order is that of
        ``sorted=True`` in either case.

    Raises
    ------
    TypeError, ValueError, MemoryError, DistributedError
        As in `softmax`.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, topk
    >>> topk([3, 1, 4, 1, 5], 2, group=SingleProcess()).indices
    array([4, 2])
    """

    def options(_rows: Any, _axis: int, _k: int) -> tuple[dict[str, Any], Any]:
        return {"largest": check_flag("largest", largest), "sorted": check_flag("sorted", sorted)}, 1.0

    _comm, _layout, (values, indices, *_), local, count = _run(
        "topk", group, x, k, axis, n_classes, offset, None, device, num_threads, options
    )
    best = whole_topk.topk(values, count, largest=largest, num_threads=num_threads)
    return _finish(x, local, best.values, np.take_along_axis(indices, best.indices, -1))


def topk_softmax(
    x: ArrayLike,
    k: SupportsIndex,
    axis: SupportsIndex = -1,
    *,
    group: Any,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    temperature: ArrayLike = 1.0,
    normalize: Literal["topk", "full"] = "topk",
    sorted: bool = True,
    where: ArrayLike | None = None,
    out: tuple[NDArray[Any], NDArray[np.int64]] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> TopK:
    """Softmax of the k largest elements of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    x, k, axis, group, n_classes, offset, sorted, device, num_threads
        As in `topk`.
    temperature, normalize, where, out
        As in `csoftmax.topk_softmax`. After an error that comes from another rank, or from a lack of memory, `out`
        holds any numbers.

    Returns
    -------
    TopK
        That of the whole rows, on all ranks, equal in every bit.

    Raises
    ------
    TypeError, ValueError, MemoryError, DistributedError
        As in `softmax`.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, topk_softmax
    >>> topk_softmax([1.0, 1.0, 0.0], 2, group=SingleProcess()).values
    array([0.5, 0.5])
    """

    def options(rows: Any, place: int, count: int) -> tuple[dict[str, Any], Any]:
        check_choice("normalize", normalize, ("topk", "full"))
        batch = rows.shape[:-1]
        if out is not None:
            native = tuple(as_native(a, "out") for a in out) if isinstance(out, tuple) else out
            shape = *batch[:place], count, *batch[place:]
            whole_topk.check_pair(native, (shape, rows.dtype), (shape, np.dtype(np.int64)))
        t = check_temperatures(
            as_native_on(device, "temperature", temperature), (*batch[:place], 1, *batch[place:]), False
        )
        number, each = number_and_rows(t, batch, 1.0)
        checked = {"temperature": describe(each) or number + 0.0, "normalize": as_name(normalize)}
        checked["sorted"] = check_flag("sorted", sorted)
        return checked, number if each is None else each[..., None]

    comm, layout, (values, indices, order, counts), local, count = _run(
        "topk_softmax", group, x, k, axis, n_classes, offset, where, device, num_threads, options
    )
    numbers = {"temperature": local.temperature, "num_threads": num_threads}
    scaled = whole_topk.topk_softmax(values, count, **numbers)
    best = scaled.values
    if normalize == "full":
        first = layout.offsets[comm.rank]
        arguments = {"group": comm, "n_classes": layout.n_classes, "offset": first, **numbers}
        probabilities = np.take_along_axis(softmax(local.x, **arguments), local.indices, -1)
        gathered = np.concatenate(_gather(comm, layout, probabilities, counts), axis=-1)
        best = np.take_along_axis(np.take_along_axis(gathered, order, -1), scaled.indices, -1)
    if local.is_kept is not None:
        is_kept = comm.all_reduce(local.is_kept.astype(np.int64), "max") != 0
        best = np.where(is_kept[..., None], best, best.dtype.type(0))
    return _finish(x, local, best, np.take_along_axis(indices, scaled.indices, -1), out)


def _refuse(name: str) -> NoReturn:
    raise NotImplementedError(
        f"{name} over shards is not implemented: its support may lie in any of them. Gather the rows and call "
        f"csoftmax.{name}"
    )


def sparsemax(x: ArrayLike, axis: SupportsIndex = -1, *, group: Any, **options: Any) -> NoReturn:
    """Refuse: sparsemax over shards is not implemented.

    Parameters
    ----------
    x, axis, group, **options
        As in `softmax`; not read.

    Raises
    ------
    NotImplementedError
        Always.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, sparsemax
    >>> sparsemax([1.0, 0.0], group=SingleProcess())
    Traceback (most recent call last):
        ...
    NotImplementedError: sparsemax over shards is not implemented: its support may lie in any of them. Gather the rows \
and call csoftmax.sparsemax
    """
    _refuse("sparsemax")


def entmax(x: ArrayLike, alpha: float = 1.5, axis: SupportsIndex = -1, *, group: Any, **options: Any) -> NoReturn:
    """Refuse: entmax over shards is not implemented.

    Parameters
    ----------
    x, alpha, axis, group, **options
        As in `csoftmax.entmax`; not read.

    Raises
    ------
    NotImplementedError
        Always.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, entmax
    >>> entmax([1.0, 0.0], group=SingleProcess())
    Traceback (most recent call last):
        ...
    NotImplementedError: entmax over shards is not implemented: its support may lie in any of them. Gather the rows \
and call csoftmax.entmax
    """
    _refuse("entmax")
