"""Inputs to try functions on: logits of several scales, rows of every kind, awkward numbers of classes."""

from __future__ import annotations

import numpy as np

from .formats import dtype_of

# Awkward numbers of classes: around every vector width, the 128-element group, the 4096-element block.
SIZES = (1, 2, 3, 5, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 1000, 4095, 4096, 4097, 10007, 50257)


# Rows that are not normal: their roundings have one sign, or their sum is far below the maximum.
ROW_KINDS = (
    "flat",
    "two values",
    "geometric",
    "ties",
    "ahead",
    "ahead of two values",
    "ahead of ties",
    "ahead of normal",
)


def logits(shape, dtype="float32", seed=0, sigma=3.0, offset=0.0) -> np.ndarray:
    """Return normal logits of scale sigma, or rows of the kind (in ROW_KINDS) that sigma names, around an offset."""
    rng = np.random.default_rng(seed)
    x = rows_of_kind(sigma, shape, rng) if isinstance(sigma, str) else rng.standard_normal(shape) * sigma
    return (x + offset).astype(dtype_of(dtype))


def rows_of_kind(kind, shape, rng) -> np.ndarray:
    """Return rows of a kind, each with a level, a step and a gap of its own, in float64.

    A class that is ahead of the others is so by up to 60; every other such row has a gap next to a multiple of log 2,
    where sums of powers of two begin to lie wholly below a maximum's last bit.
    """
    each, k = (*shape[:-1], 1), shape[-1]
    step = rng.uniform(0, 3, each)
    body = kind.removeprefix("ahead of ")
    if body in ("flat", "ahead"):
        x = np.zeros(shape)
    elif body == "two values":
        x = rng.choice([0, 7], shape) * step
    elif body == "geometric":
        x = -rng.permuted(np.broadcast_to(np.arange(k), shape), axis=-1) * step * rng.choice([1, 0.1, 0.01, 1e-3], each)
    elif body == "ties":
        x = rng.integers(0, 20, shape) * step
    elif body == "normal":
        x = rng.standard_normal(shape) * step
    else:
        raise ValueError(f"sigma must be a number or one of {', '.join(ROW_KINDS)}, got {kind!r}")
    x = x + rng.uniform(-20, 20, each)
    if kind.startswith("ahead") and k > 1:
        gap = rng.uniform(0, 60, each)
        gap = np.where(rng.random(each) < 0.5, gap, np.rint(gap / np.log(2)) * np.log(2))
        np.put_along_axis(x, rng.integers(0, k, each), x.max(axis=-1, keepdims=True) + gap, axis=-1)
    return x


def unlike_rows(rows, k, dtype="float32", seed=0) -> np.ndarray:
    """Return rows that kernels cannot all compute on the same path: a third of them have special values or scales."""
    x = logits((rows, k), dtype, seed=seed)
    rng = np.random.default_rng(seed + 1)
    large = 6e4 if dtype == "float16" else 1e30
    for i in np.flatnonzero(rng.random(rows) < 1 / 3):
        j = rng.integers(k)
        kind = rng.integers(8)
        if kind == 0:
            x[i, j] = np.nan
        elif kind == 1:
            x[i, j] = np.inf
        elif kind == 2:
            x[i] = -np.inf
        elif kind == 3:
            x[i, j:] = -np.inf
        elif kind == 4:
            x[i, j] = large
        elif kind == 5:
            x[i] = -large
        elif kind == 6:
            x[i] = x[i, j]
        else:
            x[i, rng.random(k) < 0.3] = 20
    return x


def integers(count, seed) -> np.ndarray:
    """Return 24-bit numbers of a linear congruential sequence (Knuth's MMIX constants), as float64.

    They do not depend on the version of any random generator: golden bits are made from them.
    """
    state, values = seed, []
    for _ in range(count):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append(state >> 40)
    return np.array(values, np.float64)


class FixedUniform(np.random.Generator):
    """A generator whose uniform numbers are given, one row of them for each row of logits."""

    def __init__(self, uniforms):
        super().__init__(np.random.PCG64(0))
        self.uniforms = np.asarray(uniforms)

    def __reduce__(self):
        return FixedUniform, (self.uniforms,)

    def __getitem__(self, rows):
        """Return the generator of a selection of rows."""
        return FixedUniform(self.uniforms[rows])

    def random(self, shape):
        return self.uniforms.reshape(shape)
