"""Divergence of AdamW: how it is noticed, and which parameters are kept.

The loss of the first minibatch of an epoch is measured at the parameters with which the epoch before it ended, so it
rates them at no cost; an epoch whose mean loss is larger is rated by that.  Equal probabilities have the loss log K.
Parameters whose loss is `EPOCH_FACTOR` times as large as both this and the best loss so far know less than nothing, and
training has moved away from better ones: it has diverged.

A single minibatch of `partial_fit` is no sample of anything: one wrong label may have a loss of 50.  There the factor
is `STEP_FACTOR`, on the loss of the first minibatch, which only exponential growth reaches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPOCH_FACTOR, STEP_FACTOR = 10.0, 1e4

Parameters = tuple[NDArray[Any], NDArray[Any] | None]
"""coef, and intercept if there is one."""


def are_finite(parameters: Parameters) -> bool:
    """Whether the squared norm of the parameters is finite, which takes an eighth of the time of looking at each."""
    return all(p is None or math.isfinite(np.vdot(p, p)) for p in parameters)


def _copy(parameters: Parameters) -> Parameters:
    coef, intercept = parameters
    return np.array(coef), None if intercept is None else np.array(intercept)


class BestEpoch:
    """The best parameters of a training so far; those of the start count as epoch 0."""

    def __init__(self, classes: int, start: Parameters):
        """Take the parameters of the start."""
        self.uniform = math.log(classes)
        self.epoch, self.loss = 0, math.inf
        self.parameters = _copy(start)
        self.last, self.last_epoch, self.last_loss = _copy(start), 0, self.uniform

    def rate(self, loss: float | None) -> None:
        """Rate the last parameters that were taken by the loss at them (None: it is not known)."""
        self.last_loss = self.last_loss if loss is None else max(self.last_loss, loss) if loss == loss else math.inf
        if self.last_loss <= self.loss:
            best, self.last = self.last, self.parameters  # two buffers take turns
            self.parameters, self.loss, self.epoch = best, self.last_loss, self.last_epoch

    def take(self, parameters: Parameters, mean_loss: float, *, check: bool) -> bool:
        """Take the parameters at the end of an epoch; False, and they are not taken, if something is not finite.

        check: look at every parameter; without, what the last step has made infinite shows in the next loss.
        """
        if not math.isfinite(mean_loss) or (check and not are_finite(parameters)):
            self.last_loss = math.inf
            return False
        for kept, new in zip(self.last, parameters):
            if kept is not None and new is not None:
                kept[...] = new  # numpy.copyto takes ten times as long if there are few
        self.last_epoch, self.last_loss = self.last_epoch + 1, mean_loss
        return True

    def has_diverged(self) -> bool:
        """Whether the last parameters that were rated are far worse than the best ones."""
        return not self.last_loss <= EPOCH_FACTOR * max(self.uniform, self.loss)

    def describe(self) -> str:
        """Describe the parameters that are kept."""
        loss = f" (loss {self.loss:.4g})" if math.isfinite(self.loss) else ""
        return f"those of epoch {self.epoch}{loss} are kept" if self.epoch else f"those of the start{loss} are kept"


class SoundSteps:
    """The parameters before a step of `partial_fit`, as long as the loss at them is of an ordinary size."""

    def __init__(self, classes: int, start: Parameters):
        """Take the parameters of the start."""
        self.uniform = math.log(classes)
        self.first_loss: float | None = None
        self.parameters = _copy(start)

    def allows(self, loss: float, before: Parameters | None, after: Parameters) -> bool:
        """Whether training may go on after a step; loss: at the parameters before it, which must not change later."""
        if self.first_loss is None:
            self.first_loss = max(loss, self.uniform)
        if not loss <= STEP_FACTOR * self.first_loss:
            return False
        if before is not None and loss <= EPOCH_FACTOR * self.first_loss:
            self.parameters = before
        return are_finite(after)
