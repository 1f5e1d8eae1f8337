"""csoftmax.sequence.CRFTagger beside python-crfsuite, on the Cantonese conversations of HKCanCor.

    pip install python-crfsuite pycantonese
    python asv_bench/tagger.py [--threads 1,2] [--rounds 3] [--iterations 60] [--output FILE.md]

The words of 16,000 utterances get the first letter of their part of speech (27 tags); every tenth utterance is held
out.  Features: the word, its characters and length, the two words before and after it.  Both minimise the same
objective, sum of losses + c2 |w|^2 + c1 |w|_1, from the same features.  Times are CPU times of the process for one
thread and wall times for more, of training alone, without reading the features; the rounds alternate.

The table, in Markdown: seconds for a number of iterations; seconds until the objective is within 2e-6 (1e-5 with L1)
of the best that either has found; accuracy on the held-out utterances; microseconds for each token that is tagged.
"""

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from csoftmax.sequence import CRFTagger

C2 = 1.0
C1 = 0.5


def load_sentences():
    """Words and tags of the utterances of HKCanCor; punctuation has no tag and is left out."""
    import pycantonese

    sentences = []
    for utterance in pycantonese.hkcancor().tokens(by_utterance=True):
        tokens = [(t.word, t.pos[0].upper()) for t in utterance if t.pos and t.pos[0].isalpha()]
        if tokens:
            sentences.append(tokens)
    return sentences


def features_of(words, i):
    """Names of the attributes of a token."""
    word = words[i]
    names = ["bias", f"w={word}", f"first={word[0]}", f"last={word[-1]}", f"length={min(len(word), 4)}"]
    for shift in (-2, -1, 1, 2):
        other = words[i + shift] if 0 <= i + shift < len(words) else "_"
        names.append(f"w[{shift}]={other}")
    before, after = (words[i + s] if 0 <= i + s < len(words) else "_" for s in (-1, 1))
    return [*names, f"w[-1]|w={before}|{word}", f"w|w[1]={word}|{after}"]


def load_data():
    """Features and tags for training and for testing."""
    sentences = load_sentences()
    X = [[features_of([w for w, _ in s], i) for i in range(len(s))] for s in sentences]
    y = [[tag for _, tag in s] for s in sentences]
    held_out = [i % 10 == 9 for i in range(len(X))]
    train = [i for i, h in enumerate(held_out) if not h]
    test = [i for i, h in enumerate(held_out) if h]
    return [[a[i] for i in part] for part in (train, test) for a in (X, y)]


class Crfsuite:
    """python-crfsuite, with the objective after each iteration."""

    def __init__(self, X, y):
        import pycrfsuite

        class Trainer(pycrfsuite.Trainer):
            def on_iteration(self, log, info):
                self.seen.append((time.process_time(), time.perf_counter(), info["loss"]))

            def ignore(self, *_):
                pass

            on_start = on_featgen_progress = on_featgen_end = on_prepared = on_optimization_end = on_end = ignore
            on_prepare_error = ignore

        self.trainer = Trainer(algorithm="lbfgs", verbose=True)
        self.trainer.seen = []
        for tokens, tags in zip(X, y):
            self.trainer.append(pycrfsuite.ItemSequence(tokens), tags)

    def fit(self, path, iterations, c1, c2):
        """Train; return CPU seconds, wall seconds and objective after each iteration."""
        settings = {"c1": c1, "c2": c2, "max_iterations": iterations, "epsilon": 0, "delta": 0, "period": 10**6}
        self.trainer.set_params(settings)
        begin = time.process_time(), time.perf_counter()
        self.trainer.train(str(path))
        return np.array(self.trainer.seen) - [*begin, 0]


def fit_ours(X, y, iterations, c1, c2, threads):
    """Train; the same."""
    seen = []
    n = sum(map(bool, y))

    def note(model, record):
        seen.append((time.process_time(), time.perf_counter(), record["loss"] * n))

    model = CRFTagger(
        penalty_l1=c1 / n,
        penalty_l2=2 * c2 / n,
        transitions="seen",
        fit_ends=False,
        max_epochs=iterations,
        callbacks=note,
        num_threads=threads,
        tol=1e-12,
    )
    from csoftmax._learn import chain_fit, chain_parameters

    problem = chain_parameters.prepare(model, X, y, None)
    begin = time.process_time(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chain_fit.fit(model, problem)
    return model, np.array(seen) - [*begin, 0]


def time_until(history, column, goal):
    """Seconds until the objective is at most the goal; NaN if it never is."""
    reached = np.flatnonzero(history[:, 2] <= goal)
    return history[reached[0], column] if len(reached) else float("nan")
