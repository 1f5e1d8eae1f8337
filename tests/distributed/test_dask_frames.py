"""csoftmax.dask with dataframes: the same columns and index, partitions of unknown lengths, empty ones among them."""

import importlib

import numpy as np
import pytest

import csoftmax

dd = pytest.importorskip("dask.dataframe")
dask = pytest.importorskip("dask")
pytest.importorskip("dask.array")
pandas = pytest.importorskip("pandas")
cd = importlib.import_module("csoftmax.dask")

RNG = np.random.default_rng(0)
TABLE = pandas.DataFrame(RNG.normal(size=(30, 4)), columns=["a", "b", "c", "d"], index=np.arange(100, 400, 10))


def refuse_to_compute(*arguments, **options):
    raise AssertionError("something has been computed")


def drop_rows(a):
    """Leave out the rows of the second partition, and some others."""
    return a[(a.index < 150) | (a.index > 300)]


@pytest.fixture(params=["whole", "with an empty partition"])
def frames(request):
    """A table, and the same lazily; its labels, and these lazily."""
    labels = pandas.Series(RNG.integers(0, 4, 30), index=TABLE.index)
    table, lazy, lazy_labels = TABLE, dd.from_pandas(TABLE, npartitions=4), dd.from_pandas(labels, npartitions=4)
    if request.param != "whole":
        lazy, lazy_labels = (a.map_partitions(drop_rows) for a in (lazy, lazy_labels))
        table, labels = drop_rows(TABLE), drop_rows(labels)
    with dask.config.set(scheduler="synchronous"):
        yield table, lazy, labels, lazy_labels


def test_results_keep_columns_and_index(frames):
    table, lazy, _, _ = frames
    for name in ("softmax", "log_softmax", "sparsemax", "entmax"):
        for function in (getattr(cd, name), getattr(csoftmax, name)):
            with dask.config.set(scheduler=refuse_to_compute):
                result = function(lazy)
            assert isinstance(result, dd.DataFrame)
            assert list(result.columns) == list(table.columns)
            expected = getattr(csoftmax, name)(table.to_numpy())
            pandas.testing.assert_frame_equal(
                result.compute(), pandas.DataFrame(expected, table.index, table.columns), check_exact=True
            )
    with dask.config.set(scheduler=refuse_to_compute):
        gradient = cd.softmax_vjp(lazy, lazy)
    expected = csoftmax.softmax_vjp(table.to_numpy(), table.to_numpy())
    assert (gradient.compute().to_numpy() == expected).all()


def test_a_number_for_each_row_is_a_series(frames):
    table, lazy, labels, lazy_labels = frames
    values = table.to_numpy()
    for result, expected in (
        (cd.logsumexp(lazy), csoftmax.logsumexp(values)),
        (cd.entropy(lazy), csoftmax.entropy(values)),
        (cd.kl_divergence(lazy, lazy * 2), csoftmax.kl_divergence(values, values * 2)),
        (cd.sample(lazy, rng=1), csoftmax.sample(values, rng=1)),
        (
            cd.cross_entropy(lazy, lazy_labels, reduction="none"),
            csoftmax.cross_entropy(values, labels.to_numpy(), reduction="none"),
        ),
    ):
        assert isinstance(result, dd.Series)
        pandas.testing.assert_series_equal(result.compute(), pandas.Series(expected, table.index), check_exact=True)


def test_losses_of_dataframes(frames):
    table, lazy, labels, lazy_labels = frames
    weights = labels * 0.5 + 1
    for reduction in ("mean", "sum"):
        options = {"reduction": reduction}
        with dask.config.set(scheduler=refuse_to_compute):
            got = cd.cross_entropy_with_grad(lazy, lazy_labels, sample_weight=lazy_labels * 0.5 + 1, **options)
        expected = csoftmax.cross_entropy_with_grad(
            table.to_numpy(), labels.to_numpy(), sample_weight=weights.to_numpy(), **options
        )
        assert got.loss.compute() == expected.loss
        assert list(got.grad.columns) == list(table.columns)
        assert (got.grad.compute().to_numpy() == expected.grad).all()
    values, indices = dask.compute(*cd.topk(lazy, 2))
    expected = csoftmax.topk(table.to_numpy(), 2)
    assert (values == expected.values).all()
    assert (indices == expected.indices).all()


def test_a_bad_label_is_named_by_its_partition():
    lazy = dd.from_pandas(TABLE, npartitions=4)
    labels = pandas.Series(0, index=TABLE.index)
    labels.iloc[11] = 4
    number = int(np.searchsorted(np.cumsum(lazy.map_partitions(len).compute(scheduler="sync")), 11, side="right"))
    first = int(lazy.map_partitions(len).compute(scheduler="sync")[:number].sum())
    loss = cd.cross_entropy(lazy, dd.from_pandas(labels, npartitions=4))
    with pytest.raises(IndexError, match=rf"target\[{11 - first}\] of chunk {number} is 4: the classes are 0 to 3"):
        loss.compute(scheduler="synchronous")
    with pytest.raises(TypeError, match="target must hold integer labels"):
        cd.cross_entropy(lazy, dd.from_pandas(labels.astype(str).astype(object), npartitions=4))


def test_arguments_in_memory_are_cut_when_lengths_are_known(frames):
    table, lazy, labels, _ = frames
    values, target, weights = table.to_numpy(), labels.to_numpy(), np.linspace(0, 1, len(labels))
    for given, s in ((labels, weights.tolist()), (target, weights)):
        for reduction in ("mean", "none"):
            with dask.config.set(scheduler=refuse_to_compute):
                got = cd.cross_entropy_with_grad(lazy, given, sample_weight=s, reduction=reduction)
            expected = csoftmax.cross_entropy_with_grad(values, target, sample_weight=weights, reduction=reduction)
            assert np.array_equal(got.loss.compute(), expected.loss)
            assert np.array_equal(got.grad.compute(), expected.grad)
    soft = np.full((len(labels), 4), 0.25)
    assert cd.cross_entropy(lazy, soft).compute() == csoftmax.cross_entropy(values, soft)
    where = values > values.mean()
    assert np.array_equal(cd.softmax(lazy, where=where).compute(), csoftmax.softmax(values, where=where))
    loss = cd.cross_entropy(lazy, target[1:])
    n = len(labels)
    with pytest.raises(ValueError, match=f"target has {n - 1} rows along axis 0, and the logits have {n}"):
        loss.compute()
    with pytest.raises(IndexError, match=r"target\[0\] of chunk [0-3] is 4: the classes are 0 to 3"):
        cd.cross_entropy(lazy, target * 0 + 4).compute()


def test_lengths_that_must_be_known():
    """The message says how they are found, of a DataFrame as well."""
    lazy = dd.from_pandas(TABLE, npartitions=4)
    for call in (
        lambda: cd.softmax(lazy, axis=0),
        lambda: cd.softmax(lazy["a"]),
        lambda: cd.cross_entropy(lazy, dask.array.zeros(30, dtype=int, chunks=7)),
    ):
        with pytest.raises(ValueError, match=r"of unknown lengths|unknown, their .* must be equal") as raised:
            call()
        assert "of a DataFrame or Series after to_dask_array()" in str(raised.value)
    known = lazy.to_dask_array().compute_chunk_sizes()
    values = TABLE.to_numpy()
    assert (cd.softmax(known, axis=0).compute(scheduler="sync") == csoftmax.softmax(values, axis=0)).all()


def test_batches_of_dataframes():
    lazy, labels = dd.from_pandas(TABLE, npartitions=4), pandas.Series(["x", "y"] * 15, index=TABLE.index)
    batches = list(cd.batches(lazy, dd.from_pandas(labels, npartitions=4)))
    assert len(batches) == 4
    pandas.testing.assert_frame_equal(pandas.concat([x for x, _ in batches]), TABLE)
    assert list(np.concatenate([np.asarray(y) for _, y in batches])) == list(labels)
