"""Cross-entropy over segments: the dense losses bit by bit, and the total probability of positives with mpmath."""

import ctypes
import sys

import hypothesis.strategies as st
import ml_dtypes  # noqa: F401
import mpmath
import numpy as np
import pytest
from helpers import assert_same_bits, looped
from helpers.c_arrays import CSegments, LossOptions, Shape, view_of
from hypothesis import given, settings

import csoftmax
from csoftmax._spec.formats import DTYPES, loss_dtype
from csoftmax._spec.samples import logits

few = settings(max_examples=60, deadline=None, derandomize=True)
OPTIONS = (
    {},
    {"label_smoothing": 0.125, "temperature": 0.7},
    {"z_loss": 0.01, "clip_norm": 0.5},
    {"clip_value": 0.2, "upstream": 0.5},
)


def make_labels(lengths, heads, rng):
    """Return an element of each segment, and -100 for some and for those without elements."""
    shape = (len(lengths), *heads)
    count = np.broadcast_to(np.reshape(lengths, (-1, *[1] * len(heads))), shape)
    return np.where((count == 0) | (rng.random(shape) < 0.1), -100, rng.integers(0, np.maximum(count, 1)))


@few
@given(
    st.lists(st.one_of(st.integers(0, 20), st.integers(0, 300), st.just(4200)), min_size=1, max_size=20),
    st.sampled_from([(), (1,), (4,)]),
    st.sampled_from(DTYPES),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
def test_bits_of_the_dense_loss(lengths, heads, dtype, is_ordered, is_soft, seed):
    rng = np.random.default_rng(seed)
    ids = np.repeat(np.arange(len(lengths)), lengths)
    if not is_ordered:
        rng.shuffle(ids)
    segments = csoftmax.Segments(segment_ids=ids, num_segments=len(lengths))
    x = logits((len(ids), *heads), dtype, seed, (3.0, 40.0)[seed % 2])
    target = make_labels(lengths, heads, rng)
    if is_soft:
        target = (rng.random(x.shape) * (rng.random(x.shape) < 0.6)).astype(loss_dtype(dtype))
    weight = rng.random((len(lengths), *heads)) * (rng.random((len(lengths), *heads)) < 0.8)
    options = OPTIONS[seed % 4]
    result = csoftmax.segment_cross_entropy_with_grad(
        x, target, segments=segments, sample_weight=weight, reduction="none", num_threads=seed % 3 + 1, **options
    )
    loss, grad = np.zeros_like(result.loss), np.zeros_like(x)
    for s in range(len(lengths)):
        at = np.flatnonzero(ids == s)
        if len(at):
            part = target[at] if is_soft else target[s]
            one = csoftmax.cross_entropy_with_grad(
                x[at], part, axis=0, sample_weight=weight[s], reduction="none", **options
            )
            loss[s], grad[at] = one
    assert_same_bits(result.loss, loss)
    assert_same_bits(result.grad, grad)


@looped("reduction", ["mean", "sum"])
def test_reduction_of_equal_lengths(reduction):
    """Equal segments are the rows of a dense call, with its sum over rows and its divisor."""
    rng = np.random.default_rng(1)
    x, labels = logits((37, 5, 3), "float32", 2, 3.0), rng.integers(0, 5, (37, 3))
    labels[4, 1], weight = -100, rng.random((37, 3))
    for target in (labels, rng.random(x.shape).astype(np.float32)):
        flat = target if target.shape == labels.shape else target.reshape(-1, 3)
        for options in ({}, {"sample_weight": weight, "z_loss": 0.1}):
            dense = csoftmax.cross_entropy_with_grad(x, target, axis=1, reduction=reduction, **options)
            got = csoftmax.segment_cross_entropy_with_grad(
                x.reshape(-1, 3), flat, indptr=np.arange(0, 186, 5), reduction=reduction, **options
            )
            assert_same_bits(np.asarray(got.loss), np.asarray(dense.loss))
            assert_same_bits(got.grad.reshape(x.shape), dense.grad)


def exact_any(x, positive, temperature, z_loss):
    """Return loss and gradient with 60 digits."""
    with mpmath.workdps(60):
        t, z = mpmath.mpf(float(temperature)), mpmath.mpf(float(z_loss))
        e = [mpmath.exp(mpmath.mpf(float(v)) / t) for v in x]
        p = sum((a for a, is_p in zip(e, positive, strict=True) if is_p), mpmath.mpf(0))
        o = sum((a for a, is_p in zip(e, positive, strict=True) if not is_p), mpmath.mpf(0))
        lse = mpmath.log(p + o)
        grad = [(-a / p * o / (p + o) if is_p else a / (p + o)) for a, is_p in zip(e, positive, strict=True)]
        grad = [(g + 2 * z * lse * a / (p + o)) / t for g, a in zip(grad, e, strict=True)]
        return mpmath.log1p(o / p) + z * lse**2, grad


@few
@given(
    st.lists(st.tuples(st.floats(-50, 50), st.booleans()), min_size=1, max_size=12),
    st.sampled_from([1.0, 30.0, 2e4, 1e12]),
    st.sampled_from([(1.0, 0.0), (0.7, 0.0), (1.0, 0.01)]),
    st.sampled_from(["float32", "float64"]),
)
def test_total_probability_of_positives(elements, scale, options, dtype):
    positive = np.array([is_p for _, is_p in elements])
    positive[0] = True
    temperature, z_loss = options
    x = (np.array([v for v, _ in elements]) * scale).astype(dtype)
    got = csoftmax.segment_cross_entropy_with_grad(
        x, positive, indptr=[0, len(x)], positives="any", temperature=temperature, z_loss=z_loss, reduction="sum"
    )
    loss, grad = exact_any(x, positive, temperature, z_loss)
    eps = float(np.finfo(dtype).eps)
    assert abs(mpmath.mpf(float(got.loss)) - loss) <= 4 * eps * loss + float(np.finfo(dtype).smallest_subnormal)
    for g, right in zip(got.grad, grad, strict=True):
        scale_of = abs(right) + (2 * z_loss * float(abs(x).max()) + 2 if z_loss else 0)
        assert abs(mpmath.mpf(float(g)) - right) <= 4 * eps * scale_of + float(np.finfo(dtype).smallest_subnormal)


def test_special_cases_of_positives():
    inf, nan = np.inf, np.nan
    x = np.array([0.0, 0.0, 1.0, -inf, 5.0, -inf, -inf, 5.0, nan, 0.0, -inf, -inf])
    positive = np.array([False, False, True, True, False, True, True, False, True, False, True, False])
    indptr = [0, 2, 3, 5, 8, 10, 12, 12]
    got = csoftmax.segment_cross_entropy_with_grad(x, positive, indptr=indptr, positives="any", reduction="none")
    np.testing.assert_array_equal(got.loss, [inf, 0, inf, inf, nan, nan, 0])
    expected = [0.5, 0.5, 0, -1, 1, nan, nan, 1, nan, nan, nan, nan]
    np.testing.assert_array_equal(got.grad, expected)
    weight = [1, 2, 0, 0, 0, 0, 7]
    mean = csoftmax.segment_cross_entropy(
        x, positive | (np.arange(12) == 0), indptr=indptr, positives="any", sample_weight=weight
    )
    assert mean == np.log(2.0) / 3  # a segment without elements weighs 0
    each = csoftmax.segment_cross_entropy(x[:3], positive[:3], indptr=[0, 2, 3], reduction="none")
    np.testing.assert_array_equal(each, [0, 0])  # without positives nothing is asked of a segment


def test_a_single_positive_is_a_label():
    x = logits((40,), "float64", 3, 5.0)
    indptr = np.array([0, 7, 8, 40])
    positive = np.zeros(40, bool)
    positive[indptr[:-1]] = True
    label = csoftmax.segment_cross_entropy_with_grad(x, [0, 0, 0], indptr=indptr, reduction="none")
    for kind in ("any", "each"):
        got = csoftmax.segment_cross_entropy_with_grad(x, positive, indptr=indptr, positives=kind, reduction="none")
        np.testing.assert_allclose(got.loss, label.loss, 1e-15)
        np.testing.assert_allclose(got.grad, label.grad, 1e-14, 1e-300 if kind == "any" else 1e-15)


LOW = float(np.finfo(np.float32).min)


@looped(
    "case",
    [
        ("float32", [2, 1, LOW, LOW], [1, 1, 0, 0], 0.0, [0, 0, 0, 0]),
        ("float32", [LOW, 1, 1], [1, 0, 0], -LOW, [-1, 0.5, 0.5]),
        ("float32", [LOW, LOW, 1], [1, 1, 0], -LOW, [-0.5, -0.5, 1]),
        ("float64", [0.0, -1e14], [0, 1], 1e14, [1, -1]),
        ("float64", [0.0, -2e14], [1, 0], 0.0, [0, 0]),
        ("float64", [1e308, -1e308, 0.0], [0, 1, 0], np.inf, [1, -1, 0]),
        ("float64", [-3.4e13, -3.6e13, -3.6e13 + 1], [1, 0, 0], 0.0, [0, 0, 0]),
        ("float64", [-3.5184372088832e13, -3.5184372088833e13], [1, 0], np.log1p(np.exp(-1.0)), None),
    ],
)
def test_groups_that_lie_far_apart(case):
    """Where every positive, or every other element, is out of range beside the rest of its segment."""
    dtype, x, positive, loss, grad = case
    x, is_positive = np.array(x, dtype), np.array(positive, bool)
    for order in (slice(None), slice(None, None, -1)):
        got = csoftmax.segment_cross_entropy_with_grad(
            x[order], is_positive[order], indptr=[0, len(x)], positives="any", reduction="sum"
        )
        np.testing.assert_allclose(got.loss, loss, 1e-15)
        if grad is not None:
            np.testing.assert_array_equal(got.grad, np.array(grad, float)[order])
    lse = csoftmax.segment_logsumexp(x, indptr=[0, len(x)]).astype(float)[0]
    if 0 < lse < 1e6:
        z = csoftmax.segment_cross_entropy(x, is_positive, indptr=[0, len(x)], positives="any", z_loss=0.5)
        np.testing.assert_allclose(float(z), loss + 0.5 * lse**2, 1e-6)


@looped("temperature", [1.0, 0.5, 0.9, 2.0, 1e-200, 1e200])
def test_one_positive_of_any_size_is_a_label(temperature):
    for big in 10.0 ** np.arange(3, 301, 11):
        x = np.array([big, -big, 0.0])
        got = csoftmax.segment_cross_entropy_with_grad(
            x, np.array([False, True, False]), indptr=[0, 3], positives="any", temperature=temperature, reduction="sum"
        )
        label = csoftmax.segment_cross_entropy_with_grad(
            x, [1], indptr=[0, 3], temperature=temperature, reduction="sum"
        )
        np.testing.assert_allclose(got.loss, label.loss, 1e-14)
        np.testing.assert_allclose(got.grad, label.grad, 1e-13)


def any_in_numpy(x, positive, temperature, z_loss, clip_norm, clip_value):
    """Return loss and gradient of one segment, from the definition."""
    e = np.exp(x / temperature - (x / temperature).max())
    p, lse = e / e.sum(), np.log(e.sum()) + (x / temperature).max()
    total = p[positive].sum()
    loss = np.log1p(p[~positive].sum() / total) if positive.any() else np.inf
    grad = np.where(positive, -p * (1 - total) / total, p) if positive.any() else p
    grad = (grad + 2 * z_loss * lse * p) / temperature
    norm = np.linalg.norm(grad)
    if clip_norm is not None and norm > clip_norm:
        grad = grad * (clip_norm / norm)
    if clip_value is not None:
        grad = np.clip(grad, -clip_value, clip_value)
    return loss + z_loss * lse**2, grad


@looped("seed", range(120))
def test_positives_with_heads_ids_weights_and_clips(seed):
    rng = np.random.default_rng(seed)
    segments, elements, heads = int(rng.integers(1, 6)), int(rng.integers(1, 60)), int(rng.choice([1, 2, 3, 8]))
    ids, shape = rng.integers(-1, segments, elements), (segments, heads)
    x, positive = rng.standard_normal((elements, heads)) * rng.choice([1, 5]), rng.random((elements, heads)) < 0.3
    weight = rng.random(shape) * (rng.random(shape) < 0.8)
    t = float(rng.choice([1, 0.5, 3])) if seed % 2 else rng.choice([1, 0.5, 3], shape)
    z, reduction = float(rng.choice([0, 0.1])), ("none", "sum", "mean")[seed % 3]
    upstream = rng.random(shape) if reduction == "none" else 1.7
    clips = {"clip_norm": (None, 0.1)[seed % 2], "clip_value": (None, 0.05)[seed // 2 % 2]}
    loss, grad, kept = np.zeros(shape), np.zeros(x.shape), np.zeros(shape)
    for s, h in np.ndindex(shape):
        at, w = np.flatnonzero(ids == s), weight[s, h]
        if len(at) and w > 0:
            own = {k: v if v is None else v / w for k, v in clips.items()}  # clips follow the weight
            one, g = any_in_numpy(x[at, h], positive[at, h], np.broadcast_to(t, shape)[s, h], z, *own.values())
            loss[s, h], grad[at, h], kept[s, h] = w * one, w * g * np.broadcast_to(upstream, shape)[s, h], w
    divisor = kept.sum() if reduction == "mean" else 1
    if divisor == 0:
        divisor, loss, grad = 1, np.full(shape, np.nan), np.zeros(x.shape)

    def turn(a):
        return np.ascontiguousarray(a.T) if seed % 4 == 0 and np.ndim(a) else a

    result = csoftmax.segment_cross_entropy_with_grad(
        turn(x), turn(positive), segment_ids=ids, num_segments=segments, axis=1 if seed % 4 == 0 else 0,
        positives="any", sample_weight=turn(weight), temperature=turn(t), z_loss=z, reduction=reduction,
        upstream=turn(upstream), **clips,
    )  # fmt: skip
    np.testing.assert_allclose(turn(result.loss), loss if reduction == "none" else loss.sum() / divisor, 1e-11, 1e-12)
    np.testing.assert_allclose(turn(result.grad), grad / divisor, 1e-10, 1e-12)


@looped("kind", ["any", "each", "labels"])
def test_temperatures_of_segments(kind):
    """Each segment has the bits that it has alone with its temperature, usual ones and extreme ones."""
    rng = np.random.default_rng(5)
    lengths = np.array([3, 0, 40, 1, 17, 5000, 2, 2])
    t = np.array([0.5, 1.0, 3.0, 1e-30, 1.0, 0.7, 0.7, 1e200])
    ids = rng.permutation(np.repeat(np.arange(8), lengths))
    for dtype in ("float32", "float64", "float16"):
        x = logits((len(ids), 2), dtype, 4, 5.0)
        target = rng.random(x.shape) < 0.4 if kind != "labels" else make_labels(lengths, (2,), rng)
        options = {"positives": kind if kind != "labels" else "each", "z_loss": 0.01, "clip_value": 0.3}
        got = csoftmax.segment_cross_entropy_with_grad(
            x, target, segment_ids=ids, num_segments=8, temperature=t, reduction="none", **options
        )
        for s in np.flatnonzero(lengths):
            at = np.flatnonzero(ids == s)
            own = target[s : s + 1] if kind == "labels" else target[at]
            alone = csoftmax.segment_cross_entropy_with_grad(
                x[at], own, indptr=[0, len(at)], temperature=float(t[s]), reduction="none", **options
            )
            assert_same_bits(got.loss[s : s + 1], alone.loss)
            assert_same_bits(got.grad[at], alone.grad)
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            csoftmax.segment_cross_entropy(x, target, segment_ids=ids, num_segments=8, temperature=[*t[:7], bad])
    with pytest.raises(ValueError, match="temperature has shape"):
        csoftmax.segment_cross_entropy(x, target, segment_ids=ids, num_segments=8, temperature=t[:3])


@looped("options", [{}, {"label_smoothing": 0.3}, {"z_loss": 0.1}, {"label_smoothing": 0.3, "z_loss": 0.1}])
def test_segments_without_positives_weigh_nothing(options):
    rng = np.random.default_rng(6)
    ids = rng.integers(0, 5, 60)
    x, positive, weight = rng.standard_normal((60, 2)), rng.random((60, 2)) < 0.3, rng.random((5, 2))
    positive[ids == 3] = False
    positive[ids == 1, 1] = False
    has = np.stack([positive[ids == s].any(axis=0) for s in range(5)])
    for w in (None, weight):
        one = csoftmax.segment_cross_entropy_with_grad(
            x, positive, segment_ids=ids, sample_weight=w, reduction="none", **options
        )
        left_out = np.where(has, 1 if w is None else w, 0)
        other = csoftmax.segment_cross_entropy_with_grad(
            x, positive.astype(float), segment_ids=ids, sample_weight=left_out, reduction="none", **options
        )
        assert not one.loss[~has].any()
        assert not one.grad[ids == 3].any()
        assert one.loss[has].all()
        assert_same_bits(one.loss, other.loss)
        assert_same_bits(one.grad, other.grad)
        mean = csoftmax.segment_cross_entropy(x, positive, segment_ids=ids, sample_weight=w, **options)
        assert mean == csoftmax.segment_cross_entropy(
            x, positive.astype(float), segment_ids=ids, sample_weight=left_out, **options
        )


def test_refused():
    x = np.zeros(5)
    indptr = [0, 2, 2, 5]
    with pytest.raises(IndexError, match=r"target\[1\] is 0: the segment has no element, and ignore_index is -100"):
        csoftmax.segment_cross_entropy(x, [0, 0, 0], indptr=indptr)
    with pytest.raises(IndexError, match=r"target\[0\] is 2: the segment has the elements 0 to 1"):
        csoftmax.segment_cross_entropy(x, [2, -100, 0], indptr=indptr)
    with pytest.raises(ValueError, match="label_smoothing must be 0 with positives"):
        csoftmax.segment_cross_entropy(x, x > 0, indptr=indptr, positives="any", label_smoothing=0.1)
    with pytest.raises(ValueError, match="soft labels must be at least 0"):
        csoftmax.segment_cross_entropy(x, x - 1, indptr=indptr)
    assert np.isnan(csoftmax.segment_cross_entropy(x, [-100] * 3, indptr=indptr))
    got = csoftmax.segment_cross_entropy_with_grad(x, [-100] * 3, indptr=indptr, z_loss=1.0)
    assert np.isnan(got.loss)
    assert not got.grad.any()


def call_c(name, segments, x, reduction, **given):
    """Call a C function for the segments of the last axis; return status, losses with the total, and gradient."""
    held = {key: view_of(value) for key, value in given.items() if isinstance(value, np.ndarray)}
    numbers = {key: value for key, value in given.items() if key not in held}
    options = LossOptions(
        size=ctypes.sizeof(LossOptions), label_type=3, reduction=("none", "sum", "mean").index(reduction),
        **{"temperature": 1.0, "threads": 2, **numbers}, **{key: ctypes.addressof(v) for key, v in held.items()},
    )  # fmt: skip
    order = segments.order if segments.order is None else np.asarray(segments.order, np.int64)
    described = CSegments(
        ctypes.sizeof(CSegments), segments.num_segments, segments.indptr.ctypes.data,
        None if order is None else order.ctypes.data, 8,
    )  # fmt: skip
    losses, grad = np.full(len(x) * segments.num_segments + 1, -1.0), np.full_like(x, -1)
    shape = Shape(x.shape[-1], 1, (ctypes.c_size_t * 64)(len(x)))
    views = ctypes.byref(view_of(x)), ctypes.byref(view_of(grad)), ctypes.c_void_p(losses.ctypes.data)
    of_segments = [ctypes.byref(described)] if "segment" in name else []
    call = ctypes.byref(shape), *of_segments, *views, ctypes.byref(options)
    return getattr(ctypes.CDLL(csoftmax.get_library()), name)(*call), losses, grad


SUFFIXES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16"}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the shared library of a build on Linux")


@on_linux
@looped("seed", range(48))
def test_c_functions_of_positives(seed):
    """With bytes other than 0 as positives in any layout: the bits of Python, whose segments may lack positives."""
    rng, dtype = np.random.default_rng(seed), DTYPES[seed % 4]
    lengths = rng.permutation([0, 1, 5, 40, 3, 7])
    ids = np.repeat(np.arange(6), lengths)
    if seed % 3:
        rng.shuffle(ids)
    segments = csoftmax.Segments(segment_ids=ids, num_segments=6)
    x = logits((3, len(ids)), dtype, seed, rng.choice([3.0, 40.0]))
    positives = (rng.integers(1, 256, x.shape) * (rng.random(x.shape) < 0.4)).astype(np.uint8)
    positives[1, ids == 3] = 0
    if rng.random() < 0.5:
        positives = np.asfortranarray(positives)
    given, reduction = {}, ("none", "sum", "mean")[seed // 4 % 3]
    if rng.random() < 0.5:
        given["sample_weight"] = rng.random((3, 6)) * (rng.random((3, 6)) < 0.7)
    if rng.random() < 0.5:
        given |= {"z_loss": 0.01, "clip_norm": 0.5, "clip_value": 0.2}
    if reduction == "none":
        given["upstream"] = rng.random((3, 6))
    temperature = (1.0, 0.7, rng.choice([0.5, 1.0, 3.0], (3, 6)))[seed // 12 % 3]
    in_c = {**given, "temperatures" if np.ndim(temperature) else "temperature": temperature}
    name = f"csm_segment_cross_entropy_{SUFFIXES[dtype]}"
    status, losses, grad = call_c(name, segments, x, reduction, positives=positives, **in_c)
    right = csoftmax.segment_cross_entropy_with_grad(
        x, positives != 0, segments=segments, axis=1, positives="any", reduction=reduction, temperature=temperature,
        **given,
    )  # fmt: skip
    assert status == 0
    assert_same_bits(grad, right.grad)
    got = losses[:-1].reshape(3, 6) if reduction == "none" else losses[-1]
    assert_same_bits(np.array(got, right.loss.dtype), np.asarray(right.loss))
    if reduction == "none" and "sample_weight" not in given and lengths[3] > 0:
        assert got[1, 3] == np.inf


@on_linux
def test_c_functions_refuse_positives():
    """Beside labels or soft labels, smoothed, or without segments; nothing is written."""
    x, segments = np.zeros((2, 5), np.float32), csoftmax.Segments(indptr=[0, 2, 5])
    positives, labels = np.ones((2, 5), np.uint8), np.zeros((2, 2), np.int64)
    others = {"labels": labels}, {"soft": np.ones_like(x)}, {"label_smoothing": 0.1}, {"softcap": 1.0}
    for other in others:
        status, losses, grad = call_c("csm_segment_cross_entropy_f32", segments, x, "sum", positives=positives, **other)
        assert status == 7
        assert (losses == -1).all()
        assert (grad == -1).all()
    for suffix in SUFFIXES.values():
        wide = np.zeros((2, 5), np.float64)
        for other in ({}, {"labels": labels}, {"soft": wide}):
            status, losses, grad = call_c(f"csm_cross_entropy_{suffix}", segments, wide, "sum", **other, positives=wide)
            assert status == 7
            assert (losses == -1).all()
            assert (grad == -1).all()
    assert call_c("csm_segment_cross_entropy_f32", segments, x, "sum")[0] == 7  # nothing is asked
    assert call_c("csm_segment_cross_entropy_f32", segments, x, "sum", positives=positives)[0] == 0


@looped("x", [[1.0, np.nan, 3.0], [np.nan] * 3, [-np.inf] * 3, [np.inf, 1.0, 2.0], [1.0, 2.0, 3.0]])
def test_each_without_positives_reads_no_logit(x):
    """Its weight is 0 with every option, as that of an ignored segment; with "any" NaN is not hidden."""
    x, chosen = np.array([*x, 0.5, -0.5]), np.array([False] * 3 + [True, False])
    alone = csoftmax.segment_cross_entropy_with_grad(x[3:], chosen[3:], indptr=[0, 2])
    for options in ({}, {"z_loss": 0.1}, {"label_smoothing": 0.1}, {"temperature": [0.3, 1.0]}):
        result = csoftmax.segment_cross_entropy_with_grad(x, chosen, indptr=[0, 3, 5], reduction="none", **options)
        assert result.loss[0] == 0
        assert np.all(result.grad[:3] == 0)
        if options in ({}, {"temperature": [0.3, 1.0]}):
            mean = csoftmax.segment_cross_entropy_with_grad(x, chosen, indptr=[0, 3, 5], **options)
            assert mean.loss == alone.loss
            np.testing.assert_array_equal(mean.grad[3:], alone.grad)
    loss = csoftmax.segment_cross_entropy(x, chosen, indptr=[0, 3, 5], positives="any", reduction="none")[0]
    assert np.isnan(loss) if not np.isfinite(x).all() else loss == np.inf
