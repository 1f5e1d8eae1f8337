"""Cross-entropy of a linear layer, rows in chunks: the matrix of all logits never exists.

A chunk of rows: logits = x w' + bias (BLAS), loss and gradient of the logits in place (our kernel), then their products
with w and x (BLAS).  The gradient of w is added to in panels of classes, so that a product and its sum stay in cache.
Half types are widened panel by panel.  With filter_eps the products take only the classes whose gradient counts in some
row of the chunk.
"""

import math

import numpy as np

from . import binding

CHUNK_BYTES = 64 << 20  # of logits, unless told otherwise
HALF_CHUNK_BYTES = 48 << 20  # where the gradient of w has to be kept in float32 as well
MOST_ROWS = 1024  # of a chunk
PANEL_BYTES = 4 << 20  # of w, or of its gradient
KERNEL_SECONDS = 1e-9  # of an element, about
SPIN_SECONDS = 0.01  # OpenMP's threads spin so long after a chunk, and the BLAS has that much less of the CPUs


def rows_of_chunk(rows, classes, plan, chunk_bytes):
    """As many as fit in chunk_bytes (of the plan's compute type), evenly over the chunks, at least 1."""
    chunk_bytes = chunk_bytes or (CHUNK_BYTES if plan.x.dtype == plan.wide else HALF_CHUNK_BYTES)
    most = max(1, min(MOST_ROWS, chunk_bytes // max(1, classes * plan.wide.itemsize)))
    return math.ceil(rows / math.ceil(rows / most)) if rows else 1


def kernel_threads(elements, num_threads):
    """For the kernel between two products: None (as many as there are) if that saves more than its threads cost."""
    threads = num_threads or binding.get_threads()
    return num_threads if elements * KERNEL_SECONDS * (1 - 1 / threads) > SPIN_SECONDS else 1


def panels(classes, features, itemsize):
    """Slices of the classes, and how many each has."""
    each = max(64, PANEL_BYTES // max(1, features * itemsize) // 64 * 64)
    return [slice(k, min(k + each, classes)) for k in range(0, classes, each)], each


class Layer:
    """x w' + bias, forward and backward, for chunks of rows of one plan."""

    def __init__(self, plan, gradient):
        self.x, self.bias, self.wide = plan.x, plan.bias, plan.wide
        self.narrow = plan.x.dtype != plan.wide
        contiguous = plan.w.flags.c_contiguous or plan.w.flags.f_contiguous
        self.w = plan.w if contiguous else np.ascontiguousarray(plan.w)
        self.panels, self.each = panels(*self.w.shape, self.wide.itemsize)
        if gradient:
            self.grad_x = np.zeros(plan.x.shape, plan.x.dtype)
            self.grad_w = binding.empty(plan.w.shape, self.wide)
            self.grad_bias = np.zeros(len(plan.w))

    def weights(self, classes):
        return self.w[classes].astype(self.wide, copy=False)

    def forward(self, rows, logits):
        x = self.x[rows].astype(self.wide, copy=False)
        if not self.narrow:
            np.matmul(x, self.w.T, out=logits)
        else:
            for panel in self.panels:
                np.matmul(x, self.weights(panel).T, out=logits[:, panel])
        if self.bias is not None:
            logits += self.bias

    def significant(self, grad, limit):
        """The classes of which some row's gradient exceeds its limit, in pieces of a panel's size."""
        width = max(64, PANEL_BYTES // max(1, len(grad) * grad.itemsize))
        counts = np.empty(grad.shape[1], bool)
        for k in range(0, len(counts), width):
            np.all(np.abs(grad[:, k : k + width]) <= limit, axis=0, out=counts[k : k + width])
        np.logical_not(counts, out=counts)  # of NaN too
        classes = np.flatnonzero(counts)
        if len(classes) == len(counts):
            return self.panels
        return [classes[k : k + self.each] for k in range(0, len(classes), self.each)]

    def backward(self, rows, grad, limit):
        """Adds to the gradients; limit: of what does not count, for each row, or None."""
        x = self.x[rows].astype(self.wide, copy=False)
        pieces = self.panels if limit is None else self.significant(grad, limit)
        first = rows.start == 0
        if first and pieces is not self.panels:
            self.grad_w.fill(0)
            first = False
        for classes in pieces:
            if first:
                np.matmul(grad[:, classes].T, x, out=self.grad_w[classes])
            else:
                self.grad_w[classes] += grad[:, classes].T @ x
        if self.bias is not None:
            self.grad_bias += np.ones(len(grad), grad.dtype) @ grad
        if pieces is self.panels and not self.narrow:
            np.matmul(grad, self.w, out=self.grad_x[rows])
            return
        grad_x = np.zeros(x.shape, self.wide)
        for classes in pieces:
            grad_x += grad[:, classes] @ self.weights(classes)
        self.grad_x[rows] = grad_x

    def gradients(self, plan):
        """In the dtypes and shapes of the caller's arrays."""
        grad_x, dtype = self.grad_x, plan.x.dtype
        if not len(self.x):
            self.grad_w.fill(0)
        if plan.kept is not None:
            grad_x = np.zeros((math.prod(plan.batch), plan.x.shape[1]), dtype)
            grad_x[plan.kept] = self.grad_x
        grad_bias = None if self.bias is None else self.grad_bias.astype(dtype)
        return grad_x.reshape(*plan.batch, plan.x.shape[1]), self.grad_w.astype(dtype, copy=False), grad_bias


def linear_loss(plan, *, gradient, reduction, chunk_bytes, filter_eps, num_threads):
    """(loss, grad_x, grad_w, grad_bias), the last three None without `gradient`."""
    if plan.on_cuda:
        from .._cuda import linear

        return linear.linear_loss(plan, gradient=gradient, reduction=reduction, chunk_bytes=chunk_bytes)
    return linear_loss_on_cpu(plan, gradient, reduction, chunk_bytes, filter_eps, num_threads)


# What overflows or is NaN is a result, as in the kernels, and no reason for a warning of NumPy's.
@np.errstate(all="ignore")
def linear_loss_on_cpu(plan, gradient, reduction, chunk_bytes, filter_eps, num_threads):
    options, (rows, classes) = plan.options, (len(plan.x), len(plan.w))
    # the kernel's own reduction is none: the mean's divisor is known
    coefficient = np.ones(rows) if options.upstream is None else options.upstream
    coefficient = coefficient / plan.divisor
    layer = Layer(plan, gradient)
    code = binding.DTYPES[plan.wide.name]
    losses = np.zeros(rows)
    step = rows_of_chunk(rows, classes, plan, chunk_bytes)
    buffer = binding.empty((step, classes), plan.wide)
    num_threads = kernel_threads(buffer.size, num_threads)
    for begin in range(0, rows, step):
        part = slice(begin, min(begin + step, rows))
        logits = buffer[: part.stop - begin]
        layer.forward(part, logits)
        labels, soft, sample_weight, upstream = (
            None if v is None else v[part] for v in (plan.labels, plan.soft, options.sample_weight, coefficient)
        )
        bad = binding.run_loss(
            code,
            logits,
            logits if gradient else None,
            losses[part],
            labels,
            None,
            soft,
            options.weight,
            sample_weight,
            upstream,
            *options.factors,
            binding.REDUCTIONS["none"],
            num_threads,
        )
        if bad is not None:
            raise RuntimeError("target was changed by another thread during the call")
        if gradient:
            layer.backward(part, logits, filter_eps * np.abs(upstream)[:, None] if filter_eps else None)
    if reduction == "none":
        loss = np.zeros(math.prod(plan.batch))
        loss[slice(None) if plan.kept is None else plan.kept] = losses
        loss = loss.reshape(plan.batch)
    else:
        loss = np.sum(losses) / np.float64(plan.divisor)
        loss = loss if loss == loss else np.nan  # x86 gives 0 / 0 a sign
    loss = np.asarray(loss).astype(plan.wide)[()]
    return (loss, *layer.gradients(plan)) if gradient else (loss, None, None, None)
