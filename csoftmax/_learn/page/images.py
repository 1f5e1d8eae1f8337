"""Rows of a data set as small images: PNG in a data URL."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._runtime.optional import load


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


def encode_images(x: ArrayLike, shape: tuple[int, ...], low: float, high: float) -> Images:
    """Rows as images, in which `low` is black and `high` white."""
    values = np.asarray(x, np.float64).reshape(-1, *shape)
    scaled = np.round(255 * np.clip((values - low) / ((high - low) or 1), 0, 1)).astype(np.uint8)
    return Images(shape, [_encode(image) for image in scaled])


def _encode(image: NDArray[np.uint8]) -> str:
    picture: Any = load("PIL.Image", "learn").fromarray(image)
    data = io.BytesIO()
    picture.save(data, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
