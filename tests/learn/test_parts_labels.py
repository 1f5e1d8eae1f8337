"""Labels and weights in memory beside Dask collections, whose lengths are known or are not."""

import numpy as np
import pytest
import scipy.sparse

from csoftmax._dask.options import options
from csoftmax.calibration import TemperatureScaling
from csoftmax.linear_model import SoftmaxRegression
from csoftmax.metrics import brier_score

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")

RNG = np.random.default_rng(0)
X, Y, WEIGHT = RNG.normal(size=(60, 4)), np.arange(60) % 3, RNG.random(60)


@pytest.fixture(autouse=True)
def in_this_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def fit(*data):
    return SoftmaxRegression(tol=0.3).fit(*data)


def collections():
    """Features in the same three parts."""
    yield da.from_array(X, chunks=(20, -1))
    unknown = da.from_array(X, chunks=(20, -1))
    yield unknown[unknown[:, 0] < 99]
    yield [dask.delayed(X[i : i + 20]) for i in (0, 20, 40)]
    yield [dask.delayed(scipy.sparse.csr_array(X[i : i + 20])) for i in (0, 20, 40)]
    pandas, dd = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    yield dd.from_pandas(pandas.DataFrame(X, columns=list("abcd")), npartitions=3)


@pytest.mark.parametrize("keep", [True, False])
def test_the_same_as_parts(keep):
    lazy = [da.from_array(a, chunks=20) for a in (Y, WEIGHT)]
    for features in collections():
        with options(keep=keep):
            model, expected = fit(features, Y, WEIGHT), fit(features, *(list(a.to_delayed()) for a in lazy))
            assert model.coef_.tobytes() == expected.coef_.tobytes()
            score = model.score(features, Y, WEIGHT).compute()
        assert score == model.score(features, *(list(a.to_delayed()) for a in lazy)).compute()


@pytest.mark.parametrize("keep", [True, False])
def test_other_lengths_are_refused(keep):
    with options(keep=keep):
        for features in collections():
            with pytest.raises(ValueError, match="y has 59 rows, but X has 60"):
                fit(features, Y[:-1])
            with pytest.raises(ValueError, match="sample_weight has 61 rows, but X has 60"):
                fit(features, Y, np.ones(61))
            with pytest.raises(
                TypeError, match="y has no axis: beside Dask collections, allowed is an array in memory"
            ):
                fit(features, 3)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (lambda x, y: (x, None), "y is None; allowed is a dask.array.Array"),
        (lambda x, y: (x[:, 0], y), r"X must have two axes, rows and features, got shape \(60,\)"),
        (lambda x, y: (x + 0j, y), "Complex data not supported: X has dtype complex128"),
        (lambda x, y: (x.rechunk(((0, 20, 0, 40), 4)), y[:-1]), "y has 59 rows, but X has 60"),
    ],
)
def test_other_arguments_are_refused(data, text):
    with pytest.raises(ValueError, match=text):
        fit(*data(da.from_array(X, chunks=(20, -1)), da.from_array(Y, chunks=20)))


def test_a_bad_probability_is_named_by_its_part():
    p = np.full((60, 3), 1 / 3)
    p[43, 1] = np.nan
    for weight in (None, (np.arange(60) >= 20) * 1.0):
        with pytest.raises(ValueError, match=r"y_prob\[43, 1\], row 3 of part 2, is nan"):
            brier_score(Y, da.from_array(p, chunks=(20, -1)), sample_weight=weight)


def test_a_bad_label_is_named_by_its_row_among_all():
    z, weight = np.tile([0.0, 1, -1], (60, 1)), (np.arange(60) >= 20) * 1.0
    y = np.arange(60) % 3
    y[[3, 43, 52]] = 9, 9, 7
    given = [da.from_array(a, chunks=(20, -1)[: a.ndim]) for a in (z, y, weight)]
    p = given[0] * 0 + 1 / 3
    for row, w in ((3, None), (43, given[2])):
        with pytest.raises(ValueError, match=rf"y_true\[{row}\] is 9; classes are 0 to 2"):
            brier_score(given[1], p, sample_weight=w)
        with pytest.raises(ValueError, match=rf"y_true\[{row}\] is 9, which is not in labels"):
            brier_score(given[1], p, labels=[0, 1, 2], sample_weight=w)
        with pytest.raises(ValueError, match=rf"y\[{row}\] is 9; there are [45] distinct labels for 3 columns"):
            TemperatureScaling().fit(*given[:2], sample_weight=w)


def test_series_of_pandas():
    pandas, dd = pytest.importorskip("pandas"), pytest.importorskip("dask.dataframe")
    features = dd.from_pandas(pandas.DataFrame(X), npartitions=3)
    names = pandas.Series(["ant", "bee", "cow"] * 20)
    assert fit(features, names).classes_.tolist() == ["ant", "bee", "cow"]
