"""The score of a softmax regression under every perturbation, from certificates."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from .._arguments.numbers import check_non_negative
from .._ops.adversarial import certify, check_norm
from .labels import indices_of, is_text
from .objective import is_sparse
from .parameters import as_plain, check_data

BLOCK_ELEMENTS = 1 << 22  # of X: what becomes dense and float64 at a time


def _measure(model: Any, X: Any, labels: NDArray[Any], eps: float) -> float:
    """The share of the rows that are certified for their label."""
    classes = model.classes_
    if is_text(labels) != is_text(classes):
        return 0.0
    y, unknown = indices_of(labels, classes)
    coef, bias = model.coef_.astype(np.float64), model.intercept_.astype(np.float64)
    step = max(1, BLOCK_ELEMENTS // max(1, X.shape[1]))
    is_certified = np.zeros(len(labels), bool)
    for begin in range(0, len(labels), step):
        part = slice(begin, begin + step)
        x = X[part].toarray() if is_sparse(X) else X[part]
        options = {"norm": model.adversarial_norm, "num_threads": model.num_threads}
        is_certified[part] = certify(x.astype(np.float64), coef, bias=bias, target=y[part], **options).radius > eps
    is_certified[unknown] = False
    return float(is_certified.mean())


class ScoresCertified:
    """The method `score_certified` of a linear softmax model."""

    def score_certified(self, X: Any, y: ArrayLike, eps: float) -> float:
        """Share of the rows whose class is right and stays right under every perturbation of norm at most eps.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.
        y : array-like of shape (N,)
            Right classes; a label that is not among `classes_` counts as wrong.
        eps : float
            Largest norm of a perturbation, of the order `adversarial_norm`; there are no bounds of the features.

        Returns
        -------
        float
            The share of rows whose radius of `csoftmax.adversarial.certify` exceeds eps.

        Raises
        ------
        TypeError, ValueError
            If X does not fit the model, if X and y differ in length, or if eps is negative.

        Examples
        --------
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> model = SoftmaxRegression(adversarial="certified", adversarial_eps=0.5)
        >>> model = model.fit([[0.0], [1.0], [3.0], [4.0]], [0, 0, 1, 1])
        >>> model.score_certified([[0.0], [1.0], [3.0], [4.0]], [0, 0, 1, 1], eps=0.5)
        1.0
        """
        check_is_fitted(self, "coef_")
        eps = check_non_negative("eps", eps)
        check_norm(self.adversarial_norm, name="adversarial_norm")  # type: ignore[attr-defined]
        X = check_data(self, X)
        labels = np.asarray(as_plain(y, "y"))
        if labels.shape != (X.shape[0],):
            raise ValueError(f"y must have shape ({X.shape[0]},), one label for each row of X, got {labels.shape}")
        return _measure(self, X, labels, eps)
