"""The functions that finish partial results: their arguments, axes and rounds, and merges in every order."""

import inspect
import itertools

import numpy as np
import pytest
from helpers import assert_same_bits

import csoftmax
from csoftmax import distributed
from csoftmax.distributed import merge, partial

BOUNDS = (0, 4096, 9000)


def along(x, axis, a, b):
    return x[(slice(None),) * axis + (slice(a, b),)]


def shards(x, axis=-1, of_classes=None, **options):
    """The shards of x and their partial results; of_classes: arguments that are divided like x."""
    axis %= x.ndim
    found = []
    for a, b in itertools.pairwise(BOUNDS):
        own = {name: along(array, axis, a, b) for name, array in (of_classes or {}).items()}
        part = along(x, axis, a, b)
        found.append((part, partial(part, offset=a, n_classes=BOUNDS[-1], axis=axis, **own, **options)))
    return found


def test_functions_that_finish_take_the_shard_first():
    for name in ("softmax", "log_softmax", "logsumexp"):
        parameters = [*inspect.signature(getattr(distributed, f"finish_{name}")).parameters]
        assert [p for p in parameters if p != "axis"] == ["x", "partial", "merged", "sink", "out"]
    assert [*inspect.signature(distributed.finish_loss).parameters] == ["x", "partial", "merged", "out"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_axis_is_that_of_the_partial_result(axis, dtype):
    rng = np.random.default_rng(axis)
    shape = [2, 3]
    shape.insert(axis, BOUNDS[-1])
    x, dy = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    target, y = rng.integers(0, BOUNDS[-1], (2, 3)), csoftmax.softmax(x, axis)
    for name, kind in (("softmax", "softmax"), ("log_softmax", "log")):
        parts = shards(x, axis, kind=kind)
        merged = merge(p for _, p in parts)
        for given in ({}, {"axis": axis}, {"axis": axis - 3}):
            got = [getattr(distributed, f"finish_{name}")(part, p, merged, **given) for part, p in parts]
            assert_same_bits(np.concatenate(got, axis), getattr(csoftmax, name)(x, axis))
    out = np.empty((2, 3), dtype)
    for part, p in parts:
        assert_same_bits(distributed.finish_logsumexp(part, p, merged), csoftmax.logsumexp(x, axis))
        assert distributed.finish_logsumexp(part, p, merged, out=out) is out
        assert_same_bits(out, csoftmax.logsumexp(x, axis))
    parts = shards(dy, axis, {"y": y}, kind="softmax_vjp")
    merged = merge(p for _, p in parts)
    ys = [along(y, axis, a, b) for a, b in itertools.pairwise(BOUNDS)]
    got = [distributed.finish_vjp(part, own, p, merged) for own, (part, p) in zip(ys, parts, strict=True)]
    assert_same_bits(np.concatenate(got, axis), csoftmax.softmax_vjp(dy, y, axis))
    options = {"target": target, "clip_value": 1e-4}
    parts = shards(x, axis, kind="loss", **options)
    merged = merge(p for _, p in parts)
    expected = csoftmax.cross_entropy_with_grad(x, axis=axis, reduction="none", **options)
    got = [distributed.finish_gradient(part, p, merged) for part, p in parts]
    assert_same_bits(np.concatenate(got, axis), expected.grad)
    out = np.empty((2, 3), expected.loss.dtype)
    for part, p in parts:
        assert_same_bits(distributed.finish_loss(part, p, merged), expected.loss)
        assert distributed.finish_loss(part, p, merged, out=out) is out
        assert_same_bits(out, expected.loss)


def test_arguments_that_are_not_those_of_the_partial_result_are_refused():
    x = np.random.default_rng(0).normal(size=(8192, 2))
    parts = [partial(x[a : a + 4096], offset=a, n_classes=8192, axis=0) for a in (0, 4096)]
    finish, merged = distributed.finish_softmax, merge(parts)
    with pytest.raises(ValueError, match="axis is -1; partial was called with axis 0, which is the default"):
        finish(x[:4096], parts[0], merged, axis=-1)
    x = np.zeros((3, 9000), np.float32)
    logs, losses = shards(x, kind="log"), shards(x, kind="loss", target=[0, 1, 2])
    for name, parts, dtype in (("logsumexp", logs, np.float32), ("loss", losses, np.float32)):
        finish, merged, part = getattr(distributed, f"finish_{name}"), merge(p for _, p in parts), parts[0][1]
        cases = [
            (x, None, ValueError, r"x has shape \(3, 9000\); the partial result is of \(3, 4096\)"),
            (x[:, :4096].astype(np.float64), None, ValueError, "x has dtype float64; the partial result is of float32"),
            (x[:, :4096], np.empty(2, dtype), ValueError, r"out has shape \(2,\); the result has shape \(3,\)"),
            (x[:, :4096], np.empty(3), TypeError, "out has dtype float64; the result has dtype float32"),
        ]
        for shard, out, error, message in cases:
            with pytest.raises(error, match=message):
                finish(shard, part, merged, out=out)


def test_a_merged_result_of_short_rows_that_is_none_is_refused():
    x = np.zeros((2, 90))
    part = partial(x[:, :40], offset=0, n_classes=90)
    with pytest.raises(ValueError, match="merged is None, which is allowed where a shard is all of its row"):
        distributed.finish_softmax(x[:, :40], part, None)
    part = partial(x, offset=0, n_classes=90)
    assert_same_bits(distributed.finish_softmax(x, part, None), csoftmax.softmax(x))


def test_a_gradient_that_underflows_is_named_by_its_row():
    x = np.zeros((2, 9000), np.float32)
    x[1, 1:] = -300
    (shard, part), other = shards(x, kind="loss", target=[0, 0])
    with pytest.raises(NotImplementedError, match=r"^row \(1,\) has gradients that underflow"):
        distributed.finish_gradient(shard, part, merge(part, other[1]), upstream=1e120)


# Clips


def test_clip_value_is_an_option_of_partial_results_and_clip_norm_is_refused():
    x = np.random.default_rng(1).normal(size=(3, 9000))
    for n in (9000, 90):
        whole, cut = x[:, :n], 40 if n == 90 else 4096
        options = {"kind": "loss", "target": [0, 5, 80], "n_classes": n}
        pieces = [(0, whole[:, :cut]), (cut, whole[:, cut:])]
        parts = [partial(piece, offset=at, clip_value=1e-3, **options) for at, piece in pieces]
        got = [
            distributed.finish_gradient(piece, p, merge(parts), divisor=3.0)
            for (_, piece), p in zip(pieces, parts, strict=True)
        ]
        expected = csoftmax.cross_entropy_with_grad(whole, [0, 5, 80], clip_value=1e-3).grad
        assert_same_bits(np.concatenate(got, axis=1), expected)
        other = partial(pieces[1][1], offset=cut, clip_value=2e-3, **options)
        with pytest.raises(ValueError, match=r"differ in clip_value: 0\.001 and 0\.002"):
            merge(parts[0], other)
        with pytest.raises(NotImplementedError, match=r"partial has no clip_norm: .*cross_entropy_with_grad with a"):
            partial(whole, offset=0, clip_norm=1.0, **options)
    with pytest.raises(ValueError, match="kind 'log' takes no clip_value: only 'loss' does"):
        partial(x, offset=0, n_classes=9000, kind="log", clip_value=1.0)


# Second rounds


@pytest.mark.parametrize("kind", ["softmax", "log", "loss"])
def test_row_max_of_a_merge_is_what_a_second_round_takes(kind):
    x = np.random.default_rng(2).normal(size=(3, 9000)).astype(np.float32)
    options = {"kind": kind} | ({"target": [100, 5, 100]} if kind == "loss" else {})
    first = shards(x, **options)
    merged = merge(p for _, p in first)
    assert merged.row_max is None
    again = shards(x, row_max=merged.row_max, **options)
    x[1, 100] = 1e30
    name = {"softmax": "softmax", "log": "log_softmax", "loss": "gradient"}[kind]
    finish = getattr(distributed, f"finish_{name}")
    expected = (
        csoftmax.cross_entropy_with_grad(x, [100, 5, 100], reduction="none").grad
        if kind == "loss"
        else getattr(csoftmax, name)(x)
    )
    first = shards(x, **options)
    merged = merge(p for _, p in first)
    assert np.array_equal(merged.row_max, [np.nan, 1e30, np.nan], equal_nan=True) or np.isin(
        np.float32(1e30), merged.row_max.astype(np.float32)
    )
    with pytest.raises(ValueError, match=r"call partial again with row_max=merged\.row_max and merge the results"):
        finish(*first[0], merged)
    again = shards(x, row_max=merged.row_max, **options)
    settled = merge(p for _, p in again)
    assert_same_bits(settled.row_max, merged.row_max)
    assert settled.second_round is None
    assert_same_bits(np.concatenate([finish(*part, settled) for part in again], axis=1), expected)


def test_row_max_of_a_merge_with_a_sink():
    x = np.zeros((2, 9000))
    parts = shards(x, has_sink=True)
    merged = merge(p for _, p in parts)
    row_max = merged.with_sink([[0.0], [1e300]]).row_max
    again = shards(x, has_sink=True, row_max=row_max)
    merged = merge(p for _, p in again)
    got = [distributed.finish_softmax(*part, merged, sink=[[0.0], [1e300]]) for part in again]
    assert_same_bits(np.concatenate(got, axis=1), csoftmax.softmax(x, sink=[[0.0], [1e300]]))


# Deliveries


def trees(leaves):
    """All ways to merge some leaves in this order, as nested tuples."""
    if len(leaves) == 1:
        yield leaves[0]
    for cut in range(1, len(leaves)):
        yield from itertools.product(trees(leaves[:cut]), trees(leaves[cut:]))


def find_parts(tree):
    """The parts in a tree of merges, or None if it merges two that have some in common, and each others besides."""
    if not isinstance(tree, tuple):
        return {tree}
    a, b = map(find_parts, tree)
    return None if a is None or b is None or (a & b and not (a <= b or b <= a)) else a | b


def merge_tree(tree, parts):
    return merge(*(merge_tree(t, parts) for t in tree)) if isinstance(tree, tuple) else parts[tree]


@pytest.mark.parametrize("bounds", [(0, 4096, 8192, 12000), (0, 10, 5000, 12000), (0, 10, 20, 30)])
def test_every_order_and_nesting_of_deliveries_has_the_same_bits(bounds):
    """Each part once, and one of them twice, wherever: a merge that arrives after its parts, or before them."""
    x = np.random.default_rng(3).normal(size=(2, bounds[-1])).astype(np.float32)
    shards = [x[:, a:b] for a, b in itertools.pairwise(bounds)]
    parts = [partial(s, offset=a, n_classes=bounds[-1]) for s, a in zip(shards, bounds, strict=False)]
    expected = csoftmax.softmax(x)
    count = 0
    for repeated in range(3):
        for order in sorted(set(itertools.permutations([0, 1, 2, repeated]))):
            assert merge([parts[i] for i in order]).intervals == ((0, bounds[-1]),)
            for tree in trees(order):
                if find_parts(tree) is None:
                    with pytest.raises(ValueError, match="shards overlap"):
                        merge_tree(tree, parts)
                    continue
                merged, count = merge_tree(tree, parts), count + 1
                assert merged.intervals == ((0, bounds[-1]),)
                got = [distributed.finish_softmax(s, p, merged) for s, p in zip(shards, parts, strict=True)]
                assert_same_bits(np.concatenate(got, axis=1), expected)
    assert count == 156


def test_what_a_merge_keeps_does_not_depend_on_the_order_of_its_arguments():
    x = np.random.default_rng(4).normal(size=(1, 5 * 4096))
    p = [partial(x[:, a : a + 4096], offset=a, n_classes=x.shape[1]) for a in range(0, x.shape[1], 4096)]
    sets = [
        [merge(p[0], p[1]), p[0], p[2], p[1], merge(p[3], p[4])],
        [p[0], p[2], merge(p[0], p[1]), merge(p[3], p[4], p[0], p[1]), p[4]],
        [merge(p[0], p[1]), merge(p[1], p[2]), merge(p[2], p[3]), p[4], p[4]],
    ]
    for parts in sets:
        for order in itertools.permutations(parts):
            assert_same_bits(merge(order).records, merge(p).records)
    lacks = [merge(p[0], p[1]), merge(p[1], p[2]), p[3], p[4]]
    for order in itertools.permutations(lacks):
        with pytest.raises(ValueError, match="shards overlap: classes 4096 to 12287 and 0 to 8191"):
            merge(order)
