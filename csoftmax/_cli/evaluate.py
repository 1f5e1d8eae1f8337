"""``python -m csoftmax evaluate``: accuracy, F1, ROC-AUC and calibration of a model on a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .._runtime.optional import check_folder, load
from . import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    models.add_model_and_table(parser)
    models.add_target(parser)
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="add a cross-fitted calibration: temperature scaling, fitted on every other row, measured on the rest",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--html", type=Path, metavar="PAGE.html", help="also write one page with plots")


def main(arguments: argparse.Namespace) -> int:
    """Show the report as text or JSON, and write it as a page if asked for."""
    model = models.load_model(arguments.model)
    if arguments.html:
        check_folder(arguments.html)
        load("matplotlib", "learn")
    table = models.read_table(arguments.data, model, arguments.target)
    from .. import metrics

    labels = models.match_labels(arguments.data, table, model)
    report = metrics.evaluate(model, table.x, labels, calibrator="recalibrate" if arguments.recalibrate else None)
    report.title = f"{arguments.target}: {arguments.model.name} on {arguments.data.name}"
    print(report.to_json() if arguments.json else report)
    if arguments.html:
        report.to_html(arguments.html)
        print(f"page: {arguments.html}", file=sys.stderr)
    return 0
