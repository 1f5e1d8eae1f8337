"""The HTML page of a report, with its plots as pictures inside."""

from __future__ import annotations

import base64
import copy
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._runtime.optional import UnusableError, new_figure
from .display import literal
from .report_text import NAMES, describe_weight, escape_controls, format_number, format_scores

if TYPE_CHECKING:
    from .display import ReliabilityDisplay

MAX_NAMED_CLASSES = 60  # up to this many classes the axes of the confusion matrix name them
MAX_NUMBERED_CLASSES = 20  # up to this many classes the cells of the confusion matrix hold their counts
MAX_TICK_LENGTH = 18  # letters of a name beside the confusion matrix
MAX_CONFUSIONS = 5  # listed under the confusion matrix
PICTURE_DPI, SCREEN_DPI = 144, 96

MEANINGS = {
    "log_loss": "mean of -log(probability of the true class); smaller is better, and it judges everything at once",
    "brier": "mean squared distance of the probabilities to the true class",
    "ece": "mean distance between confidence and accuracy, in {n_bins} bins; too large on few rows",
    "debiased_ece": "root mean square of that distance, without what chance adds; 0: no error can be seen",
    "smooth_ece": "that distance with a kernel instead of bins",
    "mce": "largest distance in a bin; a bin with few rows decides it",
    "classwise_ece": "the distance for the probability of each class, averaged",
}

STYLE = """
.csoftmax-report { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; color: #222 }
.csoftmax-report h1 { font-size: 1.4rem; margin: 0.4rem 0; overflow-wrap: anywhere }
.csoftmax-report h2 { font-size: 1.1rem; margin: 1.8rem 0 0.4rem }
.csoftmax-report .model { color: #666; font: 0.85em/1.4 ui-monospace, monospace; overflow-wrap: anywhere }
.csoftmax-report .cards { display: flex; flex-wrap: wrap; gap: 0.6rem; margin: 1rem 0 }
.csoftmax-report .cards div { border: 1px solid #ddd; border-radius: 6px; padding: 0.4rem 0.9rem; min-width: 6.5rem }
.csoftmax-report .cards b { display: block; font-size: 1.3rem; font-weight: 600 }
.csoftmax-report .cards span, .csoftmax-report .note { color: #666; font-size: 0.85em }
.csoftmax-report table { border-collapse: collapse; margin: 0.6rem 0; font-variant-numeric: tabular-nums }
.csoftmax-report td, .csoftmax-report th {
  padding: 0.2rem 0.9rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }
.csoftmax-report .name { text-align: left; max-width: 26rem; overflow-wrap: anywhere }
.csoftmax-report .worst td { background: #fbeee6 }
.csoftmax-report img { max-width: 100%; height: auto; background: #fff; border-radius: 6px }
.csoftmax-page .csoftmax-report { padding: 1rem }
@media (prefers-color-scheme: dark) {
  .csoftmax-page { background: #1b1d20 }
  .csoftmax-page .csoftmax-report { color: #ddd }
  .csoftmax-page .model, .csoftmax-page .cards span, .csoftmax-page .note { color: #aaa }
  .csoftmax-page .cards div, .csoftmax-page td, .csoftmax-page th { border-color: #444 }
  .csoftmax-page .worst td { background: #47301f }
}
"""

FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title></head><body class="csoftmax-page">
{body}</body></html>
"""


def make_page(
    figures: Mapping[str, Any], displays: Sequence[ReliabilityDisplay], history: Mapping[str, Sequence[float]]
) -> str:
    """A whole page."""
    return FRAME.format(title=_escape(_title(figures)), body=_make(figures, _draw(figures, displays, history)))


def make_body(
    figures: Mapping[str, Any], displays: Sequence[ReliabilityDisplay], history: Mapping[str, Sequence[float]]
) -> str:
    """The page without its frame, and without plots if matplotlib is missing."""
    try:
        pictures = _draw(figures, displays, history)
    except UnusableError:
        pictures = {}
    return _make(figures, pictures)


def _title(figures: Mapping[str, Any]) -> str:
    name = figures["model"].partition("(")[0]
    return str(figures["title"] or (name if name.isidentifier() else "classifier"))


def _escape(text: object) -> str:
    return html.escape(escape_controls(str(text)))


def _make(f: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    columns = f["columns"]
    last = columns[-1]
    cards = [
        ("accuracy", f"{f['accuracy']:.4f}"),
        ("macro F1", f"{f['macro_f1']:.4f}"),
        ("weighted F1", f"{f['weighted_f1']:.4f}"),
        ("ROC-AUC, one against the rest", format_number(f["roc_auc"])),
        (f"log loss{', ' + last['name'] if len(columns) > 1 else ''}", f"{last['log_loss']:.4f}"),
        (f"rows{describe_weight(f)}", f"{f['rows']:,}"),
        ("classes", f"{len(f['classes']):,}"),
    ]
    calibration = [
        (name, *(f"{c[key]:.4f}" for c in columns), MEANINGS[key].format(n_bins=f["n_bins"]))
        for key, name in NAMES.items()
    ]
    parts = [
        f"<style>{STYLE}</style>",
        f"<h1>{_escape(_title(f))}</h1>",
        f'<p class="model">{_escape(" ".join(f["model"].split()))}</p>',
        '<div class="cards">' + "".join(f"<div><b>{_escape(v)}</b><span>{_escape(n)}</span></div>" for n, v in cards),
        "</div>",
        "<h2>Calibration</h2>",
        _table(("", *(c["name"] for c in columns), ""), calibration, names={0, len(columns) + 1}),
        f"<p>{_escape(f['calibration'][:1].upper() + f['calibration'][1:])}.</p>" if f["calibration"] else "",
        _picture("reliability diagrams", pictures),
        "<h2>Confusion matrix</h2>" if "confusion matrix" in pictures else "",
        _picture("confusion matrix", pictures),
        _explain_numbers(f) if "confusion matrix" in pictures else "",
        _list_confusions(f),
        "<h2>Training</h2>" if "loss curve" in pictures else "",
        _picture("loss curve", pictures),
        "<h2>Classes</h2>",
        _list_classes(f),
    ]
    return '<div class="csoftmax-report">\n' + "\n".join(filter(None, parts)) + "\n</div>\n"


def _picture(name: str, pictures: Mapping[str, str]) -> str:
    if name not in pictures:
        return ""
    return pictures[name].format(name=name)


def _explain_numbers(f: Mapping[str, Any]) -> str:
    if len(f["classes"]) > MAX_NAMED_CLASSES or not any(tick.startswith("#") for tick in name_ticks(f["classes"])):
        return ""
    return '<p class="note">Names that the picture cannot show are numbers there: # in the table of classes.</p>'


def _list_confusions(f: Mapping[str, Any]) -> str:
    """The largest numbers beside the diagonal, as a sentence."""
    matrix = np.array(f["confusion_matrix"])
    np.fill_diagonal(matrix, 0)
    largest = np.argsort(-matrix, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(largest, matrix.shape)) if matrix[i, j] > 0]
    if not pairs:
        return ""
    names = [_escape(name) for name in f["classes"]]
    listed = ", ".join(f"{names[i]} taken for {names[j]} ({matrix[i, j]:.4g} times)" for i, j in pairs)
    return f'<p class="note">Most frequent confusions: {listed}.</p>'


def _list_classes(f: Mapping[str, Any]) -> str:
    rows = f["per_class"]
    cells = [(i, row["class"], *format_scores(row), f"{row['rows']:,}") for i, row in enumerate(rows, 1)]
    occurring = [i for i, row in enumerate(rows) if row["weight"] > 0]
    worst = min(occurring, key=lambda i: rows[i]["f1"]) if len(occurring) > 1 else None
    if worst is not None and rows[worst]["f1"] == 1:
        worst = None
    note = "" if worst is None else '<p class="note">The class with the lowest F1 is marked.</p>'
    return note + _table(("#", "class", "precision", "recall", "F1", "rows"), cells, names={1}, marked=worst)


def _table(
    head: Iterable[object], rows: Iterable[Iterable[object]], names: Iterable[int] = (), marked: int | None = None
) -> str:
    """An HTML table; the columns `names` hold text."""
    text = set(names)

    def line(cells: Iterable[object], tag: str, kind: str = "") -> str:
        written = []
        for i, cell in enumerate(cells):
            name = ' class="name"' if i in text else ""
            written.append(f"<{tag}{name}>{'' if cell == '' and tag == 'th' else _escape(cell)}</{tag}>")
        return f"<tr{kind}>{''.join(written)}</tr>"

    body = "".join(line(row, "td", ' class="worst"' if i == marked else "") for i, row in enumerate(rows))
    return f"<table>{line(head, 'th')}{body}</table>"


# Pictures


def _draw(
    figures: Mapping[str, Any], displays: Sequence[ReliabilityDisplay], history: Mapping[str, Sequence[float]]
) -> dict[str, str]:
    """The pictures as elements with PNG in base64, by name; `{name}` stands for the name."""
    pictures = {}
    if displays:
        width = 9.4 if len(displays) > 1 else 5.2
        pictures["reliability diagrams"] = _encode(lambda figure: _draw_reliability(figure, displays), width, 4.9)
    k = len(figures["classes"])
    size = min(9.0, 4.2 + 0.28 * min(k, MAX_NUMBERED_CLASSES))
    pictures["confusion matrix"] = _encode(lambda figure: _draw_confusion(figure, figures), size + 0.8, size)
    if history:
        pictures["loss curve"] = _encode(lambda figure: _draw_loss(figure, history), 6.4, 3.4)
    return pictures


def _encode(draw: Callable[[Any], None], width: float, height: float) -> str:
    """The figure that `draw` fills, as an element; in matplotlib's own style, whatever the user has set, such as LaTeX
    for all text.
    """
    new_figure("learn", 1, 1)  # reports a missing matplotlib
    from matplotlib import style

    data = io.BytesIO()
    with style.context("default"):
        figure = new_figure("learn", width, height)
        draw(figure)
        figure.savefig(data, format="png", dpi=PICTURE_DPI)
    encoded = base64.b64encode(data.getvalue()).decode()
    return f'<img width="{width * SCREEN_DPI:.0f}" alt="{{name}}" src="data:image/png;base64,{encoded}">'


def _draw_reliability(figure: Any, displays: Sequence[ReliabilityDisplay]) -> None:
    panels = np.atleast_1d(figure.subplots(1, len(displays)))
    for i, (axes, display) in enumerate(zip(panels, displays)):
        copy.copy(display).plot(ax=axes, color=f"C{i}", name="")
        axes.set_title(display.name)


def _draw_loss(figure: Any, history: Mapping[str, Sequence[float]]) -> None:
    axes = figure.add_subplot()
    for name, values in history.items():
        axes.plot(
            range(1, len(values) + 1), values, marker="." if len(values) < 3 else "", label=name.replace("_", " ")
        )
    axes.set(xlabel="iteration or epoch", ylabel="loss", yscale="log")
    axes.grid(color="0.92", which="both")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def name_ticks(names: Sequence[str]) -> list[str]:
    """Names beside the confusion matrix: cut if they are long, and the number in the table of classes instead of a name
    that is empty, has letters which matplotlib's font lacks, or reads as another one.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family="DejaVu Sans")))  # the one that comes with matplotlib
    cut = [name if len(name) <= MAX_TICK_LENGTH else name[: MAX_TICK_LENGTH - 1] + "…" for name in names]
    readable = [
        bool(name.strip()) and name.isprintable() and all(map(font.get_char_index, map(ord, name))) for name in cut
    ]
    numbers = [f"#{i}" for i in range(1, len(names) + 1)]
    ticks = [
        literal(name) if is_readable and cut.count(name) == 1 else number
        for name, is_readable, number in zip(cut, readable, numbers)
    ]
    return ticks if len(set(ticks)) == len(ticks) else numbers


def _draw_confusion(figure: Any, f: Mapping[str, Any]) -> None:
    matrix = np.array(f["confusion_matrix"])
    axes = figure.add_subplot()
    total = matrix.sum(axis=1, keepdims=True)
    share = np.divide(matrix, total, out=np.zeros(matrix.shape), where=total > 0)
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.6, aspect=25)
    bar.outline.set_visible(False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.spines[:].set_visible(False)
    if len(matrix) <= MAX_NAMED_CLASSES:
        ticks = name_ticks(f["classes"])
        turned = max(map(len, ticks)) * len(ticks) > 60
        axes.set_xticks(range(len(ticks)), ticks, rotation=90 if turned else 0)
        axes.set_yticks(range(len(ticks)), ticks)
        small = len(ticks) > MAX_NUMBERED_CLASSES
        axes.tick_params(length=0, labelsize=6.5 if small else 9)
    if len(matrix) <= MAX_NUMBERED_CLASSES:
        for i, j in np.argwhere(matrix > 0):
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(
                j,
                i,
                f"{matrix[i, j]:.4g}" if matrix.dtype.kind == "f" else str(matrix[i, j]),
                ha="center",
                va="center",
                fontsize=8,
                color=colour,
            )
