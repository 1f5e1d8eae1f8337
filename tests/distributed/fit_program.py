"""What each rank of the tests of `distributed.fit` runs.

Arguments: "mpi", or "gloo", rank, ranks and a file to meet at.  Prints "ok" at last on rank 0.
"""

import hashlib
import pickle
import sys
import warnings

import numpy as np
import scipy.sparse

from csoftmax import distributed
from csoftmax._distributed.groups import as_group
from csoftmax._learn.parts import sums
from csoftmax.linear_model import SoftmaxRegression


def meet():
    if sys.argv[1] == "mpi":
        from mpi4py import MPI

        return MPI.COMM_WORLD
    import gloo_ranks

    return gloo_ranks.meet(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], 30)


GROUP = meet()
PEERS = as_group(GROUP)
RANK, RANKS = PEERS.rank, PEERS.size


def gather(value):
    """A value of each rank."""
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    sizes = PEERS.all_gather(np.array([len(data)], np.int64))[:, 0]
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(data)] = data
    return [pickle.loads(row.tobytes()) for row in PEERS.all_gather(padded)]


def digest(model):
    found = model.coef_.tobytes() + model.intercept_.tobytes() + repr((model.history_, model.n_iter_)).encode()
    return hashlib.sha256(found + repr(model.classes_).encode()).hexdigest()


def make_rows(n=900, d=7, k=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d))
    y = (X @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k))).argmax(axis=1)
    return X, y, rng.random(n) * (rng.random(n) < 0.9)


def own_rows(n):
    """Rows of this rank: uneven shares, of which the second is empty if there are three ranks or more."""
    shares = np.arange(1, RANKS + 1, dtype=float) ** 2
    if RANKS > 2:
        shares[1] = 0
    ends = np.round(n * np.cumsum(shares) / shares.sum()).astype(int)
    return slice(0 if RANK == 0 else ends[RANK - 1], ends[RANK])


def check_fit(X, y, weight=None, exact=1e-12, **parameters):
    """The same bits on all ranks, and the loss of one process."""
    whole = SoftmaxRegression(**parameters).fit(X, y, weight)
    rows = own_rows(len(y))
    model = SoftmaxRegression(**parameters)
    fitted = distributed.fit(model, X[rows], y[rows], None if weight is None else weight[rows], group=GROUP)
    assert fitted is model
    assert len(set(gather(digest(model)))) == 1
    if exact is not None:
        loss, other = whole.history_["loss"][-1], model.history_["loss"][-1]
        assert abs(loss - other) <= exact * abs(loss), (loss, other)
        near = 1e-6 if exact <= 1e-12 else 0.03  # float32 ends at tol, wherever rounding has led it
        assert np.allclose(model.coef_, whole.coef_, rtol=near, atol=near / 10)
    assert np.array_equal(model.classes_, whole.classes_)
    assert model.n_features_in_ == whole.n_features_in_
    return model


def check_fits():
    X, y, weight = make_rows()
    names = np.array(["ant", "bee", "cow"])[y]
    check_fit(X, y)
    check_fit(X, names, weight, class_weight="balanced", label_smoothing=0.1, temperature=1.5)
    check_fit(X, names, weight, class_weight={"ant": 2.0, "bee": 1.0, "cow": 0.5}, penalty_l2=0.01)
    check_fit(X.astype(np.float32), y, tol=1e-4, exact=1e-6)
    check_fit(scipy.sparse.csr_array(X * (np.abs(X) > 1)), y)
    check_fit(X, y, weight, early_stopping=True, random_state=1, patience=3, exact=None)
    check_fit(X[:, :1] * np.ones((1, 2)), y, fit_intercept=False)  # columns of equal numbers
    check_fit(X[:, :1], y)
    lopsided = np.sort(y)  # ranks with rows of one class only
    check_fit(X, lopsided)
    model = check_fit(X, y, warm_start=True)
    rows = own_rows(len(y))
    distributed.fit(model, X[rows], y[rows], group=GROUP)  # from where it was
    assert len(set(gather(digest(model)))) == 1
    assert model.n_iter_ <= 2


def check_raises(error, text, X, y, weight=None, model=None):
    """All ranks raise the same exception, and the next call works."""
    model = model or SoftmaxRegression()
    model.fit(*make_rows()[:2])
    before = digest(model)
    raised = None
    try:
        distributed.fit(model, X, y, weight, group=GROUP)
    except Exception as problem:
        raised = type(problem), str(problem)
    assert raised is not None, text
    found = gather(raised)
    assert len(set(found)) == 1, found
    assert issubclass(found[0][0], error), found
    assert text in found[0][1], found
    assert digest(model) == before


def check_errors():
    X, y, weight = make_rows()
    rows = own_rows(len(y))
    X, y, weight = X[rows], y[rows], weight[rows]
    last = RANK == RANKS - 1
    start = int(sum(gather(len(y))[:-1]))
    bad = np.array(["ant", "bee", "cow"], object)[y]
    if last:
        bad[5] = None
    check_raises(ValueError, f"y[{start + 5}], row 5 of part {RANKS - 1}, is None", X, bad)
    features = X.copy()
    if last:
        features[4, 2] = np.nan
    check_raises(ValueError, f"X[{start + 4}], row 4 of part {RANKS - 1}, is nan", features, y)
    check_raises(ValueError, "fit_batches", X, y, model=SoftmaxRegression(solver="adamw", max_epochs=1))
    known = SoftmaxRegression(warm_start=True)
    unknown = y.copy()
    if last:
        unknown[3] = 7
    check_raises(ValueError, f"y[{start + 3}], row 3 of part {RANKS - 1}, is 7", X, unknown, model=known)
    if RANKS == 1:
        return
    check_raises(ValueError, "dtype", X.astype(np.float32) if last else X, y)
    check_raises(ValueError, "features", X[:, :3] if last else X, y)
    check_raises(ValueError, "sample_weight must be given", X, y, weight if last else None)
    other = SoftmaxRegression(penalty_l2=0.5 if last else 0.1)
    check_raises(ValueError, "disagree on penalty_l2: 0.1 on rank 0 and 0.5 on rank", X, y, model=other)
    check_raises(distributed.DistributedError, "max_epochs", X, y, model=RaisesInParameters() if last else None)
    check_raises(ValueError, "kind", X, y.astype(str) if last else y)


class RaisesInParameters(SoftmaxRegression):
    def get_params(self, deep=True):
        raise ValueError("max_epochs is not to be had")


def check_failures_in_the_middle():
    X, y, _ = make_rows()
    rows = own_rows(len(y))
    X, y = X[rows], y[rows]
    original, calls = sums.evaluate, []

    def fail(part, payload, number):
        calls.append(number)
        if number == RANKS - 1 and len(calls) > 3:
            raise MemoryError("no memory for 7 bytes")
        return original(part, payload, number)

    sums.evaluate = fail  # the message has its name, so that each rank finds its own
    fail.__module__, fail.__qualname__ = original.__module__, original.__qualname__
    try:
        error = MemoryError if RANKS == 1 else distributed.DistributedMemoryError
        check_raises(error, "no memory for 7 bytes", X, y)
    finally:
        sums.evaluate = original

    def refuse(estimator, record):
        if record["epoch"] == 2:
            raise KeyError("from the callback")

    check_raises(KeyError, "from the callback", X, y, model=PlainFit(callbacks=refuse))
    seen = []
    model = SoftmaxRegression(callbacks=lambda estimator, record: seen.append(record["epoch"]) or len(seen) == 3)
    distributed.fit(model, X, y, group=GROUP)
    assert seen == ([1, 2, 3] if RANK == 0 else [])
    assert model.n_iter_ == 3
    assert len(set(gather(digest(model)))) == 1


class PlainFit(SoftmaxRegression):
    """Fits without callbacks on one machine."""

    def fit(self, X, y, sample_weight=None):
        callbacks, self.callbacks = self.callbacks, None
        super().fit(X, y, sample_weight)
        self.callbacks = callbacks
        return self


def main():
    warnings.simplefilter("ignore")
    check_fits()
    check_errors()
    check_failures_in_the_middle()
    if RANK == 0:
        print("ok", flush=True)
    if sys.argv[1] == "gloo":
        import gloo_ranks

        gloo_ranks.leave()


if __name__ == "__main__":
    main()
