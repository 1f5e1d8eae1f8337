"""Calibrators as estimators of scikit-learn: checks, labels, weights, kinds of arrays, files, warnings, few rows."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import csoftmax
from csoftmax import calibration
from csoftmax._learn import store
from csoftmax.linear_model import SoftmaxRegression

ALL = (
    calibration.TemperatureScaling,
    calibration.VectorScaling,
    calibration.MatrixScaling,
    calibration.DirichletCalibration,
    calibration.PlattScaling,
    calibration.IsotonicCalibration,
)
SHORT = "ignore:.*held-out rows:UserWarning"

# Checks whose labels do not fit the columns of their X, which are not logits.
THREE_LABELS = "three labels for two columns"
MORE_LABELS = {
    "check_classifiers_classes": THREE_LABELS,
    "check_classifiers_train": THREE_LABELS,
    "check_estimators_fit_returns_self": THREE_LABELS,
    "check_estimators_overwrite_params": THREE_LABELS,
    "check_readonly_memmap_input": THREE_LABELS,
}
FEWER = "columns without a label, and Platt scaling needs every class"
FEWER_LABELS = dict.fromkeys(
    (
        "check_dtype_object",
        "check_estimators_dtypes",
        "check_estimators_nan_inf",
        "check_estimators_pickle",
        "check_fit_check_is_fitted",
        "check_n_features_in",
        "check_n_features_in_after_fitting",
        "check_pipeline_consistency",
        "check_positive_only_tag_during_fit",
        "check_sample_weight_equivalence_on_dense_data",
        "check_sample_weights_invariance",
        "check_transformer_data_not_an_array",
        "check_transformer_general",
        "check_transformer_preserve_dtypes",
    ),
    FEWER,
)


def list_expected_failures(estimator):
    return MORE_LABELS | (FEWER_LABELS if isinstance(estimator, calibration.PlattScaling) else {})


@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks([kind() for kind in ALL], expected_failed_checks=list_expected_failures)
def test_sklearn(estimator, check):
    check(estimator)


def draw(n=200, k=3, seed=0, scale=3.0):
    """Logits, and labels drawn from their softmax at T = 2; every class occurs."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k)) * scale
    y = (csoftmax.softmax(z / 2).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    y = np.minimum(y, k - 1)
    y[:k], z[:k] = np.arange(k), 0
    return z, y


# Labels


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0, 1, 2], None),
        ([1, 2, 3], None),
        ([-1, 0, 7], None),
        ([0.0, 1.0, 2.0], None),
        ([0.25, 1.0, 2.0], [0.25, 1.0, 2.0]),
        (["b", "c", "d"], None),
        (np.array(["b", "c", "d"], object), None),
        (["cat", "ant", "bee"], ["cat", "ant", "bee"]),
        ([2, 0, 1], [2, 0, 1]),
        ([30, 10, 20], np.array([30, 10, 20])),
    ],
)
def test_labels_of_any_kind(kind, labels, classes):
    z, y = draw()
    expected = kind().fit(z, y)
    if isinstance(labels[0], float) and labels[0] % 1:
        with pytest.raises(ValueError, match="continuous"):
            kind().fit(z, np.array(labels)[y], classes=classes)
        return
    names = np.asarray(labels)
    model = kind().fit(z, names[y], classes=classes)
    assert model.classes_.tolist() == list(labels)
    assert np.array_equal(model.transform(z), expected.transform(z))
    assert np.array_equal(model.predict(z), names[expected.predict(z)])
    assert model.score(z, names[y]) == expected.score(z, y)
    assert (expected.classes_ == np.arange(3)).all()
    assert model.n_features_in_ == 3


def test_labels_of_two_classes():
    z, y = draw(k=2)
    z = z[:, 1] - z[:, 0]
    for labels in ([False, True], [-1, 1], ["no", "yes"], [0, 5]):
        for kind in ALL:
            model = kind().fit(z, np.array(labels)[y])
            assert model.classes_.tolist() == labels
            assert set(model.predict(z).tolist()) <= set(labels)
    assert calibration.TemperatureScaling().fit(z, y > -1).classes_.tolist() == [False, True]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not calibration.PlattScaling])
def test_absent_classes(kind):
    z, y = draw(k=4)
    few = y % 2
    for labels, classes, expected in (
        (few, None, [0, 1, 2, 3]),
        (np.array(["x", "y"])[few], ["y", "q", "x", "p"], ["y", "q", "x", "p"]),
    ):
        model = kind().fit(z, labels, classes=classes)
        assert model.classes_.tolist() == expected
        assert np.allclose(model.transform(z).sum(axis=1), 1)


def test_one_label_is_a_column_number_as_an_integer_only():
    """scikit-learn's check of classifiers refuses one that accepts the float alone and does not predict it always."""
    z, _ = draw(20)
    assert calibration.TemperatureScaling().fit(z, [1] * 20).classes_.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"y\[0\] is 1\.0; there are 1 distinct labels for 3 columns"):
        calibration.TemperatureScaling().fit(z, [1.0] * 20)
    assert calibration.TemperatureScaling().fit(z, [1.0] * 20, classes=[0, 1, 2]).n_classes_ == 3


@pytest.mark.parametrize("kind", ALL)
def test_labels_that_do_not_fit(kind):
    z, y = draw()
    for labels, classes, match in (
        (y + 1000 * (y == 2) * np.arange(200), None, "distinct labels for 3 columns"),
        (np.array(["a", "b", "b"])[y], None, "2 distinct labels for 3 columns"),
        (y, [0, 1], "classes must name the 3 columns"),
        (y, [0, 1, 1], "classes must be distinct, but 1 is"),
        (y, [0, 1, 5], r"is 2, which is not among classes: \[0, 1, 5\]"),
        (y, ["0", "1", "2"], "which is not among classes"),
        (np.array(["a", "b", "c"])[y], [0, 1, 2], r"y\[0\] is 'a', which is not among classes"),
        (np.where(y == 2, np.nan, y), None, "NaN"),
    ):
        with pytest.raises(ValueError, match=match):
            kind().fit(z, labels, classes=classes)
    with pytest.raises(ValueError, match="every class"):
        calibration.PlattScaling().fit(z, y % 2, classes=[0, 1, 2])


@pytest.mark.parametrize("kind", ALL)
def test_a_refused_fit_changes_nothing(kind):
    z, y = draw()
    model = kind().fit(z, np.array(["a", "b", "c"])[y])
    before = pickle.dumps(model.__dict__)
    for arguments in ((z, y[:-1]), (z, np.array(["a", "b"])[y % 2]), (np.where(z > 5, np.nan, z), y), (z, y, -y - 1)):
        with pytest.raises(ValueError):
            model.fit(*arguments)
    assert pickle.dumps(model.__dict__) == before


# Weights


@pytest.mark.parametrize("kind", ALL)
def test_weights_are_repetitions(kind):
    z, y = draw(60)
    weights = np.random.default_rng(1).integers(0, 4, 60)
    weights[:3] = 1
    z[weights == 0] = np.nan  # as if the row were not there
    weighted = kind().fit(z, y, sample_weight=weights)
    repeated = kind().fit(np.repeat(z, weights, axis=0), np.repeat(y, weights))
    z_new = draw(50, seed=9)[0]
    assert np.allclose(weighted.transform(z_new), repeated.transform(z_new), rtol=1e-12, atol=0)
    shuffled = np.random.default_rng(2).permutation(60)
    again = kind().fit(z[shuffled], y[shuffled], sample_weight=weights[shuffled])
    assert np.allclose(weighted.transform(z_new), again.transform(z_new), rtol=1e-12, atol=0)
    assert np.allclose(
        kind().fit(z[weights > 0], y[weights > 0], np.ones((weights > 0).sum())).transform(z_new),
        kind().fit(z[weights > 0], y[weights > 0]).transform(z_new),
        rtol=1e-13,
        atol=0,
    )
    for bad, match in (([-1] + [1] * 59, "[Nn]egative"), ([0] * 60, "zero"), ([1] * 59, "sample_weight")):
        with pytest.raises(ValueError, match=match):
            kind().fit(z, y, sample_weight=bad)


# Kinds of arrays


@pytest.mark.parametrize("kind", ALL)
def test_arrays_of_other_libraries(kind):
    z, y = draw()
    expected = kind().fit(z, y)
    p = expected.transform(z)
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(z, columns=["a", "b", "c"], index=np.arange(200) * 2)
    model = kind().fit(frame, pd.Series(y))
    assert model.get_feature_names_out().tolist() == ["a", "b", "c"]
    assert isinstance(model.transform(frame), np.ndarray)
    with pytest.raises(ValueError, match="feature names"):
        model.transform(frame[["b", "a", "c"]])
    shown = clone(model).set_output(transform="pandas").fit(frame, y).transform(frame)
    assert shown.columns.tolist() == ["a", "b", "c"]
    assert shown.index.equals(frame.index)
    assert np.array_equal(shown.to_numpy(), p)
    assert np.array_equal(kind().fit(z.tolist(), y.tolist()).transform(logits=z), p)
    assert np.array_equal(kind().fit(z, y, classes=[0, 1, 2]).fit_transform(z, y), p)


@pytest.mark.parametrize("kind", ALL)
def test_tensors_come_back_as_tensors(kind):
    torch = pytest.importorskip("torch")
    z, y = draw()
    p = kind().fit(z, y).transform(z)
    t = torch.from_numpy(z)
    model = kind().fit(t, torch.from_numpy(y), sample_weight=torch.ones(200))
    for result in (model.transform(t), model.predict_proba(t)):
        assert isinstance(result, torch.Tensor)
        assert np.allclose(result.numpy(), p, rtol=1e-12, atol=0)
    assert isinstance(model.predict(t), torch.Tensor)
    assert np.array_equal(model.predict(t).numpy(), p.argmax(axis=1))
    named = kind().fit(t, np.array(["a", "b", "c"])[y])
    assert named.predict(t).tolist() == np.array(["a", "b", "c"])[p.argmax(axis=1)].tolist()
    for call in (model.transform, model.predict, model.predict_proba):
        with pytest.raises(ValueError, match="logits requires grad"):
            call(t.clone().requires_grad_())


def test_arrays_of_jax_come_back():
    jnp = pytest.importorskip("jax.numpy")
    z, y = draw()
    model = calibration.TemperatureScaling().fit(jnp.asarray(z), jnp.asarray(y))
    assert type(model.transform(jnp.asarray(z))) is type(jnp.asarray(z))


# Together with scikit-learn


@pytest.mark.parametrize("kind", ALL)
def test_pickles_and_clones(kind):
    z, y = draw()
    model = kind().fit(z, y)
    assert kind.__module__ == "csoftmax.calibration"
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert np.array_equal(other.transform(z), model.transform(z))
    assert b"_learn.calibration" not in pickle.dumps(model)
    assert not hasattr(clone(model), "classes_")


def test_search_over_the_prior():
    z, y = draw(400)
    search = GridSearchCV(calibration.TemperatureScaling(), {"prior": [0, 1, 1e6]}, scoring="neg_log_loss", cv=4)
    assert search.fit(z, np.array(["x", "y", "z"])[y]).best_params_["prior"] < 1e6
    pipeline = make_pipeline(FunctionTransformer(), calibration.VectorScaling()).fit(z, y)
    assert np.allclose(pipeline.transform(z), pipeline.predict_proba(z))


def test_metadata_routing():
    z, y = draw()
    weights = np.arange(200) % 3
    with sklearn.config_context(enable_metadata_routing=True):
        step = calibration.TemperatureScaling().set_fit_request(sample_weight=True, classes=True)
        names = np.array(["b", "c", "a"])
        pipeline = make_pipeline(FunctionTransformer(), step)
        pipeline.fit(z, names[y], sample_weight=weights, classes=names)
        assert not hasattr(step, "set_transform_request")
    expected = calibration.TemperatureScaling().fit(z, y, sample_weight=weights)
    assert np.array_equal(pipeline.predict_proba(z), expected.predict_proba(z))


# Files


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("labels", [None, ["b", "c", "a"], [False, True], [3.5, 1.0, 2.0]])
@pytest.mark.parametrize("mmap", [False, True])
def test_files(kind, labels, mmap, tmp_path):
    pytest.importorskip("safetensors")
    k = 3 if labels is None else len(labels)
    z, y = draw(k=k)
    model = kind()
    if "max_iter" in model.get_params():
        model.set_params(max_iter=777)
    model.fit(z, y, classes=None)
    if labels is not None:
        model.classes_ = np.array(labels)
    path = tmp_path / "calibrator.safetensors"
    model.save(path)
    loaded = kind.load(path, mmap=mmap)
    assert np.array_equal(loaded.transform(z), model.transform(z))
    assert loaded.classes_.dtype == model.classes_.dtype
    assert np.array_equal(loaded.predict(z), model.predict(z))
    assert loaded.get_params() == model.get_params()
    assert (loaded.history_, loaded.n_iter_) == (model.history_, model.n_iter_)
    assert (loaded.converged_, loaded.n_classes_, loaded.n_features_in_) == (model.converged_, k, k)
    assert b"pickle" not in path.read_bytes()


@pytest.mark.parametrize("kind", ALL)
def test_files_that_are_refused(kind, tmp_path):
    pytest.importorskip("safetensors")
    pd = pytest.importorskip("pandas")
    z, y = draw()
    path = tmp_path / "calibrator.safetensors"
    with pytest.raises(sklearn.exceptions.NotFittedError):
        kind().save(path)
    model = kind().fit(pd.DataFrame(z, columns=["a", "b", "c"]), y)
    model.save(path)
    assert kind.load(path).feature_names_in_.tolist() == ["a", "b", "c"]
    for other in ALL:
        if other is not kind:
            with pytest.raises(ValueError, match=f"not an? {other.__name__}"):
                other.load(path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        kind.load(path)
    for name, shape in kind._SHAPES.items():  # a forged file with correct checksums
        model.save(path)
        arrays, header = store.read(path, kind.__name__)
        header = {key: value for key, value in header.items() if key not in ("format", "version", "class")}
        if shape:
            arrays[name] = arrays[name][..., :-1] if len(arrays[name]) != 1 else arrays[name][None]
            bad = arrays, header
        else:
            bad = arrays, header | {"numbers": {}}
        store.write(path, kind.__name__, *bad)
        with pytest.raises(ValueError, match="cannot be read"):
            kind.load(path)
    with pytest.raises(FileNotFoundError):
        kind.load(tmp_path / "nothing")


# Few rows


@pytest.mark.parametrize("kind", ALL)
def test_warnings_about_rows(kind):
    """Rows that are few or all classified correctly are named; ordinary ones are not (warnings are errors here)."""
    z, y = draw(60)
    kind().fit(z, y)
    right = np.clip(z[:30], -2, 2) + 5 * np.eye(3)[y[:30]]
    with pytest.warns(
        UserWarning, match=r"all held-out rows \(30\) are classified correctly.*hold out more rows"
    ) as caught:
        model = kind().fit(right, y[:30])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="too few held-out rows to calibrate with: 6, fewer than 10"):
        kind().fit(np.concatenate([z[:4], -np.eye(3)[[0, 1]]]), [0, 1, 2, 0, 0, 1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "all held-out rows", UserWarning)
        kind().fit(right, y[:30])
    p = model.transform(right)
    assert ((p > 0) & (p < 1)).all()
    if kind is calibration.TemperatureScaling:
        with pytest.warns(UserWarning, match=r"the prior \(prior=1\) keeps the temperature at"):
            kind().fit(right, y[:30])
        with pytest.warns(UserWarning, match="nothing keeps the temperature from"):
            kind(prior=0).fit(right, y[:30])


def split_wine(seed):
    """A model with scikit-learn's default penalty, 30 calibration rows and the rest of wine."""
    X, y = load_wine(return_X_y=True)
    a, rest, y_a, y_rest = train_test_split(X, y, test_size=0.4, stratify=y, random_state=seed)
    b, c, y_b, y_c = train_test_split(rest, y_rest, train_size=30, stratify=y_rest, random_state=seed)
    scaler = StandardScaler().fit(a)
    a, b, c = map(scaler.transform, (a, b, c))
    return SoftmaxRegression(penalty_l2=1 / len(a)).fit(a, y_a), b, y_b, c, y_c


@pytest.mark.filterwarnings(SHORT)
def test_calibration_does_not_ruin_a_model():
    """40 splits of wine, 30 rows to calibrate with, in many of which all are right."""
    ratios, losses, separable = {kind: [] for kind in ALL}, {kind: [] for kind in ALL}, 0
    theirs = []
    for seed in range(40):
        model, b, y_b, c, y_c = split_wine(seed)
        plain = log_loss(y_c, model.predict_proba(c))
        z, z_new = model.decision_function(b), model.decision_function(c)
        separable += (z.argmax(axis=1) == y_b).all()
        try:
            sk = CalibratedClassifierCV(FrozenEstimator(model), method="temperature").fit(b, y_b)
            theirs.append(log_loss(y_c, sk.predict_proba(c)))
        except ValueError:
            assert sklearn.__version__ < "1.8"
        for kind in ALL:
            losses[kind].append(log_loss(y_c, kind().fit(z, y_b).transform(z_new)))
            ratios[kind].append(losses[kind][-1] / plain)
    assert separable >= 10
    coarse = calibration.IsotonicCalibration  # its steps
    for kind in ALL:
        assert max(ratios[kind]) < (1.7 if kind is coarse else 1.5)
        # 0.063, 0.062, 0.062, 0.062, 0.062, 0.083; of the model itself 0.086
        assert np.mean(losses[kind]) < (0.086 if kind is coarse else 0.07)
    if theirs:
        assert all(np.mean(losses[kind]) < np.mean(theirs) for kind in ALL)


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
def test_tiny_sets_make_no_label_impossible(kind, n):
    """Rows of three classes, right or wrong, near and far."""
    rng = np.random.default_rng(n)
    for scale in (0.1, 3, 20):
        z, z_new = rng.normal(size=(n, 3)) * scale, rng.normal(size=(100, 3)) * scale
        for y in (z.argmax(axis=1), z.argmin(axis=1), rng.integers(0, 3, n)):
            every_class = np.concatenate([y, np.arange(3)])  # as Platt scaling needs
            p = kind().fit(np.concatenate([z, np.eye(3)]), every_class).transform(z_new)
            assert p.sum(axis=1) == pytest.approx(1, rel=1e-14)
            assert p.min() > 0
            if kind is not calibration.PlattScaling:
                assert kind().fit(z, y).transform(z_new).min() > 0


@pytest.mark.parametrize("kind", ALL)
def test_masks_and_missing_labels_are_refused(kind):
    z, y = draw(60)
    masked = np.ma.masked_array(z, z > 100)
    with pytest.raises(TypeError, match="logits is a masked array"):
        kind().fit(masked, y)
    with pytest.raises(TypeError, match="logits is a masked array"):
        kind().fit(z, y).transform(masked)
    with pytest.raises(TypeError, match="y is a masked array"):
        kind().fit(z, np.ma.masked_array(y, y == 0))
    labels = np.array(["a", "b", None], object)[y]
    with pytest.raises(ValueError, match=rf"y\[{np.argmax(y == 2)}\] is None, not a value; every row needs a label"):
        kind().fit(z, labels)
    with pytest.raises(ValueError, match=r"classes\[2\] is None, not a value; every column needs a label"):
        kind().fit(z, y, classes=["a", "b", None])
    with pytest.raises(ValueError, match=r"y\[0\] is 'a'; there are 2 distinct labels"):
        kind().fit(z, np.array(["a", "b"] * 30))


@pytest.mark.parametrize("kind", ALL)
def test_sums_that_would_overflow_are_refused(kind):
    z, y = draw(60)
    with pytest.raises(ValueError, match=r"sample_weight sums to inf; its sum must be at most 1e\+100"):
        kind().fit(z, y, np.full(60, 1e307))
    with pytest.raises(ValueError, match=r"logits\[\d+, \d\] is .*; they must be from -1e\+100 to 1e\+100, or -inf"):
        kind().fit(z * 1e307, y)
    with pytest.raises(ValueError, match=r"logits\[0, 1\] is -1e\+307; they must be from -1e\+300 to 1e\+300, or -inf"):
        kind().fit(z, y).transform([[0, -1e307, 0]])
    for scale in (1e50, 1e100):
        model = kind().fit(np.clip(z * scale, -1e100, 1e100), y, np.full(60, 1e98))
        assert np.isfinite(model.transform(z)).all()


@pytest.mark.parametrize("kind", [calibration.MatrixScaling, calibration.DirichletCalibration])
def test_maps_that_separate_the_rows_are_named(kind):
    """Without penalties the likelihood has no maximum where the map, not only the logits, can make all rows right."""
    q = 3 * np.log(np.random.default_rng(1).dirichlet([1, 1, 1], 300))
    y = (q.argmax(axis=1) + 1) % 3
    names = ("penalty_off_diagonal", "penalty_diagonal", "penalty_intercept")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        with pytest.warns(UserWarning, match=r"fitted map classifies all held-out rows \(300\) correctly.*nothing but"):
            kind(**dict.fromkeys(names, 0)).fit(q, y)
        with pytest.warns(UserWarning, match=r"the fitted map classifies all held-out rows"):
            kind(penalty_off_diagonal=0).fit(q, y)
    kind().fit(q, y)  # warnings are errors here
    large = 1000 * np.eye(3)[y]
    with pytest.warns(UserWarning, match="bound the factors of the logits"):
        model = kind().fit(large, y)
    assert model.transform(large).max() == 1  # penalties do not keep it away from 1
    z, labels = draw(60)
    kind(**dict.fromkeys(names, 0)).fit(z, labels)


@pytest.mark.parametrize("kind", [calibration.MatrixScaling, calibration.DirichletCalibration])
def test_an_impossible_class_does_not_decide_between_the_others(kind):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    z = rng.normal(size=(200, 3)) * 2 + 2 * np.eye(3)[y]
    p = kind().fit(z, y).transform([[-np.inf, 1, 1], [-np.inf, 1, 2], [1, 1, 1]])
    assert p[0, 0] == 0
    assert p[0, 1] / p[0, 2] == pytest.approx(p[2, 1] / p[2, 2], rel=0.2)
    assert p[1, 1] < p[0, 1]
    assert (p[:2, 1:] > 0.1).all()
    masked = np.where((np.arange(3) != y[:, None]) & (rng.random((200, 3)) < 0.2), -np.inf, z)
    p = kind().fit(masked, y).transform(masked)
    assert ((p == 0) == np.isneginf(masked)).all()
    assert log_loss(y, p) <= log_loss(y, csoftmax.softmax(masked)) + 1e-3
