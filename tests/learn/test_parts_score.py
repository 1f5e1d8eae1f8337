"""`score` of Dask collections: the labels and weights that a fit refuses are refused, with row and part."""

import numpy as np
import pytest

from csoftmax.linear_model import SoftmaxRegression

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 90)
X = RNG.normal(size=(90, 4)) + np.eye(4)[Y]
WEIGHT = RNG.random(90) * (RNG.random(90) < 0.8)
MODEL = SoftmaxRegression(tol=1e-2).fit(X, Y)
FEATURES = da.from_array(X, chunks=(40, -1))


def lazily(a):
    return da.from_array(a, chunks=(40, -1)[: a.ndim])


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def test_the_score_of_one_machine():
    for y in (Y, Y.astype(float), Y[:, None], np.where(Y == 2, 7, Y)):
        assert MODEL.score(FEATURES, lazily(y)).compute() == MODEL.score(X, y.ravel())
    got = MODEL.score(FEATURES, lazily(Y), lazily(WEIGHT)).compute()
    assert abs(got - MODEL.score(X, Y, WEIGHT)) <= 1e-15
    words = np.array(["ant", "bee", "cow"])[Y]
    assert SoftmaxRegression(tol=1e-2).fit(X, words).score(FEATURES, lazily(words)).compute() == MODEL.score(X, Y)


@pytest.mark.parametrize(
    ("y", "weight", "text"),
    [
        (np.stack([Y, Y], 1), None, "part 0: y should be a 1d array"),
        (np.eye(3)[Y], None, "part 0: y should be a 1d array"),
        (Y.astype(str), None, "part 0: y has the label '0', of another kind than the classes"),
        (np.where(np.arange(90) == 43, np.nan, Y), None, r"y\[43\], row 3 of part 1, is nan"),
        (Y + 0.5, None, "part 0: Unknown label type: continuous"),
        (Y, np.zeros(90), "sample_weight is zero for every row"),
        (Y, np.full(90, np.nan), r"sample_weight\[0\], row 0 of part 0, is nan"),
        (Y, np.where(np.arange(90) == 85, -1.0, 1.0), r"sample_weight\[85\], row 5 of part 2, is -1.0"),
        (Y, np.ones((90, 1)), "part 0: Sample weights must be 1D array or scalar"),
    ],
)
def test_bad_labels_and_weights_are_refused(y, weight, text):
    score = MODEL.score(FEATURES, lazily(y), None if weight is None else lazily(weight))
    with pytest.raises(ValueError, match=text):
        score.compute()


def test_no_rows_are_refused():
    none = FEATURES[:, 0] > 1e9
    with pytest.raises(ValueError, match="X has no rows in any of its 3 parts"):
        MODEL.score(FEATURES[none], lazily(Y)[none]).compute()
    above = np.arange(90) // 40 != 1  # the second part has no row
    kept = lazily(above)
    assert MODEL.score(FEATURES[kept], lazily(Y)[kept]).compute() == MODEL.score(X[above], Y[above])
