"""Labels as class indices, how often each class occurs, and class weights from these counts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native


def indices_of(labels: NDArray[Any], classes: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index of each label in `classes` (distinct, in any order), and the rows whose label is not among them."""
    order = np.argsort(classes, kind="stable")
    indices = order[np.minimum(np.searchsorted(classes, labels, sorter=order), len(order) - 1)]
    return indices, np.flatnonzero(classes[indices] != labels)


def check_indices(name: str, labels: ArrayLike, n_classes: int | None = None, hint: str = "") -> NDArray[np.int64]:
    """Labels that are class indices already, from 0 to ``n_classes - 1`` (None: at least 0), as int64.

    `hint` continues the message "must hold integers".
    """
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


def weigh_by_effective_number(counts: NDArray[np.float64], beta: float = 0.999) -> NDArray[np.float64]:
    """Class weights of `csoftmax.class_weight.effective_number`, from the number of rows of each class."""
    occurs = counts > 0
    if beta == 1:
        number = counts
    else:
        log_beta = math.log1p(beta - 1) if beta > 0 else -math.inf
        number = -np.expm1(np.multiply(counts, log_beta, where=occurs, out=np.zeros(len(counts))))
    weights = np.divide(1, number, out=np.zeros(len(counts)), where=occurs)
    total = weights.sum()
    return weights * (len(counts) / total) if total > 0 else weights
