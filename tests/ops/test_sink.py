"""The sink of softmax, log_softmax and logsumexp: the bits of the same rows with one more element."""

import re

import numpy as np
import pytest
from helpers import assert_same_bits, looped

import csoftmax
from csoftmax._arguments import layouts

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
        for dtype, sink, largest in (("f2", 70000.0, "65504"), ("f2", -1e6, "65504"), ("f4", 1e39, "3.40282e+38")):
            message = (
                rf"sink must be at most {re.escape(largest)} in size, the largest \w+, .* got {re.escape(str(sink))}"
            )
            for given in (sink, [[0.0], [np.inf], [sink]]):
                with pytest.raises(ValueError, match=message):
                    function(x.astype(dtype), sink=given)
        with pytest.raises(ValueError, match="temperature has shape"):
            function(x, sink=0.0, temperature=np.ones(4))
        with pytest.raises(ValueError, match="out has shape"):
            function(x, sink=0.0, out=np.empty((7, 7)))


def test_pieces():
    """Each element once, in C order; of as many elements as allowed, unless a piece would not be a slice."""
    for shape in ((), (0,), (5,), (4, 3), (2, 3, 5), (3, 0, 4), (1, 60), (60, 1)):
        whole = np.arange(np.prod(shape, dtype=int)).reshape(shape)
        parts = [whole[at].ravel() for at in layouts.pieces(shape)]
        np.testing.assert_array_equal(np.concatenate(parts), whole.ravel())
        assert len(parts) == 1


def test_long_rows_are_prepared_in_pieces(monkeypatch):
    """Sinks, factors and soft labels of entmax_loss at alpha = 1: the same results, and signals are seen in between."""
    rng = np.random.default_rng(3)
    x, b, q = rng.normal(size=(3, 4, 50)), rng.normal(size=(3, 1, 50)), rng.random((3, 4, 50))
    q /= q.sum(-1, keepdims=True)
    mask, weight, target = rng.random(x.shape) < 0.7, rng.random(50), 2 * q
    calls = {
        "sink": lambda: csoftmax.softmax(x, axis=1, sink=1.0, where=mask),
        "sink of two axes": lambda: csoftmax.log_softmax(x.astype(np.float16), axis=(0, 2), sink=1.0),
        "b": lambda: csoftmax.logsumexp(x, b=b, sink=0.5),
        "loss": lambda: csoftmax.entmax_loss(x, q, 1.0, reduction="none", weight=weight),
        "grad": lambda: csoftmax.entmax_loss_with_grad(x, target, 1.0, sample_weight=rng.random(4)).grad,
        "axis": lambda: csoftmax.entmax_loss_with_grad(x, target, 1.0, axis=(0, 1), weight=np.arange(12.0)).grad,
        "one row": lambda: csoftmax.entmax_loss_with_grad(x[0, 0], target[0, 0], 1.0, reduction="sum").grad,
    }
    rng = np.random.default_rng(4)
    expected = {name: call() for name, call in calls.items()}
    for limit in (1, 7, 64):
        given = []

        def pieces(shape, of=layouts.pieces, given=given):
            for at in of(shape):
                given.append(np.empty(shape, bool)[at].size)
                yield at

        monkeypatch.setattr(layouts, "_PIECE", limit)
        monkeypatch.setattr(layouts, "pieces", pieces)
        rng = np.random.default_rng(4)
        for name, call in calls.items():
            np.testing.assert_allclose(call(), expected[name], rtol=1e-13, atol=1e-16, err_msg=name)
        assert max(given) == limit
        monkeypatch.undo()
    monkeypatch.setattr(layouts, "_PIECE", 7)
    target[2, 3, 49] = -1
    with pytest.raises(ValueError, match=r"soft labels must be at least 0 and finite; .* has -1.0 at \(2, 3, 49\)"):
        csoftmax.entmax_loss(x, target, 1.0)
