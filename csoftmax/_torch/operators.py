"""Definition of PyTorch operators, and the checks and types that they share."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._arguments.numbers import is_bool

Reduction = Literal["mean", "sum", "none"]

_FORWARD_MODE = (
    "csoftmax.torch has no derivatives in forward mode (torch.func.jvp, torch.func.jacfwd, torch.autograd.forward_ad): "
    "take gradients by autograd, or Jacobians by torch.autograd.functional.jacobian"
)


def loss_dtype(x: Tensor) -> torch.dtype:
    """The dtype of losses."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def like(x: Tensor) -> Tensor:
    """A contiguous tensor for a result, whatever the layout of x, as the fake versions promise."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def detach(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach() for t in tensors]


def check_floating(name: str, x: object) -> None:
    """Refuse anything but a floating-point tensor, whose derivatives are taken backwards."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    _check_tangent(name, x)
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point to have a gradient, got {x.dtype}")


def check_tensors(**values: object) -> None:
    """Refuse what the dispatcher would refuse with the declaration of the operator; None is left to it."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value is not None:
            _check_tangent(name, value)


def check_constants(**values: object) -> None:
    """Refuse, like `check_tensors`, and also tensors that require grad: no gradient would flow to them."""
    check_tensors(**values)
    for name, value in values.items():
        refuse_gradient(name, value)


def refuse_gradient(name: str, value: object) -> None:
    """Refuse a tensor that requires grad while PyTorch records, because its gradient would be lost."""
    if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires grad, and no gradient flows to it here: pass {name}.detach()")


def _check_tangent(name: str, x: Tensor) -> None:
    """Refuse a dual tensor: operators pass no tangents on, so that the derivative would be 0 without a word."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if forward_ad.unpack_dual(x).tangent is not None:
        raise NotImplementedError(f"{name} has a tangent, and {_FORWARD_MODE}")


def check_int(name: str, value: Any) -> Any:
    """Refuse a bool, which PyTorch would pass to an operator as an int, and a tuple, which its error would not name."""
    if type(value) is int:  # and a symbol of torch.compile, whose attributes cannot be asked for
        return value
    if is_bool(value) or isinstance(value, tuple | list):
        raise TypeError(f"{name} must be an int, got {value!r}")
    return value


def as_number(name: str, value: Any) -> float:
    """A number as a float, as operators expect it."""
    if type(value) is float or type(value) is int:  # and a symbol of torch.compile
        return float(value)
    refuse_gradient(name, value)
    if isinstance(value, Tensor):
        _check_tangent(name, value)
    if not is_bool(value) and not isinstance(value, str | bytes):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value)
    raise TypeError(f"{name} must be a real number, got {value!r}")


def is_for_rows(value: Any) -> bool:
    """Whether a parameter is a tensor with axes, a number for each row."""
    return isinstance(value, Tensor) and value.dim() > 0


def number_or_rows(name: str, value: Any) -> tuple[float, Tensor | None]:
    """A number and None, or a number that does not count and a tensor of the rows, to which no gradient flows."""
    if not is_for_rows(value):
        return as_number(name, value), None
    check_constants(**{name: value})
    return 1.0, value


def choose_number(number: float, rows: Tensor | None) -> Any:
    """The parameter of a call from what `number_or_rows` gives: a number, or a tensor of the rows."""
    return number if rows is None else rows.detach()


def check_temperature(temperature: Any, x: Tensor) -> tuple[float, Tensor | None]:
    """T as `number_or_rows` gives it; 0 and infinity are limits, which have no gradient."""
    number, rows = number_or_rows("temperature", temperature)
    if rows is not None:  # read by the kernel, which refuses such a T in backward
        return number, rows
    if x.requires_grad and torch.is_grad_enabled() and not 0 < number < math.inf:
        raise ValueError(f"temperature must be positive and finite where x requires grad, got {temperature!r}")
    return number, None


def define(
    name: str,
    schema: str,
    compute: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Any = None,
    save: Any = None,
) -> Any:
    """Define the operator csoftmax::name.

    compute returns the results, fake returns tensors of their shapes and dtypes; backward computes the gradient, from
    what save keeps of the call.
    """
    custom = torch.library.custom_op(f"csoftmax::{name}", compute, mutates_args=(), schema=schema)
    custom.register_fake(fake)
    if backward is not None:
        custom.register_autograd(backward, setup_context=save)
    return custom


def _multiply(grad: Tensor, upstream: Tensor) -> Tensor:
    return (grad.detach() * upstream.detach()).to(grad.dtype)


# The product of a gradient, computed together with its loss, and the upstream gradient. An operator without a
# derivative: for autograd's own product the gradient would be a constant, and second derivatives silently wrong.
multiply = define(
    "multiply", "(Tensor grad, Tensor upstream) -> Tensor", _multiply, lambda grad, upstream: torch.empty_like(grad)
)


def keep_gradients(ctx: Any, *gradients: Tensor, indices: tuple[Tensor, ...] = ()) -> None:
    """Save gradients, results of an operator, for its backward.

    They stay differentiable, so that `multiply` belongs to the graph of the inputs and a second derivative reaches it,
    which raises. Gradients of them are None then, not tensors of zeros; see `of_loss`.
    """
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*indices)
    ctx.save_for_backward(*gradients)


def of_loss(inputs: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let the backward of an operator with so many inputs see only a loss that has an upstream gradient."""

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        def backward_of_loss(ctx: Any, upstream: Tensor | None, *_: Tensor | None) -> Any:
            return (None,) * inputs if upstream is None else backward(ctx, upstream)

        return backward_of_loss

    return decorate
