"""Hyperbolic geometry: logits of points and hyperplanes, and their derivatives, in float64 without overflow.

With p = <v, w>, n = |w|, a = 2 sqrt(c) |v|, b = 2 sqrt(c) r and T(t) = tanh(t) / t, the logit of a class is

    2 n asinh(sqrt(c) Y) / sqrt(c),    Y = cosh(a) cosh(b) Z,    Z = 2 T(a) p / n - 2 r T(b).

Nothing is divided by |v| or by c, so that v = 0 and c = 0 are no exceptions. cosh(a) cosh(b) is kept as a logarithm
where it is large: asinh(y) is the logarithm of 2 y there, and the derivative of asinh(y), times cosh(a) cosh(b), is
1 / hypot(1 / (cosh(a) cosh(b)), sqrt(c) Z), which is finite.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

LARGE = 20.0  # asinh(y) = log(2 y) beyond: the next term, 1 / (4 y^2), is below 2^-57
LARGEST = 700.0  # of a logarithm whose exponential is used
TERMS = 24  # of series, whose arguments are at most 0.35 where they are used


def tanh_over(t: Any) -> Any:
    """The function T(t) = tanh(t) / t."""
    safe = np.where(t == 0, 1, t)
    return np.where(t == 0, 1, np.tanh(safe) / safe)


def tanh_over_slope(t: Any) -> Any:
    """The function T'(t) / t, t >= 0, which is -2/3 at 0."""
    small = np.minimum(t, 1)
    rest: Any = 1.0  # (sinh(2t) - 2t) / ((2t)^3 / 6), by its series
    for k in range(TERMS // 2, 1, -1):
        rest = 1 + rest * (2 * small) ** 2 / ((2 * k) * (2 * k + 1))
    near = -(2 / 3) * rest / np.cosh(small) ** 2
    large = np.maximum(t, 1)
    return np.where(t < 1, near, ((1 - np.tanh(large) ** 2) - np.tanh(large) / large) / large**2)


def log_cosh(t: Any) -> Any:
    """The logarithm of cosh(t), t >= 0."""
    return t + (np.log1p(np.exp(-2 * t)) - np.log(2))


def _slope_series(t: Any, ratio: float) -> Any:
    """The sum over k >= 1 of f(k) 2k / (2k + 1) t^(k - 1): f(k) = binomial(-1/2, k) for ratio -1, or 1 for ratio 1.

    These are the derivatives, over s, of asinh(s) / s and of atanh(s) / s at s^2 = t.
    """
    factors = [1.0]
    for k in range(1, TERMS):
        factors.append(factors[-1] * (1.0 if ratio > 0 else -(2 * k - 1) / (2 * k)))
    total: Any = np.zeros_like(t)
    for k in range(TERMS - 1, 0, -1):
        total = total * t + factors[k] * 2 * k / (2 * k + 1)
    return total


def asinh_over(t: Any) -> Any:
    """The function asinh(t) / t."""
    safe = np.where(t == 0, 1, t)
    return np.where(t == 0, 1, np.arcsinh(safe) / safe)


def asinh_over_slope(t: Any) -> Any:
    """The derivative of asinh(t) / t, over t: -1/3 at 0."""
    near = _slope_series(np.minimum(t * t, 0.1), -1)
    safe = np.where(np.abs(t) < 0.3, 1, t)
    return np.where(np.abs(t) < 0.3, near, (1 / np.sqrt(1 + safe * safe) - np.arcsinh(safe) / safe) / (safe * safe))


def atanh_over(t: Any) -> Any:
    """The function atanh(t) / t, 0 <= t < 1."""
    safe = np.where(t == 0, 0.5, t)
    return np.where(t == 0, 1, np.log1p(2 * safe / (1 - safe)) / (2 * safe))


def atanh_over_slope(t: Any) -> Any:
    """The derivative of atanh(t) / t, over t, 0 <= t < 1: 2/3 at 0."""
    near = _slope_series(np.minimum(t * t, 0.1), 1)
    safe = np.where(t < 0.3, 0.5, t)
    far = (1 / ((1 - safe) * (1 + safe)) - atanh_over(safe)) / (safe * safe)
    return np.where(t < 0.3, near, far)


def row_lengths(a: Any) -> Any:
    """Euclidean lengths of rows, whatever their size; infinite or NaN for rows that are not finite."""
    top = np.abs(a).max(axis=-1, initial=0)
    scale = np.where((top > 0) & np.isfinite(top), top, 1)
    scaled = a / scale[..., None]
    return scale * np.sqrt(np.add.reduce(scaled * scaled, axis=-1))


class Planes(NamedTuple):
    """The hyperplanes of the classes: normals w of length n, offsets r."""

    w: Any  # (K, D)
    length: Any  # (K,)
    inverse: Any  # 1 / length, 0 for zero vectors, whose logits are 0
    offset: Any
    tanh_over: Any  # T(b)
    log_cosh: Any  # of b
    tanh: Any  # of b
    root: float  # of the curvature c

    @classmethod
    def of(cls, w: Any, offset: Any, c: float) -> Planes:
        """The planes of checked arrays in float64."""
        length = row_lengths(w)
        root = float(np.sqrt(c))
        b = 2 * root * offset
        inverse = np.where(length == 0, 0, 1 / np.where(length == 0, 1, length))
        return cls(w, length, inverse, offset, tanh_over(b), log_cosh(np.abs(b)), np.tanh(b), root)


class Logits(NamedTuple):
    """Logits of some rows, and what their derivatives need, (N, K)."""

    value: Any
    z: Any
    slope: Any  # kappa: derivative of asinh, times cosh(a) cosh(b)
    scaled: Any  # value / (2 n), by class
    explicit: Any  # derivative of `scaled` by c, where Y is fixed


def compute_logits(direction: Any, log_cosh_a: Any, planes: Planes, gradient: bool) -> Logits:
    """Logits from 2 T(a) p / n, (N, K), and log cosh(a), (N, 1)."""
    root = planes.root
    z = direction - 2 * planes.offset * planes.tanh_over
    with np.errstate(divide="ignore"):
        log_of_two_y = np.log(root * np.abs(z)) + log_cosh_a + planes.log_cosh + np.log(2)
    cosh_a, cosh_b = (np.exp(np.minimum(v, 709)) for v in (log_cosh_a, planes.log_cosh))
    y = np.where(z == 0, z, z * cosh_a * cosh_b)
    is_large = log_of_two_y > LARGE
    y = np.where(is_large, 1, y)
    t = root * y
    near = y * asinh_over(t)
    far = np.sign(z) * np.where(is_large, log_of_two_y, 0) / (root or 1)
    scaled = np.where(is_large, far, np.where(np.isnan(z), z, near))
    value = 2 * planes.length * scaled
    if not gradient:
        return Logits(value, z, None, scaled, None)
    least = np.exp(-np.minimum(log_cosh_a + planes.log_cosh, LARGEST))
    slope = 1 / np.hypot(least, root * z)
    c = root * root
    is_beyond = is_large | (np.abs(t) > 1)
    beyond = (slope * z - scaled) / (2 * (c or 1))
    explicit = np.where(is_beyond, beyond, y**3 * asinh_over_slope(t) / 2)
    return Logits(value, z, slope, scaled, explicit)


class Points(NamedTuple):
    """Points in tangent coordinates v at the origin, or on the hyperboloid."""

    v: Any  # (N, D); on the hyperboloid the coordinates without the first
    length: Any  # |v|, (N, 1)
    factor: Any  # Z = factor <v, w> / n - 2 r T(b): 2 T(a), or 1 / (sqrt(c) x0)
    log_cosh: Any  # of a
    first: Any | None  # x0 on the hyperboloid
    ball: Any | None  # the points of the ball that v belongs to, as (x, atanh(u) / u, its slope / u, |x|)


def from_tangent(v: Any, c: float, ball: Any = None) -> Points:
    """Points in tangent coordinates."""
    length = row_lengths(v)[:, None]
    a = 2 * np.sqrt(c) * length
    return Points(v, length, 2 * tanh_over(a), log_cosh(a), None, ball)


def from_ball(x: Any, c: float) -> Points:
    """Points of the ball c |x|^2 < 1, whose tangent coordinates are x atanh(u) / u, u = sqrt(c) |x|."""
    length = row_lengths(x)[:, None]
    u = np.sqrt(c) * length
    over = atanh_over(u)
    return from_tangent(x * over, c, (x, over, atanh_over_slope(u), length))


def from_hyperboloid(x: Any, c: float) -> Points:
    """Points (x0, x) with c (x0^2 - |x|^2) = 1."""
    first, rest = x[:, :1], x[:, 1:]
    return Points(rest, row_lengths(rest)[:, None], 1 / (np.sqrt(c) * first), np.log(np.sqrt(c) * first), first, None)


def forward(points: Points, products: Any, planes: Planes, gradient: bool) -> Logits:
    """Logits from the products <v, w>, (N, K)."""
    return compute_logits(points.factor * products * planes.inverse, points.log_cosh, planes, gradient)


class Gradients(NamedTuple):
    """Factors of the gradients of points and planes, beside the products with w and v."""

    by_w: Any  # factor of w_k in the gradient of v, and of v in that of w_k, (N, K)
    along_v: Any  # factor of v in its own gradient, (N, 1)
    along_w: Any  # factor of w_k in its own gradient, (K,)
    offset: Any  # (K,)
    curvature: float
    first: Any | None  # the gradient of x0 on the hyperboloid, (N, 1)


def backward(g: Any, points: Points, products: Any, planes: Planes, logits: Logits) -> Gradients:
    """Derivatives of the sum of g times the logits."""
    root, n, r = planes.root, planes.length, planes.offset
    c = root * root
    kappa = np.where(g == 0, 0, 2 * g * logits.slope)  # over n, which is 0 for classes without a plane
    scaled = np.where(g == 0, 0, 2 * g * logits.scaled)
    z = np.where(kappa == 0, 0, logits.z)
    cosine = products * planes.inverse  # <v, w> / n
    by_w = np.where(n == 0, 0, kappa * points.factor)
    along = np.where(n == 0, 0, scaled * planes.inverse - kappa * points.factor * cosine * planes.inverse)
    weighted = kappa * n
    b = 2 * root * np.abs(r)
    by_offset = 2 * weighted * (root * z * planes.tanh - np.exp(-2 * planes.log_cosh))
    explicit = 2 * g * n * logits.explicit
    of_b = 2 * r * r * (z * tanh_over(b) - 2 * r * tanh_over_slope(b))
    curvature = np.where(g == 0, 0, explicit) + weighted * of_b
    first = along_v = None
    if points.first is None:
        a = 2 * root * points.length
        over, slope = points.factor / 2, tanh_over_slope(a)
        of_a = weighted * (2 * cosine * slope + z * over)
        along_v = 4 * c * np.add.reduce(of_a, axis=1, keepdims=True)
        curvature = curvature + 2 * points.length**2 * of_a
    else:
        # Y = <x, w> / n cosh(b) - x0 sinh(b); kappa has its factor sqrt(c) x0 cosh(b)
        first = -np.add.reduce(weighted * planes.tanh / (root * points.first), axis=1, keepdims=True)
        curvature = curvature + weighted * (z - points.factor * cosine) / (2 * c)
    return Gradients(
        by_w,
        along_v,
        np.add.reduce(along, axis=0),
        np.add.reduce(by_offset, axis=0),
        float(np.add.reduce(np.add.reduce(curvature, axis=1))),
        first,
    )
