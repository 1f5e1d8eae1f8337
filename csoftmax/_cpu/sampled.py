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
from .dtypes import as_buffer, dtype_code

LINE_ELEMENTS = 16  # of float32 in a cache line, to which rows of logits are padded
PAGE_BYTES = 4096
CHUNK_BYTES = 1 << 22  # default size of a chunk's logits
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


def padded_length(length: int, dtype: np.dtype[Any]) -> int:
    """Elements from one row of logits to the next: whole cache lines, but no multiple of a page.

    Rows that begin at the same place of their pages share few sets of the first cache: the products take 2 % longer.
    """
    padded = -(-length // LINE_ELEMENTS) * LINE_ELEMENTS
    return padded if padded * dtype.itemsize % PAGE_BYTES else padded + LINE_ELEMENTS


class SampledLayer:
    """logits = x w' + bias for the sampled classes `ids`, (m,) or (rows, m), and the labels; losses and gradients."""

    def __init__(
        self, x: Any, w: Any, bias: Any, labels: Any, ids: Any, compute: np.dtype[Any], chunk_rows: int, threads: Any
    ):
        self.dtype, self.compute, self.num_threads = dtype_code(x.dtype), compute, threads
        self.x, self.w, self.labels, self.ids, self.bias = np.require(x, None, ("C", "A")), w, labels, ids, bias
        self.is_shared = ids.ndim == 1
        m, d = ids.shape[-1], x.shape[1]
        keys = np.concatenate((ids.ravel(), labels))
        # the distinct classes, and the terms of the gradient of each: the sampled part first
        self.rows, self.offsets, self.order, self.source = binding.group_rows(keys, m, not self.is_shared)
        self.at_ids, self.at_labels = ids, labels  # in w
        is_ready = w.dtype == x.dtype and w.flags.aligned and w.size > 0
        if not (is_ready and w.strides[1] == w.itemsize and w.strides[0] % w.itemsize == 0):
            self.w = np.ascontiguousarray(w[self.rows], x.dtype)  # the kernels need contiguous rows, native byte order
            self.at_ids = np.searchsorted(self.rows, ids)
            self.at_labels = np.searchsorted(self.rows, labels)
        self.as_rows = as_buffer(self.w)
        if not self.is_shared:  # the gradient of w needs the rows of logits without gaps between them
            self.scratch = Scratch(bytes_of((len(x), m + 1), compute))
            self.logits = self.scratch.take((len(x), m + 1), compute)
            return
        self.is_ascending = bool((ids[1:] > ids[:-1]).all())
        padded = chunk_rows, padded_length(m + 1, compute)
        # the logits of a chunk, the gathered rows, their gradient, and that of a chunk
        self.scratch = Scratch(bytes_of(padded, compute) + 3 * bytes_of((m, d), compute))
        self.logits = self.scratch.take(padded, compute)[:, : m + 1]
        self.w_ids, self.grad_ids, self.grad_chunk = (self.scratch.take((m, d), compute) for _ in range(3))
        if self.w.dtype == compute and self.w.flags.c_contiguous:  # of anything else np.take makes a copy
            np.take(self.w, self.at_ids, axis=0, out=self.w_ids, mode="clip")
        else:
            self.w_ids[...] = self.w[self.at_ids]

    def terms(self, classes: Any, shift: Any) -> Any:
        """The bias of classes less their shift, in one rounding; None: neither exists."""
        if self.bias is None:
            return None if shift is None else np.negative(shift).astype(self.compute, copy=False)
        term = self.bias[classes].astype(self.compute, copy=False)
        return term if shift is None else (term - shift).astype(self.compute, copy=False)  # in float64

    def hits(self) -> Any:
        """What `compute` needs to find the sampled classes that are their row's label."""
        if not self.is_shared:
            return ()
        if self.is_ascending:
            return self.at_ids, None
        order = np.argsort(self.at_ids, kind="stable")  # the caller's ids may hold a class several times
        return self.at_ids[order], order

    def compute_losses(
        self, rows: slice, *, is_softmax: bool, terms: Any, label_terms: Any, hits: Any, counts: Any, scale: Any,
        upstream: Any, losses: Any, sums: Any, gradient: bool, options: Any, threads: Any,
    ) -> None:  # fmt: skip
        """Write the losses of a chunk, whose logits become their gradient, and the sums of the latter over each row.

        terms, (1, m) or (rows, m), and label_terms are added to the logits; scale and upstream are those of the chunk.
        """
        x = self.x[rows]
        logits = self.logits[: len(x)]
        if self.is_shared:
            multiply(x.astype(self.compute, copy=False), self.w_ids.T, logits[:, :-1])
        binding.run_sampled_loss(
            self.dtype,
            is_softmax,
            as_buffer(x),
            self.as_rows,
            None if self.is_shared else self.at_ids[rows],
            self.at_labels[rows],
            logits,
            terms,
            label_terms,
            hits,
            counts,
            scale,
            upstream,
            losses,
            sums,
            self.grad_x[rows] if gradient and not self.is_shared else None,
            gradient,
            options.temperature,
            options.clip_norm,
            options.clip_value,
            threads,
        )
        if gradient and self.is_shared:
            self._add_shared(rows, x, logits)
        self.is_started = gradient

    def start_gradients(self) -> None:
        """Make the arrays that `compute_losses` fills; without a chunk they stay 0."""
        n, d = self.x.shape
        self.grad_x = binding.empty((n, d), self.compute)
        self.is_started = False
        if self.is_shared:
            self.label_grad = np.zeros(n, self.compute)
            self.grad_bias_ids = np.zeros(len(self.ids))

    def _add_shared(self, rows: slice, x: Any, grad: Any) -> None:
        """Add the part of a chunk with shared classes, whose logits' gradient is given, to the gradients."""
        to, count, shared = self.grad_x[rows], len(grad), grad[:, :-1]
        self.label_grad[rows] = grad[:, -1]
        wide = x.astype(self.compute, copy=False)
        multiply(shared, self.w_ids, to)
        if self.is_started:
            self.grad_ids += multiply(shared.T, wide, self.grad_chunk)
        else:
            multiply(shared.T, wide, self.grad_ids)
        if self.bias is not None:
            self.grad_bias_ids += np.ones(count, self.compute) @ shared
        labels, each = self.at_labels[rows], np.arange(count + 1)
        factors = self.label_grad[rows]
        binding.run_row_sums(self.dtype, each, factors, self.as_rows, labels, to, None, to, self.num_threads)

    def gradients(self) -> tuple[Any, Any, Any, Any]:
        """The gradient of x, and the rows, values and bias values of the gradient of w, in the dtype of x."""
        n, d = self.x.shape
        dtype = self.x.dtype
        if not self.is_started:
            rows = self.rows if n else self.rows[:0]
            bias = None if self.bias is None else np.zeros(len(rows), dtype)
            return np.zeros((n, d), dtype), rows, np.zeros((len(rows), d), dtype), bias
        values, bias = self._shared_values() if self.is_shared else self._gathered_values()
        bias = None if bias is None else bias.astype(dtype)
        return self.grad_x.astype(dtype, copy=False), self.rows, values.astype(dtype, copy=False), bias

    def _gathered_values(self) -> tuple[Any, Any]:
        """Values and bias values of the gradient of w, by class, where the classes of each row are its own."""
        values = binding.empty((len(self.rows), self.x.shape[1]), self.compute)
        factors = self.logits.reshape(-1)[self.order]
        x = as_buffer(self.x)
        binding.run_row_sums(self.dtype, self.offsets, factors, x, self.source, None, None, values, self.num_threads)
        if self.bias is None:
            return values, None
        classes = np.repeat(np.arange(len(self.rows)), np.diff(self.offsets))
        return values, np.bincount(classes, factors, len(self.rows))

    def _shared_values(self) -> tuple[Any, Any]:
        """The same where all rows share the sampled classes."""
        m, count = len(self.ids), len(self.rows)
        first: Any
        first, label_offsets, labels, id_offsets, columns, group = binding.split_terms(self.offsets, self.order, m)
        values = binding.empty((count, self.x.shape[1]), self.compute)
        start, of_labels = self.grad_ids, (label_offsets, self.label_grad[labels], as_buffer(self.x), labels)
        if not self.is_ascending:  # the caller's ids may hold a class several times
            code, ones = dtype_code(self.compute), np.ones(m, self.compute)
            of_ids = id_offsets, ones, self.grad_ids, columns
            binding.run_row_sums(code, *of_ids, None, None, values, self.num_threads)
            start, first = values, None
        binding.run_row_sums(self.dtype, *of_labels, start, first, values, self.num_threads)
        if self.bias is None:
            return values, None
        bias = np.bincount(group[m:], self.label_grad, count)
        bias += np.bincount(group[:m], self.grad_bias_ids, count) if m else 0
        return values, bias
