"""Cross-entropy with gradient: time, peak memory of the linear form, largest error."""

import tracemalloc

import numpy as np

import csoftmax
from csoftmax._bench.cases import LOSSES, usual_cases

from .inputs import prepare_call

CASES = {
    str(case): case
    for op in LOSSES
    for case in usual_cases(op)
    if np.prod(case.shape[:: max(1, len(case.shape) - 1)]) <= 40_000_000
}


class Loss:
    params = (list(CASES),)
    param_names = ("case",)
    timeout = 120

    def setup(self, label):
        csoftmax.set_num_threads(1)
        self.call, _ = prepare_call(CASES[label])
        self.call()

    def time_with_gradient(self, label):
        return self.call()


class LinearMemory:
    """Peak memory: the inputs have 70 MB, the gradients as much; all logits would be 1 GB."""

    timeout = 300  # seconds: on busy cores the products take more than the 60 that asv allows
    rows, features, classes = 4096, 256, 64000

    def setup(self):
        self.x = np.full((self.rows, self.features), 0.5, np.float32)
        self.w = np.full((self.classes, self.features), 0.5, np.float32)
        self.labels = np.zeros(self.rows, np.int64)

    def peakmem_linear(self):
        csoftmax.linear_cross_entropy_with_grad(self.x, self.w, self.labels)

    def peakmem_inputs(self):
        """The part of that which is there before the call."""

    def track_extra_of_all_logits(self):
        """Memory of a call beside its results, as a share of all logits in float32; the promise is an eighth."""
        tracemalloc.start()
        try:
            result = csoftmax.linear_cross_entropy_with_grad(self.x, self.w, self.labels)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        return (peak - result.grad_x.nbytes - result.grad_w.nbytes) / (4 * len(self.x) * len(self.w))

    track_extra_of_all_logits.unit = "of N K 4 bytes"


class LossAccuracy:
    """ULP of the loss of a near-certain label, which is 0 if it is computed from 1 - p."""

    params = (["float32", "float64"],)
    param_names = ("dtype",)

    def track_tail(self, dtype):
        gaps = np.linspace(1, 80, 400)
        x = np.stack([gaps, np.zeros_like(gaps)], axis=-1).astype(dtype)
        exact = np.log1p(np.exp(-(x[:, 0].astype(np.longdouble))))
        loss = csoftmax.cross_entropy(x, np.zeros(400, int), reduction="none")
        return float(np.max(np.abs(loss - exact) / np.spacing(exact.astype(dtype))))

    track_tail.unit = "ULP"
