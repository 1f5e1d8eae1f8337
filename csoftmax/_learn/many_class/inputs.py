"""X of `csoftmax.linear_model.ManyClassRegression` as features: rows of numbers, or means of embeddings of ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted, validate_data

from ..._ops.rows import RowGradient
from ..messages import show
from ..objective import is_sparse
from ..parameters import as_plain, check_data

PREDICTED_ROWS = 1024  # of features that are made of embeddings at a time


def check_rows(estimator: Any, *data: Any, reset: bool = False) -> Any:
    """X, or (X, y), as training and predictions need them: features as in SoftmaxRegression, or int64 ids.

    A fitted model reads the kind of input that it was fitted to: the parameter may have been set since.
    """
    if not (hasattr(estimator, "embedding_") if not reset else estimator.embedding is not None):
        return check_data(estimator, *data, reset=reset)
    X, *y = (as_plain(a, name) for a, name in zip(data, ("X", "y")))
    if is_sparse(X):
        raise TypeError("X is sparse, but embedding needs columns of integers: the ids of each row")
    checked = validate_data(estimator, X, *y, reset=reset, dtype=None, ensure_all_finite=False)
    X = checked[0] if y else checked
    if X.dtype.kind not in "iu":
        raise TypeError(f"X must hold integers, the ids whose embeddings are averaged, got dtype {X.dtype}")
    if X.size and (X.min() < 0 or X.max() > np.iinfo(np.int64).max):
        _refuse_id(X, (X < 0) | (np.iinfo(np.int64).max < X), "ids are at least 0")
    X = X.astype(np.int64, copy=False)
    return (X, checked[1]) if y else X


def _refuse_id(X: NDArray[Any], is_bad: NDArray[np.bool_], allowed: str) -> None:
    row, column = np.argwhere(is_bad)[0]
    raise IndexError(f"X[{row}, {column}] is {show(X[row, column])}; {allowed}")


def check_ids(X: NDArray[np.int64], n_ids: int) -> None:
    """Refuse ids that the table of embeddings does not have."""
    if X.size and X.max() >= n_ids:
        _refuse_id(X, n_ids <= X, f"the table of embeddings has {n_ids} rows, 0 to {n_ids - 1}")


def make_embedding(estimator: Any, X: NDArray[np.int64] | None, rng: np.random.Generator) -> NDArray[np.float32]:
    """A new table: normal numbers of variance 1 / D, so that rows have about unit length.

    X: all of the data, or None for a minibatch, of which the number of ids does not follow.
    """
    given = estimator.embedding
    n_ids, dimension = given if isinstance(given, tuple | list) else (None, given)
    if n_ids is None:
        if X is None:
            raise ValueError(
                f"embedding={show(given)} needs all data at once to know the number of ids; pass embedding=(n_ids, "
                f"{show(given)})"
            )
        n_ids = int(X.max()) + 1
    table: NDArray[np.float32] = rng.standard_normal((int(n_ids), int(dimension)), np.float32)
    table /= np.float32(np.sqrt(dimension))
    return table


def agrees(given: Any, table: NDArray[Any] | None) -> bool:
    """Whether the parameter `embedding` describes a table of embeddings, or its absence."""
    if given is None or table is None:
        return given is None and table is None
    return tuple(given) == table.shape if isinstance(given, tuple | list) else int(given) == table.shape[1]


def check_same_embedding(estimator: Any) -> None:
    """Refuse to continue a training with other embeddings than those that there are."""
    table = getattr(estimator, "embedding_", None)
    if not agrees(estimator.embedding, table):
        fitted = "no embeddings" if table is None else f"embeddings of shape {table.shape}"
        raise ValueError(
            f"embedding is {show(estimator.embedding)}, but the model that training would continue has {fitted}: "
            "set it back, or fit anew with warm_start=False"
        )


def as_features(X: Any, embedding: NDArray[Any] | None) -> Any:
    """Features of some rows: X itself, or the mean of the embeddings of its ids."""
    if embedding is None:
        return X
    if X.shape[1] == 1:
        return embedding[X[:, 0]]
    features = embedding[X[:, 0]]
    for column in range(1, X.shape[1]):  # no array of (rows, columns, D)
        features += embedding[X[:, column]]
    features /= features.dtype.type(X.shape[1])
    return features


def blocks_of_features(X: Any, embedding: NDArray[Any] | None, rows: int) -> Iterator[tuple[slice, Any]]:
    """Features of X, some rows at a time."""
    for begin in range(0, X.shape[0], rows):
        part = slice(begin, min(begin + rows, X.shape[0]))
        yield part, as_features(X[part], embedding)


def spread_gradient(X: NDArray[np.int64], gradient: NDArray[Any]) -> RowGradient:
    """The gradient of the table of embeddings from that of the features, summed over equal ids in the order of rows."""
    from scipy.sparse import csr_array

    ids, inverse = np.unique(X, return_inverse=True)
    n, columns = X.shape
    shares = np.full(n * columns, 1 / columns, gradient.dtype)
    rows = np.repeat(np.arange(n), columns)
    incidence = csr_array((shares, (inverse.reshape(-1), rows)), shape=(len(ids), n))
    return RowGradient(ids, np.asarray(incidence @ gradient))


def read_features(estimator: Any, X: Any) -> Any:
    """Checked features of X for predictions, or ids, of which features are made block by block."""
    check_is_fitted(estimator, "head_")
    X = check_rows(estimator, X)
    if hasattr(estimator, "embedding_"):
        check_ids(X, len(estimator.embedding_))
    return X


def map_blocks(estimator: Any, X: Any, function: Callable[[Any, slice], NDArray[Any]]) -> NDArray[Any]:
    """The results of function(features, rows) for all rows of X, which are checked first."""
    X = read_features(estimator, X)
    if not hasattr(estimator, "embedding_"):
        return function(X, slice(None))
    blocks = blocks_of_features(X, estimator.embedding_, PREDICTED_ROWS)
    return np.concatenate([function(features, rows) for rows, features in blocks])
