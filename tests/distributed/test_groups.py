"""Functions over groups, on threads of one process: bits, protocols, errors on all ranks, collectives."""

import warnings

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.sharded_calls import Call
from helpers.thread_group import run_on, run_on_mesh

import csoftmax
from csoftmax import distributed
from csoftmax._distributed import losses
from csoftmax._distributed import merge as group_merge
from csoftmax._distributed import rows as group_rows
from csoftmax.distributed import DistributedError, DistributedMemoryError


def check_random_calls(seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        call = Call(rng, temperatures=True)
        call.check_over_group(run_on(len(call.shards), call.over_group))


@pytest.mark.parametrize("protocol", ["gather", "reduce"])
def test_random_calls_have_the_bits_of_whole_rows(protocol, monkeypatch):
    monkeypatch.setattr(group_merge, "GATHERED_RANKS", 64 if protocol == "gather" else 0)
    check_random_calls(7, 80)


@pytest.mark.long
@pytest.mark.parametrize("protocol", ["gather", "reduce"])
@pytest.mark.parametrize("seed", range(20))
def test_many_random_calls(protocol, seed, monkeypatch):
    monkeypatch.setattr(group_merge, "GATHERED_RANKS", 64 if protocol == "gather" else 0)
    check_random_calls(100 + seed, 1000)


def test_rows_that_are_merged_in_chunks_have_the_same_bits(monkeypatch):
    monkeypatch.setattr(group_rows, "FRAGMENT_BYTES", 40000)
    rng = np.random.default_rng(3)
    x, weight = rng.normal(size=(7, 9000)).astype(np.float32), rng.random(9000)
    target, cuts = rng.integers(0, 9000, 7), [0, 2500, 5000, 9000]
    expected = csoftmax.cross_entropy_with_grad(x, target, weight=weight)

    def work(group):
        s = slice(*cuts[group.rank : group.rank + 2])
        y = distributed.softmax(x[:, s], group=group)
        return y, *distributed.cross_entropy_with_grad(x[:, s], target, weight=weight[s], group=group)

    results = run_on(3, work)
    assert_same_bits(np.concatenate([y for y, _, _ in results], axis=1), csoftmax.softmax(x))
    assert all(loss == expected.loss for _, loss, _ in results)
    assert_same_bits(np.concatenate([grad for _, _, grad in results], axis=1), expected.grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("n", [100, 9000])
@pytest.mark.parametrize("is_soft", [False, True])
def test_rows_may_be_divided_as_well(reduction, n, is_soft):
    rng = np.random.default_rng(n)
    x, weight, s = rng.normal(size=(21, n)), rng.random(n), rng.random(21)
    target = rng.random((21, n)) if is_soft else rng.integers(0, n, 21)
    expected = csoftmax.cross_entropy_with_grad(x, target, weight=weight, sample_weight=s, reduction=reduction)
    columns, rows = [0, n // 3, n], [slice(0, 10), slice(10, 11), slice(11, 21)]

    def work(group, rows_group):
        classes, r = slice(*columns[group.rank : group.rank + 2]), rows[rows_group.rank]
        y = target[r, classes] if is_soft else target[r]
        return distributed.cross_entropy_with_grad(
            x[r, classes], y, weight=weight[classes], sample_weight=s[r], reduction=reduction,
            group=group, rows_group=rows_group,
        )  # fmt: skip

    results = run_on_mesh(3, 2, work)
    gradient = np.concatenate([np.concatenate([r.grad for r in results[2 * i : 2 * i + 2]], 1) for i in range(3)])
    assert_same_bits(gradient, expected.grad)
    if reduction == "none":
        assert_same_bits(np.concatenate([results[2 * i].loss for i in range(3)]), expected.loss)
    else:
        assert {float(r.loss) for r in results} == {float(expected.loss)}


def test_collectives_and_bytes():
    x, target = np.zeros((64, 12288), np.float32), np.zeros(64, int)
    groups = []

    def work(group):
        groups.append(group)
        a, b = distributed.split(12288, 3)[group.rank : group.rank + 2]
        return distributed.cross_entropy_with_grad(x[:, a:b], target, group=group)

    run_on(3, work)
    for group in groups:
        assert group.collectives == 2  # a header and the records
        assert group.sent == 64 + 8 * (1 + 7) + 64 * 128


@pytest.mark.parametrize("function", [distributed.cross_entropy_with_grad, distributed.linear_cross_entropy_with_grad])
@pytest.mark.parametrize(("weight", "s"), [(1e300, 1e300), (None, 1e308), (1e-320, 1.0), (1e-300, 1e-300)])
def test_extreme_weights_of_a_mean(function, weight, s):
    rng = np.random.default_rng(0)
    x, n, target = rng.normal(size=(3, 9000)), 9000, [1, 5000, 8999]
    options = {"sample_weight": [s, s / 2, s]}
    weights = None if weight is None else np.where(np.arange(n) % 2 == 0, weight, weight / 2)
    whole = {"weight": weights} | options
    is_linear = function is distributed.linear_cross_entropy_with_grad
    features = rng.normal(size=(3, 4))
    w = rng.normal(size=(n, 4))
    if is_linear:
        expected = csoftmax.linear_cross_entropy_with_grad(features, w, target, **whole)
    else:
        expected = csoftmax.cross_entropy_with_grad(x, target, **whole)

    def work(group):
        shard = slice(0, 4096) if group.rank == 0 else slice(4096, n)
        own = {"weight": None if weights is None else weights[shard]} | options
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if is_linear:
                return function(features, w[shard], target, group=group, **own)
            return function(x[:, shard], target, group=group, **own)

    results = run_on(2, work)
    for result in results:
        assert not isinstance(result, Exception), result
        np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-15)
        if is_linear:
            np.testing.assert_allclose(result.grad_x, expected.grad_x, rtol=1e-12)
    name, axis = ("grad_w", 0) if is_linear else ("grad", 1)
    gradient = np.concatenate([getattr(result, name) for result in results], axis=axis)
    if is_linear:
        np.testing.assert_allclose(gradient, expected.grad_w, rtol=1e-9, atol=1e-12 * abs(expected.grad_w).max())
    else:
        assert_same_bits(gradient, expected.grad)


def test_gradients_that_underflow_of_shards_in_any_order(monkeypatch):
    """Whole rows are joined by the offsets of the shards, not by their ranks."""
    found = []
    original = losses.find_lost

    def find_lost(*arguments):
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(losses, "find_lost", find_lost)
    rng = np.random.default_rng(0)
    x, weight, offsets = rng.normal(size=(2, 12288)).astype(np.float32), rng.random(12288), [8192, 0, 4096]
    x[:, 7] = 130  # exp(-130) is 0 in float32, but not 1e12 times as much
    options = {"reduction": "sum", "upstream": 1e12}
    expected = csoftmax.cross_entropy_with_grad(x, [7, 9000], weight=weight, **options)

    def work(group):
        shard = slice(offsets[group.rank], offsets[group.rank] + 4096)
        return distributed.cross_entropy_with_grad(
            x[:, shard], [7, 9000], weight=weight[shard], offset=shard.start, group=group, **options
        )

    results = run_on(3, work)
    assert any((lost == 1).any() for lost in found)
    assert_same_bits(np.concatenate([results[i].grad for i in (1, 2, 0)], axis=1), expected.grad)


@pytest.mark.parametrize("cuts", [
    [0, 30, 100], [0, 4096, 4096], [0, 2000, 4095], [0, 4096, 8192], [0, 5000, 9000], [0, 0, 8192], [0, 0, 0],
    [0, 8192, 8192],
])  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("masks", [False, True])
def test_sinks(cuts, dtype, masks):
    rng = np.random.default_rng(cuts[-1])
    x, sink = rng.normal(size=(3, cuts[-1])).astype(dtype) * 4, rng.normal(size=(3, 1))
    where = rng.random(x.shape) < [[0.5], [0.0], [0.01]] if masks else None
    options = {"sink": sink, "temperature": [[1.0], [0.5], [3.0]]}

    def work(group):
        s = slice(*cuts[group.rank : group.rank + 2])
        own = options | {"group": group, "where": None if where is None else where[:, s]}
        out = x[:, s].copy()
        lse = distributed.logsumexp(x[:, s], keepdims=True, **own)
        result = distributed.softmax(out, out=out, **own)
        assert result is out
        own["where"] = None if where is None else where[:, s].T
        own |= {"sink": sink.T, "temperature": np.transpose(options["temperature"])}
        return out, distributed.log_softmax(x[:, s].T, 0, **own).T, lse

    results = run_on(2, work)
    whole = options | {"where": where}
    for result in results:
        assert not isinstance(result, Exception), result
        assert_same_bits(result[2], csoftmax.logsumexp(x, -1, keepdims=True, **whole))
    for i, function in enumerate((csoftmax.softmax, csoftmax.log_softmax)):
        assert_same_bits(np.concatenate([r[i] for r in results], axis=1), function(x, -1, **whole))


def test_ranks_with_other_sinks_all_raise():
    for result in run_on(2, lambda group: distributed.softmax(np.zeros((2, 5)), sink=group.rank, group=group)):
        with pytest.raises(
            ValueError, match=r"ranks disagree on sink: float64 \(2,\) \w+ on rank 0 and float64 \(2,\)"
        ):
            raise result


@pytest.mark.parametrize("options", [{"b": [1.0, 2.0]}, {"return_sign": True}])
def test_weighted_sums_over_shards_are_not_implemented(options):
    for result in run_on(2, lambda group: distributed.logsumexp(np.zeros((1, 2)), group=group, **options)):
        with pytest.raises(NotImplementedError, match="logsumexp over shards has no b and no return_sign"):
            raise result


def strided(x, layout):
    """The same elements in another layout."""
    if layout == "Fortran":
        return np.asfortranarray(x)
    if layout == "reversed":
        return np.ascontiguousarray(x[:, ::-1])[:, ::-1]
    wide = np.zeros((*x.shape, 2), x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


@pytest.mark.parametrize("layout", ["Fortran", "reversed", "every other"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("cut", [4096, 5000])
def test_logits_and_soft_labels_of_any_layout(layout, dtype, cut):
    rng = np.random.default_rng(1)
    x, soft = rng.normal(size=(2, 9000)).astype(dtype), rng.random((2, 9000)).astype(np.float32)
    shards = slice(0, cut), slice(cut, 9000)
    for logits, target in ((strided(x, layout), [1, 8000]), (x, strided(soft, layout)), (strided(x, layout), soft)):

        def work(group, logits=logits, target=target):
            s = shards[group.rank]
            own = target if isinstance(target, list) else target[:, s]
            grad = distributed.cross_entropy_with_grad(logits[:, s], own, group=group)
            return grad, distributed.cross_entropy_with_grad(
                logits[:, s].T, np.transpose(own), axis=0, group=group
            ).grad

        results = run_on(2, work)
        expected = csoftmax.cross_entropy_with_grad(x, target)
        assert all(loss == expected.loss for (loss, _), _ in results)
        assert_same_bits(np.concatenate([grad for (_, grad), _ in results], axis=1), expected.grad)
        assert_same_bits(np.concatenate([grad for _, grad in results], axis=0).T, expected.grad)


def test_masses_of_soft_labels_that_overflow():
    """A mean over them is that of whole rows, NaN where the row's weight is 0."""
    x, soft = np.zeros((2, 5000)), np.full((2, 5000), 1e305)
    soft[1] = 1 / 5000
    for s in ([0.0, 1.0], [1.0, 1.0]):
        expected = csoftmax.cross_entropy(x, soft, sample_weight=s)
        got = distributed.cross_entropy(x, soft, sample_weight=s, group=distributed.SingleProcess())
        np.testing.assert_array_equal(got, expected)


def test_soft_labels_that_are_the_same_for_all_classes():
    x = np.random.default_rng(0).normal(size=(2, 5000))
    soft = np.broadcast_to(1 / 5000, x.shape)
    result = distributed.cross_entropy_with_grad(x, soft, group=distributed.SingleProcess())
    assert_same_bits(result.grad, csoftmax.cross_entropy_with_grad(x, soft).grad)


@pytest.mark.parametrize("n", [100, 9000])
@pytest.mark.parametrize("s", [[1e300, 1.0, 2.0, 1e300], [1.0, 2.0, 1e-200, 1e200]])
def test_slices_may_have_temperatures_and_extreme_weights(n, s):
    """The weights of all slices have one scale."""
    rng = np.random.default_rng(n)
    x, target, t = rng.normal(size=(4, n)), rng.integers(0, n, 4), rng.uniform(0.5, 2, (4, 1))
    weight, s = rng.random(n) * 1e200, np.array(s)
    columns, rows = [0, n // 2, n], [slice(0, 1), slice(1, 4)]

    def work(group, rows_group):
        classes, r = slice(*columns[group.rank : group.rank + 2]), rows[rows_group.rank]
        return distributed.cross_entropy_with_grad(
            x[r, classes], target[r], weight=weight[classes], sample_weight=s[r], temperature=t[r],
            group=group, rows_group=rows_group,
        )  # fmt: skip

    results = run_on_mesh(2, 2, work)
    expected = csoftmax.cross_entropy_with_grad(x, target, weight=weight, sample_weight=s, temperature=t)
    for result in results:
        assert not isinstance(result, Exception), result
        assert result.loss == expected.loss
    gradient = np.concatenate([np.concatenate([r.grad for r in results[2 * i : 2 * i + 2]], 1) for i in range(2)])
    assert_same_bits(gradient, expected.grad)


@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.01}, {"clip_value": 1e-4}, {"upstream": 1e30}])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_losses_of_capped_logits_have_the_bits_of_whole_rows(options, dtype):
    """Some logits are far beyond the cap, so that slopes underflow, which counts with a large upstream."""
    rng = np.random.default_rng(4)
    x = (rng.normal(size=(3, 9000)) * [[10], [1e3], [1]]).astype(dtype)
    target, weight, cuts = np.array([5, 8999, -100]), rng.random(9000), [0, 4096, 5000, 9000]
    options = options | {"softcap": 5.0, "label_smoothing": 0.1, "weight": weight}
    expected = csoftmax.cross_entropy_with_grad(x, target, **options)

    def work(group):
        s = slice(*cuts[group.rank : group.rank + 2])
        own = options | {"weight": weight[s]}
        result = distributed.cross_entropy_with_grad(x[:, s], target, group=group, **own)
        own = {name: own[name] for name in ("softcap", "label_smoothing", "weight")}
        assert_same_bits(np.asarray(distributed.cross_entropy(x[:, s], target, group=group, **own)), result.loss)
        return result

    results = run_on(3, work)
    for result in results:
        assert not isinstance(result, Exception), result
        assert_same_bits(np.asarray(result.loss), np.asarray(expected.loss))
    assert_same_bits(np.concatenate([r.grad for r in results], axis=1), expected.grad)


COLLECTIVES = [
    (distributed.softmax, {}, 2),
    (distributed.cross_entropy_with_grad, {}, 2),
    (distributed.cross_entropy_with_grad, {"weight": True}, 3),
    (distributed.cross_entropy_with_grad, {"weight": True, "reduction": "sum"}, 2),
    (distributed.cross_entropy_with_grad, {"clip_norm": 1.0}, 3),
    (distributed.cross_entropy_with_grad, {"clip_norm": 1.0, "softcap": 1.0}, 4),
    (distributed.cross_entropy_with_grad, {"clip_norm": 1.0, "softcap": 1.0, "weight": True}, 5),
    (distributed.cross_entropy_with_grad, {"upstream": 1e70}, 3),
    (distributed.topk, {}, 3),
    (distributed.topk_softmax, {}, 3),
    (distributed.topk_softmax, {"where": True}, 4),
    (distributed.topk_softmax, {"normalize": "full"}, 6),
    (distributed.topk_softmax, {"normalize": "full", "where": True}, 7),
    (distributed.sample, {"rng": 0, "top_k": 3}, 4),
    (distributed.sample, {"rng": 0}, 5),
    (distributed.sample, {"rng": 0, "top_p": 0.001}, 5),
    (distributed.sample, {"rng": 0, "top_p": 0.3}, 9),
    (distributed.linear_cross_entropy, {"reduction": "sum"}, 3),
    (distributed.linear_cross_entropy, {}, 4),
    (distributed.linear_cross_entropy_with_grad, {}, 5),
    (distributed.linear_cross_entropy_with_grad, {"weight": True}, 6),
]


@pytest.mark.parametrize(("function", "options", "count"), COLLECTIVES)
def test_collectives_of_the_guide(function, options, count):
    x, target, groups = np.random.default_rng(0).normal(size=(4, 8192)), [1, 2, 3, 8000], []

    def work(group):
        groups.append(group)
        shard = slice(4096 * group.rank, 4096 * group.rank + 4096)
        arrays = {"weight": np.ones(4096), "where": np.ones((4, 4096), bool)}
        own = {name: arrays[name] if value is True else value for name, value in options.items()}
        if function in (distributed.linear_cross_entropy, distributed.linear_cross_entropy_with_grad):
            return function(np.ones((4, 3)), x[:3, shard].T, target, group=group, **own)
        if function is distributed.cross_entropy_with_grad:
            return function(x[:, shard], target, group=group, **own)
        first = (x[:, shard], 3) if function in (distributed.topk, distributed.topk_softmax) else (x[:, shard],)
        return function(*first, group=group, **own)

    for result in run_on(2, work):
        assert not isinstance(result, Exception), result
    assert [group.collectives for group in groups] == [count] * 2


@pytest.mark.parametrize(("reduction", "count"), [("none", 2), ("sum", 2), ("mean", 3)])
def test_collectives_over_rows(reduction, count):
    x, groups = np.zeros((2, 8192)), []

    def work(group, rows_group):
        groups.append((group, rows_group))
        shard = slice(4096 * group.rank, 4096 * group.rank + 4096)
        return distributed.cross_entropy(
            x[:, shard], [1, 5000], group=group, rows_group=rows_group, reduction=reduction
        )

    run_on_mesh(2, 2, work)
    assert [(g.collectives, rows.collectives, rows.sent) for g, rows in groups] == [(2, count, count * 4616)] * 4


# Errors: the same exception on every rank, and no rank that waits for ever.


def call_on(size, function, broken, change, **options):
    """Results of `function` on ranks of which one has other arguments."""
    x, target = np.zeros((3, 4096), np.float32), np.arange(3)

    def work(group):
        arguments = {"logits": x, "target": target} | options
        if group.rank == broken:
            arguments |= change
        if function is not distributed.cross_entropy:
            arguments = {"x": arguments.pop("logits")} | {k: v for k, v in arguments.items() if k != "target"}
        return function(**arguments, group=group)

    return run_on(size, work)


ALL_RANKS = [
    (
        {"target": np.array([0, 1, 99999])},
        r"ranks disagree on target: int64 \(3,\) \w+ on rank 0 and int64 \(3,\) \w+ on rank 1",
    ),
    ({"logits": np.zeros((3, 4096))}, "ranks disagree on the dtype: float32 on rank 0 and float64 on rank 1"),
    (
        {"logits": np.zeros((4, 4096), np.float32), "target": np.arange(4)},
        r"the shape of the rows: \(3,\) on rank 0 and \(4,\) on",
    ),
    ({"label_smoothing": 0.1}, "ranks disagree on label_smoothing: 0.0 on rank 0 and 0.1 on rank 1"),
    ({"temperature": 2.0}, "ranks disagree on the temperature: 1.0 on rank 0 and 2.0 on rank 1"),
    ({"n_classes": 20000}, "ranks disagree on n_classes: None on rank 0 and 20000 on rank 1"),
    ({"offset": 5}, "offset must be given on all ranks or on none"),
]


@pytest.mark.parametrize(("change", "message"), ALL_RANKS)
def test_ranks_that_disagree_all_raise_the_same(change, message):
    results = call_on(3, distributed.cross_entropy, 1, change)
    assert len({str(r) for r in results}) == 1
    for result in results:
        with pytest.raises(ValueError, match=message):
            raise result


def test_ranks_with_other_temperatures_of_rows_all_raise():
    x = np.zeros((2, 4096))
    temperatures = [[[1.0], [2.0]], [[1.0], [3.0]]]
    for result in run_on(2, lambda group: distributed.softmax(x, group=group, temperature=temperatures[group.rank])):
        with pytest.raises(
            ValueError, match=r"ranks disagree on the temperature: float64 \(2,\) .* on rank 0 and float64"
        ):
            raise result


def test_rows_may_have_temperatures():
    x = np.random.default_rng(0).normal(size=(2, 8192))
    t = [[0.5], [1e300]]
    results = run_on(2, lambda group: distributed.softmax(np.split(x, 2, 1)[group.rank], group=group, temperature=t))
    assert_same_bits(np.concatenate(results, axis=1), csoftmax.softmax(x, temperature=t))


@pytest.mark.parametrize(("change", "message"), [
    ({"label_smoothing": 2.0}, "rank 1: ValueError: label_smoothing must be at least 0 and at most 1, got 2.0"),
    ({"logits": np.zeros((3, 4096), int).astype(object)}, "rank 1: TypeError: logits has dtype object"),
    ({"target": np.array([0.5, 1, 2])}, "rank 1: ValueError: target has shape"),
])  # fmt: skip
def test_an_error_on_one_rank_is_raised_on_all(change, message):
    for result in call_on(3, distributed.cross_entropy, 1, change):
        assert type(result) is DistributedError
        assert result.rank == 1
        assert str(result).startswith(message)


def test_an_error_that_all_ranks_have_is_raised_itself():
    for result in call_on(2, distributed.cross_entropy, None, {}, target=[0, 1, 8192]):
        with pytest.raises(IndexError, match=r"target\[2\] is 8192: the classes are 0 to 8191"):
            raise result


@pytest.mark.parametrize("stage", ["sum_piece", "plan_partial"])
def test_a_lack_of_memory_on_one_rank_is_raised_on_all(stage, monkeypatch):
    original = getattr(group_rows, stage)
    count = iter(range(100))

    def fail_once(*arguments, **options):
        if next(count) == 0:
            raise MemoryError("no memory")
        return original(*arguments, **options)

    monkeypatch.setattr(group_rows, stage, fail_once)
    results = call_on(3, distributed.softmax, None, {})
    assert {type(r) for r in results} == {DistributedMemoryError}
    assert all(r.message == "MemoryError: no memory" for r in results)


@pytest.mark.parametrize(("offsets", "message"), [
    ([0, 4096, 8193], "rank 2 begins at 8193, after the shards before it end at 8192, which is a gap"),
    ([0, 4095, 8192], "rank 1 begins at 4095, after the shards before it end at 4096, which is an overlap"),
])  # fmt: skip
def test_shards_must_tile_the_classes(offsets, message):
    x = np.zeros((1, 4096))
    for result in run_on(3, lambda g: distributed.softmax(x, group=g, offset=offsets[g.rank])):
        with pytest.raises(ValueError, match=message):
            raise result


def test_shards_in_any_order():
    x = np.random.default_rng(0).normal(size=(2, 12288))
    offsets = [8192, 0, 4096]
    results = run_on(3, lambda g: distributed.softmax(x[:, (a := offsets[g.rank]) : a + 4096], group=g, offset=a))
    assert_same_bits(np.concatenate([results[i] for i in (1, 2, 0)], axis=1), csoftmax.softmax(x))


def test_what_is_no_group_is_named():
    with pytest.raises(TypeError, match=r"group is a builtins\.int; allowed are a communicator of mpi4py"):
        distributed.softmax([1.0], group=3)


def test_results_go_to_out_and_other_axes():
    x = np.random.default_rng(5).normal(size=(9000, 2)).astype(np.float32)

    def work(group):
        part = x[:5000].copy() if group.rank == 0 else x[5000:].copy()
        return distributed.softmax(part, 0, group=group, out=part), part

    results = run_on(2, work)
    assert all(result is part for result, part in results)
    assert_same_bits(np.concatenate([result for result, _ in results]), csoftmax.softmax(x, 0))


# The k best, draws, linear layers


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32])
@pytest.mark.parametrize("n", [30, 9000])
def test_topk_is_that_of_whole_rows(dtype, n):
    rng = np.random.default_rng(n)
    x = rng.integers(-40, 40, (4, n)).astype(dtype)  # many ties
    if dtype != np.int32:
        x[1, ::5], x[2, 3] = -np.inf, np.nan
    cuts = [0, 7, n // 2, n]
    for k in (1, 5, 20):
        for largest in (True, False):
            expected = csoftmax.topk(x, k, largest=largest)

            def work(group, k=k, largest=largest):
                shard = x[:, slice(*cuts[group.rank : group.rank + 2])]
                return distributed.topk(shard, k, group=group, largest=largest)

            for result in run_on(3, work):
                assert_same_bits(result.values, expected.values)
                assert_same_bits(result.indices, expected.indices)


@pytest.mark.parametrize("normalize", ["topk", "full"])
@pytest.mark.parametrize("n", [30, 9000])
@pytest.mark.parametrize("masks", [False, True])
def test_topk_softmax_is_that_of_whole_rows(normalize, n, masks):
    rng = np.random.default_rng(n)
    x = np.round(rng.normal(size=(3, n)) * 3, 1).astype(np.float32)
    where = rng.random((3, n)) < [[0.5], [0.0], [1.0]] if masks else None
    cuts, options = [0, 11, n // 2, n], {"normalize": normalize, "temperature": 0.7}
    expected = csoftmax.topk_softmax(x, 6, where=where, **options)

    def work(group):
        s = slice(*cuts[group.rank : group.rank + 2])
        return distributed.topk_softmax(
            x[:, s], 6, group=group, where=None if where is None else where[:, s], **options
        )

    for result in run_on(3, work):
        assert_same_bits(result.values, expected.values)
        assert_same_bits(result.indices, expected.indices)


@pytest.mark.parametrize("function", [distributed.sparsemax, distributed.entmax])
def test_entmax_over_shards_is_not_implemented(function):
    for result in run_on(2, lambda group: function(np.zeros((1, 5)), group=group)):
        with pytest.raises(NotImplementedError, match="over shards is not implemented"):
            raise result


@pytest.mark.parametrize(("reduction", "is_soft"), [("mean", False), ("sum", False), ("none", True)])
def test_linear_layers_have_the_same_bits_for_any_number_of_ranks(reduction, is_soft):
    rng = np.random.default_rng(0)
    n, d = 9000, 8
    x, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((10, d), (n, d), (n,)))
    weight, s = rng.random(n), rng.random(10)
    target = (rng.random((10, n)) * (rng.random((10, n)) < 0.001)).astype(np.float32) if is_soft else None
    target = rng.integers(0, n, 10) if target is None else target
    if not is_soft:
        target[3] = -100
    options = {"label_smoothing": 0.1, "reduction": reduction, "sample_weight": s}
    options |= {"softcap": 3.0} if reduction == "sum" else {}
    if reduction != "sum":
        options["temperature"] = np.linspace(0.5, 2, 10)[:, None]
    expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, bias=bias, weight=weight, **options)
    found = []
    for size in (1, 2, 3):
        cuts = distributed.split(n, size)

        def work(group, cuts=cuts):
            part = slice(*cuts[group.rank : group.rank + 2])
            y = target[:, part] if is_soft else target
            shard = {"bias": bias[part], "weight": weight[part]}
            loss = distributed.linear_cross_entropy(x, w[part], y, group=group, **shard, **options)
            result = distributed.linear_cross_entropy_with_grad(x, w[part], y, group=group, **shard, **options)
            assert_same_bits(np.asarray(loss), np.asarray(result.loss))
            return result

        results = run_on(size, work)
        for result in results:
            assert not isinstance(result, Exception), result
            assert_same_bits(np.asarray(result.loss), np.asarray(results[0].loss))
            np.testing.assert_allclose(result.grad_x, expected.grad_x, rtol=0, atol=2e-5 * abs(expected.grad_x).max())
        found.append((results[0].loss, *(np.concatenate([r[i] for r in results]) for i in (2, 3))))
        for got, right in zip(found[-1], (expected.loss, *expected[2:]), strict=True):
            np.testing.assert_allclose(got, right, rtol=0, atol=2e-5 * np.abs(right).max())
    for got in found[1:]:
        for a, b in zip(got, found[0], strict=True):
            assert_same_bits(np.asarray(a), np.asarray(b))


def test_linear_layers_over_two_groups_and_with_filters():
    """Rows and classes are divided; the loss and the divisor are those of all rows, the gradients of w are added."""
    rng = np.random.default_rng(5)
    x, w, target = rng.normal(size=(9, 4)), rng.normal(size=(9000, 4)), rng.integers(0, 9000, 9)
    options = {"clip_norm": 0.3, "filter_eps": 1e-6, "label_smoothing": 0.05}
    expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, **options)
    columns, rows = [0, 4096, 9000], [slice(0, 3), slice(3, 9)]

    def work(group, rows_group, change=None):
        classes, r = slice(*columns[group.rank : group.rank + 2]), rows[rows_group.rank]
        given = options | (change or {})
        return distributed.linear_cross_entropy_with_grad(
            x[r], w[classes], target[r], group=group, rows_group=rows_group, **given
        )

    results = run_on_mesh(2, 2, work)
    for result in results:
        assert not isinstance(result, Exception), result
        np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-14)
    grad_x = np.concatenate([results[0].grad_x, results[2].grad_x])
    grad_w = np.concatenate([results[0].grad_w + results[2].grad_w, results[1].grad_w + results[3].grad_w])
    limit = 1e-6 * np.abs(x).sum() / 9  # what the filter may leave out, twice
    np.testing.assert_allclose(grad_x, expected.grad_x, rtol=0, atol=2e-6 / 9 * np.abs(w).sum())
    np.testing.assert_allclose(grad_w, expected.grad_w, rtol=0, atol=2 * limit)
    exact = csoftmax.linear_cross_entropy_with_grad(x, w, target, **options | {"filter_eps": 0.0})
    results = run_on_mesh(2, 2, lambda *groups: work(*groups, {"filter_eps": 0.0}))
    grad_w = np.concatenate([results[0].grad_w + results[2].grad_w, results[1].grad_w + results[3].grad_w])
    np.testing.assert_allclose(grad_w, exact.grad_w, rtol=1e-11, atol=1e-16)


def test_an_error_of_one_class_group_is_raised_by_the_ranks_with_other_rows(monkeypatch):
    """It fails after the header, when the ranks with the other rows are about to add up the divisor."""
    x, target = np.zeros((4, 5000)), np.array([0, 1, 2, 3])
    merge_over = losses.merge_over

    def fail(comm, layout, terms, *arguments):
        if terms.batch == (3,):
            raise MemoryError("no memory for rows")
        return merge_over(comm, layout, terms, *arguments)

    monkeypatch.setattr(losses, "merge_over", fail)

    def work(group, rows_group):
        r = [slice(0, 3), slice(3, 4)][rows_group.rank]
        classes = [slice(0, 4096), slice(4096, 5000)][group.rank]
        return distributed.cross_entropy(x[r, classes], target[r], group=group, rows_group=rows_group)

    for rank, error in enumerate(run_on_mesh(2, 2, work)):
        assert isinstance(error, DistributedMemoryError), (rank, error)
        assert "no memory for rows" in str(error)
