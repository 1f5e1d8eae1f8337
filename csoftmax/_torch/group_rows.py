"""Softmax, its logarithm and log-sum-exp of tensors whose classes are divided among the ranks of a group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._arguments.numbers import check_flag
from .._distributed import rows as over_rows
from .._distributed.agreement import describe
from .._distributed.groups import Header, enter
from .._distributed.sinks import rank_of_last
from .groups import Division, check_here, divide, eager, spread_temperature
from .operators import check_constants, check_tensors
from .scaling import scale_softmax, scale_softmax_by
from .sinks import append, broadcast_sink


class _Rows(torch.autograd.Function):
    """softmax or log_softmax; backward has the collectives of its own call, which all ranks must enter."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, options: dict[str, Any], where: Any) -> Tensor:
        y = getattr(over_rows, name)(x.detach(), where=where, **options)
        ctx.name, ctx.options = name, options
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (y,) = ctx.saved_tensors
        return getattr(over_rows, f"{ctx.name}_vjp")(dy, y, **ctx.options), None, None, None


class _LogSumExp(torch.autograd.Function):
    """logsumexp, whose gradient is softmax; backward has the collectives of that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: dict[str, Any], where: Any) -> Tensor:
        ctx.options, ctx.where = options, where
        ctx.save_for_backward(x)
        return torch.as_tensor(over_rows.logsumexp(x.detach(), where=where, **options))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        p = over_rows.softmax(x.detach(), where=ctx.where, **ctx.options)
        dy, t = dy.unsqueeze(ctx.options["axis"]), ctx.options["temperature"]
        return scale_softmax_by(p, dy, t.double()) if isinstance(t, Tensor) else scale_softmax(p, dy, t), None, None


class _ShareSink(torch.autograd.Function):
    """The sinks of the rows on the rank that has the last classes, and nothing on the others.

    Backward sends their gradients to all ranks.
    """

    @staticmethod
    def forward(ctx: Any, sink: Tensor, dim: int, group: Any, last: int) -> Tensor:
        ctx.group, ctx.last, ctx.shape = group, last, sink.shape
        return sink.narrow(dim, 0, 1 if group.rank == last else 0).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        own = gradient if ctx.group.rank == ctx.last else gradient.new_zeros(ctx.shape)
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[own.element_size()]
        gathered = torch.from_numpy(ctx.group.all_gather(own.contiguous().view(bits).numpy()))
        return gathered[ctx.last].view(own.dtype), None, None, None


def _append_sink(
    division: Division, x: Tensor, dim: int, where: Tensor | None, sink: Tensor
) -> tuple[Division, Tensor, Tensor | None]:
    """The call with the sink of each row as a class after the last."""
    group = division.group

    def prepare() -> tuple[Header, None]:
        counts = over_rows.known("n_classes", division.n_classes), over_rows.known("offset", division.offset)
        given = ("sink", describe(sink.detach().double().numpy())), ("sink requires grad", sink.requires_grad)
        options = ("shape of the rows", tuple(sink.shape)), *given
        return Header("rows with a sink", str(x.dtype), 0, sink.numel(), *counts, x.shape[dim], 0.0, options), None

    layout, _ = enter(group, prepare)
    last = rank_of_last(layout)
    offset = layout.n_classes if group.rank == last and x.shape[dim] == 0 else layout.offsets[group.rank]
    x, where = append(x, dim, where, _ShareSink.apply(sink, dim, group, last))
    return division._replace(n_classes=layout.n_classes + 1, offset=offset), x, where


def _check(name: str, x: Any, dim: Any, temperature: Any, where: Any, sink: Any) -> tuple[Any, Any, Any]:
    """T, the mask and the sink as tensors of the rows, or None."""
    check_here(name, x, dim)
    check_constants(where=where)
    if isinstance(sink, Tensor):
        check_tensors(sink=sink)
    return spread_temperature(temperature, x, dim), where, None if sink is None else broadcast_sink(x, dim, sink)


class _Call:
    """The rows of this rank, with the sinks among them, and the options of the functions of csoftmax.distributed."""

    def __init__(
        self, x: Any, dim: int, group: Any, n_classes: Any, offset: Any, temperature: Any, where: Any, sink: Any
    ):
        division = divide("x", x, dim, group, n_classes, offset)
        temperature, where, sink = division.check(lambda: _check("x", x, dim, temperature, where, sink))
        self.division, self.length = division, None
        self.shape, self.where = tuple(x.shape), division.place(where, division.placements, tuple(x.shape))
        self.x = x if division.mesh is None else x.to_local()
        temperature = division.place_rows(temperature)
        if sink is not None:
            self.length = self.x.shape[dim]
            sink = division.place_rows(sink)
            division, self.x, self.where = _append_sink(division, self.x, dim, self.where, sink)
        self.options = {"axis": dim, "group": division.group, "temperature": temperature}
        self.options |= {"n_classes": division.n_classes, "offset": division.offset}


@eager
def apply_to_rows(name: str, x: Any, dim: int, group: Any, n_classes: Any, offset: Any, **arguments: Any) -> Any:
    """`csoftmax.torch.softmax` or `csoftmax.torch.log_softmax` over ranks."""
    call = _Call(x, dim, group, n_classes, offset, **arguments)
    y = _Rows.apply(call.x, name, call.options, call.where)
    if call.length is not None:
        y = y.narrow(dim, 0, call.length)
    return call.division.spread(y, call.division.placements, call.shape)


@eager
def logsumexp(x: Any, dim: int, group: Any, n_classes: Any, offset: Any, *, keepdims: bool, **arguments: Any) -> Any:
    """`csoftmax.torch.logsumexp` over ranks."""
    keeps = check_flag("keepdims", keepdims)
    call = _Call(x, dim, group, n_classes, offset, **arguments)
    result, division = _LogSumExp.apply(call.x, call.options, call.where), call.division
    shape, dim = call.shape, dim % len(call.shape)
    if keeps:
        return division.spread(result.unsqueeze(dim), division.of_kept, (*shape[:dim], 1, *shape[dim + 1 :]))
    return division.spread(result, division.of_rows, (*shape[:dim], *shape[dim + 1 :]))
