"""``python -m csoftmax calibrate``: fits a model's temperature on held-out data and keeps it in the model's file."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np

from .._runtime.optional import check_folder
from . import models


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    models.add_model_and_table(parser)
    models.add_target(parser)
    parser.add_argument("--output", type=Path, help="default: the model's own file")


def main(arguments: argparse.Namespace) -> int:
    """Fit a temperature and save the model with it."""
    model = models.load_model(arguments.model)
    output = arguments.output or arguments.model
    check_folder(output)
    names = getattr(model, "feature_names_in_", None)
    table = models.read_table(arguments.data, model, arguments.target)
    labels = models.match_labels(arguments.data, table, model)
    from .. import calibration, cross_entropy, metrics
    from .._learn.labels import indices_of

    indices, _ = indices_of(labels, model.classes_)
    log_p = model.predict_log_proba(table.x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scaling = calibration.TemperatureScaling().fit(log_p, indices)
    for warning in caught:
        print(f"csoftmax calibrate: {warning.message}", file=sys.stderr)
    before, after = (metrics.expected_calibration_error(indices, p) for p in (np.exp(log_p), scaling.transform(log_p)))
    model.set_params(temperature=float(model.temperature) * scaling.temperature_)
    if names is not None:
        model.feature_names_in_ = names
    model.save(output)
    losses = [float(cross_entropy(log_p, indices, temperature=t)) for t in (1.0, scaling.temperature_)]
    print(
        f"temperature {model.temperature:.6g}; on these {len(labels)} rows ECE {before:.4f} -> {after:.4f}, log loss "
        f"{losses[0]:.6g} -> {losses[1]:.6g}"
    )
    print(f"model: {output}")
    return 0
