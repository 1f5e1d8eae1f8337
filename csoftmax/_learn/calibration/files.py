"""Contents of a calibrator's file.

Arrays: the fitted ones, and the classes if they are numbers.  Header: "parameters", "numbers" (fitted ones), "classes"
if they are strings, "n_iter", "converged", "history", "feature_names".
"""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeVar

import numpy as np

from ..._arguments.numbers import check_count, check_non_negative
from .. import store
from ..model_file import describe_classes, from_json, read_classes, to_json
from ..store import Arrays, need

Estimator = TypeVar("Estimator")


Shapes = dict[str, tuple[str, ...]]


def save(calibrator: Any, path: str | PathLike[str], shapes: Shapes) -> None:
    """Write a fitted calibrator; shapes: of its fitted attributes."""
    arrays, header = describe_classes(calibrator.classes_)
    header["parameters"] = {name: to_json(value) for name, value in calibrator.get_params(deep=False).items()}
    header["numbers"] = {}
    for name, shape in shapes.items():
        value = getattr(calibrator, f"{name}_")
        if shape:
            arrays[name] = value
        else:
            header["numbers"][name] = float(value)
    header["n_iter"], header["converged"] = int(calibrator.n_iter_), bool(calibrator.converged_)
    header["history"] = [{name: float(value) for name, value in entry.items()} for entry in calibrator.history_]
    if hasattr(calibrator, "feature_names_in_"):
        header["feature_names"] = list(map(str, calibrator.feature_names_in_))
    store.write(path, type(calibrator).__name__, arrays, header)


def load(
    cls: type[Estimator], path: str | PathLike[str], shapes: Shapes, *, mmap: bool = False, verify: bool = True
) -> Estimator:
    """Read a fitted calibrator of class cls; shapes: of its fitted attributes."""
    arrays, header = store.read(path, cls.__name__, mmap=mmap, verify=verify)
    with store.reading(path):
        return _make(cls, shapes, arrays, header)


def _make(cls: type[Any], shapes: Shapes, arrays: Arrays, header: dict[str, Any]) -> Any:
    classes = read_classes(arrays, header)
    need(classes.ndim == 1 and len(classes) >= 1, f"classes have shape {classes.shape}")
    given = header.get("parameters")
    known = cls().get_params(deep=False)
    need(isinstance(given, dict) and set(given) <= set(known), "the parameters do not belong to this class")
    calibrator = cls(**{name: from_json(value) for name, value in header["parameters"].items()})
    check_parameters(calibrator)
    lengths: dict[str, int] = {"K": len(classes), "S": 1 if len(classes) == 2 else len(classes)}
    for name, shape in shapes.items():
        value: Any
        if shape:
            need(name in arrays, f"{name} is missing")
            value = arrays[name]
            need(value.dtype == np.float64 and np.isfinite(value).all(), f"{name} has dtype {value.dtype}, or NaN")
            if len(value.shape) == len(shape):
                for axis, n in zip(shape, value.shape):
                    lengths.setdefault(axis, n)
            expected = tuple(lengths.get(axis) for axis in shape)
            need(value.shape == expected, f"{name} has shape {value.shape}; there are {len(classes)} classes")
        else:
            value = float(header["numbers"][name])
            need(0 < value < np.inf, f"{name} is {value}")
        setattr(calibrator, f"{name}_", value)
    history = header.get("history")
    need(isinstance(history, list) and all(isinstance(entry, dict) for entry in history), "history is no list of dicts")
    need(isinstance(header.get("n_iter"), int), "n_iter is not a number")
    calibrator.history_, calibrator.n_iter_ = history, header["n_iter"]
    calibrator.converged_ = bool(header.get("converged"))
    calibrator.classes_, calibrator.n_classes_, calibrator.n_features_in_ = classes, len(classes), len(classes)
    if "feature_names" in header:
        need(len(header["feature_names"]) == len(classes), "the number of feature names is not the number of columns")
        calibrator.feature_names_in_ = np.array(header["feature_names"], object)
    return calibrator


def check_parameters(calibrator: Any) -> None:
    """Refuse parameters that no fit could use."""
    for name, value in calibrator.get_params(deep=False).items():
        if name == "max_iter":
            check_count(name, value, 1)
        else:
            check_non_negative(name, value)
