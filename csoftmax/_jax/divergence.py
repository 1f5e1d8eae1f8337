"""Entropy and the Kullback-Leibler divergence of softmax distributions for JAX."""

from __future__ import annotations

import functools
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arguments.numbers import check_flag
from .calls import call_kernel, check_floating, check_mask, check_temperature, leave_out, like


# Functions of rows, of a temperature for each row or None, and of the one for all rows.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _entropy(x: jax.Array, each: jax.Array | None, temperature: float) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape[:-1], x.dtype)
    return call_kernel("entropy", result, x, *_given(each), temperature=np.float64(temperature))


def _entropy_backward(temperature: float, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The entropy is sum p (-log p), whose gradient is that of sum p a with the constants a = -log p."""
    x, each = saved
    t, rows = np.float64(temperature), _given(each)
    p = call_kernel("softmax", like(x), x, *rows, temperature=t)
    minus_log = -call_kernel("log_softmax", like(x), x, *rows, temperature=t)
    return call_kernel("softmax_vjp", like(x), minus_log, p, *rows, temperature=t) * dy[..., None], _no_gradient(each)


_entropy.defvjp(lambda x, each, temperature: (_entropy(x, each, temperature), (x, each)), _entropy_backward)


def _given(each: jax.Array | None) -> tuple[jax.Array, ...]:
    return () if each is None else (each,)


def _no_gradient(each: jax.Array | None) -> jax.Array | None:
    return None if each is None else jnp.zeros_like(each)


def _compute_kl(
    x: jax.Array, y: jax.Array, each: jax.Array | None, temperature: float, gradient: bool
) -> list[jax.Array]:
    """The divergence of each row, float64 for float64, else float32, and, if `gradient`, the gradient of y."""
    results = [jax.ShapeDtypeStruct(y.shape[:-1], jnp.promote_types(y.dtype, jnp.float32))]
    results += [like(y)] * gradient
    return call_kernel("kl_divergence", results, x, y, *_given(each), temperature=np.float64(temperature))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _kl_divergence(x: jax.Array, y: jax.Array, each: jax.Array | None, temperature: float) -> jax.Array:
    return _compute_kl(x, y, each, temperature, gradient=False)[0]


def _kl_forward(x: jax.Array, y: jax.Array, each: jax.Array | None, temperature: float) -> tuple[jax.Array, Any]:
    loss, gradient = _compute_kl(x, y, each, temperature, gradient=True)
    return loss, (gradient, each)


def _kl_backward(temperature: float, saved: Any, upstream: jax.Array) -> tuple[None, jax.Array, jax.Array | None]:
    gradient, each = saved
    return None, (gradient * upstream[..., None]).astype(gradient.dtype), _no_gradient(each)


_kl_divergence.defvjp(_kl_forward, _kl_backward)


def _finish(result: jax.Array, mask: jax.Array | None, axis: int, keepdims: bool) -> jax.Array:
    """0 for rows with nothing left, which are NaN without a mask."""
    if mask is not None:
        result = jnp.where(mask.any(axis), result, jnp.zeros((), result.dtype))
    return jnp.expand_dims(result, axis) if check_flag("keepdims", keepdims) else result


def entropy(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """`csoftmax.entropy` with a gradient.

    Parameters
    ----------
    x : jax.Array
        Logits: float16, bfloat16, float32 or float64.
    axis : int, default -1
        The axis of the classes.
    temperature : float or array_like, default 1.0
        As in `softmax`.
    where : jax.Array of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out; their gradient is exactly 0.
    keepdims : bool, default False
        Keep `axis` with length 1.

    Returns
    -------
    jax.Array
        Entropies in nats, of the dtype of x and its shape without `axis`.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax
    >>> import csoftmax.jax as cj
    >>> jax.grad(lambda x: 1000 * cj.entropy(x))(jax.numpy.array([0.0, 1.0])).astype(int)
    Array([ 196, -196], dtype=int32)
    """
    x, axis = check_floating("x", x, axis)
    mask = check_mask(where, x)
    rows = jnp.moveaxis(leave_out(x, mask), axis, -1)
    return _finish(_entropy(rows, *check_temperature(temperature, x, axis)), mask, axis, keepdims)


def kl_divergence(
    x: ArrayLike,
    y: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    keepdims: bool = False,
) -> jax.Array:
    """`csoftmax.kl_divergence` with a gradient with respect to y, the student; x is held fixed.

    Parameters
    ----------
    x : jax.Array
        Logits of the teacher. No gradient flows to them.
    y : jax.Array of the shape and dtype of x
        Logits of the student.
    axis, temperature, where, keepdims
        As in `entropy`.

    Returns
    -------
    jax.Array
        Divergences in nats, of the dtype of y and its shape without `axis`.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> jax.grad(cj.kl_divergence, 1)(jnp.array([2.0, 1.0]), jnp.array([1.0, 2.0])).round(4)
    Array([-0.4621,  0.4621], dtype=float32)
    """
    y, index = check_floating("y", y, axis)
    x, _ = check_floating("x", x, axis)
    if x.shape != y.shape or x.dtype != y.dtype:
        raise (TypeError if x.dtype != y.dtype else ValueError)(
            f"y has dtype {y.dtype} and shape {y.shape}; x has dtype {x.dtype} and shape {x.shape}: "
            "they must be the same"
        )
    mask = check_mask(where, y)
    rows = (jnp.moveaxis(leave_out(part, mask), index, -1) for part in (jax.lax.stop_gradient(x), y))
    result = _kl_divergence(*rows, *check_temperature(temperature, y, index)).astype(y.dtype)
    return _finish(result, mask, index, keepdims)
