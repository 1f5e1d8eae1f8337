"""What test_jax_shards.py runs: csoftmax.jax within jax.shard_map, against whole rows, on forced host devices.

Arguments: the number of devices. XLA_FLAGS must force that many before JAX is imported.
"""

import functools
import itertools
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


def pull(function, dy, *arrays):
    """The result of a function, and the gradients of all arrays of floats."""
    y, back = jax.vjp(function, *arrays)
    return y, *back(dy)


KINDS = {"float32": ("usual", "far"), "float64": ("far",), "bfloat16": ("usual",)}


def check_rows(mesh, options):
    rng = np.random.default_rng(0)
    names, spec = (("softmax", 1.0), ("log_softmax", 0.7)), P(None, "classes")
    lengths = (4096 * DEVICES, 8192 * DEVICES, 40 * DEVICES, 5000 * DEVICES)
    for n, dtype, (name, t) in itertools.product(lengths, KINDS, names):
        function = functools.partial(getattr(cj, name), temperature=t, axis_name="classes")
        sharded = jax.jit(functools.partial(pull, over_classes(function, mesh, out=spec, **options)))
        for kind in KINDS[dtype]:
            x, dy = make_rows(rng, n, kind, dtype), make_rows(rng, n, "usual", dtype)
            y, dx = sharded(dy, x)
            expected = getattr(csoftmax, name)(np.asarray(x), temperature=t)
            same(y, expected, (name, n, kind, dtype))
            gradient = getattr(csoftmax, f"{name}_vjp")(np.asarray(dy), expected, temperature=t)
            same(dx, gradient, (name, "gradient", n, kind, dtype))


def check_options(mesh, options):
    """logsumexp; temperatures of rows and sinks, which are the same on all devices; all gradients."""
    rng = np.random.default_rng(2)
    t, blocks = jnp.asarray([[0.5], [1.0], [1e-30], [2.0], [3.0]], jnp.float32), 8192 * DEVICES
    sinks = {"none": (), "rows": (jnp.asarray(rng.normal(size=(5, 1)), jnp.float32),), "number": (jnp.float32(0.5),)}
    cases = [("logsumexp", None, "none", blocks), ("logsumexp", t, "rows", blocks), ("softmax", t, "rows", blocks)]
    cases += [("log_softmax", t, "number", 4096 * DEVICES), ("logsumexp", t, "rows", 40 * DEVICES)]
    spec = P(None, "classes")
    for name, temperature, key, n in cases:

        def function(x, *sink, name=name, temperature=temperature, **more):
            more |= {"sink": sink[0]} if sink else {}
            return getattr(cj, name)(x, **more, **({} if temperature is None else {"temperature": temperature}))

        places, is_sum = [P()] * len(sinks[key]), name == "logsumexp"
        sharded = functools.partial(function, axis_name="classes")
        sharded = over_classes(sharded, mesh, *places, out=P() if is_sum else spec, **options)
        found, expected = (jax.jit(functools.partial(pull, f)) for f in (sharded, function))
        for kind in ("usual", "far"):
            x, dy = (make_rows(rng, n, k, "float32") for k in (kind, "usual"))
            dy = jnp.asarray([1.0, 2.0, 4.0, 0.5, 8.0], jnp.float32) if is_sum else dy  # / devices is exact
            results = zip(found(dy, x, *sinks[key]), expected(dy, x, *sinks[key]), strict=True)
            for i, (got, right) in enumerate(results):
                if i == 2 and key == "number":  # a sum over the rows
                    np.testing.assert_allclose(got, right, rtol=1e-6)
                else:
                    same(got, right, (name, key, i, n, kind))


def check_rows_of_other_devices():
    """The gradient of a sink that all rows share, whose rows are on other devices."""
    mesh = Mesh(np.array(jax.devices()).reshape(DEVICES, 1), ("rows", "classes"))
    x = jnp.asarray(np.random.default_rng(4).normal(size=(2 * DEVICES, 64)))
    for name in ("softmax", "log_softmax", "logsumexp"):
        function, out = getattr(cj, name), P("rows") if name == "logsumexp" else P("rows", "classes")

        def over_devices(x, sink, function=function):
            return function(x, axis_name="classes", sink=sink)

        sharded = jax.shard_map(over_devices, mesh=mesh, in_specs=(P("rows", "classes"), P()), out_specs=out)
        found = jax.grad(lambda sink, f=sharded: (f(x, sink) ** 2).sum())(jnp.asarray(1.0))
        right = jax.grad(lambda sink, f=function: (f(x, sink=sink) ** 2).sum())(jnp.asarray(1.0))
        np.testing.assert_allclose(found, right, rtol=1e-13)


def check_losses(mesh, options):
    rng = np.random.default_rng(1)
    blocks, rows = 8192 * DEVICES, {"temperature": np.array([[0.5], [1.0], [2.0], [3.0], [4.0]], np.float32)}
    smooth = {"label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 2.0}
    cases = itertools.product(
        (4096 * DEVICES, blocks, 40 * DEVICES, 5000 * DEVICES), ("float32", "float64"), ({}, smooth)
    )
    cases = [*cases, (blocks, "float32", rows), (40 * DEVICES, "float32", rows)]
    for n, dtype, more in [*cases, (blocks, "float32", {"softcap": 5.0, "temperature": 2.0})]:
        loss = functools.partial(cj.cross_entropy, reduction="none", axis_name="classes", **more)
        forward = over_classes(loss, mesh, P(), out=P(), **options)
        labels = np.array([0, n - 1, -100, n // 2, 1])
        sharded = jax.jit(functools.partial(pull, lambda x, f=forward, labels=labels: f(x, labels)))
        for kind in KINDS[dtype]:
            x, upstream = (
                make_rows(rng, n, kind, dtype),
                np.array([1.0, 2.0, 4.0, 0.5, 8.0], dtype),
            )  # / devices is exact
            found, gradient = sharded(upstream, x)
            expected = csoftmax.cross_entropy_with_grad(np.asarray(x), labels, reduction="none", **more)
            same(found, expected.loss, ("loss", n, kind, dtype, more))
            same(gradient, expected.grad * upstream[:, None], ("gradient", n, kind, dtype, more))
            if n == blocks:
                same(forward(x, labels), expected.loss, ("loss alone", n, kind, dtype, more))


def check_errors(mesh, options):
    n = 4096 * DEVICES
    x = jnp.zeros((2, n))
    call = over_classes(functools.partial(cj.cross_entropy, axis_name="classes"), mesh, P(), out=P(), **options)
    with pytest.raises((jax.errors.JaxRuntimeError, ValueError)):
        jax.block_until_ready(call(x, jnp.asarray([0, n])))
    with pytest.raises(ValueError, match=r"sink has shape \(3, 1\)"):
        cj.logsumexp(x, sink=jnp.ones((3, 1)), axis_name="classes")


def main():
    jax.config.update("jax_enable_x64", True)
    assert len(jax.devices()) == DEVICES
    mesh = Mesh(np.array(jax.devices()), ("classes",))
    unchecked = [{"check_vma": False}] if DEVICES == 2 else []  # it divides upstream gradients by the devices
    check_rows_of_other_devices()
    for options in ({}, *unchecked):
        check_rows(mesh, options)
        check_options(mesh, options)
        check_losses(mesh, options)
        check_errors(mesh, options)
    print("ok")


if __name__ == "__main__":
    main()
