"""What the functions for JAX share: calls of kernels through XLA, and checks of arguments."""

from __future__ import annotations

from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._arguments.numbers import check_integer, is_bool
from .._cpu import binding

MAX_NUMBER = float(np.finfo(np.float64).max)

for _name, _target in binding.XLA_TARGETS.items():
    jax.ffi.register_ffi_target(f"csoftmax_{_name}", _target, platform="cpu")


def call_kernel(
    name: str, results: Any, *arrays: jax.Array, vmap_method: Any = "broadcast_all", **attributes: Any
) -> Any:
    """Call a kernel on rows along the last axis; vmap prepends axes to all arrays, or, "sequential", calls it often."""
    call = jax.ffi.ffi_call(f"csoftmax_{name}", results, vmap_method=vmap_method)
    found = call(*arrays, threads=np.int64(binding.get_threads()), **attributes)
    axes = frozenset().union(*map(varying_axes, arrays))
    return jax.tree.map(lambda result: vary(result, axes), found) if axes else found


def varying_axes(x: jax.Array) -> frozenset[str]:
    """The axes of a mesh along which x differs, as far as jax.shard_map keeps track (check_vma, since JAX 0.7)."""
    typeof = getattr(jax, "typeof", None)
    if typeof is None:
        return frozenset()
    kind = typeof(x)
    return frozenset(kind.vma if hasattr(kind, "vma") else getattr(getattr(kind, "mat", None), "varying", ()))


def vary(result: jax.Array, axes: frozenset[str]) -> jax.Array:
    """An array that JAX takes for one that is equal along these axes of a mesh, such as the result of a kernel."""
    missing = tuple(sorted(axes - varying_axes(result)))
    if not missing:
        return result
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(result, missing, to="varying")
    pvary: Any = vars(jax.lax)["pvary"]  # before JAX 0.9
    return pvary(result, missing)


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def check_floating(name: str, x: ArrayLike, axis: SupportsIndex) -> tuple[jax.Array, int]:
    """The array, and the axis counted from the front."""
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize < 2:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, got {array.dtype}")
    if array.ndim == 0:
        raise ValueError(f"{name} must have at least one axis")
    index = check_integer("axis", axis)
    if not -array.ndim <= index < array.ndim:
        raise ValueError(f"axis must be from {-array.ndim} to {array.ndim - 1}, got {index}")
    return array, index % array.ndim


def check_number(name: str, value: Any, low: float, high: float = MAX_NUMBER, *, open_low: bool = True) -> float:
    """A float: JAX compiles it into the call, so it cannot be traced."""
    try:
        if is_bool(value):
            raise TypeError
        value = float(value)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise TypeError(f"{name} must be a number that is known when the function is traced, got {value!r}") from None
    if not (low < value if open_low else low <= value) or not value <= high:
        raise ValueError(f"{name} must be in {'(' if open_low else '['}{low}, {high}], got {value}")
    return value


def is_for_rows(value: Any) -> bool:
    """Whether a parameter is an array with axes, a number for each row."""
    return isinstance(value, list | tuple) or jnp.ndim(value) > 0


def check_rows(name: str, value: Any, x: jax.Array, axis: int) -> jax.Array:
    """A number for each row, from an array of length 1 along the axis that broadcasts to x; it may be traced."""
    return jnp.squeeze(broadcast_numbers(name, value, (*x.shape[:axis], 1, *x.shape[axis + 1 :])), axis)


def broadcast_numbers(name: str, value: Any, shape: tuple[int, ...]) -> jax.Array:
    """Real numbers broadcast to a shape, in float64 or float32; they may be traced."""
    given = jnp.asarray(value)
    if not jnp.issubdtype(given.dtype, jnp.floating) and not jnp.issubdtype(given.dtype, jnp.integer):
        raise TypeError(f"{name} must hold real numbers, got {given.dtype}")
    try:
        numbers = jnp.broadcast_to(given, shape)
    except ValueError:
        raise ValueError(
            f"{name} has shape {given.shape}; allowed are a number and what broadcasts to {shape}"
        ) from None
    return numbers.astype(jnp.float64 if numbers.dtype == jnp.float64 else jnp.float32)


def check_temperature(temperature: Any, x: jax.Array, axis: int) -> tuple[jax.Array | None, float]:
    """The temperatures of the rows or None, and the one for all."""
    if is_for_rows(temperature):
        return jax.lax.stop_gradient(check_rows("temperature", temperature, x, axis)), 1.0
    return None, check_number("temperature", temperature, 0)


def leave_out(x: jax.Array, where: ArrayLike | None) -> jax.Array:
    """The logits with -inf where the mask is False, which is how the kernels leave elements out."""
    return x if where is None else jnp.where(where, x, jnp.asarray(-jnp.inf, x.dtype))


def check_mask(where: ArrayLike | None, x: jax.Array) -> jax.Array | None:
    if where is None:
        return None
    mask = jnp.asarray(where)
    if mask.dtype != bool:
        raise TypeError(f"where must hold bools, got {mask.dtype}")
    try:
        return jnp.broadcast_to(mask, x.shape)
    except ValueError:
        raise ValueError(f"where has shape {mask.shape}, which does not broadcast to {x.shape}") from None


def is_equal(labels: jax.Array, value: int) -> jax.Array:
    """Whether each label has the value, which may be outside the range of their dtype."""
    bounds = jnp.iinfo(labels.dtype)
    return labels == value if bounds.min <= value <= bounds.max else jnp.zeros(labels.shape, bool)


def mean_of(losses: jax.Array, kept: jax.Array) -> jax.Array:
    """The sum of the losses over that of their weights, or of their mask."""
    total = kept.sum()
    # a mean over nothing is NaN with a gradient of 0, which the derivative of a division by 0 would not be
    return jnp.where(total == 0, jnp.nan, losses.sum() / jnp.where(total == 0, 1, total)).astype(losses.dtype)
