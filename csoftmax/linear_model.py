"""Softmax regression as a scikit-learn estimator; requires the extra ``learn``."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: F401  (scikit-learn 1.6)
except ImportError as error:
    raise ImportError(
        f"csoftmax.linear_model needs SciPy and scikit-learn >= 1.6 ({error}); install them with: "
        "pip install 'csoftmax[learn]'"
    ) from error

from ._learn import model_file
from ._learn.adamw import Sums
from ._learn.fit import fit_adamw, fit_lbfgs, forget, keep_folded, record_of_epoch, step_minibatch
from ._learn.monitor import Monitor, SupportsCallbacks, with_callbacks
from ._learn.objective import compute_logits
from ._learn.parameters import (
    check_data,
    check_known_labels,
    check_parameters,
    check_same_classes,
    check_sample_weight,
    choose_loss_options,
    hold_out,
)
from ._learn.penalty import check_decay, check_in_memory
from ._ops.softmax import log_softmax, softmax

if TYPE_CHECKING:
    from typing import Self

__all__ = ["SoftmaxRegression"]


class SoftmaxRegression(SupportsCallbacks, ClassifierMixin, BaseEstimator):
    """Softmax (multinomial logistic) regression.

    Minimises the mean cross-entropy of ``softmax((X @ coef_.T + intercept_) / temperature)`` plus
    ``penalty_l2 / 2 * sum(coef_**2)``; the intercept is not penalised.  Two classes have two rows of coefficients, like
    any other number of classes.  The minimum of scikit-learn's `LogisticRegression` has
    ``penalty_l2 = 1 / (C * sum(weights))``, and ``2 / (C * sum(weights))`` for two classes, for which scikit-learn has
    one row; the weight of a row of data is its sample weight times the weight of its class.

    Parameters
    ----------
    solver : {"lbfgs", "adamw"}, default "lbfgs"
        "lbfgs": SciPy's L-BFGS-B on all of the data. "adamw": minibatches (Loshchilov & Hutter 2019), where
        `penalty_l2` is the decoupled weight decay.
    penalty_l2 : float >= 0, None or "auto", default None
        Factor of the penalty. None: that of scikit-learn's default, C = 1, or for adamw a weight decay of 1e-4.
        "auto": chosen from the data by an approximate leave-one-out log loss (Rad & Maleki 2020), along a path from
        large penalties to small ones; for lbfgs and for X in memory (no memory map). See the notes.
    fit_intercept : bool, default True
        Whether there is an intercept.
    class_weight : {None, "balanced", "effective_number"}, dict or array of shape (K,), default None
        Weights of the classes: scikit-learn's "balanced", `csoftmax.class_weight.effective_number`, a mapping from
        class to weight (1 for classes that are missing), or one weight for each of the sorted classes.
    label_smoothing : float in [0, 1], default 0.0
        As in `csoftmax.cross_entropy`.
    temperature : float > 0, default 1.0
        Temperature of training and of the predicted probabilities.
    batch_size : int, default 256
        Maximum number of rows in a minibatch (adamw).
    max_epochs : int, default 200
        Maximum number of iterations (lbfgs) or of passes over the data (adamw).
    learning_rate : float > 0, default 1e-2
        Learning rate of the coefficients (adamw).
    clip_norm, clip_value : float > 0 or None
        Limits for the gradient of a minibatch: for its norm over all parameters, and for each element. Elements are
        clipped first (adamw).
    early_stopping : bool, default False
        Hold out `validation_fraction` of the rows, stop when their loss has not fallen for `patience` epochs, and keep
        the parameters of the best epoch.
    validation_fraction : float in (0, 1), default 0.1
        Share of the rows to hold out, stratified if every class has at least two rows.
    patience : int, default 20
        Number of epochs without improvement after which training stops.
    batch_norm : bool, default False
        Normalise the logits over the minibatch while training (Ioffe & Szegedy 2015), and fold this into the
        coefficients afterwards (adamw).
    init : {"xavier", "zeros"}, default "xavier"
        Initial coefficients of adamw: uniform (Glorot & Bengio 2010), or 0. lbfgs starts at 0, because its result does
        not depend on the start.
    warm_start : bool, default False
        Let `fit` start from the coefficients of the previous fit; its labels must be among `classes_` (see
        `add_classes`).
    callbacks : callable, "progress", or a list of these, optional
        Called after each epoch as ``callback(estimator, record)``, with the estimator as fitted so far and the epoch's
        entry of `history_`; a true result stops the training. "progress" shows a bar on a terminal (tqdm).
        `set_callbacks` accepts the callbacks of `sklearn.callback` (scikit-learn 1.9).
    random_state : int, numpy.random.RandomState or None
        Seed of the initial coefficients, of shuffling and of the validation split.
    device : {None, "cpu", "cuda", "cuda:<index>"}, optional
        Device that trains; predictions are made on the CPU.
    num_threads : int, optional
        Upper bound on csoftmax's threads.
    tol : float > 0, optional
        Convergence tolerance of lbfgs, which stops when no element of the gradient is larger. None: 1e-8, or 1e-5 for
        float32 data that are too large to be computed in float64.
    output_learning_rate : float > 0, optional
        Learning rate of the parameters after the coefficients: intercept and batch norm (adamw). None: that of
        `learning_rate`.

    Attributes
    ----------
    coef_ : ndarray of shape (K, D), intercept_ : ndarray of shape (K,)
        Coefficients and intercept, in the dtype of X.
    classes_ : ndarray of shape (K,)
        Classes, sorted unless `add_classes` has appended to them.
    penalty_l2_ : float
        Penalty of the last training; for adamw its weight decay.
    n_iter_ : int
        Iterations or epochs of the last fit.
    history_ : dict of str to list
        For each epoch "loss" (with penalty for lbfgs), "accuracy", "gradient_norm", "learning_rate" (NaN for lbfgs)
        and, with early stopping, "validation_loss" and "validation_accuracy".
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The objective is evaluated in one pass over X. L-BFGS works in centred and scaled coordinates and, for few
    parameters, in those of the Hessian, which changes the number of iterations but not the minimum. The result is
    deterministic for a `random_state` and a configuration of BLAS; if the products are small, BLAS is limited to one
    thread, and the result does not depend on the number of threads.

    ``penalty_l2="auto"`` minimises the leave-one-out log loss of all rows, approximated by one Newton step for each,
    plus ``log(1 + (2 * e)**2)``, where e is the distance in decades from the penalty of C = 1 for features of unit
    variance: a weak prior, which decides only where the rows do not. The unit of X and the unit of the sample weights
    do not matter. Sample and class weights, temperature, label smoothing (the log loss is without it) and frozen
    classes take part; a row that is the only one of its class does not. With early stopping, the rows for training
    choose. The approximation is 0.5 to 4 % below exact leave-one-out where there are two to five rows for each
    coefficient. Where the Hessian would be too large (more than 2,000 coefficients after the reduction to as many
    features as rows, or more than 2e10 multiplications), the log loss is that of held-out rows: a fifth of them,
    or with fewer than 2,000 rows each fifth in turn. The penalty is chosen anew in each `fit`, whatever `warm_start`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from csoftmax.linear_model import SoftmaxRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SoftmaxRegression(penalty_l2=1e-2).fit(X, y)
    >>> model.predict(X[:3])
    array([0, 0, 0])
    >>> model.predict_proba(X[:1]).round(3)
    array([[0.975, 0.025, 0.   ]])
    """

    coef_: NDArray[Any]
    intercept_: NDArray[Any]
    classes_: NDArray[Any]
    penalty_l2_: float
    n_iter_: int
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    frozen_: NDArray[np.bool_]
    history_: dict[str, list[float]]

    if TYPE_CHECKING:  # scikit-learn's methods, which have no types there

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...  # noqa: D102
        def set_params(self, **params: Any) -> Self: ...  # noqa: D102
        def score(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float: ...  # noqa: D102

    def __init__(
        self,
        *,
        solver: Literal["lbfgs", "adamw"] = "lbfgs",
        penalty_l2: float | Literal["auto"] | None = None,
        fit_intercept: bool = True,
        class_weight: Any = None,
        label_smoothing: float = 0.0,
        temperature: float = 1.0,
        batch_size: int = 256,
        max_epochs: int = 200,
        learning_rate: float = 1e-2,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 20,
        batch_norm: bool = False,
        init: Literal["xavier", "zeros"] = "xavier",
        warm_start: bool = False,
        callbacks: Any = None,
        random_state: Any = None,
        device: str | None = None,
        num_threads: int | None = None,
        tol: float | None = None,
        output_learning_rate: float | None = None,
    ) -> None:
        self.solver = solver
        self.penalty_l2 = penalty_l2
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.label_smoothing = label_smoothing
        self.temperature = temperature
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.clip_norm = clip_norm
        self.clip_value = clip_value
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.batch_norm = batch_norm
        self.init = init
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.random_state = random_state
        self.device = device
        self.num_threads = num_threads
        self.tol = tol
        self.output_learning_rate = output_learning_rate

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn: sparse X is supported."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # Training

    @with_callbacks
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train on all of the data.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features. float32 and float64 keep their dtype, everything else becomes float64. A memory map is read block
            by block.
        y : array-like of shape (N,)
            Labels of any type that scikit-learn accepts.
        sample_weight : array-like of shape (N,), optional
            Weights of the rows, at least 0; rows of weight 0 take no part.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The message names the parameter or argument, its value and what is allowed.
        """
        check_parameters(self)
        continues = self.warm_start and hasattr(self, "coef_")
        self.__dict__.pop("_trainer", None)
        check_in_memory(self.penalty_l2, X)
        X, y = check_data(self, X, y, reset=not continues)
        check_classification_targets(y)
        weights = check_sample_weight(sample_weight, X)
        if weights is not None and not weights.any():
            raise ValueError("sample_weight is 0 for every row: there is no class to learn")
        if not continues:
            forget(self)
            self.classes_ = LabelEncoder().fit(y).classes_
        indices = check_known_labels(y, self.classes_)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in the data, but the data contains only "
                f"one class: {self.classes_[0]!r}"
            )
        if weights is not None and not weights.all():
            kept = np.flatnonzero(weights)  # rows of weight 0 are not counted in class weights and validation either
            X, indices, weights = X[kept], indices[kept], weights[kept]
        options = choose_loss_options(self, X.dtype, indices, weights)
        validation = None
        if self.early_stopping:
            (X, indices, weights), validation = hold_out(self, X, indices, weights)
        train = fit_lbfgs if self.solver == "lbfgs" else fit_adamw
        train(self, X, indices, weights, options, validation)
        return self

    @with_callbacks
    def fit_batches(
        self, batches: Iterable[Any] | Callable[[], Iterable[Any]], classes: ArrayLike, *, epochs: int | None = None
    ) -> Self:
        """Train with AdamW on data that arrive in parts, for example because they are too large for memory.

        Parameters
        ----------
        batches : iterable, or callable that returns one
            Items (X, y) or (X, y, sample_weight), each of them one minibatch of any size. It is iterated over once per
            epoch, and must be a callable or a repeatable iterable unless `epochs` is 1.
        classes : array-like of shape (K,)
            All classes.
        epochs : int, optional
            Number of epochs; default: `max_epochs`.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The message names the parameter or argument, its value and what is allowed.
        """
        check_parameters(self)
        check_decay(self.penalty_l2, "fit_batches")
        if self.early_stopping:
            raise ValueError("early_stopping needs rows to hold out, which fit_batches does not have; use a callback")
        epochs = self.max_epochs if epochs is None else epochs
        if not isinstance(epochs, numbers.Integral) or epochs < 1:
            raise ValueError(f"epochs must be an int of at least 1, got {epochs!r}")
        if self.warm_start and hasattr(self, "coef_"):
            check_same_classes(classes, self.classes_)
        else:
            self._begin_with(classes)
        monitor = Monitor(self, epochs)

        def parts() -> Iterable[Any]:
            return batches() if callable(batches) else batches

        with monitor:
            for epoch in range(epochs):
                sums = Sums()
                for batch in parts():
                    sums.add(step_minibatch(self, *batch))
                if sums.batches == 0:
                    raise ValueError(
                        f"batches yielded nothing in epoch {epoch + 1}: an iterator is exhausted after one epoch; pass "
                        "a callable that returns a new one"
                    )
                blocks = (check_data(self, X) for X, *_ in parts()) if self.batch_norm else None
                keep_folded(self, blocks)
                if monitor.epoch_ends(record_of_epoch(self, sums)):
                    break
        return self

    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Take one step of AdamW on the given rows.

        Parameters
        ----------
        X, y, sample_weight
            One minibatch, as in `fit`.
        classes : array-like of shape (K,), optional
            All classes; required in the first call.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The message names the parameter or argument, its value and what is allowed.
        """
        check_decay(self.penalty_l2, "partial_fit")
        if not hasattr(self, "classes_") or not hasattr(self, "coef_"):
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit")
            check_parameters(self)
            self._begin_with(classes)
        elif classes is not None:
            check_same_classes(classes, self.classes_)
        sums = Sums()
        sums.add(step_minibatch(self, X, y, sample_weight))
        keep_folded(self)
        for key, value in record_of_epoch(self, sums).items():
            self.history_.setdefault(key, []).append(value)
        self.n_iter_ += 1
        return self

    def _begin_with(self, classes: ArrayLike) -> None:
        """Reset the model to these classes."""
        forget(self)
        self.classes_ = LabelEncoder().fit(np.asarray(classes)).classes_

    def add_classes(self, classes: ArrayLike) -> Self:
        """Append new classes to a fitted model, with coefficients of 0; continue training with ``warm_start=True``.

        Parameters
        ----------
        classes : array-like
            Labels that the model does not have yet.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the model already has one of the classes, or its labels are of another kind.
        """
        check_is_fitted(self, "coef_")
        new = np.unique(np.asarray(classes))
        if len(new) == 0:
            return self
        kinds = {"U": "text", "O": "text"}
        if kinds.get(new.dtype.kind, "number") != kinds.get(self.classes_.dtype.kind, "number"):
            raise ValueError(f"classes are {new!r}, of another kind than those of the model: {self.classes_!r}")
        known = np.intersect1d(new, self.classes_)
        if len(known):
            raise ValueError(f"classes has {known[0]!r}, which the model already has")
        self.classes_ = np.concatenate([self.classes_, new])
        self.coef_ = np.vstack([self.coef_, np.zeros((len(new), self.coef_.shape[1]), self.coef_.dtype)])
        # a new class starts with the intercept of the least likely class
        lowest = self.intercept_.min() if self.fit_intercept else 0
        self.intercept_ = np.concatenate([self.intercept_, np.full(len(new), lowest, self.intercept_.dtype)])
        if hasattr(self, "frozen_"):
            self.frozen_ = np.concatenate([self.frozen_, np.zeros(len(new), bool)])
        self.__dict__.pop("_trainer", None)
        return self

    def freeze(self, classes: ArrayLike | None = None) -> Self:
        """Keep the parameters of some classes unchanged in all later training.

        Parameters
        ----------
        classes : array-like, optional
            Labels; None freezes all classes of the model, an empty list unfreezes all of them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the model does not have one of the classes.
        """
        check_is_fitted(self, "coef_")
        chosen = self.classes_ if classes is None else np.asarray(classes)
        unknown = np.setdiff1d(chosen, self.classes_)
        if len(unknown):
            raise ValueError(f"classes has {unknown[0]!r}, which the model does not have")
        self.frozen_ = np.isin(self.classes_, chosen)
        self.__dict__.pop("_trainer", None)
        return self

    # Predictions

    def _logits(self, X: Any) -> NDArray[Any]:
        check_is_fitted(self, "coef_")
        X = check_data(self, X)
        return compute_logits(X, self.coef_.astype(X.dtype, copy=False), self.intercept_.astype(X.dtype, copy=False))

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Logits, before the temperature.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        ndarray of shape (N, K), or of shape (N,) for two classes
            The logits; for two classes, those of the second minus those of the first.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict(self, X: Any) -> NDArray[Any]:
        """Classes with the largest logits; of equal logits, the first.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        ndarray of shape (N,)
            Elements of `classes_`.
        """
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        ndarray of float64, shape (N, K)
            A column for each element of `classes_`.
        """
        logits = self._logits(X).astype(np.float64, copy=False)
        return softmax(logits, temperature=self.temperature, out=logits, num_threads=self.num_threads)

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithms of the probabilities, with full relative precision even close to 0.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        ndarray of float64, shape (N, K)
            A column for each element of `classes_`.
        """
        logits = self._logits(X).astype(np.float64, copy=False)
        return log_softmax(logits, temperature=self.temperature, out=logits, num_threads=self.num_threads)

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file, which is replaced as a whole or not at all.

        Parameters
        ----------
        path : str or path-like
            File name; the file is a safetensors file. Callbacks and a `random_state` that is not an int are not saved.

        Raises
        ------
        ValueError
            If the name ends in .npz.
        ImportError
            If safetensors is missing.
        """
        check_is_fitted(self, "coef_")
        model_file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = True) -> Self:
        """Read a model from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        mmap : bool, default False
            Let `coef_` and `intercept_` be read-only memory maps of the file, which processes share. It must stay as it
            is while the model is used; `save` replaces a file as a whole, which leaves such maps intact.
        verify : bool, default True
            Compare the checksums of header and arrays (SHA-256, about 2 GB/s). A map is then read once as a whole.

        Returns
        -------
        SoftmaxRegression
            The fitted model.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a model, of another class or version, or damaged: any changed bit is found. The message
            names the file and the problem.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> model = SoftmaxRegression().fit([[0.0], [1.0]], ["no", "yes"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(os.path.join(folder, "model.safetensors"))
        ...     loaded = SoftmaxRegression.load(os.path.join(folder, "model.safetensors"))
        >>> loaded.predict([[2.0]])
        array(['yes'], dtype='<U3')
        """
        return model_file.load(cls, path, mmap=mmap, verify=verify)
