"""What test_jax_shards.py runs: csoftmax.jax within jax.shard_map, against whole rows, on forced host devices.

Arguments: the number of devices. XLA_FLAGS must force that many before JAX is imported.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import csoftmax
import csoftmax.jax as cj

DEVICES = int(sys.argv[1])
shard_map = getattr(jax, "shard_map", None)
if shard_map is None:  # before JAX 0.7
    from jax.experimental.shard_map import shard_map


def same(got, expected, what):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.dtype == expected.dtype, what
    assert got.shape == expected.shape, what
    assert got.tobytes() == expected.tobytes() or np.array_equal(got, expected, equal_nan=True), what


def over_classes(function, mesh, *others, out, **options):
    spec = P(None, "classes")
    return jax.jit(shard_map(function, mesh=mesh, in_specs=(spec, *others), out_specs=out, **options))


def make_rows(rng, n, kind, dtype):
    x = rng.normal(size=(5, n)) * 4
    if kind == "far":
        x[1] *= 1e30
        x[2, 7] = np.inf
        x[3] = -np.inf
        x[4, 0] = np.nan
    return jnp.asarray(x).astype(dtype)


def check_rows(mesh, options):
    rng = np.random.default_rng(0)
    spec = P(None, "classes")
    for n in (4096 * DEVICES, 8192 * DEVICES, 40 * DEVICES, 5000 * DEVICES):
        for kind, dtype in (("usual", "float32"), ("far", "float32"), ("far", "float64"), ("usual", "bfloat16")):
            x, dy = make_rows(rng, n, kind, dtype), make_rows(rng, n, "usual", dtype)
            for name, t in (("softmax", 1.0), ("log_softmax", 0.7)):
                function, plain = functools.partial(getattr(cj, name), temperature=t), getattr(csoftmax, name)
                sharded = functools.partial(function, axis_name="classes")
                y = over_classes(sharded, mesh, out=spec, **options)(x)
                expected = plain(np.asarray(x), temperature=t)
                same(y, expected, (name, n, kind, dtype))

                def pull(x, dy, sharded=sharded):
                    return jax.vjp(sharded, x)[1](dy)[0]

                dx = over_classes(pull, mesh, spec, out=spec, **options)(x, dy)
                gradient = getattr(csoftmax, f"{name}_vjp")(np.asarray(dy), expected, temperature=t)
                same(dx, gradient, (name, "gradient", n, kind, dtype))


def check_losses(mesh, options):
    rng = np.random.default_rng(1)
    for n in (4096 * DEVICES, 8192 * DEVICES, 40 * DEVICES, 5000 * DEVICES):
        for kind, dtype in (("usual", "float32"), ("far", "float32"), ("usual", "float64")):
            x, labels = make_rows(rng, n, kind, dtype), jnp.asarray([0, n - 1, -100, n // 2, 1])
            for more in ({}, {"label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 2.0}):
                loss = functools.partial(cj.cross_entropy, reduction="none", **more)
                sharded = over_classes(functools.partial(loss, axis_name="classes"), mesh, P(), out=P(), **options)
                same(sharded(x, labels), jax.jit(loss)(x, labels), ("loss", n, kind, dtype, more))
                upstream = jnp.asarray([1.0, 2.0, 4.0, 0.5, 8.0], loss(x, labels).dtype)  # / devices is exact

                def total(x, labels, function, upstream=upstream):
                    return (function(x, labels) * upstream).sum()

                found = jax.jit(jax.grad(functools.partial(total, function=sharded)))(x, labels)
                expected = jax.jit(jax.grad(functools.partial(total, function=loss)))(x, labels)
                same(found, expected, ("gradient", n, kind, dtype, more))


def check_errors(mesh, options):
    n = 4096 * DEVICES
    x = jnp.zeros((2, n))
    call = over_classes(functools.partial(cj.cross_entropy, axis_name="classes"), mesh, P(), out=P(), **options)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError)):
        jax.block_until_ready(call(x, jnp.asarray([0, n])))
    for change in ({"softcap": 3.0}, {"temperature": jnp.ones((2, 1))}):
        with pytest.raises(NotImplementedError):
            over_classes(
                functools.partial(cj.cross_entropy, axis_name="classes", **change), mesh, P(), out=P(), **options
            )(x, jnp.asarray([0, 1]))


def main():
    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) == DEVICES
    mesh = Mesh(np.array(jax.devices()), ("classes",))
    unchecked = [{"check_vma": False}] if DEVICES == 2 else []  # it divides upstream gradients by the devices
    for options in ({}, *unchecked):
        check_rows(mesh, options)
        check_losses(mesh, options)
        check_errors(mesh, options)
    print("ok")


if __name__ == "__main__":
    main()
