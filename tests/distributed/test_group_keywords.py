"""Functions over groups have the arguments of the functions of arrays in memory, and name rows of all ranks."""

import inspect

import numpy as np
import pytest
from helpers import assert_same_bits
from helpers.thread_group import run_on, run_on_mesh

import csoftmax
from csoftmax import distributed
from csoftmax._distributed import rows
from csoftmax.distributed import DistributedError, SingleProcess

NOT_OVER_SHARDS = {"sample": {"typical_p", "top_n_sigma", "order"}}  # they raise NotImplementedError
ONLY_OVER_GROUPS = {"group", "rows_group", "n_classes", "offset", "deterministic"}
REFUSED = {"sparsemax", "entmax"}
NAMES = sorted(name for name in distributed.__all__ if hasattr(csoftmax, name) and name not in REFUSED)
BOUNDS = [0, 4096, 9000]


def shard(x, group, axis=-1):
    return np.split(x, BOUNDS[1:-1], axis)[group.rank]


@pytest.mark.parametrize("name", NAMES)
def test_functions_over_groups_have_the_arguments_of_their_originals(name):
    whole = inspect.signature(getattr(csoftmax, name)).parameters
    over = inspect.signature(getattr(distributed, name)).parameters
    assert set(whole) - set(over) == NOT_OVER_SHARDS.get(name, set())
    assert set(over) - set(whole) <= ONLY_OVER_GROUPS | ({"options"} if name == "sample" else set())
    for parameter in set(whole) & set(over):
        a, b = whole[parameter], over[parameter]
        assert (a.default, a.kind) == (b.default, b.kind), parameter


@pytest.mark.parametrize("name", NAMES)
def test_the_device_is_the_cpu(name):
    x = np.zeros((2, 3))
    more = {
        "linear_cross_entropy": (np.zeros((4, 3)), [0, 3]),
        "linear_cross_entropy_with_grad": (np.zeros((4, 3)), [0, 3]),
        "cross_entropy": ([0, 2],),
        "cross_entropy_with_grad": ([0, 2],),
        "softmax_vjp": (x,),
        "log_softmax_vjp": (x,),
        "topk": (2,),
        "topk_softmax": (2,),
    }.get(name, ())
    options = {"group": SingleProcess(), "num_threads": 1} | ({"rng": 0} if name == "sample" else {})
    function = getattr(distributed, name)
    found, expected = (function(x, *more, device=device, **options) for device in ("cpu", None))
    np.testing.assert_equal(found, expected)
    with pytest.raises(csoftmax.DeviceError, match="device"):
        function(x, *more, device="cuda", **options)
    with pytest.raises(ValueError, match='device must be None, "cpu", "cuda" or "cuda:<index>", got \'gpu\''):
        function(x, *more, device="gpu", **options)


@pytest.mark.parametrize("options", [{}, {"keepdims": True}, {"sink": 1.0}, {"axis": 0}, {"axis": 0, "keepdims": True}])
def test_logsumexp_writes_to_out(options):
    x = np.random.default_rng(0).normal(size=(3, 9000)).astype(np.float32)
    x = x.T if options.get("axis") == 0 else x
    expected = csoftmax.logsumexp(x, **options)

    def work(group):
        out = np.empty_like(expected)
        assert distributed.logsumexp(shard(x, group, options.get("axis", -1)), group=group, out=out, **options) is out
        return out

    for result in [*run_on(2, work), *run_on(2, work)]:
        assert_same_bits(result, expected)
    for out, error, message in (
        (np.empty(3), TypeError, "out has dtype float64; the result has dtype float32"),
        (np.empty((3, 1), np.float32), ValueError, r"out has shape \(3, 1\); the result has shape \(3,\)"),
    ):
        with pytest.raises(error, match=message):
            distributed.logsumexp(np.zeros((3, 5), np.float32), group=SingleProcess(), out=out)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("normalize", ["topk", "full"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_topk_softmax_takes_temperatures_of_rows_and_out(axis, normalize, dtype):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(9000, 3) if axis == 0 else (3, 9000)).astype(dtype)
    t = rng.random((1, 3) if axis == 0 else (3, 1)) + 0.5
    options = {"axis": axis, "temperature": t, "normalize": normalize, "sorted": True, "num_threads": 2}
    expected = csoftmax.topk_softmax(x, 4, **options)

    def work(group):
        out = np.empty_like(expected.values), np.empty_like(expected.indices)
        found = distributed.topk_softmax(shard(x, group, axis), 4, group=group, out=out, **options)
        assert found.values is out[0]
        assert found.indices is out[1]
        return found

    for found in run_on(2, work):
        assert_same_bits(found.values, expected.values)
        assert_same_bits(found.indices, expected.indices)


def test_what_does_not_fit_a_topk_is_refused_on_all_ranks():
    x = np.zeros((3, 5), np.float32)
    values, indices = np.empty((3, 2), np.float32), np.empty((3, 2), np.int64)
    for options, error, message in (
        ({"out": values}, TypeError, "out must be a pair of arrays, for values and indices, got ndarray"),
        ({"out": (values, values)}, TypeError, "out has dtype float32; the result has dtype int64"),
        ({"out": (values[:, :1], indices)}, ValueError, r"out has shape \(3, 1\); the result has shape \(3, 2\)"),
        ({"temperature": np.ones((2, 1))}, ValueError, r"temperature has shape \(2, 1\)"),
        ({"sorted": 3}, TypeError, "sorted"),
    ):
        for result in run_on(2, lambda group, o=options: distributed.topk_softmax(x, 2, group=group, **o)):
            with pytest.raises(error, match=message):
                raise result
    by_rank = [np.ones((3, 1)), np.full((3, 1), 2.0)]
    for result in run_on(2, lambda g: distributed.topk_softmax(x, 2, group=g, temperature=by_rank[g.rank])):
        with pytest.raises(ValueError, match="ranks disagree on the temperature"):
            raise result


def test_draws_are_written_to_out():
    x = np.random.default_rng(2).normal(size=(3, 9000))
    expected = csoftmax.sample(x, size=5, rng=7)

    def work(group):
        out = np.empty((3, 5), np.int64)
        assert distributed.sample(shard(x, group), group=group, size=5, rng=7, out=out) is out
        return out

    for result in run_on(2, work):
        assert_same_bits(result, expected)
    with pytest.raises(ValueError, match=r"out has shape \(2,\); the result has shape \(3,\)"):
        distributed.sample(x, group=SingleProcess(), rng=0, out=np.empty(2, np.int64))


def test_the_gradient_of_x_is_added_in_the_order_of_the_shards():
    """Ranks that hold the shards in another order have the same bits."""
    rng = np.random.default_rng(3)
    x, w, target = rng.normal(size=(9, 40)), rng.normal(size=(9, 40)), rng.integers(0, 9, 9)
    bounds = [(0, 2), (2, 3), (3, 7), (7, 9)]

    def gradient(order, **options):
        def work(group):
            a, b = bounds[order[group.rank]]
            return distributed.linear_cross_entropy_with_grad(x, w[a:b], target, group=group, offset=a, **options)

        results = run_on(4, work)
        for result in results:
            assert_same_bits(result.grad_x, results[0].grad_x)
        return results[0].grad_x

    expected = gradient([0, 1, 2, 3], deterministic=True)
    for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
        assert_same_bits(gradient(order, deterministic=True), expected)
        assert_same_bits(gradient(order), expected)


def test_tables_of_pandas_keep_their_labels():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(np.random.default_rng(4).normal(size=(2, 3)), index=["a", "b"], columns=["x", "y", "z"])
    group = SingleProcess()
    for function in (distributed.softmax, distributed.log_softmax):
        pandas.testing.assert_frame_equal(function(table, group=group), getattr(csoftmax, function.__name__)(table))
    out = np.empty((2, 3))
    assert distributed.softmax(table, group=group, out=out) is out
    assert type(distributed.logsumexp(table[["x"]], group=group, keepdims=True)) is np.ndarray
    y = distributed.softmax(table, group=group)
    pandas.testing.assert_frame_equal(distributed.softmax_vjp(y, y, group=group), csoftmax.softmax_vjp(y, y))
    found = distributed.cross_entropy_with_grad(table, [0, 1], group=group)
    pandas.testing.assert_frame_equal(found.grad, csoftmax.cross_entropy_with_grad(table, [0, 1]).grad)
    found = distributed.linear_cross_entropy_with_grad(table, np.ones((4, 3)), [0, 1], group=group)
    assert list(found.grad_x.columns) == ["x", "y", "z"]
    part = distributed.partial(table, offset=0, n_classes=3)
    pandas.testing.assert_frame_equal(distributed.finish_softmax(table, part, part), csoftmax.softmax(table))


# Rows of all ranks


@pytest.mark.parametrize("is_soft", [False, True])
@pytest.mark.parametrize("batch", [(7,), (7, 2)])
@pytest.mark.parametrize("n", [9000, 90])
def test_a_bad_label_is_named_by_its_row_among_those_of_all_ranks(n, batch, is_soft, monkeypatch):
    monkeypatch.setattr(rows, "FRAGMENT_BYTES", 1)  # a row at a time, where blocks are divided
    at = (5, *batch[1:])[: len(batch)]
    at = (*at[:1], *(1,) * (len(batch) - 1))
    x = np.zeros((*batch, n))
    target = np.full((*batch, n), 1 / n) if is_soft else np.zeros(batch, np.int64)
    target[(*at, 50) if is_soft else at] = -1
    layer = np.zeros((*batch, 2)), np.zeros((n, 2))
    slices, columns = [slice(0, 4), slice(4, 7)], [slice(0, n // 3), slice(n // 3, n)]
    place = ", ".join(map(str, at))
    message = (
        rf"ValueError: soft labels must be at least 0 and finite; target, the class axis last, has -1\.0 at "
        rf"\({place}, 50\)"
        if is_soft
        else rf"IndexError: target\[{place}\] is -1: the classes are 0 to {n - 1}"
    )

    def work(function):
        def over(group, rows_group):
            r, classes = slices[rows_group.rank], columns[group.rank]
            own = target[r][..., classes] if is_soft else target[r]
            if function is distributed.cross_entropy:
                arguments = (x[r][..., classes],)
            else:
                arguments = layer[0][r], layer[1][classes]
            return function(*arguments, own, group=group, rows_group=rows_group)

        return over

    for function in 2 * [distributed.cross_entropy, distributed.linear_cross_entropy]:
        for error in run_on_mesh(2, 2, work(function)):
            with pytest.raises(DistributedError, match=message):
                raise error
