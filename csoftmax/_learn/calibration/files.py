"""Contents of a calibrator's file, beside those of all estimators.

Arrays: the fitted ones.  Header: "numbers" (fitted ones), "converged", "history".
"""

from __future__ import annotations

from os import PathLike
from typing import Any, TypeVar

import numpy as np

from ..._arguments.numbers import check_count, check_non_negative
from .. import store
from ..estimator_file import describe_estimator, restore_estimator
from ..store import Arrays, need

Estimator = TypeVar("Estimator")


Shapes = dict[str, tuple[str, ...]]


def save(calibrator: Any, path: str | PathLike[str], shapes: Shapes) -> None:
    """Write a fitted calibrator; shapes: of its fitted attributes."""
    arrays, header = describe_estimator(calibrator)
    header["numbers"] = {}
    for name, shape in shapes.items():
        value = getattr(calibrator, f"{name}_")
        if shape:
            arrays[name] = value
        else:
            header["numbers"][name] = float(value)
    header["converged"] = bool(calibrator.converged_)
    header["history"] = [{name: float(value) for name, value in entry.items()} for entry in calibrator.history_]
    store.write(path, type(calibrator).__name__, arrays, header)


def load(
    cls: type[Estimator], path: str | PathLike[str], shapes: Shapes, *, mmap: bool = False, verify: bool = True
) -> Estimator:
    """Read a fitted calibrator of class cls; shapes: of its fitted attributes."""
    arrays, header = store.read(path, cls.__name__, mmap=mmap, verify=verify)
    with store.reading(path):
        return _make(cls, shapes, arrays, header)


def _make(cls: type[Any], shapes: Shapes, arrays: Arrays, header: dict[str, Any]) -> Any:
    calibrator = restore_estimator(cls, arrays, header, check_parameters)
    classes = calibrator.classes_
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
    calibrator.history_, calibrator.converged_ = history, bool(header.get("converged"))
    calibrator.n_classes_ = len(classes)
    return calibrator


def check_parameters(calibrator: Any) -> None:
    """Refuse parameters that no fit could use."""
    for name, value in calibrator.get_params(deep=False).items():
        if name == "max_iter":
            check_count(name, value, 1)
        else:
            check_non_negative(name, value)
