"""Class hashing on a bigram model of English: how probabilities of buckets are put together; time of decoding.

    pip install wordsegment
    python asv_bench/hashed.py [--pairs 500000] [--seed 0]
    python asv_bench/hashed.py --speed [--classes 1000000] [--hashes 16]

The model and its training are those of many_classes.py, with a HashedSoftmax in place of the softmax over all words,
whose row is printed first. Of all pairs of the table, by their probabilities: the loss of the scores, normalised (of
"mean" clipped at 1e-7 before), how often the word after is the most probable one, and among the ten most probable ones.

--speed: the time for a class and a hash on one thread of scores of all classes, of the ten best, and of NumPy's gathers
from a table of the buckets in uint16, hash by hash, in interleaved rounds.
"""

import argparse
import time

import numpy as np
from many_classes import BATCH, DIMENSION, RATE, Bigrams
from rare_classes import Full

import csoftmax
from csoftmax._ops.hashed import Rule, compute_scores, find_best
from csoftmax.heads import BloomSoftmax, HashedSoftmax, RowOptimizer, hash_buckets

SIZES = ((256, 8), (512, 16))
AGGREGATES = ("mean", "min", "geometric", "prior")
FLOOR = 1e-7  # of scores that may be 0
K = 10


class Hashed:
    """Embeddings and a layer over buckets, whose bias begins at the log prior of the buckets."""

    def __init__(self, data, rng, make):
        self.table = (rng.standard_normal((data.n_words, DIMENSION)) / DIMENSION**0.5).astype(np.float32)
        counts = data.counts + data.counts[data.counts > 0].min() * (data.counts == 0)
        self.layer = make(counts, rng)
        shares = counts / counts.sum()
        rows = self.layer._find_rows(np.arange(data.n_words))
        n = len(self.layer.parameters["w"])
        of_buckets = np.bincount(rows.reshape(-1), np.repeat(shares, rows.shape[1]), n)
        of_buckets /= of_buckets.sum() / (n // self.layer.n_buckets)
        self.layer.parameters["bias"][:] = np.log(np.maximum(of_buckets, of_buckets[of_buckets > 0].min()))
        self.optimizer = RowOptimizer("rowwise_adagrad", RATE)

    def train(self, x, y):
        words, inverse = np.unique(x, return_inverse=True)
        _, grad_x = self.layer.step(self.table[x], y, self.optimizer)
        grad = np.zeros((len(words), DIMENSION), np.float32)
        np.add.at(grad, inverse, grad_x)
        self.optimizer.update("table", self.table, csoftmax.RowGradient(words, grad))

    def evaluate(self, words):
        """Log-probabilities, and the best words, of each way to put buckets together."""
        x = self.table[words]
        if isinstance(self.layer, BloomSoftmax):
            yield "bloom", csoftmax.log_softmax(self.layer.scores(x).astype(np.float64)), self.layer.topk(x, K).indices
            return
        for aggregate in AGGREGATES:
            self.layer.aggregate = aggregate
            best = self.layer.topk(x, K).indices
            if aggregate == "prior":
                yield aggregate, self.layer.log_proba(x), best
                continue
            scores = self.layer.scores(x).astype(np.float64)
            if aggregate == "mean":
                scores = np.log(np.maximum(self.layer.unbiased(x), FLOOR))
            elif aggregate == "min":
                scores = np.log(np.maximum(scores, FLOOR))
            yield aggregate, csoftmax.log_softmax(scores), best


class All(Full):
    """The softmax over all words."""

    def evaluate(self, words):
        yield "all words", *super().evaluate(words)


def evaluate(data, model):
    """Loss, hit@1 and hit@10 of each name that the model yields."""
    words, inverse = np.unique(data.before, return_inverse=True)
    found = {}
    for begin in range(0, len(words), 256):
        at = np.flatnonzero((begin <= inverse) & (inverse < begin + 256))
        row = inverse[at] - begin
        for name, log_p, best in model.evaluate(words[begin : begin + 256]):
            hits = best[row] == data.after[at, None]
            of_part = (
                -(data.p[at] * log_p[row, data.after[at]]).sum(),
                data.p[at] @ hits[:, 0],
                data.p[at] @ hits.any(1),
            )
            found[name] = found.get(name, np.zeros(3)) + of_part
    return found


def train(data, make, pairs, seed):
    rng = np.random.default_rng(seed)
    before, after = data.draw(pairs, rng)
    model = make(data, rng)
    begin = time.process_time()
    for at in range(0, pairs, BATCH):
        model.train(before[at : at + BATCH], after[at : at + BATCH])
    return model, time.process_time() - begin


def compare(pairs, seed):
    data = Bigrams()
    print(f"{data.n_words} words; the loss of their frequencies alone is {data.entropy()[1]:.3f}")
    print(f"{'':24} {'loss':>7} {'hit@1':>7} {'hit@10':>7}")
    rows = [("", lambda data, rng: All(data, rng, prior=True))]
    for b, r in SIZES:
        rows.append(
            (
                f"B {b}, R {r}",
                lambda data, rng, b=b, r=r: Hashed(
                    data, rng, lambda c, g: HashedSoftmax(DIMENSION, len(c), n_buckets=b, n_hashes=r, counts=c, rng=g)
                ),
            )
        )
        rows.append(
            (
                f"B {b * r}, k 4",
                lambda data, rng, b=b * r: Hashed(
                    data, rng, lambda c, g: BloomSoftmax(DIMENSION, len(c), n_buckets=b, rng=g)
                ),
            )
        )
    for size, make in rows:
        model, seconds = train(data, make, pairs, seed)
        for name, (loss, first, ten) in evaluate(data, model).items():
            print(f"{size:13} {name:10} {loss:7.3f} {first:7.3f} {ten:7.3f}", flush=True)
        print(f"{'':13} training: {seconds:.1f} s of CPU", flush=True)


def measure(classes, hashes, buckets=512, rounds=9):
    rng = np.random.default_rng(0)
    family = rng.integers(0, 2**64, (3, hashes), np.uint64)
    tables = np.log(rng.random((1, hashes, buckets))).astype(np.float32)
    codes = np.ascontiguousarray(hash_buckets(np.arange(classes), buckets, hashes, 0).T.astype(np.uint16))
    scores, rule = np.empty((1, classes), np.float32), Rule(False, hashes)
    values, places = np.empty((1, K), np.float32), np.empty((1, K), np.int64)

    def gather():
        sums = tables[0, 0][codes[0]]
        for r in range(1, hashes):
            sums += tables[0, r][codes[r]]
        return sums

    calls = {
        "scores of all classes": lambda: compute_scores(family, tables, None, rule, scores, 1),
        "the ten best": lambda: find_best(family, tables, classes, None, rule, values, places, 1),
        "NumPy, gathers from a table": gather,
    }
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            seconds[name].append(time.process_time() - begin)
    for name, each in seconds.items():
        print(f"{name:28} {min(each) * 1e3:8.2f} ms   {min(each) * 1e9 / classes / hashes:6.3f} ns a class and hash")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--classes", type=int, default=10**6)
    parser.add_argument("--hashes", type=int, default=16)
    arguments = parser.parse_args()
    if arguments.speed:
        measure(arguments.classes, arguments.hashes)
    else:
        compare(arguments.pairs, arguments.seed)


if __name__ == "__main__":
    main()
