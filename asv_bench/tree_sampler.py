"""Adversarial negatives on a bigram model of English, beside negatives that are drawn whatever the features are.

    pip install csoftmax[learn] wordsegment
    python asv_bench/tree_sampler.py [--pairs 500000] [--negatives 1] [--seed 0]

The population is that of many_classes.py: 249,797 pairs of 22,254 words. The features of a word are fixed: the 64 first
singular vectors of the roots of the probabilities of the words after it. A linear layer of the next word is trained by
negative sampling, with Adagrad, in minibatches of 512 pairs. The loss is that of the whole table, exact, for the
predictions xi + log p_n; "forgotten" is that of xi alone. The tree is fitted to the whole table by weights.
"""

import argparse
import time

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from many_classes import BATCH, Bigrams

import csoftmax
from csoftmax.adversarial import TreeSampler
from csoftmax.heads import RowOptimizer
from csoftmax.samplers import UniformSampler, UnigramSampler

DIMENSION, RATE = 64, 0.1


def make_features(data):
    totals = np.bincount(data.before, data.p, data.n_words)
    roots = np.sqrt(data.p / totals[data.before])
    matrix = scipy.sparse.csr_matrix((roots, (data.before, data.after)), (data.n_words, data.n_words))
    left, values, _ = scipy.sparse.linalg.svds(matrix, DIMENSION, random_state=0)
    return np.ascontiguousarray(left * values * DIMENSION**0.5, np.float32)


def train(data, features, sampler, pairs, negatives, seed):
    rng = np.random.default_rng(seed)
    before, after = data.draw(pairs, rng)
    w, bias = np.zeros((data.n_words, DIMENSION), np.float32), np.zeros(data.n_words, np.float32)
    optimizer = RowOptimizer("adagrad", RATE)
    for begin in range(0, pairs, BATCH):
        x, y = features[before[begin : begin + BATCH]], after[begin : begin + BATCH]
        if isinstance(sampler, TreeSampler):
            drawn = sampler.sample(x, negatives, target=y, rng=rng)
        else:
            drawn = sampler.sample((len(x), negatives), target=y, rng=rng, scheme="iid")
        result = csoftmax.negative_sampling_loss_with_grad(
            x, w, y, drawn, bias=bias, accidental_hits="keep", reduction="sum"
        )
        optimizer.update("w", w, result.grad_w)
        optimizer.update("bias", bias, result.grad_bias)
    return w, bias


def population_loss(data, features, log_p):
    """The loss of the whole table; log_p: unnormalised log-probabilities of the classes from features."""
    order = np.argsort(data.before, kind="stable")
    before, after, p = data.before[order], data.after[order], data.p[order]
    words, begin = np.unique(before, return_index=True)
    ends, total = np.append(begin[1:], len(before)), 0.0
    for part in range(0, len(words), 256):
        chosen = words[part : part + 256]
        logits = csoftmax.log_softmax(log_p(features[chosen]).astype(np.float64))
        at = slice(begin[part], ends[min(part + 256, len(words)) - 1])
        total -= (p[at] * logits[np.searchsorted(chosen, before[at]), after[at]]).sum()
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=500_000)
    parser.add_argument("--negatives", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = Bigrams()
    entropy, alone = data.entropy()
    print(f"{len(data.p)} pairs, {data.n_words} words; entropy {entropy:.3f}, of words alone {alone:.3f}")
    features = make_features(data)
    begin = time.process_time()
    tree = TreeSampler(data.n_words).fit(features[data.before], data.after, sample_weight=data.p * len(data.p))
    print(f"tree: {time.process_time() - begin:.1f} s of CPU; its own loss "
          f"{population_loss(data, features, tree.log_prob_all):.3f}")  # fmt: skip
    unigram = UnigramSampler(data.counts, power=1, smoothing=float(data.counts[data.counts > 0].min()))
    samplers = {
        "uniform": (UniformSampler(data.n_words), lambda x: 0.0),
        "unigram": (unigram, lambda x: np.log(unigram.probability())),
        "tree": (tree, tree.log_prob_all),
    }
    for name, (sampler, log_q) in samplers.items():
        begin = time.process_time()
        w, bias = train(data, features, sampler, arguments.pairs, arguments.negatives, arguments.seed)
        seconds = time.process_time() - begin
        loss = population_loss(data, features, lambda x, w=w, bias=bias, log_q=log_q: x @ w.T + bias + log_q(x))
        forgotten = population_loss(data, features, lambda x, w=w, bias=bias: x @ w.T + bias)
        print(f"{name:10} {loss:8.3f}   forgotten {forgotten:8.3f}   {seconds:6.1f} s of CPU", flush=True)


if __name__ == "__main__":
    main()
