"""KL(p || p') of two softmaxes whose logits differ by little, from that difference.

With the change v of the logits, u = v - sum p v and T = sum p (e^u - 1 - u), whose terms are not negative because
sum p u = 0:

    KL(p || p') = log(1 + T),   p' - p = p (e^u - 1 - T) / (1 + T),   dKL/dz = -p u   (z: the logits of p)

so that no result is a difference of nearly equal numbers, however small the change is. Everything is in float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .softmax import logsumexp, softmax

SERIES = 0.125  # below it e^u - 1 - u loses more than four bits
COEFFICIENTS = [1 / math.factorial(k) for k in range(13, 1, -1)]
LARGE = 300.0  # above it e^u may overflow, and nothing cancels


class Divergence(NamedTuple):
    """The divergence of each row and its gradients by the logits of p' and of p."""

    value: Any
    grad_moved: Any
    grad_fixed: Any


def _exp_rest(u: Any) -> Any:
    """e^u - 1 - u."""
    small = np.clip(u, -SERIES, SERIES)
    series = np.polyval(COEFFICIENTS, small)
    series *= small * small
    return np.where(np.abs(u) < SERIES, series, np.expm1(u) - u)


def find_divergence(fixed: Any, change: Any, num_threads: Any = None) -> Divergence:
    """KL(softmax(fixed) || softmax(fixed + change)) of each row; NaN for rows that are not finite."""
    fixed, change = fixed.astype(np.float64, copy=False), change.astype(np.float64, copy=False)
    p = softmax(fixed, num_threads=num_threads)
    u = change - np.einsum("ij,ij->i", p, change)[:, None]
    total = np.einsum("ij,ij->i", p, _exp_rest(np.minimum(u, LARGE)))
    value = np.log1p(total)
    grad_moved = p * (np.expm1(np.minimum(u, LARGE)) - total[:, None]) / (1 + total)[:, None]
    large = np.flatnonzero(u.max(axis=1, initial=0) >= LARGE)
    if len(large):
        moved = fixed[large] + change[large]
        rise = logsumexp(moved, num_threads=num_threads) - logsumexp(fixed[large], num_threads=num_threads)
        value[large] = np.maximum(rise - np.einsum("ij,ij->i", p[large], change[large]), 0)
        grad_moved[large] = softmax(moved, num_threads=num_threads) - p[large]
    return Divergence(value, grad_moved, -p * u)
