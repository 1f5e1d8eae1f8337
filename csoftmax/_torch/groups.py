"""Functions of tensors whose classes are divided among the ranks of a group, and of DTensors.

The functions of `csoftmax.distributed` compute the numbers, on the memory of the tensors. A DTensor tells by itself how
it is divided: the mesh dimension that shards the classes is the group of the call, and those that shard rows together
are the group over which a mean divides.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .._arguments.generators import draw_uniforms
from .._arguments.places import DeviceError
from .._distributed.draws import sample as sample_over
from .._distributed.groups import SingleProcess, as_group
from .._distributed.linear import run_linear
from .._distributed.losses import run_loss
from .._distributed.row_sums import fail_on_both
from .operators import (
    check_constants,
    check_floating,
    detach,
    multiply,
    number_or_rows,
    refuse_gradient,
)

_Result = TypeVar("_Result")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def is_over_ranks(x: Any, group: Any, n_classes: Any = None, offset: Any = None) -> bool:
    """Whether a call is one over ranks: it has a group, or a DTensor. No other has n_classes or offset."""
    if group is not None or _is_dtensor(x):
        return True
    for name, given in (("n_classes", n_classes), ("offset", offset)):
        if given is not None:
            raise ValueError(f"{name} is {given!r}, and group is None: only calls over the ranks of a group have it")
    return False


def eager(function: _Function) -> _Function:
    """The function as one that `torch.compile` leaves to Python, because its collectives carry errors.

    It is told so at the first call, as that imports torch._dynamo, which takes a second.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        return _leave(function)(*arguments, **options)

    return cast(_Function, call)


_LEFT: dict[Any, Any] = {}  # by function; torch.compile warns of functools.cache


def _leave(function: Any) -> Any:
    if function not in _LEFT:
        _LEFT[function] = torch.compiler.disable(function)
    return _LEFT[function]


class _Product:
    """The ranks of two groups of a mesh as one, those of the second one next to each other."""

    def __init__(self, outer: Any, inner: Any):
        self.outer, self.inner = outer, inner
        self.size, self.rank = outer.size * inner.size, outer.rank * inner.size + inner.rank

    def all_gather(self, a: Any) -> Any:
        gathered = self.outer.all_gather(self.inner.all_gather(a))
        return gathered.reshape(self.size, *np.shape(a))

    def all_reduce(self, a: Any, op: str) -> Any:
        return self.outer.all_reduce(self.inner.all_reduce(a, op), op)


class Division(NamedTuple):
    """How the classes and the rows of a call are divided, and the mesh if a DTensor says so."""

    group: Any
    rows_group: Any = None
    n_classes: Any = None
    offset: Any = None
    mesh: Any = None
    placements: Any = None  # of the argument with the classes
    of_rows: Any = None  # of an array with an element for each row
    of_kept: Any = None  # the same where the axis of the classes has length 1
    of_classes: Any = None  # of an array with an element for each class
    shape: Any = None  # of the argument with the classes, on all ranks together
    axis: int = -1  # of its classes

    def check(self, function: Callable[[], _Result]) -> _Result:
        """The result of checks on this rank; their error is raised on all ranks."""
        try:
            return function()
        except Exception as error:
            fail_on_both(self.group, self.rows_group, error)

    def place(self, x: Any, placements: Any, shape: tuple[int, ...] | None = None) -> Any:
        """The elements of this rank of an array; a plain tensor is the same on all ranks of the mesh."""
        if x is None or self.mesh is None:
            return x
        if not _is_dtensor(x):
            whole = x if shape is None else x.broadcast_to(shape)
            x = _dtensor().DTensor.from_local(whole.contiguous(), self.mesh, [_dtensor().Replicate()] * self.mesh.ndim)
        return x.redistribute(self.mesh, placements).to_local()

    def place_rows(self, numbers: Any) -> Any:
        """The numbers of this rank's rows, whose axis of the classes has length 1; one for all rows as it is."""
        return self.place(numbers, self.of_kept) if isinstance(numbers, Tensor) else numbers

    def spread(self, local: Tensor, placements: Any, shape: tuple[int, ...]) -> Any:
        """A result as a DTensor, if the argument is one."""
        if self.mesh is None:
            return local
        stride = torch.empty(shape, device="meta").stride()
        return _dtensor().DTensor.from_local(
            local, self.mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
        )

    @property
    def row_offsets(self) -> tuple[int, ...]:
        """Of this rank's rows along each of their axes, if a mesh divides them."""
        if self.mesh is None:
            return ()
        begins = _dtensor()._utils.compute_local_shape_and_global_offset(self.shape, self.mesh, self.placements)[1]
        return *begins[: self.axis], *begins[self.axis + 1 :]

    @property
    def replicated(self) -> Any:
        return None if self.mesh is None else [_dtensor().Replicate()] * self.mesh.ndim


def _dtensor() -> Any:
    return sys.modules["torch.distributed.tensor"]


def _is_dtensor(x: Any) -> bool:
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def divide(name: str, x: Any, dim: Any, group: Any, n_classes: Any = None, offset: Any = None) -> Division:
    """How the call with these arguments is divided.

    name : of the argument x, whose axis dim has the classes.
    """
    if not _is_dtensor(x):
        return Division(as_group(group), None, n_classes, offset)
    if group is not None or n_classes is not None or offset is not None:
        raise ValueError(f"{name} is a DTensor, which says how it is divided: group, n_classes and offset must be None")
    _check_dim(name, x, dim)
    module, mesh, axis = _dtensor(), x.device_mesh, dim % x.dim()
    of_rows: list[Any] = []
    of_kept, of_classes, by_class, by_rows = [], [], [], []
    for i, placement in enumerate(x.placements):
        if not (placement.is_replicate() or type(placement) is module.Shard):
            raise ValueError(
                f"{name} has the placement {placement!r} along mesh dimension {i}; allowed are Shard and Replicate: "
                f"redistribute it first"
            )
        is_class, is_row = placement.is_shard(axis), placement.is_shard() and not placement.is_shard(axis)
        by_class += [i] * is_class
        by_rows += [i] * is_row
        of_rows.append(module.Shard(placement.dim - (placement.dim > axis)) if is_row else module.Replicate())
        of_kept.append(placement if is_row else module.Replicate())
        of_classes.append(module.Shard(0) if is_class else module.Replicate())
    if len(by_class) > 1:
        raise ValueError(
            f"{name} has its classes sharded along the mesh dimensions {by_class}; at most one may shard them"
        )
    groups = [as_group(mesh.get_group(i)) for i in by_rows]
    rows_group: Any = None
    for inner in groups:
        rows_group = inner if rows_group is None else _Product(rows_group, inner)
    classes = as_group(mesh.get_group(by_class[0]) if by_class else SingleProcess())
    own = mesh, x.placements, of_rows, of_kept, of_classes, x.shape, axis
    return Division(classes, rows_group, x.shape[dim], None, *own)


def check_here(name: str, x: Any, dim: Any = -1) -> None:
    """Refuse what is no floating-point tensor on the CPU, and what is no axis of it."""
    check_floating(name, x)
    if x.device.type != "cpu":
        raise DeviceError(f"{name} is on {x.device}: functions over a group compute on the CPU; pass {name}.cpu()")
    _check_dim(name, x, dim)


def _check_dim(name: str, x: Any, dim: Any) -> None:
    if type(dim) is not int or not -x.dim() <= dim < x.dim():
        raise ValueError(f"dim must be an axis of {name}, which has {x.dim()}, got {dim!r}")


def row_shape(x: Tensor, dim: int) -> tuple[int, ...]:
    """The shape of x, of length 1 along dim."""
    dim %= x.dim()
    return (*x.shape[:dim], 1, *x.shape[dim + 1 :])


def spread_temperature(temperature: Any, x: Tensor, dim: int) -> Any:
    """T as a float, or as a tensor of the shape of the rows of x with length 1 along dim."""
    number, rows = number_or_rows("temperature", temperature)
    if rows is None:
        return number
    shape = row_shape(x, dim)
    try:
        return rows.detach().broadcast_to(shape)
    except RuntimeError:
        raise ValueError(
            f"temperature has shape {tuple(rows.shape)}; allowed are a number and what broadcasts to {shape}"
        ) from None


def _times(gradient: Tensor, upstream: Tensor) -> Tensor:
    """The gradient times that of the loss, which mostly is 1: then the array itself, which autograd does not change."""
    return gradient if upstream.dim() == 0 and upstream.item() == 1 else multiply(gradient, upstream)


class _Loss(torch.autograd.Function):
    """A loss, whose gradient is computed with it; backward has no collective."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, run: Callable[..., Any], dim: int, is_for_rows: bool) -> Tensor:
        loss, gradient = run(logits.detach(), ctx.needs_input_grad[0])
        ctx.dim = dim if is_for_rows else None
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return torch.as_tensor(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        if ctx.dim is not None:
            upstream = upstream.unsqueeze(ctx.dim)
        return _times(gradient, upstream), None, None, None


@eager
def cross_entropy(logits: Any, target: Any, dim: int, group: Any, n_classes: Any, offset: Any, **options: Any) -> Any:
    """`csoftmax.torch.cross_entropy` over ranks."""
    division = divide("logits", logits, dim, group, n_classes, offset)
    weights = {name: options.pop(name) for name in ("weight", "sample_weight")}

    def check() -> Any:
        check_here("logits", logits, dim)
        check_constants(target=target, **weights)
        return spread_temperature(options["temperature"], logits, dim)

    options["temperature"] = division.place_rows(division.check(check))
    shape = (*logits.shape[: dim % logits.dim()], *logits.shape[dim % logits.dim() + 1 :])
    is_soft = target.is_floating_point()
    given = division.place(target.detach(), division.placements if is_soft else division.of_rows)
    weight, sample_weight = detach(*weights.values())
    weights = {
        "weight": division.place(weight, division.of_classes),
        "sample_weight": division.place(sample_weight, division.of_rows, shape),
    }
    local = logits if division.mesh is None else logits.to_local()

    def run(x: Tensor, gradient: bool) -> tuple[Any, Any]:
        more = {"axis": dim, "n_classes": division.n_classes, "offset": division.offset, "gradient": gradient}
        more["row_offsets"] = division.row_offsets
        name = "cross_entropy_with_grad" if gradient else "cross_entropy"
        return run_loss(division.group, division.rows_group, name, x, given, None, **more, **weights, **options)

    is_for_rows = options["reduction"] == "none"
    loss = _Loss.apply(local, run, dim, is_for_rows)
    return division.spread(loss, *((division.of_rows, shape) if is_for_rows else (division.replicated, ())))


class _LinearLoss(torch.autograd.Function):
    """The same of a linear layer."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, run: Callable[..., Any]) -> Tensor:
        tensors = detach(x, w, bias)
        loss, *gradients = run(*tensors, any(ctx.needs_input_grad))
        ctx.has_bias = bias is not None
        ctx.save_for_backward(*[g for g in gradients if g is not None])
        return torch.as_tensor(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [_times(gradient, upstream) for gradient in ctx.saved_tensors]
        return gradients[0], gradients[1], gradients[2] if ctx.has_bias else None, None


@eager
def linear_cross_entropy(
    x: Any, w: Any, target: Any, bias: Any, group: Any, n_classes: Any, offset: Any, **options: Any
) -> Any:
    """`csoftmax.torch.linear_cross_entropy` over ranks."""
    if _is_dtensor(w) != _is_dtensor(x):
        raise TypeError("x and w must both be DTensors, or neither of them")
    division = divide("w", w, 0, group, n_classes, offset)
    features = _divide_features(x, division) if division.mesh is not None else division
    weights = {name: options.pop(name) for name in ("weight", "sample_weight")}
    gradient = any(t is not None and t.requires_grad for t in (x, w, bias)) and torch.is_grad_enabled()

    def check() -> Any:
        check_here("x", x)
        check_here("w", w)
        check_constants(target=target, **weights)
        if gradient and options["reduction"] == "none":
            raise ValueError('reduction="none" has no gradient here; use "sum" or "mean", or torch.no_grad()')
        return spread_temperature(options["temperature"], x, -1)

    options["temperature"] = features.place_rows(features.check(check))
    of_rows, of_soft = features.of_rows, features.placements
    given = features.place(target.detach(), of_soft if target.is_floating_point() else of_rows)
    weight, sample_weight = detach(*weights.values())
    weights = {
        "weight": division.place(weight, division.of_classes),
        "sample_weight": division.place(sample_weight, of_rows, tuple(x.shape[:-1])),
    }
    tensors = x, w, bias
    if division.mesh is not None:
        partial = _dtensor().Partial()  # the gradient of the layer is a sum over the rows
        of_layer = [
            partial if rows.is_shard() else layer for rows, layer in zip(of_rows, division.of_classes, strict=True)
        ]
        if bias is not None:
            bias = bias.redistribute(division.mesh, division.of_classes).to_local(grad_placements=of_layer)
        tensors = x.to_local(), w.to_local(grad_placements=of_layer), bias

    def run(x: Tensor, w: Tensor, bias: Any, needs_gradient: bool) -> Any:
        more = options | weights | {"n_classes": division.n_classes, "offset": division.offset}
        more["row_offsets"] = features.row_offsets
        return run_linear(features.group, features.rows_group, x, w, given, bias=bias, gradient=needs_gradient, **more)

    loss = _LinearLoss.apply(*tensors, run)
    is_for_rows = options["reduction"] == "none"
    return features.spread(loss, *((of_rows, tuple(x.shape[:-1])) if is_for_rows else (features.replicated, ())))


def _divide_features(x: Any, layer: Division) -> Division:
    """How the rows of a linear layer are divided, whose classes are divided otherwise."""
    rows = divide("x", x, -1, None)
    if rows.mesh != layer.mesh or any(p.is_shard(x.dim() - 1) for p in x.placements):
        raise ValueError("x must be on the mesh of w, and its features, the last axis, must not be sharded")
    module = _dtensor()
    both = zip(rows.of_rows, layer.of_classes, strict=True)
    if any(r.is_shard() and c.is_shard() for r, c in both):
        raise ValueError("a mesh dimension shards the rows of x and the classes of w; it may shard one of them")
    of_soft = [
        module.Shard(x.dim() - 1) if c.is_shard() else r for r, c in zip(rows.of_rows, layer.of_classes, strict=True)
    ]
    return rows._replace(group=layer.group, placements=of_soft, n_classes=layer.n_classes)


@eager
def sample(logits: Any, dim: int, group: Any, n_classes: Any, offset: Any, **options: Any) -> Any:
    """`csoftmax.torch.sample` over ranks."""
    division = divide("logits", logits, dim, group, n_classes, offset)

    def check() -> None:
        check_here("logits", logits, dim)
        refuse_gradient("logits", logits)

    division.check(check)
    local = logits.detach() if division.mesh is None else logits.detach().to_local()
    size = options.get("size")
    after = () if size is None else tuple(size) if isinstance(size, tuple) else (size,)
    shape = (*logits.shape[: dim % logits.dim()], *logits.shape[dim % logits.dim() + 1 :])
    if division.rows_group is not None:  # each rank draws for its rows the numbers that one process would
        uniforms = options.get("uniforms")
        if uniforms is None:
            uniforms = torch.from_numpy(draw_uniforms(options.pop("rng", None), shape, after).reshape(*shape, *after))
        options = options | {"uniforms": division.place(uniforms, division.of_rows)}
    where = options.pop("where", None)
    options["where"] = division.place(where, division.placements, tuple(logits.shape))
    indices = sample_over(
        local, group=division.group, axis=dim, n_classes=division.n_classes, offset=division.offset, **options
    )
    return division.spread(torch.as_tensor(np.asarray(indices)), division.of_rows, (*shape, *after))
