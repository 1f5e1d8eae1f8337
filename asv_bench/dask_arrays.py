"""csoftmax.dask on one worker beside one process, and the memory of the worker.

    python asv_bench/dask_arrays.py [CHUNKS [MEGABYTES]]

The worker is a process with one thread that holds the chunks, float32; it computes the result and keeps it. One process
does the same with csoftmax's function, chunk by chunk, one thread. Chunks hold whole rows, or all rows of some classes;
then the process has the whole rows in one array. Best of 5 rounds in turns, with the load average. "graph" is the same
call on as many chunks of one row: the cost of Dask itself. "x * 2" is NumPy's, beside which a ratio of ours is to be
seen: NumPy's results have new pages in either case. Memory is that of the worker at its highest, beyond the chunks that
it holds already, while the sum of the result is computed.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
from typing import Any

import numpy as np

ROUNDS = 5


def make_chunk(seed: int, rows: int, classes: int) -> Any:
    """Logits of a chunk."""
    return np.random.default_rng(seed).normal(size=(rows, classes)).astype(np.float32)


def make_lazy(chunks: int, rows: int, classes: int, axis: int) -> Any:
    """The array whose chunks the worker makes."""
    import dask
    import dask.array as da

    make = dask.delayed(make_chunk)
    parts = [da.from_delayed(make(i, rows, classes), (rows, classes), np.float32) for i in range(chunks)]
    return da.concatenate(parts, axis=axis)


class Worker:
    """Persists the chunks on the only worker, and computes there."""

    def __init__(self, client: Any, x: Any):
        from distributed import wait

        self.client, self.wait, self.x = client, wait, x.persist()
        wait(self.x)

    def compute(self, function: Any) -> float:
        """Seconds of a call whose result stays on the worker."""
        kept = len(self.client.who_has())
        began = time.perf_counter()
        result = function(self.x).persist()
        self.wait(result)
        seconds = time.perf_counter() - began
        del result
        while len(self.client.who_has()) > kept:  # else the next call finds its results there
            time.sleep(0.01)
        return seconds

    def peak(self, function: Any) -> float:
        """Bytes of the worker at their highest during a call, beyond what it has before."""
        import psutil

        (pid,) = self.client.run(os.getpid).values()
        process, ends = psutil.Process(pid), threading.Event()
        before = highest = process.memory_info().rss

        def watch() -> None:
            nonlocal highest
            while not ends.wait(0.005):
                highest = max(highest, process.memory_info().rss)

        watcher = threading.Thread(target=watch)
        watcher.start()
        function(self.x).sum().compute()
        ends.set()
        watcher.join()
        return float(highest - before)


def double(x: Any) -> Any:
    """What NumPy does with a chunk, for comparison."""
    return x * 2


def compare(client: Any, name: str, x: Any, parts: list[Any], graph: Any) -> None:
    """Print the lines of the table; graph: an array of as many chunks with next to nothing in them."""
    import csoftmax
    from csoftmax import dask as cd

    worker, idle = Worker(client, x), Worker(client, graph)
    calls: dict[str, tuple[Any, Any]] = {
        label: (getattr(cd, label), functools.partial(getattr(csoftmax, label), num_threads=1))
        for label in ("softmax", "log_softmax", "logsumexp")
    }
    calls["x * 2"] = double, double
    for label, (lazily, plainly) in calls.items():
        here, there, nothing = [], [], []
        for _ in range(ROUNDS):
            there.append(worker.compute(lazily))
            began = time.perf_counter()
            kept = [plainly(a) for a in parts]
            here.append(time.perf_counter() - began)
            del kept
            nothing.append(idle.compute(lazily))
        figures = min(here) * 1e3, min(there) * 1e3, min(there) / min(here), min(nothing) * 1e3
        print("{:8} {:12} {:8.0f} {:8.0f} {:6.2f} {:8.0f}".format(name, label, *figures), flush=True)


def main(chunks: int = 12, megabytes: int = 64) -> None:
    """Print the table."""
    from distributed import Client, LocalCluster

    from csoftmax import dask as cd

    options: dict[str, Any] = {"processes": True, "dashboard_address": None, "memory_limit": 0}
    classes = 32768
    rows = (megabytes << 20) // (4 * classes)
    print(f"{chunks} chunks of {megabytes} MB; load average {os.getloadavg()[0]:.2f}")
    for axis, name in enumerate(("rows", "classes")):
        with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
            peak = Worker(client, make_lazy(chunks, rows, classes, axis)).peak(cd.softmax)
            print(f"memory of softmax(x).sum() in chunks of {name}: {peak / 1e6:.0f} MB beyond the chunks")
    print("{:8} {:12} {:>8} {:>8} {:>6} {:>8}".format("chunks", "function", "one, ms", "Dask, ms", "ratio", "graph"))
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster, Client(cluster) as client:
        parts = [make_chunk(i, rows, classes) for i in range(chunks)]
        for axis, name in enumerate(("rows", "classes")):
            given = parts if axis == 0 else [np.concatenate(parts, axis=1)]
            compare(client, name, make_lazy(chunks, rows, classes, axis), given, make_lazy(chunks, 1, classes, axis))
    print(f"load average {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
