"""Draws from rows whose classes are divided among the ranks of a group.

Each row goes one of four ways: its `top_k` largest logits are gathered, and all ranks draw from them; the masses of its
blocks are gathered, and the rank with a draw's block searches it; the same after the ranks have found which classes
`top_p` keeps; or the row is gathered whole. All of them take the steps of `csoftmax.sample`, in C by the same code
(`src_c/ops/sample_shard.c`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.generators import check_uniforms, draw_uniforms, restore_states, save_states
from .._arguments.layouts import check_out
from .._arguments.numbers import check_draws, check_flag, check_num_threads
from .._arguments.places import as_array
from .._cpu import binding
from .._cpu.dtypes import as_buffer
from .._ops.sample import check_parameters, raise_without_mass
from .._ops.sample import sample as sample_whole
from .._ops.topk import topk as topk_whole
from .agreement import describe
from .devices import as_native_on
from .finish import give_rows
from .groups import Collectives, Header, Layout, Pending, as_group, check_status, enter
from .merge import gather_rows, join_rows, order_of, ordered
from .rows import give_result, known
from .terms import BLOCK
from .topk import header_of_rows, rows_of_shard

__all__ = ["sample"]

GATHERED_BYTES = 256 << 20  # that all ranks together hold at a time while they draw
GROWTH, MOST_SELECTED = 8, 1 << 16  # of the classes of a rank that are selected for top_p
_NOT_OVER_SHARDS = ("typical_p", "top_n_sigma", "order")


class _Call(NamedTuple):
    """A checked call of sample on this rank."""

    x: Any  # the logits of the shard, a row for each row of the call
    uniforms: Any  # of rank 0; zeros on the others until they are exchanged
    batch: tuple[int, ...]
    size: tuple[int, ...]
    parameters: dict[str, Any]  # one number a row, or None
    num_threads: Any
    is_masked: bool


def _as_slice(rows: NDArray[np.int64]) -> Any:
    """Rising numbers of rows, as a slice where that is possible, so that nothing is copied."""
    return slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


class _Rows(NamedTuple):
    """Some rows of a call."""

    numbers: Any  # of these rows in the call, in C order
    x: Any
    uniforms: Any
    parameters: dict[str, Any]
    batch: tuple[int, ...]  # of the call
    num_threads: Any
    is_masked: bool  # masked logits are -inf here

    def some(self, rows: NDArray[np.int64]) -> _Rows:
        """Some of these rows, in their order."""
        at = _as_slice(rows)
        each = {name: None if p is None else np.ascontiguousarray(p[at]) for name, p in self.parameters.items()}
        arrays = self.numbers[at], self.x[at], self.uniforms[at]
        return _Rows(*arrays, each, self.batch, self.num_threads, self.is_masked)

    def check_mass(self, largest: NDArray[np.float64]) -> None:
        """Raise for the first row whose largest logit is not finite."""
        has_none = ~np.isfinite(largest)
        if has_none.any():
            at = int(has_none.argmax())
            row, value = np.unravel_index(self.numbers[at], self.batch), float(largest[at])
            is_either = self.is_masked and value == -np.inf
            raise_without_mass(row, value, "where leaves none of its classes, or only -inf" if is_either else None)

    def draw_from(self, values: Any, **parameters: Any) -> Any:
        """The draws from logits which all ranks have."""
        options = {"uniforms": self.uniforms, "size": self.uniforms.shape[-1], "num_threads": self.num_threads}
        try:
            return sample_whole(values, **options, **parameters)
        except ValueError:
            self.check_mass(_largest_of(values))
            raise


class _Best(NamedTuple):
    """The largest logits of rows in falling order, ties by the class."""

    values: Any
    classes: Any
    known: Any  # of each row, the number of its largest logits that are surely among these, in this order


def _largest_of(x: Any) -> NDArray[np.float64]:
    """The largest logit of each row, NaN if one of them is NaN, -inf if there is none."""
    if not x.shape[-1]:
        return np.full(len(x), -np.inf)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        return topk_whole(x, 1).values[:, 0].astype(np.float64)  # NaN comes first


def _reduce_max(comm: Collectives, own: Any, shape: tuple[int, ...], pending: Pending) -> NDArray[np.int64]:
    """The largest of each number over all ranks, and a status; own: None after an error."""
    words = np.full(1 + math.prod(shape), np.iinfo(np.int64).min)
    words[0] = pending.error is not None
    if pending.error is None:
        words[1:] = own.reshape(-1)
    received = comm.all_reduce(words, "max")
    if received[0]:
        check_status(comm, comm.all_gather(words[:1])[:, 0], pending.error)
    return received[1:].reshape(shape)


def _align(comm: Collectives, layout: Layout, x: Any, pending: Pending) -> tuple[Layout, Any]:
    """The shards with each block of 4096 classes on the rank of its first class; x: as its bits."""
    n, rank = layout.n_classes, comm.rank
    ends = [first + length for first, length in zip(layout.offsets, layout.lengths, strict=True)]
    begins = [min(-(-first // BLOCK) * BLOCK, n) for first in layout.offsets]
    stops = [min(-(-end // BLOCK) * BLOCK, n) for end in ends]
    heads = [min(b, e) - f for f, b, e in zip(layout.offsets, begins, ends, strict=True)]
    if not max(heads):
        return layout, x
    lengths = tuple(s - b for b, s in zip(begins, stops, strict=True))
    received = gather_rows(comm, x[:, : heads[rank]], (len(x), max(heads)), x.dtype, pending)
    with pending:
        parts = [x[:, heads[rank] :]]
        for r in order_of(layout) if lengths[rank] else ():
            if ends[rank] <= layout.offsets[r] < stops[rank]:
                parts.append(received[r][:, : heads[r]])
        x = np.concatenate(parts, axis=-1)
    return Layout(n, tuple(begins), lengths), x


def _gather_best(comm: Collectives, layout: Layout, x: Any, k: int, pending: Pending) -> tuple[Any, Any]:
    """The k largest logits of each shard, or all of a shorter one, and their classes, in the order of the classes."""
    best: Any = (None, None)
    with pending:
        best = topk_whole(x, min(k, x.shape[-1]))
        best = as_buffer(best.values), best.indices + layout.offsets[comm.rank]
    counts = tuple(min(k, length) for length in layout.lengths)
    bits, shape = as_buffer(x).dtype, (len(x), max(counts))
    received = (
        gather_rows(comm, best[0], shape, bits, pending),
        gather_rows(comm, best[1], shape, np.dtype(np.int64), pending),
    )
    values, classes = (join_rows(layout, a, counts) for a in received)
    order = np.argsort(classes, axis=-1)
    return np.take_along_axis(values, order, -1).view(x.dtype), np.take_along_axis(classes, order, -1)


def _find_best(comm: Collectives, layout: Layout, x: Any, k: int, pending: Pending) -> _Best:
    """The largest logits of the k largest of each shard."""
    values, classes = _gather_best(comm, layout, x, k, pending)
    values, places = topk_whole(values, values.shape[-1])
    classes = np.take_along_axis(classes, places, -1)
    known = np.full(len(x), classes.shape[-1])
    for first, length in zip(layout.offsets, layout.lengths, strict=True):
        if length > k:  # behind the last one that the rank has sent there may be others of it
            is_last = ((classes >= first) & (classes < first + length))[:, ::-1].argmax(axis=-1)
            known = np.minimum(known, classes.shape[-1] - is_last)
    return _Best(values, classes, known)


class _Shard(NamedTuple):
    """The shard of some rows in whole blocks, and what all ranks know of the rows."""

    layout: Layout
    rank: int
    x: Any  # as its bits
    dtype: int
    row_max: Any
    last: Any | None = None  # the last logit that top_p keeps, and its class
    last_class: Any | None = None

    def arguments(self, rows: _Rows, x: Any, min_p: Any) -> tuple[Any, ...]:
        """Those that the stages share; x: the shard, or logits of whole rows."""
        each = rows.parameters["temperature"], min_p, self.last, self.last_class
        return x, self.row_max, self.layout.n_classes, self.layout.offsets[self.rank], *each, rows.num_threads

    def find_masses(self, rows: _Rows, min_p: Any, sums: Any = None) -> NDArray[np.float64]:
        """The mass of each block of the shard; sums: records of their sum, which are written."""
        masses = np.empty((len(self.x), -(-self.x.shape[-1] // BLOCK)))
        if masses.size:
            binding.run_sample_masses(self.dtype, masses, sums, *self.arguments(rows, self.x, min_p))
        return masses

    def draw(self, rows: _Rows, masses: Any) -> NDArray[np.int64]:
        """The draws of classes of this shard, and -1 for all others."""
        indices = np.full(rows.uniforms.shape, -1)
        if self.x.shape[-1]:
            order = np.argsort(rows.uniforms, axis=-1)  # so that draws from one block follow each other
            found = np.empty_like(indices)
            uniforms = np.take_along_axis(rows.uniforms, order, -1)
            arguments = self.arguments(rows, self.x, rows.parameters["min_p"])
            binding.run_sample_draws(self.dtype, masses, uniforms, found, *arguments)
            np.put_along_axis(indices, order, found, -1)
        return indices


def _dtype_of(x: Any) -> int:
    return binding.DTYPES[x.dtype.name]


def _draw_from_whole(comm: Collectives, layout: Layout, rows: _Rows) -> Any:
    """Gather whole rows, and draw from them."""
    bits, pending = as_buffer(rows.x), Pending()
    received = gather_rows(comm, bits, (len(bits), max(layout.lengths)), bits.dtype, pending)
    whole = join_rows(layout, received, layout.lengths).view(rows.x.dtype)
    if not layout.n_classes:
        raise_without_mass(np.unravel_index(rows.numbers[0], rows.batch), -np.inf, "its axis has no classes")
    return rows.draw_from(whole, **rows.parameters)


def _draw_from_candidates(comm: Collectives, layout: Layout, rows: _Rows) -> Any:
    """Gather the top_k largest logits of each shard, and draw from them."""
    k = int(_limits(rows.parameters, layout).max())
    values, classes = _gather_best(comm, layout, rows.x, k, Pending())
    return np.take_along_axis(classes, rows.draw_from(_fill_up(values, k), **rows.parameters), -1)


def _fill_up(values: Any, k: int) -> Any:
    """Logits with as many of -inf behind them as it takes that C selects k of them, as it does of the whole row."""
    length = k + 1 if k <= binding.MANY_SELECTED else binding.MANY_PART * (k + 1)
    if values.shape[-1] >= length:
        return values
    none = np.full((len(values), length - values.shape[-1]), -np.inf, values.dtype)
    return np.concatenate([values, none], axis=-1)


def _draw_by_masses(comm: Collectives, layout: Layout, rows: _Rows) -> Any:
    """Gather the masses of blocks, and draw on the rank that has the block."""
    pending, largest = Pending(), None
    layout, x = _align(comm, layout, as_buffer(rows.x), pending)
    with pending:
        own = _largest_of(x.view(rows.x.dtype)) + 0.0
        largest = np.where(np.isnan(own), np.iinfo(np.int64).max, ordered(own.view(np.int64)))
    row_max = ordered(_reduce_max(comm, largest, (len(x),), pending)).view(np.float64)
    rows.check_mass(row_max)
    return _draw_in_blocks(comm, _Shard(layout, comm.rank, x, _dtype_of(rows.x), row_max), rows, pending)


def _draw_in_blocks(comm: Collectives, shard: _Shard, rows: _Rows, pending: Pending) -> Any:
    blocks = tuple(-(-length // BLOCK) for length in shard.layout.lengths)
    masses = indices = None
    with pending:
        masses = shard.find_masses(rows, rows.parameters["min_p"])
    received = gather_rows(comm, masses, (len(shard.x), max(blocks)), np.dtype(np.float64), pending)
    with pending:
        indices = shard.draw(rows, join_rows(shard.layout, received, blocks))
    return _reduce_max(comm, indices, rows.uniforms.shape, pending)


def _draw_from_nuclei(comm: Collectives, layout: Layout, rows: _Rows) -> Any:
    """Find the classes that top_p keeps, and draw from these."""
    pending = Pending()
    layout, x = _align(comm, layout, as_buffer(rows.x), pending)
    rows = rows._replace(x=x.view(rows.x.dtype))
    best = _find_best(comm, layout, rows.x, binding.FIRST_SELECTED, pending)
    row_max = np.ascontiguousarray(best.values[:, 0]).astype(np.float64)
    rows.check_mass(row_max)
    shard = _Shard(layout, comm.rank, x, _dtype_of(rows.x), row_max)
    sums = np.empty((len(x), binding.RECORD_WORDS), np.int64)
    binding.clear_records(sums)
    with pending:
        shard.find_masses(rows, None, sums)
    received = gather_rows(comm, sums, sums.shape, sums.dtype, pending)
    sums = received[0].copy()
    for other in received[1:]:
        binding.merge_records(sums, np.ascontiguousarray(other))
    kept, is_few = _count_kept(shard, rows, best, sums)
    is_few &= (kept > 0) & (kept <= binding.FIRST_SELECTED)
    last, last_class = _last_of(best, np.maximum(kept, 1))
    indices = np.empty(rows.uniforms.shape, np.int64)
    few, many = np.flatnonzero(is_few), np.flatnonzero(~is_few)
    if len(few):
        indices[few] = _draw_from_few(rows.some(few), best, kept[few], few)
    left = _expand(comm, shard, rows, sums, np.flatnonzero(kept == 0), last, last_class, pending)
    if len(left):
        indices[left] = _draw_from_whole(comm, layout, rows.some(left))
    many = np.setdiff1d(many, left)
    if len(many):
        some = rows.some(many)
        each = row_max[many], last[many], last_class[many]
        shard = _Shard(layout, comm.rank, as_buffer(some.x), shard.dtype, *each)
        indices[many] = _draw_in_blocks(comm, shard, some, pending)
    return indices


def _count_kept(shard: _Shard, rows: _Rows, best: _Best, sums: Any) -> tuple[Any, Any]:
    """How many logits top_p keeps, 0 if more than are known; whether a whole row is drawn from 64 if they suffice."""
    kept = np.empty((len(best.values), 2), np.int64)
    arguments = shard.arguments(rows, np.ascontiguousarray(as_buffer(best.values)), None)
    binding.run_sample_nucleus(shard.dtype, rows.parameters["top_p"], sums, kept, *arguments)
    return np.where(kept[:, 0] <= best.known, kept[:, 0], 0), kept[:, 1] != 0


def _last_of(best: _Best, kept: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The last logit that is kept of each row, and its class."""
    at = kept[:, None] - 1
    return (
        np.take_along_axis(best.values, at, -1)[:, 0].astype(np.float64),
        np.take_along_axis(best.classes, at, -1)[:, 0],
    )


def _draw_from_few(rows: _Rows, best: _Best, kept: Any, few: Any) -> Any:
    """Draw from the largest logits of a few rows, in the order of their classes."""
    values, classes = (a[few, : binding.FIRST_SELECTED] for a in best[:2])
    is_left_out = np.arange(values.shape[-1]) >= kept[:, None]
    values[is_left_out] = -np.inf
    classes[is_left_out] = np.iinfo(np.int64).max  # behind the others
    order = np.argsort(classes, axis=-1)
    given = {name: rows.parameters[name] for name in ("temperature", "min_p")}
    k = values.shape[-1]
    drawn = rows.draw_from(_fill_up(np.take_along_axis(values, order, -1), k), top_k=k, **given)
    return np.take_along_axis(classes, np.take_along_axis(order, drawn, -1), -1)


def _expand(
    comm: Collectives, shard: _Shard, rows: _Rows, sums: Any, left: Any, last: Any, last_class: Any, pending: Pending
) -> NDArray[np.int64]:
    """Select more classes of the rows that are left until top_p is reached, and set the last ones that it keeps.

    Returns the rows that are fewer bytes than the classes which they need.
    """
    k = binding.FIRST_SELECTED
    while len(left):
        if k == MOST_SELECTED:
            row = ", ".join(map(str, np.unravel_index(rows.numbers[left[0]], rows.batch)))
            raise MemoryError(
                f"top_p keeps more than {MOST_SELECTED} classes of a shard in row ({row}): pass top_k as well"
            )
        k = min(k * GROWTH, MOST_SELECTED)
        row_bytes = k * (rows.x.itemsize + 8)
        if row_bytes >= max(shard.layout.lengths) * rows.x.itemsize:
            break
        step = max(1, GATHERED_BYTES // (comm.size * row_bytes))
        more = []
        for begin in range(0, len(left), step):
            at = left[begin : begin + step]
            some, chosen = rows.some(at), shard._replace(row_max=shard.row_max[at])
            best = _find_best(comm, shard.layout, some.x, k, pending)
            kept, _ = _count_kept(chosen, some, best, np.ascontiguousarray(sums[at]))
            last[at], last_class[at] = _last_of(best, np.maximum(kept, 1))
            more.append(at[kept == 0])
        left = np.concatenate(more)
    return left


def sample(
    logits: ArrayLike,
    *,
    group: Any,
    axis: SupportsIndex = -1,
    n_classes: SupportsIndex | None = None,
    offset: SupportsIndex | None = None,
    temperature: ArrayLike = 1.0,
    top_k: ArrayLike | None = None,
    top_p: ArrayLike | None = None,
    min_p: ArrayLike | None = None,
    where: ArrayLike | None = None,
    size: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
    rng: Any = None,
    uniforms: ArrayLike | None = None,
    replace: bool = True,
    return_log_prob: bool = False,
    out: NDArray[np.int64] | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
    **options: Any,
) -> Any:
    """Draw classes of rows whose classes are divided among the ranks of a group.

    Parameters
    ----------
    logits : array_like of shape (..., m)
        The classes of this rank along `axis`.
    group, axis, n_classes, offset, device, num_threads
        As in `softmax`.
    temperature, top_k, top_p, min_p, where, size
        As in `csoftmax.sample`, the same on all ranks; `where` is that of this rank's classes.
    rng, uniforms
        As in `csoftmax.sample`. Those of rank 0 count, and only its generator advances.
    out : ndarray of int64 of the shape of the result, optional
        Array that receives the draws.
    replace, return_log_prob, **options
        Only the defaults are allowed; `typical_p`, `top_n_sigma` and `order` are not.

    Returns
    -------
    ndarray of int64 of the shape of the rows, followed by `size`
        The draws of ``csoftmax.sample`` with the whole rows and the generator of rank 0, on all ranks.

    Raises
    ------
    NotImplementedError
        For what draws over shards do not have.
    MemoryError
        As in `softmax`; and if `top_p` keeps more than 65,536 classes of a shard: `top_k` as well bounds them.
    TypeError, ValueError, DistributedError
        As in `softmax`.

    Notes
    -----
    With `top_k` the ranks gather that many classes of each shard. Without it they gather the mass of each block of 4096
    classes, 8 bytes, and the rank with the block in which a draw lands looks for the class. `top_p` gathers the 64
    largest logits of each shard, and more until their mass suffices, before that. Rows of at most 4096 classes, and
    those whose `top_k` is as large as the row, are gathered whole, some rows at a time.

    Examples
    --------
    >>> from csoftmax.distributed import SingleProcess, sample
    >>> sample([0.0, 50.0, 0.0], group=SingleProcess(), size=3, rng=0)
    array([1, 1, 1])
    """
    comm = as_group(group)
    parameters = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    unused = options | {"replace": replace, "return_log_prob": return_log_prob}
    states: list[Any] = []

    def prepare() -> tuple[Header, _Call]:
        _refuse_options(unused)
        check_num_threads(num_threads)
        states.extend(save_states(rng))
        rows, _, _ = rows_of_shard("logits", logits, axis, where, device)
        batch = rows.shape[:-1]
        shape = check_draws(size)
        if out is not None:
            check_out(as_native(out, "out"), (*batch, *shape), np.dtype(np.int64))
        numbers = {n: None if p is None else as_array(n, as_native_on(device, n, p)) for n, p in parameters.items()}
        checked = {n: None if p is None else p.reshape(-1) for n, p in check_parameters(numbers, batch).items()}
        draws = np.zeros((*batch, math.prod(shape)))
        if uniforms is not None and rng is not None:
            raise ValueError("rng must be None where uniforms are given, because they take its place")
        if comm.rank == 0:
            own = as_native_on(device, "uniforms", uniforms)
            draws = draw_uniforms(rng, batch, shape) if own is None else check_uniforms(own, batch, shape)
        agreed = ("size", shape), *((n, _as_value(p)) for n, p in numbers.items())
        header = header_of_rows("sample", rows, known("n_classes", n_classes), known("offset", offset), agreed)
        x = rows.reshape(math.prod(batch), rows.shape[-1])
        return header, _Call(x, draws, batch, shape, checked, num_threads, where is not None)

    try:
        layout, call = enter(comm, prepare)
        return give_result(logits, out, give_rows(_draw(comm, layout, call), as_native(out, "out")))
    except BaseException:
        restore_states(states)
        raise


def _refuse_options(options: dict[str, Any]) -> None:
    """Refuse what `csoftmax.sample` has and draws over shards have not, and what neither has."""
    given = dict(options)
    refused = [name for name in _NOT_OVER_SHARDS if given.pop(name, None) is not None]
    refused += ["replace=False"] * (not check_flag("replace", given.pop("replace")))
    refused += ["return_log_prob"] * check_flag("return_log_prob", given.pop("return_log_prob"))
    if given:
        raise TypeError(f"sample has no argument {next(iter(given))!r}")
    if refused:
        raise NotImplementedError(f"sample over shards has no {', '.join(refused)}")


def _as_value(parameter: Any) -> Any:
    """A parameter as a value that is compared between ranks."""
    if parameter is None or parameter.ndim:
        return describe(parameter)
    return float(parameter) + 0.0 if parameter.dtype.kind in "iuf" else str(parameter)


def _limits(parameters: dict[str, Any], layout: Layout) -> NDArray[np.int64]:
    """The number of classes that top_k and a temperature of 0 leave of each row, 0 for all."""
    top_k, temperature = parameters["top_k"], parameters["temperature"]
    k = np.zeros((), np.int64) if top_k is None else np.where((top_k > 0) & (top_k < layout.n_classes), top_k, 0)
    return np.asarray(k if temperature is None else np.where(temperature == 0, 1, k))


def _draw(comm: Collectives, layout: Layout, call: _Call) -> Any:
    """Draw from all rows, some at a time."""
    bits = np.ascontiguousarray(call.uniforms).view(np.int64)
    uniforms = comm.all_reduce(bits, "sum").view(np.float64)  # zeros but on rank 0
    count, itemsize, n = len(call.x), call.x.itemsize, layout.n_classes
    uniforms = uniforms.reshape(count, uniforms.shape[-1])
    rows = _Rows(np.arange(count), call.x, uniforms, call.parameters, call.batch, call.num_threads, call.is_masked)
    indices = np.empty(uniforms.shape, np.int64)
    k, top_p = _limits(call.parameters, layout), call.parameters["top_p"]
    longest = max(layout.lengths)
    is_few = (k > 0) & (k * (itemsize + 8) < longest * itemsize)
    is_few &= (k <= binding.MANY_SELECTED) | (k <= n // binding.MANY_PART)
    by_mass = (k == 0) & (n > BLOCK)
    has_top_p = np.zeros((), np.bool_) if top_p is None else top_p < 1
    largest = int(np.max(k, initial=0, where=is_few))
    of_blocks = 8 * (longest // BLOCK + 1) + (longest * itemsize if any(layout.cut_lengths) else 0)  # a copy
    ways: tuple[tuple[Any, Any, int], ...] = (
        (_draw_from_candidates, is_few, largest * (itemsize + 8)),
        (_draw_by_masses, by_mass & ~has_top_p, of_blocks),
        (
            _draw_from_nuclei,
            by_mass & has_top_p,
            binding.FIRST_SELECTED * (itemsize + 8) + of_blocks,
        ),
        (_draw_from_whole, ~is_few & ~by_mass, longest * itemsize),
    )
    for draw, chosen, row_bytes in ways if indices.size else ():
        numbers = np.flatnonzero(np.broadcast_to(chosen, count))
        step = max(1, GATHERED_BYTES // max(1, row_bytes * comm.size))
        for begin in range(0, len(numbers), step):
            some = numbers[begin : begin + step]
            indices[some] = draw(comm, layout, rows.some(some))
    return indices.reshape((*call.batch, *call.size))[()]
