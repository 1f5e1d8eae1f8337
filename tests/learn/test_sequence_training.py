"""csoftmax.sequence.CRFTagger: minima, steps, early stopping, callbacks, interrupts."""

import copy
import pickle
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers.sequences import LABELS, make_data
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning

from csoftmax._learn import owlqn
from csoftmax._learn.chain_features import read_tokens
from csoftmax._learn.chain_pairs import Pairs, Scores
from csoftmax.sequence import CRFTagger, span_f1

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


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


def test_constraints_that_are_lifted():
    """A warm start begins at 0 where constraints of before forbade, whatever the solver."""
    X, y = [[["a"], ["b"]], [["c"]]], [["B", "I"], ["O"]]
    for solver in ("lbfgs", "adamw"):
        tagger = CRFTagger(constraints="BIO", warm_start=True, solver=solver, max_epochs=20).fit(X, y)
        assert np.isneginf(tagger.start_).any()
        tagger.set_params(constraints=None).fit([[["a"], ["b"]], [["b"]]], [["B", "I"], ["I"]])
        assert np.isfinite(tagger.history_["loss"]).all()
        assert np.isfinite(tagger.start_).all()


def test_no_possible_labels():
    tagger = CRFTagger(constraints="BIOES").fit([[["a"], ["b"]]], [["B-X", "E-X"]])
    assert tagger.predict([[["a"], ["b"]], [["a"]], []]) == [["B-X", "E-X"], [None], []]
    assert tagger.predict_n_best([[["a"]]], 3) == [[]]
    found = tagger.log_likelihood([[["a"]], []], [["B-X"], []])
    assert found[0] == -np.inf
    assert found[1] == 0
    assert not np.signbit(found[1])
    assert tagger.score([[["a"]]], [["B-X"]]) == 0


def test_an_interrupted_minibatch_leaves_nothing(monkeypatch):
    """The next step is that of a model whose moments begin again; a refused call changes nothing at all."""
    from csoftmax._learn.chain_adamw import ChainTrainer

    def make():
        options = {"solver": "adamw", "learning_rate": 0.1}
        return CRFTagger(**options).partial_fit([[["a"], ["b"]]], [["X", "Y"]], classes=["X", "Y"])

    tagger, fresh = make(), make()
    with monkeypatch.context() as patch:
        patch.setattr(ChainTrainer, "settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tagger.partial_fit([[["new"]]], [["X"]])
    assert tagger.vocabulary_ == fresh.vocabulary_
    del fresh._trainer
    for model in (tagger, fresh):
        model.partial_fit([[["other"]]], [["X"]])
    assert tagger.state_features_ == fresh.state_features_
    trainer = tagger._trainer
    with pytest.raises(ValueError, match="not among the classes"):
        tagger.partial_fit([[["a"]]], [["Z"]])
    assert tagger._trainer is trainer


def test_partial_fit_after_a_parameter_has_changed_the_layout():
    X, y = [[["a"], ["b"]]], [["X", "Y"]]
    tagger = CRFTagger(solver="adamw").partial_fit(X, y, classes=["X", "Y"])
    tagger.set_params(fit_ends=False).partial_fit(X, y)
    assert np.isfinite(tagger.transitions_).all()


@pytest.mark.parametrize(
    ("label", "message"), [(2**63, "within the range of int64"), (2**70, "int64"), ("a\0", "would lose the NUL")]
)
def test_labels_that_an_array_would_change(label, message):
    with pytest.raises(ValueError, match=message):
        CRFTagger().fit([[["a"], ["b"]]], [[label, -1 if isinstance(label, int) else "b"]])


def test_classes_of_partial_fit_are_taken_as_they_are():
    tagger = CRFTagger(solver="adamw")
    for classes, error, message in (
        (["1", 2], TypeError, "mixes labels"),
        ("xy", TypeError, "classes must be a list of labels"),
        ([["x"]], ValueError, "classes must have one axis"),
    ):
        with pytest.raises(error, match=message):
            tagger.partial_fit([[["a"]]], [["1"]], classes=classes)


def test_matrices_are_no_names():
    tagger = CRFTagger().fit([[["a"], ["b"]]], [["X", "Y"]])
    with pytest.raises(TypeError, match="fitted on names"):
        tagger.predict([np.ones((2, 3))])
    with pytest.raises(TypeError, match="sample_weight must hold real numbers"):
        tagger.fit([[["a"]]], [["X"]], sample_weight=["a"])


@pytest.mark.parametrize("y", ["OBI", ["O", "B"], 3])
def test_spans_need_lists_of_sequences(y):
    with pytest.raises(TypeError, match="y_true"):
        span_f1(y, y)
