"""The class of `csoftmax.heads.ClusteredHead`."""

from __future__ import annotations

import math
import os
from copy import deepcopy
from typing import TYPE_CHECKING, Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import as_native
from .._arguments.generators import as_generator, restore_states, save_states
from .._arguments.methods import accept_foreign_features
from .._arguments.numbers import as_number, check_count, check_flag, check_num_threads
from .._arguments.places import DeviceError
from .._cpu.dtypes import as_buffer
from .._ops import clusters, int8
from . import clustered_file
from .clustered_intervals import ClusteredInterval, bound_log_partition

if TYPE_CHECKING:
    from typing import Self

_Random = Any


class ClusteredTopK(NamedTuple):
    """The k best classes among those that were looked at, and whether they are the k best of all.

    Attributes
    ----------
    values : ndarray of shape (..., k)
        Scores in float64, rounded to the dtype of w, best first.
    indices : ndarray of int64 of shape (..., k)
        Classes, of equal scores the lowest index first.
    certified : ndarray of bool of the shape of the batch
        Whether it is certain that no other class is better: values and indices are then those of `Int8Head`.
    """

    values: NDArray[Any]
    indices: NDArray[np.int64]
    certified: NDArray[np.bool_]


class ClusteredHead:
    """Output layer in lists of similar classes, of which a query looks at a few: fast top-k that may miss classes.

    The classes are clustered by k-means of their weights and biases. A query looks at the lists whose means promise
    most, by codes in int8 and exact scores as `Int8Head` does. Where no class of another list can be among the k best,
    the result says so (`certified`).

    Parameters
    ----------
    w : array_like of shape (K, D)
        Weights in a dtype of csoftmax; integers become float64. At most 2**31 - 1 classes and 2**18 features.
    bias : array_like of shape (K,), optional
        Bias of the classes; -inf switches a class off.
    n_clusters : int, optional
        Number of clusters; the default is ``4 * sqrt(K)``, rounded. Empty ones are dropped.
    iterations : int, default 10
        Iterations of k-means, on at most 64 classes for each cluster.
    rng : int, SeedSequence or Generator, optional
        Source of the random numbers of k-means, which begins with random classes. With the same seed the clusters are
        the same, whatever the number of threads and the instruction set.
    copy : bool, default True
        False keeps a reference to w, such as a memory map, instead of a copy: w must not be changed then.
    device : {None, "cpu"}, optional
        There are no kernels for CUDA.
    num_threads : int, optional
        Upper bound on the number of threads of all methods. A query is one thread's.

    Attributes
    ----------
    n_classes, n_features, n_clusters : int
        The shape of w, and the number of clusters.
    assignment : ndarray of int64 of shape (K,)
        The cluster of each class.
    nbytes : int
        Bytes beside w: about K (D + 24) and 9 D + 140 for each cluster; with a bias 12 K more, and 20 K if float32 does
        not hold it.
    stats : dict
        Counts of the last `topk` or `predict`: "rescored_mean" and "rescored_max", the mean and the largest number of
        exact scores of a query; "scanned_mean", the mean number of classes that were looked at; "exact_scans", the
        number of queries whose scores were all exact.

    Raises
    ------
    TypeError, ValueError
        If w or bias has another dtype or shape.
    DeviceError
        If w is on a CUDA device, or `device` is one.

    Notes
    -----
    Lists of this kind are the inverted file of Sivic & Zisserman (2003). They are searched in the order of
    ``x . mean + |x| s sqrt(2 log n)``, about the largest score of n classes with the standard deviation s in the
    direction of x, which is that along the mean or across it, by their angle.
    Classes without codes (NaN, infinity, norms 2**40 times the median) are looked at by every query.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import ClusteredHead
    >>> w = np.repeat([[9.0, 0.0], [0.0, 9.0]], 3, axis=0) + np.arange(6)[:, None] / 10
    >>> head = ClusteredHead(w, n_clusters=2, rng=0)
    >>> head.topk([[2.0, 0.0]], 2, n_probe=1)
    ClusteredTopK(values=array([[18.4, 18.2]]), indices=array([[2, 1]]), certified=array([ True]))
    """

    def __init__(
        self,
        w: ArrayLike,
        bias: ArrayLike | None = None,
        *,
        n_clusters: SupportsIndex | None = None,
        iterations: SupportsIndex = 10,
        rng: _Random = None,
        copy: bool = True,
        device: str | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> None:
        if device not in (None, "cpu"):
            raise DeviceError(f'ClusteredHead has no kernels for CUDA: device must be None or "cpu", got {device!r}')
        self.num_threads = check_num_threads(num_threads)
        w = as_native(w, "w")
        weights, dtype = int8.check_weights(w)
        self._bias = int8.read_bias(bias, len(weights))
        count = round(4 * math.sqrt(len(weights)))
        if n_clusters is not None:
            count = check_count("n_clusters", n_clusters, 1, "an int or None")
        rounds = check_count("iterations", iterations)
        if check_flag("copy", copy) and np.may_share_memory(weights, np.asarray(w)):
            weights = np.array(weights, order="C")
        states = save_states(rng)
        try:
            generator = as_generator(rng)
            self._lists = clusters.make_lists(weights, dtype, self._bias, count, rounds, generator, self.num_threads)
        except BaseException:
            restore_states(states)
            raise
        self._w = weights
        self.stats: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs; the bits of bfloat16 weights are not an array beside these."""
        return {**self.__dict__, "_lists": _with_weights(self._lists, None)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy."""
        self.__dict__.update(state)
        self._lists = _with_weights(self._lists, as_buffer(self._w))

    def __copy__(self) -> Self:
        """Return a copy that shares nothing."""
        return deepcopy(self)

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return self._lists.layer.n_classes

    @property
    def n_features(self) -> int:
        """The number of columns of w."""
        return self._lists.layer.n_features

    @property
    def n_clusters(self) -> int:
        """The number of clusters."""
        return self._lists.n_lists

    @property
    def assignment(self) -> NDArray[np.int64]:
        """The cluster of each class, (K,), as `csoftmax.samplers.ClusterSampler` takes them.

        Classes without codes have the number `n_clusters`, classes that are switched off `n_clusters` + 1.
        `ClusterSampler` refuses layers whose weights or biases are not finite.
        """
        order, begin = self._lists.layer.order, self._lists.begin
        found = np.empty(self.n_classes, np.int64)
        found[order] = np.repeat(np.arange(len(begin) - 1), np.diff(begin))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes beside w."""
        bias = None if self._bias is self._lists.layer.plain.exact_bias else self._bias
        return self._lists.nbytes + (0 if bias is None else bias.nbytes)

    def __repr__(self) -> str:
        """Return the shape of the layer."""
        return f"ClusteredHead({self.n_classes} classes, {self.n_features} features, {self.n_clusters} clusters)"

    @accept_foreign_features
    def topk(
        self,
        x: ArrayLike,
        k: SupportsIndex,
        *,
        n_probe: SupportsIndex = 16,
        exact: bool = False,
        where: ArrayLike | None = None,
        exclude: Any = None,
    ) -> ClusteredTopK:
        """Return the k largest scores of each row among the classes of some lists.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        k : int
            Number of classes, 0 to K.
        n_probe : int, default 16
            Number of lists to look at. More are looked at until k classes have been found.
        exact : bool, default False
            Go on until no class of another list can be among the k best: the answer of `Int8Head`.
        where : array_like of bool of shape (K,) or (..., K), optional
            Which classes take part.
        exclude : sparse matrix of shape (N, K), or pair (indptr, ids), optional
            Classes that do not take part, for each of the N rows of x, as in `Int8Head.topk`.

        Returns
        -------
        ClusteredTopK
            values (..., k), the scores in float64 rounded to the dtype of w, and indices (..., k), int64: score
            falling, NaN first, of equal scores the lowest index; certified (...): whether these are the k best of all.
            If fewer than k classes take part, the rest has the value -inf, lowest indices first.

        Raises
        ------
        TypeError, ValueError, IndexError
            If an argument has another dtype or shape, or an excluded class does not exist.
        """
        found, batch = self._find(x, k, n_probe, exact, where, exclude)
        values = int8.round_scores(found.values, self._w.dtype)
        shape = (*batch, values.shape[1])
        return ClusteredTopK(values.reshape(shape), found.indices.reshape(shape), found.certified.reshape(batch))

    def _find(
        self, x: Any, k: Any, n_probe: Any, exact: Any, where: Any = None, exclude: Any = None
    ) -> tuple[clusters.FoundInLists, tuple[int, ...]]:
        probes, is_exact = min(check_count("n_probe", n_probe, 1), self.n_clusters), check_flag("exact", exact)
        found, batch = clusters.find_in_lists(self._lists, x, k, where, exclude, probes, is_exact, self.num_threads)
        n = max(1, len(found.rescored))
        self.stats = {
            "rescored_mean": float(found.rescored.sum() / n),
            "rescored_max": int(found.rescored.max(initial=0)),
            "scanned_mean": float(found.scanned.sum() / n),
            "exact_scans": int(found.is_scan.sum()),
        }
        return found, batch

    @accept_foreign_features
    def predict(self, x: ArrayLike, *, n_probe: SupportsIndex = 16, exact: bool = False) -> Any:
        """Return the class with the largest score of each row among the classes of some lists, of equal ones the first.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        n_probe, exact
            As in `topk`.

        Returns
        -------
        ndarray of int64 of the shape of the batch, or a scalar for one row
            Classes.
        """
        found, batch = self._find(x, 1, n_probe, exact)
        return found.indices.reshape(batch)[()]

    @accept_foreign_features
    def logits(self, x: ArrayLike, ids: ArrayLike) -> NDArray[Any]:
        """Return the exact scores of given classes.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        ids : array_like of int of shape (m,) or (..., m)
            Classes, the same for all rows or some for each.

        Returns
        -------
        ndarray
            Scores (..., m) in float64, rounded to the dtype of w.

        Raises
        ------
        IndexError
            If a class does not exist.
        TypeError, ValueError
            If an argument has another dtype or shape.
        """
        scores = int8.compute_logits(self._lists.layer.plain, x, ids, self.num_threads)
        return int8.round_scores(scores, self._w.dtype)

    @accept_foreign_features
    def log_partition(
        self,
        x: ArrayLike,
        *,
        n_probe: SupportsIndex = 16,
        n_sample: SupportsIndex = 0,
        confidence: float = 0.99,
        rng: _Random = None,
    ) -> ClusteredInterval:
        """Return bounds and an estimate of the logarithm of the partition function, ``log(sum(exp(scores)))``.

        Parameters
        ----------
        x : array_like of shape (..., D)
            Features.
        n_probe : int, default 16
            Number of lists whose classes are all scored.
        n_sample : int, default 0
            Mean number of classes of the other lists that are scored for the estimate; each takes part independently.
        confidence : float in (0, 1), default 0.99
            Probability with which the bounds of the estimate contain the truth, if the logarithm of the sampled part
            is normal. With few samples, or a few classes that hold most of it, fewer do: see the guide for figures.
        rng : None, int, SeedSequence or Generator, optional
            Source of the random numbers; without a sample none are drawn.

        Returns
        -------
        ClusteredInterval
            lower and upper, which are certain, and estimate, estimate_lower and estimate_upper; float64, of the shape
            of the batch.

        Raises
        ------
        TypeError, ValueError
            If an argument has another type or shape, or is out of range.

        Notes
        -----
        The lower bound takes the other lists at their means (Jensen), and is close. The upper one is that of the
        largest sum which their radius and their variance allow (Bennett 1962): it is certain but wide. Narrow bounds
        that are certain are those of `Int8Head.log_partition`.
        The estimate of the partition function is unbiased, so that it may lie outside of all bounds: clipped into them
        it would not be. It adds to the lists at their means the differences of the classes of the sample (Cochran
        1977). Bounds of the estimate lie within the certain ones; where none of them would, they are the certain ones.
        """
        rows, batch = int8.read_queries(self._lists.layer, x)
        probes, count = check_count("n_probe", n_probe, 1), check_count("n_sample", n_sample)
        level = as_number("confidence", confidence)
        if not 0 < level < 1:
            raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
        states = save_states(rng)
        try:
            generator = as_generator(rng)
            found = bound_log_partition(self._lists, rows, probes, count, level, generator, self.num_threads)
        except BaseException:
            restore_states(states)
            raise
        return ClusteredInterval(*(a.reshape(batch) for a in found))

    def save(self, path: str | os.PathLike[str], *, weights: bool = True) -> None:
        """Write the layer to a safetensors file, with a checksum of each array.

        Parameters
        ----------
        path : str or path-like
            File name.
        weights : bool, default True
            False leaves w out: `load` then needs it.

        Raises
        ------
        ImportError
            If safetensors is missing.
        """
        clustered_file.save(self._lists, self._w, self._bias, path, check_flag("weights", weights))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        w: ArrayLike | None = None,
        *,
        mmap: bool = False,
        verify: bool = True,
        num_threads: SupportsIndex | None = None,
    ) -> Self:
        """Read a layer from a file that `save` has written; nothing in it is executed.

        Parameters
        ----------
        path : str or path-like
            File name.
        w : array_like of shape (K, D), optional
            The weights, in place of those in the file; no copy is made.
        mmap : bool, default False
            Let codes and weights be read-only memory maps of the file, which processes share.
        verify : bool, default True
            Compare the checksums of all arrays, which reads the file once as a whole, and the codes of up to 1,000
            rows of a given w. A difference in other rows is not found.
        num_threads : int, optional
            As at the beginning.

        Returns
        -------
        ClusteredHead
            The layer.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is damaged, not one of this class, has no weights and w is not given, or was made from another
            w.

        Examples
        --------
        >>> import os, tempfile
        >>> from csoftmax.heads import ClusteredHead
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ClusteredHead([[1.0, 2.0], [3.0, 4.0]]).save(os.path.join(folder, "head.safetensors"))
        ...     head = ClusteredHead.load(os.path.join(folder, "head.safetensors"))
        >>> head.predict([[1.0, 1.0]])
        array([1])
        """
        threads = check_num_threads(num_threads)
        head = cls.__new__(cls)
        head.num_threads, head.stats = threads, {}
        head._lists, head._w, head._bias = clustered_file.load(
            path, w, mmap=check_flag("mmap", mmap), verify=check_flag("verify", verify), num_threads=threads
        )
        return head


def _with_weights(lists: clusters.Lists, w: Any) -> clusters.Lists:
    """The lists with other weights of the layer."""
    layer = lists.layer
    return lists._replace(layer=layer._replace(w=w, plain=layer.plain._replace(w=w)))
