"""ManyClassRegression: scikit-learn's checks, heads and samplers, weights, batches, added and frozen classes, files."""

import copy
import pickle

import numpy as np
import pytest
import scipy.sparse
from helpers import run_python
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator

import csoftmax
from csoftmax.linear_model import ManyClassRegression
from csoftmax.samplers import ClusterSampler, LogUniformSampler, UniformSampler, UnigramSampler

SETTINGS = {
    "sampled": {},
    "full": {"head": "full"},
    "few": {"n_sampled": 2, "max_epochs": 20},
    "in_batch": {"sampler": "in_batch", "max_epochs": 20},
    "early_stopping": {"early_stopping": True},
    "hierarchical": {"head": "hierarchical", "max_epochs": 20},
    "adaptive": {"head": "adaptive", "max_epochs": 20},
    "hashed": {"head": "hashed", "max_epochs": 20},
}
PARTIAL_FIT = (
    "check_partial_fit_invalid_target",
    "check_estimators_partial_fit_n_features",
    "check_fit_score_takes_y",
    "check_n_features_in_after_fitting",
)
REFUSES = "partial_fit refuses early_stopping"
HELD_OUT = "a row is held out or not, whatever its weight"
DRAWN = "the labels of the minibatch are the sample, in which a row of weight 2 is one label"
EQUIVALENCE = (
    "check_sample_weight_equivalence",  # of scikit-learn 1.6
    "check_sample_weight_equivalence_on_dense_data",
    "check_sample_weight_equivalence_on_sparse_data",
)
EXPECTED_TO_FAIL = {
    "early_stopping": dict.fromkeys(PARTIAL_FIT, REFUSES) | dict.fromkeys(EQUIVALENCE, HELD_OUT),
    "in_batch": dict.fromkeys(EQUIVALENCE, DRAWN),
}


def make_sklearn_checks():
    for setting, options in SETTINGS.items():
        reasons = EXPECTED_TO_FAIL.get(setting, {})
        for estimator, check in estimator_checks_generator(ManyClassRegression(random_state=0, **options)):
            name = getattr(check, "func", check).__name__
            marks = [pytest.mark.xfail(reason=reasons[name], strict=True)] if name in reasons else []
            if setting in ("few", "early_stopping"):
                marks.append(pytest.mark.slow)
            yield pytest.param(estimator, check, id=f"{setting}-{name}", marks=marks)


@pytest.mark.parametrize(("estimator", "check"), list(make_sklearn_checks()))
def test_sklearn(estimator, check):
    check(estimator)


def parameters(model):
    return {**model.head_.parameters, **({} if model.embedding is None else {"embedding": model.embedding_})}


def assert_same(model, other):
    ours, theirs = parameters(model), parameters(other)
    assert ours.keys() == theirs.keys()
    for name, a in ours.items():
        assert (a == theirs[name]).all(), name


@pytest.fixture(scope="module")
def pairs():
    """3,000 pairs of an id and one of 200 labels, which depends on the id, with a Zipf distribution of ids."""
    rng = np.random.default_rng(5)
    p = 1 / np.arange(1, 101)
    ids = rng.choice(100, 3000, p=p / p.sum())
    y = (ids * 7 + rng.geometric(0.5, 3000) * 13) % 200
    y[:200] = np.arange(200)
    return ids[:, None], y


# One step by definition


def row_adagrad(w, g, rate=0.3):
    mean = (g**2).mean(axis=1, keepdims=True) if w.ndim == 2 else g**2
    return w - rate * g / np.sqrt(mean + 1e-8)


@pytest.mark.parametrize("n_sampled", [200, 5])
def test_a_step_by_its_definition(n_sampled):
    """One full minibatch from the log prior, in NumPy: the sampled softmax, then row-wise Adagrad on visited rows."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(300, 4)), rng.integers(0, 40, 300)
    y[:40] = np.arange(40)
    weights = rng.integers(1, 4, 300).astype(float)
    model = ManyClassRegression(n_sampled=n_sampled, max_epochs=1, random_state=np.random.default_rng(3))
    model.fit(X, y, sample_weight=weights)
    counts = np.bincount(y, weights)
    assert (model.class_count_ == counts).all()
    bias = np.log(counts / counts.sum())
    sampler = UnigramSampler(counts, power=0.75)
    negatives = sampler.sample(n_sampled, target=y, rng=np.random.default_rng(3))
    u = np.concatenate([(bias[y] - negatives.target_log_q)[:, None], np.tile(bias[negatives.ids], (300, 1))], axis=1)
    u[:, 1:] -= negatives.log_q
    u[:, 1:][negatives.ids == y[:, None]] = -np.inf
    g = np.exp(u - u.max(axis=1, keepdims=True))
    g /= g.sum(axis=1, keepdims=True)
    loss = -np.log(g[:, 0])
    assert model.history_["loss"][0] == pytest.approx(np.average(loss, weights=weights), rel=1e-12)
    g[:, 0] -= 1
    g *= (weights / weights.sum())[:, None]
    grad = np.zeros((40, 300))
    np.add.at(grad, y, np.diag(g[:, 0]))
    np.add.at(grad, negatives.ids, g[:, 1:].T)
    visited = np.union1d(y, negatives.ids)
    w, expected_bias = np.zeros((40, 4)), bias.copy()
    w[visited] = row_adagrad(w[visited], (grad @ X)[visited])
    expected_bias[visited] = row_adagrad(bias[visited], grad.sum(axis=1)[visited])
    np.testing.assert_allclose(model.head_.parameters["w"], w, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(model.head_.parameters["bias"], expected_bias, rtol=1e-7, atol=1e-7)


def test_embeddings_by_their_definition():
    """The features are means of embeddings, and a repeated id gets the gradient of each place."""
    rng = np.random.default_rng(0)
    X, y = rng.integers(0, 9, (50, 3)), rng.integers(0, 4, 50)
    X[0] = [8, 8, 8]
    options = {"head": "full", "embedding": 5, "optimizer": "sgd", "learning_rate": 0.5, "init_bias": "zero"}
    model = ManyClassRegression(**options, max_epochs=1, random_state=0).fit(X, y)
    again = ManyClassRegression(**options, max_epochs=2, random_state=0).fit(X, y)
    table, w, bias = model.embedding_, *model.head_.parameters.values()
    x = table[X].mean(axis=1)
    result = csoftmax.linear_cross_entropy_with_grad(x, w, y, bias=bias)
    gradient = np.zeros_like(table)
    np.add.at(gradient, X.ravel(), np.repeat(result.grad_x / 3, 3, axis=0))
    np.testing.assert_allclose(again.embedding_, table - 0.5 * gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(again.head_.parameters["w"], w - 0.5 * result.grad_w, rtol=1e-5, atol=1e-7)


# Heads and samplers


SAMPLERS = {
    "unigram": {"sampler": "unigram"},
    "loguniform": {"sampler": "loguniform"},
    "uniform": {"sampler": "uniform"},
    "in_batch": {"sampler": "in_batch"},
    "in_batch partition": {"sampler": "in_batch", "correction": "partition"},
    "object": {"sampler": UniformSampler(200)},
    "ranks": {"sampler": LogUniformSampler(200)},
    "partition": {"correction": "partition"},
    "full": {"head": "full"},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_learns(pairs, name):
    """All come near the full softmax, whose loss on its own rows is 1.9; frequencies alone have 4.6."""
    X, y = pairs
    options = {"embedding": 16, "n_sampled": 40, "batch_size": 100, "max_epochs": 15, "random_state": 0}
    model = ManyClassRegression(**options, **SAMPLERS[name]).fit(X, y)
    loss = -model.log_proba(X, y).mean()
    counts = np.bincount(y)
    alone = -np.average(np.log(counts / counts.sum()), weights=counts)
    assert alone > 4
    assert loss < 2.6, loss


def test_without_correction_it_does_not_learn_probabilities(pairs):
    """The teeth of the test above: pointwise mutual information is no model of frequencies."""
    X, y = pairs
    options = {"embedding": 16, "n_sampled": 5, "batch_size": 100, "max_epochs": 15, "random_state": 0}
    losses = {
        correction: -ManyClassRegression(correction=correction, **options).fit(X, y).log_proba(X, y).mean()
        for correction in ("ranking", "none")
    }
    assert losses["none"] > losses["ranking"] + 0.2, losses


def test_cluster_sampler(pairs):
    X, y = pairs
    start = ManyClassRegression(embedding=16, batch_size=100, max_epochs=3, random_state=0).fit(X, y)
    sampler = ClusterSampler(start.head_.parameters["w"], start.head_.parameters["bias"], rng=0)
    before = -start.log_proba(X, y).mean()
    start.set_params(warm_start=True, sampler=sampler, n_sampled=20).fit(X, y)
    assert -start.log_proba(X, y).mean() < before


@pytest.mark.parametrize("head", ["full", "sampled"])
@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "adam", "sgd"])
def test_optimizers(head, optimizer, three_classes):
    X, y = three_classes
    rate = {"sgd": 1.0, "adam": 0.1}.get(optimizer, 0.3)
    model = ManyClassRegression(head=head, optimizer=optimizer, learning_rate=rate, max_epochs=50, random_state=0)
    assert model.fit(X, y).score(X, y) > 0.93


def test_all_classes_sampled_is_the_full_softmax(three_classes):
    X, y = three_classes
    full = ManyClassRegression(head="full", max_epochs=10).fit(X, y)
    sampled = ManyClassRegression(n_sampled=3, max_epochs=10, random_state=0).fit(X, y)
    for name, a in full.head_.parameters.items():
        np.testing.assert_allclose(sampled.head_.parameters[name], a, rtol=1e-9, atol=1e-9)


def test_penalty_is_that_of_a_decay_in_every_step(pairs):
    """Rows that no step visits have decayed as well at the end of an epoch."""
    X, y = pairs
    options = {"embedding": 4, "sampler": "uniform", "n_sampled": 5, "batch_size": 100, "max_epochs": 2}
    model = ManyClassRegression(penalty_l2=0.01, random_state=0, **options).fit(X, y)
    free = ManyClassRegression(random_state=0, **options).fit(X, y)
    assert np.linalg.norm(model.embedding_) < np.linalg.norm(free.embedding_)
    model = ManyClassRegression(head="full", penalty_l2=0.5, learning_rate=0.1, optimizer="sgd", init_bias="zero")
    X, y = np.eye(2), [0, 1]
    model.fit(X, y)
    w = np.zeros((2, 2))
    for _ in range(5):
        p = csoftmax.softmax(X @ w.T)
        w = w * 0.95 - 0.1 * (p - np.eye(2)).T @ X / 2
    np.testing.assert_allclose(model.head_.parameters["w"] - w, 0, atol=2e-2)  # the bias moves too, and is free


def test_decay_that_is_due_is_applied_at_the_end():
    """An id that only the first of four minibatches has decays in the others as well, before anyone sees it."""
    X = [[[9], [1]], [[2], [3]], [[4], [5]], [[6], [7]]]
    parts = [(each, [0, 1]) for each in X]
    options = {"head": "full", "embedding": (10, 4), "penalty_l2": 0.1, "random_state": 0}
    first = ManyClassRegression(**options).fit_batches(parts[:1], [0, 1], epochs=1)
    model = ManyClassRegression(**options).fit_batches(parts, [0, 1], epochs=1)
    steps = ManyClassRegression(**options)
    for part in parts:
        steps.partial_fit(*part, classes=[0, 1])
    for each in (model, steps):
        np.testing.assert_allclose(each.embedding_[9], first.embedding_[9] * 0.97**3, rtol=1e-6)
        np.testing.assert_allclose(each.embedding_[8], first.embedding_[8] * 0.97**3, rtol=1e-6)


# Weights, inputs, reproducibility


def test_weights_are_repetitions(pairs):
    """In one minibatch, also of a sample: the draws depend on the counts and the generator only."""
    X, y = pairs[0][:400], pairs[1][:400]
    weights = np.random.default_rng(1).integers(0, 3, 400)
    weights[:200] += weights[:200] == 0  # each class has a row
    options = {"embedding": 6, "n_sampled": 20, "batch_size": 2000, "random_state": 0}
    weighted = ManyClassRegression(**options).fit(X, y, sample_weight=weights)
    repeated = ManyClassRegression(**options).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    for name, a in parameters(weighted).items():
        np.testing.assert_allclose(parameters(repeated)[name], a, rtol=2e-4, atol=2e-5)


def test_sparse_is_dense(three_classes):
    X, y = three_classes
    X = X * (np.abs(X) > 0.5)
    options = {"batch_size": 50, "n_sampled": 2, "random_state": 0}
    dense = ManyClassRegression(**options).fit(X, y)
    sparse = ManyClassRegression(**options).fit(scipy.sparse.csr_array(X), y)
    assert_same(dense, sparse)
    np.testing.assert_allclose(dense.predict_proba(X), sparse.predict_proba(scipy.sparse.csr_matrix(X)), rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"sampler": "in_batch"}, {"head": "full"}, {"sampler": "loguniform"}])
def test_repeatable(pairs, options):
    X, y = pairs
    options = {"embedding": 8, "n_sampled": 30, "batch_size": 100, "max_epochs": 2, "random_state": 4, **options}
    first, second = (ManyClassRegression(**options).fit(X, y) for _ in range(2))
    assert_same(first, second)
    other = ManyClassRegression(**options | {"random_state": 5}).fit(X, y)
    assert (other.embedding_ != first.embedding_).any()
    threaded = ManyClassRegression(**options, num_threads=1).fit(X, y)
    assert_same(first, threaded)


def test_dtypes(three_classes):
    X, y = three_classes
    assert ManyClassRegression().fit(X.astype(np.float32), y).head_.parameters["w"].dtype == np.float32
    assert ManyClassRegression().fit(X, y).head_.parameters["w"].dtype == np.float64


# Predictions


def test_predictions_agree(pairs):
    X, y = pairs
    model = ManyClassRegression(embedding=8, batch_size=100, max_epochs=3, random_state=0).fit(X, y)
    logits = (model.embedding_[X[:, 0]] @ model.head_.w.T + model.head_.bias).astype(np.float64)
    exact = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    log_p = model.predict_log_proba(X)
    assert log_p.shape == (3000, 200)
    np.testing.assert_allclose(log_p, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(model.predict_proba(X), np.exp(exact), rtol=1e-5)
    np.testing.assert_allclose(model.log_proba(X, y), exact[np.arange(3000), y], rtol=1e-5, atol=1e-5)
    best = model.topk(X, 7)
    np.testing.assert_allclose(best.values, -np.sort(-exact, axis=1)[:, :7], rtol=1e-5)
    np.testing.assert_allclose(best.values, np.take_along_axis(exact, best.indices, 1), rtol=1e-5)
    assert (model.predict(X) == model.classes_[best.indices[:, 0]]).all()


def test_predictions_in_small_chunks(pairs, monkeypatch):
    X, y = pairs
    model = ManyClassRegression(embedding=8, batch_size=100, max_epochs=1, random_state=0).fit(X, y)
    whole = model.predict(X), model.topk(X, 3), model.log_proba(X, y), model.predict_proba(X)
    monkeypatch.setattr("csoftmax._learn.many_class.heads.CHUNK_BYTES", 8 * 200 * 7)
    monkeypatch.setattr("csoftmax._learn.many_class.estimator.PREDICTED_ROWS", 100)
    assert (model.predict(X) == whole[0]).all()
    assert (model.topk(X, 3).indices == whole[1].indices).all()
    np.testing.assert_allclose(model.log_proba(X, y), whole[2], rtol=1e-5)
    np.testing.assert_allclose(model.predict_proba(X), whole[3], rtol=1e-5)


# Data in parts


def test_fit_batches_and_partial_fit(pairs):
    X, y = pairs
    options = {"embedding": (100, 8), "n_sampled": 30, "random_state": 0}
    parts = [(X[i : i + 100], y[i : i + 100]) for i in range(0, 3000, 100)]
    batches = ManyClassRegression(**options).fit_batches(parts, np.arange(200), epochs=1)
    steps = ManyClassRegression(**options)
    for part in parts:
        steps.partial_fit(*part, classes=np.arange(200))
    assert_same(batches, steps)
    assert (steps.class_count_ == np.bincount(y, minlength=200)).all()
    assert batches.n_iter_ == 1
    assert steps.n_iter_ == 30
    assert len(steps.history_["loss"]) == 30
    assert batches.history_["loss"][0] == pytest.approx(np.mean(steps.history_["loss"]))
    more = ManyClassRegression(**options).fit_batches(lambda: iter(parts), np.arange(200), epochs=4)
    assert more.history_["loss"][3] < more.history_["loss"][0]


def test_partial_fit_goes_on_after_fit_and_load(pairs, tmp_path):
    X, y = pairs
    model = ManyClassRegression(embedding=8, batch_size=100, max_epochs=1, random_state=0).fit(X, y)
    total = model.class_count_.sum()
    model.save(tmp_path / "model")
    loaded = ManyClassRegression.load(tmp_path / "model", mmap=True)
    for each in (model, loaded):
        each.partial_fit(X[:50], y[:50])
        assert each.class_count_.sum() == total + 50
    assert_same(model, loaded)


def test_an_iterator_lasts_for_one_epoch(pairs):
    parts = iter([(pairs[0][:50], pairs[1][:50])])
    with pytest.raises(ValueError, match="exhausted after one epoch"):
        ManyClassRegression(embedding=(100, 4)).fit_batches(parts, np.arange(200), epochs=2)


# Stages


def test_add_classes(pairs):
    X, y = pairs
    known = y < 150
    options = {"embedding": (100, 8), "batch_size": 100, "max_epochs": 3, "warm_start": True, "random_state": 0}
    model = ManyClassRegression(**options).fit(X[known], 2 * y[known])
    before = copy.deepcopy(model)
    model.add_classes([1, 301, 33])
    assert (model.classes_ == np.sort([*before.classes_, 1, 33, 301])).all()
    old = np.isin(model.classes_, before.classes_)
    w, bias = model.head_.parameters.values()
    assert (w[old] == before.head_.w).all()
    assert (w[~old] == 0).all()
    assert (bias[old] == before.head_.bias).all()
    assert (bias[~old] == before.head_.bias.min()).all()
    assert (model.class_count_[~old] == 0).all()
    positions = model.topk(X[:5], 4).indices
    assert (model.classes_[positions] == before.classes_[before.topk(X[:5], 4).indices]).all()
    labels = 2 * y
    labels[~known] = 301
    model.fit(X, labels)
    assert model.score(X[~known], labels[~known]) > 0.2


def test_counts_of_added_classes(pairs):
    X, y = pairs
    model = ManyClassRegression(embedding=4, max_epochs=1, random_state=0).fit(X, y)
    total = model.class_count_.sum()
    model.add_classes([500, 300], counts=[30, 10])
    assert (model.class_count_[-2:] == [10, 30]).all()
    np.testing.assert_allclose(model.head_.bias[-2:], np.log(np.array([10, 30]) / (total + 40)), rtol=1e-6)
    with pytest.raises(ValueError, match="counts must be positive"):
        model.add_classes([600], counts=[0])
    with pytest.raises(ValueError, match="counts must be one number for each of the 2 new classes"):
        model.add_classes([600, 601], counts=[1])
    bare = ManyClassRegression(embedding=4, sampler="uniform", init_bias="zero", max_epochs=1).fit(X, y)
    assert not hasattr(bare, "class_count_")
    with pytest.raises(ValueError, match="has not kept"):
        bare.add_classes([600], counts=[1])


@pytest.mark.parametrize("options", [{}, {"head": "full"}, {"sampler": "in_batch"}, {"penalty_l2": 0.01}])
def test_freeze(pairs, options):
    X, y = pairs
    options = {"embedding": 8, "batch_size": 100, "max_epochs": 1, "warm_start": True, "random_state": 0, **options}
    model = ManyClassRegression(**options).fit(X, y)
    before = copy.deepcopy(model.head_)
    frozen = np.arange(0, 200, 3)
    model.freeze(frozen).fit(X, y)
    assert (model.head_.w[frozen] == before.w[frozen]).all()
    assert (model.head_.bias[frozen] == before.bias[frozen]).all()
    others = np.setdiff1d(np.arange(200), frozen)
    assert (model.head_.w[others] != before.w[others]).any(axis=1).all()
    model.freeze([]).fit(X, y)
    assert (model.head_.w[frozen] != before.w[frozen]).any()
    with pytest.raises(ValueError, match="classes has 999, which the model does not have"):
        model.freeze([999])


def test_early_stopping_keeps_the_best_epoch(pairs):
    X, y = pairs
    seen = []

    def keep(model, record):
        seen.append((record["val_loss"], copy.deepcopy(model.head_.w)))

    options = {"embedding": 8, "batch_size": 100, "max_epochs": 40, "learning_rate": 0.5, "patience": 2}
    model = ManyClassRegression(early_stopping=True, callbacks=keep, random_state=0, **options).fit(X, y)
    assert model.n_iter_ < 40
    losses = [loss for loss, _ in seen]
    assert model.history_["val_loss"] == losses
    assert np.argmin(losses) == len(losses) - 3
    assert (model.head_.w == seen[int(np.argmin(losses))][1]).all()


def test_callbacks_stop(pairs):
    model = ManyClassRegression(embedding=4, callbacks=lambda model, record: record["epoch"] == 2, random_state=0)
    assert model.fit(*pairs).n_iter_ == 2
    assert list(model.history_) == ["loss"]


@pytest.mark.parametrize("embedding", [None, 8])
def test_callbacks_of_sklearn(pairs, embedding):
    """Each fitted estimator that they get is a model of its epoch, which later epochs leave alone."""
    callback = pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has it")
    X, y = pairs
    X = X if embedding else X / 100
    monitor = callback.ScoringMonitor(scoring="neg_log_loss")
    options = {"embedding": embedding, "batch_size": 100, "max_epochs": 3, "random_state": 0}
    model = ManyClassRegression(**options).set_callbacks(monitor).fit(X, y)
    scores = [row["neg_log_loss"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(scores) == model.n_iter_ == 3
    for epochs, score in enumerate(scores, 1):
        shorter = ManyClassRegression(**{**options, "max_epochs": epochs}).fit(X, y)
        assert score == pytest.approx(shorter.log_proba(X, y).mean(), rel=1e-5)


def test_divergence_is_a_warning():
    X, y = 1e200 * np.random.default_rng(0).normal(size=(50, 3)), np.arange(50) % 5
    with pytest.warns(ConvergenceWarning, match="training has diverged: the loss is .* lower learning_rate"):
        ManyClassRegression(optimizer="sgd", learning_rate=1e200, max_epochs=9, random_state=0).fit(X, y)


# Files


@pytest.mark.parametrize("labels", ["ints", "text"])
@pytest.mark.parametrize("embedding", [None, 8])
def test_files(tmp_path, labels, embedding, pairs):
    pytest.importorskip("safetensors")
    X, y = pairs
    y = np.array([f"word {label}" for label in y]) if labels == "text" else y
    model = ManyClassRegression(embedding=embedding, max_epochs=1, random_state=0, power=1.0).fit(X, y)
    model.freeze(y[:3])
    path = tmp_path / "model.safetensors"
    model.save(path)
    for mmap in (False, True):
        loaded = ManyClassRegression.load(path, mmap=mmap)
        assert_same(model, loaded)
        assert (loaded.predict(X) == model.predict(X)).all()
        assert (loaded.frozen_ == model.frozen_).all()
        assert (loaded.class_count_ == model.class_count_).all()
        assert loaded.history_ == model.history_
        assert loaded.get_params() == model.get_params()
        loaded.set_params(warm_start=True).fit(X, y)
    data = bytearray(path.read_bytes())
    for at in np.random.default_rng(0).integers(0, len(data), 40):
        changed = bytearray(data)
        changed[at] ^= 4
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            ManyClassRegression.load(path)


def test_forged_files(tmp_path, pairs):
    pytest.importorskip("safetensors")
    from csoftmax._learn import store

    model = ManyClassRegression(embedding=8, max_epochs=1, random_state=0).fit(*pairs)
    path = tmp_path / "model.safetensors"
    model.save(path)
    arrays, header = store.read(path, "ManyClassRegression")
    header = {name: value for name, value in header.items() if name not in ("format", "version", "class")}
    for changed in (
        {"w": arrays["w"][:-1]},
        {"w": arrays["w"].astype(np.int32)},
        {"bias": arrays["bias"][:-1]},
        {"embedding": arrays["embedding"][:, :-1]},
        {"class_count": -arrays["class_count"]},
        {"classes": arrays["classes"][::-1]},
    ):
        store.write(path, "ManyClassRegression", {**arrays, **changed}, header)
        with pytest.raises(ValueError, match="cannot be read as a model"):
            ManyClassRegression.load(path)
    for changed in ({"n_features": 0}, {"history": 3}, {"parameters": {"head": "other"}}):
        store.write(path, "ManyClassRegression", arrays, {**header, **changed})
        with pytest.raises(ValueError, match="cannot be read as a model"):
            ManyClassRegression.load(path)


def test_copies(pairs):
    X, y = pairs
    model = ManyClassRegression(embedding=(100, 4), random_state=0)
    model.partial_fit(X[:100], y[:100], classes=np.arange(200))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.partial_fit(X[100:200], y[100:200])
        reference = copy.deepcopy(model).partial_fit(X[100:200], y[100:200])
        assert_same(other, reference)
    assert not hasattr(clone(model), "head_")


# Refusals


@pytest.mark.parametrize(
    ("error", "match", "parameters"),
    [
        (
            ValueError,
            "head must be one of 'sampled', 'full', 'hierarchical', 'adaptive', 'hashed' or a .*, got 'clustered'",
            {"head": "clustered"},
        ),
        (ValueError, "sampler must be one of .* or a sampler of csoftmax.samplers, got 'zipf'", {"sampler": "zipf"}),
        (ValueError, "sampler has 7 classes, but the model has 3", {"sampler": UniformSampler(7)}),
        (ValueError, "correction must be one of", {"correction": None}),
        (ValueError, "optimizer must be one of", {"optimizer": "adamw"}),
        (ValueError, "init_bias must be one of 'log_prior', 'zero'", {"init_bias": 0}),
        (ValueError, "embedding must be None", {"embedding": 0}),
        (ValueError, "embedding must be None", {"embedding": (3, 4, 5)}),
        (TypeError, "n_sampled must be an int", {"n_sampled": 3.5}),
        (ValueError, "power must be in", {"power": -1}),
        (ValueError, "at most 1", {"learning_rate": 3.0, "penalty_l2": 0.5}),
        (TypeError, "early_stopping must be True or False", {"early_stopping": 1}),
        (TypeError, "callbacks", {"callbacks": 3}),
        (TypeError, "random_state", {"random_state": "seed"}),
    ],
)
def test_refused_parameters(error, match, parameters, three_classes):
    X, y = three_classes
    model = ManyClassRegression(random_state=0).fit(X, y)
    before = copy.deepcopy(model.head_)
    with pytest.raises(error, match=match):
        model.set_params(**parameters).fit(X.astype(int) if "embedding" in parameters else X, y)
    if "sampler" not in parameters or isinstance(parameters["sampler"], str):
        assert (model.head_.w == before.w).all()


@pytest.mark.parametrize(
    ("error", "match", "X"),
    [
        (IndexError, r"X\[1, 0\] is -1; ids are at least 0", [[0], [-1]]),
        (IndexError, r"X\[0, 0\] is 100; the table of embeddings has 100 rows, 0 to 99", [[100]]),
        (TypeError, "X must hold integers", [[0.5]]),
        (TypeError, "X is sparse", scipy.sparse.csr_array([[1]])),
        (ValueError, "X has 2 features", [[0, 1]]),
    ],
)
def test_refused_ids(error, match, X, pairs):
    model = ManyClassRegression(embedding=(100, 4), max_epochs=1, random_state=0).fit(*pairs)
    for call in (model.predict, model.predict_proba, lambda X: model.topk(X, 2)):
        with pytest.raises(error, match=match):
            call(X)
    X = scipy.sparse.csr_array(np.ones((2, 1), int)) if scipy.sparse.issparse(X) else np.array(X)
    with pytest.raises(error, match=match):
        model.partial_fit(X, pairs[1][: X.shape[0]])


def test_refused_calls(pairs):
    X, y = pairs
    with pytest.raises(ValueError, match="embedding=4 needs all data at once"):
        ManyClassRegression(embedding=4).partial_fit(X, y, classes=np.arange(200))
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        ManyClassRegression(embedding=(100, 4)).partial_fit(X, y)
    with pytest.raises(ValueError, match="early_stopping needs rows to hold out"):
        ManyClassRegression(embedding=(100, 4), early_stopping=True).fit_batches([(X, y)], np.arange(200))
    model = ManyClassRegression(embedding=4, max_epochs=1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="k must be 0 to 200"):
        model.topk(X, 201)
    with pytest.raises(ValueError, match="y has the label 999"):
        model.log_proba(X[:1], [999])
    with pytest.raises(ValueError, match=r"y has shape \(2,\), but X has shape \(3, 1\)"):
        model.log_proba(X[:3], y[:2])
    with pytest.raises(csoftmax.DeviceError):
        ManyClassRegression(device="cuda").fit([[0.0], [1.0]], [0, 1])


# Memory


MEMORY = """
import resource
import numpy as np
from csoftmax.linear_model import ManyClassRegression

K, D, B = 10**7, 16, 512
rng = np.random.default_rng(0)
classes = np.arange(K)
small = ManyClassRegression(embedding=(B, D), sampler="uniform", init_bias="zero", n_sampled=50, random_state=0)
ids = np.arange(B)[:, None]
small.fit_batches([(ids, rng.integers(0, 1000, B))] * 3, np.arange(1000), epochs=1)  # imports, threads
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
model = ManyClassRegression(embedding=(B, D), sampler="uniform", init_bias="zero", n_sampled=2**14, random_state=0)
model.fit_batches(((ids, rng.integers(0, K, B)) for _ in range(150)), classes, epochs=1)
visited = np.count_nonzero(model.head_.parameters["w"].any(axis=1))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
weights = model.head_.parameters["w"].nbytes + model.head_.parameters["bias"].nbytes
print(visited, peak, weights)
"""


@pytest.mark.long
def test_memory_of_ten_million_classes():
    """Weights, one float a row of each array of weights, the labels of the classes, and what a minibatch needs.

    150 samples of 16,384 classes visit every page of the weights. A minibatch has 32 MiB of logits.
    """
    output = run_python(MEMORY, timeout=900, OPENBLAS_NUM_THREADS="1")  # threads of a busy machine wait for each other
    visited, peak, weights = map(int, output.stdout.split())
    print(f"peak {peak / 1e6:.0f} MB, weights {weights / 1e6:.0f} MB, {visited} rows visited")
    k = 10**7
    assert visited > 1_500_000
    assert weights == k * 17 * 4
    state, labels, minibatch = 2 * 4 * k, 8 * k, 96 << 20
    assert peak < weights + state + labels + minibatch, (peak, weights)
