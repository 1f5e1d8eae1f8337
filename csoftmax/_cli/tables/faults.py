"""A few cells of something else in a column: refused, because they would turn numbers or dates into levels.

A column of text is one of numbers, of true and false, or of dates with faults in it if nearly all of its cells are
(MOST), and the others are too rare to be levels, or the column has too many different values to be a choice out of a
few.  A column with many different numbers is one even if a small majority of its cells are, if the others are of a few
kinds, or are numbers with a sign such as <0.5.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import UnusableError
from . import dates
from .raw import TRUE_OR_FALSE, RawTable, Text, Values, parse_number

MOST = 0.95  # of the cells
FEW_CELLS = 4  # of one value: fewer than a level needs
MANY_VALUES = 10  # more different numbers or dates are no choice out of a few, if nearly all cells are
MEASURED_VALUES = 20  # the same if only the majority is
FEW_FAULTS = 3  # different ones
_SIGNED = re.compile(r"(?:[<>\u2264\u2265~\u2248\u00b1]|[<>]=)\s*(.+)|(.+?)\s*[+*]")


def refuse(table: RawTable, name: str, values: Values) -> None:
    """Refuse a column with faults, and name the first of them."""
    if not isinstance(values, Text) or name in table.declared or not values.levels:
        return
    for find, what in (
        (_find_numbers, "numbers"),
        (_find_truth, "true or false"),
        (_find_dates, "dates"),
    ):
        is_usual = find(table, values)
        if is_usual is None or not _are_faults(table, values, is_usual):
            continue
        row = int(np.argmax(values.take(~is_usual, False)))
        cell = values.levels[values.codes[row]]
        raise UnusableError(
            f"{table.at(row)}: column {name!r} is {cell!r}, but most of the column is {what}; mend the cell, leave it "
            f"empty if the value is missing, or leave out the column with --drop {name}"
        )


def _find_numbers(table: RawTable, values: Text) -> NDArray[np.bool_] | None:
    return np.array([parse_number(level, table.decimal) is not None for level in values.levels])


def _find_truth(table: RawTable, values: Text) -> NDArray[np.bool_] | None:
    return np.array([level.casefold() in TRUE_OR_FALSE for level in values.levels])


def _find_dates(table: RawTable, values: Text) -> NDArray[np.bool_] | None:
    return dates.find_most(values)


def _are_faults(table: RawTable, values: Text, is_usual: NDArray[np.bool_]) -> bool:
    """Whether the levels that are not usual are faults, and not levels beside the usual ones."""
    usual, others = int(is_usual.sum()), int((~is_usual).sum())
    if usual < 2 or others == 0:
        return False
    counts = values.counts()
    share = counts[is_usual].sum() / counts.sum()
    if share >= MOST:
        return usual > MANY_VALUES or bool(counts[~is_usual].max() <= FEW_CELLS)
    if share <= 0.5:
        return False
    if usual > MEASURED_VALUES and others <= FEW_FAULTS:
        return True
    return usual + others > MEASURED_VALUES and all(
        _is_signed(level, table.decimal) for level, u in zip(values.levels, is_usual) if not u
    )


def _is_signed(level: str, decimal: str) -> bool:
    match = _SIGNED.fullmatch(level)
    return match is not None and parse_number(match[1] or match[2], decimal) is not None
