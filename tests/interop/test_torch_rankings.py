"""csoftmax.torch.plackett_luce_loss: gradcheck, the numbers of csoftmax, options, torch.compile's checks, hand-over."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import csoftmax  # noqa: E402
import csoftmax.torch as ct  # noqa: E402
from csoftmax._torch.rankings import _operator  # noqa: E402


def make_lists(dtype=torch.float64):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=14), dtype=dtype, requires_grad=True)
    relevance, observed = torch.tensor(rng.integers(0, 3, 14)), torch.tensor(rng.random(14) < 0.8)
    return x, relevance, observed, torch.tensor([0, 5, 5, 14])


@pytest.mark.parametrize("ties", ["breslow", "efron", "exact", "order"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradcheck(ties, reduction):
    x, relevance, observed, indptr = make_lists()
    options = {"observed": observed, "ties": ties, "indptr": indptr, "reduction": reduction, "temperature": 0.7}
    assert torch.autograd.gradcheck(lambda t: ct.plackett_luce_loss(t, relevance, **options), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_numbers_are_those_of_csoftmax(dtype):
    x, relevance, observed, indptr = make_lists(dtype)
    weight = torch.tensor([1.0, 2.0, 0.5])
    options = {"observed": observed, "top": 4, "sample_weight": weight}
    expected = csoftmax.plackett_luce_loss_with_grad(x.detach(), relevance, indptr=indptr, **options)
    ids = torch.tensor([0] * 5 + [2] * 9)
    segments = csoftmax.Segments(segment_ids=ids, num_segments=3)
    for lists in ({"indptr": indptr}, {"segment_ids": ids, "num_segments": 3}, {"segments": segments}):
        x.grad = None
        loss = ct.plackett_luce_loss(x, relevance, **lists, **options)
        loss.backward()
        assert torch.equal(
            loss.detach(), expected.loss if torch.is_tensor(expected.loss) else torch.tensor(expected.loss)
        )
        assert torch.equal(x.grad, expected.grad)
    order = torch.randperm(14, generator=torch.Generator().manual_seed(0))
    y = x.detach()[order].requires_grad_()
    ct.plackett_luce_loss(
        y, relevance[order], segment_ids=ids[order], num_segments=3, reduction="none"
    ).sum().backward()
    alone = csoftmax.plackett_luce_loss_with_grad(
        y.detach(), relevance[order], segment_ids=ids[order], num_segments=3, reduction="sum"
    )
    assert torch.equal(y.grad, alone.grad)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_temperature_for_each_list(reduction):
    x, relevance, _, indptr = make_lists()
    t = torch.tensor([0.3, 1.0, 2.5])
    options = {"indptr": indptr, "reduction": reduction}
    expected = csoftmax.plackett_luce_loss_with_grad(x.detach(), relevance, temperature=t, **options)
    for call in (ct.plackett_luce_loss, csoftmax.plackett_luce_loss):
        x.grad = None
        loss = call(x, relevance, temperature=t, **options)
        loss.sum().backward()
        assert torch.equal(loss.detach(), torch.as_tensor(expected.loss))
        assert torch.equal(x.grad, expected.grad)
    assert torch.autograd.gradcheck(lambda x: ct.plackett_luce_loss(x, relevance, temperature=t, **options), x)
    rows, places = torch.randn(2, 3, 4, requires_grad=True), torch.arange(4).expand(2, 3, 4)
    both = csoftmax.plackett_luce_loss(rows, places, temperature=np.full((2, 3), 0.5), reduction="none")
    assert torch.equal(both, ct.plackett_luce_loss(rows, places, temperature=0.5, reduction="none"))
    with pytest.raises(ValueError, match="temperature requires grad"):
        ct.plackett_luce_loss(x, relevance, indptr=indptr, temperature=t.requires_grad_())


def test_dense_lists_without_gradient():
    x = torch.randn(3, 5)
    loss = ct.plackett_luce_loss(x, torch.arange(5).expand(3, 5), reduction="none")
    assert loss.shape == (3,)
    assert not loss.requires_grad


def test_the_operator_is_well_formed():
    x, relevance, observed, indptr = make_lists()
    for reduction in ("mean", "none"):
        arguments = x, relevance, indptr, None, observed, None, None, "efron", 3, 1.0, reduction, True
        torch.library.opcheck(_operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_recorded_tensors_are_handed_over():
    x, relevance, observed, indptr = make_lists()
    loss = csoftmax.plackett_luce_loss(x, relevance, indptr=indptr, observed=observed)
    loss.backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="relevance requires grad"):
        ct.plackett_luce_loss(x, x, indptr=indptr)
    with pytest.raises(ValueError, match=r"csoftmax\.torch has no plackett_luce_loss_with_grad"):
        csoftmax.plackett_luce_loss_with_grad(x, relevance, indptr=indptr)


def test_segments_inside_of_compiled_functions():
    x, relevance, _, indptr = make_lists()
    ids = torch.tensor([1, 0] * 7)
    for options in ({"indptr": indptr}, {"segment_ids": ids, "num_segments": 2}):
        loss = torch.compile(
            lambda t, options=options: ct.plackett_luce_loss(t, relevance, **options), fullgraph=True, backend="eager"
        )
        assert loss(x) == ct.plackett_luce_loss(x, relevance, **options)
    with pytest.raises(ValueError, match="indptr"):
        ct.plackett_luce_loss(x, relevance, indptr=torch.tensor([0, 20]))
    assert ct.plackett_luce_loss(x, relevance, top=10**30) == ct.plackett_luce_loss(x, relevance)
