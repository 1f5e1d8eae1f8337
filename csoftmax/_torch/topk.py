"""Top-k softmax as a PyTorch operator."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

import csoftmax

from .._arguments.numbers import check_choice
from .operators import (
    as_number,
    check_floating,
    check_int,
    define,
)
from .rows import apply_softmax, apply_softmax_vjp


def _compute_topk(x: Tensor, k: int, dim: int, temperature: float, full: bool) -> tuple[Tensor, Tensor]:
    result = csoftmax.topk_softmax(x.detach(), k, dim, temperature=temperature, normalize="full" if full else "topk")
    return result.values.contiguous(), result.indices.contiguous()


def _fake_topk(x: Tensor, k: int, dim: int, temperature: float, full: bool) -> tuple[Tensor, Tensor]:
    shape = list(x.shape)
    shape[dim] = k
    empty = torch.empty(shape, dtype=x.dtype, device=x.device)
    return empty, torch.empty_like(empty, dtype=torch.int64)


def _save_topk(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, _, ctx.dim, ctx.temperature, ctx.full = inputs
    values, indices = output
    ctx.mark_non_differentiable(indices)
    ctx.shape = x.shape
    ctx.save_for_backward(values, indices, *([x] if ctx.full else []))


def _differentiate_topk(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
    values, indices, *x = ctx.saved_tensors
    dx = torch.zeros(ctx.shape, dtype=dy.dtype, device=dy.device)
    if ctx.full:  # the sum is over all classes, so all of them have a gradient
        y = apply_softmax(x[0], ctx.dim, ctx.temperature, None)
        dx = apply_softmax_vjp(dx.scatter(ctx.dim, indices, dy), y, ctx.dim, ctx.temperature)
    else:
        dx = dx.scatter(ctx.dim, indices, apply_softmax_vjp(dy, values, ctx.dim, ctx.temperature))
    return dx, None, None, None, None


_topk_softmax = define(
    "topk_softmax",
    "(Tensor x, int k, int dim, float temperature, bool full) -> (Tensor, Tensor)",
    _compute_topk,
    _fake_topk,
    _differentiate_topk,
    _save_topk,
)


def topk_softmax(
    x: Tensor, k: int, dim: int = -1, *, temperature: float = 1.0, normalize: Literal["topk", "full"] = "topk"
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
    temperature : float > 0, default 1.0
        T.
    normalize : {"topk", "full"}, default "topk"
        Whether the sum is over the k elements or over all classes.

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
    check_choice("normalize", normalize, ("topk", "full"))
    k, dim = check_int("k", k), check_int("dim", dim)
    return csoftmax.TopK(*_topk_softmax(x, k, dim, as_number("temperature", temperature), normalize == "full"))
