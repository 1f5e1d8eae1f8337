"""Adaptive negatives: classes whose weights are likely to give a row large logits, drawn by clusters."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.generators import as_generator, draw_integers, restore_states, save_states
from .._arguments.negatives import Negatives, as_ids, check_classes
from .._arguments.numbers import check_count
from .._arguments.places import as_float
from .._cpu import binding
from .._runtime.optional import load
from .sample import sample
from .softmax import log_softmax

_Random = int | np.random.SeedSequence | np.random.Generator | None


class ClusterSampler:
    """Draws for each row classes whose weights are likely to give it large logits: adaptive negatives.

    Parameters
    ----------
    w : array_like of shape (K, D)
        Weights of the classes, in one of the dtypes of `softmax`.
    bias : array_like of shape (K,), optional
        Bias of the classes.
    n_clusters : int, optional
        Number of clusters; the default is about ``sqrt(K)``. Empty ones are dropped.
    clusters : array_like of int of shape (K,), optional
        The cluster of each class, such as ``ClusteredHead.assignment``, in place of k-means; `refresh` uses k-means.
    rng : int, SeedSequence or Generator, optional
        Source of the random numbers of the clustering.

    Raises
    ------
    MissingPackageError
        If scikit-learn is not installed, which clusters that are given do not need.
    TypeError, ValueError
        If the arguments do not fit each other.

    Notes
    -----
    With the k-means clusters of (w, bias), ``q(j | x) = softmax_c(x . mean_c + bias_c + log n_c) / n_c`` for the
    classes j of cluster c. log_q is that of these probabilities, also after w has changed: stale clusters cost variance
    only. Sampling by an index of codewords is due to Chen et al. (2025). A call takes N C D multiplications for the
    clusters and gathers N m classes.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.samplers import ClusterSampler
    >>> w = np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0)
    >>> sampler = ClusterSampler(w, n_clusters=2, rng=0)
    >>> np.unique(sampler.sample([[2.0, 0.0]], 100, rng=0).ids)
    array([0, 1, 2])
    """

    def __init__(
        self,
        w: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        n_clusters: SupportsIndex | None = None,
        clusters: ArrayLike | None = None,
        rng: _Random = None,
    ):
        weights, biases = self._check_layer(w, bias)
        classes = len(weights)
        if clusters is not None:
            labels = as_ids("clusters", clusters)
            if labels.shape != (classes,) or n_clusters is not None:
                raise ValueError(
                    f"clusters has shape {labels.shape} and n_clusters is {n_clusters}: one cluster for each "
                    f"class, shape ({classes},), and for n_clusters None are needed"
                )
            self._set_clusters(weights, biases, labels)
            self._n_clusters = len(self._sizes)
            return
        count = (
            round(classes**0.5) if n_clusters is None else check_count("n_clusters", n_clusters, 1, "an int or None")
        )
        self._n_clusters = max(1, min(count, classes))
        self.refresh(w, bias, rng=rng)

    @staticmethod
    def _check_layer(w: Any, bias: Any) -> tuple[Any, Any]:
        w = as_float("w", w)[0].astype(np.float64)
        if w.ndim != 2 or len(w) == 0:
            raise ValueError(f"w has shape {w.shape}; allowed is (K, D) with at least one class")
        given = np.zeros(len(w)) if bias is None else as_float("bias", bias)[0].astype(np.float64)
        if given.shape != (len(w),):
            raise ValueError(f"bias has shape {given.shape}; w has {len(w)} rows, so ({len(w)},) is allowed")
        _check_finite("w", w)
        _check_finite("bias", given)
        return w, given

    def refresh(self, w: ArrayLike, bias: ArrayLike | None = None, *, rng: _Random = None) -> None:
        """Cluster the classes again, after w has changed.

        Parameters
        ----------
        w : array_like of shape (K, D)
            Weights of the classes; K and D may be other ones than before.
        bias : array_like of shape (K,), optional
            Bias of the classes.
        rng : int, SeedSequence or Generator, optional
            Source of the random numbers of the clustering.

        Raises
        ------
        MissingPackageError
            If scikit-learn is not installed.
        TypeError, ValueError
            If the arguments do not fit each other; the old clusters stay.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import ClusterSampler
        >>> w = np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0)
        >>> sampler = ClusterSampler(w, n_clusters=2, rng=0)
        >>> sampler.refresh(w[::-1], rng=0)
        >>> np.unique(sampler.sample([[2.0, 0.0]], 100, rng=0).ids)
        array([3, 4, 5])
        """
        weights, biases = self._check_layer(w, bias)
        clusters = load("sklearn.cluster", "learn")
        seed = int(as_generator(rng).integers(2**31))
        k_means = clusters.MiniBatchKMeans(self._n_clusters, random_state=seed, n_init=1, batch_size=4096)
        self._set_clusters(weights, biases, k_means.fit_predict(np.column_stack((weights, biases))))

    def _set_clusters(self, weights: Any, biases: Any, labels: Any) -> None:
        """Make the numbers of clusters of their members."""
        _, cluster, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        cluster = cluster.reshape(-1).astype(np.int64)
        offsets, members = binding.sort_rows(cluster, len(sizes))
        self._cluster, self._sizes, self._members, self._begin = cluster, sizes, members, offsets[:-1]
        self._means = np.add.reduceat(weights[members], self._begin) / sizes[:, None]
        self._biases = np.add.reduceat(biases[members], self._begin) / sizes + np.log(sizes)

    @property
    def n_classes(self) -> int:
        """The number of classes.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import ClusterSampler
        >>> sampler = ClusterSampler(np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0), n_clusters=2, rng=0)
        >>> sampler.n_classes
        6
        """
        return len(self._cluster)

    @property
    def n_features(self) -> int:
        """The number of columns of w.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import ClusterSampler
        >>> sampler = ClusterSampler(np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0), n_clusters=2, rng=0)
        >>> sampler.n_features
        2
        """
        return int(self._means.shape[1])

    @property
    def nbytes(self) -> int:
        """The bytes that the sampler holds: 16 for each class, and 8 D + 24 for each cluster.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import ClusterSampler
        >>> sampler = ClusterSampler(np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0), n_clusters=2, rng=0)
        >>> sampler.nbytes  # 6 classes, 2 clusters
        176
        """
        arrays = self._cluster, self._sizes, self._members, self._begin, self._means, self._biases
        return sum(array.nbytes for array in arrays)

    def _logits(self, x: Any) -> Any:
        """The logits of the clusters of each row."""
        x = as_float("x", x)[0].astype(np.float64)
        if x.ndim != 2 or x.shape[1] != self.n_features:
            raise ValueError(f"x has shape {x.shape}; (N, {self.n_features}) is needed")
        _check_finite("x", x)
        return x @ self._means.T + self._biases

    def _log_probability(self, log_p: Any, ids: Any) -> NDArray[np.float64]:
        cluster = self._cluster[ids]
        return np.asarray(np.take_along_axis(log_p, cluster, 1) - np.log(self._sizes[cluster]))

    def log_q(self, x: ArrayLike, ids: ArrayLike, size: SupportsIndex) -> NDArray[np.float64]:
        """Return the logarithms of the expected counts of classes in the draws of each row.

        Parameters
        ----------
        x : array_like of shape (N, D)
            Features.
        ids : array_like of int of shape (N, m)
            Classes of each row.
        size : int
            Number of draws.

        Returns
        -------
        ndarray of float64
            ``log(size q(j | x))``, of the shape of ids.

        Raises
        ------
        IndexError
            If an id is no class.
        TypeError, ValueError
            If an argument has another type or shape, or size is negative.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import ClusterSampler
        >>> sampler = ClusterSampler(np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0), n_clusters=2, rng=0)
        >>> np.exp(sampler.log_q([[2.0, 0.0]], [[0, 5]], 3)).round(4)
        array([[1., 0.]])
        """
        log_p = log_softmax(self._logits(x))
        at = as_ids("ids", ids)
        if at.ndim != 2 or len(at) != len(log_p):
            raise ValueError(f"ids has shape {at.shape}; ({len(log_p)}, m) is needed")
        check_classes("ids", at, self.n_classes)
        with np.errstate(divide="ignore"):
            return self._log_probability(log_p, at) + np.log(check_count("size", size))

    def sample(
        self, x: ArrayLike, size: SupportsIndex, *, target: ArrayLike | None = None, rng: _Random = None
    ) -> Negatives:
        """Draw classes for each row, with replacement.

        Parameters
        ----------
        x : array_like of shape (N, D)
            Features.
        size : int
            Number of draws for each row, m.
        target : array_like of int of shape (N,), optional
            Labels of the rows, for `target_log_q`. Negative ones, which a loss may ignore, get NaN.
        rng : int, SeedSequence or Generator, optional
            Source of the random numbers: uniform ones for the clusters as in `csoftmax.sample`, then 64 bits a class.

        Returns
        -------
        Negatives
            ids and log_q of shape (N, m); equal classes are not merged, and count is None.

        Raises
        ------
        IndexError
            If a label is too large.
        TypeError, ValueError
            If an argument has another type or shape, or size is negative. A Generator is then as it was.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import ClusterSampler
        >>> sampler = ClusterSampler(np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0), n_clusters=2, rng=0)
        >>> negatives = sampler.sample([[0.1, 0.0], [0.0, 2.0]], 4, target=[0, 1], rng=0)
        >>> negatives.ids.shape, negatives.target_log_q.shape
        ((2, 4), (2,))
        """
        m = check_count("size", size)
        logits = self._logits(x)
        log_p = log_softmax(logits)
        labels = None
        if target is not None:
            labels = as_ids("target", target)
            if labels.shape != (len(logits),):
                raise ValueError(f"target has shape {labels.shape}; ({len(logits)},) is needed")
            check_classes("target", np.maximum(labels, 0), self.n_classes)
        states = save_states(rng)
        try:
            generator = as_generator(rng)
            cluster = sample(logits, size=m, rng=generator)
            numbers = draw_integers(generator, cluster.size).reshape(cluster.shape)
        except BaseException:
            restore_states(states)
            raise
        ids = self._members[self._begin[cluster] + _multiply_high(numbers, self._sizes[cluster])]
        with np.errstate(divide="ignore"):
            log_size = np.log(m)
        target_log_q = None
        if labels is not None:
            target_log_q = self._log_probability(log_p, np.maximum(labels, 0)[:, None])[:, 0] + log_size
            target_log_q[labels < 0] = np.nan
        return Negatives(ids, self._log_probability(log_p, ids) + log_size, None, target_log_q, "iid")


def _check_finite(name: str, values: Any) -> None:
    is_finite = np.isfinite(values)
    if not is_finite.all():
        at = np.unravel_index(int(np.argmin(is_finite)), values.shape)
        raise ValueError(f"{name} must be finite, got {values[at]} at {name}[{', '.join(map(str, at))}]")


def _multiply_high(numbers: Any, n: Any) -> Any:
    """The integer part of ``n * numbers / 2**64``, for n < 2**31."""
    n = n.astype(np.uint64)
    low = (numbers & np.uint64(0xFFFFFFFF)) * n >> np.uint64(32)
    return ((numbers >> np.uint64(32)) * n + low >> np.uint64(32)).astype(np.int64)
