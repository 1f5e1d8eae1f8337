"""Numbers and class names as text, on one line, for the report and its page."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

UNDEFINED = "–"
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: control, half of a pair, separator of lines, of paragraphs


def format_number(x: float | None) -> str:
    """Four decimals, or a dash for a figure that is not defined."""
    return UNDEFINED if x is None else f"{x:.4f}"


def format_scores(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Precision, recall and F1 of a class; where they are 0 / 0, a dash."""
    occurs, is_predicted = row["weight"] > 0, row["predicted"] > 0
    return (
        format_number(row["precision"] if is_predicted else None),
        format_number(row["recall"] if occurs else None),
        format_number(row["f1"] if occurs or is_predicted else None),
    )


def escape_controls(name: str) -> str:
    """A name on one line: control characters as escapes; a name of nothing but blanks in quotes."""
    text = "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in CONTROLS else c for c in name)
    return text if text.strip() else f'"{text}"'


def measure_width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
