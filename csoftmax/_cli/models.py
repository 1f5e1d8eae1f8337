"""Files of models, and tables with the features and labels of a model: shared by predict, evaluate and calibrate."""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import UnusableError, load
from . import messages as say
from .arguments import parse_path
from .messages import Messages, count
from .tables import columns, labels, reading
from .tables.columns import Feature, Preparation
from .tables.dialect import NO_MODEL
from .tables.raw import RawTable

if TYPE_CHECKING:
    from ..linear_model import SoftmaxRegression
    from .calibrated import CalibratedRegression

    Model = SoftmaxRegression | CalibratedRegression


class Prepared(NamedTuple):
    """The features of a table, its labels, and its rows as they were read; rows: which of them those of `x` are."""

    x: NDArray[Any]
    labels: NDArray[Any] | None
    target: str | None
    table: RawTable
    rows: NDArray[np.intp]


def add_model_and_table(parser: argparse.ArgumentParser) -> None:
    """Declare the two files that predict, evaluate and calibrate read, and how the table is written."""
    parser.add_argument("model", type=parse_path, help="file that fit or calibrate has written")
    parser.add_argument("data", type=parse_path, help=reading.TABLE)
    add_common(parser)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Declare what all commands with a table have."""
    reading.add_arguments(parser)
    say.add_arguments(parser)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare the column of labels of a table whose model is there, and what becomes of missing values."""
    add = parser.add_argument
    add("--target", metavar="COLUMN", help="the column of labels; default: that of fit")
    add_missing(parser, "default: as for fit")


def add_missing(parser: argparse.ArgumentParser, default: str) -> None:
    """Declare what becomes of missing values."""
    meaning = "missing values: impute the mean (text: the commonest), drop the rows, or refuse them"
    parser.add_argument("--missing", choices=("mean", "drop", "error"), help=f"{meaning}; {default}")


def require_packages() -> None:
    """Import the packages that the commands need, or say how to install them."""
    for name in ("scipy", "sklearn"):
        load(name, "learn")
    for name in ("safetensors", "pyarrow"):
        load(name, "cli")


def load_model(path: Path) -> Model:
    """Read a model from its file."""
    if str(path) == "-":
        raise UnusableError("the model is a file, not standard input; only the table may be -, the last argument")
    require_packages()
    from .calibrated import load_any

    try:
        if path.is_dir():
            raise UnusableError(f"{str(path)!r} is a folder; give the file of a model in it")
        if path.exists() and not path.is_file():
            raise UnusableError(f"{str(path)!r} is a pipe or a device; the model is a file, because it is read twice")
        return load_any(path)
    except (OSError, ValueError, ImportError) as error:
        raise UnusableError(str(error)) from error


def get_preparation(model: Model) -> Preparation | None:
    """Return what was done to the table of fit; of a model that was fitted in Python, columns of numbers by name.

    None: that model does not know the names of its columns.
    """
    if hasattr(model, "table_"):
        preparation = columns.from_json(model.table_)
        if len(preparation.names()) != model.n_features_in_:
            raise UnusableError("the model does not say rightly how its table was prepared: the features are others")
        return preparation
    if not hasattr(model, "feature_names_in_"):
        return None
    features = [Feature(str(name), "numbers") for name in model.feature_names_in_]
    return Preparation(features, "error", "", None, {}, True)


def read_table(
    path: Path,
    model: Model,
    arguments: argparse.Namespace,
    messages: Messages,
    *,
    target: str | None,
    needs_target: bool = True,
    id: str | None = None,
) -> Prepared:
    """Read a table with the features of the model; with labels, if they are needed.

    Parameters
    ----------
    path
        The table.
    model
        Its features and classes.
    arguments
        How the table is written; `missing`.
    messages
        For what was detected and done; the command releases them when nothing more can be refused.
    target
        The column of labels; None is that of `fit`.
    needs_target
        Whether labels are read: a table without them is then refused, and rows may be dropped.
    id
        A column that stays text.

    Returns
    -------
    Prepared
        The rows of its table are all of those that were read, those of `x` all but dropped ones.
    """
    preparation = get_preparation(model)
    is_given = target is not None
    target = target or (preparation.target if preparation else None) or None
    words = {name for name in (target, id) if name} | set(preparation.words() if preparation else ())
    expected = [f.column for f in preparation.features] if preparation else []
    table = reading.read(
        path,
        reading.get_options(arguments),
        messages,
        expected=[*expected, *words],
        model=preparation.locate(has_target=needs_target) if preparation else NO_MODEL,
        as_words=words,
    )
    if getattr(arguments, "id", None):
        if table.find(arguments.id) is None:
            raise UnusableError(f"--id {arguments.id}: {columns.say_columns(table)}")
        table.refuse_unusable(arguments.id)
    found, missing = None, np.zeros(table.rows, bool)
    if needs_target:
        refuse_lists(table, target)
        target = labels.find_target(table, target, is_given=is_given)
        found, missing = labels.match(table, target, model.classes_)
    if preparation is None:
        preparation = _by_order(table, target, id, model.n_features_in_)
    policy = getattr(arguments, "missing", None)
    preparation.missing = policy or preparation.missing
    drops = needs_target and preparation.missing == "drop"
    if not needs_target and preparation.missing == "drop":
        preparation.missing = "mean"  # predict has a row for each of the table
    if needs_target:
        labels.refuse_missing(table, str(target), missing, drop=drops)
    x, incomplete = columns.apply(preparation, table, messages)
    rows = np.arange(table.rows)
    if drops:
        kept = drop_rows(table, missing | incomplete, messages)
        x, rows, found = x[kept], rows[kept], None if found is None else found[kept]
    return Prepared(x, found, target, table, rows)


def refuse_lists(table: RawTable, target: str | None) -> None:
    """Refuse a column of labels that holds neither numbers nor text: it is needed, and cannot be left out."""
    if target in table.unusable:
        raise UnusableError(
            f"{table.source}: the target {target!r} holds {table.unusable[target]}, which is neither a number nor "
            "text; name a column of labels"
        )


def drop_rows(table: RawTable, dropped: NDArray[np.bool_], messages: Messages) -> NDArray[np.bool_]:
    """Return which rows are kept, and say how many are not; refuse a table of which none is kept."""
    if dropped.all():
        raise UnusableError(f"{table.source}: every row has a missing value; --missing mean imputes them")
    if dropped.any():
        messages.say(f"{count(dropped.sum(), 'row')} with missing values dropped")
    return ~dropped


def _by_order(table: RawTable, target: str | None, id: str | None, width: int) -> Preparation:
    names = [name for name in table.names if name not in (target, id)]
    if len(names) != width:
        raise UnusableError(
            f"{table.source} has {count(len(names), 'column')} besides the target, the model was trained with {width}"
        )
    return Preparation([Feature(name, "numbers") for name in names], "error", target or "", id, {}, table.has_names)


def without_names(model: Model) -> Any:
    """Return the model without the names of its columns, about whose absence in arrays scikit-learn would warn."""
    from .calibrated import CalibratedRegression

    if isinstance(model, CalibratedRegression):
        return CalibratedRegression(without_names(model.model), model.calibrator)
    model = copy.copy(model)
    model.__dict__.pop("feature_names_in_", None)
    return model
