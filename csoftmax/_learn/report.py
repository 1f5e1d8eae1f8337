"""The report of `csoftmax.metrics.evaluate`: scikit-learn's metrics and ours, as text, dict and one HTML page."""

import base64
import html
import io
import warnings
from pathlib import Path

import numpy as np

from .. import metrics
from ..cross_entropy import cross_entropy
from ..linear_model import SoftmaxRegression
from .labels import indices_of

MOST_DRAWN = 60  # classes of a confusion matrix that is drawn with its labels
MOST_LISTED = 40  # classes in the text


class Report:
    """Figures of one classifier on one data set; see `csoftmax.metrics.evaluate`."""

    def __init__(self, figures, curves, history):
        self._figures, self._curves, self._history = figures, curves, history

    def to_dict(self):
        """All figures: numbers, strings and lists of them."""
        return self._figures

    def __str__(self):
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
        for row in f["per_class"][:MOST_LISTED]:
            lines.append(
                f"{row['class'][:23]:24}{row['precision']:10.4f}{row['recall']:10.4f}{row['f1']:10.4f}{row['rows']:8}"
            )
        if len(f["per_class"]) > MOST_LISTED:
            lines.append(f"... and {len(f['per_class']) - MOST_LISTED} classes more")
        return "\n".join(lines)

    def to_html(self, path):
        """Write one page, plots inside, to a file; it is replaced as a whole or not at all."""
        from .store import write_whole

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

    def _picture(self, draw, width, height):
        from .._cli.optional import new_figure

        figure = new_figure("learn", width, height)
        draw(figure)
        data = io.BytesIO()
        figure.savefig(data, format="png", dpi=110)
        return base64.b64encode(data.getvalue()).decode()

    def _draw_reliability(self, figure):
        y, before, after, n_bins = self._curves
        for axes, p, title in zip(figure.subplots(1, 2), (before, after), ("as predicted", "calibrated")):
            metrics.plot_reliability(y, p, ax=axes, n_bins=n_bins)
            axes.set_title(title)

    def _draw_loss(self, figure):
        axes = figure.add_subplot()
        for name, values in self._history.items():
            axes.plot(range(1, len(values) + 1), values, label=name.replace("_", " "))
        axes.set(xlabel="iteration or epoch", ylabel="loss", yscale="log")
        axes.legend()

    def _draw_confusion(self, figure):
        matrix, names = np.array(self._figures["confusion_matrix"]), self._figures["classes"]
        axes = figure.add_subplot()
        share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        figure.colorbar(image, ax=axes, label="share of the true class")
        axes.set(xlabel="predicted", ylabel="true")
        if len(names) <= MOST_DRAWN:
            axes.set_xticks(range(len(names)), names, rotation=90)
            axes.set_yticks(range(len(names)), names)
        if len(names) <= 20:
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


def _number(x):
    return "–" if x is None else f"{x:.4f}"


def _table(head, rows):
    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + (line(head, "th") if head else "") + "".join(line(r, "td") for r in rows) + "</table>"


def _calibrated(logits, labels, calibrator):
    """Calibrated probabilities of rows that the calibration has not seen, and how that was done."""
    from ..calibration import TemperatureScaling

    if calibrator is not None:
        return calibrator.transform(logits), f"{type(calibrator).__name__}, fitted beforehand"
    if len(labels) < 2:
        return None, "none: there is one row"
    p, temperatures = np.empty((len(logits), max(2, logits[0].size))), []
    for fitted, measured in ((0, 1), (1, 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a half in which all is right has no finite optimum
            scaling = TemperatureScaling().fit(logits[fitted::2], labels[fitted::2])
        p[measured::2] = scaling.transform(logits[measured::2])
        temperatures.append(scaling.temperature_)
    given = " and ".join(f"{t:.3g}" for t in temperatures)
    return p, f"temperature scaling, fitted on every other row and measured on the rest (T = {given})"


def make_report(model, X, y, calibrator, n_bins):
    from sklearn import metrics as sk
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(model)
    y = np.asarray(y)
    classes = np.asarray(model.classes_)
    labels, wrong = indices_of(y, classes)
    if len(wrong):
        raise ValueError(f"y[{wrong[0]}] is {y[wrong[0]]!r}, a label that the model has not seen")
    before = np.asarray(model.predict_proba(X), np.float64)
    if hasattr(model, "predict_log_proba") and hasattr(model, "coef_") and not (before == 0).any():
        log_p = np.asarray(model.predict_log_proba(X), np.float64)
    else:  # trees and neighbours are certain where they should not be: no calibration can take that back
        log_p = np.log(np.maximum(before, np.finfo(np.float64).tiny))
    logits = np.asarray(model.decision_function(X), np.float64) if isinstance(model, SoftmaxRegression) else log_p
    after, how = _calibrated(logits, labels, calibrator)
    after = before if after is None else after
    predicted = before.argmax(axis=1)
    k = len(classes)
    precision, recall, f1, support = sk.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(k), zero_division=0
    )
    present = np.unique(labels)
    roc_auc = None
    if len(present) > 1:  # one against the rest, over the classes that occur
        roc_auc = float(np.mean([sk.roc_auc_score(labels == c, before[:, c]) for c in present]))

    def calibration(p):
        loss = (
            float(cross_entropy(log_p, labels)) if p is before else float(sk.log_loss(labels, p, labels=np.arange(k)))
        )
        return {
            "log_loss": loss,
            "brier": metrics.brier_score(labels, p),
            "ece": metrics.expected_calibration_error(labels, p, n_bins=n_bins),
            "mce": metrics.maximum_calibration_error(labels, p, n_bins=n_bins),
            "classwise_ece": metrics.classwise_calibration_error(labels, p, n_bins=n_bins),
        }

    names = [str(c) for c in classes]
    figures = {
        "model": repr(model),
        "rows": len(y),
        "classes": names,
        "accuracy": float(np.mean(predicted == labels)),
        "macro_f1": float(f1[present].mean()),
        "micro_f1": float(sk.f1_score(labels, predicted, average="micro")),
        "weighted_f1": float(f1 @ support / support.sum()),
        "roc_auc": roc_auc,
        "before": calibration(before),
        "after": calibration(after),
        "calibration": how,
        "per_class": [
            {"class": n, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(s)}
            for n, p, r, f, s in zip(names, precision, recall, f1, support)
        ],
        "confusion_matrix": sk.confusion_matrix(labels, predicted, labels=np.arange(k)).tolist(),
    }
    history = model.history_ if isinstance(model, SoftmaxRegression) and hasattr(model, "history_") else {}
    losses = {key: each for key, each in history.items() if key.endswith("loss") and each and min(each) > 0}
    return Report(figures, (labels, before, after, n_bins), losses)
