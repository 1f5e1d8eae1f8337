"""von Mises-Fisher softmax: Bessel functions and logits with mpmath, SciPy's density, gradients, limits, arguments."""

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import NUMPY
from scipy import stats

import csoftmax
from csoftmax._cpu import bessel
from csoftmax.geometric import bessel_ratio, log_bessel_iv, vmf_cross_entropy_with_grad, vmf_logits


def exact_bessel(nu, x):
    """log I(nu, x) and I(nu + 1, x) / I(nu, x) in many digits."""
    n, x = mpmath.mpf(float(nu)), mpmath.mpf(float(x))
    first, second = (mpmath.besseli(n + i, x, maxterms=10**7) for i in (0, 1))
    return mpmath.log(first), second / first


def check_bessel(nu, x):
    found, ratio = log_bessel_iv(nu, x), bessel_ratio(nu, x)
    complement = bessel.evaluate(np.asarray(nu, float), np.asarray(x, float), False).complement
    with mpmath.workdps(50):
        for i in range(len(x)):
            log, exact = exact_bessel(nu[i], x[i])
            assert abs(found[i] - log) <= 2e-14 * max(1, abs(log)), (nu[i], x[i])
            assert abs(ratio[i] - exact) <= 1e-15 * exact, (nu[i], x[i])
            assert abs(complement[i] - (1 - exact)) <= 5e-13 * (1 - exact), (nu[i], x[i])


def draw_bessel(rng, count):
    """Orders and arguments over the whole range, half-integers, 0, and arguments at which log I is about 0."""
    nu = np.where(rng.random(count) < 0.4, rng.uniform(0, 60, count), rng.uniform(0, 2047, count))
    nu[::3] = np.round(nu[::3] * 2) / 2
    nu[: count // 10] = 0
    nu[-1] = 2047
    x = 10 ** rng.uniform(-6, 4, count)
    zero = np.arange(count) % 5 == 4
    x[zero] = nu[zero] * 0.66274 * (1 + 0.003 * rng.normal(size=zero.sum())) + 1e-3
    x[:3] = 1e-6, 1.0, 1e5
    return nu, x


def test_bessel_functions():
    check_bessel(*draw_bessel(np.random.default_rng(0), 80))


@pytest.mark.slow
def test_bessel_functions_at_many_places():
    nu, x = draw_bessel(np.random.default_rng(1), 1500)
    x[::10] *= 10
    check_bessel(nu, x)


def test_bessel_functions_beyond_the_range():
    """0, subnormal and huge arguments, tiny and huge orders."""
    for nu in (0.0, 1e-300, 0.5, 31.0, 32.0, 2047.0):
        assert log_bessel_iv(nu, 0.0) == (0 if nu == 0 else -np.inf)
        assert bessel_ratio(nu, 0.0) == 0
        assert log_bessel_iv(nu, np.inf) == np.inf
        assert bessel_ratio(nu, np.inf) == 1
        assert np.isnan(log_bessel_iv(nu, np.nan))
        assert np.isnan(bessel_ratio(nu, np.nan))
        with mpmath.workdps(60):
            for x in (5e-324, 1e-310, 1e-200, 1e-30):
                n, t = mpmath.mpf(nu), mpmath.mpf(x)
                log = n * mpmath.log(t / 2) - mpmath.loggamma(n + 1)
                assert abs(log_bessel_iv(nu, x) - log) <= 4e-15 * max(1, abs(log)), (nu, x)
                assert abs(bessel_ratio(nu, x) - t / (2 * n + 2)) <= 1e-15 * t / (2 * n + 2) + 5e-324, (nu, x)
            for x in (1e9, 1e40, 2.0**300, 1e91, 1e200, 1.7e308):
                n, t = mpmath.mpf(nu), mpmath.mpf(x)
                h = mpmath.sqrt(n * n + t * t)
                log = h + n * mpmath.log(t / (n + h)) - mpmath.log(2 * mpmath.pi * h) / 2 + 1 / (8 * h)
                assert abs(log_bessel_iv(nu, x) - log) <= 4e-16 * log, (nu, x)
                assert abs(bessel_ratio(nu, x) - (1 - (2 * n + 1) / (2 * t))) <= 4e-16 + (n / t) ** 2, (nu, x)
    large = np.array([1e6, 1e10, 1e15])
    assert np.isfinite(log_bessel_iv(large, large)).all()
    s = np.sqrt(2)
    np.testing.assert_allclose(log_bessel_iv(large, large), large * (s - np.arcsinh(1)), rtol=1e-4)
    np.testing.assert_allclose(bessel_ratio(large, large), 1 / (1 + s), rtol=1e-5)


def test_no_jumps():
    """Across orders at which the number of lifts changes, and arguments at which forms change."""
    for order in (0.0, 1.0, 5.0, 31.0, 32.0, 33.0):
        below, above = np.nextafter(order, -1), np.nextafter(order, 99)
        nu = np.array([max(0, below), order, above])
        for x in (1e-3, 1.0, 30.0, 1e3):
            np.testing.assert_allclose(log_bessel_iv(nu, x), log_bessel_iv(order, x), rtol=2e-14, atol=5e-15)
            np.testing.assert_allclose(bessel_ratio(nu, x), bessel_ratio(order, x), rtol=1e-14)
    at = np.array([bessel.FAR, np.nextafter(bessel.FAR, np.inf)])
    for nu in (0.0, 40.0, 2047.0):
        assert np.ptp(log_bessel_iv(nu, at)) <= 4e-16 * bessel.FAR
        assert np.ptp(bessel_ratio(nu, at)) <= 3e-16
    x = np.geomspace(0.1, 1e4, 4000)
    for nu in (0.0, 3.5, 40.0, 300.0):
        assert (np.diff(log_bessel_iv(nu, x)) > 0).all()
        assert (np.diff(bessel_ratio(nu, x)) > 0).all()
        step = 1e-4 * x
        slope = (log_bessel_iv(nu, x + step) - log_bessel_iv(nu, x - step)) / (2 * step)
        np.testing.assert_allclose(slope, bessel_ratio(nu, x) + nu / x, rtol=1e-6)


def test_bessel_arguments():
    assert log_bessel_iv([0, 1], [[1], [2], [3]]).shape == (3, 2)
    assert bessel_ratio(2, np.float32(1)).dtype == np.float32
    assert log_bessel_iv(np.float32(2), 1).dtype == np.float64
    assert log_bessel_iv(np.zeros((0, 3)), 1.0).shape == (0, 3)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        x = np.array([0.5, 3.0], dtype)
        np.testing.assert_array_equal(log_bessel_iv(1.5, x), log_bessel_iv(1.5, x.astype(float)).astype(dtype))
    for call, error, message in (
        (lambda: log_bessel_iv(-0.5, 1.0), ValueError, "nu must be from 0 to 1e.15, got -0.5"),
        (lambda: log_bessel_iv(np.nan, 1.0), ValueError, "nu must be from 0"),
        (lambda: log_bessel_iv(1e16, 1.0), ValueError, "nu must be from 0"),
        (lambda: bessel_ratio(1.0, [1.0, -2.0]), ValueError, "x must be at least 0, got -2.0"),
        (lambda: bessel_ratio(1.0, True), TypeError, "x has dtype bool"),
        (lambda: bessel_ratio("a", 1.0), TypeError, "nu"),
        (lambda: bessel_ratio([1.0, 2.0], [1.0, 2.0, 3.0]), ValueError, "do not broadcast"),
    ):
        with pytest.raises(error, match=message):
            call()


def exact_logit(x, mu, kappa):
    """The logarithm of the density by its definition, in many digits."""
    x, mu = ([mpmath.mpf(float(t)) for t in v] for v in (x, mu))
    half, kappa = mpmath.mpf(len(x)) / 2, mpmath.mpf(float(kappa))
    cosine = sum(a * b for a, b in zip(x, mu, strict=True)) / mpmath.sqrt(
        sum(a * a for a in x) * sum(b * b for b in mu)
    )
    if kappa == 0:
        return mpmath.loggamma(half) - mpmath.log(2) - half * mpmath.log(mpmath.pi)
    log = mpmath.log(mpmath.besseli(half - 1, kappa, maxterms=10**7))
    return (half - 1) * mpmath.log(kappa) - log - half * mpmath.log(2 * mpmath.pi) + kappa * cosine


def test_logits_in_many_digits():
    """Random points, points next to a centre and opposite to it, 1 to 300 dimensions, kappa from 0 to 1e5."""
    rng = np.random.default_rng(2)
    kappa = np.array([0.0, 1e-12, 0.1, 3.0, 50.0, 1e3, 1e5])
    with mpmath.workdps(50):
        for d in (1, 2, 3, 8, 300):
            mu = rng.normal(size=(len(kappa), d)) * rng.uniform(0.1, 9, (len(kappa), 1))
            x = np.stack([rng.normal(size=d), mu[4] + 1e-3 * rng.normal(size=d), 2 * mu[6], -mu[6], mu[6]])
            x[4] += 1e-8 * rng.normal(size=d)
            found = vmf_logits(x, mu, kappa)
            for row in range(len(x)):
                for k in range(len(kappa)):
                    exact = exact_logit(x[row], mu[k], kappa[k])
                    distance = np.linalg.norm(x[row] / np.linalg.norm(x[row]) - mu[k] / np.linalg.norm(mu[k]))
                    slack = 20 if NUMPY >= (2,) else 32  # the logarithm of NumPy 1.26 is further off
                    bound = 2**-52 * (abs(float(exact)) + slack + 8 * kappa[k] * distance)
                    assert abs(found[row, k] - exact) <= bound, (d, row, k)


def test_density_of_scipy():
    rng = np.random.default_rng(3)
    for d, kappa in ((2, 1.5), (3, 40.0), (20, 5.0)):
        mu, x = rng.normal(size=d), rng.normal(size=(5, d))
        mu /= np.linalg.norm(mu)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        expected = stats.vonmises_fisher(mu, kappa).logpdf(x)
        np.testing.assert_allclose(vmf_logits(x, mu[None], [kappa])[:, 0], expected, rtol=1e-12)


def differences(f, x, step=1e-6):
    grad = np.empty_like(x)
    for at in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[at] = step
        grad[at] = (f(x + e) - f(x - e)) / (2 * step)
    return grad


def test_gradients_by_differences():
    rng = np.random.default_rng(4)
    for d, classes in ((1, 3), (2, 4), (5, 3)):
        arrays = {
            "x": rng.normal(size=(5, d)),
            "mu": rng.normal(size=(classes, d)),
            "kappa": rng.uniform(0.5, 20, classes),
        }
        target = rng.integers(0, classes, 5)
        options = {
            "log_prior": np.log(rng.random(classes)),
            "weight": rng.random(classes),
            "sample_weight": [1, 2, 0, 1, 3],
        }
        for extra in (
            {"temperature": 2.0, "label_smoothing": 0.1},
            {"z_loss": 0.01, "reduction": "sum", "upstream": 2.0},
        ):

            def loss(name, value, extra=extra, options=options, arrays=arrays, target=target):
                given = {**arrays, name: value}
                return (
                    extra.get("upstream", 1)
                    * vmf_cross_entropy_with_grad(**given, target=target, **options, **extra).loss
                )

            result = vmf_cross_entropy_with_grad(**arrays, target=target, **options, **extra)
            for name in arrays:
                numeric = differences(lambda v, name=name, loss=loss: loss(name, v), arrays[name])
                np.testing.assert_allclose(getattr(result, f"grad_{name}"), numeric, rtol=1e-6, atol=2e-8)
            shared = vmf_cross_entropy_with_grad(arrays["x"], arrays["mu"], 3.0, target, **options, **extra)
            each = vmf_cross_entropy_with_grad(
                arrays["x"], arrays["mu"], np.full(classes, 3.0), target, **options, **extra
            )
            assert shared.loss == each.loss
            assert shared.grad_kappa.shape == ()
            assert shared.grad_kappa == pytest.approx(each.grad_kappa.sum(), rel=1e-12)


def test_gradient_of_large_concentrations():
    """cosine - A(kappa) relative to itself, next to centres, where both are close to 1."""
    rng = np.random.default_rng(7)
    for d, kappa in ((2, [1e4, 9e3]), (3, [1e5, 1e5]), (40, [3e4, 20.0])):
        mu = rng.normal(size=(1, d)) + 1e-2 * rng.normal(size=(2, d))
        x = mu.mean(axis=0, keepdims=True) + 1e-3 * rng.normal(size=(1, d))
        found = vmf_cross_entropy_with_grad(x, mu, kappa, [0]).grad_kappa
        g = csoftmax.cross_entropy_with_grad(vmf_logits(x, mu, kappa), [0]).grad[0]
        with mpmath.workdps(40):
            for k in range(2):
                a, b = ([mpmath.mpf(float(t)) for t in v] for v in (x[0], mu[k]))
                cosine = mpmath.fdot(a, b) / mpmath.sqrt(mpmath.fdot(a, a) * mpmath.fdot(b, b))
                exact = g[k] * (cosine - exact_bessel(d / 2 - 1, kappa[k])[1])
                assert abs(found[k] - exact) <= 1e-9 * abs(exact), (d, k)


def test_limits_and_finite_gradients():
    """kappa = 0 is uniform, and neither it nor a zero vector nor a huge kappa has an infinite gradient."""
    rng = np.random.default_rng(5)
    x, mu = rng.normal(size=(4, 6)), rng.normal(size=(3, 6))
    x[1], mu[2] = 0, 0
    np.testing.assert_allclose(vmf_logits(x, mu, 0.0), -np.log(np.pi**3), rtol=1e-15)
    for kappa in (0.0, 5e-324, 1e-200, 1e-9, 1.0, 1e6, 1e30, 1e150, [0.0, 1e-5, 1e8]):
        result = vmf_cross_entropy_with_grad(x, mu, kappa, [0, 1, 2, 0])
        assert all(np.isfinite(part).all() for part in result), kappa
        assert (result.grad_x[1] == 0).all()
        assert (result.grad_mu[2] == 0).all()
    at_zero = vmf_cross_entropy_with_grad(x, mu, [0.0, 0.0, 0.0], [0, 1, 2, 0])
    assert at_zero.loss == pytest.approx(np.log(3), rel=1e-15)
    assert (at_zero.grad_x == 0).all()
    near = vmf_cross_entropy_with_grad(x, mu, [1e-9] * 3, [0, 1, 2, 0])
    np.testing.assert_allclose(near.grad_kappa, at_zero.grad_kappa, atol=1e-9)
    for d in (2, 7, 4096):  # A(kappa) / kappa -> 1 / d
        assert bessel_ratio(d / 2 - 1, 1e-5) / 1e-5 == pytest.approx(1 / d, rel=1e-9)
    far = vmf_cross_entropy_with_grad(1e300 * x, 1e-300 * mu, 2.0, [0, 1, 2, 0])
    same = vmf_cross_entropy_with_grad(x, mu, 2.0, [0, 1, 2, 0])
    assert far.loss == pytest.approx(same.loss, rel=1e-14)
    np.testing.assert_allclose(far.grad_mu, 1e300 * same.grad_mu, rtol=1e-12, atol=0)
    # a loss has the digits of a difference of logits, whatever constant they share in many dimensions
    wide, centers = rng.normal(size=(1, 4096)), rng.normal(size=(2, 4096))
    loss = vmf_cross_entropy_with_grad(wide, centers, [1e-3, 2e-3], [0]).loss
    with mpmath.workdps(50):
        a, b = (exact_logit(wide[0], centers[k], (1e-3, 2e-3)[k]) for k in (0, 1))
        assert abs(loss - mpmath.log1p(mpmath.exp(b - a))) <= 4e-16


def test_rows_dtypes_and_layouts():
    rng = np.random.default_rng(6)
    x, mu, kappa = rng.normal(size=(2, 3, 4)), rng.normal(size=(5, 4)), rng.uniform(0, 9, 5)
    expected = vmf_logits(x, mu, kappa)
    assert expected.shape == (2, 3, 5)
    np.testing.assert_array_equal(vmf_logits(np.asfortranarray(x), mu[::-1][::-1], list(kappa)), expected)
    prior = np.log([0.1, 0.2, 0, 0.3, 0.4], where=np.arange(5) != 2, out=np.full(5, -np.inf))
    with_prior = vmf_logits(x, mu, kappa, log_prior=prior)
    np.testing.assert_allclose(with_prior, expected + prior, rtol=1e-13)
    target = np.zeros((2, 3), int)
    assert np.isfinite(vmf_cross_entropy_with_grad(x, mu, kappa, target, log_prior=prior).grad_mu).all()
    none = vmf_cross_entropy_with_grad(x, mu, kappa, target, reduction="none")
    np.testing.assert_allclose(
        none.loss, csoftmax.cross_entropy(expected, target, reduction="none"), rtol=1e-13, atol=1e-14
    )
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        low, centers = x.astype(dtype), mu.astype(dtype)
        found = vmf_logits(low, centers, kappa)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, vmf_logits(low.astype(float), centers.astype(float), kappa).astype(dtype))
        result = vmf_cross_entropy_with_grad(low, centers, kappa, target)
        assert [part.dtype for part in result] == [np.float32, dtype, dtype, dtype]
    bad = x.copy()
    bad[0, 1] = np.nan
    assert np.isnan(vmf_logits(bad, mu, kappa)[0, 1]).all()
    ignored = target.copy()
    ignored[0, 1] = -100
    result = vmf_cross_entropy_with_grad(bad, mu, kappa, ignored)
    others = vmf_cross_entropy_with_grad(x, mu, kappa, ignored)
    assert result.loss == others.loss
    for a, b in zip(result, others, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-16)
    for shape in ((0, 4), (2, 0, 4)):
        assert vmf_logits(np.zeros(shape), mu, kappa).shape == (*shape[:-1], 5)
        empty = vmf_cross_entropy_with_grad(np.zeros(shape), mu, kappa, np.zeros(shape[:-1], int))
        assert empty.grad_x.shape == shape
        assert (empty.grad_kappa == 0).all()
    assert vmf_logits(x[0, 0], mu, kappa).shape == (5,)
    assert vmf_logits(x, mu[:0], []).shape == (2, 3, 0)
    assert vmf_logits([[1, 0]], [[1, 0]], [2]).dtype == np.float64


def test_bad_arguments():
    x, mu = np.zeros((2, 3)), np.ones((4, 3))
    for call, error, message in (
        (lambda: vmf_logits(x, mu, -1.0), ValueError, "kappa must be at least 0 and finite, got -1.0"),
        (lambda: vmf_logits(x, mu, [1, 2, np.nan, 1]), ValueError, "kappa must be at least 0 and finite, got nan"),
        (lambda: vmf_logits(x, mu, np.inf), ValueError, "kappa must be at least 0"),
        (lambda: vmf_logits(x, mu, [1.0, 2.0]), ValueError, "kappa has shape"),
        (lambda: vmf_logits(x, mu, "a"), TypeError, "kappa has dtype <U1; allowed are float16"),
        (lambda: vmf_logits(x, mu, True), TypeError, "kappa has dtype bool; allowed are float16"),
        (lambda: vmf_logits(x, mu, 1.0, log_prior=[0.0]), ValueError, "log_prior has shape"),
        (lambda: vmf_logits(x, mu, 1.0, log_prior=[0, 0, np.inf, 0]), ValueError, "log_prior must be below infinity"),
        (lambda: vmf_logits(x, mu[:, :2], 1.0), ValueError, "allowed are"),
        (lambda: vmf_logits(x[:, :0], mu[:, :0], 1.0), ValueError, "D at least 1"),
        (lambda: vmf_logits(x, mu.astype("f4"), 1.0), TypeError, "mu has dtype float32"),
        (lambda: vmf_logits(x > 0, mu, 1.0), TypeError, "x has dtype bool"),
        (lambda: vmf_cross_entropy_with_grad(x, mu, 1.0, [0, 9]), IndexError, r"target\[1\] is 9"),
        (lambda: vmf_cross_entropy_with_grad(x, mu, 1.0, [0]), ValueError, "target has shape"),
        (lambda: vmf_cross_entropy_with_grad(x, mu, 1.0, [0, 1], z_loss="a"), TypeError, "z_loss"),
        (lambda: vmf_cross_entropy_with_grad(x, mu, 1.0, [0, 1], num_threads=0), ValueError, "num_threads"),
        (lambda: vmf_cross_entropy_with_grad(x, mu, 1.0, [0, 1], device="gpu"), ValueError, "device"),
    ):
        with pytest.raises(error, match=message):
            call()
