"""Arrays on a cluster of processes of this machine, for test_dask_cluster.py: python dask_program.py WHAT."""

import os
import signal
import subprocess
import sys
import threading
import time

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from helpers import assert_same_bits, assert_same_results

import csoftmax
from csoftmax import dask as cd

X = np.random.default_rng(0).normal(size=(40, 30000)).astype(np.float32)
ISAS = csoftmax.show_config("dicts")["isa"]["available"]
MEMORY = 1_600_000_000  # bytes that a worker may have
TARGET = np.random.default_rng(1).integers(0, 30000, 40)


def slow_part(a, seconds=0.05):
    time.sleep(seconds)
    return a


def lazy_rows():
    return da.from_array(X, chunks=(8, 9000)).map_blocks(slow_part, dtype=X.dtype, meta=X[:0, :0])


def kill_one(client, delay):
    """Kill a worker after some time, from a thread."""
    (pid, *_) = client.run(os.getpid).values()

    def wait_and_kill():
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=wait_and_kill)
    thread.start()
    return thread


def results(client):
    """The same bits with this number of workers."""
    rows = lazy_rows()
    assert_same_bits(cd.softmax(rows).compute(), csoftmax.softmax(X))
    assert_same_results(
        dask.compute(*cd.cross_entropy_with_grad(rows, TARGET)), csoftmax.cross_entropy_with_grad(X, TARGET)
    )
    assert_same_results(dask.compute(*csoftmax.topk(rows, 5)), csoftmax.topk(X, 5))
    assert_same_bits(cd.sample(rows, rng=1, size=3).compute(), csoftmax.sample(X, rng=1, size=3))
    assert_same_bits(cd.logsumexp(rows * np.float32(1e30)).compute(), csoftmax.logsumexp(X * np.float32(1e30)))


def killed(client):
    """A worker is lost while chunks are read, and another one later."""
    for delay in (0.2, 0.6):
        thread = kill_one(client, delay)
        got = dask.compute(cd.softmax(lazy_rows()), *cd.cross_entropy_with_grad(lazy_rows(), TARGET))
        thread.join()
        assert_same_results(got, (csoftmax.softmax(X), *csoftmax.cross_entropy_with_grad(X, TARGET)))
        client.wait_for_workers(2)


def mixed(client):
    """Workers with the instruction sets of different machines, beside none of the cluster's own."""
    command = [sys.executable, "-W", "ignore", "-m", "distributed.cli.dask_worker", client.scheduler.address]
    command += ["--no-nanny", "--nthreads", "1", "--no-dashboard", "--death-timeout", "5"]
    workers = [
        subprocess.Popen(command, env=os.environ | {"CSOFTMAX_ISA": isa}, stderr=subprocess.DEVNULL) for isa in ISAS
    ]
    try:
        client.wait_for_workers(len(ISAS), timeout=60)
        assert set(client.run(get_isa).values()) == set(ISAS)
        results(client)
    finally:
        for worker in workers:
            worker.kill()


def get_isa():
    return csoftmax.show_config("dicts")["isa"]["used"]


def bad_label(client):
    """The error of a task reaches the caller, and the cluster goes on."""
    target = TARGET.copy()
    target[33] = 30000
    with pytest.raises(IndexError, match=r"target\[33\] is 30000: the classes are 0 to 29999"):
        cd.cross_entropy(lazy_rows(), target).compute()
    assert_same_bits(
        np.asarray(cd.cross_entropy(lazy_rows(), TARGET).compute()), np.asarray(csoftmax.cross_entropy(X, TARGET))
    )
    cd.softmax(da.from_array(X, chunks=(1, -1))).compute()  # a task for each worker
    assert set(client.run(get_limit).values()) == {min(get_limit(), MEMORY // 16)}


def get_limit():
    return csoftmax.show_config("dicts")["memory"]["limit"]


def batches(client):
    """Parts come in order though workers are lost, and few are there at a time; none stay after an early end."""
    rows = da.from_array(X, chunks=(4, 30000)).map_blocks(slow_part, dtype=X.dtype, meta=X[:0, :0])
    with cd.options(client=client, retries=5):
        thread, found = kill_one(client, 0.2), []
        for features, labels in cd.batches(rows, TARGET, prefetch=2):
            assert sum(f.status in ("pending", "finished") for f in client.futures.values()) <= 2 * 3
            found.append((features, labels))
        thread.join()
        assert_same_results((np.concatenate([a for a, _ in found]), np.concatenate([a for _, a in found])), (X, TARGET))
        for _ in cd.batches(rows, TARGET):
            break
    for _ in range(100):
        if not client.futures:
            return
        time.sleep(0.05)
    raise AssertionError(f"futures are left: {client.futures}")


def main(what, workers):
    options = {"threads_per_worker": 1, "processes": True, "dashboard_address": None}
    options["memory_limit"] = MEMORY if what == "bad_label" else 0
    with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
        globals()[what](client)
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
