"""Dataframes that are read from Parquet files, which Dask's optimizer may read several at a time."""

import importlib

import numpy as np
import pytest

import csoftmax
from csoftmax.linear_model import SoftmaxRegression

dd = pytest.importorskip("dask.dataframe")
dask = pytest.importorskip("dask")
pandas = pytest.importorskip("pandas")
cd = importlib.import_module("csoftmax.dask")

NAMES = list("abcd")
RNG = np.random.default_rng(0)
TABLE = pandas.DataFrame(RNG.normal(size=(60, 4)), columns=NAMES).assign(
    label=RNG.integers(0, 4, 60), number=np.arange(60)
)


@pytest.fixture(params=[4, 5, 8, 10])
def files(request, tmp_path):
    pytest.importorskip("pyarrow")
    for number, rows in enumerate(np.array_split(np.arange(len(TABLE)), request.param)):
        TABLE.iloc[rows].to_parquet(tmp_path / f"{number:02}.parquet")
    with dask.config.set(scheduler="synchronous"):
        yield dd.read_parquet(tmp_path), request.param


def test_features_and_labels_have_the_same_partitions(files):
    table, count = files
    X, y = table[NAMES], table.label
    assert y.optimize().npartitions < count  # files that Dask would put together
    values, labels = TABLE[NAMES].to_numpy(), TABLE.label.to_numpy()
    assert (cd.softmax(X).compute().to_numpy() == csoftmax.softmax(values)).all()
    assert (cd.logsumexp(X).compute() == csoftmax.logsumexp(values)).all()
    assert (cd.sample(X, rng=1).compute() == csoftmax.sample(values, rng=1)).all()
    loss = cd.cross_entropy(X, y, reduction="none")
    assert loss.compute().equals(pandas.Series(csoftmax.cross_entropy(values, labels, reduction="none"), TABLE.index))
    got, expected = cd.cross_entropy_with_grad(X, y), csoftmax.cross_entropy_with_grad(values, labels)
    assert got.loss.compute() == expected.loss
    assert (got.grad.compute().to_numpy() == expected.grad).all()
    batches = list(cd.batches(X, y))
    assert len(batches) == count
    assert (np.concatenate([features for features, _ in batches]) == values).all()


def test_fits_and_scores(files):
    table, _ = files
    X, y = table[NAMES], table.label
    model = SoftmaxRegression(max_epochs=5, tol=1.0).fit(X, y)
    read = table.persist()
    again = SoftmaxRegression(max_epochs=5, tol=1.0).fit(read[NAMES], read.label)
    assert model.coef_.tobytes() == again.coef_.tobytes()
    assert model.score(X, y).compute() == model.score(TABLE[NAMES], TABLE.label)


def test_rows_are_left_out(files):
    """Dask may move the condition into the reading, where files that have no such row are left out."""
    table, _ = files
    kept = table[table.number >= 30]
    model = SoftmaxRegression(max_epochs=5, tol=1.0).fit(kept[NAMES], kept.label)
    X = TABLE[NAMES][30:]
    assert model.score(kept[NAMES], kept.label).compute() == model.score(X, TABLE.label[30:])
    assert (cd.softmax(kept[NAMES]).compute().to_numpy() == csoftmax.softmax(X.to_numpy())).all()
