"""The plan and the computation of losses over sampled classes, made public by sampled.py and negative_sampling.py."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.labels import (
    LossOptions,
    check_loss_options,
    check_target,
    is_representable,
    raise_bad_label,
    refuse_smoothing,
)
from .._arguments.layers import add_up, check_bias, check_layer, count_chunk_rows, scale_weights, weigh
from .._arguments.negatives import CheckedNegatives, Negatives, check_correction, check_negatives
from .._arguments.numbers import check_choice, check_count, check_num_threads
from .._arguments.places import as_array, as_float, check_kernels, place_of, to_host
from .._cpu.dtypes import compute_dtype
from .._cpu.linear import kernel_threads
from .._cpu.sampled import CHUNK_BYTES, SampledLayer
from .rows import RowGradient

SOFTMAX, NEGATIVE_SAMPLING, NCE = "sampled_softmax_loss", "negative_sampling_loss", "nce_loss"


class SampledPlan(NamedTuple):
    """A checked call: the rows that take part."""

    x: Any  # (n, D)
    w: Any  # (K, D), which may be in foreign byte order, or integers
    bias: Any | None  # (K,), of any real dtype
    labels: Any  # int64
    negatives: CheckedNegatives
    shift: Any | None  # of the logits of the negatives, of their shape, in float64
    label_shift: Any | None  # of the labels
    scale: Any | None  # sample weight times class weight of each row
    upstream: Any | None  # of each row
    options: LossOptions
    masks_hits: bool
    kept: Any | None  # indices of these rows among those of the caller; None if all take part
    divisor: float
    batch: tuple[int, ...]
    compute: np.dtype[Any]
    chunk_rows: int


def plan_sampled(
    kind: str,
    x: Any,
    w: Any,
    target: Any,
    negatives: Any,
    bias: Any,
    *,
    correction: Any,
    accidental_hits: Any,
    log_z: Any,
    reduction: Any,
    chunk_bytes: Any,
    device: str | None,
    **options: Any,
) -> SampledPlan:
    """Check the arguments of a loss over sampled classes, and drop the rows that take no part."""
    place = place_of(device, x)
    if place.on_cuda:
        check_kernels(kind)
    if device is not None:
        x, w, target, bias, log_z, *values = to_host(x, w, target, bias, log_z, *options.values())
        options = dict(zip(options, values, strict=True))
        if isinstance(negatives, Negatives):
            negatives = Negatives(*to_host(*negatives))
        (negatives,) = to_host(negatives)
    chunk_bytes = None if chunk_bytes is None else check_count("chunk_bytes", chunk_bytes, 1, "an int or None")
    check_correction(correction)
    check_choice("accidental_hits", accidental_hits, ("mask", "keep"))
    x, _ = as_float("x", x)
    w = as_array("w", w)  # of which few rows are read: these are converted later
    like, _ = as_float("w", w if w.dtype == object else np.empty(0, w.dtype))
    check_layer(x, np.broadcast_to(np.empty((), like.dtype), w.shape))
    n, compute, batch = len(w), compute_dtype(x.dtype), x.shape[:-1]
    bias = None if bias is None else check_bias(as_array("bias", bias), n)
    labels, soft = check_target(target, (*batch, n), batch, compute)
    if soft is not None:
        raise ValueError("soft labels need all classes: target must hold integer labels")
    checked, is_plain = check_negatives(negatives, batch, n)
    if is_plain and (kind == NCE or (kind == SOFTMAX and correction != "none")):
        remedy = (
            'pass what a sampler returns, or correction="none"' if kind == SOFTMAX else "pass what a sampler returns"
        )
        raise ValueError(f"negatives are plain classes, whose expected counts are unknown: {remedy}")
    log_z = None if log_z is None else _check_log_z(log_z, batch)
    found = check_loss_options(n, batch, compute, reduction, z_loss=0.0, **options)
    refuse_smoothing(found.label_smoothing)
    plan = _keep_rows(x, w, bias, labels, checked, log_z, found, batch, reduction)
    plan = _with_shifts(plan, kind, correction, log_z)
    width = checked.ids.shape[-1] + 1
    chunk_rows = len(plan.x)
    if checked.is_shared:
        chunk_rows = count_chunk_rows(len(plan.x), width, x.dtype, chunk_bytes or CHUNK_BYTES)
    return plan._replace(masks_hits=accidental_hits == "mask", chunk_rows=max(1, chunk_rows))


def _check_log_z(log_z: Any, batch: tuple[int, ...]) -> Any:
    values = as_array("log_z", log_z)
    if values.dtype.kind not in "iuf":
        raise TypeError(f"log_z must hold real numbers, got dtype {values.dtype}")
    if values.shape not in ((), batch):
        raise ValueError(f"log_z has shape {values.shape}; a number, or one for each row, {batch}, is needed")
    is_finite = np.isfinite(values)
    if not is_finite.all():
        at = np.unravel_index(int(np.argmin(is_finite)), values.shape)
        where = f" for row {', '.join(map(str, at))}" if at else ""
        raise ValueError(f"log_z must be finite, got {values[at]}{where}")
    return np.broadcast_to(values.astype(np.float64), batch).reshape(math.prod(batch))


def _keep_rows(
    x: Any,
    w: Any,
    bias: Any,
    labels: Any,
    negatives: CheckedNegatives,
    log_z: Any,
    options: LossOptions,
    batch: tuple[int, ...],
    reduction: str,
) -> SampledPlan:
    """The plan with the rows that take part, checked labels and the divisor of the mean; log_z is the label's shift."""
    rows = math.prod(batch)
    s, upstream = (
        None if v is None else np.ascontiguousarray(v).reshape(rows) for v in (options.sample_weight, options.upstream)
    )
    labels = labels.copy()  # so that no other thread can change labels that have been checked
    raise_bad_label(labels, len(w), options.ignore_index)
    labels = labels.reshape(rows)
    is_kept = np.ones(rows, bool) if s is None else s != 0
    if is_representable(options.ignore_index, labels.dtype):
        is_kept &= labels != labels.dtype.type(options.ignore_index)
    labels = labels.astype(np.int64, copy=False)
    kept = None if is_kept.all() else np.flatnonzero(is_kept)
    x = x.reshape(rows, x.shape[-1])
    if kept is not None:
        x, labels, s, upstream, log_z = (None if v is None else v[kept] for v in (x, labels, s, upstream, log_z))
        by_row = negatives.target_log_q, *(() if negatives.is_shared else negatives[:3])
        target_log_q, *own = (None if v is None else v[kept] for v in by_row)
        ids, log_q, count = own or negatives[:3]
        negatives = CheckedNegatives(ids, log_q, count, target_log_q)
    is_scaled = reduction == "mean" and not (options.clip_norm or options.clip_value)
    if is_scaled and s is not None and s.size:
        s = scale_weights(s)
    if options.weight is not None:
        s = weigh(s, options.weight[labels].astype(np.float64), is_scaled=is_scaled)
    divisor = 1.0
    if reduction == "mean":
        divisor = float(len(x)) if s is None else add_up(s)
    options = options._replace(weight=None, sample_weight=None, upstream=None)
    return SampledPlan(
        *(x, w, bias, labels, negatives, None, log_z, s, upstream, options, True, kept, divisor, batch),
        compute_dtype(x.dtype),
        1,
    )


def _with_shifts(plan: SampledPlan, kind: str, correction: str, log_z: Any) -> SampledPlan:
    """The plan with what is subtracted from the logits before they are divided by the temperature."""
    negatives, t = plan.negatives, plan.options.temperature
    shift, label_shift = negatives.log_q, None
    if kind == NEGATIVE_SAMPLING or correction == "none":
        shift = None
    is_alone = negatives.ids.shape[-1] == 0  # the softmax of the label is 1, whatever its logit
    if shift is not None and (kind == NCE or (correction == "ranking" and not is_alone)):
        label_shift = _label_log_q(plan)
    if kind == SOFTMAX and shift is not None and negatives.counts is not None:
        shift = shift - np.log(negatives.counts)
    if kind == NCE and plan.label_shift is not None:  # log_z
        of_row = plan.label_shift
        label_shift = of_row if label_shift is None else label_shift + of_row
        if np.any(of_row != 0):
            shape = plan.negatives.ids.shape
            wide = np.zeros(shape) if shift is None else shift
            same = negatives.is_shared and np.all(of_row == of_row[:1])
            shift = wide + of_row[0] if same else wide + of_row[:, None]
    scaled = (None if v is None or t == 1 else v * t for v in (shift, label_shift))
    if t != 1:
        shift, label_shift = scaled
    return plan._replace(shift=shift, label_shift=label_shift)


def _label_log_q(plan: SampledPlan) -> Any:
    log_q = plan.negatives.target_log_q
    if log_q is None:
        raise ValueError("negatives.target_log_q is missing: draw them with sample(..., target=target)")
    bad = ~np.isfinite(log_q)
    if bad.any() and plan.negatives.ids.shape[-1]:
        at = int(bad.argmax())
        remedy = "the sampler never draws it; add smoothing" if log_q[at] == -np.inf else "it must be finite"
        raise ValueError(f"the class {plan.labels[at]}, a label, has negatives.target_log_q {log_q[at]}: {remedy}")
    return log_q


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@np.errstate(all="ignore")
def _run_on_cpu(
    kind: str, plan: SampledPlan, gradient: bool, reduction: str, num_threads: int | None
) -> tuple[Any, ...]:
    rows, ids = len(plan.x), plan.negatives.ids
    upstream = None if plan.upstream is None else plan.upstream / plan.divisor
    if upstream is None and plan.divisor != 1:
        upstream = np.full(rows, 1 / np.float64(plan.divisor))
    layer = SampledLayer(
        plan.x, plan.w, plan.bias, plan.labels, ids, plan.compute, min(plan.chunk_rows, rows), num_threads
    )
    if gradient:
        layer.start_gradients()
    losses, sums = np.zeros(rows), np.zeros(rows) if kind == NCE and gradient else None
    counts = None if kind == SOFTMAX else plan.negatives.counts
    hits = layer.hits() if plan.masks_hits else None
    label_terms = layer.terms(plan.labels, plan.label_shift)
    # all rows have the same terms, counts, or each its own
    has_own_terms = plan.shift is not None and plan.shift.ndim == 2
    terms = None if has_own_terms and layer.is_shared else layer.terms(ids, plan.shift)
    if layer.is_shared:
        terms, counts = (None if v is None else v[None] for v in (terms, counts))
    # a mean that divides by 0 has a gradient of 0 whatever its rows hold, and 0 times infinity would not be 0
    for begin in range(0, rows if plan.divisor != 0 else 0, plan.chunk_rows):
        chunk = slice(begin, min(begin + plan.chunk_rows, rows))
        if has_own_terms and layer.is_shared:
            assert plan.shift is not None
            terms = layer.terms(ids, plan.shift[chunk])
        label_part, s, factor, sums_part = (
            None if v is None else v[chunk] for v in (label_terms, plan.scale, upstream, sums)
        )
        size = (chunk.stop - begin) * (ids.shape[-1] + 1)
        layer.compute_losses(
            chunk,
            is_softmax=kind == SOFTMAX,
            terms=terms,
            label_terms=label_part,
            hits=hits,
            counts=counts,
            scale=s,
            upstream=factor,
            losses=losses[chunk],
            sums=sums_part,
            gradient=gradient,
            options=plan.options,
            threads=kernel_threads(size, num_threads) if layer.is_shared else num_threads,
        )
    loss = _reduced(plan, losses, reduction)
    if not gradient:
        layer.scratch.give_back()
        return (loss,)
    grad_x, touched, values, bias_values = layer.gradients()
    layer.scratch.give_back()
    results = loss, _of_all_rows(plan, grad_x).reshape(*plan.batch, plan.x.shape[1]), touched, values, bias_values
    if sums is None:
        return results
    # the gradient of log_z: no logit holds it multiplied by the temperature
    return *results, _of_all_rows(plan, -plan.options.temperature * sums)


def _of_all_rows(plan: SampledPlan, values: Any) -> Any:
    """Results of the rows that take part, with 0 for the others."""
    if plan.kept is None:
        return values
    every = np.zeros((math.prod(plan.batch), *values.shape[1:]), values.dtype)
    every[plan.kept] = values
    return every


def _reduced(plan: SampledPlan, losses: Any, reduction: str) -> Any:
    """The loss in the form of the result, from the losses of the rows that take part."""
    if reduction == "none":
        loss = _of_all_rows(plan, losses).reshape(plan.batch)
    else:
        loss = np.sum(losses) / np.float64(plan.divisor)
        loss = loss if loss == loss else np.nan  # on x86 the NaN of 0 / 0 is negative
    return np.asarray(loss).astype(plan.compute)[()]


@accept_foreign
@keep_labels(1)
def run_sampled(
    x: Any, w: Any, target: Any, negatives: Any, *, kind: str, gradient: bool, num_threads: Any, **options: Any
) -> tuple[Any, ...]:
    """Compute a loss and, with `gradient`, the gradients of x and w, the latter as rows, values and bias values."""
    plan = plan_sampled(kind, x, w, target, negatives, **options)
    num_threads = check_num_threads(num_threads)
    results = _run_on_cpu(kind, plan, gradient, options["reduction"], num_threads)
    if kind == NCE and gradient:
        *others, grad_log_z = results
        is_number = np.ndim(options["log_z"]) == 0
        grad = np.sum(grad_log_z) if is_number else grad_log_z.reshape(plan.batch)
        return *others, np.asarray(grad).astype(plan.compute)[()]
    return results


def with_row_gradients(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """The fields of a result, whose rows, values and bias values become gradients of rows."""
    loss, grad_x, rows, values, bias_values, *rest = results
    bias = None if bias_values is None else RowGradient(rows, bias_values)
    return loss, grad_x, RowGradient(rows, values), bias, *rest
