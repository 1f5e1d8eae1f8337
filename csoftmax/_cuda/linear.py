"""Cross-entropy of a linear layer on a CUDA device: cuBLAS through CuPy for the products, our kernel in between.

Rows in chunks, so that the matrix of all logits never exists; everything is enqueued, nothing waited for. Results are
repeatable for one device and one version of cuBLAS; they are not the CPU's bits, because the products are not.
"""

import numpy as np

from .._args import bits
from .._cpu import binding
from .._cpu.linear import rows_of_chunk
from . import Loss


def linear_loss(plan, *, gradient, reduction, chunk_bytes):
    """(loss, grad_x, grad_w, grad_bias), the last three None without `gradient`."""
    import cupy

    (rows, features), classes, wide, options = plan.x.shape, len(plan.w), plan.wide, plan.options
    with cupy.cuda.Device(plan.x.device.id):
        by_row = plan.labels, plan.ignore, plan.soft, options.weight, options.sample_weight, options.upstream
        code = binding.DTYPES[wide.name]
        task = Loss(code, classes, *by_row, options.factors, reduction=binding.REDUCTIONS[reduction], gradient=gradient)
        # a row that takes no part may hold anything, and anything times 0 is not always 0
        part = cupy.full(rows, True, bool) if task.labels is None else task.labels != -1
        if options.sample_weight is not None:
            part = part & (options.sample_weight != 0)
        given = bits(plan.x)  # CuPy chooses among bfloat16 numbers as float32
        x = cupy.where(part[:, None], given, given.dtype.type(0)).view(plan.x.dtype)
        w = plan.w.astype(wide, copy=False)
        each = cupy.empty(rows, wide) if reduction == "none" else None
        if gradient:
            grad_x, grad_w = cupy.empty(x.shape, x.dtype), cupy.full(w.shape, 0, wide)
            grad_bias = None if plan.bias is None else cupy.full(classes, 0, np.float64)
        step = rows_of_chunk(rows, classes, plan, chunk_bytes)
        buffer = cupy.empty((step, classes), wide)
        for begin in range(0, rows, step):
            chunk = slice(begin, min(begin + step, rows))
            logits, some = buffer[: chunk.stop - begin], x[chunk].astype(wide, copy=False)
            cupy.matmul(some, w.T, out=logits)
            if plan.bias is not None:
                logits += plan.bias
            task.rows(logits, logits if gradient else None, begin, each)
            if gradient:
                grad_x[chunk] = cupy.matmul(logits, w)
                grad_w += cupy.matmul(logits.T, some)
                if plan.bias is not None:
                    grad_bias += logits.sum(axis=0, dtype=np.float64)
        if each is not None:
            loss = each.reshape(plan.batch)
        else:
            loss = cupy.empty((), wide)
            task.reduce(loss)
    if not gradient:
        return loss, None, None, None
    dtype = plan.x.dtype
    grad_bias = None if plan.bias is None else grad_bias.astype(dtype)
    return loss, grad_x.reshape(*plan.batch, features), grad_w.astype(dtype, copy=False), grad_bias
