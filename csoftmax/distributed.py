"""The softmax family over classes or rows that are divided among processes, with the bits of one process.

Functions of the names that csoftmax has take a `group`: a communicator of mpi4py, a process group of PyTorch, or any
other object with the members of `Group`. They compute shards of the classes, and return what one process with whole
rows would, equal in every bit for any number of ranks. `split`, `partial`, `merge` and the functions that finish do the
same without a group, for engines that move arrays by themselves; `Nodes` are sums over rows. No engine is imported
here.
"""

from __future__ import annotations

import warnings
from typing import Any

from numpy.typing import ArrayLike

from ._distributed.draws import sample
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
from ._distributed.topk import entmax, sparsemax, topk, topk_softmax

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
    "fit",
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


def fit(model: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, *, group: Any) -> Any:
    """Train a model on the rows of all ranks; requires the extra ``learn``.

    Each rank passes its own rows, and all of them end with the same model, equal in every bit. Rank 0 runs L-BFGS, and
    the others compute the sums over their rows, once an iteration: a message of K (D + 1) numbers there and back.
    Callbacks run on rank 0; a true result, or an exception, ends the fit on all ranks.

    Parameters
    ----------
    model : csoftmax.linear_model.SoftmaxRegression
        A model with the same parameters on all ranks but for `callbacks` and `num_threads`, with ``solver="lbfgs"``, a
        number or None as `penalty_l2`, and without `adversarial` and `device`. With `early_stopping`, a row is held out
        if a uniform number of its own, drawn by its number among the rows of all ranks, is below `validation_fraction`:
        not stratified. Where `random_state` is a generator, that of rank 0 draws.
    X : array-like or sparse matrix of shape (n, D)
        The rows of this rank, of any number, also none; the dtype is that of all ranks.
    y : array-like of shape (n,)
        Their labels. The classes are those of the rows of all ranks.
    sample_weight : array-like of shape (n,), optional
        Their weights, on all ranks or on none.
    group : mpi4py.MPI.Comm, torch.distributed.ProcessGroup or Group
        The ranks. Messages to ranks other than 0 are pickled, so all of them must be trusted.

    Returns
    -------
    model
        The model itself, fitted. The same rows on the same ranks give the same bits; other divisions of the rows, and
        one process, the same loss to 1e-12.

    Raises
    ------
    TypeError, ValueError
        On all ranks: if an argument or a row of any rank does not fit (the message names the row), or if ranks
        disagree. ``solver="adamw"`` is refused: see `SoftmaxRegression.fit_batches`.
    DistributedError
        On all ranks, if one of them reports another error; `DistributedMemoryError` for lack of memory. A rank that is
        killed reports nothing: MPI ends the job, and PyTorch raises RuntimeError on the other ranks.

    Warns
    -----
    sklearn.exceptions.ConvergenceWarning
        On all ranks, as by `SoftmaxRegression.fit`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from csoftmax import distributed
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = distributed.fit(SoftmaxRegression(penalty_l2=1e-2), X, y, group=distributed.SingleProcess())
    >>> round(model.score(X, y), 2)
    0.97
    """
    from ._learn.parts.group import fit_group  # with the extra "learn" alone

    for message, category in fit_group(model, X, y, sample_weight, group):
        warnings.warn(message, category, stacklevel=2)
    return model


# Pickles and messages show the public name, so that private files can move.
for _name in __all__:
    globals()[_name].__module__ = __name__
