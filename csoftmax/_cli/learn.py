"""``python -m csoftmax fit|predict|evaluate|calibrate``: softmax regression for people who have a file.

The model's file is that of `SoftmaxRegression.save`; `calibrate` writes a temperature into it.
"""

import copy
import csv
import json
import sys
import warnings
from pathlib import Path

import numpy as np

from . import tables
from .optional import UnusableError, load


def _modules():
    for name in ("scipy", "sklearn"):
        load(name, "learn")
    from .. import calibration, linear_model, metrics

    return linear_model, calibration, metrics


def _place(path):
    if not Path(path).resolve().parent.is_dir():
        raise UnusableError(f"cannot write {str(path)!r}: there is no folder {str(Path(path).resolve().parent)!r}")


def _model(path):
    linear_model, _, _ = _modules()
    try:
        return linear_model.SoftmaxRegression.load(path)
    except (OSError, ValueError, ImportError) as error:
        raise UnusableError(str(error)) from error


def _table(path, model, target, needs_target=True):
    """A table with the columns of the model, in its order: its names, which have done their work, are taken off."""
    wanted = model.__dict__.pop("feature_names_in_", None)
    table = tables.read(path, target, needs_target=needs_target, wanted=None if wanted is None else list(wanted))
    if table.x.shape[1] != model.n_features_in_:
        raise UnusableError(f"{path} has {table.x.shape[1]} columns, the model was trained with {model.n_features_in_}")
    return table


def _labels(path, table, model):
    labels = table.target
    if labels.dtype.kind != model.classes_.dtype.kind:  # labels of one kind may look like another: 1, "1", 1.0
        known = {str(c): c for c in model.classes_.tolist()}
        known |= {str(float(c)): c for c in model.classes_.tolist() if not isinstance(c, str)}
        labels = np.array([known.get(t, t) for t in labels.astype(str).tolist()], object)
    classes = set(model.classes_.tolist())
    unknown = [i for i, label in enumerate(labels.tolist()) if label not in classes]
    if len(unknown):
        raise UnusableError(f"{path}, row {unknown[0] + 1}: the model has not seen {str(labels[unknown[0]])!r}")
    return labels.astype(model.classes_.dtype)


def _in_columns(model, names, mean, std):
    """The model for columns as they are, with their names, from one of standardised columns."""
    model = copy.copy(model)
    coef = model.coef_ / std
    model.coef_ = coef.astype(model.coef_.dtype)
    model.intercept_ = (model.intercept_ - coef @ mean).astype(model.intercept_.dtype)
    model.feature_names_in_ = np.array(names, object)
    return model


def fit(options):
    """Train, save after each epoch that is asked for, and at the end."""
    linear_model, _, _ = _modules()
    _place(options.output)
    table = tables.read(options.data, options.target)
    load("sklearn", "learn")
    labels, counts = np.unique(table.target, return_counts=True)
    if len(labels) < 2:
        raise UnusableError(
            f"{options.data}: {options.target!r} has one class, {labels[0]!r}; there is nothing to learn"
        )
    mean, std = np.zeros(table.x.shape[1]), np.ones(table.x.shape[1])
    if options.standardize:
        mean, std = table.x.mean(axis=0, dtype=np.float64), table.x.std(axis=0, dtype=np.float64)
        noise = len(table.x) * np.finfo(np.float64).eps * np.abs(table.x).max(axis=0)
        std = np.where(std > noise, std, 1)  # a constant column stays as it is

    def save(model):
        _in_columns(model, table.names, mean, std).save(options.output)

    callbacks = ["progress"]
    if options.save_every:
        callbacks.append(lambda model, record: save(model) if record["epoch"] % options.save_every == 0 else None)
    model = linear_model.SoftmaxRegression(
        solver=options.solver,
        penalty_l2=options.penalty_l2,
        class_weight=options.class_weight,
        label_smoothing=options.label_smoothing,
        max_epochs=options.max_epochs,
        early_stopping=options.early_stopping,
        learning_rate=options.learning_rate,
        batch_norm=options.batch_norm,
        random_state=options.seed,
        callbacks=callbacks,
    )
    x = (table.x - mean) / std if options.standardize else table.x
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(x.astype(table.x.dtype, copy=False), table.target)
        except ValueError as error:
            raise UnusableError(str(error)) from error
    for warning in caught:
        print(f"csoftmax fit: {warning.message}", file=sys.stderr)
    try:
        save(model)
    except OSError as error:
        raise UnusableError(f"cannot write {str(options.output)!r}: {error}") from error
    accuracy = model.score(x, table.target)
    sizes = f"{counts.min()} to {counts.max()} rows"
    print(f"{len(table.x)} rows, {table.x.shape[1]} columns, {len(labels)} classes ({sizes})")
    print(f"{model.n_iter_} epochs, loss {model.history_['loss'][-1]:.6g}, accuracy {accuracy:.4f}")
    print(f"model: {options.output}")
    return 0


def predict(options):
    """Labels and probabilities as CSV."""
    model = _model(options.model)
    if options.output:
        _place(options.output)
    if options.top is not None and not 1 <= options.top <= len(model.classes_):
        raise UnusableError(f"--top must be 1 to {len(model.classes_)}, the number of classes, got {options.top}")
    table = _table(options.data, model, options.target, needs_target=False)
    from .._learn.store import write_whole
    from .. import topk

    best = topk(model.predict_proba(table.x), options.top or 1)

    def write(out):
        writer = csv.writer(out, lineterminator="\n")
        k = best.values.shape[1]
        writer.writerow([name + (f"_{i + 1}" if k > 1 else "") for i in range(k) for name in ("label", "probability")])
        for values, indices in zip(best.values.tolist(), model.classes_[best.indices].tolist()):
            writer.writerow([cell for p, label in zip(values, indices) for cell in (label, f"{p:.9g}")])

    if options.output:
        import io

        text = io.StringIO()
        write(text)
        write_whole(options.output, lambda file: file.write(text.getvalue().encode()))
    else:
        write(sys.stdout)
    return 0


def evaluate(options):
    """The report, as text or JSON, and as a page."""
    model = _model(options.model)
    _, _, metrics = _modules()
    if options.html:
        _place(options.html)
        load("matplotlib", "learn")
    table = _table(options.data, model, options.target)
    report = metrics.evaluate(model, table.x, _labels(options.data, table, model))
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    if options.html:
        report.to_html(options.html)
        print(f"page: {options.html}", file=sys.stderr)
    return 0


def calibrate(options):
    """A temperature from held-out data, kept in the model."""
    model = _model(options.model)
    _, calibration, metrics = _modules()
    output = options.output or options.model
    _place(output)
    names = getattr(model, "feature_names_in_", None)
    table = _table(options.data, model, options.target)
    labels = _labels(options.data, table, model)
    from .._learn.labels import indices_of

    indices, _ = indices_of(labels, model.classes_)
    log_p = model.predict_log_proba(table.x)
    scaling = calibration.TemperatureScaling().fit(log_p, indices)
    before, after = (metrics.expected_calibration_error(indices, p) for p in (np.exp(log_p), scaling.transform(log_p)))
    model.set_params(temperature=float(model.temperature) * scaling.temperature_)
    if names is not None:
        model.feature_names_in_ = names
    model.save(output)
    print(
        f"temperature {model.temperature:.6g}; on these {len(labels)} rows ECE {before:.4f} -> {after:.4f}, log loss "
        f"{scaling.history_[0]['loss']:.6g} -> {scaling.history_[-1]['loss']:.6g}"
    )
    print(f"model: {output}")
    return 0


def run(options):
    return {"fit": fit, "predict": predict, "evaluate": evaluate, "calibrate": calibrate}[options.command](options)
