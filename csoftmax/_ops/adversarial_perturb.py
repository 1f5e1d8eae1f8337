"""Perturbations of features that raise the loss of a linear layer, or of any model whose gradient is given."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike

from .._arguments.foreign import accept_foreign, as_native, give_like, is_foreign
from .._arguments.generators import as_generator
from .._arguments.kinds import keep_labels
from .._arguments.numbers import check_choice, check_count, check_flag, check_non_negative, check_num_threads
from .._arguments.places import as_array, check_kernels, place_of
from .._arguments.recorded import hand_over_recorded
from .._cpu import binding
from .._cpu.apart import multiply
from .._cpu.dtypes import dtype_code, is_bfloat16
from .adversarial import Head, Walls, check_bounds, check_labels_of, check_norm, find_certificates, plan_head
from .adversarial_divergence import find_divergence
from .adversarial_geometry import find_directions, project_on_ball, reach_furthest, row_norms, scale_rows
from .softmax import logsumexp, softmax

METHODS = ("fgsm", "pgd", "exact", "vat")
CHUNK_ELEMENTS = 1 << 14  # of x: the arrays of a chunk stay in cache over all steps
CACHED_CHUNK_ELEMENTS = 1 << 16  # the same where a kernel takes blocks of rows through all steps
CACHED_BYTES = 1 << 20  # of w in the compute type, for that kernel
CACHED_LENGTH = 1 << 12  # of features and of classes for it: a block has some of each in scratch
MIN_CHUNK_ROWS = 64  # so that products stay fast
CACHED_MIN_CHUNK_ROWS = 128  # the same for that kernel: blocks of 16 or 32 rows for several threads, all of them full
TINY = 1e-250  # a gradient below it has lost digits, or all of them, to underflow
LARGEST_RISE = 600.0  # its exponential and sums of these are finite
FREE_EXPONENTS = 16  # between scaled weights and overflow: lengths of differences of weights are numbers
MAX_STEPS = 2**63 - 1
MAX_EXACT_ELEMENTS = 1 << 20  # of the weights that sums which cancel are formed from at once
STRETCH = 2.0  # growth of what an exact perturbation goes beyond its radius, until the class changes

__all__ = ["perturb"]


class Ball(NamedTuple):
    """Where perturbations of checked rows may lie."""

    eps: float
    norm: float
    low: Any  # least and largest perturbation, contiguous in the compute type; None: only the ball limits them
    high: Any

    @classmethod
    def of(cls, eps: float, norm: float, x: Any, walls: Walls | None) -> Ball:
        """The ball around the rows of x, within the walls."""
        if walls is None:
            if norm != math.inf:
                return cls(eps, norm, None, None)
            return cls(eps, norm, np.full(x.shape, -eps, x.dtype), np.full(x.shape, eps, x.dtype))
        low, high = (np.ascontiguousarray(wall - x, x.dtype) for wall in walls)
        if norm == math.inf:
            np.clip(low, -eps, eps, out=low)
            np.clip(high, -eps, eps, out=high)
        return cls(eps, norm, low, high)

    def project(self, delta: Any, num_threads: Any) -> Any:
        """Bring perturbations into the ball and within the walls; delta may be changed."""
        if self.norm != math.inf:
            delta = project_on_ball(delta, self.eps, self.norm, num_threads)
        return delta if self.low is None else np.clip(delta, self.low, self.high, out=delta)


def apply_perturbation(x: Any, delta: Any, walls: Walls | None, eps: float) -> Any:
    """X + delta in the dtype of x, within the walls; rows with a perturbation that is not finite stay as they are."""
    unusable = ~np.isfinite(delta).all(axis=1)
    if unusable.any():
        delta = np.where(unusable[:, None], 0, delta)
    moved = (x + delta).astype(x.dtype, copy=False)
    if walls is not None:
        _clip_in_dtype(moved, *walls)
    if not np.isfinite(moved).all() and (np.isinf(moved) & np.isfinite(x)).any():
        raise ValueError(f"eps={eps!r} is too large: perturbed features overflow {x.dtype}")
    stays = unusable[:, None] | (delta == 0)
    return np.where(stays, x, moved) if stays.any() else moved


def _clip_in_dtype(x: Any, low: Any, high: Any) -> None:
    """Bring x between walls that its dtype may not hold: the nearest numbers inside of them."""
    lowest, highest = low.astype(x.dtype, copy=False), high.astype(x.dtype, copy=False)
    below, above = lowest.astype(np.float64, copy=False) < low, highest.astype(np.float64, copy=False) > high
    if below.any():
        lowest = np.where(below, np.nextafter(lowest, x.dtype.type(math.inf)), lowest)
    if above.any():
        highest = np.where(above, np.nextafter(highest, x.dtype.type(-math.inf)), highest)
    np.clip(x, lowest, highest, out=x)


def find_differences(w: Any) -> Any:
    """W - w[0], whose product with a gradient of logits is that of w, because such a gradient has the sum 0.

    Features whose weights do not differ between the classes get a gradient of exactly 0 instead of rounding errors,
    whose signs a step would follow.
    """
    return w - w[:1]


def scale_weights(w: Any) -> Any:
    """W, or if differences of its elements or their lengths might overflow, w times a power of two."""
    largest = max(w.max(initial=0), -w.min(initial=0))
    excess = math.frexp(largest)[1] - (np.finfo(w.dtype).maxexp - FREE_EXPONENTS)
    return w if excess <= 0 else w * w.dtype.type(2.0**-excess)


class Others(NamedTuple):
    """The probabilities of the classes other than one of each row, in float64, which do not underflow together."""

    rows: Any  # and `chosen`: the places of the class of each row
    chosen: Any
    shares: Any  # given that the class is another one; 0 for the chosen one
    mass: Any  # of the other classes, a column

    @classmethod
    def of(cls, logits: Any, chosen: Any, num_threads: Any) -> Others:
        """Leave out the class `chosen` of each row; NaN where logits are not finite."""
        rows, logits = np.arange(len(logits)), logits.astype(np.float64)
        at_chosen = logits[rows, chosen][:, None]
        logits[rows, chosen] = at_chosen[:, 0] - at_chosen[:, 0] - math.inf  # NaN if it is not finite
        if logits.shape[1] < 2:
            return cls(rows, chosen, np.where(np.isnan(logits), logits, 0), np.zeros_like(at_chosen))
        shares = softmax(logits, num_threads=num_threads)
        rest = logsumexp(logits, num_threads=num_threads)[:, None]
        return cls(rows, chosen, shares, 1 / (1 + np.exp(at_chosen - rest)))

    def balance(self, u: Any) -> Any:
        """Rows u whose element of the chosen class is set so that their sum is 0, scaled to largest elements of 1."""
        u[self.rows, self.chosen] = 0
        u[self.rows, self.chosen] = -u.sum(axis=1)
        return scale_rows(u)


class LossGradient:
    """The gradient of the cross-entropy of checked rows by their perturbation, over the probability of an error.

    With the target's logit left out, softmax gives p_j / (1 - p_y), which does not underflow: the gradient of the
    logits, p - e_y, is 1 - p_y times that less e_y. Steps need only its direction. Its product with w - w[0] cancels
    where hardly any of the mass has weights that differ from those of the target: sums that may be no more than
    rounding errors are formed anew, from differences from w[target].
    """

    def __init__(self, x: Any, w: Any, bias: Any, labels: Any, num_threads: Any):
        self.w, self.num_threads = w, num_threads
        self.labels, self.scaled = labels, scale_weights(w)
        self.differences = find_differences(self.scaled)
        # sums of the absolute values of coefficients are 2
        unit = float(np.finfo(w.dtype).eps)
        self.noise = np.abs(self.differences).max(axis=0, initial=0) * w.dtype.type(2 * (len(w) + 4) * unit)
        self.fixed = multiply(x, w.T)  # logits without perturbation
        if bias is not None:
            self.fixed += bias
        self.logits, self.result = np.empty_like(self.fixed, order="C"), np.empty_like(x)
        self.flat = self.logits.reshape(-1)
        self.places = np.arange(len(x)) * len(w) + labels  # of the targets

    def __call__(self, delta: Any) -> Any:
        logits = multiply(delta, self.w.T, self.logits)
        logits += self.fixed
        of_label = self.flat[self.places]
        zero = of_label - of_label  # NaN for a logit that is not finite
        self.flat[self.places] = zero - math.inf
        if logits.shape[1] > 1:
            softmax(logits, out=logits, num_threads=self.num_threads)
        self.flat[self.places] = zero - 1
        g = multiply(logits, self.differences, self.result)
        rows, features = np.nonzero(np.abs(g) < self.noise)
        step = max(1, MAX_EXACT_ELEMENTS // len(self.w))
        for begin in range(0, len(rows), step):
            r, i = rows[begin : begin + step], features[begin : begin + step]
            change = self.scaled.take(i, axis=1) - self.scaled[self.labels[r], i]
            g[r, i] = np.einsum("ji,ij->i", change, logits[r])
        return g


class DivergenceGradient:
    """The gradient of KL(p(x) || p(x + delta)) of checked rows by their perturbation delta, times a positive number.

    Where it underflows, p(x) has almost all of its mass at one class t, and p' - p is p_j (e^u_j - 1) for the other
    classes, u_j the change of z_j - z_t.
    """

    def __init__(self, fixed: Any, w: Any, num_threads: Any):
        self.fixed, self.w, self.num_threads = fixed, w, num_threads
        self.differences = find_differences(w)

    def __call__(self, delta: Any) -> Any:
        change = multiply(delta, self.differences.T)
        grad = find_divergence(self.fixed, change, self.num_threads).grad_moved
        tiny = np.flatnonzero(np.abs(grad).max(axis=1, initial=0) < TINY)
        if len(tiny) and grad.shape[1] > 1:
            others = Others.of(self.fixed[tiny], self.fixed[tiny].argmax(axis=1), self.num_threads)
            u = change[tiny].astype(np.float64)
            u -= u[others.rows, others.chosen][:, None]
            grad[tiny] = others.balance(others.shares * np.expm1(np.minimum(u, LARGEST_RISE)))
        return multiply(scale_rows(grad).astype(self.w.dtype, copy=False), self.differences)


def climb(gradient: Callable[[Any], Any], delta: Any, ball: Ball, steps: int, step_size: float, threads: Any) -> Any:
    """Projected gradient ascent from delta, which is changed (Madry et al. 2018)."""
    dtype = dtype_code(delta.dtype)
    for _ in range(steps):
        g = gradient(delta)
        if ball.norm == math.inf:
            if g.dtype != delta.dtype:  # which may not hold g
                g = np.sign(g).astype(delta.dtype)
            binding.run_climb_step(dtype, delta, np.ascontiguousarray(g), ball.low, ball.high, step_size, threads)
            continue
        direction = find_directions(g, ball.norm)
        direction *= step_size
        delta += direction
        delta = ball.project(delta, threads)
    return delta


class Attack(NamedTuple):
    """The checked options of a perturbation."""

    method: str
    eps: float
    norm: float
    steps: int
    step_size: float
    random_start: bool
    rng: Any
    num_threads: Any

    def pace(self, dtype: Any, walls: Walls | None) -> tuple[int, float]:
        """Number and length of the steps of fgsm or pgd, where perturbations have this dtype."""
        steps, length = (1, self.eps) if self.method == "fgsm" else (self.steps, self.step_size)
        if self.norm == math.inf:  # perturbations that overflow are clipped
            return steps, length
        largest = float(np.finfo(dtype).max)
        is_limited = self.eps <= largest / 4 or (walls is not None and self.eps > largest)
        return steps, min(length, largest / 4) if is_limited else length

    def start(self, x: Any, ball: Ball) -> Any:
        """The first perturbation of gradient ascent."""
        if not self.random_start:
            return np.zeros(x.shape, x.dtype)  # in C order, as kernels and gradients have it, whatever x has
        start = (self.rng.uniform(-1, 1, x.shape) * self.eps).astype(x.dtype)
        return ball.project(start, self.num_threads)

    def follow(self, gradient: Callable[[Any], Any], x: Any, walls: Walls | None) -> Any:
        """The perturbation that fgsm or pgd finds."""
        ball = Ball.of(self.eps, self.norm, x, walls)
        return climb(gradient, self.start(x, ball), ball, *self.pace(x.dtype, walls), self.num_threads)


def check_step_size(step_size: Any, eps: float, steps: int) -> float:
    """The length of a step; by default 2.5 eps / steps."""
    if step_size is not None:
        return check_non_negative("step_size", step_size)
    length = 2.5 * eps / steps
    return length if length < math.inf else min(2.5 * (eps / steps), sys.float_info.max)


def check_steps(steps: Any) -> int:
    """The number of steps."""
    count = check_count("steps", steps, 1)
    if count > MAX_STEPS:
        raise ValueError(f"steps must be at most 2**63 - 1, got an integer of {count.bit_length()} bits")
    return count


def find_curvature_directions(fixed: Any, w: Any, iterations: int, rng: Any, num_threads: Any) -> Any:
    """The direction of unit length along which KL(p(x) || p(x + r)) curves most, for the logits of the rows.

    For a linear layer its Hessian is exactly H d = W' h, h = p * (W d) - p (p . W d). Power iteration needs no
    differences. With v = W d less its element at the most probable class, and of the other classes the mass r and the
    shares s, h / r = s (v - r s . v) for these, and the sum of h is 0: nothing cancels or underflows where r does.
    """
    if rng is not None:
        d = rng.standard_normal((len(fixed), w.shape[1])).astype(w.dtype)
    elif fixed.shape[1] < 2:
        d = np.zeros((len(fixed), w.shape[1]), w.dtype)
    else:
        best = np.argsort(-fixed, axis=1, kind="stable")[:, :2]
        d = w[best[:, 0]] - w[best[:, 1]]
    d, differences = find_directions(d, 2), find_differences(w)
    if fixed.shape[1] < 2:
        return np.zeros_like(d)
    others = Others.of(fixed, fixed.argmax(axis=1), num_threads)
    for _ in range(iterations):
        v = scale_rows(multiply(d, differences.T).astype(np.float64))
        v -= v[others.rows, others.chosen][:, None]
        v -= others.mass * np.einsum("ij,ij->i", others.shares, v)[:, None]
        v = others.balance(others.shares * v)
        d = find_directions(multiply(v.astype(w.dtype), differences), 2)
    certain = np.flatnonzero(others.mass[:, 0] < TINY)
    if len(certain):
        p = softmax(fixed[certain].astype(np.float64), num_threads=num_threads)
        d[certain[np.count_nonzero(p, axis=1) == 1]] = 0  # H = 0
    return d


def perturb_for_divergence(fixed: Any, w: Any, eps: float, iterations: int, rng: Any, num_threads: Any) -> Any:
    """Eps times the direction of most curvature, with the sign that has the larger divergence (Miyato et al. 2018)."""
    delta = find_curvature_directions(fixed, w, iterations, rng, num_threads)
    delta = project_on_ball(delta * w.dtype.type(eps), eps, 2)
    change = multiply(delta, find_differences(w).T)
    forth, back = (find_divergence(fixed, s * change, num_threads).value for s in (1, -1))
    return np.where((back > forth)[:, None], -delta, delta)


class ExactStep:
    """The smallest perturbations of checked rows that change the class, in the dtype of x."""

    def __init__(self, head: Head, labels: Any, attack: Attack, walls: Walls | None):
        self.head, self.labels, self.attack, self.walls = head, labels, attack, walls
        self.x, self.w, self.bias = head.in_double()
        self.radius, self.rival, self.margin = find_certificates(
            self.x, self.w, self.bias, labels, attack.norm, walls, attack.num_threads
        )

    def keeps_class(self, rows: Any, moved: Any) -> Any:
        """Whether rows that were moved still have their class, or may have it in the arithmetic of their dtype."""
        labels, threads = self.labels[rows], self.attack.num_threads
        margin = find_certificates(moved.astype(np.float64), self.w, self.bias, labels, math.inf, None, threads)[2]
        # logits in the compute type differ by this much with the order of their sums
        size = multiply(np.abs(moved).astype(np.float64), np.abs(self.w).T).max(axis=1)
        return ~(margin < -size * np.finfo(self.head.compute).eps * (8 + math.sqrt(moved.shape[1])))

    def find(self, rows: Any, budget: Any) -> Any:
        """Rows moved towards their rivals by the norm of a column of budgets."""
        x, y, rival = self.x[rows], self.labels[rows], self.rival[rows]
        slope = self.w[rival] - self.w[y]
        sign = np.sign(slope)
        room = np.full(x.shape, math.inf)
        walls = self.walls
        if walls is not None:
            walls = Walls(*(wall if len(wall) == 1 else wall[rows] for wall in walls))
            room = np.where(sign > 0, walls.high - x, x - walls.low)
        delta = sign * reach_furthest(np.abs(slope), room, budget, self.attack.norm)
        return apply_perturbation(self.head.x[rows], delta, walls, self.attack.eps)

    def run(self) -> Any:
        """The perturbed rows."""
        result, eps = self.head.x.copy(), self.attack.eps
        movable = (self.rival >= 0) & ~(self.margin < 0)
        rows = np.flatnonzero(movable)
        spacing = np.spacing(np.abs(self.head.x)).astype(np.float64)
        unit = np.maximum(self.radius, row_norms(spacing, self.attack.norm)[:, 0])
        stretch = 0.0
        while len(rows):
            budget = np.minimum(self.radius[rows] + stretch * unit[rows], eps)
            result[rows] = self.find(rows, budget[:, None])
            rows = rows[self.keeps_class(rows, result[rows]) & (budget < eps)]
            stretch = max(float(np.finfo(self.head.compute).eps), stretch * STRETCH)
        return result


def climb_in_cache(x: Any, layer: Any, labels: Any, attack: Attack, walls: Walls | None) -> Any:
    """The perturbations that fgsm or pgd finds for checked rows, by the kernel that takes blocks of rows through all
    steps; 0 for rows with logits that are not finite. Layer: w, `scale_weights` of it and the bias, contiguous."""
    start = attack.start(x, Ball.of(attack.eps, attack.norm, x, walls)) if attack.random_start else None
    x = np.ascontiguousarray(x)
    delta = np.empty_like(x)
    steps, length = attack.pace(x.dtype, walls)
    ball = attack.eps, binding.NORMS[attack.norm], length
    dtype = binding.DTYPES[x.dtype.name]
    binding.run_climb(dtype, x, layer, labels, walls, ball, steps, start, delta, attack.num_threads)
    return delta


def _perturb_by_head(head: Head, labels: Any, attack: Attack, walls: Walls | None) -> Any:
    x, w, bias = head.in_compute_type()
    result = np.empty_like(head.x)
    stays_in_cache = attack.method != "vat" and w.nbytes <= CACHED_BYTES and max(w.shape) <= CACHED_LENGTH
    elements = CACHED_CHUNK_ELEMENTS if stays_in_cache else CHUNK_ELEMENTS
    rows = CACHED_MIN_CHUNK_ROWS if stays_in_cache else MIN_CHUNK_ROWS
    step = rows * max(1, elements // max(1, x.shape[1]) // rows)
    if stays_in_cache:
        w = np.ascontiguousarray(w)
        layer = w, scale_weights(w), None if bias is None else np.ascontiguousarray(bias)
    for begin in range(0, len(x), step):
        part = slice(begin, min(begin + step, len(x)))
        near = None if walls is None else Walls(*(wall if len(wall) == 1 else wall[part] for wall in walls))
        if attack.method == "vat":
            fixed = multiply(x[part], w.T) if bias is None else multiply(x[part], w.T) + bias
            delta = perturb_for_divergence(fixed, w, attack.eps, attack.steps, attack.rng, attack.num_threads)
            usable = np.isfinite(fixed).all(axis=1)
        elif stays_in_cache:
            delta, usable = climb_in_cache(x[part], layer, labels[part], attack, near), None
        else:
            gradient = LossGradient(x[part], w, bias, labels[part], attack.num_threads)
            delta = attack.follow(gradient, x[part], near)
            usable = np.isfinite(gradient.fixed).all(axis=1)
        if usable is not None:
            delta[~usable] = 0
        if not np.isfinite(delta).all():
            raise ValueError(f"eps={attack.eps!r} is too large: logits of perturbed rows overflow {x.dtype}")
        result[part] = apply_perturbation(head.x[part], delta, near, attack.eps)
    return result


def _perturb_by_gradient(x: Any, gradient: Callable[[Any], Any], attack: Attack, bounds: Any, give: Any) -> Any:
    """The same for a model whose gradient at x' is gradient(x'), an array of the shape of x."""
    if np.ndim(x) == 0:
        as_array("x", x)  # names what is no array at all
        raise ValueError("x has shape (); allowed is (..., D)")
    head = plan_head("perturb", x, np.empty((0, np.shape(x)[-1]), np.asarray(x).dtype), None)
    shape = (*head.batch, head.x.shape[1])
    walls = check_bounds(bounds, head)
    features = head.x.astype(head.compute, copy=False)

    def at(delta: Any) -> Any:
        moved = apply_perturbation(head.x, delta, walls, attack.eps).reshape(shape)
        g = as_array("gradient(x)", as_native(gradient(give(moved)), "gradient(x)"))
        if g.dtype.kind not in "iuf" and not is_bfloat16(g.dtype):
            raise TypeError(f"gradient must return an array of real numbers, got dtype {g.dtype}")
        if g.shape != shape:
            raise ValueError(f"gradient must return an array of the shape of x, {shape}, got {g.shape}")
        # its own dtype may hold more than x's; a copy, because steps overwrite it
        wide = head.compute if is_bfloat16(g.dtype) else np.result_type(g.dtype, head.compute)
        return g.reshape(head.x.shape).astype(wide)

    delta = attack.follow(at, features, walls)
    return apply_perturbation(head.x, delta, walls, attack.eps).reshape(shape)


# Overflow and NaN are results here, as in the kernels, and should not raise NumPy's warnings.
@accept_foreign
@keep_labels()
@np.errstate(all="ignore")
def _perturb(x: Any, w: Any, target: Any, *, bias: Any, bounds: Any, gradient: Any, attack: Any, give: Any) -> Any:
    if place_of(None, x).on_cuda:
        check_kernels("perturb")
    if gradient is not None:
        return _perturb_by_gradient(x, gradient, attack, bounds, give)
    head = plan_head("perturb", x, w, bias)
    walls = check_bounds(bounds, head)
    if attack.method == "vat" and not len(head.w):
        raise ValueError("w must have at least one row: there is no distribution over no class")
    labels = None if attack.method == "vat" else check_labels_of(target, head)
    if attack.eps == 0:
        moved = head.x.copy()
    elif attack.method == "exact":
        moved = ExactStep(head, labels, attack, walls).run()
    else:
        moved = _perturb_by_head(head, labels, attack, walls)
    return moved.reshape(*head.batch, head.x.shape[1])


@hand_over_recorded
def perturb(
    x: ArrayLike,
    w: ArrayLike | None,
    target: ArrayLike | None,
    *,
    bias: ArrayLike | None = None,
    eps: float,
    norm: float | None = None,
    method: Literal["fgsm", "pgd", "exact", "vat"] = "pgd",
    steps: SupportsIndex = 40,
    step_size: float | None = None,
    random_start: bool = False,
    bounds: tuple[Any, Any] | None = None,
    gradient: Callable[[Any], Any] | None = None,
    rng: Any = None,
    num_threads: SupportsIndex | None = None,
) -> Any:
    """Perturb features within a ball so that a linear layer, or another model, errs.

    Parameters
    ----------
    x : array_like of shape (..., D)
        Features, in one of the dtypes of `csoftmax.softmax`.
    w : array_like of shape (K, D) and the dtype of x
        One row for each class, for the logits ``x @ w.T + bias``. Not read with `gradient`: None will do.
    target : array_like of integers of shape (...)
        The right classes. Not read by "vat" and with `gradient`: None will do.
    bias : array_like of shape (K,), optional
        Added to the logits. Not read with `gradient`.
    eps : float
        Largest norm of a perturbation, at least 0.
    norm : {1, 2, numpy.inf}, optional
        Norm of the perturbations. Default inf, for "vat" 2, which has no other.
    method : {"fgsm", "pgd", "exact", "vat"}, default "pgd"
        "fgsm": one step of length eps up the cross-entropy (Goodfellow et al. 2015). "pgd": several steps, each
        followed by a projection (Madry et al. 2018). "exact": the smallest perturbation that changes the class, towards
        the nearest rival of `certify`. "vat": along the direction in which the predicted distribution changes most
        (Miyato et al. 2018).
    steps : int, default 40
        Number of steps of "pgd", and of power iterations of "vat".
    step_size : float, optional
        Length of a step of "pgd". Default ``2.5 * eps / steps``.
    random_start : bool, default False
        Start "pgd" from a perturbation that is drawn uniformly from [-eps, eps] and projected.
    bounds : pair (low, high), optional
        Limits of the perturbed features, as in `certify`. x must lie within.
    gradient : callable, optional
        Another model for "fgsm" and "pgd": called with perturbed features of the kind, shape and dtype of x (arrays for
        tables), it returns the gradient of the loss by them. It takes the place of the layer and of the target.
    rng : int, numpy.random.Generator, RandomState or SeedSequence, optional
        Source of the random start, and of the first direction of "vat", which without one is the difference of the
        weights of the two most probable classes. Default: fresh entropy for the random start.
    num_threads : int, optional
        Maximum number of threads of the kernels. "fgsm" and "pgd" have the same bits for any number, and in any batch,
        if w has at most 4096 rows and columns and takes at most 1 MiB in the compute type (float32 for 16-bit types,
        float64 for integers); other products are those of the BLAS.

    Returns
    -------
    ndarray of shape (..., D)
        The perturbed features, in the dtype of x (float64 for integers). Rows with logits that are not finite stay as
        they are; so do, with "vat", rows of which all probabilities but one are 0 in float64.

    Raises
    ------
    IndexError, TypeError, ValueError, DeviceError, MemoryError
        The message names the argument, its value and what is allowed.

    Notes
    -----
    Steps follow the sign of the gradient (inf-norm), its direction (2-norm), or its largest coordinate, of equal ones
    the first (1-norm). Where the gradient is 0 a row stays. Every row takes all steps. Gradients are divided by the
    probability of the other classes, which cancels in their directions: they do not vanish for rows that are certain of
    their class, however large the margin is. They are sums of probabilities times differences from the weights of the
    target, so that features of which only rare classes make use move by the right sign too. An eps for which features
    or logits would overflow is a ValueError; a step_size may be as large as it likes.

    "exact" goes a little further than the radius of `certify`, until the class changes in exact arithmetic and in the
    type that losses compute in, but not further than eps. For 16-bit features that type is float32: logits that another
    library computes in 16 bits have larger rounding errors, and may still be those of the old class. A row whose rival
    is further away moves towards it by eps, and a row that is misclassified already, or has no rival within the bounds,
    stays. Perturbations are rounded with x', so that ``norm(x' - x)`` may exceed eps by the rounding of x'.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.adversarial import perturb
    >>> w = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    >>> x = np.array([[3.0, 1.0], [0.0, 2.0]])
    >>> perturb(x, w, [0, 1], eps=0.5)
    array([[2.5, 1.5],
           [0.5, 1.5]])
    >>> moved = perturb(x, w, [0, 1], eps=2.0, norm=2, method="exact")
    >>> (moved @ w.T).argmax(axis=1), np.linalg.norm(moved - x, axis=1).round(4)
    (array([1, 0]), array([1.4142, 1.4142]))
    >>> perturb(x, None, None, eps=0.5, method="fgsm", gradient=lambda features: -features)
    array([[2.5, 0.5],
           [0. , 1.5]])
    """
    check_choice("method", method, METHODS)
    eps = check_non_negative("eps", eps)
    if method == "vat":
        norm = check_norm(2.0 if norm is None else norm, (2.0,))
    else:
        norm = check_norm(math.inf if norm is None else norm, (1.0, 2.0, math.inf))
    steps = check_steps(steps)
    is_random = check_flag("random_start", random_start)
    if gradient is not None and not callable(gradient):
        raise TypeError(f"gradient must be callable or None, got {type(gradient).__name__}")
    if gradient is not None and method not in ("fgsm", "pgd"):
        raise ValueError(f'gradient is for method "fgsm" or "pgd", got method={method!r}')
    if is_random and method != "pgd":
        raise ValueError(f'random_start is for method "pgd", got method={method!r}')
    generator = None if rng is None and not is_random else as_generator(rng, or_random_state=True)
    length = check_step_size(step_size, eps, steps)
    attack = Attack(method, eps, norm, steps, length, is_random, generator, check_num_threads(num_threads))
    give = (lambda a: give_like(x, a)) if is_foreign(x) else (lambda a: a)
    return _perturb(x, w, target, bias=bias, bounds=bounds, gradient=gradient, attack=attack, give=give)
