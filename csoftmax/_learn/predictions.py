"""Predictions of `csoftmax.linear_model.SoftmaxRegression` for arrays of any library, as arrays of the same library.

X of a CUDA device (CuPy, PyTorch) is multiplied there, with the coefficients copied to it.  Scikit-learn's checks of X
hold for both: the number and the names of features, one row or more, finite values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from .._arguments.foreign import accept_foreign, is_foreign
from .._arguments.places import is_cupy, place_of
from .._ops.softmax import log_softmax, softmax
from .objective import compute_logits, to_host
from .parameters import as_plain, check_data
from .parts.lazy import is_lazy
from .parts.predictions import predict_lazily


def _check_on_device(model: Any, X: Any) -> Any:
    """X of a CUDA device in float32 or float64, after the checks of `check_data`."""
    name = type(model).__name__
    if X.ndim != 2:
        raise ValueError(f"X must have two axes, got shape {X.shape}")
    if X.dtype.kind not in "biuf":
        raise ValueError(f"X has dtype {X.dtype}: complex data are not supported")
    if X.shape[0] == 0:
        raise ValueError(f"X has shape {X.shape}: at least one row is required by {name}")
    if X.shape[1] != model.n_features_in_:
        raise ValueError(f"X has {X.shape[1]} features, but {name} is expecting {model.n_features_in_} features")
    X = X.astype(np.float32 if X.dtype == np.float32 else np.float64, copy=False)
    if not bool(to_host(np.isfinite(X).all())):
        raise ValueError(f"X contains NaN or infinity, which {name} does not accept")
    return X


def _compute_logits(X: Any, model: Any) -> Any:
    """Logits before the temperature, in the dtype of X."""
    X = as_plain(X, "X")
    if not is_cupy(X):
        X = check_data(model, X)
        return compute_logits(X, model.coef_.astype(X.dtype, copy=False), model.intercept_.astype(X.dtype, copy=False))
    place = place_of(None, X)
    with place.context():
        X = _check_on_device(model, X)
        coef, intercept = (place.xp.asarray(a.astype(X.dtype, copy=False)) for a in (model.coef_, model.intercept_))
        return compute_logits(X, coef, intercept)


@accept_foreign
def _compute_margins(X: Any, model: Any) -> Any:
    logits = _compute_logits(X, model)
    return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


@accept_foreign
def _choose_labels(X: Any, model: Any) -> Any:
    best = _compute_logits(X, model).argmax(axis=1)
    if not is_cupy(best):
        return model.classes_[best]
    with place_of(None, best).context():
        return place_of(None, best).xp.asarray(model.classes_)[best]


@accept_foreign
def _compute_probabilities(X: Any, model: Any) -> Any:
    logits = _compute_logits(X, model).astype(np.float64, copy=False)
    return softmax(logits, temperature=model.temperature, out=logits, num_threads=model.num_threads)


@accept_foreign
def _compute_log_probabilities(X: Any, model: Any) -> Any:
    logits = _compute_logits(X, model).astype(np.float64, copy=False)
    return log_softmax(logits, temperature=model.temperature, out=logits, num_threads=model.num_threads)


def _answer(function: Any, X: Any, model: Any) -> Any:
    """The result of a function above; NumPy's arrays, the most frequent, are spared the search for other kinds."""
    check_is_fitted(model, "coef_")
    if is_lazy(X):
        return predict_lazily(function.__wrapped__, X, model)
    return function(X, model) if is_foreign(X) else function.__wrapped__(X, model)


def compute_margins(X: Any, model: Any) -> Any:
    """The result of `decision_function`."""
    return _answer(_compute_margins, X, model)


def choose_labels(X: Any, model: Any) -> Any:
    """The result of `predict`: an array of X's library if the classes are numbers; no other library has strings."""
    if not hasattr(model, "classes_") or model.classes_.dtype.kind in "biuf" or is_lazy(X):
        return _answer(_choose_labels, X, model)
    check_is_fitted(model, "coef_")
    return model.classes_[to_host(_compute_logits(X, model).argmax(axis=1))]


def compute_probabilities(X: Any, model: Any) -> Any:
    """The result of `predict_proba`."""
    return _answer(_compute_probabilities, X, model)


def compute_log_probabilities(X: Any, model: Any) -> Any:
    """The result of `predict_log_proba`."""
    return _answer(_compute_log_probabilities, X, model)
