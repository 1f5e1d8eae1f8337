"""Certificates of linear layers: the exact distance of each row to the nearest other class."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign, narrows_results
from .._arguments.labels import check_target, raise_bad_label
from .._arguments.layers import check_bias, check_layer
from .._arguments.numbers import as_number, check_num_threads
from .._arguments.places import as_float, check_kernels, place_of
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.apart import run_apart
from .._cpu.dtypes import compute_dtype

__all__ = ["Certificate", "certify"]


class Certificate(NamedTuple):
    """The result of `certify`.

    Attributes
    ----------
    radius : scalar, or ndarray of the shape of the rows
        The distance to the nearest rival class in float64 (float32 in a library that has no float64, such as JAX
        unless it is switched on), rounded down: no perturbation whose norm is at most the radius changes the class. 0
        where another class is level or ahead, or by so little behind that rounding decides; inf where none can be
        reached; NaN for rows with logits, or with differences of weights, that are not finite.
    rival : scalar, or ndarray of the shape of the rows
        The nearest rival, int64; where the radius is 0, the class with the largest other logit; -1 where it is inf or
        NaN.
    margin : scalar, or ndarray of the shape of the rows
        The logit of the target minus the largest other one, float64; inf for one class, NaN as the radius.
    """

    radius: Any
    rival: Any
    margin: Any


class Head(NamedTuple):
    """A checked linear layer and its features, one row for each sample."""

    x: Any  # (N, D), in the dtype of the caller's array, or float64 for integers
    w: Any  # (K, D)
    bias: Any | None  # as given
    batch: tuple[int, ...]
    compute: np.dtype[Any]

    def in_double(self) -> tuple[Any, Any, Any]:
        """x, w and the bias in contiguous float64, exactly."""
        with np.errstate(all="ignore"):
            return tuple(  # type: ignore[return-value]
                None if a is None else run_apart(8 * a.size, np.ascontiguousarray, a, np.float64)
                for a in (self.x, self.w, self.bias)
            )

    def in_compute_type(self) -> tuple[Any, Any, Any]:
        """x, w and the bias in the type that losses compute in."""
        with np.errstate(all="ignore"):
            return tuple(  # type: ignore[return-value]
                None if a is None else a.astype(self.compute, copy=False) for a in (self.x, self.w, self.bias)
            )


class Walls(NamedTuple):
    """Checked bounds of the features, float64 of shape (1, D) or (N, D)."""

    low: Any
    high: Any


def plan_head(name: str, x: Any, w: Any, bias: Any) -> Head:
    """Check the layer of a call of the named function."""
    if place_of(None, x).on_cuda:
        check_kernels(name)
    if isinstance(x, np.ma.MaskedArray):  # x has no logits, where -inf would leave masked ones out
        raise TypeError("x is a masked array; pass x.filled(value) with the value that masked elements have")
    x, _ = as_float("x", x)
    w, _ = as_float("w", w)
    check_layer(x, w)
    if bias is not None:
        bias = check_bias(as_float("bias", bias)[0], len(w))
    batch = x.shape[:-1]
    flat = run_apart(x.nbytes, x.reshape, math.prod(batch), x.shape[-1])
    return Head(flat, w, bias, batch, compute_dtype(x.dtype))


def check_labels_of(target: Any, head: Head) -> Any:
    """The labels of all rows as int64."""
    labels, soft = check_target(target, (*head.batch, len(head.w)), head.batch, head.compute)
    if soft is not None:
        raise TypeError(f"target must hold integer labels, got dtype {soft.dtype}")
    labels = labels.copy()  # so that no other thread can change labels that have been checked
    raise_bad_label(labels, len(head.w), None)
    return np.ascontiguousarray(labels.reshape(-1), np.int64)


def check_norm(norm: Any, allowed: tuple[float, ...] | None = None, name: str = "norm") -> float:
    """The order of a norm, from 1 to infinity, or one of those allowed."""
    value = as_number(name, norm)
    if allowed is None:
        if not value >= 1:
            raise ValueError(f"{name} must be at least 1 (1, 2, numpy.inf or any number between), got {norm!r}")
    elif value not in allowed:
        names = ["numpy.inf" if p == math.inf else f"{p:g}" for p in allowed]
        choices = " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))
        raise ValueError(f"{name} must be {choices}, got {norm!r}")
    return value


def code_of_norm(norm: float) -> tuple[int, float]:
    """The norm as the kernels take it: its number, and the exponent of the dual norm."""
    dual = math.inf if norm == 1 else 1.0 if norm == math.inf else 1 / (1 - 1 / norm)
    return binding.NORMS.get(norm, binding.NORMS[None]), dual


def check_bounds(bounds: Any, head: Head) -> Walls | None:
    """The bounds of all rows, which contain x."""
    if bounds is None:
        return None
    what = "bounds must be None or a pair (low, high) of numbers or arrays"
    if not isinstance(bounds, tuple | list | np.ndarray) or (isinstance(bounds, np.ndarray) and bounds.ndim == 0):
        raise TypeError(f"{what}, got {type(bounds).__name__}")
    if len(bounds) != 2:
        raise TypeError(f"{what}, got a {type(bounds).__name__} of length {len(bounds)}")
    walls = []
    shape = (*head.batch, head.x.shape[1])
    for name, given, default in zip(("low", "high"), bounds, (-math.inf, math.inf), strict=True):
        value = as_float(f"bounds: {name}", default if given is None else given)[0].astype(np.float64)
        if np.isnan(value).any():
            raise ValueError(f"bounds must not hold NaN, but {name} does")
        rows = shape if value.ndim > 1 else shape[-1:]
        try:
            value = np.broadcast_to(value, rows)
        except ValueError:
            raise ValueError(
                f"bounds: {name} has shape {value.shape}, which does not broadcast to that of x, {shape}"
            ) from None
        walls.append(np.ascontiguousarray(value.reshape(math.prod(rows[:-1]), rows[-1])))
    low, high = walls
    if (low > high).any():
        at = np.unravel_index(int((low > high).argmax()), np.broadcast_shapes(low.shape, high.shape))
        raise ValueError(f"bounds: low exceeds high in feature {at[-1]}")
    return _admit(head.x, low, high)


def _admit(x: Any, low: Any, high: Any) -> Walls:
    """The walls of features that lie within them; one that is a wall rounded to its dtype is itself the wall."""
    below, above = x < low, x > high
    if not below.any() and not above.any():
        return Walls(low, high)
    with np.errstate(over="ignore", under="ignore"):
        outside = (below & (x < low.astype(x.dtype))) | (above & (x > high.astype(x.dtype)))
    if outside.any():
        row, feature = np.unravel_index(int(outside.argmax()), outside.shape)
        pair = float(low[row % len(low), feature]), float(high[row % len(high), feature])
        raise ValueError(
            f"x must lie within bounds, but row {row}, feature {feature} is {x[row, feature]}, outside of {pair}: "
            "pass numpy.clip(x, *bounds)"
        )
    given = x.astype(np.float64)
    return Walls(np.where(below, given, low), np.where(above, given, high))


def find_certificates(
    x: Any, w: Any, bias: Any, labels: Any, norm: float, walls: Walls | None, num_threads: Any
) -> tuple[Any, Any, Any]:
    """Radius, rival and margin of checked rows in float64."""
    n = len(x)
    radius, margin, rival = np.empty(n), np.empty(n), np.empty(n, np.int64)
    low, high = (None, None) if walls is None else walls
    binding.run_certify(x, w, bias, labels, low, high, code_of_norm(norm), radius, margin, rival, num_threads)
    return radius, rival, margin


def _round_down(a: Any) -> Any:
    """The largest float32 numbers that are not above a."""
    with np.errstate(over="ignore", under="ignore"):
        nearest = a.astype(np.float32)
        return np.where(nearest > a, np.nextafter(nearest, np.float32(-math.inf)), nearest)


@accept_foreign
def _certify(
    x: Any, w: Any, *, bias: Any, target: Any, norm: Any, bounds: Any, narrow: bool, num_threads: Any
) -> tuple[Any, ...]:
    num_threads = check_num_threads(num_threads)
    head = plan_head("certify", x, w, bias)
    norm = check_norm(norm)
    if bounds is not None and norm not in (1, 2, math.inf):
        raise ValueError(f"norm must be 1, 2 or numpy.inf where there are bounds, got {norm!r}")
    labels = None if target is None else check_labels_of(target, head)
    if labels is None and len(head.w) == 0 and len(head.x):
        raise ValueError("w must have at least one row: without a class there is no target")
    walls = check_bounds(bounds, head)
    radius, rival, margin = find_certificates(*head.in_double(), labels, norm, walls, num_threads)
    results = (_round_down(radius) if narrow else radius), rival, margin
    return tuple(result.reshape(head.batch)[()] for result in results)


@hand_over_recorded
def certify(
    x: ArrayLike,
    w: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    target: ArrayLike | None = None,
    norm: float = math.inf,
    bounds: tuple[Any, Any] | None = None,
    num_threads: SupportsIndex | None = None,
) -> Certificate:
    """Find the smallest perturbation of each row that changes its class, for the logits ``x @ w.T + bias``.

    The class with the logit z_y is overtaken by class j within a perturbation d if (w_j - w_y) . d >= z_y - z_j. The
    distance is (z_y - z_j) / ||w_j - w_y||_q with 1/p + 1/q = 1; bounds of the features can only make it larger.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `csoftmax.softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class.
    bias : array_like of shape (K,), optional
        Added to the logits.
    target : array_like of integers of shape (...), optional
        The right classes. Default: those with the largest logits, of equal ones the first.
    norm : float, default inf
        Order p of the norm of perturbations: 1, 2, numpy.inf, or without bounds any number from 1.
    bounds : pair (low, high), optional
        Limits of the perturbed features, such as (0, 1) for images: numbers, or arrays that broadcast to x; None or an
        infinite one is no limit. x must lie within; a feature that is a limit rounded to the dtype of x, as
        ``numpy.clip`` makes it, lies on that limit.
    num_threads : int, optional
        Maximum number of threads.

    Returns
    -------
    Certificate
        radius, rival and margin of the rows, scalars for one row.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        The message names the argument, its value and what is allowed. x outside of bounds is a ValueError.

    Notes
    -----
    The radius is the infimum of the norms at which some rival has at least the logit of the target, rounded down, never
    up: differences of logits are formed from differences of weights, as pairs of doubles, less a bound of their error.
    So it is a certificate in exact arithmetic, whatever the dtype; a model that computes its logits in float32 has
    rounding errors of its own.

    Usually the radius is below the distance by less than ``(D / 8 + 20) * 2**-52`` of it, for norms other than 1, 2 and
    inf by 1e-12. It is less tight where products cancel: below a margin of about 1e-30 of their size it is 0; where
    weights are subnormal; and with bounds for features of very unequal size, 6e-7 for sizes from 1e-8 to 1e8.
    Distances above 1.8e308 have that radius.

    With bounds the distance for the inf-norm and for the 2-norm is the root of a concave piecewise linear function,
    which Newton's method finds in a few passes, and that for the 1-norm a fractional knapsack. Results do not depend on
    threads or on the instruction set.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.adversarial import certify
    >>> w = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> radius, rival, margin = certify(np.array([[3.0, 1.0], [0.0, 2.0]]), w)
    >>> radius.round(3), rival, margin
    (array([1., 1.]), array([1, 0]), array([2., 2.]))
    >>> certify(np.array([0.9, 0.2]), w, bounds=(0, 1)).radius.round(3)
    np.float64(0.35)
    >>> certify(np.array([0.9, 0.2]), w, bounds=(0.0, 1.0), norm=1).radius.round(3)
    np.float64(0.7)
    """
    options: dict[str, Any] = {"bias": bias, "target": target, "norm": norm, "bounds": bounds}
    return Certificate(*_certify(x, w, narrow=narrows_results(x), num_threads=num_threads, **options))
