"""Definition of PyTorch operators, and the checks and types that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .._arguments.numbers import is_bool

Reduction = Literal["mean", "sum", "none"]


def loss_dtype(x: Tensor) -> torch.dtype:
    """The dtype of losses."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def like(x: Tensor) -> Tensor:
    """A contiguous tensor for a result, whatever the layout of x, as the fake versions promise."""
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def detach(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach() for t in tensors]


def check_floating(name: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point to have a gradient, got {x.dtype}")


def check_tensors(**values: object) -> None:
    """Refuse what the dispatcher would refuse with the declaration of the operator; None is left to it."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def check_int(name: str, value: Any) -> Any:
    """Refuse a bool, which PyTorch would pass to an operator as an int."""
    if is_bool(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    return value


def as_number(name: str, value: Any) -> float:
    """A number as a float, as operators expect it."""
    if not is_bool(value) and not isinstance(value, str | bytes):
        with contextlib.suppress(TypeError, ValueError, RuntimeError):
            return float(value)
    raise TypeError(f"{name} must be a real number, got {value!r}")


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
