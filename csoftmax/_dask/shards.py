"""Rows whose classes are in several chunks: the sums of each chunk, their tree, and what the chunks make of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dask.sizeof import sizeof

from .._distributed.merged import Merged, check_merged
from .._distributed.shard import Partial, Piece, Terms, merge, sum_piece
from .blocks import Argument, map_chunks, merge_chunks
from .collections import Begins, Letters

# Checks the chunks of a call, of which the first one begins at a class: (x, first class, *others) -> (terms, piece).
Plan = Callable[..., tuple[Terms, Piece]]
# Makes the result of a chunk: (terms, piece, sums of the chunk, merged sums, *further) -> result.
Finish = Callable[..., Any]


@sizeof.register(Partial)
def _size_of(part: Partial) -> int:
    """The bytes of sums, for Dask's account of memory, which does not look into objects."""
    arrays = [part.records, part.block_max, part.given_max]
    if part.terms.losses is not None:
        arrays += [part.terms.losses.labels, part.terms.losses.target, part.terms.losses.sample_weight]
    return 1000 + sum(a.nbytes for a in arrays if a is not None)


class Sums(NamedTuple):
    """The sums of rows, lazily."""

    plan: Plan
    axis: int
    letters: Letters  # of x
    chunks: list[Argument]  # x, the first classes of its chunks, and the other arguments
    parts: Any  # the sums of each chunk
    second: Any  # of rows that need a second round; None where no row of the chunk does
    first: Any  # of the whole rows, without a second round
    split_every: int

    @property
    def merged(self) -> Any:
        """The sums of the whole rows."""
        return self._settle(_settle, object)

    @property
    def rows(self) -> Letters:
        """The axes of the rows."""
        return tuple(i for i in self.letters if i != self.axis)

    def finish(self, write: Finish, *further: Argument, dtype: Any, like: Any = None, keeps_class: bool = True) -> Any:
        """The results of all chunks; keeps_class False: they have no class axis, but one element there."""
        sums = [(self.parts, self.letters), (self.second, self.letters), (self.merged, self.rows)]
        function = functools.partial(_finish, self.plan, write, len(self.chunks))
        ones = None if keeps_class else {self.axis: 1}
        arguments = [*self.chunks, *sums, *further]
        return map_chunks(function, self.letters, arguments, dtype=dtype, like=like, chunks=ones)

    def finish_rows(self, write: Callable[[Partial], Any], *, dtype: Any) -> Any:
        """What follows from the merged sums alone.

        The task that merges them does it: one of its own would wait for the scheduler once more.
        """
        return self._settle(functools.partial(_settle_and_write, write), dtype)

    def _settle(self, settle: Callable[..., Any], dtype: Any) -> Any:
        arity = self.split_every**2  # a level waits for the scheduler, and there is rarely anything to merge
        return merge_chunks(_merge, self.second, self.axis, arity, settle=settle, beside=self.first, dtype=dtype)


def sum_up(plan: Plan, x: Any, axis: int, others: Sequence[Argument], *, num_threads: int, split_every: int) -> Sums:
    """The sums of rows, with a second round for those that need it.

    The tasks of the second round return at once where no row needs it; their tree has fewer levels, each of which waits
    for the scheduler.
    """
    letters = tuple(range(x.ndim))
    rows = tuple(i for i in letters if i != axis)
    chunks = [(x, letters), (Begins(x.chunks[axis]), (axis,)), *others]
    one = {axis: 1}
    parts = map_chunks(functools.partial(_sum, plan, num_threads), letters, chunks, dtype=object, chunks=one)
    merged = merge_chunks(_merge, parts, axis, split_every)
    arguments = [(merged, rows), *chunks]
    second = map_chunks(functools.partial(_sum_again, plan, num_threads), letters, arguments, dtype=object, chunks=one)
    return Sums(plan, axis, letters, chunks, parts, second, merged, split_every)


def _sum(plan: Plan, num_threads: int, x: Any, first: int, *others: Any, row_max: Any = None) -> Partial:
    """The sums of a chunk, without the chunk itself."""
    terms, piece = plan(x, first, *others)
    return dataclasses.replace(sum_piece(terms, piece, row_max, num_threads=num_threads), local=None)


def _sum_again(plan: Plan, num_threads: int, merged: Partial, *chunk: Any) -> Partial | None:
    row_max = merged.second_round
    return None if row_max is None else _sum(plan, num_threads, *chunk, row_max=row_max)


def _merge(parts: list[Partial | None]) -> Partial | None:
    return None if parts[0] is None else merge(parts)


def _settle(again: Partial | None, merged: Partial) -> Partial:
    return merged if again is None else again


def _settle_and_write(write: Callable[[Partial], Any], again: Partial | None, merged: Partial) -> Any:
    return write(_settle(again, merged))


def _finish(plan: Plan, write: Finish, count: int, *blocks: Any) -> Any:
    x, first, *others = blocks[:count]
    part, second, merged, *further = blocks[count:]
    terms, piece = plan(x, first, *others)
    own = part if second is None else second
    return write(terms, piece, *check_sums(own, piece, merged), *further)


def check_sums(part: Partial, piece: Piece, merged: Partial) -> tuple[Partial, Merged]:
    """The sums of a chunk with the chunk, and those of the whole rows, checked."""
    own = dataclasses.replace(part, local=piece)
    return own, check_merged(own, merged)


def whole_sums(merged: Partial) -> Merged:
    """The sums of whole rows, checked, without a chunk."""
    return check_merged(dataclasses.replace(merged, intervals=()), merged)
