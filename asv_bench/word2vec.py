"""Steps of word2vec on batches beside gensim: words a second of one thread.

    pip install wordsegment gensim scipy
    OPENBLAS_NUM_THREADS=1 python asv_bench/word2vec.py [--pairs 400000] [--rounds 5] [--batch 1024]

Both train skip-grams with five negatives on pairs of words from wordsegment's table of bigrams, each pair in both
directions, vectors of 100 float32. csoftmax's step is `negative_sampling_loss_with_grad` with negatives of each row,
`add_rows` for the vectors of the contexts, and `add_rows` for those of the words, whose gradients SciPy adds up by
word. Times are CPU times in turn, of the training alone.
"""

import argparse
import time

import numpy as np
from many_classes import Bigrams
from scipy.sparse import csr_array

import csoftmax
from csoftmax.samplers import UnigramSampler

DIMENSION, NEGATIVES, RATE = 100, 5, 0.025


def train_gensim(data, before, after):
    """Words a second of gensim."""
    from gensim.models import Word2Vec

    names = [f"w{i}" for i in range(data.n_words)]
    sentences = [[names[i], names[j]] for i, j in zip(before, after, strict=True)]
    model = Word2Vec(
        vector_size=DIMENSION, window=1, sg=1, negative=NEGATIVES, min_count=1, sample=0, workers=1, epochs=1, seed=1
    )
    model.build_vocab(sentences)
    begin = time.process_time()
    model.train(sentences, total_examples=len(sentences), epochs=1)
    return 2 * len(sentences) / (time.process_time() - begin)


def sum_by_word(words, gradient):
    """The gradient of the rows of the distinct words."""
    order = np.argsort(words, kind="stable")
    ordered = words[order]
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    ones = np.ones(len(words), np.float32)
    incidence = csr_array((ones, order, np.append(first, len(words))), shape=(len(first), len(words)))
    return csoftmax.RowGradient(ordered[first], incidence @ gradient)


def train_csoftmax(data, before, after, batch):
    """Words a second, and the mean loss of a word."""
    words, contexts = np.stack([before, after], 1).ravel(), np.stack([after, before], 1).ravel()
    counts = np.bincount(words, minlength=data.n_words)
    sampler, rng, total = UnigramSampler(counts, smoothing=1e-9), np.random.default_rng(2), 0.0
    vectors = (np.random.default_rng(1).random((data.n_words, DIMENSION), np.float32) - 0.5) / DIMENSION
    w, x = np.zeros((data.n_words, DIMENSION), np.float32), np.empty((batch, DIMENSION), np.float32)
    begin = time.process_time()
    steps = len(words) // batch
    for step in range(steps):
        part = slice(step * batch, (step + 1) * batch)
        negatives = sampler.draw(NEGATIVES * batch, rng=rng).reshape(batch, NEGATIVES)
        np.take(vectors, words[part], axis=0, out=x, mode="clip")
        result = csoftmax.negative_sampling_loss_with_grad(
            x, w, contexts[part], negatives, reduction="sum", num_threads=1
        )
        csoftmax.add_rows(w, result.grad_w, -RATE)
        csoftmax.add_rows(vectors, sum_by_word(words[part], result.grad_x), -RATE)
        total += float(result.loss)
    return steps * batch / (time.process_time() - begin), total / (steps * batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1024)
    arguments = parser.parse_args()
    data = Bigrams()
    before, after = data.draw(arguments.pairs, np.random.default_rng(0))
    for _ in range(arguments.rounds):
        theirs = train_gensim(data, before, after)
        ours, loss = train_csoftmax(data, before, after, arguments.batch)
        print(
            f"gensim {theirs:9.0f} words/s, csoftmax {ours:9.0f}, {ours / theirs:.2f} times; loss {loss:.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
