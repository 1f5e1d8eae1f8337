"""Softmax, its logarithm, log-sum-exp and entmax for JAX."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arguments.numbers import check_flag
from .calls import call_kernel, check_floating, check_mask, check_number, leave_out, like


def _define_row_function(name: str, parameter: str) -> Callable[[jax.Array, float], jax.Array]:
    """Define a function of rows and of the number `parameter`, with its gradient from dy and y."""

    @functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
    def rows(x: jax.Array, number: float) -> jax.Array:
        return call_kernel(name, like(x), x, **{parameter: np.float64(number)})

    def forward(x: jax.Array, number: float) -> tuple[jax.Array, jax.Array]:
        y = rows(x, number)
        return y, y

    def backward(number: float, y: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
        return (call_kernel(f"{name}_vjp", like(y), dy, y, **{parameter: np.float64(number)}),)

    rows.defvjp(forward, backward)
    return rows


_softmax = _define_row_function("softmax", "temperature")
_log_softmax = _define_row_function("log_softmax", "temperature")
_entmax = _define_row_function("entmax", "alpha")


def _apply_along(rows: Callable[[jax.Array, float], jax.Array], x: jax.Array, axis: int, number: float) -> jax.Array:
    """Apply a function of rows along an axis."""
    return jnp.moveaxis(rows(jnp.moveaxis(x, axis, -1), number), -1, axis)


def _apply_masked(
    rows: Callable[[jax.Array, float], jax.Array],
    x: jax.Array,
    axis: int,
    number: float,
    where: ArrayLike | None,
    absent: float,
) -> jax.Array:
    """Apply a function of rows along an axis to the elements where the mask is True; the others become `absent`.

    The second selection is for rows with NaN or with nothing left, which are NaN without a mask.
    """
    mask = check_mask(where, x)
    result = _apply_along(rows, leave_out(x, mask), axis, number)
    return result if mask is None else jnp.where(mask, result, jnp.asarray(absent, x.dtype))


def softmax(
    x: ArrayLike, axis: SupportsIndex = -1, *, temperature: float = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """`csoftmax.softmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    axis : int, default -1
        The axis that sums to 1.
    temperature : float > 0, default 1.0
        T, which cannot be traced.
    where : jax.Array of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out: their result and their gradient are exactly 0.

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
    return _apply_masked(_softmax, x, axis, check_number("temperature", temperature, 0), where, 0.0)


def log_softmax(
    x: ArrayLike, axis: SupportsIndex = -1, *, temperature: float = 1.0, where: ArrayLike | None = None
) -> jax.Array:
    """`csoftmax.log_softmax` with a gradient.

    Parameters
    ----------
    x, axis, temperature, where
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
    return _apply_masked(_log_softmax, x, axis, check_number("temperature", temperature, 0), where, -jnp.inf)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _logsumexp(x: jax.Array, temperature: float) -> jax.Array:
    result = jax.ShapeDtypeStruct(x.shape[:-1], x.dtype)
    return call_kernel("logsumexp", result, x, temperature=np.float64(temperature))


def _logsumexp_backward(temperature: float, x: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    p = _softmax(x, temperature)
    if temperature == 1:
        return (p * dy[..., None],)
    exponent = math.frexp(temperature)[1]
    dy = dy.astype(jnp.promote_types(x.dtype, jnp.float32))
    if abs(exponent) <= 60:
        return ((p * (dy / temperature)[..., None]).astype(x.dtype),)
    # 1/T can be beyond the range of the dtype: mantissas are multiplied, exponents added, and joined at the end
    p, p_exponent = jnp.frexp(p.astype(dy.dtype))
    dy, dy_exponent = jnp.frexp(dy)
    product = p * (dy / math.ldexp(temperature, -exponent))[..., None]
    exponents = p_exponent + dy_exponent[..., None] - exponent
    half = exponents // 2
    return (jnp.ldexp(jnp.ldexp(product, half), exponents - half).astype(x.dtype),)


_logsumexp.defvjp(lambda x, temperature: (_logsumexp(x, temperature), x), _logsumexp_backward)


def logsumexp(
    x: ArrayLike,
    axis: SupportsIndex = -1,
    *,
    keepdims: bool = False,
    temperature: float = 1.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    """`csoftmax.logsumexp` with a gradient.

    Parameters
    ----------
    x, axis, temperature, where
        As in `softmax`; a row with nothing left gives -inf.
    keepdims : bool, default False
        Keep `axis` with length 1.

    Returns
    -------
    jax.Array
        Logarithms of the sums, of the dtype of x and its shape without `axis`.

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
    x = leave_out(x, check_mask(where, x))
    result = _logsumexp(jnp.moveaxis(x, axis, -1), check_number("temperature", temperature, 0))
    return jnp.expand_dims(result, axis) if check_flag("keepdims", keepdims) else result


def entmax(x: ArrayLike, alpha: float = 1.5, axis: SupportsIndex = -1, *, where: ArrayLike | None = None) -> jax.Array:
    """`csoftmax.entmax` with a gradient.

    Parameters
    ----------
    x : jax.Array
        float16, bfloat16, float32 or float64.
    alpha : float >= 1, default 1.5
        1 is softmax, 2 is sparsemax. It can be neither traced nor differentiated.
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
    alpha = check_number("alpha", alpha, 1, open_low=False)
    return softmax(x, axis, where=where) if alpha == 1 else _apply_masked(_entmax, x, axis, alpha, where, 0.0)


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
