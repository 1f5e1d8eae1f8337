"""Plackett-Luce loss of rankings: ListMLE with ties, and Cox's partial likelihood."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import check_upstream, check_weight
from .._arguments.layouts import check_out, is_same_view, may_share_memory
from .._arguments.numbers import check_choice, check_count, check_reduction, check_temperatures
from .._arguments.places import CPU, as_float, check_kernels, place_of
from .._arguments.recorded import hand_over_recorded
from .._arguments.segments import Segments, as_segments
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype
from .cross_entropy import CrossEntropyResult

__all__ = ["plackett_luce_loss", "plackett_luce_loss_with_grad"]

LARGEST_TOP = 2**62  # more places than any list has
_LARGEST_EXACT = 2**53  # integers up to it are exact in float64


class RankingsPlan(NamedTuple):
    """A checked call: lists one after another, in the order of their segments."""

    x: Any  # as given, an array
    dtype: int
    elements: Any  # contiguous: x itself, or its elements sorted by segment
    relevance: Any
    observed: Any | None
    offsets: Any
    segments: Segments | None
    batch: tuple[int, ...]
    options: dict[str, Any]

    def run(self, reduction: str, grad: Any | None, upstream: Any | None) -> Any:
        """The loss in its dtype; the gradient of the elements goes to `grad` unless that is None."""
        losses, dtype = np.empty(math.prod(self.batch)), compute_dtype(self.x.dtype)
        single = np.empty(len(losses), np.float32) if reduction == "none" and dtype == np.float32 else None
        total = binding.run_rankings(
            self.dtype,
            as_buffer(self.elements),
            self.relevance,
            self.observed,
            self.offsets,
            upstream=upstream,
            reduction=binding.REDUCTIONS[reduction],
            losses=losses,
            single=single,
            grad=None if grad is None else as_buffer(grad),
            **self.options,
        )
        if reduction != "none":
            return dtype.type(total)
        return (losses if single is None else single).reshape(self.batch)[()]

    def gradient(self, out: Any, reduction: str, upstream: Any | None) -> tuple[Any, Any]:
        """The loss, and the gradient in the shape of x."""
        is_sorted = self.segments is not None and self.segments.order is not None
        read = (self.relevance, self.observed, self.options["sample_weight"], self.options["temperature"], upstream)
        is_direct = out is not None and not is_sorted and out.flags.c_contiguous and out.dtype == self.x.dtype
        is_direct = is_direct and not any(isinstance(a, np.ndarray) and may_share_memory(out, a) for a in read)
        is_direct = is_direct and (not may_share_memory(out, self.elements) or is_same_view(out, self.elements))
        grad = out if is_direct else binding.empty(self.x.shape, self.x.dtype)
        begin, end = (0, self.x.size) if self.segments is None else self.segments.indptr[[0, -1]]
        if not is_sorted:
            loss = self.run(reduction, grad, upstream)
            if end - begin != self.x.size:
                grad[:begin], grad[end:] = 0, 0
        else:
            each = binding.empty(self.x.shape, self.x.dtype)
            loss = self.run(reduction, each, upstream)
            each[:begin], each[end:] = 0, 0
            grad[self.segments.order] = each  # type: ignore[union-attr]
        if out is not None and grad is not out:
            out[...] = grad
        return loss, grad if out is None else out


def check_relevance(relevance: Any, shape: tuple[int, ...]) -> Any:
    """The relevance as float32 or float64 of the same order, NaN where an element is not in a list."""
    given = CPU.array("relevance", relevance)
    if given.dtype.kind in "iu" and given.dtype.itemsize == 8 and given.size:
        if max(abs(int(given.min())), abs(int(given.max()))) > _LARGEST_EXACT:
            given = np.unique(given, return_inverse=True)[1].reshape(given.shape)
    elif not (given.dtype.kind in "iuf" and given.dtype.itemsize <= 8) and given.dtype.name != "bfloat16":
        raise TypeError(f"relevance must hold integers or floats of at most 64 bits, got dtype {given.dtype}")
    if given.shape != shape:
        raise ValueError(f"relevance has shape {given.shape}; x has shape {shape}: they must be the same")
    is_exact = given.dtype.itemsize <= (4 if given.dtype.kind == "f" else 2)  # as float32
    return np.ascontiguousarray(given, np.float32 if is_exact else np.float64)


def _check_observed(observed: Any, shape: tuple[int, ...]) -> Any:
    given = CPU.array("observed", observed)
    if given.dtype != np.bool_:
        raise TypeError(f"observed must be boolean, got dtype {given.dtype}")
    try:
        return np.ascontiguousarray(np.broadcast_to(given, shape))
    except ValueError:
        raise ValueError(f"observed has shape {given.shape}, which does not broadcast to {shape}") from None


def plan_rankings(
    x: Any,
    relevance: Any,
    *,
    observed: Any,
    ties: Any,
    top: Any,
    temperature: Any,
    sample_weight: Any,
    device: Any,
    num_threads: Any,
    **segments: Any,
) -> RankingsPlan:
    """Check a call; `segments` are the arguments of `as_segments`, all None for lists along the last axis."""
    place = place_of(device, x)
    if place.on_cuda:
        check_kernels("rankings")
    check_choice("ties", ties, tuple(binding.RANKING_TIES))
    if top is not None:
        top = min(check_count("top", top, 1, "an int or None"), LARGEST_TOP)
    x, dtype = as_float("x", x, place)
    relevance = check_relevance(relevance, x.shape)
    observed = None if observed is None else _check_observed(observed, x.shape)
    chosen = as_segments(**segments) if any(given is not None for given in segments.values()) else None
    elements = np.ascontiguousarray(x)
    if chosen is None:
        if x.ndim == 0:
            raise ValueError("x has no axis; the lists lie along the last one")
        batch = x.shape[:-1]
        offsets = np.arange(math.prod(batch) + 1, dtype=np.int64) * x.shape[-1]
    else:
        if x.ndim != 1:
            raise ValueError(f"x has shape {x.shape}; one axis is allowed with segments")
        chosen.check_length("x", len(x), 0)
        batch, offsets = (chosen.num_segments,), chosen.indptr
        if chosen.order is not None:
            elements, relevance = x[chosen.order], relevance[chosen.order]
            observed = None if observed is None else observed[chosen.order]
    temperature = check_temperatures(temperature, batch, True, "one for each list")
    if not isinstance(temperature, float):
        temperature = np.ascontiguousarray(temperature)
    if sample_weight is not None:
        sample_weight = np.ascontiguousarray(check_weight("sample_weight", sample_weight, batch, np.float64))
    options = {
        "ties": binding.RANKING_TIES[ties],
        "top": top,
        "temperature": temperature,
        "sample_weight": sample_weight,
        "num_threads": num_threads,
    }
    return RankingsPlan(x, dtype, elements, relevance, observed, offsets, chosen, batch, options)


@accept_foreign
def _run_loss(x: Any, relevance: Any, *, reduction: Any, **options: Any) -> Any:
    check_reduction(reduction)
    return plan_rankings(x, relevance, **options).run(reduction, None, None)


@accept_foreign
@keep_labels(1)
def _run_with_grad(x: Any, relevance: Any, *, reduction: Any, upstream: Any, out: Any, **options: Any) -> Any:
    check_reduction(reduction)
    plan = plan_rankings(x, relevance, **options)
    upstream = check_upstream(upstream, reduction, plan.batch)
    if upstream is not None:
        upstream = np.ascontiguousarray(np.broadcast_to(upstream, plan.batch), np.float64)
    if out is not None:
        check_out(out, plan.x.shape, plan.x.dtype)
    return plan.gradient(out, reduction, upstream)


@hand_over_recorded
def plackett_luce_loss(
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    observed: ArrayLike | None = None,
    ties: Literal["breslow", "efron", "exact", "order"] = "breslow",
    top: SupportsIndex | None = None,
    temperature: ArrayLike = 1.0,
    sample_weight: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Negative log-likelihood of rankings under the Plackett-Luce model: ListMLE, and Cox's partial likelihood.

    The most relevant element of a list is chosen first, with the probabilities of a softmax of its scores, then the
    next one among the others, and so on: the loss is the sum of these cross-entropies.

    Parameters
    ----------
    x : array_like of shape (E,), or (..., n)
        Scores, in one of the dtypes of `softmax`. Without segments, each row along the last axis is a list.
    relevance : array_like of integers or floats of the shape of x
        Larger comes first; equal values of a list are ties. NaN: the element is not in the list, and is not read.
    indptr, segment_ids, num_segments, segments
        The lists are segments of different lengths, as `Segments` takes them; at most one of indptr, segment_ids and
        segments.
    observed : array_like of bool, broadcastable to x, optional
        Elements that contribute a factor. The others only stand among those that are left: items without a rank, or
        censored subjects. Cox's partial likelihood has ``relevance=-time, observed=event``.
    ties : {"breslow", "efron", "exact", "order"}, default "breslow"
        What tied elements contribute: each its softmax among all that are tied or later; the same without l / d of the
        d tied ones for the l-th (Efron 1977); the probability that they are the d chosen among all that are tied or
        later (Kalbfleisch & Prentice 1973); or "order": ties are ranked by their position.
    top : int, optional
        Only ties that begin before this place contribute, elements that are not observed counted.
    temperature : float or array_like, default 1.0
        Scores are divided by it; positive and finite, a number or one a list.
    sample_weight : array_like, optional
        Factors s >= 0 of the lists' losses. A list with 0 is not read.
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" is the sum of s times loss over the sum of s of the lists with a factor.
    device, num_threads
        As in `softmax`; there are no kernels for CUDA.

    Returns
    -------
    scalar, or ndarray with one number a list with reduction "none"
        float64 for float64 and integer scores, else float32. 0 for lists without a factor; +inf where an observed
        element is -inf; NaN where NaN or +inf is in the list.

    Raises
    ------
    TypeError, ValueError, IndexError, DeviceError, MemoryError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    Computed in float64 as log1p of the sum of the others over the chosen one, so that small losses have all their
    digits, and no eps is added; scores of any distance are allowed. The relative error is at most 4 n 2^-53 for n
    elements, before it is rounded to the dtype of the result ("exact": 2^-50 of the sum of abs(x) of the list instead).
    With "exact" that is for the scores ``(x - max(x)) / T`` rounded to float64, with a temperature that is no power of
    two, and distances beyond float64's largest number may give NaN.
    There is no padding. The bits of a list depend on nothing else: not on the other lists, threads or instruction set.
    Xia et al., "Listwise approach to learning to rank" (2008); Cox (1972); Breslow (1974).

    Examples
    --------
    >>> import csoftmax
    >>> csoftmax.plackett_luce_loss([2.0, 1.0, 0.0], [3, 2, 1]).round(4)
    np.float64(0.7209)
    >>> csoftmax.plackett_luce_loss([2.0, 1.0, 0.5, 0.0], [1, 0, 2, 2], indptr=[0, 2, 4], reduction="none").round(4)
    array([0.3133, 1.4482])
    """
    return _run_loss(
        x,
        relevance,
        indptr=indptr,
        segment_ids=segment_ids,
        num_segments=num_segments,
        segments=segments,
        observed=observed,
        ties=ties,
        top=top,
        temperature=temperature,
        sample_weight=sample_weight,
        reduction=reduction,
        device=device,
        num_threads=num_threads,
    )


@hand_over_recorded
def plackett_luce_loss_with_grad(
    x: ArrayLike,
    relevance: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    observed: ArrayLike | None = None,
    ties: Literal["breslow", "efron", "exact", "order"] = "breslow",
    top: SupportsIndex | None = None,
    temperature: ArrayLike = 1.0,
    sample_weight: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrossEntropyResult:
    """`plackett_luce_loss` together with its gradient.

    Parameters
    ----------
    x : array_like of shape (E,), or (..., n)
        As in `plackett_luce_loss`.
    relevance : array_like of the shape of x
        As in `plackett_luce_loss`.
    upstream : float, or with reduction "none" array_like broadcastable to the lists, default 1.0
        Factor of the gradient, which is that of the reduced loss, with "none" of the sum of upstream times loss.
    out : ndarray of the shape and dtype of the gradient, optional
        Array that receives it; may be x.
    indptr, segment_ids, num_segments, segments, observed, ties, top, temperature, sample_weight, reduction, device, \
num_threads
        As in `plackett_luce_loss`.

    Returns
    -------
    CrossEntropyResult
        ``loss`` as in `plackett_luce_loss`; ``grad`` in the shape and dtype of `x` (float64 for integers), exactly 0
        for elements without a relevance or a list.

    Raises
    ------
    TypeError, ValueError, IndexError, DeviceError, MemoryError
        As in `plackett_luce_loss`.

    Notes
    -----
    An element's gradient is its probability in the choices before its own, less the probability of the others in its
    own: sums of positive numbers and one difference. Its error is 4 ULP of the larger of the two, and of n 2^-53. An
    observed element of -inf has the gradient -1.

    Examples
    --------
    >>> import csoftmax
    >>> loss, grad = csoftmax.plackett_luce_loss_with_grad([2.0, 1.0, 0.0], [3, 2, 1])
    >>> grad.round(4)
    array([-0.3348, -0.0242,  0.359 ])
    """
    return CrossEntropyResult(
        *_run_with_grad(
            x,
            relevance,
            indptr=indptr,
            segment_ids=segment_ids,
            num_segments=num_segments,
            segments=segments,
            observed=observed,
            ties=ties,
            top=top,
            temperature=temperature,
            sample_weight=sample_weight,
            reduction=reduction,
            upstream=upstream,
            out=out,
            device=device,
            num_threads=num_threads,
        )
    )
