"""Norm balls and boxes of perturbations, row by row: steepest directions, projections, largest reach."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .entmax import sparsemax


def row_norms(a: Any, norm: float) -> Any:
    """The norm of each row as a column; squares neither overflow nor underflow.

    Sums are in float64: those of a million squares in float32 are off by 3e-5.
    """
    size = np.abs(a)
    if norm == math.inf:
        return size.max(axis=1, keepdims=True, initial=0)
    if norm == 1:
        return size.sum(axis=1, keepdims=True, dtype=np.float64)
    top = size.max(axis=1, keepdims=True, initial=0)
    size /= np.where(top > 0, top, 1)
    return top * np.sqrt(np.einsum("ij,ij->i", size, size, dtype=np.float64))[:, None]


def scale_rows(u: Any) -> Any:
    """Divide rows by their largest elements, in place, so that products with them neither overflow nor underflow."""
    top = np.abs(u).max(axis=1, keepdims=True, initial=0)
    u /= np.where(top > 0, top, 1)
    return u


def find_directions(g: Any, norm: float) -> Any:
    """The perturbations of norm 1 along which linear functions with the gradients g rise most; 0 where g is 0.

    They may replace g: a new array of 128 KiB or more is memory that the system has to clear.
    """
    if norm == math.inf:
        return np.sign(g, out=g)
    if norm == 2:  # the dtype may hold g, and not its length
        scale_rows(g)
        length = np.sqrt(np.einsum("ij,ij->i", g, g, dtype=np.float64, casting="same_kind"))[:, None]
        g /= np.where(length > 0, length, 1).astype(g.dtype, copy=False)
        return g
    direction = np.zeros_like(g)
    if g.shape[1]:
        at = np.arange(len(g)), np.abs(g).argmax(axis=1)
        direction[at] = np.sign(g[at])
    return direction


def project_on_ball(delta: Any, eps: float, norm: float, num_threads: Any = None) -> Any:
    """The nearest perturbations of norm at most eps."""
    if norm == math.inf:
        return np.clip(delta, -eps, eps)
    length = row_norms(delta, norm)
    if norm == 2:  # the last factor keeps the norm of the rounded perturbation below eps
        below = 1 - float(np.finfo(delta.dtype).eps)
        factor = np.where(length > eps * below, eps * below / np.where(length > 0, length, 1), 1)
        return (delta * factor).astype(delta.dtype, copy=False)
    outside = np.flatnonzero(length > eps)
    if len(outside) and eps > 0:
        part = delta[outside]
        delta = delta.copy()
        # the nearest point of the simplex {u >= 0, sum u = 1} is sparsemax, which is 0 where u is 1 below the largest
        behind = np.abs(part)
        behind -= behind.max(axis=1, keepdims=True)
        nearest = sparsemax(np.maximum(behind, -2 * eps) / eps, num_threads=num_threads)
        delta[outside] = np.copysign(nearest * eps, part)
    return delta if eps > 0 else np.zeros_like(delta)


def reach_furthest(slope: Any, room: Any, budget: Any, norm: float) -> Any:
    """The 0 <= d <= room with ||d|| <= budget, a column, that have the largest slope . d; slope >= 0."""
    room = np.where(slope > 0, room, 0)
    if norm == math.inf:
        return np.minimum(room, budget)
    if norm == 1:
        order = np.argsort(-slope, axis=1, kind="stable")
        sorted_room = np.take_along_axis(room, order, axis=1)
        before = np.zeros_like(sorted_room)
        np.cumsum(sorted_room[:, :-1], axis=1, out=before[:, 1:])
        spent = np.clip(budget - before, 0, sorted_room)
        result = np.empty_like(spent)
        np.put_along_axis(result, order, spent, axis=1)
        return result
    unit = row_norms(slope, 2)  # in units of it, levels have the size of the budget
    slope = slope / np.where(unit > 0, unit, 1)
    level = np.zeros_like(budget)
    full = np.zeros(room.shape, bool)
    # Newton's method for the square of the level: the square of the norm is concave in it
    while True:
        spent = row_norms(np.where(full, room, 0), 2)
        rest = row_norms(np.where(full, 0, slope), 2)
        left = np.sqrt(np.maximum(budget - spent, 0)) * np.sqrt(budget + spent)
        level = np.maximum(level, np.where(rest > 0, left / np.where(rest > 0, rest, 1), level))
        now = full | (room < level * slope)
        if (now == full).all():
            return np.minimum(level * slope, room)
        full = now
