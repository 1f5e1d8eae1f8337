"""Sums over subsets of a fixed size, by the recurrence over elements in many digits."""

import mpmath


def polynomials(weights, k):
    """The elementary symmetric polynomials of degree 0 to k."""
    e = [mpmath.mpf(1)] + [mpmath.mpf(0)] * k
    for w in weights:
        for j in range(k, 0, -1):
            e[j] += e[j - 1] * w
    return e


def subset_sums(x, k):
    """log e_k, and the probability that a subset has each element."""
    with mpmath.workdps(50):
        weights = [mpmath.exp(mpmath.mpf(float(v))) for v in x]
        total = polynomials(weights, k)[k]
        if total == 0:
            return mpmath.ninf, [mpmath.nan] * len(weights)
        without = [polynomials(weights[:i] + weights[i + 1 :], max(k - 1, 0)) for i in range(len(weights))]
        return mpmath.log(total), [
            w * e[k - 1] / total if k else mpmath.mpf(0) for w, e in zip(weights, without, strict=True)
        ]
