"""Functions over groups that sum up before they have all headers, from the shards of the last call.

Sums travel with the headers where these have room for them, else they are computed while headers travel.
"""

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.sharded_calls import Call
from helpers.thread_group import run_on

import csoftmax
from csoftmax import distributed
from csoftmax._distributed import groups, losses
from csoftmax._distributed import rows as group_rows

ROOMS = pytest.mark.parametrize("room", [0, 40, groups.ROOM])  # 40 words: the sums of two or three rows


def count_ahead(monkeypatch, room):
    """Let threads compute before they have headers; whether that was used, and the sums had come with the headers."""
    used, usual = [], groups.enter_ahead

    def enter_ahead(*arguments):
        *found, done = usual(*arguments)
        used.append((done is not None, done is not None and done.gathered is not None))
        return *found, done

    monkeypatch.setattr(groups.Collectives, "overlaps", True)
    monkeypatch.setattr(groups.Collectives, "room", room)
    for module in (losses, group_rows):
        monkeypatch.setattr(module, "enter_ahead", enter_ahead)
    return used


@ROOMS
def test_sums_before_headers_have_the_same_bits(monkeypatch, room):
    """Each call twice: the second time the shards are known before the headers."""
    used = count_ahead(monkeypatch, room)
    rng = np.random.default_rng(11)
    for _ in range(20):
        call = Call(rng, temperatures=True)
        for _ in range(2):
            call.check_over_group(run_on(len(call.shards), call.over_group))
    assert (False, False) in used
    assert ((True, True) in used) == (room > 0)
    assert ((True, False) in used) or room == groups.ROOM


@ROOMS
def test_shards_that_are_not_the_last_ones_are_summed_again(monkeypatch, room):
    used = count_ahead(monkeypatch, room)
    monkeypatch.setattr(groups, "_layouts", {})
    x, target = np.random.default_rng(5).normal(size=(3, 12288)).astype(np.float32), np.array([5, 4096, 12287])
    expected = csoftmax.cross_entropy_with_grad(x, target), csoftmax.softmax(x, sink=0.5)
    first, other, uneven = [0, 4096, 8192, 12288], [4096, 0, 8192, 12288], [0, 4096, 4096, 12288]
    for cuts in (first, first, other, uneven, uneven, first):
        used.clear()
        ends = [4096, 8192, 12288] if cuts is first else [8192, 4096, 12288] if cuts is other else cuts[1:]

        def work(group, cuts=cuts, ends=ends):
            shard = x[:, slice(cuts[group.rank], ends[group.rank])]
            given = {"group": group} | ({"offset": cuts[group.rank], "n_classes": None} if cuts is other else {})
            y = distributed.softmax(shard, sink=0.5, **given)
            return cuts[group.rank], *distributed.cross_entropy_with_grad(shard, target, **given), y

        results = sorted(run_on(3, work), key=lambda result: (result[0], result[2].shape[1]))
        assert_same_bits(np.concatenate([grad for _, _, grad, _ in results], axis=1), expected[0].grad)
        assert_same_bits(np.concatenate([y for *_, y in results], axis=1), expected[1])
        assert {loss for _, loss, _, _ in results} == {expected[0].loss}
        assert any(done for done, _ in used[3:])  # the second function of each round has the shards of the first


@ROOMS
def test_errors_before_headers_are_raised_on_all(monkeypatch, room):
    used = count_ahead(monkeypatch, room)
    x, target = np.zeros((2, 8192)), [0, 5000]
    fails = [False]

    def fail(*arguments, **options):
        raise MemoryError("no room")

    def work(group):
        shard = np.split(x, 2, 1)[group.rank]
        return distributed.cross_entropy(shard, target if not fails[0] else [0, 9000], group=group)

    assert len(set(map(float, run_on(2, work)))) == 1
    fails[0] = True
    for result in run_on(2, work):
        with pytest.raises(IndexError, match=r"target\[1\] is 9000"):
            raise result
    fails[0] = False
    monkeypatch.setattr(losses, "sum_piece", fail)
    assert len(set(map(float, run_on(2, work)))) == 1  # computed as ever, after the headers
    assert not any(done for done, _ in used[-2:])


@ROOMS
def test_sums_are_exchanged_if_one_rank_has_not_sent_them(monkeypatch, room):
    """Rank 1 has an array for its gradient, which it may not write to before it has the headers."""
    used = count_ahead(monkeypatch, room)
    x, target = np.random.default_rng(5).normal(size=(3, 12288)).astype(np.float32), np.array([5, 4096, 12287])
    expected = csoftmax.cross_entropy_with_grad(x, target)

    def work(group):
        shard = np.split(x, 3, 1)[group.rank]
        out = np.empty_like(shard) if group.rank == 1 else None
        return distributed.cross_entropy_with_grad(shard, target, group=group, out=out)

    for _ in range(3):
        used.clear()
        results = run_on(3, work)
        assert_same_bits(np.concatenate([r.grad for r in results], axis=1), expected.grad)
        assert {r.loss for r in results} == {expected.loss}
    assert sorted(used) == [(False, False), (True, False), (True, False)]


def test_checks_of_earlier_calls_hold_for_equal_arguments_alone(monkeypatch):
    """Labels are checked each time; so are options of another type, or of another sign of zero."""
    monkeypatch.setattr(losses, "_prepared", {})
    group = distributed.SingleProcess()
    x, target = np.random.default_rng(3).normal(size=(3, 8192)), np.array([5, 4096, 8191])

    def run(labels=target, logits=x, **options):
        return distributed.cross_entropy_with_grad(logits, labels, group=group, **options)

    for shift in range(3):
        found, expected = run(target - shift), csoftmax.cross_entropy_with_grad(x, target - shift)
        assert found.loss == expected.loss
        assert_same_bits(found.grad, expected.grad)
    assert len(losses._prepared) == 1
    with pytest.raises(IndexError, match=r"target\[2\] is 8192"):
        run(target + 1)
    for upstream in (1.0, -0.0, 0.0, -1.0, 1.0):
        expected = csoftmax.cross_entropy_with_grad(x, target, upstream=upstream)
        assert_same_bits(run(upstream=upstream).grad, expected.grad)
    run(n_classes=8192)
    for wrong in (8192.0, "8192"):
        with pytest.raises(TypeError, match="n_classes"):
            run(n_classes=wrong)
    with pytest.raises(TypeError, match="target"):
        run(target.astype(bool))
    with pytest.raises(ValueError, match="target has shape"):
        run(target[:2])
    spread = np.zeros((3, 16384))[:, ::2]
    spread[:] = x
    expected = csoftmax.cross_entropy_with_grad(x, target)
    for logits in (spread, np.asfortranarray(x)):
        assert_same_bits(run(logits=logits).grad, expected.grad)
    assert all(call.piece.x is None and call.terms.losses.target is None for _, call in losses._prepared.values())
