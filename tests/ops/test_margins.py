"""Margin softmax: rows in mpmath, seams and degenerate vectors, centres, classes that take part, memory, Ctrl-C."""

import itertools
import sys
import tracemalloc

import mpmath
import numpy as np
import pytest
from helpers.signals import seconds_to_stop

import csoftmax
from csoftmax._cpu.margins import measure_angles
from csoftmax._spec.formats import dtype_of

loss_of, with_grad = csoftmax.margin_cross_entropy, csoftmax.margin_cross_entropy_with_grad


def layer(n, d, k, dtype="float64", seed=0, centers=None):
    rng = np.random.default_rng(seed)
    shape = (k, d) if centers is None else (k, centers, d)
    x, w = (rng.standard_normal(s).astype(dtype_of(dtype)) for s in ((n, d), shape))
    return x, w, rng.integers(0, k, n)


def psi(theta, arc, cosine, multiple, past_pi):
    """The page's formula of the target's cosine, in mpmath."""
    phi = multiple * theta + arc
    if past_pi == "mirror":
        k = mpmath.floor(phi / mpmath.pi)
        return (-1) ** int(k) * mpmath.cos(phi) - 2 * k - cosine
    if past_pi == "linear" and theta > mpmath.pi - arc:
        return mpmath.cos(theta) - arc * mpmath.sin(arc)
    if past_pi == "easy" and mpmath.cos(theta) <= 0:
        return mpmath.cos(theta)
    return mpmath.cos(phi) - cosine


def exact(v):
    return v if isinstance(v, mpmath.mpf) else mpmath.mpf(float(v))


def row_loss(x, w, y, scale=64.0, arc=0.5, cosine=0.0, multiple=1, past_pi="mirror"):
    """The loss of one row, with 60 digits; w is (K, C, D)."""

    def angle(a, b):
        na, nb = mpmath.norm(a), mpmath.norm(b)
        if na == 0 or nb == 0:
            return mpmath.pi / 2
        a, b = a / na, b / nb
        return 2 * mpmath.atan2(mpmath.norm(a - b), mpmath.norm(a + b))

    x = mpmath.matrix([exact(v) for v in x])
    thetas = [min(angle(x, mpmath.matrix([exact(v) for v in c])) for c in centers) for centers in w]
    z = [scale * mpmath.cos(t) for t in thetas]
    z[y] = scale * psi(thetas[y], mpmath.mpf(arc), mpmath.mpf(cosine), multiple, past_pi)
    return mpmath.log(sum(mpmath.exp(v - z[y]) for v in z))


MARGINS = (
    {},
    {"arc": 0.0, "cosine": 0.35},
    {"arc": 0.0, "multiple": 4, "scale": 8.0},
    {"arc": 0.3, "cosine": 0.2, "multiple": 0.9, "scale": 30.0},
    {"arc": -0.4, "scale": 5.0},
    {"arc": 0.0},
    {"past_pi": "linear", "scale": 20.0},
    {"past_pi": "easy", "scale": 20.0},
    {"past_pi": "none", "arc": 1.5, "scale": 20.0},
)


@pytest.mark.parametrize("centers", [None, 3])
def test_rows_in_mpmath(centers):
    """Losses, and gradients by central differences in 60 digits, for every form of the margin."""
    with mpmath.workdps(60):
        for seed, options in list(enumerate(MARGINS))[:: 3 if centers else 1]:
            x, w, y = layer(3, 3, 4, seed=seed, centers=centers)
            x[0] = -1.5 * w[y[0]].reshape(-1, 3)[0] + 1e-3  # far beyond the seam
            given = {**options, "sub_centers": centers or 1}
            got = with_grad(x, w, y, reduction="sum", **given)
            each = loss_of(x, w, y, reduction="none", **given)
            for i in range(3):
                right = row_loss(x[i], w.reshape(4, -1, 3), y[i], **options)
                assert abs(each[i] - right) < 1e-13 * max(1, abs(right)), (options, i)
            h = mpmath.mpf(10) ** -20
            for array, gradient in ((x, got.grad_x), (w, got.grad_w)):
                scale = np.abs(gradient).max()
                for index in list(np.ndindex(array.shape))[:: 1 if array is x else 5]:
                    sides = []
                    for step in (h, -h):
                        moved = array.astype(object)
                        moved[index] = mpmath.mpf(float(array[index])) + step
                        a, b = (moved, w) if array is x else (x, moved)
                        sides.append(sum(row_loss(a[i], b.reshape(4, -1, 3), y[i], **options) for i in range(3)))
                    slope = (sides[0] - sides[1]) / (2 * h)
                    assert abs(gradient[index] - slope) < 2e-13 * scale, (options, index)


def test_angles_that_float32_cosines_do_not_know():
    """x is at 1e-4 to 1e-8 from its class: with the cosine alone the loss would be off in the third digit."""
    e = np.eye(2, 3)
    for theta in (1e-4, 1e-6, 1e-8):
        x = np.array([[1, theta, 0]], np.float32)
        got = loss_of(x, e.astype(np.float32), [0], scale=1.0)
        angle = np.arctan(np.float64(x[0, 1]))
        right = np.logaddexp(np.cos(angle + 0.5), np.sin(angle)) - np.cos(angle + 0.5)
        assert got == pytest.approx(right, rel=2e-7)
        of_angle = with_grad(x.astype(np.float64), e, [0], scale=1.0).grad_x[0, 1]
        step = 1e-3 * theta
        moved = [loss_of([[1, float(x[0, 1]) + s, 0]], e, [0], scale=1.0) for s in (step, -step)]
        assert of_angle == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-3)


def test_gradients_are_finite_at_seams_and_where_a_direction_is_undefined():
    w = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 2.0]])
    for dtype, options in itertools.product(("float64", "float32", "float16", "bfloat16"), MARGINS):
        arc, multiple = options.get("arc", 0.5), options.get("multiple", 1)
        seam = (np.pi - arc) / multiple
        for theta in (0, 1e-8, np.pi / 2, seam - 1e-8, seam, seam + 1e-8, np.pi):
            x = np.array([[np.cos(theta), np.sin(theta), 0]])
            got = with_grad(*(a.astype(dtype_of(dtype)) for a in (x, w)), [0], **options)
            assert all(np.isfinite(np.asarray(part, np.float64)).all() for part in got[:3]), (dtype, options, theta)
            if theta == 0:  # only the other classes pull, and with a scale of at most 64
                assert np.abs(np.asarray(got.grad_x, np.float64)).max() <= 64.01
    x = np.array([[3.0, 0.0, 0.0]])  # parallel: what is left of the gradient is that of the others
    grads = [with_grad(x, w[:1], [0], arc=arc) for arc in (0.0, 0.5)]
    assert not any(np.any(g.grad_x) or np.any(g.grad_w) for g in grads)


def test_parallel_vectors_have_no_direction_of_rounding():
    """Where x is a multiple of its class, all that is left is the pull of the other class, to the last bits."""
    rng = np.random.default_rng(0)
    for dtype, factor in itertools.product(("float64", "float32"), (1, 3, -0.7, 1e20)):
        for _ in range(10):
            direction, other = rng.integers(-99, 99, (2, 7)).astype(dtype)
            x, w = direction[None] * np.array(factor, dtype), np.stack([direction, other])
            if dtype == "float32" and factor not in (1, 3):
                w[0] = x * 2  # the product has been rounded: another multiple of the rounded vector
            got = with_grad(x, w, [0], scale=1.0)
            a, b = (v / np.linalg.norm(v) for v in (x[0].astype(np.float64), other.astype(np.float64)))
            tangent = b - (a @ b) * a
            tangent /= np.linalg.norm(tangent)
            pull = got.grad_x[0].astype(np.float64) * np.linalg.norm(x.astype(np.float64))
            rest = pull - (pull @ tangent) * tangent
            assert np.linalg.norm(rest) < {"float64": 1e-14, "float32": 1e-6}[dtype]
            assert np.linalg.norm(pull) > 0.05
    unit = direction / np.linalg.norm(direction.astype(np.float64))
    assert not measure_angles(unit[None], unit[None], np.array([False])).tangent.any()


def test_numbers_out_of_range_give_the_canonical_nan():
    x, w, y = layer(4, 3, 5, "float32")
    w[1] = 0
    got = with_grad(x, w, y, scale=1e300)  # infinite in float32, and infinity times 0
    for part in got[:3]:
        bits = np.asarray(part, np.float32).view(np.uint32)
        assert np.all(bits[np.isnan(part)] == 0x7FC00000)
    assert np.isnan(got.loss)


def test_mirror_is_smooth_and_falls():
    """The target's logit on a half circle, for every margin: no step, no kink, no rise."""
    theta = np.linspace(0, np.pi, 4001)
    x, w = np.stack([np.cos(theta), np.sin(theta)], -1), np.array([[1.0, 0.0]])
    for arc, multiple in ((0.5, 1), (-0.3, 1), (0.0, 4), (0.2, 2.5)):
        # one more class, at right angles to all: with its logit 0, the loss tells that of the target
        loss = loss_of(
            np.c_[x, np.zeros(len(x))], np.c_[np.r_[w, [[0, 0]]], [0, 1]], np.zeros(len(x), int),
            scale=1.0, arc=arc, multiple=multiple, reduction="none",
        )  # fmt: skip
        logit = -np.log(np.expm1(loss))
        slope = np.diff(logit)
        assert np.all(slope < 1e-12)
        assert np.abs(np.diff(slope)).max() < 1.01 * (multiple * np.pi / 4000) ** 2


def test_zero_vectors_have_cosine_zero_and_no_gradient():
    x, w, y = layer(4, 3, 5)
    x[0], w[2], y[:] = 0, 0, [1, 2, 3, 4]
    got = with_grad(x, w, y, reduction="none", scale=10.0)
    logits = (
        10.0
        * (x / np.maximum(np.linalg.norm(x, axis=1), 1e-300)[:, None])
        @ (w / np.maximum(np.linalg.norm(w, axis=1), 1e-300)[:, None]).T
    )
    logits[0, 1] = logits[1, 2] = 10 * np.cos(np.pi / 2 + 0.5)
    each = csoftmax.cross_entropy(logits, y, reduction="none")
    assert got.loss[:2] == pytest.approx(each[:2], rel=1e-14)
    assert not got.grad_x[0].any()
    assert not got.grad_w[2].any()
    assert all(np.isfinite(part).all() for part in got[:3])
    nothing = with_grad(np.zeros((2, 0)), np.zeros((3, 0)), [0, 1])
    assert nothing.grad_w.shape == (3, 0)
    target = 64 * np.cos(np.pi / 2 + 0.5)
    assert nothing.loss == pytest.approx(np.log(2 + np.exp(target)) - target)


def test_lengths_do_not_matter():
    """From subnormal numbers to the largest: the same loss, and a gradient in proportion to 1 / length."""
    for dtype, exponents in (("float64", (-1040, -500, 0, 500, 1018)), ("float32", (-130, -70, 0, 70, 122))):
        x, w, y = (np.asarray(a) for a in layer(3, 4, 5))
        x, w = (np.round(a * 1024) / 1024 for a in (x, w))  # few bits, so that subnormal numbers hold them
        expected = with_grad(x.astype(dtype), w.astype(dtype), y, scale=8.0)
        tolerance = 1e-12 if dtype == "float64" else 1e-5
        for a, b in itertools.product(exponents, exponents):
            got = with_grad(np.ldexp(x, a).astype(dtype), np.ldexp(w, b).astype(dtype), y, scale=8.0)
            assert got.loss == pytest.approx(expected.loss, rel=tolerance)
            for gradient, right, power in ((got.grad_x, expected.grad_x, a), (got.grad_w, expected.grad_w, b)):
                with np.errstate(over="ignore", under="ignore"):
                    right = np.ldexp(right, -power)
                smallest = 2.0 ** (-1074 if dtype == "float64" else -149)
                largest = np.abs(right[np.isfinite(right)]).max(initial=0)
                same = np.isclose(gradient, right, rtol=tolerance, atol=tolerance * largest + smallest)
                assert np.all(same)


def test_centers():
    """The nearest centre counts, the first of equal ones, and only it gets a gradient."""
    for dtype in ("float64", "float32", "bfloat16"):
        x, w, y = layer(20, 6, 9, dtype, centers=3)
        wide_x, wide_w = x.astype(np.float64), w.astype(np.float64)
        unit_x = wide_x / np.linalg.norm(wide_x, axis=-1, keepdims=True)
        cosines = np.einsum("nd,kcd->nkc", unit_x, wide_w / np.linalg.norm(wide_w, axis=-1, keepdims=True))
        best = cosines.argmax(-1)
        options = {"reduction": "none", "scale": 12.0, "label_smoothing": 0.1}
        got = with_grad(x, w, y, sub_centers=3, chunk_bytes=2000, **options)
        total = np.zeros(w.shape)
        for i in range(20):
            chosen = w[np.arange(9), best[i]]
            one = with_grad(x[i], chosen, y[i], **options)
            assert got.loss[i] == pytest.approx(one.loss, rel=1e-12 if dtype == "float64" else 1e-5)
            total[np.arange(9), best[i]] += one.grad_w.astype(np.float64)
        tolerance = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}[dtype]
        np.testing.assert_allclose(got.grad_w.astype(np.float64), total, tolerance, tolerance * np.abs(total).max())
    one = with_grad(*(a.astype(np.float64) for a in (x, w[:, :1])), y)
    assert one.grad_w.shape == (9, 1, 6)


def test_equal_centers_of_the_target():
    x, w, y = layer(8, 16, 2, "float32", centers=4)
    w[:, 1:] = w[:, :1]
    got = with_grad(x, w[:1], np.zeros(8, int), sub_centers=4, arc=0.2)
    assert not got.grad_w.any()  # one class: the loss is 0
    got = with_grad(x, w, y, sub_centers=4, weight=[1.0, 1.0])
    single = with_grad(x, w[:, 0], y)
    np.testing.assert_allclose(got.grad_w.sum(1), single.grad_w, 1e-4, 1e-5)


def test_classes_that_take_part():
    """As if the others were not there; theirs are zero gradients, and arrays of length K go by the class."""
    x, w, y = layer(12, 5, 40, seed=3)
    rng = np.random.default_rng(0)
    classes = np.unique(np.r_[y, 3, 17, 39])
    arc, weight = rng.uniform(0, 0.5, 40), rng.random(40) + 0.1
    options = {"label_smoothing": 0.2, "scale": 9.0, "ignore_index": int(y[4])}
    got = with_grad(x, w, y, classes=classes, arc=arc, weight=weight, **options)
    places = np.searchsorted(classes, y)
    options["ignore_index"] = int(places[4])
    small = with_grad(x, w[classes], places, arc=arc[classes], weight=weight[classes], **options)
    assert got.loss == small.loss
    assert np.array_equal(got.grad_x, small.grad_x)
    assert np.array_equal(got.grad_w[classes], small.grad_w)
    assert not np.delete(got.grad_w, classes, axis=0).any()
    without = np.setdiff1d(classes, y[4:5])  # an ignored target need not be among them
    assert np.isfinite(loss_of(x, w, y, classes=without, ignore_index=int(y[4])))
    with pytest.raises(ValueError, match=rf"row 4 has {y[4]}, which is not among them"):
        loss_of(x, w, y, classes=without)
    with pytest.raises(ValueError, match=rf"row 4 has {y[4]}"):  # the caller's row, whichever have been dropped
        loss_of(x, w, y, classes=without, sample_weight=np.minimum(np.arange(12), 1))


def test_margins_of_classes_and_rows():
    x, w, y = layer(6, 3, 4)
    arc = np.random.default_rng(0).uniform(0, 0.5, 4)
    assert loss_of(x, w, y, arc=arc) == loss_of(x, w, y, arc=arc[y])
    ignored = np.where(np.arange(6) == 2, -100, y)
    assert loss_of(x, w, ignored, cosine=arc) == loss_of(x, w, ignored, cosine=arc[y])
    boxed = loss_of(x.reshape(2, 3, 3), w, y.reshape(2, 3), arc=arc[y].reshape(2, 3), reduction="none")
    assert np.array_equal(boxed.ravel(), loss_of(x, w, y, arc=arc[y], reduction="none"))
    square = loss_of(x[:4], w, y[:4], arc=arc, reduction="none")  # as many rows as classes: by class
    np.testing.assert_allclose(square, [loss_of(x[i], w, y[i], arc=arc[y[i]]) for i in range(4)], 1e-12)
    assert loss_of(x, w, y, arc=1, cosine=np.float32(0)) == loss_of(x, w, y, arc=1.0)


def test_rows_that_take_no_part_and_odd_inputs():
    x, w, y = layer(10, 4, 9)
    expected = with_grad(x[2:], w, y[2:])
    x[:2] = np.nan
    for options in ({"target": np.r_[-100, -100, y[2:]]}, {"target": y, "sample_weight": np.r_[0, 0, np.ones(8)]}):
        got = with_grad(x, w, **options)
        assert got.loss == expected.loss
        assert not got.grad_x[:2].any()
        assert np.array_equal(got.grad_x[2:], expected.grad_x)
        assert np.array_equal(got.grad_w, expected.grad_w)
    nothing = with_grad(x, w, np.full(10, -100))
    assert np.isnan(nothing.loss)
    assert not nothing.grad_x.any()
    assert not nothing.grad_w.any()
    empty = with_grad(x[:0], w, y[:0], reduction="sum")
    assert empty.loss == 0
    assert empty.grad_x.shape == (0, 4)
    assert not empty.grad_w.any()
    x, w, y = layer(6, 4, 5)
    expected = with_grad(x, w, y)
    for other_x, other_w in (
        (np.asfortranarray(x), np.asfortranarray(w)),
        (x.tolist(), w.tolist()),
        (np.repeat(x, 2, 0)[::2], np.repeat(w, 2, 1)[:, ::2]),
    ):
        got = with_grad(other_x, other_w, y.tolist())
        assert all(np.allclose(a, b, 1e-12, 1e-14) for a, b in zip(got[:3], expected[:3], strict=True))
    x.flags.writeable = w.flags.writeable = False
    assert with_grad(x, w, y).loss == expected.loss
    assert with_grad([[1, 2]], [[1, 0], [0, 3]], [1]).grad_w.dtype == np.float64
    one = with_grad(x[0], w, y[0])
    assert one.grad_x.shape == (4,)
    assert isinstance(one.loss, np.float64)
    w = w.copy()
    w[3, 1] = np.inf  # no direction: every loss needs its cosine
    assert np.isnan(loss_of(x, w, y, reduction="none")).all()
    with pytest.raises(ValueError, match="w cannot be made an array of numbers"):
        loss_of(x, [[1.0], [1.0, 2.0]], y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_filter(dtype):
    """No gradient is off by more than the filter's bound, and targets are never left out."""
    n, k, eps = 60, 900, 1e-4
    x, w, y = layer(n, 16, k, dtype)
    options = {"reduction": "sum", "scale": 30.0, "chunk_bytes": 4 * k * 7}
    exact, got = with_grad(x, w, y, **options), with_grad(x, w, y, filter_eps=eps, **options)
    assert got.loss == exact.loss
    left_out = ~got.grad_w.any(1)
    assert left_out.mean() > 0.05
    assert not left_out[y].any()
    x_length, w_length = (np.linalg.norm(a.astype(np.float64), axis=1) for a in (x, w))
    rounding = {"float32": 1e-5, "bfloat16": 2.0**-7}[dtype]
    for a, b, bound in (
        (exact.grad_x, got.grad_x, 30 * eps * k / x_length),
        (exact.grad_w, got.grad_w, 30 * eps * n / w_length),
    ):
        gap = np.linalg.norm(a.astype(np.float64) - b.astype(np.float64), axis=1)
        assert np.all(gap <= bound + rounding * np.abs(a.astype(np.float64)).max())


@pytest.mark.promise("reproducibility", "margin_cross_entropy")
@pytest.mark.promise("reproducibility", "margin_cross_entropy_with_grad")
def test_repeatable():
    x, w, y = layer(300, 32, 4000, "float32")
    first = with_grad(x, w, y, chunk_bytes=1 << 20)
    again = with_grad(x, w, y, chunk_bytes=1 << 20, num_threads=1)
    assert first.loss == again.loss == loss_of(x, w, y, chunk_bytes=1 << 20)
    assert np.array_equal(first.grad_x, again.grad_x)
    assert np.array_equal(first.grad_w, again.grad_w)


def beside(*args, **options):
    """Bytes that a call needs beside its gradients."""
    tracemalloc.start()
    try:
        result = with_grad(*args, **options)
        return tracemalloc.get_traced_memory()[1] - result.grad_x.nbytes - result.grad_w.nbytes
    finally:
        tracemalloc.stop()


@pytest.mark.promise("memory", "margin_cross_entropy_with_grad")
def test_chunk_bytes_bounds_the_logits():
    x, w, y = layer(1024, 64, 4000, "float32")
    for megabytes in (1, 4):
        assert (megabytes << 20) // 2 < beside(x, w, y, chunk_bytes=megabytes << 20) < (megabytes + 9) << 20


@pytest.mark.slow
def test_the_logits_never_exist():
    """An eighth of what all logits would need, at most; the figure in the guide."""
    n, d, k = 2048, 128, 50_000
    assert beside(*layer(n, d, k, "float32")) < n * k * 4 / 8


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.slow
def test_ctrl_c_within_a_product():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((256, 4096), dtype="f4"), rng.standard_normal((65536, 4096), dtype="f4")
    assert seconds_to_stop(lambda: with_grad(x, w, np.zeros(256, int)), 0.3) < 1
