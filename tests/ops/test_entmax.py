"""sparsemax, alpha-entmax, gradient and Fenchel-Young loss: against a root in mpmath and their definitions."""

import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.entmax import exact, exact_loss, numbers, rows, ulps

import csoftmax
from csoftmax._spec.formats import DTYPES, NAN_BITS, bits, dtype_of, wide
from csoftmax._spec.samples import logits

ALPHAS = (1.000001, 1.01, 1.2, 1.5, 1.7, 2.0, 3.0, 5.0, 30.0)


def combinations(alphas):
    """Return alphas and dtypes; half types, which compute as float32 does, take two of them, and the rest if slow."""
    for alpha in alphas:
        for dtype in DTYPES:
            is_slow = dtype in ("float16", "bfloat16") and alpha not in (1.5, 1.2)
            yield pytest.param(alpha, dtype, marks=[pytest.mark.slow] * is_slow)


EPS = {"float32": 2.0**-24, "float64": 2.0**-53, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.mark.parametrize(("alpha", "dtype"), combinations(ALPHAS))
def test_accuracy(alpha, dtype):
    """0.51 ULP in every dtype."""
    for x in rows(dtype):
        y = csoftmax.entmax(x, alpha)
        for got, p in zip(y, exact(x, alpha), strict=True):
            if p > np.finfo(np.float32).tiny or got > 0:
                assert ulps(got, p, dtype) <= 0.51, (x, got, p)
            else:
                assert got == 0 or p > 0


@pytest.mark.parametrize("alpha", [1.01, 1.5, 2.0, 3.0, 12.0, 50.0, 1e4])
def test_sums_to_one(alpha, dtype):
    """Within the rounding of its elements."""
    for n in (10, 1000, 5000):
        for sigma in (0.01, 1, 30):
            y = csoftmax.entmax(logits((4, n), dtype, sigma=sigma), alpha).astype(np.float64)
            bound = EPS[dtype] * np.sum(y, axis=-1) + np.count_nonzero(y, axis=-1) * 1e-16
            if dtype in ("float16", "bfloat16"):
                bound += n * 3e-8  # of elements that are subnormal
            assert np.all(np.abs(y.sum(-1) - 1) <= bound)


@pytest.mark.parametrize(
    ("alpha", "n"), [(3, 10**5), (5, 10**5), (6, 1000), (10, 1000), (20, 10), (100, 2), (1e300, 3)]
)
def test_ties_with_large_alpha(alpha, n):
    """The root is 1 / n^(alpha - 1), far below the last digit of 1."""
    for kind in (np.float32, np.float64):
        y = csoftmax.entmax(np.zeros(n, kind), alpha)
        assert np.all(np.abs(y * n - 1) <= 2 * np.finfo(kind).eps)
        loss, grad = csoftmax.entmax_loss_with_grad(np.zeros(n, kind), 0, alpha)
        assert np.isclose(loss, (1 - n ** (1.0 - alpha)) / (alpha * (alpha - 1)), rtol=1e-6)
        assert np.allclose(grad, 1 / n - (np.arange(n) == 0))
    x = np.round(logits((1000,), "float64")) / 2
    assert abs(csoftmax.entmax(x, alpha).sum() - 1) <= 1e-12


@pytest.mark.parametrize("distance", [2.0**-52, 1e-15, 1e-13, 1e-9])
def test_next_to_alpha_1(distance):
    x = logits((3, 50), "float64")
    y = csoftmax.softmax(x)
    near = csoftmax.entmax(x, 1 + distance)
    assert np.allclose(near, y, rtol=1e-12 + 200 * distance, atol=0)
    assert np.all(np.abs(near.sum(-1) - 1) < 1e-14)
    for target in ([1, 2, 3], y[::-1]):
        loss = csoftmax.entmax_loss(x, target, 1 + distance)
        assert np.isclose(loss, csoftmax.entmax_loss(x, target, 1), rtol=1e-11 + 500 * distance)


def test_labels_whose_probability_underflows():
    x = np.array([0.0, -800.0])
    for alpha in (1.0001, 1.0000001):
        hard, soft = csoftmax.entmax_loss(x, 1, alpha), csoftmax.entmax_loss(x, [0.0, 1.0], alpha)
        assert hard == soft
        assert np.isclose(hard, float(exact_loss(x, [0, 1], alpha)), rtol=1e-12)


def test_divergence_is_not_negative():
    """alpha = 1, soft labels equal to the probabilities."""
    for dtype in ("float32", "float64"):
        x = logits((300, 20), dtype)
        loss = csoftmax.entmax_loss(x, csoftmax.softmax(x), 1.0, reduction="none")
        assert np.all(loss >= -100 * EPS[dtype])  # the labels sum to 1 within rounding only


def test_scalars():
    loss, grad = csoftmax.entmax_loss_with_grad(5.0, 0)
    assert (loss, grad) == (0, 0)
    assert isinstance(grad, np.float64)
    assert not np.signbit(grad)


def test_limits(dtype):
    x = logits((5, 40), dtype)
    assert_same_bits(csoftmax.entmax(x, 1), csoftmax.softmax(x))
    assert_same_bits(csoftmax.entmax(x, 2), csoftmax.sparsemax(x))
    near = csoftmax.entmax(x, 1 + 2.0**-40).astype(np.float64)
    assert np.allclose(near, csoftmax.softmax(x.astype(np.float64)), rtol=4 * EPS[dtype] + 1e-9, atol=1e-7)
    limit = csoftmax.entmax(x, 1e6).astype(np.float64)
    assert np.array_equal(limit.argmax(-1), x.astype(np.float64).argmax(-1))


@given(st.integers(1, 200), st.sampled_from(ALPHAS), st.integers(0, 10**6), st.sampled_from([0.01, 1.0, 10.0]))
@settings(max_examples=100, deadline=None)
def test_properties(n, alpha, seed, sigma):
    """Support, order, permutation, shift."""
    rng = np.random.default_rng(seed)
    x = (np.round(rng.standard_normal(n) * sigma * 64) / 64).astype(np.float32)
    y = csoftmax.entmax(x, alpha)
    assert np.all(y >= 0)
    assert np.all(y[x <= x.max() - 1 / (alpha - 1) * (1 + 1e-9)] == 0)
    order = np.argsort(x)
    assert np.all(np.diff(y[order]) >= 0)
    assert np.all((y[order][1:] == y[order][:-1]) | (np.diff(x[order]) > 0))
    assert_same_bits(csoftmax.entmax(x + np.float32(32), alpha), y, "shift")
    shuffle = rng.permutation(n)
    assert np.max(np.abs(csoftmax.entmax(x[shuffle], alpha).astype(float) - y[shuffle])) <= 1.2e-7


def test_special_values(dtype):
    x = logits((8, 20), dtype)
    x[0, 3], x[1, 4], x[2], x[3, :10] = np.nan, np.inf, -np.inf, -np.inf
    x[4, 0], x[4, 1] = np.inf, np.nan
    x[5] = -np.inf
    x[5, 7] = 2
    x[6] = -0.0
    for alpha in (1.2, 1.5, 2.0):
        y = csoftmax.entmax(x, alpha).astype(np.float64)
        assert np.isnan(y[[0, 1, 2, 4]]).all()
        assert not y[3, :10].any()
        assert y[5, 7] == 1
        assert np.allclose(y[6], np.float64(dtype_of(dtype).type(0.05)), rtol=2.0**-52, atol=0)
        assert abs(y[3].sum() - 1) < 0.02
    for n in (1, 5):
        assert csoftmax.entmax(np.full((2, n), -np.inf, dtype_of(dtype)), 1.5).astype(float).sum() != 0
    assert csoftmax.sparsemax(np.zeros((3, 0), dtype_of(dtype))).shape == (3, 0)
    assert csoftmax.sparsemax(np.float32(4)) == 1
    assert csoftmax.sparsemax(np.array([3, 1], np.int8)).tolist() == [1.0, 0.0]


def test_nan_is_canonical(dtype):
    """The one quiet NaN, whatever the machine's own."""
    x = logits((3, 20), dtype)
    x[1, 3] = np.nan
    y = csoftmax.entmax(x)
    dy = logits((3, 20), dtype, seed=1)
    dy[2, int(y[2].argmax())] = np.inf
    for result in (y[1], csoftmax.entmax_vjp(dy, y)[1:], csoftmax.entmax_loss_with_grad(x, [0, 1, 2]).grad[1]):
        nan = np.isnan(result.astype(np.float64))
        assert nan.any()
        assert np.all(bits(result)[nan] == NAN_BITS[dtype])


@pytest.mark.parametrize("place", range(0, 70, 9))
def test_special_values_at_every_place(place, dtype):
    x = logits((1, 70), dtype)
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[0, place] = value
        assert np.isnan(csoftmax.entmax(bad).astype(np.float64)).all()
    x[0, place] = -np.inf
    y = csoftmax.entmax(x)
    assert y[0, place] == 0
    rest = np.delete(x, place, 1)
    assert_same_bits(np.delete(y, place, 1), csoftmax.entmax(rest))


def test_where(dtype):
    x = logits((6, 30), dtype)
    where = np.random.default_rng(1).random(x.shape) < 0.5
    where[0], where[1] = False, True
    where[2] = np.arange(30) == 4
    with_nan = np.where(where, x, x.dtype.type(np.nan))
    for alpha in (1.3, 1.5, 2.0):
        y = csoftmax.entmax(with_nan, alpha, where=where)
        filled = np.where(where, x, x.dtype.type(-np.inf))
        assert not bool(y[0].any())
        assert_same_bits(y[1:], csoftmax.entmax(filled, alpha)[1:])
        loss, grad = csoftmax.entmax_loss_with_grad(with_nan[1:], [0, 4, 1, 1, 1], alpha, where=where[1:])
        expected = csoftmax.entmax_loss_with_grad(filled[1:], [0, 4, 1, 1, 1], alpha)
        assert_same_bits(np.asarray(loss), np.asarray(expected.loss))
        assert_same_bits(grad, expected.grad)
        dx = csoftmax.entmax_vjp(with_nan, y, alpha, where=where)
        assert not np.any(dx[~where])
        assert np.isfinite(dx.astype(np.float64)).all()


def test_where_in_rows_of_nan(dtype):
    """Masked elements have probability 0 in rows that are NaN, too."""
    for k in (2, 30, 5000):
        x = logits((4, k), dtype)
        where = np.ones(x.shape, bool)
        where[:, 1::2] = False
        x[0, 0], x[1, 0], x[2, ::2], x[:, 1] = np.nan, np.inf, -np.inf, np.nan
        for alpha in (1.0, 1.3, 1.5, 2.0):
            for y in (csoftmax.entmax(x, alpha, where=where), csoftmax.entmax(x.T, alpha, 0, where=where.T).T):
                assert np.all(bits(y[:3][where[:3]]) == NAN_BITS[dtype])
                assert np.all(bits(y[~where]) == 0)
                assert not np.isnan(wide(y[3])).any()
        y = csoftmax.sparsemax(x, where=where)
        assert np.all(bits(y[~where]) == 0)


# Gradient and loss


@pytest.mark.parametrize("alpha", ALPHAS[1:-1])
def test_vjp(alpha, dtype):
    """The formula in mpmath on the y that is given."""
    for x in rows(dtype, 1):
        y = csoftmax.entmax(x, alpha)
        dy = logits((len(x),), dtype, seed=len(x))
        with mpmath.workprec(200):
            s = [mpmath.mpf(float(v)) ** (2 - mpmath.mpf(alpha)) if v > 0 else mpmath.mpf(0) for v in y]
            g = [mpmath.mpf(float(v)) for v in dy]
            mean = sum(a * b for a, b in zip(s, g, strict=True)) / sum(s)
            expected = [a * (b - mean) for a, b in zip(s, g, strict=True)]
            spread = sum(a * abs(b) for a, b in zip(s, g, strict=True)) / sum(s)
            size = [a * (abs(b) + spread) for a, b in zip(s, g, strict=True)]
        got = csoftmax.entmax_vjp(dy, y, alpha)
        for a, b, c in zip(got, expected, size, strict=True):
            if dtype == "float16" and abs(b) > 65504:
                assert abs(a) == np.inf
                continue
            rounding = 2.0**-51 * float(c) + EPS[dtype] * 1.01 * abs(float(b)) + {"float16": 3e-8}.get(dtype, 1e-40)
            assert abs(float(a) - float(b)) <= rounding


@pytest.mark.parametrize("alpha", [1.0, 1.2, 1.5, 2.0, 3.0])
def test_gradients_are_derivatives(alpha):
    """Differences of the exact loss; the Jacobian of entmax by differences of entmax in mpmath."""
    h = mpmath.mpf(2) ** -60
    x = np.array([0.3, 0.1, -0.2, 0.25, -3.0])
    y = csoftmax.entmax(x, alpha)
    if alpha > 1:
        for q in (
            np.eye(5)[0],
            np.eye(5)[4],
            np.array([0.5, 0.0, 0.25, 0.0, 0.25]),
            np.array([0.5, 0.1, 0.1, 0.1, 0.1]),
        ):
            grad = csoftmax.entmax_loss_with_grad(x, q, alpha).grad
            for i in range(5):
                with mpmath.workprec(200):
                    moved = numbers(x)
                    moved[i] += h
                    slope = (exact_loss(moved, q, alpha) - exact_loss(x, q, alpha)) / h
                assert abs(float(slope) - grad[i]) < 1e-14
    dy = np.array([1.0, -2.0, 0.5, 3.0, 7.0])
    dx = csoftmax.entmax_vjp(dy, y, alpha)
    for i in range(5):
        up, down = x.copy(), x.copy()
        up[i] += 2.0**-20
        down[i] -= 2.0**-20
        slope = dy @ (csoftmax.entmax(up, alpha) - csoftmax.entmax(down, alpha)) * 2.0**19
        assert abs(slope - dx[i]) < 1e-8


@pytest.mark.parametrize(("alpha", "dtype"), combinations((1.01, 1.2, 1.5, 2.0, 3.0)))
def test_loss(alpha, dtype):
    """0.51 ULP (float64: 1 ULP), small losses included; soft labels that do not quite sum to 1 as they are."""
    rng = np.random.default_rng(6)
    worst = 0.0
    for x in rows(dtype, 2):
        if len(x) > 17:
            continue
        n, wide = len(x), np.float64 if dtype == "float64" else np.float32
        soft = rng.random(n) * (rng.random(n) < 0.7) + np.eye(n)[0] / 8
        soft = (soft / soft.sum()).astype(wide)
        for target, q in ((n // 2, np.eye(n)[n // 2]), (soft, soft), (int(x.astype(float).argmax()), None)):
            q = np.eye(n)[target] if q is None else q
            expected = exact_loss(x, q, alpha)
            got = csoftmax.entmax_loss(x, target, alpha)
            assert got.dtype == wide
            error = float(abs(mpmath.mpf(float(got)) - expected))
            bound = 1.02 * EPS["float32"] if wide is np.float32 else 2 * EPS["float64"]
            assert error <= bound * float(expected) + (1e-45 if wide is np.float32 else 1e-60), (
                x,
                target,
                got,
                expected,
            )
            worst = max(worst, error / float(expected) if expected > 1e-20 else 0)
    assert worst > 0


def test_loss_of_near_certain_rows_keeps_its_digits():
    """Losses for which the definition, evaluated in float64, is 0 or negative."""
    x = np.array([[1.0 - 2.0**-30, 0.0]])
    for alpha in (1.5, 2.0):
        tail = exact(x[0] * (1 if alpha == 2 else 2), alpha)
        z = x * (1 if alpha == 2 else 2)
        got = csoftmax.entmax_loss(z, [0], alpha)
        expected = float(exact_loss(z[0], [1, 0], alpha))
        assert 0 < expected < 1e-15
        assert abs(got - expected) <= 1e-14 * expected
        assert abs(csoftmax.entmax_loss_with_grad(z, [0], alpha).grad[0, 0] / -float(tail[1]) - 1) < 1e-15
    assert csoftmax.entmax_loss(np.array([[5.0, 0.0]]), [0]) == 0


def test_reductions_and_labels(dtype):
    x = logits((7, 30), dtype)
    labels = np.arange(7) * 4
    each = csoftmax.entmax_loss(x, labels, reduction="none")
    total = csoftmax.entmax_loss_with_grad(x, labels, reduction="sum")
    mean = csoftmax.entmax_loss_with_grad(x, labels)
    assert each.shape == (7,)
    assert np.isclose(float(total.loss), float(each.astype(np.float64).sum()), rtol=1e-6)
    assert np.isclose(float(mean.loss), float(total.loss) / 7, rtol=1e-6)
    p = csoftmax.entmax(x).astype(np.float64) - np.eye(30)[labels]
    assert np.allclose(total.grad.astype(np.float64), p, atol=2 * EPS[dtype])
    assert np.allclose(mean.grad.astype(np.float64), p / 7, atol=EPS[dtype])
    for kind in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "uint64"):
        assert csoftmax.entmax_loss(x, labels.astype(kind)) == mean.loss
    hard = csoftmax.entmax_loss_with_grad(x, np.eye(30)[labels].astype(dtype_of(dtype)))
    assert np.isclose(float(hard.loss), float(mean.loss), rtol=1e-6)
    assert np.allclose(hard.grad.astype(np.float64), mean.grad.astype(np.float64), atol=EPS[dtype])
    assert np.isnan(csoftmax.entmax_loss(x[:0], labels[:0]))
    assert csoftmax.entmax_loss(x[:0], labels[:0], reduction="sum") == 0
    bad = x.copy()
    bad[2, 3] = np.nan
    got = csoftmax.entmax_loss_with_grad(bad, labels, reduction="none")
    assert np.isnan(got.loss).tolist() == [i == 2 for i in range(7)]
    assert np.isnan(got.grad.astype(np.float64)).any(-1).tolist() == [i == 2 for i in range(7)]


def test_alpha_1_is_cross_entropy(dtype):
    x = logits((7, 30), dtype)
    labels = np.arange(7)
    ours = csoftmax.entmax_loss_with_grad(x, labels, 1.0)
    theirs = csoftmax.cross_entropy_with_grad(x, labels)
    assert np.isclose(float(ours.loss), float(theirs.loss), rtol=1e-6)
    assert np.allclose(ours.grad.astype(np.float64), theirs.grad.astype(np.float64), atol=EPS[dtype])
    q = np.random.default_rng(0).random((7, 30))
    q[:, ::2] = 0
    q = (q / q.sum(-1, keepdims=True)).astype(np.float64 if dtype == "float64" else np.float32)
    z = x.astype(np.float64)
    p = csoftmax.log_softmax(z)
    divergence = np.sum(np.where(q > 0, q * (np.log(np.where(q > 0, q, 1)) - p), 0), axis=-1)
    assert np.allclose(csoftmax.entmax_loss(x, q, 1, reduction="none"), divergence, rtol=1e-5)
    g = csoftmax.entmax_loss_with_grad(x, q, 1, reduction="sum").grad.astype(np.float64)
    assert np.allclose(g, np.exp(p) - q, atol=2 * EPS[dtype])


def test_images():
    x = logits((2, 5, 3, 4), "float32")
    labels = np.random.default_rng(0).integers(0, 5, (2, 3, 4))
    got = csoftmax.entmax_loss_with_grad(x, labels, axis=1)
    flat = csoftmax.entmax_loss_with_grad(np.moveaxis(x, 1, -1).reshape(-1, 5), labels.ravel())
    assert got.loss == flat.loss
    assert np.array_equal(np.moveaxis(got.grad, 1, -1).reshape(-1, 5), flat.grad)
    joined = csoftmax.entmax(x, 1.5, axis=(1, 3))
    assert np.allclose(joined.sum(axis=(1, 3)), 1)


def test_the_entmax_package_agrees():
    """The entmax package gives the same values and gradients where it is right."""
    torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra")
    entmax = pytest.importorskip("entmax", reason="belongs to the bench extra")
    x = logits((20, 50), "float64", sigma=2)
    dy = logits((20, 50), "float64", seed=3)
    for alpha, function in ((1.5, entmax.entmax15), (2.0, entmax.sparsemax)):
        t = torch.tensor(x, requires_grad=True)
        y = function(t, dim=-1)
        y.backward(torch.tensor(dy))
        assert np.allclose(y.detach().numpy(), csoftmax.entmax(x, alpha), atol=1e-14)
        ours = csoftmax.entmax_vjp(dy, csoftmax.entmax(x, alpha), alpha)
        assert np.allclose(t.grad.numpy(), ours, atol=1e-12)
    labels = np.arange(20)
    t = torch.tensor(x, requires_grad=True)
    loss = entmax.entmax15_loss(t, torch.tensor(labels))
    assert np.allclose(loss.detach().numpy(), csoftmax.entmax_loss(x, labels, reduction="none"), atol=1e-13)
    # it is not right here: rows of -inf among finite ones, and losses that are small
    row = torch.tensor([[1.0 - 2.0**-30, 0.0]], dtype=torch.float64) * 2
    ours = csoftmax.entmax_loss(row.numpy(), [0])
    theirs = entmax.entmax15_loss(row, torch.tensor([0])).item()
    assert ours > 0
    assert abs(theirs / ours - 1) > 0.1


@pytest.mark.parametrize("alpha", [1, 1.5, 2])
def test_the_mean_of_no_rows(alpha):
    """NaN, and no warning, which the tests' configuration makes an error."""
    assert np.isnan(csoftmax.entmax_loss(np.empty((0, 6)), np.empty(0, int), alpha))
