"""Softmax, its logarithm, log-sum-exp and entmax as PyTorch operators.

Softmax, its logarithm and entmax are functions of rows with a number as their parameter and a gradient from dy and y;
the gradient of log-sum-exp is softmax.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import csoftmax

from .._arguments.numbers import check_flag
from .operators import (
    as_number,
    check_floating,
    check_int,
    check_temperature,
    check_tensors,
    define,
    like,
)


def _define_row_function(name: str, parameter: str) -> tuple[Any, Any]:
    """Define the operators of a function of `csoftmax` and of its vjp; y tells the latter what is masked."""
    function, function_vjp = getattr(csoftmax, name), getattr(csoftmax, f"{name}_vjp")

    def compute_vjp(dy: Tensor, y: Tensor, dim: int, number: float) -> Tensor:
        return function_vjp(dy.detach(), y.detach(), axis=dim, out=like(y), **{parameter: number})

    def compute(x: Tensor, dim: int, number: float, where: Tensor | None) -> Tensor:
        return function(x.detach(), axis=dim, where=where, out=like(x), **{parameter: number})

    def save(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.dim, ctx.number, _ = inputs
        ctx.save_for_backward(output)

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return vjp(dy, *ctx.saved_tensors, ctx.dim, ctx.number), None, None, None

    options = f"int dim, float {parameter}"
    vjp = define(
        f"{name}_vjp", f"(Tensor dy, Tensor y, {options}) -> Tensor", compute_vjp, lambda dy, y, dim, number: like(y)
    )
    schema = f"(Tensor x, {options}, Tensor? where) -> Tensor"
    forward = define(name, schema, compute, lambda x, dim, number, where: like(x), backward, save)
    return forward, vjp


apply_softmax, apply_softmax_vjp = _define_row_function("softmax", "temperature")
_log_softmax, _ = _define_row_function("log_softmax", "temperature")
_entmax, _ = _define_row_function("entmax", "alpha")


def _compute_logsumexp(x: Tensor, dim: int, temperature: float, where: Tensor | None) -> Tensor:
    result = csoftmax.logsumexp(x.detach(), axis=dim, temperature=temperature, where=where)
    return torch.as_tensor(result)


def _fake_logsumexp(x: Tensor, dim: int, temperature: float, where: Tensor | None) -> Tensor:
    shape = list(x.shape)
    if shape:  # a tensor without axes is one row of one element
        del shape[dim]
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _compute_logsumexp_vjp(dy: Tensor, x: Tensor, dim: int, temperature: float, where: Tensor | None) -> Tensor:
    """Softmax times dy / T, where 1 / T and dy / T may leave the range of the dtype though the product does not."""
    to: Any = like(x)
    p = csoftmax.softmax(x.detach(), axis=dim, temperature=temperature, where=where, out=to)
    dy = dy.detach().unsqueeze(dim) if x.dim() else dy.detach()
    if temperature == 1:
        return p.mul_(dy)
    mantissa, exponent = math.frexp(temperature)
    if abs(exponent) <= 60:
        if x.dtype.itemsize < 4:
            return p.float().mul_(dy.float() / temperature).to(x.dtype)
        return p.mul_(dy / temperature)
    if x.dtype != torch.float64:
        return p.double().mul_(dy.double()).div_(temperature).to(x.dtype)
    # Mantissas are multiplied, exponents added. The powers of two are multiplied in three steps, none of which leaves
    # the range before the product does.
    p, p_exponent = torch.frexp(p)
    dy, dy_exponent = torch.frexp(dy)
    exponents = (p_exponent + dy_exponent - exponent).clamp(-2400, 2400)
    third = exponents.div(3, rounding_mode="trunc")
    step = torch.pow(2.0, third.double())
    return p.mul_(dy / mantissa).mul_(step).mul_(step).mul_(torch.pow(2.0, (exponents - 2 * third).double()))


_logsumexp_vjp = define(
    "logsumexp_vjp",
    "(Tensor dy, Tensor x, int dim, float temperature, Tensor? where) -> Tensor",
    _compute_logsumexp_vjp,
    lambda dy, x, dim, temperature, where: like(x),
)


def _save_logsumexp(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, ctx.dim, ctx.temperature, where = inputs
    ctx.save_for_backward(x, *([] if where is None else [where]))


def _differentiate_logsumexp(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
    x, *where = ctx.saved_tensors
    return _logsumexp_vjp(dy, x, ctx.dim, ctx.temperature, *(where or [None])), None, None, None


_logsumexp = define(
    "logsumexp",
    "(Tensor x, int dim, float temperature, Tensor? where) -> Tensor",
    _compute_logsumexp,
    _fake_logsumexp,
    _differentiate_logsumexp,
    _save_logsumexp,
)


def softmax(x: Tensor, dim: int = -1, *, temperature: float = 1.0, where: Tensor | None = None) -> Tensor:
    """`csoftmax.softmax` with a gradient.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    dim : int, default -1
        The axis that sums to 1.
    temperature : float > 0, default 1.0
        T.
    where : torch.Tensor of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out: their result and their gradient are exactly 0.

    Returns
    -------
    torch.Tensor
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> ct.softmax(x)[1].backward()
    >>> x.grad
    tensor([-0.1966,  0.1966])
    """
    check_floating("x", x)
    check_tensors(where=where)
    return apply_softmax(x, check_int("dim", dim), check_temperature(temperature, x), where)


def log_softmax(x: Tensor, dim: int = -1, *, temperature: float = 1.0, where: Tensor | None = None) -> Tensor:
    """`csoftmax.log_softmax` with a gradient.

    Parameters
    ----------
    x, dim, temperature, where
        As in `softmax`; the result is -inf where the mask is False.

    Returns
    -------
    torch.Tensor
        Logarithms of the probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.log_softmax(torch.tensor([0.0, 1.0]))
    tensor([-1.3133, -0.3133])
    """
    check_floating("x", x)
    check_tensors(where=where)
    return _log_softmax(x, check_int("dim", dim), check_temperature(temperature, x), where)


def logsumexp(
    x: Tensor, dim: int = -1, *, keepdims: bool = False, temperature: float = 1.0, where: Tensor | None = None
) -> Tensor:
    """`csoftmax.logsumexp` with a gradient.

    Parameters
    ----------
    x, dim, temperature, where
        As in `softmax`.
    keepdims : bool, default False
        Keep `dim` with length 1.

    Returns
    -------
    torch.Tensor
        Logarithms of the sums of ``exp(x / T)``, of the dtype of x and its shape without `dim`.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> ct.logsumexp(x).backward()
    >>> x.grad
    tensor([0.2689, 0.7311])
    """
    check_floating("x", x)
    check_tensors(where=where)
    dim = check_int("dim", dim)
    result = _logsumexp(x, dim, check_temperature(temperature, x), where)
    return result.unsqueeze(dim) if check_flag("keepdims", keepdims) and x.dim() else result


def entmax(x: Tensor, alpha: float = 1.5, dim: int = -1, *, where: Tensor | None = None) -> Tensor:
    """`csoftmax.entmax` with a gradient with respect to x.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    alpha : float >= 1, default 1.5
        1 is softmax, 2 is sparsemax.
    dim : int, default -1
        The axis that sums to 1.
    where : torch.Tensor of bool, broadcastable to x, optional
        Mask, as in `softmax`.

    Returns
    -------
    torch.Tensor
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.entmax(torch.tensor([3.0, 0.0]))
    tensor([1., 0.])
    """
    check_floating("x", x)
    check_tensors(where=where)
    return _entmax(x, check_int("dim", dim), as_number("alpha", alpha), where)


def sparsemax(x: Tensor, dim: int = -1, *, where: Tensor | None = None) -> Tensor:
    """`csoftmax.sparsemax` with a gradient: `entmax` with alpha = 2.

    Parameters
    ----------
    x, dim, where
        As in `entmax`.

    Returns
    -------
    torch.Tensor
        Probabilities, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.sparsemax(torch.tensor([0.5, 0.0]))
    tensor([0.7500, 0.2500])
    """
    return entmax(x, 2.0, dim, where=where)
