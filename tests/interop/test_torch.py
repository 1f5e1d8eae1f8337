"""PyTorch tensors as arguments and results: bits, memory, errors; the operators of csoftmax.torch."""

import importlib
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_model import stand_in
from helpers import assert_same_bits, docstrings

import csoftmax
from csoftmax._spec.operations import SOFTMAX_FAMILY
from csoftmax._spec.samples import logits

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
ct = importlib.import_module("csoftmax.torch")
losses, rows, topk = (importlib.import_module(f"csoftmax._torch.{name}") for name in ("losses", "rows", "topk"))
ml_dtypes = pytest.importorskip("ml_dtypes")

DTYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def tensor(a):
    """A tensor with a copy of the array's numbers."""
    a = np.ascontiguousarray(a)
    if a.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(a.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(a.copy())


def array(t):
    assert isinstance(t, torch.Tensor)
    if t.dtype == torch.bfloat16:
        return t.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return t.numpy()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", SOFTMAX_FAMILY, ids=lambda op: op.name)
def test_softmax_family(op, dtype):
    for shape in ((4, 30), (3, 5, 700), (7,), (0, 5)):
        arrays = op.make(shape, dtype)
        expected = np.asarray(op.function()(*arrays))
        given = [tensor(a) for a in arrays]
        got = op.function()(*given)
        assert got.dtype == DTYPES[dtype]
        assert_same_bits(array(got), expected)
        for t, a in zip(given, arrays, strict=True):
            assert_same_bits(array(t), a)
        if op.has_out and op.keeps_axis:
            assert op.function()(*given, out=given[0]) is given[0]
            assert_same_bits(array(given[0]), expected)


def test_layouts():
    x = torch.randn(6, 8, 10)
    for view in (x.transpose(0, 2), x[::2, 1:], x[0].expand(4, 8, 10), x.permute(1, 2, 0)):
        for axis in (0, -1, (0, 1), None):
            assert_same_bits(array(csoftmax.softmax(view, axis)), csoftmax.softmax(view.numpy(), axis))
    out = torch.zeros(10, 8, 6).transpose(0, 2)
    assert csoftmax.softmax(x, out=out) is out
    assert_same_bits(out.numpy(), csoftmax.softmax(x.numpy()))
    assert csoftmax.logsumexp(x[0, 0]).shape == ()
    assert csoftmax.softmax(torch.tensor(3.0)).item() == 1


def test_masks_and_integers():
    x, mask = torch.randn(5, 9), torch.rand(5, 9) < 0.5
    expected = csoftmax.softmax(x.numpy(), where=mask.numpy())
    assert_same_bits(array(csoftmax.softmax(x, where=mask)), expected)
    assert_same_bits(array(csoftmax.softmax(x, where=mask.numpy())), expected)
    assert_same_bits(csoftmax.softmax(x.numpy(), where=mask), expected)  # the first argument decides
    assert csoftmax.softmax(torch.arange(4)).dtype == torch.float64


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy(dtype):
    x, w = logits((6, 40), dtype), np.random.default_rng(0).random(40)
    w = w.astype(np.float64 if dtype == "float64" else np.float32)
    target = np.array([0, 39, 5, -100, 7, 7])
    for options in ({}, {"reduction": "none"}, {"weight": w, "label_smoothing": 0.1, "sample_weight": np.arange(6.0)}):
        given = {k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        expected = csoftmax.cross_entropy_with_grad(x, target, **options)
        got = csoftmax.cross_entropy_with_grad(tensor(x), tensor(target), **given)
        assert isinstance(got, csoftmax.CrossEntropyResult)
        assert_same_bits(array(got.loss), np.asarray(expected.loss))
        assert_same_bits(array(got.grad), expected.grad)
        assert_same_bits(array(csoftmax.cross_entropy(tensor(x), tensor(target), **given)), np.asarray(expected.loss))
    logits_ = tensor(x)
    result = csoftmax.cross_entropy_with_grad(logits_, tensor(target), out=logits_)
    assert result.grad is logits_
    with pytest.raises(IndexError, match=r"target\[1\] is 40"):
        csoftmax.cross_entropy(tensor(x), torch.tensor([0, 40, 0, 0, 0, 0]))
    with pytest.raises(IndexError, match=r"target\[1\] is 40"):
        csoftmax.check_labels(torch.tensor([0, 40]), 40)


def test_linear_cross_entropy():
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((6, 5), (11, 5), 11))
    target = rng.integers(0, 11, 6)
    for bias in (None, b):
        expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias)
        t = None if bias is None else tensor(bias)
        got = csoftmax.linear_cross_entropy_with_grad(tensor(x), tensor(w), tensor(target), bias=t)
        assert isinstance(got, csoftmax.LinearCrossEntropyResult)
        for result, a in zip(got, expected, strict=True):
            assert (result is None) == (a is None)
            assert result is None or np.array_equal(array(result), a)
        loss = csoftmax.linear_cross_entropy(tensor(x), tensor(w), tensor(target), bias=t)
        assert loss.item() == csoftmax.linear_cross_entropy(x, w, target, bias=bias)


def test_sparse():
    x = logits((6, 50))
    t = tensor(x)
    target = np.arange(6)
    for f in (
        lambda x, target: csoftmax.topk(x, 5),
        lambda x, target: csoftmax.topk_softmax(x, 5, normalize="full"),
        lambda x, target: csoftmax.sparsemax(x),
        lambda x, target: csoftmax.entmax(x, 1.3),
        lambda x, target: csoftmax.entmax(x, 1),
        lambda x, target: csoftmax.entmax_vjp(x, csoftmax.entmax(x)),
        lambda x, target: csoftmax.entmax_loss_with_grad(x, target),
        lambda x, target: csoftmax.entmax_loss(x, target, reduction="none"),
        lambda x, target: csoftmax.entmax_loss(x, target, alpha=1),
        lambda x, target: csoftmax.sample(x, top_k=5, size=3, rng=0),
    ):
        expected, got = f(x, target), f(t, tensor(target))
        if isinstance(expected, tuple):
            assert type(got) is type(expected)
        else:
            expected, got = (expected,), (got,)
        for result, a in zip(got, expected, strict=True):
            assert_same_bits(array(result), np.asarray(a))
    assert csoftmax.to_csr(csoftmax.topk(t, 5), 50).nnz == 30
    out = torch.empty(6, 50)
    assert csoftmax.sparsemax(t, out=out) is out
    assert csoftmax.sparsemax(x, out=out) is out  # another library than that of the first argument
    assert_same_bits(array(out), csoftmax.sparsemax(x))
    pair = torch.empty(6, 5), torch.empty(6, 5, dtype=torch.int64)
    best = csoftmax.topk_softmax(t, 5, out=pair)
    assert best.values is pair[0]
    assert best.indices is pair[1]
    assert_same_bits(array(pair[0]), csoftmax.topk_softmax(x, 5).values)


class Cuda(torch.Tensor):
    """A tensor that claims to be on a CUDA device; like that of the model of a device, its memory is the CPU's."""

    device = property(lambda self: torch.device("cuda", 0))

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, **options):
        return self.as_subclass(torch.Tensor).__dlpack__(**options)


@pytest.fixture
def on_cuda(monkeypatch, tmp_path):
    """Function from an array to a Cuda tensor; the model of a device is installed and PyTorch takes its arrays."""
    from_dlpack = torch.from_dlpack

    def take(a):
        assert a.__dlpack_device__() == (2, 0)
        return from_dlpack(a.view(np.ndarray)).as_subclass(Cuda)

    monkeypatch.setattr(torch, "from_dlpack", take)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=42))
    monkeypatch.setattr(stand_in.Stream, "waits", [])
    with stand_in.installed(tmp_path):
        yield lambda a: tensor(a).as_subclass(Cuda)


def array_from_cuda(t):
    assert type(t) is Cuda
    return array(t.as_subclass(torch.Tensor))


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the model of a device needs g++")


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_on_cuda(on_cuda, dtype):
    """They pass through DLPack to CuPy and back in the same memory; PyTorch's stream waits for writes to its out."""
    x, labels = logits((5, 40), dtype), np.arange(5)
    z, classes = on_cuda(x), on_cuda(labels)
    assert_same_bits(array_from_cuda(csoftmax.softmax(z)), csoftmax.softmax(x))
    assert_same_bits(array_from_cuda(csoftmax.log_softmax(z.T, 0)), csoftmax.log_softmax(x.T, 0))
    got, expected = csoftmax.cross_entropy_with_grad(z, classes), csoftmax.cross_entropy_with_grad(x, labels)
    assert_same_bits(array_from_cuda(got.grad), expected.grad)
    assert_same_bits(array_from_cuda(got.loss), np.asarray(expected.loss))
    best = csoftmax.topk(z, 3)
    assert np.array_equal(array_from_cuda(best.indices), csoftmax.topk(x, 3).indices)
    assert stand_in.Stream.waits == []
    assert_same_bits(array_from_cuda(z), x)
    assert csoftmax.softmax(z, out=z) is z
    assert stand_in.Stream.waits == [(42, 0)]
    assert_same_bits(array_from_cuda(z), csoftmax.softmax(x))


@needs_compiler
def test_errors_of_tensors_on_two_devices(on_cuda):
    x, labels = logits((5, 40)), np.arange(5)
    with pytest.raises(csoftmax.DeviceError, match="target is on the CPU"):
        csoftmax.cross_entropy(on_cuda(x), tensor(labels))
    with pytest.raises(csoftmax.DeviceError, match="target is a CuPy array"):
        csoftmax.cross_entropy(tensor(x), on_cuda(labels))
    back = csoftmax.softmax(on_cuda(x), device="cpu")
    assert type(back) is torch.Tensor
    assert_same_bits(array(back), csoftmax.softmax(x))


def test_errors_of_tensors():
    x = torch.randn(3, 4)
    with pytest.raises(TypeError, match="strided"):
        csoftmax.softmax(x.to_sparse())
    with pytest.raises(TypeError, match="meta"):
        csoftmax.softmax(x.to("meta"))
    with pytest.raises(TypeError, match="complex64"):
        csoftmax.softmax(x.to(torch.complex64))
    with pytest.raises(TypeError, match="bool"):
        csoftmax.softmax(x > 0)
    with pytest.raises(ValueError, match=r"out has shape \(3, 5\)"):
        csoftmax.softmax(x, out=torch.empty(3, 5))
    with pytest.raises(csoftmax.DeviceError, match="cuda"):
        csoftmax.softmax(x, device="cuda:99")


def test_views_that_negate_or_conjugate():
    """The negative bit says that memory holds the negatives: they are copied, and nothing is written to them."""
    z = torch.randn(5, 9, dtype=torch.complex64)
    x = z.conj().imag
    assert x.is_neg()
    plain = x.resolve_neg()
    for function in (csoftmax.softmax, csoftmax.logsumexp, csoftmax.sparsemax, csoftmax.torch.softmax):
        assert torch.equal(function(x), function(plain))
    assert torch.equal(csoftmax.topk(x, 3).values, csoftmax.topk(plain, 3).values)
    assert csoftmax.sample(x[0], rng=0) == csoftmax.sample(plain[0], rng=0)
    target = torch._neg_view(-torch.arange(5))
    assert csoftmax.cross_entropy(x, target) == csoftmax.cross_entropy(plain, torch.arange(5))
    assert torch.equal(csoftmax.softmax(plain, out=plain.clone()), csoftmax.softmax(x))
    half = torch._neg_view(torch.randn(4).bfloat16())
    assert torch.equal(csoftmax.softmax(half), csoftmax.softmax(half.resolve_neg()))
    before = z.clone()
    with pytest.raises(TypeError, match=r"out is a tensor with the negative bit, .* pass an ordinary one"):
        csoftmax.softmax(plain, out=x)
    assert torch.equal(z, before)
    with pytest.raises(TypeError, match="x has dtype complex64; allowed are float16"):
        csoftmax.softmax(z.conj())
    assert torch.equal(csoftmax.softmax(torch._efficientzerotensor(4)), torch.full((4,), 0.25))
    with pytest.raises(TypeError, match=r"x has dtype torch\.float8_e5m2, which NumPy lacks"):
        csoftmax.softmax(torch.ones(3).to(torch.float8_e5m2))
    with pytest.raises(TypeError, match=r"x is a tensor whose memory cannot be accessed.*functions of csoftmax\.torch"):
        csoftmax.softmax(torch._subclasses.FakeTensorMode().from_tensor(torch.ones(3)))


def test_bfloat16_without_ml_dtypes(monkeypatch):
    """The argument and the command are named, and nothing is written."""
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)  # as if it were not installed
    x, y = torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3)
    for name, call in (
        ("x", lambda: csoftmax.softmax(x)),
        ("x", lambda: csoftmax.torch.softmax(x)),
        ("logits", lambda: csoftmax.cross_entropy(x, 0)),
        ("weight", lambda: csoftmax.cross_entropy_with_grad(y, 0, weight=x, out=y)),
        ("out", lambda: csoftmax.softmax(y, out=x)),
    ):
        with pytest.raises(ImportError, match=rf"{name} is a bfloat16 tensor, .*: pip install ml_dtypes"):
            call()
    assert not x.any()
    assert not y.any()


def test_lists_of_tensors():
    """NumPy reads those it can; for others the message says what to pass."""
    plain, grad = torch.arange(3.0), torch.ones(3, requires_grad=True)
    np.testing.assert_array_equal(csoftmax.softmax([plain, plain]), csoftmax.softmax(np.stack([plain, plain])))
    for x in ([plain, grad], (grad, plain), [[plain[0], grad[0]]], [[[1.0, grad[1]]]]):
        with pytest.raises(
            ValueError, match=r"x is a (list|tuple) that holds a tensor which requires grad.*stack\(x\)"
        ):
            csoftmax.softmax(x)
    with pytest.raises(ValueError, match=r"target is a list .* requires grad.*torch\.stack\(target\)"):
        csoftmax.cross_entropy(np.ones((1, 3)), [grad])
    for x in ([plain.bfloat16()], [plain.to("meta")], [torch.ones(3, dtype=torch.complex64).conj().imag]):
        with pytest.raises(TypeError, match=r"x is a list that holds a tensor which NumPy cannot read .*stack\(x\)"):
            csoftmax.softmax(x)


@pytest.mark.parametrize("value", [True, False, np.True_, torch.tensor(True)])
def test_integers_that_are_no_bools(value):
    x, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    for call in (
        lambda: ct.softmax(x, value),
        lambda: ct.log_softmax(x, dim=value),
        lambda: ct.entmax(x, 1.5, value),
        lambda: ct.sparsemax(x, value),
        lambda: ct.topk_softmax(x, 1, value),
        lambda: ct.cross_entropy(x, labels, dim=value),
    ):
        with pytest.raises(TypeError, match="dim must be an int, got"):
            call()
    with pytest.raises(TypeError, match="k must be an int, got"):
        ct.topk_softmax(x, value)
    for number in (value, 1.5):
        with pytest.raises(TypeError, match="ignore_index must be an int, got"):
            ct.cross_entropy(x, labels, ignore_index=number)
        with pytest.raises(TypeError, match="ignore_index must be an int, got"):
            ct.linear_cross_entropy(x, x, labels, ignore_index=number)
    with pytest.raises(TypeError, match="temperature must be a real number, got"):
        ct.softmax(x, temperature=value)
    with pytest.raises(TypeError, match="axis must be an int, a tuple of ints or None, not a bool"):
        csoftmax.softmax(x, value)
    with pytest.raises(TypeError, match="axis must be an int, a tuple of ints or None, not a bool"):
        csoftmax.softmax(x, (0, value))
    with pytest.raises(TypeError, match="num_threads must be an int"):
        csoftmax.set_num_threads(value)


# csoftmax.torch


def make_calls():
    """Name -> (operator, arguments of which some record a gradient)."""

    def x(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    def turned(*shape):
        return x(*shape).detach().T.requires_grad_()

    generator = torch.Generator().manual_seed(0)
    target, soft = torch.tensor([0, 4, 2, -100]), torch.rand(4, 5, dtype=torch.float64, generator=generator)
    weight = torch.rand(5, dtype=torch.float64, generator=generator)
    mask = torch.rand(3, 5, generator=generator) < 0.7
    row_weights = torch.rand(4, dtype=torch.float64, generator=generator)
    temperatures = torch.tensor([[0.5], [1.0], [2.0]], dtype=torch.float64)
    base = (None, None, None, 0.0, -100, 0.0, 1.0, 0.0)
    full = (weight, row_weights, None, 0.1, -100, 0.01, 2.0, 3.0)
    return {
        "softmax": (rows.apply_softmax, (x(3, 5), 0, 1.5, None, None)),
        "log_softmax": (rows._log_softmax, (turned(3, 5), 1, 1.0, None, None)),
        "entmax": (rows._entmax, (x(3, 5), -1, 1.5, None, None)),
        "softmax where": (rows.apply_softmax, (x(3, 5), 0, 1.5, None, mask)),
        "log_softmax where": (rows._log_softmax, (x(3, 5), 1, 1.5, None, mask | (torch.arange(5) == 0))),
        "entmax where": (rows._entmax, (x(3, 5), 1, 1.5, None, mask | (torch.arange(5) == 0))),
        "logsumexp": (rows._logsumexp, (x(3, 5), 0, 1.5, None, None)),
        "logsumexp where": (rows._logsumexp, (turned(5, 3), -1, 0.5, None, mask | (torch.arange(5) == 0))),
        "topk_softmax": (topk._topk_softmax, (x(3, 5), 2, -1, 1.5, None, False, None)),
        "topk_softmax full": (topk._topk_softmax, (x(3, 5), 2, -1, 1.5, None, True, None)),
        "topk_softmax where": (topk._topk_softmax, (x(3, 5), 2, -1, 1.5, None, False, mask)),
        "topk_softmax full where": (topk._topk_softmax, (x(3, 5), 2, -1, 1.5, None, True, mask)),
        "cross_entropy": (losses._cross_entropy, (x(4, 5), target, -1, *base, "mean", True)),
        "softmax turned": (rows.apply_softmax, (turned(3, 5), 1, 1.0, None, None)),
        "cross_entropy turned": (losses._cross_entropy, (turned(5, 4), target, -1, *base, "mean", True)),
        "entmax turned": (rows._entmax, (turned(3, 5), 0, 1.3, None, None)),
        "topk_softmax turned": (topk._topk_softmax, (turned(3, 5), 2, 0, 1.5, None, True, None)),
        "linear turned": (losses._linear_cross_entropy, (turned(3, 4), turned(3, 5), target, x(5), *base, "sum", True)),
        "cross_entropy none": (losses._cross_entropy, (x(5, 4), target, 0, *full, "none", True)),
        "cross_entropy soft": (losses._cross_entropy, (x(4, 5), soft, -1, *full, "sum", True)),
        "linear": (losses._linear_cross_entropy, (x(4, 3), x(5, 3), target, x(5), *full, "mean", True)),
        "softmax rows": (rows.apply_softmax, (x(3, 5), 1, 1.0, temperatures, None)),
        "log_softmax rows": (rows._log_softmax, (x(5, 3), 0, 1.0, temperatures.T, None)),
        "entmax rows": (rows._entmax, (x(3, 5), 1, 2.0, x(3, 1).detach().abs().add(1.2).requires_grad_(), mask)),
        "logsumexp rows": (rows._logsumexp, (x(3, 5), 1, 1.0, temperatures, mask | (torch.arange(5) == 0))),
        "topk_softmax rows": (topk._topk_softmax, (x(3, 5), 2, -1, 1.0, temperatures, True, mask)),
        "cross_entropy rows": (
            losses._cross_entropy,
            (x(4, 5), target, -1, weight, None, torch.tensor([[0.5], [1.0], [2.0], [3.0]]), *base[3:], "mean", True),
        ),
        "linear, no bias": (losses._linear_cross_entropy, (x(4, 3), x(5, 3), target, None, *base, "sum", True)),
    }


@pytest.mark.parametrize("name", make_calls())
def test_operators_and_their_gradients(name):
    op, arguments = make_calls()[name]
    torch.library.opcheck(op, arguments)

    def differentiable(*tensors):
        following = iter(tensors)
        result = op(*(next(following) if isinstance(a, torch.Tensor) and a.requires_grad else a for a in arguments))
        result = result[0] if isinstance(result, tuple) else result
        return result.masked_fill(result == -np.inf, 0)  # masked; gradcheck subtracts results

    tensors = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    torch.autograd.gradcheck(differentiable, tensors, atol=1e-6)


def differentiate(function, x, parameter, labels, upstream):
    """The result of a function of x, and the gradient of x."""
    x = x.clone().requires_grad_()
    y = function(x, parameter, labels)
    y.backward(upstream[:, 0] if y.dim() == 1 else upstream[:, : y.shape[1]])
    return y.detach(), x.grad


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_have_the_bits_that_they_have_alone(dtype):
    """Temperatures and alphas of rows: results and gradients, in csoftmax.torch and handed over by csoftmax."""
    t = torch.tensor([[1.0], [0.5], [3.0], [7.25], [1e-30], [1.0]], dtype=torch.float64)
    alpha = torch.tensor([[1.0], [1.5], [2.0], [1.3], [4.0], [1.0]])
    x, dy = (torch.randn(6, 7, dtype=torch.float64).to(DTYPES[dtype]) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 3, 6, -100])
    for function, numbers in (
        (lambda x, t, _: ct.softmax(x, temperature=t), t),
        (lambda x, t, _: csoftmax.log_softmax(x, temperature=t), t),
        (lambda x, t, _: ct.logsumexp(x, temperature=t), t),
        (lambda x, t, _: ct.topk_softmax(x, 3, temperature=t).values, t),
        (lambda x, t, _: csoftmax.topk_softmax(x, 3, temperature=t, normalize="full").values, t),
        (lambda x, t, y: ct.cross_entropy(x, y, temperature=t, reduction="none").to(x.dtype), t),
        (lambda x, alpha, _: ct.entmax(x, alpha), alpha),
    ):
        got = differentiate(function, x, numbers, labels, dy)
        rows = [(x[i : i + 1], float(n), labels[i : i + 1], dy[i : i + 1]) for i, n in enumerate(numbers)]
        parts = [differentiate(function, *row) for row in rows]
        for whole, alone in zip(got, zip(*parts)):
            assert_same_bits(array(whole), array(torch.cat(alone)))


def test_gradients_of_alpha():
    x, dy = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    for alpha in (torch.tensor(1.3), torch.rand(2, 3, 1, dtype=torch.float64) + 1, torch.rand(3, 1) + 1.2):
        for entmax in (ct.entmax, csoftmax.entmax):
            given = alpha.clone().requires_grad_()
            y = entmax(x, given)
            y.backward(dy)
            expected = csoftmax.entmax_vjp(dy, y.detach(), alpha, return_alpha_grad=True)
            assert given.grad.dtype == alpha.dtype
            assert torch.equal(given.grad, expected.alpha_grad.to(alpha.dtype))
    both = x.clone().requires_grad_()
    given = torch.full((3, 1), 1.5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lambda x, a: ct.entmax(x, a).square().sum(), backend="aot_eager", fullgraph=True)
    compiled(both, given).backward()
    assert given.grad.shape == (3, 1)
    assert both.grad.shape == x.shape
    with torch.no_grad():
        assert torch.equal(ct.entmax(x, given), ct.entmax(x, 1.5))


def test_linear_losses_with_temperatures():
    x, w, t = torch.randn(4, 3).requires_grad_(), torch.randn(5, 3).requires_grad_(), torch.rand(4, 1) + 0.5
    y = torch.tensor([0, 4, 2, -100])
    ct.linear_cross_entropy(x, w, y, temperature=t).backward()
    expected = csoftmax.linear_cross_entropy_with_grad(x.detach(), w.detach(), y, temperature=t)
    torch.testing.assert_close(x.grad, expected.grad_x)
    torch.testing.assert_close(w.grad, expected.grad_w)


def test_against_pytorch():
    functional = torch.nn.functional
    torch.manual_seed(0)  # where terms cancel, PyTorch's own gradient is off by more in one of a hundred draws
    x, target = torch.randn(6, 9), torch.tensor([0, 8, 3, -100, 1, 1])
    w, layer = torch.rand(9), torch.randn(9, 4)
    features = torch.randn(6, 4)
    pairs = [
        (lambda t: ct.softmax(t, 0)[2].sum(), lambda t: torch.softmax(t, 0)[2].sum()),
        (lambda t: ct.log_softmax(t).square().sum(), lambda t: torch.log_softmax(t, -1).square().sum()),
        (
            lambda t: ct.cross_entropy(t, target, weight=w, label_smoothing=0.1),
            lambda t: functional.cross_entropy(t, target, weight=w, label_smoothing=0.1),
        ),
        (
            lambda t: (ct.cross_entropy(t, target, reduction="none") * torch.arange(6)).sum(),
            lambda t: (functional.cross_entropy(t, target, reduction="none") * torch.arange(6)).sum(),
        ),
    ]
    for ours, theirs in pairs:
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        left, right = ours(a), theirs(b)
        (3 * left).backward()
        (3 * right).backward()
        assert torch.allclose(left, right, rtol=1e-5)
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    a, b = layer.clone().requires_grad_(), layer.clone().requires_grad_()
    ct.linear_cross_entropy(features, a, target).backward()
    functional.cross_entropy(features @ b.T, target).backward()
    assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_bfloat16_and_modules():
    x = torch.randn(4, 7, dtype=torch.bfloat16, requires_grad=True)
    loss = ct.cross_entropy(x, torch.arange(4))
    assert loss.dtype == torch.float32
    loss.backward()
    assert x.grad.dtype == torch.bfloat16
    layer = torch.nn.Linear(3, 11)
    ct.linear_cross_entropy(torch.randn(5, 3), layer.weight, torch.arange(5), bias=layer.bias).backward()
    assert layer.weight.grad.abs().sum() > 0
    assert layer.bias.grad.abs().sum() > 0
    with torch.no_grad():
        assert not ct.softmax(x).requires_grad
        assert ct.linear_cross_entropy(torch.randn(5, 3), layer.weight, torch.arange(5), reduction="none").shape == (5,)
    assert ct.sparsemax(torch.tensor([3.0, 0.0])).tolist() == [1, 0]


def test_docstrings():
    """The examples run, and every function and method has one; extra_repr is what PyTorch calls for repr()."""
    result = docstrings.run_examples(".torch")
    assert result.attempted > 0
    assert result.failed == 0
    for name, thing in docstrings.public_objects(".torch"):
        methods = docstrings.public_methods(thing) if isinstance(thing, type) else ()
        for label, member in [(name, thing), *((f"{name}.{method}", f) for method, f in methods)]:
            assert docstrings.has_example(member) or label == "CRF.extra_repr", label


def test_compile():
    """torch.compile keeps the operators in one graph."""

    def f(x, target):
        p = ct.softmax(2 * x, temperature=0.5)
        return ct.cross_entropy(p, target) + ct.entmax(x).square().sum() + ct.topk_softmax(x, 3).values.sum()

    x, target = torch.randn(4, 7), torch.arange(4)
    results = []
    for function in (f, torch.compile(f, backend="aot_eager", fullgraph=True)):
        t = x.clone().requires_grad_()
        loss = function(t, target)
        loss.backward()
        results.append((loss.detach(), t.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1])


def test_errors_of_operators():
    x = torch.randn(3, 4, requires_grad=True)
    for f in (ct.softmax, ct.log_softmax, ct.entmax, lambda x: ct.topk_softmax(x, 1)):
        with pytest.raises(TypeError, match="floating point"):
            f(torch.arange(3))
        with pytest.raises(TypeError, match=r"torch\.Tensor"):
            f([1.0, 2.0])
    with pytest.raises(IndexError, match=r"target\[0\] is 9"):
        ct.cross_entropy(x, torch.tensor([9, 0, 0]))
    with pytest.raises(ValueError, match="no gradient here"):
        ct.linear_cross_entropy(x, torch.randn(5, 4), torch.arange(3), reduction="none")
    with pytest.raises(ValueError, match="normalize"):
        ct.topk_softmax(x, 1, normalize="some")
    with pytest.raises(ValueError, match="temperature"):
        ct.softmax(x, temperature=-1)
    (g,) = torch.autograd.grad(ct.softmax(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):  # there is no second derivative
        g.sum().backward()


def test_bench_after_torch_has_limited_its_threads(capsys):
    """PyTorch may share its OpenMP with csoftmax, whose threads its limit then limits too; bench restores the limit."""
    from csoftmax.__main__ import main

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        limited = csoftmax.get_num_threads()
        assert main(["bench", "--shapes", "32x10", "--threads", "1,2", "--peers", "torch", "--rounds", "1"]) == 0
        assert (torch.get_num_threads(), csoftmax.get_num_threads()) == (1, limited)
    finally:
        torch.set_num_threads(before)
        csoftmax.set_num_threads(None)
    assert capsys.readouterr().out.count("(32, 10)") == 2


def test_tensors_in_learning():
    """Views that negate and bfloat16 are read, as by every function; a tensor that requires grad is named."""
    pytest.importorskip("sklearn", reason="the learn extra has it")
    from csoftmax import calibration, linear_model, metrics

    z = torch.randn(40, 3, dtype=torch.complex64).conj().imag
    y = torch.arange(40) % 3
    p = csoftmax.softmax(z)
    for x in (z, z.bfloat16()):
        expected = calibration.TemperatureScaling().fit(x.float().numpy(force=True), y.numpy())
        assert calibration.TemperatureScaling().fit(x, y).temperature_ == expected.temperature_
        model = linear_model.SoftmaxRegression(max_epochs=5, tol=1.0).fit(x, y)
        assert np.array_equal(model.predict(x), model.predict(x.float().numpy(force=True)))
    error = metrics.expected_calibration_error
    assert error(y, torch._neg_view(-p)) == error(y.numpy(), p.numpy())
    grad = p.clone().requires_grad_()
    for call, name in (
        (lambda: error(y, grad), "y_prob"),
        (lambda: calibration.TemperatureScaling().fit(grad, y), "logits"),
        (lambda: linear_model.SoftmaxRegression().fit(grad, y), "X"),
    ):
        with pytest.raises(ValueError, match=f"{name} requires grad"):
            call()


@pytest.mark.parametrize("alpha", [12.0, 30.0, 1e4])
def test_entmax_with_large_alpha(alpha):
    """Rows sum to 1, and value and gradient are those for NumPy (decision entmax 3)."""
    x = np.random.default_rng(0).standard_normal((200, 8)) * 0.02
    t = torch.tensor(x, requires_grad=True)
    y = importlib.import_module("csoftmax.torch").entmax(t, alpha)
    y.backward(torch.tensor(x))
    expected = csoftmax.entmax(x, alpha)
    assert_same_bits(y.detach().numpy(), expected)
    assert np.all(np.abs(expected.sum(-1) - 1) < 1e-15)
    assert_same_bits(t.grad.numpy(), csoftmax.entmax_vjp(x, expected, alpha))


def test_int8_head_reads_tensors():
    """Weights, bias, queries and classes of any dtype of PyTorch, with the results of NumPy's arrays."""
    from csoftmax import int8_topk
    from csoftmax.heads import Int8Head

    rng = np.random.default_rng(0)
    for dtype in DTYPES.values():
        w, x = (torch.from_numpy(rng.standard_normal(s)).to(dtype) for s in ((40, 8), (3, 8)))
        bias = torch.zeros(40, dtype=dtype)
        native = array(w)
        head, expected = Int8Head(w, bias), Int8Head(native)
        found, best = head.topk(x, 3), expected.topk(array(x), 3)
        assert found.values.dtype == dtype
        for a, b, c in zip(found, best, int8_topk(x, w, 3), strict=True):
            assert array(a).tobytes() == b.tobytes() == array(c).tobytes()
        assert array(head.logits(x, torch.tensor([1, 2]))).tobytes() == expected.logits(array(x), [1, 2]).tobytes()
        w[0] = 100  # a copy was made
        assert array(head.topk(x, 3).values).tobytes() == best.values.tobytes()
        head.update(torch.tensor([0]), w[:1], bias[:1])
        head.add_classes(w[:2], bias[:2])
        assert head.n_classes == 42
    with pytest.raises(ValueError, match=r"w requires grad.*w\.detach"):
        Int8Head(torch.ones(2, 2, requires_grad=True))
    with pytest.raises(ValueError, match=r"x requires grad.*x\.detach"):
        head.topk(torch.ones(1, 8, requires_grad=True), 1)


def test_topk_softmax_of_a_mask():
    """Also handed over by csoftmax, with an array as the mask; what is left out has no gradient."""
    x = torch.randn(4, 6, dtype=torch.float64)
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
    for normalize in ("topk", "full"):
        expected = csoftmax.topk_softmax(x, 3, normalize=normalize, where=mask)
        given = x.clone().requires_grad_()
        for function, where in ((ct.topk_softmax, mask), (csoftmax.topk_softmax, mask.numpy())):
            got = function(given, 3, normalize=normalize, where=where)
            assert torch.equal(got.indices, expected.indices)
            assert torch.equal(got.values, expected.values)
        got.values.square().sum().backward()
        assert torch.all(given.grad[:, ~mask] == 0)
        assert torch.any(given.grad != 0)
