"""Softmax regression as a scikit-learn estimator; needs the extra ``learn``.

Here: parameters, checks, predictions, `fit` and its variants.  In _learn/: the objective, the solvers, files of models.
"""

import math
import numbers
import warnings

import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"csoftmax.linear_model needs SciPy and scikit-learn >= 1.6 ({error}); install them with: "
        "pip install 'csoftmax[learn]'"
    ) from error

from . import class_weight as _class_weight
from ._arguments.numbers import check_num_threads
from ._arguments.places import place_of
from ._learn import adamw, lbfgs, store
from ._learn.labels import indices_of
from ._learn.monitor import Monitor, SupportsCallbacks, with_callbacks
from ._learn.objective import Objective, Options, host, is_sparse, logits_of, rows_of_block
from .softmax import log_softmax, softmax

__all__ = ["SoftmaxRegression"]

SOLVERS = ("lbfgs", "adamw")
INITS = ("xavier", "zeros")
CLASS_WEIGHTS = ("balanced", "effective_number")
# No element of the gradient above this: float64, float32.
TOLERANCE = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 1e-5}
RECORDED = ("loss", "accuracy", "gradient_norm")  # of a step of lbfgs
SMALL_DATA = 2**22  # elements of X that are computed in float64 whatever they come in, if the parameters are few


class SoftmaxRegression(SupportsCallbacks, ClassifierMixin, BaseEstimator):
    """Softmax (multinomial logistic) regression.

    Minimises the mean cross-entropy of ``softmax((X @ coef_.T + intercept_) / temperature)`` plus
    ``penalty_l2 / 2 * sum(coef_**2)``; the intercept is not penalised.  For scikit-learn's `LogisticRegression`,
    ``penalty_l2 = 1 / (C * sum(sample_weight))``.  Two classes have two rows of coefficients, as any other number.

    Parameters
    ----------
    solver : {"lbfgs", "adamw"}, default "lbfgs"
        "lbfgs": SciPy's L-BFGS-B on all of the data. "adamw": minibatches (Loshchilov & Hutter 2019), where
        `penalty_l2` is the decoupled weight decay.
    penalty_l2 : float >= 0, default 1e-4
        Factor of the penalty.
    fit_intercept : bool, default True
        Whether there is an intercept.
    class_weight : {None, "balanced", "effective_number"}, dict or array of shape (K,), default None
        Weights of the classes: scikit-learn's "balanced", `csoftmax.class_weight.effective_number`, a mapping from
        class to weight (classes that are missing have weight 1), or one weight for each of the sorted classes.
    label_smoothing : float in [0, 1], default 0.0
        As in `csoftmax.cross_entropy`.
    temperature : float > 0, default 1.0
        Of training and of predicted probabilities.
    batch_size : int, default 256
        Most rows of a minibatch (adamw).
    max_epochs : int, default 200
        Most iterations (lbfgs) or passes over the data (adamw).
    learning_rate : float > 0, default 1e-2
        Of the coefficients (adamw).
    clip_norm, clip_value : float > 0 or None
        Limits of a minibatch's gradient: its norm over all parameters; each element. By value first (adamw).
    early_stopping : bool, default False
        Hold out `validation_fraction` of the rows, stop when their loss has not fallen for `patience` epochs, and keep
        the parameters of the best epoch.
    validation_fraction : float in (0, 1), default 0.1
        Stratified where every class has two rows.
    patience : int, default 20
        Epochs.
    batch_norm : bool, default False
        Normalise the logits over the minibatch while training (Ioffe & Szegedy 2015); folded into the coefficients
        afterwards (adamw).
    init : {"xavier", "zeros"}, default "xavier"
        First coefficients of adamw: uniform (Glorot & Bengio 2010), or 0. lbfgs starts at 0, since its result does not
        depend on it.
    warm_start : bool, default False
        Start `fit` from the coefficients that are there; its labels must be among `classes_` (see `add_classes`).
    callbacks : callable, "progress", or a list of these, optional
        Called after each epoch as ``callback(estimator, record)``, the estimator fitted so far and the epoch's entry of
        `history_`; a true result stops the training. "progress" shows a bar on a terminal (tqdm).
        `set_callbacks` takes those of `sklearn.callback` (scikit-learn 1.9).
    random_state : int, numpy.random.RandomState or None
        Of init, shuffling and validation split.
    device : {None, "cpu", "cuda", "cuda:<index>"}, optional
        Where to train; predictions are made on the CPU.
    num_threads : int, optional
        An upper bound for our threads.
    tol : float > 0, optional
        lbfgs stops when no element of the gradient is larger. None: 1e-8, or 1e-5 where float32 data are too large to
        be computed in float64.
    output_learning_rate : float > 0, optional
        Of what follows the coefficients, intercept and batch norm (adamw). None: as `learning_rate`.

    Attributes
    ----------
    coef_ : ndarray of shape (K, D), intercept_ : ndarray of shape (K,)
        In the dtype of X.
    classes_ : ndarray of shape (K,)
        Sorted, unless `add_classes` has appended some.
    n_iter_ : int
        Iterations or epochs of the last fit.
    history_ : dict of str to list
        For each epoch "loss" (with penalty for lbfgs), "accuracy", "gradient_norm", "learning_rate" (NaN for lbfgs)
        and, with early stopping, "validation_loss" and "validation_accuracy".
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    The objective is evaluated in one pass over X; L-BFGS works in centred and scaled coordinates, and for few
    parameters in those of the Hessian, which changes the number of iterations and not the minimum. Deterministic for a
    `random_state` and a configuration of BLAS; where products are small BLAS is held to one thread, and the result
    does not depend on any number of threads.

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

    def __init__(
        self,
        *,
        solver="lbfgs",
        penalty_l2=1e-4,
        fit_intercept=True,
        class_weight=None,
        label_smoothing=0.0,
        temperature=1.0,
        batch_size=256,
        max_epochs=200,
        learning_rate=1e-2,
        clip_norm=None,
        clip_value=None,
        early_stopping=False,
        validation_fraction=0.1,
        patience=20,
        batch_norm=False,
        init="xavier",
        warm_start=False,
        callbacks=None,
        random_state=None,
        device=None,
        num_threads=None,
        tol=None,
        output_learning_rate=None,
    ):
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

    def __sklearn_tags__(self):
        """What scikit-learn wants to know: sparse X is taken."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # Training

    @with_callbacks
    def fit(self, X, y, sample_weight=None):
        """Train on all of the data.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D)
            float32 and float64 keep their dtype, everything else becomes float64. A memory map is read block by block.
        y : array-like of shape (N,)
            Labels of any type that scikit-learn takes.
        sample_weight : array-like of shape (N,), optional
            At least 0; rows of weight 0 take no part.

        Returns
        -------
        self
        """
        self._check_parameters()
        again = self.warm_start and hasattr(self, "coef_")
        self.__dict__.pop("_trainer", None)
        X, y = self._validated(X, y, reset=not again)
        check_classification_targets(y)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            if not sample_weight.any():
                raise ValueError("sample_weight is 0 for every row: there is no class to learn")
        if not again:
            self._forget()
            encoder = LabelEncoder().fit(y)
            self.classes_ = encoder.classes_
        indices = self._indices(y)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs samples of at least 2 classes in the data, but the data contains only "
                f"one class: {self.classes_[0]!r}"
            )
        if sample_weight is not None and not sample_weight.all():
            kept = np.flatnonzero(sample_weight)  # the others take no part in anything
            X, indices, sample_weight = X[kept], indices[kept], sample_weight[kept]
        options = self._options(X.dtype, indices, sample_weight)
        validation = None
        if self.early_stopping:
            X, indices, sample_weight, validation = self._held_out(X, indices, sample_weight)
        run = self._fit_lbfgs if self.solver == "lbfgs" else self._fit_adamw
        run(X, indices, sample_weight, options, validation)
        return self

    @with_callbacks
    def fit_batches(self, batches, classes, *, epochs=None):
        """Train with AdamW on data that come in parts, such as those too large for memory.

        Parameters
        ----------
        batches : iterable, or callable that returns one
            Of (X, y) or (X, y, sample_weight), each of them one minibatch, whatever its size. Gone through once an
            epoch: a callable, or anything that can be iterated over again, unless `epochs` is 1.
        classes : array-like of shape (K,)
            All classes.
        epochs : int, optional
            Default: `max_epochs`.

        Returns
        -------
        self
        """
        self._check_parameters()
        if self.early_stopping:
            raise ValueError("early_stopping needs rows to hold out, which fit_batches has not; use a callback")
        epochs = self.max_epochs if epochs is None else epochs
        if not isinstance(epochs, numbers.Integral) or epochs < 1:
            raise ValueError(f"epochs must be an int of at least 1, got {epochs!r}")
        if self.warm_start and hasattr(self, "coef_"):
            self._same_classes(classes)
        else:
            self._forget()
            self.classes_ = LabelEncoder().fit(np.asarray(classes)).classes_
        monitor = Monitor(self, epochs)
        parts = batches
        with monitor:
            for epoch in range(epochs):
                sums = adamw.Sums()
                for batch in parts() if callable(parts) else parts:
                    sums.add(self._minibatch(*batch))
                if sums.batches == 0:
                    raise ValueError(
                        "batches gave nothing in epoch "
                        f"{epoch + 1}: an iterator is used up after one; pass a callable that returns a new one"
                    )
                again = (self._validated(X) for X, *_ in (parts() if callable(parts) else parts))
                self._settle(again if self.batch_norm else None)
                if monitor.epoch_ends(self._record(sums)):
                    break
        return self

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """One step of AdamW on the rows given.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`, one minibatch.
        classes : array-like of shape (K,), optional
            All classes; needed by the first call.

        Returns
        -------
        self
        """
        if not hasattr(self, "classes_") or not hasattr(self, "coef_"):
            if classes is None:
                raise ValueError("classes must be passed on the first call to partial_fit")
            self._check_parameters()
            self._forget()
            self.classes_ = LabelEncoder().fit(np.asarray(classes)).classes_
        elif classes is not None:
            self._same_classes(classes)
        sums = adamw.Sums()
        sums.add(self._minibatch(X, y, sample_weight))
        self._settle(None)
        for key, value in self._record(sums).items():
            self.history_.setdefault(key, []).append(value)
        self.n_iter_ += 1
        return self

    def add_classes(self, classes):
        """Append classes that a fitted model has not, with coefficients of 0; train on with ``warm_start=True``.

        Parameters
        ----------
        classes : array-like
            New labels.

        Returns
        -------
        self
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
            raise ValueError(f"classes has {known[0]!r}, which the model has already")
        self.classes_ = np.concatenate([self.classes_, new])
        self.coef_ = np.vstack([self.coef_, np.zeros((len(new), self.coef_.shape[1]), self.coef_.dtype)])
        # a new class begins as unlikely as the least likely one
        lowest = self.intercept_.min() if self.fit_intercept else 0
        self.intercept_ = np.concatenate([self.intercept_, np.full(len(new), lowest, self.intercept_.dtype)])
        if hasattr(self, "frozen_"):
            self.frozen_ = np.concatenate([self.frozen_, np.zeros(len(new), bool)])
        self.__dict__.pop("_trainer", None)
        return self

    def freeze(self, classes=None):
        """Keep the parameters of some classes as they are in all training to come.

        Parameters
        ----------
        classes : array-like, optional
            Labels; None: all that there are. An empty list frees them all.

        Returns
        -------
        self
        """
        check_is_fitted(self, "coef_")
        chosen = self.classes_ if classes is None else np.asarray(classes)
        unknown = np.setdiff1d(chosen, self.classes_)
        if len(unknown):
            raise ValueError(f"classes has {unknown[0]!r}, which the model has not")
        self.frozen_ = np.isin(self.classes_, chosen)
        self.__dict__.pop("_trainer", None)
        return self

    # Predictions

    def decision_function(self, X):
        """Logits, before the temperature.

        Returns
        -------
        ndarray of shape (N, K); for two classes (N,), the second's minus the first's
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict(self, X):
        """The class with the largest logit, the first of equal ones."""
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def predict_proba(self, X):
        """Probabilities, float64 of shape (N, K)."""
        logits = self._logits(X).astype(np.float64, copy=False)
        return softmax(logits, temperature=self.temperature, out=logits, num_threads=self.num_threads)

    def predict_log_proba(self, X):
        """Logarithms of the probabilities, float64 of shape (N, K), as exact next to 0 as far below."""
        logits = self._logits(X).astype(np.float64, copy=False)
        return log_softmax(logits, temperature=self.temperature, out=logits, num_threads=self.num_threads)

    # Files

    def save(self, path):
        """Write the model: safetensors, or npz where the name ends in .npz. The file is replaced as a whole or not at
        all.

        Parameters
        ----------
        path : str or path-like
            File name. Callbacks and a `random_state` that is no number are not kept.
        """
        check_is_fitted(self, "coef_")
        store.save(self, path)

    @classmethod
    def load(cls, path):
        """A model from a file that `save` has written; nothing in it is executed.

        Raises
        ------
        ValueError
            Naming the file and what is wrong with it.
        """
        return store.load(cls, path)

    # Inside

    def _check_parameters(self):
        def number(name, low, high, *, open_low=False, open_high=False, none=False, whole=False):
            value = getattr(self, name)
            if none and value is None:
                return
            kind = numbers.Integral if whole else numbers.Real
            if not isinstance(value, kind) or isinstance(value, bool | np.bool_):
                raise TypeError(f"{name} must be {'an int' if whole else 'a number'}{' or None' * none}, got {value!r}")
            if not (low < value if open_low else low <= value) or not (value < high if open_high else value <= high):
                left, right = "(["[not open_low], ")]"[not open_high]
                raise ValueError(f"{name} must be in {left}{low}, {high}{right}, got {value!r}")

        for name, allowed in (("solver", SOLVERS), ("init", INITS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {getattr(self, name)!r}")
        number("penalty_l2", 0, math.inf, open_high=True)
        number("label_smoothing", 0, 1)
        for name in ("batch_size", "max_epochs", "patience"):
            number(name, 1, math.inf, whole=True)
        number("validation_fraction", 0, 1, open_low=True, open_high=True)
        for name in ("temperature", "learning_rate"):
            number(name, 0, math.inf, open_low=True, open_high=True)
        for name in ("clip_norm", "clip_value", "tol", "output_learning_rate"):
            number(name, 0, math.inf, open_low=True, open_high=True, none=True)
        if self.solver == "lbfgs":
            for name, unset in (
                ("batch_norm", False),
                ("clip_norm", None),
                ("clip_value", None),
                ("output_learning_rate", None),
            ):
                if getattr(self, name) is not unset and getattr(self, name) != unset:
                    raise ValueError(f"{name} needs solver='adamw'")

    def _validated(self, *data, reset=False):
        """X, or (X, y), as training and predictions take them."""
        return validate_data(self, *data, reset=reset, accept_sparse="csr", dtype=[np.float64, np.float32])

    def _forget(self):
        """No state of an earlier training."""
        for name in ("coef_", "intercept_", "classes_", "frozen_", "_trainer"):
            self.__dict__.pop(name, None)
        self.history_, self.n_iter_ = {}, 0

    def _indices(self, y):
        """Numbers of the labels in classes_."""
        indices, unknown = indices_of(y, self.classes_)
        if len(unknown):
            raise ValueError(
                f"y has the label {np.asarray(y)[unknown[0]]!r}, which is not among the classes: {self.classes_!r}"
                " (add_classes appends to them)"
            )
        return indices

    def _same_classes(self, classes):
        if not np.array_equal(np.unique(classes), np.sort(self.classes_)):
            raise ValueError(f"classes are {np.unique(classes)!r}, but were {self.classes_!r} in the first call")

    def _held_out(self, X, y, sample_weight):
        from sklearn.model_selection import train_test_split

        if len(y) < 2:
            raise ValueError(f"early_stopping needs at least 2 rows, got {len(y)}")
        rows = np.arange(len(y))
        size = max(1, min(len(y) - 1, round(self.validation_fraction * len(y))))
        counts = np.bincount(y)
        counts = counts[counts > 0]
        stratify = y if counts.min() > 1 and size >= len(counts) and len(y) - size >= len(counts) else None
        train, held = train_test_split(
            rows, test_size=size, stratify=stratify, random_state=check_random_state(self.random_state)
        )
        train.sort()
        held.sort()
        parts = [(X[part], y[part], None if sample_weight is None else sample_weight[part]) for part in (train, held)]
        return *parts[0], parts[1]

    def _options(self, dtype, y, sample_weight):
        """Of the cross-entropy, class weights by class."""
        given, weight = self.class_weight, None
        if isinstance(given, str):
            if given not in CLASS_WEIGHTS:
                raise ValueError(
                    f"class_weight must be None, a dict, an array or one of {', '.join(map(repr, CLASS_WEIGHTS))}, "
                    f"got {given!r}"
                )
            if given == "effective_number":
                weight = _class_weight.effective_number(y, n_classes=len(self.classes_))
            else:
                present = np.unique(y)
                weight = np.zeros(len(self.classes_))
                keywords = {} if sample_weight is None else {"sample_weight": sample_weight}
                weight[present] = compute_class_weight("balanced", classes=present, y=y, **keywords)
        elif isinstance(given, dict):
            weight = compute_class_weight(given, classes=self.classes_, y=self.classes_[y])
        elif given is not None:
            weight = np.asarray(given, np.float64)
            if weight.shape != (len(self.classes_),):
                raise ValueError(f"class_weight has shape {weight.shape}, but there are {len(self.classes_)} classes")
        if weight is not None:
            if not (np.isfinite(weight).all() and (weight >= 0).all()):
                raise ValueError(f"class_weight must be at least 0 and finite, got {given!r}")
            if not weight[np.unique(y)].any():
                raise ValueError("class_weight is 0 for every class in the data: there is nothing to learn from")
            weight = weight.astype(dtype)
        return Options(weight, float(self.label_smoothing), float(self.temperature))

    def _start(self, features, dtype, *, zeros):
        """First parameters: those that are there, or new ones."""
        k = len(self.classes_)
        if hasattr(self, "coef_"):
            return self.coef_.astype(dtype), self.intercept_.astype(dtype) if self.fit_intercept else None
        if zeros or self.init == "zeros":
            coef = np.zeros((k, features), dtype)
        else:
            coef = adamw.xavier(k, features, dtype, check_random_state(self.random_state))
        return coef, np.zeros(k, dtype) if self.fit_intercept else None

    def _keep(self, coef, intercept, dtype):
        self.coef_ = np.ascontiguousarray(coef, dtype)
        self.intercept_ = np.zeros(len(coef), dtype) if intercept is None else np.ascontiguousarray(intercept, dtype)

    def _fit_lbfgs(self, X, y, sample_weight, options, validation):
        dtype, k = X.dtype, len(self.classes_)
        few = X.size <= SMALL_DATA and k * (X.shape[1] + 1) <= lbfgs.FEW_PARAMETERS
        if few and (self.tol is None or self.tol < lbfgs.COARSE):
            X = X.astype(np.float64, copy=False)
            options = options._replace(weight=None if options.weight is None else options.weight.astype(np.float64))
        tol = self.tol or TOLERANCE[X.dtype]
        place = self._place(X)
        objective = Objective(X, y, sample_weight, k, options, check_num_threads(self.num_threads), place)
        monitor = self._monitor(options, validation, place)

        def record(step):
            return {**{name: getattr(step, name) for name in RECORDED}, "learning_rate": math.nan}

        def after(step):
            monitor.parameters(step.coef, step.intercept, dtype)
            return monitor.epoch_ends(record(step))

        with monitor, objective.working():
            step, count, converged = lbfgs.minimize(
                objective,
                *self._start(X.shape[1], np.float64, zeros=True),
                penalty=float(self.penalty_l2),
                tol=tol,
                most_iterations=self.max_epochs,
                frozen=getattr(self, "frozen_", None),
                after=after,
            )
        self._keep(*(monitor.best or (step.coef, step.intercept)), dtype)
        self.n_iter_ = count
        if count == 0:  # the start was the end
            self.history_ = {name: [value] for name, value in record(step).items()}
        # what rounding keeps from converging all the way is no reason for a warning
        stuck = step.gradient_max > 100 * tol
        if not converged and not monitor.stopped and (stuck or count >= self.max_epochs):
            warnings.warn(
                f"lbfgs has not converged in {count} iterations, max_epochs={self.max_epochs} (largest element of the "
                f"gradient {step.gradient_max:.3g}, tol {tol:.3g}); raise max_epochs or "
                "penalty_l2, or scale the data",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _fit_adamw(self, X, y, sample_weight, options, validation):
        dtype, k, place = X.dtype, len(self.classes_), self._place(X)
        step = rows_of_block(X.shape[1], k, dtype.itemsize)
        trainer = self._new_trainer(X, dtype, options, place, step)
        monitor = self._monitor(options, validation, place)
        rng = check_random_state(self.random_state)
        if self.init == "xavier":  # go on where the first parameters have ended
            rng = check_random_state(rng.randint(2**31 - 1))
        count = 0

        def fold():
            if not self.batch_norm:
                return trainer.folded()
            blocks = (X[i : i + step] for i in range(0, X.shape[0], step))
            return trainer.folded(adamw.statistics(host(trainer.parameters["coef"]), blocks))

        with monitor:
            for _ in range(self.max_epochs):
                order = rng.permutation(X.shape[0])
                sums = adamw.Sums()
                for part in adamw.batches(X.shape[0], self.batch_size):
                    rows = np.sort(order[part])  # a memory map is read forwards
                    sums.add(trainer.step(X[rows], y[rows], None if sample_weight is None else sample_weight[rows]))
                count += 1
                monitor.parameters(*fold(), dtype)
                if monitor.epoch_ends(self._record(sums)):
                    break
            self._keep(*(monitor.best or fold()), dtype)
        self.n_iter_ = count

    def _monitor(self, options, validation, place):
        """Of a fit; the loss of held-out rows is without smoothing."""
        held_out = None
        if validation is not None:
            options = options._replace(label_smoothing=0.0)
            held_out = Objective(*validation, len(self.classes_), options, self.num_threads, place)
        return Monitor(self, self.max_epochs, held_out)

    def _place(self, X):
        """Where to train; sparse X only on the CPU."""
        place = place_of(self.device, None)
        if place.number is not None and is_sparse(X):
            raise TypeError(
                f"X is sparse, which device={self.device!r} does not take; pass a dense array, or device=None"
            )
        return place

    def _hyper(self):
        return adamw.Hyper(
            float(self.learning_rate),
            float(self.output_learning_rate or self.learning_rate),
            float(self.penalty_l2),
            self.clip_norm,
            self.clip_value,
        )

    def _new_trainer(self, X, dtype, options, place, step):
        """step: rows of X at a time."""
        known = hasattr(self, "coef_")
        coef, intercept = self._start(X.shape[1], dtype, zeros=False)
        batch_norm = None
        if self.batch_norm:
            if hasattr(self, "frozen_") and self.frozen_.any():
                raise ValueError("batch_norm changes all classes: it cannot be used with frozen ones")
            k = len(coef)
            batch_norm = np.zeros(k), np.ones(k)
            if known:  # normalised, then scaled back: the model that is there
                batch_norm = adamw.statistics(coef, (X[i : i + step] for i in range(0, X.shape[0], step)))
        return adamw.Trainer(
            coef,
            intercept,
            options,
            self._hyper(),
            place,
            batch_norm=batch_norm,
            frozen=getattr(self, "frozen_", None),
            num_threads=self.num_threads,
        )

    def _minibatch(self, X, y, sample_weight=None):
        """A step of the trainer that lives on from call to call."""
        first = not hasattr(self, "_trainer")
        X, y = self._validated(X, y, reset=first and not hasattr(self, "coef_"))
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        indices = self._indices(y)
        if first:
            if isinstance(self.class_weight, str):
                raise ValueError(
                    f"class_weight={self.class_weight!r} needs all labels at once; pass a dict or an array"
                )
            everything = np.arange(len(self.classes_))
            options = self._options(X.dtype, everything, None)
            self._trainer = self._new_trainer(X, X.dtype, options, self._place(X), max(1, X.shape[0]))
        self._trainer.hyper = self._hyper()
        return self._trainer.step(X.astype(self._trainer.parameters["coef"].dtype, copy=False), indices, sample_weight)

    def _settle(self, blocks):
        """coef_ and intercept_ from the trainer."""
        trainer = self._trainer
        statistics = None if blocks is None else adamw.statistics(host(trainer.parameters["coef"]), blocks)
        self._keep(*(None if p is None else np.array(p) for p in trainer.folded(statistics)), trainer.dtype)

    def _record(self, sums):
        return {**sums.means(), "learning_rate": float(self.learning_rate)}

    def _logits(self, X):
        check_is_fitted(self, "coef_")
        X = self._validated(X)
        return logits_of(X, self.coef_.astype(X.dtype, copy=False), self.intercept_.astype(X.dtype, copy=False))
