"""Cross-entropy over segments, with labels, soft labels or sets of positives, and its gradient."""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import LossOptions, as_label_bits, check_loss_options, check_target, raise_bad_label
from .._arguments.layouts import Result, axis_last, lay_out_gradient
from .._arguments.numbers import check_choice
from .._arguments.places import Place, as_float, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._arguments.segment_layouts import SegmentAxis, check_segment_temperatures, lay_out_axis
from .._arguments.segments import Segments, as_segments, place_segments
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype
from .cross_entropy import CrossEntropyResult

__all__ = ["segment_cross_entropy", "segment_cross_entropy_with_grad"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...]


class SegmentLossPlan(NamedTuple):
    """A checked call of segment_cross_entropy or segment_cross_entropy_with_grad."""

    dtype: int
    x: Any  # elements last; bfloat16 as its bits
    labels: Any | None  # of the shape axis.reduced
    soft: Any | None  # elements last
    positives: Any | None  # the same
    options: LossOptions
    reduction: str
    gradient: Result | None
    axis: SegmentAxis
    num_threads: int | None
    compute: np.dtype[Any]
    place: Place

    def execute(self) -> tuple[Any, Any]:
        """Compute, and return the loss (a scalar unless there is one for each segment) and the gradient or None."""
        if self.place.on_cuda:
            with self.place.context():
                return self._run_on_cuda()
        o, axis = self.options, self.axis
        losses = np.empty(axis.reduced, np.float64)
        given = self.labels, o.sample_weight, o.upstream
        labels, sample_weight, upstream = (None if a is None else axis.last(a) for a in given)
        rows = None if self.gradient is None else self.gradient.rows
        ignore = as_label_bits(o.ignore_index, self.labels)
        arrays = rows, axis.last(losses), labels, ignore, self.soft, self.positives, sample_weight, upstream
        reduction, segments = binding.REDUCTIONS[self.reduction], axis.segments
        temperatures = self.options.temperatures  # they have the segments last already
        last = reduction, temperatures, segments.indptr, segments.order, self.num_threads
        found = binding.run_segment_loss(self.dtype, self.x, *arrays, *o.factors, *last)
        if isinstance(found, int):
            self._raise_bad_label()
            raise RuntimeError("target was changed by another thread during the call; nothing has been written")
        gradient = None if self.gradient is None else self.gradient.finish()
        with np.errstate(over="ignore", under="ignore"):
            loss = losses if self.reduction == "none" else np.float64(found)
            return loss.astype(self.compute, copy=False)[()], gradient

    def _run_on_cuda(self) -> tuple[Any, Any]:
        """Run on a CUDA device, where a bad label makes its segment NaN unless CSOFTMAX_SYNC_CHECKS says so."""
        if os.environ.get("CSOFTMAX_SYNC_CHECKS") == "1":
            self._raise_bad_label()
        o, axis, is_none = self.options, self.axis, self.reduction == "none"
        loss = self.place.xp.empty(axis.reduced if is_none else (), self.compute)
        given = self.labels, o.sample_weight, o.upstream
        labels, sample_weight, upstream = (None if a is None else axis.last(a) for a in given)
        rows = None if self.gradient is None else self.gradient.rows
        ignore = as_label_bits(o.ignore_index, self.labels)
        to = axis.last(loss) if is_none else loss
        arrays = rows, to, labels, ignore, self.soft, self.positives, sample_weight, upstream
        there = place_segments(axis.segments, self.place)
        last = binding.REDUCTIONS[self.reduction], o.temperatures, axis.segments, *there, axis.place
        _cuda.launch_segment_cross_entropy(self.dtype, self.x, *arrays, o.factors, *last)
        return loss, None if self.gradient is None else self.gradient.finish()

    def _raise_bad_label(self) -> None:
        axis, ignored, segments = self.axis, self.options.ignore_index, self.axis.segments
        if self.positives is not None:  # of which there are no bad ones
            return
        labels, soft = to_host(self.labels, self.soft)
        if labels is None:
            is_read = np.zeros(soft.shape[-1], bool)
            read = slice(int(segments.indptr[0]), int(segments.indptr[-1]))
            is_read[read if segments.order is None else segments.order[read]] = True
            raise_bad_label(np.where(is_read, soft, 0), 0, None)
            return
        shape = [1] * labels.ndim
        shape[axis.place] = -1
        lengths = np.broadcast_to(segments.lengths.reshape(shape), axis.reduced)
        bad = (labels < 0) | (labels >= lengths.astype(np.uint64))
        if as_label_bits(ignored, labels) is not None:
            bad &= labels != labels.dtype.type(ignored)
        if bad.any():
            at = np.unravel_index(int(bad.argmax()), axis.reduced)
            elements = f"has the elements 0 to {lengths[at] - 1}" if lengths[at] else "has no element"
            raise IndexError(
                f"target[{', '.join(map(str, at))}] is {labels[at]}: the segment {elements}, and ignore_index "
                f"is {ignored}"
            )


def plan_segment_loss(
    x: Any,
    target: Any,
    axis: Any,
    segments: Segments,
    *,
    gradient: bool,
    positives: str,
    reduction: str,
    out: Any = None,
    device: str | None = None,
    num_threads: int | None = None,
    **options: Any,
) -> SegmentLossPlan:
    """Check a call of segment_cross_entropy or, with `gradient`, of segment_cross_entropy_with_grad."""
    place = place_of(device, x)
    if not place.on_cuda and device is not None:
        x, target, *values = to_host(x, target, *options.values())
        options = dict(zip(options, values, strict=True))
    check_choice("positives", positives, ("each", "any"))
    with place.context():
        return _lay_out_loss(
            place, x, target, axis, segments, gradient, positives, reduction, out, num_threads, options
        )


def _lay_out_loss(
    place: Place,
    x: Any,
    target: Any,
    axis: Any,
    segments: Segments,
    gradient: bool,
    positives: str,
    reduction: str,
    out: Any,
    num_threads: int | None,
    options: dict[str, Any],
) -> SegmentLossPlan:
    x, dtype = as_float("x", x, place)
    at = lay_out_axis("x", x.shape, axis, segments)
    compute = compute_dtype(x.dtype)
    chosen = place.array("target", target)
    is_any = False
    if chosen.dtype == np.bool_ and chosen.shape == x.shape:
        is_any = positives == "any"
        target = chosen if is_any else chosen.astype(compute)
    labels, soft = (None, None) if is_any else check_target(target, x.shape, at.reduced, compute, place)
    t = check_segment_temperatures(options.pop("temperature"), at, True)
    options["temperature"] = t if isinstance(t, float) else 1.0
    checked = check_loss_options(0, at.reduced, compute, reduction, weight=None, place=place, **options)
    checked = checked._replace(temperatures=None if isinstance(t, float) else t)
    if positives == "any" and not is_any:
        raise ValueError(f'positives="any" needs a target of bool of the shape of x, {x.shape}, got {chosen.dtype}')
    if is_any and checked.label_smoothing > 0:
        raise ValueError(
            f'label_smoothing must be 0 with positives="any", which has no label to smooth, got '
            f"{checked.label_smoothing}"
        )
    if chosen.dtype == np.bool_ and not is_any:
        checked = checked._replace(sample_weight=_leave_out_without_positives(chosen, checked.sample_weight, at, place))
    x, targets, result = lay_out_gradient(x, chosen if is_any else soft, at.axes, gradient, out, place)
    soft, positive = (None, targets) if is_any else (targets, None)
    return SegmentLossPlan(
        dtype, as_buffer(x), labels, soft, positive, checked, reduction, result, at, num_threads, compute, place
    )


def _leave_out_without_positives(chosen: Any, sample_weight: Any, at: SegmentAxis, place: Place) -> Any:
    """The weights, 0 for segments without positives, which take no part: no logit of them is read, be it NaN."""
    positives, (indptr, order) = axis_last(chosen, at.axes), place_segments(at.segments, place)
    counts = place.xp.zeros((*positives.shape[:-1], positives.shape[-1] + 1), np.int64)
    counts[..., 1:] = np.cumsum(positives if order is None else positives[..., order], axis=-1)
    is_kept = np.moveaxis(counts[..., indptr[1:]] > counts[..., indptr[:-1]], -1, at.place)
    return place.xp.where(is_kept, 1.0 if sample_weight is None else sample_weight, 0.0)


@accept_foreign
@keep_labels(1)
def _run_loss(x: Any, target: Any, segments: Any, **options: Any) -> tuple[Any, Any]:
    axis = options.pop("axis")
    return plan_segment_loss(x, target, axis, segments, **options).execute()


@hand_over_recorded
def segment_cross_entropy(
    x: ArrayLike,
    target: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: _Axis = 0,
    sample_weight: ArrayLike | None = None,
    positives: Literal["each", "any"] = "each",
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Cross-entropy of the softmax of each segment: a choice among candidates of which each group has its own number.

    Parameters
    ----------
    x : array_like of shape (..., E, ...)
        Logits, in one of the dtypes of `softmax`.
    target : array_like
        Labels, integers of the shape of x with S in place of E: which element of its segment, from 0 on, in the order
        of positions. Or soft labels, floating-point numbers of the shape of x, at least 0 and finite. Or bool of the
        shape of x: the positives of each segment.
    indptr, segment_ids, num_segments, segments, axis
        As in `segment_softmax`.
    sample_weight : array_like, broadcastable to the losses, optional
        A weight of each segment, at least 0 and finite. A segment of weight 0 is left out.
    positives : {"each", "any"}, default "each"
        Of bool targets: "each" is a soft label of 1 for each positive; "any" is minus the logarithm of the total
        probability of the positives.
    ignore_index : int, default -100
        Segments with this label are left out.
    label_smoothing : float in [0, 1], default 0.0
        As in `cross_entropy`, over the elements of the segment; 0 with positives "any".
    z_loss : float, default 0.0
        Factor of the square of each segment's log-sum-exp.
    temperature : float or array_like, default 1.0
        T, positive and finite: a number, or one for each segment, as in `segment_softmax`. Each segment then has the
        bits that it has alone.
    reduction : {"mean", "sum", "none"}, default "mean"
        As in `cross_entropy`. With "any" the mean divides by the sum of the weights of the segments with elements.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    scalar, or ndarray of the shape of x with S in place of E with reduction "none"
        float64 for float64 and integer logits, else float32. Labels and soft labels give the bits that `cross_entropy`
        gives for the elements of each segment.

    Raises
    ------
    IndexError
        If a label is no element of its segment and not `ignore_index`, or an id no segment.
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    A segment without elements has loss 0 and weight 0, and so has one without positives with "each", whatever its
    logits, which are not read; with "any" its loss is +inf, and NaN if a logit is. The loss of "any" is log1p of the
    sum of the others over that of the positives, so that it keeps its digits where the positives are certain.

    On CUDA a bad label makes the loss and the gradient of its segment NaN, as in `cross_entropy`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x = np.array([0.0, 0.0, 40.0, 0.0, 1.0])
    >>> csoftmax.segment_cross_entropy(x, [0, 1], indptr=[0, 2, 5], reduction="none")
    array([ 0.69314718, 40.        ])
    >>> is_relevant = np.array([True, False, True, False, True])
    >>> csoftmax.segment_cross_entropy(x, is_relevant, indptr=[0, 2, 5], positives="any", reduction="none")
    array([6.93147181e-01, 4.24835426e-18])
    """
    found = as_segments(indptr, segment_ids, num_segments, segments)
    loss, _ = _run_loss(
        x,
        target,
        found,
        gradient=False,
        axis=axis,
        sample_weight=sample_weight,
        positives=positives,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        device=device,
        num_threads=num_threads,
    )
    return loss


@hand_over_recorded
def segment_cross_entropy_with_grad(
    x: ArrayLike,
    target: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: SupportsIndex | None = None,
    segments: Segments | None = None,
    axis: _Axis = 0,
    sample_weight: ArrayLike | None = None,
    positives: Literal["each", "any"] = "each",
    ignore_index: SupportsIndex = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> CrossEntropyResult:
    """Cross-entropy over segments and its gradient with respect to the logits.

    Parameters
    ----------
    x, target, indptr, segment_ids, num_segments, segments, axis, sample_weight, positives, ignore_index
        As in `segment_cross_entropy`.
    label_smoothing, z_loss, temperature, reduction
        As in `segment_cross_entropy`.
    upstream : float, or with reduction "none" array_like that broadcasts to the losses; default 1.0
        Factor of the gradient.
    clip_norm, clip_value : float, optional
        As in `cross_entropy_with_grad`, for the gradient of each segment.
    out : ndarray of the shape and dtype of the gradient, optional
        Array that receives the gradient. It may be `x`.
    device, num_threads
        As in `softmax`.

    Returns
    -------
    CrossEntropyResult
        `loss`, as from `segment_cross_entropy`, and `grad`, in the shape and dtype of x (float64 for integers); 0 for
        elements of no segment.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError
        As in `segment_cross_entropy`; nothing has been written.
    MemoryError
        As in `segment_cross_entropy`; `out` may be partly written.

    Notes
    -----
    With "any" the gradient of a positive is minus 1 - P times its share of the positives, P their total probability,
    and that of another element 1 - P times its share of the others: no difference from 1 is formed. Where all positives
    are -inf, a single one has the gradient -1 of a label, and several are NaN, because no share of them is defined.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> x = np.array([0.0, 0.0, 0.0, 1.0, 1.0])
    >>> csoftmax.segment_cross_entropy_with_grad(x, [0, -100], indptr=[0, 2, 5]).grad
    array([-0.5,  0.5,  0. ,  0. ,  0. ])
    """
    found = as_segments(indptr, segment_ids, num_segments, segments)
    result = _run_loss(
        x,
        target,
        found,
        gradient=True,
        axis=axis,
        sample_weight=sample_weight,
        positives=positives,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        upstream=upstream,
        clip_norm=clip_norm,
        clip_value=clip_value,
        out=out,
        device=device,
        num_threads=num_threads,
    )
    return CrossEntropyResult(*result)
