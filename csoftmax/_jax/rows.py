"""Softmax, its logarithm, log-sum-exp and entmax for JAX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arguments.numbers import check_flag
from .._arguments.sinks import refuse_overflow
from . import shards
from .calls import (
    call_kernel,
    check_floating,
    check_mask,
    check_number,
    check_rows,
    check_temperature,
    is_for_rows,
    leave_out,
    like,
    vary,
    varying_axes,
)
from .scaling import scale_softmax, scale_softmax_by

# A function of rows, of a number for each row or None, and of the number for all of them.
_RowFunction = Callable[[jax.Array, Any, float], jax.Array]


def _define_row_function(name: str, parameter: str, *, is_differentiable: bool = False) -> _RowFunction:
    """Define a function of rows and of `parameter`, with its gradient from dy and y.

    is_differentiable : the gradient's kernel has a second result, that of the numbers of the rows.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def rows(x: jax.Array, numbers: jax.Array | None, number: float) -> jax.Array:
        each = () if numbers is None else (numbers,)
        return call_kernel(name, like(x), x, *each, **{parameter: np.float64(number)})

    def forward(x: jax.Array, numbers: jax.Array | None, number: float) -> tuple[jax.Array, Any]:
        y = rows(x, numbers, number)
        return y, (y, numbers)

    def backward(number: float, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        y, numbers = saved
        each = () if numbers is None else (numbers,)
        results = [like(y), like(numbers)] if is_differentiable and each else [like(y)]
        dx, *rest = call_kernel(f"{name}_vjp", results, dy, y, *each, **{parameter: np.float64(number)})
        return dx, rest[0] if rest else None if numbers is None else jnp.zeros_like(numbers)

    rows.defvjp(forward, backward)
    return rows


_softmax = _define_row_function("softmax", "temperature")
_log_softmax = _define_row_function("log_softmax", "temperature")
_entmax = _define_row_function("entmax", "alpha", is_differentiable=True)


def _apply_masked(
    rows: _RowFunction,
    x: jax.Array,
    axis: int,
    numbers: tuple[jax.Array | None, float],
    where: ArrayLike | None,
    absent: float,
) -> jax.Array:
    """Apply a function of rows along an axis to the elements where the mask is True; the others become `absent`.

    The second selection is for rows with NaN or with nothing left, which are NaN without a mask.
    """
    mask = check_mask(where, x)
    result = jnp.moveaxis(rows(jnp.moveaxis(leave_out(x, mask), axis, -1), *numbers), -1, axis)
    return result if mask is None else jnp.where(mask, result, jnp.asarray(absent, x.dtype))


def _spread_sink(x: jax.Array, axis: int, sink: ArrayLike) -> jax.Array:
    """The sink of each row, of length 1 along the axis, in the dtype of x."""
    shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
    if not isinstance(sink, jax.Array):  # of which a tracer is one; an array may still be computed
        given = np.asarray(sink)
        if given.dtype.kind in "iuf":
            with np.errstate(over="ignore", under="ignore"):
                sink = given.astype(x.dtype)
            refuse_overflow(given, sink)
    rows = jnp.asarray(sink)
    try:
        return jnp.broadcast_to(rows.astype(x.dtype), shape)
    except ValueError:
        allowed = f"a number and what broadcasts to {shape}, the shape of the rows with length 1 along the axis"
        raise ValueError(f"sink has shape {rows.shape}; allowed are {allowed}") from None


def _append_sink(
    x: jax.Array, axis: int, where: ArrayLike | None, sink: ArrayLike | None
) -> tuple[jax.Array, jax.Array | None]:
    """The logits, and their mask, with the sink as the last element along the axis; JAX finds its gradient."""
    mask = check_mask(where, x)
    if sink is None:
        return x, mask
    column = _spread_sink(x, axis, sink)
    if mask is not None:
        mask = jnp.concatenate([mask, jnp.ones(column.shape, bool)], axis)
    return jnp.concatenate([x, column], axis), mask


def _sinks_of_shards(x: jax.Array, axis: int, sink: ArrayLike | None, axis_name: Any) -> jax.Array | None:
    """The sink of each row, equal on devices that share the rows, and differing like these along other mesh axes."""
    if sink is None:
        return None
    shared = {axis_name} if isinstance(axis_name, str) else set(axis_name)
    return vary(jnp.moveaxis(_spread_sink(x, axis, sink), axis, -1), varying_axes(x) - shared)


def _apply_over_shards(
    name: str, x: jax.Array, axis: int, axis_name: Any, temperature: Any, where: Any, sink: Any, absent: float
) -> jax.Array:
    """One of softmax and log_softmax of rows whose classes are divided among the devices of a mesh axis."""
    sinks = _sinks_of_shards(x, axis, sink, axis_name)

    def function(rows: jax.Array, numbers: Any, number: float) -> jax.Array:
        return shards.apply_to_rows(rows, sinks, numbers, name, axis_name, number)

    return _apply_masked(function, x, axis, check_temperature(temperature, x, axis), where, absent)


def _leave_sink_out(y: jax.Array, axis: int, sink: ArrayLike | None) -> jax.Array:
    return y if sink is None else jax.lax.slice_in_dim(y, 0, y.shape[axis] - 1, axis=axis)


def softmax(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """`csoftmax.softmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    axis : int, default -1
        The axis that sums to 1.
    temperature : float > 0 or array of them, default 1.0
        T. A number cannot be traced; an array, of length 1 along `axis`, broadcasts to the rows and can. No gradient
        flows to it.
    where : jax.Array of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out: their result and their gradient are exactly 0.
    sink : float or jax.Array, optional
        A logit that takes part in the denominator and has no output: a number, or an array of length 1 along `axis`
        that broadcasts to the rows. It gets a gradient.
    axis_name : str or tuple of str, optional
        Within `jax.shard_map`: the axis of the mesh that shards `axis`; temperatures and sinks are the same on all of
        its devices. Shards that begin at multiples of 4096 exchange 96 bytes a row and device, all others the rows.

    Returns
    -------
    jax.Array
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax
    >>> import csoftmax.jax as cj
    >>> jax.grad(lambda x: cj.softmax(x)[1])(jax.numpy.array([0.0, 1.0]))
    Array([-0.19661194,  0.19661193], dtype=float32)
    """
    x, axis = check_floating("x", x, axis)
    if axis_name is not None:
        return _apply_over_shards("softmax", x, axis, axis_name, temperature, where, sink, 0.0)
    rows, mask = _append_sink(x, axis, where, sink)
    y = _apply_masked(_softmax, rows, axis, check_temperature(temperature, rows, axis), mask, 0.0)
    return _leave_sink_out(y, axis, sink)


def log_softmax(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """`csoftmax.log_softmax` with a gradient.

    Parameters
    ----------
    x, axis, temperature, where, sink, axis_name
        As in `softmax`; the result is -inf where the mask is False.

    Returns
    -------
    jax.Array
        Logarithms of the probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.log_softmax(jnp.array([0.0, 0.0]))
    Array([-0.6931472, -0.6931472], dtype=float32)
    """
    x, axis = check_floating("x", x, axis)
    if axis_name is not None:
        return _apply_over_shards("log_softmax", x, axis, axis_name, temperature, where, sink, -jnp.inf)
    rows, mask = _append_sink(x, axis, where, sink)
    y = _apply_masked(_log_softmax, rows, axis, check_temperature(temperature, rows, axis), mask, -jnp.inf)
    return _leave_sink_out(y, axis, sink)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _logsumexp(x: jax.Array, temperatures: jax.Array | None, temperature: float) -> jax.Array:
    result, each = jax.ShapeDtypeStruct(x.shape[:-1], x.dtype), () if temperatures is None else (temperatures,)
    return call_kernel("logsumexp", result, x, *each, temperature=np.float64(temperature))


def _logsumexp_backward(temperature: float, saved: Any, dy: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    x, temperatures = saved
    p, dy = _softmax(x, temperatures, temperature), dy[..., None]
    if temperatures is None:
        return scale_softmax(p, dy, temperature), None
    return scale_softmax_by(p, dy, temperatures[..., None]), jnp.zeros_like(temperatures)


_logsumexp.defvjp(lambda x, each, number: (_logsumexp(x, each, number), (x, each)), _logsumexp_backward)


def logsumexp(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    keepdims: bool = False,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    sink: ArrayLike | None = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> jax.Array:
    """`csoftmax.logsumexp` with a gradient.

    Parameters
    ----------
    x, axis, temperature, where, sink, axis_name
        As in `softmax`; a row with nothing left gives -inf.
    keepdims : bool, default False
        Keep `axis` with length 1.

    Returns
    -------
    jax.Array
        Logarithms of the sums, of the dtype of x and its shape without `axis`; with `axis_name` on all of its devices.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.logsumexp(jnp.array([[0.0, 0.0], [1.0, 1.0]])).round(4)
    Array([0.6931, 1.6931], dtype=float32)
    """
    x, axis = check_floating("x", x, axis)
    numbers = check_temperature(temperature, x, axis)
    if axis_name is None:
        rows, mask = _append_sink(x, axis, where, sink)
        result = _logsumexp(jnp.moveaxis(leave_out(rows, mask), axis, -1), *numbers)
    else:
        sinks = _sinks_of_shards(x, axis, sink, axis_name)
        rows = jnp.moveaxis(leave_out(x, check_mask(where, x)), axis, -1)
        result = shards.logsumexp(rows, sinks, numbers[0], axis_name, numbers[1])
    return jnp.expand_dims(result, axis) if check_flag("keepdims", keepdims) else result


def entmax(
    x: ArrayLike, alpha: ArrayLike = 1.5, axis: SupportsIndex = -1, *, where: ArrayLike | None = None
) -> jax.Array:
    """`csoftmax.entmax` with gradients with respect to x and to an array of alphas.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    alpha : float >= 1, or jax.Array of them, default 1.5
        1 is softmax, 2 is sparsemax. A float is compiled into the call. An array without axes, or of length 1 along
        `axis` that broadcasts to the rows, can be traced and differentiated.
    axis : int, default -1
        The axis that sums to 1.
    where : jax.Array of bool, broadcastable to x, optional
        Mask, as in `softmax`.

    Returns
    -------
    jax.Array
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.entmax(jnp.array([3.0, 0.0]))
    Array([1., 0.], dtype=float32)
    """
    x, axis = check_floating("x", x, axis)
    if is_for_rows(alpha) or isinstance(alpha, jax.core.Tracer):
        rows = check_rows("alpha", alpha, x, axis)
        return _apply_masked(_entmax, x, axis, (rows, 2.0), where, 0.0)
    alpha = check_number("alpha", alpha, 1, open_low=False)
    return softmax(x, axis, where=where) if alpha == 1 else _apply_masked(_entmax, x, axis, (None, alpha), where, 0.0)


def sparsemax(x: ArrayLike, axis: SupportsIndex = -1, *, where: ArrayLike | None = None) -> jax.Array:
    """`csoftmax.sparsemax` with a gradient: `entmax` with alpha = 2.

    Parameters
    ----------
    x, axis, where
        As in `entmax`.

    Returns
    -------
    jax.Array
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import csoftmax.jax as cj
    >>> cj.sparsemax(jnp.array([0.5, 0.0]))
    Array([0.75, 0.25], dtype=float32)
    """
    return entmax(x, 2.0, axis, where=where)
