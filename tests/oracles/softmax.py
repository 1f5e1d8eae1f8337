"""What the functions mean, in more precision than they compute in, along the last axis.

One function for each operation in longdouble (80 bits on x86: 11 bits more than float64), for bulk; `exact` does a
single row in mpmath and rational arithmetic, for any precision.  Where longdouble is float64 (not x86),
`bulk_is_precise` is False and tests use `exact` only.
"""

from fractions import Fraction

import numpy as np

bulk_is_precise = np.finfo(np.longdouble).nmant >= 63
LD = np.longdouble
# significant bits, smallest normal exponent
FORMATS = {"float32": (24, -126), "float64": (53, -1022), "float16": (11, -14), "bfloat16": (8, -126)}


def wide(x):
    """The values as longdouble (bfloat16 by way of float32)."""
    x = np.asarray(x)
    return (x.astype(np.float32) if x.dtype.name == "bfloat16" else x).astype(LD)


def spacing(reference, dtype):
    """ULP of the type at the reference, subnormal range included."""
    precision, lowest = FORMATS[dtype]
    _, exponent = np.frexp(np.abs(reference))
    exponent = np.where(reference == 0, lowest, np.maximum(exponent - 1, lowest))
    return np.ldexp(LD(1), exponent - (precision - 1))


def ulps(got, reference, dtype, scale=None):
    """The largest error in ULP of the type at the reference (or at `scale`); infinities and NaN must agree."""
    got = wide(got)
    largest = np.ldexp(2 - LD(2) ** -FORMATS[dtype][0], 1 - FORMATS[dtype][1])  # from here on it rounds to infinity
    reference = np.where(np.abs(reference) >= largest, np.copysign(LD(np.inf), reference), reference)
    special = ~np.isfinite(reference)
    assert np.array_equal(got[special], reference[special], equal_nan=True), "NaN or infinities differ"
    error = np.abs(got - np.where(special, 0, reference)) / spacing(reference if scale is None else scale, dtype)
    error = np.where(special, 0, error)
    assert np.all(np.isfinite(error)), f"not finite: {got[~np.isfinite(error)][:3]}"
    return float(error.max(initial=0))


def _parts(x, temperature):
    """z = (x - max)/T, max, log(sum e^z) with the maxima kept out of the sum."""
    x = wide(x)
    m = x.max(axis=-1, keepdims=True)
    z = (x - m) / LD(temperature)
    others = np.where(z < 0, np.exp(z), LD(0)).sum(axis=-1, keepdims=True)
    count = (z == 0).sum(axis=-1, keepdims=True)
    return z, m, np.log1p(others + (count - 1)), others + count


def softmax(x, temperature=1.0):
    z, _, _, total = _parts(x, temperature)
    return np.exp(z) / total


def log_softmax(x, temperature=1.0):
    z, _, tail, _ = _parts(x, temperature)
    return z - tail


def logsumexp(x, temperature=1.0):
    _, m, tail, _ = _parts(x, temperature)
    return (m / LD(temperature) + tail)[..., 0]


def logsumexp_scale(x, temperature=1.0):
    """What the error of a log-sum-exp is measured against: max(|m|, |result|)."""
    m = np.abs(wide(x).max(axis=-1)) / LD(temperature)
    return np.maximum(m, np.abs(logsumexp(x, temperature)))


def softmax_vjp(dy, y, temperature=1.0):
    dy, y = wide(dy), wide(y)
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True)) / LD(temperature)


def sum_slack(dy, y, dtype, temperature=1.0):
    """What the rounding of s = sum dy y can be worth in y (dy - s) / T: the kernel holds s as a pair."""
    precision = 2.0 ** (-98 if dtype == "float64" else -46)
    dy, y = wide(dy), wide(y)
    return np.abs(y) * np.abs(dy * y).sum(axis=-1, keepdims=True) * precision / LD(temperature)


def log_softmax_vjp(dy, y, temperature=1.0):
    dy, y = wide(dy), wide(y)
    s = dy.sum(axis=-1, keepdims=True)
    near = (dy - s) - s * np.expm1(np.maximum(y, -1))
    return np.where(y > -0.7, near, dy - s * np.exp(y)) / LD(temperature)


def log_softmax_vjp_scale(dy, y, s, temperature=1.0):
    """The larger of the two terms that are subtracted: |dy - s 2^n| and |s (e^y - 2^n)|, n = round(y log2 e)."""
    dy, y = wide(dy), wide(y)
    n = np.rint(np.where(np.isfinite(y), y, 0) / np.log(LD(2)))
    power = np.where(np.isfinite(y), np.exp2(n), 0)
    remainder = np.where(n == 0, np.expm1(np.minimum(y, 1)), np.exp(y) - power)
    return np.maximum(np.abs(dy - s * power), np.abs(s * remainder)) / LD(temperature)


# One row, any precision

PRECISION = 1200  # bits: 1 - exp(-600) needs 900


def _exact_forward(name, x, temperature):
    import mpmath

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
        return [v - tail for v in z]


def _exact_backward(name, dy, y, temperature):
    import mpmath

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
    """The result for one row as exact numbers (mpf or Fraction)."""
    forward = name in ("softmax", "log_softmax", "logsumexp")
    return (_exact_forward if forward else _exact_backward)(name, *row, temperature)


def exact_ulps(got, reference, dtype, scale=None):
    """As `ulps`, for the exact numbers of one row."""
    import mpmath

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
