"""Partial results that are pickled, damaged, of other calls, or finished in unusual ways."""

import itertools
import pickle

import numpy as np
import pytest
from helpers import assert_same_bits

import csoftmax
from csoftmax import distributed
from csoftmax._cpu import binding
from csoftmax.distributed import Nodes, SingleProcess, merge, partial

N = 10000
UNALIGNED, ALIGNED = (0, 5000, N), (0, 4096, N)


def shards(x, bounds, of_classes=None, **options):
    """Partial results of the shards of x; of_classes: arguments with a class axis, the last one."""
    parts = []
    for a, b in itertools.pairwise(bounds):
        own = {name: array[..., a:b] for name, array in (of_classes or {}).items()}
        parts.append(partial(x[..., a:b], offset=a, n_classes=x.shape[-1], **own, **options))
    return parts


def sent(part):
    return pickle.loads(pickle.dumps(part))


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(2, N))


# Pickles


@pytest.mark.parametrize("bounds", [UNALIGNED, ALIGNED])
@pytest.mark.parametrize("kind", ["softmax", "log"])
def test_a_pickled_partial_result_finishes_its_shard(x, bounds, kind):
    parts = [sent(p) for p in shards(x, bounds, kind=kind)]
    name = {"softmax": "softmax", "log": "log_softmax"}[kind]
    merged = sent(merge(parts))
    results = [
        getattr(distributed, f"finish_{name}")(x[:, a:b], p, merged)
        for p, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
    ]
    assert_same_bits(np.concatenate(results, axis=1), getattr(csoftmax, name)(x))


@pytest.mark.parametrize("bounds", [UNALIGNED, ALIGNED])
def test_a_pickled_loss_with_labels_finishes_its_shard(x, bounds):
    parts = [sent(p) for p in shards(x, bounds, kind="loss", target=[7, 9999], sample_weight=[2.0, 3.0])]
    results = [
        distributed.finish_gradient(x[:, a:b], p, merge(parts))
        for p, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
    ]
    expected = csoftmax.cross_entropy_with_grad(x, [7, 9999], sample_weight=[2.0, 3.0], reduction="none")
    assert_same_bits(np.concatenate(results, axis=1), expected.grad)
    assert_same_bits(distributed.finish_loss(x[:, bounds[1] :], parts[1], merge(parts)), expected.loss)


@pytest.mark.parametrize("bounds", [UNALIGNED, ALIGNED])
def test_a_pickled_partial_result_with_a_mask_merges_and_says_that_it_cannot_finish(x, bounds):
    where = x > 0
    parts = shards(x, bounds, {"where": where})
    merged = merge([sent(p) for p in parts])
    results = [
        distributed.finish_softmax(x[:, a:b], p, merged)
        for p, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
    ]
    assert_same_bits(np.concatenate(results, axis=1), csoftmax.softmax(x, where=where))
    with pytest.raises(ValueError, match="partial has come from another process or was copied by pickle, which leaves"):
        distributed.finish_softmax(x[:, : bounds[1]], sent(parts[0]), merged)


@pytest.mark.parametrize("bounds", [UNALIGNED, ALIGNED])
@pytest.mark.parametrize("lacks", ["target", "weight"])
def test_a_pickled_loss_with_arrays_of_its_classes_merges_and_says_that_it_cannot_finish(x, bounds, lacks):
    soft = np.random.default_rng(1).random(x.shape)
    arrays, options = ({"target": soft}, {}) if lacks == "target" else ({"weight": soft[0]}, {"target": [7, 9999]})
    parts = shards(x, bounds, arrays, kind="loss", **options)
    merged = merge([sent(p) for p in parts])
    gradient = [
        distributed.finish_gradient(x[:, a:b], p, merged)
        for p, (a, b) in zip(parts, itertools.pairwise(bounds), strict=True)
    ]
    target, weight = (soft, None) if lacks == "target" else ([7, 9999], soft[0])
    expected = csoftmax.cross_entropy_with_grad(x, target, weight=weight, reduction="none")
    assert_same_bits(np.concatenate(gradient, axis=1), expected.grad)
    assert_same_bits(distributed.finish_loss(x[:, : bounds[1]], sent(parts[0]), merged), expected.loss)
    with pytest.raises(ValueError, match="leaves out where, soft labels and class weights"):
        distributed.finish_gradient(x[:, : bounds[1]], sent(parts[0]), merged)


def test_whole_rows_are_pickled_with_their_masks():
    x = np.random.default_rng(2).normal(size=(2, 100))
    where = x > 0
    parts = [sent(p) for p in shards(x, (0, 30, 100), {"where": where})]
    results = [distributed.finish_softmax(x[:, s], p, merge(parts)) for p, s in zip(parts, (slice(30), slice(30, 100)))]
    assert_same_bits(np.concatenate(results, axis=1), csoftmax.softmax(x, where=where))


@pytest.mark.parametrize("bounds", [UNALIGNED, ALIGNED])
def test_a_merge_is_no_partial_result_of_a_shard(x, bounds):
    parts = shards(x, bounds)
    with pytest.raises(ValueError, match="partial must be the result of `partial` for this shard, not of a merge"):
        distributed.finish_softmax(x[:, : bounds[1]], merge(parts[0]), merge(parts))


# Other calls, versions and damages

SOFT = np.full((2, N), 1 / N)
OTHERS = [
    ({"kind": "loss", "target": [1, 2]}, {"label_smoothing": 0.1}, "label_smoothing: 0.0 and 0.1"),
    ({"kind": "loss", "target": [1, 2]}, {"z_loss": 1.0}, "z_loss: 0.0 and 1.0"),
    ({"kind": "loss", "target": [1, 2]}, {"sample_weight": [1.0, 2.0]}, "sample_weight: None and float64"),
    ({"kind": "loss", "target": [1, 2]}, {"target": [1, 3]}, "target: int64"),
    ({"kind": "loss", "target": [1, 2]}, {"ignore_index": 5}, "ignore_index: -100 and 5"),
    ({"kind": "loss", "target": [1, 2]}, {"weight": np.ones(N - 4096)}, "class weights: False and True"),
    ({"kind": "loss", "target": [1, 2]}, {"target": SOFT[:, 4096:]}, "soft labels: False and True"),
    ({}, {"temperature": [[1.0], [2.0]]}, r"temperature: 1.0 and float64 \(2,\)"),
    ({"temperature": [[1.0], [3.0]]}, {"temperature": [[1.0], [2.0]]}, r"temperature: float64 \(2,\) \w+ and float64"),
    ({}, {"where": np.ones((2, N - 4096), bool)}, "where: False and True"),
    ({}, {"temperature": 2.0}, "temperature: 1.0 and 2.0"),
]


@pytest.mark.parametrize(("shared", "change", "message"), OTHERS)
def test_partial_results_of_other_calls_are_refused(x, shared, change, message):
    first = partial(x[:, :4096], offset=0, n_classes=N, **shared)
    other = partial(x[:, 4096:], offset=4096, n_classes=N, **shared | change)
    with pytest.raises(ValueError, match=f"partial results differ in {message}"):
        merge(first, other)
    whole = {name: value for name, value in change.items() if np.ndim(value) < 2 and name != "weight"}
    if whole:
        merged = merge(shards(x, ALIGNED, **shared | whole))
        finish = distributed.finish_loss if "kind" in shared else distributed.finish_softmax
        with pytest.raises(ValueError, match=f"merged is of another call than partial, with another {message}"):
            finish(x[:, :4096], first, merged)


@pytest.mark.parametrize(("field", "value"), [("version", "0.0.9"), ("byte_order", "other")])
def test_results_that_are_all_of_another_version_are_refused(x, field, value):
    parts = shards(x, ALIGNED)
    merged = merge(parts)
    for p in [*parts, merged]:
        setattr(p, field, value)
    for call in (
        lambda: merge(parts),
        lambda: merge(parts[0]),
        lambda: distributed.finish_softmax(x[:, :4096], parts[0], merge(shards(x, ALIGNED))),
        lambda: distributed.finish_softmax(x[:, :4096], shards(x, ALIGNED)[0], merged),
    ):
        with pytest.raises(ValueError, match=f"differ in {field}: .* in this process and {value}"):
            call()


@pytest.mark.parametrize("words", [binding.RECORD_WORDS, binding.LABEL_WORDS, binding.TERMS_WORDS, binding.SOFT_WORDS])
def test_records_of_random_bytes_are_refused(words):
    for seed in range(5):
        records = np.random.default_rng(seed).integers(-(2**62), 2**62, (4, 100, words))
        with pytest.raises(ValueError, match="records are damaged: that of row 0, counted in C order"):
            merge(records)


def test_damaged_words_of_records_are_refused(x):
    parts = shards(x, ALIGNED, kind="loss", target=[7, 8])
    records = [p.records for p in parts]
    huge = np.float64(1e300).view(np.int64)
    nan = np.float64("nan").view(np.int64)
    for word, value in [(0, 2**60), (0, -(2**60)), (1, 2**63 - 1), (6, nan), (7, -1), (8, huge), (9, nan), (15, -1)]:
        for which in (0, 1):
            damaged = [r.copy() for r in records]
            damaged[which][1, word] = value
            with pytest.raises(ValueError, match="records are damaged: that of row 1"):
                merge(damaged)
            broken = sent(parts[which])
            broken.records = damaged[which]
            with pytest.raises(ValueError, match="records are damaged: that of row 1"):
                merge(broken, parts[1 - which])
    whole = merge(shards(x, ALIGNED))
    whole.records[1, 0] = 2**60
    part = shards(x, ALIGNED)[0]
    for damaged in (whole, whole.records):
        with pytest.raises(ValueError, match="records are damaged: that of row 1"):
            distributed.finish_softmax(x[:, :4096], part, damaged)


def test_arguments_that_are_none_are_named(x):
    (part,) = shards(x, (0, N))
    merged = merge(part)
    for call, error, message in [
        (lambda: distributed.finish_loss(x, part, merged), ValueError, "kind 'softmax'; finish_loss needs 'loss'"),
        (lambda: distributed.finish_gradient(x, part, merged), ValueError, "finish_gradient needs 'loss'"),
        (lambda: distributed.finish_logsumexp(x, part, merged), ValueError, "finish_logsumexp needs 'log'"),
        (lambda: distributed.finish_vjp(x, x, part, merged), ValueError, "needs 'softmax_vjp' or 'log_softmax_vjp'"),
        (lambda: distributed.finish_softmax(x, part.records, merged), TypeError, "partial must be a Partial"),
        (lambda: distributed.finish_logsumexp(x, None, None), TypeError, "got NoneType"),
        (lambda: merge(3), TypeError, "merge takes Partials or arrays of records, or one iterable of them, got 3"),
        (lambda: partial(x, offset=0, n_classes=5), ValueError, "n_classes must be at least 10000, got 5"),
        (lambda: partial(x, offset=5, n_classes=N), ValueError, "offset must be at most 0"),
        (lambda: partial(x, offset=0, n_classes=N, weight=x[0]), ValueError, "kind 'softmax' takes no weight"),
        (lambda: partial(x, offset=0, n_classes=N, label_smoothing=0.5), ValueError, "takes no label_smoothing"),
        (lambda: Nodes.total(Nodes.nodes(np.ones(512)), 500), ValueError, "nodes hold rows beyond the 500"),
        (lambda: Nodes.total(Nodes.nodes(np.ones(12)), 10), ValueError, "nodes hold rows beyond the 10"),
    ]:
        with pytest.raises(error, match=message):
            call()


# Results


@pytest.mark.parametrize("bounds", [UNALIGNED, ALIGNED])
def test_out_may_overlap_what_is_read(x, bounds):
    k = bounds[1]
    where, soft = x > 0, np.random.default_rng(3).random(x.shape)
    memory = np.empty((2, N + 50))
    y = csoftmax.softmax(x)

    def shifted(a):
        memory[:, :k] = a[:, :k]
        return memory[:, :k], memory[:, 17 : 17 + k]

    parts = shards(x, bounds)
    own, out = shifted(x)
    assert_same_bits(distributed.finish_softmax(own, parts[0], merge(parts), out=out), y[:, :k])
    for which in (0, 1):
        arrays = [x[:, :k].copy(), y[:, :k].copy()]
        parts = shards(x, bounds, {"y": y}, kind="softmax_vjp")
        arrays[which], out = shifted((x, y)[which])
        result = distributed.finish_vjp(*arrays, parts[0], merge(parts), out=out)
        assert_same_bits(result, csoftmax.softmax_vjp(x, y)[:, :k])
    expected = csoftmax.cross_entropy_with_grad(x, soft, reduction="none").grad[:, :k]
    own, out = shifted(soft)
    parts = shards(x, bounds, {"target": np.concatenate([own, soft[:, k:]], axis=1)}, kind="loss")
    parts[0] = partial(x[:, :k], offset=0, n_classes=N, kind="loss", target=own)
    assert_same_bits(distributed.finish_gradient(x[:, :k], parts[0], merge(parts), out=out), expected)
    bits = np.zeros((2, 8 * k), bool)
    bits[:, :k] = where[:, :k]
    parts = shards(x, bounds, {"where": where})
    parts[0] = partial(x[:, :k], offset=0, n_classes=N, where=bits[:, :k])
    result = distributed.finish_softmax(x[:, :k], parts[0], merge(parts), out=bits.view(np.float64))
    assert_same_bits(result, csoftmax.softmax(x, where=where)[:, :k])


def test_a_single_row_without_a_shape_has_a_second_round():
    row = np.full(8192, 1e300)
    row[5] = 1.5e300
    parts = shards(row, (0, 4096, 8192))
    again = shards(row, (0, 4096, 8192), row_max=merge(parts).second_round)
    results = [distributed.finish_softmax(a, p, merge(again)) for a, p in zip(np.split(row, 2), again, strict=True)]
    assert_same_bits(np.concatenate(results), csoftmax.softmax(row))


def test_rows_without_classes():
    x = np.zeros((2, 0))
    part = partial(x, offset=0, n_classes=0, kind="log")
    assert distributed.finish_logsumexp(x, part, merge(part, part)).tolist() == [-np.inf, -np.inf]
    assert distributed.finish_log_softmax(x, part, merge(part)).shape == (2, 0)
    assert distributed.logsumexp(x, group=SingleProcess()).tolist() == [-np.inf, -np.inf]
    assert distributed.softmax(x, group=SingleProcess()).shape == (2, 0)
