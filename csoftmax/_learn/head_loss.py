"""The loss of an output layer in normal form: arguments that layers of `csoftmax.heads` share, and the result.

A layer has `n_features`, `n_classes` (None: each 64-bit integer is a class), `dtype` and `num_threads`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.foreign import as_native
from .._arguments.labels import check_loss_options, check_target, is_representable, raise_bad_label, refuse_smoothing
from .._arguments.layers import add_up, scale_weights, weigh
from .._arguments.numbers import check_num_threads
from .._arguments.places import as_array, as_float


class LossPlan(NamedTuple):
    """A checked call: the rows that take part."""

    x: Any  # (n, D) in the dtype of the parameters
    labels: NDArray[np.int64]
    scale: Any | None  # sample weight times class weight of each row
    upstream: Any | None  # of each row, over the divisor of the mean
    temperature: float
    clip_norm: float  # 0: none
    clip_value: float
    reduction: str
    divisor: float
    kept: Any | None  # indices of these rows among those of the caller; None if all take part
    batch: tuple[int, ...]
    given: Any  # dtype of the caller's x
    num_threads: int | None


def check_features(layer: Any, x: Any) -> tuple[Any, Any]:
    """Features of shape (..., D) in the dtype of the parameters, and the dtype that their gradient has."""
    x, _ = as_float("x", as_native(x, "x"))
    if x.ndim == 0 or x.shape[-1] != layer.n_features:
        raise ValueError(f"x has shape {x.shape}; the layer has {layer.n_features} features: (..., D) is allowed")
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(layer.dtype, copy=False), x.dtype


def _check_labels(target: Any, n: int | None, batch: tuple[int, ...], dtype: Any) -> Any:
    """Integer labels of the shape of the rows; n: the number of classes, or None where each integer is a class."""
    if n is not None:
        given = as_array("target", target)
        if given.shape == (*batch, n) != batch:
            raise ValueError(
                f"soft labels need all classes: target has shape {given.shape}; one integer label for each row, "
                f"of shape {batch}, is allowed"
            )
        if given.shape == batch and given.size and given.dtype.kind == "f":
            raise TypeError(f"target must hold integer labels, got dtype {given.dtype}")
        return check_target(target, (*batch, n), batch, dtype)[0]
    labels = as_array("target", target)
    if labels.size == 0 and labels.dtype == np.float64:  # NumPy makes an empty list float64
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target must hold integer labels, got dtype {labels.dtype}")
    if labels.shape != batch:
        raise ValueError(f"target has shape {labels.shape}; there is one label for each row, {batch}")
    return labels.astype(labels.dtype.newbyteorder("="), copy=False)


def plan_loss(
    layer: Any,
    x: Any,
    target: Any,
    *,
    upstream: Any = None,
    reduction: Any,
    num_threads: Any,
    label_smoothing: Any = 0.0,
    **options: Any,
) -> LossPlan:
    """Check the arguments, and drop the rows that take no part."""
    x, given = check_features(layer, x)
    n, batch = layer.n_classes, x.shape[:-1]
    labels = _check_labels(as_native(target, "target"), n, batch, layer.dtype)
    if n is None and options.get("weight") is not None:
        raise ValueError("weight needs a number of classes, which the layer was made without")
    options = {name: as_native(value, name) for name, value in options.items()}
    ignored = options.pop("ignore_index")
    checked = check_loss_options(
        n or 0, batch, layer.dtype, reduction, upstream=as_native(upstream, "upstream"),
        label_smoothing=label_smoothing, z_loss=0.0, ignore_index=-1 if ignored is None else ignored, **options,
    )  # fmt: skip
    refuse_smoothing(checked.label_smoothing)
    num_threads = check_num_threads(layer.num_threads if num_threads is None else num_threads)
    labels = labels.copy()  # so that no other thread can change labels that have been checked
    if n is not None:
        raise_bad_label(labels, n, None if ignored is None else checked.ignore_index)
    rows = math.prod(batch)
    s, up = (
        None if v is None else np.ascontiguousarray(v).reshape(rows) for v in (checked.sample_weight, checked.upstream)
    )
    labels, x = labels.reshape(rows), x.reshape(rows, x.shape[-1])
    is_kept = np.ones(rows, bool) if s is None else s != 0
    if ignored is not None and is_representable(checked.ignore_index, labels.dtype):
        is_kept &= labels != labels.dtype.type(checked.ignore_index)
    labels = labels.astype(np.int64, copy=False)
    kept = None if is_kept.all() else np.flatnonzero(is_kept)
    if kept is not None:
        x, labels, s, up = (None if v is None else v[kept] for v in (x, labels, s, up))
    # a clip compares a row with a number, so that its weight counts as it is
    is_scaled = reduction == "mean" and not (checked.clip_norm or checked.clip_value)
    if is_scaled and s is not None and s.size:
        s = scale_weights(s)
    if checked.weight is not None:
        s = weigh(s, checked.weight[labels].astype(np.float64), is_scaled=is_scaled)
    divisor = 1.0
    if reduction == "mean":
        divisor = float(len(x)) if s is None else add_up(s)
    if divisor not in (0, 1):
        with np.errstate(over="ignore", invalid="ignore"):
            up = (np.ones(len(x)) if up is None else up) / divisor
    clips = checked.clip_norm, checked.clip_value
    return LossPlan(x, labels, s, up, checked.temperature, *clips, reduction, divisor, kept, batch, given, num_threads)


def add_squares(squares: NDArray[np.float64], grad: Any) -> None:
    """Add the squares of the gradient of some logits of each row to those of its others."""
    squares += np.einsum("ij,ij->i", grad, grad, dtype=np.float64)


def _find_exponents(plan: LossPlan) -> NDArray[np.intp]:
    """For each row the exponent of the largest norm that its gradient may have, and at least that of `clip_norm`."""
    scale = np.ones(len(plan.x)) if plan.scale is None else plan.scale
    of_rows = np.frexp(scale)[1] - math.frexp(plan.temperature)[1]
    return np.clip(np.maximum(of_rows, math.frexp(plan.clip_norm)[1]), -1000, 1000)


def plan_norms(plan: LossPlan) -> LossPlan:
    """The plan of the pass that finds the norms, times powers of two with which no square overflows.

    A square that vanishes is of a gradient far below `clip_norm`, or of one that is less than 1e-154 of its weight.
    """
    return plan._replace(upstream=np.ldexp(1.0, -_find_exponents(plan)), clip_value=0.0)


def clip_scale(plan: LossPlan, squares: NDArray[np.float64]) -> LossPlan:
    """The plan with weights that clip rows by their norms, whose squares `plan_norms` led to; for gradients only."""
    norm, down = np.sqrt(squares), -_find_exponents(plan)
    scale = np.ones(len(plan.x)) if plan.scale is None else plan.scale
    clipped = np.ldexp(scale, down) * (plan.clip_norm / norm)
    return plan._replace(scale=np.where(norm > np.ldexp(plan.clip_norm, down), clipped, scale), clip_norm=0.0)


def reduce(plan: LossPlan, losses: NDArray[np.float64], dtype: Any) -> Any:
    """The loss in the form of the result, from the losses of the rows that take part."""
    if plan.reduction == "none":
        loss: Any = np.zeros(math.prod(plan.batch))
        loss[slice(None) if plan.kept is None else plan.kept] = losses
        loss = loss.reshape(plan.batch)
    else:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss = np.sum(losses) / np.float64(plan.divisor)
        loss = loss if loss == loss else np.nan  # on x86 the NaN of 0 / 0 is negative
    with np.errstate(over="ignore"):
        return np.asarray(loss).astype(dtype)[()]


def spread(plan: LossPlan, grad_x: Any) -> Any:
    """The gradient of all of the caller's rows, in the dtype of their features."""
    with np.errstate(over="ignore", under="ignore"):
        grad_x = grad_x.astype(plan.given, copy=False)
    if plan.kept is not None:
        every_row = np.zeros((math.prod(plan.batch), grad_x.shape[1]), grad_x.dtype)
        every_row[plan.kept] = grad_x
        grad_x = every_row
    return grad_x.reshape(*plan.batch, grad_x.shape[1])
