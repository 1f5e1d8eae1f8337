"""Merged sums of whole rows, checked: those of one call, of all classes, with one owner for each label."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.labels import raise_bad_label
from .._arguments.places import as_array
from .._cpu import binding
from .shard import Partial, check_origin, check_rounds, check_terms, join_sink, make_room
from .terms import BLOCK, NO_LABEL, Piece, Terms


class Merged(NamedTuple):
    """Checked sums of whole rows."""

    records: Any
    joined: dict[int, Any]  # maxima of the blocks that are divided among shards
    whole: Piece | None
    row_max: Any | None
    weight_sum: float


def check_merged(part: Partial, merged: Any) -> Merged:
    """Check that merged sums are those of whole rows, and need no second round."""
    terms = part.terms
    n = terms.n_classes
    if n > BLOCK and part.intervals and part.block_max is None:
        raise ValueError("partial must be the result of `partial` for this shard, not of a merge")
    check_origin(part)
    if not isinstance(merged, Partial):
        merged = _from_records(part, merged)
    check_origin(merged)
    check_terms(part, merged, "merged is of another call than partial, with another")
    if n and merged.intervals != ((0, n),):
        present = ", ".join(f"{a} to {b - 1}" for a, b in merged.intervals) or "none"
        raise ValueError(f"merged must have all classes, 0 to {n - 1}; it has {present}")
    if merged.second_round is not None:
        raise ValueError(
            "rows have maxima outside the range of the first round: call partial again with "
            f"row_max=merged{'.with_sink(sink)' * part.terms.has_sink}.row_max and merge the results"
        )
    check_rounds(part, merged)
    return accept_merged(merged)


def accept_merged(merged: Partial) -> Merged:
    """Sums of whole rows that need no further round, after a check of the labels' owners."""
    check_owners(merged)
    words = merged.weight_words
    total = float(merged.terms.n_classes) if words is None else float(total_sums(words))
    return Merged(merged.records, merged.joined, merged.whole, merged.given_max, total)


def total_sums(words: Any) -> NDArray[np.float64]:
    """The numbers that sums are, whose words are the last axis."""
    totals = np.empty(words.shape[:-1])
    binding.sum_totals(np.ascontiguousarray(words), totals)
    return totals


def _from_records(part: Partial, records: Any) -> Partial:
    """Records without their Partial, of shards that all begin at multiples of 4096."""
    terms = part.terms
    if terms.n_classes <= BLOCK and records is None and part.whole is not None:
        return part
    if records is None:
        raise ValueError(
            "merged is None, which is allowed where a shard is all of its row, of at most 4096 classes: pass the "
            "result of merge"
        )
    records = as_array("merged", records)
    shape = (*terms.batch, terms.words)
    if records.dtype != np.int64 or records.shape != shape:
        raise ValueError(f"merged has dtype {records.dtype} and shape {records.shape}; records are int64 of {shape}")
    last = terms.n_classes - terms.has_sink
    is_cut = part.fragments or part.joined or (terms.has_sink and last % BLOCK)
    if is_cut or terms.n_classes <= BLOCK or (terms.losses and terms.losses.has_weight):
        raise ValueError(
            "merged must be a Partial where shards begin elsewhere than at multiples of 4096, rows have at most 4096 "
            "classes or a sink in the last block, or losses have class weights"
        )
    records = np.array(records, order="C")
    return Partial(records, None, {}, None, ((0, last),), part.given_max, None, terms)


def with_sink(part: Partial, merged: Any, sink: Any) -> tuple[Partial, Any]:
    """A partial result and the merged ones, of rows with a sink if one is given."""
    if sink is None:
        if part.terms.has_sink:
            raise ValueError("sink must be given where partial was called with has_sink=True")
        return part, merged
    if not isinstance(merged, Partial):
        merged = _from_records(part, merged)
    return make_room(part), join_sink(merged, sink)


def has_bad_label(terms: Terms) -> bool:
    """Whether a label is no class."""
    losses = terms.losses
    return losses is not None and losses.labels is not None and bool((losses.labels == NO_LABEL).any())


def _check_classes(terms: Terms) -> None:
    """Raise for a label that is no class."""
    losses = terms.losses
    if losses is not None and has_bad_label(terms):
        raise_bad_label(losses.target, terms.n_classes, losses.ignore_index, terms.row_at)


def check_owners(merged: Partial) -> None:
    """Raise the same error in every shard for a label that is no class, or that no or several shards have."""
    losses = merged.terms.losses
    if losses is None or losses.labels is None or merged.records is None:
        _check_classes(merged.terms)
        return
    row = binding.find_bad_owner(merged.records, losses.labels)
    if row >= 0:
        _check_classes(merged.terms)
        at = np.unravel_index(row, losses.labels.shape)
        owners = merged.records[..., binding.LABEL_WORDS - 1]
        where = f"[{', '.join(map(str, merged.terms.row_at(at)))}]" if at else ""
        raise ValueError(
            f"target{where} is {losses.labels[at]}: {owners[at]} shards have this class or this label, and exactly 1 "
            "is allowed; shards leave a gap or overlap, or have different labels"
        )
