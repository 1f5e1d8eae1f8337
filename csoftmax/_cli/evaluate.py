"""``csoftmax evaluate``: accuracy, F1, ROC-AUC and calibration of a model on a table."""

from __future__ import annotations

import argparse
import datetime
import shlex
from collections.abc import Callable
from typing import Any

from .. import __version__
from .._runtime.optional import UnusableError, load
from . import calibrated, models, outputs
from . import messages as say
from .arguments import parse_path
from .tables.columns import format_ids


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    models.add_target(parser)
    parser.add_argument(
        "--recalibrate",
        action="store_true",
        help="add a cross-fitted calibration: temperature scaling, fitted on every other row, measured on the rest",
    )
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--html", type=parse_path, metavar="PAGE.html", help="also write one page with plots")
    models.add_model_and_table(parser)


def main(arguments: argparse.Namespace) -> int:
    """Show the report as text or JSON, and write it as a page if asked for."""
    messages = say.from_arguments(arguments)
    if arguments.html:
        outputs.check_output(arguments.html, {"model": arguments.model, "table": arguments.data})
        for name in ("matplotlib", "jinja2"):
            load(name, "learn")
    model = models.load_model(arguments.model)
    if arguments.recalibrate and isinstance(model, calibrated.CalibratedRegression):
        raise UnusableError(f"--recalibrate: {arguments.model} has a calibrator, whose figures are the second column")
    prepared = models.read_table(arguments.data, model, arguments, messages, target=arguments.target)
    messages.release()
    assert prepared.labels is not None, "read_table reads labels unless told not to"
    from .. import metrics

    calibrator = "recalibrate" if arguments.recalibrate else None
    if isinstance(model, calibrated.CalibratedRegression):
        model, calibrator = model.model, model.calibrator
    report = metrics.evaluate(models.without_names(model), prepared.x, prepared.labels, calibrator=calibrator)
    report.data = "standard input" if str(arguments.data) == "-" else arguments.data.name
    report.target, report.model_file = prepared.target, arguments.model.name
    report.title = f"{report.target}: {report.model_file} on {report.data}"
    report.command = shlex.join(["csoftmax", *arguments.argv])
    report.name_rows(make_names(model, prepared))
    report.date, report.version = datetime.date.today().isoformat(), __version__
    print(report.to_json() if arguments.json else report)
    if arguments.html:
        try:
            report.to_html(arguments.html)
        except OSError as error:
            raise UnusableError(f"cannot write {str(arguments.html)!r}: {error.strerror or error}") from error
        messages.say(f"page: {arguments.html}")
    return 0


def make_names(model: Any, prepared: models.Prepared) -> Callable[[int], str]:
    """Return what a row of the report is called: its place in the file, and its id if `fit` had a column of ids."""
    table = prepared.table
    stored = models.get_preparation(model)
    id_column = stored.id if stored else None
    ids = format_ids(table, id_column) if id_column is not None and table.find(id_column) is not None else None

    def name(row: int) -> str:
        place = int(prepared.rows[row])
        return table.locate(place) + (f", {id_column} {ids[place]}" if ids else "")

    return name
