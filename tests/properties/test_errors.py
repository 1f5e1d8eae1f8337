"""A wrong argument: the right exception, a message that names argument, value and what is allowed, out untouched."""

import decimal
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import every_record, looped, run_python

import csoftmax
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.operations import OPERATIONS
from csoftmax._spec.record import CLASSES, Sample


def with_option(option):
    """Parametrise a test with every operation that takes an option."""
    records = [op for op in OPERATIONS if op.accepts(option)]
    return pytest.mark.parametrize("record", records, ids=lambda op: op.name)


with_axis, with_threads, with_device, with_temperature = map(
    with_option, ("axis", "num_threads", "device", "temperature")
)
with_out = pytest.mark.parametrize(
    "record", [op for op in OPERATIONS if op.has_out and op.results[-1].role == CLASSES], ids=lambda op: op.name
)


def good_call(record):
    """Return the named arguments of a call on (3, 4) float32 that is right."""
    return record.named(record.sample((3, 4), "float32", seed=1))


def refused(record, error, *patterns, **changes):
    """The call raises the error with all patterns in the message, and out keeps what it held."""
    arguments = {**good_call(record), **changes}
    if "out" not in changes and record.has_out and record.results[-1].role == CLASSES:
        arguments["out"] = np.full((3, 4), 7, np.float32)
    out = arguments.get("out")
    before = out.copy() if type(out) is np.ndarray else None
    with pytest.raises(error) as caught:
        record.function()(**arguments)
    for pattern in patterns:
        assert pattern in str(caught.value), f"{pattern!r} is not in the message: {caught.value}"
    if before is not None:
        assert np.array_equal(out, before), "out has changed"
    return str(caught.value)


def float_arguments(record):
    """Return the names of the arrays that must be of floating type."""
    sample = record.sample((3, 4), "float32")
    given = record.named(sample)
    return [name for name in sample.arrays if name in given and given[name].dtype == np.float32]


# The errors of each record


@every_record("errors")
def test_the_good_call_is_taken(record):
    record.function()(**good_call(record))


@pytest.mark.parametrize("record", [op for op in OPERATIONS if op.is_available], ids=lambda op: op.name)
def test_bad_calls_of_the_record(record):
    for bad in record.bad_calls:
        message = refused(record, bad.exception(), **bad.changes)
        assert re.search(bad.message, message), f"{bad.message!r} is not in the message: {message}, {bad.changes}"


# Arrays


@every_record("errors")
def test_dtypes_that_are_not_taken(record):
    names = [name for name in float_arguments(record) if good_call(record)[name].shape == (3, 4)]
    for dtype in ("?", "complex64", "complex128", "object", "longdouble", "U3", "S3", "datetime64[s]", "V8", "m8[s]"):
        bad = np.zeros((3, 4), dtype)
        for name in names:
            refused(record, TypeError, name, str(bad.dtype), "float16", "float32", "float64", **{name: bad})


@looped("value", ["text", {1: 2}, object(), [1, None], {1.0, 2.0}, None])
@every_record("errors")
def test_things_that_are_not_arrays(record, value):
    for name in float_arguments(record)[:1]:
        refused(record, TypeError, name, "dtype", **{name: value})


@every_record("errors")
def test_masked_arrays(record):
    for name in float_arguments(record):
        x = good_call(record)[name]
        refused(record, TypeError, name, "masked array", **{name: np.ma.masked_array(x, mask=x > 0)})
    if record.accepts("where"):
        where = np.ma.masked_array(np.ones((3, 4), bool), mask=np.eye(3, 4) > 0)
        refused(record, TypeError, "where", "masked array", where=where)


def test_masked_logits_of_a_loss():
    x = np.zeros((3, 4), np.float32)
    with pytest.raises(
        TypeError, match=r"logits is a masked array; .* to a function without where, logits.filled\(-numpy.inf\)"
    ):
        csoftmax.cross_entropy(np.ma.masked_array(x, mask=x > 3), np.zeros(3, int))


@every_record("errors")
def test_ragged_lists(record):
    for name in float_arguments(record)[:1]:
        refused(record, ValueError, name, **{name: [[1.0, 2.0], [3.0]]})


@every_record("errors")
def test_cupy_arrays(record):
    """Never converted silently."""
    there = {"__array__": lambda self, *a, **k: np.zeros((3, 4)), "device": SimpleNamespace(id=10**6)}
    fake = type("ndarray", (), {"__module__": "cupy", **there})
    for name in float_arguments(record)[:1]:
        refused(record, csoftmax.DeviceError, "CuPy array cannot be used", 'device="cpu"', **{name: fake()})


def test_y_is_missing():
    """In a process of its own: this has ended in a segmentation fault."""
    for name in ("softmax_vjp", "log_softmax_vjp"):
        done = run_python(f"import numpy as np, csoftmax; csoftmax.{name}(np.ones((2, 3)), None)", check=False)
        assert done.returncode == 1
        assert "TypeError: y has dtype object" in done.stderr, done.stderr


# Options that many functions have


@looped("axis", [2, -3, 100, (0, 2), (0, -3), 10**25, -(10**25)])
@with_axis
def test_axis_out_of_range(record, axis):
    refused(record, (ValueError, IndexError), "axis", axis=axis)


@looped("axis", [(0, 0), (1, -1), (0, 1, 0)])
@with_axis
def test_axis_twice(record, axis):
    refused(record, ValueError, "axis", str(axis), axis=axis)


@looped("axis", [1.0, "1", [0, 1], (0, 1.0), np.array([0, 1]), b"0", {0}])
@with_axis
def test_axis_of_another_type(record, axis):
    refused(record, TypeError, "axis", "int", axis=axis)


@looped("axis", [True, False, np.True_, np.array(False), (True,), (0, True), (False, np.True_)])
@with_axis
def test_axis_is_no_bool(record, axis):
    refused(record, TypeError, "axis", "int", "bool", repr(axis), axis=axis)


def test_keepdims_in_place_of_axis():
    with pytest.raises(TypeError, match="axis must be an int, a tuple of ints or None, not a bool, got True"):
        csoftmax.logsumexp(np.zeros((2, 3)), True)


@every_record("errors")
def test_integers_that_are_no_bools(record):
    for name in ("k", "n_classes", "ignore_index", "num_threads", "chunk_bytes", "size", "top_k", "rng", "axis"):
        for value in (True, False, np.True_, np.array(True)) if record.accepts(name) else ():
            refused(record, TypeError, name, **{name: value})


def test_no_labels_and_a_bad_option():
    with pytest.raises(TypeError, match="ignore_index must be an int, got True"):
        csoftmax.check_labels([], 3, ignore_index=True)


@looped("dtype", ["int64", "uint8", "bool"])
@every_record("errors")
def test_one_hot_rows_are_floating(record, dtype):
    if "target" not in good_call(record) or record.name == "check_labels":
        pytest.skip("it takes no soft labels")
    if dtype == "bool" and record.accepts("positives"):
        pytest.skip("bools are sets of positives")
    message = refused(record, (TypeError, ValueError), "target", dtype, target=np.eye(3, 4).astype(dtype))
    assert "must be floating-point: convert them with target.astype(numpy.float32)" in message


@looped("value", [-1.0, -1e-300, -np.inf, np.nan, -5, np.float32(-2), decimal.Decimal(-1)])
def test_temperatures_that_are_not_positive(op, value):
    allowed = "at least 0" if op.inputs == 1 else "positive"
    refused(op, ValueError, "temperature", repr(value), allowed, temperature=value)


@looped("value", [0, 0.0, -0.0, np.inf])
def test_limits_of_temperature_have_no_gradient(op, value):
    if op.inputs == 1:
        assert op.function()(np.zeros((3, 4)), temperature=value) is not None
    else:
        refused(op, ValueError, "temperature", repr(value), "positive and finite", temperature=value)


@with_temperature
def test_temperatures_of_another_type(record):
    if record.name == "sample":
        pytest.skip("it takes one temperature a row")
    families = ("divergence", "rankings", "segments")
    takes_rows = any("T a row" in name for name in record.variants) or record.family in families
    one_for_all = [] if takes_rows else [[1.0], np.ones(1)]
    for value in ("1", b"1", None, 1j, True, np.True_, {}, object(), *one_for_all):
        refused(record, TypeError, "temperature", "real number", temperature=value)


@with_temperature
def test_a_temperature_that_float64_cannot_hold(record):
    refused(record, (ValueError, TypeError), "temperature", temperature=10**400)


def test_integers_beyond_float64():
    with pytest.raises(ValueError, match="within the range of float64, got an integer of 1329 bits"):
        csoftmax.softmax(np.zeros(3), temperature=10**400)


def test_temperatures_that_are_taken(op):
    arrays = op.make((3, 4))
    for value in (2, np.float32(2), np.int8(2), np.array(2.0), decimal.Decimal(2)):
        assert np.array_equal(op.function()(*arrays, temperature=value), op.function()(*arrays, temperature=2.0))


@pytest.mark.parametrize("value", ["no", "", 0.0, 0, 1, np.int64(1), np.zeros(3), np.array(True), [], "True"], ids=repr)
def test_flags_are_bools(value):
    """A word such as "no" would count as True."""
    x = np.zeros((3, 4))
    for name, function in (("largest", csoftmax.topk), ("sorted", csoftmax.topk), ("sorted", csoftmax.topk_softmax)):
        with pytest.raises(TypeError, match=f"{name} must be a bool, got"):
            function(x, 2, **{name: value})
        assert function(x, 2, **{name: np.True_}).values.shape == (3, 2)


@pytest.mark.parametrize("value", ["no", 0.0, 0, 1, np.zeros(3)])
def test_keepdims_is_a_bool(value):
    x = np.zeros((3, 4))
    with pytest.raises(TypeError, match="keepdims must be a bool, got"):
        csoftmax.logsumexp(x, keepdims=value)
    assert csoftmax.logsumexp(x, keepdims=np.True_).shape == (3, 1)


@every_record("errors")
def test_where(record):
    if not record.accepts("where"):
        pytest.skip("it takes no where")
    x = np.zeros((3, 4), np.float32)
    for bad in (x, x.astype(np.uint8), [[0, 1, 1, 0]], 1, None.__class__, "yes"):
        refused(record, TypeError, "where", "bool", where=bad)
    for shape in ((4, 3), (2, 4), (3, 3), (1, 3, 4, 1), (0,), (2, 3, 4)):
        refused(record, ValueError, "where", str(shape), "(3, 4)", where=np.ones(shape, bool))


# out


@with_out
def test_out(record):
    for shape in ((4, 3), (3, 5), (12,), (1, 3, 4), (), (3, 4, 1), (0, 4)):
        refused(record, ValueError, "out", str(shape), "(3, 4)", out=np.zeros(shape, np.float32))
    for dtype in ("float64", "float16", "int32", "complex64", "bool", "object", dtype_of("bfloat16")):
        refused(record, TypeError, "out", str(np.dtype(dtype)), "float32", out=np.zeros((3, 4), dtype))
    frozen = np.full((3, 4), 7, np.float32)
    frozen.flags.writeable = False
    refused(record, ValueError, "out", "read-only", out=frozen)
    refused(record, ValueError, "out", "read-only", out=np.broadcast_to(np.float32(0), (3, 4)))
    x = np.zeros((3, 4), np.float32)
    for bad in (x.tolist(), "out", 3, memoryview(x), bytearray(48), np.ma.masked_array(x)):
        refused(record, TypeError, "out", "numpy.ndarray", type(bad).__name__, out=bad)
    integers = {name: good_call(record)[name].astype(int) for name in float_arguments(record)}
    refused(record, TypeError, "float64", out=np.zeros((3, 4), np.float32), **integers)


@every_record("errors")
def test_out_where_there_is_none(record):
    if record.has_out:
        pytest.skip("it takes out")
    refused(record, TypeError, "out", out=np.zeros(3, np.float32))


@with_out
def test_out_is_untouched_whatever_else_is_wrong(record):
    """In many rows, where threads write, the last of which is bad."""
    for changes in ({"axis": 7}, {"temperature": -1}, {"where": 1.0}, {"device": "cuda:1000000"}, {"num_threads": 0}):
        if record.accepts(next(iter(changes))):
            refused(record, (TypeError, ValueError, RuntimeError), **changes)


@looped("bad", [50, -7])
@every_record("errors")
def test_a_bad_label_is_found_before_anything_is_written(record, bad):
    if "target" not in (argument.name for argument in record.arguments):
        pytest.skip("it takes no labels")
    sample = record.sample((3000, 50), "float32")
    labels = sample.arrays["target"].copy()
    labels[2999] = bad
    arrays = {**sample.arrays, "target": labels}
    first = next(iter(arrays.values()))
    before = first.copy()
    options = {"out": first} if record.has_out else {}
    place = "2999, 0" if record.family == "segments" else "2999"  # of the row's segment
    with pytest.raises(IndexError, match=rf"target\[{place}\] is {bad}"):
        record.call(Sample(arrays, sample.options), **options)
    assert np.array_equal(first, before)


@looped("bad", [-1e-30, np.nan, np.inf])
@every_record("errors")
def test_a_bad_soft_label_is_found_before_anything_is_written(record, bad):
    soft = next((name for name, chosen in record.variants.items() if chosen.soft), None)
    if soft is None or record.family == "crf":
        pytest.skip("it takes no soft labels, or sets of labels, of which none is bad")
    sample = record.sample((3000, 50), "float32", variant=soft)
    sample.arrays["target"][2999, 49] = bad
    first = next(iter(sample.arrays.values()))
    before = first.copy()
    options = {"out": first} if record.has_out else {}
    with pytest.raises(ValueError, match=r"at \(2999, 49\)"):
        record.call(sample, **options)
    assert np.array_equal(first, before)


# Devices and threads


@with_device
def test_devices_that_do_not_exist(record):
    for device in ("gpu", "CUDA", "cuda:", "cuda:x", "cuda:²", "cuda:-1", "cuda:1.5", "", 0, 1.5, b"cpu", ["cpu"]):
        refused(record, ValueError, "device", repr(device), '"cpu"', '"cuda"', device=device)


@with_device
def test_device_that_is_not_there(record):
    """The message says what is missing: CuPy, a driver, or just so many devices."""
    refused(record, csoftmax.DeviceError, "cuda:1000000", 'device="cpu"', device="cuda:1000000")
    assert issubclass(csoftmax.DeviceError, RuntimeError)


def test_what_is_missing(monkeypatch):
    from csoftmax import _cuda

    x = np.zeros((3, 4))
    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    with pytest.raises(csoftmax.DeviceError, match=r"CuPy cannot be imported.*pip install 'csoftmax\[cuda13x\]'"):
        csoftmax.softmax(x, device="cuda")
    assert _cuda.state()["available"] is False
    runtime = SimpleNamespace(getDeviceCount=lambda: 0)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    with pytest.raises(csoftmax.DeviceError, match="there is no CUDA device"):
        csoftmax.softmax(x, device="cuda")


@looped("value", [0, -1, -(10**30)])
@with_threads
def test_num_threads_that_are_not_positive(record, value):
    refused(record, ValueError, "num_threads", str(value), "at least 1", num_threads=value)


@with_threads
def test_num_threads_of_another_type(record):
    for value in (True, False, 1.5, 2.0, "2", [1], np.array([1, 2])):
        refused(record, TypeError, "num_threads", "int", num_threads=value)


@with_threads
def test_num_threads_that_are_taken(record):
    sample = record.sample((3, 4))
    expected = record.compute(sample)
    for value in (1, 2, 10**30, np.int8(1), None):
        for got, right in zip(record.compute(sample, num_threads=value), expected):
            assert np.array_equal(got, right, equal_nan=True)


@pytest.mark.parametrize("setter", [csoftmax.set_num_threads, lambda n: csoftmax.threads(n).__enter__()])
def test_setting_threads(setter):
    before = csoftmax.get_num_threads()
    for value in (0, -3):
        with pytest.raises(ValueError, match=f"num_threads must be at least 1, got {value}"):
            setter(value)
    for value in (True, 1.0, "1"):
        with pytest.raises(TypeError, match="num_threads must be an int"):
            setter(value)
    assert csoftmax.get_num_threads() == before


@every_record("errors")
def test_unknown_keywords_and_positions(record):
    refused(record, TypeError, temprature=2.0)
    sample = record.sample((3, 4))
    with pytest.raises(TypeError):
        record.function()(*sample.arrays.values(), *range(9))
    with pytest.raises(TypeError):
        record.function()()


def test_show_config():
    with pytest.raises(ValueError, match=r"mode.*'dict'"):
        csoftmax.show_config("dict")


# The environment, read once at import

IMPORT = "import csoftmax"


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "neon,avx2", " scalar", "neon"])
def test_an_instruction_set_that_is_not_there(isa):
    if isa == "neon" and "neon" in csoftmax.show_config("dicts")["isa"]["available"]:
        pytest.skip("it is there")
    done = run_python(IMPORT, check=False, CSOFTMAX_ISA=isa)
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert f"CSOFTMAX_ISA={isa}" in done.stderr
    assert "scalar" in done.stderr


def test_an_instruction_set_that_is_there():
    for isa in csoftmax.show_config("dicts")["isa"]["available"]:
        code = "import csoftmax; print(csoftmax.show_config('dicts')['isa']['used'])"
        assert run_python(code, CSOFTMAX_ISA=isa).stdout.strip() == isa


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", " 2", "²", "99999999999999999999"])
def test_thread_counts_that_are_not_numbers(value):
    done = run_python(IMPORT, check=False, CSOFTMAX_NUM_THREADS=value)
    if value.startswith("999") and done.returncode == 0:
        return  # as large as one likes
    assert done.returncode == 1
    assert "ImportError: CSOFTMAX_NUM_THREADS" in done.stderr, done.stderr[-300:]
    assert value in done.stderr


def test_thread_counts_from_the_environment():
    code = "import csoftmax; print(csoftmax.get_num_threads())"
    assert run_python(code, CSOFTMAX_NUM_THREADS="5").stdout.strip() == "5"
    assert run_python(code, CSOFTMAX_NUM_THREADS="").stdout.strip() == run_python(code).stdout.strip()
    assert run_python(code, CSOFTMAX_NUM_THREADS=None, OMP_NUM_THREADS="1").stdout.strip() == "1"
