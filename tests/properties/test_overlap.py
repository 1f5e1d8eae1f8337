"""out may overlap the inputs and the mask in any way: the result is as if they had been copied first."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import assert_same_bits, assert_same_results, every_record
from hypothesis import HealthCheck, given, settings

from csoftmax._spec.formats import DTYPES, dtype_of
from csoftmax._spec.layouts import LAYOUTS, arrange, restore
from csoftmax._spec.operations import OPERATIONS
from csoftmax._spec.record import CLASSES, Sample
from csoftmax._spec.samples import logits

quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
# Those whose out has the classes; the pair of topk_softmax is tested in tests/ops/test_topk.py.
WITH_OUT = [op for op in OPERATIONS if "overlap" not in op.exempt and op.results[-1].role == CLASSES]
with_out = pytest.mark.parametrize("record", WITH_OUT, ids=lambda op: op.name)


def placed(record, sample):
    """Return the names of the arrays that have the dtype and the shape of out."""
    first = sample.arrays[record.arguments[0].name]
    return [name for name, a in sample.arrays.items() if a.shape == first.shape and a.dtype == first.dtype]


def check(record, sample, out, what, axis=..., expected=None):
    """Write over the arrays that `out` overlaps, and compare with a call on copies."""
    copies = Sample({name: a.copy() for name, a in sample.arrays.items()}, sample.options)
    expected = record.compute(copies, axis) if expected is None else expected
    results = record.call(sample, axis, out=out)
    got = results[-1] if isinstance(results, tuple) else results
    assert got is out
    assert_same_bits(out, expected[-1], what)
    return expected


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
    shape = draw(st.sampled_from([(1, 5), (1, 40), (3, 4), (4, 4), (2, 17), (9, 9), (6, 5), (9, 3)]))
    return shape, draw(windows(shape)), draw(windows(shape)), draw(windows(shape)), draw(st.sampled_from([0, 1]))


@with_out
@quick
@given(case=overlaps(), dtype=st.sampled_from(DTYPES), data=st.data())
def test_any_overlap(record, case, dtype, data):
    """Partial, shifted, transposed, reversed, interleaved: out and inputs are windows of one piece of memory."""
    shape, *views, target, axis = case
    variant = data.draw(st.sampled_from(list(record.variants)))
    sample, _ = arrange(record, record.sample(shape if axis else shape[::-1], dtype, 1, variant=variant), "last axis")
    if axis == 0:
        sample, _ = arrange(record, record.sample(shape[::-1], dtype, 1, variant=variant), "axis 0")
    memory = (np.abs(logits(4096, "float64")) / 8 * (-1 if record.log else 1)).astype(dtype_of(dtype))
    arrays = dict(sample.arrays)
    for name, view in zip(placed(record, sample), views):
        arrays[name] = view(memory)
    sample = Sample(arrays, sample.options)
    before, out = memory.copy(), target(memory)
    expected = check(record, sample, out, f"{variant}, axis {axis}", axis)
    target(before)[...] = expected[-1]
    assert_same_bits(memory, before, "memory outside out")


@with_out
def test_shifted_by_every_distance(record, dtype):
    for k in (1, 7, 33, 5000):
        for distance in (1, 3, 16, 31, k):
            sample = record.sample((4, k), dtype)
            memory = np.zeros(k * 4 + 2 * distance, dtype_of(dtype))
            x = memory[distance : distance + 4 * k].reshape(4, k)
            expected = record.compute(sample)
            for begin in (0, 2 * distance):
                for name in placed(record, sample):
                    x[...] = sample.arrays[name]
                    moved = Sample({**sample.arrays, name: x}, sample.options)
                    out = memory[begin : begin + 4 * k].reshape(4, k)
                    check(record, moved, out, f"K={k} shift {begin - distance}", expected=expected)


@with_out
def test_transposed_onto_itself(record, dtype):
    for k in (2, 16, 65):
        sample = record.sample((k, k), dtype)
        for name in placed(record, sample):
            for turn in (lambda a: a.T, lambda a: a[::-1, ::-1]):
                target = sample.arrays[name].copy()
                check(record, Sample({**sample.arrays, name: target}, sample.options), turn(target), f"K={k}")


@with_out
def test_in_place(record, dtype):
    """Write over each input, in every layout, with every set of options."""
    for variant in record.variants:
        for rows, k in ((3, 2), (40, 30), (17, 200), (9, 4097))[: 4 if variant == "plain" else 3]:
            sample = record.sample((rows, k), dtype, k, variant=variant)
            expected = record.compute(sample)
            for layout in LAYOUTS if variant == "plain" else ("last axis", "axis 0"):
                for name in placed(record, sample):
                    arranged, axis = arrange(record, sample, layout)
                    target = arranged.arrays[name].copy(order="K")
                    arranged = Sample({**arranged.arrays, name: target}, arranged.options)
                    results = record.compute(arranged, axis, out=target)
                    assert_same_results(restore(record, results, layout), expected, f"{variant}, K={k} {layout}")
                    assert np.shares_memory(results[-1], target)


@with_out
def test_every_layout_of_the_destination(record, dtype):
    for rows, k in ((5, 9), (33, 70), (9, 4200)):
        sample = record.sample((rows, k), dtype, k)
        expected = record.compute(sample)
        for name, layout in LAYOUTS.items():
            if name != "3-d middle":
                target, axis = layout(np.zeros((rows, k), dtype_of(dtype)))
                arranged, _ = arrange(record, sample, "axis 0" if axis == 0 else "last axis")
                record.call(arranged, axis, out=target)
                assert_same_bits(target.T if axis == 0 else target, expected[-1], name)


@with_out
def test_in_place_over_several_axes(record):
    if not record.accepts("axis"):
        pytest.skip("it takes no axis")
    for axis in ((0, 2), (2, 0), None, (1,), (0, 1)):
        taken = axis if axis is not None else (0, 1, 2)
        batch = tuple(n for i, n in enumerate((3, 4, 5)) if i not in taken)
        sample = record.sample((int(np.prod(batch)), 60 // int(np.prod(batch))), "float64")
        arrays = {name: a.reshape(3, 4, 5) if a.ndim > 1 else a.reshape(batch) for name, a in sample.arrays.items()}
        first = record.arguments[0].name
        for out in (arrays[first].copy(), np.zeros((6, 4, 10))[::2, :, ::-2]):
            given_arrays = {**arrays, first: out} if out.flags.c_contiguous else arrays
            check(record, Sample(given_arrays, sample.options), out, f"axis {axis}", axis)


@with_out
def test_inputs_that_are_one_array_and_out(record):
    sample = record.sample((4, 100), "float32")
    names = placed(record, sample)
    for k in (5, 100, 5000):
        sample = record.sample((4, k), "float32")
        y = sample.arrays[names[-1]]
        check(record, Sample({**sample.arrays, **dict.fromkeys(names, y)}, sample.options), y, f"K={k}")


@with_out
def test_the_mask_lies_in_out(record):
    """where is read before anything is written, even where out is the same memory."""
    if not record.accepts("where"):
        pytest.skip("it takes no where")
    sample = record.sample((4, 64), "float32")
    memory = np.zeros((4, 64), np.float32)
    where = memory.view(np.bool_).reshape(4, 256)[:, 100:164]
    mask = np.arange(256).reshape(4, 64) % 3 > 0
    if "target" in sample.arrays:
        mask[np.arange(4), sample.arrays["target"]] = True
    where[...] = mask
    expected = record.compute(sample, where=mask)
    record.call(sample, where=where, out=memory)
    assert_same_bits(memory, expected[-1])


@with_out
def test_options_lie_in_out(record):
    """Labels, weights and soft labels are read before anything is written."""
    for variant in record.variants:
        sample = record.sample((40, 30), "float64", variant=variant)
        expected = record.compute(sample)
        for name, a in [*sample.arrays.items(), *sample.options.items()]:
            if isinstance(a, np.ndarray) and a.dtype.itemsize == 8:
                memory = np.zeros((40, 30))
                there = memory.reshape(-1)[7 : 7 + a.size].view(a.dtype).reshape(a.shape) if a.size < 1200 else memory
                there[...] = a
                part = sample.arrays if name in sample.arrays else sample.options
                changed = {**part, name: there}
                moved = Sample(changed, sample.options) if part is sample.arrays else Sample(sample.arrays, changed)
                assert_same_results(record.compute(moved, out=memory), expected, f"{variant}, {name}")


@with_out
def test_out_that_overlaps_itself_is_refused(record):
    sample = record.sample((4, 6), "float64")
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
            record.call(sample, out=out)
    assert np.all(memory == 7)
    expected = record.compute(sample)
    for strides in ((6 * stride, stride), (stride, 4 * stride), (-6 * stride, stride), (9 * stride, stride)):
        out = np.lib.stride_tricks.as_strided(memory[30:], (4, 6), strides)
        record.call(sample, out=out)
        assert_same_bits(out, expected[-1])


@quick
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple),
    strides=st.lists(st.integers(-12, 12), min_size=4, max_size=4),
)
def test_overlap_is_found_exactly(shape, strides):
    """Compare with the definition: two elements share a byte."""
    from csoftmax._arguments.layouts import overlaps_itself

    memory = np.zeros(4000, np.uint8)
    x = np.ndarray(shape, np.uint16, memory, offset=2000, strides=strides[: len(shape)])
    places = sorted(sum(i * s for i, s in zip(index, x.strides, strict=True)) for index in np.ndindex(shape))
    assert overlaps_itself(x) == any(b - a < 2 for a, b in itertools.pairwise(places))


@every_record("overlap")
def test_a_fresh_result_shares_no_memory(record):
    sample = record.sample((3, 5), "float32")
    for result in record.compute(sample):
        assert not any(np.shares_memory(result, a) for a in sample.arrays.values())
