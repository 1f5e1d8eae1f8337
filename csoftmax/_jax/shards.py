"""Rows whose classes are divided among the devices of a mesh axis, within `jax.shard_map`.

Each device sums up its classes into records (`csoftmax/_cpu/xla_shards.c`), which one all-gather exchanges and each
device merges. A second round of the same follows for rows outside the range of exp's reduction; where there are none,
its kernel returns the records of the first. Shards that do not begin at multiples of 4096, and rows of at most 4096
classes, are gathered whole.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._cpu import binding
from .calls import call_kernel, like, varying_axes

_LOSS = binding.SHARD_KINDS["loss"]
_NAN = np.array([np.nan]).view(np.uint32)


def count_devices(axis_name: Any) -> int:
    """The number of devices along the mesh axis, which is known when the function is traced."""
    return int(jax.lax.psum(1, axis_name))


def _offset(x: jax.Array, axis_name: Any) -> jax.Array:
    return jax.lax.axis_index(axis_name) * x.shape[-1]


def _is_gathered(x: jax.Array, axis_name: Any) -> bool:
    """Whether rows are gathered whole."""
    n, size = x.shape[-1], count_devices(axis_name)
    return n * size <= binding.BLOCK_ELEMENTS or (size > 1 and n % binding.BLOCK_ELEMENTS != 0)


def _gather(x: jax.Array, axis_name: Any) -> jax.Array:
    return jax.lax.all_gather(x, axis_name, axis=x.ndim - 1, tiled=True)


def _own_part(y: jax.Array, x: jax.Array, axis_name: Any) -> jax.Array:
    """The classes of this device, those of x, in an array of all classes."""
    return jax.lax.dynamic_slice_in_dim(y, _offset(x, axis_name), x.shape[-1], axis=-1)


def _finish(
    x: jax.Array, second: jax.Array | None, axis_name: Any, kind: int, results: Any, options: dict[str, Any]
) -> Any:
    """The results of this device; second: y of a gradient, the labels of a loss, or None."""
    batch, n, size = x.shape[:-1], x.shape[-1], count_devices(axis_name)
    words = binding.RECORD_WORDS
    if kind == _LOSS:
        words = binding.LABEL_WORDS if options["label_smoothing"] == 0 else binding.TERMS_WORDS
    pairs = [
        jax.ShapeDtypeStruct((*batch, 2 * count), jnp.uint32) for count in (words, -(-n // binding.BLOCK_ELEMENTS), 1)
    ]
    call: Any = functools.partial(
        call_kernel, vmap_method="sequential", kind=np.int64(kind), classes=np.int64(n * size), **options
    )
    other = jnp.zeros(0, x.dtype) if second is None else second
    offset = jnp.stack([_offset(x, axis_name), 0]).astype(jnp.uint32)
    row_max: Any = jnp.broadcast_to(jnp.asarray(_NAN), (*batch, 2))
    records = block_max = jnp.zeros(0, jnp.uint32)
    merged: Any = None
    rounds = 1 if kind == binding.SHARD_KINDS["log_softmax_vjp"] else 2
    for turn in range(rounds):
        records, block_max = call("shard", pairs[:2], x, other, offset, row_max, records, block_max)
        gathered = jax.lax.all_gather(records, axis_name)
        code = np.int64(binding.DTYPES[x.dtype.name])
        merged, largest = call("merge_shards", [pairs[0], pairs[2]], gathered, other, type=code)
        row_max = row_max if turn else largest
    return call("finish_shard", results, x, other, offset, row_max, merged, block_max)


def _apply(name: str, x: jax.Array, second: jax.Array | None, axis_name: Any, temperature: float) -> jax.Array:
    options = {"temperature": np.float64(temperature)}
    if not _is_gathered(x, axis_name):
        return _finish(x, second, axis_name, binding.SHARD_KINDS[name], [like(x)], options)[0]
    arrays = [_gather(a, axis_name) for a in (x, second) if a is not None]
    return _own_part(call_kernel(name, like(arrays[0]), *arrays, **options), x, axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def apply_to_rows(x: jax.Array, name: str, axis_name: Any, temperature: float) -> jax.Array:
    """One of softmax and log_softmax, the classes last; backward has the collectives of its own call."""
    return _apply(name, x, None, axis_name, temperature)


def _forward_of_rows(x: jax.Array, name: str, axis_name: Any, temperature: float) -> tuple[jax.Array, jax.Array]:
    y = _apply(name, x, None, axis_name, temperature)
    return y, y


def _backward_of_rows(name: str, axis_name: Any, temperature: float, y: jax.Array, dy: jax.Array) -> tuple[jax.Array]:
    return (_apply(f"{name}_vjp", dy, y, axis_name, temperature),)


apply_to_rows.defvjp(_forward_of_rows, _backward_of_rows)


def _compute_losses(x: jax.Array, labels: jax.Array, axis_name: Any, options: Any, gradient: bool) -> list[jax.Array]:
    """Loss of each row and, if `gradient`, the gradient of this device's classes."""
    results = [jax.ShapeDtypeStruct(labels.shape, jnp.promote_types(x.dtype, jnp.float32)), *[like(x)] * gradient]
    if not _is_gathered(x, axis_name):
        numbers = {name: value for name, value in options if name != "softcap"}
        return list(_finish(x, labels, axis_name, _LOSS, results, numbers))
    whole = _gather(x, axis_name)
    results = [results[0], *[like(whole)] * gradient]
    loss, *gradients = call_kernel("cross_entropy", results, whole, labels, **dict(options))
    return [loss, *[_own_part(g, x, axis_name) for g in gradients]]


def _replicate(loss: jax.Array, axis_name: Any) -> jax.Array:
    """A value that is equal on all devices, as one that JAX knows to be so: adding zeros changes no bit."""
    is_first = jax.lax.axis_index(axis_name) == 0
    return jax.lax.psum(jnp.where(is_first, loss, jnp.zeros_like(loss)), axis_name)


def _is_checked(x: jax.Array, axis_name: Any) -> bool:
    """Whether shard_map tells values that differ between devices from others."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    return any(name in varying_axes(x) for name in names)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def losses_of(x: jax.Array, labels: jax.Array, axis_name: Any, options: Any) -> jax.Array:
    """The losses of rows, on all devices; the gradient is computed with them."""
    return _replicate(_compute_losses(x, labels, axis_name, options, gradient=False)[0], axis_name)


def _forward_of_losses(x: jax.Array, labels: jax.Array, axis_name: Any, options: Any) -> tuple[jax.Array, jax.Array]:
    loss, gradient = _compute_losses(x, labels, axis_name, options, gradient=True)
    return _replicate(loss, axis_name), gradient


def _backward_of_losses(
    axis_name: Any, options: Any, gradient: jax.Array, upstream: jax.Array
) -> tuple[jax.Array, None]:
    if not _is_checked(gradient, axis_name):  # then each device has a part of the upstream gradient, as psum leaves it
        upstream = jax.lax.psum(upstream, axis_name)
    return (gradient * upstream[..., None]).astype(gradient.dtype), None


losses_of.defvjp(_forward_of_losses, _backward_of_losses)
