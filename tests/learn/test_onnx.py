"""SoftmaxRegression.to_onnx, run by onnxruntime."""

import json
import sys

import numpy as np
import pytest
from sklearn.datasets import load_iris

from csoftmax.linear_model import SoftmaxRegression


@pytest.fixture(scope="module")
def runtime():
    pytest.importorskip("onnx", reason="the extra onnx has it")
    return pytest.importorskip("onnxruntime")


LABELS = {
    "int64": np.array([3, -1, 2**40]),
    "uint8": np.array([7, 0, 255], np.uint8),
    "float64": np.array([0.0, 2.0, 1.0]),
    "str": np.array(["setosa", "", "versicolor é 花"]),
    "object": np.array(["b", "aa", "c"], object),
}


def run(runtime, proto, X):
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,), outputs = session.get_inputs(), session.get_outputs()
    assert given.shape[1] == X.shape[1]
    assert [output.name for output in outputs] == ["label", "probabilities"]
    return session.run(None, {given.name: X})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("k", [2, 3])
def test_onnx_agrees(runtime, dtype, kind, k):
    X, y = (a[: 50 * k] for a in load_iris(return_X_y=True))
    X, labels = X.astype(dtype), LABELS[kind][y]
    for options in ({}, {"temperature": 2.5}, {"fit_intercept": False}, {"solver": "adamw", "random_state": 0}):
        model = SoftmaxRegression(penalty_l2=1e-2, max_epochs=500, **options).fit(X, labels)
        for rows in (X, X[:1], X[:0]):
            label, probabilities = run(runtime, model.to_onnx(), rows)
            assert probabilities.dtype == dtype
            assert probabilities.shape == (len(rows), k)
            if len(rows):
                tolerance = 1e-13 if dtype == np.float64 else 1e-5
                assert np.abs(probabilities - model.predict_proba(rows)).max() < tolerance
                assert np.array_equal(label, model.predict(rows))
            assert label.shape == (len(rows),)


def test_bool_labels_and_names_of_features(runtime):
    pd = pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True)
    frame = pd.DataFrame(X, columns=["a", "b", "c", "d"])
    model = SoftmaxRegression(penalty_l2=1e-2).fit(frame, y == 0)
    proto = model.to_onnx()
    label, _ = run(runtime, proto, X)
    assert label.dtype == bool
    assert np.array_equal(label, model.predict(frame))
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(properties["feature_names"]) == ["a", "b", "c", "d"]


def test_many_classes(runtime):
    rng = np.random.default_rng(0)
    model = SoftmaxRegression(solver="adamw", max_epochs=1, random_state=0)
    X, y = rng.normal(size=(2000, 7)), np.arange(2000) % 300
    model.fit(X, y).add_classes([-5, 1000])
    label, probabilities = run(runtime, model.to_onnx(), X)
    assert np.array_equal(label, model.predict(X))
    assert np.abs(probabilities - model.predict_proba(X)).max() < 1e-13


def test_file(runtime, tmp_path):
    import onnx

    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression(penalty_l2=1e-2).fit(X, y)
    proto = model.to_onnx(tmp_path / "model.onnx")
    assert onnx.load(tmp_path / "model.onnx") == proto
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    label, _ = runtime.InferenceSession(str(tmp_path / "model.onnx")).run(None, {"X": X})
    assert np.array_equal(label, model.predict(X))


def test_what_onnx_cannot_hold(runtime):
    X = np.eye(4)
    model = SoftmaxRegression(penalty_l2=1e-2).fit(X, np.array([0, 2**63, 0, 2**63], np.uint64))
    with pytest.raises(ValueError, match="int64"):
        model.to_onnx()
    model = SoftmaxRegression(penalty_l2=1e-2).fit(X, [0, 1, 0, 1]).set_params(temperature=5e-324)
    with pytest.raises(ValueError, match="temperature"):
        model.to_onnx()


def test_onnx_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = SoftmaxRegression(penalty_l2=1e-2).fit(np.eye(4), [0, 1, 0, 1])
    with pytest.raises(ImportError, match=r"csoftmax\[onnx\]"):
        model.to_onnx()
