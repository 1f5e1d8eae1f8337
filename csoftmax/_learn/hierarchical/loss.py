"""The plan and the computation of losses of a hierarchical softmax, their gradients, and steps of training.

A layer is the `Parts` of a `HierarchicalSoftmax`, which stay the same during a call; head.py uses this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..._arguments.foreign import as_native
from ..._arguments.labels import check_loss_options, check_target, is_representable, raise_bad_label, refuse_smoothing
from ..._arguments.layers import add_up, scale_weights, weigh
from ..._arguments.numbers import check_num_threads
from ..._arguments.places import as_float
from ..._cpu import binding
from ..._cpu.dtypes import dtype_code
from ..._ops.row_optimizer import RowOptimizer, begin_step, check_state, end_step
from ..._ops.rows import RowGradient
from .tree import shape_of

LARGE = 1e30  # losses below it fit float32
MAX_ENTRIES = 1 << 22  # nodes on the paths of a part of the rows, of 40 bytes each


class Plan(NamedTuple):
    """A checked call."""

    x: Any  # (n, D) in the dtype of the layer, contiguous
    labels: NDArray[np.int64]  # -1 for rows that take no part
    scale: Any | None  # sample weight times class weight of each row
    upstream: Any | None  # of each row, over the divisor of the mean
    temperature: float
    clip_norm: float
    clip_value: float
    reduction: str
    divisor: float
    batch: tuple[int, ...]
    given: Any  # dtype of the caller's x
    num_threads: Any


def check_features(layer: Any, x: Any) -> tuple[Any, tuple[int, ...], Any]:
    """Features (n, D) in the dtype of the layer, the shape of the rows, and the dtype that their gradient has."""
    x, _ = as_float("x", as_native(x, "x"))
    if x.ndim == 0 or x.shape[-1] != layer.n_features:
        raise ValueError(f"x has shape {x.shape}; the layer has {layer.n_features} features: (..., D) is allowed")
    batch = x.shape[:-1]
    with np.errstate(over="ignore", under="ignore"):
        rows = np.ascontiguousarray(x.reshape(math.prod(batch), x.shape[-1]), layer.dtype)
    return rows, batch, x.dtype


def plan_quickly(layer: Any, x: Any, target: Any, num_threads: Any) -> Plan | None:
    """The plan of a mean without options where arrays need no conversion, which takes a fifth of the time; or None."""
    is_plain = type(x) is np.ndarray and type(target) is np.ndarray and x.ndim == 2 and x.flags.c_contiguous
    if not is_plain or x.dtype != layer.dtype or target.shape != x.shape[:1] or target.dtype.kind not in "iu":
        return None
    if not len(x) or x.shape[1] != layer.n_features or not x.flags.aligned:
        return None
    labels = target.astype(np.int64)
    if labels.view(np.uint64).max() >= layer.n_classes:  # negative numbers are very large ones
        return None
    up = np.full(len(x), 1.0 / len(x))
    return Plan(x, labels, None, up, 1.0, 0.0, 0.0, "mean", float(len(x)), x.shape[:1], x.dtype, num_threads)


def plan_loss(
    layer: Any,
    x: Any,
    target: Any,
    *,
    reduction: Any = "mean",
    num_threads: Any = None,
    label_smoothing: Any = 0.0,
    **options: Any,
) -> Plan:
    """Check the arguments of a loss."""
    x, batch, given = check_features(layer, x)
    n, rows = layer.n_classes, math.prod(batch)
    labels, soft = check_target(as_native(target, "target"), (*batch, n), batch, layer.dtype)
    if soft is not None:
        raise ValueError("soft labels need all classes: target must hold integer labels")
    options = {name: as_native(value, name) for name, value in options.items()}
    checked = check_loss_options(
        n, batch, layer.dtype, reduction, label_smoothing=label_smoothing, z_loss=0.0, **options
    )
    refuse_smoothing(checked.label_smoothing)
    num_threads = check_num_threads(layer.num_threads if num_threads is None else num_threads)
    labels = labels.reshape(rows).copy()  # so that no other thread can change labels that have been checked
    raise_bad_label(labels.reshape(batch), n, checked.ignore_index)
    s, up = (
        None if v is None else np.ascontiguousarray(v).reshape(rows) for v in (checked.sample_weight, checked.upstream)
    )
    left_out = None if s is None else s == 0
    if is_representable(checked.ignore_index, labels.dtype):
        is_ignored = labels == labels.dtype.type(checked.ignore_index)
        left_out = is_ignored if left_out is None else left_out | is_ignored
    labels = labels.astype(np.int64)
    kept = rows
    if left_out is not None and left_out.any():
        labels[left_out] = -1
        kept -= int(left_out.sum())
        s = None if s is None else np.where(left_out, 0, s)
    # a clip compares a row with a number, so that its weight counts as it is
    is_mean = reduction == "mean" and kept > 0 and not (checked.clip_norm or checked.clip_value)
    if is_mean and s is not None:
        s = scale_weights(s)
    if checked.weight is not None:
        weight = np.where(labels < 0, 0, checked.weight[labels]).astype(np.float64)
        s = weigh(s, weight, is_scaled=is_mean)
    divisor = 1.0
    if reduction == "mean":
        divisor = float(kept) if s is None else add_up(s[labels >= 0])
    if divisor == 0:  # a mean that divides by 0 has a gradient of 0 whatever its rows hold
        labels[...] = -1
    elif divisor != 1:
        with np.errstate(over="ignore", invalid="ignore"):
            up = (np.ones(rows) if up is None else up) / divisor
    return Plan(
        *(x, labels, s, up, checked.temperature, checked.clip_norm, checked.clip_value, reduction, divisor, batch),
        *(given, num_threads),
    )


def plan_step(layer: Any, x: Any, target: Any, sample_weight: Any, num_threads: Any) -> Plan:
    """The plan of a step of training."""
    threads = layer.num_threads if num_threads is None else num_threads
    plan = plan_quickly(layer, x, target, threads) if sample_weight is None else None
    return plan or plan_loss(
        layer, x, target, weight=None, sample_weight=sample_weight, ignore_index=-100, temperature=1.0, upstream=1.0,
        num_threads=threads,
    )  # fmt: skip


def _parts(layer: Any, labels: NDArray[np.int64]) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Rows whose paths have up to MAX_ENTRIES nodes, or one row, and the places of the paths."""
    lengths = shape_of(layer.tree).depth[labels]
    if labels.min(initial=0) < 0:
        lengths[labels < 0] = 0
    ends = np.zeros(len(labels) + 1, np.int64)
    np.cumsum(lengths, out=ends[1:])
    begin = 0
    while begin < len(labels):
        last = len(labels)
        if ends[-1] - ends[begin] > MAX_ENTRIES:
            last = max(begin + 1, int(np.searchsorted(ends, ends[begin] + MAX_ENTRIES, side="right")) - 1)
        yield slice(begin, last), ends[begin : last + 1] - ends[begin]
        begin = last


def make_call(layer: Any, x: Any, temperature: float, num_threads: Any) -> Any:
    return binding.TreeCall(
        dtype_code(layer.dtype), shape_of(layer.tree), layer.theta, layer.bias, x, temperature, num_threads
    )


def _losses(layer: Any, plan: Plan, gradient: bool) -> Iterator[tuple[slice, Any]]:
    """Losses of parts of the rows, computed."""
    for rows, offsets in _parts(layer, plan.labels):
        scale, upstream = (None if v is None else np.ascontiguousarray(v[rows]) for v in (plan.scale, plan.upstream))
        loss = binding.TreeLoss(
            make_call(layer, plan.x[rows], plan.temperature, plan.num_threads),
            *(plan.labels[rows], offsets, scale, upstream, plan.clip_norm, plan.clip_value, True, gradient),
        )
        loss.run()
        yield rows, loss


def _reduced(plan: Plan, losses: NDArray[np.float64], dtype: Any) -> Any:
    """The loss in the form of the result."""
    if plan.reduction == "none":
        return losses.reshape(plan.batch).astype(dtype)[()]
    loss = math.nan if plan.divisor == 0 else add_up(losses) / plan.divisor
    if abs(loss) < LARGE:
        return dtype.type(loss)
    with np.errstate(over="ignore"):
        return dtype.type(loss if loss == loss else np.nan)  # on x86 the NaN of inf - inf is negative


def compute_loss(layer: Any, plan: Plan) -> Any:
    """The loss."""
    losses = np.zeros(len(plan.labels))
    for rows, part in _losses(layer, plan, False):
        losses[rows] = part.loss
    return _reduced(plan, losses, layer.dtype)


def compute_gradients(layer: Any, plan: Plan) -> tuple[Any, Any, dict[str, RowGradient]]:
    """The loss, the gradient of x, and those of the parameters; rows of frozen nodes are left out."""
    losses, grad_x = np.zeros(len(plan.labels)), np.zeros(plan.x.shape, layer.dtype)
    found: Any = None
    for rows, part in _losses(layer, plan, True):
        losses[rows], grad_x[rows] = part.loss, part.grad_x
        found = _join(found, part.gradients(layer.bias is not None))
    if found is None:
        empty = np.zeros(0, layer.dtype)
        found = np.zeros(0, np.int64), empty.reshape(0, layer.n_features), empty
    nodes, values, biases = found
    frozen = layer.frozen_nodes
    if frozen is not None:
        kept = frozen[nodes] == 0
        nodes, values, biases = nodes[kept], values[kept], None if layer.bias is None else biases[kept]
    gradients = {"theta": RowGradient(nodes, values)}
    if layer.bias is not None:
        gradients["bias"] = RowGradient(nodes, biases)
    with np.errstate(over="ignore", under="ignore"):
        grad_x = grad_x.astype(plan.given, copy=False).reshape(*plan.batch, layer.n_features)
    return _reduced(plan, losses, layer.dtype), grad_x, gradients


def _join(first: Any, second: Any) -> Any:
    """The sum of two gradients of rows."""
    if first is None:
        return second
    nodes = np.union1d(first[0], second[0])
    sums = [None if v is None else np.zeros((len(nodes), *v.shape[1:]), v.dtype) for v in second[1:]]
    with np.errstate(over="ignore", invalid="ignore"):
        for part in (first, second):
            at = np.searchsorted(nodes, part[0])
            for total, values in zip(sums, part[1:], strict=True):
                if total is not None:
                    total[at] += values
    return nodes, *sums


def take_step(layer: Any, plan: Plan, weights: RowOptimizer, biases: RowOptimizer) -> tuple[Any, Any]:
    """Let the optimisers move theta and the bias, which has no decay; the loss and the gradient of x before that.

    The gradient of a node is used while it is in cache; if the paths are too long for that, all are collected first.
    """
    parts = list(_parts(layer, plan.labels))
    if len(parts) != 1:
        # all states before the first update, so that a refused step changes nothing
        check_state(weights, "theta", layer.theta)
        if layer.bias is not None:
            check_state(biases, "bias", layer.bias)
        loss, grad_x, gradients = compute_gradients(layer, plan)
        weights.update("theta", layer.theta, gradients["theta"])
        if layer.bias is not None:
            biases.update("bias", layer.bias, gradients["bias"])
        return loss, grad_x
    states = {"theta": begin_step(weights, "theta", layer.theta)}
    of_bias: Any = None
    if layer.bias is not None:
        states["bias"] = begin_step(biases, "bias", layer.bias)
        of_bias = layer.bias, 0.0, *states["bias"][2:5], None, states["bias"].step
    part = binding.TreeLoss(
        make_call(layer, plan.x, plan.temperature, plan.num_threads),
        *(plan.labels, parts[0][1], plan.scale, plan.upstream, plan.clip_norm, plan.clip_value, True, True),
    )
    part.run()
    of_theta = layer.theta, weights.penalty_l2, *states["theta"][2:6], states["theta"].step
    part.step(binding.OPTIMIZERS[weights.kind], weights.learning_rate, of_theta, of_bias, layer.frozen_nodes)
    end_step(weights, "theta", states["theta"])
    if layer.bias is not None:
        end_step(biases, "bias", states["bias"])
    grad_x = part.grad_x
    assert grad_x is not None
    if plan.given != layer.dtype:
        with np.errstate(over="ignore", under="ignore"):
            grad_x = grad_x.astype(plan.given)
    if len(plan.batch) != 1:
        grad_x = grad_x.reshape(*plan.batch, layer.n_features)
    return _reduced(plan, part.loss, layer.dtype), grad_x


def compute_log_proba_of(layer: Any, x: Any, labels: NDArray[np.int64], num_threads: Any) -> Any:
    """Log-probabilities of one class for each row, in float64."""
    result = np.zeros(len(labels))
    for rows, offsets in _parts(layer, labels):
        loss = binding.TreeLoss(
            make_call(layer, x[rows], 1.0, num_threads), labels[rows], offsets, None, None, 0.0, 0.0, False, False
        )
        loss.run()
        result[rows] = loss.loss
    return result


def compute_log_proba(layer: Any, x: Any, num_threads: Any) -> Any:
    """Log-probabilities of all classes, in float64."""
    result = np.empty((len(x), layer.n_classes))
    make_call(layer, x, 1.0, num_threads).log_proba(result)
    return result


def search(layer: Any, x: Any, k: int, num_threads: Any) -> tuple[Any, Any, Any]:
    """Log-probabilities and indices of the k best classes, and the number of nodes that were evaluated for each row."""
    values, indices, evaluated = np.empty((len(x), k)), np.empty((len(x), k), np.int64), np.zeros(len(x), np.int64)
    if k:
        make_call(layer, x, 1.0, num_threads).topk(k, values, indices, evaluated)
    return values, indices, evaluated


LEVELS = 16  # for which random numbers are drawn at a time
DRAWS = 1 << 18  # that are on their way down at a time: 32 MB of random numbers


def draw(layer: Any, x: Any, draws: int, rng: np.random.Generator, num_threads: Any) -> Any:
    """Classes of walks from the root, (n, draws)."""
    total = len(x) * draws
    classes = np.empty(total, np.int64)
    call = make_call(layer, x, 1.0, num_threads)
    for begin in range(0, total, DRAWS):
        of_part = np.arange(begin, min(begin + DRAWS, total)) // draws
        classes[begin : begin + DRAWS] = _walk(layer, call, of_part, rng)
    return classes.reshape(len(x), draws)


def _walk(layer: Any, call: Any, rows: Any, rng: np.random.Generator) -> Any:
    """The classes of one walk for each of these rows of x."""
    places = np.full(len(rows), layer.tree.root)
    active = np.arange(len(rows) if layer.n_classes > 1 else 0)
    left = layer.tree.depth
    while len(active):
        uniforms = rng.random((len(active), min(LEVELS, left)))
        at = np.ascontiguousarray(places[active])
        of_row = np.ascontiguousarray(rows[active])
        if not call.walk(of_row, uniforms, at):
            raise ValueError("x has a row whose logits hold NaN, so that there is nothing to draw from")
        places[active] = at
        active, left = active[at >= 0], left - uniforms.shape[1]
    return ~places
