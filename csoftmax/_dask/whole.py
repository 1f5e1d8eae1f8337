"""Functions of Dask collections that need whole rows, and bring the class axis into one chunk."""

from __future__ import annotations

from typing import Any, SupportsIndex

from .._ops import divergence, softmax
from .._ops import entmax as projections
from .blocks import check_split_every
from .rows import run_whole

__all__ = ["entmax", "entropy", "kl_divergence", "sparsemax"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


def entropy(
    x: Any,
    axis: _Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    keepdims: bool = False,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Shannon entropy of ``softmax(x / T)``, of a Dask array or dataframe, lazily.

    Parameters
    ----------
    x, axis, temperature, where, device, num_threads
        As in `softmax`, but the class axis is brought into one chunk in any case.
    keepdims : bool, default False
        As in `csoftmax.entropy`.
    split_every : int, optional
        Checked, but not used: there is no tree.

    Returns
    -------
    dask.array.Array, or dask.dataframe.Series
        ``csoftmax.entropy`` of the whole, equal in every bit; of a DataFrame, a Series with its index.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> cd.entropy(da.zeros((2, 4), chunks=2)).compute()
    array([1.38629436, 1.38629436])
    """
    check_split_every(split_every)
    arrays = {"temperature": temperature, "where": where}
    return run_whole(softmax.entropy, x, axis, arrays, {"device": device, "num_threads": num_threads}, keepdims)


def kl_divergence(
    x: Any,
    y: Any,
    axis: _Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    keepdims: bool = False,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Kullback-Leibler divergence of the softmax of two Dask arrays or dataframes of logits, lazily.

    Parameters
    ----------
    x, y : as x in `softmax`
        Logits of p and of q, of one shape and dtype.
    axis, temperature, where, keepdims, device, num_threads, split_every
        As in `entropy`.

    Returns
    -------
    dask.array.Array, or dask.dataframe.Series
        ``csoftmax.kl_divergence`` of the whole, equal in every bit.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> cd.kl_divergence(da.from_array([[2.0, 1.0]]), da.from_array([[1.0, 2.0]])).compute()
    array([0.46211716])
    """
    check_split_every(split_every)
    arrays = {"y": y, "temperature": temperature, "where": where}
    options = {"device": device, "num_threads": num_threads}
    return run_whole(divergence.kl_divergence, x, axis, arrays, options, keepdims)


def sparsemax(
    x: Any,
    axis: _Axis = -1,
    *,
    where: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Sparsemax of a Dask array or dataframe, lazily.

    Parameters
    ----------
    x, axis, where, device, num_threads, split_every
        As in `entropy`.

    Returns
    -------
    dask.array.Array of the shape of x, or dask.dataframe.DataFrame
        ``csoftmax.sparsemax`` of the whole, equal in every bit.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> cd.sparsemax(da.from_array([[1.0, 0.5, -1.0]], chunks=(1, 2))).compute()
    array([[0.75, 0.25, 0.  ]])
    """
    check_split_every(split_every)
    options = {"device": device, "num_threads": num_threads}
    return run_whole(projections.sparsemax, x, axis, {"where": where}, options)


def entmax(
    x: Any,
    alpha: Any = 1.5,
    axis: _Axis = -1,
    *,
    where: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Entmax of a Dask array or dataframe, lazily.

    Parameters
    ----------
    x, axis, where, device, num_threads, split_every
        As in `entropy`.
    alpha : float or array_like, default 1.5
        As in `csoftmax.entmax`; it may be a Dask collection.

    Returns
    -------
    dask.array.Array of the shape of x, or dask.dataframe.DataFrame
        ``csoftmax.entmax`` of the whole, equal in every bit.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> cd.entmax(da.from_array([[1.0, 0.0, -3.0]], chunks=(1, 2))).compute().round(3)
    array([[0.831, 0.169, 0.   ]])
    """
    check_split_every(split_every)
    arrays = {"alpha": alpha, "where": where}
    return run_whole(projections.entmax, x, axis, arrays, {"device": device, "num_threads": num_threads})
