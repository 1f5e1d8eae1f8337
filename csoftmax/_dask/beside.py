"""Arguments beside the logits, in the same chunks."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .._arguments.foreign import is_lazy_array, is_lazy_frame
from .._arguments.numbers import allowed_for_rows, raise_bad_rows, raise_rows_shape
from .blocks import find_lengths, map_chunks
from .collections import FIND_LENGTHS, Begins, Letters, as_lazy, is_unknown, rechunk
from .labels import place_in_call

OF_ROWS = ("temperature", "alpha")  # arguments with a number for each row


def lay_beside(
    name: str, a: Any, letters: Letters, chunks: Sequence[Any], *, broadcasts: bool = True, like: Any = None
) -> Any:
    """An argument in the chunks of the call, from the right, and its axes; an axis of length 1 stays as it is.

    letters, chunks : the axes that it may have, and their chunks.
    like : the array of whose axes these are some; where the lengths of its chunks are unknown, an argument in memory is
        cut by them when they have been computed.
    """
    is_there = like is not None and not (is_lazy_array(a) or is_lazy_frame(a))
    a = as_lazy(name, a)
    if is_there:
        a = _cut_by_lengths(name, a, letters, like, broadcasts)
    shape = tuple(sum(c) for c in chunks)
    own = letters[len(letters) - a.ndim :] if a.ndim <= len(letters) else None
    fits = own is not None and (broadcasts or a.ndim == len(letters))
    new = {}
    for i in range(a.ndim if fits else 0):
        there = chunks[len(letters) - a.ndim + i]
        n, m = a.shape[i], sum(there)
        if n == 1 and broadcasts and m != 1:
            new[i] = -1
            continue
        if is_unknown(n) or is_unknown(m):
            if len(a.chunks[i]) != len(there):
                raise ValueError(
                    f"{name} has {len(a.chunks[i])} chunks along axis {i}, and the logits have {len(there)}; where "
                    f"lengths of chunks are unknown, their numbers must be equal: {FIND_LENGTHS}"
                )
        elif n != m:
            fits = False
        elif a.chunks[i] != there:
            new[i] = there
    if not fits:
        if name in OF_ROWS and like is not None and len(letters) == like.ndim:
            raise_rows_shape(name, a.shape, shape)
        how = "does not broadcast to" if broadcasts else "must be"
        raise ValueError(f"{name} has shape {a.shape}, which {how} {shape}")
    return rechunk(a, new), own


def _cut_by_lengths(name: str, a: Any, letters: Letters, like: Any, broadcasts: bool) -> Any:
    """An array that is one chunk, cut where chunks of the logits have unknown lengths."""
    own = letters[len(letters) - a.ndim :] if a.ndim <= len(letters) else ()
    for axis, letter in enumerate(own):
        if not any(map(is_unknown, like.chunks[letter])) or (broadcasts and a.shape[axis] == 1):
            continue
        ends = find_lengths(like, letter).cumsum(axis=0)
        rows = [(ends, (letter,)), (find_lengths(like, letter), (letter,)), (ends[-1], ())]
        chunks = {letter: (np.nan,) * len(like.chunks[letter])}
        a = map_chunks(functools.partial(_cut, name, axis), own, [(a, own), *rows], dtype=a.dtype, chunks=chunks)
    return a


def _cut(name: str, axis: int, whole: Any, end: Any, length: Any, rows: Any) -> Any:
    if whole.shape[axis] != rows:
        raise ValueError(f"{name} has {whole.shape[axis]} rows along axis {axis}, and the logits have {int(rows)}")
    stop = int(end[0])
    return whole[(slice(None),) * axis + (slice(stop - int(length[0]), stop),)]


def lay_rows_beside(name: str, a: Any, letters: Letters, chunks: Sequence[Any], like: Any, *, gradient: bool) -> Any:
    """Temperatures or alphas as `lay_beside` gives them; the first bad one is named by its place among all rows."""
    a, own = lay_beside(name, a, letters, chunks, like=like)
    begins = [(Begins(c), (letter,)) for c, letter in zip(a.chunks, own, strict=True)]
    function = functools.partial(_check_chunk, name, gradient, len(letters))
    return map_chunks(function, own, [(a, own), *begins], dtype=a.dtype, like=a), own


def kept_chunks(x: Any, axes: Sequence[int]) -> tuple[Any, ...]:
    """The chunks of the rows of x, with length 1 along the axes of the classes."""
    return tuple((1,) if i in axes else c for i, c in enumerate(x.chunks))


def _check_chunk(name: str, gradient: bool, rank: int, a: Any, *begins: Any) -> Any:
    if a.dtype.kind in "iuf" and isinstance(a, np.ndarray):  # all others are refused by the function itself
        place_of, part = place_in_call([*begins], [])
        missing = (0,) * (rank - a.ndim)
        rule = allowed_for_rows(name, gradient)
        raise_bad_rows(name, a.astype(np.float64), *rule, lambda at: (*missing, *place_of(at)), part)
    return a
