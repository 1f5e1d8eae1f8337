"""A table as it was read: named columns of numbers or text, before anything is decided about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import UnusableError

# Cells that stand for a missing value, compared without their case and the blanks around them.
MISSING = frozenset({"", "?", "na", "nan", "null", "n/a", "#n/a", "<na>"})
TRUE_OR_FALSE = {"true": 1.0, "false": 0.0}

_NUMBER = re.compile(r"[+-]?(\d+(?:\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Thousands: no group of digits begins a number with 0, so that 0,150 is a fraction with the other decimal sign.
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?", re.ASCII)
_GROUPED_BY_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(\.\d{3})+(,\d*)?", re.ASCII)
_BLANK = re.compile("[\u00a0\u2009\u202f]")  # that no line is broken at, or thin
_GROUPED_BY_BLANKS = re.compile(r"[+-]?[1-9]\d{0,2}([\u00a0\u2009\u202f]\d{3})+(?!\d)", re.ASCII)
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)


def is_missing(cell: str) -> bool:
    """Whether a cell stands for a missing value."""
    return cell.strip().casefold() in MISSING


def parse_number(cell: str, decimal: str = ".") -> float | None:
    """Return the number that a cell holds, or None: 1_5 and 0x10 are text, unlike for Python.

    With a decimal comma, a point stands between thousands only: 1.234 is 1234, and 1.5 and 0.150 are no numbers.
    """
    cell = cell.strip()
    if not cell.isascii():  # the minus sign of typography, and blanks between thousands
        cell = cell.replace("\u2212", "-")
        if _GROUPED_BY_BLANKS.match(cell):
            cell = _BLANK.sub("", cell)
    if decimal == ",":
        if _GROUPED_BY_POINTS.fullmatch(cell):
            cell = cell.replace(".", "")
        if "." in cell:
            return None
        cell = cell.replace(",", ".", 1)
    if _NUMBER.fullmatch(cell) or _INFINITE.fullmatch(cell):
        return float(cell)
    if decimal == "." and _GROUPED.fullmatch(cell):
        return float(cell.replace(",", ""))
    return None


@dataclass
class Text:
    """A column of text: for each row the index of its level, -1 if it is missing."""

    codes: NDArray[np.int64]
    levels: list[str]  # distinct, without blanks around them

    def counts(self) -> NDArray[np.int64]:
        """Return the number of rows of each level."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.levels))

    def take(self, values: Any, missing: Any) -> NDArray[Any]:
        """Return the value of each row, from one value a level and the one of missing cells."""
        return np.append(np.asarray(values), missing)[self.codes]


Values = NDArray[Any] | Text  # numbers: float64 or float32, NaN if missing


@dataclass
class RawTable:
    """Columns in the order of the file."""

    source: str  # for messages
    names: list[str]  # distinct
    columns: list[Values]
    rows: int
    locate: Callable[[int], str] = lambda row: f"row {row + 1}"  # where a row is, for messages
    has_names: bool = True  # False: columns are numbered from 0
    unnamed: set[str] = field(default_factory=set)  # names that stand for an empty name
    repeated: dict[str, str] = field(default_factory=dict)  # names of columns whose own name is there before -> it
    absent: float | None = None  # value of columns that the file does not have: 0 in sparse formats
    decimal: str = "."
    unusable: dict[str, str] = field(default_factory=dict)  # columns of neither numbers nor text -> their type
    declared: set[str] = field(default_factory=set)  # columns whose levels the file itself declares: none is a fault
    hint: str = ""  # ends the refusal of a column that is not there
    _places: dict[str, int] = field(default_factory=dict)

    def at(self, row: int) -> str:
        """Return file and place of a row."""
        return f"{self.source}, {self.locate(int(row))}"

    def find(self, name: str) -> int | None:
        """Return the index of a column, or None."""
        if len(self._places) != len(self.names):
            self._places = {name: i for i, name in enumerate(self.names)}
        return self._places.get(name)

    def refuse_unusable(self, name: str) -> None:
        """Refuse a column that is neither numbers nor text where its values are needed."""
        if name in self.unusable:
            raise UnusableError(
                f"{self.source}: column {name!r} holds {self.unusable[name]}, which is neither a number nor text; "
                f"leave it out with --drop {name}"
            )

    def rename(self, named: Named) -> None:
        """Give the columns other names."""
        self.names, self.unnamed, self.repeated = named
        self.has_names, self._places = True, {}


class Named(NamedTuple):
    """Distinct names of columns."""

    names: list[str]
    unnamed: set[str]  # those that stand for an empty name
    repeated: dict[str, str]  # those that stand for a name that is there before -> that name

    def describe(self) -> str:
        """Return the words of a message about repeated names."""
        return ", ".join(f"{old!r} is there twice: the second is {new!r}" for new, old in self.repeated.items())


def name_columns(names: Sequence[str]) -> Named:
    """Return distinct names: "column 3" for an empty one, "a.1" for a second "a", as in pandas."""
    result: dict[str, None] = {}
    given = set(names)
    unnamed, repeated = set(), {}
    for i, name in enumerate(names):
        base = new = name or f"column {i}"
        repeats = 0
        while new in result or (new != name and new in given):
            repeats += 1
            new = f"{base}.{repeats}"
        if not name or (i == 0 and name == "Unnamed: 0"):  # the latter is pandas' name for it
            unnamed.add(new)
        elif new != name:
            repeated[new] = name
        result[new] = None
    return Named(list(result), unnamed, repeated)


def make_text(cells: Sequence[str | None], codes: NDArray[np.int64] | None = None) -> Text:
    """Make a column of text from its cells, or from distinct cells and the index of each row's.

    Blanks around cells go; cells that then are equal become one level; cells that stand for a missing value have none.
    """
    index: dict[str, int] = {}
    places = np.empty(len(cells) + 1, np.int64)
    places[-1] = -1
    for i, cell in enumerate(cells):
        stripped = "" if cell is None else cell.strip()
        places[i] = -1 if stripped.casefold() in MISSING else index.setdefault(stripped, len(index))
    return Text(places[:-1] if codes is None else places[codes], list(index))


def as_numbers(values: Values, decimal: str = ".") -> tuple[NDArray[Any], int | None]:
    """Return a column as numbers, and the first row that is none, or None. True and False are 1 and 0."""
    if not isinstance(values, Text):
        return values, None
    parsed = [parse_number(level, decimal) for level in values.levels]
    parsed = [TRUE_OR_FALSE.get(t.casefold()) if p is None else p for p, t in zip(parsed, values.levels)]
    wrong = values.take([p is None for p in parsed], False).astype(bool)
    numbers = values.take([np.nan if p is None else p for p in parsed], np.nan).astype(np.float64)
    return numbers, int(np.argmax(wrong)) if wrong.any() else None


def format_number(value: float) -> str:
    """Return the shortest text of a number: 3, not 3.0."""
    return str(int(value)) if value == np.floor(value) and abs(value) < 2**63 else repr(float(value))


def index_by_value(
    places: Mapping[str, int], value_of: Callable[[str], float | None] = parse_number
) -> dict[float, int]:
    """Return the place of each number among texts that have a place, for cells that are written otherwise.

    Of texts with one value, such as 007 and 7, the plain number has it; without one, no place is right.
    """
    found: dict[float, set[int]] = {}
    plain: dict[float, int] = {}
    for text, place in places.items():
        value = value_of(text)
        if value is None:
            continue
        found.setdefault(value, set()).add(place)
        if np.isfinite(value) and text == format_number(value):
            plain[value] = place
    return {value: min(those) for value, those in found.items() if len(those) == 1} | plain


def as_text(values: Values) -> Text:
    """Return a column as text."""
    if isinstance(values, Text):
        return values
    distinct, codes = np.unique(values, return_inverse=True)
    return make_text(["" if np.isnan(v) else format_number(v) for v in distinct.tolist()], codes.reshape(-1))


def recognise(values: Text, decimal: str = ".") -> Values:
    """Return a column of text as numbers if all its cells are numbers or missing, and one is a number."""
    if not values.levels:
        return values
    for level in values.levels[:50]:
        if parse_number(level, decimal) is None:
            return values
    numbers = [parse_number(level, decimal) for level in values.levels]
    if any(n is None for n in numbers):
        return values
    return values.take(numbers, np.nan).astype(np.float64)
