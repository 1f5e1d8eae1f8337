"""Gradients whose probabilities, products or sums underflow where the result does not, against mpmath.

1/T, weights, `upstream`, z-loss or a large dy bring them back into range.  The cases are random calls with T and the
factors of any magnitude, and those that were reported.
"""

import math
import warnings

import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import FORMATS, bits, dtype_of, wide
from csoftmax.samplers import Negatives

HALF = ("float16", "bfloat16")
LARGEST_EXPONENT = {"float64": 1023, "float16": 15}


@pytest.fixture(autouse=True)
def precision():
    with mpmath.workprec(2500):
        yield


def numbers(x):
    return [mpmath.mpf(float(v)) for v in wide(x)]


def ulps(got, truth, dtype, scale=0):
    """The error in ULP at the larger of the truth and `scale`; what exceeds the dtype may be infinite."""
    (digits, lowest), got, size = FORMATS[dtype], float(got), max(abs(truth), abs(scale))
    largest = mpmath.ldexp(2 - mpmath.mpf(2) ** (3 - digits), LARGEST_EXPONENT.get(dtype, 127))
    if math.isinf(got):
        if abs(truth) >= largest and (got > 0) == (truth > 0):
            return 0
        got = mpmath.sign(got) * largest  # the least that rounds to it
    if math.isnan(got):
        return math.inf
    exponent = max(int(mpmath.floor(mpmath.log(size, 2))), lowest) if size else lowest
    return float(abs(mpmath.mpf(got) - truth) / mpmath.mpf(2) ** (exponent - digits + 1))


def loss_gradient(x, q, w, options):
    """The gradient of a row, and the magnitude to which its terms are known."""
    t, z = mpmath.mpf(options.get("temperature", 1)), mpmath.mpf(options.get("z_loss", 0))
    eps, s, n = mpmath.mpf(options.get("label_smoothing", 0)), mpmath.mpf(options.get("sample_weight", [1])[0]), len(x)
    m = max(x)
    e = [mpmath.exp((v - m) / t) if (v - m) / t > -20000 else mpmath.mpf(0) for v in x]
    below = mpmath.fsum(p for p, v in zip(e, x, strict=True) if v != m)
    total = below + x.count(m)
    lse = m / t + mpmath.log1p(below + (x.count(m) - 1))
    a = [v * ((1 - eps) * u + eps / n) for v, u in zip(w, q, strict=True)]
    mass = mpmath.fsum(a)
    factor = s / t
    gradient = [factor * (p / total * (mass + 2 * z * lse) - b) for p, b in zip(e, a, strict=True)]
    known = max(abs(m / t), abs(lse))
    scale = [factor * max(p / total * (mass + 2 * z * known), b) for p, b in zip(e, a, strict=True)]
    if "clip_norm" in options:
        norm, known = (mpmath.sqrt(mpmath.fsum(v * v for v in terms)) for terms in (gradient, scale))
        shrink = min(1, options["clip_norm"] / norm) if norm else 1
        if norm and norm + known / 2**20 > options["clip_norm"]:  # the norm has the rounding errors of all terms
            scale = [s + abs(g) * known / norm for g, s in zip(gradient, scale, strict=True)]
        gradient, scale = [g * shrink for g in gradient], [g * shrink for g in scale]
    if "clip_value" in options:
        clip = mpmath.mpf(options["clip_value"])
        # known to the clip's digits only where the rounding of the terms cannot bring it below the clip
        scale = [clip if abs(g) > clip + s / 2**20 else s for g, s in zip(gradient, scale, strict=True)]
        gradient = [max(-clip, min(clip, g)) for g in gradient]
    divisor = mpmath.fsum(v * u for v, u in zip(w, q, strict=True)) * s if options["reduction"] == "mean" else 1
    upstream = mpmath.mpf(options.get("upstream", 1))
    if divisor == 0:
        return None
    return [g * upstream / divisor for g in gradient], [abs(g * upstream / divisor) for g in scale]


def check_loss(x, target, options, dtype):
    n = x.shape[1]
    w = numbers(options["weight"]) if "weight" in options else [mpmath.mpf(1)] * n
    is_soft = not isinstance(target[0], int)
    q = numbers(target[0]) if is_soft else [mpmath.mpf(j == target[0]) for j in range(n)]
    expected = loss_gradient(numbers(x[0]), q, w, options)
    if expected is None:
        return
    got = wide(csoftmax.cross_entropy_with_grad(x, target, **options).grad)[0]
    is_plain = not is_soft and not any(name in options for name in ("label_smoothing", "z_loss", "clip_norm"))
    limit = 0.51 if dtype in HALF else 4
    for g, truth, scale in zip(got, *expected, strict=True):
        assert ulps(g, truth, dtype, 0 if is_plain else scale) <= limit, (x.tolist(), target, options, got.tolist(), g)


def random_loss(rng, dtype):
    """One row with options; its logits lie up to 1500 T apart."""
    n, real = int(rng.choice([1, 2, 3, 5, 17])), np.dtype("float64" if dtype == "float64" else "float32")
    of = lambda low, high: float(10.0 ** rng.uniform(low, high))  # noqa: E731
    t = of(-38, 38) if rng.random() < 0.8 else of(-300, 300)
    gap = t * float(rng.choice([1, 20, 100, 200, 600, 1500]))
    x = rng.standard_normal(n) * gap + (rng.random() < 0.3) * gap * rng.normal()
    if rng.random() < 0.3:
        x[:], x[-1] = x[0], x[-1] - gap
    if rng.random() < 0.1 and n > 2:
        x[1] = -np.inf
    with np.errstate(over="ignore"):
        x = x.astype(dtype_of(dtype))[None]
    if not np.all(wide(x) < np.inf) or np.all(wide(x) == -np.inf):
        return None
    options = {"temperature": t, "reduction": str(rng.choice(["sum", "mean"]))}
    options["upstream"] = of(-30, 30) if rng.random() < 0.8 else of(-300, 300)
    if rng.random() < 0.25:
        options["label_smoothing"] = float(rng.choice([0.1, 1e-20, 0.9]))
    if rng.random() < 0.25:
        options["z_loss"] = of(-6, 2)
    if rng.random() < 0.25:
        options["weight"] = (rng.random(n) * 10.0 ** rng.uniform(-10, 10) * (rng.random(n) < 0.8)).astype(real)
    if rng.random() < 0.25:
        options["sample_weight"] = [of(-20, 20)]
    for clip in ("clip_value", "clip_norm"):
        if rng.random() < 0.15:
            options[clip] = of(-30, 30)
    if rng.random() < 0.3:
        return x, (rng.random((1, n)) * (rng.random((1, n)) < 0.7)).astype(real), options
    return x, [int(rng.integers(n))], options


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40))])
def test_random_losses(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(100 if seed == 1 else 200):
        call = random_loss(rng, dtype)
        if call is not None:
            check_loss(*call, dtype)


REPORTED = [
    (
        "float32",
        [0, 0, 0],
        [0],
        {
            "temperature": 9.25118830911529e-208,
            "upstream": 1.6621784360198572e-05,
            "label_smoothing": 0.9,
            "weight": np.array([2.9384323e-10, 7.9439941e-11, 2.2287810e-11], np.float32),
            "sample_weight": [4394231907940829.0],
            "clip_norm": 1.4743997199472208e25,
        },
    ),
    ("float32", [0, -1.4e-28], [0], {"temperature": 1e-30}),
    ("float32", [0, -1.4e-28], [1], {"temperature": 1e-30, "z_loss": 0.1}),
    ("float32", [3e38, 2.9e38, 0], [1], {"temperature": 1e-50, "z_loss": 1e-4, "upstream": 1e-90}),
    ("float32", [0, -150], [0], {"upstream": 1e30}),
    ("float32", [0, -150, -np.inf], [0], {"upstream": 1e30, "label_smoothing": 1e-30}),
    ("bfloat16", [0, -150], [0], {"upstream": 1e30}),
    ("float64", [0, -1100], [0], {"upstream": 1e300}),
    ("float64", [0, -1.1e-297], [0], {"temperature": 1e-300}),
    ("float64", [0, -1100, -1200], [[0.5, 0.25, 0.0]], {"sample_weight": [1e200], "upstream": 1e200}),
]


@pytest.mark.parametrize(("dtype", "x", "target", "options"), REPORTED, ids=str)
def test_reported_losses(dtype, x, target, options):
    target = target if isinstance(target[0], int) else np.array(target)
    check_loss(np.array([x]).astype(dtype_of(dtype)), target, {"reduction": "sum", **options}, dtype)


def check_vjps(dy, y, log_y, t, dtype):
    """Both gradients of one row: beyond the rounding of the sum, and at the magnitude of the terms."""
    limit, t, (digits, _) = 0.51 if dtype in HALF else 4, mpmath.mpf(t), FORMATS[dtype]
    d, p = numbers(dy), numbers(y)
    unit = mpmath.mpf(2) ** ((-98 if dtype == "float64" else -46) + digits)
    total = mpmath.fsum(a * b for a, b in zip(d, p, strict=True))
    slack = mpmath.fsum(abs(a * b) for a, b in zip(d, p, strict=True)) * unit
    for got, a, b in zip(wide(csoftmax.softmax_vjp(dy, y, temperature=t)), d, p, strict=True):
        assert ulps(got, b * (a - total) / t, dtype, b * slack / t) <= limit, (dy.tolist(), y.tolist(), t, got)
    total = mpmath.fsum(d)
    for got, a, b in zip(wide(csoftmax.log_softmax_vjp(dy, log_y, temperature=t)), d, numbers(log_y), strict=True):
        if b == -mpmath.inf:
            assert got == 0
            continue
        p, power = mpmath.exp(b), mpmath.mpf(2) ** mpmath.nint(b / mpmath.log(2))
        scale = max(abs(a - total * power), abs(total * (p - power))) / t
        scale *= 2.0**-10 if dtype in HALF else 1  # rounded from float32 or better
        assert ulps(got, (a - total * p) / t, dtype, scale) <= limit, (dy.tolist(), log_y.tolist(), t, got)


def random_vjp(rng, dtype):
    n, (digits, lowest) = int(rng.choice([2, 3, 5, 17, 40])), FORMATS[dtype]
    t = float(10.0 ** (rng.uniform(-38, 38) if rng.random() < 0.5 else rng.uniform(-5, 1)))
    x = rng.standard_normal(n) * rng.choice([1, 20, 100, 400])
    if rng.random() < 0.3:
        x, x[0] = x - rng.choice([80, 600, 700]), 0
    log_y = (x - x.max()) - np.log(np.exp(x - x.max()).sum())
    highest = LARGEST_EXPONENT.get(dtype, 127) - 3
    exponent = int(rng.uniform(lowest - digits, highest)) if rng.random() < 0.7 else 0
    dy = np.ldexp(rng.standard_normal(n).clip(-3, 3), exponent)
    if rng.random() < 0.3:
        dy[:], dy[rng.integers(n)] = 0, 2.0**exponent
    with np.errstate(over="ignore"):
        dy, y, log_y = (a.astype(dtype_of(dtype)) for a in (dy, np.exp(log_y), log_y))
    return (dy, y, log_y, t) if np.all(np.isfinite(wide(dy).astype(np.float64))) else None


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40))])
def test_random_vjps(dtype, seed):
    rng = np.random.default_rng(seed)
    for _ in range(40 if seed == 1 else 200):
        call = random_vjp(rng, dtype)
        if call is not None:
            check_vjps(*call, dtype)


TINY = [
    # y or its sum with dy is subnormal; s p is where p underflows with e^y's bias; s overflows with the power of two
    ("float64", [0, 1], [1, 1e-310], [0, -713.0], 1e-3),
    ("float64", [3e-300, 1e-305, 0], [0.5, 0.5, 3e-324], [-0.7, -0.7, -744.0], 1e-3),
    ("float64", [1e300, -1e300, 1], [0.25, 0.25, 0.5], [-1.4, -1.4, -0.7], 1e-3),
    ("float64", [0, 1e300, 0], [3e-312, 1, 5e-324], [-1300.0, 0, -1400.0], 1.0),
    ("float64", [0, 1e305, 0], [3e-312, 1, 5e-324], [-1300.0, -1e-17, -1400.0], 0.25),
    ("float64", [0, 1e100, 0], [3e-312, 1, 5e-324], [-1300.0, 0, -1400.0], 1e-200),
    ("float32", [0, 1e38, 0], [1e-41, 1, 2e-45], [-140.0, 0, -150.0], 1.0),
    ("float32", [0, 1e30, 0], [1e-41, 1, 2e-45], [-140.0, 0, -150.0], 0.3),
    ("float32", [0, 1e38, 0], [1e-41, 1, 2e-45], [-140.0, 0, -760.0], 1e-300),
    ("bfloat16", [0, 1e38, 0], [1e-40, 1, 1e-40], [-140.0, 0, -150.0], 1.0),
]


@pytest.mark.parametrize(("dtype", "dy", "y", "log_y", "t"), TINY, ids=str)
def test_tiny_probabilities_and_sums(dtype, dy, y, log_y, t):
    check_vjps(*(np.array(a).astype(dtype_of(dtype)) for a in (dy, y, log_y)), t, dtype)


def rows_of_all_kinds(dtype, n):
    """Rows with and without lost gradients in turn, and dy with y of both kinds."""
    rng, largest = np.random.default_rng(n), 1e30 if dtype != "float64" else 1e300
    far = 150.0 if dtype != "float64" else 1100.0
    x = rng.standard_normal((7, n))
    x[::2, 1:] -= far
    x[1] -= 3
    dy = rng.standard_normal((7, n))
    dy[::2] *= largest / n
    return x.astype(dtype_of(dtype)), dy.astype(dtype_of(dtype)), largest


@pytest.mark.parametrize("n", [3, 40, 700, 5000])
def test_every_path_has_the_same_bits(dtype, n):
    """Layouts, rows alone, in place, and every instruction set; ordinary rows keep the bits that they have alone."""
    if dtype == "float16":
        pytest.skip("its range is too small for such rows")
    x, dy, upstream = rows_of_all_kinds(dtype, n)
    log_y = csoftmax.log_softmax(x)
    y = csoftmax.softmax(x)
    tiny = np.where(wide(y) > 0.5, 0, dy) if dtype == "float64" else dy

    def gradient(x, axis=-1, **options):
        labels = np.zeros(len(x) if axis == -1 else x.shape[1], int)
        options |= {"axis": axis, "reduction": "sum", "upstream": upstream}
        return csoftmax.cross_entropy_with_grad(x, labels, **options).grad

    calls = (
        lambda x, dy, y, log_y, tiny, axis: gradient(x, axis),
        lambda x, dy, y, log_y, tiny, axis: gradient(x.copy(), axis, clip_norm=1e-9),
        lambda x, dy, y, log_y, tiny, axis: csoftmax.log_softmax_vjp(dy, log_y, axis),
        lambda x, dy, y, log_y, tiny, axis: csoftmax.log_softmax_vjp(dy, log_y, axis, temperature=0.3),
        lambda x, dy, y, log_y, tiny, axis: csoftmax.softmax_vjp(tiny, y, axis, temperature=1e-3),
    )
    arrays, before = (x, dy, y, log_y, tiny), binding.isa()
    for number, call in enumerate(calls):
        expected = call(*arrays, -1)
        across = call(*(np.ascontiguousarray(a.T) for a in arrays), 0).T
        assert_same_bits(np.ascontiguousarray(across), expected)
        for row in range(len(x)):
            assert_same_bits(call(*(a[row : row + 1] for a in arrays), -1), expected[row : row + 1])
        for name in binding.isa_available():
            binding.select_isa(name)
            try:
                assert np.array_equal(bits(call(*arrays, -1)), bits(expected)), (number, name)
            finally:
                binding.select_isa(before)
    in_place = x.copy()
    csoftmax.cross_entropy_with_grad(in_place, np.zeros(7, int), reduction="sum", upstream=upstream, out=in_place)
    assert_same_bits(in_place, gradient(x))
    in_place = dy.copy()
    csoftmax.log_softmax_vjp(in_place, log_y, out=in_place)
    assert_same_bits(in_place, csoftmax.log_softmax_vjp(dy, log_y))


def test_means_with_weights_of_every_scale():
    """The scale of class and sample weights cancels, though their sums and products leave the range of float64."""
    x, y = np.array([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]]), np.array([0, 1])
    w, negatives = np.array([[1.0] * 3, [2.0] * 3, [-1.0] * 3]), Negatives([2], [-0.5], None, [-1.0, -2.0])

    def cross_entropy(**options):
        return csoftmax.cross_entropy_with_grad(x, y, **options)

    def linear(**options):
        return csoftmax.linear_cross_entropy_with_grad(x, w, y, **options)[:2]

    losses = [cross_entropy, linear]
    for name in ("sampled_softmax_loss", "negative_sampling_loss", "nce_loss"):
        with_grad = getattr(csoftmax, f"{name}_with_grad")
        losses.append(lambda with_grad=with_grad, **options: with_grad(x, w, y, negatives, **options)[:2])
    for loss in losses:
        expected = loss()
        for a, b in ((1e-310, None), (1.7e308, None), (1e-200, 1e-200), (1e200, 1e200), (5e-324, 1.0), (1e300, 1e-300)):
            options = {"weight": [a] * 3} | ({} if b is None else {"sample_weight": [b] * 2})
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = loss(**options)
            for got, value in zip(found, expected, strict=True):
                np.testing.assert_allclose(got, value, rtol=1e-14, err_msg=f"{loss} {a} {b}")
    huge_and_absent = csoftmax.cross_entropy(x, y, weight=[1e-20, 1e-20, 1e300], sample_weight=[1.0, 1.0])
    np.testing.assert_allclose(huge_and_absent, csoftmax.cross_entropy(x, y), rtol=1e-14)
