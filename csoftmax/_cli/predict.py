"""``csoftmax predict``: labels and probabilities of a table, as CSV or as JSON."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import UnusableError
from . import messages as say
from . import models, outputs
from .arguments import parse_path, parse_positive
from .messages import count
from .tables.columns import format_ids


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add = parser.add_argument
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("--top", type=parse_positive, metavar="K", help="the K most probable labels; default: 1")
    shape.add_argument("--probabilities", action="store_true", help="the label, then the probability of every class")
    add("--id", metavar="COLUMN", help="repeat this column first; default: that of fit --id, if it is there")
    add("--target", metavar="COLUMN", help="a column to leave out, if it is there")
    add("-o", "--output", type=parse_path, help="default: standard output, as is -")
    add("--json", action="store_true", help="one JSON object a line, with the names of the CSV's columns")
    models.add_missing(parser, "default: as for fit, but a row is never dropped")
    models.add_model_and_table(parser)


def main(arguments: argparse.Namespace) -> int:
    """Write the most probable labels of each row."""
    messages = say.from_arguments(arguments)
    if arguments.missing == "drop":
        raise UnusableError("--missing drop: predict has a row for each row of the table; mean or error")
    if str(arguments.output) == outputs.STREAM:
        arguments.output = None
    if arguments.output:
        outputs.check_output(arguments.output, {"model": arguments.model, "table": arguments.data})
    model = models.load_model(arguments.model)
    k = arguments.top or 1
    if k > len(model.classes_):
        raise UnusableError(f"--top must be 1 to {len(model.classes_)}, the number of classes, got {k}")
    stored = models.get_preparation(model)
    id_column = arguments.id or (stored.id if stored else None)
    prepared = models.read_table(
        arguments.data, model, arguments, messages, target=arguments.target, needs_target=False, id=id_column
    )
    if arguments.id is None and id_column is not None and prepared.table.find(id_column) is None:
        id_column = None  # a table without ids is still predicted
    head: list[str] = []
    parts: list[Iterable[Any]] = []
    if id_column is not None:
        head.append(id_column)
        parts.append(format_ids(prepared.table, id_column))
    names, cells = make_columns(arguments, models.without_names(model).predict_proba(prepared.x), model.classes_)
    if head and head[0] in names:
        messages.say(f"the column of ids, {head[0]!r}, is called 'id': the result has a column {head[0]!r}")
        head = ["id"]
    names, rows = [*head, *names], list(zip(*parts, *cells))
    ascii_only = needs_escapes(arguments, names, rows)
    messages.release()
    write(arguments, names, rows, ascii_only)
    if arguments.output:
        messages.detail(f"{count(len(prepared.x), 'row')} written to {arguments.output}")
    return 0


def make_columns(
    arguments: argparse.Namespace, p: NDArray[np.float64], classes: NDArray[Any]
) -> tuple[list[str], list[list[Any]]]:
    """Return the names and the cells of the columns of the result."""
    import csoftmax

    if arguments.probabilities:
        best = classes[p.argmax(axis=1)]
        return ["label", *(f"probability_{c}" for c in classes.tolist())], [best.tolist(), *p.T.tolist()]
    k = arguments.top or 1
    top = csoftmax.topk(p, k)
    names, columns = [], []
    for i in range(k):
        ending = f"_{i + 1}" if k > 1 else ""
        names += [f"label{ending}", f"probability{ending}"]
        columns += [classes[top.indices[:, i]].tolist(), top.values[:, i].tolist()]
    return names, columns


def write(arguments: argparse.Namespace, names: list[str], rows: list[tuple[Any, ...]], ascii_only: bool) -> None:
    """Write the rows to standard output, or to a file, which is replaced as a whole or not at all."""
    from .._learn.store import write_whole

    def write_rows(out: IO[str], ascii_only: bool) -> None:
        if arguments.json:
            out.writelines(json.dumps(dict(zip(names, row)), ensure_ascii=ascii_only) + "\n" for row in rows)
            return
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([f"{c:.9g}" if isinstance(c, float) and i else c for i, c in enumerate(row)] for row in rows)

    if not arguments.output:
        write_rows(sys.stdout, ascii_only)
        return
    text = io.StringIO()
    write_rows(text, ascii_only=False)
    try:
        write_whole(arguments.output, lambda file: file.write(text.getvalue().encode()))
    except OSError as error:
        raise UnusableError(f"cannot write {str(arguments.output)!r}: {error.strerror or error}") from error


def needs_escapes(arguments: argparse.Namespace, names: list[str], rows: list[tuple[Any, ...]]) -> bool:
    """Whether JSON escapes letters that the encoding of standard output lacks; a CSV with such letters is refused."""
    if arguments.output:
        return False
    texts = dict.fromkeys(cell for row in (names, *rows) for cell in row if isinstance(cell, str))
    if arguments.json:
        return find_unwritable(texts, find_encoding()) is not None
    check_letters(texts)
    return False


def find_encoding() -> str:
    """The encoding of standard output."""
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def check_letters(texts: Iterable[str]) -> None:
    """Refuse texts for which the encoding of standard output has no letters."""
    text = find_unwritable(texts, find_encoding())
    if text is not None:
        raise UnusableError(
            f"standard output is written as {find_encoding()}, which lacks a letter of {text!a}; write to a file with "
            "-o, which is UTF-8, or set PYTHONIOENCODING=utf-8"
        )


def find_unwritable(texts: Iterable[str], encoding: str) -> str | None:
    """Return the first text that an encoding has no letters for; escaped, it would be another label."""
    try:
        "\n".join(texts).encode(encoding)
    except UnicodeEncodeError:
        for text in texts:
            try:
                text.encode(encoding)
            except UnicodeEncodeError:
                return text
    return None
