"""A linear layer forward and backward, in chunks of rows, so that the matrix of all logits never exists.

For each chunk, a BLAS product gives the logits, the cross-entropy kernel turns them into their own gradient in place,
and two more products bring it to x and w. The gradient of w is accumulated in panels of classes, so that a product and
its sum stay in cache. Half types are widened panel by panel. With a limit, the products take only classes whose
gradient exceeds it in some row of the chunk.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import binding
from .apart import multiply, run_apart

CHUNK_BYTES = 64 << 20  # default size of a chunk's logits
HALF_CHUNK_BYTES = 48 << 20  # default for half types, which keep the gradient of w in float32 as well
MAX_CHUNK_ROWS = 1024
PANEL_BYTES = 4 << 20  # size of a panel of w, or of its gradient
KERNEL_SECONDS = 1e-9  # approximate time of the kernel for one element
SPIN_SECONDS = 0.01  # threads of the kernel and of the BLAS spin after their work, and take CPU time from each other


def kernel_threads(elements: int, num_threads: int | None) -> int | None:
    """Threads of the kernel between two products: one, unless more save more time than their spinning costs."""
    threads = num_threads or binding.get_threads()
    return num_threads if elements * KERNEL_SECONDS * (1 - 1 / threads) > SPIN_SECONDS else 1


class Layer:
    """logits = x w' + bias, forward and backward, for chunks of rows."""

    def __init__(self, x: Any, w: Any, bias: Any, compute: np.dtype[Any], gradient: bool):
        self.x, self.bias, self.compute = x, bias, compute
        self.is_half = w.dtype != compute
        is_contiguous = w.flags.c_contiguous or w.flags.f_contiguous
        self.w = w if is_contiguous else run_apart(w.nbytes, np.ascontiguousarray, w)
        classes, features = w.shape
        self.panel_classes = max(64, PANEL_BYTES // max(1, features * compute.itemsize) // 64 * 64)
        starts = range(0, classes, self.panel_classes)
        self.panels = [slice(k, min(k + self.panel_classes, classes)) for k in starts]
        if gradient:
            self.grad_x = np.zeros(x.shape, x.dtype)
            self.grad_w = binding.empty(w.shape, compute)
            self.grad_bias = np.zeros(len(w))

    def _weights(self, classes: Any) -> Any:
        return self.w[classes].astype(self.compute, copy=False)

    def forward(self, rows: slice, logits: Any) -> None:
        """Write the logits of a chunk."""
        x = self.x[rows].astype(self.compute, copy=False)
        if not self.is_half:
            multiply(x, self.w.T, logits)
        else:
            for panel in self.panels:
                multiply(x, self._weights(panel).T, logits[:, panel])
        if self.bias is not None:
            logits += self.bias

    def significant_classes(self, grad: Any, limit: Any) -> list[Any]:
        """The classes whose gradient exceeds the limit of some row, in pieces as large as a panel."""
        width = max(64, PANEL_BYTES // max(1, len(grad) * grad.itemsize))
        is_significant = np.empty(grad.shape[1], bool)
        for k in range(0, len(is_significant), width):
            np.all(np.abs(grad[:, k : k + width]) <= limit, axis=0, out=is_significant[k : k + width])
        np.logical_not(is_significant, out=is_significant)  # so that NaN, which is not <= the limit, counts
        classes = np.flatnonzero(is_significant)
        if len(classes) == len(is_significant):
            return self.panels
        return [classes[k : k + self.panel_classes] for k in range(0, len(classes), self.panel_classes)]

    def backward(self, rows: slice, grad: Any, pieces: list[Any] | None = None) -> None:
        """Add the part of a chunk to the gradients, of all classes or of those in pieces."""
        x = self.x[rows].astype(self.compute, copy=False)
        pieces = self.panels if pieces is None else pieces
        is_first = rows.start == 0
        if is_first and pieces is not self.panels:
            run_apart(self.grad_w.nbytes, self.grad_w.fill, 0)
            is_first = False
        for classes in pieces:
            if is_first:
                multiply(grad[:, classes].T, x, self.grad_w[classes])
            else:
                self.grad_w[classes] += multiply(grad[:, classes].T, x)
        if self.bias is not None:
            self.grad_bias += np.ones(len(grad), grad.dtype) @ grad
        if pieces is self.panels and not self.is_half:
            multiply(grad, self.w, self.grad_x[rows])
            return
        grad_x = np.zeros(x.shape, self.compute)
        for classes in pieces:
            grad_x += multiply(grad[:, classes], self._weights(classes))
        self.grad_x[rows] = grad_x

    def clear(self) -> None:
        """Make the gradient of w 0, where no chunk has written it; the others begin as 0."""
        run_apart(self.grad_w.nbytes, self.grad_w.fill, 0)

    def gradients(self) -> tuple[Any, Any, Any]:
        """The gradients of x, w and the bias (None without one), in the dtype of x."""
        if not len(self.x):
            self.clear()
        dtype = self.x.dtype
        grad_bias = None if self.bias is None else self.grad_bias.astype(dtype)
        grad_w = self.grad_w
        if grad_w.dtype != dtype:
            grad_w = run_apart(grad_w.nbytes, grad_w.astype, dtype)
        return self.grad_x, grad_w, grad_bias
