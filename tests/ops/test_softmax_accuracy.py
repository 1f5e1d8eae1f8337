"""softmax, log_softmax and logsumexp are within a few ULP of the exact result, wherever the logits lie.

Promises: softmax 3 ULP (float32), 4 (float64), 0.51 ULP of the half types; log_softmax 4 ULP *relative* at any gap;
logsumexp 4 ULP of max(|m|, |result|).  ULP are those of the result, subnormal results included.  The oracle is
longdouble for bulk, mpmath for selected rows; where longdouble is no more than float64, mpmath alone.
"""

import math

import numpy as np
import pytest
from oracles.softmax import exact, exact_ulps

import csoftmax
from csoftmax._spec.formats import JUDGES_FLOAT64, dtype_of, spacing, ulp_error, wide
from csoftmax._spec.operations import FORWARD
from csoftmax._spec.record import Sample
from csoftmax._spec.samples import logits
from csoftmax._spec.softmax import exact_forward

SIGMAS = (0, 0.1, 1, 5, 20, 50, 100)
OFFSETS = {
    "float32": (0, 10, -10, 1e3, -1e3, 1e6, -1e6, 1.1e6, 1e7, -1e30),
    "float64": (0, 10, -10, 1e3, -1e3, 1e6, -1e6, 2.0**45, -(2.0**46), 1e17, -1e30, 1e300),
    "float16": (0, 10, -10, 1e3, -1e3, 3e4),
    "bfloat16": (0, 10, -10, 1e3, -1e6, 1e30),
}
bulk = pytest.mark.skipif(not JUDGES_FLOAT64, reason="long double is float64 here")


def check(op, dtype, x, temperature=1.0):
    sample = Sample({"x": x}, {"temperature": temperature})
    (error,), (limit,) = op.errors(sample, op.compute(sample), dtype), op.limits(dtype, {})
    assert error <= limit, f"{op.name} {dtype} {x.shape}: {error:.3f} ULP, limit {limit}"


@bulk
def test_hardest_rows_found_with_a_temperature():
    """1/T rounded, and the product with it, took these to 3.20 and, with 1/T as a pair, to 3.08 ULP."""
    row = [17.164436, 2.9935205, -21.427898, -12.262162, 1.2861689, 5.0619345, 4.2730608]
    check(FORWARD[0], "float32", np.array([row], np.float32), 0.4161493728521245)
    rng = np.random.default_rng(1)
    for _ in range(60):
        k, temperature, sigma = int(rng.integers(2, 9)), float(np.exp(rng.normal() * 1.2)), rng.choice([3, 8, 20, 50])
        check(FORWARD[0], "float32", (rng.standard_normal((20_000, k)) * sigma).astype(np.float32), temperature)


@bulk
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_hardest_rows_found(dtype):
    """One lane carries most of the sum, so that exp's error there and in the element add up: found by search."""
    op = FORWARD[0]
    for rows, k, sigma, seed in ((400, 128, 8, 0), (400, 256, 4, 0), (400, 300, 6, 1), (400, 129, 5, 21)):
        check(op, dtype, logits((rows, k), dtype, seed=seed, sigma=sigma))


@bulk
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_offsets(op, dtype):
    for k in (1, 2, 5, 17, 64, 129, 1000, 4097):
        for offset in OFFSETS[dtype]:
            for sigma in (0.1, 5, 50):
                check(op, dtype, logits((max(1, 4000 // k), k), dtype, seed=k, sigma=sigma, offset=offset))


@bulk
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_a_million_classes(op, dtype):
    check(op, dtype, logits((1, 1_000_003), dtype, sigma=5))


@bulk
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_constant_rows(op, dtype):
    for k in (1, 2, 3, 31, 32, 128, 1000, 1024, 4096, 4097, 10007, 70000):
        for value in (0, 1 / 3, -7.3, 88.0, -1e4):
            check(op, dtype, np.full((1, k), value).astype(dtype_of(dtype)))


@bulk
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_subnormal_results_and_long_tails(op, dtype):
    """A ladder of gaps through the last normal and all subnormal probabilities, to zero."""
    deep = 760 if dtype == "float64" else 120
    for k in (33, 257, 5000):
        ladder = -np.linspace(0, deep, k)
        check(op, dtype, np.stack([ladder, ladder[::-1] + 3, ladder * 0.999 - 1000]).astype(dtype_of(dtype)))


@bulk
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_softmax_of_a_near_certain_class(dtype):
    """The log-probability of the top class is as exact as any other: [16.9, 0] gives -4.58e-8, not 0."""
    gaps = np.arange(0.25, 103 if dtype == "float32" else 708, 0.25)
    for rest in (1, 2, 7, 40):
        for top in (0.0, 16.9, -3e5):
            x = np.full((len(gaps), rest + 1), top)
            x[:, 1:] -= gaps[:, None]
            x = x.astype(dtype)
            got = csoftmax.log_softmax(x)
            error = ulp_error(got, exact_forward(x)[1])
            assert error <= 4, f"{error} ULP"
            assert np.all(got[:, 0] < 0)


TEMPERATURES = {
    "float32": (0.01, 0.1, 0.3, 0.7, 1.7, 3.0, 10.0, 100.0, 1e-10, 1e10, 1e-18, 1e19, 1e-30, 1e30, 1e-42, 1e200),
    "float64": (0.01, 0.1, 0.3, 0.7, 1.7, 3.0, 10.0, 100.0, 1e-10, 1e10, 1e-151, 1e151, 1e-300, 1e300, 5e-324),
    "float16": (0.01, 0.3, 1.7, 100.0, 1e-30, 1e30),
    "bfloat16": (0.01, 0.3, 1.7, 100.0, 1e-30, 1e30),
}


@bulk
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_temperatures(op, dtype):
    largest, smallest = float(np.finfo("float32").max) / 1e3, float(np.finfo("float32").tiny) * 1e3
    if dtype == "float64":
        largest, smallest = 1e305, 1e-300
    if dtype == "float16":
        largest, smallest = 6e3, 6e-6
    for t in TEMPERATURES[dtype]:
        for k in (1, 3, 16, 65, 500, 4100):
            for sigma in (0.3, 5, 40, 3e6):  # of x / T
                scale = sigma * t
                if smallest < scale < largest / 5:
                    check(op, dtype, logits((max(1, 2000 // k), k), dtype, seed=k, sigma=scale), t)
            check(op, dtype, logits((3, k), dtype, seed=k, sigma=2.0), t)


@bulk
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_edge_of_the_ordinary_range(op):
    """Logits on both sides of where exp's range reduction hands over to x - max, with and without temperature."""
    for dtype, edge in (("float32", 1e6), ("float64", 2.0**45)):
        for t in (1.0, 0.3, 7.0, 1e-3):
            for factor in (1 - 1e-3, 1, 1 + 1e-3):
                for sign in (1, -1):
                    x = sign * edge * t * factor + logits((40, 50), "float64", sigma=8 * t)
                    check(op, dtype, x.astype(dtype), t)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_selected_rows_in_arbitrary_precision(op, dtype):
    """Compare with mpmath, which has no rounding of its own."""
    for k, sigma, offset, t in (
        (2, 20, 0, 1.0),
        (17, 5, 0, 1.0),
        (40, 100, 1e3, 1.0),
        (129, 1, -1e6, 1.0),
        (65, 300, 0, 1.0),
        (33, 20, 0, 0.3),
        (50, 2000, 1e5, 37.0),
        (20, 5e-29, 0, 1e-30),
        (400, 8, 3e7, 1.0),
    ):
        x = logits((k,), dtype, seed=k, sigma=sigma, offset=offset)
        got = op.function()(x, temperature=t)
        reference = exact(op.name, x, temperature=t)
        scale = op.oracle(x, temperature=t)[0].scale
        error = exact_ulps(got, reference, dtype, scale if scale is None else np.atleast_1d(scale))
        assert error <= op.limits(dtype, {})[0], f"K={k} sigma={sigma} T={t}: {error:.3f} ULP"


@bulk
def test_the_oracle_agrees_with_arbitrary_precision():
    """The bulk oracle is itself within 0.4 ULP of float64, and nothing of float32."""
    for dtype, limit in (("float32", 0.001), ("float64", 0.4)):
        x = logits((60,), dtype, seed=5, sigma=150)
        for op in FORWARD:
            for value, truth in zip(np.atleast_1d(op.oracle(x)[0].value), exact(op.name, x), strict=True):
                ulp = float(spacing(value, dtype))
                high = float(value)
                error = abs(float(truth - high) - float(value - np.longdouble(high)))
                assert error <= limit * ulp


def test_probabilities_sum_to_one(dtype):
    k, ulp = 1000, {"float32": 2**-24, "float64": 2**-53, "float16": 2**-11, "bfloat16": 2**-8}[dtype]
    for sigma in (0, 1, 20):
        p = wide(csoftmax.softmax(logits((50, k), dtype, sigma=sigma)))
        assert float(abs(p.sum(axis=-1) - 1).max()) <= 4 * ulp * math.sqrt(k)


@pytest.mark.long
@bulk
@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_many_random_rows(op, dtype):
    """Ten million elements for each scale."""
    for seed in range(100):
        for sigma in SIGMAS:
            check(op, dtype, logits((100, 1000), dtype, seed=seed, sigma=sigma, offset=seed * 10))
