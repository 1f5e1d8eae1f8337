"""Blocks of rows that arrive in pieces: the arithmetic behind `SoftmaxState`, on arrays with one row after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype

BLOCK = binding.BLOCK_ELEMENTS
FIELDS = binding.STRUCT_BYTES["csm_block"] // 8  # numbers of a block; the first is its maximum, the second its n
_ROW_FIELDS = binding.STRUCT_BYTES["csm_row"] // 8
_N, _HI, _LO, _IS_NAN = 1, 5, 6, 10  # places in a csm_row
_MARGIN = 1300.0  # of x / T: what lies further below the maximum of a row vanishes in every dtype
_LOGSUMEXP, _SOFTMAX = binding.OPS["logsumexp"], binding.OPS["softmax"]


class Kind(NamedTuple):
    """What all blocks of a state have in common."""

    dtype: Any
    temperature: float

    @property
    def code(self) -> int:
        """The dtype's number in the core."""
        return binding.DTYPES[self.dtype.name]

    @property
    def is_single(self) -> bool:
        return bool(compute_dtype(self.dtype) == np.float32)

    @property
    def is_extreme(self) -> bool:
        """Whether every row is transformed because of the temperature (core/temperature.c)."""
        largest = 2.0**60 if self.is_single else 2.0**500
        return not 1 / largest <= self.temperature <= largest

    @property
    def limit(self) -> float:
        """The largest magnitude of the maximum of an ordinary row."""
        return (1e6 if self.is_single else 2.0**45) * self.temperature


class Blocks(NamedTuple):
    """Blocks of the same rows: what logsumexp and softmax need of them, and sums of values."""

    log: Any  # (rows, blocks, FIELDS)
    softmax: Any
    sums: Any | None  # (rows, blocks, width)


def make_blocks(x: Any, values: Any | None, kind: Kind, maxima: Any | None = None) -> Blocks:
    """Blocks of (rows, n) elements, with values (rows, n, width); maxima: rows are transformed with these."""
    x = as_buffer(np.ascontiguousarray(x))
    rows, n = x.shape
    count = -(-n // BLOCK)
    log = np.zeros((rows, count, FIELDS))
    softmax = np.zeros_like(log)
    binding.run_stream_blocks(_LOGSUMEXP, kind.code, x, kind.temperature, maxima, log, None)
    if values is None:
        binding.run_stream_blocks(_SOFTMAX, kind.code, x, kind.temperature, maxima, softmax, None)
        return Blocks(log, softmax, None)
    sums = np.zeros((rows, count, values.shape[2]))
    for i in range(count):
        part = slice(i * BLOCK, (i + 1) * BLOCK)
        of = np.zeros((rows, FIELDS))
        total = np.zeros((rows, values.shape[2]))
        piece, beside = np.ascontiguousarray(x[:, part]), as_buffer(np.ascontiguousarray(values[:, part]))
        binding.run_stream_values(kind.code, piece, kind.temperature, maxima, beside, of, total, None)
        softmax[:, i], sums[:, i] = of, total
    return Blocks(log, softmax, sums)


def needs_elements(blocks: Blocks, kind: Kind) -> bool:
    """Whether a row of these blocks may have to be transformed, for which its elements are needed."""
    if kind.is_extreme:
        return True
    maxima = blocks.log[..., 0]
    near = (maxima > kind.limit - _MARGIN * kind.temperature) | (maxima < -kind.limit)
    return bool((near & np.isfinite(maxima)).any())


class Totals(NamedTuple):
    """The sums of whole rows."""

    lse: Any  # (rows,) float64
    rows: Any  # (rows, _ROW_FIELDS)
    fill: Any  # (rows,): 1 where every probability is `value`
    value: Any
    transformed: Any  # (rows,): bool
    maxima: Any


class Sums:
    """Sums of values over blocks in their order, with the power of two that they are to be multiplied by."""

    def __init__(self, rows: int, width: int):
        self.total = np.zeros((rows, width))
        self.n = np.full(rows, -np.inf)

    def copy(self) -> Sums:
        """An independent copy."""
        other = Sums(0, 0)
        other.total, other.n = self.total.copy(), self.n.copy()
        return other

    def add(self, sums: Any, blocks: Any) -> None:
        """Add the sums (rows, blocks, width) of blocks, in order."""
        for i in range(sums.shape[1]):
            n = np.where(blocks[:, i, 0] == -np.inf, -np.inf, blocks[:, i, 1])
            self.add_scaled(sums[:, i], n)

    def add_scaled(self, total: Any, n: Any) -> None:
        """Add total 2^n."""
        top = np.maximum(self.n, n)
        self.total = _scaled(self.total, self.n, top) + _scaled(total, n, top)
        self.n = top


def _scaled(total: Any, n: Any, top: Any) -> Any:
    """The total times 2^(n - top); 0 where there is nothing yet."""
    with np.errstate(invalid="ignore", under="ignore"):
        by = np.where(n == -np.inf, -5000.0, np.maximum(n - top, -5000.0)).astype(np.int32)
        return np.where((n == -np.inf)[:, None], 0.0, np.ldexp(total, by[:, None]))


def total_of(blocks: Sequence[Blocks], kept: Sequence[Any], has_nan: Any, counts: Any, kind: Kind) -> Totals:
    """The sums of rows from all their blocks.

    kept: elements of the blocks that may matter to rows that are not ordinary, each (rows, at most BLOCK).
    """
    rows = len(counts)
    log = np.concatenate([b.log for b in blocks], axis=1) if blocks else np.zeros((rows, 0, FIELDS))
    softmax = np.concatenate([b.softmax for b in blocks], axis=1) if blocks else log
    maxima = log[..., 0].max(axis=1, initial=-np.inf)
    lse, sums = np.full(rows, -np.inf), np.zeros((rows, _ROW_FIELDS))
    if log.shape[1] and rows:
        binding.combine_stream(_SOFTMAX, kind.code, kind.temperature, None, softmax, sums, None)
        beside = np.zeros_like(sums)
        binding.combine_stream(_LOGSUMEXP, kind.code, kind.temperature, None, log, beside, lse)
    is_ordinary = (np.abs(maxima) <= kind.limit) & (not kind.is_extreme)
    value = np.where(counts == 0, 0.0, np.nan)
    lse = np.where(is_ordinary, lse, np.where(has_nan, np.nan, maxima))
    is_fixed = ~is_ordinary & (has_nan | ~np.isfinite(maxima))
    transformed = ~is_ordinary & ~is_fixed
    if transformed.any():
        x = join_padded([e[transformed] for e in kept], -np.inf)
        made = make_blocks(x, None, kind, maxima[transformed])
        ours, beside, tails = sums[transformed], np.zeros((len(x), _ROW_FIELDS)), np.zeros(len(x))
        binding.combine_stream(_SOFTMAX, kind.code, kind.temperature, maxima[transformed], made.softmax, ours, None)
        binding.combine_stream(_LOGSUMEXP, kind.code, kind.temperature, maxima[transformed], made.log, beside, tails)
        sums[transformed] = ours
        at_zero = (kind.temperature == 0) & (maxima[transformed] != 0)
        lse[transformed] = np.where(at_zero, np.copysign(np.inf, maxima[transformed]), tails)
    return Totals(lse, sums, is_fixed, value, transformed, maxima)


def join_padded(parts: Sequence[Any], fill: float) -> Any:
    """Pieces (rows, at most BLOCK, ...) one after the other, each filled up to a whole block, but for the last."""
    *first, last = parts
    padded = []
    for x in first:
        if x.shape[1] < BLOCK:
            rest = np.full((len(x), BLOCK - x.shape[1], *x.shape[2:]), fill).astype(x.dtype)
            x = np.concatenate([x, rest], axis=1)
        padded.append(x)
    return np.concatenate([*padded, last], axis=1)


def probabilities_of(x: Any, totals: Totals, kind: Kind) -> Any:
    """The softmax of pieces (rows, n) of the rows; elements that are not in the sums get e^(x / T) over the sum too."""
    result, has_others = _results_of(x, totals, kind)
    if has_others:
        others = ~(x <= totals.maxima[:, None])
        result, _ = _results_of(np.where(others, np.array(-np.inf).astype(x.dtype), x), totals, kind)
        with np.errstate(all="ignore"):
            own = np.exp(x.astype(np.float64) / kind.temperature - totals.lse[:, None])
            own[np.isnan(own)] = np.nan  # the canonical one
            result = np.where(others, own.astype(x.dtype), result)
    result[totals.fill] = totals.value[totals.fill, None].astype(x.dtype)
    return result


def _results_of(x: Any, totals: Totals, kind: Kind) -> tuple[Any, bool]:
    """The softmax of pieces, and whether they have elements that are not in the sums, which spoil their blocks'."""
    result, has_others = np.empty(x.shape, x.dtype), False
    for chosen, maxima in ((~totals.transformed, None), (totals.transformed, totals.maxima)):
        if not chosen.any() or x.shape[1] == 0:
            continue
        is_all = bool(chosen.all())
        piece = np.ascontiguousarray(x if is_all else x[chosen])
        to = result if is_all else np.empty_like(piece)
        of = totals.rows if is_all else np.ascontiguousarray(totals.rows[chosen])
        given = None if maxima is None else np.ascontiguousarray(maxima[chosen])
        has_others |= binding.run_stream_results(
            kind.code, as_buffer(piece), kind.temperature, given, of, as_buffer(to), None
        )
        if not is_all:
            result[chosen] = to
    return result, has_others


def mean_of(sums: Sums, totals: Totals) -> Any:
    """Sums of values over sums of weights, in float64, 0 where a row has no weight."""
    rows = totals.rows
    with np.errstate(all="ignore"):
        scaled = _scaled(sums.total, sums.n, rows[:, _N])
        mean = scaled / (rows[:, _HI] + rows[:, _LO])[:, None]
    is_nan = totals.fill | (np.ascontiguousarray(rows[:, _IS_NAN]).view(np.int32)[::2] != 0)
    mean[is_nan[:, None] | np.isnan(mean)] = np.nan  # the canonical one
    mean[totals.lse == -np.inf] = 0
    return mean
