"""What `loss_with_grad` of an output layer returns."""

from __future__ import annotations

from typing import Any, NamedTuple


class HeadResult(NamedTuple):
    """The result of `loss_with_grad` of a head.

    Parameters
    ----------
    loss : scalar, or ndarray of the shape of the rows
        As from `loss`.
    grad_x : ndarray of the shape of x
        Gradient of the features.
    gradients : dict of str to RowGradient or ndarray
        Gradients of the parameters, under their names.
    """

    loss: Any
    grad_x: Any
    gradients: dict[str, Any]
