"""Features from the columns of a table: decided once, at fit, kept in the model, and done again at prediction.

- A column of numbers is a feature; true and false are 1 and 0.
- Any other column of text is one feature a level (one-hot).  Levels of fewer than MIN_LEVEL_ROWS rows, and those beyond
  the MAX_LEVELS commonest, share one feature, as do levels that first appear at prediction; without rare levels, a new
  one has 0 in all features.
- Missing values become the mean, or the commonest level, of the training rows.
- No features: row names (an unnamed first column; a text column whose values are all different; integers that count by
  ones; a column that is called id or index), dates, and columns without any value.  ``keep_index`` keeps row names, and
  dates as days since 1970-01-01.
- A few cells of something else in a column of numbers, of true and false, or of dates are refused: they would turn the
  column into levels, or into row names (`faults`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import UnusableError
from ..messages import Messages, count, name_some
from . import dates, faults
from .dialect import ModelColumns
from .raw import (
    TRUE_OR_FALSE,
    RawTable,
    Text,
    Values,
    as_numbers,
    as_text,
    format_number,
    index_by_value,
    parse_number,
)

MIN_LEVEL_ROWS = 5
MAX_LEVELS = 100
MIN_COUNTING_ROWS = 3  # integers in order that count by ones are row numbers from this many rows on
MIN_SHUFFLED_ROWS = 20  # the same for integers in any order
MIN_MEASURES = 20  # a few different values such as "10 mg" are a choice out of a few
RARE = "(rare)"
NO_VALUES = "without any value"
ROW_NAMES = "row names"
KEPT = (ROW_NAMES, "an unnamed first column", "row numbers, which count by ones", "ids", "dates")  # by --keep-index
VERSION = 1

_ID = re.compile(r"(?i:(.*[^a-z])?id|(row[^a-z])?index)|.*[a-z]I[dD]", re.DOTALL)  # an index may be a measurement

_MEASURE = re.compile(
    r"[-+\u2212]?(?P<before>[$€£¥]?)\s?(?P<number>[-+\u2212]?[\d.,]*\d[\d.,]*(?:[eE][-+]?\d+)?)\s?"
    r"(?P<after>(?:[^\d\s.,;:/\-][^\d\s,;:]{0,11})?)"
)


@dataclass
class Feature:
    """A column of the table, and the features that it becomes."""

    column: str
    kind: str  # "numbers", "booleans", "levels" or "days"
    fill: float | str = 0.0  # in place of a missing value
    levels: list[str] = field(default_factory=list)
    pooled: list[str] = field(default_factory=list)  # rare levels; if there are any, one feature for them comes last
    format: str = ""  # of dates

    def names(self) -> list[str]:
        """Return the names of the features."""
        if self.kind != "levels":
            return [self.column]
        return [f"{self.column}={level}" for level in [*self.levels, *[RARE] * bool(self.pooled)]]


@dataclass
class Preparation:
    """The encoding of the columns of the table that a model was trained with."""

    features: list[Feature]
    missing: str  # "mean", "drop" or "error"
    target: str
    id: str | None
    left_out: dict[str, str]  # column -> reason
    has_names: bool

    def names(self) -> list[str]:
        """Return the names of the features, in the order of the model's coefficients."""
        return [name for feature in self.features for name in feature.names()]

    def is_scaled(self) -> NDArray[np.bool_]:
        """Return for each feature whether it is standardised: levels and booleans stay 0 and 1."""
        return np.array([f.kind in ("numbers", "days") for f in self.features for _ in f.names()], bool)

    def words(self) -> list[str]:
        """Return the columns that must be read as text."""
        return [f.column for f in self.features if f.kind == "levels"] + ([self.id] if self.id else [])

    def locate(self, *, has_target: bool) -> ModelColumns:
        """Return the columns by which a table of the model is recognised, with or without a header."""
        if self.has_names:
            return ModelColumns(named=tuple(f.column for f in self.features))
        names = {f.column for f in self.features} | {*self.left_out} | ({self.id} if self.id else set())
        if has_target or {*names, self.target} != {str(i) for i in range(len(names) + 1)}:
            return ModelColumns(numbered=True)
        return ModelColumns(numbered=True, untargeted=tuple(sorted(names, key=int)))

    def to_json(self) -> dict[str, Any]:
        """Return what the header of a model file holds."""
        return {"version": VERSION, **asdict(self)}


def from_json(value: Any) -> Preparation:
    """Invert `Preparation.to_json`; refuse what it cannot have written."""
    try:
        if value["version"] != VERSION:
            raise ValueError(f"its table has version {value['version']!r}; this csoftmax reads {VERSION}")
        rest = {k: v for k, v in value.items() if k != "version"}
        preparation = Preparation(**{**rest, "features": [Feature(**f) for f in rest["features"]]})
        if not all(f.kind in ("numbers", "booleans", "levels", "days") for f in preparation.features):
            raise ValueError("a feature is of a kind that is not known")
    except (TypeError, KeyError, ValueError) as error:
        raise UnusableError(f"the model does not say rightly how its table was prepared: {error}") from error
    return preparation


def prepare(
    table: RawTable,
    target: str,
    messages: Messages,
    *,
    missing: str = "mean",
    drop: Sequence[str] = (),
    id: str | None = None,
    keep_index: bool = False,
) -> Preparation:
    """Decide which columns are features, and how.

    Parameters
    ----------
    table
        The table of `fit`.
    target
        The column of labels.
    messages
        For what was decided.
    missing
        What becomes of missing values.
    drop
        Columns that the user leaves out.
    id
        The column of ids, which is no feature.
    keep_index
        Whether row names and dates are features.

    Returns
    -------
    Preparation
        Without the values for missing cells, which `fill_in` adds.
    """
    for option, name in [("--drop", name) for name in drop] + ([("--id", id)] if id else []):
        if table.find(name) is None:
            raise UnusableError(f"{option} {name}: {say_columns(table)}")
        if option == "--id":
            table.refuse_unusable(name)
        if name == target:
            raise UnusableError(f"{option} {name}: this is the target")
    features: list[Feature] = []
    left_out: dict[str, str] = {}
    for place, (name, values) in enumerate(zip(table.names, table.columns)):
        if name in (target, id):
            continue
        if name not in drop:
            table.refuse_unusable(name)
            refuse_notation(table, name, values)
        reason = "--drop" if name in drop else find_reason(table, place, values)
        is_kept = reason is None or (keep_index and reason in KEPT)
        if is_kept or (reason == ROW_NAMES and not _ID.fullmatch(name)):
            faults.refuse(table, name, values)
        if is_kept:
            features.append(decide(table, name, values, reason == "dates"))
        elif reason is not None:
            left_out[name] = reason
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, r in left_out.items() if r == reason]
        remedy = "" if reason not in KEPT else f"; --keep-index keeps {'it' if len(names) == 1 else 'them'}"
        shown = count(len(names), "column") + f" left out, {reason}: {name_some(names)}{remedy}"
        (messages.detail if reason == "--drop" else messages.say)(shown)
    if not features:
        reasons = ", ".join(f"{name!r} ({reason})" for name, reason in left_out.items()) or "none is there"
        raise UnusableError(
            f"{table.source} has no column besides the target that could be a feature: {reasons}; --keep-index keeps "
            "row names and dates"
        )
    for feature in features:
        if feature.kind == "levels":
            messages.detail(f"column {feature.column!r}: one-hot, {count(len(feature.names()), 'level')}")
    encoded = [f for f in features if f.kind == "levels"]
    if encoded:
        rare = sum(bool(f.pooled) for f in encoded)
        also = f", rare levels pooled in {count(rare, 'column')}" if rare else ""
        shown = name_some([f.column for f in encoded])
        messages.say(f"{count(len(encoded), 'column')} of text one-hot{also}: {shown}")
    return Preparation(features, missing, target, id, left_out, table.has_names)


def find_reason(table: RawTable, place: int, values: Values) -> str | None:
    """Return why a column is no feature, or None."""
    name = table.names[place]
    if isinstance(values, Text):
        if not values.levels:
            return NO_VALUES
        if place == 0 and name in table.unnamed:
            return "an unnamed first column"
        if dates.find_format(values):
            return "dates"
        known = int((values.codes >= 0).sum())
        if known > 1 and len(values.levels) == known:
            return ROW_NAMES
        if name.casefold() in ("id", "index") and _are_integers(as_numbers(values)[0]):
            return "ids"
        return None
    known_values = values[~np.isnan(values)]
    if len(known_values) == 0:
        return NO_VALUES
    if place == 0 and name in table.unnamed:
        return "an unnamed first column"
    if not _are_integers(values):
        return None
    if table.absent is None and len(known_values) == len(values) and _counts_by_ones(values):
        return "row numbers, which count by ones"
    if name.casefold() in ("id", "index"):
        return "ids"
    if _ID.fullmatch(name) and table.has_names and len(np.unique(known_values)) == len(known_values) > 1:
        return "ids"
    return "dates" if dates.find_format(values) else None


def _are_integers(values: NDArray[Any]) -> bool:
    begin = values[:1000]
    if (begin != np.floor(begin))[~np.isnan(begin)].any():
        return False
    known = values[~np.isnan(values)]
    return len(known) > 0 and bool((known == np.floor(known)).all())


def _counts_by_ones(values: NDArray[Any]) -> bool:
    """Whether the values are consecutive integers: in order, or in any order."""
    steps = np.diff(values)
    if len(values) >= MIN_COUNTING_ROWS and ((steps == 1).all() or (steps == -1).all()):
        return True
    if len(values) < MIN_SHUFFLED_ROWS or values.max() - values.min() != len(values) - 1:
        return False
    return len(np.unique(values)) == len(values)


def decide(table: RawTable, name: str, values: Values, is_date: bool) -> Feature:
    """Return the feature that a column becomes."""
    if is_date:
        return Feature(name, "days", format=str(dates.find_format(values)))
    if not isinstance(values, Text):
        return Feature(name, "numbers")
    if {level.casefold() for level in values.levels} <= set(TRUE_OR_FALSE):
        return Feature(name, "booleans")
    counts = values.counts()
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], values.levels[i]))
    kept = [i for i in order[:MAX_LEVELS] if counts[i] >= MIN_LEVEL_ROWS]
    kept = kept or order[:1]
    if len(kept) == len(order) - 1:  # a single rare level would only lose its name
        kept = order
    pooled = sorted(values.levels[i] for i in set(order) - set(kept))
    return Feature(name, "levels", levels=sorted(values.levels[i] for i in kept), pooled=pooled)


def refuse_notation(table: RawTable, name: str, values: Values) -> None:
    """Refuse a column of numbers with a unit, or with another decimal sign than the table: they would become levels."""
    if not isinstance(values, Text) or not values.levels:
        return
    if dates.find_format(values):
        return
    many = len(values.levels) > MIN_MEASURES or len(values.levels) == (values.codes >= 0).sum() > 1
    remedy = f"or leave out the column with --drop {name}"
    other = "," if table.decimal == "." else "."
    wrong = [parse_number(level, table.decimal) is None for level in values.levels]
    is_other = many or other == "."  # 1.5 has one meaning; 1,5 may be a list, of which a few are a choice
    if is_other and any(wrong) and all(parse_number(t, other) is not None for t, w in zip(values.levels, wrong) if w):
        row = int(np.argmax(values.take(wrong, False)))
        raise UnusableError(
            f"{table.at(row)}: column {name!r} is {values.levels[values.codes[row]]!r}, with the decimal sign "
            f"{other!r}, but the table is read with {table.decimal!r}; give --decimal {other}, mend it, {remedy}"
        )
    if not many:
        return
    matches = [_MEASURE.fullmatch(level) for level in values.levels]
    units = {(m["before"], m["after"]) if m else ("", "") for m in matches}
    if (
        len(units) == 1
        and any(*units)
        and all(m and parse_number(m["number"], table.decimal) is not None for m in matches)
    ):
        unit = "".join(*units)
        row = int(np.argmax(values.codes >= 0))
        raise UnusableError(
            f"{table.at(row)}: column {name!r} is {values.levels[values.codes[row]]!r}, and the whole column is "
            f"numbers with {unit!r}; write them without it, {remedy}"
        )


def fill_in(preparation: Preparation, table: RawTable, rows: NDArray[np.bool_] | None = None) -> None:
    """Set the values for missing cells, from the rows that are used."""
    for feature in preparation.features:
        place = table.find(feature.column)
        assert place is not None, "the table is that of prepare"
        values = table.columns[place]
        if feature.kind == "levels":
            text = as_text(values)
            used = text.codes if rows is None else text.codes[rows]
            counts = np.bincount(used[used >= 0], minlength=len(text.levels))
            feature.fill = text.levels[int(np.argmax(counts))]
            continue
        numbers = _take_numbers(table, feature, values)
        numbers = numbers if rows is None else numbers[rows]
        known = numbers[~np.isnan(numbers)].astype(np.float64)
        mean = float(known.mean()) if len(known) else 0.0
        feature.fill = float(mean >= 0.5) if feature.kind == "booleans" else mean


def apply(preparation: Preparation, table: RawTable, messages: Messages) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the features of a table, and the rows that had a missing value.

    Parameters
    ----------
    preparation
        That of the model.
    table
        The table of `fit`, or another one with its columns in any order.
    messages
        For what was imputed and what was not known.

    Returns
    -------
    features, rows
        float64, or float32 if all columns of numbers are.
    """
    parts: list[NDArray[Any]] = []
    incomplete = np.zeros(table.rows, bool)
    imputed: dict[str, int] = {}
    for feature in preparation.features:
        place = table.find(feature.column)
        if place is None and table.absent is None:
            raise UnusableError(
                f"{table.source} has no column {feature.column!r}, which the model was trained with; "
                f"{say_columns(table)}{suggest(table, feature.column)}"
            )
        table.refuse_unusable(feature.column)
        values = np.full(table.rows, table.absent) if place is None else table.columns[place]
        if feature.kind == "levels":
            part, missing = _take_levels(feature, as_text(values), messages)
        else:
            numbers = _take_numbers(table, feature, values)
            missing = np.isnan(numbers)
            _refuse_infinite(table, feature.column, numbers)
            part = np.where(missing, numbers.dtype.type(feature.fill), numbers)[:, None]
        if missing.any():
            if preparation.missing == "error":
                row = int(np.argmax(missing))
                raise UnusableError(
                    f"{table.at(row)}: column {feature.column!r} is missing; --missing mean imputes, --missing drop "
                    "leaves out such rows"
                )
            incomplete |= missing
            imputed[feature.column] = int(missing.sum())
        parts.append(part)
    if imputed and preparation.missing == "mean":
        shown = ", ".join(f"{name!r} {n}" for name, n in list(imputed.items())[:6])
        more = f" and {count(len(imputed) - 6, 'more column')}" if len(imputed) > 6 else ""
        total = count(sum(imputed.values()), "missing value")
        messages.say(f"{total} imputed (mean; text: commonest): {shown}{more}")
    single = all(p.dtype == np.float32 or f.kind == "levels" for f, p in zip(preparation.features, parts))
    single = single and any(f.kind == "numbers" for f in preparation.features)
    x = np.empty((table.rows, sum(p.shape[1] for p in parts)), np.float32 if single else np.float64)
    return np.concatenate(parts, axis=1, out=x, casting="same_kind"), incomplete


def _take_numbers(table: RawTable, feature: Feature, values: Values) -> NDArray[Any]:
    if feature.kind == "days":
        days = dates.to_days(values, feature.format)
        text = as_text(values)
        wrong = np.isnan(days) & (text.codes >= 0)
        if wrong.any() and (other := dates.find_format(values)):  # the same column from another kind of file
            return dates.to_days(values, other)
        what = f"which is not a date of the form {feature.format}"
    else:
        numbers, row = as_numbers(values, table.decimal)
        wrong, what = np.arange(len(numbers)) == row, "which is not a number, as in the table of fit"
        if feature.kind == "booleans":
            wrong |= ~(np.isnan(numbers) | (numbers == 0) | (numbers == 1))
            what = "which is neither true nor false, nor 1 or 0, as in the table of fit"
        if not wrong.any():
            return numbers
        text, days = as_text(values), numbers
    if wrong.any():
        row = int(np.argmax(wrong))
        cell = text.levels[text.codes[row]]
        raise UnusableError(f"{table.at(row)}: column {feature.column!r} is {cell!r}, {what}")
    return days


def _refuse_infinite(table: RawTable, name: str, numbers: NDArray[Any]) -> None:
    infinite = np.isinf(numbers)
    if infinite.any():
        row = int(np.argmax(infinite))
        raise UnusableError(
            f"{table.at(row)}: column {name!r} is {numbers[row]}, which is not a finite number; mend the cell, or "
            "leave it empty if the value is missing"
        )


def _take_levels(feature: Feature, text: Text, messages: Messages) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return one-hot features; a level is matched by its text, or by its value if it is a number."""
    other = len(feature.levels) if feature.pooled else -1  # -1: no feature
    known = {level: i for i, level in enumerate(feature.levels)} | dict.fromkeys(feature.pooled, other)
    by_value = index_by_value(known)
    width = len(feature.levels) + bool(feature.pooled)
    fill = known.get(str(feature.fill), other)
    places, unknown = [], []
    for level in text.levels:
        place = known.get(level)
        if place is None:
            value = parse_number(level)
            place = by_value.get(value) if value is not None else None
        if place is None:
            unknown.append(level)
        places.append(other if place is None else place)
    codes = text.take(places, fill).astype(np.int64)
    result = np.zeros((len(codes), width), np.float32)
    set_rows = np.flatnonzero(codes >= 0)
    result[set_rows, codes[set_rows]] = 1
    if unknown:
        rows = int(text.take([level in set(unknown) for level in text.levels], False).sum())
        messages.say(
            f"{count(rows, 'row')} with {count(len(unknown), 'level')} of {feature.column!r} that the model does not "
            f"know: {name_some(unknown)}"
        )
    return result, text.codes < 0


def say_columns(table: RawTable) -> str:
    """Return the names of the columns that a table has, for a message."""
    shown = ", ".join(map(repr, table.names[:20])) + (", ..." if len(table.names) > 20 else "")
    if not table.has_names:
        return f"it has no header, so that its columns are {shown}{table.hint}"
    return f"it has {shown}{table.hint}"


def suggest(table: RawTable, name: str) -> str:
    """Return the end of a refusal that names the column whose name differs only in case, or nothing."""
    close = [other for other in table.names if other.casefold().strip() == name.casefold().strip()]
    return f"; did you mean {close[0]!r}?" if close else ""


def format_ids(table: RawTable, name: str) -> list[str]:
    """Return the cells of the column of ids as they stand in the file, empty if missing."""
    place = table.find(name)
    assert place is not None, "read_table has refused a table without it"
    values = table.columns[place]
    if isinstance(values, Text):
        return [str(cell) for cell in values.take(np.array([*values.levels], object), "")]
    return ["" if np.isnan(v) else format_number(v) for v in values.tolist()]
