"""Top-k, sparsemax, entmax and drawing: time, and what top-k costs where the row is sorted."""

import numpy as np

import csoftmax
from csoftmax._bench.cases import SPARSE, usual_cases
from csoftmax._bench.problems import make_problem

CASES = {f"{op} {case}": case for op in SPARSE for case in usual_cases(op)}

FILTERS = {"plain": {}, "top_k": {"top_k": 50}, "top_p": {"top_p": 0.9, "temperature": 0.7}}


class Sparse:
    params = (list(CASES),)
    param_names = ("case",)

    def setup(self, label):
        csoftmax.set_num_threads(1)
        self.contender = make_problem(CASES[label], fresh=False).prepare_csoftmax()
        self.code = compile(self.contender.statement, "statement", "eval")
        self.time_sparse(label)

    def time_sparse(self, label):
        return eval(self.code, self.contender.names)


class Sample:
    """One draw from each row, as an inference server takes it."""

    params = (list(FILTERS),)
    param_names = ("filter",)

    def setup(self, name):
        csoftmax.set_num_threads(1)
        self.x = 3 * np.random.default_rng(0).standard_normal((64, 32000), dtype=np.float32)
        self.time_sample(name)

    def time_sample(self, name):
        return csoftmax.sample(self.x, rng=0, **FILTERS[name])
