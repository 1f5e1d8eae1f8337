"""The report of `csoftmax.metrics.evaluate` as text, as a dict, as JSON and as an HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from .page import Images, render, take_images
from .page.tables import FACTS
from .report_text import make_text
from .store import write_whole

if TYPE_CHECKING:
    from .display import ReliabilityDisplay


class Report:
    """Figures of a classifier on a data set, as `csoftmax.metrics.evaluate` returns them.

    ``str(report)`` is text, and a notebook shows the page. Reports can be pickled.

    Attributes
    ----------
    title : str or None
        Headline of the text and of the page, such as the names of the model and of the data; may be set. The page of a
        report without a title has the name of the model's class there.
    data, target, model_file, command, date, version : str or None
        Where the figures come from, for the head of the page and for `to_dict`; may be set. Nothing is filled in by
        itself, so that the same report gives the same page.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> from csoftmax.metrics import evaluate
    >>> X, y = load_iris(return_X_y=True)
    >>> report = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
    >>> report.title = "iris, every other flower"
    >>> print(str(report).splitlines()[0])
    iris, every other flower
    """

    title: str | None
    data: str | None = None
    target: str | None = None
    model_file: str | None = None
    command: str | None = None
    date: str | None = None
    version: str | None = None

    def __init__(
        self,
        figures: Mapping[str, Any],
        displays: Sequence[ReliabilityDisplay] = (),
        history: Mapping[str, Sequence[float]] | None = None,
        title: str | None = None,
    ) -> None:
        """Keep the figures, the diagrams of the columns, and the losses of the training; `evaluate` calls this."""
        self._figures, self._displays, self._history = dict(figures), list(displays), dict(history or {})
        self.title = title
        self._images: Images | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all figures: numbers, strings, None, and lists and dicts of these.

        Returns
        -------
        dict
            - "title", "data", "target", "model_file", "command", "date" and "version" as they were set, or None.
            - "model" (its repr), "rows", "classes" (as strings), and "weight", the sum of the sample weights.
            - "accuracy_interval": ends of the exact binomial 95 % interval of the accuracy (Clopper & Pearson 1934);
              with weights the number of rows is their sum if all are whole numbers, else the effective one,
              (sum w)^2 / sum w^2 (Kish 1965). "macro_f1_interval": that of the macro F1, by a percentile bootstrap
              (Efron 1979), with a fixed seed.
            - "accuracy", "macro_precision", "macro_recall", "macro_f1", "micro_f1", "weighted_f1": scikit-learn's, with
              ``zero_division=0``. Macro averages are over the classes that occur in y or in the predictions.
            - "roc_auc": mean, over the classes in y, of the area for the class against the rest; None if there is only
              one.
            - "uncalibrated": with a fitted calibrator, these figures and intervals without it; else None. The others
              are then those of the calibrated probabilities.
            - "columns": for each column of the calibration table a dict of "name", "log_loss", "brier", "ece",
              "debiased_ece" (``norm=2``), "smooth_ece", "mce" and "classwise_ece"; and of the ends of 95 % intervals:
              "log_loss_interval" (Student's, of a mean), "ece_interval" (basic bootstrap, Davison & Hinkley 1997, with
              a fixed seed; it allows for noise making the ECE too large) and "smooth_ece_interval" (delta method);
              None for one row.
              "before" and "after" are the first column and the second, or None; "calibration" is a sentence about them.
            - "per_class": for each class a dict of "class", "precision", "recall", "f1", "rows" and "predicted", the
              weight of the rows with this prediction.
            - "confusion_matrix": rows are true classes, columns predictions.
            - "mistakes": the nine wrong rows whose predicted class has the largest probability, each a dict of "row",
              "true", "predicted" and "confidence"; and of "place" after `name_rows`.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> from csoftmax.metrics import evaluate
        >>> X, y = load_iris(return_X_y=True)
        >>> report = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
        >>> figures = report.to_dict()
        >>> figures["rows"], round(figures["accuracy"], 2)
        (75, 0.96)
        """
        facts = {name: getattr(self, name) for name in ("title", *FACTS)}
        return {name: None if fact is None else str(fact) for name, fact in facts.items()} | self._figures

    def add_images(self, X: Any, shape: Sequence[int]) -> None:
        """Show the most confident mistakes as images on the page.

        Parameters
        ----------
        X : array-like of shape (N, D)
            The data that were evaluated, whose rows are images; the smallest value is black, the largest white.
        shape : tuple of int
            (height, width), or (height, width, 3) for colours; the product is D.

        Raises
        ------
        ValueError
            If the shapes do not fit each other or the report.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> from csoftmax.metrics import evaluate
        >>> X, y = load_digits(return_X_y=True)
        >>> report = evaluate(SoftmaxRegression(tol=0.01).fit(X[::2], y[::2]), X[1::2], y[1::2])
        >>> report.add_images(X[1::2], (8, 8))
        """
        rows = [mistake["row"] for mistake in self._figures["mistakes"]]
        self._images = take_images(X, shape, self._figures["rows"], rows)

    def name_rows(self, name: Callable[[int], str]) -> None:
        """Say where the rows of the most confident mistakes are found; otherwise they are numbers, counted from 0.

        Parameters
        ----------
        name : callable
            From the number of a row to text, such as its line in a file or its id.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> from csoftmax.metrics import evaluate
        >>> X, y = load_iris(return_X_y=True)
        >>> report = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
        >>> report.name_rows(lambda row: f"flower {2 * row + 2}")
        >>> mistake = report.to_dict()["mistakes"][0]
        >>> mistake["row"], mistake["place"]
        (41, 'flower 84')
        """
        mistakes = self._figures["mistakes"]
        self._figures["mistakes"] = [{**mistake, "place": str(name(mistake["row"]))} for mistake in mistakes]

    def to_json(self, path: str | PathLike[str] | None = None) -> str | None:
        """Return the figures of `to_dict` as JSON, or write them to a file.

        Parameters
        ----------
        path : str or path-like, optional
            File to write; an existing file is replaced as a whole or not at all.

        Returns
        -------
        str or None
            The text, if there is no path.

        Raises
        ------
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import json
        >>> from sklearn.datasets import load_iris
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> from csoftmax.metrics import evaluate
        >>> X, y = load_iris(return_X_y=True)
        >>> report = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
        >>> json.loads(report.to_json()) == report.to_dict()
        True
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        if path is None:
            return text
        write_whole(path, lambda file: file.write(text.encode()))
        return None

    def to_html(self, path: str | PathLike[str]) -> None:
        """Write a page that contains its plots and needs no other file (needs jinja2 and matplotlib).

        Parameters
        ----------
        path : str or path-like
            File to write; an existing file is replaced as a whole or not at all.

        Raises
        ------
        ImportError
            If jinja2 or matplotlib is missing; the message says how to install it.
        OSError
            If the file cannot be written.

        Examples
        --------
        >>> import os, tempfile
        >>> from sklearn.datasets import load_iris
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> from csoftmax.metrics import evaluate
        >>> X, y = load_iris(return_X_y=True)
        >>> report = evaluate(SoftmaxRegression().fit(X[::2], y[::2]), X[1::2], y[1::2])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report.to_html(os.path.join(folder, "report.html"))
        ...     os.listdir(folder)
        ['report.html']
        """
        page = render(self.to_dict(), self._displays, self._history, self._images)
        write_whole(path, lambda file: file.write(page.encode("utf-8", "replace")))

    def _repr_html_(self) -> str | None:
        """Return a short page for notebooks; without matplotlib it has no plots, without jinja2 there is none."""
        try:
            return render(self.to_dict(), self._displays, self._history, self._images, compact=True)
        except ImportError:
            return None

    def __repr__(self) -> str:
        f = self._figures
        title = "" if self.title is None else f"{self.title!r}, "
        loss = f["columns"][-1]["log_loss"]
        return f"Report({title}rows={f['rows']}, accuracy={f['accuracy']:.4f}, log_loss={loss:.4f})"

    def __str__(self) -> str:
        return make_text(self.to_dict())
