"""Alphas of rows, the gradient of alpha, and the weights of entmax's losses."""

import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits, looped
from oracles.entmax import BITS, exact
from oracles.entmax_alpha import exact_alpha_gradient

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.entmax import exact_entmax_loss_with_grad
from csoftmax._spec.formats import ulp_error

ml_dtypes = pytest.importorskip("ml_dtypes")
RNG = np.random.default_rng(0)
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
ALPHAS = np.array([1.0, 1.5, 2.0, 1.25, 3.0, 1.0, 30.0, 1.0001, 1.5, 2.0])


def make(n, dtype, sigma=2.0):
    return (RNG.standard_normal((len(ALPHAS), n)) * sigma).astype(dtype)


def soft_labels(n, dtype):
    real = np.float64 if np.dtype(dtype).itemsize == 8 else np.float32
    return csoftmax.sparsemax(make(n, real))


# Rows


@looped("dtype", DTYPES)
def test_rows_have_the_bits_that_they_have_alone(dtype):
    for n in (1, 3, 17, 300, 5000):
        x, dy, mask = make(n, dtype), make(n, dtype), RNG.random((len(ALPHAS), n)) < 0.6
        x[8, 0], mask[3] = np.nan, False
        for where in (None, mask):
            masks = [None] * len(ALPHAS) if where is None else where
            y = np.stack([csoftmax.entmax(x[i], float(a), where=masks[i]) for i, a in enumerate(ALPHAS)])
            dx = np.stack([csoftmax.entmax_vjp(dy[i], y[i], float(a), where=masks[i]) for i, a in enumerate(ALPHAS)])
            for threads in (1, 3):
                options = {"where": where, "num_threads": threads}
                assert_same_bits(csoftmax.entmax(x, ALPHAS[:, None], **options), y)
                assert_same_bits(csoftmax.entmax_vjp(dy, y, ALPHAS[:, None], **options), dx)
            assert_same_bits(csoftmax.entmax(np.asfortranarray(x), ALPHAS[:, None], where=where), y)
            turned = None if where is None else where.T
            assert_same_bits(csoftmax.entmax(x.T.copy(), ALPHAS[None], 0, where=turned).T, y)
            assert_same_bits(csoftmax.entmax_vjp(dy.T.copy(), y.T, ALPHAS[None], 0, where=turned).T, dx)
        out = x.copy()
        csoftmax.entmax(out, ALPHAS[:, None], out=out)
        assert_same_bits(out, csoftmax.entmax(x, ALPHAS[:, None]))


@looped("dtype", DTYPES)
def test_losses_of_rows_are_those_of_the_rows_alone(dtype):
    for n in (1, 3, 40, 5000):
        x, w, s = make(n, dtype), RNG.random(n), RNG.random(len(ALPHAS))
        hard = RNG.integers(0, n, len(ALPHAS))
        hard[4], s[5], x[7, 0] = -100, 0, np.nan
        for target in (hard, soft_labels(n, dtype)):
            for weights in ({}, {"weight": w}, {"sample_weight": s}, {"weight": w, "sample_weight": s}):
                got = csoftmax.entmax_loss_with_grad(x, target, ALPHAS[:, None], reduction="none", **weights)
                loss = csoftmax.entmax_loss(x, target, ALPHAS[:, None], reduction="none", **weights)
                assert_same_bits(loss, got.loss)
                for i, a in enumerate(ALPHAS):
                    row = slice(i, i + 1)
                    cut = weights | ({"sample_weight": s[row]} if "sample_weight" in weights else {})
                    one = csoftmax.entmax_loss_with_grad(x[row], target[row], float(a), reduction="none", **cut)
                    assert_same_bits(got.loss[row], one.loss)
                    assert_same_bits(got.grad[row], one.grad)


def test_shapes_that_broadcast():
    x, alphas = RNG.standard_normal((2, 3, 4)), RNG.random((2, 3, 1)) + 1
    expected = np.stack([[csoftmax.entmax(x[i, j], alphas[i, j, 0]) for j in range(3)] for i in range(2)])
    assert_same_bits(csoftmax.entmax(x, alphas), expected)
    assert_same_bits(csoftmax.entmax(x, alphas[0]), csoftmax.entmax(x, np.broadcast_to(alphas[0], (2, 3, 1))))
    assert_same_bits(csoftmax.entmax(x, [2.0]), csoftmax.sparsemax(x))
    assert_same_bits(csoftmax.entmax(x, np.float32(1.5)), csoftmax.entmax(x))
    assert_same_bits(
        csoftmax.entmax(x, alphas[:, :1], (1, 2)), csoftmax.entmax(x.reshape(2, 12), alphas[:, 0]).reshape(x.shape)
    )
    assert csoftmax.entmax(np.empty((0, 3)), np.empty((0, 1))).shape == (0, 3)


def test_errors():
    x, out = np.ones((3, 4)), np.full((3, 4), 7.0)
    for alpha, error, message in (
        ([[1.5], [0.9], [2.0]], ValueError, r"alpha must be at least 1 and finite, got 0\.9 at \(1, 0\)"),
        ([[1.5], [np.inf], [2.0]], ValueError, r"alpha must be at least 1 and finite, got inf at \(1, 0\)"),
        (np.full(3, 2.0), ValueError, r"alpha has shape \(3,\); allowed are a number and what broadcasts to \(3, 1\)"),
        ([["a"]], TypeError, "alpha must hold real numbers"),
    ):
        for call in (
            lambda alpha: csoftmax.entmax(x, alpha, out=out),
            lambda alpha: csoftmax.entmax_vjp(x, x, alpha, out=out),
            lambda alpha: csoftmax.entmax_loss_with_grad(x, [0, 1, 2], alpha, out=out),
        ):
            with pytest.raises(error, match=message):
                call(alpha)
    with pytest.raises(TypeError, match="return_alpha_grad must be a bool"):
        csoftmax.entmax_vjp(x, x, return_alpha_grad="no")
    for options, message in (
        ({"weight": [1.0, -1.0, 0.0, 0.0]}, "weight must be at least 0"),
        ({"sample_weight": [1.0, np.nan, 1.0]}, "sample_weight must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            csoftmax.entmax_loss_with_grad(x, [0, 1, 2], out=out, **options)
    with pytest.raises(TypeError, match="ignore_index must be an int"):
        csoftmax.entmax_loss(x, [0, 1, 2], ignore_index=1.5)
    with pytest.raises(IndexError, match=r"target\[1\] is -1: the classes are 0 to 3, and ignore_index is -100"):
        csoftmax.entmax_loss_with_grad(x, [0, -1, 2], out=out)
    assert (out == 7).all()


# The gradient of alpha


@pytest.mark.parametrize("alpha", [1.0, 1 + 1e-12, 1 + 1e-7, 1.001, 1.1, 1.5, 2.0, 2.5, 10.0, 100.0, 1e4])
def test_gradient_of_alpha(alpha):
    """Against mpmath, from the same dy and y."""
    for dtype in (np.float32, np.float64):
        for n, sigma in ((1, 1), (2, 5), (7, 0.1), (12, 1)):
            x, dy = (RNG.standard_normal(n) * sigma).astype(dtype), RNG.standard_normal(n).astype(dtype)
            y = csoftmax.entmax(x, alpha)
            got = csoftmax.entmax_vjp(dy, y, alpha, return_alpha_grad=True)
            assert_same_bits(got.grad, csoftmax.entmax_vjp(dy, y, alpha))
            value, unit = exact_alpha_gradient(dy, y, alpha)
            assert abs(mpmath.mpf(float(got.alpha_grad)) - value) <= unit * mpmath.mpf(2) ** -50, (dtype, n, sigma)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 2.0, 3.0])
def test_gradient_of_alpha_is_the_derivative(alpha):
    """Against the difference of exact probabilities, of which those of the call are the rounded ones."""
    x, dy = RNG.standard_normal(6), RNG.standard_normal(6)
    with mpmath.workprec(BITS):
        step = mpmath.mpf(2) ** -100
        above, below = exact(x, mpmath.mpf(alpha) + step), exact(x, mpmath.mpf(alpha) - step)
        expected = float(sum(mpmath.mpf(float(g)) * (a - b) for g, a, b in zip(dy, above, below)) / (2 * step))
    got = csoftmax.entmax_vjp(dy, csoftmax.entmax(x, alpha), alpha, return_alpha_grad=True).alpha_grad
    assert abs(got - expected) <= 1e-13 * max(1, abs(expected))


@looped("dtype", DTYPES)
def test_gradients_of_alphas_of_rows(dtype):
    """In any layout, with any number of threads, on every instruction set: those of the rows alone."""
    before = binding.isa()
    try:
        for n in (1, 5, 70, 5000):
            x, dy, mask = make(n, dtype), make(n, dtype), RNG.random((len(ALPHAS), n)) < 0.6
            y = csoftmax.entmax(x, ALPHAS[:, None], where=mask)
            each = [
                csoftmax.entmax_vjp(dy[i], y[i], float(a), where=mask[i], return_alpha_grad=True)
                for i, a in enumerate(ALPHAS)
            ]
            dx, of_alpha = np.stack([r.grad for r in each]), np.array([[r.alpha_grad] for r in each])
            for isa in binding.isa_available():
                binding.select_isa(isa)
                for threads in (1, 3):
                    options = {"return_alpha_grad": True, "num_threads": threads}
                    got = csoftmax.entmax_vjp(dy, y, ALPHAS[:, None], where=mask, **options)
                    assert_same_bits(got.grad, dx)
                    assert_same_bits(got.alpha_grad, of_alpha)
                    got = csoftmax.entmax_vjp(
                        dy.T.copy(), np.asfortranarray(y).T, ALPHAS[None], 0, where=mask.T, **options
                    )
                    assert_same_bits(got.grad.T, dx)
                    assert_same_bits(got.alpha_grad.T, of_alpha)
                in_place = dy.copy()
                got = csoftmax.entmax_vjp(
                    in_place, y, ALPHAS[:, None], where=mask, return_alpha_grad=True, out=in_place
                )
                assert got.grad is in_place
                assert_same_bits(got.alpha_grad, of_alpha)
            binding.select_isa(before)
    finally:
        binding.select_isa(before)


def test_gradients_of_shared_alphas():
    dy, y = RNG.standard_normal((2, 3, 4)), csoftmax.entmax(RNG.standard_normal((2, 3, 4)), 1.3)

    def gradient(shape):
        got = csoftmax.entmax_vjp(dy, y, np.full(shape, 1.3) if shape else 1.3, return_alpha_grad=True)
        assert type(got) is csoftmax.EntmaxGradients
        assert np.shape(got.alpha_grad) == shape
        return got.alpha_grad

    each = gradient((2, 3, 1))
    assert type(gradient(())) is np.float64
    np.testing.assert_allclose(gradient(()), each.sum(), rtol=1e-14)
    for shape, axes in (((3, 1), 0), ((1, 3, 1), 0), ((2, 1, 1), 1), ((1, 1, 1), (0, 1)), ((1,), (0, 1))):
        np.testing.assert_allclose(gradient(shape).ravel(), each.sum(axis=axes).ravel(), rtol=1e-14)
    y[0, 0, 1] = np.nan
    assert np.isnan(gradient((2, 3, 1))).ravel().tolist() == [True] + [False] * 5
    assert np.isnan(gradient(()))


def test_gradients_of_alpha_of_empty_rows():
    for shape in ((0, 3), (3, 0)):
        got = csoftmax.entmax_vjp(np.empty(shape), np.empty(shape), 1.5, return_alpha_grad=True)
        assert got.alpha_grad == 0
        assert got.grad.shape == shape


# Weights of the losses


@looped("dtype", DTYPES)
def test_weights(dtype):
    """Row losses s sum(w q) L, the mean over sum s sum(w q); ignored rows and rows of weight 0 are not read."""
    name = np.dtype(dtype).name
    for alpha in (1.0, 1.2, 1.5, 2.0, 4.0):
        for n in (2, 9, 130):
            x, w, s = make(n, dtype), RNG.random(n), RNG.random(len(ALPHAS)) * 3
            hard = RNG.integers(0, n, len(ALPHAS))
            hard[[1, 4]], s[[2, 4]] = 1, 0
            x[[1, 2], 0] = np.nan
            soft = soft_labels(n, dtype)
            for weight, target in ((w, hard), (w, soft), (None, (soft * 1.5).astype(soft.dtype))):
                ignore_index = 1 if target is hard else -100
                kept = (s != 0) & (hard != 1 if target is hard else True)
                kept &= ~np.isnan(x.astype(float)).any(-1)
                rows = x[kept], target[kept]
                options = {"weight": weight, "sample_weight": s[kept], "ignore_index": ignore_index}
                for reduction in ("none", "sum", "mean"):
                    if target is not hard:
                        break
                    weights = {"weight": w, "sample_weight": s, "ignore_index": ignore_index}
                    got = csoftmax.entmax_loss_with_grad(x, target, alpha, reduction=reduction, **weights)
                    some = csoftmax.entmax_loss_with_grad(*rows, alpha, reduction=reduction, **options)
                    np.testing.assert_allclose(
                        np.asarray(got.loss)[kept] if got.loss.ndim else got.loss, some.loss, rtol=2e-6
                    )
                    np.testing.assert_allclose(got.grad[kept].astype(float), some.grad.astype(float), rtol=1e-2)
                    assert (got.grad[~kept] == 0).all()
                    if reduction == "none":
                        assert (got.loss[~kept] == 0).all()
                if alpha == 1:
                    continue
                for reduction in ("none", "sum", "mean"):
                    got = csoftmax.entmax_loss_with_grad(*rows, alpha, reduction=reduction, **options)
                    loss, grad = exact_entmax_loss_with_grad(*rows, alpha=alpha, reduction=reduction, **options)
                    real = "float64" if name == "float64" else "float32"
                    assert ulp_error(got.loss, loss.value, real, None, loss.slack) <= (5 if real == "float64" else 1.1)
                    # float64: a factor, its product, and for a mean the divisor and the quotient are rounded as well
                    limit = {"mean": 5.1}.get(reduction, 3.1) if name == "float64" else 1.6
                    assert ulp_error(got.grad, grad.value, name, None, grad.slack) <= limit


def test_without_weights_nothing_changes():
    x, y = make(30, np.float64), RNG.integers(0, 30, len(ALPHAS))
    for alpha in (1.0, 1.5, 1.3):
        for target in (y, soft_labels(30, np.float64)):
            for reduction in ("none", "sum", "mean"):
                plain = csoftmax.entmax_loss_with_grad(x, target, alpha, reduction=reduction)
                ones = csoftmax.entmax_loss_with_grad(
                    x, target, alpha, reduction=reduction, sample_weight=1.0, ignore_index=-7
                )
                assert_same_bits(ones.loss, plain.loss)
                assert_same_bits(ones.grad, plain.grad)


def test_means_without_mass():
    """The loss is NaN, the gradient 0, whatever the rows hold."""
    x = np.array([[1.0, np.nan, 0.0], [-np.inf, 2.0, np.inf]])
    for alpha in (1.0, 1.5, np.array([[1.0], [1.5]])):
        for options in (
            {"target": [5, 5], "ignore_index": 5},
            {"target": [0, 1], "sample_weight": 0.0},
            {"target": [0, 1], "weight": np.zeros(3)},
            {"target": np.full((2, 3), 1 / 3), "sample_weight": [0, 0]},
        ):
            got = csoftmax.entmax_loss_with_grad(x, alpha=alpha, **options)
            assert np.isnan(got.loss)
            assert (got.grad == 0).all()
            assert np.isnan(csoftmax.entmax_loss(x, alpha=alpha, **options))


def test_labels_are_compared_without_wrap_around():
    x = make(4, np.float64)[:2]
    for dtype in (np.uint8, np.int8, np.uint64, np.int64):
        top = int(np.iinfo(dtype).max)
        target = np.array([1, top], dtype)
        expected = csoftmax.entmax_loss(x[:1], [1])
        assert csoftmax.entmax_loss(x, target, ignore_index=top) == expected
        with pytest.raises(IndexError, match=rf"target\[1\] is {top}"):
            csoftmax.entmax_loss(x, target, ignore_index=-1)
    with pytest.raises(IndexError, match=r"target\[0\] is -1"):
        csoftmax.entmax_loss(x, [-1, 0], ignore_index=2**64 - 1)


def test_weights_of_any_magnitude():
    """The scale of the weights of a mean cancels."""
    x, y, s, w = make(5, np.float64), RNG.integers(0, 5, len(ALPHAS)), RNG.random(len(ALPHAS)), RNG.random(5)
    for alpha in (1.0, 1.5):
        plain = csoftmax.entmax_loss_with_grad(x, y, alpha, sample_weight=s, weight=w)
        for scale in (2.0**-1060, 2.0**1000):
            for weights in ({"sample_weight": s * scale, "weight": w}, {"sample_weight": s, "weight": w * 2.0**900}):
                got = csoftmax.entmax_loss_with_grad(x, y, alpha, **weights)
                np.testing.assert_allclose(got.loss, plain.loss, rtol=1e-4 if scale < 1 else 1e-14)
