"""Time of the linear-chain CRF: loss with gradients, marginals, decoding."""

import csoftmax
from csoftmax._bench.cases import CHAINS, usual_cases

from .inputs import prepare_call

CASES = {f"{op} {case}": case for op in CHAINS for case in usual_cases(op)}


class Chains:
    params = (list(CASES),)
    param_names = ("case",)

    def setup(self, label):
        csoftmax.set_num_threads(1)
        self.call, _ = prepare_call(CASES[label])
        self.call()

    def time_chains(self, label):
        return self.call()
