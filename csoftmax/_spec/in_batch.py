"""Softmax over the candidates of a batch: records, and an oracle that holds all logits in long double."""

from __future__ import annotations

import numpy as np

from .cross_entropy import exact_rows, reduce_exact, row_weights
from .formats import EXACT, FORMATS, Exact, loss_dtype, wide
from .linear_cross_entropy import FEATURES, NO_OUT, OF_THE_BLAS
from .record import ROWS, WHOLE, Argument, BadCall, Operation, Result, Variant, constant
from .samples import logits


def exact_in_batch(x, y, target=None, ids=None, log_q=None, mask=None, correction="ranking", temperature=1.0,
                   sample_weight=None, reduction="mean", upstream=1.0, chunk_bytes=None):  # fmt: skip
    """Return loss, grad_x and grad_y; the slack is that of the linear layer."""
    dtype = loss_dtype(np.asarray(x).dtype.name)
    unit, t = EXACT(2) ** (1 - FORMATS[dtype][0]), np.asarray(temperature, EXACT)
    wide_x, wide_y, n = wide(x), wide(y), len(x)
    target = np.arange(n) if target is None else target
    z, terms = wide_x @ wide_y.T / t, np.abs(wide_x) @ np.abs(wide_y).T / t
    at = np.arange(n), target
    if log_q is not None and correction != "none":
        own = z[at]
        z, terms = z - np.asarray(log_q, EXACT), terms + np.abs(log_q)
        if correction == "partition":
            z[at] = own
    own = z[at]
    if ids is not None:
        z[np.asarray(ids)[target][:, None] == np.asarray(ids)] = -np.inf
    if mask is not None:
        z[mask] = -np.inf
    z[at] = own
    terms = np.where(np.isinf(z), 0, terms)
    rows = exact_rows(z, target, sample_weight=sample_weight)
    doubt = unit * (x.shape[-1] / 8 + 6) * terms
    mass = np.abs(rows.gradient) + 2 * np.abs(rows.scale)
    loss, factor = reduce_exact(rows, reduction)
    row_doubt = (mass * doubt).sum(-1) + 8 * unit * rows.loss_scale
    slack = row_doubt if reduction == "none" else row_doubt.sum() * abs(factor)
    factor = np.broadcast_to(factor * np.asarray(upstream, EXACT), n)[:, None] / t
    g = rows.gradient * factor
    g_doubt = mass * (doubt.max(-1, keepdims=True, initial=0) + 8 * unit) * np.abs(factor)
    g_doubt = g_doubt + EXACT(2) ** (FORMATS[dtype][1] - FORMATS[dtype][0] + 1)
    # Half a unit for each term of a product: a BLAS may add the equal terms of a flat row one after the other, and its
    # roundings then have one sign.
    size, rest = np.abs(g) + g_doubt, unit * (8 + (n + len(y)) / 2)
    return (
        Exact(loss.value, loss.scale, slack),
        Exact(g @ wide_y, None, g_doubt @ np.abs(wide_y) + rest * (size @ np.abs(wide_y))),
        Exact(g.T @ wide_x, None, g_doubt.T @ np.abs(wide_x) + rest * (size.T @ np.abs(wide_x))),
    )


def make_towers(shape, dtype, seed, sigma, soft):
    """Return x (rows, D) and y (at least as many rows), whose products have about the scale sigma or are of a kind."""
    rows, k = int(np.prod(shape[:-1])), shape[-1]
    candidates = max(rows, k)
    if isinstance(sigma, str):  # each row of x selects a column of y
        y = logits((FEATURES, candidates), dtype, seed, sigma).T
        return np.eye(FEATURES, dtype=y.dtype)[np.arange(rows) % FEATURES], np.ascontiguousarray(y)
    scale = (sigma / FEATURES**0.5) ** 0.5
    return logits((rows, FEATURES), dtype, seed, scale), logits((candidates, FEATURES), dtype, seed + 1, scale)


def corrected(shape, dtype, seed):
    rng, rows = np.random.default_rng(seed + 7), int(np.prod(shape[:-1]))
    candidates = max(rows, shape[-1])
    return {
        "ids": rng.integers(0, 1 + candidates // 2, candidates),
        "log_q": rng.uniform(-3, 0, candidates),
        "mask": rng.random((rows, candidates)) < 0.2,
        "sample_weight": row_weights((rows, 1), seed) + 0.125,
        "temperature": 0.5,
    }


def in_chunks(shape, dtype, seed):
    return {"chunk_bytes": 64, "correction": "partition", "log_q": corrected(shape, dtype, seed)["log_q"]}


def with_temperatures(shape, dtype, seed):
    t = np.resize([1.0, 0.3, 7.0], int(np.prod(shape[:-1])))[:, None]
    return {"temperature": t, "log_q": corrected(shape, dtype, seed)["log_q"], "reduction": "none"}


VARIANTS = {
    "plain": Variant(constant(reduction="none"), is_rowwise=False),
    "corrected": Variant(corrected, is_rowwise=False),
    "chunks": Variant(in_chunks, is_rowwise=False),
    "T a row": Variant(with_temperatures, is_rowwise=False),
}
ERRORS = (
    BadCall({"y": np.zeros((4, 3), np.float32)}, ValueError, r"and y \(4, 3\)"),
    BadCall({"y": np.zeros((2, FEATURES), np.float32)}, ValueError, "y has 2 rows, x 3: without target"),
    BadCall({"y": np.zeros((4, FEATURES))}, TypeError, "y has dtype float64, x has dtype float32"),
    BadCall({"target": [0, 1]}, ValueError, r"target has shape \(2,\)"),
    BadCall({"target": [0, 1, 4]}, IndexError, r"target\[2\] is 4: the candidates are 0 to 3"),
    BadCall({"ids": [1, 2]}, ValueError, "one id for each of 4 candidates"),
    BadCall({"log_q": [0, 0, np.nan, 0]}, ValueError, "log_q is nan for candidate 2"),
    BadCall({"mask": np.zeros((3, 4))}, TypeError, "mask must be boolean"),
    BadCall({"symmetric": True}, ValueError, "symmetric needs as many candidates as rows"),
    BadCall({"correction": "all"}, ValueError, 'correction must be "ranking", "partition" or "none", got .all.'),
    BadCall({"temperature": 0.0}, ValueError, "temperature must be positive and finite"),
)
EXEMPT = {
    "reproducibility": f"{OF_THE_BLAS}; tests/ops/test_in_batch.py",
    "golden": OF_THE_BLAS,
    "overlap": NO_OUT,
    "float_environment": "the BLAS computes in the caller's rounding mode",
    "quick": "its products of matrices cost far more than a call",
    "memory": "its gradients are allocated by NumPy",
    "allocation": "the core allocates nothing but what cross_entropy does, which is tested there",
    "interrupt": "its chunks are those of linear_cross_entropy, whose interrupts are tested; more rows need more y",
}


def limits(dtype, options):
    """Return the limits beyond the slack of the products: one rounding in the dtype of each result."""
    return 4.0, 1.0, 1.0


def exact_in_batch_loss(x, y, **options):
    return exact_in_batch(x, y, **options)[:1]


TOWERS = Argument("x", ROWS), Argument("y", WHOLE)
LOSS = Result("loss", ROWS, "loss")
RECORDS = (
    Operation(
        "in_batch_softmax_loss",
        "in_batch",
        TOWERS,
        (LOSS,),
        make_towers,
        exact_in_batch_loss,
        limits,
        VARIANTS,
        {"NaN": (np.nan,)},
        ERRORS,
        exempt=EXEMPT,
        devices=("cpu",),
    ),
    Operation(
        "in_batch_softmax_loss_with_grad",
        "in_batch",
        TOWERS,
        (LOSS, Result("grad_x", ROWS), Result("grad_y", WHOLE)),
        make_towers,
        exact_in_batch,
        limits,
        VARIANTS,
        {"NaN": (np.nan, np.nan)},
        (*ERRORS, BadCall({"upstream": [1.0, 2.0]}, ValueError, r"upstream has shape \(2,\)")),
        exempt=EXEMPT,
        devices=("cpu",),
    ),
)
