"""Cross-entropy and its gradient are within 4 ULP of the definition, for every combination of options."""

import ml_dtypes
import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.targets import labels, soft_labels
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles.cross_entropy import exact as exact_row

import csoftmax
from csoftmax._spec.cross_entropy import exact_rows
from csoftmax._spec.formats import EXACT, JUDGES_FLOAT64, ulp_error
from csoftmax._spec.samples import logits

bulk = pytest.mark.skipif(not JUDGES_FLOAT64, reason="long double is float64 here")
LOSS = {"float32": "float32", "float64": "float64", "float16": "float32", "bfloat16": "float32"}


def check_rows(x, target, limit=4, **options):
    """Losses (reduction none) and gradients against the oracle."""
    dtype = x.dtype.name
    expected = exact_rows(x, target, **options)
    loss, grad = csoftmax.cross_entropy_with_grad(x, target, reduction="none", **options)
    assert loss.dtype == LOSS[dtype]
    assert grad.dtype == x.dtype
    error = ulp_error(loss, expected.loss, LOSS[dtype], expected.loss_scale)
    assert error <= 4, f"loss {x.shape} {options}: {error:.3f} ULP"
    check_gradient(grad, expected, EXACT(1), limit, f"gradient {x.shape} {options}")
    return loss, grad


def check_gradient(grad, expected, c, limit, what):
    """c times that of the row losses, in ULP of the larger of its two terms, and of them and the element itself (where
    lse is negative both have one sign); half types are rounded once, from float32, so that only the latter counts.
    float64 with T and z-loss: 4.09 in 35 million elements."""
    half = grad.dtype.name in ("float16", "bfloat16")
    largest = np.maximum(expected.scale, np.abs(expected.gradient))
    for scale, allowed in ((largest, 0.51),) if half else ((expected.scale, limit), (largest, 4.1)):
        error = ulp_error(grad, expected.gradient * c, grad.dtype.name, scale * c)
        assert error <= allowed, f"{what}: {error:.3f} ULP"


@bulk
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_offsets_and_temperatures(dtype):
    offsets = (1e3, -1e6, 1.1e6, -1e30) if dtype == "float32" else (1e3, 2.0**45, -1e17, 1e300)
    for k in (3, 16, 17, 100, 5000):
        n = 20 if k < 1000 else 3
        for offset in offsets:
            check_rows(logits((n, k), dtype, k, 3, offset), labels(n, k))
        for t in (0.3, 7.0, 1e-3, 1e3):
            check_rows(logits((n, k), dtype, k, 3), labels(n, k), temperature=t)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_tails(dtype):
    """Near-certain labels, with gaps up to the range of the type; PyTorch and scikit-learn return 0."""
    for gap in (1, 17.5, 40, 88, 100) if dtype == "float32" else (1, 40, 300, 700):
        for k, others in ((2, 1), (3, 2), (50, 3), (5000, 2)):
            x = np.full((1, k), -3.0 * gap, dtype)
            x[0, :others] = -np.asarray(gap, dtype)
            x[0, -1] = 0
            loss, grad = csoftmax.cross_entropy_with_grad(x, [k - 1], reduction="none")
            with mpmath.workprec(2500):
                e = [mpmath.exp(mpmath.mpf(float(v))) for v in x[0]]
                rest = mpmath.fsum(e[:-1])
                expected = np.array([EXACT(mpmath.nstr(mpmath.log1p(rest), 40))])
                target = EXACT(mpmath.nstr(-rest / (1 + rest), 40))
            assert ulp_error(loss, expected, dtype) <= 4
            assert ulp_error(grad[:, -1], np.array([target]), dtype) <= 4
            assert loss[0] > 0 > grad[0, -1]


@bulk
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tails_of_many_rows(dtype):
    for k, sigma in ((2, 30), (5, 20), (64, 30), (1000, 50), (4100, 40)):
        n = 400 if k < 100 else 40
        x = logits((n, k), dtype, seed=k, sigma=sigma)
        check_rows(x, x.argmax(1))
        second = np.argsort(x, 1)[:, -2]
        check_rows(x, second)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_definition_in_mpmath(dtype):
    """The longdouble oracle agrees with the plain definition, which is checked against differences of itself."""
    rng = np.random.default_rng(3)
    for i in range(12):
        k = int(rng.integers(2, 9))
        x = (rng.standard_normal(k) * 5).astype(dtype)
        options = {"temperature": 0.5 if i % 2 else 1.0, "z_loss": 0.25 * (i % 3), "label_smoothing": 0.125 * (i % 4)}
        if i % 5:
            options["weight"] = rng.random(k).astype(dtype)
        target = np.asarray(int(rng.integers(k))) if i % 2 else soft_labels((k,), i, dtype)
        loss, gradient = exact_row(x, target if target.ndim else int(target), **options)
        rows = exact_rows(x[None], target[None], **options)
        assert abs(rows.loss[0] - EXACT(mpmath.nstr(loss, 40))) <= 1e-17 * abs(rows.loss_scale[0])
        for j in range(k):
            assert abs(rows.gradient[0, j] - EXACT(mpmath.nstr(gradient[j], 40))) <= 1e-17 * rows.scale[0, j]
        check_rows(x[None], target[None], **options)


@st.composite
def problems(draw):
    n, k = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2, 3, 7, 16, 17, 31, 64, 65, 130, 1000, 4097]))
    dtype, seed = draw(st.sampled_from(list(LOSS))), draw(st.integers(0, 2**31))
    rng, real = np.random.default_rng(seed), LOSS[dtype]
    offset = draw(st.sampled_from([0, 100, -2e6] if dtype != "float16" else [0, 100, -3e4]))
    x = logits((n, k), dtype, seed, draw(st.sampled_from([0.0, 1.0, 8.0, 40.0])), offset)
    options = {
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        "z_loss": draw(st.sampled_from([0.0, 1e-4, 1.0])),
        "temperature": draw(st.sampled_from([1.0, 0.25, 3.0] + [1e-20, 1e25] * (dtype != "float16"))),
    }
    if options["z_loss"] and options["temperature"] < 1e-10:
        options["z_loss"] = 0.0  # lse**2 overflows
    if draw(st.booleans()):
        options["weight"] = (rng.random(k) * (rng.random(k) > 0.2)).astype(real)
    if draw(st.booleans()):
        options["sample_weight"] = rng.random(n) * 3 * (rng.random(n) > 0.3)
    if draw(st.booleans()):
        target = soft_labels((n, k), seed, real) * draw(st.sampled_from([1, 4]))
    else:
        target = rng.integers(0, k, n).astype(draw(st.sampled_from(("int32", "int64", "uint32", "uint64"))))
        if draw(st.booleans()):
            options["ignore_index"] = int(target[0])
    return x, target, options


@bulk
@settings(max_examples=300, deadline=None)
@example((np.zeros((1, 7)), np.array([5]), {"label_smoothing": 1.0, "z_loss": 1e-4, "temperature": 3.0}))
@given(problems())
def test_every_combination(problem):
    x, target, options = problem
    dtype = x.dtype.name
    half, real = dtype in ("float16", "bfloat16"), LOSS[dtype]
    loss = check_rows(x, target, 5, **options)[0]
    expected = exact_rows(x, target, **options)
    assert_same_bits(csoftmax.cross_entropy(x, target, reduction="none", **options), loss)

    # clipping of a row's gradient, norm first, under every reduction
    norms = np.sqrt((expected.gradient**2).sum(-1, keepdims=True))
    clips = [(None, None)]
    if np.all(norms < 1e15):
        clip_norm, clip_value = float(np.median(norms)) or 1.0, float(np.abs(expected.gradient).max() / 3) or 1.0
        clips += [(clip_norm, None), (None, clip_value), (clip_norm, clip_value)]
    for reduction in ("none", "sum", "mean"):
        divisor = expected.divisor.sum() if reduction == "mean" else EXACT(1)
        for norm, value in clips:
            reduced, grad = csoftmax.cross_entropy_with_grad(
                x, target, reduction=reduction, upstream=0.75, clip_norm=norm, clip_value=value, **options
            )
            if reduction != "none":
                assert_same_bits(
                    np.asarray(reduced), np.asarray(csoftmax.cross_entropy(x, target, reduction=reduction, **options))
                )
                if divisor == 0:
                    assert not np.isfinite(reduced) or expected.loss.sum() != 0
                    continue
                slack = 4 * expected.loss_scale.sum() / divisor
                difference = abs(EXACT(reduced) - expected.loss.sum() / divisor)
                assert difference <= slack * np.finfo(real).eps + np.finfo(real).smallest_subnormal
            c = EXACT(0.75) / divisor
            if not norm and not value:
                check_gradient(grad, expected, c, 5, reduction)
                continue
            reference, scale = expected.gradient, expected.scale
            if norm:
                with np.errstate(invalid="ignore", divide="ignore"):
                    shrink = np.where(norms > norm, norm / norms, 1)
                reference, scale = reference * shrink, scale * shrink
            if value:
                reference = np.clip(reference, -EXACT(value), EXACT(value))
            with np.errstate(invalid="ignore", divide="ignore"):  # the norm is as good as the gradient
                doubt = np.sqrt((expected.scale**2).sum(-1, keepdims=True)) / norms if norm else EXACT(0)
            eps = ml_dtypes.finfo(x.dtype).eps if half else np.finfo(dtype).eps
            slack = c * float(eps) * (8 * np.abs(reference) * (1 + np.nan_to_num(doubt)) + 6 * scale)
            tiny = float(ml_dtypes.finfo(x.dtype).smallest_subnormal)
            if reduction != "none":
                tiny *= 1 + c  # rounded, clipped, times c
            beyond = np.isinf(grad) & (np.abs(c * reference) > 0.99 * float(ml_dtypes.finfo(x.dtype).max))  # in float16
            assert np.all(beyond | (np.abs(grad.astype(EXACT) - c * reference) <= slack + tiny))


def test_label_gradient_in_float64_with_weights_under_a_mean():
    """4 ULP of itself with every factor that hard labels can have; in plain doubles up to 5.5."""
    rng = np.random.default_rng(5)
    for _ in range(60):
        n, k, temperature = int(rng.integers(1, 6)), int(rng.integers(2, 8)), float(rng.choice([1, 3.3, 0.7]))
        x, y = rng.standard_normal((n, k)) * rng.choice([1, 5, 20]), rng.integers(0, k, n)
        w, s = rng.random(k) + 0.1, rng.random(n) + 0.1
        grad = csoftmax.cross_entropy_with_grad(x, y, temperature=temperature, weight=w, sample_weight=s).grad
        with mpmath.workprec(200):
            factors = [mpmath.mpf(a) * mpmath.mpf(b) for a, b in zip(w[y].tolist(), s.tolist())]
            for row, label, factor, got in zip(x.tolist(), y, factors, grad[np.arange(n), y].tolist()):
                e = [mpmath.exp((mpmath.mpf(z) - max(row)) / temperature) for z in row]
                others = mpmath.fsum(v for j, v in enumerate(e) if j != label)
                exact = -factor / sum(factors) / temperature * others / mpmath.fsum(e)
                assert abs(got - exact) <= 4 * np.spacing(abs(float(exact)))


@bulk
def test_float64_gradients_with_every_factor():
    """60,000 rows with smoothing, z-loss, weights and T: with factors that round one after the other up to 5.0 ULP."""
    worst = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        for i in range(150):
            sigma, offset = float(rng.choice([1, 8])), float(rng.choice([0, 100]))
            x, t = logits((100, 64), "float64", 1000 * seed + i, sigma, offset), rng.integers(0, 64, 100)
            options = {
                "label_smoothing": rng.choice([0.1, 0.5]),
                "z_loss": rng.choice([1e-4, 1.0]),
                "temperature": rng.choice([1, 0.25, 3.0]),
                "weight": rng.random(64),
                "sample_weight": rng.random(100) + 0.1,
            }
            expected = exact_rows(x, t, **options)
            grad = csoftmax.cross_entropy_with_grad(x, t, **options).grad
            largest = np.maximum(expected.scale, np.abs(expected.gradient)) / expected.divisor.sum()
            worst = max(worst, ulp_error(grad, expected.gradient / expected.divisor.sum(), "float64", largest))
    assert worst <= 4, f"{worst:.3f} ULP"


def test_clip_value_far_below_the_terms_of_the_gradient():
    """An element that is smaller than the others by 2^-110 is clipped at its own size, not at a power of two of it."""
    x, target = np.float32([[13.823368, 32.864727]]), np.float32([[0.05110694, 0.9488931]])
    options = {"temperature": 0.25, "weight": np.float32([0, 0.9504637]), "reduction": "none"}
    for dtype in (np.float32, np.float64):
        grad = csoftmax.cross_entropy_with_grad(x.astype(dtype), target.astype(dtype), **options).grad
        small = float(grad[0, 0])
        assert 3e-33 < small < 3.1e-33
        for limit in (2 * small, small / 3, 1e-35, 1e-37):
            clipped = csoftmax.cross_entropy_with_grad(
                x.astype(dtype), target.astype(dtype), clip_value=limit, **options
            ).grad
            assert abs(clipped[0, 0] / min(small, limit) - 1) < 1e-6, (dtype, limit)
