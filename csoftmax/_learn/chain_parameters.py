"""Checks of the parameters of `csoftmax.sequence.CRFTagger`, and the data of a fit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._arguments.numbers import check_num_threads
from .chain_features import MAX_COLUMNS, Tokens, Vocabulary, as_sequences, drop_rare, has_names, read_tokens
from .chain_labels import UNKNOWN, Nested, as_classes, find_classes, make_tags, nest
from .chain_objective import Chain, Data, Layout
from .chain_pairs import MAX_LABELS, Pairs, find_keys
from .messages import show
from .parameters import SOLVERS, as_plain, check_number, check_seed, list_callbacks, make_random_state
from .spans import SCHEMES, make_rules

KINDS = ("seen", "all")
SWITCHES = ("fit_ends", "early_stopping", "warm_start")


def check_parameters(tagger: Any) -> None:
    """Refuse parameters that no fit could use."""
    for name, allowed in (("solver", SOLVERS), ("states", KINDS), ("transitions", KINDS)):
        value = getattr(tagger, name)
        if not isinstance(value, str) or value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {show(value)}")
    for switch in SWITCHES:
        value = getattr(tagger, switch)
        if not isinstance(value, bool | np.bool_):
            raise TypeError(f"{switch} must be True or False, got {show(value)}")
    for name in ("penalty_l2", "penalty_l1"):
        check_number(tagger, name, 0, math.inf, open_high=True)
    for name in ("min_count", "max_epochs", "batch_size", "patience"):
        check_number(tagger, name, 1, math.inf, whole=True)
    check_number(tagger, "hashing", 1, MAX_COLUMNS, whole=True, optional=True)
    check_number(tagger, "learning_rate", 0, math.inf, open_low=True, open_high=True)
    check_number(tagger, "validation_fraction", 0, 1, open_low=True, open_high=True)
    check_number(tagger, "tol", 0, math.inf, open_low=True, open_high=True, optional=True)
    if tagger.constraints is not None and not (isinstance(tagger.constraints, str) and tagger.constraints in SCHEMES):
        schemes = ", ".join(map(repr, SCHEMES))
        raise ValueError(f"constraints must be None or one of {schemes}, got {show(tagger.constraints)}")
    if tagger.solver == "adamw" and tagger.penalty_l1 != 0:
        raise ValueError(f"penalty_l1={show(tagger.penalty_l1)} needs solver='lbfgs'")
    list_callbacks(tagger)
    check_seed(tagger.random_state)
    check_num_threads(tagger.num_threads)


class Problem(NamedTuple):
    """What a fit works on."""

    data: Data
    validation: Data | None
    layout: Layout
    start: NDArray[np.float64]  # the weights at the beginning


def rules_of(tagger: Any, classes: NDArray[Any]) -> Chain:
    """Scores 0 and -inf of the constraints."""
    if tagger.constraints is not None:
        return Chain(*make_rules(classes.tolist(), tagger.constraints, "y"))
    n = len(classes)
    return Chain(np.zeros((n, n)), np.zeros(n), np.zeros(n))


def check_sample_weight(given: Any, starts: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """One weight for each sequence."""
    if given is None:
        return None
    weights = np.asarray(as_plain(given, "sample_weight"))
    if weights.dtype.kind not in "biuf":
        raise TypeError(f"sample_weight must hold real numbers, got dtype {weights.dtype}")
    weights = weights.astype(np.float64)
    if weights.shape != (len(starts) - 1,):
        raise ValueError(f"sample_weight has shape {weights.shape}, but there are {len(starts) - 1} sequences")
    bad = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(bad):
        raise ValueError(f"sample_weight[{bad[0]}] is {show(weights[bad[0]])}; weights are finite and at least 0")
    return weights


def read_training(tagger: Any, X: Any, *, grows: bool) -> Tokens:
    """Tokens of X, with a vocabulary in the estimator where they have names; grows: of a fit that continues."""
    X = as_sequences(X)
    known = len(tagger.vocabulary_) if grows and tagger.vocabulary_ is not None else 0
    if not grows:
        tagger.vocabulary_ = {} if has_names(X) and tagger.hashing is None else None
    n_columns = tagger.n_features_in_ if grows and tagger.vocabulary_ is None else -1
    vocabulary: Vocabulary | None = None if tagger.vocabulary_ is None else dict(tagger.vocabulary_)
    if vocabulary is not None and not has_names(X):
        raise TypeError("X has matrices, but the model was fitted on names of attributes")
    tokens = read_tokens(X, vocabulary, grows=True, hashing=tagger.hashing, n_columns=n_columns)
    if tagger.min_count > 1:
        tokens = drop_rare(tokens, tagger.min_count, known, vocabulary)
    tagger.vocabulary_, tagger.n_features_in_ = vocabulary, tokens.n_columns
    return tokens


def check_classes(classes: NDArray[Any]) -> NDArray[Any]:
    """Refuse no classes, and more than the weights can have."""
    if not 1 <= len(classes) <= MAX_LABELS:
        raise ValueError(f"y must have 1 to {MAX_LABELS} different labels, got {len(classes)}")
    return classes


def prepare(tagger: Any, X: Any, y: Any, sample_weight: Any, classes: Any = None) -> Problem:
    """Check the arguments of a fit and set classes and vocabulary; `classes` are those of the first `partial_fit`."""
    check_parameters(tagger)
    continues = hasattr(tagger, "state_") and (tagger.warm_start or classes is not None)
    old = tagger.state_ if continues else None
    tokens = read_training(tagger, X, grows=continues)
    lists = nest(as_plain(y, "y"), tokens.starts)
    if not continues:
        known = find_classes(lists) if classes is None else as_classes(classes, "classes")
        tagger.classes_ = check_classes(known)
    tags = make_tags(lists, tagger.classes_)
    weights = check_sample_weight(sample_weight, tokens.starts)
    data = Data(tokens, tags, weights)
    rules = rules_of(tagger, tagger.classes_)
    if tagger.constraints is not None:
        _refuse_impossible(lists, data, rules, tagger)
    if data.total() == 0:
        raise ValueError("there is nothing to learn: no sequence has tokens and a positive weight")
    validation = None
    if tagger.early_stopping:
        data, validation = _hold_out(tagger, data)
    layout, start = make_layout(tagger, data, rules, old)
    return Problem(data, validation, layout, start)


def make_layout(tagger: Any, data: Data, rules: Chain, old: Any) -> tuple[Layout, NDArray[np.float64]]:
    """Which weights there are, and their first values; old: `state_` of the model that training continues."""
    n_labels = len(tagger.classes_)
    keys = find_keys(data.tokens, data.tags, n_labels, every=tagger.states == "all")
    if old is not None:
        attributes = np.repeat(np.arange(old.shape[0], dtype=np.int64), np.diff(old.indptr))
        old_keys = attributes * n_labels + old.indices
        keys = np.union1d(keys, old_keys)
    pairs = Pairs.from_keys(keys, data.tokens.n_columns, n_labels)
    seen = find_transitions(data, n_labels) if tagger.transitions == "seen" else None
    if seen is not None and old is not None:
        seen |= np.isfinite(tagger.transitions_) & (tagger.transitions_ != 0)
    layout = Layout(pairs, rules, seen, bool(tagger.fit_ends))
    if old is None:
        return layout, np.zeros(layout.size)
    state = np.zeros(len(pairs))
    state[np.searchsorted(keys, old_keys)] = old.data
    # A transition that constraints of before forbade begins at 0, should the present ones allow it.
    scores = (np.where(np.isneginf(a), 0.0, a) for a in (tagger.transitions_, tagger.start_, tagger.end_))
    return layout, layout.join(state, Chain(*scores))


def find_transitions(data: Data, n_labels: int) -> NDArray[np.bool_]:
    """Which pairs of labels are neighbours in the data; an unknown label or a set makes no pair."""
    hard, starts = data.tags.hard, data.tokens.starts
    is_pair = (hard[:-1] != UNKNOWN) & (hard[1:] != UNKNOWN)
    inner = starts[1:-1]
    is_pair[inner[(inner > 0) & (inner < len(hard))] - 1] = False
    seen = np.zeros((n_labels, n_labels), bool)
    seen[hard[:-1][is_pair], hard[1:][is_pair]] = True
    return seen


def _refuse_impossible(lists: Nested, data: Data, rules: Chain, tagger: Any) -> None:
    """Refuse labels that the constraints forbid."""
    from .._ops.crf import crf_log_partition

    n = len(tagger.classes_)
    tags = data.tags
    allowed = tags.sets
    if allowed is None:
        allowed = np.zeros((len(tags.hard), n), bool)
        allowed[tags.hard == UNKNOWN] = True
        known = np.flatnonzero(tags.hard != UNKNOWN)
        allowed[known, tags.hard[known]] = True
    scores = crf_log_partition(
        np.zeros((len(tags.hard), n)), **rules.arguments(), indptr=data.tokens.starts, allowed=allowed
    )
    bad = np.flatnonzero(np.isneginf(scores))
    if len(bad):
        raise ValueError(f"y[{bad[0]}] is impossible under constraints={tagger.constraints!r}: {show(lists[bad[0]])}")


def _hold_out(tagger: Any, data: Data) -> tuple[Data, Data]:
    """Sequences for training and for early stopping, each in the order of X."""
    from sklearn.model_selection import train_test_split

    full = np.flatnonzero(np.diff(data.tokens.starts) > 0)
    if len(full) < 2:
        raise ValueError(f"early_stopping needs at least 2 sequences with tokens, got {len(full)}")
    size = max(1, min(len(full) - 1, round(tagger.validation_fraction * len(full))))
    train, held_out = train_test_split(full, test_size=size, random_state=make_random_state(tagger))
    parts = data.take(np.sort(train)), data.take(np.sort(held_out))
    if parts[0].total() == 0 or parts[1].total() == 0:
        raise ValueError("sample_weight is zero for all sequences of training or of early stopping")
    return parts
