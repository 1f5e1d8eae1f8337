"""Products of softmax and an upstream gradient, divided by T, which can be beyond the range of the dtype on the way."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp


def scale_softmax_by(p: jax.Array, dy: jax.Array, temperatures: jax.Array) -> jax.Array:
    """Softmax p times dy / T for an array of temperatures, which broadcasts to p."""
    mantissa, exponent = jnp.frexp(temperatures)
    wide = dy.astype(jnp.promote_types(p.dtype, jnp.float32))
    near = (p * (wide / temperatures.astype(wide.dtype))).astype(p.dtype)
    far = _scale_far(p, wide, mantissa.astype(wide.dtype), exponent)
    return jnp.where(jnp.abs(exponent) <= 60, near, far)


def scale_softmax(p: jax.Array, dy: jax.Array, temperature: float) -> jax.Array:
    """Softmax p times dy / T, which can be beyond the range of the dtype where the product is not."""
    if temperature == 1:
        return p * dy
    dtype, (mantissa, exponent) = p.dtype, math.frexp(temperature)
    dy = dy.astype(jnp.promote_types(dtype, jnp.float32))
    if abs(exponent) <= 60:
        return (p * (dy / temperature)).astype(dtype)
    return _scale_far(p, dy, mantissa, exponent)


def _scale_far(p: jax.Array, dy: jax.Array, mantissa: Any, exponent: Any) -> jax.Array:
    """The product p dy / T for T = mantissa 2**exponent: mantissas are multiplied, and exponents added."""
    dtype = p.dtype
    p, p_exponent = jnp.frexp(p.astype(dy.dtype))
    dy, dy_exponent = jnp.frexp(dy)
    product = p * (dy / mantissa)
    exponents = p_exponent + dy_exponent - exponent
    half = exponents // 2
    return jnp.ldexp(jnp.ldexp(product, half), exponents - half).astype(dtype)
