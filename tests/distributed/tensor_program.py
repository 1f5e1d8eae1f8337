"""What each rank of test_torch_groups.py runs. Arguments: rank, number of ranks, a file for them to meet, what."""

import os
import signal
import sys
import time

import gloo_ranks
import pytest
import torch
import torch.distributed as dist
from tensor_calls import check_meshes

import csoftmax.torch as ct


def lose_a_rank(rank):
    """One rank is killed between forward and backward; the others get an error from the backward."""
    x = torch.zeros(2, 4096, requires_grad=True)
    y = ct.log_softmax(x, group=dist.group.WORLD)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()
    loss = y[:, 0].sum()
    with pytest.raises(RuntimeError) as caught:
        loss.backward()
    assert time.monotonic() - start < 20
    assert caught.value.__notes__ == [f"in csoftmax.distributed.log_softmax_vjp on rank {rank} of 3"]


def main():
    rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    gloo_ranks.meet(rank, size, meeting)
    loses = sys.argv[4] == "lose"
    if loses:
        lose_a_rank(rank)
    else:
        check_meshes(size)
    print("ok")
    gloo_ranks.leave(in_order=not loses)


if __name__ == "__main__":
    main()
