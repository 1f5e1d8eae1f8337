"""Class hashing by its definition: buckets in Python's integers, scores class by class in NumPy's float32."""

import numpy as np

import csoftmax


def find_buckets(family, n_buckets, ids):
    """Buckets (n, R) of integers under the numbers a1, a2 and c of each hash, (3, R)."""
    numbers = [tuple(map(int, hash_)) for hash_ in zip(*family, strict=True)]
    result = []
    for i in ids:
        low, high = int(i) % 2**32, int(i) % 2**64 >> 32
        h = [((a1 * low + a2 * high + c) % 2**64) >> 32 for a1, a2, c in numbers]
        result.append([(each * n_buckets) >> 32 for each in h])
    return np.array(result).reshape(len(ids), len(numbers))


def find_shares(layer):
    """Shares of the counts: of the classes, and of the buckets of each hash."""
    shares = layer.counts / layer.counts.max()
    shares /= shares.sum()
    buckets = find_buckets(layer._family, layer.n_buckets, range(layer.n_classes))
    return shares, np.array([np.bincount(b, shares, layer.n_buckets) for b in buckets.T])


def compute_scores(layer, x, ids):
    """Scores (n, m) in float32 of HashedSoftmax or BloomSoftmax, from its logits."""
    logits = np.asarray(x, layer.dtype) @ layer.parameters["w"].T + layer.parameters.get("bias", layer.dtype.type(0))
    logits = logits.reshape(len(x), -1, layer.n_buckets)
    aggregate = getattr(layer, "aggregate", "sum")
    tables = csoftmax.softmax(logits) if aggregate in ("mean", "min") else csoftmax.log_softmax(logits)
    prior = np.zeros(len(ids), np.float32)
    if aggregate == "prior":
        shares, of_buckets = find_shares(layer)
        with np.errstate(divide="ignore"):
            tables = tables - np.where(of_buckets > 0, np.log(of_buckets), 0)
            prior = np.log(shares).astype(np.float32)[ids]
    tables = np.broadcast_to(tables.astype(np.float32), (len(x), layer.n_hashes, layer.n_buckets))
    buckets = find_buckets(layer._family, layer.n_buckets, ids)
    result = tables[:, 0, buckets[:, 0]]
    for r in range(1, layer.n_hashes):
        found = tables[:, r, buckets[:, r]]
        result = np.minimum(result, found) if aggregate == "min" else result + found
    if aggregate in ("mean", "geometric", "prior"):
        result = result / np.float32(layer.n_hashes)
    return result + prior if aggregate == "prior" else result
