"""Callbacks, ours and those of scikit-learn 1.9: the arrays that they see, and that every task that begins ends."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning

from csoftmax.linear_model import SoftmaxRegression

SETTINGS = [
    {"solver": "lbfgs"},
    {"solver": "lbfgs", "early_stopping": True},
    {"solver": "adamw"},
    {"solver": "adamw", "batch_norm": True},
    {"solver": "adamw", "early_stopping": True},
    {"solver": "adamw", "fit_intercept": False, "batch_norm": True},
]
IN_PARTS = [s for s in SETTINGS if s["solver"] == "adamw" and "early_stopping" not in s]  # those of fit_batches


@pytest.fixture(scope="module")
def data():
    X, y = load_iris(return_X_y=True)
    return X, y


def make_model(**options):
    return SoftmaxRegression(**{"max_epochs": 6, "random_state": 0, "batch_size": 40, "penalty_l2": 1e-3, **options})


@pytest.fixture(autouse=True)
def few_epochs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("setting", "method"),
    [(setting, "fit") for setting in SETTINGS] + [(setting, "fit_batches") for setting in IN_PARTS],
    ids=str,
)
def test_callbacks_see_snapshots(data, setting, dtype, method):
    """The parameters that a callback keeps are those of a training that ends there."""
    X, y = data[0].astype(dtype), data[1]
    kept = []
    model = make_model(**setting, callbacks=lambda model, record: kept.append((model.coef_, model.intercept_)))
    if method == "fit_batches":
        parts = [(X[i::3], y[i::3]) for i in range(3)]
        model.fit_batches(parts, [0, 1, 2])
        arrays = model._trainer.parameters.values()
        assert not any(np.shares_memory(a, b) for pair in kept for a in pair for b in arrays)
    else:
        model.fit(X, y)
    copies = [(coef.copy(), intercept.copy()) for coef, intercept in kept]
    for i, pair in enumerate(kept):
        for other in kept[i + 1 :]:
            assert not any(np.shares_memory(a, b) for a in pair for b in other)
            assert not np.array_equal(pair[0], other[0])
        if not model.early_stopping:
            shorter = make_model(**{**setting, "max_epochs": i + 1})
            shorter = shorter.fit(X, y) if method == "fit" else shorter.fit_batches(parts, [0, 1, 2])
            assert np.array_equal(shorter.coef_, pair[0])
            assert np.array_equal(shorter.intercept_, pair[1])
    model.partial_fit(X, y) if not model.early_stopping else model.fit(X, y)
    assert all(np.array_equal(a, b) for pair, copy in zip(kept, copies) for a, b in zip(pair, copy))


@pytest.mark.parametrize("result", [np.array([0, 1]), np.array([[True], [False]])])
def test_a_callback_that_returns_an_array_is_named(data, result):
    with pytest.raises(TypeError, match="callbacks must return a true result to stop the training, else a false one"):
        SoftmaxRegression(callbacks=lambda model, record: result).fit(*data)


def test_a_callback_that_writes_does_not_change_the_training(data):
    def spoil(model, record):
        model.coef_[:] = np.nan
        model.intercept_[:] = 1e9

    for setting in SETTINGS:
        expected = make_model(**setting).fit(*data)
        assert np.array_equal(make_model(**setting, callbacks=spoil).fit(*data).coef_, expected.coef_)


def test_partial_fit_leaves_earlier_arrays_alone(data):
    for options in ({}, {"batch_norm": True, "solver": "adamw"}):
        model = make_model(**options).partial_fit(*data, classes=[0, 1, 2])
        before = model.coef_, model.coef_.copy()
        model.partial_fit(*data)
        assert np.array_equal(*before)
        assert not np.shares_memory(model.coef_, model._trainer.parameters["coef"])


# Callbacks of scikit-learn


class Record:
    """A callback that keeps what it is told, and stops or fails at one of the calls."""

    def __init__(self, stop_at=None, fail_at=None):
        self.events, self.fitted, self.data, self.stop_at, self.fail_at = [], [], [], stop_at, fail_at

    def setup(self, estimator, context):
        self.events.append("setup")

    def teardown(self, estimator, context):
        self.events.append("teardown")

    def on_fit_task_begin(self, estimator, context, *, X, y, metadata):
        self.events.append(("begin", context.task_name, context.task_id))
        self.data.append((X, y, metadata))
        if self.fail_at == len(self.events):
            raise KeyError("begin")

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        self.events.append(("end", context.task_name, context.task_id))
        self.fitted.append((context.task_name, fitted_estimator))
        if self.fail_at == len(self.events):
            raise KeyError("end")
        return self.stop_at == context.task_id and context.task_name == "epoch"

    def check_tree(self):
        """Every task that has begun has ended, the inner ones first."""
        assert self.events[0] == "setup"
        assert self.events[-1] == "teardown"
        assert self.events.count("setup") == self.events.count("teardown") == 1
        open_tasks = []
        for event, *task in self.events[1:-1]:
            if event == "begin":
                open_tasks.append(task)
            else:
                assert open_tasks.pop() == task
        assert not open_tasks


@pytest.fixture(autouse=True)
def needs_sklearn_callbacks(request):
    if "sklearn" in request.node.name:
        pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has it")


@pytest.mark.parametrize("max_epochs", [1, 2, 500])
@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_sklearn_tasks_begin_and_end(data, setting, max_epochs):
    if setting["solver"] == "adamw":
        max_epochs = min(max_epochs, 5)
    record = Record()
    model = make_model(**setting, max_epochs=max_epochs).set_callbacks(record).fit(*data)
    record.check_tree()
    epochs = [fitted for name, fitted in record.fitted if name == "epoch"]
    assert len([fitted for fitted in epochs if fitted is not None]) == model.n_iter_
    assert all(fitted is None for fitted in epochs[model.n_iter_ :])  # begun when lbfgs had converged
    assert len(epochs) <= model.n_iter_ + 1
    last = record.fitted[-1][1]
    assert np.array_equal(last.coef_, model.coef_)
    assert np.array_equal(last.predict(data[0]), model.predict(data[0]))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_sklearn_fitted_estimators_are_snapshots(data, setting):
    record = Record()
    model = make_model(**setting).set_callbacks(record).fit(*data)
    epochs = [fitted for name, fitted in record.fitted if name == "epoch" and fitted is not None]
    for i, fitted in enumerate(epochs):
        assert fitted.n_iter_ == len(fitted.history_["loss"]) == i + 1
        assert not any(np.shares_memory(fitted.coef_, other.coef_) for other in epochs[i + 1 :])
        if not model.early_stopping:
            shorter = make_model(**setting, **{"max_epochs": i + 1}).fit(*data)
            assert np.array_equal(shorter.coef_, fitted.coef_)
            assert np.array_equal(shorter.predict_proba(data[0]), fitted.predict_proba(data[0]))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_sklearn_tasks_end_if_a_callback_stops_or_fails(data, setting):
    for i in range(3):
        record = Record(stop_at=i)
        model = make_model(**setting).set_callbacks(record).fit(*data)
        record.check_tree()
        assert model.n_iter_ == i + 1
        record = Record()
        callbacks = [lambda model, r, i=i: r["epoch"] > i and 1 / 0]
        with pytest.raises(ZeroDivisionError):
            make_model(**setting, callbacks=callbacks).set_callbacks(record).fit(*data)
        record.check_tree()
        record = Record()
        make_model(**setting, callbacks=lambda model, r, i=i: r["epoch"] > i).set_callbacks(record).fit(*data)
        record.check_tree()
    for i in range(2, 9):
        record = Record(fail_at=i)
        with pytest.raises(KeyError):
            make_model(**setting).set_callbacks(record).fit(*data)
        record.check_tree()


def test_sklearn_hooks_get_the_data(data):
    X, y = data
    names, weights = np.array(["a", "b", "c"])[y], np.arange(150.0)
    for setting in (setting for setting in SETTINGS if "early_stopping" not in setting):
        record = Record()
        make_model(**setting).set_callbacks(record).fit(X, names, weights)
        for given in record.data:
            assert np.array_equal(given[0], X[1:])  # the first row has weight 0
            assert np.array_equal(given[1], names[1:])
            assert np.array_equal(given[2]["sample_weight"], weights[1:])


def test_sklearn_scoring_monitor(data):
    callback = pytest.importorskip("sklearn.callback")
    if not hasattr(callback, "ScoringMonitor"):
        pytest.skip("this scikit-learn has no ScoringMonitor")
    for setting in SETTINGS:
        monitor = callback.ScoringMonitor(scoring="neg_log_loss")
        model = make_model(**setting).set_callbacks(monitor).fit(*data)
        rows = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
        assert len(rows) == model.n_iter_
        assert rows[-1]["neg_log_loss"] > rows[0]["neg_log_loss"]


def test_sklearn_callbacks_of_fit_batches(data):
    X, y = data
    for options in ({}, {"batch_norm": True}):
        record = Record()
        model = make_model(solver="adamw", **options).set_callbacks(record)
        model.fit_batches([(X[::2], y[::2]), (X[1::2], y[1::2])], [0, 1, 2])
        record.check_tree()
        record = Record()
        with pytest.raises(ValueError, match="NaN"):
            model.set_callbacks(record).fit_batches([(X, y), (X * np.nan, y)], [0, 1, 2])
        record.check_tree()
