"""A wrong argument: the right exception, a message that names argument, value and what is allowed, out untouched."""

import decimal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import run_python

import csoftmax
from csoftmax._spec.formats import dtype_of

X = np.arange(12, dtype=np.float32).reshape(3, 4)


def refused(op, error, *patterns, arrays=None, **options):
    """The call raises the error with all patterns in the message, and out keeps what it held."""
    arrays = [X / 100 if op.inputs == 1 else np.abs(X) / -100] * op.inputs if arrays is None else arrays
    out = options.get("out")
    if out is None and op.has_out and "out" not in options:
        out = options["out"] = np.full((3, 4), 7, np.float32)
    before = out.copy() if isinstance(out, np.ndarray) else None
    with pytest.raises(error) as caught:
        op.function()(*arrays, **options)
    for pattern in patterns:
        assert pattern in str(caught.value), f"{pattern!r} is not in the message: {caught.value}"
    if before is not None:
        assert np.array_equal(out, before), "out has changed"


@pytest.mark.parametrize(
    "dtype", ["bool", "complex64", "complex128", "object", "longdouble", "U3", "S3", "datetime64[s]", "V8", "m8[s]"]
)
def test_dtypes_that_are_not_taken(op, dtype):
    bad = np.zeros((3, 4), dtype)
    names = ["x"] if op.inputs == 1 else ["dy", "y"]
    for i, name in enumerate(names):
        arrays = [X] * op.inputs
        arrays[i] = bad
        refused(op, TypeError, name, str(bad.dtype), "float16", "float32", "float64", arrays=arrays)


@pytest.mark.parametrize("value", ["text", {1: 2}, object(), [1, None], {1.0, 2.0}])
def test_things_that_are_not_arrays(op, value):
    refused(op, TypeError, "x" if op.inputs == 1 else "dy", "dtype", arrays=[value] * op.inputs)


def test_none_is_not_an_array(op):
    with pytest.raises(TypeError, match="has dtype object"):
        op.function()(*[None] * op.inputs)


def test_masked_arrays(op):
    masked = np.ma.masked_array(X, mask=X > 3)
    refused(op, TypeError, "masked array", "where", arrays=[masked] * op.inputs)
    refused(op, TypeError, "where", "masked array", where=np.ma.masked_array(X > 3, mask=X > 5))


def test_masked_logits_of_a_loss():
    with pytest.raises(TypeError, match=r"logits is a masked array; .* to a loss, logits.filled\(-numpy.inf\)"):
        csoftmax.cross_entropy(np.ma.masked_array(X, mask=X > 3), np.zeros(len(X), int))


@pytest.mark.parametrize("value", ["no", 0.0, np.zeros(3)])
def test_keepdims_is_a_bool(value):
    with pytest.raises(TypeError, match="keepdims must be a bool, got"):
        csoftmax.logsumexp(X, keepdims=value)
    assert csoftmax.logsumexp(X, keepdims=np.True_).shape == csoftmax.logsumexp(X, keepdims=1).shape == (len(X), 1)


def test_integers_beyond_float64():
    with pytest.raises(ValueError, match="within the range of float64, got an integer of 1329 bits"):
        csoftmax.softmax(X, temperature=10**400)


def test_cupy_arrays(op):
    """Never converted silently."""
    there = {"__array__": lambda self, *a, **k: X, "device": SimpleNamespace(id=10**6)}
    fake = type("ndarray", (), {"__module__": "cupy", **there})
    refused(op, csoftmax.DeviceError, "CuPy array cannot be used", 'device="cpu"', arrays=[fake()] * op.inputs)


@pytest.mark.parametrize("axis", [2, -3, 100, (0, 2), (0, -3), 10**25, -(10**25)])
def test_axis_out_of_range(op, axis):
    refused(op, (ValueError, IndexError), "axis", axis=axis)


@pytest.mark.parametrize("axis", [(0, 0), (1, -1), (0, 1, 0)])
def test_axis_twice(op, axis):
    refused(op, ValueError, "axis", str(axis), axis=axis)


@pytest.mark.parametrize("axis", [1.0, "1", [0, 1], (0, 1.0), np.array([0, 1]), b"0", {0}])
def test_axis_of_another_type(op, axis):
    refused(op, TypeError, "axis", "int", axis=axis)


@pytest.mark.parametrize("value", [-1.0, -1e-300, -np.inf, np.nan, -5, np.float32(-2), decimal.Decimal(-1)])
def test_temperatures_that_are_not_positive(op, value):
    refused(
        op, ValueError, "temperature", repr(value), "at least 0" if op.inputs == 1 else "positive", temperature=value
    )


@pytest.mark.parametrize("value", [0, 0.0, -0.0, np.inf])
def test_limits_of_temperature_have_no_gradient(op, value):
    if op.inputs == 1:
        assert op.function()(X, temperature=value) is not None
    else:
        refused(op, ValueError, "temperature", repr(value), "positive and finite", temperature=value)


@pytest.mark.parametrize("value", ["1", b"1", None, 1j, [1.0], np.ones(1), True, np.True_, {}, object()])
def test_temperatures_of_another_type(op, value):
    refused(op, TypeError, "temperature", "real number", temperature=value)


def test_a_temperature_that_float64_cannot_hold(op):
    refused(op, (ValueError, TypeError), "temperature", temperature=10**400)


def test_temperatures_that_are_taken(op):
    y = [X / 100] if op.inputs == 1 else [X, np.abs(X) / -100]
    for value in (2, np.float32(2), np.int8(2), np.array(2.0), decimal.Decimal(2)):
        assert np.array_equal(op.function()(*y, temperature=value), op.function()(*y, temperature=2.0))


def test_where(op):
    for bad in (X, X.astype(np.uint8), [[0, 1, 1, 0]], 1, None.__class__, "yes"):
        refused(op, TypeError, "where", "bool", where=bad)
    for shape in ((4, 3), (2, 4), (3, 3), (1, 3, 4, 1), (0,)):
        refused(op, ValueError, "where", str(shape), "(3, 4)", where=np.ones(shape, bool))
    refused(op, ValueError, "where", "(2, 3, 4)", where=np.ones((2, 3, 4), bool))


def test_out(op):
    if not op.has_out:
        with pytest.raises(TypeError, match="out"):
            op.function()(X, out=np.zeros(3, np.float32))
        return
    for shape in ((4, 3), (3, 5), (12,), (1, 3, 4), (), (3, 4, 1), (0, 4)):
        refused(op, ValueError, "out", str(shape), "(3, 4)", out=np.zeros(shape, np.float32))
    for dtype in ("float64", "float16", "int32", "complex64", "bool", "object", dtype_of("bfloat16")):
        refused(op, TypeError, "out", str(np.dtype(dtype)), "float32", out=np.zeros((3, 4), dtype))
    frozen = np.full((3, 4), 7, np.float32)
    frozen.flags.writeable = False
    refused(op, ValueError, "out", "read-only", out=frozen)
    refused(op, ValueError, "out", "read-only", out=np.broadcast_to(np.float32(0), (3, 4)))
    for bad in (X.tolist(), "out", 3, memoryview(X), bytearray(48), np.ma.masked_array(np.zeros((3, 4), np.float32))):
        refused(op, TypeError, "out", "numpy.ndarray", type(bad).__name__, out=bad)
    refused(op, TypeError, "float64", out=np.zeros((3, 4), np.float32), arrays=[X.astype(int)] * op.inputs)


def test_out_is_untouched_whatever_else_is_wrong(op):
    if not op.has_out:
        pytest.skip("no out")
    for options in ({"axis": 7}, {"temperature": -1}, {"where": X}, {"device": "cuda:1000000"}, {"num_threads": 0}):
        out = np.full((3, 4), 7, np.float32)
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            op.function()(*[X] * op.inputs, out=out, **options)
        assert np.all(out == 7), f"{options}"


def test_y_does_not_match_dy(op):
    if op.inputs == 1:
        pytest.skip("one input")
    refused(op, TypeError, "y", "float64", "float32", "same", arrays=[X, X.astype(float)])
    refused(op, ValueError, "y", "(4, 3)", "(3, 4)", arrays=[X, X.T])
    refused(op, ValueError, "y", "(4,)", "(3, 4)", arrays=[X, X[0]])


def test_y_is_missing():
    """In a process of its own: this has ended in a segmentation fault."""
    for name in ("softmax_vjp", "log_softmax_vjp"):
        done = run_python(f"import numpy as np, csoftmax; csoftmax.{name}(np.ones((2, 3)), None)", check=False)
        assert done.returncode == 1
        assert "TypeError: y has dtype object" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "cuda:", "cuda:x", "cuda:²", "cuda:-1", "cuda:1.5", "", 0, 1.5, b"cpu", ["cpu"]]
)
def test_devices_that_do_not_exist(op, device):
    refused(op, ValueError, "device", repr(device), '"cpu"', '"cuda"', device=device)


def test_device_that_is_not_there(op):
    """Whatever is missing (CuPy, a driver, or just so many devices), the message says it."""
    refused(op, csoftmax.DeviceError, "cuda:1000000", 'device="cpu"', device="cuda:1000000")
    assert issubclass(csoftmax.DeviceError, RuntimeError)


def test_what_is_missing(monkeypatch):
    from csoftmax import _cuda

    monkeypatch.setitem(sys.modules, "cupy", None)  # as if it were not installed
    with pytest.raises(csoftmax.DeviceError, match=r"CuPy cannot be imported.*pip install 'csoftmax\[cuda13x\]'"):
        csoftmax.softmax(X, device="cuda")
    assert _cuda.state()["available"] is False
    runtime = SimpleNamespace(getDeviceCount=lambda: 0)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    with pytest.raises(csoftmax.DeviceError, match="there is no CUDA device"):
        csoftmax.softmax(X, device="cuda")


@pytest.mark.parametrize("value", [0, -1, -(10**30)])
def test_num_threads_that_are_not_positive(op, value):
    refused(op, ValueError, "num_threads", str(value), "at least 1", num_threads=value)


@pytest.mark.parametrize("value", [True, False, 1.5, 2.0, "2", [1], np.array([1, 2])])
def test_num_threads_of_another_type(op, value):
    refused(op, TypeError, "num_threads", "int", num_threads=value)


def test_num_threads_that_are_taken(op):
    expected = op.function()(*[X] * op.inputs)
    for value in (1, 2, 10**30, np.int8(1), None):
        assert np.array_equal(op.function()(*[X] * op.inputs, num_threads=value), expected, equal_nan=True)


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


def test_unknown_keywords_and_positions(op):
    with pytest.raises(TypeError):
        op.function()(*[X] * op.inputs, temprature=2.0)
    with pytest.raises(TypeError):
        op.function()(*[X] * op.inputs, -1, 1.0)
    with pytest.raises(TypeError):
        op.function()()


def test_show_config():
    with pytest.raises(ValueError, match=r"mode.*'dict'"):
        csoftmax.show_config("dict")


def test_ragged_lists(op):
    refused(op, ValueError, arrays=[[[1.0, 2.0], [3.0]]] * op.inputs)


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
