"""The penalty: scikit-learn's default, and choice by leaving rows out; warnings of lbfgs."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from csoftmax._arguments.places import CPU
from csoftmax._learn import penalty
from csoftmax._learn.leave_one_out import make_targets
from csoftmax._learn.objective import Options
from csoftmax.linear_model import SoftmaxRegression

DATA = {"iris": load_iris, "wine": load_wine, "breast_cancer": load_breast_cancer}


def load(name):
    X, y = DATA[name](return_X_y=True)
    return StandardScaler().fit_transform(X), y


# None: scikit-learn's default


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 0.3, 1: 5.0}])
@pytest.mark.parametrize("weighted", [False, True])
def test_default_is_that_of_logistic_regression(name, class_weight, weighted):
    X, y = load(name)
    w = np.random.default_rng(0).random(len(y)) * 3 if weighted else None
    counts = np.bincount(y, w)
    factors = np.array([0.3, 5.0, 1.0])[: len(counts)] if isinstance(class_weight, dict) else np.ones(len(counts))
    if class_weight == "balanced":  # scikit-learn's own counts the sample weights only since 1.7
        factors = counts.sum() / (len(counts) * counts)
    ours = SoftmaxRegression(class_weight=class_weight, max_epochs=1000).fit(X, y, w)
    theirs = LogisticRegression(solver="newton-cholesky", tol=1e-12, class_weight=dict(enumerate(factors))).fit(X, y, w)
    assert np.abs(ours.predict_proba(X) - theirs.predict_proba(X)).max() <= 1e-8
    total = counts @ factors
    assert ours.penalty_l2_ == pytest.approx((2 if len(counts) == 2 else 1) / total, rel=1e-12)
    assert type(ours.penalty_l2_) is float


def test_penalty_that_was_used():
    X, y = load("iris")
    assert SoftmaxRegression(penalty_l2=0.25).fit(X, y).penalty_l2_ == 0.25
    assert SoftmaxRegression(penalty_l2=0).fit(X[:, :1], y % 2).penalty_l2_ == 0.0
    adamw = {"solver": "adamw", "random_state": 0, "max_epochs": 3}
    a, b = SoftmaxRegression(**adamw).fit(X, y), SoftmaxRegression(penalty_l2=1e-4, **adamw).fit(X, y)
    assert a.penalty_l2_ == b.penalty_l2_ == 1e-4
    assert np.array_equal(a.coef_, b.coef_)
    assert SoftmaxRegression().partial_fit(X, y, [0, 1, 2]).penalty_l2_ == 1e-4
    held = SoftmaxRegression(early_stopping=True, validation_fraction=0.2, random_state=0).fit(X, y)
    assert held.penalty_l2_ == pytest.approx(1 / 120)  # the rows for training


def test_errors():
    X, y = load("iris")
    for wrong, error in (
        ("Auto", ValueError),
        (-1, ValueError),
        (np.nan, ValueError),
        (True, TypeError),
        ([1], TypeError),
    ):
        model = SoftmaxRegression(penalty_l2=wrong)
        with pytest.raises(error, match="penalty_l2"):
            model.fit(X, y)
        assert not hasattr(model, "classes_")
    with pytest.raises(ValueError, match=r"penalty_l2='auto' needs solver='lbfgs', got solver='adamw'"):
        SoftmaxRegression(penalty_l2="auto", solver="adamw").fit(X, y)
    for call in (lambda m: m.partial_fit(X, y, [0, 1, 2]), lambda m: m.fit_batches([(X, y)], [0, 1, 2], epochs=1)):
        with pytest.raises(ValueError, match="penalty_l2='auto' needs all of the data"):
            call(SoftmaxRegression(penalty_l2="auto"))
    fitted = SoftmaxRegression().fit(X, y).set_params(penalty_l2="auto")
    with pytest.raises(ValueError, match="partial_fit"):
        fitted.partial_fit(X, y)


def test_memory_map(tmp_path):
    X, y = load("iris")
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float64, shape=X.shape)
    mapped[:] = X
    for given in (mapped, np.load(tmp_path / "x.npy", mmap_mode="r")[:, 1:], np.asarray(mapped)):
        model = SoftmaxRegression(penalty_l2="auto")
        with pytest.raises(ValueError, match="needs X in memory"):
            model.fit(given, y)
        assert not hasattr(model, "n_features_in_")
        assert SoftmaxRegression().fit(given, y).penalty_l2_ == pytest.approx(1 / len(y))


# "auto": leaving rows out


def make_problem(case, seed=0):
    """Rows, weights and options of a small problem."""
    rng = np.random.default_rng(seed)
    n, d, k = {"binary": (40, 3, 2), "wide": (25, 60, 3), "many": (60, 3, 5)}.get(case, (45, 4, 3))
    X = rng.normal(size=(n, d)) + 2
    y = np.argmax(X @ rng.normal(size=(d, k)) + 2 * rng.gumbel(size=(n, k)), axis=1)
    y[:k], y[k : 2 * k] = np.arange(k), np.arange(k)
    weight = rng.random(n) + 0.2 if case in ("weights", "all") else None
    options = Options(
        rng.random(k) + 0.3 if case in ("class weights", "all") else None,
        0.15 if case in ("smoothing", "all") else 0.0,
        1.7 if case in ("temperature", "all") else 1.0,
    )
    has_intercept = case != "no intercept"
    frozen = np.arange(k) == 1 if case == "frozen" else None
    start = np.zeros((k, d)), np.zeros(k) if has_intercept else None
    if frozen is not None:
        start = rng.normal(size=(k, d)) * 0.3, rng.normal(size=k)
    return X, y, weight, penalty.Problem(k, options, start, frozen, None, CPU, lambda f, items: list(map(f, items)))


CASES = [
    "plain", "binary", "wide", "many", "weights", "class weights", "smoothing", "temperature", "no intercept",
    "frozen", "all",
]  # fmt: skip


def make_scorer(X, y, weight, problem):
    return penalty.LeftOut(X, make_targets(y, weight, problem.options, problem.classes, problem.frozen), problem)


def expand(X, y, weight, problem):
    """Design with the intercept, targets and weights of the rows."""
    k, options = problem.classes, problem.options
    w = np.ones(len(y)) if weight is None else weight
    c = np.ones(k) if options.weight is None else options.weight
    t = w[:, None] * c * ((1 - options.label_smoothing) * np.eye(k)[y] + options.label_smoothing / k)
    design = X if problem.start[1] is None else np.hstack([X, np.ones((len(y), 1))])
    return design, t, w * c[y]


def take_newton_steps(X, y, weight, problem, coef, intercept, alpha):
    """Logits of each row after a Newton step without it, by the pseudo-inverse of the whole Hessian."""
    design, t, _ = expand(X, y, weight, problem)
    k, d, temperature = problem.classes, X.shape[1], problem.options.temperature
    joined = coef if intercept is None else np.hstack([coef, intercept[:, None]])
    z = design @ joined.T / temperature
    p = np.exp(z - z.max(axis=1)[:, None])
    p /= p.sum(axis=1)[:, None]
    m = t.sum(axis=1)
    hessians = np.zeros((len(y), k, design.shape[1], k, design.shape[1]))
    for i in range(len(y)):
        v = m[i] * (np.diag(p[i]) - np.outer(p[i], p[i])) / temperature**2
        hessians[i] = np.einsum("jk,a,b->jakb", v, design[i], design[i])
    size = k * design.shape[1]
    hessians = hessians.reshape(len(y), size, size)
    penalised = np.zeros((k, design.shape[1]))
    penalised[:, :d] = alpha
    gradients = ((m[:, None] * p - t) / temperature)[:, :, None] * design[:, None, :]
    frozen = np.zeros(k, bool) if problem.frozen is None else problem.frozen
    places = np.flatnonzero(np.repeat(~frozen, design.shape[1]))
    whole = hessians.sum(axis=0) + np.diag(penalised.ravel())
    logits = np.empty_like(z)
    for i in range(len(y)):
        step = np.zeros(size)
        left = (whole - hessians[i])[np.ix_(places, places)]
        step[places] = np.linalg.pinv(left, rcond=1e-12, hermitian=True) @ gradients[i].ravel()[places]
        logits[i] = (joined + step.reshape(k, -1)) @ design[i]
    return logits / temperature


def mean_loss(logits, y, weight):
    losses = np.log(np.exp(logits - logits.max(axis=1)[:, None]).sum(axis=1)) + logits.max(axis=1)
    return float(weight @ (losses - logits[np.arange(len(y)), y]) / weight.sum())


@pytest.mark.parametrize("case", CASES)
def test_score_is_that_of_newton_steps_without_each_row(case, monkeypatch):
    """Exactly, with the Hessian of all K rows of coefficients, whose null space the pseudo-inverse leaves out."""
    monkeypatch.setattr("csoftmax._learn.leave_one_out.DECREMENT", 1e-20)
    X, y, weight, problem = make_problem(case)
    scorer = make_scorer(X, y, weight, problem)
    score_weight = expand(X, y, weight, problem)[2]
    for alpha in (scorer.usual * 20, scorer.usual / 3):
        score = scorer.average(scorer.compute_losses(alpha))
        coef, intercept = scorer.start(scorer.minimum())
        strength = scorer.penalty(alpha, score_weight.sum()) * score_weight.sum()
        logits = take_newton_steps(X, y, weight, problem, coef, intercept, strength)
        assert score == pytest.approx(mean_loss(logits, y, score_weight), rel=1e-7)


def follow(scorer, total):
    """The best penalty of the path, and its score."""
    trail = penalty.follow_path(scorer)
    assert len(trail.tried) <= 8
    best = trail.best()
    return scorer.penalty(scorer.usual * 10**-best, total), trail.score(best)


@pytest.mark.parametrize("case", CASES)
def test_score_is_close_to_that_of_fits_without_each_row(case):
    """Within 5 % at the penalty that is chosen, for two to three rows a parameter."""
    X, y, weight, problem = make_problem(case)
    score_weight = expand(X, y, weight, problem)[2]
    total = score_weight.sum()
    chosen, score = follow(make_scorer(X, y, weight, problem), total)
    logits = np.empty((len(y), problem.classes))
    for i in range(len(y)):
        rest = np.arange(len(y)) != i
        model = SoftmaxRegression(
            penalty_l2=chosen * total / score_weight[rest].sum(),
            class_weight=problem.options.weight,
            label_smoothing=problem.options.label_smoothing,
            temperature=problem.options.temperature,
            fit_intercept=problem.start[1] is not None,
            max_epochs=1000,
            warm_start=True,
        )
        if problem.frozen is not None:
            model.coef_, model.intercept_ = (p.copy() for p in problem.start)
            model.classes_, model.frozen_ = np.arange(problem.classes), problem.frozen
            model.n_features_in_ = X.shape[1]
        model.fit(X[rest], y[rest], None if weight is None else weight[rest])
        logits[i] = (model.coef_ @ X[i] + model.intercept_) / problem.options.temperature
    assert score == pytest.approx(mean_loss(logits, y, score_weight), rel=0.05)


@pytest.mark.parametrize("case", CASES)
def test_choice_is_the_minimum_of_the_score(case):
    X, y, weight, problem = make_problem(case)
    total = expand(X, y, weight, problem)[2].sum()
    choice = penalty.choose(X, y, weight, problem, total)
    scorer = make_scorer(X, y, weight, problem)
    decades = np.arange(-4, 4, 0.1)
    scores = np.array([scorer.average(scorer.compute_losses(scorer.usual * 10.0**-e)) for e in decades])
    prior = np.log1p((decades / 0.5) ** 2)
    best, score = follow(make_scorer(X, y, weight, problem), total)
    assert choice.penalty == best
    chosen = np.log10(scorer.penalty(scorer.usual, total) / best)
    assert scorer.rows * score + np.log1p((chosen / 0.5) ** 2) <= min(scorer.rows * scores + prior) + 0.05


class Parabola:
    """A scorer whose score is lowest at some decades below the usual alpha; not finite beyond a limit."""

    usual, rows = 1e-3, 1000.0

    def __init__(self, lowest, limit=np.inf):
        self.lowest, self.limit = lowest, limit

    def compute_losses(self, alpha):
        self.decades = np.log10(self.usual / alpha)
        return (self.decades - self.lowest) ** 2 if self.decades <= self.limit else np.nan

    def average(self, losses):
        return losses

    def minimum(self):
        return self.decades

    def start(self, minimum):
        return minimum, None

    def penalty(self, alpha, weight):
        return alpha / weight


@pytest.mark.parametrize("lowest", [-5.3, -3.7, -2.9, -2.1, -1.2, 0.4, 3.3, 5.1])
def test_path_goes_down_and_up(lowest):
    """Down from the first decade, or up where the second penalty is worse than the first."""
    tried = penalty.follow_path(Parabola(lowest)).tried
    steps = [decades for decades in tried if decades == int(decades)]
    assert steps[:2] == [penalty.FIRST_DECADES, penalty.FIRST_DECADES + 1]
    assert len(steps) <= abs(lowest - penalty.FIRST_DECADES) + 4
    assert (min(steps) < penalty.FIRST_DECADES) == (lowest < penalty.FIRST_DECADES + 0.5)
    choice = penalty.search(Parabola(lowest), 2.0)
    assert choice.start[0] == pytest.approx(lowest, abs=0.01)  # the prior moves it by less
    assert choice.penalty == pytest.approx(1e-3 * 10 ** -choice.start[0] / 2, rel=1e-9)


def test_path_ends():
    """At both ends of the decades, and where the score is not finite."""
    last = penalty.LAST_DECADES
    for lowest in (-20.0, 20.0):
        assert penalty.search(Parabola(lowest), 1.0).start[0] == np.copysign(last, lowest)
    assert penalty.search(Parabola(20.0, limit=2.2), 1.0).start[0] == pytest.approx(2.0, abs=0.3)


def test_start_of_the_fit_is_its_minimum():
    X, y = load("wine")
    model = SoftmaxRegression(penalty_l2="auto").fit(X, y)
    same = SoftmaxRegression(penalty_l2=model.penalty_l2_, max_epochs=500).fit(X, y)
    assert np.abs(model.coef_ - same.coef_).max() <= 1e-6
    assert model.n_iter_ < same.n_iter_
    assert model.history_["loss"][0] == pytest.approx(same.history_["loss"][-1], rel=1e-5)


def test_sparse_rows_and_units():
    X, y = load("wine")
    model = SoftmaxRegression(penalty_l2="auto").fit(X, y)
    for given in (sp.csr_array(X), sp.csc_matrix(X), X.astype(np.float32), np.asfortranarray(X)):
        same = SoftmaxRegression(penalty_l2="auto").fit(given, y)
        assert same.penalty_l2_ == pytest.approx(model.penalty_l2_, rel=1e-4)
    for factor in (1e-3, 1e5):
        scaled = SoftmaxRegression(penalty_l2="auto", max_epochs=1000).fit(X * factor, y)
        assert scaled.penalty_l2_ / factor**2 == pytest.approx(model.penalty_l2_, rel=1e-6)
    rng = np.random.default_rng(0)  # fewer rows than features: a Gram matrix
    wide, z = rng.normal(size=(40, 90)) * (rng.random((40, 90)) < 0.3), rng.integers(0, 3, 40)
    wide[:, 0] += 2 * z
    a, b = (SoftmaxRegression(penalty_l2="auto").fit(x, z) for x in (wide, sp.csr_array(wide)))
    assert a.penalty_l2_ == pytest.approx(b.penalty_l2_, rel=1e-6)
    padded = SoftmaxRegression(penalty_l2="auto").fit(np.hstack([wide[:, :90], np.zeros((40, 60))]), z)
    assert padded.penalty_l2_ == pytest.approx(a.penalty_l2_, rel=1e-6)


def test_units_of_weights_and_temperature():
    X, y = load("iris")
    w = np.random.default_rng(0).random(150) + 0.1
    chosen = SoftmaxRegression(penalty_l2="auto").fit(X, y, w).penalty_l2_
    for unit in (1e-9, 1e9):
        model = SoftmaxRegression(penalty_l2="auto").fit(X, y, w * unit)
        assert model.penalty_l2_ == pytest.approx(chosen, rel=1e-6)
    hot = SoftmaxRegression(penalty_l2="auto", temperature=10.0, max_epochs=1000).fit(X, y, w)
    assert hot.penalty_l2_ * 100 == pytest.approx(chosen, rel=1e-6)


def test_huge_values():
    X, y = load("iris")
    with pytest.raises(ValueError, match=r"penalty_l2='auto' needs squares of X .*e\+160; scale the data"):
        SoftmaxRegression(penalty_l2="auto").fit(X * 1e160, y)
    assert SoftmaxRegression(penalty_l2="auto", max_epochs=2000).fit(X * 1e100, y).penalty_l2_ > 1e190


def test_command_line(capsys):
    import argparse

    from csoftmax._cli import fit

    parser = argparse.ArgumentParser()
    fit.add_arguments(parser)
    for text, value in (("auto", "auto"), ("none", None), ("1e-3", 1e-3), ("0", 0.0)):
        arguments = parser.parse_args(["x.csv", "--target", "y", "--penalty-l2", text])
        assert arguments.penalty_l2 == value
        assert fit.make_model(arguments, None).penalty_l2 == value
    assert parser.parse_args(["x.csv", "--target", "y"]).penalty_l2 is None
    for text in ("Auto", "-1", "nan", "inf"):
        with pytest.raises(SystemExit):
            parser.parse_args(["x.csv", "--target", "y", "--penalty-l2", text])
        assert "penalty-l2" in capsys.readouterr().err


def test_rows_of_weight_zero_and_order_do_not_matter():
    X, y = load("iris")
    w = np.arange(150.0) % 3
    a = SoftmaxRegression(penalty_l2="auto", class_weight="balanced").fit(X, y, w)
    b = SoftmaxRegression(penalty_l2="auto", class_weight="balanced").fit(X[w > 0], y[w > 0], w[w > 0])
    assert a.penalty_l2_ == pytest.approx(b.penalty_l2_, rel=1e-9)
    order = np.random.default_rng(0).permutation(150)
    c = SoftmaxRegression(penalty_l2="auto", class_weight="balanced").fit(X[order], y[order], w[order])
    assert a.penalty_l2_ == pytest.approx(c.penalty_l2_, rel=1e-6)


def test_only_row_of_its_class():
    """It has no finite loss when it is left out; the other rows choose."""
    X, y = load("iris")
    X, y = np.vstack([X, [[9.0, 9, 9, 9]]]), np.append(y, 3)
    model = SoftmaxRegression(penalty_l2="auto", max_epochs=500).fit(X, y)
    assert 1e-6 < model.penalty_l2_ < 1
    with pytest.warns(UserWarning, match="at least two rows of a class"):
        model = SoftmaxRegression(penalty_l2="auto").fit(np.eye(3), [0, 1, 2])
    assert model.penalty_l2_ == pytest.approx(1 / 3)


def test_early_stopping_and_warm_start():
    X, y = load("breast_cancer")
    model = SoftmaxRegression(penalty_l2="auto", early_stopping=True, random_state=0).fit(X, y)
    again = SoftmaxRegression(penalty_l2=model.penalty_l2_, early_stopping=True, random_state=0).fit(X, y)
    assert np.array_equal(model.coef_, again.coef_)
    plain = SoftmaxRegression(penalty_l2="auto").fit(X, y)
    warm = SoftmaxRegression(penalty_l2="auto", warm_start=True).fit(X, y)
    assert warm.fit(X, y).penalty_l2_ == plain.penalty_l2_
    y = y + (X[:, 0] > 1)
    model = SoftmaxRegression(penalty_l2="auto", warm_start=True).fit(X, y).freeze([0])
    kept = model.coef_.copy()
    model.fit(X, y)
    assert np.array_equal(model.coef_[0], kept[0])
    assert model.penalty_l2_ > 0


def test_large_problems_hold_rows_out(monkeypatch):
    X, y = load("breast_cancer")
    chosen = SoftmaxRegression(penalty_l2="auto").fit(X, y).penalty_l2_
    monkeypatch.setattr(penalty, "MAX_PARAMETERS", 10)
    for given in (X, sp.csr_array(X), X.astype(np.float32)):
        model = SoftmaxRegression(penalty_l2="auto").fit(given, y)
        assert 0.1 < model.penalty_l2_ / chosen < 10
    y[:3] = 2  # a class of three rows: two of five folds have none of them
    assert SoftmaxRegression(penalty_l2="auto", max_epochs=500).fit(X, y).penalty_l2_ > 0
    monkeypatch.setattr(penalty, "ONE_FOLD_ROWS", 100)
    assert SoftmaxRegression(penalty_l2="auto", max_epochs=500).fit(X, y).penalty_l2_ > 0


@pytest.mark.parametrize("limit", ["MAX_PARAMETERS", "MAX_MULTIPLICATIONS", "MAX_COVARIANCES", "MAX_FACTORS"])
def test_limits_of_leaving_out(limit, monkeypatch):
    X, y, weight, problem = make_problem("all")
    monkeypatch.setattr(penalty, limit, 1)
    monkeypatch.setattr(penalty, "LeftOut", None)
    assert penalty.choose(X, y, weight, problem, len(y)).penalty > 0


def test_noise_gets_a_large_penalty_and_separable_rows_a_small_one():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 10)), rng.integers(0, 3, 200)
    noise = SoftmaxRegression(penalty_l2="auto").fit(X, y)
    share = np.bincount(y) / 200
    assert np.abs(noise.predict_proba(X) - share).max() < 0.2
    separable = SoftmaxRegression(penalty_l2="auto", max_epochs=1000).fit(X, X[:, 0] > 0)
    assert separable.penalty_l2_ < noise.penalty_l2_ / 100
    constant = SoftmaxRegression(penalty_l2="auto").fit(np.ones((30, 2)), np.arange(30) % 2)
    assert np.allclose(constant.predict_proba(np.ones((1, 2))), 0.5)


# Warnings of lbfgs


@pytest.mark.parametrize("case", ["ones", "1e4", "1e8", "dates", "offset", "seconds"])
@pytest.mark.parametrize("penalty_l2", [None, 1e-4])
def test_units_of_a_column_do_not_warn(case, penalty_l2):
    X, y = load_iris(return_X_y=True)
    rng = np.random.default_rng(0)
    column = {
        "ones": np.ones(150), "1e4": np.full(150, 1e4), "1e8": np.full(150, 1e8),
        "dates": 20_260_000 + rng.integers(101, 1231, 150), "offset": 1e6 + rng.normal(size=150),
        "seconds": 1.7e9 + rng.integers(0, 86_400, 150),
    }[case]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        model = SoftmaxRegression(penalty_l2=penalty_l2).fit(np.column_stack([X, column]), y)
    centred = np.column_stack([X, column - column.mean()])  # the same minimum but for the intercept
    scale = max(1.0, float(centred[:, 4].std()))
    exact = SoftmaxRegression(penalty_l2=model.penalty_l2_, max_epochs=2000).fit(centred, y)
    assert np.abs(model.predict_proba(np.column_stack([X, column])) - exact.predict_proba(centred)).max() < 1e-5
    difference = (model.coef_ - exact.coef_) * [1, 1, 1, 1, scale]
    assert np.abs(difference - difference.mean(axis=0)).max() < 1e-5  # a common shift changes no probability


def test_warning_names_the_remedy():
    X, y = load_iris(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="raise max_epochs"):
        SoftmaxRegression(max_epochs=3).fit(X, y)
    for solver_tol in (None, 1e-5):
        with pytest.warns(ConvergenceWarning, match="scale the data") as caught:
            model = SoftmaxRegression(tol=solver_tol).fit(X * 1e160, y)
        assert len(caught) == 1
        assert "raise max_epochs" not in str(caught[0].message)
        assert np.isfinite(model.coef_).all()
        assert np.isfinite(model.history_["gradient_norm"]).all()


def test_moments_of_extreme_columns():
    from csoftmax._learn.objective import Objective

    X = np.array([[1e160, 1e4, 20_260_101.0], [-1e160, 1e4, 20_260_103.0]])
    for given in (X, sp.csr_array(X[:, :1])):
        mean, std = Objective(given, np.array([0, 1]), None, 2, Options()).moments()
        assert np.allclose(mean, [0, 1e4, 20_260_102][: len(mean)])
        assert np.allclose(std, [1e160, 0, 1][: len(std)], rtol=1e-12)


@pytest.mark.parametrize("kind", ["ids", "seconds", "outlier"])
def test_auto_survives_columns_of_other_sizes(kind):
    """A column of ids or of seconds, or one number far from all others, do not hide the other columns."""
    X, y = load_iris(return_X_y=True)
    rng = np.random.default_rng(0)
    column = {
        "ids": rng.integers(0, 10**8, 150),
        "seconds": 1.7e9 + rng.integers(0, 3 * 10**7, 150),
        "outlier": np.r_[1e9, np.zeros(149)],
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SoftmaxRegression(penalty_l2="auto").fit(X, y)
        wider = SoftmaxRegression(penalty_l2="auto").fit(np.c_[X, column], y)
    assert wider.history_["loss"][-1] < 0.1
    assert 0.2 < wider.penalty_l2_ / model.penalty_l2_ < 5


def test_rows_alone_in_a_direction_do_not_count(monkeypatch):
    """Some rows each have a column of their own: no held-out fits, and nearly the penalty without those columns."""
    X, y = load_iris(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    held_out, left_out = [], []

    class HeldOut(penalty.HeldOut):
        def __init__(self, *args):
            super().__init__(*args)
            held_out.append(self)

    class LeftOut(penalty.LeftOut):
        def __init__(self, *args):
            super().__init__(*args)
            left_out.append(self)

    monkeypatch.setattr(penalty, "HeldOut", HeldOut)
    monkeypatch.setattr(penalty, "LeftOut", LeftOut)
    found = {}
    for columns in (0, 5):
        own = StandardScaler().fit_transform(np.eye(150)[:, :columns]) if columns else np.empty((150, 0))
        found[columns] = SoftmaxRegression(penalty_l2="auto").fit(np.c_[X, own * 1e4], y).penalty_l2_
        assert (left_out[-1].score_weight == 0).sum() == columns
    assert held_out == []
    assert 0.3 < found[5] / found[0] < 3
    monkeypatch.setattr(penalty, "DOMINATED", 2)  # all rows are
    SoftmaxRegression(penalty_l2="auto").fit(X, y)
    assert len(held_out) == 1
