"""csoftmax.sequence.CRFTagger: its objective, features and predictions by enumeration of all label sequences."""

import copy
import math

import numpy as np
import pytest
from helpers.sequences import LABELS, all_paths, attributes_of, loss_of, make_data, objective_of, score_of, slopes
from scipy import sparse

from csoftmax._learn.chain_features import read_token, read_tokens
from csoftmax._learn.chain_pairs import Pairs, Scores
from csoftmax.sequence import CRFTagger, span_transitions

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


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
    X, y = make_data(3, count=14)
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
    X, _ = make_data(4, count=6)
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
