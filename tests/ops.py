"""The one list of operations: name, number of inputs, shape of the result, and inputs to try it on.

Tests, the completeness check and the benchmarks follow from it; only NumPy is needed to load it.  The oracle of an
operation is the function of the same name in oracle.py.
"""

from typing import NamedTuple

import numpy as np

DTYPES = ("float32", "float64", "float16", "bfloat16")
# Awkward class counts: around every vector width, the 128-element group, the 4096-element block.
SIZES = (1, 2, 3, 5, 7, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 127, 128, 129, 1000, 4095, 4096, 4097, 10007, 50257)


def dtype_of(name):
    """The NumPy dtype; bfloat16 is ml_dtypes'."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def logits(shape, dtype="float32", seed=0, sigma=3.0, offset=0.0):
    """Normal logits of scale sigma around offset."""
    x = np.random.default_rng(seed).standard_normal(shape) * sigma + offset
    return x.astype(dtype_of(dtype))


def unlike_rows(rows, k, dtype="float32", seed=0):
    """Logits of rows that kernels cannot all take the same way: ordinary ones, a third of other kinds among them."""
    x = logits((rows, k), dtype, seed=seed)
    rng = np.random.default_rng(seed + 1)
    large = 6e4 if dtype == "float16" else 1e30
    for i in np.flatnonzero(rng.random(rows) < 1 / 3):
        j = rng.integers(k)
        kind = rng.integers(8)
        if kind == 0:
            x[i, j] = np.nan
        elif kind == 1:
            x[i, j] = np.inf
        elif kind == 2:
            x[i] = -np.inf
        elif kind == 3:
            x[i, j:] = -np.inf
        elif kind == 4:
            x[i, j] = large
        elif kind == 5:
            x[i] = -large
        elif kind == 6:
            x[i] = x[i, j]
        else:
            x[i, rng.random(k) < 0.3] = 20
    return x


def _wide_softmax(x, log):
    x = np.asarray(x, dtype=np.float64)
    z = x - x.max(axis=-1, keepdims=True, initial=-np.inf)
    lse = np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return z - lse if log else np.exp(z - lse)


class Op(NamedTuple):
    """One public function of the package."""

    name: str
    inputs: int  # arrays it takes
    keeps_axis: bool  # whether the result has the softmax axis
    log: bool  # whether the second input is a log-probability

    @property
    def has_out(self):
        return self.keeps_axis

    def make(self, shape, dtype="float32", seed=0, sigma=3.0):
        """A tuple of arrays to call the function on; the softmax axis is the last."""
        x = logits(shape, dtype, seed, sigma)
        if self.inputs == 1:
            return (x,)
        return logits(shape, dtype, seed + 1, 1.0), _wide_softmax(x, self.log).astype(dtype_of(dtype))

    def function(self):
        import csoftmax

        return getattr(csoftmax, self.name)


OPS = (
    Op("softmax", 1, True, False),
    Op("log_softmax", 1, True, True),
    Op("logsumexp", 1, False, True),
    Op("softmax_vjp", 2, True, False),
    Op("log_softmax_vjp", 2, True, True),
)
BY_NAME = {op.name: op for op in OPS}
FORWARD = tuple(op for op in OPS if op.inputs == 1)
BACKWARD = tuple(op for op in OPS if op.inputs == 2)
