"""Newton's method for concave log-likelihoods, and covariances of their maxima."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize

from .choice_objective import Sums

STEPS = 40  # halvings of a step
_CONSTANT = 1e-20  # of the sum of squares of a column: what rounding leaves where it is constant within groups
_RANK = 1e-11  # least eigenvalue of a Hessian with unit diagonal that counts as regular


class Columns(NamedTuple):
    """Names of coefficients, and the sums of squares of their columns, 0 if they are not known."""

    names: list[str]
    squares: Any


class Maximum(NamedTuple):
    """Where an ascent has ended."""

    beta: Any
    sums: Sums
    information: Any  # with the penalty; None if it has not been computed
    iterations: int
    has_converged: bool


def factor(information: Any, columns: Columns) -> Any:
    """The Cholesky factor, or a LinAlgError that names the columns that are linear combinations of others."""
    scale = np.sqrt(np.diag(information))
    problem = np.flatnonzero(~(np.diag(information) > _CONSTANT * columns.squares) | ~(scale > 0))
    if not len(problem):
        values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
        if values[0] > _RANK:
            return scipy.linalg.cho_factor(information)
        null = vectors[:, 0] / np.abs(vectors[:, 0]).max()
        problem = np.flatnonzero(np.abs(null) > 1e-6)
    shown = ", ".join(columns.names[i] for i in problem)
    raise np.linalg.LinAlgError(
        f"the Hessian is singular: within groups these columns of X are constant or collinear: {shown}. Drop one of "
        "them, or use penalty_l2"
    )


def ascend(
    evaluate: Callable[[Any], Sums], beta: Any, penalty: float, columns: Columns, max_iter: int, tol: float
) -> Maximum:
    """Maximise by Newton steps, halved while the objective falls, until one is worth no more than tol."""
    sums: Any = evaluate(beta)
    iterations, has_converged = 0, len(beta) == 0
    ridge = penalty * np.eye(len(beta))
    while not has_converged and iterations < max_iter:
        gradient = sums.gradient - penalty * beta
        step = scipy.linalg.cho_solve(factor(sums.information + ridge, columns), gradient)
        worth = 0.5 * float(gradient @ step)
        before = sums.loglik - 0.5 * penalty * float(beta @ beta)
        has_converged = worth <= tol
        for _ in range(STEPS):
            after = evaluate(beta + step)
            value = after.loglik - 0.5 * penalty * float((beta + step) @ (beta + step))
            if value >= before - 1e-12 * abs(before):
                break
            step = step / 2
        beta, sums = beta + step, after
        iterations += 1
    if not has_converged:
        warn_unconverged(max_iter)
    return Maximum(beta, sums, sums.information + ridge if len(beta) else ridge, iterations, has_converged)


def warn_unconverged(max_iter: int) -> None:
    """Warn that the coefficients are not those of a maximum."""
    message = f"the fit has not converged after {max_iter} iterations; the choices may be separable: use penalty_l2"
    warnings.warn(message, UserWarning, stacklevel=4)


def differentiate(gradient: Callable[[Any], Any], beta: Any) -> Any:
    """Minus the Hessian by central differences of an exact gradient, symmetric."""
    d = len(beta)
    found = np.empty((d, d))
    for i in range(d):
        step = 6e-6 * max(1.0, abs(float(beta[i])))
        ahead, behind = beta.copy(), beta.copy()
        ahead[i] += step
        behind[i] -= step
        found[i] = -(gradient(ahead) - gradient(behind)) / (ahead[i] - behind[i])
    return 0.5 * (found + found.T)


def ascend_without_hessian(
    evaluate: Callable[[Any], Sums],
    beta: Any,
    penalty: float,
    columns: Columns,
    max_iter: int,
    tol: float,
    *,
    polishes: bool = True,
) -> Maximum:
    """The same with L-BFGS on the exact gradient, and Newton steps with differences of it at the end."""

    def objective(b: Any) -> tuple[float, Any]:
        sums = evaluate(b)
        return -sums.loglik + 0.5 * penalty * float(b @ b), -sums.gradient + penalty * b

    options = {"maxiter": 20 * max_iter, "ftol": 1e-15, "gtol": tol, "maxcor": 20}
    found = scipy.optimize.minimize(objective, beta, jac=True, method="L-BFGS-B", options=options)
    if not polishes:
        slope = np.abs(found.jac).max(initial=0)
        if slope > 1e-4 * max(1.0, abs(found.fun)) ** 0.5:
            warn_unconverged(20 * max_iter)
        return Maximum(found.x, evaluate(found.x), None, int(found.nit), True)

    def with_hessian(b: Any) -> Sums:
        return evaluate(b)._replace(information=differentiate(lambda at: evaluate(at).gradient, b))

    end = ascend(with_hessian, found.x, penalty, columns, max_iter, tol)
    return end._replace(iterations=int(found.nit) + end.iterations)


def invert(information: Any, columns: Columns) -> Any:
    """The inverse, symmetric."""
    if not len(information):
        return information
    inverse = scipy.linalg.cho_solve(factor(information, columns), np.eye(len(information)))
    return 0.5 * (inverse + inverse.T)


def sandwich(inverse: Any, scores: Any, clusters: Any | None) -> Any:
    """H^-1 (sum of g g') H^-1, with the scores of a cluster added first."""
    if clusters is not None:
        totals = np.zeros((int(clusters.max(initial=-1)) + 1, scores.shape[1]))
        np.add.at(totals, clusters, scores)
        scores = totals
    return inverse @ (scores.T @ scores) @ inverse
