"""ManyClassRegression: samplers that do not fit, rows of weight 0, steps that fail, draws that hit labels."""

import copy

import numpy as np
import pytest
from sklearn.base import clone

from csoftmax.adversarial import TreeSampler
from csoftmax.heads import AdaptiveSoftmax, HashedSoftmax, HierarchicalSoftmax, Tree
from csoftmax.linear_model import ManyClassRegression
from csoftmax.samplers import ClusterSampler, UniformSampler, UnigramSampler


def make_classes(classes=30, rows=600):
    rng = np.random.default_rng(0)
    centres, y = rng.normal(size=(classes, 10)) * 3, rng.integers(0, classes, rows)
    return centres[y] + rng.normal(size=(rows, 10)), y


def test_a_sampler_that_does_not_fit_leaves_the_earlier_fit():
    X, y = make_classes()
    model = ManyClassRegression(batch_size=64, random_state=0, n_sampled=16).fit(X, y)
    expected, history = model.predict(X), model.history_
    for sampler, message in (
        (UniformSampler(29), "sampler has 29 classes, but the model has 30"),
        (ClusterSampler(np.eye(30)[:, :3], n_clusters=4, rng=0), "sampler has 3 features, but the model has 10"),
        (TreeSampler(29).fit(X[y < 29], y[y < 29]), "sampler has 29 classes, but the model has 30"),
        (TreeSampler(30).fit(X[:, :3], y), "sampler has 3 features, but the model has 10"),
        (TreeSampler(30), "this TreeSampler is not fitted: call fit"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_params(sampler=sampler).fit(X, y)
        assert np.array_equal(model.predict(X), expected)
        assert model.history_ is history


def test_independent_draws_find_the_true_model():
    """A model of a constant feature learns the frequencies of the classes, although frequent ones are drawn often."""
    shares = np.array([0.6, 0.2, 0.15, 0.05])
    y = np.repeat(np.arange(4), (shares * 2000).astype(int))
    sampler = ClusterSampler([[3.0], [0.0], [-1.0], [-3.0]], n_clusters=4, rng=0)
    model = ManyClassRegression(
        sampler=sampler, n_sampled=8, batch_size=500, learning_rate=0.05, max_epochs=60, random_state=0
    )
    found = model.fit(np.ones((2000, 1)), y).predict_proba([[1.0]])[0]
    assert np.abs(found - shares).max() < 0.02  # 0.12 where hits are left out


def test_a_tree_of_classes_as_sampler():
    """Where classes overlap, its few draws for each row do more than uniform ones; predictions need no tree."""
    X, y = make_classes(200, 4000)
    X += np.random.default_rng(1).normal(0, 3, X.shape)
    tree = TreeSampler(200).fit(X, y)
    options = {"batch_size": 100, "max_epochs": 3, "random_state": 0, "n_sampled": 4}
    model = ManyClassRegression(sampler=tree, **options).fit(X, y)
    uniform = ManyClassRegression(sampler="uniform", **options).fit(X, y)
    losses = [-m.log_proba(X, y).mean() for m in (model, uniform)]
    assert losses[0] < losses[1] - 1, losses
    again = clone(model).fit(X, y)
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))


def test_predictions_read_what_the_model_was_fitted_to(tmp_path):
    """Setting `embedding` on a fitted model changes the next fit: not predictions, nor files; nor may steps go on."""
    rng = np.random.default_rng(0)
    ids, X = rng.integers(0, 20, (200, 2)), rng.normal(size=(200, 4))
    y = ids[:, 0] % 5
    options = {"max_epochs": 2, "random_state": 0}
    for data, first, others in ((ids, 8, (None, 16, (25, 8))), (X, None, (4, (20, 8)))):
        for other in others:
            model = ManyClassRegression(embedding=first, **options).fit(data, y)
            before, best = model.predict_proba(data), model.topk(data, 2)
            model.set_params(embedding=other)
            assert np.array_equal(model.predict_proba(data), before)
            assert np.array_equal(model.topk(data, 2).indices, best.indices)
            for call in (
                lambda: model.partial_fit(data, y),  # noqa: B023
                lambda: model.set_params(warm_start=True).fit(data, y),  # noqa: B023
                lambda: model.fit_batches([(data, y)], np.arange(5)),  # noqa: B023
            ):
                with pytest.raises(
                    ValueError, match=r"embedding is .*, but the model that training would continue has"
                ):
                    call()
                assert np.array_equal(model.predict_proba(data), before)
            model.save(tmp_path / "model.safetensors")
            loaded = ManyClassRegression.load(tmp_path / "model.safetensors")
            assert np.array_equal(loaded.predict_proba(data), before)
            if first is not None:
                loaded.partial_fit(data, y)
            anew = X if other is None else ids
            assert len(model.set_params(warm_start=False).fit(anew, y).predict(anew)) == 200
    same = ManyClassRegression(embedding=8, **options).fit(ids, y).set_params(embedding=(20, 8))
    assert same.partial_fit(ids, y).embedding_.shape == (20, 8)


@pytest.mark.parametrize("head", ["sampled", "full", "adaptive", "hierarchical"])
def test_no_best_classes(head):
    X, y = make_classes(rows=90)
    ids = np.arange(90)[:, None] % 30
    for data, options in ((X, {}), (ids, {"embedding": 3})):
        best = ManyClassRegression(head=head, max_epochs=1, random_state=0, **options).fit(data, y).topk(data, 0)
        assert best.values.shape == best.indices.shape == (90, 0)


@pytest.mark.parametrize(
    "options", [{"head": "full", "embedding": (30, 3), "optimizer": "adam"}, {"sampler": "in_batch"}]
)
def test_rows_of_weight_0_take_no_part_in_steps(options):
    X, y = make_classes()
    X = y[:, None] if "embedding" in options else X
    weight = (np.arange(600) % 3 > 0).astype(float)
    models = [ManyClassRegression(random_state=0, **options) for _ in range(2)]
    for begin in range(0, 600, 100):
        part = slice(begin, begin + 100)
        kept = part.start + np.flatnonzero(weight[part])
        models[0].partial_fit(X[part], y[part], classes=np.arange(30), sample_weight=weight[part])
        models[1].partial_fit(X[kept], y[kept], classes=np.arange(30), sample_weight=weight[kept])
    for name, given in models[0].head_.parameters.items():
        assert np.array_equal(given, models[1].head_.parameters[name])
    assert np.array_equal(models[0].class_count_, models[1].class_count_)
    models[0].partial_fit(X, y, sample_weight=np.zeros(600))
    assert np.array_equal(models[0].head_.parameters["w"], models[1].head_.parameters["w"])


def test_a_step_that_fails_counts_no_rows(monkeypatch):
    X, y = make_classes()
    model = ManyClassRegression(random_state=0).partial_fit(X, y, classes=np.arange(30))
    monkeypatch.setattr(type(model.head_), "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(X, y)
    assert model.class_count_.sum() == 600


def state_of(model):
    """The parameters of a model, its counts and its history."""
    learned = {name: a.copy() for name, a in model.head_.parameters.items()}
    return learned, model.class_count_.tolist(), copy.deepcopy(model.history_), model.n_iter_


def assert_same_state(a, b):
    assert a[1:] == b[1:]
    for name, parameter in a[0].items():
        assert np.array_equal(parameter, b[0][name])


@pytest.mark.parametrize("sampler", ["unigram", "uniform", "in_batch"])
def test_a_sampler_without_a_label_leaves_the_earlier_fit(sampler):
    X, y = make_classes()
    model = ManyClassRegression(sampler=sampler, n_sampled=8, max_epochs=2, random_state=0).fit(X, y)
    before = state_of(model)
    model.set_params(sampler=UnigramSampler(np.arange(30)))
    weights = np.linspace(0.1, 1, len(y))
    for fit in (
        lambda: model.fit(X, y),
        lambda: model.partial_fit(X, y, sample_weight=weights),
        lambda: model.fit_batches([(X, y, weights)], np.arange(30)),
        lambda: model.set_params(warm_start=True).fit_batches([(X, y, weights)], np.arange(30)),
    ):
        with pytest.raises(ValueError, match=r"the class 0, a label, has negatives\.target_log_q -inf"):
            fit()
        assert_same_state(state_of(model), before)
    unfitted = clone(model)
    with pytest.raises(ValueError, match="the class 0, a label"):
        unfitted.fit(X, y)
    assert not hasattr(unfitted, "history_")
    model.set_params(sampler=sampler).partial_fit(X, y)
    assert model.n_iter_ == before[3] + 1


@pytest.mark.parametrize("options", [{"head": "full"}, {"sampler": "uniform"}, {"init_bias": "zero"}])
def test_a_step_that_fails_changes_no_counts_even_where_rows_are_not_counted(monkeypatch, options):
    X, y = make_classes()
    model = ManyClassRegression(random_state=0, **options).fit(X, y, sample_weight=np.linspace(0, 1, len(y)))
    before = model.class_count_.copy() if hasattr(model, "class_count_") else None
    monkeypatch.setattr(type(model.head_), "step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for train in (lambda: model.partial_fit(X, y), lambda: model.fit_batches([(X, y)], np.arange(30))):
        with pytest.raises(KeyboardInterrupt):
            train()
        assert np.array_equal(model.class_count_, before)


def test_a_later_minibatch_that_fails_is_not_counted(monkeypatch):
    X, y = make_classes()
    model = ManyClassRegression(random_state=0)
    with pytest.raises(ValueError, match="y has"):
        model.fit_batches([(X, y), (X, y, np.full(600, 0.1)), (X, np.full(600, 99))], np.arange(30), epochs=1)
    assert model.class_count_.sum() == pytest.approx(660)
    before, step, calls = model.class_count_.copy(), type(model.head_).step, []

    def fail_later(*arguments):
        calls.append(0)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(type(model.head_), "step", fail_later)
    model.warm_start = True
    with pytest.raises(KeyboardInterrupt):
        model.fit_batches([(X, y), (X[:100], y[:100])], np.arange(30), epochs=1)
    assert np.array_equal(model.class_count_, before + np.bincount(y))


@pytest.mark.parametrize("sampler", ["unigram", "loguniform", "in_batch"])
def test_a_step_that_fails_after_a_change_of_sampler_leaves_no_trace(monkeypatch, sampler):
    X, y = make_classes()
    options = {"init_bias": "zero", "n_sampled": 3, "random_state": 0}
    models = [ManyClassRegression(sampler="uniform", **options) for _ in range(2)]
    for model in models:
        model.partial_fit(X, y, np.arange(30)).set_params(sampler=sampler)
    failing = models[0]
    for n in (2, 600):
        with monkeypatch.context() as patch:
            patch.setattr(type(failing.head_), "update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                failing.partial_fit(X[:n], y[:n], sample_weight=np.full(n, 1e3))
        for _ in range(2):
            for model in models:
                model.partial_fit(X, y)
        heads = [model.head_ for model in models]
        assert np.array_equal(failing.class_count_, models[1].class_count_)
        assert heads[0].counts is failing.class_count_
        assert heads[0].total == failing.class_count_.sum()
        assert heads[0].made_at == heads[1].made_at


def test_counts_that_no_sampler_can_have_are_taken_back():
    X, y = make_classes()
    model = ManyClassRegression(sampler="uniform", init_bias="zero", n_sampled=3).partial_fit(X, y, np.arange(30))
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="counts"):
        model.set_params(sampler="unigram").partial_fit(X[:2], y[:2], sample_weight=[1.7e308] * 2)
    model.partial_fit(X, y)
    assert np.isfinite(model.history_["loss"]).all()


@pytest.mark.parametrize(
    "options",
    [
        {"head": "full"},
        {"sampler": "uniform"},
        {"sampler": UniformSampler(30)},
        {"head": "hierarchical", "tree": "balanced"},
        {"head": HierarchicalSoftmax(10, Tree.balanced(30), dtype=np.float64)},
        {"head": AdaptiveSoftmax(10, 30, cutoffs=[8], dtype=np.float64, rng=0)},
        {"head": HashedSoftmax(10, 30, n_buckets=8, dtype=np.float64, rng=0)},
    ],
)
def test_every_row_is_counted_where_the_first_one_is(options):
    """Also where no step reads the counts: added classes go by them."""
    X, y = make_classes()
    weight = np.linspace(0.5, 1.5, 600)
    model = ManyClassRegression(random_state=0, warm_start=True, **options)
    for part in (slice(0, 6), slice(6, 300), slice(300, 600)):
        model.partial_fit(X[part], y[part], np.arange(30), sample_weight=weight[part])
    expected = np.bincount(y, weight)
    np.testing.assert_allclose(model.class_count_, expected, rtol=1e-13)
    if options.get("head") == "full":
        bias = copy.deepcopy(model).add_classes([99], [60.0]).head_.bias[-1]
        assert bias == pytest.approx(np.log(60 / (expected.sum() + 60)))
    model.fit_batches([(X, y), (X, y)], np.arange(30), epochs=2)
    np.testing.assert_allclose(model.class_count_, expected + 4 * np.bincount(y), rtol=1e-13)
    assert np.array_equal(model.fit(X[::2], y[::2]).class_count_, np.bincount(y[::2], minlength=30))
    assert np.array_equal(model.partial_fit(X, y).class_count_, np.bincount(y[::2], minlength=30) + np.bincount(y))


@pytest.mark.parametrize("warm", [False, True])
def test_batches_keep_an_earlier_fit_until_a_step_has_been_taken(warm):
    X, y = make_classes()
    bad = (X, np.full(600, 99))
    for begin in ("fit", "partial_fit", "fit_batches"):
        model = ManyClassRegression(batch_size=200, max_epochs=2, warm_start=warm, random_state=0)
        if begin == "fit_batches":
            model.fit_batches([(X, y)], np.arange(30))
        else:
            getattr(model, begin)(X, y, *([np.arange(30)] if begin == "partial_fit" else []))
        before, history = state_of(model), model.history_
        with pytest.raises(ValueError, match="y has"):
            model.fit_batches([bad, (X, y)], np.arange(30))
        assert_same_state(state_of(model), before)
        assert model.history_ is history
        with pytest.raises(ValueError, match="y has"):
            model.fit_batches([(X, y), bad], np.arange(30))
        assert (model.n_iter_, model.history_) == (0, {})
        expected = before[1] + np.bincount(y) if warm else np.bincount(y)
        assert np.array_equal(model.class_count_, expected)
        epochs = iter([[(X, y)], [bad]])
        with pytest.raises(ValueError, match="y has"):
            model.fit_batches(epochs.__next__, np.arange(30))
        assert (model.n_iter_, len(model.history_["loss"])) == (1, 1)


@pytest.mark.parametrize("begin", ["fit", "partial_fit", "fit_batches"])
def test_labels_in_the_batch_have_the_shares_of_all_rows_so_far(monkeypatch, begin):
    """log q is log((N - 1) p) for "partition"; the rows of a step are among those that p counts, once."""
    from csoftmax._learn.many_class import sampled

    X, y = make_classes()
    weight = np.linspace(0.5, 1.5, 600)
    model = ManyClassRegression(sampler="in_batch", correction="partition", max_epochs=1, random_state=0)
    loss, seen = sampled.in_batch_softmax_loss_with_grad, []

    def record(*arguments, **options):
        seen.append((options["ids"], options["log_q"]))
        return loss(*arguments, **options)

    monkeypatch.setattr(sampled, "in_batch_softmax_loss_with_grad", record)
    steps = [slice(0, 300), slice(300, 450), slice(450, 600)]
    if begin == "fit":
        model.fit(X, y, sample_weight=weight)
        counts = [np.bincount(y, weight)] * 2
        counts += [counts[0] + np.bincount(y[:300], weight[:300], 30)]
        model.partial_fit(X[:300], y[:300], sample_weight=weight[:300])
    else:
        counts = [np.bincount(y[: part.stop], weight[: part.stop], 30) for part in steps]
        batches = [(X[part], y[part], weight[part]) for part in steps]
        if begin == "fit_batches":
            model.fit_batches(batches, np.arange(30), epochs=1)
        for batch in batches if begin == "partial_fit" else []:
            model.partial_fit(*batch[:2], np.arange(30), sample_weight=batch[2])
    assert len(seen) == 3
    for (ids, log_q), count in zip(seen, counts, strict=True):
        np.testing.assert_allclose(log_q, np.log((len(ids) - 1) * count[ids] / count.sum()), rtol=0, atol=1e-12)


def test_steps_follow_a_sampler_that_is_set():
    X, y = make_classes()
    model = ManyClassRegression(sampler="uniform", n_sampled=4, random_state=0).partial_fit(X, y, np.arange(30))
    counts = model.class_count_.copy()

    class Counted(UniformSampler):
        sizes = ()

        def sample(self, size, **options):
            self.sizes = (*self.sizes, size)
            return super().sample(size, **options)

    sampler = Counted(30)
    model.set_params(sampler=sampler).partial_fit(X, y)
    model.set_params(n_sampled=7).partial_fit(X, y)
    assert sampler.sizes == (4, 7)
    assert np.array_equal(model.class_count_, 3 * counts)
    model.set_params(sampler="unigram").partial_fit(X, y)
    assert np.array_equal(model.class_count_, 4 * counts)
    for sampler, error, message in (
        (UniformSampler(29), ValueError, "sampler has 29 classes, but the model has 30"),
        ("zipf", ValueError, "sampler must be one of"),
    ):
        before = state_of(model)
        with pytest.raises(error, match=message):
            model.set_params(sampler=sampler).partial_fit(X, y)
        assert_same_state(state_of(model), before)


def test_labels_without_rows():
    with pytest.raises(ValueError, match=r"X has shape \(\)"):
        ManyClassRegression(head="full").fit([[0.0], [1.0]], [0, 1]).log_proba(3, [0])
