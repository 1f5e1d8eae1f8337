"""Int8Head: exact top-k against float64, the bounds of every class, integers of the kernels, memory, signals.

Intervals and files have their own files.
"""

import itertools
import pickle
import sys
import tracemalloc
import warnings
from copy import copy as shallow_copy
from copy import deepcopy
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from helpers import run_python
from helpers.failing_allocations import SHIM
from helpers.signals import seconds_to_stop
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles.int8 import constructed, order, score

import csoftmax
from csoftmax._cpu import binding
from csoftmax._ops import int8
from csoftmax.heads import Int8Head

DTYPES = (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)


def assert_exact(head, x, w, bias, k, **options):
    z = score(x, w, bias)
    expected = order(z, k)
    found = head.topk(x, k, **options)
    assert found.indices.tolist() == expected.tolist()
    with np.errstate(all="ignore"):
        values = int8.round_scores(np.take_along_axis(z, expected, 1), found.values.dtype)
    np.testing.assert_array_equal(found.values.astype(np.float64), values.astype(np.float64))


def test_constructed_layers(isa):
    """Exact wherever bounds could fail: ties, duplicates, outlier channels, zero rows, 1e30, subnormals, NaN."""
    rng = np.random.default_rng(0)
    for classes, width in ((1, 1), (15, 2), (16, 3), (17, 5), (300, 127), (200, 129)):
        bias = rng.standard_normal(classes).astype(np.float32)
        for name, (w, x) in constructed(rng, classes, width).items():
            for given_bias, limbs in ((None, 1), (bias, 2)):
                head = Int8Head(w, given_bias, limbs=limbs)
                for k in {0, 1, classes // 4, classes}:
                    try:
                        assert_exact(head, x, w, given_bias, k)
                        assert_exact(head, x[:1], w, given_bias, k)
                    except AssertionError as error:
                        raise AssertionError(f"{name}, {classes} x {width}, k={k}: {error}") from None


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 7, 64, 2049, 3000])
def test_more_constructed_layers(width):
    rng = np.random.default_rng(width)
    for name, (w, x) in constructed(rng, 2000 if width < 2000 else 500, width).items():
        for limbs, k in itertools.product((1, 2), (1, 10, 100)):
            try:
                assert_exact(Int8Head(w, limbs=limbs), x, w, None, k)
            except AssertionError as error:
                raise AssertionError(f"{name}, k={k}: {error}") from None


def bounds_of(head, x, limbs=0):
    """The bounds of all classes for one query: those of the intervals."""
    return int8.compute_bounds(head._layer, np.asarray(x, np.float64), 1)[:2]


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_class_is_within_its_bounds(data):
    """In exact arithmetic, for weights and features of any size, with one limb of weights and with two."""
    k, d = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 8))
    number = st.one_of(
        st.integers(-3, 3).map(float),
        st.floats(-100, 100, width=32),
        st.floats(allow_nan=False, allow_infinity=False, width=32),
    )
    w = np.array(data.draw(st.lists(number, min_size=k * d, max_size=k * d)), np.float32).reshape(k, d)
    x = np.array(data.draw(st.lists(number, min_size=d, max_size=d)), np.float32)
    bias = np.array(data.draw(st.lists(number, min_size=k, max_size=k)), np.float32)
    for limbs in (1, 2):
        head = Int8Head(w, bias, limbs=limbs)
        z, bound = bounds_of(head, x)
        for j in range(k):
            truth = sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(w[j], x)), Fraction(float(bias[j])))
            if np.isfinite(bound[j]):
                assert abs(truth - Fraction(float(z[j]))) <= Fraction(float(bound[j])), (w, x, bias, j, limbs)


def scan_bounds(head, x, limbs):
    """The bounds of the scan of one query in Python, from the definitions: the kernel's are at least as wide."""
    layer = head._layer
    k, d = layer.n_classes, layer.n_features
    codes = layer.codes.transpose(0, 2, 1, 3).reshape(-1, layer.codes.shape[1] * 4)[:k, :d].astype(np.float64) - 128
    scaled = np.asarray(x, np.float64) * 2.0 ** layer.exponent.astype(np.float64)
    unit = np.abs(scaled).max() / 63
    first = np.rint(scaled / unit)
    second = np.rint(126 * (scaled / unit - first)) if limbs == 2 else 0 * first
    coded = unit * (first + second / 126)
    z = layer.scale[:k] * (codes @ coded) + layer.bias[:k]
    e = np.linalg.norm(scaled - coded)
    return z, layer.residual[:k] * np.linalg.norm(coded) + layer.norm[:k] * e


def test_bounds_of_the_scan_hold_for_every_class():
    """With one limb of the features and with two; codes are unscaled by powers of two, exactly."""
    rng = np.random.default_rng(3)
    for name, (w, x) in constructed(rng, 300, 31).items():
        if not (np.isfinite(w).all() and np.isfinite(x).all()) or name in (
            "large",
            "subnormal features",
            "tiny products",
        ):
            continue
        head = Int8Head(w)
        truth = score(x, w)
        for row, limbs in itertools.product(range(len(x)), (1, 2)):
            z, bound = scan_bounds(head, x[row], limbs)
            slack = 1e-6 * np.abs(z) + 1e-30
            assert (np.abs(truth[row] - z) <= bound + slack).all(), name


def test_near_ties_of_exact_codes():
    """Codes that leave nothing out, scores that differ by a unit of float32: only the terms of rounding bound them."""
    rng = np.random.default_rng(4)
    for _ in range(40):
        unit, second = rng.uniform(1, 2), rng.integers(20, 63)
        q = np.stack((np.full(200, 127), rng.integers(-127, 128, 200)), axis=1)
        x = unit * np.array([[63.0, second]])
        scale = (1e4 / (q @ [63, second])).astype(np.float32)  # about the same score for each class
        w = scale[:, None].astype(np.float64) * q
        head = Int8Head(w)
        assert (head._layer.residual[:200] < 1e-12 * head._layer.norm[:200]).all()
        truth = [sum(Fraction(a) * Fraction(b) for a, b in zip(row, x[0])) for row in w]
        best = sorted(range(200), key=lambda j: (-truth[j], j))[:3]
        found = head.topk(np.repeat(x, 9, axis=0), 3)
        if len({float(truth[j]) for j in best}) == 3:
            assert found.indices.tolist() == [best] * 9
            assert head.topk(x, 3).indices.tolist() == [best]


def test_scaling_of_columns_is_exact():
    """Exponents that differ between w and x break the bounds: these tests would notice."""
    rng = np.random.default_rng(5)
    w, x = constructed(rng, 400, 16)["both, and spread columns"]
    head = Int8Head(w)
    assert np.ptp(head._layer.exponent) > 3
    broken = head._layer._replace(exponent=head._layer.exponent + (np.arange(16) == 3).astype(np.int16))
    head._layer = broken
    with pytest.raises(AssertionError):
        assert_exact(head, x, w, None, 10)


def test_integers_of_the_kernels(isa):
    """The worst codes, and random ones, give the same integers everywhere: no saturation, no overflow."""
    rng = np.random.default_rng(0)
    steps = (1, 2, 3, 32, 4096)
    for n, vectors in itertools.product(steps, (1, 2, 3, 4, 5, 9)):
        for kind in ("worst", "least", "alternating", "random"):
            u = {
                "worst": np.full((n, 16, 4), 255),
                "least": np.zeros((n, 16, 4)),
                "alternating": np.where(np.arange(4) % 2, 255, 0) + np.zeros((n, 16, 1)),
                "random": rng.integers(0, 256, (n, 16, 4)),
            }[kind].astype(np.uint8)
            signs = rng.integers(0, 2, (vectors, 1, 1)) * 2 - 1
            a = {
                "alternating": np.where(np.arange(4) % 2, 63, -63) * signs + np.zeros((vectors, n, 4), int),
                "random": rng.integers(-63, 64, (vectors, n, 4)),
            }.get(kind, np.full((vectors, n, 4), 63) * signs)
            blocks = -(-vectors // 4)
            x = np.zeros((blocks, n, 4, 4), np.int8)
            for v in range(vectors):
                x[v // 4, :, v % 4] = a[v]
            offset = np.zeros(4 * blocks, np.int32)
            offset[:vectors] = -128 * a.sum(axis=(1, 2))
            expected = np.einsum("ncb,vnb->vc", u.astype(np.int64) - 128, a.astype(np.int64))
            for vnni in (False, True):
                out = np.zeros((4 * blocks, 16), np.int32)
                if binding.run_int8_dots(vnni, u, x, vectors, offset, out):
                    assert (out[:vectors] == expected).all(), (isa, n, vectors, kind, vnni)
                else:
                    assert vnni
    assert binding.run_int8_dots(False, u, x, vectors, offset, out)


def test_integers_of_coarse_kernels(isa):
    """The worst codes, and random ones: sums of 16 bits never saturate, and each instruction set has the same."""
    rng = np.random.default_rng(1)
    for steps, vectors, kind in itertools.product((1, 2, 7, 8, 9, 33), (1, 2, 3, 5), (0, 255, None)):
        u = rng.integers(0, 256, (steps, 16, 4)) if kind is None else np.full((steps, 16, 4), kind)
        a = rng.integers(-31, 32, (vectors, steps, 4)) if kind is None else np.full((vectors, steps, 4), 31)
        a *= rng.choice([-1, 1], (vectors, 1, 1))
        blocks = -(-vectors // 4)
        x, offset = np.zeros((blocks, steps, 4, 4), np.int8), np.zeros(4 * blocks, np.int32)
        for v in range(vectors):
            x[v // 4, :, v % 4] = a[v]
        offset[:vectors] = -253 * a.sum(axis=(1, 2))
        out, scratch = np.zeros((4 * blocks, 16), np.int32), np.zeros((steps, 16, 4), np.uint8)
        binding.run_int8_narrow_dots(u.astype(np.uint8), x, vectors, offset, scratch, out)
        expected = np.einsum("ncb,vnb->vc", 8 * (u // 4) - 253, a)
        assert (out[:vectors] == expected).all(), (isa, steps, vectors, kind)


def test_integers_of_leading_bits(isa):
    """The same for four bits, with features of 127, for which eight pairs of products nearly fill 16 bits."""
    rng = np.random.default_rng(2)
    for lines, kind, sign in itertools.product((1, 2, 3, 4, 5, 17), (0, 255, None), (-1, 1, None)):
        shape = (2 * lines, 16, 4)
        u = rng.integers(0, 256, shape) if kind is None else np.full(shape, kind)
        a = rng.integers(-127, 128, (2 * lines, 4)) if sign is None else np.full((2 * lines, 4), 127 * sign)
        x = np.zeros((2 * lines, 4, 4), np.int8)
        x[:, 0] = a
        nibbles = (u[::2] // 16 + u[1::2] // 16 * 16).astype(np.uint8)
        out = np.zeros(16, np.int32)
        binding.run_int8_nibble_dots(nibbles, x, int(-241 * a.sum()), out)
        assert (out == np.einsum("ncb,nb->c", 32 * (u // 16) - 241, a)).all(), (isa, lines, kind, sign)


@pytest.mark.parametrize("d", [1, 4, 5, 12, 40])
def test_leading_bits(isa, d):
    """The leading four bits of all codes, and bounds of what they leave out that hold for each class."""
    rng = np.random.default_rng(d)
    w = rng.standard_normal((70, d)).astype(np.float32)
    w[5], w[6, 0], w[7] = 0, np.nan, w[7] * np.float32(1e-42)
    head = Int8Head(w, num_threads=3)
    head.predict(w[0])
    layer, leading = head._layer, head._layer.leading
    codes = np.zeros((5, 2 * leading.nibbles.shape[1], 16, 4), int)
    codes[:, : layer.codes.shape[1]] = layer.codes
    if layer.codes.shape[1] % 2:
        codes[:, -1] = layer.codes[:, -1]
    assert (leading.nibbles & 15 == codes[:, ::2] // 16).all()
    assert (leading.nibbles >> 4 == codes[:, 1::2] // 16).all()
    rows = layer.codes.transpose(0, 2, 1, 3).reshape(80, -1)[:70, :d].astype(int)
    left = np.sqrt(((rows % 16 - 7.5) ** 2).sum(axis=1))
    usual = np.flatnonzero(layer.scale[:70])
    scale, residual, norm = (a[usual].astype(np.float64) for a in (layer.scale, layer.residual, layer.norm))
    gap, reach = (a[usual // 16].astype(np.float64) for a in (leading.gap, leading.reach))
    assert len(usual) == 68
    assert (scale * gap * ((leading.part[usual] + 1.0) / 256) >= scale * left[usual] + residual).all()
    assert (scale * reach >= norm).all()
    assert np.isinf(leading.gap[0])
    assert np.isinf(leading.reach[0])
    assert np.isfinite(leading.gap[1:]).all()


def test_filters_change_nothing(isa):
    """Coarse codes drop only what full codes would drop: answer and number of exact scores are those without them."""
    rng = np.random.default_rng(7)
    for name, (w, x) in constructed(rng, 3000, 40).items():
        bias = None if len(name) % 2 else rng.standard_normal(3000).astype(np.float32)
        head = Int8Head(w, bias, num_threads=1)
        plain = Int8Head(w, bias, num_threads=1)
        plain._layer = plain._layer._replace(largest=0.0)
        for rows, k in itertools.product((x[:1], x[4:5], x[:3], x), (1, 10, 300)):
            found, expected = head.topk(rows, k), plain.topk(rows, k)
            assert found.indices.tobytes() == expected.indices.tobytes(), name
            assert found.values.tobytes() == expected.values.tobytes(), name
            if not (head.stats["exact_scans"] or plain.stats["exact_scans"]):
                assert head.stats == plain.stats, name


def test_filters_and_large_biases(isa):
    """Where bounds of the scan overflow, it keeps what coarse codes would drop: they are not used then."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((1000, 8)).astype(np.float32), rng.standard_normal((9, 8)).astype(np.float32)
    for value in (-3e38, 3e38, -1e300, -(2.0**126), -np.inf, np.nan):
        bias = np.zeros(1000)
        bias[500] = value
        head, plain = Int8Head(w, bias, num_threads=1), Int8Head(w, bias, num_threads=1)
        assert (head._layer.largest > 0) == (value in (-np.inf, -(2.0**126)))
        plain._layer = plain._layer._replace(largest=0.0)
        assert head.topk(x, 1).indices.tobytes() == plain.topk(x, 1).indices.tobytes()
        assert head.stats == plain.stats
        assert head.topk(x[:1], 1).indices.tobytes() == plain.topk(x[:1], 1).indices.tobytes()
        assert head.stats == plain.stats
        head.update([500], w[500:501], [0.0])
        assert head._layer.largest == Int8Head(w)._layer.largest
        head.update([500], w[500:501], [3e38])
        assert head._layer.largest == 0
    assert np.ndim(Int8Head(w).predict(x[0])) == 0


def test_many_features():
    """More than 2,113 features, where the integer of two limbs leaves 31 bits, and the most that are allowed."""
    w = np.ones((40, 1 << 18), np.float32)
    w[::2] = -1
    w[7, 5] = 1.5
    x = np.ones((1, 1 << 18), np.float32)
    head = Int8Head(w, limbs=2)
    assert_exact(head, x, w, None, 3)
    bounds = head.log_partition(x)
    assert bounds.lower <= (1 << 18) + 0.5 + np.log1p(19 * np.exp(-0.5)) <= bounds.upper
    with pytest.raises(ValueError, match=r"1 to 262144 features"):
        Int8Head(np.ones((1, (1 << 18) + 1), np.float32))


def test_bits_do_not_depend_on_threads_batch_or_instruction_set():
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((5000, 40)).astype(np.float32), rng.standard_normal((70, 40)).astype(np.float32)
    bias = rng.standard_normal(5000)
    seen = {}
    before = binding.isa()
    try:
        for name, threads in itertools.product(binding.isa_available(), range(1, 9)):
            binding.select_isa(name)
            head = Int8Head(w, bias, limbs=2, num_threads=threads)
            codes = head._layer
            found = head.topk(x, 9)
            bounds = head.log_partition(x[:2]), head.topk_softmax(x[:2], 4), head.log_proba(x[:2], [3, 4])
            draws = head.sample(x[:2], 20, rng=0)
            arrays = [codes.codes, codes.second, codes.scale, codes.residual, codes.norm, codes.exponent, *found, draws]
            arrays += [a for interval in bounds for a in interval]
            seen[name, threads] = [a.tobytes() for a in arrays], head.stats
    finally:
        binding.select_isa(before)
    first, *others = seen.values()
    assert all(other == first for other in others)
    head = Int8Head(w, bias, limbs=2)
    single = [head.topk(row, 9) for row in x]
    assert np.stack([t.indices for t in single]).tobytes() == found.indices.tobytes()
    assert np.stack([t.values for t in single]).tobytes() == found.values.tobytes()


def test_dtypes_and_layouts():
    """Every dtype of w and x, in any layout, with and without a copy."""
    rng = np.random.default_rng(2)
    for dtype in DTYPES:
        w, x = (rng.standard_normal(s).astype(np.float32).astype(dtype) for s in ((90, 13), (4, 13)))
        expected = Int8Head(w).topk(x, 5)
        assert expected.values.dtype == dtype
        assert_exact(Int8Head(w), x, w, None, 5)
        wide, buffer = np.zeros((180, 26), dtype), np.frombuffer(b"0" + w.tobytes(), np.uint8)[1:]
        wide[::2, ::2] = w
        for other in (
            np.asfortranarray(w),
            wide[::2, ::2],
            w[::-1, ::-1][::-1, ::-1],
            buffer.view(dtype).reshape(90, 13),
        ):
            for copy in (False, True):
                found = Int8Head(other, copy=copy).topk(np.asfortranarray(x), 5)
                assert found.indices.tobytes() == expected.indices.tobytes()
                assert found.values.tobytes() == expected.values.tobytes()
    w, x = rng.standard_normal((90, 13)), rng.standard_normal((4, 13))  # products of 106 bits
    truth = np.array([[float(sum(Fraction(a) * Fraction(b) for a, b in zip(r, c))) for c in w] for r in x])
    assert Int8Head(w).topk(x, 5).indices.tolist() == order(truth, 5).tolist()
    np.testing.assert_allclose(Int8Head(w).logits(x, range(90)), truth, rtol=0, atol=13 * 2.0**-52 * 20)
    integers = Int8Head([[1, 2], [3, 4]])
    assert integers.topk([1, 1], 2).values.tolist() == [7.0, 3.0]
    assert integers.topk(np.ones((2, 3, 2), np.int8), 1).values.shape == (2, 3, 1)
    assert integers.predict([1.0, 1.0]).shape == ()
    assert integers.predict(np.ones((0, 2))).shape == (0,)
    assert integers.topk(np.ones((0, 2)), 2).values.shape == (0, 2)


def test_rounding_to_bfloat16_is_single():
    """Half way between two bfloat16, and less than a float32 away from it."""
    for value in (1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8 - 2.0**-40, -1 - 2.0**-8 - 2.0**-40, 1 + 3 * 2.0**-8):
        rounded = float(int8.round_scores(np.array([value]), ml_dtypes.bfloat16)[0])
        candidates = [1.0, 1 + 2.0**-7, 1 + 2.0**-6]
        best = min(candidates, key=lambda c: abs(abs(value) - c))
        if abs(value) != 1 + 3 * 2.0**-8:  # a tie goes to the even one
            assert abs(rounded) == best, value
    assert float(int8.round_scores(np.array([1 + 3 * 2.0**-8]), ml_dtypes.bfloat16)[0]) == 1 + 2.0**-6
    specials = int8.round_scores(np.array([np.nan, np.inf, -np.inf, 0.0, 1e300]), ml_dtypes.bfloat16)
    assert np.isnan(specials[0])
    assert specials[1:].astype(float).tolist() == [np.inf, -np.inf, 0.0, np.inf]


def test_where_and_exclude():
    sparse = pytest.importorskip("scipy.sparse")
    rng = np.random.default_rng(4)
    w, x = rng.standard_normal((400, 6)).astype(np.float32), rng.standard_normal((5, 6)).astype(np.float32)
    z, head = score(x, w), Int8Head(w)
    for share in (0.9, 0.1, 0.005, 0.0):
        for shape in ((400,), (5, 400)):
            where = rng.random(shape) < share
            excluded = rng.random((5, 400)) < 0.3
            allowed = where & ~excluded
            ids = [np.flatnonzero(row) for row in excluded]
            shuffled = np.concatenate([rng.permutation(row) for row in ids])
            indptr = np.concatenate(([0], np.cumsum([len(row) for row in ids])))
            for exclude in (sparse.csr_array(excluded), sparse.coo_array(excluded), (indptr, shuffled)):
                found = head.topk(x, 7, where=where, exclude=exclude)
                for i in range(5):
                    inside, outside = np.flatnonzero(allowed[i]), np.flatnonzero(~allowed[i])
                    best = inside[order(z[i : i + 1, inside], 7)[0]] if len(inside) else inside
                    expected = np.concatenate((best, outside))[:7]
                    assert found.indices[i].tolist() == expected.tolist()
                    assert np.isneginf(found.values[i, len(best) :]).all()


def test_refusals():
    head = Int8Head(np.ones((5, 3), np.float32))
    x = np.ones((2, 3))
    for error, message, call in (
        (ValueError, r"w has shape \(3,\)", lambda: Int8Head([1.0, 2.0, 3.0])),
        (ValueError, r"w has shape \(0, 3\)", lambda: Int8Head(np.ones((0, 3)))),
        (TypeError, "w has dtype complex128", lambda: Int8Head(np.ones((2, 2), complex))),
        (TypeError, "w has dtype object", lambda: Int8Head(np.ones((2, 2), object))),
        (ValueError, r"bias has shape \(4,\)", lambda: Int8Head(np.ones((5, 3)), np.ones(4))),
        (ValueError, "limbs must be 1 or 2, got 3", lambda: Int8Head(x, limbs=3)),
        (TypeError, "copy must be a bool", lambda: Int8Head(x, copy=1)),
        (csoftmax.DeviceError, "no kernels for CUDA", lambda: Int8Head(x, device="cuda")),
        (csoftmax.DeviceError, "CUDA", lambda: csoftmax.int8_topk(x, x, 1, device="cuda")),
        (ValueError, "num_threads", lambda: csoftmax.int8_topk(x, x, 1, num_threads=0)),
        (ValueError, r"x has shape \(2, 4\); allowed is \(\.\.\., 3\)", lambda: head.topk(np.ones((2, 4)), 1)),
        (ValueError, "k must be at most the number of classes, 5, got 6", lambda: head.topk(x, 6)),
        (ValueError, "k must be at least 0", lambda: head.topk(x, -1)),
        (TypeError, "k must be an int", lambda: head.topk(x, 1.5)),
        (TypeError, "where must be boolean", lambda: head.topk(x, 1, where=np.ones(5))),
        (ValueError, r"where has shape \(4,\)", lambda: head.topk(x, 1, where=np.ones(4, bool))),
        (TypeError, "exclude must be a sparse matrix", lambda: head.topk(x, 1, exclude=[[0], [1]])),
        (ValueError, "indptr and ids of exclude", lambda: head.topk(x, 1, exclude=([0, 1], [0]))),
        (ValueError, "must rise from 0", lambda: head.topk(x, 1, exclude=([0, 2, 1], [0]))),
        (IndexError, r"ids\[1\] of exclude is 5", lambda: head.topk(x, 1, exclude=([0, 2, 2], [0, 5]))),
        (IndexError, r"ids\[1\] is 5", lambda: head.logits(x, [0, 5])),
        (ValueError, "ids has shape", lambda: head.logits(x, np.zeros((3, 1), int))),
        (ValueError, r"ids has shape \(\); allowed: \(m,\)$", lambda: head.logits(x[0], 2)),
        (ValueError, "num_threads must be at least 1", lambda: Int8Head(x, num_threads=0)),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("dtype", [*DTYPES, np.int16, np.dtype(">f4")])
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (0,)])
def test_the_function_has_the_answers_of_the_head(dtype, batch):
    rng = np.random.default_rng(6)
    w, x = (rng.integers(-9, 9, s).astype(dtype) for s in ((50, 9), (*batch, 9)))
    w, n = w[::-1, ::-1], int(np.prod(batch))
    exclude = np.arange(n + 1), np.full(n, 7)
    for options in ({}, {"where": rng.random((*batch, 50)) < 0.5, "exclude": exclude}):
        for bias, k in itertools.product((None, rng.normal(size=50)), (0, 3, 50)):
            found = csoftmax.int8_topk(x, w, k, bias=bias, device="cpu", num_threads=2, **options)
            expected = Int8Head(w, bias).topk(x, k, **options)
            assert found.values.dtype == expected.values.dtype
            for a, b in zip(found, expected, strict=True):
                assert a.tobytes() == b.tobytes()
                assert a.shape == (*batch, k)


def test_logits_and_the_function():
    rng = np.random.default_rng(6)
    w, x, bias = (rng.standard_normal(s).astype(np.float32) for s in ((50, 9), (3, 9), 50))
    z = score(x, w, bias)
    head = Int8Head(w, bias)
    np.testing.assert_array_equal(head.logits(x, [4, 4, 0]), z[:, [4, 4, 0]].astype(np.float32))
    ids = rng.integers(0, 50, (3, 2))
    np.testing.assert_array_equal(head.logits(x, ids), np.take_along_axis(z, ids, 1).astype(np.float32))
    np.testing.assert_array_equal(head.predict(x), z.argmax(axis=1))
    assert csoftmax.int8_topk(x, w, 4, bias=bias).indices.tolist() == order(z, 4).tolist()
    disabled = bias.copy()
    disabled[order(z, 4)[0]] = -np.inf
    found = Int8Head(w, disabled).topk(x, 50)
    assert np.isneginf(found.values[0, 46:]).all()
    assert found.indices[0, 46:].tolist() == sorted(order(z, 4)[0])
    assert Int8Head(w, disabled).topk(x, 3).indices.tolist() == order(score(x, w, disabled), 3).tolist()


def test_update_and_add_classes():
    """The same results as a new layer has, whatever was there before."""
    rng = np.random.default_rng(7)
    w, x, bias = (rng.standard_normal(s).astype(np.float32) for s in ((70, 9), (3, 9), 70))
    for limbs, copy, is_searched in itertools.product((1, 2), (False, True), (False, True)):
        own, biases = w.copy(), bias.copy()
        head = Int8Head(own, biases, limbs=limbs, copy=copy)
        if is_searched:
            head.predict(x[0])
        rows, new = np.array([69, 3, 16]), rng.standard_normal((3, 9)).astype(np.float32)
        head.update(rows, new * 5, [1.0, np.pi, -np.inf])
        expected, changed = w.copy(), bias.astype(np.float64)
        expected[rows], changed[rows] = new * 5, [1.0, np.pi, -np.inf]
        assert_exact(head, x, expected, changed, 9)
        assert (own[3] == (new[1] * 5 if not copy else w[3])).all()
        fresh = int8.quantise(expected, 0, changed, limbs, None, head._layer.exponent)
        for name in ("codes", "second", "scale", "residual", "second_residual", "norm", "bias", "exact_bias"):
            np.testing.assert_array_equal(getattr(head._layer, name), getattr(fresh, name))
        assert (head._layer.leading.nibbles is not None) == is_searched
        assert_exact(head, x[:1], expected, changed, 9)
        other = Int8Head(expected, changed, limbs=limbs)
        other._layer = other._layer._replace(**{name: getattr(fresh, name) for name in ("codes", "scale", "residual")})
        other._layer = other._layer._replace(norm=fresh.norm)
        other.predict(x[0])
        for name in ("nibbles", "gap", "reach", "part"):
            np.testing.assert_array_equal(*(getattr(h._layer.leading, name) for h in (head, other)))
        assert head.add_classes(new, [0.5, 0.25, 9.0]) is head
        assert head.add_classes(new[:0]) is head
        expected, changed = np.concatenate((expected, new)), np.concatenate((changed, [0.5, 0.25, 9.0]))
        assert head.n_classes == 73
        assert_exact(head, x, expected, changed, 9)
        assert_exact(head, x[:1], expected, changed, 9)
        for error, message, call in (
            (IndexError, "rows", lambda: head.update([73], new[:1])),  # noqa: B023
            (ValueError, "distinct", lambda: head.update([1, 1], new[:2])),  # noqa: B023
            (ValueError, "w_rows has shape", lambda: head.update([1], new[:1, :4])),  # noqa: B023
            (ValueError, "bias_rows has shape.*w_rows has 1", lambda: head.update([1], new[:1], [1.0, 2.0])),  # noqa: B023
            (ValueError, r"w has shape \(3, 4\); \(m, 9\) is", lambda: head.add_classes(new[:, :4])),  # noqa: B023
            (ValueError, r"w has shape \(\); \(m, 9\) is", lambda: head.add_classes(5.0)),  # noqa: B023
            (ValueError, "bias has shape", lambda: head.add_classes(new[:0], [1.0])),  # noqa: B023
        ):
            with pytest.raises(error, match=message):
                call()
        assert_exact(head, x, expected, changed, 9)
    fixed = w.copy()
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only.*copy=True.*mmap=False"):
        Int8Head(fixed, copy=False).update([0], w[:1])


def test_a_copy_shares_nothing_and_stays_whole():
    """After an update of the copy, the copy has the new rows and the original the old ones, in every dtype."""
    rng = np.random.default_rng(10)
    for dtype, limbs in zip(DTYPES, (1, 2, 1, 2), strict=True):
        w, x, bias = (rng.standard_normal(s).astype(np.float32).astype(dtype) for s in ((37, 9), (3, 9), 37))
        head = Int8Head(w, bias, limbs=limbs)
        head.predict(x[0])
        for duplicate in (shallow_copy, deepcopy, lambda h: pickle.loads(pickle.dumps(h))):
            other = duplicate(head)
            other.update([3, 36], 5 * w[:2], [1.0, 2.0])
            changed, biases = w.copy(), bias.astype(np.float64)
            changed[[3, 36]], biases[[3, 36]] = 5 * w[:2], [1.0, 2.0]
            assert_exact(other, x, changed, biases, 9)
            assert_exact(other, x[:1], changed, biases, 9)
            assert_exact(head, x, w, bias, 9)


def test_a_block_of_equal_rows_at_the_front():
    """Classes in the order of their scores, or many equal ones first, are not scored all, for any number of threads."""
    rng = np.random.default_rng(11)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in ((40000, 32), (9, 32)))
    w[:12000] = 0
    stats = []
    for threads in (1, 2, 5):
        head = Int8Head(w, num_threads=threads)
        found = head.topk(x, 10)
        assert found.indices.tolist() == order(score(x, w), 10).tolist()
        stats.append(head.stats)
    assert stats[0]["exact_scans"] == 0
    assert stats[0] == stats[1] == stats[2]


def test_classes_that_are_switched_off():
    """They are not scored exactly, and bound no other class, even where a product exceeds the scan's bias of them."""
    head = Int8Head(np.float32([[1.6e19], [-1e19], [-1.2e19]]), [-np.inf, 0, 0])
    assert head.topk([[1e19]], 1).indices.tolist() == [[1]]
    assert head.topk([[1e19]], 2).indices.tolist() == [[1, 2]]
    rng = np.random.default_rng(12)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in ((9000, 32), (3, 32)))
    bias = np.where(np.arange(9000) % 2, -np.inf, 0)
    head = Int8Head(w, bias)
    assert head.topk(x, 5).indices.tolist() == order(score(x, w, bias), 5).tolist()
    assert head.stats["exact_scans"] == 0
    assert head.stats["rescored_max"] < 100


def test_scales_of_columns_take_little_memory():
    """At most 16,384 rows, of which few are float64 at a time; a median of large float32 does not overflow."""
    w = np.ones((32767, 64), np.float32)
    tracemalloc.start()
    try:
        int8.choose_exponents(w)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            head = Int8Head(np.float32([[2e38], [2.1e38]]))
            assert head.predict([1.0]) == 1
    finally:
        tracemalloc.stop()


def test_an_interrupted_update_leaves_a_right_layer(monkeypatch):
    """Rows whose codes are being replaced are scored exactly."""
    rng = np.random.default_rng(8)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in ((70, 9), (3, 9)))
    head = Int8Head(w)
    head.predict(x[0])

    def stop(*_):
        raise KeyboardInterrupt

    from csoftmax._learn import int8_head

    monkeypatch.setattr(int8_head, "_write_rows", stop)
    with pytest.raises(KeyboardInterrupt):
        head.update([5, 6], 10 * x[:2])
    expected = w.copy()
    expected[[5, 6]] = 10 * x[:2]
    assert_exact(head, x, expected, None, 4)
    assert_exact(head, x[:1], expected, None, 4)


def test_statistics():
    """Few classes are scored exactly where the scores differ, all where they are equal."""
    rng = np.random.default_rng(9)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in ((20000, 64), (3, 64)))
    head = Int8Head(w)
    head.topk(x, 10)
    assert 10 <= head.stats["rescored_mean"] <= 50
    assert head.stats["exact_scans"] == 0
    equal = Int8Head(np.repeat(w[:1], 20000, axis=0))
    assert equal.topk(x, 3).indices.tolist() == [[0, 1, 2]] * 3
    assert equal.stats == {"rescored_mean": 20000.0, "rescored_max": 20000, "exact_scans": 3}
    assert head.nbytes == 20000 * (64 + 12 + 4) + 2 * 64
    assert repr(head) == "Int8Head(20000 classes, 64 features, limbs=1)"


GUARDED = """
import numpy as np
from csoftmax.heads import Int8Head
from csoftmax._ops import int8
from helpers.guard_pages import Guarded

rng = np.random.default_rng(0)
for dtype in (np.float16, np.float32, np.float64):
    for k, d in ((1, 1), (16, 4), (17, 5), (33, 127), (200, 64)):
        w, x = rng.normal(size=(k, d)).astype(dtype), rng.normal(size=(5, d))
        expected = Int8Head(w, limbs=2)
        for at_end in (True, False):
            guard = lambda a: None if a is None else Guarded(a.nbytes).copy(a, at_end)
            head = Int8Head(guard(w), limbs=2, copy=False)
            layer = head._layer
            names = ("codes", "second", "scale", "residual", "second_residual", "norm", "bias", "exponent")
            head._layer = layer._replace(**{name: guard(getattr(layer, name)) for name in names})
            int8.binding.run_int8_quantise(head._layer, head._layer.w, None, 1)
            for a, b in zip(head.topk(guard(x), min(k, 3)), expected.topk(x, min(k, 3))):
                assert a.tobytes() == b.tobytes()
            for a, b in zip(head.log_partition(x[:1]), expected.log_partition(x[:1])):
                assert a.tobytes() == b.tobytes()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory maps with protected pages")
def test_guard_pages():
    """No access outside w, the codes and their numbers, each at the end and at the beginning of its memory."""
    run_python(GUARDED)


ALLOCATIONS = """
import numpy as np
from csoftmax.heads import Int8Head
from helpers.failing_allocations import fail_every_allocation

rng = np.random.default_rng(0)
w, x = rng.standard_normal((6000, 33)).astype(np.float16), rng.standard_normal((3, 33))
head = Int8Head(w, num_threads=3)
print(fail_every_allocation(lambda: head.topk(x, 50), "topk"))
print(fail_every_allocation(lambda: head.logits(x, [1, 2]), "logits"))
print(fail_every_allocation(lambda: head.log_partition(x[:1], rtol=1, max_exact=0), "bounds"))
print(fail_every_allocation(lambda: Int8Head(w, num_threads=3)._layer.codes, "quantise"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD")
def test_every_failing_allocation(tmp_path):
    from helpers import compile_library

    shim = compile_library(tmp_path, SHIM, "shim")
    counts = [int(line) for line in run_python(ALLOCATIONS, LD_PRELOAD=str(shim)).stdout.split()]
    assert counts[0] >= 5, counts
    assert min(counts) >= 1, counts


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("threads", [1, 3])
def test_long_calls_see_ctrl_c(threads):
    """A scan, bounds, exact scores; and codes of rows that share their memory, as do their classes."""
    head = Int8Head(np.ones((200000, 64), np.float32), num_threads=threads)
    x = np.ones((20000, 64))
    assert seconds_to_stop(lambda: head.topk(x, 3)) < 1
    assert seconds_to_stop(lambda: head.log_partition(x)) < 1
    many = np.zeros(1 << 24, np.int64)
    assert seconds_to_stop(lambda: head.logits(x[0], many)) < 1
    rows = np.lib.stride_tricks.as_strided(np.ones(64, np.float32), (1 << 25, 64), (0, 4))
    ids = np.zeros(len(rows), np.int64)
    assert seconds_to_stop(lambda: binding.run_int8_quantise(head._layer, rows, ids, 1)) < 1
