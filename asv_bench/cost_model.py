"""What cross-entropy costs whose classes are divided among up to 1,000 ranks: a model, measured and checked with MPI.

    python asv_bench/cost_model.py [--picture docs/guide/distributed_cost.svg] [--latency 5e-6] [--bandwidth 12.5e9]

Starts `mpiexec -n 2` of itself, which measures the time of an element, of a call, of merging a record, and the latency
and bandwidth of all-gathers in shared memory, and then compares the model with whole calls on the two ranks. The table
and the picture take the times of elements, calls and merges from there, and the latency and bandwidth of a network from
the arguments; these are assumed, not measured.

    compute     rows classes / ranks x time of an element, gradient included
    header      latency log2(ranks) + ranks 64 / bandwidth
    gather      latency log2(ranks) + (ranks - 1) rows (128 / bandwidth + time of a merge)
    reduce      a status, then 3 all-reduces of 8, 32 and 88 bytes a row: 7 latency log2(ranks) + 2 rows 128 / bandwidth
    megatron    3 all-reduces of 4 bytes a row: 6 latency log2(ranks) + 2 rows 12 / bandwidth
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from csoftmax import distributed
from csoftmax._cpu import binding
from csoftmax._distributed.merge import GATHERED_RANKS

RECORD_BYTES, REDUCED_BYTES, HEADER_BYTES = 128, 8 + 32 + 88, 64
CASES = [(1024, 128_256), (8192, 128_256), (1024, 100_000_000)]
RANKS = [2, 4, 8, 16, 32, 64, 100, 200, 400, 1000]
SHAPES = [(64, 50257), (256, 50257), (1024, 16384), (16, 262144)]  # of the comparison on two ranks


class Times(NamedTuple):
    """In seconds, and bytes a second."""

    element: float
    call: float
    merge: float
    latency: float
    bandwidth: float


def compute(t: Times, rows: int, classes: int, ranks: int) -> float:
    """The shard of a rank."""
    return t.call + rows * classes / ranks * t.element


def header(t: Times, ranks: int) -> float:
    """The first collective of a call."""
    return t.latency * math.log2(ranks) + ranks * HEADER_BYTES / t.bandwidth


def gather(t: Times, rows: int, ranks: int) -> float:
    """Records of all ranks, merged by each."""
    return t.latency * math.log2(ranks) + (ranks - 1) * rows * (RECORD_BYTES / t.bandwidth + t.merge)


def reduce(t: Times, rows: int, ranks: int) -> float:
    """A status and three reductions of integers."""
    return 7 * t.latency * math.log2(ranks) + 2 * rows * REDUCED_BYTES / t.bandwidth


def megatron(t: Times, rows: int, ranks: int) -> float:
    """The exchange of the vocabulary-parallel algorithm, which has other bits for every number of ranks."""
    return 6 * t.latency * math.log2(ranks) + 2 * rows * 12 / t.bandwidth


def exchange(t: Times, rows: int, ranks: int) -> float:
    """What csoftmax does for this number of ranks."""
    return header(t, ranks) + (gather if ranks <= GATHERED_RANKS else reduce)(t, rows, ranks)


def least(call: Callable[[], Any], rounds: int, comm: Any = None) -> float:
    """The least time of a call; on several ranks the largest of theirs, with a barrier before each."""
    found = []
    for _ in range(rounds):
        if comm is not None:
            comm.Barrier()
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


def measure_collectives(comm: Any) -> tuple[float, float]:
    """Latency and bandwidth of all-gathers."""
    times = {}
    for size in (8, 64, 1 << 13, 1 << 17, 1 << 20):
        own = np.zeros(size, np.uint8)
        to = np.empty((comm.size, size), np.uint8)
        times[size] = least(lambda own=own, to=to: comm.Allgather(own, to), 300 if size < 1 << 17 else 40, comm)
    latency = times[64] / math.log2(comm.size)
    return latency, (comm.size - 1) * (1 << 17) / (times[1 << 17] - times[64])


def work() -> None:
    """What each rank of the measurement does; rank 0 prints the times and the comparison."""
    from mpi4py import MPI

    comm, rng = MPI.COMM_WORLD, np.random.default_rng(0)
    alone = distributed.SingleProcess()
    x, target = rng.normal(size=(64, 50257)).astype(np.float32), rng.integers(0, 50257, 64)

    def whole(n: int) -> Any:
        return lambda: distributed.cross_entropy_with_grad(x[:, :n], target % n, group=alone, num_threads=1)

    call = least(whole(4097), 200)
    element = (least(whole(50257), 60) - call) / (64 * (50257 - 4097))
    records = distributed.partial(x[:, :49152], offset=0, n_classes=50257, kind="loss", target=target).records
    many = np.ascontiguousarray(np.broadcast_to(records, (16, *records.shape)).reshape(1024, -1))
    into = many.copy()
    merge = least(lambda: binding.merge_records(into, many), 200) / 1024
    times = Times(element, call - 64 * 4097 * element, merge, *measure_collectives(comm))
    rows = []
    for n, classes in SHAPES:
        x = rng.normal(size=(n, classes)).astype(np.float32)
        target = rng.integers(0, classes, n)
        a, b = distributed.split(classes, comm.size)[comm.rank : comm.rank + 2]
        shard = np.ascontiguousarray(x[:, a:b])
        found = least(
            lambda shard=shard, target=target: distributed.cross_entropy_with_grad(
                shard, target, group=comm, num_threads=1
            ),
            30,
            comm,
        )
        words = np.zeros(7 + n * 16, np.int64)
        to = np.empty((comm.size, len(words)), np.int64)

        def swap(words: Any = words, to: Any = to, n: int = n) -> None:
            comm.Allgather(words, to)
            binding.merge_records(to[0, 7:].reshape(n, 16), to[1, 7:].reshape(n, 16))

        rows.append([n, classes, comm.allreduce(found, MPI.MAX), comm.allreduce(least(swap, 200, comm), MPI.MAX)])
    if comm.rank == 0:
        print(json.dumps({"times": times, "rows": rows, "ranks": comm.size}))


def measure() -> tuple[Times, str]:
    """The times, and lines that compare the model with two ranks."""
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        sys.exit("cost_model.py needs mpiexec, mpi4py and its library")
    command = [mpiexec, "-n", "2", sys.executable, __file__, "--work"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stdout
    found = json.loads(output.strip().splitlines()[-1])
    t = Times(*found["times"])
    lines = [
        f"element {1e9 * t.element:.3f} ns, call {1e6 * t.call:.0f} us, merge {1e9 * t.merge:.0f} ns, two ranks: "
        f"latency {1e6 * t.latency:.1f} us, {t.bandwidth / 1e9:.1f} GB/s; load {os.getloadavg()[0]:.1f}",
        "",
        "| rows, classes, 2 ranks | exchange: model, us | measured | call: model, ms | measured |",
        "|---|---|---|---|---|",
    ]
    for rows, classes, whole, swapped in found["rows"]:
        model = compute(t, rows, classes, 2) + exchange(t, rows, 2)
        lines.append(
            f"| {rows}, {classes:,} | {1e6 * gather(t, rows, 2):.0f} | {1e6 * swapped:.0f} | {1e3 * model:.2f} | "
            f"{1e3 * whole:.2f} |"
        )
    return t, "\n".join(lines)


def table(t: Times) -> str:
    """The model for a few arrangements, as Markdown."""
    lines = [
        "| rows, classes | ranks | compute, ms | gather, ms | reduce, ms | share of the exchange | Megatron's, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows, classes in CASES:
        for ranks in (8, 64, 100, 1000):
            if classes / ranks < 4096:
                continue
            work, swap = compute(t, rows, classes, ranks), exchange(t, rows, ranks)
            lines.append(
                f"| {rows:,}, {classes:,} | {ranks:,} | {1e3 * work:.2f} | {1e3 * gather(t, rows, ranks):.2f} | "
                f"{1e3 * reduce(t, rows, ranks):.2f} | {100 * swap / (work + swap):.1f} % | "
                f"{1e3 * megatron(t, rows, ranks):.2f} |"
            )
    return "\n".join(lines)


def draw(t: Times, path: str) -> None:
    """Compute and exchanges against the number of ranks, a panel for each case."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    plt.style.use("csoftmax.style")
    matplotlib.rcParams["svg.hashsalt"] = "csoftmax"  # the same bytes for the same figures
    fig, axes = plt.subplots(1, len(CASES), figsize=(11, 3.6), sharey=True)
    for ax, (rows, classes) in zip(axes, CASES, strict=True):
        curves = {
            "compute": lambda p, rows=rows, classes=classes: compute(t, rows, classes, p),
            "gather": lambda p, rows=rows: header(t, p) + gather(t, rows, p),
            "reduce": lambda p, rows=rows: header(t, p) + reduce(t, rows, p),
            "Megatron's exchange": lambda p, rows=rows: megatron(t, rows, p),
        }
        usable = [p for p in RANKS if classes / p >= 4096]
        for (name, curve), style in zip(curves.items(), ("-", "-", "-", "--"), strict=True):
            ax.plot(usable, [1e3 * curve(p) for p in usable], style, label=name)
        ax.axvline(GATHERED_RANKS, color="0.4", linestyle=":", linewidth=1, zorder=0)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlim(2, 1000)
        ax.set_xticks([2, 8, 64, 1000], ["2", "8", "64", "1000"])
        ax.minorticks_off()
        ax.set_title(f"{rows:,} rows, {classes:,} classes", fontsize=11, loc="left")
        ax.set_xlabel("ranks")
    axes[0].set_ylabel("milliseconds of a call")
    axes[0].legend(fontsize=9, loc="upper right")
    axes[-1].annotate("gather | reduce", (GATHERED_RANKS, 0.97), xycoords=("data", "axes fraction"), ha="center",
                      va="top", fontsize=9)  # fmt: skip
    fig.savefig(path, metadata={"Date": None} if str(path).endswith(".svg") else None)


def main() -> None:
    """Measure, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", help="JSON of the five measured times, instead of measuring")
    parser.add_argument("--picture", help="file name, such as docs/guide/distributed_cost.svg")
    parser.add_argument("--latency", type=float, default=5e-6, help="seconds of a hop of the network")
    parser.add_argument("--bandwidth", type=float, default=12.5e9, help="bytes a second of a rank")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work()
        return
    if given.times:
        times = Times(*json.loads(given.times))
    else:
        times, comparison = measure()
        print(comparison, f"\n--times '{json.dumps(times)}'\n")
    network = times._replace(latency=given.latency, bandwidth=given.bandwidth)
    print(table(network))
    if given.picture:
        draw(network, given.picture)


if __name__ == "__main__":
    main()
