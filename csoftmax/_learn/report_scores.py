"""Figures of the predicted classes of a report: scikit-learn's, and the areas under many ROC curves at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 8 << 20  # of the probabilities that are turned into contiguous columns at a time


def find_areas(
    labels: NDArray[np.intp],
    p: NDArray[np.float64],
    classes: NDArray[np.intp],
    sample_weight: NDArray[np.float64] | None,
) -> NDArray[np.float64]:
    """Areas under the ROC curves of some classes against the rest, as `sklearn.metrics.roc_auc_score` defines them.

    The area is the share of the pairs of a row of the class and a row of the rest in which the former has the larger
    probability, equal ones counting half (Mann & Whitney 1947). The pairs of a row with all rows are its midrank, from
    one sort for each class; the pairs within the class, which count too many there, are half the square of its weight.
    scikit-learn's function, called for each class, checks its arguments for 5 to 10 times as long as this takes.
    """
    total = len(labels) if sample_weight is None else float(sample_weight.sum())
    by_class = np.argsort(labels, kind="stable")
    begins, ends = (np.searchsorted(labels[by_class], classes, side) for side in ("left", "right"))
    areas, ranks = np.empty(len(classes)), np.arange(len(labels) + 1.0)
    step = max(1, BLOCK_BYTES // (8 * len(labels)))
    for begin in range(0, len(classes), step):
        columns = np.ascontiguousarray(p[:, classes[begin : begin + step]].T)
        for i, column in enumerate(columns, begin):
            rows = by_class[begins[i] : ends[i]]
            scores = column[rows]
            if sample_weight is None:
                column.sort()
                weights, places = np.ones(len(rows)), ranks
            else:
                order = column.argsort()
                column = column[order]
                weights, places = sample_weight[rows], np.append(0.0, np.cumsum(sample_weight[order]))
            midranks = (places[np.searchsorted(column, scores)] + places[np.searchsorted(column, scores, "right")]) / 2
            own = weights.sum()
            areas[i] = (midranks @ weights - own * own / 2) / (own * (total - own))
    return areas


def measure_classification(
    labels: NDArray[np.intp],
    predicted: NDArray[np.intp],
    p: NDArray[np.float64],
    classes: NDArray[Any],
    sample_weight: NDArray[np.float64] | None,
) -> dict[str, Any]:
    """Figures of the predicted classes, by class and averaged."""
    from sklearn import metrics as sk

    everything = np.arange(len(classes))
    given: dict[str, Any] = {"sample_weight": sample_weight, "zero_division": 0}
    precision, recall, f1, _ = sk.precision_recall_fscore_support(labels, predicted, labels=everything, **given)
    macro = sk.precision_recall_fscore_support(labels, predicted, average="macro", **given)
    rows = np.bincount(labels, minlength=len(classes))
    weights = np.bincount(labels, sample_weight, len(classes))
    k = len(classes)  # scikit-learn's confusion matrix warns if there is one class
    matrix = np.bincount(labels * k + predicted, sample_weight, k * k).reshape(k, k)
    occurring = np.flatnonzero(weights)
    roc_auc = float(np.mean(find_areas(labels, p, occurring, sample_weight))) if len(occurring) > 1 else None
    by_class = zip(classes.tolist(), precision, recall, f1, rows, weights, matrix.sum(axis=0).tolist())
    return {
        "accuracy": float(np.average(predicted == labels, weights=sample_weight)),
        "macro_precision": float(macro[0]),
        "macro_recall": float(macro[1]),
        "macro_f1": float(macro[2]),
        "micro_f1": float(sk.f1_score(labels, predicted, average="micro", **given)),
        "weighted_f1": float(sk.f1_score(labels, predicted, average="weighted", **given)),
        "roc_auc": roc_auc,
        "per_class": [
            {
                "class": str(c),
                "precision": float(pr),
                "recall": float(r),
                "f1": float(f),
                "rows": int(n),
                "weight": float(w),
                "predicted": m,
            }
            for c, pr, r, f, n, w, m in by_class
        ],
        "confusion_matrix": matrix.tolist(),
    }
