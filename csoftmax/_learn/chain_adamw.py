"""AdamW (Loshchilov & Hutter 2019) for a tagger, on minibatches of sequences.

A minibatch has few of the attributes, so that only their weights are updated.  The moments and the weight decay of the
others are made up for at their next step, as powers of their factors; the steps that momentum alone would take in
between are left out.  `settle` makes up for all of them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .adamw import BETAS, EPSILON
from .chain_objective import ChainObjective, Data, Layout

Vector = NDArray[np.float64]


class ChainTrainer:
    """Weights and moments of all weights of a layout."""

    def __init__(self, layout: Layout, w: Vector):
        """Start from w."""
        self.layout, self.w = layout, w.copy()
        self.first, self.second = np.zeros(layout.size), np.zeros(layout.size)
        self.last = np.zeros(layout.size, np.int64)  # step of the last update
        self.steps = 0

    def is_part_of(self, layout: Layout) -> bool:
        """Whether a layout has all pairs, transitions and ends of this one."""
        old = self.layout
        arrays = ((old.transitions, layout.transitions), (old.start, layout.start), (old.end, layout.end))
        return all(np.isin(a, b).all() for a, b in ((old.pairs.keys(), layout.pairs.keys()), *arrays))

    def grow(self, layout: Layout) -> None:
        """Take over a layout with further pairs, transitions or ends, whose weights and moments are 0."""
        old = self.layout
        places = [
            np.searchsorted(layout.pairs.keys(), old.pairs.keys()),
            np.searchsorted(layout.transitions, old.transitions),
            np.searchsorted(layout.start, old.start),
            np.searchsorted(layout.end, old.end),
        ]
        to = np.concatenate([place + edge for place, edge in zip(places, layout.edges)]).astype(np.intp)
        for name in ("w", "first", "second"):
            grown = np.zeros(layout.size)
            grown[to] = getattr(self, name)
            setattr(self, name, grown)
        last = np.full(layout.size, self.steps)
        last[to] = self.last
        self.last, self.layout = last, layout

    def _catch_up(self, places: NDArray[np.int64] | slice, decay: float) -> None:
        """Apply what the steps since the last update of some weights have left out."""
        gap = self.steps - self.last[places]
        self.first[places] *= BETAS[0] ** gap
        self.second[places] *= BETAS[1] ** gap
        if decay != 1:
            self.w[places] *= decay**gap
        self.last[places] = self.steps

    def step(self, data: Data, tagger: Any) -> tuple[float, float]:
        """Take a step on a minibatch; return its loss without penalty and the norm of the gradient."""
        if data.total() == 0:
            return 0.0, 0.0
        rate = float(tagger.learning_rate)
        decay = 1 - rate * float(tagger.penalty_l2)
        used, columns = np.unique(data.tokens.columns, return_inverse=True)
        pairs, positions = self.layout.pairs.of(used)
        small, edges = self.layout.with_pairs(pairs), self.layout.edges
        places = np.concatenate([positions, np.arange(edges[1], edges[-1])])
        self._catch_up(places, decay)
        tokens = data.tokens._replace(columns=columns.astype(np.int32).ravel(), n_columns=len(used))
        objective = ChainObjective(data._replace(tokens=tokens), small, tagger.num_threads)
        with np.errstate(over="ignore", invalid="ignore"):  # divergence is reported
            loss, grad = objective.evaluate(self.w[places])
            self._update(places, grad, rate, decay)
            return loss, float(np.linalg.norm(grad))

    def _update(self, places: NDArray[np.int64], grad: Vector, rate: float, decay: float) -> None:
        self.steps += 1
        first = BETAS[0] * self.first[places] + (1 - BETAS[0]) * grad
        second = BETAS[1] * self.second[places] + (1 - BETAS[1]) * grad**2
        root = np.sqrt(second / (1 - BETAS[1] ** self.steps)) + EPSILON
        step = rate / (1 - BETAS[0] ** self.steps) * first / root
        self.w[places] = self.w[places] * decay - step
        self.first[places], self.second[places], self.last[places] = first, second, self.steps

    def settle(self, tagger: Any) -> Vector:
        """Return all weights, after what the last steps have left out."""
        self._catch_up(slice(None), 1 - float(tagger.learning_rate) * float(tagger.penalty_l2))
        return self.w
