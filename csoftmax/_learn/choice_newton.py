"""Newton's method for concave log-likelihoods, and covariances of their maxima."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize

from .choice_objective import Sums

SEPARABLE = (
    "the choices are separable: some coefficients grow without bound, and their values and standard errors mean "
    "nothing; use penalty_l2"
)
STEPS = 40  # halvings of a step
_CONSTANT = 1e-20  # of the sum of squares of a column: what rounding leaves where it is constant within groups
_FLAT = 1e-3  # information along a direction, as a share of that at coefficients 0, below which it may be flat
_LOST = 1e-6  # log-likelihood that a step along a flat direction may lose by rounding
_RANK = 1e-11  # least eigenvalue of a Hessian with unit diagonal that counts as regular


class Columns(NamedTuple):
    """Names of coefficients, and of their columns the sums of squares, 0 if not known, and deviations within groups."""

    names: list[str]
    squares: Any
    scales: Any


def find_scales(squares: Any, count: int) -> Any:
    """Deviations from their sums of squares over a number of rows; 1 for what is constant."""
    scales = np.sqrt(squares / max(1, count))
    return np.where(scales > 0, scales, 1.0)


class Maximum(NamedTuple):
    """Where an ascent has ended."""

    beta: Any
    sums: Sums
    information: Any  # with the penalty; None if it has not been computed
    iterations: int
    is_separable: bool
    warning: str  # empty if there is none


def factor(information: Any, columns: Columns) -> Any:
    """The Cholesky factor, or a LinAlgError that names the columns that are linear combinations of others."""
    scale = np.sqrt(np.maximum(np.diag(information), 0))  # differences of gradients may leave less than 0
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
    evaluate: Callable[[Any], Sums],
    beta: Any,
    penalty: float,
    columns: Columns,
    max_iter: int,
    tol: float,
    *,
    is_regular: bool = False,
) -> Maximum:
    """Maximise by Newton steps, halved while the objective falls, until one is worth no more than tol.

    is_regular: the columns are known not to be collinear, as they are after the first step from coefficients 0. A
    Hessian that is singular then is so because the log-likelihood has become flat.
    """
    sums: Any = evaluate(beta)
    iterations, has_converged, is_separable = 0, len(beta) == 0, False
    ridge = penalty * np.eye(len(beta))
    while not has_converged and iterations < max_iter:
        gradient = sums.gradient - penalty * beta
        try:
            step = scipy.linalg.cho_solve(factor(sums.information + ridge, columns), gradient)
        except np.linalg.LinAlgError:
            if penalty > 0 or not (is_regular or iterations):
                raise
            is_separable = True
            break
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
    if penalty == 0 and len(beta) and not is_separable:
        is_separable = is_flat(evaluate, beta, sums, columns)
    warning = SEPARABLE if is_separable else "" if has_converged else unconverged(max_iter)
    return Maximum(beta, sums, sums.information + ridge if len(beta) else ridge, iterations, is_separable, warning)


def is_flat(evaluate: Callable[[Any], Sums], beta: Any, sums: Sums, columns: Columns) -> bool:
    """Whether the log-likelihood has no maximum: it still does not fall after a long way on.

    The way is the part of the coefficients that lies in directions without information. These grow without bound in
    a direction in which no choice loses, and nowhere else (Albert & Anderson 1984).
    """
    scaled = sums.information / np.outer(columns.scales, columns.scales)
    if not np.isfinite(scaled).all():
        return False
    values, vectors = np.linalg.eigh(scaled)
    flat = vectors[:, values < _FLAT]
    way = (flat @ (flat.T @ (beta * columns.scales))) / columns.scales
    return bool(way.any() and evaluate(beta + way).loglik >= sums.loglik - _LOST)


def unconverged(max_iter: int) -> str:
    """What to say of coefficients that are not those of a maximum."""
    return f"the fit has not converged after {max_iter} iterations; the choices may be separable: use penalty_l2"


def differentiate(gradient: Callable[[Any], Any], beta: Any, scales: Any) -> Any:
    """Minus the Hessian by central differences of an exact gradient, symmetric; steps suit the scales of columns."""
    d = len(beta)
    found = np.empty((d, d))
    for i in range(d):
        step = 6e-6 * max(1.0 / float(scales[i]), abs(float(beta[i])))
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
    """The same with L-BFGS on the exact gradient, and Newton steps with differences of it at the end.

    The columns are not collinear unless there is a penalty: the caller has asked `factor`, with what is exact, since
    the error of differences hides it.
    """
    scales = columns.scales

    def objective(scaled: Any) -> tuple[float, Any]:
        b = scaled / scales
        sums = evaluate(b)
        return -sums.loglik + 0.5 * penalty * float(b @ b), (-sums.gradient + penalty * b) / scales

    def with_hessian(b: Any) -> Sums:
        return evaluate(b)._replace(information=differentiate(lambda at: evaluate(at).gradient, b, scales))

    options = {"maxiter": 20 * max_iter, "ftol": 1e-15, "gtol": tol, "maxcor": 20}
    found = scipy.optimize.minimize(objective, beta * scales, jac=True, method="L-BFGS-B", options=options)
    reached = found.x / scales
    if not polishes:
        slope = np.abs(found.jac).max(initial=0)
        warning = unconverged(20 * max_iter) if slope > 1e-4 * max(1.0, abs(found.fun)) ** 0.5 else ""
        return Maximum(reached, evaluate(reached), None, int(found.nit), False, warning)

    end = ascend(with_hessian, reached, penalty, columns, max_iter, tol, is_regular=True)
    return end._replace(iterations=int(found.nit) + end.iterations)


def ascend_far(
    evaluate: Callable[[Any], Sums], beta: Any, penalty: float, columns: Columns, max_iter: int, tol: float
) -> Maximum:
    """`ascend`, or with L-BFGS first where offsets of hundreds leave no information at the start or on the way."""
    try:
        end = ascend(evaluate, beta, penalty, columns, max_iter, tol)
    except np.linalg.LinAlgError:
        end = None
    if end is not None and not end.is_separable:
        return end
    return ascend_without_hessian(evaluate, beta, penalty, columns, max_iter, tol)


def invert(end: Maximum, columns: Columns) -> Any:
    """The inverse of the information, symmetric; NaN where a separable problem leaves none."""
    information = end.information
    try:
        inverse = scipy.linalg.cho_solve(factor(information, columns), np.eye(len(information)))
    except np.linalg.LinAlgError:
        if not end.is_separable:
            raise
        return np.full_like(information, np.nan)
    return 0.5 * (inverse + inverse.T)


def sandwich(inverse: Any, scores: Any, clusters: Any | None) -> Any:
    """H^-1 (sum of g g') H^-1, with the scores of a cluster added first."""
    if clusters is not None:
        totals = np.zeros((int(clusters.max(initial=-1)) + 1, scores.shape[1]))
        np.add.at(totals, clusters, scores)
        scores = totals
    return inverse @ (scores.T @ scores) @ inverse
