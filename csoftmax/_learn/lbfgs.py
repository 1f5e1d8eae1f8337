"""SciPy's L-BFGS-B in coordinates in which softmax regression is easy.

Two changes of variables, neither of which touches the data:

* Centred and scaled: logits are coef (x - mean) + shift, and each column of coef is measured in (curvature of its
  feature) to the power -1/4.  Against plain variables 2 to 30 times fewer iterations (CONTRIBUTING.md, "Decisions").
* For few parameters, once the first has come near: the Cholesky factor of the Hessian there.  The rest takes some ten
  iterations, to the last digits.

They change the path, not the objective.
"""

import math
from typing import NamedTuple

import numpy as np

FEW_PARAMETERS = 1500  # whose Hessian is worth its time
HESSIAN_WORK = 2e9  # multiplications; more rows than that allows are sampled
# Of tol: what is aimed at.  In these coordinates more of the error is left in flat directions than in plain ones; with
# a third the objective was never above that of plain L-BFGS with the same tol.  The Hessian makes much more cheap to
# reach.
MARGIN, POLISH = 0.3, 1e-4
COARSE = 3e-5  # a tol from which on the Hessian takes longer than the iterations that it saves
NEAR = 1e-2  # largest element of the gradient, from which the Hessian hardly changes
MEMORY = 10


class Step(NamedTuple):
    """What an iteration ends with."""

    coef: np.ndarray
    intercept: np.ndarray | None
    loss: float  # with penalty
    accuracy: float
    gradient_norm: float
    gradient_max: float


class Centred:
    """Coordinates u of (coef, intercept), flat; curvature h of a logit at equal probabilities."""

    def __init__(self, objective, penalty, has_intercept):
        k = objective.classes
        h = (k - 1) / k**2 if k > 1 else 1.0
        h /= objective.options.temperature**2
        mean, variance = objective.moments()
        if not has_intercept:
            variance += mean**2
            mean = np.zeros_like(mean)
        curvature = h * variance + penalty
        positive = curvature > 0  # a constant feature without penalty: its gradient is 0
        self.scale = np.where(positive, np.where(positive, curvature, 1) ** -0.25, 1)
        self.mean, self.of_intercept = mean, h**-0.5
        self.shape = k, objective.features, has_intercept

    def parameters(self, u):
        k, d, has_intercept = self.shape
        u = u.reshape(k, d + has_intercept)
        coef = u[:, :d] * self.scale
        return coef, u[:, d] * self.of_intercept - coef @ self.mean if has_intercept else None

    def coordinates(self, coef, intercept):
        parts = [coef / self.scale]
        if intercept is not None:
            parts.append(((intercept + coef @ self.mean) / self.of_intercept)[:, None])
        return np.hstack(parts).ravel()

    def gradient(self, coef, intercept):
        if intercept is None:
            return (coef * self.scale).ravel()
        return np.hstack(
            [(coef - np.outer(intercept, self.mean)) * self.scale, (intercept * self.of_intercept)[:, None]]
        ).ravel()


class Whitened:
    """Coordinates L' (coef, intercept), with L L' the Hessian."""

    def __init__(self, hessian, shape, has_intercept):
        from scipy.linalg import cholesky

        self.factor = cholesky(hessian, lower=True)
        self.shape = shape[0], shape[1] + has_intercept, has_intercept

    def parameters(self, u):
        from scipy.linalg import solve_triangular

        k, columns, has_intercept = self.shape
        all_ = solve_triangular(self.factor, u, lower=True, trans="T").reshape(k, columns)
        return (all_[:, :-1], all_[:, -1]) if has_intercept else (all_, None)

    def _joined(self, coef, intercept):
        return (coef if intercept is None else np.hstack([coef, intercept[:, None]])).ravel()

    def coordinates(self, coef, intercept):
        return self.factor.T @ self._joined(coef, intercept)

    def gradient(self, coef, intercept):
        from scipy.linalg import solve_triangular

        return solve_triangular(self.factor, self._joined(coef, intercept), lower=True)


def whitened(objective, step, penalty, has_intercept):
    """The Hessian's coordinates at a step, or None where there are none."""
    from scipy.linalg import LinAlgError

    k, d = step.coef.shape
    columns = d + has_intercept
    size = k * columns
    hessian = objective.hessian(step.coef, step.intercept, max(1, int(HESSIAN_WORK / size**2)))
    places = np.arange(size).reshape(k, columns)
    hessian[places[:, :d].ravel(), places[:, :d].ravel()] += penalty
    # adding one number to all classes changes no probability: that direction is given the curvature of the others
    mean = np.trace(hessian) / size
    for column in range(columns) if penalty == 0 else range(d, columns):
        hessian[np.ix_(places[:, column], places[:, column])] += mean / k
    try:
        return Whitened(hessian, step.coef.shape, has_intercept)
    except LinAlgError:
        return None


def minimize(objective, coef, intercept, *, penalty, tol, most_iterations, frozen=None, after=None):
    """(last step, number of iterations, whether it converged: no element of the gradient above tol).

    frozen: classes whose parameters stay.  after(step): called after each iteration; true stops.
    """
    from scipy import optimize

    has_intercept, dtype = intercept is not None, objective.x.dtype
    small = coef.size + has_intercept * len(coef) <= FEW_PARAMETERS and penalty > 0 and frozen is None
    small = small and tol < COARSE
    count, done, given = 0, False, (coef, intercept)

    def step_at(coef, intercept):
        if frozen is not None:  # to the last bit, whatever the coordinates have rounded
            for now, before in zip((coef, intercept), given, strict=True):
                if now is not None:
                    now[frozen] = before[frozen]
        single = coef.astype(dtype), None if intercept is None else intercept.astype(dtype)
        at = objective.evaluate(*single)
        grads = at.grad_coef.astype(np.float64) + penalty * coef, at.grad_intercept if has_intercept else None
        if frozen is not None:
            for grad in grads[: 1 + has_intercept]:
                grad[frozen] = 0
        flat = np.concatenate([g.ravel() for g in grads if g is not None])
        loss = at.loss + penalty / 2 * float(np.vdot(coef, coef))
        most = float(np.abs(flat).max(initial=0))
        return Step(coef, intercept, loss, at.accuracy, math.sqrt(float(flat @ flat)), most), grads

    def run(coordinates, start, goal):
        """From a step to one whose gradient is at most `goal`, or the end."""
        last = start

        def value(u):
            nonlocal last
            last, grads = step_at(*coordinates.parameters(u))
            return last.loss, coordinates.gradient(*grads)

        def after_iteration(intermediate_result):  # SciPy goes by the name of the argument
            nonlocal count, done, start
            start = last
            if start.loss != intermediate_result.fun:  # the line search ended at an earlier trial
                start = step_at(*coordinates.parameters(intermediate_result.x))[0]
            count += 1
            done = bool(after and after(start)) or count >= most_iterations
            if done or start.gradient_max <= goal:
                raise StopIteration

        optimize.minimize(
            value,
            coordinates.coordinates(start.coef, start.intercept),
            jac=True,
            method="L-BFGS-B",
            callback=after_iteration,
            options={
                "maxiter": most_iterations - count,
                "maxfun": 100 * most_iterations,
                "maxls": 50,
                "maxcor": MEMORY,
                "gtol": 0,
                "ftol": 0,
            },
        )
        return start

    step = step_at(coef.copy(), None if intercept is None else intercept.copy())[0]
    with np.errstate(over="ignore"):  # a trial step of the line search may be far away
        if step.gradient_max > tol and most_iterations > 0:
            step = run(Centred(objective, penalty, has_intercept), step, max(MARGIN * tol, NEAR * small))
        while small and step.gradient_max > MARGIN * tol and not done:
            coordinates = whitened(objective, step, penalty, has_intercept)
            before = step.gradient_max
            step = run(coordinates, step, POLISH * tol) if coordinates else step
            if coordinates is None or step.gradient_max > before / 2:
                break  # as far as the arithmetic goes
    return step, count, step.gradient_max <= tol
