"""Lazy predictions refuse the features that predictions in memory refuse, before anything is computed."""

import numpy as np
import pytest

from csoftmax.calibration import VectorScaling
from csoftmax.linear_model import SoftmaxRegression

dask, da = pytest.importorskip("dask"), pytest.importorskip("dask.array")

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 4)), np.arange(60) % 3
MODEL = SoftmaxRegression(tol=1e-1).fit(X, Y)
FEATURES, LABELS = da.from_array(X, chunks=(20, -1)), da.from_array(Y, chunks=20)


@pytest.mark.parametrize("name", ["predict", "predict_proba", "predict_log_proba", "decision_function"])
def test_other_numbers_of_features(name):
    with pytest.raises(ValueError, match="X has 2 features, but SoftmaxRegression is expecting 4"):
        getattr(MODEL, name)(FEATURES[:, :2])
    with pytest.raises(ValueError, match=r"X must have two axes, rows and features, got shape \(60,\)"):
        getattr(MODEL, name)(FEATURES[:, 0])


def test_scores_and_calibrators():
    with pytest.raises(ValueError, match="X has 2 features, but SoftmaxRegression is expecting 4"):
        MODEL.score(FEATURES[:, :2], LABELS)
    with pytest.raises(ValueError, match="Complex data not supported"):
        MODEL.score(FEATURES + 0j, LABELS)
    calibrator = VectorScaling().fit(X[:, :3], Y)
    with pytest.raises(ValueError, match="4"):
        calibrator.predict_proba(FEATURES)
    assert np.array_equal(calibrator.predict_proba(FEATURES[:, :3]).compute(), calibrator.predict_proba(X[:, :3]))


def test_columns_of_dataframes():
    pandas, dd = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    table = pandas.DataFrame(X, columns=list("abcd"))
    model, lazy = SoftmaxRegression(tol=1e-1).fit(table, Y), dd.from_pandas(table, npartitions=3)
    for predict in (model.predict, model.predict_proba, lambda features: model.score(features, LABELS)):
        with pytest.raises(ValueError, match=r"(?s)Feature names seen at fit time, yet now missing:\n- c\n- d"):
            predict(lazy[["a", "b"]])
        with pytest.raises(ValueError, match=r"(?s)Feature names unseen at fit time:\n- e"):
            predict(lazy.assign(e=1.0))
        with pytest.raises(ValueError, match="X must have two axes, rows and features, got a Series"):
            predict(lazy.a)
        with pytest.raises(ValueError, match="could not convert string to float"):
            dask.compute(predict(lazy.assign(b="word")))  # with pandas before 3 known only then: its dtype is object
    objects = lazy.astype({"c": object})
    assert model.predict(objects).compute(scheduler="sync").tolist() == model.predict(table).tolist()
