"""The sink of softmax, log_softmax and logsumexp: the bits of the same rows with one more element."""

import numpy as np
import pytest
from helpers import assert_same_bits, looped

import csoftmax

FUNCTIONS = (csoftmax.softmax, csoftmax.log_softmax, csoftmax.logsumexp)


def with_column(x, sink):
    return np.concatenate([x, np.broadcast_to(np.asarray(sink, x.dtype), (*x.shape[:-1], 1))], -1)


@looped("n", (0, 1, 15, 16, 100, 4096, 5000))
def test_bits_of_rows_with_one_more_element(n):
    for dtype in (np.float32, np.float64, np.float16):
        x = (np.random.default_rng(n).normal(size=(3, n)) * 4).astype(dtype)
        mask = np.random.default_rng(n + 1).random((3, n)) < 0.5
        for sink in (0.0, np.array([[-3.0], [2.5], [40.0]])):
            for options in ({}, {"temperature": 0.3}, {"temperature": np.array([[1.0], [2.0], [0.0]])}):
                for where in (None, mask):
                    more = None if where is None else with_column(where, True)
                    full = [f(with_column(x, sink), where=more, **options) for f in FUNCTIONS]
                    got = [f(x, sink=sink, where=where, **options) for f in FUNCTIONS]
                    assert_same_bits(got[0], full[0][:, :n])
                    assert_same_bits(got[1], full[1][:, :n])
                    assert_same_bits(got[2], full[2])


def test_rows_with_nothing_left():
    mask = np.zeros((2, 3), bool)
    x = np.full((2, 3), np.nan)
    assert np.all(csoftmax.softmax(x, where=mask, sink=2.0) == 0)
    assert np.all(csoftmax.logsumexp(x, where=mask, sink=2.0, temperature=4.0) == 0.5)
    assert np.all(csoftmax.softmax(np.full((2, 3), -np.inf), sink=1.0) == 0)
    assert np.isnan(csoftmax.softmax(np.zeros(3), sink=np.nan)).all()


def test_axes_out_and_scalars():
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    sink = np.random.default_rng(1).normal(size=(1, 4, 1))
    joined = np.moveaxis(x, 1, 0).reshape(4, 15)
    expected = csoftmax.softmax(joined, sink=sink.reshape(4, 1)).reshape(4, 3, 5)
    got = csoftmax.softmax(x, axis=(0, 2), sink=sink)
    assert_same_bits(np.moveaxis(got, 1, 0).copy(), expected)
    out = x.copy()
    assert csoftmax.softmax(out, axis=(0, 2), sink=sink, out=out) is out
    assert_same_bits(out, got)
    lse = csoftmax.logsumexp(x, axis=(0, 2), sink=sink, keepdims=True, out=(to := np.empty((1, 4, 1))))
    assert lse is to
    assert_same_bits(lse.reshape(4), csoftmax.logsumexp(joined, sink=sink.reshape(4, 1)))
    assert csoftmax.softmax(3.0, sink=3.0) == 0.5
    assert csoftmax.logsumexp(0.0, sink=0.0) == np.log(2)
    out = np.empty(4)
    assert csoftmax.logsumexp(x, axis=(0, 2), out=out) is out
    assert_same_bits(out, csoftmax.logsumexp(x, axis=(0, 2)))


def test_what_is_refused():
    x = np.zeros((3, 4))
    for function in FUNCTIONS:
        with pytest.raises(ValueError, match=r"sink has shape \(4,\); allowed are a number and .*\(3, 1\)"):
            function(x, sink=np.zeros(4))
        with pytest.raises(TypeError, match="sink must hold real numbers"):
            function(x, sink="a")
        with pytest.raises(TypeError, match="sink must hold real numbers"):
            function(x, sink=True)
        with pytest.raises(ValueError, match="temperature has shape"):
            function(x, sink=0.0, temperature=np.ones(4))
        with pytest.raises(ValueError, match="out has shape"):
            function(x, sink=0.0, out=np.empty((7, 7)))
