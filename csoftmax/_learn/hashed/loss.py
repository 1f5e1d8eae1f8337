"""The loss of a layer over buckets and its gradients.

The logits of all buckets are one product. `HashedSoftmax` has a softmax for each hash, and its loss is the mean of
their cross-entropies; that of `BloomSoftmax` is the cross-entropy of one softmax with soft labels, equal parts at the
buckets of a label. As in `csoftmax.linear_cross_entropy`, the kernel turns the logits of some rows into their gradient
in place, and two products bring it on. Losses are added in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..._arguments.layers import count_chunk_rows
from ..._cpu import binding
from ..._cpu.dtypes import dtype_code
from ..._cpu.linear import Layer, kernel_threads
from ..head_loss import LossPlan, add_squares, clip_scale, plan_loss, plan_norms, reduce, spread
from ..head_result import HeadResult
from .state import BucketLayer


def _spread_labels(buckets: Any, n_buckets: int, dtype: Any) -> Any:
    """Soft labels (n, B): for each bucket of a label its share of the hashes."""
    rows, hashes = buckets.shape
    flat = (buckets + np.arange(rows)[:, None] * n_buckets).reshape(-1)
    return (np.bincount(flat, minlength=rows * n_buckets) / hashes).astype(dtype).reshape(rows, n_buckets)


def _multiply_bound(clip_value: float, tables: int, dtype: Any) -> float:
    """A bound before the division by the number of tables, with which no result exceeds `clip_value` in the dtype."""
    mantissa, exponent = np.frexp(clip_value)
    bound = dtype.type(mantissa * tables)
    while dtype.type(float(bound) * (1 / tables)) > dtype.type(mantissa):
        bound = np.nextafter(bound, dtype.type(0))
    return float(np.ldexp(float(bound), exponent))


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@np.errstate(all="ignore")
def compute(layer: BucketLayer, plan: LossPlan, gradient: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Row losses in float64, the gradient of x, and those of the parameters."""
    if plan.divisor == 0 or not len(plan.x):
        return np.zeros(len(plan.x)), np.zeros_like(plan.x), {}
    if not (gradient and plan.clip_norm):
        return _visit(layer, plan, None, gradient)
    squares = np.zeros(len(plan.x))  # of the buckets of all hashes, which are clipped together
    losses, _, _ = _visit(layer, plan_norms(plan), squares, False)
    return losses, *_visit(layer, clip_scale(plan, squares), None, True)[1:]


def _visit(layer: BucketLayer, plan: LossPlan, squares: Any, gradient: bool) -> tuple[Any, Any, dict[str, Any]]:
    """The same without a clip of norms; squares: None, or where those of the gradients of logits are added."""
    losses = np.zeros(len(plan.x))
    parameters, tables, n = layer.parameters, layer._tables, layer.n_buckets
    w, dtype = parameters["w"], layer.dtype
    linear = Layer(plan.x, w, parameters.get("bias"), dtype, gradient)
    chunk_rows = count_chunk_rows(len(plan.x), len(w), dtype, None)
    buffer = binding.empty((chunk_rows, len(w)), dtype)
    threads = kernel_threads(buffer.size, plan.num_threads)
    for begin in range(0, len(plan.x), chunk_rows):
        chunk = slice(begin, min(begin + chunk_rows, len(plan.x)))
        rows = chunk.stop - begin
        logits = buffer[:rows]
        linear.forward(chunk, logits)
        buckets = layer._find_buckets(plan.labels[chunk])
        s, upstream = (None if v is None else np.repeat(v[chunk], tables) for v in (plan.scale, plan.upstream))
        if tables > 1:
            upstream = (np.ones(rows * tables) if upstream is None else upstream) / tables
        is_soft = buckets.shape[1] != tables
        found = np.zeros(rows * tables)
        every = logits.reshape(rows * tables, n)
        binding.run_cross_entropy(
            dtype_code(dtype),
            every,
            every if gradient or squares is not None else None,
            found,
            None if is_soft else buckets.reshape(-1),
            None,
            _spread_labels(buckets, n, dtype) if is_soft else None,
            *(None, s, upstream),
            *(plan.temperature, 0.0, 0.0, 0.0, _multiply_bound(plan.clip_value, tables, dtype)),
            binding.REDUCTIONS["none"],
            threads,
        )
        losses[chunk] = found.reshape(rows, tables).sum(axis=1) / tables
        if squares is not None:
            add_squares(squares[chunk], logits)
        if gradient:
            linear.backward(chunk, logits, None)
    if not gradient:
        return losses, None, {}
    grad_x, grad_w, grad_bias = linear.gradients()
    gradients = {"w": grad_w}
    if grad_bias is not None:
        gradients["bias"] = grad_bias
    return losses, grad_x, gradients


def compute_loss(layer: BucketLayer, x: Any, target: Any, **options: Any) -> Any:
    """The loss, in the form of the result."""
    plan = plan_loss(layer, x, target, **options)
    return reduce(plan, compute(layer, plan, False)[0], layer.dtype)


def compute_gradients(layer: BucketLayer, x: Any, target: Any, **options: Any) -> HeadResult:
    """The loss and all gradients."""
    plan = plan_loss(layer, x, target, **options)
    losses, grad_x, found = compute(layer, plan, True)
    gradients = {
        name: found[name] if name in found else np.zeros(a.shape, a.dtype) for name, a in layer.parameters.items()
    }
    return HeadResult(reduce(plan, losses, layer.dtype), spread(plan, grad_x), gradients)


def compute_step(layer: BucketLayer, x: Any, target: Any, sample_weight: Any, num_threads: Any) -> HeadResult:
    """The mean loss of a minibatch and its gradients, without those of parameters where no row takes part."""
    plan = plan_loss(
        layer, x, target, weight=None, sample_weight=sample_weight,
        ignore_index=None if layer.n_classes is None else -100, temperature=1.0,
        reduction="mean", upstream=1.0, num_threads=num_threads,
    )  # fmt: skip
    losses, grad_x, found = compute(layer, plan, True)
    return HeadResult(reduce(plan, losses, layer.dtype), spread(plan, grad_x), found)
