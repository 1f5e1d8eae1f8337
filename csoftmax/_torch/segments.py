"""The softmax family over segments as PyTorch operators.

Segments reach the operators as two tensors, offsets and the order of the elements (empty: in order), so that
torch.compile sees tensors; ids are sorted by an operator of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import csoftmax

from .._arguments.numbers import check_integer
from .._arguments.segments import Segments, as_segments, convert_segments, hold_segments
from .operators import (
    Reduction,
    as_number,
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
    loss_dtype,
    multiply,
    number_or_rows,
    of_loss,
)
from .scaling import scale_softmax, scale_softmax_by


def _sort_ids(ids: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    segments = Segments(segment_ids=ids.detach(), num_segments=num_segments)
    order = segments.order
    if order is None:
        order = torch.arange(ids.numel(), dtype=torch.int32).numpy()
    return tuple(torch.from_numpy(a.copy()).to(ids.device) for a in (segments.indptr, order))  # type: ignore[return-value]


def _fake_sort(ids: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    offsets = torch.empty(num_segments + 1, dtype=torch.int64, device=ids.device)
    return offsets, torch.empty(ids.shape, dtype=torch.int32, device=ids.device)


_sort = define("segment_sort", "(Tensor ids, int num_segments) -> (Tensor, Tensor)", _sort_ids, _fake_sort)


def segment_tensors(
    indptr: Tensor | None, segment_ids: Tensor | None, num_segments: int | None, segments: Segments | None
) -> tuple[Tensor, Tensor]:
    """Offsets and order as tensors."""
    check_constants(indptr=indptr, segment_ids=segment_ids)
    if torch.compiler.is_compiling() and segments is None:
        if (indptr is None) == (segment_ids is None):
            raise TypeError("exactly one of indptr, segment_ids and segments is needed")
        if segment_ids is None:
            assert indptr is not None
            return indptr, indptr.new_empty(0, dtype=torch.int32)
        if num_segments is None:
            raise TypeError("num_segments is needed with segment_ids inside of torch.compile")
        return _sort(segment_ids, num_segments)
    found = as_segments(indptr, segment_ids, num_segments, segments)
    offsets, order = convert_segments(found, "torch", lambda a: torch.from_numpy(a.copy()))
    return offsets, offsets.new_empty(0, dtype=torch.int32) if order is None else order


def segments_of(indptr: Tensor, order: Tensor | None) -> Segments:
    if order is None or order.numel() == 0:
        return Segments(indptr=indptr)  # checked: it may be the caller's own tensor
    return hold_segments(indptr.cpu().numpy(), order.cpu().numpy(), order.numel())


_SEGMENTS = "Tensor indptr, Tensor order, int dim, float temperature, Tensor? temperatures"


def _options_of(
    indptr: Tensor, order: Tensor, dim: int, temperature: float, temperatures: Tensor | None
) -> dict[str, Any]:
    """The keywords of a call of `csoftmax` from what _SEGMENTS declares."""
    number = choose_number(temperature, temperatures)
    return {"segments": segments_of(indptr, order), "axis": dim, "temperature": number}


def _define_segment_function(name: str) -> Any:
    """Define the operators of a function of `csoftmax` and of its vjp; y tells the latter what is masked."""
    function, function_vjp = getattr(csoftmax, f"segment_{name}"), getattr(csoftmax, f"segment_{name}_vjp")

    def compute_vjp(dy: Tensor, y: Tensor, *segments: Any) -> Tensor:
        return function_vjp(dy.detach(), y.detach(), out=like(y), **_options_of(*segments))

    def compute(x: Tensor, *segments_and_where: Any) -> Tensor:
        *segments, where = segments_and_where
        return function(x.detach(), where=where, out=like(x), **_options_of(*segments))

    def save(ctx: Any, inputs: Any, output: Tensor) -> None:
        _, indptr, order, ctx.dim, ctx.temperature, temperatures, _ = inputs
        ctx.save_for_backward(output, indptr, order, *([] if temperatures is None else [temperatures]))

    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, indptr, order, *temperatures = ctx.saved_tensors
        return vjp(dy, y, indptr, order, ctx.dim, ctx.temperature, *(temperatures or [None])), *[None] * 6

    vjp = define(
        f"segment_{name}_vjp",
        f"(Tensor dy, Tensor y, {_SEGMENTS}) -> Tensor",
        compute_vjp,
        lambda dy, y, *segments: like(y),
    )
    return define(
        f"segment_{name}",
        f"(Tensor x, {_SEGMENTS}, Tensor? where) -> Tensor",
        compute,
        lambda x, *segments_and_where: like(x),
        backward,
        save,
    )


_softmax = _define_segment_function("softmax")
_log_softmax = _define_segment_function("log_softmax")


def _compute_logsumexp(x: Tensor, *segments_and_where: Any) -> Tensor:
    *segments, where = segments_and_where
    return torch.as_tensor(csoftmax.segment_logsumexp(x.detach(), where=where, **_options_of(*segments)))


def _reduced_shape(x: Tensor, indptr: Tensor, dim: int) -> list[int]:
    shape = list(x.shape)
    shape[dim] = indptr.shape[0] - 1
    return shape


def _fake_logsumexp(x: Tensor, indptr: Tensor, order: Tensor, dim: int, *options: Any) -> Tensor:
    return torch.empty(_reduced_shape(x, indptr, dim), dtype=x.dtype, device=x.device)


def _compute_logsumexp_vjp(
    dy: Tensor,
    x: Tensor,
    indptr: Tensor,
    order: Tensor,
    dim: int,
    temperature: float,
    temperatures: Tensor | None,
    where: Tensor | None,
) -> Tensor:
    to: Any = like(x)
    options = _options_of(indptr, order, dim, temperature, temperatures)
    p = csoftmax.segment_softmax(x.detach(), where=where, out=to, **options)
    dy = _of_elements(dy.detach(), indptr, order, dim, x.shape[dim])
    if temperatures is None:
        return scale_softmax(p, dy, temperature)
    shape, t = _reduced_shape(x, indptr, dim), temperatures.detach().double()
    if t.dim() == 1 and len(t) == shape[dim]:  # one for each segment, on whichever axis these are
        t = t.reshape([len(t) if i == dim % x.dim() else 1 for i in range(x.dim())])
    return scale_softmax_by(p, dy, _of_elements(t.broadcast_to(shape), indptr, order, dim, x.shape[dim], 1.0))


def _of_elements(values: Tensor, indptr: Tensor, order: Tensor, dim: int, count: int, absent: float = 0.0) -> Tensor:
    """For each element the value of its segment, and `absent` for those of none."""
    offsets = indptr.to(values.device, torch.int64)
    places = torch.arange(count, device=values.device)
    segment = torch.searchsorted(offsets, places, right=True) - 1
    segment = torch.where((places >= offsets[0]) & (places < offsets[-1]), segment, offsets.numel() - 1)
    if order.numel():
        segment = torch.empty_like(segment).index_copy_(0, order.to(values.device, torch.int64), segment)
    last = values.new_full([1 if i == dim % values.dim() else n for i, n in enumerate(values.shape)], absent)
    return torch.cat([values, last], dim).index_select(dim, segment)


_logsumexp_vjp = define(
    "segment_logsumexp_vjp",
    f"(Tensor dy, Tensor x, {_SEGMENTS}, Tensor? where) -> Tensor",
    _compute_logsumexp_vjp,
    lambda dy, x, *segments_and_where: like(x),
)


def _save_logsumexp(ctx: Any, inputs: Any, output: Tensor) -> None:
    x, indptr, order, ctx.dim, ctx.temperature, *others = inputs
    ctx.is_given = [t is not None for t in others]
    ctx.save_for_backward(x, indptr, order, *[t for t in others if t is not None])


def _differentiate_logsumexp(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, indptr, order, *given = ctx.saved_tensors
    saved = iter(given)
    others = [next(saved) if is_given else None for is_given in ctx.is_given]
    return _logsumexp_vjp(dy, x, indptr, order, ctx.dim, ctx.temperature, *others), *[None] * 6


_logsumexp = define(
    "segment_logsumexp",
    f"(Tensor x, {_SEGMENTS}, Tensor? where) -> Tensor",
    _compute_logsumexp,
    _fake_logsumexp,
    _differentiate_logsumexp,
    _save_logsumexp,
)


def _compute_loss(
    x: Tensor,
    target: Tensor,
    indptr: Tensor,
    order: Tensor,
    dim: int,
    temperature: float,
    temperatures: Tensor | None,
    sample_weight: Tensor | None,
    positives: str,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
    gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Loss, and the gradient of its sum or mean, or an empty tensor."""
    (weight,) = detach(sample_weight)
    options: dict[str, Any] = {
        **_options_of(indptr, order, dim, temperature, temperatures),
        **{"positives": positives, "ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": z_loss},
        **{"sample_weight": weight, "reduction": reduction},
    }
    if not gradient:
        loss = csoftmax.segment_cross_entropy(x.detach(), target.detach(), **options)
        return torch.as_tensor(loss), x.new_empty(0)
    result = csoftmax.segment_cross_entropy_with_grad(x.detach(), target.detach(), out=like(x), **options)  # type: ignore[arg-type]
    return torch.as_tensor(result.loss), result.grad


def _fake_loss(
    x: Tensor, target: Tensor, indptr: Tensor, order: Tensor, dim: int, *options: Any
) -> tuple[Tensor, Tensor]:
    shape = _reduced_shape(x, indptr, dim) if options[-2] == "none" else []
    loss = torch.empty(shape, dtype=loss_dtype(x), device=x.device)
    return loss, torch.empty(x.shape if options[-1] else (0,), dtype=x.dtype, device=x.device)


def _save_loss(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
    x, _, indptr, order, ctx.dim, *_ = inputs
    ctx.reduction, ctx.count = inputs[-2], x.shape[ctx.dim]
    keep_gradients(ctx, output[1], indptr, order)


@of_loss(14)
def _differentiate_loss(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    grad, indptr, order = ctx.saved_tensors
    if ctx.reduction == "none":
        upstream = _of_elements(upstream, indptr, order, ctx.dim, ctx.count)
    return multiply(grad, upstream), *[None] * 13


_cross_entropy = define(
    "segment_cross_entropy",
    f"(Tensor x, Tensor target, {_SEGMENTS}, Tensor? sample_weight, str positives, int ignore_index, "
    "float label_smoothing, float z_loss, str reduction, bool gradient) -> (Tensor, Tensor)",
    _compute_loss,
    _fake_loss,
    _differentiate_loss,
    _save_loss,
)


def segment_softmax(
    x: Tensor,
    *,
    indptr: Tensor | None = None,
    segment_ids: Tensor | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    dim: int = 0,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """`csoftmax.segment_softmax` with a gradient.

    Parameters
    ----------
    x : torch.Tensor
        Floating point.
    indptr, segment_ids : torch.Tensor of integers, optional
        As in `csoftmax.segment_softmax`.
    num_segments : int, optional
        The number of segments, with `segment_ids`; needed inside of `torch.compile`.
    segments : csoftmax.Segments, optional
        The segments, checked and sorted before.
    dim : int, default 0
        The axis of the elements.
    temperature : float > 0 or torch.Tensor of them, default 1.0
        T; a tensor of shape (S,) has one for each segment, any other with axes broadcasts to the shape of x with S
        along `dim`. No gradient flows to it.
    where : torch.Tensor of bool, broadcastable to x, optional
        Mask. Elements where it is False are left out: their result and their gradient are exactly 0.

    Returns
    -------
    torch.Tensor
        Probabilities, of the shape and dtype of x; 0 for elements of no segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.segment_softmax`; also if x is not a floating-point tensor, or another argument requires grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.zeros(3, requires_grad=True)
    >>> ct.segment_softmax(x, segment_ids=torch.tensor([1, 0, 1]))[0].backward()
    >>> x.grad
    tensor([ 0.2500,  0.0000, -0.2500])
    """
    check_floating("x", x)
    check_tensors(where=where)
    tensors = segment_tensors(indptr, segment_ids, num_segments, segments)
    return _softmax(x, *tensors, check_int("dim", dim), *check_temperature(temperature, x), where)


def segment_log_softmax(
    x: Tensor,
    *,
    indptr: Tensor | None = None,
    segment_ids: Tensor | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    dim: int = 0,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """`csoftmax.segment_log_softmax` with a gradient.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, dim, temperature, where
        As in `segment_softmax`; the result is -inf where the mask is False.

    Returns
    -------
    torch.Tensor
        Logarithms of the probabilities, of the shape and dtype of x; -inf for elements of no segment.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `segment_softmax`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.segment_log_softmax(torch.zeros(3), indptr=torch.tensor([0, 2, 3]))
    tensor([-0.6931, -0.6931,  0.0000])
    """
    check_floating("x", x)
    check_tensors(where=where)
    tensors = segment_tensors(indptr, segment_ids, num_segments, segments)
    return _log_softmax(x, *tensors, check_int("dim", dim), *check_temperature(temperature, x), where)


def segment_logsumexp(
    x: Tensor,
    *,
    indptr: Tensor | None = None,
    segment_ids: Tensor | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    dim: int = 0,
    temperature: float | Tensor = 1.0,
    where: Tensor | None = None,
) -> Tensor:
    """`csoftmax.segment_logsumexp` with a gradient.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, dim, temperature, where
        As in `segment_softmax`.

    Returns
    -------
    torch.Tensor
        Logarithms of the sums, of the dtype of x and its shape with the number of segments along `dim`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `segment_softmax`.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> ct.segment_logsumexp(torch.zeros(3), indptr=torch.tensor([0, 2, 3]))
    tensor([0.6931, 0.0000])
    """
    check_floating("x", x)
    check_tensors(where=where)
    tensors = segment_tensors(indptr, segment_ids, num_segments, segments)
    return _logsumexp(x, *tensors, check_int("dim", dim), *check_temperature(temperature, x), where)


def segment_cross_entropy(
    x: Tensor,
    target: Tensor,
    *,
    indptr: Tensor | None = None,
    segment_ids: Tensor | None = None,
    num_segments: int | None = None,
    segments: Segments | None = None,
    dim: int = 0,
    sample_weight: Tensor | None = None,
    positives: str = "each",
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """`csoftmax.segment_cross_entropy` with a gradient with respect to x, computed with the loss.

    Parameters
    ----------
    x, indptr, segment_ids, num_segments, segments, dim
        As in `segment_softmax`.
    target, sample_weight, positives, ignore_index, label_smoothing, z_loss, temperature, reduction
        As in `csoftmax.segment_cross_entropy`, tensors in place of arrays; no gradient flows to them.

    Returns
    -------
    torch.Tensor
        The loss, float64 for float64 logits, else float32.

    Raises
    ------
    TypeError, ValueError, IndexError
        As in `csoftmax.segment_cross_entropy`; also if x is not a floating-point tensor, or another argument requires
        grad.

    Examples
    --------
    >>> import torch
    >>> import csoftmax.torch as ct
    >>> x = torch.zeros(5, requires_grad=True)
    >>> ct.segment_cross_entropy(x, torch.tensor([0, -100]), indptr=torch.tensor([0, 2, 5])).backward()
    >>> x.grad
    tensor([-0.5000,  0.5000,  0.0000,  0.0000,  0.0000])
    """
    check_floating("x", x)
    check_constants(target=target, sample_weight=sample_weight)
    tensors = segment_tensors(indptr, segment_ids, num_segments, segments)
    numbers = as_number("label_smoothing", label_smoothing), as_number("z_loss", z_loss)
    ignored, gradient = check_integer("ignore_index", ignore_index), x.requires_grad and torch.is_grad_enabled()
    options = sample_weight, positives, ignored, *numbers, reduction, gradient
    t = number_or_rows("temperature", temperature)
    return _cross_entropy(x, target, *tensors, check_int("dim", dim), *t, *options)[0]
