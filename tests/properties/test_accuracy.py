"""Every result is within the ULP that its record promises, for every set of options, against long double.

ULP are those of the result, subnormal results included.  Where long double is no more than float64, only the families'
own tests judge (tests/ops, in mpmath).  Harder inputs of one family are in tests/ops as well.
"""

import pytest
from helpers import every_record, looped

from csoftmax._spec.formats import JUDGES_FLOAT64
from csoftmax._spec.samples import ROW_KINDS, SIZES

pytestmark = pytest.mark.skipif(not JUDGES_FLOAT64, reason="long double is float64 here")
SCALES = (1, 20)


def check(record, sample, dtype, what):
    results = record.compute(sample)
    for result, kind in zip(results, record.results):
        assert result.dtype == record.result_dtype(kind, dtype) or kind.dtype == "index"
    found = record.errors(sample, results, dtype)
    for kind, error, limit in zip(record.results, found, record.limits(dtype, sample.options)):
        assert error <= limit, f"{kind.name} of {record.name}, {dtype}, {what}: {error:.3f} ULP, limit {limit}"


@every_record("accuracy")
def test_sizes_and_scales(record, dtype):
    for k in SIZES:
        for sigma in SCALES if k < 10_000 else (5,):
            rows = max(2, min(10, 2_000 // k))
            check(record, record.sample((rows, k), dtype, k, sigma), dtype, f"K={k} sigma={sigma}")


@every_record("accuracy")
@looped("kind", ROW_KINDS)
def test_kinds_of_rows(record, kind, dtype):
    """Rows that are not normal: sums whose roundings have one sign, and sums far below the maximum."""
    for k in (3, 17, 511, 4097):
        rows = max(2, min(10, 4_000 // k))
        check(record, record.sample((rows, k), dtype, k, kind), dtype, f"K={k}, {kind}")


@pytest.mark.parametrize(
    ("sizes", "scales"),
    [
        pytest.param((1, 17, 4097), (5,), id="few sizes"),
        pytest.param((1, 2, 3, 16, 17, 129, 1000, 4097), (0.1, 5), id="more sizes", marks=pytest.mark.slow),
    ],
)
@every_record("accuracy")
def test_options(record, dtype, sizes, scales):
    for variant, chosen in record.variants.items():
        if chosen.is_accurate:
            for k in sizes:
                for sigma in scales:
                    rows = max(2, min(8, 2_000 // k))
                    sample = record.sample((rows, k), dtype, k, sigma, variant)
                    check(record, sample, dtype, f"{variant}, K={k} sigma={sigma}")
            for kind in ROW_KINDS:
                sample = record.sample((3, 130), dtype, 1, kind, variant)
                check(record, sample, dtype, f"{variant}, {kind}")


@pytest.mark.long
@every_record("accuracy")
def test_every_size_to_a_thousand(record, dtype):
    for variant, chosen in record.variants.items():
        if chosen.is_accurate:
            for k in range(1, 1001):
                check(record, record.sample((4, k), dtype, k, 10, variant), dtype, f"{variant}, K={k}")
