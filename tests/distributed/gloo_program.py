"""What each rank of test_gloo.py runs. Arguments: rank, number of ranks, a file for them to meet, what to do."""

import os
import signal
import sys
import time

import gloo_ranks
import ml_dtypes
import numpy as np
import pytest
import torch.distributed as dist
from helpers import assert_same_bits
from helpers.sharded_calls import Call

import csoftmax
from csoftmax import distributed
from csoftmax._distributed import groups


def check_random_calls(group, rank, size):
    rng = np.random.default_rng(size)
    for _ in range(40):
        call = Call(rng)
        inner = sorted(map(int, rng.integers(0, call.n + 1, size - 1)))
        call.boundaries = [0, *inner, call.n]
        with np.errstate(all="ignore"):
            result = call.over_group(group, rank)
        results = [None] * size
        dist.all_gather_object(results, result, group=group)
        if rank == 0:
            call.check_over_group(results)


def check_dtypes(group, rank, size):
    """The k best and draws of dtypes that gloo lacks."""
    x = np.random.default_rng(0).integers(0, 100, (3, 6 * size))
    shard = slice(6 * rank, 6 * rank + 6)
    for dtype in (np.int16, np.uint16, np.int64, np.uint32, np.uint64, np.float16, ml_dtypes.bfloat16):
        rows = x.astype(dtype)
        expected, result = csoftmax.topk(rows, 4), distributed.topk(rows[:, shard], 4, group=group)
        assert_same_bits(result.values, expected.values)
        assert_same_bits(result.indices, expected.indices)
        if np.dtype(dtype).kind in "iu":
            continue
        expected = csoftmax.topk_softmax(rows, 4, normalize="full")
        result = distributed.topk_softmax(rows[:, shard], 4, normalize="full", group=group)
        assert_same_bits(result.values, expected.values)
        drawn = distributed.sample(rows[:, shard], rng=3, size=5, group=group)
        assert_same_bits(drawn, csoftmax.sample(rows, rng=3, size=5))


def lose_a_rank(group, rank):
    """One rank is killed; the others get an error, not a result and no endless wait."""
    x = np.zeros((2, 4096), np.float32)
    distributed.softmax(x, group=group)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start = time.monotonic()

    def call_often():
        for _ in range(10):
            distributed.softmax(x, group=group)

    with pytest.raises(RuntimeError) as caught:
        call_often()
    assert time.monotonic() - start < 20
    assert caught.value.__notes__ == [f"in csoftmax.distributed.softmax on rank {rank} of 3"]


def main():
    rank, size, meeting, what = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    group = gloo_ranks.meet(rank, size, meeting)
    if what == "calls":
        check_random_calls(group, rank, size)
        groups.DIRECT_BYTES = 2000  # larger messages in a ring
        check_random_calls(group, rank, size)
        check_dtypes(group, rank, size)
    else:
        lose_a_rank(group, rank)
    print("ok")
    gloo_ranks.leave(in_order=what == "calls")


if __name__ == "__main__":
    main()
