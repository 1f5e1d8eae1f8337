"""Cross-entropy of a linear layer on a CUDA device: cuBLAS through CuPy for the products, our kernel between them.

Rows are computed in chunks, so that the matrix of all logits never exists; all work is enqueued, and nothing waits.
Results repeat on one device with one version of cuBLAS; they are not the CPU's bits, because the products are not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._cpu import binding
from .cross_entropy import CrossEntropyInSteps


def _find_kept(steps: CrossEntropyInSteps) -> Any:
    """Whether each row takes part: it is not ignored, it has a weight, and a mean does not divide by 0."""
    import cupy

    labels, weight = steps.target.labels, steps.sample_weight
    is_kept = cupy.full(steps.count, True, bool) if labels is None else labels != -1
    if weight is not None:
        is_kept = is_kept & (weight != 0)
    is_bad = steps.target.masses != steps.target.masses if labels is None else labels == -2
    return is_kept & ((steps.divisor != 0) | is_bad)


def _select(is_kept: Any, rows: Any) -> Any:
    """Rows with zeros in those that take no part: they may hold anything, and NaN or infinity times 0 is not 0."""
    import cupy

    # as integers: CuPy's `where` converts bfloat16 to float32
    storage = rows.view(np.uint16) if rows.dtype.name == "bfloat16" else rows
    return cupy.where(is_kept[:, None], storage, storage.dtype.type(0)).view(rows.dtype)


def run_linear_loss(plan: Any, *, gradient: bool, reduction: str, chunk_rows: int) -> tuple[Any, Any, Any, Any]:
    """(loss, grad_x, grad_w, grad_bias) of a plan, chunk_rows rows at a time; without gradients, three times None."""
    import cupy

    (rows, features), classes, wide, options = plan.x.shape, len(plan.w), plan.compute, plan.options
    with cupy.cuda.Device(plan.x.device.id):
        by_row = plan.labels, plan.ignore, plan.soft, options.weight, options.sample_weight, options.upstream
        code, kind = binding.DTYPES[wide.name], binding.REDUCTIONS[reduction]
        rest = {"reduction": kind, "gradient": gradient, "temperatures": options.temperatures}
        rest["softcap"] = options.softcap
        steps = CrossEntropyInSteps(code, classes, *by_row, options.factors, **rest)
        is_kept = _find_kept(steps)
        x = _select(is_kept, plan.x)
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
                grad_x[chunk] = _select(is_kept[chunk], cupy.matmul(logits, w))
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
