"""csoftmax.torch over groups and with DTensors: bits, gradients, errors on all ranks, a rank that is killed."""

from pathlib import Path

import numpy as np
import pytest
from helpers.rank_processes import run_ranks
from helpers.thread_group import run_on

from csoftmax.distributed import DistributedError, SingleProcess

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")

import csoftmax.torch as ct  # noqa: E402

PROGRAM = Path(__file__).with_name("tensor_program.py")
CUTS = [0, 4096, 6000, 6000, 9000]  # a shard is empty, a block is divided


def results_of(work, ranks=4):
    results = run_on(ranks, work)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_have_the_bits_of_whole_rows(dtype, reduction):
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(size=(4, 9000)) * 5).to(dtype)
    target, weight = torch.tensor([3, 8999, -100, 5000]), torch.tensor(rng.random(9000))
    upstream = torch.tensor([1.0, -2.0, 3.0, 0.5]) if reduction == "none" else torch.tensor(0.7)
    options = {"reduction": reduction, "label_smoothing": 0.1}
    leaf = x.clone().requires_grad_()
    expected = ct.cross_entropy(leaf, target, weight=weight, **options)
    expected.backward(upstream.to(expected.dtype))

    def work(group):
        s = slice(*CUTS[group.rank : group.rank + 2])
        shard = x[:, s].clone().requires_grad_()
        loss = ct.cross_entropy(shard, target, group=group, weight=weight[s], **options)
        entered = group.collectives
        loss.backward(upstream.to(loss.dtype))
        assert group.collectives == entered  # none in backward
        with torch.no_grad():
            again = ct.cross_entropy(shard, target, group=group, weight=weight[s], **options)
        return loss.detach(), again, shard.grad

    for loss, again, _ in (results := results_of(work)):
        assert torch.equal(loss, expected.detach())
        assert torch.equal(again, loss)
    assert torch.equal(torch.cat([gradient for *_, gradient in results], 1), leaf.grad)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_rows_and_their_gradients_have_the_bits_of_whole_rows(name, axis):
    rng = np.random.default_rng(1)
    x, dy = (torch.tensor(rng.normal(size=(3, 9000)).astype(np.float32)) for _ in range(2))
    x, dy = (x.T.contiguous(), dy.T.contiguous()) if axis == 0 else (x, dy)
    temperature = torch.tensor([0.5, 1.0, 2.0]).reshape([1, 3] if axis == 0 else [3, 1])
    leaf = x.clone().requires_grad_()
    expected = getattr(ct, name)(leaf, axis, temperature=temperature)
    expected.backward(dy)

    def work(group):
        at = (slice(None),) * axis + (slice(*CUTS[group.rank : group.rank + 2]),)
        shard = x[at].clone().requires_grad_()
        y = getattr(ct, name)(shard, axis, group=group, temperature=temperature)
        y.backward(dy[at])
        return y.detach(), shard.grad

    results = results_of(work)
    assert torch.equal(torch.cat([y for y, _ in results], axis), expected.detach())
    assert torch.equal(torch.cat([gradient for _, gradient in results], axis), leaf.grad)


def test_layers():
    rng = np.random.default_rng(2)
    x, w, bias = (torch.tensor(rng.normal(size=shape)) for shape in ((5, 6), (9000, 6), (9000,)))
    target = torch.tensor(rng.integers(0, 9000, 5))
    leaves = [t.clone().requires_grad_() for t in (x, w, bias)]
    expected = ct.linear_cross_entropy(*leaves[:2], target, bias=leaves[2])
    (3 * expected).backward()

    def work(group):
        s = slice(*CUTS[group.rank : group.rank + 2])
        shards = [t.clone().requires_grad_() for t in (x, w[s], bias[s])]
        loss = ct.linear_cross_entropy(*shards[:2], target, bias=shards[2], group=group)
        (3 * loss).backward()
        return loss.detach(), *[t.grad for t in shards]

    results = results_of(work)
    close = {"rtol": 1e-11, "atol": 1e-14}
    for loss, grad_x, _, _ in results:
        torch.testing.assert_close(loss, expected.detach(), **close)
        torch.testing.assert_close(grad_x, leaves[0].grad, **close)
    torch.testing.assert_close(torch.cat([r[2] for r in results]), leaves[1].grad, **close)
    torch.testing.assert_close(torch.cat([r[3] for r in results]), leaves[2].grad, **close)


def test_samples():
    x = torch.tensor(np.random.default_rng(3).normal(size=(3, 9000)) * 3)
    expected = ct.sample(x, size=4, rng=5, top_p=0.9)

    def work(group):
        s = slice(*CUTS[group.rank : group.rank + 2])
        return ct.sample(x[:, s], size=4, rng=5 if group.rank == 0 else 6, top_p=0.9, group=group)

    for draws in results_of(work):
        assert torch.equal(draws, expected)


@pytest.mark.parametrize("classes", [5, 5000])
def test_gradcheck(classes):
    rng = np.random.default_rng(4)
    x = torch.tensor(rng.normal(size=(3, classes))).requires_grad_()
    target, group = torch.tensor([0, 4, 2]), SingleProcess()
    functions = [
        lambda x: ct.cross_entropy(x, target, group=group, label_smoothing=0.1, temperature=0.7),
        lambda x: ct.cross_entropy(x, target, group=group, reduction="none"),
        lambda x: ct.log_softmax(x, group=group),
        lambda x: ct.softmax(x, group=group, temperature=2.0),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, x, fast_mode=classes > 5)


def test_second_derivatives_are_refused():
    x = torch.zeros(2, 5, requires_grad=True)
    loss = ct.cross_entropy(x, torch.tensor([0, 1]), group=SingleProcess())
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_an_error_of_one_rank_is_raised_on_all():
    x, target = torch.zeros(2, 5000), torch.tensor([0, 1])

    def work(group):
        bad = group.rank == 1
        for change in ({"logits": x.to("meta")}, {"logits": x.long()}, {"temperature": -1.0}, {"target": "no tensor"}):
            given = {"logits": x, "target": target, "temperature": 1.0} | (change if bad else {})
            with pytest.raises(DistributedError, match=r"rank 1: (DeviceError|TypeError|ValueError)"):
                ct.cross_entropy(given["logits"], given["target"], group=group, temperature=given["temperature"])
        with pytest.raises(IndexError, match=r"target\[0\] is 20000"):
            ct.cross_entropy(x, torch.tensor([20000, 1]), group=group)
        with pytest.raises(NotImplementedError, match="softcap"):
            ct.cross_entropy(x, target, group=group, softcap=3.0)
        with pytest.raises(NotImplementedError, match="sink"):
            ct.softmax(x, group=group, sink=0.0)
        w = torch.zeros(3, 4, requires_grad=True)
        with pytest.raises(ValueError, match='"none" has no gradient'):
            ct.linear_cross_entropy(torch.zeros(2, 4), w, target, group=group, reduction="none")
        return ct.cross_entropy(x, target, group=group)

    for loss in results_of(work, 2):
        assert loss.item() == np.float32(np.log(10000))


@pytest.mark.slow  # a process takes some seconds to import PyTorch
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_dtensors(ranks, tmp_path):
    for output, code in run_ranks(PROGRAM, ranks, tmp_path / "meeting", "meshes"):
        assert code == 0, output
        assert output.strip().endswith("ok"), output


@pytest.mark.slow
def test_other_ranks_raise_if_one_is_killed_before_backward(tmp_path):
    results = run_ranks(PROGRAM, 3, tmp_path / "meeting", "lose")
    assert results[1][1] == -9
    for output, code in (results[0], results[2]):
        assert code == 0, output
