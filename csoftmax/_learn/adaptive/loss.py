"""The loss of an adaptive softmax and its gradients.

-log p(y) is the cross-entropy of the head plus, for a label in a cluster, that of its tail. The rows are sorted by
cluster once; each layer is computed on its rows alone, as in `csoftmax.linear_cross_entropy`: a product gives the
logits of some rows, the cross-entropy kernel turns them into their gradient in place, two products bring it on. Losses
are added in float64. The gradient of the features is that of the head, to which the clusters add theirs in order.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._arguments.foreign import as_native
from ..._arguments.labels import check_loss_options, check_target, is_representable, raise_bad_label
from ..._arguments.layers import add_up, count_chunk_rows, scale_weights, weigh
from ..._arguments.numbers import check_num_threads
from ..._arguments.places import as_array, as_float
from ..._cpu import binding
from ..._cpu.apart import multiply
from ..._cpu.linear import Layer, kernel_threads

if TYPE_CHECKING:
    from .state import LayerState


class LossPlan(NamedTuple):
    """A checked call: the rows that take part."""

    x: Any  # (n, D) in the dtype of the parameters
    ranks: NDArray[np.int64]  # of the labels
    scale: Any | None  # sample weight times class weight of each row
    upstream: Any | None  # of each row, over the divisor of the mean
    temperature: float
    reduction: str
    divisor: float
    kept: Any | None  # indices of these rows among those of the caller; None if all take part
    batch: tuple[int, ...]
    given: Any  # dtype of the caller's x
    num_threads: int | None


def check_features(layer: LayerState, x: Any) -> tuple[Any, Any]:
    """Features of shape (..., D) in the dtype of the parameters, and the dtype that their gradient has."""
    x, _ = as_float("x", as_native(x, "x"))
    if x.ndim == 0 or x.shape[-1] != layer.n_features:
        raise ValueError(f"x has shape {x.shape}; the layer has {layer.n_features} features: (..., D) is allowed")
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(layer.dtype, copy=False), x.dtype


def plan_loss(
    layer: LayerState,
    x: Any,
    target: Any,
    *,
    upstream: Any = None,
    reduction: Any,
    num_threads: Any,
    label_smoothing: Any = 0.0,
    **options: Any,
) -> LossPlan:
    """Check the arguments, and drop the rows that take no part."""
    x, given = check_features(layer, x)
    n, batch = layer.n_classes, x.shape[:-1]
    labels, soft = check_target(as_native(target, "target"), (*batch, n), batch, layer.dtype)
    if soft is not None:
        raise ValueError("soft labels need all classes: target must hold integer labels")
    options = {name: as_native(value, name) for name, value in options.items()}
    checked = check_loss_options(
        n, batch, layer.dtype, reduction, upstream=as_native(upstream, "upstream"), label_smoothing=label_smoothing,
        z_loss=0.0, **options,
    )  # fmt: skip
    if checked.label_smoothing:
        raise ValueError("label_smoothing needs all classes: it must be 0")
    num_threads = check_num_threads(layer.num_threads if num_threads is None else num_threads)
    labels = labels.copy()  # so that no other thread can change labels that have been checked
    raise_bad_label(labels, n, checked.ignore_index)
    rows = math.prod(batch)
    s, up = (
        None if v is None else np.ascontiguousarray(v).reshape(rows) for v in (checked.sample_weight, checked.upstream)
    )
    labels, x = labels.reshape(rows), x.reshape(rows, x.shape[-1])
    is_kept = np.ones(rows, bool) if s is None else s != 0
    if is_representable(checked.ignore_index, labels.dtype):
        is_kept &= labels != labels.dtype.type(checked.ignore_index)
    labels = labels.astype(np.int64, copy=False)
    kept = None if is_kept.all() else np.flatnonzero(is_kept)
    if kept is not None:
        x, labels, s, up = (None if v is None else v[kept] for v in (x, labels, s, up))
    is_mean = reduction == "mean"
    if is_mean and s is not None and s.size:
        s = scale_weights(s)
    if checked.weight is not None:
        s = weigh(s, checked.weight[labels].astype(np.float64), is_scaled=is_mean)
    divisor = 1.0
    if is_mean:
        divisor = float(len(x)) if s is None else add_up(s)
    if divisor not in (0, 1):
        with np.errstate(over="ignore", invalid="ignore"):
            up = (np.ones(len(x)) if up is None else up) / divisor
    ranks = layer.classes.rank[labels].astype(np.int64)
    return LossPlan(x, ranks, s, up, checked.temperature, reduction, divisor, kept, batch, given, num_threads)


def _run_layer(
    plan: LossPlan, x: Any, w: Any, bias: Any, labels: Any, rows: Any, losses: Any, gradient: bool
) -> tuple[Any, Any, Any]:
    """Add the cross-entropy of one layer on some rows (None: all) to the losses; gradients of x, w and bias."""
    scale, coefficient = (v if v is None or rows is None else v[rows] for v in (plan.scale, plan.upstream))
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
            binding.DTYPES[w.dtype.name],
            logits,
            logits if gradient else None,
            found[chunk],
            labels[chunk],
            *(None, None, None, s, upstream),
            *(plan.temperature, 0.0, 0.0, 0.0, 0.0),
            binding.REDUCTIONS["none"],
            threads,
        )
        if gradient:
            layer.backward(chunk, logits, None)
    if rows is None:
        losses += found
    else:
        losses[rows] += found
    return layer.gradients() if gradient else (None, None, None)


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@np.errstate(all="ignore")
def compute(layer: LayerState, plan: LossPlan, gradient: bool) -> tuple[Any, Any, dict[str, Any]]:
    """Row losses in float64, the gradient of x, and those of the parameters, without clusters that have no row."""
    losses = np.zeros(len(plan.x))
    if plan.divisor == 0 or not len(plan.x):
        return losses, np.zeros_like(plan.x), {}
    classes, parameters = layer.classes, layer.parameters
    clusters = classes.find_clusters(plan.ranks)
    labels = np.where(clusters < 0, plan.ranks, classes.shortlist + clusters)
    head_bias = parameters.get("head_bias")
    grad_x, grad_w, grad_bias = _run_layer(
        plan, plan.x, parameters["head"], head_bias, labels, None, losses, gradient
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
        labels = plan.ranks[rows] - ranks.start
        grad_hidden, grad_w, _ = _run_layer(
            plan, hidden, parameters[f"tail{c}"], None, labels, rows, losses, gradient
        )  # fmt: skip
        if gradient:
            gradients[f"projection{c}"] = multiply(grad_hidden.T, x)
            gradients[f"tail{c}"] = grad_w
            grad_x[rows] += multiply(grad_hidden, projection)
    return losses, grad_x, gradients


def reduce(plan: LossPlan, losses: NDArray[np.float64], dtype: Any) -> Any:
    """The loss in the form of the result, from the losses of the rows that take part."""
    if plan.reduction == "none":
        loss: Any = np.zeros(math.prod(plan.batch))
        loss[slice(None) if plan.kept is None else plan.kept] = losses
        loss = loss.reshape(plan.batch)
    else:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            loss = np.sum(losses) / np.float64(plan.divisor)
        loss = loss if loss == loss else np.nan  # on x86 the NaN of 0 / 0 is negative
    with np.errstate(over="ignore"):
        return np.asarray(loss).astype(dtype)[()]


def spread(plan: LossPlan, grad_x: Any) -> Any:
    """The gradient of all of the caller's rows, in the dtype of their features."""
    with np.errstate(over="ignore", under="ignore"):
        grad_x = grad_x.astype(plan.given, copy=False)
    if plan.kept is not None:
        every_row = np.zeros((math.prod(plan.batch), grad_x.shape[1]), grad_x.dtype)
        every_row[plan.kept] = grad_x
        grad_x = every_row
    return grad_x.reshape(*plan.batch, grad_x.shape[1])


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
