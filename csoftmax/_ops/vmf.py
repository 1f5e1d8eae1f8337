"""Logits of von Mises-Fisher distributions, their cross-entropy with all gradients, and Bessel functions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.kinds import keep_labels
from .._arguments.layers import check_bias
from .._arguments.numbers import as_number, check_num_threads
from .._arguments.places import as_array, as_float, bring_to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu import bessel
from .._cpu.apart import multiply, run_apart, split_rows
from .._cpu.dtypes import compute_dtype, in_dtype
from .._cpu.hyperbolic import row_lengths
from .cross_entropy import cross_entropy_with_grad

__all__ = ["VmfLossResult", "bessel_ratio", "log_bessel_iv", "vmf_cross_entropy_with_grad", "vmf_logits"]

CHUNK_ELEMENTS = 1 << 18  # logits of a chunk
NEAR = 1 / 16  # 1 - cosine below which it is half the squared distance of the unit vectors
PAIR_ELEMENTS = 1 << 20  # coordinates of such pairs that exist at a time


class VmfLossResult(NamedTuple):
    """The result of `vmf_cross_entropy_with_grad`.

    Attributes
    ----------
    loss : scalar, or ndarray of the shape of the rows with reduction "none"
        The loss: float64 for float64 and integer x, else float32.
    grad_x : ndarray of the shape of x
        The gradient of x, in its dtype (float64 for integers).
    grad_mu : ndarray of shape (K, D)
        The gradient of mu, in the same dtype.
    grad_kappa : ndarray of shape (K,), or scalar
        The gradient of kappa, in the same dtype.
    """

    loss: Any
    grad_x: Any
    grad_mu: Any
    grad_kappa: Any


class _Unit(NamedTuple):
    """Vectors of length 1, or 0 where the given one is 0; and 1 / length, 0 there."""

    rows: Any
    inverse: Any

    @classmethod
    def of(cls, rows: Any) -> _Unit:
        """Those of given vectors."""
        found = cls(np.empty(rows.shape), np.empty(len(rows)))
        for part in split_rows(*rows.shape):
            found.rows[part], found.inverse[part] = cls.of_block(rows[part].astype(np.float64))
        return found

    @classmethod
    def of_block(cls, rows: Any) -> _Unit:
        """Those of some vectors in float64."""
        length = row_lengths(rows)
        exponent = np.where((length > 0) & np.isfinite(length), np.frexp(length)[1], 0)
        scaled = np.ldexp(rows, -exponent[:, None])  # so that no reciprocal overflows
        again = row_lengths(scaled)
        is_zero = length == 0
        return cls(
            np.where(is_zero[:, None], 0, scaled / np.where(is_zero, 1, again)[:, None]),
            np.where(is_zero, 0, np.minimum(1 / np.where(is_zero, 1, length), np.finfo(np.float64).max)),
        )

    def pull_back(self, rows: Any, gradient: Any) -> Any:
        """The gradient of given vectors, from that of unit vectors."""
        unit = self.rows[rows]
        along = np.add.reduce(gradient * unit, axis=1, keepdims=True)
        return (gradient - along * unit) * self.inverse[rows][:, None]


class _Plan(NamedTuple):
    """A checked call, by row and in float64."""

    x: _Unit  # (N, D)
    mu: _Unit  # (K, D)
    kappa: Any  # (K,)
    bessel: bessel.Bessel
    constant: Any  # log prior + log C(kappa) + kappa, less a number that all classes share if that is allowed, (K,)
    shape: tuple[int, ...]  # of the caller's x
    dtype: np.dtype[Any]
    is_shared: bool  # kappa is a number

    def chunks(self) -> Iterator[slice]:
        """Slices of rows."""
        return split_rows(len(self.x.rows), max(len(self.kappa), self.shape[-1]), CHUNK_ELEMENTS)

    def distances(self, rows: Any) -> Any:
        """1 - cosine of some rows and all classes: half the squared distance of unit vectors, which loses no digit of
        small ones; 1 for zero vectors."""
        x, mu = self.x.rows[rows], self.mu.rows
        result = 1 - multiply(x, mu.T)
        row, column = np.nonzero(result < NEAR)
        for part in split_rows(len(row), mu.shape[1], PAIR_ELEMENTS):
            at = row[part], column[part]
            difference = x[at[0]] - mu[at[1]]
            result[at] = np.add.reduce(difference * difference, axis=1) / 2
        return result

    def logits(self, distances: Any) -> Any:
        """Logits of some rows."""
        return self.constant - self.kappa * distances


def _check_classes(kappa: Any, log_prior: Any, n: int) -> tuple[Any, Any]:
    """The concentrations and the logarithms of priors, (K,)."""
    given, _ = as_float("kappa", kappa)
    if given.ndim == 0:
        given = np.broadcast_to(given, (n,))
    values = check_bias(given, n, "kappa", "mu").astype(np.float64)
    bad = ~((values >= 0) & (values < math.inf))
    if bad.any():
        raise ValueError(f"kappa must be at least 0 and finite, got {values[bad][0]}")
    if log_prior is None:
        return values, np.zeros(n)
    prior = check_bias(as_float("log_prior", log_prior)[0], n, "log_prior", "mu").astype(np.float64)
    bad = ~(prior < math.inf)
    if bad.any():
        raise ValueError(f"log_prior must be below infinity, got {prior[bad][0]}")
    return values, prior


def _plan_vmf(x: Any, mu: Any, kappa: Any, log_prior: Any, is_relative: bool) -> _Plan:
    """Check the arguments that logits and loss share; is_relative: logits are needed up to a constant."""
    x, _ = as_float("x", x)
    mu, _ = as_float("mu", mu)
    if x.ndim == 0 or mu.ndim != 2 or x.shape[-1] != mu.shape[1] or mu.shape[1] == 0:
        raise ValueError(f"x has shape {x.shape} and mu {mu.shape}; allowed are (..., D) and (K, D), D at least 1")
    if mu.dtype != x.dtype:
        raise TypeError(f"mu has dtype {mu.dtype}, x has dtype {x.dtype}: they must be the same")
    classes, dimensions = mu.shape
    is_shared = as_array("kappa", kappa).ndim == 0
    values, prior = _check_classes(kappa, log_prior, classes)
    nu = np.full(classes + 1, dimensions / 2 - 1)
    found = bessel.evaluate(nu, np.append(values, 0.0), True)
    high, low = found.high[:-1], found.low[:-1]
    if is_relative:
        constant = (found.high[-1] - high) + (found.low[-1] - low)
    else:
        constant = -(high + (low + dimensions / 2 * math.log(2 * math.pi)))
    rows = run_apart(x.nbytes, x.reshape, math.prod(x.shape[:-1]), dimensions)
    of_class = bessel.Bessel(*(value[:-1] for value in found))
    return _Plan(_Unit.of(rows), _Unit.of(mu), values, of_class, prior + constant, x.shape, x.dtype, is_shared)


@accept_foreign
@np.errstate(all="ignore")
def _run_logits(x: Any, mu: Any, kappa: Any, *, log_prior: Any) -> Any:
    plan = _plan_vmf(x, mu, kappa, log_prior, False)
    result = np.empty((len(plan.x.rows), len(plan.kappa)), plan.dtype)
    for rows in plan.chunks():
        result[rows] = in_dtype(plan.logits(plan.distances(rows)), plan.dtype)
    return result.reshape(*plan.shape[:-1], result.shape[1])


@hand_over_recorded
def vmf_logits(x: ArrayLike, mu: ArrayLike, kappa: ArrayLike, *, log_prior: ArrayLike | None = None) -> Any:
    """Logarithms of von Mises-Fisher densities: classes on the sphere, each with a centre and a concentration.

    ``log_prior + log C(kappa) + kappa * cosine(x, mu)``, where C makes the density integrate to 1 over the unit sphere:
    ``log C(kappa) = (D/2 - 1) * log(kappa) - log I(D/2 - 1, kappa) - D/2 * log(2 * pi)``.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Points, in one of the dtypes of `softmax`; their length has no effect.
    mu : array_like of shape (K, D) and the dtype of x
        Centres of the classes; their length has no effect.
    kappa : array_like of shape (K,), or number
        Concentrations, at least 0 and finite; 0 is the uniform distribution.
    log_prior : array_like of shape (K,), optional
        Logarithms of the probabilities of the classes, 0 by default; -inf excludes a class.

    Returns
    -------
    ndarray of shape (..., K)
        Logits in the dtype of `x` (float64 for integers), computed in float64 and rounded once.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers, or dtypes differ.
    ValueError
        If shapes do not fit, a concentration is negative or not finite, or a prior is NaN or infinity.

    Notes
    -----
    Banerjee, Dhillon, Ghosh & Sra, "Clustering on the unit hypersphere using von Mises-Fisher distributions", Journal
    of Machine Learning Research 6, 2005. ``log C(kappa) + kappa`` is computed as one term and ``kappa * (1 - cosine)``
    from the distance of the unit vectors, so that large concentrations lose no digits. A zero vector has cosine 0 to
    all.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import vmf_logits
    >>> centers = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    >>> vmf_logits(np.array([[2.0, 1.0, 0.0]]), centers, [1.0, 1000.0]).round(4)
    array([[  -1.798 , -547.7165]])
    """
    return _run_logits(x, mu, kappa, log_prior=log_prior)


@accept_foreign
@keep_labels(1)
@np.errstate(all="ignore")
def _run_loss(
    x: Any, mu: Any, kappa: Any, target: Any, *, log_prior: Any, device: Any, num_threads: Any, **options: Any
) -> tuple[Any, ...]:
    given = x, mu, kappa, target, log_prior, *options.values()
    x, mu, kappa, target, log_prior, *values = bring_to_host("vmf_cross_entropy_with_grad", device, *given)
    options = dict(zip(options, values, strict=True))
    num_threads = check_num_threads(num_threads)
    plan = _plan_vmf(x, mu, kappa, log_prior, as_number("z_loss", options["z_loss"]) == 0)
    count, classes = len(plan.x.rows), len(plan.kappa)
    logits = np.empty((count, classes))
    for rows in plan.chunks():
        logits[rows] = plan.logits(plan.distances(rows))
    by_row = logits.reshape(*plan.shape[:-1], classes)
    loss, g = cross_entropy_with_grad(by_row, target, num_threads=num_threads, **options)
    g = g.reshape(count, classes)
    grad_x = np.zeros(plan.x.rows.shape, plan.dtype)
    sums, grad_kappa = np.zeros(plan.mu.rows.shape), np.zeros(classes)
    for rows in plan.chunks():
        at = np.arange(count)[rows][(g[rows] != 0).any(axis=1)]  # rows that take no part may hold anything
        if not len(at):
            continue
        by_cosine = g[at] * plan.kappa
        grad_x[at] = in_dtype(plan.x.pull_back(at, multiply(by_cosine, plan.mu.rows)), plan.dtype)
        sums += multiply(by_cosine.T, plan.x.rows[at])
        # cosine - A(kappa), both of which come near 1
        slope = g[at] * (plan.bessel.complement - plan.distances(at))
        grad_kappa += np.add.reduce(np.where(g[at] == 0, 0, slope), axis=0)
    grad_mu = plan.mu.pull_back(slice(None), sums)
    if plan.is_shared:
        grad_kappa = np.add.reduce(grad_kappa)
    dtype = plan.dtype
    loss = np.asarray(loss).astype(compute_dtype(dtype))[()]
    return (
        loss,
        grad_x.reshape(plan.shape),
        in_dtype(grad_mu, dtype),
        in_dtype(grad_kappa, dtype)[()],
    )


@hand_over_recorded
def vmf_cross_entropy_with_grad(
    x: ArrayLike,
    mu: ArrayLike,
    kappa: ArrayLike,
    target: ArrayLike,
    *,
    log_prior: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> VmfLossResult:
    """Cross-entropy of the logits of `vmf_logits`, and all gradients.

    Parameters
    ----------
    x, mu, kappa
        As in `vmf_logits`.
    target : array_like of shape (...) or (..., K)
        As in `cross_entropy`.
    log_prior
        As in `vmf_logits`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `cross_entropy`.
    upstream, clip_norm, clip_value
        As in `cross_entropy_with_grad`; clipping applies to the gradient of a row's logits.
    device, num_threads
        As in `linear_cross_entropy`; there are no kernels for CUDA.

    Returns
    -------
    VmfLossResult
        loss, grad_x, grad_mu, grad_kappa.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `cross_entropy` and `vmf_logits`.

    Notes
    -----
    The derivative of a logit by kappa is ``cosine - A(kappa)``, A the ratio ``I(D/2, kappa) / I(D/2 - 1, kappa)``
    (`bessel_ratio`), 0 at kappa = 0. Gradients of `x` and `mu` are tangents of the sphere over the length of the
    vector, 0 for a zero vector. All is computed in float64; the logits of all rows exist, 8 bytes each.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.geometric import vmf_cross_entropy_with_grad
    >>> x, centers = np.array([[2.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> result = vmf_cross_entropy_with_grad(x, centers, [1.0, 4.0], [0, 1])
    >>> result.loss.round(4), result.grad_kappa.round(4)
    (np.float64(0.1968), array([-0.0795, -0.0544]))
    """
    result = _run_loss(
        x,
        mu,
        kappa,
        target,
        log_prior=log_prior,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        upstream=upstream,
        clip_norm=clip_norm,
        clip_value=clip_value,
        device=device,
        num_threads=num_threads,
    )
    return VmfLossResult(*result)


@np.errstate(all="ignore")
def _evaluate(nu: Any, x: Any, function: Any) -> Any:
    """A function of both arguments, broadcast against each other, in the dtype of x."""
    order, _ = as_float("nu", nu)
    x, _ = as_float("x", x)
    order = order.astype(np.float64)
    bad = ~((order >= 0) & (order <= bessel.MAX_ORDER))
    if bad.any():
        raise ValueError(f"nu must be from 0 to {bessel.MAX_ORDER:g}, got {order[bad][0]}")
    if (x < 0).any():
        raise ValueError(f"x must be at least 0, got {x[x < 0][0]}")
    try:
        orders, arguments = np.broadcast_arrays(order, x)
    except ValueError:
        raise ValueError(f"nu has shape {order.shape} and x {x.shape}, which do not broadcast") from None
    result = np.empty(arguments.shape, x.dtype)
    flat = result.reshape(-1)
    for part in split_rows(flat.size, 1):
        values, wide = (a.flat[part].astype(np.float64) for a in (orders, arguments))
        flat[part] = in_dtype(function(values, wide), x.dtype)
    return result[()]


@accept_foreign
@keep_labels()
def _run_by_order(nu: Any, x: Any, function: Any) -> Any:
    return _evaluate(nu, x, function)


@accept_foreign
@keep_labels()
def _run_by_argument(x: Any, nu: Any, function: Any) -> Any:
    return _evaluate(nu, x, function)


def _run_bessel(nu: Any, x: Any, function: Any) -> Any:
    """The result is of the kind of x, or if that is a number, a list or an array of NumPy, of the kind of nu."""
    if isinstance(x, int | float | list | tuple | np.generic | np.ndarray):
        return _run_by_order(nu, x, function)
    return _run_by_argument(x, nu, function)


@hand_over_recorded
def log_bessel_iv(nu: ArrayLike, x: ArrayLike) -> Any:
    """Logarithm of the modified Bessel function of the first kind, without overflow or underflow.

    Parameters
    ----------
    nu : array_like
        Orders, from 0 to 1e15.
    x : array_like
        Arguments, at least 0, in one of the dtypes of `softmax`; broadcast against `nu`.

    Returns
    -------
    scalar or ndarray
        ``log(I(nu, x))`` in the dtype of `x` (float64 for integers): -inf at x = 0, and 0 there for nu = 0. An array of
        the kind of `x`, or, if that is a number or of NumPy, of the kind of `nu`.

    Raises
    ------
    TypeError
        If an argument is not an array of real numbers.
    ValueError
        If an order or an argument is out of range, or the shapes do not broadcast.

    Notes
    -----
    Within 1e-13 of ``max(1, abs(log(I)))`` for nu up to 2,047 and x from 1e-6 to 1e5, measured 1e-14. Olver's uniform
    expansion (NIST Digital Library of Mathematical Functions, 10.41), for orders below 32 after a recurrence.

    Examples
    --------
    >>> from csoftmax.geometric import log_bessel_iv
    >>> log_bessel_iv([0.0, 0.5, 255.0], 10.0).round(4)
    array([   7.943 ,    7.9298, -751.2078])
    """
    return _run_bessel(nu, x, bessel.log_iv)


@hand_over_recorded
def bessel_ratio(nu: ArrayLike, x: ArrayLike) -> Any:
    """Ratio of modified Bessel functions of the first kind of neighbouring orders, ``I(nu + 1, x) / I(nu, x)``.

    With nu = D/2 - 1 it is the mean cosine of a von Mises-Fisher distribution in D dimensions with its centre.

    Parameters
    ----------
    nu : array_like
        Orders, from 0 to 1e15.
    x : array_like
        Arguments, at least 0, in one of the dtypes of `softmax`; broadcast against `nu`.

    Returns
    -------
    scalar or ndarray
        The ratio in the dtype of `x` (float64 for integers): 0 at x = 0, 1 at infinity. Of the kind of `log_bessel_iv`.

    Raises
    ------
    TypeError, ValueError
        As in `log_bessel_iv`.

    Notes
    -----
    Relative error at most 2e-15, as measured for nu up to 2,047 and x from 1e-6 to 1e5.

    Examples
    --------
    >>> from csoftmax.geometric import bessel_ratio
    >>> bessel_ratio(0.5, [0.0, 1.0, 100.0]).round(4)
    array([0.   , 0.313, 0.99 ])
    """
    return _run_bessel(nu, x, bessel.ratio_of)
