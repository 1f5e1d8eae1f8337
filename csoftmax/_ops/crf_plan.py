"""What all functions of linear-chain conditional random fields share: the checked call, and results by position."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from .._arguments.places import check_kernels, place_of
from .._arguments.sequences import (
    Parameters,
    Sequences,
    Tags,
    check_allowed,
    check_parameters,
    clear_absent,
    lay_out_sequences,
)
from .._cpu import binding
from .._cpu.dtypes import as_buffer, compute_dtype


class CrfPlan(NamedTuple):
    """A checked call: a chain's parameters, and sequences of emissions."""

    sequences: Sequences
    parameters: Parameters
    allowed: Any | None
    place: Any
    num_threads: Any

    def run(self, task: str, tags: Tags | None = None, **options: Any) -> int | None:
        """Call the core; the number of a row with a bad label, or None."""
        s, (labels, sets, ignore) = self.sequences, (None, None, None) if tags is None else tags[:3]
        arrays = (*self.parameters.arrays, s.offsets, s.rows, self.allowed, labels, ignore, sets)
        is_slow = os.environ.get("CSOFTMAX_CRF_SLOW") == "1"
        return binding.run_crf(
            binding.CRF_TASKS[task],
            s.dtype,
            as_buffer(s.x),
            s.shape,
            *arrays,
            self.num_threads,
            is_slow=is_slow,
            **options,
        )

    def loss_dtype(self) -> Any:
        """The dtype of numbers a sequence."""
        return compute_dtype(self.sequences.x.dtype)

    def finish(self, values: Any, paths: int | None = None) -> Any:
        """Numbers a sequence (and path) in the shape and dtype of the result."""
        batch = self.sequences.batch
        with np.errstate(over="ignore"):
            rounded = values.astype(self.loss_dtype(), copy=False)
        return rounded.reshape(batch if paths is None else (*batch, paths))[()]


def plan_crf(
    emissions: Any,
    transitions: Any,
    *,
    start: Any,
    end: Any,
    lengths: Any,
    mask: Any,
    indptr: Any,
    allowed: Any,
    device: str | None,
    num_threads: Any,
) -> CrfPlan:
    """Check the arguments that all functions share."""
    place = place_of(device, emissions)
    if place.on_cuda:
        check_kernels("crf")
    sequences = lay_out_sequences(emissions, place, lengths, mask, indptr)
    parameters = check_parameters(transitions, start, end, sequences.n, place)
    return CrfPlan(sequences, parameters, check_allowed(allowed, sequences, place), place, num_threads)


def give_rows(plan: CrfPlan, out: Any, buffer: Any) -> Any:
    """The result with one row of tags a position, in `out` if there is one."""
    result = buffer.view(plan.sequences.x.dtype)
    clear_absent(result, plan.sequences)
    if out is None:
        return result
    if as_buffer(out) is not buffer and not np.shares_memory(out, result):
        out[...] = result
    return out
