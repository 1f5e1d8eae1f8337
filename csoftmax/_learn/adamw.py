"""Minibatch AdamW (Loshchilov & Hutter 2019) for softmax regression, with optional batch norm of the logits.

Batch norm (Ioffe & Szegedy 2015) stands between the linear layer and softmax.  For s = coef x, with mean and std over
the minibatch,

    z = gain (s - mean) / std + shift.

A row counts in mean and std with its sample weight, so that a row of weight 2 has the effect of two rows.  After
training, batch norm is folded into coef and intercept, with statistics over all rows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.places import Place, place_of
from .._ops.cross_entropy import cross_entropy_with_grad
from .adversary import Adversary, Extra
from .divergence import SoundSteps
from .objective import Options, compute_logits, multiply_by_rows, runs_at_place, to_host

BETAS, EPSILON = (0.9, 0.999), 1e-8
VARIANCE_FLOOR = 1e-5  # added to the variance in batch norm
MOMENTUM = 0.1  # of the running statistics

Statistics = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Mean and variance of coef x over some rows, an element for each class."""


class Hyper(NamedTuple):
    """Hyperparameters of a step."""

    learning_rate: float
    output_learning_rate: float  # of intercept, gain and shift
    penalty: float
    clip_norm: float | None
    clip_value: float | None


class Progress(NamedTuple):
    """Loss, hits and gradient of one minibatch."""

    loss: float  # weighted mean, without penalty
    divisor: float  # of that mean
    right: float  # weight of the correctly classified rows
    weight: float  # of all rows
    gradient_norm: float


def _as_float(a: Any) -> float:
    """A number of NumPy, the most frequent kind, or an array of a device without axes, as a float."""
    return float(a) if isinstance(a, np.generic) else float(to_host(a))


def compute_norm(gradients: dict[str, Any]) -> float:
    """Euclidean norm of the concatenated gradients."""
    total = 0.0
    for g in gradients.values():
        total += _as_float(np.vdot(g, g))
    return math.sqrt(total)


class Sums:
    """Sums over the minibatches of an epoch."""

    def __init__(self) -> None:
        """Start at zero."""
        self.batches, self.loss, self.divisor, self.right, self.weight, self.norm = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        self.first_loss: float | None = None  # of the first minibatch with weight: at the parameters before the epoch

    def add(self, progress: Progress) -> None:
        """Add a minibatch."""
        if self.first_loss is None and progress.divisor > 0:
            self.first_loss = progress.loss
        self.batches += 1
        self.loss += progress.loss * progress.divisor
        self.divisor += progress.divisor
        self.right += progress.right
        self.weight += progress.weight
        self.norm += progress.gradient_norm

    def means(self) -> dict[str, float]:
        """Means over the epoch, under the names of the history."""
        return {
            "loss": self.loss / (self.divisor or 1.0),
            "accuracy": self.right / (self.weight or 1.0),
            "gradient_norm": self.norm / max(1, self.batches),
        }


class Trainer:
    """Parameters and the moments of AdamW, by name: coef, intercept; with batch norm coef, gain, shift."""

    def __init__(
        self,
        coef: NDArray[Any],
        intercept: NDArray[Any] | None,
        options: Options,
        hyper: Hyper,
        place: Place,
        *,
        batch_norm: Statistics | None = None,
        frozen: NDArray[np.bool_] | None = None,
        num_threads: int | None = None,
        adversary: Adversary | None = None,
    ):
        """Start from coef and intercept.

        batch_norm: None, or the statistics with which the normalised logits equal coef x + intercept at the start.
        frozen: classes whose parameters do not change.  adversary: perturbs rows, or adds to the loss.
        """
        self.place, self.dtype = place, coef.dtype
        first = {"coef": coef}
        if batch_norm is not None:
            mean, variance = batch_norm
            first["gain"] = np.sqrt(variance + VARIANCE_FLOOR)
            if intercept is not None:
                first["shift"] = intercept + mean
            self.mean, self.variance = place.array("mean", mean), place.array("variance", variance)
        elif intercept is not None:
            first["intercept"] = intercept
        self.parameters = {name: place.array(name, p) for name, p in first.items()}
        self.has_intercept, self.has_batch_norm = intercept is not None, batch_norm is not None
        self.options, self.hyper, self.num_threads = options.at(place), hyper, num_threads
        self.adversary = adversary
        self.frozen = None if frozen is None else place.array("frozen", frozen)
        with place.context():
            self.moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in self.parameters.items()}
            self.scratch = {name: np.empty_like(p) for name, p in self.parameters.items()}
        self.steps = 0
        self.sound: SoundSteps | None = None  # of `partial_fit`

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle and copy: arrays on the host, without the module that a place holds."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("place", "scratch")}
        state["device"] = None if self.place.number is None else f"cuda:{self.place.number}"
        for name in ("mean", "variance", "frozen"):
            if state.get(name) is not None:
                state[name] = to_host(state[name])
        state["options"] = self.options._replace(weight=to_host(self.options.weight))
        state["parameters"] = {name: to_host(p) for name, p in self.parameters.items()}
        state["moments"] = {name: tuple(map(to_host, pair)) for name, pair in self.moments.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        place = self.place = place_of(state.pop("device"), None)
        self.__dict__.update(state)
        for name in ("mean", "variance", "frozen"):
            if self.__dict__.get(name) is not None:
                setattr(self, name, place.array(name, self.__dict__[name]))
        self.options = self.options.at(place)
        self.parameters = {name: place.array(name, p) for name, p in self.parameters.items()}
        self.moments = {name: tuple(place.array(name, m) for m in pair) for name, pair in self.moments.items()}
        with place.context():
            self.scratch = {name: np.empty_like(p) for name, p in self.parameters.items()}

    @runs_at_place
    def step(self, x: Any, y: NDArray[np.intp], sample_weight: NDArray[np.float64] | None) -> Progress:
        """Train on one minibatch."""
        if self.place.number is not None:
            x, y = self.place.array("X", x), self.place.array("y", y)
            sample_weight = None if sample_weight is None else self.place.array("sample_weight", sample_weight)
        coef, intercept = self.parameters["coef"], self.parameters.get("intercept")
        if self.adversary is not None:
            x = self.adversary.move(x, y, coef, intercept, self.options.temperature)
        logits = compute_logits(x, coef, intercept)
        weight = float(len(y)) if sample_weight is None else _as_float(sample_weight.sum())
        if weight == 0:
            return Progress(0.0, 0.0, 0.0, 0.0, 0.0)
        normal = std = shares = None
        if self.has_batch_norm:
            shares = None if sample_weight is None else sample_weight[:, None] / weight
            normal, std = self._normalize(logits, shares)
            logits = (normal * self.parameters["gain"] + self.parameters.get("shift", 0)).astype(logits.dtype)
        hits = logits.argmax(axis=1) == y
        right = _as_float(hits.sum() if sample_weight is None else (hits * sample_weight).sum())
        divisor = weight
        if self.options.weight is not None:
            row_weights = self.options.weight[y]
            divisor = _as_float(row_weights.sum() if sample_weight is None else (row_weights * sample_weight).sum())
        if divisor == 0:  # every row has weight 0
            return Progress(0.0, 0.0, right, weight, 0.0)
        extra = self._prepare_extra(x, y, sample_weight, logits, divisor)
        result = cross_entropy_with_grad(
            logits, y, sample_weight=sample_weight, out=logits, num_threads=self.num_threads, **self.options._asdict()
        )
        if extra is not None:
            extra.change(logits)
        gradients = self._differentiate(x, logits, normal, std, shares)
        if extra is not None:
            extra.add_to(gradients, logits)
        norm = self._clip(gradients)
        self._update(gradients)
        loss = _as_float(result.loss) + (0.0 if extra is None else extra.loss)
        return Progress(loss, divisor, right, weight, norm)

    def _prepare_extra(self, x: Any, y: Any, sample_weight: Any, logits: Any, divisor: float) -> Extra | None:
        """The term that the adversary adds to the loss of a minibatch; it may shift the logits."""
        if self.adversary is None:
            return None
        scale = np.full(len(y), 1 / divisor) if sample_weight is None else sample_weight / divisor
        if self.options.weight is not None:
            scale = scale * self.options.weight[y]
        return self.adversary.prepare(x, y, logits, self.parameters["coef"], self.options, scale)

    def _differentiate(self, x: Any, grad: Any, normal: Any, std: Any, shares: Any) -> dict[str, Any]:
        """Gradients of the parameters, from that of the logits and, with batch norm, the normalised logits.

        shares: of the rows in the weight of the minibatch, as a column; None: equal ones.
        """
        gradients = {}
        if self.has_batch_norm:
            gradients["gain"] = np.einsum("ik,ik->k", grad, normal)
            if self.has_intercept:
                gradients["shift"] = grad.sum(axis=0, dtype=np.float64)
            if shares is None:
                centred = grad - grad.mean(axis=0) - normal * (gradients["gain"] / len(grad))
            else:
                centred = grad - shares * (grad.sum(axis=0, dtype=np.float64) + normal * gradients["gain"])
            grad = (centred * (self.parameters["gain"] / std)).astype(grad.dtype)
        elif self.has_intercept:
            gradients["intercept"] = grad.sum(axis=0, dtype=np.float64)
        gradients["coef"] = multiply_by_rows(grad, x)
        return gradients

    def _normalize(self, logits: Any, shares: Any) -> tuple[Any, Any]:
        """Logits with mean 0 and variance 1 over the minibatch, and their standard deviation before."""
        if shares is None:
            mean = logits.mean(axis=0, dtype=np.float64)
            centred = logits - mean
            variance = np.mean(np.square(centred), axis=0)
        else:
            mean = (logits * shares).sum(axis=0)
            centred = logits - mean
            variance = (np.square(centred) * shares).sum(axis=0)
        self.mean += MOMENTUM * (mean - self.mean)
        self.variance += MOMENTUM * (variance - self.variance)
        std = np.sqrt(variance + VARIANCE_FLOOR)
        return centred / std, std

    def _clip(self, gradients: dict[str, Any]) -> float:
        """Clip by value, then by the norm of the concatenated gradients; return the norm before clipping."""
        if self.frozen is not None:
            for g in gradients.values():
                g[self.frozen] = 0
        norm = compute_norm(gradients)
        if self.hyper.clip_value is not None:
            for g in gradients.values():
                np.clip(g, -self.hyper.clip_value, self.hyper.clip_value, out=g)
        if self.hyper.clip_norm is not None:
            clipped = compute_norm(gradients)
            if clipped > self.hyper.clip_norm:
                for g in gradients.values():
                    g *= self.hyper.clip_norm / clipped
        return norm

    def _update(self, gradients: dict[str, Any]) -> None:
        """Move the parameters, in place and without temporary arrays."""
        self.steps += 1
        b1, b2 = BETAS
        first, second = 1 - b1**self.steps, math.sqrt(1 - b2**self.steps)
        for name, g in gradients.items():
            p, (m, v), s = self.parameters[name], self.moments[name], self.scratch[name]
            rate = self.hyper.learning_rate if name == "coef" else self.hyper.output_learning_rate
            m *= b1
            np.multiply(g, 1 - b1, out=s)
            m += s
            v *= b2
            np.multiply(g, g, out=s)
            s *= 1 - b2
            v += s
            np.sqrt(v, out=s)
            s /= second
            s += EPSILON
            np.divide(m, s, out=s)
            s *= rate / first
            if self.frozen is not None:
                s[self.frozen] = 0
            if name == "coef" and self.hyper.penalty:  # weight decay, decoupled from the gradient
                if self.frozen is None:
                    p *= 1 - rate * self.hyper.penalty
                else:
                    p[~self.frozen] *= 1 - rate * self.hyper.penalty
            p -= s

    def fold(self, statistics: Statistics | None = None) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return coef and intercept of a linear model with the same logits; statistics: None for the running ones."""
        parameters = {name: to_host(p) for name, p in self.parameters.items()}
        coef = parameters["coef"]
        if not self.has_batch_norm:
            return coef, parameters.get("intercept")
        mean, variance = statistics or (to_host(self.mean), to_host(self.variance))
        with np.errstate(over="ignore", invalid="ignore"):  # the caller reports divergence
            factor = parameters["gain"] / np.sqrt(variance + VARIANCE_FLOOR)
            shift = parameters.get("shift", 0) - factor * mean
            return (coef * factor[:, None]).astype(coef.dtype), shift.astype(coef.dtype)


def compute_statistics(
    coef: NDArray[Any], blocks: Iterable[tuple[Any, NDArray[np.float64] | None]]
) -> Statistics | None:
    """Weighted mean and variance of coef x over the rows of all blocks (X, sample_weight); None without weight."""
    total, mean, square = 0.0, np.zeros(len(coef)), np.zeros(len(coef))
    for x, sample_weight in blocks:
        s = compute_logits(x, coef, None).astype(np.float64)
        weight = float(len(s) if sample_weight is None else sample_weight.sum())
        if weight == 0:
            continue
        block_mean = s.mean(axis=0) if sample_weight is None else sample_weight @ s / weight
        squares = np.square(s - block_mean)
        delta = block_mean - mean
        within = squares.sum(axis=0) if sample_weight is None else sample_weight @ squares
        square += within + delta**2 * (total * weight / (total + weight))
        mean += delta * (weight / (total + weight))
        total += weight
    return (mean, square / total) if total else None


def draw_xavier(classes: int, features: int, dtype: Any, rng: np.random.RandomState) -> NDArray[Any]:
    """Draw coefficients uniformly from +-sqrt(6 / (D + K)) (Glorot & Bengio 2010)."""
    bound = math.sqrt(6 / (features + classes))
    return rng.uniform(-bound, bound, (classes, features)).astype(dtype)


def split_batches(rows: int, size: int) -> list[slice]:
    """Slices of nearly equal length, none longer than size."""
    count = max(1, -(-rows // size))
    edges = [rows * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
