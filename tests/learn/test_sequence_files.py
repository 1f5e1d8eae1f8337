"""csoftmax.sequence.CRFTagger: files, copies, and arguments that are refused."""

import copy
import math
import pickle

import numpy as np
import pytest
from helpers.sequences import LABELS, WORDS, make_data
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from csoftmax.sequence import CRFTagger

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


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


def test_clone_copy_and_pickle():
    X, y = make_data(5)
    tagger = CRFTagger().fit(X, y)
    assert clone(tagger).get_params() == tagger.get_params()
    for other in (copy.deepcopy(tagger), pickle.loads(pickle.dumps(tagger))):
        assert other.predict(X) == tagger.predict(X)
    tagger.state_features_.clear()  # a copy
    assert tagger.state_features_
    with pytest.raises(NotFittedError):
        CRFTagger().predict(X)


ONE = [[["a"], ["b"]]], [["X", "Y"]]
HOLDS_ITSELF = {}
HOLDS_ITSELF["a"] = HOLDS_ITSELF
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
    ({}, ([[{"a": 1e39}]], [["X"]]), ValueError, r"X\[0\]\[0\] has a=1e\+39; values are finite"),
    (
        {},
        ([[{"a": 10**5000}]], [["X"]]),
        ValueError,
        r"X\[0\]\[0\] has a, of 16610 bits; values are finite, in float32",
    ),
    ({}, ([[{"a": np.complex64(1j)}]], [["X"]]), TypeError, r"X\[0\]\[0\] has a=1j; a value is"),
    ({}, ([[{"a": HOLDS_ITSELF}]], [["X"]]), ValueError, r"X\[0\]\[0\] holds itself, or is nested too deeply"),
    ({"hashing": 64}, ([[["b"], ["a\ud800"]]], [["X", "Y"]]), ValueError, r"X\[0\]\[1\] has the attribute 'a\\ud800'"),
    ({"hashing": 64}, ([[["b"]], [{"a": {"\udfff": 2}}]], [["X"], ["Y"]]), ValueError, r"X\[1\]\[0\] .* 'a:\\udfff'"),
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
    hashed = CRFTagger(hashing=64).fit(*ONE)
    with pytest.raises(ValueError, match=r"X\[0\]\[0\] has the attribute '\\ud800', with half of a surrogate pair"):
        hashed.predict([[["\ud800"]]])
    with pytest.raises(ValueError, match="has the label 'Q', which is not among the classes"):
        tagger.score(ONE[0], [["X", "Q"]])


def test_one_label_and_many_labels():
    assert CRFTagger().fit([[["a"], ["b"]]], [["X", "X"]]).predict([[["c"]]]) == [["X"]]
    labels = [f"L{i:03}" for i in range(300)]
    X = [[[f"a{i}"]] for i in range(300)]
    tagger = CRFTagger(penalty_l2=1e-6).fit(X, [[c] for c in labels])
    assert tagger.predict(X) == [[c] for c in labels]
