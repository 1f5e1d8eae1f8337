"""The rows that a calibrator learns from: logits, labels, weights and classes, checked and in normal form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import assert_all_finite, check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from ..._ops.cross_entropy import cross_entropy
from ..._ops.softmax import softmax
from ..labels import indices_of
from ..messages import show
from ..parameters import as_plain, check_sample_weight

LARGEST = 1e300  # logits that fitted factors leave finite
LARGEST_LEARNED = 1e100  # logits, and sum of the weights, in a fit: sums of weighted squares are finite

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Held-out rows without those of weight 0."""

    z: Array  # logits, (N, K); -inf is possible except at the label
    labels: NDArray[np.int64]  # the column of each row's label
    weights: Array | None  # None: all 1
    classes: NDArray[Any]  # the label of each column
    one_axis: bool  # the logits were a decision function of two classes

    @property
    def total(self) -> float:
        """Sum of the weights."""
        return float(len(self.z) if self.weights is None else self.weights.sum())

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.z)

    @property
    def columns(self) -> int:
        """Number of classes."""
        return int(self.z.shape[1])

    @property
    def is_weighted(self) -> bool:
        """Whether rows have weights."""
        return self.weights is not None

    def is_separable(self) -> bool:
        """Whether every row is classified correctly: no logit is above its label's, and some are below.

        Then the likelihood rises forever as the temperature falls, or as the logits are multiplied.
        """
        return self.columns > 1 and all(self.compare())

    def compare(self) -> tuple[bool, bool]:
        """Whether no logit is above its label's, and whether some that are possible are below."""
        gaps = self.z[np.arange(len(self.z)), self.labels, None] - self.z
        return bool((gaps >= 0).all()), bool(((gaps > 0) & (gaps < np.inf)).any())

    def open_temperature(self) -> Callable[[float], tuple[float, float, float, float]]:
        """A function of beta = 1/T: means of loss, of derivative, of the size of its terms, and of curvature."""
        z, mean = self.z, self.mean
        finite = np.where(np.isneginf(z), 0, z)
        above_label = finite - z[np.arange(len(z)), self.labels, None]

        def measure(beta: float) -> tuple[float, float, float, float]:
            p = softmax(z, temperature=1 / beta)
            expected = np.einsum("ij,ij->i", p, finite)
            variance = np.einsum("ij,ij->i", p, np.square(finite - expected[:, None]))
            # The mean of differences to the label's logit: nothing cancels where a row is nearly certain.
            slope = mean(np.einsum("ij,ij->i", p, above_label))
            size = mean(np.einsum("ij,ij->i", p, np.abs(above_label)))
            curvature = mean(variance)
            loss = float(cross_entropy(z, self.labels, temperature=1 / beta, sample_weight=self.weights))
            return loss, slope, size, curvature

        return measure

    def mean(self, values: Array) -> float:
        """Weighted mean of one value for each row."""
        if self.weights is None:
            return float(values.mean())
        return float(self.weights @ values) / self.total


def read_logits(logits: ArrayLike, estimator: Any) -> tuple[Array, bool]:
    """Logits in float64, shape (N, K), and whether they had one axis; NaN and infinities are not looked at."""
    z = as_plain(logits, "logits")
    if not isinstance(z, np.ndarray) or z.dtype.name != "bfloat16":
        z = check_array(
            z,
            dtype=None,
            ensure_2d=False,
            ensure_all_finite=False,
            ensure_min_samples=0,
            estimator=estimator,
            input_name="logits",
        )
    if z.dtype.kind not in "fiuO" and z.dtype.name != "bfloat16":
        raise TypeError(f"logits must hold numbers, got dtype {z.dtype}")
    one_axis = z.ndim == 1
    if one_axis:  # a decision function of two classes
        z = np.column_stack([np.zeros_like(z), z])
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] == 0:
        raise ValueError(f"logits must have shape (N, K), N and K at least 1, got {z.shape}")
    return z.astype(np.float64), one_axis


def check_values(z: Array, numbers: NDArray[np.intp] | None = None, largest: float = LARGEST) -> None:
    """Refuse NaN, +inf, values beyond the largest, and rows of -inf alone; numbers: of the rows, for messages."""
    row_of = (lambda i: int(i)) if numbers is None else lambda i: int(numbers[i])
    bad = np.argwhere(~(z < np.inf))
    if len(bad):
        value = z[tuple(bad[0])]
        raise ValueError(f"logits[{row_of(bad[0][0])}, {bad[0][1]}] is {value}; NaN and +inf are not allowed")
    bad = np.argwhere((np.abs(z) > largest) & (z > -np.inf))
    if len(bad):
        value = z[tuple(bad[0])]
        raise ValueError(
            f"logits[{row_of(bad[0][0])}, {bad[0][1]}] is {value:.4g}; they must be from -{largest:g} to {largest:g}, "
            "or -inf for a class that is impossible"
        )
    nothing = np.flatnonzero(z.max(axis=1) == -np.inf)
    if len(nothing):
        raise ValueError(f"logits[{row_of(nothing[0])}] is -inf in every column")


def refuse_missing(name: str, labels: NDArray[Any], numbers: NDArray[np.intp] | None = None) -> None:
    """Refuse None and pandas.NA among labels of rows (y) or columns (classes); numbers: of the rows, for messages."""
    if labels.dtype != object or labels.ndim != 1:
        return
    for i, label in enumerate(labels.tolist()):
        if label is None or type(label).__name__ == "NAType":  # pandas need not be installed
            place = i if numbers is None else numbers[i]
            owner = "row" if name == "y" else "column"
            raise ValueError(f"{name}[{place}] is {label!r}, not a value; every {owner} needs a label")


class Checked(NamedTuple):
    """Rows with weight, and their labels as they were given."""

    z: Array
    labels: NDArray[Any]
    weights: Array | None
    numbers: NDArray[np.intp] | None  # of the rows among those given; None: all of them
    one_axis: bool

    def finish(self, indices: NDArray[np.int64], classes: NDArray[Any]) -> Rows:
        """Rows with these columns as labels."""
        impossible = np.flatnonzero(self.z[np.arange(len(self.z)), indices] == -np.inf)
        if len(impossible):
            row = int(impossible[0] if self.numbers is None else self.numbers[impossible[0]])
            raise ValueError(
                f"logits[{row}, {indices[impossible[0]]}] is -inf, but that is the label of the row: no "
                "calibration makes it possible"
            )
        return Rows(self.z, indices, self.weights, classes, self.one_axis)


def read_rows(
    logits: ArrayLike, y: ArrayLike | None, sample_weight: ArrayLike | None, classes: ArrayLike | None, estimator: Any
) -> Rows:
    """Check the arguments of `fit`."""
    checked = check_rows(logits, y, sample_weight, estimator)
    return checked.finish(*match_labels(checked.labels, checked.z.shape[1], classes, checked.numbers))


def check_rows(logits: ArrayLike, y: ArrayLike | None, sample_weight: ArrayLike | None, estimator: Any) -> Checked:
    """Check the arguments of `fit`, but for what labels stand for."""
    z, one_axis = read_logits(logits, estimator)
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    labels = column_or_1d(as_plain(y, "y"), warn=True)
    if labels.shape != z.shape[:1]:
        raise ValueError(f"y must have shape {z.shape[:1]}, one label for each row of logits, got {labels.shape}")
    weights = None
    if sample_weight is not None:
        weights = check_sample_weight(as_plain(sample_weight, "sample_weight"), z)
    kept = None
    if weights is not None and not weights.all():
        kept = np.flatnonzero(weights)
        if len(kept) == 0:
            raise ValueError("sample_weight is zero for every row: there is nothing to learn from")
        z, labels, weights = z[kept], labels[kept], weights[kept]
    check_values(z, kept, LARGEST_LEARNED)
    if weights is not None:
        with np.errstate(over="ignore"):
            total = weights.sum()
        if total > LARGEST_LEARNED:
            raise ValueError(f"sample_weight sums to {total:.4g}; its sum must be at most {LARGEST_LEARNED:g}")
    refuse_missing("y", labels, kept)
    assert_all_finite(labels, input_name="y")
    if labels.dtype.kind == "f":
        check_classification_targets(labels)  # refuses fractions
    return Checked(z, labels, weights, kept, one_axis)


def match_labels(
    labels: NDArray[Any], n_columns: int, classes: ArrayLike | None, numbers: NDArray[np.intp] | None = None
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """The column of each label, and the label of each column.

    The columns are those that `classes` names; else 0 to K - 1 if the labels are such integers; else the labels
    themselves in sorted order, which must then be K.  numbers: of the rows, for messages.
    """
    if classes is not None:
        named = _check_classes(classes, n_columns)
        return _find_columns(labels, named, numbers), named
    if labels.dtype.kind == "O":
        plain = np.array(labels.tolist())
        labels = plain if plain.dtype.kind in "iu" else labels
    if labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < n_columns:
        return labels.astype(np.int64), np.arange(n_columns)
    if labels.dtype.kind == "b" and n_columns == 2:
        return labels.astype(np.int64), np.array([False, True])
    distinct, indices = np.unique(labels, return_inverse=True)
    # Whole numbers, as all floats are here.  But one label alone is refused as a float: scikit-learn's check of
    # classifiers (check_classifiers_one_label) demands that, or that every prediction is this label.
    if distinct.dtype.kind == "f" and len(distinct) > 1 and distinct[0] >= 0 and distinct[-1] < n_columns:
        return labels.astype(np.int64), np.arange(n_columns, dtype=distinct.dtype)
    if len(distinct) != n_columns:
        outside = np.flatnonzero((labels < 0) | (labels >= n_columns)) if labels.dtype.kind in "iu" else [0]
        row = int(outside[0] if numbers is None else numbers[outside[0]])
        raise ValueError(
            f"y[{row}] is {show(labels[outside[0]])}; there are {len(distinct)} distinct labels for {n_columns} "
            f"columns of logits (n_features={n_columns}): y must hold integers from 0 to {n_columns - 1}, or "
            f"{n_columns} distinct labels (the columns are theirs in sorted order), or labels of `classes`"
        )
    return indices.reshape(-1).astype(np.int64), distinct


def _check_classes(classes: ArrayLike, n_columns: int) -> NDArray[Any]:
    named = np.asarray(as_plain(classes, "classes"))
    refuse_missing("classes", named)
    if named.shape != (n_columns,):
        raise ValueError(
            f"classes must name the {n_columns} columns of logits, one label each, got an array of shape {named.shape}"
        )
    values, counts = np.unique(named, return_counts=True)
    if len(values) != n_columns:
        twice = values[counts > 1].tolist()[0]
        raise ValueError(f"classes must be distinct, but {twice!r} is there more than once")
    return named


def _find_columns(labels: NDArray[Any], classes: NDArray[Any], numbers: NDArray[np.intp] | None) -> NDArray[np.int64]:
    """The column of each label among classes in any order."""
    if (labels.dtype.kind in "OUS") != (classes.dtype.kind in "OUS"):
        unknown = np.arange(1)  # text is never equal to a number
    else:
        indices, unknown = indices_of(labels, classes)
    if len(unknown):
        row = int(unknown[0] if numbers is None else numbers[unknown[0]])
        raise ValueError(f"y[{row}] is {show(labels[unknown[0]])}, which is not among classes: {show(classes)}")
    return indices.astype(np.int64)


def merge_equal_rows(rows: Rows) -> Rows:
    """Sorted rows, those with the same logits and label as one row with the sum of their weights.

    A row of weight 2 and a row that is there twice then give the same bits, in any order, also where an iterative
    method would amplify different roundings.  Three columns are enough to sort by unless rows that differ agree in
    them, which saves half of the time for ten columns.
    """
    for columns in (3, rows.z.shape[1]):
        order = np.lexsort((*rows.z.T[:columns], rows.labels))
        z, labels = rows.z[order], rows.labels[order]
        same_label = labels[1:] == labels[:-1]
        same = same_label & (z[1:] == z[:-1]).all(axis=1)
        if np.array_equal(same, same_label & (z[1:, :columns] == z[:-1, :columns]).all(axis=1)):
            break
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    if len(starts) == len(z) and (rows.weights is None or (rows.weights == 1).all()):
        return Rows(z, labels, None, rows.classes, rows.one_axis)
    weights = np.ones(len(z)) if rows.weights is None else rows.weights[order]
    return Rows(z[starts], labels[starts], np.add.reduceat(weights, starts), rows.classes, rows.one_axis)
