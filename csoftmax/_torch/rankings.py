"""The Plackett-Luce loss as a PyTorch operator; the gradient is computed together with the loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .._arguments.numbers import check_count
from .._arguments.segments import Segments
from .._ops.rankings import LARGEST_TOP
from .._ops.rankings import plackett_luce_loss as _loss
from .._ops.rankings import plackett_luce_loss_with_grad as _with_grad
from .operators import (
    Reduction,
    check_constants,
    check_floating,
    check_temperature,
    choose_number,
    define,
    keep_gradients,
    loss_dtype,
    multiply,
    of_loss,
)
from .segments import segment_tensors, segments_of

_ARRAYS = (
    "(Tensor x, Tensor relevance, Tensor? indptr, Tensor? order, Tensor? observed, Tensor? sample_weight, "
    "Tensor? temperatures"
)
_OPTIONS = "str ties, int top, float temperature, str reduction"
_INPUTS = 12


def _call(x: Tensor, relevance: Tensor, *rest: Any) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    """Arguments and options of the functions of csoftmax; top is 0 for all places."""
    indptr, order, observed, weight, temperatures, ties, top, temperature, reduction = rest
    options: dict[str, Any] = {"ties": ties, "reduction": reduction}
    options["temperature"] = choose_number(temperature, temperatures)
    options |= {"top": top or None, "observed": None if observed is None else observed.detach()}
    if weight is not None:
        options["sample_weight"] = weight.detach()
    if indptr is not None:
        options["segments"] = segments_of(indptr, order)
    return (x.detach(), relevance.detach()), options


def _compute_grad(x: Tensor, relevance: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient, the last argument is upstream or None."""
    arrays, options = _call(x, relevance, *rest[:-1])
    upstream = 1.0 if rest[-1] is None else rest[-1].detach()
    loss, grad = _with_grad(*arrays, upstream=upstream, **options)  # type: ignore[arg-type]
    return loss, grad


def _fake_grad(x: Tensor, relevance: Tensor, indptr: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    lists = x.shape[:-1] if indptr is None else (indptr.shape[0] - 1,)
    loss = x.new_empty(lists if rest[7] == "none" else (), dtype=loss_dtype(x))
    return loss, x.new_empty(x.shape)


_loss_grad = define(
    "plackett_luce_loss_grad",
    f"{_ARRAYS}, {_OPTIONS}, Tensor? upstream) -> (Tensor, Tensor)",
    _compute_grad,
    _fake_grad,
)


def _compute(x: Tensor, relevance: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """Loss, and with it the gradient of a reduced loss; that of "none" is computed when upstream is known."""
    *given, gradient = rest
    if gradient and given[-1] != "none":
        return _compute_grad(x, relevance, *given, None)
    arrays, options = _call(x, relevance, *given)
    loss: Tensor = _loss(*arrays, **options)  # type: ignore[arg-type]
    return loss, x.new_empty(0)


def _fake(x: Tensor, relevance: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *given, gradient = rest
    loss, grad = _fake_grad(x, relevance, *given)
    return loss, grad if gradient and given[-1] != "none" else x.new_empty(0)


def _save(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:
    ctx.options = inputs[7:11]
    keep_gradients(ctx, *(inputs[:7] if ctx.options[-1] == "none" else output[1:]))


@of_loss(_INPUTS)
def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.options[-1] == "none":
        grad = _loss_grad(*ctx.saved_tensors, *ctx.options, upstream)[1]
    else:
        grad = multiply(ctx.saved_tensors[0], upstream)
    return grad, *[None] * (_INPUTS - 1)


_operator = define(
    "plackett_luce_loss",
    f"{_ARRAYS}, {_OPTIONS}, bool gradient) -> (Tensor, Tensor)",
    _compute,
    _fake,
    _differentiate,
    _save,
)


def plackett_luce_loss(
    x: Tensor,
    relevance: Tensor,
    *,
    indptr: Tensor | None = None,
    segment_ids: Tensor | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    observed: Tensor | None = None,
    ties: Literal["breslow", "efron", "exact", "order"] = "breslow",
    top: int | None = None,
    temperature: float | Tensor = 1.0,
    sample_weight: Tensor | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.plackett_luce_loss` with a gradient with respect to the scores: ListMLE, and Cox's partial likelihood.

    Parameters
    ----------
    x : torch.Tensor of shape (E,), or (..., n)
        Scores, floating point, on the CPU.
    relevance : torch.Tensor of the shape of x
        Larger comes first; equal values are ties; NaN: the element is not in the list.
    indptr, segment_ids, num_segments, segments, observed, ties, top, reduction
        As in `csoftmax.plackett_luce_loss`. A `csoftmax.Segments` saves checks and sorting in each call.
    temperature : float > 0 or torch.Tensor of them, default 1.0
        Scores are divided by it; a tensor has one for each list. No gradient flows to it.
    sample_weight : torch.Tensor, optional
        Factors of the lists' losses; no gradient flows to them.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 scores, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.plackett_luce_loss`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.tensor([2.0, 1.0, 0.0], requires_grad=True)
    >>> ct.plackett_luce_loss(x, torch.tensor([3, 2, 1])).backward()
    >>> x.grad
    tensor([-0.3348, -0.0242,  0.3590])
    """
    check_floating("x", x)
    check_constants(relevance=relevance, observed=observed, sample_weight=sample_weight)
    indices = order = None
    if any(given is not None for given in (indptr, segment_ids, num_segments, segments)):
        indices, order = segment_tensors(indptr, segment_ids, num_segments, segments)
    places = 0 if top is None else min(check_count("top", top, 1, "an int or None"), LARGEST_TOP)
    gradient = x.requires_grad and torch.is_grad_enabled()
    number, temperatures = check_temperature(temperature, x)
    arrays = x, relevance, indices, order, observed, sample_weight, temperatures
    loss: Tensor = _operator(*arrays, ties, places, number, reduction, gradient)[0]
    return loss


# Messages show the public name.
plackett_luce_loss.__module__ = "csoftmax.torch"
