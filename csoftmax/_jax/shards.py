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
from .scaling import scale_softmax, scale_softmax_by

_LOSS = binding.SHARD_KINDS["loss"]
_NAN = np.array([np.nan]).view(np.uint32)


def count_devices(axis_name: Any) -> int:
    """The number of devices along the mesh axis, which is known when the function is traced."""
    return int(jax.lax.psum(1, axis_name))


def _offset(x: jax.Array, axis_name: Any) -> jax.Array:
    return jax.lax.axis_index(axis_name) * x.shape[-1]


def _is_gathered(x: jax.Array, axis_name: Any, has_sinks: bool = False) -> bool:
    """Whether rows are gathered whole; sinks are a shard of their own, which begins after all classes."""
    n, size = x.shape[-1], count_devices(axis_name)
    return n * size + has_sinks <= binding.BLOCK_ELEMENTS or (
        (size > 1 or has_sinks) and n % binding.BLOCK_ELEMENTS != 0
    )


def _gather(x: jax.Array, axis_name: Any) -> jax.Array:
    return jax.lax.all_gather(x, axis_name, axis=x.ndim - 1, tiled=True)


def _own_part(y: jax.Array, x: jax.Array, axis_name: Any) -> jax.Array:
    """The classes of this device, those of x, in an array of all classes."""
    return jax.lax.dynamic_slice_in_dim(y, _offset(x, axis_name), x.shape[-1], axis=-1)


def _sum_and_finish(
    arrays: list[tuple[jax.Array, jax.Array | None]],
    temperatures: jax.Array | None,
    axis_name: Any,
    kind: int,
    results: list[Any],
    options: dict[str, Any],
) -> list[Any]:
    """The results of the classes of this device and, where there are sinks, of these, as if they were another shard.

    arrays : x of either, and with it y of a gradient, the labels of a loss, or None. Sinks are the same on all devices,
        which all sum them up and finish them.
    """
    x, other = arrays[0]
    batch, n, size = x.shape[:-1], x.shape[-1], count_devices(axis_name)
    words = binding.RECORD_WORDS
    if kind == _LOSS:
        words = binding.LABEL_WORDS if options["label_smoothing"] == 0 else binding.TERMS_WORDS
    classes = n * size + len(arrays) - 1
    call: Any = functools.partial(
        call_kernel, vmap_method="sequential", kind=np.int64(kind), classes=np.int64(classes), **options
    )
    each = () if temperatures is None else (temperatures,)
    empty = jnp.zeros(0, x.dtype)
    firsts = [_offset(x, axis_name), jnp.asarray(n * size)]
    shards = [
        (rows, empty if second is None else second, jnp.stack([first, 0]).astype(jnp.uint32))
        for (rows, second), first in zip(arrays, firsts, strict=False)
    ]
    row_max: Any = jnp.broadcast_to(jnp.asarray(_NAN), (*batch, 2))
    sums: list[Any] = [(jnp.zeros(0, jnp.uint32), jnp.zeros(0, jnp.uint32)) for _ in shards]
    merged: Any = None
    rounds = 1 if kind == binding.SHARD_KINDS["log_softmax_vjp"] else 2
    for turn in range(rounds):
        sums = [
            call(
                "shard",
                _pairs(batch, words, -(-shard[0].shape[-1] // binding.BLOCK_ELEMENTS)),
                *shard,
                row_max,
                *own,
                *each,
            )
            for shard, own in zip(shards, sums, strict=True)
        ]
        gathered = jax.lax.all_gather(sums[0][0], axis_name)
        gathered = jnp.concatenate([gathered, *[own[0][None] for own in sums[1:]]])
        code = np.int64(binding.DTYPES[x.dtype.name])
        second = empty if other is None else other
        merged, largest = call("merge_shards", _pairs(batch, words, 1), gathered, second, *each, type=code)
        row_max = row_max if turn else largest
    return [
        call("finish_shard", result, *shard, row_max, merged, own[1], *each)
        for result, shard, own in zip(results, shards, sums, strict=False)
    ]


def _pairs(batch: tuple[int, ...], *counts: int) -> list[jax.ShapeDtypeStruct]:
    """Arrays of 64-bit words, as pairs of uint32, so many of each for each row."""
    return [jax.ShapeDtypeStruct((*batch, 2 * count), jnp.uint32) for count in counts]


def _apply(
    name: str, arrays: list[jax.Array], sinks: list[jax.Array], temperatures: Any, axis_name: Any, temperature: float
) -> list[jax.Array]:
    """The results of this device and of its sinks, if there are any; of a log-sum-exp the rows.

    arrays : x, or dy and y
    sinks : the same of the sinks, of length 1 along the last axis, or empty
    """
    options = {"temperature": np.float64(temperature)}
    x, is_sum = arrays[0], name == "logsumexp"
    if not _is_gathered(x, axis_name, bool(sinks)):
        shards = [(a[0], a[1] if len(a) > 1 else None) for a in (arrays, sinks) if a]
        results = [[jax.ShapeDtypeStruct(x.shape[:-1], x.dtype)]] if is_sum else [[like(rows)] for rows, _ in shards]
        kind = binding.SHARD_KINDS[name]
        return [y for (y,) in _sum_and_finish(shards, temperatures, axis_name, kind, results, options)]
    whole = [_gather(a, axis_name) for a in arrays]
    whole = [jnp.concatenate([a, s], -1) for a, s in zip(whole, sinks, strict=True)] if sinks else whole
    each = () if temperatures is None else (temperatures,)
    result = jax.ShapeDtypeStruct(x.shape[:-1], x.dtype) if is_sum else like(whole[0])
    y = call_kernel(name, result, *whole, *each, **options)
    return [y] if is_sum else [_own_part(y, x, axis_name), y[..., -1:]][: 2 if sinks else 1]


def _listed(sinks: jax.Array | None) -> list[jax.Array]:
    return [] if sinks is None else [sinks]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def apply_to_rows(
    x: jax.Array, sinks: Any, temperatures: Any, name: str, axis_name: Any, temperature: float
) -> jax.Array:
    """One of softmax and log_softmax, the classes last; backward has the collectives of its own call.

    sinks : of length 1 along the last axis, the same on all devices; or None
    """
    return _apply(name, [x], _listed(sinks), temperatures, axis_name, temperature)[0]


def _forward_of_rows(
    x: jax.Array, sinks: Any, temperatures: Any, name: str, axis_name: Any, temperature: float
) -> tuple[jax.Array, Any]:
    y, *of_sinks = _apply(name, [x], _listed(sinks), temperatures, axis_name, temperature)
    return y, (y, of_sinks, temperatures)


def _backward_of_rows(
    name: str, axis_name: Any, temperature: float, saved: Any, dy: jax.Array
) -> tuple[Any, Any, None]:
    y, of_sinks, temperatures = saved
    sinks = [jnp.zeros_like(of_sinks[0]), *of_sinks] if of_sinks else []
    dx, *more = _apply(f"{name}_vjp", [dy, y], sinks, temperatures, axis_name, temperature)
    return dx, _gradient_of_sinks(more[0], dx, axis_name) if more else None, None


apply_to_rows.defvjp(_forward_of_rows, _backward_of_rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def logsumexp(x: jax.Array, sinks: Any, temperatures: Any, axis_name: Any, temperature: float) -> jax.Array:
    """Log-sum-exp of the rows, on all devices; backward has the collectives of a softmax."""
    (result,) = _apply("logsumexp", [x], _listed(sinks), temperatures, axis_name, temperature)
    return _replicate(result, axis_name)


def _backward_of_sums(axis_name: Any, temperature: float, saved: Any, dy: jax.Array) -> tuple[Any, Any, None]:
    x, sinks, temperatures = saved
    p, *of_sinks = _apply("softmax", [x], _listed(sinks), temperatures, axis_name, temperature)
    dy = _whole_upstream(p, dy, axis_name)[..., None]

    def scale(p: jax.Array) -> jax.Array:
        if temperatures is None:
            return scale_softmax(p, dy, temperature)
        return scale_softmax_by(p, dy, temperatures[..., None])

    return scale(p), _gradient_of_sinks(scale(of_sinks[0]), p, axis_name) if of_sinks else None, None


logsumexp.defvjp(
    lambda x, sinks, temperatures, axis_name, temperature: (
        logsumexp(x, sinks, temperatures, axis_name, temperature),
        (x, sinks, temperatures),
    ),
    _backward_of_sums,
)


def _compute_losses(
    x: jax.Array, labels: jax.Array, temperatures: Any, axis_name: Any, options: Any, gradient: bool
) -> list[jax.Array]:
    """Loss of each row and, if `gradient`, the gradient of this device's classes."""
    results = [jax.ShapeDtypeStruct(labels.shape, jnp.promote_types(x.dtype, jnp.float32)), *[like(x)] * gradient]
    if not _is_gathered(x, axis_name):
        return list(_sum_and_finish([(x, labels)], temperatures, axis_name, _LOSS, [results], dict(options))[0])
    whole = _gather(x, axis_name)
    results = [results[0], *[like(whole)] * gradient]
    each = () if temperatures is None else (temperatures,)
    loss, *gradients = call_kernel("cross_entropy", results, whole, labels, *each, **dict(options))
    return [loss, *[_own_part(g, x, axis_name) for g in gradients]]


def _replicate(loss: jax.Array, axis_name: Any) -> jax.Array:
    """A value that is equal on all devices, as one that JAX knows to be so: adding zeros changes no bit."""
    is_first = jax.lax.axis_index(axis_name) == 0
    return jax.lax.psum(jnp.where(is_first, loss, jnp.zeros_like(loss)), axis_name)


def _is_checked(x: jax.Array, axis_name: Any) -> bool:
    """Whether shard_map tells values that differ between devices from others."""
    names = axis_name if isinstance(axis_name, tuple) else (axis_name,)
    return any(name in varying_axes(x) for name in names)


def _whole_upstream(own: jax.Array, upstream: jax.Array, axis_name: Any) -> jax.Array:
    """The gradient with respect to a result that is equal on all devices; own: an array that differs between them.

    Where shard_map does not check what differs, each device has a part of it, as psum leaves it.
    """
    return upstream if _is_checked(own, axis_name) else jax.lax.psum(upstream, axis_name)


def _gradient_of_sinks(gradient: jax.Array, own: jax.Array, axis_name: Any) -> jax.Array:
    """That of sinks, which all devices have computed; where shard_map adds up those of all, the first one has it."""
    if _is_checked(own, axis_name):
        return _replicate(gradient, axis_name)
    return jnp.where(jax.lax.axis_index(axis_name) == 0, gradient, jnp.zeros_like(gradient))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def losses_of(x: jax.Array, labels: jax.Array, temperatures: Any, axis_name: Any, options: Any) -> jax.Array:
    """The losses of rows, on all devices; the gradient is computed with them."""
    return _replicate(_compute_losses(x, labels, temperatures, axis_name, options, gradient=False)[0], axis_name)


def _forward_of_losses(
    x: jax.Array, labels: jax.Array, temperatures: Any, axis_name: Any, options: Any
) -> tuple[jax.Array, jax.Array]:
    loss, gradient = _compute_losses(x, labels, temperatures, axis_name, options, gradient=True)
    return _replicate(loss, axis_name), gradient


def _backward_of_losses(
    axis_name: Any, options: Any, gradient: jax.Array, upstream: jax.Array
) -> tuple[jax.Array, None, None]:
    upstream = _whole_upstream(gradient, upstream, axis_name)
    return (gradient * upstream[..., None]).astype(gradient.dtype), None, None


losses_of.defvjp(_forward_of_losses, _backward_of_losses)
