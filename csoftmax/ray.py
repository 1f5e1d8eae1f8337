"""Fits on Ray; requires the extra ``ray``. Predictions need no help: ``dataset.map_batches(model.predict_proba)``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

try:
    import sklearn.base  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"csoftmax.ray needs scikit-learn >= 1.6 ({error}); install it with: pip install 'csoftmax[ray]'"
    ) from error

from ._learn.parts.fit import fit_parts
from ._learn.parts.ray import RayEngine

__all__ = ["fit"]


def fit(model: Any, parts: Sequence[Any]) -> Any:
    """Train a model on parts in the object store of Ray, with one task a processor and iteration.

    Parameters
    ----------
    model : csoftmax.linear_model.SoftmaxRegression
        The model, with ``solver="lbfgs"``, a number or None as `penalty_l2`, and without `adversarial` and `device`.
    parts : sequence of ray.ObjectRef
        References to tuples (X, y) or (X, y, sample_weight) of consecutive rows, as `SoftmaxRegression.fit` takes them.

    Returns
    -------
    model
        The model itself, fitted. The parts alone determine its bits, not the cluster; the loss is that of one process
        to 1e-12.

    Raises
    ------
    TypeError, ValueError
        If a parameter or a row does not fit; the message names the row among all, and its value.
    ImportError
        If Ray is not installed.
    csoftmax.distributed.DistributedMemoryError
        If a worker is lost for lack of memory.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        As from `SoftmaxRegression.fit`.

    Examples
    --------
    >>> import ray  # doctest: +SKIP
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> from csoftmax.ray import fit
    >>> parts = [ray.put((X[:500], y[:500])), ray.put((X[500:], y[500:]))]  # doctest: +SKIP
    >>> model = fit(SoftmaxRegression(), parts)  # doctest: +SKIP
    """
    engine = RayEngine(parts)
    try:
        for message, category in fit_parts(model, engine, "csoftmax.ray.fit"):
            warnings.warn(message, category, stacklevel=2)
    finally:
        engine.close()
    return model
