"""Vector, matrix and Dirichlet calibration: penalised softmax regressions on logits, minimised by SciPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning

from ..._ops.softmax import log_softmax, softmax
from .base import Calibrator, Notes
from .rows import Array, Rows, merge_equal_rows
from .shortage import describe_separation, describe_shortage
from .temperature import describe_nonconvergence, find_temperature
from .terms import Terms, apply, exclude_impossible

if TYPE_CHECKING:
    from .parts import PartsRows, PartsTerms

Penalty = Callable[[Array, Array], tuple[float, Array, Array]]
"""Value and gradients of a penalty on coef and intercept."""

# SciPy's status of a fit that max_iter has ended.  The other one here is a line search that finds no lower point: then
# the loss is at its minimum but for rounding, and more iterations would not help.
ITERATIONS_USED_UP = 1


class Affine(Calibrator):
    """Softmax of W x + b, where x are the logits, or their log-probabilities, at their best temperature.

    With the temperature divided out, a penalty means the same for logits of every scale, and W = I gives the result of
    `TemperatureScaling`, whose prior keeps T within bounds.
    """

    temperature_: float
    coef_: Array
    intercept_: Array
    max_iter: int
    tol: float
    _TAKES_PARTS: ClassVar = True
    _SHAPES: ClassVar = {"temperature": (), "coef": ("K", "K"), "intercept": ("K",)}
    _IS_DIAGONAL: ClassVar = False  # W

    @staticmethod
    def _features(z: Array, temperature: float) -> Array:
        return replace_by_smallest(z / temperature)

    def _fit_penalised(
        self, rows: Rows | PartsRows, factors: tuple[float, float, float]
    ) -> tuple[dict[str, Any], Notes]:
        """Minimise the mean cross-entropy plus a penalty, from the best temperature.

        factors: of the penalties off the diagonal, on it, and on the intercept.
        """
        merged = merge_equal_rows(rows) if isinstance(rows, Rows) else rows
        k = rows.columns
        start = np.ones(k) if self._IS_DIAGONAL else np.eye(k)
        penalty = make_penalty(start, *factors)
        temperature = find_temperature(merged)
        terms: Terms | PartsTerms
        if isinstance(merged, Rows):
            terms = Terms(merged, self._features(merged.z, temperature))
        else:
            terms = merged.open_terms(self._features, temperature)
        history: list[dict[str, float]] = []

        def unpack(u: Array) -> tuple[Array, Array]:
            return u[:-k].reshape(start.shape), u[-k:]

        def value(u: Array) -> tuple[float, Array]:
            coef, intercept = unpack(u)
            loss, grad_coef, grad_intercept = terms.evaluate(coef, intercept)
            extra, extra_coef, extra_intercept = penalty(coef, intercept)
            gradients = (grad_coef + extra_coef).ravel(), grad_intercept + extra_intercept
            return loss + extra, np.concatenate(gradients)

        def record(u: Array) -> float:
            loss, gradient = value(u)
            norm = float(np.abs(gradient).max())
            history.append({"iteration": len(history), "loss": loss, "gradient_norm": norm})
            return norm

        def after_iteration(intermediate_result: Any) -> None:  # SciPy requires this name of the argument
            if record(intermediate_result.x) <= self.tol:
                raise StopIteration

        u = np.concatenate([start.ravel(), np.zeros(k)])
        converged = record(u) <= self.tol
        if not converged:
            result = minimize(
                value,
                u,
                jac=True,
                method="L-BFGS-B",
                callback=after_iteration,
                options={"maxiter": self.max_iter, "maxfun": 100 * self.max_iter, "gtol": 0, "ftol": 0, "maxcor": 20},
            )
            u = result.x
            converged = history[-1]["gradient_norm"] <= self.tol or result.status != ITERATIONS_USED_UP
        coef, intercept = unpack(u)
        notes: Notes = []
        done = "the penalties and the prior of the temperature bound the factors of the logits"
        unbounded = terms.is_separable(coef, intercept, factors)
        if unbounded or not all(factors[1:]):
            done = "without penalties nothing but max_iter and tol ends the fit"
        shortage = describe_shortage(rows, done)
        if unbounded and not shortage:
            shortage = describe_separation(rows.count, done)
        if shortage:
            notes.append((shortage, UserWarning))
        if not converged:
            notes.append((describe_nonconvergence(self, history), ConvergenceWarning))
        return {
            "temperature_": temperature,
            "coef_": np.diag(coef) if self._IS_DIAGONAL else coef,
            "intercept_": intercept,
            "history_": history,
            "n_iter_": len(history) - 1,
            "converged_": converged,
        }, notes

    def _calibrate(self, z: Array) -> Array:
        coef = self.coef_.diagonal() if self._IS_DIAGONAL else self.coef_
        x = exclude_impossible(apply(coef, self.intercept_, self._features(z, self.temperature_)), z)
        return softmax(x, out=x)


def replace_by_smallest(x: Array) -> Array:
    """Features with the smallest finite one of their row in place of -inf.

    The probability of that class is 0 in any case. A number far below the others would decide between them, through
    the elements of W off the diagonal, by how far below it is.
    """
    impossible = np.isneginf(x)
    if not impossible.any():
        return x
    return np.where(impossible, np.where(impossible, np.inf, x).min(axis=1, keepdims=True), x)


def make_penalty(start: Array, off_diagonal: float, diagonal: float, intercept: float) -> Penalty:
    """ODIR (Kull et al. 2019), and a penalty that pulls the diagonal towards 1: factors times means of squares.

    start: the matrix, or its diagonal, that is not penalised.
    """
    k = len(start)
    if start.ndim == 1:
        weights = np.full(k, diagonal / k)
    else:
        weights = np.full((k, k), off_diagonal / max(1, k * (k - 1)))
        np.fill_diagonal(weights, diagonal / k)

    def penalty(coef: Array, b: Array) -> tuple[float, Array, Array]:
        deviation = coef - start
        scaled = weights * deviation
        return float(np.vdot(scaled, deviation) + intercept / k * (b @ b)), 2 * scaled, 2 * intercept / k * b

    return penalty


class VectorScaling(Affine):
    """One factor and one offset for each class: ``softmax(w * logits / T + b)`` (Guo et al. 2017).

    T is that of `TemperatureScaling` with its default prior.  The penalties pull towards it, so that fits to few rows,
    or to rows that are all classified correctly, do little harm.

    Parameters
    ----------
    penalty_diagonal : float >= 0, default 1.0
        Factor of the mean of ``(w - 1)**2``; 0 is the published method.
    penalty_intercept : float >= 0, default 0.1
        Factor of the mean of ``b**2``; 0 is the published method.
    max_iter : int, default 1000
        Largest number of iterations of L-BFGS.
    tol : float, default 1e-7
        L-BFGS stops when no element of the gradient is larger.

    Attributes
    ----------
    temperature_, coef_, intercept_ : float, ndarray of shape (K, K), ndarray of shape (K,)
        T, w on the diagonal, b.
    history_ : list of dict
        "iteration", "loss" (with penalty) and "gradient_norm" (the largest element) of every iteration.
    classes_, n_iter_, converged_, n_classes_, n_features_in_, feature_names_in_
        As in `TemperatureScaling`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import VectorScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 20)
    >>> scaling = VectorScaling().fit(logits, [0, 0, 1, 1] * 20)  # class 0 is right in two of three rows
    >>> scaling.transform(logits)[0].round(2)
    array([0.65, 0.35])
    """

    _IS_DIAGONAL: ClassVar = True

    def __init__(
        self,
        *,
        penalty_diagonal: float = 1.0,
        penalty_intercept: float = 0.1,
        max_iter: int = 1000,
        tol: float = 1e-7,
    ) -> None:
        self.penalty_diagonal = penalty_diagonal
        self.penalty_intercept = penalty_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _fit(self, rows: Rows | PartsRows) -> tuple[dict[str, Any], Notes]:
        return self._fit_penalised(rows, (0.0, self.penalty_diagonal, self.penalty_intercept))


class MatrixScaling(Affine):
    """A matrix and an offset: ``softmax(W @ logits / T + b)`` (Guo et al. 2017), regularised (ODIR, Kull et al. 2019).

    T is that of `TemperatureScaling` with its default prior. A logit of -inf gives its class the probability 0; for the
    other classes it counts as the smallest finite one of its row.

    Parameters
    ----------
    penalty_off_diagonal : float >= 0, default 10.0
        Factor of the mean of the squares of W off its diagonal.
    penalty_diagonal : float >= 0, default 1.0
        Factor of the mean of ``(diagonal - 1)**2``, which ODIR does not have: without it, all of these methods become
        overconfident when there are few rows.
    penalty_intercept : float >= 0, default 0.1
        Factor of the mean of ``b**2``.
    max_iter : int, default 1000
        Largest number of iterations of L-BFGS.
    tol : float, default 1e-7
        L-BFGS stops when no element of the gradient is larger.

    Attributes
    ----------
    temperature_, coef_, intercept_ : float, ndarray of shape (K, K), ndarray of shape (K,)
        T, W, b.
    history_, classes_, n_iter_, converged_, n_classes_, n_features_in_, feature_names_in_
        As in `VectorScaling`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import MatrixScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 20)
    >>> scaling = MatrixScaling().fit(logits, [0, 0, 1, 1] * 20)  # class 0 is right in two of three rows
    >>> scaling.transform(logits)[0].round(2)
    array([0.65, 0.35])
    """

    def __init__(
        self,
        *,
        penalty_off_diagonal: float = 10.0,
        penalty_diagonal: float = 1.0,
        penalty_intercept: float = 0.1,
        max_iter: int = 1000,
        tol: float = 1e-7,
    ) -> None:
        self.penalty_off_diagonal = penalty_off_diagonal
        self.penalty_diagonal = penalty_diagonal
        self.penalty_intercept = penalty_intercept
        self.max_iter = max_iter
        self.tol = tol

    def _fit(self, rows: Rows | PartsRows) -> tuple[dict[str, Any], Notes]:
        return self._fit_penalised(rows, (self.penalty_off_diagonal, self.penalty_diagonal, self.penalty_intercept))


class DirichletCalibration(MatrixScaling):
    """A matrix and an offset for log-probabilities: ``softmax(W @ log_softmax(logits / T) + b)`` (Kull et al. 2019).

    Logits of -inf count as in `MatrixScaling`.

    Parameters
    ----------
    penalty_off_diagonal, penalty_diagonal, penalty_intercept, max_iter, tol
        As in `MatrixScaling`.

    Attributes
    ----------
    temperature_, coef_, intercept_, history_, classes_, n_iter_, converged_, n_classes_, n_features_in_, \
feature_names_in_
        As in `MatrixScaling`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import DirichletCalibration
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 20)
    >>> calibration = DirichletCalibration().fit(logits, [0, 0, 1, 1] * 20)  # class 0 is right in two of three rows
    >>> calibration.transform(logits)[0].round(2)
    array([0.65, 0.35])
    """

    @staticmethod
    def _features(z: Array, temperature: float) -> Array:
        return replace_by_smallest(log_softmax(z, temperature=temperature))
