"""The objective of a tagger: the mean loss of a linear-chain CRF (Lafferty, McCallum & Pereira 2001).

f(w) = sum of s_i loss_i / sum of s_i over the sequences with tokens, without penalties.  The weights are one vector:
those of the pairs of attribute and label, of transitions, of the first label, of the last one.  Transitions without a
weight (those not seen, if only seen ones have weights) score 0, forbidden ones -inf.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._ops.crf import crf_loss, crf_loss_with_grad
from .._ops.crf_paths import crf_decode
from .chain_features import Tokens, rows_of
from .chain_labels import Tags
from .chain_pairs import Pairs, Scores

Vector = NDArray[np.float64]


class Chain(NamedTuple):
    """Scores of transitions and ends, as the functions of the CRF get them."""

    transitions: Vector  # (L, L)
    start: Vector  # (L,)
    end: Vector  # (L,)

    def arguments(self) -> dict[str, Any]:
        """The arguments of the functions of the CRF."""
        return {"transitions": self.transitions, "start": self.start, "end": self.end}


class Layout:
    """Where the weights of a model are in one vector."""

    def __init__(self, pairs: Pairs, rules: Chain, seen: NDArray[np.bool_] | None, fit_ends: bool):
        """Rules: 0 and -inf.  seen: the transitions that have a weight; None: all that are possible."""
        self.pairs, self.rules = pairs, rules
        possible = np.isfinite(rules.transitions)
        self.transitions = np.flatnonzero(possible if seen is None else possible & seen)
        none = np.zeros(0, np.intp)
        self.start = np.flatnonzero(np.isfinite(rules.start)) if fit_ends else none
        self.end = np.flatnonzero(np.isfinite(rules.end)) if fit_ends else none
        sizes = len(pairs), len(self.transitions), len(self.start), len(self.end)
        self.edges: list[int] = np.cumsum([0, *sizes]).tolist()
        self.size = self.edges[-1]

    def with_pairs(self, pairs: Pairs) -> Layout:
        """The same layout with other pairs."""
        result = copy.copy(self)
        shift = len(pairs) - len(self.pairs)
        result.pairs, result.size = pairs, self.size + shift
        result.edges = [0, *(edge + shift for edge in self.edges[1:])]
        return result

    def split(self, w: Vector) -> tuple[Vector, Vector, Vector, Vector]:
        """Views of the weights of pairs, transitions, start and end."""
        edges = self.edges
        return w[: edges[1]], w[edges[1] : edges[2]], w[edges[2] : edges[3]], w[edges[3] :]

    def chain(self, w: Vector) -> Chain:
        """Scores of transitions and ends at w."""
        _, transitions, start, end = self.split(w)
        result = Chain(*(array.copy() for array in self.rules))
        result.transitions.ravel()[self.transitions] = transitions
        result.start[self.start] = start
        result.end[self.end] = end
        return result

    def join(self, pairs: Vector, chain: Chain) -> Vector:
        """The vector of weights, from those of pairs and from what belongs to transitions and ends."""
        parts = (chain.transitions.ravel()[self.transitions], chain.start[self.start], chain.end[self.end])
        return np.concatenate([pairs, *parts])


class Data(NamedTuple):
    """Tokens, tags and weights of some sequences."""

    tokens: Tokens
    tags: Tags
    sample_weight: Vector | None

    def take(self, sequences: NDArray[np.intp]) -> Data:
        """Return the given sequences."""
        weight = None if self.sample_weight is None else self.sample_weight[sequences]
        return Data(self.tokens.take(sequences), self.tags.take(rows_of(self.tokens.starts, sequences)), weight)

    def total(self) -> float:
        """Sum of the weights of the sequences that have tokens."""
        has_tokens = np.diff(self.tokens.starts) > 0
        return float(has_tokens.sum() if self.sample_weight is None else self.sample_weight[has_tokens].sum())


class ChainObjective:
    """Loss and gradient of some data."""

    def __init__(self, data: Data, layout: Layout, num_threads: int | None):
        """Prepare the data; all evaluations share the memory of the emissions."""
        self.data, self.layout, self.num_threads = data, layout, num_threads
        self.scores = Scores(data.tokens, layout.pairs, num_threads, gradient=True)

    def _arguments(self) -> dict[str, Any]:
        data = self.data
        return {
            "indptr": data.tokens.starts,
            "sample_weight": data.sample_weight,
            "reduction": "mean",
            "num_threads": self.num_threads,
        }

    def evaluate(self, w: Vector, grad: Vector | None = None) -> tuple[float, Vector]:
        """Mean loss and its gradient."""
        layout = self.layout
        grad = np.empty(layout.size) if grad is None else grad
        state = layout.split(w)[0]
        emissions = self.scores.compute(np.ascontiguousarray(state))
        chain = layout.chain(w)
        result = crf_loss_with_grad(
            emissions, self.data.tags.targets, **chain.arguments(), **self._arguments(), out=emissions
        )
        by_state, by_transitions, by_start, by_end = layout.split(grad)
        self.scores.differentiate(by_state)
        by_transitions[:] = result.grad_transitions.ravel()[layout.transitions]
        by_start[:] = result.grad_start[layout.start]
        by_end[:] = result.grad_end[layout.end]
        return float(result.loss), grad

    def curvature(self) -> Vector:
        """Estimates of the diagonal of the Hessian: a fourth of how often a weight takes part, over the weights' sum.

        An attribute counts with its squared value, whatever the label.
        """
        tokens, layout = self.data.tokens, self.layout
        squares = None if tokens.values is None else tokens.values.astype(np.float64) ** 2
        if self.data.sample_weight is not None:
            of_token = np.repeat(self.data.sample_weight, np.diff(tokens.starts))
            of_entry = np.repeat(of_token, np.diff(tokens.indptr))
            squares = of_entry if squares is None else squares * of_entry
        counts = np.bincount(tokens.columns, squares, minlength=tokens.n_columns)
        pairs = layout.pairs
        of_pair = np.repeat(counts[: len(pairs.offsets) - 1], np.diff(pairs.offsets))
        sequences = self.data.total()
        others = np.full(layout.size - len(of_pair), float(sequences))
        others[: len(layout.transitions)] = max(1.0, tokens.total - sequences) / max(1, pairs.n_labels)
        return np.concatenate([of_pair, others]) / (4 * sequences)


def measure(data: Data, layout: Layout, w: Vector, num_threads: int | None) -> tuple[float, float]:
    """Mean loss, and share of right tokens among those with a known label."""
    chain = layout.chain(w)
    emissions = Scores(data.tokens, layout.pairs, num_threads, gradient=False).compute(
        np.ascontiguousarray(layout.split(w)[0])
    )
    common = {**chain.arguments(), "indptr": data.tokens.starts, "num_threads": num_threads}
    loss = crf_loss(emissions, data.tags.targets, sample_weight=data.sample_weight, **common)
    return float(loss), count_right(crf_decode(emissions, **common).tags, data.tags)


def count_right(predicted: NDArray[Any], tags: Tags) -> float:
    """Share of tokens whose predicted label is the given one, or in the given set; unknown labels do not count."""
    right = predicted == tags.hard
    counts = tags.hard >= 0
    if tags.sets is not None:
        counts = ~tags.sets.all(axis=1) | counts
        right = (predicted >= 0) & tags.sets[np.arange(len(predicted)), np.maximum(predicted, 0)]
    total = int(counts.sum())
    return float((right & counts).sum() / total) if total else float("nan")
