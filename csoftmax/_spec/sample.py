"""sample: its record, and the interval of classes in which the inverse of the distribution must lie."""

from __future__ import annotations

import numpy as np

from .formats import EXACT, Bounds
from .record import CLASSES, DRAWS, Argument, BadCall, Operation, Result, Variant
from .samples import FixedUniform
from .softmax import exact_forward, make_logits, mask_of
from .topk import NO_QUICK_PATH, SPARSE

DRAWS_OF_A_ROW = 9


def distribution(x, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """Return the probabilities of one row after all filters."""
    x = np.asarray(x).astype(EXACT)
    n = len(x)
    order = np.argsort(-x, kind="stable")
    if temperature == 0:
        return np.eye(n, dtype=EXACT)[order[0]]
    p = exact_forward(x, temperature)[0]
    if top_k is not None and top_k > 0:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p is not None and top_p < 1:
        before = np.concatenate([[0], np.cumsum(p[order])[:-1]])
        p[order[before >= top_p]] = 0
        p /= p.sum()
    if min_p is not None:
        p[p < min_p * p.max()] = 0
        p /= p.sum()
    return p


def exact_draws(logits, rng, size, where=None, **filters):
    """Return the classes at which the sums of the probabilities may pass the uniform numbers.

    Sums of float32 exponentials are accurate to about 1e-6, those of float64 ones to 1e-12; so is the number of classes
    that top_p and min_p keep, in which ties at the boundary count.
    """
    logits = np.asarray(logits)
    tolerance = 1e-12 if logits.dtype == np.float64 else 1e-6
    wide = logits.astype(np.float64)
    if where is not None:
        wide = np.where(where, wide, -np.inf)
    uniforms = rng.random((len(logits), size))
    low, high = np.empty((2, len(logits), size), np.int64)
    for row, numbers in enumerate(uniforms):
        found = []
        for sign in (-1, 1):
            near = {
                name: value * (1 + sign * tolerance) for name, value in filters.items() if name in ("top_p", "min_p")
            }
            p = distribution(wide[row], **{**filters, **near})
            sums, last = np.cumsum(p), np.flatnonzero(p)[-1]
            found += [
                np.minimum(np.searchsorted(sums, numbers + shift, "right"), last) for shift in (-tolerance, tolerance)
            ]
        low[row], high[row] = np.min(found, axis=0), np.max(found, axis=0)
    return (Bounds(low, high),)


def draw(**filters):
    """Return options that draw with fixed uniform numbers."""

    def options(shape, dtype, seed):
        size = (int(np.prod(shape[:-1])), DRAWS_OF_A_ROW)
        given = {"rng": FixedUniform(np.random.default_rng(seed + 7).random(size)), "size": DRAWS_OF_A_ROW}
        return given | filters

    return options


def draw_masked(shape, dtype, seed):
    return draw()(shape, dtype, seed) | mask_of(shape, dtype, seed)


NO_MASS = "no mass to draw from in row"
RECORDS = (
    Operation(
        "sample",
        "sample",
        (Argument("logits", CLASSES),),
        (Result("indices", DRAWS, "index"),),
        make_logits,
        exact_draws,
        lambda dtype, options: (0.0,),
        {
            "plain": Variant(draw()),
            "T = 0.5": Variant(draw(temperature=0.5)),
            "T = 0": Variant(draw(temperature=0.0)),
            "top-k": Variant(draw(top_k=12)),
            "no top-k": Variant(draw(top_k=-1)),
            "top-p": Variant(draw(top_p=0.8)),
            "min-p": Variant(draw(min_p=0.2)),
            "every filter": Variant(draw(temperature=2.0, top_k=30, top_p=0.7, min_p=0.1)),
            "mask": Variant(draw_masked),
        },
        {"NaN": NO_MASS, "+inf": NO_MASS, "all -inf": NO_MASS},
        (
            BadCall({"temperature": -1}, ValueError, "temperature must be at least 0, got -1"),
            BadCall(
                {"temperature": [1, np.nan, 1]}, ValueError, r"temperature must be at least 0, got nan for row \(1\)"
            ),
            BadCall({"temperature": [1, 2]}, ValueError, r"temperature has shape \(2,\), which does not broadcast"),
            BadCall({"temperature": "1"}, TypeError, "temperature must hold real numbers"),
            BadCall({"temperature": 10**400}, TypeError, "temperature must hold real numbers"),
            BadCall({"top_k": -2}, ValueError, "top_k must be at least 1, or 0 or -1 for no limit, got -2"),
            BadCall({"top_k": [3, 0, -9]}, ValueError, r"top_k must be .*, got -9 for row \(2\)"),
            BadCall({"top_k": -(2**70)}, ValueError, "top_k must be at least 1, or 0 or -1"),
            BadCall({"top_k": 1.5}, TypeError, "top_k must hold integers"),
            BadCall({"top_p": 0.0}, ValueError, "top_p must be greater than 0 and at most 1, got 0.0"),
            BadCall({"top_p": 1.01}, ValueError, "top_p must be greater than 0"),
            BadCall({"min_p": -0.1}, ValueError, "min_p must be at least 0 and at most 1"),
            BadCall({"min_p": np.nan}, ValueError, "min_p must be at least 0"),
            BadCall({"size": -1}, ValueError, "size must be at least 0"),
            BadCall({"size": True}, TypeError, "size must be an int"),
            BadCall({"size": 1.5}, TypeError, "size must be an int, a tuple of ints or None"),
            BadCall({"rng": -1}, ValueError, "rng must be at least 0 where it is an int, got -1"),
            BadCall(
                {"rng": "x"}, TypeError, "rng must be an int, a numpy.random.SeedSequence, Generator or RandomState"
            ),
            BadCall({"rng": True}, TypeError, "rng must be an int, .* got True"),
            BadCall({"rng": 1.5}, TypeError, "rng must be an int, .* got 1.5"),
            BadCall({"rng": [0, 1]}, ValueError, "rng has length 2; .* there are 3 rows"),
            BadCall({"rng": [0, 1, -2]}, ValueError, r"rng\[2\] must be at least 0 where it is an int, got -2"),
            BadCall({"rng": [0, "x", 1]}, TypeError, r"rng\[1\] must be an int, .* got 'x'"),
            BadCall({"rng": np.zeros(3)}, TypeError, r"rng\[0\] must be an int"),
            BadCall({"out": np.empty((3, 9))}, TypeError, "out has dtype float64"),
            BadCall({"out": np.empty(4, np.int64)}, ValueError, r"out has shape \(4,\)"),
            BadCall({"where": np.zeros((3, 4), bool)}, ValueError, r"row \(0\): where leaves none of its classes"),
            BadCall({"logits": np.zeros((3, 0), np.float32)}, ValueError, r"row \(0\): its axis has no classes"),
        ),
        SPARSE,
        exempt={
            "overlap": "its out holds class numbers: the bits of logits would be meaningless as integers",
            "quick": NO_QUICK_PATH,
            "memory": "its results, a few numbers a row, are too small for the memory that is kept",
        },
    ),
)
