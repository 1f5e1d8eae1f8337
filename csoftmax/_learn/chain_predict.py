"""Predictions of a tagger: its emissions, some sequences at a time, and what the functions of the CRF make of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._ops.crf import crf_loss
from .._ops.crf_paths import crf_decode, crf_marginals
from .chain_features import Tokens, as_sequences, has_names, read_tokens
from .chain_labels import Tags, make_tags, nest, split
from .chain_objective import Chain, count_right
from .chain_pairs import Pairs, Scores
from .parameters import as_plain

BLOCK_TOKENS = 2**16  # bounds the memory of emissions and marginals

Vector = NDArray[np.float64]


class Model(NamedTuple):
    """The weights of a fitted tagger, as the kernels need them."""

    state: Any  # the array they come from, to notice a new one
    pairs: Pairs
    weights: Vector
    chain: Chain


def model_of(tagger: Any) -> Model:
    """The model of the fitted attributes, made anew only if `state_` is another array."""
    model: Model | None = tagger.__dict__.get("_model")
    chain = Chain(tagger.transitions_, tagger.start_, tagger.end_)
    if model is None or model.state is not tagger.state_:
        state = tagger.state_
        state.check_format(full_check=True)  # the kernels trust its indices
        pairs = Pairs(state.indptr.astype(np.int64), state.indices.astype(np.uint16), state.shape[1])
        model = Model(state, pairs, np.ascontiguousarray(state.data, np.float64), chain)
        empty = Tokens(np.zeros(1, np.int64), np.zeros(0, np.int32), None, state.shape[0], np.zeros(1, np.int64))
        Scores(empty, pairs, 1, gradient=False).compute(model.weights)  # fills the rows of frequent attributes
        tagger._model = model
    return model._replace(chain=chain)


def read(tagger: Any, X: Any) -> Tokens:
    """Tokens of X; attributes that the model does not know are left out."""
    X = as_sequences(X)
    if tagger.vocabulary_ is not None and not has_names(X):
        raise TypeError("X has matrices, but the model was fitted on names of attributes")
    n_columns = -1 if tagger.vocabulary_ is not None else tagger.n_features_in_
    tokens = read_tokens(X, tagger.vocabulary_, hashing=tagger.hashing, n_columns=n_columns)
    largest = int(tokens.columns.max(initial=-1))
    if largest >= tagger.state_.shape[0]:  # of a vocabulary that was changed; the kernels trust the columns
        raise ValueError(f"vocabulary_ has column {largest}, but the model has weights of {tagger.state_.shape[0]}")
    return tokens


def iterate_blocks(tagger: Any, tokens: Tokens) -> Iterator[tuple[slice, dict[str, Any]]]:
    """The sequences of a block, and the arguments of the functions of the CRF for it."""
    model, starts = model_of(tagger), tokens.starts
    first, count = 0, len(starts) - 1
    while first < count:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + BLOCK_TOKENS, side="right")) - 1)
        a, b = starts[first], starts[last]
        part = Tokens(
            tokens.indptr[a : b + 1], tokens.columns, tokens.values, tokens.n_columns, starts[first : last + 1] - a
        )
        scores = Scores(part, model.pairs, tagger.num_threads, gradient=False)
        emissions = scores.compute(model.weights, fills=False)
        yield (
            slice(first, last),
            {
                "emissions": emissions,
                **model.chain.arguments(),
                "indptr": part.starts,
                "num_threads": tagger.num_threads,
            },
        )
        first = last


def decode(tagger: Any, tokens: Tokens) -> NDArray[np.int64]:
    """Indices of the best labels of all tokens; -1 in a sequence to which constraints leave no labels."""
    parts = [np.asarray(crf_decode(**arguments).tags) for _, arguments in iterate_blocks(tagger, tokens)]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def predict(tagger: Any, X: Any) -> list[list[Any]]:
    """The labels of the best path of each sequence."""
    tokens = read(tagger, X)
    labels = [*tagger.classes_.tolist(), None]  # None is that of -1
    return split([labels[i] for i in decode(tagger, tokens).tolist()], tokens.starts)


def predict_n_best(tagger: Any, X: Any, n: int) -> list[list[list[Any]]]:
    """The labels of at most n paths of each sequence, best first."""
    tokens = read(tagger, X)
    result: list[list[list[Any]]] = []
    for _, arguments in iterate_blocks(tagger, tokens):
        tags = np.asarray(crf_decode(**arguments, n_best=n).tags)  # (n, tokens), -1 where there are fewer paths
        edges = arguments["indptr"].tolist()
        for a, b in itertools.pairwise(edges):
            paths = tags[:, a:b] if b > a else tags[:1, a:b]
            result.append([tagger.classes_[path].tolist() for path in paths if a == b or path[0] >= 0])
    return result


def predict_proba(tagger: Any, X: Any) -> list[Vector]:
    """Probabilities (n, L) of the labels of each token."""
    result: list[Vector] = []
    for _, arguments in iterate_blocks(tagger, read(tagger, X)):
        marginals = np.asarray(crf_marginals(**arguments).tags)
        result.extend(np.split(marginals, arguments["indptr"][1:-1]) if len(arguments["indptr"]) > 1 else [])
    return result


def compute_log_likelihood(tagger: Any, X: Any, y: Any) -> Vector:
    """Log-probability of the labels of each sequence."""
    tokens = read(tagger, X)
    tags = make_tags(nest(as_plain(y, "y"), tokens.starts), tagger.classes_)
    parts = []
    for sequences, arguments in iterate_blocks(tagger, tokens):
        a, b = tokens.starts[sequences.start], tokens.starts[sequences.stop]
        emissions = arguments.pop("emissions")
        parts.append(-np.asarray(crf_loss(emissions, tags.targets[a:b], **arguments, reduction="none")))
    result = np.concatenate(parts) if parts else np.zeros(0)
    return np.where(np.isnan(result), -np.inf, result) + 0.0  # NaN: constraints leave no labels at all; no -0.0


def score(tagger: Any, X: Any, y: Any) -> float:
    """Share of right tokens among those whose label is known."""
    tokens = read(tagger, X)
    tags: Tags = make_tags(nest(as_plain(y, "y"), tokens.starts), tagger.classes_)
    return count_right(decode(tagger, tokens), tags)
