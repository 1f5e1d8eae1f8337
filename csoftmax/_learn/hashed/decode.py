"""Scores and probabilities of classes from the softmaxes over their buckets.

The tables of some rows are made at a time: for each softmax the numbers that classes add up, in float32. A row with NaN
in one table gets NaN in all, as the kernels demand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._arguments.layers import count_chunk_rows
from ..._arguments.numbers import check_count, check_num_threads
from ..._cpu.apart import multiply
from ..._ops.hashed import as_bits, compute_scores, find_best
from ..._ops.softmax import logsumexp
from ..._ops.topk import TopK
from ..head_loss import check_features
from .state import BucketLayer, check_known

MOST_SCORES = 1 << 48  # a pebibyte of float32
NORMALISED_CLASSES = 1 << 17  # of which scores exist at a time; a multiple of the block of the kernel, 1024


class Query(NamedTuple):
    """Checked features and classes."""

    x: Any  # (n, D)
    batch: tuple[int, ...]
    ids: NDArray[Any] | None  # (m,) or (n, m), None for all classes
    width: int  # m
    num_threads: int | None


def read_query(layer: BucketLayer, x: Any, classes: Any, num_threads: Any) -> Query:
    """Check the arguments of a prediction."""
    threads = check_num_threads(layer.num_threads if num_threads is None else num_threads)
    features, _ = check_features(layer, x)
    batch = features.shape[:-1]
    flat = features.reshape(math.prod(batch), layer.n_features)
    if classes is None:
        if layer.n_classes is None:
            raise ValueError("classes must be given, because the layer was made without a number of classes")
        return Query(flat, batch, None, layer.n_classes, threads)
    ids = as_bits(classes, "classes")
    if ids.ndim == 0 or (ids.ndim > 1 and ids.shape[:-1] != batch):
        of_rows = ", ".join(map(str, (*batch, "m")))
        raise ValueError(f"classes has shape {ids.shape}; allowed are (m,), and ({of_rows}) for classes of each row")
    check_known("classes", ids, layer.n_classes)
    return Query(flat, batch, ids if ids.ndim == 1 else ids.reshape(len(flat), ids.shape[-1]), ids.shape[-1], threads)


@np.errstate(all="ignore")
def make_tables(layer: BucketLayer, x: Any, num_threads: int | None) -> NDArray[np.float32]:
    """The numbers of the buckets that make scores, (n, T, B); NaN in whole rows only."""
    parameters = layer.parameters
    logits = multiply(x, parameters["w"].T)
    if "bias" in parameters:
        logits += parameters["bias"]
    shaped = logits.reshape(len(x), layer._tables, layer.n_buckets)
    tables = np.ascontiguousarray(layer._make_tables(shaped, num_threads), np.float32)
    tables[np.isnan(tables[:, :, 0]).any(axis=1)] = np.nan  # a softmax is NaN everywhere or nowhere
    return tables


def _each_part(layer: BucketLayer, query: Query) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Rows whose logits fit a chunk, with their tables."""
    step = count_chunk_rows(len(query.x), len(layer.parameters["w"]), layer.dtype, None)
    for begin in range(0, len(query.x), step):
        rows = slice(begin, min(begin + step, len(query.x)))
        yield rows, make_tables(layer, query.x[rows], query.num_threads)


def _of_rows(query: Query, rows: slice) -> NDArray[Any] | None:
    return query.ids if query.ids is None or query.ids.ndim == 1 else query.ids[rows]


def score(layer: BucketLayer, query: Query) -> NDArray[np.float32]:
    """Scores (n, m)."""
    if query.ids is None and max(1, len(query.x)) * query.width >= MOST_SCORES:
        raise ValueError(f"classes must be given: scores of all {query.width} classes do not fit into memory")
    out = np.empty((len(query.x), query.width), np.float32)
    for rows, tables in _each_part(layer, query):
        compute_scores(
            layer._family, tables, _of_rows(query, rows), layer._make_rule(), out[rows], query.num_threads
        )  # fmt: skip
    return out


def search(layer: BucketLayer, query: Query, k: Any) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k largest scores of each row and the places of their classes among those of the query."""
    many = check_count("k", k)
    if many > query.width:
        raise ValueError(f"k must be at most {query.width}, the number of classes, got {many}")
    values, places = np.empty((len(query.x), many), np.float32), np.empty((len(query.x), many), np.int64)
    for rows, tables in _each_part(layer, query):
        ids = _of_rows(query, rows)
        found = values[rows], places[rows]
        find_best(layer._family, tables, query.width, ids, layer._make_rule(), *found, query.num_threads)
    return values, places


def name_places(query: Query, places: NDArray[np.int64]) -> NDArray[Any]:
    """The classes at places."""
    if query.ids is None:
        return places
    return query.ids[places] if query.ids.ndim == 1 else np.take_along_axis(query.ids, places, 1)


def as_topk(query: Query, values: NDArray[Any], places: NDArray[np.int64]) -> TopK:
    """The result of a search in the shape of the caller's rows."""
    shape = (*query.batch, values.shape[1])
    return TopK(values.reshape(shape), name_places(query, places).reshape(shape))


@np.errstate(all="ignore")
def normalise(layer: BucketLayer, query: Query) -> NDArray[np.float64]:
    """The log-sum-exp of the scores of all classes of each row, from some classes at a time."""
    assert layer.n_classes is not None
    n = layer.n_classes
    result, rule = np.empty(len(query.x)), layer._make_rule()
    for rows, tables in _each_part(layer, query):
        count, parts = len(tables), -(-n // NORMALISED_CLASSES)
        sums = np.empty((count, parts))
        buffer = np.empty((count, min(n, NORMALISED_CLASSES)), np.float32)
        for i in range(parts):
            begin = i * NORMALISED_CLASSES
            length = min(n - begin, NORMALISED_CLASSES)
            part = buffer if length == buffer.shape[1] else np.empty((count, length), np.float32)
            compute_scores(layer._family, tables, None, rule, part, query.num_threads, begin)
            sums[:, i] = logsumexp(part.astype(np.float64), num_threads=query.num_threads)
        result[rows] = logsumexp(sums, num_threads=query.num_threads)
    return result
