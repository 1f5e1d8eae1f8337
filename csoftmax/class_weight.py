"""Weights of classes from how often they occur, for `weight` of `cross_entropy` and `class_weight` of the estimator."""

import math
import numbers

import numpy as np

__all__ = ["effective_number", "inverse_frequency"]

NORMALIZE = ("n_over_kn", "n_over_n", "max_over_n")


def _counts(y, n_classes):
    """How often each class occurs, and their number."""
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(f"y must have one axis, got shape {y.shape}")
    if y.size and y.dtype.kind not in "iu":
        raise TypeError(f"y must hold integers, the numbers of classes, got dtype {y.dtype}")
    if n_classes is not None and (not isinstance(n_classes, numbers.Integral) or n_classes < 1):
        raise ValueError(f"n_classes must be an int of at least 1, got {n_classes!r}")
    if n_classes is None and y.size == 0:
        raise ValueError("y is empty: n_classes must be given")
    k = int(y.max()) + 1 if n_classes is None else int(n_classes)
    wrong = np.flatnonzero((y < 0) | (y >= k)) if y.size else ()
    if len(wrong):
        raise ValueError(f"y[{wrong[0]}] is {y[wrong[0]]}; classes are 0 to {k - 1}")
    return np.bincount(y.astype(np.int64), minlength=k).astype(np.float64), k


def inverse_frequency(y, n_classes=None, normalize="n_over_kn"):
    """Weights in inverse proportion to the frequency of the classes.

    Parameters
    ----------
    y : array_like of int, shape (N,)
        Labels from 0 to K - 1.
    n_classes : int, optional
        K; default: the largest label plus 1.
    normalize : {"n_over_kn", "n_over_n", "max_over_n"}
        With n_i rows of class i out of N: ``N / (K * n_i)``, with which the weights of all rows have the mean 1 (where
        no class is absent); ``N / n_i``; ``max(n) / n_i``, at least 1.

    Returns
    -------
    ndarray of float64, shape (K,)
        0 for classes that do not occur.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was received and what is allowed.

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
    counts, k = _counts(y, n_classes)
    total = counts.sum()
    numerator = {"n_over_kn": total / k, "n_over_n": total, "max_over_n": counts.max()}[normalize]
    return np.divide(numerator, counts, out=np.zeros(k), where=counts > 0)


def effective_number(y, beta=0.999, n_classes=None):
    """Weights in inverse proportion to the effective number of samples of the classes.

    ``(1 - beta) / (1 - beta**n_i)``, scaled so that they add up to K (Cui et al. 2019, "Class-balanced loss based on
    effective number of samples"). beta = 0 gives equal weights, beta = 1 the limit, inverse frequency.

    Parameters
    ----------
    y : array_like of int, shape (N,)
        Labels from 0 to K - 1.
    beta : float in [0, 1], default 0.999
        How much samples of a class overlap.
    n_classes : int, optional
        K; default: the largest label plus 1.

    Returns
    -------
    ndarray of float64, shape (K,)
        0 for classes that do not occur.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, what was received and what is allowed.

    Notes
    -----
    ``1 - beta**n`` is computed as ``-expm1(n * log1p(beta - 1))``: no digits are lost where it is near 0.

    Examples
    --------
    >>> from csoftmax.class_weight import effective_number
    >>> effective_number([0, 0, 0, 1], beta=0.9).round(4)
    array([0.5391, 1.4609])
    """
    if not isinstance(beta, numbers.Real) or not 0 <= beta <= 1:
        raise ValueError(f"beta must be in [0, 1], got {beta!r}")
    counts, k = _counts(y, n_classes)
    beta, there = float(beta), counts > 0
    if beta == 1:
        number = counts
    else:
        log_beta = math.log1p(beta - 1) if beta > 0 else -math.inf
        number = -np.expm1(np.multiply(counts, log_beta, where=there, out=np.zeros(k)))
    weights = np.divide(1, number, out=np.zeros(k), where=there)
    total = weights.sum()
    return weights * (k / total) if total > 0 else weights
