"""Frequencies of a stream: against the true ones, with collisions, wrong arguments."""

import numpy as np
import pytest

from csoftmax.samplers import StreamingFrequency


def stream(frequency, p, steps, seed=0, first=1):
    rng = np.random.default_rng(seed)
    for step in range(first, first + steps):
        frequency.update(np.flatnonzero(rng.random(len(p)) < p), step)


def test_estimates_are_near_the_probabilities():
    p = np.geomspace(0.9, 0.02, 30)
    frequency = StreamingFrequency(1000, alpha=0.01, rng=0)
    stream(frequency, p, 5000)
    ratio = np.exp(frequency.log_q(np.arange(30))) / p
    assert np.all((ratio > 0.6) & (ratio < 1.6))
    assert np.mean(np.abs(np.log(ratio))) < 0.12


def test_estimates_follow_a_change():
    frequency = StreamingFrequency(100, alpha=0.05, rng=0)
    stream(frequency, np.array([0.5, 0.05]), 2000)
    stream(frequency, np.array([0.05, 0.5]), 2000, seed=1, first=2001)
    q = np.exp(frequency.log_q([0, 1]))
    assert q[0] == pytest.approx(0.05, rel=0.5)
    assert q[1] == pytest.approx(0.5, rel=0.5)


def test_the_largest_estimate_withstands_collisions():
    """With few slots, items share them in each array; in most they are apart in one of the four."""
    p = np.full(40, 0.1)
    frequency = StreamingFrequency(80, alpha=0.01, rng=0)
    stream(frequency, p, 3000)
    q = np.exp(frequency.log_q(np.arange(40)))
    one_array = 1 / frequency._steps[0][frequency._slots_of(np.arange(40))[0]]
    assert np.mean(q > 0.15) < 0.1 < np.mean(one_array > 0.15)


def test_items_that_have_not_occurred():
    frequency = StreamingFrequency(10, rng=0)
    assert frequency.log_q([5]).tolist() == [0]
    frequency.update([], 9)
    assert frequency.log_q([[5]]).tolist() == [[-np.log(10)]]


def test_ids_of_any_size():
    frequency = StreamingFrequency(1000, rng=0)
    ids = np.array([-1, 2**62, -(2**63), 0])
    frequency.update(ids, 1)
    assert frequency.log_q(ids).tolist() == [0] * 4
    frequency.update(np.array([2**64 - 1], np.uint64), 2)


def test_wrong_arguments():
    frequency = StreamingFrequency(10, rng=0)
    frequency.update([1], 3)
    for call, error, message in (
        (lambda: StreamingFrequency(0), ValueError, "n_slots must be at least 1"),
        (lambda: StreamingFrequency(2**31), ValueError, "n_slots must be less than"),
        (lambda: StreamingFrequency(5, alpha=0), ValueError, "alpha must be greater than 0"),
        (lambda: StreamingFrequency(5, rng="a"), TypeError, "rng must be"),
        (lambda: frequency.update([1], 3), ValueError, "step must be greater than the last one, 3, got 3"),
        (lambda: frequency.update([0.5], 4), TypeError, "ids must hold integers"),
        (lambda: frequency.log_q(["a"]), TypeError, "ids must hold integers"),
    ):
        with pytest.raises(error, match=message):
            call()
