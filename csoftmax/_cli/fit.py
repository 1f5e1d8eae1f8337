"""``csoftmax fit``: softmax regression trained on a table."""

from __future__ import annotations

import argparse
import copy
import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import UnusableError
from . import messages as say
from . import models, outputs
from .arguments import (
    parse_cutoffs,
    parse_fraction,
    parse_names_of_columns,
    parse_not_negative,
    parse_path,
    parse_penalty,
    parse_positive,
    parse_seed,
)
from .messages import Messages, count
from .tables import columns, labels, reading
from .tables.columns import Preparation

if TYPE_CHECKING:
    from ..linear_model import ManyClassRegression, SoftmaxRegression

ADAMW_ONLY = ("learning_rate", "batch_norm")
NOT_WITH_HEAD = ("solver", "class_weight", "label_smoothing", "batch_norm")
MAX_EPOCHS, MAX_EPOCHS_OF_HEAD = 500, 20


class Data(NamedTuple):
    """The rows, labels and encoding that a model is trained on."""

    x: NDArray[Any]
    y: NDArray[Any]
    preparation: Preparation


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add = parser.add_argument
    add("data", type=parse_path, help=reading.TABLE)
    add("--target", metavar="COLUMN", help="the column of labels: its name, or its number if there is no header")
    add("-o", "--output", type=parse_path, default=Path("model.safetensors"), help="default: model.safetensors")
    models.add_missing(parser, "default: mean")
    add("--drop", type=parse_names_of_columns, default=[], metavar="A,B", help="columns that are no features")
    add("--id", metavar="COLUMN", help="the column of ids: no feature; predict repeats it")
    add("--keep-index", action="store_true", help="row names, row numbers, ids and dates are features, too")
    add("--solver", choices=("lbfgs", "adamw"), help="default: lbfgs")
    add(
        "--head",
        choices=("sampled", "full", "hierarchical", "adaptive", "hashed"),
        help="ManyClassRegression, for very many classes, instead: steps over sampled classes, over all, down a tree, "
        "over clusters of rare classes, or over buckets of classes",
    )
    add("--tree", choices=("huffman", "balanced", "two_means"), help="of --head hierarchical; default: huffman")
    add(
        "--cutoffs",
        type=parse_cutoffs,
        metavar="R,S",
        help="of --head adaptive: ranks of frequency at which clusters begin; default: auto, by a model of the time",
    )
    add("--n-buckets", type=parse_positive, metavar="B", help="of --head hashed; default: 2 sqrt(classes)")
    add("--n-hashes", type=parse_positive, metavar="R", help="of --head hashed; default: 16")
    add("--n-sampled", type=parse_positive, metavar="M", help="sampled classes of a minibatch; default: 1024")
    add(
        "--penalty-l2",
        type=parse_penalty,
        metavar="P",
        help="a number; auto: chosen from the data; none (the default): 1 / rows, or 2 / rows for two classes, as "
        "scikit-learn's C = 1; with adamw 1e-4, with --head 0",
    )
    add("--class-weight", choices=("balanced", "effective_number"), help="default: none")
    add("--label-smoothing", type=parse_fraction, default=0.0, metavar="E", help="default: 0")
    add("--max-epochs", type=parse_positive, metavar="N", help="default: 500, with --head 20")
    add("--learning-rate", type=parse_not_negative, metavar="R", help="of adamw, default: 0.01; with --head 0.3")
    add("--batch-norm", action="store_true", help="of the logits, with adamw")
    add("--early-stopping", action="store_true", help="hold out a tenth, keep the best epoch")
    add("--no-standardize", dest="standardize", action="store_false", help="use the columns without scaling")
    add("--save-every", type=parse_positive, metavar="N", help="also save the model after every N epochs")
    add("--seed", type=parse_seed, default=0, metavar="N", help="default: 0")
    add("--json", action="store_true", help="print the result as one JSON object")
    models.add_common(parser)


def main(arguments: argparse.Namespace) -> int:
    """Train and save a model: at the end, and after every N epochs if asked for."""
    refuse_unused(arguments)
    messages = say.from_arguments(arguments)
    models.require_packages()
    outputs.check_model_output(arguments.output, {"table": arguments.data})
    with np.errstate(over="ignore", invalid="ignore"):  # values that are too large are refused below
        data = read_data(arguments, messages)
    names, counts = np.unique(data.y, return_counts=True)
    if len(names) < 2:
        raise UnusableError(
            f"{arguments.data}: {data.preparation.target!r} has one class, {str(names[0])!r}; there is nothing to learn"
        )
    mean, std = find_scale(data.x, data.preparation, str(arguments.data))
    messages.release()
    if not arguments.standardize:
        mean, std = np.zeros(data.x.shape[1]), np.ones(data.x.shape[1])

    def save(model: Any) -> None:
        undo_scale(model, data.preparation, mean, std).save(arguments.output)

    x = ((data.x - mean) / std).astype(data.x.dtype, copy=False) if arguments.standardize else data.x
    model = train(make_model(arguments, save), x, data.y, messages)
    try:
        save(model)
    except OSError as error:
        raise UnusableError(f"cannot write {str(arguments.output)!r}: {error.strerror or error}") from error
    figures = {
        "model": str(arguments.output),
        "rows": len(data.y),
        "columns": len(data.preparation.features),
        "features": int(data.x.shape[1]),
        "classes": {str(name): int(n) for name, n in zip(names.tolist(), counts)},
        "epochs": int(model.n_iter_),
        "loss": float(model.history_["loss"][-1]),
        "penalty_l2": getattr(model, "penalty_l2_", model.penalty_l2),  # what was used, if it was chosen
        "accuracy": float(model.score(x, data.y)),
        "left_out": data.preparation.left_out,
    }
    report(figures, arguments, messages)
    return 0


def report(figures: dict[str, Any], arguments: argparse.Namespace, messages: Messages) -> None:
    """Print the result."""
    if arguments.json:
        # a training that has diverged has a loss that JSON has no number for
        print(json.dumps({k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}))
    elif not messages.quiet:
        sizes = figures["classes"].values()
        features = f" ({count(figures['features'], 'feature')})" if figures["features"] != figures["columns"] else ""
        print(
            f"{count(figures['rows'], 'row')}, {count(figures['columns'], 'column')}{features}, {len(sizes)} classes "
            f"({min(sizes)} to {max(sizes)} rows)"
        )
        print(
            f"{count(figures['epochs'], 'epoch')}, loss {figures['loss']:.6g}, accuracy {figures['accuracy']:.4f}, "
            f"penalty {figures['penalty_l2']:.4g}"
        )
        print(f"model: {figures['model']}")


def refuse_unused(arguments: argparse.Namespace) -> None:
    """Refuse options that the chosen solver, or ManyClassRegression, does not use."""
    if arguments.head is not None:
        for option in NOT_WITH_HEAD:
            if getattr(arguments, option):
                raise UnusableError(f"--{option.replace('_', '-')} does not belong to --head {arguments.head}")
        if arguments.penalty_l2 == "auto":
            raise UnusableError(f"--penalty-l2 auto does not belong to --head {arguments.head}: pass a number")
    if arguments.n_sampled is not None and arguments.head != "sampled":
        raise UnusableError("--n-sampled belongs to --head sampled")
    if arguments.tree is not None and arguments.head != "hierarchical":
        raise UnusableError("--tree belongs to --head hierarchical")
    if arguments.cutoffs is not None and arguments.head != "adaptive":
        raise UnusableError("--cutoffs belongs to --head adaptive")
    for option in ("n_buckets", "n_hashes"):
        if getattr(arguments, option) is not None and arguments.head != "hashed":
            raise UnusableError(f"--{option.replace('_', '-')} belongs to --head hashed")
    if arguments.head is not None:
        return
    arguments.solver = arguments.solver or "lbfgs"
    for option in ADAMW_ONLY:
        if arguments.solver != "adamw" and getattr(arguments, option) not in (None, False):
            raise UnusableError(f"--{option.replace('_', '-')} belongs to --solver adamw, not to {arguments.solver}")
    if arguments.solver != "lbfgs" and arguments.penalty_l2 == "auto":
        raise UnusableError(f"--penalty-l2 auto belongs to --solver lbfgs, not to {arguments.solver}")


def read_data(arguments: argparse.Namespace, messages: Messages) -> Data:
    """Read the table, decide what its columns are, and return features and labels of the rows that are used."""
    words = [name for name in (arguments.target, arguments.id) if name]
    table = reading.read(
        arguments.data,
        reading.get_options(arguments),
        messages,
        expected=[*words, *arguments.drop],
        as_words=words,
    )
    models.refuse_lists(table, arguments.target)
    target = labels.find_target(table, arguments.target)
    y, missing = labels.parse(table, target)
    policy = arguments.missing or "mean"
    labels.refuse_missing(table, target, missing, drop=policy == "drop")
    preparation = columns.prepare(
        table, target, messages, missing=policy, drop=arguments.drop, id=arguments.id, keep_index=arguments.keep_index
    )
    columns.fill_in(preparation, table, ~missing)
    x, incomplete = columns.apply(preparation, table, messages)
    if policy == "drop" and (missing | incomplete).any():
        kept = models.drop_rows(table, missing | incomplete, messages)
        columns.fill_in(preparation, table, kept)
        x, y = x[kept], y[kept]
    return Data(x, y, preparation)


def find_scale(
    x: NDArray[Any], preparation: Preparation, source: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the mean and standard deviation of each feature; 1 for one that is constant up to rounding.

    Levels and booleans keep their 0 and 1: scaled up, rare levels would be penalised less than common ones. Features
    whose sum of squares overflows are refused, standardised or not: the first step of a training needs it.
    """
    is_scaled = preparation.is_scaled()
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    bad = np.flatnonzero(~(np.isfinite(mean) & np.isfinite(std)))
    if len(bad):
        largest = np.nanmax(np.abs(np.where(np.isfinite(x[:, bad[0]]), x[:, bad[0]], np.nan)))
        raise UnusableError(
            f"{source}: the values of column {preparation.names()[bad[0]]!r}, up to {largest:.3g}, are too large to be "
            "trained on, because the sum of their squares overflows; divide them by a constant, or --drop the column"
        )
    noise = len(x) * np.finfo(np.float64).eps * np.abs(x).max(axis=0)
    return np.where(is_scaled, mean, 0), np.where(is_scaled & (std > noise), std, 1)


def undo_scale(model: Any, preparation: Preparation, mean: NDArray[np.float64], std: NDArray[np.float64]) -> Any:
    """Return the model for features as they are, with what was done to the table, from that for standardised ones."""
    model = copy.copy(model)
    if hasattr(model, "head_"):
        model.head_ = model.head_.for_raw_features(mean, std)
    else:
        coef = model.coef_ / std
        model.coef_ = coef.astype(model.coef_.dtype)
        model.intercept_ = (model.intercept_ - coef @ mean).astype(model.intercept_.dtype)
    model.feature_names_in_ = np.array(preparation.names(), object)
    model.table_ = preparation.to_json()
    return model


def make_model(arguments: argparse.Namespace, save: Any) -> SoftmaxRegression | ManyClassRegression:
    """Return an untrained model with the options of the command line; what is not given is the model's default."""
    from ..linear_model import ManyClassRegression, SoftmaxRegression

    callbacks: list[Any] = [] if arguments.quiet else ["progress"]
    if arguments.save_every:

        def save_regularly(model: Any, record: dict[str, Any]) -> None:
            if record["epoch"] % arguments.save_every == 0:
                save(model)

        callbacks.append(save_regularly)
    names = ("penalty_l2", "learning_rate", "n_sampled", "tree", "cutoffs", "n_buckets", "n_hashes")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    if arguments.head is not None:
        return ManyClassRegression(
            head=arguments.head,
            max_epochs=arguments.max_epochs or MAX_EPOCHS_OF_HEAD,
            early_stopping=arguments.early_stopping,
            random_state=arguments.seed,
            callbacks=callbacks,
            **given,
        )
    return SoftmaxRegression(
        solver=arguments.solver,
        class_weight=arguments.class_weight,
        label_smoothing=arguments.label_smoothing,
        max_epochs=arguments.max_epochs or MAX_EPOCHS,
        early_stopping=arguments.early_stopping,
        batch_norm=arguments.batch_norm,
        random_state=arguments.seed,
        callbacks=callbacks,
        **given,
    )


def train(model: Any, x: NDArray[Any], y: NDArray[Any], messages: Messages) -> Any:
    """Fit the model; its warnings become lines on stderr."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(x, y)
        except ValueError as error:
            raise UnusableError(str(error)) from error
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        messages.say(text)
    return model
