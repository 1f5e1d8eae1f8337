"""Labels, hard and soft, and what goes with them: weights, upstream gradients, and the options that losses share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple, NoReturn

import numpy as np

from .._cpu.dtypes import is_bfloat16
from .layouts import pieces
from .numbers import (
    as_number,
    check_integer,
    check_non_negative,
    check_positive,
    check_reduction,
    check_temperature,
    check_temperatures,
    number_and_rows,
)
from .places import CPU, Place, as_array, is_cupy, to_host

# How the message goes on for one-hot rows that are not floating.
CONVERT_ONE_HOT = (
    "; soft labels, one-hot rows included, must be floating-point: convert them with target.astype(numpy.float32), a "
    "tensor with target.float()"
)


def check_target(target: Any, shape: tuple[int, ...], batch: tuple[int, ...], dtype: Any, place: Place = CPU) -> Any:
    """Labels (native integers of shape `batch`) or None, and soft labels (of `shape` and `dtype`) or None."""
    target = place.array("target", target)
    given = target.dtype
    kind = "f" if is_bfloat16(given) else given.kind
    if (kind == "f" and given.itemsize > 8) or kind not in "iuf":
        raise TypeError(
            f"target must hold integer labels or floating-point soft labels, got dtype {given}"
            + (CONVERT_ONE_HOT if kind == "b" and target.shape == shape else "")
        )
    if kind == "f" and target.size == 0 and target.shape == batch != shape:
        target, given, kind = target.astype(np.int64), np.dtype(np.int64), "i"  # NumPy makes an empty list float64
    if kind == "f":
        if target.shape != shape:
            if target.shape == batch and not is_cupy(target) and np.isnan(target.astype(np.float64)).any():
                raise ValueError(
                    "target has missing values (NaN), which integer labels cannot hold: fill them, with the "
                    "ignore_index to leave their rows out, and pass integers, as by target.fillna(-100).astype(int)"
                )
            raise_soft_shape(target.shape, shape, batch, given)
        return None, round_keeping_sign(target, dtype)  # overflow becomes infinity, which is refused later
    if target.shape != batch:
        raise ValueError(
            f"target has shape {target.shape}: the logits have shape {shape}, their rows {batch}"
            + (f", and the target is {given}{CONVERT_ONE_HOT}" if target.shape == shape else "")
        )
    return target.astype(given.newbyteorder("="), copy=False), None


def raise_soft_shape(given: tuple[Any, ...], shape: tuple[Any, ...], batch: tuple[Any, ...], dtype: Any) -> NoReturn:
    """Refuse soft labels of another shape than that of the logits; batch: the shape of the rows."""
    raise ValueError(
        f"target has shape {given}: soft labels have the shape of the logits, {shape}; labels of shape {batch} are "
        f"integers, and the target is {dtype}"
    )


def raise_bad_label(
    target: Any,
    n_classes: int,
    ignore_index: int | None,
    place_of: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple,
    part: str = "",
) -> None:
    """Find the first bad label, hard or soft, and raise; return if there is none.

    place_of : the indices in the call of an element of the target, which may be some of its rows or classes
    part : what the message says of the part, where the indices count from its start
    """

    def indices(at: tuple[Any, ...]) -> str:
        return ", ".join(map(str, place_of(at)))

    if target.dtype.kind in "iu":
        bad = (target < 0) | (target >= n_classes)
        if ignore_index is not None and is_representable(ignore_index, target.dtype):
            bad &= target != target.dtype.type(ignore_index)
        if not bad.any():
            return
        at = np.unravel_index(int(bad.argmax()), target.shape)
        place = f"target[{indices(at)}]" if at else "target"
        classes = f"the classes are 0 to {n_classes - 1}" if n_classes else "there is no class"
        ignored = "" if ignore_index is None else f", and ignore_index is {ignore_index}"
        raise IndexError(f"{place}{part} is {target[at]}: {classes}{ignored}")
    for piece in pieces(target.shape):
        bad = ~(np.isfinite(target[piece]) & (target[piece] >= 0))
        if bad.any():
            break
    else:
        return
    is_bad = np.zeros(target.shape, bool)
    is_bad[piece] = bad
    at = np.unravel_index(int(is_bad.argmax()), target.shape)
    raise ValueError(
        f"soft labels must be at least 0 and finite; target, the class axis last, has {target[at]} at "
        f"({indices(at)}){part}"
    )


def check_on_device(target: Any, n_classes: int, ignore_index: int | None) -> None:
    """Raise for a bad label on a CUDA device, but only if CSOFTMAX_SYNC_CHECKS=1 asks to wait for the device."""
    if os.environ.get("CSOFTMAX_SYNC_CHECKS") == "1":
        raise_bad_label(target.get(), n_classes, ignore_index)


def is_representable(value: int, dtype: Any) -> bool:
    """Whether an integer dtype can hold the value."""
    limits = np.iinfo(dtype)
    return limits.min <= value <= limits.max


def as_label_bits(ignore_index: int, labels: Any) -> int | None:
    """ignore_index as the 64 bits that kernels compare with labels, or None if no label can equal it."""
    if labels is None or not is_representable(ignore_index, labels.dtype):
        return None
    return ignore_index % 2**64


def raise_bad_weight(
    name: str, given: Any, values: Any, place_of: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple, part: str = ""
) -> None:
    """Find the first bad weight and raise; return if there is none.

    values : the weights that are given, in their float dtype
    place_of, part : as in `raise_bad_label`
    """
    bad = ~(np.isfinite(values) & (values >= 0))
    if bad.any():
        at = np.unravel_index(int(bad.argmax()), bad.shape)
        place = ", ".join(map(str, place_of(at)))
        raise ValueError(f"{name} must be at least 0 and finite in {values.dtype}, got {given[at]} at ({place}){part}")


def check_weight(
    name: str, weight: Any, shape: tuple[int, ...], dtype: Any, place: Place = CPU, first: int | None = 0
) -> Any:
    """Weights broadcast to a shape in a native float dtype, at least 0 and finite (on a CUDA device unread).

    first : the class of the first weight, if weights of some classes; None: it is not known
    """
    on_device = place.on_cuda and is_cupy(weight)
    given = place.array(name, weight) if on_device or not place.on_cuda else as_array(name, weight)
    if given.dtype.kind not in "iuf" and not is_bfloat16(given.dtype):
        raise TypeError(f"{name} must hold real numbers, got dtype {given.dtype}")
    values = round_keeping_sign(given, dtype)
    values = values.copy() if values is given else values
    try:
        values = (place.xp if on_device else np).broadcast_to(values, shape)
    except ValueError:
        raise ValueError(f"{name} has shape {given.shape}, which does not broadcast to {shape}") from None
    if on_device:
        return values
    part = " of the shard" if first is None else ""
    raise_bad_weight(name, np.broadcast_to(given, shape), values, lambda at: tuple(i + (first or 0) for i in at), part)
    return place.array(name, values) if place.on_cuda else values


def round_keeping_sign(x: Any, dtype: Any) -> Any:
    """The array in a float dtype, where nonzero elements that would round to 0 become the smallest of their sign."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = x.astype(dtype, copy=False)
    if values is x or x.dtype.kind != "f" or x.dtype.itemsize <= values.dtype.itemsize:
        return values
    vanished = (values == 0) & (x != 0)
    if is_cupy(x) or vanished.any():  # always on a device: testing the mask would wait for it
        xp = sys.modules["cupy"] if is_cupy(x) else np
        smallest = np.finfo(dtype).smallest_subnormal
        values = xp.where(vanished, xp.where(x < 0, -smallest, smallest), values)
    return values


def check_ignore_index(ignore_index: Any) -> int:
    """ignore_index as an int."""
    return check_integer("ignore_index", ignore_index)


def check_upstream(upstream: Any, reduction: str, batch: tuple[int, ...], place: Place = CPU) -> Any:
    """The upstream gradient as float64 for every row, or None where it is 1."""
    if type(upstream) is float and upstream == 1:  # the default
        return None
    if place.on_cuda and (is_cupy(upstream) or np.ndim(upstream)):
        values = place.array("upstream", upstream)
    else:
        values = as_array("upstream", upstream)
    if values.dtype.kind not in "iuf" and not is_bfloat16(values.dtype):
        raise TypeError(f"upstream must hold real numbers, got dtype {values.dtype}")
    if reduction != "none" and values.ndim:
        raise ValueError(f"upstream must be a number where reduction is {reduction!r}, got shape {values.shape}")
    if place.on_cuda and not is_cupy(values):  # a number on the host
        return None if values == 1 else place.xp.full(batch, values, np.float64)
    try:
        with np.errstate(over="ignore", under="ignore"):
            values = place.xp.broadcast_to(values.astype(np.float64), batch)
    except ValueError:
        raise ValueError(f"upstream has shape {values.shape}, which does not broadcast to the rows, {batch}") from None
    return None if not place.on_cuda and values.ndim == 0 and values == 1 else values


def check_softcap(softcap: Any) -> float:
    """Return the soft cap of logits, 0.0 for None."""
    if softcap is None:
        return 0.0
    cap = as_number("softcap", softcap)
    if not 0 < cap < inf:
        raise ValueError(f"softcap must be None or a number > 0 and finite, got {softcap!r}")
    return cap


class LossOptions(NamedTuple):
    """Checked options of a loss; weights are in the compute type."""

    weight: Any | None
    sample_weight: Any | None
    upstream: Any | None
    temperature: float
    label_smoothing: float
    z_loss: float
    clip_norm: float
    clip_value: float
    ignore_index: int
    temperatures: Any | None = None  # those of the rows, which then count instead of `temperature`
    softcap: float = 0.0  # 0: none

    @property
    def factors(self) -> tuple[float, float, float, float, float]:
        """temperature, label_smoothing, z_loss, clip_norm and clip_value, in the order that backends expect."""
        return self[3:8]  # type: ignore[return-value]


def check_loss_options(
    n_classes: int,
    batch: tuple[int, ...],
    dtype: Any,
    reduction: str,
    *,
    weight: Any,
    sample_weight: Any,
    label_smoothing: Any,
    ignore_index: Any,
    z_loss: Any,
    temperature: Any,
    upstream: Any = None,
    clip_norm: Any = None,
    clip_value: Any = None,
    softcap: Any = None,
    place: Place = CPU,
    row_shape: tuple[int, ...] | None = None,
    first_class: int | None = 0,
) -> LossOptions:
    """Check the options that losses of logits and of linear layers share; upstream None means no gradient.

    row_shape : the shape that arrays of temperatures broadcast to; None where only a number is allowed.
    first_class : that of the logits, of a shard; None: it is not known.
    """
    check_reduction(reduction)
    if row_shape is None:
        t, each = check_temperature(temperature, True), None
    else:
        t, each = number_and_rows(check_temperatures(to_host(temperature)[0], row_shape, True), batch, 1.0)
    if weight is not None:
        weight = place.xp.ascontiguousarray(check_weight("weight", weight, (n_classes,), dtype, place, first_class))
    if sample_weight is not None:
        sample_weight = check_weight("sample_weight", sample_weight, batch, np.float64, place)
    return LossOptions(
        weight,
        sample_weight,
        None if upstream is None else check_upstream(upstream, reduction, batch, place),
        t,
        check_non_negative("label_smoothing", label_smoothing, 1),
        check_non_negative("z_loss", z_loss),
        check_positive("clip_norm", clip_norm),
        check_positive("clip_value", clip_value),
        check_ignore_index(ignore_index),
        each,
        check_softcap(softcap),
    )


def refuse_smoothing(label_smoothing: Any) -> None:
    """Refuse label smoothing in a loss that does not compute the logits of all classes."""
    if check_non_negative("label_smoothing", label_smoothing, 1):
        raise ValueError("label_smoothing needs all classes: it must be 0")
