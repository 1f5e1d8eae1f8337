"""How sure the accuracy of a report is, and the mistakes of which the model was surest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_MISTAKES = 9


def find_accuracy_interval(hits: NDArray[np.bool_], weight: NDArray[np.float64], level: float = 0.95) -> list[float]:
    """Exact binomial interval of the accuracy (Clopper & Pearson 1934).

    With weights the number of rows is the effective one, (sum w)^2 / sum w^2 (Kish 1965), which need not be whole.
    """
    from scipy.special import betaincinv

    w = weight / weight.max()  # their squares neither overflow nor vanish
    rows = w.sum() ** 2 / (w @ w)
    right, wrong = (rows * (which @ w) / w.sum() for which in (hits, ~hits))
    tail = (1 - level) / 2
    low = betaincinv(right, wrong + 1, tail) if right > 0 else 0.0
    high = betaincinv(right + 1, wrong, 1 - tail) if wrong > 0 else 1.0
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
