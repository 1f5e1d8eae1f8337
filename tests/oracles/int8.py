"""Output layers in int8: scores and orders by their definition, and layers on which bounds could fail."""

import numpy as np


def score(x, w, bias=None):
    """Scores in float64, as the definition has them: 8 lanes of fma, added in a tree.

    Products of float32 are exact in float64, so that a sum of products is a chain of fma.
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    padding = -w.shape[1] % 8
    x, w = (np.pad(a, ((0, 0), (0, padding))) for a in (x, w))
    lanes = np.zeros((len(x), len(w), 8))
    with np.errstate(all="ignore"):
        for begin in range(0, w.shape[1], 8):
            lanes += x[:, None, begin : begin + 8] * w[None, :, begin : begin + 8]
        for half in (4, 2, 1):
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        return lanes[..., 0] + (0 if bias is None else np.asarray(bias, np.float64))


def order(z, k):
    """The k best of each row: NaN first, then falling, of equal ones the lowest index."""
    keys = np.where(np.isnan(z), np.inf, z), np.isnan(z)
    return np.stack([np.lexsort((-keys[0][i], ~keys[1][i]))[:k] for i in range(len(z))])


def constructed(rng, k, d):
    """Weights and features by name: ties, duplicates, outliers, zeros, extremes."""
    w, x = rng.standard_normal((k, d)).astype(np.float32), rng.standard_normal((9, d)).astype(np.float32)
    outlier = w.copy()
    outlier[:, 0] *= 30
    large = x.copy()
    large[:, -1] *= 30
    both = outlier * np.exp(3 * rng.standard_normal(d)).astype(np.float32)
    huge = w.copy()
    huge[k // 2, d // 2] = 1e30
    special = w.copy()
    special[0, 0], special[k // 3, -1], special[k - 1, 0] = np.nan, np.inf, -np.inf
    odd = x.copy()
    odd[0, 0], odd[1, 0], odd[2, 0], odd[3] = np.nan, np.inf, 1e38, 0
    near = np.repeat(w[:1], k, axis=0)
    near[::3] = np.nextafter(near[::3], np.float32(9))  # ties but for one unit in the last place
    return {
        "gaussian": (w, x),
        "integers": (np.rint(w), np.rint(x)),
        "duplicates": (w[np.arange(k) // 3], x),
        "all equal": (np.repeat(w[:1], k, axis=0), x),
        "nearly equal": (near, x),
        "zero rows": (w * (rng.random(k) < 0.5)[:, None].astype(np.float32), x),
        "zero": (np.zeros_like(w), x),
        "outlier channel of w": (outlier, x),
        "outlier channel of x": (w, large),
        "both, and spread columns": (both, large),
        "one element 1e30": (huge, x),
        "subnormals": (w * np.float32(1e-40), x),
        "subnormal features": (w, x * np.float32(1e-42)),
        "tiny products": (w * np.float32(1e-30), x * np.float32(1e-30)),
        "large": (w * np.float32(1e30), x * np.float32(1e30)),
        "norms": (w * np.exp(4 * rng.standard_normal((k, 1))).astype(np.float32), x),
        "special weights": (special, x),
        "special features": (w, odd),
    }
