"""Any shape, strides, axis, mask, byte order and kind of array: the bits of the same call on a contiguous copy."""

import math
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from helpers import assert_results_of_layouts, assert_same_results, every_record, looped
from hypothesis import HealthCheck, given, settings

from csoftmax._spec.formats import DTYPES
from csoftmax._spec.layouts import LAYOUTS, arrange, compute_in, misaligned
from csoftmax._spec.operations import OPERATIONS
from csoftmax._spec.record import CLASSES, DRAWS, ROWS, TOP, WHOLE, Sample

SWAPPED = ">" if sys.byteorder == "little" else "<"
quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def change(record, sample, function, roles=(CLASSES,)):
    """Return the call with a function applied to its arrays of some roles."""

    def bring(name, value):
        return function(value) if isinstance(value, np.ndarray) and record.role(name, sample) in roles else value

    return Sample(
        {name: bring(name, a) for name, a in sample.arrays.items()},
        {name: bring(name, a) for name, a in sample.options.items()},
    )


def strided_view(values, steps, order):
    """Return the values in larger memory: steps (0: broadcast from the first), axes in another order."""
    values = np.asarray(values)
    shape = values.shape
    if not shape:
        return values
    memory = np.zeros([1 if steps[i] == 0 else max(shape[i] * abs(steps[i]), 1) for i in order], values.dtype)
    memory = memory.transpose(np.argsort(order)) if shape else memory
    view = memory[tuple(slice(None, None, s) if s else slice(None) for s in steps)]
    view = view[tuple(slice(0, 1 if s == 0 else n) for s, n in zip(steps, shape))]
    view[...] = values[tuple(slice(0, 1) if s == 0 else slice(None) for s in steps)]
    return np.broadcast_to(view, shape)


@st.composite
def calls(draw):
    """A shape, an axis, and for each array of a call its steps and the order of its axes in memory."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 5, 9, 17, 40]), min_size=1, max_size=4).map(tuple))
    while math.prod(shape) > 8000:
        shape = shape[1:]
    axis = draw(
        st.one_of(
            st.none(),
            st.integers(-len(shape), len(shape) - 1),
            st.lists(st.integers(0, len(shape) - 1), unique=True, min_size=1, max_size=len(shape)).map(tuple),
        )
    )
    step = st.sampled_from([1, 1, 1, 2, 3, -1, -2, 0])
    views = [
        ([draw(step) for _ in shape], draw(st.permutations(range(len(shape)))), draw(st.booleans())) for _ in range(3)
    ]
    return shape, axis, views


def normalize(axis, ndim):
    axes = tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    return tuple(a % ndim for a in axes)


def check_view(record, call, dtype, variant):
    shape, axis, views = call
    axes = normalize(axis, len(shape))
    last = range(len(shape) - len(axes), len(shape))
    batch = tuple(n for i, n in enumerate(shape) if i not in axes)
    k, rows = math.prod(shape[a] for a in axes), math.prod(batch)
    sample = record.sample((rows, k), dtype, rows + k, variant=variant)
    given_parts, flat_parts = [], []
    views = iter([*views, *views])
    for part in sample:
        given_part, flat_part = {}, {}
        for name, value in part.items():
            role = record.role(name, sample)
            given_part[name] = flat_part[name] = value
            if role == CLASSES:
                # a number for each row, such as a temperature, has length 1 along the class axis
                of_class = (shape[a] if value.shape[-1] == k else 1 for a in axes)
                whole = np.moveaxis(value.reshape(*batch, *of_class), last, axes)
                steps, order, _ = next(views)
                given_part[name] = view = strided_view(whole, steps, order)
                flat_part[name] = np.array(np.moveaxis(view, axes, last).reshape(value.shape), order="C")
            elif role == ROWS and isinstance(value, np.ndarray):
                steps, _, is_strided = next(views)
                steps = [s or 1 for s in steps[: len(batch)]] if is_strided else [1] * len(batch)
                given_part[name] = strided_view(value.reshape(batch), steps, range(len(batch)))
        given_parts.append(given_part)
        flat_parts.append(flat_part)
    try:
        expected = record.compute(Sample(*flat_parts))
    except ValueError:  # a broadcast mask may leave nothing of a row to draw from
        with pytest.raises(ValueError, match="no mass"):
            record.compute(Sample(*given_parts), axis)
        return
    results = []
    for kind, result in zip(record.results, record.compute(Sample(*given_parts), axis)):
        if kind.role == CLASSES:
            assert result.shape == shape
            result = np.moveaxis(result, axes, last)
        elif kind.role == TOP and len(axes) == 1:
            result = np.moveaxis(result, axes[0], -1)
        if result.ndim or kind.role != ROWS:
            tail = {CLASSES: (k,), TOP: result.shape[-1:], ROWS: (), DRAWS: result.shape[len(batch) :]}[kind.role]
            result = result.reshape(rows, *tail) if result.shape != () or rows == 1 else result
        elif batch == () and expected[len(results)].ndim:
            result = result.reshape(1)
        results.append(result)
    assert_same_results(results, expected, f"{variant} {shape} axis {axis}")


WITH_AXIS = [op for op in OPERATIONS if op.accepts("axis") and "layouts" not in op.exempt]
with_axis = pytest.mark.parametrize("record", WITH_AXIS, ids=lambda op: op.name)


@with_axis
@quick
@given(call=calls(), dtype=st.sampled_from(DTYPES), data=st.data())
def test_any_view_equals_its_contiguous_copy(record, call, dtype, data):
    check_view(record, call, dtype, data.draw(st.sampled_from(list(record.variants))))


@pytest.mark.long
@with_axis
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(call=calls(), dtype=st.sampled_from(DTYPES), data=st.data())
def test_very_many_views(record, call, dtype, data):
    check_view(record, call, dtype, data.draw(st.sampled_from(list(record.variants))))


@every_record("layouts")
@looped("dtype", DTYPES)
def test_every_layout(record, dtype):
    """Check every set of options in every layout that LAYOUTS names."""
    for variant in record.variants:
        for rows, k in ((1, 9), (37, 20), (9, 300)):
            sample = record.sample((rows, k), dtype, k, variant=variant)
            expected = record.compute(sample)
            for layout in LAYOUTS:
                assert_same_results(compute_in(record, sample, layout), expected, f"{variant} {k} {layout}")


@every_record("layouts")
@looped("dtype", DTYPES)
def test_arrays_of_any_strides(record, dtype):
    """Check arrays that have no class axis as well: labels, weights, values and indices."""
    sample = record.sample((6, 24), dtype)
    expected = record.compute(sample)
    views = (
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: misaligned(a) if a.ndim else a,
    )
    for view in views:
        changed = change(record, sample, view, (CLASSES, ROWS, TOP, WHOLE))
        assert_results_of_layouts(record, record.compute(changed), expected)


@with_axis
def test_many_axes(record):
    shape = (2,) * 15
    sample = record.sample((2**14, 2), "float32")
    expected = record.compute(sample)
    arrays = change(record, sample, lambda a: np.moveaxis(a.reshape(shape), -1, 7))
    arrays = change(record, arrays, lambda a: a.reshape(shape[1:]), (ROWS,))
    results = record.compute(arrays, 7)
    for kind, got, right in zip(record.results, results, expected):
        got = np.moveaxis(got, 7, -1) if kind.role in (CLASSES, TOP) else got
        assert_same_results((got.reshape(right.shape),), (right,))


@with_axis
def test_as_many_axes_as_numpy_has(record):
    limit = 32 if np.lib.NumpyVersion(np.__version__) < "2.0.0" else 64
    sample = record.sample((2, 2), "float32")
    deep = (1,) * (limit - 4) + (2, 1, 2)
    arrays = change(record, sample, lambda a: a.reshape(deep))
    arrays = change(record, arrays, lambda a: a.reshape(deep[:-1]), (ROWS,))
    for got, right in zip(record.compute(arrays, -1), record.compute(sample)):
        assert_same_results((got.reshape(right.shape),), (right,))


def move_classes(record, sample, batch, axis):
    """Return the call with rows of a shape and the classes along an axis, contiguous."""

    def move(a):
        return np.ascontiguousarray(np.moveaxis(a.reshape(*batch, a.shape[-1]), -1, axis))

    return change(record, change(record, sample, move), lambda a: a.reshape(batch), (ROWS,))


@with_axis
@looped("dtype", DTYPES)
def test_large_transposed_arrays(record, dtype):
    """Check axes of every kind of inner size, wide enough for tiles, packed groups and long rows."""
    for shape, axis in (((6, 50, 32), 1), ((3, 21, 9, 64), 1), ((200, 300), 0), ((40, 100, 4), 1), ((4200, 3), 0),
                        ((4096, 20), 0), ((2, 513, 300), 1), ((3, 17, 5), 0)):  # fmt: skip
        batch = tuple(n for i, n in enumerate(shape) if i != axis)
        k, rows = shape[axis], math.prod(batch)
        sample = record.sample((rows, k), dtype, len(shape))
        expected = record.compute(sample)
        moved = move_classes(record, sample, batch, axis)
        for kind, got, right in zip(record.results, record.compute(moved, axis), expected):
            if kind.role in (CLASSES, TOP):
                assert kind.role == TOP or got.flags.c_contiguous
                got = np.moveaxis(got, axis, -1)
            assert_same_results((got.reshape(right.shape),), (right,), f"{shape} axis {axis}")


@every_record("layouts")
def test_where_of_every_layout(record):
    if not record.accepts("where"):
        pytest.skip("it takes no where")
    mask = np.random.default_rng(0).random((24, 50)) < 0.7
    mask[:, 0] = True
    sample = record.sample((24, 50), "float32")
    if "target" in sample.arrays:
        mask[np.arange(24), sample.arrays["target"]] = True
    expected = record.compute(sample, where=mask)
    wide = np.zeros((48, 100), bool)
    wide[::2, ::-2] = mask
    for where in (np.asfortranarray(mask), wide[::2, ::-2], misaligned(mask.view(np.uint8)).view(bool), mask.tolist()):
        assert_same_results(record.compute(sample, where=where), expected)
    row = np.logical_or.reduce(mask)
    whole = np.broadcast_to(row, (24, 50)).copy()
    assert_same_results(record.compute(sample, where=row), record.compute(sample, where=whole))
    odd = np.full((24, 50), 2, np.uint8).view(bool)  # a true byte that is not 1
    for everything in (True, np.True_, odd):
        assert_same_results(record.compute(sample, where=everything), record.compute(sample))


@looped("dtype", ["float16", "float32", "float64"])
@every_record("layouts")
def test_byte_order(record, dtype):
    sample = record.sample((5, 33), dtype)
    expected = record.compute(sample)

    def swap(a):
        return a.astype(a.dtype.newbyteorder(SWAPPED))

    swapped = change(record, sample, swap, (CLASSES, ROWS, TOP, WHOLE))
    results = record.compute(swapped)
    assert record.name == "to_csr" or all(result.dtype.isnative for result in results)  # SciPy keeps the order
    assert_same_results(results, expected)
    if record.has_out and record.results[-1].role == CLASSES:
        out = np.zeros(expected[-1].shape, expected[-1].dtype.newbyteorder(SWAPPED))
        assert_same_results(record.compute(sample, out=out), expected)
        target = next(iter(swapped.arrays.values()))
        assert_same_results(record.compute(swapped, out=target), expected)


@every_record("layouts")
@looped("dtype", DTYPES)
def test_read_only_inputs(record, dtype):
    sample = record.sample((5, 33), dtype)
    before = change(record, sample, np.copy, (CLASSES, ROWS, TOP, WHOLE))
    for a in sample.arrays.values():
        a.flags.writeable = False
    results = record.compute(sample)
    assert all(result.flags.writeable for result in results if result.ndim)
    assert_same_results(tuple(sample.arrays.values()), tuple(before.arrays.values()))


@every_record("layouts")
def test_fields_of_structured_arrays(record):
    """Elements at odd addresses with odd strides."""

    def field(a):
        structured = np.zeros(a.shape, [("tag", "u1"), ("value", a.dtype), ("rest", "u2")])
        structured["value"] = a
        return structured["value"]

    sample = record.sample((6, 21), "float32")
    expected = record.compute(sample)
    fields = change(record, sample, field, (CLASSES, ROWS, TOP))
    assert_same_results(record.compute(fields), expected)
    if record.has_out and record.results[-1].role == CLASSES:
        first = next(iter(fields.arrays.values()))
        assert_same_results(record.compute(fields, out=first), expected)
        assert not first.base["tag"].any()
        assert not first.base["rest"].any()


@looped("name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
@with_axis
def test_integers_compute_in_float64(record, name):
    """As float64, but for topk, which compares integers exactly and keeps their dtype (tests/ops/test_topk.py)."""
    first = record.arguments[0].name
    if record.inputs > 1 and record.arguments[1].name == "y":
        pytest.skip("a gradient of integers is one of probabilities, which are none")
    sample = record.sample((4, 15), "float64")
    x = np.arange(60).reshape(4, 15).astype(name)
    expected = record.compute(Sample({**sample.arrays, first: x.astype(np.float64)}, sample.options))
    for integers in (x, x.astype(x.dtype.newbyteorder(SWAPPED)), np.asfortranarray(x)):
        results = record.compute(Sample({**sample.arrays, first: integers}, sample.options))
        if record.name == "topk":
            values, *others = results
            assert values.dtype == name
            results = type(results)((values.astype(np.float64), *others))
        assert_same_results(results, expected)


@every_record("layouts")
def test_lists_tuples_and_buffers(record):
    sample = record.sample((2, 3), "float64")
    expected = record.compute(sample)
    roles = (CLASSES, ROWS, TOP, WHOLE)
    for kind in (lambda a: a.tolist(), lambda a: tuple(map(tuple, a)) if a.ndim > 1 else tuple(a), memoryview):
        assert_same_results(
            record.compute(Sample(change(record, sample, kind, roles).arrays, sample.options)), expected
        )


@every_record("layouts")
def test_subclasses_give_base_arrays(record, tmp_path):
    sample = record.sample((4, 30), "float32")
    expected = record.compute(sample)
    maps = {}
    for name, a in sample.arrays.items():
        maps[name] = np.memmap(tmp_path / name, a.dtype, "w+", shape=a.shape)
        maps[name][...] = a
    results = record.compute(Sample(maps, sample.options))
    assert all(type(result) is np.ndarray for result in results)
    assert_same_results(results, expected)

    class Sub(np.ndarray):
        pass

    viewed = {name: a.view(Sub) for name, a in sample.arrays.items()}
    result = record.call(Sample(viewed, sample.options))
    for part in result if isinstance(result, tuple) else (result,):
        assert not isinstance(part, Sub)


@every_record("layouts")
def test_objects_with_array_protocol(record):
    class Holder:
        def __init__(self, x):
            self.x = x

        def __array__(self, dtype=None, copy=None):
            return self.x

    sample = record.sample((2, 8), "float32")
    held = {name: Holder(a) for name, a in sample.arrays.items()}
    assert_same_results(record.compute(Sample(held, sample.options)), record.compute(sample))


@with_axis
def test_axis_is_any_index(record):
    sample = record.sample((15, 4), "float32")
    cube = move_classes(record, sample, (3, 5), 1)
    expected = record.compute(cube, 1)
    for axis in (np.int64(1), -2, (1,), np.array(1)):
        assert_same_results(record.compute(cube, axis), expected, f"axis {axis}")
    default, last = record.compute(sample), record.compute(sample, -1)
    assert_same_results(default, last)


@every_record("layouts")
def test_device_cpu_is_the_same(record):
    if not record.accepts("device"):
        pytest.skip("it takes no device")
    sample = record.sample((3, 40), "float32")
    assert_same_results(record.compute(sample, device="cpu"), record.compute(sample))


@with_axis
def test_arranged_calls_are_what_they_say(record):
    """The helper that brings calls into layouts does bring other strides."""
    sample = record.sample((5, 7))
    first = record.arguments[0].name
    for layout in LAYOUTS:
        arranged, axis = arrange(record, sample, layout)
        x = arranged.arrays[first]
        assert x.shape[axis] == 7
        assert x.flags.c_contiguous == (
            layout in ("last axis", "axis 0", "misaligned", "misaligned axis 0", "3-d middle")
        )
