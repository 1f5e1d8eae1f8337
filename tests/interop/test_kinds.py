"""Tables and labelled arrays: missing values are NaN, labels are kept; a refusal says what to pass instead."""

import sys
import warnings

import numpy as np
import pytest
from helpers import looped

import csoftmax
from csoftmax import adversarial, geometric

pandas = pytest.importorskip("pandas")
A = np.array([[0.5, -1.0, 2.0], [3.0, 0.25, -0.5]])
TABLE = pandas.DataFrame(A, index=["r", "s"], columns=list("abc"))


@pytest.fixture(autouse=True)
def _without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def functions():
    """Functions whose results have the shape of their first argument, with the other arguments."""
    dy = A[::-1].copy()
    return {
        "softmax": {},
        "log_softmax": {"temperature": 2.0},
        "softmax_vjp": {"y": csoftmax.softmax(A)},
        "log_softmax_vjp": {"y": csoftmax.log_softmax(A)},
        "sparsemax": {},
        "entmax": {"alpha": 1.3},
        "entmax_vjp": {"y": csoftmax.entmax(dy)},
    }


@looped("name", functions())
def test_tables_keep_their_labels(name):
    function, options = getattr(csoftmax, name), functions()[name]
    expected = function(A, **options)
    for table in (TABLE, TABLE.astype("Float64"), TABLE.set_index(pandas.MultiIndex.from_tuples([(1, 2), (3, 4)]))):
        got = function(table, **options)
        assert type(got) is pandas.DataFrame
        assert got.index.equals(table.index)
        assert got.columns.equals(table.columns)
        assert (got.dtypes == np.float64).all()
        np.testing.assert_array_equal(got.to_numpy(), expected)
    narrow = {k: v.astype(np.float32) if isinstance(v, np.ndarray) else v for k, v in options.items()}
    assert (function(TABLE.astype(np.float32), **narrow).dtypes == np.float32).all()


def test_series_keep_index_and_name():
    column = TABLE["b"]
    got = csoftmax.softmax(column)
    assert got.name == "b"
    assert got.index.equals(column.index)
    np.testing.assert_array_equal(got.to_numpy(), csoftmax.softmax(column.to_numpy()))
    weighted = csoftmax.softmax(TABLE, where=TABLE > 0)  # a table as the mask, too
    np.testing.assert_array_equal(weighted.to_numpy(), csoftmax.softmax(A, where=A > 0))


def test_gradients_keep_labels_and_other_results_do_not():
    y = pandas.Series([2, 0], dtype="Int64")
    loss, grad = csoftmax.cross_entropy_with_grad(TABLE, y)
    expected = csoftmax.cross_entropy_with_grad(A, [2, 0])
    assert loss == expected.loss
    assert grad.columns.equals(TABLE.columns)
    assert grad.index.equals(TABLE.index)
    np.testing.assert_array_equal(grad.to_numpy(), expected.grad)
    grad = csoftmax.entmax_loss_with_grad(TABLE, y).grad
    assert grad.columns.equals(TABLE.columns)
    w = A[::-1].copy()  # as many classes as rows: the gradient of w has the shape of x, but other rows
    result = csoftmax.linear_cross_entropy_with_grad(TABLE, w, [1, 0])
    assert result.grad_x.columns.equals(TABLE.columns)
    assert type(result.grad_w) is np.ndarray
    assert type(csoftmax.margin_cross_entropy_with_grad(TABLE, w, [1, 0]).grad_x) is pandas.DataFrame
    assert type(csoftmax.in_batch_softmax_loss_with_grad(TABLE, w).grad_y) is np.ndarray
    marginals = csoftmax.crf_marginals(TABLE, np.zeros((3, 3)))
    assert marginals[0].columns.equals(TABLE.columns)
    best = csoftmax.topk(TABLE, 3)  # of the same shape, but in another order
    assert type(best.values) is type(best.indices) is np.ndarray
    assert type(csoftmax.logsumexp(TABLE)) is np.ndarray
    assert type(csoftmax.logsumexp(TABLE[["a"]], keepdims=True)) is np.ndarray  # one column, and a sum of it
    assert type(csoftmax.softmax(TABLE.columns.str.len())) is np.ndarray  # an Index labels nothing
    out = np.empty_like(A)
    assert csoftmax.softmax(TABLE, out=out) is out


def results_like_x(x, w):
    """Results of csoftmax.geometric and csoftmax.adversarial that have the shape of x, and the same for arrays."""
    cost = geometric.Cost(points=np.arange(3.0))
    for of in (x, A):
        yield (
            geometric.g_softmax(of, cost),
            geometric.g_softmax(of, cost, return_gap=True)[0],
            geometric.g_softmax_vjp(of, geometric.g_softmax(A, cost), cost),
            geometric.g_cross_entropy_with_grad(of, [2, 0], cost).grad,
            geometric.poincare_cross_entropy_with_grad(of, w, [1, 0]).grad_x,
            geometric.vmf_cross_entropy_with_grad(of, w, 2.0, [1, 0]).grad_x,
            geometric.log_bessel_iv(3.0, abs(of)),
            geometric.log_bessel_iv(np.arange(3.0), abs(of)),
            geometric.log_bessel_iv(abs(of), 2.0),
            geometric.bessel_ratio([[0.5], [1.0]], abs(of)),
            adversarial.perturb(of, w, [1, 0], eps=0.1),
            adversarial.perturb(of, None, None, eps=0.1, gradient=np.cos),
            adversarial.robust_cross_entropy_with_grad(of, w, [1, 0], eps=0.1).grad_x,
            adversarial.vat_loss_with_grad(of, w, eps=0.1).grad_x,
            adversarial.trades_loss_with_grad(of, w, [1, 0], eps=0.1, rng=0).grad_x,
        )


def test_geometric_and_adversarial_results_keep_labels():
    w = A[::-1].copy()  # as many classes as rows: its gradient has the shape of x, but other rows
    for got, expected in zip(*results_like_x(TABLE, w), strict=True):
        assert got.columns.equals(TABLE.columns)
        assert got.index.equals(TABLE.index)
        np.testing.assert_array_equal(got.to_numpy(), expected)
    assert type(adversarial.robust_cross_entropy_with_grad(TABLE, w, [1, 0], eps=0.1).grad_w) is np.ndarray
    assert type(geometric.g_logsumexp(TABLE, np.zeros((3, 3)))) is np.ndarray
    assert (
        type(geometric.g_logsumexp(TABLE[["a"]], [[0.0]], keepdims=True)) is np.ndarray
    )  # one column, and a sum of it
    series = geometric.log_bessel_iv(1, pandas.Series([1.0, 2.0], index=["p", "q"]))
    assert series.index.tolist() == ["p", "q"]


def missing():
    """Columns of the numbers 1, missing, 2 in the types that have missing values, and the dtype of the result."""
    yield "Float64", pandas.Series([1.0, None, 2.0], dtype="Float64"), np.float64
    yield "Float32", pandas.Series([1.0, None, 2.0], dtype="Float32"), np.float32
    yield "Int8", pandas.Series([1, None, 2], dtype="Int8"), np.float64
    yield "Float64 array", pandas.array([1.0, None, 2.0], dtype="Float64"), np.float64
    if pyarrow := sys.modules.get("pyarrow"):
        yield "arrow float", pandas.Series([1.0, None, 2.0], dtype="float[pyarrow]"), np.float32
        yield "arrow int", pandas.Series([1, None, 2], dtype="int64[pyarrow]"), np.float64
        yield "Array", pyarrow.array([1.0, None, 2.0]), np.float64
        yield "ints", pyarrow.array([1, None, 2]), np.float64
        yield "ChunkedArray", pyarrow.chunked_array([[1.0], [None, 2.0]]), np.float64
    if polars := sys.modules.get("polars"):
        yield "polars", polars.Series([1.0, None, 2.0]), np.float64
        yield "polars ints", polars.Series([1, None, 2]), np.float64


def test_missing_values_are_nan():
    """Without a warning: pyarrow's columns with nulls warn where they are asked for DLPack."""
    found = [library for library in ("pyarrow", "polars") if _imports(library)]
    assert "polars" in found, "polars is in the test extra"
    for what, column, dtype in missing():
        got = np.asarray(csoftmax.logsumexp(column))
        assert np.isnan(got), what
        assert got.dtype == dtype, what
        got = np.asarray(csoftmax.softmax(column, where=[True, False, True]))
        np.testing.assert_array_equal(
            got, csoftmax.softmax(np.array([1, 0, 2], dtype), where=[True, False, True]), what
        )


def _imports(library):
    try:
        __import__(library)
    except ImportError:
        return False
    return True


def test_tables_of_mixed_types():
    table = pandas.DataFrame({"a": pandas.Series([1, 2], dtype="Int32"), "b": np.float32([0.5, 1.0])})
    got = csoftmax.softmax(table)
    assert (got.dtypes == np.float64).all()  # as NumPy has it: int32 with float32
    np.testing.assert_array_equal(got, csoftmax.softmax([[1, 0.5], [2, 1]]))
    flags = pandas.Series([True, None, True], dtype="boolean")
    with pytest.raises(ValueError, match=r"where has missing values \(pandas.NA\).*fillna"):
        csoftmax.softmax([1.0, 2.0, 3.0], where=flags)
    np.testing.assert_array_equal(
        csoftmax.softmax([1.0, 2.0, 3.0], where=flags.fillna(False)),
        csoftmax.softmax([1.0, 2.0, 3.0], where=[True, False, True]),
    )
    columns = {"a": pandas.array([True, None], dtype="boolean"), "b": pandas.array([1.0, 2.0], dtype="Float64")}
    with pytest.raises(ValueError, match=r"^x has missing values \(pandas.NA\) among its bools"):
        csoftmax.softmax(pandas.DataFrame(columns))
    columns = {"a": pandas.array([True, False], dtype="boolean"), "b": pandas.array([1.0, None], dtype="Float64")}
    np.testing.assert_array_equal(csoftmax.softmax(pandas.DataFrame(columns))[:1], [[0.5, 0.5]])
    labels = pandas.Series([0, None], dtype="Int64")
    for target in (labels, labels.to_numpy(float, na_value=np.nan)):
        with pytest.raises(ValueError, match=r"^target has missing values \(NaN\).*fill them, with the ignore_index"):
            csoftmax.cross_entropy(TABLE, target)
    assert csoftmax.cross_entropy(TABLE, labels.fillna(-100)) == csoftmax.cross_entropy(TABLE, [0, -100])
    with pytest.raises(TypeError, match="x has dtype object"):
        csoftmax.softmax(pandas.Series(["a", "b"], dtype=object))


def test_other_tables_are_read():
    assert _imports("polars"), "polars is in the test extra"
    import polars

    tables = [polars.DataFrame({"a": [0.5, 3.0], "b": [-1.0, 0.25], "c": [2.0, -0.5]})]
    if _imports("pyarrow"):
        import pyarrow

        tables += [tables[0].to_arrow(), tables[0].to_arrow().to_batches()[0], pyarrow.Tensor.from_numpy(A)]
        tables.append(pandas.DataFrame(A).astype("double[pyarrow]"))
    for table in tables:
        np.testing.assert_array_equal(csoftmax.softmax(table), csoftmax.softmax(A), str(type(table)))
    masks = [polars.Series([True, None, False])]
    masks += [masks[0].to_arrow()] if _imports("pyarrow") else []
    for mask in masks:
        with pytest.raises(ValueError, match=r"^where has missing values \(nulls\) among its bools.*fill_null"):
            csoftmax.softmax(A, where=mask)
        filled = csoftmax.softmax(A, where=mask.fill_null(False))
        np.testing.assert_array_equal(filled, csoftmax.softmax(A, where=[True, False, False]))


def test_xarray_keeps_dimensions_and_coordinates():
    xarray = pytest.importorskip("xarray")
    x = xarray.DataArray(A, dims=("row", "class"), coords={"row": [10, 20]}, name="z", attrs={"unit": "nat"})
    got = csoftmax.softmax(x, axis=0)
    assert got.dims == x.dims
    assert got.name == "z"
    assert got.attrs == x.attrs
    assert got.coords["row"].equals(x.coords["row"])
    np.testing.assert_array_equal(got.values, csoftmax.softmax(A, axis=0))
    assert type(csoftmax.softmax(x.variable)) is xarray.Variable
    assert csoftmax.cross_entropy_with_grad(x, [0, 1]).grad.dims == x.dims
    assert type(csoftmax.logsumexp(x)) is np.ndarray
    for got, expected in zip(*results_like_x(x, A[::-1].copy()), strict=True):
        assert got.dims == x.dims
        np.testing.assert_array_equal(got.values, expected)


def refused():
    """What is refused, the error, and what its message says."""
    scipy_sparse = pytest.importorskip("scipy.sparse")
    yield A.view(np.matrix), TypeError, r"x is a numpy.matrix.*numpy\.asarray\(x\)"
    yield np.ma.masked_array(A, A > 1), TypeError, r"x is a masked array; pass x\.data.*as where.*x\.filled"
    yield scipy_sparse.csr_array(A), TypeError, r"x is a scipy csr_array.*x\.toarray\(\)"
    yield scipy_sparse.coo_matrix(A), TypeError, r"x is a scipy coo_matrix.*x\.toarray\(\)"
    yield None, TypeError, "x has dtype object, because it is None: an array of numbers is required"
    yield np.array([1.0, None]), TypeError, r"x has dtype object; allowed.*numpy\.asarray\(x, dtype=float\)"
    if np.longdouble != np.float64:
        yield A.astype(np.longdouble), TypeError, r"x has dtype float\d+; allowed.*x\.astype\(numpy\.float64\)"
    if _imports("polars"):
        import polars

        yield polars.LazyFrame({"a": [1.0]}), TypeError, r"x is a polars LazyFrame.*x\.collect\(\)"
    if _imports("dask.array"):
        import dask
        import dask.array

        lazy = dask.array.from_array(A, chunks=1)
        yield dask.delayed(A), TypeError, r"x is a dask Delayed.*pass x\.compute\(\)$"
        if _imports("xarray"):
            import xarray

            yield xarray.DataArray(lazy), TypeError, r"x is a xarray DataArray.*x\.compute\(\), or x\.map_blocks"


def test_what_is_refused_says_what_to_pass():
    for x, error, message in refused():
        for function in (csoftmax.softmax, csoftmax.logsumexp, csoftmax.sparsemax, lambda x: csoftmax.topk(x, 1)):
            with pytest.raises(error, match=message):
                function(x)
        with pytest.raises(error, match=r"^(\w+\(\) takes no such collection of Dask: )?target "):
            csoftmax.cross_entropy(A, x)


def test_the_advice_fits_the_argument():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    masked = {"mask": [False, True]}
    for name, x, advice in (
        ("where", np.ma.array([[True, True, False]] * 2, mask=A > 1), r"pass where\.filled\(False\)"),
        ("temperature", np.ma.array([[1.0], [2.0]], mask=[[0], [1]]), r"pass temperature\.filled\(value\)"),
        ("where", scipy_sparse.csr_array(A > 1), r"which is sparse: pass where\.toarray\(\)"),
    ):
        with pytest.raises(TypeError, match=rf"^{name} is a .*{advice}"):
            csoftmax.softmax(A, **{name: x})
    with pytest.raises(TypeError, match=r"target is a masked array; pass target\.filled\(-100\)"):
        csoftmax.cross_entropy(A, np.ma.array([0, 1], **masked))
    with pytest.raises(TypeError, match=r"sample_weight is a masked array; pass sample_weight\.filled\(0\)"):
        csoftmax.cross_entropy(A, [0, 1], sample_weight=np.ma.array([1.0, 1.0], **masked))
    for x, what in (
        ({1: 2.0}, "because it is a dict: an array of numbers is required"),
        ((i for i in range(3)), "because it is a generator"),
        (pandas.Series(["a", "b"], dtype=object), "because it holds a str, which is no number"),
        ([1.0, {}], "because it holds a dict, which is no number"),
    ):
        with pytest.raises(TypeError, match=f"x has dtype object; allowed are .* the integers, {what}"):
            csoftmax.softmax(x)


def test_only_values_have_to_be_computed():
    """Coordinates that Dask has not computed are passed on as they are."""
    dask_array, xarray = pytest.importorskip("dask.array"), pytest.importorskip("xarray")
    lazy = dask_array.ones(2, chunks=1)
    x = xarray.DataArray(A, dims=("row", "class"), coords={"z": ("row", lazy)})
    got = csoftmax.softmax(x)
    np.testing.assert_array_equal(got.values, csoftmax.softmax(A))
    assert type(got.coords["z"].data) is type(lazy)


def test_the_advice_for_dask_works():
    dask_array = pytest.importorskip("dask.array")
    x = dask_array.from_array(A, chunks=(1, 3))
    np.testing.assert_array_equal(x.map_blocks(csoftmax.softmax).compute(), csoftmax.softmax(A))
