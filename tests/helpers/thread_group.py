"""A group of threads of one process, for tests of functions over groups."""

import threading

import numpy as np

TIMEOUT = 10  # seconds after which a collective that not all ranks enter is an error


class ThreadGroup:
    """One rank; `collectives` counts what it has entered, and `sent` the bytes."""

    def __init__(self, rank, size, shared):
        self.rank, self.size, self._shared = rank, size, shared
        self.collectives, self.sent = 0, 0

    def _exchange(self, a):
        slots, barrier = self._shared
        self.collectives += 1
        self.sent += a.nbytes
        slots[self.rank] = np.array(a)
        barrier.wait()
        found = [np.array(slot) for slot in slots]
        barrier.wait()
        assert len({(f.shape, f.dtype) for f in found}) == 1, [(f.shape, f.dtype) for f in found]
        return np.stack(found)

    def all_gather(self, a):
        return self._exchange(a)

    def all_reduce(self, a, op):
        assert a.dtype == np.int64
        return self._exchange(a).max(0) if op == "max" else self._exchange(a).sum(0)


def run_on(size, function):
    """What function(group) returns, or the exception that it raises, on each of `size` ranks."""
    shared = [None] * size, threading.Barrier(size, timeout=TIMEOUT)
    results = [None] * size

    def work(rank):
        try:
            with np.errstate(all="ignore"):
                results[rank] = function(ThreadGroup(rank, size, shared))
        except Exception as error:
            results[rank] = error
            if isinstance(error, threading.BrokenBarrierError):
                shared[1].abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def run_on_mesh(slices, shards, function):
    """What function(group, rows_group) returns or raises on each rank of a mesh, the ranks of a slice together.

    The rows are divided among `slices`, the ranks of a rows_group, and the classes among `shards`, those of a group.
    """
    by_class = [([None] * shards, threading.Barrier(shards, timeout=TIMEOUT)) for _ in range(slices)]
    by_rows = [([None] * slices, threading.Barrier(slices, timeout=TIMEOUT)) for _ in range(shards)]

    def work(group):
        i, j = divmod(group.rank, shards)
        return function(ThreadGroup(j, shards, by_class[i]), ThreadGroup(i, slices, by_rows[j]))

    return run_on(slices * shards, work)
