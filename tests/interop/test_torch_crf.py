"""csoftmax.torch.crf_loss and CRF: gradients, every reduction and mask, and pytorch-crf where it is installed."""

import numpy as np
import pytest
from helpers import assert_same_bits

import csoftmax

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")
ct = pytest.importorskip("csoftmax.torch")

N, T, TAGS = 5, 7, 4


def batch(dtype=torch.float64, seed=0):
    rng = torch.Generator().manual_seed(seed)
    emissions = torch.randn(N, T, TAGS, generator=rng, dtype=torch.float64).to(dtype)
    parameters = [torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in ((TAGS, TAGS), (TAGS,), (TAGS,))]
    tags = torch.randint(TAGS, (N, T), generator=rng)
    mask = torch.rand(N, T, generator=rng) < 0.7
    return emissions, tags, parameters, mask


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "token_mean"])
@pytest.mark.parametrize("with_ends", [True, False])
def test_gradients_are_those_of_the_function(reduction, with_ends):
    emissions, tags, parameters, mask = batch()
    leaves = [t.clone().requires_grad_() for t in (emissions, *parameters)]
    ends = {"start": leaves[2], "end": leaves[3]} if with_ends else {}
    loss = ct.crf_loss(leaves[0], tags, leaves[1], mask=mask, reduction=reduction, **ends)
    upstream = torch.arange(1.0, N + 1, dtype=torch.float64) if reduction == "none" else torch.tensor(3.0).double()
    loss.backward(upstream)
    given = {name: t.detach().numpy() for name, t in ends.items()}
    expected = csoftmax.crf_loss_with_grad(
        emissions.numpy(),
        tags.numpy(),
        parameters[0].numpy(),
        mask=mask.numpy(),
        reduction=reduction,
        upstream=upstream.numpy(),
        **given,
    )
    assert_same_bits(loss.detach().numpy(), np.asarray(expected.loss))
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        if gradient is None:
            assert leaf.grad is None
        else:
            np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-14, atol=1e-16)


def test_gradcheck_and_opcheck():
    emissions, tags, parameters, mask = batch()
    leaves = [t.clone().requires_grad_() for t in (emissions, *parameters)]
    for reduction in ("mean", "none"):
        assert torch.autograd.gradcheck(
            lambda x, a, s, e, reduction=reduction: ct.crf_loss(
                x, tags, a, start=s, end=e, mask=mask, reduction=reduction
            ),
            leaves,
        )
        arguments = (leaves[0], tags, leaves[1], leaves[2], None, mask, -100, reduction, True)
        torch.library.opcheck(torch.ops.csoftmax.crf_loss, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_narrow_emissions_beside_wider_parameters(dtype):
    pytest.importorskip("ml_dtypes")
    emissions, tags, parameters, _ = batch(dtype)
    x, a = emissions.requires_grad_(), parameters[0].float().requires_grad_()
    loss = ct.crf_loss(x, tags, a)
    loss.backward()
    assert loss.dtype == torch.float32
    assert x.grad.dtype == dtype
    assert a.grad.dtype == torch.float32


def test_sets_of_tags_and_unknown_ones():
    emissions, tags, parameters, _ = batch()
    sets = torch.nn.functional.one_hot(tags, TAGS).bool()
    assert ct.crf_loss(emissions, sets, parameters[0]) == ct.crf_loss(emissions, tags, parameters[0])
    unknown = torch.where(torch.arange(T) == 2, -100, tags)
    sets[:, 2] = True
    assert ct.crf_loss(emissions, unknown, parameters[0]) == ct.crf_loss(emissions, sets, parameters[0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_module(batch_first):
    torch.manual_seed(0)
    emissions, tags, _, mask = batch(torch.float32)
    model = ct.CRF(TAGS, batch_first=batch_first)
    turn = (lambda t: t) if batch_first else (lambda t: t.transpose(0, 1))
    x = turn(emissions).clone().requires_grad_()
    likelihood = model(x, turn(tags), mask=turn(mask), reduction="none")
    assert likelihood.shape == (N,)
    assert (likelihood <= 0).all()
    likelihood.sum().backward()
    assert all(p.grad is not None for p in (x, *model.parameters()))
    paths = model.decode(x, turn(mask))
    assert [len(path) for path in paths] == mask.sum(1).tolist()
    assert model.decode(x)[0] == model.decode(x, torch.ones_like(turn(mask)).to(torch.uint8))[0]
    marginals = model.marginals(x, turn(mask))
    assert marginals.shape == x.shape
    assert torch.allclose(marginals.sum(-1), turn(mask).float(), atol=1e-6)
    assert str(model) == f"CRF(num_tags=4, batch_first={batch_first})"
    assert set(model.state_dict()) == {"transitions", "start_transitions", "end_transitions"}


def test_refused():
    with pytest.raises(ValueError, match="num_tags must be at least 1, got 0"):
        ct.CRF(0)
    model = ct.CRF(TAGS)
    with pytest.raises(ValueError, match="emissions has shape"):
        model.decode(torch.zeros(3, 2, TAGS + 1))
    with pytest.raises(ValueError, match='reduction must be "none"'):
        model(torch.zeros(3, 2, TAGS), torch.zeros(3, 2, dtype=torch.long), reduction="max")
    tags = torch.tensor([[0, 9]])
    with pytest.raises(IndexError, match=r"tags\[0, 1\] is 9"):
        ct.crf_loss(torch.zeros(1, 2, TAGS), tags, torch.zeros(TAGS, TAGS))
    with pytest.raises(TypeError, match="emissions must be floating point"):
        ct.crf_loss(torch.zeros(1, 2, TAGS).int(), tags, torch.zeros(TAGS, TAGS))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "token_mean"])
def test_drop_in_for_torchcrf(reduction):
    torchcrf = pytest.importorskip("torchcrf")
    emissions, tags, _, mask = batch()
    mask = torch.arange(T) < mask.sum(1).clamp(min=1)[:, None]  # torchcrf takes padding only
    theirs = torchcrf.CRF(TAGS, batch_first=True).double()
    ours = ct.CRF(TAGS, batch_first=True).double()
    ours.load_state_dict(theirs.state_dict())
    found = []
    for model in (theirs, ours):
        x = emissions.clone().requires_grad_()
        loss = model(x, tags, mask=mask, reduction=reduction)
        loss.sum().backward()
        found.append((loss.detach(), x.grad, *(p.grad for p in model.parameters()), model.decode(x, mask=mask)))
    for a, b in zip(*found, strict=True):
        assert a == b if isinstance(a, list) else torch.allclose(a, b, rtol=1e-10, atol=1e-12)
