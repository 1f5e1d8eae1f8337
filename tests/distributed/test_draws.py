"""Draws over groups: those of the call with whole rows, and what travels for them."""

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.sharded_calls import DTYPES, make_boundaries, make_rows
from helpers.thread_group import run_on

import csoftmax
from csoftmax import distributed
from csoftmax._distributed import draws
from csoftmax.distributed import DistributedMemoryError


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9, "temperature": 0.8}, {"min_p": 0.01}])
def test_draws_are_those_of_whole_rows_with_the_generator_of_rank_0(options):
    x = np.random.default_rng(0).normal(size=(5, 9000)) * 3
    expected = csoftmax.sample(x, size=4, rng=np.random.default_rng(8), **options)
    generators = [np.random.default_rng(8), np.random.default_rng(9)]

    def work(group):
        a, b = ((0, 5000), (5000, 9000))[group.rank]
        return distributed.sample(x[:, a:b], group=group, size=4, rng=generators[group.rank], **options)

    for result in run_on(2, work):
        assert_same_bits(result, expected)
    assert generators[0].random() != np.random.default_rng(8).random()
    assert generators[1].random() == np.random.default_rng(9).random()


@pytest.mark.parametrize("shape", [(0, 9000), (2, 0, 5)])
def test_no_rows(shape):
    x = np.empty(shape)
    drawn = distributed.sample(x, size=3, group=distributed.SingleProcess())
    assert_same_bits(drawn, csoftmax.sample(x, size=3))


@pytest.mark.parametrize("options", [{"replace": False}, {"return_log_prob": True}, {"typical_p": 0.5}])
def test_draws_that_shards_do_not_have_are_refused_on_all_ranks(options):
    for result in run_on(2, lambda group: distributed.sample(np.zeros((1, 5)), group=group, **options)):
        with pytest.raises(NotImplementedError, match="sample over shards has no"):
            raise result


def test_draws_with_top_k_gather_candidates():
    """The same draws from the k largest of each shard, some of which are empty, without the rows."""
    rng = np.random.default_rng(3)
    for i in range(20):
        n, dtype = int(rng.integers(1, 20000)), rng.choice([np.float32, np.float64, np.float16])
        x = np.round(rng.normal(size=(5, n)) * 3, int(rng.integers(0, 3))).astype(dtype)
        x[rng.random(x.shape) < 0.1] = -np.inf
        x[:, 0] = 0
        most = min(n, 300)
        options = {
            "top_k": rng.integers(1, most + 1, 5) if i % 2 else most,
            "top_p": [None, 0.8][i % 3 == 0],
            "min_p": [None, 0.01][i % 5 == 0],
            "temperature": float(rng.choice([1.0, 0.5, 3.0, 0.0])),
            "size": 20,
            "rng": i,
        }
        cuts = [0, *sorted(map(int, rng.integers(0, n + 1, 2))), n, n]

        def work(group, x=x, cuts=cuts, options=options):
            draws = distributed.sample(x[:, slice(*cuts[group.rank : group.rank + 2])], group=group, **options)
            return draws, group.sent

        results = run_on(4, work)
        for result in results:
            assert not isinstance(result, Exception), result
            np.testing.assert_array_equal(result[0], csoftmax.sample(x, **options))
        if n > 8000:
            assert results[0][1] < 5 * most * (x.itemsize + 8) + 2000


def draw_over(boundaries, x, where=None, **options):
    """What each rank returns or raises, with the bytes that it has sent."""

    def work(group):
        a, b = boundaries[group.rank : group.rank + 2]
        own = None if where is None else where[:, a:b]
        return distributed.sample(x[:, a:b], where=own, group=group, **options), group.sent

    return run_on(len(boundaries) - 1, work)


def check_random_draws(seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        n = int(rng.choice([rng.integers(1, 4097), rng.integers(4097, 16000), rng.integers(16000, 60000)]))
        rows, size = int(rng.integers(1, 5)), int(rng.choice([1, 3, 40]))
        kind = str(rng.choice(["normal", "ties", "holes", "dominated", "huge", "sorted", "steps"]))
        x = np.nan_to_num(make_rows(rng, kind, (rows, n), DTYPES[rng.integers(len(DTYPES))]), neginf=-np.inf)
        x[:, rng.integers(n)] = 0
        where = None if rng.random() < 0.8 else (rng.random((rows, n)) < 0.6) | (x == 0)
        uniforms = rng.random((rows, size))
        uniforms[:, 0] = rng.choice([0, 0.5, 1 - 2**-53])
        choices = {
            "temperature": [1.0, 0.5, 3.3, 0.0, 1e-3, 1e20],
            "top_p": [0.1, 0.5, 0.9, 0.99, 1.0],
            "min_p": [0.001, 0.1, 0.5],
            "top_k": [0, -1, 3, 100, n, max(1, n - 1), max(1, n // 30), max(1, n // 5)],
        }
        options = {"size": size, "uniforms": uniforms}
        for name, values in choices.items():
            if rng.random() < 0.4:
                options[name] = rng.choice(values, rows if rng.random() < 0.4 else None)
        boundaries = make_boundaries(rng, n)
        text = f"{kind} {x.dtype} n={n} {boundaries} where={where is not None} {options}"
        expected = csoftmax.sample(x, where=where, **options)
        for result in draw_over(boundaries, x, where, **options):
            assert not isinstance(result, Exception), (text, result)
            np.testing.assert_array_equal(result[0], expected, err_msg=text)


def test_random_draws_are_those_of_whole_rows():
    check_random_draws(0, 80)


@pytest.mark.long
def test_many_random_draws_are_those_of_whole_rows():
    check_random_draws(1, 20000)


@pytest.mark.parametrize(("options", "most"), [
    ({}, 8 * 31 + 80),
    ({"min_p": 0.01}, 8 * 31 + 80),
    ({"top_p": 0.001}, 64 * 16 + 96 + 16),
    ({"top_p": 0.02}, (64 + 512 + 4096) * 16 + 96 + 8 * 31 + 80),
])  # fmt: skip
def test_masses_of_blocks_travel_instead_of_logits(options, most):
    """8 bytes a block of a rank, some numbers a row, and for top_p the candidates of 16 bytes."""
    x = np.random.default_rng(1).normal(size=(20, 250000))
    for result in draw_over([0, 126976, 250000], x, size=2, rng=3, **options):
        assert not isinstance(result, Exception), result
        np.testing.assert_array_equal(result[0], csoftmax.sample(x, size=2, rng=3, **options))
        assert result[1] < 20 * most + 300, result[1] / 20


def test_more_classes_than_a_rank_selects_are_refused_on_all_ranks(monkeypatch):
    monkeypatch.setattr(draws, "MOST_SELECTED", 100)
    x = np.zeros((2, 1, 9000), np.float32)
    x[0, 0, 0] = 50
    message = r"top_p keeps more than 100 classes of a shard in row \(1, 0\): pass top_k as well"
    for result in run_on(2, lambda g: distributed.sample(np.split(x, 2, axis=2)[g.rank], top_p=0.9, rng=0, group=g)):
        with pytest.raises(MemoryError, match=message):
            raise result


@pytest.mark.parametrize("name", ["find_masses", "draw"])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.01}])
def test_a_rank_that_fails_between_collectives_ends_the_call_on_all(name, options, monkeypatch):
    function = getattr(draws._Shard, name)

    def fail(shard, *arguments):
        if shard.rank == 1:
            raise MemoryError("no memory for masses")
        return function(shard, *arguments)

    monkeypatch.setattr(draws._Shard, name, fail)
    for result in draw_over([0, 5000, 9000], np.zeros((3, 9000)), rng=0, **options):
        with pytest.raises(DistributedMemoryError, match="rank 1: MemoryError: no memory for masses"):
            raise result
