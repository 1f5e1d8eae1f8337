"""What each rank of test_mpi.py runs: random calls over MPI.COMM_WORLD against calls of whole rows.

Arguments: the number of calls; instruction sets, one for each rank in turn.
"""

import os
import sys

import numpy as np
from mpi4py import MPI

ISAS = sys.argv[2:]
if ISAS:  # read by csoftmax when it is imported
    os.environ["CSOFTMAX_ISA"] = ISAS[MPI.COMM_WORLD.rank % len(ISAS)]

from helpers.sharded_calls import Call  # noqa: E402

from csoftmax import distributed  # noqa: E402
from csoftmax._distributed import merge as group_merge  # noqa: E402


def check_random_calls(comm, count):
    """Calls whose boundaries are those of as many shards as there are ranks."""
    rng = np.random.default_rng(comm.size)
    for i in range(count):
        call = Call(rng)
        inner = sorted(map(int, rng.integers(0, call.n + 1, comm.size - 1)))
        call.boundaries = [0, *inner, call.n]
        group_merge.GATHERED_RANKS = 64 if i % 2 else 0
        with np.errstate(all="ignore"):
            result = call.over_group(comm)
        results = comm.gather(result)
        if comm.rank == 0:
            call.check_over_group(results)


def check_errors(comm):
    """An error of one rank is raised on all, and the next call works."""
    x = np.zeros((2, 4096), np.float32)
    for change in ({"temperature": -1.0}, {"temperature": 2.0}, {"n_classes": 1}):
        options = change if comm.rank == comm.size - 1 else {}
        try:
            distributed.softmax(x, group=comm, **options)
        except (ValueError, distributed.DistributedError):
            continue
        assert comm.size == 1, change
    assert np.isclose(comm.allreduce(distributed.softmax(x, group=comm).sum()), 2)


def main():
    comm = MPI.COMM_WORLD
    check_random_calls(comm, int(sys.argv[1]))
    check_errors(comm)
    if comm.rank == 0:
        print("ok")


if __name__ == "__main__":
    main()
