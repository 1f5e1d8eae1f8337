"""Penalties for tokens that have been seen, and biases: what changes logits before they are drawn from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.layouts import Result, axis_last, lay_out_rows, may_share_memory, normalize_axes
from .._arguments.numbers import as_index, as_number, check_parameter
from .._arguments.places import DeviceError, Place, as_float, place_of
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.dtypes import is_bfloat16

__all__ = ["penalize"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


class PenalizePlan(NamedTuple):
    """A checked call of penalize; the class axis is the last."""

    dtype: int
    logits: Any
    tokens: Any
    lengths: Any | None
    penalties: tuple[Any, Any, Any]  # repetition, presence, frequency: one number a row
    bias: Any | None
    classes: Any | None
    values: Any | None
    num_threads: Any
    result: Result

    def execute(self) -> Any:
        """Compute, and return the logits."""
        arrays = self.dtype, self.logits, self.result.rows, self.tokens, self.lengths, *self.penalties
        binding.run_penalize(*arrays, self.bias, self.classes, self.values, self.num_threads)
        return self.result.finish()


def plan_penalize(
    logits: Any,
    tokens: Any,
    *,
    lengths: Any,
    repetition: Any,
    presence: Any,
    frequency: Any,
    bias: Any,
    axis: Any,
    out: Any,
    device: str | None,
    num_threads: Any,
) -> PenalizePlan:
    """Check a call of penalize."""
    place = place_of(device, logits)
    if place.on_cuda:
        raise DeviceError('penalize has no kernels for CUDA. device="cpu" computes on the CPU.')
    x, dtype = as_float("logits", logits, place)
    axes = normalize_axes(axis, x.ndim)
    rows = lay_out_rows(place, x, None, axis, None, out, gradient=False)
    batch, n = rows.first.shape[:-1], rows.first.shape[-1]
    seen = _check_tokens(tokens, batch, place)
    lengths = None if lengths is None else place.array("lengths", lengths)
    lengths = check_parameter("lengths", lengths, batch, np.int64, "at least 0", lambda v: v >= 0)
    _check_lengths(lengths, seen.shape[-1])
    finite = "finite", lambda v: abs(v) < math.inf
    positive = "greater than 0 and finite", lambda v: (v > 0) & (v < math.inf)
    penalties = [
        _check_penalty(place, "repetition", repetition, 1.0, batch, *positive),
        _check_penalty(place, "presence", presence, 0.0, batch, *finite),
        _check_penalty(place, "frequency", frequency, 0.0, batch, *finite),
    ]
    dense, classes, values = None, None, None
    if isinstance(bias, Mapping):
        classes, values = _check_mapping(bias, n)
    elif bias is not None:
        dense = _check_bias(place.array("bias", bias), x.shape, axes, batch, n)
    if out is not None:  # read while the result is written
        seen, lengths, dense, *penalties = (
            a.copy() if a is not None and may_share_memory(out, a) else a for a in (seen, lengths, dense, *penalties)
        )
    options = seen, lengths, (penalties[0], penalties[1], penalties[2]), dense, classes, values, num_threads
    return PenalizePlan(dtype, rows.first, *options, rows.result)


def _check_penalty(
    place: Place, name: str, given: Any, neutral: float, batch: tuple[int, ...], allowed: str, is_allowed: Any
) -> Any:
    """One number a row, or None for the number that changes nothing."""
    if type(given) is float and is_allowed(given):  # the usual case
        return None if given == neutral else np.full(batch, given)
    if given is not None and not isinstance(given, int | float):
        given = place.array(name, given)
    return check_parameter(name, given, batch, np.float64, allowed, is_allowed)


def _check_tokens(tokens: Any, batch: tuple[int, ...], place: Place) -> Any:
    """The tokens as int64 of the shape (*batch, n)."""
    seen = place.array("tokens", tokens)
    if seen.size == 0 and isinstance(tokens, list | tuple):
        seen = seen.astype(np.int64)
    if seen.dtype.kind not in "iu":
        raise TypeError(f"tokens must hold integers, got {seen.dtype}")
    if seen.ndim == 0:
        raise ValueError("tokens must have an axis of tokens, got a single number")
    try:
        rows = np.broadcast_to(seen, (*batch, seen.shape[-1]))
    except ValueError:
        raise ValueError(
            f"tokens have shape {seen.shape}, and need that of the rows, {batch}, followed by their number"
        ) from None
    if seen.dtype == np.uint64:  # those beyond int64 are no classes
        seen = np.where(seen > np.uint64(2**63 - 1), np.uint64(2**63 - 1), seen)
    if seen.dtype != np.int64 or not seen.dtype.isnative:
        rows = np.broadcast_to(seen.astype(np.int64), rows.shape)
    return rows


def _check_lengths(lengths: Any, count: int) -> None:
    """Refuse lengths beyond the tokens that are given."""
    if lengths is None:
        return
    bad = lengths > count
    if np.any(bad):
        at = np.unravel_index(int(np.argmax(bad)), lengths.shape)
        raise ValueError(
            f"lengths must be at most the number of tokens, {count}, got {lengths[at]} for row "
            f"({', '.join(map(str, at))})"
        )


def _check_bias(bias: Any, shape: tuple[int, ...], axes: tuple[int, ...], batch: tuple[int, ...], n: int) -> Any:
    """The bias of each class of each row, as float64."""
    if bias.dtype.kind not in "iuf" and not is_bfloat16(bias.dtype):
        raise TypeError(f"bias must hold real numbers, got {bias.dtype}")
    if bias.shape != (n,) and bias.shape != shape:
        raise ValueError(
            f"bias has shape {bias.shape}; it needs one number for each class, ({n},), or the shape of the logits, "
            f"{shape}"
        )
    wide = bias.astype(np.float64, copy=False)
    if not np.all(wide < math.inf):
        raise ValueError("bias must hold numbers or -inf, got NaN or +inf")
    if bias.shape == (n,):
        return np.broadcast_to(wide, (*batch, n))
    return axis_last(wide.reshape(1) if wide.ndim == 0 else wide, axes)


def _check_mapping(bias: Mapping[Any, Any], n: int) -> tuple[Any, Any]:
    """The classes and the values of a mapping."""
    classes, values = np.empty(len(bias), np.int64), np.empty(len(bias), np.float64)
    for i, (key, value) in enumerate(bias.items()):
        try:
            number = as_index(key)
        except TypeError:
            raise TypeError(f"bias must have integers as keys where it is a mapping, got {key!r}") from None
        if not 0 <= number < n:
            raise IndexError(f"bias has the key {number}, and the classes are those from 0 to {n - 1}")
        classes[i], values[i] = number, as_number(f"bias[{number}]", value)
        if not values[i] < math.inf:
            raise ValueError(f"bias[{number}] must be a number or -inf, got {values[i]}")
    return classes, values


@accept_foreign
@keep_labels()
def _run_penalize(logits: Any, tokens: Any, **options: Any) -> Any:
    return plan_penalize(logits, tokens, **options).execute()


@hand_over_recorded
def penalize(
    logits: ArrayLike,
    tokens: ArrayLike,
    *,
    lengths: ArrayLike | None = None,
    repetition: ArrayLike = 1.0,
    presence: ArrayLike = 0.0,
    frequency: ArrayLike = 0.0,
    bias: ArrayLike | Mapping[int, float] | None = None,
    axis: _Axis = -1,
    out: Any = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Penalise the tokens that have been seen, and add biases.

    A logit x whose class is among the tokens of its row c > 0 times becomes x / repetition if it is positive, else
    x * repetition; then presence and frequency * c are subtracted. The bias of each class comes last.

    Parameters
    ----------
    logits : array_like of shape (..., K)
        Logits in one of the dtypes of `softmax`; K is the length of `axis`.
    tokens : array_like of int of the shape of the rows, followed by any number n of tokens
        Classes that have been seen. Numbers outside [0, K) are padding, and ignored. Tokens of the shape (n,) are those
        of every row.
    lengths : int or array_like of int, broadcastable to the rows, optional
        How many tokens of a row are valid, the first ones; None means all.
    repetition : float or array_like, broadcastable to the rows, default 1.0
        Greater than 0; above 1 it makes tokens that have been seen less probable (Keskar et al. 2019).
    presence : float or array_like, broadcastable to the rows, default 0.0
        The number subtracted once from a class that has been seen; negative numbers make it more probable.
    frequency : float or array_like, broadcastable to the rows, default 0.0
        The number subtracted for each time that a class has been seen.
    bias : array_like of shape (K,) or of the shape of logits, or mapping of class to number, optional
        What is added in the end; -inf bans a class.
    axis : int, tuple of ints or None, default -1
        Axis or axes of the classes.
    out : ndarray of the shape and dtype of the result, optional
        Array that receives the result. It may be `logits`: only classes that have been seen, or have a bias, are then
        read and written.
    device, num_threads
        As in `softmax`. There are no kernels for CUDA.

    Returns
    -------
    ndarray of the shape and dtype of logits
        The new logits (float64 for integers).

    Raises
    ------
    ValueError
        If a penalty, a length or a bias is out of range, or shapes do not fit.
    IndexError
        If a key of a mapping is no class.
    TypeError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    The new logit is computed in float64 and rounded once. All other logits keep their bits.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> logits = np.array([[2.0, 1.0, -1.0, 0.5], [0.0, 1.0, 2.0, 3.0]])
    >>> tokens = np.array([[0, 2, 2], [3, -1, -1]])  # -1 is padding
    >>> csoftmax.penalize(logits, tokens, repetition=2.0)
    array([[ 1. ,  1. , -2. ,  0.5],
           [ 0. ,  1. ,  2. ,  1.5]])
    >>> csoftmax.penalize(logits, tokens, presence=[0.5, 0.0], frequency=0.25, bias={1: -np.inf})
    array([[ 1.25,  -inf, -2.  ,  0.5 ],
           [ 0.  ,  -inf,  2.  ,  2.75]])
    >>> csoftmax.penalize(logits, tokens, lengths=[1, 0], presence=1.0)
    array([[ 1. ,  1. , -1. ,  0.5],
           [ 0. ,  1. ,  2. ,  3. ]])
    """
    return _run_penalize(
        logits,
        tokens,
        lengths=lengths,
        repetition=repetition,
        presence=presence,
        frequency=frequency,
        bias=bias,
        axis=axis,
        out=out,
        device=device,
        num_threads=num_threads,
    )
