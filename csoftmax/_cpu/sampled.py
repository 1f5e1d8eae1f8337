"""A linear layer of few of many classes: those that a batch samples, and its labels.

The logits of a chunk of rows have one column for each sampled class and, last, the label's. Classes that all rows share
are gathered once and multiplied by the BLAS; those of each row are gathered row by row, as labels are. Gradients of w
are collected by class: the part of the shared classes first, then each row's, in the order of the rows. Nothing of the
size of w is touched.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

from . import binding
from .apart import multiply
from .dtypes import as_buffer

LINE_ELEMENTS = 16  # of float32 in a cache line, to which rows of logits are padded
CHUNK_BYTES = 3 << 19  # default size of a chunk's logits, which then stay close between their passes
KEPT_BYTES = 16 << 20  # scratch of a thread that is kept for its next call


class Scratch:
    """Memory of one call, kept by the thread for its next one: fresh pages would cost more than a product.

    A call that fails does not give its memory back, because a product that was interrupted may still write to it.
    """

    _of_thread = threading.local()

    def __init__(self, size: int):
        kept = self._of_thread.__dict__.pop("memory", None)  # a handler that calls this again finds none
        self.memory = kept if kept is not None and kept.size >= size else np.empty(size, np.uint8)
        self.used = 0

    def take(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        """An array that is not initialised."""
        array: Any = np.ndarray(shape, dtype, self.memory, self.used)
        self.used += bytes_of(shape, dtype)
        return array

    def give_back(self) -> None:
        """Keep the memory for the next call."""
        if self.memory.size <= KEPT_BYTES:
            self._of_thread.memory = self.memory


def bytes_of(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """The bytes of an array, rounded up to whole cache lines."""
    return -(-math.prod(shape) * dtype.itemsize // 64) * 64


class SampledLayer:
    """logits = x w' + bias for the sampled classes `ids`, (m,) or (rows, m), and the labels."""

    def __init__(
        self, x: Any, w: Any, bias: Any, labels: Any, ids: Any, compute: np.dtype[Any], chunk_rows: int, threads: Any
    ):
        self.dtype, self.compute, self.num_threads = binding.DTYPES[x.dtype.name], compute, threads
        self.x, self.labels, self.ids, self.bias = np.require(x, None, ("C", "A")), labels, ids, bias
        self.is_shared = ids.ndim == 1
        self.rows, positions = np.unique(np.concatenate((ids.ravel(), labels)), return_inverse=True)
        positions = positions.reshape(-1)  # NumPy 2.0 gives them the shape of the ids
        self.id_positions, self.label_positions = positions[: ids.size], positions[ids.size :]
        self.w, at_ids, at_labels = w, ids, labels
        if w.strides[1] != w.itemsize or w.strides[0] % w.itemsize or not w.flags.aligned or w.size == 0:
            self.w = np.ascontiguousarray(w[self.rows])  # the kernels need contiguous rows
            at_ids, at_labels = self.id_positions.reshape(ids.shape), self.label_positions
        width, m, d = ids.shape[-1] + 1, ids.shape[-1], x.shape[1]
        padded = chunk_rows, -(-width // LINE_ELEMENTS) * LINE_ELEMENTS
        panels = 3 if self.is_shared else 0  # the gathered rows, their gradient, and that of a chunk
        self.scratch = Scratch(bytes_of(padded, compute) + panels * bytes_of((m, d), compute))
        self.logits = self.scratch.take(padded, compute)[:, :width]
        if self.is_shared:
            self.w_ids, self.grad_ids, self.grad_chunk = (self.scratch.take((m, d), compute) for _ in range(3))
            if self.w.dtype == compute:
                np.take(self.w, at_ids, axis=0, out=self.w_ids, mode="clip")
            else:
                self.w_ids[...] = self.w[at_ids]
            self.is_ascending = bool(np.all(ids[1:] > ids[:-1]))
            self.at = np.ascontiguousarray(at_labels[:, None])
        else:
            self.at = np.concatenate((at_ids, at_labels[:, None]), axis=1)

    def forward(self, rows: slice, logits: Any, shift: Any, label_shift: Any) -> None:
        """Write the logits of a chunk less the shifts of the classes, (m,) or (rows, m), and of the labels, (rows,)."""
        x, m = self.x[rows], self.ids.shape[-1]
        as_rows = as_buffer(self.w)
        if self.is_shared:
            multiply(x.astype(self.compute, copy=False), self.w_ids.T, logits[:, :m])
            binding.run_row_dots(self.dtype, as_buffer(x), as_rows, self.at[rows], logits[:, m:], self.num_threads)
            self._add(logits[:, :m], self.ids, shift)
        else:
            binding.run_row_dots(self.dtype, as_buffer(x), as_rows, self.at[rows], logits, self.num_threads)
            self._add(logits[:, :m], self.ids[rows], None if shift is None else shift[rows])
        self._add(logits[:, m], self.labels[rows], None if label_shift is None else label_shift[rows])

    def _add(self, logits: Any, classes: Any, shift: Any) -> None:
        """Add the bias of the classes less their shift: one rounding of the difference, one of the sum."""
        if self.bias is None and shift is None:
            return
        term = -shift if self.bias is None else self.bias[classes].astype(self.compute, copy=False)
        if self.bias is not None and shift is not None:
            term = term - shift  # in float64
        logits += term.astype(self.compute, copy=False)

    def mask_hits(self, rows: slice, logits: Any) -> None:
        """Set the logits of sampled classes that are their row's label to -inf."""
        labels = self.labels[rows]
        if not self.is_shared:
            logits[:, :-1][self.ids[rows] == labels[:, None]] = -np.inf
            return
        if self.is_ascending:  # so that each class has one column
            columns = np.full(len(self.rows), -1)
            columns[self.id_positions] = np.arange(len(self.ids))
            at = columns[self.label_positions[rows]]
            hits = np.flatnonzero(at >= 0)
            logits[hits, at[hits]] = -np.inf
            return
        order = np.argsort(self.ids, kind="stable")
        ids = self.ids[order]
        begin, end = np.searchsorted(ids, labels), np.searchsorted(ids, labels, side="right")
        for k in range(int(np.max(end - begin, initial=0))):  # the caller's ids may hold a class several times
            hits = np.flatnonzero(begin + k < end)
            logits[hits, order[begin[hits] + k]] = -np.inf

    def start_gradients(self) -> None:
        """Make the arrays that `backward` fills."""
        n, d = self.x.shape
        self.grad_x = np.zeros((n, d), self.compute)
        self.label_grad = np.zeros(n, self.compute)
        if self.is_shared:
            self.grad_bias_ids = np.zeros(len(self.ids))
            self.is_started = False  # whether grad_ids holds a sum
        else:
            self.row_grad = np.zeros(self.ids.shape, self.compute)

    def backward(self, rows: slice, grad: Any) -> None:
        """Add the part of a chunk, whose logits' gradient is given, to the gradients."""
        x, to, count = self.x[rows], self.grad_x[rows], len(grad)
        self.label_grad[rows] = grad[:, -1]
        if self.is_shared:
            shared = grad[:, :-1]
            wide = x.astype(self.compute, copy=False)
            multiply(shared, self.w_ids, to)
            if self.is_started:
                self.grad_ids += multiply(shared.T, wide, self.grad_chunk)
            else:
                multiply(shared.T, wide, self.grad_ids)
                self.is_started = True
            if self.bias is not None:
                self.grad_bias_ids += np.ones(count, self.compute) @ shared
            factors, offsets = self.label_grad[rows], np.arange(count + 1)
        else:
            self.row_grad[rows] = grad[:, :-1]
            factors, offsets = np.ascontiguousarray(grad), np.arange(count + 1) * grad.shape[1]
        at = np.ascontiguousarray(self.at[rows])
        binding.run_row_sums(self.dtype, offsets, factors, as_buffer(self.w), at, to, self.num_threads)

    def gradients(self) -> tuple[Any, Any, Any, Any]:
        """The gradient of x, and the rows, values and bias values of the gradient of w, in the dtype of x."""
        n, d = self.x.shape
        dtype = self.x.dtype
        rows = self.rows if n else self.rows[:0]
        values = np.zeros((len(rows), d), self.compute)
        bias: Any = None if self.bias is None else np.zeros(len(rows))
        if n and self.is_shared and self.is_started:
            if self.is_ascending:
                values[self.id_positions] = self.grad_ids
            else:
                ones = np.ones(len(self.ids), self.compute)
                self._scatter(binding.DTYPES[self.compute.name], self.id_positions, ones, self.grad_ids, None, values)
            self._scatter(self.dtype, self.label_positions, self.label_grad, self.x, None, values)
            if bias is not None:
                bias += np.bincount(self.id_positions, self.grad_bias_ids, len(rows))
                bias += np.bincount(self.label_positions, self.label_grad, len(rows))
        elif n and not self.is_shared:
            keys = np.concatenate((self.id_positions, self.label_positions))
            factors = np.concatenate((self.row_grad.ravel(), self.label_grad))
            source = np.concatenate((np.repeat(np.arange(n), self.ids.shape[1]), np.arange(n)))
            self._scatter(self.dtype, keys, factors, self.x, source, values)
            if bias is not None:
                bias += np.bincount(keys, factors, len(rows))
        bias = None if bias is None else bias.astype(dtype)
        return self.grad_x.astype(dtype, copy=False), rows, values.astype(dtype, copy=False), bias

    def _scatter(self, dtype: int, keys: Any, factors: Any, x: Any, source: Any, values: Any) -> None:
        """Add factor times its row of x to the values of its key, in the order of the terms."""
        offsets, order = binding.sort_rows(np.ascontiguousarray(keys), len(values))
        at = order if source is None else source[order]
        binding.run_row_sums(dtype, offsets, factors[order], as_buffer(x), at, values, self.num_threads)
