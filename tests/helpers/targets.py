"""Targets of losses."""

import numpy as np


def labels(rows, k, seed=0, dtype=np.int64):
    return np.random.default_rng(seed).integers(0, k, rows).astype(dtype)


def soft_labels(shape, seed=0, dtype=np.float32):
    q = np.random.default_rng(seed).dirichlet(np.full(shape[-1], 0.3), shape[:-1])
    return (q * (q > 1e-3)).astype(dtype)
