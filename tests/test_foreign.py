"""Arrays of other libraries than NumPy, CuPy and PyTorch (test_torch.py): in by DLPack, out by their namespace."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers import NUMPY

import csoftmax

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 40))
read_only_exports = pytest.mark.skipif(NUMPY < (2, 1), reason="NumPy exports read-only arrays by DLPack since 2.1")


def libraries():
    for name in ("array_api_strict", "jax.numpy"):
        try:
            module = __import__(name, fromlist=["asarray"])
        except ImportError:
            continue
        yield pytest.param(module, id=name)


LIBRARIES = list(libraries())


@pytest.fixture(params=LIBRARIES)
def xp(request):
    return request.param


def test_one_is_there():
    assert LIBRARIES, "array-api-strict is in the test extra"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", ["softmax", "log_softmax", "logsumexp", "sparsemax", "entmax"])
def test_results_are_of_the_same_library(xp, function, dtype):
    if xp.__name__ == "jax.numpy" and dtype == "float64":
        pytest.skip("JAX has float64 only where it is switched on")
    x = X.astype(dtype)
    there = xp.asarray(x)
    for options in ({}, {"axis": 0}, {"num_threads": 1}):
        got = getattr(csoftmax, function)(there, **options)
        expected = getattr(csoftmax, function)(x, **options)
        assert type(got) is type(there)
        assert str(got.dtype).endswith(dtype)
        np.testing.assert_array_equal(np.asarray(got), expected)


def test_results_of_several_arrays(xp):
    x = X.astype(np.float32)
    y = np.arange(5)
    there = xp.asarray(x)
    got = csoftmax.cross_entropy_with_grad(there, xp.asarray(y))
    expected = csoftmax.cross_entropy_with_grad(x, y)
    assert type(got.loss) is type(got.grad) is type(there)
    assert got.loss.shape == ()
    assert float(got.loss) == expected.loss
    np.testing.assert_array_equal(np.asarray(got.grad), expected.grad)
    best = csoftmax.topk(there, 3)
    assert type(best.values) is type(best.indices) is type(there)
    np.testing.assert_array_equal(np.asarray(best.indices), csoftmax.topk(x, 3).indices)
    loss, *grads = csoftmax.linear_cross_entropy_with_grad(there, xp.asarray(x[:4]), xp.asarray(y % 4))
    assert all(type(g) is type(there) for g in (loss, *grads[:2]))
    csoftmax.check_labels(xp.asarray(y), 5)
    with pytest.raises(IndexError, match="target"):
        csoftmax.check_labels(xp.asarray(y), 3)


def test_the_first_array_decides(xp):
    """NumPy's logits with another library's labels give NumPy's arrays."""
    got = csoftmax.cross_entropy_with_grad(X, xp.asarray(np.arange(5)))
    assert type(got.grad) is np.ndarray


@read_only_exports  # what older versions import is read-only
def test_no_copy_and_in_place():
    strict = pytest.importorskip("array_api_strict", reason="the test extra has it")
    x = X.copy()
    there = strict.from_dlpack(x)
    out = csoftmax.softmax(there, out=there)
    assert out is there
    np.testing.assert_array_equal(x, csoftmax.softmax(X))


def test_jax_arrays_are_not_written():
    jnp = pytest.importorskip("jax.numpy", reason="the gate installs it")
    there = jnp.asarray(X.astype(np.float32))
    with pytest.raises(ValueError, match=r"out.*read-only"):
        csoftmax.softmax(X.astype(np.float32), out=there)


def test_jax_bfloat16():
    jnp = pytest.importorskip("jax.numpy", reason="the gate installs it")
    there = jnp.asarray(X).astype(jnp.bfloat16)
    got = csoftmax.softmax(there)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(got), csoftmax.softmax(np.asarray(there)))


class Exporter:
    """Has DLPack and nothing else."""

    def __init__(self, array, device=None):
        self.array, self.device = array, device

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.device or self.array.__dlpack_device__()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[::-1, ::2], lambda x: x.T], ids=["plain", "strided", "T"])
def test_anything_with_dlpack(view):
    x = view(X.copy())
    got = csoftmax.softmax(Exporter(x))
    assert type(got) is np.ndarray
    np.testing.assert_array_equal(got, csoftmax.softmax(x))


@read_only_exports
def test_read_only():
    x = X.copy()
    x.flags.writeable = False
    np.testing.assert_array_equal(csoftmax.softmax(Exporter(x)), csoftmax.softmax(X))
    with pytest.raises(ValueError, match=r"out.*read-only"):
        csoftmax.softmax(X, out=Exporter(x))


def test_a_device_that_is_none_of_ours():
    with pytest.raises(TypeError, match="x is on a device of DLPack's kind 8"):
        csoftmax.softmax(Exporter(X, device=(8, 0)))


def test_bfloat16_of_a_device_goes_back_through_the_host():
    """To a library other than PyTorch, none of which takes it by DLPack: CuPy refuses to be an array of NumPy's."""
    import ml_dtypes

    from csoftmax import _foreign

    host = np.ones(3, ml_dtypes.bfloat16)
    kind = type("ndarray", (), {"__module__": "cupy", "dtype": host.dtype, "get": lambda self: host})
    library = SimpleNamespace(asarray=lambda a: a)
    assert _foreign._back(kind(), SimpleNamespace(__array_namespace__=lambda: library)) is host


def test_out_of_numpy_is_out(xp):
    """It comes back as it is: an array of another library would alias memory that the caller writes to."""
    x, out = X.astype(np.float32), np.zeros(X.shape, np.float32)
    assert csoftmax.softmax(xp.asarray(x), out=out) is out
    np.testing.assert_array_equal(out, csoftmax.softmax(x))


def test_out_that_cannot_be_seen():
    """Nothing is computed into a copy that nobody gets."""

    class Refuses(Exporter):
        def __dlpack__(self, **options):
            raise BufferError("not today")

        def __array__(self, dtype=None, copy=None):
            return self.array.copy()

    np.testing.assert_array_equal(csoftmax.softmax(Refuses(X)), csoftmax.softmax(X))
    with pytest.raises(TypeError, match=r"out is a .*Refuses that NumPy cannot take by DLPack: not today"):
        csoftmax.softmax(X, out=Refuses(X.copy()))


def test_a_device_that_is_not_there():
    with pytest.raises(csoftmax.DeviceError, match="x is on a CUDA device, which cannot be used: "):
        csoftmax.softmax(Exporter(X, device=(2, 0)))


def test_inside_jit():
    jax = pytest.importorskip("jax", reason="the gate installs it")
    with pytest.raises(TypeError, match=r"x is a jax.*inside jax.jit use csoftmax.jax"):
        jax.jit(csoftmax.softmax)(jax.numpy.zeros(3))
