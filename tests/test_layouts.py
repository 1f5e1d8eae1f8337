"""Any shape, strides, axis, mask, byte order and kind of array: the bits of the same call on a contiguous copy."""

import sys

import hypothesis.extra.numpy as arrays_of
import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import NUMPY, assert_same_bits, misaligned
from hypothesis import HealthCheck, given, settings
from ops import DTYPES, OPS, dtype_of, logits

import csoftmax

SWAPPED = ">" if sys.byteorder == "little" else "<"
quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@st.composite
def views(draw, shape):
    """A view of the shape in larger memory: steps, reversed axes, broadcast axes, axes in another order."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 1, 2, 3, -1, -2, 0])) for _ in shape]
    memory_shape = [1 if s == 0 else n * abs(s) for n, s in zip(shape, steps, strict=True)]
    seed = draw(st.integers(0, 1000))

    def make(dtype):
        memory = logits([memory_shape[i] for i in order], "float64", seed).astype(dtype_of(dtype))
        memory = memory.transpose(np.argsort(order)) if shape else memory
        index = tuple(slice(None, None, s if s else 1) for s in steps)
        return np.broadcast_to(memory[index], shape)

    return make


@st.composite
def calls(draw):
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 9, 17, 40]), min_size=1, max_size=4).map(tuple))
    while np.prod(shape) > 8000:
        shape = shape[1:]
    axis = draw(
        st.one_of(
            st.none(),
            st.integers(-len(shape), len(shape) - 1),
            st.lists(st.integers(0, len(shape) - 1), unique=True, max_size=len(shape)).map(tuple),
        )
    )
    where = draw(
        st.one_of(st.none(), arrays_of.arrays(bool, arrays_of.broadcastable_shapes(shape, max_dims=len(shape))))
    )
    if where is not None:
        try:
            np.broadcast_to(where, shape)
        except ValueError:
            where = None
    return shape, axis, where, draw(views(shape)), draw(views(shape))


def prepared(op, dtype, first, second):
    if op.inputs == 1:
        return [first(dtype)]
    y = second(dtype)
    magnitude = np.abs(y.astype(np.float64)) + 0.125
    # keeps the strides of a broadcast view: only the values need to make sense
    return [first(dtype), (-magnitude if op.log else magnitude / 8).astype(dtype_of(dtype))]


def as_rows(x, axis):
    """(rows, K) with the softmax axes in the order given, contiguous, and how to get back."""
    axes = tuple(range(x.ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    axes = tuple(a % x.ndim for a in axes)
    moved = np.moveaxis(x, axes, range(x.ndim - len(axes), x.ndim))
    k = int(np.prod([x.shape[a] for a in axes]))
    return np.array(moved.reshape(-1, k), order="C"), moved.shape, axes


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@quick
@given(call=calls(), dtype=st.sampled_from(DTYPES), temperature=st.sampled_from([1.0, 1.0, 0.4, 3.0]))
def test_any_view_equals_its_contiguous_copy(op, call, dtype, temperature):
    shape, axis, where, first, second = call
    arrays = prepared(op, dtype, first, second)
    flat = [as_rows(a, axis)[0] for a in arrays]
    _, moved_shape, axes = as_rows(arrays[0], axis)
    mask = None if where is None else as_rows(np.broadcast_to(where, shape), axis)[0]
    expected = op.function()(*flat, temperature=temperature, where=mask)
    result = op.function()(*arrays, axis=axis, temperature=temperature, where=where)
    if op.keeps_axis:
        expected = np.moveaxis(expected.reshape(moved_shape), range(len(shape) - len(axes), len(shape)), axes)
        assert result.flags.writeable
    else:
        rest = tuple(n for i, n in enumerate(shape) if i not in axes)
        expected = expected.reshape(rest)
        kept = op.function()(*arrays, axis=axis, temperature=temperature, where=where, keepdims=True)
        assert kept.shape == tuple(1 if i in axes else n for i, n in enumerate(shape))
        assert_same_bits(np.asarray(kept).reshape(rest), expected)
    assert_same_bits(np.asarray(result), expected)


def test_more_axes_than_one_likes(op):
    arrays = op.make((2,) * 15, "float32")
    rows = [a.transpose(*range(7), *range(8, 15), 7).reshape(-1, 2) for a in arrays]
    expected = op.function()(*rows)
    result = op.function()(*arrays, axis=7)
    if op.keeps_axis:
        result = np.moveaxis(result, 7, -1)
    assert_same_bits(result.reshape(expected.shape), expected)
    most = 63 if NUMPY >= (2, 0) else 32  # axes; NumPy has 64, one of which stays for a step on the way
    deep = [
        a[:2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, :].reshape((1,) * 30 + (2,) + (1,) * (most - 32) + (2,))
        for a in arrays
    ]
    assert deep[0].ndim == most
    assert op.function()(*deep, axis=30).ndim == (most if op.keeps_axis else most - 1)


def test_large_transposed_arrays(op, dtype):
    """Axes of every kind of inner size, wide enough for tiles, packed groups and long rows."""
    for shape, axis in (((6, 50, 32), 1), ((3, 21, 9, 64), 1), ((200, 300), 0), ((40, 100, 4), 1), ((4200, 3), 0),
                        ((4096, 20), 0), ((5000, 20), 0), ((2, 513, 600), 1), ((3, 17, 5), 0)):  # fmt: skip
        arrays = op.make(shape, dtype, seed=len(shape))
        if op.inputs == 2:
            arrays = (arrays[0], np.abs(arrays[1]) * np.array(-1 if op.log else 1, arrays[1].dtype))
        expected = op.function()(*(np.ascontiguousarray(np.moveaxis(a, axis, -1)) for a in arrays))
        result = op.function()(*arrays, axis=axis)
        assert_same_bits(np.moveaxis(result, axis, -1) if op.keeps_axis else result, expected, f"{shape} axis {axis}")
        if op.keeps_axis:
            assert result.flags.c_contiguous


@pytest.mark.parametrize("op", [op for op in OPS if op.inputs == 2], ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
def test_gradients_of_rows_side_by_side(op, dtype, temperature):
    """Many rows, along the first axis and along the last, have the bits that each has alone."""
    rng = np.random.default_rng(0)
    vjp = op.function()
    for n in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 127, 128, 129, 700):
        for rows in (8, 9, 17, 40, 70, 133):
            dy, y = (a.astype(np.float64) for a in op.make((n, rows), dtype, seed=n + rows))
            dy[rng.integers(n, size=2), [1, 2]] = [np.inf, np.nan]
            dy[:, 3] = -0.0
            dy[:, 4] *= 1e-42  # s is subnormal, or, in half types, 0
            dy[:, 5] = 6e4  # s is large, and the differences from it are small
            y[rng.integers(n), 2:6] = -np.inf if op.log else 0  # takes no part
            y[:, 6] = -np.inf if op.log else 0
            dy, y = (a.astype(dtype_of(dtype)) for a in (dy, y))
            alone = [vjp(np.array(a), np.array(b), temperature=temperature) for a, b in zip(dy.T, y.T, strict=True)]
            expected = np.array(alone).astype(dy.dtype)
            beside = vjp(dy, y, axis=0, temperature=temperature)
            assert_same_bits(beside.T, expected, f"{n} classes, {rows} rows, axis 0")
            below = [np.array(a.T, order="C") for a in (dy, y)]
            assert_same_bits(vjp(*below, temperature=temperature), expected, f"{n} classes, {rows} rows, axis 1")
            inside = dy.copy()
            vjp(inside, y, axis=0, temperature=temperature, out=inside)
            assert_same_bits(inside.T, expected, f"{n} classes, {rows} rows, in place")
            # all but one of the arrays as a tile wants them
            stepped = [a.repeat(2, axis=1)[:, ::2] for a in (dy, y, dy)]
            for i in range(3):
                a, b, out = (*(stepped[j] if j == i else x for j, x in enumerate((dy, y, np.empty_like(dy)))),)
                vjp(a, b, axis=0, temperature=temperature, out=out)
                assert_same_bits(out.T, expected, f"{n} classes, {rows} rows, every second element of array {i}")


def test_where_of_every_layout(op):
    arrays = op.make((4, 6, 50), "float32")
    mask = np.random.default_rng(0).random((4, 6, 50)) < 0.7
    expected = op.function()(*arrays, where=mask)
    wide = np.zeros((8, 6, 100), bool)
    wide[::2, :, ::-2] = mask
    for where in (np.asfortranarray(mask), wide[::2, :, ::-2], misaligned(mask.view(np.uint8)).view(bool)):
        assert_same_bits(op.function()(*arrays, where=where), expected)
    assert_same_bits(op.function()(*arrays, where=mask.tolist()), expected)
    one = op.function()(*arrays, where=mask[0, 0])
    assert_same_bits(one, op.function()(*arrays, where=np.broadcast_to(mask[0, 0], (4, 6, 50)).copy()))
    assert_same_bits(op.function()(*arrays, where=True), op.function()(*arrays))
    assert_same_bits(op.function()(*arrays, where=np.True_), op.function()(*arrays))
    odd = np.full((4, 6, 50), 2, np.uint8).view(bool)  # a true byte that is not 1
    assert_same_bits(op.function()(*arrays, where=odd), op.function()(*arrays))


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masks_of_rows_side_by_side(op, dtype):
    """As if the data had -inf (the gradient of softmax: y = 0) where the mask is False; true is any byte but 0."""
    rng = np.random.default_rng(0)
    for n in (1, 2, 9, 35, 300):
        for rows in (3, 8, 21, 40):
            arrays = list(op.make((n, rows), dtype, seed=n + rows))
            full = (rng.random((n, rows)) < 0.6).astype(np.uint8) * rng.integers(1, 256, (n, rows), dtype=np.uint8)
            full[0] = 128  # something is left of each row
            for mask in (full, full[:, :1], np.asfortranarray(full), full[:, :1].repeat(rows, 1)):
                where = mask.view(bool)
                filled = [a.copy() for a in arrays]
                filled[-1][np.broadcast_to(mask == 0, (n, rows))] = 0 if op.name == "softmax_vjp" else -np.inf
                expected = op.function()(*(np.array(a.T, order="C") for a in filled))
                result = op.function()(*arrays, axis=0, where=where)
                assert_same_bits(result.T if op.keeps_axis else result, expected, f"{n} classes, {rows} rows, axis 0")
                below = op.function()(*(np.array(a.T, order="C") for a in arrays), where=where.T)
                assert_same_bits(below, expected, f"{n} classes, {rows} rows, axis 1")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_byte_order(op, dtype):
    arrays = op.make((5, 33), dtype)
    expected = op.function()(*arrays)
    swapped = [a.astype(a.dtype.newbyteorder(SWAPPED)) for a in arrays]
    result = op.function()(*swapped)
    assert result.dtype.isnative
    assert_same_bits(result, expected)
    if op.has_out:
        out = np.zeros(expected.shape, expected.dtype.newbyteorder(SWAPPED))
        assert op.function()(*arrays, out=out) is out
        assert_same_bits(out, expected)
        target = swapped[0].copy()
        op.function()(target, *swapped[1:], out=target)
        assert_same_bits(target, expected)


def test_read_only_inputs(op, dtype):
    arrays = op.make((5, 33), dtype)
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    result = op.function()(*arrays)
    assert result.flags.writeable
    for a, b in zip(arrays, before, strict=True):
        assert_same_bits(a, b)


def test_fields_of_structured_arrays(op):
    """Elements at odd addresses with odd strides."""
    arrays = op.make((6, 21), "float32")
    records = [np.zeros((6, 21), [("tag", "u1"), ("value", "f4"), ("rest", "u2")]) for _ in arrays]
    for record, a in zip(records, arrays, strict=True):
        record["value"] = a
    expected = op.function()(*arrays)
    fields = [record["value"] for record in records]
    assert_same_bits(op.function()(*fields), expected)
    assert_same_bits(op.function()(*(f.T for f in fields), axis=0), expected.T if op.keeps_axis else expected)
    if op.has_out:
        op.function()(*fields, out=fields[0])
        assert_same_bits(records[0]["value"], expected)
        assert not records[0]["tag"].any()
        assert not records[0]["rest"].any()


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@pytest.mark.parametrize("op", OPS[:3], ids=lambda op: op.name)
def test_integers_compute_in_float64(op, name):
    x = np.arange(60).reshape(4, 15).astype(name)
    expected = op.function()(x.astype(np.float64))
    for integers in (x, x.astype(x.dtype.newbyteorder(SWAPPED)), np.asfortranarray(x)):
        result = op.function()(integers)
        assert result.dtype == np.float64
        assert_same_bits(result, expected)
    extreme = np.array([[np.iinfo(name).min, np.iinfo(name).max]], name)
    assert_same_bits(op.function()(extreme), op.function()(extreme.astype(np.float64)))


def test_lists_tuples_and_scalars(op):
    arrays = op.make((2, 3), "float64")
    expected = op.function()(*arrays)
    assert_same_bits(op.function()(*(a.tolist() for a in arrays)), expected)
    assert_same_bits(op.function()(*(tuple(map(tuple, a)) for a in arrays)), expected)
    assert_same_bits(op.function()(*(memoryview(a) for a in arrays)), expected)


def test_subclasses_give_base_arrays(op, tmp_path):
    arrays = op.make((4, 30), "float32")
    expected = op.function()(*arrays)
    maps = []
    for i, a in enumerate(arrays):
        maps.append(np.memmap(tmp_path / f"x{i}", a.dtype, "w+", shape=a.shape))
        maps[-1][...] = a
    result = op.function()(*maps)
    assert type(result) is np.ndarray
    assert_same_bits(result, expected)
    if op.has_out:
        assert op.function()(*arrays, out=maps[0]) is maps[0]
        assert_same_bits(np.asarray(maps[0]), expected)

    class Sub(np.ndarray):
        pass

    assert type(op.function()(*(a.view(Sub) for a in arrays))) is np.ndarray


def test_objects_with_array_protocol(op):
    class Holder:
        def __init__(self, x):
            self.x = x

        def __array__(self, dtype=None, copy=None):
            return self.x

    arrays = op.make((2, 8), "float32")
    assert_same_bits(op.function()(*(Holder(a) for a in arrays)), op.function()(*arrays))


def test_axis_is_any_index(op):
    arrays = op.make((3, 4, 5), "float32")
    for axis, same in ((np.int64(1), 1), (-2, 1), ((1,), 1), ((0, -1), (0, 2)), (None, (0, 1, 2)), (True, 1)):
        assert_same_bits(np.asarray(op.function()(*arrays, axis=axis)), np.asarray(op.function()(*arrays, axis=same)))


def test_device_cpu_is_the_same(op):
    arrays = op.make((3, 40), "float32")
    assert_same_bits(op.function()(*arrays, device="cpu"), op.function()(*arrays))


@pytest.mark.long
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls(), dtype=st.sampled_from(DTYPES), temperature=st.sampled_from([1.0, 0.4, 3.0]))
def test_very_many_views(op, call, dtype, temperature):
    test_any_view_equals_its_contiguous_copy.hypothesis.inner_test(op, call, dtype, temperature)


def test_default_axis_is_the_last():
    x = logits((3, 5))
    assert_same_bits(csoftmax.softmax(x), csoftmax.softmax(x, -1))
