"""Sums over bins of predictions in parts, without rounding: the same bits for any division of the rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..probabilities import check_probabilities, check_true_labels, check_weights, read_array
from .engine import Engine
from .exact import Record, add_exactly, round_sums
from .lazy import open_parts
from .rows import first_rows, name_row

Rows = tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]
"""Columns of the labels, probabilities, weights."""


class _Loaded(NamedTuple):
    p: NDArray[np.float64]
    codes: NDArray[np.intp]
    labels: NDArray[Any]  # distinct
    first: NDArray[np.intp]  # the first row that has each of them
    w: NDArray[np.float64]
    refused: tuple[type[Exception], str] | None
    rows: int  # with those that have no weight


class _Summary(NamedTuple):
    columns: int
    labels: NDArray[Any]
    first: NDArray[np.intp]
    refused: tuple[type[Exception], str] | None
    has_whole_weights: bool
    largest_weight: float
    rows: int


class Binned(NamedTuple):
    """Sums over the rows of each bin."""

    weight: NDArray[np.float64]
    hits: NDArray[np.float64]
    confidence: NDArray[np.float64]
    counts: NDArray[np.int64]
    sizes: NDArray[np.float64]


def _load(given: tuple[Any, ...], _payload: None, _number: int) -> _Loaded:
    y_prob, y_true, *rest = given
    none = np.zeros(0, np.intp)
    nothing = _Loaded(np.zeros((0, 0)), none, none, none, np.zeros(0), None, 0)
    try:
        y = read_array("y_true", y_true)
        nothing = nothing._replace(rows=len(y))
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        weight = rest[0] if rest else None
        if not len(y) or (weight is not None and not np.asarray(weight).any()):
            return nothing
        p = check_probabilities(y_prob, len(y))
        w = check_weights(weight, len(y))
        if y.dtype.kind == "O":
            y = np.array(y.tolist())
        labels, first, codes = np.unique(y, return_index=True, return_inverse=True)
    except (TypeError, ValueError) as error:
        return nothing._replace(refused=(type(error), str(error)))
    return _Loaded(p, codes.reshape(-1), labels, first, w, None, len(y))


def _summarize(part: _Loaded, _payload: None, _number: int) -> _Summary:
    whole = bool((part.w == np.round(part.w)).all())
    largest = float(part.w.max(initial=0))
    return _Summary(part.p.shape[1], part.labels, part.first, part.refused, whole, largest, part.rows)


def _settle(part: _Loaded, payload: Any, _number: int) -> Rows | None:
    if not len(part.w):
        return None
    distinct, columns = payload
    y = columns[np.searchsorted(distinct, part.labels)][part.codes]
    kept = part.w > 0
    return y[kept], part.p[kept], part.w[kept]


class _Request(NamedTuple):
    n_bins: int
    edges: NDArray[np.float64]
    by_class: bool  # bins of the probability of each class; else of the largest one
    unit: float  # of the weights in their squares


def _fill(part: Rows | None, request: _Request, _number: int) -> Any:
    if part is None:
        return None
    y, p, w = part
    n, k = request.n_bins, p.shape[1]
    if request.by_class:
        confidence, hits = p.ravel(), (y[:, None] == np.arange(k)).ravel()
        first, w = np.tile(np.arange(k) * n, len(y)), np.repeat(w, k)
    else:
        predicted = p.argmax(axis=1)
        confidence, hits, first = p[np.arange(len(p)), predicted], predicted == y, np.zeros(len(y), np.intp)
    at = first + np.searchsorted(request.edges[1:-1], confidence, side="left")
    count = n * k if request.by_class else n
    records = [add_exactly(at, values, count) for values in (w, w * hits, w * confidence, np.square(w / request.unit))]
    return records, np.bincount(at, minlength=count)


def _add_squares(part: Rows | None, _payload: None, _number: int) -> list[Record] | None:
    if part is None:
        return None
    y, p, w = part
    at_label = p[np.arange(len(p)), y]
    squares = np.square(p).sum(axis=1) - np.square(at_label) + np.square(1 - at_label)
    group = np.zeros(len(y), np.intp)
    return [add_exactly(group, squares * w, 1), add_exactly(group, w, 1)]


class _Predictions(NamedTuple):
    engine: Engine
    columns: int
    has_whole_weights: bool
    largest_weight: float


@contextlib.contextmanager
def _open(
    y_true: Any, y_prob: Any, labels: ArrayLike | None, sample_weight: Any, largest_whole: float
) -> Iterator[_Predictions]:
    with open_parts(("y_prob", y_prob), ("y_true", y_true), ("sample_weight", sample_weight)) as engine:
        engine.change(_load, None)
        found = engine.gather(_summarize, None)
        starts = np.cumsum([0, *(summary.rows for summary in found)]).tolist()
        for number, summary in enumerate(found):
            if summary.refused is not None:
                error, text = summary.refused
                raise error(name_row(text, number, starts[number]))
        filled = [(number, summary) for number, summary in enumerate(found) if summary.columns]
        if not filled:
            raise ValueError("y_prob is empty, or sample_weight is 0 for every row")
        if len({summary.columns for _, summary in filled}) > 1:
            raise ValueError(
                f"parts of y_prob have different columns: {sorted({summary.columns for _, summary in filled})}"
            )
        columns = filled[0][1].columns
        distinct = np.unique(np.concatenate([summary.labels for _, summary in filled]))
        rows = first_rows(distinct, ((summary.labels, starts[number] + summary.first) for number, summary in filled))
        order, one_column = np.argsort(rows), getattr(y_prob, "ndim", 2) == 1  # the first bad row is named
        indices = check_true_labels(distinct[order], labels, columns, rows=rows[order], one_column=one_column)
        indices = indices[np.argsort(order)]
        engine.change(_settle, (distinct, indices))
        largest = max(summary.largest_weight for _, summary in filled)
        whole = all(summary.has_whole_weights for _, summary in filled) and largest <= largest_whole
        yield _Predictions(engine, columns, whole, largest)


def bin_parts(
    y_true: Any,
    y_prob: Any,
    labels: ArrayLike | None,
    sample_weight: Any,
    edges: NDArray[np.float64],
    largest_whole: float,
    *,
    by_class: bool = False,
) -> list[Binned]:
    """Sums over bins of the largest probability, or of the probability of each class."""
    n = len(edges) - 1
    with _open(y_true, y_prob, labels, sample_weight, largest_whole) as given:
        unit = 1.0 if given.has_whole_weights else given.largest_weight
        found = [f for f in given.engine.gather(_fill, _Request(n, edges, by_class, unit)) if f is not None]
        count = n * given.columns if by_class else n
        weight, hits, confidence, squares = (round_sums((f[0][i] for f in found), count) for i in range(4))
        counts = np.sum([f[1] for f in found], axis=0)
        sizes = weight
        if not given.has_whole_weights:
            sizes = np.divide(np.square(weight / unit), squares, out=np.zeros(count), where=squares > 0)
    each = (a.reshape(-1, n) for a in (weight, hits, confidence, counts, sizes))
    return [Binned(*row) for row in zip(*each)]


def mean_square_parts(y_true: Any, y_prob: Any, labels: ArrayLike | None, sample_weight: Any) -> tuple[float, int]:
    """Mean of the squared distances of the probabilities from the one-hot labels, and the number of columns."""
    with _open(y_true, y_prob, labels, sample_weight, np.inf) as given:
        found = [f for f in given.engine.gather(_add_squares, None) if f is not None]
        squares, weight = (round_sums((f[i] for f in found), 1)[0] for i in range(2))
        return float(squares / weight), given.columns
