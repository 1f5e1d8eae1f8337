"""The text of a report, and the words and numbers that it shares with the page."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_LISTED_CLASSES = 40  # the text report lists up to this many classes
NAME_WIDTH = 24  # columns of the text report for a name
UNDEFINED = "–"
CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories: control, half of a pair, separator of lines, of paragraphs

NAMES = {
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
    "debiased_ece": "debiased L2 ECE",
    "smooth_ece": "smooth ECE",
    "mce": "MCE",
    "classwise_ece": "class-wise ECE",
}


def make_text(f: Mapping[str, Any]) -> str:
    """The figures of a report as text."""
    columns = f["columns"]
    widths = [max(14, measure_width(c["name"]) + 3) for c in columns]
    lines = [] if f["title"] is None else [escape_controls(f["title"]), ""]
    lines += [
        f"{f['rows']} rows{describe_weight(f)}, {len(f['classes'])} classes",
        f"accuracy {f['accuracy']:.4f}   macro F1 {f['macro_f1']:.4f}   weighted F1 {f['weighted_f1']:.4f}   "
        f"ROC-AUC {format_number(f['roc_auc'])}",
        "",
        " " * NAME_WIDTH + "".join(f"{c['name']:>{w}}" for c, w in zip(columns, widths)),
    ]
    for key, name in NAMES.items():
        lines.append(f"{name:{NAME_WIDTH}}" + "".join(f"{c[key]:{w}.4f}" for c, w in zip(columns, widths)))
    if f["calibration"]:
        lines.append(f"calibration: {f['calibration']}")
    lines += ["", f"{'class':{NAME_WIDTH}}{'precision':>10}{'recall':>10}{'F1':>10}{'rows':>8}"]
    for row in f["per_class"][:MAX_LISTED_CLASSES]:
        scores = "".join(f"{score:>10}" for score in format_scores(row))
        lines.append(f"{pad_name(row['class'])}{scores}{row['rows']:8}")
    if len(f["per_class"]) > MAX_LISTED_CLASSES:
        lines.append(f"... and {len(f['per_class']) - MAX_LISTED_CLASSES} more classes")
    return "\n".join(lines)


def describe_weight(f: Mapping[str, Any]) -> str:
    """The sum of the sample weights, if there are any."""
    return "" if f["weight"] == f["rows"] else f" of total weight {f['weight']:.6g}"


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


def pad_name(name: str) -> str:
    """A name in the width of its column, cut if it is longer."""
    text = escape_controls(name)
    if measure_width(text) >= NAME_WIDTH:
        while measure_width(text) >= NAME_WIDTH - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (NAME_WIDTH - measure_width(text))
