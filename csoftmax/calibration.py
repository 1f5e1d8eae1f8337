"""Calibration of logits: probabilities that mean what they say, learned from held-out logits and labels.

All of it works on logits.  Temperature scaling is a Newton iteration of our own in 1/T; the others are penalised
softmax regressions on the logits, minimised by SciPy.  Isotonic and Platt's calibration are scikit-learn's, behind the
same two methods.  Needs the extra ``learn``.
"""

import math
import warnings

import numpy as np

try:
    from scipy.optimize import minimize
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError(
        f"csoftmax.calibration needs SciPy and scikit-learn ({error}); install them with: pip install 'csoftmax[learn]'"
    ) from error

from .cross_entropy import cross_entropy, cross_entropy_with_grad
from .softmax import log_softmax, softmax

__all__ = [
    "DirichletCalibration",
    "IsotonicCalibration",
    "MatrixScaling",
    "PlattScaling",
    "TemperatureScaling",
    "VectorScaling",
]

INVERSE_TEMPERATURES = math.exp(-10), math.exp(10)  # the range in which 1/T is looked for, scikit-learn's
NO_LOSS = 1e-16  # all rows are right and certain: no temperature is too low
FLOOR = 1e4  # a logit of -inf is so far below the largest of its row where logits are multiplied by something


class _Calibrator(BaseEstimator):
    """What all of them share: checks, and the history of the fit."""

    def _start(self, logits, y):
        z, labels = _logits(logits), np.asarray(y)
        if labels.shape != z.shape[:1]:
            raise ValueError(f"y must have shape {z.shape[:1]}, one label for each row of logits, got {labels.shape}")
        if labels.dtype.kind not in "iu":
            raise TypeError(f"y must hold integers, the numbers of the columns of logits, got dtype {labels.dtype}")
        k = z.shape[1]
        bad = np.flatnonzero((labels < 0) | (labels >= k))
        if len(bad):
            raise ValueError(f"y[{bad[0]}] is {labels[bad[0]]}; logits have columns 0 to {k - 1}")
        labels = labels.astype(np.int64)
        impossible = np.flatnonzero(z[np.arange(len(z)), labels] == -np.inf)
        if len(impossible):
            raise ValueError(
                f"logits[{impossible[0]}, y[{impossible[0]}]] is -inf: no calibration makes that label possible"
            )
        self.n_classes_, self.history_, self.n_iter_, self.converged_ = k, [], 0, False
        return z, labels

    def _columns(self, logits):
        check_is_fitted(self, "n_classes_")
        z = _logits(logits)
        if z.shape[1] != self.n_classes_:
            raise ValueError(f"logits must have {self.n_classes_} columns, as in fit, got shape {z.shape}")
        return z

    def _note(self, loss, gradient):
        self.history_.append({"iteration": len(self.history_), "loss": loss, "gradient_norm": gradient})

    def _warn(self):
        if not self.converged_:
            warnings.warn(
                f"{type(self).__name__} has not converged in {self.n_iter_} iterations (gradient "
                f"{self.history_[-1]['gradient_norm']:.3g}); raise max_iter",
                ConvergenceWarning,
                stacklevel=3,
            )

    def fit_transform(self, logits, y):
        """`fit`, then `transform` of the same logits."""
        return self.fit(logits, y).transform(logits)


def _logits(logits):
    z = np.asarray(logits)
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


def _finite(z):
    """With numbers in place of -inf."""
    return np.where(np.isneginf(z), z.max(axis=1, keepdims=True) - FLOOR, z)


class TemperatureScaling(_Calibrator):
    """One temperature for all logits: ``softmax(logits / T)`` (Guo et al. 2017).

    The negative log-likelihood is convex in 1/T; its minimum is found by Newton's method inside a bracket, to the last
    digits.  1/T is kept in [exp(-10), exp(10)], whose ends stand for logits that tell nothing, and for logits that are
    always right.

    Parameters
    ----------
    max_iter : int, default 100
        Of Newton's method; some five are used.

    Attributes
    ----------
    temperature_ : float
        T.
    history_ : list of dict
        "iteration", "loss", "gradient_norm" (of the derivative by 1/T) of every iteration.
    n_iter_, converged_, n_classes_
        Iterations, whether they have converged, number of columns.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import TemperatureScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    >>> scaling = TemperatureScaling().fit(logits, [0, 0, 1, 1])  # three of four are right: p should be 3/4
    >>> scaling.transform(logits)[0].round(6)
    array([0.75, 0.25])
    """

    def __init__(self, *, max_iter=100):
        self.max_iter = max_iter

    def fit(self, logits, y):
        """Find the temperature.

        Parameters
        ----------
        logits : array_like of shape (N, K), or (N,)
            Held-out logits; -inf is allowed where it is not the label's. With one axis, the decision function of two
            classes.
        y : array_like of int, shape (N,)
            Columns of the true classes.

        Returns
        -------
        self
        """
        z, labels = self._start(logits, y)
        low, high = INVERSE_TEMPERATURES
        at_label = z[np.arange(len(z)), labels]
        finite = np.where(np.isneginf(z), 0, z)

        def derivatives(beta):
            p = softmax(z, temperature=1 / beta)
            mean = np.einsum("ij,ij->i", p, finite)
            spread = np.einsum("ij,ij->i", p, np.square(finite - mean[:, None]))
            # differences to the label, so that nothing cancels where a row is nearly certain
            first = np.einsum("ij,ij->i", p, finite - at_label[:, None])
            return float(first.mean()), float(spread.mean())

        beta = 1.0
        for _ in range(self.max_iter):
            first, second = derivatives(beta)
            loss = float(cross_entropy(z, labels, temperature=1 / beta))
            self._note(loss, abs(first))
            self.n_iter_ += 1
            if first > 0:
                high = beta
            else:
                low = beta
            step = beta - first / second if second > 0 else (INVERSE_TEMPERATURES[first < 0])
            # A step this short is the end, even one out of the bracket: at the minimum `first` is a rounding error,
            # whose sign may have put the minimum on the wrong side, and bisection takes 40 iterations to come back.
            if not low < step < high and abs(step - beta) > 1e-12 * beta:
                step = math.sqrt(low * high)
            if loss < NO_LOSS or first == 0 or abs(step - beta) <= 1e-12 * beta:
                self.converged_ = True
                break
            beta = step
        self.temperature_ = 1 / beta
        self._warn()
        return self

    def transform(self, logits):
        """Calibrated probabilities, float64 of shape (N, K)."""
        return softmax(self._columns(logits), temperature=self.temperature_)


class _Affine(_Calibrator):
    """Softmax of W x + b; x are the logits, or their log-probabilities, at the temperature that suits them best.

    With the temperature taken out, a penalty means the same for logits of every scale, and W = I is what
    `TemperatureScaling` gives.
    """

    def _features(self, z):
        return _finite(z / self.temperature_)

    def _minimize(self, z, labels, start, unpack, pack, penalty):
        """Parameters that minimise the mean cross-entropy plus penalty(coef, intercept) = (value, gradients), from the
        best temperature."""
        self.temperature_ = TemperatureScaling().fit(z, labels).temperature_
        x = self._features(z)

        def value(u):
            coef, intercept = unpack(u)
            result = cross_entropy_with_grad(x @ coef.T + intercept, labels)
            extra, extra_coef, extra_intercept = penalty(coef, intercept)
            gradient = pack(result.grad.T @ x + extra_coef, result.grad.sum(axis=0) + extra_intercept)
            return float(result.loss) + extra, gradient

        last = value(start)
        self._note(last[0], float(np.abs(last[1]).max()))

        def after_iteration(intermediate_result):  # SciPy goes by the name of the argument
            loss, gradient = value(intermediate_result.x)
            self._note(loss, float(np.abs(gradient).max()))
            if self.history_[-1]["gradient_norm"] <= self.tol:
                raise StopIteration

        if self.history_[0]["gradient_norm"] > self.tol:
            result = minimize(
                value,
                start,
                jac=True,
                method="L-BFGS-B",
                callback=after_iteration,
                options={"maxiter": self.max_iter, "maxfun": 100 * self.max_iter, "gtol": 0, "ftol": 0, "maxcor": 20},
            )
            start = result.x
            self.converged_ = self.history_[-1]["gradient_norm"] <= self.tol or result.status != 1
        else:
            self.converged_ = True
        self.n_iter_ = len(self.history_) - 1
        self.coef_, self.intercept_ = unpack(start)
        self._warn()
        return self

    def transform(self, logits):
        """Calibrated probabilities, float64 of shape (N, K)."""
        z = self._columns(logits)
        x = self._features(z) @ self.coef_.T + self.intercept_
        return softmax(np.where(np.isneginf(z), -np.inf, x), out=x)


def _odir(k, off_diagonal, intercept, diagonal):
    """Off-diagonal and intercept regularisation (Kull et al. 2019), and of the diagonal towards 1: means of squares."""
    weights = np.full((k, k), off_diagonal / max(1, k * (k - 1)))
    np.fill_diagonal(weights, diagonal / k)

    def penalty(coef, b):
        off = coef - np.eye(k)
        scaled = weights * off
        return np.vdot(scaled, off) + intercept / k * (b @ b), 2 * scaled, 2 * intercept / k * b

    return penalty


class VectorScaling(_Affine):
    """One factor and one offset for each class: ``softmax(w * logits / T + b)`` (Guo et al. 2017).

    T is that of `TemperatureScaling`, and the penalties pull towards it, so that few rows do little harm.

    Parameters
    ----------
    penalty_diagonal : float >= 0, default 1.0
        Factor of the mean of ``(w - 1)**2``; 0 is the published method.
    penalty_intercept : float >= 0, default 0.1
        Factor of the mean of ``b**2``; 0 is the published method.
    max_iter : int, default 1000
        Of L-BFGS.
    tol : float, default 1e-7
        Largest element of the gradient at the end.

    Attributes
    ----------
    temperature_, coef_, intercept_ : float, ndarray of shape (K, K), ndarray of shape (K,)
        T, w on the diagonal, b.
    history_ : list of dict
        "iteration", "loss" (with penalty), "gradient_norm" (the largest element) of every iteration.
    n_iter_, converged_, n_classes_
        As in `TemperatureScaling`.
    """

    def __init__(self, *, penalty_diagonal=1.0, penalty_intercept=0.1, max_iter=1000, tol=1e-7):
        self.penalty_diagonal = penalty_diagonal
        self.penalty_intercept = penalty_intercept
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, logits, y):
        """As `TemperatureScaling.fit`."""
        z, labels = self._start(logits, y)
        k = z.shape[1]
        return self._minimize(
            z,
            labels,
            np.concatenate([np.ones(k), np.zeros(k)]),
            lambda u: (np.diag(u[:k]), u[k:]),
            lambda coef, intercept: np.concatenate([np.diag(coef), intercept]),
            _odir(k, 0.0, self.penalty_intercept, self.penalty_diagonal),
        )


class MatrixScaling(_Affine):
    """A matrix and an offset: ``softmax(W @ logits / T + b)`` (Guo et al. 2017), regularised (ODIR, Kull et al. 2019).

    Parameters
    ----------
    penalty_off_diagonal : float >= 0, default 10.0
        Factor of the mean of the squares of W off its diagonal.
    penalty_diagonal : float >= 0, default 1.0
        Factor of the mean of ``(diagonal - 1)**2``, not in ODIR: without it few rows make any such method
        overconfident.
    penalty_intercept : float >= 0, default 0.1
        Factor of the mean of ``b**2``.
    max_iter : int, default 1000
        Of L-BFGS.
    tol : float, default 1e-7
        Largest element of the gradient at the end.

    Attributes
    ----------
    temperature_, coef_, intercept_ : float, ndarray of shape (K, K), ndarray of shape (K,)
        T, W, b.
    history_, n_iter_, converged_, n_classes_
        As in `VectorScaling`.
    """

    def __init__(
        self, *, penalty_off_diagonal=10.0, penalty_diagonal=1.0, penalty_intercept=0.1, max_iter=1000, tol=1e-7
    ):
        self.penalty_off_diagonal = penalty_off_diagonal
        self.penalty_diagonal = penalty_diagonal
        self.penalty_intercept = penalty_intercept
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, logits, y):
        """As `TemperatureScaling.fit`."""
        z, labels = self._start(logits, y)
        k = z.shape[1]
        return self._minimize(
            z,
            labels,
            np.concatenate([np.eye(k).ravel(), np.zeros(k)]),
            lambda u: (u[: k * k].reshape(k, k), u[k * k :]),
            lambda coef, intercept: np.concatenate([coef.ravel(), intercept]),
            _odir(k, self.penalty_off_diagonal, self.penalty_intercept, self.penalty_diagonal),
        )


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
    """

    def _features(self, z):
        return _finite(log_softmax(z, temperature=self.temperature_))


class IsotonicCalibration(_Calibrator):
    """A monotone function of the confidence, fitted on whether the prediction was right (scikit-learn's isotonic
    regression).

    The largest probability becomes the fitted share of right predictions, the others keep their proportions.  The
    prediction may change where the share is lower than what is left for another class.

    Attributes
    ----------
    regression_ : sklearn.isotonic.IsotonicRegression
        Confidence to accuracy.
    n_classes_
        Number of columns.
    """

    def fit(self, logits, y):
        """As `TemperatureScaling.fit`."""
        from sklearn.isotonic import IsotonicRegression

        z, labels = self._start(logits, y)
        p = softmax(z)
        self.regression_ = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        self.regression_.fit(p.max(axis=1), p.argmax(axis=1) == labels)
        self.converged_ = True
        return self

    def transform(self, logits):
        """Calibrated probabilities, float64 of shape (N, K)."""
        p = softmax(self._columns(logits))
        rows, top = np.arange(len(p)), p.argmax(axis=1)
        after = self.regression_.predict(p.max(axis=1))
        p[rows, top] = 0
        rest = p.sum(axis=1)
        if p.shape[1] == 1:
            return np.ones_like(p)
        # where nothing is left for the others, they share what the first one loses
        p *= np.divide(1 - after, rest, out=np.zeros_like(rest), where=rest > 0)[:, None]
        p[rest <= 0] = ((1 - after[rest <= 0]) / (p.shape[1] - 1))[:, None]
        p[rows, top] = after
        return p


class PlattScaling(_Calibrator):
    """A sigmoid for each class against the rest, normalised (Platt 1999), as scikit-learn's `CalibratedClassifierCV`
    has it.

    Attributes
    ----------
    calibrator_ : sklearn.calibration.CalibratedClassifierCV
        Around a classifier whose decision function is the logits.
    n_classes_
        Number of columns.
    """

    def fit(self, logits, y):
        """As `TemperatureScaling.fit`; every class must occur."""
        from sklearn.calibration import CalibratedClassifierCV
        from sklearn.frozen import FrozenEstimator

        z, labels = self._start(logits, y)
        missing = np.setdiff1d(np.arange(z.shape[1]), labels)
        if len(missing):
            raise ValueError(f"y has no {missing[0]}: PlattScaling needs every class")
        inner = FrozenEstimator(_LogitsAsClassifier().fit(z, labels))
        everything = np.arange(len(z))  # nothing is refitted, so that all rows can be in one part
        self.calibrator_ = CalibratedClassifierCV(inner, method="sigmoid", cv=[(everything, everything)])
        self.calibrator_.fit(_finite(z), labels)
        self.converged_ = True
        return self

    def transform(self, logits):
        """Calibrated probabilities, float64 of shape (N, K)."""
        return self.calibrator_.predict_proba(_finite(self._columns(logits)))


class _LogitsAsClassifier(BaseEstimator):
    """A classifier whose data are logits already."""

    _estimator_type = "classifier"

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type = "classifier"
        return tags

    def fit(self, logits, y):
        self.classes_, self.n_features_in_ = np.arange(logits.shape[1]), logits.shape[1]
        return self

    def predict(self, logits):
        return logits.argmax(axis=1)

    def decision_function(self, logits):
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits
