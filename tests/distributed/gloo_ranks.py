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

    Without Python's own end: while a variable or a mesh holds the group, PyTorch's thread of gloo lives, and aborts the
    process if it releases the tensors of the last operation (here the barrier) when Python is ending: AsyncBarrierWork
    then waits for the GIL, and the thread ends within a destructor.
    """
    if in_order:
        dist.barrier()
        dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
