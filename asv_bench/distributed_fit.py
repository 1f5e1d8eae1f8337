"""Fits over workers of Dask beside one process, Spark's MLlib and dask-ml: seconds, and the objectives they reach.

    python asv_bench/distributed_fit.py evaluate [--rows 400000]     # one evaluation of loss and gradient
    python asv_bench/distributed_fit.py spark [--rows 200000]        # needs pyspark and Java
    python asv_bench/distributed_fit.py daskml [--rows 100000]       # needs dask-ml

The load average is printed first: on a busy machine only ratios mean something, and those of processes that share the
processors with the client and the scheduler are pessimistic.  Peers take turns with ours in one run.
"""

import argparse
import contextlib
import os
import time
import warnings

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # workers inherit it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np  # noqa: E402

FEATURES, CLASSES, PENALTY = 64, 10, 1e-4


def make_rows(n, d=FEATURES, k=CLASSES):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d) * 0.5)
    y = (X @ (rng.normal(size=(d, k)) * 0.5) + rng.gumbel(size=(n, k))).argmax(axis=1)
    return X, y


def start(workers):
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None, memory_limit="6GB")
    return cluster, Client(cluster)


def lazy(X, y, parts=8):
    import dask.array as da

    return da.from_array(X, chunks=(-(-len(X) // parts), -1)), da.from_array(y, chunks=-(-len(X) // parts))


def seconds(call):
    begin = time.perf_counter()
    result = call()
    return time.perf_counter() - begin, result


def serve(connection, share, shares):
    """A process that evaluates its share of the rows whenever it is told to."""
    from csoftmax._learn.objective import Objective, Options

    rows = connection.recv()
    X, y = (np.ascontiguousarray(a[share * rows // shares : (share + 1) * rows // shares]) for a in make_rows(rows))
    objective = Objective(X, y, None, CLASSES, Options(), 1)
    connection.send("ready")
    while (parameters := connection.recv()) is not None:
        with objective.use_threads():
            connection.send(objective.evaluate(*parameters).loss)


class Processes:
    """Two processes without Dask, each with half of the rows: what the machine allows two workers at best."""

    def __init__(self, rows, count=2):
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self.ends = []
        for share in range(count):
            here, there = context.Pipe()
            context.Process(target=serve, args=(there, share, count), daemon=True).start()
            here.send(rows)
            self.ends.append(here)
        for end in self.ends:
            end.recv()

    def use_threads(self):
        return contextlib.nullcontext()

    def evaluate(self, *parameters):
        for end in self.ends:
            end.send(parameters)
        return [end.recv() for end in self.ends]

    def close(self):
        for end in self.ends:
            end.send(None)


def do_nothing(part, payload, number):
    """A task with the result of an evaluation: what remains is Dask."""
    return np.zeros(2 + CLASSES * (FEATURES + 1))


def burn(part, seconds, number):
    """The same after some CPU time without csoftmax."""
    began, x = time.thread_time(), np.zeros(1 << 15)
    while time.thread_time() - began < seconds:
        np.add(x, 1.0, out=x)
    return do_nothing(part, None, number)


class Tasks:
    """Other tasks in place of those of an evaluation, on the same parts."""

    def __init__(self, engine, kind, payload):
        self.engine, self.kind, self.payload = engine, kind, payload

    def use_threads(self):
        return contextlib.nullcontext()

    def evaluate(self, *parameters):
        from csoftmax._learn.parts.engine import total

        return total(self.engine, self.kind, self.payload)


def evaluate(rows, rounds=7):
    """Milliseconds of one evaluation: the median of the rounds, in which all take turns."""
    from csoftmax._dask.engine import DaskEngine
    from csoftmax._dask.options import Options as Settings
    from csoftmax._dask.parts import split_parts
    from csoftmax._learn.objective import Objective, Options
    from csoftmax._learn.parts import rows as checks
    from csoftmax._learn.parts.objective import Layout, PartsObjective

    X, y = make_rows(rows)
    dtype = X.dtype
    coef, intercept = np.full((CLASSES, FEATURES), 0.01), np.zeros(CLASSES)
    weights = np.bincount(y, minlength=CLASSES).astype(float)
    calls, closing = {}, []
    for workers in (1, 2):
        plain = Objective(X, y, None, CLASSES, Options(), workers)
        calls[f"{workers} threads of one process"] = plain
        cluster, client = start(workers)
        engine = DaskEngine(split_parts(("X", lazy(X, y)[0]), ("y", lazy(X, y)[1])), client, Settings(), [])
        engine.change(checks.load, None)
        engine.change(checks.settle, checks.Settings(np.arange(CLASSES), dtype, [0] * 8, None, 0.1))
        engine.gather(checks.count, None)
        layout = Layout(FEATURES, dtype, rows, [0] * 8, None, np.ones(FEATURES))
        calls[f"{workers} workers of Dask"] = PartsObjective(engine, layout, weights, Options())
        closing += [engine.close, client.close, cluster.close]
        if workers == 1:
            began = time.process_time()
            with plain.use_threads():
                plain.evaluate(coef, intercept)
            used = time.process_time() - began
    calls["2 workers, tasks that do nothing"] = Tasks(engine, do_nothing, None)
    calls["2 workers, tasks that burn as much CPU time"] = Tasks(engine, burn, used / 8)
    calls["2 processes without Dask"] = processes = Processes(rows)
    closing.append(processes.close)
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, objective in calls.items():
            with objective.use_threads():
                times[name].append(seconds(lambda objective=objective: objective.evaluate(coef, intercept))[0])
    found = {name: 1e3 * float(np.median(values)) for name, values in times.items()}
    for name, value in found.items():
        print(f"{name}: {value:.1f} ms (least {1e3 * min(times[name]):.1f})")
    one, one_worker, two, two_workers, _, burnt, limit = found.values()
    print(f"one worker against one thread: {one / one_worker:.2f} (goal 0.92)")
    print(
        f"efficiency: two workers {one / two_workers / 2:.2f} (goal 0.80), two threads {one / two / 2:.2f}, two "
        f"processes {one / limit / 2:.2f}, tasks that burn as much {one / burnt / 2:.2f}; two workers against two "
        f"threads {two / two_workers:.2f}, against two processes {limit / two_workers:.2f}, against burning "
        f"{burnt / two_workers:.2f}"
    )
    for close in closing:
        close()


def objective_of(X, y, coef, intercept, penalty):
    logits = X @ coef.T + intercept
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(y)), y]
    return losses.mean() + penalty / 2 * float((coef**2).sum())


def report(name, took, model, X, y):
    value = objective_of(X, y, model.coef_, model.intercept_, PENALTY)
    print(f"{name}: {took:.2f} s, {model.n_iter_} iterations, objective {value:.12f}", flush=True)
    return took


def spark(rows):
    """The whole fit, with reading the parts; Spark's second fit, when it is warm."""
    from csoftmax.linear_model import SoftmaxRegression

    X, y = make_rows(rows)
    tolerance = {"penalty_l2": PENALTY, "tol": 1e-6}
    one = report("one process", *seconds(lambda: SoftmaxRegression(**tolerance).fit(X, y)), X, y)
    cluster, client = start(2)
    with cluster, client:
        dX, dy = (a.persist() for a in lazy(X, y))
        client.gather(client.compute([dX.sum(), dy.sum()]))
        for _ in range(2):
            ours = report("two workers", *seconds(lambda: SoftmaxRegression(**tolerance).fit(dX, dy)), X, y)
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[2]").config("spark.driver.memory", "5g")
    session = session.config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    import pandas as pd

    session.conf.set("spark.sql.execution.arrow.pyspark.enabled", "true")
    frame = session.createDataFrame(pd.DataFrame({"label": y.astype(float), "f": list(X)}))
    frame = frame.select("label", array_to_vector("f").alias("features")).repartition(8).cache()
    frame.count()
    peer = LogisticRegression(maxIter=300, regParam=PENALTY, standardization=False, family="multinomial", tol=1e-9)
    for name in ("Spark, cold", "Spark, warm"):
        theirs, model = seconds(lambda: peer.fit(frame))
        value = objective_of(X, y, model.coefficientMatrix.toArray(), model.interceptVector.toArray(), PENALTY)
        print(f"{name}: {theirs:.2f} s, {model.summary.totalIterations} iterations, objective {value:.12f}", flush=True)
    session.stop()
    print(f"two workers against Spark's warm fit: {ours / theirs:.2f} (goal 0.5); one process {one / theirs:.2f}")


def daskml(rows):
    """Two classes with the same penalty: ours has two rows of coefficients, dask-ml one."""
    from dask_ml.linear_model import LogisticRegression

    from csoftmax.linear_model import SoftmaxRegression

    X, y = make_rows(rows, k=2)
    cluster, client = start(2)
    with cluster, client:
        dX, dy = (a.persist() for a in lazy(X, y))
        client.gather(client.compute([dX.sum(), dy.sum()]))

        def value(w, b):
            return np.logaddexp(0, -(X @ w + b) * (2 * y - 1)).sum() + float(w @ w) / 2

        for _ in range(2):
            took, model = seconds(lambda: SoftmaxRegression(penalty_l2=2 / rows, tol=1e-6).fit(dX, dy))
            ours = value(model.coef_[1] - model.coef_[0], model.intercept_[1] - model.intercept_[0])
            print(f"csoftmax: {took:.2f} s, objective {ours:.6f}", flush=True)
            theirs, peer = seconds(
                lambda: LogisticRegression(solver="lbfgs", C=1.0, max_iter=100, tol=1e-6).fit(dX, dy)
            )
            other = value(np.ravel(peer.coef_), float(np.ravel(peer.intercept_)[0]))
            print(f"dask-ml, lbfgs: {theirs:.2f} s, objective {other:.6f}", flush=True)
    print(f"csoftmax against dask-ml: {took / theirs:.2f} (goal 0.4)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["evaluate", "spark", "daskml"])
    parser.add_argument("--rows", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    print(f"load average {os.getloadavg()[0]:.1f}")
    call, rows = {"evaluate": (evaluate, 400_000), "spark": (spark, 200_000), "daskml": (daskml, 100_000)}[given.what]
    call(given.rows or rows)


if __name__ == "__main__":
    main()
