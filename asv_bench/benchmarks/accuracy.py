"""Largest error in ULP against long double, over awkward sizes and several scales of logits."""

import numpy as np

from csoftmax._cli import oracle

from .inputs import NAMES, operations

FORWARD = ("softmax", "log_softmax", "logsumexp")


def exact(op, inputs):
    """The result in long double, and the magnitude that its error is measured by."""
    if op.inputs == 2:
        return getattr(oracle, op.name)(*inputs)
    results = oracle.forward(*inputs)
    return results[FORWARD.index(op.name)], results[3] if op.name == "logsumexp" else None


class Accuracy:
    params = (NAMES, list(operations.DTYPES))
    param_names = ("operation", "dtype")
    sizes = (1, 3, 10, 17, 97, 1000, 4097, 50257)

    def setup(self, name, dtype):
        if dtype == "float64" and not oracle.JUDGES_FLOAT64:
            raise NotImplementedError("long double is double here")

    def track_ulp(self, name, dtype):
        op = operations.BY_NAME[name]
        worst = 0.0
        for size in self.sizes:
            for sigma in (0, 1, 20):
                inputs = op.make((2, size), dtype, seed=size, sigma=sigma)
                worst = max(worst, oracle.ulp_error(np.atleast_1d(op.function()(*inputs)), *exact(op, inputs)))
        return worst

    track_ulp.unit = "ULP"
