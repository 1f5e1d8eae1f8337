"""softcap in csoftmax.torch and csoftmax.jax, with its gradient."""

import numpy as np
import pytest

import csoftmax

X = np.random.default_rng(0).normal(size=(3, 5)) * 4
TARGET = np.array([0, 4, 2])
EXPECTED = csoftmax.cross_entropy_with_grad(X, TARGET, softcap=3.0)


def test_torch():
    torch = pytest.importorskip("torch")
    import csoftmax.torch as ct

    x, t = torch.tensor(X, requires_grad=True), torch.tensor(TARGET)
    w = torch.tensor(np.random.default_rng(1).normal(size=(7, 5)), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ct.cross_entropy(x, t, softcap=3.0), (x,))
    assert torch.autograd.gradcheck(lambda x, w: ct.linear_cross_entropy(x, w, t, softcap=3.0), (x, w))
    loss = ct.cross_entropy(x, t, softcap=3.0)
    loss.backward()
    assert float(loss.detach()) == EXPECTED.loss
    np.testing.assert_array_equal(x.grad, EXPECTED.grad)
    assert csoftmax.cross_entropy(x, t, softcap=3.0).requires_grad
    with pytest.raises(ValueError, match=r"softcap must be None or a number > 0 and finite, got -1\.0"):
        ct.cross_entropy(x, t, softcap=-1)


def test_jax():
    jax = pytest.importorskip("jax")
    import csoftmax.jax as cj

    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        loss, grad = jax.value_and_grad(lambda x: cj.cross_entropy(x, TARGET, softcap=3.0))(X)
        np.testing.assert_allclose(loss, EXPECTED.loss, rtol=1e-15)
        np.testing.assert_allclose(grad, EXPECTED.grad, rtol=1e-15)
        with pytest.raises(ValueError, match="softcap must be"):
            cj.cross_entropy(X, TARGET, softcap=0)
