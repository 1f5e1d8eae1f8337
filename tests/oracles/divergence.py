"""The Kullback-Leibler divergence of one row in mpmath: the definition, without any care for cancellation.

csoftmax/_spec/divergence.py has the same in long double, for many rows.
"""

import mpmath

PRECISION = 1200  # bits


def _log_softmax(x, temperature):
    z = [mpmath.mpf(float(v)) / mpmath.mpf(float(temperature)) for v in x]
    m = max(z)
    log_sum = m + mpmath.log(mpmath.fsum(mpmath.exp(v - m) for v in z))
    return [v - log_sum for v in z]


def exact(x, y, temperature=1.0):
    """Return sum p w, w = log p - log q; sum p |w|; sum p |w| (1 + |log p| + |log q|); the gradients q - p over T."""
    with mpmath.workprec(PRECISION):
        a, b = _log_softmax(x, temperature), _log_softmax(y, temperature)
        terms = [mpmath.exp(u) * (u - v) for u, v in zip(a, b, strict=True)]
        size = mpmath.fsum(abs(v) for v in terms)
        close = mpmath.fsum(abs(t) * (1 + abs(u) + abs(v)) for t, u, v in zip(terms, a, b, strict=True))
        gradient = [(mpmath.exp(v) - mpmath.exp(u)) / mpmath.mpf(float(temperature)) for u, v in zip(a, b, strict=True)]
        return mpmath.fsum(terms), size, close, gradient
