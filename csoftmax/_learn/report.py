"""The report of `csoftmax.metrics.evaluate` as text, as a dict and as an HTML page."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import new_figure
from .reliability import plot_reliability
from .store import write_whole

MAX_NAMED_CLASSES = 60  # up to this many classes the axes of the confusion matrix name them
MAX_NUMBERED_CLASSES = 20  # up to this many classes the cells of the confusion matrix hold their counts
MAX_LISTED_CLASSES = 40  # the text report lists up to this many classes


class Report:
    """Figures of a classifier on a data set, as `csoftmax.metrics.evaluate` returns them."""

    def __init__(
        self,
        figures: dict[str, Any],
        curves: tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64], int],
        history: Mapping[str, Sequence[float]],
    ):
        """Keep the figures; `curves` are labels, probabilities before and after calibration, and number of bins."""
        self._figures, self._curves, self._history = figures, curves, history

    def to_dict(self) -> dict[str, Any]:
        """Return all figures: numbers, strings and lists of these."""
        return self._figures

    def __str__(self) -> str:
        f = self._figures
        lines = [
            f"{f['rows']} rows, {len(f['classes'])} classes",
            f"accuracy {f['accuracy']:.4f}   macro F1 {f['macro_f1']:.4f}   weighted F1 {f['weighted_f1']:.4f}   "
            f"ROC-AUC {_number(f['roc_auc'])}",
            "",
            f"{'':24}{'as predicted':>14}{'calibrated':>14}",
        ]
        for key, name in NAMES.items():
            lines.append(f"{name:24}{f['before'][key]:14.4f}{f['after'][key]:14.4f}")
        lines += [
            f"calibration: {f['calibration']}",
            "",
            f"{'class':24}{'precision':>10}{'recall':>10}{'F1':>10}{'rows':>8}",
        ]
        for row in f["per_class"][:MAX_LISTED_CLASSES]:
            lines.append(
                f"{row['class'][:23]:24}{row['precision']:10.4f}{row['recall']:10.4f}{row['f1']:10.4f}{row['rows']:8}"
            )
        if len(f["per_class"]) > MAX_LISTED_CLASSES:
            lines.append(f"... and {len(f['per_class']) - MAX_LISTED_CLASSES} more classes")
        return "\n".join(lines)

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a page that contains its plots; an existing file is replaced as a whole or not at all."""
        f = self._figures
        head = [
            ("rows", f["rows"]),
            ("classes", len(f["classes"])),
            ("accuracy", f"{f['accuracy']:.4f}"),
            ("macro F1", f"{f['macro_f1']:.4f}"),
            ("weighted F1", f"{f['weighted_f1']:.4f}"),
            ("ROC-AUC, one against the rest", _number(f["roc_auc"])),
        ]
        calibration = [(n, f"{f['before'][k]:.4f}", f"{f['after'][k]:.4f}") for k, n in NAMES.items()]
        per_class = [
            (r["class"], f"{r['precision']:.4f}", f"{r['recall']:.4f}", f"{r['f1']:.4f}", r["rows"])
            for r in f["per_class"]
        ]
        training = ""
        if self._history:
            training = PICTURE.format("Training", "loss curve", self._picture(self._draw_loss, 6.4, 3.6))
        page = PAGE.format(
            model=html.escape(f["model"]),
            head=_table(None, head),
            calibration=_table(("", "as predicted", "calibrated"), calibration),
            how=html.escape(f["calibration"]),
            reliability=self._picture(self._draw_reliability, 9.2, 4.8),
            confusion=self._picture(self._draw_confusion, 6.4, 5.6),
            training=training,
            classes=_table(("class", "precision", "recall", "F1", "rows"), per_class),
        )
        write_whole(Path(path), lambda file: file.write(page.encode()))

    def _picture(self, draw: Callable[[Any], None], width: float, height: float) -> str:
        """Return the figure that `draw` fills as PNG in base64."""
        figure = new_figure("learn", width, height)
        draw(figure)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110)
        return base64.b64encode(data.getvalue()).decode()

    def _draw_reliability(self, figure: Any) -> None:
        y, before, after, n_bins = self._curves
        for axes, p, title in zip(figure.subplots(1, 2), (before, after), ("as predicted", "calibrated")):
            plot_reliability(y, p, ax=axes, n_bins=n_bins)
            axes.set_title(title)

    def _draw_loss(self, figure: Any) -> None:
        axes = figure.add_subplot()
        for name, values in self._history.items():
            axes.plot(range(1, len(values) + 1), values, label=name.replace("_", " "))
        axes.set(xlabel="iteration or epoch", ylabel="loss", yscale="log")
        axes.legend()

    def _draw_confusion(self, figure: Any) -> None:
        matrix, names = np.array(self._figures["confusion_matrix"]), self._figures["classes"]
        axes = figure.add_subplot()
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label="share of the true class")
        axes.set(xlabel="predicted", ylabel="true")
        if len(names) <= MAX_NAMED_CLASSES:
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
        if len(names) <= MAX_NUMBERED_CLASSES:
            for i, j in np.argwhere(matrix > 0):
                colour = "white" if share[i, j] > 0.5 else "black"
                axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=7, color=colour)


NAMES = {
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "ECE",
    "mce": "MCE",
    "classwise_ece": "class-wise ECE",
}

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{model}</title><style>
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse; margin: 0.6rem 0 }}
td, th {{ padding: 0.2rem 0.8rem; border-bottom: 1px solid #ddd; text-align: right }}
td:first-child, th:first-child {{ text-align: left }}
img {{ max-width: 100% }}
h1 {{ font-size: 1.3rem; overflow-wrap: anywhere }} h2 {{ font-size: 1.1rem; margin-top: 1.8rem }}
</style></head><body>
<h1>{model}</h1>
{head}
<h2>Calibration</h2>
{calibration}
<p>{how}</p>
<img alt="reliability diagrams" src="data:image/png;base64,{reliability}">
<h2>Confusion matrix</h2>
<img alt="confusion matrix" src="data:image/png;base64,{confusion}">
{training}<h2>Classes</h2>
{classes}
</body></html>
"""

PICTURE = """<h2>{}</h2>
<img alt="{}" src="data:image/png;base64,{}">
"""


def _number(x: float | None) -> str:
    return "–" if x is None else f"{x:.4f}"


def _table(head: Iterable[object] | None, rows: Iterable[Iterable[object]]) -> str:
    def line(cells: Iterable[object], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + (line(head, "th") if head else "") + "".join(line(r, "td") for r in rows) + "</table>"
