"""Fits on Spark; requires the extra ``spark``. Predictions need no help: ``df.mapInPandas`` with the model inside."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

try:
    import sklearn.base  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"csoftmax.spark needs scikit-learn >= 1.6 ({error}); install it with: pip install 'csoftmax[spark]'"
    ) from error

from ._learn.parts.fit import fit_parts
from ._learn.parts.spark import open_frame

__all__ = ["fit"]


def fit(model: Any, df: Any, *, features: Sequence[str] | str, label: str, weight: str | None = None) -> Any:
    """Train a model on a data frame of Spark, whose partitions are the parts.

    Parameters
    ----------
    model : csoftmax.linear_model.SoftmaxRegression
        The model, with ``solver="lbfgs"``, a number or None as `penalty_l2`, and without `adversarial` and `device`.
    df : pyspark.sql.DataFrame
        The rows, of a classic session (not of Spark Connect, which has no partitions).
    features : sequence of str, or str
        Names of the columns with one number each; or the name of one column of vectors or arrays.
    label : str
        Name of the column with the labels.
    weight : str, optional
        Name of the column with the sample weights.

    Returns
    -------
    model
        The model itself, fitted. The same partitions give the same bits in every run, which Spark's own sums do not
        promise; the loss is that of one process to 1e-12.

    Raises
    ------
    TypeError, ValueError
        If a parameter, a column or a row does not fit; the message names the row among all, and its value.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        As from `SoftmaxRegression.fit`.

    Examples
    --------
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> from csoftmax.spark import fit
    >>> model = fit(SoftmaxRegression(), df, features=["a", "b"], label="y")  # doctest: +SKIP
    """
    engine = open_frame(df, features, label, weight)
    try:
        for message, category in fit_parts(model, engine, "csoftmax.spark.fit"):
            warnings.warn(message, category, stacklevel=2)
    finally:
        engine.close()
    return model
