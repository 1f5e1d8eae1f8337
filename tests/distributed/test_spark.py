"""Fits on Spark: the same bits in every run for the same partitions, and errors with the row."""

import os
import sys

import numpy as np
import pytest

pyspark = pytest.importorskip("pyspark", reason="a peer of 450 MB, with Java: install the extra spark")
pandas = pytest.importorskip("pandas")

import csoftmax.spark  # noqa: E402
from csoftmax.linear_model import SoftmaxRegression  # noqa: E402

FEW = {"max_epochs": 4}  # a job of Spark takes a second on a busy machine
pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def session():
    from helpers import ROOT
    from pyspark.sql import SparkSession

    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ |= {"PYSPARK_PYTHON": sys.executable, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    made = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    made = made.config("spark.sql.shuffle.partitions", "4").getOrCreate()
    yield made
    made.stop()


def make_rows(n=2000):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    y = (X @ rng.normal(size=(4, 3)) + rng.gumbel(size=(n, 3))).argmax(axis=1)
    return pandas.DataFrame(X, columns=list("abcd")).assign(y=np.array(["ant", "bee", "cow"])[y], w=rng.random(n))


def test_fit(session):
    rows = make_rows()
    frame = session.createDataFrame(rows).repartitionByRange(5, "a").sortWithinPartitions("a").cache()
    given = {"features": list("abcd"), "label": "y", "weight": "w"}
    model = csoftmax.spark.fit(SoftmaxRegression(), frame, **given)
    again = csoftmax.spark.fit(SoftmaxRegression(), frame, **given)
    assert model.coef_.tobytes() == again.coef_.tobytes()
    plain = SoftmaxRegression().fit(rows[list("abcd")].to_numpy(), rows["y"], rows["w"])
    assert abs(model.history_["loss"][-1] - plain.history_["loss"][-1]) <= 1e-12
    assert np.allclose(model.coef_, plain.coef_, rtol=1e-7, atol=1e-9)
    assert model.classes_.tolist() == ["ant", "bee", "cow"]

    def predict(parts):
        for part in parts:
            yield pandas.DataFrame({"label": model.predict(part[list("abcd")].to_numpy())})

    labels = frame.mapInPandas(predict, "label string").toPandas()["label"]
    assert labels.tolist() == model.predict(frame.toPandas()[list("abcd")].to_numpy()).tolist()


def test_vectors_arrays_and_empty_partitions(session):
    from pyspark.ml.feature import VectorAssembler
    from pyspark.sql import functions

    frame = session.createDataFrame(make_rows(300)).repartition(3)
    expected = csoftmax.spark.fit(SoftmaxRegression(**FEW), frame, features=list("abcd"), label="y")
    vectors = VectorAssembler(inputCols=list("abcd"), outputCol="x").transform(frame)
    arrays = frame.withColumn("x", functions.array(*"abcd"))
    for given in (vectors, arrays):
        model = csoftmax.spark.fit(SoftmaxRegression(**FEW), given, features="x", label="y")
        assert np.allclose(model.coef_, expected.coef_, rtol=1e-7, atol=1e-9)
    sparse = frame.repartition(12, "y")  # most partitions are empty
    model = csoftmax.spark.fit(SoftmaxRegression(**FEW), sparse, features=list("abcd"), label="y")
    assert np.allclose(model.coef_, expected.coef_, rtol=1e-7, atol=1e-9)


def test_a_bad_row(session):
    rows = make_rows(100)
    rows.loc[0, "b"] = np.nan
    frame = session.createDataFrame(rows).coalesce(1)
    with pytest.raises(ValueError, match=r"X\[0\], row 0 of part 0, is nan"):
        csoftmax.spark.fit(SoftmaxRegression(), frame, features=list("abcd"), label="y")
    with pytest.raises(ValueError, match="df has no column 'z'"):
        csoftmax.spark.fit(SoftmaxRegression(), frame, features=list("abcz"), label="y")
