"""Cross-entropy and its gradient: special values, consistency, the short path, bits, and PyTorch."""

import functools
import operator
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits, run_python
from helpers.targets import labels, soft_labels

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.cross_entropy import one_hot
from csoftmax._spec.formats import NAN_BITS, bits, dtype_of
from csoftmax._spec.samples import logits, unlike_rows

LABELS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


# Special values and rows that take no part


def test_ignored_rows_are_not_read(dtype):
    for k in (5, 40, 5000):
        x = logits((6, k), dtype, seed=k)
        t = labels(6, k)
        keep = np.array([0, 2, 5])
        expected = csoftmax.cross_entropy_with_grad(x[keep], t[keep], label_smoothing=0.1, z_loss=0.01)
        for value in (np.nan, np.inf, -np.inf, 1e30 if dtype != "float16" else 6e4):
            y, ignored, weights = x.copy(), t.copy(), np.ones(6)
            y[[1, 3, 4]] = value
            ignored[[1, 3, 4]] = -1
            weights[[1, 3, 4]] = 0
            for options in ({"ignore_index": -1, "target": ignored}, {"sample_weight": weights, "target": t}):
                loss, grad = csoftmax.cross_entropy_with_grad(y, label_smoothing=0.1, z_loss=0.01, **options)
                assert loss == expected.loss
                assert_same_bits(grad[keep], expected.grad)
                assert np.all(bits(grad[[1, 3, 4]]) == 0)
                assert csoftmax.cross_entropy(y, label_smoothing=0.1, z_loss=0.01, **options) == loss


UNREADABLE = """
import csoftmax
from helpers.guard_pages import *
x = np.random.default_rng(0).standard_normal((3, PAGE // 4)).astype(np.float32)
place = Guarded(3 * PAGE)
rows = place.array(x.shape, x.dtype, True)
rows[...] = x
assert libc.mprotect(place.base + 2 * PAGE, PAGE, 0) == 0  # the row in the middle
strided = np.empty((3, 2 * x.shape[1]), np.float32)[:, ::2]
for logits, axis, out in (
    (rows, -1, None),
    (rows[:, ::-1], -1, None),
    (rows[::-1, ::2], -1, None),
    (rows.T, 0, None),
    (rows.T[::3], 0, None),
    (rows, -1, strided),
    (rows.reshape(1, 3, -1)[:, ::-1, 1:], -1, None),
):
    k = logits.shape[axis]
    shape = tuple(n for i, n in enumerate(logits.shape) if i != axis % logits.ndim)
    t, q = np.array([1, 2, 5]).reshape(shape), np.random.default_rng(1).random((3, k))
    weights = np.array([1, 0, 1]).reshape(shape)
    soft = np.moveaxis(q.reshape(*shape, k), -1, axis)
    kept = np.moveaxis(logits, axis, -1)[..., [0, 2], :].reshape(2, k)
    for target, options in ((np.where(weights, t, -100), {}), (t, {"sample_weight": weights}),
                            (soft, {"sample_weight": weights})):
        keep = csoftmax.cross_entropy_with_grad(kept, [1, 5] if target is not soft else q[[0, 2]])
        result = csoftmax.cross_entropy_with_grad(logits, target, axis=axis, out=out, **options)
        grad = np.moveaxis(result.grad, axis, -1).reshape(3, k)
        assert result.loss == keep.loss and grad[[0, 2]].tobytes() == keep.grad.tobytes()
        assert not grad[1].any()
        assert csoftmax.cross_entropy(logits, target, axis=axis, **options) == keep.loss
print("done", flush=True)
rows[1, 0]  # and this ends the process
print("read")
"""


def test_ignored_rows_may_be_unreadable():
    """Their page cannot be accessed, so that one read ends the process, in rows in place and packed ones."""
    done = run_python(UNREADABLE, check=False)
    assert done.stdout.split() == ["done"], done.stdout + done.stderr
    assert done.returncode < 0


def test_all_rows_ignored(dtype):
    x = np.full((3, 7), np.nan, dtype_of(dtype))
    loss, grad = csoftmax.cross_entropy_with_grad(x, np.full(3, -100))
    assert np.isnan(loss)
    assert np.all(bits(grad) == 0)
    assert csoftmax.cross_entropy(x, np.full(3, -100), reduction="sum") == 0
    assert np.isnan(csoftmax.cross_entropy(x[:0], np.zeros(0, int)))
    assert csoftmax.cross_entropy_with_grad(x[:0], []).grad.shape == (0, 7)


def test_nan_infinity_and_excluded_classes(dtype):
    for k in (3, 17, 5000):
        for at in (0, 1, k - 1):
            x = logits((1, k), dtype, seed=k)
            for value in (np.nan, np.inf):
                x[0, at] = value
                loss, grad = csoftmax.cross_entropy_with_grad(x, [1])
                assert np.isnan(loss)
                assert np.all(bits(grad) == NAN_BITS[dtype])
            x[0, at] = -np.inf
            loss, grad = csoftmax.cross_entropy_with_grad(x, [at], reduction="none")
            assert loss[0] == np.inf
            assert grad[0, at] == -1
            other = (at + 1) % k
            loss, grad = csoftmax.cross_entropy_with_grad(x, [other], reduction="none")
            rest = np.delete(x, at, 1)
            expected = csoftmax.cross_entropy_with_grad(rest, [other - (other > at)], reduction="none")
            assert np.isfinite(loss[0])
            assert grad[0, at] == 0
            assert np.allclose(np.delete(grad, at, 1).astype(float), expected.grad.astype(float), rtol=1e-2, atol=1e-7)
            q = np.full((1, k), 1 / (k - 1), np.float64 if dtype == "float64" else np.float32)
            q[0, at] = 0
            assert np.isfinite(csoftmax.cross_entropy(x, q))
            q[0, at] = 1e-3
            assert csoftmax.cross_entropy(x, q) == np.inf
            w = np.ones(k)
            w[at] = 0
            assert np.isfinite(csoftmax.cross_entropy(x, [other], weight=w, label_smoothing=0.1))
            assert csoftmax.cross_entropy(x, [other], label_smoothing=0.1) == np.inf
        x = np.full((1, k), -np.inf, dtype_of(dtype))
        assert np.isnan(csoftmax.cross_entropy(x, [0]))


def test_no_classes_and_scalars():
    assert csoftmax.cross_entropy(np.zeros((3, 0)), np.full(3, -100), reduction="sum") == 0
    with pytest.raises(IndexError, match="no class"):
        csoftmax.cross_entropy(np.zeros((3, 0)), [0, 0, 0])
    loss, grad = csoftmax.cross_entropy_with_grad(np.float32(3.0), np.int64(0))
    assert loss == 0
    assert grad.shape == ()
    loss = csoftmax.cross_entropy(np.zeros(4), 2, reduction="none")
    assert isinstance(loss, np.float64)
    assert np.isclose(loss, np.log(4))


def test_factors_of_any_size():
    """Sample weights, upstream gradients and temperatures far from 1: no intermediate result overflows or vanishes."""
    x = np.array([[0.0, 1.0, 2.0]])
    expected = csoftmax.cross_entropy_with_grad(x, [0]).grad
    for dtype in ("float32", "float64"):
        z = x.astype(dtype)
        tolerance = 8 * np.finfo(dtype).eps
        for size in (1e-310, 1e-200, 1e-40, 1e30, 1e200, 1e308):
            mean = csoftmax.cross_entropy_with_grad(z, [0], sample_weight=[size]).grad
            assert np.allclose(mean, expected, rtol=tolerance, atol=0)
            both = csoftmax.cross_entropy_with_grad(
                z, [0], sample_weight=[size], upstream=1 / size if size > 1e-300 else 1e300, reduction="none"
            ).grad
            factor = size * (1 / size if size > 1e-300 else 1e300)
            assert np.allclose(both, expected * factor, rtol=tolerance, atol=0)
            if size > 1e-300:
                for clips in ({"clip_norm": size / 4}, {"clip_norm": size / 4, "clip_value": size}):
                    clipped = csoftmax.cross_entropy_with_grad(
                        z, [0], sample_weight=[size], upstream=1 / size, reduction="sum", **clips
                    ).grad
                    unit = expected / np.linalg.norm(expected)
                    assert np.allclose(clipped, unit / 4, rtol=tolerance, atol=0)
        tail = np.array([[0.0, -69.0, -1.0]], dtype)
        p = csoftmax.softmax(tail.astype(np.float64))
        grad = csoftmax.cross_entropy_with_grad(tail, [0], sample_weight=[1e60], reduction="none").grad
        assert np.isclose(grad[0, 1], p[0, 1] * 1e60, rtol=tolerance)
        for t in (1e-309, 1e-200, 1e300):
            got = csoftmax.cross_entropy_with_grad(z * t if dtype == "float64" else z, [0], temperature=t).grad
            assert np.all(np.sign(got)[0, [0, 2]] == [-1, 1]) or t == 1e300
    for upstream in (np.inf, -np.inf):
        got = csoftmax.cross_entropy_with_grad(x, [0], upstream=upstream).grad
        assert np.array_equal(np.sign(got), np.sign(expected) * np.sign(upstream))
    got = csoftmax.cross_entropy_with_grad(x, [0], upstream=np.nan).grad
    assert np.all(bits(got) == NAN_BITS["float64"])
    got = csoftmax.cross_entropy_with_grad([[0.0, -372.5]], [0], temperature=0.5, upstream=1e10).grad
    assert np.isclose(got[0, 0], -got[0, 1], rtol=1e-14)


@pytest.mark.parametrize("isa_name", binding.isa_available())
def test_no_weight_at_all(isa_name):
    """The mean's divisor is 0: loss NaN, gradient exactly 0, on every instruction set."""
    before = binding.isa()
    binding.select_isa(isa_name)
    try:
        for dtype in ("float32", "float64"):
            x = np.zeros((2, 3), dtype)
            for target in (np.zeros(2, int), np.full((2, 3), 0.25)):
                for options in ({"weight": np.zeros(3)}, {"weight": np.zeros(3), "label_smoothing": 0.1}):
                    loss, grad = csoftmax.cross_entropy_with_grad(x, target, **options)
                    assert bits(loss) == NAN_BITS[dtype]
                    assert not grad.any()
    finally:
        binding.select_isa(before)


MEANS = (
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.5},
    {"label_smoothing": 1.0, "clip_norm": 0.1},
    {"z_loss": 0.5, "clip_value": 0.1},
    {"upstream": np.inf, "label_smoothing": 0.1},
)


@pytest.mark.parametrize("options", MEANS, ids=str)
def test_a_mean_that_divides_by_zero(dtype, options):
    """The loss is NaN and the gradient exactly 0, whatever the other options and the logits."""
    real = np.float64 if dtype == "float64" else np.float32
    for k in (1, 3, 17, 5000):
        x = logits((6, k), dtype, seed=k)
        x[1, 0], x[2, k // 2], x[3], x[4, k - 1] = np.nan, np.inf, -np.inf, -np.inf
        for target, more in (
            (np.full(6, -100), {}),
            (np.zeros(6, int), {"weight": np.arange(k) > 0}),
            (np.zeros(6, int), {"sample_weight": np.zeros(6)}),
            (np.zeros((6, k)), {}),
            (np.full((6, k), 0.25), {"weight": np.zeros(k, real)}),
        ):
            more = {name: np.asarray(value, real) for name, value in more.items()} | options
            out = np.full_like(x, 7)
            for given in (x, x[:, ::-1], x.copy(order="F")):
                loss, grad = csoftmax.cross_entropy_with_grad(given, target, out=out, temperature=0.5, **more)
                assert bits(loss) == NAN_BITS[np.dtype(real).name]
                assert np.all(bits(grad) == 0)
                out = np.full_like(out, 7, order="F")
            alone = {name: value for name, value in more.items() if name not in ("upstream", "clip_norm", "clip_value")}
            assert np.isnan(csoftmax.cross_entropy(x, target, **alone))


def test_the_gradient_of_one_class_is_zero(dtype):
    """A soft row of one class has probability 1; p Q - a is 0, and not what rounding leaves of it."""
    rng = np.random.default_rng(1)
    x, q = logits((200, 1), dtype), rng.random((200, 1)).astype(np.float64 if dtype == "float64" else np.float32)
    for target in (q, np.zeros(200, int)):
        for options in ({}, {"label_smoothing": 0.3}, {"label_smoothing": 0.1, "weight": [0.7], "clip_norm": 0.1}):
            for t in (1.0, 0.3, 1e-30):
                assert not csoftmax.cross_entropy_with_grad(x, target, temperature=t, **options).grad.any()
    result = csoftmax.cross_entropy_with_grad([[-0.188]], [[0.0]], label_smoothing=1.0, reduction="sum")
    assert not result.grad.any()


def test_the_gradient_of_a_class_that_smoothing_gives_mass(dtype):
    """A class of -inf: -epsilon / K times the row's factor, beside a loss of +inf."""
    real, place = np.float64 if dtype == "float64" else np.float32, 2
    for k in (3, 17, 5000):
        x = logits((2, k), dtype, seed=k)
        x[:, place] = -np.inf
        weight = np.linspace(0.5, 2, k).astype(real)
        for options, factor in (
            ({}, 0.5),
            ({"temperature": 2.0}, 0.25),
            ({"reduction": "sum", "sample_weight": [3.0, 3.0]}, 3),
            ({"reduction": "sum", "weight": weight, "upstream": 0.5}, 0.5 * weight[place]),
            ({"reduction": "none", "z_loss": 1e-3}, 1),
        ):
            expected = -0.1 / k * factor
            for target in (np.array([0, 1]), one_hot(np.array([0, 1]), k, real)):
                loss, grad = csoftmax.cross_entropy_with_grad(x, target, label_smoothing=0.1, **options)
                assert np.all(loss == np.inf)
                tolerance = {"float64": 1e-15, "float32": 3e-7, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
                assert np.allclose(grad[:, place].astype(float), expected, rtol=tolerance, atol=1e-7 * (k > 17))
                assert np.isfinite(grad.astype(float)).all()
        loss, grad = csoftmax.cross_entropy_with_grad(x, [2, 2], label_smoothing=0.25, reduction="sum")
        assert loss == np.inf
        assert np.allclose(grad[:, place].astype(float), -(0.75 + 0.25 / k), rtol=4e-3)


def test_large_soft_labels_and_distances():
    for dtype, large in (("float32", 2e38), ("float64", 9e307)):
        x = np.zeros((2, 40), dtype)
        out = np.full_like(x, 7)
        loss = csoftmax.cross_entropy_with_grad(x, np.full((2, 40), large, dtype), out=out).loss
        assert loss == np.inf or np.isclose(float(loss), np.log(40)) or np.isnan(loss)
        assert not np.any(out == 7)
        x = np.zeros((1, 64), dtype)
        x[0, 1::16] = np.finfo(dtype).min / 2
        loss = csoftmax.cross_entropy(x, [0], label_smoothing=0.1)
        assert np.isclose(float(loss), -0.1 / 64 * 4 * float(np.finfo(dtype).min) / 2, rtol=1e-6)
    assert csoftmax.cross_entropy([[0, -np.inf, 2.0]], np.full((1, 3), 1 / 3), label_smoothing=1.0) == np.inf


def test_scalars_and_their_types():
    grad = csoftmax.cross_entropy_with_grad(np.float32(3), np.int64(0)).grad
    assert isinstance(grad, np.float32)
    with pytest.raises(ValueError, match="n_classes must be at least 0, got -1"):
        csoftmax.check_labels([0], -1)
    with pytest.raises(TypeError, match=r"n_classes must be an int, got 2.5"):
        csoftmax.check_labels([0], 2.5)
    with pytest.raises(ValueError, match=r"finite in float32, got 1e\+300"):
        csoftmax.cross_entropy(np.zeros((1, 3), np.float32), [0], weight=[1e300] * 3)


# Consistency


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1, "temperature": 0.5}], ids=str)
def test_hard_labels_are_one_hot_rows(options):
    for dtype in ("float32", "float64"):
        x, t = logits((9, 33), dtype), labels(9, 33)
        w = np.random.default_rng(1).random(33)
        q = one_hot(t, 33, np.float64)
        for reduction in ("none", "mean", "sum"):
            hard = csoftmax.cross_entropy_with_grad(x, t, weight=w, reduction=reduction, **options)
            soft = csoftmax.cross_entropy_with_grad(x, q, weight=w, reduction=reduction, **options)
            eps = np.finfo(dtype).eps
            assert np.allclose(hard.loss, soft.loss, rtol=8 * eps, atol=0)
            assert np.allclose(hard.grad, soft.grad, rtol=8 * eps, atol=4 * eps)


def tree(x):
    """Add row losses as the core does: in halves at the largest power of two times eight, eight of them in order."""
    if len(x) <= 8:
        return functools.reduce(operator.add, x, np.float64(0))  # sum() compensates from CPython 3.12 on
    half = 8
    while 2 * half < len(x):
        half *= 2
    return tree(x[:half]) + tree(x[half:])


@pytest.mark.parametrize("n", [7, 8, 9, 100, 1000, 4099])
def test_row_losses_are_added_in_the_tree(n):
    x, t, s = logits((n, 5), "float64", sigma=9), labels(n, 5), np.random.default_rng(n).random(n)
    each = csoftmax.cross_entropy(x, t, sample_weight=s, reduction="none")
    assert csoftmax.cross_entropy(x, t, sample_weight=s, reduction="sum") == tree(each)
    assert csoftmax.cross_entropy(x, t, sample_weight=s) == tree(each) / tree(s)
    if n == 4099:  # which no simpler sum would give
        assert len({float(tree(each)), float(each.sum()), functools.reduce(operator.add, each.tolist())}) == 3


def test_mean_is_sum_over_the_divisor():
    x, t = logits((50, 20), "float64"), labels(50, 20)
    w, s = np.random.default_rng(0).random(20), np.random.default_rng(1).random(50)
    mean = csoftmax.cross_entropy(x, t, weight=w, sample_weight=s)
    total = csoftmax.cross_entropy(x, t, weight=w, sample_weight=s, reduction="sum")
    each = csoftmax.cross_entropy(x, t, weight=w, sample_weight=s, reduction="none")
    assert np.isclose(mean, total / np.sum(s * w[t]), rtol=1e-15)
    assert np.isclose(total, each.sum(), rtol=1e-14)


def test_upstream_a_row():
    x, t = logits((6, 11), "float64"), labels(6, 11)
    upstream = np.array([1.0, 0.0, -2.0, 3.5, 1e-3, 7.0])
    grad = csoftmax.cross_entropy_with_grad(x, t, reduction="none", upstream=upstream).grad
    each = csoftmax.cross_entropy_with_grad(x, t, reduction="none").grad
    assert np.allclose(grad, each * upstream[:, None], rtol=1e-15, atol=0)
    images = logits((2, 5, 3, 4), "float32")
    grad = csoftmax.cross_entropy_with_grad(
        images, labels((2, 3, 4), 5), axis=1, reduction="none", upstream=[[1.0], [2.0], [3.0]]
    ).grad
    single = csoftmax.cross_entropy_with_grad(images, labels((2, 3, 4), 5), axis=1, reduction="none").grad
    assert np.allclose(grad, single * np.float32([[1], [2], [3]]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", LABELS)
def test_every_label_type(kind):
    x = logits((5, 100), "float32")
    t = labels(5, 100)
    expected = csoftmax.cross_entropy_with_grad(x, t)
    for target in (t.astype(kind), t.astype(np.dtype(kind).newbyteorder())):
        loss, grad = csoftmax.cross_entropy_with_grad(x, target)
        assert loss == expected.loss
        assert_same_bits(grad, expected.grad)
    limits = np.iinfo(kind)
    for ignore in (limits.min, limits.max, -100, 2**64 - 100, -(2**63), 2**64 - 1, 2**80):
        target = t.astype(kind)
        if limits.min <= ignore <= limits.max:
            target[1] = ignore
            loss = csoftmax.cross_entropy(x, target, ignore_index=ignore)
            assert loss == csoftmax.cross_entropy(np.delete(x, 1, 0), np.delete(t, 1), ignore_index=101)
        else:  # compared without wrap-around
            assert csoftmax.cross_entropy(x, target, ignore_index=ignore) == expected.loss
    target = t.astype(kind)
    target[2] = 100
    with pytest.raises(IndexError, match=r"target\[2\] is 100: the classes are 0 to 99, and ignore_index is -7"):
        csoftmax.cross_entropy(x, target, ignore_index=-7)


# Bits


VARIANTS = {
    "plain": {},
    "weights, smoothing": {"label_smoothing": 0.1, "weight": True},
    "soft": {"soft": True, "z_loss": 1e-3},
    "soft, weights": {"soft": True, "weight": True, "label_smoothing": 0.2},
    "clipped": {"clip_norm": 0.5, "clip_value": 0.3, "sample_weight": True},
    "temperature": {"temperature": 0.7},
}


def problem(dtype, n, k, variant, sigma=3.0):
    options = dict(VARIANTS[variant])
    x = logits((n, k), dtype, seed=n + k, sigma=sigma)
    target = soft_labels((n, k), 1) if options.pop("soft", False) else labels(n, k, 5)
    if target.ndim == 1:
        target[n // 2] = -100
    rng = np.random.default_rng(9)
    for name, size in (("weight", k), ("sample_weight", n)):
        if options.get(name):
            options[name] = rng.random(size)
    return x, target, options


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_among_others_are_rows_alone(dtype, variant, isa):
    """Rows of every kind, as in test_reproducibility; a fifth of them is ignored."""
    for k in (1, 2, 16, 17, 40, 300, 513, 1025, 5003):
        x = unlike_rows(41, k, dtype, seed=k)
        _, target, options = problem(dtype, len(x), k, variant)
        if target.ndim == 1:
            target[np.random.default_rng(k).random(len(x)) < 0.2] = -100
        alone = []
        for i in range(len(x)):
            options_of_row = {
                key: value[i : i + 1] if key == "sample_weight" else value for key, value in options.items()
            }
            row = slice(i, i + 1)
            alone.append(csoftmax.cross_entropy_with_grad(x[row], target[row], reduction="none", **options_of_row))
        losses, grads = (np.concatenate(parts) for parts in zip(*alone, strict=True))
        for threads in (1, 2):
            got = csoftmax.cross_entropy_with_grad(x, target, reduction="none", num_threads=threads, **options)
            assert_same_bits(got.loss, losses, f"K={k}")
            assert_same_bits(got.grad, grads, f"K={k}")
        unclipped = {key: value for key, value in options.items() if not key.startswith("clip")}
        assert_same_bits(csoftmax.cross_entropy(x, target, reduction="none", **unclipped), losses, f"K={k}")
        in_place = x.copy()
        csoftmax.cross_entropy_with_grad(in_place, target, reduction="sum", out=in_place, **options)
        assert_same_bits(in_place, grads, f"K={k} in place")


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_the_short_way_through_the_arguments(quick, kind):
    """Plain arguments are not laid out in Python, device="cpu" sends them the long way: the same bits and errors."""
    x, q, w = logits((40, 30), kind), soft_labels((40, 30), 1, kind), np.random.default_rng(2).random(30).astype(kind)
    t = labels(40, 30)
    t[3] = -100
    given = (
        {"label_smoothing": 0.1},
        {"z_loss": 1e-3},
        {"temperature": 0.5},
        {"weight": w},
        {"weight": w, "label_smoothing": 0.3, "z_loss": 0.1, "temperature": 3.0, "clip_norm": 0.1, "clip_value": 0.05},
        {},
    )
    for options in given:
        for target in (t, q, t.astype(np.int32)):
            for reduction in ("mean", "sum", "none"):
                short = csoftmax.cross_entropy_with_grad(x, target, reduction=reduction, **options)
                long = csoftmax.cross_entropy_with_grad(x, target, reduction=reduction, device="cpu", **options)
                assert_same_bits(np.asarray(short.loss), np.asarray(long.loss), f"{options} {reduction}")
                assert_same_bits(short.grad, long.grad, f"{options} {reduction}")
                assert type(short.loss) is type(long.loss)
                assert quick(csoftmax.cross_entropy_with_grad, x, target, reduction=reduction, **options) is not None
        cube = csoftmax.cross_entropy(x.reshape(4, 10, 30), t.reshape(4, 10), weight=w, reduction="none")
        assert_same_bits(cube.ravel(), csoftmax.cross_entropy(x, t, weight=w, reduction="none"), "three axes")
    expected = csoftmax.cross_entropy_with_grad(x, q, weight=w, device="cpu")
    for out in (soft := q.copy(), np.concatenate([w, x.ravel()])):
        w_there = out[:30] if out.ndim == 1 else w
        where = out[15 : 15 + x.size].reshape(x.shape) if out.ndim == 1 else out
        got = csoftmax.cross_entropy_with_grad(x, soft if out is soft else q, weight=w_there, out=where)
        assert got.loss == expected.loss  # out overlaps labels, then weights
        assert_same_bits(where, expected.grad)
    before = x.copy()
    for bad, error in (
        ({"weight": -w}, ValueError),
        ({"weight": w * np.nan}, ValueError),
        ({"weight": w + np.inf}, ValueError),
        ({"weight": w[:-1]}, ValueError),
        ({"label_smoothing": 1.5}, ValueError),
        ({"label_smoothing": np.nan}, ValueError),
        ({"z_loss": np.inf}, ValueError),
        ({"temperature": 0.0}, ValueError),
        ({"clip_norm": 0.0}, ValueError),
        ({"clip_value": -1.0}, ValueError),
        ({"target": -q}, ValueError),
        ({"target": q + np.inf}, ValueError),
        ({"target": t + 30}, IndexError),
        ({"target": q[:, :-1].copy()}, ValueError),
    ):
        arguments = {"target": t, "out": x, **bad}
        with pytest.raises(error) as short:
            csoftmax.cross_entropy_with_grad(x, **arguments)
        with pytest.raises(error) as long:
            csoftmax.cross_entropy_with_grad(x, device="cpu", **arguments)
        assert str(short.value) == str(long.value)
        assert_same_bits(x, before, str(bad))


def test_images_and_tuples_of_axes():
    x = logits((2, 5, 6, 7), "float32")
    t = labels((2, 6, 7), 5)
    flat = np.moveaxis(x, 1, -1).reshape(-1, 5)
    expected = csoftmax.cross_entropy_with_grad(flat, t.reshape(-1))
    loss, grad = csoftmax.cross_entropy_with_grad(x, t, axis=1)
    assert loss == expected.loss
    assert_same_bits(np.moveaxis(grad, 1, -1).reshape(-1, 5), expected.grad)
    each = csoftmax.cross_entropy(x, t, axis=1, reduction="none")
    assert each.shape == (2, 6, 7)
    t = labels((2, 7), 30)
    joined = np.moveaxis(x, -1, 1).reshape(14, 30)
    assert csoftmax.cross_entropy(x, t, axis=(1, 2)) == csoftmax.cross_entropy(joined, t.reshape(-1))


# Errors


def test_what_underflows_in_the_compute_type_is_still_not_nothing():
    """A term of weight 1e-60 at -inf is infinite, whatever float32 makes of 1e-60; and NumPy's alarms stay silent."""
    x = np.array([[0, -np.inf]], np.float32)
    with np.errstate(all="raise"):
        assert csoftmax.cross_entropy(x, np.array([[1, 1e-60]])) == np.inf
        assert csoftmax.cross_entropy(x, [1], weight=np.array([1, 1e-60])) == np.inf
        assert csoftmax.cross_entropy_with_grad(x[:, :1], [0], upstream=np.longdouble("1e4000")).loss == 0
        assert csoftmax.cross_entropy_with_grad(np.zeros((1, 2), np.float32), np.array([[1e-50, 1]])).loss > 0


# Memory


# PyTorch, where the definitions agree


def test_torch_agrees():
    torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra")
    x, t = logits((40, 30), "float64", sigma=4), labels(40, 30)
    t[3] = -100
    w = np.random.default_rng(2).random(30)
    q = soft_labels((40, 30), dtype=np.float64)
    cases = [
        (t, {}),
        (t, {"weight": w}),
        (t, {"label_smoothing": 0.1}),
        (t, {"weight": w, "label_smoothing": 0.1}),
        (q, {"reduction": "sum"}),
        (q, {"weight": w, "reduction": "sum"}),
        (t, {"reduction": "sum", "ignore_index": 5}),
    ]
    t_ok = np.where(t < 0, 0, t)
    for target, options in cases:
        if options.get("ignore_index") == 5:
            target = t_ok
        y = torch.tensor(x, requires_grad=True)
        theirs = dict(options)
        if "weight" in theirs:
            theirs["weight"] = torch.tensor(theirs["weight"])
        loss = torch.nn.functional.cross_entropy(y, torch.tensor(target), **theirs)
        loss.backward()
        ours = csoftmax.cross_entropy_with_grad(x, target, **options)
        assert np.isclose(ours.loss, loss.item(), rtol=1e-13), options
        assert np.allclose(ours.grad, y.grad.numpy(), rtol=1e-11, atol=1e-15), options
    # the differences that the documentation lists
    functional, row = torch.nn.functional, torch.tensor([[0.0, -torch.inf, 1.0]])
    zero = torch.tensor([[0.5, 0.0, 0.5]])
    assert functional.cross_entropy(row, zero).isnan()
    assert np.isfinite(csoftmax.cross_entropy(row.numpy(), zero.numpy()))
    z = torch.tensor([[torch.nan, 0, 0], [17.5, 0, 0]], requires_grad=True)
    functional.cross_entropy(z, torch.tensor([-100, 0])).backward()
    ours = csoftmax.cross_entropy_with_grad(z.detach().numpy(), np.array([-100, 0]))
    assert z.grad[0].isnan().all()
    assert not ours.grad[0].any()
    assert z.grad[1, 0] == 0
    assert ours.grad[1, 0] < 0
    ours = csoftmax.cross_entropy(x, 2 * q)
    theirs = torch.nn.functional.cross_entropy(torch.tensor(x), torch.tensor(2 * q)).item()
    assert np.isclose(ours, theirs * 40 / (2 * q).sum(), rtol=1e-12)
    bf16 = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert functional.cross_entropy(bf16, torch.tensor([0, 1])).dtype == torch.bfloat16
    assert csoftmax.cross_entropy(np.zeros((2, 3), dtype_of("bfloat16")), [0, 1]).dtype == np.float32
    with pytest.raises(RuntimeError, match="ignore_index"):
        functional.cross_entropy(torch.zeros(2, 3), torch.ones(2, 3), ignore_index=1)
    assert csoftmax.cross_entropy(np.zeros((2, 3)), np.ones((2, 3)), ignore_index=1) > 0
    negative = torch.tensor([-1.0, 3, 1])
    assert functional.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]), weight=negative).isfinite()
    with pytest.raises(ValueError, match="weight must be at least 0"):
        csoftmax.cross_entropy(np.zeros((2, 3)), [0, 1], weight=[-1, 3, 1])
    z = torch.zeros(2, 3, requires_grad=True)
    loss = functional.cross_entropy(z, torch.tensor([0, 1]), weight=torch.zeros(3))
    loss.backward()
    assert loss.isnan()
    assert z.grad.isnan().all()
    ours = csoftmax.cross_entropy_with_grad(np.zeros((2, 3)), [0, 1], weight=np.zeros(3))
    assert np.isnan(ours.loss)
    assert not ours.grad.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_more_than_int32_elements(dtype):
    """Broadcast logits of more than 2**31 elements: row offsets are 64 bits."""
    k = 1 << 12
    row = logits((1, k), dtype)
    n = (1 << 19) + 3
    x = np.broadcast_to(row, (n, k))
    t = np.full(n, -100)
    t[-1] = 7
    assert csoftmax.cross_entropy(x, t) == csoftmax.cross_entropy(row, [7])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtypes_that_are_equal_but_other_objects_take_the_short_way(quick, dtype):
    """Those of arrays that come out of a pickle, as from another process."""
    made = [logits((6, 5), dtype), labels(6, 5), np.arange(1, 6).astype(dtype), np.empty((6, 5), dtype)]
    x, target, weight, out = pickle.loads(pickle.dumps(made))
    assert x.dtype is not np.dtype(dtype), "the test shows nothing"
    options = {"weight": weight, "label_smoothing": 0.1}
    expected = csoftmax.cross_entropy_with_grad(*made[:2], weight=made[2], label_smoothing=0.1)
    for to in (None, out):
        loss, grad = quick(csoftmax.cross_entropy_with_grad, x, target, out=to, **options)
        assert loss == expected.loss
        assert_same_bits(grad, expected.grad)
    soft = pickle.loads(pickle.dumps(soft_labels((6, 5), dtype=dtype)))
    quick(csoftmax.cross_entropy_with_grad, x, soft, **options)
    with pytest.raises(AssertionError, match="Python function"):  # a negative soft label
        quick(csoftmax.cross_entropy_with_grad, x, x.astype(x.dtype), **options)
