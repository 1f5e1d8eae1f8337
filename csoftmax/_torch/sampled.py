"""Losses over sampled classes as PyTorch operators. The gradients of w and bias are sparse and coalesced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from .._arguments.negatives import Negatives, check_correction
from .._arguments.numbers import check_choice, check_integer, check_reduction
from .._ops.negative_sampling import nce_loss as _nce
from .._ops.negative_sampling import nce_loss_with_grad as _nce_with_grad
from .._ops.negative_sampling import negative_sampling_loss as _negative_sampling
from .._ops.negative_sampling import negative_sampling_loss_with_grad as _negative_sampling_with_grad
from .._ops.sampled import sampled_softmax_loss as _softmax
from .._ops.sampled import sampled_softmax_loss_with_grad as _softmax_with_grad
from .operators import (
    Reduction,
    as_number,
    check_constants,
    check_floating,
    check_tensors,
    define,
    detach,
    keep_gradients,
    like,
    loss_dtype,
    multiply,
    of_loss,
)

_ARRAYS = (
    "Tensor x, Tensor w, Tensor target, Tensor ids, Tensor? log_q, Tensor? count, Tensor? target_log_q, Tensor? bias, "
    "Tensor? weight, Tensor? sample_weight, Tensor? log_z"
)
_OPTIONS = "str correction, str accidental_hits, int ignore_index, float temperature, str reduction"
_INPUTS = 17  # of an operator, the last of which tells whether to compute gradients
_BIAS, _LOG_Z = 7, 10  # their places among the inputs


def _define_loss(name: str, loss_only: Callable[..., Any], with_grad: Callable[..., Any]) -> Any:
    """Define the operator of a loss.

    Its results are the loss, the gradient of x, rows, values and bias values of that of w, and the gradient of log_z.
    """
    unknown = {"sampled_softmax_loss": {"log_z"}, "nce_loss": {"correction"}}.get(name, {"correction", "log_z"})

    def without_gradients(loss: Tensor, x: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        return loss, x.new_empty(0), target.new_empty(0, dtype=torch.int64), *(x.new_empty(0) for _ in range(3))

    def compute(x: Tensor, w: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *given, gradient = rest
        ids, log_q, count, target_log_q, bias, weight, sample_weight, log_z = detach(*given[:8])
        names = ("log_z", "correction", "accidental_hits", "ignore_index", "temperature", "reduction")
        options = {key: v for key, v in zip(names, (log_z, *given[8:]), strict=True) if key not in unknown}
        negatives: Any = Negatives(ids, log_q, count, target_log_q)
        arrays = x.detach(), w.detach(), target.detach(), negatives
        options |= {"bias": bias, "weight": weight, "sample_weight": sample_weight}
        if not gradient:
            return without_gradients(loss_only(*arrays, **options), x, target)
        loss, grad_x, grad_w, grad_bias, *others = with_grad(*arrays, **options)
        bias_values = x.new_empty(0) if grad_bias is None else grad_bias.values
        return loss, grad_x, grad_w.rows, grad_w.values, bias_values, *(others or [x.new_empty(0)])

    def fake(x: Tensor, w: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        reduction, gradient = rest[-2:]
        loss = torch.empty(x.shape[:-1] if reduction == "none" else (), dtype=loss_dtype(x), device=x.device)
        if not gradient:
            return without_gradients(loss, x, target)
        rows = torch.library.get_ctx().new_dynamic_size()
        bias, log_z = rest[_BIAS - 3], rest[_LOG_Z - 3]
        grad_w = x.new_empty(rows, dtype=torch.int64), x.new_empty((rows, w.shape[1]))
        grad_bias = x.new_empty(0 if bias is None else rows)
        grad_log_z = x.new_empty(0) if log_z is None else x.new_empty(log_z.shape, dtype=loss_dtype(x))
        return loss, like(x), *grad_w, grad_bias, grad_log_z

    def save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
        bias, log_z = inputs[_BIAS], inputs[_LOG_Z]
        ctx.w_shape, ctx.bias_shape = inputs[1].shape, None if bias is None else bias.shape
        ctx.log_z_dtype = None if log_z is None else log_z.dtype
        keep_gradients(ctx, *output[1:], indices=(output[2],))

    @of_loss(_INPUTS)
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, rows, values, bias_values, grad_log_z = ctx.saved_tensors
        grad_w = _sparse(rows, multiply(values, upstream), ctx.w_shape)
        grad_bias = None if ctx.bias_shape is None else _sparse(rows, multiply(bias_values, upstream), ctx.bias_shape)
        # Held beyond this call: PyTorch then copies the gradients to the leaves, instead of taking them apart and
        # losing that they are coalesced.
        ctx.held = grad_w, grad_bias
        gradients: list[Tensor | None] = [None] * _INPUTS
        gradients[0], gradients[1], gradients[_BIAS] = multiply(grad_x, upstream), grad_w, grad_bias
        if ctx.needs_input_grad[_LOG_Z]:
            gradients[_LOG_Z] = multiply(grad_log_z, upstream).to(ctx.log_z_dtype)
        return tuple(gradients)

    schema = f"({_ARRAYS}, {_OPTIONS}, bool gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    return define(name, schema, compute, fake, backward, save)


def _sparse(rows: Tensor, values: Tensor, shape: Any) -> Tensor:
    return torch.sparse_coo_tensor(rows[None], values, shape, is_coalesced=True, check_invariants=False)


_OPERATORS = {
    "sampled_softmax_loss": _define_loss("sampled_softmax_loss", _softmax, _softmax_with_grad),
    "negative_sampling_loss": _define_loss("negative_sampling_loss", _negative_sampling, _negative_sampling_with_grad),
    "nce_loss": _define_loss("nce_loss", _nce, _nce_with_grad),
}


def _as_tensor(values: Any) -> Any:
    return values if values is None or isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))


def _run(
    name: str, x: Tensor, w: Tensor, target: Tensor, negatives: Any, bias: Any, weight: Any, sample_weight: Any,
    ignore_index: Any, temperature: Any, reduction: str, accidental_hits: str, correction: str = "ranking",
    log_z: Any = None,
) -> Any:  # fmt: skip
    check_floating("x", x)
    check_floating("w", w)
    check_tensors(bias=bias)
    check_constants(target=target, weight=weight, sample_weight=sample_weight)
    if target is None:
        raise TypeError("target must be a torch.Tensor, got None")
    check_reduction(reduction)
    check_choice("accidental_hits", accidental_hits, ("mask", "keep"))
    check_correction(correction)
    if name == "nce_loss" and not isinstance(log_z, Tensor):
        log_z = torch.tensor(as_number("log_z", log_z), dtype=torch.float64)
    gradient = any(t is not None and t.requires_grad for t in (x, w, bias, log_z)) and torch.is_grad_enabled()
    if gradient and reduction == "none":
        raise ValueError('reduction="none" has no gradient here; use "sum" or "mean", or torch.no_grad()')
    if not isinstance(negatives, Negatives):
        if name == "nce_loss" or (name == "sampled_softmax_loss" and correction != "none"):
            raise ValueError(
                "negatives are plain classes, whose expected counts are unknown: pass what a sampler returns"
            )
        negatives = Negatives(negatives)
    ids, log_q, count, target_log_q = (_as_tensor(v) for v in negatives[:4])
    check_constants(**{"negatives.log_q": log_q, "negatives.count": count, "negatives.target_log_q": target_log_q})
    if isinstance(log_z, Tensor):
        check_tensors(log_z=log_z)
    arrays = x, w, target, ids, log_q, count, target_log_q, bias, weight, sample_weight, log_z
    numbers = check_integer("ignore_index", ignore_index), as_number("temperature", temperature)
    options = correction, accidental_hits, *numbers, reduction
    return _OPERATORS[name](*arrays, *options, gradient)[0]


def sampled_softmax_loss(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    negatives: Negatives | Tensor,
    *,
    bias: Tensor | None = None,
    correction: Literal["ranking", "partition", "none"] = "ranking",
    accidental_hits: Literal["mask", "keep"] = "mask",
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.sampled_softmax_loss` with gradients with respect to x, w and bias, the latter two sparse.

    Parameters
    ----------
    x : torch.Tensor of shape (..., D), w : torch.Tensor of shape (K, D), bias : torch.Tensor of shape (K,), optional
        Features and the linear layer.
    target : torch.Tensor
        Labels.
    negatives : csoftmax.samplers.Negatives, or torch.Tensor of int
        What a sampler returns, or plain classes with correction "none".
    correction, accidental_hits, weight, sample_weight, ignore_index, temperature
        As in `csoftmax.sampled_softmax_loss`.
    reduction : {"mean", "sum", "none"}
        With "none" there is no gradient.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.sampled_softmax_loss`; ValueError also if a gradient is required with ``reduction="none"``.

    Notes
    -----
    The gradients of w and bias are coalesced COO tensors of the rows of labels and negatives, for optimisers that take
    them, such as SGD, Adagrad and SparseAdam. w and bias must be leaves of the graph: PyTorch has no gradient of a view
    for a sparse one.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> from csoftmax.samplers import UnigramSampler
    >>> w = torch.ones(100, 3, requires_grad=True)
    >>> target = torch.tensor([0, 4])
    >>> negatives = UnigramSampler(range(1, 101)).sample(8, target=target, rng=0)
    >>> ct.sampled_softmax_loss(torch.ones(2, 3), w, target, negatives).backward()
    >>> w.grad.is_coalesced(), len(w.grad.indices()[0]) == len({0, 4, *negatives.ids})
    (True, True)
    """
    given = bias, weight, sample_weight, ignore_index, temperature, reduction
    return _run("sampled_softmax_loss", x, w, target, negatives, *given, accidental_hits, correction)


def negative_sampling_loss(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    negatives: Negatives | Tensor,
    *,
    bias: Tensor | None = None,
    accidental_hits: Literal["mask", "keep"] = "mask",
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.negative_sampling_loss` with gradients with respect to x, w and bias, the latter two sparse.

    Parameters
    ----------
    x, w, target, negatives, bias, accidental_hits, weight, sample_weight, ignore_index, temperature, reduction
        As in `sampled_softmax_loss`; only ids and counts of the negatives are used.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `sampled_softmax_loss`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.negative_sampling_loss(torch.zeros(1, 2), torch.ones(3, 2), torch.tensor([0]), torch.tensor([1, 2]))
    tensor(2.0794)
    """
    given = bias, weight, sample_weight, ignore_index, temperature, reduction
    return _run("negative_sampling_loss", x, w, target, negatives, *given, accidental_hits)


def nce_loss(
    x: Tensor,
    w: Tensor,
    target: Tensor,
    negatives: Negatives,
    *,
    bias: Tensor | None = None,
    log_z: float | Tensor = 0.0,
    accidental_hits: Literal["mask", "keep"] = "keep",
    weight: Tensor | None = None,
    sample_weight: Tensor | None = None,
    ignore_index: int = -100,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.nce_loss` with gradients with respect to x, w, bias and log_z; those of w and bias are sparse.

    Parameters
    ----------
    x, w, target, negatives, bias, accidental_hits, weight, sample_weight, ignore_index, temperature, reduction
        As in `sampled_softmax_loss`.
    log_z : float, or torch.Tensor of shape () or of the shape of the rows, default 0.0
        Logarithm of the partition function; a tensor that requires a gradient gets it, and so can be learnt.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 x, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `sampled_softmax_loss`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> from csoftmax.samplers import Negatives
    >>> noise = Negatives([1], [0.0], None, [0.0])
    >>> log_z = torch.tensor(0.0, requires_grad=True)
    >>> loss = ct.nce_loss(torch.zeros(1, 2), torch.ones(3, 2), torch.tensor([0]), noise, log_z=log_z)
    >>> loss.backward()
    >>> loss.item(), log_z.grad
    (1.3862943649291992, tensor(0.))
    """
    given = bias, weight, sample_weight, ignore_index, temperature, reduction
    return _run("nce_loss", x, w, target, negatives, *given, accidental_hits, log_z=log_z)


# Messages show the public name.
for _function in (sampled_softmax_loss, negative_sampling_loss, nce_loss):
    _function.__module__ = "csoftmax.torch"
