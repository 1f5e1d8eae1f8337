"""csoftmax.torch over segments: the bits of csoftmax, gradients, torch.compile, and what is refused."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
ct = pytest.importorskip("csoftmax.torch")

import csoftmax  # noqa: E402

IDS = torch.tensor([2, 0, 2, -1, 0, 2])
FUNCTIONS = ("segment_softmax", "segment_log_softmax", "segment_logsumexp")
GIVEN = (
    {"segment_ids": IDS},
    {"segments": csoftmax.Segments(segment_ids=IDS)},
    {"indptr": torch.tensor([1, 3, 6])},
)


def make_logits(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((6, 2)) * 3).requires_grad_()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_bits_and_gradients(name):
    x = make_logits()
    for given in GIVEN:
        y = getattr(ct, name)(x, **given, temperature=0.7)
        expected = getattr(csoftmax, name)(x.detach().numpy(), **given, temperature=0.7)
        assert np.array_equal(y.detach().numpy(), expected)

        def finite(z, given=given):
            y = getattr(ct, name)(z, **given, temperature=0.7)
            return torch.where(torch.isfinite(y), y, torch.zeros((), dtype=y.dtype))

        assert torch.autograd.gradcheck(finite, (x,))
    mask = torch.arange(12).reshape(6, 2) % 3 > 0
    y = getattr(ct, name)(x, segment_ids=IDS, where=mask)
    y[torch.isfinite(y)].sum().backward()
    assert (x.grad[~mask] == 0).all()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses(reduction):
    x = make_logits(1)
    positives = torch.arange(12).reshape(6, 2) % 2 == 0
    soft = torch.from_numpy(np.random.default_rng(2).random((6, 2)))
    for target, kind in (
        (torch.tensor([[0, 1], [-100, -100], [2, 0]]), "each"),
        (soft, "each"),
        (positives, "each"),
        (positives, "any"),
    ):

        def loss(z, target=target, kind=kind):
            return ct.segment_cross_entropy(z, target, segment_ids=IDS, positives=kind, reduction=reduction)

        options = {"segment_ids": IDS.numpy(), "positives": kind, "reduction": reduction}
        expected = csoftmax.segment_cross_entropy(x.detach().numpy(), target.numpy(), **options)
        assert np.array_equal(loss(x).detach().numpy(), expected)
        if np.all(np.isfinite(expected)):
            assert torch.autograd.gradcheck(loss, (x,))


TEMPERATURES = (  # one a segment, one a head, one for each of both
    torch.tensor([0.5, 2.0, 1.25]),
    torch.tensor([[0.75, 2.0]]),
    torch.tensor([[0.5, 3.0], [1.0, 0.25], [2.0, 0.7]], dtype=torch.float64),
)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("dim", [0, 1])
def test_temperatures_of_segments(name, dim):
    x = make_logits(4).detach().movedim(0, dim).contiguous().requires_grad_()
    for t in TEMPERATURES:
        options = {"temperature": t if t.dim() == 1 else t.movedim(0, dim)}
        options["segment_ids"] = IDS

        def finite(z, options=options):
            y = getattr(ct, name)(z, dim=dim, **options)
            return torch.where(torch.isfinite(y), y, torch.zeros((), dtype=y.dtype))

        expected = getattr(csoftmax, name)(x.detach(), axis=dim, **options)
        assert torch.equal(getattr(ct, name)(x, dim=dim, **options), expected)
        assert torch.autograd.gradcheck(finite, (x,))


@pytest.mark.parametrize("t", [1e-250, 1e250])
def test_temperatures_beyond_the_range_of_their_reciprocals(t):
    """The gradient of log-sum-exp is softmax times dy / T, which has the bits of a call with the one temperature."""
    x, dy = make_logits(5), torch.tensor([[1.0, -4.0], [0.5, 2.0], [3.0, 1e-3]], dtype=torch.float64)
    grads = [
        torch.autograd.grad(ct.segment_logsumexp(x * t, segment_ids=IDS, temperature=given), x, dy * t)[0]
        for given in (t, torch.full((3,), t, dtype=torch.float64))
    ]
    assert torch.equal(*grads)
    assert torch.isfinite(grads[0]).all()
    assert grads[0].count_nonzero() > 6


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_temperatures_of_losses(reduction):
    x, target = make_logits(1), torch.tensor([[0, 1], [-100, -100], [2, 0]])
    for t in TEMPERATURES:
        options = {"segment_ids": IDS, "temperature": t, "reduction": reduction, "label_smoothing": 0.125}
        loss = ct.segment_cross_entropy(x, target, **options)
        assert torch.equal(loss, torch.as_tensor(csoftmax.segment_cross_entropy(x.detach(), target, **options)))
        assert torch.autograd.gradcheck(lambda z, o=options: ct.segment_cross_entropy(z, target, **o), (x,))


def test_temperatures_are_constants():
    x, t = make_logits(), torch.ones(3, requires_grad=True)
    for name in FUNCTIONS:
        with pytest.raises(ValueError, match="temperature requires grad, and no gradient flows to it here"):
            getattr(ct, name)(x, segment_ids=IDS, temperature=t)
    for name in FUNCTIONS[:2]:
        y = getattr(ct, name)(x, segment_ids=IDS, temperature=torch.tensor([1.0, 0.0, 1.0]))  # a limit: no gradient
        with pytest.raises(ValueError, match="temperature must be positive and finite"):
            y[torch.isfinite(y)].sum().backward()
    with pytest.raises(ValueError, match=r"temperature has shape \(4,\)"):
        ct.segment_softmax(x, segment_ids=IDS, temperature=torch.ones(4))


def test_handed_over():
    """csoftmax itself hands a tensor that requires grad on."""
    y = csoftmax.segment_softmax(make_logits(), segment_ids=IDS)
    assert y.grad_fn is not None
    with pytest.raises(ValueError, match=r"csoftmax.torch.segment_softmax takes one axis, not \(0, 1\)"):
        csoftmax.segment_softmax(make_logits(), segment_ids=IDS, axis=(0, 1))


def test_compile():
    def total(z, ids):
        options = {"segment_ids": ids, "num_segments": 3}
        total = ct.segment_softmax(z, **options).square().sum() + ct.segment_logsumexp(z, **options)[[0, 2]].sum()
        return total + ct.segment_softmax(z, **options, temperature=TEMPERATURES[0]).square().sum()

    x, other = make_logits(3), make_logits(3)
    torch.compile(total, fullgraph=True, backend="aot_eager")(x, IDS).backward()
    total(other, IDS).backward()
    assert torch.equal(x.grad, other.grad)


def test_refused():
    x = make_logits()
    with pytest.raises(TypeError, match="exactly one of indptr, segment_ids and segments is needed"):
        ct.segment_softmax(x)
    with pytest.raises(IndexError, match=r"segment_ids\[0\] is 7"):
        ct.segment_softmax(x, segment_ids=torch.tensor([7] * 6), num_segments=3)
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        ct.segment_softmax(x, segment_ids=IDS, temperature=0.0)
    with pytest.raises(TypeError, match="x must be floating point"):
        ct.segment_softmax(torch.arange(6), segment_ids=IDS)


def test_one_axis_only():
    x, indptr = torch.zeros(4, 2), torch.tensor([0, 2, 4])
    for function in (ct.segment_softmax, ct.segment_log_softmax, ct.segment_logsumexp):
        with pytest.raises(TypeError, match=r"dim must be an int, got \(0, 1\)"):
            function(x, indptr=indptr, dim=(0, 1))
    with pytest.raises(TypeError, match=r"dim must be an int, got \[0, 1\]"):
        ct.segment_cross_entropy(x, torch.zeros(2, dtype=torch.int64), indptr=indptr, dim=[0, 1])
