"""Geometry of margin softmax: lengths, angles to the targets, margins and their derivatives, projections.

Lengths, angles and all that concerns a row's target are double, whatever the dtype: the cosine alone, in float32,
knows no angle below 1e-3. The sine is the length of the residual of the projection, so that neither an arc cosine nor
the root of 1 - cos^2 is needed, whose derivatives are infinite where the angle is 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .linear import PANEL_BYTES

# Sines up to this are rounding: that of unit vectors, and of their inner product, is at most 2^-51.
SMALLEST_SINE = 2.0**-50
# Binary exponents of lengths whose reciprocals, and products with numbers up to 1, are far from overflow and underflow.
LARGEST_EXPONENT = {"float32": 60, "float64": 400}


class Margin(NamedTuple):
    """A checked margin: psi(theta) = cos(multiple theta + arc) - cosine, and its form beyond pi."""

    arc: Any  # a number, or one for each row
    cosine: Any
    multiple: float
    past_pi: str

    def of_rows(self, rows: slice) -> Margin:
        """The margin of some rows."""
        arc, cosine = (v[rows] if np.ndim(v) else v for v in (self.arc, self.cosine))
        return self._replace(arc=arc, cosine=cosine)

    def evaluate(self, theta: Any) -> tuple[Any, Any]:
        """Psi and its derivative."""
        phi = self.multiple * theta + self.arc
        if self.past_pi == "mirror":
            half_turns = np.floor(phi / math.pi)
            sign = 1 - 2 * np.mod(half_turns, 2)
            return sign * np.cos(phi) - 2 * half_turns - self.cosine, -sign * self.multiple * np.sin(phi)
        value, slope = np.cos(phi) - self.cosine, -self.multiple * np.sin(phi)
        if self.past_pi == "none":
            return value, slope
        if self.past_pi == "linear":
            is_past, instead = phi > math.pi, np.cos(theta) - self.arc * np.sin(self.arc)
        else:
            is_past, instead = theta >= math.pi / 2, np.cos(theta)
        return np.where(is_past, instead, value), np.where(is_past, -np.sin(theta), slope)


class Angles(NamedTuple):
    """Angles between unit vectors x and w, and the unit tangents at x that point to w; 0 where there is none."""

    theta: Any
    cosine: Any
    sine: Any
    tangent: Any

    def tangent_at_w(self, x: Any) -> Any:
        """The unit tangents at w that point to x, from w = cos x + sin tangent."""
        return self.sine[:, None] * x - self.cosine[:, None] * self.tangent


def measure_angles(x: Any, w: Any, is_zero: Any) -> Angles:
    """Angles between the rows of x and w, unit vectors in float64; pi / 2 where is_zero, where one of them is zero.

    The tangents at the latter have no effect, because gradients are divided by lengths, and 1 / 0 counts as 0.
    """
    cosine = np.einsum("ij,ij->i", x, w)
    tangent = w - cosine[:, None] * x
    tangent -= np.einsum("ij,ij->i", tangent, x)[:, None] * x  # what rounding has left along x
    sine = np.sqrt(np.einsum("ij,ij->i", tangent, tangent))
    tangent /= np.where(sine <= SMALLEST_SINE, 1, sine)[:, None]
    tangent[sine <= SMALLEST_SINE] = 0
    cosine[is_zero], sine[is_zero] = 0, 1
    return Angles(np.arctan2(sine, cosine), cosine, sine, tangent)


class Lengths(NamedTuple):
    """Rows with their lengths. Rows of extreme length are scaled by a power of two first: the direction is the same."""

    rows: Any
    length: Any  # of each row, float64; NaN if it holds NaN or infinity
    inverse: Any  # 1 / length, and 0 for zero vectors, whose cosines are 0
    exponent: Any | None  # the rows are those given, times 2 to the power of -exponent; None: as they were given

    def unit(self, rows: Any) -> Any:
        """Unit vectors of some rows, in float64; zero vectors stay zero."""
        return self.rows[rows].astype(np.float64) * self.inverse[rows][..., None]

    def scale_gradient(self, gradient: Any) -> Any:
        """The gradient of the given rows from that of the scaled ones."""
        return gradient if self.exponent is None else np.ldexp(gradient, -self.exponent[:, None])


def split_rows(rows: int, columns: int) -> Iterator[slice]:
    """Slices of rows that are a panel as float64."""
    step = max(64, PANEL_BYTES // max(1, 8 * columns))
    return (slice(begin, begin + step) for begin in range(0, rows, step))


def measure_lengths(a: Any, compute: np.dtype[Any]) -> Lengths:
    """The lengths of the rows of a matrix, from sums in float64."""
    squares = np.empty(len(a))
    for part in split_rows(*a.shape):
        block = a[part].astype(np.float64)
        squares[part] = np.einsum("ij,ij->i", block, block)
    length = np.sqrt(squares)
    limit = LARGEST_EXPONENT[compute.name]
    is_safe = (length >= 2.0**-limit) & (length <= 2.0**limit)
    if is_safe.all():
        return Lengths(a, length, 1 / length, None)
    exponent = np.zeros(len(a), np.intc)
    extreme = np.flatnonzero(~is_safe)
    rows = a
    for part in split_rows(len(extreme), a.shape[1]):
        at = extreme[part]
        block = a[at].astype(np.float64)
        largest = np.abs(block).max(axis=1, initial=0)  # NaN if there is one
        found = np.frexp(largest)[1]
        found[~np.isfinite(largest)] = 0
        block = np.ldexp(block, -found[:, None])
        length[at] = np.where(np.isfinite(largest), np.sqrt(np.einsum("ij,ij->i", block, block)), np.nan)
        if found.any():
            rows = a.astype(compute) if rows is a else rows  # rare: the only copy of w
            rows[at], exponent[at] = block, found
    return Lengths(rows, length, np.where(length == 0, 0, 1 / length), exponent if exponent.any() else None)


def unit_rows(lengths: Lengths, compute: np.dtype[Any]) -> Any:
    """All rows as unit vectors in the compute type; a row that is not finite becomes the canonical NaN."""
    result = np.empty(lengths.rows.shape, compute)
    for part in split_rows(*result.shape):
        result[part] = lengths.unit(part)
    result[np.isnan(lengths.length)] = np.nan
    return result


def set_canonical(gradient: Any, rows: Any) -> None:
    """Make every NaN in some rows the one that csoftmax writes."""
    for row in np.flatnonzero(rows):
        gradient[row][np.isnan(gradient[row])] = np.nan


def project_rows(gradient: Any, lengths: Lengths) -> None:
    """Remove from each row of a gradient, in place, its part along the row that it belongs to."""
    squares = lengths.inverse**2
    for part in split_rows(*gradient.shape):
        block = lengths.rows[part].astype(gradient.dtype, copy=False)
        along = np.einsum("ij,ij->i", gradient[part], block) * squares[part]
        gradient[part] -= along.astype(gradient.dtype)[:, None] * block
        if np.isnan(along).any():
            set_canonical(gradient[part], np.isnan(along))


def add_rows(gradient: Any, rows: Any, values: Any) -> None:
    """gradient[rows] += values, where rows may repeat: sums are in float64, in the order of the values."""
    order = np.argsort(rows, kind="stable")
    at, begin = np.unique(rows[order], return_index=True)
    if len(at):
        gradient[at] += np.add.reduceat(values[order], begin, axis=0).astype(gradient.dtype)


class Centers:
    """The cosines of classes that have several centres each: the largest, and which one it was."""

    def __init__(self, rows: int, classes: int, count: int, compute: np.dtype[Any]):
        self.count = count
        self.best = np.empty((rows, classes), compute)
        self.choice = np.empty((rows, classes), np.min_scalar_type(count - 1))

    def reduce(self, cosines: Any) -> Any:
        """The largest of each class, of (n, K * C) numbers; the lowest centre of equal ones is chosen."""
        each = cosines.reshape(len(cosines), -1, self.count)
        best, choice = self.best[: len(each)], self.choice[: len(each)]
        best[...] = each[..., 0]
        choice[...] = 0
        for center in range(1, self.count):
            choice[each[..., center] > best] = center
            np.maximum(best, each[..., center], out=best)
        return best

    def expand(self, gradient: Any, out: Any) -> None:
        """Write the gradient of each class to the centre that was chosen, 0 to the others."""
        each, choice = out.reshape(len(out), -1, self.count), self.choice[: len(out)]
        for center in range(self.count):
            np.multiply(gradient, choice == center, out=each[..., center])


def choose_centers(x: Any, w: Lengths, labels: Any, count: int) -> Any:
    """The rows of w that are the nearest centres of the labels, by cosines in float64; the lowest of equal ones."""
    first = labels * count
    chosen = first.copy()
    best = None
    for center in range(count if count > 1 else 0):
        cosine = np.einsum("ij,ij->i", x, w.unit(first + center))
        if best is None:
            best = cosine
        else:
            chosen[cosine > best] = first[cosine > best] + center
            best = np.maximum(best, cosine)
    return chosen
