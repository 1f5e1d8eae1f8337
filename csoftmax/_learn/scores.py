"""Accuracy of classifiers whose rows are in memory."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike

from .parameters import as_plain


class ScoresInMemory:
    """The method `score` of a classifier, which refuses what scikit-learn would compute or ignore silently."""

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy on the given rows.

        Parameters
        ----------
        X : array-like or sparse matrix, as in `predict`
            Features.
        y : array-like of shape (N,)
            True labels.
        sample_weight : array-like of shape (N,), optional
            Weights of the rows.

        Returns
        -------
        float
            The weighted share of the rows whose class is predicted.

        Raises
        ------
        TypeError, ValueError
            As from `predict`; if y or the weights are a collection of Dask, or masked, or do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.linear_model import ManyClassRegression
        >>> X, y = np.repeat(np.eye(2), 50, axis=0), np.repeat([0, 1], 50)
        >>> model = ManyClassRegression(head="full", max_epochs=20, random_state=0).fit(X, y)
        >>> model.score(X, y)
        1.0
        """
        weight = None if sample_weight is None else as_plain(sample_weight, "sample_weight")
        return super().score(X, as_plain(y, "y"), weight)  # type: ignore[misc,no-any-return]
