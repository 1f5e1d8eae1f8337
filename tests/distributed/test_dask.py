"""csoftmax.dask: arrays in any chunks, lazily, with the bits of the functions of arrays in memory."""

import importlib
import inspect
import itertools
import re

import numpy as np
import pytest
from helpers import assert_same_bits, assert_same_results, looped
from helpers.lazy_calls import LazyCall, as_lazy, compute
from helpers.sharded_calls import DTYPES
from hypothesis import given, settings
from hypothesis import strategies as st

import csoftmax

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
cd = importlib.import_module("csoftmax.dask")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 9001, 2))
AXES = (1, -2, 0, 2, (0, 2), (2, 1), None)


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def refuse_to_compute(*arguments, **options):
    raise AssertionError("something has been computed")


def assert_same(got, expected, what=""):
    got = compute(got)
    if isinstance(expected, tuple):
        assert_same_results(got, expected, what)
    else:
        assert_same_bits(np.asarray(got), np.asarray(expected), what)


def check_random_calls(seed, count):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        LazyCall(rng).check(rng)


def test_random_calls():
    check_random_calls(1, 60)


@pytest.mark.slow
@looped("seed", range(2, 6))
def test_many_random_calls(seed):
    check_random_calls(seed, 150)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous"])
def test_the_bits_do_not_depend_on_tree_and_scheduler(scheduler):
    rng = np.random.default_rng(5)
    x, target = rng.normal(size=(31, 40000)).astype(np.float32), rng.integers(0, 40000, 31)
    expected = csoftmax.cross_entropy_with_grad(x, target)
    for split_every in (2, 3, 8):
        with dask.config.set(scheduler=scheduler):
            lazy = da.from_array(x, chunks=(7, 4096))
            assert_same(cd.cross_entropy_with_grad(lazy, target, split_every=split_every), expected)
            assert_same(cd.softmax(lazy, split_every=split_every), csoftmax.softmax(x))


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_axis_and_chunks(data):
    ndim = data.draw(st.integers(1, 3))
    shape = [data.draw(st.integers(0, 4)) for _ in range(ndim)]
    axis = data.draw(st.integers(0, ndim - 1))
    shape[axis] = data.draw(st.sampled_from([1, 3, 4096, 4097, 8200, 12289]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dtype = data.draw(st.sampled_from(DTYPES))
    name = data.draw(st.sampled_from(["softmax", "log_softmax", "logsumexp", "entropy", "sparsemax", "entmax", "loss"]))
    x = (rng.normal(size=shape) * rng.choice([1, 10])).astype(dtype)
    lazy, (*rows,) = as_lazy(rng, x), (n for i, n in enumerate(shape) if i != axis)
    if name == "loss":
        target = rng.integers(-1, shape[axis], rows)
        reduction = data.draw(st.sampled_from(["mean", "sum", "none"]))
        options = {"axis": axis, "ignore_index": -1, "reduction": reduction}
        options |= {"sample_weight": rng.random(rows)} if data.draw(st.booleans()) else {}
        expected = csoftmax.cross_entropy_with_grad(x, target, **options)
        assert_same(cd.cross_entropy_with_grad(lazy, as_lazy(rng, target), **options), expected)
        return
    options = {"axis": axis}
    if name in ("softmax", "log_softmax", "logsumexp") and data.draw(st.booleans()):
        options["sink"] = rng.normal(size=[1 if i == axis else n for i, n in enumerate(shape)]).astype(dtype)
    if data.draw(st.booleans()):
        options["where"] = rng.random(shape) < 0.5
    expected = getattr(csoftmax, name)(x, **options)
    arrays = {key: as_lazy(rng, a) if isinstance(a, np.ndarray) else a for key, a in options.items()}
    assert_same(getattr(cd, name)(lazy, **arrays), expected, f"{name} {shape} {axis} {lazy.chunks}")


@pytest.mark.parametrize("axis", AXES)
def test_every_function_and_axis(axis):
    rng = np.random.default_rng(3)
    x, mask = X.astype(np.float32), RNG.random(X.shape) < 0.5
    lazy, lazy_mask = da.from_array(x, chunks=(2, 4000, 1)), da.from_array(mask, chunks=(3, 3000, 2))
    for name in ("softmax", "log_softmax", "sparsemax", "entmax"):
        options = {"axis": axis}
        assert_same(
            getattr(cd, name)(lazy, **options, where=lazy_mask), getattr(csoftmax, name)(x, **options, where=mask)
        )
    for keepdims in (False, True):
        options = {"axis": axis, "keepdims": keepdims}
        assert_same(cd.logsumexp(lazy, **options), csoftmax.logsumexp(x, **options))
        assert_same(cd.entropy(lazy, **options), csoftmax.entropy(x, **options))
        assert_same(cd.kl_divergence(lazy, x[::-1], **options), csoftmax.kl_divergence(x, x[::-1], **options))
        b = rng.normal(size=2)
        expected = csoftmax.logsumexp(x, b=b, return_sign=True, **options)
        assert_same(cd.logsumexp(lazy, b=b, return_sign=True, **options), expected)
    y = csoftmax.softmax(x, axis)
    assert_same(cd.softmax_vjp(lazy, y, axis), csoftmax.softmax_vjp(x, y, axis))
    assert_same(cd.log_softmax_vjp(lazy, y, axis), csoftmax.log_softmax_vjp(x, y, axis))
    for largest in (True, False):
        assert_same(cd.topk(lazy, 2, axis, largest=largest), csoftmax.topk(x, 2, axis, largest=largest))
    for normalize in ("topk", "full"):
        options = {"axis": axis, "normalize": normalize}
        assert_same(
            cd.topk_softmax(lazy, 2, where=lazy_mask, **options), csoftmax.topk_softmax(x, 2, where=mask, **options)
        )
    options = {"axis": axis, "rng": 4, "size": (2, 3)}
    assert_same(cd.sample(lazy, **options), csoftmax.sample(x, **options))
    options = {"axis": axis, "rng": 4, "top_p": 0.5, "return_log_prob": True}
    assert_same(cd.sample(lazy, **options), csoftmax.sample(x, **options))


def test_options_of_rows_in_several_chunks_of_classes():
    x = X[:, :, 0].astype(np.float32)
    lazy = da.from_array(x, chunks=(2, 4000))
    temperature = RNG.random((3, 1)) + 0.5
    for normalize in ("topk", "full"):
        options = {"temperature": temperature, "normalize": normalize}
        assert_same(cd.topk_softmax(lazy, 5, **options), csoftmax.topk_softmax(x, 5, **options))
    ties = np.round(x)
    ties[1, 8000] = np.nan
    assert_same(cd.topk(da.from_array(ties, chunks=(2, 4000)), 9), csoftmax.topk(ties, 9))
    integers = (x * 1e6).astype(np.int64)
    assert_same(cd.topk(da.from_array(integers, chunks=(2, 4000)), 9), csoftmax.topk(integers, 9))
    assert_same(cd.softmax(da.from_array(integers, chunks=(2, 4000))), csoftmax.softmax(integers))
    got = compute(cd.topk(lazy, 9, sorted=False))
    assert_same_bits(np.sort(got[1]), np.sort(csoftmax.topk(x, 9).indices))
    top_k = da.from_array(np.array([1, 5, 9]), chunks=1)
    assert_same(cd.sample(lazy, top_k=top_k, rng=2, size=4), csoftmax.sample(x, top_k=[1, 5, 9], rng=2, size=4))
    uniforms = RNG.random((3, 4))
    options = {"size": 4, "replace": False}
    expected = csoftmax.sample(x, uniforms=uniforms, **options)
    assert_same(cd.sample(lazy, uniforms=da.from_array(uniforms, chunks=2), **options), expected)
    for options in ({"temperature": temperature}, {"softcap": 5.0}):
        for reduction in ("mean", "sum", "none"):
            options |= {"reduction": reduction, "weight": np.linspace(0, 1, 9001)}
            expected = csoftmax.cross_entropy_with_grad(x, [1, 2, 3], **options)
            assert_same(cd.cross_entropy_with_grad(lazy, [1, 2, 3], **options), expected)


def test_losses_over_several_axes_and_of_large_factors():
    x = X.astype(np.float32)
    lazy = da.from_array(x, chunks=(2, 4000, 1))
    labels, soft = RNG.integers(0, 6, 9001), RNG.random(X.shape)
    for reduction in ("mean", "sum", "none"):
        options = {"axis": (0, 2), "reduction": reduction, "weight": np.arange(6.0)}
        for target in (labels, soft):
            expected = csoftmax.cross_entropy_with_grad(x, target, **options)
            assert_same(cd.cross_entropy_with_grad(lazy, target, **options), expected)
        labels_of_rows = RNG.integers(0, 9001, (3, 2))
        for scale in (1e-30, 1e25, 1e300):  # of weights, whose scale cancels in a mean
            options = {
                "axis": 1,
                "reduction": reduction,
                "sample_weight": da.from_array(np.full((3, 1), scale), chunks=1),
            }
            options["weight"] = np.linspace(1, 2, 9001) * min(scale, 1e30)
            plain = options | {"sample_weight": np.full((3, 1), scale)}
            with np.errstate(all="ignore"):
                expected = csoftmax.cross_entropy_with_grad(x, labels_of_rows, **plain)
                assert_same(
                    cd.cross_entropy_with_grad(lazy, labels_of_rows, **options), expected, f"{reduction} {scale}"
                )
    far = np.zeros((2, 8300), np.float32)
    far[0, 5000], far[1, ::3] = 150, -140
    options = {"upstream": np.array([1e30, 1e20]), "reduction": "none", "clip_norm": 0.5}
    for more in (options, options | {"clip_norm": None}):  # gradients that underflow before their factor
        expected = csoftmax.cross_entropy_with_grad(far, [1, 2], **more)
        assert np.count_nonzero(expected.grad) > 2
        assert_same(cd.cross_entropy_with_grad(da.from_array(far, chunks=(1, 4096)), [1, 2], **more), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_cross_entropy(dtype):
    rng = np.random.default_rng(8)
    k, tolerance = 5000, {2: 4e-3, 4: 1e-5, 8: 1e-13}[np.dtype(dtype).itemsize]
    x, w = rng.normal(size=(5, 4, 16)).astype(dtype), (0.3 * rng.normal(size=(k, 16))).astype(dtype)
    target, bias = rng.integers(0, k, (5, 4)), rng.normal(size=k)
    target[0, 0] = -100
    options = {"bias": bias, "weight": rng.random(k), "label_smoothing": 0.1}
    for reduction in ("mean", "none"):
        expected = csoftmax.linear_cross_entropy_with_grad(x, w, target, **options, reduction=reduction)
        before = None
        for chunk in (k, 2500):
            lazy = da.from_array(x, chunks=(2, 3, 7)), da.from_array(w, chunks=(chunk, 9)), target
            got = compute(cd.linear_cross_entropy_with_grad(*lazy, **options, reduction=reduction, chunk_bytes=30000))
            for name, a, b in zip(expected._fields, got, expected, strict=True):
                a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
                assert abs(a - b).max() <= tolerance * max(1, abs(b).max()), name
            if before is not None:  # what does not add up over classes has the same bits in any chunks of these
                for i in (0, 2, 3):
                    assert_same_bits(np.asarray(got[i]), np.asarray(before[i]))
            before = got
            loss = cd.linear_cross_entropy(*lazy, **options, reduction=reduction, chunk_bytes=30000)
            assert_same_bits(np.asarray(loss.compute()), np.asarray(got[0]))


def test_rows_without_a_part_may_hold_infinities():
    x = np.array([[1.0, 2.0], [np.inf, 0.0]])
    got = compute(cd.linear_cross_entropy_with_grad(da.from_array(x, chunks=1), np.eye(2), [0, -100]))
    expected = csoftmax.linear_cross_entropy_with_grad(x, np.eye(2), [0, -100])
    np.testing.assert_allclose(got[2], expected.grad_w, rtol=1e-15)


@looped("order", ["C", "F"])
def test_soft_labels_of_rows_without_a_weight(order):
    x, soft = np.zeros((3, 13686), np.float32, order), np.array(RNG.random((3, 13686)), np.float32, order=order)
    options = {"sample_weight": [0.0, 0.7, 0.0], "label_smoothing": 0.1}
    expected = csoftmax.cross_entropy_with_grad(x, soft, **options)
    for chunks in ((3, 13686), (2, 5000)):
        lazy = da.from_array(x, chunks=chunks)
        for _ in range(5):  # memory that nothing has written differs from call to call
            assert_same(cd.cross_entropy_with_grad(lazy, da.from_array(soft, chunks=chunks), **options), expected)


@looped("k", [3, 5000])
def test_masses_of_soft_labels_that_overflow(k):
    """A mean over them is that of whole rows, NaN where the row's weight is 0, in any chunks."""
    x, soft = np.zeros((3, k)), np.full((3, k), 1 / k)
    soft[0] = 1e308
    for s in ([0.0, 1.0, 2.0], [1.0, 1.0, 0.0]):
        for weight in (None, np.linspace(0, 1, k)):
            options = {"sample_weight": s, "weight": weight}
            expected = csoftmax.cross_entropy(x, soft, **options)
            for chunks in ((3, k), (1, k), (2, 4096)):
                lazy = da.from_array(x, chunks=chunks), da.from_array(soft, chunks=chunks)
                np.testing.assert_array_equal(cd.cross_entropy(*lazy, **options).compute(), expected)


def test_rows_without_rows_in_many_chunks():
    lazy = da.zeros((1, 0), chunks=(1, (0, 0, 0)))
    expected = csoftmax.cross_entropy_with_grad(np.zeros((1, 0)), np.zeros(0, int), axis=0)
    assert_same(cd.cross_entropy_with_grad(lazy, np.zeros(0, int), axis=0), expected)
    assert_same(cd.softmax(da.zeros((0, 0), chunks=((0,), (0, 0)))), np.zeros((0, 0)))


@looped("shape", [(0, 5), (5, 0), (0, 9000), (0, 0), ()])
def test_arrays_without_rows_or_classes(shape):
    x = np.ones(shape)
    lazy = da.from_array(x, chunks=4000)
    for name in ("softmax", "log_softmax", "logsumexp", "entropy", "sparsemax"):
        assert_same(getattr(cd, name)(lazy), getattr(csoftmax, name)(x))
    if shape and shape[0] == 0:
        for reduction in ("mean", "sum", "none"):
            target = np.zeros(0, int)
            expected = csoftmax.cross_entropy_with_grad(x, target, reduction=reduction)
            assert_same(cd.cross_entropy_with_grad(lazy, target, reduction=reduction), expected)


def test_one_row_and_one_number():
    x = X[0, :, 0]
    lazy = da.from_array(x, chunks=4000)
    assert_same(cd.cross_entropy(lazy, 7), csoftmax.cross_entropy(x, 7))
    assert_same(cd.cross_entropy(lazy.rechunk(-1), np.int64(7)), csoftmax.cross_entropy(x, 7))
    assert_same(cd.topk(lazy, 3), csoftmax.topk(x, 3))
    assert_same(cd.sample(lazy, rng=3), csoftmax.sample(x, rng=3))
    assert_same(cd.topk(da.from_array(np.array(2.0)), 1), csoftmax.topk(np.array(2.0), 1))
    assert_same(cd.softmax(da.from_array(np.array(2.0))), csoftmax.softmax(np.array(2.0)))


def call(name, x, **options):
    """A call of an adapter with an array as all of its arguments that are arrays."""
    rows = x[:, 0].astype(int)
    required = {"y": x, "target": da.zeros_like(rows), "k": 2, "w": x, "x": x, "dy": x, "logits": x}
    function = getattr(cd, name)
    names = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    return function(*(required[key] for key in names), **options)


ADAPTERS = sorted(set(cd.__all__) - {"batches", "options"})


@pytest.mark.parametrize("name", ADAPTERS)
def test_nothing_is_computed_before_the_result(name):
    x = da.from_array(np.zeros((4, 9000), np.float32), chunks=(2, 4500))
    unknown = x[x[:, 0] >= 0]
    options = {"sample": {"uniforms": x[:, 0]}}.get(name, {})
    with dask.config.set(scheduler=refuse_to_compute):
        result = call(name, x, **options)
        if not name.startswith("linear"):
            options = {"sample": {"uniforms": unknown[:, 0]}}.get(name, {})
            call(name, unknown, **options)
        first = result[0] if isinstance(result, tuple) else result
        with pytest.raises(AssertionError, match="computed"):
            first.compute()
    for a in result if isinstance(result, tuple) else (result,):
        assert a is None or isinstance(a, da.Array)


@pytest.mark.parametrize("name", ADAPTERS)
def test_signatures_are_those_of_the_functions(name):
    """With split_every, and without out."""
    here, there = (inspect.signature(getattr(m, name)).parameters for m in (cd, csoftmax))
    assert [*here] == [key for key in there if key != "out"] + ["split_every"]
    for key, p in here.items():
        if key != "split_every":
            assert (p.default, p.kind) == (there[key].default, there[key].kind)
    with pytest.raises(ValueError, match="split_every must be at least 2, got 1"):
        call(name, da.zeros((2, 3)), split_every=1)


def test_chunks_of_rows_stay_and_those_of_classes_end_at_blocks():
    y = cd.softmax(da.zeros((5, 20000), chunks=((1, 4), (5000, 5000, 10000))))
    assert y.chunks == ((1, 4), (4096, 4096, 11808))
    assert cd.softmax(da.zeros((5, 4096), chunks=(2, 100))).chunks == ((2, 2, 1), (4096,))
    assert cd.softmax(da.zeros((5, 9000), chunks=(2, 500))).numblocks == (3, 3)
    assert cd.softmax(da.zeros((5, 12288), chunks=(5, (6100, 6188)))).chunks[1] == (4096, 8192)
    assert cd.softmax(da.zeros((5, 12288), chunks=(5, (6188, 6100)))).chunks[1] == (8192, 4096)
    assert cd.cross_entropy_with_grad(da.zeros((5, 9000), chunks=(2, 5000)), np.zeros(5, int)).grad.chunks[0] == (
        2,
        2,
        1,
    )


def test_a_chunk_has_few_tasks():
    """Each task costs a cluster about 1 ms, and each level of dependent ones a round through its scheduler."""
    whole = da.zeros((24, 9000), chunks=(2, 9000))
    divided = da.zeros((2, 24 * 4096), chunks=(2, 2 * 4096))
    target, weights = da.zeros(24, dtype=int, chunks=2), da.ones(2)
    for count, result in (  # 12 for the chunks, but where they are part of the only task that reads them
        (12, cd.softmax(whole)),
        (12 + 12, cd.logsumexp(whole)),
        (12, cd.cross_entropy(whole, target, reduction="none")),
        (12 + 3 * 12 + 4, cd.softmax(divided)),
        (12 + 2 * 12 + 5, cd.logsumexp(divided)),
        (12 + 3 * 12 + 7, cd.cross_entropy_with_grad(divided, [0, 1]).grad),
        (12 + 5 * 12 + 14, cd.cross_entropy_with_grad(divided, [0, 1], sample_weight=weights).grad),
    ):
        (result,) = dask.optimize(result)
        assert len(result.__dask_graph__()) <= count


class Foreign(np.ndarray):
    """Stands for an array of CuPy, of which the module's name tells."""

    __module__ = "cupy"


def test_the_kind_of_chunks_is_kept():
    x = da.from_array(np.zeros((4, 9000)), chunks=(2, 3000)).map_blocks(
        lambda a: a.view(Foreign), meta=np.empty((0, 0)).view(Foreign)
    )
    for y in (
        cd.softmax(x),
        cd.logsumexp(x),
        *cd.topk(x, 2),
        *cd.cross_entropy_with_grad(x, [1] * 4, reduction="none"),
    ):
        assert type(y._meta) is Foreign
    assert cd.softmax(x).numblocks == (2, 1)  # a kernel of a GPU has whole rows
    with pytest.raises(NotImplementedError, match='GPUs are for reduction="none"'):
        cd.cross_entropy(x, [1] * 4)


def test_dispatch():
    lazy = da.from_array(X[:, :, 0], chunks=(2, 4000))
    target = da.from_array(np.array([1, 2, 3]), chunks=2)
    with dask.config.set(scheduler=refuse_to_compute):
        results = csoftmax.softmax(lazy), csoftmax.cross_entropy(X[:, :, 0], target), csoftmax.topk(lazy, 2)
        results += (csoftmax.log_softmax(X[:, :, 0], where=lazy > 0), csoftmax.entmax(lazy, 1.5, 0))
    assert_same(cd.cross_entropy(lazy, target, device="cpu"), csoftmax.cross_entropy(X[:, :, 0], [1, 2, 3]))
    assert_same(results[0], csoftmax.softmax(X[:, :, 0]))
    assert_same(results[1], csoftmax.cross_entropy(X[:, :, 0], [1, 2, 3]))
    assert_same(results[2], csoftmax.topk(X[:, :, 0], 2))
    assert_same(results[3], csoftmax.log_softmax(X[:, :, 0], where=X[:, :, 0] > 0))
    with pytest.raises(TypeError, match=r"^out is not allowed in softmax\(\) of a collection of Dask"):
        csoftmax.softmax(lazy, out=np.empty((3, 9001)))
    with pytest.raises(TypeError, match=r"softmax\(\): got an unexpected keyword argument 'axes'"):
        csoftmax.softmax(lazy, axes=1)
    with pytest.raises(TypeError, match=r"^softmax\(\) takes no such collection of Dask: x is a dask Delayed"):
        csoftmax.softmax(dask.delayed([1.0]))
    with pytest.raises(TypeError, match=r"x is a list that holds a dask Array: pass dask\.array\.stack\(x\)"):
        csoftmax.softmax([lazy[0], lazy[1]])


ARGUMENTLESS = {
    "get_cmake_dir",
    "get_include",
    "get_library",
    "get_num_threads",
    "show_config",
    "set_num_threads",
    "threads",
}
OTHER_MODULES = ("adversarial", "choice", "class_weight", "geometric", "heads", "samplers")


def test_every_other_function_refuses_a_collection_by_name():
    """Nothing is pulled silently; a function that is new is tested without being listed."""
    x = da.from_array(np.arange(6.0).reshape(2, 3), chunks=1)
    labels = da.from_array(np.array([0, 1]), chunks=1)
    refused = 0
    with dask.config.set(scheduler=refuse_to_compute):
        for module in ("", *(f".{name}" for name in OTHER_MODULES)):
            public = importlib.import_module(f"csoftmax{module}")
            for name in public.__all__:
                function = getattr(public, name)
                if not callable(function) or isinstance(function, type) or name in ARGUMENTLESS:
                    continue
                parameters = inspect.signature(function).parameters.values()
                required = [p for p in parameters if p.default is p.empty]
                by_name = {p.name: 1 for p in required if p.kind is p.KEYWORD_ONLY}
                if not module and name in cd.__all__:
                    continue
                for a in (x, labels):
                    with pytest.raises(TypeError, match="dask") as caught:
                        function(*[a] * (len(required) - len(by_name)), **by_name)
                    if not module:
                        assert str(caught.value).startswith(f"{name}() takes no such collection of Dask: ")
                    refused += 1
    assert refused > 80


@pytest.mark.parametrize("chunks", [((3, 4, 3), 5000), ((3, 4, 3), (2000, 3000))])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_bad_weight_is_named_by_its_place_among_all_rows(chunks, reduction):
    w = np.ones(10)
    w[8] = -1
    for weights in (w, da.from_array(w, chunks=5)):
        loss = cd.cross_entropy(
            da.zeros((10, 5000), chunks=chunks), np.zeros(10, int), sample_weight=weights, reduction=reduction
        )
        with pytest.raises(
            ValueError, match=r"sample_weight must be at least 0 and finite in float64, got -1.0 at \(8\)"
        ):
            loss.compute()


def test_bad_labels_are_named_by_their_place_among_all_rows():
    x = da.zeros((3, 4, 9), chunks=(2, 3, 9))
    target = np.zeros((3, 4), int)
    target[2, 3] = 9
    for k in (9, 9000):
        x, target[2, 3] = da.zeros((3, 4, k), chunks=(2, 3, 4500)), k
        for result in (cd.cross_entropy(x, target, reduction="none"), *cd.cross_entropy_with_grad(x, target)):
            message = rf"target\[2, 3\] is {k}: the classes are 0 to {k - 1}, and ignore_index is -100"
            with pytest.raises(IndexError, match=message):
                result.compute()
        soft = np.ones((3, 4, k))
        soft[1, 2, k - 2] = -1
        with pytest.raises(ValueError, match=rf"soft labels .* has -1\.0 at \(1, 2, {k - 2}\)"):
            cd.cross_entropy(x, da.from_array(soft, chunks=(2, 2, 4000))).compute()
    rows = da.zeros((6, 9000), chunks=(2, 4500))
    unknown = rows[rows[:, 0] == 0]
    labels = da.from_array(np.array([0, 1, 2, 3, 4, -7]), chunks=2)
    for logits in (unknown, unknown.rechunk({1: -1})):
        with pytest.raises(IndexError, match=r"target\[1\] of chunk 2 is -7: the classes are 0 to 8999"):
            cd.cross_entropy(logits, labels).compute()


def test_bad_temperatures_are_named_by_their_place_among_all_rows():
    x, each = np.zeros((6, 9000)), np.ones((6, 1))
    each[4], each[5] = -1, np.nan
    calls = {
        "at least 0": [cd.softmax, cd.logsumexp, cd.entropy, lambda x, **given: cd.topk_softmax(x, 2, **given).values],
        "positive and finite": [
            lambda x, **given: cd.softmax_vjp(x, x, **given),
            lambda x, **given: cd.cross_entropy(x, [0] * 6, **given),
        ],
    }
    kept = da.ones(6, chunks=2) > 0
    for lazy in (da.from_array(x, chunks=(2, 9000)), da.from_array(x, chunks=(2, 4096))):
        for allowed, functions in calls.items():
            for function in functions:
                message = rf"temperature must be {allowed}, got -1\.0 at \(4, 0\)$"
                for temperature in (each, da.from_array(each, chunks=(3, 1))):
                    with pytest.raises(ValueError, match=message):
                        function(lazy, temperature=temperature).compute()
                message = rf"temperature must be {allowed}, got -1\.0 at \(0, 0\) of chunk 2$"
                with pytest.raises(ValueError, match=message):
                    function(lazy[kept], temperature=da.from_array(each, chunks=(2, 1))[kept]).compute()
    with pytest.raises(ValueError, match=r"alpha must be at least 1 and finite, got -1\.0 at \(4, 0\)$"):
        cd.entmax(da.from_array(x[:, :5], chunks=2), each).compute()
    with pytest.raises(ValueError, match=r"got -1\.0 at \(0, 0\)$"):
        cd.softmax(da.from_array(x[:, :5], chunks=2), temperature=[-1.0]).compute()


@pytest.mark.parametrize("shape", [(4, 9000), (1, 9000), (9000,), (4,), (5, 1)])
def test_temperatures_in_another_shape_than_that_of_the_rows_are_refused_as_of_an_array_in_memory(shape):
    x, labels, t = np.zeros((4, 9000)), np.zeros(4, int), np.ones(shape)
    lazy = da.from_array(x, chunks=(2, 3000))
    for name, numbers, more in (
        ("softmax", "temperature", ()), ("entmax", "alpha", ()), ("softmax_vjp", "temperature", (x,)),
        ("cross_entropy", "temperature", (labels,)), ("logsumexp", "temperature", ()),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="allowed are a number and what broadcasts to") as expected:
            getattr(csoftmax, name)(x, *more, **{numbers: t})
        with pytest.raises(ValueError, match=re.escape(str(expected.value))):
            getattr(cd, name)(lazy, *more, **{numbers: t})


def test_errors_of_arguments_are_raised_while_the_graph_is_built():
    x = da.zeros((4, 9000), chunks=(2, 4000))
    unknown = x[x[:, 0] == 0]
    with dask.config.set(scheduler=refuse_to_compute):
        for error, message, function in (
            (np.exceptions.AxisError, "axis 2 is out of bounds", lambda: cd.softmax(x, 2)),
            (ValueError, "temperature must be at least 0", lambda: cd.softmax(x, temperature=-1)),
            (TypeError, "x has dtype complex128", lambda: cd.softmax(x.astype(complex))),
            (
                ValueError,
                r"where has shape \(3, 9000\), which does not broadcast",
                lambda: cd.softmax(x, where=x[:3] > 0),
            ),
            (ValueError, r"y has shape \(4, 1\), which must be \(4, 9000\)", lambda: cd.softmax_vjp(x, x[:, :1])),
            (TypeError, "y has dtype float32", lambda: cd.softmax_vjp(x, x.astype(np.float32))),
            (ValueError, r"target has shape \(3,\), which must be \(4,\)", lambda: cd.cross_entropy(x, [1, 2, 3])),
            (TypeError, "target must hold integer labels", lambda: cd.cross_entropy(x, ["a"] * 4)),
            (
                ValueError,
                r"target has shape \(4,\): soft labels have the shape of the logits, \(4, 9000\); labels of shape",
                lambda: cd.cross_entropy(x, np.zeros(4)),
            ),
            (ValueError, "label_smoothing must be at least 0", lambda: cd.cross_entropy(x, [1] * 4, label_smoothing=2)),
            (ValueError, "reduction must be", lambda: cd.cross_entropy(x, [1] * 4, reduction="median")),
            (NotImplementedError, 'reduction="none"', lambda: cd.cross_entropy(x, [1] * 4, device="cuda")),
            (
                ValueError,
                "upstream must be a number",
                lambda: cd.cross_entropy_with_grad(x, [1] * 4, upstream=[1.0] * 4),
            ),
            (ValueError, "k must be at most the length of the axis, 9000, got 9001", lambda: cd.topk(x, 9001)),
            (ValueError, "chunks of unknown lengths", lambda: cd.softmax(unknown, 0)),
            (
                ValueError,
                "target has 1 chunks along axis 0",
                lambda: cd.cross_entropy(unknown, da.from_array([1] * 4)),
            ),
            (ValueError, "rng must be None", lambda: cd.sample(x, rng=0, uniforms=x[:, 0])),
            (
                ValueError,
                "filter_eps must be at least 0",
                lambda: cd.linear_cross_entropy(x, x, [1] * 4, filter_eps=-1),
            ),
            (ValueError, r"w \(4, 8999\)", lambda: cd.linear_cross_entropy(x, x[:, 1:], [1] * 4)),
            (ValueError, "X has shape", lambda: cd.batches(x[0], [1])),
            (ValueError, "split_every must be at least 2", lambda: cd.options(split_every=1).__enter__()),
        ):
            with pytest.raises(error, match=message):
                function()


def test_chunks_of_unknown_lengths():
    x, s = X[:, :, 0].astype(np.float32), np.array([1.0, 0.5, 0.0])
    target, keep = np.array([1, 8000, 3]), np.array([True, False, True])
    lazy = da.from_array(x, chunks=(2, 4000))[da.from_array(keep, chunks=2)]
    labels = da.from_array(target, chunks=2)[da.from_array(keep, chunks=2)]
    weights = da.from_array(s, chunks=2)[da.from_array(keep, chunks=2)]
    for logits in (lazy, lazy.rechunk({1: -1})):
        assert_same_bits(cd.softmax(logits).compute(), csoftmax.softmax(x[keep]))
        for reduction in ("mean", "sum", "none"):
            got = dask.compute(*cd.cross_entropy_with_grad(logits, labels, sample_weight=weights, reduction=reduction))
            options = {"sample_weight": s[keep], "reduction": reduction}
            assert_same_results(got, csoftmax.cross_entropy_with_grad(x[keep], target[keep], **options))
        for draws in (cd.sample(logits, rng=1), cd.sample(logits, uniforms=weights * 0.5)):
            options = {"rng": 1} if draws.chunks[0][0] == 1 else {"uniforms": s[keep] * 0.5}
            assert_same_bits(draws.compute(), csoftmax.sample(x[keep], **options))
        assert all(np.isnan(lazy.shape[:1]))  # the lengths were found on a copy
        in_memory = cd.cross_entropy(logits, target[keep], sample_weight=s[keep])
        assert_same(in_memory, csoftmax.cross_entropy(x[keep], target[keep], sample_weight=s[keep]))
        loss = cd.linear_cross_entropy(logits, x[:2], labels % 2)
        assert abs(loss.compute() - csoftmax.linear_cross_entropy(x[keep], x[:2], target[keep] % 2)) < 1e-2


def test_trees_have_few_levels_and_no_merge_that_they_can_do_without():
    from csoftmax._dask.blocks import bound_groups

    for arity, count in itertools.product((2, 3, 8), range(1, 200)):
        left, levels, merges = count, 1, 1
        while left > arity:
            bounds = bound_groups(left, arity)
            sizes = [b - a for a, b in itertools.pairwise(bounds)]
            assert max(sizes) <= arity
            left, levels, merges = left - bounds[-1] + len(sizes), levels + 1, merges + len(sizes)
        assert arity ** (levels - 1) < count or levels == 1
        assert count <= arity**levels
        assert merges <= -(-count // arity) + count // (arity - 1)
    assert bound_groups(12, 8) == [0, 5]  # with the seven others, the last task has eight


def test_options_hold_within_their_block():
    from csoftmax._dask.options import current

    x = da.zeros((2, 40000), chunks=(2, 4096))
    with cd.options(split_every=2, keep=False, retries=5) as inside:
        assert (current().split_every, current().keep, current().retries) == (2, False, 5)
        assert inside is current()
        many = len(cd.softmax(x).__dask_graph__())
    assert (current().split_every, current().keep, current().retries, current().client) == (8, True, 3, None)
    assert len(cd.softmax(x).__dask_graph__()) < many
    with pytest.raises(TypeError, match="keep must be a bool"), cd.options(keep=1):
        pass
    for client in ("tcp://x", 3):
        with pytest.raises(TypeError, match=r"client is a builtins\..*: allowed is a distributed\.Client"):
            cd.options(client=client).__enter__()


def test_options_keep_those_around_them():
    with cd.options(retries=5, keep=False), cd.options(split_every=2) as inner:
        assert (inner.retries, inner.keep, inner.split_every) == (5, False, 2)
        with cd.options(keep=True) as innermost:
            assert (innermost.retries, innermost.keep, innermost.split_every) == (5, True, 2)


def test_batches_come_in_order_and_bound_memory():
    read = []

    def note(a, block_info=None):
        if block_info:
            read.append(block_info[None]["chunk-location"][0])
        return a

    x = da.from_array(np.arange(20.0).reshape(10, 2), chunks=(3, 1)).rechunk((3, 2)).map_blocks(note, dtype=float)
    y, weight = np.array([f"class {i % 3}" for i in range(10)]), da.ones(10, chunks=5)
    batches = cd.batches(x, y, weight, prefetch=1)
    assert len(batches) == 4
    for _ in range(2):  # repeatable
        read.clear()
        rows = []
        for number, (features, labels, weights) in enumerate(batches):
            rows.append(features)
            assert len(features) == len(labels) == len(weights)
            assert labels[0] == f"class {number * 3 % 3}"
            assert len(read) <= number + 3  # what is read ahead, and the one that the thread has begun
        np.testing.assert_array_equal(np.concatenate(rows), np.arange(20.0).reshape(10, 2))
        assert read == [0, 1, 2, 3]
    read.clear()
    for _ in cd.batches(x, y, prefetch=0):
        break
    assert len(read) == 1  # an iteration that ends early reads no more


def test_batches_leave_out_parts_without_rows():
    linear_model = pytest.importorskip("csoftmax.linear_model")
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 3
    kept = x[:, 0] >= 18
    lazy, labels = da.from_array(x, chunks=(3, 2)), da.from_array(y, chunks=3)
    batches = cd.batches(lazy[lazy[:, 0] >= 18], labels[lazy[:, 0] >= 18])
    ((features, found),) = batches
    assert np.array_equal(features, x[kept])
    assert np.array_equal(found, y[kept])
    model = linear_model.SoftmaxRegression(solver="adamw", random_state=0)
    assert model.fit_batches(batches, [0, 1, 2], epochs=1).n_features_in_ == 2
    known = cd.batches(da.from_array(x, chunks=((0, 12, 0), 2)), y, prefetch=0)
    assert [len(features) for features, _ in known] == [12]
    assert list(cd.batches(lazy[lazy[:, 0] > 99], labels[labels > 99])) == []


def test_a_failing_batch_raises_its_error():
    def fail(a):
        raise OSError("no such part")

    x = da.zeros((4, 2), chunks=2).map_blocks(fail, dtype=float, meta=np.empty((0, 0)))
    with pytest.raises(OSError, match="no such part"):
        list(cd.batches(x, np.zeros(4)))


def test_estimators_train_on_batches():
    linear_model = pytest.importorskip("csoftmax.linear_model")
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 4)), rng.integers(0, 3, 300)
    x[np.arange(300), y] += 3
    make = lambda: linear_model.SoftmaxRegression(solver="adamw", learning_rate=0.1, random_state=0)  # noqa: E731
    lazy = cd.batches(da.from_array(x, chunks=(50, 2)), da.from_array(y, chunks=70))
    parts = [(x[i : i + 50], y[i : i + 50]) for i in range(0, 300, 50)]
    got, expected = (make().fit_batches(b, [0, 1, 2], epochs=3) for b in (lazy, parts))
    assert_same_bits(got.coef_, expected.coef_)
    many = linear_model.ManyClassRegression(random_state=0)
    assert many.fit_batches(lazy, [0, 1, 2], epochs=2).score(x, y) > 0.5
