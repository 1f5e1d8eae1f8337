"""Isotonic calibration of the largest probability, mixed with the temperature's probabilities."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from sklearn.isotonic import IsotonicRegression

from ..._ops.softmax import softmax
from .base import Calibrator, Notes
from .rows import Array, Rows, merge_equal_rows
from .shortage import describe_shortage
from .temperature import find_temperature

PRIOR = 30.0  # a third of the weight with 60 rows, a thirtieth with 900


class IsotonicCalibration(Calibrator):
    """A monotone function of the confidence, fitted to the correctness of the predictions.

    The confidence is the largest probability at the temperature of `TemperatureScaling`. The function is scikit-learn's
    isotonic regression, but for its two ends: the block above the most confident wrong row, all right, and the block
    below the least confident right row, all wrong, whose shares of 1 and 0 would make the first held-out exception
    infinitely surprising. With w rows (sum of weights) in such a block, its share is (w + 1) / (w + 2) or 1 / (w + 2),
    Laplace's rule of succession, which is also the target of Platt (1999) and of Zadrozny & Elkan (2001); the next
    block bounds it, so that the function stays monotone.

    The largest probability becomes the fitted share of correct predictions; the others keep their proportions.  The
    prediction may change where that share is lower than the new probability of another class.  The result is mixed with
    the temperature's probabilities, which have a share of ``prior / (prior + rows)``.

    Parameters
    ----------
    prior : float >= 0, default 30.0
        Number of rows for which the temperature's probabilities count. 0 is the isotonic function alone, which with few
        rows makes a good model worse: its steps are as coarse as the rows are few.

    Attributes
    ----------
    temperature_ : float
        The temperature of `TemperatureScaling` with its default prior.
    confidences_, accuracies_ : ndarray of shape (B,)
        Confidence to accuracy: linear between these points, constant outside.
    weight_ : float
        Share of the isotonic function in the result, ``rows / (prior + rows)``; rows: their number, or sum of weights.
    classes_, n_iter_, converged_, n_classes_, n_features_in_, feature_names_in_
        As in `TemperatureScaling`; n_iter_ is 0 and converged_ is True.
    history_ : list
        Empty.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.calibration import IsotonicCalibration
    >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]] * 20)
    >>> IsotonicCalibration().fit(logits, [0, 0, 1, 1] * 20).transform(logits)[0].round(4)
    array([0.7536, 0.2464])
    """

    temperature_: float
    confidences_: Array
    accuracies_: Array
    weight_: float
    _SHAPES: ClassVar = {"temperature": (), "confidences": ("B",), "accuracies": ("B",), "weight": ()}

    def __init__(self, *, prior: float = PRIOR) -> None:
        self.prior = prior

    def _fit(self, rows: Rows) -> tuple[dict[str, Any], Notes]:
        temperature = find_temperature(merge_equal_rows(rows))
        p = softmax(rows.z, temperature=temperature)
        confidence, right = p.max(axis=1), p.argmax(axis=1) == rows.labels
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        regression.fit(confidence, right, rows.weights)
        weights = np.ones(len(p)) if rows.weights is None else rows.weights
        confidences = np.asarray(regression.X_thresholds_, np.float64)
        accuracies = pull_ends(np.asarray(regression.y_thresholds_, np.float64), confidence, right, weights)
        done = "the certain ends of the function follow the rule of succession and stay away from 0 and 1"
        weight = rows.total / (rows.total + float(self.prior))
        if self.prior > 0:
            done += f", and the probabilities at temperature {temperature:.4g} have a share of {1 - weight:.2g}"
        shortage = describe_shortage(rows, done)
        return {
            "temperature_": temperature,
            "weight_": weight,
            "confidences_": confidences,
            "accuracies_": accuracies,
            "history_": [],
            "n_iter_": 0,
            "converged_": True,
        }, [(shortage, UserWarning)] if shortage else []

    def _calibrate(self, z: Array) -> Array:
        if z.shape[1] == 1:
            return np.ones_like(z)
        plain = softmax(z, temperature=self.temperature_)
        rows, top = np.arange(len(plain)), plain.argmax(axis=1)
        confidence = np.interp(plain.max(axis=1), self.confidences_, self.accuracies_)
        # The remainder is divided by a softmax of the other logits, because their probabilities may have underflowed.
        rest = z / self.temperature_
        rest[rows, top] = -np.inf
        alone = rest.max(axis=1) == -np.inf  # every other class is impossible
        rest[alone] = 0
        p = softmax(rest, out=rest)
        p *= (1 - confidence)[:, None]
        p[alone] = 0
        p[rows, top] = np.where(alone, 1, confidence)
        p *= self.weight_
        plain *= 1 - self.weight_
        p += plain
        return p


def pull_ends(accuracies: Array, confidence: Array, right: Any, weights: Array) -> Array:
    """The fitted shares of correct predictions, with 1 and 0 replaced by the rule of succession.

    The share is 1 exactly above the most confident wrong row, and 0 exactly below the least confident right row.
    """
    above = weights[confidence > confidence[~right].max(initial=-np.inf)].sum()
    below = weights[confidence < confidence[right].min(initial=np.inf)].sum()
    mixed = accuracies[(accuracies > 0) & (accuracies < 1)]
    highest = max((above + 1) / (above + 2), mixed.max(initial=0))
    lowest = min(1 / (below + 2), mixed.min(initial=1))
    return np.where(accuracies >= 1, highest, np.where(accuracies <= 0, lowest, accuracies))
