"""Errors of calls over groups: all ranks raise, whenever one of them fails, and whatever they disagree on."""

import enum
import threading

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.thread_group import run_on, run_on_mesh

import csoftmax
from csoftmax import distributed
from csoftmax._distributed import draws, losses
from csoftmax._distributed import rows as group_rows
from csoftmax.distributed import DistributedError, SingleProcess


def check_all_raise(results, kind, message):
    for result in results:
        assert type(result) is kind, result
        with pytest.raises(kind, match=message):
            raise result


# Two groups: a slice of rows that fails ends the call for all rows.


def on_mesh(function=distributed.cross_entropy, n=9000, **change):
    """Results of 2 x 2 ranks of which those of slice 1 have other arguments."""
    x, target = np.zeros((3, n), np.float32), np.arange(3)

    def work(group, rows_group):
        arguments = {"logits": np.split(x, 2, axis=1)[group.rank], "target": target}
        changed = {name: value(group.rank) if callable(value) else value for name, value in change.items()}
        arguments |= changed if rows_group.rank == 1 else {}
        return function(**arguments, group=group, rows_group=rows_group)

    return run_on_mesh(2, 2, work)


@pytest.mark.parametrize("n", [100, 9000])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("function", [distributed.cross_entropy, distributed.cross_entropy_with_grad])
def test_a_bad_label_in_a_slice_is_raised_on_all(n, reduction, function):
    def work(group, rows_group):
        target = [0, 1, n if rows_group.rank else 2]
        return function(np.zeros((3, n // 2)), target, reduction=reduction, group=group, rows_group=rows_group)

    message = rf"^rank 1: IndexError: target\[5\] is {n}: the classes are 0 to {n - 1}"
    check_all_raise(run_on_mesh(2, 2, work), DistributedError, message)


def test_bad_labels_in_all_slices_are_raised_as_they_are():
    def work(group, rows_group):
        return distributed.cross_entropy(np.zeros((2, 50)), [0, 100], group=group, rows_group=rows_group)

    check_all_raise(run_on_mesh(2, 2, work), IndexError, r"target\[[13]\] is 100: the classes are 0 to 99")


@pytest.mark.parametrize(("change", "message"), [
    ({"label_smoothing": 0.5}, "ranks disagree on label_smoothing: 0.0 on rank 0 and 0.5 on rank 1"),
    ({"temperature": 2}, "ranks disagree on the temperature: 1.0 on rank 0 and 2.0 on rank 1"),
    ({"z_loss": 1.0}, "ranks disagree on z_loss"),
    ({"ignore_index": 7}, "ranks disagree on ignore_index: -100 on rank 0 and 7 on rank 1"),
    ({"reduction": "sum"}, "ranks disagree on reduction: mean on rank 0 and sum on rank 1"),
    ({"logits": np.zeros((3, 4500))}, "ranks disagree on the dtype: float32 on rank 0 and float64 on rank 1"),
    ({"logits": np.zeros((3, 5000), np.float32)}, "ranks disagree on n_classes: 9000 on rank 0 and 10000 on rank 1"),
    ({"weight": np.ones(4500)}, "ranks disagree on class weights: False on rank 0 and True on rank 1"),
    ({"target": np.full((3, 4500), 1e-3)}, "ranks disagree on soft labels: False on rank 0 and True on rank 1"),
])  # fmt: skip
def test_slices_that_disagree_all_raise_the_same(change, message):
    check_all_raise(on_mesh(**change), ValueError, message)


def test_slices_of_equal_options_in_other_types_agree():
    results = on_mesh(temperature=np.float32(1), label_smoothing=-0.0, ignore_index=np.int16(-100), target=[3, 4, 5])
    assert len({float(result) for result in results}) == 1


@pytest.mark.parametrize("change", [{"num_threads": -1}, {"upstream": [1, 2]}, {"clip_norm": -1}, {"temperature": 0}])
@pytest.mark.parametrize("n", [100, 9000])
def test_a_slice_with_a_bad_option_ends_the_call(change, n):
    results = on_mesh(distributed.cross_entropy_with_grad, n, **change)
    name = next(iter(change))
    check_all_raise(results, DistributedError, rf"^rank 1: \w+: {name} must")


def test_an_error_of_one_rank_is_told_once_over_two_groups():
    results = on_mesh(label_smoothing=lambda rank: 2.0 * rank)
    check_all_raise(results, DistributedError, r"^rank 1: ValueError: label_smoothing must be at least 0")


@pytest.mark.parametrize("stage", ["find_divisor", "write_gradient", "place_result"])
def test_a_lack_of_memory_at_any_stage_is_raised_on_all(stage, monkeypatch):
    original = getattr(losses, stage)
    x = np.zeros((3, 9000))

    def fail(*arguments, **options):
        if fails[0]:
            fails[0] = False
            raise MemoryError("no memory")
        return original(*arguments, **options)

    def work(group, rows_group):
        part = np.split(x, [4500], axis=1)[group.rank]
        return distributed.cross_entropy_with_grad(part, [1, 2, 3], group=group, rows_group=rows_group, clip_norm=1.0)

    fails = [True]
    monkeypatch.setattr(losses, stage, fail)
    results = run_on_mesh(2, 1, lambda g, rows: distributed.cross_entropy_with_grad(
        x, [1, 2, 3], group=g, rows_group=rows, clip_norm=1.0
    ))  # fmt: skip
    assert {type(r) for r in results} == {distributed.DistributedMemoryError}
    fails = [stage != "find_divisor"]  # whose errors all ranks of a slice have
    results = run_on_mesh(2, 2, work)
    failed = [r for r in results if isinstance(r, Exception)]
    assert all(isinstance(r, distributed.DistributedMemoryError) for r in failed), results
    assert len(failed) == (0 if stage == "find_divisor" else 2 if stage == "write_gradient" else 4)


@pytest.mark.parametrize("stage", ["find_lost", "join_rows"])
def test_a_lack_of_memory_while_whole_rows_are_gathered_is_raised_on_all(stage, monkeypatch):
    """Of rows whose gradients underflow; a rank that fails takes part in the collective that the others wait in."""
    original, failing = getattr(losses, stage), []

    def fail(*arguments):
        if threading.get_ident() in failing:
            failing.clear()
            raise MemoryError("no memory")
        return original(*arguments)

    def work(group):
        x = np.random.default_rng(0).normal(size=(2, 12288)).astype(np.float32)
        x[:, 7] = 130  # exp(-130) is 0 in float32, but not 1e12 times as much
        own = slice(4096 * group.rank, 4096 * group.rank + 4096)
        if group.rank == 1:
            failing.append(threading.get_ident())
        options = {"reduction": "sum", "upstream": 1e12, "weight": np.ones(4096)}
        return distributed.cross_entropy_with_grad(x[:, own], [7, 9000], group=group, **options)

    monkeypatch.setattr(losses, stage, fail)
    results = run_on(3, work)
    assert not failing
    check_all_raise(results, distributed.DistributedMemoryError, "^rank 1: MemoryError: no memory")


# One group: what a rank refuses before its header reaches the others with the header.

X = np.zeros((3, 2500))
ONE_RANK = [
    (distributed.logsumexp, {"keepdims": 1}, "TypeError: keepdims must be a bool"),
    (distributed.softmax, {"num_threads": -1}, "ValueError: num_threads must be at least 1"),
    (distributed.softmax, {"offset": 2**70}, r"ValueError: offset must be less than 2\*\*63"),
    (distributed.softmax, {"n_classes": 2**70}, r"ValueError: n_classes must be less than 2\*\*63"),
    (distributed.topk, {"k": 1.5}, "TypeError: k must be an int"),
    (distributed.topk, {"largest": "no"}, "TypeError: largest must be a bool"),
    (distributed.topk_softmax, {"normalize": "all"}, "ValueError: normalize must be"),
    (distributed.sample, {"foo": 1}, "TypeError: sample has no argument 'foo'"),
    (distributed.sample, {"temperature": [[1], [1, 2]]}, "ValueError: "),
    (distributed.sample, {"rng": 0, "uniforms": np.zeros(3)}, "ValueError: rng must be None where uniforms"),
    (distributed.linear_cross_entropy, {"chunk_bytes": 0}, "ValueError: chunk_bytes must be at least 1, got 0"),
    (distributed.linear_cross_entropy, {"num_threads": -1}, "ValueError: num_threads must be at least 1"),
    (distributed.cross_entropy_with_grad, {"num_threads": -1}, "ValueError: num_threads must be at least 1"),
]


def arguments_of(function):
    """Arguments of a function for a shard of X."""
    if function in (distributed.topk, distributed.topk_softmax):
        return {"x": X, "k": 2}
    if function is distributed.sample:
        return {"logits": X}
    if function in (distributed.linear_cross_entropy, distributed.linear_cross_entropy_with_grad):
        return {"x": np.ones((4, 3)), "w": X.T, "target": [0, 1, 2, 3]}
    if function in (distributed.cross_entropy, distributed.cross_entropy_with_grad):
        return {"logits": X, "target": [0, 1, 2]}
    return {"x": X}


@pytest.mark.parametrize(("function", "change", "message"), ONE_RANK)
def test_what_one_rank_refuses_is_raised_on_all(function, change, message):
    def work(group):
        return function(**arguments_of(function) | (change if group.rank == 1 else {}), group=group)

    check_all_raise(run_on(2, work), DistributedError, f"^rank 1: {message}")


@pytest.mark.parametrize("function", [distributed.cross_entropy, distributed.linear_cross_entropy_with_grad])
@pytest.mark.parametrize(("offset", "place"), [(2500, r"\(2507\)$"), (None, r"\(7\) of the shard$")])
def test_a_bad_class_weight_is_named_by_its_class_where_that_is_known(function, offset, place):
    def work(group):
        weight = np.ones(2500)
        weight[7] = -group.rank
        where = {} if offset is None else {"offset": offset * group.rank}
        return function(**arguments_of(function), weight=weight, group=group, **where)

    message = rf"^rank 1: ValueError: weight must be at least 0 and finite in float64, got -1.0 at {place}"
    check_all_raise(run_on(2, work), DistributedError, message)


def test_a_bad_class_weight_of_a_partial_result_is_named_by_its_class():
    with pytest.raises(ValueError, match=r"got nan at \(4096\)$"):
        distributed.partial(np.zeros((1, 2)), kind="loss", target=[0], weight=[np.nan, 1], offset=4096, n_classes=5000)


@pytest.mark.parametrize("function", [distributed.cross_entropy, distributed.cross_entropy_with_grad])
def test_errors_of_losses_name_their_logits(function):
    with pytest.raises(TypeError, match=r"^logits has dtype object, because it is None"):
        function(None, [0], group=SingleProcess())
    with pytest.raises(ValueError, match=r"^logits is 0-dimensional"):
        function(1.0, [0], group=SingleProcess())


def test_ranks_with_as_many_rows_in_another_shape_all_raise():
    shapes = (3000, 1, 2500), (1, 3000, 2500)
    results = run_on(2, lambda group: distributed.softmax(np.zeros(shapes[group.rank]), group=group))
    message = r"the shape of the rows: \(3000, 1\) on rank 0 and \(1, 3000\) on rank 1"
    check_all_raise(results, ValueError, message)


@pytest.mark.parametrize("rows", [0, 4])
def test_ranks_in_different_functions_all_raise(rows):
    def work(group):
        function = distributed.linear_cross_entropy if group.rank else distributed.linear_cross_entropy_with_grad
        return function(np.ones((rows, 3)), X.T, np.zeros(rows, int), group=group)

    message = "the function: linear_cross_entropy_with_grad on rank 0 and linear_cross_entropy on rank 1"
    check_all_raise(run_on(2, work), ValueError, message)


@pytest.mark.parametrize("dtypes", [(np.int32, np.uint32), (np.int64, np.uint64), (np.float32, np.int32)])
def test_the_k_best_of_different_dtypes_are_refused(dtypes):
    results = run_on(2, lambda group: distributed.topk(X.astype(dtypes[group.rank]), 2, group=group))
    names = [np.dtype(d).name for d in dtypes]
    check_all_raise(results, ValueError, f"the dtype: {names[0]} on rank 0 and {names[1]} on rank 1")


def test_long_options_that_differ_are_told_apart():
    temperature = np.linspace(1, 2, 300)

    def work(group):
        return distributed.sample(np.zeros((300, 5)), temperature=temperature + group.rank, rng=0, group=group)

    results = run_on(2, work)
    check_all_raise(results, ValueError, r"the temperature: float64 \(300,\) \w+ on rank 0 and float64 \(300,\) \w+ on")
    first, second = str(results[0]).split(" and ")
    assert first.split()[-4] != second.split()[-4]


@pytest.mark.parametrize(("function", "values"), [
    (distributed.topk, {"k": (2, np.int64(2)), "largest": (True, np.bool_(True))}),
    (distributed.topk_softmax, {"temperature": (1, 1.0)}),
    (distributed.sample, {"temperature": (1, np.float32(1)), "size": (3, (np.int8(3),)), "top_k": (2, 2.0)}),
    (distributed.softmax, {"temperature": (2, np.float64(2))}),
])  # fmt: skip
def test_equal_options_in_other_types_agree(function, values):
    def work(group):
        changes = {name: both[group.rank] for name, both in values.items() if name != "top_k"}
        return function(**arguments_of(function) | changes, group=group)

    for result in run_on(2, work):
        assert not isinstance(result, Exception), result


class Name(str, enum.Enum):  # noqa: UP042 - unlike that of a StrEnum, str() of a member is not its text
    MEAN, NONE, FULL = "mean", "none", "full"


class Count(enum.IntEnum):
    TWO = 2


class Number(float):
    pass


@pytest.mark.parametrize("kind", [Name, np.str_])
@pytest.mark.parametrize(("function", "name", "value"), [
    (distributed.cross_entropy, "reduction", "mean"),
    (distributed.cross_entropy_with_grad, "reduction", "none"),
    (distributed.linear_cross_entropy, "reduction", "mean"),
    (distributed.topk_softmax, "normalize", "full"),
])  # fmt: skip
def test_names_that_are_subclasses_of_str_agree_with_strings(function, name, value, kind):
    def work(group):
        return function(**arguments_of(function) | {name: kind(value) if group.rank else value}, group=group)

    for result in run_on(2, work):
        assert not isinstance(result, Exception), result


@pytest.mark.parametrize(("function", "names"), [
    (distributed.cross_entropy_with_grad, "temperature z_loss softcap upstream clip_norm clip_value ignore_index"),
    (distributed.linear_cross_entropy_with_grad, "temperature z_loss softcap upstream filter_eps chunk_bytes"),
    (distributed.topk_softmax, "temperature k"),
    (distributed.sample, "temperature top_k top_p min_p size"),
    (distributed.softmax, "temperature sink"),
])  # fmt: skip
def test_numbers_of_subclasses_agree_with_numbers(function, names):
    def work(group):
        found = []
        for name in names.split():
            is_count = name in ("ignore_index", "chunk_bytes", "k", "top_k", "size")
            number = 2 if is_count else 0.5
            given = (Count.TWO if is_count else Number(0.5)) if group.rank else number
            found.append(function(**arguments_of(function) | {name: given}, group=group))
        return found

    for result in run_on(2, work):
        assert not isinstance(result, Exception), result


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"size": 4}])
def test_a_rank_without_classes_draws_as_well(options):
    x = np.random.default_rng(0).normal(size=(3, 50))
    results = run_on(2, lambda g: distributed.sample(x[:, : 50 * g.rank], rng=0, group=g, **options))
    for result in results:
        assert not isinstance(result, Exception), result
        assert (result == results[0]).all()


# The group itself.


class Shared(SingleProcess):
    """Returns one array to all ranks, as an engine of threads may, or one in another order."""

    def __init__(self, group, order="C"):
        self.size, self.rank, self.group, self.order = group.size, group.rank, group, order

    def all_gather(self, a):
        result, (_, barrier) = np.asarray(self.group.all_gather(a), order=self.order), self.group._shared
        if self.rank == 0:
            barrier.result = result
        barrier.wait()
        return barrier.result

    def all_reduce(self, a, op):
        return self.group.all_reduce(a, op)


@pytest.mark.parametrize("order", ["C", "F"])
def test_what_a_group_returns_is_copied(order):
    x = np.random.default_rng(0).normal(size=(300, 8192)) * 9
    expected = csoftmax.softmax(x)

    def work(group):
        return distributed.softmax(np.split(x, 2, axis=1)[group.rank], group=Shared(group, order))

    for _ in range(3):
        assert_same_bits(np.concatenate(run_on(2, work), axis=1), expected)


@pytest.mark.parametrize("wrong", [np.zeros((1, 3), np.int64), np.zeros((1, 8))])
def test_a_group_that_returns_something_else_is_named(wrong):
    class Wrong(SingleProcess):
        def all_gather(self, a):
            return wrong

    with pytest.raises(TypeError, match=r"a collective of Wrong returned .* int64 of shape \(1, 8\) is needed"):
        distributed.softmax(np.zeros((1, 5)), group=Wrong())


def test_an_error_of_the_engine_names_the_call():
    class Broken(SingleProcess):
        def all_gather(self, a):
            if len(a) > 8:
                raise RuntimeError("connection closed by peer")
            return super().all_gather(a)

    with pytest.raises(RuntimeError, match="connection closed by peer") as caught:
        distributed.softmax(np.zeros((1, 5)), group=Broken())
    assert caught.value.__notes__ == ["in csoftmax.distributed.softmax on rank 0 of 1"]


# Errors name the row and the class of the call.


def test_errors_of_rows_that_are_merged_in_chunks_name_the_row_of_the_call(monkeypatch):
    monkeypatch.setattr(group_rows, "FRAGMENT_BYTES", 100000)
    x = np.zeros((8, 3, 5000), np.float32)
    labels, soft = np.zeros((8, 3), int), np.zeros((8, 3, 5000), np.float32)
    labels[6, 1], soft[6, 1, 4500] = 5000, -1

    def work(target):
        def call(group):
            own = np.split(target, 2, axis=2)[group.rank] if target.ndim == 3 else target
            return distributed.cross_entropy(np.split(x, 2, axis=2)[group.rank], own, group=group)

        return call

    check_all_raise(run_on(2, work(labels)), IndexError, r"target\[6, 1\] is 5000: the classes are 0 to 4999")
    message = r"rank 1: ValueError: soft labels must be .* the class axis last, has -1.0 at \(6, 1, 4500\)"
    check_all_raise(run_on(2, work(soft)), DistributedError, message)


@pytest.mark.parametrize("is_soft", [False, True])
def test_errors_of_linear_layers_name_the_row_of_the_call(is_soft):
    x, w = np.ones((4, 100, 3), np.float32), np.ones((5000, 3), np.float32)
    target = np.zeros((4, 100, 5000), np.float32) if is_soft else np.zeros((4, 100), int)
    target[(2, 90, 4500) if is_soft else (2, 90)] = -1

    def work(group):
        s = slice(0, 2500) if group.rank == 0 else slice(2500, 5000)
        own = target[..., s] if is_soft else target
        return distributed.linear_cross_entropy(x, w[s], own, group=group, chunk_bytes=1 << 18)

    message = r"rank 1: ValueError: .* has -1.0 at \(2, 90, 4500\)" if is_soft else r"target\[2, 90\] is -1"
    check_all_raise(run_on(2, work), DistributedError if is_soft else IndexError, message)


@pytest.mark.parametrize("n", [100, 9000])
def test_soft_labels_of_whole_rows_name_the_class_of_the_call(n):
    soft = np.zeros((2, n))
    soft[1, n - 3] = np.nan
    for result in run_on(2, lambda g: distributed.cross_entropy_with_grad(
        np.zeros((2, n // 2)), np.split(soft, 2, axis=1)[g.rank], group=g
    )):  # fmt: skip
        with pytest.raises((ValueError, DistributedError), match=rf"has nan at \(1, {n - 3}\)"):
            raise result


@pytest.mark.parametrize("limit", [1 << 28, 1 << 12])
@pytest.mark.parametrize(("n", "options"), [(400, {}), (400, {"top_k": 3}), (9000, {}), (9000, {"top_p": 0.5})])
@pytest.mark.parametrize(("value", "held"), [(np.nan, "NaN"), (np.inf, r"\+inf"), (-np.inf, "only -inf")])
def test_errors_of_draws_name_the_row_of_the_call(limit, n, options, value, held, monkeypatch):
    monkeypatch.setattr(draws, "GATHERED_BYTES", limit)
    x = np.zeros((4, 3, n))
    x[2, 1, slice(None) if value == -np.inf else n * 3 // 4] = value
    check_all_raise(
        run_on(2, lambda g: distributed.sample(np.split(x, 2, axis=2)[g.rank], group=g, **options)), ValueError,
        rf"^logits have no mass to draw from in row \(2, 1\): it holds {held}$",
    )  # fmt: skip


@pytest.mark.parametrize(("n", "options"), [(400, {}), (400, {"top_k": 3}), (9000, {}), (9000, {"top_p": 0.5})])
def test_draws_from_a_row_without_classes_name_the_mask(n, options):
    x, where = np.zeros((2, n)), np.ones((2, n), bool)
    where[1] = False

    def work(group):
        shard, mask = (np.split(a, 2, axis=1)[group.rank] for a in (x, where))
        return distributed.sample(shard, where=mask, group=group, **options)

    check_all_raise(
        run_on(2, work), ValueError,
        r"^logits have no mass to draw from in row \(1\): where leaves none of its classes, or only -inf$",
    )  # fmt: skip


def test_draws_of_a_single_row_without_a_shape():
    x = np.array([0.0, 50.0, 0.0, -50.0])
    for size, expected in ((None, 1), (0, []), (2, [1, 1]), ((2, 1), [[1], [1]])):
        for options in ({}, {"top_k": 1}):
            results = run_on(2, lambda g, size=size, more=options: distributed.sample(
                np.split(x, 2)[g.rank], size=size, rng=0, group=g, **more
            ))  # fmt: skip
            whole = csoftmax.sample(x, size=size, rng=0, **options)
            for result in results:
                assert type(result) is type(whole)
                assert np.asarray(result).tolist() == expected
