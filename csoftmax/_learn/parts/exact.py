"""Sums of floats without rounding, as integers: the same for any division and order of the rows."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

MANTISSA_BITS, LOW_BITS = 53, 26
MAX_ROWS = 1 << 25  # whose halves of mantissas add up to less than 2^53

Record: TypeAlias = "dict[int, list[int]]"
"""For each exponent e, integers m of all groups: the sums are the m 2^e, added."""


def add_exactly(groups: NDArray[np.intp], values: NDArray[np.float64], n_groups: int) -> Record:
    """The sum of the finite values of each group."""
    record: Record = {}
    for begin in range(0, len(values), MAX_ROWS):
        some, of = values[begin : begin + MAX_ROWS], groups[begin : begin + MAX_ROWS]
        fractions, exponents = np.frexp(some)
        whole = np.ldexp(fractions, MANTISSA_BITS).astype(np.int64)
        for exponent in np.unique(exponents).tolist():
            rows = exponents == exponent
            chosen, mantissas = of[rows], whole[rows]
            high = np.bincount(chosen, mantissas >> LOW_BITS, n_groups).tolist()
            low = np.bincount(chosen, mantissas & ((1 << LOW_BITS) - 1), n_groups).tolist()
            sums = [(int(h) << LOW_BITS) + int(m) for h, m in zip(high, low)]
            _add(record, exponent - MANTISSA_BITS, sums)
    return record


def _add(record: Record, exponent: int, sums: list[int]) -> None:
    there = record.get(exponent)
    record[exponent] = sums if there is None else [a + b for a, b in zip(there, sums, strict=True)]


def round_sums(records: Iterable[Record], n_groups: int) -> NDArray[np.float64]:
    """The sums of all records, each rounded once."""
    merged: Record = {}
    for record in records:
        for exponent, sums in record.items():
            _add(merged, exponent, sums)
    totals = [Fraction(0)] * n_groups
    for exponent, sums in merged.items():
        unit = Fraction(2) ** exponent
        totals = [total + unit * m for total, m in zip(totals, sums, strict=True)]
    return np.array([float(total) for total in totals])
