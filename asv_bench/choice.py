"""Time of the conditional logit beside xlogit and statsmodels.

    python asv_bench/choice.py

50,000 groups of 8 alternatives (xlogit), 2,000 of 5 (statsmodels), 10 columns; the least of interleaved rounds.
"""

import time
import warnings

import numpy as np
import statsmodels.api as sm
from xlogit import MultinomialLogit

from csoftmax.choice import ConditionalLogit

ROUNDS = 3


def draw(groups, size, columns=10):
    """Return rows, choices and groups of a balanced problem."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(groups * size, columns))
    utility = X @ rng.normal(size=columns) * 0.5 + rng.gumbel(size=len(X))
    y = np.zeros((groups, size))
    y[np.arange(groups), utility.reshape(groups, size).argmax(1)] = 1
    return X, y.ravel(), np.repeat(np.arange(groups), size)


def fit_xlogit(X, y, groups):
    model = MultinomialLogit()
    names = [f"x{i}" for i in range(X.shape[1])]
    model.fit(X=X, y=y, varnames=names, ids=groups, alts=np.arange(len(y)) % 8, verbose=0)


def main():
    warnings.filterwarnings("ignore")
    large, small = draw(50_000, 8), draw(2_000, 5)
    calls = {
        "xlogit": lambda: fit_xlogit(*large),
        "csoftmax, 50,000 x 8": lambda: ConditionalLogit().fit(*large[:2], groups=large[2]),
        "statsmodels": lambda: sm.ConditionalLogit(small[1], small[0], groups=small[2]).fit(disp=0),
        "csoftmax, 2,000 x 5": lambda: ConditionalLogit().fit(*small[:2], groups=small[2]),
    }
    best = dict.fromkeys(calls, np.inf)
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - begin)
    for name, seconds in best.items():
        print(f"{name:22} {seconds * 1e3:10.1f} ms")


if __name__ == "__main__":
    main()
