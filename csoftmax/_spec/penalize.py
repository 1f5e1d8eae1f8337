"""penalize: its record, and the formula in long double."""

from __future__ import annotations

import numpy as np

from .formats import EXACT, Exact, wide
from .record import CLASSES, Argument, BadCall, Operation, Result, Variant
from .softmax import make_logits
from .topk import NO_QUICK_PATH

TOKENS = 7  # of every row


def exact_penalties(
    logits, tokens, lengths=None, repetition=1.0, presence=0.0, frequency=0.0, bias=None
) -> tuple[Exact, ...]:
    """Return the new logits, and the largest of the numbers that they are computed from."""
    x = wide(logits)
    rows, n = x.shape
    lengths = np.broadcast_to(len(tokens) if lengths is None else lengths, rows)
    seen = np.zeros(x.shape, np.int64)
    for row, length in enumerate(lengths):
        valid = tokens[:length]
        np.add.at(seen[row], valid[(valid >= 0) & (valid < n)], 1)
    theta, once, each = (
        np.broadcast_to(np.asarray(p, EXACT), rows)[:, None] for p in (repetition, presence, frequency)
    )
    with np.errstate(invalid="ignore", over="ignore"):
        z = np.where(x > 0, x / theta, x * theta)
        y = np.where(seen > 0, z - once - each * seen, x)
        scale = np.where(
            seen > 0, np.maximum(np.maximum(np.abs(x), np.abs(z)), np.maximum(abs(once), abs(each * seen))), abs(x)
        )
    if bias is not None:
        more = np.zeros(n, EXACT) if isinstance(bias, dict) else np.asarray(bias, EXACT)
        if isinstance(bias, dict):
            more[list(bias)] = list(bias.values())
        y, scale = y + more, np.maximum(scale, np.abs(more))
    scale = np.maximum(np.where(np.isfinite(scale), scale, 0), np.where(np.isfinite(y), np.abs(y), 0))
    return (Exact(y, scale),)


def seen_tokens(shape, seed):
    """Return the tokens of every row: one of them is there twice, some are padding."""
    tokens = np.random.default_rng(seed + 5).integers(-2, shape[-1] + 2, TOKENS)
    tokens[3] = tokens[0]
    return tokens


def penalties(**given):
    """Return options with tokens and the same penalties for all rows."""
    return lambda shape, dtype, seed: {"tokens": seen_tokens(shape, seed), **given}


def penalties_of_rows(shape, dtype, seed):
    rows = int(np.prod(shape[:-1]))
    rng = np.random.default_rng(seed)
    numbers = {name: rng.uniform(0.5, 2, rows) for name in ("repetition", "presence", "frequency")}
    return {"tokens": seen_tokens(shape, seed), "lengths": rng.integers(0, TOKENS + 1, rows), **numbers}


def bias_of_classes(shape, dtype, seed):
    tokens = {"tokens": seen_tokens(shape, seed), "presence": 0.25}
    return tokens | {"bias": {0: 2.5, shape[-1] - 1: -1.25}}


RECORDS = (
    Operation(
        "penalize",
        "penalize",
        (Argument("logits", CLASSES),),
        (Result("logits", CLASSES),),
        make_logits,
        exact_penalties,
        lambda dtype, options: (2.01 if dtype == "float64" else 0.502,),
        {
            "plain": Variant(penalties(repetition=1.3)),
            "all": Variant(penalties(repetition=0.8, presence=0.5, frequency=-0.125)),
            "rows": Variant(penalties_of_rows),
            "bias": Variant(bias_of_classes),
        },
        {},
        (
            BadCall(
                {"tokens": np.zeros((2, 3), np.int64)}, ValueError, r"tokens have shape \(2, 3\), and need .*\(3,\)"
            ),
            BadCall({"tokens": np.zeros((3, 3))}, TypeError, "tokens must hold integers, got float64"),
            BadCall({"tokens": 3}, ValueError, "tokens must have an axis of tokens"),
            BadCall({"lengths": [1, 8, 1]}, ValueError, r"lengths must be at most .*, 7, got 8 for row \(1\)"),
            BadCall({"lengths": -1}, ValueError, "lengths must be at least 0, got -1"),
            BadCall({"lengths": 1.5}, TypeError, "lengths must hold integers"),
            BadCall({"repetition": 0}, ValueError, "repetition must be greater than 0 and finite, got 0"),
            BadCall({"repetition": [1, 1, np.inf]}, ValueError, r"repetition must .*, got inf for row \(2\)"),
            BadCall({"presence": np.nan}, ValueError, "presence must be finite, got nan"),
            BadCall({"frequency": [1, 2]}, ValueError, r"frequency has shape \(2,\), which does not broadcast"),
            BadCall({"bias": np.zeros(3)}, ValueError, r"bias has shape \(3,\); it needs .*\(4,\), or .*\(3, 4\)"),
            BadCall({"bias": np.full(4, np.inf)}, ValueError, "bias must hold numbers or -inf, got NaN or"),
            BadCall({"bias": {4: 1.0}}, IndexError, "bias has the key 4, and the classes are those from 0 to 3"),
            BadCall({"bias": {-1: 1.0}}, IndexError, "bias has the key -1"),
            BadCall({"bias": {True: 1.0}}, TypeError, "bias must have integers as keys"),
            BadCall({"bias": {0: np.nan}}, ValueError, r"bias\[0\] must be a number or -inf, got nan"),
            BadCall({"bias": {0: "1"}}, TypeError, r"bias\[0\] must be a real number"),
            BadCall({"bias": ["a"] * 4}, TypeError, "bias must hold real numbers"),
        ),
        ("sampler",),
        exempt={"quick": NO_QUICK_PATH},
        devices=("cpu",),
    ),
)
