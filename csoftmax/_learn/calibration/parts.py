"""Held-out rows in the parts of an engine, as the calibrators use them: sums over all parts, never the rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..labels import is_text
from ..parts.engine import Engine, total
from ..parts.rows import first_rows, name_row
from .rows import Array, Checked, Rows, check_rows, match_labels
from .terms import Terms


class _Refused(NamedTuple):
    """Why a part is refused."""

    error: type[Exception]
    text: str


class _Summary(NamedTuple):
    """Facts about a part that the fit collects before labels are numbers of columns."""

    given: int  # rows, with those of weight 0
    labels: NDArray[Any]  # distinct
    rows: NDArray[np.intp]  # the first that has each of them
    columns: int
    one_axis: bool
    is_weighted: bool
    refused: _Refused | None


class _Loaded(NamedTuple):
    """A checked part; None: it has no row with weight, or it is refused."""

    checked: Checked | None
    summary: _Summary


def _load(given: tuple[Any, ...], name: str, _number: int) -> _Loaded:
    logits, y, *rest = given
    weight = rest[0] if rest else None
    rows = int(logits.shape[0])
    none = np.zeros(0, np.intp)
    nothing = _Summary(rows, none, none, 0, False, weight is not None, None)
    if rows == 0 or (weight is not None and not np.asarray(weight).any()):
        return _Loaded(None, nothing)
    try:
        if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1:
            y = np.asarray(y)[:, 0]
        checked = check_rows(logits, y, weight, _Named(name))
    except (TypeError, ValueError) as error:
        return _Loaded(None, nothing._replace(refused=_Refused(type(error), str(error))))
    fixed = checked.z.shape[1], checked.one_axis, weight is not None, None
    distinct, first = np.unique(checked.labels, return_index=True)
    first = first if checked.numbers is None else checked.numbers[first]
    return _Loaded(checked, _Summary(rows, distinct, first, *fixed))


class _Named:
    """Stands for a calibrator in messages."""

    def __init__(self, name: str):
        self.__class__ = type(name, (_Named,), {})


def _summarize(part: _Loaded, _payload: None, _number: int) -> _Summary:
    return part.summary


def _settle(part: _Loaded, payload: Any, _number: int) -> Rows | _Refused | None:
    distinct, indices, classes = payload
    if part.checked is None:
        return None
    columns = indices[np.searchsorted(distinct, part.checked.labels)]
    try:
        return part.checked.finish(columns, classes)
    except ValueError as error:
        return _Refused(type(error), str(error))


class _Facts(NamedTuple):
    """A part with final labels; at_best: no logit is above the label's; some_below: a finite one is below."""

    refused: _Refused | None
    rows: int
    weight: float
    separable: tuple[bool, bool]


def _count(part: Rows | _Refused | None, _payload: None, _number: int) -> _Facts:
    if isinstance(part, Rows):
        return _Facts(None, part.count, part.total, part.compare())
    return _Facts(part, 0, 0.0, (True, False))


def _add_temperatures(part: Rows | None, beta: float, _number: int) -> Array:
    if part is None:
        return np.zeros(4)
    return np.array(part.open_temperature()(beta)) * part.total


def _make_terms(part: Rows | None, payload: Any, _number: int) -> Terms | None:
    features, temperature = payload
    return None if part is None else Terms(part, features(part.z, temperature))


def _add_terms(part: Terms | None, payload: tuple[Array, Array], _number: int) -> Array:
    coef, intercept = payload
    if part is None:
        return np.zeros(1 + coef.size + intercept.size)
    loss, grad_coef, grad_intercept = part.evaluate(coef, intercept)
    return np.concatenate([[loss], grad_coef.ravel(), grad_intercept]) * part.rows.total


def _compare(part: Terms | None, payload: Any, _number: int) -> tuple[bool, bool]:
    return (True, False) if part is None else part.map_freely(*payload).compare()


def _join(found: list[tuple[bool, bool]]) -> bool:
    return all(best for best, _ in found) and any(below for _, below in found)


class PartsRows:
    """Held-out rows of all parts."""

    def __init__(self, engine: Engine, facts: list[_Facts], summary: _Summary, classes: NDArray[Any]):
        self.engine, self.classes, self.columns = engine, classes, summary.columns
        self.one_axis, self.is_weighted = summary.one_axis, summary.is_weighted
        self.count = sum(fact.rows for fact in facts)
        self.total = float(total(engine, _weigh, None)[0])
        self._is_separable = self.columns > 1 and _join([fact.separable for fact in facts])

    def is_separable(self) -> bool:
        """Whether every row is classified correctly."""
        return self._is_separable

    def open_temperature(self) -> Callable[[float], tuple[float, float, float, float]]:
        """A function of beta, as that of `Rows`."""

        def measure(beta: float) -> tuple[float, float, float, float]:
            loss, slope, size, curvature = (total(self.engine, _add_temperatures, beta) / self.total).tolist()
            return loss, slope, size, curvature

        return measure

    def open_terms(self, features: Callable[[Array, float], Array], temperature: float) -> PartsTerms:
        """The terms of affine maps of the features; the parts have no other use after that."""
        self.engine.change(_make_terms, (features, temperature))
        return PartsTerms(self)


class PartsTerms:
    """The loss of affine maps over all parts, and its gradients."""

    def __init__(self, rows: PartsRows):
        self.rows = rows

    def evaluate(self, coef: Array, intercept: Array) -> tuple[float, Array, Array]:
        """Mean loss and gradients, as `Terms.evaluate`."""
        vector = total(self.rows.engine, _add_terms, (coef, intercept)) / self.rows.total
        return float(vector[0]), vector[1 : 1 + coef.size].reshape(coef.shape), vector[1 + coef.size :]

    def is_separable(self, coef: Array, intercept: Array, factors: tuple[float, float, float]) -> bool:
        """Whether the part of the map that no penalty holds classifies all rows correctly."""
        found = self.rows.engine.gather(_compare, (coef, intercept, factors))
        return self.rows.columns > 1 and _join(found)


def _weigh(part: Rows | None, _payload: None, _number: int) -> Array:
    return np.array([0.0 if part is None else part.total])


def read_parts(engine: Engine, classes: ArrayLike | None, estimator: Any) -> PartsRows:
    """Check the parts, which are tuples (logits, y) or (logits, y, sample_weight)."""
    engine.change(_load, type(estimator).__name__)
    found = engine.gather(_summarize, None)
    starts = np.cumsum([0, *(summary.given for summary in found)]).tolist()
    _raise_refused([summary.refused for summary in found], starts)
    filled = [(number, summary) for number, summary in enumerate(found) if summary.columns]
    if not filled:
        raise ValueError(f"no part of {len(found)} has a row with weight: there is nothing to learn from")
    first_number, first = filled[0]
    for number, summary in filled[1:]:
        same = summary.columns == first.columns and summary.one_axis == first.one_axis
        if not same or is_text(summary.labels) != is_text(first.labels):
            raise ValueError(f"parts {first_number} and {number} disagree on the columns of logits or the kind of y")
    distinct = np.unique(np.concatenate([summary.labels for _, summary in filled]))
    rows = first_rows(distinct, ((summary.labels, starts[number] + summary.rows) for number, summary in filled))
    order = np.argsort(rows)  # the first bad row is named
    indices, named = match_labels(distinct[order], first.columns, classes, rows[order])
    indices = indices[np.argsort(order)]
    engine.change(_settle, (distinct, indices, named))
    facts = engine.gather(_count, None)
    _raise_refused([fact.refused for fact in facts], starts)
    return PartsRows(engine, facts, first, named)


def _raise_refused(refused: list[_Refused | None], starts: list[int]) -> None:
    for number, problem in enumerate(refused):
        if problem is not None:
            raise problem.error(name_row(problem.text, number, starts[number]))
