"""Platt scaling: a sigmoid for each class, by Newton's method."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from scipy.special import expit
from sklearn.exceptions import ConvergenceWarning

from ..._ops.softmax import log_softmax, logsumexp, softmax
from .base import Calibrator, Notes
from .rows import Array, Rows, merge_equal_rows
from .shortage import describe_shortage
from .temperature import find_temperature

MAX_STEPS = 100  # of Newton's method, which takes 5 to 7
NEARLY_EXACT = 1e-14  # of Newton's decrement per unit of weight: one more step then leaves rounding errors only
SUFFICIENT = 1e-4  # share of the expected decrease that a step must bring (Armijo)
SHORTEST = 1e-10  # length of a step, as a share of Newton's: then the loss falls no further but for rounding
SMALLEST_PEAK = 1e-290  # if no score is larger, all count as 0: the slope would overflow
RIDGE = 1e-12  # on the diagonal of the Hessian, where a class has one score only (Lin, Lin & Weng 2007)
LARGEST_ODDS = 1e300  # stands for infinity, whose product with a slope of 0 is NaN
PRIOR = 10.0  # slope and offset are within 0.32 of the temperature's with a prior probability of 0.68


class PlattScaling(Calibrator):
    """A sigmoid for each class against the rest, normalised (Platt 1999).

    The sigmoid of ``coef_ * f + intercept_``, where f are the log-odds ``log(p / (1 - p))`` of the class at the
    temperature of `TemperatureScaling`; for two classes they are the difference of the logits. Slope and offset
    minimise ``sum(sample_weight * cross_entropy) + prior / 2 * ((coef - 1)**2 + intercept**2)`` for each class, the
    mode of the posterior under a normal prior around the temperature's own probabilities.

    Parameters
    ----------
    prior : float >= 0, default 10.0
        Precision of the prior: 10 is that of 40 rows with probability 1/2 in the offset. 0 is the published method, and
        for two classes that of scikit-learn's `CalibratedClassifierCV`: Platt's targets, (n + 1) / (n + 2) for the n
        rows of the class and 1 / (m + 2) for the m others (Lin, Lin & Weng 2007), in place of the prior and the labels.
        With few rows those targets make a good model worse: 30 rows of three classes allow no probability above about
        0.9.

    Attributes
    ----------
    temperature_ : float
        The temperature of `TemperatureScaling` with its default prior.
    coef_, intercept_ : ndarray of shape (K,), for two classes (1,)
        Slopes and offsets of the sigmoids; for two classes, of the second.
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
    array([0.7, 0.3])
    """

    temperature_: float
    coef_: Array
    intercept_: Array
    _SHAPES: ClassVar = {"temperature": (), "coef": ("S",), "intercept": ("S",)}

    def __init__(self, *, prior: float = PRIOR) -> None:
        self.prior = prior

    def _fit(self, rows: Rows) -> tuple[dict[str, Any], Notes]:
        missing = np.setdiff1d(np.arange(rows.z.shape[1]), rows.labels)
        if len(missing):
            given = f"{len(rows.classes) - len(missing)} class" + "es" * (len(rows.classes) - len(missing) != 1)
            raise ValueError(
                f"y has rows of {given}, and does not contain class {rows.classes[missing].tolist()[0]!r}: "
                "PlattScaling needs every class"
            )
        weights = np.ones(len(rows.z)) if rows.weights is None else rows.weights
        temperature = find_temperature(merge_equal_rows(rows))
        odds = compute_log_odds(rows.z, temperature)
        fits = []
        for column in range(odds.shape[1]):
            positive = rows.labels == (column if rows.z.shape[1] > 2 else rows.z.shape[1] - 1)
            possible = np.isfinite(odds[:, column])
            fits.append(
                fit_sigmoid(odds[possible, column], positive[possible], weights[possible], prior=float(self.prior))
            )
        slopes, offsets, steps, converged = map(np.array, zip(*fits))
        notes: Notes = []
        done = "Platt's targets keep the probabilities away from 0 and 1"
        if self.prior > 0:
            done = f"the prior (prior={self.prior:g}) keeps the sigmoids near the temperature {temperature:.4g}"
        shortage = describe_shortage(rows, done)
        if shortage:
            notes.append((shortage, UserWarning))
        if not converged.all():
            message = f"PlattScaling has not converged in {MAX_STEPS} steps of Newton's method"
            notes.append((message, ConvergenceWarning))
        return {
            "temperature_": temperature,
            "coef_": slopes,
            "intercept_": offsets,
            "history_": [],
            "n_iter_": int(steps.max()),
            "converged_": bool(converged.all()),
        }, notes

    def _calibrate(self, z: Array) -> Array:
        odds = compute_log_odds(z, self.temperature_)
        f = self.coef_ * np.clip(odds, -LARGEST_ODDS, LARGEST_ODDS) + self.intercept_
        if z.shape[1] == 2:
            f = np.column_stack([-f, f])
        log_p = np.where(np.isneginf(z), -np.inf, -np.logaddexp(0, -f))
        return softmax(log_p, out=log_p)


def compute_log_odds(z: Array, temperature: float) -> Array:
    """Log-odds of each class at a temperature, for two classes of the second: log(p / (1 - p)) to rounding.

    They are -inf where the class is impossible and inf where every other class is.
    """
    x = z / temperature
    if x.shape[1] == 2:
        return x[:, 1:] - x[:, :1]
    log_p = log_softmax(x)
    rows, top = np.arange(len(x)), log_p.argmax(axis=1)
    # 1 - p of the largest probability would cancel; the others are at most 1/2.
    x[rows, top] = -np.inf
    odds = log_p - np.log1p(-np.minimum(np.exp(log_p), 0.5))
    others = logsumexp(x)
    odds[rows, top] = z[rows, top] / temperature - others
    return odds


def fit_sigmoid(score: Array, positive: Any, weights: Array, *, prior: float) -> tuple[float, float, int, bool]:
    """Slope and offset of the best sigmoid, Newton's steps, and whether they converged.

    The weighted cross-entropy with the prior, or with Platt's targets, is convex; a step is halved until it falls.
    Scores are centred and scaled, which changes only the rounding.
    """
    above, below = float(weights[positive].sum()), float(weights[~positive].sum())
    total = above + below
    target = positive.astype(float) if prior > 0 else np.where(positive, (above + 1) / (above + 2), 1 / (below + 2))
    slope, offset = (1.0, 0.0) if prior > 0 else (0.0, float(np.log((above + 1) / (below + 1))))
    if total == 0:
        return slope, offset, 0, True
    peak = float(np.abs(score).max())  # squares of the largest numbers would overflow, the slope of the smallest too
    score, peak = (score / peak, peak) if peak > SMALLEST_PEAK else (np.zeros_like(score), 1.0)
    center = float(weights @ score) / total
    scale = np.sqrt(float(weights @ np.square(score - center)) / total)
    if not scale > 0:
        scale = 1.0
    x = np.stack([(score - center) / scale, np.ones_like(score)])
    # Slope less 1, and offset, from the parameters u of the scaled scores: restore @ u - [1, 0].
    restore = np.array([[1 / scale / peak, 0.0], [-center / scale, 1.0]])
    u = np.array([slope * peak * scale, offset + slope * peak * center])

    def measure(u: Array) -> float:
        f = u @ x
        deviation = restore @ u - [1, 0]
        return float(weights @ (np.logaddexp(0, f) - target * f) + prior / 2 * (deviation @ deviation))

    loss, number, converged = measure(u), 0, False
    for number in range(1, MAX_STEPS + 1):  # noqa: B007 - it is returned
        p = expit(u @ x)
        gradient = x @ (weights * (p - target)) + prior * (restore @ u - [1, 0]) @ restore
        hessian = (x * (weights * p * (1 - p))) @ x.T + RIDGE * np.eye(2) + prior * restore.T @ restore
        step = np.linalg.solve(hessian, -gradient)
        decrement = -float(gradient @ step)
        if decrement <= NEARLY_EXACT * total:
            u, converged = u + step, True
            break
        length = 1.0
        while (candidate := measure(u + length * step)) > loss - SUFFICIENT * length * decrement and length > SHORTEST:
            length /= 2
        u, loss = u + length * step, candidate
    slope, offset = restore @ u
    return float(slope), float(offset), number, converged
