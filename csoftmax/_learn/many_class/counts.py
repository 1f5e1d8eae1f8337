"""Counts of classes: sums of the weights of their rows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..messages import show
from ..parameters import as_plain


def count_classes(estimator: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None) -> None:
    """Add rows to `class_count_`, in place, in time proportional to the rows."""
    if not hasattr(estimator, "class_count_"):
        estimator.class_count_ = np.zeros(len(estimator.classes_))
    elif not estimator.class_count_.flags.writeable:  # a memory map
        estimator.class_count_ = estimator.class_count_.copy()
    np.add.at(estimator.class_count_, y, 1.0 if sample_weight is None else sample_weight)


@contextlib.contextmanager
def counting_classes(estimator: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None) -> Iterator[None]:
    """Count the rows that the block trains on; if it fails, the counts are those of before."""
    counts = getattr(estimator, "class_count_", None)
    before = None if counts is None else counts[y]
    count_classes(estimator, y, sample_weight)
    try:
        yield
    except BaseException:
        if before is None:
            del estimator.class_count_
        else:
            estimator.class_count_[y] = before
        raise


def smooth(counts: NDArray[np.float64]) -> float:
    """What is added to counts if some are 0, so that no class has probability 0: the smallest positive count."""
    positive = counts[counts > 0]
    if len(positive) == len(counts):
        return 0.0
    return float(positive.min()) if len(positive) else 1.0


def check_added_counts(estimator: Any, counts: ArrayLike, given: ArrayLike, new: NDArray[Any]) -> NDArray[np.float64]:
    """Counts of the classes that are given, in the order of the new classes, which are sorted."""
    if not hasattr(estimator, "class_count_"):
        raise ValueError(
            "counts need those of the other classes, which training with this sampler and init_bias has not kept"
        )
    labels = np.atleast_1d(np.asarray(as_plain(given, "classes")))
    numbers = np.atleast_1d(np.asarray(as_plain(counts, "counts")))
    if numbers.shape != labels.shape or numbers.dtype.kind not in "iuf" or len(labels) != len(new):
        raise ValueError(f"counts must be one number for each of the {len(new)} new classes, got {show(counts)}")
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise ValueError(f"counts must be positive and finite, got {show(counts)}")
    return numbers.astype(np.float64)[np.argsort(labels, kind="stable")]


def spread(values: NDArray[Any], n: int, places: NDArray[np.intp], new: Any) -> NDArray[Any]:
    """Values of classes at their places among n; new: those of the classes between them, in order."""
    result = np.empty(n, values.dtype)
    result[places] = values
    is_new = np.ones(n, bool)
    is_new[places] = False
    result[is_new] = new
    return result
