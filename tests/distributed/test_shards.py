"""csoftmax.distributed without groups: shards, merges in any order, results with the bits of whole rows."""

import itertools
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.sharded_calls import Call

import csoftmax
from csoftmax import distributed
from csoftmax.distributed import Nodes, merge, partial


def halves(x, **options):
    n, half = x.shape[-1], x.shape[-1] // 2 // 4096 * 4096
    return [partial(part, offset=at, n_classes=n, **options) for at, part in ((0, x[:, :half]), (half, x[:, half:]))]


def check_random_calls(seed, count):
    rng = np.random.default_rng(seed)
    checked = 0
    while checked < count:
        call = Call(rng, temperatures=True)
        try:
            call.check(rng)
        except NotImplementedError:  # gradients that underflow, which functions over groups compute
            assert call.operation == "gradient", call.description
            continue
        checked += 1


def test_random_shards_trees_and_cuts():
    check_random_calls(1, 350)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2, 102))
def test_two_hundred_thousand_random_calls(seed):
    check_random_calls(seed, 2000)


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 50257, 8192, 40960])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 16])
def test_split_gives_boundaries_at_blocks(n, parts):
    bounds = distributed.split(n, parts)
    assert len(bounds) == parts + 1
    assert (bounds[0], bounds[-1]) == (0, n)
    assert all(b % 4096 == 0 for b in bounds[:-1] if b != n)
    sizes = [-(-(b - a) // 4096) for a, b in itertools.pairwise(bounds)]
    assert min(sizes) >= 0
    assert max(sizes) - min(sizes) <= 1


def test_no_shard_needs_many_parts():
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        distributed.split(10, 0)


def test_repeated_and_shuffled_deliveries_change_nothing():
    x = np.random.default_rng(0).normal(size=(3, 30000))
    bounds = [0, 4096, 9000, 20000, 30000]
    parts = [partial(x[:, a:b], offset=a, n_classes=30000) for a, b in itertools.pairwise(bounds)]
    once = merge(parts)
    again = merge(merge(parts[2], parts[1]), parts[1], merge(parts[0], parts[0]), parts[3], parts[2])
    assert_same_bits(again.records, once.records)


def test_partial_overlap_is_an_error():
    x = np.zeros((1, 12288))
    a, b = (partial(x[:, s], offset=s.start, n_classes=12288) for s in (slice(0, 8192), slice(4096, 12288)))
    with pytest.raises(ValueError, match="shards overlap: classes 4096 to 12287 and 0 to 8191"):
        merge(a, b)


def test_missing_classes_are_named():
    x = np.zeros((1, 12288))
    first, _ = halves(x)
    with pytest.raises(ValueError, match="merged must have all classes, 0 to 12287; it has 0 to 4095"):
        distributed.finish_softmax(x[:, :4096], first, merge(first))


@pytest.mark.parametrize(("field", "other"), [("version", "0.0.0"), ("byte_order", "big")])
def test_partials_of_other_versions_and_byte_orders_are_refused(field, other):
    a, b = halves(np.zeros((1, 8192)))
    setattr(b, field, other)
    with pytest.raises(ValueError, match=f"differ in {field}: .* and {other}"):
        merge(a, b)


def test_partials_of_other_calls_are_refused():
    x = np.zeros((1, 8192))
    a, _ = halves(x)
    for other, message in ((halves(x, kind="log"), "kind"), (halves(x.astype(np.float32)), "dtype")):
        with pytest.raises(ValueError, match=f"differ in {message}"):
            merge(a, other[1])


def test_rows_beyond_the_range_ask_for_a_second_round():
    x = np.full((2, 8192), 1e300)
    parts = halves(x)
    merged = merge(parts)
    assert merged.second_round.tolist() == [1e300, 1e300]
    with pytest.raises(ValueError, match=r"row_max=merged\.row_max"):
        distributed.finish_softmax(x[:, :4096], parts[0], merged)
    with pytest.raises(ValueError, match="first and of the second round"):
        merge(parts[0], halves(x, row_max=merged.second_round)[1])


def test_records_alone_merge_and_finish():
    x = np.random.default_rng(1).normal(size=(2, 9000)).astype(np.float32)
    parts = halves(x)
    records = merge(np.stack([p.records for p in parts]))
    assert_same_bits(records, merge(parts[1].records, parts[0].records))
    y = distributed.finish_softmax(x[:, :4096], parts[0], records)
    assert_same_bits(y, csoftmax.softmax(x)[:, :4096])


def test_records_with_class_weights_need_their_partials():
    x = np.zeros((1, 8192))
    parts = halves(x, kind="loss", target=[3], weight=np.ones(4096))
    with pytest.raises(ValueError, match="records with class weights are merged as Partials"):
        merge([p.records for p in parts])


def test_pickled_partials_merge():
    x = np.random.default_rng(2).normal(size=(2, 9000))
    parts = halves(x, keep=True)
    sent = [pickle.loads(pickle.dumps(p)) for p in parts]
    assert sent[0].e is None
    y = distributed.finish_softmax(x[:, :4096], parts[0], merge(sent))
    assert_same_bits(y, csoftmax.softmax(x)[:, :4096])


@pytest.mark.parametrize(("target", "error", "message"), [
    ([8192], IndexError, r"target\[0\] is 8192: the classes are 0 to 8191"),
    ([-1], IndexError, r"target\[0\] is -1"),
])  # fmt: skip
def test_a_label_that_is_no_class_is_an_error_in_every_shard(target, error, message):
    x = np.zeros((1, 8192))
    parts = halves(x, kind="loss", target=target)
    merged = merge(parts)
    for shard, part in zip((x[:, :4096], x[:, 4096:]), parts, strict=True):
        with pytest.raises(error, match=message):
            distributed.finish_loss(shard, part, merged)


def test_shards_with_different_labels_are_an_error_in_every_shard():
    x = np.zeros((1, 8192))
    parts = [
        partial(x[:, s], offset=s.start, n_classes=8192, kind="loss", target=[label])
        for s, label in ((slice(0, 4096), 5000), (slice(4096, 8192), 3))
    ]
    with pytest.raises(ValueError, match=r"partial results differ in target: int64 \(1,\) \w+ and int64 \(1,\)"):
        merge(parts)
    records = merge([p.records for p in parts])  # without what they are of
    for part in parts:
        with pytest.raises(ValueError, match="0 shards have this class or this label"):
            distributed.finish_loss(x[:, :4096], part, records)


def test_other_axes_and_out():
    x = np.random.default_rng(3).normal(size=(5000, 3)).astype(np.float32)
    parts = [partial(p, offset=at, n_classes=5000, axis=0) for at, p in ((0, x[:4096]), (4096, x[4096:]))]
    out = x[4096:].copy()
    result = distributed.finish_softmax(out, parts[1], merge(parts), out=out)
    assert result is out
    assert_same_bits(out, csoftmax.softmax(x, axis=0)[4096:])


def tree_sum(x):
    """The tree of src_c/core/reduction.c."""
    if len(x) <= 8:
        total = np.float64(0)
        for value in x:
            total = total + value
        return total
    half = 8
    while 2 * half < len(x):
        half *= 2
    return tree_sum(x[:half]) + tree_sum(x[half:])


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 15, 16, 17, 64, 65, 1000, 4097])
def test_nodes_are_those_of_the_tree_for_any_cuts_and_orders(n):
    rng = np.random.default_rng(n)
    x = rng.normal(size=n) * 2.0 ** rng.integers(-60, 60, n)
    for _ in range(20):
        cuts = [0, *sorted(rng.integers(0, n + 1, rng.integers(0, 6))), n]
        parts = [Nodes.nodes(x[a:b], a) for a, b in itertools.pairwise(cuts)]
        parts += [parts[i] for i in rng.integers(0, len(parts), 2)]
        nodes = {}
        for i in rng.permutation(len(parts)):
            nodes = Nodes.merge(nodes, parts[i])
        assert Nodes.total(nodes, n) == tree_sum(x)


def test_missing_rows_are_named():
    with pytest.raises(ValueError, match="row 8 of 10 is missing"):
        Nodes.total(Nodes.nodes(np.ones(8)), 10)
