"""Entropy and the Kullback-Leibler divergence of softmax distributions as PyTorch operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import csoftmax

from .._arguments.numbers import check_flag
from .operators import (
    check_constants,
    check_floating,
    check_int,
    check_temperature,
    check_tensors,
    choose_number,
    define,
    detach,
    keep_gradients,
    like,
    multiply,
    of_loss,
)

# What both functions have in common: a temperature, or temperatures of the rows, and a mask.
_OPTIONS = "int dim, float temperature, Tensor? temperatures, Tensor? where"


def _empty_rows(x: Tensor, dim: int) -> Tensor:
    shape = list(x.shape)
    if shape:  # a tensor without axes is one row of one element
        del shape[dim]
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _compute_entropy(x: Tensor, dim: int, number: float, rows: Tensor | None, where: Tensor | None) -> Tensor:
    result = csoftmax.entropy(x.detach(), axis=dim, temperature=choose_number(number, rows), where=where)
    return torch.as_tensor(result)


def _compute_entropy_vjp(
    dy: Tensor, x: Tensor, dim: int, number: float, rows: Tensor | None, where: Tensor | None
) -> Tensor:
    """The entropy is sum p (-log p), whose gradient is that of sum p a with the constants a = -log p."""
    temperature = choose_number(number, rows)
    options: dict[str, Any] = {"axis": dim, "temperature": temperature, "where": where}
    to: Any = like(x)
    logs: Any = like(x)
    p = csoftmax.softmax(x.detach(), out=to, **options)
    minus_log: Any = csoftmax.log_softmax(x.detach(), out=logs, **options).neg_()
    dx: Any = csoftmax.softmax_vjp(minus_log, p, axis=dim, temperature=temperature, out=minus_log)
    return dx.mul_(dy.detach().unsqueeze(dim) if x.dim() else dy.detach())


_entropy_vjp = define(
    "entropy_vjp",
    f"(Tensor dy, Tensor x, {_OPTIONS}) -> Tensor",
    _compute_entropy_vjp,
    lambda dy, x, dim, number, rows, where: like(x),
)


def _save_entropy(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, ctx.dim, ctx.number, rows, where = inputs
    ctx.save_for_backward(x, rows, where)


def _differentiate_entropy(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None, None]:
    x, rows, where = ctx.saved_tensors
    return _entropy_vjp(dy, x, ctx.dim, ctx.number, rows, where), None, None, None, None


_entropy = define(
    "entropy",
    f"(Tensor x, {_OPTIONS}) -> Tensor",
    _compute_entropy,
    lambda x, dim, number, rows, where: _empty_rows(x, dim),
    _differentiate_entropy,
    _save_entropy,
)


def _compute_kl(
    x: Tensor, y: Tensor, dim: int, number: float, rows: Tensor | None, where: Tensor | None, gradient: bool
) -> tuple[Tensor, Tensor]:
    """Divergences of rows, and the gradient of their sum, or an empty tensor."""
    x, y = x.detach(), y.detach()
    (where,) = detach(where)
    to: Any = like(y)
    options: dict[str, Any] = {"axis": dim, "temperature": choose_number(number, rows), "where": where}
    if not gradient:
        return torch.as_tensor(csoftmax.kl_divergence(x, y, **options)), y.new_empty(0)
    result = csoftmax.kl_divergence_with_grad(x, y, reduction="none", out=to, **options)
    return torch.as_tensor(result.loss).to(y.dtype), result.grad


def _fake_kl(
    x: Tensor, y: Tensor, dim: int, number: float, rows: Tensor | None, where: Tensor | None, gradient: bool
) -> tuple[Tensor, Tensor]:
    return _empty_rows(y, dim), torch.empty(y.shape if gradient else (0,), dtype=y.dtype, device=y.device)


def _save_kl(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    ctx.dim, ctx.has_axes = inputs[2], inputs[1].dim() > 0
    keep_gradients(ctx, output[1])


@of_loss(7)
def _differentiate_kl(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return None, multiply(grad, upstream.unsqueeze(ctx.dim) if ctx.has_axes else upstream), *[None] * 5


_kl_divergence = define(
    "kl_divergence",
    f"(Tensor x, Tensor y, {_OPTIONS}, bool gradient) -> (Tensor, Tensor)",
    _compute_kl,
    _fake_kl,
    _differentiate_kl,
    _save_kl,
)


def entropy(
    x: Tensor,
    dim: int = -1,
    *,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
    keepdims: bool = False,
) -> Tensor:
    """`csoftmax.entropy` with a gradient.

    Parameters
    ----------
    x : torch.Tensor
        Logits, floating point.
    dim : int, default -1
        The axis of the classes.
    temperature : float or torch.Tensor, default 1.0
        As in `softmax`.
    where : torch.Tensor of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out; their gradient is exactly 0.
    keepdims : bool, default False
        Keep `dim` with length 1.

    Returns
    -------
    torch.Tensor
        Entropies in nats, of the dtype of x and its shape without `dim`.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> ct.entropy(x).backward()
    >>> x.grad
    tensor([ 0.1966, -0.1966])
    """
    check_floating("x", x)
    check_tensors(where=where)
    dim = check_int("dim", dim)
    result = _entropy(x, dim, *check_temperature(temperature, x), where)
    return result.unsqueeze(dim) if check_flag("keepdims", keepdims) and x.dim() else result


def kl_divergence(
    x: Tensor,
    y: Tensor,
    dim: int = -1,
    *,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
    keepdims: bool = False,
) -> Tensor:
    """`csoftmax.kl_divergence` with a gradient with respect to y, the student.

    Parameters
    ----------
    x : torch.Tensor
        Logits of the teacher, which must not require grad: pass ``x.detach()``.
    y : torch.Tensor of the shape and dtype of x
        Logits of the student.
    dim, temperature, where, keepdims
        As in `entropy`.

    Returns
    -------
    torch.Tensor
        Divergences in nats, of the dtype of y and its shape without `dim`.

    Raises
    ------
    TypeError, ValueError
        If x or y is not a floating-point tensor, their shapes differ, T is out of its range, or another argument than y
        requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> y = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> ct.kl_divergence(torch.tensor([2.0, 1.0]), y).backward()
    >>> y.grad
    tensor([-0.4621,  0.4621])
    """
    check_floating("x", x)
    check_floating("y", y)
    check_constants(x=x, where=where)
    dim = check_int("dim", dim)
    gradient = y.requires_grad and torch.is_grad_enabled()
    result, _ = _kl_divergence(x, y, dim, *check_temperature(temperature, y), where, gradient)
    return result.unsqueeze(dim) if check_flag("keepdims", keepdims) and y.dim() else result
