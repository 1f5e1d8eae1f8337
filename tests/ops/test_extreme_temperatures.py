"""Temperatures from the smallest subnormal to the largest double, against the definitions in mpmath.

Beyond 2^+-170 (float64: 2^+-500) neither 1/T nor x / T fits the compute type, but results do: differences of small
logits over a small T, gradients of large dy over a large T, losses with a small weight.  Inputs have a magnitude near T
as far as the dtype has it, or any.
"""

import functools
import math

import mpmath
import numpy as np
import pytest

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import FORMATS, bits, dtype_of, wide

LARGEST = float(np.finfo(np.float64).max)
SINGLE = (1.3 * 2.0**-171, 1e-45, 1e-52, 1e-60, 1e-100, 1e-300, 1e-310, 5e-324, 1.7 * 2.0**171, 1e60, 1e300, LARGEST)
DOUBLE = (1.3 * 2.0**-501, 1e-160, 1e-200, 1e-300, 1e-310, 1.5e-323, 5e-324, 1.7 * 2.0**501, 1e250, 8.9e307, LARGEST)
FAST = {"float32": (1.3 * 2.0**-171, 1e-60, 5e-324, 1e60), "bfloat16": (1e-60,), "float16": ()}
FAST["float64"] = (1e-160, 5e-324, 1e250, LARGEST)
CASES = [
    pytest.param(dtype, t, marks=[] if t in FAST[dtype] else pytest.mark.slow)
    for dtype in FAST
    for t in (DOUBLE if dtype == "float64" else SINGLE)
]
EXPONENTS = {"float64": (-1073, 1020), "float32": (-148, 124), "bfloat16": (-132, 124), "float16": (-23, 12)}
every_case = pytest.mark.parametrize(("dtype", "temperature"), CASES, ids=lambda value: str(value))
HALF = ("float16", "bfloat16")


@pytest.fixture(autouse=True)
def precision():
    with mpmath.workprec(1200):
        yield


def rows(dtype, temperature, seed):
    """Logits of magnitudes around T, far above it, and any; ties, and classes of -inf."""
    rng, (low, high) = np.random.default_rng(seed), EXPONENTS[dtype]
    near = math.frexp(temperature)[1]
    for n in (1, 2, 5, 33):
        for offset in (-3, 5, 30, 120, None):
            exponent = rng.uniform(low, high) if offset is None else near + offset
            x = np.ldexp(rng.standard_normal(n).clip(-3, 3), int(np.clip(exponent, low, high - 2)))
            if offset == 5 and n > 2:
                x[rng.integers(n)] = -np.inf
            yield x.astype(dtype_of(dtype))
        yield np.repeat(x[:1], n).astype(dtype_of(dtype))


def numbers(x):
    return [mpmath.mpf(float(v)) for v in wide(x)]


def ulps(got, truth, dtype, scale=0):
    """The error in ULP at the larger of the truth and `scale`; what exceeds the dtype is to be infinite."""
    precision, lowest = FORMATS[dtype]
    got, size = float(got), max(abs(truth), abs(scale))
    largest = 2 - mpmath.mpf(2) ** -precision  # beyond it numbers are rounded to infinity
    largest = mpmath.ldexp(largest, {"float64": 1023, "float16": 15}.get(dtype, 127))
    if abs(truth) >= largest * (1 - mpmath.mpf(2) ** (3 - precision)) and math.isinf(got):
        return 0 if (got > 0) == (truth > 0) else math.inf
    if not math.isfinite(got):
        return math.inf
    exponent = max(int(mpmath.floor(mpmath.log(size, 2))), lowest) if size else lowest
    return float(abs(mpmath.mpf(got) - truth) / mpmath.mpf(2) ** (exponent - precision + 1))


def softmax_parts(x, temperature):
    """max / T, (x - max) / T, e of it, their sum, and its logarithm."""
    values, t = numbers(x), mpmath.mpf(temperature)
    m = max(values)
    z = [(v - m) / t if v > -mpmath.inf else -mpmath.inf for v in values]
    e = [mpmath.exp(v) if v > -1e6 else mpmath.mpf(0) for v in z]
    others = mpmath.fsum(p for p, v in zip(e, values, strict=True) if v != m)
    count = values.count(m)
    return m / t, z, e, others + count, mpmath.log1p(others + (count - 1))


@every_case
def test_softmax_family(dtype, temperature):
    limit = 0.51 if dtype in HALF else 4
    for x in rows(dtype, temperature, 1):
        top, z, e, total, tail = softmax_parts(x, temperature)
        for got, p in zip(wide(csoftmax.softmax(x, temperature=temperature)), e, strict=True):
            assert ulps(got, p / total, dtype) <= limit, (x, got)
        for got, v in zip(wide(csoftmax.log_softmax(x, temperature=temperature)), z, strict=True):
            if v == -mpmath.inf:
                assert got == -np.inf
            else:
                assert ulps(got, v - tail, dtype) <= limit, (x, got)
        scale = abs(top) if abs(top) < 1e30 else 0
        assert ulps(csoftmax.logsumexp(x, temperature=temperature), top + tail, dtype, scale) <= limit, x
        k = (len(x) + 1) // 2
        full = csoftmax.topk_softmax(x, k, temperature=temperature, normalize="full")
        assert np.array_equal(full.values, csoftmax.softmax(x, temperature=temperature)[full.indices])
        renormalised = csoftmax.topk_softmax(x, k, temperature=temperature)
        rest = mpmath.fsum(e[i] for i in renormalised.indices)
        for got, i in zip(wide(renormalised.values), renormalised.indices, strict=True):
            assert ulps(got, e[i] / rest, dtype) <= limit, (x, got)


@every_case
def test_draws(dtype, temperature):
    for x in rows(dtype, temperature, 2):
        _, _, e, total, _ = softmax_parts(x, temperature)
        draws = csoftmax.sample(x, temperature=temperature, size=9, rng=3)
        below = np.cumsum([0.0, *(float(p / total) for p in e)])
        for draw, uniform in zip(draws, np.random.default_rng(3).random(9), strict=True):
            assert below[draw] - 1e-6 <= uniform <= below[draw + 1] + 1e-6, (x, uniform, draw)


@every_case
def test_gradients_of_the_softmax_family(dtype, temperature):
    rng, t = np.random.default_rng(4), mpmath.mpf(temperature)
    unit = mpmath.mpf(2) ** -(46 if dtype != "float64" else 98)
    limit = 0.6 if dtype in HALF else 5.5
    for x in rows(dtype, temperature, 3):
        dy = np.where(np.isfinite(wide(x)), wide(x).astype(np.float64) / 4, 0).astype(x.dtype)
        y = rng.dirichlet(np.ones(len(x))).astype(x.dtype)
        d, p = numbers(dy), numbers(y)
        total = mpmath.fsum(a * b for a, b in zip(d, p, strict=True))
        slack = mpmath.fsum(abs(a * b) for a, b in zip(d, p, strict=True)) * unit
        got = wide(csoftmax.softmax_vjp(dy, y, temperature=temperature))
        precision, _ = FORMATS[dtype]
        for value, a, b in zip(got, d, p, strict=True):
            scale = b * slack / t * mpmath.mpf(2) ** precision
            assert ulps(value, b * (a - total) / t, dtype, scale) <= limit, (dy, y, value)
        log_y = np.log(wide(y).astype(np.float64).clip(1e-7)).astype(x.dtype)
        total = mpmath.fsum(d)
        got = wide(csoftmax.log_softmax_vjp(dy, log_y, temperature=temperature))
        for value, a, b in zip(got, d, numbers(log_y), strict=True):
            p, power = mpmath.exp(b), mpmath.mpf(2) ** mpmath.nint(b / mpmath.log(2))
            scale = max(abs(a - total * power), abs(total * (p - power))) / t
            if dtype in HALF:  # rounded from float32 or better
                scale = 0 if scale == 0 else scale * 2.0**-10
            assert ulps(value, (a - total * p) / t, dtype, scale) <= limit, (dy, log_y, value)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": True}, {"clip": True}], ids=str)
@every_case
def test_losses(dtype, temperature, options):
    rng = np.random.default_rng(5)
    real = np.float64 if dtype == "float64" else np.float32
    for i, x in enumerate(rows(dtype, temperature, 4)):
        n, label, reduction, eps = len(x), int(rng.integers(len(x))), ("sum", "mean")[i % 2], 0
        given = {"temperature": temperature, "reduction": reduction}
        if "label_smoothing" in options:
            eps = mpmath.mpf(options["label_smoothing"])
            given |= options
        w, s = np.ones(n, real), 1.0
        if "weight" in options:  # products with the distances are in range where the distances are not
            w, s = np.ldexp(rng.random(n) + 0.5, -20).astype(real), 2.0**-60
            given |= {"weight": w, "sample_weight": [s]}
        clip = mpmath.mpf(0.25) if "clip" in options else None
        if clip:
            given["clip_value"] = 0.25
        target, q = [label], [mpmath.mpf(j == label) for j in range(n)]
        if i % 3 == 2:
            target = (rng.random((1, n)) * (rng.random((1, n)) < 0.7)).astype(real)
            q = numbers(target[0])
        a = [mpmath.mpf(float(v)) * ((1 - eps) * u + eps / n) for v, u in zip(w, q, strict=True)]
        divisor = mpmath.fsum(mpmath.mpf(float(v)) * u for v, u in zip(w, q, strict=True)) * s
        result = csoftmax.cross_entropy_with_grad(x[None], target, **given)
        if reduction == "sum":
            divisor = mpmath.mpf(1)
        elif divisor == 0:
            assert np.isnan(result.loss)
            assert not result.grad.any()
            continue
        _, z, e, total, tail = softmax_parts(x, temperature)
        mass, t = mpmath.fsum(a), mpmath.mpf(temperature)
        if any(v == -mpmath.inf and u for v, u in zip(z, a, strict=True)):
            assert result.loss == np.inf
        else:
            loss = (mass * tail - mpmath.fsum(u * v for u, v in zip(a, z, strict=True) if u)) * s / divisor
            if dtype != "float64" or loss / mpmath.mpf(s) * divisor < LARGEST:  # the weight is multiplied last
                assert ulps(result.loss, loss, np.dtype(real).name) <= 4, (x, target, result.loss)
        for j in range(n):
            p = e[j] / total
            gradient = (p * mass - a[j]) * s / t
            scale = max(p * mass, a[j]) * s / t
            if e[j] == 0 == a[j] or (p < 2.0**-150 and not a[j] and dtype != "float64"):
                continue
            if clip:
                gradient, scale = max(-clip, min(clip, gradient)), min(clip, scale)
            got = float(wide(result.grad)[0, j])
            limit = 1.01 if dtype in HALF else 4.5
            if scale / divisor < mpmath.mpf(2) ** (EXPONENTS[dtype][1] - 2) or clip:
                assert ulps(got, gradient / divisor, dtype, scale / divisor) <= limit, (x, target, j, got)


def test_what_was_reported():
    f4 = np.float32
    assert np.isclose(csoftmax.log_softmax(f4([0, -1e-36]), temperature=1e-60)[1], -1.0e24, rtol=1e-6)
    assert np.isclose(csoftmax.cross_entropy(f4([[1e-36, 2e-36]]), [0], temperature=1e-60), 1.0e24, rtol=1e-6)
    for dy, t, expected in ((1e38, 1e60, 2.5e-23), (1e-30, 1e-60, 2.5e29)):
        got = csoftmax.softmax_vjp(f4([dy, 0]), f4([0.5, 0.5]), temperature=t)
        assert np.allclose(got, [expected, -expected], rtol=1e-6)
        got = csoftmax.log_softmax_vjp(f4([dy, 0]), np.log(f4([0.5, 0.5])), temperature=t)
        assert np.allclose(got, [2 * expected, -2 * expected], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.25, 0.1, 1e-3, 1e-10, 1e-29])
def test_probabilities_that_are_subnormal_in_float32(temperature):
    """Their rounding, divided by a small T, would show: 62 ULP at T = 0.01."""
    dy = np.float32([1, 0, 0, 0])
    y = np.float32([0, -87.5, -100, -103.75])
    got = csoftmax.log_softmax_vjp(dy, y, temperature=temperature)
    total = sum(numbers(dy))
    for value, d, log in list(zip(got, numbers(dy), numbers(y), strict=True))[1:]:
        truth = (d - total * mpmath.exp(log)) / mpmath.mpf(temperature)
        assert ulps(value, truth, "float32") <= 4


def gradient_of_loss(x, y, axis, **options):
    return csoftmax.cross_entropy_with_grad(
        x,
        np.full(x.size // x.shape[axis], 1).reshape(np.delete(x.shape, axis)),
        axis=axis,
        label_smoothing=0.1,
        reduction="sum",
        **options,
    ).grad


CALLS = (
    lambda x, y, axis, **options: csoftmax.softmax(x, axis, **options),
    lambda x, y, axis, **options: csoftmax.log_softmax(x, axis, **options),
    lambda x, y, axis, **options: csoftmax.softmax_vjp(x, y, axis, **options),
    lambda x, y, axis, **options: csoftmax.log_softmax_vjp(x, -y, axis, **options),
    gradient_of_loss,
)


@pytest.mark.parametrize(("dtype", "temperature"), [("float32", 1e-60), ("float32", 1e60), ("float64", 5e-324)])
def test_long_rows_layouts_and_instruction_sets(dtype, temperature):
    """Rows of several blocks, on every path and instruction set, have the bits of contiguous rows."""
    exponent = int(np.clip(math.frexp(temperature)[1] + 4, *EXPONENTS[dtype]))
    rng, before = np.random.default_rng(6), binding.isa()
    for n in (40, 9000):
        x = np.ldexp(rng.standard_normal((3, n)), exponent).astype(dtype)
        y = rng.dirichlet(np.ones(n), 3).astype(dtype)
        for call in CALLS:
            call = functools.partial(call, temperature=temperature)
            expected = call(x, y, -1)
            assert not np.isnan(expected).any()
            assert np.array_equal(bits(call(x.T.copy(), y.T.copy(), 0).T), bits(expected))
            assert np.array_equal(bits(call(x[:, ::-1][:, ::-1], y[:, ::-1][:, ::-1], 1)), bits(expected))
            for row in range(3):
                assert np.array_equal(bits(call(x[row], y[row], 0)), bits(expected[row]))
            for name in binding.isa_available():
                binding.select_isa(name)
                try:
                    assert np.array_equal(bits(call(x, y, -1)), bits(expected)), name
                finally:
                    binding.select_isa(before)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_differences_that_overflow(dtype):
    """x - max is beyond the dtype where (x - max) / T is not, at an ordinary T too."""
    large = float(np.finfo(dtype).max)
    x = np.array([large, -large], dtype)
    for t in (2.5, 1e3):
        assert np.isclose(csoftmax.log_softmax(x, temperature=t)[1], -(large / t) * 2, rtol=1e-6)
        assert np.isclose(csoftmax.cross_entropy(x[None], [1], temperature=t), large / t * 2, rtol=1e-6)
        smooth = csoftmax.cross_entropy(x[None], [0], temperature=t, label_smoothing=0.1)
        assert np.isclose(smooth, large / t * 0.1, rtol=1e-6)
