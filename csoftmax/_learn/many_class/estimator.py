"""`ManyClassRegression`, which `csoftmax.linear_model` exports."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from ..._arguments.numbers import check_count
from ..._ops.topk import TopK
from ..fit import forget, iterate, restore_on_error
from ..labels import merge_classes
from ..monitor import WRAPPER_FRAMES, SupportsCallbacks, with_callbacks
from ..parameters import as_plain, check_classes, check_known_labels, check_same_classes, mark_classes
from ..scores import ScoresInMemory
from . import files
from .choice import continue_head, make_serving
from .counts import check_added_counts, spread
from .inputs import PREDICTED_ROWS, as_features, blocks_of_features, map_blocks, read_features
from .parameters import check_parameters, check_parameters_of_steps
from .training import count_steps, prepare, train_on_batches, train_on_minibatch, train_on_rows

if TYPE_CHECKING:
    from typing import Self

    from ...samplers import ClusterSampler, LogUniformSampler, UniformSampler, UnigramSampler
    from ..adaptive.head import AdaptiveSoftmax
    from ..clustered_head import ClusteredHead
    from ..hashed.head import HashedSoftmax
    from ..hierarchical.head import HierarchicalSoftmax
    from ..hierarchical.tree import Tree
    from ..int8_head import Int8Head
    from ..tree_sampler import TreeSampler

    Layer = HierarchicalSoftmax | AdaptiveSoftmax | HashedSoftmax
    Sampler = UniformSampler | LogUniformSampler | UnigramSampler | ClusterSampler | TreeSampler


class ManyClassRegression(ScoresInMemory, SupportsCallbacks, ClassifierMixin, BaseEstimator):
    """Softmax regression for very many classes, trained by stochastic steps that visit few of them.

    Logits are ``x @ w.T + bias``, of the features themselves, or of the mean of embeddings that are trained along. A
    step of ``head="sampled"`` takes the softmax over the label of a row and a sample of other classes, corrected for
    the sampling, and changes only their parameters; the cost of a step does not depend on the number of classes.
    Predictions and probabilities are those of the softmax over all classes.

    Parameters
    ----------
    head : {"sampled", "full", "hierarchical", "adaptive", "hashed"} or layer, default "sampled"
        "sampled" and "full" are a linear layer; they differ in the loss of a step: `csoftmax.sampled_softmax_loss`
        (Bengio & Senécal 2003) or `csoftmax.in_batch_softmax_loss`; `csoftmax.linear_cross_entropy`, over all classes.
        "hierarchical": `csoftmax.heads.HierarchicalSoftmax`, decisions down a tree (Morin & Bengio 2005). "adaptive":
        `csoftmax.heads.AdaptiveSoftmax`, clusters of rare classes, by the counts at the start (Grave et al. 2017).
        "hashed": `csoftmax.heads.HashedSoftmax` by "prior", softmaxes over buckets of classes (Medini et al. 2019). A
        layer of one of these three classes, whose classes are positions of `classes_`: a copy is trained, beginning
        with its parameters; `tree`, `cutoffs`, `n_buckets`, `n_hashes` and `init_bias` are not used.
    embedding : int or pair of ints (n_ids, D), optional
        X holds ids in columns of integers; the features of a row are the mean of their embeddings, rows of a table
        (n_ids, D) in float32. An int is D, where `fit` takes the largest id in X for the last one.
    n_sampled : int, default 1024
        Number of classes that are wished for in the sample of a minibatch.
    sampler : {"unigram", "loguniform", "uniform", "in_batch"} or sampler, default "unigram"
        Distribution of sampled classes. "unigram": their counts in the data, to the power of `power` (Mikolov et al.
        2013). "loguniform": by the rank of their counts. "in_batch": no sample, but the labels of the other rows of
        the minibatch (Yi et al. 2019). Counts are sums of sample weights; where classes have none, the smallest
        positive count is added to all. An object of `csoftmax.samplers`, or a `csoftmax.adversarial.TreeSampler` that
        is fitted to the features and the positions of labels in `classes_`, is used as it is.
    power : float >= 0, default 0.75
        See `sampler`.
    correction : {"ranking", "partition", "none"}, default "ranking"
        As in `csoftmax.sampled_softmax_loss`.
    tree : {"huffman", "balanced", "two_means"} or Tree, default "huffman"
        How the hierarchical head arranges the classes. "huffman": by their counts (in `partial_fit` and `fit_batches`
        those of the first minibatch); "two_means": by the means of their features and the counts; "balanced": in order.
        A `csoftmax.heads.Tree` has the positions of `classes_` as its classes.
    cutoffs : "auto" or sequence of int, default "auto"
        Where the adaptive head divides the classes into clusters, as in `csoftmax.heads.AdaptiveSoftmax`.
    n_buckets : int, optional
        Number of buckets of each hash of the hashed head; default: ``max(16, 2 * ceil(sqrt(K)))``.
    n_hashes : int, default 16
        Number of hashes of the hashed head.
    optimizer : {"rowwise_adagrad", "adagrad", "adam", "sgd"}, default "rowwise_adagrad"
        As in `csoftmax.heads.RowOptimizer`.
    learning_rate : float > 0, default 0.3
        Learning rate of all parameters.
    penalty_l2 : float >= 0, default 0.0
        Weight decay of weights and embeddings, decoupled from the gradient (Loshchilov & Hutter 2019): they are
        multiplied by ``1 - learning_rate * penalty_l2`` in each step. It is applied to each row when that is visited,
        to all at the end of an epoch, and in `partial_fit` after each step.
    batch_size : int, default 512
        Maximum number of rows in a minibatch. With as many rows in all, or fewer, they are not shuffled, and a row of
        weight 2 has the effect of two rows, but with ``sampler="in_batch"``, where it is one candidate.
    max_epochs : int, default 5
        Maximum number of passes over the data.
    init_bias : {"log_prior", "zero"}, default "log_prior"
        Bias at the start: log of the relative counts of classes or buckets, at nodes of a tree that of the odds of
        their sides with half a count added to both; or 0. Weights start at 0, but random projections of "adaptive".
    early_stopping : bool, default False
        Hold out `validation_fraction` of the rows, stop when their loss over all classes has not fallen for `patience`
        epochs, and keep the parameters of the best epoch. Not for `partial_fit` and `fit_batches`.
    validation_fraction : float in (0, 1), default 0.1
        Share of the rows to hold out, stratified if every class has at least two rows.
    patience : int, default 3
        Number of epochs without improvement after which training stops.
    warm_start : bool, default False
        Let `fit` start from the parameters of the previous fit; its labels must be among `classes_` (see
        `add_classes`). The state of the optimiser starts anew.
    callbacks : callable, "progress", or a list of these, optional
        Called after each epoch as ``callback(estimator, record)``, with the epoch's entry of `history_`; a true result
        stops the training. Arrays of `head_` are changed in place by later epochs: copy what is kept. "progress" shows
        a bar on a terminal (tqdm). `set_callbacks` accepts the callbacks of `sklearn.callback` (scikit-learn 1.9).
    random_state : int, numpy.random.RandomState, numpy.random.Generator or None
        Seed of embeddings, of shuffling, of sampling and of the validation split.
    device : {None, "cpu"}, optional
        Training is on the CPU.
    num_threads : int, optional
        Upper bound on csoftmax's threads.

    Attributes
    ----------
    head_ : object
        The output layer; ``head_.parameters`` has "w" (K, D) and "bias" (K,), in the dtype of the features. Those of
        the other heads are those of ``head_.layer``, the layer of `csoftmax.heads`.
    embedding_ : ndarray of float32, shape (n_ids, D)
        Table of embeddings; only with `embedding`.
    classes_ : ndarray of shape (K,)
        Classes, sorted, also after `add_classes`.
    class_count_ : ndarray of float64, shape (K,)
        Sum of the weights of each class's rows in the last `fit` and in all steps since, or in all steps of a model
        that was not fitted; only if the sampler, the head or `init_bias` has needed it.
    n_iter_ : int
        Epochs of the last fit, or steps.
    history_ : dict of str to list
        For each epoch "loss", the mean loss of the steps (of a sampled head, over sampled classes), and, with early
        stopping, "val_loss", that of the held-out rows over all classes.
    frozen_ : ndarray of bool, shape (K,)
        Classes whose parameters stay unchanged; only after `freeze`.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Notes
    -----
    Training needs memory for the parameters, the state of the optimiser (one float a row for "rowwise_adagrad"), a
    minibatch and, by counts, 24 bytes for each class. Sparse X is made dense minibatch by minibatch.

    Examples
    --------
    The next word, from a table of pairs; words are ids.

    >>> import numpy as np
    >>> from csoftmax.linear_model import ManyClassRegression
    >>> words = np.array([[0], [1], [2], [0], [1], [2]] * 20)
    >>> following = np.array(["the", "cat", "sat", "the", "cat", "ran"] * 20)
    >>> model = ManyClassRegression(embedding=8, n_sampled=3, batch_size=16, max_epochs=20, random_state=0)
    >>> model = model.fit(words, following)
    >>> model.predict([[0], [1]])
    array(['the', 'cat'], dtype='<U3')
    >>> best = model.topk([[2]], 2)
    >>> sorted(model.classes_[best.indices[0]].tolist())
    ['ran', 'sat']
    """

    head_: Any
    embedding_: NDArray[np.float32]
    classes_: NDArray[Any]
    class_count_: NDArray[np.float64]
    n_iter_: int
    n_features_in_: int
    feature_names_in_: NDArray[Any]
    frozen_: NDArray[np.bool_]
    history_: dict[str, list[float]]

    if TYPE_CHECKING:  # scikit-learn's methods, which have no types there

        def get_params(self, deep: bool = True) -> dict[str, Any]: ...
        def set_params(self, **params: Any) -> Self: ...

    def __init__(
        self,
        *,
        head: Literal["sampled", "full", "hierarchical", "adaptive", "hashed"] | Layer = "sampled",
        embedding: int | tuple[int, int] | None = None,
        n_sampled: int = 1024,
        sampler: Literal["unigram", "loguniform", "uniform", "in_batch"] | Sampler = "unigram",
        power: float = 0.75,
        correction: Literal["ranking", "partition", "none"] = "ranking",
        tree: Literal["huffman", "balanced", "two_means"] | Tree = "huffman",
        cutoffs: Literal["auto"] | Sequence[int] = "auto",
        n_buckets: int | None = None,
        n_hashes: int = 16,
        optimizer: Literal["rowwise_adagrad", "adagrad", "adam", "sgd"] = "rowwise_adagrad",
        learning_rate: float = 0.3,
        penalty_l2: float = 0.0,
        batch_size: int = 512,
        max_epochs: int = 5,
        init_bias: Literal["log_prior", "zero"] = "log_prior",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 3,
        warm_start: bool = False,
        callbacks: Any = None,
        random_state: Any = None,
        device: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.head = head
        self.embedding = embedding
        self.n_sampled = n_sampled
        self.sampler = sampler
        self.power = power
        self.correction = correction
        self.tree = tree
        self.cutoffs = cutoffs
        self.n_buckets = n_buckets
        self.n_hashes = n_hashes
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.penalty_l2 = penalty_l2
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.init_bias = init_bias
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.warm_start = warm_start
        self.callbacks = callbacks
        self.random_state = random_state
        self.device = device
        self.num_threads = num_threads

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn: sparse X is supported, but not with embeddings."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = self.embedding is None
        return tags

    # Training

    @with_callbacks
    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train on all of the data.

        Parameters
        ----------
        X : array-like or sparse matrix of shape (N, D), or array-like of ints of shape (N, C)
            Features, as in `SoftmaxRegression.fit`; with `embedding`, ids from 0.
        y : array-like of shape (N,)
            Labels: integers, strings or booleans.
        sample_weight : array-like of shape (N,), optional
            Weights of the rows, at least 0; rows of weight 0 take no part.

        Returns
        -------
        self

        Raises
        ------
        IndexError
            If an id is negative, or not in the table of embeddings.
        TypeError, ValueError
            The message names the parameter or argument, its value and what is allowed. An earlier fit is kept until an
            epoch has ended; with `warm_start` its parameters have changed by the steps that were taken.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If training has diverged: the loss is not finite.
        """
        before = getattr(self, "history_", None)

        def has_learned() -> bool:
            return getattr(self, "history_", before) is not before and bool(self.history_)

        with restore_on_error(self, until=has_learned):
            rows, validation, rng = prepare(self, X, y, sample_weight)
            notes = train_on_rows(self, rows, validation, rng)
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2 + WRAPPER_FRAMES)
        return self

    @with_callbacks
    def fit_batches(
        self, batches: Iterable[Any] | Callable[[], Iterable[Any]], classes: ArrayLike, *, epochs: int | None = None
    ) -> Self:
        """Train on data that arrive in parts, for example because they are too large for memory.

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
        IndexError, TypeError, ValueError
            As in `fit`; also with `early_stopping`, and with an `embedding` without the number of ids. An earlier fit
            is kept until a step has been taken, not longer, because many iterables yield their minibatches only once;
            from then on the model is that of the steps so far, `n_iter_` and `history_` are those of whole epochs.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If training has diverged: the loss is not finite.

        Notes
        -----
        Classes are counted as their rows arrive; the sampler is made anew when the counts have doubled.
        """
        self._check_steps("fit_batches")
        epochs = check_count("epochs", self.max_epochs if epochs is None else epochs, 1)
        before = count_steps(self)
        with restore_on_error(self, until=lambda: count_steps(self) not in (None, before)):
            if self.warm_start and hasattr(self, "head_"):
                check_same_classes(classes, self.classes_)
                continue_head(self)
            else:
                self._begin_with(classes)
            notes = train_on_batches(self, lambda: iterate(batches), epochs)
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2 + WRAPPER_FRAMES)
        return self

    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Take one step on the given rows.

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
        IndexError, TypeError, ValueError
            As in `fit_batches`.

        Warns
        -----
        sklearn.exceptions.ConvergenceWarning
            If training has diverged: the loss is not finite.
        """
        self._check_steps("partial_fit")
        with restore_on_error(self):
            if not hasattr(self, "head_"):
                if classes is None:
                    raise ValueError("classes must be passed on the first call to partial_fit")
                self._begin_with(classes)
            else:
                if classes is not None:
                    check_same_classes(classes, self.classes_)
                continue_head(self)
            notes = train_on_minibatch(self, X, y, sample_weight)
        for message, category in notes:
            warnings.warn(message, category, stacklevel=2)
        return self

    def _check_steps(self, method: str) -> None:
        """Refuse parameters before training without all of the data."""
        (check_parameters_of_steps if hasattr(self, "_trainer") else check_parameters)(self)
        if self.early_stopping:
            raise ValueError(f"early_stopping needs rows to hold out, which {method} does not have; use a callback")

    def _begin_with(self, classes: ArrayLike) -> None:
        """Reset the model to these classes."""
        distinct = check_classes(classes)
        forget(self)
        self.classes_ = distinct

    def add_classes(self, classes: ArrayLike, counts: ArrayLike | None = None) -> Self:
        """Add classes to a fitted model, with weights of 0; continue training with ``warm_start=True``.

        `classes_` stays sorted: new classes take their sorted places, and parameters, counts and frozen classes move
        with their classes, as do the positions that `topk` returns. A new class has the bias of the least likely
        class, or the logarithm of its share of the counts. In a tree, the leaf with the lowest count in `class_count_`
        becomes a node of its class and the new one; a tree without counts ("balanced") splits its shallowest leaf, with
        equal probabilities, whatever `counts` says. In a hashed head a new class has buckets already, and the smallest
        of the counts. The state of the optimiser starts anew.

        Parameters
        ----------
        classes : array-like of shape (M,)
            Labels that the model does not have yet, of the same kind (numbers or strings).
        counts : array-like of shape (M,), optional
            Positive numbers of rows of the new classes, comparable to `class_count_`, to which they are added.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If the model already has one of the classes, or its labels are of another kind; if counts are not one
            positive number for each class, or the model has no counts.

        Examples
        --------
        >>> from csoftmax.linear_model import ManyClassRegression
        >>> model = ManyClassRegression(warm_start=True).fit([[0.0], [2.0]], ["ant", "cow"]).add_classes(["bee"])
        >>> model.classes_
        array(['ant', 'bee', 'cow'], dtype='<U3')
        >>> model.head_.parameters["w"][1]
        array([0.])
        """
        check_is_fitted(self, "head_")
        merged, places = merge_classes(self.classes_, as_plain(classes, "classes"))
        n, known = len(merged), len(self.classes_)
        if n == known:
            return self
        is_new = np.ones(n, bool)
        is_new[places] = False
        added = None if counts is None else check_added_counts(self, counts, classes, merged[is_new])
        head = copy.copy(self.head_)  # which a copy of the model may share
        head.add_classes(n, places, added, getattr(self, "class_count_", None))
        if hasattr(self, "class_count_"):
            self.class_count_ = spread(self.class_count_, n, places, 0 if added is None else added)
        if hasattr(self, "frozen_"):
            self.frozen_ = spread(self.frozen_, n, places, False)
        self.head_, self.classes_ = head, merged
        self.__dict__.pop("_trainer", None)
        return self

    def freeze(self, classes: ArrayLike | None = None) -> Self:
        """Keep the parameters of some classes unchanged in all later training.

        A node of a tree stays unchanged if all classes below it are frozen, a bucket of a hashed head if one of its
        classes is. Embeddings go on to change. The state of the optimiser starts anew.

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
        check_is_fitted(self, "head_")
        self.frozen_ = mark_classes(classes, self.classes_)
        self.__dict__.pop("_trainer", None)
        return self

    # Predictions

    def predict(self, X: Any) -> NDArray[Any]:
        """Classes with the largest logits; of equal logits, the first.

        Parameters
        ----------
        X : array-like or sparse matrix, as in `fit`
            Features or ids.

        Returns
        -------
        ndarray of shape (N,)
            Elements of `classes_`.

        Raises
        ------
        IndexError, TypeError, ValueError
            If X does not fit the model.
        """
        best = map_blocks(self, X, lambda features, _: self.head_.predict(features))
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of all classes.

        Parameters
        ----------
        X : array-like or sparse matrix, as in `fit`
            Features or ids.

        Returns
        -------
        ndarray of float64, shape (N, K)
            A column for each element of `classes_`.

        Raises
        ------
        IndexError, TypeError, ValueError
            If X does not fit the model.
        """
        return map_blocks(self, X, lambda features, _: self.head_.proba(features, self.num_threads))

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithms of the probabilities of all classes, with full relative precision even close to 0.

        Parameters
        ----------
        X : array-like or sparse matrix, as in `fit`
            Features or ids.

        Returns
        -------
        ndarray of float64, shape (N, K)
            A column for each element of `classes_`.

        Raises
        ------
        IndexError, TypeError, ValueError
            If X does not fit the model.
        """
        return map_blocks(self, X, lambda features, _: self.head_.log_proba(features, None, self.num_threads))

    def log_proba(self, X: Any, y: ArrayLike) -> NDArray[np.float64]:
        """Logarithms of the probabilities of given labels, without an array of (N, K).

        Parameters
        ----------
        X : array-like or sparse matrix, as in `fit`
            Features or ids.
        y : array-like of shape (N,)
            Labels, elements of `classes_`.

        Returns
        -------
        ndarray of float64, shape (N,)
            One for each row.

        Raises
        ------
        IndexError, TypeError, ValueError
            If X does not fit the model, or y has a label that is no class.

        Examples
        --------
        >>> from csoftmax.linear_model import ManyClassRegression
        >>> model = ManyClassRegression(head="full").fit([[-1.0], [1.0]], ["no", "yes"])
        >>> bool(model.log_proba([[2.0]], ["yes"])[0] > -0.5)
        True
        """
        check_is_fitted(self, "head_")
        labels = np.atleast_1d(np.asarray(as_plain(y, "y")))
        indices = check_known_labels(labels, self.classes_, is_sorted=True)
        if labels.shape != np.shape(X)[:1]:
            raise ValueError(f"y has shape {labels.shape}, but X has shape {np.shape(X)}")
        return map_blocks(
            self, X, lambda features, rows: self.head_.log_proba(features, indices[rows], self.num_threads)
        )

    def topk(self, X: Any, k: int) -> TopK:
        """The k most probable classes of each row.

        Parameters
        ----------
        X : array-like or sparse matrix, as in `fit`
            Features or ids.
        k : int
            From 0 to the number of classes.

        Returns
        -------
        TopK
            values, log-probabilities in descending order, and indices, positions in `classes_`; each of shape (N, k).
            Of equal values, the first classes.

        Raises
        ------
        IndexError, TypeError, ValueError
            If X does not fit the model, or k is out of range.
        """
        check_is_fitted(self, "head_")
        k = check_count("k", k)
        if k > len(self.classes_):
            raise ValueError(f"k must be 0 to {len(self.classes_)}, the number of classes, got {k}")
        X = read_features(self, X)
        embedding = getattr(self, "embedding_", None)
        if embedding is None:
            return self.head_.topk(as_features(X, None), k, self.num_threads)
        blocks = blocks_of_features(X, embedding, PREDICTED_ROWS)
        parts = [self.head_.topk(features, k, self.num_threads) for _, features in blocks]
        return TopK(*(np.concatenate(arrays) for arrays in zip(*parts)))

    @overload
    def serving(self, kind: Literal["int8"] = "int8") -> Int8Head: ...
    @overload
    def serving(self, kind: Literal["clustered"]) -> ClusteredHead: ...
    def serving(self, kind: Literal["int8", "clustered"] = "int8") -> Int8Head | ClusteredHead:
        """Return a copy of the output layer for fast top-k.

        Parameters
        ----------
        kind : {"int8", "clustered"}, default "int8"
            An `Int8Head`, which is exact, or a `ClusteredHead`, which may miss classes and whose clusters begin with
            the seed 0. Their scores are the logits, their classes positions in `classes_`.

        Returns
        -------
        Int8Head or ClusteredHead
            A layer for features in the columns of X. With `embedding`, for the mean of the rows of `embedding_` of a
            row's ids.

        Raises
        ------
        ValueError
            If `kind` is unknown, or the head is "hierarchical" or "adaptive": only "sampled" and "full" are one matrix.

        Examples
        --------
        >>> from csoftmax.linear_model import ManyClassRegression
        >>> model = ManyClassRegression(head="full").fit([[0.0], [1.0]], ["no", "yes"])
        >>> model.classes_[model.serving().predict([[2.0]])]
        array(['yes'], dtype='<U3')
        """
        check_is_fitted(self, "head_")
        return make_serving(self.head_, kind, self.num_threads)

    # Files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to a file, which is replaced as a whole or not at all.

        Parameters
        ----------
        path : str or path-like
            File name; the file is a safetensors file. Callbacks, a sampler that is an object, a `random_state` that is
            not an int and the state of the optimiser are not saved. The parameter `tree` is not if it is an object: the
            head's tree is.

        Raises
        ------
        ValueError
            If the name ends in .npz.
        TypeError
            If `classes_` are neither numbers nor strings.
        ImportError
            If safetensors is missing.
        """
        check_is_fitted(self, "head_")
        files.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = False, verify: bool = True) -> Self:
        """Read a model from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        mmap : bool, default False
            Let the parameters be read-only memory maps of the file, which processes share; further training copies
            them.
        verify : bool, default True
            Compare the checksums of header and arrays (SHA-256, about 2 GB/s). A map is then read once as a whole.

        Returns
        -------
        ManyClassRegression
            The fitted model.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is not a model, of another class or version, or damaged. The message names the file and the
            problem.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.linear_model import ManyClassRegression
        >>> model = ManyClassRegression(head="full").fit([[0.0], [1.0]], ["no", "yes"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save(os.path.join(folder, "model.safetensors"))
        ...     loaded = ManyClassRegression.load(os.path.join(folder, "model.safetensors"))
        >>> loaded.predict([[2.0]])
        array(['yes'], dtype='<U3')
        """
        return files.load(cls, path, mmap=mmap, verify=verify)
