"""The mistakes of which a model was surest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_MISTAKES = 9


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
