"""Principal components of weighted rows, with NumPy alone.

The rows are centred, and all components are divided by one number, the standard deviation of the first: a penalty on
what is learnt from them then does not depend on the units of the features.  Up to MAX_EXACT features, the components
are eigenvectors of the covariance; beyond, they come from a randomised range finder (Halko, Martinsson & Tropp 2011),
because a covariance of all pairs of features would not fit in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._cpu import binding

MAX_EXACT = 2048  # features: 32 MB of covariance
BLOCK_NUMBERS = 1 << 20  # of rows that are centred at a time: 8 MB
EXTRA, PASSES = 10, 6  # of the range finder: directions beyond the wanted ones, and rounds over the rows
NOISE = 2.0**-44  # share of the largest variance, below which a component is rounding

Floats = NDArray[np.float64]


class Components(NamedTuple):
    """The map ``(x * factor - mean) @ axes.T`` from features to components."""

    factor: float  # a power of two, so that no square overflows
    mean: Floats  # (D,)
    axes: Floats  # (p, D)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.mean.nbytes + self.axes.nbytes

    def project(self, x: NDArray[Any]) -> Floats:
        """The components of rows, (N, p): each row by itself, with the same bits for any number of threads."""
        p, features = self.axes.shape
        out = np.zeros((len(x), p))
        if not features:
            return out
        every = np.arange(p)[None]
        step = max(1, BLOCK_NUMBERS // features)
        for begin in range(0, len(x), step):
            with np.errstate(over="ignore", invalid="ignore"):
                centred = x[begin : begin + step].astype(np.float64, order="C") * self.factor - self.mean
            to = out[begin : begin + step]
            binding.run_row_dots(binding.DTYPES["float64"], centred, self.axes, every, to, None)
        return out


def find_components(x: NDArray[Any], weights: Floats, count: int, rng: Any) -> Components:
    """The first `count` components of finite rows, whose weights sum to a positive number; at least one.

    Components without variance are zeros.  rng: a function that returns a Generator, called beyond MAX_EXACT features.
    """
    features = x.shape[1]
    largest = max((float(np.abs(part).max(initial=0)) for part in _parts_of(x)), default=0.0)
    factor = float(np.ldexp(1.0, -min(max(int(np.frexp(largest)[1]), -1000), 1000)))
    share = weights / weights.sum()
    mean = np.zeros(features)
    for part, begin in zip(_parts_of(x), _begins(x), strict=True):
        mean += share[begin : begin + len(part)] @ (part.astype(np.float64) * factor)
    count = max(1, min(count, features))
    axes = np.zeros((count, features))
    if features:
        values, vectors = (_exact if features <= MAX_EXACT else _randomised)(x, factor, mean, share, count, rng)
        # a variance that rounding of the mean alone would make is none
        floor = max(values[0] * NOISE, np.abs(mean).max() ** 2 * 2.0**-90)
        kept = values > floor
        signs = np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=1)[:, None], 1))
        axes[kept] = (vectors * signs)[kept]
        if kept.any():
            axes /= np.sqrt(values[0])
    return Components(factor, mean, axes)


def _begins(x: NDArray[Any]) -> range:
    return range(0, len(x), max(1, BLOCK_NUMBERS // max(1, x.shape[1])))


def _parts_of(x: NDArray[Any]) -> Any:
    begins = _begins(x)
    return (np.ascontiguousarray(x[begin : begin + begins.step]) for begin in begins)  # products read layouts apart


def _centred(x: NDArray[Any], factor: float, mean: Floats, share: Floats) -> Any:
    """Parts of the centred rows, with their share of the weight."""
    for part, begin in zip(_parts_of(x), _begins(x), strict=True):
        yield part.astype(np.float64) * factor - mean, share[begin : begin + len(part), None]


def _exact(x: Any, factor: float, mean: Floats, share: Floats, count: int, rng: Any) -> tuple[Floats, Floats]:
    covariance = np.zeros((len(mean), len(mean)))
    for part, weight in _centred(x, factor, mean, share):
        covariance += part.T @ (part * weight)
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return values[::-1][:count], np.ascontiguousarray(vectors[:, ::-1][:, :count].T)


def _randomised(x: Any, factor: float, mean: Floats, share: Floats, count: int, rng: Any) -> tuple[Floats, Floats]:
    """Rounds of C Q, orthogonalised, for the covariance C, which is never formed."""
    basis = np.linalg.qr(rng().standard_normal((len(mean), min(count + EXTRA, len(mean)))))[0]
    for _ in range(PASSES):
        image, inner = np.zeros_like(basis), np.zeros((basis.shape[1], basis.shape[1]))
        for part, weight in _centred(x, factor, mean, share):
            products = part @ basis
            image += part.T @ (products * weight)
            inner += products.T @ (products * weight)
        values, turn = np.linalg.eigh((inner + inner.T) / 2)
        vectors = basis @ turn[:, ::-1]
        basis = np.linalg.qr(image)[0]
    return values[::-1][:count], np.ascontiguousarray(vectors[:, :count].T)
