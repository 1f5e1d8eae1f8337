"""csoftmax.choice: ids as arrays and columns of any library; what has no ids, or none that can be compared."""

import numpy as np
import pandas as pd
import pytest

from csoftmax.choice import ConditionalLogit, PlackettLuce

torch = pytest.importorskip("torch")
jnp = pytest.importorskip("jax.numpy")

GROUPS = np.repeat(np.arange(10), 3)
X = np.random.default_rng(0).normal(size=(30, 2))
Y = np.tile([1.0, 0.0, 0.0], 10)


def columns_of(ids):
    """Ids as arrays and columns of other libraries."""
    arrow, polars = pytest.importorskip("pyarrow"), pytest.importorskip("polars")
    text = ids.astype(str)
    return {
        "torch": torch.tensor(ids),
        "bfloat16": torch.tensor(ids).bfloat16(),
        "jax": jnp.asarray(ids),
        "pandas": pd.Series(text, dtype="category"),
        "pandas, nullable": pd.Series(ids, dtype="Int64"),
        "pyarrow": arrow.array(text),
        "pyarrow, chunks": arrow.chunked_array([ids[:4], ids[4:]]),
        "polars": polars.Series(text),
        "dates": np.datetime64("2020") + ids.astype("m8[Y]"),
        "objects": ids.astype(object),
    }


def test_ids_of_any_library():
    model = ConditionalLogit().fit(X, Y, groups=GROUPS)
    expected = model.predict_proba(X, groups=GROUPS)
    for name, ids in columns_of(GROUPS).items():
        np.testing.assert_array_equal(model.predict_proba(X, groups=ids), expected, err_msg=name)
    np.testing.assert_array_equal(model.predict_proba(X, groups=(int(v) for v in GROUPS)), expected)
    weight = np.arange(1.0, 11)
    errors = ConditionalLogit(covariance="cluster").fit(X, Y, groups=GROUPS, clusters=np.arange(10) // 2).std_err_
    for name, ids in columns_of(np.arange(10) // 2).items():
        fitted = ConditionalLogit(covariance="cluster").fit(X, Y, groups=GROUPS, clusters=ids)
        np.testing.assert_array_equal(fitted.std_err_, errors, err_msg=name)
    items = np.tile([0, 1, 2], 10)
    worths = PlackettLuce(penalty_l2=1).fit(items, X[:, 0], groups=GROUPS, sample_weight=weight).coef_
    for name, ids in columns_of(items).items():
        fitted = PlackettLuce(penalty_l2=1).fit(
            ids, torch.tensor(X[:, 0]), groups=torch.tensor(GROUPS), sample_weight=torch.tensor(weight)
        )
        np.testing.assert_array_equal(fitted.coef_, worths, err_msg=name)
    coef = ConditionalLogit().fit(X.astype(np.float32), Y, groups=GROUPS).coef_
    for like in (torch.tensor, jnp.asarray):
        fitted = ConditionalLogit().fit(like(X.astype(np.float32)), like(Y), groups=like(GROUPS))
        np.testing.assert_array_equal(fitted.coef_, coef)
    ConditionalLogit().fit(torch.tensor(X).bfloat16(), torch.tensor(Y).bfloat16(), groups=GROUPS)


def test_ids_that_cannot_be_compared_are_refused():
    arrow = pytest.importorskip("pyarrow")
    rest = list(GROUPS[1:])
    for ids, error, match in (
        (np.ma.masked_array(GROUPS, GROUPS == 0), TypeError, "groups is a masked array"),
        ([float("nan"), *rest], ValueError, "groups holds nan, a missing value"),
        ([pd.NA, *rest], ValueError, "groups holds <NA>, a missing value"),
        (pd.Series([pd.NA, *rest], dtype="Int64"), ValueError, "groups holds NaN"),
        (pd.to_datetime(pd.Series([None, *(["2020"] * 29)])), ValueError, "groups holds NaT, a missing value"),
        (arrow.array([None, *(["a"] * 29)]), ValueError, "groups holds None, a missing value"),
        (list(torch.tensor(GROUPS)), TypeError, "groups holds objects of torch.Tensor, which are compared by identity"),
        (torch.zeros(30, requires_grad=True), ValueError, "groups requires grad"),
        (torch.zeros(30, 1), ValueError, r"groups has shape \(30, 1\); one axis is allowed"),
        (GROUPS.astype(object)[:, None], ValueError, r"groups has shape \(30, 1\); one axis is allowed"),
        ([[1]] * 30, TypeError, "groups must hold hashable values"),
    ):
        with pytest.raises(error, match=match):
            ConditionalLogit().fit(X, Y, groups=ids)
    with pytest.raises(TypeError, match="X has dtype object, because it is None"):
        PlackettLuce().fit(None, [1, 2], indptr=[0, 2])
    ConditionalLogit().fit(X, Y, groups=[None] * 3 + rest[2:])  # a hashable id
