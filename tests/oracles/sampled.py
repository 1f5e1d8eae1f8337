"""Losses over sampled classes by their formulas, one row at a time, in float64 or with mpmath."""

import numpy as np


def kept_negatives(ids, label, accidental_hits):
    """The positions of the negatives that take part."""
    return [i for i, j in enumerate(ids) if accidental_hits == "keep" or j != label]


def row_loss(functions, kind, z, label, ids, log_q, count, target_log_q, correction="ranking", hits="mask", log_z=0):
    """The loss of a row and its derivatives by all logits z; functions: a module with exp, log and log1p."""
    exp, log, log1p = functions.exp, functions.log, functions.log1p
    at = kept_negatives(ids, label, hits)
    zero = z[0] * 0
    gradient = [zero for _ in z]
    count = [1] * len(ids) if count is None else count
    if kind == "softmax":
        is_corrected = correction != "none" and log_q is not None
        u = [z[ids[i]] - (log_q[i] - log(zero + count[i]) if is_corrected else 0) for i in at]
        own = z[label] - (target_log_q if is_corrected and correction == "ranking" and len(ids) else 0)
        top = max([own, *u])
        e = [exp(v - top) for v in u]
        total = sum(e, exp(own - top))
        for i, v in zip(at, e, strict=True):
            gradient[ids[i]] += v / total
            gradient[label] -= v / total
        return top + log(total) - own, gradient
    log_z = log_z if kind == "nce" else 0
    shift = [(log_q[i] if kind == "nce" and log_q is not None else 0) + log_z for i in range(len(ids))]
    u = [z[ids[i]] - shift[i] for i in at]
    own = z[label] - ((target_log_q if log_q is not None else 0) + log_z if kind == "nce" else 0)

    def softplus(v):
        return max(v, zero) + log1p(exp(-abs(v)))

    def sigma(v):
        return 1 / (1 + exp(-v)) if v >= 0 else exp(v) / (1 + exp(v))

    loss = softplus(-own) + sum((count[i] * softplus(v) for i, v in zip(at, u, strict=True)), zero)
    for i, v in zip(at, u, strict=True):
        gradient[ids[i]] += count[i] * sigma(v)
    gradient[label] -= sigma(-own)
    return loss, gradient


def batch_loss(
    kind, x, w, target, negatives, bias=None, correction="ranking", accidental_hits="mask", log_z=0.0, weight=None,
    sample_weight=None, ignore_index=-100, temperature=1.0, reduction="mean", upstream=1.0, clip_norm=None,
    clip_value=None,
):  # fmt: skip
    """The loss and the gradients of x, w, bias and log_z (one a row) in float64, dense."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    rows, classes = x.shape[0], w.shape[0]
    ids = np.broadcast_to(negatives.ids, (rows, np.shape(negatives.ids)[-1]))
    of_row = [None if v is None else np.broadcast_to(v, ids.shape) for v in (negatives.log_q, negatives.count)]
    log_z = np.broadcast_to(log_z, rows)
    loss, g, mass = np.zeros(rows), np.zeros((rows, classes)), np.zeros(rows)
    for i in range(rows):
        s = 1.0 if sample_weight is None else sample_weight[i]
        if target[i] == ignore_index or s == 0:
            continue
        s = mass[i] = s * (1.0 if weight is None else float(weight[target[i]]))
        z = (w @ x[i] + (0 if bias is None else np.asarray(bias, np.float64))) / temperature
        log_q, count = (None if v is None else v[i] for v in of_row)
        own_log_q = None if negatives.target_log_q is None else negatives.target_log_q[i]
        loss[i], row = row_loss(
            np, kind, z, target[i], ids[i], log_q, count, own_log_q, correction, accidental_hits, log_z[i]
        )
        loss[i] *= s
        g[i] = s * np.array(row) / temperature
    upstream = np.broadcast_to(upstream, rows)[:, None]
    if clip_norm is not None:  # of the candidates' gradient, which is that of the logits unless a hit is kept
        norm = np.sqrt((g**2).sum(1, keepdims=True))
        g = g * np.minimum(1, clip_norm / np.maximum(norm, 1e-300))
    if clip_value is not None:
        g = np.clip(g, -clip_value, clip_value)
    factor = 1 / mass.sum() if reduction == "mean" else 1.0
    g = g * upstream * factor
    reduced = loss if reduction == "none" else loss.sum() * factor
    return reduced, g @ w, g.T @ x, g.sum(0), -temperature * g.sum(1)
