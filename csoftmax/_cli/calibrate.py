"""``csoftmax calibrate``: fits a calibrator on held-out data and writes the model with it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._runtime.optional import UnusableError
from . import calibrated, models, outputs
from . import messages as say
from .arguments import parse_path
from .messages import Messages, count, name_some


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add = parser.add_argument
    add("--method", choices=tuple(calibrated.METHODS), default="temperature", help="default: temperature")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", type=parse_path, help="default: NAME.calibrated.safetensors beside the model")
    where.add_argument("--in-place", action="store_true", help="replace the model's own file")
    add("--json", action="store_true", help="print the result as one JSON object")
    models.add_target(parser)
    models.add_model_and_table(parser)


def main(arguments: argparse.Namespace) -> int:
    """Fit a calibrator and save the model with it."""
    messages = say.from_arguments(arguments)
    model = models.load_model(arguments.model)
    output = choose_output(arguments)
    if not arguments.in_place and outputs.is_same_file(output, arguments.model):
        raise UnusableError(f"cannot write {str(output)!r}: it is the model that is read; --in-place replaces it")
    outputs.check_model_output(output, {"table": arguments.data})
    prepared = models.read_table(arguments.data, model, arguments, messages, target=arguments.target)
    if isinstance(model, calibrated.CalibratedRegression):
        messages.say(f"{arguments.model} has a calibrator, {type(model.calibrator).__name__}, which is replaced")
        model = model.model
    labels = prepared.labels
    assert labels is not None, "read_table reads labels unless told not to"
    if arguments.method == "platt":
        refuse_absent_classes(prepared.table.source, model, labels)
    figures, result = fit_calibrator(arguments.method, model, prepared.x, labels, messages)
    messages.release()
    try:
        result.save(output)
    except OSError as error:
        raise UnusableError(f"cannot write {str(output)!r}: {error.strerror or error}") from error
    figures |= {"rows": len(labels), "model": str(output)}
    if arguments.json:
        print(json.dumps(figures))
    elif not messages.quiet:
        temperature = f"temperature {figures['temperature']:.6g}" if "temperature" in figures else arguments.method
        print(
            f"{temperature}; on {count(len(labels), 'row')} log loss {figures['log_loss_before']:.4f} -> "
            f"{figures['log_loss']:.4f}, ECE {figures['ece_before']:.4f} -> {figures['ece']:.4f}"
        )
        print(f"model: {output}")
    return 0


def choose_output(arguments: argparse.Namespace) -> Path:
    """Return the file to write: the one that is given, the model's own, or a new one beside it."""
    if arguments.in_place:
        return Path(arguments.model)
    if arguments.output:
        return Path(arguments.output)
    path: Path = arguments.model
    return path.with_name(f"{path.stem}.calibrated{path.suffix or '.safetensors'}")


def refuse_absent_classes(source: str, model: Any, labels: NDArray[Any]) -> None:
    """Refuse a table without rows of a class, by its label, for the method that fits a sigmoid to each class."""
    absent = np.setdiff1d(model.classes_, labels).tolist()
    if absent:
        raise UnusableError(
            f"--method platt needs rows of every class, and {source} has none of {name_some(absent)}; add some, or use "
            "another method, such as temperature"
        )


def fit_calibrator(
    method: str, model: Any, x: NDArray[Any], labels: NDArray[Any], messages: Messages
) -> tuple[dict[str, Any], Any]:
    """Return the figures before and after calibration, and the model with the calibrator.

    A temperature becomes that of the model; the one that the model has is replaced.
    """
    from .. import calibration, metrics
    from .._learn.calibration.base import learn
    from .._learn.labels import indices_of
    from .._ops.cross_entropy import cross_entropy

    indices, _ = indices_of(labels, model.classes_)
    plain = models.without_names(model)
    before = plain.predict_proba(x)
    logits = plain.decision_function(x)
    calibrator = getattr(calibration, calibrated.METHODS[method])()
    try:
        notes = learn(calibrator, logits, indices)
    except ValueError as error:
        raise UnusableError(f"--method {method}: {error}") from error
    for text, _ in notes:
        messages.say(text)
    after = np.asarray(calibrator.transform(logits))
    tiny = np.finfo(np.float64).tiny
    figures: dict[str, Any] = {"method": method}
    if method == "temperature":
        figures["temperature"] = float(calibrator.temperature_)
        model.set_params(temperature=float(calibrator.temperature_))
    for ending, p in (("_before", before), ("", after)):
        figures[f"log_loss{ending}"] = float(cross_entropy(np.log(np.maximum(p, tiny)), indices))
        figures[f"ece{ending}"] = float(metrics.expected_calibration_error(indices, p))
    return figures, model if method == "temperature" else calibrated.CalibratedRegression(model, calibrator)
