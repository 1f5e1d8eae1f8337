"""Arguments of SoftmaxRegression: arrays of other libraries, data frames, labels, random states; messages of errors."""

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.metrics import get_scorer

from csoftmax._learn.messages import show
from csoftmax.linear_model import SoftmaxRegression

METHODS = ("decision_function", "predict_proba", "predict_log_proba", "predict")


@pytest.fixture(scope="module")
def iris():
    return load_iris(return_X_y=True)


@pytest.fixture(scope="module", params=["two", "three"])
def fitted(request, iris):
    X, y = (a[: 100 if request.param == "two" else 150] for a in iris)
    return SoftmaxRegression(penalty_l2=1e-2).fit(X, y), X, y


# Arrays of other libraries


def import_library(name):
    library = pytest.importorskip(name)
    return library if name != "jax" else library.numpy


def as_numpy(a):
    return np.from_dlpack(a) if not hasattr(a, "_array") else a._array  # array_api_strict exports no read-only array


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("name", ["torch", "jax", "array_api_strict"])
def test_arrays_of_a_library_give_the_same_kind(fitted, name, dtype):
    library = import_library(name)
    model, X, y = fitted
    given = library.asarray(X.astype(dtype))
    native = np.asarray(as_numpy(given))  # JAX has 4 bytes unless 8 are switched on
    for method in METHODS:
        result, expected = getattr(model, method)(given), getattr(model, method)(native)
        assert type(result) is type(given)
        assert tuple(result.shape) == expected.shape
        assert np.allclose(as_numpy(result), expected, rtol=1e-6, atol=1e-7)
        if name != "jax":
            assert np.asarray(as_numpy(result)).dtype == expected.dtype
    assert model.score(given, library.asarray(y)) == pytest.approx(model.score(native, y))
    assert model.score(given, y) == pytest.approx(model.score(native, y))


@pytest.mark.parametrize("name", ["torch", "jax", "array_api_strict"])
def test_fit_with_arrays_of_a_library(iris, name):
    library = import_library(name)
    X, y = iris
    X, w = X.astype(np.float32), np.linspace(0.5, 2, len(y)).astype(np.float32)
    for solver in ("lbfgs", "adamw"):
        model = SoftmaxRegression(solver=solver, penalty_l2=1e-2, random_state=0)
        expected = model.fit(X, y, w).coef_
        again = SoftmaxRegression(**model.get_params()).fit(*map(library.asarray, (X, y, w)))
        assert np.array_equal(again.coef_, expected)
        assert type(again.classes_) is type(again.coef_) is np.ndarray
    model.partial_fit(*map(library.asarray, (X, y)), sample_weight=library.asarray(w))
    batches = [tuple(map(library.asarray, (X, y, w)))]
    model.fit_batches(batches, library.asarray(np.arange(3)), epochs=2)


def test_labels_that_are_strings_are_numpy_arrays(iris):
    torch = pytest.importorskip("torch")
    X, y = iris
    names = np.array(["a", "b", "c"])[y]
    model = SoftmaxRegression(penalty_l2=1e-2).fit(torch.tensor(X), names)
    assert isinstance(model.predict_proba(torch.tensor(X)), torch.Tensor)
    assert np.array_equal(model.predict(torch.tensor(X)), model.predict(X))
    for labels in (y == 0, y.astype(np.uint8), y.astype(np.float64)):
        model = SoftmaxRegression(penalty_l2=1e-2).fit(X, labels)
        assert np.array_equal(model.predict(torch.tensor(X)).numpy(), model.predict(X))


def test_tensor_that_requires_grad(fitted):
    torch = pytest.importorskip("torch")
    model, X, y = fitted
    given = torch.tensor(X, requires_grad=True)
    calls = [lambda X, method=method: getattr(model, method)(X) for method in METHODS]
    calls += [lambda X: SoftmaxRegression(penalty_l2=1e-2).fit(X, y)]
    calls += [lambda X: SoftmaxRegression().partial_fit(X, y, classes=np.unique(y))]
    for call in calls:
        with pytest.raises(ValueError, match=r"X requires grad.*X\.detach\(\)"):
            call(given)
        with torch.no_grad():
            call(given)
        with torch.inference_mode():
            call(given)
    with torch.no_grad():
        assert np.array_equal(model.predict_proba(given).numpy(), model.predict_proba(X))
    with pytest.raises(ValueError, match="sample_weight requires grad"):
        SoftmaxRegression().fit(X, y, torch.ones(len(y), requires_grad=True))


def test_half_precision_tensors(iris):
    torch = pytest.importorskip("torch")
    X, y = iris
    for dtype in (torch.float16, torch.bfloat16):
        given = torch.tensor(X).to(dtype)
        model = SoftmaxRegression(penalty_l2=1e-2).fit(given, y)
        assert np.array_equal(model.coef_, SoftmaxRegression(penalty_l2=1e-2).fit(given.double().numpy(), y).coef_)
        assert model.predict_proba(given).dtype == torch.float64


# Data frames


def test_polars(iris):
    pl = pytest.importorskip("polars")
    X, y = iris
    frame = pl.DataFrame(X, schema=["a", "b", "c", "d"])
    names = pl.Series(np.array(["x", "y", "z"])[y])
    model = SoftmaxRegression(penalty_l2=1e-2).fit(frame, names)
    expected = SoftmaxRegression(penalty_l2=1e-2).fit(X, np.asarray(names))
    assert np.allclose(model.coef_, expected.coef_, rtol=1e-7)  # the frame has another layout
    assert isinstance(model.predict_proba(frame), np.ndarray)
    for lazy in (lambda: model.fit(frame.lazy(), names), lambda: model.predict(frame.lazy())):
        with pytest.raises(TypeError, match=r"X is a polars LazyFrame: pass X\.collect\(\)"):
            lazy()
    with pytest.raises(ValueError, match=r"NaN|not a value"):
        model.predict(pl.DataFrame({"a": [1.0, None], "b": [1.0, 2.0], "c": [1.0, 2.0], "d": [1.0, 2.0]}))
    with pytest.raises(ValueError, match=r"y\[1\] is None"):
        SoftmaxRegression().fit(frame[:3], pl.Series(["x", None, "y"]))


def test_nullable_pandas(iris):
    pd = pytest.importorskip("pandas")
    X, y = iris
    frame = pd.DataFrame(X, columns=list("abcd")).astype("Float64")
    model = SoftmaxRegression(penalty_l2=1e-2).fit(frame, pd.Series(y, dtype="Int64"))
    expected = SoftmaxRegression(penalty_l2=1e-2).fit(X, y)
    assert np.allclose(model.coef_, expected.coef_, rtol=1e-7)  # the frame has another layout
    assert np.array_equal(model.predict(frame), expected.predict(X))
    frame.loc[3, "b"] = pd.NA
    with pytest.raises(ValueError, match=r"NaN|not a value"):
        SoftmaxRegression().fit(frame, y)
    with pytest.raises(ValueError, match=r"NaN|not a value"):
        model.predict(frame)
    labels = pd.Series(y, dtype="Int64")
    labels[2] = pd.NA
    with pytest.raises(ValueError, match=r"y"):
        SoftmaxRegression().fit(X, labels)
    for kind in ("string", "category", "boolean"):
        given = pd.Series(y == 0 if kind == "boolean" else np.array(["x", "y", "z"])[y], dtype=kind)
        model = SoftmaxRegression(penalty_l2=1e-2).fit(X, given)
        assert model.score(X, given) > 0.9


# Refusals


def test_what_scikit_learn_would_ignore_is_refused(fitted):
    model, X, y = fitted
    masked, plain = np.ma.masked_array(X, X > 5), SoftmaxRegression(penalty_l2=1e-2)
    for call in (
        lambda: plain.fit(masked, y),
        lambda: plain.fit(np.ma.masked_array(X), y),
        lambda: plain.partial_fit(masked, y, classes=np.unique(y)),
        lambda: plain.fit_batches([(masked, y)], np.unique(y), epochs=1),
        lambda: plain.fit(X, np.ma.masked_array(y, y == 0)),
        lambda: plain.fit(X, y, np.ma.masked_array(np.ones(len(y)), y == 0)),
        *(lambda method=method: getattr(model, method)(masked) for method in METHODS),
    ):
        with pytest.raises(TypeError, match=r"(X|y|sample_weight) is a masked array.*filled"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix, column = np.matrix(X), np.matrix(y)
    for call in (lambda: plain.fit(matrix, y), lambda: plain.fit(X, column), lambda: model.predict(matrix)):
        with pytest.raises(TypeError, match=r"(X|y) is a numpy\.matrix: pass numpy\.asarray"):
            call()
    with pytest.raises(ValueError, match="Complex"):
        plain.fit(X + 0j, y)
    with pytest.raises(ValueError, match="Complex"):
        model.predict(X + 0j)


def test_none_is_no_value(iris):
    X, y = iris[0][:6], ["a", "b", "a", "b", "a", "b"]
    model = SoftmaxRegression(penalty_l2=1e-2).fit(X, y)
    for labels in (["a", None, "a", "b", "a", "b"], np.array(["a", None, "a", "b", "a", "b"], object)):
        with pytest.raises(ValueError, match=r"y\[1\] is None.*every row needs a label"):
            SoftmaxRegression().fit(X, labels)
        with pytest.raises(ValueError, match=r"y\[1\] is None"):
            SoftmaxRegression().partial_fit(X, labels, classes=["a", "b"])
    with pytest.raises(ValueError, match="classes"):
        SoftmaxRegression().partial_fit(X, y, classes=["a", None])
    holes = X.astype(object)
    holes[2, 1] = None
    for call in (lambda: SoftmaxRegression().fit(holes, y), lambda: model.predict(holes)):
        with pytest.raises(ValueError, match=r"X\[2, 1\] is None.*fill"):
            call()
    with pytest.raises(ValueError, match="y"):
        SoftmaxRegression().fit(X, None)


@pytest.mark.parametrize("wrong", [True, np.bool_(True), 1.5, "7", [1], -1, 2**32])
@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_random_state_is_checked(iris, wrong, solver):
    error = ValueError if isinstance(wrong, int) and not isinstance(wrong, bool) else TypeError
    with pytest.raises(error, match="random_state must be"):
        SoftmaxRegression(solver=solver, random_state=wrong).fit(*iris)


def test_kinds_of_random_state(iris):
    def coef(random_state):
        given = {"solver": "adamw", "max_epochs": 3, "batch_size": 20, "early_stopping": True}
        return SoftmaxRegression(**given, random_state=random_state).fit(*iris).coef_

    for make in (np.random.RandomState, np.random.default_rng, int, np.int64):
        assert np.array_equal(coef(make(7)), coef(make(7)))
        assert not np.array_equal(coef(make(7)), coef(make(8)))
    generator = np.random.default_rng(7)
    assert not np.array_equal(coef(generator), coef(generator))  # it moves on
    coef(None)
    coef(np.random)


def test_switches_and_counts_are_checked(iris):
    for name in ("fit_intercept", "early_stopping", "batch_norm", "warm_start"):
        for wrong in (1, "yes", None):
            with pytest.raises(TypeError, match=f"{name} must be True or False"):
                SoftmaxRegression(solver="adamw", **{name: wrong}).fit(*iris)
    SoftmaxRegression(warm_start=np.True_).fit(*iris)
    for name in ("batch_size", "max_epochs", "patience"):
        for wrong in (True, np.True_, 2.0):
            with pytest.raises(TypeError, match=f"{name} must be an int"):
                SoftmaxRegression(**{name: wrong}).fit(*iris)
    for wrong in (True, np.True_):
        with pytest.raises(TypeError, match="epochs"):
            SoftmaxRegression().fit_batches([iris], [0, 1, 2], epochs=wrong)


def test_messages_show_numbers_as_numbers(iris):
    X, y = iris
    model = SoftmaxRegression(penalty_l2=1e-2).fit(X, y)
    calls = (
        lambda: SoftmaxRegression(penalty_l2=np.float64(-3.0)).fit(X, y),
        lambda: SoftmaxRegression(max_epochs=np.int64(0)).fit(X, y),
        lambda: SoftmaxRegression().fit(X[:50], y[:50]),
        lambda: SoftmaxRegression(class_weight={np.int64(0): np.float64(-1.0)}).fit(X, y),
        lambda: model.add_classes([np.int64(1)]),
        lambda: model.freeze([np.int64(7)]),
        lambda: model.partial_fit(X, y + 1),
        lambda: model.partial_fit(X, y, classes=np.arange(4)),
        lambda: model.fit_batches([iris], [0, 1], epochs=np.int64(0)),
        lambda: SoftmaxRegression().partial_fit(X, y, classes=[np.int64(3)]),
    )
    for call in calls:
        with pytest.raises(ValueError) as caught:
            call()
        assert "np." not in str(caught.value)
        assert "array(" not in str(caught.value)
    assert show(np.int64(3)) == "3"
    assert show({np.float64(0.0): [np.str_("a"), (np.True_,)]}) == "{0.0: ['a', (True,)]}"
    assert show(np.arange(1000)).endswith("19, ... (1000 in all)]")
    assert show("x") == "'x'"


@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_batches"])
def test_refused_arguments_leave_the_earlier_fit(iris, method):
    X, y = iris
    model = SoftmaxRegression(solver="adamw", max_epochs=2, random_state=0).fit(X, y)
    if method == "partial_fit":
        model.partial_fit(X, y)
    before = {**vars(model), "coef_": model.coef_.copy(), "history_": {k: [*v] for k, v in model.history_.items()}}
    bad_x = X.copy()
    bad_x[5, 1] = np.nan
    for given in ((bad_x, y), (X, y + 0.5), (X, [None] * 150), (X, y, -np.ones(150)), (X, ["a"] * 150)):
        arguments = ([given], [0, 1]) if method == "fit_batches" else given[:2]
        options = {"sample_weight": given[2]} if len(given) > 2 and method != "fit_batches" else {}
        with pytest.raises((ValueError, TypeError)):
            getattr(model, method)(*arguments, **options)
        assert set(vars(model)) == set(before)
        assert np.array_equal(model.coef_, before["coef_"])
        assert model.history_ == before["history_"]
        assert np.array_equal(model.classes_, [0, 1, 2])
        assert model.n_features_in_ == 4
        assert getattr(model, "_trainer", None) is before.get("_trainer")


def test_early_stopping_needs_all_rows(iris):
    model = SoftmaxRegression(solver="adamw", early_stopping=True)
    with pytest.raises(ValueError, match=r"early_stopping.*partial_fit"):
        model.partial_fit(*iris, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"early_stopping.*fit_batches"):
        model.fit_batches([iris], [0, 1, 2])


def test_one_class_cannot_be_learnt_in_parts(iris):
    X, y = iris
    for classes in ([0], [0, 0], [[0, 1, 2]], []):
        with pytest.raises(ValueError, match="classes"):
            SoftmaxRegression().partial_fit(X, y, classes=classes)


@pytest.mark.parametrize("scorer", ["neg_log_loss", "roc_auc_ovr", "accuracy"])
def test_scorers_after_add_classes(iris, scorer):
    """classes_ stays sorted, as scikit-learn's scorers assume."""
    X, y = iris
    names = np.array(["b", "c", "a"])[y]  # the class that is added comes first
    early = y < 2
    model = SoftmaxRegression(penalty_l2=1e-2, warm_start=True).fit(X[early], names[early])
    model.add_classes(["a"])
    assert model.classes_.tolist() == ["a", "b", "c"]
    at_once = get_scorer(scorer)(model, X, names)
    model.fit(X, names)
    trained = get_scorer(scorer)(model, X, names)
    cold = SoftmaxRegression(penalty_l2=1e-2).fit(X, names)
    assert trained == pytest.approx(get_scorer(scorer)(cold, X, names), abs=1e-5)
    assert at_once < trained
