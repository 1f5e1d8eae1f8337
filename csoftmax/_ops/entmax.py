"""Sparsemax and alpha-entmax, and the gradient of both."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _cuda
from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.layouts import Rows, lay_out_rows
from .._arguments.numbers import check_alphas, check_flag, is_for_rows, number_and_rows
from .._arguments.places import DeviceError, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .softmax import softmax, softmax_vjp

__all__ = ["EntmaxGradients", "entmax", "entmax_vjp", "sparsemax"]

_Axis = SupportsIndex | tuple[SupportsIndex, ...] | None


class EntmaxGradients(NamedTuple):
    """The result of `entmax_vjp` with ``return_alpha_grad=True``.

    Attributes
    ----------
    grad : ndarray of the shape of dy
        dL/dx, in the dtype of `dy` (float64 for integers); `out`, if it was given.
    alpha_grad : float64, or ndarray of float64 of the shape of alpha
        dL/dalpha, summed over the rows that share an alpha.
    """

    grad: Any
    alpha_grad: Any


class EntmaxPlan(NamedTuple):
    """A checked call of entmax, or, with a second input, of entmax_vjp."""

    alpha: float | Any  # a number, or an array with one for each row
    rows: Rows
    num_threads: Any
    alpha_gradient: Any | None  # receives dL/dalpha of each row

    def execute(self) -> Any:
        """Compute, and return the result."""
        rows = self.rows
        batch = rows.first.shape[:-1]
        number, each = number_and_rows(self.alpha, batch, 2.0)
        arguments = rows.dtype, rows.first, rows.second, rows.result.rows, rows.where, number
        if not rows.result.place.on_cuda:
            if number == 1:
                each = np.broadcast_to(1.0, batch)
            binding.run_entmax(*arguments, self.num_threads, each, self.alpha_gradient)
            return rows.result.finish()
        with rows.first.device:
            _cuda.launch_entmax(*arguments, each)
            return rows.result.finish()

    def reduce_alpha_gradient(self, shape: tuple[int, ...]) -> Any:
        """dL/dalpha summed over the rows that share an alpha; shape: that of the caller's alpha."""
        by_row: Any = self.alpha_gradient
        if not shape:
            return np.float64(math.fsum(by_row.ravel())) if np.isfinite(by_row).all() else by_row.sum()
        full = self.rows.row_shape
        by_row = by_row.reshape(full)
        padded = (1,) * (len(full) - len(shape)) + shape
        shared = tuple(i for i, n in enumerate(padded) if n == 1 and full[i] != 1)
        return by_row.sum(axis=shared, keepdims=True).reshape(shape)


def plan_entmax(
    x: Any,
    y: Any,
    alpha: Any,
    axis: Any,
    *,
    gradient: bool,
    where: Any,
    out: Any,
    device: Any,
    num_threads: Any,
    alpha_gradient: bool = False,
) -> EntmaxPlan:
    """Check a call of entmax, or of entmax_vjp, where x is dy."""
    place = place_of(device, x)
    with place.context():
        rows = lay_out_rows(place, x, y, axis, where, out, gradient=gradient)
        alpha = check_alphas(alpha if type(alpha) is float else to_host(alpha)[0], rows.row_shape)
        if place.on_cuda and alpha_gradient:
            raise DeviceError('the gradient of alpha has no kernel for CUDA. device="cpu" computes on the CPU.')
        by_row = np.zeros(rows.first.shape[:-1]) if alpha_gradient else None
        return EntmaxPlan(alpha, rows, num_threads, by_row)


@hand_over_recorded
def sparsemax(
    x: ArrayLike,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Sparsemax, the Euclidean projection onto the simplex: ``max(x - tau, 0)``, which sums to 1.

    Parameters
    ----------
    x, axis, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of x
        Probabilities, most of which are exactly 0 where the logits are spread.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    `entmax` with ``alpha=2`` (Martins & Astudillo, "From softmax to sparsemax", ICML 2016). Every element is within
    0.5 ULP of the exact result, also in float64. Special values are those of `softmax`.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.sparsemax(np.array([1.0, 0.5, -1.0]))
    array([0.75, 0.25, 0.  ])
    """
    return entmax(x, 2.0, axis, where=where, out=out, device=device, num_threads=num_threads)


@hand_over_recorded
def entmax(
    x: ArrayLike,
    alpha: ArrayLike = 1.5,
    axis: _Axis = -1,
    *,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """alpha-entmax, ``max((alpha - 1) x - tau, 0) ** (1 / (alpha - 1))``, which sums to 1.

    Parameters
    ----------
    x : array_like of shape (...)
        Logits, in one of the dtypes of `softmax`.
    alpha : float or array_like, default 1.5
        At least 1 and finite: 1 is `softmax`, 2 is `sparsemax`. An array, of length 1 along `axis`, broadcasts to the
        rows, each of which then has the bits that it has alone.
    axis, where, out, device, num_threads
        As in `softmax`.

    Returns
    -------
    ndarray of the shape of x
        Probabilities. For alpha > 1 they are exactly 0 where the logit is more than ``1 / (alpha - 1)`` below the
        largest.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `softmax`.

    Notes
    -----
    Defined by Peters, Niculae & Martins, "Sparse sequence-to-sequence models", ACL 2019. A filter keeps the logits that
    can have probability, then Newton's method finds tau (for alpha > 2 the least probability); nothing is sorted.
    Every result is within 0.51 ULP of the exact one, whatever alpha, so that rows sum to 1 within the rounding of their
    elements. The exception is a number so close to the threshold that a change of tau by 2**-90 matters (for alpha > 2:
    a change of the least probability by 2**-90); alpha 1.5 and 2 allow 2**-100. A row with NaN or +inf, or with only
    -inf, is NaN; elements that `where` masks are 0 in every row.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> csoftmax.entmax(np.array([1.0, 0.5, -1.0, -2.0])).round(4)
    array([0.674, 0.326, 0.   , 0.   ])
    """
    options: dict[str, Any] = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    return softmax(x, axis, **options) if _is_limit(alpha) else _run_entmax(x, alpha, axis, **options)


def _is_limit(alpha: Any) -> bool:
    """Whether alpha is the number 1, at which entmax is softmax."""
    return alpha == 1 if type(alpha) is float else not is_for_rows(alpha) and check_alphas(alpha, ()) == 1


@accept_foreign
@keep_labels()
def _run_entmax(x: Any, alpha: Any, axis: Any, **options: Any) -> Any:
    return plan_entmax(x, None, alpha, axis, gradient=False, **options).execute()


@hand_over_recorded
def entmax_vjp(
    dy: ArrayLike,
    y: ArrayLike,
    alpha: ArrayLike = 1.5,
    axis: _Axis = -1,
    *,
    return_alpha_grad: bool = False,
    where: ArrayLike | None = None,
    out: NDArray[Any] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Gradient of a loss through `entmax`: dL/dx from dL/dy and ``y = entmax(x, alpha)``.

    Parameters
    ----------
    dy : array_like of shape (...)
        dL/dy, in one of the dtypes of `softmax`.
    y : array_like of the shape and dtype of dy
        The result of ``entmax(x, alpha, axis)``.
    alpha : float or array_like, default 1.5
        As in the call of `entmax`.
    return_alpha_grad : bool, default False
        Whether to compute dL/dalpha as well (Correia, Niculae & Martins 2019), on the CPU.
    axis, where, out, device, num_threads
        As in `softmax_vjp`.

    Returns
    -------
    ndarray of the shape of dy, or EntmaxGradients
        ``s * (dy - sum(s * dy) / sum(s))``, ``s = y ** (2 - alpha)`` where y > 0, else 0; with `return_alpha_grad`, a
        pair of it and of dL/dalpha, in float64 and the shape of `alpha`: for a number, the sum over all rows.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        As in `entmax`.

    Notes
    -----
    Elements with y = 0 are left out, whatever `dy` holds there. With g the difference of `dy` from that of the element
    of the largest s, results are within 0.51 ULP (float64: 4 ULP) and ``2**-51 * s * (|g| + mean of |g| under s)``, the
    effect of rounding s, which only shows where ``g - mean of g`` nearly cancels; alpha 2 has no such term. Weights
    beyond the range of double are allowed (large alpha); a gradient beyond the range of the dtype is infinite.

    With a = alpha - 1 and m the mean of `dy` under s, dL/dalpha of a row is ``sum(h * (dy - m))``, ``h = y * (1 - a *
    log(y)) / a**2``, or with ``h - s / a**2`` for h, which has the same sum and is ``-y * log(y)**2 / 2`` at alpha = 1;
    the one with the smaller terms counts. Its error is ``2**-50`` of the sum of their magnitudes.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> y = csoftmax.sparsemax(np.array([1.0, 0.5, -1.0]))
    >>> csoftmax.entmax_vjp(np.array([1.0, 0.0, 5.0]), y, alpha=2.0)
    array([ 0.5, -0.5,  0. ])
    """
    options: dict[str, Any] = {"where": where, "out": out, "device": device, "num_threads": num_threads}
    if check_flag("return_alpha_grad", return_alpha_grad):
        return EntmaxGradients(*_run_both_gradients(dy, y, alpha, axis, **options))
    return softmax_vjp(dy, y, axis, **options) if _is_limit(alpha) else _run_entmax_vjp(dy, y, alpha, axis, **options)


@accept_foreign
@keep_labels()
def _run_entmax_vjp(dy: Any, y: Any, alpha: Any, axis: Any, **options: Any) -> Any:
    return plan_entmax(dy, y, alpha, axis, gradient=True, **options).execute()


@accept_foreign
@keep_labels()
def _run_both_gradients(dy: Any, y: Any, alpha: Any, axis: Any, **options: Any) -> tuple[Any, Any]:
    plan = plan_entmax(dy, y, alpha, axis, gradient=True, alpha_gradient=True, **options)
    return plan.execute(), plan.reduce_alpha_gradient(np.shape(alpha))
