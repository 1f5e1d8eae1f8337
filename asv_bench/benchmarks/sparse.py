"""Time of top-k (of sorted and constant rows too), sparsemax, entmax and sampling."""

import numpy as np

import csoftmax
from csoftmax._bench.cases import SPARSE, usual_cases

from .inputs import prepare_call

CASES = {f"{op} {case}": case for op in SPARSE for case in usual_cases(op)}

FILTERS = {
    **{"plain": {}, "top_k": {"top_k": 50}, "top_p": {"top_p": 0.9, "temperature": 0.7}},
    **{"min_p": {"min_p": 0.05}, "typical_p": {"typical_p": 0.95}, "top_n_sigma": {"top_n_sigma": 1.0}},
    "another order": {"top_p": 0.9, "temperature": 0.7, "order": ("top_p", "temperature")},
    "no replacement": {"size": 5, "replace": False},
    "log-probabilities": {"top_k": 50, "return_log_prob": True},
}


class Sparse:
    params = (list(CASES),)
    param_names = ("case",)

    def setup(self, label):
        csoftmax.set_num_threads(1)
        self.call, _ = prepare_call(CASES[label])
        self.call()

    def time_sparse(self, label):
        return self.call()


class Sample:
    """One draw from each row, as in an inference server."""

    params = (list(FILTERS),)
    param_names = ("filter",)

    def setup(self, name):
        csoftmax.set_num_threads(1)
        self.x = 3 * np.random.default_rng(0).standard_normal((64, 32000), dtype=np.float32)
        self.time_sample(name)

    def time_sample(self, name):
        return csoftmax.sample(self.x, rng=0, **FILTERS[name])


class Penalize:
    """Penalties in place: 500 tokens in each of 64 rows."""

    def setup(self):
        csoftmax.set_num_threads(1)
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((64, 128256), dtype=np.float32)
        self.tokens = rng.integers(0, 128256, (64, 500))
        self.time_penalize()

    def time_penalize(self):
        return csoftmax.penalize(self.x, self.tokens, repetition=1.0001, out=self.x)
