"""Fits on Ray: the bits of the parts, errors with the row, a worker that is killed."""

import os
import signal

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="a peer of 80 MB: install the extra ray")

import csoftmax.ray  # noqa: E402
from csoftmax._learn.parts.engine import LocalEngine  # noqa: E402
from csoftmax._learn.parts.fit import fit_parts  # noqa: E402
from csoftmax.linear_model import SoftmaxRegression  # noqa: E402

pytestmark = [pytest.mark.long, pytest.mark.filterwarnings("ignore")]
ROWS, CHUNK = 3000, 290


def make_rows():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(ROWS, 6))
    y = (X @ rng.normal(size=(6, 3)) + rng.gumbel(size=(ROWS, 3))).argmax(axis=1)
    return X, np.array(["ant", "bee", "cow"])[y], rng.random(ROWS)


def split(*arrays):
    return [tuple(a[i : i + CHUNK] for a in arrays) for i in range(0, ROWS, CHUNK)]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_fit():
    X, y, w = make_rows()
    expected = SoftmaxRegression()
    fit_parts(expected, LocalEngine(split(X, y, w)), "fit")
    model = csoftmax.ray.fit(SoftmaxRegression(), [ray.put(part) for part in split(X, y, w)])
    assert model.coef_.tobytes() == expected.coef_.tobytes()
    plain = SoftmaxRegression().fit(X, y, w)
    assert abs(model.history_["loss"][-1] - plain.history_["loss"][-1]) <= 1e-12
    predicted = ray.get(ray.remote(lambda rows: model.predict_proba(rows)).remote(X))
    assert np.array_equal(predicted, model.predict_proba(X))


def test_a_bad_row():
    X, y, _ = make_rows()
    X[CHUNK + 4, 2] = np.nan
    with pytest.raises(ValueError, match=rf"X\[{CHUNK + 4}\], row 4 of part 1, is nan"):
        csoftmax.ray.fit(SoftmaxRegression(), [ray.put(part) for part in split(X, y)])


def test_a_killed_worker():
    X, y, _ = make_rows()
    parts = [ray.put(part) for part in split(X, y)]
    expected = csoftmax.ray.fit(SoftmaxRegression(), parts)

    def kill(_, record):
        if record["epoch"] == 3:
            os.kill(ray.get(ray.remote(lambda: os.getpid()).remote()), signal.SIGKILL)

    model = csoftmax.ray.fit(SoftmaxRegression(callbacks=kill), parts)
    assert model.coef_.tobytes() == expected.coef_.tobytes()
