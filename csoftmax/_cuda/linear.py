"""Cross-entropy of a linear layer on a CUDA device: cuBLAS through CuPy for the products, our kernel between them.

Rows are computed in chunks, so that the matrix of all logits never exists; all work is enqueued, and nothing waits.
Results repeat on one device with one version of cuBLAS; they are not the CPU's bits, because the products are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cpu import binding
from .cross_entropy import CrossEntropyInSteps


def _without_ignored_rows(x: Any, target: Any, sample_weight: Any) -> Any:
    """X with zeros in the rows that take no part: they may hold anything, and NaN or infinity times 0 is not 0."""
    import cupy

    is_kept = cupy.full(len(x), True, bool) if target.labels is None else target.labels != -1
    if sample_weight is not None:
        is_kept = is_kept & (sample_weight != 0)
    # as integers: CuPy's `where` converts bfloat16 to float32
    storage = x.view(np.uint16) if x.dtype.name == "bfloat16" else x
    return cupy.where(is_kept[:, None], storage, storage.dtype.type(0)).view(x.dtype)


def run_linear_loss(plan: Any, *, gradient: bool, reduction: str, chunk_rows: int) -> tuple[Any, Any, Any, Any]:
    """(loss, grad_x, grad_w, grad_bias) of a plan, chunk_rows rows at a time; without gradients, three times None."""
    import cupy

    (rows, features), classes, wide, options = plan.x.shape, len(plan.w), plan.compute, plan.options
    with cupy.cuda.Device(plan.x.device.id):
        by_row = plan.labels, plan.ignore, plan.soft, options.weight, options.sample_weight, options.upstream
        code, kind = binding.DTYPES[wide.name], binding.REDUCTIONS[reduction]
        steps = CrossEntropyInSteps(code, classes, *by_row, options.factors, reduction=kind, gradient=gradient)
        x = _without_ignored_rows(plan.x, steps.target, options.sample_weight)
        w = plan.w.astype(wide, copy=False)
        row_losses = cupy.empty(rows, wide) if reduction == "none" else None
        if gradient:
            grad_x, grad_w = cupy.empty(x.shape, x.dtype), cupy.full(w.shape, 0, wide)
            grad_bias = None if plan.bias is None else cupy.full(classes, 0, np.float64)
        buffer = cupy.empty((chunk_rows, classes), wide)
        for begin in range(0, rows, chunk_rows):
            chunk = slice(begin, min(begin + chunk_rows, rows))
            logits, x_chunk = buffer[: chunk.stop - begin], x[chunk].astype(wide, copy=False)
            cupy.matmul(x_chunk, w.T, out=logits)
            if plan.bias is not None:
                logits += plan.bias
            steps.run_rows(logits, logits if gradient else None, begin, row_losses)
            if gradient:
                grad_x[chunk] = cupy.matmul(logits, w)
                grad_w += cupy.matmul(logits.T, x_chunk)
                if grad_bias is not None:
                    grad_bias += logits.sum(axis=0, dtype=np.float64)
        if row_losses is not None:
            loss = row_losses.reshape(plan.batch)
        else:
            loss = cupy.empty((), wide)
            steps.reduce(loss)
    if not gradient:
        return loss, None, None, None
    dtype = plan.x.dtype
    bias = None if grad_bias is None else grad_bias.astype(dtype)
    return loss, grad_x.reshape(*plan.batch, features), grad_w.astype(dtype, copy=False), bias
