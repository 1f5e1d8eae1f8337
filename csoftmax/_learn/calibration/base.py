"""Base class of calibrators: a scikit-learn classifier and transformer of logits, with files."""

from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.metadata_routing import UNUSED
from sklearn.utils.validation import check_is_fitted, validate_data

from ..._arguments.foreign import accept_foreign, as_native, is_foreign
from ..parts.lazy import is_lazy, open_parts
from ..parts.predictions import ScoresLazily, predict_lazily
from . import files
from .parts import PartsRows, read_parts
from .rows import Array, Rows, check_values, read_logits, read_rows

if TYPE_CHECKING:
    from typing import Self

Notes = list[tuple[str, type[Warning]]]
"""Messages and categories of the warnings of a fit."""


class _Outputs(TransformerMixin):
    """scikit-learn's wrapper of `set_output` around `transform`.

    The wrapper calls its argument X.  It is kept below `Calibrator`, whose argument is called logits.
    """

    def transform(self, X: Any) -> Any:
        return accept_foreign(self._compute)(X)  # type: ignore[attr-defined]


class Calibrator(
    OneToOneFeatureMixin, ScoresLazily, ClassifierMixin, _Outputs, BaseEstimator, ABC, auto_wrap_output_keys=None
):  # type: ignore[call-arg]
    """Base class of calibrators."""

    n_classes_: int
    n_features_in_: int
    classes_: NDArray[Any]
    n_iter_: int
    converged_: bool
    history_: list[dict[str, float]]

    # Not data that scikit-learn could route to these methods.
    __metadata_request__fit = {"logits": UNUSED}  # noqa: RUF012
    __metadata_request__predict = {"logits": UNUSED}  # noqa: RUF012
    __metadata_request__predict_proba = {"logits": UNUSED}  # noqa: RUF012
    __metadata_request__transform = {"logits": UNUSED}  # noqa: RUF012

    if TYPE_CHECKING:  # scikit-learn's methods, which have no types there

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...

    # Shapes of the fitted attributes: () is a number, "K" the columns, "S" the same but 1 for two, "B" any length.
    _SHAPES: ClassVar[dict[str, tuple[str, ...]]]
    _SCORES_FEATURES = False
    _TAKES_ONE_AXIS = True
    _TAKES_PARTS: ClassVar[bool] = False  # whether sums over rows are all that `_fit` needs

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn: features that are no logits are not classified well."""
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags

    @abstractmethod
    def _fit(self, rows: Any) -> tuple[dict[str, Any], Notes]:
        """Return the fitted attributes, and what to warn about."""

    @abstractmethod
    def _calibrate(self, z: Array) -> Array:
        """Calibrated probabilities of checked logits."""

    def fit(
        self,
        logits: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Self:
        """Learn from held-out rows.

        Parameters
        ----------
        logits : array-like of shape (N, K), or (N,)
            Held-out logits or log-probabilities, from -1e100 to 1e100; -inf is allowed except at the label. With one
            axis, the decision function of two classes.
        y : array-like of shape (N,)
            True labels: integers from 0 to K - 1, which are the numbers of the columns; or K distinct labels, whose
            columns are in sorted order; or labels that `classes` names.
        sample_weight : array-like of shape (N,), optional
            Weights of the rows, at least 0. A weight of 2 counts as the row twice, 0 as if it were not there.
        classes : array-like of shape (K,), optional
            The label of each column. Classes without rows are allowed (`PlattScaling` needs all of them).

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The message names the parameter or argument, its value and what is allowed.

        Warns
        -----
        UserWarning
            If the rows are too few, or if all of them are classified correctly, by the logits or by a fitted map that
            no penalty bounds: then the message says what has ended the fit or bounds it.
        sklearn.exceptions.ConvergenceWarning
            If `max_iter` iterations were not enough, or 100 steps of Newton's method in `PlattScaling`.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits = np.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
        >>> names, counts = ["no", "no", "yes", "yes"], [200, 100, 100, 100]
        >>> scaling = TemperatureScaling().fit(logits, names, sample_weight=counts, classes=["no", "yes"])
        >>> scaling.predict_proba(logits[:1]).round(2)
        array([[0.8, 0.2]])
        """
        for message, category in self._learn(logits, y, sample_weight, classes):
            warnings.warn(message, category, stacklevel=2)
        return self

    def _learn(
        self,
        logits: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Notes:
        """Learn as `fit` does, but return its warnings."""
        files.check_parameters(self)
        if is_lazy(logits) or is_lazy(y) or is_lazy(sample_weight):
            if not self._TAKES_PARTS:
                raise ValueError(
                    f"{type(self).__name__} needs all rows at once, which collections of Dask are not: fit it to a "
                    "sample in memory, such as logits[::100].compute(), or take TemperatureScaling, VectorScaling, "
                    "MatrixScaling or DirichletCalibration"
                )
            with open_parts(("logits", logits), ("y", y), ("sample_weight", sample_weight)) as engine:
                return self._learn_rows(read_parts(engine, classes, self), logits)
        return self._learn_rows(read_rows(logits, y, sample_weight, classes, self), logits)

    def _learn_rows(self, rows: Rows | PartsRows, logits: Any) -> Notes:
        """Learn from checked rows; logits: as they were given, for their number and names of columns."""
        fitted, notes = self._fit(rows)
        for name in [name for name in vars(self) if name.endswith("_") and not name.startswith("_")]:
            delattr(self, name)
        if rows.one_axis:
            self.n_features_in_ = 2
        else:
            if isinstance(rows, PartsRows):
                logits = getattr(logits, "_meta", None) if hasattr(logits, "columns") else np.zeros((1, rows.columns))
            validate_data(self, as_native(logits, "logits"), skip_check_array=True)
        self.classes_, self.n_classes_ = rows.classes, rows.columns
        self.__dict__.update(fitted)
        return notes

    def fit_transform(
        self,
        logits: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Any:
        """Call `fit`, then return `transform` of the same logits.

        Parameters
        ----------
        logits, y, sample_weight, classes
            As in `fit`.

        Returns
        -------
        array of float64, shape (N, K)
            As from `transform`.

        Raises
        ------
        TypeError, ValueError
            As from `fit`.

        Examples
        --------
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits, y = [[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 10, [0] * 20 + [1] * 20
        >>> TemperatureScaling().fit_transform(logits, y)[:2].round(2)
        array([[0.77, 0.23],
               [0.77, 0.23]])
        """
        return self.fit(logits, y, sample_weight, classes).transform(logits)

    def transform(self, logits: ArrayLike) -> Any:
        """Calibrate logits.

        Parameters
        ----------
        logits : array-like of shape (N, K), or (N,)
            Logits with the columns of those in `fit`.

        Returns
        -------
        array of float64, shape (N, K)
            Calibrated probabilities: a tensor for a tensor, what `set_output` has chosen, or an ndarray.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the calibrator is not fitted.
        TypeError, ValueError
            If the logits do not fit; the message names their element or shape.

        Examples
        --------
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits, y = [[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 10, [0] * 20 + [1] * 20
        >>> TemperatureScaling().fit(logits, y).transform([[4.0, 0.0], [0.0, 8.0]]).round(2)
        array([[0.77, 0.23],
               [0.08, 0.92]])
        """
        return predict_lazily(_compute, logits, self) if is_lazy(logits) else super().transform(logits)

    def predict_proba(self, logits: ArrayLike) -> Any:
        """Calibrate logits, whatever `set_output` has chosen.

        Parameters
        ----------
        logits : array-like of shape (N, K), or (N,)
            Logits with the columns of those in `fit`.

        Returns
        -------
        array of float64, shape (N, K)
            Calibrated probabilities: a tensor for a tensor, else an ndarray.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the calibrator is not fitted.
        TypeError, ValueError
            If the logits do not fit; the message names their element or shape.

        Examples
        --------
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits, y = [[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 10, [0] * 20 + [1] * 20
        >>> TemperatureScaling().fit(logits, y).predict_proba([[4.0, 0.0], [0.0, 8.0]]).round(2)
        array([[0.77, 0.23],
               [0.08, 0.92]])
        """
        if is_lazy(logits):
            return predict_lazily(_compute, logits, self)
        return accept_foreign(self._compute)(logits)

    def predict(self, logits: ArrayLike) -> Any:
        """Classes with the largest calibrated probability; of equal ones, the first.

        Parameters
        ----------
        logits : array-like of shape (N, K), or (N,)
            Logits with the columns of those in `fit`.

        Returns
        -------
        array of shape (N,)
            Elements of `classes_`: a tensor for a tensor unless they are text, else an ndarray.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the calibrator is not fitted.
        TypeError, ValueError
            If the logits do not fit; the message names their element or shape.

        Examples
        --------
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits, y = [[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 10, [0] * 20 + [1] * 20
        >>> TemperatureScaling().fit(logits, ["a"] * 20 + ["b"] * 20).predict([[4.0, 0.0], [0.0, 8.0]])
        array(['a', 'b'], dtype='<U1')
        """

        def choose(logits: ArrayLike) -> NDArray[Any]:
            return _decide(logits, self)

        check_is_fitted(self, "classes_")
        if is_lazy(logits):
            return predict_lazily(_decide, logits, self)
        if is_foreign(logits) and self.classes_.dtype.kind not in "biuf":
            return choose(as_native(logits, "logits"))
        return accept_foreign(choose)(logits)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the calibrator to a file, which is replaced as a whole or not at all.

        Parameters
        ----------
        path : str or path-like
            File name; the file is a safetensors file without pickle.

        Raises
        ------
        ValueError
            If the name ends in .npz.
        sklearn.exceptions.NotFittedError
            If the calibrator is not fitted.
        TypeError
            If `classes_` are neither numbers nor strings.
        ImportError
            If safetensors is missing.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits, y = [[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 10, [0] * 20 + [1] * 20
        >>> scaling = TemperatureScaling().fit(logits, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scaling.save(os.path.join(folder, "scaling.safetensors"))
        ...     os.listdir(folder)
        ['scaling.safetensors']
        """
        check_is_fitted(self, "classes_")
        files.save(self, path, self._SHAPES)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = True) -> Self:
        """Read a calibrator from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        mmap : bool, default False
            Let the arrays be read-only memory maps of the file.
        verify : bool, default True
            Compare the checksums of header and arrays.

        Returns
        -------
        calibrator
            The fitted calibrator; its probabilities have the same bits.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a calibrator of this class, or is damaged; the message names the file and the problem.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.calibration import TemperatureScaling
        >>> logits, y = [[4.0, 0.0]] * 30 + [[0.0, 4.0]] * 10, [0] * 20 + [1] * 20
        >>> scaling = TemperatureScaling().fit(logits, y)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     scaling.save(os.path.join(folder, "scaling.safetensors"))
        ...     loaded = TemperatureScaling.load(os.path.join(folder, "scaling.safetensors"))
        >>> loaded.temperature_ == scaling.temperature_
        True
        """
        return files.load(cls, path, cls._SHAPES, mmap=mmap, verify=verify)

    def _compute(self, logits: ArrayLike) -> Array:
        """Calibrated probabilities as an ndarray."""
        check_is_fitted(self, "classes_")
        z, one_axis = read_logits(logits, self)
        if one_axis:
            if self.n_features_in_ != 2:
                raise ValueError(
                    f"logits must have {self.n_features_in_} columns, as in fit, got shape {z.shape[:1]}. Reshape "
                    "your data: one axis is the decision function of two classes; a single row is "
                    "logits.reshape(1, -1)"
                )
        elif z.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {z.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features "
                f"as input: logits must have {self.n_features_in_} columns, as in fit, got shape {z.shape}"
            )
        else:
            validate_data(self, logits, reset=False, skip_check_array=True)
        check_values(z)
        return self._calibrate(z)


def _compute(logits: Any, calibrator: Calibrator) -> Array:
    """Calibrated probabilities of one part."""
    return calibrator._compute(logits)


def _decide(logits: Any, calibrator: Calibrator) -> NDArray[Any]:
    """Classes of one part."""
    return np.asarray(calibrator.classes_[calibrator._compute(logits).argmax(axis=1)])


def learn(
    calibrator: Calibrator,
    logits: ArrayLike,
    y: ArrayLike,
    sample_weight: ArrayLike | None = None,
    classes: ArrayLike | None = None,
) -> Notes:
    """Fit a calibrator, and return what its `fit` would warn about.

    Warnings cannot be caught instead: `warnings.catch_warnings` replaces the filters of the whole process, and threads
    that fit at the same time would restore each other's.
    """
    return calibrator._learn(logits, y, sample_weight, classes)
