"""Draws from tensors of logits, which may be divided among ranks."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import csoftmax

from . import groups
from .operators import check_floating, check_int, refuse_gradient


def sample(
    logits: Tensor,
    *,
    dim: int = -1,
    group: Any = None,
    n_classes: int | None = None,
    offset: int | None = None,
    **options: Any,
) -> Tensor:
    """`csoftmax.sample` for tensors, whose classes may be divided among the ranks of a group.

    Parameters
    ----------
    logits : torch.Tensor of shape (..., K)
        Floating point. No gradient flows to them: logits that require grad are refused, as by all constants.
    dim : int, default -1
        The axis of the classes.
    group, n_classes, offset
        As in `csoftmax.distributed.sample`: each rank has some of the classes. A DTensor says itself how it is divided.
    **options
        All other arguments of `csoftmax.sample`, or, over ranks, of `csoftmax.distributed.sample`.

    Returns
    -------
    torch.Tensor of int64
        The draws, of the shape of the rows followed by `size`; over ranks those of whole rows, on all ranks. Of a
        DTensor, a DTensor that is placed like the rows.

    Raises
    ------
    TypeError, ValueError, DistributedError, NotImplementedError
        As in `csoftmax.sample` and `csoftmax.distributed.sample`.
    DeviceError
        If there is a group and the logits are on a CUDA device.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.sample(torch.tensor([0.0, 50.0, 0.0]), size=3, rng=0)
    tensor([1, 1, 1])
    """
    if groups.is_over_ranks(logits, group, n_classes, offset):
        return groups.sample(logits, dim, group, n_classes, offset, **options)
    check_floating("logits", logits)
    refuse_gradient("logits", logits)
    return csoftmax.sample(logits, axis=check_int("dim", dim), **options)
