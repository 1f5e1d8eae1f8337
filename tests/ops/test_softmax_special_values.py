"""Every row of the table of special values, at every index of the row, dtype, layout and function.

NaN: the whole row, in its canonical bits, whatever payload went in, before +-inf.  +inf: NaN, log-sum-exp +inf.
-inf: exactly 0 (log: -inf).  All -inf, nothing left by `where`, no class, no row, 0-d.  The limits of temperature.
What takes no part is never read.
"""

import numpy as np
import pytest
from helpers import assert_same_bits, looped

import csoftmax
from csoftmax._spec.formats import NAN_BITS, UNSIGNED, bits, dtype_of, ulp_error, wide
from csoftmax._spec.layouts import LAYOUTS, compute_in
from csoftmax._spec.operations import BACKWARD, BY_NAME, FORWARD
from csoftmax._spec.record import CLASSES, Sample
from csoftmax._spec.samples import logits

INDICES = 4 * 16 + 6
INF = np.float32(np.inf)
LONG = 4096 + 131  # two blocks
layouts = looped("layout", LAYOUTS)
forward = pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
backward = pytest.mark.parametrize("op", BACKWARD, ids=lambda op: op.name)


def call(op, arrays, layout="last axis", **options):
    """Return the result of a call in a layout, rows first."""
    names = (argument.name for argument in op.arguments)
    return compute_in(op, Sample(dict(zip(names, arrays, strict=True)), {}), layout, **options)[0]


def error_of(op, x, result):
    """Return the error of the result of logits in ULP."""
    return op.errors(Sample({"x": x}, {}), (result,), x.dtype.name)[0]


def payloads(dtype):
    """Quiet, signalling and negative NaNs with and without payload, as bit patterns."""
    exponent = {"float32": 0x7F800000, "float64": 0x7FF << 52, "float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    quiet = NAN_BITS[dtype] & ~exponent
    sign = 1 << (8 * dtype_of(dtype).itemsize - 1)
    return [exponent | quiet, exponent | 1, exponent | quiet | 3, sign | exponent | quiet, sign | exponent | 1]


def nan(dtype, i=0):
    patterns = payloads(dtype)
    return np.array(patterns[i % len(patterns)], UNSIGNED[dtype_of(dtype).itemsize]).view(dtype_of(dtype))


def assert_canonical_nan(result, dtype):
    assert np.all(bits(result) == NAN_BITS[dtype])


def value_for_rows_with(what, op):
    """Return the number that fills the whole result of a forward function."""
    if what == "masked":
        return -np.inf if op.log else 0
    return op.special[what][0]


def assert_all(result, value, dtype):
    if np.isnan(value):
        assert_canonical_nan(result, dtype)
    else:
        assert np.all(wide(result) == value)
        assert not np.any(np.signbit(wide(result))) or value < 0


def one_at_each_index(k, dtype):
    """Return k rows of k classes, and the indices: row i is to get its special value at index i."""
    return logits((k, k), dtype, seed=k), np.arange(k)


@layouts
@forward
def test_nan_beats_infinities(op, dtype, layout):
    x, i = one_at_each_index(INDICES, dtype)
    x[i, (i + 7) % INDICES] = INF
    x[i, (i + 40) % INDICES] = -INF
    for row in i:
        x[row, row] = nan(dtype, row)
    assert_canonical_nan(call(op, [x], layout), dtype)
    x[...] = -INF
    for row in i:
        x[row, row] = nan(dtype, row)
    assert_canonical_nan(call(op, [x], layout), dtype)


@layouts
@forward
def test_minus_infinity_at_every_index(op, dtype, layout):
    """Exactly 0 or -inf there, and the rest as if it were not there."""
    for k in (2, 17, 35, INDICES):
        x, i = one_at_each_index(k, dtype)
        x[i, i] = -INF
        result = call(op, [x], layout)
        assert error_of(op, x, result) <= 4
        if op.keeps_axis:
            assert np.all(bits(result[i, i]) == bits(np.array(value_for_rows_with("masked", op), x.dtype)))


@layouts
@forward
def test_one_finite_value_at_every_index(op, dtype, layout):
    """A row of -inf with one finite value gives 1, 0 and the value."""
    x, i = one_at_each_index(INDICES, dtype)
    kept = x[i, i].copy()
    x[...] = -INF
    x[i, i] = kept
    assert_same_bits(call(op, [x], layout), op.oracle(x)[0].value.astype(x.dtype))


@forward
def test_a_block_of_minus_infinity(op, dtype):
    k = 4 * 4096
    x = logits((3, k), dtype, seed=2)
    x[0, :4096] = x[1, 4096:8192] = x[2, 8192:] = -INF
    assert error_of(op, x, op.function()(x)) <= 4


@forward
def test_largest_and_smallest_numbers(op, dtype):
    info = np.finfo(np.float32) if dtype == "bfloat16" else np.finfo(dtype)
    big = float(info.max) if dtype != "bfloat16" else 3.3e38
    tiny = float(info.smallest_subnormal) if dtype != "bfloat16" else 1e-40
    rows = [[big, 0, -big], [-big, -big, -big], [big, big, 1], [tiny, -tiny, 0], [-0.0, 0.0, -0.0], [-big, 0, 5]]
    x = np.array(rows).astype(dtype_of(dtype))
    assert error_of(op, x, op.function()(x)) <= 4


# where


@layouts
@forward
def test_masked_values_are_never_read(op, dtype, layout):
    """Garbage under the mask gives the same bits as 0 under the mask, at every index."""
    for k in (1, 2, 17, 35, INDICES):
        x, i = one_at_each_index(k, dtype)
        mask = np.ones((k, k), bool)
        mask[i, i] = False
        mask[i, (i * 3 + 1) % k] = False
        where, _ = LAYOUTS[layout](mask)
        x[~mask] = 0
        clean = call(op, [x], layout, where=where)
        for garbage in (nan(dtype, k), INF, -INF):
            x[~mask] = garbage
            assert_same_bits(call(op, [x], layout, where=where), clean, f"{garbage} under the mask")


@forward
def test_where_is_as_minus_infinity(op, dtype):
    for k in (3, 64, 1000, 5000):
        x = logits((6, k), dtype, seed=4)
        mask = np.arange(6 * k).reshape(6, k) * 7 % 11 < 8
        filled = np.where(mask, x, np.array(-np.inf, x.dtype))
        assert_same_bits(op.function()(x, where=mask), op.function()(filled))


@layouts
@forward
def test_nothing_left_by_where(op, dtype, layout):
    for k in (1, 5, 64, 4096, LONG):
        x = logits((3, k), dtype)
        x[1] = nan(dtype)
        x[2] = INF
        where, _ = LAYOUTS[layout](np.zeros((3, k), bool))
        assert_all(call(op, [x], layout, where=where), value_for_rows_with("masked", op), dtype)
    x = logits((4, 20), dtype)
    mask = np.ones((4, 20), bool)
    mask[2] = False
    result = op.function()(x, where=mask)
    assert_all(result[2], value_for_rows_with("masked", op), dtype)
    assert_same_bits(result[[0, 1, 3]], op.function()(x[[0, 1, 3]]))


@layouts
@forward
def test_what_where_keeps_follows_the_table(op, dtype, layout):
    """NaN and infinities that are not masked count; all kept ones -inf is not the same as none kept.

    Masked elements are 0 (log: -inf) in such rows, too, at every index and in rows of several blocks.
    """
    for k in (1, 2, 17, 30, 5000, 9000):
        for first in (0, 1) if k > 1 else (0,):
            x = logits((4, k), dtype)
            mask = np.arange(k) % 2 == first
            kept, mask = np.flatnonzero(mask), np.broadcast_to(mask, x.shape).copy()
            x[0, kept[-1]] = nan(dtype)
            x[1, kept[0]] = INF
            x[2, kept] = -INF
            x[3, kept[len(kept) // 2]] = nan(dtype)
            if k > 1:
                x[:, 1 - first] = nan(dtype, 1)  # masked
            where, _ = LAYOUTS[layout](mask)
            result = call(op, [x], layout, where=where)
            for row, what in enumerate(("NaN", "+inf", "all -inf", "NaN")):
                if op.results[0].role != CLASSES:
                    assert_all(result[row], value_for_rows_with(what, op), dtype)
                    continue
                assert_all(result[row][mask[row]], value_for_rows_with(what, op), dtype)
                assert_all(result[row][~mask[row]], value_for_rows_with("masked", op), dtype)


@forward
def test_where_in_one_long_row_of_nan(op):
    """A row that is split over threads."""
    x = np.zeros(1 << 20, np.float32)
    x[777_778] = np.nan
    mask = np.arange(len(x)) % 3 > 0
    result = op.function()(x, where=mask)
    assert_all(result if op.results[0].role != CLASSES else result[mask], np.nan, "float32")
    if op.results[0].role == CLASSES:
        assert_all(result[~mask], value_for_rows_with("masked", op), "float32")


# No class, no row, no axis


def test_no_class(op, dtype):
    for shape in ((0,), (3, 0), (2, 0, 0), (0, 0)):
        arrays = [np.zeros(shape, dtype_of(dtype)) for _ in range(op.inputs)]
        result = op.function()(*arrays)
        if op.keeps_axis:
            assert result.shape == shape
        else:
            assert result.shape == shape[:-1]
            assert np.all(wide(result) == value_for_rows_with("masked", op))
        assert result.dtype == dtype_of(dtype)


def test_no_row(op, dtype):
    for shape in ((0, 5), (3, 0, 4), (0, 4100)):
        arrays = [np.zeros(shape, dtype_of(dtype)) for _ in range(op.inputs)]
        result = op.function()(*arrays)
        assert result.shape == (shape if op.keeps_axis else shape[:-1])
        result = op.function()(*arrays, axis=None)
        assert result.shape == (shape if op.keeps_axis else ())


@forward
def test_scalars(op, dtype):
    """0-d in, NumPy scalar out."""
    for value in (0.0, -3.5, 1000.0):
        x = np.array(value, dtype_of(dtype))
        for argument in (x, x[()]):
            for axis in (-1, 0, None, ()):
                if axis == ():
                    continue
                result = op.function()(argument, axis=axis)
                assert type(result) is x.dtype.type
                assert float(result) == float(np.squeeze(op.oracle(x.reshape(1))[0].value))
    assert np.isnan(float(op.function()(np.array(np.nan, dtype_of(dtype)))))
    assert float(op.function()(1)) == float(np.squeeze(op.oracle(np.ones(1))[0].value))


@backward
def test_scalar_gradients(op, dtype):
    y = np.array(0 if op.log else 1, dtype_of(dtype))
    result = op.function()(np.array(2.0, dtype_of(dtype)), y)
    assert type(result) is y.dtype.type
    assert float(result) == 0


# Limits of temperature


@layouts
def test_temperature_zero(dtype, layout):
    for k in (1, 6, 70, LONG):
        x = logits((5, k), dtype)
        x[0] = 3
        x[1, k // 2] = x[1, k - 1] = 77
        x[2, 0] = 0
        x[2, 1:] = -5
        top = x == x.max(axis=1, keepdims=True)
        count = top.sum(axis=1, keepdims=True)
        p = call(BY_NAME["softmax"], [x], layout, temperature=0)
        assert ulp_error(p, np.where(top, 1 / np.longdouble(1) / count, 0), dtype) <= 0.51
        log_p = call(BY_NAME["log_softmax"], [x], layout, temperature=0.0)
        assert ulp_error(log_p, np.where(top, -np.log(np.longdouble(1) * count), -np.inf), dtype) <= 1
        lse = call(BY_NAME["logsumexp"], [x], layout, temperature=0.0)
        m = wide(x).max(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = np.where(m == 0, np.log(np.longdouble(1) * count[:, 0]), m / 0)
        assert ulp_error(lse, expected, dtype) <= 1


@layouts
def test_temperature_infinite(dtype, layout):
    for k in (1, 6, 70, LONG):
        x = logits((5, k), dtype)
        x[0, 1::2] = -INF
        x[1, 1:] = -INF
        kept = x > -INF
        count = kept.sum(axis=1, keepdims=True)
        p = call(BY_NAME["softmax"], [x], layout, temperature=np.inf)
        assert ulp_error(p, np.where(kept, 1 / np.longdouble(1) / count, 0), dtype) <= 0.51
        log_p = call(BY_NAME["log_softmax"], [x], layout, temperature=np.inf)
        assert ulp_error(log_p, np.where(kept, -np.log(np.longdouble(1) * count), -np.inf), dtype) <= 1
        lse = call(BY_NAME["logsumexp"], [x], layout, temperature=np.inf)
        assert ulp_error(lse, np.log(np.longdouble(1) * count[:, 0]), dtype) <= 1


@pytest.mark.parametrize("temperature", [0.0, np.inf, 1e-30, 1e-300, 1e300, 0.5, 2.0])
@forward
def test_special_values_come_before_temperature(op, dtype, temperature):
    for k in (9, 300, LONG):
        x = logits((4, k), dtype)
        x[0, 4] = nan(dtype)
        x[0, 2] = INF
        x[1, 8] = INF
        x[2] = -INF
        result = op.function()(x, temperature=temperature)
        assert_canonical_nan(result[0], dtype)
        assert_all(result[1], value_for_rows_with("+inf", op), dtype)
        assert_all(result[2], value_for_rows_with("all -inf", op), dtype)
        assert not np.any(np.isnan(wide(result[3])))
        masked = op.function()(x, temperature=temperature, where=np.zeros(k, bool))
        assert_all(masked, value_for_rows_with("masked", op), dtype)


# Gradients


def absent(op, dtype):
    return np.array(-np.inf if op.log else 0, dtype_of(dtype))


@layouts
@backward
def test_gradients_do_not_read_dy_where_y_is_absent(op, dtype, layout):
    """y = 0 (log: -inf): dx is +0, and whatever dy holds changes no bit of the row."""
    for k in (1, 2, 17, 35, INDICES):
        dy, y = op.make((k, k), dtype, seed=k)
        i = np.arange(k)
        y[i, i] = absent(op, dtype)
        dy[i, i] = 0
        clean = call(op, [dy, y], layout)
        assert np.all(bits(clean[i, i]) == 0)
        for garbage in (nan(dtype, k), INF, -INF):
            dy[i, i] = garbage
            assert_same_bits(call(op, [dy, y], layout), clean, f"dy = {garbage}")
    if not op.log:
        y[i, i] = -0.0
        assert_same_bits(call(op, [dy, y], layout), clean, "y = -0")


@layouts
@backward
def test_gradients_of_nan(op, dtype, layout):
    """NaN in dy or y of an element that takes part: the whole row but the absent elements."""
    for k in (2, 17, 35, INDICES):
        for which in (0, 1):
            dy, y = op.make((k, k), dtype, seed=k, sigma=1)  # no y underflows
            i = np.arange(k)
            if which == 0:
                for row in i:
                    dy[row, row] = nan(dtype, row)
            elif op.log:
                continue  # only that element would be NaN: e^y is not in the sum
            else:
                for row in i:
                    y[row, row] = nan(dtype, row)
            gone = (i + 1) % k
            y[i, gone] = absent(op, dtype)
            result = call(op, [dy, y], layout)
            assert np.all(bits(result[i, gone]) == 0)
            rest = np.ones((k, k), bool)
            rest[i, gone] = False
            assert_canonical_nan(result[rest], dtype)


def test_log_gradient_of_a_nan_in_y(dtype):
    op = BY_NAME["log_softmax_vjp"]
    dy, y = op.make((1, 20), dtype)
    y[0, 7] = nan(dtype, 3)
    assert_canonical_nan(csoftmax.log_softmax_vjp(dy, y)[0, 7], dtype)


@backward
def test_gradients_of_infinite_dy(op, dtype):
    """IEEE arithmetic of the formula: no trap, canonical NaN for inf - inf."""
    dy, y = op.make((1, 40), dtype, seed=1)
    dy[0, 5] = INF
    result = wide(op.function()(dy, y))[0]
    assert_canonical_nan(op.function()(dy, y)[0, 5], dtype)
    assert np.all(np.isnan(result) | (result == -np.inf))


@layouts
@backward
def test_gradients_with_where(op, dtype, layout):
    for k in (1, 2, 17, INDICES, 5000):
        dy, y = op.make((7, k), dtype, seed=k)
        mask = np.arange(7 * k).reshape(7, k) * 7 % 11 < 8
        where, _ = LAYOUTS[layout](mask)
        expected = call(op, [dy, np.where(mask, y, absent(op, dtype))])
        for garbage in (nan(dtype, k), INF):
            dy[~mask] = garbage
            y[~mask] = garbage
            assert_same_bits(call(op, [dy, y], layout, where=where), expected)
        nothing, _ = LAYOUTS[layout](np.zeros((7, k), bool))
        assert np.all(bits(call(op, [dy, y], layout, where=nothing)) == 0)
