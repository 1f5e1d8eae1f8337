"""The text of a report, and the words and numbers that it shares with the page."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
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

SCORES = {"accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1", "roc_auc": "ROC-AUC"}
NUMBER = re.compile(r"-?[0-9]{1,300}(\.[0-9]+)?")
DIGITS = re.compile("([0-9]+)")


def make_text(f: Mapping[str, Any]) -> str:
    """The figures of a report as text."""
    columns = f["columns"]
    widths = [max(14, measure_width(c["name"]) + 3) for c in columns]
    lines = [] if f["title"] is None else [escape_controls(f["title"]), ""]
    rows, k = f["rows"], len(f["classes"])
    lines += [
        f"{rows} {'row' if rows == 1 else 'rows'}{describe_weight(f)}, {k} {'class' if k == 1 else 'classes'}",
        list_scores(f),
    ]
    if changes_predictions(f):
        lines.append(f"without the calibrator: {list_scores(f['uncalibrated'])}")
    lines += [
        "",
        " " * NAME_WIDTH + "".join(f"{c['name']:>{w}}" for c, w in zip(columns, widths)),
    ]
    for key, name in NAMES.items():
        lines.append(f"{name:{NAME_WIDTH}}" + "".join(f"{c[key]:{w}.4f}" for c, w in zip(columns, widths)))
    if f["calibration"]:
        lines.append(f"calibration: {f['calibration']}")
    lines += ["", f"{'class':{NAME_WIDTH}}{'precision':>10}{'recall':>10}{'F1':>10}{'rows':>8}"]
    for row in [f["per_class"][i] for i in order_classes(f["classes"])][:MAX_LISTED_CLASSES]:
        scores = "".join(f"{score:>10}" for score in format_scores(row))
        lines.append(f"{pad_name(row['class'])}{scores}{row['rows']:8}")
    if k > MAX_LISTED_CLASSES:
        more = k - MAX_LISTED_CLASSES
        lines.append(f"... and {more} more {'class' if more == 1 else 'classes'}")
    return "\n".join(lines)


def list_scores(f: Mapping[str, Any]) -> str:
    """The figures of the predicted classes on one line."""
    return "   ".join(f"{name} {format_number(f[key])}" for key, name in SCORES.items())


def changes_predictions(f: Mapping[str, Any]) -> bool:
    """Whether a figure of the predicted classes is another one without the calibrator, to four decimals."""
    plain = f["uncalibrated"]
    names = () if plain is None else (key for key in plain if not key.endswith("_interval"))
    return any(format_number(f[key]) != format_number(plain[key]) for key in names)


def order_classes(names: Sequence[str]) -> list[int]:
    """The order in which classes are listed: that of the model, but numbers within text count by their value.

    Labels that are text stand in the order of their letters, 1, 10, 11, 2; numbers are in their order already.
    """
    order = list(range(len(names)))
    if list(names) != sorted(names):
        return order
    if all(map(NUMBER.fullmatch, names)):
        return sorted(order, key=lambda i: float(names[i]))

    def split(i: int) -> list[Any]:
        parts: list[Any] = DIGITS.split(names[i])  # text and digits take turns
        for j in range(1, len(parts), 2):
            digits = parts[j].lstrip("0")
            parts[j] = (len(digits), digits)  # Python refuses to read a number of thousands of digits
        return parts

    return sorted(order, key=split)


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
