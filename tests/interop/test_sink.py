"""The sink in csoftmax.torch and csoftmax.jax, with its gradient."""

import importlib

import numpy as np
import pytest

import csoftmax

X = np.random.default_rng(0).normal(size=(3, 5, 4)) * 2
SINK = np.random.default_rng(1).normal(size=(3, 1, 4))
MASK = np.random.default_rng(2).random((3, 5, 4)) < 0.7
NAMES = ("softmax", "log_softmax", "logsumexp")


@pytest.mark.parametrize("name", NAMES)
def test_torch(name):
    torch = pytest.importorskip("torch")
    import csoftmax.torch as ct

    x, sink = torch.tensor(X, requires_grad=True), torch.tensor(SINK, requires_grad=True)
    where = torch.tensor(MASK)

    def function(x, sink):
        y = getattr(ct, name)(x, 1, temperature=0.7, where=where, sink=sink)
        return torch.where(where, y, 0) if name == "log_softmax" else y

    assert torch.autograd.gradcheck(function, (x, sink))
    expected = getattr(csoftmax, name)(X, 1, sink=SINK)
    np.testing.assert_array_equal(getattr(ct, name)(x, 1, sink=sink).detach(), expected)
    np.testing.assert_array_equal(getattr(csoftmax, name)(x.detach(), 1, sink=sink).detach(), expected)
    assert getattr(csoftmax, name)(x.detach(), 1, sink=sink).requires_grad
    assert getattr(ct, name)(x, sink=0.0).shape == getattr(ct, name)(x).shape
    with pytest.raises(ValueError, match=r"sink has shape \(7,\)"):
        getattr(ct, name)(x, sink=torch.zeros(7))


@pytest.mark.parametrize("name", NAMES)
def test_jax(name):
    jax = pytest.importorskip("jax")
    from jax.test_util import check_grads

    import csoftmax.jax as cj

    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():

        def function(x, sink):
            y = getattr(cj, name)(x, 1, temperature=0.7, where=MASK, sink=sink)
            return jax.numpy.where(MASK, y, 0).sum() if name == "log_softmax" else y.sum()

        check_grads(function, (X, SINK), 1, ["rev"])
        expected = getattr(csoftmax, name)(X, 1, sink=SINK)
        np.testing.assert_array_equal(getattr(cj, name)(X, 1, sink=SINK), expected)
        with pytest.raises(ValueError, match=r"sink has shape \(7,\)"):
            getattr(cj, name)(X, sink=np.zeros(7))


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_numbers_beyond_the_dtype_are_refused(library):
    """As by csoftmax: they would be infinite in the dtype of the logits."""
    pytest.importorskip(library)
    of_library = importlib.import_module(f"csoftmax.{library}")
    make = importlib.import_module("torch" if library == "torch" else "jax.numpy")
    for dtype, largest, least in (
        ("float16", 65519.0, 65520.0),
        ("bfloat16", 3.39e38, 1e39),
        ("float32", 3.4e38, -1e39),
    ):
        x = make.zeros(3, dtype=getattr(make, dtype))
        for function in (of_library.softmax, of_library.log_softmax, of_library.logsumexp):
            for sink in (largest, -largest, np.inf, -np.inf):
                function(x, sink=sink)
            with pytest.raises(ValueError, match=rf"sink must be at most .* the largest {dtype}, or infinite .* got "):
                function(x, sink=least)


def test_arrays_beyond_the_dtype_are_refused():
    """Tensors on the CPU, and arrays of NumPy beside JAX, whether a gradient is recorded or not."""
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    import csoftmax.jax as cj

    message = "sink must be at most 3.40282e\\+38 .* got 1e\\+39"
    for x in (torch.zeros(2, 3), torch.zeros(2, 3, requires_grad=True)):
        for sink in (torch.tensor(1e39, dtype=torch.float64), np.array(1e39), [[0.0], [1e39]]):
            with pytest.raises(ValueError, match=message):
                csoftmax.softmax(x, sink=sink)
    for wrap in (lambda f: f, jax.jit):
        with pytest.raises(ValueError, match=message):
            wrap(lambda x: cj.softmax(x, sink=np.array(1e39)))(jax.numpy.zeros((2, 3)))
