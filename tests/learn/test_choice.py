"""csoftmax.choice: published likelihoods, gradients by differences, groups of any kind, several choices, rankings."""

import gzip
import importlib.util
import itertools
import pickle
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import optimize
from sklearn.base import clone

import csoftmax
from csoftmax._learn.choice_items import find_compared, find_components
from csoftmax.choice import ConditionalLogit, PlackettLuce


def draw_choices(seed, groups=300, columns=3, sizes=(2, 7)):
    """Rows of groups of different sizes, one choice in each."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(*sizes, groups)
    ids = np.repeat(np.arange(groups), lengths)
    X = rng.normal(size=(len(ids), columns))
    utility = X @ rng.normal(size=columns) + rng.gumbel(size=len(ids))
    y = np.zeros(len(ids))
    for g in range(groups):
        rows = np.flatnonzero(ids == g)
        y[rows[utility[rows].argmax()]] = 1
    return X, y, ids


def loglik(beta, X, y, ids, weight=None, offset=0.0):
    """The log-likelihood by its definition; several choices by enumeration."""
    v, total = X @ beta + offset, 0.0
    for g, label in enumerate(dict.fromkeys(ids)):
        rows = np.flatnonzero(np.asarray(ids) == label)
        m = round(y[rows].sum())
        sets = [v[rows[list(chosen)]].sum() for chosen in itertools.combinations(range(len(rows)), m)]
        total += (1 if weight is None else weight[g]) * (v[rows] @ y[rows] - np.logaddexp.reduce(sets))
    return total


def test_mode_choice_of_greene():
    """Greene, Econometric Analysis: 210 travellers between Sydney, Canberra and Melbourne, four modes."""
    path = importlib.util.find_spec("statsmodels")
    if path is None:
        pytest.skip("the data are those of statsmodels")
    file = Path(path.submodule_search_locations[0]) / "datasets" / "modechoice" / "modechoice.csv"
    d = pd.read_csv(file, sep=";")
    X = pd.DataFrame({f"asc{k}": (d["mode"] == k).astype(float) for k in (1, 2, 3)})
    X["gc"], X["ttme"], X["hinc_air"] = d["gc"], d["ttme"], X["asc1"] * d["hinc"]
    model = ConditionalLogit().fit(X, d["choice"], groups=d["individual"])
    assert abs(model.loglik_ - -199.128368716) < 1e-9
    np.testing.assert_allclose(model.coef_, [5.20744, 3.86904, 3.16319, -0.01550, -0.09612, 0.01329], atol=5e-6)
    assert list(model.feature_names_in_) == list(X.columns)
    assert "hinc_air" in model.summary()


def test_mode_choice_of_the_mtc():
    """Work trips in the Bay Area: 5,029 cases of 3 to 6 modes, which packages for balanced sets refuse."""
    package = importlib.util.find_spec("larch")
    if package is None:
        pytest.skip("the data are those of larch")
    file = Path(package.submodule_search_locations[0]) / "data_warehouse" / "MTCwork.csv.gz"
    with gzip.open(file) as f:
        d = pd.read_csv(f)
    X = pd.DataFrame({f"asc{k}": (d["altnum"] == k).astype(float) for k in range(2, 7)})
    for k in range(2, 7):
        X[f"hhinc{k}"] = X[f"asc{k}"] * d["hhinc"]
    X["tottime"], X["totcost"] = d["tottime"], d["totcost"]
    model = ConditionalLogit().fit(X, d["chose"], groups=d["casenum"])
    assert abs(model.loglik_ - -3626.186254716) < 1e-8


def curvature(objective, at, step=1e-3):
    """Second derivatives by central differences."""
    moves = step * np.eye(len(at))
    return np.array(
        [
            [
                sum(s * t * objective(at + s * a + t * b) for s in (1, -1) for t in (1, -1)) / (4 * step * step)
                for b in moves
            ]
            for a in moves
        ]
    )


@pytest.mark.parametrize("covariance", ["hessian", "robust", "cluster"])
def test_maximum_and_covariance(covariance):
    X, y, ids = draw_choices(0, groups=80)
    rng = np.random.default_rng(1)
    weight, offset, clusters = rng.integers(1, 4, 80).astype(float), rng.normal(size=len(X)), rng.integers(0, 40, 80)
    given = {"clusters": clusters} if covariance == "cluster" else {}
    model = ConditionalLogit(covariance=covariance, penalty_l2=0.3)
    model.fit(X, y, groups=ids, sample_weight=weight, offset=offset, **given)

    def objective(b):
        return -loglik(b, X, y, ids, weight, offset) + 0.15 * b @ b

    best = optimize.minimize(objective, np.zeros(3), tol=1e-12)
    np.testing.assert_allclose(model.coef_, best.x, atol=1e-5)
    assert abs(model.loglik_ - loglik(model.coef_, X, y, ids, weight, offset)) < 1e-9
    assert abs(model.loglik_null_ - loglik(np.zeros(3), X, y, ids, weight, offset)) < 1e-9
    hessian = curvature(objective, model.coef_)
    inverse = np.linalg.inv(hessian)
    if covariance != "hessian":
        scores = np.array(
            [
                optimize.approx_fprime(
                    model.coef_,
                    lambda b, g=g: (
                        weight[g] * loglik(b, X[ids == g], y[ids == g], ids[ids == g], offset=offset[ids == g])
                    ),
                    1e-6,
                )
                for g in range(80)
            ]
        )
        if covariance == "cluster":
            scores = np.array([scores[clusters == c].sum(0) for c in range(40)])
        inverse = inverse @ scores.T @ scores @ inverse
    np.testing.assert_allclose(model.covariance_, inverse, rtol=2e-3, atol=2e-6)
    np.testing.assert_allclose(model.std_err_, np.sqrt(np.diag(model.covariance_)))


def test_groups_of_any_kind_and_order():
    X, y, ids = draw_choices(2, groups=60)
    expected = ConditionalLogit().fit(X, y, groups=ids)
    names = np.array([f"case {i}" for i in ids])
    order = np.random.default_rng(0).permutation(len(X))
    lengths = np.bincount(ids)
    for rows, groups in (
        (order, ids[order]),
        (order, names[order]),
        (order, [(int(i), "a") for i in ids[order]]),
        (order, pd.Series(names[order], dtype="category")),
        (slice(None), [frozenset([int(i)]) for i in ids]),
    ):
        model = ConditionalLogit().fit(X[rows], y[rows], groups=groups)
        np.testing.assert_allclose(model.coef_, expected.coef_, rtol=1e-10)
        p = model.predict_proba(X[rows], groups=groups)
        np.testing.assert_allclose(p, expected.predict_proba(X, groups=ids)[rows], rtol=1e-9)
    by_offset = ConditionalLogit().fit(X, y, indptr=np.concatenate([[0], np.cumsum(lengths)]))
    np.testing.assert_array_equal(by_offset.coef_, expected.coef_)
    p, chosen = expected.predict_proba(X, groups=ids), expected.predict(X, groups=ids)
    for g in range(60):
        v = X[ids == g] @ expected.coef_
        np.testing.assert_allclose(p[ids == g], csoftmax.softmax(v), rtol=1e-12)
        assert chosen[ids == g].argmax() == v.argmax()
    assert chosen.sum() == 60
    assert list(ConditionalLogit().fit(X[order], y[order], groups=names[order]).groups_) == list(
        dict.fromkeys(names[order])
    )


def test_shares():
    """Shares are as many weighted groups with one choice."""
    X, _, ids = draw_choices(3, groups=40)
    rng = np.random.default_rng(0)
    shares = rng.random(len(ids))
    shares /= np.bincount(ids, shares)[ids]
    model = ConditionalLogit().fit(X, shares, groups=ids)
    groups = [(g, row) for g in range(40) for row in np.flatnonzero(ids == g)]
    rows = [(r, chosen) for g, chosen in groups for r in np.flatnonzero(ids == g)]
    repeated = ConditionalLogit(covariance="hessian").fit(
        X[[r for r, _ in rows]],
        [float(r == chosen) for r, chosen in rows],
        groups=[chosen for _, chosen in rows],
        sample_weight=[shares[chosen] for _, chosen in groups],
    )
    np.testing.assert_allclose(model.coef_, repeated.coef_, rtol=1e-8)
    np.testing.assert_allclose(model.std_err_, repeated.std_err_, rtol=1e-6)
    with pytest.raises(ValueError, match="shares in y must sum to 1 in each group; those of 0 sum to"):
        ConditionalLogit().fit(X, shares / 2, groups=ids)


def test_several_choices_a_group():
    X, y, ids = draw_choices(4, groups=50, sizes=(3, 7))
    rng = np.random.default_rng(0)
    for g in range(0, 50, 2):
        y[rng.choice(np.flatnonzero((ids == g) & (y == 0)))] = 1
    model = ConditionalLogit().fit(X, y, groups=ids)
    best = optimize.minimize(lambda b: -loglik(b, X, y, ids), np.zeros(3), tol=1e-12)
    np.testing.assert_allclose(model.coef_, best.x, atol=1e-5)
    assert abs(model.loglik_ + best.fun) < 1e-8
    inverse = np.linalg.inv(curvature(lambda b: -loglik(b, X, y, ids), model.coef_))
    np.testing.assert_allclose(model.covariance_, inverse, rtol=1e-4)
    robust = ConditionalLogit(covariance="robust").fit(X, y, groups=ids)
    assert (robust.std_err_ > 0).all()


def test_probabilities_near_one_keep_their_gradient():
    """An alternative that is nearly certain still pulls on its coefficient."""
    X, groups = np.array([[40.0], [0.0], [0.0], [1.0]]), [0, 0, 1, 1]
    model = ConditionalLogit(penalty_l2=1e-3).fit(X, [1, 0, 1, 0], groups=groups)
    slope = 40 / (1 + np.exp(40 * model.coef_)) - 1 / (1 + np.exp(-model.coef_)) - 1e-3 * model.coef_
    np.testing.assert_allclose(slope, 0, atol=1e-9)


def test_dropped_groups():
    X, y, ids = draw_choices(5, groups=30)
    without = y.copy()
    without[np.isin(ids, (3, 7))] = 0
    with pytest.warns(UserWarning, match="2 of 30 groups have no choice or no alternatives, and were dropped"):
        model = ConditionalLogit().fit(X, without, groups=ids)
    rest = ~np.isin(ids, (3, 7))
    np.testing.assert_array_equal(model.coef_, ConditionalLogit().fit(X[rest], y[rest], groups=ids[rest]).coef_)
    with pytest.warns(UserWarning, match="1 of 3 groups"):
        ConditionalLogit().fit([[1.0], [0.0], [2.0], [1.5]], [1, 0, 0, 1], indptr=[0, 2, 2, 4])


def test_singular_problems_name_their_columns():
    X, y, ids = draw_choices(6, groups=30)
    d = pd.DataFrame({"a": X[:, 0], "b": X[:, 1], "income": ids * 1.0, "c": X[:, 0] - X[:, 1]})
    with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: income\."):
        ConditionalLogit().fit(d[["a", "b", "income"]], y, groups=ids)
    with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: a, b, c\."):
        ConditionalLogit().fit(d[["a", "b", "c"]], y, groups=ids)
    assert ConditionalLogit(penalty_l2=1.0).fit(d, y, groups=ids).coef_[2] == pytest.approx(0, abs=1e-12)


def test_collinear_columns_are_not_called_separable():
    """Several choices and rankings have a Hessian from differences, whose noise hid that it is singular."""
    for seed in range(6):
        rng = np.random.default_rng(seed)
        X = np.c_[rng.normal(size=(90, 2)), np.ones(90)]
        with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: x2\."):
            PlackettLuce().fit(X, rng.integers(0, 4, 90), indptr=np.arange(0, 91, 3))
        dummies = np.eye(3)[rng.integers(0, 3, 120)] * [1, 1e3, 1e-3]
        offset = rng.normal(size=120)
        with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: x0, x1, x2\."):
            ConditionalLogit().fit(dummies, np.tile([1, 1, 0, 0], 30), indptr=np.arange(0, 121, 4), offset=offset)
        with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: x0, x1, x2\."):
            PlackettLuce(ties="efron").fit(dummies, rng.integers(0, 4, 120), indptr=np.arange(0, 121, 4))
        ConditionalLogit().fit(dummies[:, 1:], np.tile([1, 1, 0, 0], 30), indptr=np.arange(0, 121, 4))


@pytest.mark.parametrize("ties", ["breslow", "efron", "exact", "order"])
def test_columns_that_no_comparison_shows_are_named(ties):
    """The third column varies only where nothing is compared: before the first observed row, and without a weight."""
    rng = np.random.default_rng(1)
    X, relevance, groups = rng.normal(size=(60, 3)), np.tile([3.0, 2, 1, 0], 15), np.repeat(np.arange(15), 4)
    observed = np.tile([False, True, True, True], 15)
    weight = np.where(np.arange(15) == 3, 0.0, 1.0)
    X[observed & (groups != 3), 2] = 7
    options = {"groups": groups, "observed": observed, "sample_weight": weight}
    with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: x2\."):
        PlackettLuce(ties=ties).fit(X, relevance, **options)
    assert np.isfinite(PlackettLuce(ties=ties).fit(X[:, :2], relevance, **options).std_err_).all()


def test_an_exact_tie_of_all_rows_compares_nothing():
    """Its probability is 1, whatever the worths."""
    with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: x0\."):
        PlackettLuce(ties="exact").fit([[1.0], [2.0], [4.0]], [1, 1, 1], indptr=[0, 3])
    with pytest.raises(np.linalg.LinAlgError, match="the items are not connected"):
        PlackettLuce(ties="exact").fit([0, 1, 2], [1, 1, 1], indptr=[0, 3])
    with pytest.raises(np.linalg.LinAlgError, match="the items are not connected"):
        PlackettLuce().fit([0, 1, 2, 1], [1, 2, 1, 2], indptr=[0, 2, 4], observed=[True, False, True, False])


def test_large_offsets_are_not_called_collinear_or_separable():
    """They decide most choices, so that coefficients of 0 have no information; the likelihood has a maximum."""
    rng = np.random.default_rng(0)
    X, y, offsets = rng.normal(size=(30, 2)), np.tile([1.0, 0.0, 0.0], 10), np.arange(0, 31, 3)
    for scale in (30, 300, 3000):
        beside = rng.normal(size=30) * scale
        model = ConditionalLogit().fit(X, y, indptr=offsets, offset=beside)
        at = [loglik(model.coef_ + d, X, y, np.repeat(np.arange(10), 3), offset=beside) for d in np.eye(2) * 1e-3]
        assert model.loglik_ > max(at)
        assert np.isfinite(model.std_err_).all()
        with pytest.raises(np.linalg.LinAlgError, match=r"constant or collinear: x0, x2\."):
            ConditionalLogit().fit(np.c_[X, 2 * X[:, 0]], y, indptr=offsets, offset=beside)


def test_separable_choices_warn():
    with pytest.warns(UserWarning, match="has not converged after 5 iterations"):
        ConditionalLogit(max_iter=5).fit([[1.0], [0.0], [2.0], [1.5]], [1, 0, 1, 0], indptr=[0, 2, 4])


def test_estimators_are_those_of_scikit_learn():
    X, y, ids = draw_choices(7, groups=30)
    model = clone(ConditionalLogit(penalty_l2=0.5, covariance="robust")).fit(X, y, groups=ids)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X, groups=ids), model.predict_proba(X, groups=ids))
    assert clone(PlackettLuce(ties="efron")).get_params()["ties"] == "efron"


def draw_rankings(seed, items=8, rankings=200):
    rng = np.random.default_rng(seed)
    worth = rng.normal(size=items)
    worth -= worth.mean()
    rows, places, groups = [], [], []
    for g in range(rankings):
        shown = rng.choice(items, rng.integers(2, 6), replace=False)
        order = np.argsort(-(worth[shown] + rng.gumbel(size=len(shown))))
        rows += list(shown[order])
        places += range(len(shown))
        groups += [g] * len(shown)
    return worth, np.array(rows), np.array(places), np.array(groups)


def test_worths_of_items():
    worth, rows, places, groups = draw_rankings(0)
    model = PlackettLuce().fit([f"item {i}" for i in rows], -places, groups=groups)
    found = model.coef_[np.argsort([int(item.split()[1]) for item in model.items_])]
    assert abs(model.coef_.mean()) < 1e-12
    assert (np.abs(found - worth) < 4 * model.std_err_.max()).all()
    # the same as one-hot features with a column left out
    one_hot = (rows[:, None] == np.arange(1, 8)).astype(float)
    features = PlackettLuce().fit(one_hot, -places, groups=groups)
    np.testing.assert_allclose(features.coef_, found[1:] - found[0], atol=1e-6)
    assert abs(features.loglik_ - model.loglik_) < 1e-8
    # and as a conditional logit of the choices, the best first
    X, y, ids = [], [], []
    for g in range(200):
        mine = np.flatnonzero(groups == g)
        for at in range(len(mine) - 1):
            X += list(one_hot[mine[at:]])
            y += [1] + [0] * (len(mine) - at - 1)
            ids += [(g, at)] * (len(mine) - at)
    exploded = ConditionalLogit().fit(X, y, groups=ids)
    np.testing.assert_allclose(features.coef_, exploded.coef_, atol=1e-6)
    np.testing.assert_allclose(features.std_err_, exploded.std_err_, rtol=1e-5)


@pytest.mark.parametrize("ties", ["breslow", "efron", "exact"])
def test_rankings_with_ties(ties):
    rng = np.random.default_rng(1)
    X, relevance, groups = rng.normal(size=(300, 2)), rng.integers(0, 3, 300), np.repeat(np.arange(60), 5)
    observed = rng.random(300) < 0.8
    order = rng.permutation(300)
    model = PlackettLuce(ties=ties, penalty_l2=0.1)
    model.fit(X[order], relevance[order], groups=groups[order], observed=observed[order])

    def objective(b):
        options = {"observed": observed, "ties": ties, "reduction": "sum", "indptr": np.arange(0, 301, 5)}
        return csoftmax.plackett_luce_loss(X @ b, relevance, **options) + 0.05 * b @ b

    best = optimize.minimize(objective, np.zeros(2), tol=1e-12)
    np.testing.assert_allclose(model.coef_, best.x, atol=1e-5)
    np.testing.assert_allclose(
        model.covariance_, np.linalg.inv(curvature(objective, model.coef_)), rtol=1e-4, atol=1e-8
    )


def test_many_items_have_no_covariance():
    rng = np.random.default_rng(2)
    rows = np.concatenate([rng.permutation(310) for _ in range(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PlackettLuce(penalty_l2=0.1).fit(rows, np.tile(-np.arange(310), 4), groups=np.repeat(np.arange(4), 310))
    assert model.covariance_ is None
    assert model.coef_.shape == (310,)


def test_bad_arguments():
    X, y, ids = draw_choices(8, groups=30)
    for call, error, match in (
        (lambda: ConditionalLogit().fit(X, y), TypeError, "groups or indptr is needed"),
        (lambda: ConditionalLogit().fit(X, y, groups=ids, indptr=[0, len(X)]), TypeError, "groups or indptr is needed"),
        (lambda: ConditionalLogit().fit(X, y[1:], groups=ids), ValueError, "y has shape"),
        (lambda: ConditionalLogit().fit(X[0], y, groups=ids), ValueError, "X has shape"),
        (lambda: ConditionalLogit().fit(X, -y, groups=ids), ValueError, "y must be from 0 to 1"),
        (lambda: ConditionalLogit().fit(X * np.nan, y, groups=ids), ValueError, r"X\[0, 0\] is nan"),
        (lambda: ConditionalLogit().fit(X, y, groups=ids[1:]), ValueError, "groups has"),
        (lambda: ConditionalLogit().fit(X, y, groups=[[]] * len(X)), TypeError, "groups must hold hashable values"),
        (lambda: ConditionalLogit().fit(X, y, indptr=[0, 3]), ValueError, "indptr must rise from 0"),
        (lambda: ConditionalLogit().fit(X, y, groups=ids, sample_weight=[1.0]), None, None),
        (
            lambda: ConditionalLogit().fit(X, y, groups=ids, sample_weight=[1.0, 2]),
            ValueError,
            "sample_weight has shape",
        ),
        (lambda: ConditionalLogit().fit(X, y, groups=ids, sample_weight=0), ValueError, "sample_weight is 0 for every"),
        (lambda: PlackettLuce().fit(X, y, groups=ids, sample_weight=0), ValueError, "sample_weight is 0 for every"),
        (lambda: PlackettLuce().fit(X[:0], y[:0], groups=[]), ValueError, "X has no rows"),
        (lambda: ConditionalLogit().fit(X, y, groups=ids, offset=[1.0]), ValueError, "offset has shape"),
        (lambda: ConditionalLogit().fit(X, y, groups=ids, clusters=ids), ValueError, "clusters is needed with"),
        (lambda: ConditionalLogit(covariance="x").fit(X, y, groups=ids), ValueError, "covariance must be"),
        (lambda: ConditionalLogit(penalty_l2=-1).fit(X, y, groups=ids), ValueError, "penalty_l2 must be at least 0"),
        (lambda: ConditionalLogit(max_iter=0).fit(X, y, groups=ids), ValueError, "max_iter must be at least 1"),
        (lambda: PlackettLuce(ties="x").fit(X, y, groups=ids), ValueError, "ties must be"),
        (lambda: PlackettLuce().fit(X, y[1:], groups=ids), ValueError, "relevance has shape"),
    ):
        if error is None:
            call()
            continue
        with pytest.raises(error, match=match):
            call()
    model = ConditionalLogit().fit(X, y, groups=ids)
    with pytest.raises(ValueError, match="X has 2 columns; the model was fitted with 3"):
        model.predict_proba(X[:, :2], groups=ids)


def warned(call):
    """The model of a fit, and whether it has told that the choices are separable."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = call()
    assert all(w.filename == __file__ for w in caught)
    return model, any("the choices are separable" in str(w.message) for w in caught)


def test_separable_choices_are_told_at_default_settings():
    X, y, ids = draw_choices(9, groups=60, sizes=(4, 5))
    two = y.copy()
    for g in range(60):
        two[np.flatnonzero((ids == g) & (y == 0))[g % 3]] = 1
    never = np.column_stack([X[:, 0], (np.arange(len(y)) % 5 == 0) * (1 - y)])
    for scale in (1.0, 1e6, 1e-6):
        for name, features, chosen, is_separable in (
            ("regular", X, y, False),
            ("regular, two choices", X, two, False),
            ("a column equal to y", np.column_stack([X, y]), y, True),
            ("a column equal to y, two choices", np.column_stack([X, two]), two, True),
            ("a dummy that is never chosen", never, y, True),
        ):
            _, told = warned(lambda f=features, c=chosen, s=scale: ConditionalLogit().fit(f * s, c, groups=ids))
            assert told == is_separable, (name, scale)
            _, told = warned(lambda f=features, c=chosen, s=scale: ConditionalLogit(penalty_l2=1).fit(f, c, groups=ids))
            assert not told
        _, told = warned(lambda s=scale: PlackettLuce().fit(X * s, X[:, 0], groups=ids))
        assert told
        _, told = warned(lambda s=scale: PlackettLuce().fit(X * s, X[:, 0] + 2 * np.sin(np.arange(len(y))), groups=ids))
        assert not told


@pytest.mark.parametrize("items", [3, 310])
def test_items_without_worths_are_told(items):
    rng = np.random.default_rng(0)
    rows, groups = np.tile(np.arange(items), 6), np.repeat(np.arange(6), items)
    random = rng.normal(size=rows.size)
    random[:items], random[items : 2 * items] = np.arange(items), -np.arange(items)  # every item loses, and wins
    _, told = warned(lambda: PlackettLuce().fit(rows, random, groups=groups))
    assert not told
    model, told = warned(lambda: PlackettLuce().fit(rows, -rows, groups=groups))
    assert told
    assert model.std_err_ is None if items > 300 else np.isnan(model.std_err_).all()
    first = np.where(rows == 0, 999.0, random)  # one that always wins
    assert warned(lambda: PlackettLuce().fit(rows, first, groups=groups))[1]
    assert not warned(lambda: PlackettLuce(penalty_l2=0.1).fit(rows, first, groups=groups))[1]
    with pytest.raises(np.linalg.LinAlgError, match="the items are not connected: no comparison joins 0 and"):
        PlackettLuce().fit(
            np.r_[rows, rows + 1000], np.r_[random, random], groups=np.r_[groups, groups + 6], sample_weight=np.ones(12)
        )


@pytest.mark.parametrize("ties", ["breslow", "efron", "exact", "order"])
def test_components_agree_with_the_likelihood(ties):
    """Raising the log-worths of a set of items without end costs nothing only if none of the others has beaten one."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        rows, places, groups = rng.permuted(np.tile(np.arange(4), (3, 1)), axis=1)[:, :3], rng.integers(0, 3, 9), 3
        observed = rng.random(9) < 0.7
        offsets = np.arange(0, 3 * groups + 1, 3)
        compared = find_compared(places * 1.0, observed, offsets, None, ties)
        component, _ = find_components(rows.ravel(), compared, ties)
        is_free = []
        for chosen in itertools.chain.from_iterable(itertools.combinations(range(4), k) for k in (1, 2, 3)):
            for sign in (1, -1):
                x = np.where(np.isin(rows.ravel(), chosen), 60.0 * sign, 0.0)
                options = {"observed": observed, "ties": ties, "indptr": offsets, "reduction": "sum"}
                near, far = (csoftmax.plackett_luce_loss(x * s, places, **options) for s in (1, 2))
                is_free.append(far <= near + 1e-6)
        assert any(is_free) == (len(np.unique(component)) > 1), (rows, places, observed)


def test_units_do_not_matter():
    X, y, ids = draw_choices(10, groups=80, sizes=(4, 6))
    for g in range(80):
        y[np.flatnonzero((ids == g) & (y == 0))[0]] = 1
    relevance = X @ [1.0, -1.0, 0.5] + np.random.default_rng(0).gumbel(size=len(y))
    for fit in (
        lambda X: ConditionalLogit().fit(X, y, groups=ids),
        lambda X: PlackettLuce().fit(X, relevance, groups=ids),
    ):
        expected = fit(X)
        for scale in ([1e6, 1e6, 1e6], [1e-9, 1.0, 1e5]):
            model = fit(X * scale)
            np.testing.assert_allclose(model.coef_ * scale, expected.coef_, rtol=1e-6)
            np.testing.assert_allclose(model.std_err_ * scale, expected.std_err_, rtol=1e-6)


def test_covariance_of_worths_is_that_of_their_contrasts():
    _, rows, places, groups = draw_rankings(3, items=5, rankings=80)
    model = PlackettLuce().fit(rows, -places, groups=groups)
    one_hot = (rows[:, None] == model.items_[1:]).astype(float)
    features = PlackettLuce().fit(one_hot, -places, groups=groups)
    contrast = (np.eye(5) - 0.2)[:, 1:]
    np.testing.assert_allclose(model.covariance_, contrast @ features.covariance_ @ contrast.T, rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(model.covariance_.sum(1), 0, atol=1e-9)


def test_columns_of_tables_keep_their_order():
    X, y, ids = draw_choices(11, groups=10)
    d = pd.DataFrame(X, columns=list("abc"))
    model = ConditionalLogit(penalty_l2=1).fit(d, y, groups=ids)
    with pytest.raises(ValueError, match=r"X has the columns \['c', 'b', 'a'\]; the model was fitted with"):
        model.predict_proba(d[["c", "b", "a"]], groups=ids)
    np.testing.assert_array_equal(model.predict(X, groups=ids), model.predict(d, groups=ids))
    rankings = PlackettLuce(penalty_l2=1).fit(d, X[:, 0], groups=ids)
    assert list(rankings.feature_names_in_) == list("abc")
    assert not hasattr(rankings.fit(X, X[:, 0], groups=ids), "feature_names_in_")


def test_empty_groups_are_predicted():
    X, y, ids = draw_choices(12, groups=10, sizes=(3, 4))
    model = ConditionalLogit(penalty_l2=1).fit(X, y, groups=ids)
    p = model.predict_proba(X[:6], indptr=[0, 0, 3, 3, 6, 6])
    np.testing.assert_array_equal(p, model.predict_proba(X[:6], indptr=[0, 3, 6]))
    assert model.predict(X[:6], indptr=[0, 0, 3, 3, 6, 6]).sum() == 2
    assert model.predict_proba(X[:0], indptr=[0, 0]).shape == (0,)


def test_failed_fits_leave_no_fitted_model():
    X, y, ids = draw_choices(13, groups=10)
    for model, target in ((ConditionalLogit(), y), (PlackettLuce(), X[:, 0])):
        with pytest.raises(np.linalg.LinAlgError, match="constant or collinear: x0, x3"):
            model.fit(np.column_stack([X, X[:, 0]]), target, groups=ids)
        assert not [name for name in vars(model) if name.endswith("_")]


def test_bad_data():
    X, y, ids = draw_choices(14, groups=5)
    none = np.zeros_like(y)
    for call, error, match in (
        (lambda: ConditionalLogit().fit(X[:, :0], y, groups=ids), ValueError, "at least one column is needed"),
        (lambda: PlackettLuce().fit(X[:, :0], y, groups=ids), ValueError, "at least one column is needed"),
        (lambda: ConditionalLogit().fit(X * 1e160, y, groups=ids), ValueError, "column x0 of X has the largest"),
        (lambda: PlackettLuce().fit(X, y, groups=ids, observed=np.ones(99, bool)), ValueError, "observed has shape"),
        (lambda: PlackettLuce().fit(X, y, groups=ids, observed=np.ones(len(y))), TypeError, "observed must be boolean"),
        (lambda: PlackettLuce().fit([("a", 1), ("b", 2)], [1, 2], indptr=[0, 2]), TypeError, "items that are tuples"),
    ):
        with pytest.raises(error, match=match):
            call()
    with pytest.warns(UserWarning, match="were dropped"), pytest.raises(ValueError, match="none of 5 groups has"):
        ConditionalLogit().fit(X, none, groups=ids)
