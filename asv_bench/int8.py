"""Int8Head beside NumPy, PyTorch and FAISS, and on real weights: speed, exactness, numbers of exact scores, intervals.

    pip install faiss-cpu torch wordsegment jieba
    python asv_bench/int8.py [speed] [data] [--classes 500000] [--rounds 7] [--threads 1]

speed: milliseconds of CPU time of the process (with more than one thread, of wall time) for one call, the least of the
rounds, in which all take turns. FAISS uses its own path for single queries and its BLAS path for batches (threshold
20), and its default as well. CSOFTMAX_ISA=avx2 FAISS_SIMD_LEVEL=AVX2 OPENBLAS_CORETYPE=Zen holds all to AVX2.
data: against scores in float64, on word embeddings (jieba: 20,941 x 128), on a softmax that is trained on bigrams
(wordsegment: 22,254 x 64) and on random weights. A package that is missing is left out and named.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
THREADS = sys.argv[sys.argv.index("--threads") + 1] if "--threads" in sys.argv else "1"
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, THREADS)  # before any library reads it

from importlib.resources import files  # noqa: E402
from importlib.util import find_spec  # noqa: E402

import numpy as np  # noqa: E402

import csoftmax  # noqa: E402
from csoftmax.heads import Int8Head  # noqa: E402

K, DIMENSIONS = 10, 128


def peers(w, threads):
    """Functions of a batch, by name."""
    one, two = Int8Head(w, copy=False, num_threads=threads), w.T
    found = {
        "csoftmax": lambda x: one.topk(x, K),
        "NumPy, product": lambda x: x @ two,
        "NumPy, product and csoftmax.topk": lambda x: csoftmax.topk(x @ two, K, num_threads=threads),
    }
    if find_spec("torch"):
        import torch

        torch.set_num_threads(threads)
        weights = torch.from_numpy(w)
        found["PyTorch, product and topk"] = lambda x: torch.topk(torch.from_numpy(x) @ weights.T, K)
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(w.shape[1])
        flat.add(w)
        coded = faiss.IndexScalarQuantizer(w.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        coded.train(w[:100000])
        coded.add(w)
        default = faiss.cvar.distance_compute_blas_threshold

        def search(index, threshold):
            def call(x):
                faiss.cvar.distance_compute_blas_threshold = threshold
                index.search(x, K)

            return call

        found["FAISS Flat"] = search(flat, default)
        found["FAISS Flat, BLAS path"] = search(flat, 20)
        found["FAISS SQ8"] = search(coded, default)
    return found


def measure(classes, rounds, threads):
    """Print the table of times and of their ratios to csoftmax."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((classes, DIMENSIONS), np.float32)
    clock = time.process_time if threads == 1 else time.perf_counter
    begin = clock()
    Int8Head(w, copy=False, num_threads=threads)
    quantising = clock() - begin
    begin = clock()
    np.array(w)
    copying = clock() - begin
    print(f"codes of {classes} x {DIMENSIONS}: {quantising * 1e3:.0f} ms; a copy of w: {copying * 1e3:.0f} ms")
    calls = peers(w, threads)
    batches = (1, 8, 64)
    table = {name: [] for name in calls}
    for batch in batches:
        x = rng.standard_normal((batch, DIMENSIONS), np.float32)
        best = dict.fromkeys(calls, np.inf)
        for _ in range(rounds):
            for name, call in calls.items():
                begin = clock()
                call(x)
                best[name] = min(best[name], clock() - begin)
        for name, seconds in best.items():
            table[name].append(seconds * 1e3)
    print(f"\n| {csoftmax._cpu.binding.isa()}, {threads} thread | " + " | ".join(f"batch {b}" for b in batches) + " |")
    print("|---|" + "---|" * len(batches))
    for name, times in table.items():
        cells = [f"{t:.2f} ({t / own:.1f})" for t, own in zip(times, table["csoftmax"])]
        print(f"| {name} | {' | '.join(cells)} |")


def embeddings():
    """The word embeddings of jieba's tagger, and queries: some of them."""
    blob = files("jieba").joinpath("lac_small/model_baseline/word_emb").read_bytes()
    w = np.frombuffer(blob[29:], np.float32).reshape(-1, 128)
    return w, w[:: len(w) // 200][:200], None


def bigrams():
    """A softmax that is trained on bigrams, and queries: the most frequent words."""
    from many_classes import BATCH, DIMENSION, RATE, Bigrams

    from csoftmax.heads import RowOptimizer
    from csoftmax.samplers import UnigramSampler

    population, rng = Bigrams(), np.random.default_rng(0)
    n = population.n_words
    table = (rng.standard_normal((n, DIMENSION)) / 8).astype(np.float32)
    w, prior = np.zeros((n, DIMENSION), np.float32), np.maximum(population.counts, 1e-3)
    bias = np.log(prior / prior.sum()).astype(np.float32)
    sampler, optimizer = UnigramSampler(prior), RowOptimizer(learning_rate=RATE)
    before, after = population.draw(500 * BATCH, rng)
    for rows in np.arange(len(before)).reshape(-1, BATCH):
        negatives = sampler.sample(256, target=after[rows], rng=rng)
        ids, inverse = np.unique(before[rows], return_inverse=True)
        result = csoftmax.sampled_softmax_loss_with_grad(table[before[rows]], w, after[rows], negatives, bias=bias)
        gradient = np.zeros((len(ids), DIMENSION), np.float32)
        np.add.at(gradient, inverse, result.grad_x)
        optimizer.update("w", w, result.grad_w)
        optimizer.update("bias", bias, result.grad_bias)
        optimizer.update("table", table, csoftmax.RowGradient(ids, gradient))
    frequent = np.argsort(-np.bincount(population.before, population.p, n))[:200]
    return w, table[frequent], bias


def normalised():
    """The embeddings with norms of 1."""
    w, x, _ = embeddings()
    w = w / np.linalg.norm(w, axis=1, keepdims=True)
    return w, x, None


def gaussian():
    rng = np.random.default_rng(0)
    return rng.standard_normal((200000, 128), np.float32), rng.standard_normal((50, 128), np.float32), None


def outliers():
    """One channel of the weights and one of the features thirty times as large."""
    w, x, _ = gaussian()
    w[:, 3] *= 30
    x[:, 5] *= 30
    return w[:50000], x, None


def check(name, w, x, bias):
    """Compare with scores in float64, and print the numbers of exact scores and the widths of intervals."""
    z = x.astype(np.float64) @ w.astype(np.float64).T + (0 if bias is None else bias)
    head, fine = Int8Head(w, bias), Int8Head(w, bias, limbs=2)
    cells = []
    for k in (1, 10, 100):
        expected = csoftmax.topk(z, k)
        for limbs in (1, 2):
            found = csoftmax._ops.int8.find_best(head._layer, x, k, limbs=limbs)[0]
            # a product of the BLAS sums in another order: its scores of both answers are equal but for that
            gap = np.abs(np.take_along_axis(z, found.indices, 1) - expected.values).max()
            assert gap <= 1e-12 * np.abs(z).max(), (name, k, limbs, gap)
            cells.append(f"{np.median(found.rescored):.0f}; {found.rescored.max()}")
    exact = csoftmax.logsumexp(z)
    widths = []
    for layer, options in (
        (head, {"max_exact": 0}),
        (head, {"rtol": 0, "max_exact": 1000}),
        (head, {"rtol": 0, "max_exact": 4096}),
        (fine, {"max_exact": 0}),
    ):
        bounds = layer.log_partition(x, **options)
        assert (bounds.lower <= exact + 1e-9).all()
        assert (exact - 1e-9 <= bounds.upper).all()
        width = bounds.upper - bounds.lower
        widths.append(f"{np.median(width):.2g}; {width.max():.2g}")
    print(f"| {name}, {w.shape[0]} x {w.shape[1]} | {' | '.join(cells + widths)} |", flush=True)


def check_all():
    """Print the table of real and random weights."""
    columns = [f"k = {k}, {limbs}" for k in (1, 10, 100) for limbs in ("one", "two")]
    columns += ["log Z, codes", "1,000 exact", "4,096 exact", "limbs=2"]
    print("\nmedian; largest number of exact scores by limbs of x, widths of intervals of the log partition\n")
    print(f"| weights | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for make in (embeddings, normalised, bigrams, gaussian, outliers):
        try:
            layer = make()
        except (ImportError, FileNotFoundError) as error:
            print(f"| {make.__name__} | left out: {error} |")
            continue
        check(make.__name__, *layer)


def main():
    """Run the parts that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["speed", "data"])
    parser.add_argument("--classes", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if "speed" in arguments.parts:
        measure(arguments.classes, arguments.rounds, arguments.threads)
    if "data" in arguments.parts:
        check_all()


if __name__ == "__main__":
    main()
