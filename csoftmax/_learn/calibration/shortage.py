"""The warning about held-out rows that are too few, or all classified correctly."""

from __future__ import annotations

import numpy as np

from .rows import Rows

# With n rows, each fitted number costs about 1 / (2 n) of log loss on new rows: 0.05 with 10 rows.
MIN_ROWS = 10


def is_separable(rows: Rows) -> bool:
    """Whether every row is classified correctly: no logit is above its label's, and some are below.

    Then the likelihood rises forever as the temperature falls, or as the logits are multiplied.
    """
    if rows.z.shape[1] == 1:
        return False
    gaps = rows.z[np.arange(len(rows.z)), rows.labels, None] - rows.z
    return bool((gaps >= 0).all() and ((gaps > 0) & (gaps < np.inf)).any())


def describe_separation(count: int, done: str) -> str:
    """The message of the warning about a fitted map that makes all rows right."""
    return (
        f"the fitted map classifies all held-out rows ({count}) correctly, so that the likelihood has no maximum: it "
        f"would make every probability 0 or 1. Here {done}: set penalties, or hold out more rows"
    )


def describe_shortage(rows: Rows, done: str) -> str | None:
    """The message of the warning, or None; done: what keeps the result within bounds."""
    count, remedy = len(rows.z), "hold out more rows"
    if rows.z.shape[1] == 1:
        return None
    if is_separable(rows):
        return (
            f"all held-out rows ({count}) are classified correctly, so that the likelihood has no maximum: it would "
            f"make every probability 0 or 1. Here {done}. To measure how often the model is wrong, {remedy}"
        )
    if rows.total < MIN_ROWS:
        weight = "," if rows.weights is None else f", of total weight {rows.total:.4g},"
        return f"too few held-out rows to calibrate with: {count}{weight} fewer than {MIN_ROWS}. Here {done}; {remedy}"
    return None
