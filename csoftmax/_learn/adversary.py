"""What training of softmax regression against perturbations adds to a minibatch, or to the objective.

"fgsm", "pgd": the rows are perturbed before a step.  "certified": the logits are shifted to an upper bound.  "trades",
"vat": beta times a divergence between the predictions for the rows and for perturbed ones is added to the loss.
The temperature divides coefficients and intercept, so that perturbations are those of the probabilities.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._ops.adversarial_losses import TradesTerms, VatTerms
from .._ops.adversarial_perturb import check_step_size, perturb
from .._ops.adversarial_shift import RobustShift
from .messages import show
from .objective import Options, is_sparse

KINDS = ("certified", "fgsm", "pgd", "trades", "vat")
STEPS = 10  # of pgd and trades
CORNER_ITERATIONS, CORNER_SHARE = 20, 5e-4  # share of the objective, for the default tol
DEFAULT_TOL = 1e-8
SMOOTHINGS = (1.0, 0.1, 0.01, 0.001)  # in the size of the coefficients of the loss without perturbations
SCALE_ITERATIONS = 10  # that find it


def check_adversarial(estimator: Any) -> None:
    """Refuse what does not go with training against perturbations; its numbers have been checked."""
    kind = estimator.adversarial
    if kind is None:
        return
    norm = estimator.adversarial_norm
    if kind not in ("certified", "vat") and norm not in (1, 2, math.inf):
        raise ValueError(f"adversarial_norm must be 1, 2 or numpy.inf with adversarial={kind!r}, got {show(norm)}")
    if estimator.solver == "lbfgs" and kind != "certified":
        raise ValueError(f"adversarial={kind!r} needs solver='adamw', got solver='lbfgs'")
    if estimator.batch_norm:
        raise ValueError(f"adversarial={kind!r} needs batch_norm=False: perturbed rows would have other statistics")
    if isinstance(estimator.penalty_l2, str):
        raise ValueError(
            f"penalty_l2={estimator.penalty_l2!r} chooses by rows as they are: pass a number with adversarial={kind!r}"
        )
    if isinstance(estimator.device, str) and estimator.device != "cpu":
        raise ValueError(f"adversarial={kind!r} computes on the CPU, got device={estimator.device!r}")


class Bound:
    """The upper bound of the loss over all perturbations of norm at most eps, as a shift of the logits."""

    def __init__(self, eps: float, norm: float, num_threads: Any = None, smoothing: float = 0.0):
        self.eps, self.norm, self.num_threads, self.smoothing = eps, norm, num_threads, smoothing

    def smoothed(self, smoothing: float) -> Bound:
        """The bound with norms that have no corner at 0."""
        return Bound(self.eps, self.norm, self.num_threads, smoothing)

    def shift(self, coef: Any, y: NDArray[np.intp], groups: Any = None) -> RobustShift:
        """The shift for coefficients and class indices; groups as in `RobustShift`."""
        return RobustShift(coef, y, self.eps, self.norm, self.num_threads, groups, self.smoothing)


class CornerSearch:
    """The rounds of L-BFGS on a bound, which has corners where gradients do not tend to 0, and their end.

    Coefficients that are all 0 are the corner of all classes: the rounds begin with parts of eps. A corner may also end
    a line search away from the minimum, where a new round, without the pairs of vectors of the last one, goes on.
    """

    def __init__(self, bound: Bound | None, tol: float | None):
        self.bound = bound
        self.share = CORNER_SHARE * min(1.0, (tol or DEFAULT_TOL) / DEFAULT_TOL)
        self.losses: list[float] = []
        self.is_found = False  # the last round has lowered the objective by little
        self.equal_loss = math.inf  # of classes with equal coefficients

    def ends_round(self, loss: float) -> bool:
        """Whether the objective has fallen by little over the last iterations."""
        self.losses.append(loss)
        if self.bound is None or len(self.losses) <= CORNER_ITERATIONS:
            return False
        return self.losses[-1 - CORNER_ITERATIONS] - loss <= self.share * abs(loss)

    def minimize(
        self, solver: Any, objective: Any, start: Any, max_iterations: int, after_iteration: Any, is_stopped: Any
    ) -> Any:
        """The end of solver(coef, intercept, max_iterations=, after_iteration=), from a start that lasts.

        The rounds are repeated until one lowers the objective by little.
        """
        run = functools.partial(solver, after_iteration=after_iteration)
        bound, count = self.bound, 0
        if bound is None:
            return run(*start, max_iterations=max_iterations)
        if not np.any(start[0]):
            self.equal_loss = objective.evaluate(*start, gradient=False).loss
            try:
                objective.bound = None
                end = solver(*start, max_iterations=SCALE_ITERATIONS)
                scale = math.sqrt(float(np.mean(end.step.coef**2)))
                for share in SMOOTHINGS if scale > 0 and max_iterations > len(SMOOTHINGS) else ():
                    objective.bound, self.losses = bound.smoothed(share * scale), []
                    end = run(*start, max_iterations=max_iterations // (len(SMOOTHINGS) + 1))
                    start, count = (end.step.coef, end.step.intercept), count + end.iterations
                    if is_stopped():
                        return end._replace(iterations=count)
            finally:
                objective.bound = bound
        before = math.inf
        while True:
            self.losses = []
            end = run(*start, max_iterations=max_iterations - count)
            start, count = (end.step.coef, end.step.intercept), count + end.iterations
            self.is_found = before - end.step.loss <= self.share * abs(end.step.loss)
            if self.is_found or end.converged or count >= max_iterations or is_stopped():
                return end._replace(iterations=count)
            before = end.step.loss


class Extra:
    """Terms added to the loss and to the gradients of a minibatch; here nothing."""

    loss = 0.0

    def add_to(self, gradients: dict[str, Any], grad: Any) -> None:
        """Add to the gradients; grad: that of the logits, to which nothing is added here."""

    def change(self, grad: Any) -> None:
        """Add to the gradient of the logits."""


class ShiftExtra(Extra):
    """The gradient of a shift of the logits."""

    def __init__(self, shift: RobustShift):
        self.shift = shift

    def add_to(self, gradients: dict[str, Any], grad: Any) -> None:
        """Add the part of the norms."""
        self.shift.take(grad, slice(0, len(grad)))
        self.shift.finish(gradients["coef"])


class TermsExtra(Extra):
    """A divergence from the predictions for perturbed rows."""

    def __init__(self, terms: Any, x: Any, temperature: float, scale: Any):
        self.loss = float(terms.loss @ scale)
        self.x, self.terms, self.temperature = x, terms, temperature

    def change(self, grad: Any) -> None:
        """Add the gradient of the logits of the rows as they are."""
        if self.terms.grad is not None:
            grad += self.terms.grad / self.temperature

    def add_to(self, gradients: dict[str, Any], grad: Any) -> None:
        """Add the gradients by way of the perturbed rows."""
        moved = self.terms.grad_moved / self.temperature
        gradients["coef"] += moved.T @ (self.x + self.terms.delta)
        if "intercept" in gradients:
            gradients["intercept"] += moved.sum(axis=0)


class Adversary:
    """The adversary of a training with AdamW."""

    def __init__(self, kind: str, eps: float, norm: float, beta: float, rng: Any, num_threads: Any):
        self.kind, self.eps, self.norm, self.beta = kind, eps, norm, beta
        self.rng, self.num_threads = rng, num_threads

    def move(self, x: Any, y: NDArray[np.intp], coef: Any, intercept: Any, temperature: float) -> Any:
        """The rows that a step sees: perturbed ones for fgsm and pgd; dense ones where they are perturbed later."""
        if self.kind == "certified":
            return x
        x = x.toarray() if is_sparse(x) else x
        if self.kind not in ("fgsm", "pgd"):
            return x
        bias = None if intercept is None else intercept / temperature
        w = (coef / temperature).astype(x.dtype, copy=False)
        options: Any = {"method": self.kind, "steps": STEPS, "eps": self.eps, "norm": self.norm}
        options |= {"bias": bias, "num_threads": self.num_threads}
        return perturb(x, w, y, **options)

    def prepare(self, x: Any, y: NDArray[np.intp], logits: Any, coef: Any, options: Options, scale: Any) -> Extra:
        """The extra of a minibatch, whose logits a bound shifts; scale: the factors of the rows in the mean."""
        if self.kind == "certified":
            shift = Bound(self.eps, self.norm, self.num_threads).shift(coef, y)
            shift.add_to(logits, slice(0, len(logits)))
            return ShiftExtra(shift)
        if self.kind in ("fgsm", "pgd"):
            return Extra()
        t = options.temperature
        w = (coef / t).astype(x.dtype, copy=False)
        rows, column = slice(0, len(x)), scale[:, None]
        if self.kind == "vat":
            found = VatTerms(self.eps, 1, None, self.num_threads).evaluate(x, logits / t, w, rows, self.beta * column)
            return TermsExtra(found._replace(loss=self.beta * found.loss), x, t, scale)
        climbing = STEPS, check_step_size(None, self.eps, STEPS), self.rng, self.num_threads
        terms = TradesTerms(None, (self.eps, self.norm), None, self.beta, climbing)
        return TermsExtra(terms.evaluate(x, logits / t, w, rows, column), x, t, scale)


def make_adversary(estimator: Any, seed: int | None) -> Adversary | None:
    """The adversary of the parameters, or None; seed: of the starts of trades."""
    kind = estimator.adversarial
    if kind is None or (kind != "trades" and estimator.adversarial_eps == 0):
        return None
    return Adversary(
        kind,
        float(estimator.adversarial_eps),
        float(estimator.adversarial_norm),
        float(estimator.adversarial_beta),
        np.random.RandomState(seed),
        estimator.num_threads,
    )


def make_bound(estimator: Any) -> Bound | None:
    """The bound of the objective, or None."""
    if estimator.adversarial != "certified" or estimator.adversarial_eps == 0:
        return None
    return Bound(float(estimator.adversarial_eps), float(estimator.adversarial_norm), 1)
