"""The k largest or smallest elements of rows, their softmax, and the sparse matrix of both."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign, as_native
from .._arguments.layouts import axis_last, check_out, check_where, masked, normalize_axes, shares_memory
from .._arguments.numbers import check_choice, check_count, check_flag, check_temperatures, number_and_rows
from .._arguments.places import CPU, DeviceError, Place, as_array, as_float, is_cupy, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import as_buffer

__all__ = ["TopK", "to_csr", "topk", "topk_softmax"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


class TopK(NamedTuple):
    """The result of `topk` and `topk_softmax`.

    Attributes
    ----------
    values : ndarray of the shape of x, with k in place of n
        The elements, or their probabilities, in the dtype of x (of `topk_softmax` float64 for integers).
    indices : ndarray of int64 of the same shape
        Their places along the axis.
    """

    values: Any
    indices: Any


class TopKPlan(NamedTuple):
    """A checked call of topk or topk_softmax."""

    dtype: int
    x: Any
    values: Any
    indices: Any
    smallest: bool
    unsorted: bool
    normalize: int
    temperature: float | Any  # a number, or an array with one for each row
    num_threads: int | None
    result: tuple[Any, Any]  # the arrays that values and indices are views of
    out: tuple[Any, Any] | None  # the caller's arrays for them
    empty: Any | None  # mask of the rows that `where` masks completely
    place: Place

    def execute(self) -> tuple[Any, Any]:
        """Compute, and return values and indices."""
        arrays = self.dtype, as_buffer(self.x), as_buffer(self.values), self.indices
        number, each = number_and_rows(self.temperature, self.x.shape[:-1], 1.0)
        options = self.smallest, self.unsorted, self.normalize, number
        if self.place.on_cuda:
            with self.x.device:
                _cuda.launch_topk(*arrays, *options, each)
                return self._finish()
        binding.run_topk(*arrays, *options, self.num_threads, each)
        return self._finish()

    def _finish(self) -> tuple[Any, Any]:
        if self.empty is not None:  # not by indexing with the mask, which would make a device count it first
            values = as_buffer(self.values)
            values[...] = self.place.xp.where(self.empty[..., None], values.dtype.type(0), values)
        if self.out is None:
            return self.result
        for to, a in zip(self.out, self.result, strict=True):
            to[...] = a
        return self.out


def plan_topk(
    x: Any,
    k: Any,
    axis: Any,
    *,
    largest: bool = True,
    sorted: bool,
    normalize: str | None = None,
    temperature: Any = 1.0,
    where: Any = None,
    out: Any = None,
    device: str | None = None,
    num_threads: Any = None,
) -> TopKPlan:
    """Check a call of topk or, with `normalize`, of topk_softmax."""
    largest, sorted = check_flag("largest", largest), check_flag("sorted", sorted)
    place = place_of(device, x)
    with place.context():
        (temperature,) = to_host(temperature)
        options = not largest, not sorted, binding.NORMALIZE[normalize], temperature, num_threads
        return _lay_out_topk(place, x, k, axis, options, where, out)


def _lay_out_topk(
    place: Place, x: Any, k: Any, axis: Any, options: tuple[bool, bool, int, Any, Any], where: Any, out: Any
) -> TopKPlan:
    xp = place.xp
    x, dtype = _as_comparable(x, place) if options[2] == binding.NORMALIZE[None] else as_float("x", x, place)
    axes = normalize_axes(axis, x.ndim)
    smallest, unsorted, normalize, temperature, num_threads = options
    row_shape = () if type(temperature) is float else tuple(1 if i in axes else n for i, n in enumerate(x.shape))
    temperature = check_temperatures(temperature, row_shape, False)
    mask = None if where is None else check_where(where, x.shape, place)
    if x.ndim == 0:
        x, mask = x.reshape(1), None if mask is None else mask.reshape(1)
    n = math.prod(x.shape[i] for i in axes)
    k = check_count("k", k)
    if k > n:
        raise ValueError(f"k must be at most the length of the axis, {n}, got {k}")
    rows = axis_last(x, axes)
    empty = None
    if mask is not None:
        mask = axis_last(mask, axes)
        rows = masked(xp, mask, rows)
        empty = ~mask.any(-1)
    at = axes[0] if len(axes) == 1 else rows.ndim - 1
    shape = (*rows.shape[:-1][:at], k, *rows.shape[:-1][at:])
    result = xp.empty(shape, x.dtype), xp.empty(shape, np.int64)
    if out is not None:
        check_pair(out, *((a.shape, a.dtype) for a in result), place=place)
    values, indices = (np.moveaxis(a, at, -1) for a in result)
    flags = smallest, unsorted, normalize
    return TopKPlan(dtype, rows, values, indices, *flags, temperature, num_threads, result, out, empty, place)


def _as_comparable(x: Any, place: Place) -> tuple[Any, int]:
    """X as an array of integers, or of one of the four dtypes, in native byte order, and the code of its dtype."""
    x = place.array("x", x)
    if x.dtype.kind not in "iu" or (not x.dtype.isnative and is_cupy(x)):
        return as_float("x", x, place)
    return (x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))), binding.INTEGER


def check_pair(out: Any, *of_results: tuple[tuple[int, ...], Any], place: Place = CPU) -> None:
    """Refuse an `out` that is not a pair of arrays of the shapes and dtypes of the results."""
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"out must be a pair of arrays, for values and indices, got {type(out).__name__}")
    for to, (shape, dtype) in zip(out, of_results, strict=True):
        check_out(to, shape, dtype, place)
    if shares_memory(*out):
        raise ValueError("out: values and indices share memory")


@accept_foreign
def _run_topk(x: Any, k: Any, axis: Any, **options: Any) -> tuple[Any, Any]:
    return plan_topk(x, k, axis, **options).execute()


@hand_over_recorded
def topk(
    x: ArrayLike,
    k: SupportsIndex,
    axis: _Axis = -1,
    *,
    largest: bool = True,
    sorted: bool = True,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> TopK:
    """The k largest (or smallest) elements along an axis, and their indices.

    Parameters
    ----------
    x : array_like of shape (..., n)
        float16, bfloat16, float32, float64 or any integer dtype, but not bool; n is the length of `axis`.
    k : int
        Number of elements, from 0 to n.
    axis : int, tuple of ints or None, default -1
        Axis of the selection. The axes of a tuple, or all axes for None, become one, which is the last of the result;
        indices then count in C order of the axes as named.
    largest : bool, default True
        If False, the k smallest are selected.
    sorted : bool, default True
        If True, the best comes first. If False, the order is unspecified, which is faster.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    TopK
        ``values`` of the shape and dtype of `x`, with k in place of n, and ``indices`` of the same shape, int64.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`; ValueError also for a k that is negative or greater than n.

    Notes
    -----
    The order is total: NaN is greater than every number, -0 equals +0, and of equal elements the one with the lowest
    index comes first, for the largest and the smallest alike; ``torch.topk`` leaves ties open. Values are exact copies
    (NaN canonical). Integers are compared exactly, whatever their size, and keep their dtype.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.topk(np.array([3.0, 1.0, 4.0, 1.0, 5.0, 4.0]), 3)
    TopK(values=array([5., 4., 4.]), indices=array([4, 2, 5]))
    """
    return TopK(*_run_topk(x, k, axis, largest=largest, sorted=sorted, device=device, num_threads=num_threads))


@hand_over_recorded
def topk_softmax(
    x: ArrayLike,
    k: SupportsIndex,
    axis: _Axis = -1,
    *,
    temperature: ArrayLike = 1.0,
    normalize: Literal["topk", "full"] = "topk",
    sorted: bool = True,
    where: ArrayLike | None = None,
    out: tuple[NDArray[Any], NDArray[np.int64]] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> TopK:
    """Softmax of the k largest elements along an axis, and their indices.

    Parameters
    ----------
    x, k, axis, sorted
        As in `topk`; integers are computed in float64.
    temperature : float or array_like, default 1.0
        T >= 0, as in `softmax`: a number, or one a row.
    normalize : {"topk", "full"}, default "topk"
        "topk": the k probabilities sum to 1. "full": they are those of the softmax of all elements, to the last bit.
    where : array_like of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out. If fewer than k elements remain, masked ones fill the k, with
        probability 0.
    out : pair of ndarrays of the shapes and dtypes of the result, optional
        Arrays that receive values and indices.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    TopK
        ``values``, the probabilities, and ``indices``.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `topk`.

    Notes
    -----
    One pass over the row finds the elements. For "full" a second one adds up the exponentials while the row is in
    cache. No array of the size of `x` is written, except on a GPU, where "full" computes `softmax` and gathers from it.
    NaN or +inf among the unmasked elements, or only -inf, makes the row NaN, as in `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x = np.log([0.1, 0.4, 0.2, 0.3])
    >>> csoftmax.topk_softmax(x, 2, normalize="full").values.round(3)
    array([0.4, 0.3])
    >>> csoftmax.topk_softmax(x, 2).values.round(3)
    array([0.571, 0.429])
    """
    check_choice("normalize", normalize, ("topk", "full"))
    result = _run_topk(
        x,
        k,
        axis,
        sorted=sorted,
        normalize=normalize,
        temperature=temperature,
        where=where,
        out=out,
        device=device,
        num_threads=num_threads,
    )
    return TopK(*result)


@hand_over_recorded
def to_csr(topk: TopK | tuple[ArrayLike, ArrayLike], n_classes: SupportsIndex) -> Any:
    """Top-k results as a sparse matrix, one row for each row of the batch.

    Parameters
    ----------
    topk : TopK, or a pair of arrays (values, indices) of shape (..., k)
        A result of `topk` or `topk_softmax` along the last axis.
    n_classes : int
        Number of columns of the matrix.

    Returns
    -------
    scipy.sparse.csr_array of shape (rows, n_classes)
        Matrix in canonical form, with sorted indices and no duplicates. float16 and bfloat16, which SciPy lacks, become
        float32. Probabilities of 0 stay as explicit zeros.

    Raises
    ------
    ImportError
        If SciPy is not installed.
    IndexError
        If an index lies outside [0, n_classes).
    TypeError, ValueError
        If the shapes differ, the indices are not integers, or a row has the same index twice.

    Notes
    -----
    Rows are those of the batch in C order; a single row makes a matrix with one row.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> best = csoftmax.topk_softmax(np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 3.0]]), 2)
    >>> csoftmax.to_csr(best, 3).toarray().round(3)
    array([[0.   , 0.731, 0.269],
           [0.5  , 0.   , 0.5  ]])
    """
    try:
        from scipy.sparse import csr_array
    except ImportError:
        raise ImportError("to_csr needs SciPy: pip install scipy") from None
    if not isinstance(topk, (tuple, list)) or len(topk) != 2:
        raise TypeError(f"topk must be a TopK or a pair of arrays, got {type(topk).__name__}")
    if any(map(is_cupy, topk)):
        raise DeviceError("topk is on a CUDA device, which SciPy does not support: pass values.get() and indices.get()")
    values, indices = (as_array(n, as_native(a, n)) for n, a in zip(("values", "indices"), topk, strict=True))
    n_classes = check_count("n_classes", n_classes)
    if values.shape != indices.shape or values.ndim == 0:
        raise ValueError(f"values have shape {values.shape}, indices {indices.shape}; both must be (..., k)")
    if indices.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got dtype {indices.dtype}")
    k = values.shape[-1]
    rows = int(np.prod(values.shape[:-1], dtype=np.int64))
    indices = indices.reshape(rows, k)
    bad = (indices < 0) | (indices >= n_classes)
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), indices.shape)
        raise IndexError(f"indices have {indices[at]} in row {at[0]}: the classes are 0 to {n_classes - 1}")
    order = np.argsort(indices, axis=-1, kind="stable")
    indices = np.take_along_axis(indices, order, -1)
    if k > 1 and np.any(indices[:, 1:] == indices[:, :-1]):
        raise ValueError("indices have the same class twice in one row")
    values = np.take_along_axis(values.reshape(rows, k), order, -1)
    if values.dtype.itemsize == 2 and values.dtype.kind not in "iu":
        values = values.astype(np.float32)
    starts = np.arange(rows + 1, dtype=np.int64) * k
    matrix = csr_array((values.ravel(), indices.ravel().astype(np.int64), starts), shape=(rows, n_classes))
    matrix.has_canonical_format = True
    return matrix
