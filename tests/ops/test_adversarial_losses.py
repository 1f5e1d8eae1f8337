"""Losses under perturbation: the worst case itself, finite differences, and the definitions of VAT and TRADES."""

import math

import numpy as np
import pytest

import csoftmax
from csoftmax.adversarial import (
    certify,
    perturb,
    robust_cross_entropy,
    robust_cross_entropy_with_grad,
    trades_loss_with_grad,
    vat_loss_with_grad,
)

INF = math.inf
DUAL = {1: INF, 1.5: 3.0, 2: 2, INF: 1}


def problem(seed=0, n=12, d=5, k=4):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)), rng.normal(size=(k, d)), rng.normal(size=k), rng.integers(0, k, n)


def log_softmax(z):
    z = z - z.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def divergence(p, logits):
    """KL(p || softmax(logits)), p given."""
    return (p * (np.log(p) - log_softmax(logits))).sum(axis=1)


def differentiate(f, a, h=1e-6):
    """Central differences of a function of an array."""
    grad = np.zeros(a.shape)
    for at in np.ndindex(a.shape):
        up, down = a.copy(), a.copy()
        up[at] += h
        down[at] -= h
        grad[at] = (f(up) - f(down)) / (2 * h)
    return grad


def with_labels(y):
    """The functions with their arguments after w."""
    return (robust_cross_entropy_with_grad, (y,)), (trades_loss_with_grad, (y,)), (vat_loss_with_grad, ())


def check_gradients(result, loss, x, w, bias):
    np.testing.assert_allclose(result.loss, loss(x, w, bias), rtol=1e-13)
    np.testing.assert_allclose(result.grad_x, differentiate(lambda v: loss(v, w, bias), x), atol=2e-9)
    np.testing.assert_allclose(result.grad_w, differentiate(lambda v: loss(x, v, bias), w), atol=2e-9)
    np.testing.assert_allclose(result.grad_bias, differentiate(lambda v: loss(x, w, v), bias), atol=2e-9)


def robust(x, w, y, bias, eps, norm):
    z = x @ w.T + bias
    z += eps * np.linalg.norm(w[None] - w[y][:, None], ord=DUAL[norm], axis=2)
    return -log_softmax(z)[np.arange(len(x)), y]


@pytest.mark.parametrize("norm", [1, 1.5, 2, INF])
def test_robust_loss_and_gradients(norm):
    x, w, bias, y = problem(1)
    weight, s = np.array([1.0, 2.0, 0.5, 1.5]), np.linspace(0.5, 2, len(x))

    def loss(x, w, bias):
        rows = robust(x, w, y, bias, 0.3, norm)
        return np.sum(rows * s * weight[y]) / np.sum(s * weight[y])

    options = {"bias": bias, "eps": 0.3, "norm": norm, "weight": weight, "sample_weight": s}
    result = robust_cross_entropy_with_grad(x, w, y, **options)
    check_gradients(result, loss, x, w, bias)
    assert robust_cross_entropy(x, w, y, **options) == result.loss
    small = robust_cross_entropy_with_grad(x, w, y, chunk_bytes=1, **options)
    for a, b in zip(result, small):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    rows = robust_cross_entropy(x, w, y, bias=bias, eps=0.3, norm=norm, reduction="none")
    np.testing.assert_allclose(rows, robust(x, w, y, bias, 0.3, norm), rtol=1e-12)
    # a loss below log 2 is a certificate
    radius = certify(x, w, bias=bias, target=y, norm=norm).radius
    assert (radius[rows < np.log(2)] > 0.3 * (1 - 1e-12)).all()


def test_robust_loss_of_two_classes_is_the_worst_case_and_of_more_a_bound():
    for k in (2, 5):
        x, w, bias, y = problem(2, n=30, k=k)
        for norm in (1, 2, INF):
            bound = robust_cross_entropy(x, w, y, bias=bias, eps=0.4, norm=norm, reduction="none")
            attacks = [
                perturb(x, w, y, bias=bias, eps=0.4, norm=norm, method="fgsm"),
                perturb(x, w, y, bias=bias, eps=0.4, norm=norm, method="pgd"),
                perturb(x, w, y, bias=bias, eps=0.4, norm=norm, method="pgd", random_start=True, rng=0),
            ]
            found = [csoftmax.linear_cross_entropy(a, w, y, bias=bias, reduction="none") for a in attacks]
            if k == 2:
                np.testing.assert_allclose(found[0], bound, rtol=1e-12)
            assert all((value <= bound * (1 + 1e-12)).all() for value in found)


def test_robust_loss_without_perturbation_is_the_linear_one_bit_for_bit():
    x, w, bias, y = problem(3)
    y[3] = -100
    for dtype in (np.float64, np.float32, np.float16):
        given = x.astype(dtype), w.astype(dtype), y
        options = {"bias": bias, "label_smoothing": 0.1, "z_loss": 0.2, "temperature": 2.0, "reduction": "sum"}
        got = robust_cross_entropy_with_grad(*given, eps=0, norm=2, clip_norm=0.5, **options)
        expected = csoftmax.linear_cross_entropy_with_grad(*given, clip_norm=0.5, **options)
        for a, b in zip(got, expected):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def test_robust_loss_of_many_classes_finds_norms_chunk_by_chunk(monkeypatch):
    from csoftmax._ops import adversarial_shift

    x, w, bias, y = problem(4, n=50, k=17)
    expected = robust_cross_entropy_with_grad(x, w, y, bias=bias, eps=0.2, norm=2)
    monkeypatch.setattr(adversarial_shift, "CACHED_NORMS", 1)
    got = robust_cross_entropy_with_grad(x, w, y, bias=bias, eps=0.2, norm=2, chunk_bytes=17 * 8 * 7)
    for a, b in zip(got, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def find_curved(x, w, bias, start, iterations):
    rows = []
    for row, d in zip(x, start):
        z = w @ row + bias
        p = np.exp(z - z.max())
        p /= p.sum()
        hessian = w.T @ (np.diag(p) - np.outer(p, p)) @ w
        for _ in range(iterations):
            d = hessian @ d
            d = d / np.linalg.norm(d)
        rows.append(d)
    return np.array(rows)


def test_vat_is_its_definition_with_the_exact_hessian():
    x, w, bias, _ = problem(5)
    z = x @ w.T + bias
    order = np.argsort(-z, axis=1)
    for iterations, rng in ((1, None), (3, None), (2, 8)):
        start = w[order[:, 0]] - w[order[:, 1]]
        if rng is not None:
            start = np.random.default_rng(rng).standard_normal(x.shape)
        d = 0.7 * find_curved(x, w, bias, start, iterations)
        p = csoftmax.softmax(z)
        d *= np.where(divergence(p, (x - d) @ w.T + bias) > divergence(p, (x + d) @ w.T + bias), -1, 1)[:, None]
        s = np.linspace(0.5, 2, len(x))

        def loss(x, w, bias, d=d, p=p, s=s):
            return 3 * np.sum(s * divergence(p, (x + d) @ w.T + bias)) / np.sum(s)

        options = {"bias": bias, "eps": 0.7, "iterations": iterations, "sample_weight": s}
        result = vat_loss_with_grad(x, w, rng=rng, upstream=3.0, **options)
        scaled = result._replace(loss=3 * result.loss)
        check_gradients(scaled, loss, x, w, bias)
        rows = vat_loss_with_grad(x, w, bias=bias, eps=0.7, iterations=iterations, rng=rng, reduction="none")
        np.testing.assert_allclose(rows.loss, divergence(p, (x + d) @ w.T + bias), rtol=1e-11)


def test_vat_keeps_its_digits_for_small_perturbations():
    """A divergence of 1e-24, where the difference of logarithms has no digit left."""
    x, w, bias, _ = problem(6)
    d = find_curved(x, w, bias, perturb(x, w, None, bias=bias, eps=1.0, method="vat", steps=1) - x, 1)
    p = csoftmax.softmax(x @ w.T + bias)
    v = d @ w.T
    curvature = (p * v**2).sum(axis=1) - (p * v).sum(axis=1) ** 2
    got = vat_loss_with_grad(x, w, bias=bias, eps=1e-12, iterations=2, reduction="none")
    np.testing.assert_allclose(got.loss, 0.5e-24 * curvature, rtol=0.3)
    one = vat_loss_with_grad(x, w, bias=bias, eps=1e-6, reduction="none").loss
    other = vat_loss_with_grad(x, w, bias=bias, eps=1e-8, reduction="none").loss
    np.testing.assert_allclose(one * 1e-4, other, rtol=1e-5)
    assert vat_loss_with_grad(x, w, bias=bias, eps=0).loss == 0


def ascend(x, w, bias, eps, norm, steps, size, seed):
    """TRADES' inner loop as published: x' from x + 0.001 N(0, 1), steps up KL(p(x) || p(x')), projections."""
    p = csoftmax.softmax(x @ w.T + bias)
    d = 1e-3 * np.random.default_rng(seed).standard_normal(x.shape)
    for _ in range(steps):
        g = (csoftmax.softmax((x + d) @ w.T + bias) - p) @ w
        if norm == INF:
            d = np.clip(d + size * np.sign(g), -eps, eps)
        else:
            d = d + size * g / np.linalg.norm(g, axis=1, keepdims=True)
            d *= np.minimum(1, eps / np.linalg.norm(d, axis=1, keepdims=True))
        d = np.clip(x + d, -3, 3) - x
    return d


@pytest.mark.parametrize("norm", [2, INF])
def test_trades_is_its_definition(norm):
    x, w, bias, y = problem(7)
    d = ascend(x, w, bias, 0.3, norm, 4, 0.11, 5)
    s = np.linspace(0.5, 2, len(x))

    def loss(x, w, bias):
        z = x @ w.T + bias
        log_p = log_softmax(z)
        kl = divergence(np.exp(log_p), (x + d) @ w.T + bias)
        return np.sum(s * (-log_p[np.arange(len(x)), y] + 2.5 * kl)) / np.sum(s)

    options = {"bias": bias, "norm": norm, "beta": 2.5, "rng": 5, "bounds": (-3, 3), "sample_weight": s}
    result = trades_loss_with_grad(x, w, y, eps=0.3, steps=4, step_size=0.11, **options)
    check_gradients(result, loss, x, w, bias)
    ignored = y.copy()
    ignored[4] = -100
    without = trades_loss_with_grad(x, w, ignored, eps=0.3, **options)
    assert (without.grad_x[4] == 0).all()
    plain = trades_loss_with_grad(x, w, y, eps=0.0, **options)
    expected = csoftmax.linear_cross_entropy_with_grad(x, w, y, bias=bias, sample_weight=s)
    for a, b in zip(plain, expected):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_shapes_dtypes_and_threads():
    x, w, bias, y = problem(8)
    for function, labels in (
        (robust_cross_entropy_with_grad, (y,)),
        (trades_loss_with_grad, (y,)),
        (vat_loss_with_grad, ()),
    ):
        options = {} if function is robust_cross_entropy_with_grad else {"rng": 1}
        expected = function(x, w, *labels, bias=bias, eps=0.2, **options)
        folded = function(
            x.reshape(3, 4, 5), w, *(v.reshape(3, 4) for v in labels), bias=bias, eps=0.2, num_threads=1, **options
        )
        for a, b in zip(expected, folded):
            np.testing.assert_array_equal(a, b.reshape(a.shape))
        for dtype in (np.float32, np.float16):
            got = function(x.astype(dtype), w.astype(dtype), *labels, bias=bias, eps=0.2, **options)
            assert got.loss.dtype == np.float32
            assert got.grad_x.dtype == got.grad_w.dtype == got.grad_bias.dtype == dtype
            assert got.loss == pytest.approx(expected.loss, rel=2e-2)
        none = function(x, w, *labels, eps=0.2, **options)
        assert none.grad_bias is None
        empty = function(x[:0], w, *(v[:0] for v in labels), eps=0.2, **options)
        assert np.isnan(empty.loss)
        assert (empty.grad_w == 0).all()
        assert empty.grad_x.shape == (0, 5)
        assert function(x, w, *labels, eps=0.2, reduction="none", **options).loss.shape == (12,)
        one = function(x[:, :1], w[:1, :1], *(0 * v for v in labels), eps=0.2, **options)
        assert one.loss == 0
        assert (one.grad_w == 0).all()
        flat = function(np.zeros((3, 0)), np.zeros((2, 0)), *(v[:3] % 2 for v in labels), eps=0.2, **options)
        assert flat.loss == pytest.approx(0 if function is vat_loss_with_grad else np.log(2))


def test_rows_that_are_not_finite_have_loss_nan_and_equal_weights_no_slope():
    x, w, bias, y = problem(9)
    x[2, 1] = np.nan
    for function, labels in (
        (robust_cross_entropy_with_grad, (y,)),
        (trades_loss_with_grad, (y,)),
        (vat_loss_with_grad, ()),
    ):
        loss = function(x, w, *labels, bias=bias, eps=0.2, reduction="none").loss
        assert np.isnan(loss[2])
        assert np.isfinite(np.delete(loss, 2)).all()
    for norm in (1, 1.5, 2, INF):
        got = robust_cross_entropy_with_grad(np.ones((2, 3)), np.ones((2, 3)), [0, 1], eps=0.5, norm=norm)
        assert got.loss == pytest.approx(np.log(2))
        assert np.isfinite(got.grad_w).all()
    # a certain row has no curvature
    certain = vat_loss_with_grad([[1.0, 0.0]], [[1e4, 0.0], [0.0, 1.0]], eps=0.3)
    assert certain.loss == 0
    assert (certain.grad_w == 0).all()
    # far changes do not overflow
    far = vat_loss_with_grad([[0.0, 0.0]], [[1e4, 0.0], [0.0, 1.0]], eps=1.0)
    assert far.loss == pytest.approx(0.5e4 - np.log(2), rel=1e-3)
    assert np.isfinite(far.grad_w).all()


def test_rows_with_infinite_logits_have_loss_nan():
    """Also where the cross-entropy itself is finite: a perturbation of such a row has no meaning."""
    x, w = np.array([[2.0, 1.0], [0.5, -1.0]]), np.array([[0.0, 0.0], [0.0, 1.0], [0.0, -3.0]])
    for bias in ([0.0, -INF, -INF], [INF, 0.0, 0.0], [0.0, 0.0, -INF]):
        options = {"bias": np.array(bias), "reduction": "none"}
        for target in (0, 1):
            y = [target, -100]
            for result in (
                robust_cross_entropy_with_grad(x, w, y, eps=0.1, **options),
                trades_loss_with_grad(x, w, y, eps=0.1, rng=0, **options),
                trades_loss_with_grad(x, w, y, eps=0, rng=0, **options),
                vat_loss_with_grad(x, w, eps=0.1, sample_weight=[1, 0], **options),
                vat_loss_with_grad(x, w, eps=0, sample_weight=[1, 0], **options),
            ):
                np.testing.assert_array_equal(result.loss, [np.nan, 0])
                assert np.isnan(result.grad_x[0]).all()
                assert (result.grad_x[1] == 0).all()
            np.testing.assert_array_equal(
                robust_cross_entropy(x, w, y, eps=0, **options), csoftmax.linear_cross_entropy(x, w, y, **options)
            )


def test_one_hot_predictions_are_not_perturbed():
    """p is one-hot where all other probabilities are 0 in float64, whatever the features are in."""
    w = np.array([[1000.0, 0.0], [0.0, 1.0], [0.0, -3.0]])
    for dtype in (np.float64, np.float32, np.float16):
        for rng in (None, 0):
            x = np.array([[2.0, 1.0], [0.001, 1.0]], dtype)
            assert (csoftmax.softmax(x.astype(float) @ w.T) == 0).sum(axis=1).tolist() == [2, 0]
            moved = perturb(x, w.astype(dtype), None, eps=0.5, method="vat", rng=rng)
            np.testing.assert_array_equal(moved[0], x[0])
            assert (moved[1] != x[1]).any()
            result = vat_loss_with_grad(x, w.astype(dtype), eps=3.0, reduction="none", rng=rng)
            assert result.loss[0] == 0
            assert (result.grad_x[0] == 0).all()
            assert result.loss[1] > 0


def test_a_bound_that_overflows_is_infinite():
    x, w = np.array([[1.0, 2.0], [0.5, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    for dtype, eps in ((np.float64, 1.5e308), (np.float32, 3e38)):
        x, w = x.astype(dtype), w.astype(dtype)
        result = robust_cross_entropy_with_grad(x, w, [0, 1], eps=eps, reduction="none")
        assert (result.loss == math.inf).all()
        assert not np.isnan(result.grad_x).any()
        assert np.isnan(robust_cross_entropy(x * dtype(np.nan), w, [0, 1], eps=eps))


@pytest.mark.parametrize(
    ("function", "error", "text", "options"),
    [
        (robust_cross_entropy, ValueError, "eps must be at least 0", {"eps": -1}),
        (robust_cross_entropy, ValueError, "norm must be at least 1", {"norm": 0}),
        (robust_cross_entropy, IndexError, "target", {"target": [9]}),
        (robust_cross_entropy, TypeError, "integer labels", {"target": [[0.5, 0.5]]}),
        (trades_loss_with_grad, ValueError, "norm must be 1, 2 or numpy.inf", {"norm": 3}),
        (trades_loss_with_grad, ValueError, "beta must be at least 0", {"beta": -1}),
        (trades_loss_with_grad, ValueError, "steps must be at least 1", {"steps": 0}),
        (trades_loss_with_grad, ValueError, "within bounds", {"bounds": (0, 1)}),
        (trades_loss_with_grad, TypeError, "rng must be", {"rng": "seed"}),
        (trades_loss_with_grad, ValueError, "sample_weight", {"sample_weight": [-1.0]}),
        (vat_loss_with_grad, ValueError, "iterations must be at least 1", {"iterations": 0}),
        (vat_loss_with_grad, ValueError, "reduction must be", {"reduction": "total"}),
        (vat_loss_with_grad, ValueError, "w must have at least one row", {"w": np.zeros((0, 2))}),
    ],
)
def test_errors_name_the_argument(function, error, text, options):
    given = {"target": [0], "eps": 0.1, "w": np.eye(2), **options}
    arguments = [np.array([[0.5, 2.0]]), given.pop("w")]
    target = given.pop("target")
    if function is not vat_loss_with_grad:
        arguments.append(target)
    with pytest.raises(error, match=text):
        function(*arguments, **given)
