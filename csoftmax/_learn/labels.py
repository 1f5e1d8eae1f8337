"""Labels as class indices, how often each class occurs, and class weights from these counts or from a mapping."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.kinds import is_dask, refuse_kind
from .messages import show


def is_text(labels: NDArray[Any]) -> bool:
    """Whether labels are strings; the others are numbers, True and False among them."""
    return labels.dtype.kind in "UOST"


def indices_of(
    labels: NDArray[Any], classes: NDArray[Any], *, is_sorted: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index of each label in `classes`, and the rows whose label is not among them.

    Classes are distinct, in any order; is_sorted: known to be ascending, so that no time is spent on each of them.
    """
    if is_sorted:
        indices = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    else:
        order = np.argsort(classes, kind="stable")
        indices = order[np.minimum(np.searchsorted(classes, labels, sorter=order), len(order) - 1)]
    return indices, np.flatnonzero(classes[indices] != labels)


def check_indices(name: str, labels: ArrayLike, n_classes: int | None = None, hint: str = "") -> NDArray[np.int64]:
    """Labels that are class indices already, from 0 to ``n_classes - 1`` (None: at least 0), as int64.

    `hint` continues the message "must hold integers".
    """
    if isinstance(labels, np.ma.MaskedArray):
        raise TypeError(
            f"{name} is a masked array, whose mask would be lost: pass the labels that are not masked, as "
            f"{name}.compressed()"
        )
    if is_dask(labels):
        refuse_kind(name, labels)
    y = np.asarray(as_native(labels, name))
    if y.ndim != 1:
        raise ValueError(f"{name} must have one axis, got shape {y.shape}")
    if y.size and y.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers{hint}, got dtype {y.dtype}")
    if y.size == 0:
        return np.zeros(0, np.int64)
    bad = np.flatnonzero(y < 0 if n_classes is None else (y < 0) | (y >= n_classes))
    if len(bad):
        allowed = "at least 0" if n_classes is None else f"0 to {n_classes - 1}"
        raise ValueError(f"{name}[{bad[0]}] is {y[bad[0]]}; classes are {allowed}")
    return y.astype(np.int64)


def merge_classes(classes: NDArray[Any], given: ArrayLike) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Sorted classes with new ones among them, and the place of each of the old ones."""
    labels = np.atleast_1d(np.asarray(as_native(given, "classes")))
    if labels.ndim != 1:
        raise ValueError(f"classes must have one axis, got shape {labels.shape}")
    if len(labels) == 0:
        return classes, np.arange(len(classes))
    is_mixed = labels.dtype == object and not all(isinstance(label, str) for label in labels)
    if is_mixed or is_text(labels) != is_text(classes):
        raise ValueError(f"classes are {show(labels)}, of another kind than those of the model: {show(classes)}")
    new = np.unique(labels)
    known = np.intersect1d(new, classes)
    if len(known):
        raise ValueError(f"classes has {show(known[0])}, which the model already has")
    if classes.dtype.kind in "iu" and np.result_type(classes, new).kind not in "iu":
        with np.errstate(invalid="ignore"):
            integers = new.astype(classes.dtype)
        if not np.array_equal(new, integers) or (integers < 0).any() != (new < 0).any():
            raise ValueError(f"classes are {show(new)}, but those of the model are integers of dtype {classes.dtype}")
        new = integers
    merged = np.concatenate([classes, new])
    order = np.argsort(merged, kind="stable")
    places = np.empty(len(order), np.intp)
    places[order] = np.arange(len(order))
    return merged[order], places[: len(classes)]


def weigh_by_effective_number(counts: NDArray[np.float64], beta: float = 0.999) -> NDArray[np.float64]:
    """Class weights of `csoftmax.class_weight.effective_number`, from the (weighted) number of rows of each class."""
    occurs = counts > 0
    if beta == 1:
        number = counts
    else:
        log_beta = math.log1p(beta - 1) if beta > 0 else -math.inf
        number = -np.expm1(np.multiply(counts, log_beta, where=occurs, out=np.zeros(len(counts))))
    weights = np.divide(1, number, out=np.zeros(len(counts)), where=occurs)
    total = weights.sum()
    return weights * (len(counts) / total) if total > 0 else weights


def weigh_by_mapping(given: Mapping[Any, Any], classes: NDArray[Any]) -> NDArray[np.float64]:
    """The weight of each class from a mapping; 1 for a class that is not in it.

    Labels are compared as Python compares them: 1, 1.0 and numpy.int64(1) are one label, 1 and "1" are two.
    scikit-learn's `compute_class_weight` would look the class "1" up as the number 1.
    """
    labels = classes.tolist()
    known = {*labels}
    foreign = [key for key in given if key not in known]
    missing = [label for label in labels if label not in given]
    if foreign and missing:
        raise ValueError(
            f"class_weight has the key {show(foreign[0])}, which is not among the classes {show(classes)}; labels are "
            "compared exactly: 1 and '1' are different ones"
        )
    weights = [given.get(label, 1.0) for label in labels]
    for label, weight in zip(labels, weights):
        if not isinstance(weight, numbers.Real):
            raise TypeError(f"class_weight must hold numbers, got {show(weight)} for the class {show(label)}")
    return np.array(weights, np.float64)
