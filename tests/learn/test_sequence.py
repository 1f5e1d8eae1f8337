"""csoftmax.sequence.CRFTagger: its objective, minimum and predictions by enumeration of all label sequences."""

import copy
import itertools
import math
import pickle
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from csoftmax._learn import owlqn
from csoftmax._learn.chain_features import read_token, read_tokens
from csoftmax._learn.chain_pairs import Pairs, Scores
from csoftmax.sequence import CRFTagger, span_transitions

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

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


def test_fit_minimises_the_documented_objective():
    X, y = make_data()
    weight = np.random.default_rng(1).uniform(0.5, 2, len(X))
    tagger = CRFTagger(penalty_l2=1e-2, tol=1e-8, max_epochs=500).fit(X, y, sample_weight=weight)
    assert tagger.history_["loss"][-1] == pytest.approx(objective_of(tagger, X, y, weight), rel=1e-12)
    assert max(abs(slope) for _, slope in slopes(tagger, X, y, weight)) < 1e-8


def test_partial_labels():
    """Unknown labels and sets: the loss of all paths that agree."""
    X, y = make_data(2, count=14)
    rng = np.random.default_rng(2)
    y = [[rng.choice([None, {"D", "N"}, {"V"}, c, c, c]) for c in labels] for labels in y]
    y[0] = [None] * len(y[0])
    tagger = CRFTagger(penalty_l2=1e-2, tol=1e-7, max_epochs=500, states="all").fit(X, y)
    assert tagger.history_["loss"][-1] == pytest.approx(objective_of(tagger, X, y), rel=1e-12)
    assert max(abs(slope) for _, slope in slopes(tagger, X, y)) < 2e-7
    expected = [-loss_of(tagger, *pair) for pair in zip(X, y)]
    np.testing.assert_allclose(tagger.log_likelihood(X, y), expected, rtol=1e-12, atol=1e-14)
    seen = CRFTagger(max_epochs=2).fit([[["a"], ["b"], ["c"]]], [[{"X", "Y"}, None, "Z"]])
    assert set(seen.state_features_) <= {("a", "X"), ("a", "Y"), ("c", "Z")}
    assert seen.state_.nnz == 3


def test_l1_penalty():
    """OWL-QN ends where 0 is in the subdifferential, with weights that are exactly 0."""
    X, y = make_data(3)
    tagger = CRFTagger(penalty_l1=5e-3, penalty_l2=1e-3, tol=1e-8, max_epochs=2000).fit(X, y)
    assert tagger.history_["loss"][-1] == pytest.approx(objective_of(tagger, X, y), rel=1e-12)
    share = np.mean(tagger.state_.data == 0)
    assert 0.2 < share < 0.95
    for weight, slope in slopes(tagger, X, y, step=1e-6):
        if weight:  # the objective is smooth there
            assert abs(slope) < 1e-7
    smooth = copy.copy(tagger)
    smooth.penalty_l1 = 0.0
    for weight, slope in slopes(smooth, X, y):
        if weight == 0:
            assert abs(slope) <= 5e-3 + 1e-7


def test_constraints():
    """Forbidden transitions are impossible in training, in the probabilities and in the predictions."""
    X, _ = make_data(4, count=12)
    y = [["B-P", "I-P", "O", "B-Q"][: len(tokens)] for tokens in X]
    tagger = CRFTagger(constraints="BIO", penalty_l2=1e-2, tol=1e-7, max_epochs=300).fit(X, y)
    transitions, start, _ = span_transitions(tagger.classes_)
    assert (np.isneginf(tagger.transitions_) == np.isneginf(transitions)).all()
    assert (np.isneginf(tagger.start_) == np.isneginf(start)).all()
    assert tagger.history_["loss"][-1] == pytest.approx(objective_of(tagger, X, y), rel=1e-12)
    assert max(abs(slope) for _, slope in slopes(tagger, X, y)) < 1e-7
    for tokens, path in zip(X, tagger.predict(X)):
        assert score_of(tagger, tokens, path) > -np.inf
    assert not any(w == -np.inf for w in tagger.transition_features_.values())
    with pytest.raises(ValueError, match=r"y\[1\] is impossible under constraints='BIO': \['O', 'I-P'\]"):
        CRFTagger(constraints="BIO").fit([[["a"]], [["a"], ["b"]]], [["O"], ["O", "I-P"]])


@pytest.fixture(scope="module")
def fitted():
    X, y = make_data(5)
    return CRFTagger(penalty_l2=1e-2).fit(X, y), X, y


def test_predictions_are_those_of_enumeration(fitted):
    tagger, X, y = fitted
    found, likelihood = tagger.predict(X), tagger.log_likelihood(X, y)
    best, marginals = tagger.predict_n_best(X, 5), tagger.predict_proba(X)
    dicts = tagger.predict_marginals(X)
    for i, tokens in enumerate(X):
        scores = all_paths(tagger, tokens)
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
        assert tuple(found[i]) == ranked[0]
        assert [tuple(path) for path in best[i]] == ranked[:5]
        assert likelihood[i] == pytest.approx(-loss_of(tagger, tokens, y[i]), rel=1e-12)
        top = scores[ranked[0]]
        total = math.fsum(math.exp(s - top) for s in scores.values())
        for t in range(len(tokens)):
            for j, c in enumerate(tagger.classes_.tolist()):
                mass = math.fsum(math.exp(s - top) for path, s in scores.items() if path[t] == c)
                assert marginals[i][t, j] == pytest.approx(mass / total, rel=1e-12)
                assert dicts[i][t][c] == marginals[i][t, j]
    right = [a == b for labels in zip(found, y) for a, b in zip(*labels)]
    assert tagger.score(X, y) == np.mean(right) > 0.7
    hidden = [[None if t % 2 else c for t, c in enumerate(labels)] for labels in y]
    right = [a == b for labels in zip(found, hidden) for a, b in zip(*labels) if b is not None]
    assert tagger.score(X, hidden) == np.mean(right)
    widest = [[set(LABELS) if c is None else {c} for c in labels] for labels in hidden]
    assert tagger.score(X, widest) == np.mean(right)


def test_unknown_attributes_and_empty_sequences(fitted):
    tagger, X, _ = fitted
    assert tagger.predict([]) == tagger.predict_proba([]) == tagger.predict_n_best([], 2) == []
    assert tagger.predict([[], X[0], []]) == [[], tagger.predict(X[:1])[0], []]
    assert tagger.predict_n_best([[], X[0]], 2)[0] == [[]]
    assert [p.shape for p in tagger.predict_proba([[], X[0]])] == [(0, 3), (len(X[0]), 3)]
    assert tagger.log_likelihood([[]], [[]]).tolist() == [0.0]
    with_new = [[{**token, "new": "thing"} for token in tokens] for tokens in X]
    for a, b in zip(tagger.predict_proba(with_new), tagger.predict_proba(X)):
        np.testing.assert_array_equal(a, b)
    assert np.isnan(tagger.score([[]], [[]]))


def test_blocks_of_sequences_give_the_bits_of_one(fitted, monkeypatch):
    tagger, X, y = fitted
    whole = tagger.predict_proba(X), tagger.log_likelihood(X, y), tagger.predict(X)
    monkeypatch.setattr("csoftmax._learn.chain_predict.BLOCK_TOKENS", 5)
    for a, b in zip(tagger.predict_proba(X), whole[0]):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(tagger.log_likelihood(X, y), whole[1])
    assert tagger.predict(X) == whole[2]


# Features


def test_attributes_are_those_of_crfsuite():
    token = {
        "a": 1.5, "b": "x", "c": True, "d": False, "e": ["p", "q"], "f": {"g": 2, "h": {"i": "j"}}, "s": {"u"},
        "n": np.float32(0.5), "k": 3,
    }  # fmt: skip
    names, values = read_token(token, "X[0][0]")
    expected = {"a": 1.5, "b:x": 1, "c": 1, "e:p": 1, "e:q": 1, "f:g": 2, "f:h:i:j": 1, "s:u": 1, "n": 0.5, "k": 3}
    assert dict(zip(names, values)) == expected
    assert read_token(["a", "b", "a"], "") == (["a", "b", "a"], None)
    assert read_token({"a": "b", "c": True}, "") == (["a:b", "c"], None)
    crfsuite = pytest.importorskip("pycrfsuite", reason="the values above are its documented rules")
    given = {**token, "n": 0.5}
    assert {k: v for k, v in crfsuite.ItemSequence([given]).items()[0].items() if v} == expected


@pytest.mark.parametrize("n_labels", [1, 2, 5, 8, 9, 27, 33, 70])
@pytest.mark.parametrize("has_values", [False, True])
def test_kernels_equal_dense_products(n_labels, has_values, isa, seven_threads):
    """Emissions and gradients, with rows and single labels, against long double, on any number of threads."""
    rng = np.random.default_rng(n_labels)
    tokens, columns = 211, 97
    x = (rng.random((tokens, columns)) < 0.1) * (rng.normal(size=(tokens, columns)) if has_values else 1.0)
    x = x.astype(np.float32)
    x[:, 0] = 1  # in every token
    density = np.repeat(rng.random(columns) ** 3, n_labels)
    keys = np.flatnonzero(rng.random(columns * n_labels) < density)
    pairs = Pairs.from_keys(keys, columns, n_labels)
    w = np.zeros(columns * n_labels)
    w[keys] = rng.normal(size=len(keys))
    grad = rng.normal(size=(tokens, n_labels))
    results = []
    for threads in (1, 2, 7):
        scores = Scores(read_tokens((x, [tokens]), None), pairs, threads, gradient=True)
        emissions = scores.compute(w[keys]).copy()
        scores.emissions[...] = grad
        scores.memory[tokens * n_labels :] = np.nan  # what follows is read, and must not reach a result
        result = np.full(len(keys), np.nan)
        scores.differentiate(result)
        results.append((emissions, result))
    wide, matrix = x.astype(np.longdouble), w.reshape(columns, n_labels).astype(np.longdouble)
    bound = 2.0**-52 * (x != 0).sum(1, keepdims=True)
    assert (np.abs(results[0][0] - wide @ matrix) <= bound * (abs(wide) @ abs(matrix)) + 1e-300).all()
    exact, size = (wide.T @ grad).ravel()[keys], (abs(wide).T @ abs(grad)).ravel()[keys]
    assert (np.abs(results[0][1] - exact) <= 2.0**-52 * tokens * size + 1e-300).all()
    for emissions, result in results[1:]:
        np.testing.assert_array_equal(emissions, results[0][0])
        np.testing.assert_array_equal(result, results[0][1])
    first = BITS.setdefault((n_labels, has_values), results[0])
    np.testing.assert_array_equal(first[0], results[0][0])
    np.testing.assert_array_equal(first[1], results[0][1])


BITS = {}  # of the first instruction set; the others must equal them


def test_token_with_more_attributes_than_a_chunk():
    names = [f"a{i}" for i in range(300)]
    tagger = CRFTagger(max_epochs=3, states="all").fit([[names, ["b"]]], [["X", "Y"]])
    assert tagger.predict([[names, ["b"]]]) == [["X", "Y"]]


def test_matrices_lists_and_pairs_are_one_thing():
    X, y = make_data(6)
    named = CRFTagger(penalty_l2=1e-2).fit(X, y)
    lists = []
    for tokens in X:
        m = np.zeros((len(tokens), named.n_features_in_))
        for t, token in enumerate(tokens):
            for name, value in attributes_of(token).items():
                m[t, named.vocabulary_[name]] = value
        lists.append(m)
    lengths = [len(m) for m in lists]
    stacked = np.vstack(lists)
    flat = [c for labels in y for c in labels]
    for given, labels in (
        (lists, y),
        ([sparse.csr_matrix(m) for m in lists], y),
        ((stacked, lengths), y),
        ((sparse.csr_array(stacked), np.array(lengths)), flat),
        ((sparse.coo_matrix(stacked), lengths), np.array(flat)),
    ):
        tagger = CRFTagger(penalty_l2=1e-2).fit(given, labels)
        np.testing.assert_allclose(tagger.state_.toarray(), named.state_.toarray(), rtol=1e-6, atol=1e-9)
        assert tagger.vocabulary_ is None
        assert tagger.predict(given) == named.predict(X)
        assert tagger.score(given, labels) == named.score(X, y)
    assert ((0, "D") in tagger.state_features_) == (tagger.state_[0, 0] != 0)
    with pytest.raises(ValueError, match="X has 3 columns, but the model was fitted with"):
        tagger.predict([np.ones((2, 3))])
    with pytest.raises(TypeError, match="names of attributes, but the model was fitted on matrices"):
        tagger.predict([[["a"]]])


def test_hashing():
    """Without collisions hashing gives the model of a vocabulary; names of attributes are not kept."""
    X, y = make_data(7)
    named, hashed = (CRFTagger(penalty_l2=1e-2, hashing=h).fit(X, y) for h in (None, 2**20))
    assert hashed.vocabulary_ is None
    assert hashed.state_.shape == (2**20, 3)
    assert hashed.history_["loss"][-1] == pytest.approx(named.history_["loss"][-1], rel=1e-6)
    for a, b in zip(hashed.predict_proba(X), named.predict_proba(X)):
        np.testing.assert_allclose(a, b, atol=1e-4)
    with pytest.raises(AttributeError, match="state_features_ needs names of attributes"):
        _ = hashed.state_features_
    few = CRFTagger(hashing=4).fit(X, y)
    assert few.state_.shape == (4, 3)
    assert few.predict([[], X[0]])[0] == []
    assert few.predict([[], []]) == [[], []]


def test_min_count():
    X = [[["a", "b"], ["a"]], [["a", "c"]], [["c"]]]
    tagger = CRFTagger(min_count=2, max_epochs=5).fit(X, [["X", "Y"], ["X"], ["Y"]])
    assert sorted(tagger.vocabulary_) == ["a", "c"]
    assert sorted(tagger.vocabulary_.values()) == [0, 1]
    hashed = CRFTagger(min_count=2, max_epochs=5, hashing=2**10).fit(X, [["X", "Y"], ["X"], ["Y"]])
    np.testing.assert_allclose(np.sort(hashed.state_.data), np.sort(tagger.state_.data), rtol=1e-9)


def test_which_weights_there_are():
    X, y = make_data(8)
    seen = CRFTagger(max_epochs=3).fit(X, y)
    pairs = {
        (a, c) for tokens, labels in zip(X, y) for t, c in zip(tokens, labels) for a, v in attributes_of(t).items() if v
    }
    assert seen.state_.nnz == len(pairs)
    assert set(seen.state_features_) <= pairs
    every = CRFTagger(max_epochs=3, states="all").fit(X, y)
    assert every.state_.nnz == 3 * every.n_features_in_
    short = [["D", "N"], ["N"], ["V", "V"]]
    few = CRFTagger(max_epochs=3, transitions="seen", fit_ends=False).fit([[["a"]] * len(s) for s in short], short)
    assert set(few.transition_features_) == {("D", "N"), ("V", "V")}
    assert not few.start_.any()
    assert not few.end_.any()


def test_results_do_not_depend_on_threads(seven_threads):
    X, y = make_data(9, count=300)
    for options in ({}, {"penalty_l1": 1e-3}, {"solver": "adamw", "random_state": 0}):
        taggers = [CRFTagger(num_threads=n, max_epochs=5, **options).fit(X, y) for n in (1, 2, 7)]
        for tagger in taggers[1:]:
            np.testing.assert_array_equal(tagger.state_.data, taggers[0].state_.data)
            np.testing.assert_array_equal(tagger.transitions_, taggers[0].transitions_)


# Training


@pytest.mark.parametrize(("c1", "c2"), [(0.0, 0.5), (0.7, 0.3)])
def test_minimum_of_crfsuite(c1, c2, tmp_path):
    """The same objective, minimum and predictions; without the package the tests by enumeration remain."""
    crfsuite = pytest.importorskip("pycrfsuite", reason="compares with python-crfsuite")
    X, y = make_data(10, count=150, longest=8)
    trainer = crfsuite.Trainer(verbose=False)
    for tokens, labels in zip(X, y):
        trainer.append(crfsuite.ItemSequence(tokens), labels)
    trainer.set_params({"c1": c1, "c2": c2, "max_iterations": 5000, "epsilon": 1e-9, "delta": 1e-15})
    trainer.train(str(tmp_path / "model"))
    peer = crfsuite.Tagger()
    peer.open(str(tmp_path / "model"))
    tagger = CRFTagger(
        penalty_l1=c1 / 150, penalty_l2=2 * c2 / 150, transitions="seen", fit_ends=False, tol=1e-9, max_epochs=5000
    ).fit(X, y)
    theirs = peer.info()
    other = copy.deepcopy(tagger)
    names = sorted(other.vocabulary_, key=other.vocabulary_.__getitem__)
    coo = other.state_.tocoo()
    other.state_.data[:] = [
        theirs.state_features.get((names[a], LABELS[j]), 0.0) for a, j in zip(coo.row.tolist(), coo.col.tolist())
    ]
    other.transitions_[:] = 0
    for (a, b), weight in theirs.transitions.items():
        other.transitions_[LABELS.index(a), LABELS.index(b)] = weight

    def objective(model):
        w = np.concatenate([model.state_.data, model.transitions_.ravel()])
        return -model.log_likelihood(X, y).sum() + c2 * (w @ w) + c1 * np.abs(w).sum()

    limit = 1e-5 if c1 else 2e-6
    assert objective(tagger) <= objective(other) * (1 + limit)
    assert objective(tagger) >= objective(other) * (1 - limit)
    assert tagger.predict(X) == [peer.tag(tokens) for tokens in X]


def reference_adamw(evaluate, w, steps, rate, penalty):
    """AdamW as published."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(1, steps + 1):
        g = evaluate(w)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w * (1 - rate * penalty) - rate * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def test_partial_fit_is_adamw():
    X, y = make_data(11)
    tagger = CRFTagger(solver="adamw", penalty_l2=0.1, learning_rate=0.05)
    for _ in range(7):
        tagger.partial_fit(X, y, classes=LABELS)
    assert tagger.n_iter_ == len(tagger.history_["loss"]) == 7

    from csoftmax._learn.chain_objective import ChainObjective
    from csoftmax._learn.chain_parameters import prepare

    problem = prepare(CRFTagger(), X, y, None)
    objective = ChainObjective(problem.data, problem.layout, 1)
    w = reference_adamw(lambda w: objective.evaluate(w)[1], problem.start, 7, 0.05, 0.1)
    state, transitions, start, end = problem.layout.split(w)
    np.testing.assert_allclose(tagger.state_.data, state, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(tagger.transitions_.ravel(), transitions, rtol=1e-9)
    np.testing.assert_allclose(tagger.start_, start, rtol=1e-9)
    np.testing.assert_allclose(tagger.end_, end, rtol=1e-9)


def test_partial_fit_grows_and_decays():
    """New attributes get weights when they occur; those of attributes that do not occur only decay."""
    tagger = CRFTagger(solver="adamw", penalty_l2=0.5, learning_rate=0.1)
    tagger.partial_fit([[["a"], ["b"]]], [["X", "Y"]], classes=["X", "Y", "Z"])
    before = tagger.state_features_["a", "X"]
    for _ in range(3):
        tagger.partial_fit([[["c"]]], [["Z"]])
    assert tagger.vocabulary_ == {"a": 0, "b": 1, "c": 2}
    assert tagger.state_features_["a", "X"] == pytest.approx(before * 0.95**3, rel=1e-14)
    assert tagger.predict([[["c"]]]) == [["Z"]]
    with pytest.raises(ValueError, match=r"classes are .*'Q'.*but were"):
        tagger.partial_fit([[["c"]]], [["Z"]], classes=["X", "Q"])
    with pytest.raises(ValueError, match="has the label 'W', which is not among the classes"):
        tagger.partial_fit([[["d"]]], [["W"]])
    assert "d" not in tagger.vocabulary_  # the state of before
    assert pickle.loads(pickle.dumps(tagger)).partial_fit([[["c"]]], [["Z"]]).n_iter_ == 5


def test_adamw_approaches_the_minimum():
    X, y = make_data(12, count=60)
    exact = CRFTagger(penalty_l2=1e-3, max_epochs=500).fit(X, y)
    near = CRFTagger(
        solver="adamw", penalty_l2=1e-4, batch_size=8, learning_rate=0.05, max_epochs=80, random_state=0
    ).fit(X, y)
    assert near.score(X, y) >= exact.score(X, y) - 0.03
    assert near.log_likelihood(X, y).mean() > 1.1 * exact.log_likelihood(X, y).mean()
    again = CRFTagger(
        solver="adamw", penalty_l2=1e-4, batch_size=8, learning_rate=0.05, max_epochs=80, random_state=0
    ).fit(X, y)
    np.testing.assert_array_equal(near.state_.data, again.state_.data)


def test_adamw_that_diverges_keeps_finite_weights():
    X, y = make_data(13)
    tagger = CRFTagger(solver="adamw", learning_rate=1e200, max_epochs=5, random_state=0)
    with pytest.warns(ConvergenceWarning, match="adamw has diverged.*learning_rate=1e\\+200"):
        tagger.fit(X, y)
    assert np.isfinite(tagger.state_.data).all()


def test_warm_start():
    X, y = make_data(14)
    tagger = CRFTagger(penalty_l2=1e-2, warm_start=True, tol=1e-7, max_epochs=500).fit(X, y)
    first = tagger.history_["loss"][-1]
    tagger.fit(X, y)
    assert tagger.n_iter_ <= 1
    assert tagger.history_["loss"][-1] <= first
    tagger.fit([*X, [["new"]]], [*y, ["V"]])
    assert ("new", "V") in tagger.state_features_
    cold = CRFTagger(penalty_l2=1e-2, tol=1e-7, max_epochs=500).fit([*X, [["new"]]], [*y, ["V"]])
    np.testing.assert_allclose(tagger.state_.data, cold.state_.data, atol=1e-4)


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_early_stopping(solver):
    X, y = make_data(15, count=60)
    tagger = CRFTagger(
        solver=solver,
        penalty_l2=0.0,
        early_stopping=True,
        patience=3,
        max_epochs=200,
        random_state=0,
        validation_fraction=0.3,
    ).fit(X, y)
    losses = tagger.history_["validation_loss"]
    assert len(losses) == tagger.n_iter_ < 200
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    again = CRFTagger(
        solver=solver, penalty_l2=0.0, early_stopping=True, patience=3, random_state=0, validation_fraction=0.3,
        max_epochs=int(np.argmin(losses)) + 1,
    ).fit(X, y)  # fmt: skip
    np.testing.assert_array_equal(again.state_.data, tagger.state_.data)


def test_callbacks_and_checkpoints(tmp_path):
    X, y = make_data(16)
    seen = []

    def callback(model, record):
        seen.append((record["epoch"], record["loss"], model.state_.data))
        model.save(tmp_path / "tagger")
        return record["epoch"] == 4

    tagger = CRFTagger(callbacks=[callback, "progress"]).fit(X, y)
    assert [s[0] for s in seen] == [1, 2, 3, 4]
    assert [s[1] for s in seen] == tagger.history_["loss"]
    np.testing.assert_array_equal(seen[-1][2], tagger.state_.data)
    assert not np.array_equal(seen[0][2], seen[-1][2])
    loaded = CRFTagger.load(tmp_path / "tagger")
    assert loaded.n_iter_ == 4
    assert loaded.predict(X) == tagger.predict(X)
    assert [p.name for p in tmp_path.iterdir()] == ["tagger"]


KILLED = """
import os, signal, sys
from csoftmax._learn import store
from csoftmax.sequence import CRFTagger
saves, replace = [], os.replace

def kill_in_the_third_save(*paths):
    saves.append(1)
    if len(saves) == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # the new file is written, the old one not yet replaced
    replace(*paths)

store.os.replace = kill_in_the_third_save
X = [[["a"], ["b"]], [["b"], ["c"], ["a"]]] * 5
y = [["X", "Y"], ["Y", "Z", "X"]] * 5
CRFTagger(callbacks=lambda model, record: model.save(sys.argv[1]), tol=1e-15).fit(X, y)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="processes are killed by signals")
def test_killed_training_leaves_the_last_whole_file(tmp_path):
    end = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "tagger")], capture_output=True, timeout=120)
    assert end.returncode == -signal.SIGKILL, end.stderr
    loaded = CRFTagger.load(tmp_path / "tagger")
    assert loaded.n_iter_ == 2
    assert loaded.predict([[["a"], ["b"]]])


def test_ctrl_c_ends_a_fit():
    X, y = make_data(17)

    def interrupt(model, record):
        signal.raise_signal(signal.SIGINT)

    tagger = CRFTagger(callbacks=interrupt)
    with pytest.raises(KeyboardInterrupt):
        tagger.fit(X, y)
    tagger.callbacks = None
    assert tagger.fit(X, y).predict(X[:1])


def test_fit_that_is_interrupted_before_its_first_weights_leaves_the_earlier_one(monkeypatch):
    X, y = make_data(17)
    tagger = CRFTagger(warm_start=True, max_epochs=3).fit(X, y)
    expected = tagger.predict_proba(X)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("csoftmax._learn.chain_objective.ChainObjective.evaluate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tagger.fit([*X, [["new"]]], [*y, ["D"]])
    assert "new" not in tagger.vocabulary_
    for a, b in zip(tagger.predict_proba(X), expected):
        np.testing.assert_array_equal(a, b)


def test_indices_that_do_not_fit_are_refused():
    """The kernels trust the indices of sparse matrices, which anyone can change."""
    X, y = make_data(17)
    tagger = CRFTagger(max_epochs=3).fit(X, y)
    tagger.vocabulary_["beyond"] = 10**6
    with pytest.raises(ValueError, match="but the model has weights of"):
        tagger.predict([[["beyond"]]])
    matrix = sparse.csr_array(np.eye(3))
    matrix.indices[1] = 77
    with pytest.raises(ValueError, match=r"indices|index"):
        CRFTagger().fit((matrix, [3]), [["a", "b", "a"]])
    del tagger.vocabulary_["beyond"]
    tagger.state_.indices[0] = 50
    with pytest.raises(ValueError, match=r"indices|index"):
        pickle.loads(pickle.dumps(tagger)).predict(X)


def compute_for_long(scores):
    for _ in range(200):
        scores.compute(np.ones(len(scores.pairs)))
        scores.differentiate(np.empty(len(scores.pairs)))


def test_ctrl_c_within_the_kernels():
    """A signal that arrives while the kernels run is seen there."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("this system has no timers that send signals")
    columns = np.random.default_rng(0).integers(0, 5000, 4_000_000)
    x = sparse.csr_array((np.ones(len(columns)), columns, np.arange(0, len(columns) + 1, 20)), (200_000, 5000))
    pairs = Pairs.from_keys(np.arange(5000 * 60, dtype=np.int64), 5000, 60)
    scores = Scores(read_tokens((x, [200_000]), None), pairs, 1, gradient=True)
    before = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            compute_for_long(scores)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_warnings():
    X, y = make_data(18)
    with pytest.warns(ConvergenceWarning, match="has not converged in 2 iterations, max_epochs=2"):
        CRFTagger(max_epochs=2).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CRFTagger(max_epochs=1000).fit(X, y)


def test_owlqn_against_the_closed_form():
    """Separable quadratics have a closed form: soft thresholds."""
    rng = np.random.default_rng(0)
    curvature, b, penalty = rng.uniform(0.1, 10, 50), rng.normal(size=50), rng.uniform(0, 1, 50)

    def evaluate(w):
        return float(w @ (curvature * w) / 2 - b @ w), curvature * w - b

    def ends(step):
        return float(np.abs(step.pseudo).max()) < 1e-11

    end = owlqn.minimize(evaluate, np.zeros(50), penalty=penalty, max_iterations=500, after_iteration=ends)
    expected = np.sign(b) * np.maximum(np.abs(b) - penalty, 0) / curvature
    np.testing.assert_allclose(end.w, expected, atol=1e-7)  # differences of the objective vanish in rounding there
    np.testing.assert_array_equal(end.w == 0, expected == 0)


# Files and scikit-learn


@pytest.mark.parametrize("labels", [["D", "N", "V"], [3, 1, 2], [True, False, True]])
@pytest.mark.parametrize("kind", ["names", "hashing", "matrices"])
def test_save_and_load(labels, kind, tmp_path):
    X, y = make_data(19)
    y = [[labels[LABELS.index(c)] for c in s] for s in y]
    if kind == "matrices":
        X = [np.array([[len(t["w"]), 1.0, WORDS.index(t["w"])] for t in s]) for s in X]
    else:
        X[0][0]["é\ud800"] = "漢字"
    options = {"hashing": 2**12} if kind == "hashing" else {}
    tagger = CRFTagger(max_epochs=10, **options)
    if kind == "hashing":
        X[0][0].pop("é\ud800")  # the hasher takes what UTF-8 can encode
    tagger.fit(X, y)
    tagger.save(tmp_path / "a")
    loaded = CRFTagger.load(tmp_path / "a")
    assert loaded.get_params() == tagger.get_params()
    assert loaded.vocabulary_ == tagger.vocabulary_
    assert loaded.classes_.tolist() == tagger.classes_.tolist()
    assert loaded.history_.keys() == tagger.history_.keys()
    for a, b in zip(loaded.predict_proba(X), tagger.predict_proba(X)):
        np.testing.assert_array_equal(a, b)
    loaded.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert CRFTagger.load(tmp_path / "a", mmap=True).predict(X) == tagger.predict(X)
    assert b"pickle" not in (tmp_path / "a").read_bytes()


def test_damaged_files(tmp_path):
    X, y = make_data(20)
    CRFTagger(max_epochs=3).fit(X, y).save(tmp_path / "a")
    data = bytearray((tmp_path / "a").read_bytes())
    for place in range(0, len(data), 97):
        data[place] ^= 4
        (tmp_path / "b").write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            CRFTagger.load(tmp_path / "b")
        data[place] ^= 4
    from csoftmax.linear_model import SoftmaxRegression

    SoftmaxRegression().fit([[0.0], [1.0]], [0, 1]).save(tmp_path / "c")
    with pytest.raises(ValueError, match="it is a 'SoftmaxRegression', not a CRFTagger"):
        CRFTagger.load(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="file not found"):
        CRFTagger.load(tmp_path / "d")


def test_forged_files(tmp_path):
    """Arrays that do not fit each other are refused, also where the checksums are right."""
    from csoftmax._learn import store

    X, y = make_data(21)
    CRFTagger(max_epochs=3).fit(X, y).save(tmp_path / "a")
    arrays, header = store.read(tmp_path / "a", "CRFTagger")
    del header["format"], header["version"], header["class"]
    forged = [
        {"state_labels": arrays["state_labels"] + np.uint16(9)},
        {"state_labels": arrays["state_labels"][::-1].copy()},
        {"state_labels": arrays["state_labels"].astype(np.int64)},
        {"state_offsets": arrays["state_offsets"][::-1].copy()},
        {"state_offsets": arrays["state_offsets"][:-1].copy()},
        {"state": arrays["state"].astype(np.float32)},
        {"transitions": np.zeros((2, 2))},
        {"start": np.zeros(5)},
        {"vocabulary_offsets": arrays["vocabulary_offsets"] * 2},
    ]
    for change in forged:
        store.write(tmp_path / "b", "CRFTagger", {**arrays, **change}, header)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            CRFTagger.load(tmp_path / "b")
    store.write(tmp_path / "b", "CRFTagger", arrays, header)
    assert CRFTagger.load(tmp_path / "b").predict(X)


def test_clone_copy_and_pickle(fitted):
    tagger, X, _ = fitted
    assert clone(tagger).get_params() == tagger.get_params()
    for other in (copy.deepcopy(tagger), pickle.loads(pickle.dumps(tagger))):
        assert other.predict(X) == tagger.predict(X)
    tagger.state_features_.clear()  # a copy
    assert tagger.state_features_
    with pytest.raises(NotFittedError):
        CRFTagger().predict(X)


ONE = [[["a"], ["b"]]], [["X", "Y"]]
REFUSED = [
    ({"solver": "sgd"}, ONE, ValueError, "solver must be one of 'lbfgs', 'adamw', got 'sgd'"),
    ({"states": "some"}, ONE, ValueError, "states must be one of 'seen', 'all', got 'some'"),
    ({"penalty_l2": -1.0}, ONE, ValueError, r"penalty_l2 must be in \[0, inf\), got -1.0"),
    ({"penalty_l1": 0.1, "solver": "adamw"}, ONE, ValueError, "penalty_l1=0.1 needs solver='lbfgs'"),
    ({"hashing": 0}, ONE, ValueError, r"hashing must be in \[1, 2147483647\], got 0"),
    ({"min_count": 1.5}, ONE, TypeError, "min_count must be an int, got 1.5"),
    ({"constraints": "IOB"}, ONE, ValueError, "constraints must be None or one of 'BIO', .*got 'IOB'"),
    ({"fit_ends": 1}, ONE, TypeError, "fit_ends must be True or False, got 1"),
    ({}, ([[["a"]]], [["X", "Y"]]), ValueError, r"y\[0\] has 2 labels, X\[0\] has 1 tokens"),
    ({}, ([[["a"]]], [["X"], ["Y"]]), ValueError, "y has 2 sequences, X has 1"),
    ({}, ([[["a"]]], [[set()]]), ValueError, r"y\[0\]\[0\] is an empty set|must have 1 to"),
    ({}, ([[["a"], ["b"]]], [["X", set()]]), ValueError, r"y\[0\]\[1\] is an empty set"),
    ({}, ([[["a"], ["b"]]], [["X", 1]]), TypeError, "y mixes labels of different kinds"),
    ({}, ([[["a"]]], [[1.5]]), TypeError, "y has the label 1.5; labels are strings, integers or bools"),
    ({}, ([[["a"]]], [[None]]), ValueError, "y must have 1 to 65536 different labels, got 0"),
    ({}, ([["ab"]], [["X"]]), TypeError, r"X\[0\]\[0\] is 'ab'; a token is a dict, or a list or set of strings"),
    ({}, ([[[1]]], [["X"]]), TypeError, r"X\[0\]\[0\] has the attribute 1; attributes of a list are strings"),
    ({}, ([[{"a": None}]], [["X"]]), TypeError, r"X\[0\]\[0\] has a=None; a value is"),
    ({}, ([[{"a": math.nan}]], [["X"]]), ValueError, r"X\[0\]\[0\] has a=nan; values are finite"),
    ({}, ([[{1: "a"}]], [["X"]]), TypeError, r"X\[0\]\[0\] has the key 1; keys are strings"),
    ({}, ("abc", [["X"]]), TypeError, "X must be a list of sequences"),
    ({}, ([], []), ValueError, "y must have 1 to|there is nothing to learn"),
    ({}, ((np.ones((2, 2)), [1]), [["X"]]), ValueError, "lengths must be at least 0 and add up to 2"),
    ({}, ([np.full((1, 1), np.inf)], [["X"]]), ValueError, "X must be finite"),
    ({}, ([np.ones((1, 1)), np.ones((1, 2))], [["X"], ["X"]]), ValueError, "different numbers of columns"),
    ({"early_stopping": True}, ONE, ValueError, "early_stopping needs at least 2 sequences with tokens, got 1"),
]


@pytest.mark.parametrize(("options", "data", "kind", "message"), REFUSED)
def test_refused(options, data, kind, message):
    tagger = CRFTagger(**options)
    before = dict(tagger.__dict__)
    with pytest.raises(kind, match=message):
        tagger.fit(*data)
    assert tagger.__dict__ == before


def test_refused_weights_and_calls():
    for weight, message in (([1.0, 2.0], "has shape"), ([-1.0], r"sample_weight\[0\] is -1.0"), ([0.0], "nothing")):
        with pytest.raises(ValueError, match=message):
            CRFTagger().fit(*ONE, sample_weight=weight)
    with pytest.raises(ValueError, match="partial_fit needs solver='adamw', got 'lbfgs'"):
        CRFTagger().partial_fit(*ONE, classes=["X", "Y"])
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        CRFTagger(solver="adamw").partial_fit(*ONE)
    tagger = CRFTagger().fit(*ONE)
    with pytest.raises(ValueError, match=r"n must be at least 1"):
        tagger.predict_n_best(ONE[0], 0)
    with pytest.raises(ValueError, match="has the label 'Q', which is not among the classes"):
        tagger.score(ONE[0], [["X", "Q"]])


def test_one_label_and_many_labels():
    assert CRFTagger().fit([[["a"], ["b"]]], [["X", "X"]]).predict([[["c"]]]) == [["X"]]
    labels = [f"L{i:03}" for i in range(300)]
    X = [[[f"a{i}"]] for i in range(300)]
    tagger = CRFTagger(penalty_l2=1e-6).fit(X, [[c] for c in labels])
    assert tagger.predict(X) == [[c] for c in labels]
