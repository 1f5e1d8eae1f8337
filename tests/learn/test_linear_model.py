"""SoftmaxRegression: scikit-learn's checks, the minimum against LogisticRegression, options, errors."""

import warnings

import joblib
import numpy as np
import pytest
import scipy
import scipy.sparse as sp
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.estimator_checks import estimator_checks_generator

import csoftmax
from csoftmax._learn import lbfgs
from csoftmax._learn.parameters import hold_out
from csoftmax.class_weight import effective_number
from csoftmax.linear_model import SoftmaxRegression

SETTINGS = {
    "lbfgs": {},
    "lbfgs-early_stopping": {"early_stopping": True, "random_state": 0},
    "adamw": {"solver": "adamw", "random_state": 0},
    "adamw-batch_norm": {"solver": "adamw", "batch_norm": True, "random_state": 0},
    "adamw-early_stopping": {"solver": "adamw", "early_stopping": True, "random_state": 0},
    "adamw-effective_number": {"solver": "adamw", "class_weight": "effective_number", "random_state": 0},
    "lbfgs-effective_number": {"class_weight": "effective_number"},
    "lbfgs-certified": {"adversarial": "certified", "adversarial_eps": 0.05},
    "adamw-pgd": {"solver": "adamw", "random_state": 0, "adversarial": "pgd", "adversarial_eps": 0.05},
    "adamw-trades": {"solver": "adamw", "random_state": 0, "adversarial": "trades", "adversarial_eps": 0.05},
}
QUICK_SETTINGS = ("lbfgs", "adamw", "adamw-batch_norm", "lbfgs-early_stopping")  # the others are slow tests
PARTIAL_FIT = (
    "check_fit_score_takes_y",
    "check_n_features_in_after_fitting",
    "check_estimators_partial_fit_n_features",
)
ROWS_ARE_HELD_OUT = "a row is held out or not, whatever its weight"
PARTIAL_FIT_REFUSES = "partial_fit refuses what needs all rows: early_stopping, and class weights from frequencies"
EXPECTED_TO_FAIL = {
    "early_stopping": {
        **dict.fromkeys(PARTIAL_FIT, PARTIAL_FIT_REFUSES),
        "check_sample_weight_equivalence": ROWS_ARE_HELD_OUT,  # of scikit-learn 1.6
        "check_sample_weight_equivalence_on_dense_data": ROWS_ARE_HELD_OUT,
        "check_sample_weight_equivalence_on_sparse_data": ROWS_ARE_HELD_OUT,
    },
    "effective_number": dict.fromkeys(PARTIAL_FIT, PARTIAL_FIT_REFUSES),
    "trades": dict.fromkeys(
        (
            "check_sample_weight_equivalence",  # of scikit-learn 1.6
            "check_sample_weight_equivalence_on_dense_data",
            "check_sample_weight_equivalence_on_sparse_data",
        ),
        "every row starts at a random perturbation of its own",
    ),
    "adamw-early_stopping": {
        "check_class_weight_classifiers": "5 held-out rows, of weight 1000 or 1e-4, do not tell when to stop",
    },
}


def make_sklearn_checks():
    """Checks of scikit-learn; its parametrize_with_checks of 1.6 passes a generator, which pytest 9 refuses."""
    for setting, options in SETTINGS.items():
        reasons = {}
        for part, expected in EXPECTED_TO_FAIL.items():
            reasons.update(expected if part in setting else {})
        for estimator, check in estimator_checks_generator(SoftmaxRegression(**options)):
            name = getattr(check, "func", check).__name__
            marks = [pytest.mark.xfail(reason=reasons[name], strict=True)] if name in reasons else []
            if setting not in QUICK_SETTINGS:
                marks.append(pytest.mark.slow)
            yield pytest.param(estimator, check, id=f"{setting}-{name}", marks=marks)


@pytest.mark.parametrize(("estimator", "check"), list(make_sklearn_checks()))
def test_sklearn(estimator, check):
    check(estimator)


def compute_objective(X, y, coef, intercept, penalty, **options):
    wide = (np.asarray(a, np.float64) for a in (X, coef))
    loss = csoftmax.linear_cross_entropy(*wide, y, bias=np.asarray(intercept, np.float64), **options)
    return float(loss) + penalty / 2 * float(np.vdot(coef, coef))


SCIPY = tuple(int(part) for part in scipy.__version__.split(".")[:2])
DATA = {"digits": load_digits, "iris": load_iris, "wine": load_wine}


@pytest.fixture(params=DATA)
def data(request):
    X, y = DATA[request.param](return_X_y=True)
    return StandardScaler().fit_transform(X) if request.param == "wine" else X / X.max(), y


@pytest.fixture
def three_classes():
    """120 random rows of three classes that a linear model separates."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 4))
    return X, (X @ rng.normal(size=(4, 3))).argmax(axis=1)


# Against scikit-learn


@pytest.mark.parametrize("penalty", [1e-3, 1e-2])
def test_coefficients_equal_those_of_logistic_regression(data, penalty):
    X, y = data
    ours = SoftmaxRegression(penalty_l2=penalty, max_epochs=500)
    if SCIPY >= (1, 12):
        ours.fit(X, y)
    else:  # the default tolerance ends 1.01e-8 from the minimum for wine; this one cannot be reached, and says so
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            ours.set_params(tol=1e-13).fit(X, y)
    theirs = LogisticRegression(C=1 / (penalty * len(y)), solver="newton-cholesky", tol=1e-12).fit(X, y)
    assert np.abs(ours.coef_ - theirs.coef_).max() <= 1e-8
    shift = (ours.intercept_ - theirs.intercept_).mean()  # the same number for all classes changes no probability
    assert np.abs(ours.intercept_ - theirs.intercept_ - shift).max() <= 1e-7
    values = [compute_objective(X, y, m.coef_, m.intercept_, penalty) for m in (ours, theirs)]
    assert values[0] <= values[1] * (1 + 1e-14)
    assert np.abs(ours.predict_proba(X) - theirs.predict_proba(X)).max() <= 1e-8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tol", [1e-3, 1e-4, 1e-5])
def test_objective_is_never_worse_for_the_same_tolerance(data, dtype, tol):
    X, y = data
    X = X.astype(dtype)
    ours = SoftmaxRegression(penalty_l2=1 / len(y), tol=tol, max_epochs=5000).fit(X, y)
    theirs = LogisticRegression(C=1.0, tol=tol, max_iter=5000).fit(X, y)
    values = [compute_objective(X, y, m.coef_, m.intercept_, 1 / len(y)) for m in (ours, theirs)]
    assert values[0] <= values[1] * (1 + 1e-6 * (dtype == "float32"))


def test_problem_with_too_many_parameters_for_a_hessian():
    """Only the first coordinates of lbfgs are used; with sample weights and class weights."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 60))
    y = (X @ rng.normal(size=(60, 40))).argmax(axis=1)
    X += 3
    w = rng.integers(0, 3, 900).astype(float)
    w[y == 7] = 0  # all rows of one class have weight 0
    assert len(np.unique(y)) * 61 > lbfgs.MAX_HESSIAN_PARAMETERS
    ours = SoftmaxRegression(penalty_l2=1e-2, class_weight="balanced", max_epochs=500).fit(X, y, w)
    counts = np.bincount(y, w, 40)
    weight = np.divide(counts.sum(), np.count_nonzero(counts) * counts, out=np.zeros(40), where=counts > 0)
    total = np.sum(w * weight[y])  # scikit-learn multiplies the sum of the weighted losses by C
    theirs = LogisticRegression(C=1 / (1e-2 * total), class_weight=dict(enumerate(weight)), tol=1e-9, max_iter=5000)
    theirs.fit(X, y, w)
    assert np.abs(ours.coef_ - theirs.coef_).max() <= 1e-5


def test_sparse_data_and_no_intercept(data):
    X, y = data
    X = np.where(np.abs(X) > 0.3, X, 0)
    theirs = LogisticRegression(C=100 / len(y), fit_intercept=False, tol=1e-10, max_iter=20_000).fit(X, y)
    for given in (X, sp.csr_array(X), sp.csc_matrix(X), sp.csr_matrix(X)):
        ours = SoftmaxRegression(penalty_l2=1e-2, fit_intercept=False, max_epochs=500).fit(given, y)
        assert np.abs(ours.coef_ - theirs.coef_).max() <= 1e-5
        assert not ours.intercept_.any()
        assert np.array_equal(ours.predict(given), theirs.predict(X))
    with_intercept = (
        SoftmaxRegression(penalty_l2=1e-2).fit(X, y),
        SoftmaxRegression(penalty_l2=1e-2).fit(sp.csr_array(X), y),
    )
    assert np.abs(with_intercept[0].coef_ - with_intercept[1].coef_).max() <= 1e-8


def test_two_classes_have_two_rows_of_coefficients():
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = SoftmaxRegression(penalty_l2=2e-2).fit(X, y)
    assert model.coef_.shape == (2, X.shape[1])
    # the penalty on two opposite rows is half of that on their difference
    theirs = LogisticRegression(C=1 / (1e-2 * len(y)), tol=1e-10, max_iter=5000).fit(X, y)
    assert np.abs(model.coef_[1] - model.coef_[0] - theirs.coef_[0]).max() <= 1e-5
    assert model.decision_function(X).shape == (len(y),)
    assert np.array_equal(model.decision_function(X) > 0, model.predict(X) == 1)


def test_pipeline_search_and_calibration_of_sklearn():
    X, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), SoftmaxRegression(penalty_l2=1e-3))
    assert cross_val_score(pipeline, X, y, cv=3).mean() > 0.9
    grid = GridSearchCV(SoftmaxRegression(), {"penalty_l2": [1e-4, 1e-2, 10.0]}, cv=3, n_jobs=2).fit(X, y)
    assert grid.best_params_["penalty_l2"] < 10
    calibrated = CalibratedClassifierCV(SoftmaxRegression(penalty_l2=1e-2), cv=3).fit(X, y)
    assert calibrated.score(X, y) > 0.9


@pytest.mark.parametrize(
    "setting", [pytest.param(name, marks=[] if name in QUICK_SETTINGS else pytest.mark.slow) for name in SETTINGS]
)
def test_estimator_in_parallel(setting):
    """joblib's processes give the numbers of one process."""
    X, y = load_iris(return_X_y=True)
    model = SoftmaxRegression(**{"max_epochs": 500, **SETTINGS[setting]})
    pipeline = make_pipeline(StandardScaler(), model)
    name = "softmaxregression__penalty_l2"
    grids = [GridSearchCV(pipeline, {name: [1e-3, 1e-1]}, cv=2, n_jobs=jobs).fit(X, y) for jobs in (None, 2)]
    assert np.array_equal(*(grid.cv_results_["mean_test_score"] for grid in grids))
    assert np.array_equal(*(grid.best_estimator_[-1].coef_ for grid in grids))
    threads = joblib.Parallel(2, backend="threading")(joblib.delayed(clone(model).fit)(X, y) for _ in range(3))
    assert all(np.array_equal(fitted.coef_, threads[0].coef_) for fitted in threads)


def test_metadata_routing():
    """Sample weights reach the estimator inside a pipeline and a search, as in a plain fit."""
    X, y = load_iris(return_X_y=True)
    weights = np.linspace(0.1, 3, len(y))
    with config_context(enable_metadata_routing=True):
        model = SoftmaxRegression(penalty_l2=1e-2)
        with pytest.raises(ValueError, match="sample_weight"):  # not requested and not refused
            GridSearchCV(model, {}, cv=2).fit(X, y, sample_weight=weights)
        model.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"penalty_l2": [1e-2]}, cv=2).fit(X, y, sample_weight=weights)
        pipeline = make_pipeline(model).fit(X, y, sample_weight=weights)
        expected = SoftmaxRegression(penalty_l2=1e-2).fit(X, y, weights)
        for fitted in (search.best_estimator_, pipeline[-1]):
            assert np.array_equal(fitted.coef_, expected.coef_)
        model.set_partial_fit_request(sample_weight=True, classes=True)


def test_data_frames():
    pd = pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True, as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = SoftmaxRegression().fit(X, names)
    assert list(model.feature_names_in_) == list(X.columns)
    assert model.predict(X)[0] == "setosa"
    with pytest.raises(ValueError, match="feature names"):
        model.predict(X[X.columns[::-1]])
    assert isinstance(X, pd.DataFrame)


# Options


def test_dtypes(data):
    X, y = data
    single = SoftmaxRegression().fit(X.astype(np.float32), y)
    assert single.coef_.dtype == single.intercept_.dtype == np.float32
    double = SoftmaxRegression().fit(X, y)
    assert double.coef_.dtype == np.float64
    assert np.abs(single.coef_ - double.coef_).max() < 0.05  # X was rounded
    assert single.predict_proba(X.astype(np.float32)).dtype == np.float64


def test_class_weight(data):
    X, y = data
    k = len(np.unique(y))
    a = SoftmaxRegression(class_weight="effective_number").fit(X, y)
    b = SoftmaxRegression(class_weight=effective_number(y)).fit(X, y)
    c = SoftmaxRegression(class_weight=dict(enumerate(effective_number(y)))).fit(X, y)
    assert np.array_equal(a.coef_, b.coef_)
    assert np.allclose(a.coef_, c.coef_, atol=1e-7)
    balanced = compute_class_weight("balanced", classes=np.arange(k), y=y)
    d, e = (SoftmaxRegression(class_weight=weight).fit(X, y) for weight in ("balanced", balanced))
    assert np.array_equal(d.coef_, e.coef_)
    rare = SoftmaxRegression(class_weight={0: 100.0}).fit(X, y)
    assert np.sum(rare.predict(X) == 0) >= np.sum(SoftmaxRegression().fit(X, y).predict(X) == 0)
    for wrong in ("heavy", np.ones(k + 1), {0: -1.0}, np.full(k, np.nan)):
        with pytest.raises(ValueError, match="class_weight"):
            SoftmaxRegression(class_weight=wrong).fit(X, y)


def test_rows_of_weight_zero_have_no_effect(three_classes):
    X, y = three_classes
    w = np.arange(120.0) % 3
    for options in ({"class_weight": "effective_number"}, {"class_weight": "balanced"}, {"early_stopping": True}):
        given = {"random_state": 0, "penalty_l2": 1e-2, **options}
        a, b = SoftmaxRegression(**given).fit(X, y, w), SoftmaxRegression(**given).fit(X[w > 0], y[w > 0], w[w > 0])
        assert np.allclose(a.coef_, b.coef_, atol=1e-8)
    model = SoftmaxRegression(class_weight="balanced", early_stopping=True, random_state=1, max_epochs=500)
    assert model.fit(X[:4], [0, 0, 0, 1]).n_iter_ > 0
    model = SoftmaxRegression(solver="adamw", class_weight={0: 0.0}, batch_size=1, max_epochs=2, random_state=0)
    assert np.isfinite(model.fit(X, y).history_["loss"]).all()


def test_temperature_and_label_smoothing(data):
    X, y = data
    hot = SoftmaxRegression(temperature=3.0, penalty_l2=1e-3 / 9, max_epochs=500).fit(X, y)
    cold = SoftmaxRegression(penalty_l2=1e-3, max_epochs=500).fit(X, y)
    assert np.allclose(hot.coef_ / 3, cold.coef_, atol=1e-6)
    assert np.allclose(hot.predict_proba(X), cold.predict_proba(X), atol=1e-7)
    smooth = SoftmaxRegression(label_smoothing=0.2).fit(X, y)
    assert smooth.predict_proba(X).max() < cold.predict_proba(X).max()
    assert np.array_equal(np.log(cold.predict_proba(X)).round(9), cold.predict_log_proba(X).round(9))


def test_log_probabilities_close_to_zero_are_exact():
    X, y = np.array([[0.0], [1.0]]), [0, 1]
    model = SoftmaxRegression().fit(X, y)
    model.coef_, model.intercept_ = np.array([[0.0], [40.0]]), np.zeros(2)
    assert model.predict_log_proba([[1.0]])[0, 1] == pytest.approx(-np.exp(-40.0), rel=1e-12)


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_early_stopping(solver):
    X, y = load_digits(return_X_y=True)
    model = SoftmaxRegression(
        solver=solver, penalty_l2=0, early_stopping=True, patience=3, max_epochs=300, random_state=0, learning_rate=0.05
    ).fit(X / 16, y)
    losses = model.history_["validation_loss"]
    assert len(losses) == model.n_iter_ < 300
    assert np.argmin(losses) == len(losses) - 4  # three epochs without improvement follow the best one
    again = clone(model).fit(X / 16, y)
    assert np.array_equal(again.coef_, model.coef_)
    _, (X_held, y_held, _) = hold_out(model, X / 16, y, None)
    assert compute_objective(X_held, y_held, model.coef_, model.intercept_, 0) == pytest.approx(min(losses), rel=1e-12)


def test_history(data):
    X, y = data
    for solver in ("lbfgs", "adamw"):
        model = SoftmaxRegression(solver=solver, max_epochs=30, tol=1e-3, random_state=0).fit(X, y)
        assert set(model.history_) == {"loss", "accuracy", "gradient_norm", "learning_rate"}
        assert {len(v) for v in model.history_.values()} == {model.n_iter_}
        assert model.history_["loss"][-1] < model.history_["loss"][0]
        assert model.score(X, y) == pytest.approx(model.history_["accuracy"][-1], abs=0.05)
    full = SoftmaxRegression(max_epochs=500, penalty_l2=1e-2).fit(X, y)
    assert full.history_["loss"][-1] == pytest.approx(
        compute_objective(X, y, full.coef_, full.intercept_, 1e-2), rel=1e-12
    )
    assert full.history_["accuracy"][-1] == full.score(X, y)


def test_warning_without_convergence():
    X, y = load_digits(return_X_y=True)
    with pytest.warns(ConvergenceWarning, match="max_epochs=3"):
        SoftmaxRegression(max_epochs=3).fit(X, y)


@pytest.mark.parametrize("method", ["lbfgs", "adamw", "fit_batches", "partial_fit", "auto"])
def test_warnings_name_the_line_of_the_caller(method, three_classes):
    """Whatever the version of scikit-learn, whose callbacks wrap `fit` and `fit_batches` since 1.9."""
    X, y = three_classes
    model = SoftmaxRegression(solver="adamw", learning_rate=1e30, max_epochs=3, random_state=0)
    calls = {
        "lbfgs": (SoftmaxRegression(max_epochs=1).fit, X, y),
        "adamw": (model.fit, X, y),
        "fit_batches": (model.fit_batches, [(X, y)], [0, 1, 2]),
        "partial_fit": (model.partial_fit, X, y, [0, 1, 2]),
        "auto": (SoftmaxRegression(penalty_l2="auto").fit, np.eye(3), [0, 1, 2]),
    }
    call, *arguments = calls[method]
    with pytest.warns(UserWarning, match="lbfgs has not|diverged|at least two rows") as caught:  # noqa: PT031
        for _ in range(3):  # the first step of partial_fit cannot have diverged
            call(*arguments)
    assert {warning.filename for warning in caught} == {__file__}


def test_hopeless_scales_are_reported(three_classes):
    X, y = three_classes
    with pytest.warns(ConvergenceWarning, match="scale the data"):
        SoftmaxRegression().fit(X * 1e160, y)
    assert SoftmaxRegression().fit(X * 1e100, y).score(X * 1e100, y) == 1


def test_start_that_is_the_minimum():
    model = SoftmaxRegression().fit([[1.0], [-1.0], [1.0], [-1.0]], [0, 0, 1, 1])
    assert model.n_iter_ == 0
    assert len(model.history_["loss"]) == 1


def test_errors():
    X, y = np.arange(12.0).reshape(6, 2), [0, 1, 2, 0, 1, 2]
    wrong = {
        "solver": ("sgd", ValueError), "penalty_l2": (-1, ValueError), "label_smoothing": (1.5, ValueError),
        "temperature": (0, ValueError), "batch_size": (0, ValueError), "max_epochs": (2.5, TypeError),
        "learning_rate": (np.inf, ValueError), "validation_fraction": (1.0, ValueError), "patience": ("x", TypeError),
        "init": ("he", ValueError), "tol": (0, ValueError), "batch_norm": (True, ValueError),
        "clip_norm": (1.0, ValueError),
        "device": ("gpu", ValueError),
    }  # fmt: skip
    for name, (value, error) in wrong.items():
        with pytest.raises(error, match=name):
            SoftmaxRegression(**{name: value}).fit(X, y)
    with pytest.raises(ValueError, match="one class"):
        SoftmaxRegression().fit(X, [1] * 6)
    with pytest.raises(ValueError, match="NaN"):
        SoftmaxRegression().fit(X * np.nan, y)
    with pytest.raises(ValueError, match="infinity"):
        SoftmaxRegression().fit(X + np.inf, y)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        SoftmaxRegression().fit(X, y, [-1, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="inconsistent"):
        SoftmaxRegression().fit(X, y[:5])
    with pytest.raises(ValueError, match="features"):
        SoftmaxRegression().fit(X, y).predict(X[:, :1])
    with pytest.raises(NotFittedError):
        SoftmaxRegression().predict(X)
    with pytest.raises(ValueError, match="could not convert"):
        SoftmaxRegression().fit(np.array([["a", "b"]] * 6), y)


@pytest.mark.parametrize("solver", ["lbfgs", "adamw"])
def test_errors_of_num_threads(solver):
    for wrong, error in ((0, ValueError), (-2, ValueError), ("x", TypeError)):
        with pytest.raises(error, match="num_threads must be"):
            SoftmaxRegression(solver=solver, num_threads=wrong).fit(np.eye(4), [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("factor", "penalty"),
    [(1, 1e-18), (1, 1e-30), (1e6, None), (1e7, None), (1e9, None), (1e100, None)],
    ids=str,
)
def test_tiny_penalties_and_large_units_end_at_the_minimum(factor, penalty):
    """The direction that only the penalty bends, and directions lost in rounding, do not end the fit early."""
    X, y = load_iris(return_X_y=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SoftmaxRegression(penalty_l2=penalty, max_epochs=2000).fit(X * factor, y)
    least = SoftmaxRegression(penalty_l2=0, max_epochs=2000).fit(X, y)
    assert model.history_["loss"][-1] == pytest.approx(least.history_["loss"][-1], abs=1e-6)


def test_rounding_stalls_no_order_of_the_rows():
    """Where rounding stalls a fit in one set of coordinates, it goes on in the other; each order rounds differently."""
    X, y = load_iris(return_X_y=True)
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(10):
            order = rng.permutation(150)
            SoftmaxRegression(max_epochs=2000).fit(X[order] * 1e8, y[order])


@pytest.mark.parametrize("options", [{"penalty_l2": 1e20}, {"weight": 1e-300}, {"offset": 1.7e12}], ids=str)
def test_fits_that_converge_do_not_warn(options):
    X, y = load_iris(return_X_y=True)
    if "offset" in options:
        X = np.c_[X, options["offset"] + np.random.default_rng(0).integers(0, 3 * 10**10, 150)]
    weight = np.full(150, options["weight"]) if "weight" in options else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SoftmaxRegression(penalty_l2=options.get("penalty_l2")).fit(X, y, weight)
