"""g-softmax: optimality conditions with mpmath, other solvers, limits, ties, gradients, special values, arguments."""

import copy
import functools
import pickle

import ml_dtypes
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

import csoftmax
from csoftmax._ops import geometric_rows
from csoftmax.geometric import Cost, g_cross_entropy_with_grad, g_logsumexp, g_softmax, g_softmax_vjp


@functools.cache
def costs_of(n):
    """Costs of n classes: on a line, of random points, and nearly singular ones on a dense grid."""
    i = np.arange(n, dtype=float)
    points = np.random.default_rng(n).normal(size=(n, 3))
    return {
        "line": Cost(abs(i[:, None] - i)),
        "squares": Cost((i[:, None] - i) ** 2),
        "points": Cost(points=points),
        "distances": Cost(points=points, metric="euclidean", sigma=0.5),
        "grid": Cost(points=i / n, sigma=0.25),
    }


def logits(rng, n, rows, scale):
    """Random logits, and smooth ones, which give wide supports."""
    i = np.arange(n)
    x = rng.normal(size=(rows, n)) * scale
    x[::2] = -scale * 20 * ((i - n / 3) / n) ** 2 + 1e-3 * x[::2]
    return x


def exact_row(x, matrix, support):
    """Solve the conditions of optimality on a support with 150 digits: p, LSE - max, and the least (K w)_i / u_i."""
    with mpmath.workdps(150):
        n, m = len(x), max(x)
        u = [mpmath.exp((mpmath.mpf(float(v)) - mpmath.mpf(float(m))) / 2) for v in x]
        k = mpmath.matrix(n, n)
        for a in range(n):
            for b in range(n):
                k[a, b] = mpmath.exp(-mpmath.mpf(float(matrix[a, b])) / 2)
        s = list(support)
        w = mpmath.lu_solve(mpmath.matrix([[k[a, b] for b in s] for a in s]), mpmath.matrix([u[a] for a in s]))
        total = sum(u[a] * w[i] for i, a in enumerate(s))
        p = [mpmath.mpf(0)] * n
        for i, a in enumerate(s):
            p[a] = u[a] * w[i] / total
        ratio = min(sum(k[a, b] * w[i] for i, b in enumerate(s)) / u[a] for a in range(n))
        return p, mpmath.log(total), ratio


def test_optimality_in_many_digits():
    """On the support that was found, exact weights are positive, and no class outside it violates its condition."""
    rng = np.random.default_rng(0)
    for name, cost in costs_of(12).items():
        for scale in (0.5, 3.0, 30.0):
            x = logits(rng, 12, 4, scale)
            y, lse = g_softmax(x, cost), g_logsumexp(x, cost)
            for row in range(len(x)):
                p, excess, ratio = exact_row(x[row], cost.matrix, np.flatnonzero(y[row]))
                assert min(p) >= 0, (name, scale)
                assert ratio >= 1 - 2e-14, (name, scale)
                condition = 1e-7 if name == "grid" else 1e-12  # weights of nearly equal classes, not their sum
                assert max(abs(float(e - v)) for e, v in zip(p, y[row], strict=True)) < condition, (name, scale)
                error = abs(float(excess + mpmath.mpf(float(x[row].max())) - mpmath.mpf(float(lse[row]))))
                assert error <= 4 * 2**-52 * max(1, abs(x[row].max()), float(excess)), (name, scale)


def test_certificate():
    """The gap of every row is at most 1e-13, wide supports, singular costs and tiny logits included."""
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 17, 64, 130):
        for name, cost in costs_of(n).items():
            for scale in (1e-9, 0.5, 2.0, 10.0, 300.0):
                x = logits(rng, n, 8, scale)
                y, gap = g_softmax(x, cost, return_gap=True)
                assert gap.shape == (8,)
                assert gap.max() <= 1e-13, (n, name, scale)
                np.testing.assert_allclose(y.sum(1), 1, rtol=0, atol=1e-14)
                # the gap of the returned probabilities by its definition, with alpha' M alpha = exp(-LSE)
                if scale > 100:  # M overflows
                    continue
                m = np.exp(-(x[:, :, None] + x[:, None, :] - 2 * x.max(1)[:, None, None] + cost.matrix) / 2)
                slope = np.einsum("rij,rj->ri", m, y)
                value = np.einsum("ri,ri->r", slope, y)
                again = 2 * (value - slope.min(1)) / value
                assert again.max() < 1e-10, (n, name, scale)


def hard_rows(rng, p, sigma):
    """Rows that are hard for classes with these points: rough, smooth, tied, and sums of few columns of K."""
    n = len(p)
    similar = np.exp(-0.5 * ((p[:, None] - p) / sigma) ** 2)
    rows = [np.round(3 * rng.normal(size=n))]
    for width in sigma * np.exp(rng.uniform(-1, 3, 3)):
        scale, center = 10 ** rng.uniform(-1, 2.47), p[rng.integers(n)]
        hill = -0.5 * ((p - center) / width) ** 2
        rows += [scale * rng.normal(size=n), hill, hill + 1e-6 * rng.normal(size=n), scale * np.sin(p / width)]
        rows.append(2 * np.log(similar @ np.maximum(rng.normal(size=n), 0) ** 2 + 1e-300))
    return np.array(rows)


def check_gaps(rng, sizes, rounds):
    for _ in range(rounds):
        n, sigma = int(rng.choice(sizes)), np.exp(rng.uniform(np.log(0.3), np.log(10)))
        p = (np.arange(float(n)), np.round(rng.random(n) * n / 3, 1), rng.random(n) * n)[rng.integers(3)]
        p = rng.permutation(p)
        metric = str(rng.choice(["sqeuclidean", "euclidean"]))
        x = hard_rows(rng, p, sigma)
        t = rng.choice([0.3, 1.0, 4.0])
        y, gap = g_softmax(x, Cost(points=p, metric=metric, sigma=sigma), temperature=t, return_gap=True)
        assert gap.max() <= 1e-13, (n, sigma, metric, int(gap.argmax()))
        np.testing.assert_allclose(y.sum(1), 1, rtol=0, atol=1e-13)


def test_gaps_of_wide_and_rough_rows():
    """Some, and two whose first solution runs out of steps, in which a ridge helps."""
    check_gaps(np.random.default_rng(31), [5, 20, 60], 12)
    for seed in (3, 7):
        i = np.random.default_rng(seed).permutation(200)
        gap = g_softmax(-0.5 * ((i - 80.0) / 8) ** 2, Cost(points=i, sigma=3), return_gap=True)[1]
        assert gap <= 1e-13


@pytest.mark.slow
def test_gaps_of_very_wide_rows():
    check_gaps(np.random.default_rng(32), [20, 60, 120, 200, 400], 120)


def test_against_other_solvers():
    """L-BFGS over logarithms and SLSQP over the simplex reach no lower value, and come near."""
    rng = np.random.default_rng(2)
    for name in ("line", "points", "distances"):
        cost = costs_of(8)[name]
        x = rng.normal(size=8) * 2
        m = np.exp(-(x[:, None] + x + cost.matrix) / 2)
        best = np.exp(-g_logsumexp(x, cost))

        def value(alpha, m=m):
            return alpha @ m @ alpha

        def by_logarithm(t, m=m):
            alpha = np.exp(t - t.max())
            alpha /= alpha.sum()
            g = 2 * m @ alpha
            return np.log(value(alpha, m)), alpha * (g - alpha @ g) / value(alpha, m)

        found = [np.exp(minimize(by_logarithm, np.zeros(8), jac=True, method="L-BFGS-B").fun)]
        simplex = {"type": "eq", "fun": lambda a: a.sum() - 1}
        options = {"bounds": [(0, 1)] * 8, "constraints": simplex, "options": {"ftol": 1e-14}}
        found.append(minimize(value, np.full(8, 1 / 8), method="SLSQP", **options).fun)
        for other in found:
            assert best * (1 - 1e-12) <= other <= best * (1 + 1e-2), name
        assert min(found) <= best * (1 + 1e-6)


def test_limits_of_cost():
    """Infinite costs: softmax, tails included. No cost: the argmax, shared evenly."""
    rng = np.random.default_rng(3)
    apart = np.full((9, 9), np.inf)
    np.fill_diagonal(apart, 0)
    for scale in (1.0, 30.0, 200.0):
        x = rng.normal(size=(6, 9)) * scale
        np.testing.assert_allclose(g_softmax(x, apart), csoftmax.softmax(x), rtol=4e-16 * 4, atol=0)
        np.testing.assert_allclose(g_logsumexp(x, apart), csoftmax.logsumexp(x), rtol=4e-16)
    x = np.array([[1.0, 3, 3, 2], [3, 3, 3, 3], [0, 1, 2, 3]])
    none = np.zeros((4, 4))
    assert g_softmax(x, none).tolist() == [[0, 0.5, 0.5, 0], [0.25] * 4, [0, 0, 0, 1]]
    assert g_logsumexp(x, none).tolist() == [3, 3, 3]
    # two groups: the larger of each takes part
    pairs = np.array([[0, 0, 2, 2], [0, 0, 2, 2], [2, 2, 0, 0], [2, 2, 0, 0.0]])
    y = g_softmax(np.array([[1.0, 2, 1.5, 1.5]]), pairs)
    alone = g_softmax(np.array([[2.0, 1.5]]), pairs[1:3, 1:3])
    assert y[0, 0] == 0
    assert y[0, 2] == y[0, 3]
    assert y[0, 1] == alone[0, 0]
    assert y[0, 2] + y[0, 3] == alone[0, 1]


def test_small_losses_are_exact():
    """Of a certain label: relative to the loss itself, and so are the gradients."""
    for gap in (5.0, 30.0, 60.0, 200.0):
        x = np.array([[gap, 0.0, -0.5]])
        matrix = np.array([[0, 1e3, 1e3], [1e3, 0, 2.0], [1e3, 2.0, 0]])
        loss, grad = g_cross_entropy_with_grad(x, [0], matrix)
        support = np.flatnonzero(g_softmax(x, matrix)[0])
        p, excess, _ = exact_row(x[0], matrix, support)
        assert abs(float(loss / excess) - 1) < 8e-16, gap
        assert abs(float(grad[0, 0] / -sum(p[1:])) - 1) < 1e-14, gap
        assert (grad[0, 1:] > 0).all()
    near = np.array([[0.0, 1.0], [1.0, 0.0]])  # the other class enters where its u exceeds exp(-1/2)
    x = np.array([[1 + 1e-9, 0.0], [1 - 1e-9, 0.0]])
    loss, grad = g_cross_entropy_with_grad(x, [0, 0], near, reduction="none")
    p, excess, _ = exact_row(x[1], near, [0, 1])
    assert loss[0] == 0
    assert (grad[0] == 0).all()
    assert loss[1] > 0
    assert abs(float(loss[1] / excess) - 1) < 1e-6  # of (u_2 - K u_1)^2, a difference of numbers of size 0.6
    assert abs(float(grad[1, 1] / p[1]) - 1) < 1e-6


def differences(f, x, step=1e-6):
    """Central differences of a scalar function."""
    grad = np.empty_like(x)
    for at in np.ndindex(x.shape):
        e = np.zeros_like(x)
        e[at] = step
        grad[at] = (f(x + e) - f(x - e)) / (2 * step)
    return grad


def test_gradients_by_differences():
    rng = np.random.default_rng(4)
    for name in ("line", "squares", "points", "distances"):
        cost = costs_of(7)[name]
        x = rng.normal(size=(3, 7)) * 2
        dy = rng.normal(size=x.shape)
        y = g_softmax(x, cost)
        np.testing.assert_allclose(differences(lambda v, cost=cost: g_logsumexp(v, cost).sum(), x), y, atol=1e-8)
        dx = g_softmax_vjp(dy, y, cost)
        by_differences = differences(lambda v, cost=cost, dy=dy: (g_softmax(v, cost) * dy).sum(), x)
        np.testing.assert_allclose(dx, by_differences, atol=1e-7)
        assert (dx[y == 0] == 0).all()
        np.testing.assert_allclose(dx.sum(1), 0, atol=1e-13)
        soft = rng.random((3, 7)) * (rng.random((3, 7)) < 0.6) + np.eye(7)[:3] * 0.1
        weight = rng.uniform(0.1, 2, 7)
        for target in ([1, 4, 0], soft, np.eye(7)[:3]):
            for options in ({}, {"weight": weight, "label_smoothing": 0.1}, {"temperature": [[0.5], [1], [3]]}):
                options = {"sample_weight": [1, 2, 0.5], "upstream": 1.5, **options}

                def loss(v, target=target, options=options, cost=cost):
                    return 1.5 * g_cross_entropy_with_grad(v, target, cost, **options).loss

                grad = g_cross_entropy_with_grad(x, target, cost, **options).grad
                np.testing.assert_allclose(grad, differences(loss, x), atol=1e-8)


def test_loss_of_soft_labels():
    """Never negative, 0 at g_softmax(x) itself; one-hot rows are labels bit for bit; convexity bounds a mixture."""
    rng = np.random.default_rng(5)
    for name, cost in costs_of(9).items():
        x = logits(rng, 9, 6, 2.0)
        y = g_softmax(x, cost)
        loss, grad = g_cross_entropy_with_grad(x, y, cost, reduction="none")
        assert (loss >= 0).all()
        assert loss.max() < (1e-8 if name == "grid" else 1e-14), name
        np.testing.assert_allclose(grad, 0, atol=1e-14)
        labels = rng.integers(0, 9, 6)
        for reduction in ("none", "sum", "mean"):
            hard = g_cross_entropy_with_grad(x, labels, cost, reduction=reduction, weight=np.arange(1, 10))
            soft = g_cross_entropy_with_grad(x, np.eye(9)[labels], cost, reduction=reduction, weight=np.arange(1, 10))
            np.testing.assert_array_equal(hard.loss, soft.loss)
            np.testing.assert_array_equal(hard.grad, soft.grad)
        doubled = g_cross_entropy_with_grad(x, 2 * y, cost, reduction="none").grad
        np.testing.assert_allclose(doubled, 0, atol=1e-13)  # of mass 2: 2 p - q


def test_equal_costs_have_a_closed_form():
    """Two classes: w solves two equations, from which everything follows."""
    c, x = 1.5, np.array([[0.3, 0.1], [0.3, 2.9]])
    k, u = np.exp(-c / 2), np.exp(x / 2)
    y = g_softmax(x, [[0, c], [c, 0]])
    w = np.array([u[0, 0] - k * u[0, 1], u[0, 1] - k * u[0, 0]]) / (1 - k * k)
    np.testing.assert_allclose(y[0], u[0] * w / (u[0] @ w), rtol=1e-15)
    assert y[1].tolist() == [0, 1]


def test_special_values():
    cost = costs_of(5)["points"]
    inf, nan = np.inf, np.nan
    rng = np.random.default_rng(6)
    for at in range(5):
        row = rng.normal(size=5)
        rest = np.arange(5) != at
        smaller = Cost(cost.matrix[np.ix_(rest, rest)])
        row[at] = -inf
        y = g_softmax(row, cost)
        assert y[at] == 0
        np.testing.assert_allclose(y[rest], g_softmax(row[rest], smaller), atol=1e-15)
        assert g_logsumexp(row, cost) == pytest.approx(g_logsumexp(row[rest], smaller), abs=1e-15)
        assert g_cross_entropy_with_grad(row[None], [at], cost).loss == inf
        row[at] = nan
        assert np.isnan(g_softmax(row, cost)).all()
        assert np.isnan(g_logsumexp(row, cost))
        masked = g_softmax(row, cost, where=rest)
        np.testing.assert_array_equal(masked, y)
        row[at] = inf
        assert np.isnan(g_softmax(row, cost)).all()
        assert g_logsumexp(row, cost) == inf
        assert np.isnan(g_cross_entropy_with_grad(row[None], [0], cost).loss)
        row[(at + 1) % 5] = nan  # NaN beats infinity
        assert np.isnan(g_logsumexp(row, cost))
        row[at] = nan
        row[(at + 1) % 5] = 1
        both = g_softmax(np.stack([row, row]), cost, where=[[True] * 5, [False] * 5])
        assert np.isnan(both[0]).all()
        assert (both[1] == 0).all()
        mixed = g_softmax(row, cost, where=np.arange(5) != (at + 2) % 5)
        assert mixed[(at + 2) % 5] == 0
        assert np.isnan(mixed).sum() == 4
    nothing = np.full(5, -inf)
    assert np.isnan(g_softmax(nothing, cost)).all()
    assert g_logsumexp(nothing, cost) == -inf
    assert (g_softmax(nothing, cost, where=False) == 0).all()
    assert g_logsumexp(np.zeros(5), cost, where=False) == -inf
    for written in (g_softmax(nothing, cost), np.atleast_1d(g_logsumexp(np.full(5, nan), cost))):
        assert (written.view(np.int64) == 0x7FF8000000000000).all()
    big = np.array([1e300, -1e300, 9.9e299, 0, 1e300])
    assert g_softmax(big, Cost(np.zeros((5, 5)))).tolist() == [0.5, 0, 0, 0, 0.5]
    assert g_logsumexp(big, cost) == 1e300


def test_temperature():
    cost = costs_of(4)["line"]
    x = np.array([[1.0, 3, 3, 2], [0, 0, -1, -2], [-4, -3, -3, -5], [1e308, -1e308, 1, 2]])
    np.testing.assert_allclose(g_softmax(x[:3], cost, temperature=2), g_softmax(x[:3] / 2, cost), rtol=1e-14)
    t = np.array([[1.0], [0], [np.inf], [1e-5]])
    y = g_softmax(x, cost, temperature=t)
    for row in range(4):
        np.testing.assert_array_equal(y[row], g_softmax(x[row], cost, temperature=t[row, 0]))
    np.testing.assert_array_equal(y[1], g_softmax(np.array([0, 0, -np.inf, -np.inf]), cost))
    np.testing.assert_allclose(y[2], g_softmax(np.zeros(4), cost), rtol=1e-15)
    assert y[3].tolist() == [1, 0, 0, 0]
    zero = g_logsumexp(np.array([[1.0, 2, 0, 0], [-1, -2, -3, -4], [0, 0, -1, -1]]), cost, temperature=0)
    assert zero[:2].tolist() == [np.inf, -np.inf]
    assert zero[2] == pytest.approx(g_logsumexp(np.array([0, 0, -np.inf, -np.inf]), cost))
    nan = np.array([np.nan, 1, 2, 3])
    assert np.isnan(g_softmax(nan, cost, temperature=0)).all()
    assert np.isnan(g_logsumexp(nan, cost, temperature=np.inf))
    for bad in (-1, np.nan, np.array([1.0, 2.0])[:, None], "a", True):
        with pytest.raises((TypeError, ValueError), match="temperature"):
            g_softmax(x, cost, temperature=bad)
    for bad in (0, np.inf):
        with pytest.raises(ValueError, match="positive and finite"):
            g_softmax_vjp(x, x, cost, temperature=bad)
        with pytest.raises(ValueError, match="positive and finite"):
            g_cross_entropy_with_grad(x, [0, 0, 0, 0], cost, temperature=bad)


def test_layouts_dtypes_and_out():
    rng = np.random.default_rng(7)
    cost = costs_of(6)["points"]
    x = rng.normal(size=(4, 6, 5))
    y = g_softmax(x, cost, axis=1)
    expected = np.stack([[g_softmax(x[i, :, j], cost) for j in range(5)] for i in range(4)])
    np.testing.assert_array_equal(np.moveaxis(y, 1, -1), expected)
    np.testing.assert_array_equal(g_softmax(np.asfortranarray(x), cost, axis=1), y)
    np.testing.assert_array_equal(g_softmax(x[::-1, :, ::-2], cost, axis=-2), y[::-1, :, ::-2])
    np.testing.assert_array_equal(g_softmax(x.astype(">f8"), cost, axis=1), y)
    lse = g_logsumexp(x, cost, axis=1, keepdims=True)
    assert lse.shape == (4, 1, 5)
    np.testing.assert_array_equal(g_logsumexp(x, cost, 1), lse[:, 0])
    out = np.full((4, 5), 7.0)
    assert g_logsumexp(x, cost, 1, out=out) is out
    np.testing.assert_array_equal(out, lse[:, 0])
    whole = rng.normal(size=(2, 3))
    np.testing.assert_array_equal(g_softmax(whole, cost, axis=None).ravel(), g_softmax(whole.ravel(), cost))
    np.testing.assert_array_equal(g_softmax(whole, cost, axis=(1, 0)).T.ravel(), g_softmax(whole.T.ravel(), cost))
    for at in (x.copy(), np.asfortranarray(x), np.zeros((5, 4, 6)).transpose(1, 2, 0)):
        at[...] = x
        assert g_softmax(at, cost, axis=1, out=at) is at
        np.testing.assert_array_equal(at, y)
    memory = np.zeros((5, 6))
    memory[:4] = x[:, :, 0]
    g_softmax(memory[:4], cost, out=memory[1:])
    np.testing.assert_array_equal(memory[1:], y[:, :, 0])
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        low = x[:, :, 0].astype(dtype)
        exact = g_softmax(low.astype(float), cost)
        result = g_softmax(low, cost)
        assert result.dtype == dtype
        np.testing.assert_array_equal(result, exact.astype(dtype))
        loss, grad = g_cross_entropy_with_grad(low, [0, 1, 2, 3], cost)
        assert loss.dtype == np.float32
        assert grad.dtype == dtype
        assert g_softmax_vjp(low, result, cost).dtype == dtype
    assert g_softmax([1, 2, 3, 4, 5, 6], cost).dtype == np.float64
    assert g_softmax(1.5, [[0.0]]) == 1.0
    assert g_logsumexp(1.5, [[0.0]]) == 1.5
    for shape in ((0, 6), (3, 0, 6)):
        assert g_softmax(np.zeros(shape), cost).shape == shape
        assert g_logsumexp(np.zeros(shape), cost).shape == shape[:-1]
        assert g_softmax_vjp(np.zeros(shape), np.zeros(shape), cost).shape == shape
    empty = Cost(np.zeros((0, 0)))
    assert g_softmax(np.zeros((2, 0)), empty).shape == (2, 0)
    assert g_logsumexp(np.zeros((2, 0)), empty).tolist() == [-np.inf, -np.inf]
    loss, grad = g_cross_entropy_with_grad(np.zeros((0, 6)), [], cost)
    assert np.isnan(loss)
    assert grad.shape == (0, 6)
    read_only = x[:, :, 0].copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(g_softmax(read_only, cost), y[:, :, 0])


def test_bits_depend_on_the_row_alone(monkeypatch):
    rng = np.random.default_rng(8)
    cost = costs_of(33)["points"]
    x = rng.normal(size=(400, 33))
    dy = rng.normal(size=x.shape)
    y, gap = g_softmax(x, cost, return_gap=True, num_threads=1)
    target = rng.random(x.shape)
    loss, grad = g_cross_entropy_with_grad(x, target, cost, reduction="none")
    dx = g_softmax_vjp(dy, y, cost, num_threads=1)
    monkeypatch.setattr(geometric_rows, "CHUNK_BYTES", 1)
    for threads in (2, 3):
        again, gap_again = g_softmax(x, cost, return_gap=True, num_threads=threads)
        np.testing.assert_array_equal(again, y)
        np.testing.assert_array_equal(gap_again, gap)
        np.testing.assert_array_equal(g_softmax_vjp(dy, y, cost, num_threads=threads), dx)
    for row in (0, 17, 399):
        np.testing.assert_array_equal(g_softmax(x[row], cost), y[row])
        alone = g_cross_entropy_with_grad(x[row], target[row], cost, reduction="none")
        assert alone.loss == loss[row]
        np.testing.assert_array_equal(alone.grad, grad[row])


def test_loss_options():
    cost = costs_of(5)["line"]
    rng = np.random.default_rng(9)
    x = rng.normal(size=(6, 5))
    labels = np.array([0, -100, 2, 3, 4, 1])
    x[1] = np.nan  # ignored, never read
    each = g_cross_entropy_with_grad(x, labels, cost, reduction="none", weight=[1, 2, 3, 4, 5])
    kept = labels >= 0
    assert each.loss[1] == 0
    assert (each.grad[1] == 0).all()
    np.testing.assert_allclose(
        each.loss[kept], np.array([1, 3, 4, 5, 2]) * (g_logsumexp(x[kept], cost) - x[kept, labels[kept]]), rtol=1e-13
    )
    mean = g_cross_entropy_with_grad(x, labels, cost, weight=[1, 2, 3, 4, 5])
    assert mean.loss == pytest.approx(each.loss.sum() / 15, rel=1e-15)
    np.testing.assert_allclose(mean.grad, each.grad / 15, rtol=1e-14)
    total = g_cross_entropy_with_grad(x, labels, cost, reduction="sum", weight=[1, 2, 3, 4, 5], upstream=-2)
    np.testing.assert_allclose(total.grad, -2 * each.grad, rtol=1e-14)
    for nothing in ({"sample_weight": np.zeros(6)}, {"weight": np.zeros(5)}):
        loss, grad = g_cross_entropy_with_grad(x, labels, cost, **nothing)
        assert np.isnan(loss)
        assert (grad == 0).all()
    loss, grad = g_cross_entropy_with_grad(x, np.full(6, -100), cost)
    assert np.isnan(loss)
    assert (grad == 0).all()
    loss, grad = g_cross_entropy_with_grad(x, [0, 1, 2, 3, 4, 1], cost, sample_weight=[1, 0, 1, 1, 1, 1])
    assert np.isfinite(loss)
    assert (grad[1] == 0).all()
    out = np.zeros((6, 5))
    assert g_cross_entropy_with_grad(x, labels, cost, out=out).grad is out
    assert g_cross_entropy_with_grad(x[0], 0, cost).grad.shape == (5,)
    columns = g_cross_entropy_with_grad(x.T, labels, cost, axis=0)
    np.testing.assert_array_equal(columns.grad.T, g_cross_entropy_with_grad(x, labels, cost).grad)


def test_bad_arguments_are_refused_before_anything_is_written():
    cost = costs_of(3)["line"]
    x = np.zeros((2, 3))
    out = np.full((2, 3), 7.0)
    for call, error, message in (
        (lambda: g_softmax(x, cost, axis=0, out=out), ValueError, "cost is of 3 classes"),
        (lambda: g_softmax(x > 0, cost, out=out), TypeError, "x has dtype bool"),
        (lambda: g_softmax(x + 0j, cost, out=out), TypeError, "complex"),
        (lambda: g_softmax(x, cost, where=[1, 0, 1], out=out), TypeError, "where must be boolean"),
        (lambda: g_softmax(x, cost, return_gap=1, out=out), TypeError, "return_gap must be a bool"),
        (lambda: g_softmax(x, cost, num_threads=0, out=out), ValueError, "num_threads must be at least 1"),
        (lambda: g_softmax(x, cost, axis=2, out=out), np.exceptions.AxisError, "axis 2"),
        (lambda: g_softmax(x, None, out=out), TypeError, "cost must be a Cost or a matrix"),
        (lambda: g_softmax(x, cost, out=out.astype("f4")), TypeError, "out has dtype float32"),
        (lambda: g_softmax(x, cost, out=out.T), ValueError, "out has shape"),
        (lambda: g_softmax(np.ma.masked_array(x), cost), TypeError, "masked array"),
        (lambda: g_softmax_vjp(x, x.astype("f4"), cost, out=out), TypeError, "y has dtype float32"),
        (lambda: g_cross_entropy_with_grad(x, [0, 3], cost, out=out), IndexError, r"target\[1\] is 3"),
        (lambda: g_cross_entropy_with_grad(x, [0], cost, out=out), ValueError, "target has shape"),
        (lambda: g_cross_entropy_with_grad(x, x - 1, cost, out=out), ValueError, "soft labels must be at least 0"),
        (lambda: g_cross_entropy_with_grad(x, [0, 1], cost, reduction="max", out=out), ValueError, "reduction"),
        (lambda: g_cross_entropy_with_grad(x, [0, 1], cost, label_smoothing=2, out=out), ValueError, "smoothing"),
        (lambda: g_cross_entropy_with_grad(x, [0, 1], cost, weight=[1, 2], out=out), ValueError, "weight has shape"),
        (lambda: g_cross_entropy_with_grad(x, [0, 1], cost, upstream=[1, 2], out=out), ValueError, "upstream"),
    ):
        with pytest.raises(error, match=message):
            call()
    assert (out == 7).all()


def test_bad_costs_are_refused():
    good = np.array([[0, 1, 2], [1, 0, 1], [2, 1, 0.0]])
    for at, value, message in (
        ((0, 1), 1.1, r"cost\[0, 1\] is 1.1; that of the same two classes"),
        ((1, 2), np.inf, r"cost\[1, 2\]|cost\[2, 1\]"),
        ((1, 2), np.nan, r"cost\[1, 2\] is nan; costs are at least 0"),
        ((2, 0), -1.0, r"cost\[2, 0\] is -1.0"),
        ((1, 1), 1e-9, r"cost\[1, 1\] is 1e-09; a class costs 0 to itself"),
    ):
        bad = good.copy()
        bad[at] = value
        with pytest.raises(ValueError, match=message):
            Cost(bad)
    with pytest.raises(ValueError, match="positive semidefinite, and its least eigenvalue is -"):
        Cost([[0, 0.1, 9], [0.1, 0, 0.1], [9, 0.1, 0]])
    for arguments, error, message in (
        ({}, TypeError, "got neither"),
        ({"cost": good, "points": good}, TypeError, "got both"),
        ({"cost": good[:2]}, ValueError, r"cost has shape \(2, 3\)"),
        ({"cost": good > 0}, TypeError, "cost has dtype bool"),
        ({"cost": [["a"]]}, TypeError, "cost has dtype"),
        ({"points": good[None]}, ValueError, "points has shape"),
        ({"points": [1.0, np.nan]}, ValueError, "points must be finite"),
        ({"points": good, "metric": "cosine"}, ValueError, "metric must be"),
        ({"points": good, "sigma": 0}, ValueError, "sigma must be positive"),
        ({"points": good, "sigma": "a"}, TypeError, "sigma must be a real number"),
    ):
        with pytest.raises(error, match=message):
            Cost(**arguments)


def test_cost():
    points = np.random.default_rng(10).normal(size=(30, 4))
    for metric, power in (("sqeuclidean", 2), ("euclidean", 1)):
        cost = Cost(points=points, metric=metric, sigma=2)
        expected = (np.linalg.norm(points[:, None] - points, axis=-1) / 2) ** power
        np.testing.assert_allclose(cost.matrix, expected, rtol=1e-14)
        again = Cost(expected + np.triu(1e-14 * expected))  # rounding is no asymmetry
        np.testing.assert_allclose(again.matrix, expected, rtol=1e-13)
    assert not cost.matrix.flags.writeable
    assert len(cost) == 30
    assert repr(cost) == "<Cost of 30 classes>"
    x = points[:, :1].T
    for copied in (pickle.loads(pickle.dumps(cost)), copy.deepcopy(cost)):
        np.testing.assert_array_equal(g_softmax(x, copied), g_softmax(x, cost))
    np.testing.assert_array_equal(g_softmax(x, cost.matrix), g_softmax(x, cost))
    same = Cost(points=[1, 1, 2])
    assert g_softmax([0.0, 0.0, -50.0], same).tolist() == [0.5, 0.5, 0]
    dx = g_softmax_vjp([1.0, 2, 3], g_softmax([0.0, 0.0, 0.5], same), same)
    assert np.isfinite(dx).all()
    assert dx[0] == dx[1]


def test_gap_beyond_the_promise_warns(monkeypatch):
    monkeypatch.setattr(geometric_rows, "MAX_GAP", -1.0)
    x, cost = np.zeros((2, 3)), costs_of(3)["line"]
    for call in (
        lambda: g_softmax(x, cost),
        lambda: g_logsumexp(x, cost),
        lambda: g_cross_entropy_with_grad(x, [0, 1], cost),
    ):
        with pytest.warns(RuntimeWarning, match="rows 0, 1, in C order") as caught:
            call()
        assert caught[0].filename == __file__


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_row(data):
    """Whatever finite logits: a distribution, a certificate, an LSE between the maximum and log-sum-exp."""
    n = data.draw(st.integers(1, 9))
    number = st.one_of(st.floats(-40, 40), st.sampled_from([0.0, 1.0, -1e300, 1e-300, 700.0, -2000.0]))
    x = np.array(data.draw(st.lists(number, min_size=n, max_size=n)))
    points = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    cost = Cost(points=points, sigma=data.draw(st.sampled_from([0.01, 0.5, 1.0, 10.0, 1e5])))
    y, gap = g_softmax(x, cost, return_gap=True)
    assert gap <= 1e-13
    assert (y >= 0).all()
    assert abs(y.sum() - 1) < 1e-14
    lse = g_logsumexp(x, cost)
    assert x.max() <= lse <= csoftmax.logsumexp(x) + 1e-12 * max(1, abs(x.max()))
    dx = g_softmax_vjp(np.ones(n), y, cost)
    np.testing.assert_allclose(dx, 0, atol=1e-13)  # a constant added to the logits changes nothing
    loss, grad = g_cross_entropy_with_grad(x, data.draw(st.integers(0, n - 1)), cost)
    assert loss >= 0
    assert np.isfinite(grad).all()
