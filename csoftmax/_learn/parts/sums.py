"""Sums over the rows of a settled part, as flat float64 vectors: loss and gradient, moments, Hessian.

Nothing here depends on where arrays lie in memory: products of matrices by vectors do in some versions of BLAS, so that
columns are added row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..objective import Options, choose_block_rows, hessian_sums, is_sparse, limit_blas_to_one_thread, part_sums
from ..parameters import Rows
from .rows import SettledPart, own_memory


class Evaluate(NamedTuple):
    """An evaluation of the mean loss."""

    coef: NDArray[Any]
    intercept: NDArray[Any] | None
    options: Options
    divisor: float
    gradient: bool
    held_out: bool  # over the rows for early stopping


class Moments(NamedTuple):
    """Sums over the columns of X."""

    origin: NDArray[np.float64]  # subtracted from a dense X
    unit: NDArray[np.float64] | None  # of each column


class Curvature(NamedTuple):
    """A Hessian of the mean loss."""

    coef: NDArray[Any]
    intercept: NDArray[Any] | None
    options: Options
    origin: NDArray[np.float64] | float
    step: int  # every how manieth row of all takes part
    starts: list[int]  # number of the first row of each part among those for training


def split_rows(rows: Rows, classes: int) -> Iterator[tuple[slice, Any, Any, Any]]:
    """The rows of a part in blocks that stay in cache."""
    x, y, weight = rows
    step = choose_block_rows(x.shape[1], classes, x.dtype.itemsize)
    for begin in range(0, x.shape[0], step):
        part = slice(begin, min(begin + step, x.shape[0]))
        yield part, x[part], y[part], None if weight is None else weight[part]


def evaluate(part: SettledPart, payload: Evaluate, _number: int) -> NDArray[np.float64]:
    """Sum of the losses, weight of the rows classified correctly, and the part of the gradients of the mean."""
    coef = own_memory(payload.coef)
    intercept = None if payload.intercept is None else own_memory(payload.intercept)
    rows = part.held_out if payload.held_out else part.train
    size = coef.size + len(coef) if payload.gradient else 0
    vector = np.zeros(2 + size)
    if rows is None or rows[0].shape[0] == 0:
        return vector
    with limit_blas_to_one_thread(), np.errstate(over="ignore", invalid="ignore"):
        sums = part_sums(
            split_rows(rows, len(coef)), coef, intercept, payload.options, payload.divisor, gradient=payload.gradient
        )
    vector[:2] = sums.loss, sums.right
    if sums.grads is not None:
        vector[2 : 2 + coef.size] = sums.grads[0].ravel()
        vector[2 + coef.size :] = sums.grads[1]
    return vector


def add_columns(part: SettledPart, payload: Moments, _number: int) -> NDArray[np.float64]:
    """Weighted sums of each column less its origin, and of their squares."""
    x, _, weight = part.train
    sums = np.zeros((2, x.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for _, block, _, w in split_rows((x, part.train[1], weight), 1):
            block = block.astype(np.float64)
            if is_sparse(block):
                if payload.unit is not None:
                    block = block.multiply(1 / payload.unit).tocsr()
                w = np.ones(block.shape[0]) if w is None else w
                sums[0] += block.T @ w
                sums[1] += block.multiply(block).T @ w
                continue
            if payload.unit is not None:
                block /= payload.unit
            block -= payload.origin
            column = 1.0 if w is None else w[:, None]
            sums[0] += (block * column).sum(axis=0)
            sums[1] += (np.square(block) * column).sum(axis=0)
    return sums.ravel()


def add_hessians(part: SettledPart, payload: Curvature, number: int) -> NDArray[np.float64]:
    """Sum of the Hessians of some of the rows, and of their factors."""
    x, y, weight = part.train
    k, d = payload.coef.shape
    size = k * (d + (payload.intercept is not None))
    chosen = slice(-payload.starts[number] % payload.step, None, payload.step)
    y = y[chosen]
    if not len(y):
        return np.zeros(size * size + 1)
    weights = np.ones(len(y)) if weight is None else weight[chosen]
    parameters = own_memory(payload.coef), payload.intercept
    with limit_blas_to_one_thread(), np.errstate(over="ignore", invalid="ignore"):
        hessian, factors = hessian_sums(
            own_memory(x[chosen]), y, weights, parameters, payload.options, payload.origin, _call_each
        )
    return np.append(hessian.ravel(), factors)


def _call_each(function: Any, items: list[Any]) -> None:
    for item in items:
        function(item)
