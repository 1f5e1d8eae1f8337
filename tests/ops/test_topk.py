"""topk, topk_softmax and to_csr: against a stable sort, bit for bit; layouts, pieces, ties, NaN, errors."""

import numpy as np
import pytest
from helpers import assert_same_bits, looped, run_python
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import csoftmax
from csoftmax._spec.formats import NAN_BITS, bits, dtype_of
from csoftmax._spec.samples import logits
from csoftmax._spec.topk import stable_topk


def check(x, k, largest=True, **options):
    values, index = stable_topk(x, k, largest)
    got = csoftmax.topk(x, k, largest=largest, **options)
    what = f"n = {x.shape[-1]}, k = {k}, {x.dtype}, largest={largest}, {options}"
    assert got.indices.dtype == np.int64
    assert np.array_equal(got.indices, index), what
    canonical = values.copy()
    canonical.view(bits(values).dtype)[np.isnan(values.astype(np.float64))] = NAN_BITS[x.dtype.name]
    assert_same_bits(got.values, canonical, what)
    loose = csoftmax.topk(x, k, largest=largest, sorted=False, **options)
    assert np.array_equal(np.sort(loose.indices), np.sort(index)), what


@pytest.mark.parametrize("largest", [True, False])
def test_nan_is_written_in_its_canonical_bits(dtype, largest):
    kind = dtype_of(dtype)
    x = np.zeros((3, 40), kind)
    x[1:, ::3] = np.nan
    pattern = bits(x)
    pattern[1:, ::3] |= (1 << (8 * kind.itemsize - 1)) | 1  # negative, with a payload
    for k in (1, 14, 40):
        check(pattern.view(kind), k, largest=largest)


SIZES = (1, 2, 3, 16, 63, 65, 127, 128, 130, 1000, 4097)


def inputs(n, dtype, seed=0):
    """Name and rows; two of each, so that the second does not begin aligned."""
    rng = np.random.default_rng(seed + n)
    x = rng.standard_normal((2, n))
    yield "normal", x
    yield "ascending", np.sort(x)
    yield "descending", -np.sort(-x)
    yield "constant", np.ones((2, n))
    yield "ties", np.round(x)
    yield "zeros of both signs", rng.choice([0.0, -0.0], size=x.shape)
    for part in (0.02, 0.5, 1.0):
        yield f"NaN {part}", np.where(rng.random(x.shape) < part, np.nan, x)
        yield f"-inf {part}", np.where(rng.random(x.shape) < part, -np.inf, x)
        yield f"+inf {part}", np.where(rng.random(x.shape) < part, np.inf, x)
    mixed = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], size=x.shape)
    yield "specials", mixed
    yield "saw", np.tile(x[:, : n // 50 + 1], (1, 50))[:, :n]
    tiny = {"float16": 6e-8, "float64": 5e-324}.get(dtype, 1e-40)
    yield "subnormal", rng.integers(-3, 4, x.shape) * tiny


@looped("n", SIZES)
def test_stable_sort(n, dtype, isa):
    for name, x in inputs(n, dtype):
        x = x.astype(dtype_of(dtype))
        for k in sorted({1, 2, 5, 16, 17, 50, n // 24, n // 23, n // 2, n - 1, n} & set(range(1, n + 1))):
            for largest in (True, False):
                try:
                    check(x, k, largest)
                except AssertionError as e:
                    raise AssertionError(f"{name}: {e}") from None


def test_every_place(dtype):
    """One special element at every index of a row of a group of blocks and a tail."""
    x = np.tile((np.arange(140) % 7 / 8).astype(dtype_of(dtype)), (140, 1))
    for value in (np.nan, np.inf, -np.inf, 9.0, -9.0):
        np.fill_diagonal(x, value)
        for largest in (True, False):
            check(x, 3, largest)
            check(x, 100, largest)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=40), elements=st.floats(width=32)),
    st.data(),
)
@settings(max_examples=150, deadline=None)
def test_any_shape_and_axis(x, data):
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    n = x.shape[axis]
    k = data.draw(st.integers(0, n))
    got = csoftmax.topk(x, k, axis=axis)
    values, index = stable_topk(np.moveaxis(x, axis, -1), k)
    assert np.array_equal(np.moveaxis(got.indices, axis, -1), index)
    assert np.array_equal(np.moveaxis(got.values, axis, -1), values, equal_nan=True)


def test_axes():
    x = logits((3, 4, 5), "float64")
    flat = csoftmax.topk(x, 7, axis=None)
    assert np.array_equal(flat.indices, stable_topk(x.ravel(), 7)[1])
    pair = csoftmax.topk(x, 6, axis=(2, 0))
    assert pair.values.shape == (4, 6)
    assert np.array_equal(pair.indices, stable_topk(x.transpose(1, 2, 0).reshape(4, 15), 6)[1])
    middle = csoftmax.topk(x, 2, axis=1)
    assert middle.values.shape == middle.indices.shape == (3, 2, 5)
    scalar = csoftmax.topk(np.float32(3), 1)
    assert scalar.values.tolist() == [3.0]
    assert csoftmax.topk(np.zeros((3, 0)), 0).values.shape == (3, 0)
    assert csoftmax.topk(np.zeros((0, 5)), 2).indices.shape == (0, 2)
    assert csoftmax.topk(x, 0).values.shape == (3, 4, 0)
    swapped = x.astype(">f8")
    assert np.array_equal(csoftmax.topk(swapped, 3).indices, csoftmax.topk(x, 3).indices)


@pytest.mark.parametrize(
    "n", [70_000, *(pytest.param(n, marks=pytest.mark.slow) for n in ((1 << 20) + 5, (1 << 21) + 77))]
)
def test_pieces_of_long_rows(n, seven_threads):
    """Few rows, and rows longer than a piece, are cut: sorted rows, ties and NaN over the cuts, any threads."""
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    for y in (np.stack([x, -x]), np.sort(x), np.round(4 * x), np.where(x > 1, np.nan, x)[::-1]):
        values, index = stable_topk(y, 2000)
        for k in (1, 100, 2000):
            for threads in (1, 2, 7):
                got = csoftmax.topk(y, k, num_threads=threads)
                assert np.array_equal(got.indices, index[..., :k])
                assert np.array_equal(got.values, values[..., :k], equal_nan=True)
    check(x, 100, False, num_threads=7)


def test_dense_long_rows(seven_threads):
    x = logits((1, 400_000), "float32")
    for k in (20_000, 200_000, 400_000):
        check(x, k, num_threads=7)


def test_more_than_int32_elements():
    """Broadcast, so that it needs no memory; the last element is found in the last piece."""
    x = np.lib.stride_tricks.as_strided(np.zeros(1, np.float16), ((1 << 31) + 9,), (0,))
    got = csoftmax.topk(x, 3)
    assert got.indices.tolist() == [0, 1, 2]
    got = csoftmax.topk(x, 3, largest=False)
    assert got.indices.tolist() == [0, 1, 2]


# Integers

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def integer_rows(n, dtype):
    """Rows whose elements differ by less than float64 can tell, the ends of the type, sorted rows, ties."""
    rng = np.random.default_rng(n)
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    spread = rng.integers(low, high, (2, n), dtype, endpoint=True)
    return [
        spread,
        np.sort(spread),
        np.sort(spread)[:, ::-1],
        high - rng.integers(0, 50, (2, n), dtype),
        low + rng.integers(0, 50, (2, n), dtype),
        rng.choice(np.array([low, low + 1, high - 1, high], dtype), (2, n)),
        rng.integers(0, 9, (2, n), dtype),
        np.full((2, n), low, dtype),
        np.full((2, n), high, dtype),
    ]


@pytest.mark.parametrize("dtype", INTEGERS)
@looped("n", [1, 2, 3, 16, 63, 65, 128, 130, 1000, 4097])
def test_integers_are_compared_exactly(n, dtype, isa):
    for x in integer_rows(n, dtype):
        for k in sorted({0, 1, 2, 5, 17, n // 24, n // 2, n - 1, n} & set(range(n + 1))):
            for largest in (True, False):
                values, indices = stable_topk(x, k, largest)
                got = csoftmax.topk(x, k, largest=largest)
                assert got.values.dtype == dtype
                assert np.array_equal(got.values, values), (k, largest)
                assert np.array_equal(got.indices, indices), (k, largest)
                loose = csoftmax.topk(x, k, largest=largest, sorted=False)
                assert np.array_equal(np.sort(loose.indices), np.sort(indices)), (k, largest)
                assert np.array_equal(loose.values, np.take_along_axis(x, loose.indices, -1))


def test_integers_that_float64_cannot_tell_apart():
    assert csoftmax.topk([2**53, 2**53 + 1], 1).indices.tolist() == [1]
    assert csoftmax.topk(np.array([-(2**63), -(2**63) + 1]), 1, largest=False).values.tolist() == [-(2**63)]
    best = csoftmax.topk(np.array([2**64 - 2, 0, 2**64 - 1], np.uint64), 2)
    assert best.values.dtype == np.uint64
    assert best.values.tolist() == [2**64 - 1, 2**64 - 2]
    assert csoftmax.topk([3, 1, 2], 2).values.dtype == np.int64
    assert csoftmax.topk(5, 1).values.tolist() == [5]
    with pytest.raises(TypeError, match="x has dtype bool"):
        csoftmax.topk([True, False], 1)
    with pytest.raises(TypeError, match="x has dtype object"):
        csoftmax.topk([2**64, 1], 1)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_layouts_of_integers(dtype):
    x = integer_rows(300, dtype)[0]
    values, indices = stable_topk(x, 7)
    packed = np.zeros((2, 300), [("pad", "u1"), ("x", dtype)])
    packed["x"] = x
    odd = np.zeros((2, 601), dtype)[:, 1::2]
    odd[...] = x
    for y in (np.asfortranarray(x), x.astype(x.dtype.newbyteorder()), odd, packed["x"], x.copy()[::-1][::-1]):
        got = csoftmax.topk(y, 7)
        assert got.values.dtype == np.dtype(dtype)
        assert np.array_equal(got.values, values)
        assert np.array_equal(got.indices, indices)
    backwards = csoftmax.topk(x[:, ::-1], 7)
    assert np.array_equal(backwards.values, values)
    assert np.array_equal(csoftmax.topk(x.T, 7, axis=0).indices.T, indices)
    flat = csoftmax.topk(x, 9, axis=None)
    assert np.array_equal(flat.indices, stable_topk(x.ravel(), 9)[1])
    cube = np.stack([x[:, :40], x[:, 40:80]], 1)
    middle = csoftmax.topk(cube, 2, axis=1, largest=False)
    assert np.array_equal(np.moveaxis(middle.indices, 1, -1), stable_topk(np.moveaxis(cube, 1, -1), 2, False)[1])
    constant = csoftmax.topk(np.broadcast_to(x[0, 0], (3, 1000)), 3)
    assert constant.indices.tolist() == [[0, 1, 2]] * 3
    read_only = x.copy()
    read_only.flags.writeable = False
    assert np.array_equal(csoftmax.topk(read_only, 7).indices, indices)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint64"])
def test_pieces_of_long_rows_of_integers(dtype, seven_threads):
    x = integer_rows(300_000, dtype)
    for rows in x:
        values, indices = stable_topk(rows[:1], 500)
        for threads in (1, 7):
            got = csoftmax.topk(rows[:1], 500, num_threads=threads)
            assert np.array_equal(got.indices, indices)
            assert np.array_equal(got.values, values)


def test_other_functions_of_integers():
    """topk_softmax computes in float64; matrices keep integers."""
    x = np.array([[3, 9, 4], [2**60, 2**60 + 1, 0]], np.int64)
    got = csoftmax.topk_softmax(x, 2)
    assert_same_bits(got.values, csoftmax.topk_softmax(x.astype(np.float64), 2).values)
    matrix = csoftmax.to_csr(csoftmax.topk(x.astype(np.int16), 2), 3)
    assert matrix.dtype == np.int16


def test_torch_agrees_on_integers():
    torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra")
    x = np.random.default_rng(0).permuted(np.tile(2**62 + np.arange(3000), (20, 1)), axis=1)
    for k in (1, 5, 100, 3000):
        for largest in (True, False):
            theirs, ours = torch.topk(torch.from_numpy(x), k, largest=largest), csoftmax.topk(x, k, largest=largest)
            assert np.array_equal(theirs.values.numpy(), ours.values)
            assert np.array_equal(theirs.indices.numpy(), ours.indices)
    got = csoftmax.topk(torch.from_numpy(x), 5)
    assert got.values.dtype == torch.int64
    assert np.array_equal(got.values.numpy(), csoftmax.topk(x, 5).values)


def test_jax_arrays_of_integers():
    jnp = pytest.importorskip("jax.numpy", reason="JAX belongs to the bench extra")
    got = csoftmax.topk(jnp.asarray([3, 2**31 - 1, 2**31 - 2], jnp.int32), 2)
    assert got.values.dtype == jnp.int32
    assert got.values.tolist() == [2**31 - 1, 2**31 - 2]


# Top-k softmax


@looped("temperature", [1.0, 0.3, 7.0, 0.0, np.inf, 1e-300])
def test_topk_softmax(temperature, dtype, isa):
    rng = np.random.default_rng(5)
    for n, k in ((3, 2), (100, 5), (130, 130), (1000, 50), (5000, 3), (20_000, 64), (9000, 5000)):
        x = logits((3, n), dtype, sigma=3)
        masked = np.where(rng.random(x.shape) < 0.6, x.dtype.type(-np.inf), x)
        for y in (x, masked):
            best = csoftmax.topk(y, k)
            full = csoftmax.topk_softmax(y, k, temperature=temperature, normalize="full")
            renormalised = csoftmax.topk_softmax(y, k, temperature=temperature)
            assert np.array_equal(full.indices, best.indices)
            assert np.array_equal(renormalised.indices, best.indices)
            all_of_it = csoftmax.softmax(y, temperature=temperature)
            assert_same_bits(full.values, np.take_along_axis(all_of_it, best.indices, -1), f"{n} {k}")
            assert_same_bits(renormalised.values, csoftmax.softmax(best.values, temperature=temperature), f"{n} {k}")


def test_topk_softmax_of_exceptional_rows(dtype):
    x = logits((5, 700), dtype)
    x[0, 100], x[1, 5], x[2] = np.nan, np.inf, -np.inf
    x[3] *= {"float16": 1000, "float32": 1e30, "float64": 1e300, "bfloat16": 1e30}[dtype]
    for normalize in ("topk", "full"):
        got = csoftmax.topk_softmax(x, 4, normalize=normalize).values.astype(np.float64)
        assert np.isnan(got[:3]).all()
        assert np.isfinite(got[3:]).all()
    expected = np.take_along_axis(csoftmax.softmax(x), csoftmax.topk(x, 4).indices, -1)
    assert_same_bits(csoftmax.topk_softmax(x, 4, normalize="full").values, expected)


def test_topk_softmax_of_a_long_row_with_threads(seven_threads):
    x = logits((1, 300_000), "float32")
    expected = csoftmax.softmax(x)
    for threads in (1, 3, 7):
        got = csoftmax.topk_softmax(x, 9, normalize="full", num_threads=threads)
        assert_same_bits(got.values, np.take_along_axis(expected, got.indices, -1))


def test_topk_softmax_where():
    x = logits((4, 60), "float64")
    where = np.random.default_rng(0).random(x.shape) < 0.5
    where[1], where[2] = False, [True, True] + [False] * 58
    x[~where] = np.nan
    full = csoftmax.topk_softmax(x, 5, normalize="full", where=where)
    expected = csoftmax.softmax(x, where=where)
    assert_same_bits(full.values, np.take_along_axis(expected, full.indices, -1))
    kept = csoftmax.topk_softmax(x, 5, where=where)
    assert not kept.values[1].any()
    assert np.allclose(kept.values.sum(-1), [1, 0, 1, 1])
    assert set(kept.indices[2, :2]) == {0, 1}


def test_topk_softmax_out(dtype):
    x = logits((5, 40), dtype)
    expected = csoftmax.topk_softmax(x, 7)
    out = np.empty((7, 5), x.dtype).T, np.empty((5, 14), np.int64)[:, ::2]
    got = csoftmax.topk_softmax(x, 7, out=out)
    assert got.values is out[0]
    assert got.indices is out[1]
    assert_same_bits(out[0], expected.values)
    assert np.array_equal(out[1], expected.indices)
    y = x.copy()
    csoftmax.topk_softmax(y, 7, out=(y[:, :7], out[1]))  # over its own input
    assert_same_bits(y[:, :7], expected.values)
    swapped = out[0].astype(out[0].dtype.newbyteorder()), out[1].astype(">i8")
    csoftmax.topk_softmax(x, 7, out=swapped)
    assert_same_bits(swapped[0], expected.values)
    assert np.array_equal(swapped[1], expected.indices)
    both = np.empty((5, 14), np.int64)
    if x.dtype == np.float64:  # side by side in one array
        csoftmax.topk_softmax(x, 7, out=(both.view(np.float64)[:, ::2], both[:, 1::2]))
        assert np.array_equal(both[:, 1::2], expected.indices)
        with pytest.raises(ValueError, match="share memory"):
            csoftmax.topk_softmax(x, 7, out=(both.view(np.float64)[:, :7], both[:, 1:8]))
    for bad, error in (
        (out[0], TypeError),
        ((out[0], out[0]), TypeError),
        ((out[0][:4], out[1]), ValueError),
        ((out[0], out[1].astype(np.int32)), TypeError),
    ):
        with pytest.raises(error, match="out"):
            csoftmax.topk_softmax(x, 7, out=bad)


def test_more_than_a_float_counts(isa):
    """More equal elements than float32 can count, and one of the next value."""
    n = (1 << 24) + 3
    x = np.zeros(n + 100, np.float16)
    x[:n] = 1
    got = csoftmax.topk(x, n + 1, sorted=False)
    assert np.array_equal(np.sort(got.indices), np.arange(n + 1))


# to_csr


def test_to_csr(dtype):
    x = logits((2, 3, 50), dtype)
    for k in (0, 1, 7, 50):
        best = csoftmax.topk_softmax(x, k)
        matrix = csoftmax.to_csr(best, 50)
        assert matrix.shape == (6, 50)
        assert matrix.nnz == 6 * k
        again = matrix.copy()
        again.has_canonical_format = False
        again.has_sorted_indices = False
        again.sum_duplicates()
        assert np.array_equal(again.indices, matrix.indices)
        dense = np.zeros((2, 3, 50))
        np.put_along_axis(dense, best.indices, best.values.astype(np.float64), -1)
        assert np.array_equal(matrix.toarray().astype(np.float64), dense.reshape(6, 50))
        assert matrix.dtype == (np.float64 if dtype == "float64" else np.float32)
    single = csoftmax.to_csr(csoftmax.topk(np.array([1.0, 3.0, 2.0]), 2), 3)
    assert single.toarray().tolist() == [[0.0, 3.0, 2.0]]


# Errors, memory


def test_scipy_is_asked_for():
    done = run_python("""
import sys
sys.modules["scipy"] = None
import csoftmax
try:
    csoftmax.to_csr(csoftmax.topk([1.0, 2.0], 1), 2)
except ImportError as e:
    print(e)
""")
    assert done.stdout.strip() == "to_csr needs SciPy: pip install scipy"


def test_torch_agrees():
    """PyTorch gives the same where there are no ties, and the same values with ties and NaN."""
    torch = pytest.importorskip("torch", reason="PyTorch belongs to the bench extra")
    x = np.random.default_rng(0).permuted(np.tile(np.arange(3000, dtype=np.float32), (20, 1)), axis=1)
    for k in (1, 5, 100, 3000):
        for largest in (True, False):
            theirs = torch.topk(torch.from_numpy(x), k, largest=largest)
            ours = csoftmax.topk(x, k, largest=largest)
            assert np.array_equal(theirs.values.numpy(), ours.values)
            assert np.array_equal(theirs.indices.numpy(), ours.indices)
    x = x // 50
    x[:, ::50] = np.nan
    theirs = torch.topk(torch.from_numpy(x), 100)
    assert np.array_equal(theirs.values.numpy(), csoftmax.topk(x, 100).values, equal_nan=True)
    # the difference that the documentation lists: which of equal elements is taken is left open there
    assert not np.array_equal(theirs.indices.numpy(), csoftmax.topk(x, 100).indices)
