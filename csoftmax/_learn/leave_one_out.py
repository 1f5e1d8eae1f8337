"""Approximate leave-one-out log loss of softmax regression, for a falling penalty.

Row i has the features x_i (with a 1 for the intercept), targets t_i (one for each class: sample weight * class weight *
smoothed label), their sum m_i and, at the minimum, probabilities p_i.  With W, the sum of the weights, the objective
times W is

    sum_i [m_i logsumexp(z_i / T) - t_i . z_i / T] + alpha/2 |coef|^2,   z_i = coef x_i,   alpha = penalty * W,

with gradient g_i = (m_i p_i - t_i) / T and curvature V_i = m_i (diag p_i - p_i p_i') / T^2 by the logits, and a Hessian
H.  One Newton step of the objective without row i, from the minimum with it, moves the logits of row i by

    A_i (I - V_i A_i)^-1 g_i,   A_i = (I (x) x_i') H^-1 (I (x) x_i)

(Rad & Maleki 2020, "A scalable estimate of the out-of-sample prediction error via approximate leave-one-out
cross-validation"; here with K logits a row and the Woodbury identity).  The score of a penalty is the weighted mean
cross-entropy of these logits, without label smoothing.  alpha, not the penalty, stays the same when a row is left out.

* Adding a number to all logits changes no probability: H is singular.  The variables are the differences to the last
  class; the sum of squares becomes coef' (I - 11'/K) coef.  Frozen classes take the place of the last one: their logits
  are constants, and the squares stay as they are.
* Classes without weight in the data have probability 0 and take no part.  A row that is the only one of its class has
  no finite loss when it is left out, whatever the penalty, so it is not scored.
* Fewer rows than features: the minimum is a combination of the centred rows, so the eigenvectors of their Gram matrix
  replace the features.  This changes neither objective nor penalty.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._ops.softmax import log_softmax
from .objective import Options, is_sparse

Array = NDArray[np.float64]
Map = Callable[[Callable[[Any], Any], list[Any]], list[Any]]

DECREMENT = 1e-5  # of the objective, by a further Newton step: a score needs no more
MAX_STEPS = 200  # of L-BFGS for one penalty
TINY = 1e-14  # of the largest variance: that of a constant column, but for rounding
CHUNKS = 4  # of the rows; threads work on them


class Targets(NamedTuple):
    """Weights of the rows by class; the classes are those that take part, the variable ones first."""

    t: Array  # (N, C)
    mass: Array  # (N,): sums over the classes
    score: Array  # (N,): weights of the rows in the score; 0 for the only row of a class
    y: NDArray[np.intp]
    classes: NDArray[np.intp]
    variable: int  # number of classes with variables of their own
    is_gauged: bool  # whether the last class is the origin of the others; False: the others are frozen


def make_targets(
    y: NDArray[np.intp],
    sample_weight: Array | None,
    options: Options,
    classes: int,
    frozen: NDArray[np.bool_] | None,
) -> Targets:
    """Sort the classes, and weigh the rows."""
    s = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight, np.float64)
    c = np.ones(classes) if options.weight is None else np.asarray(options.weight, np.float64)
    smoothing = options.label_smoothing
    t = np.outer(s, c * (smoothing / classes))
    t[np.arange(len(y)), y] += s * c[y] * (1 - smoothing)
    frozen = np.zeros(classes, bool) if frozen is None else frozen
    occurs = t.sum(axis=0) > 0
    variable, fixed = np.flatnonzero(occurs & ~frozen), np.flatnonzero(frozen)
    is_gauged = not len(fixed)
    order = np.concatenate([variable, fixed])
    alone = np.bincount(y[s * c[y] > 0], minlength=classes)[y] < 2
    place = np.full(classes, -1)
    place[order] = np.arange(len(order))
    t = np.ascontiguousarray(t[:, order])
    score = np.where(alone | (place[y] < 0), 0, s * c[y])
    return Targets(t, t.sum(axis=1), score, place[y], order, max(0, len(variable) - is_gauged), is_gauged)


def compute_usual_variance(variances: Array, squares: Array) -> float:
    """Return the geometric mean of the variances of the columns that are not constant; 1 if all are.

    squares: means of the squares of the columns, whose rounding is all that the variance of a constant column has.
    """
    positive = variances[variances > TINY * squares]
    return float(np.exp(np.log(positive).mean())) if len(positive) else 1.0


class Design:
    """Features of the path: centred, scaled by one number, as many as there are rows if these are fewer."""

    def __init__(self, x: Any, mass: Array, has_intercept: bool):
        """Copy X, or decompose its Gram matrix."""
        n, d = x.shape
        largest = float(abs(x).max()) if d else 0.0
        self.scale = largest or 1.0  # squares of larger numbers may overflow
        x = x.astype(np.float64) / self.scale
        self.mean = np.asarray(x.T @ (mass / mass.sum())) if has_intercept else np.zeros(d)
        self.has_intercept = has_intercept
        self.x: Any = x
        self.back: Array | None = None
        if n < d:
            gram = x @ x.T
            gram = gram.toarray() if is_sparse(gram) else gram
            if has_intercept:
                row = np.asarray(x @ self.mean)
                gram += float(self.mean @ self.mean) - row[:, None] - row
            values, vectors = np.linalg.eigh(gram)
            kept = values > n * np.finfo(np.float64).eps * max(values[-1], 0)
            root = np.sqrt(values[kept])
            features, self.back = vectors[:, kept] * root, vectors[:, kept] / root
        else:
            features = (x.toarray() if is_sparse(x) else x) - self.mean
            self.x = None  # not needed any more
        self.features = features.shape[1]
        self.matrix = np.hstack([features, np.ones((n, 1))]) if has_intercept else np.ascontiguousarray(features)
        if self.back is None:
            variances = np.square(features).T @ (mass / mass.sum())
        else:
            square = x.multiply(x) if is_sparse(x) else np.square(x)
            variances = np.maximum(square.T @ (mass / mass.sum()) - self.mean**2, 0)
        self.variance = compute_usual_variance(variances, variances + self.mean**2)

    def parameters(self, variables: Array) -> tuple[Array, Array | None]:
        """Coefficients and intercepts for X itself, from variables of shape (classes, columns)."""
        coef = variables[:, : self.features]
        if self.back is not None:
            combination = coef @ self.back.T
            coef = np.asarray((self.x.T @ combination.T).T)
            coef -= np.outer(combination.sum(axis=1), self.mean)
        intercept = variables[:, -1] - coef @ self.mean if self.has_intercept else None
        return coef / self.scale, intercept


class Path:
    """Minima of the objective for a falling alpha, and their scores; everything is divided by the sum of the masses."""

    def __init__(self, design: Design, targets: Targets, temperature: float, fixed_logits: Array, map_parts: Map):
        """Start at coefficients of 0.

        fixed_logits: (N, C - variable), those of the classes without variables.  map_parts: calls a function for each
        item of a list, on threads.
        """
        self.design, self.targets, self.temperature, self.map = design, targets, temperature, map_parts
        total = float(targets.mass.sum())
        self.t, self.mass = targets.t / total, targets.mass / total
        k, columns = targets.variable, design.matrix.shape[1]
        self.shape = k, columns
        self.logits = np.zeros((len(self.t), self.t.shape[1]))
        self.logits[:, k:] = fixed_logits
        self.penalised = np.zeros(columns)
        self.penalised[: design.features] = 1
        self.coupling = np.eye(k) - (1 / (k + 1) if targets.is_gauged else 0)
        self.variables = np.zeros(self.shape)
        self.freedom = np.ones(len(self.t))  # determinants of what is left of each row's weight beside its influence
        if design.has_intercept and targets.is_gauged:
            share = self.t.sum(axis=0)
            self.variables[:, -1] = self.temperature * np.log(share[:-1] / share[-1])
        self.curvature: Array | None = None  # the Hessian of the loss, at recent variables

    def logits_at(self, variables: Array) -> Array:
        """Logits of all classes, in an array that the next call overwrites."""
        np.matmul(self.design.matrix, variables.T, out=self.logits[:, : self.targets.variable])
        return self.logits

    def evaluate(self, variables: Array, alpha: float) -> tuple[float, Array, Array]:
        """Objective, its gradient, and the probabilities."""
        k, temperature = self.targets.variable, self.temperature
        log_p = log_softmax(self.logits_at(variables), temperature=temperature)
        p = np.exp(log_p)
        loss = -float(np.vdot(self.t, log_p))
        pull = alpha * (self.coupling @ (variables * self.penalised))
        residual = (self.mass[:, None] * p[:, :k] - self.t[:, :k]) / temperature
        return loss + 0.5 * float(np.vdot(variables, pull)), residual.T @ self.design.matrix + pull, p

    def hessian(self, p: Array) -> Array:
        """Hessian of the loss, (variable * columns) squared."""
        (k, columns), x = self.shape, self.design.matrix
        mass = self.mass / self.temperature**2

        def add(part: slice) -> Array:
            root = np.sqrt(mass[part, None]) * p[part, :k]
            factor = (root[:, :, None] * x[part, None, :]).reshape(-1, k * columns)
            result = (-(factor.T @ factor)).reshape(k, columns, k, columns)
            for j in range(k):
                weighted = x[part] * np.sqrt(mass[part] * p[part, j])[:, None]
                result[j, :, j] += weighted.T @ weighted
            return result.reshape(k * columns, k * columns)

        step = -(-len(x) // CHUNKS)
        parts = self.map(add, [slice(begin, begin + step) for begin in range(0, len(x), step)])
        return functools.reduce(np.add, parts)

    def factor(self, alpha: float) -> Array:
        """Lower Cholesky factor of the Hessian at recent variables, with the penalty; raises LinAlgError."""
        from scipy.linalg import cholesky

        assert self.curvature is not None
        k, columns = self.shape
        hessian = self.curvature.copy().reshape(k, columns, k, columns)
        for c in range(self.design.features):
            hessian[:, c, :, c] += alpha * self.coupling
        return cholesky(hessian.reshape(k * columns, -1), lower=True, overwrite_a=True)

    def minimise(self, alpha: float) -> Array:
        """Move the variables to the minimum for alpha, and return its probabilities.

        L-BFGS in coordinates whitened by the Hessian at the minimum for the alpha before, with the new penalty: half
        as long as Newton's method, which takes two or three Hessians.
        """
        from scipy import optimize
        from scipy.linalg import solve_triangular

        if self.curvature is None:
            self.curvature = self.hessian(self.evaluate(self.variables, alpha)[2])
        factor = self.factor(alpha)
        decrement = math.inf  # of the objective by a Newton step, about

        def value(u: Array) -> tuple[float, Array]:
            nonlocal decrement
            variables = solve_triangular(factor, u, lower=True, trans="T", check_finite=False)
            loss, gradient, _ = self.evaluate(variables.reshape(self.shape), alpha)
            gradient = solve_triangular(factor, gradient.ravel(), lower=True, check_finite=False)
            decrement = float(gradient @ gradient) / loss
            return loss, gradient

        def stop(_: Array) -> None:
            if decrement <= DECREMENT:
                raise StopIteration

        start = factor.T @ self.variables.ravel()
        options = {"maxiter": MAX_STEPS, "maxls": 50, "gtol": 0, "ftol": 0}
        u = optimize.minimize(value, start, jac=True, method="L-BFGS-B", callback=stop, options=options).x
        self.variables = solve_triangular(factor, u, lower=True, trans="T").reshape(self.shape)
        return self.evaluate(self.variables, alpha)[2]

    def compute_losses(self, alpha: float) -> Array:
        """Approximate leave-one-out log loss of each row at the minimum for alpha."""
        p = self.minimise(alpha)
        k, temperature, mass = self.targets.variable, self.temperature, self.mass
        self.curvature = self.hessian(p)
        leverage = self.compute_leverages(self.factor(alpha))
        p = p[:, :k]
        gradient = (mass[:, None] * p - self.t[:, :k]) / temperature
        curvature = -(mass / temperature**2)[:, None, None] * p[:, :, None] * p[:, None, :]
        curvature[:, range(k), range(k)] += (mass / temperature**2)[:, None] * p
        matrix = -(curvature @ leverage)
        matrix[:, range(k), range(k)] += 1
        self.freedom = np.linalg.det(matrix)
        moved = (leverage @ np.linalg.solve(matrix, gradient[:, :, None]))[:, :, 0]
        logits = self.logits_at(self.variables)
        logits[:, :k] += moved
        return self.compute_log_losses(logits)

    def compute_log_losses(self, logits: Array) -> Array:
        """Cross-entropy of each row that has a weight in the score; 0 elsewhere."""
        rows, losses = np.flatnonzero(self.targets.score), np.zeros(len(logits))
        losses[rows] = -log_softmax(logits[rows], temperature=self.temperature)[
            np.arange(len(rows)), self.targets.y[rows]
        ]
        return losses

    def compute_leverages(self, factor: Array) -> Array:
        """(N, variable, variable): covariances of the logits of each row, for a Hessian with this factor."""
        from scipy.linalg.lapack import dpotri

        (k, columns), x = self.shape, self.design.matrix
        inverse, _ = dpotri(factor, lower=1)  # its lower triangle
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        inverse = inverse.reshape(k, columns, k, columns)
        result = np.empty((len(x), k, k))

        def fill(pair: tuple[int, int]) -> None:
            i, j = pair
            result[:, i, j] = result[:, j, i] = np.einsum("nc,nc->n", x @ inverse[i, :, j], x)

        self.map(fill, [(i, j) for j in range(k) for i in range(j + 1)])
        return result
