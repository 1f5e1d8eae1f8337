"""Confidence interval of a report's accuracy, and the mistakes of which the model was surest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .calibration_error import count_effective_rows
from .reliability import find_interval

MAX_MISTAKES = 9


def find_accuracy_interval(hits: NDArray[np.bool_], weight: NDArray[np.float64], level: float = 0.95) -> list[float]:
    """Exact binomial interval of the accuracy, for the number of rows that the weights stand for."""
    n, w = count_effective_rows(weight), weight / weight.max()
    low, high = find_interval(n * np.asarray((w * hits).sum() / w.sum()), np.asarray(n), level)
    return [float(low), float(high)]


def find_mistakes(
    labels: NDArray[np.intp],
    predicted: NDArray[np.intp],
    p: NDArray[np.float64],
    weight: NDArray[np.float64],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Wrong rows whose predicted class has the largest probability; equal ones in their order."""
    wrong = np.flatnonzero((labels != predicted) & (weight > 0))
    confidence = p[wrong, predicted[wrong]]
    surest = np.argsort(-confidence, kind="stable")[:MAX_MISTAKES]
    return [
        {
            "row": int(i),
            "true": classes[labels[i]],
            "predicted": classes[predicted[i]],
            "confidence": float(c),
        }
        for i, c in zip(wrong[surest], confidence[surest])
    ]
