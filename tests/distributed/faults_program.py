"""What each rank of test_faults.py runs: calls that fail on one rank fail on all, within a time limit of their own.

Arguments: "mpi", or rank, number of ranks and a file for them to meet.
"""

import sys
import time

import numpy as np
import pytest

import csoftmax
from csoftmax import distributed
from csoftmax._distributed.terms import Terms
from csoftmax.distributed import DistributedError, DistributedMemoryError

LIMIT = 20  # seconds of all calls, which take less than one
X = np.random.default_rng(0).normal(size=(3, 15000)).astype(np.float32)
TARGET = np.array([0, 7000, 14999])
CUTS = [0, 4096, 9000, 15000]  # a block is divided
FAULTS = [  # what differs on rank 1, the error of every rank, and its message
    ({"target": np.array([0, 15000, 1])}, ValueError, "ranks disagree on target"),
    ({"target": np.array([0, 1])}, DistributedError, "rank 1: ValueError: target has shape"),
    ({"dtype": np.float64}, ValueError, "ranks disagree on the dtype: float32 on rank 0 and float64 on rank 1"),
    ({"dtype": object}, DistributedError, "rank 1: TypeError"),
    ({"n_classes": 20000}, ValueError, "ranks disagree on n_classes"),
    ({"cut": 1}, ValueError, "shards must tile"),
    ({"rows": 2}, ValueError, "ranks disagree on the shape of the rows"),
    ({"label_smoothing": 0.1}, ValueError, "ranks disagree on label_smoothing: 0.0 on rank 0 and 0.1 on rank 1"),
    ({"temperature": -1.0}, DistributedError, "rank 1: ValueError: temperature"),
    ({"has_memory": False}, DistributedMemoryError, "rank 1: MemoryError: no room"),
]


def call(group, rank, *, dtype=np.float32, cut=0, rows=3, target=TARGET, has_memory=True, **options):
    x = X[:rows, CUTS[rank] : CUTS[rank + 1] - cut].astype(dtype)
    usual = Terms.sums
    if not has_memory:
        Terms.sums = out_of_memory
    try:
        given = {"n_classes": 15000, "offset": CUTS[rank]} | options
        return distributed.cross_entropy_with_grad(x, target[:rows], group=group, **given)
    finally:
        Terms.sums = usual


def out_of_memory(*_arguments, **_options):
    raise MemoryError("no room")


def error_of(group, rank, change):
    try:
        call(group, rank, **change)
    except Exception as error:
        return error
    raise AssertionError(f"rank {rank} did not fail: {change}")


def check_faults(group, rank):
    expected = csoftmax.cross_entropy_with_grad(X, TARGET)
    start = time.monotonic()
    for change, kind, message in FAULTS:
        error = error_of(group, rank, change if rank == 1 else {})
        assert type(error) is kind, (change, repr(error))
        assert message in str(error), (change, repr(error))
        result = call(group, rank)  # the group is in order
        assert result.loss == expected.loss, change
        assert np.array_equal(result.grad, expected.grad[:, CUTS[rank] : CUTS[rank + 1]]), change
    error = error_of(group, rank, {"target": np.array([0, 15000, 1])})  # the same on all ranks
    assert isinstance(error, IndexError), repr(error)
    assert "target[1] is 15000" in str(error)
    check_bad_label_with_out(group, rank, CUTS, {0})
    check_bad_label_with_out(group, rank, [0, 0, 0, 3000], {0, 1, 2})
    assert time.monotonic() - start < LIMIT


def check_bad_label_with_out(group, rank, cuts, with_out):
    """Only some ranks may keep powers, which they do in out."""
    x = np.zeros((2, cuts[rank + 1] - cuts[rank]))
    out = np.empty_like(x) if rank in with_out else None
    with pytest.raises(IndexError, match=rf"target\[1\] is {cuts[-1]}"):
        distributed.cross_entropy_with_grad(x, [0, cuts[-1]], group=group, out=out)


def main():
    if sys.argv[1] == "mpi":
        from mpi4py import MPI

        check_faults(MPI.COMM_WORLD, MPI.COMM_WORLD.rank)
        print("ok" if MPI.COMM_WORLD.rank == 0 else "", flush=True)
        return
    import gloo_ranks

    rank, size, meeting = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    check_faults(gloo_ranks.meet(rank, size, meeting, LIMIT), rank)
    print("ok")
    gloo_ranks.leave()


if __name__ == "__main__":
    main()
