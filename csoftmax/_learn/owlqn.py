"""OWL-QN (Andrew & Gao 2007): L-BFGS for f(w) + sum of penalty_i |w_i|, where f is smooth and convex.

A step stays in the orthant that the signs of w span, and where w is 0 those of the pseudo-gradient: weights that would
change their sign become 0.  The curvature pairs are those of f alone.  SciPy has no method for this objective.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import daxpy

Vector = NDArray[np.float64]

MEMORY = 10  # pairs of vectors
DECREASE = 1e-4  # Armijo's condition
SHRINK, MIN_SHRINK = 0.5, 0.1  # largest and smallest factor from one trial step to the next
MAX_TRIALS = 40


class Step(NamedTuple):
    """State at the end of an iteration."""

    w: Vector
    value: float  # with the penalty
    pseudo: Vector  # pseudo-gradient


def pseudo_gradient(w: Vector, grad: Vector, penalty: Vector) -> Vector:
    """The element of the subdifferential with the smallest magnitudes."""
    at_zero = np.sign(grad) * np.maximum(np.abs(grad) - penalty, 0)
    return np.where(w != 0, grad + penalty * np.sign(w), at_zero)


class _Curvature:
    """The last steps and changes of the gradient, and the product of the inverse Hessian with a vector."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Vector, Vector, float]] = []

    def add(self, step: Vector, change: Vector) -> None:
        product = float(step @ change)
        if product > 0:  # rounding may prevent it, and the matrix would be indefinite
            self.pairs = [*self.pairs[1 - MEMORY :], (step, change, product)]

    def multiply(self, vector: Vector) -> Vector:
        result, factors = vector.copy(), []
        for step, change, product in reversed(self.pairs):
            factors.append(float(step @ result) / product)
            result = daxpy(change, result, a=-factors[-1])  # in place
        if self.pairs:
            _, change, product = self.pairs[-1]
            result *= product / float(change @ change)
        for (step, change, product), factor in zip(self.pairs, reversed(factors)):
            result = daxpy(step, result, a=factor - float(change @ result) / product)
        return result


def minimize(
    evaluate: Callable[[Vector], tuple[float, Vector]],
    w: Vector,
    *,
    penalty: Vector,
    max_iterations: int,
    after_iteration: Callable[[Step], bool],
) -> Step:
    """Minimise from w until after_iteration(step) is true or no trial step lowers the objective.

    evaluate(w): f and its gradient, in new memory.  The result depends on the threads of BLAS.
    """
    value, grad = evaluate(w)
    step = Step(w, value + float(penalty @ np.abs(w)), pseudo_gradient(w, grad, penalty))
    curvature = _Curvature()
    for _ in range(max_iterations):
        direction = curvature.multiply(step.pseudo)
        np.negative(direction, out=direction)
        direction[direction * step.pseudo >= 0] = 0  # where it would not descend
        orthant = np.where(step.w != 0, np.sign(step.w), -np.sign(step.pseudo))
        length = 1.0 if curvature.pairs else 1 / max(float(np.linalg.norm(direction)), 1e-300)
        for _ in range(MAX_TRIALS):
            trial = length * direction
            trial += step.w
            trial[trial * orthant <= 0] = 0
            value, new_grad = evaluate(trial)
            value += float(penalty @ np.abs(trial))
            decrease = float(step.pseudo @ (step.w - trial))
            if value <= step.value - DECREASE * decrease and value < step.value:
                break
            # the minimum of the parabola through both values, with the slope at the beginning
            curve = value - step.value + decrease
            factor = decrease / (2 * curve) if curve > 0 else SHRINK
            length *= min(max(factor, MIN_SHRINK), SHRINK)
        else:
            break  # rounding prevents further progress
        curvature.add(trial - step.w, new_grad - grad)
        grad = new_grad
        step = Step(trial, value, pseudo_gradient(trial, grad, penalty))
        if after_iteration(step):
            break
    return step
