"""RowOptimizer: each kind by its definition in mpmath, lazy decay, bits over threads and instruction sets, refusals."""

import signal
import sys
import time

import mpmath
import numpy as np
import pytest
from helpers import run_python

import csoftmax
from csoftmax._cpu import binding
from csoftmax.heads import RowOptimizer

KINDS = ["rowwise_adagrad", "adagrad", "adam", "sgd"]
WIDTHS = [1, 2, 3, 7, 15, 16, 17, 33, 64, 97]


def make_rows(rows, values):
    return csoftmax.RowGradient(np.asarray(rows), np.asarray(values))


class Definition:
    """The optimisers in mpmath, row by row; every row is visited in every step, but has a gradient only in some."""

    def __init__(self, kind, rate, penalty, w):
        self.kind, self.rate = kind, mpmath.mpf(rate)
        self.keep = 1 - mpmath.mpf(rate) * mpmath.mpf(penalty)
        self.w = [[mpmath.mpf(float(v)) for v in row] for row in w]
        self.first = [[mpmath.mpf(0)] * len(row) for row in w]
        self.second = [[mpmath.mpf(0)] * len(row) for row in w]
        self.visits = [0] * len(w)

    def step(self, rows, values):
        self.w = [[self.keep * v for v in row] for row in self.w]
        for r, g in zip(rows, values):
            g = [mpmath.mpf(float(v)) for v in g]
            self.w[r] = [v - d for v, d in zip(self.w[r], self.directions(r, g))]

    def directions(self, r, g):
        first, second = self.first[r], self.second[r]
        if self.kind == "sgd":
            return [self.rate * v for v in g]
        if self.kind == "rowwise_adagrad":
            first[0] += sum(v * v for v in g) / len(g)
            return [self.rate * v / mpmath.sqrt(first[0] + mpmath.mpf("1e-8")) for v in g]
        if self.kind == "adagrad":
            first[:] = [s + v * v for s, v in zip(first, g)]
            return [self.rate * v / mpmath.sqrt(s + mpmath.mpf("1e-8")) for s, v in zip(first, g)]
        self.visits[r] += 1
        b1, b2 = mpmath.mpf("0.9"), mpmath.mpf("0.999")
        first[:] = [b1 * m + (1 - b1) * v for m, v in zip(first, g)]
        second[:] = [b2 * s + (1 - b2) * v * v for s, v in zip(second, g)]
        c1, c2 = 1 - b1 ** self.visits[r], 1 - b2 ** self.visits[r]
        return [self.rate * (m / c1) / (mpmath.sqrt(s / c2) + mpmath.mpf("1e-8")) for m, s in zip(first, second)]


def distance(w, definition):
    """The largest error, in units of the spacing at the largest weight of the row."""
    worst = 0.0
    for row, exact in zip(np.asarray(w, np.float64), definition.w):
        unit = np.spacing(np.asarray(w).dtype.type(max(1e-3, *(abs(float(v)) for v in exact))))
        worst = max(worst, *(abs(float(mpmath.mpf(float(v)) - e)) / float(unit) for v, e in zip(row, exact)))
    return worst


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalty", [0.0, 0.01])
def test_definition(kind, dtype, penalty):
    rng = np.random.default_rng(7)
    worst = 0.0
    for width in WIDTHS:
        w = rng.normal(size=(9, width)).astype(dtype)
        exact = Definition(kind, 0.25, penalty, w)
        optimizer = RowOptimizer(kind, 0.25, penalty_l2=penalty)
        for _ in range(4):
            rows = np.sort(rng.choice(9, rng.integers(0, 6), replace=False))
            values = (rng.normal(size=(len(rows), width)) * 10.0 ** rng.integers(-6, 3)).astype(dtype)
            optimizer.update("w", w, make_rows(rows, values))
            exact.step(rows, values)
        optimizer.apply_decay("w", w)
        worst = max(worst, distance(w, exact))
    assert worst <= 6, worst


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="long double is double here")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kind", "bound"), [("sgd", 2), ("rowwise_adagrad", 4.5), ("adagrad", 3.8), ("adam", 5.1)])
def test_error_of_a_step(kind, bound, dtype):
    """The figures in the head of the kernel, from 200,000 weights of each width."""
    rng = np.random.default_rng(0)
    for width in (1, 7, 33, 1000):
        w = rng.normal(size=(200_000 // width, width)).astype(dtype)
        g = (rng.normal(size=w.shape) * 10.0 ** rng.integers(-6, 3, (len(w), 1))).astype(dtype)
        wide, small = g.astype(np.longdouble), np.longdouble(1e-8)
        squares = wide**2
        direction = {
            "sgd": wide,
            "rowwise_adagrad": wide / np.sqrt(squares.mean(axis=1, keepdims=True) + small),
            "adagrad": wide / np.sqrt(squares + small),
            "adam": wide / (np.abs(wide) + small),
        }[kind]
        kept = w * (1 - np.longdouble(0.25) * np.longdouble(0.01))
        optimizer = RowOptimizer(kind, 0.25, penalty_l2=0.01)
        optimizer.update("w", w, g)
        scale = np.maximum(np.abs(kept), np.abs(direction / 4)).astype(dtype)
        assert (np.abs(w - (kept - direction / 4)) / np.spacing(scale)).max() <= bound
        if kind == "rowwise_adagrad":
            exact, sums = squares.mean(axis=1), optimizer._states["w"].first
            assert (np.abs(sums - exact) / np.spacing(exact.astype(dtype))).max() <= 3.7


def test_decay_is_exact_after_a_million_steps():
    """(1 - eta lambda)^k to the last digit of float64, where a product of a million factors has an error of 1e-10."""
    w = np.ones((2, 3))
    optimizer = RowOptimizer("sgd", 0.125, penalty_l2=1e-6)
    optimizer.update("w", w, make_rows([0], np.zeros((1, 3))))
    steps = 1_000_000
    optimizer._states["w"] = optimizer._states["w"]._replace(step=steps)
    optimizer.apply_decay("w", w)
    exact = (1 - mpmath.mpf(0.125) * mpmath.mpf(1e-6)) ** steps
    assert abs(mpmath.mpf(w[1, 0]) / exact - 1) < 2.0**-52
    assert abs(mpmath.mpf(w[0, 0]) / exact - 1) < 2.0**-51
    before = w.copy()
    optimizer.apply_decay("w", w)  # nothing is due any more
    assert (w == before).all()


def test_adam_of_a_row_is_adam_on_its_gradients_alone():
    """Steps in which a row has no gradient do not change what Adam does with it."""
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=(5, 1, 4))
    w, alone = np.ones((3, 4)), np.ones((1, 4))
    lazy, dense = RowOptimizer("adam", 0.1), RowOptimizer("adam", 0.1)
    for g in gradients:
        lazy.update("w", w, make_rows([1], g))
        lazy.update("w", w, make_rows([0, 2], rng.normal(size=(2, 4))))
        dense.update("w", alone, g)
    assert (w[1] == alone[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_gradient_are_not_visited(kind):
    """Not even where they are NaN, with a penalty; and neither is their state, which exists only in pages written."""
    w = np.full((6, 5), np.nan, np.float32)
    w[[1, 4]] = 1
    optimizer = RowOptimizer(kind, penalty_l2=0.1)
    optimizer.update("w", w, make_rows([1, 4], np.ones((2, 5))))
    assert np.isfinite(w[[1, 4]]).all()
    assert np.isnan(w[[0, 2, 3, 5]]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_bits(kind, dtype):
    """The same bits for threads, instruction sets, layouts, and an array or rows."""
    rng = np.random.default_rng(3)
    rows = np.sort(rng.choice(5000, 3000, replace=False))
    gradients = rng.normal(size=(3, 3000, 37))
    gradients[1, 5, 3], gradients[1, 6, 0] = np.nan, np.inf
    start = rng.normal(size=(5000, 37)).astype(dtype)

    def run(threads, w, to_gradient):
        optimizer = RowOptimizer(kind, 0.1, penalty_l2=0.01, num_threads=threads)
        for g in gradients:
            optimizer.update("w", w, to_gradient(g))
        return w.tobytes()

    def as_rows(g):
        return make_rows(rows, g)

    isa = binding.isa()
    expected = run(1, start.copy(), as_rows)
    try:
        for name in binding.isa_available():
            binding.select_isa(name)
            for threads in (1, 2, 3, 8):
                assert run(threads, start.copy(), as_rows) == expected, (name, threads)
    finally:
        binding.select_isa(isa)
    strided = np.zeros((5000, 74), dtype)[:, ::2]
    strided[...] = start
    assert run(2, strided, as_rows) == expected
    transposed = np.asfortranarray(start)
    assert run(2, transposed, as_rows) == expected
    part = start[rows].copy()
    dense = run(2, part, lambda g: g)
    whole = np.frombuffer(expected, dtype).reshape(5000, 37)
    assert dense == whole[rows].tobytes()


GUARDED = """
import numpy as np
import csoftmax
from csoftmax.heads import RowOptimizer
from helpers.guard_pages import Guarded

def guard(state, at_end):
    arrays = {name: getattr(state, name) for name in ("first", "second", "visits", "last")}
    places = {name: Guarded(a.nbytes).copy(a, at_end) for name, a in arrays.items() if a is not None}
    return state._replace(**places)

rng = np.random.default_rng(0)
for dtype in (np.float16, np.float32, np.float64):
    for kind in ("rowwise_adagrad", "adagrad", "adam", "sgd"):
        for width in (1, 3, 7, 8, 15, 16, 17, 33, 97):
            start = rng.normal(size=(20, width)).astype(dtype)
            rows = np.array([0, 1, 7, 18, 19])
            compute = np.float64 if dtype == np.float64 else np.float32
            g = rng.normal(size=(5, width)).astype(compute)
            for at_end in (True, False):
                results = []
                for guarded in (False, True):
                    optimizer, w = RowOptimizer(kind, 0.1, penalty_l2=0.1), start.copy()
                    optimizer.update("w", w, csoftmax.RowGradient(rows, g))
                    values = g
                    if guarded:
                        w = Guarded(w.nbytes).copy(w, at_end)
                        values = Guarded(g.nbytes).copy(g, at_end)
                        optimizer._states["w"] = guard(optimizer._states["w"], at_end)
                    optimizer.update("w", w, csoftmax.RowGradient(rows, values))
                    optimizer.apply_decay("w", w)
                    results.append(w.tobytes())
                assert results[0] == results[1], (dtype, kind, width, at_end)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory maps with protected pages")
def test_guard_pages():
    """No access outside the weights, the gradient and the state, each at the end and at the beginning of its memory."""
    run_python(GUARDED)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_long_step_sees_ctrl_c():
    """2^33 visits of the same 16 weights would take minutes."""
    w = np.lib.stride_tricks.as_strided(np.ones(16, np.float32), (1 << 33, 16), (0, 4))

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    begin = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            binding.run_row_update(
                binding.DTYPES["float32"],
                binding.OPTIMIZERS["sgd"],
                *(0.1, 0.0, w, None, None, None, None, None, None, 1, 1),
            )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.perf_counter() - begin < 1


def test_a_vector_is_a_matrix_of_one_column():
    rng = np.random.default_rng(1)
    for kind in KINDS:
        w, column = np.ones(9, np.float32), np.ones((9, 1), np.float32)
        one, other = RowOptimizer(kind), RowOptimizer(kind)
        for _ in range(3):
            g = rng.normal(size=3)
            one.update("b", w, make_rows([0, 4, 8], g))
            other.update("b", column, make_rows([0, 4, 8], g[:, None]))
        assert (w == column[:, 0]).all()


def test_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    w = np.ones((4, 3), ml_dtypes.bfloat16)
    RowOptimizer("sgd", 0.5).update("w", w, np.ones((4, 3), ml_dtypes.bfloat16))
    assert (w.astype(np.float32) == 0.5).all()


def test_state_sizes():
    w = np.zeros((1000, 8), np.float32)
    sizes = {"rowwise_adagrad": 4 * 1000, "adagrad": 4 * 8000, "adam": 2 * 4 * 8000 + 4 * 1000, "sgd": 0}
    for kind, size in sizes.items():
        optimizer = RowOptimizer(kind)
        optimizer.update("w", w, make_rows([3], np.ones((1, 8))))
        assert optimizer.nbytes == size
    assert optimizer.forget() is None
    assert optimizer.nbytes == 0


def test_nothing_to_do():
    for kind in KINDS:
        optimizer = RowOptimizer(kind, penalty_l2=0.1)
        for shape in [(0, 4), (4, 0), (0,)]:
            w = np.ones(shape)
            optimizer.update(str(shape), w, np.ones(shape))
        w = np.ones((3, 2))
        optimizer.update("w", w, make_rows(np.zeros(0, int), np.zeros((0, 2))))
        assert (w == 1).all()


@pytest.mark.parametrize(
    ("error", "match", "change"),
    [
        (IndexError, r"rows\[1\] is 3; w has 3 rows", {"g": make_rows([0, 3], np.ones((2, 2)))}),
        (IndexError, r"rows\[0\] is -1", {"g": make_rows([-1], np.ones((1, 2)))}),
        (ValueError, "rows must be distinct", {"g": make_rows([1, 1], np.ones((2, 2)))}),
        (TypeError, "rows must be integers", {"g": make_rows([0.5], np.ones((1, 2)))}),
        (ValueError, r"g has shape \(1, 3\)", {"g": make_rows([0], np.ones((1, 3)))}),
        (ValueError, r"g has shape \(2, 2\)", {"g": np.ones((2, 2))}),
        (TypeError, "g must hold real numbers", {"g": np.ones((3, 2), complex)}),
        (TypeError, "w must be a NumPy array", {"w": [[1.0, 2.0]]}),
        (TypeError, "w has dtype int64", {"w": np.ones((3, 2), int)}),
        (ValueError, "w has shape", {"w": np.ones((3, 2, 1))}),
        (ValueError, "read-only", {"w": np.broadcast_to(1.0, (3, 2))}),
        (TypeError, "name must be a str", {"name": 3}),
        (ValueError, "began with", {"w": np.ones((4, 2)), "g": np.ones((4, 2))}),
    ],
)
def test_refusals(error, match, change):
    optimizer = RowOptimizer()
    w = np.ones((3, 2))
    optimizer.update("w", w, np.ones((3, 2)))
    before = w.copy()
    arguments = {"name": "w", "w": w, "g": np.ones((3, 2))} | change
    with pytest.raises(error, match=match):
        optimizer.update(**arguments)
    assert (w == before).all()


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "kind must be one of 'rowwise_adagrad', 'adagrad', 'adam', 'sgd', got 'adamw'", {"kind": "adamw"}),
        (ValueError, "learning_rate", {"learning_rate": 0.0}),
        (TypeError, "learning_rate", {"learning_rate": "fast"}),
        (ValueError, "penalty_l2", {"penalty_l2": -1.0}),
        (ValueError, "at most 1", {"learning_rate": 2.0, "penalty_l2": 0.6}),
    ],
)
def test_refused_parameters(error, match, arguments):
    with pytest.raises(error, match=match):
        RowOptimizer(**arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_of_rows", [True, False])
def test_gradients_in_w_are_read_before_it_changes(kind, is_of_rows):
    w = np.random.default_rng(0).normal(size=(9, 5))
    expected, rows = w.copy(), np.arange(1, 8)
    optimizer, other = RowOptimizer(kind), RowOptimizer(kind)
    for _ in range(2):
        if is_of_rows:
            other.update("w", expected, csoftmax.RowGradient(rows, expected[:7].copy()))
            optimizer.update("w", w, csoftmax.RowGradient(rows, w[:7]))
        else:
            other.update("w", expected[1:], expected[:-1].copy())
            optimizer.update("w", w[1:], w[:-1])
        assert np.array_equal(w, expected)
