"""Models, calibrators and metrics over collections of Dask, in this process: predictions are lazy, sums are exact."""

import fractions
import itertools
from pathlib import Path

import numpy as np
import pytest

dask = pytest.importorskip("dask", reason="belongs to the extra dask")
da = pytest.importorskip("dask.array")

import csoftmax  # noqa: E402
from csoftmax import calibration, metrics  # noqa: E402
from csoftmax._dask.options import options  # noqa: E402
from csoftmax._learn.parts.exact import add_exactly, round_sums  # noqa: E402
from csoftmax.linear_model import ManyClassRegression, SoftmaxRegression  # noqa: E402


def make_rows(n=900, d=4, k=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * 2
    y = (X @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k))).argmax(axis=1)
    return X, y, rng.random(n) * (rng.random(n) < 0.9)


def lazy(chunk, *arrays):
    return [da.from_array(a, chunks=(chunk, -1)[: a.ndim]) for a in arrays]


def refuse(*_, **__):
    raise AssertionError("something was computed")


def test_fits_with_and_without_memory():
    X, y, w = make_rows()
    model = SoftmaxRegression().fit(*lazy(100, X, y, w))
    plain = SoftmaxRegression().fit(X, y, w)
    assert abs(model.history_["loss"][-1] - plain.history_["loss"][-1]) <= 1e-12 * plain.history_["loss"][-1]
    with options(keep=False, split_every=2):
        again = SoftmaxRegression().fit(*lazy(100, X, y, w))
    assert again.coef_.tobytes() == model.coef_.tobytes()
    labels = SoftmaxRegression().fit(lazy(100, X)[0], y.tolist())  # those in memory are divided alike
    assert labels.coef_.tobytes() == SoftmaxRegression().fit(*lazy(100, X, y)).coef_.tobytes()


@pytest.mark.parametrize("names", [None, ["ant", "bee", "cow"], ["no", "yes"]])
def test_predictions_are_lazy(names):
    X, y, w = make_rows(k=2 if names and len(names) == 2 else 3)
    y = y if names is None else np.array(names)[y]
    model = SoftmaxRegression().fit(X, y)
    x, labels, weight = lazy(200, X, y, w)
    with dask.config.set(scheduler=refuse):
        results = {
            name: getattr(model, name)(x)
            for name in ("predict", "predict_proba", "predict_log_proba", "decision_function")
        }
        score = model.score(x, labels, weight)
    for name, result in results.items():
        expected = getattr(model, name)(X)
        assert result.chunks[0] == x.chunks[0]
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
        assert np.array_equal(result.compute(), expected)
    assert score.shape == ()
    assert abs(float(score.compute()) - model.score(X, y, w)) < 1e-14
    single = model.predict_proba(x.astype(np.float32))
    assert single.dtype == np.float64
    assert model.decision_function(x.astype(np.float32)).dtype == np.float32


def test_frames_keep_their_index():
    pandas, frames = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    X, y, _ = make_rows()
    frame = pandas.DataFrame(X, columns=list("abcd"), index=np.arange(900) * 3)
    model = SoftmaxRegression().fit(frame, y)
    parts = frames.from_pandas(frame, npartitions=4)
    with dask.config.set(scheduler=refuse):
        labels, p = model.predict(parts), model.predict_proba(parts)
    assert labels.compute().index.equals(frame.index)
    assert labels.compute().tolist() == model.predict(frame).tolist()
    assert p.compute().columns.tolist() == [0, 1, 2]
    assert np.array_equal(p.compute(), model.predict_proba(frame))


@pytest.mark.parametrize(
    "name", ["TemperatureScaling", "VectorScaling", "MatrixScaling", "DirichletCalibration"]
)  # fmt: skip
def test_calibrators(name):
    X, y, w = make_rows()
    z = X[:, :3].copy()
    z[::50, 2] = np.where(y[::50] == 2, z[::50, 2], -np.inf)
    plain = getattr(calibration, name)().fit(z, y, w)
    fitted = [getattr(calibration, name)().fit(*lazy(chunk, z, y, w)) for chunk in (100, 350)]
    for model in fitted:
        assert model.n_iter_ == plain.n_iter_
        assert model.temperature_ == pytest.approx(plain.temperature_, rel=1e-12)
        assert np.allclose(model.predict_proba(z), plain.predict_proba(z), rtol=1e-7, atol=1e-9)
        assert np.array_equal(model.classes_, plain.classes_)
    x = lazy(100, z)[0]
    with dask.config.set(scheduler=refuse):
        p, labels = plain.predict_proba(x), plain.predict(x)
    assert np.array_equal(p.compute(), plain.predict_proba(z))
    assert np.array_equal(plain.transform(x).compute(), plain.transform(z))
    assert np.array_equal(labels.compute(), plain.predict(z))
    text = np.array(["ant", "bee", "cow"])[y]
    assert getattr(calibration, name)().fit(*lazy(100, z, text)).classes_.tolist() == ["ant", "bee", "cow"]


def test_calibrators_refuse_rows_by_part():
    X, y, w = make_rows()
    z = X[:, :3].copy()
    z[407, 1] = np.nan
    with pytest.raises(ValueError, match=r"logits\[407, 1\], row 7 of part 4, is nan"):
        calibration.TemperatureScaling().fit(*lazy(100, z, y))
    z[407] = [0, 0, -np.inf]
    with pytest.raises(ValueError, match=r"logits\[407, 2\], row 7 of part 4, is -inf, but that is the label"):
        calibration.VectorScaling().fit(*lazy(100, z, np.where(np.arange(900) == 407, 2, y)))
    for name in ("PlattScaling", "IsotonicCalibration"):
        with pytest.raises(ValueError, match=f"{name} needs all rows at once.*a sample"):
            getattr(calibration, name)().fit(*lazy(100, z, y))
    with pytest.raises(ValueError, match="no part of 9 has a row with weight"):
        calibration.TemperatureScaling().fit(*lazy(100, z, y, w * 0))
    with pytest.warns(UserWarning, match="all held-out rows .30. are classified correctly"):
        calibration.TemperatureScaling().fit(*lazy(10, np.eye(3)[np.arange(30) % 3], np.arange(30) % 3))


@pytest.mark.parametrize("kind", ["none", "fractions", "whole"])
def test_metrics_have_the_same_bits_for_any_parts(kind):
    X, y, w = make_rows()
    p = np.exp(X[:, :3])
    p /= p.sum(axis=1, keepdims=True)
    w = {"none": None, "fractions": w, "whole": np.round(3 * w)}[kind]
    for name in (
        "expected_calibration_error",
        "maximum_calibration_error",
        "classwise_calibration_error",
        "brier_score",
    ):
        metric = getattr(metrics, name)
        found = set()
        for chunk in (100, 350, 900):
            labels, probabilities, *weight = lazy(chunk, y, p, *([] if w is None else [w]))
            found.add(metric(labels, probabilities, sample_weight=weight[0] if weight else None))
        assert len(found) == 1
        assert found.pop() == pytest.approx(metric(y, p, sample_weight=w), rel=1e-13)
    curve = metrics.reliability_curve(*lazy(100, y, p), n_bins=5)
    for a, b in zip(curve, metrics.reliability_curve(y, p, n_bins=5)):
        assert np.allclose(a, b, rtol=1e-12, equal_nan=True)
    debiased = metrics.expected_calibration_error(*lazy(100, y, p), norm=2, debiased=True)
    assert debiased == pytest.approx(metrics.expected_calibration_error(y, p, norm=2, debiased=True), rel=1e-9)
    text = np.array(["ant", "bee", "cow"])[y]
    labels, probabilities = lazy(100, text, p)
    assert metrics.brier_score(labels, probabilities) == metrics.brier_score(*lazy(100, y, p))


def test_what_needs_all_rows_is_refused():
    X, y, _ = make_rows()
    x, labels = lazy(100, X, y)
    p = SoftmaxRegression().fit(X, y).predict_proba(x)
    with pytest.raises(ValueError, match=r"strategy=.quantile. .* a sample"):
        metrics.expected_calibration_error(labels, p, strategy="quantile")
    with pytest.raises(TypeError, match="y_true is a dask Array"):
        metrics.smooth_calibration_error(labels, p)
    with pytest.raises(TypeError, match="y is a dask Array"):
        metrics.evaluate(SoftmaxRegression().fit(X, y), x, labels)
    with pytest.raises(TypeError, match="X is a dask Array"):
        ManyClassRegression().fit(x, labels)
    with pytest.raises(TypeError, match="X is a dask Array"):
        SoftmaxRegression(solver="adamw").partial_fit(x, labels, classes=[0, 1, 2])


def test_exact_sums():
    rng = np.random.default_rng(4)
    values = rng.normal(size=500) * 2.0 ** rng.integers(-1060, 900, 500)
    values[:4] = 5e-324, 0, -0.0, 1e308
    groups = rng.integers(0, 7, 500)
    expected = [float(sum(map(fractions.Fraction, values[groups == g].tolist()))) for g in range(7)]
    for cuts in ([0, 500], [0, 1, 33, 400, 500]):
        records = [add_exactly(groups[a:b], values[a:b], 7) for a, b in itertools.pairwise(cuts)]
        assert round_sums(records[::-1], 7).tolist() == expected


def test_state_is_never_scattered():
    """Scattered data of a worker that is lost are gone, and no task brings them back."""
    folder = Path(csoftmax.__file__).parent
    for path in (*folder.glob("_dask/*.py"), *folder.glob("_learn/parts/*.py")):
        assert ".scatter(" not in path.read_text(), path
