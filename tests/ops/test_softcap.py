"""softcap of cross-entropy: the capped logits and their slopes, the definition, special values, clips, extremes."""

from itertools import pairwise

import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits, looped
from oracles.cross_entropy import exact

import csoftmax
from csoftmax._spec.formats import EXACT, NAN_BITS, bits, dtype_of, ulp_error
from csoftmax._spec.samples import logits

CAPS = (1.0, 2.0, 30.0, 0.37, 1e-30, 1e30)


def spread(cap, dtype, count=4000):
    """Numbers of every magnitude beside a cap, most of them where tanh bends."""
    rng = np.random.default_rng(0)
    u = np.concatenate([rng.uniform(-3, 3, count), np.geomspace(1e-12, 60, count), 1 + np.arange(-40, 41) * 2.0**-24])
    return (np.concatenate([u, -u]) * cap).astype(dtype)


def check_cap(x, cap, most, most_of_product):
    """Check y and y y' of x: a row of one class without mass has the loss z_loss y^2."""
    with np.errstate(all="ignore"):
        scale = 2.0 ** -np.round(np.log2(cap))  # so that squares are in range; times a power of two, bits stay
        x, cap = (x * x.dtype.type(scale)).astype(x.dtype), cap * scale
    loss, grad = csoftmax.cross_entropy_with_grad(
        x[:, None], np.zeros((len(x), 1), x.dtype), softcap=cap, z_loss=0.5, reduction="none"
    )
    u = x.astype(EXACT) / EXACT(cap)
    y = EXACT(cap) * np.tanh(u)
    is_large = np.abs(x) > 1e-12
    found = np.sqrt(2 * loss.astype(EXACT))
    assert ulp_error(found[is_large], np.abs(y)[is_large], x.dtype.name) <= most + 0.5  # half an ULP: of the square
    slope = 1 / np.cosh(u) ** 2
    assert ulp_error(grad[:, 0], y * slope, x.dtype.name) <= most_of_product


# In units of half the spacing of 1, with a = t^2 / (1 - t^2) <= 1.21 where y = x (1 + w), |w| <= 0.284 |1 + w|:
# y errs by 1 (rounding) + 0.284 (4.1: x^2, the polynomial, its coefficients, their product) + 0.5 (minimax) = 2.7;
# 1 - y^2 / c^2 by a (2 * 2.7 + 2) + 1, of which y's part is negative in the product with y, which has two roundings
# more: (2 a - 1) 2.7 + 2 a + 3 = 9.2.  Beyond |x / c| = 0.95, t errs by 2.1 (exp), r by 2.3, q by 4.9, 2 q r by 7.6, y
# by 3.7; with the two roundings of the gradient at most 13.3, where no two of them cancel.  Found: 6.5 in either.
PRODUCT_ULP = 9.2
FAR_PRODUCT_ULP = 13.3


@looped("dtype", ("float32", "float64"))
@looped("cap", CAPS)
def test_capped_logits_and_slopes(dtype, cap):
    x = spread(cap, dtype)
    x = x[np.abs(x) < 40 * cap]  # beyond, products are subnormal in float
    is_near = np.abs(x) < 0.95 * cap
    check_cap(x[is_near], cap, 2, PRODUCT_ULP)
    check_cap(x[~is_near], cap, 2, FAR_PRODUCT_ULP)


@looped("dtype", ("float32", "float64", "bfloat16"))
def test_caps_beyond_the_range_of_the_constants(dtype):
    """Logits and cap are multiplied by a power of two, which leaves the slopes as they are."""
    x, wide = spread(1.0, dtype_of(dtype), 200), EXACT
    x = x[(np.abs(x) > 1e-3) & (np.abs(x) < 40)].reshape(-1, 2)
    least, largest = {"float64": (-1000, 900)}.get(dtype, (-100, 100))
    for power in (least, -30, -11, 11, 30, largest):
        scaled = np.ldexp(x.astype(np.float64), power).astype(x.dtype)
        cap = float(np.ldexp(1.25, power))
        grad = csoftmax.cross_entropy_with_grad(
            scaled, np.zeros(len(x), int), softcap=cap, temperature=float(np.ldexp(1.0, power)), reduction="none"
        ).grad
        as_one = csoftmax.cross_entropy_with_grad(x, np.zeros(len(x), int), softcap=1.25, reduction="none").grad
        found, expected = np.ldexp(grad.astype(wide), power), as_one.astype(wide)
        is_normal = np.abs(expected) > np.ldexp(1.0, {"float64": -1022}.get(dtype, -126) + max(power, 0))
        assert ulp_error(found[is_normal], expected[is_normal], dtype) <= 8
    for far in (0.0, 1e-30, 1.0, 3e38, -3e38, -np.inf):  # a cap far above every logit changes nothing
        x = np.array([[far, 1.0, -2.0]], dtype_of(dtype))
        capped = csoftmax.cross_entropy_with_grad(x, [1], softcap=1.7e308, reduction="none")
        plain = csoftmax.cross_entropy_with_grad(x, [1], reduction="none")
        assert_same_bits(capped.grad, plain.grad)
        assert_same_bits(capped.loss, plain.loss)
    for cap in (5e-324, 1e-310, 1e-60):  # one far below makes logits equal, and its slopes 0
        loss, grad = csoftmax.cross_entropy_with_grad(x[:, 1:], [1], softcap=cap, reduction="none")
        assert loss[0] == x.dtype.type(np.log(2)) if dtype == "float64" else loss[0] == np.float32(np.log(2))
        assert np.all(grad == 0)


@looped("cap", (1.0, 30.0, 0.37))
@pytest.mark.parametrize("step", [pytest.param(53, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.long)])
def test_floats_of_every_magnitude(cap, step):
    low, far, high = np.array([1e-9 * cap, 0.95 * cap, 40 * cap], np.float32).view(np.uint32)
    starts = [*range(int(low), int(far), 1 << 22), *range(int(far), int(high), 1 << 22), int(high)]
    for begin, end in pairwise(starts):
        part = np.arange(begin, end, step, dtype=np.uint32)
        check_cap(part.view(np.float32), cap, 2, FAR_PRODUCT_ULP if part[0] >= far else PRODUCT_ULP)


OPTIONS = (
    {},
    {"temperature": 0.7, "label_smoothing": 0.125},
    {"z_loss": 0.0625, "weight": np.linspace(0.25, 2, 9)},
)


@looped("dtype", ("float32", "float64", "float16", "bfloat16"))
@looped("options", OPTIONS)
@looped("soft", (False, True))
def test_definition(dtype, options, soft):
    """Capped logits are known to 2 ULP, which the softmax multiplies by up to 2 y / T."""
    precision = 2.0 ** (-52 if dtype == "float64" else -23)
    rng = np.random.default_rng(1)
    q = rng.random(9).astype(np.float64 if dtype == "float64" else np.float32)
    options = {k: v.astype(q.dtype) if k == "weight" else v for k, v in options.items()}
    for cap, sigmas in ((1.0, (6,)), (5.0, (0.3, 6)), (30.0, (1,))):
        for sigma in sigmas:
            x = rng.normal(0, sigma * cap, 9).astype(dtype_of(dtype))
            target = q if soft else 4
            loss, grad = csoftmax.cross_entropy_with_grad(
                x[None], q[None] if soft else [4], softcap=cap, reduction="none", **options
            )
            exact_loss, exact_grad = exact(x.astype(float), target, softcap=cap, **options)
            slack = (8 + 4 * min(cap, np.abs(x.astype(float)).max()) / options.get("temperature", 1)) * precision
            assert abs(mpmath.mpf(float(loss[0])) - exact_loss) <= slack * max(exact_loss, 1) * (1 + 9 * bool(options))
            rounding = {"float16": 2.0**-11, "bfloat16": 2.0**-8}.get(dtype, 0)
            smallest = {"float16": 2.0**-24}.get(dtype, 0)
            slopes = [mpmath.sech(float(v) / cap) ** 2 for v in x]
            for g, e, s in zip(grad[0].astype(float), exact_grad, slopes):
                scale = max(abs(e), (20 if options or soft else 0) * s)
                assert abs(mpmath.mpf(float(g)) - e) <= slack * scale + rounding * abs(e) + smallest


def test_halves_are_rounded_once():
    for dtype in ("float16", "bfloat16"):
        for k in (3, 40, 5000):
            x, t = logits((6, k), dtype, seed=k, sigma=4.0), np.arange(6) % 3
            for options in ({}, {"clip_norm": 0.25, "label_smoothing": 0.1}):
                loss, grad = csoftmax.cross_entropy_with_grad(x, t, softcap=5.0, **options)
                wide = csoftmax.cross_entropy_with_grad(x.astype(np.float32), t, softcap=5.0, **options)
                assert loss == wide.loss
                assert_same_bits(grad, wide.grad.astype(x.dtype))


def test_special_values(dtype):
    for k in (3, 17, 200, 5000):
        for at in {0, 1, k // 2, k - 1}:
            x = logits((2, k), dtype, seed=k)
            for value in (np.nan, np.inf):
                x[0, at] = value
                loss, grad = csoftmax.cross_entropy_with_grad(x, [1, 1], softcap=3.0, reduction="none")
                assert np.isnan(loss[0])
                assert np.isfinite(loss[1])
                assert np.all(bits(grad[0]) == NAN_BITS[dtype])
            x[0, at] = -np.inf
            loss, grad = csoftmax.cross_entropy_with_grad(x, [at, 0], softcap=3.0, reduction="none")
            assert loss[0] == np.inf
            assert grad[0, at] == -1  # as without the cap
            other = (at + 1) % k
            loss, grad = csoftmax.cross_entropy_with_grad(x, [other, 0], softcap=3.0, reduction="none")
            assert np.isfinite(loss).all()
            assert grad[0, at] == 0
            smooth = {"label_smoothing": 0.5, "reduction": "none"}
            loss, grad = csoftmax.cross_entropy_with_grad(x, [other, 0], softcap=3.0, **smooth)
            assert loss[0] == np.inf
            assert grad[0, at] == csoftmax.cross_entropy_with_grad(x, [other, 0], **smooth).grad[0, at]
    x = np.full((1, 4), -np.inf, dtype_of(dtype))
    assert np.isnan(csoftmax.cross_entropy(x, [0], softcap=3.0))


def test_rows_that_take_no_part(dtype):
    for k in (5, 40, 5000):
        x = logits((6, k), dtype, seed=k)
        kept = csoftmax.cross_entropy_with_grad(x[[0, 2, 5]], [1, 2, 0], softcap=4.0)
        x[[1, 3, 4]] = np.nan
        loss, grad = csoftmax.cross_entropy_with_grad(x, [1, -100, 2, -100, -100, 0], softcap=4.0)
        assert loss == kept.loss
        assert_same_bits(grad[[0, 2, 5]], kept.grad)
        assert np.all(bits(grad[[1, 3, 4]]) == 0)
        none = csoftmax.cross_entropy_with_grad(x, np.full(6, -100), softcap=4.0)
        assert np.isnan(none.loss)
        assert np.all(bits(none.grad) == 0)


@looped("dtype", ("float32", "float64"))
def test_clips_apply_to_the_gradient_of_the_callers_logits(dtype):
    x, t = logits((12, 33), dtype, sigma=6.0), np.arange(12)
    upstream = np.linspace(-2, 3, 12)
    plain = csoftmax.cross_entropy_with_grad(x, t, softcap=5.0, reduction="none").grad.astype(EXACT)
    for norm, value in ((0.1, None), (None, 0.01), (0.3, 0.05), (1e6, 1e6)):
        expected = plain
        if norm:
            lengths = np.sqrt((plain**2).sum(-1, keepdims=True))
            expected = plain * np.minimum(1, EXACT(norm) / lengths)
        if value:
            expected = np.clip(expected, -EXACT(value), EXACT(value))
        options = {"clip_norm": norm, "clip_value": value, "softcap": 5.0}
        found = csoftmax.cross_entropy_with_grad(x, t, reduction="none", upstream=upstream, **options).grad
        assert ulp_error(found, expected * upstream[:, None], dtype) <= 8
        mean = csoftmax.cross_entropy_with_grad(x, t, **options).grad
        assert ulp_error(mean, expected / 12, dtype) <= 8


@looped("dtype", ("float32", "float64"))
def test_slopes_that_underflow_where_gradients_do_not(dtype):
    """Beyond 43 caps (float64: 350) a slope is subnormal; a large factor brings the gradient back."""
    far, factor = (100.0, 1e35) if dtype == "float32" else (400.0, 1e300)
    for cap in (1.0, 3.0):
        for u in (0.4, 0.9, 1):
            x = np.array([[0.5, u * far / 2, -u * far / 2, 2.0, -np.inf]], dtype) * dtype_of(dtype).type(cap)
            _, exact_grad = exact(x[0, :4], 0, softcap=cap)
            for options in ({"upstream": factor}, {"upstream": factor, "clip_value": 1.0, "clip_norm": 1.0}):
                grad = csoftmax.cross_entropy_with_grad(x, [0], softcap=cap, reduction="none", **options).grad[0]
                assert grad[4] == 0
                norm = mpmath.sqrt(mpmath.fsum(g**2 for g in exact_grad))
                shrink = min(1, 1 / norm) if "clip_norm" in options else 1
                for g, e in zip(grad[:4].astype(float), exact_grad):
                    e *= mpmath.mpf(factor) * shrink
                    tiny = mpmath.mpf(float(np.finfo(dtype).smallest_subnormal))
                    error = abs(mpmath.mpf(float(g)) - e)
                    assert error <= 24 * float(np.finfo(dtype).eps) * max(1, cap) * abs(e) + tiny


def test_many_rows_have_the_bits_of_one(dtype):
    for k in (3, 16, 100, 4096, 4097):
        x, t = logits((37, k), dtype, sigma=9.0), np.arange(37) % 3
        every = csoftmax.cross_entropy_with_grad(x, t, softcap=7.0, reduction="none")
        for i in (0, 5, 36):
            one = csoftmax.cross_entropy_with_grad(x[i : i + 1], t[i : i + 1], softcap=7.0, reduction="none")
            assert_same_bits(every.grad[i : i + 1], one.grad)
            assert every.loss[i] == one.loss[0]
        assert_same_bits(csoftmax.cross_entropy(x, t, softcap=7.0, reduction="none"), every.loss)
        place = x.copy()
        csoftmax.cross_entropy_with_grad(place, t, softcap=7.0, reduction="none", out=place)
        assert_same_bits(place, every.grad)


def test_of_a_linear_layer():
    rng = np.random.default_rng(3)
    x, w = rng.integers(-4, 5, (20, 6)).astype(np.float64), rng.integers(-4, 5, (9, 6)).astype(np.float64)
    t, bias = rng.integers(0, 9, 20), rng.integers(-2, 3, 9).astype(np.float64)
    result = csoftmax.linear_cross_entropy_with_grad(x, w, t, bias=bias, softcap=12.0, temperature=0.5)
    of_logits = csoftmax.cross_entropy_with_grad(x @ w.T + bias, t, softcap=12.0, temperature=0.5)
    assert np.isclose(result.loss, of_logits.loss, rtol=1e-15)
    assert np.allclose(result.grad_x, of_logits.grad @ w, rtol=1e-13, atol=1e-16)
    assert np.allclose(result.grad_w, of_logits.grad.T @ x, rtol=1e-13, atol=1e-16)
    assert np.allclose(result.grad_bias, of_logits.grad.sum(0), rtol=1e-13, atol=1e-16)
    assert csoftmax.linear_cross_entropy(x, w, t, bias=bias, softcap=12.0, temperature=0.5) == result.loss
