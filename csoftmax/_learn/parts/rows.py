"""Parts of the rows that a model learns from: checked, then in normal form for all parts together.

A part is checked without the others (`load`): its labels are numbered by themselves, and a value that is refused is
described, not raised, so that one error can name the first bad row of all.  With the classes of all parts known,
`settle` numbers the labels anew, drops rows of weight 0 and takes out the rows for early stopping.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.preprocessing import LabelEncoder
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from ..labels import indices_of, is_text
from ..messages import show
from ..objective import find_largest_magnitudes, is_sparse
from ..parameters import Rows, check_data, check_sample_weight

REMEDIES = {
    "X": "features must be finite: fill what is missing, or leave the row out",
    "y": "every row needs a label",
    "sample_weight": "weights must be finite and at least 0",
}


class Problem(NamedTuple):
    """Why a part is refused."""

    error: type[Exception]
    text: str
    name: str  # of the argument
    row: int | None  # in the part
    value: str


class Part(NamedTuple):
    """Checked rows of one part."""

    x: Any
    codes: NDArray[np.intp]  # labels as numbers in `classes`
    classes: NDArray[Any]  # the labels of this part, sorted
    weights: NDArray[np.float64] | None
    names: tuple[str, ...] | None  # of the features
    problem: Problem | None


class Summary(NamedTuple):
    """Facts about a part that the fit collects before the classes are known."""

    rows: int
    features: int | None
    dtype: Any
    nbytes: int
    names: tuple[str, ...] | None
    classes: NDArray[Any]
    is_weighted: bool
    has_weight: bool  # whether a row has a weight above 0
    problem: Problem | None


class Settings(NamedTuple):
    """What all parts are told to settle their rows."""

    classes: NDArray[Any]
    dtype: Any
    starts: list[int]  # number of the first row of each part among all rows
    seed: int | None  # of the draw of the rows for early stopping; None: there are none
    fraction: float


class SettledPart(NamedTuple):
    """Rows of a part for training and for early stopping."""

    train: Rows
    held_out: Rows | None


def own_memory(a: Any) -> Any:
    """The array in C order and aligned: products of others leave BLAS, slower and with other bits."""
    return a if is_sparse(a) else np.require(a, requirements=["C", "A"])


def _find_bad_row(given: tuple[Any, Any, Any]) -> tuple[str, int, str] | None:
    """Name, row and value of the first label, feature or weight that is missing, not finite, or negative."""
    x, y, weight = given
    for name, a in (("y", y), ("X", x), ("sample_weight", weight)):
        if a is None:
            continue
        try:
            values = a.data if is_sparse(a) else np.asarray(a)
        except (TypeError, ValueError):
            continue
        if values.dtype == object:
            bad = np.frompyfunc(lambda v: v is None or type(v).__name__ == "NAType" or v != v, 1, 1)(values)
            bad = bad.astype(bool)
        elif values.dtype.kind in "fiu":
            bad = ~np.isfinite(values) | ((values < 0) & (name == "sample_weight"))
        else:
            continue
        found = np.argwhere(np.atleast_1d(bad))
        if len(found):
            at = tuple(found[0])
            row = int(at[0]) if not is_sparse(a) else int(np.searchsorted(a.tocsr().indptr, at[0], side="right")) - 1
            return name, row, repr(values[at].item() if hasattr(values[at], "item") else values[at])
    return None


class SoftmaxRegression(BaseEstimator):
    """Stands for the model where a part is checked, under its name in messages."""


def load(given: tuple[Any, ...], _payload: None, _number: int) -> Part:
    """Check one part: (X, y) or (X, y, sample_weight)."""
    x, y, *rest = given
    weight = rest[0] if rest else None
    stand_in = SoftmaxRegression()
    nothing = np.zeros(0, np.intp)
    try:
        if is_sparse(x):
            x = x.tocsr()
        if getattr(y, "ndim", 1) == 2 and y.shape[1] == 1:
            y = np.asarray(y)[:, 0]
        x, labels = check_data(stand_in, x, y, reset=True, min_rows=0)
        weights = check_sample_weight(weight, x) if x.shape[0] else None if weight is None else np.zeros(0)
        encoder = LabelEncoder()
        if len(labels):
            check_classification_targets(labels)
            codes, classes = encoder.fit_transform(labels), encoder.classes_
        else:
            codes, classes = nothing, np.asarray(labels)
    except (TypeError, ValueError) as error:
        name, row, value = _find_bad_row((given[0], y, weight)) or ("", None, "")
        rows = int(given[0].shape[0]) if hasattr(given[0], "shape") else len(given[0])
        problem = Problem(type(error), str(error), name, row, value)
        return Part(np.zeros((rows, 0)), nothing, np.zeros(0), None, None, problem)
    names = getattr(stand_in, "feature_names_in_", None)
    return Part(own_memory(x), codes, classes, weights, None if names is None else tuple(names.tolist()), None)


def summarize(part: Part, _payload: None, _number: int) -> Summary:
    """Collect the facts about a part."""
    x, weights = part.x, part.weights
    nbytes = x.data.nbytes + x.indices.nbytes if is_sparse(x) else x.nbytes
    has_weight = bool(x.shape[0]) if weights is None else bool(weights.any())
    fixed = x.shape[0], x.shape[1], x.dtype, nbytes, part.names
    return Summary(*fixed, part.classes, weights is not None, has_weight, part.problem)


def raise_problem(summaries: Sequence[Summary]) -> None:
    """Raise the error of the first part that is refused, with the number of the row among all."""
    start = 0
    for number, found in enumerate(summaries):
        problem = found.problem
        if problem is not None:
            if problem.row is None:
                raise problem.error(f"part {number}: {problem.text}")
            raise problem.error(
                f"{problem.name}[{start + problem.row}], row {problem.row} of part {number}, is {problem.value}; "
                f"{REMEDIES[problem.name]}"
            )
        start += found.rows


_PLACE = re.compile(r"(\w+)\[(\d+)([^]]*)\]")  # of an element, with which a message begins


def name_row(text: str, number: int, start: int) -> str:
    """The message about an element of a part, which begins at row `start`, with the number of its row among all."""
    found = _PLACE.match(text)
    if found is None:
        return f"part {number}, which begins at row {start}: {text}"
    name, row, columns = found.groups()
    return f"{name}[{start + int(row)}{columns}], row {row} of part {number},{text[found.end() :]}"


def first_rows(distinct: NDArray[Any], found: Iterable[tuple[NDArray[Any], NDArray[np.intp]]]) -> NDArray[np.intp]:
    """The number of the first row of each label, for messages.

    found: of each part in order, its distinct labels, and the numbers of the first rows that have them.
    """
    numbers = np.full(len(distinct), -1, np.intp)
    for labels, rows in found:
        at = np.searchsorted(distinct, labels)
        new = numbers[at] < 0
        numbers[at[new]] = rows[new]
    return numbers


def agree(summaries: Sequence[Summary]) -> Summary:
    """One summary for all parts; refuses parts that do not fit together."""
    filled = [(number, found) for number, found in enumerate(summaries) if found.rows]
    if not filled:
        raise ValueError(f"X has no rows in any of its {len(summaries)} parts")
    first_number, first = filled[0]
    for number, found in filled[1:]:
        for what, one, other in (
            ("features", first.features, found.features),
            ("dtype", first.dtype, found.dtype),
            ("names of features", first.names, found.names),
        ):
            if one != other:
                raise ValueError(f"parts disagree on X: {what} {one} in part {first_number}, {other} in part {number}")
        if found.is_weighted != first.is_weighted:
            raise ValueError(f"sample_weight must be given for all parts or for none; part {number} differs")
        if is_text(found.classes) != is_text(first.classes):
            raise ValueError(
                f"labels of one kind are needed: part {first_number} has {show(first.classes[0])}, part {number} "
                f"{show(found.classes[0])}"
            )
    if not any(found.has_weight for _, found in filled):
        raise ValueError("sample_weight is zero for every row: there is no class to learn")
    every = np.concatenate([found.classes for _, found in filled])
    rows, nbytes = (sum(getattr(found, name) for _, found in filled) for name in ("rows", "nbytes"))
    return first._replace(rows=rows, nbytes=nbytes, classes=LabelEncoder().fit(every).classes_)


def record_features(estimator: Any, found: Summary, *, reset: bool) -> None:
    """Set or compare the number and the names of the features."""
    stub: Any = np.zeros((1, found.features or 0))
    if found.names is not None:
        import pandas

        stub = pandas.DataFrame(stub, columns=list(found.names))
    validate_data(estimator, stub, reset=reset, skip_check_array=True)


def find_unknown_label(part: Part, classes: NDArray[Any], _number: int) -> tuple[int, Any] | None:
    """Row and value of the first label that is not among the classes."""
    if not len(part.classes):
        return None
    if is_text(part.classes) != is_text(classes):
        return 0, part.classes[part.codes[0]]
    _, unknown = indices_of(part.classes, classes)
    if not len(unknown):
        return None
    row = int(np.flatnonzero(np.isin(part.codes, unknown))[0])
    return row, part.classes[part.codes[row]]


def settle(part: Part, settings: Settings, number: int) -> SettledPart:
    """The rows of a part in the form in which they are added up."""
    classes = settings.classes
    if len(part.codes):
        y = indices_of(part.classes, classes)[0].astype(np.intp)[part.codes]
    else:
        y = np.zeros(0, np.intp)
    x, weights = part.x.astype(settings.dtype, copy=False), part.weights
    held = None
    if settings.seed is not None:
        held = draw_uniforms(settings.seed, settings.starts[number], len(y)) < settings.fraction
    kept = None if weights is None or weights.all() else weights > 0
    if held is None and kept is None:
        return SettledPart((x, y, weights), None)

    def take(mask: NDArray[np.bool_]) -> Rows:
        rows = np.flatnonzero(mask if kept is None else mask & kept)
        return own_memory(x[rows]), y[rows], None if weights is None else weights[rows]

    if held is None:
        return SettledPart(take(np.ones(len(y), bool)), None)
    return SettledPart(take(~held), take(held))


def draw_uniforms(seed: int, first: int, count: int) -> NDArray[np.float64]:
    """Uniform numbers of the rows from `first` on, which depend on the seed and on the number of the row alone."""
    bits = np.random.Philox(key=seed)
    bits.advance(first // 4)  # four numbers a step of its counter
    raw = bits.random_raw(first % 4 + count)[first % 4 :]
    return np.asarray((raw >> np.uint64(11)) * 2.0**-53)


class Counts(NamedTuple):
    """Counts of a part whose labels have become numbers."""

    rows: int
    held_out: int
    first: NDArray[np.float64] | None  # the first row of a dense X
    largest: NDArray[np.float64] | None


def count(part: SettledPart, _payload: None, _number: int) -> Counts:
    """Rows of a settled part, and its first one."""
    x = part.train[0]
    is_filled = x.shape[0] > 0
    first = x[0].astype(np.float64) if is_filled and not is_sparse(x) else None
    held_out = 0 if part.held_out is None else part.held_out[0].shape[0]
    return Counts(x.shape[0], held_out, first, find_largest_magnitudes(x) if is_filled else None)


def weigh_labels(part: SettledPart, classes: int, _number: int) -> NDArray[np.float64]:
    """For each class the weight of its rows for training, then of its rows for early stopping."""
    sums = np.zeros((2, classes))
    for i, rows in enumerate((part.train, part.held_out)):
        if rows is not None and len(rows[1]):
            _, y, weights = rows
            if weights is None:
                sums[i] = np.bincount(y, minlength=classes)
            else:
                order = np.argsort(y, kind="stable")
                bounds = np.searchsorted(y[order], np.arange(classes + 1))
                sorted_weights = weights[order]
                sums[i] = [math.fsum(sorted_weights[a:b]) for a, b in itertools.pairwise(bounds)]
    return sums.ravel()
