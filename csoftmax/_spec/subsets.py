"""Subsets of a fixed size: records, and an oracle by the recurrence over elements in long double.

tests/ops/test_subsets.py judges accuracy in many digits, where the recurrence needs no range.
"""

from __future__ import annotations

import numpy as np

from .formats import EXACT, Exact, wide
from .record import CLASSES, ROWS, Argument, BadCall, Operation, Result, Variant
from .samples import logits


def make_rows(shape, dtype, seed, sigma, soft):
    """Return scores, and the size of the subsets of each row."""
    rng = np.random.default_rng(seed + 1)
    return logits(shape, dtype, seed, sigma), rng.integers(0, min(5, shape[-1] + 1), shape[:-1])


def polynomials(weights, k):
    """Return the elementary symmetric polynomials of degree 0 to k."""
    e = np.zeros(k + 1, EXACT)
    e[0] = 1
    for w in weights:
        e[1:] = e[1:] + e[:-1] * w
    return e


def exact_row(x, k):
    """Return log e_k and the probabilities of the elements of one row."""
    if k > np.count_nonzero(x > -np.inf):
        return -EXACT(np.inf), np.full(len(x), np.nan, EXACT)
    top = x.max(initial=-np.inf)
    w = np.exp(x - top)
    total = polynomials(w, k)[k]
    without = [polynomials(np.delete(w, i), max(k - 1, 0))[max(k - 1, 0)] for i in range(len(x))]
    p = w * np.array(without, EXACT) / total if k else np.zeros(len(x), EXACT)
    return np.log(total) + k * (top if k else EXACT(0)), p


def exact_rows(x, k):
    rows, sizes = wide(x).reshape(-1, np.shape(x)[-1]), np.ravel(k)
    found = [exact_row(row, int(size)) for row, size in zip(rows, sizes, strict=True)]
    sums = np.array([total for total, _ in found], EXACT).reshape(np.shape(x)[:-1])
    p = np.array([each for _, each in found], EXACT).reshape(np.shape(x))
    slack = EXACT(2.0**-53) * 64 * np.abs(np.where(np.isfinite(rows), rows, 0)).sum(-1).reshape(sums.shape)
    return sums, p, slack


def exact_sums(x, k):
    sums, _, slack = exact_rows(x, k)
    return (Exact(sums, None, slack),)


def exact_marginals(x, k):
    _, p, _ = exact_rows(x, k)
    return (Exact(p, None, EXACT(2.0**-50)),)


EXEMPT = {
    "accuracy": "the recurrence leaves the range of long double: tests/ops/test_subsets.py compares with mpmath",
    "special_values": "their meaning depends on k: tests/ops/test_subsets.py",
    "overlap": "it has no out",
    "interrupt": "rows that are not contiguous are copied: tests/ops/test_subsets.py stops long rows",
    "memory": "it has no out, and works on a copy of x in float64",
}
ERRORS = (
    BadCall({"k": -1}, ValueError, "k must be at least 0, got -1"),
    BadCall({"k": 1.5}, TypeError, "k must hold integers"),
    BadCall({"k": [1, 2]}, ValueError, r"k has shape \(2,\)"),
    BadCall({"axis": 7}, ValueError, "axis 7 is out of bounds"),
    BadCall({"segment_ids": [0, 1, 5], "num_segments": 2}, IndexError, r"segment_ids\[2\] is 5"),
)


def limits(dtype, options):
    """Return the limits beyond the slack."""
    return (4.0,)


def operation(name, result, oracle):
    return Operation(
        name,
        "subsets",
        (Argument("x", CLASSES), Argument("k", ROWS)),
        (result,),
        make_rows,
        oracle,
        limits,
        {"plain": Variant()},
        {},
        ERRORS,
        golden=("subsets",),
        exempt=EXEMPT,
        devices=("cpu",),
    )


RECORDS = (
    operation("subset_logsumexp", Result("sums", ROWS), exact_sums),
    operation("subset_marginals", Result("marginals", CLASSES), exact_marginals),
)
