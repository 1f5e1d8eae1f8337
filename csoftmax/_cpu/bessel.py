"""Modified Bessel functions of the first kind: their logarithm and ratios, in float64.

For nu >= LIFTED Olver's uniform expansion (DLMF 10.41) in powers of 1/h, h = sqrt(nu^2 + x^2), holds for every x:

    log I(nu, x) = h + nu log(x / (nu + h)) - log(2 pi h) / 2 + log S,    S = sum of Q[k](nu^2 / h^2) / h^k.

Smaller orders are lifted by n, and I(nu) = I(nu + n) / product of ratios, which the recurrence gives from the top
down. Each ratio is divided by x / (nu + n + h), so that neither the product nor x^nu is ever large or small: no digits
cancel, and there is no branch at any x of the range. h and nu log(...) cancel where I is about 1, at nu = 2047 numbers
of size 2,500: they are pairs of float64, high and low part.

Ratios come from the expansion of the derivative, in the form of a sum that has no cancellation at either end:
I(nu + 1, x) / I(nu, x) = x (1 / (nu + h) - R / (S h^2)), and 1 less it (x / (nu + h) = 1 - (nu + nu^2 / (h + x)) /
(nu + h)).

Measured against mpmath at 1,500 points, nu in [0, 2047], x in [1e-6, 1e5]: log I within 7e-15 max(1, |log I|), ratios
within 5e-16 of themselves, 1 - ratio within 2e-13 of itself, at small nu, where it is 1e-5.
"""

from __future__ import annotations

import functools
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

LIFTED = 32  # orders from here on are those of the expansion: its first term left out is below 2^-54
TERMS = 13
FAR = 2.0**300  # x beyond which h = x: nu is at most MAX_ORDER
MAX_ORDER = 1e15
SPLIT = 2.0**27 + 1
TABLE = 256  # reciprocals of the table of logarithms


@functools.cache
def _polynomials() -> tuple[list[Any], list[Any]]:
    """Coefficients of Q[k] and R[k] by powers of t = nu^2 / h^2, the lowest first."""
    u = [Fraction(1)]  # U[k] of DLMF 10.41.10, by powers of p = sqrt(t)
    sums, slopes = [], []
    for k in range(TERMS):
        slope = [i * a for i, a in enumerate(u)][1:]
        # p U / 2 + p^2 U', whose lowest power is k + 1
        r = [Fraction(0)] * (len(u) + 2)
        for i, a in enumerate(u):
            r[i + 1] += a / 2
        for i, a in enumerate(slope):
            r[i + 2] += a
        sums.append(np.array([float(a) for a in u[k::2]]))
        slopes.append(np.array([float(a) for a in r[k + 1 :: 2]]))
        following = [Fraction(0)] * (len(u) + 3)
        for i, a in enumerate(slope):
            following[i + 2] += a / 2
            following[i + 4] -= a / 2
        for i, a in enumerate(u):
            following[i + 1] += a / (8 * (i + 1))
            following[i + 3] -= 5 * a / (8 * (i + 3))
        u = following
    return sums, slopes


def _evaluate(coefficients: list[Any], t: Any, over: Any) -> Any:
    """The sum of polynomials in t, times powers of a small number."""
    total: Any = 0.0
    for polynomial in reversed(coefficients):
        value: Any = 0.0
        for a in polynomial[::-1]:
            value = value * t + a
        total = total * over + value
    return total


def _add(a: Any, b: Any) -> tuple[Any, Any]:
    """The sum of two numbers as a pair, exactly."""
    s = a + b
    back = s - a
    return s, (a - (s - back)) + (b - back)


def _product(a: Any, b: Any) -> tuple[Any, Any]:
    """The product of two numbers of less than 2^990 as a pair, exactly but for underflow."""
    p = a * b
    a_high = SPLIT * a - (SPLIT * a - a)
    b_high = SPLIT * b - (SPLIT * b - b)
    a_low, b_low = a - a_high, b - b_high
    return p, ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low


@functools.cache
def _logarithms() -> tuple[Any, Any, Any, tuple[float, float]]:
    """Reciprocals of the centres of parts of [1/2, 1), minus their logarithms as pairs, and log 2."""
    reciprocals = np.round(512 / (0.5 + (np.arange(TABLE) + 0.5) / (2 * TABLE))) / 512
    with localcontext() as context:
        context.prec = 40

        def pair(value: Decimal) -> tuple[float, float]:
            return float(value), float(value - Decimal(float(value)))

        pairs = np.array([pair(-Decimal(float(r)).ln()) for r in reciprocals])
        return reciprocals, pairs[:, 0].copy(), pairs[:, 1].copy(), pair(Decimal(2).ln())


def log_pair(high: Any, low: Any = 0.0) -> tuple[Any, Any]:
    """The logarithm of a positive pair as a pair, with an error of some 2^-78."""
    reciprocals, table_high, table_low, two = _logarithms()
    mantissa, exponent = np.frexp(high)
    is_usual = (high > 0) & (high < np.inf)
    mantissa = np.where(is_usual, mantissa, 0.5)
    exponent = np.where(is_usual, exponent, 0)
    at = ((mantissa - 0.5) * (2 * TABLE)).astype(np.intp)
    r = reciprocals[at]
    product, rest = _product(mantissa, r)
    f, f_low = _add(product - 1, rest + np.ldexp(np.where(is_usual, low, 0), -exponent) * r)
    square, square_low = _product(f, f)
    series: Any = 0.0
    for k in range(10, 2, -1):
        series = series * f + (1 if k % 2 else -1) / k
    small = f_low - f * f_low - square_low / 2 + series * f * square
    total, error = _add(f, -square / 2)
    small = small + error
    of_two, of_two_low = _product(exponent.astype(np.float64), two[0])
    total, error = _add(table_high[at], total)
    small = small + error + table_low[at] + of_two_low + exponent * two[1]
    total, error = _add(of_two, total)
    special = np.where(high == 0, -np.inf, np.where(high == np.inf, np.inf, np.nan))
    return np.where(is_usual, total, special), np.where(is_usual, error + small, 0)


class Bessel(NamedTuple):
    """The functions of one order and argument."""

    high: Any  # log(I(nu, x) / x^nu), less x if asked for, as a pair
    low: Any
    ratio: Any  # I(nu + 1, x) / I(nu, x)
    complement: Any  # 1 less that


def evaluate(nu: Any, x: Any, less_x: bool) -> Bessel:
    """All functions, nu in [-1/2, MAX_ORDER] and 0 <= x < infinity, arrays of one shape."""
    sums, slopes = _polynomials()
    n = np.ceil(np.maximum(LIFTED - nu, 0)).astype(np.intp)
    top = nu + n  # exact: nu < LIFTED where n > 0, but for a tiny nu, which the recurrence does not resolve either
    is_far = x > FAR
    near = np.where(is_far, 1, x)
    high, low = _product(top, top)
    square, square_low = _product(near, near)
    total, error = _add(high, square)
    h = np.sqrt(total)
    back, back_low = _product(h, h)
    h_low = (((total - back) - back_low) + (error + low + square_low)) / (2 * h)
    h, h_low = np.where(is_far, x, h), np.where(is_far, 0, h_low)
    t, over = (top / h) ** 2, 1 / h
    s = _evaluate(sums, t, over)
    r = _evaluate(slopes, t, over) / s * over * over
    far = top + h
    ratio = x * (1 / far - r)
    complement = (top + top * (top / (h + np.where(is_far, 0, x)))) / far + x * r
    product = np.ones_like(h)
    for j in range(int(n.max(initial=0)) - 1, -1, -1):
        twice = 2 * (nu + j + 1)
        below = twice + x * ratio
        is_lifted = j < n
        complement = np.where(is_lifted, (twice - x * complement) / below, complement)
        ratio = np.where(is_lifted, x / below, ratio)
        product = np.where(is_lifted, product * (far / below), product)
    log_high, log_low = log_pair(*_sum_of(top, h, h_low))
    main, main_low = _product(nu, log_high)
    low = h_low - main_low - nu * log_low
    if less_x:
        difference, error = _add(h, -x)
        total, rest = _add(difference, -main)
    else:
        total, rest = _add(h, -main)
        error = 0.0
    small = np.log1p(s - 1) - np.log(product) - (np.log(2 * np.pi) + np.log(h)) / 2
    high, last = _add(total, small)
    return Bessel(high, last + (low + rest + error), ratio, complement)


def _sum_of(a: Any, b: Any, b_low: Any) -> tuple[Any, Any]:
    high, low = _add(a, b)
    return high, low + b_low


def log_iv(nu: Any, x: Any) -> Any:
    """The logarithm of I(nu, x), any x >= 0."""
    found = evaluate(nu, np.where(x < np.inf, x, 1), False)
    log_high, log_low = log_pair(x)
    main, main_low = _product(nu, np.where(np.isfinite(log_high), log_high, 0))
    total, rest = _add(found.high, main)
    value = total + (rest + (found.low + main_low + nu * log_low))
    value = np.where(x == 0, np.where(nu == 0, 0, -np.inf), value)
    return np.where(np.isnan(x), np.nan, np.where(x == np.inf, np.inf, value))


def ratio_of(nu: Any, x: Any) -> Any:
    """I(nu + 1, x) / I(nu, x), any x >= 0."""
    found = evaluate(nu, np.where(x < np.inf, x, 1), False).ratio
    return np.where(np.isnan(x), np.nan, np.where(x == np.inf, 1.0, found))
