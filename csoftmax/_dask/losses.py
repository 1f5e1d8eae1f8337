"""Cross-entropy of rows in any chunks, and its gradient.

    whole rows      the divisor of a mean from labels and weights alone; then losses and gradients of a chunk at once
    divided rows    the sums of each chunk, merged in a tree; from them losses and divisor; then the gradients

Sums over rows are those of csoftmax's tree, whatever the chunks are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._arguments.labels import as_label_bits, raise_soft_shape
from .._arguments.layouts import axis_last
from .._arguments.numbers import check_positive, check_reduction
from .._cpu import binding
from .._cpu.dtypes import is_bfloat16
from .._distributed.finish import add_losses, round_losses
from .._distributed.losses import Chunk, find_shares
from .._distributed.merged import Merged
from .._distributed.shard import Partial, Piece, Terms, plan_partial
from .._ops.cross_entropy import plan_cross_entropy
from .beside import kept_chunks, lay_beside, lay_rows_beside
from .blocks import Argument, add_rows, check_split_every, map_chunks, pick
from .calls import Call, is_on_gpu, plan_call
from .collections import Begins, Letters, as_lazy, give_frame, is_number, row_chunks
from .gradients import finish_gradients
from .labels import largest_of, raise_bad_chunk, raise_bad_weight_of_chunk, scale_chunk
from .shards import sum_up, whole_sums

_GRADIENT_ONLY = ("upstream", "clip_norm", "clip_value")
_PER_CLASS = -1  # the letter of class weights beside whole rows


class Losses(NamedTuple):
    """A loss of lazy arrays."""

    call: Call  # x and its axes
    arrays: dict[str, Argument]  # by name: target, weights, upstream, the largest weights, begins of the rows' axes
    numbers: dict[str, Any]  # the other options
    reduction: str
    gradient: bool
    dtypes: tuple[Any, Any]  # of the losses, and of the gradient
    split_every: int

    @property
    def rows(self) -> Letters:
        """The axes of the rows."""
        return row_chunks(self.call.x, self.call.axes)[0]

    @property
    def settings(self) -> Settings:
        """The settings of the tasks of this loss."""
        x, axes = self.call.x, self.call.axes
        n = int(np.prod([x.shape[i] for i in axes], dtype=np.int64)) if x.ndim else 1
        clips = any(self.numbers.get(name) for name in ("clip_norm", "clip_value"))
        return Settings(axes, n, self.numbers, self.reduction, self.reduction == "mean" and not clips, self.gradient)

    def take(self, *left_out: str) -> tuple[tuple[str, ...], list[Argument]]:
        """The names of the arrays, and these, but for some."""
        names = tuple(name for name in self.arrays if name not in left_out)
        return names, [self.arrays[name] for name in names]


class Settings(NamedTuple):
    """Arguments that all tasks of a loss share; the chunks come beside them."""

    axes: tuple[int, ...]
    n_classes: int
    numbers: dict[str, Any]
    reduction: str
    is_scaled: bool  # weights are those of a mean, whose scale cancels
    gradient: bool

    def given(self, names: tuple[str, ...], blocks: tuple[Any, ...]) -> tuple[dict[str, Any], list[Any], list[Any]]:
        """The options of a chunk, the largest weights, and the begins of the rows' axes."""
        found = dict(zip(names, blocks, strict=True))
        begins = [found.pop(name) for name in names if name.startswith("begins")]
        largest = [found.pop(f"largest {name}", None) for name in ("weight", "sample_weight")]
        s = self.numbers.get("sample_weight")
        largest[1] = s if largest[1] is None else largest[1]
        return self.numbers | found, largest, begins

    def scale(self, weight: Any, s: Any, largest: list[Any], batch: tuple[int, ...]) -> Any:
        """The weights of a chunk, scaled as those of the whole call."""
        return scale_chunk(weight, s, largest, batch) if self.is_scaled else (weight, s)


def _is_soft(target: Any) -> bool:
    return target.dtype.kind == "f" or is_bfloat16(target.dtype)


def _lay_out(call: Call, options: dict[str, Any]) -> tuple[dict[str, Argument], dict[str, Any]]:
    """The arrays of a loss in the chunks of its logits, and the other options."""
    x, axes = call.x, call.axes
    rows, chunks = row_chunks(x, axes)
    target = as_lazy("target", options["target"])
    soft = _is_soft(target) and target.ndim == x.ndim
    if _is_soft(target) and not soft:
        raise_soft_shape(target.shape, x.shape, tuple(x.shape[i] for i in rows), target.dtype)
    beside = (call.letters, x.chunks) if soft else (rows, chunks)
    arrays = {"target": lay_beside("target", options["target"], *beside, broadcasts=False, like=x)}
    numbers = {name: a for name, a in options.items() if name != "target"}
    for name in ("sample_weight", "upstream"):
        a = options.get(name)
        if a is not None and not is_number(a):
            arrays[name] = lay_beside(name, numbers.pop(name), rows, chunks, like=x)
    weight = options["weight"]
    if weight is not None and not is_number(weight):
        weight = as_lazy("weight", numbers.pop("weight"))
        along = (axes, (x.chunks[axes[0]],)) if call.is_divided else ((_PER_CLASS,), ((weight.size,),))
        arrays["weight"] = lay_beside("weight", weight, *along, broadcasts=False)
        arrays["largest weight"] = largest_of(weight), ()
        if "sample_weight" in arrays:
            arrays["largest sample_weight"] = largest_of(arrays["sample_weight"][0]), ()
    for i, c in zip(rows, chunks, strict=True):
        arrays[f"begins {i}"] = Begins(c), (i,)
    return arrays, numbers


def plan_loss(
    function: Callable[..., Any], logits: Any, target: Any, axis: Any, reduction: str, split_every: Any, **options: Any
) -> Losses:
    """Arrange a call of cross_entropy or cross_entropy_with_grad; errors of arguments are raised here."""
    arity = check_split_every(split_every)
    check_reduction(reduction)
    gradient = "upstream" in options
    on_rows = options["softcap"] is not None or not is_number(options["temperature"])
    call = plan_call(function, "logits", logits, axis, {}, {"device": options["device"]}, divides=not on_rows)
    arrays, numbers = _lay_out(call, options | {"target": target})
    ones = {name: np.ones((1,) * a.ndim, a.dtype) for name, (a, _) in arrays.items() if name in options}
    labels = np.zeros((1,) * arrays["target"][0].ndim, arrays["target"][0].dtype)
    tiny = np.ones((1,) * call.x.ndim, call.x.dtype)
    temperature = options["temperature"]
    temperature = temperature if is_number(temperature) else np.ones((1,) * np.ndim(temperature))
    first = numbers | ones | {"device": None, "temperature": temperature, "axis": axis, "reduction": reduction}
    tried = function(tiny, labels, **first)
    dtypes = (tried.loss.dtype, tried.grad.dtype) if gradient else (tried.dtype, None)
    if reduction != "none" and is_on_gpu(call.x, options["device"]):
        raise NotImplementedError(
            'GPUs are for reduction="none" with Dask arrays: sums over the rows of several chunks need losses that are '
            f"not rounded, got reduction={reduction!r}"
        )
    if not is_number(options["temperature"]):
        each = numbers.pop("temperature")
        kept = kept_chunks(call.x, call.axes)
        arrays["temperature"] = lay_rows_beside("temperature", each, call.letters, kept, call.x, gradient=True)
    numbers["num_threads"] = 1 if options["num_threads"] is None else options["num_threads"]
    return Losses(call, arrays, numbers, reduction, gradient, dtypes, arity)


def run_loss(function: Callable[..., Any], logits: Any, target: Any, **options: Any) -> tuple[Any, Any]:
    """The loss, and the gradient or None."""
    losses = plan_loss(function, logits, target, **options)
    loss, gradient = (_run_divided if losses.call.is_divided else _run_whole)(losses)
    loss = give_frame(logits, loss) if losses.reduction == "none" else loss
    return loss, None if gradient is None else give_frame(logits, gradient)


# Whole rows.


def _run_whole(losses: Losses) -> tuple[Any, Any]:
    call, settings, rows = losses.call, losses.settings, losses.rows
    names, arrays = losses.take()
    divisor = None
    if losses.reduction == "mean":
        of_masses, arguments = losses.take("upstream", "temperature")
        function = functools.partial(_masses_of_whole, settings, call.x.dtype, of_masses)
        masses = map_chunks(function, rows, arguments, dtype=np.float64)
        (divisor,) = add_rows([masses], losses.split_every)
        names, arrays = (*names, "divisor"), [*arrays, (divisor, ())]
    function = functools.partial(_compute_whole, settings, names)
    both = map_chunks(function, call.letters, [(call.x, call.letters), *arrays], dtype=object, chunks=_ones(losses))
    raw = losses.dtypes[0] if losses.reduction == "none" else np.float64
    loss = pick((both, call.letters), 0, rows, dtype=raw, like=call.x)
    gradient = None
    if losses.gradient:
        whole = dict(zip(call.letters, call.x.chunks, strict=True))
        chunks = {i: whole[i] for i in call.axes if call.x.ndim}
        gradient = pick((both, call.letters), 1, call.letters, dtype=losses.dtypes[1], like=call.x, chunks=chunks)
    return _reduce(losses, loss, divisor), gradient


def _ones(losses: Losses) -> dict[int, Any]:
    return dict.fromkeys(losses.call.axes, 1) if losses.call.x.ndim else {}


def _check_rows(settings: Settings, target: Any, s: Any, begins: list[Any], first: int = 0) -> None:
    """Raise for a label or a weight of a row that is none, with its place in the call."""
    if target.dtype.kind in "iu":
        raise_bad_chunk(target, settings.n_classes, int(settings.numbers["ignore_index"]), begins)
    elif _is_soft(target):
        raise_bad_chunk(axis_last(target, settings.axes), settings.n_classes, None, begins, first)
    if isinstance(s, np.ndarray) and s.ndim and (s.dtype.kind in "iuf" or is_bfloat16(s.dtype)):
        raise_bad_weight_of_chunk(s, begins)


def _masses_of_whole(settings: Settings, dtype: Any, names: tuple[str, ...], *blocks: Any) -> Any:
    """The weight of each row, from its label alone."""
    given, largest, begins = settings.given(names, blocks)
    target, n = given["target"], settings.n_classes
    _check_rows(settings, target, given.get("sample_weight"), begins)
    target = axis_last(target, settings.axes) if _is_soft(target) else target
    batch = target.shape[:-1] if _is_soft(target) else target.shape
    x = np.broadcast_to(np.zeros((), np.float64 if dtype.kind in "iu" else dtype.newbyteorder("=")), (*batch, n))
    neutral = {"label_smoothing": 0.0, "z_loss": 0.0, "temperature": 1.0}
    options = neutral | {name: given[name] for name in ("weight", "sample_weight", "ignore_index")}
    terms, piece = plan_partial(x, offset=0, n_classes=n, kind="loss", axis=-1, target=target, losses=options)
    assert terms.losses is not None
    weight, s = settings.scale(piece.weight, terms.losses.sample_weight, largest, batch)
    terms, piece = terms._replace(losses=terms.losses._replace(sample_weight=s)), piece._replace(weight=weight)
    return _weigh(terms, Merged(None, {}, piece, None, float(n)))


def _weigh(terms: Terms, merged: Merged) -> Any:
    """The part of each row in the divisor of a mean."""
    nothing: Any = None
    return find_shares(Chunk(None, terms, nothing, nothing, merged)).reshape(terms.batch)


def _compute_whole(settings: Settings, names: tuple[str, ...], x: Any, *blocks: Any) -> tuple[Any, Any]:
    """The losses of the rows, and the gradient or None."""
    given, largest, begins = settings.given(names, blocks)
    divisor, target = given.pop("divisor", 1.0), given.pop("target")
    _check_rows(settings, target, given.get("sample_weight"), begins)
    axes: Any = settings.axes if x.ndim else None
    plan = plan_cross_entropy(x, target, axes, gradient=settings.gradient, reduction="none", **given)
    if settings.reduction == "none":
        loss, gradient = plan.execute()
    else:
        options = plan.options
        weight, s = settings.scale(options.weight, options.sample_weight, largest, plan.loss.shape)
        loss, n = np.zeros(plan.loss.shape), settings.n_classes
        labels = plan.labels
        if labels is not None:
            is_ignored = np.zeros(labels.shape, bool)
            if as_label_bits(options.ignore_index, labels) is not None:
                is_ignored = labels == labels.dtype.type(options.ignore_index)
            labels = np.where(is_ignored, -1, labels.astype(np.int64))
        rows = None if plan.gradient is None else plan.gradient.rows
        arrays = plan.logits, labels, 2**64 - 1, plan.soft, weight, s, options.upstream
        numbers = options.factors, binding.LABEL_WORDS, n, 0, float(n), float(divisor), None, plan.num_threads
        more = options.temperatures, options.softcap
        binding.finish_shard_loss(plan.dtype, False, None, None, loss, rows, None, *arrays, *numbers, *more)
        gradient = None if plan.gradient is None else plan.gradient.finish()
    return loss, gradient


# Rows whose classes are in several chunks.


def _run_divided(losses: Losses) -> tuple[Any, Any]:
    call, settings = losses.call, losses.settings
    names, arrays = losses.take("upstream")
    plan = functools.partial(_plan_divided, settings, names)
    sums = sum_up(
        plan,
        call.x,
        call.axes[0],
        arrays,
        num_threads=losses.numbers["num_threads"],
        split_every=losses.split_every,
    )
    divisor: Any = None
    if losses.reduction == "none":
        loss = sums.finish_rows(_add_rounded, dtype=losses.dtypes[0])
    else:
        loss = sums.finish_rows(_add_losses, dtype=np.float64)
    if losses.reduction == "mean":
        (divisor,) = add_rows([sums.finish_rows(_masses_of_divided, dtype=np.float64)], losses.split_every)
    gradient = None
    if losses.gradient:
        factors: list[Argument] = [(as_lazy("divisor", 1.0) if divisor is None else divisor, ())]
        factors += [losses.arrays["upstream"]] if "upstream" in losses.arrays else []
        numbers = losses.numbers
        gradient = finish_gradients(
            sums,
            factors,
            upstream=numbers.get("upstream", 1.0),
            clips=bool(numbers.get("clip_norm")),
            may_be_lost=_may_be_lost(losses),
            num_threads=numbers["num_threads"],
            split_every=losses.split_every,
            dtype=losses.dtypes[1],
            like=call.x,
        )
    return _reduce(losses, loss, divisor), gradient


def _may_be_lost(losses: Losses) -> bool:
    """Whether the factors of a row can be large; without any, they are the probabilities of its labels."""
    numbers = losses.numbers
    is_plain = all(name == "target" or name.startswith("begins") for name in losses.arrays)
    is_usual = numbers.get("sample_weight") is None and numbers.get("upstream", 1.0) == 1 and numbers["z_loss"] == 0
    return not (is_plain and is_usual and numbers["temperature"] >= 1) or _is_soft(losses.arrays["target"][0])


def _plan_divided(settings: Settings, names: tuple[str, ...], x: Any, first: int, *blocks: Any) -> tuple[Terms, Piece]:
    given, largest, begins = settings.given(names, blocks)
    target, (axis,) = given["target"], settings.axes
    _check_rows(settings, target, given.get("sample_weight"), begins, first)
    names = "weight", "sample_weight", "label_smoothing", "ignore_index", "z_loss", "temperature"
    options = {name: given[name] for name in names}
    shard: dict[str, Any] = {"offset": first, "n_classes": settings.n_classes, "kind": "loss", "axis": axis}
    terms, piece = plan_partial(x, **shard, target=target, losses=options)
    losses = terms.losses
    assert losses is not None
    norm, value = (check_positive(name, given.get(name)) for name in ("clip_norm", "clip_value"))
    weight, s = settings.scale(piece.weight, losses.sample_weight, largest, terms.batch)
    losses = losses._replace(sample_weight=s, factors=(*losses.factors[:3], norm, value))
    return terms._replace(losses=losses), piece._replace(weight=weight)


def _add_losses(merged: Partial) -> Any:
    return add_losses(merged, whole_sums(merged))


def _add_rounded(merged: Partial) -> Any:
    return round_losses(merged.terms, _add_losses(merged))


def _masses_of_divided(merged: Partial) -> Any:
    return _weigh(merged.terms, whole_sums(merged))


# Both.


def _reduce(losses: Losses, loss: Any, divisor: Any) -> Any:
    """The loss in the form of the result."""
    if losses.reduction == "none":
        return loss
    (total,) = add_rows([loss], losses.split_every)
    arguments = [(total, ())] if divisor is None else [(total, ()), (divisor, ())]
    dtype = losses.dtypes[0]
    return map_chunks(functools.partial(_divide, dtype), (), arguments, dtype=dtype)


def _divide(dtype: Any, total: Any, divisor: Any = 1.0) -> Any:
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        value = np.float64(total) / np.float64(divisor)
        is_number = value == value and divisor != 0 and not np.isinf(divisor)
        return (value if is_number else np.float64("nan")).astype(dtype)  # on x86 the NaN of 0 / 0 is negative
