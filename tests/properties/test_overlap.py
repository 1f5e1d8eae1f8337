"""out may overlap the inputs and the mask in any way: the result is as if they had been copied first."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import assert_same_bits
from hypothesis import HealthCheck, given, settings
from ops import DTYPES, OPS, dtype_of, logits

import csoftmax
from csoftmax._arguments.layouts import overlaps_itself

WITH_OUT = [op for op in OPS if op.has_out]
operations = pytest.mark.parametrize("op", WITH_OUT, ids=lambda op: op.name)
quick = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@st.composite
def windows(draw, shape):
    """A view of the shape into one-dimensional memory of 4096 elements, without overlap in itself."""
    order = draw(st.permutations(range(len(shape))))
    strides, step = [0] * len(shape), draw(st.sampled_from([1, 1, 2, 3]))
    begin = draw(st.integers(0, 60))
    for axis in order:
        flip = draw(st.booleans())
        strides[axis] = -step if flip else step
        if flip:
            begin += step * (shape[axis] - 1)
        step *= shape[axis] * draw(st.sampled_from([1, 1, 2]))

    def view(memory):
        size = memory.itemsize
        return np.lib.stride_tricks.as_strided(memory[begin:], shape, [s * size for s in strides])

    return view


@st.composite
def overlaps(draw):
    shape = draw(st.sampled_from([(5,), (40,), (3, 4), (4, 4), (2, 17), (9, 9), (2, 3, 5), (3, 3, 3)]))
    return draw(windows(shape)), draw(windows(shape)), draw(windows(shape)), draw(st.integers(0, len(shape) - 1))


@operations
@quick
@given(case=overlaps(), dtype=st.sampled_from(DTYPES))
def test_any_overlap(op, case, dtype):
    """Partial, shifted, transposed, reversed, interleaved: out, dy and y are windows of one piece of memory."""
    first, second, target, axis = case
    memory = (np.abs(logits(4096, "float64")) / 8 * (-1 if op.log else 1)).astype(dtype_of(dtype))
    arrays = [first(memory), second(memory)][: op.inputs]
    expected = op.function()(*(a.copy() for a in arrays), axis=axis)
    before = memory.copy()
    out = target(memory)
    assert op.function()(*arrays, axis=axis, out=out) is out
    assert_same_bits(out, expected)
    target(before)[...] = expected
    assert_same_bits(memory, before, "memory outside out")


@operations
def test_shifted_by_every_distance(op, dtype):
    for k in (1, 7, 33, 5000):
        for distance in (1, 3, 16, 31, k):
            memory = np.zeros(k * 4 + 2 * distance, dtype_of(dtype))
            x = memory[distance : distance + 4 * k].reshape(4, k)
            arrays = op.make((4, k), dtype)
            expected = op.function()(*arrays)
            for begin in (0, 2 * distance):
                for which in range(op.inputs):
                    x[...] = arrays[which]
                    given_arrays = list(arrays)
                    given_arrays[which] = x
                    out = memory[begin : begin + 4 * k].reshape(4, k)
                    op.function()(*given_arrays, out=out)
                    assert_same_bits(out, expected, f"K={k} shift {begin - distance}")


@operations
def test_transposed_onto_itself(op, dtype):
    for k in (2, 16, 65):
        arrays = op.make((k, k), dtype)
        expected = op.function()(*arrays)
        for which in range(op.inputs):
            given_arrays = [a.copy() for a in arrays]
            op.function()(*given_arrays, out=given_arrays[which].T)
            assert_same_bits(given_arrays[which].T, expected)
            given_arrays = [a.copy() for a in arrays]
            op.function()(*given_arrays, out=given_arrays[which][::-1, ::-1])
            assert_same_bits(given_arrays[which][::-1, ::-1], expected)


@operations
def test_in_place_over_several_axes(op):
    for axis in ((0, 2), (2, 0), None, (1,), (0, 1)):
        arrays = op.make((3, 4, 5), "float64")
        expected = op.function()(*arrays, axis=axis)
        target = arrays[0].copy()
        op.function()(target, *arrays[1:], axis=axis, out=target)
        assert_same_bits(target, expected, f"axis {axis}")
        strided = np.zeros((6, 4, 10))[::2, :, ::-2]
        op.function()(*arrays, axis=axis, out=strided)
        assert_same_bits(strided, expected, f"axis {axis}")


@operations
def test_y_is_dy_is_out(op):
    if op.inputs == 1:
        pytest.skip("one input")
    for k in (5, 100, 5000):
        _, y = op.make((4, k), "float32")
        expected = op.function()(y.copy(), y.copy())
        assert op.function()(y, y, out=y) is y
        assert_same_bits(y, expected)


@operations
def test_the_mask_lies_in_out(op):
    """where is read before anything is written, even where out is the same memory."""
    arrays = op.make((4, 64), "float32")
    memory = np.zeros((4, 64), np.float32)
    where = memory.view(np.bool_).reshape(4, 256)[:, 100:164]
    mask = np.arange(256).reshape(4, 64) % 3 > 0
    where[...] = mask
    expected = op.function()(*arrays, where=mask)
    op.function()(*arrays, where=where, out=memory)
    assert_same_bits(memory, expected)


@operations
def test_out_that_overlaps_itself_is_refused(op):
    arrays = op.make((4, 6), "float64")
    memory = np.full(100, 7.0)
    stride = memory.itemsize
    for strides in (
        (0, stride),
        (stride, 0),
        (stride, stride),
        (2 * stride, stride),
        (-stride, stride),
        (stride // 2, 7),
    ):
        out = np.lib.stride_tricks.as_strided(memory[10:], (4, 6), strides)
        with pytest.raises(ValueError, match="out overlaps itself"):
            op.function()(*arrays, out=out)
    assert np.all(memory == 7)
    for strides in ((6 * stride, stride), (stride, 4 * stride), (-6 * stride, stride), (9 * stride, stride)):
        out = np.lib.stride_tricks.as_strided(memory[30:], (4, 6), strides)
        op.function()(*arrays, out=out)
        assert_same_bits(out, op.function()(*arrays))


@quick
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    strides=st.lists(st.integers(-12, 12), min_size=4, max_size=4),
)
def test_overlap_is_found_exactly(shape, strides):
    """Against the definition: two elements share a byte."""
    memory = np.zeros(4000, np.uint8)
    x = np.ndarray(shape, np.uint16, memory, offset=2000, strides=strides[: len(shape)])
    places = sorted(sum(i * s for i, s in zip(index, x.strides, strict=True)) for index in np.ndindex(shape))
    assert overlaps_itself(x) == any(b - a < 2 for a, b in itertools.pairwise(places))


@operations
def test_the_result_of_a_call_is_out_itself(op):
    arrays = op.make((3, 5), "float32")
    out = np.zeros((3, 5), np.float32)
    assert op.function()(*arrays, out=out) is out
    assert op.function()(*arrays, axis=0, out=out) is out
    fresh = op.function()(*arrays)
    assert not any(np.shares_memory(fresh, a) for a in arrays)
    assert csoftmax.softmax(out) is not out
