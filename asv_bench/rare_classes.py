"""Recall of rare classes by an adaptive softmax and by the softmax over all classes, on a bigram model of English.

    pip install wordsegment
    python asv_bench/rare_classes.py [--pairs 500000] [--seed 0] [name ...]

The model and its training are those of many_classes.py. Of all pairs of the table, by their probabilities: the loss,
and how often the word after is among the 10 most probable ones, for words of four ranges of rank by frequency.
"""

import argparse
import time
from itertools import pairwise

import numpy as np
from many_classes import BATCH, DIMENSION, RATE, Bigrams, Model, take_full

import csoftmax
from csoftmax.heads import AdaptiveSoftmax, RowOptimizer

RANGES = (0, 100, 1_000, 5_000, 30_000)
NAMES = {
    "full": None,
    "auto": "auto",
    "1 cluster": [2_000],
    "2 clusters": [2_000, 8_000],
    "4 clusters": [20, 300, 2_000, 8_000],
    "div_value=1": [2_000, 8_000],
}
K = 10


class Adaptive:
    """Embeddings and an adaptive softmax, whose head begins at the log prior."""

    def __init__(self, data, rng, cutoffs, div_value):
        self.table = (rng.standard_normal((data.n_words, DIMENSION)) / DIMENSION**0.5).astype(np.float32)
        counts = data.counts + data.counts[data.counts > 0].min() * (data.counts == 0)
        self.layer = AdaptiveSoftmax(
            DIMENSION, data.n_words, counts=counts, cutoffs=cutoffs, div_value=div_value, init="zero", rng=rng
        )
        shares, ends = (counts / counts.sum())[self.layer.order], [*self.layer.cutoffs, data.n_words]
        of_clusters = [shares[begin:end].sum() for begin, end in pairwise(ends)]
        self.layer.parameters["head_bias"][:] = np.log([*shares[: ends[0]], *of_clusters])
        self.optimizer = RowOptimizer("rowwise_adagrad", RATE)

    def train(self, x, y):
        words, inverse = np.unique(x, return_inverse=True)
        _, grad_x = self.layer.step(self.table[x], y, self.optimizer)
        grad = np.zeros((len(words), DIMENSION), np.float32)
        np.add.at(grad, inverse, grad_x)
        self.optimizer.update("table", self.table, csoftmax.RowGradient(words, grad))

    def evaluate(self, words):
        x = self.table[words]
        return self.layer.log_proba(x), self.layer.topk(x, K).indices


class Full(Model):
    """The softmax over all words."""

    def train(self, x, y):
        self.step(x, take_full(self, self.table[x], y, None))

    def evaluate(self, words):
        scores = csoftmax.log_softmax((self.table[words] @ self.w.T + self.bias).astype(np.float64))
        return scores, csoftmax.topk(scores, K).indices


def evaluate(data, model):
    """The loss, and the recall of each range."""
    rank = np.empty(data.n_words, int)
    rank[np.argsort(-data.counts, kind="stable")] = np.arange(data.n_words)
    words, inverse = np.unique(data.before, return_inverse=True)
    loss, hits = 0.0, np.zeros(len(data.p), bool)
    for begin in range(0, len(words), 256):
        at = np.flatnonzero((begin <= inverse) & (inverse < begin + 256))
        scores, best = model.evaluate(words[begin : begin + 256])
        row = inverse[at] - begin
        loss -= (data.p[at] * scores[row, data.after[at]]).sum()
        hits[at] = (best[row] == data.after[at, None]).any(axis=1)
    of_range = np.searchsorted(RANGES, rank[data.after], "right") - 1
    mass = np.bincount(of_range, data.p, len(RANGES) - 1)
    return loss, (data.p * hits).sum(), np.bincount(of_range, data.p * hits, len(RANGES) - 1) / mass, mass


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(NAMES))
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = Bigrams()
    for name in arguments.names or NAMES:
        rng = np.random.default_rng(arguments.seed)
        before, after = data.draw(arguments.pairs, rng)
        if name == "full":
            model = Full(data, rng, prior=True)
        else:
            model = Adaptive(data, rng, NAMES[name], 1.0 if name.startswith("div_value") else 4.0)
        begin = time.process_time()
        for at in range(0, arguments.pairs, BATCH):
            model.train(before[at : at + BATCH], after[at : at + BATCH])
        seconds = time.process_time() - begin
        loss, recall, by_range, mass = evaluate(data, model)
        cutoffs = "" if name == "full" else str(model.layer.cutoffs)
        shown = "  ".join(f"{r:.3f} ({m:.2f})" for r, m in zip(by_range, mass, strict=True))
        print(f"{name:12} {cutoffs:24} loss {loss:.3f}  recall@{K} {recall:.3f}  {shown}  {seconds:5.1f} s", flush=True)


if __name__ == "__main__":
    main()
