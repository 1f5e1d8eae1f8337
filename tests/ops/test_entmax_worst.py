"""The worst rows of alpha-entmax: large alpha, numbers next to the threshold, ties at every depth, and a search."""

import math

import mpmath
import numpy as np
import pytest
from oracles.entmax import exact, exact_loss, exact_vjp, numbers, ulps

import csoftmax
from csoftmax._spec.formats import dtype_of

ALPHAS = (1 + 2.0**-52, 1.000001, 1.02, 1.25, 1.4, 1.5, 1.75, 2.0, 2.25, 3.0, 8.0, 15.0, 30.0, 100.0, 1e3, 1e4)
TAU_ERROR = 2.0**-90  # of float64, and of float32 next to the threshold


def smallest(dtype):
    """Return the smallest normal number of the dtype, below which no ULP is promised of a result that is 0."""
    return {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}[dtype]


def errors_and_doubts(x, alpha, dtype):
    """Return the largest error in ULP, beyond what a change of tau by TAU_ERROR explains, and the largest of these."""
    worst = doubts = 0.0
    p = exact(x, alpha)
    least = min(v for v in p if v > 0)
    for got, expected in zip(csoftmax.entmax(x, alpha), p, strict=True):
        if expected < smallest(dtype):
            assert got <= 2 * smallest(dtype)
            continue
        doubt = 0.0
        if alpha < 2:  # dp = p^(2 - alpha) dtau / (alpha - 1)
            doubt = float(expected ** (2 - mpmath.mpf(alpha)) / (mpmath.mpf(alpha) - 1)) * TAU_ERROR
        elif expected > 0:
            doubt = float((least / expected) ** (mpmath.mpf(alpha) - 2)) * TAU_ERROR
        assert expected > 0 or got <= TAU_ERROR ** (1 / max(1, alpha - 1)), (x, alpha, got)
        if expected > 0:
            place = float(np.spacing(np.array(float(expected)).astype(dtype_of(dtype))).astype(np.float64))
            worst = max(worst, ulps(got, expected, dtype) - doubt / place)
            doubts = max(doubts, doubt / place)
    return worst, doubts


def error_of_rows(x, alpha, dtype):
    """Return the largest error in ULP of entmax(x), beyond what a change of tau by TAU_ERROR explains."""
    return errors_and_doubts(x, alpha, dtype)[0]


def error_of_loss(x, target, alpha, dtype):
    """Return the error of the loss in ULP; one row, with a label or with soft labels."""
    q = np.eye(len(x))[target] if np.ndim(target) == 0 else target
    expected = exact_loss(x, q, alpha)
    got = csoftmax.entmax_loss(x, target, alpha)
    if expected < 1e-80:  # the reference itself has 600 bits
        return 0.0 if float(got) < 1e-38 else np.inf
    return ulps(got, expected, got.dtype.name)


def error_of_gradient(x, target, alpha, dtype):
    q = np.eye(len(x))[target] if np.ndim(target) == 0 else target
    worst = 0.0
    for got, p, qj in zip(csoftmax.entmax_loss_with_grad(x, target, alpha).grad, exact(x, alpha), q, strict=True):
        with mpmath.workprec(600):
            expected = p - mpmath.mpf(float(qj))
        if abs(expected) > smallest(dtype):
            worst = max(worst, ulps(got, expected, dtype))
    return worst


def error_of_vjp(dy, y, alpha, dtype):
    """Return the error of the gradient in ULP, beyond 2^-51 s (|g| + mean |g|), the effect of rounding the weights."""
    top = float(np.finfo(np.float32 if dtype == "bfloat16" else dtype_of(dtype)).max)
    worst = 0.0
    with mpmath.workprec(600):
        power = 2 - mpmath.mpf(alpha)
        s = [v**power if v > 0 else mpmath.mpf(0) for v in numbers(y)]
        at = max(range(len(s)), key=lambda i: s[i])
        g = [abs(mpmath.mpf(float(v)) - mpmath.mpf(float(dy[at]))) for v in dy]
        spread = sum(a * b for a, b in zip(s, g, strict=True)) / sum(s)
    for i, (got, expected) in enumerate(zip(csoftmax.entmax_vjp(dy, y, alpha), exact_vjp(dy, y, alpha), strict=True)):
        if abs(expected) > top:
            assert np.isinf(float(got)), (y, dy, got)
            assert np.sign(float(got)) == mpmath.sign(expected)
        elif abs(expected) > smallest(dtype):
            place = float(np.spacing(np.array(abs(float(expected))).astype(dtype_of(dtype))).astype(np.float64))
            doubt = s[i] * (g[i] + spread) * mpmath.mpf(2) ** -51
            worst = max(worst, float((abs(mpmath.mpf(float(got)) - expected) - doubt) / place))
        else:
            assert abs(float(got)) <= 2 * smallest(dtype), (y, dy, got)
    return worst


def kinds(dtype, seed):
    """Yield rows that are flat, two-valued, geometric, tied at every depth, led by every gap, and partly -inf."""
    rng, kind = np.random.default_rng(seed), dtype_of(dtype)
    for n in (1, 2, 3, 9):
        yield np.full(n, rng.standard_normal()).astype(kind)
        for gap in (1e-30, 1e-9, 1e-4, 0.02, 0.3, 0.999, 1, 1.5, 2, 10):
            ahead = np.zeros(n)
            ahead[n // 2] = gap
            yield ahead.astype(kind)
            yield np.where(rng.random(n) < 0.5, 0, -gap).astype(kind)
        for ratio in (0.5, 0.9, 1e-3):
            yield (rng.choice([0.1, 1, 10]) * ratio ** np.arange(n)).astype(kind)
        yield (np.arange(n) // 3 * rng.choice([0.01, 0.1, 0.5])).astype(kind)
        yield np.where(np.arange(n) % 2, -np.inf, rng.standard_normal(n) * 0.1).astype(kind)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_kind_of_row(alpha, dtype):
    """0.51 ULP of every probability, and a sum of 1 within their rounding."""
    for i, x in enumerate(kinds(dtype, 1)):
        if (i + int(alpha * 7)) % 4 == 0:
            assert error_of_rows(x, alpha, dtype) <= 0.51, x
            y = csoftmax.entmax(x, alpha)
            rounding = np.spacing(y).astype(np.float64).sum()
            assert abs(y.astype(np.float64).sum() - 1) <= 0.51 * rounding + 2.0**-52


@pytest.mark.parametrize("alpha", ALPHAS)
def test_losses_of_every_kind_of_row(alpha, dtype):
    """Errors of the loss and its gradient, for labels and soft labels: 0.51 ULP; float64 losses near alpha = 1: 1."""
    rng = np.random.default_rng(2)
    for i, x in enumerate(kinds(dtype, 2)):
        if (i + int(alpha * 7)) % 12 or not np.isfinite(x.astype(float)).all():
            continue
        soft = rng.random(len(x)) * (rng.random(len(x)) < 0.6) + np.eye(len(x))[0] / 10
        soft = (soft / soft.sum()).astype(np.float64 if dtype == "float64" else np.float32)
        for target in (int(rng.integers(len(x))), int(x.astype(float).argmax()), soft):
            assert error_of_loss(x, target, alpha, dtype) <= (1 if dtype == "float64" else 0.51), (x, target)
            assert error_of_gradient(x, target, alpha, dtype) <= 0.51, (x, target)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_gradients_of_every_kind_of_row(alpha, dtype):
    """float64: 4 ULP beyond the effect of rounding the weights."""
    rng = np.random.default_rng(3)
    for i, x in enumerate(kinds(dtype, 3)):
        if (i + int(alpha * 7)) % 4:
            continue
        dy = rng.standard_normal(len(x)).astype(x.dtype)
        if i % 3 == 0:  # equal where the weights are largest
            dy[:] = np.where(np.arange(len(x)) == i % len(x), 1, 2)
        y = csoftmax.entmax(x, alpha)
        if alpha == 2 or (alpha == 1.5 and dtype == "float64"):
            continue  # tests/ops/test_entmax.py
        assert error_of_vjp(dy, y, alpha, dtype) <= (4 if dtype == "float64" else 0.51), (x, dy)


def test_probabilities_that_no_threshold_gives():
    """At alpha = 30 a probability below 0.08 needs a c that a pair of doubles does not hold."""
    x = np.array([0.14789276, -0.0061775083, 0.18169083], np.float32)
    y = csoftmax.entmax(x, 30.0)
    assert y[1] == 0
    assert np.allclose(y, [0.00069134, 0, 0.99930866], rtol=1e-5, atol=0)
    assert np.isclose(csoftmax.entmax_loss(x[None], [2], 30.0), 2.359e-07, rtol=1e-3)
    rows = np.random.default_rng(0).normal(size=(5000, 8)) * 0.02
    for alpha in (10.0, 12.0, 15.0, 20.0, 30.0, 50.0, 100.0, 1e3, 1e4):
        for dtype, bound in (("float64", 1e-15), ("float32", 3e-7)):
            y = csoftmax.entmax(rows.astype(dtype), alpha)
            assert np.all(np.abs(y.astype(np.float64).sum(1) - 1) <= bound), (alpha, dtype)
            grad = csoftmax.entmax_loss_with_grad(rows.astype(dtype), np.zeros(5000, int), alpha, reduction="sum").grad
            assert np.array_equal(grad[:, 1:], y[:, 1:])


WORST = (
    # two-valued rows and rows with a number next to the threshold: float32 was 0 or off by thousands of ULP
    ("float32", 2.0, [1, 1e-30]),
    ("float32", 1.5, [2, 1e-20]),
    ("float64", 2.0, [1, 1e-30, 1e-20]),
    ("float64", 1.5, [2, 1e-30, 1e-20]),
    ("float32", 1.4, [2.5, 1e-15]),
    ("float64", 1.4, [2.5, 1e-15]),
    ("float32", 2.0, [0.5, 0.5 + 2.0**-23, 2.0**-24 + 2.0**-41]),
    ("float32", 1.25, [0.125, -3.875, -3.8749998]),
    ("float32", 12.0, [0, -0.0909091, -0.0909]),
    ("float64", 12.0, [0, -1 / 11, -0.0909]),
    # the filter lost the smaller number, whose probability is 9.3e-18
    ("float64", 2.5, [-0.23920108402107723, 0.4274655826455894]),
    ("float64", 1.2, [0, -1e-17, -5, -4.999999999999999]),
)


@pytest.mark.parametrize(("dtype", "alpha", "row"), WORST)
def test_the_worst_rows(dtype, alpha, row):
    x = np.array(row, dtype_of(dtype))
    assert error_of_rows(x, alpha, dtype) <= 0.51
    for label in range(len(row)):
        assert error_of_loss(x, label, alpha, dtype) <= 1


@pytest.mark.parametrize("alpha", [1.6, 1.79, 1.8, 1.93])
def test_many_ties_next_to_the_threshold(alpha):
    """Together they weigh though each is tiny: the sum of y rises steeply there, and Newton's steps are short."""
    for leaders, ties in ((1, 300), (2, 300), (3, 120)):
        threshold = -(leaders ** (1 - alpha)) / (alpha - 1)  # of rows in which the leaders alone have probability
        for nudge in (0, 1e-16, -1e-16, 1e-13, -1e-13, -4e-10):
            x = np.array([0.0] * leaders + [threshold * (1 + nudge)] * ties)
            y, (top, low) = csoftmax.entmax(x, alpha), exact_of_two_values(x, leaders, ties, alpha)
            assert ulps(y[0], top, "float64") <= 0.51
            assert abs(y[-1] - low) <= TAU_ERROR + 1e-15 * float(low)
            assert abs(math.fsum(y) - 1) <= 5e-16


def exact_of_two_values(x, leaders, ties, alpha):
    """Return the two probabilities of a row: bisection on the larger one."""
    with mpmath.workprec(400):
        a = mpmath.mpf(float(alpha)) - 1
        distance = a * -mpmath.mpf(float(x[-1]))

        def other(top):
            u = top**a - distance
            return u ** (1 / a) if u > 0 else mpmath.mpf(0)

        low, high = mpmath.mpf(0), mpmath.mpf(1) / leaders
        for _ in range(380):
            top = (low + high) / 2
            if leaders * top + ties * other(top) > 1:
                high = top
            else:
                low = top
        return high, other(high)


def test_losses_of_flat_rows():
    """(1 - K^(1 - alpha)) / (alpha (alpha - 1)): sums of K equal terms were up to 18 ULP off in float64."""
    for alpha in (1 + 2.0**-52, 1.0001, 1.25, 1.5, 2.0, 3.0, 30.0):
        for k in (2, 3, 10, 1000, 4097, 100_000):
            with mpmath.workprec(300):
                a = mpmath.mpf(alpha)
                expected = (1 - mpmath.mpf(k) ** (1 - a)) / (a * (a - 1))
            for value in (0.0, 1.7, -300.3):
                loss, grad = csoftmax.entmax_loss_with_grad(np.full(k, value), k // 2, alpha)
                assert ulps(loss, expected, "float64") <= 0.6, (alpha, k)
                assert ulps(grad[0], mpmath.mpf(1) / k, "float64") <= 0.51


def test_long_rows():
    """A million numbers: flat, nearly flat and tied."""
    rng = np.random.default_rng(0)
    for alpha in (1.5, 2.0, 3.0, 30.0, 1e4):
        for x in (np.zeros(10**6), rng.standard_normal(10**6) * 1e-5, np.round(rng.standard_normal(10**6))):
            for dtype in ("float32", "float64"):
                y = csoftmax.entmax(x.astype(dtype), alpha).astype(np.float64)
                rounding = np.spacing(y[y > 0].astype(dtype)).astype(np.float64).sum()
                assert abs(y.sum() - 1) <= 0.51 * rounding + 1e-12


def test_huge_alpha():
    """The limit is uniform over the maxima, and the rest of a row only counts where it lies within 1 / alpha."""
    for alpha in (1e5, 1e10, 1e16, 1e300):
        x = np.array([1.0, 1.0, 1.0 - 2.0**-30, 0.0, -np.inf])
        y = csoftmax.entmax(x, alpha)
        assert error_of_rows(x, alpha, "float64") <= 0.51
        assert abs(y.sum() - 1) < 1e-15
        assert np.isclose(csoftmax.entmax_loss(x, 3, alpha), 1, rtol=2 / alpha)
        assert csoftmax.entmax_loss(x, 4, alpha) == np.inf


def test_gradients_where_the_weights_overflow():
    """y^(2 - alpha) is beyond the range of double; the gradient of a row with one large number is not."""
    dy = np.array([1.0, 3.0])
    for alpha, y in ((1e3, [1 - 2.0**-30, 2.0**-30]), (1e4, [1 - 2.0**-12, 2.0**-12])):
        y = np.array(y)
        assert error_of_vjp(dy, y, alpha, "float64") <= 4
        dx = csoftmax.entmax_vjp(dy, y, alpha)
        assert np.isfinite(dx).all()
        assert dx[0] == -dx[1] < 0
    assert not csoftmax.entmax_vjp(np.ones(5), np.full(5, 0.2), 1e4).any()
    assert np.isposinf(csoftmax.entmax_vjp(np.array([1.0, 0, 0]), np.full(3, 1 / 3), 1e4)[0])


def mutate(x, alpha, rng):
    """Return a neighbour of a row: a bit more or less, a tie, a number next to the threshold, another scale."""
    x, i = x.copy(), int(rng.integers(len(x)))
    choice = rng.integers(6)
    if choice == 0:
        x[i] = np.nextafter(x[i], x.dtype.type(rng.choice([-np.inf, np.inf])))
    elif choice == 1:
        x[i] = x[rng.integers(len(x))]
    elif choice == 2:
        x[i] += x.dtype.type(rng.standard_normal() * 10 ** rng.uniform(-12, 0))
    elif choice == 3:
        x *= x.dtype.type(1 + rng.standard_normal() / 100)
    else:
        y = csoftmax.entmax(x.astype(np.float64), alpha)
        tau = x.max() - y.max() ** (alpha - 1) / (alpha - 1)
        x[i] = tau + np.spacing(tau) * rng.integers(-3, 4)
    return x


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [1.01, 1.25, 1.4, 1.5, 1.75, 2.0, 2.5, 5.0, 12.0, 30.0, 1000.0])
def test_a_search_finds_no_worse_row(alpha, dtype):
    """Hill climbing on the error of probabilities and of the loss; failures become cases of WORST."""
    rng = np.random.default_rng(int(alpha * 1000))
    for _ in range(30):
        x = (rng.standard_normal(rng.integers(2, 6)) * 10 ** rng.uniform(-3, 0.5)).astype(dtype)
        best = 0.0
        for _ in range(60):
            other = mutate(x, alpha, rng)
            if not np.isfinite(other).all():
                continue
            label = int(rng.integers(len(other)))
            error, doubt = errors_and_doubts(other, alpha, dtype)
            assert error <= 0.51, (alpha, other.tolist())
            loss = error_of_loss(other, label, alpha, dtype) if doubt < 0.1 else 0.0
            assert loss <= 1, (alpha, other.tolist(), label)
            if max(error, loss) >= best:
                x, best = other, max(error, loss)
