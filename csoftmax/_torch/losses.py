"""Cross-entropy, of logits and of a linear layer, as PyTorch operators, whose gradients come with the loss."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import csoftmax

from .._arguments.labels import check_softcap
from .._arguments.numbers import check_integer
from . import groups
from .operators import (
    Reduction,
    as_number,
    check_constants,
    check_floating,
    check_int,
    check_tensors,
    define,
    detach,
    keep_gradients,
    like,
    loss_dtype,
    multiply,
    number_or_rows,
    of_loss,
)


class _LossOptions(NamedTuple):
    """Options that both losses share; the argument after them tells operators whether to compute gradients."""

    label_smoothing: float
    ignore_index: int
    z_loss: float
    temperature: float
    softcap: float  # 0: none
    reduction: str

    @classmethod
    def check(
        cls,
        label_smoothing: float,
        ignore_index: int,
        z_loss: float,
        temperature: float,
        softcap: float | None,
        reduction: str,
    ) -> _LossOptions:
        """Convert the numbers to the types that operators expect."""
        return cls(
            as_number("label_smoothing", label_smoothing),
            check_integer("ignore_index", ignore_index),
            as_number("z_loss", z_loss),
            as_number("temperature", temperature),
            0.0 if softcap is None else check_softcap(as_number("softcap", softcap)),
            reduction,
        )

    def as_keywords(self, temperatures: Tensor | None) -> dict[str, Any]:
        """The options of a call, with the temperatures of the rows if there are any."""
        options = self._asdict() | {"softcap": self.softcap or None}
        return options | ({} if temperatures is None else {"temperature": temperatures.detach()})


_OPTIONS_SCHEMA = (
    "float label_smoothing, int ignore_index, float z_loss, float temperature, float softcap, str reduction, "
    "bool gradient"
)


def _compute_loss(
    logits: Tensor,
    target: Tensor,
    dim: int,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    temperatures: Tensor | None,
    *options_and_gradient: Any,
) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of its sum or mean, or an empty tensor."""
    *values, gradient = options_and_gradient
    weight, sample_weight = detach(weight, sample_weight)
    weights = {"weight": weight, "sample_weight": sample_weight}
    options: dict[str, Any] = {"axis": dim, **weights, **_LossOptions(*values).as_keywords(temperatures)}
    if not gradient:
        return csoftmax.cross_entropy(logits.detach(), target.detach(), **options), logits.new_empty(0)
    options["out"] = like(logits)
    result = csoftmax.cross_entropy_with_grad(logits.detach(), target.detach(), **options)
    return result.loss, result.grad


def _fake_loss(
    logits: Tensor,
    target: Tensor,
    dim: int,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    temperatures: Tensor | None,
    *options_and_gradient: Any,
) -> tuple[Tensor, Tensor]:
    *values, gradient = options_and_gradient
    shape = list(logits.shape)
    del shape[dim]
    if _LossOptions(*values).reduction != "none":
        shape = []
    loss = torch.empty(shape, dtype=loss_dtype(logits), device=logits.device)
    return loss, torch.empty(logits.shape if gradient else (0,), dtype=logits.dtype, device=logits.device)


def _save_loss(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    ctx.dim, ctx.reduction = inputs[2], _LossOptions(*inputs[6:-1]).reduction
    keep_gradients(ctx, output[1])


@of_loss(13)
def _differentiate_loss(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    if ctx.reduction == "none":
        upstream = upstream.unsqueeze(ctx.dim)
    return multiply(grad, upstream), *[None] * 12


_cross_entropy = define(
    "cross_entropy",
    "(Tensor logits, Tensor target, int dim, Tensor? weight, Tensor? sample_weight, Tensor? temperatures, "
    f"{_OPTIONS_SCHEMA}) -> (Tensor, Tensor)",
    _compute_loss,
    _fake_loss,
    _differentiate_loss,
    _save_loss,
)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    dim: int = -1,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    group: Any = None,
    n_classes: int | None = None,
    offset: int | None = None,
) -> Tensor:
    """`csoftmax.cross_entropy` with a gradient with respect to the logits, computed with the loss in one pass.

    Parameters
    ----------
    logits : torch.Tensor of shape (..., K)
        Floating point.
    target : torch.Tensor
        Labels, or soft labels; no gradient flows to them.
    dim : int, default -1
        The axis of the classes; in PyTorch's own function it is 1.
    weight : torch.Tensor of shape (K,), optional
        Class weights.
    sample_weight : torch.Tensor, broadcastable to the rows, optional
        Weights of rows. No gradient flows to weights.
    label_smoothing, ignore_index, z_loss, temperature, softcap, reduction
        As in `csoftmax.cross_entropy`.
    group, n_classes, offset
        As in `csoftmax.distributed.cross_entropy`: each rank has some of the classes. A DTensor of logits says itself
        how it is divided: one mesh dimension may shard the classes, others the rows. Plain tensors beside it are the
        same on all ranks of the mesh. Backward has no collective.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 logits, else float32; of a DTensor a replicated DTensor, or, without a reduction,
        one that is placed like the rows.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.cross_entropy`.
    DistributedError
        With a group, on all ranks, as in `csoftmax.distributed.cross_entropy`.
    DeviceError
        If there is a group and the logits are on a CUDA device.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> logits = torch.tensor([[2.0, 0.0]], requires_grad=True)
    >>> ct.cross_entropy(logits, torch.tensor([0])).backward()
    >>> logits.grad
    tensor([[-0.1192,  0.1192]])
    """
    if groups.is_over_ranks(logits, group, n_classes, offset):
        return groups.cross_entropy(
            logits, target, dim, group, n_classes, offset, weight=weight, sample_weight=sample_weight,
            label_smoothing=label_smoothing, ignore_index=ignore_index, z_loss=z_loss, temperature=temperature,
            softcap=softcap, reduction=reduction,
        )  # fmt: skip
    check_floating("logits", logits)
    check_constants(target=target, weight=weight, sample_weight=sample_weight)
    gradient = logits.requires_grad and torch.is_grad_enabled()
    number, rows = number_or_rows("temperature", temperature)
    options = _LossOptions.check(label_smoothing, ignore_index, z_loss, number, softcap, reduction)
    return _cross_entropy(logits, target, check_int("dim", dim), weight, sample_weight, rows, *options, gradient)[0]


def _compute_linear(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    temperatures: Tensor | None,
    *options_and_gradient: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, and the gradients of x, w and bias, or empty tensors."""
    *values, gradient = options_and_gradient
    arrays = x.detach(), w.detach(), target.detach()
    bias, weight, sample_weight = detach(bias, weight, sample_weight)
    weights = {"bias": bias, "weight": weight, "sample_weight": sample_weight}
    options = {**weights, **_LossOptions(*values).as_keywords(temperatures)}
    if not gradient:
        return csoftmax.linear_cross_entropy(*arrays, **options), x.new_empty(0), x.new_empty(0), x.new_empty(0)
    loss, grad_x, grad_w, grad_bias = csoftmax.linear_cross_entropy_with_grad(*arrays, **options)
    return loss, grad_x, grad_w, x.new_empty(0) if grad_bias is None else grad_bias


def _fake_linear(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    temperatures: Tensor | None,
    *options_and_gradient: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *values, gradient = options_and_gradient
    rows = x.shape[:-1] if _LossOptions(*values).reduction == "none" else ()
    loss = torch.empty(rows, dtype=loss_dtype(x), device=x.device)
    if not gradient:
        return loss, x.new_empty(0), x.new_empty(0), x.new_empty(0)
    return loss, like(x), x.new_empty(w.shape), x.new_empty(0 if bias is None else bias.shape)


def _save_linear(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    ctx.has_bias = inputs[3] is not None
    keep_gradients(ctx, *output[1:])


@of_loss(14)
def _differentiate_linear(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    grads = [multiply(grad, upstream) for grad in ctx.saved_tensors]
    return grads[0], grads[1], None, grads[2] if ctx.has_bias else None, *[None] * 10


_linear_cross_entropy = define(
    "linear_cross_entropy",
    "(Tensor x, Tensor w, Tensor target, Tensor? bias, Tensor? weight, Tensor? sample_weight, Tensor? temperatures, "
    f"{_OPTIONS_SCHEMA}) -> (Tensor, Tensor, Tensor, Tensor)",
    _compute_linear,
    _fake_linear,
    _differentiate_linear,
    _save_linear,
)


def linear_cross_entropy(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    *,
    bias: Tensor | None = None,
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    temperature: float | Tensor = 1.0,
    softcap: float | None = None,
    reduction: Reduction = "mean",
    group: Any = None,
    n_classes: int | None = None,
    offset: int | None = None,
) -> Tensor:
    """`csoftmax.linear_cross_entropy` with gradients with respect to x, w and bias, without a matrix of all logits.

    Parameters
    ----------
    x : torch.Tensor of shape (..., D), w : torch.Tensor of shape (K, D), bias : torch.Tensor of shape (K,), optional
        Features and the linear layer.
    target : torch.Tensor
        Labels, or soft labels; no gradient flows to them.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, softcap
        As in `csoftmax.linear_cross_entropy`.
    reduction : {"mean", "sum", "none"}
        With "none" there is no gradient, because it would have to be computed together with the loss, before the
        upstream gradients of the rows are known.
    group, n_classes, offset
        As in `csoftmax.distributed.linear_cross_entropy`: each rank has some of the classes, the rows of w. Or x, w and
        bias are DTensors on one mesh, of which one dimension may shard the classes of w, others the rows of x.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32; with DTensors placed as that of `cross_entropy`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.linear_cross_entropy`; ValueError also if a gradient is required with ``reduction="none"``.
    DistributedError, DeviceError
        As in `cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> layer = torch.nn.Linear(3, 5)
    >>> ct.linear_cross_entropy(torch.ones(2, 3), layer.weight, torch.tensor([0, 4]), bias=layer.bias).backward()
    >>> layer.weight.grad.shape
    torch.Size([5, 3])
    """
    if groups.is_over_ranks(x, group) or groups.is_over_ranks(w, None, n_classes, offset):
        return groups.linear_cross_entropy(
            x, w, target, bias, group, n_classes, offset, weight=weight, sample_weight=sample_weight,
            label_smoothing=label_smoothing, ignore_index=ignore_index, z_loss=z_loss, temperature=temperature,
            softcap=softcap, reduction=reduction,
        )  # fmt: skip
    check_floating("x", x)
    check_floating("w", w)
    check_tensors(bias=bias)
    check_constants(target=target, weight=weight, sample_weight=sample_weight)
    gradient = any(t is not None and t.requires_grad for t in (x, w, bias)) and torch.is_grad_enabled()
    if gradient and reduction == "none":
        raise ValueError('reduction="none" has no gradient here; use "sum" or "mean", or torch.no_grad()')
    number, rows = number_or_rows("temperature", temperature)
    options = _LossOptions.check(label_smoothing, ignore_index, z_loss, number, softcap, reduction)
    return _linear_cross_entropy(x, w, target, bias, weight, sample_weight, rows, *options, gradient)[0]
