"""Margin softmax as a PyTorch operator; the gradients are computed together with the loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._arguments.numbers import check_integer
from .._ops.margins import margin_cross_entropy as _loss
from .._ops.margins import margin_cross_entropy_with_grad as _with_grad
from .operators import (
    Reduction,
    as_number,
    check_constants,
    check_floating,
    check_int,
    define,
    detach,
    keep_gradients,
    like,
    loss_dtype,
    multiply,
    of_loss,
)

_TENSORS = "arc", "cosine", "classes", "weight", "sample_weight"
_NAMES = (
    "scale",
    "multiple",
    "past_pi",
    "sub_centers",
    "label_smoothing",
    "ignore_index",
    "filter_eps",
    "reduction",
)
_SCHEMA = (
    "(Tensor x, Tensor w, Tensor target, Tensor arc, Tensor cosine, Tensor? classes, Tensor? weight, "
    "Tensor? sample_weight, float scale, float multiple, str past_pi, int sub_centers, float label_smoothing, "
    "int ignore_index, float filter_eps, str reduction, bool gradient) -> (Tensor, Tensor, Tensor)"
)
_INPUTS = 17


def _compute(x: Tensor, w: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and the gradients of x and w, or empty tensors."""
    tensors: dict[str, Any] = dict(zip(_TENSORS, detach(*rest[: len(_TENSORS)]), strict=True))
    options = tensors | dict(zip(_NAMES, rest[len(_TENSORS) : -1], strict=True))
    arrays = x.detach(), w.detach(), target.detach()
    if not rest[-1]:
        return _loss(*arrays, **options), x.new_empty(0), x.new_empty(0)
    loss, grad_x, grad_w, _ = _with_grad(*arrays, **options)
    return loss, grad_x, grad_w


def _fake(x: Tensor, w: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    reduction, gradient = rest[-2:]
    loss = torch.empty(x.shape[:-1] if reduction == "none" else (), dtype=loss_dtype(x), device=x.device)
    return (loss, like(x), x.new_empty(w.shape)) if gradient else (loss, x.new_empty(0), x.new_empty(0))


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    keep_gradients(ctx, *output[1:])


@of_loss(_INPUTS)
def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    grads = [multiply(grad, upstream) for grad in ctx.saved_tensors]
    return (*grads, *[None] * (_INPUTS - 2))


_operator = define("margin_cross_entropy", _SCHEMA, _compute, _fake, _differentiate, _save)


def _as_margin(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(as_number(name, value), dtype=torch.float64)
    if value.requires_grad:
        raise TypeError(f"{name} must not require grad: margins get no gradient here; pass {name}.detach()")
    return value


def margin_cross_entropy(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    *,
    scale: float = 64.0,
    arc: float | Tensor = 0.5,
    cosine: float | Tensor = 0.0,
    multiple: float = 1,
    past_pi: Literal["mirror", "linear", "easy", "none"] = "mirror",
    sub_centers: int = 1,
    classes: Tensor | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Reduction = "mean",
    filter_eps: float = 0.0,
) -> Tensor:
    """`csoftmax.margin_cross_entropy` with gradients with respect to x and w, without a matrix of all logits.

    Parameters
    ----------
    x : torch.Tensor of shape (..., D), w : torch.Tensor of shape (K, D), or (K, C, D) with ``sub_centers=C``
        Features and one vector for each class, or several.
    target : torch.Tensor of int
        Labels.
    scale, multiple, past_pi, sub_centers, classes, weight, sample_weight, label_smoothing, ignore_index, filter_eps
        As in `csoftmax.margin_cross_entropy_with_grad`.
    arc, cosine : float or torch.Tensor
        As there; no gradient flows to them.
    reduction : {"mean", "sum", "none"}
        With "none" there is no gradient, as in `linear_cross_entropy`.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.margin_cross_entropy`; ValueError also if a gradient is required with ``reduction="none"``,
        TypeError if `arc` or `cosine` requires one.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> w = torch.eye(3, requires_grad=True)
    >>> ct.margin_cross_entropy(torch.ones(2, 3), w, torch.tensor([0, 1])).backward()
    >>> w.grad.shape
    torch.Size([3, 3])
    """
    check_floating("x", x)
    check_floating("w", w)
    check_constants(target=target, classes=classes, weight=weight, sample_weight=sample_weight)
    if target is None:
        raise TypeError("target must be a torch.Tensor, got None")
    if not isinstance(past_pi, str):
        raise TypeError(f"past_pi must be a str, got {past_pi!r}")
    gradient = any(t.requires_grad for t in (x, w)) and torch.is_grad_enabled()
    if gradient and reduction == "none":
        raise ValueError('reduction="none" has no gradient here; use "sum" or "mean", or torch.no_grad()')
    arrays = x, w, target, _as_margin("arc", arc), _as_margin("cosine", cosine), classes, weight, sample_weight
    numbers = as_number("scale", scale), as_number("multiple", multiple), past_pi, check_int("sub_centers", sub_centers)
    smoothing, limit = as_number("label_smoothing", label_smoothing), as_number("filter_eps", filter_eps)
    ignore_index = check_integer("ignore_index", ignore_index)
    return _operator(*arrays, *numbers, smoothing, ignore_index, limit, reduction, gradient)[0]


# Messages show the public name.
margin_cross_entropy.__module__ = "csoftmax.torch"
