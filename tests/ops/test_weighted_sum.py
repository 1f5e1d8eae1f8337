"""logsumexp(b=, return_sign=): against mpmath, SciPy's conventions, special values, options."""

import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits, looped

import csoftmax


@looped("n", (1, 2, 5, 40))
def test_sums_of_any_sign_are_exact(n):
    rng = np.random.default_rng(n)
    for kind in range(8):
        x = rng.normal(size=(3, n)) * (1, 10, 50)[kind % 3]
        b = rng.normal(size=(3, n)) * 10.0 ** rng.integers(-20, 20, size=(3, n))
        if kind % 2:
            b = abs(b)
        if kind == 6:  # next to 0: the tail keeps its digits
            x, b = np.where(np.arange(n) == 0, 0, -abs(x) - 30), np.ones((3, n))
        if kind == 7:
            b[:, n // 2] = 0
        for dtype in (np.float64, np.float32):
            given = x.astype(dtype)
            value, sign = csoftmax.logsumexp(given, b=b, return_sign=True)
            alone = csoftmax.logsumexp(given, b=b)
            assert_same_bits(alone, np.where(sign < 0, np.array(np.nan, dtype), value))
            for i in range(3):
                with mpmath.workprec(400):
                    terms = [mpmath.mpf(float(w)) * mpmath.exp(float(v)) for v, w in zip(given[i], b[i], strict=True)]
                    total, size = mpmath.fsum(terms), mpmath.fsum(abs(t) for t in terms)
                    assert sign[i] == mpmath.sign(total)
                    if total == 0:
                        assert value[i] == -np.inf
                    elif size < 100 * abs(total):
                        scale = float(max(abs(mpmath.log(abs(total))), abs(mpmath.log(size))))
                        error = abs(float(value[i]) - mpmath.log(abs(total))) / float(np.spacing(dtype(scale)))
                        assert error <= 4


def test_special_values():
    def both(x, b):
        return tuple(float(part) for part in csoftmax.logsumexp(x, b=b, return_sign=True))

    inf, nan = np.inf, np.nan
    assert both([inf, 2.0], [1, -1]) == (inf, 1)
    assert both([inf, 2.0], [-1, 1]) == (inf, -1)
    assert both([1.0, 2.0], [0, 0]) == (-inf, 0)
    assert both([1.0, 1.0], [1, -1]) == (-inf, 0)
    assert both([-inf, -inf], [1, 2]) == (-inf, 0)
    assert both([nan, 0.0, inf], [0, 2, 0]) == (np.log(2), 1)
    assert both(np.zeros(0), 1.0) == (-inf, 0)
    for x, b in (([nan, 1], [1, 1]), ([inf, inf], [1, -1]), ([1, 2], [inf, 1]), ([1, 2], [nan, 1])):
        assert np.isnan(both(x, b)).all()
    assert both([1e308, 1.0], [-1, 1e300]) == (1e308, -1)
    assert both([800.0, 0.0], [1e-320, 1e-300])[1] == 1


@pytest.mark.parametrize(
    ("x", "b", "temperature", "expected"),
    [
        ([1e308, -1e308], [1, 1], 1.0, (1e308, 1)),
        ([-1e308, 1e308], [1, -1], 1.0, (1e308, -1)),
        ([0.0, np.finfo(float).min], [1, 1], 0.5, (0, 1)),
        ([3e38, -3e38], [1, 1], 1e-300, (np.inf, 1)),
        ([2e38, 3e38], [1, -1], 1e-300, (np.inf, -1)),
        ([-2e38, -3e38], [-1, 1], 1e-300, (-np.inf, -1)),
        ([3e38, 3e38], [1, -1], 1e-300, (-np.inf, 0)),
        ([1e20, 1e20], [1e-200, 1e200], 1.0, (1e20, 1)),
        ([8e307, 8e307], [5e-324, -2.5], 1.0, (8e307, -1)),
    ],
)
def test_quotients_beyond_the_range_of_double(x, b, temperature, expected):
    value, sign = csoftmax.logsumexp(x, b=b, temperature=temperature, return_sign=True)
    assert (float(value), float(sign)) == expected


@looped("seed", range(4))
def test_weights_of_any_magnitude(seed):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(size=(60, 4)) * 700, [[0, -746, -1430, 0]]])
    b = rng.choice([-1, 1], x.shape) * 10.0 ** rng.uniform(-322, 308, x.shape)
    x[:30], b[-1] = x[:30] * 0.01 + 1e17, [1e-320, 1e-300, 1e300, 0]
    for row, weights, value, sign in zip(x, b, *csoftmax.logsumexp(x, b=b, return_sign=True), strict=True):
        with mpmath.workprec(3000):
            terms = [
                mpmath.mpf(float(w)) * mpmath.exp(mpmath.mpf(float(v)) - float(row.max()))
                for v, w in zip(row, weights, strict=True)
            ]
            total = mpmath.fsum(terms)
            truth = mpmath.log(abs(total)) + float(row.max())
            assert sign == mpmath.sign(total)
            assert abs(float(value) - truth) <= 2 * float(np.spacing(abs(float(truth))))


def test_options():
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    b = np.random.default_rng(1).normal(size=(4, 1))
    mask = x > -0.5
    t = np.array([0.5, 1.0, 2.0])[:, None, None]
    with np.errstate(invalid="ignore"):
        expected = np.log((np.where(mask, b, 0) * np.exp(x / t)).sum((1, 2)) + np.exp(0.25 / t[:, 0, 0]))
    got = csoftmax.logsumexp(x, (1, 2), b=b, where=mask, temperature=t, sink=0.25)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    out = np.empty((3, 1, 1))
    value, sign = csoftmax.logsumexp(x, (1, 2), b=b, keepdims=True, return_sign=True, out=out)
    assert value is out
    assert sign.shape == (3, 1, 1)
    assert_same_bits(csoftmax.logsumexp(x, b=b, num_threads=1), csoftmax.logsumexp(x, b=b, num_threads=2))
    assert csoftmax.logsumexp(x, return_sign=True)[1].min() == 1
    assert csoftmax.logsumexp(np.float32([1, 2]), b=[1, 2]).dtype == np.float32
    is_kept = np.random.default_rng(5).random(x.shape) < 0.5  # SciPy takes a mask, too
    assert_same_bits(csoftmax.logsumexp(x, b=is_kept), csoftmax.logsumexp(x, b=is_kept.astype(float)))
    np.testing.assert_allclose(csoftmax.logsumexp(2.0, b=3.0), 2 + np.log(3), rtol=1e-15)


def test_what_is_refused():
    x = np.zeros((3, 4))
    with pytest.raises(ValueError, match=r"b has shape \(3,\), which does not broadcast against \(3, 4\)"):
        csoftmax.logsumexp(x, b=np.ones(3))
    with pytest.raises(TypeError, match="b must hold real numbers"):
        csoftmax.logsumexp(x, b="a")
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        csoftmax.logsumexp(x, b=1.0, temperature=0)
    with pytest.raises(TypeError, match="return_sign must be a bool"):
        csoftmax.logsumexp(x, return_sign=1)
    with pytest.raises(ValueError, match="out has shape"):
        csoftmax.logsumexp(x, b=1.0, out=np.empty(4))
    with pytest.raises(csoftmax.DeviceError):
        csoftmax.logsumexp(x, b=1.0, device="cuda")
