"""softmax, log_softmax, logsumexp and their gradients of rows whose classes are divided among the ranks of a group."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native, give_like, is_foreign, tell_written
from .._arguments.kinds import label_like
from .._arguments.layouts import apart_from, axis_last, check_out, normalize_axes
from .._arguments.numbers import check_count, check_flag, check_num_threads
from .._arguments.places import CPU
from .._arguments.sinks import check_sink
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .agreement import describe
from .devices import as_native_on, check_device
from .finish import (
    KIND_OF,
    as_scalar_or_rows,
    give_rows,
    sum_up_rows,
    write_rows,
    write_vjp,
)
from .groups import UNKNOWN, Ahead, Collectives, Header, Layout, Pending, as_group, enter_ahead
from .merge import exchange, pack
from .merged import Merged, accept_merged
from .shard import Partial, sum_piece
from .sinks import add_sink, drop_sink
from .terms import Piece, Terms, plan_partial

__all__ = ["log_softmax", "log_softmax_vjp", "logsumexp", "softmax", "softmax_vjp"]

FRAGMENT_BYTES = 64 << 20  # of the elements of divided blocks that all ranks together hold at a time


def rows_of(terms: Terms, piece: Piece, rows: slice | None) -> tuple[Terms, Piece]:
    """Some rows of a call, along its first batch axis; None: all."""
    if rows is None:
        return terms, piece
    batch = (len(range(terms.batch[0])[rows]), *terms.batch[1:])
    losses = terms.losses
    if losses is not None:
        each = losses.labels, losses.target, losses.sample_weight
        labels, target, s = (None if a is None else np.ascontiguousarray(a[rows]) for a in each)
        losses = losses._replace(labels=labels, target=target, sample_weight=s)
    temperatures = None if terms.temperatures is None else terms.temperatures[rows]
    arrays: dict[str, Any] = {
        n: None if getattr(piece, n) is None else getattr(piece, n)[rows] for n in ("x", "y", "where", "soft")
    }
    first, shape = terms.origin or (0, terms.batch)
    origin = first + rows.start * math.prod(terms.batch[1:]), shape
    some = terms._replace(batch=batch, temperatures=temperatures, losses=losses, origin=origin)
    return some, piece._replace(**arrays)


def chunks_of(group: Any, layout: Layout, terms: Terms, itemsize: int) -> list[slice | None]:
    """Rows that are merged at a time: all of them, unless elements of divided blocks need much memory."""
    longest = max(layout.cut_lengths)
    if not longest or not terms.batch or terms.batch[0] == 0:
        return [None]
    by_row = longest * group.size * itemsize * math.prod(terms.batch[1:])
    count = max(1, FRAGMENT_BYTES // max(1, by_row))
    return [slice(i, i + count) for i in range(0, terms.batch[0], count)] if count < terms.batch[0] else [None]


def merge_over(
    group: Collectives,
    layout: Layout,
    terms: Terms,
    piece: Piece,
    keep: Any,
    num_threads: Any,
    pending: Pending,
    ahead: Ahead | None = None,
) -> tuple[Partial, Merged]:
    """The sums of this rank's shard and the merged ones, after a second round if rows need one.

    An error that is pending, or that occurs here, is raised on every rank after the next collective.

    ahead : the sums of the first round, if they are there already
    """
    row_max = None
    part, gathered = (None, None) if ahead is None else (ahead.part, ahead.gathered)
    while True:
        if part is None:
            with pending:
                part = sum_piece(terms, piece, row_max, keep=keep, num_threads=num_threads)
        merged = exchange(group, layout, terms, piece, part, pending.error, gathered)
        assert part is not None
        row_max = merged.second_round
        if row_max is None:
            part.joined, part.blocks = merged.joined, merged.blocks
            part.whole, part.terms = merged.whole, terms
            return part, accept_merged(merged)
        part = gathered = None


def known(name: str, given: Any) -> int:
    """A count that may be left out, and that fits into a header."""
    if given is None:
        return UNKNOWN
    if (value := check_count(name, given)) >= 2**63:
        raise ValueError(f"{name} must be less than 2**63, got {given}")
    return value


def place_in(layout: Layout, group: Any, terms: Terms, piece: Piece) -> tuple[Terms, Piece]:
    """The call with its place among the shards."""
    return terms.with_classes(layout.n_classes), piece._replace(first=layout.offsets[group.rank])


def header_of(function: str, terms: Terms, piece: Piece, n_classes: int, offset: int, options: Any = ()) -> Header:
    """The header of a rank; options: what ranks must agree on besides what is in terms."""
    length, rows = piece.x.shape[-1], math.prod(terms.batch)
    temperature = terms.temperature if terms.temperatures is None else float("nan")
    agreed = (*terms.agreed, *options)
    return Header(function, terms.name, terms.words, rows, n_classes, offset, length, temperature, agreed)


class _Rows(NamedTuple):
    """A checked call of this rank, before it knows the other shards."""

    terms: Terms
    piece: Piece
    axis: int
    out: Any | None
    keepdims: bool
    sink: Any | None  # of each row


def place_result(terms: Terms, piece: Piece, axis: int, out: Any, powers: Any = None) -> tuple[Any, Any]:
    """The result in the layout of the argument, and as rows; powers: memory that becomes the result, or None."""
    if out is not None:
        result = out
    else:
        memory = binding.empty(piece.x.shape, terms.storage) if powers is None else powers
        result = memory if axis == memory.ndim - 1 else np.moveaxis(memory, -1, axis)
    return result, as_buffer(axis_last(result, (axis,)))


def powers_in(placed: tuple[Any, Any] | None, x: Any) -> Any:
    """The rows of the caller's out, where they can hold the powers until they are finished; else False.

    They cannot where they are those of x, which a second round reads again.
    """
    if placed is None or np.may_share_memory(placed[1], x):
        return False
    rows = placed[1]
    return rows if rows.shape[-1] < 2 or rows.strides[-1] == rows.itemsize else False


def check_result(terms: Terms, piece: Piece, axis: int, out: Any) -> None:
    """Refuse an array that cannot hold the result."""
    if out is None:
        return
    shape = list(piece.x.shape[:-1])
    shape.insert(axis, piece.x.shape[-1])
    check_out(out, tuple(shape), terms.storage)


def _prepare(
    name: str, x: Any, y: Any, axis: Any, n_classes: Any, offset: Any, temperature: Any, where: Any, out: Any,
    keepdims: Any, sink: Any, device: Any, num_threads: Any, unused: dict[str, Any] | None,
) -> tuple[Header, _Rows]:  # fmt: skip
    if unused is not None and (unused["b"] is not None or unused["return_sign"] is not False):
        raise NotImplementedError("logsumexp over shards has no b and no return_sign; csoftmax.logsumexp has")
    keeps = check_flag("keepdims", keepdims)
    check_device(device)
    check_num_threads(num_threads)
    n, first = known("n_classes", n_classes), known("offset", offset)
    gives = "dy" if y is not None else "x"
    x, y, where = (as_native_on(device, name, a) for name, a in ((gives, x), ("y", y), ("where", where)))
    out = as_native(out, "out")
    kind = KIND_OF.get(name, name)
    temperature = as_native_on(device, "temperature", temperature)
    terms, piece = plan_partial(
        x, offset=0, n_classes=None, kind=kind, axis=axis, temperature=temperature, where=where, y=y
    )
    place = normalize_axes(axis, len(terms.batch) + 1)[0]
    if name == "logsumexp" and out is not None:
        check_out(out, (*terms.batch[:place], *(1,) * keeps, *terms.batch[place:]), terms.storage)
    elif out is not None:
        check_result(terms, piece, place, out)
        apart = (None if a is None else apart_from(a, as_buffer(axis_last(out, (place,)))) for a in piece[1:4])
        piece = Piece(piece.first, *apart)
    if sink is None:
        return header_of(name, terms, piece, n, first), _Rows(terms, piece, place, out, keeps, None)
    row_shape = (*terms.batch[:place], 1, *terms.batch[place:])
    of_rows = check_sink(as_native_on(device, "sink", sink), row_shape, terms.storage, CPU).reshape(terms.batch)
    options = (("sink", describe(of_rows)),)
    return header_of(name, terms, piece, n, first, options), _Rows(terms, piece, place, out, keeps, of_rows)


class _Plan(NamedTuple):
    """How a call is computed, once the shards are known; with sinks, which are one class more."""

    layout: Layout
    terms: Terms
    piece: Piece
    chunks: list[slice | None]
    keep: Any  # that of Terms.sums

    @classmethod
    def of(cls, name: str, comm: Collectives, layout: Layout, call: _Rows) -> _Plan:
        terms, piece = place_in(layout, comm, call.terms, call.piece)
        if call.sink is not None:
            layout, terms, piece = add_sink(layout, comm.rank, terms, piece, call.sink)
        chunks = chunks_of(comm, layout, terms, piece.x.itemsize * (1 if piece.y is None else 2))
        is_cut = layout.cut_lengths[comm.rank] > 0
        keep = name == "softmax" and chunks == [None] and not is_cut and terms.keeps_powers
        return cls(layout, terms, piece, chunks, keep)


def _sum_ahead(name: str, comm: Collectives, layout: Layout, call: _Rows, num_threads: Any) -> Ahead | None:
    """The sums of a call whose shards will be these.

    None if rows are merged in chunks, or if powers may go to the caller's array, which errors in headers must leave as
    it is.
    """
    plan = _Plan.of(name, comm, layout, call)
    terms, piece, keep = plan.terms, plan.piece, plan.keep
    if plan.chunks != [None] or (call.out is not None and call.sink is None and name != "logsumexp"):
        return None
    placed = None if name == "logsumexp" or keep else place_result(terms, piece, call.axis, None)
    part = sum_piece(terms, piece, keep=keep, num_threads=num_threads)
    return Ahead(plan, part, placed, lambda: pack(terms, part, None))


def _run(
    name: str,
    group: Any,
    x: Any,
    y: Any = None,
    *,
    axis: Any,
    n_classes: Any,
    offset: Any,
    temperature: Any,
    where: Any,
    out: Any = None,
    keepdims: Any = False,
    sink: Any = None,
    device: Any,
    num_threads: Any,
    unused: dict[str, Any] | None = None,
) -> Any:
    comm = as_group(group)
    arguments = x, y, axis, n_classes, offset, temperature, where, out, keepdims, sink, device, num_threads, unused
    layout, call, ahead = enter_ahead(
        comm, lambda: _prepare(name, *arguments), lambda layout, call: _sum_ahead(name, comm, layout, call, num_threads)
    )
    plan = _Plan.of(name, comm, layout, call) if ahead is None else ahead.plan
    layout, terms, piece, chunks, keep = plan
    if call.sink is not None:
        call = call._replace(out=None)
    result: Any = None
    rows: Any = None
    sums = []
    pending = Pending()
    if ahead is not None and ahead.placed is not None:
        result, rows = ahead.placed
    elif name != "logsumexp" and not (keep and call.out is None):
        with pending:  # before the exchanges, so that a lack of memory is known to all ranks
            result, rows = place_result(terms, piece, call.axis, call.out)
            keep = keep and powers_in((result, rows), piece.x)
    for chunk in chunks:
        part_terms, part_piece = rows_of(terms, piece, chunk)
        part, merged = merge_over(comm, layout, part_terms, part_piece, keep, num_threads, pending, ahead)
        with pending:
            if name == "logsumexp":
                sums.append(sum_up_rows(part, merged))
                continue
            if rows is None:
                result, rows = place_result(terms, piece, call.axis, None, part.e)
            to = rows if chunk is None else rows[chunk]
            options = {"where": part_piece.where, "num_threads": num_threads}
            if y is None:
                write_rows(name, part, merged, part_piece.x, to, from_e=part.e is not None, **options)
            else:
                write_vjp(part, merged, part_piece.x, part_piece.y, to, **options)
    pending.raise_error()
    if name == "logsumexp":
        result = as_scalar_or_rows(terms, sums[0] if len(sums) == 1 else np.concatenate(sums))
        result = np.expand_dims(result, call.axis) if call.keepdims else result
        return give_result(x, out, give_rows(result, as_native(out, "out")))
    if call.sink is not None:
        native = None if out is None else as_native(out, "out")
        result = drop_sink(result, call.axis, call.piece.x.shape[-1], native)
    return give_elements(x, out, result)


def give_result(like: Any, out: Any, result: Any) -> Any:
    """The caller's out, or the result as an array of the library of `like`."""
    if out is not None:
        tell_written(out)
        return out
    return give_like(like, np.asarray(result)) if is_foreign(like) else result


def give_elements(like: Any, out: Any, result: Any) -> Any:
    """The same for a result whose elements are those of `like`, which then has its labels."""
    given = give_result(like, out, result)
    return given if out is not None else label_like(like, given)


def softmax(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    group: Any,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    sink: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Softmax of rows whose classes are divided among the ranks of a group.

    Every rank calls it at the same time with its shard.

    Parameters
    ----------
    x : array_like of shape (..., k)
        The classes of this rank along `axis`; k may differ between ranks, and be 0.
    axis : int, default -1
        Axis of the classes.
    group : communicator of mpi4py, torch.distributed.ProcessGroup, or Group
        The ranks that hold the classes. Any object with the members of `Group` serves.
    n_classes : int, optional
        Number of classes of the whole row; by default the sum over the ranks.
    offset : int, optional
        Number of this rank's first class; by default the shards follow each other in the order of the ranks. Given on
        all ranks or on none.
    sink, temperature, where, num_threads
        As in `csoftmax.softmax`; `sink` is the same on all ranks.
    out : ndarray of the shape and dtype of x, optional
        Array that receives the result. It may be `x`. After an error that comes from another rank, or from a lack of
        memory, it holds any numbers.
    device : {"cpu"}, optional
        Functions over a group compute on the CPU: arrays on a GPU are refused by default, and copied for "cpu".

    Returns
    -------
    ndarray of the shape and dtype of x
        The shard of ``csoftmax.softmax`` of the whole rows, equal in every bit for any number of ranks and any
        boundaries.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `csoftmax.softmax`, on all ranks at once if all have the same error; and if ranks disagree on an argument,
        or their shards do not tile the classes.
    DistributedError
        On all ranks, if some of them fail; the message names the first and its error.

    Notes
    -----
    A call has two collectives: a header of 64 bytes from each rank, and the sums, 96 bytes a row and rank, in one
    all-gather; with more than 64 ranks three reductions of integers instead. With gloo and up to 8 ranks, the header is
    a message of 16 KB, in which the sums travel if they fit and the shards are those of an earlier call. Rows whose
    largest element is beyond the range of exp's reduction take a second exchange. Shards that begin elsewhere than at
    multiples of 4096 (`split`) also exchange the elements of the blocks that are cut, and rows of at most 4096 classes
    are exchanged whole.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import SingleProcess, softmax
    >>> float(softmax(np.zeros(5000), group=SingleProcess())[0])
    0.0002
    """
    return _run(
        "softmax", group, x, axis=axis, n_classes=n_classes, offset=offset, temperature=temperature, where=where,
        sink=sink, out=out, device=device, num_threads=num_threads,
    )  # fmt: skip


def log_softmax(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    group: Any,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    sink: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Log-softmax of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    x, axis, group, n_classes, offset, sink, temperature, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape and dtype of x
        The shard of ``csoftmax.log_softmax`` of the whole rows, equal in every bit.

    Raises
    ------
    TypeError, ValueError, MemoryError, DistributedError
        As in `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import SingleProcess, log_softmax
    >>> log_softmax(np.float32([16.9, 0.0]), group=SingleProcess())
    array([-4.5753403e-08, -1.6900000e+01], dtype=float32)
    """
    return _run(
        "log_softmax", group, x, axis=axis, n_classes=n_classes, offset=offset, temperature=temperature, where=where,
        sink=sink, out=out, device=device, num_threads=num_threads,
    )  # fmt: skip


def logsumexp(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    group: Any,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    b: None = None,
    sink: ArrayLike | None = None,
    return_sign: Literal[False] = False,
    keepdims: bool = False,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Log-sum-exp of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    x, axis, group, n_classes, offset, sink, temperature, where, device, num_threads
        As in `softmax`.
    b, return_sign
        Not over shards: only the defaults are allowed.
    keepdims : bool, default False
        If True, the axis stays in the result with length 1.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result.

    Returns
    -------
    ndarray or scalar
        ``csoftmax.logsumexp`` of the whole rows, equal in every bit on all ranks.

    Raises
    ------
    NotImplementedError
        If b or return_sign is given.
    TypeError, ValueError, MemoryError, DistributedError
        As in `softmax`.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, logsumexp
    >>> logsumexp([1000.0, 1000.0], group=SingleProcess())
    np.float64(1000.6931471805599)
    """
    return _run(
        "logsumexp", group, x, axis=axis, n_classes=n_classes, offset=offset, temperature=temperature, where=where,
        sink=sink, out=out, keepdims=keepdims, device=device, num_threads=num_threads,
        unused={"b": b, "return_sign": return_sign},
    )  # fmt: skip


def softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    group: Any,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of softmax, of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    dy, y : array_like of shape (..., k)
        The shards of the derivative of the result, and of the result.
    axis, group, n_classes, offset, temperature, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape and dtype of dy
        The shard of ``csoftmax.softmax_vjp`` of the whole rows, equal in every bit.

    Raises
    ------
    TypeError, ValueError, MemoryError, DistributedError
        As in `softmax`.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, softmax_vjp
    >>> softmax_vjp([1.0, 0.0], [0.5, 0.5], group=SingleProcess())
    array([ 0.25, -0.25])
    """
    return _run(
        "softmax_vjp", group, dy, y, axis=axis, n_classes=n_classes, offset=offset, temperature=temperature,
        where=where, out=out, device=device, num_threads=num_threads,
    )  # fmt: skip


def log_softmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    group: Any,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of log_softmax, of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    dy, y : array_like of shape (..., k)
        The shards of the derivative of the result, and of the result.
    axis, group, n_classes, offset, temperature, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape and dtype of dy
        The shard of ``csoftmax.log_softmax_vjp`` of the whole rows, equal in every bit.

    Raises
    ------
    TypeError, ValueError, MemoryError, DistributedError
        As in `softmax`.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, log_softmax, log_softmax_vjp
    >>> log_softmax_vjp([1.0, 0.0], log_softmax([0.0, 0.0], group=SingleProcess()), group=SingleProcess())
    array([ 0.5, -0.5])
    """
    return _run(
        "log_softmax_vjp", group, dy, y, axis=axis, n_classes=n_classes, offset=offset, temperature=temperature,
        where=where, out=out, device=device, num_threads=num_threads,
    )  # fmt: skip
