"""Arrays of libraries other than NumPy, CuPy and PyTorch: they come by DLPack and leave by their namespace."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import NUMPY, run_python

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


def test_certificates_are_rounded_down_for_libraries_without_float64():
    jnp = pytest.importorskip("jax.numpy", reason="the gate installs it")
    x, w = RNG.normal(size=(200, 4)).astype(np.float32), RNG.normal(size=(3, 4)).astype(np.float32)
    exact = csoftmax.adversarial.certify(x, w)
    got = csoftmax.adversarial.certify(jnp.asarray(x), jnp.asarray(w))
    radius = np.asarray(got.radius)
    assert (radius.astype(float) <= exact.radius).all()
    assert (radius.astype(float) >= exact.radius * (1 - 2e-7)).all()
    one = csoftmax.adversarial.certify(jnp.asarray(x[0]), jnp.asarray(w))
    assert float(one.radius) == radius[0]
    np.testing.assert_array_equal(np.asarray(got.rival), exact.rival)


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


# Devices

CALLS = {
    "softmax": lambda x: csoftmax.softmax(x),
    "log_softmax": lambda x: csoftmax.log_softmax(x, 0, temperature=2),
    "softmax_vjp": lambda x: csoftmax.softmax_vjp(x, x),
    "log_softmax_vjp": lambda x: csoftmax.log_softmax_vjp(x, x),
    "logsumexp": lambda x: csoftmax.logsumexp(x),
    "logsumexp of all": lambda x: csoftmax.logsumexp(x, None),
    "topk": lambda x: csoftmax.topk(x, 2),
    "topk_softmax": lambda x: csoftmax.topk_softmax(x, 2),
    "sparsemax": lambda x: csoftmax.sparsemax(x),
    "entmax": lambda x: csoftmax.entmax(x, 1.3),
    "entmax_vjp": lambda x: csoftmax.entmax_vjp(x, x),
    "entmax_loss": lambda x: csoftmax.entmax_loss(x, [0, 1], reduction="none"),
    "entmax_loss_with_grad": lambda x: csoftmax.entmax_loss_with_grad(x, [0, 1]),
    "sample": lambda x: csoftmax.sample(x, rng=0),
    "cross_entropy": lambda x: csoftmax.cross_entropy(x, [0, 1]),
    "cross_entropy_with_grad": lambda x: csoftmax.cross_entropy_with_grad(x, [0, 1], reduction="none"),
    "linear_cross_entropy": lambda x: csoftmax.linear_cross_entropy(x, x, [0, 1]),
    "linear_cross_entropy_with_grad": lambda x: csoftmax.linear_cross_entropy_with_grad(x, x, [0, 1], bias=[1.0, 2]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_on_the_device_of_the_input(name, dtype):
    """Of every device, those without numbers of 8 bytes included, where results have 4."""
    strict = pytest.importorskip("array_api_strict", reason="the test extra has it")
    a = np.array([[0.5, 1.75, -3], [4, 0, 2]]).astype(dtype)
    for device in strict.__array_namespace_info__().devices():
        try:
            x = strict.asarray(a, device=device)
        except ValueError:  # of a dtype that the device lacks
            continue
        for options in ({}, {"copy": True}):
            x = strict.asarray(x, **options)
            got, expected = CALLS[name](x), CALLS[name](a)
            got, expected = (v if isinstance(v, tuple) else (v,) for v in (got, expected))
            for result, right in zip(got, expected, strict=True):
                assert type(result) is type(x)
                assert result.device == x.device == device
                result + strict.asarray(1, dtype=result.dtype, device=device)
                host = np.asarray(result.to_device(strict.Device("CPU_DEVICE")))
                np.testing.assert_array_equal(host, right.astype(host.dtype))
                lacks = str(device) in ("array_api_strict.Device('no_x64')", "array_api_strict.Device('no_float64')")
                assert host.dtype.itemsize == right.itemsize or (lacks and right.itemsize == 8)


def test_errors_of_two_devices_of_a_library():
    strict = pytest.importorskip("array_api_strict", reason="the test extra has it")
    here, there = strict.Device("device1"), strict.Device("device2")
    x, mask = strict.asarray(X, device=here), strict.asarray(X > 0, device=there)
    message = r"where is on the device .*device2.*, the first argument on .*device1.*: move it there, or pass device="
    with pytest.raises(csoftmax.DeviceError, match=message):
        csoftmax.softmax(x, where=mask)
    got = csoftmax.softmax(x, where=mask, device="cpu")
    assert got.device == here
    out = strict.zeros(X.shape, device=there)
    with pytest.raises(csoftmax.DeviceError, match=r"out is on the device .*device2"):
        csoftmax.softmax(x, out=out)
    assert not np.from_dlpack(out).any()


JAX_DEVICES = """if True:
    import numpy as np, pytest, csoftmax
    jax = pytest.importorskip("jax")
    jnp, (first, _, third), CALLS = jax.numpy, jax.devices(), test_foreign.CALLS
    a = np.array([[0.5, 1.75, -3], [4, 0, 2]])
    for name, call in CALLS.items():
        for dtype in ("float32", "float16", "bfloat16", "int32", "uint8"):
            z = jnp.asarray(a, dtype)
            expected = call(np.asarray(z))
            expected = expected if isinstance(expected, tuple) else (expected,)
            with jax.default_device(third):
                elsewhere = jnp.asarray(a, dtype)  # tied to no device
            mesh = jax.make_mesh((1,), ("d",), devices=[third])
            mesh = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            for x in (z, elsewhere, jax.device_put(z, first), jax.device_put(z, third), jax.device_put(z, mesh)):
                got = call(x)
                for result, right in zip(got if isinstance(got, tuple) else (got,), expected, strict=True):
                    assert result.devices() == x.devices(), (name, dtype, result.devices())
                    assert result.committed == x.committed, (name, dtype)
                    right = np.asarray(right)  # JAX has 4 bytes where 8 are not switched on
                    right = right.astype(f"{right.dtype.kind}4") if right.itemsize == 8 else right
                    np.testing.assert_array_equal(np.asarray(result), right)
                    result + jnp.ones((), result.dtype)
                    result + jax.device_put(np.ones((), result.dtype), x.sharding if x.committed else third)

    x = jax.device_put(jnp.asarray(a), third)
    with pytest.raises(csoftmax.DeviceError, match="target is on the device .*, the first argument on"):
        csoftmax.cross_entropy(x, jax.device_put(jnp.array([0, 1]), first))
    for labels in (jnp.array([0, 1]), np.array([0, 1]), jax.device_put(jnp.array([0, 1]), third)):
        assert csoftmax.cross_entropy(x, labels).devices() == {third}
    assert csoftmax.cross_entropy(x, jax.device_put(jnp.array([0, 1]), first), device="cpu").devices() == {third}

    mesh = jax.make_mesh((3,), ("d",))
    Spec = jax.sharding.PartitionSpec
    for spec, word in ((Spec("d"), "sharded over"), (Spec(), "replicated on")):
        spread = jax.device_put(jnp.ones((3, 4)), jax.sharding.NamedSharding(mesh, spec))
        for call in (lambda: csoftmax.softmax(spread), lambda: csoftmax.softmax(x, where=spread)):
            with pytest.raises(TypeError, match=f"is a jax.Array {word} 3 devices.*jax.device_put.*csoftmax.jax") as e:
                call()
            assert "jax.jit" not in str(e.value)
    x.delete()
    with pytest.raises(TypeError, match="x is a jax.Array that has been deleted") as e:
        csoftmax.softmax(x)
    assert "jit" not in str(e.value)
    print("done")
"""


def test_devices_of_jax():
    """Committed and uncommitted arrays on three devices, in a process that has three; arrays that have no memory."""
    pytest.importorskip("jax", reason="the gate installs it")
    code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]}\n"
    code += "import test_foreign\n"
    done = run_python(code + JAX_DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=3", JAX_ENABLE_X64=None)
    assert done.stdout.strip() == "done"
