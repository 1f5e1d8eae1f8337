"""Labels: classes from the column of the target, and labels of later tables matched to them by value.

Labels are integers if all of them are whole numbers ("1" and "1.0" are one class), booleans if all are true or false,
else text, such as numbers with fractions ("0.5" and "0.50" are one class) and codes with leading zeros.  Blanks around
a label do not count.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import UnusableError
from ..messages import count, name_some
from .columns import say_columns, suggest
from .formats import LABEL
from .raw import TRUE_OR_FALSE, RawTable, as_text, format_number, index_by_value, parse_number

MAX_NUMBERS = 20  # a target with more different numbers may be a measurement
_CODE = re.compile(r"[+-]?0\d+.*", re.DOTALL)


def find_target(table: RawTable, target: str | None, *, is_given: bool = True) -> str:
    """Return the name of the column of labels; `is_given`: the user has named it, and not only the model's table."""
    if table.absent is not None and (target is None or table.find(target) is None):
        if target is None or not is_given:
            return LABEL  # libsvm has one, without a name
        raise UnusableError(
            f"{table.source} has no column {target!r}; it is libsvm, whose labels are the column {LABEL!r}: leave out "
            "--target"
        )
    if target is None:
        raise UnusableError(f"--target COLUMN is missing, the column of labels; {table.source}: {say_columns(table)}")
    if table.find(target) is None:
        hint = suggest(table, target)
        if table.has_names and target.isdecimal():
            hint = "; with --no-header, columns are numbered from 0"
        raise UnusableError(f"{table.source} has no column {target!r}; {say_columns(table)}{hint}")
    if target in table.repeated.values():
        raise UnusableError(f"{table.source} has the column {target!r} twice; rename one of them")
    table.refuse_unusable(target)
    return target


def parse(table: RawTable, target: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the label of each row of the table of `fit`, and whether it is missing; refuse what are no classes."""
    place = table.find(target)
    assert place is not None, "find_target has found it"
    text = as_text(table.columns[place])
    missing = text.codes < 0
    if not text.levels:
        raise UnusableError(f"{table.source}: the target {target!r} has no values")
    values = to_classes(text.levels, table.decimal)
    distinct = len(set(values))
    rows = int((~missing).sum())
    refuse_continuous(table, target, values, distinct, rows)
    if isinstance(values[0], float):  # scikit-learn takes numbers with fractions for measurements
        values = [format_number(value) for value in values]
    array: NDArray[Any] = np.array(values)
    return np.append(array, array[:1])[text.codes], missing


def to_classes(levels: list[str], decimal: str = ".") -> list[Any]:
    """Return labels as booleans, integers, floats or text, all of one kind."""
    if {level.casefold() for level in levels} <= set(TRUE_OR_FALSE):
        return [bool(TRUE_OR_FALSE[level.casefold()]) for level in levels]
    if any(_CODE.fullmatch(level) for level in levels):
        return list(levels)
    numbers = [parse_number(level, decimal) for level in levels]
    if any(n is None or not np.isfinite(n) for n in numbers):
        return list(levels)
    if all(n == np.floor(n) and abs(n) < 2**53 for n in numbers if n is not None):
        return [int(n) for n in numbers if n is not None]
    if all(re.fullmatch(r"[+-]?\d+", level) for level in levels):  # too large for a float
        return list(levels)
    return [float(n) for n in numbers if n is not None]


def refuse_continuous(table: RawTable, target: str, values: list[Any], distinct: int, rows: int) -> None:
    """Refuse a target of measurements, and a text target that is different in every row."""
    where = f"{table.source}: the target {target!r}"
    advice = "softmax regression learns classes: group the values into a few classes, or choose another --target"
    if isinstance(values[0], str):
        if distinct == rows > 1:
            raise UnusableError(f"{where} is different in each of the {rows} rows; {advice}")
        return
    if isinstance(values[0], bool) or distinct <= MAX_NUMBERS:
        return
    fractions = [v for v in values if v != int(v)]
    if fractions:
        raise UnusableError(
            f"{where} is continuous: {distinct} different numbers, some with fractions, such as "
            f"{format_number(fractions[0])}; {advice}"
        )
    if 5 * distinct > rows:
        raise UnusableError(
            f"{where} is continuous: {distinct} different numbers in {rows} rows, more than a fifth of them; {advice}"
        )


def match(table: RawTable, target: str, classes: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the labels of a table as classes of the model, and whether each is missing; refuse unknown labels."""
    place = table.find(target)
    assert place is not None, "find_target has found it"
    text = as_text(table.columns[place])
    missing = text.codes < 0
    exact = {str(c).strip(): i for i, c in enumerate(classes.tolist())}
    value_of = _value_of if all(_value_of(written, ".") in (0, 1) for written in exact) else parse_number
    by_value = index_by_value(exact, lambda written: value_of(written, "."))
    places, unknown = [], []
    for level in text.levels:
        found = exact.get(level)
        if found is None:
            value = value_of(level, table.decimal)
            found = by_value.get(value) if value is not None else None
        if found is None:
            unknown.append(level)
        places.append(0 if found is None else found)
    if unknown:
        row = int(np.argmax(text.take([level in set(unknown) for level in text.levels], False)))
        shown = f" ({count(len(unknown), 'label')} in all: {name_some(unknown)})" if len(unknown) > 1 else ""
        label = text.levels[text.codes[row]]
        raise UnusableError(
            f"{table.at(row)}: unknown label {label!r} (not among the training classes){shown}; the model has "
            f"{name_some([str(c) for c in classes.tolist()])}"
        )
    return classes[text.take(places, 0).astype(np.int64)], missing


def _value_of(label: str, decimal: str) -> float | None:
    """Return the number of a label; true and false are 1 and 0, in which no other label is true."""
    number = parse_number(label, decimal)
    return TRUE_OR_FALSE.get(label.casefold()) if number is None else number


def refuse_missing(table: RawTable, target: str, missing: NDArray[np.bool_], *, drop: bool) -> None:
    """Refuse rows without a label, unless they are to be left out."""
    if missing.any() and not drop:
        row = int(np.argmax(missing))
        raise UnusableError(
            f"{table.at(row)}: {target!r} is missing, as in {count(missing.sum(), 'row')}; --missing drop leaves out "
            "rows without a label"
        )
