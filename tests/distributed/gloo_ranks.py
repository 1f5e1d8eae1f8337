"""How the programs of several ranks meet in a group of PyTorch's gloo, and how they leave it."""

import os
import sys
from datetime import timedelta

import torch.distributed as dist


def meet(rank, ranks, meeting, seconds=20):
    """The group of all ranks, which meet at a file; calls over it that take longer than the limit fail."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    limit = timedelta(seconds=seconds)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks, timeout=limit)
    return dist.group.WORLD


def leave(*, in_order=True):
    """End the process; in_order=False where a rank is gone, which the others would wait for.

    Without the destructors of PyTorch's own threads: they abort a process by chance if anything still holds the group,
    as variables and meshes do (13 of 25 processes that had only called PyTorch).
    """
    if in_order:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
