"""Cross-entropy for JAX; its gradient is computed together with the loss."""

from __future__ import annotations

import functools
from typing import Any, Literal, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arguments.labels import check_softcap
from .._arguments.numbers import check_integer
from . import shards
from .calls import call_kernel, check_floating, check_number, check_rows, is_equal, is_for_rows, like, mean_of


def _compute_losses(
    logits: jax.Array, labels: jax.Array, temperatures: jax.Array | None, options: Any, gradient: bool
) -> list[jax.Array]:
    """Loss of each row and, if `gradient`, its gradient."""
    results = [jax.ShapeDtypeStruct(labels.shape, jnp.promote_types(logits.dtype, jnp.float32))]
    results += [like(logits)] * gradient
    each = () if temperatures is None else (temperatures,)
    return call_kernel("cross_entropy", results, logits, labels, *each, **dict(options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _loss(logits: jax.Array, labels: jax.Array, temperatures: jax.Array | None, options: Any) -> jax.Array:
    return _compute_losses(logits, labels, temperatures, options, gradient=False)[0]


def _loss_forward(
    logits: jax.Array, labels: jax.Array, temperatures: jax.Array | None, options: Any
) -> tuple[jax.Array, Any]:
    loss, gradient = _compute_losses(logits, labels, temperatures, options, gradient=True)
    return loss, (gradient, temperatures)


def _loss_backward(options: Any, saved: Any, upstream: jax.Array) -> tuple[jax.Array, None, jax.Array | None]:
    gradient, temperatures = saved
    of_temperatures = None if temperatures is None else jnp.zeros_like(temperatures)
    return (gradient * upstream[..., None]).astype(gradient.dtype), None, of_temperatures


_loss.defvjp(_loss_forward, _loss_backward)


def check_weights(sample_weight: ArrayLike, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Weights of rows in the dtype of losses; numbers below 0 and infinity, which may be traced, become NaN."""
    given = jnp.asarray(sample_weight)
    if not jnp.issubdtype(given.dtype, jnp.floating) and not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"sample_weight must hold real numbers, got {given.dtype}")
    try:
        weights = jnp.broadcast_to(given, shape).astype(jnp.promote_types(dtype, jnp.float32))
    except ValueError:
        raise ValueError(f"sample_weight has shape {given.shape}, which does not broadcast to {shape}") from None
    return jax.lax.stop_gradient(jnp.where((weights >= 0) & (weights < jnp.inf), weights, jnp.nan))


def scale_weights(weights: jax.Array) -> jax.Array:
    """Weights of a mean times a power of two, which cancels there, where their sum or their products leave the range.

    XLA on the CPU takes subnormal numbers for 0, so that they are read by their bits, multiples of the smallest one.
    """
    limits = jnp.finfo(weights.dtype)
    half = 2.0 ** (limits.maxexp // 2)
    bits = jnp.maximum(jax.lax.bitcast_convert_type(weights, f"int{limits.bits}"), 0)  # -0.0 has negative ones
    multiples = bits.astype(weights.dtype) * (half * float(limits.smallest_subnormal))
    enlarged = jnp.where(bits < 1 << limits.nmant, multiples, weights * half)
    is_large, is_small = (weights > half).any(), ~(weights >= 1 / half).any()
    return jnp.where(is_large, weights / half, jnp.where(is_small, enlarged, weights))


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    temperature: ArrayLike = 1.0,
    softcap: float | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """`csoftmax.cross_entropy` of labels, with a gradient that is computed with the loss in one pass.

    Parameters
    ----------
    logits : jax.Array of shape (..., K)
        float16, bfloat16, float32 or float64.
    target : jax.Array of int
        Class indices, of the shape of logits without `axis`. A label that is not a class raises JAX's runtime error.
        Soft labels are not taken.
    axis : int, default -1
        The axis of the classes.
    sample_weight : jax.Array, broadcastable to target, optional
        Weights of rows, at least 0. No gradient flows to them. A row of weight 0 contributes 0, whatever it holds; a
        negative or infinite weight makes the loss NaN.
    label_smoothing, ignore_index, z_loss, softcap
        As in `csoftmax.cross_entropy`; they cannot be traced.
    temperature : float > 0 or array of them, default 1.0
        As in `softmax`.
    reduction : {"mean", "sum", "none"}
        The mean is over the rows that are not ignored, weighted.
    axis_name : str or tuple of str, optional
        Within `jax.shard_map`: the axis of the mesh that shards the classes. Labels are classes of the whole rows; the
        mean is over the rows of the device. Each device of the axis gets the loss, and the gradient of its classes, of
        the whole rows. Gradients that underflow before a factor of their row makes them larger raise JAX's runtime
        error: with 1 / T far above 1, or, where there are z_loss or label_smoothing, beyond 43 times the softcap.

    Returns
    -------
    jax.Array
        The loss, float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> jax.grad(cj.cross_entropy)(jnp.array([[2.0, 0.0]]), jnp.array([0])).round(4)
    Array([[-0.1192,  0.1192]], dtype=float32)
    """
    z, position = check_floating("logits", logits, axis)
    t = jnp.asarray(target)
    expected = z.shape[:position] + z.shape[position + 1 :]
    if t.shape != expected or not jnp.issubdtype(t.dtype, jnp.integer):
        what = f"target must be integers of shape {expected}, got {t.dtype} of shape {t.shape}"
        if t.shape != z.shape:
            raise TypeError(what)
        raise ValueError(
            f"csoftmax.jax.cross_entropy takes no soft labels: {what}; of one-hot rows pass target.argmax({axis}), and "
            "call csoftmax.cross_entropy with others outside of jax.jit, jax.grad and jax.vmap"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    ignore_index = check_integer("ignore_index", ignore_index)
    options = (
        ("label_smoothing", np.float64(check_number("label_smoothing", label_smoothing, 0, 1, open_low=False))),
        ("softcap", np.float64(0 if softcap is None else check_softcap(check_number("softcap", softcap, 0)))),
        ("temperature", np.float64(1 if is_for_rows(temperature) else check_number("temperature", temperature, 0))),
        ("z_loss", np.float64(check_number("z_loss", z_loss, 0, open_low=False))),
    )
    ignored = is_equal(t, ignore_index)
    classes = z.shape[position] * (1 if axis_name is None else shards.count_devices(axis_name))
    bad = t < 0
    if classes <= jnp.iinfo(t.dtype).max:
        bad |= t >= classes
    # Labels outside the classes are replaced by one that the kernel refuses: the cast could turn them into a class.
    weights = None if sample_weight is None else check_weights(sample_weight, expected, z.dtype)
    if weights is not None:  # whatever the weights of ignored rows are
        weights = jnp.where(ignored, 0, weights)
        weights = scale_weights(weights) if reduction == "mean" else weights
    absent = ignored if weights is None else ignored | (~bad & (weights == 0))
    indices = jnp.where(absent, -1, jnp.where(bad, classes, t.astype(jnp.int32)))
    each = None
    if is_for_rows(temperature):
        each = jax.lax.stop_gradient(check_rows("temperature", temperature, z, position))
    rows = jnp.moveaxis(z, position, -1)
    if axis_name is None:
        losses = _loss(rows, indices, each, options)
    else:
        losses = shards.losses_of(rows, indices, each, axis_name, options)
    kept = ~ignored
    if weights is not None:
        kept = weights
        losses *= weights
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    return mean_of(losses, kept)
