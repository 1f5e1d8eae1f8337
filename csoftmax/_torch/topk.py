"""Top-k softmax as a PyTorch operator."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

import csoftmax

from .._arguments.numbers import check_choice
from .operators import check_floating, check_int, check_tensors, define, number_or_rows
from .rows import apply_softmax, apply_softmax_vjp


def _compute_topk(
    x: Tensor, k: int, dim: int, number: float, rows: Tensor | None, full: bool, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    options: Any = {"temperature": number if rows is None else rows.detach(), "where": where}
    result = csoftmax.topk_softmax(x.detach(), k, dim, normalize="full" if full else "topk", **options)
    return result.values.contiguous(), result.indices.contiguous()


def _fake_topk(
    x: Tensor, k: int, dim: int, number: float, rows: Tensor | None, full: bool, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    shape = list(x.shape)
    shape[dim] = k
    empty = torch.empty(shape, dtype=x.dtype, device=x.device)
    return empty, torch.empty_like(empty, dtype=torch.int64)


def _save_topk(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, _, ctx.dim, ctx.temperature, rows, ctx.full, where = inputs
    values, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.shape = x.shape
    ctx.save_for_backward(values, indices, x if ctx.full else None, rows, where)


def _differentiate_topk(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    values, indices, x, rows, where = ctx.saved_tensors
    temperature = ctx.temperature, rows
    dx = torch.zeros(ctx.shape, dtype=dy.dtype, device=dy.device)
    if ctx.full:  # the sum is over all classes, so all of them have a gradient
        y = apply_softmax(x, ctx.dim, *temperature, where)
        dx = apply_softmax_vjp(dx.scatter(ctx.dim, indices, dy), y, ctx.dim, *temperature)
    else:
        dx = dx.scatter(ctx.dim, indices, apply_softmax_vjp(dy, values, ctx.dim, *temperature))
    return dx, None, None, None, None, None, None


_topk_softmax = define(
    "topk_softmax",
    "(Tensor x, int k, int dim, float temperature, Tensor? rows, bool full, Tensor? where) -> (Tensor, Tensor)",
    _compute_topk,
    _fake_topk,
    _differentiate_topk,
    _save_topk,
)


def topk_softmax(
    x: Tensor,
    k: int,
    dim: int = -1,
    *,
    temperature: float | Tensor = 1.0,
    normalize: Literal["topk", "full"] = "topk",
    where: Tensor | None = None,
) -> csoftmax.TopK:
    """`csoftmax.topk_softmax` with a gradient of the values.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    k : int
        Number of largest elements.
    dim : int, default -1
        The axis of the classes.
    temperature : float > 0 or torch.Tensor of them, default 1.0
        T; a tensor of length 1 along `dim` broadcasts to the rows.
    normalize : {"topk", "full"}, default "topk"
        Whether the sum is over the k elements or over all classes.
    where : torch.Tensor of bool, broadcastable to x, optional
        Mask, as in `csoftmax.topk_softmax`; the gradient of elements that it leaves out is exactly 0.

    Returns
    -------
    csoftmax.TopK
        Tensors values and indices.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, or `normalize` not one of the two.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.topk_softmax(torch.tensor([0.0, 2.0, 1.0]), 2).values
    tensor([0.7311, 0.2689])
    """
    check_floating("x", x)
    check_tensors(where=where)
    check_choice("normalize", normalize, ("topk", "full"))
    k, dim = check_int("k", k), check_int("dim", dim)
    given = *number_or_rows("temperature", temperature), normalize == "full", where
    return csoftmax.TopK(*_topk_softmax(x, k, dim, *given))
