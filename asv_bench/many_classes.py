"""Population loss of sampled losses on a bigram model of English, beside the softmax over all classes.

    pip install wordsegment
    python asv_bench/many_classes.py [--pairs 500000] [--sampled 256] [--seed 0] [name ...]

The population is wordsegment's table of bigrams (of pairs that differ only in case, the last one): 249,797 pairs of
22,254 words. A model of the next word, with 64 numbers for each word before it and for each word after it, is trained
on pairs that are drawn from the table, in minibatches of 512, with row-wise Adagrad. The loss is that of the whole
table, exact: its smallest value is the conditional entropy, 4.348, and the frequencies of the words alone have 6.405.
The names are those of the table that is printed; without any, all rows are.
"""

import argparse
import time
from importlib.resources import files

import numpy as np

import csoftmax
from csoftmax.heads import RowOptimizer
from csoftmax.linear_model import ManyClassRegression
from csoftmax.samplers import LogUniformSampler, UnigramSampler

DIMENSION, BATCH, RATE = 64, 512, 0.3


class Bigrams:
    """The table: words before and after, probabilities of the pairs."""

    def __init__(self):
        table = {}
        with files("wordsegment").joinpath("bigrams.txt").open(encoding="utf-8") as lines:
            for line in lines:
                pair, count = line.rstrip("\n").split("\t")
                if "<s>" not in (words := tuple(pair.lower().split(" "))):
                    table[words] = float(count)
        ids = {}
        for pair in table:
            for word in pair:
                ids.setdefault(word, len(ids))
        self.before, self.after = np.array([[ids[a], ids[b]] for a, b in table]).T
        self.p = np.array(list(table.values()))
        self.p /= self.p.sum()
        self.n_words = len(ids)
        self.counts = np.bincount(self.after, self.p, self.n_words) * len(self.p)  # in the whole table

    def entropy(self):
        """The conditional entropy, and that of the words after."""
        totals = np.bincount(self.before, self.p, self.n_words)
        alone = self.counts[self.counts > 0] / self.counts.sum()
        return -(self.p * np.log(self.p / totals[self.before])).sum(), -(alone * np.log(alone)).sum()

    def draw(self, n, rng):
        rows = rng.choice(len(self.p), n, p=self.p)
        return self.before[rows], self.after[rows]

    def loss(self, table, w, bias):
        """The loss of the whole table: the logits of a word before serve all of its pairs."""
        order = np.argsort(self.before, kind="stable")
        before, after, p = self.before[order], self.after[order], self.p[order]
        words, begin = np.unique(before, return_index=True)
        ends, total = np.append(begin[1:], len(before)), 0.0
        for part in range(0, len(words), 256):
            chosen = words[part : part + 256]
            logits = csoftmax.log_softmax((table[chosen] @ w.T + bias).astype(np.float64))
            at = slice(begin[part], ends[min(part + 256, len(words)) - 1])
            total -= (p[at] * logits[np.searchsorted(chosen, before[at]), after[at]]).sum()
        return total


class Model:
    """Embeddings, weights and biases with their optimiser."""

    def __init__(self, data, rng, *, prior):
        self.table = (rng.standard_normal((data.n_words, DIMENSION)) / DIMENSION**0.5).astype(np.float32)
        self.w = np.zeros((data.n_words, DIMENSION), np.float32)
        smoothed = data.counts + data.counts[data.counts > 0].min() * (data.counts == 0)
        self.bias = (
            np.log(smoothed / smoothed.sum()).astype(np.float32) if prior else np.zeros(data.n_words, np.float32)
        )
        self.optimizer = RowOptimizer("rowwise_adagrad", RATE)

    def step(self, before, result):
        words, inverse = np.unique(before, return_inverse=True)
        grad = np.zeros((len(words), DIMENSION), np.float32)
        np.add.at(grad, inverse, result.grad_x)
        self.optimizer.update("table", self.table, csoftmax.RowGradient(words, grad))
        self.optimizer.update("w", self.w, result.grad_w)
        self.optimizer.update("bias", self.bias, result.grad_bias)


def take_full(model, x, y, sample):
    return csoftmax.linear_cross_entropy_with_grad(x, model.w, y, bias=model.bias)


def take_sampled(model, x, y, sample, **options):
    return csoftmax.sampled_softmax_loss_with_grad(x, model.w, y, sample(y), bias=model.bias, **options)


def take_nce(model, x, y, sample):
    return csoftmax.nce_loss_with_grad(x, model.w, y, sample(y), bias=model.bias)


def take_negative(model, x, y, sample):
    return csoftmax.negative_sampling_loss_with_grad(x, model.w, y, sample(y), bias=model.bias)


# Name: the loss, its options, the sampler, its scheme, whether the bias starts at the log prior.
ROWS = {
    "full-zero": (take_full, {}, None, None, False),
    "full": (take_full, {}, None, None, True),
    "ranking": (take_sampled, {}, "unigram", "poisson", True),
    "ranking-zero": (take_sampled, {}, "unigram", "poisson", False),
    "ranking-iid": (take_sampled, {"accidental_hits": "keep"}, "unigram", "iid", True),
    "loguniform": (take_sampled, {}, "loguniform", "poisson", True),
    "partition": (take_sampled, {"correction": "partition"}, "unigram", "poisson", True),
    "none": (take_sampled, {"correction": "none"}, "unigram", "poisson", True),
    "none-zero": (take_sampled, {"correction": "none"}, "unigram", "poisson", False),
    "nce": (take_nce, {}, "unigram", "iid", True),
    "nce-zero": (take_nce, {}, "unigram", "iid", False),
    "negative": (take_negative, {}, "unigram", "iid", True),
}
ESTIMATORS = {
    "estimator": {},
    "estimator-in_batch": {"sampler": "in_batch"},
}


def train(data, name, pairs, sampled, seed):
    """Train one row of the table; return the population loss."""
    take, options, distribution, scheme, prior = ROWS[name]
    rng = np.random.default_rng(seed)
    before, after = data.draw(pairs, rng)
    model = Model(data, rng, prior=prior)
    smallest = float(data.counts[data.counts > 0].min())
    if distribution == "unigram":
        sampler = UnigramSampler(data.counts, power=0.75, smoothing=smallest)
    elif distribution == "loguniform":
        sampler = LogUniformSampler(data.n_words, order=np.argsort(-data.counts, kind="stable"))
    for begin in range(0, pairs, BATCH):
        x, y = before[begin : begin + BATCH], after[begin : begin + BATCH]
        result = take(
            model,
            model.table[x],
            y,
            lambda target: sampler.sample(sampled, target=target, rng=rng, scheme=scheme),
            **options,
        )
        model.step(x, result)
    return data.loss(model.table, model.w, model.bias)


def fit_estimator(data, name, pairs, sampled, seed):
    """The same by `ManyClassRegression.fit_batches`, which knows no counts but those of the pairs so far."""
    before, after = data.draw(pairs, np.random.default_rng(seed))
    parts = [slice(begin, begin + BATCH) for begin in range(0, pairs, BATCH)]
    model = ManyClassRegression(
        embedding=(data.n_words, DIMENSION), n_sampled=sampled, random_state=seed, **ESTIMATORS[name]
    )
    batches = [(before[part, None], after[part]) for part in parts]
    model.fit_batches(batches, np.arange(data.n_words), epochs=1)
    return data.loss(model.embedding_, model.head_.parameters["w"], model.head_.parameters["bias"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join([*ROWS, *ESTIMATORS]))
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--sampled", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = Bigrams()
    entropy, alone = data.entropy()
    print(f"{len(data.p)} pairs, {data.n_words} words; entropy {entropy:.3f}, of words alone {alone:.3f}")
    for name in arguments.names or [*ROWS, *ESTIMATORS]:
        begin = time.process_time()
        function = train if name in ROWS else fit_estimator
        loss = function(data, name, arguments.pairs, arguments.sampled, arguments.seed)
        print(f"{name:20} {loss:8.3f}   {time.process_time() - begin:6.1f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
