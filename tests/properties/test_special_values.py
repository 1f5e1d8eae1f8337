"""A row with a special value gives what its record says, at every index, dtype and layout, and leaves its neighbours.

NaN is written in its canonical bits, whatever payload went in.  The tables of single families (signs, masks, limits of
temperature) are in tests/ops.
"""

import contextlib

import numpy as np
import pytest
from helpers import assert_same_results, every_record, looped

from csoftmax._spec.formats import DTYPES, NAN_BITS, UNSIGNED, bits, dtype_of, loss_dtype, wide
from csoftmax._spec.layouts import LAYOUTS, compute_in
from csoftmax._spec.record import CLASSES, ROWS, Sample

KINDS = ("NaN", "+inf", "all -inf")
SIZES = (1, 2, 17, 35, 70)


def payloads(dtype):
    """Return quiet, signalling and negative NaNs with and without payload."""
    exponent = {"float32": 0x7F800000, "float64": 0x7FF << 52, "float16": 0x7C00, "bfloat16": 0x7F80}[dtype]
    quiet, kind = NAN_BITS[dtype] & ~exponent, dtype_of(dtype)
    sign = 1 << (8 * kind.itemsize - 1)
    patterns = [exponent | quiet, exponent | 1, exponent | quiet | 3, sign | exponent | quiet, sign | exponent | 1]
    return np.array(patterns, UNSIGNED[kind.itemsize]).view(kind)


def spoil(record, sample, kind, dtype):
    """Put the special value into row i at index i of the first array; one -inf is not enough, so it fills the row."""
    name = record.arguments[0].name
    x = sample.arrays[name].copy()
    rows, columns = np.arange(len(x)), np.arange(len(x)) % x.shape[-1]
    if kind == "NaN":
        x[rows, columns] = np.resize(payloads(dtype), len(x))
    elif kind == "+inf":
        x[rows, columns] = np.inf
    else:
        x[...] = -np.inf
    return Sample({**sample.arrays, name: x}, sample.options)


def assert_rows_are(results, record, expected, dtype):
    for result, kind, value in zip(results, record.results, expected):
        if value is None:  # not promised for this result
            continue
        if np.isnan(value):
            name = loss_dtype(dtype) if kind.dtype == "loss" else dtype
            where = np.isnan(wide(result))
            assert np.all(where), f"{kind.name} is not NaN at {np.argwhere(~where)[0]}"
            assert np.all(bits(result) == NAN_BITS[name]), f"{kind.name} holds another NaN"
        else:
            assert np.all(wide(result) == value), kind.name


@looped("kind", KINDS)
@every_record("special_values")
def test_every_index(record, dtype, kind):
    if kind not in record.special:
        pytest.skip("the record promises nothing for such rows: see the tests of its family")
    expected = record.special[kind]
    for k in SIZES:
        sample = spoil(record, record.sample((k, k), dtype, k, 1.0), kind, dtype)
        for layout in LAYOUTS:
            if isinstance(expected, str):
                with pytest.raises(ValueError, match=expected):
                    compute_in(record, sample, layout)
            else:
                assert_rows_are(compute_in(record, sample, layout), record, expected, dtype)


@looped("kind", KINDS)
@every_record("special_values")
def test_long_rows(record, dtype, kind):
    """Check rows of several blocks: the special value in the first, second and last."""
    if kind not in record.special:
        pytest.skip("the record promises nothing for such rows: see the tests of its family")
    expected, k = record.special[kind], 3 * 4096 + 77
    for at in (0, 31, 4095, 4096, 8000, k - 1):
        sample = record.sample((2, k), dtype, at, 1.0)
        name = record.arguments[0].name
        x = sample.arrays[name].copy()
        x[..., at % x.shape[-1]] = {"NaN": payloads(dtype)[1], "+inf": np.inf}.get(kind, 0)
        if kind == "all -inf":
            x[...] = -np.inf
        sample = Sample({**sample.arrays, name: x}, sample.options)
        if isinstance(expected, str):
            with pytest.raises(ValueError, match=expected):
                record.compute(sample)
        else:
            assert_rows_are(record.compute(sample), record, expected, dtype)


@every_record("special_values")
@looped("dtype", DTYPES)
def test_neighbours_are_left_alone(record, dtype):
    """Compare the ordinary rows among exceptional ones with the same rows among ordinary ones."""
    same = np.setdiff1d(np.arange(40), [3, 11, 12, 39])
    for variant, chosen in record.variants.items():
        if not chosen.is_rowwise:
            continue
        for k in (5, 40, 200):
            sample = record.sample((40, k), dtype, 1, 1.0, variant)
            name = record.arguments[0].name
            x = sample.arrays[name].copy()
            x[3, -1], x[11, 0], x[12], x[39, x.shape[-1] // 2] = payloads(dtype)[1], np.inf, -np.inf, np.inf
            changed = Sample({**sample.arrays, name: x}, sample.options)
            try:
                results = record.compute(changed)
            except ValueError:  # draws from a row without mass
                continue
            for kind, got, expected in zip(record.results, results, record.compute(sample)):
                if kind.role != "whole":
                    assert_same_results((got[same],), (expected[same],), f"{kind.name}, {variant}, K={k}")


@every_record("special_values")
@looped("dtype", DTYPES)
def test_no_warning_and_no_floating_point_exception(record, dtype):
    """NumPy's own settings never see what happens in the kernels."""
    sample = record.sample((4, 40), dtype)
    name = record.arguments[0].name
    x = sample.arrays[name].copy()
    x[0, 1], x[1, 2], x[2] = payloads(dtype)[1], np.inf, -np.inf
    with np.errstate(all="raise"):
        record.compute(sample)
        with contextlib.suppress(ValueError):  # no mass to draw from
            record.compute(Sample({**sample.arrays, name: x}, sample.options))


@every_record("special_values")
@looped("dtype", DTYPES)
def test_no_row(record, dtype):
    """Zero rows are legal, and give results without rows."""
    sample = record.sample((0, 5), dtype)
    for kind, result in zip(record.results, record.compute(sample)):
        assert kind.role not in (ROWS, "classes", "top", "draws") or len(result) == 0


@every_record("special_values")
@looped("dtype", DTYPES)
def test_masked_elements_keep_their_value(record, dtype):
    """In rows that are NaN, what `where` masks has the bits that it has in ordinary rows."""
    if "mask" not in record.variants:
        pytest.skip("it takes no mask")
    for k in (5, 40, 5000):
        sample = record.sample((4, k), dtype, k, 1.0, "mask")
        mask, name = sample.options["where"], record.arguments[0].name
        x = sample.arrays[name].copy()
        rows, first = np.arange(3), mask.argmax(-1)[:3]
        x[rows, first] = payloads(dtype)[0], np.inf, -np.inf
        x[2, mask[2]] = -np.inf
        try:
            results = record.compute(Sample({**sample.arrays, name: x}, sample.options))
        except ValueError:  # draws from a row without mass
            continue
        for kind, got, expected in zip(record.results, results, record.compute(sample)):
            if kind.role == CLASSES:
                assert_same_results((got[~mask],), (expected[~mask],), f"{kind.name}, K={k}")
