"""Softmax, its logarithm, log-sum-exp and entmax as PyTorch operators.

Softmax, its logarithm and entmax are functions of rows with a parameter and a gradient from dy and y; the gradient of
log-sum-exp is softmax. The parameter is a number or, as another argument, a tensor that broadcasts to the rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import csoftmax

from .._arguments.numbers import check_flag
from . import group_rows, groups
from .operators import (
    as_number,
    check_floating,
    check_int,
    check_temperature,
    check_tensors,
    choose_number,
    define,
    is_for_rows,
    like,
)
from .scaling import scale_softmax, scale_softmax_by
from .sinks import append_sink


def _define_row_function(name: str, parameter: str) -> tuple[Any, Any]:
    """Define the operators of a function of `csoftmax` and of its vjp; y tells the latter what is masked."""
    function, function_vjp = getattr(csoftmax, name), getattr(csoftmax, f"{name}_vjp")

    def compute_vjp(dy: Tensor, y: Tensor, dim: int, number: float, rows: Tensor | None) -> Tensor:
        return function_vjp(dy.detach(), y.detach(), axis=dim, out=like(y), **{parameter: choose_number(number, rows)})

    def compute(x: Tensor, dim: int, number: float, rows: Tensor | None, where: Tensor | None) -> Tensor:
        return function(x.detach(), axis=dim, where=where, out=like(x), **{parameter: choose_number(number, rows)})

    def save(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, ctx.dim, ctx.number, rows, _ = inputs
        ctx.save_for_backward(output, *([] if rows is None else [rows]))

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, *rows = ctx.saved_tensors
        if rows and ctx.needs_input_grad[3]:  # alpha
            dx, of_rows = _entmax_gradients(dy, y, ctx.dim, rows[0])
            return dx, None, None, of_rows, None
        return vjp(dy, y, ctx.dim, ctx.number, *(rows or [None])), None, None, None, None

    options = f"int dim, float {parameter}, Tensor? rows"
    vjp = define(
        f"{name}_vjp",
        f"(Tensor dy, Tensor y, {options}) -> Tensor",
        compute_vjp,
        lambda dy, y, dim, number, rows: like(y),
    )
    schema = f"(Tensor x, {options}, Tensor? where) -> Tensor"
    forward = define(name, schema, compute, lambda x, dim, number, rows, where: like(x), backward, save)
    return forward, vjp


apply_softmax, apply_softmax_vjp = _define_row_function("softmax", "temperature")
_log_softmax, _ = _define_row_function("log_softmax", "temperature")
_entmax, _ = _define_row_function("entmax", "alpha")


def _compute_entmax_gradients(dy: Tensor, y: Tensor, dim: int, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of alpha."""
    options: dict[str, Any] = {"out": like(y), "return_alpha_grad": True}
    dx, of_alpha = csoftmax.entmax_vjp(dy.detach(), y.detach(), alpha.detach(), dim, **options)
    return dx, torch.as_tensor(of_alpha).to(alpha.dtype)


_entmax_gradients = define(
    "entmax_gradients",
    "(Tensor dy, Tensor y, int dim, Tensor alpha) -> (Tensor, Tensor)",
    _compute_entmax_gradients,
    lambda dy, y, dim, alpha: (like(y), like(alpha)),
)


def _compute_logsumexp(x: Tensor, dim: int, number: float, rows: Tensor | None, where: Tensor | None) -> Tensor:
    result = csoftmax.logsumexp(x.detach(), axis=dim, temperature=choose_number(number, rows), where=where)
    return torch.as_tensor(result)


def _fake_logsumexp(x: Tensor, dim: int, number: float, rows: Tensor | None, where: Tensor | None) -> Tensor:
    shape = list(x.shape)
    if shape:  # a tensor without axes is one row of one element
        del shape[dim]
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _compute_logsumexp_vjp(
    dy: Tensor, x: Tensor, dim: int, temperature: float, rows: Tensor | None, where: Tensor | None
) -> Tensor:
    to: Any = like(x)
    p = csoftmax.softmax(x.detach(), axis=dim, temperature=choose_number(temperature, rows), where=where, out=to)
    dy = dy.detach().unsqueeze(dim) if x.dim() else dy.detach()
    return scale_softmax(p, dy, temperature) if rows is None else scale_softmax_by(p, dy, rows.detach().double())


_logsumexp_vjp = define(
    "logsumexp_vjp",
    "(Tensor dy, Tensor x, int dim, float temperature, Tensor? rows, Tensor? where) -> Tensor",
    _compute_logsumexp_vjp,
    lambda dy, x, dim, temperature, rows, where: like(x),
)


def _save_logsumexp(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, ctx.dim, ctx.temperature, *others = inputs
    ctx.is_given = [t is not None for t in others]
    ctx.save_for_backward(x, *[t for t in others if t is not None])


def _differentiate_logsumexp(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, *given = ctx.saved_tensors
    saved = iter(given)
    others = [next(saved) if is_given else None for is_given in ctx.is_given]
    return _logsumexp_vjp(dy, x, ctx.dim, ctx.temperature, *others), None, None, None, None


_logsumexp = define(
    "logsumexp",
    "(Tensor x, int dim, float temperature, Tensor? rows, Tensor? where) -> Tensor",
    _compute_logsumexp,
    _fake_logsumexp,
    _differentiate_logsumexp,
    _save_logsumexp,
)


def softmax(
    x: Tensor,
    dim: int = -1,
    *,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
    sink: Tensor | float | None = None,
    group: Any = None,
    n_classes: int | None = None,
    offset: int | None = None,
) -> Tensor:
    """`csoftmax.softmax` with a gradient.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    dim : int, default -1
        The axis that sums to 1.
    temperature : float > 0 or torch.Tensor of them, default 1.0
        T; a tensor of length 1 along `dim` broadcasts to the rows. No gradient flows to it.
    where : torch.Tensor of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out: their result and their gradient are exactly 0.
    sink : torch.Tensor or float, optional
        A logit that takes part in the denominator and has no output: a number, or a tensor of length 1 along `dim` that
        broadcasts to the rows. It gets a gradient.
    group, n_classes, offset
        As in `csoftmax.distributed.softmax`: each rank has some of the elements along `dim`. A DTensor says itself how
        it is divided. All ranks must enter the backward as well, which has two collectives.

    Returns
    -------
    torch.Tensor
        Probabilities, of the shape and dtype of x; a DTensor like x.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.
    DistributedError, DeviceError
        With a group, as in `cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> ct.softmax(x)[1].backward()
    >>> x.grad
    tensor([-0.1966,  0.1966])
    """
    if groups.is_over_ranks(x, group, n_classes, offset):
        return group_rows.apply_to_rows(
            "softmax", x, dim, group, n_classes, offset, temperature=temperature, where=where, sink=sink
        )
    check_floating("x", x)
    check_tensors(where=where)
    dim = check_int("dim", dim)
    rows, where = append_sink(x, dim, where, sink)
    y = apply_softmax(rows, dim, *check_temperature(temperature, rows), where)
    return y if sink is None else y.narrow(dim, 0, x.shape[dim])


def log_softmax(
    x: Tensor,
    dim: int = -1,
    *,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
    sink: Tensor | float | None = None,
    group: Any = None,
    n_classes: int | None = None,
    offset: int | None = None,
) -> Tensor:
    """`csoftmax.log_softmax` with a gradient.

    Parameters
    ----------
    x, dim, temperature, where, sink, group, n_classes, offset
        As in `softmax`; the result is -inf where the mask is False.

    Returns
    -------
    torch.Tensor
        Logarithms of the probabilities, of the shape and dtype of x; a DTensor like x.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.
    DistributedError, DeviceError
        With a group, as in `cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.log_softmax(torch.tensor([0.0, 1.0]))
    tensor([-1.3133, -0.3133])
    """
    if groups.is_over_ranks(x, group, n_classes, offset):
        return group_rows.apply_to_rows(
            "log_softmax", x, dim, group, n_classes, offset, temperature=temperature, where=where, sink=sink
        )
    check_floating("x", x)
    check_tensors(where=where)
    dim = check_int("dim", dim)
    rows, where = append_sink(x, dim, where, sink)
    y = _log_softmax(rows, dim, *check_temperature(temperature, rows), where)
    return y if sink is None else y.narrow(dim, 0, x.shape[dim])


def logsumexp(
    x: Tensor,
    dim: int = -1,
    *,
    keepdims: bool = False,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
    sink: Tensor | float | None = None,
    group: Any = None,
    n_classes: int | None = None,
    offset: int | None = None,
) -> Tensor:
    """`csoftmax.logsumexp` with a gradient.

    Parameters
    ----------
    x, dim, temperature, where, sink, group, n_classes, offset
        As in `softmax`.
    keepdims : bool, default False
        Keep `dim` with length 1.

    Returns
    -------
    torch.Tensor
        Logarithms of the sums of ``exp(x / T)``, of the dtype of x and its shape without `dim`; over ranks the same on
        all of them, and of a DTensor a DTensor that is placed like the rows.

    Raises
    ------
    TypeError, ValueError
        If x is not a floating-point tensor, T is out of its range, or another argument requires grad.
    DistributedError, DeviceError
        With a group, as in `cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.tensor([0.0, 1.0], requires_grad=True)
    >>> ct.logsumexp(x).backward()
    >>> x.grad
    tensor([0.2689, 0.7311])
    """
    if groups.is_over_ranks(x, group, n_classes, offset):
        return group_rows.logsumexp(
            x, dim, group, n_classes, offset, temperature=temperature, where=where, sink=sink, keepdims=keepdims
        )
    check_floating("x", x)
    check_tensors(where=where)
    dim = check_int("dim", dim)
    rows, where = append_sink(x, dim, where, sink)
    result = _logsumexp(rows, dim, *check_temperature(temperature, rows), where)
    return result.unsqueeze(dim) if check_flag("keepdims", keepdims) and x.dim() else result


def entmax(x: Tensor, alpha: float | Tensor = 1.5, dim: int = -1, *, where: Tensor | None = None) -> Tensor:
    """`csoftmax.entmax` with gradients with respect to x and to a tensor of alphas.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    alpha : float >= 1 or torch.Tensor of them, default 1.5
        1 is softmax, 2 is sparsemax. A tensor of length 1 along `dim` broadcasts to the rows; a tensor that requires
        grad, without axes or with them, gets its gradient (Correia, Niculae & Martins 2019).
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
    dim = check_int("dim", dim)
    if is_for_rows(alpha) or (isinstance(alpha, Tensor) and alpha.requires_grad and torch.is_grad_enabled()):
        check_tensors(alpha=alpha)
        return _entmax(x, dim, 2.0, alpha, where)
    return _entmax(x, dim, as_number("alpha", alpha), None, where)


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
