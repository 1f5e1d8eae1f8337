"""Checks of the parameters and data of `csoftmax.linear_model.SoftmaxRegression`, and values derived from them.

Each function reads the parameters of the estimator that it is given, and changes none of them.
"""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_sample_weight, validate_data

from .._arguments.foreign import as_native
from .._arguments.places import Place, place_of
from .labels import indices_of, weigh_by_effective_number
from .objective import Options, is_sparse

SOLVERS = ("lbfgs", "adamw")
AUTO = "auto"  # penalty_l2 that is chosen from the data
INITS = ("xavier", "zeros")
CLASS_WEIGHTS = ("balanced", "effective_number")
ADAMW_ONLY = {"batch_norm": False, "clip_norm": None, "clip_value": None, "output_learning_rate": None}

Rows = tuple[Any, NDArray[np.intp], NDArray[np.float64] | None]
"""X, class indices and sample weights."""


def check_parameters(estimator: Any) -> None:
    """Refuse parameters that no fit could use."""
    for name, allowed in (("solver", SOLVERS), ("init", INITS)):
        value = getattr(estimator, name)
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    _check_penalty(estimator)
    _check_number(estimator, "label_smoothing", 0, 1)
    for name in ("batch_size", "max_epochs", "patience"):
        _check_number(estimator, name, 1, math.inf, whole=True)
    _check_number(estimator, "validation_fraction", 0, 1, open_low=True, open_high=True)
    for name in ("temperature", "learning_rate"):
        _check_number(estimator, name, 0, math.inf, open_low=True, open_high=True)
    for name in ("clip_norm", "clip_value", "tol", "output_learning_rate"):
        _check_number(estimator, name, 0, math.inf, open_low=True, open_high=True, optional=True)
    if estimator.solver == "lbfgs":
        for name, unset in ADAMW_ONLY.items():
            value = getattr(estimator, name)
            if value is not unset and value != unset:
                raise ValueError(f"{name} needs solver='adamw'")


def _check_penalty(estimator: Any) -> None:
    """Refuse a penalty that is no number, not None and not "auto"."""
    value = estimator.penalty_l2
    if isinstance(value, str):
        if value != AUTO:
            raise ValueError(f"penalty_l2 must be a number, None or {AUTO!r}, got {value!r}")
        if estimator.solver != "lbfgs":
            raise ValueError(f"penalty_l2={AUTO!r} needs solver='lbfgs', got solver={estimator.solver!r}")
    else:
        _check_number(estimator, "penalty_l2", 0, math.inf, open_high=True, optional=True)


def _check_number(
    estimator: Any,
    name: str,
    low: float,
    high: float,
    *,
    open_low: bool = False,
    open_high: bool = False,
    optional: bool = False,
    whole: bool = False,
) -> None:
    """Refuse a parameter that is not a number from low to high."""
    value: Any = getattr(estimator, name)
    if optional and value is None:
        return
    is_number = isinstance(value, numbers.Integral if whole else numbers.Real)
    if not is_number or isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be {'an int' if whole else 'a number'}{' or None' * optional}, got {value!r}")
    if not (low < value if open_low else low <= value) or not (value < high if open_high else value <= high):
        left, right = "(["[not open_low], ")]"[not open_high]
        raise ValueError(f"{name} must be in {left}{low}, {high}{right}, got {value!r}")


def check_data(estimator: Any, *data: Any, reset: bool = False) -> Any:
    """X, or (X, y), in the dtypes and layouts that training and predictions need.

    reset: record the number and names of the features instead of comparing them.
    """
    data = tuple(as_native(a, name) for name, a in zip(("X", "y"), data))
    return validate_data(estimator, *data, reset=reset, accept_sparse="csr", dtype=[np.float64, np.float32])


def check_sample_weight(sample_weight: ArrayLike | None, X: Any) -> NDArray[np.float64] | None:
    """Weights of the rows in float64, or None."""
    if sample_weight is None:
        return None
    return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)


def check_known_labels(y: ArrayLike, classes: NDArray[Any]) -> NDArray[np.intp]:
    """Indices of the labels in `classes`."""
    labels = np.asarray(y)
    indices, unknown = indices_of(labels, classes)
    if len(unknown):
        raise ValueError(
            f"y has the label {labels[unknown[0]]!r}, which is not among the classes: {classes!r}"
            " (add_classes appends to them)"
        )
    return indices


def check_same_classes(given: ArrayLike, classes: NDArray[Any]) -> None:
    """Refuse classes that differ from those of earlier training."""
    if not np.array_equal(np.unique(given), np.sort(classes)):
        raise ValueError(f"classes are {np.unique(given)!r}, but were {classes!r} in the first call")


def choose_place(estimator: Any, X: Any) -> Place:
    """The device that trains; sparse X stays on the CPU."""
    place = place_of(estimator.device, None)
    if place.number is not None and is_sparse(X):
        raise TypeError(
            f"X is sparse, which device={estimator.device!r} does not support; pass a dense array, or device=None"
        )
    return place


def choose_loss_options(
    estimator: Any, dtype: np.dtype[Any], y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None
) -> Options:
    """Options of the cross-entropy of rows with class indices y, with class weights of the given dtype."""
    weight = _choose_class_weights(estimator, y, sample_weight)
    if weight is not None:
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise ValueError(f"class_weight must be at least 0 and finite, got {estimator.class_weight!r}")
        if not weight[np.unique(y)].any():
            raise ValueError("class_weight is 0 for every class in the data: there is nothing to learn from")
        weight = weight.astype(dtype)
    return Options(weight, float(estimator.label_smoothing), float(estimator.temperature))


def _choose_class_weights(
    estimator: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None
) -> NDArray[Any] | None:
    """One weight for each class, or None."""
    given, classes = estimator.class_weight, estimator.classes_
    if given is None:
        return None
    if isinstance(given, dict):
        return compute_class_weight(given, classes=classes, y=classes[y])
    if not isinstance(given, str):
        weight = np.asarray(given, np.float64)
        if weight.shape != (len(classes),):
            raise ValueError(f"class_weight has shape {weight.shape}, but there are {len(classes)} classes")
        return weight
    if given == "effective_number":
        return weigh_by_effective_number(np.bincount(y, minlength=len(classes)).astype(np.float64))
    if given == "balanced":
        # scikit-learn's compute_class_weight accepts sample_weight only since 1.7
        counts = np.bincount(y, sample_weight, len(classes)).astype(np.float64)
        occurring = len(np.unique(y))
        return np.divide(counts.sum(), occurring * counts, out=np.zeros(len(classes)), where=counts > 0)
    raise ValueError(
        f"class_weight must be None, a dict, an array or one of {', '.join(map(repr, CLASS_WEIGHTS))}, got {given!r}"
    )


def hold_out(
    estimator: Any, X: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None
) -> tuple[Rows, Rows]:
    """Rows for training and rows for early stopping, each in the order of X; stratified if there are enough rows."""
    from sklearn.model_selection import train_test_split

    if len(y) < 2:
        raise ValueError(f"early_stopping needs at least 2 rows, got {len(y)}")
    rows = np.arange(len(y))
    size = max(1, min(len(y) - 1, round(estimator.validation_fraction * len(y))))
    counts = np.bincount(y)
    counts = counts[counts > 0]
    stratify = y if counts.min() > 1 and size >= len(counts) and len(y) - size >= len(counts) else None
    train, held_out = train_test_split(
        rows, test_size=size, stratify=stratify, random_state=check_random_state(estimator.random_state)
    )

    def take(part: NDArray[np.intp]) -> Rows:
        part.sort()
        return X[part], y[part], None if sample_weight is None else sample_weight[part]

    return take(train), take(held_out)
