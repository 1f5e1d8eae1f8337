"""Columns of dates: recognised, and turned into days since 1970-01-01."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import load
from .raw import Text, Values

# Tried in this order; of 01/02/2026 the American reading comes first if all cells allow it.
FORMATS = (
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%Y.%m.%d",
    "%d.%m.%Y",
    "%m/%d/%Y",
    "%d/%m/%Y",
    "%d-%m-%Y",
    "%m/%d/%y",
    "%d/%m/%y",
    "%d.%m.%y",
    "%d-%b-%Y",
    "%d %b %Y",
    "%b %d %Y",
    "%b %d, %Y",
    "%d %B %Y",
    "%B %d, %Y",
)
TIMES = ("", " %H:%M", " %H:%M:%S", "T%H:%M", "T%H:%M:%S")
ISO = "ISO 8601"  # with fractions of seconds or a time zone
COMPACT = "%Y%m%d"  # of columns of integers
_SHAPE = re.compile(r"\d{1,4}[-/. ](\d{1,2}|[A-Za-z]{3,9})[-/. ]\d{2,4}([T ].+)?|[A-Za-z]{3,9} \d{1,2},? \d{4}(\s.+)?")
SECONDS_PER_DAY = 86400.0


def find_format(values: Values) -> str | None:
    """Return the format in which all cells of a column are dates, or None."""
    if isinstance(values, np.ndarray):
        return COMPACT if _are_compact(values) else None
    if not values.levels or not all(map(_SHAPE.fullmatch, values.levels[:100])):
        return None
    for form in [date + time for date in FORMATS for time in TIMES] + [ISO]:
        if not np.isnan(_parse(values.levels[:20], form)).any() and not np.isnan(_parse(values.levels, form)).any():
            return form
    return None


def find_most(values: Text) -> NDArray[np.bool_] | None:
    """Return which levels are dates, in the format that most of them have; None if few have the shape of dates."""
    shaped = [level for level in values.levels if _SHAPE.fullmatch(level)]
    if 2 * len(shaped) <= len(values.levels):
        return None
    formats = [date + time for date in FORMATS for time in TIMES] + [ISO]
    counts = [int((~np.isnan(_parse(shaped[:20], form))).sum()) for form in formats]
    parsed = [~np.isnan(_parse(values.levels, form)) for form, n in zip(formats, counts) if n == max(counts)]
    return max(parsed, key=np.sum)


def _are_compact(values: NDArray[Any]) -> bool:
    """Whether numbers are days such as 20261129."""
    known = values[~np.isnan(values)]
    if len(known) == 0 or not ((known >= 19000101) & (known <= 21001231) & (known == np.floor(known))).all():
        return False
    distinct = np.unique(known)
    return len(distinct) > 1 and not np.isnan(_parse([str(int(v)) for v in distinct], COMPACT)).any()


def to_days(values: Values, form: str) -> NDArray[np.float64]:
    """Return days since 1970-01-01; NaN for a cell that is missing or not of the format."""
    if isinstance(values, Text):
        return values.take(_parse(values.levels, form), np.nan).astype(np.float64)
    distinct, codes = np.unique(values, return_inverse=True)
    cells = ["" if np.isnan(v) else str(int(v)) for v in distinct.tolist()]
    return _parse(cells, form)[codes.reshape(-1)]


def _parse(cells: list[str], form: str) -> NDArray[np.float64]:
    arrow, compute = load("pyarrow", "cli"), load("pyarrow.compute", "cli")
    if form == ISO:
        return np.array([_parse_iso(cell) for cell in cells], np.float64)
    form = form.replace("%B", "%b")  # both read short and long names
    stamps = compute.strptime(arrow.array(cells, arrow.string()), format=form, unit="s", error_is_null=True)
    seconds = stamps.cast(arrow.int64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return seconds / SECONDS_PER_DAY


def _parse_iso(cell: str) -> float:
    import datetime

    try:
        stamp = datetime.datetime.fromisoformat(cell)
    except ValueError:
        return np.nan
    return stamp.replace(tzinfo=stamp.tzinfo or datetime.UTC).timestamp() / SECONDS_PER_DAY
