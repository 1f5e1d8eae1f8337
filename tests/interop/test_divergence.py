"""Entropy and the Kullback-Leibler divergence in csoftmax.torch and csoftmax.jax: values, gradients, refusals."""

import numpy as np
import pytest

import csoftmax

X = np.random.default_rng(0).normal(size=(3, 5, 4)) * 2
Y = np.random.default_rng(1).normal(size=(3, 5, 4)) * 2
MASK = np.random.default_rng(2).random((3, 5, 4)) < 0.7
MASK[0, 0] = False
T = np.random.default_rng(3).uniform(0.3, 3, size=(3, 5))


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def ct(torch):
    import csoftmax.torch

    return csoftmax.torch


@pytest.fixture(scope="module")
def jax():
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        yield jax


@pytest.mark.parametrize("dim", [-1, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_gradients(torch, ct, dim, masked):
    x, y = (torch.tensor(v, requires_grad=True) for v in (X, Y))
    where = torch.tensor(MASK) if masked else None

    def entropy(x):
        return ct.entropy(x, dim, temperature=0.7, where=where)

    def divergence(y):
        return ct.kl_divergence(x.detach(), y, dim, temperature=0.7, where=where)

    assert torch.autograd.gradcheck(entropy, (x,))
    assert torch.autograd.gradcheck(divergence, (y,))
    options = {"temperature": 0.7, "where": MASK if masked else None}
    np.testing.assert_array_equal(entropy(x).detach(), csoftmax.entropy(X, dim, **options))
    np.testing.assert_array_equal(divergence(y).detach(), csoftmax.kl_divergence(X, Y, dim, **options))
    assert csoftmax.entropy(x, dim).requires_grad
    assert csoftmax.kl_divergence(x.detach(), y, dim).requires_grad
    assert (
        csoftmax.kl_divergence(x.detach(), y.detach(), dim, keepdims=True).shape
        == ct.entropy(x, dim, keepdims=True).shape
    )


@pytest.mark.parametrize("masked", [False, True])
def test_torch_temperatures_of_rows(torch, ct, masked):
    x, y = (torch.tensor(v, requires_grad=True) for v in (X, Y))
    given = {"temperature": torch.tensor(T[..., None]), "where": torch.tensor(MASK) if masked else None}
    options = {"temperature": T[..., None], "where": MASK if masked else None}
    assert torch.autograd.gradcheck(lambda x: ct.entropy(x, **given), (x,))
    assert torch.autograd.gradcheck(lambda y: ct.kl_divergence(x.detach(), y, **given), (y,))
    np.testing.assert_array_equal(ct.entropy(x, **given).detach(), csoftmax.entropy(X, **options))
    np.testing.assert_array_equal(
        ct.kl_divergence(x.detach(), y, **given).detach(), csoftmax.kl_divergence(X, Y, **options)
    )
    with pytest.raises(ValueError, match="temperature requires grad"):
        ct.entropy(x, temperature=given["temperature"].requires_grad_())


def test_torch_refuses_a_teacher_that_requires_grad(torch, ct):
    x = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"x requires grad.*pass x\.detach\(\)"):
        ct.kl_divergence(x, x.detach())
    with pytest.raises(ValueError, match=r"x requires grad.*x\.detach\(\)"):
        csoftmax.kl_divergence(x, x.detach())
    with torch.no_grad():
        assert csoftmax.kl_divergence(x, x) == 0


@pytest.mark.parametrize("name", ["entropy", "kl_divergence"])
def test_torch_operators_are_sound(torch, ct, name):
    y = torch.tensor(Y, dtype=torch.float32, requires_grad=True)
    x = torch.tensor(X, dtype=torch.float32)
    for options in ((-1, 0.7, None, None), (-1, 1.0, torch.tensor(T[..., None]), None)):
        call = (y, *options) if name == "entropy" else (x, y, *options, True)
        torch.library.opcheck(getattr(torch.ops.csoftmax, name).default, call)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("masked", [False, True])
def test_jax_gradients(jax, axis, masked):
    from jax.test_util import check_grads

    import csoftmax.jax as cj

    options = {"temperature": 0.7, "where": MASK if masked else None}
    np.testing.assert_array_equal(cj.entropy(X, axis, **options), csoftmax.entropy(X, axis, **options))
    np.testing.assert_array_equal(
        cj.kl_divergence(X, Y, axis, **options), csoftmax.kl_divergence(X, Y, axis, **options)
    )
    check_grads(lambda x: cj.entropy(x, axis, **options).sum(), (X,), 1, ["rev"])
    check_grads(lambda y: cj.kl_divergence(X, y, axis, **options).sum(), (Y,), 1, ["rev"])
    assert np.all(jax.grad(lambda x: cj.kl_divergence(x, Y, axis, **options).sum())(X) == 0)
    assert np.all(jax.jit(lambda x: csoftmax.entropy(x, axis))(X) == csoftmax.entropy(X, axis))


@pytest.mark.parametrize("masked", [False, True])
def test_jax_temperatures_of_rows(jax, masked):
    from jax.test_util import check_grads

    import csoftmax.jax as cj

    t, where = T[:, None, :4], MASK if masked else None
    options = {"temperature": t, "where": where}
    traced = jax.jit(lambda t: cj.entropy(X, 1, temperature=t, where=where))
    np.testing.assert_array_equal(traced(t), csoftmax.entropy(X, 1, **options))
    np.testing.assert_array_equal(cj.kl_divergence(X, Y, 1, **options), csoftmax.kl_divergence(X, Y, 1, **options))
    check_grads(lambda x: cj.entropy(x, 1, **options).sum(), (X,), 1, ["rev"])
    check_grads(lambda y: cj.kl_divergence(X, y, 1, **options).sum(), (Y,), 1, ["rev"])
    gradient = jax.grad(lambda t: cj.kl_divergence(X, Y, 1, temperature=t).sum())(t)
    assert np.all(gradient == 0)
    low = np.float32(t)
    loss = cj.kl_divergence(np.float32(X), np.float32(Y), 1, temperature=low)
    np.testing.assert_array_equal(loss, csoftmax.kl_divergence(np.float32(X), np.float32(Y), 1, temperature=low))


def test_jax_names_what_differs(jax):
    import csoftmax.jax as cj

    with pytest.raises(ValueError, match=r"y has dtype float64 and shape \(2,\); x has .*\(3,\)"):
        cj.kl_divergence(np.zeros(3), np.zeros(2))
    with pytest.raises(TypeError, match="y has dtype float32"):
        cj.kl_divergence(np.zeros(3), np.zeros(3, np.float32))
