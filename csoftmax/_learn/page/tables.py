"""Contents of the tables and cards of the page, as text: the template only lays it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..report_text import (
    NAMES,
    changes_predictions,
    describe_weight,
    escape_controls,
    format_number,
    format_scores,
    measure_width,
    order_classes,
)

Figures = Mapping[str, Any]

MAX_CONFUSION_TABLE = 30  # classes; more are a picture
MAX_COMPACT_TABLE = 12  # the same in a notebook
MAX_HEAD = (
    60  # letters of all names over the columns of the confusion matrix; numbers stand there instead of longer ones
)
MAX_SHORT_NAME = 3  # letters of a name that fits over any column
MAX_CONFUSIONS = 5  # listed beside the confusion matrix
MAX_NAME = 40  # letters of a name in a sentence or a head
FACTS = {  # where the figures come from, if it was set
    "data": "data",
    "target": "target",
    "model_file": "model file",
    "command": "command",
    "date": "date",
    "version": "csoftmax",
}

PREDICTION_FIGURES = {
    "accuracy": ("accuracy", "Share of the rows whose most probable class is the true one."),
    "macro_f1": (
        "macro F1",
        "Mean of the classes' F1, in which a rare class counts as much as a common one; F1 is the harmonic mean of "
        "precision and recall.",
    ),
    "weighted_f1": ("weighted F1", "The same mean, in which each class counts by its rows."),
    "macro_precision": ("macro precision", "Of the rows predicted as a class, the share that belongs to it; mean."),
    "macro_recall": ("macro recall", "Of the rows of a class, the share that is found; mean of the classes."),
    "roc_auc": (
        "ROC-AUC",
        "Probability that a row of a class is ranked above a row of another one, by the probability of that class; "
        "0.5 is guessing, 1 is perfect.",
    ),
}

PROBABILITY_MEANINGS = {
    "log_loss": (
        "Mean of −log(probability of the true class). It judges everything at once, and is the figure to compare "
        "calibrations by; always saying 1/{classes} gives {chance:.4f}."
    ),
    "brier": "Mean squared distance between the probabilities and the true class; 0 is perfect.",
    "ece": (
        "Expected calibration error: mean distance between confidence and accuracy in {bins} bins; 0.05 means that "
        "confidence is wrong by 5 points. On few rows it is too large, by chance alone."
    ),
    "debiased_ece": "Root mean square of these distances, less what chance adds; 0 means that no error can be seen.",
    "smooth_ece": "The same error with a smooth kernel, whose width the data choose, instead of bins.",
    "mce": "Largest distance in any bin. A bin with few rows often decides it.",
    "classwise_ece": "The same error for the probability of each class, averaged over the classes.",
}
PROBABILITY_FIGURES = {key: (NAMES[key], meaning) for key, meaning in PROBABILITY_MEANINGS.items()}


class Delta(NamedTuple):
    """Difference between the first column and the last one."""

    text: str
    kind: str  # "better", "worse" or "same"


class Card(NamedTuple):
    """A figure in large type."""

    name: str
    value: str
    note: str = ""
    delta: Delta | None = None


class FigureRow(NamedTuple):
    """A figure, what it means, and its values in the columns."""

    name: str
    meaning: str
    values: list[str]
    delta: Delta | None = None


class Cell(NamedTuple):
    """A cell of the confusion matrix."""

    text: str
    share: str
    rows: str
    kind: str


class Confusion(NamedTuple):
    """Rows of one class that were taken for another."""

    true: str
    predicted: str
    rows: str
    share: str


class ClassRow(NamedTuple):
    """A line of the table of classes; each score as text and as the length of its bar."""

    number: int
    name: str
    rows: str
    scores: list[tuple[str, str]]


def shorten(name: str, length: int = MAX_NAME) -> str:
    """A name on one line, cut if it is long."""
    text = escape_controls(name)
    return text if len(text) <= length else text[: length - 1] + "…"


def choose_title(f: Figures) -> str:
    """The title that was given, or the name of the model's class."""
    name = f["model"].partition("(")[0]
    return escape_controls(f["title"] or (name if name.isidentifier() else "classifier"))


def list_facts(f: Figures) -> list[tuple[str, str]]:
    """Where the figures come from, as far as it is known."""
    return [(name, escape_controls(str(f[key]))) for key, name in FACTS.items() if f.get(key)]


def format_count(x: float) -> str:
    """A number of rows, or a sum of weights."""
    return f"{x:,}" if isinstance(x, int) else f"{x:,.0f}" if float(x).is_integer() else f"{x:,.4g}"


def make_cards(f: Figures) -> list[Card]:
    """The figures to see first."""
    last = f["columns"][-1]
    where = f"{escape_controls(last['name'])}, " if len(f["columns"]) > 1 else ""

    def write_interval(figures: Figures, key: str) -> str:
        ends = figures[f"{key}_interval"]
        return "one row has no interval" if ends is None else f"95 % interval {ends[0]:.3f} to {ends[1]:.3f}"

    change = _compare_predictions(f, "accuracy", True)
    cards = [Card("accuracy", format_number(f["accuracy"]), write_interval(f, "accuracy"), change)]
    for key in ("log_loss", "ece", "smooth_ece"):
        note = where + write_interval(last, key)
        cards.append(Card(PROBABILITY_FIGURES[key][0], format_number(last[key]), note, _compare(f, key, True)))
    change = _compare_predictions(f, "macro_f1", True)
    cards.append(Card("macro F1", format_number(f["macro_f1"]), write_interval(f, "macro_f1"), change))
    k = len(f["classes"])
    note = f"in {format_count(k)} {'class' if k == 1 else 'classes'}{describe_weight(f).replace(' of', ',')}"
    cards.append(Card("rows", format_count(f["rows"]), note))
    return cards


def _compare(f: Figures, key: str, names_first: bool = False) -> Delta | None:
    """The difference between the first column and the last one, as far as four decimals show it."""
    first, last = f["columns"][0], f["columns"][-1]
    if first is last:
        return None
    origin = f", from {first[key]:.4f} ({escape_controls(first['name'])})" if names_first else ""
    return _describe_change(first[key], last[key], origin, is_larger_better=False)


def _compare_predictions(f: Figures, key: str, names_first: bool = False) -> Delta | None:
    """The difference that a calibrator makes to a figure of the predicted classes, if it makes one to any of them."""
    plain = f["uncalibrated"]
    if not changes_predictions(f) or f[key] is None:
        return None
    origin = f", from {plain[key]:.4f} without the calibrator" if names_first else ""
    return _describe_change(plain[key], f[key], origin, is_larger_better=True)


def _describe_change(first: float, last: float, origin: str, *, is_larger_better: bool) -> Delta:
    change = round(last, 4) - round(first, 4)
    if abs(change) < 5e-5:
        return Delta(f"no change{origin}", "same")
    kind = "better" if (change > 0) == is_larger_better else "worse"
    return Delta(f"{'▼' if change < 0 else '▲'} {abs(change):.4f} {kind}{origin}", kind)


def list_prediction_figures(f: Figures) -> list[FigureRow]:
    """Figures of the predicted classes."""
    rows = []
    for key, (name, meaning) in PREDICTION_FIGURES.items():
        if key == "accuracy":
            low, high = f["accuracy_interval"]
            meaning += f" With 95 % confidence between {low:.4f} and {high:.4f}."
        values = [format_number(g[key]) for g in ((f["uncalibrated"], f) if changes_predictions(f) else (f,))]
        rows.append(FigureRow(name, meaning, values, _compare_predictions(f, key)))
    return rows


def name_predictions(f: Figures) -> list[str]:
    """Heads of the figures of the predicted classes: those of a calibrator stand beside those without it."""
    return [f["columns"][i]["name"] for i in (0, -1)] if changes_predictions(f) else [""]


def put_in_order(f: Figures) -> Figures:
    """The figures with the classes in the order in which they are listed."""
    order = order_classes(f["classes"])
    if order == sorted(order):
        return f
    matrix = np.asarray(f["confusion_matrix"])[np.ix_(order, order)]
    listed = {key: [f[key][i] for i in order] for key in ("classes", "per_class")}
    return {**f, **listed, "confusion_matrix": matrix.tolist()}


def list_probability_figures(f: Figures) -> list[FigureRow]:
    """Figures of the probabilities, in all columns."""
    k = len(f["classes"])
    known = {"classes": k, "chance": float(np.log(k)), "bins": f["n_bins"]}
    return [
        FigureRow(name, meaning.format(**known), [format_number(c[key]) for c in f["columns"]], _compare(f, key))
        for key, (name, meaning) in PROBABILITY_FIGURES.items()
    ]


def name_curves(f: Figures) -> list[tuple[str, str]]:
    """Names of the curves in the reliability diagram with their colours, in the order of the columns."""
    names = [c["name"] for c in f["columns"]]
    colours = ["blue"] if len(names) == 1 else ["orange", "blue", *["muted"] * len(names)]
    return list(zip(names, colours))


class ConfusionTable(NamedTuple):
    """The confusion matrix as text, with one row for each true class."""

    heads: list[tuple[str, str]]  # what stands over the column, and the full name
    rows: list[tuple[str, str, list[Cell], str]]  # number, name, cells, number of rows
    is_numbered: bool


def make_confusion_table(f: Figures) -> ConfusionTable:
    """Percent of the rows of each class."""
    matrix = np.asarray(f["confusion_matrix"])
    total = matrix.sum(axis=1)
    names = [shorten(name) for name in f["classes"]]
    widths = [measure_width(name) for name in names]
    is_numbered = max(widths) > MAX_SHORT_NAME and sum(widths) + 2 * len(names) > MAX_HEAD
    heads = [(str(i) if is_numbered else name, name) for i, name in enumerate(names, 1)]
    rows = []
    for i, name in enumerate(names):
        cells = [_make_cell(matrix[i, j].item(), total[i].item(), i == j) for j in range(len(names))]
        rows.append((str(i + 1), name, cells, format_count(total[i].item())))
    return ConfusionTable(heads, rows, is_numbered)


def _make_cell(count: float, total: float, is_right: bool) -> Cell:
    if count == 0:
        return Cell("", "0", "", "right" if is_right and total > 0 else "")
    share = count / total
    text = format_percent(share)
    kind = "right" if is_right else "wrong"
    return Cell(text, f"{share:.3f}", f"{format_count(count)} of {format_count(total)}", kind)


def format_percent(share: float) -> str:
    """Whole percent; neither 0 nor 100 unless it is exactly that."""
    percent = round(100 * share)
    return "<1" if percent == 0 and share > 0 else ">99" if percent == 100 and share < 1 else str(percent)


def find_confusions(f: Figures) -> list[Confusion]:
    """The largest numbers beside the diagonal."""
    matrix = np.array(f["confusion_matrix"])
    total = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    largest = np.argsort(-matrix, axis=None, kind="stable")[:MAX_CONFUSIONS]
    return [
        Confusion(
            shorten(f["classes"][i]),
            shorten(f["classes"][j]),
            format_count(matrix[i, j].item()),
            format_percent(matrix[i, j] / total[i]),
        )
        for i, j in zip(*np.unravel_index(largest, matrix.shape))
        if matrix[i, j] > 0
    ]


def sort_classes(f: Figures) -> list[ClassRow]:
    """All classes, that with the lowest F1 first; those that do not occur come last."""
    rows: Sequence[Mapping[str, Any]] = f["per_class"]
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["weight"] == 0, rows[i]["f1"]))
    listed = []
    for i in order:
        row = rows[i]
        texts = format_scores(row)
        bars = (f"{row[key]:.3f}" if text != "–" else "0" for key, text in zip(("precision", "recall", "f1"), texts))
        listed.append(ClassRow(i + 1, escape_controls(row["class"]), format_count(row["rows"]), list(zip(texts, bars))))
    return listed


class Mistake(NamedTuple):
    """A row that was predicted wrongly."""

    place: str
    is_named: bool  # the place is a name that was given, not a number
    true: str
    predicted: str
    confidence: str


def list_mistakes(f: Figures) -> list[Mistake]:
    """The mistakes of which the model was surest."""
    return [
        Mistake(
            shorten(m.get("place", f"row {m['row']}")),
            "place" in m,
            shorten(m["true"]),
            shorten(m["predicted"]),
            format_number(m["confidence"]),
        )
        for m in f["mistakes"]
    ]
