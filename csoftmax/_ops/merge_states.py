"""Results of attention over parts of the keys, merged."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.numbers import check_integer
from .._arguments.places import as_float
from .._arguments.recorded import hand_over_recorded
from .softmax import logsumexp, softmax

__all__ = ["MergedStates", "merge_states"]


class MergedStates(NamedTuple):
    """The result of `merge_states`.

    Attributes
    ----------
    value : ndarray of the shape of values without the axis
        The merged values, in their dtype.
    lse : scalar, or ndarray of the shape of lse without the axis
        The merged log-sum-exps, in their dtype.
    """

    value: Any
    lse: Any


@accept_foreign
def _merge(values: Any, lse: Any, axis: Any, base: Any) -> Any:
    v, _ = as_float("values", values)
    weights, _ = as_float("lse", lse)
    if weights.ndim == 0 or v.shape[: weights.ndim] != weights.shape:
        raise ValueError(
            f"lse has shape {weights.shape} and values {v.shape}: values have the axes of lse, at least one, and then "
            "those of what is averaged"
        )
    axis = check_integer("axis", axis)
    if not -weights.ndim <= axis < weights.ndim:
        raise np.exceptions.AxisError(f"axis {axis} is out of bounds for lse of dimension {weights.ndim}")
    axis %= weights.ndim
    if base is not None and (isinstance(base, bool) or np.ndim(base) != 0 or base != 2):
        raise ValueError(f"base must be None, for natural logarithms, or 2, got {base!r}")
    unit = 1.0 if base is None else math.log(2)
    wide = weights.astype(np.float64) * unit
    merged = logsumexp(wide, axis=axis) / unit
    present = wide != -np.inf
    is_alone = np.count_nonzero(present, axis=axis) == 1  # whatever the base: the part itself
    merged = np.where(is_alone, weights.astype(np.float64).max(axis=axis, initial=-np.inf), merged)
    p = softmax(wide, axis=axis, where=present)
    trailing = (1,) * (v.ndim - weights.ndim)
    shape = v.shape[:axis] + v.shape[axis + 1 :]
    total = np.zeros(shape)
    with np.errstate(all="ignore"):
        for i in range(v.shape[axis]):
            at = (slice(None),) * axis + (i,)
            weight, is_there = p[at], present[at]
            term = weight.reshape(weight.shape + trailing) * v[at].astype(np.float64)
            total += np.where(is_there.reshape(is_there.shape + trailing), term, 0.0)
        total[np.isnan(total)] = np.nan  # the canonical one
        merged = np.where(np.isnan(merged), np.nan, merged)
        value = total.astype(v.dtype)
        return value[()], np.asarray(merged).astype(weights.dtype)[()]


@hand_over_recorded
def merge_states(
    values: ArrayLike, lse: ArrayLike, *, axis: SupportsIndex = 0, base: int | None = None
) -> MergedStates:
    """Merge the results of attention over parts of the keys into that over all of them.

    Parameters
    ----------
    values : array_like of shape (..., *value)
        Weighted means of the parts, in one of the dtypes of `softmax`: the axes of `lse`, then those of a value.
    lse : array_like of shape (...)
        Log-sum-exps of the parts; may be float32 beside values of a half type. -inf: the part is empty, and its value
        is not read.
    axis : int, default 0
        The axis of `lse` along which the parts lie.
    base : {None, 2}, optional
        Base of the logarithms of `lse` and of the result; None is e.

    Returns
    -------
    MergedStates
        ``value``, the mean of the parts weighted with ``softmax(lse)``, and ``lse``, their log-sum-exp. If all parts
        are empty they are 0 and -inf; NaN stays NaN.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    The weights are those of `softmax` in float64, and the values are added in float64 in their order along the axis.
    A single part gives itself. Dao et al., "FlashAttention" (2022), merge the blocks of attention in this way.

    Examples
    --------
    >>> import numpy as np
    >>> import csoftmax
    >>> merged = csoftmax.merge_states([[1.0, 2.0], [3.0, 4.0]], [0.0, 0.0])
    >>> merged.value, merged.lse.round(4)
    (array([2., 3.]), np.float64(0.6931))
    >>> csoftmax.merge_states(np.full((2, 1), np.nan), [-np.inf, -np.inf])
    MergedStates(value=array([0.]), lse=np.float64(-inf))
    """
    return MergedStates(*_merge(values, lse, axis, base))
