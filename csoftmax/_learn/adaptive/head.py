"""`AdaptiveSoftmax`, which `csoftmax.heads` exports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._arguments.generators import as_generator
from ..._arguments.layers import check_float_dtype
from ..._arguments.methods import accept_foreign_features
from ..._arguments.numbers import check_count, check_flag, check_num_threads
from ..._arguments.places import DeviceError, as_array, parse_device
from ..._ops.row_optimizer import RowOptimizer
from ..._ops.topk import TopK
from ..head_loss import check_features, plan_loss, reduce, spread
from ..head_result import HeadResult
from ..layer_file import StoredLayer
from ..store import Arrays
from . import files
from .classes import (
    check_counts,
    check_cutoffs,
    check_div_value,
    check_division,
    check_order,
    choose_cutoffs,
    make_classes,
)
from .loss import check_labels_of, compute
from .probabilities import compute_all, draw, find_best
from .state import LayerState, make_parameters

if TYPE_CHECKING:
    from typing import Self

INITS = ("xavier", "zero")
BATCH_SIZE, MAX_CLUSTERS = 512, 5  # that `suggest_cutoffs` assumes


class AdaptiveSoftmax(LayerState, StoredLayer):
    """Softmax over very many classes in two levels: frequent classes, and clusters of rarer ones with fewer features.

    Classes are ordered by falling counts. The head has a logit for each class of the shortlist, the most frequent ones,
    and one for each cluster of the others. Cluster c projects the features to ``n_features // div_value**(c + 1)``
    numbers (at least 1), from which the logits of its classes are computed (Grave et al. 2017). The log-probability of
    a class is that of the head or, in a cluster, the sum of the cluster's in the head and the class's within it.
    Labels, results and draws are the caller's numbers of classes, whatever the order.

    Parameters
    ----------
    n_features : int
        D, the number of features.
    n_classes : int
        K, the number of classes.
    counts : array_like of shape (K,), optional
        Numbers of rows of the classes, or anything proportional; the order is that of falling counts, ties by number.
    order : array_like of int of shape (K,), optional
        The classes, most frequent first, instead of the order of `counts`. Without both, class 0 comes first.
    cutoffs : "auto" or sequence of int, default "auto"
        Ranks in that order at which clusters begin, ascending, from 1 to K - 1; an empty sequence makes a softmax over
        all classes. "auto": those of `suggest_cutoffs` for `counts`, or for Zipf's law without them.
    div_value : float >= 1, default 4.0
        Factor by which each cluster has fewer features than the one before.
    bias : bool, default True
        Whether the head has a bias. Clusters have none within.
    dtype : float32 or float64, default float32
        The dtype of the parameters and of all computations. Features of other dtypes are converted.
    init : {"xavier", "zero"}, default "xavier"
        Uniform numbers as Glorot & Bengio (2010) scale them, or 0 for all but the projections; biases are 0.
    rng : int, SeedSequence or numpy.random.Generator, optional
        Source of these numbers, or a seed for it.
    device : {None, "cpu"}, optional
        Computations are on the CPU.
    num_threads : int, optional
        Upper bound on csoftmax's threads.

    Raises
    ------
    TypeError, ValueError, DeviceError
        The message names the argument, its value and what is allowed.

    Attributes
    ----------
    parameters : dict of str to ndarray
        "head" (S + C, D) for a shortlist of S classes and C clusters, "head_bias" (S + C,) and, for each cluster c,
        "projection{c}" (d_c, D) and "tail{c}" (its classes, d_c). `step` changes them in place.
    n_features, n_classes, nbytes : int
        D, K, and the bytes of the parameters.
    cutoffs : list of int
        Ranks at which clusters begin.
    order, counts : ndarray of shape (K,)
        The classes by rank, and the counts of the constructor or None.
    frozen : ndarray of bool of shape (K,), or None
        Which classes are frozen.

    Notes
    -----
    Products are those of NumPy's BLAS: results repeat with the same BLAS and number of its threads, as those of
    `csoftmax.linear_cross_entropy`. Nothing of shape (N, K) exists but where it is the result.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import AdaptiveSoftmax, RowOptimizer
    >>> rng = np.random.default_rng(0)
    >>> counts = 1000 // np.arange(1, 101)
    >>> layer = AdaptiveSoftmax(8, 100, counts=counts, cutoffs=[10, 40], rng=0)
    >>> x, y = rng.normal(size=(64, 8)).astype(np.float32), rng.integers(0, 100, 64)
    >>> optimizer = RowOptimizer()
    >>> losses = [float(layer.step(x, y, optimizer)[0]) for _ in range(50)]
    >>> losses[-1] < losses[0] / 2
    True
    >>> layer.predict(x).shape
    (64,)
    """

    def __init__(
        self,
        n_features: SupportsIndex,
        n_classes: SupportsIndex,
        *,
        counts: ArrayLike | None = None,
        order: ArrayLike | None = None,
        cutoffs: Literal["auto"] | Sequence[int] = "auto",
        div_value: float = 4.0,
        bias: bool = True,
        dtype: Any = np.float32,
        init: Literal["xavier", "zero"] = "xavier",
        rng: Any = None,
        device: str | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> None:
        features, n = check_count("n_features", n_features, 1), check_count("n_classes", n_classes, 1)
        if n > 2**31:
            raise ValueError(f"n_classes must be at most 2**31, got {n}")
        division, has_bias = check_div_value(div_value), check_flag("bias", bias)
        if not isinstance(init, str) or init not in INITS:
            raise ValueError(f"init must be 'xavier' or 'zero', got {init!r}")
        floats = check_float_dtype(dtype)
        if device is not None and parse_device(device)[0] == "cuda":
            raise DeviceError(f"device is {device!r}, but AdaptiveSoftmax computes on the CPU only")
        numbers = None if counts is None else check_counts(counts, n)
        if order is not None:
            ranked = check_order(order, n)
        else:
            ranked = np.arange(n) if numbers is None else np.argsort(-numbers, kind="stable")
        if isinstance(cutoffs, str) and cutoffs == "auto":
            shares = 1 / np.arange(1.0, n + 1) if numbers is None else numbers
            cuts = tuple(choose_cutoffs(shares, features, BATCH_SIZE, division, MAX_CLUSTERS))
        else:
            cuts = check_cutoffs(cutoffs, n)
        threads = check_num_threads(num_threads)
        generator = as_generator(rng)
        classes = make_classes(ranked, cuts)
        made = make_parameters(classes, features, division, has_bias, floats, init == "zero", generator)
        self._begin(made, classes, division)
        self._counts, self.num_threads = numbers, threads

    @staticmethod
    def suggest_cutoffs(
        counts: ArrayLike,
        n_features: SupportsIndex,
        batch_size: SupportsIndex = 512,
        *,
        div_value: float = 4.0,
        max_clusters: SupportsIndex = 5,
    ) -> list[int]:
        """The cutoffs of least expected time of a step of training.

        The time of each layer is a constant for its calls and a part in proportion to its weights and, by the expected
        number of its rows in a minibatch, to its logits and products; a dynamic programme over the clusters finds the
        best ranks (Grave et al. 2017). They depend on nothing but the arguments.

        Parameters
        ----------
        counts : array_like of shape (K,)
            Numbers of rows of the classes, in any order.
        n_features, div_value
            As in the constructor.
        batch_size : int, default 512
            Rows of a minibatch.
        max_clusters : int, default 5
            Upper bound on the number of clusters.

        Returns
        -------
        list of int
            For `cutoffs`; empty where no cluster saves time, as with few classes.

        Raises
        ------
        TypeError, ValueError
            The message names the argument, its value and what is allowed.

        Examples
        --------
        >>> from csoftmax.heads import AdaptiveSoftmax
        >>> AdaptiveSoftmax.suggest_cutoffs([5, 4, 3], 64)
        []
        >>> 1 <= len(AdaptiveSoftmax.suggest_cutoffs([10**6 // i for i in range(1, 20_000)], 64)) <= 5
        True
        """
        numbers = check_counts(counts, None)
        return choose_cutoffs(numbers, *check_division(n_features, batch_size, div_value, max_clusters))

    @classmethod
    def from_torch(cls, state_dict: Mapping[str, Any]) -> Self:
        """A layer with the parameters of ``torch.nn.AdaptiveLogSoftmaxWithLoss``, and its results.

        Parameters
        ----------
        state_dict : mapping of str to tensor
            What ``module.state_dict()`` returns, or NumPy arrays under the same names. Values are copied; half types
            become float32.

        Returns
        -------
        AdaptiveSoftmax
            Its order is that of the numbers, as PyTorch's labels are sorted by frequency.

        Raises
        ------
        TypeError, ValueError
            If a name, shape or dtype does not belong to such a module.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.heads import AdaptiveSoftmax
        >>> shapes = {"head.weight": (5, 8), "tail.0.0.weight": (2, 8), "tail.0.1.weight": (6, 2)}
        >>> layer = AdaptiveSoftmax.from_torch({name: np.ones(shape) for name, shape in shapes.items()})
        >>> layer.n_classes, layer.cutoffs
        (10, [4])
        """
        arrays, classes = files.read_state_dict(state_dict)
        width = len(arrays["projection0"])
        return cls._of(arrays, classes, max(1.0, arrays["head"].shape[1] / width))

    # Training

    @accept_foreign_features
    def loss(
        self,
        x: ArrayLike,
        target: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: SupportsIndex = -100,
        temperature: float = 1.0,
        reduction: Literal["none", "sum", "mean"] = "mean",
        label_smoothing: float = 0.0,
        num_threads: SupportsIndex | None = None,
    ) -> Any:
        """The negative log-probability of the labels.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        target : array_like of int of shape (...)
            Labels, from 0 to K - 1, or `ignore_index`.
        weight : array_like of shape (K,), optional
            Weights of the classes, at least 0: that of a row's label multiplies the row.
        sample_weight : array_like, broadcastable to the rows, optional
            Weights of the rows, at least 0. Rows of weight 0 take no part.
        ignore_index : int, default -100
            Rows with this label take no part.
        temperature : float > 0, default 1.0
            Divides the logits of head and clusters.
        reduction : {"none", "sum", "mean"}, default "mean"
            The mean divides by the sum of the weights of the rows.
        label_smoothing : float, default 0.0
            Must be 0: smoothing needs the logits of all classes.
        num_threads : int, optional
            Upper bound on the number of threads; default: that of the constructor.

        Returns
        -------
        scalar, or ndarray of the shape of the rows with reduction "none"
            In the dtype of the parameters.

        Raises
        ------
        IndexError
            If a label is no class.
        TypeError, ValueError
            The message names the argument, its value and what is allowed.
        """
        plan = plan_loss(
            self, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, reduction=reduction, label_smoothing=label_smoothing, num_threads=num_threads,
        )  # fmt: skip
        return reduce(plan, compute(self, plan, False)[0], self.dtype)

    @accept_foreign_features
    def loss_with_grad(
        self,
        x: ArrayLike,
        target: ArrayLike,
        *,
        weight: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        ignore_index: SupportsIndex = -100,
        temperature: float = 1.0,
        reduction: Literal["none", "sum", "mean"] = "mean",
        label_smoothing: float = 0.0,
        upstream: ArrayLike = 1.0,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> HeadResult:
        """The loss, and its gradients with respect to features and parameters.

        Parameters
        ----------
        x, target, weight, sample_weight, ignore_index, temperature, reduction, label_smoothing, num_threads
            As in `loss`.
        upstream : float, or array_like broadcastable to the rows with reduction "none", default 1.0
            Multiplies the gradients: the gradient of what the loss is used for.
        clip_norm, clip_value : float, optional
            As in `csoftmax.cross_entropy_with_grad`; they apply to the derivatives of a row by the
            logits of the head and of its label's cluster together.

        Returns
        -------
        HeadResult
            loss, grad_x of the shape and dtype of `x` (float64 for integers), and gradients, a dict of arrays with the
            names and shapes of `parameters`, 0 where no row falls.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `loss`.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.heads import AdaptiveSoftmax
        >>> layer = AdaptiveSoftmax(8, 100, cutoffs=[10, 40], dtype=np.float64, rng=0)
        >>> result = layer.loss_with_grad(np.ones((2, 8)), [3, 77])
        >>> sorted(result.gradients)
        ['head', 'head_bias', 'projection0', 'projection1', 'tail0', 'tail1']
        >>> bool(np.any(result.gradients["tail0"]))
        False
        """
        plan = plan_loss(
            self, x, target, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
            temperature=temperature, reduction=reduction, label_smoothing=label_smoothing, upstream=upstream,
            clip_norm=clip_norm, clip_value=clip_value, num_threads=num_threads,
        )  # fmt: skip
        losses, grad_x, found = compute(self, plan, True)
        gradients = {name: found.get(name) for name in self.parameters}
        for name, a in self.parameters.items():
            if gradients[name] is None:
                gradients[name] = np.zeros(a.shape, a.dtype)
        return HeadResult(reduce(plan, losses, self.dtype), spread(plan, grad_x), gradients)

    @accept_foreign_features
    def step(
        self, x: ArrayLike, target: ArrayLike, optimizer: RowOptimizer, *, sample_weight: ArrayLike | None = None
    ) -> tuple[Any, Any]:
        """Train on one minibatch, with the mean loss of its rows.

        Parameters of clusters without a row in the minibatch are not visited; nor are those of frozen classes.

        Parameters
        ----------
        x, target, sample_weight
            As in `loss`.
        optimizer : RowOptimizer
            Its state is kept under the names of the parameters.

        Returns
        -------
        loss, grad_x
            Before the step, as `loss_with_grad` returns them.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `loss`, or if the optimiser has the state of other shapes; nothing has been changed then.
        """
        if not isinstance(optimizer, RowOptimizer):
            raise TypeError(f"optimizer must be a RowOptimizer, got {type(optimizer).__name__}")
        result = self._compute_step(x, target, sample_weight, None)
        self._update(result.gradients, optimizer, optimizer)
        return result.loss, result.grad_x

    def _compute_step(self, x: Any, target: Any, sample_weight: Any, num_threads: Any) -> HeadResult:
        """The mean loss and its gradients, without those of clusters that have no row."""
        plan = plan_loss(
            self, x, target, weight=None, sample_weight=sample_weight, ignore_index=-100, temperature=1.0,
            reduction="mean", upstream=1.0, num_threads=num_threads,
        )  # fmt: skip
        losses, grad_x, found = compute(self, plan, True)
        return HeadResult(reduce(plan, losses, self.dtype), spread(plan, grad_x), found)

    def freeze(self, classes: ArrayLike | None = None) -> Self:
        """Keep the parameters of some classes unchanged in all later steps.

        The projection of a cluster, and its row in the head, stay as they are once all of its classes are frozen. Other
        parameters change, and with them the probabilities.

        Parameters
        ----------
        classes : array_like of int, optional
            None freezes all classes, an empty list unfreezes all of them.

        Returns
        -------
        self

        Raises
        ------
        IndexError
            If a class does not exist.
        TypeError
            If classes are not integers.
        """
        if classes is None:
            self._frozen = np.ones(self.n_classes, bool)
            return self
        given = np.atleast_1d(as_array("classes", classes))
        if given.size and given.dtype.kind not in "iu":
            raise TypeError(f"classes must be integers, got dtype {given.dtype}")
        bad = given[(given < 0) | (given >= self.n_classes)] if given.size else given
        if bad.size:
            raise IndexError(f"classes has {bad.flat[0]}; the classes are 0 to {self.n_classes - 1}")
        frozen = np.zeros(self.n_classes, bool)
        frozen[given.astype(np.int64)] = True
        self._frozen = frozen if given.size else None
        return self

    def add_classes(self, n: SupportsIndex, counts: ArrayLike | None = None) -> Self:
        """Add classes with the numbers K, K + 1, ..., at the end of the last cluster, or of the shortlist without one.

        Their weights are 0; in the shortlist their bias is the lowest one, or the logarithm of their share of the
        counts. An optimiser must forget the state of the parameters that grow (`RowOptimizer.forget`).

        Parameters
        ----------
        n : int
            Number of new classes.
        counts : array_like of shape (n,), optional
            Their counts, if the layer has been made with counts.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If n is no count; if counts are not one number for each class, or the layer has none.

        Examples
        --------
        >>> from csoftmax.heads import AdaptiveSoftmax
        >>> AdaptiveSoftmax(8, 100, cutoffs=[10, 40], rng=0).add_classes(5).parameters["tail1"].shape
        (65, 1)
        """
        more = check_count("n", n)
        if self.n_classes + more > 2**31:
            raise ValueError(f"n must leave at most 2**31 classes, got {more} to be added to {self.n_classes}")
        added = None
        if counts is not None:
            if self._counts is None:
                raise ValueError("counts need those of the other classes, which the layer was made without")
            added = check_counts(counts, more) if more else np.zeros(0)
        if more:
            self._insert(self.n_classes + more, np.arange(self.n_classes), added)
        return self

    # Predictions

    @accept_foreign_features
    def log_proba(
        self, x: ArrayLike, target: ArrayLike | None = None, *, num_threads: SupportsIndex | None = None
    ) -> NDArray[np.float64]:
        """Log-probabilities of all classes, or of one given class for each row.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        target : array_like of int of shape (...), optional
            Classes.
        num_threads : int, optional
            As in `loss`.

        Returns
        -------
        ndarray of float64, shape (..., K), or (...) with `target`
            Of logits in the dtype of the parameters; NaN in rows whose logits have no softmax.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `loss`.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.heads import AdaptiveSoftmax
        >>> layer = AdaptiveSoftmax(8, 100, cutoffs=[10, 40], dtype=np.float64, rng=0)
        >>> bool(abs(np.exp(layer.log_proba(np.ones((1, 8)))).sum() - 1) < 1e-14)
        True
        """
        flat, batch, threads = self._read(x, num_threads)
        if target is None:
            return compute_all(self, flat, threads).reshape(*batch, self.n_classes)
        labels = check_labels_of(self, target, batch)
        plan = plan_loss(
            self, flat, labels, weight=None, sample_weight=None, ignore_index=-100, temperature=1.0, reduction="none",
            num_threads=threads,
        )  # fmt: skip
        result: NDArray[np.float64] = 0.0 - compute(self, plan, False)[0].reshape(batch)
        return result[()]

    @accept_foreign_features
    def predict(self, x: ArrayLike, *, num_threads: SupportsIndex | None = None) -> Any:
        """The most probable class of each row; of equal ones the lowest.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        num_threads : int, optional
            As in `loss`.

        Returns
        -------
        ndarray of int64 of shape (...), or a scalar for one row
            0 for a row whose logits have no softmax: NaN among them, or infinity.

        Raises
        ------
        TypeError, ValueError
            As in `loss`.

        Notes
        -----
        The probability of a cluster bounds that of each of its classes: a row visits its clusters in falling order
        while that bound reaches its best class so far. The result is exact.
        """
        flat, batch, threads = self._read(x, num_threads)
        _, ids = find_best(self, flat, 1, threads, needs_values=False)
        return ids.reshape(batch)[()]

    @accept_foreign_features
    def topk(self, x: ArrayLike, k: SupportsIndex, *, num_threads: SupportsIndex | None = None) -> TopK:
        """The k most probable classes of each row; of equal ones the lowest first.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        k : int
            From 0 to K.
        num_threads : int, optional
            As in `loss`.

        Returns
        -------
        TopK
            values, log-probabilities in float64, and indices, the classes; of shape (..., k). In a row whose logits
            have no softmax the values are NaN, the indices 0 to k - 1.

        Raises
        ------
        TypeError, ValueError
            As in `loss`; if k is out of range.

        Notes
        -----
        As in `predict`. Classes are compared before the log-sum-exp of the head, which all share, is subtracted, and
        within a cluster by their logits.
        """
        many = check_count("k", k)
        if many > self.n_classes:
            raise ValueError(f"k must be at most {self.n_classes}, the number of classes, got {many}")
        flat, batch, threads = self._read(x, num_threads)
        if not many:
            return TopK(np.empty((*batch, 0)), np.empty((*batch, 0), np.int64))
        values, ids = find_best(self, flat, many, threads)
        assert values is not None
        return TopK(values.reshape(*batch, many), ids.reshape(*batch, many))

    @accept_foreign_features
    def sample(
        self,
        x: ArrayLike,
        size: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
        rng: Any = None,
        *,
        num_threads: SupportsIndex | None = None,
    ) -> Any:
        """Draw classes by their probabilities.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        size : int or tuple of ints, optional
            Shape of the draws from each row; None means one draw, without an extra axis.
        rng : int, SeedSequence, Generator or RandomState of numpy.random, or a sequence of them, one a row, optional
            As in `csoftmax.sample`; each draw consumes two numbers of ``rng.random``, for the head and for a cluster.
        num_threads : int, optional
            As in `loss`.

        Returns
        -------
        ndarray of int64 of the shape of the rows, followed by `size`, or a scalar

        Raises
        ------
        TypeError, ValueError
            As in `loss`; if a row has no probabilities.
        """
        flat, batch, threads = self._read(x, num_threads)
        return draw(self, flat, batch, size, rng, threads)

    def _read(self, x: Any, num_threads: Any) -> tuple[Any, tuple[int, ...], int | None]:
        """Checked features (n, D), the shape of their rows, and the number of threads."""
        threads = check_num_threads(self.num_threads if num_threads is None else num_threads)
        features, _ = check_features(self, x)
        batch = features.shape[:-1]
        return features.reshape(math.prod(batch), self.n_features), batch, threads

    # Files

    def _contents(self) -> tuple[Arrays, dict[str, Any]]:
        return files.describe(self)

    @classmethod
    def _from_contents(cls, arrays: Arrays, header: dict[str, Any]) -> Self:
        return files.restore(cls, arrays, header)
