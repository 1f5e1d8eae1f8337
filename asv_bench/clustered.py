"""ClusteredHead beside Int8Head and FAISS: speed, recall and certificates of top-k, and intervals of the log partition.

    pip install faiss-cpu jieba wordsegment
    python asv_bench/clustered.py [speed] [partition] [--classes 500000] [--rounds 5] [--threads 1]

speed: for each kind of weights, seconds of building, and for numbers of lists the recall of the ten best, the share of
queries that are certified, the share of the classes that are looked at, and microseconds of CPU time for a query (with
more than one thread, of wall time), the least of the rounds, one query at a time and in batches of 64. FAISS's lists
have as many clusters, 10 iterations and the same numbers of lists. Weights: gaussian, clustered (sqrt(K) centers with
a deviation of 0.3), and word embeddings (jieba: 20,941 x 128).
partition: how often the intervals contain the truth, and how wide they are, on the embeddings and on a softmax that is
trained on bigrams. A package that is missing is left out and named.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1"
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, THREADS)  # before any library reads it

from importlib.util import find_spec  # noqa: E402

import numpy as np  # noqa: E402
from int8 import bigrams, embeddings  # noqa: E402

import csoftmax  # noqa: E402
from csoftmax.heads import ClusteredHead, Int8Head  # noqa: E402

K, DIMENSIONS, QUERIES, PROBES = 10, 128, 256, (1, 4, 16, 64, 256)


def gaussian(classes):
    rng = np.random.default_rng(0)
    return rng.standard_normal((classes, DIMENSIONS), np.float32), rng.standard_normal(
        (QUERIES, DIMENSIONS), np.float32
    )


def clustered(classes):
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((round(classes**0.5), DIMENSIONS), np.float32)

    def draw(n):
        return centers[rng.integers(0, len(centers), n)] + 0.3 * rng.standard_normal((n, DIMENSIONS), np.float32)

    return draw(classes), draw(QUERIES)


def words(_):
    w, _, _ = embeddings()
    return np.ascontiguousarray(w), w[:: len(w) // QUERIES][:QUERIES]


def measure(call, x, rounds, clock):
    """Microseconds of a query: one at a time, and in batches of 64."""
    least = []
    for step in (1, 64):
        times = []
        for _ in range(rounds):
            begin = clock()
            for i in range(0, len(x), step):
                call(x[i : i + step])
            times.append(clock() - begin)
        least.append(1e6 * min(times) / len(x))
    return least


def recall(found, exact):
    return np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, exact)]) / K


def show(name, *cells):
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compare(name, w, x, rounds, threads):
    """The table of one kind of weights."""
    clock = time.process_time if threads == 1 else time.perf_counter
    print(f"\n{name}, {len(w)} x {w.shape[1]}, k = {K}, {csoftmax._cpu.binding.isa()}, {threads} thread(s)\n")
    print("| | recall | certified | looked at | batch 1, us | batch 64, us | building, s |")
    print("|---|---|---|---|---|---|---|")
    begin = clock()
    full = Int8Head(w, copy=False, num_threads=threads)
    seconds = clock() - begin
    exact = full.topk(x, K).indices
    one, many = measure(lambda q: full.topk(q, K), x, rounds, clock)
    show("Int8Head", "1", "1", "1", f"{one:.0f}", f"{many:.0f}", f"{seconds:.1f}")
    begin = clock()
    head = ClusteredHead(w, rng=0, copy=False, num_threads=threads)
    seconds = clock() - begin
    for n_probe in PROBES:
        found = head.topk(x, K, n_probe=n_probe)
        cells = recall(found.indices, exact), found.certified.mean(), head.stats["scanned_mean"] / len(w)
        times = measure(lambda q: head.topk(q, K, n_probe=n_probe), x, rounds, clock)  # noqa: B023
        show(f"n_probe={n_probe}", *(f"{c:.3f}" for c in cells), *(f"{t:.0f}" for t in times), f"{seconds:.1f}")
    found = head.topk(x, K, exact=True)
    assert (found.indices == exact).all()
    share = head.stats["scanned_mean"] / len(w)
    times = measure(lambda q: head.topk(q, K, exact=True), x, rounds, clock)
    show("exact=True", "1", "1", f"{share:.3f}", *(f"{t:.0f}" for t in times), f"{seconds:.1f}")
    compare_faiss(w, x, exact, head.n_clusters, rounds, threads, clock)


def compare_faiss(w, x, exact, lists, rounds, threads, clock):
    """Lines of FAISS's lists of float32, of 8-bit codes, and of its exact search."""
    if not find_spec("faiss"):
        print("FAISS is left out: it is not installed")
        return
    import faiss

    faiss.omp_set_num_threads(threads)
    d = w.shape[1]

    def flat_lists():
        return faiss.IndexIVFFlat(faiss.IndexFlatIP(d), d, lists, faiss.METRIC_INNER_PRODUCT)

    def coded_lists():
        kind = faiss.ScalarQuantizer.QT_8bit
        return faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(d), d, lists, kind, faiss.METRIC_INNER_PRODUCT)

    for name, make in (("FAISS IVF Flat", flat_lists), ("FAISS IVF SQ8", coded_lists)):
        begin = clock()
        index = make()
        index.cp.niter = 10
        index.train(w)
        index.add(w)
        seconds = clock() - begin
        for n_probe in PROBES:
            index.nprobe = n_probe
            found = index.search(x, K)[1]
            times = measure(lambda q: index.search(q, K), x, rounds, clock)  # noqa: B023
            cells = f"{recall(found, exact):.3f}", "", "", *(f"{t:.0f}" for t in times), f"{seconds:.1f}"
            show(f"{name}, nprobe={n_probe}", *cells)
    flat = faiss.IndexFlatIP(d)
    flat.add(w)
    times = measure(lambda q: flat.search(q, K), x[:64], max(1, rounds // 3), clock)
    show("FAISS Flat", "1", "", "1", *(f"{t:.0f}" for t in times), "")


def check_partition(threads):
    """The table of intervals: medians of the widths, and shares of the queries."""
    print("\n| weights, n_probe, n_sample | below truth | certain width | width of the estimate's | covered at 0.99 |")
    print("|---|---|---|---|---|")
    for make in (embeddings, bigrams):
        try:
            w, x, bias = make()
        except (ImportError, FileNotFoundError) as error:
            print(f"{make.__name__} is left out: {error}")
            continue
        if make is embeddings:
            x = x / np.linalg.norm(x, axis=1, keepdims=True) * 2  # scores of a usual softmax, not up to 1,800
        truth = csoftmax.logsumexp(x.astype(np.float64) @ w.astype(np.float64).T + (0 if bias is None else bias))
        head = ClusteredHead(w, bias, rng=0, num_threads=threads)
        for n_probe in (10, 50):
            for n_sample in (200, 1000):
                found = head.log_partition(x, n_probe=n_probe, n_sample=n_sample, rng=1)
                assert (found.lower <= truth + 1e-9).all()
                assert (truth <= found.upper + 1e-9).all()
                inside = (found.estimate_lower <= truth) & (truth <= found.estimate_upper)
                widths = truth - found.lower, found.upper - found.lower, found.estimate_upper - found.estimate_lower
                cells = [f"{np.median(width):.2g}" for width in widths]
                show(f"{make.__name__}, {n_probe}, {n_sample}", *cells, f"{inside.mean():.3f}")


def main():
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["speed", "partition"])
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", default=["gaussian", "clustered", "words"], help="of weights")
    arguments = parser.parse_args()
    if "speed" in arguments.parts:
        for make in (gaussian, clustered, words):
            if make.__name__ not in arguments.kinds:
                continue
            try:
                w, x = make(arguments.classes)
            except (ImportError, FileNotFoundError) as error:
                print(f"{make.__name__} is left out: {error}")
                continue
            compare(make.__name__, w, x, arguments.rounds, arguments.threads)
    if "partition" in arguments.parts:
        check_partition(arguments.threads)


if __name__ == "__main__":
    main()
