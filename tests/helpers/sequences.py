"""Small sequences with labels, and what a tagger computes for them by enumeration of all sequences of labels."""

import itertools
import math

import numpy as np

WORDS = ["the", "a", "cat", "dog", "runs", "sees", "big", "red", "Kim", "Lee"]
LABELS = ["D", "N", "V"]


def make_data(seed=0, count=20, longest=4):
    """Random sentences with labels that depend on the words and on each other."""
    rng = np.random.default_rng(seed)
    X, y = [], []
    for _ in range(count):
        words = rng.choice(WORDS, rng.integers(1, longest + 1)).tolist()
        tokens = [
            {"w": w, "upper": w[0].isupper(), "length": len(w) / 4, "near": {"before": words[i - 1] if i else "-"}}
            for i, w in enumerate(words)
        ]
        X.append(tokens)
        y.append([LABELS[(WORDS.index(w) + (rng.random() < 0.2)) % 3] for w in words])
    return X, y


def attributes_of(token):
    """Names and values by the rules of the documentation, written a second time."""
    result = {}
    for key, value in token.items():
        if isinstance(value, str):
            result[f"{key}:{value}"] = 1.0
        elif isinstance(value, dict):
            result |= {f"{key}:{k}": v for k, v in attributes_of(value).items()}
        else:
            result[key] = float(np.float32(value))
    return result


def score_of(tagger, tokens, path):
    """Score of one path, from the fitted dicts and ends."""
    index = {c: i for i, c in enumerate(tagger.classes_.tolist())}
    state = tagger.state_features_
    terms = [v * state.get((a, c), 0.0) for token, c in zip(tokens, path) for a, v in attributes_of(token).items()]
    terms += [tagger.transitions_[index[a], index[b]] for a, b in itertools.pairwise(path)]
    terms += [tagger.start_[index[path[0]]], tagger.end_[index[path[-1]]]]
    return math.fsum(terms)


def all_paths(tagger, tokens):
    """Scores of all paths by path."""
    return {
        path: score_of(tagger, tokens, path) for path in itertools.product(tagger.classes_.tolist(), repeat=len(tokens))
    }


def agrees(path, labels):
    return all(g is None or c == g or (isinstance(g, set) and c in g) for c, g in zip(path, labels))


def loss_of(tagger, tokens, labels):
    scores = all_paths(tagger, tokens)
    top = max(scores.values())
    total = math.fsum(math.exp(s - top) for s in scores.values())
    right = math.fsum(math.exp(s - top) for path, s in scores.items() if agrees(path, labels))
    return math.log(total / right)


def objective_of(tagger, X, y, weight=None):
    """The documented objective at the fitted weights."""
    weight = np.ones(len(X)) if weight is None else weight
    loss = math.fsum(w * loss_of(tagger, *pair) for w, *pair in zip(weight, X, y)) / math.fsum(weight)
    w = np.concatenate([tagger.state_.data, *(p[np.isfinite(p)] for p in parameters(tagger))])
    return loss + tagger.penalty_l2 / 2 * float(w @ w) + tagger.penalty_l1 * float(np.abs(w).sum())


def parameters(tagger):
    return tagger.transitions_, tagger.start_, tagger.end_


def slopes(tagger, X, y, weight=None, step=1e-5):
    """Derivatives of the objective by weights, by central differences: some of the pairs, all others."""
    arrays = [(tagger.state_.data, i) for i in range(0, tagger.state_.nnz, 7)]
    arrays += [(p, i) for p in parameters(tagger) for i in np.argwhere(np.isfinite(p)).tolist()]
    for array, i in arrays:
        i = tuple(i) if isinstance(i, list) else i
        kept = array[i]
        values = []
        for shift in (step, -step):
            array[i] = kept + shift
            values.append(objective_of(tagger, X, y, weight))
        array[i] = kept
        yield kept, (values[0] - values[1]) / (2 * step)
