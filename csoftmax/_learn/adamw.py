"""Minibatch AdamW (Loshchilov & Hutter 2019) for softmax regression, with batch norm of the logits if wanted.

Batch norm (Ioffe & Szegedy 2015) stands between the linear layer and softmax: z = gain (s - mean) / std + shift for
s = coef x, statistics of the minibatch. After training it is folded into coef and intercept, with statistics of all
rows.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from .._arguments.places import place_of
from ..cross_entropy import cross_entropy_with_grad
from .objective import at_place, host, logits_of, product

BETAS, EPSILON = (0.9, 0.999), 1e-8
VARIANCE_FLOOR = 1e-5  # added to the variance of batch norm
MOMENTUM = 0.1  # of the running statistics


class Hyper(NamedTuple):
    """What a step needs beside the data."""

    learning_rate: float
    output_learning_rate: float  # of what is not a coefficient: intercept, gain, shift
    penalty: float
    clip_norm: float | None
    clip_value: float | None


class Progress(NamedTuple):
    """Of one minibatch."""

    loss: float  # weighted mean, without penalty
    divisor: float  # of that mean
    right: float  # weight of the rows classified right
    weight: float
    gradient_norm: float


def norm_of(gradients):
    """Of all of them together."""
    return math.sqrt(sum(float(host(np.vdot(g, g))) for g in gradients.values()))


class Sums:
    """Of the minibatches of an epoch."""

    def __init__(self):
        self.batches, self.loss, self.divisor, self.right, self.weight, self.norm = 0, 0.0, 0.0, 0.0, 0.0, 0.0

    def add(self, progress):
        """One minibatch."""
        self.batches += 1
        self.loss += progress.loss * progress.divisor
        self.divisor += progress.divisor
        self.right += progress.right
        self.weight += progress.weight
        self.norm += progress.gradient_norm

    def means(self):
        """For the history."""
        return {
            "loss": self.loss / (self.divisor or 1.0),
            "accuracy": self.right / (self.weight or 1.0),
            "gradient_norm": self.norm / max(1, self.batches),
        }


class Trainer:
    """Parameters and the moments of AdamW.  names: coef, intercept, and with batch norm gain, shift."""

    def __init__(self, coef, intercept, options, hyper, place, *, batch_norm=None, frozen=None, num_threads=None):
        """batch_norm: None, or mean and variance of coef x that the folded parameters are to be unfolded with."""
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
        self.has_intercept, self.batch_norm = intercept is not None, batch_norm is not None
        self.options, self.hyper, self.num_threads = options.at(place), hyper, num_threads
        self.frozen = None if frozen is None else place.array("frozen", frozen)
        with place.context():
            self.moments = {name: (np.zeros_like(p), np.zeros_like(p)) for name, p in self.parameters.items()}
            self.scratch = {name: np.empty_like(p) for name, p in self.parameters.items()}
        self.steps = 0

    def __getstate__(self):
        """On the host, without the module that a place holds: for pickle and copy."""
        state = {name: value for name, value in self.__dict__.items() if name not in ("place", "scratch")}
        state["device"] = None if self.place.number is None else f"cuda:{self.place.number}"
        for name in ("mean", "variance", "frozen"):
            if state.get(name) is not None:
                state[name] = host(state[name])
        state["options"] = self.options._replace(weight=host(self.options.weight))
        state["parameters"] = {name: host(p) for name, p in self.parameters.items()}
        state["moments"] = {name: tuple(map(host, pair)) for name, pair in self.moments.items()}
        return state

    def __setstate__(self, state):
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

    @at_place
    def step(self, x, y, sample_weight):
        """One minibatch."""
        if self.place.number is not None:
            x, y = self.place.array("X", x), self.place.array("y", y)
            sample_weight = None if sample_weight is None else self.place.array("sample_weight", sample_weight)
        logits = logits_of(x, self.parameters["coef"], self.parameters.get("intercept"))
        if self.batch_norm:
            normal, std = self._normalize(logits)
            logits = (normal * self.parameters["gain"] + self.parameters.get("shift", 0)).astype(logits.dtype)
        hits = logits.argmax(axis=1) == y
        weight = float(len(y) if sample_weight is None else host(sample_weight.sum()))
        right = float(host(hits.sum() if sample_weight is None else (hits * sample_weight).sum()))
        divisor = weight
        if self.options.weight is not None:
            by_row = self.options.weight[y]
            divisor = float(host(by_row.sum() if sample_weight is None else (by_row * sample_weight).sum()))
        if divisor == 0:  # nobody takes part
            return Progress(0.0, 0.0, right, weight, 0.0)
        result = cross_entropy_with_grad(
            logits, y, sample_weight=sample_weight, out=logits, num_threads=self.num_threads, **self.options._asdict()
        )
        grad = logits
        gradients = {}
        if self.batch_norm:
            gradients["gain"] = np.einsum("ik,ik->k", grad, normal)
            if self.has_intercept:
                gradients["shift"] = grad.sum(axis=0, dtype=np.float64)
            centred = grad - grad.mean(axis=0) - normal * (gradients["gain"] / len(y))
            grad = (centred * (self.parameters["gain"] / std)).astype(logits.dtype)
        elif self.has_intercept:
            gradients["intercept"] = grad.sum(axis=0, dtype=np.float64)
        gradients["coef"] = product(grad, x)
        norm = self._clip(gradients)
        self._update(gradients)
        return Progress(float(host(result.loss)), divisor, right, weight, norm)

    def _normalize(self, logits):
        mean = logits.mean(axis=0, dtype=np.float64)
        centred = logits - mean
        variance = np.mean(np.square(centred), axis=0)
        self.mean += MOMENTUM * (mean - self.mean)
        self.variance += MOMENTUM * (variance - self.variance)
        std = np.sqrt(variance + VARIANCE_FLOOR)
        return centred / std, std

    def _clip(self, gradients):
        """By value, then by the norm of all of them together; the norm that they came with."""
        if self.frozen is not None:
            for g in gradients.values():
                g[self.frozen] = 0
        norm = norm_of(gradients)
        if self.hyper.clip_value is not None:
            for g in gradients.values():
                np.clip(g, -self.hyper.clip_value, self.hyper.clip_value, out=g)
        if self.hyper.clip_norm is not None:
            now = norm_of(gradients)
            if now > self.hyper.clip_norm:
                for g in gradients.values():
                    g *= self.hyper.clip_norm / now
        return norm

    def _update(self, gradients):
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
            if name == "coef" and self.hyper.penalty:  # decoupled decay
                if self.frozen is None:
                    p *= 1 - rate * self.hyper.penalty
                else:
                    p[~self.frozen] *= 1 - rate * self.hyper.penalty
            p -= s

    def folded(self, statistics=None):
        """(coef, intercept) of the same logits; statistics: mean and variance of coef x, else the running ones."""
        parameters = {name: host(p) for name, p in self.parameters.items()}
        coef = parameters["coef"]
        if not self.batch_norm:
            return coef, parameters.get("intercept")
        mean, variance = statistics or (host(self.mean), host(self.variance))
        factor = parameters["gain"] / np.sqrt(variance + VARIANCE_FLOOR)
        shift = parameters.get("shift", 0) - factor * mean
        return (coef * factor[:, None]).astype(coef.dtype), shift.astype(coef.dtype)


def statistics(coef, blocks):
    """Mean and variance of coef x over the rows of all blocks; None if there are none."""
    count, mean, square = 0, np.zeros(len(coef)), np.zeros(len(coef))
    for x in blocks:
        s = logits_of(x, coef, None).astype(np.float64)
        own = s.mean(axis=0)
        delta = own - mean
        square += np.square(s - own).sum(axis=0) + delta**2 * (count * len(s) / max(1, count + len(s)))
        mean += delta * (len(s) / max(1, count + len(s)))
        count += len(s)
    return (mean, square / count) if count else None


def xavier(classes, features, dtype, rng):
    """Uniform in +-sqrt(6 / (D + K)) (Glorot & Bengio 2010)."""
    bound = math.sqrt(6 / (features + classes))
    return rng.uniform(-bound, bound, (classes, features)).astype(dtype)


def batches(rows, size):
    """Slices of nearly equal length, none longer than size."""
    count = max(1, -(-rows // size))
    edges = [rows * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
