"""Fits over parts of the rows in one process: sums in the tree of the parts, preprocessing, early stopping."""

import itertools
import pickle

import numpy as np
import pytest
import scipy.sparse

from csoftmax._distributed.held import Held
from csoftmax._distributed.parts import add_parts, merge_all
from csoftmax._learn.objective import Objective, Options
from csoftmax._learn.parts import rows, sums
from csoftmax._learn.parts.engine import LocalEngine
from csoftmax._learn.parts.fit import fit_parts
from csoftmax._learn.parts.objective import Layout, PartsObjective
from csoftmax.linear_model import SoftmaxRegression


class ScatteredEngine(LocalEngine):
    """Adds parts in runs of any order, some of them twice, as workers that come and go do."""

    rng = np.random.default_rng(3)

    def run(self, kind, payload):
        numbers = self.rng.permutation(self.count).tolist()
        cuts = [0, *sorted(self.rng.integers(0, self.count + 1, 2).tolist()), self.count]
        runs = [numbers[a:b] for a, b in itertools.pairwise(cuts)]
        runs.append(numbers[: self.count // 2])
        return merge_all(add_parts(kind, payload, [self.parts[i] for i in run], run) for run in runs)


def make_rows(n=700, d=5, k=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d))
    y = (X @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k))).argmax(axis=1)
    return X, y, rng.random(n) * (rng.random(n) < 0.9)


def split(cuts, *arrays):
    return [tuple(a[begin:end] for a in arrays if a is not None) for begin, end in itertools.pairwise(cuts)]


CUTS = [0, 3, 3, 90, 91, 200, 350, 350, 400, 402, 560, 699, 700]


def unaligned(a):
    memory = np.empty(a.nbytes + 1, np.uint8)
    moved = memory[1:].view(a.dtype).reshape(a.shape)
    moved[...] = a
    assert moved.ctypes.data % 2 == 1 or not moved.size
    return moved


def fit(parts, engine=LocalEngine, **parameters):
    held = engine(parts)
    model = SoftmaxRegression(**parameters)
    notes = fit_parts(model, held, "fit")
    held.close()
    assert notes == []
    return model


def test_the_same_bits_for_any_placement():
    X, y, weight = make_rows()
    parts = split(CUTS, X, y, weight)
    one, other = fit(parts), fit(parts, ScatteredEngine)
    assert one.coef_.tobytes() == other.coef_.tobytes()
    assert one.intercept_.tobytes() == other.intercept_.tobytes()
    assert one.history_["loss"] == other.history_["loss"]


def test_the_same_bits_for_unaligned_parts_and_parameters():
    """Messages of a cluster begin at any byte, where NumPy's products leave BLAS."""
    X, y, weight = make_rows()

    moved = [(unaligned(x), unaligned(labels), unaligned(w)) for x, labels, w in split(CUTS, X, y, weight)]
    assert fit(moved).coef_.tobytes() == fit(split(CUTS, X, y, weight)).coef_.tobytes()
    part = rows.settle(rows.load((X, y), None, 0), rows.Settings(np.arange(3), np.dtype(float), [0], None, 0.1), 0)
    payload = sums.Evaluate(np.ones((3, 5)), np.ones(3), Options(), 1.0, True, False)
    same = payload._replace(coef=unaligned(payload.coef), intercept=unaligned(payload.intercept))
    assert sums.evaluate(part, payload, 0).tobytes() == sums.evaluate(part, same, 0).tobytes()


@pytest.mark.parametrize("protocol", [4, 5])
def test_parts_that_move_are_aligned(protocol):
    X, y, weight = make_rows()
    settings = rows.Settings(np.arange(3), np.dtype(float), [0], None, 0.1)
    content = rows.settle(rows.load((X, y, weight), None, 0), settings, 0), np.asfortranarray(X), np.zeros((0, 3))
    buffers = []
    message = pickle.dumps(Held(content), protocol, buffer_callback=buffers.append if protocol == 5 else None)
    arrived = [unaligned(np.frombuffer(buffer.raw(), np.uint8).copy()) for buffer in buffers]
    part, columns, empty = pickle.loads(message, buffers=arrived).content
    payload = sums.Evaluate(np.ones((3, 5)), np.ones(3), Options(), 1.0, True, False)
    assert sums.evaluate(part, payload, 0).tobytes() == sums.evaluate(content[0], payload, 0).tobytes()
    for a in (*part.train, columns):
        assert a.ctypes.data % 16 == 0
    assert columns.flags.f_contiguous
    assert np.array_equal(columns, X)
    assert empty.shape == (0, 3)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_sums_do_not_depend_on_addresses(d):
    """Columns are added without products of matrices by vectors, whose bits depend on the address."""
    X, y, weight = make_rows(d=d)
    found = set()
    for offset in range(0, 64, 8):
        memory = np.empty(X.nbytes + 128, np.uint8)
        begin = -memory.ctypes.data % 64 + offset
        x = memory[begin : begin + X.nbytes].view(float).reshape(X.shape)
        x[...] = X
        part = rows.SettledPart((x, y, weight), None)
        moments = sums.add_columns(part, sums.Moments(X[0], None), 0)
        for intercept in (np.ones(3), None):
            payload = sums.Evaluate(np.ones((3, d)), intercept, Options(), 1.0, True, False)
            evaluated = sums.evaluate(part, payload, 0)
            curvature = sums.Curvature(np.ones((3, d)), intercept, Options(), X[0], 3, [1])
            found.add((moments.tobytes(), evaluated.tobytes(), sums.add_hessians(part, curvature, 0).tobytes()))
    assert len(found) == 2


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"class_weight": "balanced", "label_smoothing": 0.1, "temperature": 1.3},
        {"class_weight": "effective_number"},
        {"class_weight": {0: 2.0}, "penalty_l2": 0.1},
        {"fit_intercept": False},
    ],
)
@pytest.mark.parametrize("kind", ["dense", "sparse", "weighted", "text"])
def test_the_loss_of_one_machine(parameters, kind):
    X, y, weight = make_rows()
    X = scipy.sparse.csr_array(X * (abs(X) > 0.5)) if kind == "sparse" else X
    if kind == "text":
        y = np.array(["ant", "bee", "cow"])[y]
        parameters = parameters | ({"class_weight": {"ant": 2.0}} if parameters.get("class_weight") == {0: 2.0} else {})
    weight = weight if kind == "weighted" else None
    plain = SoftmaxRegression(**parameters).fit(X, y, weight)
    model = fit(split(CUTS, X, y, weight), **parameters)
    loss = plain.history_["loss"][-1]
    assert abs(model.history_["loss"][-1] - loss) <= 1e-12 * loss
    assert np.allclose(model.coef_, plain.coef_, rtol=1e-8, atol=1e-10)
    assert np.allclose(model.penalty_l2_, plain.penalty_l2_, rtol=1e-14)
    assert np.array_equal(model.classes_, plain.classes_)


@pytest.mark.parametrize("factor", [1.0, 1e200])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_moments(factor, is_sparse):
    """Those of a constant column are exact, and squares may overflow."""
    X, y, weight = make_rows()
    X[:, 0] = 1e9 / 3
    given = scipy.sparse.csr_array(X * factor) if is_sparse else X * factor
    held = LocalEngine(split(CUTS, given, y, weight))
    held.change(rows.load, None)
    held.change(rows.settle, rows.Settings(np.arange(3), X.dtype, CUTS[:-1], None, 0.1))
    counts = held.gather(rows.count, None)
    largest = np.maximum.reduce([count.largest for count in counts if count.rows])
    layout = Layout(5, X.dtype, sum(c.rows for c in counts), CUTS[:-1], counts[0].first, largest)
    mean, std = PartsObjective(held, layout, np.bincount(y, weight), Options()).moments()
    plain_mean, plain_std = Objective(given, y, weight, 3, Options()).moments()
    assert np.allclose(mean, plain_mean, rtol=1e-13)
    assert np.allclose(std, plain_std, rtol=1e-13 if not is_sparse else 1e-6, atol=0 if not is_sparse else factor * 1e2)
    assert is_sparse or std[0] == 0


def test_early_stopping_holds_out_the_same_rows_for_any_cut():
    X, y, weight = make_rows()
    given = {"early_stopping": True, "random_state": 5, "patience": 3}
    models = [fit(split(cuts, X, y, weight), **given) for cuts in (CUTS, [0, 700], [0, 101, 700])]
    for model in models[1:]:
        assert model.n_iter_ == models[0].n_iter_
        assert np.allclose(model.history_["validation_loss"], models[0].history_["validation_loss"], rtol=1e-12)
    held = rows.draw_uniforms(7, 0, 1000) < 0.1
    assert 60 < held.sum() < 140
    assert np.array_equal(held[123:], rows.draw_uniforms(7, 123, 877) < 0.1)


def test_features_have_names():
    pandas = pytest.importorskip("pandas")
    X, y, _ = make_rows()
    frame = pandas.DataFrame(X, columns=list("abcde"))
    model = fit(split(CUTS, frame, pandas.Series(y)))
    assert model.feature_names_in_.tolist() == list("abcde")
    renamed = frame.rename(columns={"a": "z"})
    with pytest.raises(ValueError, match="names of features"):
        fit([(frame, y), (renamed, y)])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda X, y, w: (X, y, np.where(np.arange(700) == 203, -1.0, w)), r"sample_weight\[203\], row 3 of part 5"),
        (lambda X, y, w: (np.where(np.arange(700)[:, None] == 90, np.inf, X), y, w), r"X\[90\], row 0 of part 3"),
        (lambda X, y, w: (X, np.where(np.arange(700) == 0, np.nan, y), w), r"y\[0\], row 0 of part 0, is nan"),
        (lambda X, y, w: (X, y, w * 0), "sample_weight is zero for every row"),
        (lambda X, y, w: (X, y * 0, w), "one class: 0"),
        (lambda X, y, w: (X, y + 0.5, w), "Unknown label type"),
        (lambda X, y, w: (X[:0], y[:0], w[:0]), "X has no rows in any of its 12 parts"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named(change, text):
    with pytest.raises(ValueError, match=text):
        fit(split(CUTS, *change(*make_rows())))


def test_a_failure_leaves_the_earlier_fit():
    X, y, _ = make_rows()
    model = SoftmaxRegression(warm_start=True).fit(X, y)
    coef = model.coef_
    held = LocalEngine(split(CUTS, X, np.where(np.arange(700) == 350, 9, y)))
    with pytest.raises(ValueError, match=r"y\[350\], row 0 of part 7, is 9, which is not among the classes"):
        fit_parts(model, held, "fit")
    assert model.coef_ is coef


def test_a_bad_feature_beside_text_labels():
    X, y, _ = make_rows()
    X[402, 1] = np.nan
    with pytest.raises(ValueError, match=r"X\[402\], row 0 of part 9, is nan; features must be finite"):
        fit(split(CUTS, X, np.array(["ant", "bee", "cow"])[y]))
