"""The softmax family over classes or rows that are divided among processes, with the bits of one process.

Functions of the names that csoftmax has take a `group`: a communicator of mpi4py, a process group of PyTorch, or any
other object with the members of `Group`. They compute shards of the classes, and return what one process with whole
rows would, equal in every bit for any number of ranks. `split`, `partial`, `merge` and the functions that finish do the
same without a group, for engines that move arrays by themselves; `Nodes` are sums over rows. No engine is imported
here.
"""

from ._distributed.finish import (
    finish_gradient,
    finish_log_softmax,
    finish_logsumexp,
    finish_loss,
    finish_softmax,
    finish_vjp,
)
from ._distributed.groups import DistributedError, DistributedMemoryError, Group, SingleProcess
from ._distributed.linear import linear_cross_entropy, linear_cross_entropy_with_grad
from ._distributed.losses import cross_entropy, cross_entropy_with_grad
from ._distributed.nodes import Nodes
from ._distributed.rows import log_softmax, log_softmax_vjp, logsumexp, softmax, softmax_vjp
from ._distributed.shard import Partial, merge, partial, split
from ._distributed.topk import entmax, sample, sparsemax, topk, topk_softmax

__all__ = [
    "DistributedError",
    "DistributedMemoryError",
    "Group",
    "Nodes",
    "Partial",
    "SingleProcess",
    "cross_entropy",
    "cross_entropy_with_grad",
    "entmax",
    "finish_gradient",
    "finish_log_softmax",
    "finish_logsumexp",
    "finish_loss",
    "finish_softmax",
    "finish_vjp",
    "linear_cross_entropy",
    "linear_cross_entropy_with_grad",
    "log_softmax",
    "log_softmax_vjp",
    "logsumexp",
    "merge",
    "partial",
    "sample",
    "softmax",
    "softmax_vjp",
    "sparsemax",
    "split",
    "topk",
    "topk_softmax",
]

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
