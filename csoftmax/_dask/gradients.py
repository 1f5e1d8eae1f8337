"""Gradients of losses whose classes are in several chunks, from merged sums.

clip_norm needs one more tree, of the sums of squares. Rows whose gradients underflow before they are multiplied by
large factors are computed from whole rows: two more trees, whose tasks return at once where there is no such row.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._arguments.labels import check_upstream
from .._cpu import binding
from .._distributed.finish import add_squares, find_lost, write_gradient
from .._distributed.merged import Merged
from .._distributed.rows import place_result
from .._distributed.shard import Partial, Piece, Terms
from .blocks import Argument, merge_chunks
from .shards import Sums

_Lost = tuple[
    tuple[int, Any, Any, Any], ...
]  # of shards: the first class; x, soft labels and class weights of some rows


def finish_gradients(
    sums: Sums,
    factors: list[Argument],
    *,
    upstream: Any,
    clips: bool,
    may_be_lost: bool,
    num_threads: Any,
    split_every: int,
    **to: Any,
) -> Any:
    """The gradients.

    factors : the divisor, and the upstream gradient where it is an array; else `upstream` is a number.
    clips : whether there is a clip_norm.
    may_be_lost : whether factors may be so large that gradients of classes far below the maximum count.
    to : dtype and kind of the result.
    """
    rows, further = sums.rows, list(factors)
    shared = {"upstream": upstream, "has_rows": len(factors) > 1, "clips": clips, "num_threads": num_threads}
    merge = functools.partial(merge_chunks, axis=sums.axis, split_every=split_every)
    if clips:
        squares = sums.finish(functools.partial(_squares, shared), *factors, dtype=object, keeps_class=False)
        further.append((merge(_merge_squares, squares), rows))
    if may_be_lost:
        marks = sums.finish(functools.partial(_mark_lost, shared), *factors, dtype=object, keeps_class=False)
        marked = merge(_merge_marks, marks), rows
        pieces = sums.finish(_take_lost, marked, dtype=object, keeps_class=False)
        further += [marked, (merge(_merge_lost, pieces), rows)]
    return sums.finish(functools.partial(_write, shared, sums.axis), *further, **to)


def _split(shared: dict[str, Any], terms: Terms, further: tuple[Any, ...]) -> tuple[float, Any, list[Any]]:
    """The divisor, the upstream gradient of the rows or None, and what follows them."""
    divisor, *rest = further
    upstream = rest.pop(0) if shared["has_rows"] else shared["upstream"]
    return float(divisor), check_upstream(upstream, "none", terms.batch), rest


def _squares(shared: dict[str, Any], terms: Terms, piece: Piece, part: Partial, merged: Merged, *further: Any) -> Any:
    divisor, upstream, _ = _split(shared, terms, further)
    if divisor == 0:
        return None
    return add_squares(terms, merged, piece, part.block_max, upstream, divisor)


def _merge_squares(parts: list[Any]) -> Any:
    if parts[0] is None:
        return None
    result = parts[0].copy()
    for other in parts[1:]:
        binding.merge_sums(result, np.ascontiguousarray(other))
    return result


def _mark_lost(shared: dict[str, Any], terms: Terms, piece: Piece, part: Partial, merged: Merged, *further: Any) -> Any:
    divisor, upstream, _ = _split(shared, terms, further)
    marks = find_lost(part, merged, piece, upstream, divisor)
    return marks == 1 if marks is not None and (marks == 1).any() else None


def _merge_marks(marks: list[Any]) -> Any:
    found = [m for m in marks if m is not None]
    return functools.reduce(np.logical_or, found) if found else None


def _take_lost(terms: Terms, piece: Piece, part: Partial, merged: Merged, marks: Any) -> _Lost | None:
    if marks is None:
        return None
    x, soft = (None if a is None else np.ascontiguousarray(a[marks]) for a in (piece.x, piece.soft))
    return ((piece.first, x, soft, piece.weight),)


def _merge_lost(parts: list[_Lost | None]) -> _Lost | None:
    found = [piece for part in parts if part is not None for piece in part]
    return tuple(sorted(found, key=lambda piece: piece[0])) or None


def _write(
    shared: dict[str, Any], axis: int, terms: Terms, piece: Piece, part: Partial, merged: Merged, *further: Any
) -> Any:
    divisor, upstream, lost = _split(shared, terms, further)
    squares = lost.pop(0) if shared["clips"] else None
    result, rows = place_result(terms, piece, axis, None)
    threads = shared["num_threads"]
    options = {"upstream": upstream, "divisor": divisor, "num_threads": threads}
    write_gradient(part, merged, piece, rows, squares=squares, **options)
    if lost and lost[0] is not None:
        _write_lost(terms, piece, merged, rows, *lost, **options)
    return result


def _write_lost(
    terms: Terms, piece: Piece, merged: Merged, to: Any, marks: Any, pieces: _Lost, *, upstream: Any, divisor: float,
    num_threads: Any,
) -> None:  # fmt: skip
    """Compute rows whose gradients underflow again, from whole rows."""
    losses = terms.losses
    assert losses is not None
    _, x, soft, weight = zip(*pieces, strict=True)
    whole = [None if a[0] is None else np.ascontiguousarray(np.concatenate(a, axis=-1)) for a in (x, soft, weight)]
    labels, s, factor = (
        None if a is None else np.ascontiguousarray(np.broadcast_to(a, terms.batch)[marks])
        for a in (losses.labels, losses.sample_weight, upstream)
    )
    some = terms._replace(batch=(int(marks.sum()),), losses=losses._replace(labels=labels, sample_weight=s))
    gradient = np.empty((*some.batch, terms.n_classes), piece.x.dtype)
    row = Piece(0, whole[0], soft=whole[1], weight=whole[2])
    arguments = some.loss_arguments(row, None, factor, merged.weight_sum, divisor, num_threads)
    binding.finish_shard_loss(terms.dtype, False, None, None, None, gradient, None, *arguments)
    to[marks] = gradient[:, piece.first : piece.stop]
