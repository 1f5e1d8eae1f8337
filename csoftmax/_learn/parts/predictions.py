"""Lazy predictions of models for collections of Dask: the model is one node of the graph, shipped once a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._arguments.foreign import is_lazy_frame
from ..._distributed.held import Held, align
from ..._distributed.parts import merge_all, sum_of_part, total_parts
from ..labels import is_text
from ..messages import show
from ..scores import ScoresInMemory
from . import rows
from .lazy import check_table, is_lazy

Function = Callable[[Any, Any], NDArray[Any]]
"""Of X and a model; one entry, or one row, for each row of X."""


def _try_out(function: Function, X: Any, model: Any) -> None:
    """Predict a row of the columns of a lazy X, so that it is refused as one in memory is, before anything is computed.

    Columns of objects, of which nothing is known, are taken for numbers.
    """
    if X.ndim != 1 or not getattr(model, "_TAKES_ONE_AXIS", False):
        check_table("X", X)
    if is_lazy_frame(X):
        one = X._meta_nonempty.iloc[:1].copy()
        if one.ndim == 1 and one.dtype == object:
            one[:] = 0.0
        for i, dtype in enumerate(one.dtypes if one.ndim == 2 else ()):
            if dtype.kind == "O" and isinstance(dtype, np.dtype):
                one.isetitem(i, 0.0)
        function(one, model)
    elif not any(map(np.isnan, X.shape[1:])):
        function(np.zeros((1, *X.shape[1:]), X.dtype), model)


def _predict_block(x: Any, model: Held, function: Function = None, dtype: Any = None) -> NDArray[Any]:  # type: ignore[assignment]
    if x.shape[0] == 0:
        return make_empty(function, model.content, x)
    return np.asarray(function(align(x), model.content))


def make_empty(function: Function, model: Any, x: Any) -> NDArray[Any]:
    """The prediction of no rows."""
    one = np.zeros((1, model.n_features_in_), x.dtype if getattr(x, "dtype", None) == np.float32 else np.float64)
    if hasattr(x, "columns"):
        import pandas

        one = pandas.DataFrame(one, columns=x.columns)
    return np.asarray(function(one, model))[:0]


def _predict_frame(frame: Any, model: Held, function: Function, columns: Any) -> Any:
    import pandas

    a = _predict_block(frame, model, function)
    if a.ndim == 1:
        return pandas.Series(a, index=frame.index, dtype=None if a.dtype.kind != "U" else object)
    return pandas.DataFrame(a, index=frame.index, columns=columns)


def predict_lazily(function: Function, X: Any, model: Any) -> Any:
    """The function of a model for each part of X: an array for an array, a DataFrame or Series for a DataFrame."""
    import dask
    import dask.array as da

    from ..._dask.parts import check_rows

    shipped = dask.delayed(Held(model), pure=False, traverse=False)
    if is_lazy_frame(X):
        _try_out(function, X, model)
        empty = make_empty(function, model, X._meta)
        columns = model.classes_ if empty.ndim == 2 else None
        meta = _predict_frame(X._meta, Held(model), function, columns)
        return X.map_partitions(_predict_frame, shipped, function, columns, meta=meta)
    if not isinstance(X, da.Array):
        raise TypeError(f"X must be a dask array or DataFrame for lazy predictions, got {type(X).__name__}")
    check_rows("X", X)
    _try_out(function, X, model)
    empty = make_empty(function, model, X._meta)
    given: dict[str, Any] = {} if empty.ndim == 1 else {"chunks": (X.chunks[0], (empty.shape[1],))}
    if X.ndim != empty.ndim:
        given["drop_axis" if empty.ndim == 1 else "new_axis"] = 1
    return da.map_blocks(_predict_block, X, shipped, function=function, dtype=empty.dtype, meta=empty, **given)


class _Hits(NamedTuple):
    """The weights of the rows of a part, and how many of these are predicted correctly; a score is their ratio."""

    summary: rows.Summary
    weights: NDArray[np.float64]  # of the rows that are predicted correctly, and of all


def _count_hits(held: Held, number: int, *given: Any) -> _Hits:
    """The hits of a model in a part: (X, y) or (X, y, sample_weight), checked as those of a fit.

    Where X is not a table of features, the model checks it.
    """
    from ..._dask.parts import rows_in

    model, x = held.content, align(given[0])
    is_table = model._SCORES_FEATURES
    part = rows.load(given if is_table else (np.zeros((rows_in(x), 1)), *given[1:]), None, number)
    if part.problem is None and len(part.classes) and is_text(part.classes) != is_text(model.classes_):
        kinds = f"of another kind than the classes: {show(model.classes_)}"
        text = f"y has the label {show(part.classes[0])}, {kinds}"
        part = part._replace(problem=rows.Problem(ValueError, text, "", None, ""))
    predicted = None
    if part.problem is None and len(part.codes):
        try:
            predicted = np.asarray(model.predict(x))
        except (TypeError, ValueError) as error:
            if is_table:
                raise
            part = part._replace(problem=rows.Problem(type(error), str(error), "", None, ""))
    summary = rows.summarize(part, None, number)
    if predicted is None:
        return _Hits(summary, np.zeros(2))
    right = predicted == part.classes[part.codes]
    w = np.ones(len(right)) if part.weights is None else part.weights
    return _Hits(summary, np.array([w[right].sum(), w.sum()]))


def _divide(*found: _Hits) -> NDArray[np.float64]:
    summaries = [part.summary for part in found]
    rows.raise_problem(summaries)
    if not any(summary.rows for summary in summaries):
        raise ValueError(f"X has no rows in any of its {len(found)} parts, of which an accuracy could be told")
    if not any(summary.has_weight for summary in summaries):
        raise ValueError("sample_weight is zero for every row: there is no row to score")
    nodes = merge_all(sum_of_part(number, part.weights) for number, part in enumerate(found))
    hits, weight = total_parts(nodes, len(found))
    return np.asarray(hits / weight)


class ScoresLazily(ScoresInMemory):
    """The method `score` of a classifier, lazy for collections of Dask."""

    _SCORES_FEATURES: ClassVar[bool] = True  # whether X is a table of features as `SoftmaxRegression` takes it
    _TAKES_ONE_AXIS: ClassVar[bool] = False  # whether X may be logits of two classes, with one axis

    def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Any:
        """Accuracy on the given rows.

        Parameters
        ----------
        X : array-like or sparse matrix, as in `predict`
            Features, or the logits that a calibrator takes.
        y : array-like of shape (N,)
            True labels.
        sample_weight : array-like of shape (N,), optional
            Weights of the rows.

        Returns
        -------
        float
            The weighted share of the rows whose class is predicted; for collections of Dask, a lazy array without axes.

        Raises
        ------
        TypeError, ValueError
            As from `predict`, or if labels or weights are masked or do not fit; for collections of Dask, while the
            result is computed: the message names the part, and the row among all, or that of logits in the part.

        Examples
        --------
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits, y = [[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 10, [0] * 20 + [1] * 20
        >>> TemperatureScaling().fit(logits, y).score(logits, y)
        0.75
        """
        if not (is_lazy(X) or is_lazy(y) or is_lazy(sample_weight)):
            return super().score(X, y, sample_weight)
        import dask
        import dask.array as da

        from ..._dask.parts import split_parts

        if is_lazy(X) and not isinstance(X, list | tuple):  # nothing is known of Delayed
            _try_out(lambda x, model: model.predict(x), X, self)
        parts = split_parts(("X", X), ("y", y), ("sample_weight", sample_weight))
        shipped = dask.delayed(Held(self), pure=False, traverse=False)
        count, divide = dask.delayed(_count_hits, pure=False), dask.delayed(_divide, pure=False)
        hits = [count(shipped, number, *part) for number, part in enumerate(parts)]
        return da.from_delayed(divide(*hits), shape=(), dtype=np.float64)
