"""The softmax family over classes or rows that are divided among processes, with the bits of one process."""

from ._ops.shard import Partial, merge, partial, split
from ._ops.shard_finish import (
    finish_gradient,
    finish_log_softmax,
    finish_logsumexp,
    finish_loss,
    finish_softmax,
    finish_vjp,
)

__all__ = [
    "Partial",
    "finish_gradient",
    "finish_log_softmax",
    "finish_logsumexp",
    "finish_loss",
    "finish_softmax",
    "finish_vjp",
    "merge",
    "partial",
    "split",
]

# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
