"""The page as a whole: its template, filled with tables and pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..._runtime.optional import load
from ..reliability import FEW_ROWS
from ..report_text import escape_controls
from . import pictures, tables

if TYPE_CHECKING:
    from ..display import ReliabilityDisplay
    from .images import Images


def render(
    figures: Mapping[str, Any],
    displays: Sequence[ReliabilityDisplay],
    history: Mapping[str, Sequence[float]],
    images: Images | None = None,
    *,
    compact: bool = False,
) -> str:
    """Return the page of a report; the same report gives the same text.

    Parameters
    ----------
    figures : mapping
        As `csoftmax.metrics.Report.to_dict` returns them.
    displays : sequence of ReliabilityDisplay
        Reliability diagrams of the columns.
    history : mapping
        Losses of the training, by name.
    images : Images, optional
        Pictures of the most confident mistakes.
    compact : bool, default False
        Whether to return a short version for notebooks: no frame, the worst classes only, and without matplotlib no
        pictures.

    Raises
    ------
    ImportError
        If jinja2 is missing, or matplotlib for the whole page.
    """
    template = _load_templates().get_template("notebook.html.jinja" if compact else "page.html.jinja")
    figures = tables.put_in_order(figures)
    k = len(figures["classes"])
    try:
        drawn = {
            "reliability": pictures.draw_reliability(displays) if displays else None,
            "loss": pictures.draw_loss(history) if history and not compact else None,
            "confusion": None
            if k <= tables.MAX_CONFUSION_TABLE or compact
            else pictures.draw_confusion(np.asarray(figures["confusion_matrix"])),
        }
    except ImportError:
        if not compact:
            raise
        drawn = dict.fromkeys(("reliability", "loss", "confusion"))
    is_tabular = k <= (tables.MAX_COMPACT_TABLE if compact else tables.MAX_CONFUSION_TABLE)
    text: str = template.render(
        f=figures,
        title=tables.choose_title(figures),
        facts=tables.list_facts(figures),
        cards=tables.make_cards(figures),
        predictions=tables.list_prediction_figures(figures),
        prediction_heads=tables.name_predictions(figures),
        probabilities=tables.list_probability_figures(figures),
        curves=tables.name_curves(figures),
        confusion=tables.make_confusion_table(figures) if is_tabular else None,
        confusions=tables.find_confusions(figures),
        classes=tables.sort_classes(figures),
        mistakes=tables.list_mistakes(figures),
        images=images,
        few_rows=FEW_ROWS,
        pictures=drawn,
    )
    return text


@functools.cache
def _load_templates() -> Any:
    jinja2 = load("jinja2", "learn")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csoftmax", "_learn/page/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": escape_controls,
        "oneline": lambda text: escape_controls(" ".join(text.split())),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return environment
