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


def measure_training(data, c1, iterations, threads, rounds, folder):
    """Lines of the table for one penalty: seconds for the iterations, and until the objective is near the best."""
    X, y, X_test, y_test = data
    theirs, ours = [], {t: [] for t in threads}
    for i in range(rounds):
        theirs.append(Crfsuite(X, y).fit(folder / "model", iterations, c1, C2))
        for t in threads:
            model, history = fit_ours(X, y, iterations, c1, C2, t)
            ours[t].append(history)
        print(f"c1 {c1}: round {i + 1} of {rounds}", file=sys.stderr)
    import pycrfsuite

    peer = pycrfsuite.Tagger()
    peer.open(str(folder / "model"))
    right = [a == b for tokens, tags in zip(X_test, y_test) for a, b in zip(peer.tag(tokens), tags)]
    best = min(h[-1, 2] for h in [*theirs, *(h for histories in ours.values() for h in histories)])
    goal = best * (1 + (1e-5 if c1 else 2e-6))
    peer_seconds = [min(h[-1, column] for h in theirs) for column in (0, 1)]
    peer_goal = [min(time_until(h, column, goal) for h in theirs) for column in (0, 1)]
    row = f"| python-crfsuite, c1={c1} | 1 | {peer_seconds[0]:.2f} | | {peer_goal[0]:.2f} | "
    lines = [row + f"| {len(theirs[0])} | {theirs[0][-1, 2]:.3f} | {np.mean(right):.4f} |"]
    for t, histories in ours.items():
        column = 0 if t == 1 else 1
        seconds = min(h[-1, column] for h in histories)
        to_goal = min(time_until(h, column, goal) for h in histories)
        lines.append(
            f"| CRFTagger, c1={c1} | {t} | {seconds:.2f} | {seconds / peer_seconds[column]:.3f} | {to_goal:.2f} | "
            f"{to_goal / peer_goal[column]:.3f} | {len(histories[0])} | {histories[0][-1, 2]:.3f} | "
            f"{model.score(X_test, y_test):.4f} |"
        )
    return lines, model, peer


def measure_tagging(model, peer, X, rounds):
    """Microseconds of CPU for each token, of the peer and of ours from lists of names and from a sparse matrix."""
    from scipy import sparse

    from csoftmax._learn import chain_predict

    tokens = chain_predict.read(model, X)
    entries = np.ones(len(tokens.columns), np.float32), tokens.columns, tokens.indptr
    matrix = sparse.csr_array(entries, shape=(tokens.total, tokens.n_columns)), np.diff(tokens.starts)
    from_matrix = CRFTagger(**model.get_params()).set_params(callbacks=None)
    from_matrix.__dict__.update({k: v for k, v in model.__dict__.items() if k.endswith("_")}, vocabulary_=None)
    ways = {
        "python-crfsuite, lists of names": lambda: [peer.tag(sequence) for sequence in X],
        "CRFTagger, lists of names": lambda: model.predict(X),
        "CRFTagger, CSR": lambda: from_matrix.predict(matrix),
    }
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, function in ways.items():
            begin = time.process_time()
            function()
            times[name].append((time.process_time() - begin) / tokens.total * 1e6)
    first = min(next(iter(times.values())))
    return [f"| {name} | {min(t):.3f} | {first / min(t):.1f} |" for name, t in times.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", default="1,2", help="numbers of threads, separated by commas")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--c1", default="0,0.5", help="factors of the L1 penalty, separated by commas")
    parser.add_argument("--output", type=Path, help="file for the table; default: standard output")
    arguments = parser.parse_args()
    data = load_data()
    threads = [int(t) for t in arguments.threads.split(",")]
    lines = [
        f"{len(data[0])} utterances, {sum(map(len, data[0]))} tokens, {arguments.iterations} iterations, "
        f"{arguments.rounds} rounds",
        "",
        "| | threads | seconds | ratio | seconds to the optimum | ratio | iterations | objective | accuracy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    tagging = []
    with tempfile.TemporaryDirectory() as folder:
        for c1 in map(float, arguments.c1.split(",")):
            rows, model, peer = measure_training(
                data, c1, arguments.iterations, threads, arguments.rounds, Path(folder)
            )
            lines += rows
            if not tagging:
                model.set_params(num_threads=1)
                tagging = measure_tagging(model, peer, data[2], max(5, arguments.rounds))
    lines += ["", "| tagging | microseconds a token | times as fast |", "|---|---|---|", *tagging]
    text = "\n".join(lines)
    if arguments.output:
        arguments.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
