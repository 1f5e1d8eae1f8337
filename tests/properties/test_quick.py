"""The quick path of small calls (quick.c) gives the results of the Python functions, and takes no other calls.

A tuple of one axis and device="cpu" are not quick, so that the same call with one of them is the reference.
"""

import contextlib
import gc
import inspect
import operator
import pickle
import subprocess
import sys
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from helpers import assert_same_bits, assert_same_results, every_record, looped
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stn

import csoftmax
from csoftmax._spec.operations import SOFTMAX_FAMILY

RUN = "csoftmax._ops.softmax._run_softmax"  # what the Python function of a call that is not plain calls


def slow(*args, **options):
    raise AssertionError("the Python function was called")


def unaligned(x):
    return np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(x.dtype).reshape(x.shape)


VIEWS = {
    "plain": lambda x: x,
    "transposed": lambda x: x.transpose(2, 0, 1),
    "Fortran": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 2)[::2, :, ::3],
    "reversed": lambda x: x[::-1, :, ::-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], (4, *x.shape[1:])),
    "unaligned": unaligned,
}


@every_record("quick")
def test_every_operation_equals_its_python_function(record, dtype):
    for variant in record.variants:
        for shape in ((1, 1), (3, 5), (33, 70), (2, 5000)):
            sample = record.sample(shape, dtype, variant=variant)
            got, expected = record.compute(sample), record.compute(sample, device="cpu")
            assert_same_results(got, expected, f"{variant} {shape}")
            for result, right in zip(got, expected, strict=True):
                assert type(result) is type(right)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@looped("view", VIEWS)
def test_equals_the_python_function(op, dtype, view, quick):
    arrays = [VIEWS[view](a) for a in op.make((3, 4, 5), dtype)]
    for axis in range(-3, 3):
        for options in ({}, {"temperature": 2.5}, {"temperature": 3}, {"num_threads": 2, "where": None}):
            got = quick(op.function(), *arrays, axis, **options)
            expected = op.function()(*arrays, (axis,), **options)
            assert_same_bits(got, expected, f"axis {axis}, {options}")
            assert got.strides == expected.strides
            assert got.flags.owndata
            assert got.flags.writeable


@given(
    data=st.data(),
    op=st.sampled_from(SOFTMAX_FAMILY),
    shape=stn.array_shapes(min_dims=2, max_dims=4, max_side=40),
    dtype=st.sampled_from(["float32", "float64", "float16"]),
)
@settings(deadline=None, max_examples=60)
def test_any_shape(data, op, shape, dtype):
    """Around the sizes below which a call takes a path of its own, rows of special values among them."""
    arrays = op.make(shape, dtype)
    for value in (np.nan, np.inf, -np.inf, 6e4):
        at = data.draw(st.integers(0, arrays[0].size - 1))
        if data.draw(st.booleans()):
            arrays[0].flat[at] = value
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    assert_same_bits(op.function()(*arrays, axis), op.function()(*arrays, (axis,)))
    if op.has_out and op.keeps_axis and op.inputs == 1:
        expected = op.function()(*arrays, (axis,))
        op.function()(*arrays, axis, out=arrays[0])
        assert_same_bits(arrays[0], expected, "in place")


def test_out(op, quick):
    if not op.has_out:
        with pytest.raises(TypeError, match="out"):
            op.function()(*op.make((3, 5)), out=np.zeros(3, np.float32))
        return
    compute = quick if op.keeps_axis else operator.call  # a result without the axis has no quick way with out
    for axis in (-1, 0, 1):
        arrays = op.make((33, 70))
        expected = op.function()(*arrays, (axis,))
        out = np.empty_like(expected)
        assert compute(op.function(), *arrays, axis, out=out) is out
        assert_same_bits(out, expected)
        for a in arrays if op.keeps_axis else ():  # each of them as the result
            copies = [b.copy() for b in arrays]
            target = next(c for b, c in zip(arrays, copies, strict=True) if b is a)
            assert quick(op.function(), *copies, axis, out=target) is target
            assert_same_bits(target, expected)


def test_dtypes_that_are_equal_but_other_objects(op, quick):
    """Those of arrays that come out of a pickle, as from another process."""
    arrays = pickle.loads(pickle.dumps(op.make((3, 5))))
    assert arrays[0].dtype is not np.dtype(np.float32), "the test shows nothing"
    expected = op.function()(*arrays, (-1,))
    assert_same_bits(quick(op.function(), *arrays), expected)
    if op.has_out and op.keeps_axis:
        out = pickle.loads(pickle.dumps(np.zeros_like(expected)))
        assert_same_bits(quick(op.function(), *arrays, out=out), expected)
        tagged = [a.astype(np.dtype("f4", metadata={"unit": "nat"})) for a in arrays]
        assert quick(op.function(), *tagged).dtype.metadata == {"unit": "nat"}


def test_scalars(quick):
    for dtype in (np.float16, np.float32, np.float64):
        x = np.array([1, 2, 3], dtype)
        got, expected = quick(csoftmax.logsumexp, x), csoftmax.logsumexp(x, (0,))
        assert type(got) is type(expected) is dtype
        assert got == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"x": [[1.0, 2.0]]},
        {"axis": None},
        {"axis": (0, 1)},
        {"axis": True},
        {"axis": np.int64(1)},
        {"temperature": 0.0},
        {"temperature": np.inf},
        {"temperature": np.float64(2)},
        {"where": True},
        {"device": "cpu"},
        {"num_threads": np.int64(1)},
        {"num_threads": 0},
        {"num_threads": 2**70},
        {"num_threads": True},
        {"x": np.float32(3)},
        {"x": np.zeros((0, 3), np.float32)},
        {"x": np.zeros((2, 3), np.int32)},
        {"x": np.zeros((2, 3), ml_dtypes.bfloat16)},
        {"x": np.zeros((2, 3), np.dtype(np.float32).newbyteorder())},
        {"x": np.zeros((2, 3), np.float32).view(np.matrix)},
        {"out": np.zeros((3, 2), np.float32).T},
    ],
    ids=str,
)
def test_not_quick(arguments, monkeypatch):
    """Nothing of it is decided in C."""
    x = arguments.pop("x", np.zeros((2, 3), np.float32))
    called = []
    monkeypatch.setattr(RUN, lambda *args, **options: called.append((args, options)))
    csoftmax.softmax(x, **arguments)
    ((args, options),) = called
    assert args[0] is x
    assert args[2] == "softmax"
    for name, value in arguments.items():
        assert (args[1] if name == "axis" else options[name]) is value


def test_overlapping_memory_is_not_quick(monkeypatch):
    monkeypatch.setattr(RUN, slow)
    memory = np.zeros(20, np.float32)
    for x, out in ((memory[:12], memory[4:16]), (memory[4:16], memory[:12]), (memory[:12], memory[11::-1])):
        with pytest.raises(AssertionError, match="Python function"):
            csoftmax.softmax(x, out=out)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ((), {}),
        ((1,), {"x": 1}),
        ((1, -1, 2.0), {}),
        ((1, -1), {"axis": 0}),
        ((1,), {"temperatur": 1.0}),
        ((1,), {"keepdims": True}),
        ((1,), {"out": None, "y": 2}),
    ],
)
def test_wrong_calls_are_refused_in_python_words(args, options):
    def softmax(x, axis=-1, *, temperature=1.0, where=None, out=None, device=None, num_threads=None):
        raise AssertionError

    softmax.__qualname__ = "softmax"
    args = [np.zeros((2, 3), np.float32) if i == 0 else a for i, a in enumerate(args)]
    with pytest.raises(TypeError) as expected:
        softmax(*args, **options)
    with pytest.raises(TypeError) as got:
        csoftmax.softmax(*args, **options)
    assert str(got.value) == str(expected.value)


@pytest.mark.parametrize("num_threads", [0, -1, 1.5, "2", True])
def test_num_threads_is_checked_before_anything_is_written(num_threads):
    x, out = np.ones((2, 3), np.float32), np.full((2, 3), 7, np.float32)
    with pytest.raises((TypeError, ValueError), match="num_threads"):
        csoftmax.softmax(x, out=out, num_threads=num_threads)
    assert (out == 7).all()


def test_no_argument_runs_code_while_buffers_are_looked_at():
    """An index that turns `out` into smaller elements was taken for one of the right size."""

    class Index:
        def __index__(self):
            out.dtype = np.float32
            return 1

    memory = np.full((2, 2048), 7.0)
    out = memory[:1, :1024].reshape(2, 512)
    with pytest.raises((TypeError, ValueError)):
        csoftmax.softmax(np.zeros((2, 1024)), out=out, num_threads=Index())
    assert (memory[0, 1024:] == 7).all()
    assert (memory[1] == 7).all()


def test_without_docstrings():
    code = "import csoftmax as c, inspect; print(c.softmax.__doc__, inspect.signature(c.softmax).parameters['axis'])"
    done = subprocess.run([sys.executable, "-OO", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout in ("None axis=-1\n", " axis=-1\n")


def test_arguments_by_name(quick):
    x = np.float32([[1, 2, 3], [4, 5, 7]])
    y = csoftmax.softmax(x)
    assert_same_bits(csoftmax.softmax(x=x), y)  # in Python
    assert_same_bits(quick(csoftmax.softmax, x, axis=-1), y)
    assert_same_bits(csoftmax.softmax(x, **{"".join(["ax", "is"]): -1}), y)  # a name that is not interned
    assert_same_bits(csoftmax.softmax_vjp(dy=x, y=y), csoftmax.softmax_vjp(x, y))
    assert quick(csoftmax.logsumexp, x, keepdims=False).shape == (2,)
    assert csoftmax.logsumexp(x, keepdims=True).shape == (2, 1)


def test_they_are_functions_to_everybody(op):
    function = op.function()
    assert function.__name__ == function.__qualname__ == op.name
    assert function.__module__ == "csoftmax"
    assert pickle.loads(pickle.dumps(function)) is function
    parameters = inspect.signature(function).parameters
    assert list(parameters)[: op.inputs + 1] == (["x", "axis"] if op.inputs == 1 else ["dy", "y", "axis"])
    assert parameters["temperature"].default == 1.0
    assert parameters["temperature"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "\nParameters\n----------\n" in inspect.getdoc(function)


def test_no_reference_is_lost_or_kept(op):
    """Quick calls, slow ones and refused ones."""
    arrays, axis, t = op.make((4, 6)), 1000 - 999, float("2.5")
    out = np.empty_like(op.function()(*arrays, axis))

    def calls():
        for options in ({}, {"temperature": t}, {"out": out} if op.has_out else {"keepdims": False}):
            op.function()(*arrays, axis, **options)
        op.function()(*arrays, (axis,))
        op.function()(*(a[:, ::2] for a in arrays), axis)
        for wrong in ({"num_threads": 0}, {"axis": 7}, {"nothing": t}):
            with contextlib.suppress(TypeError, ValueError):
                op.function()(*arrays, **wrong)

    watched = [*arrays, out, t, np.dtype(np.float32), np.empty, op.function()]
    calls()
    gc.collect()  # of the tests before
    before = [sys.getrefcount(w) for w in watched]
    tracemalloc.start()
    try:
        for _ in range(200):
            calls()
        gc.collect()
        held = tracemalloc.get_traced_memory()[0]
        for _ in range(1000):
            calls()
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < held + 30_000, "30 bytes a round"
    finally:
        tracemalloc.stop()
    assert [sys.getrefcount(w) for w in watched] == before
