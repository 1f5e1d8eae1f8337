"""The objective of softmax regression over the parts of an engine, as L-BFGS uses it."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..objective import Evaluation, Options, find_mass, find_moments
from . import sums
from .engine import Engine, total


class Layout(NamedTuple):
    """The rows of all parts."""

    features: int
    dtype: np.dtype[Any]
    rows: int
    starts: list[int]  # number of the first row of each part
    first: NDArray[np.float64] | None  # the first row of all, of a dense X
    largest: NDArray[np.float64]  # magnitude in each column


class PartsObjective:
    """The mean loss of the rows of all parts as a function of coef and intercept.

    held_out: over the rows for early stopping.
    """

    bound = None

    def __init__(
        self,
        engine: Engine,
        layout: Layout,
        label_weights: NDArray[np.float64],
        options: Options,
        *,
        held_out: bool = False,
    ):
        """label_weights: of the rows of each class."""
        self.engine, self.layout, self.options, self.held_out = engine, layout, options, held_out
        self.classes, self.features, self.rows, self.dtype = (
            len(label_weights),
            layout.features,
            layout.rows,
            layout.dtype,
        )
        self.total_weight = float(label_weights.sum())
        weighted = label_weights if options.weight is None else label_weights * options.weight
        self.divisor = float(weighted.sum())
        self.mass = find_mass(options, self.divisor, self.total_weight)

    def use_threads(self) -> contextlib.AbstractContextManager[None]:
        """Context of an evaluation: engines have their own threads."""
        return contextlib.nullcontext()

    def evaluate(self, coef: Any, intercept: Any, *, gradient: bool = True) -> Evaluation:
        """Evaluate at coef (K, D) and intercept (K,) or None, both of X's dtype."""
        payload = sums.Evaluate(coef, intercept, self.options, self.divisor, gradient, self.held_out)
        vector = total(self.engine, sums.evaluate, payload)
        loss, right = (float(vector[i]) for i in (0, 1))
        end = 2 + coef.size
        grads: Any = (vector[2:end].reshape(coef.shape), vector[end:]) if gradient else (None, None)
        return Evaluation(loss / self.divisor, right / self.total_weight, *grads)

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weighted mean and standard deviation of each column of X, in float64."""
        first = np.zeros(self.features) if self.layout.first is None else self.layout.first

        def measure(unit: NDArray[np.float64] | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            origin = first if unit is None else first / unit
            added = total(self.engine, sums.add_columns, sums.Moments(origin, unit)).reshape(2, -1)
            mean, square = added / self.total_weight
            with np.errstate(over="ignore", invalid="ignore"):
                return mean + origin, np.maximum(square - mean**2, 0)

        return find_moments(measure, lambda: self.layout.largest.copy())

    def hessian(
        self,
        coef: NDArray[Any],
        intercept: NDArray[Any] | None,
        max_rows: int,
        origin: NDArray[np.float64] | float = 0.0,
    ) -> NDArray[np.float64]:
        """Hessian of the loss without penalty by (coef, shift), flat, for the logits coef (x - origin) + shift.

        With more than max_rows rows, a sample of the rows stands for all of them.
        """
        step = max(1, self.rows // max_rows)
        payload = sums.Curvature(coef, intercept, self.options, origin, step, self.layout.starts)
        vector = total(self.engine, sums.add_hessians, payload)
        size = coef.size + (0 if intercept is None else len(coef))
        scale, t = self.divisor * (vector[-1] / self.mass), self.options.temperature
        return np.asarray(vector[:-1].reshape(size, size) / (scale * t * t))
