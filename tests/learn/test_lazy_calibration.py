"""Calibrators and calibrated models of Dask collections: lazy, or refused; nothing is computed behind the caller."""

import numpy as np
import pytest
from sklearn import pipeline
from sklearn.feature_extraction.text import CountVectorizer

import csoftmax
from csoftmax import calibration, metrics
from csoftmax.heads import AdaptiveSoftmax
from csoftmax.linear_model import ManyClassRegression, SoftmaxRegression

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 90)
X = RNG.normal(size=(90, 4)) + np.eye(4)[Y]
LOGITS = RNG.normal(size=(90, 3)) + np.eye(3)[Y]
LOGITS[7, (Y[7] + 1) % 3] = -np.inf  # an impossible class, which calibrators take
WEIGHT = RNG.random(90) * (RNG.random(90) < 0.8)
CALIBRATORS = [name for name in calibration.__all__ if name != "CalibratedModel"]


def lazily(a):
    return da.from_array(a, chunks=(40, -1)[: a.ndim])


def refuse(*_arguments, **_options):
    raise AssertionError("something is computed")


def without_computing(function, *arguments):
    """The result of the function, which must not compute any collection."""
    with dask.config.set(scheduler=refuse):
        return function(*arguments)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("name", CALIBRATORS)
def test_scores_of_calibrators_are_lazy(name):
    fitted = getattr(calibration, name)().fit(LOGITS, Y)
    for y in (lazily(Y), Y):
        found = without_computing(fitted.score, lazily(LOGITS), y)
        assert (found.shape, found.dtype) == ((), np.float64)
        assert found.compute() == fitted.score(LOGITS, Y)
    found = without_computing(fitted.score, lazily(LOGITS), lazily(Y), lazily(WEIGHT))
    assert abs(found.compute() - fitted.score(LOGITS, Y, WEIGHT)) <= 1e-15
    for method in ("predict", "predict_proba", "transform"):
        found = without_computing(getattr(fitted, method), lazily(LOGITS))
        assert np.array_equal(found.compute(), getattr(fitted, method)(LOGITS))


def test_bad_rows_of_a_lazy_score_are_named():
    fitted = calibration.TemperatureScaling().fit(LOGITS, Y)
    bad = LOGITS.copy()
    bad[43, 1] = np.nan
    found = without_computing(fitted.score, lazily(bad), lazily(Y))
    with pytest.raises(ValueError, match=r"part 1: logits\[3, 1\] is nan; NaN and \+inf are not allowed"):
        found.compute()
    labels = np.where(np.arange(90) == 43, np.nan, Y)
    with pytest.raises(ValueError, match=r"y\[43\], row 3 of part 1, is nan"):
        fitted.score(lazily(LOGITS), lazily(labels)).compute()
    with pytest.raises(ValueError, match="part 0: y has the label '0', of another kind than the classes"):
        fitted.score(lazily(LOGITS), lazily(Y.astype(str))).compute()
    with pytest.raises(ValueError, match=r"2 features, but TemperatureScaling is expecting 3 features|columns"):
        without_computing(fitted.score, lazily(LOGITS[:, :2]), lazily(Y))


def test_calibrated_models_predict_and_score_lazily():
    model = calibration.CalibratedModel(SoftmaxRegression(tol=1e-2), cv=3).fit(X, Y)
    for method in ("predict", "predict_proba"):
        found = without_computing(getattr(model, method), lazily(X))
        assert np.array_equal(found.compute(), getattr(model, method)(X))
    assert without_computing(model.score, lazily(X), lazily(Y)).compute() == model.score(X, Y)
    empty = X[:, 0] > 1e9
    assert model.predict_proba(lazily(X)[lazily(empty)]).compute().shape == (0, 3)
    frames = pytest.importorskip("dask.dataframe")
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcd"))
    model = calibration.CalibratedModel(SoftmaxRegression(tol=1e-2), cv=3).fit(table, Y)
    found = without_computing(model.predict_proba, frames.from_pandas(table, npartitions=3))
    assert list(found.columns) == [0, 1, 2]
    assert np.array_equal(found.compute().to_numpy(), model.predict_proba(table))


def test_what_needs_rows_in_memory_refuses_collections():
    probabilities = csoftmax.softmax(LOGITS)
    many = ManyClassRegression(max_epochs=1).fit(X, Y)
    layer = AdaptiveSoftmax(4, 10, cutoffs=[3])
    calibrated = calibration.CalibratedModel(SoftmaxRegression())
    cases = [
        (calibrated.fit, (lazily(X), Y), "X is a dask Array, and CalibratedModel"),
        (calibrated.fit, (X, lazily(Y)), "y is a dask Array"),
        (many.score, (lazily(X), Y), "X is a dask Array"),
        (many.score, (X, lazily(Y)), "y is a dask Array"),
        (many.score, (X, Y, lazily(WEIGHT)), "sample_weight is a dask Array"),
        (layer.freeze, (da.arange(3),), "classes is a dask Array"),
        (metrics.evaluate, (SoftmaxRegression().fit(X, Y), lazily(X), lazily(Y)), "is a dask Array"),
        (metrics.plot_reliability, (Y, lazily(probabilities)), "y_prob is a dask Array"),
        (metrics.smooth_calibration_error, (lazily(Y), probabilities), "y_true is a dask Array"),
    ]
    for function, arguments, message in cases:
        with pytest.raises(TypeError, match=message):
            without_computing(function, *arguments)
    assert many.score(X, Y) == (many.predict(X) == Y).mean()


@pytest.mark.parametrize("kind", ["temperature", "features", "model"])
def test_scores_refuse_masks_and_compute_no_weights(kind):
    model, x = {
        "temperature": (calibration.TemperatureScaling(), LOGITS),
        "features": (SoftmaxRegression(tol=1e-2), X),
        "model": (calibration.CalibratedModel(SoftmaxRegression(tol=1e-2), cv=2), X),
    }[kind]
    model.fit(x, Y)
    is_masked = np.arange(90) < 50
    weight, labels = np.ma.array(WEIGHT, mask=is_masked), np.ma.array(Y, mask=is_masked)
    for rows in (x, lazily(x)):
        with pytest.raises(TypeError, match="sample_weight is a masked array"):
            without_computing(model.score, rows, Y, weight)
        with pytest.raises(TypeError, match="y is a masked array"):
            without_computing(model.score, rows, labels)
    with pytest.raises(TypeError, match=r"or leave out the masked rows$"):  # compress_rows takes tables alone
        model.score(x, labels)
    with pytest.raises(TypeError, match=r"^X is a numpy.ndarray; beside Dask collections, allowed is"):
        without_computing(model.score, x, Y, lazily(WEIGHT))
    assert without_computing(model.score, lazily(x), Y, WEIGHT).compute() == pytest.approx(model.score(x, Y, WEIGHT))


@pytest.mark.parametrize("name", ["y", "sample_weight"])
def test_masks_beside_collections_are_not_dropped_by_fits(name):
    given = {"y": Y, "sample_weight": WEIGHT}
    given[name] = np.ma.array(given[name], mask=np.arange(90) < 50)
    for model, x in ((SoftmaxRegression(), X), (calibration.TemperatureScaling(), LOGITS)):
        with pytest.raises(TypeError, match=f"^{name} is a masked array"):
            model.fit(lazily(x), **given)


def test_logits_of_one_axis_are_lazy():
    z, labels = LOGITS[:, 0], Y == 0
    scaling = calibration.TemperatureScaling().fit(lazily(z), lazily(labels))
    frames = pytest.importorskip("dask.dataframe")
    pandas = pytest.importorskip("pandas")
    with dask.config.set({"dataframe.convert-string": False}):
        column, objects = (frames.from_pandas(pandas.Series(z, dtype=kind), npartitions=3) for kind in (float, object))
    for method in ("predict", "predict_proba", "transform"):
        expected = getattr(scaling, method)(z)
        for given in (lazily(z), column, objects):
            found = without_computing(getattr(scaling, method), given)
            assert np.array_equal(np.asarray(found.compute()), expected), method
        found = without_computing(getattr(scaling, method), lazily(z))
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        assert getattr(scaling, method)(lazily(z)[lazily(z) > 1e9]).compute().shape == (0, *expected.shape[1:])
    for given in (lazily(z), column):
        assert without_computing(scaling.score, given, labels).compute() == scaling.score(z, labels)
    with pytest.raises(ValueError, match=r"must have 3 columns, as in fit, got shape \(1,\)"):
        without_computing(calibration.TemperatureScaling().fit(LOGITS, Y).predict, lazily(z))
    with pytest.raises(ValueError, match="X must have two axes"):
        without_computing(SoftmaxRegression(tol=1e-2).fit(X, Y).predict, lazily(z))


def test_a_model_of_texts_scores_lists_in_parts():
    texts, labels = ["a b", "b c", "c d", "d a"] * 10, np.array([0, 1, 1, 0] * 10)
    labels[::7] = 1 - labels[::7]
    words = pipeline.make_pipeline(CountVectorizer(token_pattern=r"\w"), SoftmaxRegression(tol=1e-2))
    model = calibration.CalibratedModel(words, cv=2).fit(texts, labels)
    parts = [[dask.delayed(a[:15]), dask.delayed(a[15:])] for a in (texts, labels)]
    assert without_computing(model.score, *parts).compute() == model.score(texts, labels)
    with pytest.raises(TypeError, match=r"^X is a list of dask Delayed, and .*: pass the rows of dask.compute\(\*X\)"):
        without_computing(model.fit, parts[0], labels)
