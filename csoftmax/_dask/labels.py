"""Losses on chunks: bad labels and weights by their place among all rows, and weights that depend on all chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np

from .._arguments.labels import raise_bad_label, raise_bad_weight, round_keeping_sign
from .._arguments.layers import scale_products
from .collections import is_number


def raise_bad_chunk(target: Any, n_classes: int, ignore_index: int | None, begins: list[int], first: int = 0) -> None:
    """`raise_bad_label` with the place of the label among all rows, or in a chunk where that is not known.

    target : labels, or soft labels with the class axis last, from the class `first` on.
    begins : of each axis of the rows the index at which the chunk begins; -1 - i: chunk i of unknown place.
    """
    raise_bad_label(target, n_classes, ignore_index, *place_in_call(begins, [first] * (target.ndim - len(begins))))


def raise_bad_weight_of_chunk(s: Any, begins: list[int]) -> None:
    """`raise_bad_weight` of the weights of a chunk's rows, likewise."""
    raise_bad_weight("sample_weight", s, round_keeping_sign(s, np.float64), *place_in_call(begins[-s.ndim :], []))


def place_in_call(begins: list[int], others: list[int]) -> tuple[Callable[[tuple[Any, ...]], tuple[Any, ...]], str]:
    """The place in the call of an element of a chunk, and what a message says of a chunk of unknown place."""
    unknown = [-1 - b for b in begins if b < 0]
    offset = (*(max(0, b) for b in begins), *others)
    part = f" of chunk {', '.join(map(str, unknown))}" if unknown else ""
    return lambda at: tuple(i + first for i, first in zip(at, offset, strict=True)), part


def largest_of(a: Any) -> Any:
    """The largest element of an argument that is not negative, or 0, as a number or an array without axes."""
    return float(a) if is_number(a) else da.reduction(a, _largest, _largest, dtype=np.float64, concatenate=True)


def _largest(a: Any, axis: Any, keepdims: Any) -> Any:
    return np.max(np.asarray(a, np.float64), axis=axis, keepdims=keepdims, initial=0)


def scale_chunk(weight: Any, s: Any, largest: list[Any], batch: tuple[int, ...]) -> tuple[Any, Any]:
    """`scale_products` for a chunk of the rows or classes, from the largest weights of all chunks."""
    most, most_s = largest
    if weight is None:
        return weight, s
    with np.errstate(over="ignore"):
        every = np.append(weight, np.asarray(most).astype(weight.dtype))
    each = None if s is None else np.append(s.reshape(-1), np.asarray(most_s, np.float64))
    every, each = scale_products(every, each, batch)
    if s is not None:
        each = each[:-1].reshape(batch)
    return np.ascontiguousarray(every[:-1]), each
