"""The kernel of logistic terms: ULP against mpmath at every size of u, special values, bits."""

import math

import numpy as np
import pytest

from csoftmax._cpu import binding


def run(u, counts=None, scale=None, upstream=None, temperature=1.0, clip_norm=0.0, clip_value=0.0, gradient=True):
    """Losses and gradients of rows of terms, the target last."""
    u = np.array(u, copy=True)
    loss = np.empty(len(u))
    counts = None if counts is None else np.atleast_2d(np.asarray(counts, np.float64))
    dtype = binding.DTYPES[u.dtype.name]
    binding.run_logistic_loss(dtype, u, counts, scale, upstream, loss, gradient, temperature, clip_norm, clip_value, 1)
    return loss, u


def awkward_numbers(dtype):
    rng = np.random.default_rng(0)
    sizes = np.concatenate(
        [
            np.linspace(-800, 800, 401),
            rng.uniform(-40, 40, 400),
            rng.uniform(-1, 1, 200),
            10.0 ** rng.uniform(-300, 2.8, 200),
            -(10.0 ** rng.uniform(-300, 2.8, 200)),
            [0.0, -0.0, 5e-324, -5e-324, 36.7, -36.7, 103.9, -103.9, 745.1, -745.1, 745.2, -745.2, 746.1, -746.1],
        ]
    )
    return sizes.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_terms_and_derivatives_in_ulp(dtype, isa):
    """Every number as a negative and as a target."""
    mpmath = pytest.importorskip("mpmath")
    u = awkward_numbers(dtype)
    worst = {"loss": 0.0, "derivative": 0.0}
    alone, g_target = run(u[:, None])  # only a target: softplus(-u), -sigma(-u)
    pair = np.stack([u, np.full_like(u, 1000)], axis=1)  # a target that costs nothing
    negative, g_pair = run(pair)
    with mpmath.workdps(60):
        for i, v in enumerate(u.tolist()):
            v = mpmath.mpf(v)
            for sign, loss, g in ((-1, alone[i], -g_target[i, 0]), (1, negative[i], g_pair[i, 0])):
                term = mpmath.log1p(mpmath.exp(sign * v))
                sigma = 1 / (1 + mpmath.exp(-sign * v))
                for name, got, exact, kind in (("loss", loss, term, dtype), ("derivative", g, sigma, dtype)):
                    ulp = max(float(np.spacing(np.abs(kind(float(exact))))), float(np.finfo(kind).smallest_subnormal))
                    worst[name] = max(worst[name], float(abs(mpmath.mpf(float(got)) - exact) / ulp))
    limit = 2 if dtype == np.float64 else 0.51
    assert worst["loss"] <= limit, worst
    assert worst["derivative"] <= limit, worst


def test_special_values(isa):
    for dtype in (np.float32, np.float64):
        u = np.array(
            [[-np.inf, 0.0], [np.inf, 0.0], [np.nan, 0.0], [0.0, np.inf], [0.0, -np.inf], [0.0, np.nan]], dtype
        )
        loss, g = run(u)
        half = dtype(math.log(2))
        assert np.array_equal(loss, [half, np.inf, np.nan, half, np.inf, np.nan], equal_nan=True)
        expected = [[0, -0.5], [1, -0.5], [np.nan, -0.5], [0.5, 0], [0.5, -1], [0.5, np.nan]]
        assert np.array_equal(g, np.array(expected, dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 127, 128, 129, 257, 1000, 4095, 4097, 9000])
@pytest.mark.parametrize("has_counts", [False, True])
def test_rows_of_every_length(dtype, n, has_counts, keep_isa):
    rng = np.random.default_rng(n)
    u, counts = (
        rng.normal(size=(3, n)).astype(dtype) * 3,
        rng.integers(1, 5, n - 1).astype(float) if has_counts else np.ones(n - 1),
    )
    scale, upstream = np.array([0.5, 0.0, 2.0]), np.array([1.0, 2.0, -3.0])
    c = np.append(counts, 1.0)
    wide = u.astype(np.float64)
    wide[:, -1] *= -1
    terms = c * np.logaddexp(0, wide)
    g = c / (1 + np.exp(-wide))
    g[:, -1] *= -1
    found = set()
    for isa in binding.isa_available():
        binding.select_isa(isa)
        loss, got = run(u, counts if n > 1 and has_counts else None, scale, upstream, 0.5)
        assert np.allclose(loss, scale * terms.sum(1), rtol=1e-7 if dtype == np.float32 else 1e-13)
        assert np.allclose(got, g * (scale / 0.5 * upstream)[:, None], rtol=2e-7 if dtype == np.float32 else 1e-14)
        found.add(loss.tobytes() + got.tobytes())
    assert len(found) == 1


def test_a_scale_of_0_reads_nothing():
    loss, g = run(np.array([[np.nan, np.inf]]), scale=np.zeros(1))
    assert loss[0] == 0
    assert not g.any()


def test_clipping():
    u = np.array([[0.0, 3.0, -1.0]])
    g = np.array([0.5, 1 / (1 + math.exp(-3)), -1 / (1 + math.exp(-1))])
    norm = np.linalg.norm(2 * g)
    _, got = run(u, scale=np.array([2.0]), upstream=np.array([3.0]), clip_norm=0.7)
    assert np.allclose(got, 3 * 2 * g * 0.7 / norm, rtol=1e-14)
    _, got = run(u, scale=np.array([2.0]), upstream=np.array([3.0]), clip_value=1.2)
    assert np.allclose(got, 3 * np.clip(2 * g, -1.2, 1.2), rtol=1e-14)
    _, got = run(u, clip_norm=100.0)
    assert np.allclose(got, g, rtol=1e-14)


@pytest.mark.parametrize("value", [-700.0, -40.0, -1e-3, 0.0, 1e-3, 5.0])
def test_long_rows_of_equal_terms(value, isa):
    """A product of many factors neither overflows nor loses small terms."""
    n = 20_000
    u = np.full((1, n + 1), value)
    u[0, -1] = 800
    loss, _ = run(u)
    term = max(value, 0) + math.log1p(math.exp(-abs(value)))
    assert loss[0] == pytest.approx(n * term, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_few_terms_have_the_bits_of_the_row_alone(dtype, keep_isa):
    """Rows of at most eight terms share a kernel; a scale of 1 takes each of them alone."""
    rng = np.random.default_rng(0)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 745.2, -745.2, 1e-30, -1e-30], dtype)
    for n in range(1, 10):
        for rows in (2, 3, 15, 16, 17, 40):
            u, upstream = (8 * rng.normal(size=(rows, n))).astype(dtype), rng.normal(size=rows)
            u[rng.random((rows, n)) < 0.1] = rng.choice(special)
            found = set()
            for isa in binding.isa_available():
                binding.select_isa(isa)
                for scale in (None, np.ones(rows)):
                    loss, g = run(u, scale=scale, upstream=upstream, temperature=0.7)
                    found.add(loss.tobytes() + g.tobytes())
                    assert np.array_equal(run(u, scale=scale, gradient=False)[1], u, equal_nan=True)
            assert len(found) == 1
