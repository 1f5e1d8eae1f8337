"""The loss of an adaptive softmax and its gradients.

-log p(y) is the cross-entropy of the head plus, for a label in a cluster, that of its tail. The rows are sorted by
cluster once; each layer is computed on its rows alone, as in `csoftmax.linear_cross_entropy`: a product gives the
logits of some rows, the cross-entropy kernel turns them into their gradient in place, two products bring it on. Losses
are added in float64. The gradient of the features is that of the head, to which the clusters add theirs in order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..._arguments.foreign import as_native
from ..._arguments.labels import raise_bad_label
from ..._arguments.layers import count_chunk_rows
from ..._arguments.places import as_array
from ..._cpu import binding
from ..._cpu.apart import multiply
from ..._cpu.dtypes import dtype_code
from ..._cpu.linear import Layer, kernel_threads
from ..head_loss import LossPlan, add_squares, clip_scale, plan_norms

if TYPE_CHECKING:
    from .state import LayerState


def _run_layer(
    plan: LossPlan, x: Any, w: Any, bias: Any, labels: Any, rows: Any, losses: Any, squares: Any, gradient: bool
) -> tuple[Any, Any, Any]:
    """Add the cross-entropy of one layer on some rows (None: all) to the losses; gradients of x, w and bias.

    squares: None, or where the squares of the gradient of each row's logits are added.
    """
    rows = slice(None) if rows is None else rows
    scale, coefficient = (None if v is None else v[rows] for v in (plan.scale, plan.upstream))
    found_squares = None if squares is None else np.zeros(len(x))
    layer = Layer(x, w, bias, w.dtype, gradient)
    chunk_rows = count_chunk_rows(len(x), len(w), w.dtype, None)
    buffer = binding.empty((chunk_rows, len(w)), w.dtype)
    found = np.zeros(len(x))
    threads = kernel_threads(buffer.size, plan.num_threads)
    for begin in range(0, len(x), chunk_rows):
        chunk = slice(begin, min(begin + chunk_rows, len(x)))
        logits = buffer[: chunk.stop - begin]
        layer.forward(chunk, logits)
        s, upstream = (None if v is None else v[chunk] for v in (scale, coefficient))
        binding.run_cross_entropy(
            dtype_code(w.dtype),
            logits,
            logits if gradient or found_squares is not None else None,
            found[chunk],
            labels[chunk],
            *(None, None, None, s, upstream),
            *(plan.temperature, 0.0, 0.0, 0.0, plan.clip_value),
            binding.REDUCTIONS["none"],
            threads,
        )
        if found_squares is not None:
            add_squares(found_squares[chunk], logits)
        if gradient:
            layer.backward(chunk, logits, None)
    losses[rows] += found
    if found_squares is not None:
        squares[rows] += found_squares
    return layer.gradients() if gradient else (None, None, None)


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@np.errstate(all="ignore")
def compute(layer: LayerState, plan: LossPlan, gradient: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Row losses in float64, the gradient of x, and those of the parameters, without clusters that have no row."""
    losses = np.zeros(len(plan.x))
    if plan.divisor == 0 or not len(plan.x):
        return losses, np.zeros_like(plan.x), {}
    if not (gradient and plan.clip_norm):
        return losses, *_visit(layer, plan, losses, None, gradient)
    squares = np.zeros(len(plan.x))  # of the head and the cluster of a row, which are clipped together
    _visit(layer, plan_norms(plan), losses, squares, False)
    return losses, *_visit(layer, clip_scale(plan, squares), np.zeros(len(plan.x)), None, True)


def _visit(layer: LayerState, plan: LossPlan, losses: Any, squares: Any, gradient: bool) -> tuple[Any, dict[str, Any]]:
    """Add losses, and squares if they are wanted, of all layers; the gradient of x, and those of the parameters."""
    classes, parameters = layer.classes, layer.parameters
    ranks_of_labels = classes.rank[plan.labels].astype(np.int64)
    clusters = classes.find_clusters(ranks_of_labels)
    labels = np.where(clusters < 0, ranks_of_labels, classes.shortlist + clusters)
    head_bias = parameters.get("head_bias")
    grad_x, grad_w, grad_bias = _run_layer(
        plan, plan.x, parameters["head"], head_bias, labels, None, losses, squares, gradient
    )  # fmt: skip
    gradients = {"head": grad_w}
    if head_bias is not None:
        gradients["head_bias"] = grad_bias
    by_cluster = np.argsort(clusters, kind="stable")
    begins = np.searchsorted(clusters[by_cluster], np.arange(len(classes.clusters) + 1))
    for c, ranks in enumerate(classes.clusters):
        rows = by_cluster[begins[c] : begins[c + 1]]
        if not len(rows):
            continue
        projection, x = parameters[f"projection{c}"], plan.x[rows]
        hidden = multiply(x, projection.T)
        labels = ranks_of_labels[rows] - ranks.start
        grad_hidden, grad_w, _ = _run_layer(
            plan, hidden, parameters[f"tail{c}"], None, labels, rows, losses, squares, gradient
        )  # fmt: skip
        if gradient:
            gradients[f"projection{c}"] = multiply(grad_hidden.T, x)
            gradients[f"tail{c}"] = grad_w
            grad_x[rows] += multiply(grad_hidden, projection)
    return grad_x, gradients


def check_labels_of(layer: LayerState, target: Any, batch: tuple[int, ...]) -> NDArray[np.int64]:
    """One known class for each row."""
    given = as_array("target", as_native(target, "target"))
    if given.size == 0 and given.dtype.kind == "f":  # NumPy makes an empty list float64
        given = given.astype(np.int64)
    if given.dtype.kind not in "iu":
        raise TypeError(f"target must hold integer labels, got dtype {given.dtype}")
    if given.shape != batch:
        raise ValueError(f"target has shape {given.shape}; there is one label for each row, {batch}")
    labels = given.copy()
    raise_bad_label(labels, layer.n_classes, None)
    return labels.astype(np.int64, copy=False).reshape(math.prod(batch))
