"""Hyperbolic logits: mpmath at every distance, limits, gradients by differences, seams, special values, arguments."""

import ml_dtypes
import mpmath
import numpy as np
import pytest

import csoftmax
from csoftmax._cpu import hyperbolic
from csoftmax._ops.poincare import poincare_cross_entropy_with_grad, poincare_logits


def exact_logit(v, w, r, c):
    """The formula in many digits, for tangent coordinates; and the size of the terms that may cancel."""
    v, w, r, c = (
        [mpmath.mpf(float(t)) for t in v],
        [mpmath.mpf(float(t)) for t in w],
        mpmath.mpf(float(r)),
        mpmath.mpf(c),
    )
    n = mpmath.sqrt(sum(t * t for t in w))
    s = mpmath.sqrt(sum(t * t for t in v))
    a, b = 2 * mpmath.sqrt(c) * s, 2 * mpmath.sqrt(c) * r
    y = mpmath.sinh(a) * mpmath.cosh(b) * sum(p * q for p, q in zip(v, w, strict=True)) / (n * s)
    y -= mpmath.cosh(a) * mpmath.sinh(b)
    size = (mpmath.sinh(a) * mpmath.cosh(b) + abs(mpmath.cosh(a) * mpmath.sinh(b))) / mpmath.sqrt(1 + y * y)
    return 2 * n / mpmath.sqrt(c) * mpmath.asinh(y), 2 * n / mpmath.sqrt(c) * size


def test_logits_at_every_distance():
    """Within 4 ULP of the row's largest logit, and of the terms that cancel next to a hyperplane."""
    rng = np.random.default_rng(0)
    worst = 0
    with mpmath.workdps(700):
        for radius in (1e-8, 0.1, 1.0, 5.0, 10.0, 20.0, 100.0, 300.0):
            for c in (0.1, 1.0, 2.5):
                x = rng.normal(size=(2, 4))
                x *= radius / np.linalg.norm(x, axis=1, keepdims=True)
                w = rng.normal(size=(6, 4)) * rng.uniform(0.1, 3, (6, 1))
                w[5] -= (1 - 1e-7) * (w[5] @ x[0]) / (x[0] @ x[0]) * x[0]  # next to its hyperplane
                bias = rng.normal(size=6) * rng.choice([0.0, 0.3, 2.0], 6)
                bias[5] = 0
                found = poincare_logits(x, w, bias, c=c)
                for row in range(2):
                    exact = [exact_logit(x[row], w[k], bias[k], c) for k in range(6)]
                    largest = max(abs(value) for value, _ in exact)
                    for k, (value, terms) in enumerate(exact):
                        error = abs(mpmath.mpf(float(found[row, k])) - value) / (
                            4 * mpmath.mpf(2) ** -52 * (largest + terms)
                        )
                        worst = max(worst, float(error))
    assert worst <= 1
    assert worst < 0.6  # as measured


def test_no_curvature_is_the_limit():
    rng = np.random.default_rng(1)
    x, w, bias = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)), rng.normal(size=4)
    flat = 4 * (x @ w.T - np.linalg.norm(w, axis=1) * bias)
    for coordinates in ("tangent", "ball"):
        np.testing.assert_allclose(
            poincare_logits(x, w, bias, c=0, coordinates=coordinates), flat, rtol=1e-14, atol=1e-14
        )
        errors = [
            np.abs(poincare_logits(x, w, bias, c=c, coordinates=coordinates) - flat).max() for c in (1e-4, 1e-6, 1e-8)
        ]
        assert errors[0] > 50 * errors[1] > 2500 * errors[2]
    at_zero = poincare_cross_entropy_with_grad(x, w, np.arange(5) % 4, bias=bias, c=0)
    near = poincare_cross_entropy_with_grad(x, w, np.arange(5) % 4, bias=bias, c=1e-9)
    for a, b in zip(at_zero, near, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_coordinates_agree():
    rng = np.random.default_rng(2)
    v, w, bias = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)), rng.normal(size=4)
    for c in (0.3, 1.0, 2.0):
        root, s = np.sqrt(c), np.linalg.norm(v, axis=1, keepdims=True)
        ball = np.tanh(root * s) * v / (root * s)
        sheet = np.concatenate([np.cosh(2 * root * s) / root, np.sinh(2 * root * s) * v / (root * s)], axis=1)
        expected = poincare_logits(v, w, bias, c=c)
        np.testing.assert_allclose(poincare_logits(ball, w, bias, c=c, coordinates="ball"), expected, rtol=1e-10)
        np.testing.assert_allclose(
            poincare_logits(sheet, w, bias, c=c, coordinates="hyperboloid"), expected, rtol=1e-12
        )


def differences(f, x, step):
    grad = np.empty_like(x)
    for at in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[at] = step
        grad[at] = (f(x + e) - f(x - e)) / (2 * step)
    return grad


def test_gradients_by_differences():
    rng = np.random.default_rng(3)
    target = np.array([0, 3, 1, 2])
    for coordinates in ("tangent", "ball", "hyperboloid"):
        for c, scale in ((1.0, 0.3), (0.2, 0.01), (2.0, 3.0), (1e-12, 1.0)):
            if coordinates != "tangent" and (scale > 1 or c < 0.1):
                continue
            v, w, bias = rng.normal(size=(4, 3)) * scale, rng.normal(size=(4, 3)), rng.normal(size=4) * 0.5
            if coordinates == "hyperboloid":
                v = np.concatenate([np.sqrt(1 / c + (v**2).sum(1, keepdims=True)), v], axis=1)
            options = {"coordinates": coordinates, "weight": [1, 2, 3, 4], "label_smoothing": 0.1, "temperature": 2.0}
            result = poincare_cross_entropy_with_grad(v, w, target, bias=bias, c=c, **options)

            def loss(v=v, w=w, bias=bias, c=c, options=options):
                return poincare_cross_entropy_with_grad(v, w, target, bias=bias, c=float(c), **options).loss

            for name, array in (("v", v), ("w", w), ("bias", bias), ("c", np.array(c))):
                step = 1e-6 if name != "c" else 1e-6 * max(c, 1e-6)
                numeric = differences(lambda a, name=name: loss(**{name: a}), array.astype(float), step)
                found = result[1 + ("v", "w", "bias", "c").index(name)]
                if name != "c" or c > 1e-6:
                    np.testing.assert_allclose(
                        found, numeric, rtol=2e-6, atol=2e-8, err_msg=f"{coordinates} {c} {name}"
                    )


def test_derivative_of_single_functions():
    """Next to 0, across the seams of their forms, and far away."""
    t = np.concatenate([[0.0], np.geomspace(1e-9, 0.999, 80), 0.3 + np.array([-1e-9, 1e-9]), [0.31, 0.29]])
    beyond = np.concatenate([t, 1 + np.array([-1e-9, 1e-9]), np.geomspace(1, 400, 40)])
    with mpmath.workdps(60):

        def check(function, points, f, at_zero):
            found = function(points)
            for p, value in zip(points, found, strict=True):
                p = mpmath.mpf(float(p))
                exact = at_zero if p == 0 else f(p)
                assert abs(mpmath.mpf(float(value)) / exact - 1) < 2e-14, (function.__name__, p)

        def tanh_slope(p):
            return (mpmath.sech(p) ** 2 - mpmath.tanh(p) / p) / p**2

        def asinh_slope(p):
            return (1 / mpmath.sqrt(1 + p * p) - mpmath.asinh(p) / p) / p**2

        def atanh_slope(p):
            return (1 / (1 - p * p) - mpmath.atanh(p) / p) / p**2

        check(hyperbolic.tanh_over_slope, beyond, tanh_slope, -mpmath.mpf(2) / 3)
        check(hyperbolic.asinh_over_slope, beyond, asinh_slope, -mpmath.mpf(1) / 3)
        check(hyperbolic.atanh_over_slope, t, atanh_slope, mpmath.mpf(2) / 3)
        check(hyperbolic.tanh_over, beyond, lambda p: mpmath.tanh(p) / p, mpmath.mpf(1))
        check(hyperbolic.atanh_over, t, lambda p: mpmath.atanh(p) / p, mpmath.mpf(1))


def test_gradients_are_finite_everywhere():
    w = np.array([[1.0, 0.0], [0.0, 0.0], [0.3, -2.0]])
    bias = np.array([0.0, 1.0, 0.5])
    for c in (0.0, 1e-300, 1e-9, 1.0):
        x = np.array([[0.0, 0.0], [1e-200, 0.0], [0.0, 300.0], [-300.0, 1e-9], [1e-3, 0], [345.0, 0.0]])
        result = poincare_cross_entropy_with_grad(x, w, [0, 1, 2, 0, 1, 2], bias=bias, c=c)
        assert all(np.isfinite(part).all() for part in result), c
        assert (result.grad_w[1] == 0).all()
        assert (poincare_logits(x, w, bias, c=c)[:, 1] == 0).all()
    rim = np.array([[1 - 2.0**-53, 0.0], [0.0, 0.0], [0.6, -0.8 + 1e-15]])
    result = poincare_cross_entropy_with_grad(rim, w, [1, 1, 1], bias=bias, coordinates="ball")
    assert all(np.isfinite(part).all() for part in result)
    on_plane = poincare_cross_entropy_with_grad([[0.0, 5.0]], [[1.0, 0.0], [-1.0, 0.0]], [0])
    assert on_plane.loss == pytest.approx(np.log(2))
    assert np.isfinite(on_plane.grad_x).all()
    beyond = poincare_logits([[1e200, 0.0], [1e300, 0]], w, bias)  # |x| whose square overflows
    assert beyond[0, 0] == pytest.approx(4e200, rel=1e-14)


def test_special_values_and_rows_that_take_no_part():
    rng = np.random.default_rng(4)
    x, w = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))
    x[1] = np.nan
    assert np.isnan(poincare_logits(x, w)[1]).all()
    assert np.isfinite(poincare_logits(x, w)[[0, 2, 3]]).all()
    result = poincare_cross_entropy_with_grad(x, w, [0, -100, 2, 3], bias=np.zeros(5))
    others = poincare_cross_entropy_with_grad(x[[0, 2, 3]], w, [0, 2, 3], bias=np.zeros(5))
    assert (result.grad_x[1] == 0).all()
    assert result.loss == pytest.approx(others.loss, rel=1e-15)
    np.testing.assert_allclose(result.grad_w, others.grad_w, rtol=1e-13, atol=1e-15)
    assert result.grad_c == pytest.approx(others.grad_c, rel=1e-12)
    nothing = poincare_cross_entropy_with_grad(x, w, [-100] * 4)
    assert np.isnan(nothing.loss)
    assert (nothing.grad_x == 0).all()
    assert (nothing.grad_w == 0).all()
    assert nothing.grad_bias is None
    for shape in ((0, 3), (2, 0, 3)):
        assert poincare_logits(np.zeros(shape), w).shape == (*shape[:-1], 5)
        assert poincare_cross_entropy_with_grad(np.zeros(shape), w, np.zeros(shape[:-1], int)).grad_x.shape == shape
    assert poincare_logits(np.zeros((2, 3)), w[:0]).shape == (2, 0)
    assert poincare_logits(np.zeros((2, 0)), np.zeros((4, 0))).tolist() == [[0] * 4] * 2
    assert poincare_logits(x[0], w).shape == (5,)


def test_dtypes_and_layouts():
    rng = np.random.default_rng(5)
    x, w = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4))
    expected = poincare_logits(x, w)
    np.testing.assert_array_equal(poincare_logits(np.asfortranarray(x), w[::1]), expected)
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        low, planes = x.astype(dtype), w.astype(dtype)
        found = poincare_logits(low, planes)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, poincare_logits(low.astype(float), planes.astype(float)).astype(dtype))
        result = poincare_cross_entropy_with_grad(low, planes, np.zeros((2, 3), int), bias=np.zeros(5))
        assert [part.dtype for part in result] == [np.float32, dtype, dtype, dtype, np.float64]
    assert poincare_logits([[1, 2]], [[1, 0], [0, 1]]).dtype == np.float64
    none = poincare_cross_entropy_with_grad(x, w, np.zeros((2, 3), int), reduction="none", upstream=np.ones((2, 3)))
    assert none.loss.shape == (2, 3)
    logits = poincare_logits(x, w)
    np.testing.assert_array_equal(none.loss, csoftmax.cross_entropy(logits, np.zeros((2, 3), int), reduction="none"))


def test_bad_arguments():
    x, w = np.zeros((2, 3)), np.ones((4, 3))
    for call, error, message in (
        (lambda: poincare_logits(x, w, c=-1), ValueError, "c must be at least 0"),
        (lambda: poincare_logits(x, w, c=np.nan), ValueError, "c must be at least 0"),
        (lambda: poincare_logits(x, w, c="1"), TypeError, "c must be a real number"),
        (lambda: poincare_logits(x, w, coordinates="klein"), ValueError, "coordinates must be"),
        (lambda: poincare_logits(x, w[:, :2]), ValueError, "allowed are"),
        (lambda: poincare_logits(x, w, coordinates="hyperboloid"), ValueError, r"\(..., D \+ 1\)"),
        (lambda: poincare_logits(x, w, [1, 2]), ValueError, "bias has shape"),
        (lambda: poincare_logits(x, w.astype("f4")), TypeError, "w has dtype float32"),
        (lambda: poincare_logits(x > 0, w), TypeError, "x has dtype bool"),
        (
            lambda: poincare_logits([[0.1], [1.0]], [[1.0]], coordinates="ball"),
            ValueError,
            r"x\[1\] is not within the ball",
        ),
        (
            lambda: poincare_logits([[-1.0, 0]], [[1.0]], coordinates="hyperboloid"),
            ValueError,
            r"x\[0\] must have a pos",
        ),
        (
            lambda: poincare_logits([[1.0, 0]], [[1.0]], c=0, coordinates="hyperboloid"),
            ValueError,
            "c must be positive",
        ),
        (lambda: poincare_cross_entropy_with_grad(x, w, [0, 9]), IndexError, r"target\[1\] is 9"),
        (lambda: poincare_cross_entropy_with_grad(x, w, [0, 1], num_threads=0), ValueError, "num_threads"),
    ):
        with pytest.raises(error, match=message):
            call()
