"""``python -m csoftmax fit``: softmax regression trained on a table."""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import UnusableError, check_folder
from . import models, tables
from .arguments import parse_fraction, parse_not_negative, parse_positive

if TYPE_CHECKING:
    from ..linear_model import SoftmaxRegression


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add = parser.add_argument
    add("data", type=Path, help=models.TABLE)
    models.add_target(parser)
    add("--output", type=Path, default=Path("model.safetensors"), help="default: model.safetensors")
    add("--solver", choices=("lbfgs", "adamw"), default="lbfgs", help="default: lbfgs")
    add("--penalty-l2", type=parse_penalty, help="a number, auto or none; default: none, 1 / rows")
    add("--class-weight", choices=("balanced", "effective_number"), help="default: none")
    add("--label-smoothing", type=parse_fraction, default=0.0, help="default: 0")
    add("--max-epochs", type=parse_positive, default=500, help="default: 500")
    add("--learning-rate", type=parse_not_negative, default=1e-2, help="of adamw; default: 0.01")
    add("--batch-norm", action="store_true", help="of the logits, with adamw")
    add("--early-stopping", action="store_true", help="hold out a tenth, keep the best epoch")
    add("--no-standardize", dest="standardize", action="store_false", help="use the columns without scaling")
    add("--save-every", type=parse_positive, metavar="N", help="also save the model after every N epochs")
    add("--seed", type=int, default=0, help="default: 0")


def parse_penalty(text: str) -> float | str | None:
    """Parse a number that is at least 0, "auto" or "none"."""
    return {"auto": "auto", "none": None}[text] if text in ("auto", "none") else parse_not_negative(text)


def main(arguments: argparse.Namespace) -> int:
    """Train and save a model: at the end, and after every N epochs if asked for."""
    models.require_packages()
    check_folder(arguments.output)
    table = tables.read(arguments.data, arguments.target)
    target = np.asarray(table.target)
    labels, counts = np.unique(target, return_counts=True)
    if len(labels) < 2:
        raise UnusableError(
            f"{arguments.data}: {arguments.target!r} has one class, {labels[0]!r}; there is nothing to learn"
        )
    mean, std = np.zeros(table.x.shape[1]), np.ones(table.x.shape[1])
    if arguments.standardize:
        mean, std = find_scale(table.x)

    def save(model: SoftmaxRegression) -> None:
        undo_scale(model, table.names, mean, std).save(arguments.output)

    x = (table.x - mean) / std if arguments.standardize else table.x
    model = train(make_model(arguments, save), x.astype(table.x.dtype, copy=False), target)
    try:
        save(model)
    except OSError as error:
        raise UnusableError(f"cannot write {str(arguments.output)!r}: {error}") from error
    accuracy = model.score(x, target)
    sizes = f"{counts.min()} to {counts.max()} rows"
    print(f"{len(table.x)} rows, {table.x.shape[1]} columns, {len(labels)} classes ({sizes})")
    print(f"{model.n_iter_} epochs, loss {model.history_['loss'][-1]:.6g}, accuracy {accuracy:.4f}")
    print(f"model: {arguments.output}")
    return 0


def find_scale(x: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and standard deviation of each column; 1 for a column that is constant up to rounding."""
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    noise = len(x) * np.finfo(np.float64).eps * np.abs(x).max(axis=0)
    return mean, np.where(std > noise, std, 1)


def undo_scale(
    model: SoftmaxRegression, names: list[str], mean: NDArray[np.float64], std: NDArray[np.float64]
) -> SoftmaxRegression:
    """Return the model for the original columns, with their names, from the one for standardised columns."""
    model = copy.copy(model)
    coef = model.coef_ / std
    model.coef_ = coef.astype(model.coef_.dtype)
    model.intercept_ = (model.intercept_ - coef @ mean).astype(model.intercept_.dtype)
    model.feature_names_in_ = np.array(names, object)
    return model


def make_model(arguments: argparse.Namespace, save: Any) -> SoftmaxRegression:
    """Return an untrained model with the options of the command line."""
    from ..linear_model import SoftmaxRegression

    callbacks: list[Any] = ["progress"]
    if arguments.save_every:

        def save_regularly(model: SoftmaxRegression, record: dict[str, Any]) -> None:
            if record["epoch"] % arguments.save_every == 0:
                save(model)

        callbacks.append(save_regularly)
    return SoftmaxRegression(
        solver=arguments.solver,
        penalty_l2=arguments.penalty_l2,
        class_weight=arguments.class_weight,
        label_smoothing=arguments.label_smoothing,
        max_epochs=arguments.max_epochs,
        early_stopping=arguments.early_stopping,
        learning_rate=arguments.learning_rate,
        batch_norm=arguments.batch_norm,
        random_state=arguments.seed,
        callbacks=callbacks,
    )


def train(model: SoftmaxRegression, x: NDArray[Any], target: Any) -> SoftmaxRegression:
    """Fit the model; its warnings become lines on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(x, target)
        except ValueError as error:
            raise UnusableError(str(error)) from error
    for warning in caught:
        print(f"csoftmax fit: {warning.message}", file=sys.stderr)
    return model
