"""Arrays of libraries other than NumPy, CuPy and PyTorch: they come by DLPack and leave by their namespace."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import NUMPY

import csoftmax

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 40))
read_only_exports = pytest.mark.skipif(NUMPY < (2, 1), reason="NumPy exports read-only arrays by DLPack since 2.1")


def find_libraries():
    """Libraries of the array API standard that are installed."""
    for name in ("array_api_strict", "jax.numpy"):
        try:
            module = __import__(name, fromlist=["asarray"])
        except ImportError:
            continue
        yield pytest.param(module, id=name)


LIBRARIES = list(find_libraries())


@pytest.fixture(params=LIBRARIES)
def xp(request):
    return request.param


def test_a_library_is_installed():
    assert LIBRARIES, "array-api-strict is in the test extra"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp", "sparsemax", "entmax"])
def test_results_are_of_the_same_library(xp, function, dtype):
    if xp.__name__ == "jax.numpy" and dtype == "float64":
        pytest.skip("JAX has float64 only where it is switched on")
    x = X.astype(dtype)
    z = xp.asarray(x)
    for options in ({}, {"axis": 0}, {"num_threads": 1}):
        got = getattr(csoftmax, function)(z, **options)
        expected = getattr(csoftmax, function)(x, **options)
        assert type(got) is type(z)
        assert str(got.dtype).endswith(dtype)
        np.testing.assert_array_equal(np.asarray(got), expected)


def test_functions_of_several_arrays(xp):
    x = X.astype(np.float32)
    y = np.arange(5)
    z = xp.asarray(x)
    got = csoftmax.cross_entropy_with_grad(z, xp.asarray(y))
    expected = csoftmax.cross_entropy_with_grad(x, y)
    assert type(got.loss) is type(got.grad) is type(z)
    assert got.loss.shape == ()
    assert float(got.loss) == expected.loss
    np.testing.assert_array_equal(np.asarray(got.grad), expected.grad)
    best = csoftmax.topk(z, 3)
    assert type(best.values) is type(best.indices) is type(z)
    np.testing.assert_array_equal(np.asarray(best.indices), csoftmax.topk(x, 3).indices)
    loss, *grads = csoftmax.linear_cross_entropy_with_grad(z, xp.asarray(x[:4]), xp.asarray(y % 4))
    assert all(type(g) is type(z) for g in (loss, *grads[:2]))
    csoftmax.check_labels(xp.asarray(y), 5)
    with pytest.raises(IndexError, match="target"):
        csoftmax.check_labels(xp.asarray(y), 3)


def test_first_array_decides_the_library(xp):
    """Logits of NumPy with labels of another library give arrays of NumPy."""
    got = csoftmax.cross_entropy_with_grad(X, xp.asarray(np.arange(5)))
    assert type(got.grad) is np.ndarray


@read_only_exports  # what older versions import is read-only
def test_arrays_are_written_in_place():
    strict = pytest.importorskip("array_api_strict", reason="the test extra has it")
    x = X.copy()
    z = strict.from_dlpack(x)
    out = csoftmax.softmax(z, out=z)
    assert out is z
    np.testing.assert_array_equal(x, csoftmax.softmax(X))


def test_jax_arrays_are_not_written():
    jnp = pytest.importorskip("jax.numpy", reason="the gate installs it")
    z = jnp.asarray(X.astype(np.float32))
    with pytest.raises(ValueError, match=r"out.*read-only"):
        csoftmax.softmax(X.astype(np.float32), out=z)


def test_jax_bfloat16():
    jnp = pytest.importorskip("jax.numpy", reason="the gate installs it")
    z = jnp.asarray(X).astype(jnp.bfloat16)
    got = csoftmax.softmax(z)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got), csoftmax.softmax(np.asarray(z)))


class Exporter:
    """An object that has DLPack and nothing else."""

    def __init__(self, array, device=None):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device or self.array.__dlpack_device__()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[::-1, ::2], lambda x: x.T], ids=["plain", "strided", "T"])
def test_any_object_with_dlpack(view):
    x = view(X.copy())
    got = csoftmax.softmax(Exporter(x))
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, csoftmax.softmax(x))


@read_only_exports
def test_read_only_objects():
    x = X.copy()
    x.flags.writeable = False
    np.testing.assert_array_equal(csoftmax.softmax(Exporter(x)), csoftmax.softmax(X))
    with pytest.raises(ValueError, match=r"out.*read-only"):
        csoftmax.softmax(X, out=Exporter(x))


def test_error_of_an_unsupported_device():
    with pytest.raises(TypeError, match="x is on a device of DLPack kind 8"):
        csoftmax.softmax(Exporter(X, device=(8, 0)))


def test_bfloat16_on_a_device_returns_through_the_host():
    """Libraries other than PyTorch cannot take it by DLPack, and CuPy does not convert to NumPy by itself."""
    import ml_dtypes

    from csoftmax._arguments import foreign as _foreign

    host = np.ones(3, ml_dtypes.bfloat16)
    kind = type("ndarray", (), {"__module__": "cupy", "dtype": host.dtype, "get": lambda self: host})
    library = SimpleNamespace(asarray=lambda a: a)
    assert _foreign._to_library_of(SimpleNamespace(__array_namespace__=lambda: library), kind()) is host


def test_out_of_numpy_is_returned_itself(xp):
    """An array of another library would alias memory that the caller writes to."""
    x, out = X.astype(np.float32), np.zeros(X.shape, np.float32)
    assert csoftmax.softmax(xp.asarray(x), out=out) is out
    np.testing.assert_array_equal(out, csoftmax.softmax(x))


def test_error_of_an_out_that_would_be_copied():
    """The result would go to a copy that the caller cannot see."""

    class Refuses(Exporter):
        def __dlpack__(self, **options):
            raise BufferError("not today")

        def __array__(self, dtype=None, copy=None):
            return self.array.copy()

    np.testing.assert_array_equal(csoftmax.softmax(Refuses(X)), csoftmax.softmax(X))
    with pytest.raises(TypeError, match=r"out is a .*Refuses that NumPy cannot import through DLPack: not today"):
        csoftmax.softmax(X, out=Refuses(X.copy()))


def test_error_of_a_missing_device():
    with pytest.raises(csoftmax.DeviceError, match="x is on a CUDA device, which cannot be used: "):
        csoftmax.softmax(Exporter(X, device=(2, 0)))


def test_error_inside_jit():
    jax = pytest.importorskip("jax", reason="the gate installs it")
    with pytest.raises(TypeError, match=r"x is a jax.*inside jax.jit use csoftmax.jax"):
        jax.jit(csoftmax.softmax)(jax.numpy.zeros(3))
