"""The shift of logits that bounds what a perturbation does to them: eps times dual norms of differences of weights."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from .._cpu import binding
from .adversarial import code_of_norm

CACHED_NORMS = 1 << 23  # of pairs of classes: 64 MiB; more are found for each chunk of rows


def find_dual_norms(w: Any, classes: Any, norm: float, num_threads: Any = None) -> Any:
    """The dual norms of w[c] - w[j] for the given classes c and all classes j, in float64."""
    w = np.ascontiguousarray(w, np.float64)
    out = np.empty((len(classes), len(w)))
    binding.run_dual_norms(w, np.ascontiguousarray(classes, np.int64), code_of_norm(norm), out, num_threads)
    return out


def find_smooth_norms(w: Any, classes: Any, norm: float, smoothing: float, num_threads: Any = None) -> Any:
    """The same, made smooth: sum of (a_i^2 + smoothing^2)^(1/2) - smoothing for norm inf, else that of the norm.

    They are below the norms by less than the smoothing (for norm inf, D times it), and differentiable, but for the
    ties of the largest elements for norm 1.
    """
    if norm == math.inf:
        return np.stack([(np.hypot(w - w[y], smoothing) - smoothing).sum(axis=1) for y in classes])
    return np.hypot(find_dual_norms(w, classes, norm, num_threads), smoothing) - smoothing


def find_subgradients(w: Any, y: int, norm: float, smoothing: float = 0.0) -> Any:
    """The gradients of the dual norms of w[j] - w[y] by w[j], of all classes j; 0 where the norm is 0."""
    a = w - w[y]
    if smoothing > 0:
        if norm == math.inf:
            return a / np.hypot(a, smoothing)
        length = find_dual_norms(w, [y], norm)[0][:, None]
        return find_subgradients(w, y, norm) * (length / np.hypot(length, smoothing))
    if norm == math.inf:
        return np.sign(a)
    size = np.abs(a)
    result = np.zeros_like(a)
    if norm == 1:
        if a.shape[1]:
            at = np.arange(len(a)), size.argmax(axis=1)
            result[at] = np.sign(a[at])
        return result
    top = size.max(axis=1, keepdims=True, initial=0)
    exponent = 1 / (norm - 1)
    size /= np.where(top > 0, top, 1)
    length = np.sum(size ** (exponent + 1), axis=1, keepdims=True) ** (1 - 1 / norm)
    size /= np.where(length > 0, length, 1)
    return np.copysign(size**exponent, a, out=result, where=size > 0)


def set_broken_rows(logits: Any) -> None:
    """Make the rows with logits that are not finite NaN: what a perturbation does to them is not defined."""
    broken = ~np.isfinite(logits).all(axis=1)
    if broken.any():
        logits[broken] = math.nan


class RobustShift:
    """eps times the dual norms of w_j - w_y, added to the logits of rows with label y."""

    def __init__(
        self,
        w: Any,
        labels: Any,
        eps: float,
        norm: float,
        num_threads: Any,
        groups: Any = None,
        smoothing: float = 0.0,
    ):
        """Find the norms; groups: the distinct labels and the place of each label among these, if they are known.

        smoothing: that of `find_smooth_norms`, for minimisations; 0 for the norms themselves.
        """
        self.w = np.ascontiguousarray(w, np.float64)
        self.labels, self.eps, self.norm, self.num_threads = labels, eps, norm, num_threads
        self.smoothing = smoothing
        found: Any = groups or np.unique(labels, return_inverse=True)
        classes, self.places = found
        is_cached = len(classes) * len(w) <= CACHED_NORMS
        self.norms = self.find_norms(classes) if is_cached else None
        self.sums: dict[int, Any] = {}  # of the gradients of logits, by label

    def find_norms(self, classes: Any) -> Any:
        """The norms of the differences of some classes from all."""
        if self.smoothing > 0:
            return find_smooth_norms(self.w, classes, self.norm, self.smoothing, self.num_threads)
        return find_dual_norms(self.w, classes, self.norm, self.num_threads)

    def part(self) -> RobustShift:
        """The same shift with sums of its own, for rows that another thread adds up."""
        other = copy.copy(self)
        other.sums = {}
        return other

    def add_part(self, part: RobustShift) -> None:
        """Add the sums of some of the rows."""
        for y, total in part.sums.items():
            self.sums[y] = self.sums[y] + total if y in self.sums else total

    def add_to(self, logits: Any, rows: slice) -> None:
        """Add to the logits of a chunk of rows."""
        set_broken_rows(logits)
        if self.norms is None:
            classes, places = np.unique(self.labels[rows], return_inverse=True)
            norms = self.find_norms(classes)
        else:
            norms, places = self.norms, self.places[rows]
        shift = (self.eps * norms).astype(logits.dtype, copy=False)
        logits += shift[places]
        infinite = np.isinf(shift)
        if infinite.any():  # the loss is infinite, not NaN: all of the probability is at these rivals
            at = np.flatnonzero(infinite[places].any(axis=1) & ~np.isnan(logits).any(axis=1))
            logits[at] = np.where(infinite[places[at]], 0, -math.inf)

    def take(self, grad: Any, rows: slice) -> None:
        """Add up the gradients of a chunk's logits by label."""
        labels = self.labels[rows]
        order = np.argsort(labels, kind="stable")
        classes, starts = np.unique(labels[order], return_index=True)
        sums = np.add.reduceat(grad[order], starts, axis=0, dtype=np.float64) if len(starts) else ()
        for y, total in zip(classes.tolist(), sums):
            self.sums[y] = self.sums[y] + total if y in self.sums else total

    def finish(self, grad_w: Any) -> None:
        """Add the part of the norms to the gradient of w."""
        part = np.zeros(self.w.shape)
        for y, total in self.sums.items():
            s = find_subgradients(self.w, y, self.norm, self.smoothing)
            part[y] -= total @ s
            s *= total[:, None]
            part += s
        part *= self.eps
        grad_w += part
