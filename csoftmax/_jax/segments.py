"""The softmax family over segments for JAX.

Segments reach the kernels as two arrays, offsets and the order of the elements (empty: in order). Ids that are traced
are sorted by XLA, all others by `Segments`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arguments.numbers import check_integer
from .._arguments.segments import Segments, as_segments, check_num_segments, check_one_given
from .calls import (
    broadcast_numbers,
    call_kernel,
    check_floating,
    check_mask,
    check_number,
    is_equal,
    is_for_rows,
    leave_out,
    like,
    mean_of,
)
from .losses import check_weights, scale_weights
from .scaling import scale_softmax, scale_softmax_by

Arrays = tuple[jax.Array, jax.Array]


def _segment_arrays(
    indptr: Any, segment_ids: Any, num_segments: Any, segments: Segments | None, length: int, axis: int
) -> Arrays:
    """Offsets, and the order of the elements or an empty array."""
    check_one_given(indptr, segment_ids, segments)
    if isinstance(segment_ids, jax.core.Tracer):
        return _sort(segment_ids, num_segments, length)
    if isinstance(indptr, jax.core.Tracer):
        if indptr.ndim != 1 or not jnp.issubdtype(indptr.dtype, jnp.integer):
            raise TypeError(f"indptr must hold integers along one axis, got {indptr.dtype} of shape {indptr.shape}")
        wide = jnp.int64 if indptr.dtype.itemsize > 4 else jnp.int32
        offsets = jax.lax.cummax(jnp.clip(indptr.astype(wide), 0, length))
        return offsets, jnp.zeros(0, jnp.int32)
    given = None if indptr is None else np.asarray(indptr)
    ids = None if segment_ids is None else np.asarray(segment_ids)
    found = as_segments(given, ids, num_segments, segments)
    found.check_length("x", length, axis)
    dtype = jnp.int32 if found.indptr[-1] < 2**31 else jnp.int64
    order = jnp.zeros(0, jnp.int32) if found.order is None else jnp.asarray(found.order)
    return jnp.asarray(found.indptr, dtype), order


def _sort(ids: jax.Array, num_segments: Any, length: int) -> Arrays:
    """Sort traced ids; what is no segment takes no part, because traced values cannot raise."""
    if num_segments is None:
        raise TypeError("num_segments is needed where segment_ids are traced: the number of segments is a shape")
    count = check_num_segments(num_segments)
    if ids.ndim != 1 or not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"segment_ids must hold integers along one axis, got {ids.dtype} of shape {ids.shape}")
    if ids.shape[0] != length:
        raise ValueError(f"x has {length} elements; segment_ids has {ids.shape[0]}")
    kept = jnp.where((ids >= 0) & (ids < count), ids, -1).astype(jnp.int32)
    lengths = jnp.zeros(count + 1, jnp.int32).at[kept + 1].add(1)
    return jnp.cumsum(lengths, dtype=jnp.int32), jnp.argsort(kept, stable=True).astype(jnp.int32)


def _call(name: str, results: Any, *arrays: jax.Array, **attributes: Any) -> Any:
    return call_kernel(f"segment_{name}", results, *arrays, vmap_method="sequential", **attributes)


def _check_temperature(temperature: Any, x: jax.Array, axis: int, count: int) -> tuple[jax.Array | None, float]:
    """The temperatures of `count` segments, which come last, or None; and the one for all."""
    if not is_for_rows(temperature):
        return None, check_number("temperature", temperature, 0)
    if jnp.shape(temperature) == (count,):  # one for each segment, on whichever axis these are
        temperature = jnp.reshape(jnp.asarray(temperature), [count if i == axis else 1 for i in range(x.ndim)])
    each = broadcast_numbers("temperature", temperature, (*x.shape[:axis], count, *x.shape[axis + 1 :]))
    return jax.lax.stop_gradient(jnp.moveaxis(each, axis, -1)), 1.0


def _given(*arrays: jax.Array | None) -> list[jax.Array]:
    return [a for a in arrays if a is not None]


def _no_gradients(temperatures: jax.Array | None) -> tuple[Any, None, None]:
    """The gradients of temperatures, offsets and order."""
    return None if temperatures is None else jnp.zeros_like(temperatures), None, None


# A function of elements, of temperatures of the segments or None, of offsets, order and one temperature.
_SegmentFunction = Callable[[jax.Array, Any, jax.Array, jax.Array, float], jax.Array]


def _define_segment_function(name: str) -> _SegmentFunction:
    """Define a function of elements along the last axis, with its gradient from dy and y."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
    def elements(
        x: jax.Array, temperatures: jax.Array | None, indptr: jax.Array, order: jax.Array, temperature: float
    ) -> jax.Array:
        return _call(name, like(x), *_given(x, temperatures, indptr, order), temperature=np.float64(temperature))

    def forward(x: jax.Array, temperatures: Any, indptr: jax.Array, order: jax.Array, temperature: float) -> Any:
        y = elements(x, temperatures, indptr, order, temperature)
        return y, (y, temperatures, indptr, order)

    def backward(temperature: float, saved: Any, dy: jax.Array) -> Any:
        y, temperatures, *_ = saved
        dx = _call(f"{name}_vjp", like(y), *_given(dy, *saved), temperature=np.float64(temperature))
        return dx, *_no_gradients(temperatures)

    elements.defvjp(forward, backward)
    return elements


_softmax = _define_segment_function("softmax")
_log_softmax = _define_segment_function("log_softmax")


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _logsumexp(
    x: jax.Array, temperatures: jax.Array | None, indptr: jax.Array, order: jax.Array, temperature: float
) -> jax.Array:
    count = indptr.shape[0] - 1
    result = jax.ShapeDtypeStruct((*x.shape[:-1], count), x.dtype)
    if count == 0:
        return jnp.zeros(result.shape, result.dtype)
    return _call("logsumexp", result, *_given(x, temperatures, indptr, order), temperature=np.float64(temperature))


def _of_elements(values: jax.Array, indptr: jax.Array, order: jax.Array, length: int, absent: float = 0.0) -> jax.Array:
    """For each element the value of its segment, along the last axis, and `absent` for those of none."""
    places = jnp.arange(length, dtype=indptr.dtype)
    segment = jnp.searchsorted(indptr, places, side="right") - 1
    segment = jnp.where((places >= indptr[0]) & (places < indptr[-1]), segment, values.shape[-1])
    if order.shape[0]:
        segment = jnp.zeros_like(segment).at[order].set(segment)
    padded = jnp.concatenate([values, jnp.full((*values.shape[:-1], 1), absent, values.dtype)], axis=-1)
    return padded[..., segment]


def _logsumexp_forward(
    x: jax.Array, temperatures: jax.Array | None, indptr: jax.Array, order: jax.Array, temperature: float
) -> Any:
    return _logsumexp(x, temperatures, indptr, order, temperature), (x, temperatures, indptr, order)


def _logsumexp_backward(temperature: float, saved: Any, dy: jax.Array) -> Any:
    x, temperatures, indptr, order = saved
    p = _softmax(x, temperatures, indptr, order, temperature)
    dy = _of_elements(dy, indptr, order, x.shape[-1])
    if temperatures is None:
        dx = scale_softmax(p, dy, temperature)
    else:
        dx = scale_softmax_by(p, dy, _of_elements(temperatures, indptr, order, x.shape[-1], 1.0))
    return dx, *_no_gradients(temperatures)


_logsumexp.defvjp(_logsumexp_forward, _logsumexp_backward)


def _compute_losses(x: jax.Array, labels: jax.Array, others: Any, options: Any, gradient: bool) -> list[jax.Array]:
    results = [jax.ShapeDtypeStruct(labels.shape, jnp.promote_types(x.dtype, jnp.float32))]
    results += [like(x)] * gradient
    return _call("cross_entropy", results, *_given(x, labels, *others), **dict(options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _loss(
    x: jax.Array,
    labels: jax.Array,
    temperatures: jax.Array | None,
    indptr: jax.Array,
    order: jax.Array,
    options: Any,
) -> jax.Array:
    return _compute_losses(x, labels, (temperatures, indptr, order), options, gradient=False)[0]


def _loss_forward(
    x: jax.Array,
    labels: jax.Array,
    temperatures: jax.Array | None,
    indptr: jax.Array,
    order: jax.Array,
    options: Any,
) -> Any:
    loss, gradient = _compute_losses(x, labels, (temperatures, indptr, order), options, gradient=True)
    return loss, (gradient, temperatures, indptr, order)


def _loss_backward(options: Any, saved: Any, upstream: jax.Array) -> Any:
    gradient, temperatures, indptr, order = saved
    factor = _of_elements(upstream, indptr, order, gradient.shape[-1])
    return (gradient * factor).astype(gradient.dtype), None, *_no_gradients(temperatures)


_loss.defvjp(_loss_forward, _loss_backward)


def _apply(
    function: Any,
    x: ArrayLike,
    axis: SupportsIndex,
    temperature: ArrayLike,
    where: ArrayLike | None,
    absent: float,
    given: tuple[Any, Any, Any, Segments | None],
) -> jax.Array:
    """Apply a function of the elements along an axis where the mask is True; the others become `absent`."""
    x, axis = check_floating("x", x, axis)
    arrays = _segment_arrays(*given, x.shape[axis], axis)
    each, number = _check_temperature(temperature, x, axis, arrays[0].shape[0] - 1)
    mask = check_mask(where, x)
    result = jnp.moveaxis(function(jnp.moveaxis(leave_out(x, mask), axis, -1), each, *arrays, number), -1, axis)
    return result if mask is None else jnp.where(mask, result, jnp.asarray(absent, x.dtype))


def segment_softmax(
    x: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    axis: SupportsIndex = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`csoftmax.segment_softmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    indptr, segment_ids : jax.Array of integers, optional
        As in `csoftmax.segment_softmax`. They may be traced: then an id that is no segment leaves its element out, and
        offsets are cut to the range and made to rise.
    num_segments : int, optional
        The number of segments, with `segment_ids`; needed where these are traced.
    segments : csoftmax.Segments, optional
        The segments, checked and sorted before.
    axis : int, default 0
        The axis of the elements.
    temperature : float > 0 or array of them, default 1.0
        T. A number cannot be traced; an array of shape (S,) has one for each segment, any other with axes broadcasts to
        the shape of x with S along `axis`, and both can. No gradient flows to it.
    where : jax.Array of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out: their result and their gradient are exactly 0.

    Returns
    -------
    jax.Array
        Probabilities, of the shape and dtype of x; 0 for elements of no segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.segment_softmax(jnp.zeros(3), segment_ids=jnp.array([1, 0, 1]))
    Array([0.5, 1. , 0.5], dtype=float32)
    """
    return _apply(_softmax, x, axis, temperature, where, 0.0, (indptr, segment_ids, num_segments, segments))


def segment_log_softmax(
    x: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    axis: SupportsIndex = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`csoftmax.segment_log_softmax` with a gradient.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, axis, temperature, where
        As in `segment_softmax`; the result is -inf where the mask is False.

    Returns
    -------
    jax.Array
        Logarithms of the probabilities, of the shape and dtype of x; -inf for elements of no segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `segment_softmax`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.segment_log_softmax(jnp.zeros(3), indptr=jnp.array([0, 2, 3])).round(4)
    Array([-0.6931, -0.6931,  0.    ], dtype=float32)
    """
    return _apply(_log_softmax, x, axis, temperature, where, -jnp.inf, (indptr, segment_ids, num_segments, segments))


def segment_logsumexp(
    x: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    axis: SupportsIndex = 0,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`csoftmax.segment_logsumexp` with a gradient.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, axis, temperature, where
        As in `segment_softmax`.

    Returns
    -------
    jax.Array
        Logarithms of the sums, of the dtype of x and its shape with the number of segments along `axis`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `segment_softmax`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.segment_logsumexp(jnp.zeros(3), indptr=jnp.array([0, 2, 3])).round(4)
    Array([0.6931, 0.    ], dtype=float32)
    """
    x, axis = check_floating("x", x, axis)
    arrays = _segment_arrays(indptr, segment_ids, num_segments, segments, x.shape[axis], axis)
    each, number = _check_temperature(temperature, x, axis, arrays[0].shape[0] - 1)
    x = jnp.moveaxis(leave_out(x, check_mask(where, x)), axis, -1)
    return jnp.moveaxis(_logsumexp(x, each, *arrays, number), -1, axis)


def segment_cross_entropy(
    x: ArrayLike,
    target: ArrayLike,
    *,
    indptr: ArrayLike | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    axis: SupportsIndex = 0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> jax.Array:
    """`csoftmax.segment_cross_entropy` of labels, with a gradient that is computed with the loss.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, axis
        As in `segment_softmax`.
    target : jax.Array of int
        Which element of its segment, of the shape of x with the number of segments along `axis`. A label that is no
        element of its segment raises JAX's runtime error.
    sample_weight : jax.Array, broadcastable to target, optional
        A weight of each segment in the dtype of the logits, at least 0 and finite; 0 leaves the segment out. No
        gradient flows to it, and what is not a weight makes its segment NaN.
    ignore_index, label_smoothing, z_loss
        As in `csoftmax.segment_cross_entropy`; they cannot be traced.
    temperature : float > 0 or array of them, default 1.0
        As in `segment_softmax`.
    reduction : {"mean", "sum", "none"}
        The mean divides by the sum of the weights of the segments that are not ignored. Over none of them it is NaN
        with a gradient of 0.

    Returns
    -------
    jax.Array
        The loss, float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        The message names the argument, its value and what is allowed. Soft labels and sets of positives are a
        ValueError: `csoftmax.segment_cross_entropy` computes them outside of jax.jit, jax.grad and jax.vmap.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.segment_cross_entropy(jnp.zeros(4), jnp.array([0, 1]), indptr=jnp.array([0, 2, 4]))
    Array(0.6931472, dtype=float32)
    """
    x, axis = check_floating("x", x, axis)
    arrays = _segment_arrays(indptr, segment_ids, num_segments, segments, x.shape[axis], axis)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    target = jnp.asarray(target)
    shape = (*x.shape[:axis], arrays[0].shape[0] - 1, *x.shape[axis + 1 :])
    if not jnp.issubdtype(target.dtype, jnp.integer):
        if target.shape == x.shape:
            raise ValueError(
                f"target holds {target.dtype}, and csoftmax.jax.segment_cross_entropy has labels only, integers of "
                f"shape {shape}: of soft labels or positives call csoftmax.segment_cross_entropy_with_grad outside of "
                "jax.jit, jax.grad and jax.vmap"
            )
        raise TypeError(f"target must hold integers, got {target.dtype}")
    if target.shape != shape:
        raise ValueError(f"target has shape {target.shape}; there is one for each segment, {shape}")
    each, number = _check_temperature(temperature, x, axis, arrays[0].shape[0] - 1)
    options = (
        ("temperature", np.float64(number)),
        ("label_smoothing", np.float64(check_number("label_smoothing", label_smoothing, 0, 1, open_low=False))),
        ("z_loss", np.float64(check_number("z_loss", z_loss, 0, open_low=False))),
    )
    ignored = is_equal(target, check_integer("ignore_index", ignore_index))
    bounds = jnp.iinfo(jnp.int32)
    is_label = (target >= 0) & (target <= bounds.max)
    absent, kept = ignored, ~ignored
    if sample_weight is not None:
        kept = jnp.where(ignored, 0, check_weights(sample_weight, shape, x.dtype))  # whatever those of ignored ones are
        kept = scale_weights(kept) if reduction == "mean" else kept
        lengths = jnp.diff(arrays[0]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        absent |= is_label & (target < lengths) & (kept == 0)  # any other label raises
    codes = jnp.where(absent, -1, jnp.where(is_label, target, bounds.min).astype(jnp.int32))
    losses = _loss(jnp.moveaxis(x, axis, -1), jnp.moveaxis(codes, axis, -1), each, *arrays, options)
    losses = jnp.moveaxis(losses, -1, axis)
    if sample_weight is not None:
        losses *= kept
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else mean_of(losses, kept)
