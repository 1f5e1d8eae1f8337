"""Cross-entropy over segments on CUDA: the CPU's bits for every kind of target and option, and NaN for bad labels."""

import numpy as np
import pytest
from cuda_checks import check_loss, costly_dtypes, on_device, shared_memory
from helpers import assert_same_bits

import csoftmax
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits

NAME = "segment_cross_entropy"


def make_targets(segments, shape, axis, dtype, seed=0):
    """Labels, one of them ignored, soft labels and sets of positives for segments along an axis."""
    rng = np.random.default_rng(seed)
    reduced = [1] * len(shape)
    reduced[axis] = -1
    lengths = np.broadcast_to(
        segments.lengths.reshape(reduced), [len(segments) if i == axis else n for i, n in enumerate(shape)]
    )
    hard = np.where(lengths == 0, -100, (rng.random(lengths.shape) * lengths).astype(np.int64))
    hard.flat[hard.size // 2] = -100
    soft = rng.random(shape) * (rng.random(shape) < 0.7)
    return hard, soft.astype(np.float64 if dtype == "float64" else np.float32), rng.random(shape) < 0.3


def check_targets(gpu, x, segments, axis=0, **options):
    for target in make_targets(segments, x.shape, axis, x.dtype.name):
        check_loss(gpu, x, target, NAME, segments=segments, axis=axis, **options)
    if "label_smoothing" not in options:
        check_loss(gpu, x, target, NAME, segments=segments, axis=axis, positives="any", **options)


def lengths_of_every_class():
    return [0, 1, 2, 15, 16, 17, 0, 100, 128, 129, 700, 4096, 3, 4097, 9000, 0]


@costly_dtypes
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_lengths(gpu, dtype, reduction):
    indptr = np.cumsum([2, *lengths_of_every_class()])
    x = logits((int(indptr[-1]) + 3,), dtype, 1, 5.0)
    check_targets(gpu, x, csoftmax.Segments(indptr=indptr), reduction=reduction)


@costly_dtypes
def test_longer_than_shared_memory(gpu, dtype):
    segments = csoftmax.Segments(indptr=[0, 5, 30_001])
    with shared_memory(gpu, 64 * 1024):
        check_targets(gpu, logits((30_001,), dtype, 2, 4.0), segments, label_smoothing=0.1, clip_norm=0.01)


@costly_dtypes
@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1, "z_loss": 0.01},
        {"temperature": 0.3, "clip_value": 1e-3, "reduction": "sum"},
        {"clip_norm": 0.05, "upstream": 1e30},
        {"z_loss": 0.1, "clip_norm": 0.02, "clip_value": 1e-3},
        {"temperature": np.array([1.0, 0.3, 7.0, 1e-6, 0.3, 1.0, 2.0, 0.3, 5.0, 1.0, 0.5])},
    ],
    ids=lambda o: "-".join(o),
)
def test_options(gpu, dtype, options):
    """Ids in any order, with heads before and behind the elements."""
    rng = np.random.default_rng(2)
    ids = rng.integers(-1, 9, 240)
    segments = csoftmax.Segments(segment_ids=ids, num_segments=11)
    x = logits((240, 3), dtype, 3, 4.0)
    check_targets(gpu, x, segments, **options)
    x[5, 0], x[6, 1], x[ids == 4] = np.nan, np.inf, -np.inf
    weight = rng.random((11, 3)) * (rng.random((11, 3)) < 0.7)
    check_targets(gpu, x, segments, sample_weight=weight, **options)
    check_targets(gpu, np.ascontiguousarray(x.T), segments, axis=1, sample_weight=weight.T, **options)


@costly_dtypes
def test_positives_far_from_the_others(gpu, dtype):
    """Groups that are out of range beside each other are computed from their own maxima; one may be all -inf."""
    rng = np.random.default_rng(6)
    lengths = [1, 2, 33, 9000, 5, 64, 7, 8, 1, 1]
    segments = csoftmax.Segments(indptr=np.cumsum([0, *lengths]))
    which = np.repeat(np.arange(len(lengths)), lengths)
    x = logits((len(which),), "float64", 6, 3.0) * np.array([1, 1e3, 1e4, 30, 1e4, 1e3, 1, 1, 1, 1])[which]
    positives = rng.random(len(x)) < 0.3
    x[(which == 4) & positives] -= 3e4
    x = x.clip(-65504, 65504)  # float16 holds no more
    x[(which == 5) & ~positives] = -np.inf
    x[(which == 6) & positives] = -np.inf
    positives[which == 6] = [True, False, False, True, False, False, False]
    positives[which == 7], positives[which == 8], positives[which == 9] = True, False, True
    x = x.astype(dtype_of(dtype))
    temperatures = np.where(np.arange(10) % 3 == 1, 1e-30, np.where(np.arange(10) % 3 == 2, 1e30, 1.0))
    for options in ({}, {"z_loss": 0.1}, {"temperature": 1e-30}, {"temperature": temperatures, "clip_norm": 0.1}):
        check_loss(gpu, x, positives, NAME, segments=segments, positives="any", reduction="none", **options)


def test_upstream_of_each_segment_and_heads(gpu):
    rng = np.random.default_rng(4)
    segments = csoftmax.Segments(indptr=[1, 4, 4, 9])
    x, upstream = logits((2, 10, 3), "float32", 5, 3.0), rng.standard_normal((2, 3, 3))
    t = rng.random((2, 3, 3)) + 0.5
    for options in ({}, {"temperature": t}):
        check_targets(gpu, x, segments, axis=1, reduction="none", upstream=upstream, **options)


def test_blocks(gpu):
    """A tuple of axes: block-sparse rows, whose labels count through the joined elements."""
    x = logits((6, 2, 5), "float32", 4, 3.0)
    segments = csoftmax.Segments(segment_ids=[2, 0, 2, 1, 0, 0])
    labels = np.array([[14, 0], [4, -100], [9, 3]])
    check_loss(gpu, x, labels, NAME, segments=segments, axis=(0, 2))
    check_loss(gpu, x, x > 1, NAME, segments=segments, axis=(0, 2), positives="any")


@pytest.mark.parametrize("options", [{}, {"z_loss": 0.5}, {"label_smoothing": 0.5, "clip_norm": 0.1}], ids=str)
def test_mean_that_divides_by_zero(gpu, options):
    """The loss is NaN and the gradient 0 whatever the segments hold."""
    x = np.array([np.nan, 1, np.inf, 0, -np.inf], np.float32)
    segments = csoftmax.Segments(indptr=[0, 2, 2, 5])
    check_loss(gpu, x, np.full(3, -100), NAME, segments=segments, **options)
    check_loss(gpu, x, np.zeros(5, np.float32), NAME, segments=segments, **options)
    check_loss(gpu, x, np.zeros(5, bool), NAME, segments=segments, **options)
    if "label_smoothing" not in options:
        zero = {"sample_weight": np.zeros(3), "positives": "any"}
        check_loss(gpu, x, np.ones(5, bool), NAME, segments=segments, **zero, **options)


@pytest.mark.parametrize(("elements", "indptr"), [(0, [0]), (0, [0, 0, 0]), (4, [2]), (4, [1, 1])])
def test_no_segment_or_no_element(gpu, elements, indptr):
    x, segments = np.ones(elements, np.float32), csoftmax.Segments(indptr=indptr)
    for reduction in ("mean", "sum", "none"):
        check_loss(gpu, x, np.full(len(segments), -100), NAME, segments=segments, reduction=reduction)
        check_loss(gpu, x, x, NAME, segments=segments, reduction=reduction)
        check_loss(gpu, x, x > 0, NAME, segments=segments, reduction=reduction, positives="any")


def test_bad_labels(gpu, monkeypatch):
    """Loss and gradient of their segments are NaN; with CSOFTMAX_SYNC_CHECKS they raise."""
    with_grad = csoftmax.segment_cross_entropy_with_grad
    segments = csoftmax.Segments(indptr=[1, 4, 4, 6, 9])
    x, soft = logits((10,)), np.full(10, 0.5, np.float32)
    soft[[0, 9]], soft[5] = np.nan, -1  # the first two belong to no segment
    for target, bad, error, message in (
        (np.array([2, 0, -1, 2]), [0, 1, 1, 0], IndexError, r"target\[1\] is 0: the segment has no element"),
        (np.array([3, -100, 1, 0]), [1, 0, 0, 0], IndexError, r"target\[0\] is 3: the segment has the elements 0 to 2"),
        (soft, [0, 0, 1, 0], ValueError, r"has -1\.0 at \(5\)"),
    ):
        got = with_grad(*on_device(gpu, x, target), segments=segments, reduction="none")
        assert np.array_equal(np.isnan(got.loss.get()), np.array(bad, bool))
        of_elements = np.concatenate([[0], np.repeat(bad, segments.lengths), [0]])
        assert np.array_equal(np.isnan(got.grad.get()), of_elements.astype(bool))
        good = np.where(np.array(bad, bool), -100, target) if target is not soft else np.abs(np.nan_to_num(soft))
        expected = with_grad(x, good, segments=segments, reduction="none")
        assert_same_bits(got.grad.get()[of_elements == 0], expected.grad[of_elements == 0])
        with monkeypatch.context() as m:
            m.setenv("CSOFTMAX_SYNC_CHECKS", "1")
            with pytest.raises(error, match=message):
                csoftmax.segment_cross_entropy(*on_device(gpu, x, target), segments=segments)


def test_arguments_on_the_host(gpu):
    x, target = logits((6,)), np.array([0, 2])
    with pytest.raises(csoftmax.DeviceError, match="target is on the CPU"):
        csoftmax.segment_cross_entropy(gpu.cupy.asarray(x), target, indptr=[0, 3, 6])
    expected = csoftmax.segment_cross_entropy(x, target, indptr=[0, 3, 6])
    got = csoftmax.segment_cross_entropy(x, target, indptr=[0, 3, 6], device="cuda")
    assert_same_bits(got.get(), np.asarray(expected))
    assert csoftmax.segment_cross_entropy(*on_device(gpu, x, target), indptr=[0, 3, 6], device="cpu") == expected
