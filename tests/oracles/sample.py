"""Draws by enumeration: every filter as its definition says, in exact order, and the probabilities of what is left."""

import numpy as np

ORDER = ("temperature", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p")
WIDE = np.longdouble


def softmax(z):
    """Return probabilities in long double; -inf is exactly 0."""
    e = np.exp(z - z.max())
    return e / e.sum()


def shortest_prefix(rank, p, mass):
    """Mark the first classes of a ranking whose mass is at least `mass`; the last one is a tie if it is near."""
    sums = np.cumsum(p[rank])
    count = int(np.searchsorted(sums, mass - TIE)) + 1
    return rank[:count], bool(np.any(np.abs(sums - mass) < TIE) and np.any(np.abs(sums[:-1] - mass) > -1))


TIE = 1e-12


def filtered(logits, order=ORDER, temperature=1.0, **given):
    """Return the probabilities of one row (float64 logits) after all filters, in long double."""
    x = np.asarray(logits, WIDE)
    left = np.isfinite(x)
    t = WIDE(1)
    for name in order:
        value = temperature if name == "temperature" else given.get(name)
        if value is None:
            continue
        if name == "temperature":
            if value == 0:
                best = int(np.argmax(np.where(left, x, -np.inf)))
                left = np.arange(len(x)) == best
            else:
                t = WIDE(value)
            continue
        p = softmax(np.where(left, x / t, -np.inf))
        classes = np.flatnonzero(left)
        falling = classes[np.argsort(-x[classes], kind="stable")]
        if name == "top_k":
            keep = falling if value < 1 else falling[:value]
        elif name == "top_p":
            keep, _ = shortest_prefix(falling, p, value)
        elif name == "min_p":
            keep = classes[p[classes] >= value * p.max() * (1 - WIDE(TIE))]
        elif name == "typical_p":
            entropy = -np.sum(p[classes] * np.log(p[classes]))
            far = np.abs(-np.log(p[classes]) - entropy)
            far = np.round(far.astype(np.float64), 13)  # equal distances on both sides
            keep, _ = shortest_prefix(classes[np.argsort(far, kind="stable")], p, value)
        else:
            sigma = np.sqrt(np.mean((x[classes] - x[classes].mean()) ** 2))
            keep = classes[x[classes] >= x[classes].max() - value * sigma - TIE]
        left = np.isin(np.arange(len(x)), keep)
    return softmax(np.where(left, x / t, -np.inf))
