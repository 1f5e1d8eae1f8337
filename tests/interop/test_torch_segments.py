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


def test_handed_over():
    """csoftmax itself hands a tensor that requires grad on."""
    y = csoftmax.segment_softmax(make_logits(), segment_ids=IDS)
    assert y.grad_fn is not None
    with pytest.raises(ValueError, match=r"csoftmax.torch.segment_softmax takes one axis, not \(0, 1\)"):
        csoftmax.segment_softmax(make_logits(), segment_ids=IDS, axis=(0, 1))


def test_compile():
    def total(z, ids):
        options = {"segment_ids": ids, "num_segments": 3}
        return ct.segment_softmax(z, **options).square().sum() + ct.segment_logsumexp(z, **options)[[0, 2]].sum()

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
