"""What shards of rows make of merged sums: their parts of results, with the bits of whole rows."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import check_upstream, raise_bad_label
from .._arguments.layouts import apart_from, axis_last, check_out, normalize_axes
from .._arguments.numbers import as_number
from .._arguments.places import as_float
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .merged import Merged, check_merged, with_sink
from .shard import Partial
from .terms import BLOCK, Piece, Terms, whole_blocks

__all__ = [
    "finish_gradient",
    "finish_log_softmax",
    "finish_logsumexp",
    "finish_loss",
    "finish_softmax",
    "finish_vjp",
]


def check_kind(part: Any, function: str, *kinds: str) -> None:
    """Refuse what is no partial result, or one of another kind."""
    if not isinstance(part, Partial):
        raise TypeError(f"partial must be a Partial, the result of `partial` for this shard; got {type(part).__name__}")
    if part.terms.kind not in kinds:
        raise ValueError(f"partial has kind {part.terms.kind!r}; {function} needs {' or '.join(map(repr, kinds))}")


def _check_axis(part: Partial, axis: Any) -> int:
    """The axis of the classes, which is that of the partial result."""
    own = part.terms.axis
    if axis is not None and normalize_axes(axis, len(part.terms.batch) + 1) != (own,):
        raise ValueError(f"axis is {axis!r}; partial was called with axis {own}, which is the default")
    return own


def _rows(part: Partial, x: Any, name: str = "x") -> Any:
    """The shard as it was given to `partial`, with the class axis last."""
    terms = part.terms
    given, dtype = as_float(name, x)
    if dtype != terms.dtype:
        raise ValueError(f"{name} has dtype {given.dtype}; the partial result is of {terms.name}")
    first, stop = shard_of(part)
    shape = (*terms.batch[: terms.axis], stop - first, *terms.batch[terms.axis :])
    if given.shape != shape:
        raise ValueError(f"{name} has shape {given.shape}; the partial result is of {shape}")
    return as_buffer(axis_last(given, (terms.axis,)))


def _pieces(part: Partial, merged: Merged, shard: Piece) -> list[tuple[Piece, Any]]:
    """The parts of a shard that are finished one by one, with the maxima of their blocks."""
    n, first, stop = part.terms.n_classes, shard.first, shard.stop
    begin, end = whole_blocks(first, stop, n)
    pieces: list[tuple[Piece, Any]] = [(shard.part(begin, end), part.block_max)] if end > begin else []
    for a, b in ((first, begin), (end, stop)):
        if b > a:
            pieces.append((shard.part(a, b), merged.joined[a // BLOCK]))
    return pieces


def shard_of(part: Partial) -> tuple[int, int]:
    """The classes of a partial result that is not merged."""
    return part.intervals[0] if part.intervals else (0, 0)


def _place_result(out: Any, like: Any, axis: int, own: Any = None) -> tuple[Any, Any]:
    """The result of the shape and dtype of an array, and its rows, the class axis last."""
    result = own if own is not None and out is None else binding.empty_like(like) if out is None else out
    if out is not None:
        check_out(out, like.shape, like.dtype)
    return result, as_buffer(axis_last(result, (axis % max(1, result.ndim),)))


def write_rows(
    name: str,
    part: Partial,
    merged: Merged,
    x: Any,
    result: Any,
    *,
    where: Any = None,
    from_e: bool = False,
    num_threads: Any = None,
) -> None:
    """Write the shard of a result, the class axis last."""
    terms = part.terms
    first, _ = shard_of(part)
    kind = binding.SHARD_KINDS[name]
    if merged.whole is not None:  # at most 4096 classes: the ordinary function with the whole row
        whole, to = merged.whole, np.empty((*terms.batch, terms.n_classes), x.dtype)
        arguments = whole.x, None, to, whole.where, terms.temperature, num_threads, terms.temperatures
        binding.run_softmax(binding.OPS[name], terms.dtype, *arguments)
        result[...] = to[..., first : first + x.shape[-1]]
        return
    numbers = terms.temperature, terms.temperatures, merged.row_max, num_threads
    for piece, block_max in _pieces(part, merged, Piece(first, x, None, where)):
        to = result[..., piece.first - first : piece.stop - first]
        keeps = from_e and block_max is part.block_max
        arrays = piece.x, None, keeps, piece.where, merged.records, block_max, to
        binding.finish_shard(kind, terms.dtype, *arrays, terms.n_classes, piece.first, *numbers)


def mask_of(part: Partial, merged: Merged) -> Any:
    """The mask of a shard; None without one, and for rows that are there whole, with their masks."""
    return part.shard().where if part.terms.has_where and merged.whole is None and part.intervals else None


def _apart(out: Any, axis: int, *arrays: Any) -> list[Any]:
    """Arrays of a shard, the class axis last, copied where writing to `out` would change what is still to be read."""
    to = out if isinstance(out, np.ndarray) else None
    to = None if to is None else as_buffer(axis_last(to, (axis % max(1, to.ndim),)))
    return [a if a is None or to is None else apart_from(a, to) for a in arrays]


@keep_labels()
@accept_foreign
def _finish_rows(x: Any, name: str, given: Partial, merged: Any, axis: Any, sink: Any, out: Any) -> Any:
    check_kind(given, f"finish_{name}", KIND_OF[name])
    axis = _check_axis(given, axis)
    part, merged = with_sink(given, merged, sink)
    whole = check_merged(part, merged)
    rows = _rows(part, x)
    own, powers = None, part.e
    if powers is not None and powers.shape == rows.shape and out is None and rows.ndim == np.ndim(x):
        own = np.moveaxis(powers, -1, axis)
        given.e = None  # its memory becomes the result
    result, to = _place_result(out, as_float("x", x)[0], axis, own)
    rows, where = _apart(out, axis, rows, mask_of(part, whole))
    write_rows(name, part, whole, rows, to, where=where, from_e=own is not None)
    return result


KIND_OF = {"softmax": "softmax", "log_softmax": "log", "logsumexp": "log"}


def finish_softmax(
    x: ArrayLike,
    partial: Partial,
    merged: Any,
    *,
    axis: SupportsIndex | None = None,
    sink: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any:
    """The softmax of a shard, from merged sums.

    Parameters
    ----------
    x : array_like of shape (..., k)
        The shard, as `partial` has seen it.
    partial : Partial
        The sums of this shard, of kind "softmax".
    merged : Partial, or ndarray of int64
        The merged sums of all shards; their records alone where all shards begin at multiples of 4096.
    axis : int, optional
        Axis of the classes: that of `partial`, which is the default; no other is allowed.
    sink : float or array_like, optional
        As in `csoftmax.softmax`, the same in every shard; merged results are without it. See `has_sink` of `partial`.
    out : ndarray of the shape and dtype of x, optional
        Array that receives the result. It may be `x`.

    Returns
    -------
    ndarray of the shape and dtype of x
        The shard of ``csoftmax.softmax`` of the whole rows, equal in every bit.

    Raises
    ------
    ValueError
        If x is not the shard that `partial` has seen, classes are missing, rows need a second round
        (`Partial.row_max`), or `sink` and `has_sink` do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import finish_softmax, merge, partial
    >>> x = np.zeros((1, 8192))
    >>> parts = [partial(x[:, i : i + 4096], offset=i, n_classes=8192) for i in (0, 4096)]
    >>> float(finish_softmax(x[:, :4096], parts[0], merge(parts)).sum())
    0.5
    """
    return _finish_rows(x, "softmax", partial, merged, axis, sink, out=out)


def finish_log_softmax(
    x: ArrayLike,
    partial: Partial,
    merged: Any,
    *,
    axis: SupportsIndex | None = None,
    sink: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
) -> Any:
    """The log-softmax of a shard, from merged sums.

    Parameters
    ----------
    x, partial, merged, axis, sink, out
        As in `finish_softmax`; the partial result is of kind "log".

    Returns
    -------
    ndarray of the shape and dtype of x
        The shard of ``csoftmax.log_softmax`` of the whole rows, equal in every bit.

    Raises
    ------
    ValueError
        As in `finish_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import finish_log_softmax, merge, partial
    >>> x = np.zeros((1, 8192))
    >>> parts = [partial(x[:, i : i + 4096], offset=i, n_classes=8192, kind="log") for i in (0, 4096)]
    >>> float(finish_log_softmax(x[:, :4096], parts[0], merge(parts))[0, 0])
    -9.010913347279288
    """
    return _finish_rows(x, "log_softmax", partial, merged, axis, sink, out=out)


def sum_up_rows(part: Partial, merged: Merged) -> Any:
    """The log-sum-exp of each row, in the dtype of x."""
    terms = part.terms
    result = np.empty(terms.batch, terms.bits)
    numbers = terms.temperature, terms.temperatures
    kind = binding.SHARD_KINDS["logsumexp"]
    if merged.whole is not None:
        arrays = merged.whole.x, None, result, merged.whole.where
        binding.run_softmax(binding.OPS["logsumexp"], terms.dtype, *arrays, numbers[0], None, numbers[1])
        return result
    shape = np.broadcast_to(np.zeros((), terms.bits), (*terms.batch, 0))
    parts = shape, None, False, None, merged.records, None, result
    binding.finish_shard(kind, terms.dtype, *parts, terms.n_classes, 0, *numbers, merged.row_max, None)
    return result


def as_scalar_or_rows(terms: Terms, result: Any) -> Any:
    """Rows of bits in the dtype that they stand for; a scalar for a single row without a shape."""
    return result.view(terms.storage)[()]


def finish_logsumexp(
    x: ArrayLike, partial: Partial, merged: Any, *, sink: ArrayLike | None = None, out: NDArray[Any] | None = None
) -> Any:
    """The log-sum-exp of rows, from merged sums.

    Parameters
    ----------
    x, partial, merged, sink
        As in `finish_softmax`; the partial result is of kind "log". The elements of x are not read.
    out : ndarray of the shape of the rows and the dtype of x, optional
        Array that receives the result.

    Returns
    -------
    ndarray or scalar
        ``csoftmax.logsumexp`` of the whole rows, equal in every bit; `out` if given.

    Raises
    ------
    ValueError
        As in `finish_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import finish_logsumexp, merge, partial
    >>> x = np.zeros((1, 8192))
    >>> parts = [partial(x[:, i : i + 4096], offset=i, n_classes=8192, kind="log") for i in (0, 4096)]
    >>> finish_logsumexp(x[:, :4096], parts[0], merge(parts))
    array([9.01091335])
    """
    return _finish_logsumexp(x, partial, merged, sink=sink, out=out)


@accept_foreign
def _finish_logsumexp(x: Any, partial: Partial, merged: Any, *, sink: Any, out: Any) -> Any:
    check_kind(partial, "finish_logsumexp", "log")
    part, merged = with_sink(partial, merged, sink)
    whole = check_merged(part, merged)
    _rows(part, x)
    if out is not None:
        check_out(out, part.terms.batch, part.terms.storage)
    return give_rows(as_scalar_or_rows(part.terms, sum_up_rows(part, whole)), out)


def give_rows(result: Any, out: Any) -> Any:
    """A result for each row; `out`, which receives it, if that is given."""
    if out is None:
        return result
    as_buffer(out)[...] = as_buffer(np.asarray(result))
    return out


def write_vjp(part: Partial, merged: Merged, dy: Any, y: Any, result: Any, *, where: Any, num_threads: Any) -> None:
    """Write the shard of a gradient, the class axis last."""
    terms = part.terms
    first, _ = shard_of(part)
    numbers = terms.temperature, terms.temperatures
    if merged.whole is not None:
        whole, to = merged.whole, np.empty((*terms.batch, terms.n_classes), dy.dtype)
        arrays = whole.x, whole.y, to, whole.where
        binding.run_softmax(binding.OPS[terms.kind], terms.dtype, *arrays, numbers[0], num_threads, numbers[1])
        result[...] = to[..., first : first + dy.shape[-1]]
        return
    kind = binding.SHARD_KINDS[terms.kind]
    for piece, _ in _pieces(part, merged, Piece(first, dy, y, where)):
        to = result[..., piece.first - first : piece.stop - first]
        parts = piece.x, piece.y, False, piece.where, merged.records, None, to
        binding.finish_shard(
            kind, terms.dtype, *parts, terms.n_classes, piece.first, *numbers, merged.row_max, num_threads
        )


def finish_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    partial: Partial,
    merged: Any,
    *,
    axis: SupportsIndex | None = None,
    out: NDArray[Any] | None = None,
) -> Any:
    """The gradient of softmax or log_softmax of a shard, from merged sums.

    Parameters
    ----------
    dy, y : array_like of shape (..., k)
        The shard of the derivative of the result and of the result, as `partial` has seen them.
    partial : Partial
        The sums of this shard, of kind "softmax_vjp" or "log_softmax_vjp".
    merged, axis, out
        As in `finish_softmax`.

    Returns
    -------
    ndarray of the shape and dtype of dy
        The shard of ``csoftmax.softmax_vjp`` or ``csoftmax.log_softmax_vjp`` of the whole rows, equal in every bit.

    Raises
    ------
    ValueError
        As in `finish_softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import finish_vjp, merge, partial
    >>> dy, y = np.ones((1, 8192)), np.full((1, 8192), 1 / 8192)
    >>> shards = [slice(0, 4096), slice(4096, 8192)]
    >>> parts = [partial(dy[:, s], offset=s.start, n_classes=8192, kind="softmax_vjp", y=y[:, s]) for s in shards]
    >>> float(abs(finish_vjp(dy[:, :4096], y[:, :4096], parts[0], merge(parts))).max())
    0.0
    """
    return _finish_vjp(dy, y, partial, merged, axis, out=out)


@keep_labels()
@accept_foreign
def _finish_vjp(dy: Any, y: Any, partial: Partial, merged: Any, axis: Any, out: Any) -> Any:
    check_kind(partial, "finish_vjp", "softmax_vjp", "log_softmax_vjp")
    axis = _check_axis(partial, axis)
    whole = check_merged(partial, merged)
    rows, second = _rows(partial, dy, "dy"), _rows(partial, y, "y")
    result, to = _place_result(out, as_float("dy", dy)[0], axis)
    rows, second, where = _apart(out, axis, rows, second, mask_of(partial, whole))
    write_vjp(partial, whole, rows, second, to, where=where, num_threads=None)
    return result


def add_losses(part: Partial, merged: Merged) -> NDArray[np.float64]:
    """The loss of each row in float64, not yet rounded to the compute type."""
    terms = part.terms
    losses = terms.losses
    assert losses is not None
    loss = np.empty(terms.batch)
    if merged.whole is not None:
        _finish_whole(part, merged, loss, None, None, 1.0)
        return loss
    arguments = terms.loss_arguments(_no_classes(terms), merged.row_max, None, merged.weight_sum, 1.0)
    binding.finish_shard_loss(terms.dtype, False, merged.records, None, loss, None, None, *arguments)
    return loss


def _finish_whole(
    part: Partial, merged: Merged, loss: Any, to: Any, upstream: Any, divisor: float, num_threads: Any = None
) -> None:
    """Losses of rows that are there whole, and their gradients if there is an array for them."""
    terms, whole = part.terms, merged.whole
    assert whole is not None
    arguments = terms.loss_arguments(whole, None, upstream, merged.weight_sum, divisor, num_threads)
    try:
        binding.finish_shard_loss(terms.dtype, False, None, None, loss, to, None, *arguments)
    except ValueError:
        if whole.soft is not None:
            raise_bad_label(whole.soft, terms.n_classes, None, lambda at: terms.place_of(whole, at))
        raise


def round_losses(terms: Terms, loss: Any) -> Any:
    """Losses in the compute type."""
    with np.errstate(over="ignore", under="ignore"):
        return loss.astype(terms.compute, copy=False)[()]


def finish_loss(x: ArrayLike, partial: Partial, merged: Any, *, out: NDArray[Any] | None = None) -> Any:
    """The cross-entropy of each row, from merged sums.

    Parameters
    ----------
    x, partial, merged
        As in `finish_softmax`; the partial result is of kind "loss". The elements of x are not read.
    out : ndarray of the shape of the rows and the dtype of the losses, optional
        Array that receives the result.

    Returns
    -------
    ndarray or scalar
        ``csoftmax.cross_entropy`` of the whole rows with reduction "none", equal in every bit; `out` if given.

    Raises
    ------
    IndexError
        If a label is no class.
    ValueError
        As in `finish_softmax`, and if no shard or several have a label.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import finish_loss, merge, partial
    >>> x = np.zeros((1, 8192))
    >>> shards = [slice(0, 4096), slice(4096, 8192)]
    >>> parts = [partial(x[:, s], offset=s.start, n_classes=8192, kind="loss", target=[5000]) for s in shards]
    >>> finish_loss(x[:, :4096], parts[0], merge(parts))
    array([9.01091335])
    """
    return _finish_loss(x, partial, merged, out=out)


@accept_foreign
def _finish_loss(x: Any, partial: Partial, merged: Any, *, out: Any) -> Any:
    check_kind(partial, "finish_loss", "loss")
    whole = check_merged(partial, merged)
    _rows(partial, x)
    if out is not None:
        check_out(out, partial.terms.batch, partial.terms.compute)
    return give_rows(round_losses(partial.terms, add_losses(partial, whole)), out)


def add_squares(
    terms: Terms, merged: Merged, piece: Piece | None, block_max: Any, upstream: Any, divisor: float
) -> NDArray[np.int64]:
    """The sums of the squares of the row losses' gradient over whole blocks, for clip_norm."""
    squares = np.zeros((*terms.batch, binding.SUM_WORDS), np.int64)
    if piece is None:
        return squares
    arguments = terms.loss_arguments(piece, merged.row_max, upstream, merged.weight_sum, divisor)
    binding.run_shard_squares(terms.dtype, merged.records, block_max, squares, *arguments)
    return squares


def find_lost(part: Partial, merged: Merged, shard: Piece, upstream: Any, divisor: float) -> NDArray[np.int64] | None:
    """1 for rows in which the shard has a class whose gradient underflows, 2 for rows that may have one, else 0.

    None if all are 0.
    """
    terms = part.terms
    if merged.whole is not None:
        return None
    lost = np.empty(terms.batch, np.int64)
    arguments = terms.loss_arguments(shard, merged.row_max, upstream, merged.weight_sum, divisor)
    return lost if binding.run_shard_lost(terms.dtype, merged.records, lost, *arguments) else None


def loss_shard(part: Partial, merged: Merged, x: Any) -> Piece:
    """The shard of a loss with its soft labels and class weights."""
    first, _ = shard_of(part)
    losses = part.terms.losses
    assert losses is not None
    if merged.whole is not None or (losses.labels is not None and not losses.has_weight):
        return Piece(first, x)
    return part.shard()._replace(x=x) if part.intervals else _no_classes(part.terms)._replace(first=first)


def _no_classes(terms: Terms) -> Piece:
    """A piece of a loss without classes."""
    losses = terms.losses
    assert losses is not None
    soft = None if losses.labels is not None else np.broadcast_to(np.zeros((), terms.compute), (*terms.batch, 0))
    weight = np.empty(0, terms.compute) if losses.has_weight else None
    return Piece(0, np.broadcast_to(np.zeros((), terms.bits), (*terms.batch, 0)), soft=soft, weight=weight)


def write_gradient(
    part: Partial,
    merged: Merged,
    shard: Piece,
    result: Any,
    *,
    upstream: Any,
    divisor: float,
    from_e: bool = False,
    squares: Any = None,
    num_threads: Any = None,
) -> NDArray[np.float64]:
    """Write the shard of the gradient of the sum of the losses, divided by the divisor; the class axis last.

    Returns the losses, as `add_losses` does, unless the divisor is 0 or infinite.
    """
    terms = part.terms
    loss = np.zeros(terms.batch)
    if merged.whole is not None:
        to = np.empty((*terms.batch, terms.n_classes), result.dtype)
        _finish_whole(part, merged, loss, to, upstream, divisor, num_threads)
        result[...] = to[..., shard.first : shard.stop]
        return loss
    pieces = _pieces(part, merged, shard)
    for piece, block_max in pieces:
        to = result[..., piece.first - shard.first : piece.stop - shard.first]
        arguments = terms.loss_arguments(piece, merged.row_max, upstream, merged.weight_sum, divisor, num_threads)
        keeps = from_e and block_max is part.block_max
        binding.finish_shard_loss(terms.dtype, keeps, merged.records, block_max, loss, to, squares, *arguments)
    return loss if pieces else add_losses(part, merged)


def finish_gradient(
    x: ArrayLike,
    partial: Partial,
    merged: Any,
    *,
    axis: SupportsIndex | None = None,
    divisor: float = 1.0,
    upstream: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
) -> Any:
    """The gradient of a loss with respect to the logits of a shard, from merged sums.

    Parameters
    ----------
    x, partial, merged, axis, out
        As in `finish_softmax`; the partial result is of kind "loss".
    divisor : float, default 1.0
        The gradient is that of the sum of the row losses divided by this number: of a mean, the number of rows or the
        sum of their weights. Where it is 0, the gradient is 0.
    upstream : float or array_like that broadcasts to the rows, default 1.0
        Factor of the gradient.

    Returns
    -------
    ndarray of the shape and dtype of x
        The shard of the gradient of ``csoftmax.cross_entropy_with_grad`` of the whole rows, equal in every bit.

    Raises
    ------
    IndexError, ValueError
        As in `finish_loss`.
    NotImplementedError
        If factors are so large that gradients of classes far below the maximum count, which needs the whole row.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.distributed import finish_gradient, merge, partial
    >>> x = np.zeros((1, 8192))
    >>> shards = [slice(0, 4096), slice(4096, 8192)]
    >>> parts = [partial(x[:, s], offset=s.start, n_classes=8192, kind="loss", target=[5000]) for s in shards]
    >>> float(finish_gradient(x[:, :4096], parts[0], merge(parts))[0, 0])
    0.0001220703125
    """
    return _finish_gradient(x, partial, merged, axis, divisor, upstream, out=out)


@keep_labels()
@accept_foreign
def _finish_gradient(x: Any, partial: Partial, merged: Any, axis: Any, divisor: Any, upstream: Any, out: Any) -> Any:
    check_kind(partial, "finish_gradient", "loss")
    axis = _check_axis(partial, axis)
    terms = partial.terms
    if not (divisor := as_number("divisor", divisor)) >= 0:
        raise ValueError(f"divisor must be at least 0, got {divisor!r}")
    factor = check_upstream(upstream, "none", terms.batch)
    whole = check_merged(partial, merged)
    rows = _rows(partial, x)
    shard = loss_shard(partial, whole, rows)
    marks = find_lost(partial, whole, shard, factor, divisor)
    if marks is not None and (lost := marks == 1).any():
        row = tuple(map(int, np.unravel_index(int(lost.argmax()), lost.shape)))
        raise NotImplementedError(
            f"row {row} has gradients that underflow before they are multiplied by its weights, upstream or 1 / "
            "temperature; csoftmax.cross_entropy_with_grad with whole rows computes them"
        )
    result, to = _place_result(out, as_float("x", x)[0], axis)
    rows, soft = _apart(out, axis, shard.x, shard.soft)
    shard = shard._replace(x=rows, soft=soft)
    write_gradient(partial, whole, shard, to, upstream=factor, divisor=divisor)
    return result
