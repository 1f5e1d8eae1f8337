"""Class weights from class frequencies, for `weight` of `cross_entropy` and `class_weight` of the estimator."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments.foreign import as_native
from ._arguments.numbers import check_count, check_non_negative
from ._learn.labels import check_indices, weigh_by_effective_number
from ._learn.messages import show

__all__ = ["effective_number", "inverse_frequency"]

NORMALIZE = ("n_over_kn", "n_over_n", "max_over_n")


def _count_classes(y: ArrayLike, n_classes: int | None, sample_weight: ArrayLike | None = None) -> NDArray[np.float64]:
    """Number of rows of each class, or the sum of their weights."""
    if n_classes is not None:
        n_classes = check_count("n_classes", n_classes, 1)
    indices = check_indices("y", y, n_classes, ", the numbers of classes")
    if n_classes is None and indices.size == 0:
        raise ValueError("y is empty: n_classes must be given")
    weights = None if sample_weight is None else _check_weights(sample_weight, indices.shape)
    return np.bincount(indices, weights, n_classes or 0).astype(np.float64)


def _check_weights(sample_weight: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Weights of the rows in float64."""
    if isinstance(sample_weight, np.ma.MaskedArray):
        raise TypeError("sample_weight is a masked array, whose mask would be lost: pass sample_weight.filled(0)")
    weights = np.asarray(as_native(sample_weight, "sample_weight"))
    if weights.dtype.kind not in "iuf":
        raise TypeError(f"sample_weight must hold numbers, got dtype {weights.dtype}")
    if weights.shape != shape:
        raise ValueError(f"sample_weight has shape {weights.shape}, y has {shape}")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"sample_weight[{bad[0]}] is {show(weights[bad[0]])}; weights are finite and at least 0")
    return weights.astype(np.float64)


def inverse_frequency(
    y: ArrayLike, n_classes: int | None = None, normalize: Literal["n_over_kn", "n_over_n", "max_over_n"] = "n_over_kn"
) -> NDArray[np.float64]:
    """Class weights in inverse proportion to the frequency of each class.

    Parameters
    ----------
    y : array_like of int, shape (N,)
        Labels from 0 to K - 1.
    n_classes : int, optional
        K; default: the largest label plus 1.
    normalize : {"n_over_kn", "n_over_n", "max_over_n"}, default "n_over_kn"
        The weight of class i, which has n_i of the N rows. "n_over_kn": ``N / (K * n_i)``, which gives the rows a mean
        weight of 1 if every class occurs. "n_over_n": ``N / n_i``. "max_over_n": ``max(n) / n_i``, which is at least 1.

    Returns
    -------
    ndarray of float64, shape (K,)
        The weights; 0 for classes that do not occur.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> from csoftmax.class_weight import inverse_frequency
    >>> inverse_frequency([0, 0, 0, 1])
    array([0.66666667, 2.        ])
    >>> inverse_frequency([0, 0, 0, 1], n_classes=3, normalize="max_over_n")
    array([1., 3., 0.])
    """
    if normalize not in NORMALIZE:
        raise ValueError(f"normalize must be one of {', '.join(map(repr, NORMALIZE))}, got {normalize!r}")
    counts = _count_classes(y, n_classes)
    total = counts.sum()
    numerator = {"n_over_kn": total / len(counts), "n_over_n": total, "max_over_n": counts.max()}[normalize]
    return np.divide(numerator, counts, out=np.zeros(len(counts)), where=counts > 0)


def effective_number(
    y: ArrayLike, beta: float = 0.999, n_classes: int | None = None, sample_weight: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Class weights in inverse proportion to the effective number of samples of each class.

    The weight of a class with n rows is ``(1 - beta) / (1 - beta**n)``; the weights are then scaled to add up to K
    (Cui et al. 2019, "Class-balanced loss based on effective number of samples").  ``beta = 0`` gives equal weights,
    ``beta = 1`` the limit, inverse frequency.

    Parameters
    ----------
    y : array_like of int, shape (N,)
        Labels from 0 to K - 1.
    beta : float in [0, 1], default 0.999
        Measure of the overlap between the samples of a class.
    n_classes : int, optional
        K; default: the largest label plus 1.
    sample_weight : array_like of shape (N,), optional
        Weights of the rows, at least 0; n is then the sum of the weights of a class, so that a row of weight 2 counts
        as two rows, and one of weight 0 not at all.

    Returns
    -------
    ndarray of float64, shape (K,)
        The weights; 0 for classes that do not occur.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    ``1 - beta**n`` is computed as ``-expm1(n * log1p(beta - 1))``, which loses no digits if the difference is close to
    0.

    Examples
    --------
    >>> from csoftmax.class_weight import effective_number
    >>> effective_number([0, 0, 0, 1], beta=0.9).round(4)
    array([0.5391, 1.4609])
    >>> effective_number([0, 1], beta=0.9, sample_weight=[3, 1]).round(4)
    array([0.5391, 1.4609])
    """
    beta = check_non_negative("beta", beta, 1)
    return weigh_by_effective_number(_count_classes(y, n_classes, sample_weight), beta)
