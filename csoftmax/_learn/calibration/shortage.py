"""The warning about held-out rows that are too few, or all classified correctly."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .parts import PartsRows
    from .rows import Rows

# With n rows, each fitted number costs about 1 / (2 n) of log loss on new rows: 0.05 with 10 rows.
MIN_ROWS = 10


def describe_separation(count: int, done: str) -> str:
    """The message of the warning about a fitted map that makes all rows right."""
    return (
        f"the fitted map classifies all held-out rows ({count}) correctly, so that the likelihood has no maximum: it "
        f"would make every probability 0 or 1. Here {done}: set penalties, or hold out more rows"
    )


def describe_shortage(rows: Rows | PartsRows, done: str) -> str | None:
    """The message of the warning, or None; done: what keeps the result within bounds."""
    count, remedy = rows.count, "hold out more rows"
    if rows.columns == 1:
        return None
    if rows.is_separable():
        return (
            f"all held-out rows ({count}) are classified correctly, so that the likelihood has no maximum: it would "
            f"make every probability 0 or 1. Here {done}. To measure how often the model is wrong, {remedy}"
        )
    if rows.total < MIN_ROWS:
        weight = "," if not rows.is_weighted else f", of total weight {rows.total:.4g},"
        return f"too few held-out rows to calibrate with: {count}{weight} fewer than {MIN_ROWS}. Here {done}; {remedy}"
    return None
