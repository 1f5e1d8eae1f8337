"""Rows of a data set as small images: PNG in a data URL."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._runtime.optional import load
from ..objective import is_sparse


class Images(NamedTuple):
    """Images of the most confident mistakes, in their order."""

    shape: tuple[int, ...]
    urls: list[str]


def check_shape(shape: Sequence[int], n_features: int) -> tuple[int, ...]:
    """The height and width of the images, and 3 for colours; refuses what does not hold the features of a row."""
    try:
        sizes = tuple(shape)
        numbers = [int(size) for size in sizes if not isinstance(size, bool)]
    except (TypeError, ValueError):
        sizes, numbers = (), []
    is_allowed = len(sizes) in (2, 3) and list(sizes) == numbers and min(numbers) > 0 and sizes[2:] in ((), (3,))
    if not is_allowed:
        raise ValueError(f"shape must be (height, width) or (height, width, 3), got {shape!r}")
    if int(np.prod(numbers)) != n_features:
        raise ValueError(f"shape {shape!r} has {int(np.prod(numbers))} values, but a row of X has {n_features}")
    return tuple(numbers)


def take_images(X: Any, shape: Sequence[int], n_rows: int, rows: Sequence[int]) -> Images:
    """Some rows of X as images, scaled by the smallest and the largest value of X; refuses an X that does not fit."""
    has_zeros = is_sparse(X)  # that are not stored
    X = X.tocsr() if has_zeros else np.asarray(X)
    if X.ndim != 2 or X.shape[0] != n_rows:
        raise ValueError(f"X must be the data of the report, {n_rows} rows of features, got shape {X.shape}")
    sizes = check_shape(shape, X.shape[1])
    stored = np.asarray(X.data if has_zeros else X, np.float64)
    finite = stored[np.isfinite(stored)]
    low, high = (
        float(f(finite, initial=0)) if has_zeros or not finite.size else float(f(finite)) for f in (np.min, np.max)
    )
    chosen = X[list(rows)]
    values = np.asarray(chosen.toarray() if has_zeros else chosen, np.float64)
    levels = np.round(255 * np.nan_to_num(np.clip((values - low) / ((high - low) or 1), 0, 1))).astype(np.uint8)
    return Images(sizes, [_encode(image) for image in levels.reshape(-1, *sizes)])


def _encode(image: NDArray[np.uint8]) -> str:
    picture: Any = load("PIL.Image", "learn").fromarray(image)
    data = io.BytesIO()
    picture.save(data, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
