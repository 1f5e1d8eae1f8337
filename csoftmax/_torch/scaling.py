"""Products of softmax and an upstream gradient, divided by T, which can be beyond the range of the dtype on the way."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def scale_softmax(p: Tensor, dy: Tensor, temperature: float) -> Tensor:
    """Softmax p times dy / T, in place where 1 / T and dy / T stay within the range of the dtype."""
    if temperature == 1:
        return p.mul_(dy)
    mantissa, exponent = math.frexp(temperature)
    if abs(exponent) <= 60:
        if p.dtype.itemsize < 4:
            return p.float().mul_(dy.float() / temperature).to(p.dtype)
        return p.mul_(dy / temperature)
    return _scale_far(p, dy, temperature, mantissa, exponent)


def scale_softmax_by(p: Tensor, dy: Tensor, t: Tensor) -> Tensor:
    """Softmax p times dy / T for a tensor of temperatures in float64, which broadcasts to p."""
    wide = torch.float64 if p.dtype == torch.float64 else torch.float32
    near = (p.to(wide) * (dy.to(wide) / t.to(wide))).to(p.dtype)
    mantissas, exponents = torch.frexp(t)
    return torch.where(exponents.abs() <= 60, near, _scale_far(p, dy, t, mantissas, exponents))


def _scale_far(p: Tensor, dy: Tensor, t: Any, mantissa: Any, exponent: Any) -> Tensor:
    """The product p dy / T for T = mantissa 2**exponent, a number or a tensor, of any magnitude."""
    if p.dtype != torch.float64:
        return p.double().mul_(dy.double()).div_(t).to(p.dtype)
    # Mantissas are multiplied, exponents added. The powers of two are multiplied in three steps, none of which leaves
    # the range before the product does.
    p, p_exponent = torch.frexp(p)
    dy, dy_exponent = torch.frexp(dy)
    exponents = (p_exponent + dy_exponent - exponent).clamp(-2400, 2400)
    third = exponents.div(3, rounding_mode="trunc")
    step = torch.pow(2.0, third.double())
    return p.mul_(dy / mantissa).mul_(step).mul_(step).mul_(torch.pow(2.0, (exponents - 2 * third).double()))
