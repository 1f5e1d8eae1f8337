"""Differentiable functions for PyTorch: custom operators with gradients, which do not break `torch.compile` graphs.

The functions of `csoftmax` compute the numbers; PyTorch records the graph.  There are no second derivatives, and none
in forward mode: asking for one is an error.  A tensor that requires grad is refused where no gradient flows to it, such
as a temperature or weights.  Axes are called `dim`, as in PyTorch.  On CUDA the kernels run through CuPy (not yet run
on hardware).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise ImportError(f"csoftmax.torch needs PyTorch >= 2.4 ({error}); see https://pytorch.org") from error

import csoftmax

from ._arguments.numbers import check_choice, check_flag, check_integer
from ._torch.crf import CRF, crf_loss
from ._torch.margins import margin_cross_entropy
from ._torch.operators import (
    Reduction,
    as_number,
    check_constants,
    check_floating,
    check_int,
    check_temperature,
    check_tensors,
    define,
    detach,
    keep_gradients,
    like,
    loss_dtype,
    multiply,
    of_loss,
)
from ._torch.sampled import nce_loss, negative_sampling_loss, sampled_softmax_loss

__all__ = [
    "CRF",
    "crf_loss",
    "cross_entropy",
    "entmax",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "margin_cross_entropy",
    "nce_loss",
    "negative_sampling_loss",
    "sampled_softmax_loss",
    "softmax",
    "sparsemax",
    "topk_softmax",
]


# softmax, log_softmax, entmax: functions of rows, with a number as their parameter and a gradient from dy and y;
# logsumexp, whose gradient is softmax


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


_softmax, _softmax_vjp = _define_row_function("softmax", "temperature")
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
    return _softmax(x, check_int("dim", dim), check_temperature(temperature, x), where)


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


# Top-k softmax


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
        y = _softmax(x[0], ctx.dim, ctx.temperature, None)
        dx = _softmax_vjp(dx.scatter(ctx.dim, indices, dy), y, ctx.dim, ctx.temperature)
    else:
        dx = dx.scatter(ctx.dim, indices, _softmax_vjp(dy, values, ctx.dim, ctx.temperature))
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


# Cross-entropy: the gradient, if needed, is computed together with the loss


class _LossOptions(NamedTuple):
    """Options that both losses share; the argument after them tells operators whether to compute gradients."""

    label_smoothing: float
    ignore_index: int
    z_loss: float
    temperature: float
    reduction: str

    @classmethod
    def check(
        cls, label_smoothing: float, ignore_index: int, z_loss: float, temperature: float, reduction: str
    ) -> _LossOptions:
        """Convert the numbers to the types that operators expect."""
        return cls(
            as_number("label_smoothing", label_smoothing),
            check_integer("ignore_index", ignore_index),
            as_number("z_loss", z_loss),
            as_number("temperature", temperature),
            reduction,
        )


_OPTIONS_SCHEMA = (
    "float label_smoothing, int ignore_index, float z_loss, float temperature, str reduction, bool gradient"
)


def _compute_loss(
    logits: Tensor,
    target: Tensor,
    dim: int,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    *options_and_gradient: Any,
) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of its sum or mean, or an empty tensor."""
    *values, gradient = options_and_gradient
    weight, sample_weight = detach(weight, sample_weight)
    weights = {"weight": weight, "sample_weight": sample_weight}
    options: dict[str, Any] = {"axis": dim, **weights, **_LossOptions(*values)._asdict()}
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
    ctx.dim, ctx.reduction = inputs[2], _LossOptions(*inputs[5:-1]).reduction
    keep_gradients(ctx, output[1])


@of_loss(11)
def _differentiate_loss(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    if ctx.reduction == "none":
        upstream = upstream.unsqueeze(ctx.dim)
    return multiply(grad, upstream), *[None] * 10


_cross_entropy = define(
    "cross_entropy",
    "(Tensor logits, Tensor target, int dim, Tensor? weight, Tensor? sample_weight, "
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
    temperature: float = 1.0,
    reduction: Reduction = "mean",
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
    label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `csoftmax.cross_entropy`.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.cross_entropy`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> logits = torch.tensor([[2.0, 0.0]], requires_grad=True)
    >>> ct.cross_entropy(logits, torch.tensor([0])).backward()
    >>> logits.grad
    tensor([[-0.1192,  0.1192]])
    """
    check_floating("logits", logits)
    check_constants(target=target, weight=weight, sample_weight=sample_weight)
    gradient = logits.requires_grad and torch.is_grad_enabled()
    options = _LossOptions.check(label_smoothing, ignore_index, z_loss, temperature, reduction)
    return _cross_entropy(logits, target, check_int("dim", dim), weight, sample_weight, *options, gradient)[0]


def _compute_linear(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    *options_and_gradient: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss, and the gradients of x, w and bias, or empty tensors."""
    *values, gradient = options_and_gradient
    arrays = x.detach(), w.detach(), target.detach()
    bias, weight, sample_weight = detach(bias, weight, sample_weight)
    options = {"bias": bias, "weight": weight, "sample_weight": sample_weight, **_LossOptions(*values)._asdict()}
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


@of_loss(12)
def _differentiate_linear(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    grads = [multiply(grad, upstream) for grad in ctx.saved_tensors]
    return grads[0], grads[1], None, grads[2] if ctx.has_bias else None, *[None] * 8


_linear_cross_entropy = define(
    "linear_cross_entropy",
    f"(Tensor x, Tensor w, Tensor target, Tensor? bias, Tensor? weight, Tensor? sample_weight, {_OPTIONS_SCHEMA})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
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
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.linear_cross_entropy` with gradients with respect to x, w and bias, without a matrix of all logits.

    Parameters
    ----------
    x : torch.Tensor of shape (..., D), w : torch.Tensor of shape (K, D), bias : torch.Tensor of shape (K,), optional
        Features and the linear layer.
    target : torch.Tensor
        Labels, or soft labels; no gradient flows to them.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature
        As in `csoftmax.linear_cross_entropy`.
    reduction : {"mean", "sum", "none"}
        With "none" there is no gradient, because it would have to be computed together with the loss, before the
        upstream gradients of the rows are known.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.linear_cross_entropy`; ValueError also if a gradient is required with ``reduction="none"``.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> layer = torch.nn.Linear(3, 5)
    >>> ct.linear_cross_entropy(torch.ones(2, 3), layer.weight, torch.tensor([0, 4]), bias=layer.bias).backward()
    >>> layer.weight.grad.shape
    torch.Size([5, 3])
    """
    check_floating("x", x)
    check_floating("w", w)
    check_tensors(bias=bias)
    check_constants(target=target, weight=weight, sample_weight=sample_weight)
    gradient = any(t is not None and t.requires_grad for t in (x, w, bias)) and torch.is_grad_enabled()
    if gradient and reduction == "none":
        raise ValueError('reduction="none" has no gradient here; use "sum" or "mean", or torch.no_grad()')
    options = _LossOptions.check(label_smoothing, ignore_index, z_loss, temperature, reduction)
    return _linear_cross_entropy(x, w, target, bias, weight, sample_weight, *options, gradient)[0]
