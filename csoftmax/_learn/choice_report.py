"""The table of coefficients of a choice model as text."""

from __future__ import annotations

import math
from typing import Any

NORMAL_97_5 = 1.959963984540054  # quantile of the normal distribution


def summarize(title: str, lines: list[str], names: list[str], coef: Any, errors: Any) -> str:
    """A title, lines about the fit, and a row for each coefficient: estimate, error, z, p-value, interval of 95 %."""
    width = max([8, *map(len, names)])
    head = f"{'':{width}}  {'coef':>10} {'std err':>10} {'z':>9} {'P>|z|':>7} {'[0.025':>10} {'0.975]':>10}"
    rows = []
    for name, b, se in zip(names, coef, errors, strict=True):
        z = b / se if se > 0 else math.nan
        p = math.erfc(abs(z) / math.sqrt(2))
        low, high = b - NORMAL_97_5 * se, b + NORMAL_97_5 * se
        rows.append(f"{name:{width}}  {b:>10.5f} {se:>10.5f} {z:>9.3f} {p:>7.3f} {low:>10.5f} {high:>10.5f}")
    return "\n".join([title, *lines, head, *rows])
