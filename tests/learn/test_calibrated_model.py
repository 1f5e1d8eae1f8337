"""CalibratedModel: scikit-learn's checks, cross-fitting by its definition, hard estimators, weights, routing."""

import contextlib
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits, load_iris, load_wine, make_classification
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, RepeatedKFold, StratifiedKFold, cross_val_score
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from csoftmax import calibration
from csoftmax.calibration import CalibratedModel
from csoftmax.linear_model import SoftmaxRegression
from csoftmax.metrics import evaluate

METHODS = {
    "temperature": calibration.TemperatureScaling,
    "vector": calibration.VectorScaling,
    "matrix": calibration.MatrixScaling,
    "dirichlet": calibration.DirichletCalibration,
    "platt": calibration.PlattScaling,
    "isotonic": calibration.IsotonicCalibration,
}
SHORT = "ignore:.*held-out rows:UserWarning"


@contextlib.contextmanager
def quiet():
    """Context without the warnings of calibrators about few rows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*held-out rows", UserWarning)
        yield


@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks([CalibratedModel(SoftmaxRegression(penalty_l2=1e-2), "vector", cv=3)])
def test_sklearn(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@parametrize_with_checks(
    [
        CalibratedModel(LogisticRegression()),
        CalibratedModel(LogisticRegression(), "platt", cv=3),
        CalibratedModel(LogisticRegression(), "isotonic", cv=3),
    ]
)
def test_sklearn_with_other_methods(estimator, check):
    check(estimator)


@pytest.mark.parametrize("method", METHODS)
def test_cross_fitting_by_definition(method):
    """The calibrator sees logits of models that had not seen the row; the model is fitted to all rows."""
    X, y = load_wine(return_X_y=True)
    names = np.array(["red", "white", "rosé"])
    inner = make_pipeline(StandardScaler(), LogisticRegression(C=10))
    with quiet():
        model = CalibratedModel(inner, method, cv=4).fit(X, names[y])
        classes = np.sort(names)
        logits = np.empty((len(y), 3))
        for train, test in StratifiedKFold(4).split(X, names[y]):
            logits[test] = clone(inner).fit(X[train], names[y[train]]).decision_function(X[test])
        calibrator = METHODS[method]().fit(logits, names[y], classes=classes)
    whole = clone(inner).fit(X, names[y])
    expected = calibrator.predict_proba(whole.decision_function(X))
    assert np.allclose(model.predict_proba(X), expected, rtol=1e-9, atol=1e-12)
    assert model.classes_.tolist() == classes.tolist()
    assert (model.predict(X) == classes[expected.argmax(axis=1)]).all()
    assert type(model.calibrator_) is METHODS[method]
    assert not hasattr(inner[-1], "coef_")
    assert model.score(X, names[y]) > 0.95
    assert model.n_features_in_ == 13


def test_prefit():
    X, y = load_digits(return_X_y=True)
    inner = SoftmaxRegression(penalty_l2=1e-7, max_epochs=100, tol=1e-4).fit(X[:600] / 16, y[:600])
    model = CalibratedModel(inner, cv="prefit").fit(X[600:1200] / 16, y[600:1200])
    assert model.estimator_ is inner
    expected = calibration.TemperatureScaling().fit(inner.decision_function(X[600:1200] / 16), y[600:1200])
    assert model.calibrator_.temperature_ == expected.temperature_ > 1
    X_new, y_new = X[1200:] / 16, y[1200:]
    assert log_loss(y_new, model.predict_proba(X_new)) < log_loss(y_new, inner.predict_proba(X_new))
    with pytest.raises(sklearn.exceptions.NotFittedError):
        CalibratedModel(SoftmaxRegression(), cv="prefit").fit(X, y)
    frozen = CalibratedModel(FrozenEstimator(inner)).fit(X[600:1200] / 16, y[600:1200])
    assert frozen.calibrator_.temperature_ == pytest.approx(expected.temperature_, rel=1e-12)


def test_beside_sklearn():
    """The temperature of ``ensemble=False``, whose logits of two classes are twice as large and have no prior."""
    X, y = make_classification(2000, flip_y=0.2, random_state=0)
    ours = CalibratedModel(LinearSVC(), cv=5).fit(X, y)
    try:
        theirs = CalibratedClassifierCV(LinearSVC(), method="temperature", cv=5, ensemble=False).fit(X, y)
    except ValueError:
        pytest.skip("scikit-learn 1.8 has it")
    assert np.allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=5e-3)


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "inner",
    [
        DecisionTreeClassifier(random_state=0),
        KNeighborsClassifier(3),
        GaussianNB(),
        SVC(),
        SVC(decision_function_shape="ovo"),
    ],
    ids=str,
)
def test_estimators_whose_probabilities_are_0(inner, method):
    X, y = load_digits(return_X_y=True)
    model = CalibratedModel(inner, method, cv=3)
    if getattr(inner, "decision_function_shape", "") == "ovo":
        with pytest.raises(ValueError, match="not a column for each of the 10 classes, and it has no predict_proba"):
            model.fit(X[:600], y[:600])
        return
    p = model.fit(X[:600], y[:600]).predict_proba(X[600:])
    assert np.isfinite(p).all()
    assert p.sum(axis=1) == pytest.approx(1, rel=1e-12)
    if hasattr(inner, "predict_proba"):
        plain = clone(inner).fit(X[:600], y[:600]).predict_proba(X[600:])
        assert log_loss(y[600:], p) < log_loss(y[600:], plain)
    else:
        assert log_loss(y[600:], p) < 1


def test_folds_that_lack_a_class():
    X, y = load_iris(return_X_y=True)
    X, y = np.concatenate([X, X[:1] * 3]), np.append(y, 3)  # one row of a fourth class
    with (
        pytest.warns(UserWarning, match="1 of 3 parts take no part in calibration"),
        pytest.warns(UserWarning, match="least populated class"),
    ):
        model = CalibratedModel(LogisticRegression(max_iter=1000), cv=3).fit(X, y)
    assert model.predict_proba(X).shape == (151, 4)
    assert model.classes_.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="leaves no rows to calibrate with"):
        CalibratedModel(LogisticRegression(), cv=KFold(3)).fit(*load_iris(return_X_y=True))  # sorted by class


@pytest.mark.filterwarnings(SHORT)
def test_splitters_and_repeated_rows():
    X, y = load_wine(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    folds = list(StratifiedKFold(4, shuffle=True, random_state=0).split(X, y))
    as_list = CalibratedModel(LogisticRegression(), cv=folds).fit(X, y)
    as_splitter = CalibratedModel(LogisticRegression(), cv=StratifiedKFold(4, shuffle=True, random_state=0)).fit(X, y)
    twice = CalibratedModel(LogisticRegression(), cv=folds + folds).fit(X, y)
    t = as_list.calibrator_.temperature_
    assert as_splitter.calibrator_.temperature_ == t
    assert twice.calibrator_.temperature_ == pytest.approx(t, rel=1e-12)  # a row in two parts has half the weight
    repeated = CalibratedModel(LogisticRegression(), cv=RepeatedKFold(n_splits=4, n_repeats=2, random_state=0))
    assert repeated.fit(X, y).calibrator_.temperature_ == pytest.approx(t, rel=0.3)


def test_weights():
    X, y = make_classification(300, n_informative=5, n_classes=3, flip_y=0.2, random_state=0)
    weights = np.random.default_rng(0).integers(0, 3, 300)
    folds = list(StratifiedKFold(3).split(X, y))
    weighted = CalibratedModel(SoftmaxRegression(penalty_l2=1e-2), cv=folds).fit(X, y, sample_weight=weights)
    repeats = np.repeat(np.arange(300), weights)
    splits = [tuple(np.flatnonzero(np.isin(repeats, part)) for part in fold) for fold in folds]
    repeated = CalibratedModel(SoftmaxRegression(penalty_l2=1e-2), cv=splits).fit(X[repeats], y[repeats])
    assert np.allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-6)
    with pytest.warns(UserWarning, match="fit of KNeighborsClassifier has no sample_weight"):
        CalibratedModel(KNeighborsClassifier(30), cv=3).fit(X, y, sample_weight=np.ones(300))


def test_pipelines_searches_and_processes():
    X, y = load_iris(return_X_y=True)
    model = make_pipeline(StandardScaler(), CalibratedModel(SoftmaxRegression(penalty_l2=1e-2), cv=3))
    names = np.array(["a", "b", "c"])[y]
    with quiet():
        assert cross_val_score(model, X, names, scoring="neg_log_loss").mean() > -0.3
        search = GridSearchCV(
            CalibratedModel(SoftmaxRegression(penalty_l2=1e-2), cv=3),
            {"method": ["temperature", "isotonic"], "estimator__penalty_l2": [1e-3, 1e-1]},
            scoring="neg_log_loss",
            cv=3,
            n_jobs=2,
        ).fit(X, names)
    assert search.best_score_ > -0.3
    again = pickle.loads(pickle.dumps(search.best_estimator_))
    assert np.array_equal(again.predict_proba(X), search.best_estimator_.predict_proba(X))
    assert b"_learn.calibration" not in pickle.dumps(search.best_estimator_)


@pytest.mark.filterwarnings(SHORT)
def test_sparse_frames_text_and_tensors():
    sparse = pytest.importorskip("scipy.sparse")
    pd = pytest.importorskip("pandas")
    X, y = load_iris(return_X_y=True)
    inner = SoftmaxRegression(penalty_l2=1e-2)
    expected = CalibratedModel(inner, cv=3).fit(X, y)
    p = expected.predict_proba(X)
    assert np.allclose(CalibratedModel(inner, cv=3).fit(sparse.csr_array(X), y).predict_proba(X), p, atol=1e-6)
    frame = pd.DataFrame(X, columns=list("abcd"), index=np.arange(150)[::-1])
    model = CalibratedModel(inner, cv=3).fit(frame, pd.Series(y, index=frame.index))
    assert np.allclose(model.predict_proba(frame), p, atol=1e-8)
    assert model.feature_names_in_.tolist() == list("abcd")
    words = [["red apple", "green pear"][int(label > 0)] + f" {i % 7}" for i, label in enumerate(y)]
    text = CalibratedModel(make_pipeline(CountVectorizer(), MultinomialNB()), cv=3).fit(words, y > 0)
    assert text.predict(["apple"]).tolist() == [False]
    torch = pytest.importorskip("torch")
    tensor = CalibratedModel(inner, cv=3).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert isinstance(tensor.predict_proba(torch.from_numpy(X)), torch.Tensor)
    assert np.array_equal(tensor.predict_proba(torch.from_numpy(X)).numpy(), p)
    assert isinstance(tensor.predict(torch.from_numpy(X)), torch.Tensor)


@pytest.mark.filterwarnings(SHORT)
def test_metadata_routing():
    X, y = load_iris(return_X_y=True)
    weights, groups = np.arange(150) % 4 + 1.0, np.arange(150) % 10
    with sklearn.config_context(enable_metadata_routing=True):
        inner = SoftmaxRegression(penalty_l2=1e-2).set_fit_request(sample_weight=True)
        model = CalibratedModel(inner, cv=GroupKFold(5)).fit(X, y, sample_weight=weights, groups=groups)
        with pytest.raises(ValueError, match="sample_weight"):
            CalibratedModel(SoftmaxRegression(), cv=3).fit(X, y, sample_weight=weights)
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            CalibratedModel(inner, cv=3).set_fit_request(sample_weight=True),
        ).fit(X, y, sample_weight=weights)
    folds = list(GroupKFold(5).split(X, y, groups))
    expected = CalibratedModel(SoftmaxRegression(penalty_l2=1e-2), cv=folds).fit(X, y, sample_weight=weights)
    assert np.array_equal(model.predict_proba(X), expected.predict_proba(X))
    assert pipeline.score(X, y) > 0.9


class Recording(ClassifierMixin, BaseEstimator):
    """A classifier that remembers how many rows each fit had, and what else it was given."""

    fits: ClassVar = []

    def fit(self, X, y, extra=None):
        Recording.fits.append((len(y), None if extra is None else len(extra)))
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return np.asarray(X)[:, 0]


@pytest.mark.filterwarnings(SHORT)
def test_parameters_of_fit_are_divided_with_the_rows():
    Recording.fits.clear()
    X, y = np.linspace(-3, 3, 40)[:, None], np.arange(40) % 5 > 1
    CalibratedModel(Recording(), cv=4).fit(X, y, extra=np.zeros(40))
    assert Recording.fits == [(30, 30)] * 4 + [(40, 40)]


@pytest.mark.filterwarnings(SHORT)
def test_threads_leave_the_filters_of_warnings_alone():
    """`warnings.catch_warnings` belongs to the process: threads that use it restore each other's state."""
    X, y = load_iris(return_X_y=True)
    X, y = X[::3], y[::3]
    before = warnings.filters[:], warnings._showwarnmsg_impl
    with ThreadPoolExecutor(4) as pool:
        fits = [pool.submit(CalibratedModel(GaussianNB(), cv=2).fit, X, y) for _ in range(30)]
        fits += [pool.submit(evaluate, GaussianNB().fit(X, y), X, y, calibrator="recalibrate") for _ in range(6)]
        for future in fits:
            future.result()
    assert warnings.filters == before[0]
    assert warnings._showwarnmsg_impl is before[1]
    with pytest.warns(UserWarning, match="too few held-out rows to calibrate with") as caught:
        CalibratedModel(GaussianNB(), cv="prefit").set_params(estimator=GaussianNB().fit(X, y)).fit(X[::9], 2 - y[::9])
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize(
    "inner",
    [KNeighborsClassifier(3), DecisionTreeClassifier(random_state=0), GaussianNB(), SoftmaxRegression(penalty_l2=1e-3)],
    ids=str,
)
def test_reports_apply_a_calibrator_as_the_model_does(inner):
    """`evaluate` gives the calibrator the logits that it was fitted with, also where probabilities are 0."""
    X, y = load_digits(return_X_y=True)
    X = X / 16
    model = CalibratedModel(inner, cv=3).fit(X[:600], y[:600])
    itself = evaluate(model, X[600:], y[600:]).to_dict()["before"]
    applied = evaluate(model.estimator_, X[600:], y[600:], calibrator=model.calibrator_).to_dict()["after"]
    for name, value in itself.items():
        if name != "name":
            assert applied[name] == pytest.approx(value, rel=1e-9)


class Rounding(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities leave [0, 1] by rounding."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        p = np.eye(3)[np.asarray(X)[:, 0].astype(int) % 3]
        return np.where(p > 0, 1 + 1e-16, -1e-17)


@pytest.mark.filterwarnings(SHORT)
def test_probabilities_below_0_by_rounding():
    X, y = load_iris(return_X_y=True)
    model = CalibratedModel(Rounding(), cv=3).fit(X, y)
    assert model.predict_proba(X).min() > 0
    assert 0 < evaluate(Rounding().fit(X, y), X, y, calibrator=model.calibrator_).to_dict()["after"]["log_loss"] < 2


def test_errors():
    X, y = load_iris(return_X_y=True)
    for model, data, match in (
        (CalibratedModel(LogisticRegression(), "sigmoid"), (X, y), "method must be one of 'temperature'.*'sigmoid'"),
        (CalibratedModel(LogisticRegression(), cv="pre"), (X, y), "cv must be an int"),
        (CalibratedModel(LogisticRegression()), (X, y + 0.5 * (y > 1)), "continuous"),
        (CalibratedModel(LogisticRegression()), (X, y[:-1]), "inconsistent numbers of samples"),
        (CalibratedModel(LogisticRegression(), cv=60), (X, y), "n_splits=60"),
        (CalibratedModel(LogisticRegression()), (X, y, np.zeros(150)), "sample_weight is zero for every row"),
        (CalibratedModel(KNeighborsClassifier()), (X, y, np.zeros(150)), "sample_weight is zero for every row"),
    ):
        with pytest.raises(ValueError, match=match):
            model.fit(*data)
    with pytest.raises(sklearn.exceptions.NotFittedError):
        CalibratedModel(LogisticRegression()).predict(X)


class PairwiseSVC(SVC):
    """A support vector machine with probabilities, which scikit-learn's no longer has."""

    def predict_proba(self, X):
        return np.eye(3)[self.predict(X)] * 0.7 + 0.1


def test_decisions_between_three_pairs_are_no_logits():
    """Three classes have three pairs: probabilities are taken instead, or the estimator is refused."""
    X, y = load_iris(return_X_y=True)
    pairs = PairwiseSVC(decision_function_shape="ovo")
    for estimator in (pairs, make_pipeline(StandardScaler(), pairs)):
        model = CalibratedModel(estimator).fit(X, y)
        assert model.score(X, y) > 0.95
        assert model.predict_proba(X[:1]).argmax() == y[0]
    assert CalibratedModel(clone(pairs).fit(X, y), cv="prefit").fit(X, y).score(X, y) > 0.95
    with pytest.raises(ValueError, match=r"decision function of SVC contradicts its predictions.* no predict_proba"):
        CalibratedModel(SVC(decision_function_shape="ovo")).fit(X, y)
    rest = CalibratedModel(SVC()).fit(X, y)
    assert np.array_equal(rest._compute(X), rest.calibrator_.transform(rest.estimator_.decision_function(X)))


def test_probabilities_that_exist_only_after_fit():
    X, y = load_iris(return_X_y=True)
    stacking = StackingClassifier([("bayes", GaussianNB())])
    assert CalibratedModel(stacking).fit(X, y).score(X, y) > 0.9
    with pytest.raises(TypeError, match="estimator must have one of decision_function, predict_log_proba"):
        CalibratedModel(VotingClassifier([("bayes", GaussianNB())])).fit(X, y)


def test_labels_that_are_masked_or_missing():
    X, y = load_iris(return_X_y=True)
    with pytest.raises(TypeError, match="y is a masked array"):
        CalibratedModel(GaussianNB()).fit(X, np.ma.masked_array(y, y == 2))
    with pytest.raises(ValueError, match=r"y\[0\] is None, not a value; every row needs a label"):
        CalibratedModel(GaussianNB()).fit(X, np.array([None, "a", "b"] * 50, object))
