"""Subsets of a fixed size: the logarithm of their sum, and the probabilities of their elements."""

from __future__ import annotations

import math
from types import EllipsisType
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.layouts import axis_last, batch_shape, normalize_axes
from .._arguments.numbers import check_parameter
from .._arguments.places import as_float, check_kernels, place_of
from .._arguments.recorded import hand_over_recorded
from .._arguments.segments import Segments, as_segments
from .._cpu import binding
from .._cpu.dtypes import compute_dtype
from .softmax import logsumexp, softmax

__all__ = ["subset_logsumexp", "subset_marginals"]


class SubsetsPlan(NamedTuple):
    """A checked call: rows of elements one after another, and the size of the subsets of each."""

    x: Any  # as given, an array, with at least one axis
    given_shape: tuple[int, ...]
    axes: tuple[int, ...]
    segments: Segments | None
    elements: Any  # (rows of x without the axis, n), in the dtype of x and the order of the segments
    offsets: Any  # of the lists among all elements
    k: Any  # int64, one a list
    result_shape: tuple[int, ...]
    num_threads: Any

    def run(self, *, marginals: bool) -> Any:
        """The sums of the lists, or the marginals of their elements, in the type that x computes in."""
        wide = np.ascontiguousarray(self.elements, np.float64).reshape(-1)
        found = np.zeros(wide.size) if marginals else np.empty(len(self.k))
        single = np.zeros(len(found), np.float32) if compute_dtype(self.x.dtype) == np.float32 else None
        sums, each = (None, found) if marginals else (found, None)
        binding.run_subsets(wide, self.offsets, self.k, sums, each, single, self.num_threads)
        return found if single is None else single

    def finish_sums(self) -> Any:
        """The sums in the shape and dtype of the result."""
        with np.errstate(over="ignore"):
            result = self.run(marginals=False).astype(self.x.dtype, copy=False)
        flat = self.elements.reshape(-1)
        for lists, at in self.single():
            result[lists] = logsumexp(flat[at], num_threads=self.num_threads)
        if self.segments is None:
            return result.reshape(self.result_shape)[()]
        rows = result.reshape(*batch_shape(self.x, self.axes), self.segments.num_segments)
        return np.moveaxis(rows, -1, self.axes[0])

    def finish_marginals(self) -> Any:
        """The marginals in the shape and dtype of x."""
        with np.errstate(under="ignore"):
            result = self.run(marginals=True).astype(self.x.dtype, copy=False)
        flat = self.elements.reshape(-1)
        for _, at in self.single():
            result[at] = softmax(flat[at], num_threads=self.num_threads)
        rows = result.reshape(self.elements.shape)
        if self.segments is not None:
            taken, rows = rows, np.zeros((len(rows), self.x.shape[self.axes[0]]), rows.dtype)
            rows[:, _taken_by(self.segments)] = taken
        moved = rows.reshape(batch_shape(self.x, self.axes) + tuple(self.x.shape[i] for i in self.axes))
        last = tuple(range(self.x.ndim - len(self.axes), self.x.ndim))
        result = binding.empty_like(self.x)
        result[...] = np.moveaxis(moved, last, self.axes)
        return result if self.given_shape else result.reshape(())[()]

    def single(self) -> Any:
        """The lists whose subsets have one element, by length: they and their elements. They are those of softmax."""
        lists = np.flatnonzero(self.k == 1)
        lengths = np.diff(self.offsets)[lists]
        for length in np.unique(lengths[lengths > 0]):
            of = lists[lengths == length]
            yield of, self.offsets[of, None] + np.arange(length)


def plan_subsets(x: Any, k: Any, *, axis: Any, device: Any, num_threads: Any, **segments: Any) -> SubsetsPlan:
    """Check a call; `segments` are the arguments of `as_segments`."""
    place = place_of(device, x)
    if place.on_cuda:
        check_kernels("subsets")
    x, _ = as_float("x", x, place)
    chosen = as_segments(**segments) if any(given is not None for given in segments.values()) else None
    axes = normalize_axes((-1 if chosen is None else 0) if axis is ... else axis, x.ndim)
    given_shape = x.shape
    if x.ndim == 0:
        x = x.reshape(1)
    elements = axis_last(x, axes)
    n = elements.shape[-1]
    elements = elements.reshape(math.prod(elements.shape[:-1]), n)
    if chosen is None:
        shape = batch_shape(x, axes)
        offsets = np.arange(len(elements) + 1, dtype=np.int64) * n
        sizes = _check_k(k, shape).reshape(-1)
    else:
        if len(axes) != 1:
            raise ValueError(f"axis must be an int with segments, got {axis!r}")
        chosen.check_length("x", n, axes[0])
        taken = _taken_by(chosen)
        elements = elements[:, taken]
        shape = (*x.shape[: axes[0]], chosen.num_segments, *x.shape[axes[0] + 1 :])
        begins = np.arange(len(elements), dtype=np.int64)[:, None] * elements.shape[1]
        offsets = (begins + (chosen.indptr[:-1] - chosen.indptr[0])).reshape(-1)
        offsets = np.append(offsets, np.int64(elements.size))
        sizes = np.moveaxis(_check_k(k, shape), axes[0], -1).reshape(-1)
    return SubsetsPlan(x, given_shape, axes, chosen, elements, offsets, np.ascontiguousarray(sizes), shape, num_threads)


def _taken_by(segments: Segments) -> Any:
    """The elements that take part, in the order of the segments."""
    begin, end = int(segments.indptr[0]), int(segments.indptr[-1])
    return slice(begin, end) if segments.order is None else segments.order[begin:end]


def _check_k(k: Any, shape: tuple[int, ...]) -> Any:
    if k is None:
        raise TypeError("k must hold integers, got None")
    return check_parameter("k", k, shape, np.int64, "at least 0", lambda values: values >= 0)


@accept_foreign
def _run_logsumexp(x: Any, k: Any, **options: Any) -> Any:
    return plan_subsets(x, k, **options).finish_sums()


@accept_foreign
@keep_labels()
def _run_marginals(x: Any, k: Any, **options: Any) -> Any:
    return plan_subsets(x, k, **options).finish_marginals()


@hand_over_recorded
def subset_logsumexp(
    x: ArrayLike,
    k: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | EllipsisType | None = ...,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Log-sum-exp over the subsets of k elements: ``log(sum over |A| = k of exp(sum of x over A))``.

    That is the logarithm of an elementary symmetric polynomial of ``exp(x)``: the normaliser of models that choose k
    of n, such as the conditional logit with several choices a group. k = 1 is `logsumexp`.

    Parameters
    ----------
    x : array_like of shape (...)
        Scores, in one of the dtypes of `softmax`. -inf: no subset has the element.
    k : int or array_like of int
        Size of the subsets, at least 0, one for all rows or one for each: it broadcasts to the shape of the result.
    indptr, segment_ids, num_segments, segments
        The rows are segments of different lengths, as `Segments` takes them; at most one of indptr, segment_ids and
        segments. By default all rows have the length of the axis.
    axis : int, tuple of ints or None, optional
        Axis of the elements, by default the last, with segments the first. Without segments also several axes; None
        means all.
    device, num_threads
        As in `softmax`; there are no kernels for CUDA.

    Returns
    -------
    scalar or ndarray
        `x` without `axis`, with segments `x` with num_segments along it, in the dtype of `x` (float64 for integers).
        0 for k = 0; the sum of x for k = n; -inf where k is greater than the number of elements above -inf. NaN
        anywhere gives NaN, then +inf gives +inf unless k = 0.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    Computed in float64 in O(n k) time from probabilities of taking each element, tilted so that k of them are taken on
    average: nothing overflows, and only positive numbers are added. The error is 1 ULP of the largest of the terms
    that make up the result, the k largest x among them. The same bits on every instruction set and with any number of
    threads. Chen, Dempster & Liu, "Weighted finite population sampling to maximize entropy" (1994).

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.subset_logsumexp(np.log([1.0, 2.0, 3.0]), 2).round(4)  # log(1 * 2 + 1 * 3 + 2 * 3)
    np.float64(2.3979)
    >>> csoftmax.subset_logsumexp(np.zeros(5), [1, 2], indptr=[0, 2, 5]).round(4)  # log of 2 and of 3
    array([0.6931, 1.0986])
    """
    return _run_logsumexp(
        x,
        k,
        indptr=indptr,
        segment_ids=segment_ids,
        num_segments=num_segments,
        segments=segments,
        axis=axis,
        device=device,
        num_threads=num_threads,
    )


@hand_over_recorded
def subset_marginals(
    x: ArrayLike,
    k: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: SupportsIndex | tuple[SupportsIndex, ...] | EllipsisType | None = ...,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Probabilities that a random subset of k elements has each of them: the gradient of `subset_logsumexp`.

    A subset A has probability proportional to ``exp(sum of x over A)``. The probabilities of a row sum to k, so that
    this is a relaxed top-k. k = 1 is `softmax`.

    Parameters
    ----------
    x, k, indptr, segment_ids, num_segments, segments, axis, device, num_threads
        As in `subset_logsumexp`.

    Returns
    -------
    ndarray of the shape of x
        In the dtype of `x` (float64 for integers). 0 for k = 0, for x = -inf and outside all segments; 1 for k = n;
        NaN in rows with NaN, with +inf, or with fewer than k elements above -inf.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `subset_logsumexp`.

    Notes
    -----
    Computed in float64 from the numbers of elements taken before and after each one; nothing is divided by 1 - p, which
    makes formulas that leave one element out unstable. Time and memory are O(n k). The relative error is about 1e-14
    for n = 100, before it is rounded to the dtype of `x`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.subset_marginals(np.log([1.0, 2.0, 3.0]), 2).round(4)  # 5, 8 and 9 of 11
    array([0.4545, 0.7273, 0.8182])
    """
    return _run_marginals(
        x,
        k,
        indptr=indptr,
        segment_ids=segment_ids,
        num_segments=num_segments,
        segments=segments,
        axis=axis,
        device=device,
        num_threads=num_threads,
    )
