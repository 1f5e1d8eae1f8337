"""The loss of affine maps of logits, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..._ops.cross_entropy import cross_entropy_with_grad
from .rows import Array, Rows


@dataclass(frozen=True)
class Terms:
    """Rows with the features that are mapped."""

    rows: Rows
    x: Array

    def evaluate(self, coef: Array, intercept: Array) -> tuple[float, Array, Array]:
        """Mean loss, and its gradients by a matrix, or by the diagonal of one, and by the offset."""
        rows, x = self.rows, self.x
        mapped = exclude_impossible(apply(coef, intercept, x), rows.z)
        result = cross_entropy_with_grad(mapped, rows.labels, sample_weight=rows.weights)
        grad_coef = np.einsum("nk,nk->k", result.grad, x) if coef.ndim == 1 else result.grad.T @ x
        return float(result.loss), grad_coef, result.grad.sum(axis=0)

    def map_freely(self, coef: Array, intercept: Array, factors: tuple[float, float, float]) -> Rows:
        """The rows with the results of the part of the map that no penalty holds as logits.

        If they classify all rows correctly, the likelihood rises forever as that part is multiplied.
        """
        off_diagonal, diagonal, offset = (factor == 0 for factor in factors)
        free = np.where(np.eye(len(coef), dtype=bool), diagonal, off_diagonal) if coef.ndim == 2 else diagonal
        z = exclude_impossible(apply(coef * free, intercept * offset, self.x), self.rows.z)
        return replace(self.rows, z=z)

    def is_separable(self, coef: Array, intercept: Array, factors: tuple[float, float, float]) -> bool:
        """Whether the part of the map that no penalty holds classifies all rows correctly."""
        return self.map_freely(coef, intercept, factors).is_separable()


def apply(coef: Array, intercept: Array, x: Array) -> Array:
    """Map features by a matrix, or by the diagonal of one."""
    return (x * coef if coef.ndim == 1 else x @ coef.T) + intercept


def exclude_impossible(x: Array, z: Array) -> Array:
    """Results x of the map, with -inf where the logits z are -inf."""
    x[np.isneginf(z)] = -np.inf
    return x
