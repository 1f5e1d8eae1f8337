"""`HashedSoftmax`, which `csoftmax.heads` exports."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..._arguments.methods import accept_foreign_features
from ..._arguments.numbers import check_choice, check_count
from ..._ops.hashed import Rule
from ..._ops.softmax import log_softmax, softmax
from ..adaptive.classes import check_counts
from ..store import Arrays, need
from .decode import normalise, read_query, score
from .layer import HashedLayer
from .state import as_read_only, warn_if_confused

if TYPE_CHECKING:
    from typing import Self

AGGREGATES = ("geometric", "mean", "min", "prior")
COUNTED_CLASSES = 1 << 16  # whose buckets exist at a time while the shares of buckets are added up


class Prior(NamedTuple):
    """Logarithms of shares of the counts."""

    of_classes: NDArray[np.float32]  # (K,)
    of_buckets: NDArray[np.float64]  # (R, B), 0 where a bucket has no counts: all of its classes have -inf


class HashedSoftmax(HashedLayer):
    """Softmax over very many classes by a few softmaxes over buckets (MACH, Medini et al. 2019).

    Each of `n_hashes` random hashes maps the classes to `n_buckets` buckets, over which it has a softmax. Training
    raises the probabilities of the buckets of the label; the score of a class puts those of its buckets together. The
    layer has ``n_hashes * n_buckets`` rows of weights, no array with a row for each class, and classes may be any
    64-bit integers. Its probabilities are much worse than those of a softmax over all classes: see Notes.

    Parameters
    ----------
    n_features : int
        D, the number of features.
    n_classes : int, optional
        K, the number of classes; None: every 64-bit integer is a class, and predictions are among given classes.
    n_buckets : int
        B, from 2 to 2**31 - 1.
    n_hashes : int, default 16
        R, the number of hashes. A warning says where they leave two classes with the same buckets with a probability
        of more than 0.1: R below ``2 log(K / sqrt(0.1)) / log(B)``.
    counts : array_like of shape (K,), optional
        Numbers of rows of the classes, or anything proportional; what "prior" and `log_proba` need. A class with the
        count 0 has probability 0 there.
    aggregate : {"geometric", "mean", "min", "prior"}, default "geometric"
        How scores are made of the probabilities P_r of the buckets of a class: the mean of log P_r; the mean of P_r
        (Medini et al.); the least P_r, as in a count-min sketch; or log pi + mean of log(P_r / pi_r), with pi the share
        of the class in the counts and pi_r that of its bucket. The attribute may be set.
    bias : bool, default True
        Whether the logits have a bias.
    dtype : float32 or float64, default float32
        The dtype of the parameters and of the logits. Features of other dtypes are converted.
    rng : int, SeedSequence or numpy.random.Generator, optional
        Source of the hashes, as `seed` of `hash_buckets`. Weights begin as 0.
    device : {None, "cpu"}, optional
        Computations are on the CPU.
    num_threads : int, optional
        Upper bound on csoftmax's threads.

    Raises
    ------
    TypeError, ValueError, DeviceError
        The message names the argument, its value and what is allowed.

    Warns
    -----
    UserWarning
        If so few hashes and buckets do not tell the classes apart.

    Attributes
    ----------
    parameters : dict of str to ndarray
        "w" of shape (R * B, D) and "bias" of shape (R * B,). `step` changes them in place.
    n_features, n_classes, n_buckets, n_hashes, nbytes : int
        D, K or None, B, R, and the bytes of the parameters.
    counts : ndarray of float64 of shape (K,), or None
        The counts of the constructor, and of added classes.
    aggregate : str
        As above.
    frozen : ndarray of bool of shape (R * B,), or None
        Which rows of the parameters are frozen.

    Notes
    -----
    On a bigram model of English with 22,254 words the ten best by "geometric" hold the next word as often as those of
    the softmax over all words, with 9 % of its rows of weights; by "mean" a quarter less often. Only "prior" is of use
    as a probability there: its loss is 5.4, that of the softmax 5.0, that of the frequencies of the words alone 6.4.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import HashedSoftmax, RowOptimizer
    >>> rng = np.random.default_rng(0)
    >>> x, y = np.eye(8, dtype=np.float32), rng.integers(0, 10**6, 8)
    >>> layer, optimizer = HashedSoftmax(8, 10**6, n_buckets=64, rng=0), RowOptimizer()
    >>> losses = [float(layer.step(x, y, optimizer)[0]) for _ in range(50)]
    >>> losses[-1] < losses[0] / 10
    True
    >>> bool((layer.predict(x) == y).all())
    True
    >>> HashedSoftmax(8, n_buckets=64, rng=0).topk(x[0], 2, classes=[7, 2**62]).indices.shape
    (2,)
    """

    def __init__(
        self,
        n_features: SupportsIndex,
        n_classes: SupportsIndex | None = None,
        *,
        n_buckets: SupportsIndex,
        n_hashes: SupportsIndex = 16,
        counts: ArrayLike | None = None,
        aggregate: Literal["geometric", "mean", "min", "prior"] = "geometric",
        bias: bool = True,
        dtype: Any = np.float32,
        rng: Any = None,
        device: str | None = None,
        num_threads: SupportsIndex | None = None,
    ) -> None:
        classes = None if n_classes is None else check_count("n_classes", n_classes, 1)
        if counts is not None and classes is None:
            raise ValueError("counts are those of all classes: n_classes must be given with them")
        self._set_counts(None if counts is None else check_mass(check_counts(counts, classes)))
        self.aggregate = aggregate
        self._begin_new(n_features, n_classes, n_buckets, n_hashes, bias, dtype, rng, device, num_threads)
        warn_if_confused(self.n_classes, self.n_buckets, self.n_hashes)

    @property
    def aggregate(self) -> str:
        """How scores are made of the probabilities of buckets."""
        return self._aggregate

    @aggregate.setter
    def aggregate(self, value: str) -> None:
        check_choice("aggregate", value, AGGREGATES)
        if value == "prior" and self._counts is None:
            raise ValueError('aggregate is "prior", which needs counts')
        self._aggregate = value

    @property
    def counts(self) -> NDArray[np.float64] | None:
        """The counts of the classes, read-only, or None."""
        return None if self._counts is None else as_read_only(self._counts)

    def _set_counts(self, counts: NDArray[np.float64] | None) -> None:
        self._counts: NDArray[np.float64] | None = counts
        self._prior: Prior | None = None

    def _find_prior(self) -> Prior:
        """Logarithms of the shares of the counts, made when they are first needed."""
        prior = self._prior
        if prior is None:
            counts = self._counts
            if counts is None:
                raise ValueError("probabilities need counts, which the layer was made without")
            shares = counts / counts.max()  # no sum overflows
            shares /= shares.sum()
            of_buckets = np.zeros((self.n_hashes, self.n_buckets))
            for begin in range(0, len(shares), COUNTED_CLASSES):
                part = shares[begin : begin + COUNTED_CLASSES]
                buckets = self._find_buckets(np.arange(begin, begin + len(part)))
                for r in range(self.n_hashes):
                    of_buckets[r] += np.bincount(buckets[:, r], part, self.n_buckets)
            with np.errstate(divide="ignore"):
                of_classes = np.log(shares, out=shares).astype(np.float32)
                of_buckets = np.log(of_buckets, out=of_buckets)
            of_buckets[np.isneginf(of_buckets)] = 0
            self._prior = prior = Prior(of_classes, of_buckets)
        return prior

    def _make_tables(self, logits: NDArray[Any], num_threads: int | None) -> NDArray[Any]:
        function = softmax if self.aggregate in ("mean", "min") else log_softmax
        tables: NDArray[Any] = function(logits, out=logits, num_threads=num_threads)
        return tables - self._find_prior().of_buckets if self.aggregate == "prior" else tables

    def _make_rule(self) -> Rule:
        if self.aggregate == "min":
            return Rule(is_least=True)
        return Rule(False, self.n_hashes, self._find_prior().of_classes if self.aggregate == "prior" else None)

    @staticmethod
    def _count_tables(hashes: int) -> int:
        return hashes

    def _with(self, aggregate: str) -> Self:
        """The same layer with another aggregate, for one prediction."""
        layer = copy.copy(self)
        layer._aggregate = aggregate
        return layer

    # Probabilities

    @accept_foreign_features
    def log_proba(
        self, x: ArrayLike, classes: ArrayLike | None = None, *, num_threads: SupportsIndex | None = None
    ) -> NDArray[np.float64]:
        """Log-probabilities of all classes, or of given ones, normalised over all classes.

        They are the scores of "prior" less their log-sum-exp, whatever `aggregate` is, and need `counts`.

        Parameters
        ----------
        x, classes, num_threads
            As in `scores`.

        Returns
        -------
        ndarray of float64 of shape (..., m)
            Of float32 scores; NaN in rows whose logits have no softmax.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `scores`; if the layer has no counts.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.heads import HashedSoftmax
        >>> layer = HashedSoftmax(8, 1000, n_buckets=64, counts=1 / np.arange(1, 1001), rng=0)
        >>> bool(abs(np.exp(layer.log_proba(np.ones((1, 8)))).sum() - 1) < 1e-12)
        True
        """
        layer = self._with("prior")
        layer._find_prior()
        self._prior = layer._prior
        query = read_query(layer, x, classes, num_threads)
        with np.errstate(invalid="ignore"):
            result = score(layer, query) - normalise(layer, query)[:, None]
        return result.reshape(*query.batch, query.width)

    @accept_foreign_features
    def unbiased(
        self, x: ArrayLike, classes: ArrayLike | None = None, *, num_threads: SupportsIndex | None = None
    ) -> NDArray[np.float64]:
        """Medini's estimates of the probabilities, B / (B - 1) (mean of P_r - 1 / B).

        Their expectation over the hashes is the probability of the class, if each P_r is the sum of those of the
        classes in the bucket. They may be negative, and their sum is not 1.

        Parameters
        ----------
        x, classes, num_threads
            As in `scores`.

        Returns
        -------
        ndarray of float64 of shape (..., m)
            NaN in rows whose logits have no softmax.

        Raises
        ------
        IndexError, TypeError, ValueError
            As in `scores`.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.heads import HashedSoftmax
        >>> HashedSoftmax(8, n_buckets=64, rng=0).unbiased(np.ones(8), [5])  # of equal probabilities
        array([0.])
        """
        layer, b = self._with("mean"), self.n_buckets
        query = read_query(layer, x, classes, num_threads)
        means = score(layer, query).astype(np.float64)
        return ((means - 1 / b) * (b / (b - 1))).reshape(*query.batch, query.width)

    def add_classes(self, n: SupportsIndex, counts: ArrayLike | None = None) -> Self:
        """Add classes with the numbers K, K + 1, ...; they have buckets already.

        Parameters
        ----------
        n : int
            Number of new classes. Does nothing without a number of classes.
        counts : array_like of shape (n,), optional
            Their counts, if the layer has been made with counts; default: the smallest positive one. A count of 0
            gives the probability 0.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If n is no count; if counts are not one number for each class, or the layer has none.

        Examples
        --------
        >>> from csoftmax.heads import HashedSoftmax
        >>> HashedSoftmax(8, 100, n_buckets=32, rng=0).add_classes(5).n_classes
        105
        """
        more = check_count("n", n)
        if counts is not None and self._counts is None:
            raise ValueError("counts need those of the other classes, which the layer was made without")
        if counts is not None and (more or np.size(counts)):
            counts = check_counts(counts, more)
        known = self._counts
        self._grow(more)
        if known is not None and more:
            added = np.full(more, known[known > 0].min()) if counts is None else np.asarray(counts)
            self._set_counts(np.concatenate([known, added]))
        return self

    def _describe(self) -> tuple[Arrays, dict[str, Any]]:
        return ({} if self._counts is None else {"counts": self._counts}), {"aggregate": self.aggregate}

    def _restore(self, arrays: Arrays, header: dict[str, Any]) -> None:
        counts, aggregate = arrays.pop("counts", None), header.get("aggregate")
        need(not arrays, f"there are arrays that do not belong to it: {sorted(arrays)}")
        if counts is not None:
            need(self.n_classes is not None and counts.shape == (self.n_classes,), "counts are not one for each class")
            need(counts.dtype == np.float64 and np.isfinite(counts).all(), "counts are not finite numbers")
            need((counts >= 0).all() and counts.any(), "counts are negative, or all 0")
        need(aggregate in AGGREGATES, "aggregate is unknown")
        need(aggregate != "prior" or counts is not None, "aggregate is prior, but there are no counts")
        self._set_counts(counts)
        self._aggregate = str(aggregate)


def check_mass(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Refuse counts that are all 0."""
    if not counts.any():
        raise ValueError("counts are all 0; at least one must be positive")
    return counts
