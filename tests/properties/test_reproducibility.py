"""The same bits for every instruction set, thread count, batch, row position, alignment and repetition.

The reference of a case is the scalar unit, serial, on a C-contiguous copy.
"""

import numpy as np
import pytest
from helpers import assert_same_bits, assert_same_results, every_record, looped

import csoftmax
from csoftmax._cpu import binding
from csoftmax._spec.formats import DTYPES, dtype_of
from csoftmax._spec.layouts import compute_in
from csoftmax._spec.operations import BACKWARD, FORWARD, SOFTMAX_FAMILY
from csoftmax._spec.record import Sample
from csoftmax._spec.samples import ROW_KINDS, SIZES, logits, unlike_rows

TEMPERATURES = (1.0, 0.3, 7.0, 0.0, np.inf, 1e-30, 1e30)
_scalar = {}


def compute_scalar(record, key, sample, **options):
    """Return the scalar unit's results, computed once."""
    key = record.name, *key
    if key not in _scalar:
        before = binding.isa()
        binding.select_isa("scalar")
        try:
            serial = {"num_threads": 1} if record.accepts("num_threads") else {}
            _scalar[key] = record.compute(sample, **serial, **options)
        finally:
            binding.select_isa(before)
    return _scalar[key]


# Instruction sets


@every_record("reproducibility")
def test_sizes_on_every_instruction_set(record, dtype, isa):
    for k in (*SIZES, 3 * 4096 + 1):
        sample = record.sample((max(1, min(5, 20_000 // k)), k), dtype, k, 8)
        assert_same_results(record.compute(sample), compute_scalar(record, (dtype, k), sample), f"K={k}")


@every_record("reproducibility")
def test_options_and_layouts_on_every_instruction_set(record, dtype, isa):
    """Check every set of options, along the last axis, the first, and in rows that are not ordinary."""
    for variant in record.variants:
        for rows, k, layouts in (
            (37, 20, ("last axis", "axis 0", "strided", "3-d middle")),
            (19, 131, ("last axis", "axis 0")),
            (3, 4099, ("last axis",)),
        ):
            sample = record.sample((rows, k), dtype, k, variant=variant)
            expected = compute_scalar(record, (dtype, variant, k), sample)
            for layout in layouts:
                assert_same_results(compute_in(record, sample, layout), expected, f"{variant}, K={k} {layout}")


@every_record("reproducibility")
def test_kinds_of_rows_on_every_instruction_set(record, dtype, isa):
    """Small sums are added in another way: rows grouped, tiny, in tiles and in blocks must all choose it."""
    for kind in ROW_KINDS:
        for rows, k, layouts in ((21, 9, ("axis 0",)), (21, 300, ("last axis", "axis 0")), (2, 4300, ("last axis",))):
            sample = record.sample((rows, k), dtype, k, kind)
            expected = compute_scalar(record, (dtype, kind, k), sample)
            for layout in layouts:
                assert_same_results(compute_in(record, sample, layout), expected, f"{kind}, K={k} {layout}")


@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_hard_ranges_on_every_instruction_set(op, dtype, isa):
    """Check large offsets, subnormal results, subnormal inputs, masks, extreme gaps, every temperature."""
    offsets = (0, 1e4) if dtype == "float16" else (0, 9e5, -2e6, 1e30)
    mask = np.arange(150) % 5 > 0
    for sigma in (1e-40, 1, 60, 300):
        for offset in offsets:
            x = logits((6, 150), dtype, seed=3, sigma=sigma, offset=offset)
            x[1, ::4] = -np.inf
            x[2, :] = x[2, 0]
            for options in ({}, {"where": mask}, *({"temperature": t} for t in TEMPERATURES[1:])):
                key = dtype, sigma, offset, str(options)
                expected = compute_scalar(op, key, Sample({"x": x}, {}), **options)
                what = f"sigma={sigma} offset={offset} {options}"
                assert_same_results(op.compute(Sample({"x": x}, options)), expected, what)
                if "where" not in options:
                    assert_same_results(compute_in(op, Sample({"x": x}, options), "axis 0"), expected, what)


@pytest.mark.parametrize("op", BACKWARD, ids=lambda op: op.name)
def test_temperatures_of_gradients_on_every_instruction_set(op, dtype, isa):
    for t in (1e-30, 1e30):
        for rows, k in ((9, 5), (5, 70), (2, 4500)):
            sample = op.sample((rows, k), dtype, k)
            expected = compute_scalar(op, (dtype, t, k), sample, temperature=t)
            assert_same_results(op.compute(sample, temperature=t), expected, f"T={t} K={k}")
            assert_same_results(compute_in(op, sample, "axis 0", temperature=t), expected, f"T={t} K={k} axis 0")


def test_every_half_number_on_every_instruction_set(isa):
    """Check all 65,536 bit patterns of float16 and bfloat16 through load and store: each as a row with 0."""
    for name in ("float16", "bfloat16"):
        every = np.arange(65536, dtype=np.uint16).view(dtype_of(name))
        sample = Sample({"x": np.stack([every, np.zeros_like(every)], axis=1)}, {})
        for op in FORWARD:
            expected = compute_scalar(op, (name, "every"), sample)
            assert_same_results(op.compute(sample), expected)
            assert_same_results(compute_in(op, sample, "axis 0"), expected)


def test_the_isa_can_be_forced_and_is_the_one_used(isa):
    assert binding.isa() == isa
    assert csoftmax.show_config("dicts")["isa"]["used"] == isa


# Threads


@every_record("reproducibility")
@looped("dtype", DTYPES)
def test_thread_counts(record, dtype, seven_threads):
    if not record.accepts("num_threads"):
        pytest.skip("it takes no num_threads")
    for rows, k in ((700, 101), (40, 4096), (3, 70001), (5000, 7)):
        sample = record.sample((rows, k), dtype, k)
        expected = record.compute(sample, num_threads=1)
        for threads in (2, 3, 7):
            got = record.compute(sample, num_threads=threads)
            assert_same_results(got, expected, f"{threads} threads, K={k}")


@every_record("reproducibility")
def test_thread_counts_options_and_layouts(record, seven_threads):
    if not record.accepts("num_threads"):
        pytest.skip("it takes no num_threads")
    for variant in record.variants:
        for rows, k in ((700, 101), (9, 9001)):
            sample = record.sample((rows, k), "float32", k, variant=variant)
            expected = record.compute(sample, num_threads=1)
            for layout in ("last axis", "axis 0", "padded rows", "3-d middle"):
                got = compute_in(record, sample, layout, num_threads=7)
                assert_same_results(got, expected, f"{variant}, K={k}, {layout}")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_record("reproducibility")
def test_few_long_rows_are_split(record, dtype, seven_threads):
    """Split one row over several threads, ordinary and far from it."""
    if not record.accepts("num_threads"):
        pytest.skip("it takes no num_threads")
    sample = record.sample((1, (1 << 20) + 5), dtype, 1)
    for options in ({}, {"temperature": 0.5}, {"temperature": 1e-30}) if record in SOFTMAX_FAMILY else ({},):
        expected = record.compute(sample, num_threads=1, **options)
        for threads in (2, 7):
            got = record.compute(sample, num_threads=threads, **options)
            assert_same_results(got, expected, f"{threads} threads, {options}")


# Batches and places


@every_record("reproducibility")
@looped("dtype", DTYPES)
def test_batch_splits(record, dtype):
    """A row has the same bits alone, in any batch, at any position."""
    if record.name == "to_csr":
        pytest.skip("its results are one matrix")
    for variant, chosen in record.variants.items():
        if not chosen.is_rowwise:
            continue
        for k in (1, 3, 17, 100, 4100) if variant == "plain" else (17,):
            sample = record.sample((50, k), dtype, k, variant=variant)
            expected = record.compute(sample)
            for begin, end in ((0, 1), (49, 50), (7, 8), (3, 20), (1, 50)):
                part = record.rows(sample, begin, end)
                rows = [result[begin:end] for result in record.by_row(expected)]
                for layout in ("last axis", "axis 0", "strided"):
                    what = f"{variant}, K={k}, rows {begin} to {end}, {layout}"
                    assert_same_results(record.by_row(compute_in(record, part, layout)), rows, what)


@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_rows_among_others_are_rows_alone(op, dtype, isa):
    """Kernels compute several rows together, or seek the next row's maximum early; rows of every kind among them."""
    for k in (1, 2, 10, 16, 17, 40, 300, 1025, 2049, 5003):
        x = unlike_rows(69, k, dtype, seed=k)
        for t in (1.0, 0.7):
            alone = [op.function()(x[i : i + 1], temperature=t) for i in range(len(x))]
            for got in (op.function()(x, temperature=t, num_threads=1), op.function()(x, temperature=t)):
                assert_same_bits(got, np.concatenate(alone), f"K={k} T={t}")
            if op.has_out and op.keeps_axis:
                in_place = x.copy()
                op.function()(in_place, temperature=t, out=in_place)
                assert_same_bits(in_place, np.concatenate(alone), f"K={k} T={t} in place")


@every_record("reproducibility")
@looped("dtype", DTYPES)
def test_alignment(record, dtype):
    """Check every byte offset from 0 to 63, odd ones included."""
    for k in (1, 13, 33, 260):
        sample = record.sample((3, k), dtype, k)
        expected = record.compute(sample)
        for offset in range(0, 64, 1 if k == 33 else 7):
            arrays = {}
            for i, (name, a) in enumerate(sample.arrays.items()):
                memory = np.zeros(a.nbytes + 128, np.uint8)
                begin = -memory.ctypes.data % 64 + (offset if i == 0 else offset * 7 % 64)
                arrays[name] = memory[begin : begin + a.nbytes].view(a.dtype).reshape(a.shape)
                arrays[name][...] = a
            got = record.compute(Sample(arrays, sample.options))
            assert_same_results(got, expected, f"K={k}, offset {offset}")


@every_record("reproducibility")
@looped("dtype", DTYPES)
def test_repeated_calls(record, dtype):
    sample = record.sample((30, 777), dtype)
    expected = record.compute(sample)
    for _ in range(20):
        assert_same_results(record.compute(sample), expected)


def test_dtypes_are_all_here():
    assert set(DTYPES) == set(binding.DTYPES)
    assert [op.name for op in SOFTMAX_FAMILY] == list(binding.OPS)
