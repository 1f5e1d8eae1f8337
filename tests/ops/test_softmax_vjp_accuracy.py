"""The gradients are within a few ULP of the exact value of their formula for the *given* y and dy.

softmax_vjp: y (dy - s) / T, s = sum dy y.  s is a float64 (float32 input) or twice-float64 sum held as a pair of
the compute type, so the error is 4 ULP of dx beyond what the rounding of that pair is worth where dy - s cancels:
2^-46 (float64: 2^-98) of y sum |dy y| / T.  Largest found in 10 million elements: 2.4 at T = 1, 3.6 at others.
log_softmax_vjp: (dy - e^y sum dy) / T, in ULP of the larger of the terms that are subtracted (see
src_c/kernel/vjp.inc.h); largest found 4.3 at T = 1, 5.3 at others, where dividing by T rounds too.  The gradient at
a near-certain class keeps relative accuracy.
"""

from fractions import Fraction

import numpy as np
import oracle
import pytest

import csoftmax
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits

bulk = pytest.mark.skipif(not oracle.bulk_is_precise, reason="longdouble is float64 here")
LOG_LIMIT = (4.5, 5.5)  # T = 1, other T
LIMITS = {"float32": 4, "float64": 4, "float16": 0.52, "bfloat16": 0.52}


def rows(dtype, k, n, sigma, kind, seed=0):
    """dy of a kind, and logits of scale sigma."""
    x = logits((n, k), dtype, seed, sigma)
    dy = logits((n, k), dtype, seed + 1, 1.0)
    if kind == "one-hot":
        dy = np.zeros_like(x)
        dy[np.arange(n), np.arange(n) % k] = -1
    elif kind == "shifted":  # sum(dy y) is nearly dy
        dy = (dy.astype(np.float64) * 1e-3 + 7).astype(dtype_of(dtype))
    elif kind == "tiny":
        dy = (dy.astype(np.float64) * (1e-4 if dtype == "float16" else 1e-30)).astype(dtype_of(dtype))
    return dy, x


@bulk
@pytest.mark.parametrize("kind", ["normal", "one-hot", "shifted", "tiny"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_softmax_vjp(dtype, kind):
    for k in (1, 2, 3, 15, 16, 17, 65, 129, 1000, 4097, 20000):
        for sigma in (0.1, 3, 30):
            for t in (1.0, 0.37, 25.0):
                dy, x = rows(dtype, k, max(1, 3000 // k), sigma, kind, seed=k)
                y = csoftmax.softmax(x, temperature=t)
                got = oracle.wide(csoftmax.softmax_vjp(dy, y, temperature=t))
                reference = oracle.softmax_vjp(dy, y, t)
                slack = oracle.sum_slack(dy, y, dtype, t)
                error = np.maximum(np.abs(got - reference) - slack, 0) / oracle.spacing(reference, dtype)
                assert float(error.max()) <= LIMITS[dtype], f"K={k} sigma={sigma} T={t}: {float(error.max())} ULP"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("t", [1.0, 3.3, 25.0, 1e9])
def test_subnormal_probabilities(dtype, t):
    """Of a y that is subnormal no digit is lost on the way to a dx that is not, though y / T would have few."""
    dtype = np.dtype(dtype)
    tiny = np.finfo(dtype).smallest_subnormal
    for steps in (1, 3, 1000, 43210):
        y, dy = np.array([steps * tiny, 1], dtype), np.array([1e30, 0], dtype)
        exact = Fraction(float(y[0])) * Fraction(float(dy[0])) / Fraction(t)
        assert abs(Fraction(float(csoftmax.softmax_vjp(dy, y, temperature=t)[0])) / exact - 1) < 4 * np.finfo(dtype).eps


@pytest.mark.parametrize("kind", ["normal", "one-hot", "shifted", "tiny"])
def test_softmax_vjp_float64(kind):
    """Exact rational arithmetic: products of two float64 do not fit longdouble."""
    for k, sigma, t in ((1, 1, 1.0), (2, 3, 1.0), (17, 30, 1.0), (65, 3, 0.37), (300, 1, 1.0), (4097, 10, 25.0)):
        dy, x = rows("float64", k, 1, sigma, kind, seed=k)
        y = csoftmax.softmax(x, temperature=t)
        got = csoftmax.softmax_vjp(dy, y, temperature=t)[0]
        exact = oracle.exact("softmax_vjp", dy[0], y[0], temperature=t)
        total = sum(abs(Fraction(float(a)) * Fraction(float(b))) for a, b in zip(dy[0], y[0], strict=True))
        worst = 0.0
        for value, truth, p in zip(got, exact, y[0], strict=True):
            slack = Fraction(float(p)) * total / Fraction(t) / 2**98
            error = max(abs(Fraction(float(value)) - truth) - slack, 0)
            ulp = Fraction(float(oracle.spacing(np.longdouble(float(truth)), "float64")))
            worst = max(worst, float(error / ulp))
        assert worst <= 4, f"K={k} sigma={sigma} T={t}: {worst} ULP"


@bulk
@pytest.mark.parametrize("kind", ["normal", "one-hot", "shifted", "tiny"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_log_softmax_vjp(dtype, kind):
    for k in (1, 2, 3, 15, 16, 17, 65, 129, 1000, 4097, 20000):
        for sigma in (0.1, 3, 30):
            for t in (1.0, 0.37, 25.0):
                dy, x = rows(dtype, k, max(1, 3000 // k), sigma, kind, seed=k)
                y = csoftmax.log_softmax(x, temperature=t)
                got = csoftmax.log_softmax_vjp(dy, y, temperature=t)
                s = oracle.wide(dy).sum(axis=-1, keepdims=True)
                scale = oracle.log_softmax_vjp_scale(dy, y, s, t)
                # half types: half an ULP of the result on top of the float32 arithmetic
                reference = oracle.log_softmax_vjp(dy, y, t)
                if dtype == "float32":
                    error = oracle.ulps(got, reference, dtype, scale)
                    assert error <= LOG_LIMIT[t != 1], f"K={k} sigma={sigma} T={t}: {error} ULP"
                else:
                    finite = np.abs(reference) < 60000  # float16 overflows
                    error = np.where(finite, np.abs(np.where(finite, oracle.wide(got), 0) - reference), 0)
                    allowed = 0.51 * oracle.spacing(reference, dtype) + 4 * oracle.spacing(scale, "float32")
                    assert np.all(error <= allowed), f"K={k} sigma={sigma} T={t}"


@pytest.mark.parametrize("kind", ["normal", "one-hot", "shifted", "tiny"])
def test_log_softmax_vjp_float64(kind):
    for k, sigma, t in ((1, 1, 1.0), (2, 3, 1.0), (17, 30, 1.0), (65, 3, 0.37), (300, 1, 25.0)):
        dy, x = rows("float64", k, 1, sigma, kind, seed=k)
        y = csoftmax.log_softmax(x, temperature=t)
        got = csoftmax.log_softmax_vjp(dy, y, temperature=t)[0]
        exact = oracle.exact("log_softmax_vjp", dy[0], y[0], temperature=t)
        s = float(sum(Fraction(float(v)) for v in dy[0]))
        scale = oracle.log_softmax_vjp_scale(dy[0], y[0], np.longdouble(s), t)
        error = oracle.exact_ulps(got, exact, "float64", scale)
        assert error <= LOG_LIMIT[t != 1], f"K={k} sigma={sigma} T={t}: {error} ULP"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradient_of_a_near_certain_class_keeps_its_digits(dtype):
    """At logits [17.5, 0, 0] the gradient of the top class is -5.02e-8; others return exactly 0."""
    for gap in (0.5, 3, 10, 17.5, 30, 60, 80, *((150, 300, 600) if dtype == "float64" else ())):
        for rest in (1, 2, 9):
            x = np.zeros(rest + 1, dtype)
            x[0] = gap
            y = csoftmax.log_softmax(x)
            dy = np.zeros_like(x)
            dy[0] = -1
            got = csoftmax.log_softmax_vjp(dy, y)
            exact = oracle.exact("log_softmax_vjp", dy, y)
            error = oracle.exact_ulps(got, exact, dtype)
            assert error <= 4, f"gap {gap}, {rest} others: {error} ULP, {got[:2]}"
            # and so of the true gradient (-(1 - p), p): y itself is right to 4 ULP
            truth = oracle.exact("softmax", x)
            for value, expected in zip(got, [-sum(truth[1:]), *truth[1:]], strict=True):
                assert abs(float(value) / float(expected) - 1) <= 16 * np.finfo(dtype).eps * max(gap, 1)


def test_both_gradients_against_a_difference_quotient():
    """The formulas themselves, without the oracle: complex-step is not available, so a central difference."""
    x = logits((5, 7), "float64", sigma=1.5)
    dy = logits((5, 7), "float64", 3, 1.0)
    for t in (1.0, 0.7, 4.0):
        for forward, vjp in (
            (csoftmax.softmax, csoftmax.softmax_vjp),
            (csoftmax.log_softmax, csoftmax.log_softmax_vjp),
        ):
            got = vjp(dy, forward(x, temperature=t), temperature=t)
            h = 1e-5
            for i in range(7):
                step = np.zeros(7)
                step[i] = h
                slope = (forward(x + step, temperature=t) - forward(x - step, temperature=t)) / (2 * h)
                assert np.max(np.abs((slope * dy).sum(axis=-1) - got[:, i])) < 1e-8


@pytest.mark.parametrize("temperature", [1e-30, 1e30, 1e-150, 1e200, 1e-300])
def test_extreme_temperatures(temperature):
    dy, y = logits((4, 33), "float64", 1, 1.0), csoftmax.softmax(logits((4, 33), "float64", 2, 2.0))
    log_y = np.log(y)
    for name, second in (("softmax_vjp", y), ("log_softmax_vjp", log_y)):
        dy_used = dy * (1e-8 if temperature < 1 else 1)
        got = getattr(csoftmax, name)(dy_used, second, temperature=temperature)
        for r in range(4):
            exact = oracle.exact(name, dy_used[r], second[r], temperature=temperature)
            s = float(sum(Fraction(float(v)) for v in dy_used[r]))
            scale = None
            if name == "log_softmax_vjp":
                scale = oracle.log_softmax_vjp_scale(dy_used[r], second[r], np.longdouble(s), temperature)
            error = oracle.exact_ulps(got[r], exact, "float64", scale)
            assert error <= 4.5, f"{name} row {r}: {error} ULP"
