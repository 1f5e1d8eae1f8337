"""Largest error in ULP against the long double oracle of the record, over awkward sizes and several scales of logits.

An operation whose result must be exact (indices, a sparse matrix) has no error in ULP and is left to the tests.
"""

from csoftmax._spec.formats import DTYPES, JUDGES_FLOAT64
from csoftmax._spec.operations import BY_NAME, OPERATIONS

NAMES = [
    record.name
    for record in OPERATIONS
    if any(result.dtype != "index" for result in record.results) and record.name not in ("topk", "to_csr")
]


class Accuracy:
    params = (NAMES, list(DTYPES))
    param_names = ("operation", "dtype")
    timeout = 120
    sizes = (1, 3, 10, 17, 97, 1000, 4097, 50257)

    def setup(self, name, dtype):
        if dtype == "float64" and not JUDGES_FLOAT64:
            raise NotImplementedError("long double is double here")

    def track_ulp(self, name, dtype):
        record = BY_NAME[name]
        worst = 0.0
        for size in self.sizes:
            for sigma in (0, 1, 20):
                sample = record.sample((2, size), dtype, seed=size, sigma=sigma)
                worst = max(worst, *record.errors(sample, record.compute(sample), dtype))
        return worst

    track_ulp.unit = "ULP"
