"""Sinks over shards: one more class, which the rank with the last classes computes and leaves out of its result."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._cpu.dtypes import as_buffer
from .groups import Layout
from .terms import Piece, Terms


def rank_of_last(layout: Layout) -> int:
    """The rank that has the last class; any without one if there is none."""
    ends = [first + length if length else 0 for first, length in zip(layout.offsets, layout.lengths, strict=True)]
    return int(np.argmax(ends))


def add_sink(layout: Layout, rank: int, terms: Terms, piece: Piece, sink: NDArray[Any]) -> tuple[Layout, Terms, Piece]:
    """The call with the sink of each row as a class after the last, which `where` never masks."""
    last, n = rank_of_last(layout), layout.n_classes
    lengths = tuple(length + (r == last) for r, length in enumerate(layout.lengths))
    offsets = tuple(n if r == last and length == 0 else first for r, (first, length) in enumerate(
        zip(layout.offsets, layout.lengths, strict=True)
    ))  # fmt: skip
    if rank == last:
        piece = Piece(offsets[rank], _append(piece.x, sink), where=_append(piece.where, True))
    layout = dataclasses.replace(layout, n_classes=n + 1, offsets=offsets, lengths=lengths)
    return layout, terms.with_classes(n + 1), piece


def _append(a: Any, value: Any) -> Any:
    """A copy of the array with one more element at the end of each row."""
    if a is None:
        return None
    longer = np.empty((*a.shape[:-1], a.shape[-1] + 1), a.dtype)
    longer[..., :-1] = a
    longer[..., -1] = as_buffer(value) if isinstance(value, np.ndarray) else value
    return longer


def drop_sink(result: Any, axis: int, length: int, out: Any) -> Any:
    """The classes of a result without the sink, in the layout of the argument."""
    kept = np.moveaxis(np.moveaxis(as_buffer(result), axis, -1)[..., :length], -1, axis)
    if out is None:
        return np.ascontiguousarray(kept).view(result.dtype)
    as_buffer(out)[...] = kept
    return out
