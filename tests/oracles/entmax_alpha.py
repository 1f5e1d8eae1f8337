"""The gradient of entmax with respect to alpha, in mpmath: the formula of Correia, Niculae & Martins (2019)."""

import mpmath

from .entmax import BITS, numbers


def exact_alpha_gradient(dy, y, alpha):
    """Return dL/dalpha, and the unit of its error: the smaller of the sums of |h| and of |g| with their differences.

    dy_i/dalpha = (y_i - q_i) / a^2 - (y_i log y_i - q_i sum y log y) / a, q = s / sum(s), s = y^(1 - a), a = alpha - 1;
    at a = 0 -(y_i log^2 y_i - y_i sum y log^2 y) / 2.
    """
    with mpmath.workprec(BITS):
        a = mpmath.mpf(alpha) - 1
        kept = [(g, p) for g, p in zip(numbers(dy), numbers(y)) if p > 0]
        g, p = [g for g, _ in kept], [p for _, p in kept]
        s = [v ** (1 - a) for v in p]
        share = [v / sum(s) for v in s]
        logs = [mpmath.log(v) for v in p]
        if a == 0:
            h = [v * w * w / 2 for v, w in zip(p, logs)]
            change = [sum(h) * q - u for u, q in zip(h, share)]
            terms = [h]
        else:
            total, entropy = sum(p), sum(v * w for v, w in zip(p, logs))
            change = [(v - total * q) / a**2 - (v * w - q * entropy) / a for v, w, q in zip(p, logs, share)]
            h = [v * (1 - a * w) / a**2 for v, w in zip(p, logs)]
            terms = [h, [u / a**2 - v for u, v in zip(s, h)]]
        reference = g[s.index(max(s))]
        distances = [abs(v - reference) for v in g]
        mean = sum(v * w for v, w in zip(share, distances))
        unit = min(sum(abs(u) * (d + mean) for u, d in zip(t, distances)) for t in terms)
        return sum(u * v for u, v in zip(change, g)), unit
