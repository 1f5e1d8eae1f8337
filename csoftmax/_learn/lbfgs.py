"""SciPy's L-BFGS-B, in coordinates in which softmax regression is well conditioned.

Two changes of variables, neither of which changes the data:

* Centred and scaled: the logits are coef (x - mean) + shift, and each column of coef is multiplied by (curvature of its
  feature) to the power 1/4.  This takes 2 to 30 times fewer iterations than plain variables
  (docs/decisions/learning.md).
* Whitened by the Cholesky factor of the Hessian for centred features, if there are few parameters and the first
  coordinates have come near the minimum.  The remaining digits take about ten iterations, and Newton steps the last
  ones, which are smaller than the rounding of the objective.

They change the path, not the objective.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .objective import Objective

MAX_HESSIAN_PARAMETERS = 1500  # with more, the Hessian takes longer than the iterations that it saves
HESSIAN_MULTIPLICATIONS = 2e9  # if all rows would take more, a sample of the rows is used
# The fits aim at these fractions of tol.  Equal gradients leave more of the error in flat directions in centred
# coordinates than in plain ones: with a third of tol the objective was never above that of plain L-BFGS with tol.  In
# whitened coordinates further digits are cheap.
CENTRED_MARGIN, WHITENED_MARGIN = 0.3, 1e-4
COARSE_TOL = 3e-5  # at or above this tol, the Hessian takes longer than the iterations that it saves
# Shares of the diagonal of the Hessian that are added to it until it is positive definite, which rounding may prevent
# along directions in which almost all rows are certain.  They change the coordinates only.
RIDGES = (0.0, 1e-14, 1e-12, 1e-10, 1e-8)
PROGRESS = 1e-3  # while an objective falls by more than this share of it, new coordinates are worth their Hessian
NEAR_GRADIENT = 1e-2  # if no element of the gradient is larger, the Hessian barely changes any more
MAX_STALLS = 6  # rounds without progress, each followed by iterations in centred coordinates
MAX_POLISHES = 3  # Newton steps after L-BFGS
POLISH_MULTIPLICATIONS = 1e8  # for a Hessian: with fewer, a new one is computed for these steps
HUGE = 1e150  # squares of such elements overflow
CORRECTIONS = 10  # pairs of vectors that L-BFGS keeps


Gradients: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64] | None]"  # by coef and intercept


class Step(NamedTuple):
    """State at the end of an iteration."""

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64] | None
    loss: float  # with penalty
    accuracy: float
    gradient_norm: float
    gradient_max: float  # largest element
    gradients: Gradients  # by coef and intercept, with penalty
    centred: Centred | None = None

    # The figures that need centred features are computed on request: with few rows they would take a tenth of a fit.
    @property
    def scaled_max(self) -> float:
        """Largest element of the gradient for centred features of unit variance."""
        return math.inf if self.centred is None else self.centred.measure_gradient(*self.gradients)

    @property
    def spread(self) -> float:
        """Largest difference of coefficients of two classes for features of unit variance."""
        if self.centred is None:
            return math.inf
        return float((np.ptp(self.coef, axis=0) * self.centred.unit).max(initial=0))

    @property
    def decrement(self) -> float:
        """Decrease of the loss by Newton steps of the single coefficients."""
        return math.inf if self.centred is None else self.centred.measure_decrement(*self.gradients)


class End(NamedTuple):
    """Where a fit has ended."""

    step: Step
    iterations: int
    converged: bool  # no element of the gradient is above tol, for the features as they are or for unit variance


class Coordinates(Protocol):
    """A change of variables between (coef, intercept) and a flat vector u."""

    def parameters(self, u: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return coef and intercept at u."""

    def coordinates(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return u of coef and intercept."""

    def gradient(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return the gradient by u, from those by coef and intercept."""


class Centred:
    """Centred and scaled coordinates."""

    def __init__(self, objective: Objective, penalty: float, has_intercept: bool):
        """Estimate the curvatures from the moments of the features."""
        k = objective.classes
        h = (k - 1) / k**2 if k > 1 else 1.0  # curvature of the loss by a logit, at equal probabilities
        h /= objective.options.temperature**2
        mean, std = objective.moments()
        if not has_intercept:
            std = np.hypot(std, mean)
            mean = np.zeros_like(mean)
        root = np.hypot(math.sqrt(h) * std, math.sqrt(penalty))  # of the curvature
        positive = root > 0  # false for a constant feature without penalty, whose gradient is 0
        self.scale = np.where(positive, np.where(positive, root, 1) ** -0.5, 1)
        self.unit = np.where(std > 0, std, 1)
        self.mean, self.intercept_scale = mean, h**-0.5
        self.shape = k, objective.features, has_intercept

    def parameters(self, u: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return coef and intercept at u."""
        k, d, has_intercept = self.shape
        u = u.reshape(k, d + has_intercept)
        coef = u[:, :d] * self.scale
        return coef, u[:, d] * self.intercept_scale - coef @ self.mean if has_intercept else None

    def coordinates(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return u of coef and intercept."""
        parts = [coef / self.scale]
        if intercept is not None:
            parts.append(((intercept + coef @ self.mean) / self.intercept_scale)[:, None])
        return np.hstack(parts).ravel()

    def gradient(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return the gradient by u, from those by coef and intercept."""
        if intercept is None:
            return (coef * self.scale).ravel()
        return np.hstack(
            [(coef - np.outer(intercept, self.mean)) * self.scale, (intercept * self.intercept_scale)[:, None]]
        ).ravel()

    def measure_gradient(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> float:
        """Largest element of the gradient for centred features of unit variance, from that by coef and intercept."""
        largest = 0.0
        if intercept is not None:
            coef = coef - np.outer(intercept, self.mean)
            largest = float(np.abs(intercept).max())
        return max(largest, float(np.abs(coef / self.unit).max(initial=0)))

    def measure_decrement(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> float:
        """Half the sum of the squares of the gradient's elements, divided by their curvatures: free of units."""
        decrement = 0.0
        if intercept is not None:
            coef = coef - np.outer(intercept, self.mean)
            decrement = float(np.sum(np.square(intercept * self.intercept_scale))) / 2
        with np.errstate(over="ignore"):
            return decrement + float(np.sum(np.square(coef * self.scale**2))) / 2


class Whitened:
    """Coordinates L' (coef, shift), where L L' is the Hessian for the logits coef (x - origin) + shift."""

    def __init__(self, hessian: NDArray[np.float64], centred: Centred):
        """Factor the Hessian."""
        from scipy.linalg import cholesky

        self.factor = cholesky(hessian, lower=True)
        k, d, has_intercept = centred.shape
        self.shape, self.origin = (k, d + has_intercept, has_intercept), centred.mean

    def parameters(self, u: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """Return coef and intercept at u."""
        from scipy.linalg import solve_triangular

        k, columns, has_intercept = self.shape
        joined = solve_triangular(self.factor, u, lower=True, trans="T").reshape(k, columns)
        if not has_intercept:
            return joined, None
        coef = joined[:, :-1]
        return coef, joined[:, -1] - coef @ self.origin

    def coordinates(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return u of coef and intercept."""
        if intercept is not None:
            coef = np.hstack([coef, (intercept + coef @ self.origin)[:, None]])
        return self.factor.T @ coef.ravel()

    def gradient(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> NDArray[np.float64]:
        """Return the gradient by u, from those by coef and intercept."""
        from scipy.linalg import solve_triangular

        if intercept is not None:
            coef = np.hstack([coef - np.outer(intercept, self.origin), intercept[:, None]])
        return solve_triangular(self.factor, coef.ravel(), lower=True)


def whiten(objective: Objective, step: Step, penalty: float, centred: Centred) -> Whitened | None:
    """Coordinates of the Hessian at a step, or None if it is not finite and positive definite."""
    from scipy.linalg import LinAlgError

    k, d = step.coef.shape
    columns = d + (step.intercept is not None)
    size = k * columns
    max_rows = max(1, int(HESSIAN_MULTIPLICATIONS / size**2))
    with np.errstate(over="ignore", invalid="ignore"):
        hessian = objective.hessian(step.coef, step.intercept, max_rows, centred.mean)
    if not np.isfinite(hessian).all():
        return None
    places = np.arange(size).reshape(k, columns)
    hessian[places[:, :d].ravel(), places[:, :d].ravel()] += penalty
    # Adding a number to all logits changes no probability, so that a column of coefficients of equal numbers has the
    # curvature of the penalty at most, and the intercepts none: that direction gets the mean curvature of its column.
    curvatures = np.diagonal(hessian).reshape(k, columns).mean(axis=0)
    for column, curvature in enumerate(curvatures):
        hessian[np.ix_(places[:, column], places[:, column])] += curvature / k
    diagonal = np.diagonal(hessian).copy()
    for share in RIDGES:
        np.fill_diagonal(hessian, diagonal * (1 + share))
        with contextlib.suppress(LinAlgError):
            return Whitened(hessian, centred)
    return None


class _Minimizer:
    """State of one call of `minimize`: evaluates steps, counts iterations."""

    def __init__(
        self,
        objective: Objective,
        coef: NDArray[np.float64],
        intercept: NDArray[np.float64] | None,
        penalty: float,
        max_iterations: int,
        frozen: NDArray[np.bool_] | None,
        after_iteration: Callable[[Step], bool] | None,
    ):
        self.objective, self.penalty, self.max_iterations = objective, penalty, max_iterations
        self.start, self.frozen, self.after_iteration = (coef, intercept), frozen, after_iteration
        self.count, self.done = 0, False
        self.centred: Centred | None = None

    def step_at(self, coef: NDArray[np.float64], intercept: NDArray[np.float64] | None) -> Step:
        """Evaluate at coef and intercept."""
        frozen, dtype = self.frozen, self.objective.dtype
        if frozen is not None:  # restore their bits, which the change of coordinates may have rounded
            for p, kept in zip((coef, intercept), self.start, strict=True):
                if p is not None and kept is not None:
                    p[frozen] = kept[frozen]
        at = self.objective.evaluate(coef.astype(dtype), None if intercept is None else intercept.astype(dtype))
        grad_coef = at.grad_coef.astype(np.float64) + self.penalty * coef
        grads = [grad_coef] if intercept is None else [grad_coef, at.grad_intercept]
        if frozen is not None:
            for grad in grads:
                grad[frozen] = 0
        flat = np.concatenate([g.ravel() for g in grads])
        loss = at.loss + self.penalty / 2 * float(np.vdot(coef, coef))
        largest = float(np.abs(flat).max(initial=0))
        norm = math.sqrt(float(flat @ flat)) if largest < HUGE else largest * math.hypot(*(flat / largest))
        gradients = grad_coef, None if intercept is None else at.grad_intercept
        return Step(coef, intercept, loss, at.accuracy, norm, largest, gradients, self.centred)

    def end_iteration(self, step: Step) -> None:
        """Count an iteration, and decide whether it is the last one."""
        self.count += 1
        stops = self.after_iteration is not None and self.after_iteration(step)
        self.done = bool(stops) or self.count >= self.max_iterations

    def polish(self, coordinates: Whitened, step: Step, goal: float) -> Step:
        """Take up to `MAX_POLISHES` Newton steps that at least halve the gradient.

        A line search ends where differences of the objective vanish in rounding, at about the root of the precision of
        the gradient.
        """
        for _ in range(MAX_POLISHES):
            if self.done or step.gradient_max <= goal:
                break
            u = coordinates.coordinates(step.coef, step.intercept)
            u -= coordinates.gradient(*step.gradients)
            trial = self.step_at(*coordinates.parameters(u))
            if trial.gradient_max > step.gradient_max / 2:
                break
            step = trial
            self.end_iteration(step)
        return step

    def descend(self, coordinates: Coordinates, start: Step, goal: float, near: float = 0.0) -> Step:
        """Iterate until no element of the gradient exceeds `goal`, or until an iteration stops the fit.

        near: a goal that is also reached by the gradient for features of unit variance.
        """
        from scipy import optimize

        last = start

        def value(u: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            nonlocal last
            last = self.step_at(*coordinates.parameters(u))
            return last.loss, coordinates.gradient(*last.gradients)

        def after_iteration(intermediate_result: Any) -> None:  # SciPy requires this name of the argument
            nonlocal start
            start = last
            if start.loss != intermediate_result.fun:  # the line search has returned to an earlier trial
                start = self.step_at(*coordinates.parameters(intermediate_result.x))
            self.end_iteration(start)
            if self.done or start.gradient_max <= max(goal, near) or (near > 0 and start.scaled_max <= near):
                raise StopIteration

        optimize.minimize(
            value,
            coordinates.coordinates(start.coef, start.intercept),
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            options={
                "maxiter": self.max_iterations - self.count,
                "maxfun": 100 * self.max_iterations,
                "maxls": 50,
                "maxcor": CORRECTIONS,
                "gtol": 0,
                "ftol": 0,
            },
        )
        return start


def minimize(
    objective: Objective,
    coef: NDArray[np.float64],
    intercept: NDArray[np.float64] | None,
    *,
    penalty: float,
    tol: float,
    max_iterations: int,
    frozen: NDArray[np.bool_] | None = None,
    after_iteration: Callable[[Step], bool] | None = None,
) -> End:
    """Minimise from coef and intercept.

    frozen: classes whose parameters do not change.  after_iteration(step): a true result stops the fit.
    """
    has_intercept = intercept is not None
    small = coef.size + has_intercept * len(coef) <= MAX_HESSIAN_PARAMETERS and penalty > 0 and frozen is None
    small = small and tol < COARSE_TOL
    minimizer = _Minimizer(objective, coef, intercept, penalty, max_iterations, frozen, after_iteration)
    step = minimizer.step_at(coef.copy(), None if intercept is None else intercept.copy())
    if step.gradient_max <= tol:
        return End(step, 0, True)
    centred = minimizer.centred = Centred(objective, penalty, has_intercept)
    with np.errstate(over="ignore"):  # a trial step of the line search may be far away
        if max_iterations > 0:
            step = minimizer.descend(centred, step, CENTRED_MARGIN * tol, NEAR_GRADIENT * small)
        stalls = 0
        while small and step.gradient_max > CENTRED_MARGIN * tol and not minimizer.done:
            coordinates = whiten(objective, step, penalty, centred)
            before = step
            if coordinates is not None:
                step = minimizer.descend(coordinates, step, WHITENED_MARGIN * tol)
                multiplications = objective.rows * step.coef.size**2
                if step.gradient_max > WHITENED_MARGIN * tol and multiplications <= POLISH_MULTIPLICATIONS:
                    coordinates = whiten(objective, step, penalty, centred) or coordinates
                step = minimizer.polish(coordinates, step, WHITENED_MARGIN * tol)
            halved = step.gradient_max <= before.gradient_max / 2 or step.scaled_max <= before.scaled_max / 2
            if coordinates is not None and (halved or step.loss < before.loss - PROGRESS * abs(before.loss)):
                continue
            # Rounding prevents progress in these coordinates, along directions that only the penalty bends; a few
            # iterations in the others lead to a point where it often does not.
            stalls += 1
            if stalls == MAX_STALLS or step.scaled_max <= tol or minimizer.done:
                break
            step = minimizer.descend(centred, step, CENTRED_MARGIN * tol)
    return End(step, minimizer.count, min(step.gradient_max, step.scaled_max) <= tol)
