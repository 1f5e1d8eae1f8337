"""Sinks: logits that take part in the denominator of a row and have no output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._arguments.foreign import is_of_torch_func
from .._arguments.sinks import raise_lost


def broadcast_sink(x: Tensor, dim: Any, sink: Tensor | float) -> Tensor:
    """The sink of each row, of length 1 along dim, in the dtype of x and on its device."""
    if not x.dim():
        raise ValueError("x must have an axis where there is a sink")
    shape = list(x.shape)
    shape[dim] = 1
    given: Tensor = sink if isinstance(sink, Tensor) else torch.as_tensor(sink, dtype=torch.float64)
    values = given.to(x.device, x.dtype)
    _refuse_overflow(given, values)
    try:
        return values.broadcast_to(shape)
    except RuntimeError:
        allowed = f"a number and what broadcasts to {tuple(shape)}, the shape of the rows with length 1 along dim"
        raise ValueError(f"sink has shape {tuple(given.shape)}; allowed are {allowed}") from None


def _refuse_overflow(given: Tensor, values: Tensor) -> None:
    """Refuse finite sinks that are infinite in the dtype of the logits, if their elements are known without a wait."""
    is_ordinary = type(given) in (Tensor, torch.nn.Parameter) and given.device.type == values.device.type == "cpu"
    if not is_ordinary or torch.compiler.is_compiling() or is_of_torch_func(given):
        return
    if given.is_floating_point() and torch.finfo(given.dtype).max <= torch.finfo(values.dtype).max:
        return
    is_lost = values.detach().isinf() & ~given.detach().isinf()
    if is_lost.any():
        limits = torch.finfo(values.dtype)
        raise_lost(given.detach()[is_lost].reshape(-1)[0].item(), str(limits.dtype), limits.max)


def append(x: Tensor, dim: int, where: Tensor | None, column: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits, and their mask, with the elements of a column at their end along dim."""
    if where is not None:
        more = torch.ones(column.shape, dtype=torch.bool, device=x.device)
        where = torch.cat([where.broadcast_to(x.shape), more], dim)
    return torch.cat([x, column], dim), where


def append_sink(x: Tensor, dim: int, where: Tensor | None, sink: Tensor | float | None) -> tuple[Tensor, Tensor | None]:
    """The logits, and their mask, with the sink as the last element along dim; autograd finds its gradient."""
    return (x, where) if sink is None else append(x, dim, where, broadcast_sink(x, dim, sink))
