"""What workers of Dask get: arrays are aligned before a model or a part computes with them, and their bytes known."""

from types import SimpleNamespace

import numpy as np
import pytest

from csoftmax._spec.layouts import misaligned

dask = pytest.importorskip("dask", reason="Dask belongs to the dask extra; the gate installs it")

from dask.sizeof import sizeof  # noqa: E402

from csoftmax._dask import engine, shards  # noqa: E402
from csoftmax._distributed.held import Held  # noqa: E402
from csoftmax._learn.parts import predictions  # noqa: E402
from csoftmax.distributed import partial  # noqa: E402

X = np.arange(12.0).reshape(6, 2)
Y = np.array([0, 1, 0, 1, 1, 0])


def received(a):
    """An array as it arrives in a message that begins at any byte."""
    found = misaligned(a)
    assert not found.flags.aligned
    return found


def check_aligned(*arrays):
    assert [a.flags.aligned for a in arrays] == [True] * len(arrays)


def test_parts_are_made_of_aligned_arrays():
    def kind(given, payload, number):
        assert (payload, number) == ("told", 3)
        check_aligned(*given)
        return given

    x, y = received(X), received(Y)
    part = engine._make_part(kind, engine.Message("told"), 3, x, y).content
    assert np.array_equal(part[0], X)
    assert np.array_equal(part[1], Y)
    steps = engine.Message([(kind, "told")])
    assert np.array_equal(engine._read_part(steps, 3, received(X), received(Y))[0], X)


def test_models_predict_aligned_rows():
    def predict(x, model=None):
        check_aligned(x)
        return (x[:, 0] > 5).astype(int)

    model = SimpleNamespace(predict=predict, classes_=np.array([0, 1]), n_features_in_=2, _SCORES_FEATURES=True)
    assert predictions._predict_block(received(X), Held(model), predict).tolist() == [0, 0, 0, 1, 1, 1]
    hits = predictions._count_hits(Held(model), 0, received(X), received(Y))
    assert hits.weights.tolist() == [4, 6]


@pytest.mark.parametrize("rows", [1, 100000])
def test_dask_knows_the_bytes_of_what_workers_hold(rows):
    a = np.zeros((rows, 10))
    assert a.nbytes <= sizeof(Held((a,))) <= a.nbytes + 1000


def test_the_bytes_of_sums_are_those_of_records_and_labels():
    x = np.zeros((1000, 8192), np.float32)
    sums = partial(x, kind="loss", target=np.zeros(1000, int), offset=0, n_classes=8192)
    least = sums.records.nbytes + sums.terms.losses.labels.nbytes
    assert least <= shards._size_of(sums) <= 2 * least
    assert sizeof(sums) == shards._size_of(sums)
