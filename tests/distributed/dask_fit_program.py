"""Fits over Dask collections on clusters of processes, and what may happen to these; the test passes the function.

Prints "ok" at last.
"""

import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import psutil
import pytest
import scipy.sparse
from distributed import Client, LocalCluster

from csoftmax._dask import engine
from csoftmax._dask.options import options
from csoftmax._distributed.parts import PartError, PartMemoryError
from csoftmax.linear_model import SoftmaxRegression

ROWS, CHUNK = 4000, 330


def make_rows(n=ROWS, d=6, k=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d))
    y = (X @ rng.normal(size=(d, k)) + rng.gumbel(size=(n, k))).argmax(axis=1)
    return X, y, rng.random(n) * (rng.random(n) < 0.9)


X, Y, WEIGHT = make_rows()
NAMES = np.array(["ant", "bee", "cow"])[Y]


def lazy(*arrays, chunk=CHUNK):
    return [da.from_array(a, chunks=(chunk, -1)[: a.ndim]) for a in arrays]


def start(workers, **given):
    given = {"threads_per_worker": 1, "dashboard_address": None, "processes": True} | given
    cluster = LocalCluster(n_workers=workers, **given)
    return cluster, Client(cluster)


def bits(model):
    return model.coef_.tobytes() + model.intercept_.tobytes() + repr(model.history_).encode()


def fit(*data, **parameters):
    return SoftmaxRegression(**parameters).fit(*data)


def check_close(model, *data, exact=1e-12, **parameters):
    """The loss of one machine."""
    plain = fit(*data, **parameters)
    loss = plain.history_["loss"][-1]
    assert abs(model.history_["loss"][-1] - loss) <= exact * loss, (model.history_["loss"][-1], loss)
    assert np.array_equal(model.classes_, plain.classes_)
    return plain


def pids(client):
    return list(client.run(os.getpid).values())


def check_workers():
    """The same bits for 1, 2, 3 workers, wherever the parts are, kept or not."""
    expected = fit(*lazy(X, Y, WEIGHT))  # without a client
    check_close(expected, X, Y, WEIGHT)
    with options(keep=False):
        assert bits(fit(*lazy(X, Y, WEIGHT))) == bits(expected)
    for workers in (1, 2, 3):
        cluster, client = start(workers)
        with cluster, client:
            assert bits(fit(*lazy(X, Y, WEIGHT))) == bits(expected), workers
            check_released(client)
            if workers == 2:
                check_placements(client, expected)
                check_cut(client)
                check_data(client)
    print("workers")


def check_placements(client, expected):
    addresses = list(client.nthreads())
    data = lazy(X, Y, WEIGHT)
    placed = []
    for a in data:  # every third chunk on another worker
        with dask.annotate(workers=lambda key: addresses[hash(str(key[1:])) % 3 % 2]):
            placed.append(client.persist(a))
    assert bits(fit(*placed)) == bits(expected)
    with options(keep=False):
        assert bits(fit(*data)) == bits(expected)
    with options(split_every=2, client=client):
        assert bits(fit(*data)) == bits(expected)
        limit, engine.MAX_GATHERED_BYTES = engine.MAX_GATHERED_BYTES, 0  # sums of runs are merged by tasks
        assert bits(fit(*data)) == bits(expected)
        engine.MAX_GATHERED_BYTES = limit


def check_cut(client):
    """Other parts: the same loss."""
    model = fit(*lazy(X, Y, WEIGHT, chunk=997), class_weight="balanced", label_smoothing=0.1)
    check_close(model, X, Y, WEIGHT, class_weight="balanced", label_smoothing=0.1)


def check_data(client):
    """Kinds of collections, of labels and of parts."""
    x, y, w = lazy(X, Y, WEIGHT)
    frame = pd.DataFrame(X, columns=list("abcdef")).assign(y=NAMES, w=WEIGHT)
    parts = dd.from_pandas(frame, npartitions=5)
    features = parts[list("abcdef")]
    model = fit(features, parts["y"], parts["w"])
    check_close(model, frame[list("abcdef")], NAMES, WEIGHT)
    assert model.feature_names_in_.tolist() == list("abcdef")
    for predicted in (model.predict(features), model.predict_proba(features), model.decision_function(features)):
        assert isinstance(predicted, dd.DataFrame | dd.Series)
        assert predicted.compute().index.equals(frame.index)
    assert model.predict(features).compute().tolist() == model.predict(frame[list("abcdef")]).tolist()
    assert np.array_equal(model.predict_proba(features).compute(), model.predict_proba(frame[list("abcdef")]))
    assert model.score(features, parts["y"]).compute() == model.score(frame[list("abcdef")], NAMES)
    # unknown lengths, empty parts, and parts of one class
    kept = parts[parts["y"] != "bee"]
    by_class = dd.from_pandas(frame.sort_values("y"), npartitions=7, sort=False)
    unknown = by_class[list("abcdef")].to_dask_array()
    assert np.isnan(unknown.shape[0])
    model = fit(unknown, by_class["y"].to_dask_array())
    check_close(model, frame.sort_values("y")[list("abcdef")].to_numpy(), frame.sort_values("y")["y"])
    some = fit(kept[list("abcdef")], kept["y"])
    assert some.classes_.tolist() == ["ant", "cow"]
    empty = parts[(parts["y"] == "bee") & (parts["a"] > 10)]
    mixed = dd.concat([empty, parts], interleave_partitions=False)
    check_close(fit(mixed[list("abcdef")], mixed["y"]), frame[list("abcdef")], NAMES)
    # float16, sparse parts, lists of Delayed, labels in memory
    half = X.astype(np.float16)
    check_close(fit(lazy(half)[0], y), half, Y)
    cuts = range(0, ROWS, CHUNK)
    sparse = scipy.sparse.csr_array(X * (abs(X) > 1))
    delayed = [dask.delayed(sparse[i : i + CHUNK]) for i in cuts]
    labels = [dask.delayed(NAMES[i : i + CHUNK]) for i in cuts]
    check_close(fit(delayed, labels), sparse, NAMES)
    assert bits(fit(x, Y)) == bits(fit(x, y))
    model = fit(x, y, early_stopping=True, random_state=3, patience=2)
    assert model.history_["validation_loss"]
    model = fit(x, y, warm_start=True)
    again = model.n_iter_
    assert model.fit(x, y).n_iter_ < again
    seen = []
    fit(x, y, callbacks=[lambda estimator, record: seen.append(record["loss"]), "progress"])
    assert len(seen) == again
    model.predict_proba(x).compute()
    assert model.predict(x).chunks == (x.chunks[0],)
    assert np.array_equal(model.predict(x).compute(), model.predict(X))
    assert np.array_equal(model.predict_log_proba(x).compute(), model.predict_log_proba(X))
    assert model.score(x, y, w).compute() == model.score(X, Y, WEIGHT) or abs(
        float(model.score(x, y, w).compute()) - model.score(X, Y, WEIGHT)
    ) < 1e-14  # fmt: skip


def check_errors():
    """One exception with the row among all, no task left, an earlier fit as it was."""
    cluster, client = start(2)
    with cluster, client:
        x, y, _ = lazy(X, Y, WEIGHT)
        bad = NAMES.astype(object)
        bad[7 * CHUNK + 5] = None
        model = fit(x, y)
        before = bits(model)
        number = 7 * CHUNK + 5
        expect(ValueError, f"y[{number}], row 5 of part 7, is None", lambda: model.fit(x, lazy(bad)[0]))
        broken = X.copy()
        broken[3 * CHUNK + 1, 2] = np.inf
        broken[9 * CHUNK, 0] = np.nan
        expect(ValueError, f"X[{3 * CHUNK + 1}], row 1 of part 3, is inf", lambda: model.fit(lazy(broken)[0], y))
        expect(ValueError, "chunks=(n, -1)", lambda: model.fit(x.rechunk((CHUNK, 2)), y))
        expect(ValueError, "chunks=(n, -1)", lambda: model.predict(x.rechunk((CHUNK, 2))))
        expect(ValueError, "fit_batches", lambda: SoftmaxRegression(solver="adamw").fit(x, y))
        expect(ValueError, "penalty_l2='auto'", lambda: SoftmaxRegression(penalty_l2="auto").fit(x, y))
        expect(ValueError, "rows", lambda: model.fit(x, y[:-1]))
        expect(TypeError, "not a Delayed", lambda: model.fit([dask.delayed(X), X], [dask.delayed(Y)] * 2))

        def fails(part):
            raise OSError(f"no file {part}")

        delayed = [dask.delayed(fails)(i) if i == 4 else dask.delayed(lambda: X)() for i in range(8)]
        expect(OSError, "no file 4", lambda: model.fit(delayed, [dask.delayed(Y)] * 8))

        def refuse(estimator, record):
            raise KeyError("from the callback")

        expect(KeyError, "from the callback", lambda: SoftmaxRegression(callbacks=refuse).fit(x, y))
        assert bits(model) == before
        check_released(client)
    print("errors")


def expect(kind, text, call):
    with pytest.raises(kind) as raised:
        call()
    assert text in str(raised.value), raised.value
    return raised.value


def check_released(client):
    """No future is left; the client hears of a reference that is gone a moment later."""
    end = time.monotonic() + 5
    while client.futures and time.monotonic() < end:
        time.sleep(0.05)
    assert not client.futures, client.futures


class At:
    """A callback that does things after some iterations."""

    def __init__(self, actions):
        self.actions, self.count = actions, 0

    def __call__(self, estimator, record):
        self.count += 1
        if self.count in self.actions:
            self.actions[self.count]()


def check_killed():
    """Two workers are killed while a fit runs, which goes on with the same bits."""
    data = lazy(X, Y, WEIGHT)
    expected = fit(*data)
    cluster, client = start(2)
    with cluster, client:

        def kill():
            os.kill(pids(client)[0], signal.SIGKILL)

        assert bits(fit(*data, callbacks=At({3: kill, 9: kill}))) == bits(expected)
    print("killed")


def check_frozen_long():
    """The same for longer than a worker may be silent: heartbeats and pings are missed."""
    check_frozen(20)


def check_frozen(seconds=4):
    """A worker that stands still for some time, and one that is killed while it does."""
    data = lazy(X, Y, WEIGHT)
    expected = fit(*data)
    cluster, client = start(2)
    with cluster, client:
        workers = pids(client)

        def freeze(pid, last):
            os.kill(pid, signal.SIGSTOP)
            threading.Timer(seconds, os.kill, (pid, last)).start()

        actions = {3: lambda: freeze(workers[0], signal.SIGCONT)}
        assert bits(fit(*data, callbacks=At(actions))) == bits(expected)
        actions = {3: lambda: freeze(workers[1], signal.SIGKILL)}
        assert bits(fit(*data, callbacks=At(actions))) == bits(expected)
    print("frozen")


def check_joining():
    """Workers that join are used, and those that leave are not waited for."""
    data = lazy(X, Y, WEIGHT)
    expected = fit(*data)
    cluster, client = start(1)
    with cluster, client:
        used = set()

        def look():
            time.sleep(1.1)  # the next evaluation looks for workers
            used.add(len(client.nthreads()))

        def grow():
            cluster.scale(3)
            client.wait_for_workers(3)
            look()

        def shrink():
            busy.update(worker for worker, keys in client.has_what().items() if keys)
            cluster.scale(1)
            while len(client.nthreads()) > 1:
                time.sleep(0.1)
            look()

        busy = set()
        assert bits(fit(*data, callbacks=At({2: grow, 6: shrink}))) == bits(expected)
        assert used == {1, 3}
        assert len(busy) == 3, busy
    print("joining")


def check_memory():
    """A part that no worker can hold."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 1, "distributed.nanny.pre-spawn-environ": {}}):
        cluster, client = start(1, memory_limit="400MB")  # a worker has 225 MB with nothing but what it imports
    with cluster, client:

        def grow(rows):
            held = [np.ones(1 << 23) for _ in range(20)]
            time.sleep(30)
            return rows * held[0][0]

        delayed = [dask.delayed(grow if i == 2 else np.array)(X[:CHUNK]) for i in range(4)]
        labels = [dask.delayed(Y[:CHUNK]) for _ in range(4)]
        error = expect(PartMemoryError, "part 2 of 4", lambda: fit(delayed, labels))
        assert isinstance(error, MemoryError)
        assert "perhaps out of memory" in str(error)
        check_released(client)
    cluster, client = start(1)
    with cluster, client:
        original = list(lazy(X, Y))

        def fail():
            client.run(set_memory_error)

        error = expect(PartMemoryError, "rows", lambda: fit(*original, callbacks=At({2: fail})))
        assert "parts 0 to 12 of 13 (4000 rows, 192000 bytes): out of memory" in str(error), error
    print("memory")


def set_memory_error():
    from csoftmax._learn.parts import sums

    def split_rows(rows, classes):
        raise MemoryError("no memory for 7 bytes")

    sums.split_rows = split_rows


class Peak:
    """The memory of processes at its highest, beyond what they had before."""

    def __init__(self, numbers):
        self.processes = [psutil.Process(number) for number in numbers]
        self.before = self.highest = self.look()
        self.ended = threading.Event()
        self.watcher = threading.Thread(target=self.watch)

    def look(self):
        return np.array([process.memory_info().rss for process in self.processes])

    def watch(self):
        while not self.ended.wait(0.003):
            self.highest = np.maximum(self.highest, self.look())

    def __enter__(self):
        self.watcher.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.watcher.join()

    @property
    def most(self):
        return int((self.highest - self.before).sum())


def make_features(number, rows, features):
    return np.random.default_rng(number).normal(size=(rows, features))


def make_labels(number, rows, classes):
    return np.random.default_rng(number).integers(0, classes, rows)


def check_worker_memory():
    """A worker needs its rows, one part more, and a vector for each level of the tree: of gradients, or a Hessian.

    Both workers together, since a slow one gives parts to the other.
    """
    for rows, parts, features, classes, has_hessian in ((12500, 32, 64, 10, True), (5000, 8, 512, 100, False)):
        cluster, client = start(2, memory_limit=0)
        with cluster, client:
            fit(*lazy(X, Y))  # modules are loaded
            part = [dask.delayed(make_features)(i, rows, features) for i in range(parts)]
            labels = [dask.delayed(make_labels)(i, rows, classes) for i in range(parts)]
            with Peak(pids(client)) as peak:
                fit(part, labels, max_epochs=5)
        size, parameters = rows * features * 8, classes * (features + 1)
        vector = 8 * parameters ** (2 if has_hessian else 1)
        own = parts * (size + 2 * 8 * rows)  # labels as given, and as numbers
        allowed = own + 2 * (size + (4 << 20) + (int(np.log2(parts)) + 3) * vector)
        print(f"{parts} parts: {peak.most / 1e6:.0f} of {allowed / 1e6:.0f} MB, {own / 1e6:.0f} of them rows")
        assert peak.most <= allowed
    print("memory of workers")


def check_scheduler():
    """The scheduler dies: an exception within some seconds."""
    dask.config.set({"distributed.comm.timeouts.connect": "3s", "distributed.comm.retry.count": 0})
    command = [sys.executable, "-W", "ignore", "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard"]
    scheduler = subprocess.Popen([*command, "--scheduler-file", sys.argv[2]], stderr=subprocess.DEVNULL)
    worker = None
    try:
        while not os.path.exists(sys.argv[2]):
            time.sleep(0.1)
        command = [sys.executable, "-W", "ignore", "-m", "distributed.cli.dask_worker", "--no-nanny", "--nthreads", "1"]
        command += ["--death-timeout", "5", "--no-dashboard", "--scheduler-file", sys.argv[2]]
        worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        client = Client(scheduler_file=sys.argv[2])
        client.wait_for_workers(1, timeout=30)
        data = lazy(X, Y)
        ended = []

        def kill():
            scheduler.kill()
            scheduler.wait()
            ended.append(time.monotonic())

        expect(PartError, "scheduler", lambda: fit(*data, callbacks=At({3: kill})))
        assert time.monotonic() - ended[0] < 8
        client.close(timeout=1)
    finally:
        for process in (scheduler, worker):
            if process is not None:
                process.kill()
    print("scheduler")


def check_interrupt():
    """Ctrl-C: an exception within a second, no task left."""
    cluster, client = start(1)
    with cluster, client:
        sent = []

        def send():
            time.sleep(0.5)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        def slow(rows):
            time.sleep(20)
            return rows

        with options(keep=True):
            delayed = [dask.delayed(slow)(X)]
            threading.Thread(target=send).start()
            expect(KeyboardInterrupt, "", lambda: fit(delayed, [dask.delayed(Y)]))
        assert time.monotonic() - sent[0] < 1, time.monotonic() - sent[0]
        check_released(client)
        os.kill(pids_of(cluster)[0], signal.SIGKILL)  # it still sleeps
    print("interrupt")


def pids_of(cluster):
    return [nanny.process.pid for nanny in cluster.workers.values()]


def main():
    warnings.simplefilter("ignore")
    # else a cluster of this machine gives a worker up that takes longer to come back, as on a busy one
    dask.config.set({"distributed.deploy.lost-worker-timeout": "300s"})
    globals()[f"check_{sys.argv[1]}"]()
    print("ok")


if __name__ == "__main__":
    main()
