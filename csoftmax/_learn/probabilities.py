"""Checks of the labels, probabilities and weights that metrics receive."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.places import as_array
from .labels import indices_of
from .messages import show

ROUNDING = 1e-5  # of float32 probabilities, and of their sums with any number of classes
HALF_ROUNDINGS = 4  # float16 and bfloat16: this many times their eps instead
LEAST_PROBABILITY = 1e-12  # in place of an exact 0 where logarithms are taken, as in scikit-learn


def read_array(name: str, x: Any) -> NDArray[Any]:
    """A base-class array on the CPU; refuses masked arrays, matrices, sparse arrays and None."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; pass the values of the rows that are not masked, as {name}.data")
    if isinstance(x, np.matrix):
        raise TypeError(f"{name} is a numpy.matrix; pass numpy.asarray({name})")
    if x is None:
        raise TypeError(f"{name} must be an array, got None")
    if hasattr(x, "toarray") and hasattr(x, "nnz"):
        raise TypeError(f"{name} is sparse; pass {name}.toarray()")
    array: NDArray[Any] = as_array(name, as_native(x, name))
    return array


def read_numbers(name: str, x: Any, what: str) -> NDArray[Any]:
    """An array of real numbers, of at most 8 bytes each; pandas' nullable columns become float64."""
    array = read_array(name, x)
    if array.dtype.kind == "O" and hasattr(x, "to_numpy"):
        with contextlib.suppress(TypeError, ValueError):
            array = read_array(name, x.to_numpy(np.float64))
    if (array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16") or array.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold {what}, got dtype {array.dtype}")
    return array


def find_labels(y: NDArray[Any], labels: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Index of each element of y in `labels` (distinct, in any order), and the rows whose label is not among them."""
    numbers = "biuf"
    if (y.dtype.kind in numbers and labels.dtype.kind in numbers) or y.dtype.kind == labels.dtype.kind == "U":
        return indices_of(y, labels)
    known = {label: i for i, label in enumerate(labels.tolist())}
    indices = np.array([known.get(label, -1) for label in y.tolist()], np.intp)
    return indices, np.flatnonzero(indices < 0)


def check_probabilities(y_prob: ArrayLike, rows: int, name: str = "y_prob") -> NDArray[np.float64]:
    """Probabilities of shape (N, K) in float64, clipped to [0, 1] where rounding has left it."""
    given = read_numbers(name, y_prob, "probabilities")
    half = given.dtype.name in ("float16", "bfloat16")
    p = given.astype(np.float64)
    one_column = p.ndim == 1  # the probabilities of the second of two classes
    if one_column:
        p = np.column_stack([1 - p, p])
    if p.ndim != 2 or len(p) != rows:
        raise ValueError(f"{name} must have shape ({rows}, K), got {given.shape}")
    if rows == 0 or p.shape[1] == 0:
        raise ValueError(f"{name} is empty: shape {given.shape}")
    tolerance = ROUNDING
    if half:
        bits = 10 if given.dtype.name == "float16" else 7
        tolerance = HALF_ROUNDINGS * 2.0**-bits
    if not (p.min() >= 0 and p.max() <= 1):  # also if there is a NaN
        wrong = np.argwhere(~((p >= -tolerance) & (p <= 1 + tolerance)))
        if len(wrong):
            i, j = wrong[0].tolist()
            where, value = (f"{i}", given[i]) if one_column else (f"{i}, {j}", p[i, j])
            raise ValueError(f"{name}[{where}] is {float(value)!r}; probabilities are in [0, 1]")
        np.clip(p, 0, 1, out=p)
    if not one_column:
        sums = p.sum(axis=1)
        bad = np.flatnonzero(~(np.abs(sums - 1) <= tolerance))
        if len(bad):
            raise ValueError(
                f"{name}[{bad[0]}] sums to {sums[bad[0]]:.9g}; each row must sum to 1 (to within {tolerance:.2g}): "
                "pass probabilities, not logits or scores"
            )
    return p


def _simplify(y: NDArray[Any]) -> NDArray[Any]:
    """Labels without the dtype object, if they are all numbers or all strings."""
    if y.dtype.kind != "O":
        return y
    kinds = {type(label) for label in y.tolist()}
    if kinds <= {int, bool} or kinds <= {float, int} or kinds == {str}:
        return np.array(y.tolist())
    return y


def check_true_labels(
    y: NDArray[Any], labels: ArrayLike | None, k: int, *, rows: NDArray[np.intp] | None = None, one_column: bool = False
) -> NDArray[np.intp]:
    """Column of y_prob that each label belongs to.

    rows: their numbers, for messages.  one_column: y_prob has the second of two columns only.
    """

    def place(bad: NDArray[np.intp]) -> int:
        return int(bad[0] if rows is None else rows[bad[0]])

    if labels is not None:
        given = read_array("labels", labels)
        if given.shape != (k,) or len(set(given.tolist())) != k:
            raise ValueError(
                f"labels must be {k} different labels, one for each column of y_prob, got {given.tolist()!r}"
            )
        indices, bad = find_labels(y, given)
        if len(bad):
            raise ValueError(f"y_true[{place(bad)}] is {show(y[bad[0]])}, which is not in labels")
        return indices
    y = _simplify(y)
    if y.dtype.kind == "b":
        if k != 2:
            raise ValueError(f"y_true holds bools, the labels of two classes, but y_prob has {k} columns")
        return y.astype(np.intp)
    if y.dtype.kind not in "iuf":
        if y.dtype.kind == "U" and not one_column:
            return _sort_labels(y, k)
        raise TypeError(f"y_true must hold integers, or labels must be given, got dtype {y.dtype}")
    if y.dtype.kind == "f":
        bad = np.flatnonzero(~(np.isfinite(y) & (y == np.round(y))))
        if len(bad):
            raise ValueError(
                f"y_true[{place(bad)}] is {show(y[bad[0]])}; classes are whole numbers, 0 to {k - 1}, or labels must "
                "be given. The labels come first, then the probabilities"
            )
    bad = np.flatnonzero((y < 0) | (y >= k))
    if len(bad) and (one_column or len(np.unique(y)) != k):
        raise ValueError(
            f"y_true[{place(bad)}] is {show(y[bad[0]])}; classes are 0 to {k - 1}, or {k} different labels, "
            "sorted as the columns are, or labels must be given"
        )
    return _sort_labels(y, k) if len(bad) else y.astype(np.intp)


def _sort_labels(y: NDArray[Any], k: int) -> NDArray[np.intp]:
    """Columns of K distinct labels in sorted order, as scikit-learn has them."""
    distinct, indices = np.unique(y, return_inverse=True)
    if len(distinct) != k:
        raise ValueError(
            f"y_true has {len(distinct)} different labels, but y_prob has {k} columns: labels must be given, one for "
            "each column, such as the classes_ of the estimator"
        )
    return indices.astype(np.intp)


def check_weights(sample_weight: ArrayLike | None, rows: int) -> NDArray[np.float64]:
    """Weights of the rows, 1 by default."""
    if sample_weight is None:
        return np.ones(rows)
    w = read_numbers("sample_weight", sample_weight, "numbers").astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(w) & (w >= 0)))
    if w.shape != (rows,):
        found = f"shape {w.shape}"
    elif len(bad):
        found = f"{show(w[bad[0]])} in row {bad[0]}"
    elif not w.any():
        found = "only 0"
    else:
        return w
    raise ValueError(
        f"sample_weight must have one number for each of the {rows} rows, finite, at least 0 and not all of them 0, "
        f"got {found}"
    )


def check(
    y_true: ArrayLike, y_prob: ArrayLike, labels: ArrayLike | None, sample_weight: ArrayLike | None
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Columns of the labels, probabilities (N, K), weights; rows of weight 0 are left out."""
    y = read_array("y_true", y_true)
    if y.ndim != 1:
        shapes = f"y_true has shape {y.shape}, y_prob {np.shape(y_prob)}"
        if np.ndim(y_prob) == 1 and y.ndim == 2:
            raise ValueError(f"{shapes}: the labels come first, then the probabilities")
        raise ValueError(f"y_true must have one axis, got shape {y.shape}")
    p = check_probabilities(y_prob, len(y))
    indices = check_true_labels(y, labels, p.shape[1], one_column=np.ndim(y_prob) == 1)
    w = check_weights(sample_weight, len(y))
    kept = w > 0
    return (indices, p, w) if kept.all() else (indices[kept], p[kept], w[kept])


def take_top_labels(
    y_true: ArrayLike, y_prob: ArrayLike, labels: ArrayLike | None, sample_weight: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """The largest probability of each row, whether its column, the first that has it, is the label, and the weight."""
    y, p, w = check(y_true, y_prob, labels, sample_weight)
    predicted = p.argmax(axis=1)
    return p[np.arange(len(p)), predicted], predicted == y, w


def predict_logarithms(model: Any, X: Any) -> NDArray[np.float64]:
    """Logarithms of a fitted classifier's probabilities, as the logits of a calibrator.

    A probability of exactly 0, as from trees and nearest neighbours, becomes 1e-12, because no calibration could raise
    it; it never exceeds another probability of its row.
    """
    with np.errstate(divide="ignore"):
        if hasattr(model, "predict_log_proba"):
            z = np.asarray(as_native(model.predict_log_proba(X), "predict_log_proba(X)"), np.float64)
        else:
            p = np.asarray(as_native(model.predict_proba(X), "predict_proba(X)"), np.float64)
            z = np.log(np.maximum(p, 0))  # rounding may have left [0, 1]
    zero = np.isneginf(z)
    if zero.any():
        lowest = np.where(zero, np.inf, z).min(axis=1, keepdims=True)
        z = np.where(zero, np.minimum(lowest, np.log(LEAST_PROBABILITY)), z)
    return z
