"""Contents of a file of `csoftmax.linear_model.SoftmaxRegression`.

Arrays: coef, intercept, and the classes if they are numbers.  Header: "parameters", "classes" if they are strings,
"n_iter", "history", "penalty_l2_used", "feature_names", "frozen", "table" (of the command line: what was done to the
columns of a table).
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import store
from .parameters import check_parameters
from .store import Arrays, need

Estimator = TypeVar("Estimator")


def to_json(value: Any) -> Any:
    """Turn the value of a parameter into what JSON can hold: a mapping into pairs, because its keys may be numbers."""
    if hasattr(value, "iloc"):  # a Series of pandas
        value = value.to_dict()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {"__pairs__": [[to_json(k), to_json(v)] for k, v in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    raise TypeError(f"{value!r} cannot be saved")


def from_json(value: Any) -> Any:
    """Invert `to_json`."""
    if isinstance(value, dict) and set(value) == {"__pairs__"}:
        return dict(value["__pairs__"])
    return value


def describe_classes(classes: NDArray[Any]) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and entries of the header for the labels of classes: numbers, bools or strings."""
    if classes.dtype.kind in "biuf":
        is_bool = classes.dtype == bool
        return {"classes": classes.astype(np.uint8) if is_bool else classes}, {"bool_classes": is_bool}
    if any(not isinstance(c, str) for c in classes.tolist()):
        raise TypeError(f"classes_ must be numbers or strings to be saved, got {classes!r}")
    return {}, {"classes": [str(c) for c in classes], "object_classes": classes.dtype == object}


def read_classes(arrays: Arrays, header: dict[str, Any]) -> NDArray[Any]:
    """Invert `describe_classes`, in the context of `store.reading`."""
    names = header.get("classes")
    if names is None:
        need("classes" in arrays, "classes are missing")
        return arrays["classes"].astype(bool) if header.get("bool_classes") else arrays["classes"]
    need(isinstance(names, list) and all(isinstance(n, str) for n in names), "classes are not strings")
    return np.array(names, object if header.get("object_classes") else None)


def save(model: Any, path: str | PathLike[str]) -> None:
    """Write a fitted estimator."""
    parameters = model.get_params(deep=False)
    parameters["callbacks"] = None
    if not isinstance(parameters["random_state"], int | np.integer):
        parameters["random_state"] = None
    arrays, header = describe_classes(model.classes_)
    arrays |= {"coef": model.coef_, "intercept": model.intercept_}
    header["parameters"] = {name: to_json(value) for name, value in parameters.items()}
    header["n_iter"] = int(model.n_iter_)
    if hasattr(model, "penalty_l2_"):
        header["penalty_l2_used"] = float(model.penalty_l2_)
    header["history"] = {name: list(map(float, values)) for name, values in model.history_.items()}
    if hasattr(model, "feature_names_in_"):
        header["feature_names"] = list(map(str, model.feature_names_in_))
    if hasattr(model, "frozen_"):
        header["frozen"] = model.frozen_.tolist()
    if hasattr(model, "table_"):
        header["table"] = model.table_
    store.write(path, type(model).__name__, arrays, header)


def load(cls: type[Estimator], path: str | PathLike[str], *, mmap: bool = False, verify: bool = True) -> Estimator:
    """Read a fitted estimator of class cls."""
    arrays, header = store.read(path, cls.__name__, mmap=mmap, verify=verify)
    with store.reading(path):
        return _make(cls, arrays, header)


def _make(cls: type[Any], arrays: Arrays, header: dict[str, Any]) -> Any:
    need("coef" in arrays and "intercept" in arrays, "coef or intercept is missing")
    coef, intercept = arrays["coef"], arrays["intercept"]
    need(coef.ndim == 2 and coef.dtype in (np.float32, np.float64), f"coef has shape {coef.shape}, dtype {coef.dtype}")
    need(
        intercept.shape == coef.shape[:1] and intercept.dtype == coef.dtype,
        f"intercept has shape {intercept.shape}, dtype {intercept.dtype}; coef {coef.shape}, {coef.dtype}",
    )
    classes = read_classes(arrays, header)
    need(classes.shape == coef.shape[:1], f"classes have shape {classes.shape}, coef {coef.shape}")
    given = header.get("parameters")
    known = cls().get_params(deep=False)
    need(isinstance(given, dict) and set(given) <= set(known), "the parameters do not belong to this class")
    model = cls(**{name: from_json(value) for name, value in header["parameters"].items()})
    check_parameters(model)
    history = header.get("history")
    need(
        isinstance(history, dict) and all(isinstance(v, list) for v in history.values()),
        "history is not a dict of lists",
    )
    need(isinstance(header.get("n_iter"), int), "n_iter is not a number")
    model.coef_, model.intercept_, model.classes_ = coef, intercept, classes
    model.history_, model.n_iter_, model.n_features_in_ = history, header["n_iter"], coef.shape[1]
    if "penalty_l2_used" in header:
        need(isinstance(header["penalty_l2_used"], int | float), "penalty_l2_used is not a number")
        model.penalty_l2_ = float(header["penalty_l2_used"])
    if "feature_names" in header:
        need(len(header["feature_names"]) == coef.shape[1], "the number of feature names is not the number of columns")
        model.feature_names_in_ = np.array(header["feature_names"], object)
    if "frozen" in header:
        need(len(header["frozen"]) == len(coef), "the length of frozen differs from the number of classes")
        model.frozen_ = np.array(header["frozen"], bool)
    if "table" in header:
        model.table_ = header["table"]
    return model
