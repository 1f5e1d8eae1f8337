"""Temperatures of rows: each row has the bits that it has alone with its temperature."""

import numpy as np
import pytest
from helpers import assert_same_bits, looped

import csoftmax

RNG = np.random.default_rng(0)
TEMPERATURES = np.array([1.0, 0.5, 0.5, 3.0, 1e-3, 1e70, 1e-200, 7.25, 1.0, 1e300])
ml_dtypes = pytest.importorskip("ml_dtypes")
DTYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)


def functions():
    """Functions of (x, axis, temperature, where), x being dy in gradients."""

    def forward(name):
        return lambda x, axis, t, where: getattr(csoftmax, name)(x, axis, temperature=t, where=where)

    def backward(name):
        vjp = getattr(csoftmax, f"{name}_vjp")
        return lambda x, axis, t, where: vjp(x, getattr(csoftmax, name)(x[::-1].copy(), axis), axis, temperature=t)

    yield from ((name, forward(name), TEMPERATURES) for name in ("softmax", "log_softmax", "logsumexp"))
    yield (
        "limits",
        forward("softmax"),
        np.where(TEMPERATURES == 0.5, 0, np.where(TEMPERATURES > 100, np.inf, TEMPERATURES)),
    )
    yield from ((name, backward(name), TEMPERATURES) for name in ("softmax", "log_softmax"))


def rows_alone(function, x, axis, t, where):
    """The result row by row: calls of one row with a number as their temperature."""
    x, rows = np.moveaxis(x, axis, -1), len(t)
    mask = None if where is None else np.moveaxis(where, axis, -1)
    parts = [function(x[i : i + 1], -1, float(t[i]), None if mask is None else mask[i : i + 1]) for i in range(rows)]
    return np.concatenate(parts)


@looped("dtype", DTYPES)
def test_rows_have_the_bits_that_they_have_alone(dtype):
    for name, function, t in functions():
        for n in (1, 3, 17, 300, 1025, 5000):
            x = (RNG.standard_normal((len(t), n)) * 3).astype(dtype)
            if name.endswith("softmax") and "vjp" not in name:
                x[3, 0], x[8, -1] = np.nan, np.inf
            if "vjp" in function.__code__.co_freevars:  # y of a row must be that of the row alone
                y = csoftmax.softmax(x, -1) if name == "softmax" else csoftmax.log_softmax(x, -1)
                vjp = getattr(csoftmax, f"{name}_vjp")
                got = vjp(x, y, temperature=t[:, None])
                expected = np.concatenate(
                    [vjp(x[i : i + 1], y[i : i + 1], temperature=float(t[i])) for i in range(len(t))]
                )
                assert_same_bits(got, expected)
                turned = vjp(np.asfortranarray(x), y, temperature=t[:, None])
                assert_same_bits(turned, expected)
                continue
            mask = RNG.random(x.shape) < 0.7
            for where in (None, mask):
                expected = rows_alone(function, x, -1, t, where)
                for threads in (1, 3):
                    with csoftmax.threads(threads):
                        assert_same_bits(function(x, -1, t[:, None], where), expected)
                got = function(np.asfortranarray(x), -1, t[:, None], where)
                assert_same_bits(got, expected)
                got = function(x.T.copy(), 0, t[None], None if where is None else where.T)
                assert_same_bits(got.T if got.ndim == 2 else got, expected)
                wide = np.repeat(x, 2, axis=1)[:, ::2]
                assert_same_bits(function(wide, -1, t[:, None], where), expected)


def test_shapes_that_broadcast():
    x = RNG.standard_normal((2, 3, 4))
    t = RNG.random((2, 3)) + 0.5
    expected = np.stack([rows_alone(next(functions())[1], x[i], -1, t[i], None) for i in range(2)])
    assert_same_bits(csoftmax.softmax(x, temperature=t[..., None]), expected)
    for shape in ((1, 3, 1), (3, 1), (2, 1, 1), (1, 1, 1), (1,)):
        part = np.broadcast_to(RNG.random(shape) + 0.5, (2, 3, 1))
        expected = csoftmax.softmax(x, temperature=part.copy())
        assert_same_bits(csoftmax.softmax(x, temperature=part[tuple(slice(s) for s in (2, 3, 1))]), expected)
    assert_same_bits(csoftmax.softmax(x, temperature=np.full((1,), 2)), csoftmax.softmax(x, temperature=2.0))
    per_column = csoftmax.softmax(x, (0, 2), temperature=np.array([[[0.5], [1.0], [2.0]]]))
    for j, value in enumerate((0.5, 1.0, 2.0)):
        assert_same_bits(per_column[:, j], csoftmax.softmax(x[:, j], None, temperature=value))
    assert_same_bits(csoftmax.softmax(x, None, temperature=[[[2.0]]]), csoftmax.softmax(x, None, temperature=2.0))
    assert csoftmax.softmax(np.empty((0, 4)), temperature=np.empty((0, 1))).shape == (0, 4)
    out = x.copy()  # temperatures within the memory of the result
    assert_same_bits(
        csoftmax.softmax(out, temperature=abs(out[..., :1]) + 1, out=out),
        csoftmax.softmax(x, temperature=abs(x[..., :1]) + 1),
    )
    x[..., 0] = np.abs(x[..., 0]) + 0.5
    expected = csoftmax.softmax(x, temperature=x[..., :1].copy())
    assert_same_bits(csoftmax.softmax(x, temperature=x[..., :1], out=x), expected)


def test_few_long_rows_are_split():
    x = RNG.standard_normal((2, 3_000_000)).astype(np.float32)
    got = csoftmax.logsumexp(x, temperature=[[0.5], [2.0]], num_threads=2)
    assert got[0] == csoftmax.logsumexp(x[0], temperature=0.5)
    assert got[1] == csoftmax.logsumexp(x[1], temperature=2.0)


def test_errors_of_temperatures():
    x = np.ones((3, 4))
    before = x.copy()
    for t, error, message in (
        ([[1.0], [-1.0], [2.0]], ValueError, r"temperature must be at least 0, got -1\.0 at \(1, 0\)"),
        ([[1.0], [1.0], [np.nan]], ValueError, r"got nan at \(2, 0\)"),
        (np.ones(4), ValueError, r"temperature has shape \(4,\); allowed are a number and what broadcasts to \(3, 1\)"),
        (np.ones((3, 4)), ValueError, r"temperature has shape \(3, 4\)"),
        (np.ones((1, 3, 1)), ValueError, r"temperature has shape \(1, 3, 1\)"),
        ([["a"]], TypeError, "temperature must hold real numbers"),
        ([[True]], TypeError, "temperature must hold real numbers"),
        (None, TypeError, "temperature"),
        ("1", TypeError, "temperature"),
    ):
        with pytest.raises(error, match=message):
            csoftmax.softmax(x, temperature=t, out=x)
    with pytest.raises(ValueError, match=r"temperature must be positive and finite, got inf at \(0, 0\)"):
        csoftmax.softmax_vjp(x, x, temperature=[[np.inf], [0.0], [1.0]])
    np.testing.assert_array_equal(x, before)
