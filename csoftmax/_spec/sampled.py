"""Losses over sampled classes: records, and an oracle in long double on the gathered rows."""

from __future__ import annotations

import math

import numpy as np

from .._arguments.negatives import Negatives
from .cross_entropy import GRADIENT_ERRORS, LOSS_ERRORS, class_weights, exact_rows, reduce_exact, row_weights
from .formats import EXACT, FORMATS, Exact, loss_dtype, wide
from .linear_cross_entropy import FEATURES, NO_OUT, OF_THE_BLAS, make_layer
from .record import ROWS, WHOLE, Argument, BadCall, Operation, Result, Variant
from .samples import logits

SAMPLED = 5


def chosen_classes(k, seed, size=SAMPLED):
    """Distinct classes, ascending; at most half of all, so that not every label is one of them."""
    return np.sort(np.random.default_rng(seed + 8).permutation(k)[: max(1, min(size, k // 2))])


def log_counts(count, seed):
    return np.random.default_rng(seed + 9).uniform(-3, 0, count)


def gathered(x, w, target, negatives, bias, log_z, options, kind):
    """Long double logits of the negatives and, last, the label; the classes of the columns; the sizes of the terms."""
    n, k = len(x), len(w)
    ids = np.broadcast_to(negatives.ids, (n, np.shape(negatives.ids)[-1]))
    labels = np.where((target >= 0) & (target < k), target, 0)
    columns = np.concatenate([ids, labels[:, None]], axis=1).astype(np.int64)
    rows = wide(w)[columns]
    z = np.einsum("nd,njd->nj", wide(x), rows)
    terms = np.einsum("nd,njd->nj", np.abs(wide(x)), np.abs(rows))
    if bias is not None:
        z, terms = z + wide(bias)[columns], terms + np.abs(wide(bias))[columns]
    t, correction = EXACT(options.get("temperature", 1.0)), options.get("correction", "ranking")
    shift = np.zeros(z.shape, EXACT)
    if negatives.log_q is not None and kind != "negative_sampling" and not (kind == "softmax" and correction == "none"):
        shift[:, :-1] = negatives.log_q
        if kind == "softmax" and negatives.count is not None:
            shift[:, :-1] -= np.log(np.asarray(negatives.count, EXACT))
        if kind == "nce" or correction == "ranking":
            shift[:, -1] = negatives.target_log_q
    if kind == "nce":
        shift = shift + np.asarray(log_z, EXACT)
    hits = columns[:, :-1] == columns[:, -1:]
    if options.get("accidental_hits", "keep" if kind == "nce" else "mask") == "keep":
        hits[...] = False
    z, terms = z / t - shift, terms / t + np.abs(shift)
    z[:, :-1][hits] = -np.inf
    terms[:, :-1][hits] = 0
    return z, columns, terms


def exact_logistic(z, counts, s, t):
    """Row losses and derivatives of logistic terms, the label last."""
    wide_z = z.copy()
    wide_z[:, -1] *= -1
    c = np.ones(z.shape, EXACT)
    if counts is not None:
        c[:, :-1] = counts
    e = np.exp(-np.abs(wide_z))
    loss = (c * (np.maximum(wide_z, 0) + np.log1p(e))).sum(-1)
    g = c * np.where(wide_z >= 0, 1, e) / (1 + e)
    g[:, -1] *= -1
    return s * loss, s[:, None] * g / t


def exact_sampled(kind):
    """Return the oracle of a kind: loss, grad_x, the values of grad_w and, with a bias, of grad_bias."""

    def oracle(x, w, target, negatives=None, bias=None, reduction="mean", upstream=1.0, log_z=0.0, **options):
        negatives = negatives if isinstance(negatives, Negatives) else Negatives(np.asarray(negatives))
        dtype = loss_dtype(np.asarray(x).dtype.name)
        unit = EXACT(2) ** (1 - FORMATS[dtype][0])
        real = np.float64 if dtype == "float64" else np.float32
        z, columns, terms = gathered(x, w, target, negatives, bias, log_z, options, kind)
        t, n, k = EXACT(options.get("temperature", 1.0)), len(x), len(w)
        s = np.ones(n, EXACT) if options.get("sample_weight") is None else wide(options["sample_weight"])
        kept = (target != options.get("ignore_index", -100)) & (s != 0)
        if options.get("weight") is not None:
            s = s * np.asarray(options["weight"]).astype(real).astype(EXACT)[columns[:, -1]]
        s = np.where(kept, s, 0)
        z = np.where(kept[:, None], z, 0)
        rows = exact_rows(z, np.full(n, z.shape[1] - 1), sample_weight=s)
        if kind != "softmax":
            loss, g = exact_logistic(z, negatives.count, s, EXACT(1))
            rows = rows._replace(loss=loss, gradient=g, loss_scale=np.abs(loss), scale=np.abs(g))
        rows = rows._replace(gradient=rows.gradient / t, scale=rows.scale / t, divisor=s)
        doubt = unit * (x.shape[-1] / 8 + 6) * np.where(kept[:, None], terms, 0)  # of a logit
        mass = np.abs(rows.gradient) + 2 * np.abs(rows.scale)
        loss, factor = reduce_exact(rows, reduction)
        row_doubt = (mass * doubt).sum(-1) * t + 8 * unit * rows.loss_scale
        loss_slack = row_doubt if reduction == "none" else row_doubt.sum() * abs(factor)
        factor = np.broadcast_to(factor * np.asarray(upstream, EXACT), n)[:, None]
        g = rows.gradient * factor
        g_doubt = mass * (doubt.max(-1, keepdims=True, initial=0) + 8 * unit) * np.abs(factor)
        g_doubt = g_doubt + EXACT(2) ** (FORMATS[dtype][1] - FORMATS[dtype][0] + 1)
        drawn = np.ravel(negatives.ids)[: None if kept.any() else 0]  # where no row counts, no class is touched
        touched = np.unique(np.concatenate([drawn, columns[kept, -1]]))
        dense, dense_doubt = np.zeros((n, k), EXACT), np.zeros((n, k), EXACT)
        for j in range(z.shape[1]):
            dense[np.arange(n), columns[:, j]] += g[:, j]
            dense_doubt[np.arange(n), columns[:, j]] += g_doubt[:, j]
        rest = unit * (8 + (n + z.shape[1]) / 2)  # half a unit for each term of a product
        size = np.abs(dense) + dense_doubt
        wide_x, wide_w = np.where(kept[:, None], wide(x), 0), wide(w)
        results = [
            Exact(loss.value, loss.scale, loss_slack),
            Exact(dense @ wide_w, None, dense_doubt @ np.abs(wide_w) + rest * (size @ np.abs(wide_w))),
            Exact(
                (dense.T @ wide_x)[touched],
                None,
                (dense_doubt.T @ np.abs(wide_x) + rest * (size.T @ np.abs(wide_x)))[touched],
            ),
        ]
        if bias is not None:
            results.append(Exact(dense.sum(0)[touched], None, (dense_doubt.sum(0) + rest * size.sum(0))[touched]))
        return tuple(results)

    return oracle


def only_loss(oracle):
    return lambda *arrays, **options: oracle(*arrays, **options)[:1]


def values_of(result):
    """The arrays of a result: of gradients of rows the values."""
    parts = result if isinstance(result, tuple) else (result,)
    arrays = (getattr(part, "values", part) for part in parts if part is not None)
    return tuple(np.asarray(part) for part in arrays)


def values_of_layer(result):
    """The arrays of a result but grad_log_z, a number for the whole batch."""
    return values_of(result[:4] if isinstance(result, tuple) else result)


# Options: the negatives are one of them. Those of the rowwise variants hold nothing of the single rows.


def plain(shape, dtype, seed):
    ids = chosen_classes(shape[-1], seed)
    return {"negatives": Negatives(ids, log_counts(len(ids), seed)), "correction": "partition", "reduction": "none"}


def plain_logistic(shape, dtype, seed):
    return {"negatives": chosen_classes(shape[-1], seed), "reduction": "none"}


def plain_nce(shape, dtype, seed):
    return {"negatives": Negatives(chosen_classes(shape[-1], seed)), "log_z": 0.25, "reduction": "none"}


def ranking(shape, dtype, seed):
    ids, rng = chosen_classes(shape[-1], seed), np.random.default_rng(seed + 10)
    count = rng.integers(1, 4, len(ids))
    own = log_counts(math.prod(shape[:-1]), seed + 1).reshape(shape[:-1])
    return {
        "negatives": Negatives(ids, log_counts(len(ids), seed), count, own, "iid"),
        "bias": logits((shape[-1],), loss_dtype(dtype), seed + 6, 1.0),
        "weight": class_weights(shape, dtype, seed),
        "sample_weight": row_weights(shape, seed) + (math.prod(shape[:-1]) == 1),  # a mean needs a weight
        "accidental_hits": "keep",
    }


def of_each_row(shape, dtype, seed):
    rng = np.random.default_rng(seed + 10)
    ids = rng.integers(0, shape[-1], (*shape[:-1], SAMPLED))
    own = log_counts(math.prod(shape[:-1]), seed + 1).reshape(shape[:-1])
    log_q = rng.uniform(-3, 0, ids.shape)
    return {"negatives": Negatives(ids, log_q, None, own, "iid"), "temperature": 0.5, "reduction": "sum"}


def in_chunks(shape, dtype, seed):
    return plain_logistic(shape, dtype, seed) | {"chunk_bytes": 16 * SAMPLED}


MORE = {"ranking": Variant(ranking, is_rowwise=False), "of each row": Variant(of_each_row, is_rowwise=False)}
VARIANTS = {
    "softmax": {"plain": Variant(plain), **MORE},
    "negative_sampling": {"plain": Variant(plain_logistic), "chunks": Variant(in_chunks), **MORE},
    "nce": {"plain": Variant(plain_nce), **MORE},
}
W = np.zeros((4, FEATURES), np.float32)
# The labels, weights and options of every loss, without soft labels and what smooths them.
WITHOUT = ("label_smoothing", "z_loss")
COMMON_ERRORS = tuple(
    bad for bad in LOSS_ERRORS if not set(bad.changes) & set(WITHOUT) and np.ndim(bad.changes.get("target", 0)) != 2
)
ERRORS = (
    *COMMON_ERRORS,
    BadCall({"target": np.full((3, 4), 0.25)}, ValueError, "soft labels need all classes"),
    BadCall({"w": np.zeros((4, 3), np.float32)}, ValueError, r"and w \(4, 3\)"),
    BadCall({"w": W.astype(np.float64)}, TypeError, "w has dtype float64, x has dtype float32"),
    BadCall({"bias": [0, 1]}, ValueError, r"bias has shape \(2,\); w has 4 rows"),
    BadCall({"chunk_bytes": 0}, ValueError, "chunk_bytes must be at least 1, got 0"),
    BadCall({"negatives": Negatives([4], [0.0])}, IndexError, r"negatives.ids\[0\] is 4"),
    BadCall({"negatives": Negatives(np.zeros((2, 1), int))}, ValueError, r"negatives.ids has shape \(2, 1\)"),
    BadCall({"negatives": Negatives([1], [0.0], [-1])}, ValueError, "negatives.count must be positive"),
    BadCall({"accidental_hits": "drop"}, ValueError, 'accidental_hits must be "mask" or "keep", got .drop.'),
)
OWN_ERRORS = {
    "softmax": (
        BadCall({"correction": "all"}, ValueError, 'correction must be "ranking", "partition" or "none", got .all.'),
        BadCall({"negatives": [1, 2]}, ValueError, "negatives are plain classes"),
        BadCall({"correction": "ranking"}, ValueError, "negatives.target_log_q is missing"),
    ),
    "negative_sampling": (),
    "nce": (
        BadCall({"negatives": [1, 2]}, ValueError, "negatives are plain classes"),
        BadCall({"log_z": [0.0]}, ValueError, "log_z has shape"),
        BadCall({"log_z": np.inf}, ValueError, "log_z must be finite"),
    ),
}
EXEMPT = {
    "reproducibility": f"{OF_THE_BLAS}; tests/ops/test_sampled.py compares the bits of classes of each row",
    "overlap": NO_OUT,
    "float_environment": "the BLAS computes in the caller's rounding mode",
    "quick": "it gathers rows, which costs far more than a call",
    "memory": "gradients of the weights are allocated by NumPy",
    "allocation": "threads share no scratch of the core; the results are NumPy's",
}
NAMES = {"softmax": "sampled_softmax_loss", "negative_sampling": "negative_sampling_loss", "nce": "nce_loss"}


def limits(dtype, options):
    """Return the limits beyond the slack of the products: one rounding in the dtype of each result."""
    return 4.0, 1.0, 1.0, 1.0


def records_of(kind):
    """Return the records of a loss and of its gradient."""
    oracle, layer = exact_sampled(kind), (Argument("x", ROWS), Argument("w", WHOLE), Argument("target", ROWS))
    loss = Result("loss", ROWS, "loss")
    gradients = Result("grad_x", ROWS), Result("grad_w", WHOLE), Result("grad_bias", WHOLE)
    return (
        Operation(
            NAMES[kind],
            "sampled",
            layer,
            (loss,),
            make_layer,
            only_loss(oracle),
            limits,
            VARIANTS[kind],
            {"NaN": (np.nan,)},
            ERRORS + OWN_ERRORS[kind],
            golden=("sampled, of each row",),
            exempt=EXEMPT,
            unpack=values_of_layer,
            devices=("cpu",),
        ),
        Operation(
            f"{NAMES[kind]}_with_grad",
            "sampled",
            layer,
            (loss, *gradients),
            make_layer,
            oracle,
            limits,
            VARIANTS[kind],
            {"NaN": (np.nan, np.nan)},
            ERRORS + OWN_ERRORS[kind] + GRADIENT_ERRORS,
            golden=("sampled, of each row",),
            exempt=EXEMPT,
            unpack=values_of_layer,
            devices=("cpu",),
        ),
    )


RECORDS = (*records_of("softmax"), *records_of("negative_sampling"), *records_of("nce"))
