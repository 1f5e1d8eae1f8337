"""PyTorch tensors as arguments of csoftmax.distributed: tensors out, the bits of whole rows, no recorded gradients."""

import pytest
from helpers.thread_group import run_on

import csoftmax
from csoftmax import distributed

torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra; the gate installs it")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_tensors_give_tensors_with_the_bits_of_whole_rows(dtype):
    x = torch.randn(3, 9000).to(getattr(torch, dtype))
    target = torch.tensor([1, 5000, 8999])
    expected = csoftmax.cross_entropy_with_grad(x, target)

    def work(group):
        shard = x[:, :4096] if group.rank == 0 else x[:, 4096:]
        out = torch.empty_like(shard)
        assert distributed.softmax(shard, group=group, out=out) is out
        return out, distributed.cross_entropy_with_grad(shard, target, group=group)

    results = run_on(2, work)
    assert torch.equal(torch.cat([y for y, _ in results], 1), csoftmax.softmax(x))
    assert all(torch.equal(result.loss, expected.loss) for _, result in results)
    assert torch.equal(torch.cat([result.grad for _, result in results], 1), expected.grad)


def test_tensors_that_require_grad_are_refused_on_all_ranks():
    x = torch.zeros(1, 5000, requires_grad=True)
    for result in run_on(2, lambda group: distributed.softmax(x, group=group)):
        with pytest.raises(ValueError, match=r"pass x\.detach\(\)"):
            raise result
