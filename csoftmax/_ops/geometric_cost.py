"""Costs between classes, and the similarities that g-softmax computes with."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign
from .._arguments.numbers import as_number, check_choice
from .._arguments.places import as_array, as_float
from .._cpu import binding
from .._cpu.apart import run_apart

__all__ = ["Cost"]

_Metric = Literal["sqeuclidean", "euclidean"]
METRICS = ("sqeuclidean", "euclidean")
ASYMMETRY = 1e-12  # relative to 1 + C: rounding of costs that were computed in both orders
NEGATIVE = 1e-10  # of an eigenvalue that counts as rounding
BLOCK = 1 << 22  # differences of coordinates that exist at a time


def _refuse_at(matrix: Any, bad: Any, what: str) -> None:
    """Raise for the first element that is marked."""
    if bad.any():
        i, j = np.unravel_index(int(bad.argmax()), bad.shape)
        raise ValueError(f"cost[{i}, {j}] is {matrix[i, j]}; {what}")


@accept_foreign
def _as_cost(cost: Any) -> Any:
    """A matrix of costs, checked but for its eigenvalues."""
    matrix, _ = as_float("cost", cost)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"cost has shape {matrix.shape}; one row and one column for each class, (K, K), are allowed")
    matrix = matrix.astype(np.float64)
    _refuse_at(matrix, np.isnan(matrix) | (matrix < 0), "costs are at least 0")
    is_off = np.zeros(matrix.shape, bool)
    np.fill_diagonal(is_off, np.diagonal(matrix) != 0)
    _refuse_at(matrix, is_off, "a class costs 0 to itself: numpy.fill_diagonal(cost, 0) removes what rounding has left")
    with np.errstate(invalid="ignore"):
        off = np.abs(matrix - matrix.T)  # NaN where both are infinite
    _refuse_at(matrix, off > ASYMMETRY * (1 + matrix), "that of the same two classes in the other order is different")
    return (matrix + matrix.T) / 2


@accept_foreign
def _cost_of_points(points: Any, metric: str, sigma: float) -> Any:
    points, _ = as_float("points", points)
    if points.ndim not in (1, 2):
        raise ValueError(
            f"points has shape {points.shape}; one row for each class, (K, D), or numbers, (K,), are allowed"
        )
    points = points.astype(np.float64).reshape(len(points), -1)
    if not np.isfinite(points).all():
        raise ValueError(f"points must be finite, got {points[~np.isfinite(points)][0]}")
    points /= sigma
    n = len(points)
    matrix = np.empty((n, n))
    step = max(1, BLOCK // max(1, points.size))
    for begin in range(0, n, step):
        difference = points[begin : begin + step, None] - points
        matrix[begin : begin + step] = np.add.reduce(difference * difference, axis=-1)
    return np.sqrt(matrix) if metric == "euclidean" else matrix


def _check_eigenvalues(similarities: Any) -> None:
    """Refuse a matrix with a negative eigenvalue: the minimum of the quadratic form would not be unique."""
    n = len(similarities)
    try:
        run_apart(n**3 / 3, np.linalg.cholesky, similarities + NEGATIVE * np.eye(n))
    except np.linalg.LinAlgError:
        least = float(run_apart(10.0 * n**3, np.linalg.eigvalsh, similarities)[0])
        if least < -NEGATIVE:
            raise ValueError(
                f"exp(-cost / 2) must be positive semidefinite, and its least eigenvalue is {least:.3g}: squared and "
                "plain Euclidean distances of points are allowed, among others"
            ) from None


class Cost:
    """The cost of confusing each two classes, checked and prepared once for many calls.

    Parameters
    ----------
    cost : array_like of shape (K, K), optional
        Symmetric and at least 0, with 0 on the diagonal; infinite costs are allowed. ``exp(-cost / 2)`` must be
        positive semidefinite.
    points : array_like of shape (K, D) or (K,), optional
        Instead of `cost`: a point for each class, whose distances are the costs.
    metric : {"sqeuclidean", "euclidean"}, default "sqeuclidean"
        Costs of points: the square of their Euclidean distance, or the distance itself.
    sigma : float > 0, default 1.0
        Unit of distance: points are divided by it.

    Attributes
    ----------
    matrix : ndarray of shape (K, K)
        The costs, float64, read-only.

    Raises
    ------
    TypeError
        If neither or both of `cost` and `points` are given, or one is not an array of real numbers.
    ValueError
        If the cost is not symmetric, is negative or NaN, is not 0 on the diagonal, or if ``exp(-cost / 2)`` has an
        eigenvalue below -1e-10; if a point is not finite.

    Notes
    -----
    With costs in units of sigma, ``exp(-cost / 2)`` is the Gaussian kernel of standard deviation sigma for
    "sqeuclidean". Classes of distance 0, in rounded numbers ``exp(-cost / 2) == 1``, are alternatives of each other:
    only the largest logit among them counts, and equal ones share their probability evenly.

    Examples
    --------
    >>> import csoftmax.geometric
    >>> ages = csoftmax.geometric.Cost(points=[20, 30, 40], sigma=10)
    >>> ages.matrix
    array([[0., 1., 4.],
           [1., 0., 1.],
           [4., 1., 0.]])
    >>> len(ages)
    3
    """

    def __init__(
        self,
        cost: ArrayLike | None = None,
        *,
        points: ArrayLike | None = None,
        metric: _Metric = "sqeuclidean",
        sigma: float = 1.0,
    ):
        if (cost is None) == (points is None):
            raise TypeError(f"either cost or points is needed, got {'neither' if cost is None else 'both'}")
        check_choice("metric", metric, METRICS)
        unit = as_number("sigma", sigma)
        if not 0 < unit < math.inf:
            raise ValueError(f"sigma must be positive and finite, got {sigma!r}")
        with np.errstate(over="ignore", under="ignore"):
            matrix = _as_cost(cost) if points is None else _cost_of_points(points, metric, unit)
            similarities = np.exp(matrix / -2)
        first = np.argmax(similarities == 1, axis=0) if len(matrix) else np.zeros(0, np.intp)
        while (first[first] != first).any():  # distances that round to 0 need not be transitive
            first = first[first]
        groups, group = np.unique(first, return_inverse=True)
        if points is None:
            _check_eigenvalues(similarities[np.ix_(groups, groups)])
        matrix.flags.writeable = False
        self.matrix: NDArray[np.float64] = matrix
        self._group = None if len(groups) == len(matrix) else group.reshape(-1).astype(np.int32)
        lanes = binding.GEOMETRIC_LANES
        self._similarities = np.zeros((len(groups), -(-len(groups) // lanes) * lanes))
        self._similarities[:, : len(groups)] = similarities[np.ix_(groups, groups)]

    def __len__(self) -> int:
        return len(self.matrix)

    def __repr__(self) -> str:
        return f"<Cost of {len(self)} classes>"


def as_cost(given: Any) -> Cost:
    """The argument `cost` of a function, a Cost or a matrix."""
    if isinstance(given, Cost):
        return given
    if given is None:
        raise TypeError("cost must be a Cost or a matrix of shape (K, K), got None")
    return Cost(as_array("cost", given))


def run_task(
    task: str,
    cost: Cost,
    x: Any,
    num_threads: Any,
    *,
    dy: Any = None,
    y: Any = None,
    excess: Any = None,
    gap: Any = None,
) -> None:
    """Compute a task of the core for rows of x; see csm_geometric."""
    number = binding.GEOMETRIC_TASKS[task]
    binding.run_geometric(number, cost._similarities, cost._group, x, dy, y, excess, gap, num_threads)
