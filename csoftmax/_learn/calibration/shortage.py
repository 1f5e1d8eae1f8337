"""The warning about held-out rows that are too few, or all right."""

from __future__ import annotations

import numpy as np

from .rows import Rows

MIN_ROWS = 10
MIN_INFORMATION = 1.0


def is_separable(rows: Rows) -> bool:
    """Whether every row is right: its label's logit is at least that of every other class, somewhere larger.

    Then the likelihood rises for ever as the temperature falls, or as the logits are multiplied.
    """
    if rows.z.shape[1] == 1:
        return False
    gaps = rows.z[np.arange(len(rows.z)), rows.labels, None] - rows.z
    return bool((gaps >= 0).all() and ((gaps > 0) & (gaps < np.inf)).any())


def describe_shortage(rows: Rows, done: str, *, information: float | None = None, prior: float = 0.0) -> str | None:
    """The message of the warning, or None; done: what keeps the result within bounds.

    information: Fisher's information of the rows about log T.
    """
    count, total, k = len(rows.z), rows.total, rows.z.shape[1]
    if k == 1:
        return None
    if is_separable(rows):
        return (
            f"all {count} held-out rows are right: they say that no probability is too high, and maximum likelihood "
            f"would make them certain. Here {done}. Hold out more rows, until some of them are wrong"
        )
    if total < MIN_ROWS:
        return f"{count} held-out rows (sum of weights {total:.4g}) are too few to calibrate with: fewer than {MIN_ROWS}; {done}. Hold out more rows"
    if information is not None and information < MIN_INFORMATION:
        return f"the {count} held-out rows say less about the temperature than a prior of precision 1 (Fisher information of log T {information:.3g}); {done}. Hold out more rows"
    return None
