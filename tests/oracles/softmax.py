"""The softmax family for one row in mpmath and rational arithmetic: exact for any precision.

csoftmax/_spec/softmax.py has the same in long double, for many rows.
"""

from fractions import Fraction

import mpmath
import numpy as np

from csoftmax._spec.formats import FORMATS

PRECISION = 1200  # bits: 1 - exp(-600) needs 900


def _exact_forward(name, x, temperature):
    with mpmath.workprec(PRECISION):
        values = [mpmath.mpf(float(v)) for v in x]
        m, t = max(values), mpmath.mpf(float(temperature))
        z = [(v - m) / t for v in values]
        count = sum(v == m for v in values)
        others = mpmath.fsum(mpmath.exp(v) for v in z if v < 0)
        tail = mpmath.log1p((count - 1) + others)
        if name == "logsumexp":
            return [m / t + tail]
        if name == "softmax":
            return [mpmath.exp(v) / (others + count) for v in z]
        if name == "log_softmax":
            return [v - tail for v in z]
        if name == "entropy":
            return [mpmath.fsum(mpmath.exp(v) / (others + count) * (tail - v) for v in z)]
    raise NotImplementedError(f"tests/oracles/softmax.py has no formula for {name}")


def _exact_backward(name, dy, y, temperature):
    dy, t = [Fraction(float(v)) for v in dy], Fraction(float(temperature))
    if name == "softmax_vjp":
        y = [Fraction(float(v)) for v in y]
        s = sum(a * b for a, b in zip(dy, y, strict=True))
        return [b * (a - s) / t for a, b in zip(dy, y, strict=True)]
    s = sum(dy)
    with mpmath.workprec(PRECISION):

        def mpf(v):
            return mpmath.mpf(v.numerator) / v.denominator

        return [(mpf(a) - mpf(s) * mpmath.exp(float(b))) / mpf(t) for a, b in zip(dy, y, strict=True)]


def exact(name, *row, temperature=1.0):
    """Return the result for one row as exact numbers (mpf or Fraction)."""
    return (_exact_forward if len(row) == 1 else _exact_backward)(name, *row, temperature)


def exact_ulps(got, reference, dtype, scale=None):
    """Return the largest error in ULP of the dtype at the exact numbers of one row (at `scale`)."""
    precision, lowest = FORMATS[dtype]
    worst = 0.0
    with mpmath.workprec(PRECISION):
        for i, (value, truth) in enumerate(zip(np.atleast_1d(got), reference, strict=True)):
            if isinstance(truth, Fraction):
                truth = mpmath.mpf(truth.numerator) / truth.denominator
            size = abs(truth) if scale is None else abs(mpmath.mpf(float(scale[i])))
            exponent = lowest if size == 0 else max(int(mpmath.floor(mpmath.log(size, 2))), lowest)
            error = abs(mpmath.mpf(float(value)) - truth) / mpmath.mpf(2) ** (exponent - precision + 1)
            worst = max(worst, float(error))
    return worst
