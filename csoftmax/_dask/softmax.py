"""softmax, log_softmax, logsumexp, and the gradients of the first two, of Dask collections."""

from __future__ import annotations

from typing import Any, SupportsIndex

from .._ops import softmax as whole
from .rows import run_logsumexp, run_rows

__all__ = ["log_softmax", "log_softmax_vjp", "logsumexp", "softmax", "softmax_vjp"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


def softmax(
    x: Any,
    axis: _Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    sink: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Softmax of a Dask array or dataframe along one or more axes, lazily.

    Parameters
    ----------
    x : dask.array.Array, dask.dataframe.DataFrame, Series, or array_like
        Logits in a dtype of `csoftmax.softmax`, in any chunks, those of the class axis included. Lengths of chunks of
        other axes need not be known, as of arrays made from dataframes.
    axis : int, tuple of ints or None, default -1
        As in `csoftmax.softmax`. The chunks of one class axis are moved to end at multiples of 4096; several axes are
        brought into one chunk.
    temperature, where, sink
        As in `csoftmax.softmax`; they may be Dask collections, too. With a `sink`, the class axis is brought into one
        chunk.
    device : {None, "cpu", "cuda", "cuda:<index>"}, optional
        Device that computes the chunks, on each worker; the class axis is brought into one chunk. None follows them.
    num_threads : int, optional
        Upper bound on the threads of each task; None means 1, because Dask runs several tasks at a time.
    split_every : int, optional
        How many sums a task of the tree over class chunks merges, at least 2; None means that of `options`, 8.

    Returns
    -------
    dask.array.Array of the shape of x, or dask.dataframe.DataFrame
        ``csoftmax.softmax`` of the whole, equal in every bit for any chunks, tree and scheduler; in the chunks of `x`
        but for those of the class axis. A DataFrame gives one with its columns and index.

    Raises
    ------
    TypeError, ValueError
        As in `csoftmax.softmax`, while the graph is built, as far as the error does not depend on values; and if a
        class axis in several chunks has unknown lengths, or chunks of unknown lengths differ in number.

    Notes
    -----
    Nothing is computed before the result is. Where a row lies in one chunk, a task computes the rows of a chunk. Else a
    task for each chunk adds up its part of every row, 96 bytes a row (`csoftmax.distributed.partial`), a tree merges
    these, and a second task for each chunk, which reads it once more, writes the result. A task holds the chunk, its
    result, and the sums.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> x = da.zeros((4, 10000), chunks=(2, 3000))
    >>> y = cd.softmax(x)
    >>> y.chunks
    ((2, 2), (4096, 4096, 1808))
    >>> float(y[0, 0].compute())
    0.0001
    """
    arrays = {"temperature": temperature, "where": where, "sink": sink}
    options = {"device": device, "num_threads": num_threads}
    return run_rows(whole.softmax, x, axis, arrays, options, split_every)


def log_softmax(
    x: Any,
    axis: _Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    sink: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Logarithm of the softmax of a Dask array or dataframe, lazily.

    Parameters
    ----------
    x, axis, temperature, where, sink, device, num_threads, split_every
        As in `softmax`.

    Returns
    -------
    dask.array.Array of the shape of x, or dask.dataframe.DataFrame
        ``csoftmax.log_softmax`` of the whole, equal in every bit.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> cd.log_softmax(da.from_array([40.0, 0.0], chunks=1)).compute()
    array([-4.24835426e-18, -4.00000000e+01])
    """
    arrays = {"temperature": temperature, "where": where, "sink": sink}
    options = {"device": device, "num_threads": num_threads}
    return run_rows(whole.log_softmax, x, axis, arrays, options, split_every)


def logsumexp(
    x: Any,
    axis: _Axis = -1,
    *,
    b: Any = None,
    return_sign: bool = False,
    keepdims: bool = False,
    temperature: Any = 1.0,
    where: Any = None,
    sink: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Logarithm of the sum of exponentials of a Dask array or dataframe, lazily.

    Parameters
    ----------
    x, axis, temperature, where, sink, device, num_threads, split_every
        As in `softmax`.
    b, return_sign, keepdims
        As in `csoftmax.logsumexp`; `b` may be a Dask collection. With `b` or `return_sign`, the class axis is brought
        into one chunk.

    Returns
    -------
    dask.array.Array, dask.dataframe.Series, or a pair of them
        ``csoftmax.logsumexp`` of the whole, equal in every bit; of a DataFrame, a Series with its index.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> cd.logsumexp(da.zeros((2, 100000), chunks=(1, 50000))).compute()
    array([11.51292546, 11.51292546])
    """
    arrays = {"b": b, "temperature": temperature, "where": where, "sink": sink}
    options = {"return_sign": return_sign, "keepdims": keepdims, "device": device, "num_threads": num_threads}
    return run_logsumexp(whole.logsumexp, x, axis, arrays, options, split_every)


def softmax_vjp(
    dy: Any,
    y: Any,
    axis: _Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Gradient of softmax, from its result, of Dask arrays or dataframes, lazily.

    Parameters
    ----------
    dy, y : as x in `softmax`
        The derivative of the result, and the result, of one shape and dtype.
    axis, temperature, where, device, num_threads, split_every
        As in `softmax`.

    Returns
    -------
    dask.array.Array of the shape of dy, or dask.dataframe.DataFrame
        ``csoftmax.softmax_vjp`` of the whole, equal in every bit.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> y = da.from_array([[0.5, 0.5]], chunks=1)
    >>> cd.softmax_vjp(da.from_array([[1.0, 0.0]]), y).compute()
    array([[ 0.25, -0.25]])
    """
    arrays = {"y": y, "temperature": temperature, "where": where}
    options = {"device": device, "num_threads": num_threads}
    return run_rows(whole.softmax_vjp, dy, axis, arrays, options, split_every, "dy")


def log_softmax_vjp(
    dy: Any,
    y: Any,
    axis: _Axis = -1,
    *,
    temperature: Any = 1.0,
    where: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    split_every: SupportsIndex | None = None,
) -> Any:
    """Gradient of log_softmax, from its result, of Dask arrays or dataframes, lazily.

    Parameters
    ----------
    dy, y, axis, temperature, where, device, num_threads, split_every
        As in `softmax_vjp`.

    Returns
    -------
    dask.array.Array of the shape of dy, or dask.dataframe.DataFrame
        ``csoftmax.log_softmax_vjp`` of the whole, equal in every bit.

    Raises
    ------
    TypeError, ValueError
        As in `softmax`.

    Examples
    --------
    >>> import dask.array as da
    >>> from csoftmax import dask as cd
    >>> y = cd.log_softmax(da.zeros((1, 2)))
    >>> cd.log_softmax_vjp(da.from_array([[1.0, 0.0]]), y).compute()
    array([[ 0.5, -0.5]])
    """
    arrays = {"y": y, "temperature": temperature, "where": where}
    options = {"device": device, "num_threads": num_threads}
    return run_rows(whole.log_softmax_vjp, dy, axis, arrays, options, split_every, "dy")
