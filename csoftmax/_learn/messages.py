"""Values as text for messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

MAX_SHOWN = 20  # elements of a list; a model may have 10**5 classes


def _join(items: Iterable[str], length: int) -> str:
    shown = [item for _, item in zip(range(MAX_SHOWN), items)]
    return ", ".join(shown) + (f", ... ({length} in all)" if length > MAX_SHOWN else "")


def show(value: Any) -> str:
    """The repr of a value with NumPy's numbers as Python's (3, not np.int64(3)), arrays as lists, long ones cut off."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return "{" + _join((f"{show(key)}: {show(item)}" for key, item in value.items()), len(value)) + "}"
    if isinstance(value, list):
        return f"[{_join(map(show, value), len(value))}]"
    if isinstance(value, tuple) and type(value) is tuple:
        return f"({_join(map(show, value), len(value))}{',' * (len(value) == 1)})"
    return repr(value)
