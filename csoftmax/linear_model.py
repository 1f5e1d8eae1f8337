"""Softmax regression as a scikit-learn estimator; requires the extra ``learn``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: F401  (scikit-learn 1.6)
except ImportError as error:
    raise ImportError(
        f"csoftmax.linear_model needs SciPy and scikit-learn >= 1.6 ({error}); install them with: "
        "pip install 'csoftmax[learn]'"
    ) from error

from ._arguments.numbers import check_count
from ._learn import model_file, predictions
from ._learn.certified import ScoresCertified
from ._learn.export import make_onnx
from ._learn.fit import forget, iterate, restore_on_error, train_on_batches, train_on_minibatch
from ._learn.labels import merge_classes
from ._learn.many_class.estimator import ManyClassRegression
from ._learn.monitor import WRAPPER_FRAMES, SupportsCallbacks, with_callbacks
from ._learn.parameters import (
    as_plain,
    check_classes,
    check_parameters,
    check_parameters_of_steps,
    check_same_classes,
    mark_classes,
)
from ._learn.parts.fit import fit_rows
from ._learn.parts.predictions import ScoresLazily
from ._learn.penalty import check_decay

if TYPE_CHECKING:
    from typing import Self

    import onnx

__all__ = ["ManyClassRegression", "SoftmaxRegression"]

ManyClassRegression.__module__ = __name__


class SoftmaxRegression(ScoresLazily, ScoresCertified, SupportsCallbacks, ClassifierMixin, BaseEstimator):
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
        Weights of the classes.  "balanced": in inverse proportion to the weight of their rows, as in scikit-learn.
        "effective_number": `csoftmax.class_weight.effective_number` (Cui et al. 2019), where a row of sample weight 2
        counts as two rows.  dict: the weight of each class; classes are looked up exactly (1 and "1" are different
        ones), and a missing one has weight 1; a key that is no class is an error unless every class has a weight.  A
        pandas Series is read as a dict.  array: one weight for each of the sorted classes.
    label_smoothing : float in [0, 1], default 0.0
        Share of each row's label that is spread evenly over all classes, as in `csoftmax.cross_entropy` (Szegedy et
        al. 2016).  The loss of early stopping has none.
    temperature : float > 0, default 1.0
        Divisor of the logits, in training and in the predicted probabilities; `decision_function` is before it.
    batch_size : int, default 256
        Maximum number of rows in a minibatch (adamw).  Rows are counted whatever their sample weights: weights have
        the effect of repeated rows where a minibatch has all of the data.
    max_epochs : int, default 200
        Maximum number of iterations (lbfgs) or of passes over the data (adamw).
    learning_rate : float > 0, default 1e-2
        Learning rate of the coefficients (adamw): about the change of each in a step.  If it is so large that training
        diverges (the loss is not finite, or more than ten times that of equal probabilities and of the best epoch), a
        ConvergenceWarning says so, and the parameters of the best epoch are kept, or those of the start.
    clip_norm, clip_value : float > 0 or None
        Limits for the gradient of a minibatch: for its Euclidean norm over all parameters (Pascanu et al. 2013), and
        for the magnitude of each element. Elements are clipped first (adamw).
    early_stopping : bool, default False
        Hold out `validation_fraction` of the rows, stop when their loss has not fallen for `patience` epochs, and keep
        the parameters of the best epoch.  Not for `partial_fit` and `fit_batches`, which have no rows to hold out.
    validation_fraction : float in (0, 1), default 0.1
        Share of the rows to hold out, stratified if every class has at least two rows.
    patience : int, default 20
        Number of epochs without improvement after which training stops.
    batch_norm : bool, default False
        Normalise the logits over the minibatch while training (Ioffe & Szegedy 2015), each row with its sample
        weight, and fold this into the coefficients afterwards (adamw).
    init : {"xavier", "zeros"}, default "xavier"
        Initial coefficients of adamw: uniform (Glorot & Bengio 2010), or 0. lbfgs starts at 0, because its result does
        not depend on the start.
    warm_start : bool, default False
        Let `fit` start from the coefficients of the previous fit; its labels must be among `classes_` (see
        `add_classes`).
    callbacks : callable, "progress", or a list of these, optional
        Called after each epoch as ``callback(estimator, record)``, with the estimator as fitted so far and the epoch's
        entry of `history_`; a true result stops the training. `coef_` and `intercept_` are new arrays in each epoch,
        which later epochs leave alone. "progress" shows a bar on a terminal (tqdm).
        `set_callbacks` accepts the callbacks of `sklearn.callback` (scikit-learn 1.9); each task that begins also
        ends, a last one without an estimator if lbfgs has converged when it had begun.
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None
        Seed of the initial coefficients, of shuffling and of the validation split. Of a Generator, the bit generator
        is used, which moves on.
    device : {None, "cpu", "cuda", "cuda:<index>"}, optional
        Device that trains; its data are on the CPU. Predictions are made where their X is.
    num_threads : int, optional
        Upper bound on csoftmax's threads.
    tol : float > 0, optional
        Convergence tolerance of lbfgs, which stops when no element of the gradient is larger. None: 1e-8, or 1e-5 for
        float32 data that are too large to be computed in float64.
    output_learning_rate : float > 0, optional
        Learning rate of the parameters after the coefficients: intercept and batch norm (adamw). None: that of
        `learning_rate`.
    adversarial : {None, "certified", "fgsm", "pgd", "trades", "vat"}, default None
        Training against perturbations. "certified": minimises `csoftmax.adversarial.robust_cross_entropy`, an upper
        bound. "fgsm", "pgd" (10 steps): perturb each minibatch (Goodfellow et al. 2015; Madry et al. 2018). "trades"
        (10 steps; Zhang et al. 2019), "vat" (one power iteration, Euclidean norm; Miyato et al. 2018): add
        `adversarial_beta` times a divergence to the loss. All but "certified" need adamw. See the notes.
    adversarial_eps : float >= 0, default 0.0
        Largest norm of a perturbation.
    adversarial_norm : float >= 1, default inf
        Its order: 1, 2 or inf; for "certified" any number from 1; not read by "vat".
    adversarial_beta : float >= 0, default 6.0
        Factor of the divergence of "trades" and "vat".

    Attributes
    ----------
    coef_ : ndarray of shape (K, D), intercept_ : ndarray of shape (K,)
        Coefficients and intercept, in the dtype of X.
    classes_ : ndarray of shape (K,)
        Classes, sorted, also after `add_classes`.
    penalty_l2_ : float
        Penalty of the last training; for adamw its weight decay.
    n_iter_ : int
        Iterations or epochs of the last fit.
    history_ : dict of str to list
        For each epoch "loss" (with penalty for lbfgs), "accuracy", "gradient_norm", "learning_rate" (NaN for lbfgs)
        and, with early stopping, "validation_loss" and "validation_accuracy".
    frozen_ : ndarray of bool, shape (K,)
        Classes whose parameters stay unchanged; only after `freeze`.
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
    features as rows, more than 2e10 multiplications, more than 2e7 covariances (rows x classes^2) or 1e8 factors (rows
    x coefficients)), the log loss is that of held-out rows: a fifth of them, or with fewer than 2,000 rows each fifth
    in turn. The penalty is chosen anew in each `fit`, whatever `warm_start`.

    Perturbations in training have no bounds. `history_` has the loss that is minimised, and for "fgsm" and "pgd" the
    accuracy of perturbed rows. Early stopping looks at rows as they are, or at the bound, whose corners keep gradients
    from `tol`: lbfgs first smooths its norms (as `history_` shows), and ends when a round lowers it by less than 5e-4.

    Data in parts: `fit` takes X, y and sample weights as Dask arrays, data frames or series, or as lists of Delayed, in
    the same parts of the rows, with lbfgs, a number or None as `penalty_l2`, and without `adversarial`. The parts stay
    on the workers, the result is that of one process to 1e-12 of the loss, and the parts alone determine its bits: not
    the number of workers, nor which of them are lost. `early_stopping` then holds out rows by a number that is drawn
    for each (Philox), not stratified. `csoftmax.dask.options` has the client. Predictions and `score` of collections
    are lazy. `csoftmax.distributed.fit` does the same for the ranks of a group.

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
        adversarial: Literal["certified", "fgsm", "pgd", "trades", "vat"] | None = None,
        adversarial_eps: float = 0.0,
        adversarial_norm: float = np.inf,
        adversarial_beta: float = 6.0,
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
        self.adversarial, self.adversarial_eps = adversarial, adversarial_eps
        self.adversarial_norm, self.adversarial_beta = adversarial_norm, adversarial_beta

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
            Features: arrays, tensors on the CPU, data frames. float32 and float64 keep their dtype, everything else
            becomes float64. A memory map is read block by block. Missing values, masked arrays and complex numbers are
            refused. Collections of Dask, or a list of Delayed: see the notes on data in parts.
        y : array-like of shape (N,)
            Labels: integers, strings or booleans.
        sample_weight : array-like of shape (N,), optional
            Weights of the rows, at least 0; rows of weight 0 take no part. A row of weight 2 has the effect of two
            rows of weight 1, in class weights and batch norm too; only minibatches, `early_stopping` and the choice of
            ``penalty_l2="auto"`` count rows.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            The message names the parameter or argument, its value and what is allowed; an earlier fit is kept.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If lbfgs has not reached `tol`, or if adamw has diverged (see `learning_rate`).
        UserWarning
            If ``penalty_l2="auto"`` has no two rows of a class, or no class that is not frozen: the default is taken.
        """
        for message, category in fit_rows(self, X, y, sample_weight):
            warnings.warn(message, category, stacklevel=2 + WRAPPER_FRAMES)
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

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If adamw has diverged (see `learning_rate`).

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["low", "low", "high", "high"])
        >>> parts = [(X[::2], y[::2]), (X[1::2], y[1::2])]
        >>> model = SoftmaxRegression(solver="adamw", learning_rate=0.1, random_state=0)
        >>> model.fit_batches(parts, ["low", "high"], epochs=100).predict(X).tolist()
        ['low', 'low', 'high', 'high']
        """
        check_parameters(self)
        check_decay(self.penalty_l2, "fit_batches")
        if self.early_stopping:
            raise ValueError("early_stopping needs rows to hold out, which fit_batches does not have; use a callback")
        epochs = self.max_epochs if epochs is None else epochs
        epochs = check_count("epochs", epochs, 1)

        with restore_on_error(self, until=lambda: hasattr(self, "_trainer")):
            if self.warm_start and hasattr(self, "coef_"):
                check_same_classes(classes, self.classes_)
            else:
                self._begin_with(classes)
            notes = train_on_batches(self, lambda: iterate(batches), epochs)
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2 + WRAPPER_FRAMES)
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

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If adamw has diverged (see `learning_rate`).

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> model = SoftmaxRegression(solver="adamw", learning_rate=0.1, random_state=0)
        >>> for x, label in [(0.0, "low"), (3.0, "high")] * 50:
        ...     _ = model.partial_fit([[x]], [label], classes=["low", "high"])
        >>> model.predict([[0.5], [2.5]]).tolist()
        ['low', 'high']
        """
        (check_parameters_of_steps if hasattr(self, "_trainer") else check_parameters)(self)
        check_decay(self.penalty_l2, "partial_fit")
        if self.early_stopping:
            raise ValueError("early_stopping needs rows to hold out, which partial_fit does not have; use a callback")
        with restore_on_error(self):
            if not hasattr(self, "classes_") or not hasattr(self, "coef_"):
                if classes is None:
                    raise ValueError("classes must be passed on the first call to partial_fit")
                self._begin_with(classes)
            elif classes is not None:
                check_same_classes(classes, self.classes_)
            notes = train_on_minibatch(self, X, y, sample_weight)
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2)
        return self

    def _begin_with(self, classes: ArrayLike) -> None:
        """Reset the model to these classes."""
        distinct = check_classes(classes)
        forget(self)
        self.classes_ = distinct

    def add_classes(self, classes: ArrayLike) -> Self:
        """Add classes to a fitted model, with coefficients of 0; continue training with ``warm_start=True``.

        `classes_` stays sorted: new classes take their sorted places, and the rows of `coef_`, `intercept_` and of the
        frozen classes move with their classes.  A new class has the intercept of the least likely class.  The moments
        of AdamW start anew.

        Parameters
        ----------
        classes : array-like
            Labels that the model does not have yet, of the same kind (numbers or strings).

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the model already has one of the classes, or its labels are of another kind.

        Examples
        --------
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> model = SoftmaxRegression(penalty_l2=1e-2, warm_start=True)
        >>> model = model.fit([[0.0], [2.0]], ["ant", "cow"]).add_classes(["bee"])
        >>> model.classes_
        array(['ant', 'bee', 'cow'], dtype='<U3')
        >>> model.coef_[1]
        array([0.])
        >>> model = model.fit([[0.0], [1.0], [2.0]], ["ant", "bee", "cow"])
        >>> model.predict([[0.0], [1.0], [2.0]])
        array(['ant', 'bee', 'cow'], dtype='<U3')
        """
        check_is_fitted(self, "coef_")
        merged, places = merge_classes(self.classes_, as_plain(classes, "classes"))
        if len(merged) == len(self.classes_):
            return self
        coef = np.zeros((len(merged), self.coef_.shape[1]), self.coef_.dtype)
        coef[places] = self.coef_
        # a new class starts with the intercept of the least likely class
        lowest = self.intercept_.min() if self.fit_intercept else 0
        intercept = np.full(len(merged), lowest, self.intercept_.dtype)
        intercept[places] = self.intercept_
        if hasattr(self, "frozen_"):
            frozen = np.zeros(len(merged), bool)
            frozen[places] = self.frozen_
            self.frozen_ = frozen
        self.classes_, self.coef_, self.intercept_ = merged, coef, intercept
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

        Examples
        --------
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> model = SoftmaxRegression(penalty_l2=1e-2, warm_start=True).fit([[0.0], [2.0]], ["ant", "cow"])
        >>> before = model.coef_[0].copy()
        >>> model = model.freeze(["ant"]).fit([[0.0], [3.0]], ["ant", "cow"])
        >>> bool(model.coef_[0] == before)
        True
        """
        check_is_fitted(self, "coef_")
        self.frozen_ = mark_classes(classes, self.classes_)
        self.__dict__.pop("_trainer", None)
        return self

    # Predictions

    def decision_function(self, X: Any) -> Any:
        """Logits, before the temperature.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        array of shape (N, K), or of shape (N,) for two classes
            The logits, in the dtype of X; for two classes, those of the second minus those of the first.  A tensor or
            an array of another library gives one of the same library, on the same device.

        Raises
        ------
        TypeError, ValueError
            If X does not fit the model; if it is a masked array; if it is a tensor that requires grad, while PyTorch
            records gradients: pass ``X.detach()``.
        """
        return predictions.compute_margins(X, self)

    def predict(self, X: Any) -> Any:
        """Classes with the largest logits; of equal logits, the first.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        array of shape (N,)
            Elements of `classes_`, as an array of the library of X; a NumPy array if they are strings, which no other
            library has.

        Raises
        ------
        TypeError, ValueError
            As in `decision_function`.
        """
        return predictions.choose_labels(X, self)

    def predict_proba(self, X: Any) -> Any:
        """Probabilities.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        array of float64, shape (N, K)
            A column for each element of `classes_`, as an array of the library of X.

        Raises
        ------
        TypeError, ValueError
            As in `decision_function`.
        """
        return predictions.compute_probabilities(X, self)

    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of the probabilities, with full relative precision even close to 0.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            Features.

        Returns
        -------
        array of float64, shape (N, K)
            A column for each element of `classes_`, as an array of the library of X.

        Raises
        ------
        TypeError, ValueError
            As in `decision_function`.
        """
        return predictions.compute_log_probabilities(X, self)

    # Files

    def to_onnx(self, path: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
        """Make an ONNX model of the predictions; requires the extra ``onnx``.

        Its input "X" has shape (N, D) and the dtype of `coef_`.  Its outputs are "label" of shape (N,), which are
        integers (int64), strings, booleans or float64 as the classes are, and "probabilities" of shape (N, K) in the
        dtype of X; the temperature is folded into the coefficients.  Names of features are in its metadata as
        "feature_names".

        Parameters
        ----------
        path : str or path-like, optional
            File to write the model to as well; it is replaced as a whole or not at all.

        Returns
        -------
        onnx.ModelProto
            The model, of opset 13; onnxruntime and other runtimes read it.

        Raises
        ------
        ImportError
            If onnx is missing.
        ValueError
            If ``coef_ / temperature`` overflows, or if an integer class exceeds int64.

        Examples
        --------
        >>> from csoftmax.linear_model import SoftmaxRegression
        >>> model = SoftmaxRegression(penalty_l2=1e-2).fit([[0.0], [1.0]], ["no", "yes"])
        >>> [node.op_type for node in model.to_onnx().graph.node]  # doctest: +SKIP
        ['Gemm', 'ArgMax', 'Gather', 'Softmax']
        """
        check_is_fitted(self, "coef_")
        return make_onnx(self, path)

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
        TypeError
            If `classes_` are neither numbers nor strings, or if a parameter is of a type that JSON cannot hold.
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
