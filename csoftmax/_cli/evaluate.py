"""``python -m csoftmax evaluate``: accuracy, F1, ROC-AUC and calibration of a model on a table."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from .._runtime.optional import check_folder, load
from . import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    models.add_model_and_table(parser)
    models.add_target(parser)
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

    report = metrics.evaluate(model, table.x, models.match_labels(arguments.data, table, model))
    print(json.dumps(report.to_dict(), indent=2) if arguments.json else report)
    if arguments.html:
        report.to_html(arguments.html)
        print(f"page: {arguments.html}", file=sys.stderr)
    return 0
