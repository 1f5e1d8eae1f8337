"""alpha-entmax and its loss by Newton's method and bisection in mpmath, and rows to try them on.

csoftmax/_spec/entmax.py has the same in long double, for many rows.
"""

import mpmath
import numpy as np

from csoftmax._spec.formats import dtype_of


def numbers(x):
    return [v if isinstance(v, mpmath.mpf) else mpmath.mpf(float(v)) for v in x]


def exact(x, alpha):
    """Return the probabilities as mpmath numbers: the root of their sum less 1, between bounds, in 200 bits."""
    with mpmath.workprec(200):
        scale = mpmath.mpf(alpha) - 1
        z = [scale * v for v in numbers(x)]
        top = max(z)
        low, high = mpmath.mpf(0), mpmath.mpf(1)  # of c: u = z - top + c
        c, power = (low + high) / 2, 1 / scale
        for _ in range(1000):
            parts = [(v - top + c, (v - top + c) ** power) for v in z if v - top + c > 0]
            rest, slope = sum(p for _, p in parts) - 1, power * sum(p / u for u, p in parts)
            low, high = (low, c) if rest >= 0 else (c, high)
            before, c = c, c - rest / slope
            if abs(c - before) <= mpmath.mpf(2) ** -190:
                break
            if not low < c < high:
                c = (low + high) / 2
        else:
            raise AssertionError("no root")
        return [(v - top + c) ** power if v - top + c > 0 else mpmath.mpf(0) for v in z]


def exact_loss(x, q, alpha):
    """Return Omega*(x) + Omega(q) - <x, q>."""
    p = exact(x, alpha)
    with mpmath.workprec(200):
        a = mpmath.mpf(alpha)
        x, q = numbers(x), numbers(q)

        def omega(r):
            return sum((v**a if v > 0 else 0) - v for v in r) / (a * (a - 1))

        return (
            sum(u * v for u, v in zip(p, x, strict=True))
            - omega(p)
            + omega(q)
            - sum(u * v for u, v in zip(q, x, strict=True))
        )


def ulps(got, expected, dtype):
    """Return the distance in units in the last place of the exact number."""
    place = np.spacing(np.array(abs(float(expected))).astype(dtype_of(dtype))).astype(np.float64)
    return float(abs(mpmath.mpf(float(got)) - expected) / mpmath.mpf(float(place)))


def rows(dtype, seed=0):
    """Yield rows of several scales and lengths: few survivors, all survive, ties."""
    rng = np.random.default_rng(seed)
    for n in (1, 2, 3, 8, 17, 60):
        for sigma, offset in ((0.001, 0), (0.4, 0), (1, 0), (5, 3), (100, 0), (1, 300)):
            yield (rng.standard_normal(n) * sigma + offset).astype(dtype_of(dtype))
        yield np.round(rng.standard_normal(n)).astype(dtype_of(dtype))
        yield np.full(n, 1.5).astype(dtype_of(dtype))
