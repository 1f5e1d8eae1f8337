"""Hierarchical softmax on the bigram model of English, beside fastText and the softmax over all classes.

    pip install wordsegment
    python -m venv peer && peer/bin/pip install fasttext-wheel 'numpy<2'
    python asv_bench/trees.py [--fasttext peer/bin/python] [--pairs 2000000] [name ...]

The population is that of many_classes.py, with 64 numbers for a word. Names, each a table:

speed     examples a second: `step` on minibatches of 512 with x given, fastText's train_supervised(loss="hs", thread=1)
          with its file read, and two threads beside one at minibatches of 4,096
training  CPU time and loss of the population: fastText after five epochs over the pairs, our trees after one
decoding  time and nodes of `predict` and `topk`, and those of a linear layer with `csoftmax.topk`

fastText runs in an environment of its own; without --fasttext its rows are left out. Its loss is computed from its
matrices and Huffman's tree of its counts, through Tree.from_paths, exactly; its own probabilities are cut off.
"""

import argparse
import heapq
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from many_classes import BATCH, DIMENSION, RATE, Bigrams

import csoftmax
from csoftmax.heads import HierarchicalSoftmax, RowOptimizer, Tree

FASTTEXT = """
import json, sys, time
import fasttext, numpy
data, out, epochs = sys.argv[1:]
begin, cpu = time.perf_counter(), time.process_time()
model = fasttext.train_supervised(data, dim=64, epoch=int(epochs), lr=0.1, loss="hs", thread=1, minn=0, maxn=0,
                                  bucket=1, minCount=1, verbose=0)
seconds = time.process_time() - cpu
labels, counts = model.get_labels(include_freq=True)
words = model.get_words()
numpy.savez(out, output=model.get_output_matrix(), input=numpy.array([model.get_input_vector(i) for i in
            range(len(words))]), labels=[int(label[9:]) for label in labels], counts=counts,
            words=[-1 if word == "</s>" else int(word) for word in words])
print(json.dumps({"seconds": seconds}))
"""


def paths_of_fasttext(counts):
    """Nodes, codes and offsets of the tree that fastText makes of counts in descending order.

    It merges the two lightest; of equal weights nodes come before labels, and the last label before the others. Node 0
    is the first that is made, the root the last; the second of a pair is the side of sigma(u).
    """
    n = len(counts)
    heap = [(count, 1, n - 1 - label, label) for label, count in enumerate(counts)]
    heapq.heapify(heap)
    parent = {}
    for node in itertools.count():
        if len(heap) == 1:
            break
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        parent[first[3]], parent[second[3]] = (node, 0), (node, 1)
        heapq.heappush(heap, (first[0] + second[0], 0, node, n + node))
    nodes, codes, offsets = [], [], [0]
    for label in range(n):
        path, at = [], label
        while at in parent:
            path.append(parent[at])
            at = n + parent[at][0]
        nodes += [node for node, _ in reversed(path)]
        codes += [code for _, code in reversed(path)]
        offsets.append(len(nodes))
    return nodes, codes, offsets


def train_fasttext(python, before, after, epochs):
    """CPU seconds, embeddings of the words before, and a layer whose classes are fastText's labels; the labels."""
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder, "pairs.txt"), Path(folder, "model.npz")
        data.write_text("".join(f"__label__{y} {x}\n" for x, y in zip(before.tolist(), after.tolist(), strict=True)))
        command = [python, "-c", FASTTEXT, str(data), str(out), str(epochs)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        model = dict(np.load(out))
    seconds = json.loads(done.stdout.splitlines()[-1])["seconds"]
    tree = Tree.from_paths(*paths_of_fasttext(model["counts"].tolist()))
    layer = HierarchicalSoftmax(DIMENSION, tree, bias=False)
    layer.theta[...] = model["output"][: len(layer.theta)]
    words = {word: row for row, word in enumerate(model["words"].tolist())}
    end = model["input"][words[-1]]
    table = {word: (model["input"][row] + end) / 2 for word, row in words.items()}
    return seconds, table, layer, model["labels"]


def population_loss(data, table, layer, class_of):
    """The exact loss of all pairs whose words the model knows, and which pairs these are."""
    known = np.array([x in table and y in class_of for x, y in zip(data.before.tolist(), data.after.tolist())])
    x = np.array([table[word] for word in data.before[known].tolist()], np.float32)
    y = np.array([class_of[word] for word in data.after[known].tolist()])
    p = data.p[known]
    return -(p * layer.log_proba(x, y)).sum() / p.sum(), known


def make_tree(data, kind, vectors=None):
    if kind == "balanced":
        return Tree.balanced(data.n_words, np.random.default_rng(0).permutation(data.n_words))
    if kind == "two_means":
        return Tree.two_means(vectors, data.counts, rng=0)
    return Tree.huffman(data.counts)


class Model:
    """Embeddings and a layer in training."""

    def __init__(self, data, tree, seed=0):
        rng = np.random.default_rng(seed)
        self.table = (rng.standard_normal((data.n_words, DIMENSION)) / DIMENSION**0.5).astype(np.float32)
        self.layer = HierarchicalSoftmax(DIMENSION, tree)
        self.layer.set_log_prior(data.counts)
        self.optimizer, self.of_table = RowOptimizer("rowwise_adagrad", RATE), RowOptimizer("rowwise_adagrad", RATE)

    def train(self, before, after, size=BATCH):
        """One pass over the pairs; CPU seconds."""
        begin = time.process_time()
        for at in range(0, len(before), size):
            x, y = before[at : at + size], after[at : at + size]
            _, grad_x = self.layer.step(self.table[x], y, self.optimizer)
            order = np.argsort(x, kind="stable")
            words = x[order]
            first = np.flatnonzero(np.append(True, words[1:] != words[:-1]))
            grad = csoftmax.RowGradient(words[first], np.add.reduceat(grad_x[order], first))
            self.of_table.update("table", self.table, grad)
        return time.process_time() - begin

    def loss(self, data, known=True):
        """The exact loss of the population, or of a part of it."""
        total, p = 0.0, data.p * known
        for at in range(0, len(data.p), 4096):
            part = slice(at, at + 4096)
            total -= (p[part] * self.layer.log_proba(self.table[data.before[part]], data.after[part])).sum()
        return total / p.sum()


class Steps:
    """`step` on minibatches whose features are given."""

    def __init__(self, data, table, before, after, size, threads):
        parts = range(0, len(before), size)
        self.batches = [(np.ascontiguousarray(table[before[i : i + size]]), after[i : i + size]) for i in parts]
        self.layer = HierarchicalSoftmax(DIMENSION, make_tree(data, "huffman"), num_threads=threads)
        self.layer.set_log_prior(data.counts)
        self.optimizer, self.best = RowOptimizer("rowwise_adagrad", RATE, num_threads=threads), np.inf
        self.examples = len(before)

    def measure(self, rounds=3):
        """Examples a second, of the fastest round so far."""
        for _ in range(rounds):
            begin = time.perf_counter()
            for x, y in self.batches:
                self.layer.step(x, y, self.optimizer)
            self.best = min(self.best, time.perf_counter() - begin)
        return self.examples / self.best


def speed(data, arguments):
    before, after = data.draw(400_000, np.random.default_rng(0))
    table = (np.random.default_rng(1).standard_normal((data.n_words, DIMENSION)) / 8).astype(np.float32)
    cases = [Steps(data, table, before, after, *case) for case in ((512, 1), (4096, 1), (4096, 2))]
    theirs = {1: np.inf, 5: np.inf}  # CPU seconds by epochs; rounds of both alternate
    for _ in range(4):
        for case in cases:
            case.measure()
        for epochs in theirs if arguments.fasttext else ():
            theirs[epochs] = min(theirs[epochs], train_fasttext(arguments.fasttext, before, after, epochs)[0])
    ours = [case.measure() for case in cases]
    for name, rate in zip(("512 rows", "4,096 rows", "4,096 rows, two threads"), ours, strict=True):
        print(f"step, {name}: {rate / 1e3:,.0f} k examples/s")
    print(f"two threads: {ours[2] / ours[1]:.2f} times one")
    for epochs, seconds in theirs.items() if arguments.fasttext else ():
        rate = epochs * len(before) / seconds
        print(f"fastText, {epochs} epochs: {rate / 1e3:,.0f} k examples/s; step is {ours[0] / rate:.2f} times as fast")


def training(data, arguments):
    before, after = data.draw(arguments.pairs, np.random.default_rng(0))
    theirs, known = None, True
    if arguments.fasttext:
        for epochs in (1, 5):
            theirs, table, layer, labels = train_fasttext(arguments.fasttext, before, after, epochs)
            class_of = {label: row for row, label in enumerate(labels.tolist())}
            loss, known = population_loss(data, table, layer, class_of)
            print(
                f"fastText, {epochs} epochs: loss {loss:.3f}, {theirs:.1f} s of CPU; it knows "
                f"{data.p[known].sum():.4f} of the population, which all losses but those in parentheses are of",
                flush=True,
            )
    vectors = None
    for kind in ("huffman", "balanced", "two_means"):
        tree = make_tree(data, kind, vectors)
        model = Model(data, tree)
        with csoftmax.threads(1):
            seconds = model.train(before, after)
        share = "" if theirs is None else f", {seconds / theirs:.2f} of fastText's"
        print(
            f"{kind:9}, one epoch: mean path {tree.mean_depth(data.counts):.2f}, loss {model.loss(data, known):.3f} "
            f"({model.loss(data):.3f} of all), {seconds:.1f} s of CPU{share}",
            flush=True,
        )
        if vectors is None:  # the words' embeddings after training
            vectors = model.table


def decoding(data, arguments):
    before, after = data.draw(arguments.pairs, np.random.default_rng(0))
    model = Model(data, make_tree(data, "huffman"))
    model.train(before, after)
    words = data.draw(300, np.random.default_rng(1))[0]
    x = np.ascontiguousarray(model.table[words])
    w = np.random.default_rng(2).standard_normal((data.n_words, DIMENSION)).astype(np.float32)
    bias = np.zeros(data.n_words, np.float32)

    def full(rows, k):
        return csoftmax.topk(rows @ w.T + bias, k, num_threads=1)

    def full_softmax(rows, k):
        return csoftmax.topk_softmax(rows @ w.T + bias, k, normalize="full", num_threads=1)

    def tree(rows, k):
        return model.layer.topk(rows, k, num_threads=1)

    for k in (1, 10, 100):
        times = {}
        for name, function in (("tree", tree), ("full", full), ("full with probabilities", full_softmax)):
            for size in (1, 300):
                best = np.inf
                for _ in range(5):
                    begin = time.process_time()
                    for at in range(0, 300, size):
                        function(x[at : at + size], k)
                    best = min(best, time.process_time() - begin)
                times[name, size] = best / 300 * 1e6
        model.layer.topk(x, k)
        print(f"k = {k}: {model.layer.stats['nodes_mean']:.1f} nodes")
        for size, rows in ((1, "a row at a time"), (300, "300 rows")):
            ratio = times["full", size] / times["tree", size]
            print(
                f"  {rows:15} tree {times['tree', size]:8.1f} us a row, scores and topk {times['full', size]:8.1f} "
                f"({ratio:.1f} times), with probabilities {times['full with probabilities', size]:8.1f}"
            )


TABLES = {"speed": speed, "training": training, "decoding": decoding}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", choices=[*TABLES, []], help=", ".join(TABLES))
    parser.add_argument("--fasttext", help="a Python that has fastText")
    parser.add_argument("--pairs", type=int, default=2_000_000)
    arguments = parser.parse_args()
    data = Bigrams()
    for name in arguments.names or TABLES:
        print(f"{name}:")
        TABLES[name](data, arguments)


if __name__ == "__main__":
    main()
