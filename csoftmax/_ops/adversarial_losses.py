"""Losses of linear layers under perturbation: a certified upper bound, virtual adversarial training, TRADES."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign
from .._arguments.generators import as_generator
from .._arguments.kinds import keep_labels
from .._arguments.numbers import check_count, check_non_negative, check_num_threads
from .._arguments.places import as_float, bring_to_host, check_kernels, place_of, to_host
from .._arguments.recorded import hand_over_recorded
from .._cpu.apart import multiply
from .._cpu.linear import Layer
from .adversarial import Head, Walls, check_bounds, check_norm
from .adversarial_divergence import find_divergence
from .adversarial_perturb import (
    Ball,
    DivergenceGradient,
    check_step_size,
    climb,
    find_differences,
    perturb_for_divergence,
)
from .adversarial_shift import RobustShift, set_broken_rows
from .cross_entropy import cross_entropy_with_grad
from .linear_cross_entropy import (
    LinearCrossEntropyResult,
    LinearPlan,
    plan_linear,
    reduce_losses,
    run_linear_on_cpu,
    spread_gradients,
)

START = 1e-3  # standard deviation of the first perturbation of TRADES

__all__ = ["robust_cross_entropy", "robust_cross_entropy_with_grad", "trades_loss_with_grad", "vat_loss_with_grad"]


@accept_foreign
@keep_labels(1)
def _run_robust(
    x: Any, w: Any, target: Any, *, bias: Any, eps: Any, norm: Any, gradient: bool, num_threads: Any, **options: Any
) -> tuple[Any, Any, Any, Any]:
    if place_of(options["device"], x).on_cuda:
        check_kernels("robust_cross_entropy")
    eps, norm = check_non_negative("eps", eps), check_norm(norm)
    num_threads = check_num_threads(num_threads)
    plan = plan_linear(x, w, target, bias, **options)
    if plan.labels is None:
        raise TypeError("target must hold integer labels: the bound is that of one class; got soft labels")
    with np.errstate(all="ignore"):
        shift = RobustShift(plan.w, plan.labels, eps, norm, num_threads) if eps > 0 else None
        return run_linear_on_cpu(plan, gradient, options["reduction"], 0.0, num_threads, shift)


@hand_over_recorded
def robust_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    eps: float,
    norm: float = math.inf,
    chunk_bytes: SupportsIndex | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    ignore_index: SupportsIndex = -100,
    z_loss: float = 0.0,
    temperature: float = 1.0,
    reduction: Literal["none", "sum", "mean"] = "mean",
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Compute an upper bound of the cross-entropy under every perturbation of norm at most eps.

    The loss is the cross-entropy of the logits ``z_j + eps * ||w_j - w_y||_q`` of the classes j other than the target
    y, 1/p + 1/q = 1: each rival gains what the perturbation that is best for it alone would give it. It is convex in w.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `csoftmax.softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class, for the logits ``x @ w.T + bias``.
    target : array_like of integers of shape (...)
        The right classes.
    bias : array_like of shape (K,), optional
        Added to the logits.
    eps : float
        Largest norm of a perturbation, at least 0. With 0 the result is that of `csoftmax.linear_cross_entropy`, bit
        for bit.
    norm : float, default inf
        Order p of the norm of perturbations: 1, 2, numpy.inf or any number from 1.
    chunk_bytes, weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `csoftmax.linear_cross_entropy`. With label smoothing or z_loss the loss is no bound, but still that of
        the logits above.
    device, num_threads
        As in `csoftmax.linear_cross_entropy`; there are no kernels for CUDA.

    Returns
    -------
    scalar, or ndarray of the shape of the rows with reduction "none"
        float64 for float64 and integer input, else float32.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `csoftmax.linear_cross_entropy`.

    Notes
    -----
    For two classes the bound is the largest loss itself. A row whose loss is below log 2 keeps its class under every
    such perturbation (the bound of Wong & Kolter 2018 for a linear layer), up to the rounding of the logits: `certify`
    has the certificate that no rounding breaks. Where eps times a norm overflows the loss is inf. With eps above 0 a
    row of which a logit is not finite has loss and gradients NaN, as its radius is: a bias of -inf excludes no class.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.adversarial import perturb, robust_cross_entropy
    >>> w = np.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> x, target = np.array([[1.0, 0.5]]), [0]
    >>> robust_cross_entropy(x, w, target, eps=0.25).round(4)
    np.float64(0.6931)
    >>> worst = perturb(x, w, target, eps=0.25, method="fgsm")
    >>> robust_cross_entropy(worst, w, target, eps=0.0).round(4)
    np.float64(0.6931)
    """
    return _run_robust(
        x,
        w,
        target,
        bias=bias,
        eps=eps,
        norm=norm,
        gradient=False,
        chunk_bytes=chunk_bytes,
        weight=weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        ignore_index=ignore_index,
        z_loss=z_loss,
        temperature=temperature,
        reduction=reduction,
        device=device,
        num_threads=num_threads,
    )[0]


@hand_over_recorded
def robust_cross_entropy_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    eps: float,
    norm: float = math.inf,
    chunk_bytes: SupportsIndex | None = None,
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
) -> LinearCrossEntropyResult:
    """Compute `robust_cross_entropy` and its gradients.

    Parameters
    ----------
    x, w, target, bias, eps, norm, chunk_bytes
        As in `robust_cross_entropy`.
    weight, sample_weight, label_smoothing, ignore_index, z_loss, temperature, reduction
        As in `robust_cross_entropy`.
    upstream, clip_norm, clip_value
        As in `csoftmax.linear_cross_entropy_with_grad`.
    device, num_threads
        As in `robust_cross_entropy`.

    Returns
    -------
    csoftmax.LinearCrossEntropyResult
        loss, grad_x of the shape of x, grad_w (K, D), grad_bias (K,) or None, in the dtype of x (float64 for integers).

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        As in `csoftmax.linear_cross_entropy`.

    Notes
    -----
    With the gradients g of the shifted logits and a subgradient s_yj of the norm at w_j - w_y, the class j gets
    ``g_j * (x + eps * s_yj)`` and the target ``-g_j * eps * s_yj``. The sums of g over the rows of a label suffice, so
    that the norms cost K^2 D operations a call instead of N K D. Subgradients are the sign (p = inf, 0 at 0), the unit
    vector (p = 2), and the sign at the first of the largest elements (p = 1); where two rows of w are equal, 0.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.adversarial import robust_cross_entropy_with_grad
    >>> w = np.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> robust_cross_entropy_with_grad(np.array([[1.0, 0.5]]), w, [0], eps=0.25).grad_w
    array([[-0.375, -0.375],
           [ 0.375,  0.375]])
    """
    result = _run_robust(
        x,
        w,
        target,
        bias=bias,
        eps=eps,
        norm=norm,
        gradient=True,
        chunk_bytes=chunk_bytes,
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
    return LinearCrossEntropyResult(*result)


class RowTerms(NamedTuple):
    """Of some rows: losses, the gradients of the logits of x and of those of x + delta (or None), and delta."""

    loss: Any
    grad: Any | None
    grad_moved: Any
    delta: Any


class VatTerms:
    """The terms of virtual adversarial training."""

    def __init__(self, eps: float, iterations: int, rng: Any, num_threads: Any):
        self.eps, self.iterations, self.rng, self.num_threads = eps, iterations, rng, num_threads

    def evaluate(self, x: Any, fixed: Any, w: Any, rows: slice, scale: Any) -> RowTerms:
        """Terms of rows with the logits `fixed`, the gradients times a column of scales."""
        delta = perturb_for_divergence(fixed, w, self.eps, self.iterations, self.rng, self.num_threads)
        found = find_divergence(fixed, multiply(delta, find_differences(w).T), self.num_threads)
        return RowTerms(found.value, None, found.grad_moved * scale, delta)


class TradesTerms:
    """The terms of TRADES."""

    def __init__(self, labels: Any, ball: tuple[float, float], walls: Any, beta: float, climbing: Any):
        self.labels, self.ball, self.walls, self.beta = labels, ball, walls, beta  # labels None: without cross-entropy
        self.steps, self.step_size, self.rng, self.num_threads = climbing

    def perturb(self, x: Any, fixed: Any, w: Any, rows: slice) -> Any:
        """The perturbations with a large divergence that projected gradient ascent finds."""
        eps, norm = self.ball
        start = (START * self.rng.standard_normal(x.shape)).astype(x.dtype)
        if eps == 0:
            return np.zeros_like(x)
        walls = self.walls
        near = None if walls is None else Walls(*(wall if len(wall) == 1 else wall[rows] for wall in walls))
        gradient = DivergenceGradient(fixed, w, self.num_threads)
        return climb(gradient, start, Ball.of(eps, norm, x, near), self.steps, self.step_size, self.num_threads)

    def evaluate(self, x: Any, fixed: Any, w: Any, rows: slice, scale: Any) -> RowTerms:
        """Terms of rows with the logits `fixed`, the gradients times a column of scales."""
        delta = self.perturb(x, fixed, w, rows)
        found = find_divergence(fixed, multiply(delta, find_differences(w).T), self.num_threads)
        scaled = self.beta * scale
        loss, grad, grad_moved = self.beta * found.value, found.grad_fixed * scaled, found.grad_moved * scaled
        if self.labels is not None:
            plain = cross_entropy_with_grad(
                fixed, self.labels[rows], reduction="none", upstream=scale[:, 0], num_threads=self.num_threads
            )
            loss, grad = loss + plain.loss, grad + plain.grad
        return RowTerms(loss, grad, grad_moved, delta)


def _run_terms(plan: LinearPlan, terms: VatTerms | TradesTerms, reduction: str) -> tuple[Any, Any, Any, Any]:
    """Loss and gradients of a checked call whose terms are evaluated chunk by chunk."""
    options, rows, compute = plan.options, len(plan.x), plan.compute
    coefficient: Any = np.ones(rows) if options.upstream is None else options.upstream
    weights = np.ones(rows) if options.sample_weight is None else options.sample_weight
    if options.weight is not None:
        weights = weights * options.weight[plan.labels]
    scale = (coefficient * weights / plan.divisor)[:, None]
    layer = Layer(plan.x, plan.w, plan.bias, compute, True)
    layer.clear()
    w = plan.w.astype(compute, copy=False)
    losses, divides = np.zeros(rows), plan.divisor != 0
    for begin in range(0, rows if divides else 0, plan.chunk_rows):
        chunk = slice(begin, min(begin + plan.chunk_rows, rows))
        x = plan.x[chunk].astype(compute, copy=False)
        fixed = multiply(x, w.T)
        if plan.bias is not None:
            fixed += plan.bias
        set_broken_rows(fixed)
        found = terms.evaluate(x, fixed, w, chunk, scale[chunk])
        losses[chunk] = found.loss * weights[chunk]
        moved = found.grad_moved.astype(compute)
        total = moved
        layer.grad_w += multiply(moved.T, x + found.delta)
        if found.grad is not None:
            grad = found.grad.astype(compute)
            layer.grad_w += multiply(grad.T, x)
            total = moved + grad
        layer.grad_x[chunk] = multiply(total, w)
        layer.grad_bias += total.sum(axis=0, dtype=np.float64)
    return reduce_losses(plan, losses, reduction), *spread_gradients(plan, layer)


NO_OPTIONS: dict[str, Any] = {"label_smoothing": 0.0, "z_loss": 0.0, "temperature": 1.0}


def _check_classes(w: Any) -> None:
    if np.ndim(w) == 2 and not len(w):
        raise ValueError("w must have at least one row: there is no distribution over no class")


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@accept_foreign
@keep_labels(1)
@np.errstate(all="ignore")
def _run_vat(
    x: Any, w: Any, *, bias: Any, eps: Any, iterations: Any, rng: Any, device: Any, num_threads: Any, **options: Any
) -> tuple[Any, Any, Any, Any]:
    x, w, bias, *values = bring_to_host("vat_loss_with_grad", device, x, w, bias, *options.values())
    options = dict(zip(options, values, strict=True))
    terms = VatTerms(
        check_non_negative("eps", eps),
        check_count("iterations", iterations, 1),
        None if rng is None else as_generator(rng, or_random_state=True),
        check_num_threads(num_threads),
    )
    _check_classes(w)
    target = np.zeros(np.shape(x)[:-1], np.int64)
    plan = plan_linear(x, w, target, bias, chunk_bytes=None, weight=None, ignore_index=-1, **NO_OPTIONS, **options)
    return _run_terms(plan, terms, options["reduction"])


@hand_over_recorded
def vat_loss_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    eps: float,
    iterations: SupportsIndex = 1,
    rng: Any = None,
    sample_weight: ArrayLike | None = None,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> LinearCrossEntropyResult:
    """Compute the loss of virtual adversarial training and its gradients; it needs no labels.

    The loss of a row is KL(p(x) || p(x + d)), where p is the predicted distribution and d, of Euclidean norm eps, the
    perturbation of `perturb` with method "vat": along the direction in which the divergence curves most.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `csoftmax.softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class, for the logits ``x @ w.T + bias``.
    bias : array_like of shape (K,), optional
        Added to the logits.
    eps : float
        Norm of the perturbation, at least 0.
    iterations : int, default 1
        Number of power iterations.
    rng : int, numpy.random.Generator, RandomState or SeedSequence, optional
        Source of the first direction. Default: the difference of the weights of the two most probable classes.
    sample_weight, reduction, upstream
        As in `csoftmax.linear_cross_entropy_with_grad`.
    device, num_threads
        As in `robust_cross_entropy`.

    Returns
    -------
    csoftmax.LinearCrossEntropyResult
        loss, grad_x of the shape of x, grad_w (K, D), grad_bias (K,) or None, in the dtype of x (float64 for integers).
        p(x) and d are held fixed.

    Raises
    ------
    TypeError, ValueError, DeviceError, MemoryError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    For a linear layer the Hessian of the divergence is ``H d = W' (p * (W d) - p (p . W d))``, so that the power
    iteration needs neither finite differences nor their step size (Miyato et al. 2018 use both). The divergence is a
    sum of terms of one sign: of small perturbations it keeps all of its digits. Where all probabilities but one are 0
    in float64, H, d and the loss are 0, however large eps is. A row with logits that are not finite has loss and
    gradients NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.adversarial import vat_loss_with_grad
    >>> result = vat_loss_with_grad(np.array([[1.0, 0.5]]), np.array([[1.0, -1.0], [-1.0, 1.0]]), eps=0.1)
    >>> result.loss.round(6), result.grad_x.round(4)
    (np.float64(0.008196), array([[-0.1182,  0.1182]]))
    """
    result = _run_vat(
        x,
        w,
        bias=bias,
        eps=eps,
        iterations=iterations,
        rng=rng,
        sample_weight=sample_weight,
        reduction=reduction,
        upstream=upstream,
        device=device,
        num_threads=num_threads,
    )
    return LinearCrossEntropyResult(*result)


@accept_foreign
@keep_labels(1)
@np.errstate(all="ignore")
def _run_trades(
    x: Any,
    w: Any,
    target: Any,
    *,
    bias: Any,
    eps: Any,
    norm: Any,
    beta: Any,
    steps: Any,
    step_size: Any,
    bounds: Any,
    rng: Any,
    device: Any,
    num_threads: Any,
    **options: Any,
) -> tuple[Any, Any, Any, Any]:
    given = x, w, target, bias, *options.values()
    x, w, target, bias, *values = bring_to_host("trades_loss_with_grad", device, *given)
    options = dict(zip(options, values, strict=True))
    if device is not None and isinstance(bounds, tuple | list):
        bounds = to_host(*bounds)
    eps, norm = check_non_negative("eps", eps), check_norm(norm, (1.0, 2.0, math.inf))
    beta, steps = check_non_negative("beta", beta), check_count("steps", steps, 1)
    source, num_threads = as_generator(rng, or_random_state=True), check_num_threads(num_threads)
    climbing = steps, check_step_size(step_size, eps, steps), source, num_threads
    plan = plan_linear(x, w, target, bias, chunk_bytes=None, **NO_OPTIONS, **options)
    if plan.labels is None:
        raise TypeError("target must hold integer labels, got soft labels")
    every = as_float("x", x)[0].reshape(math.prod(plan.batch), plan.x.shape[1])
    walls = check_bounds(bounds, Head(every, plan.w, None, plan.batch, plan.compute))
    if walls is not None and plan.kept is not None:
        walls = Walls(*(wall if len(wall) == 1 else wall[plan.kept] for wall in walls))
    return _run_terms(plan, TradesTerms(plan.labels, (eps, norm), walls, beta, climbing), options["reduction"])


@hand_over_recorded
def trades_loss_with_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    eps: float,
    norm: float = math.inf,
    beta: float = 6.0,
    steps: SupportsIndex = 10,
    step_size: float | None = None,
    bounds: tuple[Any, Any] | None = None,
    rng: Any = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: SupportsIndex = -100,
    reduction: Literal["none", "sum", "mean"] = "mean",
    upstream: ArrayLike = 1.0,
    device: str | None = None,
    num_threads: SupportsIndex | None = None,
) -> LinearCrossEntropyResult:
    """Compute the loss of TRADES and its gradients (Zhang et al. 2019).

    The loss of a row is ``cross_entropy(z, target) + beta * KL(p(x) || p(x + d))``, where d in the ball of radius eps
    is found by projected gradient ascent on the divergence, from a start of 0.001 times normal numbers. The divergence
    is not concave in d: what ascent finds may be far below the largest one.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `csoftmax.softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class, for the logits ``x @ w.T + bias``.
    target : array_like of integers of shape (...)
        The right classes.
    bias : array_like of shape (K,), optional
        Added to the logits.
    eps : float
        Largest norm of a perturbation, at least 0.
    norm : {1, 2, numpy.inf}, default inf
        Norm of the perturbations.
    beta : float, default 6.0
        Factor of the divergence, at least 0.
    steps : int, default 10
        Number of steps of the ascent.
    step_size : float, optional
        Length of a step. Default ``2.5 * eps / steps``.
    bounds : pair (low, high), optional
        Limits of the perturbed features, as in `certify`.
    rng : int, numpy.random.Generator, RandomState or SeedSequence, optional
        Source of the start. Default: fresh entropy.
    weight, sample_weight, ignore_index, reduction, upstream
        As in `csoftmax.linear_cross_entropy_with_grad`; weights apply to both terms.
    device, num_threads
        As in `robust_cross_entropy`.

    Returns
    -------
    csoftmax.LinearCrossEntropyResult
        loss, grad_x of the shape of x, grad_w (K, D), grad_bias (K,) or None, in the dtype of x (float64 for integers).
        d is held fixed; p(x) is not.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    A row with logits that are not finite has loss and gradients NaN, for every eps.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.adversarial import trades_loss_with_grad
    >>> w = np.array([[1.0, -1.0], [-1.0, 1.0]])
    >>> result = trades_loss_with_grad(np.array([[1.0, 0.5]]), w, [0], eps=0.1, rng=0)
    >>> result.loss.round(4), result.grad_w.round(4)
    (np.float64(0.4017), array([[-0.2714, -0.1997],
           [ 0.2714,  0.1997]]))
    """
    result = _run_trades(
        x,
        w,
        target,
        bias=bias,
        eps=eps,
        norm=norm,
        beta=beta,
        steps=steps,
        step_size=step_size,
        bounds=bounds,
        rng=rng,
        weight=weight,
        sample_weight=sample_weight,
        ignore_index=ignore_index,
        reduction=reduction,
        upstream=upstream,
        device=device,
        num_threads=num_threads,
    )
    return LinearCrossEntropyResult(*result)
