"""csoftmax.jax: the bits of the functions for NumPy under jit, gradients, vmap, errors."""

import importlib

import numpy as np
import pytest
from helpers import docstrings

import csoftmax

jax = pytest.importorskip("jax", reason="the gate installs it")
jnp = jax.numpy
check_grads = pytest.importorskip("jax.test_util").check_grads
cj = pytest.importorskip("csoftmax.jax")

RNG = np.random.default_rng(0)
KERNEL_ERRORS = (jax.errors.JaxRuntimeError, ValueError)  # the type depends on how XLA runs the kernel


def set_float64(wide):
    """Context with float64, or without as in JAX's default configuration."""
    enable = getattr(jax, "enable_x64", None)  # before JAX 0.8: experimental
    return enable(wide) if enable is not None else importlib.import_module("jax.experimental").enable_x64(wide)


@pytest.fixture(autouse=True)
def float64():
    with set_float64(True):
        yield


@pytest.fixture(autouse=True)
def seed(monkeypatch):
    """The numbers of a test do not depend on the tests that have run before."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


FUNCTIONS = {
    "softmax": {"temperature": 0.7},
    "log_softmax": {"temperature": 0.7},
    "logsumexp": {"temperature": 0.7},
    "entmax": {"alpha": 1.3},
    "sparsemax": {},
}


def draw(dtype, shape=(3, 4, 50)):
    """Random logits."""
    return jnp.asarray(3 * RNG.standard_normal(shape)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_equal_those_for_numpy(name, axis, dtype):
    x, options = draw(dtype), FUNCTIONS[name]
    expected = getattr(csoftmax, name)(np.asarray(x), axis=axis, **options)
    for function in (getattr(cj, name), jax.jit(getattr(cj, name), static_argnames=("axis", *options))):
        got = function(x, axis=axis, **options)
        assert got.dtype == x.dtype
        np.testing.assert_array_equal(np.asarray(got), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name):
    x, options = draw("float64", (4, 6)), FUNCTIONS[name]
    function = getattr(cj, name)
    for axis in (-1, 0):
        check_grads(lambda x, axis=axis: function(x, axis=axis, **options), (x,), order=1, modes=["rev"], eps=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap(name):
    x, function = draw("float32"), getattr(cj, name)
    np.testing.assert_array_equal(jax.vmap(function)(x), function(x))
    np.testing.assert_array_equal(jax.vmap(jax.vmap(function))(x), function(x))
    moved = jax.vmap(function, in_axes=1, out_axes=1)(x) if name != "logsumexp" else jax.vmap(function, 1, 1)(x)
    np.testing.assert_array_equal(moved, function(x))
    each = jax.vmap(jax.grad(lambda row: (function(row) ** 2).sum()))(x[0])
    np.testing.assert_array_equal(each, jax.grad(lambda rows: (function(rows) ** 2).sum())(x[0]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(dtype, reduction):
    options = {"label_smoothing": 0.1, "ignore_index": 3, "z_loss": 1e-3, "temperature": 0.8, "reduction": reduction}
    logits = draw(dtype, (6, 5, 4))
    labels = RNG.integers(0, 5, (6, 4))
    labels[0, 0] = 3
    for kind in (np.int64, np.uint8):
        targets = jnp.asarray(labels.astype(kind))
        expected = csoftmax.cross_entropy_with_grad(np.asarray(logits), labels, axis=1, **options)
        got = jax.jit(lambda z, t: cj.cross_entropy(z, t, axis=1, **options))(logits, targets)
        assert got.dtype == expected.loss.dtype
        np.testing.assert_allclose(got, expected.loss, rtol=1e-14 if dtype == "float64" else 1e-6)
        if reduction == "none":
            np.testing.assert_array_equal(got, expected.loss)
        grad = jax.grad(lambda z, t: cj.cross_entropy(z, t, axis=1, **options).sum())(logits, targets)
        assert grad.dtype == logits.dtype
        # to the bit: XLA multiplies the gradient of each row by the upstream gradient
        wide = expected.loss.dtype.type
        upstream = wide(1) / wide((labels != 3).sum() if reduction == "mean" else 1)
        rows = csoftmax.cross_entropy_with_grad(np.asarray(logits), labels, axis=1, **{**options, "reduction": "none"})
        np.testing.assert_array_equal(grad, (rows.grad.astype(wide) * upstream).astype(rows.grad.dtype))
    if dtype == "float64":
        loss_of = lambda z: cj.cross_entropy(z, targets, axis=1, **options)  # noqa: E731
        check_grads(loss_of, (logits,), order=1, modes=["rev"], eps=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_masks(name):
    """The bits of NumPy under the same mask: a row with NaN, one with nothing left, and a mask that broadcasts."""
    x, options = draw("float32", (5, 6)).at[1, 2].set(jnp.nan), FUNCTIONS[name]
    mask = (RNG.random((5, 6)) < 0.6) | (np.arange(5) == 1)[:, None]
    mask[3] = False
    function = getattr(cj, name)
    for where, axis in ((mask, -1), (mask[:, :1], 0), (mask[0], 1)):
        expected = getattr(csoftmax, name)(np.asarray(x), axis=axis, where=where, **options)
        got = jax.jit(lambda x, where, axis=axis: function(x, axis=axis, where=where, **options))(x, where)
        np.testing.assert_array_equal(np.asarray(got), expected)
        grad = jax.grad(lambda x, w=where, a=axis: jnp.nan_to_num(function(x, axis=a, where=w, **options)[0]).sum())(x)
        assert not np.any(np.asarray(grad)[~np.broadcast_to(where, x.shape)])
    finite, rows = jnp.asarray(RNG.standard_normal((4, 6))), jnp.asarray(mask[[0, 1, 2, 4]] | (np.arange(6) == 0))
    total = lambda x: jnp.where(jnp.isneginf(y := function(x, where=rows, **options)), 0, y)  # noqa: E731
    check_grads(total, (finite,), order=1, modes=["rev"], eps=1e-6)
    if name == "logsumexp":
        assert function(x, keepdims=True).shape == (5, 1)
        assert function(x, axis=0, keepdims=True).shape == (1, 6)
    with pytest.raises(TypeError, match="where must hold bools, got int"):
        function(finite, where=jnp.ones(6, int))
    with pytest.raises(ValueError, match=r"where has shape \(5,\), which does not broadcast to \(4, 6\)"):
        function(finite, where=jnp.ones(5, bool))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_sample_weights(reduction):
    """Rows of weight 0 contribute 0, whatever they hold; weights that are not allowed make the loss NaN."""
    logits, labels = draw("float64", (5, 4)).at[2, 0].set(jnp.nan), jnp.array([0, 3, 1, -100, 2])
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    expected = csoftmax.cross_entropy_with_grad(
        np.asarray(logits), np.asarray(labels), sample_weight=weights, reduction=reduction
    )
    loss_of = jax.jit(lambda z, s: cj.cross_entropy(z, labels, sample_weight=s, reduction=reduction))
    np.testing.assert_allclose(loss_of(logits, weights), expected.loss, rtol=1e-14)
    grad, of_weights = jax.grad(lambda z, s: loss_of(z, s).sum(), argnums=(0, 1))(logits, weights)
    np.testing.assert_allclose(grad, expected.grad, rtol=1e-13, atol=1e-300)
    assert not np.any(of_weights)
    for bad in (-1.0, np.inf):
        assert np.isnan(loss_of(logits, np.where(weights == 2.0, bad, weights))).any()
    with pytest.raises(ValueError, match=r"sample_weight has shape \(4,\), which does not broadcast to \(5,\)"):
        cj.cross_entropy(logits, labels, sample_weight=weights[:4])
    with pytest.raises(TypeError, match="sample_weight must hold real numbers, got bool"):
        cj.cross_entropy(logits, labels, sample_weight=weights > 0)


def test_a_mean_over_no_row():
    """NaN, with a gradient of 0."""
    ignored = jnp.full(3, -100)
    loss, grad = jax.value_and_grad(cj.cross_entropy)(jnp.full((3, 4), jnp.nan), ignored)
    assert np.isnan(loss)
    assert not np.any(grad != 0)


def test_sample_weights_of_every_scale():
    """The scale cancels in a mean, though sums and products would leave the range; ignored rows have none."""
    x, y = np.asarray([[1.0, 2.0, 3.0], [0.0, 1.0, -1.0], [2.0, 0.5, 0.0]]), np.array([0, 1, -100])
    scales = {"float32": (1e-45, 1e-40, 1e-38, 1e-30, 3e37), "float64": (5e-324, 1e-310, 1e-300, 5e307)}
    for dtype in scales:
        z = jnp.asarray(x, dtype)
        expected = csoftmax.cross_entropy_with_grad(x.astype(dtype), y, sample_weight=[1.0, 3.0, 1.0])
        for scale in scales[dtype]:
            for last in (scale, 0.0, np.nan, np.inf, -1.0):
                weights = jnp.asarray(np.array([scale, 3 * np.array(scale, dtype), last], dtype))
                loss, grad = jax.value_and_grad(lambda z, s=weights: cj.cross_entropy(z, y, sample_weight=s))(z)
                tolerance = {"rtol": 2e-6 if dtype == "float32" else 1e-14, "err_msg": f"{scale} {last}"}
                np.testing.assert_allclose(loss, expected.loss, **tolerance)
                np.testing.assert_allclose(grad, expected.grad, **tolerance)
    s = jnp.asarray([1.0, 3.0, np.nan])
    rows = cj.cross_entropy(x, y, sample_weight=s, reduction="none")
    assert rows[2] == 0
    np.testing.assert_allclose(cj.cross_entropy(x, y, sample_weight=s, reduction="sum"), rows.sum())
    assert np.isnan(cj.cross_entropy(x, y, sample_weight=jnp.asarray([np.nan, 1.0, 1.0])))


def test_gradients_of_logsumexp_in_half_types():
    """1/T and dy/T may leave the range of the dtype where their product with the softmax does not."""
    for dtype, t, dy in (
        ("float16", 1e-6, 1.0), ("float16", 1e-8, 6e-8), ("float16", 1e5, 6e4), ("float16", 1e-30, 6e-8),
        ("bfloat16", 1e30, 1e30), ("bfloat16", 1e-40, 1e-30), ("float32", 1e40, 1e30),
    ):  # fmt: skip
        x, dy = jnp.asarray([0.0, 1.0], dtype), jnp.asarray(dy, dtype)
        (grad,) = jax.vjp(lambda x, t=t: cj.logsumexp(x, temperature=t), x)[1](dy)
        p = np.asarray(csoftmax.softmax(np.asarray(x), temperature=t), np.float64)
        with np.errstate(over="ignore"):
            expected = np.asarray((p * float(dy) / t).astype(grad.dtype), np.float64)
        np.testing.assert_allclose(np.asarray(grad, np.float64), expected, rtol=2e-7, err_msg=f"{dtype} {t}")


@pytest.mark.parametrize("temperature", [1e-60, 1e60, 1e-300, 1e300])
def test_extreme_temperatures(temperature):
    """1/T is beyond the range of float32."""
    x = jnp.array([1e30, 3e30, 0], jnp.float32) if temperature > 1 else jnp.array([1e-30, 1e-30, 0], jnp.float32)
    for function in (cj.softmax, cj.log_softmax):
        y, pull = jax.vjp(lambda x, f=function: f(x, temperature=temperature), x)
        vjp = getattr(csoftmax, f"{function.__name__}_vjp")
        np.testing.assert_array_equal(pull(x)[0], vjp(np.asarray(x), np.asarray(y), temperature=temperature))
    p = np.asarray(cj.softmax(x, temperature=temperature), np.float64)
    factor = 1e30 if temperature > 1 else 1e-30
    got = jax.grad(lambda x: cj.logsumexp(x, temperature=temperature) * jnp.float32(factor))(x)
    with np.errstate(over="ignore"):
        expected = np.float32(np.float64(np.float32(factor)) * p / temperature)
    np.testing.assert_allclose(got, np.where(np.abs(expected) < 1e-37, 0, expected), rtol=1e-6)  # XLA flushes those


def test_cross_entropy_under_vmap():
    logits, labels = draw("float32", (3, 4, 7)), jnp.asarray(RNG.integers(0, 7, (3, 4)))
    got = jax.vmap(lambda z, t: jax.grad(cj.cross_entropy)(z, t))(logits, labels)
    each = [jax.grad(cj.cross_entropy)(z, t) for z, t in zip(logits, labels)]
    np.testing.assert_array_equal(got, jnp.stack(each))


def test_training():
    """A linear layer learns by gradient descent under jit."""
    x, labels = draw("float32", (200, 5)), jnp.asarray(RNG.integers(0, 3, 200))

    @jax.jit
    def step(w):
        loss, grad = jax.value_and_grad(lambda w: cj.cross_entropy(x @ w, labels))(w)
        return loss, w - 0.1 * grad

    w = jnp.zeros((5, 3), jnp.float32)
    losses = []
    for _ in range(20):
        loss, w = step(w)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(np.log(3))
    assert losses == sorted(losses, reverse=True)


def test_large_arrays_on_two_threads():
    """XLA may run both calls at once."""
    x = draw("float32", (300, 5000))
    with csoftmax.threads(2):
        both = jax.jit(lambda x: (cj.softmax(x), cj.log_softmax(x)))(x)
    np.testing.assert_array_equal(both[0], csoftmax.softmax(np.asarray(x)))
    np.testing.assert_array_equal(both[1], csoftmax.log_softmax(np.asarray(x)))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (1,)])
def test_awkward_shapes(shape):
    x = draw("float32", shape)
    np.testing.assert_array_equal(cj.softmax(x), csoftmax.softmax(np.asarray(x)))


def test_errors():
    x, labels = draw("float32", (3, 4)), jnp.array([0, 1, 2])
    with pytest.raises(TypeError, match="x must be float16, bfloat16, float32 or float64, got int32"):
        cj.softmax(labels.astype(jnp.int32))
    with pytest.raises(ValueError, match="axis must be from -2 to 1, got 2"):
        cj.softmax(x, axis=2)
    with pytest.raises(ValueError, match="temperature must be in"):
        cj.softmax(x, temperature=-1)
    with pytest.raises(TypeError, match="temperature must be a number that is known"):
        jax.jit(lambda x, t: cj.softmax(x, temperature=t))(x, 1.0)
    with pytest.raises(ValueError, match="alpha must be in"):
        cj.entmax(x, alpha=0.9)
    with pytest.raises(TypeError, match=r"target must be integers of shape \(3,\)"):
        cj.cross_entropy(x, labels[:2])
    with pytest.raises(ValueError, match="reduction must be"):
        cj.cross_entropy(x, labels, reduction="median")
    with pytest.raises(KERNEL_ERRORS, match="a label is not a class"):
        cj.cross_entropy(x, labels + 2).block_until_ready()
    with pytest.raises(KERNEL_ERRORS, match="other shapes or dtypes"):
        jax.ffi.ffi_call("csoftmax_softmax", jax.ShapeDtypeStruct((2,), jnp.float32))(x).block_until_ready()
    with pytest.raises(KERNEL_ERRORS, match="other shapes or dtypes"):
        jax.ffi.ffi_call("csoftmax_softmax", jax.ShapeDtypeStruct((3,), jnp.int32))(labels.astype(jnp.int32))
    # the kernels never take XLA's memory for another dtype
    half = x.astype(jnp.float16)
    for name, result, arguments in (
        ("softmax", half, [x]),
        ("softmax", x, [half]),
        ("logsumexp", half[:, 0], [x]),
        ("softmax_vjp", x, [x, half]),
        ("entmax", half, [x]),
        ("entmax_vjp", x, [x, half]),
        ("cross_entropy", [half[:, 0]], [x, labels.astype(jnp.int32)]),
        ("cross_entropy", [x[:, 0]], [x.astype(jnp.float64), labels.astype(jnp.int32)]),
        ("cross_entropy", [x[:, 0]], [x, labels.astype(jnp.int16)]),
        ("cross_entropy", [x[:, 0], half], [x, labels.astype(jnp.int32)]),
    ):
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), result)
        with pytest.raises(KERNEL_ERRORS, match="other shapes or dtypes"):
            jax.block_until_ready(jax.ffi.ffi_call(f"csoftmax_{name}", like)(*arguments))
    with pytest.raises(ValueError, match="x must have at least one axis"):
        cj.softmax(jnp.float32(1))
    for bad in (0.5, True, np.True_):
        with pytest.raises(TypeError, match="ignore_index must be an int"):
            cj.cross_entropy(x, labels, ignore_index=bad)
    for bad in (True, False, np.True_, jnp.array(True), 1.0):
        for call in (cj.softmax, cj.log_softmax, cj.logsumexp, cj.sparsemax):
            with pytest.raises(TypeError, match="axis must be an int, got"):
                call(x, bad)
        with pytest.raises(TypeError, match="axis must be an int, got"):
            cj.entmax(x, 1.5, bad)
        with pytest.raises(TypeError, match="axis must be an int, got"):
            cj.cross_entropy(x, labels, bad)
    with pytest.raises(TypeError, match="temperature must be a number"):
        cj.softmax(x, temperature=True)
    message = r"takes no soft labels: target must be integers .* of one-hot rows pass target.argmax\(-1\)"
    with pytest.raises(ValueError, match=message):
        cj.cross_entropy(x, jax.nn.one_hot(labels, 4))
    np.testing.assert_array_equal(cj.softmax(x, np.int64(0)), cj.softmax(x, 0))


@pytest.mark.parametrize("wide", [False, True])
def test_labels_of_every_dtype(wide):
    """Labels that a cast would turn into a class are refused; ignore_index may be outside the range of the dtype."""
    with set_float64(wide):
        logits = jnp.asarray(RNG.standard_normal((3, 4)), jnp.float32)
        for kind in ("int8", "int16", "int32", "uint8", "uint16", "uint32", *(["int64", "uint64"] * wide)):
            labels = jnp.array([0, 3, 1], kind)
            expected = csoftmax.cross_entropy(np.asarray(logits), np.array([0, 3, 1]), ignore_index=3, reduction="none")
            got = cj.cross_entropy(logits, labels, ignore_index=3, reduction="none")
            np.testing.assert_array_equal(got, expected)
            for absent in (-100, 2**40, 2**70):
                plain = cj.cross_entropy(logits, labels, ignore_index=absent)
                assert float(plain) == pytest.approx(float(csoftmax.cross_entropy(np.asarray(logits), [0, 3, 1])))
        for kind, label in (("uint32", 2**32 - 100), *([("uint64", 2**64 - 100)] * wide)):
            with pytest.raises(KERNEL_ERRORS, match="a label is not a class"):
                cj.cross_entropy(logits, jnp.array([0, label, 1], kind)).block_until_ready()


def test_default_set_float64():
    with set_float64(False):
        x = jnp.asarray(RNG.standard_normal((5, 9)), jnp.float32)
        assert x.dtype == cj.softmax(x).dtype == jnp.float32
        np.testing.assert_array_equal(cj.softmax(x), csoftmax.softmax(np.asarray(x)))
        grad = jax.grad(lambda x: cj.cross_entropy(x, jnp.arange(5)))(x)
        np.testing.assert_allclose(grad, csoftmax.cross_entropy_with_grad(np.asarray(x), np.arange(5)).grad, rtol=1e-6)
        result = docstrings.run_examples(".jax")
        assert result.failed == 0
        assert result.attempted > 5


def test_entmax_with_alpha_1_is_softmax():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)))
    np.testing.assert_array_equal(np.asarray(cj.entmax(x, 1.0, 0)), np.asarray(cj.softmax(x, 0)))


@pytest.mark.parametrize("alpha", [12.0, 30.0, 1e4])
def test_large_alpha(alpha):
    """Rows sum to 1, and value and gradient are those for NumPy (decision entmax 3)."""
    x = np.random.default_rng(0).standard_normal((200, 8)) * 0.02
    y, vjp = jax.vjp(lambda x: cj.entmax(x, alpha), jnp.asarray(x))
    expected = csoftmax.entmax(x, alpha)
    np.testing.assert_array_equal(np.asarray(y), expected)
    assert np.all(np.abs(expected.sum(-1) - 1) < 1e-15)
    np.testing.assert_array_equal(np.asarray(vjp(jnp.asarray(x))[0]), csoftmax.entmax_vjp(x, expected, alpha))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "token_mean"])
def test_crf_loss(reduction):
    x, tags = draw("float64", (3, 6, 4)), jnp.asarray(RNG.integers(0, 4, (3, 6)))
    transitions, start, end = (draw("float64", shape) for shape in ((4, 4), (4,), (4,)))
    mask = jnp.asarray(RNG.random((3, 6)) < 0.7)
    tags = tags.at[1, 2].set(-100)

    def loss(x, transitions, start, end):
        options = {"start": start, "end": end, "mask": mask, "reduction": reduction}
        return cj.crf_loss(x, tags, transitions, **options).sum()

    options = {"start": np.asarray(start), "end": np.asarray(end), "mask": np.asarray(mask), "reduction": reduction}
    expected = csoftmax.crf_loss_with_grad(np.asarray(x), np.asarray(tags), np.asarray(transitions), **options)
    np.testing.assert_allclose(jax.jit(loss)(x, transitions, start, end), np.sum(expected.loss), rtol=1e-14)
    grads = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(x, transitions, start, end)
    for got, right in zip(grads, expected[1:], strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-13, atol=1e-15)
    check_grads(loss, (x, transitions, start, end), 1, modes=["rev"])


def test_crf_loss_of_batches_and_dtypes():
    x, tags = draw("float32", (2, 3, 6, 4)), jnp.asarray(RNG.integers(0, 4, (2, 3, 6)))
    transitions = draw("float32", (4, 4))
    each = jax.vmap(lambda x, t: cj.crf_loss(x, t, transitions, reduction="none"))(x, tags)
    assert_same = np.testing.assert_array_equal
    assert_same(each, csoftmax.crf_loss(np.asarray(x), np.asarray(tags), np.asarray(transitions), reduction="none"))
    for dtype in ("float16", "bfloat16"):
        grad = jax.grad(cj.crf_loss)(x.astype(dtype), tags, transitions)
        assert grad.dtype == dtype
    with pytest.raises(KERNEL_ERRORS, match="label"):
        cj.crf_loss(x, tags.at[0, 0, 0].set(4), transitions).block_until_ready()
    with pytest.raises(ValueError, match=r"start has shape \(3,\)"):
        cj.crf_loss(x, tags, transitions, start=jnp.zeros(3))
    assert jnp.isnan(cj.crf_loss(x, tags, transitions, mask=jnp.zeros(tags.shape, bool)))


@pytest.mark.parametrize("wide", [False, True])
def test_rows_have_the_bits_that_they_have_alone(wide):
    """Temperatures and alphas of rows, under jit too; the gradient of alpha is that of `csoftmax.entmax_vjp`."""
    with set_float64(wide):
        dtype = np.float64 if wide else np.float32
        t = jnp.asarray(np.array([[1.0], [0.5], [3.0], [7.25], [1e-30], [1.0]], dtype))
        alpha = jnp.asarray(np.array([[1.0], [1.5], [2.0], [1.25], [4.0], [1.0]], dtype))
        x, dy = (jnp.asarray(RNG.standard_normal((6, 7)).astype(dtype)) for _ in range(2))
        for function, numbers in (
            (lambda x, t: cj.softmax(x, temperature=t), t),
            (lambda x, t: csoftmax.log_softmax(x, temperature=t), t),
            (lambda x, t: cj.logsumexp(x, temperature=t), t),
            (cj.entmax, alpha),
        ):
            y, backward = jax.vjp(jax.jit(function), x, numbers)
            upstream = dy[:, 0] if y.ndim == 1 else dy
            dx, of_numbers = backward(upstream)
            for i, number in enumerate(np.asarray(numbers).ravel()):
                row = slice(i, i + 1)
                one, alone = jax.vjp(lambda x, n=float(number), f=function: f(x, n), x[row])
                np.testing.assert_array_equal(one, y[row])
                np.testing.assert_array_equal(alone(upstream[row])[0], dx[row])
            if numbers is t:
                assert not of_numbers.any()
            else:
                arrays = map(np.asarray, (dy, y, alpha))
                expected = csoftmax.entmax_vjp(*arrays, return_alpha_grad=True).alpha_grad
                np.testing.assert_array_equal(of_numbers, expected.astype(dtype))
        labels = jnp.array([0, 1, 2, 3, 6, -100])
        arrays = [np.asarray(a) for a in (x, labels, t)]
        got = jax.jit(lambda t: cj.cross_entropy(x, labels, temperature=t, reduction="none"))(t)
        expected = csoftmax.cross_entropy_with_grad(*arrays[:2], temperature=arrays[2], reduction="none")
        np.testing.assert_array_equal(got, expected.loss)
        grad = jax.grad(lambda x: cj.cross_entropy(x, labels, temperature=t, reduction="sum"))(x)
        np.testing.assert_array_equal(grad, expected.grad)
        turned = cj.cross_entropy(x.T, labels, 0, temperature=t.T, reduction="none")
        np.testing.assert_array_equal(turned, got)
        apart = jax.vmap(lambda x, t: cj.softmax(x, temperature=t))(x[:, None], t[:, None])
        np.testing.assert_array_equal(apart[:, 0], cj.softmax(x, temperature=t))


def test_gradients_of_shared_alphas():
    x, dy = draw("float64", (2, 3, 5)), RNG.standard_normal((2, 3, 5))
    for alpha in (1.3, np.full((3, 1), 1.3), np.full((1,), 1.3)):
        got = jax.grad(lambda a: (csoftmax.entmax(x, a) * dy).sum())(alpha)
        y = csoftmax.entmax(np.asarray(x), alpha)
        expected = csoftmax.entmax_vjp(dy, y, alpha, return_alpha_grad=True).alpha_grad
        assert got.shape == np.shape(alpha)
        np.testing.assert_allclose(got, expected, rtol=1e-14)
    check_grads(lambda x, a: cj.entmax(x, a), (x, jnp.full((2, 3, 1), 1.4)), 1, ["rev"], atol=1e-6, rtol=1e-6)


def test_errors_of_parameters_of_rows():
    x = draw("float32", (3, 4))
    with pytest.raises(ValueError, match=r"temperature has shape \(3,\); allowed are .* broadcasts to \(3, 1\)"):
        cj.softmax(x, temperature=jnp.ones(3))
    with pytest.raises(TypeError, match="alpha must hold real numbers, got bool"):
        cj.entmax(x, jnp.ones((3, 1), bool))
    for call in (lambda: cj.softmax(x, temperature=jnp.zeros((3, 1)) - 1), lambda: cj.entmax(x, jnp.zeros((3, 1)))):
        with pytest.raises(KERNEL_ERRORS, match="csoftmax"):
            jax.block_until_ready(call())
