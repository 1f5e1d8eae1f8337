"""penalize: against its formula, biases of every form, padding, aliasing; what its record does not cover."""

import itertools

import numpy as np
import pytest

import csoftmax
from csoftmax._spec.formats import dtype_of
from csoftmax._spec.samples import logits


def by_formula(x, tokens, lengths=None, repetition=1.0, presence=0.0, frequency=0.0, bias=0.0):
    """Return the new logits of rows, one element after the other."""
    y = x.astype(np.float64)
    for row in range(len(x)):
        counts = {}
        for token in tokens[row][: None if lengths is None else lengths[row]]:
            counts[int(token)] = counts.get(int(token), 0) + 1
        for token, count in counts.items():
            if 0 <= token < x.shape[1]:
                value = y[row, token]
                value = value / repetition if value > 0 else value * repetition
                y[row, token] = value - presence - frequency * count
    return (y + bias).astype(x.dtype)


def test_every_option(dtype):
    rng = np.random.default_rng(0)
    for k, n in itertools.product((1, 2, 9, 300, 9000), (0, 1, 5, 700)):
        x = logits((3, k), dtype, seed=k)
        tokens = rng.integers(-3, k + 3, (3, n))
        lengths = rng.integers(0, n + 1, 3)
        for options in (
            {},
            {"repetition": 1.5},
            {"repetition": 0.5, "presence": -0.25},
            {"frequency": 0.125, "lengths": lengths},
            {"repetition": 2.0, "presence": 0.5, "frequency": 0.25, "bias": rng.integers(-8, 8, k) / 4},
            {"presence": 1.0, "bias": rng.integers(-8, 8, (3, k)) / 4},
        ):
            expected = by_formula(x, tokens, **options)
            got = csoftmax.penalize(x, tokens, **options)
            assert got.dtype == x.dtype
            if dtype in ("float32", "float64"):
                assert np.array_equal(got, expected), (k, n, options)
            else:  # by way of float
                assert np.allclose(got.astype(float), expected.astype(float), rtol=1e-2)
            untouched = x.copy()
            assert csoftmax.penalize(untouched, tokens, out=untouched, **options) is untouched
            assert np.array_equal(untouched, got)


def test_forms_of_bias():
    x = logits((2, 3, 10), "float64")
    tokens = np.arange(12).reshape(2, 3, 2)
    dense = np.zeros(10)
    dense[[2, 7]] = 1.5, -np.inf
    expected = csoftmax.penalize(x, tokens, presence=1.0, bias=dense)
    for bias in ({2: 1.5, 7: -np.inf}, {np.int8(7): -np.inf, 2: np.float32(1.5)}, np.broadcast_to(dense, x.shape)):
        assert np.array_equal(csoftmax.penalize(x, tokens, presence=1.0, bias=bias), expected)
    assert np.array_equal(csoftmax.penalize(x, [], bias=dense.tolist()), x + dense)
    assert np.all(csoftmax.softmax(expected)[..., 7] == 0)
    assert np.array_equal(
        csoftmax.penalize(x, tokens, presence=1.0, bias={}), csoftmax.penalize(x, tokens, presence=1.0)
    )
    moved = csoftmax.penalize(
        np.moveaxis(x, -1, 0), tokens, presence=1.0, bias=np.moveaxis(np.broadcast_to(dense, x.shape), -1, 0), axis=0
    )
    assert np.array_equal(np.moveaxis(moved, 0, -1), expected)
    flat = csoftmax.penalize(x, [2, 59], axis=None, frequency=1.0, bias={59: 3.0})
    changed = x.reshape(-1).copy()
    changed[2] -= 1
    changed[59] += 2
    assert np.array_equal(flat.reshape(-1), changed)
    with pytest.raises(IndexError, match="bias has the key 10, and the classes are those from 0 to 9"):
        csoftmax.penalize(x, tokens, bias={10: 1})


def test_rounding_is_that_of_one_operation():
    """All steps are in double: float32 results are the exact ones, rounded once."""
    x = logits((1, 1000), "float32")
    tokens = np.arange(1000)[None]
    bias = logits((1000,), "float32", seed=3)
    got = csoftmax.penalize(x, tokens, repetition=1.1, presence=0.3, bias=bias)
    wide = x.astype(np.float64)
    wide = np.where(wide > 0, wide / 1.1, wide * 1.1) - 0.3 + bias
    assert np.array_equal(got, wide.astype(np.float32))


def test_special_values_and_padding():
    x = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0]])
    got = csoftmax.penalize(x, [[0, 1, 2, 3, 4, 5, 6, -1, 2**40, -(2**63)]], repetition=2.0, presence=1.0)
    assert np.array_equal(got, [[np.nan, np.inf, -np.inf, -1, -1, -0.5]], equal_nan=True)
    for kind in ("int8", "uint8", "int32", "uint64", ">i4"):
        tokens = np.array([[1, 5, 5]], kind)
        assert csoftmax.penalize(x, tokens, frequency=0.5)[0, 5] == 0
    beyond = np.array([[2**64 - 1, 2**63, 5]], np.uint64)
    assert csoftmax.penalize(x, beyond, presence=1.0)[0].tolist()[3:] == [0, 0, 0]
    same = csoftmax.penalize(x, [[-1]], repetition=3.0)
    assert same.tobytes() == x.tobytes()
    assert csoftmax.penalize([1, 2], [0], presence=1).tolist() == [0.0, 2.0]


def test_shapes():
    for shape in ((0, 5), (3, 0), (2, 0, 4)):
        assert csoftmax.penalize(np.zeros(shape), np.zeros((*shape[:-1], 3), int), presence=1.0).shape == shape
    assert csoftmax.penalize(np.float32(2), [0, 0], frequency=0.5) == 1
    x = logits((2, 3, 7), "float32")
    shared = csoftmax.penalize(x, [1, 2], presence=[[1.0], [2.0]])
    each = csoftmax.penalize(x, np.broadcast_to([1, 2], (2, 3, 2)), presence=np.broadcast_to([[1.0], [2.0]], (2, 3)))
    assert np.array_equal(shared, each)
    with pytest.raises(ValueError, match=r"tokens have shape \(2, 4\)"):
        csoftmax.penalize(x, np.zeros((2, 4), int))
    with pytest.raises(ValueError, match="tokens cannot be made an array of numbers"):
        csoftmax.penalize(x[0], [[1, 2], [3], []])


def test_arguments_within_the_result():
    """Tokens and biases that lie in the memory of out are read before it is written."""
    memory = np.zeros(40, np.int64)
    tokens, out = memory[:8].reshape(2, 4), memory.view(np.float64)[:20].reshape(2, 10)
    tokens[...] = [[0, 1, 2, 3], [4, 5, 6, 7]]
    x = logits((2, 10), "float64")
    expected = csoftmax.penalize(x, tokens.copy(), presence=1.0)
    assert np.array_equal(csoftmax.penalize(x, tokens, presence=1.0, out=out), expected)
    y = x.copy()
    assert np.array_equal(csoftmax.penalize(y, [0], bias=y, out=y), csoftmax.penalize(x, [0], bias=x))
    y = np.append(x[0], x[1])
    expected = csoftmax.penalize(y[5:15], [3], presence=1.0)
    assert np.array_equal(csoftmax.penalize(y[5:15], [3], presence=1.0, out=y[2:12]), expected)


def test_threads_and_lengths(seven_threads):
    x = logits((40, 20_000), "float32")
    tokens = np.random.default_rng(0).integers(0, 20_000, (40, 3000))
    lengths = np.arange(40) * 75
    expected = by_formula(x, tokens, lengths, 1.25, 0.5, 0.125)
    for threads in (1, 7):
        got = csoftmax.penalize(
            x, tokens, lengths=lengths, repetition=1.25, presence=0.5, frequency=0.125, num_threads=threads
        )
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_types_of_bias(kind):
    x = logits((1, 5), "float32")
    bias = np.array([1, 2, 0.5, 0, -1]).astype(dtype_of(kind))
    assert np.array_equal(csoftmax.penalize(x, [[-1]], bias=bias), x + bias.astype(np.float32))
