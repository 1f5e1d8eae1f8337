"""Softmax over the candidates of a batch as a PyTorch operator; the gradients are computed together with the loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._arguments.negatives import check_correction
from .._arguments.numbers import check_flag, check_reduction
from .._ops.in_batch import in_batch_softmax_loss as _loss
from .._ops.in_batch import in_batch_softmax_loss_with_grad as _with_grad
from .operators import (
    Reduction,
    check_constants,
    check_floating,
    choose_number,
    define,
    detach,
    keep_gradients,
    like,
    loss_dtype,
    multiply,
    number_or_rows,
    of_loss,
)

_SCHEMA = (
    "(Tensor x, Tensor y, Tensor? target, Tensor? ids, Tensor? log_q, Tensor? mask, Tensor? sample_weight, "
    "Tensor? temperatures, str correction, bool symmetric, float temperature, str reduction, bool gradient) -> "
    "(Tensor, Tensor, Tensor)"
)
_INPUTS = 13


def _compute(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and the gradients of x and y, or empty tensors."""
    target, ids, log_q, mask, sample_weight, temperatures = detach(*rest[:6])
    correction, symmetric, temperature, reduction, gradient = rest[6:]
    options: dict[str, Any] = {"target": target, "ids": ids, "log_q": log_q, "mask": mask, "correction": correction}
    options |= {"symmetric": symmetric, "sample_weight": sample_weight, "reduction": reduction}
    options["temperature"] = choose_number(temperature, temperatures)
    if not gradient:
        return _loss(x.detach(), y.detach(), **options), x.new_empty(0), x.new_empty(0)
    return _with_grad(x.detach(), y.detach(), **options)


def _fake(x: Tensor, y: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduction, gradient = rest[-2:]
    loss = torch.empty(x.shape[:-1] if reduction == "none" else (), dtype=loss_dtype(x), device=x.device)
    return (loss, like(x), x.new_empty(y.shape)) if gradient else (loss, x.new_empty(0), x.new_empty(0))


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    keep_gradients(ctx, *output[1:])


@of_loss(_INPUTS)
def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    return (*(multiply(grad, upstream) for grad in ctx.saved_tensors), *[None] * (_INPUTS - 2))


_operator = define("in_batch_softmax_loss", _SCHEMA, _compute, _fake, _differentiate, _save)


def in_batch_softmax_loss(
    x: Tensor,
    y: Tensor,
    *,
    target: Tensor | None = None,
    ids: Tensor | None = None,
    log_q: Tensor | None = None,
    mask: Tensor | None = None,
    correction: Literal["ranking", "partition", "none"] = "ranking",
    symmetric: bool = False,
    sample_weight: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.in_batch_softmax_loss` with gradients with respect to x and y, without a matrix of all logits.

    Parameters
    ----------
    x : torch.Tensor of shape (..., D), y : torch.Tensor of shape (M, D)
        Features of rows and candidates.
    target, ids, log_q, mask, correction, symmetric, sample_weight
        As in `csoftmax.in_batch_softmax_loss`, as tensors; identities are integers.
    temperature : float or torch.Tensor, default 1.0
        As there; no gradient flows to it.
    reduction : {"mean", "sum", "none"}
        With "none" there is no gradient, as in `linear_cross_entropy`.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.in_batch_softmax_loss`; ValueError also if a gradient is required with ``reduction="none"``,
        or another tensor than x and y requires one.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> users, items = torch.eye(2, requires_grad=True), torch.eye(2)
    >>> ct.in_batch_softmax_loss(users, items).backward()
    >>> users.grad.shape
    torch.Size([2, 2])
    """
    check_floating("x", x)
    check_floating("y", y)
    check_constants(target=target, ids=ids, log_q=log_q, mask=mask, sample_weight=sample_weight)
    check_reduction(reduction)
    check_correction(correction)
    symmetric = check_flag("symmetric", symmetric)
    gradient = any(t.requires_grad for t in (x, y)) and torch.is_grad_enabled()
    if gradient and reduction == "none":
        raise ValueError('reduction="none" has no gradient here; use "sum" or "mean", or torch.no_grad()')
    number, temperatures = number_or_rows("temperature", temperature)
    arrays = x, y, target, ids, log_q, mask, sample_weight, temperatures
    return _operator(*arrays, correction, symmetric, number, reduction, gradient)[0]


# Messages show the public name.
in_batch_softmax_loss.__module__ = "csoftmax.torch"
