"""Cross-entropy and its gradient over process groups: csoftmax against Megatron-LM's algorithm and PyTorch's DTensors.

    python asv_bench/process_groups.py [RANKS [ROWS CLASSES]] [free]

Each rank holds a part of the classes; the group has the gloo backend, each rank one thread, bound to a processor of its
own as mpiexec binds them: Linux tends to wake a rank where the one is that has sent it something, so that two take
turns on one processor. "free" as the last argument leaves them unbound. "tensors" is csoftmax.torch, forward and
backward. Megatron's algorithm (its unfused path, here in
PyTorch's functions) has three all-reduces of floats, so that its losses depend on the number of ranks; the hashes of
the row losses show that. "dtensor" is PyTorch's cross-entropy within loss_parallel, whose shards must be equal: there
the classes are rounded up. Calls take turns in random order, 25 of each, after a barrier; of the medians and the least
times of all ranks the largest are printed.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np


def megatron(torch: Any, dist: Any, shard: Any, labels: Any, first: int) -> tuple[Any, Any]:
    """Row losses, and the gradient of their mean, by the vocabulary-parallel algorithm."""
    logits = shard.clone()
    rows = torch.arange(len(logits))
    largest = logits.max(dim=-1)[0]
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    logits -= largest[:, None]
    outside = (labels < first) | (labels >= first + logits.shape[1])
    local = (labels - first).masked_fill(outside, 0)
    predicted = logits[rows, local].masked_fill(outside, 0)
    torch.exp(logits, out=logits)
    total = logits.sum(dim=-1)
    dist.all_reduce(predicted)
    dist.all_reduce(total)
    logits.div_(total[:, None])
    logits[rows, local] -= 1.0 - outside.float()
    return torch.log(total) - predicted, logits.mul_(1.0 / len(logits))


def make_dtensor_call(torch: Any, ranks: int, rows: int, classes: int, labels: Any) -> Any:
    """Mean loss and gradient by PyTorch, of its own shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    from torch.distributed.tensor.parallel import loss_parallel

    mesh, local = init_device_mesh("cpu", (ranks,)), torch.randn(rows, -(-classes // ranks))

    def call() -> Any:
        logits = DTensor.from_local(local, mesh, [Shard(1)]).requires_grad_()
        with loss_parallel():
            torch.nn.functional.cross_entropy(logits, labels).backward()
        return logits.grad

    return call


def work(rank: int, ranks: int, rows: int, classes: int, is_bound: bool, meeting: str) -> None:
    """What each rank does."""
    import torch
    import torch.distributed as dist

    processors = sorted(os.sched_getaffinity(0))
    if is_bound and len(processors) >= ranks:
        os.sched_setaffinity(0, {processors[rank]})
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    measure(rank, ranks, rows, classes)
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # PyTorch often aborts a process that ends with a mesh of devices


def measure(rank: int, ranks: int, rows: int, classes: int) -> None:
    """Time the calls, and print the slowest rank's times."""
    import torch
    import torch.distributed as dist

    import csoftmax.torch
    from csoftmax import distributed

    rng = np.random.default_rng(7)
    x = (rng.normal(size=(rows, classes)) * 5).astype(np.float32)
    target = rng.integers(0, classes, rows)
    first, stop = distributed.split(classes, ranks)[rank : rank + 2]
    shard = np.ascontiguousarray(x[:, first:stop])
    tensor, labels, group = torch.from_numpy(shard), torch.from_numpy(target), dist.group.WORLD

    def loss_of_tensors() -> None:
        leaf = tensor.detach().requires_grad_()
        csoftmax.torch.cross_entropy(leaf, labels, group=group).backward()

    csoftmax.set_num_threads(1)
    calls = {
        "csoftmax": lambda: distributed.cross_entropy_with_grad(shard, target, group=group, num_threads=1),
        "tensors": loss_of_tensors,
        "megatron": lambda: megatron(torch, dist, tensor, labels, first),
        "dtensor": make_dtensor_call(torch, ranks, rows, classes, labels),
    }
    losses = {
        "csoftmax": distributed.cross_entropy(shard, target, group=group, reduction="none"),
        "megatron": calls["megatron"]()[0].numpy(),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(25):
        for name in rng.permutation(list(calls)):  # the call after a long one gets less of a busy processor
            dist.barrier()
            begin = time.perf_counter()
            calls[name]()
            times[name].append(time.perf_counter() - begin)
    own = torch.tensor([[np.median(found), min(found)] for found in times.values()])
    dist.all_reduce(own, op=dist.ReduceOp.MAX)
    if rank == 0:
        for name, (median, least) in zip(calls, 1e3 * own, strict=True):
            digest = (
                hashlib.sha256(np.ascontiguousarray(losses[name]).tobytes()).hexdigest()[:8] if name in losses else "-"
            )
            print(
                f"{ranks} ranks ({rows}, {classes}) {name:9} {median:8.2f} ms, least {least:8.2f}  "
                f"row losses {digest}  load {os.getloadavg()[0]:.1f}"
            )


def main() -> None:
    """Start the ranks."""
    import torch.multiprocessing as mp

    is_bound = "free" not in sys.argv
    given = [int(a) for a in sys.argv[1:] if a != "free"]
    ranks, rows, classes = given + [2, 64, 50257][len(given) :]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, args=(ranks, rows, classes, is_bound, os.path.join(folder, "meeting")), nprocs=ranks)


if __name__ == "__main__":
    main()
