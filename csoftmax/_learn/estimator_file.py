"""Entries that the files of all estimators have: "parameters", the classes, "n_iter" and "feature_names"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .store import Arrays, need


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


def describe_estimator(model: Any, **replaced: Any) -> tuple[Arrays, dict[str, Any]]:
    """Arrays and entries of the header that a fitted estimator has in common with others; replaced: parameters."""
    arrays, header = describe_classes(model.classes_)
    parameters = model.get_params(deep=False) | replaced
    header["parameters"] = {name: to_json(value) for name, value in parameters.items()}
    header["n_iter"] = int(model.n_iter_)
    if hasattr(model, "feature_names_in_"):
        header["feature_names"] = list(map(str, model.feature_names_in_))
    return arrays, header


def restore_estimator(
    cls: type[Any],
    arrays: Arrays,
    header: dict[str, Any],
    check: Callable[[Any], None],
    *,
    n_features: int | None = None,
) -> Any:
    """Invert `describe_estimator`, in the context of `store.reading`.

    check(estimator) refuses parameters.  n_features: by default the number of classes.
    """
    classes = read_classes(arrays, header)
    need(classes.ndim == 1 and len(classes) >= 1, f"classes have shape {classes.shape}")
    n_features = len(classes) if n_features is None else n_features
    given = header.get("parameters")
    known = cls().get_params(deep=False)
    need(isinstance(given, dict) and set(given) <= set(known), "the parameters do not belong to this class")
    model = cls(**{name: from_json(value) for name, value in header["parameters"].items()})
    check(model)
    need(isinstance(header.get("n_iter"), int), "n_iter is not a number")
    model.classes_, model.n_iter_, model.n_features_in_ = classes, header["n_iter"], n_features
    if "feature_names" in header:
        need(len(header["feature_names"]) == n_features, "the number of feature names is not the number of columns")
        model.feature_names_in_ = np.array(header["feature_names"], object)
    return model
