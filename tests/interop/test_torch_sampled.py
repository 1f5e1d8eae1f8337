"""Losses over sampled classes with PyTorch: tensors as arguments, and operators with sparse gradients."""

import numpy as np
import pytest

import csoftmax
from csoftmax.samplers import Negatives, UniformSampler, UnigramSampler

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
ct = pytest.importorskip("csoftmax.torch")

LOSSES = ("sampled_softmax_loss", "negative_sampling_loss", "nce_loss")


def layer(dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    x, w, b = (rng.normal(size=shape).astype(dtype) for shape in ((7, 4), (30, 4), 30))
    target = rng.integers(0, 30, 7)
    return x, w, b, target, UnigramSampler(rng.integers(1, 9, 30)).sample(9, target=target, rng=seed)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_sparse_and_those_of_the_function(name, dtype):
    x, w, b, target, negatives = layer(dtype)
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, w, b)]
    loss = getattr(ct, name)(tensors[0], tensors[1], torch.from_numpy(target), negatives, bias=tensors[2])
    (2 * loss).backward()
    expected = getattr(csoftmax, f"{name}_with_grad")(x, w, target, negatives, bias=b)
    assert loss.item() == expected.loss
    assert np.array_equal(tensors[0].grad.numpy(), 2 * expected.grad_x)
    for tensor, gradient in ((tensors[1], expected.grad_w), (tensors[2], expected.grad_bias)):
        assert tensor.grad.is_sparse
        assert tensor.grad.is_coalesced()
        assert np.array_equal(tensor.grad.indices()[0].numpy(), gradient.rows)
        assert np.array_equal(tensor.grad.to_dense().numpy(), 2 * gradient.to_dense(30))


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # of PyTorch's own Adagrad
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.SparseAdam])
def test_optimizers_take_the_gradients(optimizer):
    x, w, b, target, negatives = layer(np.float32)
    w, b = (torch.nn.Parameter(torch.from_numpy(a.copy())) for a in (w, b))
    steps = optimizer([w, b], lr=0.1)
    before = w.detach().clone()
    first = None
    for _ in range(5):
        steps.zero_grad()
        loss = ct.sampled_softmax_loss(torch.from_numpy(x), w, torch.from_numpy(target), negatives, bias=b)
        first = loss.item() if first is None else first
        loss.backward()
        steps.step()
    assert loss.item() < first
    touched = {*negatives.ids.tolist(), *target.tolist()}
    is_changed = (w != before).any(1)
    assert set(torch.nonzero(is_changed).ravel().tolist()) <= touched


def test_log_z_as_a_tensor():
    """A number, 0-d or one for each row, in another dtype than x; its gradient is that of the function."""
    x, w, b, target, negatives = layer()
    given = [torch.from_numpy(a) for a in (x, w, target)]
    values = np.linspace(-1, 1, 7)
    for log_z in (np.float64(0.7), values, values.astype(np.float32), np.float32(0.5)):
        tensor = torch.tensor(log_z, requires_grad=True)
        loss = ct.nce_loss(*given, negatives, bias=torch.from_numpy(b), log_z=tensor)
        (3 * loss).backward()
        expected = csoftmax.nce_loss_with_grad(x, w, target, negatives, bias=b, log_z=log_z)
        assert loss.item() == expected.loss
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.shape == tensor.shape
        assert np.array_equal(tensor.grad.numpy(), (3 * expected.grad_log_z).astype(log_z.dtype))
        assert ct.nce_loss(*given, negatives, bias=torch.from_numpy(b), log_z=tensor.detach()).grad_fn is None

    def loss_of(log_z):
        return ct.nce_loss(*given, negatives, log_z=log_z, temperature=0.7, reduction="sum")

    assert torch.autograd.gradcheck(loss_of, torch.tensor(values, requires_grad=True))
    with torch.no_grad():
        rows = ct.nce_loss(*given, negatives, log_z=torch.tensor(values, requires_grad=True), reduction="none")
    expected = csoftmax.nce_loss(x, w, target, negatives, log_z=values, reduction="none")
    assert np.array_equal(rows.numpy(), expected)
    weights, log_z = torch.nn.Parameter(given[1].clone()), torch.nn.Parameter(torch.tensor(0.0))
    ct.nce_loss(given[0], weights, given[2], negatives, log_z=log_z).backward()
    assert weights.grad.is_sparse
    assert log_z.grad != 0


def test_no_gradient_is_needed():
    x, w, _, target, negatives = layer()
    tensors = torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(target)
    rows = ct.sampled_softmax_loss(*tensors, negatives, reduction="none")
    assert np.array_equal(rows.numpy(), csoftmax.sampled_softmax_loss(x, w, target, negatives, reduction="none"))
    plain = ct.negative_sampling_loss(*tensors, torch.tensor([[1, 2]] * 7))
    assert plain.item() == csoftmax.negative_sampling_loss(x, w, target, [[1, 2]] * 7)


def test_errors():
    x, w, _, target, negatives = layer()
    x, w, target = torch.from_numpy(x), torch.from_numpy(w).requires_grad_(), torch.from_numpy(target)
    with pytest.raises(ValueError, match='reduction="none" has no gradient here'):
        ct.sampled_softmax_loss(x, w, target, negatives, reduction="none")
    with pytest.raises(ValueError, match="negatives are plain classes"):
        ct.nce_loss(x, w, target, torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
        ct.nce_loss(x.numpy(), w, target, negatives)
    for log_z, error, message in (
        ("1", TypeError, "log_z must be a real number, got '1'"),
        ([0.0] * 7, TypeError, "log_z must be a real number"),
        (torch.zeros(3), ValueError, r"log_z has shape \(3,\)"),
        (torch.tensor([0.0] * 6 + [float("inf")]), ValueError, "log_z must be finite, got inf for row 6"),
    ):
        with pytest.raises(error, match=message):
            ct.nce_loss(x, w, target, negatives, log_z=log_z)
    log_z = torch.tensor(0.0, requires_grad=True)
    with pytest.raises(ValueError, match='reduction="none" has no gradient here'):
        ct.nce_loss(x, w.detach(), target, negatives, log_z=log_z, reduction="none")
    with pytest.raises(IndexError, match="target"):
        ct.negative_sampling_loss(x, w, target + 30, negatives)


@pytest.mark.parametrize("name", LOSSES)
def test_tensors_as_arguments(name):
    """Results are tensors, those in a RowGradient too; add_rows changes a tensor in place."""
    x, w, b, target, negatives = layer(np.float32)
    given = [torch.from_numpy(a.copy()) for a in (x, w, target)]
    tensors = Negatives(*(torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in negatives[:4]))
    got = getattr(csoftmax, f"{name}_with_grad")(*given, tensors, bias=torch.from_numpy(b))
    expected = getattr(csoftmax, f"{name}_with_grad")(x, w, target, negatives, bias=b)
    assert got.loss.item() == expected.loss
    assert isinstance(got.grad_w.values, torch.Tensor)
    assert np.array_equal(got.grad_w.values.numpy(), expected.grad_w.values)
    assert isinstance(got.grad_w.to_dense(30), torch.Tensor)
    assert np.array_equal(got.grad_w.to_csr(30).toarray(), expected.grad_w.to_dense(30))
    assert csoftmax.add_rows(given[1], got.grad_w, -0.1) is given[1]
    assert np.array_equal(given[1].numpy(), csoftmax.add_rows(w, expected.grad_w, -0.1))


def test_compiled_graphs():
    """The fake version promises the shapes of the results, with a number of rows that is not known."""
    x, w, b, target, negatives = (torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in layer())
    operator = torch.ops.csoftmax.sampled_softmax_loss
    ids, log_q, _, own, _ = negatives
    arrays = x, w, target, torch.from_numpy(ids), torch.from_numpy(log_q), None, torch.from_numpy(own), b, None, None
    options = "ranking", "mask", -100, 1.0, "mean"
    checks = "test_schema", "test_faketensor"
    for gradient in (False, True):
        torch.library.opcheck(operator, (*arrays, None, *options, gradient), test_utils=checks)
        for log_z in (torch.tensor(0.5), torch.zeros(7)):
            given = *arrays, log_z, *options, gradient
            torch.library.opcheck(torch.ops.csoftmax.nce_loss, given, test_utils=checks)


def test_uniform_sampler_takes_tensors():
    negatives = UniformSampler(5).sample(3, target=torch.tensor([0, 4]), rng=0)
    assert negatives.target_log_q.shape == (2,)


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_rows(name):
    x, w, b, target, negatives = layer()
    sample_weight = np.array([0.0, 1.0, 2.0, 0.5, 3.0, 0.25, 0.0])
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, w, b)]
    options = {"bias": tensors[2], "sample_weight": torch.from_numpy(sample_weight)}
    for function in (getattr(ct, name), getattr(csoftmax, name)):  # the latter hands over
        for t in tensors:
            t.grad = None
        loss = function(*tensors[:2], torch.from_numpy(target), negatives, **options)
        loss.backward()
        expected = getattr(csoftmax, f"{name}_with_grad")(x, w, target, negatives, bias=b, sample_weight=sample_weight)
        assert loss.item() == expected.loss
        assert np.array_equal(tensors[0].grad.numpy(), expected.grad_x)
        assert np.array_equal(tensors[1].grad.to_dense().numpy(), expected.grad_w.to_dense(30))
    options["sample_weight"].requires_grad_()
    with pytest.raises(ValueError, match="sample_weight requires grad"):
        getattr(ct, name)(*tensors[:2], torch.from_numpy(target), negatives, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": True, "sample_weight": [0.0, 1.0, 2.0, 0.5], "ids": [1, 2, 2, 3]},
        {"target": [3, 1, 0, 0], "log_q": [0.1, -1.0, 0.3, 0.0], "correction": "partition", "reduction": "sum"},
        {"temperature": [[0.5], [1.0], [2.0], [0.1]], "mask": np.eye(4, k=1, dtype=bool)},
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_candidates_of_the_batch(options, dtype):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(4, 3)).astype(dtype) for _ in range(2))
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, y)]
    given = {
        key: torch.from_numpy(np.array(v)) if isinstance(v, list | np.ndarray) else v for key, v in options.items()
    }
    expected = csoftmax.in_batch_softmax_loss_with_grad(x, y, **options)
    for function in (ct.in_batch_softmax_loss, csoftmax.in_batch_softmax_loss):
        for t in tensors:
            t.grad = None
        loss = function(*tensors, **given)
        (2 * loss).backward()
        assert loss.item() == expected.loss
        assert loss.dtype == tensors[0].dtype
        for t, gradient in zip(tensors, expected[1:], strict=True):
            assert np.array_equal(t.grad.numpy(), 2 * gradient)
    if dtype == np.float64:
        assert torch.autograd.gradcheck(lambda *t: ct.in_batch_softmax_loss(*t, **given), tensors)
    with torch.no_grad():
        rows = ct.in_batch_softmax_loss(*tensors, **given | {"reduction": "none"})
    assert np.array_equal(rows.numpy(), csoftmax.in_batch_softmax_loss(x, y, **options | {"reduction": "none"}))
    names = "target", "ids", "log_q", "mask", "sample_weight"
    rows_of_t = given.get("temperature")
    arrays = *tensors, *map(given.get, names), rows_of_t
    flags = given.get("correction", "ranking"), given.get("symmetric", False), 1.0, given.get("reduction", "mean")
    for gradient in (False, True):
        checks = "test_schema", "test_faketensor"
        operator = torch.ops.csoftmax.in_batch_softmax_loss
        torch.library.opcheck(operator, ([t.detach() for t in arrays[:2]] + list(arrays[2:]) + [*flags, gradient]),
                              test_utils=checks)  # fmt: skip


def test_errors_of_candidates():
    x = torch.ones(2, 3, requires_grad=True)
    for options, error, message in (
        ({"reduction": "none"}, ValueError, "has no gradient here"),
        ({"target": torch.tensor([0, 2])}, IndexError, r"target\[1\] is 2"),
        ({"log_q": torch.ones(2, requires_grad=True)}, ValueError, "log_q requires grad"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive"),
        ({"correction": "full"}, ValueError, "correction must be"),
        ({"symmetric": 1}, TypeError, "symmetric must be"),
    ):
        with pytest.raises(error, match=message):
            ct.in_batch_softmax_loss(x, torch.ones(2, 3), **options)
    with pytest.raises(TypeError, match=r"y must be a torch\.Tensor"):
        ct.in_batch_softmax_loss(x, np.ones((2, 3)))
