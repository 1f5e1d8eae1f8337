"""Platt scaling: a sigmoid for each class, by Newton's method."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning

from .base import Calibrator, Notes
from .rows import Array, Rows, replace_infinities
from .shortage import describe_shortage

MAX_STEPS = 100  # of Newton's method, which takes 5 to 7
NEARLY_EXACT = 1e-14  # of Newton's decrement per unit of weight: one more step then leaves rounding errors only
SUFFICIENT = 1e-4  # share of the expected decrease that a step must bring (Armijo)
SHORTEST = 1e-10  # length of a step, as a share of Newton's: then the loss falls no further but for rounding
SMALLEST_PEAK = 1e-290  # if no score is larger, all count as 0: the slope would overflow
RIDGE = 1e-12  # on the diagonal of the Hessian, where a class has one score only (Lin, Lin & Weng 2007)


class PlattScaling(Calibrator):
    """A sigmoid for each class against the rest, normalised (Platt 1999).

    As in scikit-learn's `CalibratedClassifierCV`. The sigmoids are fitted to Platt's targets, (n + 1) / (n + 2) for the
    n rows of the class and 1 / (m + 2) for the m others, a uniform prior of each label's frequency (Lin, Lin & Weng
    2007): rows that are all classified correctly do not make the sigmoid a step.

    Attributes
    ----------
    coef_, intercept_ : ndarray of shape (K,), for two classes (1,)
        Slopes and offsets of the sigmoids of each logit; for two classes, of the second minus the first.
    classes_, n_iter_, converged_, n_classes_, n_features_in_, feature_names_in_
        As in `TemperatureScaling`; n_iter_ is the largest number of Newton's steps of a sigmoid.
    history_ : list
        Empty.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import PlattScaling
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 20)
    >>> PlattScaling().fit(logits, [0, 0, 1, 1] * 20).transform(logits)[0].round(2)
    array([0.66, 0.34])
    """

    coef_: Array
    intercept_: Array
    _SHAPES: ClassVar = {"coef": ("S",), "intercept": ("S",)}

    def _fit(self, rows: Rows) -> tuple[dict[str, Any], Notes]:
        missing = np.setdiff1d(np.arange(rows.z.shape[1]), rows.labels)
        if len(missing):
            given = f"{len(rows.classes) - len(missing)} class" + "es" * (len(rows.classes) - len(missing) != 1)
            raise ValueError(
                f"y has rows of {given}, and does not contain class {rows.classes[missing].tolist()[0]!r}: "
                "PlattScaling needs every class"
            )
        weights = np.ones(len(rows.z)) if rows.weights is None else rows.weights
        scores = compute_margins(rows.z)
        fits = []
        for column in range(scores.shape[1]):
            positive = rows.labels == (column if rows.z.shape[1] > 2 else rows.z.shape[1] - 1)
            possible = ~np.isneginf(rows.z[:, column]) if rows.z.shape[1] > 2 else np.isfinite(rows.z).all(axis=1)
            fits.append(fit_sigmoid(scores[possible, column], positive[possible], weights[possible]))
        slopes, offsets, steps, converged = map(np.array, zip(*fits))
        notes: Notes = []
        shortage = describe_shortage(rows, "Platt's targets keep the probabilities away from 0 and 1")
        if shortage:
            notes.append((shortage, UserWarning))
        if not converged.all():
            message = f"PlattScaling has not converged in {MAX_STEPS} steps of Newton's method"
            notes.append((message, ConvergenceWarning))
        return {
            "coef_": slopes,
            "intercept_": offsets,
            "history_": [],
            "n_iter_": int(steps.max()),
            "converged_": bool(converged.all()),
        }, notes

    def _calibrate(self, z: Array) -> Array:
        f = self.coef_ * compute_margins(z) + self.intercept_
        p = expit(np.column_stack([-f, f]) if z.shape[1] == 2 else f)
        p[np.isneginf(z)] = 0
        total = p.sum(axis=1, keepdims=True)
        possible = ~np.isneginf(z)
        even = possible / possible.sum(axis=1, keepdims=True)
        return np.divide(p, total, out=even, where=total > 0)


def compute_margins(z: Array) -> Array:
    """Arguments of the sigmoids: each logit, or for two classes the second minus the first."""
    z = replace_infinities(z)
    return z[:, 1:] - z[:, :1] if z.shape[1] == 2 else z


def fit_sigmoid(score: Array, positive: Any, weights: Array) -> tuple[float, float, int, bool]:
    """Slope and offset of the sigmoid that fits Platt's targets best, Newton's steps, and whether they converged.

    The weighted cross-entropy is convex; a step is halved until it falls. Scores are centred and scaled, which changes
    only the rounding.
    """
    above, below = float(weights[positive].sum()), float(weights[~positive].sum())
    target = np.where(positive, (above + 1) / (above + 2), 1 / (below + 2))
    total = above + below
    start = np.log((above + 1) / (below + 1))
    if total == 0:
        return 0.0, float(start), 0, True
    peak = float(np.abs(score).max())  # squares of the largest numbers would overflow, the slope of the smallest too
    score, peak = (score / peak, peak) if peak > SMALLEST_PEAK else (np.zeros_like(score), 1.0)
    center = float(weights @ score) / total
    scale = np.sqrt(float(weights @ np.square(score - center)) / total)
    if not scale > 0:
        scale = 1.0
    x = np.stack([(score - center) / scale, np.ones_like(score)])
    u = np.array([0.0, start])

    def measure(u: Array) -> float:
        f = u @ x
        return float(weights @ (np.logaddexp(0, f) - target * f))

    loss, number, converged = measure(u), 0, False
    for number in range(1, MAX_STEPS + 1):  # noqa: B007 - it is returned
        p = expit(u @ x)
        gradient = x @ (weights * (p - target))
        hessian = (x * (weights * p * (1 - p))) @ x.T + RIDGE * np.eye(2)
        step = np.linalg.solve(hessian, -gradient)
        decrement = -float(gradient @ step)
        if decrement <= NEARLY_EXACT * total:
            u, converged = u + step, True
            break
        length = 1.0
        while (candidate := measure(u + length * step)) > loss - SUFFICIENT * length * decrement and length > SHORTEST:
            length /= 2
        u, loss = u + length * step, candidate
    return float(u[0] / scale / peak), float(u[1] - u[0] * center / scale), number, converged
