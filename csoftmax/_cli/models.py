"""Files of models, and tables with their columns and labels: shared by fit, predict, evaluate and calibrate.

The file of a model is that of `SoftmaxRegression.save`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import UnusableError, load
from . import tables

if TYPE_CHECKING:
    from ..linear_model import SoftmaxRegression

TABLE = "table: .csv or .tsv with a header, .npz with one two-dimensional array, or .parquet"


def add_model_and_table(parser: argparse.ArgumentParser) -> None:
    """Declare the two files that predict, evaluate and calibrate read."""
    parser.add_argument("model", type=Path, help="file that fit has written")
    parser.add_argument("data", type=Path, help=TABLE)


def add_target(parser: argparse.ArgumentParser) -> None:
    """Declare the column of labels."""
    parser.add_argument("--target", required=True, metavar="COLUMN", help="the column of labels")


def require_packages() -> None:
    """Import the packages that csoftmax.linear_model, calibration and metrics need, or say how to install them."""
    for name in ("scipy", "sklearn"):
        load(name, "learn")


def load_model(path: Path) -> SoftmaxRegression:
    """Read a model from its file."""
    require_packages()
    from ..linear_model import SoftmaxRegression

    try:
        return SoftmaxRegression.load(path)
    except (OSError, ValueError, ImportError) as error:
        raise UnusableError(str(error)) from error


def read_table(path: Path, model: SoftmaxRegression, target: str | None, needs_target: bool = True) -> tables.Table:
    """Read a table with the columns of the model, in its order.

    The model's column names are removed: with them it would warn about arrays, which have no names.
    """
    wanted = model.__dict__.pop("feature_names_in_", None)
    table = tables.read(path, target, needs_target=needs_target, wanted=None if wanted is None else list(wanted))
    if table.x.shape[1] != model.n_features_in_:
        raise UnusableError(f"{path} has {table.x.shape[1]} columns, the model was trained with {model.n_features_in_}")
    return table


def match_labels(path: Path, table: tables.Table, model: SoftmaxRegression) -> NDArray[Any]:
    """Return the labels of a table in the type of the model's classes; refuse a label that is not among them."""
    labels = np.asarray(table.target)
    if labels.dtype.kind != model.classes_.dtype.kind:  # a label may be written in another way: 1, "1", 1.0
        known = {str(c): c for c in model.classes_.tolist()}
        known |= {str(float(c)): c for c in model.classes_.tolist() if not isinstance(c, str)}
        labels = np.array([known.get(text, text) for text in labels.astype(str).tolist()], object)
    classes = set(model.classes_.tolist())
    for row, label in enumerate(labels.tolist(), 1):
        if label not in classes:
            raise UnusableError(f"{path}, row {row}: unknown label {str(label)!r} (not among the training classes)")
    return labels.astype(model.classes_.dtype)
