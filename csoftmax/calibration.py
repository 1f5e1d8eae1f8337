"""Calibration of classifiers: maps learned from held-out logits and labels that make probabilities match frequencies.

All calibrators accept logits.  Temperature scaling uses Newton's method in 1/T; vector, matrix and Dirichlet
calibration are penalised softmax regressions on the logits, minimised by SciPy.  Isotonic and Platt calibration are
scikit-learn's, with the same two methods.  Requires the extra ``learn``.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from scipy.optimize import minimize
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError(
        f"csoftmax.calibration needs SciPy and scikit-learn ({error}); install them with: pip install 'csoftmax[learn]'"
    ) from error

from ._arguments.foreign import as_native
from ._arguments.numbers import check_integer
from ._learn.labels import check_indices
from ._ops.cross_entropy import cross_entropy, cross_entropy_with_grad
from ._ops.softmax import log_softmax, softmax

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "DirichletCalibration",
    "IsotonicCalibration",
    "MatrixScaling",
    "PlattScaling",
    "TemperatureScaling",
    "VectorScaling",
]

INVERSE_TEMPERATURES = math.exp(-10), math.exp(10)  # bracket for 1/T, as in scikit-learn
CERTAIN_LOSS = 1e-16  # below it all rows are correct and certain, and the loss falls for ever with T
ROUNDING = 16 * float(np.finfo(np.float64).eps)  # of the derivative by 1/T, relative to the sum of its absolute terms
INFINITE_GAP = 1e4  # where logits are multiplied, -inf becomes a number this far below the largest of its row

Array = NDArray[np.float64]
Penalty = Callable[[Array, Array], tuple[float, Array, Array]]
"""Value and gradients of a penalty on coef and intercept."""


class _Calibrator(BaseEstimator, ABC):
    """Checks and history that all calibrators share."""

    n_classes_: int
    n_iter_: int
    converged_: bool
    history_: list[dict[str, float]]
    max_iter: int

    if TYPE_CHECKING:  # scikit-learn's methods, which have no types there

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...

    @abstractmethod
    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self:
        """Learn from held-out rows, as in `TemperatureScaling.fit`."""

    @abstractmethod
    def transform(self, logits: ArrayLike) -> Array:
        """Calibrate logits, as in `TemperatureScaling.transform`."""

    def fit_transform(self, logits: ArrayLike, y: ArrayLike) -> Array:
        """Call `fit`, then return `transform` of the same logits.

        Parameters
        ----------
        logits, y
            As in `TemperatureScaling.fit`.

        Returns
        -------
        ndarray of float64, shape (N, K)
            Calibrated probabilities.
        """
        return self.fit(logits, y).transform(logits)

    def _begin_fit(self, logits: ArrayLike, y: ArrayLike) -> tuple[Array, NDArray[np.int64]]:
        """Checked logits and labels."""
        if hasattr(self, "max_iter"):
            check_integer("max_iter", self.max_iter)
        z = _check_logits(logits)
        if np.shape(y) != z.shape[:1]:
            raise ValueError(f"y must have shape {z.shape[:1]}, one label for each row of logits, got {np.shape(y)}")
        labels = check_indices("y", y, z.shape[1], ", the numbers of the columns of logits")
        impossible = np.flatnonzero(z[np.arange(len(z)), labels] == -np.inf)
        if len(impossible):
            raise ValueError(
                f"logits[{impossible[0]}, y[{impossible[0]}]] is -inf: no calibration makes that label possible"
            )
        self.n_classes_, self.history_, self.n_iter_, self.converged_ = z.shape[1], [], 0, False
        return z, labels

    def _check_columns(self, logits: ArrayLike) -> Array:
        """Checked logits with as many columns as those of `fit`."""
        check_is_fitted(self, "n_classes_")
        z = _check_logits(logits)
        if z.shape[1] != self.n_classes_:
            raise ValueError(f"logits must have {self.n_classes_} columns, as in fit, got shape {z.shape}")
        return z

    def _record(self, loss: float, gradient_norm: float) -> None:
        self.history_.append({"iteration": len(self.history_), "loss": loss, "gradient_norm": gradient_norm})

    def _warn_unless_converged(self, stacklevel: int) -> None:
        if not self.converged_:
            warnings.warn(
                f"{type(self).__name__} has not converged in {self.n_iter_} iterations (gradient "
                f"{self.history_[-1]['gradient_norm']:.3g}); raise max_iter",
                ConvergenceWarning,
                stacklevel=stacklevel,
            )


def _check_logits(logits: ArrayLike) -> Array:
    """Logits of shape (N, K) in float64, without NaN and +inf."""
    z = np.asarray(as_native(logits, "logits"))
    if z.ndim == 1:  # a decision function of two classes
        z = np.column_stack([np.zeros_like(z), z])
    if z.dtype.kind not in "fiu" and z.dtype.name != "bfloat16":
        raise TypeError(f"logits must hold numbers, got dtype {z.dtype}")
    if z.ndim != 2 or z.shape[0] == 0 or z.shape[1] == 0:
        raise ValueError(f"logits must have shape (N, K), N and K at least 1, got {z.shape}")
    z = z.astype(np.float64)
    bad = np.argwhere(~(z < np.inf))
    if len(bad):
        raise ValueError(f"logits[{bad[0][0]}, {bad[0][1]}] is {z[tuple(bad[0])]}; NaN and +inf are not allowed")
    nothing = np.flatnonzero(z.max(axis=1) == -np.inf)
    if len(nothing):
        raise ValueError(f"logits[{nothing[0]}] is -inf in every column")
    return z


def _replace_infinities(z: Array) -> Array:
    """Logits with a finite number in place of -inf."""
    return np.where(np.isneginf(z), z.max(axis=1, keepdims=True) - INFINITE_GAP, z)


class TemperatureScaling(_Calibrator):
    """One temperature for all logits: ``softmax(logits / T)`` (Guo et al. 2017).

    The negative log-likelihood is convex in 1/T.  Newton's method inside a bracket finds its minimum, to the last
    digits that rounding allows.  1/T stays in [exp(-10), exp(10)]; its ends are reached for logits that say nothing
    about the labels, and for logits that are always right.

    Parameters
    ----------
    max_iter : int, default 100
        Maximum number of iterations of Newton's method, which usually takes about five.

    Attributes
    ----------
    temperature_ : float
        T.
    history_ : list of dict
        "iteration", "loss" and "gradient_norm" (of the derivative by 1/T) of every iteration.
    n_iter_, converged_, n_classes_
        Number of iterations, whether they converged, number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import TemperatureScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> scaling = TemperatureScaling().fit(logits, [0, 0, 1, 1])  # three of four are right: p should be 3/4
    >>> scaling.transform(logits)[0].round(6)
    array([0.75, 0.25])
    """

    temperature_: float

    def __init__(self, *, max_iter: int = 100) -> None:
        self.max_iter = max_iter

    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self:
        """Find the temperature.

        Parameters
        ----------
        logits : array_like of shape (N, K), or (N,)
            Held-out logits; -inf is allowed except at the label. With one axis, the decision function of two classes.
        y : array_like of int, shape (N,)
            Column indices of the true classes.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The message names the argument, its value and what is allowed.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If `max_iter` iterations were not enough.
        """
        z, labels = self._begin_fit(logits, y)
        low, high = INVERSE_TEMPERATURES
        finite = np.where(np.isneginf(z), 0, z)
        above_label = finite - z[np.arange(len(z)), labels, None]

        def differentiate(beta: float) -> tuple[float, float, float]:
            """First and second derivative of the mean loss by 1/T = beta, and the rounding error of the first."""
            p = softmax(z, temperature=1 / beta)
            mean = np.einsum("ij,ij->i", p, finite)
            second = np.einsum("ij,ij->i", p, np.square(finite - mean[:, None]))
            # The mean of differences to the label's logit: nothing cancels where a row is nearly certain.
            first = np.einsum("ij,ij->i", p, above_label)
            size = np.einsum("ij,ij->i", p, np.abs(above_label))
            return float(first.mean()), float(second.mean()), ROUNDING * float(size.mean())

        beta = 1.0
        for _ in range(self.max_iter):
            first, second, rounding = differentiate(beta)
            loss = float(cross_entropy(z, labels, temperature=1 / beta))
            self._record(loss, abs(first))
            self.n_iter_ += 1
            if first > 0:
                high = beta
            else:
                low = beta
            step = beta - first / second if second > 0 else INVERSE_TEMPERATURES[first < 0]
            if not low < step < high:
                step = math.sqrt(low * high)
            # Below its rounding error the derivative has a random sign, which would close the bracket beside the
            # minimum and restart the search at the other end.
            if loss < CERTAIN_LOSS or abs(first) <= rounding or abs(step - beta) <= 1e-12 * beta:
                self.converged_ = True
                break
            beta = step
        self.temperature_ = 1 / beta
        self._warn_unless_converged(stacklevel=3)
        return self

    def transform(self, logits: ArrayLike) -> Array:
        """Calibrate logits.

        Parameters
        ----------
        logits : array_like of shape (N, K), or (N,)
            Logits with the columns of those in `fit`.

        Returns
        -------
        ndarray of float64, shape (N, K)
            Calibrated probabilities.
        """
        return softmax(self._check_columns(logits), temperature=self.temperature_)


class _Affine(_Calibrator):
    """Softmax of W x + b, where x are the logits, or their log-probabilities, at their best temperature.

    With the temperature divided out, a penalty means the same for logits of every scale, and W = I gives the result of
    `TemperatureScaling`.
    """

    temperature_: float
    coef_: Array
    intercept_: Array
    max_iter: int
    tol: float

    def _features(self, z: Array) -> Array:
        return _replace_infinities(z / self.temperature_)

    def _fit_penalised(
        self, logits: ArrayLike, y: ArrayLike, factors: tuple[float, float, float], *, diagonal: bool = False
    ) -> Self:
        """Minimise the mean cross-entropy plus a penalty, from the best temperature.

        factors: of the penalties off the diagonal, on it, and on the intercept.  diagonal: W is a diagonal matrix.
        """
        z, labels = self._begin_fit(logits, y)
        k = z.shape[1]
        penalty = _make_penalty(k, *factors)
        self.temperature_ = TemperatureScaling().fit(z, labels).temperature_
        x = self._features(z)
        free = np.eye(k, dtype=bool) if diagonal else np.ones((k, k), bool)  # elements of W that are parameters

        def unpack(u: Array) -> tuple[Array, Array]:
            coef = np.zeros((k, k))
            coef[free] = u[:-k]
            return coef, u[-k:]

        def value(u: Array) -> tuple[float, Array]:
            coef, intercept = unpack(u)
            result = cross_entropy_with_grad(x @ coef.T + intercept, labels)
            extra, extra_coef, extra_intercept = penalty(coef, intercept)
            grad_coef = result.grad.T @ x + extra_coef
            return float(result.loss) + extra, np.concatenate(
                [grad_coef[free], result.grad.sum(axis=0) + extra_intercept]
            )

        def record(u: Array) -> float:
            loss, gradient = value(u)
            self._record(loss, float(np.abs(gradient).max()))
            return self.history_[-1]["gradient_norm"]

        def after_iteration(intermediate_result: Any) -> None:  # SciPy requires this name of the argument
            if record(intermediate_result.x) <= self.tol:
                raise StopIteration

        u = np.concatenate([np.eye(k)[free], np.zeros(k)])
        self.converged_ = record(u) <= self.tol
        if not self.converged_:
            result = minimize(
                value,
                u,
                jac=True,
                method="L-BFGS-B",
                callback=after_iteration,
                options={"maxiter": self.max_iter, "maxfun": 100 * self.max_iter, "gtol": 0, "ftol": 0, "maxcor": 20},
            )
            u = result.x
            self.converged_ = self.history_[-1]["gradient_norm"] <= self.tol or result.status != 1
        self.n_iter_ = len(self.history_) - 1
        self.coef_, self.intercept_ = unpack(u)
        self._warn_unless_converged(stacklevel=4)
        return self

    def transform(self, logits: ArrayLike) -> Array:
        """Calibrate logits, as in `TemperatureScaling.transform`."""
        z = self._check_columns(logits)
        x = self._features(z) @ self.coef_.T + self.intercept_
        return softmax(np.where(np.isneginf(z), -np.inf, x), out=x)


def _make_penalty(k: int, off_diagonal: float, diagonal: float, intercept: float) -> Penalty:
    """ODIR (Kull et al. 2019), and a penalty that pulls the diagonal towards 1: factors times means of squares."""
    weights = np.full((k, k), off_diagonal / max(1, k * (k - 1)))
    np.fill_diagonal(weights, diagonal / k)

    def penalty(coef: Array, b: Array) -> tuple[float, Array, Array]:
        deviation = coef - np.eye(k)
        scaled = weights * deviation
        return float(np.vdot(scaled, deviation) + intercept / k * (b @ b)), 2 * scaled, 2 * intercept / k * b

    return penalty


class VectorScaling(_Affine):
    """One factor and one offset for each class: ``softmax(w * logits / T + b)`` (Guo et al. 2017).

    T is that of `TemperatureScaling`.  The penalties pull towards it, so that fits to few rows do little harm.

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
    n_iter_, converged_, n_classes_
        As in `TemperatureScaling`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import VectorScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> scaling = VectorScaling().fit(logits, [0, 0, 1, 1])  # class 0 is right in two of three rows
    >>> scaling.transform(logits)[0].round(2)
    array([0.65, 0.35])
    """

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

    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self:
        """Find temperature, factors and offsets; parameters as in `TemperatureScaling.fit`."""
        return self._fit_penalised(logits, y, (0.0, self.penalty_diagonal, self.penalty_intercept), diagonal=True)


class MatrixScaling(_Affine):
    """A matrix and an offset: ``softmax(W @ logits / T + b)`` (Guo et al. 2017), regularised (ODIR, Kull et al. 2019).

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
    history_, n_iter_, converged_, n_classes_
        As in `VectorScaling`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import MatrixScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> scaling = MatrixScaling().fit(logits, [0, 0, 1, 1])  # class 0 is right in two of three rows
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

    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self:
        """Find temperature, matrix and offset; parameters as in `TemperatureScaling.fit`."""
        factors = self.penalty_off_diagonal, self.penalty_diagonal, self.penalty_intercept
        return self._fit_penalised(logits, y, factors)


class DirichletCalibration(MatrixScaling):
    """A matrix and an offset for log-probabilities: ``softmax(W @ log_softmax(logits / T) + b)`` (Kull et al. 2019).

    Parameters
    ----------
    penalty_off_diagonal, penalty_diagonal, penalty_intercept, max_iter, tol
        As in `MatrixScaling`.

    Attributes
    ----------
    temperature_, coef_, intercept_, history_, n_iter_, converged_, n_classes_
        As in `MatrixScaling`.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import DirichletCalibration
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> calibration = DirichletCalibration().fit(logits, [0, 0, 1, 1])  # class 0 is right in two of three rows
    >>> calibration.transform(logits)[0].round(2)
    array([0.65, 0.35])
    """

    def _features(self, z: Array) -> Array:
        return _replace_infinities(log_softmax(z, temperature=self.temperature_))


class IsotonicCalibration(_Calibrator):
    """A monotone function of the confidence, fitted to the correctness of the predictions.

    The function is scikit-learn's isotonic regression.  The largest probability becomes the fitted share of correct
    predictions; the others keep their proportions.  The prediction may change where that share is lower than the new
    probability of another class.

    Attributes
    ----------
    regression_ : sklearn.isotonic.IsotonicRegression
        Confidence to accuracy.
    n_classes_
        Number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import IsotonicCalibration
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> IsotonicCalibration().fit(logits, [0, 0, 1, 1]).transform(logits)[0]
    array([0.75, 0.25])
    """

    regression_: Any

    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self:
        """Fit the function; parameters as in `TemperatureScaling.fit`."""
        from sklearn.isotonic import IsotonicRegression

        z, labels = self._begin_fit(logits, y)
        p = softmax(z)
        self.regression_ = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        self.regression_.fit(p.max(axis=1), p.argmax(axis=1) == labels)
        self.converged_ = True
        return self

    def transform(self, logits: ArrayLike) -> Array:
        """Calibrate logits, as in `TemperatureScaling.transform`."""
        p = softmax(self._check_columns(logits))
        if p.shape[1] == 1:
            return np.ones_like(p)
        rows, top = np.arange(len(p)), p.argmax(axis=1)
        confidence = self.regression_.predict(p.max(axis=1))
        p[rows, top] = 0
        rest = p.sum(axis=1)
        # The other classes share the remainder in proportion to their probabilities, or evenly if these are all 0.
        p *= np.divide(1 - confidence, rest, out=np.zeros_like(rest), where=rest > 0)[:, None]
        p[rest <= 0] = ((1 - confidence[rest <= 0]) / (p.shape[1] - 1))[:, None]
        p[rows, top] = confidence
        return p


class PlattScaling(_Calibrator):
    """A sigmoid for each class against the rest, normalised (Platt 1999): scikit-learn's `CalibratedClassifierCV`.

    Attributes
    ----------
    calibrator_ : sklearn.calibration.CalibratedClassifierCV
        Calibrator of a classifier whose decision function is the logits.
    n_classes_
        Number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import PlattScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 20)
    >>> PlattScaling().fit(logits, [0, 0, 1, 1] * 20).transform(logits)[0].round(2)
    array([0.66, 0.34])
    """

    calibrator_: Any

    def fit(self, logits: ArrayLike, y: ArrayLike) -> Self:
        """Fit the sigmoids; parameters as in `TemperatureScaling.fit`, but every class must occur."""
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.frozen import FrozenEstimator

        z, labels = self._begin_fit(logits, y)
        missing = np.setdiff1d(np.arange(z.shape[1]), labels)
        if len(missing):
            raise ValueError(f"y does not contain class {missing[0]}: PlattScaling needs every class")
        inner = FrozenEstimator(_LogitsAsClassifier().fit(z, labels))
        everything = np.arange(len(z))  # the classifier is frozen, so all rows can be used to calibrate
        self.calibrator_ = CalibratedClassifierCV(inner, method="sigmoid", cv=[(everything, everything)])
        self.calibrator_.fit(_replace_infinities(z), labels)
        self.converged_ = True
        return self

    def transform(self, logits: ArrayLike) -> Array:
        """Calibrate logits, as in `TemperatureScaling.transform`."""
        return self.calibrator_.predict_proba(_replace_infinities(self._check_columns(logits)))


class _LogitsAsClassifier(BaseEstimator):
    """A classifier whose features are logits."""

    _estimator_type = "classifier"

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        return tags

    def fit(self, logits: Array, y: ArrayLike) -> Self:
        self.classes_, self.n_features_in_ = np.arange(logits.shape[1]), logits.shape[1]
        return self

    def predict(self, logits: Array) -> NDArray[np.intp]:
        return logits.argmax(axis=1)

    def decision_function(self, logits: Array) -> Array:
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits
