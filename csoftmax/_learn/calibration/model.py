"""A classifier with its calibrator: cross-fitted, so that no rows need to be held out."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import check_cv
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import _safe_indexing, assert_all_finite, column_or_1d, get_tags, indexable
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping, process_routing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_method_params, check_is_fitted

from ..._arguments.foreign import accept_foreign, as_native, is_foreign
from ..labels import indices_of
from ..parameters import as_plain, check_sample_weight
from ..parts.lazy import is_lazy
from ..parts.predictions import ScoresLazily, predict_lazily
from ..probabilities import predict_logarithms
from .affine import DirichletCalibration, MatrixScaling, VectorScaling
from .base import Calibrator, learn
from .isotonic import IsotonicCalibration
from .platt import PlattScaling
from .rows import Array, refuse_missing
from .temperature import TemperatureScaling

if TYPE_CHECKING:
    from typing import Self

METHODS: dict[str, type[Calibrator]] = {
    "temperature": TemperatureScaling,
    "vector": VectorScaling,
    "matrix": MatrixScaling,
    "dirichlet": DirichletCalibration,
    "platt": PlattScaling,
    "isotonic": IsotonicCalibration,
}
RESPONSES = ("decision_function", "predict_log_proba", "predict_proba")


def is_routing_enabled() -> bool:
    """Whether scikit-learn routes metadata."""
    from sklearn import get_config

    return bool(get_config()["enable_metadata_routing"])


def has_pairwise_decisions(estimator: Any, X: Any) -> bool:
    """Whether the decision function of a fitted classifier has a column for each pair of three classes.

    Three classes have three pairs, so that the shape says nothing. But decisions between pairs contradict `predict`:
    for at least one predicted class, the largest decision is in another column in most of its rows.
    """
    if not (hasattr(estimator, "decision_function") and hasattr(estimator, "predict") and len(estimator.classes_) == 3):
        return False
    z = np.asarray(estimator.decision_function(X))
    if z.ndim != 2 or z.shape[1] != 3:
        return False
    predicted = np.asarray(as_native(estimator.predict(X), "predict(X)"))
    right = np.asarray(estimator.classes_)[z.argmax(axis=1)] == predicted
    return any(right[predicted == label].mean() < 0.5 for label in np.unique(predicted))


def compute_scores(estimator: Any, X: Any, n_classes: int, *, is_pairwise: bool = False) -> Array:
    """Logits of a fitted classifier: its decision function, or the logarithms of its probabilities.

    A decision function for pairs of classes, such as that of a support vector machine, is not one of logits.
    is_pairwise: there are three classes, and `has_pairwise_decisions`.
    """
    if not any(hasattr(estimator, name) for name in RESPONSES):
        raise TypeError(f"estimator must have one of {', '.join(RESPONSES)}, got {estimator!r}")
    if hasattr(estimator, "decision_function"):
        z = np.asarray(estimator.decision_function(X), np.float64)
        if n_classes == 2 and z.ndim == 1:
            return np.column_stack([np.zeros_like(z), z])
        if z.ndim == 2 and z.shape[1] == n_classes and not is_pairwise:
            return z
        if is_pairwise and not hasattr(estimator, "predict_proba"):
            raise ValueError(
                f"the decision function of {type(estimator).__name__} contradicts its predictions, as one for pairs of "
                f"the {n_classes} classes does, and it has no predict_proba"
            )
        if not hasattr(estimator, "predict_proba"):
            raise ValueError(
                f"the decision function of {type(estimator).__name__} has shape {z.shape}, not a column for each of "
                f"the {n_classes} classes, and it has no predict_proba"
            )
    return predict_logarithms(estimator, X)


class CalibratedModel(ScoresLazily, ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """A classifier with a calibrator, fitted to the same rows.

    With ``cv=k`` the classifier is fitted k times, each time to the other k - 1 parts; the calibrator learns from the
    logits that each part got from the classifier that had not seen it; and the classifier is fitted once more, to all
    rows. With ``cv="prefit"`` the classifier has been fitted, and all rows calibrate it: they should be held out.

    scikit-learn's `CalibratedClassifierCV` with ``ensemble=False`` does the same for its three methods.

    Parameters
    ----------
    estimator : classifier
        Has `decision_function`, `predict_log_proba` or `predict_proba` once it is fitted; the first of them gives the
        logits, but a decision function for pairs of classes does not. It is cloned, and stays unfitted, unless `cv` is
        "prefit".
    method : {"temperature", "vector", "matrix", "dirichlet", "platt", "isotonic"}, default "temperature"
        The calibrator, with its default parameters: `TemperatureScaling`, `VectorScaling`, `MatrixScaling`,
        `DirichletCalibration`, `PlattScaling`, `IsotonicCalibration`.
    cv : int, cross-validation generator, iterable of splits, or "prefit", default 5
        An int is the number of stratified parts, without shuffling.

    Attributes
    ----------
    estimator_ : classifier
        The fitted classifier; the given one for "prefit".
    calibrator_ : calibrator
        The fitted calibrator.
    classes_ : ndarray of shape (K,)
        Labels of the columns.
    n_features_in_, feature_names_in_
        Those of `estimator_`, if it has them.

    Notes
    -----
    A part whose training rows lack a class takes no part in calibration, because its classifier has no logit for that
    class: a class needs two rows. Rows in several test parts, as with `RepeatedKFold`, share their weight among them.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.metrics import log_loss
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from csoftmax.calibration import CalibratedModel
    >>> X, y = load_digits(return_X_y=True)
    >>> plain = KNeighborsClassifier(3).fit(X[::2], y[::2])
    >>> round(float(log_loss(y[1::2], plain.predict_proba(X[1::2]))), 2)
    0.27
    >>> model = CalibratedModel(KNeighborsClassifier(3), cv=5).fit(X[::2], y[::2])
    >>> round(float(log_loss(y[1::2], model.predict_proba(X[1::2]))), 1)
    0.1
    """

    estimator_: Any
    calibrator_: Calibrator
    classes_: NDArray[Any]
    n_features_in_: int
    feature_names_in_: NDArray[Any]

    if TYPE_CHECKING:  # scikit-learn's methods, which have no types there

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...

    _SCORES_FEATURES = False

    def __init__(
        self,
        estimator: Any,
        method: Literal["temperature", "vector", "matrix", "dirichlet", "platt", "isotonic"] = "temperature",
        *,
        cv: Any = 5,
    ) -> None:
        self.estimator = estimator
        self.method = method
        self.cv = cv

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn: X is what the estimator accepts."""
        tags = super().__sklearn_tags__()
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags

    def get_metadata_routing(self) -> Any:
        """Routes of metadata: those of `fit` go to the estimator's `fit` and to the splitter.

        Returns
        -------
        sklearn.utils.metadata_routing.MetadataRouter
            The routes.

        Examples
        --------
        >>> from sklearn.naive_bayes import GaussianNB
        >>> from csoftmax.calibration import CalibratedModel
        >>> sorted(name for name, _ in CalibratedModel(GaussianNB()).get_metadata_routing())
        ['$self_request', 'estimator']
        """
        router = MetadataRouter(owner=self.__class__.__name__).add_self_request(self)
        router.add(estimator=self.estimator, method_mapping=MethodMapping().add(caller="fit", callee="fit"))
        if hasattr(self.cv, "split"):
            router.add(splitter=self.cv, method_mapping=MethodMapping().add(caller="fit", callee="split"))
        return router

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None, **params: Any) -> Self:
        """Fit the classifier and its calibrator.

        Parameters
        ----------
        X : array-like, sparse matrix, DataFrame or list of shape (N, D)
            Whatever the estimator accepts, but no collection of Dask.
        y : array-like of shape (N,)
            Labels.
        sample_weight : array-like of shape (N,), optional
            Weights of the rows, for the estimator (if its `fit` has them) and for the calibrator.
        **params : dict
            For the estimator's `fit`; with metadata routing for the splitter too.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The message names the parameter or argument, its value and what is allowed; or comes from the estimator.

        Warns
        -----
        UserWarning
            As from the calibrator's `fit`; if the estimator takes no weights; if parts of the cross-validation
            lack a class.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.naive_bayes import GaussianNB
        >>> from csoftmax.calibration import CalibratedModel
        >>> X, y = load_iris(return_X_y=True)
        >>> model = CalibratedModel(GaussianNB(), "vector", cv=3).fit(X, y)
        >>> model.calibrator_
        VectorScaling()
        """
        if not isinstance(self.method, str) or self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {self.method!r}")
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        if is_lazy(X):
            is_list = isinstance(X, list | tuple)
            kind = f"{type(X).__name__} of dask Delayed" if is_list else f"dask {type(X).__name__}"
            remedy = "the rows of dask.compute(*X) as one array" if is_list else "X.compute()"
            raise TypeError(
                f"X is a {kind}, and CalibratedModel divides rows in memory to cross-fit: pass {remedy}, or "
                "fit estimator and then TemperatureScaling, VectorScaling, MatrixScaling or DirichletCalibration, "
                "which take parts, to its decision_function of held-out rows"
            )
        X, labels = indexable(as_native(X, "X"), as_plain(y, "y"))
        labels = column_or_1d(labels, warn=True)
        refuse_missing("y", labels)
        assert_all_finite(labels, input_name="y")
        check_classification_targets(labels)
        weights = None
        if sample_weight is not None:
            sample_weight = as_plain(sample_weight, "sample_weight")
            weights = check_sample_weight(sample_weight, np.empty((len(labels), 1)))
            if weights is not None and not weights.any():
                raise ValueError("sample_weight is zero for every row: there is nothing to learn from")
        if isinstance(self.cv, str):
            if self.cv != "prefit":
                raise ValueError(f'cv must be an int, a splitter, an iterable of splits or "prefit", got {self.cv!r}')
            check_is_fitted(self.estimator)
            estimator, classes = self.estimator, np.asarray(self.estimator.classes_)
            is_pairwise = has_pairwise_decisions(estimator, X)
            scores = compute_scores(estimator, X, len(classes), is_pairwise=is_pairwise)
        else:
            fit_params, split_params = self._route(sample_weight, params)
            kept = np.arange(len(labels)) if weights is None else np.flatnonzero(weights)
            classes = LabelEncoder().fit(labels[kept]).classes_
            splits = list(check_cv(self.cv, labels, classifier=True).split(X, labels, **split_params))
            rows, scores, shares, is_pairwise = self._cross_fit(X, labels, weights, classes, splits, fit_params)
            estimator = self._fit_part(X, labels, kept, fit_params)
            labels, weights = labels[rows], shares
        calibrator = METHODS[self.method]()
        notes = learn(calibrator, scores, labels, weights, classes)
        self.estimator_, self.calibrator_, self.classes_ = estimator, calibrator, classes
        self._is_pairwise = is_pairwise
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2)
        return self

    def _route(self, sample_weight: Any, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters for the estimator's `fit`, and for the splitter."""
        if is_routing_enabled():
            routed = process_routing(self, "fit", sample_weight=sample_weight, **params)
            split = routed.splitter.split if "splitter" in routed else {}
            return dict(routed.estimator.fit), dict(split)
        if sample_weight is None:
            return params, {}
        if "sample_weight" in inspect.signature(self.estimator.fit).parameters:
            return {**params, "sample_weight": sample_weight}, {}
        warnings.warn(
            f"fit of {type(self.estimator).__name__} has no sample_weight: the weights are used for calibration only",
            UserWarning,
            stacklevel=3,
        )
        return params, {}

    def _fit_part(self, X: Any, y: NDArray[Any], part: NDArray[np.intp], params: dict[str, Any]) -> Any:
        """A clone of the estimator, fitted to some rows."""
        if len(part) == len(y) and (part == np.arange(len(y))).all():
            return clone(self.estimator).fit(X, y, **params)
        given = _check_method_params(X, params, indices=part)
        return clone(self.estimator).fit(_safe_indexing(X, part), y[part], **given)

    def _cross_fit(
        self,
        X: Any,
        y: NDArray[Any],
        weights: Array | None,
        classes: NDArray[Any],
        splits: list[tuple[Any, Any]],
        params: dict[str, Any],
    ) -> tuple[NDArray[np.intp], Array, Array | None, bool]:
        """Row numbers, their out-of-fold logits and weights, and whether the decision function is one for pairs."""
        rows: list[NDArray[np.intp]] = []
        scores, lacking, is_pairwise = [], [], False
        for train, test in splits:
            train, test = (np.arange(len(y))[part] for part in (train, test))
            if weights is not None:
                train, test = train[weights[train] > 0], test[weights[test] > 0]
            missing = np.setdiff1d(classes, y[train])
            if len(missing):
                lacking.append(missing.tolist()[0])
                continue
            if len(test) == 0:
                continue
            model = self._fit_part(X, y, train, params)
            columns, _ = indices_of(classes, np.asarray(model.classes_))
            if not rows:  # the training rows have all classes
                is_pairwise = has_pairwise_decisions(model, _safe_indexing(X, train))
            rows.append(test)
            z = compute_scores(model, _safe_indexing(X, test), len(classes), is_pairwise=is_pairwise)
            scores.append(z[:, columns])
        if not rows:
            raise ValueError(
                f"cv={self.cv!r} leaves no rows to calibrate with: the training rows of every part lack a class (such "
                f"as {lacking[0]!r}), or there are no test rows"
                if lacking
                else f"cv={self.cv!r} has no test rows"
            )
        if lacking:
            warnings.warn(
                f"{len(lacking)} of {len(splits)} parts take no part in calibration, because their training rows lack "
                f"a class, such as {lacking[0]!r}",
                UserWarning,
                stacklevel=3,
            )
        numbers = np.concatenate(rows)
        counts = np.bincount(numbers, minlength=len(y))
        shares = None
        if weights is not None or counts.max() > 1:
            shares = (np.ones(len(y)) if weights is None else weights)[numbers] / counts[numbers]
        return numbers, np.concatenate(scores), shares, is_pairwise

    def _compute(self, X: Any) -> Array:
        """Calibrated probabilities as an ndarray."""
        scores = compute_scores(self.estimator_, X, len(self.classes_), is_pairwise=self._is_pairwise)
        return np.asarray(self.calibrator_.predict_proba(scores))

    def predict_proba(self, X: Any) -> Any:
        """Calibrated probabilities.

        Parameters
        ----------
        X : of shape (N, D)
            Whatever the estimator accepts; a collection of Dask has two axes.

        Returns
        -------
        array of float64, shape (N, K)
            A column for each element of `classes_`: a tensor for a tensor, a lazy array or DataFrame for one of Dask,
            else an ndarray.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model is not fitted.
        TypeError, ValueError
            As from `estimator_`, or if its logits do not fit the calibrator.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.naive_bayes import GaussianNB
        >>> from csoftmax.calibration import CalibratedModel
        >>> X, y = load_iris(return_X_y=True)
        >>> model = CalibratedModel(GaussianNB(), cv=3).fit(X, y)
        >>> model.predict_proba(X[:1]).shape
        (1, 3)
        """
        check_is_fitted(self, "calibrator_")
        if is_lazy(X):
            return predict_lazily(_compute_of, X, self)
        return accept_foreign(self._compute)(X) if is_foreign(X) else self._compute(X)

    def predict(self, X: Any) -> Any:
        """Classes with the largest calibrated probability.

        Parameters
        ----------
        X : of shape (N, D)
            Whatever the estimator accepts; a collection of Dask has two axes.

        Returns
        -------
        array of shape (N,)
            Elements of `classes_`: a tensor for a tensor unless they are text, a lazy array or Series for a collection
            of Dask, else an ndarray.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the model is not fitted.
        TypeError, ValueError
            As from `estimator_`, or if its logits do not fit the calibrator.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.naive_bayes import GaussianNB
        >>> from csoftmax.calibration import CalibratedModel
        >>> X, y = load_iris(return_X_y=True)
        >>> model = CalibratedModel(GaussianNB(), cv=3).fit(X, y)
        >>> model.predict(X[[0, 60, 120]])
        array([0, 1, 2])
        """

        def choose(X: Any) -> NDArray[Any]:
            return _choose_of(X, self)

        check_is_fitted(self, "calibrator_")
        if is_lazy(X):
            return predict_lazily(_choose_of, X, self)
        if not is_foreign(X):
            return choose(X)
        return accept_foreign(choose)(X) if self.classes_.dtype.kind in "biuf" else choose(as_native(X, "X"))


def _compute_of(X: Any, model: CalibratedModel) -> Array:
    return model._compute(X)


def _choose_of(X: Any, model: CalibratedModel) -> NDArray[Any]:
    return np.asarray(model.classes_[model._compute(X).argmax(axis=1)])
