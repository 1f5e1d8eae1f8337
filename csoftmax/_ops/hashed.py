"""Hashes of classes to few buckets, and the scores of classes from numbers of their buckets."""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._arguments.foreign import accept_foreign, as_native
from .._arguments.generators import as_generator, draw_integers
from .._arguments.numbers import check_count, check_num_threads
from .._arguments.places import as_array
from .._cpu import binding

__all__ = ["hash_buckets"]

MAX_BUCKETS = 2**32


class Rule(NamedTuple):
    """How the numbers of the buckets of a class make its score."""

    is_least: bool = False  # the least number in place of the sum
    divisor: float = 1.0  # of the sum
    prior: NDArray[np.float32] | None = None  # added to the score of each class


@accept_foreign
def hash_buckets(
    ids: ArrayLike,
    n_buckets: SupportsIndex,
    n_hashes: SupportsIndex,
    seed: Any,
    *,
    num_threads: SupportsIndex | None = None,
) -> NDArray[np.int64]:
    """The buckets of ids under random hashes, in which two ids fall together with probability 1 / n_buckets.

    With lo and hi the halves of the 64 bits of an id and 64-bit numbers a1, a2 and c for each hash, the bucket is
    ``(h * n_buckets) >> 32``, where ``h = ((a1 * lo + a2 * hi + c) mod 2**64) >> 32``: pair multiply-shift hashing
    (Dietzfelbinger 1996, Thorup 2015). The values h of two ids are independent and uniform over the choice of the
    numbers; the buckets of a hash differ by at most 2**-32 in probability.

    Parameters
    ----------
    ids : array_like of int
        Any integers, also negative ones: the bits of int64 or uint64 count.
    n_buckets : int
        From 1 to 2**32.
    n_hashes : int
        Number of hashes.
    seed : int, SeedSequence or numpy.random.Generator, or None
        Source of the numbers of the hashes: ``default_rng(seed).integers(0, 2**64, (3, n_hashes), uint64)`` are a1, a2
        and c.
    num_threads : int, optional
        Upper bound on the number of threads.

    Returns
    -------
    ndarray of int64, of the shape of ids with n_hashes as one axis more
        Buckets from 0.

    Raises
    ------
    TypeError, ValueError
        The message names the argument, its value and what is allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from csoftmax.heads import hash_buckets
    >>> hash_buckets([0, 1, 2**60], 1000, 3, seed=0)
    array([[606, 729, 543],
           [243, 999, 584],
           [986, 240, 146]])
    """
    given = as_bits(ids)
    buckets = check_count("n_buckets", n_buckets, 1)
    if buckets > MAX_BUCKETS:
        raise ValueError(f"n_buckets must be at most 2**32, got {buckets}")
    hashes = check_count("n_hashes", n_hashes, 1)
    threads = check_num_threads(num_threads)
    family = draw_family(as_generator(seed, "seed"), hashes)
    return compute_buckets(family, buckets, given.reshape(-1), threads).reshape(*given.shape, hashes)


def as_bits(ids: Any, name: str = "ids") -> NDArray[Any]:
    """Integers as contiguous int64, or uint64 where they were given so."""
    given = as_array(name, as_native(ids, name))
    if given.size == 0 and given.dtype == np.float64:  # an empty list
        given = given.astype(np.int64)
    if given.dtype.kind not in "iu":
        raise TypeError(f"{name} must hold integers, got dtype {given.dtype}")
    is_unsigned = given.dtype.kind == "u" and given.dtype.itemsize == 8
    return np.asarray(given, np.uint64 if is_unsigned else np.int64, order="C")


def draw_family(generator: np.random.Generator, hashes: int) -> NDArray[np.uint64]:
    """The numbers of some hashes, (3, R)."""
    return draw_integers(generator, 3 * hashes).reshape(3, hashes)


def compute_buckets(
    family: NDArray[np.uint64], buckets: int, ids: NDArray[Any], num_threads: int | None
) -> NDArray[np.int64]:
    """Buckets (n, R) of ids (n,)."""
    out = np.empty((len(ids), family.shape[1]), np.int64)
    if out.size:
        binding.run_hash_buckets(family, buckets, ids, out, num_threads)
    return out


def compute_scores(
    family: NDArray[np.uint64],
    tables: NDArray[np.float32],
    ids: NDArray[Any] | None,
    rule: Rule,
    out: NDArray[np.float32],
    num_threads: int | None,
    begin: int = 0,
) -> None:
    """Scores (n, m) of classes ids, (m,) or (n, m), or of m classes from begin on, from tables (n, R or 1, B)."""
    if out.size:
        binding.run_hash_scores(family, tables, begin, ids, rule, out, num_threads)


def find_best(
    family: NDArray[np.uint64],
    tables: NDArray[np.float32],
    count: int,
    ids: NDArray[Any] | None,
    rule: Rule,
    values: NDArray[np.float32],
    places: NDArray[np.int64],
    num_threads: int | None,
) -> None:
    """The k largest scores of each row, (n, k), and the places of their classes among count ones."""
    if values.size:
        binding.run_hash_topk(family, tables, count, ids, rule, values, places, num_threads)
