"""``python -m csoftmax predict``: labels and probabilities of a table, as CSV."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import IO

from .._runtime.optional import UnusableError, check_folder
from . import models
from .arguments import parse_positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    models.add_model_and_table(parser)
    parser.add_argument("--target", metavar="COLUMN", help="a column to leave out, if it is there")
    parser.add_argument("--top", type=parse_positive, metavar="K", help="the K most probable labels; default: 1")
    parser.add_argument("--output", type=Path, help="default: standard output")


def main(arguments: argparse.Namespace) -> int:
    """Write the most probable labels of each row."""
    model = models.load_model(arguments.model)
    if arguments.output:
        check_folder(arguments.output)
    k = arguments.top or 1
    if k > len(model.classes_):
        raise UnusableError(f"--top must be 1 to {len(model.classes_)}, the number of classes, got {k}")
    table = models.read_table(arguments.data, model, arguments.target, needs_target=False)
    import csoftmax

    from .._learn.store import write_whole

    best = csoftmax.topk(model.predict_proba(table.x), k)

    def write(out: IO[str]) -> None:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([name + (f"_{i + 1}" if k > 1 else "") for i in range(k) for name in ("label", "probability")])
        for values, indices in zip(best.values.tolist(), model.classes_[best.indices].tolist()):
            writer.writerow([cell for p, label in zip(values, indices) for cell in (label, f"{p:.9g}")])

    if arguments.output:
        text = io.StringIO()
        write(text)
        write_whole(arguments.output, lambda file: file.write(text.getvalue().encode()))
    else:
        write(sys.stdout)
    return 0
