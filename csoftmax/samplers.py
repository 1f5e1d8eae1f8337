"""Samplers of negative classes: draws from distributions over many classes that are known exactly.

The probabilities of the alias samplers are integer masses, rounded once from the given counts; tables, draws and
logarithms of expected counts are those of the masses. Draws depend on the generator only: the number of threads and the
instruction set change nothing.
"""

from __future__ import annotations

import math
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ._arguments.generators import as_generator, draw_integers, restore_states, save_states
from ._arguments.negatives import Negatives, as_ids, check_classes
from ._arguments.numbers import check_choice, check_count, check_non_negative
from ._arguments.places import as_array
from ._cpu import binding
from ._ops.cluster_sampler import ClusterSampler
from ._ops.frequency import StreamingFrequency

__all__ = [
    "ClusterSampler",
    "LogUniformSampler",
    "Negatives",
    "StreamingFrequency",
    "UniformSampler",
    "UnigramSampler",
]

MAX_CLASSES = 2**31  # of an alias table, whose columns are 32-bit numbers
PIECE_DRAWS = 1 << 20  # draws that are made at a time: some ms, so that Ctrl-C is seen between them
ONE_BY_ONE = 64  # Poisson rate for each class from which on classes are included one by one
MIN_REMAINING = 1 / 16  # share of the mass that exclude leaves, below which draws are not repeated until they suit
KEPT_RATES = 64  # sizes whose Poisson rate is kept
MAX_SIZE = 2**40  # of a sample, whose classes take 8 bytes each
MAX_KEY = 8192  # bytes of the excluded classes with which a rate is kept

_Random = int | np.random.SeedSequence | np.random.Generator | None
_Scheme = Literal["poisson", "iid"]


class _Sampler:
    """Draws from integer masses; without masses, from equally probable classes."""

    _cells: NDArray[np.uint32] | None = None
    _masses: NDArray[np.uint64] | None = None

    def __init__(self, n_classes: int):
        self._n = n_classes
        self._rates: dict[tuple[int, bytes], float] = {}  # by size and the classes that are excluded
        self._with_mass = n_classes

    def _build(self, weights: Any, smoothing: float, power: float) -> bool:
        """Make the table of weights; None: of the log-uniform distribution."""
        self._masses = np.empty(self._n, np.uint64)
        if not binding.run_alias_masses(weights, smoothing, power, self._masses, None):
            return False
        del weights
        self._make_table()
        return True

    def _make_table(self) -> None:
        assert self._masses is not None
        self._cells = np.empty((self._n, 2), np.uint32)
        binding.run_alias_table(self._masses, self._cells)
        self._with_mass = int(np.count_nonzero(self._masses))

    @property
    def n_classes(self) -> int:
        """The number of classes.

        Examples
        --------
        >>> from csoftmax.samplers import UniformSampler
        >>> UniformSampler(1000).n_classes
        1000
        """
        return self._n

    @property
    def nbytes(self) -> int:
        """The bytes that the sampler holds: 16 for each class with an alias table, else none.

        Examples
        --------
        >>> from csoftmax.samplers import UniformSampler, UnigramSampler
        >>> UnigramSampler([1] * 1000).nbytes, UniformSampler(1000).nbytes
        (16000, 0)
        """
        return 0 if self._masses is None or self._cells is None else self._masses.nbytes + self._cells.nbytes

    @property
    def _total(self) -> int:
        return self._n if self._masses is None else self._n << 32

    def _mass_of(self, ids: Any) -> Any:
        return np.ones(ids.shape, np.uint64) if self._masses is None else self._masses[ids]

    def probability(self, ids: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return the probabilities of classes, as they are drawn.

        Parameters
        ----------
        ids : array_like of int, optional
            Classes; the default is all of them.

        Returns
        -------
        ndarray of float64
            Probabilities of the shape of ids, or (K,).

        Raises
        ------
        IndexError
            If an id is no class.
        TypeError, ValueError
            If ids are not integers, or None for at least 2**60 classes.

        Examples
        --------
        >>> from csoftmax.samplers import UnigramSampler
        >>> UnigramSampler([9, 4, 0], power=0.5).probability()
        array([0.6, 0.4, 0. ])
        """
        if ids is None:
            if self._n >= 2**60:  # NumPy's own error would name no argument
                raise ValueError(f"ids must be given: the probabilities of {self._n} classes do not fit in memory")
            masses = np.ones(self._n, np.uint64) if self._masses is None else self._masses
        else:
            at = as_ids("ids", ids)
            check_classes("ids", at, self._n)
            masses = self._mass_of(at)
        return np.asarray(masses / np.float64(self._total))

    def log_q(self, ids: ArrayLike, size: SupportsIndex, *, scheme: _Scheme = "poisson") -> NDArray[np.float64]:
        """Return the logarithms of the expected counts of classes in a sample.

        Parameters
        ----------
        ids : array_like of int
            Classes.
        size : int
            Number of classes that `sample` is asked for, at least 0.
        scheme : {"poisson", "iid"}, default "poisson"
            As in `sample`.

        Returns
        -------
        ndarray of float64
            Of the shape of ids; -inf for classes of probability 0.

        Raises
        ------
        IndexError
            If an id is no class.
        TypeError, ValueError
            If ids are not integers, size is not an int of at least 0, or scheme is not one of the two.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import UnigramSampler
        >>> sampler = UnigramSampler([6, 3, 1], power=1)
        >>> np.exp(sampler.log_q([0, 1, 2], 2, scheme="iid"))  # expected counts
        array([1.2, 0.6, 0.2])
        >>> np.exp(sampler.log_q([0, 1, 2], 2)).round(3)  # probabilities of being among the classes
        array([0.925, 0.725, 0.35 ])
        """
        at = as_ids("ids", ids)
        check_classes("ids", at, self._n)
        size = check_count("size", size)
        check_choice("scheme", scheme, ("poisson", "iid"))
        if scheme == "iid":
            return self._log_q(at, float(size), False, self._total)
        return self._log_inclusion(at, self._rate(size, np.empty(0, np.int64)))

    def _log_q(self, ids: Any, rate: float, is_poisson: bool, total: int) -> NDArray[np.float64]:
        flat = np.ascontiguousarray(ids)  # of one axis at least
        log_q = np.empty(flat.shape)
        binding.run_alias_log_q(self._masses, total, rate, is_poisson, flat, log_q)
        return log_q.reshape(np.shape(ids))

    def _log_inclusion(self, ids: Any, rate: float) -> NDArray[np.float64]:
        if rate == np.inf:
            return np.where(self._mass_of(ids) > 0, 0.0, -np.inf)
        return self._log_q(ids, rate, True, self._total)

    def draw(self, size: SupportsIndex, *, rng: _Random = None) -> NDArray[np.int64]:
        """Draw classes with replacement.

        Parameters
        ----------
        size : int
            Number of draws.
        rng : int, SeedSequence or Generator, optional
            Source of the random numbers, of which each draw reads 64 bits.

        Returns
        -------
        ndarray of int64
            Classes in the order in which they are drawn.

        Raises
        ------
        TypeError, ValueError
            If size is not an int of at least 0, or rng not of the kinds above.

        Examples
        --------
        >>> from csoftmax.samplers import UnigramSampler
        >>> UnigramSampler([5, 0, 3]).draw(6, rng=0)
        array([0, 2, 0, 0, 2, 2])
        """
        count = check_count("size", size)
        _check_size(size, count)
        states = save_states(rng)
        try:
            return self._draw(as_generator(rng), count)
        except BaseException:
            restore_states(states)
            raise

    def _draw(self, generator: Any, count: int) -> NDArray[np.int64]:
        classes = np.empty(count, np.int64)
        for begin in range(0, count, PIECE_DRAWS):
            piece = classes[begin : begin + PIECE_DRAWS]
            binding.run_alias_draw(self._n, self._cells, draw_integers(generator, piece.size), piece, None)
        return classes

    def sample(
        self,
        size: SupportsIndex | tuple[SupportsIndex, SupportsIndex],
        *,
        target: ArrayLike | None = None,
        rng: _Random = None,
        scheme: _Scheme = "poisson",
        exclude: ArrayLike | None = None,
    ) -> Negatives:
        """Draw negatives for a batch, with the logarithms of their expected counts.

        Parameters
        ----------
        size : int, or (N, m) with scheme "iid"
            The wished number of classes: the expected one with "poisson", the number of draws with "iid". A pair draws
            m classes for each of N rows; equal ones are then not merged.
        target : array_like of int, optional
            Labels of the batch, for `target_log_q`. Negative ones, which a loss may ignore, get NaN.
        rng : int, SeedSequence or Generator, optional
            Source of the random numbers, or a seed.
        scheme : {"poisson", "iid"}, default "poisson"
            "poisson": the distinct classes of a Poisson process. Classes are included independently of each other, and
            their number is random. "iid": draws with replacement, equal ones merged to one class with a count.
        exclude : array_like of int, optional
            Classes that are never drawn; the others keep their ratios.

        Returns
        -------
        Negatives
            ids ascending (in the order of the draws for a pair), log_q, count ("iid" only), target_log_q, scheme.

        Raises
        ------
        IndexError
            If a class of target or exclude is too large.
        TypeError, ValueError
            If an argument is not of the kinds above, or exclude leaves no class to draw from.

        Notes
        -----
        With "poisson", n ~ Poisson(t) draws are made and duplicates dropped, where t solves
        ``sum(1 - exp(-t p)) = size``. log_q is the logarithm of the inclusion probability, ``log(1 - exp(-t p))``;
        with "iid" it is ``log(size p)``. If size is at least the number of classes with mass, all of these are
        returned, with log_q 0.

        Examples
        --------
        >>> import numpy as np
        >>> from csoftmax.samplers import UnigramSampler
        >>> sampler = UnigramSampler([100, 50, 10, 5, 1])
        >>> negatives = sampler.sample(3, target=[1], rng=0)
        >>> negatives.ids
        array([0, 3, 4])
        >>> np.exp(negatives.log_q).round(3)
        array([0.99 , 0.384, 0.135])
        """
        check_choice("scheme", scheme, ("poisson", "iid"))
        per_row = isinstance(size, tuple)
        sizes = size if isinstance(size, tuple) else (size,)
        shape = tuple(check_count("size", n, 0, 'an int, or a pair (N, m) with scheme="iid"') for n in sizes)
        if per_row and (len(shape) != 2 or scheme != "iid"):
            raise ValueError(
                f'size must be an int, or a pair (N, m) with scheme="iid", got {size} with scheme={scheme!r}'
            )
        _check_size(size, math.prod(shape) if scheme == "iid" else min(shape[0], self._with_mass))
        excluded = self._check_exclude(exclude)
        if self._excluded_mass(excluded) == self._total:
            raise ValueError("exclude leaves no class to draw from")
        labels = None if target is None else self._check_target(target)
        states = save_states(rng)
        try:
            generator = as_generator(rng)
            if scheme == "poisson":
                return self._sample_poisson(generator, shape[0], labels, excluded)
            return self._sample_iid(generator, shape, labels, excluded)
        except BaseException:
            restore_states(states)
            raise

    def _check_exclude(self, exclude: Any) -> NDArray[np.int64]:
        ids = as_ids("exclude", () if exclude is None else exclude)
        check_classes("exclude", ids, self._n)
        return np.unique(ids)

    def _check_target(self, target: Any) -> NDArray[np.int64]:
        labels = as_ids("target", target)
        check_classes("target", np.maximum(labels, 0), self._n)
        return labels

    def _excluded_mass(self, excluded: Any) -> int:
        if self._masses is None:
            return len(excluded)
        return int(np.sum(self._masses[excluded], dtype=np.uint64))

    def _rate(self, size: int, excluded: Any) -> float:
        """The rate t of a Poisson process whose expected number of classes is `size`."""
        with_mass = self._with_mass - int(np.count_nonzero(self._mass_of(excluded)))
        if size >= with_mass:
            return np.inf
        key = size, excluded.tobytes()
        t = self._rates.get(key)
        if t is None:
            t = self._solve_rate(size, excluded)
            if len(key[1]) <= MAX_KEY:
                if len(self._rates) >= KEPT_RATES:  # other threads may read the old ones
                    self._rates = {}
                self._rates[key] = t
        return t

    def _solve_rate(self, size: int, excluded: Any) -> float:
        """Newton's method. The expected number is concave, so that the rate rises towards the solution."""
        t = float(size)
        p = self._mass_of(excluded) / np.float64(self._total)
        for _ in range(200):
            expected, slope = binding.run_alias_inclusion(self._masses, self._n, t)
            if len(p):
                missed = np.exp(-t * p)
                expected -= float(np.sum(1 - missed))
                slope -= float(np.sum(p * missed))
            step = (size - expected) / slope if slope > 0 else 0.0
            t += step
            if not step > 1e-13 * t:
                break
        return t

    def _sample_poisson(self, generator: Any, size: int, labels: Any, excluded: Any) -> Negatives:
        rate = self._rate(size, excluded)
        if rate > ONE_BY_ONE * self._n:
            ids = self._include_one_by_one(generator, rate)
        else:
            ids = np.empty(0, np.int64)
            count = int(generator.poisson(rate))
            for begin in range(0, count, PIECE_DRAWS):
                drawn = self._draw(generator, min(PIECE_DRAWS, count - begin))
                ids = np.unique(drawn if begin == 0 else np.concatenate((ids, drawn)))
        if len(excluded):
            ids = ids[np.isin(ids, excluded, invert=True)]
        target_log_q = (
            None if labels is None else self._of_target(labels, excluded, lambda y: self._log_inclusion(y, rate))
        )
        return Negatives(ids, self._log_inclusion(ids, rate), None, target_log_q, "poisson")

    def _include_one_by_one(self, generator: Any, rate: float) -> NDArray[np.int64]:
        found = []
        for begin in range(0, self._n, PIECE_DRAWS):
            ids = np.arange(begin, min(begin + PIECE_DRAWS, self._n))
            q = self._log_inclusion(ids, rate)
            if rate == np.inf:
                found.append(ids[q == 0])
                continue
            uniforms = draw_integers(generator, len(ids)) / np.float64(2**64)
            found.append(ids[uniforms < np.exp(q)])
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def _sample_iid(self, generator: Any, shape: tuple[int, ...], labels: Any, excluded: Any) -> Negatives:
        total = self._total - self._excluded_mass(excluded)
        drawn = self._draw_without(generator, math.prod(shape), excluded, total)
        size = float(shape[-1])
        target_log_q = (
            None if labels is None else self._of_target(labels, excluded, lambda y: self._log_q(y, size, False, total))
        )
        if len(shape) == 2:
            ids = drawn.reshape(shape)
            return Negatives(ids, self._log_q(ids, size, False, total), None, target_log_q, "iid")
        ids, count = np.unique(drawn, return_counts=True)
        return Negatives(ids, self._log_q(ids, size, False, total), count.astype(np.int64), target_log_q, "iid")

    def _draw_without(self, generator: Any, count: int, excluded: Any, total: int) -> NDArray[np.int64]:
        """Draws from the classes that are not excluded, in order."""
        if not len(excluded):
            return self._draw(generator, count)
        if total >= MIN_REMAINING * self._total:
            drawn = np.empty(0, np.int64)
            while len(drawn) < count:
                more = self._draw(generator, count - len(drawn))
                drawn = np.concatenate((drawn, more[np.isin(more, excluded, invert=True)]))
            return drawn
        if self._masses is None:  # the r-th of the classes that remain: as many are skipped as are excluded before it
            places = np.empty(count, np.int64)
            binding.run_alias_draw(total, None, draw_integers(generator, count), places, None)
            return places + np.searchsorted(excluded - np.arange(len(excluded)), places, side="right")
        masses = self._masses.copy()
        masses[excluded] = 0
        places = np.empty(count, np.int64)
        binding.run_alias_draw(total, None, draw_integers(generator, count), places, None)
        return np.searchsorted(np.cumsum(masses, dtype=np.uint64), places.astype(np.uint64), side="right")

    def _of_target(self, labels: Any, excluded: Any, log_q: Any) -> NDArray[np.float64]:
        values = np.asarray(log_q(np.maximum(labels, 0)))
        if len(excluded):
            values[np.isin(labels, excluded)] = -np.inf
        values[labels < 0] = np.nan
        return values


def _check_n_classes(n_classes: Any, maximum: int) -> int:
    n = check_count("n_classes", n_classes, 1)
    if n > maximum:
        raise ValueError(f"n_classes must be at most {maximum}, got {n_classes}")
    return n


def _check_size(size: Any, n: int) -> None:
    """Refuse samples of more classes than any memory holds, before the first draw."""
    if n > MAX_SIZE:
        raise ValueError(f"size is {size}: a sample of {n} classes does not fit in memory, 2**40 is the limit")


class UniformSampler(_Sampler):
    """Draws from equally probable classes. It holds no table.

    Parameters
    ----------
    n_classes : int
        Number of classes, 1 to 2**63 - 1.

    Examples
    --------
    >>> from csoftmax.samplers import UniformSampler
    >>> UniformSampler(10**12).draw(2, rng=0)
    array([636961687321, 269786713763])
    """

    def __init__(self, n_classes: SupportsIndex):
        super().__init__(_check_n_classes(n_classes, 2**63 - 1))


class LogUniformSampler(_Sampler):
    """Draws from classes whose probabilities fall with their rank, ``p_r = log((r + 2) / (r + 1)) / log(K + 1)``.

    Parameters
    ----------
    n_classes : int
        Number of classes K, 1 to 2**31.
    order : array_like of int of shape (K,), optional
        The classes by falling frequency. By default, class r has rank r.

    Notes
    -----
    The distribution is close to Zipf's law, so that labels need no counts but must be sorted by frequency, or `order`
    given.

    Examples
    --------
    >>> from csoftmax.samplers import LogUniformSampler
    >>> LogUniformSampler(3, order=[2, 0, 1]).probability().round(3)
    array([0.292, 0.208, 0.5  ])
    """

    def __init__(self, n_classes: SupportsIndex, *, order: ArrayLike | None = None):
        super().__init__(_check_n_classes(n_classes, MAX_CLASSES))
        ranked = None if order is None else as_ids("order", order)
        if ranked is not None:
            if ranked.shape != (self._n,):
                raise ValueError(f"order has shape {ranked.shape}; ({self._n},) is needed")
            check_classes("order", ranked, self._n)
            is_seen = np.zeros(self._n, bool)
            is_seen[ranked] = True
            if not is_seen.all():
                raise ValueError(f"order must hold each class once; {int(np.argmin(is_seen))} is missing")
        self._masses = np.empty(self._n, np.uint64)
        binding.run_alias_masses(None, 0.0, 1.0, self._masses, None)
        if ranked is not None:
            masses = np.empty_like(self._masses)
            masses[ranked] = self._masses
            self._masses = masses
        self._make_table()


class UnigramSampler(_Sampler):
    """Draws from classes by their counts, ``p ~ (count + smoothing) ** power``.

    Parameters
    ----------
    counts : array_like of shape (K,)
        How often each class occurs, in any order; at least 0, not all 0 unless smoothing is positive.
    power : float, default 0.75
        0.75 is that of Mikolov et al. (2013); 1 gives the unigram distribution (Bengio & Senécal 2008).
    smoothing : float, default 0.0
        Added to each count, so that no class has probability 0.

    Raises
    ------
    TypeError, ValueError
        If counts are not real numbers, or one is negative, NaN or infinite, or all are 0.

    Notes
    -----
    Probabilities are rounded to integer masses of 2**-32 of the mean one, by largest remainder; the least positive one
    is 1 unit. The table takes 16 bytes for each class (alias method: Walker 1977, Vose 1991).

    Examples
    --------
    >>> from csoftmax.samplers import UnigramSampler
    >>> UnigramSampler([16, 0, 1]).probability().round(4)
    array([0.8889, 0.    , 0.1111])
    """

    def __init__(self, counts: ArrayLike, *, power: float = 0.75, smoothing: float = 0.0):
        given = as_array("counts", counts)
        if given.dtype.kind not in "iuf":
            raise TypeError(f"counts must hold real numbers, got dtype {given.dtype}")
        if given.ndim != 1 or not 1 <= len(given) <= MAX_CLASSES:
            raise ValueError(f"counts has shape {given.shape}; (K,) with 1 to {MAX_CLASSES} classes is needed")
        smoothing = check_non_negative("smoothing", smoothing)
        power = check_non_negative("power", power)
        weights = np.ascontiguousarray(given, np.float64)
        if not (weights.min() >= 0 and weights.max() + smoothing < np.inf):
            at = int(np.argmin((weights >= 0) & (weights + smoothing < np.inf)))
            raise ValueError(f"counts must be at least 0 and finite, got {given[at]} for class {at}")
        super().__init__(len(given))
        if not self._build(weights, smoothing, power):
            raise ValueError("counts are all 0: add smoothing")


# Pickles and messages show the public name, so that private files can move.
for _class in (ClusterSampler, Negatives, StreamingFrequency):
    _class.__module__ = __name__
