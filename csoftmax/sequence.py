"""Tagging of sequences with a linear-chain CRF, and spans in tags; requires the extra ``learn``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

try:
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: F401  (scikit-learn 1.6)
except ImportError as error:
    raise ImportError(
        f"csoftmax.sequence needs SciPy and scikit-learn >= 1.6 ({error}); install them with: "
        "pip install 'csoftmax[learn]'"
    ) from error

from ._arguments.numbers import check_count
from ._learn import chain_file, chain_fit, chain_predict
from ._learn.chain_labels import as_classes, list_labels
from ._learn.chain_parameters import prepare
from ._learn.messages import show
from ._learn.monitor import WRAPPER_FRAMES, SupportsCallbacks, with_callbacks
from ._learn.span_scores import span_f1, span_transitions

if TYPE_CHECKING:
    from typing import Self

__all__ = ["CRFTagger", "span_f1", "span_transitions"]


class CRFTagger(SupportsCallbacks, BaseEstimator):
    """Linear-chain conditional random field for sequences of tokens (Lafferty, McCallum & Pereira 2001).

    The score of a sequence of labels is the sum of the weights of all its (attribute, label) pairs, of its transitions,
    and of its first and last label; its probability is the softmax over all sequences of labels.  `fit` minimises the
    mean of the sequences' losses, ``-log(probability)``, plus ``penalty_l2 / 2 * sum(w**2) + penalty_l1 * sum(|w|)``
    over all weights.  The minimum is that of CRFsuite with ``penalty_l1 = c1 / N`` and ``penalty_l2 = 2 * c2 / N`` for
    N sequences, if ``transitions="seen"`` and ``fit_ends=False``.

    Parameters
    ----------
    solver : {"lbfgs", "adamw"}, default "lbfgs"
        "lbfgs": SciPy's L-BFGS-B on all of the data, or OWL-QN (Andrew & Gao 2007) with an L1 penalty. "adamw":
        minibatches of sequences (Loshchilov & Hutter 2019), where `penalty_l2` is the decoupled weight decay.
    penalty_l2 : float >= 0, default 1e-4
        Factor of half the squared weights.
    penalty_l1 : float >= 0, default 0.0
        Factor of the magnitudes of the weights, which makes many of them exactly 0; not for adamw.
    states : {"seen", "all"}, default "seen"
        Which pairs of attribute and label have a weight: those of the training data (a set of labels counts with each
        of its labels, an unknown label with none), or all.
    transitions : {"all", "seen"}, default "all"
        Which transitions have a weight; the others score 0.
    fit_ends : bool, default True
        Whether the first and the last label have weights.
    min_count : int, default 1
        Attributes that occur less often are left out.
    hashing : int, optional
        Number of columns that names of attributes are hashed to (scikit-learn's `FeatureHasher`), instead of a
        vocabulary; 2**20 is usual. Attributes of one column share their weights.
    constraints : {None, "BIO", "IOB1", "BIOES", "BILOU", "BMES"}, default None
        Scheme of spans whose forbidden transitions are impossible in training and prediction (`span_transitions`).
    max_epochs : int, default 100
        Maximum number of iterations (lbfgs) or of passes over the data (adamw).
    batch_size : int, default 32
        Number of sequences in a minibatch (adamw).
    learning_rate : float > 0, default 1e-2
        About the change of a weight in a step (adamw).
    early_stopping : bool, default False
        Hold out `validation_fraction` of the sequences, stop when their loss has not fallen for `patience` epochs, and
        keep the weights of the best epoch.
    validation_fraction : float in (0, 1), default 0.1
        Share of the sequences to hold out.
    patience : int, default 10
        Number of epochs without improvement after which training stops.
    warm_start : bool, default False
        Let `fit` start from the weights of the previous fit; new attributes are added, the labels must be among
        `classes_`.
    callbacks : callable, "progress", or a list of these, optional
        Called after each epoch as ``callback(tagger, record)``, with the tagger as fitted so far and the epoch's entry
        of `history_`; a true result stops the training. One that calls ``tagger.save(path)`` every few epochs leaves
        the last whole file if the training is killed. "progress" shows a bar on a terminal (tqdm).
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None, default None
        Seed of shuffling and of the held-out sequences.
    num_threads : int, optional
        Upper bound on csoftmax's threads; results do not depend on it.
    tol : float > 0, optional
        lbfgs stops when no element of the gradient is larger. None: 1e-5.

    Attributes
    ----------
    classes_ : ndarray of shape (L,)
        Labels, sorted.
    vocabulary_ : dict of str to int, or None
        Columns of the names of attributes; None with `hashing`, and for matrices.
    state_ : scipy.sparse.csr_array of float64, shape (A, L)
        Weights of the pairs of attribute and label.
    transitions_ : ndarray of float64, shape (L, L)
        Scores of transitions, ``[i, j]`` from label i to j; -inf where constraints forbid one.
    start_, end_ : ndarray of float64, shape (L,)
        Scores of the first and of the last label.
    state_features_, transition_features_ : dict
        Weights by (attribute, label) and by (label, label), without those that are 0 or forbidden, as in
        sklearn-crfsuite.
    n_iter_ : int
        Iterations or epochs of the last fit; steps of `partial_fit`.
    history_ : dict of str to list
        For each epoch "loss" (with penalties for lbfgs), "gradient_norm", "learning_rate" (NaN for lbfgs) and, with
        early stopping, "validation_loss" and "validation_accuracy".
    n_features_in_ : int
        A, the number of attributes.

    Notes
    -----
    X is a list of sequences, and y a list of their labels.  A sequence is a list of tokens, or a matrix (NumPy or
    SciPy) with a row for each token; X may also be a pair ``(matrix, lengths)`` of the rows of all sequences and the
    number of rows of each, whose labels may be one flat list.  A token is a list or set of names of attributes, or a
    dict as for python-crfsuite: ``{"a": "b"}`` has the attribute "a:b", ``{"a": 2.5}`` the attribute "a" of value 2.5,
    True and False are 1 and 0, and ``{"a": ["b", "c"]}`` and ``{"a": {"b": 1.0}}`` have the attributes "a:b", "a:c".
    Values are rounded to float32.  A label is a string, an integer or a bool; None is an unknown label and a set has
    the labels that are possible: the loss is then that of all sequences of labels that agree.

    Memory of a fit: 4 bytes for each attribute of each token in each of two orders (8 with values other than 1), 8
    bytes for each token and label, and for L-BFGS about 25 vectors of 8 bytes for each weight.  The result is the same
    for every number of threads and every instruction set.

    Examples
    --------
    >>> from csoftmax.sequence import CRFTagger
    >>> X = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]]
    >>> y = [["D", "N"], ["D", "N"], ["N"]]
    >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
    >>> tagger.predict([[["the"], ["fish"]]])
    [['D', 'N']]
    >>> tagger.predict_proba([[["the"], ["fish"]]])[0].round(2)
    array([[0.98, 0.02],
           [0.01, 0.99]])
    """

    classes_: NDArray[Any]
    vocabulary_: dict[str, int] | None
    state_: Any
    transitions_: NDArray[np.float64]
    start_: NDArray[np.float64]
    end_: NDArray[np.float64]
    n_iter_: int
    n_features_in_: int
    history_: dict[str, list[float]]

    if TYPE_CHECKING:  # scikit-learn's methods, which have no types there

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...  # noqa: D102
        def set_params(self, **params: Any) -> Self: ...  # noqa: D102

    def __init__(
        self,
        *,
        solver: Literal["lbfgs", "adamw"] = "lbfgs",
        penalty_l2: float = 1e-4,
        penalty_l1: float = 0.0,
        states: Literal["seen", "all"] = "seen",
        transitions: Literal["all", "seen"] = "all",
        fit_ends: bool = True,
        min_count: int = 1,
        hashing: int | None = None,
        constraints: str | None = None,
        max_epochs: int = 100,
        batch_size: int = 32,
        learning_rate: float = 1e-2,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        warm_start: bool = False,
        callbacks: Any = None,
        random_state: Any = None,
        num_threads: int | None = None,
        tol: float | None = None,
    ) -> None:
        self.solver = solver
        self.penalty_l2 = penalty_l2
        self.penalty_l1 = penalty_l1
        self.states = states
        self.transitions = transitions
        self.fit_ends = fit_ends
        self.min_count = min_count
        self.hashing = hashing
        self.constraints = constraints
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.random_state = random_state
        self.num_threads = num_threads
        self.tol = tol

    def __getstate__(self) -> dict[str, Any]:
        """State for pickle and copy, without what is derived from the weights."""
        state = dict(super().__getstate__())  # type: ignore[no-untyped-call]
        state.pop("_model", None)
        return state

    @contextmanager
    def _restored_on_error(self) -> Iterator[dict[str, Any]]:
        """Give the estimator its state back if arguments are refused, or if training ends before its first weights."""
        before = dict(self.__dict__)
        try:
            yield before
        except BaseException:
            if self.__dict__.get("state_") is before.get("state_"):
                self.__dict__.clear()
                self.__dict__.update(before)
            raise

    # Training

    @with_callbacks
    def fit(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> Self:
        """Train on all of the data.

        Parameters
        ----------
        X : list of sequences, or (matrix, lengths)
            Tokens; see the notes of the class.
        y : list of sequences of labels
            Labels; None is an unknown one, a set has the possible ones.
        sample_weight : array-like of shape (N,), optional
            Weights of the sequences, at least 0; a sequence without tokens has none.

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
            If lbfgs has not reached `tol`, or if adamw has diverged.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X = [[{"word": "the"}, {"word": "cat"}], [{"word": "dogs", "is_plural": True}]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, [["D", "N"], ["N"]])
        >>> tagger.classes_
        array(['D', 'N'], dtype='<U1')
        >>> sorted(tagger.vocabulary_)
        ['is_plural', 'word:cat', 'word:dogs', 'word:the']
        """
        with self._restored_on_error():
            problem = prepare(self, X, y, sample_weight)
            self.__dict__.pop("_trainer", None)
            notes = chain_fit.fit(self, problem)
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2 + WRAPPER_FRAMES)
        return self

    def partial_fit(self, X: Any, y: Any, classes: ArrayLike | None = None) -> Self:
        """Take one step of AdamW on the given sequences; needs ``solver="adamw"``.

        New attributes, and with "seen" new pairs and transitions, get weights when they first occur.

        Parameters
        ----------
        X, y
            One minibatch, as in `fit`.
        classes : array-like of shape (L,), optional
            All labels; required in the first call.

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
            If adamw has diverged.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> tagger = CRFTagger(solver="adamw", learning_rate=0.5)
        >>> for word, label in [("the", "D"), ("cat", "N"), ("the", "D"), ("dog", "N")]:
        ...     tagger = tagger.partial_fit([[[word]]], [[label]], classes=["D", "N"])
        >>> tagger.n_iter_, tagger.predict([[["the"]], [["cat"]]])
        (4, [['D'], ['N']])
        """
        for name, value, allowed in (
            ("solver", self.solver, "adamw"),
            ("early_stopping", self.early_stopping, False),
            ("min_count", self.min_count, 1),
        ):
            if value != allowed:
                raise ValueError(f"partial_fit needs {name}={allowed!r}, got {show(value)}")
        with self._restored_on_error() as before:
            is_first = not hasattr(self, "state_")
            if is_first:
                if classes is None:
                    raise ValueError("classes must be passed on the first call to partial_fit")
                self.history_, self.n_iter_ = {}, 0
            elif classes is not None:
                given = as_classes(list_labels(classes, "classes"), "classes")
                if not np.array_equal(given, self.classes_):
                    raise ValueError(f"classes are {show(given)}, but were {show(self.classes_)} in the first call")
            labels = list_labels(classes, "classes") if is_first else self.classes_.tolist()
            problem = prepare(self, X, y, None, classes=labels)
            try:
                notes = chain_fit.fit_minibatch(self, problem)
            except BaseException:  # the moments may be of half a step
                before.pop("_trainer", None)
                raise
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2)
        return self

    # Predictions

    def predict(self, X: Any) -> list[list[Any]]:
        """Labels of the most probable path of each sequence (Viterbi).

        Parameters
        ----------
        X : list of sequences, or (matrix, lengths)
            Tokens; attributes that training has not seen are left out.

        Returns
        -------
        list of list
            The labels of each sequence; of equal paths the one that `csoftmax.crf_decode` chooses. None for the tokens
            of a sequence to which the constraints leave no labels.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        TypeError, ValueError
            If X does not fit the model.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> tagger.predict([[["the"], ["fish"]], []])
        [['D', 'N'], []]
        """
        check_is_fitted(self, "state_")
        return chain_predict.predict(self, X)

    def predict_n_best(self, X: Any, n: int) -> list[list[list[Any]]]:
        """Labels of the n most probable paths of each sequence.

        Parameters
        ----------
        X : list of sequences, or (matrix, lengths)
            Tokens.
        n : int
            Maximum number of paths, at least 1.

        Returns
        -------
        list of list of list
            For each sequence at most n lists of labels, best first.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        TypeError, ValueError
            If X does not fit the model, or n is no positive integer.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> tagger.predict_n_best([[["the"], ["fish"]]], 2)
        [[['D', 'N'], ['N', 'N']]]
        """
        check_is_fitted(self, "state_")
        return chain_predict.predict_n_best(self, X, check_count("n", n, 1))

    def predict_proba(self, X: Any) -> list[NDArray[np.float64]]:
        """Probabilities of the labels of each token, given the whole sequence (marginals, not those of one path).

        Parameters
        ----------
        X : list of sequences, or (matrix, lengths)
            Tokens.

        Returns
        -------
        list of ndarray of float64, each of shape (n, L)
            For each sequence a row for each token, with a column for each element of `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        TypeError, ValueError
            If X does not fit the model.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> tagger.predict_proba([[["the"], ["fish"]], [["dogs"]]])[0].round(2)
        array([[0.98, 0.02],
               [0.01, 0.99]])
        """
        check_is_fitted(self, "state_")
        return chain_predict.predict_proba(self, X)

    def predict_marginals(self, X: Any) -> list[list[dict[Any, float]]]:
        """`predict_proba` as dicts, as in sklearn-crfsuite.

        Parameters
        ----------
        X : list of sequences, or (matrix, lengths)
            Tokens.

        Returns
        -------
        list of list of dict
            For each token the probability of each label.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        TypeError, ValueError
            If X does not fit the model.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> [{label: round(p, 2) for label, p in token.items()} for token in tagger.predict_marginals([[["dogs"]]])[0]]
        [{'D': 0.03, 'N': 0.97}]
        """
        labels = self.classes_.tolist() if hasattr(self, "classes_") else []
        return [[dict(zip(labels, row)) for row in p.tolist()] for p in self.predict_proba(X)]

    def log_likelihood(self, X: Any, y: Any) -> NDArray[np.float64]:
        """Logarithm of the probability of the labels of each sequence.

        Parameters
        ----------
        X : list of sequences, or (matrix, lengths)
            Tokens.
        y : list of sequences of labels
            Labels; with None and sets, of all sequences of labels that agree.

        Returns
        -------
        ndarray of float64, shape (N,)
            Log-probabilities; 0 for a sequence without tokens, -inf for labels that constraints forbid.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        TypeError, ValueError
            If X or y does not fit the model.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> tagger.log_likelihood([[["the"], ["fish"]]] * 2, [["D", "N"], ["D", None]]).round(3)
        array([-0.026, -0.018])
        """
        check_is_fitted(self, "state_")
        return chain_predict.compute_log_likelihood(self, X, y)

    def score(self, X: Any, y: Any) -> float:
        """Share of tokens whose predicted label is right.

        Parameters
        ----------
        X : list of sequences, or (matrix, lengths)
            Tokens.
        y : list of sequences of labels
            Labels; unknown ones do not count, and of a set each label is right.

        Returns
        -------
        float
            Accuracy over all tokens; NaN if there is none.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        TypeError, ValueError
            If X or y does not fit the model.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> tagger.score([[["the"], ["fish"]]], [["D", "D"]])
        0.5
        """
        check_is_fitted(self, "state_")
        return chain_predict.score(self, X, y)

    @property
    def state_features_(self) -> dict[tuple[Any, Any], float]:
        """Weights by (attribute, label), without those that are 0; of matrices, attributes are column numbers.

        Returns
        -------
        dict of (str or int, label) to float
            The weights, in the order of the columns and of `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        AttributeError
            With `hashing`, which keeps no names.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> {pair: round(weight, 2) for pair, weight in tagger.state_features_.items()}
        {('the', 'D'): 1.16, ('cat', 'N'): 0.25, ('dog', 'N'): 0.25, ('dogs', 'N'): 0.97}
        """
        check_is_fitted(self, "state_")
        if self.hashing is not None:
            raise AttributeError("state_features_ needs names of attributes, which hashing does not keep")
        names: Any = range(self.state_.shape[0])
        if self.vocabulary_ is not None:
            names = sorted(self.vocabulary_, key=self.vocabulary_.__getitem__)
        labels, state = self.classes_.tolist(), self.state_.tocoo()
        entries = zip(state.row.tolist(), state.col.tolist(), state.data.tolist())
        return {(names[a], labels[j]): weight for a, j, weight in entries if weight}

    @property
    def transition_features_(self) -> dict[tuple[Any, Any], float]:
        """Weights by (label, next label), without those that are 0 or forbidden.

        Returns
        -------
        dict of (label, label) to float
            The weights, in the order of `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.

        Examples
        --------
        >>> from csoftmax.sequence import CRFTagger
        >>> X, y = [[["the"], ["cat"]], [["the"], ["dog"]], [["dogs"]]], [["D", "N"], ["D", "N"], ["N"]]
        >>> tagger = CRFTagger(penalty_l2=1e-2).fit(X, y)
        >>> {pair: round(weight, 2) for pair, weight in tagger.transition_features_.items()}
        {('D', 'D'): -0.39, ('D', 'N'): 1.55, ('N', 'D'): -0.11, ('N', 'N'): -1.05}
        """
        check_is_fitted(self, "state_")
        labels = self.classes_.tolist()
        rows = self.transitions_.tolist()
        return {
            (labels[i], labels[j]): weight
            for i, row in enumerate(rows)
            for j, weight in enumerate(row)
            if weight and weight != -np.inf
        }

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tagger to a file, which is replaced as a whole or not at all; works in callbacks, too.

        Parameters
        ----------
        path : str or path-like
            File name; the file is a safetensors file. Callbacks and a `random_state` that is not an int are not saved.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the tagger is not fitted.
        ValueError
            If the name ends in .npz.
        ImportError
            If safetensors is missing.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.sequence import CRFTagger
        >>> tagger = CRFTagger().fit([[["a"], ["b"]]], [["X", "Y"]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tagger.save(os.path.join(folder, "tagger.safetensors"))
        ...     os.listdir(folder)
        ['tagger.safetensors']
        """
        check_is_fitted(self, "state_")
        chain_file.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = True) -> Self:
        """Read a tagger from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        mmap : bool, default False
            Let the weights be read-only memory maps of the file. It must stay as it is while the tagger is used;
            `save` replaces a file as a whole, which leaves such maps intact.
        verify : bool, default True
            Compare the checksums of header and arrays (SHA-256).

        Returns
        -------
        CRFTagger
            The fitted tagger.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a tagger, of another version, or damaged: any changed bit is found.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.sequence import CRFTagger
        >>> tagger = CRFTagger().fit([[["a"], ["b"]]], [["X", "Y"]])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tagger.save(os.path.join(folder, "tagger.safetensors"))
        ...     loaded = CRFTagger.load(os.path.join(folder, "tagger.safetensors"))
        >>> loaded.predict([[["a"], ["b"]]])
        [['X', 'Y']]
        """
        return chain_file.load(cls, path, mmap=mmap, verify=verify)


# Messages show the public name.
for _function in (span_f1, span_transitions):
    _function.__module__ = __name__
