"""Calls on tensors that require grad and on JAX's tracers: csoftmax.torch and csoftmax.jax compute them."""

import functools
import importlib
import inspect

import numpy as np
import pytest
from helpers import assert_same_bits

import csoftmax
from csoftmax import adversarial, geometric

NO_OPTION = r"{} requires grad, and csoftmax\.torch\.softmax has no option {}: call it without, or pass {}\.detach\(\)"


def takes_arrays(name):
    function = getattr(csoftmax, name)
    options = inspect.signature(function).parameters if inspect.isroutine(function) else {}
    return "num_threads" in options and options["num_threads"].kind is inspect.Parameter.KEYWORD_ONLY


PUBLIC_FUNCTIONS = [
    *((name, getattr(csoftmax, name)) for name in csoftmax.__all__ if takes_arrays(name)),
    *((name, getattr(csoftmax, name)) for name in ("check_labels", "to_csr", "add_rows")),
    *(
        (name, getattr(module, name))
        for module in (adversarial, geometric)
        for name in module.__all__
        if name.islower()
    ),
]


def call_with(function, x):
    """Call a function with x for every argument that it requires, eps excepted."""
    parameters = inspect.signature(function).parameters.values()
    required = [p for p in parameters if p.default is p.empty]
    options = {p.name: 0.1 for p in required if p.kind is p.KEYWORD_ONLY}
    return function(*[x] * (len(required) - len(options)), **options)


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")


@pytest.fixture
def jax():
    return pytest.importorskip("jax", reason="the gate installs it")


def test_recorded_tensors_go_to_the_operators(torch):
    """A tensor that requires grad, a parameter among them, is computed by csoftmax.torch with all options."""
    operators = importlib.import_module("csoftmax.torch")
    x = torch.nn.Parameter(torch.randn(3, 4))
    y, w = torch.tensor([0, 2, 1]), torch.randn(5, 4)
    for ours, theirs in (
        (csoftmax.softmax(x, 0, temperature=2.0), operators.softmax(x, 0, temperature=2.0)),
        (csoftmax.log_softmax(x, axis=np.int64(-1)), operators.log_softmax(x)),
        (csoftmax.entmax(x, 1.3, 0), operators.entmax(x, 1.3, 0)),
        (csoftmax.logsumexp(x, where=w[:3] > 0), operators.logsumexp(x, where=w[:3] > 0)),
        (csoftmax.topk_softmax(x, 2).values, operators.topk_softmax(x, 2).values),
        (csoftmax.cross_entropy(x.T, y, axis=0, z_loss=0.1), operators.cross_entropy(x.T, y, dim=0, z_loss=0.1)),
        (csoftmax.linear_cross_entropy(x.detach(), w.requires_grad_(), y), operators.linear_cross_entropy(x, w, y)),
    ):
        assert ours.requires_grad
        assert torch.equal(ours, theirs)
    csoftmax.cross_entropy(x, y, reduction="sum").backward()
    expected = csoftmax.cross_entropy_with_grad(x.detach(), y, reduction="sum").grad
    assert torch.equal(x.grad, expected)


def test_options_have_the_bits_of_numpy(torch):
    operators = importlib.import_module("csoftmax.torch")
    x = torch.randn(3, 4, dtype=torch.float64)
    where, s = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4]), torch.tensor([0.5, 0.0, 2.0])
    for name in ("softmax", "log_softmax", "logsumexp", "sparsemax", "entmax"):
        got = getattr(operators, name)(x, where=where)
        assert_same_bits(got.numpy(), getattr(csoftmax, name)(x.numpy(), where=where.numpy()))
    assert operators.logsumexp(x, 0, keepdims=True).shape == (1, 4)
    y, w = torch.tensor([0, 2, 1]), torch.randn(5, 4, dtype=torch.float64)
    got = operators.cross_entropy(x, y, sample_weight=s)
    assert_same_bits(got.numpy(), csoftmax.cross_entropy(x.numpy(), y.numpy(), sample_weight=s.numpy()))
    got = operators.linear_cross_entropy(x, w, y, sample_weight=s)
    np.testing.assert_allclose(
        got, csoftmax.linear_cross_entropy(x.numpy(), w.numpy(), y.numpy(), sample_weight=s.numpy()), rtol=1e-14
    )
    for call in (lambda: operators.softmax(x, where=[True] * 4), lambda: operators.logsumexp(x, where=where.numpy())):
        with pytest.raises(TypeError, match=r"where must be a torch\.Tensor"):
            call()


def test_arguments_of_other_kinds_are_accepted(torch):
    """As in a call that is not recorded: lists and NumPy arrays, a tuple of one axis."""
    x, y = torch.randn(3, 4, requires_grad=True), np.array([0, 2, 1])
    plain, w = x.detach().numpy(), np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    mask = plain > 0
    for call in (
        lambda x: csoftmax.softmax(x, where=mask),
        lambda x: csoftmax.softmax(x, (1,), where=[True, False, True, True]),
        lambda x: csoftmax.logsumexp(x, (-2,), where=mask, keepdims=True),
        lambda x: csoftmax.entmax(x, np.float32(1.25), where=mask.tolist()),
        lambda x: csoftmax.topk_softmax(x, 2).values,
        lambda x: csoftmax.cross_entropy(x, [0, 2, 1], weight=[1.0, 2.0, 3.0, 4.0], sample_weight=[1, 0, 2]),
        lambda x: csoftmax.cross_entropy(x, y.astype(">i4"), sample_weight=np.float16([1, 0.5, 2])[::-1]),
        lambda x: csoftmax.cross_entropy(x[0], 2),
        lambda x: csoftmax.linear_cross_entropy(x, w, y, bias=np.ones(5, np.float32), sample_weight=2.0),
        lambda x: csoftmax.negative_sampling_loss(x, w, y, [1, 3]),
    ):
        got = call(x)
        assert got.requires_grad
        np.testing.assert_allclose(got.detach().numpy(), np.asarray(call(plain)), rtol=1e-6)
    with pytest.raises(TypeError, match="axis must be an int, got True"):
        csoftmax.softmax(x, True)
    with pytest.raises(TypeError, match=r"axis must be an int, got 1\.0"):
        csoftmax.softmax(x, 1.0)
    for t in ([[1.0], [2.0], [3.0]], np.ones((3, 1)), torch.ones(3, 1)):
        got = csoftmax.softmax(x, temperature=t)
        assert got.requires_grad
        np.testing.assert_array_equal(got.detach().numpy(), csoftmax.softmax(plain, temperature=t))
    with pytest.raises(TypeError, match=r"^softmax\(\): missing a required argument: 'x'"):
        csoftmax.softmax(axis=x)


def test_what_the_operators_lack_is_named(torch):
    x = torch.randn(3, 4, requires_grad=True)
    plain = x.detach()
    for options, name in (({"num_threads": 1}, "num_threads"), ({"device": "cpu"}, "device")):
        with pytest.raises(ValueError, match=NO_OPTION.format("x", name, "x")):
            csoftmax.softmax(x, **options)
    with pytest.raises(ValueError, match=NO_OPTION.format("out", "out", "out")):
        csoftmax.softmax(plain, out=x)
    assert torch.equal(x, plain)
    with pytest.raises(ValueError, match=r"x requires grad, and csoftmax\.torch\.softmax takes one axis, not None"):
        csoftmax.softmax(x, None)
    with pytest.raises(TypeError, match=r"^softmax\(\): got an unexpected keyword argument 'temp'"):
        csoftmax.softmax(x, temp=2.0)
    for options in ({"rng": 0}, {"axis": 0, "size": 2}, {"where": np.ones(4, bool)}):  # which it takes as **options
        with pytest.raises(ValueError, match=r"^logits requires grad, and no gradient flows to it here: pass"):
            csoftmax.sample(x, **options)


def test_no_function_computes_a_tensor_without_its_gradient(torch):
    """Each function whose argument requires grad is in csoftmax.torch, or says that it is not and what to do."""
    operators = importlib.import_module("csoftmax.torch")
    x = torch.ones(2, 2, requires_grad=True)
    lacking = []
    for name, function in PUBLIC_FUNCTIONS:
        if name in operators.__all__:
            continue
        lacking.append(name)
        message = rf"\w+ requires grad, and csoftmax\.torch has no {name}: pass \w+\.detach"
        with pytest.raises(ValueError, match=message):
            call_with(function, x)
    assert len(lacking) > 30


@pytest.mark.parametrize("context", ["no_grad", "inference_mode"])
def test_nothing_is_recorded_where_autograd_is_off(torch, context):
    x = torch.randn(3, 4, requires_grad=True)
    plain = x.detach().numpy().copy()
    with getattr(torch, context)():
        for name in ("softmax", "logsumexp", "sparsemax"):
            got = getattr(csoftmax, name)(x, num_threads=1)
            assert not got.requires_grad
            assert_same_bits(got.numpy(), getattr(csoftmax, name)(plain))
        y, weight = torch.tensor([0, 1, 2]), torch.nn.Parameter(torch.ones(3))
        grad = csoftmax.cross_entropy_with_grad(x, y, sample_weight=weight).grad
        assert_same_bits(
            grad.numpy(), csoftmax.cross_entropy_with_grad(plain, [0, 1, 2], sample_weight=np.ones(3)).grad
        )
    with torch.no_grad():
        assert csoftmax.softmax(x, out=x) is x
    assert_same_bits(x.detach().numpy(), csoftmax.softmax(plain))


def test_tracers_go_to_the_operators(jax):
    jnp = jax.numpy
    x, y = jnp.asarray(np.float32([[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]])), jnp.array([2, 0])
    plain = np.asarray(x)
    jitted = jax.jit(lambda z: csoftmax.softmax(z, 0, temperature=2.0))(x)
    assert_same_bits(np.asarray(jitted), csoftmax.softmax(plain, 0, temperature=2.0))
    assert_same_bits(np.asarray(jax.vmap(csoftmax.entmax)(x)), csoftmax.entmax(plain))
    grad = jax.grad(lambda z: csoftmax.cross_entropy(z, y))(x)
    np.testing.assert_allclose(grad, csoftmax.cross_entropy_with_grad(plain, np.asarray(y)).grad, rtol=1e-6)
    grad = jax.grad(lambda z: csoftmax.logsumexp(z).sum())(x)
    np.testing.assert_allclose(grad, csoftmax.softmax(plain), rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"x is a tracer of JAX, and csoftmax\.jax has no topk: call it outside of jax"
    ):
        jax.jit(lambda z: csoftmax.topk(z, 2))(x)
    with pytest.raises(ValueError, match=r"x is a tracer of JAX, and csoftmax\.jax\.softmax has no option num_threads"):
        jax.jit(lambda z: csoftmax.softmax(z, num_threads=1))(x)


def test_no_function_reads_a_tracer(jax):
    """Each function that gets a tracer is in csoftmax.jax, or says that it is not and what to do."""
    operators = importlib.import_module("csoftmax.jax")
    lacking = []

    def call(x):
        for name, function in PUBLIC_FUNCTIONS:
            if name in operators.__all__:
                continue
            lacking.append(name)
            message = rf"^\w+ is a tracer of JAX, and csoftmax\.jax has no {name}: call it outside of jax\.jit, "
            with pytest.raises(ValueError, match=message):
                call_with(function, x)
        return x

    jax.jit(call)(jax.numpy.ones((2, 2)))
    assert len(lacking) > 35


def test_no_class_or_function_of_another_module_reads_a_tracer(jax):
    """There is no operator of their names, and what they read in Python says what to do."""
    pytest.importorskip("sklearn", reason="the learn extra has it")
    from csoftmax import calibration, class_weight, distributed, heads, linear_model, metrics, samplers

    matrix = np.eye(3)
    calls = {
        "TreeSampler.fit": lambda x: adversarial.TreeSampler(3).fit(x, [0, 1, 2]),
        "Cost": lambda x: geometric.Cost(x),
        "Cost of points": lambda x: geometric.Cost(points=x),
        "SoftmaxRegression": lambda x: linear_model.SoftmaxRegression().fit(x, [0, 1, 2]),
        "TemperatureScaling": lambda x: calibration.TemperatureScaling().fit(x, [0, 1, 2]),
        "Int8Head": lambda x: heads.Int8Head(x),
        "Int8Head.topk": lambda x: heads.Int8Head(np.float32(matrix)).topk(x, 1),
        "int8_topk": lambda x: heads.int8_topk(x, np.float32(matrix), 1),
        "UnigramSampler": lambda x: samplers.UnigramSampler(x[0]),
        "hash_buckets": lambda x: heads.hash_buckets(x, 4, 1, 0),
        "classes": lambda x: csoftmax.margin_cross_entropy_with_grad(matrix, matrix, [0, 1, 2], classes=x),
    }
    for module in (metrics, class_weight):
        names = [name for name in module.__all__ if name.islower() and name != "evaluate"]
        calls |= {name: functools.partial(call_with, getattr(module, name)) for name in names}
    for name in ("softmax", "log_softmax", "logsumexp", "partial"):
        options = {"offset": 0, "n_classes": 3} if name == "partial" else {"group": distributed.SingleProcess()}
        calls[f"distributed.{name}"] = functools.partial(getattr(distributed, name), **options)

    def call(x):
        for name, function in calls.items():
            with pytest.raises(ValueError, match="is a tracer of JAX") as error:
                function(x)
            assert "call it outside of jax.jit" in str(error.value), name
        return x

    jax.jit(call)(jax.numpy.asarray(np.float32(matrix)))


def test_the_kind_of_orders_and_arguments_of_bessel_functions(torch, jax):
    """That of x, where it is not of NumPy; else that of the orders."""
    x, plain = torch.tensor([[1.0, 2.0]], dtype=torch.float64), np.array([[1.0, 2.0]])
    for function in (geometric.log_bessel_iv, geometric.bessel_ratio):
        expected = function(1.0, plain)
        for nu in (1, 1.0, np.float32(1), [1.0], np.ones(1), torch.ones(1), jax.numpy.ones(1)):
            got = function(nu, x)
            assert isinstance(got, torch.Tensor)
            assert got.dtype == torch.float64
            assert_same_bits(got.numpy(), expected)
        assert isinstance(function(1.0, jax.numpy.ones(3)), jax.Array)
        assert isinstance(function(x, 1.0), torch.Tensor)
        assert isinstance(function(x, plain), torch.Tensor)
        assert type(function(1.0, plain)) is np.ndarray
        assert isinstance(function(1.0, 2.0), np.float64)
