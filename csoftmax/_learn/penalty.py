"""The penalty of softmax regression: its default, and its choice from the data.

Default (`penalty_l2=None`).  scikit-learn minimises C * sum of the weighted losses + |coef|^2 / 2; divided by C W, with
W the sum of the weights, this is the mean loss with the penalty 1 / (C W).  For two classes scikit-learn has one row of
coefficients, v.  The minimum of two rows is -v/2 and v/2, whose squares add up to |v|^2 / 2, so the factor doubles.

Choice (`penalty_l2="auto"`).  The penalty with the lowest total, the approximate leave-one-out log loss
(`leave_one_out`) of all rows plus the prior below, along a path of penalties from large to small, each ten times
smaller than the one before; if the total rises at once, the path turns to larger penalties.  Each minimum starts from
the one before.  The path ends when the total rises, and parabolas through the best three totals give the last
penalties.

The loss of N rows is uncertain by several nats, and often flat over a decade.  A Cauchy prior decides where the rows do
not: N * score + log(1 + (e / 0.5)^2) is minimised.  e is the distance, in decades, from the usual penalty: C = 1, times
the variance of the features (its geometric mean, so that their unit does not matter).  Far away the prior grows by less
than 2 nats a decade, so it does not bar the way to the tiny penalties of separable rows.

Problems that are too large for that (`MAX_PARAMETERS` and the limits below it) are scored on held-out rows: every
fifth of the rows in turn, or with at least `ONE_FOLD_ROWS` rows only one fifth.
"""

from __future__ import annotations

import math
import mmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.places import Place
from . import lbfgs
from .leave_one_out import Array, Design, Map, Path, Targets, compute_usual_variance, make_targets
from .objective import Objective, Options, compute_logits
from .parameters import AUTO, Notes

WEIGHT_DECAY = 1e-4  # of adamw, by default
MAX_PARAMETERS = 2000  # of the dense Hessian
MAX_MULTIPLICATIONS = 2e10  # for one Hessian
MAX_COVARIANCES = 2e7  # elements of the covariances of the logits of all rows, of which three copies exist
MAX_FACTORS = 1e8  # elements of the factors of the Hessian, of which a quarter exists in each thread
FIRST_DECADES, LAST_DECADES = -2, 6  # below the usual penalty: the path's first one, and the last one
PRIOR_DECADES = 0.5  # scale of the Cauchy prior
REFINEMENTS = 2  # penalties from a parabola, at most
GAIN = 1e-3  # nats that a further penalty must promise
FOLDS, ONE_FOLD_ROWS = 5, 2000
HELD_OUT_DECREMENT, HELD_OUT_ITERATIONS = 1e-4, 500  # of the minima of the path if rows are held out
HELD_OUT_TOL = 1e-9  # not a limit: the decrement is


class Problem(NamedTuple):
    """Everything that a fit knows except the rows."""

    classes: int
    options: Options
    start: tuple[Array, Array | None]  # coefficients and intercepts; those of frozen classes stay
    frozen: NDArray[np.bool_] | None
    num_threads: int | None
    place: Place
    map_parts: Map  # calls a function for each item of a list, on threads


# Least share of a row's weight that its own influence must leave, from the usual penalty on.  Ordinary rows keep
# almost all of it; a row below is alone in some direction, such as a pixel that no other row has: the approximation,
# one Newton step, says nothing about it, and the score leaves it out.  If such rows have most of the weight, rows are
# held out instead.
DOMINATED = 0.01
MOST = 0.5


class Choice(NamedTuple):
    """A penalty, and where the fit with it can start."""

    penalty: float
    start: tuple[Array, Array | None]
    notes: Notes


def compute_default_penalty(weight: float, classes: int) -> float:
    """Return scikit-learn's default penalty, C = 1, for the sum of the weights of the rows."""
    return (2 if classes == 2 else 1) / weight


def settle(
    given: float | str | None,
    x: Any,
    y: NDArray[np.intp],
    sample_weight: Array | None,
    problem: Problem,
    weight: float,
) -> Choice:
    """Settle the penalty of a fit with L-BFGS from the parameter; weight: sum of the weights of the rows."""
    if given is None:
        return Choice(compute_default_penalty(weight, problem.classes), problem.start, [])
    if isinstance(given, str):
        return choose(x, y, sample_weight, problem, weight)
    return Choice(float(given), problem.start, [])


def settle_decay(given: float | None) -> float:
    """Settle the weight decay of AdamW from the parameter."""
    return WEIGHT_DECAY if given is None else float(given)


def check_in_memory(given: float | str | None, x: Any) -> None:
    """Refuse a memory map if its rows would have to be in memory."""
    if not isinstance(given, str):
        return
    while x is not None:
        if isinstance(x, mmap.mmap | np.memmap):
            raise ValueError(
                f"penalty_l2={AUTO!r} needs X in memory, got a memory map; pass np.array(X), or a number or None as "
                "penalty_l2"
            )
        x = getattr(x, "base", None)


def check_decay(given: float | str | None, method: str) -> None:
    """Refuse to choose the penalty where not all rows are there at once."""
    if isinstance(given, str):
        raise ValueError(
            f"penalty_l2={AUTO!r} needs all of the data at once, which {method} does not have; use fit, or pass a "
            "number or None"
        )


def choose(x: Any, y: NDArray[np.intp], sample_weight: Array | None, problem: Problem, weight: float) -> Choice:
    """Choose the penalty from the data; weight: sum of the weights of the rows."""
    targets = make_targets(y, sample_weight, problem.options, problem.classes, problem.frozen)
    if targets.variable == 0 or not targets.score.any():
        text = (
            f"penalty_l2={AUTO!r} needs at least two rows of a class and a class that is not frozen; the default "
            "penalty is used"
        )
        return Choice(compute_default_penalty(weight, problem.classes), problem.start, [(text, UserWarning)])
    columns = min(x.shape) + (problem.start[1] is not None)
    parameters, rows = targets.variable * columns, float(x.shape[0])
    is_small = (
        parameters <= MAX_PARAMETERS
        and rows * parameters**2 <= MAX_MULTIPLICATIONS
        and rows * targets.variable**2 <= MAX_COVARIANCES
        and rows * parameters <= MAX_FACTORS
    )
    left_out = LeftOut(x, targets, problem) if is_small else None
    choice = search(left_out, weight) if left_out else None
    if choice is None or (left_out and not left_out.has_enough()):
        choice = search(HeldOut(x, y, sample_weight, targets, problem), weight)
    if not math.isfinite(choice.penalty):
        raise ValueError(
            f"penalty_l2={AUTO!r} needs squares of X that do not overflow, got values up to {float(abs(x).max()):.3g}; "
            "scale the data"
        )
    return choice


def compute_usual_alpha(problem: Problem, rows: float, variance: float) -> float:
    """Return alpha for C = 1 and features of unit variance, in the unit of the features and of the temperature."""
    return compute_default_penalty(rows, problem.classes) * variance / problem.options.temperature**2


class Visit(NamedTuple):
    """A penalty of the path."""

    losses: Any  # of the scorer
    minimum: Any  # of the scorer


class Trail:
    """Penalties that were tried, as decades below the usual alpha."""

    def __init__(self, scorer: LeftOut | HeldOut):
        """Begin with none."""
        self.scorer, self.tried = scorer, dict[float, Visit]()

    def visit(self, decades: float) -> None:
        """Try a penalty."""
        try:
            losses = self.scorer.compute_losses(self.scorer.usual * 10**-decades)
        except np.linalg.LinAlgError:
            losses = None
        self.tried[decades] = Visit(losses, self.scorer.minimum())

    def score(self, decades: float) -> float:
        """Score of a penalty; a later visit can change it, because it can show that a row does not count."""
        losses = self.tried[decades].losses
        score = math.inf if losses is None else self.scorer.average(losses)
        return score if math.isfinite(score) else math.inf

    def total(self, decades: float) -> float:
        """Score of all rows, and prior."""
        return self.scorer.rows * self.score(decades) + math.log1p((decades / PRIOR_DECADES) ** 2)

    def walk(self, step: int) -> int:
        """Go from the first penalty on while the total falls; return the number of steps."""
        decades, taken = FIRST_DECADES, 0
        while taken == 0 or self.total(decades) < self.total(decades - step):
            if abs(decades + step) > LAST_DECADES:
                break
            decades, taken = decades + step, taken + 1
            self.visit(decades)
        return taken

    def best(self) -> float:
        """The penalty with the lowest total."""
        return min(self.tried, key=self.total)


def follow_path(scorer: LeftOut | HeldOut) -> Trail:
    """Follow the path from large penalties to small ones, or to larger ones if the total rises at once, then refine."""
    trail = Trail(scorer)
    trail.visit(FIRST_DECADES)
    if trail.walk(1) == 1:  # the first penalty is better than the second
        trail.walk(-1)
    for _ in range(REFINEMENTS):
        vertex = find_vertex({decades: trail.total(decades) for decades in trail.tried})
        if vertex is None:
            break
        trail.visit(vertex)
    return trail


def search(scorer: LeftOut | HeldOut, weight: float) -> Choice:
    """Choose the penalty with the lowest total; weight: sum of the weights of the rows."""
    trail = follow_path(scorer)
    best = trail.best()
    return Choice(scorer.penalty(scorer.usual * 10**-best, weight), scorer.start(trail.tried[best].minimum), [])


def count_rows(weight: Array) -> float:
    """Return the effective number of rows with these weights (Kish 1965), whatever their unit."""
    weight = weight / weight.max()
    return float(weight.sum() ** 2 / (weight @ weight))


def find_vertex(totals: dict[float, float]) -> float | None:
    """Where the parabola through the lowest total and its neighbours is lowest; None if it is not lower by `GAIN`."""
    positions = sorted(totals)
    i = min(range(len(positions)), key=lambda j: totals[positions[j]])
    if i in (0, len(positions) - 1):
        return None
    a, b, c = positions[i - 1 : i + 2]
    left, right = (totals[b] - totals[a]) / (b - a), (totals[c] - totals[b]) / (c - b)  # at most 0, at least 0
    if not math.isfinite(left):
        return (b + c) / 2
    if not math.isfinite(right):
        return (a + b) / 2
    if left == right:
        return None
    vertex = (a + b) / 2 - left * (c - a) / (2 * (right - left))
    gain = -(left + (right - left) / (c - a) * (vertex - a)) * (vertex - b)
    return vertex if gain > GAIN else None


class LeftOut:
    """Scores by leaving out each row, approximately."""

    def __init__(self, x: Any, targets: Targets, problem: Problem):
        """Prepare the rows."""
        self.problem = problem
        has_intercept = problem.start[1] is not None
        fixed = targets.classes[targets.variable :]
        fixed_logits = np.zeros((x.shape[0], len(fixed)))
        if not targets.is_gauged:
            coef, intercept = problem.start
            fixed_logits[:] = compute_logits(
                x, coef[fixed].astype(x.dtype), intercept[fixed].astype(x.dtype) if intercept is not None else None
            )
        self.design = Design(x, targets.mass, has_intercept)
        self.path = Path(self.design, targets, problem.options.temperature, fixed_logits, problem.map_parts)
        self.mass, self.rows = float(targets.mass.sum()), count_rows(targets.score)
        self.usual = compute_usual_alpha(problem, self.rows, self.design.variance)
        self.score_weight = targets.score.copy()

    def compute_losses(self, alpha: float) -> Array:
        """Approximate leave-one-out loss of each row."""
        losses = self.path.compute_losses(alpha)
        if alpha >= self.usual:
            self.score_weight[self.path.freedom < DOMINATED] = 0
        return losses

    def average(self, losses: Array) -> float:
        """Weighted mean over the rows that are not dominated."""
        scored = self.score_weight > 0
        weight = self.score_weight[scored]
        return float(weight @ losses[scored] / weight.sum()) if len(weight) else math.inf

    def has_enough(self) -> bool:
        """Whether the rows that are not dominated have most of the weight."""
        return float(self.score_weight.sum()) > MOST * float(self.path.targets.score.sum())

    def minimum(self) -> Array:
        """Variables of the last score."""
        return self.path.variables

    def start(self, variables: Array) -> tuple[Array, Array | None]:
        """Coefficients and intercepts of a minimum."""
        targets = self.path.targets
        moved = targets.classes[: targets.variable + targets.is_gauged]

        def fill(start: Array, new: Array) -> Array:
            result = start.copy()
            if targets.is_gauged:  # the last class is the origin; the sum of squares is least where the mean is 0
                new = np.concatenate([new, np.zeros((1, *new.shape[1:]))])
                new -= new.mean(axis=0)
            result[moved] = new
            return result

        (coef, intercept), (new_coef, new_intercept) = self.problem.start, self.design.parameters(variables)
        if intercept is None or new_intercept is None:
            return fill(coef, new_coef), None
        return fill(coef, new_coef), fill(intercept, new_intercept)

    def penalty(self, alpha: float, weight: float) -> float:
        """Penalty of the mean loss, from the alpha of scaled features and of weights that add up to 1."""
        return alpha * self.design.scale * self.design.scale * (self.mass / weight)


class HeldOut:
    """Scores on held-out rows, for problems whose Hessian is too large."""

    def __init__(self, x: Any, y: NDArray[np.intp], sample_weight: Array | None, targets: Targets, problem: Problem):
        """Divide the rows into folds, each class evenly."""
        self.problem, self.mass = problem, float(targets.mass.sum())
        order = np.random.default_rng(0).permutation(len(y))  # the same in every fit
        order = order[np.argsort(y[order], kind="stable")]
        fold = np.empty(len(y), np.intp)
        fold[order] = np.arange(len(y)) % FOLDS
        self.parts = []
        for f in range(1 if len(y) >= ONE_FOLD_ROWS else FOLDS):
            train = np.flatnonzero(fold != f)
            # a class without rows for training has an infinite loss, whatever the penalty
            test = np.flatnonzero((fold == f) & np.isin(y, y[train]))
            objectives = []
            for rows, smoothing in ((train, problem.options.label_smoothing), (test, 0.0)):
                weight = None if sample_weight is None else sample_weight[rows]
                options = problem.options._replace(label_smoothing=smoothing)
                objectives.append(
                    Objective(x[rows], y[rows], weight, problem.classes, options, problem.num_threads, problem.place)
                )
            self.parts.append(objectives)
        moments = [train.moments()[1] for train, _ in self.parts]
        self.rows = count_rows(targets.score)
        self.usual = compute_usual_alpha(problem, self.rows, compute_usual_variance(moments[0] ** 2, moments[0] ** 2))
        self.rows *= len(self.parts) / FOLDS
        self.starts = [problem.start] * len(self.parts)

    def compute_losses(self, alpha: float) -> float:
        """Mean loss of the held-out rows."""
        total = weight = 0.0
        problem = self.problem
        for f, (train, test) in enumerate(self.parts):
            if test.divisor == 0 or train.divisor == 0:
                continue
            with train.use_threads():
                step = lbfgs.minimize(
                    train,
                    *self.starts[f],
                    penalty=self.penalty(alpha, train.divisor),
                    tol=HELD_OUT_TOL,
                    max_iterations=HELD_OUT_ITERATIONS,
                    frozen=problem.frozen,
                    after_iteration=lambda step: step.decrement <= HELD_OUT_DECREMENT * step.loss,
                ).step
            self.starts[f] = step.coef, step.intercept
            dtype = test.x.dtype
            intercept = None if step.intercept is None else step.intercept.astype(dtype)
            total += test.evaluate(step.coef.astype(dtype), intercept, gradient=False).loss * test.divisor
            weight += test.divisor
        return total / weight if weight else math.nan

    def average(self, losses: float) -> float:
        """Return the mean itself."""
        return losses

    def minimum(self) -> tuple[Array, Array | None]:
        """Coefficients and intercepts of the last score, from the first fold."""
        return self.starts[0]

    def start(self, minimum: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        """Return the minimum itself."""
        return minimum

    def penalty(self, alpha: float, weight: float) -> float:
        """Penalty of the mean loss of rows with this sum of weights, from the alpha of weights that add up to 1."""
        return alpha * self.mass / weight
