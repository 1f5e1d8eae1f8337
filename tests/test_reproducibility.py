"""The same bits for every instruction set, thread count, batch, row position, alignment, stride and destination.

The reference of a case is the scalar unit, serial, on a C-contiguous copy.
"""

import numpy as np
import pytest
from helpers import LAYOUTS, assert_same_bits, call
from ops import DTYPES, FORWARD, OPS, SIZES, dtype_of, logits, unlike_rows

import csoftmax
from csoftmax._cpu import binding

TEMPERATURES = (1.0, 0.3, 7.0, 0.0, np.inf, 1e-30, 1e30)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
_scalar = {}


def scalar(op, key, arrays, **options):
    """The scalar unit's result, computed once."""
    if (op.name, key) not in _scalar:
        before = binding.isa()
        binding.select_isa("scalar")
        try:
            _scalar[op.name, key] = op.function()(*arrays, num_threads=1, **options)
        finally:
            binding.select_isa(before)
    return _scalar[op.name, key]


def test_sizes_on_every_instruction_set(op, dtype, isa):
    for k in (*SIZES, 3 * 4096 + 1):
        arrays = op.make((max(1, min(5, 20_000 // k)), k), dtype, seed=k, sigma=8)
        assert_same_bits(op.function()(*arrays), scalar(op, (dtype, k), arrays), f"K={k}")


@layouts
def test_layouts_on_every_instruction_set(op, dtype, isa, layout):
    for rows, k in ((1, 9), (37, 20), (19, 131), (70, 40), (18, 4099)):
        arrays = op.make((rows, k), dtype, seed=k)
        assert_same_bits(call(op, arrays, layout), scalar(op, (dtype, "layout", k), arrays), f"K={k}")


@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_rows_among_others_are_rows_alone(op, dtype, isa):
    """Kernels compute several rows together, or seek the next row's maximum early; rows of every kind among them."""
    for k in (1, 2, 10, 16, 17, 40, 300, 1024, 1025, 2048, 2049, 5003):
        x = unlike_rows(69, k, dtype, seed=k)
        for t in (1.0, 0.7):
            alone = [op.function()(x[i : i + 1], temperature=t) for i in range(len(x))]
            for got in (op.function()(x, temperature=t, num_threads=1), op.function()(x, temperature=t)):
                assert_same_bits(got, np.concatenate(alone), f"K={k} T={t}")
            if op.has_out:
                in_place = x.copy()
                op.function()(in_place, temperature=t, out=in_place)
                assert_same_bits(in_place, np.concatenate(alone), f"K={k} T={t} in place")


def test_temperatures_on_every_instruction_set(op, dtype, isa):
    for t in TEMPERATURES:
        if op.inputs == 2 and not 0 < t < np.inf:
            continue
        for rows, k in ((9, 5), (5, 70), (3, 1000), (2, 4500)):
            arrays = op.make((rows, k), dtype, seed=k)
            expected = scalar(op, (dtype, "T", t, k), arrays, temperature=t)
            assert_same_bits(op.function()(*arrays, temperature=t), expected, f"T={t} K={k}")
            assert_same_bits(call(op, arrays, "axis 0", temperature=t), expected, f"T={t} K={k} axis 0")


@pytest.mark.parametrize("op", FORWARD, ids=lambda op: op.name)
def test_hard_ranges_on_every_instruction_set(op, dtype, isa):
    """Large offsets, subnormal results, subnormal inputs, masks, extreme gaps."""
    offsets = (0, 1e4) if dtype == "float16" else (0, 9e5, -2e6, 1e30)
    for sigma in (1e-40, 1, 60, 300):
        for offset in offsets:
            x = logits((6, 150), dtype, seed=3, sigma=sigma, offset=offset)
            x[1, ::4] = -np.inf
            x[2, :] = x[2, 0]
            expected = scalar(op, (dtype, "hard", sigma, offset), [x])
            assert_same_bits(op.function()(x), expected, f"sigma={sigma} offset={offset}")
            assert_same_bits(call(op, [x], "axis 0"), expected, f"sigma={sigma} offset={offset} axis 0")
            mask = np.arange(150) % 5 > 0
            expected = scalar(op, (dtype, "mask", sigma, offset), [x], where=mask)
            assert_same_bits(op.function()(x, where=mask), expected)


def test_every_half_number_on_every_instruction_set(isa):
    """All 65,536 bit patterns of float16 and bfloat16 through load and store: each as a row with 0."""
    for name in ("float16", "bfloat16"):
        every = np.arange(65536, dtype=np.uint16).view(dtype_of(name))
        x = np.stack([every, np.zeros_like(every)], axis=1)
        for op in FORWARD:
            assert_same_bits(op.function()(x), scalar(op, (name, "every"), [x]))
            assert_same_bits(call(op, [x], "axis 0"), scalar(op, (name, "every"), [x]))


# Threads


def test_thread_counts(op, dtype, seven_threads):
    for rows, k in ((700, 101), (40, 4096), (12, 10007), (3, 70001), (64, 1000), (5000, 7)):
        arrays = op.make((rows, k), dtype, seed=k)
        expected = op.function()(*arrays, num_threads=1)
        for threads in (2, 3, 7):
            assert_same_bits(op.function()(*arrays, num_threads=threads), expected, f"{threads} threads, K={k}")


@layouts
def test_thread_counts_and_layouts(op, layout, seven_threads):
    for rows, k in ((700, 101), (9, 9001)):
        arrays = op.make((rows, k), "float32", seed=k)
        expected = op.function()(*arrays, num_threads=1)
        for threads in (2, 7):
            assert_same_bits(call(op, arrays, layout, num_threads=threads), expected, f"{threads} threads, K={k}")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_few_long_rows_are_split(op, dtype, seven_threads):
    """One row over several threads, ordinary and transformed, in and out of place."""
    for k in (1 << 20, 3_000_001):
        arrays = op.make((1, k), dtype, seed=1)
        for t in (1.0, 0.5, 1e-30):
            expected = op.function()(*arrays, temperature=t, num_threads=1)
            for threads in (2, 7):
                got = op.function()(*arrays, temperature=t, num_threads=threads)
                assert_same_bits(got, expected, f"{threads} threads, T={t}")
        if op.has_out:
            expected = op.function()(*arrays)
            target = arrays[0].copy()
            op.function()(target, *arrays[1:], out=target, num_threads=7)
            assert_same_bits(target, expected)


# Batches and places


def test_batch_splits(op, dtype):
    """A row has the same bits alone, in any batch, at any position."""
    for k in (1, 3, 16, 17, 100, 1000, 4100):
        arrays = op.make((50, k), dtype, seed=k)
        expected = op.function()(*arrays)
        for begin, end in ((0, 1), (49, 50), (7, 8), (3, 20), (1, 50)):
            part = [a[begin:end] for a in arrays]
            assert_same_bits(op.function()(*part), expected[begin:end])
            for layout in ("axis 0", "strided"):
                assert_same_bits(call(op, part, layout), expected[begin:end], layout)
        order = np.random.default_rng(k).permutation(50)
        assert_same_bits(op.function()(*(a[order] for a in arrays)), expected[order])
        one = op.function()(*(a[5] for a in arrays))
        assert_same_bits(np.asarray(one), np.asarray(expected[5]))


def test_alignment_of_input_and_output(op, dtype):
    """Every byte offset from 0 to 63, odd ones included."""
    for k in (1, 13, 33, 100, 260):
        arrays = op.make((3, k), dtype, seed=k)
        expected = op.function()(*arrays)
        size = arrays[0].nbytes
        for offset in range(64):
            views = []
            for i, a in enumerate(arrays):
                memory = np.zeros(size + 128, np.uint8)
                begin = -memory.ctypes.data % 64 + (offset if i == 0 else offset * 7 % 64)
                views.append(memory[begin : begin + size].view(a.dtype).reshape(a.shape))
                views[-1][...] = a
            assert_same_bits(op.function()(*views), expected, f"offset {offset}")
            if op.has_out:
                memory = np.zeros(expected.nbytes + 128, np.uint8)
                out = memory[63 - offset : 63 - offset + expected.nbytes].view(expected.dtype).reshape(expected.shape)
                op.function()(*arrays, out=out)
                assert_same_bits(out, expected, f"offset of out {63 - offset}")


@layouts
def test_in_place(op, dtype, layout):
    if not op.has_out:
        pytest.skip("the result has another shape")
    for rows, k in ((3, 2), (40, 30), (17, 200), (2, 5000), (9, 4097)):
        arrays = op.make((rows, k), dtype, seed=k)
        expected = op.function()(*arrays)
        for which in range(op.inputs):
            views = [LAYOUTS[layout](a.copy()) for a in arrays]
            target = views[which][0]
            result = op.function()(*(v for v, _ in views), axis=views[0][1], out=target)
            assert result is target
            if layout == "3-d middle":
                target = target[0]
            assert_same_bits(target.T if "axis 0" in layout or layout == "3-d middle" else target, expected, f"K={k}")


def test_every_layout_of_the_destination(op, dtype):
    if not op.has_out:
        pytest.skip("no out")
    for rows, k in ((5, 9), (33, 70), (9, 4200)):
        arrays = op.make((rows, k), dtype, seed=k)
        expected = op.function()(*arrays)
        for name, layout in LAYOUTS.items():
            if name == "3-d middle":
                continue
            target, axis = layout(np.zeros((rows, k), dtype_of(dtype)))
            views = [a if axis != 0 else a.T for a in arrays]
            op.function()(*views, axis=axis, out=target)
            assert_same_bits(target.T if axis == 0 else target, expected, name)


def test_repeated_calls(op, dtype):
    arrays = op.make((30, 777), dtype)
    expected = op.function()(*arrays)
    for _ in range(20):
        assert_same_bits(op.function()(*arrays), expected)


def test_the_isa_can_be_forced_and_is_the_one_used(isa):
    assert binding.isa() == isa
    assert csoftmax.show_config("dicts")["isa"]["used"] == isa


def test_dtypes_are_all_here():
    assert set(DTYPES) == set(binding.DTYPES)
    assert len(OPS) == len(binding.OPS)
