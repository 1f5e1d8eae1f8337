"""alpha-entmax and its loss by Newton's method and bisection in mpmath, and rows to try them on.

csoftmax/_spec/entmax.py has the same in long double, for many rows.
"""

import mpmath
import numpy as np

from csoftmax._spec.formats import dtype_of


def numbers(x):
    return [v if isinstance(v, mpmath.mpf) else mpmath.mpf(float(v)) for v in x]


BITS = 600


def _least(d, ties, power, q):
    """Return the root q of ties q + sum((d + q^(1/power))^power) = 1, from above: the sum is convex (power <= 1)."""
    for _ in range(400):
        w = q ** (1 / power)
        parts = [(v + w) ** power for v in d]
        slope = ties + sum((q / y) ** (1 / power - 1) for y in parts)
        step = (ties * q + sum(parts) - 1) / slope
        q -= step
        if abs(step) <= q * mpmath.mpf(2) ** (-BITS // 3):
            return q
    raise AssertionError("no root")


def _threshold(x, scale):
    """Return the probabilities for alpha >= 2 from the least one, that of the least number in the support."""
    power, values = 1 / scale, sorted(set(x), reverse=True)
    low, high = 0, len(values)  # values[low] is in the support, values[high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if sum((scale * (v - values[middle])) ** power for v in x if v > values[middle]) < 1:
            low = middle
        else:
            high = middle
    base = values[low]
    d = [scale * (v - base) for v in x if v > base]
    ties = x.count(base)
    q = _least(d, ties, power, mpmath.mpf(1) / (ties + len(d)))
    return [(scale * (v - base) + q**scale) ** power if v >= base else mpmath.mpf(0) for v in x]


def exact(x, alpha):
    """Return the probabilities as mpmath numbers, from a root in 600 bits."""
    with mpmath.workprec(BITS):
        scale = mpmath.mpf(alpha) - 1
        if scale >= 1:
            return _threshold(numbers(x), scale)
        z = [scale * v for v in numbers(x)]
        top = max(z)
        low, high = mpmath.mpf(0), mpmath.mpf(1)  # of c: u = z - top + c
        c, power = high, 1 / scale
        for _ in range(1000):
            parts = [(v - top + c, (v - top + c) ** power) for v in z if v - top + c > 0]
            rest, slope = sum(p for _, p in parts) - 1, power * sum(p / u for u, p in parts)
            if rest == 0:
                break
            low, high = (low, c) if rest >= 0 else (c, high)
            before, c = c, c - rest / slope
            if not low < c < high:
                c = (low + high) / 2
            if abs(c - before) <= mpmath.mpf(2) ** (-BITS // 2):
                break
        else:
            raise AssertionError("no root")
        return [(v - top + c) ** power if v - top + c > 0 else mpmath.mpf(0) for v in z]


def exact_loss(x, q, alpha):
    """Return Omega*(x) + Omega(q) - <x, q>."""
    p = exact(x, alpha)
    with mpmath.workprec(BITS):
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


def exact_vjp(dy, y, alpha):
    """Return s (dy - sum(s dy) / sum(s)), s = y^(2 - alpha) where y > 0, as mpmath numbers."""
    y, dy = numbers(y), [v if u > 0 else 0 for u, v in zip(numbers(y), dy, strict=True)]
    with mpmath.workprec(BITS):
        power = 2 - mpmath.mpf(alpha)
        s = [v**power if v > 0 else mpmath.mpf(0) for v in y]
    # enough bits for sums whose terms differ by this many orders of magnitude
    spread = [int(mpmath.log(v, 2)) for v in s if v > 0]
    with mpmath.workprec(BITS + max(spread) - min(spread)):
        s = [v**power if v > 0 else mpmath.mpf(0) for v in y]
        g = numbers(dy)
        mean = sum(a * b for a, b in zip(s, g, strict=True)) / sum(s)
        return [a * (b - mean) for a, b in zip(s, g, strict=True)]


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
